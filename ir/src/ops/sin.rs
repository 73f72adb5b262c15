//! `sin`: sine.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The sine.
    ///
    /// C1. The operand is a float.
    pub struct Sin("sin", 1..=1) {}
}

elementwise!(Sin, float, |p, args| p.unary(Prim::Sin, args[0]));
