//! `erf`: error function.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// The error function.
    ///
    /// C1. The operand is a float.
    pub struct Erf("erf", 1..=1) {}
}

elementwise!(Erf, float, |p, args| p.unary(Prim::Erf, args[0]));
