//! `pool`: pooling.

use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;
use super::{EvalError, InferCx, InferError, Operator};

operator! {
    /// Maximum or average of windows over the axes behind batch and channels. Lowers to `pad`, `window` and `reduce`.
    ///
    /// C1. The operand is a float (or an integer for the maximum) of rank 3 or more.
    /// C2. Lists have one entry per spatial axis; sizes, strides and dilations are positive, pads not negative.
    pub struct Pool("pool", 1..=1) {
        /// Whether the average is wanted, not the maximum.
        average: bool,
        /// Window size per spatial axis.
        kernel: Vec<i64>,
        /// Step per spatial axis.
        strides: Vec<i64>,
        /// Elements added before every spatial axis.
        pads_before: Vec<i64>,
        /// Elements added behind every spatial axis.
        pads_after: Vec<i64>,
        /// Distance of taps per spatial axis.
        dilations: Vec<i64>,
        /// Whether added elements count in an average.
        count_pads: bool,
        /// Whether the last window may reach beyond the end.
        ceil: bool,
    }
}

impl Operator for Pool {
    fn infer(&self, _: &mut InferCx, _: &[Type]) -> Result<Vec<Type>, InferError> {
        Err(InferError::new("pool: inference is to be written"))
    }

    fn eval(&self, _: &Bindings, _: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        Err(EvalError::new("pool: evaluation is to be written"))
    }
}
