//! `rem_trunc`: remainder with the sign of the dividend.

use crate::scalar::Prim;
use super::support::{elementwise, number};

operator! {
    /// `x - y * trunc(x / y)`; an integer divisor of zero gives 0.
    ///
    /// C1. The operands broadcast and have one type, a number.
    pub struct RemTrunc("rem_trunc", 2..=2) {}
}

elementwise!(RemTrunc, number, |p, args| p.binary(Prim::RemTrunc, args[0], args[1]));
