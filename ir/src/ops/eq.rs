//! `eq`: equality.

use crate::scalar::Prim;
use super::Traits;
use super::support::{any, elementwise};

operator! {
    /// `x == y`, a `bool`; false if one is NaN.
    ///
    /// C1. The operands broadcast and have one type, of any type.
    pub struct Eq("eq", 2..=2) {}
}

elementwise!(Eq, Traits::COMMUTATIVE, 0, any, |_op, p, args| p.binary(Prim::Eq, args[0], args[1]));
