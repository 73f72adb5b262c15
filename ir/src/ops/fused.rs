//! `fused`: operators that become one kernel.

use crate::attr::Body;
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Runs a nested graph. The body's inputs are the operands, its outputs the results; its symbols are those of the graph around it. The fusion pass makes these nodes; the scheduler turns each into one kernel.
    ///
    /// C1. Operands have the types of the body's inputs.
    pub struct Fused("fused", 0..=usize::MAX) {
        /// The nested graph.
        body: Body,
    }
}

impl Operator for Fused {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("fused: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("fused: evaluation is to be written"))
    }
}
