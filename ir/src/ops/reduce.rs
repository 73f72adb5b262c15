//! `reduce`: reduction over axes.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use crate::word_attr;
use super::{EvalError, InferCx, InferError, Operator};

word_attr! {
    /// What a reduction computes.
    pub enum ReduceKind {
        /// The sum.
        Sum = "sum",
        /// The arithmetic mean.
        Mean = "mean",
        /// The largest; a NaN wins.
        Max = "max",
        /// The smallest; a NaN wins.
        Min = "min",
        /// The product.
        Prod = "prod",
    }
}

operator! {
    /// Reduces axes to size 1 or removes them. A reduction over no elements gives 0 (sum), 1 (prod), the lowest or highest value (max, min), NaN (mean).
    ///
    /// C1. The operand is a number; for `mean` a float; for `max` and `min` also `bool` (any, all).
    /// C2. Axes are below the rank, ascending, distinct.
    pub struct Reduce("reduce", 1..=1) {
        /// What is computed.
        kind: ReduceKind,
        /// The axes, ascending, without repetition.
        axes: Vec<usize>,
        /// Whether reduced axes stay, with size 1.
        keep: bool,
    }
}

impl Operator for Reduce {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("reduce: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("reduce: evaluation is to be written"))
    }
}
