//! `log1p`: logarithm of one plus x.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// `log(1 + x)` without cancellation near 0.
    ///
    /// C1. The operand is a float.
    pub struct Log1p("log1p", 1..=1) {}
}

elementwise!(Log1p, float, |p, args| p.unary(Prim::Log1p, args[0]));
