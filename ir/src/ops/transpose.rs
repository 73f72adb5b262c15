//! `transpose`: permutation of axes.

use super::support::{strided, strides};
use super::{EvalError, InferCx, InferError, Operator, Traits};
use crate::dim::Bindings;
use crate::quant::Granularity;
use crate::tensor::Tensor;
use crate::types::Type;

operator! {
    /// Axis `i` of the result is axis `perm[i]` of the operand. The axis of a quantization scheme moves along.
    ///
    /// C1. `perm` is a permutation of the axes.
    pub struct Transpose("transpose", 1..=1) {
        /// Which axis comes where.
        perm: Vec<usize>,
    }
}

impl Transpose {
    /// The permutation that undoes this one.
    pub fn inverse(&self) -> Transpose {
        let mut perm = vec![0; self.perm.len()];
        for (i, &p) in self.perm.iter().enumerate() {
            perm[p] = i;
        }
        Transpose { perm }
    }
}

impl Operator for Transpose {
    fn infer(&self, _: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        let mut sorted = self.perm.clone();
        sorted.sort_unstable();
        require!(
            sorted.iter().copied().eq(0..x.rank()),
            "transpose C1: {:?} is not a permutation of the {} axes of {x}",
            self.perm,
            x.rank()
        );
        let mut y = x.with_shape(self.perm.iter().map(|&p| x.shape[p].clone()).collect());
        if let Some(q) = &mut y.quant
            && let Granularity::Axis { axis } | Granularity::Blocks { axis, .. } = &mut q.granularity
        {
            *axis = self.inverse().perm[*axis as usize] as u32;
        }
        Ok(vec![y])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let strides = strides(x.sizes());
        let axes: Vec<_> = self.perm.iter().map(|&p| (x.sizes()[p], strides[p] as isize)).collect();
        Ok(vec![strided(x, 0, &axes)])
    }

    fn traits(&self) -> Traits {
        Traits::MOVES
    }
}
