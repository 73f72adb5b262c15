//! `softplus`: smooth rectifier.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// `log(1 + e^x)`, computed as `max(x, 0) + log1p(e^-|x|)`.
    ///
    /// C1. The operand is a float.
    pub struct Softplus("softplus", 1..=1) {}
}

elementwise!(Softplus, float, |p, args| {
    let size = p.unary(Prim::Abs, args[0]);
    let minus = p.unary(Prim::Neg, size);
    let e = p.unary(Prim::Exp, minus);
    let rest = p.unary(Prim::Log1p, e);
    let whole = p.with(Prim::Max, args[0], 0.0);
    p.binary(Prim::Add, whole, rest)
});
