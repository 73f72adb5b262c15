//! `div`: division.

use super::Mapped::Scaled;
use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `x / y`; integers truncate towards zero, and a zero divisor gives 0.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct Div("div", 2..=2) {}
}

elementwise!(Div, number, |p, args| p.binary(Prim::Div, args[0], args[1]), ways: &[&[(0, Scaled)]]);
