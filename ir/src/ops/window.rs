//! `window`: overlapping windows as axes.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// A view of windows: for the last `n` axes of the operand (`n` the length of the lists) the result has the `n` axes of window positions and behind them the `n` axes within a window: `y[…, o, k] = x[…, o * stride + k * dilation]`.
    ///
    /// C1. Lists have equal lengths, at most the rank; entries are positive.
    /// C2. Where sizes are known, at least one window fits, unless the axis is empty.
    pub struct Window("window", 1..=1) {
        /// Window size per axis.
        kernel: Vec<i64>,
        /// Distance of windows per axis.
        strides: Vec<i64>,
        /// Distance of taps per axis.
        dilations: Vec<i64>,
    }
}

impl Operator for Window {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("window: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("window: evaluation is to be written"))
    }
}
