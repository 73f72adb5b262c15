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

#[cfg(test)]
mod tests {
    use super::super::Slice;
    use super::super::pad::{Pad, PadMode};
    use super::super::testing::*;
    use super::*;
    use crate::dim::Dim;
    use crate::types::Elem;
    use proptest::prelude::*;

    #[test]
    fn columns_are_joined() {
        let x = Tensor::of(&[2, 1], vec![1i64, 2]);
        let y = Tensor::of(&[2, 2], vec![3i64, 4, 5, 6]);
        assert_eq!(eval(Concat { axis: 1 }, &[x, y]), Tensor::of(&[2, 3], vec![1i64, 3, 4, 2, 5, 6]));
    }

    #[test]
    fn symbolic_sizes_are_added() {
        let (y, checks) = infer(Concat { axis: 0 }, &[ty(Elem::F32, "n a"), ty(Elem::F32, "0 4"), ty(Elem::F32, "m 4")]);
        assert_eq!((y.as_str(), checks), ("f32[m+n, 4]", vec!["a = 4".into()]));
    }

    #[test]
    fn constraints() {
        let pair = |other| [ty(Elem::F32, "2 3"), other];
        for other in [ty(Elem::F16, "2 3"), ty(Elem::F32, "2"), ty(Elem::F32, "4 3")] {
            assert_refused(Concat { axis: 1 }, &pair(other), "concat C1");
        }
        assert_refused(Concat { axis: 2 }, &pair(ty(Elem::F32, "2 3")), "concat C2");
    }

    proptest! {
        #[test]
        fn joined_slices_are_the_whole(sizes in sizes(1..4), axis in 0usize..3, cut in 0usize..5, seed: u64) {
            let axis = axis % sizes.len();
            let (n, cut) = (sizes[axis], cut.min(sizes[axis]));
            for (elem, _) in Elem::ALL {
                let x = tensor(elem, &sizes, seed);
                let part = |start: usize, len: usize| eval(Slice::of_axis(&x.ty(), axis, Dim::from(start), Dim::from(len)), std::slice::from_ref(&x));
                prop_assert_eq!(&eval(Concat { axis }, &[part(0, cut), part(cut, n - cut)]), &x);
            }
        }

        #[test]
        fn what_pad_adds_slice_removes(sizes in sizes(0..4), before in 0i64..3, after in 0i64..3, seed: u64) {
            let x = tensor(Elem::U4, &sizes, seed);
            let all = |n: i64| vec![Dim::from(n); sizes.len()];
            let pad = Pad { mode: PadMode::Constant, before: all(before), after: all(after) };
            let padded = eval(pad, &[x.clone(), tensor(Elem::U4, &[], seed)]);
            let slice = Slice { starts: all(before), steps: vec![1; sizes.len()], lens: x.ty().shape };
            prop_assert_eq!(eval(slice, &[padded]), x);
        }
    }
}
