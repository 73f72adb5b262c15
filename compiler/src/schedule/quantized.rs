//! Products with quantized weights as kernels take them.

use super::contraction::{DequantizedRight, QuantizedRight, RightOperand};
use super::left::LeftRows;
use super::view::View;
use super::{Layout, Scheduler, Source, Unfit, movement};
use crate::kernel::gemm::{self, RowZeros};
use tfc_ir::dim::Dim;
use tfc_ir::graph::Loc;
use tfc_ir::ops::QuantizedMatmul;
use tfc_ir::ops::quantized_matmul::Operands;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape, Type};

/// Bytes of a unit of packed rows.
const UNIT: usize = 4;

/// Constant weights. Those of types without a sign, and their zero points, are less by half of the range.
struct Weights {
    bits: u8,
    k: usize,
    n: usize,
    group: usize,
    values: Vec<i32>,
    scales: Vec<f32>,
    /// For every group and column.
    zeros: Vec<i32>,
}

impl Weights {
    fn of(op: &QuantizedMatmul, o: &Operands<Source>) -> Result<Weights, Unfit> {
        let (Source::Const(w), Source::Const(scales)) = (o.w, o.w_scale) else { return Err(Unfit) };
        let (k, n) = (w.sizes()[0], w.sizes()[1]);
        let middle = if w.elem().is_signed_int() { 0 } else { 1 << (w.elem().bits() - 1) };
        let signed = |t: &Tensor| -> Vec<i32> { t.iter().map(|x| x.to_i128() as i32 - middle).collect() };
        let zeros = match o.w_zero {
            Some(Source::Const(zeros)) => signed(zeros),
            Some(Source::View(_)) => return Err(Unfit),
            None => vec![-middle; scales.len()],
        };
        let scales = scales.values::<f32>().to_vec();
        Ok(Weights { bits: w.elem().bits() as u8, k, n, group: op.group(k), values: signed(w), scales, zeros })
    }

    fn groups(&self) -> usize {
        self.k.div_ceil(self.group)
    }

    /// The zero point of all groups and columns, if it is one.
    fn one_zero(&self) -> Option<i32> {
        let first = self.zeros.first().copied().unwrap_or(0);
        self.zeros.iter().all(|&z| z == first).then_some(first)
    }

    /// `Σ_k (w - zero)` for every group and column.
    fn sums(&self) -> Vec<i32> {
        let n = self.n;
        let mut sums = vec![0; self.groups() * n];
        for (i, &w) in self.values.iter().enumerate() {
            let at = i / n / self.group * n + i % n;
            sums[at] += w - self.zeros[at];
        }
        sums
    }
}

impl Scheduler {
    /// Packs the right operand of a product.
    pub(super) fn quantized_operand(&mut self, op: &QuantizedMatmul, operands: &[Source]) -> Result<RightOperand, Unfit> {
        let o = op.operands(operands).ok_or(Unfit)?;
        let w = Weights::of(op, &o)?;
        match o.x_scale {
            None => Ok(RightOperand::Dequantized(self.dequantized_right(&w, &o))),
            Some(row_scale) => Ok(RightOperand::Quantized(Box::new(self.quantized_right(&w, row_scale, &o)))),
        }
    }

    /// What columns have, in panels: scales and other words for every group and column.
    fn columns(&mut self, w: &Weights, others: &[Vec<i32>]) -> View {
        let packed = gemm::pack_columns(w.groups(), w.n, 1 + others.len(), |g, j, word| match word.checked_sub(1) {
            None => w.scales[g * w.n + j].to_bits(),
            Some(other) => others[other][g * w.n + j] as u32,
        });
        let t = Tensor::of(&[packed.len()], packed.into_iter().map(f32::from_bits).collect());
        let buffer = self.weight(t.content_hash(), Layout::Columns, || t.bytes().clone());
        View::contiguous(buffer, Elem::F32, t.ty().shape)
    }

    /// Packed weights; `packed` packs those that it is given a reader of.
    fn packed_weights(&mut self, o: &Operands<Source>, layout: Layout, packed: impl FnOnce() -> Vec<u8>, bytes: usize) -> View {
        let Source::Const(w) = o.w else { unreachable!("weights are constants") };
        let buffer = self.weight(w.content_hash(), layout, || packed().into());
        View::contiguous(buffer, Elem::U8, Shape::fixed(&[bytes as i64]))
    }

    /// Weights for rows of f32.
    fn dequantized_right(&mut self, w: &Weights, o: &Operands<Source>) -> DequantizedRight {
        let pack = || gemm::pack_weight_rows(w.bits, w.k, w.n, |i, j| w.values[i * w.n + j]);
        let weights = self.packed_weights(o, Layout::WeightRows, pack, gemm::packed_rows_len(w.bits, w.k, w.n));
        let zeros = w.one_zero() != Some(0);
        let columns = if zeros { self.columns(w, std::slice::from_ref(&w.zeros)) } else { self.columns(w, &[]) };
        let (group, groups) = (w.group as i64, w.groups() as i64);
        DequantizedRight { format: gemm::Dequantized { bits: w.bits, group, groups, columns: 0, zeros }, weights, columns }
    }

    /// Weights for rows of bytes, whose groups are filled up to whole units.
    fn quantized_right(&mut self, w: &Weights, row_scale: &Source, o: &Operands<Source>) -> QuantizedRight {
        let padded = (w.groups() > 1 && !w.group.is_multiple_of(UNIT)).then_some(w.group);
        let group = if padded.is_some() { w.group.next_multiple_of(UNIT) } else { w.group };
        let k = (w.groups() - 1) * group + w.k - (w.groups() - 1) * w.group;
        let value = |i: usize, j: usize| {
            // What fills a group is multiplied by 0.
            let within = i % group;
            if within < w.group { w.values[(i / group * w.group + within) * w.n + j] } else { 0 }
        };
        let pack = || gemm::pack_weights(w.bits, k, w.n, value);
        let layout = Layout::Weights { padded };
        let weights = self.packed_weights(o, layout, pack, gemm::packed_weights_len(w.bits, k, w.n));
        let middle = 1 << (w.bits - 1);
        let mut others = vec![];
        let factor = match w.one_zero() {
            Some(zero) => -i64::from(zero + middle),
            None => {
                others.push(w.zeros.iter().map(|&z| -(z + middle)).collect());
                1
            }
        };
        let zeros = !others.is_empty();
        let mut row_zero = None;
        // Where some rows have a zero point, those of another site have 0, and both have one kernel.
        let of_site = self.zero_points && matches!(row_scale, Source::Const(_));
        let row_zeros = match (o.x_zero.map(one_value), o.x_zero) {
            (None | Some(Some(0)), _) if !of_site => RowZeros::None,
            (Some(None), Some(zero)) => {
                others.push(w.sums().iter().map(|s| -s).collect());
                row_zero = Some(self.view(zero));
                RowZeros::Each(0)
            }
            (known, _) => {
                let zero = known.flatten().unwrap_or(0);
                others.push(w.sums().iter().map(|s| s.wrapping_mul(-zero)).collect());
                RowZeros::Same
            }
        };
        let (group, groups) = (group as i64, w.groups() as i64);
        QuantizedRight {
            format: gemm::Quantized { bits: w.bits, group, groups, columns: 0, sums: 0, zeros, row_zeros },
            padded: padded.map(|group| group as i64),
            factor,
            weights,
            columns: self.columns(w, &others),
            rows: LeftRows::Bytes,
            row_scale: row_scale.clone(),
            row_zero,
        }
    }
}

impl Scheduler {
    /// Rows of bytes, every group of `group` of which is filled up with zeros to whole units; the last one ends as it does.
    pub(super) fn padded_groups(&mut self, rows: &View, group: i64, loc: &Loc) -> View {
        let axis = rows.shape.rank() - 1;
        let k = rows.shape[axis].as_const().expect("weights have known sizes");
        let (whole, padded) = ((k - 1) / group, (group + UNIT as i64 - 1) / UNIT as i64 * UNIT as i64);
        let mut shape = rows.shape.clone();
        shape.0[axis] = Dim::from(whole * padded + k - whole * group);
        let all = self.temporary(&Type::new(rows.elem, shape));
        self.fill(&all, 0.0, loc);
        // […, k] as […, groups, group].
        let groups = |view: &View, length: i64| {
            let mut v = view.clone();
            v.shape.0.splice(axis.., [whole, group].map(Dim::from));
            v.strides.insert(axis, view.strides[axis].clone() * Dim::from(length));
            v
        };
        self.copy(&groups(rows, group), &groups(&all, padded), loc);
        let last = |view: &View, length: i64| movement::part(view, axis, &Dim::from(whole * length), &Dim::from(k - whole * group));
        self.copy(&last(rows, group), &last(&all, padded), loc);
        all
    }
}

/// The value that all elements of a constant have.
fn one_value(source: &Source) -> Option<i32> {
    let Source::Const(t) = source else { return None };
    let first = t.iter().next()?.to_i128();
    t.iter().all(|x| x.to_i128() == first).then_some(first as i32)
}
