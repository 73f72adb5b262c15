//! `iota`: positions along an axis.

use super::support::{eval_shape, number};
use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::Bindings;
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Shape, Type};

operator! {
    /// A tensor of the given shape whose elements are their index along an axis.
    ///
    /// C1. The axis is below the rank.
    /// C2. The element type is a number. An index that it cannot hold wraps (integers) or is rounded (floats).
    pub struct Iota("iota", 0..=0) {
        /// Element type of the result, a number.
        elem: Elem,
        /// Shape of the result.
        shape: Shape,
        /// The axis that is counted.
        axis: usize,
    }
}

impl Operator for Iota {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        require!(self.axis < self.shape.rank(), "iota C1: axis {} of {}", self.axis, self.shape);
        require!(number(self.elem), "iota C2: {} is not a number", self.elem);
        Ok(vec![Type::new(self.elem, self.shape.clone())])
    }

    fn eval(&self, bindings: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let sizes = eval_shape(&self.shape, bindings)?;
        let inner: usize = sizes[self.axis + 1..].iter().product();
        Ok(vec![Tensor::build(self.elem, &sizes, |i| Scalar::Int((i / inner % sizes[self.axis]) as i128))])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn elements_are_indices_along_the_axis() {
        let iota = |elem, axis| eval(Iota { elem, shape: Shape::fixed(&[2, 3]), axis }, &[]);
        assert_eq!(iota(Elem::I64, 1), Tensor::of(&[2, 3], vec![0i64, 1, 2, 0, 1, 2]));
        assert_eq!(iota(Elem::F32, 0), Tensor::of(&[2, 3], vec![0f32, 0.0, 0.0, 1.0, 1.0, 1.0]));
        let empty = eval(Iota { elem: Elem::U8, shape: Shape::fixed(&[0, 2]), axis: 1 }, &[]);
        assert!(empty.is_empty());
        assert_eq!(infer(Iota { elem: Elem::I32, shape: ty(Elem::I32, "n").shape, axis: 0 }, &[]).0, "i32[n]");
    }

    #[test]
    fn constraints() {
        assert_refused(Iota { elem: Elem::I64, shape: Shape::fixed(&[2]), axis: 1 }, &[], "iota C1");
        assert_refused(Iota { elem: Elem::Bool, shape: Shape::fixed(&[2]), axis: 0 }, &[], "iota C2");
    }
}
