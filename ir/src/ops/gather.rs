//! `gather`: selection along an axis.

use super::support::{check_indices, check_movable, index_values, pick, resolve_index};
use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;

operator! {
    /// `y[a…, i…, b…] = x[a…, indices[i…], b…]`; negative indices count from the end.
    ///
    /// C1. Operands are `x` and `indices` (`i32` or `i64`).
    /// C2. The axis is below the rank of `x`.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct Gather("gather", 2..=2) {
        /// The axis of `x` that is indexed.
        axis: usize,
    }
}

impl Operator for Gather {
    fn infer(&self, _: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let (x, indices) = (&inputs[0], &inputs[1]);
        check_movable(x, "gather")?;
        check_indices(indices, "gather C1")?;
        require!(self.axis < x.rank(), "gather C2: axis {} of {x}", self.axis);
        let (before, behind) = (&x.shape.0[..self.axis], &x.shape.0[self.axis + 1..]);
        Ok(vec![x.with_shape(before.iter().chain(&indices.shape.0).chain(behind).cloned().collect())])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices) = (&inputs[0], &inputs[1]);
        let n = x.sizes()[self.axis];
        let places: Vec<usize> = index_values(indices).into_iter().map(|i| resolve_index(i, n, self.axis)).collect::<Result<_, _>>()?;
        let (before, behind) = (&x.sizes()[..self.axis], &x.sizes()[self.axis + 1..]);
        let inner: usize = behind.iter().product();
        let y = pick(&[x], &[before, indices.sizes(), behind].concat(), |i| {
            let (outer, place, b) = (i / inner / places.len(), places[i / inner % places.len()], i % inner);
            (0, (outer * n + place) * inner + b)
        });
        Ok(vec![y])
    }

    fn traits(&self) -> Traits {
        Traits::MOVES
    }
}
