//! `matmul`: matrix product.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Matrix product of the last two axes, the axes before broadcast, as NumPy has it. Ranks are at least 2: importers add axes to vectors.
    ///
    /// C1. Operands are numbers of one type and of rank 2 or more.
    /// C2. The inner sizes are equal; the axes before them broadcast.
    pub struct Matmul("matmul", 2..=2) {
    }
}

impl Operator for Matmul {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("matmul: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("matmul: evaluation is to be written"))
    }
}
