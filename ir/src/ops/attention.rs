//! `attention`: scaled dot-product attention.

use crate::attr::Float;
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// `softmax(scale * q kᵀ + bias) v` per batch and head (Vaswani et al. 2017), `q[b, h, n, d]`, `k[b, g, m, d]`, `v[b, g, m, e]`, result `[b, h, n, e]`; query head `i` uses key head `i * g / h`. With `causal`, query `i` sees keys up to `i + m - n`. A row that sees no key gives what softmax gives.
    ///
    /// C1. Operands are `q`, `k`, `v` of rank 4 and optionally `bias`, floats of one type.
    /// C2. `g` divides `h`; the other sizes agree.
    /// C3. `bias` broadcasts to `[b, h, n, m]`.
    pub struct Attention("attention", 3..=4) {
        /// Factor of the scores.
        scale: Float,
        /// Whether later keys are hidden.
        causal: bool,
    }
}

impl Operator for Attention {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("attention: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("attention: evaluation is to be written"))
    }
}
