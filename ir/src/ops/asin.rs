//! `asin`: arc sine.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The arc sine.
    ///
    /// C1. The operand is a float.
    pub struct Asin("asin", 1..=1) {}
}

elementwise!(Asin, float, |p, args| p.unary(Prim::Asin, args[0]));
