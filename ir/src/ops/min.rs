//! `min`: minimum.

use super::Mapped::Affine;
use crate::scalar::Prim;
use super::Traits;
use super::support::{elementwise, number};

operator! {
    /// The smaller one; a NaN wins.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Min("min", 2..=2) {}
}

elementwise!(Min, Traits::COMMUTATIVE, 0, number, |_op, p, args| p.binary(Prim::Min, args[0], args[1]), ways: &[&[(0, Affine), (1, Affine)]]);
