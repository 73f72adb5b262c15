//! `tan`: tangent.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The tangent.
    ///
    /// C1. The operand is a float.
    pub struct Tan("tan", 1..=1) {}
}

elementwise!(Tan, float, |p, args| p.unary(Prim::Tan, args[0]));
