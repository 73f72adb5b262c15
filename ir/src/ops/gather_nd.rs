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
    /// R1. At run time an index outside of `[-size, size)` is an error, unless slices are empty.
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
        let inner: usize = slice.iter().product();
        let slices = if inner == 0 { vec![] } else { slices(indices, x.sizes(), self.batch)? };
        Ok(vec![pick(&[x], &[outer, slice].concat(), |i| (0, slices[i / inner] * inner + i % inner))])
    }

    fn traits(&self) -> Traits {
        Traits::MOVES
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::types::Elem;

    #[test]
    fn tuples_name_elements_and_slices() {
        let x = Tensor::of(&[2, 2], vec![1u8, 2, 3, 4]);
        let pairs = Tensor::of(&[3, 2], vec![0i64, 0, 1, 1, -1, 0]);
        assert_eq!(eval(GatherNd { batch: 0 }, &[x.clone(), pairs]), Tensor::of(&[3], vec![1u8, 4, 3]));
        let rows = Tensor::of(&[2, 1], vec![1i32, 0]);
        assert_eq!(eval(GatherNd { batch: 0 }, &[x.clone(), rows.clone()]), Tensor::of(&[2, 2], vec![3u8, 4, 1, 2]));
        assert_eq!(eval(GatherNd { batch: 1 }, &[x.clone(), rows]), Tensor::of(&[2], vec![2u8, 3]));
        assert_eq!(eval(GatherNd { batch: 0 }, &[x, tensor(Elem::I64, &[0, 2], 0)]).sizes(), [0]);
    }

    #[test]
    fn indices_outside_are_refused() {
        let x = tensor(Elem::F32, &[2, 3], 0);
        let e = failure(GatherNd { batch: 1 }, &[x, Tensor::of(&[2, 1], vec![0i64, -4])]);
        assert_eq!(e, "index -4 is outside of [-3, 3) on axis 1");
    }

    #[test]
    fn constraints() {
        let refused = |batch, indices, c| assert_refused(GatherNd { batch }, &[ty(Elem::F32, "2 3"), indices], c);
        refused(0, ty(Elem::F32, "1 2"), "gather_nd C1");
        refused(0, ty(Elem::I64, "1 n"), "gather_nd C1");
        refused(0, ty(Elem::I64, "1 3"), "gather_nd C1");
        refused(1, ty(Elem::I64, "2 2"), "gather_nd C1");
        refused(0, ty(Elem::I64, ""), "gather_nd C2");
        refused(1, ty(Elem::I64, "4 1"), "gather_nd C2");
        refused(2, ty(Elem::I64, "2 0"), "gather_nd C2");
        let (y, checks) = infer(GatherNd { batch: 1 }, &[ty(Elem::F32, "b s h"), ty(Elem::I64, "2 n 1")]);
        assert_eq!((y.as_str(), checks), ("f32[2, n, h]", vec!["b = 2".into()]));
    }
}
