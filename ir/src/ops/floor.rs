//! `floor`: rounding down.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The largest integer that is not greater.
    ///
    /// C1. The operand is a float.
    pub struct Floor("floor", 1..=1) {}
}

elementwise!(Floor, float, |p, args| p.unary(Prim::Floor, args[0]));
