//! `arg_reduce`: position of the largest or smallest element.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// The position along an axis of the largest (or smallest) element, an `i64`. Lowers to `reduce`, `eq`, `iota`, `select`, `reduce`.
    ///
    /// C1. The operand is a number.
    /// C2. The axis is below the rank.
    pub struct ArgReduce("arg_reduce", 1..=1) {
        /// Whether to look for the largest one.
        largest: bool,
        /// The axis.
        axis: usize,
        /// Whether the axis stays, with size 1.
        keep: bool,
        /// Whether the last of equals is meant, not the first.
        last: bool,
    }
}

impl Operator for ArgReduce {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("arg_reduce: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("arg_reduce: evaluation is to be written"))
    }
}
