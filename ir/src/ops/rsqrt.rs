//! `rsqrt`: reciprocal square root.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// `1 / sqrt(x)`.
    ///
    /// C1. The operand is a float.
    pub struct Rsqrt("rsqrt", 1..=1) {}
}

elementwise!(Rsqrt, float, |p, args| {
    let root = p.unary(Prim::Sqrt, args[0]);
    let one = p.constant(1.0, p.elem(root));
    p.binary(Prim::Div, one, root)
});
