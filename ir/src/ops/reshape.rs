//! `reshape`: another shape for the same elements.

use super::support::{check_movable, eval_shape};
use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::{Shape, Type};

operator! {
    /// Gives the elements another shape, their row-major order unchanged.
    ///
    /// C1. The numbers of elements are equal.
    pub struct Reshape("reshape", 1..=1) {
        /// The new shape.
        shape: Shape,
    }
}

impl Operator for Reshape {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_movable(x, "reshape")?;
        let [from, to] = [&x.shape, &self.shape].map(|s| s.elements().simplify(cx.symbols()));
        cx.equal(&from, &to, &format!("reshape C1: numbers of elements of {x} and {}", self.shape))?;
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let sizes = eval_shape(&self.shape, bindings)?;
        Ok(vec![inputs[0].reshaped(&sizes).map_err(|e| EvalError::new(format!("reshape C1: {e}")))?])
    }

    fn traits(&self) -> Traits {
        Traits::RESHAPES
    }
}
