//! `is_nan`: test for NaN.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// Whether `x` is not a number, a `bool`.
    ///
    /// C1. The operand is a float.
    pub struct IsNan("is_nan", 1..=1) {}
}

elementwise!(IsNan, float, |p, args| {
    let equal = p.binary(Prim::Eq, args[0], args[0]);
    p.unary(Prim::Not, equal)
});
