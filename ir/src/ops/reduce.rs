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
