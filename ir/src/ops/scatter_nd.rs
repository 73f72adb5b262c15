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
    /// R1. At run time an index outside of `[-size, size)` is an error, unless slices are empty.
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
        let slices = if inner == 0 { vec![] } else { slices(indices, x.sizes(), 0)? };
        let places: Vec<usize> = slices.iter().flat_map(|s| s * inner..(s + 1) * inner).collect();
        Ok(vec![self.reduction.apply(x, updates, &places)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::GatherNd;
    use super::super::testing::*;
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    #[test]
    fn slices_are_replaced_or_added() {
        let x = Tensor::of(&[3, 2], vec![1i32, 2, 3, 4, 5, 6]);
        let rows = Tensor::of(&[2, 1], vec![2i64, -1]);
        let updates = Tensor::of(&[2, 2], vec![10i32, 20, 30, 40]);
        let of = |reduction, at: &Tensor, updates: &Tensor| {
            eval(ScatterNd { reduction }, &[x.clone(), at.clone(), updates.clone()]).to_i64s().unwrap()
        };
        assert_eq!(of(ScatterReduction::Replace, &rows, &updates), [1, 2, 3, 4, 30, 40]);
        assert_eq!(of(ScatterReduction::Add, &rows, &updates), [1, 2, 3, 4, 45, 66]);
        assert_eq!(of(ScatterReduction::Mul, &Tensor::of(&[2], vec![0i32, 1]), &Tensor::of(&[], vec![7i32])), [1, 14, 3, 4, 5, 6]);
    }

    #[test]
    fn indices_outside_are_refused() {
        let op = ScatterNd { reduction: ScatterReduction::Replace };
        let e = failure(op, &[tensor(Elem::F32, &[2, 3], 0), Tensor::of(&[2], vec![1i64, 3]), tensor(Elem::F32, &[], 0)]);
        assert_eq!(e, "index 3 is outside of [-3, 3) on axis 1");
    }

    #[test]
    fn constraints() {
        let refused = |indices, updates, c| {
            assert_refused(ScatterNd { reduction: ScatterReduction::Mul }, &[ty(Elem::F32, "2 3"), indices, updates], c)
        };
        let (f, i) = (|s| ty(Elem::F32, s), |s| ty(Elem::I64, s));
        refused(f("1 2"), f("1"), "scatter_nd C1");
        refused(i("1 n"), f("1"), "scatter_nd C1");
        refused(i("1 3"), f("1"), "scatter_nd C1");
        refused(i("1 2"), i("1"), "scatter_nd C1");
        refused(i("1 2"), f("1 1"), "scatter_nd C2");
        refused(i("4 1"), f("4 2"), "scatter_nd C2");
        let b = |s| ty(Elem::Bool, s);
        assert_refused(ScatterNd { reduction: ScatterReduction::Add }, &[b("2"), i("1 1"), b("1")], "scatter_nd C3");
    }

    proptest! {
        #[test]
        fn what_is_scattered_can_be_gathered(rows in Just([0i64, 1, 2, 3, 4]).prop_shuffle(), count in 0usize..6, width in 0usize..4, seed: u64) {
            let at = Tensor::of(&[count, 1], rows[..count].to_vec());
            for (elem, _) in Elem::ALL {
                let (x, updates) = (tensor(elem, &[5, width], seed), tensor(elem, &[count, width], !seed));
                let y = eval(ScatterNd { reduction: ScatterReduction::Replace }, &[x, at.clone(), updates.clone()]);
                prop_assert_eq!(&eval(GatherNd { batch: 0 }, &[y, at.clone()]), &updates);
            }
        }
    }
}
