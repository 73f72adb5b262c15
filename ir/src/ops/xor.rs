//! `xor`: bitwise exclusive or.

use crate::scalar::Prim;
use super::Traits;
use super::support::{bits, elementwise};

operator! {
    /// Bitwise exclusive or; for `bool` the logical one.
    ///
    /// C1. The operands broadcast and have one type, an integer or `bool`.
    pub struct Xor("xor", 2..=2) {}
}

elementwise!(Xor, Traits::COMMUTATIVE, 0, bits, |_op, p, args| p.binary(Prim::Xor, args[0], args[1]));
