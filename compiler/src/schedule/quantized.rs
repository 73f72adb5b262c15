//! Products with quantized weights as kernels take them.

use super::contraction::{DequantizedRight, QuantizedRight, RightOperand};
use super::view::View;
use super::{Layout, Scheduler, Source, Unfit};
use crate::kernel::gemm::{self, PANEL};
use tfc_ir::ops::QuantizedMatmul;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape};

/// Whether there is a kernel for an operator if its weights are constants: f32 activations, or symmetric
/// activations of 8 bits with symmetric signed weights in groups of whole units; and a depth that is known and not 0.
pub(super) fn has_kernel(op: &QuantizedMatmul, k: Option<i64>) -> bool {
    let Some(k) = k.and_then(|k| usize::try_from(k).ok()).filter(|&k| k > 0) else { return false };
    let group = op.group(k);
    op.activations.is_none_or(|a| {
        a.symmetric && op.weights.symmetric && matches!(op.weights.storage, Elem::I4 | Elem::I8) && (group == k || group.is_multiple_of(4))
    })
}

/// Half of the range of a type without a sign, by which its values become signed ones; 0 for others.
fn middle(elem: Elem) -> i32 {
    if elem.is_signed_int() { 0 } else { 1 << (elem.bits() - 1) }
}

/// The values of integers of 4 or 8 bits as signed ones.
fn signed_values(t: &Tensor) -> Vec<i32> {
    let middle = middle(t.elem());
    t.iter().map(|x| x.to_i128() as i32 - middle).collect()
}

impl Scheduler {
    /// Packs the right operand of a product.
    pub(super) fn quantized_operand(&mut self, op: &QuantizedMatmul, operands: &[Source]) -> Result<RightOperand, Unfit> {
        match op.activations {
            None => Ok(RightOperand::Dequantized(self.dequantized_right(op, operands)?)),
            Some(_) => Ok(RightOperand::Quantized(self.quantized_right(op, operands)?)),
        }
    }

    /// What every group has for every column, in panels.
    fn columns(&mut self, t: &Tensor, groups: usize, n: usize, layout: Layout) -> View {
        let columns = n.div_ceil(PANEL) * PANEL;
        let elem = if t.elem() == Elem::F32 { Elem::F32 } else { Elem::I32 };
        let packed = self.weight(t.content_hash(), layout, || match elem {
            Elem::F32 => {
                let values = t.values::<f32>();
                let packed = gemm::pack_scales(groups, n, |g, j| values[g * n + j]);
                Tensor::of(&[packed.len()], packed).bytes().clone()
            }
            _ => {
                let values = signed_values(t);
                let packed = gemm::pack_scales(groups, n, |g, j| values[g * n + j]);
                Tensor::of(&[packed.len()], packed).bytes().clone()
            }
        });
        View::contiguous(packed, elem, Shape::fixed(&[(groups * columns) as i64]))
    }

    /// Weights, scales and zero points for rows of f32.
    fn dequantized_right(&mut self, op: &QuantizedMatmul, operands: &[Source]) -> Result<DequantizedRight, Unfit> {
        let o = op.operands(operands).ok_or(Unfit)?;
        let (Source::Const(w), Source::Const(scales)) = (o.w, o.w_scale) else { return Err(Unfit) };
        let (k, n) = (w.sizes()[0], w.sizes()[1]);
        let bits = w.elem().bits() as u8;
        let group = op.group(k);
        let groups = k.div_ceil(group);
        let zeros = match o.w_zero {
            Some(Source::Const(zeros)) => Some(zeros.clone()),
            Some(Source::View(_)) => return Err(Unfit),
            None if middle(w.elem()) == 0 => None,
            // The zero point is 0.
            None => Some(Tensor::build(w.elem(), scales.sizes(), |_| Scalar::Int(0))),
        };
        let weights = self.weight(w.content_hash(), Layout::WeightRows, || {
            let values = signed_values(w);
            gemm::pack_weight_rows(bits, k, n, |i, j| values[i * n + j]).into()
        });
        let weights = View::contiguous(weights, Elem::U8, Shape::fixed(&[gemm::packed_rows_len(bits, k, n) as i64]));
        let scales = self.columns(scales, groups, n, Layout::Scales(groups));
        let differ = zeros.filter(|z| signed_values(z).iter().any(|&z| z != 0));
        let zeros = differ.map(|z| self.columns(&z, groups, n, Layout::Zeros(groups)));
        let format = gemm::Dequantized { bits, group: group as i64, groups: groups as i64, scales: 0, zeros: None };
        Ok(DequantizedRight { format, weights, scales, zeros })
    }

    /// Packs the weights and scales of a product.
    fn quantized_right(&mut self, op: &QuantizedMatmul, operands: &[Source]) -> Result<QuantizedRight, Unfit> {
        let o = op.operands(operands).ok_or(Unfit)?;
        let (Source::Const(w), Source::Const(scales), Some(row_scale)) = (o.w, o.w_scale, o.x_scale) else { return Err(Unfit) };
        let (k, n) = (w.sizes()[0], w.sizes()[1]);
        if !has_kernel(op, Some(k as i64)) {
            return Err(Unfit);
        }
        let bits = w.elem().bits() as u8;
        let group = op.group(k);
        let groups = k.div_ceil(group);
        let weights = self.weight(w.content_hash(), Layout::Weights, || {
            let values: Vec<i32> = w.iter().map(|x| x.to_i128() as i32).collect();
            gemm::pack_weights(bits, k, n, |i, j| values[i * n + j]).into()
        });
        let packed_scales = self.weight(scales.content_hash(), Layout::Scales(groups), || {
            let values = scales.values::<f32>();
            let packed = gemm::pack_scales(groups, n, |g, j| values[g * n + j]);
            Tensor::of(&[packed.len()], packed).bytes().clone()
        });
        let row_scale = self.view(row_scale);
        let columns = n.div_ceil(PANEL) * PANEL;
        Ok(QuantizedRight {
            format: gemm::Quantized { bits, group: group as i64, groups: groups as i64, scales: 0, sums: 0 },
            weights: View::contiguous(weights, Elem::U8, Shape::fixed(&[gemm::packed_weights_len(bits, k, n) as i64])),
            scales: View::contiguous(packed_scales, Elem::F32, Shape::fixed(&[(groups * columns) as i64])),
            row_scale,
        })
    }
}
