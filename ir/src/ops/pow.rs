//! `pow`: power.

use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `x ^ y`.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Pow("pow", 2..=2) {}
}

elementwise!(Pow, number, |p, args| p.binary(Prim::Pow, args[0], args[1]));
