//! `cast`: conversion of the element type.

use super::support::{any, eval_elementwise, infer_elementwise};
use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::dim::Bindings;
use crate::scalar::{ScalarId, ScalarProgram};
use crate::tensor::Tensor;
use crate::types::{Elem, Type};

operator! {
    /// Conversion to another element type: integers wrap, floats to integers truncate and saturate
    /// (NaN gives 0), anything to `bool` is `x != 0`. Of a quantized operand it converts the stored
    /// integers: the result is plain.
    pub struct Cast("cast", 1..=1) {
        /// Element type of the result.
        to: Elem,
    }
}

impl Operator for Cast {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let stored = inputs[0].with_elem(inputs[0].elem);
        infer_elementwise(self, cx, &[stored], 0, any)
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        eval_elementwise(self, inputs)
    }

    fn scalar(&self, p: &mut ScalarProgram, args: &[ScalarId]) -> Option<ScalarId> {
        Some(p.cast(args[0], self.to))
    }

    fn traits(&self) -> Traits {
        Traits::ELEMENTWISE
    }
}
