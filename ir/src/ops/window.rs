//! `window`: overlapping windows as axes.

use super::support::{at_most, check_movable, strided, strides};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Traits, Way};
use crate::dim::{Bindings, Dim};
use crate::tensor::Tensor;
use crate::types::{Shape, Type};

operator! {
    /// A view of windows: for the last `n` axes of the operand (`n` the length of the lists) the result has the `n` axes of window positions and behind them the `n` axes within a window: `y[…, o, k] = x[…, o * stride + k * dilation]`.
    ///
    /// C1. Lists have equal lengths, at most the rank; entries are positive.
    /// C2. At least one window fits, unless the axis is known to be empty. What the ranges of the symbols leave open is checked at run time.
    pub struct Window("window", 1..=1) {
        /// Window size per axis.
        kernel: Vec<i64>,
        /// Distance of windows per axis.
        strides: Vec<i64>,
        /// Distance of taps per axis.
        dilations: Vec<i64>,
    }
}

impl Window {
    /// How many elements of axis `i` of the list a window spans.
    fn span(&self, i: usize) -> i64 {
        (self.kernel[i] - 1).saturating_mul(self.dilations[i]).saturating_add(1)
    }
}

impl Operator for Window {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_movable(x, "window")?;
        let n = self.kernel.len();
        let lengths = [n, self.strides.len(), self.dilations.len()];
        require!(lengths == [n; 3] && n <= x.rank(), "window C1: lists of {lengths:?} entries (kernel, strides, dilations) for {x}");
        for list in [&self.kernel, &self.strides, &self.dilations] {
            require!(list.iter().all(|&k| k >= 1), "window C1: an entry of {list:?} is not positive");
        }
        let batch = x.rank() - n;
        let mut sizes = x.shape.0[..batch].to_vec();
        for i in 0..n {
            let size = &x.shape[batch + i];
            if size.is(0) {
                sizes.push(Dim::from(0));
                continue;
            }
            let span = Dim::from(self.span(i));
            at_most(cx, &span, size, &format!("window C2: span of a window and size of axis {} of {x}", batch + i))?;
            let positions = (size.clone() - span).floor_div(&Dim::from(self.strides[i])) + Dim::from(1);
            sizes.push(positions.simplify(cx.symbols()));
        }
        sizes.extend(self.kernel.iter().map(|&k| Dim::from(k)));
        Ok(vec![x.with_shape(Shape(sizes))])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let n = self.kernel.len();
        let batch = x.rank() - n;
        let at: Vec<isize> = strides(x.sizes()).into_iter().map(|s| s as isize).collect();
        let mut axes: Vec<(usize, isize)> = x.sizes()[..batch].iter().copied().zip(at[..batch].iter().copied()).collect();
        for i in 0..n {
            let size = x.sizes()[batch + i];
            let positions = match (size as i64).checked_sub(self.span(i)) {
                Some(rest) if rest >= 0 => (rest / self.strides[i] + 1) as usize,
                _ if size == 0 => 0,
                _ => {
                    return Err(EvalError::new(format!(
                        "window C2: a window spans {} of the {size} elements of axis {}",
                        self.span(i),
                        batch + i
                    )));
                }
            };
            axes.push((positions, at[batch + i] * self.strides[i] as isize));
        }
        for i in 0..n {
            axes.push((self.kernel[i] as usize, at[batch + i] * self.dilations[i] as isize));
        }
        Ok(vec![strided(x, 0, &axes)])
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
    use super::super::support::{ravel, unravel};
    use super::super::testing::*;
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    #[test]
    fn windows_overlap() {
        let x = Tensor::of(&[1, 5], vec![1u8, 2, 3, 4, 5]);
        let y = eval(Window { kernel: vec![2], strides: vec![1], dilations: vec![2] }, &[x]);
        assert_eq!(y, Tensor::of(&[1, 3, 2], vec![1u8, 3, 2, 4, 3, 5]));
    }

    #[test]
    fn symbolic_sizes_give_symbolic_positions() {
        let op = Window { kernel: vec![3], strides: vec![2], dilations: vec![1] };
        let (y, checks) = infer(op, &[ty(Elem::F32, "c n")]);
        assert_eq!((y.as_str(), checks), ("f32[c, div(n+1, 2)-1, 3]", vec!["max(3, n) = n".into()]));
    }

    #[test]
    fn constraints() {
        let op = |kernel: &[i64], strides: &[i64], dilations: &[i64]| Window {
            kernel: kernel.into(),
            strides: strides.into(),
            dilations: dilations.into(),
        };
        let x = [ty(Elem::F32, "4")];
        for op in
            [op(&[1], &[1, 1], &[1]), op(&[1, 1], &[1, 1], &[1, 1]), op(&[0], &[1], &[1]), op(&[1], &[0], &[1]), op(&[1], &[1], &[-1])]
        {
            assert_refused(op, &x, "window C1");
        }
        assert_refused(op(&[3], &[1], &[2]), &x, "window C2");
        assert_eq!(infer(op(&[3], &[1], &[2]), &[ty(Elem::F32, "0")]).0, "f32[0, 3]");
    }

    proptest! {
        #[test]
        fn every_tap_is_where_the_definition_says(
            sizes in prop::collection::vec(5usize..8, 2..4),
            kernel in 1i64..3, stride in 1i64..4, dilation in 1i64..4, seed: u64,
        ) {
            for elem in [Elem::I4, Elem::Bf16] {
                let x = tensor(elem, &sizes, seed);
                let op = Window { kernel: vec![kernel, 2], strides: vec![stride, 1], dilations: vec![dilation, 3] };
                let y = eval(op, std::slice::from_ref(&x));
                let batch = sizes.len() - 2;
                for i in 0..y.len() {
                    let at = unravel(i, y.sizes());
                    let mut from = at[..batch].to_vec();
                    from.push(at[batch] * stride as usize + at[batch + 2] * dilation as usize);
                    from.push(at[batch + 1] + at[batch + 3] * 3);
                    prop_assert_eq!(y.get(i), x.get(ravel(&from, &sizes)));
                }
            }
        }
    }
}
