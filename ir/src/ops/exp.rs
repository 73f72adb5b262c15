//! `exp`: exponential.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// `e^x`.
    ///
    /// C1. The operand is a float.
    pub struct Exp("exp", 1..=1) {}
}

elementwise!(Exp, float, |p, args| p.unary(Prim::Exp, args[0]));
