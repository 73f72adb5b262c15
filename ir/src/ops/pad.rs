//! `pad`: borders around a tensor.

use super::support::{at_most, check_movable, eval_shape, pick, strides};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Traits, Way};
use crate::dim::{Bindings, Dim};
use crate::tensor::Tensor;
use crate::types::{Shape, Type};
use crate::word_attr;

word_attr! {
    /// What the elements of a border are.
    pub enum PadMode {
        /// The value of the second operand.
        Constant = "constant",
        /// The tensor mirrored at its first and last element, which are not repeated.
        Reflect = "reflect",
        /// The nearest element.
        Edge = "edge",
        /// The tensor continued periodically.
        Wrap = "wrap",
    }
}

operator! {
    /// Adds elements before and behind every axis. Negative numbers are not allowed: importers slice.
    ///
    /// C1. With `constant` the second operand is a scalar of the first one's type; without it there is none.
    /// C2. Every list has one entry per axis, not negative; for `reflect` below the size, for `edge` and `wrap` the axis is not
    /// empty where something is added. What the ranges of the symbols leave open is checked at run time.
    pub struct Pad("pad", 1..=2) {
        /// What the new elements are.
        mode: PadMode,
        /// How many come before, per axis.
        before: Vec<Dim>,
        /// How many come behind, per axis.
        after: Vec<Dim>,
    }
}

impl PadMode {
    /// The index on an axis of `n` elements that a border element at index `i` repeats: `i` counts
    /// from the first element of the operand, and is negative before it.
    fn source(self, i: i64, n: i64) -> Option<i64> {
        if (0..n).contains(&i) {
            return Some(i);
        }
        match self {
            PadMode::Constant => None,
            PadMode::Reflect => Some(if i < 0 { -i } else { 2 * (n - 1) - i }),
            PadMode::Edge => Some(i.clamp(0, n - 1)),
            PadMode::Wrap => Some(i.rem_euclid(n)),
        }
    }

    /// The size that an axis must have at least, for `added` elements on one side.
    fn least_size(self, added: &Dim) -> Option<Dim> {
        match self {
            PadMode::Constant => None,
            PadMode::Reflect => Some(added.clone() + Dim::from(1)),
            PadMode::Edge | PadMode::Wrap => Some(added.minimum(&Dim::from(1))),
        }
    }
}

impl Operator for Pad {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_movable(x, "pad")?;
        if self.mode == PadMode::Constant {
            require!(inputs.len() == 2, "pad C1: constant padding of {x} needs the value as second operand");
            let value = x.with_shape(Shape::default());
            require!(inputs[1] == value, "pad C1: the value for {x} must be {value}, not {}", inputs[1]);
        } else {
            require!(inputs.len() == 1, "pad C1: only constant padding takes a value, but there is {}", inputs[1]);
        }
        let lengths = [self.before.len(), self.after.len()];
        require!(lengths == [x.rank(); 2], "pad C2: lists of {lengths:?} entries (before, after) for the {} axes of {x}", x.rank());
        let mut shape = x.shape.clone();
        for (axis, size) in shape.0.iter_mut().enumerate() {
            for added in [&self.before[axis], &self.after[axis]] {
                at_most(cx, &Dim::from(0), added, &format!("pad C2: 0 and what axis {axis} of {x} gets"))?;
                // Adding nothing is always right.
                if let Some(least) = self.mode.least_size(added).filter(|_| !added.is(0)) {
                    at_most(cx, &least, &x.shape[axis], &format!("pad C2: least and actual size of axis {axis} of {x}"))?;
                }
            }
            *size = self.before[axis].clone() + size.clone() + self.after[axis].clone();
        }
        Ok(vec![x.with_shape(shape)])
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let before = eval_shape(&Shape(self.before.clone()), bindings)?;
        let after = eval_shape(&Shape(self.after.clone()), bindings)?;
        let strides = strides(x.sizes());
        // Per axis and index of the result: what the index adds to the position in the operand, if it is not the constant.
        let mut offsets: Vec<Vec<Option<usize>>> = Vec::with_capacity(x.rank());
        for (axis, &n) in x.sizes().iter().enumerate() {
            for added in [before[axis], after[axis]] {
                let least = self.mode.least_size(&Dim::from(added)).and_then(|d| d.as_const()).unwrap_or(0);
                if added > 0 && (n as i64) < least {
                    return Err(EvalError::new(format!("pad C2: {added} elements cannot be added to the {n} of axis {axis}")));
                }
            }
            let (first, end) = (-(before[axis] as i64), (n + after[axis]) as i64);
            offsets.push((first..end).map(|i| self.mode.source(i, n as i64).map(|i| i as usize * strides[axis])).collect());
        }
        let sizes: Vec<usize> = offsets.iter().map(Vec::len).collect();
        let from: Vec<&Tensor> = inputs.iter().collect();
        let y = pick(&from, &sizes, |mut i| {
            let mut at = 0;
            for axis in offsets.iter().rev() {
                match axis[i % axis.len()] {
                    Some(offset) => at += offset,
                    None => return (1, 0),
                }
                i /= axis.len();
            }
            (0, at)
        });
        Ok(vec![y])
    }

    fn traits(&self) -> Traits {
        Traits { moved: if self.mode == PadMode::Constant { 2 } else { 1 }, ..Traits::MOVES }
    }

    fn ways(&self) -> &'static [Way] {
        match self.mode {
            PadMode::Constant => &[&[(0, Mapped::Affine), (1, Mapped::Affine)]],
            PadMode::Reflect | PadMode::Edge | PadMode::Wrap => &[&[(0, Mapped::Affine)]],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::types::Elem;

    fn pad(mode: PadMode, before: &[i64], after: &[i64]) -> Pad {
        let dims = |list: &[i64]| list.iter().map(|&n| Dim::from(n)).collect();
        Pad { mode, before: dims(before), after: dims(after) }
    }

    #[test]
    fn borders_of_every_mode() {
        let x = Tensor::of(&[3], vec![1u8, 2, 3]);
        let of = |mode, before, after| eval(pad(mode, &[before], &[after]), std::slice::from_ref(&x)).to_i64s().unwrap();
        assert_eq!(of(PadMode::Reflect, 2, 2), [3, 2, 1, 2, 3, 2, 1]);
        assert_eq!(of(PadMode::Edge, 2, 1), [1, 1, 1, 2, 3, 3]);
        assert_eq!(of(PadMode::Wrap, 4, 1), [3, 1, 2, 3, 1, 2, 3, 1]);
        let square = Tensor::of(&[1, 1], vec![7i32]);
        let y = eval(pad(PadMode::Constant, &[1, 0], &[0, 2]), &[square, Tensor::of(&[], vec![9i32])]);
        assert_eq!(y, Tensor::of(&[2, 3], vec![9i32, 9, 9, 7, 9, 9]));
        assert_eq!(eval(pad(PadMode::Edge, &[0], &[0]), &[tensor(Elem::F32, &[0], 0)]).sizes(), [0]);
    }

    #[test]
    fn symbolic_borders_are_added_and_checked() {
        let op = Pad { mode: PadMode::Reflect, before: vec![Dim::from(1)], after: vec![Dim::symbol("p")] };
        let (y, checks) = infer(op, &[ty(Elem::F32, "n")]);
        assert_eq!(y, "f32[n+p+1]");
        assert_eq!(checks, ["max(2, n) = n", "max(n, p+1) = n"]);
    }

    #[test]
    fn constraints() {
        let (x, value) = (ty(Elem::F32, "3"), ty(Elem::F32, ""));
        assert_refused(pad(PadMode::Constant, &[1], &[1]), std::slice::from_ref(&x), "pad C1");
        assert_refused(pad(PadMode::Constant, &[1], &[1]), &[x.clone(), ty(Elem::I32, "")], "pad C1");
        assert_refused(pad(PadMode::Constant, &[1], &[1]), &[x.clone(), ty(Elem::F32, "1")], "pad C1");
        assert_refused(pad(PadMode::Edge, &[1], &[1]), &[x.clone(), value.clone()], "pad C1");
        assert_refused(pad(PadMode::Constant, &[1, 1], &[1]), &[x.clone(), value.clone()], "pad C2");
        assert_refused(pad(PadMode::Constant, &[-1], &[1]), &[x.clone(), value], "pad C2");
        assert_refused(pad(PadMode::Reflect, &[0], &[3]), &[x], "pad C2");
        for mode in [PadMode::Edge, PadMode::Wrap, PadMode::Reflect] {
            assert_refused(pad(mode, &[1], &[0]), &[ty(Elem::F32, "0")], "pad C2");
        }
    }
}
