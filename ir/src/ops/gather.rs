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
    /// R1. At run time an index outside of `[-size, size)` is an error, unless the other axes are empty.
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
        let (before, behind) = (&x.sizes()[..self.axis], &x.sizes()[self.axis + 1..]);
        let inner: usize = behind.iter().product();
        let used = if before.iter().product::<usize>() * inner == 0 { vec![] } else { index_values(indices) };
        let places: Vec<usize> = used.into_iter().map(|i| resolve_index(i, n, self.axis)).collect::<Result<_, _>>()?;
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

#[cfg(test)]
mod tests {
    use super::super::Iota;
    use super::super::testing::*;
    use super::*;
    use crate::types::{Elem, Shape};
    use proptest::prelude::*;

    #[test]
    fn columns_are_picked() {
        let x = Tensor::of(&[2, 3], vec![1u8, 2, 3, 4, 5, 6]);
        let at = Tensor::of(&[2, 1], vec![-1i32, 0]);
        assert_eq!(eval(Gather { axis: 1 }, &[x, at]), Tensor::of(&[2, 2, 1], vec![3u8, 1, 6, 4]));
        let none = eval(Gather { axis: 0 }, &[tensor(Elem::F32, &[0, 3], 0), tensor(Elem::I64, &[0], 0)]);
        assert_eq!(none.sizes(), [0, 3]);
    }

    #[test]
    fn indices_outside_are_refused() {
        let x = tensor(Elem::F32, &[2, 3], 0);
        for (index, size) in [(3, 3), (-4, 3), (i64::MIN, 3), (i64::MAX, 3), (0, 0)] {
            let e = failure(Gather { axis: 1 }, &[tensor(Elem::F32, &[2, size], 0), Tensor::of(&[], vec![index])]);
            assert_eq!(e, format!("index {index} is outside of [-{size}, {size}) on axis 1"));
        }
        assert_eq!(eval(Gather { axis: 1 }, &[x, Tensor::of(&[], vec![-3i64])]).sizes(), [2]);
    }

    #[test]
    fn constraints() {
        let x = ty(Elem::F32, "n 3");
        assert_refused(Gather { axis: 0 }, &[x.clone(), ty(Elem::F32, "2")], "gather C1");
        assert_refused(Gather { axis: 0 }, &[x.clone(), ty(Elem::I8, "2")], "gather C1");
        assert_refused(Gather { axis: 2 }, &[x.clone(), ty(Elem::I64, "2")], "gather C2");
        assert_eq!(infer(Gather { axis: 0 }, &[x, ty(Elem::I64, "b s")]), ("f32[b, s, 3]".into(), vec![]));
    }

    proptest! {
        #[test]
        fn all_in_order_is_the_identity(sizes in sizes(1..4), axis in 0usize..3, seed: u64) {
            let axis = axis % sizes.len();
            let all = eval(Iota { elem: Elem::I32, shape: Shape::fixed(&[sizes[axis] as i64]), axis: 0 }, &[]);
            for (elem, _) in Elem::ALL {
                let x = tensor(elem, &sizes, seed);
                prop_assert_eq!(&eval(Gather { axis }, &[x.clone(), all.clone()]), &x);
            }
        }
    }
}
