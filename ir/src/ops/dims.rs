//! `dims`: dimensions as data.

use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::{Bindings, Dim};
use crate::tensor::Tensor;
use crate::types::{Elem, Type};

operator! {
    /// The values of dimension expressions, an `i64` tensor: how sizes that are not folded away reach arithmetic.
    ///
    /// C1. As many values as the shape has elements.
    pub struct Dims("dims", 0..=0) {
        /// The elements in row-major order.
        values: Vec<Dim>,
        /// Shape of the result.
        shape: Vec<usize>,
    }
}

impl Operator for Dims {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        let elements = self.shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
        require!(elements == Some(self.values.len()), "dims C1: {} values for the shape {:?}", self.values.len(), self.shape);
        Ok(vec![Type::new(Elem::I64, self.shape.iter().map(|&n| n.into()).collect())])
    }

    fn eval(&self, bindings: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let value = |d: &Dim| d.eval(bindings).ok_or_else(|| EvalError::new(format!("{d} has no value")));
        let values: Vec<i64> = self.values.iter().map(value).collect::<Result<_, _>>()?;
        Ok(vec![Tensor::of(&self.shape, values)])
    }
}
