//! `abs`: absolute value.

use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `|x|`; integers wrap.
    ///
    /// C1. The operand is a number.
    pub struct Abs("abs", 1..=1) {}
}

elementwise!(Abs, number, |p, args| p.unary(Prim::Abs, args[0]));
