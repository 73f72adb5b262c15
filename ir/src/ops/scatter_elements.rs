//! `scatter_elements`: assignment of single elements.

use super::gather_elements::places;
use super::support::{at_most, check_indices, check_movable, pick};
use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::Bindings;
use crate::scalar::Prim;
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};
use crate::word_attr;

word_attr! {
    /// How an update meets the element that is there.
    pub enum ScatterReduction {
        /// It replaces it.
        Replace = "replace",
        /// It is added.
        Add = "add",
        /// It is multiplied.
        Mul = "mul",
        /// The larger one stays.
        Max = "max",
        /// The smaller one stays.
        Min = "min",
    }
}

operator! {
    /// `x` with `y[…, indices[…, i, …], …] = updates[…, i, …]` along an axis, in row-major order of the updates.
    ///
    /// C1. Operands are `x`, `indices` (`i32` or `i64`) and `updates` of the type of `x`; `indices` and `updates` have equal shapes of the rank of `x`; every other size is at most that of `x`.
    /// C2. The axis is below the rank.
    /// C3. Quantized elements can only be replaced; `add` and `mul` take numbers.
    /// R1. At run time an index outside of `[-size, size)` is an error.
    pub struct ScatterElements("scatter_elements", 3..=3) {
        /// The axis that is indexed.
        axis: usize,
        /// How an update meets what is there.
        reduction: ScatterReduction,
    }
}

impl ScatterReduction {
    /// What joins the element that is there and an update; none where the update replaces it.
    pub fn prim(self) -> Option<Prim> {
        match self {
            ScatterReduction::Replace => None,
            ScatterReduction::Add => Some(Prim::Add),
            ScatterReduction::Mul => Some(Prim::Mul),
            ScatterReduction::Max => Some(Prim::Max),
            ScatterReduction::Min => Some(Prim::Min),
        }
    }

    /// Refuses element types that the reduction does not take, and updates of another type.
    pub(super) fn check(self, x: &Type, updates: &Type, mnemonic: &str) -> Result<(), InferError> {
        check_movable(x, mnemonic)?;
        require!(
            (x.elem, x.quant) == (updates.elem, updates.quant),
            "{mnemonic} C1: {x} and the updates {updates} have different elements"
        );
        if self != ScatterReduction::Replace {
            require!(x.quant.is_none(), "{mnemonic} C3: elements of {x} cannot be joined, only replaced");
            let sum = matches!(self, ScatterReduction::Add | ScatterReduction::Mul);
            require!(!(sum && x.elem == Elem::Bool), "{mnemonic} C3: {x} has no sums and products");
        }
        Ok(())
    }

    /// `x` after the update `i` has met element `places[i]`, for all `i` in order.
    pub(super) fn apply(self, x: &Tensor, updates: &Tensor, places: &[usize]) -> Tensor {
        let Some(prim) = self.prim() else {
            let mut sources: Vec<(usize, usize)> = (0..x.len()).map(|i| (0, i)).collect();
            for (i, &place) in places.iter().enumerate() {
                sources[place] = (1, i);
            }
            return pick(&[x, updates], x.sizes(), |i| sources[i]);
        };
        let mut values: Vec<Scalar> = x.iter().collect();
        for (update, &place) in updates.iter().zip(places) {
            values[place] = prim.eval(&[values[place], update], x.elem(), x.elem());
        }
        Tensor::build(x.elem(), x.sizes(), |i| values[i])
    }
}

impl Operator for ScatterElements {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let (x, indices, updates) = (&inputs[0], &inputs[1], &inputs[2]);
        self.reduction.check(x, updates, "scatter_elements")?;
        check_indices(indices, "scatter_elements C1")?;
        let ranks = [x.rank(), indices.rank(), updates.rank()];
        require!(ranks == [x.rank(); 3], "scatter_elements C1: {x}, {indices} and {updates} have different numbers of axes");
        require!(self.axis < x.rank(), "scatter_elements C2: axis {} of {x}", self.axis);
        for axis in 0..x.rank() {
            let what = format!("scatter_elements C1: axis {axis} of the indices {indices} and the updates {updates}");
            cx.equal(&indices.shape[axis], &updates.shape[axis], &what)?;
            if axis != self.axis {
                let what = format!("scatter_elements C1: axis {axis} of the indices {indices} and of {x}");
                at_most(cx, &indices.shape[axis], &x.shape[axis], &what)?;
            }
        }
        Ok(vec![x.clone()])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, indices, updates) = (&inputs[0], &inputs[1], &inputs[2]);
        Ok(vec![self.reduction.apply(x, updates, &places(indices, x.sizes(), self.axis)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::super::GatherElements;
    use super::super::testing::*;
    use super::*;
    use proptest::prelude::*;

    const REDUCTIONS: [ScatterReduction; 5] =
        [ScatterReduction::Replace, ScatterReduction::Add, ScatterReduction::Mul, ScatterReduction::Max, ScatterReduction::Min];

    #[test]
    fn updates_meet_in_order() {
        let x = Tensor::of(&[3], vec![1i32, 2, 3]);
        let at = Tensor::of(&[3], vec![1i64, -2, 0]);
        let updates = Tensor::of(&[3], vec![10i32, -5, 7]);
        let expected = [[7, -5, 3], [8, 7, 3], [7, -100, 3], [7, 10, 3], [1, -5, 3]];
        for (reduction, expected) in REDUCTIONS.into_iter().zip(expected) {
            let y = eval(ScatterElements { axis: 0, reduction }, &[x.clone(), at.clone(), updates.clone()]);
            assert_eq!(y, Tensor::of(&[3], expected.to_vec()), "{reduction:?}");
        }
    }

    #[test]
    fn indices_outside_are_refused() {
        let op = ScatterElements { axis: 0, reduction: ScatterReduction::Add };
        let e = failure(op, &[tensor(Elem::F32, &[2], 0), Tensor::of(&[1], vec![-3i32]), tensor(Elem::F32, &[1], 0)]);
        assert_eq!(e, "index -3 is outside of [-2, 2) on axis 0");
    }

    #[test]
    fn constraints() {
        let refused = |axis, reduction, types: [Type; 3], c| assert_refused(ScatterElements { axis, reduction }, &types, c);
        let (f, i) = (|s| ty(Elem::F32, s), |s| ty(Elem::I64, s));
        let [replace, add, ..] = REDUCTIONS;
        refused(0, replace, [f("2 3"), f("1 3"), f("1 3")], "scatter_elements C1");
        refused(0, replace, [f("2 3"), i("1 3"), i("1 3")], "scatter_elements C1");
        refused(0, replace, [f("2 3"), i("3"), f("3")], "scatter_elements C1");
        refused(0, replace, [f("2 3"), i("1 3"), f("1 2")], "scatter_elements C1");
        refused(0, replace, [f("2 3"), i("1 4"), f("1 4")], "scatter_elements C1");
        refused(2, replace, [f("2 3"), i("1 3"), f("1 3")], "scatter_elements C2");
        let b = |s| ty(Elem::Bool, s);
        refused(0, add, [b("2"), i("2"), b("2")], "scatter_elements C3");
    }

    proptest! {
        #[test]
        fn what_is_scattered_can_be_gathered(
            sizes in prop::collection::vec(1usize..5, 1..4), axis in 0usize..3, order in Just([0i64, 1, 2, 3]).prop_shuffle(), seed: u64,
        ) {
            let axis = axis % sizes.len();
            // Along the axis every index comes at most once.
            let order: Vec<i64> = order.into_iter().filter(|&i| i < sizes[axis] as i64).collect();
            let at = Tensor::build(Elem::I32, &sizes, |i| Scalar::Int(order[super::super::support::unravel(i, &sizes)[axis]].into()));
            for (elem, _) in Elem::ALL {
                let (x, updates) = (tensor(elem, &sizes, seed), tensor(elem, &sizes, !seed));
                let y = eval(ScatterElements { axis, reduction: ScatterReduction::Replace }, &[x, at.clone(), updates.clone()]);
                prop_assert_eq!(&eval(GatherElements { axis }, &[y, at.clone()]), &updates);
            }
        }
    }
}
