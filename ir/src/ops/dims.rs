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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::dim::Symbol;

    #[test]
    fn values_are_those_of_the_symbols() {
        let n = Dim::symbol("n");
        let op = Dims { values: vec![n.clone(), n * Dim::from(2)], shape: vec![2, 1] };
        assert_eq!(infer(op.clone(), &[]).0, "i64[2, 1]");
        let bindings = Bindings::from([(Symbol::new("n"), 21)]);
        assert_eq!(op.eval(&bindings, &[]).unwrap(), [Tensor::of(&[2, 1], vec![21i64, 42])]);
        assert_eq!(op.eval(&Bindings::new(), &[]).unwrap_err().to_string(), "n has no value");
    }

    #[test]
    fn constraints() {
        assert_refused(Dims { values: vec![Dim::from(1)], shape: vec![2] }, &[], "dims C1");
        assert_refused(Dims { values: vec![], shape: vec![usize::MAX, 2] }, &[], "dims C1");
    }
}
