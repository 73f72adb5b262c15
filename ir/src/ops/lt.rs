//! `lt`: less than.

use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `x < y`, a `bool`; false if one is NaN.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Lt("lt", 2..=2) {}
}

elementwise!(Lt, number, |p, args| p.binary(Prim::Lt, args[0], args[1]));
