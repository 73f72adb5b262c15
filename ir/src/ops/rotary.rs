//! `rotary`: rotary position embedding.

use super::support::{Broadcast, broadcasts_to, check_elems, divides, float};
use super::{Add, Concat, EvalError, InferCx, InferError, Mul, Operator, Reshape, Slice, Sub};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::tensor::{Scalar, Tensor};
use crate::types::Type;

operator! {
    /// Rotates pairs of channels by position (Su et al. 2021): for halves `a, b` of the last axis the
    /// result is `a cos - b sin, b cos + a sin`; pairs are `(i, i + d/2)`, or with `interleaved`
    /// `(2i, 2i + 1)`. Lowers to slices, products and `concat`.
    ///
    /// C1. Operands are `x[…, d]` with even `d`, `cos` and `sin`, floats of one type.
    /// C2. `cos` and `sin` broadcast to `x` with `d/2` as the last size.
    pub struct Rotary("rotary", 3..=3) {
        /// Whether pairs are neighbours.
        interleaved: bool,
    }
}

impl Rotary {
    fn decompose(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let shape = graph.ty(inputs[0]).shape.clone();
        let last = shape.rank() - 1;
        let half = shape[last].floor_div(&Dim::from(2));
        let mut halves = shape.clone();
        halves.0[last] = half.clone();
        let part = |graph: &mut Graph, n: i64| {
            if !self.interleaved {
                let slice = Slice::of_axis(graph.ty(inputs[0]), last, half.clone() * Dim::from(n), half.clone());
                return graph.add(slice, &[inputs[0]], loc);
            }
            let mut pairs = halves.clone();
            pairs.0.push(Dim::from(2));
            let pairs = graph.add(Reshape { shape: pairs }, &[inputs[0]], loc)?;
            let slice = Slice::of_axis(graph.ty(pairs), last + 1, Dim::from(n), Dim::from(1));
            let part = graph.add(slice, &[pairs], loc)?;
            graph.add(Reshape { shape: halves.clone() }, &[part], loc)
        };
        let (a, b) = (part(graph, 0)?, part(graph, 1)?);
        let (cos, sin) = (inputs[1], inputs[2]);
        let mut product = |x, y| graph.add(Mul {}, &[x, y], loc);
        let (a_cos, b_sin, b_cos, a_sin) = (product(a, cos)?, product(b, sin)?, product(b, cos)?, product(a, sin)?);
        let mut parts = [graph.add(Sub {}, &[a_cos, b_sin], loc)?, graph.add(Add {}, &[b_cos, a_sin], loc)?];
        if !self.interleaved {
            return graph.add(Concat { axis: last }, &parts, loc);
        }
        halves.0.push(Dim::from(1));
        for p in &mut parts {
            *p = graph.add(Reshape { shape: halves.clone() }, &[*p], loc)?;
        }
        let pairs = graph.add(Concat { axis: last + 1 }, &parts, loc)?;
        graph.add(Reshape { shape }, &[pairs], loc)
    }
}

impl Operator for Rotary {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        check_elems(self, inputs, float)?;
        let mut halves = inputs[0].shape.clone();
        let Some(last) = halves.0.last_mut() else {
            return Err(InferError::new("rotary C1: x has an axis of channels, not the shape []"));
        };
        *last = divides(cx, &Dim::from(2), last, "rotary C1: number of channels")?;
        broadcasts_to(cx, &inputs[1].shape, &halves, "rotary C2: cos")?;
        broadcasts_to(cx, &inputs[2].shape, &halves, "rotary C2: sin")?;
        Ok(vec![inputs[0].clone()])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, cos, sin) = (&inputs[0], &inputs[1], &inputs[2]);
        let mut halves = x.sizes().to_vec();
        let d = halves.pop().expect("x has rank 1 or more");
        halves.push(d / 2);
        let (at_cos, at_sin) = (Broadcast::new(cos.sizes(), &halves), Broadcast::new(sin.sizes(), &halves));
        let y = Tensor::build(x.elem(), x.sizes(), |i| {
            let (row, channel) = (i / d, i % d);
            let (pair, second) = if self.interleaved { (channel / 2, channel % 2 == 1) } else { (channel % (d / 2), channel >= d / 2) };
            let (at_a, at_b) = if self.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + d / 2) };
            let (a, b) = (x.get(row * d + at_a).to_f64(), x.get(row * d + at_b).to_f64());
            let angle = row * (d / 2) + pair;
            let (cos, sin) = (cos.get(at_cos.offset(angle)).to_f64(), sin.get(at_sin.offset(angle)).to_f64());
            Scalar::Float(if second { b * cos + a * sin } else { a * cos - b * sin })
        });
        Ok(vec![y])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decompose(graph, inputs, loc).map(|v| vec![v]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_lowers, assert_lowers_at, assert_refused, eval, f32s, sizes, tensor, ty};
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    #[test]
    fn pairs_of_halves_and_of_neighbours() {
        let x = f32s(&[1, 4], &[1.0, 2.0, 3.0, 4.0]);
        let (cos, sin) = (f32s(&[2], &[0.0, 1.0]), f32s(&[2], &[1.0, 0.0]));
        let at = |interleaved| eval(Rotary { interleaved }, &[x.clone(), cos.clone(), sin.clone()]).to_f64s();
        assert_eq!(at(false), [-3.0, 2.0, 1.0, 4.0]);
        assert_eq!(at(true), [-2.0, 1.0, 3.0, 4.0]);
    }

    #[test]
    fn constraints() {
        let f = |s| ty(Elem::F32, s);
        let op = Rotary { interleaved: false };
        assert_refused(op.clone(), &[f("n 3"), f("1"), f("1")], "rotary C1");
        assert_refused(op.clone(), &[f(""), f(""), f("")], "rotary C1");
        assert_refused(op.clone(), &[f("n 4"), f("2"), ty(Elem::F16, "2")], "rotary C1");
        assert_refused(op.clone(), &[f("n 4"), f("4"), f("2")], "rotary C2: cos");
        assert_refused(op, &[f("n 4"), f("2"), f("1 n 2")], "rotary C2: sin");
    }

    proptest! {
        #[test]
        fn lowers(mut sizes in sizes(1..4), shared: bool, interleaved: bool, seed: u64) {
            let mut halves = sizes.clone();
            *sizes.last_mut().unwrap() *= 2;
            if shared {
                halves[0] = if halves.len() > 1 { 1 } else { halves[0] };
            }
            let operands = [tensor(Elem::F32, &sizes, seed), tensor(Elem::F32, &halves, seed ^ 1), tensor(Elem::F32, &halves, seed ^ 2)];
            assert_lowers(Rotary { interleaved }, &operands);
        }
    }

    #[test]
    fn lowers_with_symbols() {
        let types = [ty(Elem::F32, "b h s 4"), ty(Elem::F32, "s 2"), ty(Elem::F32, "s 2")];
        let operands = [tensor(Elem::F32, &[2, 3, 5, 4], 1), tensor(Elem::F32, &[5, 2], 2), tensor(Elem::F32, &[5, 2], 3)];
        for interleaved in [false, true] {
            assert_lowers_at(Rotary { interleaved }, &types, &[("b", 2), ("h", 3), ("s", 5)], &operands);
        }
    }
}
