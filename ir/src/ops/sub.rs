//! `sub`: subtraction.

use super::Mapped::{Affine, Mirrored, Scaled};
use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `x - y`; integers wrap.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Sub("sub", 2..=2) {}
}

elementwise!(Sub, number, |p, args| p.binary(Prim::Sub, args[0], args[1]), ways: &[&[(0, Affine), (1, Scaled)], &[(0, Scaled), (1, Mirrored)]]);
