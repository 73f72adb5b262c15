//! `concat`: tensors one after the other.

use super::support::{check_movable, pick};
use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;

operator! {
    /// Joins tensors along an axis.
    ///
    /// C1. Operands have one type and equal shapes but for `axis`.
    /// C2. The axis is below the rank.
    pub struct Concat("concat", 1..=usize::MAX) {
        /// The axis.
        axis: usize,
    }
}

impl Operator for Concat {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let first = &inputs[0];
        check_movable(first, "concat")?;
        require!(self.axis < first.rank(), "concat C2: axis {} of {first}", self.axis);
        let mut shape = first.shape.clone();
        for t in &inputs[1..] {
            require!((t.elem, t.quant) == (first.elem, first.quant), "concat C1: {first} and {t} have different elements");
            require!(t.rank() == first.rank(), "concat C1: {first} and {t} have different numbers of axes");
            for (axis, size) in shape.0.iter_mut().enumerate() {
                *size = if axis == self.axis {
                    size.clone() + t.shape[axis].clone()
                } else {
                    cx.equal(size, &t.shape[axis], &format!("concat C1: axis {axis} of {first} and {t}"))?
                };
            }
        }
        Ok(vec![first.with_shape(shape)])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let mut sizes = inputs[0].sizes().to_vec();
        sizes[self.axis] = inputs.iter().map(|t| t.sizes()[self.axis]).sum();
        // Index along the axis of the result -> operand, and index along its axis.
        let places: Vec<(usize, usize)> =
            inputs.iter().enumerate().flat_map(|(t, x)| (0..x.sizes()[self.axis]).map(move |i| (t, i))).collect();
        let inner: usize = sizes[self.axis + 1..].iter().product();
        let from: Vec<&Tensor> = inputs.iter().collect();
        let y = pick(&from, &sizes, |i| {
            let (outer, behind) = (i / inner / places.len(), i % inner);
            let (t, at) = places[i / inner % places.len()];
            (t, (outer * from[t].sizes()[self.axis] + at) * inner + behind)
        });
        Ok(vec![y])
    }

    fn traits(&self) -> Traits {
        Traits { moved: usize::MAX, ..Traits::MOVES }
    }
}
