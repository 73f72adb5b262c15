//! `or`: bitwise or.

use crate::scalar::Prim;
use super::Traits;
use super::support::{bits, elementwise};

operator! {
    /// Bitwise or; for `bool` the logical one.
    ///
    /// C1. The operands broadcast and have one type, an integer or `bool`.
    pub struct Or("or", 2..=2) {}
}

elementwise!(Or, Traits::COMMUTATIVE, 0, bits, |_op, p, args| p.binary(Prim::Or, args[0], args[1]));
