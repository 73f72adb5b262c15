//! Operands of 8 bits for attention, as f32: whole numbers, whose sums of products are exact.

use super::tile;
use super::{KernelBuilder, LANES, MEM};
use crate::kernel::Extent;
use crate::kernel::gemm::PANEL;
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32, F32X4, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use tfc_ir::quant::MIN_RANGE;

const F32_BYTES: i64 = 4;

/// Bytes of a unit of a panel, and of a row of an f32 panel.
const PANEL_ROW: i64 = PANEL as i64 * F32_BYTES;

/// 1.5 * 2^23: numbers of less than 2^22 are whole when it was added.
const SHIFT: f64 = 12_582_912.0;

/// `x` rounded to a whole number, half to even, for magnitudes below 2^22.
pub fn round(b: &mut KernelBuilder, x: Value) -> Value {
    let ty = b.ty(x);
    let shift = b.float_of(ty, SHIFT);
    let x = b.f.ins().fadd(x, shift);
    b.f.ins().fsub(x, shift)
}

/// Writes the `i8` of some units of a panel as rows of an f32 panel.
pub fn widen(b: &mut KernelBuilder, panel: Value, units: Value, to: Value) {
    let zero = b.int(0);
    let Some(unit) = b.open_loop(zero, units, 1) else { return };
    let offset = b.times(unit.index, Extent::Const(PANEL_ROW));
    let from = b.f.ins().iadd(panel, offset);
    let offset = b.times(unit.index, Extent::Const(4 * PANEL_ROW));
    let to = b.f.ins().iadd(to, offset);
    for column in (0..PANEL as i64).step_by(LANES) {
        let at = (column * F32_BYTES) as i32;
        let four = b.f.ins().load(I32X4, MEM, from, at);
        for k in 0..4 {
            let x = b.shl(four, 24 - 8 * k);
            let x = b.sar(x, 24);
            let x = b.f.ins().fcvt_from_sint(F32X4, x);
            b.f.ins().store(MEM, x, to, k as i32 * PANEL_ROW as i32 + at);
        }
    }
    b.close_loop(unit);
}

/// Rows of f32 in memory.
pub struct Rows {
    /// Address of the first element.
    pub at: Value,
    /// Number of rows.
    pub rows: Value,
    /// Distance of rows, in bytes.
    pub row_bytes: Value,
    /// Distance of the elements of a row, in elements.
    pub k_stride: Extent,
    /// Elements of a row.
    pub k: i64,
}

/// Writes every row rounded as `RowRange::symmetric` says, in f32 and contiguous, to `to`; and its scale to
/// `scales`, one f32 for each row.
pub fn quantize(b: &mut KernelBuilder, from: &Rows, to: Value, scales: Value) {
    let zero = b.int(0);
    let k = b.int(from.k);
    let Some(row) = b.open_loop(zero, from.rows, 1) else { return };
    let offset = b.f.ins().imul(row.index, from.row_bytes);
    let at = b.f.ins().iadd(from.at, offset);
    let element = |b: &mut KernelBuilder, i: Value| {
        let offset = b.times(i, from.k_stride);
        let offset = b.times(offset, Extent::Const(F32_BYTES));
        let p = b.f.ins().iadd(at, offset);
        b.f.ins().load(F32, MEM, p, 0)
    };
    let largest = b.f.declare_var(F32);
    let nothing = b.float_of(F32, 0.0);
    b.f.def_var(largest, nothing);
    if let Some(l) = b.open_loop(zero, k, 1) {
        let x = element(b, l.index);
        let x = b.f.ins().fabs(x);
        let so_far = b.f.use_var(largest);
        // A NaN wins.
        let larger = b.f.ins().fmax(so_far, x);
        b.f.def_var(largest, larger);
        b.close_loop(l);
    }
    let range = b.f.use_var(largest);
    let [steps, least, infinity] = [127.0, f64::from(MIN_RANGE), f64::INFINITY].map(|x| b.float_of(F32, x));
    let scale = b.f.ins().fdiv(range, steps);
    let offset = b.times(row.index, Extent::Const(F32_BYTES));
    let p = b.f.ins().iadd(scales, offset);
    b.f.ins().store(MEM, scale, p, 0);
    let inverse = b.f.ins().fdiv(steps, range);
    let enough = b.f.ins().fcmp(FloatCC::LessThanOrEqual, least, range);
    let finite = b.f.ins().fcmp(FloatCC::LessThan, range, infinity);
    let useful = b.f.ins().band(enough, finite);
    let inverse = b.f.ins().select(useful, inverse, nothing);
    let offset = b.times(row.index, Extent::Const(from.k * F32_BYTES));
    let to = b.f.ins().iadd(to, offset);
    if let Some(l) = b.open_loop(zero, k, 1) {
        let x = element(b, l.index);
        let x = b.f.ins().fmul(x, inverse);
        let x = round(b, x);
        let number = b.f.ins().fcmp(FloatCC::Equal, x, x);
        let x = b.f.ins().select(number, x, nothing);
        let offset = b.times(l.index, Extent::Const(F32_BYTES));
        let p = b.f.ins().iadd(to, offset);
        b.f.ins().store(MEM, x, p, 0);
        b.close_loop(l);
    }
    b.close_loop(row);
}

/// Multiplies as [`tile::multiply`] with panels of bytes: `right` is a unit of the first one, `panel_bytes`
/// their distance. `scratch` has room for an f32 panel of `units` units.
pub fn multiply(b: &mut KernelBuilder, s: &tile::Strips, units: Value, scratch: Value) {
    let zero = b.int(0);
    let end = b.f.ins().iadd_imm_s(s.columns, PANEL as i64 - 1);
    let Some(panel) = b.open_loop(zero, end, PANEL as i64) else { return };
    let number = b.f.ins().ushr_imm_u(panel.index, i64::from(PANEL.trailing_zeros()));
    let offset = b.f.ins().imul(number, s.panel_bytes);
    let from = b.f.ins().iadd(s.right, offset);
    widen(b, from, units, scratch);
    let columns = super::gemm::rest(b, s.columns, panel.index, PANEL as i64);
    let offset = b.times(panel.index, Extent::Const(F32_BYTES));
    let sums = b.f.ins().iadd(s.sums, offset);
    tile::multiply(b, &tile::Strips { right: scratch, columns, sums, ..*s });
    b.close_loop(panel);
}
