//! `le`: less than or equal.

use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `x <= y`, a `bool`; false if one is NaN.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Le("le", 2..=2) {}
}

elementwise!(Le, number, |p, args| p.binary(Prim::Le, args[0], args[1]));
