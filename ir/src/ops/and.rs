//! `and`: bitwise and.

use crate::scalar::Prim;
use super::Traits;
use super::support::{bits, elementwise};

operator! {
    /// Bitwise and; for `bool` the logical one.
    ///
    /// C1. The operands broadcast and have one type, an integer or `bool`.
    pub struct And("and", 2..=2) {}
}

elementwise!(And, Traits::COMMUTATIVE, 0, bits, |_op, p, args| p.binary(Prim::And, args[0], args[1]));
