//! `add`: addition.

use super::Mapped::{Affine, Scaled};
use crate::scalar::Prim;
use super::Traits;
use super::support::{elementwise, number};

operator! {
    /// `x + y`; integers wrap.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Add("add", 2..=2) {}
}

elementwise!(Add, Traits::COMMUTATIVE, 0, number, |_op, p, args| p.binary(Prim::Add, args[0], args[1]), ways: &[&[(0, Affine), (1, Scaled)], &[(0, Scaled), (1, Affine)]]);
