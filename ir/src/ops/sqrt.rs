//! `sqrt`: square root.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The square root.
    ///
    /// C1. The operand is a float.
    pub struct Sqrt("sqrt", 1..=1) {}
}

elementwise!(Sqrt, float, |p, args| p.unary(Prim::Sqrt, args[0]));
