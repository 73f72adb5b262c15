//! `tanh`: hyperbolic tangent.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The hyperbolic tangent.
    ///
    /// C1. The operand is a float.
    pub struct Tanh("tanh", 1..=1) {}
}

elementwise!(Tanh, float, |p, args| p.unary(Prim::Tanh, args[0]));
