//! `fused`: operators that become one kernel.

use super::{EvalError, InferCx, InferError, Operator};
use crate::attr::Body;
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;

operator! {
    /// Runs a nested graph. The body's inputs are the operands, its outputs the results; its symbols are those of the graph around it. The fusion pass makes these nodes; the scheduler turns each into one kernel.
    ///
    /// C1. Operands have the types of the body's inputs.
    /// C2. What the body demands of dimensions holds around it.
    pub struct Fused("fused", 0..=usize::MAX) {
        /// The nested graph.
        body: Body,
    }
}

impl Operator for Fused {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let body = &self.body.0;
        let parameters = body.inputs();
        require!(inputs.len() == parameters.len(), "fused C1: {} operands for {} inputs of the body", inputs.len(), parameters.len());
        for (i, (given, &parameter)) in inputs.iter().zip(parameters).enumerate() {
            let wanted = body.ty(parameter);
            let alike = (given.elem, given.quant, given.rank()) == (wanted.elem, wanted.quant, wanted.rank());
            require!(alike, "fused C1: operand {i} is {given}, but the body takes {wanted}");
            for axis in 0..given.rank() {
                let what = format!("fused C1: axis {axis} of operand {i}, {given}, and of {wanted}");
                cx.equal(&given.shape[axis], &wanted.shape[axis], &what)?;
            }
        }
        for c in &body.checks {
            cx.equal(&c.left, &c.right, "fused C2: dimensions that the body takes to be equal")?;
        }
        Ok(body.outputs().iter().map(|o| body.ty(o.value).clone()).collect())
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        self.body.0.evaluate(inputs, bindings)
    }
}
