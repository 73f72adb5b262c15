//! `window`: overlapping windows as axes.

use super::support::{at_most, check_movable, strided, strides};
use super::{EvalError, InferCx, InferError, Operator, Traits};
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
}
