//! `pool`: pooling.

use super::reduce::ReduceKind;
use super::spatial::{Windows, pad};
use super::support::{check_elems, constant, float, number, unravel};
use super::{Div, EvalError, Expand, InferCx, InferError, Operator, Reduce, Slice, Window};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Shape, Type};

operator! {
    /// Maximum or average of windows over the axes behind batch and channels. Lowers to `pad`,
    /// `window` and `reduce`.
    ///
    /// With `ceil` a last window may reach beyond the end, but starts before it: within the operand
    /// or the pads before. What is beyond the pads never counts in an average.
    ///
    /// C1. The operand is a float (or an integer for the maximum) of rank 3 or more.
    /// C2. Lists have one entry per spatial axis; sizes, strides and dilations are positive, pads not negative.
    /// C3. At least one window fits into the operand with its pads, unless that is empty.
    pub struct Pool("pool", 1..=1) {
        /// Whether the average is wanted, not the maximum.
        average: bool,
        /// Window size per spatial axis.
        kernel: Vec<i64>,
        /// Step per spatial axis.
        strides: Vec<i64>,
        /// Elements added before every spatial axis.
        pads_before: Vec<i64>,
        /// Elements added behind every spatial axis.
        pads_after: Vec<i64>,
        /// Distance of taps per spatial axis.
        dilations: Vec<i64>,
        /// Whether added elements count in an average.
        count_pads: bool,
        /// Whether the last window may reach beyond the end.
        ceil: bool,
    }
}

impl Pool {
    fn windows(&self) -> Windows<'_> {
        let (before, after) = (&self.pads_before, &self.pads_after);
        Windows { kernel: &self.kernel, strides: &self.strides, dilations: &self.dilations, before, after }
    }

    /// The number of windows along an axis.
    fn positions(&self, cx: &mut InferCx, axis: usize, size: &Dim) -> Result<Dim, InferError> {
        let fitting = self.windows().positions(cx, axis, size, "pool C3")?;
        let start_bound = size.clone() + Dim::from(self.pads_before[axis]);
        let padded = start_bound.clone() + Dim::from(self.pads_after[axis]);
        if !self.ceil || padded.is(0) {
            return Ok(fitting);
        }
        // As many as reach the end, ceil((padded - extent) / stride) + 1, but only those that start before it,
        // ceil(start_bound / stride): the smaller of both.
        let stride = self.strides[axis];
        let beyond = (self.pads_after[axis] + stride).saturating_sub(self.windows().extent(axis)).min(0);
        Ok((start_bound + Dim::from(beyond)).ceil_div(stride))
    }

    /// How many elements follow the operand along an axis so that all `positions` windows fit. For sizes that are not
    /// known it is enough for any: the last window ends less than a stride behind the pads.
    fn needed_after(&self, axis: usize, size: &Dim, positions: &Dim) -> Dim {
        let pads = Dim::from(self.pads_after[axis]);
        if !self.ceil || size.is(0) {
            return pads;
        }
        if size.as_const().is_none() {
            return pads + Dim::from(self.strides[axis] - 1);
        }
        let end = (positions.clone() - Dim::from(1)) * Dim::from(self.strides[axis]) + Dim::from(self.windows().extent(axis));
        (end - size.clone() - Dim::from(self.pads_before[axis])).maximum(&pads)
    }

    fn decompose(&self, graph: &mut Graph, x: Value, loc: &Loc) -> Result<Value, InferError> {
        let ty = graph.ty(x).clone();
        let positions = self.infer(&mut InferCx::new(&graph.symbols), std::slice::from_ref(&ty))?.remove(0).shape.0.split_off(2);
        let sizes = &ty.shape.0[2..];
        let before: Vec<Dim> = self.pads_before.iter().map(|&n| Dim::from(n)).collect();
        let pads_after: Vec<Dim> = self.pads_after.iter().map(|&n| Dim::from(n)).collect();
        let after: Vec<Dim> = (0..sizes.len()).map(|i| self.needed_after(i, &sizes[i], &positions[i])).collect();
        let kind = if self.average { ReduceKind::Sum } else { ReduceKind::Max };
        let outside = graph.add_const(Tensor::scalar(ty.elem, kind.identity(ty.elem)), None);
        let padded = pad(graph, x, &before, &after, outside, loc)?;
        let pooled = self.reduce_windows(graph, padded, kind, &positions, loc)?;
        if !self.average {
            return Ok(pooled);
        }
        let zeros = |list: &[Dim]| list.iter().all(|d| d.is(0));
        let all_count = if self.count_pads { after == pads_after } else { zeros(&before) && zeros(&after) };
        let divisor = if all_count {
            constant(graph, ty.elem, self.kernel.iter().map(|&n| n as f64).product())
        } else {
            // The same sums over a tensor that is 1 where elements count.
            let one = constant(graph, ty.elem, 1.0);
            let none = vec![Dim::from(0); sizes.len()];
            let add = |a: &[Dim], b: &[Dim]| a.iter().cloned().zip(b.iter().cloned()).map(|(a, b)| a + b).collect::<Vec<_>>();
            let (counted, before, after) = if self.count_pads {
                let beyond = after.into_iter().zip(&pads_after).map(|(a, p)| a - p.clone()).collect();
                (add(&add(sizes, &before), &pads_after), none, beyond)
            } else {
                (sizes.to_vec(), before, after)
            };
            let ones = graph.add(Expand { shape: Shape(counted) }, &[one], loc)?;
            let ones = pad(graph, ones, &before, &after, outside, loc)?;
            self.reduce_windows(graph, ones, kind, &positions, loc)?
        };
        graph.add(Div {}, &[pooled, divisor], loc)
    }

    /// Reduces the windows over the last axes of `x` and keeps the first `positions` of them.
    fn reduce_windows(&self, graph: &mut Graph, x: Value, kind: ReduceKind, positions: &[Dim], loc: &Loc) -> Result<Value, InferError> {
        let (kernel, strides, dilations) = (self.kernel.clone(), self.strides.clone(), self.dilations.clone());
        let rank = graph.ty(x).rank();
        let windows = graph.add(Window { kernel, strides, dilations }, &[x], loc)?;
        let axes = (rank..rank + positions.len()).collect();
        let reduced = graph.add(Reduce { kind, axes, keep: false }, &[windows], loc)?;
        let mut lens = graph.ty(reduced).shape.clone();
        let outer = lens.rank() - positions.len();
        if lens.0[outer..] == *positions {
            return Ok(reduced);
        }
        lens.0.splice(outer.., positions.iter().cloned());
        let (starts, steps) = (vec![Dim::from(0); rank], vec![1; rank]);
        graph.add(Slice { starts, steps, lens }, &[reduced], loc)
    }
}

impl Operator for Pool {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        let elem = check_elems(self, inputs, if self.average { float } else { number })?;
        require!(x.rank() >= 3, "pool C1: the operand has rank 3 or more, not {} as {x}", x.rank());
        self.windows().check(x.rank() - 2, "pool C2")?;
        let mut shape = x.shape.0[..2].to_vec();
        for (axis, size) in x.shape.0[2..].iter().enumerate() {
            shape.push(self.positions(cx, axis, size)?);
        }
        Ok(vec![Type::new(elem, Shape(shape))])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let result = self.infer(&mut InferCx::new(&Default::default()), &[x.ty()]).map_err(|e| EvalError::new(e.to_string()))?.remove(0);
        let sizes = result.shape.as_fixed().expect("sizes of tensors are known");
        let (spatial, positions) = (&x.sizes()[2..], &sizes[2..]);
        let (area, count): (usize, usize) = (spatial.iter().product(), positions.iter().product());
        let kind = if self.average { ReduceKind::Sum } else { ReduceKind::Max };
        let computed = if x.elem().is_float() { Elem::F64 } else { x.elem() };
        let y = Tensor::build(x.elem(), &sizes, |i| {
            let position = unravel(i % count, positions);
            let met = self.windows().taps(&position, spatial);
            let elements = met.iter().map(|&(at, _)| x.get(i / count * area + at));
            let y = elements.fold(kind.identity(x.elem()), |y, e| kind.prim().eval(&[y, e], computed, computed));
            if !self.average {
                return y;
            }
            let counted = if self.count_pads { self.windows().within_border(&position, spatial) } else { met.len() };
            Scalar::Float(y.to_f64() / counted as f64)
        });
        Ok(vec![y])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decompose(graph, inputs[0], loc).map(|v| vec![v]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_lowers, assert_lowers_at, assert_refused, eval, f32s, tensor, ty};
    use super::*;
    use proptest::prelude::*;

    fn pool(average: bool, kernel: i64) -> Pool {
        Pool {
            average,
            kernel: vec![kernel],
            strides: vec![1],
            pads_before: vec![0],
            pads_after: vec![0],
            dilations: vec![1],
            count_pads: false,
            ceil: false,
        }
    }

    #[test]
    fn small_signals() {
        let x = f32s(&[1, 1, 5], &[1.0, 4.0, 2.0, -3.0, 5.0]);
        let at = |op: Pool| eval(op, std::slice::from_ref(&x)).to_f64s();
        assert_eq!(at(pool(false, 2)), [4.0, 4.0, 2.0, 5.0]);
        assert_eq!(at(Pool { strides: vec![2], ..pool(false, 2) }), [4.0, 2.0]);
        assert_eq!(at(Pool { strides: vec![2], ceil: true, ..pool(false, 2) }), [4.0, 2.0, 5.0]);
        assert_eq!(at(Pool { dilations: vec![2], ..pool(false, 2) }), [2.0, 4.0, 5.0]);
        assert_eq!(at(pool(true, 2)), [2.5, 3.0, -0.5, 1.0]);
        let padded = Pool { pads_before: vec![1], strides: vec![3], ..pool(true, 2) };
        assert_eq!(at(padded.clone()), [1.0, -0.5]);
        assert_eq!(at(Pool { count_pads: true, ..padded }), [0.5, -0.5]);
        // The last window has one element; what is beyond the end does not count, pads or not.
        let beyond = Pool { strides: vec![2], ceil: true, count_pads: true, ..pool(true, 2) };
        assert_eq!(at(beyond), [2.5, -0.5, 5.0]);
    }

    #[test]
    fn windows_start_before_the_end() {
        // Rounded up there would be three windows; the third would start in the pads behind.
        let op = Pool { strides: vec![3], pads_after: vec![1], ceil: true, ..pool(false, 2) };
        let x = f32s(&[1, 1, 6], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(eval(op.clone(), std::slice::from_ref(&x)).to_f64s(), [2.0, 5.0]);
        assert_lowers(op, &[x]);
    }

    #[test]
    fn constraints() {
        assert_refused(pool(true, 2), &[ty(Elem::I32, "n 2 8")], "pool C1");
        assert_refused(pool(false, 2), &[ty(Elem::Bool, "n 2 8")], "pool C1");
        assert_refused(pool(false, 2), &[ty(Elem::F32, "n 2")], "pool C1");
        assert_refused(pool(false, 2), &[ty(Elem::F32, "n 2 8 8")], "pool C2");
        assert_refused(pool(false, 0), &[ty(Elem::F32, "n 2 8")], "pool C2");
        assert_refused(pool(false, 9), &[ty(Elem::F32, "n 2 8")], "pool C3");
    }

    /// Attributes and an operand that they accept.
    fn cases() -> impl Strategy<Value = (Pool, Tensor)> {
        let spatial = |axes| {
            let list = |range| prop::collection::vec(range, axes);
            (list(0i64..7), list(1i64..4), list(1i64..4), list(1i64..3), list(0i64..3), list(0i64..3))
        };
        let rest = (any::<[bool; 3]>(), [0usize..3, 0..3], any::<u64>());
        let all = ((1usize..3).prop_flat_map(spatial), rest).prop_map(|(spatial, ([average, count_pads, ceil], outer, seed))| {
            let (size, kernel, strides, dilations, pads_before, pads_after) = spatial;
            let sizes: Vec<usize> = outer.into_iter().chain(size.iter().map(|&n| n as usize)).collect();
            let op = Pool { average, kernel, strides, pads_before, pads_after, dilations, count_pads, ceil };
            (op, tensor(Elem::F32, &sizes, seed))
        });
        all.prop_filter("no window fits", |(op, x)| op.infer(&mut InferCx::new(&Default::default()), &[x.ty()]).is_ok())
    }

    proptest! {
        #[test]
        fn lowers((op, x) in cases()) {
            assert_lowers(op, &[x]);
        }

        #[test]
        fn lowers_with_symbols((op, x) in cases().prop_filter("symbols are not 0", |(_, x)| !x.is_empty())) {
            let names = ["n", "c", "h", "w"];
            let types = [ty(Elem::F32, &names[..x.rank()].join(" "))];
            let symbols: Vec<(&str, i64)> = names.into_iter().zip(x.sizes().iter().map(|&n| n as i64)).collect();
            assert_lowers_at(op, &types, &symbols, &[x]);
        }
    }

    #[test]
    fn maxima_of_integers() {
        let op = Pool { pads_before: vec![1], ..pool(false, 2) };
        let x = Tensor::of(&[1, 1, 3], vec![-5i8, -7, 3]);
        assert_eq!(eval(op.clone(), std::slice::from_ref(&x)).to_i64s().unwrap(), [-5, -5, 3]);
        assert_lowers(op, &[x]);
    }
}
