//! Fused attention. A task packs its queries once; for every block of keys it computes scores, turns
//! them into weights relative to the largest score so far, and adds the weighted values to sums that it
//! rescales when a larger score appears. Everything but operands and result is on the stack.
//!
//! Operands of 8 bits are multiplied as f32, panel by panel ([`bytes`]).

use super::expr::{Evaluator, Lanes, Val};
use super::gemm::{ceil_div, div_rem, rest};
use super::tile::{self, Heights, Rows, Strips};
use super::{KernelBuilder, LANES, MEM, bytes, math};
use crate::kernel::Extent;
use crate::kernel::attention::{Attention, Bytes, Format, KEY_BLOCK, QUERY_TILE};
use crate::kernel::gemm::PANEL;
use crate::kernel::nest::{Access, Expr, ExprId, Reduction};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::types::{F32, F32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use cranelift_entity::{EntityRef, PrimaryMap};
use tfc_ir::ops::quantized_attention::WEIGHT_STEPS;
use tfc_ir::types::Elem;

const F32_BYTES: i64 = 4;
const BLOCK: i64 = KEY_BLOCK as i64;
const TILE: i64 = QUERY_TILE as i64;

/// Stack areas of a task.
struct Areas {
    /// Packed queries: all, or [`tile::DEPTH`] elements of them.
    queries: Value,
    /// Scores, then weights: a row of [`KEY_BLOCK`] per query.
    scores: Value,
    /// Packed weights.
    weights: Value,
    /// Sums of weighted values, rows of `pitch`.
    sums: Value,
    /// Largest score of every query.
    largest: Value,
    /// Sum of weights of every query.
    total: Value,
    pitch: i64,
    /// What operands of 8 bits need.
    rounded: Option<Rounded>,
}

/// Stack areas for operands of 8 bits.
struct Rounded {
    /// Queries as whole numbers.
    rows: Value,
    /// Their scales.
    scales: Value,
    /// A panel of keys or values as f32.
    panel: Value,
}

/// Where a task is.
struct Task {
    batch: Value,
    head: Value,
    /// The number of the matrices of keys and values.
    matrix: Value,
    first: Value,
    rows: Value,
}

impl Task {
    fn decode(b: &mut KernelBuilder, a: &Attention, number: Value) -> Task {
        let queries = b.extent(a.queries);
        let tiles = ceil_div(b, queries, TILE);
        let heads = b.extent(a.heads);
        let (number, tile) = div_rem(b, number, tiles);
        let (batch, head) = div_rem(b, number, heads);
        let first = b.times(tile, Extent::Const(TILE));
        let rows = rest(b, queries, first, TILE);
        let per_group = b.extent(a.heads_per_group);
        let (groups, _) = div_rem(b, heads, per_group);
        let (group, _) = div_rem(b, head, per_group);
        let before = b.f.ins().imul(batch, groups);
        let matrix = b.f.ins().iadd(before, group);
        Task { batch, head, matrix, first, rows }
    }

    fn index(&self, row: Value, last: Value) -> Vec<Value> {
        vec![self.batch, self.head, row, last]
    }
}

/// Emits attention.
pub fn emit(b: &mut KernelBuilder, a: &Attention) {
    let pitch = round_up(a.value_depth, LANES);
    let areas = Areas {
        queries: tile::scratch(b, a.depth.clamp(1, tile::DEPTH) * TILE),
        scores: tile::scratch(b, BLOCK * TILE),
        weights: tile::scratch(b, BLOCK * TILE),
        sums: tile::scratch(b, pitch * TILE),
        largest: tile::scratch(b, TILE),
        total: tile::scratch(b, TILE),
        pitch,
        rounded: matches!(a.format, Format::Bytes(_)).then(|| Rounded {
            rows: tile::scratch(b, a.depth * TILE),
            scales: tile::scratch(b, TILE),
            panel: tile::scratch(b, round_up(a.depth.clamp(BLOCK, tile::DEPTH), 4) * PANEL as i64),
        }),
    };
    let (begin, end) = (b.begin, b.end);
    let Some(task) = b.open_loop(begin, end, 1) else { return };
    b.reload_arguments();
    let t = Task::decode(b, a, task.index);
    let (zeros, lowest) = (b.float_of(F32X4, 0.0), b.float_of(F32X4, f64::NEG_INFINITY));
    let (rows, cells) = (b.int(TILE), b.int(TILE * pitch));
    tile::fill(b, areas.largest, rows, lowest);
    tile::fill(b, areas.total, rows, zeros);
    tile::fill(b, areas.sums, cells, zeros);
    blocks(b, a, &t, &areas);
    result(b, a, &t, &areas);
    b.close_loop(task);
}

/// The loop over blocks of keys.
fn blocks(b: &mut KernelBuilder, a: &Attention, t: &Task, s: &Areas) {
    let zero = b.int(0);
    let keys = b.extent(a.keys);
    let queries = b.extent(a.queries);
    // Query `i` sees the keys before `i + visible`.
    let visible = b.f.ins().isub(keys, queries);
    let visible = b.f.ins().iadd_imm_s(visible, 1);
    let seen = if a.causal {
        let last = b.f.ins().iadd(t.first, t.rows);
        let last = b.f.ins().iadd_imm_s(last, -1);
        let seen = b.f.ins().iadd(last, visible);
        let seen = b.f.ins().smin(seen, keys);
        b.f.ins().smax(seen, zero)
    } else {
        keys
    };
    let padded_keys = b.f.ins().iadd_imm_s(keys, PANEL as i64 - 1);
    let padded_keys = b.f.ins().band_imm_s(padded_keys, -(PANEL as i64));
    // Bytes of a key in the panels of keys, rows of a panel of values, and bytes of a key there.
    let (key_bytes, value_rows, row_bytes_of_k) = match a.format {
        Format::F32 => (a.depth * F32_BYTES, keys, PANEL as i64 * F32_BYTES),
        Format::Bytes(_) => (round_up(a.depth, 4), ceil_div(b, keys, 4), PANEL as i64),
    };
    let key_matrix = {
        let bytes = b.times(padded_keys, Extent::Const(key_bytes));
        let at = b.f.ins().imul(t.matrix, bytes);
        let base = b.buffer(a.k);
        b.f.ins().iadd(base, at)
    };
    let value_matrix = {
        let bytes = b.times(value_rows, Extent::Const(round_up(a.value_depth, PANEL) * F32_BYTES));
        let at = b.f.ins().imul(t.matrix, bytes);
        let base = b.buffer(a.v);
        b.f.ins().iadd(base, at)
    };
    let query = address(b, &a.q, &t.index(t.first, zero));
    let depth = b.int(a.depth);
    let one_depth = a.depth <= tile::DEPTH;
    let (row_stride, k_stride) = (a.q.strides[2], a.q.strides[3]);
    let row_bytes = b.extent(row_stride);
    let row_bytes = b.times(row_bytes, Extent::Const(F32_BYTES));
    let (query, row_bytes, k_stride) = match &s.rounded {
        None => (query, row_bytes, k_stride),
        Some(r) => {
            bytes::quantize(b, &bytes::Rows { at: query, rows: t.rows, row_bytes, k_stride, k: a.depth }, r.rows, r.scales);
            (r.rows, b.int(a.depth * F32_BYTES), Extent::Const(1))
        }
    };
    if one_depth && a.depth > 0 {
        tile::pack(b, &Rows { at: query, rows: t.rows, k: depth, row_bytes, together: false, k_stride }, QUERY_TILE, s.queries);
    }
    let heights = match a.queries {
        Extent::Const(_) => Heights::of(a.queries),
        Extent::Param(_) => Heights::some(&[1, 4, QUERY_TILE]),
    };

    let end = b.f.ins().iadd_imm_s(seen, BLOCK - 1);
    let Some(block) = b.open_loop(zero, end, BLOCK) else { return };
    let columns = rest(b, seen, block.index, BLOCK);
    let offset = b.times(block.index, Extent::Const(key_bytes));
    let right = b.f.ins().iadd(key_matrix, offset);
    let panel_bytes = b.int(key_bytes * PANEL as i64);
    let mut scores = Strips {
        left: s.queries,
        right,
        panel_bytes,
        rows: t.rows,
        k: depth,
        columns,
        sums: s.scores,
        pitch: BLOCK,
        accumulate: false,
        heights: &heights,
    };
    if one_depth {
        multiply(b, s, &scores);
    } else {
        let (zeros, all) = (b.float_of(F32X4, 0.0), b.int(BLOCK * TILE));
        tile::fill(b, s.scores, all, zeros);
        let end = b.int(a.depth + tile::DEPTH - 1);
        let l = b.open_loop(zero, end, tile::DEPTH).expect("more than one block");
        scores.k = rest(b, depth, l.index, tile::DEPTH);
        let offset = b.times(l.index, k_stride);
        let offset = b.times(offset, Extent::Const(F32_BYTES));
        let at = b.f.ins().iadd(query, offset);
        tile::pack(b, &Rows { at, rows: t.rows, k: scores.k, row_bytes, together: false, k_stride }, QUERY_TILE, s.queries);
        let offset = b.times(l.index, Extent::Const(row_bytes_of_k));
        scores.right = b.f.ins().iadd(right, offset);
        scores.accumulate = true;
        multiply(b, s, &scores);
        b.close_loop(l);
    }
    weigh(b, a, t, s, block.index, columns, visible);
    let row_bytes = b.int(BLOCK * F32_BYTES);
    tile::pack(
        b,
        &Rows { at: s.scores, rows: t.rows, k: columns, row_bytes, together: false, k_stride: Extent::Const(1) },
        QUERY_TILE,
        s.weights,
    );
    let offset = b.times(block.index, Extent::Const(row_bytes_of_k));
    let right = b.f.ins().iadd(value_matrix, offset);
    let panel_bytes = b.times(value_rows, Extent::Const(PANEL as i64 * F32_BYTES));
    let width = b.int(a.value_depth);
    multiply(
        b,
        s,
        &Strips {
            left: s.weights,
            right,
            panel_bytes,
            rows: t.rows,
            k: columns,
            columns: width,
            sums: s.sums,
            pitch: s.pitch,
            accumulate: true,
            heights: &heights,
        },
    );
    b.close_loop(block);
}

/// Multiplies with panels of either format.
fn multiply(b: &mut KernelBuilder, s: &Areas, strips: &Strips) {
    match &s.rounded {
        None => tile::multiply(b, strips),
        Some(r) => {
            let units = ceil_div(b, strips.k, 4);
            bytes::multiply(b, strips, units, r.panel);
        }
    }
}

/// Turns the scores of a block of keys into weights, and brings totals and sums to the largest score.
fn weigh(b: &mut KernelBuilder, a: &Attention, t: &Task, s: &Areas, first_key: Value, columns: Value, visible: Value) {
    let zero = b.int(0);
    let Some(row) = b.open_loop(zero, t.rows, 1) else { return };
    let offset = b.times(row.index, Extent::Const(BLOCK * F32_BYTES));
    let scores = b.f.ins().iadd(s.scores, offset);
    let query = b.f.ins().iadd(t.first, row.index);
    let padded = b.f.ins().iadd_imm_s(columns, LANES as i64 - 1);
    let padded = b.f.ins().band_imm_s(padded, -(LANES as i64));
    let seen = if a.causal {
        let seen = b.f.ins().iadd(query, visible);
        let seen = b.f.ins().isub(seen, first_key);
        let seen = b.f.ins().smin(seen, columns);
        b.f.ins().smax(seen, zero)
    } else {
        columns
    };

    // Scores with scale and bias, and the largest of them.
    let scale = b.float_of(F32, f64::from(f32::from_bits(a.scale)));
    let scale = match (&s.rounded, &a.format) {
        (Some(r), Format::Bytes(Bytes { key_scales, .. })) => {
            let p = element(b, r.scales, row.index);
            let of_query = b.f.ins().load(F32, MEM, p, 0);
            let keys = b.extent(a.keys);
            let panels = ceil_div(b, keys, PANEL as i64);
            let before = b.f.ins().imul(t.matrix, panels);
            let before = b.times(before, Extent::Const(PANEL as i64));
            let key = b.f.ins().iadd(before, first_key);
            let scales = b.buffer(*key_scales);
            Scale { of_row: b.f.ins().fmul(scale, of_query), of_keys: Some(element(b, scales, key)) }
        }
        _ => Scale { of_row: scale, of_keys: None },
    };
    let (lowest, lowest_scalar) = (b.float_of(F32X4, f64::NEG_INFINITY), b.float_of(F32, f64::NEG_INFINITY));
    let largest = b.f.declare_var(F32X4);
    let largest_scalar = b.f.declare_var(F32);
    b.f.def_var(largest, lowest);
    b.f.def_var(largest_scalar, lowest_scalar);
    let mut done = zero;
    if let Some(l) = b.open_loop(zero, seen, LANES as i64) {
        let x = score(b, a, t, query, first_key, scores, l.index, &scale, Some(Lanes { loop_: 3, vectors: 1 }));
        let m = b.f.use_var(largest);
        let m = larger(b, x, m);
        b.f.def_var(largest, m);
        done = b.close_loop(l);
    }
    if let Some(l) = b.open_loop(done, seen, 1) {
        let x = score(b, a, t, query, first_key, scores, l.index, &scale, None);
        let m = b.f.use_var(largest_scalar);
        let m = larger(b, x, m);
        b.f.def_var(largest_scalar, m);
        b.close_loop(l);
    }
    if let Some(l) = b.open_loop(seen, padded, 1) {
        let p = element(b, scores, l.index);
        b.f.ins().store(MEM, lowest_scalar, p, 0);
        b.close_loop(l);
    }
    let m = b.f.use_var(largest);
    let m = b.across(m, larger);
    let scalar = b.f.use_var(largest_scalar);
    let m = larger(b, m, scalar);
    let at = element(b, s.largest, row.index);
    let before = b.f.ins().load(F32, MEM, at, 0);
    let m = larger(b, m, before);
    b.f.ins().store(MEM, m, at, 0);
    // Where all scores are minus infinity, weights relative to 0 are 0.
    let none = b.f.ins().fcmp(FloatCC::Equal, m, lowest_scalar);
    let zero_scalar = b.float_of(F32, 0.0);
    let m = b.f.ins().select(none, zero_scalar, m);
    let shrink = b.f.ins().fsub(before, m);
    let shrink = math::exp32(b, shrink);

    // Weights and their sum.
    let m = b.splat(m);
    let sum = b.f.declare_var(F32X4);
    let zeros = b.float_of(F32X4, 0.0);
    b.f.def_var(sum, zeros);
    if let Some(l) = b.open_loop(zero, padded, LANES as i64) {
        let p = element(b, scores, l.index);
        let x = b.f.ins().load(F32X4, MEM, p, 0);
        let x = b.f.ins().fsub(x, m);
        let mut w = math::exp32(b, x);
        if s.rounded.is_some() {
            let steps = b.float_of(F32X4, WEIGHT_STEPS);
            w = b.f.ins().fmul(w, steps);
            w = bytes::round(b, w);
        }
        b.f.ins().store(MEM, w, p, 0);
        let so_far = b.f.use_var(sum);
        let so_far = b.f.ins().fadd(so_far, w);
        b.f.def_var(sum, so_far);
        b.close_loop(l);
    }
    let sum = b.f.use_var(sum);
    let sum = b.across(sum, |b, x, y| b.f.ins().fadd(x, y));
    let at = element(b, s.total, row.index);
    let total = b.f.ins().load(F32, MEM, at, 0);
    let total = b.fma(total, shrink, sum);
    b.f.ins().store(MEM, total, at, 0);

    let offset = b.times(row.index, Extent::Const(s.pitch * F32_BYTES));
    let sums = b.f.ins().iadd(s.sums, offset);
    let shrink = b.splat(shrink);
    let width = b.int(s.pitch);
    if let Some(l) = b.open_loop(zero, width, LANES as i64) {
        let p = element(b, sums, l.index);
        let x = b.f.ins().load(F32X4, MEM, p, 0);
        let x = b.f.ins().fmul(x, shrink);
        b.f.ins().store(MEM, x, p, 0);
        b.close_loop(l);
    }
    b.close_loop(row);
}

/// What dot products are multiplied by.
struct Scale {
    /// One factor for the row.
    of_row: Value,
    /// Where a further one for every key of the block is.
    of_keys: Option<Value>,
}

/// Computes one score or four from dot products, and stores it in their place.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a score")]
fn score(
    b: &mut KernelBuilder,
    a: &Attention,
    t: &Task,
    query: Value,
    first_key: Value,
    scores: Value,
    column: Value,
    scale: &Scale,
    lanes: Option<Lanes>,
) -> Value {
    let ty = if lanes.is_some() { F32X4 } else { F32 };
    let p = element(b, scores, column);
    let x = b.f.ins().load(ty, MEM, p, 0);
    let mut factor = if lanes.is_some() { b.splat(scale.of_row) } else { scale.of_row };
    if let Some(of_keys) = scale.of_keys {
        let p = element(b, of_keys, column);
        let of_key = b.f.ins().load(ty, MEM, p, 0);
        factor = b.f.ins().fmul(factor, of_key);
    }
    let x = match &a.bias {
        None => b.f.ins().fmul(x, factor),
        Some(bias) => {
            let mut exprs: PrimaryMap<ExprId, (Expr, Elem)> = PrimaryMap::new();
            let load = exprs.push((Expr::Load(bias.clone()), Elem::F32));
            let key = b.f.ins().iadd(first_key, column);
            let mut e = Evaluator::new(&exprs, t.index(query, key));
            e.lanes = lanes;
            let bias = e.value(b, load);
            let bias = match lanes {
                Some(_) => e.vectors(b, &bias, Elem::F32)[0],
                None => e.scalars(b, &bias, Elem::F32)[0],
            };
            let sum = b.fma(x, factor, bias);
            match a.mask_value {
                None => sum,
                Some(most) => {
                    let most = b.float_of(ty, f64::from(f32::from_bits(most)));
                    let hides = b.f.ins().fcmp(FloatCC::LessThanOrEqual, bias, most);
                    b.choose(hides, bias, sum)
                }
            }
        }
    };
    b.f.ins().store(MEM, x, p, 0);
    x
}

/// Divides the sums by the totals and stores them.
fn result(b: &mut KernelBuilder, a: &Attention, t: &Task, s: &Areas) {
    let zero = b.int(0);
    let keys = b.extent(a.keys);
    let Some(row) = b.open_loop(zero, t.rows, 1) else { return };
    let at = element(b, s.total, row.index);
    let total = b.f.ins().load(F32, MEM, at, 0);
    // Without any keys the result is 0; where all are hidden it is 0 / 0.
    let one = b.float_of(F32, 1.0);
    let total = b.f.ins().select(keys, total, one);
    let factor = b.f.ins().fdiv(one, total);
    let query = b.f.ins().iadd(t.first, row.index);
    let offset = b.times(row.index, Extent::Const(s.pitch * F32_BYTES));
    let sums = b.f.ins().iadd(s.sums, offset);
    let value_scales = match &a.format {
        Format::F32 => None,
        Format::Bytes(Bytes { value_scales, .. }) => {
            let before = b.times(t.matrix, Extent::Const(round_up(a.value_depth, PANEL)));
            let scales = b.buffer(*value_scales);
            Some(element(b, scales, before))
        }
    };
    let scaled = |b: &mut KernelBuilder, x: Value, column: Value| match value_scales {
        None => x,
        Some(scales) => {
            let ty = b.ty(x);
            let p = element(b, scales, column);
            let scale = b.f.ins().load(ty, MEM, p, 0);
            b.f.ins().fmul(x, scale)
        }
    };
    let mut exprs: PrimaryMap<ExprId, (Expr, Elem)> = PrimaryMap::new();
    let sum = exprs.push((Expr::Reduced(Reduction::new(0)), Elem::F32));
    let store = |b: &mut KernelBuilder, column: Value, lanes: Option<Lanes>| {
        let p = element(b, sums, column);
        let mut e = Evaluator::new(&exprs, t.index(query, column));
        e.lanes = lanes;
        e.reduced[Reduction::new(0)] = Some(if lanes.is_some() {
            let x = b.f.ins().load(F32X4, MEM, p, 0);
            let factor = b.splat(factor);
            let x = b.f.ins().fmul(x, factor);
            Val::Vectors(vec![scaled(b, x, column)])
        } else {
            let x = b.f.ins().load(F32, MEM, p, 0);
            let x = b.f.ins().fmul(x, factor);
            Val::Uniform(scaled(b, x, column))
        });
        e.store(b, &a.out, sum);
    };
    let width = b.int(a.value_depth);
    let mut done = zero;
    if let Some(l) = b.open_loop(zero, width, LANES as i64) {
        store(b, l.index, Some(Lanes { loop_: 3, vectors: 1 }));
        done = b.close_loop(l);
    }
    if let Some(l) = b.open_loop(done, width, 1) {
        store(b, l.index, None);
        b.close_loop(l);
    }
    b.close_loop(row);
}

/// The larger of two numbers; `y` where `x` is not a number, which shows in the weights all the same.
fn larger(b: &mut KernelBuilder, x: Value, y: Value) -> Value {
    let greater = b.f.ins().fcmp(FloatCC::GreaterThan, x, y);
    b.choose(greater, x, y)
}

/// The least multiple of `to` that is not below `n`.
fn round_up(n: i64, to: usize) -> i64 {
    let to = to as i64;
    (n + to - 1) / to * to
}

/// Address of element `n` of an f32 area.
fn element(b: &mut KernelBuilder, area: Value, n: Value) -> Value {
    let offset = b.times(n, Extent::Const(F32_BYTES));
    b.f.ins().iadd(area, offset)
}

/// Address of an element of an f32 buffer.
fn address(b: &mut KernelBuilder, access: &Access, index: &[Value]) -> Value {
    let mut at = b.extent(access.offset);
    for (&x, &stride) in index.iter().zip(&access.strides) {
        let x = b.times(x, stride);
        at = b.f.ins().iadd(at, x);
    }
    let at = b.times(at, Extent::Const(F32_BYTES));
    let base = b.buffer(access.buffer);
    b.f.ins().iadd(base, at)
}

#[cfg(test)]
mod tests {
    use super::super::target::Cpu;
    use super::super::testing::{Compiled, foreign_cpus, host_cpus, machine_code};
    use super::*;
    use crate::kernel::gemm::pack;
    use crate::kernel::pack::{By, QuantizedRows, quantize};
    use crate::kernel::{Body, BufferParam, Kernel, Use};
    use proptest::prelude::*;
    use tfc_ir::quant::RowRange;

    /// Sizes and properties of a problem; operands follow from them.
    #[derive(Clone, Debug)]
    struct Problem {
        batch: usize,
        groups: usize,
        per_group: usize,
        queries: usize,
        keys: usize,
        depth: usize,
        width: usize,
        causal: bool,
        /// 0: none, 1: per key, 2: per query and key, 3: for some keys minus infinity; then per key again, 4: the
        /// last keys are hidden, 5: the keys of every other panel are hidden, 6: all are hidden.
        bias: u8,
        /// The greatest bias that hides a key.
        mask_value: Option<f32>,
        /// Whether sizes are parameters.
        symbolic: bool,
        /// Whether the result is transposed.
        transposed: bool,
        /// Whether operands and weights are rounded.
        rounded: bool,
    }

    fn value(i: usize) -> f32 {
        ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0
    }

    fn strides(s: &[usize], params: &mut Vec<i64>, symbolic: bool) -> Vec<Extent> {
        s.iter().map(|&n| extent(n, params, symbolic)).collect()
    }

    fn extent(n: usize, params: &mut Vec<i64>, symbolic: bool) -> Extent {
        if !symbolic {
            return Extent::Const(n as i64);
        }
        params.push(n as i64);
        Extent::Param(params.len() as u32 - 1)
    }

    impl Problem {
        fn heads(&self) -> usize {
            self.groups * self.per_group
        }

        fn bias_per_key(&self) -> bool {
            self.bias == 1 || self.bias > 3
        }

        fn bias_at(&self, row: usize, key: usize) -> f32 {
            match self.bias {
                0 => 0.0,
                1 => value(key + 77) * 3.0,
                4 if key < self.keys / 3 => value(key + 77) * 3.0,
                5 if !(key / PANEL).is_multiple_of(2) => value(key),
                4 | 6 => f32::MIN,
                5 => -1e9,
                2 => value(row * self.keys + key + 99) * 3.0,
                _ if (row + key * 3).is_multiple_of(4) => f32::NEG_INFINITY,
                _ => value(key),
            }
        }

        fn hides(&self, bias: f32) -> bool {
            self.mask_value.is_some_and(|most| bias <= most)
        }

        /// Number `x` of key `j` of matrix `g`. Keys that are hidden from all queries are of no use.
        fn key(&self, g: usize, j: usize, x: usize) -> f32 {
            if self.bias_per_key() && self.hides(self.bias_at(0, j)) {
                return [f32::NAN, f32::INFINITY, 3e38][(j + x) % 3];
            }
            value((g * self.keys + j) * self.depth + x + 5)
        }

        /// The operands: queries and keys by rows, values by columns; each line rounded or as it is.
        fn operands(&self) -> [Vec<f64>; 3] {
            let (h, n, m, d, e) = (self.heads(), self.queries, self.keys, self.depth, self.width);
            let line = |length: usize, at: &dyn Fn(usize) -> f32| -> Vec<f64> {
                let values: Vec<f32> = (0..length).map(at).collect();
                let range = RowRange::symmetric(values.iter().fold(0f32, |m, x| m.max(x.abs())));
                let rounded = |&x: &f32| f64::from(range.quantize(x, -127, 127)) * f64::from(range.scale);
                values.iter().map(|x| if self.rounded { rounded(x) } else { f64::from(*x) }).collect()
            };
            let matrices = self.batch * self.groups;
            [
                (0..self.batch * h * n).flat_map(|row| line(d, &|x| value(row * d + x))).collect(),
                (0..matrices * m).flat_map(|row| line(d, &|x| self.key(row / m, row % m, x))).collect(),
                (0..matrices * e).flat_map(|c| line(m, &|j| value((c / e * m + j) * e + c % e + 11))).collect(),
            ]
        }

        /// The results, and by how much each may be off.
        fn expected(&self) -> Vec<(f64, f64)> {
            let (h, n, m, d, e) = (self.heads(), self.queries, self.keys, self.depth, self.width);
            let [q, k, v] = self.operands();
            let exact = 4e-6 * (2.0 + (self.depth as f64).sqrt());
            let mut out = vec![];
            for row in 0..self.batch * h * n {
                let (bh, i) = (row / n, row % n);
                let group = bh / h * self.groups + bh % h / self.per_group;
                let scores: Vec<f64> = (0..m)
                    .map(|j| {
                        if self.causal && j + n > i + m {
                            return f64::NEG_INFINITY;
                        }
                        let dot: f64 = (0..d).map(|x| q[row * d + x] * k[(group * m + j) * d + x]).sum();
                        let bias = self.bias_at(row, j);
                        // What a bias swallows is gone.
                        f64::from(if self.hides(bias) { bias } else { (0.5 * dot) as f32 + bias })
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let mut weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                if self.rounded {
                    weights.iter_mut().for_each(|w| *w = (*w * WEIGHT_STEPS).round_ties_even());
                }
                let total: f64 = weights.iter().sum();
                // Few weights are rounded the other way; behind the first block they may all be rounded more finely.
                let steps = match m {
                    _ if !self.rounded => 0.0,
                    0..=KEY_BLOCK => 8.0,
                    _ => m as f64,
                };
                let tolerance = exact + if total > 0.0 { steps / total } else { 0.0 };
                out.extend((0..e).map(|x| {
                    let column = &v[(group * e + x) * m..][..m];
                    (weights.iter().zip(column).map(|(w, v)| w / total * v).sum::<f64>(), tolerance)
                }));
            }
            out
        }

        fn kernel(&self) -> (Kernel, Vec<i64>) {
            let (h, n, m, d, e) = (self.heads(), self.queries, self.keys, self.depth, self.width);
            let (params, symbolic) = (&mut vec![], self.symbolic);
            let access = |buffer: u32, s: &[usize], params: &mut Vec<i64>| {
                let mut strides = strides(&s[..3], params, symbolic);
                strides.push(Extent::Const(s[3] as i64));
                Access { buffer, offset: Extent::Const(0), strides, dynamic: vec![] }
            };
            let bytes = Bytes { key_scales: 5, key_sums: 6, value_scales: 7 };
            let body = Attention {
                format: if self.rounded { Format::Bytes(bytes) } else { Format::F32 },
                batch: extent(self.batch, params, symbolic),
                heads: extent(h, params, symbolic),
                heads_per_group: extent(self.per_group, params, symbolic),
                queries: extent(n, params, symbolic),
                keys: extent(m, params, symbolic),
                depth: d as i64,
                value_depth: e as i64,
                scale: 0.5f32.to_bits(),
                causal: self.causal,
                mask_value: self.mask_value.map(f32::to_bits),
                // Queries lie as [batch, query, head, depth], the result as [batch, head, query, width] or [batch, head, width, query].
                q: access(0, &[n * h * d, d, h * d, 1], params),
                k: 1,
                v: 2,
                bias: (self.bias > 0).then(|| {
                    let row = if self.bias_per_key() { 0 } else { m };
                    access(3, &[h * n * row, n * row, row, 1], params)
                }),
                out: if self.transposed {
                    access(4, &[h * n * e, n * e, 1, n], params)
                } else {
                    access(4, &[h * n * e, n * e, e, 1], params)
                },
            };
            let buffers = (0..if self.rounded { 8 } else { 5 })
                .map(|i| BufferParam { elem: Elem::F32, usage: if i == 4 { Use::Write } else { Use::Read } })
                .collect();
            let kernel = Kernel { buffers, ints: params.len() as u32, body: Body::Attention(body) };
            (kernel, std::mem::take(params))
        }

        fn buffers(&self) -> Vec<Vec<u8>> {
            let (h, n, m, d, e) = (self.heads(), self.queries, self.keys, self.depth, self.width);
            let mut q = vec![0f32; self.batch * h * n * d];
            for row in 0..self.batch * h * n {
                let (b, head, i) = (row / n / h, row / n % h, row % n);
                for x in 0..d {
                    q[((b * n + i) * h + head) * d + x] = value(row * d + x);
                }
            }
            let matrices = self.batch * self.groups;
            let channel = |g: usize, x: usize, j: usize| value((g * m + j) * e + x + 11);
            let rows = if self.bias_per_key() { 1 } else { self.batch * h * n };
            let bias: Vec<f32> = (0..rows * m).map(|i| self.bias_at(i / m, i % m)).collect();
            let out = vec![f32::NAN; self.batch * h * n * e];
            if self.rounded {
                let keys: Vec<_> =
                    (0..matrices).map(|g| quantize([m, d], PANEL, By::Magnitude, Some((d, -128)), |j, x| self.key(g, j, x))).collect();
                let values: Vec<_> = (0..matrices).map(|g| quantize([e, m], PANEL, By::Magnitude, None, |x, j| channel(g, x, j))).collect();
                let codes = |x: &[QuantizedRows]| x.iter().flat_map(|x| bytemuck::cast_slice(&x.codes).to_vec()).collect();
                let scales = |x: &[QuantizedRows]| x.iter().flat_map(|x| bytemuck::cast_slice(&x.scales).to_vec()).collect();
                let sums = keys.iter().flat_map(|x| bytemuck::cast_slice(&x.sums).to_vec()).collect();
                let [q, bias, out] = [q, bias, out].map(|x| bytemuck::cast_slice(&x).to_vec());
                return vec![q, codes(&keys), codes(&values), bias, out, scales(&keys), sums, scales(&values)];
            }
            let k: Vec<f32> = (0..matrices).flat_map(|g| pack(d, m, |x, j| self.key(g, j, x))).collect();
            let v: Vec<f32> = (0..matrices).flat_map(|g| pack(m, e, |j, x| channel(g, x, j))).collect();
            [q, k, v, bias, out].map(|x| bytemuck::cast_slice(&x).to_vec()).to_vec()
        }

        fn check(&self) {
            self.check_on(&host_cpus(), || self.buffers());
        }

        fn check_on(&self, cpus: &[Cpu], buffers: impl Fn() -> Vec<Vec<u8>>) {
            let (kernel, ints) = self.kernel();
            let expected = self.expected();
            let tasks = (self.batch * self.heads() * self.queries.div_ceil(QUERY_TILE)) as i64;
            for cpu in cpus {
                let mut buffers = buffers();
                let run = Compiled::new(&kernel, cpu);
                assert_eq!(run.run(&mut buffers, &ints, 0, tasks / 2), 0);
                assert_eq!(run.run(&mut buffers, &ints, tasks / 2, tasks), 0);
                let out: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[4]);
                for (i, &(x, tolerance)) in expected.iter().enumerate() {
                    let (row, column) = (i / self.width, i % self.width);
                    let at =
                        if !self.transposed { i } else { (row / self.queries * self.width + column) * self.queries + row % self.queries };
                    let y = f64::from(out[at]);
                    assert!((x - y).abs() <= tolerance || x.is_nan() && y.is_nan(), "{}: {self:?}, element {i}: {y} for {x}", cpu.name);
                }
            }
        }
    }

    const SMALL: Problem = Problem {
        batch: 1,
        groups: 1,
        per_group: 1,
        queries: 2,
        keys: 3,
        depth: 4,
        width: 4,
        causal: false,
        bias: 0,
        mask_value: None,
        symbolic: false,
        transposed: false,
        rounded: false,
    };

    #[test]
    fn sizes_at_the_edges() {
        for small in [SMALL, Problem { rounded: true, ..SMALL }] {
            small.check();
            Problem { keys: 0, ..small }.check();
            Problem { queries: 0, ..small }.check();
            Problem { queries: 1, keys: 77, depth: 64, width: 80, ..small }.check();
            Problem { queries: 30, keys: 300, depth: 16, transposed: true, ..small }.check();
            Problem { queries: 128, keys: 128, depth: 64, width: 64, bias: 1, ..small }.check();
            // Longer rows than are multiplied at once.
            Problem { depth: 401, width: 37, queries: 13, keys: 70, symbolic: true, ..small }.check();
        }
        Problem { depth: 0, width: 1, ..SMALL }.check();
    }

    #[test]
    fn queries_are_read_before_results_are_written_over_them() {
        for (queries, keys, depth) in [(1, 5, 8), (13, 70, 20), (30, 300, 64), (25, 140, 401)] {
            for [symbolic, rounded] in [[false, false], [true, false], [false, true], [true, true]] {
                let problem = Problem { groups: 2, queries, keys, depth, width: depth, symbolic, rounded, bias: 1, ..SMALL };
                let (mut kernel, ints) = problem.kernel();
                let Body::Attention(a) = &mut kernel.body else { unreachable!("it is attention") };
                a.out = Access { buffer: a.out.buffer, ..a.q.clone() };
                assert_eq!(kernel.in_place(), [(0, 4)]);
                let tasks = (problem.heads() * queries.div_ceil(QUERY_TILE)) as i64;
                for cpu in host_cpus() {
                    Compiled::new(&kernel, &cpu).check_in_place(&kernel, &problem.buffers(), &ints, tasks);
                }
            }
        }
    }

    #[test]
    fn hidden_keys_count_for_nothing() {
        let padded = Problem { queries: 14, keys: 200, bias: 4, ..SMALL };
        for bias in 4..=6 {
            for [causal, symbolic] in [[false, false], [false, true], [true, false], [true, true]] {
                for rounded in [false, true] {
                    Problem { bias, causal, symbolic, rounded, ..padded }.check();
                    Problem { bias, causal, symbolic, rounded, keys: 600, ..padded }.check();
                    // With a mask value they may be anything.
                    for mask_value in [-1e9, f32::MIN].map(Some) {
                        Problem { bias, causal, symbolic, rounded, mask_value, ..padded }.check();
                        Problem { bias, causal, symbolic, rounded, mask_value, keys: 77, queries: 3, ..padded }.check();
                    }
                }
            }
        }
        // Wide code does not even read them.
        let mut cpus = host_cpus();
        cpus.retain(|cpu| cpu.wide.is_some());
        let hidden = padded.keys.div_ceil(3).next_multiple_of(PANEL) * padded.depth * 4;
        padded.check_on(&cpus, || {
            let mut buffers = padded.buffers();
            buffers[1][hidden..].fill(0xff);
            buffers
        });
    }

    #[test]
    fn rows_that_see_no_key_are_not_numbers() {
        Problem { queries: 9, keys: 5, causal: true, ..SMALL }.check();
        Problem { queries: 9, keys: 5, causal: true, symbolic: true, bias: 3, ..SMALL }.check();
        Problem { queries: 9, keys: 5, causal: true, bias: 3, rounded: true, ..SMALL }.check();
    }

    #[test]
    fn other_architectures() {
        for cpu in foreign_cpus() {
            for symbolic in [false, true] {
                let code = machine_code(&Problem { bias: 2, causal: true, symbolic, ..SMALL }.kernel().0, &cpu);
                assert!(!code.bytes.is_empty());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn is_softmax_between_products(
            [batch, groups, per_group] in [1usize..3, 1..3, 1..3],
            [queries, keys, depth, width] in [0usize..40, 0..400, 0..20, 1..40],
            [causal, symbolic, transposed, rounded]: [bool; 4],
            bias in 0u8..7,
            mask_value in proptest::option::of(prop_oneof![Just(f32::NEG_INFINITY), Just(-1e9), Just(-1.5)]),
        ) {
            let depth = depth.max(usize::from(rounded));
            Problem { batch, groups, per_group, queries, keys, depth, width, causal, bias, mask_value, symbolic, transposed, rounded }.check();
        }
    }
}
