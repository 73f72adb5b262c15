//! `not`: complement.

use crate::scalar::Prim;
use super::support::{bits, elementwise};

operator! {
    /// The bitwise complement; for `bool` the negation.
    ///
    /// C1. The operand is an integer or `bool`.
    pub struct Not("not", 1..=1) {}
}

elementwise!(Not, bits, |p, args| p.unary(Prim::Not, args[0]));
