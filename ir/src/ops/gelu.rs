//! `gelu`: Gaussian error linear unit.

use super::support::{elementwise, float};
use super::Traits;
use crate::scalar::Prim;

operator! {
    /// Gaussian error linear unit (Hendrycks and Gimpel 2016): `x/2 * (1 + erf(x/√2))`, or with `tanh`
    /// its approximation `x/2 * (1 + tanh(√(2/π) * (x + 0.044715 x³)))`.
    ///
    /// C1. The operand is a float.
    pub struct Gelu("gelu", 1..=1) {
        /// Whether to use the approximation by tanh.
        tanh: bool,
    }
}

elementwise!(Gelu, Traits::ELEMENTWISE, 0, float, |op, p, args| {
    let x = args[0];
    let inner = if op.tanh {
        let square = p.binary(Prim::Mul, x, x);
        let cubic = p.with(Prim::Mul, square, 0.044715);
        let factor = p.with(Prim::Add, cubic, 1.0);
        let sum = p.binary(Prim::Mul, x, factor);
        let scaled = p.with(Prim::Mul, sum, (2.0 / std::f64::consts::PI).sqrt());
        p.unary(Prim::Tanh, scaled)
    } else {
        let scaled = p.with(Prim::Mul, x, std::f64::consts::FRAC_1_SQRT_2);
        p.unary(Prim::Erf, scaled)
    };
    let one_more = p.with(Prim::Add, inner, 1.0);
    let half = p.with(Prim::Mul, x, 0.5);
    p.binary(Prim::Mul, half, one_more)
});
