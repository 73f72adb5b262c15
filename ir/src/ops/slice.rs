//! `slice`: part of a tensor.

use super::support::{at_most, check_movable, eval_shape, is_at_most, strided, strides};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Traits, Way};
use crate::dim::{Bindings, Dim};
use crate::tensor::Tensor;
use crate::types::{Shape, Type};

operator! {
    /// `len` elements per axis, from `start` in steps of `step`, which may be negative.
    ///
    /// C1. Every list has one entry per axis; no step is 0.
    /// C2. All indices are within the operand. What the ranges of the symbols leave open is checked at run time.
    pub struct Slice("slice", 1..=1) {
        /// First index per axis.
        starts: Vec<Dim>,
        /// Step per axis, not 0.
        steps: Vec<i64>,
        /// Number of elements per axis.
        lens: Shape,
    }
}

impl Slice {
    /// The elements `start`, `start + 1`, … of one axis of a tensor of type `x`, `len` of them.
    pub fn of_axis(x: &Type, axis: usize, start: Dim, len: Dim) -> Slice {
        let mut slice = Slice { starts: vec![Dim::from(0); x.rank()], steps: vec![1; x.rank()], lens: x.shape.clone() };
        slice.starts[axis] = start;
        slice.lens.0[axis] = len;
        slice
    }
}

impl Operator for Slice {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_movable(x, "slice")?;
        let lengths = [self.starts.len(), self.steps.len(), self.lens.rank()];
        require!(lengths == [x.rank(); 3], "slice C1: lists of {lengths:?} entries (starts, steps, lens) for the {} axes of {x}", x.rank());
        require!(!self.steps.contains(&0), "slice C1: a step of {:?} is 0", self.steps);
        for (axis, size) in x.shape.0.iter().enumerate() {
            let (start, step, len) = (&self.starts[axis], self.steps[axis], &self.lens[axis]);
            if len.is(0) {
                continue;
            }
            let last = start.clone() + (len.clone() - Dim::from(1)) * Dim::from(step);
            let (low, high) = if step > 0 { (start, &last) } else { (&last, start) };
            let end = high.clone() + Dim::from(1);
            // Where nothing is taken, the indices mean nothing: the factor 0 makes the check pass.
            let taken = if len.range(cx.symbols()).min >= 1 { Dim::from(1) } else { len.minimum(&Dim::from(1)) };
            if !is_at_most(&Dim::from(0), low, cx.symbols()) {
                let what = format!("slice C2: on axis {axis} of {x}, 0 and the lowest index");
                at_most(cx, &Dim::from(0), &(low.clone() * taken.clone()), &what)?;
            }
            if !is_at_most(&end, size, cx.symbols()) {
                let what = format!("slice C2: on axis {axis} of {x}, the end of the highest index and the size");
                at_most(cx, &(end * taken), size, &what)?;
            }
        }
        Ok(vec![x.with_shape(self.lens.clone())])
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let lens = eval_shape(&self.lens, bindings)?;
        let strides = strides(x.sizes());
        let mut origin = 0;
        let mut axes = Vec::with_capacity(x.rank());
        for (axis, &size) in x.sizes().iter().enumerate() {
            let (len, step) = (lens[axis], self.steps[axis]);
            let start = self.starts[axis].eval(bindings).ok_or_else(|| EvalError::new(format!("{} has no value", self.starts[axis])))?;
            let last = (len as i64 - 1).checked_mul(step).and_then(|n| n.checked_add(start)).unwrap_or(i64::MAX);
            let within = 0..size as i64;
            if len > 0 && !(within.contains(&start) && within.contains(&last)) {
                return Err(EvalError::new(format!("slice C2: indices {start} to {last} are outside of the {size} of axis {axis}")));
            }
            if len > 0 {
                origin += start as isize * strides[axis] as isize;
            }
            axes.push((len, step as isize * strides[axis] as isize));
        }
        Ok(vec![strided(x, origin, &axes)])
    }

    fn traits(&self) -> Traits {
        Traits::MOVES
    }

    fn ways(&self) -> &'static [Way] {
        &[&[(0, Mapped::Affine)]]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    fn slice(starts: &[i64], steps: &[i64], lens: &[i64]) -> Slice {
        Slice { starts: starts.iter().map(|&n| Dim::from(n)).collect(), steps: steps.to_vec(), lens: Shape::fixed(lens) }
    }

    #[test]
    fn steps_may_be_negative() {
        let x = Tensor::of(&[2, 5], (0u8..10).collect());
        assert_eq!(eval(slice(&[1, 4], &[-1, -2], &[2, 3]), std::slice::from_ref(&x)), Tensor::of(&[2, 3], vec![9u8, 7, 5, 4, 2, 0]));
        assert_eq!(eval(slice(&[9, 0], &[1, 1], &[0, 5]), &[x]).sizes(), [0, 5]);
    }

    #[test]
    fn bounds_are_proved_or_checked() {
        let (n, x) = (Dim::symbol("n"), ty(Elem::F32, "n"));
        let checks = |start: Dim, step: i64, len: Dim| {
            infer(Slice { starts: vec![start], steps: vec![step], lens: Shape(vec![len]) }, std::slice::from_ref(&x)).1
        };
        let (zero, one) = (Dim::from(0), Dim::from(1));
        assert!(checks(one.clone(), 1, n.clone() - one.clone()).is_empty());
        assert!(checks(n.clone() - one.clone(), -1, n.clone()).is_empty());
        assert!(checks(zero.clone(), 2, n.ceil_div(2)).is_empty());
        let clamped = Dim::from(3).minimum(&n);
        assert!(checks(clamped.clone(), 1, n.clone() - clamped).is_empty());
        assert_eq!(checks(zero, 1, Dim::from(5)), ["max(5, n) = n"]);
    }

    #[test]
    fn constraints() {
        let x = [ty(Elem::F32, "4")];
        for op in [slice(&[], &[1], &[1]), slice(&[0], &[], &[1]), slice(&[0], &[1], &[1, 1]), slice(&[0], &[0], &[1])] {
            assert_refused(op, &x, "slice C1");
        }
        for op in [slice(&[0], &[1], &[5]), slice(&[-1], &[1], &[1]), slice(&[3], &[-1], &[5]), slice(&[4], &[-1], &[1])] {
            assert_refused(op, &x, "slice C2");
        }
        let late = Slice { starts: vec![Dim::symbol("s")], steps: vec![1], lens: Shape::fixed(&[2]) };
        let bindings = Bindings::from([(crate::dim::Symbol::new("s"), 3)]);
        let e = late.eval(&bindings, &[tensor(Elem::F32, &[4], 0)]).unwrap_err();
        assert_eq!(e.to_string(), "slice C2: indices 3 to 4 are outside of the 4 of axis 0");
    }

    proptest! {
        #[test]
        fn every_element_is_where_it_should_be(
            (n, start, step, len) in (1i64..9, prop_oneof![-3i64..0, 1i64..4]).prop_flat_map(|(n, step)| {
                (0..n).prop_flat_map(move |start| {
                    let left = if step > 0 { n - 1 - start } else { start };
                    (Just(n), Just(start), Just(step), 0..=left / step.abs() + 1)
                })
            }),
            seed: u64,
        ) {
            let x = tensor(Elem::I4, &[n as usize], seed);
            let y = eval(slice(&[start], &[step], &[len]), std::slice::from_ref(&x));
            for i in 0..len {
                prop_assert_eq!(y.get(i as usize), x.get((start + i * step) as usize));
            }
        }
    }
}
