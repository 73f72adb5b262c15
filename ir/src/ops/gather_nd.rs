//! `gather_nd`: selection by index tuples.

use super::support::{check_indices, check_movable, index_values, pick, resolve_index};
use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;

operator! {
    /// The last axis of `indices` holds tuples that index the axes of `x` behind the first `batch`.
    ///
    /// C1. Operands are `x` and `indices` (`i32` or `i64`) with a known last size, at most the rank of `x` minus `batch`.
    /// C2. The first `batch` sizes are equal.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct GatherNd("gather_nd", 2..=2) {
        /// How many leading axes belong together.
        batch: usize,
    }
}

/// The length of the tuples on the last axis of `indices`: a number that is at most `axes`.
pub(super) fn tuple_length(indices: &Type, axes: usize, constraint: &str) -> Result<usize, InferError> {
    check_indices(indices, constraint)?;
    let length = indices.shape.0.last().and_then(|d| d.as_const()).and_then(|n| usize::try_from(n).ok());
    let Some(length) = length else {
        return Err(InferError::new(format!("{constraint}: the last size of the indices {indices} is not a number")));
    };
    require!(length <= axes, "{constraint}: tuples of {length} indices for {axes} axes");
    Ok(length)
}

/// For every tuple of `indices` the number of the slice of a tensor of `sizes` that it names. The
/// first `batch` axes of both belong together.
pub(super) fn slices(indices: &Tensor, sizes: &[usize], batch: usize) -> Result<Vec<usize>, EvalError> {
    let (&length, outer) = indices.sizes().split_last().expect("tuples are on an axis");
    let values = index_values(indices);
    let per_batch: usize = outer[batch..].iter().product();
    (0..outer.iter().product())
        .map(|t| {
            let tuple = values[t * length..(t + 1) * length].iter().zip(&sizes[batch..]).enumerate();
            tuple.into_iter().try_fold(t / per_batch, |at, (i, (&index, &n))| Ok(at * n + resolve_index(index, n, batch + i)?))
        })
        .collect()
}

impl Operator for GatherNd {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let (x, indices) = (&inputs[0], &inputs[1]);
        check_movable(x, "gather_nd")?;
        let ok = self.batch <= x.rank() && self.batch < indices.rank();
        require!(ok, "gather_nd C2: {} batch axes of {x} and of the tuples of {indices}", self.batch);
        let length = tuple_length(indices, x.rank() - self.batch, "gather_nd C1")?;
        let mut sizes = indices.shape.0[..indices.rank() - 1].to_vec();
        for (axis, size) in sizes[..self.batch].iter_mut().enumerate() {
            *size = cx.equal(&x.shape[axis], size, &format!("gather_nd C2: batch axis {axis} of {x} and {indices}"))?;
        }
        sizes.extend_from_slice(&x.shape.0[self.batch + length..]);
        Ok(vec![x.with_shape(sizes.into_iter().collect())])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices) = (&inputs[0], &inputs[1]);
        let (length, outer) = indices.sizes().split_last().expect("tuples are on an axis");
        let slice = &x.sizes()[self.batch + length..];
        let slices = slices(indices, x.sizes(), self.batch)?;
        let inner: usize = slice.iter().product();
        Ok(vec![pick(&[x], &[outer, slice].concat(), |i| (0, slices[i / inner] * inner + i % inner))])
    }

    fn traits(&self) -> Traits {
        Traits::MOVES
    }
}
