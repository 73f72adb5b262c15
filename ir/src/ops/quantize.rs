//! `quantize`: quantization to integers.

use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::Bindings;
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
}
