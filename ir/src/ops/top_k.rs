//! `top_k`: the largest or smallest elements along an axis, in order.

use super::support::{at_most, check_axis, check_elems, lines};
use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::{Bindings, Dim};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};
use std::cmp::Ordering;

operator! {
    /// The `k` largest (or smallest) elements along an axis, the first result, and their positions, the second, an `i64`:
    /// best first, equal ones by their position. A NaN is larger than any number; zeros of both signs are equal.
    ///
    /// C1. The operand is a number of whole bytes.
    /// C2. The axis is below the rank.
    /// C3. `k` is from 0 to the size of the axis. What the ranges of the symbols leave open is checked at run time.
    pub struct TopK("top_k", 1..=1) {
        /// Whether to look for the largest ones.
        largest: bool,
        /// The axis.
        axis: usize,
        /// How many elements are wanted.
        k: Dim,
    }
}

fn ordered(elem: Elem) -> bool {
    elem != Elem::Bool && elem.bits() >= 8
}

/// The order of two numbers of one type, in which a NaN is larger than any other number.
fn compare(a: Scalar, b: Scalar) -> Ordering {
    match (a, b) {
        (Scalar::Int(a), Scalar::Int(b)) => a.cmp(&b),
        (a, b) => {
            let (a, b) = (a.to_f64(), b.to_f64());
            a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
        }
    }
}

impl Operator for TopK {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_elems(self, inputs, ordered)?;
        check_axis(self, self.axis, x)?;
        at_most(cx, &Dim::from(0), &self.k, "top_k C3: 0 and k")?;
        at_most(cx, &self.k, &x.shape[self.axis], &format!("top_k C3: k and axis {} of {x}", self.axis))?;
        let mut shape = x.shape.clone();
        shape.0[self.axis] = self.k.clone();
        Ok(vec![Type::new(x.elem, shape.clone()), Type::new(Elem::I64, shape)])
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let n = x.sizes()[self.axis];
        let k = self.k.eval(bindings).and_then(|k| usize::try_from(k).ok()).filter(|&k| k <= n);
        let k = k.ok_or_else(|| EvalError::new(format!("top_k C3: {} of the {n} elements of axis {}", self.k, self.axis)))?;
        let mut sizes = x.sizes().to_vec();
        sizes[self.axis] = k;
        let mut places = vec![(0, 0); sizes.iter().product()];
        for (from, to) in lines(x.sizes(), self.axis).zip(lines(&sizes, self.axis)) {
            let mut elements: Vec<(Scalar, usize, usize)> = from.enumerate().map(|(i, at)| (x.get(at), i, at)).collect();
            let better = |a: &(Scalar, usize, usize), b: &(Scalar, usize, usize)| {
                let order = compare(a.0, b.0);
                (if self.largest { order.reverse() } else { order }).then(a.1.cmp(&b.1))
            };
            if (1..n).contains(&k) {
                elements.select_nth_unstable_by(k - 1, better);
            }
            elements.truncate(k);
            elements.sort_unstable_by(better);
            to.zip(elements).for_each(|(to, (_, i, at))| places[to] = (i, at));
        }
        let values = Tensor::build(x.elem(), &sizes, |i| x.get(places[i].1));
        Ok(vec![values, Tensor::build(Elem::I64, &sizes, |i| Scalar::Int(places[i].0 as i128))])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_refused, f32s, failure, infer, sizes, tensor, ty};
    use super::*;
    use proptest::prelude::*;

    fn top(largest: bool, axis: usize, k: usize) -> TopK {
        TopK { largest, axis, k: Dim::from(k) }
    }

    fn run(op: TopK, x: &Tensor) -> (Vec<f64>, Vec<i64>) {
        let y = op.eval(&Bindings::new(), std::slice::from_ref(x)).unwrap();
        (y[0].to_f64s(), y[1].to_i64s().unwrap())
    }

    #[test]
    fn equal_elements_come_by_position() {
        let x = f32s(&[2, 4], &[1.0, 3.0, 3.0, 2.0, -0.0, -1.0, 0.0, -1.0]);
        assert_eq!(run(top(true, 1, 3), &x), (vec![3.0, 3.0, 2.0, 0.0, 0.0, -1.0], vec![1, 2, 3, 0, 2, 1]));
        assert_eq!(run(top(false, 1, 2), &x), (vec![1.0, 2.0, -1.0, -1.0], vec![0, 3, 1, 3]));
        assert_eq!(run(top(true, 0, 1), &x).1, [0, 0, 0, 0]);
        assert_eq!(run(top(true, 1, 0), &x).1, [0; 0]);
    }

    #[test]
    fn nan_is_the_largest() {
        let x = f32s(&[5], &[1.0, f32::NAN, f32::INFINITY, f32::NAN, -f32::INFINITY]);
        assert_eq!(run(top(true, 0, 4), &x).1, [1, 3, 2, 0]);
        assert_eq!(run(top(false, 0, 4), &x).1, [4, 0, 2, 1]);
    }

    #[test]
    fn constraints() {
        assert_refused(top(true, 0, 1), &[ty(Elem::Bool, "2")], "top_k C1");
        assert_refused(top(true, 0, 1), &[ty(Elem::I4, "2")], "top_k C1");
        assert_refused(top(true, 2, 1), &[ty(Elem::F32, "2 n")], "top_k C2");
        assert_refused(top(true, 0, 3), &[ty(Elem::F32, "2")], "top_k C3");
        let (values, checks) = infer(top(true, 0, 3), &[ty(Elem::F16, "n")]);
        assert_eq!((values.as_str(), checks), ("f16[3]", vec!["max(3, n) = n".into()]));
        assert!(failure(TopK { largest: true, axis: 0, k: Dim::from(3) }, &[f32s(&[2], &[1.0, 2.0])]).starts_with("top_k C3"));
    }

    proptest! {
        /// All of them are a permutation in order; the first of them are fewer of them.
        #[test]
        fn it_sorts(sizes in sizes(1..4), axis in 0usize..3, largest: bool, seed: u64) {
            let axis = axis % sizes.len();
            let x = tensor(Elem::I8, &sizes, seed);
            let n = sizes[axis];
            let (all, places) = run(top(largest, axis, n), &x);
            for line in lines(&sizes, axis) {
                let line: Vec<usize> = line.collect();
                let mut seen: Vec<i64> = line.iter().map(|&at| places[at]).collect();
                let in_order = |w: &[usize]| if largest { all[w[0]] >= all[w[1]] } else { all[w[0]] <= all[w[1]] };
                prop_assert!(line.windows(2).all(in_order));
                prop_assert!(line.iter().all(|&at| all[at] == x.get(line[places[at] as usize]).to_f64()));
                seen.sort_unstable();
                prop_assert!(seen.iter().enumerate().all(|(i, &p)| p == i as i64));
            }
            let some = run(top(largest, axis, n / 2), &x).1;
            let mut fewer = sizes.clone();
            fewer[axis] = n / 2;
            for (a, b) in lines(&sizes, axis).zip(lines(&fewer, axis)) {
                prop_assert!(a.zip(b).all(|(a, b)| places[a] == some[b]));
            }
        }
    }
}
