//! `rem_floor`: remainder with the sign of the divisor.

use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `x - y * floor(x / y)`; an integer divisor of zero gives 0.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct RemFloor("rem_floor", 2..=2) {}
}

elementwise!(RemFloor, number, |p, args| p.binary(Prim::RemFloor, args[0], args[1]));
