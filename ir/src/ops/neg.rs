//! `neg`: negation.

use super::Mapped::Mirrored;
use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `-x`; integers wrap.
    ///
    /// C1. The operand is a number.
    pub struct Neg("neg", 1..=1) {}
}

elementwise!(Neg, number, |p, args| p.unary(Prim::Neg, args[0]), ways: &[&[(0, Mirrored)]]);
