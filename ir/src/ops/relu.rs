//! `relu`: rectifier.

use super::Mapped::Scaled;
use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `max(x, 0)`.
    ///
    /// C1. The operand is a number.
    pub struct Relu("relu", 1..=1) {}
}

elementwise!(Relu, number, |p, args| p.with(Prim::Max, args[0], 0.0), ways: &[&[(0, Scaled)]]);
