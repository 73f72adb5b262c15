//! `pad`: borders around a tensor.

use crate::dim::Bindings;
use crate::dim::Dim;
use crate::tensor::Tensor;
use crate::types::Type;
use crate::word_attr;
use super::{EvalError, InferCx, InferError, Operator};

word_attr! {
    /// What the elements of a border are.
    pub enum PadMode {
        /// The value of the second operand.
        Constant = "constant",
        /// The tensor mirrored at its first and last element, which are not repeated.
        Reflect = "reflect",
        /// The nearest element.
        Edge = "edge",
        /// The tensor continued periodically.
        Wrap = "wrap",
    }
}

operator! {
    /// Adds elements before and behind every axis. Negative numbers are not allowed: importers slice.
    ///
    /// C1. With `constant` the second operand is a scalar of the first one's type; without it there is none.
    /// C2. Every list has one entry per axis, not negative; for `reflect` below the size, for `edge` and `wrap` the axis is not empty.
    pub struct Pad("pad", 1..=2) {
        /// What the new elements are.
        mode: PadMode,
        /// How many come before, per axis.
        before: Vec<Dim>,
        /// How many come behind, per axis.
        after: Vec<Dim>,
    }
}

impl Operator for Pad {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("pad: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("pad: evaluation is to be written"))
    }
}
