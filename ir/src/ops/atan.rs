//! `atan`: arc tangent.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The arc tangent.
    ///
    /// C1. The operand is a float.
    pub struct Atan("atan", 1..=1) {}
}

elementwise!(Atan, float, |p, args| p.unary(Prim::Atan, args[0]));
