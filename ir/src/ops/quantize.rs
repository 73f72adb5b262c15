//! `quantize`: quantization to integers.

use super::support::{cast, constant};
use super::{Add, Div, EvalError, Expand, InferCx, InferError, Max, Min, Operator, Reshape, Round, Slice};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::quant::{self, Granularity, Scheme};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Shape, Type};

operator! {
    /// `clamp(round_half_even(x / scale) + zero_point)` as `quant::quantize` defines it.
    ///
    /// C1. Operands are `x` (a float), `scale` (the type that the scheme names) and, unless symmetric, `zero_point` (the storage type).
    /// C2. `scale` and `zero_point` have the shape that the granularity demands: none for the tensor, the size of the axis, or
    /// that of `x` with the axis counted in blocks.
    /// C3. The scheme stores a part of the range of an integer of at most 16 bits, its scales are `f32`, `f16` or `bf16`, and `x` has its axis.
    pub struct Quantize("quantize", 2..=3) {
        /// Stored type and range, and what shares a scale.
        scheme: Scheme,
    }
}

/// Refuses schemes that no integer arithmetic can carry out, and scales and zero points of other
/// types or shapes than the scheme demands for `x`. `parameters` are the operands behind `x`.
pub(super) fn check_parameters(cx: &mut InferCx, x: &Type, scheme: &Scheme, parameters: &[Type], mnemonic: &str) -> Result<(), InferError> {
    let Scheme { storage, min, max, granularity, symmetric, scale } = *scheme;
    let range = storage.int_range();
    let in_range = range.is_some_and(|(lo, hi)| lo <= min.into() && min <= max && i128::from(max) <= hi);
    // Differences of stored values and zero points are formed in i32.
    let bits = if symmetric { 32 } else { 16 };
    require!(
        storage != Elem::Bool && in_range && storage.bits() <= bits && storage != Elem::U32,
        "{mnemonic} C3: {scheme} does not store a part of the range of an integer of at most {bits} bits"
    );
    require!(matches!(scale, Elem::F32 | Elem::F16 | Elem::Bf16), "{mnemonic} C3: scales of {scheme} are f32, f16 or bf16");
    let expected = parameter_shape(&x.shape, granularity)
        .ok_or_else(|| InferError::new(format!("{mnemonic} C3: {scheme} names an axis that {x} does not have, or has empty blocks")))?;
    let count = if symmetric { 1 } else { 2 };
    require!(parameters.len() == count, "{mnemonic} C1: {scheme} takes {} operands, not {}", count + 1, parameters.len() + 1);
    for (t, (name, elem)) in parameters.iter().zip([("scale", scale), ("zero point", storage)]) {
        let expected = Type::new(elem, expected.clone());
        let ok = t.elem == elem && t.quant.is_none() && t.rank() == expected.rank();
        require!(ok, "{mnemonic} C2: the {name} of {x} must be {expected}, not {t}");
        for axis in 0..t.rank() {
            cx.equal(&t.shape[axis], &expected.shape[axis], &format!("{mnemonic} C2: axis {axis} of the {name} {t} and of {expected}"))?;
        }
    }
    Ok(())
}

/// The shape of scales and zero points of a quantized tensor of this shape; `None` where the
/// granularity does not fit it.
pub(super) fn parameter_shape(x: &Shape, granularity: Granularity) -> Option<Shape> {
    match granularity {
        Granularity::Tensor => Some(Shape::default()),
        Granularity::Axis { axis } => Some(Shape(vec![x.0.get(axis as usize)?.clone()])),
        Granularity::Blocks { axis, size } => {
            let mut shape = x.clone();
            let n = shape.0.get_mut(axis as usize).filter(|_| size > 0)?;
            *n = n.ceil_div(size.into());
            Some(shape)
        }
    }
}

/// The row-major position of the scale of the element at position `i` of a tensor of `sizes`.
pub(super) fn parameter_position(i: usize, sizes: &[usize], granularity: Granularity) -> usize {
    let inner = |axis: u32| sizes[axis as usize + 1..].iter().product::<usize>();
    match granularity {
        Granularity::Tensor => 0,
        Granularity::Axis { axis } => i / inner(axis) % sizes[axis as usize],
        Granularity::Blocks { axis, size } => {
            let (n, inner, size) = (sizes[axis as usize], inner(axis), size as usize);
            let (outer, at, behind) = (i / inner / n, i / inner % n, i % inner);
            (outer * n.div_ceil(size) + at / size) * inner + behind
        }
    }
}

/// Appends what makes a scale or zero point broadcast to a quantized tensor of shape `x`: a step of
/// decompositions.
pub(super) fn align(graph: &mut Graph, v: Value, x: &Shape, granularity: Granularity, loc: &Loc) -> Result<Value, InferError> {
    match granularity {
        Granularity::Tensor => Ok(v),
        Granularity::Axis { axis } if axis as usize + 1 == x.rank() => Ok(v),
        Granularity::Axis { axis } => {
            let mut shape = vec![Dim::from(1); x.rank() - axis as usize];
            shape[0] = x[axis as usize].clone();
            graph.add(Reshape { shape: Shape(shape) }, &[v], loc)
        }
        Granularity::Blocks { axis, size } => {
            let (axis, size) = (axis as usize, Dim::from(i64::from(size)));
            let blocks = graph.ty(v).shape[axis].clone();
            if blocks.is(1) || size.is(1) {
                return Ok(v);
            }
            // [.., blocks, ..] -> [.., blocks, 1, ..] -> [.., blocks, size, ..] -> [.., blocks * size, ..] -> [.., n, ..]
            let mut shape = graph.ty(v).shape.clone();
            shape.0.insert(axis + 1, Dim::from(1));
            let split = graph.add(Reshape { shape: shape.clone() }, &[v], loc)?;
            shape.0[axis + 1] = size.clone();
            let repeated = graph.add(Expand { shape: shape.clone() }, &[split], loc)?;
            shape.0[axis] = blocks * size;
            shape.0.remove(axis + 1);
            let joined = graph.add(Reshape { shape }, &[repeated], loc)?;
            if graph.ty(joined).shape[axis] == x[axis] {
                return Ok(joined);
            }
            let cut = Slice::of_axis(graph.ty(joined), axis, Dim::from(0), x[axis].clone());
            graph.add(cut, &[joined], loc)
        }
    }
}

impl Quantize {
    fn decomposition(&self, g: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let Scheme { storage, min, max, granularity, .. } = self.scheme;
        let shape = g.ty(inputs[0]).shape.clone();
        let x = cast(g, inputs[0], Elem::F32, loc)?;
        let scale = cast(g, inputs[1], Elem::F32, loc)?;
        let scale = align(g, scale, &shape, granularity, loc)?;
        let quotient = g.add(Div {}, &[x, scale], loc)?;
        let rounded = g.add(Round {}, &[quotient], loc)?;
        let clamp = |g: &mut Graph, v, elem, lo, hi| {
            let (lo, hi) = (constant(g, elem, lo), constant(g, elem, hi));
            let v = g.add(Max {}, &[v, lo], loc)?;
            g.add(Min {}, &[v, hi], loc)
        };
        // As in `quant::quantize`: what the conversion takes exactly, and where the cast makes NaN 0.
        let bounded = clamp(g, rounded, Elem::F32, -65536.0, 65536.0)?;
        let mut q = cast(g, bounded, Elem::I32, loc)?;
        if let Some(&zero_point) = inputs.get(2) {
            let zero_point = cast(g, zero_point, Elem::I32, loc)?;
            let zero_point = align(g, zero_point, &shape, granularity, loc)?;
            q = g.add(Add {}, &[q, zero_point], loc)?;
        }
        let q = clamp(g, q, Elem::I32, min.into(), max.into())?;
        cast(g, q, storage, loc)
    }
}

impl Operator for Quantize {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        require!(x.elem.is_float(), "quantize C1: {x} is not a float");
        require!(self.scheme.storage.bits() <= 16, "quantize C3: {} is wider than its range", self.scheme);
        check_parameters(cx, x, &self.scheme, &inputs[1..], "quantize")?;
        Ok(vec![Type { elem: self.scheme.storage, shape: x.shape.clone(), quant: Some(self.scheme) }])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, scale, zero_point) = (&inputs[0], &inputs[1], inputs.get(2));
        let Scheme { storage, min, max, granularity, .. } = self.scheme;
        let y = Tensor::build(storage, x.sizes(), |i| {
            let p = parameter_position(i, x.sizes(), granularity);
            let zero = zero_point.map_or(0, |z| z.get(p).to_i128() as i32);
            let (x, scale) = (x.get(i).to_f64() as f32, scale.get(p).to_f64() as f32);
            Scalar::Int(quant::quantize(x, scale, zero, min.into(), max.into()).into())
        });
        Ok(vec![y])
    }

    /// The result is plain: the stored integers without the scheme.
    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decomposition(graph, inputs, loc).map(|v| vec![v]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use proptest::prelude::*;

    fn scheme(granularity: Granularity, symmetric: bool) -> Scheme {
        Scheme { storage: Elem::I8, min: -127, max: 127, granularity, symmetric, scale: Elem::F32 }
    }

    #[test]
    fn every_element_has_its_scale() {
        let x = f32s(&[2, 3], &[0.5, 1.5, 1000.0, 0.5, 1.5, f32::NAN]);
        let of = |granularity, sizes: &[usize], scales: &[f32], zeros: &[i8]| {
            let op = Quantize { scheme: scheme(granularity, false) };
            eval(op, &[x.clone(), f32s(sizes, scales), Tensor::of(sizes, zeros.to_vec())]).to_i64s().unwrap()
        };
        assert_eq!(of(Granularity::Tensor, &[], &[1.0], &[3]), [3, 5, 127, 3, 5, 3]);
        assert_eq!(of(Granularity::Axis { axis: 0 }, &[2], &[1.0, 0.5], &[0, 1]), [0, 2, 127, 2, 4, 1]);
        assert_eq!(of(Granularity::Axis { axis: 1 }, &[3], &[1.0, 0.5, 10.0], &[0, 1, 2]), [0, 4, 102, 0, 4, 2]);
        let blocks = Granularity::Blocks { axis: 1, size: 2 };
        assert_eq!(of(blocks, &[2, 2], &[0.5, 10.0, 1.0, 1.0], &[0, 0, 9, 8]), [1, 3, 100, 9, 11, 8]);
    }

    #[test]
    fn shapes_of_scales() {
        let blocks = Quantize { scheme: scheme(Granularity::Blocks { axis: 1, size: 4 }, true) };
        let (y, checks) = infer(blocks, &[ty(Elem::F32, "n k"), ty(Elem::F32, "n b")]);
        assert_eq!(y, format!("i8[n, k] quant<{}>", scheme(Granularity::Blocks { axis: 1, size: 4 }, true)));
        assert_eq!(checks, ["b = div(k+3, 4)"]);
    }

    #[test]
    fn constraints() {
        let refused = |scheme, types: &[Type], c| assert_refused(Quantize { scheme }, types, c);
        let (f, i8s) = (|s| ty(Elem::F32, s), |s| ty(Elem::I8, s));
        let tensor = scheme(Granularity::Tensor, false);
        refused(tensor, &[i8s("3"), f(""), i8s("")], "quantize C1");
        refused(tensor, &[f("3"), f("")], "quantize C1");
        refused(scheme(Granularity::Tensor, true), &[f("3"), f(""), i8s("")], "quantize C1");
        refused(tensor, &[f("3"), ty(Elem::F16, ""), i8s("")], "quantize C2");
        refused(tensor, &[f("3"), f("1"), i8s("")], "quantize C2");
        refused(tensor, &[f("3"), f(""), ty(Elem::U8, "")], "quantize C2");
        refused(scheme(Granularity::Axis { axis: 0 }, true), &[f("3"), f("4")], "quantize C2");
        refused(scheme(Granularity::Axis { axis: 1 }, true), &[f("3"), f("3")], "quantize C3");
        refused(scheme(Granularity::Blocks { axis: 0, size: 0 }, true), &[f("3"), f("3")], "quantize C3");
        for wrong in [
            Scheme { storage: Elem::F16, ..tensor },
            Scheme { storage: Elem::I32, ..tensor },
            Scheme { storage: Elem::I4, ..tensor },
            Scheme { storage: Elem::U8, ..tensor },
            Scheme { min: 1, max: 0, ..tensor },
            Scheme { scale: Elem::F64, ..tensor },
        ] {
            refused(wrong, &[f("3"), ty(wrong.scale, ""), ty(wrong.storage, "")], "quantize C3");
        }
    }

    proptest! {
        #[test]
        fn lowers(sizes in sizes(1..4), axis in 0u32..3, block in 1u32..4, symmetric: bool, seed: u64) {
            let axis = axis % sizes.len() as u32;
            let granularities = [Granularity::Tensor, Granularity::Axis { axis }, Granularity::Blocks { axis, size: block }];
            for (granularity, elem) in granularities.into_iter().zip([Elem::F32, Elem::F16, Elem::F64]) {
                let scheme = Scheme { storage: Elem::U4, min: 1, max: 14, granularity, symmetric, scale: Elem::F16 };
                let x = tensor(elem, &sizes, seed);
                let of = parameter_shape(&x.ty().shape, granularity).unwrap().as_fixed().unwrap();
                let mut inputs = vec![x, tensor(Elem::F16, &of, seed)];
                inputs.extend((!symmetric).then(|| tensor(Elem::U4, &of, seed)));
                // Some scales are 0: the quotients are infinite or NaN.
                let op = Quantize { scheme };
                let expected = op.eval(&Bindings::new(), &inputs).unwrap();
                let mut g = Graph::new("lowered");
                let operands: Vec<Value> = inputs.iter().map(|t| g.add_input("x", t.ty())).collect();
                let y = op.lower(&mut g, &operands, &Loc::default()).unwrap().unwrap()[0];
                g.add_output("y", y);
                prop_assert_eq!(g.evaluate(&inputs, &Bindings::new()).unwrap(), expected);
            }
        }
    }
}
