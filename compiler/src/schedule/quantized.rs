//! Products with quantized weights as kernels take them.

use super::contraction::QuantizedRight;
use super::view::View;
use super::{Layout, Scheduler, Source, Unfit};
use crate::kernel::gemm::{self, PANEL};
use tfc_ir::ops::QuantizedMatmul;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape};

/// Whether there is a kernel for an operator if its weights are constants: symmetric activations of 8
/// bits, symmetric signed weights, a depth that is known and not 0, and groups of whole units.
pub(super) fn has_kernel(op: &QuantizedMatmul, k: Option<i64>) -> bool {
    let Some(k) = k.and_then(|k| usize::try_from(k).ok()).filter(|&k| k > 0) else { return false };
    let group = op.group(k);
    op.activations.is_some_and(|a| a.symmetric)
        && op.weights.symmetric
        && matches!(op.weights.storage, Elem::I4 | Elem::I8)
        && (group == k || group.is_multiple_of(4))
}

impl Scheduler {
    /// Packs the weights and scales of a product.
    pub(super) fn quantized_right(&mut self, op: &QuantizedMatmul, operands: &[Source]) -> Result<QuantizedRight, Unfit> {
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
