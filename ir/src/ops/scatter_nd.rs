//! `scatter_nd`: assignment by index tuples.

use super::gather_nd::{slices, tuple_length};
use super::scatter_elements::ScatterReduction;
use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::{Shape, Type};

operator! {
    /// `x` with slices replaced: the last axis of `indices` holds tuples that index the leading axes of `x`; `updates` holds the slices, in row-major order.
    ///
    /// C1. Operands are `x`, `indices` (`i32` or `i64`) with a known last size, at most the rank of `x`, and `updates` of the type of `x`.
    /// C2. `updates` has the shape of `indices` without its last axis, then that of the slices.
    /// C3. Quantized elements can only be replaced; `add` and `mul` take numbers.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct ScatterNd("scatter_nd", 3..=3) {
        /// How an update meets what is there.
        reduction: ScatterReduction,
    }
}

impl Operator for ScatterNd {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let (x, indices, updates) = (&inputs[0], &inputs[1], &inputs[2]);
        self.reduction.check(x, updates, "scatter_nd")?;
        let length = tuple_length(indices, x.rank(), "scatter_nd C1")?;
        let tuples = &indices.shape.0[..indices.rank() - 1];
        let expected: Shape = tuples.iter().chain(&x.shape.0[length..]).cloned().collect();
        require!(updates.rank() == expected.rank(), "scatter_nd C2: the updates {updates} must have the shape {expected}");
        for axis in 0..expected.rank() {
            let what = format!("scatter_nd C2: axis {axis} of the updates {updates} and of {expected}");
            cx.equal(&updates.shape[axis], &expected[axis], &what)?;
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices, updates) = (&inputs[0], &inputs[1], &inputs[2]);
        let length = *indices.sizes().last().expect("tuples are on an axis");
        let inner: usize = x.sizes()[length..].iter().product();
        let slices = slices(indices, x.sizes(), 0)?;
        let places: Vec<usize> = slices.iter().flat_map(|s| s * inner..(s + 1) * inner).collect();
        Ok(vec![self.reduction.apply(x, updates, &places)])
    }
}
