//! `scatter_elements`: assignment of single elements.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use crate::word_attr;
use super::{EvalError, InferCx, InferError, Operator};

word_attr! {
    /// How an update meets the element that is there.
    pub enum ScatterReduction {
        /// It replaces it.
        Replace = "replace",
        /// It is added.
        Add = "add",
        /// It is multiplied.
        Mul = "mul",
        /// The larger one stays.
        Max = "max",
        /// The smaller one stays.
        Min = "min",
    }
}

operator! {
    /// `x` with `y[…, indices[…, i, …], …] = updates[…, i, …]` along an axis, in row-major order of the updates.
    ///
    /// C1. Operands are `x`, `indices` (`i32` or `i64`) and `updates` of the type of `x`; `indices` and `updates` have equal shapes of the rank of `x`.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct ScatterElements("scatter_elements", 3..=3) {
        /// The axis that is indexed.
        axis: usize,
        /// How an update meets what is there.
        reduction: ScatterReduction,
    }
}

impl Operator for ScatterElements {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("scatter_elements: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("scatter_elements: evaluation is to be written"))
    }
}
