//! `quantize_static`: quantization with one scale that is known beforehand.

use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::attr::Float;
use crate::dim::Bindings;
use crate::quant::{Granularity, RowRange, Scheme};
use crate::scalar::{Prim, ScalarId, ScalarProgram};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};

operator! {
    /// Static quantization to 8 bits: `clamp(round_half_even(x * inverse) + zero_point, min, max)` with
    /// `inverse = 1 / scale`, everything rounded to f32, into which other types are converted first. NaN becomes
    /// the zero point. This is [`RowRange::quantize`] of [`RowRange::fixed`]; the results are the same bits wherever it is
    /// computed.
    ///
    /// With a zero point of 0 the scheme is symmetric and stores -127..=127, with another one it stores -128..=127. What takes the
    /// stored values as a quantized operand takes scale and zero point too, as constants: see [`QuantizeStatic::parameters`].
    ///
    /// C1. The operand is a float that is not quantized.
    /// C2. `scale` is a number of f32; it and its reciprocal are positive and normal.
    /// C3. `zero_point` is in -128..=127.
    pub struct QuantizeStatic("quantize_static", 1..=1) {
        /// What a stored step is worth.
        scale: Float,
        /// The stored value of 0.
        zero_point: i64,
    }
}

impl QuantizeStatic {
    /// How the stored values stand for numbers.
    pub fn scheme(&self) -> Scheme {
        let symmetric = self.zero_point == 0;
        let min = if symmetric { -127 } else { -128 };
        Scheme { storage: Elem::I8, min, max: 127, granularity: Granularity::Tensor, symmetric, scale: Elem::F32 }
    }

    /// What every value is multiplied by and where 0 lies.
    pub fn range(&self) -> RowRange {
        RowRange::fixed(self.scale.get() as f32, self.zero_point as i32)
    }

    /// The constants that belong to the stored values: the scale (`f32`, no axes) and, unless symmetric, the zero point (`i8`).
    pub fn parameters(&self) -> Vec<Tensor> {
        let scale = Tensor::of(&[], vec![self.scale.get() as f32]);
        let zero_point = (!self.scheme().symmetric).then(|| Tensor::of(&[], vec![self.zero_point as i8]));
        std::iter::once(scale).chain(zero_point).collect()
    }
}

impl Operator for QuantizeStatic {
    fn infer(&self, _: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let (x, scale) = (&inputs[0], self.scale.get());
        require!(x.elem.is_float() && x.quant.is_none(), "quantize_static C1: {x} is not a float, or is quantized");
        let useful = |x: f32| x.is_normal() && x > 0.0;
        require!(
            f64::from(scale as f32) == scale && useful(scale as f32) && useful(1.0 / scale as f32),
            "quantize_static C2: the scale {scale:?} or its reciprocal is not a positive normal number of f32"
        );
        let zero_point = self.zero_point;
        require!((-128..=127).contains(&zero_point), "quantize_static C3: the zero point {zero_point} is not in -128..=127");
        Ok(vec![Type { elem: Elem::I8, shape: x.shape.clone(), quant: Some(self.scheme()) }])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (range, Scheme { min, max, .. }) = (self.range(), self.scheme());
        let code = |x: Scalar| Scalar::Int(range.quantize(x.to_f64() as f32, min.into(), max.into()).into());
        Ok(vec![Tensor::build(Elem::I8, inputs[0].sizes(), |i| code(inputs[0].get(i)))])
    }

    fn scalar(&self, p: &mut ScalarProgram, args: &[ScalarId]) -> Option<ScalarId> {
        let (RowRange { inverse, zero_point, .. }, Scheme { min, max, .. }) = (self.range(), self.scheme());
        let bound = |stored: i16| f64::from(i32::from(stored) - zero_point);
        let x = p.cast(args[0], Elem::F32);
        let scaled = p.with(Prim::Mul, x, inverse.into());
        let rounded = p.unary(Prim::RoundEven, scaled);
        // Bounded before it is converted, so that nothing overflows; the conversion makes NaN 0.
        let low = p.with(Prim::Max, rounded, bound(min));
        let bounded = p.with(Prim::Min, low, bound(max));
        let steps = p.cast(bounded, Elem::I32);
        let zero_point = p.int(zero_point.into(), Elem::I32);
        let code = if self.zero_point == 0 { steps } else { p.binary(Prim::Add, steps, zero_point) };
        Some(p.cast(code, Elem::I8))
    }

    fn traits(&self) -> Traits {
        Traits::ELEMENTWISE
    }
}

#[cfg(test)]
mod tests {
    use super::super::support::eval_elementwise;
    use super::super::testing::*;
    use super::*;
    use proptest::prelude::*;

    fn op(scale: f64, zero_point: i64) -> QuantizeStatic {
        QuantizeStatic { scale: Float::from(scale), zero_point }
    }

    #[test]
    fn values_are_rounded_shifted_and_clamped() {
        let x = f32s(&[8], &[0.25, 0.75, -0.26, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        let of = |zero_point| eval(op(0.5, zero_point), std::slice::from_ref(&x)).to_i64s().unwrap();
        assert_eq!(of(0), [0, 2, -1, 127, -127, 127, -127, 0]);
        assert_eq!(of(-3), [-3, -1, -4, 127, -128, 127, -128, -3]);
        assert_eq!(of(127), [127, 127, 126, 127, -128, 127, -128, 127]);
    }

    #[test]
    fn results_have_types() {
        let of = |op: QuantizeStatic| infer(op, &[ty(Elem::F16, "n 3")]).0;
        assert_eq!(of(op(0.5, 0)), "i8[n, 3] quant<[i8, [-127, 127], [tensor], symmetric, f32]>");
        assert_eq!(of(op(0.5, 9)), "i8[n, 3] quant<[i8, [-128, 127], [tensor], asymmetric, f32]>");
    }

    #[test]
    fn parameters_are_those_that_the_scheme_demands() {
        assert_eq!(op(0.5, 0).parameters(), [f32s(&[], &[0.5])]);
        assert_eq!(op(0.5, -7).parameters(), [f32s(&[], &[0.5]), Tensor::of(&[], vec![-7i8])]);
    }

    #[test]
    fn constraints() {
        let refused = |op: QuantizeStatic, t, c| assert_refused(op, &[t], c);
        refused(op(0.5, 0), ty(Elem::I8, "2"), "quantize_static C1");
        for scale in [0.0, -1.0, 0.1, f64::NAN, f64::INFINITY, 1e-39f32.into(), f32::MAX.into()] {
            refused(op(scale, 0), ty(Elem::F32, "2"), "quantize_static C2");
        }
        refused(op(0.5, 128), ty(Elem::F32, "2"), "quantize_static C3");
        refused(op(0.5, -129), ty(Elem::F32, "2"), "quantize_static C3");
    }

    proptest! {
        /// The scalar program gives the same integers.
        #[test]
        fn programs_agree(exponent in -125i32..126, mantissa in 1.0f32..2.0, zero_point in -128i64..128, bits in prop::collection::vec(any::<u32>(), 24)) {
            let scale = mantissa * 2f32.powi(exponent);
            let op = op(scale.into(), zero_point);
            let near = |b: u32| (b as f32 / 1e7 - 200.0) * scale;
            let x = f32s(&[48], &bits.iter().flat_map(|&b| [f32::from_bits(b), near(b)]).collect::<Vec<_>>());
            for elem in [Elem::F32, Elem::F16, Elem::F64] {
                let x = Tensor::build(elem, x.sizes(), |i| x.get(i));
                prop_assert_eq!(eval_elementwise(&op, std::slice::from_ref(&x)).unwrap(), op.eval(&Bindings::new(), &[x]).unwrap());
            }
        }
    }
}
