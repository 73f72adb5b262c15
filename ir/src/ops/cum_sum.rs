//! `cum_sum`: running sum.

use super::reduce::ReduceKind;
use super::support::{check_axis, check_elems, lines, number};
use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::{Elem, Type};

operator! {
    /// Sums along an axis up to every position. Integers wrap.
    ///
    /// C1. The operand is a number.
    /// C2. The axis is below the rank.
    pub struct CumSum("cum_sum", 1..=1) {
        /// The axis.
        axis: usize,
        /// Whether an element is left out of its own sum.
        exclusive: bool,
        /// Whether to sum from the end.
        reverse: bool,
    }
}

impl Operator for CumSum {
    fn infer(&self, _: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        check_elems(self, inputs, number)?;
        check_axis(self, self.axis, &inputs[0])?;
        Ok(inputs.to_vec())
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let computed = if x.elem().is_float() { Elem::F64 } else { x.elem() };
        let zero = ReduceKind::Sum.identity(x.elem());
        let mut sums = vec![zero; x.len()];
        for line in lines(x.sizes(), self.axis) {
            let mut places: Vec<usize> = line.collect();
            if self.reverse {
                places.reverse();
            }
            let mut sum = zero;
            for at in places {
                let before = sum;
                sum = ReduceKind::Sum.prim().eval(&[sum, x.get(at)], computed, computed);
                sums[at] = if self.exclusive { before } else { sum };
            }
        }
        Ok(vec![Tensor::build(x.elem(), x.sizes(), |i| sums[i])])
    }
}
