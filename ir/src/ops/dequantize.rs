//! `dequantize`: real values of quantized elements.

use super::quantize::{align, check_parameters, parameter_position};
use super::support::cast;
use super::{Cast, EvalError, InferCx, InferError, Mul, Operator, Sub};
use crate::dim::Bindings;
use crate::graph::{Graph, Loc, Value};
use crate::quant::{self, Scheme};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};

operator! {
    /// `scale * (x - zero_point)` as `quant::dequantize` defines it.
    ///
    /// C1. Operands are `x` (quantized by the scheme, or plain elements of its storage type), `scale` (the type that the scheme
    /// names) and, unless symmetric, `zero_point` (the storage type).
    /// C2. `scale` and `zero_point` have the shape that the granularity demands, as for `quantize`.
    /// C3. The scheme stores a part of the range of an integer of at most 16 bits, or 32 if symmetric, its scales are `f32`,
    /// `f16` or `bf16`, and `x` has its axis.
    /// C4. The result is a float.
    pub struct Dequantize("dequantize", 2..=3) {
        /// How `x` is stored.
        scheme: Scheme,
        /// Element type of the result, a float.
        elem: Elem,
    }
}

impl Dequantize {
    fn decomposition(&self, g: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let (shape, granularity) = (g.ty(inputs[0]).shape.clone(), self.scheme.granularity);
        // The cast also leaves the scheme behind.
        let mut q = g.add(Cast { to: Elem::I32 }, &inputs[..1], loc)?;
        if let Some(&zero_point) = inputs.get(2) {
            let zero_point = cast(g, zero_point, Elem::I32, loc)?;
            let zero_point = align(g, zero_point, &shape, granularity, loc)?;
            q = g.add(Sub {}, &[q, zero_point], loc)?;
        }
        let q = cast(g, q, Elem::F32, loc)?;
        let scale = cast(g, inputs[1], Elem::F32, loc)?;
        let scale = align(g, scale, &shape, granularity, loc)?;
        let y = g.add(Mul {}, &[scale, q], loc)?;
        cast(g, y, self.elem, loc)
    }
}

impl Operator for Dequantize {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        require!(x.elem == self.scheme.storage, "dequantize C1: {x} is not stored as {}", self.scheme);
        require!(x.quant.is_none_or(|q| q == self.scheme), "dequantize C1: {x} is not quantized as {}", self.scheme);
        require!(self.elem.is_float(), "dequantize C4: the result must be a float, not {}", self.elem);
        check_parameters(cx, x, &self.scheme, &inputs[1..], "dequantize")?;
        Ok(vec![x.with_elem(self.elem)])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, scale, zero_point) = (&inputs[0], &inputs[1], inputs.get(2));
        let y = Tensor::build(self.elem, x.sizes(), |i| {
            let p = parameter_position(i, x.sizes(), self.scheme.granularity);
            let zero = zero_point.map_or(0, |z| z.get(p).to_i128() as i32);
            Scalar::Float(quant::dequantize(x.get(i).to_i128() as i32, scale.get(p).to_f64() as f32, zero).into())
        });
        Ok(vec![y])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decomposition(graph, inputs, loc).map(|v| vec![v]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Quantize;
    use super::super::quantize::parameter_shape;
    use super::super::testing::*;
    use super::*;
    use crate::quant::Granularity;
    use proptest::prelude::*;

    fn scheme(granularity: Granularity, symmetric: bool) -> Scheme {
        Scheme { storage: Elem::I4, min: -8, max: 7, granularity, symmetric, scale: Elem::F32 }
    }

    #[test]
    fn every_element_has_its_scale() {
        let x = Tensor::build(Elem::I4, &[2, 3], |i| Scalar::Int([-8, 7, 0, 1, 2, 3][i]));
        let of = |granularity, sizes: &[usize], scales: &[f32]| {
            eval(Dequantize { scheme: scheme(granularity, true), elem: Elem::F32 }, &[x.clone(), f32s(sizes, scales)]).to_f64s()
        };
        assert_eq!(of(Granularity::Tensor, &[], &[0.5]), [-4.0, 3.5, 0.0, 0.5, 1.0, 1.5]);
        assert_eq!(of(Granularity::Axis { axis: 0 }, &[2], &[0.5, 2.0]), [-4.0, 3.5, 0.0, 2.0, 4.0, 6.0]);
        assert_eq!(of(Granularity::Axis { axis: 1 }, &[3], &[1.0, 2.0, 3.0]), [-8.0, 14.0, 0.0, 1.0, 4.0, 9.0]);
        let blocks = Granularity::Blocks { axis: 1, size: 2 };
        assert_eq!(of(blocks, &[2, 2], &[1.0, 2.0, 3.0, 4.0]), [-8.0, 7.0, 0.0, 3.0, 6.0, 12.0]);
    }

    #[test]
    fn zero_points_are_subtracted_in_integers() {
        let op =
            Dequantize { scheme: Scheme { storage: Elem::U8, min: 0, max: 255, ..scheme(Granularity::Tensor, false) }, elem: Elem::F16 };
        let y = eval(op, &[Tensor::of(&[2], vec![0u8, 255]), f32s(&[], &[0.5]), Tensor::of(&[], vec![128u8])]);
        assert_eq!((y.elem(), y.to_f64s()), (Elem::F16, vec![-64.0, 63.5]));
    }

    #[test]
    fn constraints() {
        let refused = |elem, types: &[Type], c| assert_refused(Dequantize { scheme: scheme(Granularity::Tensor, true), elem }, types, c);
        let (x, scale) = (ty(Elem::I4, "3"), ty(Elem::F32, ""));
        refused(Elem::F32, &[ty(Elem::I8, "3"), scale.clone()], "dequantize C1");
        refused(Elem::F32, &[per_axis(x.clone(), 0), scale.clone()], "dequantize C1");
        refused(Elem::F32, &[x.clone(), scale.clone(), ty(Elem::I4, "")], "dequantize C1");
        refused(Elem::F32, &[x.clone(), ty(Elem::F32, "3")], "dequantize C2");
        refused(Elem::I32, &[x.clone(), scale.clone()], "dequantize C4");
        let wrong = Scheme { scale: Elem::I8, ..scheme(Granularity::Tensor, true) };
        assert_refused(Dequantize { scheme: wrong, elem: Elem::F32 }, &[x, ty(Elem::I8, "")], "dequantize C3");
    }

    #[test]
    fn a_quantized_operand_lowers_too() {
        let scheme = scheme(Granularity::Axis { axis: 0 }, true);
        let mut g = Graph::new("pair");
        let (x, scale) = (f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), f32s(&[2], &[0.5, 1.0]));
        let operands = [g.add_input("x", x.ty()), g.add_input("scale", scale.ty())];
        let q = g.add(Quantize { scheme }, &operands, &Loc::default()).unwrap();
        let y = Dequantize { scheme, elem: Elem::F32 }.lower(&mut g, &[q, operands[1]], &Loc::default()).unwrap().unwrap()[0];
        g.add_output("y", y);
        assert_eq!(g.evaluate(&[x.clone(), scale], &Bindings::new()).unwrap(), [x]);
    }

    proptest! {
        #[test]
        fn lowers(sizes in sizes(1..4), axis in 0u32..3, block in 1u32..4, symmetric: bool, seed: u64) {
            let axis = axis % sizes.len() as u32;
            let granularities = [Granularity::Tensor, Granularity::Axis { axis }, Granularity::Blocks { axis, size: block }];
            for (granularity, elem) in granularities.into_iter().zip([Elem::F32, Elem::F16, Elem::F64]) {
                let x = tensor(Elem::I4, &sizes, seed);
                let of = parameter_shape(&x.ty().shape, granularity).unwrap().as_fixed().unwrap();
                let mut inputs = vec![x, tensor(Elem::F32, &of, seed)];
                inputs.extend((!symmetric).then(|| tensor(Elem::I4, &of, !seed)));
                assert_lowers(Dequantize { scheme: scheme(granularity, symmetric), elem }, &inputs);
            }
        }
    }

    #[test]
    fn lowers_with_symbols() {
        let op = Dequantize { scheme: scheme(Granularity::Blocks { axis: 1, size: 2 }, true), elem: Elem::F32 };
        let types =
            [ty(Elem::I4, "n k"), Type::new(Elem::F32, parameter_shape(&ty(Elem::I4, "n k").shape, op.scheme.granularity).unwrap())];
        assert_lowers_at(op, &types, &[("n", 2), ("k", 5)], &[tensor(Elem::I4, &[2, 5], 3), tensor(Elem::F32, &[2, 3], 4)]);
    }
}
