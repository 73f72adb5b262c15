//! `silu`: sigmoid linear unit.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// `x / (1 + e^-x)`, also called swish.
    ///
    /// C1. The operand is a float.
    pub struct Silu("silu", 1..=1) {}
}

elementwise!(Silu, float, |p, args| {
    let minus = p.unary(Prim::Neg, args[0]);
    let e = p.unary(Prim::Exp, minus);
    let d = p.with(Prim::Add, e, 1.0);
    p.binary(Prim::Div, args[0], d)
});
