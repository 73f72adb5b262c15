//! `ceil`: rounding up.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The smallest integer that is not smaller.
    ///
    /// C1. The operand is a float.
    pub struct Ceil("ceil", 1..=1) {}
}

elementwise!(Ceil, float, |p, args| p.unary(Prim::Ceil, args[0]));
