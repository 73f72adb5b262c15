//! `acos`: arc cosine.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The arc cosine.
    ///
    /// C1. The operand is a float.
    pub struct Acos("acos", 1..=1) {}
}

elementwise!(Acos, float, |p, args| p.unary(Prim::Acos, args[0]));
