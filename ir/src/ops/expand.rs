//! `expand`: repetition along axes.

use super::support::{broadcasts_to, check_movable, eval_shape, strided, strides};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Traits, Way};
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::{Shape, Type};

operator! {
    /// Broadcasts the operand to a shape.
    ///
    /// C1. The operand broadcasts to `shape`, and `shape` is the result: no size 1 meets a larger one of the operand.
    pub struct Expand("expand", 1..=1) {
        /// The shape of the result.
        shape: Shape,
    }
}

impl Operator for Expand {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_movable(x, "expand")?;
        broadcasts_to(cx, &x.shape, &self.shape, "expand C1")?;
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let to = eval_shape(&self.shape, bindings)?;
        let missing = to.len() - x.rank();
        let mut axes: Vec<_> = to.iter().map(|&n| (n, 0)).collect();
        for (i, (&n, &stride)) in x.sizes().iter().zip(&strides(x.sizes())).enumerate() {
            if n != 1 {
                axes[missing + i].1 = stride as isize;
                if n != to[missing + i] {
                    return Err(EvalError::new(format!("expand C1: {:?} does not broadcast to {to:?}", x.sizes())));
                }
            }
        }
        Ok(vec![strided(x, 0, &axes)])
    }

    fn traits(&self) -> Traits {
        Traits::MOVES
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
    fn sizes_1_and_missing_axes_repeat() {
        let expand = |sizes: &[i64]| Expand { shape: Shape::fixed(sizes) };
        let x = Tensor::of(&[2, 1], vec![1i16, 2]);
        assert_eq!(eval(expand(&[2, 2, 3]), std::slice::from_ref(&x)), Tensor::of(&[2, 2, 3], vec![1i16, 1, 1, 2, 2, 2, 1, 1, 1, 2, 2, 2]));
        assert_eq!(eval(expand(&[2, 0]), &[x]).sizes(), [2, 0]);
        let nibble = Tensor::build(Elem::U4, &[], |_| crate::tensor::Scalar::Int(9));
        assert_eq!(eval(expand(&[3]), &[nibble]).bytes().as_ref(), [0x99, 0x09]);
    }

    #[test]
    fn symbolic_sizes_are_taken_to_be_equal() {
        let expand = Expand { shape: ty(Elem::F32, "b n").shape };
        assert_eq!(infer(expand, &[ty(Elem::F32, "m")]), ("f32[b, n]".into(), vec!["m = n".into()]));
    }

    #[test]
    fn constraints() {
        let expand = Expand { shape: Shape::fixed(&[2, 1]) };
        for shape in ["3 1", "2 2", "1 2 1"] {
            assert_refused(expand.clone(), &[ty(Elem::F32, shape)], "expand C1");
        }
    }
}
