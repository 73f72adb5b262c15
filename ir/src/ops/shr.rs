//! `shr`: logical right shift.

use crate::scalar::Prim;
use super::support::{elementwise, int};

operator! {
    /// `x >> y`; shifting by the width or more gives 0.
    ///
    /// C1. The operands broadcast and have one type, an integer.
    pub struct Shr("shr", 2..=2) {}
}

elementwise!(Shr, int, |p, args| p.binary(Prim::Shr, args[0], args[1]));
