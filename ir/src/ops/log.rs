//! `log`: natural logarithm.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The natural logarithm.
    ///
    /// C1. The operand is a float.
    pub struct Log("log", 1..=1) {}
}

elementwise!(Log, float, |p, args| p.unary(Prim::Log, args[0]));
