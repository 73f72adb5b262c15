//! `mul`: multiplication.

use super::Mapped::Scaled;
use crate::scalar::Prim;
use super::Traits;
use super::support::{elementwise, number};

operator! {
    /// `x * y`; integers wrap.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Mul("mul", 2..=2) {}
}

elementwise!(Mul, Traits::COMMUTATIVE, 0, number, |_op, p, args| p.binary(Prim::Mul, args[0], args[1]), ways: &[&[(0, Scaled)], &[(1, Scaled)]]);
