//! `expand`: repetition along axes.

use super::support::{broadcasts_to, check_movable, eval_shape, strided, strides};
use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::{Shape, Type};

operator! {
    /// Broadcasts the operand to a shape.
    ///
    /// C1. The operand broadcasts to `shape`, and `shape` is the result: no size 1 meets a larger one of the operand.
    pub struct Expand("expand", 1..=1) {
        /// The shape of the result.
        shape: Shape,
    }
}

impl Operator for Expand {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_movable(x, "expand")?;
        broadcasts_to(cx, &x.shape, &self.shape, "expand C1")?;
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let to = eval_shape(&self.shape, bindings)?;
        let missing = to.len() - x.rank();
        let mut axes: Vec<_> = to.iter().map(|&n| (n, 0)).collect();
        for (i, (&n, &stride)) in x.sizes().iter().zip(&strides(x.sizes())).enumerate() {
            if n != 1 {
                axes[missing + i].1 = stride as isize;
                if n != to[missing + i] {
                    return Err(EvalError::new(format!("expand C1: {:?} does not broadcast to {to:?}", x.sizes())));
                }
            }
        }
        Ok(vec![strided(x, 0, &axes)])
    }

    fn traits(&self) -> Traits {
        Traits::MOVES
    }
}
