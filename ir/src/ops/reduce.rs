//! `reduce`: reduction over axes.

use super::support::{Broadcast, any, check_elems, float, number};
use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::scalar::Prim;
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Shape, Type};
use crate::word_attr;

word_attr! {
    /// What a reduction computes.
    pub enum ReduceKind {
        /// The sum.
        Sum = "sum",
        /// The arithmetic mean.
        Mean = "mean",
        /// The largest; a NaN wins.
        Max = "max",
        /// The smallest; a NaN wins.
        Min = "min",
        /// The product.
        Prod = "prod",
    }
}

impl ReduceKind {
    /// What combines two elements; a mean is a sum that is divided in the end.
    pub fn prim(self) -> Prim {
        match self {
            ReduceKind::Sum | ReduceKind::Mean => Prim::Add,
            ReduceKind::Max => Prim::Max,
            ReduceKind::Min => Prim::Min,
            ReduceKind::Prod => Prim::Mul,
        }
    }

    /// What changes nothing when it is combined with an element of type `elem`: where a reduction starts.
    pub fn identity(self, elem: Elem) -> Scalar {
        match (self, elem.int_range()) {
            (ReduceKind::Sum | ReduceKind::Mean, None) => Scalar::Float(0.0),
            (ReduceKind::Max, None) => Scalar::Float(f64::NEG_INFINITY),
            (ReduceKind::Min, None) => Scalar::Float(f64::INFINITY),
            (ReduceKind::Prod, None) => Scalar::Float(1.0),
            (ReduceKind::Sum | ReduceKind::Mean, Some(_)) => Scalar::Int(0),
            (ReduceKind::Max, Some((lowest, _))) => Scalar::Int(lowest),
            (ReduceKind::Min, Some((_, highest))) => Scalar::Int(highest),
            (ReduceKind::Prod, Some(_)) => Scalar::Int(1),
        }
    }
}

operator! {
    /// Reduces axes to size 1 or removes them. A reduction over no elements gives 0 (sum), 1 (prod),
    /// the lowest or highest value, infinite for floats (max, min), NaN (mean). Integers wrap.
    ///
    /// C1. The operand is a number; for `mean` a float; for `max` and `min` also `bool` (any, all).
    /// C2. Axes are below the rank, ascending, distinct.
    pub struct Reduce("reduce", 1..=1) {
        /// What is computed.
        kind: ReduceKind,
        /// The axes, ascending, without repetition.
        axes: Vec<usize>,
        /// Whether reduced axes stay, with size 1.
        keep: bool,
    }
}

impl Reduce {
    /// The sizes that stay, given all of them and what a reduced axis has.
    fn remaining<T: Clone>(&self, sizes: &[T], one: &T, keep: bool) -> Vec<T> {
        let size = |(i, n): (usize, &T)| match self.axes.contains(&i) {
            false => Some(n.clone()),
            true => keep.then(|| one.clone()),
        };
        sizes.iter().enumerate().filter_map(size).collect()
    }
}

impl Operator for Reduce {
    fn infer(&self, _: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        let accepts = match self.kind {
            ReduceKind::Mean => float,
            ReduceKind::Max | ReduceKind::Min => any,
            ReduceKind::Sum | ReduceKind::Prod => number,
        };
        let elem = check_elems(self, inputs, accepts)?;
        require!(self.axes.is_sorted_by(|a, b| a < b), "reduce C2: axes are ascending and distinct, not {:?}", self.axes);
        if let Some(&last) = self.axes.last() {
            require!(last < x.rank(), "reduce C2: axis {last} is not below the rank {} of {x}", x.rank());
        }
        Ok(vec![Type::new(elem, Shape(self.remaining(&x.shape.0, &Dim::from(1), self.keep)))])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let computed = if x.elem().is_float() { Elem::F64 } else { x.elem() };
        let kept = self.remaining(x.sizes(), &1, true);
        let target = Broadcast::new(&kept, x.sizes());
        let mut results = vec![self.kind.identity(x.elem()); kept.iter().product()];
        for (i, element) in x.iter().enumerate() {
            let result = &mut results[target.offset(i)];
            *result = self.kind.prim().eval(&[*result, element], computed, computed);
        }
        if self.kind == ReduceKind::Mean {
            let count: usize = self.axes.iter().map(|&a| x.sizes()[a]).product();
            for r in &mut results {
                *r = Scalar::Float(r.to_f64() / count as f64);
            }
        }
        Ok(vec![Tensor::build(x.elem(), &self.remaining(x.sizes(), &1, self.keep), |i| results[i])])
    }
}

/// Appends a reduction of `x` that keeps the axes with size 1: a step of decompositions.
pub(super) fn reduce_kept(graph: &mut Graph, kind: ReduceKind, axes: &[usize], x: Value, loc: &Loc) -> Result<Value, InferError> {
    graph.add(Reduce { kind, axes: axes.to_vec(), keep: true }, &[x], loc)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_refused, eval, f32s, tensor, ty};
    use super::*;

    fn reduce(kind: ReduceKind, axes: &[usize], keep: bool) -> Reduce {
        Reduce { kind, axes: axes.to_vec(), keep }
    }

    #[test]
    fn every_kind_of_small_matrices() {
        let x = f32s(&[2, 3], &[1.0, 2.0, 3.0, -4.0, 5.0, 0.5]);
        assert_eq!(eval(reduce(ReduceKind::Sum, &[1], false), std::slice::from_ref(&x)), f32s(&[2], &[6.0, 1.5]));
        assert_eq!(eval(reduce(ReduceKind::Mean, &[1], true), std::slice::from_ref(&x)), f32s(&[2, 1], &[2.0, 0.5]));
        assert_eq!(eval(reduce(ReduceKind::Max, &[0], false), std::slice::from_ref(&x)), f32s(&[3], &[1.0, 5.0, 3.0]));
        assert_eq!(eval(reduce(ReduceKind::Min, &[0, 1], false), std::slice::from_ref(&x)), f32s(&[], &[-4.0]));
        assert_eq!(eval(reduce(ReduceKind::Prod, &[1], false), std::slice::from_ref(&x)), f32s(&[2], &[6.0, -10.0]));
        assert_eq!(eval(reduce(ReduceKind::Sum, &[], false), std::slice::from_ref(&x)), x);
    }

    #[test]
    fn integers_wrap_and_bools_are_any_and_all() {
        let x = Tensor::of(&[3], vec![100i8, 100, 100]);
        assert_eq!(eval(reduce(ReduceKind::Sum, &[0], false), std::slice::from_ref(&x)).to_i64s().unwrap(), [44]);
        assert_eq!(eval(reduce(ReduceKind::Prod, &[0], false), &[x]).to_i64s().unwrap(), [1_000_000i64 as i8 as i64]);
        let b = Tensor::build(Elem::Bool, &[2, 2], |i| Scalar::Int([0, 1, 1, 1][i]));
        assert_eq!(eval(reduce(ReduceKind::Max, &[1], false), std::slice::from_ref(&b)).to_i64s().unwrap(), [1, 1]);
        assert_eq!(eval(reduce(ReduceKind::Min, &[1], false), &[b]).to_i64s().unwrap(), [0, 1]);
    }

    #[test]
    fn no_elements_give_the_documented_values() {
        let x = f32s(&[1, 0], &[]);
        let at = |kind| eval(reduce(kind, &[1], false), std::slice::from_ref(&x)).to_f64s()[0];
        assert_eq!((at(ReduceKind::Sum), at(ReduceKind::Prod)), (0.0, 1.0));
        assert_eq!((at(ReduceKind::Max), at(ReduceKind::Min)), (f64::NEG_INFINITY, f64::INFINITY));
        assert!(at(ReduceKind::Mean).is_nan());
        let x = Tensor::of::<u8>(&[0], vec![]);
        assert_eq!(eval(reduce(ReduceKind::Min, &[0], true), &[x]).to_i64s().unwrap(), [255]);
    }

    #[test]
    fn a_nan_wins() {
        let x = f32s(&[3], &[1.0, f32::NAN, 2.0]);
        for kind in [ReduceKind::Max, ReduceKind::Min] {
            assert!(eval(reduce(kind, &[0], false), std::slice::from_ref(&x)).to_f64s()[0].is_nan());
        }
    }

    #[test]
    fn constraints() {
        let f = |s| ty(Elem::F32, s);
        assert_refused(reduce(ReduceKind::Sum, &[0], true), &[ty(Elem::Bool, "2")], "reduce C1");
        assert_refused(reduce(ReduceKind::Mean, &[0], true), &[ty(Elem::I32, "2")], "reduce C1");
        assert_refused(reduce(ReduceKind::Sum, &[2], true), &[f("2 n")], "reduce C2");
        assert_refused(reduce(ReduceKind::Sum, &[1, 0], true), &[f("2 n")], "reduce C2");
        assert_refused(reduce(ReduceKind::Sum, &[1, 1], true), &[f("2 n")], "reduce C2");
    }

    proptest::proptest! {
        /// A sum over two axes is the sum of sums.
        #[test]
        fn axes_can_be_reduced_one_by_one(sizes in super::super::testing::sizes(2..4), seed: u64) {
            let x = tensor(Elem::I16, &sizes, seed);
            let both = eval(reduce(ReduceKind::Sum, &[0, 1], true), std::slice::from_ref(&x));
            let first = eval(reduce(ReduceKind::Sum, &[1], true), &[x]);
            assert_eq!(eval(reduce(ReduceKind::Sum, &[0], true), &[first]), both);
        }
    }
}
