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

#[cfg(test)]
mod tests {
    use super::super::reduce::Reduce;
    use super::super::testing::{assert_refused, eval, f32s, sizes, tensor, ty};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn directions_and_bounds() {
        let x = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let at = |axis, exclusive, reverse| eval(CumSum { axis, exclusive, reverse }, std::slice::from_ref(&x)).to_f64s();
        assert_eq!(at(1, false, false), [1.0, 3.0, 6.0, 4.0, 9.0, 15.0]);
        assert_eq!(at(1, true, false), [0.0, 1.0, 3.0, 0.0, 4.0, 9.0]);
        assert_eq!(at(1, false, true), [6.0, 5.0, 3.0, 15.0, 11.0, 6.0]);
        assert_eq!(at(1, true, true), [5.0, 3.0, 0.0, 11.0, 6.0, 0.0]);
        assert_eq!(at(0, false, false), [1.0, 2.0, 3.0, 5.0, 7.0, 9.0]);
    }

    #[test]
    fn constraints() {
        let op = |axis| CumSum { axis, exclusive: false, reverse: false };
        assert_refused(op(0), &[ty(Elem::Bool, "2")], "cum_sum C1");
        assert_refused(op(1), &[ty(Elem::F32, "n")], "cum_sum C2");
    }

    proptest! {
        /// What comes before an element, the element, and what comes behind it are everything.
        #[test]
        fn parts_make_the_whole(sizes in sizes(1..4), axis in 0usize..3, seed: u64) {
            let axis = axis % sizes.len();
            let x = tensor(Elem::I8, &sizes, seed);
            let ints = |t: &Tensor| t.to_i64s().unwrap();
            let sums = |reverse| ints(&eval(CumSum { axis, exclusive: true, reverse }, std::slice::from_ref(&x)));
            let whole = eval(Reduce { kind: ReduceKind::Sum, axes: vec![axis], keep: true }, std::slice::from_ref(&x));
            let spread = super::super::support::Broadcast::new(whole.sizes(), &sizes);
            for (i, ((before, element), behind)) in sums(false).into_iter().zip(ints(&x)).zip(sums(true)).enumerate() {
                prop_assert_eq!((before + element + behind) as i8 as i64, ints(&whole)[spread.offset(i)]);
            }
        }
    }
}
