//! `arg_reduce`: position of the largest or smallest element.

use super::reduce::{ReduceKind, reduce_kept};
use super::support::{cast, check_axis, check_elems, lines, number};
use super::{Eq, Iota, IsNan, Or, Reduce, Select};
use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Shape, Type};

operator! {
    /// The position along an axis of the largest (or smallest) element, an `i64`. A NaN counts as
    /// larger and smaller than any number. On an empty axis the result is the highest `i64`, with
    /// `last` the lowest. Lowers to `reduce`, `eq`, `iota`, `select`, `reduce`, `cast`.
    ///
    /// C1. The operand is a number.
    /// C2. The axis is below the rank.
    pub struct ArgReduce("arg_reduce", 1..=1) {
        /// Whether to look for the largest one.
        largest: bool,
        /// The axis.
        axis: usize,
        /// Whether the axis stays, with size 1.
        keep: bool,
        /// Whether the last of equals is meant, not the first.
        last: bool,
    }
}

impl ArgReduce {
    /// What finds the extreme element.
    fn of_elements(&self) -> ReduceKind {
        if self.largest { ReduceKind::Max } else { ReduceKind::Min }
    }

    /// What chooses among the positions of equal elements.
    fn of_positions(&self) -> ReduceKind {
        if self.last { ReduceKind::Max } else { ReduceKind::Min }
    }

    fn decompose(&self, graph: &mut Graph, x: Value, loc: &Loc) -> Result<Value, InferError> {
        let Type { elem, shape, .. } = graph.ty(x).clone();
        let extreme = reduce_kept(graph, self.of_elements(), &[self.axis], x, loc)?;
        let mut hit = graph.add(Eq {}, &[x, extreme], loc)?;
        if elem.is_float() {
            // Where there is a NaN it is the extreme element, and equals nothing.
            let nan = graph.add(IsNan {}, &[x], loc)?;
            hit = graph.add(Or {}, &[hit, nan], loc)?;
        }
        // Positions of 32 bits, where they are enough, take half of the time; on an empty axis they are not.
        let size = shape[self.axis].range(&graph.symbols);
        let narrow = size.min >= 1 && size.max <= i64::from(i32::MAX);
        let positions = if narrow { Elem::I32 } else { Elem::I64 };
        let mut along = Shape(vec![Dim::from(1); shape.rank()]);
        along.0[self.axis] = shape[self.axis].clone();
        let position = graph.add(Iota { elem: positions, shape: along, axis: self.axis }, &[], loc)?;
        let kind = self.of_positions();
        let never = graph.add_const(Tensor::scalar(positions, kind.identity(positions)), None);
        let candidates = graph.add(Select {}, &[hit, position, never], loc)?;
        let found = graph.add(Reduce { kind, axes: vec![self.axis], keep: self.keep }, &[candidates], loc)?;
        cast(graph, found, Elem::I64, loc)
    }
}

impl Operator for ArgReduce {
    fn infer(&self, _: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_elems(self, inputs, number)?;
        check_axis(self, self.axis, x)?;
        let mut shape = x.shape.clone();
        if self.keep {
            shape.0[self.axis] = Dim::from(1);
        } else {
            shape.0.remove(self.axis);
        }
        Ok(vec![Type::new(Elem::I64, shape)])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let beats = |a: Scalar, b: Scalar| match (a, b) {
            (Scalar::Int(a), Scalar::Int(b)) => (if self.largest { a > b } else { a < b }) || (self.last && a == b),
            (a, b) => {
                let (a, b) = (a.to_f64(), b.to_f64());
                match (a.is_nan(), b.is_nan()) {
                    (true, true) => self.last,
                    (true, false) => true,
                    (false, true) => false,
                    (false, false) => (if self.largest { a > b } else { a < b }) || (self.last && a == b),
                }
            }
        };
        let positions: Vec<Scalar> = lines(x.sizes(), self.axis)
            .map(|line| {
                let mut best: Option<(usize, Scalar)> = None;
                for (k, at) in line.enumerate() {
                    let element = x.get(at);
                    if best.is_none_or(|(_, b)| beats(element, b)) {
                        best = Some((k, element));
                    }
                }
                best.map_or(self.of_positions().identity(Elem::I64), |(k, _)| Scalar::Int(k as i128))
            })
            .collect();
        let mut sizes = x.sizes().to_vec();
        if self.keep {
            sizes[self.axis] = 1;
        } else {
            sizes.remove(self.axis);
        }
        Ok(vec![Tensor::build(Elem::I64, &sizes, |i| positions[i])])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decompose(graph, inputs[0], loc).map(|v| vec![v]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_lowers, assert_lowers_at, assert_refused, eval, f32s, sizes, tensor, ty};
    use super::*;
    use proptest::prelude::*;

    fn arg(largest: bool, axis: usize, keep: bool, last: bool) -> ArgReduce {
        ArgReduce { largest, axis, keep, last }
    }

    #[test]
    fn first_and_last_of_equals() {
        let x = f32s(&[2, 3], &[1.0, 3.0, 3.0, -1.0, -1.0, 0.0]);
        let at = |op| eval(op, std::slice::from_ref(&x)).to_i64s().unwrap();
        assert_eq!(at(arg(true, 1, false, false)), [1, 2]);
        assert_eq!(at(arg(true, 1, false, true)), [2, 2]);
        assert_eq!(at(arg(false, 1, true, false)), [0, 0]);
        assert_eq!(at(arg(false, 1, true, true)), [0, 1]);
        assert_eq!(at(arg(true, 0, false, false)), [0, 0, 0]);
    }

    #[test]
    fn nan_and_nothing() {
        let x = f32s(&[4], &[1.0, f32::NAN, f32::NAN, 2.0]);
        for largest in [false, true] {
            assert_eq!(eval(arg(largest, 0, false, false), std::slice::from_ref(&x)).to_i64s().unwrap(), [1]);
            assert_eq!(eval(arg(largest, 0, false, true), std::slice::from_ref(&x)).to_i64s().unwrap(), [2]);
            assert_lowers(arg(largest, 0, false, true), std::slice::from_ref(&x));
        }
        assert_eq!(eval(arg(true, 0, false, false), &[f32s(&[0], &[])]).to_i64s().unwrap(), [i64::MAX]);
    }

    #[test]
    fn constraints() {
        assert_refused(arg(true, 0, true, true), &[ty(Elem::Bool, "2")], "arg_reduce C1");
        assert_refused(arg(true, 2, true, true), &[ty(Elem::F32, "2 n")], "arg_reduce C2");
    }

    proptest! {
        #[test]
        fn lowers(sizes in sizes(1..4), axis in 0usize..3, flags: [bool; 3], seed: u64) {
            let [largest, keep, last] = flags;
            for elem in [Elem::F32, Elem::I8] {
                assert_lowers(arg(largest, axis % sizes.len(), keep, last), &[tensor(elem, &sizes, seed)]);
            }
        }
    }

    #[test]
    fn lowers_with_symbols() {
        assert_lowers_at(arg(true, 1, false, false), &[ty(Elem::F32, "n s")], &[("n", 2), ("s", 5)], &[tensor(Elem::F32, &[2, 5], 1)]);
    }
}
