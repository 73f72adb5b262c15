//! `gather_elements`: selection of single elements.

use super::support::{at_most, check_indices, check_movable, index_values, pick, ravel, resolve_index, unravel};
use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;

operator! {
    /// `y[…, i, …] = x[…, indices[…, i, …], …]` along an axis.
    ///
    /// C1. Operands are `x` and `indices` (`i32` or `i64`) of equal rank; every other size of `indices` is at most that of `x`.
    /// C2. The axis is below the rank.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct GatherElements("gather_elements", 2..=2) {
        /// The axis that is indexed.
        axis: usize,
    }
}

/// For every element of `indices` the position in a tensor of `sizes` that it names: its own index,
/// with the value of the element on `axis`.
pub(super) fn places(indices: &Tensor, sizes: &[usize], axis: usize) -> Result<Vec<usize>, EvalError> {
    let values = index_values(indices).into_iter().enumerate();
    values
        .map(|(i, value)| {
            let mut index = unravel(i, indices.sizes());
            index[axis] = resolve_index(value, sizes[axis], axis)?;
            match index.iter().zip(sizes).position(|(i, n)| i >= n) {
                Some(a) => Err(EvalError::new(format!("axis {a} of the indices {:?} is larger than that of {sizes:?}", indices.sizes()))),
                None => Ok(ravel(&index, sizes)),
            }
        })
        .collect()
}

impl Operator for GatherElements {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let (x, indices) = (&inputs[0], &inputs[1]);
        check_movable(x, "gather_elements")?;
        check_indices(indices, "gather_elements C1")?;
        require!(x.rank() == indices.rank(), "gather_elements C1: {x} and {indices} have different numbers of axes");
        require!(self.axis < x.rank(), "gather_elements C2: axis {} of {x}", self.axis);
        for axis in (0..x.rank()).filter(|&a| a != self.axis) {
            let what = format!("gather_elements C1: axis {axis} of the indices {indices} and of {x}");
            at_most(cx, &indices.shape[axis], &x.shape[axis], &what)?;
        }
        Ok(vec![x.with_shape(indices.shape.clone())])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices) = (&inputs[0], &inputs[1]);
        let places = places(indices, x.sizes(), self.axis)?;
        Ok(vec![pick(&[x], indices.sizes(), |i| (0, places[i]))])
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
    fn single_elements_are_picked() {
        let x = Tensor::of(&[2, 3], vec![1u8, 2, 3, 4, 5, 6]);
        let at = Tensor::of(&[2, 2], vec![2i64, -3, 1, 1]);
        assert_eq!(eval(GatherElements { axis: 1 }, &[x.clone(), at]), Tensor::of(&[2, 2], vec![3u8, 1, 5, 5]));
        let at = Tensor::of(&[1, 3], vec![1i32, 0, -1]);
        assert_eq!(eval(GatherElements { axis: 0 }, &[x, at]), Tensor::of(&[1, 3], vec![4u8, 2, 6]));
    }

    #[test]
    fn indices_outside_are_refused() {
        let e = failure(GatherElements { axis: 0 }, &[tensor(Elem::F32, &[2], 0), Tensor::of(&[1], vec![2i64])]);
        assert_eq!(e, "index 2 is outside of [-2, 2) on axis 0");
    }

    #[test]
    fn constraints() {
        let refused = |axis, x, indices, c| assert_refused(GatherElements { axis }, &[ty(Elem::F32, x), indices], c);
        refused(0, "2 3", ty(Elem::F32, "2 3"), "gather_elements C1");
        refused(0, "2 3", ty(Elem::I64, "2"), "gather_elements C1");
        refused(0, "2 3", ty(Elem::I64, "2 4"), "gather_elements C1");
        refused(2, "2 3", ty(Elem::I64, "2 3"), "gather_elements C2");
        let (y, checks) = infer(GatherElements { axis: 0 }, &[ty(Elem::F32, "n m"), ty(Elem::I64, "9 5")]);
        assert_eq!((y.as_str(), checks), ("f32[9, 5]", vec!["max(5, m) = m".into()]));
    }
}
