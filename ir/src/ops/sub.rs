//! `sub`: subtraction.

use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `x - y`; integers wrap.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Sub("sub", 2..=2) {}
}

elementwise!(Sub, number, |p, args| p.binary(Prim::Sub, args[0], args[1]));
