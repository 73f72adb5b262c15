//! `sigmoid`: logistic function.

use crate::scalar::Prim;
use super::support::{elementwise, float};

operator! {
    /// `1 / (1 + e^-x)`.
    ///
    /// C1. The operand is a float.
    pub struct Sigmoid("sigmoid", 1..=1) {}
}

elementwise!(Sigmoid, float, |p, args| {
    let minus = p.unary(Prim::Neg, args[0]);
    let e = p.unary(Prim::Exp, minus);
    let d = p.with(Prim::Add, e, 1.0);
    let one = p.constant(1.0, p.elem(d));
    p.binary(Prim::Div, one, d)
});
