//! `cast`: conversion of the element type.

use super::support::{any, eval_elementwise, infer_elementwise};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Traits, Way};
use crate::dim::Bindings;
use crate::scalar::{ScalarId, ScalarProgram};
use crate::tensor::Tensor;
use crate::types::{Elem, Type};

operator! {
    /// Conversion to another element type: integers wrap, floats to integers truncate and saturate
    /// (NaN gives 0), anything to `bool` is `x != 0`. Of a quantized operand it converts the stored
    /// integers: the result is plain.
    pub struct Cast("cast", 1..=1) {
        /// Element type of the result.
        to: Elem,
    }
}

impl Operator for Cast {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let stored = inputs[0].with_elem(inputs[0].elem);
        infer_elementwise(self, cx, &[stored], 0, any)
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        eval_elementwise(self, inputs)
    }

    fn scalar(&self, p: &mut ScalarProgram, args: &[ScalarId]) -> Option<ScalarId> {
        Some(p.cast(args[0], self.to))
    }

    fn traits(&self) -> Traits {
        Traits::ELEMENTWISE
    }

    fn ways(&self) -> &'static [Way] {
        if self.to.is_float() { &[&[(0, Mapped::Affine)]] } else { &[] }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn the_scheme_stays_behind() {
        assert_eq!(infer(Cast { to: Elem::I32 }, &[per_axis(ty(Elem::I8, "2 n"), 0)]).0, "i32[2, n]");
        assert_eq!(infer(Cast { to: Elem::I8 }, &[per_axis(ty(Elem::I8, "2 n"), 0)]).0, "i8[2, n]");
    }

    #[test]
    fn integers_wrap_and_floats_saturate() {
        let cast = |to, x: f32| eval(Cast { to }, &[f32s(&[], &[x])]).get(0).to_i128();
        assert_eq!([cast(Elem::I8, -1.9), cast(Elem::I8, 300.0), cast(Elem::U8, f32::NAN), cast(Elem::Bool, 0.1)], [-1, 127, 0, 1]);
        assert_eq!(eval(Cast { to: Elem::U8 }, &[Tensor::of(&[], vec![-1i64])]), Tensor::of(&[], vec![255u8]));
    }
}
