//! `reshape`: another shape for the same elements.

use super::support::{check_movable, eval_shape};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Traits, Way};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::{Shape, Type};

operator! {
    /// Gives the elements another shape, their row-major order unchanged.
    ///
    /// C1. The numbers of elements are equal.
    pub struct Reshape("reshape", 1..=1) {
        /// The new shape.
        shape: Shape,
    }
}

impl Operator for Reshape {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_movable(x, "reshape")?;
        let [from, to] = [&x.shape, &self.shape].map(|s| s.elements().simplify(cx.symbols()));
        cx.equal(&from, &to, &format!("reshape C1: numbers of elements of {x} and {}", self.shape))?;
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let sizes = eval_shape(&self.shape, bindings)?;
        Ok(vec![inputs[0].reshaped(&sizes).map_err(|e| EvalError::new(format!("reshape C1: {e}")))?])
    }

    fn traits(&self) -> Traits {
        Traits::RESHAPES
    }

    fn ways(&self) -> &'static [Way] {
        &[&[(0, Mapped::Affine)]]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::types::Elem;

    #[test]
    fn elements_keep_their_order() {
        let x = Tensor::of(&[2, 3], vec![1i32, 2, 3, 4, 5, 6]);
        let y = eval(Reshape { shape: Shape::fixed(&[3, 1, 2]) }, &[x]);
        assert_eq!(y, Tensor::of(&[3, 1, 2], vec![1i32, 2, 3, 4, 5, 6]));
        let empty = eval(Reshape { shape: Shape::fixed(&[0, 7]) }, &[tensor(Elem::F16, &[2, 0], 1)]);
        assert_eq!(empty.sizes(), [0, 7]);
    }

    #[test]
    fn symbolic_counts_are_equal_as_polynomials_or_checked() {
        let reshape = |shape: &str| Reshape { shape: ty(Elem::F32, shape).shape };
        let heads = infer(reshape("b s 12 64"), &[ty(Elem::F32, "b s 768")]);
        assert_eq!(heads, ("f32[b, s, 12, 64]".into(), vec![]));
        let open = infer(reshape("6 2"), &[ty(Elem::F32, "n 4")]);
        assert_eq!(open, ("f32[6, 2]".into(), vec!["4*n = 12".into()]));
        let empty = infer(reshape("0"), &[ty(Elem::F32, "n 4")]);
        assert_eq!(empty, ("f32[0]".into(), vec!["4*n = 0".into()]));
    }

    #[test]
    fn constraints() {
        let to = |sizes: &[i64]| Reshape { shape: Shape::fixed(sizes) };
        assert_refused(to(&[7]), &[ty(Elem::F32, "2 3")], "reshape C1");
        assert_refused(to(&[0]), &[ty(Elem::F32, "2 3")], "reshape C1");
        assert_refused(to(&[-3]), &[ty(Elem::F32, "n 3")], "reshape C1");
        assert_refused(to(&[6]), &[per_axis(ty(Elem::I8, "2 3"), 0)], "reshape does not move");
    }
}
