//! `cos`: cosine.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The cosine.
    ///
    /// C1. The operand is a float.
    pub struct Cos("cos", 1..=1) {}
}

elementwise!(Cos, float, |p, args| p.unary(Prim::Cos, args[0]));
