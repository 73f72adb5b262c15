//! `expm1`: exponential minus one.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// `e^x - 1` without cancellation near 0.
    ///
    /// C1. The operand is a float.
    pub struct Expm1("expm1", 1..=1) {}
}

elementwise!(Expm1, float, |p, args| p.unary(Prim::Expm1, args[0]));
