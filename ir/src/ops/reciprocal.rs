//! `reciprocal`: reciprocal.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// `1 / x`.
    ///
    /// C1. The operand is a float.
    pub struct Reciprocal("reciprocal", 1..=1) {}
}

elementwise!(Reciprocal, float, |p, args| {
    let one = p.constant(1.0, p.elem(args[0]));
    p.binary(Prim::Div, one, args[0])
});
