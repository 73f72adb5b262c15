//! `transpose`: permutation of axes.

use super::support::{strided, strides};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Traits, Way};
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

    fn ways(&self) -> &'static [Way] {
        &[&[(0, Mapped::Affine)]]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    #[test]
    fn rows_become_columns() {
        let x = Tensor::of(&[2, 3], vec![1u8, 2, 3, 4, 5, 6]);
        assert_eq!(eval(Transpose { perm: vec![1, 0] }, &[x]), Tensor::of(&[3, 2], vec![1u8, 4, 2, 5, 3, 6]));
    }

    #[test]
    fn the_axis_of_a_scheme_moves_along() {
        let transposed = Transpose { perm: vec![1, 2, 0] };
        let (y, _) = infer(transposed, &[per_axis(ty(Elem::I8, "4 2 n"), 0)]);
        assert_eq!(y, per_axis(ty(Elem::I8, "2 n 4"), 2).to_string());
    }

    #[test]
    fn constraints() {
        for perm in [vec![0], vec![0, 0], vec![0, 2], vec![0, 1, 2]] {
            assert_refused(Transpose { perm }, &[ty(Elem::F32, "2 3")], "transpose C1");
        }
    }

    proptest! {
        #[test]
        fn the_inverse_undoes_it(sizes in sizes(0..5), perm in Just([0usize, 1, 2, 3]).prop_shuffle(), seed: u64) {
            let perm: Vec<usize> = perm.into_iter().filter(|&p| p < sizes.len()).collect();
            let op = Transpose { perm };
            for (elem, _) in Elem::ALL {
                let x = tensor(elem, &sizes, seed);
                prop_assert_eq!(eval(op.inverse(), &[eval(op.clone(), std::slice::from_ref(&x))]), x);
            }
        }
    }
}
