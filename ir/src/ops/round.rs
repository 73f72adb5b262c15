//! `round`: rounding to the nearest.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The nearest integer, halves to even.
    ///
    /// C1. The operand is a float.
    pub struct Round("round", 1..=1) {}
}

elementwise!(Round, float, |p, args| p.unary(Prim::RoundEven, args[0]));
