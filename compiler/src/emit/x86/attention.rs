//! Fused attention. For every block of keys a task computes the scores of its queries by register tiles,
//! turns them into weights relative to the largest score so far, and adds the weighted values to sums,
//! which it rescales when a larger score appears. Everything but operands and result is on the stack.
//!
//! A block is a run of panels. Panels whose keys the bias hides from all queries alike are in no block.
//!
//! With operands of 8 bits the queries are rounded and get 128 added, to be unsigned; scores are integers
//! until they are weighed, and weights are 0 to 255 for the largest so far.

use super::asm::{Asm, Cond, Label, M, Mem, R, V};
use super::bytes::{self, unit_bytes};
use super::expr::{Base, Evaluator, Function};
use super::gemm::ceil_div;
use super::isa::Op;
use super::math;
use super::tile::{self, Product};
use crate::kernel::Extent;
use crate::kernel::attention::{Attention, Bytes, Format, HIDDEN, QUERY_TILE};
use crate::kernel::gemm::PANEL;
use tfc_ir::ops::quantized_attention::WEIGHT_STEPS;
use tfc_ir::quant::MIN_RANGE;
use tfc_ir::types::Elem;

const ELEMENT: i64 = 4;
const COLUMNS: i64 = PANEL as i64;
const PANEL_ROW: i64 = COLUMNS * ELEMENT;
const TILE: i64 = QUERY_TILE as i64;

/// Keys of a block of scores, which stay in the first-level cache.
const BLOCK: i64 = 256;

/// The longest queries and values that are kept on the stack.
const MAX_DEPTH: i64 = 512;

/// Whether this emitter can emit an attention.
pub fn covers(a: &Attention) -> bool {
    let rows = |x: &crate::kernel::nest::Access| x.dynamic.is_empty() && x.strides[3] == Extent::Const(1);
    rows(&a.q)
        && rows(&a.out)
        && a.bias.as_ref().is_none_or(|b| b.dynamic.is_empty() && matches!(b.strides[3], Extent::Const(0 | 1)))
        && a.depth <= MAX_DEPTH
        && a.value_depth <= MAX_DEPTH
}

/// Areas of the frame.
struct Areas {
    /// Scaled queries, or rounded ones, rows of `query_pitch` bytes.
    queries: R,
    query_pitch: i64,
    /// What the scores of every rounded query are multiplied by.
    factors: Option<R>,
    /// Scores, then weights, rows of [`SCORE_PITCH`].
    scores: R,
    /// Weights, rows of `weight_pitch` bytes: in the place of the scores unless they are rounded.
    weights: R,
    weight_pitch: i64,
    /// Sums of weighted values, rows of `sum_pitch` bytes.
    sums: R,
    sum_pitch: i64,
    /// The largest score of every query.
    largest: R,
    /// By how much the largest score before was less.
    drops: R,
    /// A vector per query, whose lanes add up to the sum of its weights.
    totals: R,
    /// A vector of the bias below which keys are hidden.
    threshold: R,
    /// Whether scores are those of powers of 2: a bias would not survive that, its lowest is the lowest number.
    powers_of_2: bool,
}

const SCORE_PITCH: i64 = BLOCK * ELEMENT;

/// Where a task is.
struct Task {
    batch: R,
    head: R,
    /// The number of the matrices of keys and values.
    matrix: R,
    /// The first query, and how many there are.
    first: R,
    rows: R,
    /// How many keys the first query sees, none if that is negative, and how many the last.
    seen: [R; 2],
    /// The bias at the first query and key 0.
    bias: Option<Base>,
    /// Whether a block came before.
    begun: R,
}

/// Emits attention.
pub fn emit(f: &mut Function, a: &Attention, begin: R, end: R) {
    let (lanes, width) = (f.a.isa.lanes(), f.a.isa.bytes());
    let element = match a.format {
        Format::F32 => ELEMENT,
        Format::Bytes(_) => unit_bytes(f.a.isa) / 4,
    };
    let rounded = matches!(a.format, Format::Bytes(_));
    let (query_pitch, sum_pitch) = (ceil(a.depth, lanes) * element, ceil(a.value_depth, COLUMNS) * ELEMENT);
    let scores = f.a.scratch(TILE * SCORE_PITCH);
    let weight_pitch = BLOCK * element;
    let s = Areas {
        queries: f.a.scratch(TILE * query_pitch.max(width)),
        query_pitch,
        factors: rounded.then(|| f.a.scratch(64)),
        scores,
        weights: if rounded { f.a.scratch(TILE * weight_pitch) } else { scores },
        weight_pitch,
        sums: f.a.scratch(TILE * sum_pitch),
        sum_pitch,
        largest: f.a.scratch(64),
        drops: f.a.scratch(64),
        totals: f.a.scratch(TILE * width),
        threshold: f.a.scratch(width),
        powers_of_2: !rounded && a.bias.is_none(),
    };
    f.tasks(begin, end, |f, task| {
        let t = decode(f, a, task);
        queries(f, a, &t, &s);
        clear(f, &s);
        blocks(f, a, &t, &s);
        result(f, a, &t, &s);
    });
}

fn decode(f: &mut Function, a: &Attention, task: R) -> Task {
    let (queries, keys, heads) = (f.extent(a.queries), f.extent(a.keys), f.extent(a.heads));
    let tiles = ceil_div(f, queries, TILE);
    let (number, tile) = f.a.divide(task, tiles);
    let (batch, head) = f.a.divide(number, heads);
    let first = f.a.times_imm(tile, TILE);
    let rows = f.a.minus(queries, first);
    let most = f.a.imm(TILE);
    let rows = f.a.min(rows, most);
    let seen = if a.causal {
        // Query `i` sees the keys up to `i + keys - queries`.
        let ahead = f.a.minus(keys, queries);
        let before = f.a.plus(first, ahead);
        let zero = f.a.imm(0);
        let last = f.a.plus(before, rows);
        [f.a.lea(Mem::at(before, 1)), f.a.max(last, zero)]
    } else {
        [keys, keys]
    };
    let zero = f.a.imm(0);
    let bias = a.bias.as_ref().map(|b| Evaluator::base(f, b, Elem::F32, &[batch, head, first, zero], Some(3)));
    // Query heads of a group share the matrices of a key head.
    let per_group = f.extent(a.heads_per_group);
    let (groups, _) = f.a.divide(heads, per_group);
    let (group, _) = f.a.divide(head, per_group);
    let matrix = f.a.times(batch, groups);
    f.a.add_into(matrix, group);
    let begun = f.a.imm(0);
    Task { batch, head, matrix, first, rows, seen, bias, begun }
}

/// Copies the queries: multiplied by the scale, or rounded.
fn queries(f: &mut Function, a: &Attention, t: &Task, s: &Areas) {
    let zero = f.a.imm(0);
    let from = Evaluator::base(f, &a.q, Elem::F32, &[t.batch, t.head, t.first, zero], Some(3)).at;
    let from = f.a.copy(from);
    let step = row_bytes(f, a.q.strides[2]);
    let (to, rows) = (f.a.copy(s.queries), f.a.copy(t.rows));
    // Nothing else looks ahead to the next tile.
    let ahead = f.a.times_imm(step, TILE);
    f.a.add_into(ahead, from);
    let fetch = |f: &mut Asm| {
        for line in (0..a.depth * ELEMENT).step_by(64) {
            f.prefetch(Mem::at(ahead, line), false);
        }
        f.add_into(ahead, step);
    };
    let Some(factors) = s.factors else {
        let scale = f32::from_bits(a.scale) * if s.powers_of_2 { std::f32::consts::LOG2_E } else { 1.0 };
        f.a.repeat(rows, |f| {
            fetch(f);
            over_row(f, a.depth, from, |f, at, x| {
                let x = f.binary(Op::MulPs, x, scale);
                f.store_vector(at.of(to, ELEMENT), x);
            });
            f.add_into(from, step);
            f.add_imm(to, s.query_pitch);
        });
        return;
    };
    let factor_at = f.a.copy(factors);
    let element = unit_bytes(f.a.isa) / 4;
    f.a.repeat(rows, |f| {
        fetch(f);
        let most = f.vector_of(0);
        over_row(f, a.depth, from, |f, _, x| {
            let x = math::abs(f, x);
            // A NaN comes last and stays; `most` may be one.
            let larger = super::expr::extremum(f, Op::MaxPs, most, x);
            f.set(most, larger);
        });
        let most = f.across(most, |f, x, y| super::expr::extremum(f, Op::MaxPs, x, y));
        let most = f.splat(most);
        let steps = f.vector_of(127.0);
        let inverse = f.binary(Op::DivPs, steps, most);
        let (least, infinity) = (f.vector_of(MIN_RANGE), f.vector_of(f32::INFINITY));
        let (enough, finite) = (f.compare_ps(math::LESS_EQUAL, least, most), f.compare_ps(math::LESS, most, infinity));
        let useful = f.both(enough, finite);
        let zero = f.vector_of(0);
        let inverse = f.select(useful, inverse, zero);
        let factor = f.binary(Op::DivPs, most, steps);
        let factor = f.binary(Op::MulPs, factor, f32::from_bits(a.scale));
        f.store_by(Op::StoreLane, Mem::at(factor_at, 0), factor);
        over_row(f, a.depth, from, |f, at, x| {
            let x = f.binary(Op::MulPs, x, inverse);
            // A NaN becomes i32::MIN, whose low byte is 0.
            let x = f.unary(Op::CvtPs2Dq, x);
            let x = f.binary(Op::AddD, x, 128);
            f.store_low_bytes(at.of(to, element), x, None, element == 2);
        });
        f.add_into(from, step);
        f.add_imm(to, s.query_pitch);
        f.add_imm(factor_at, ELEMENT);
    });
}

/// Where a vector of a row is, in elements.
#[derive(Clone, Copy)]
enum Place {
    At(i64),
    Index(R),
}

impl Place {
    /// The place in a row of elements of some bytes.
    fn of(self, row: R, bytes: i64) -> Mem {
        match self {
            Place::At(n) => Mem::at(row, n * bytes),
            Place::Index(i) => Mem::indexed(row, i, bytes as u32, 0),
        }
    }
}

/// Runs the body for the vectors of a row of f32; the last one has zeros behind the row.
fn over_row(f: &mut Asm, length: i64, row: R, body: impl Fn(&mut Asm, Place, V)) {
    let lanes = f.isa.lanes();
    let whole = length / lanes * lanes;
    if whole > 4 * lanes {
        let (i, end) = (f.imm(0), f.imm(whole));
        f.each(i, end, lanes, |f| {
            let x = f.vector_of(Mem::indexed(row, i, 4, 0));
            body(f, Place::Index(i), x);
        });
    } else {
        for n in (0..whole).step_by(lanes as usize) {
            let x = f.vector_of(Mem::at(row, n * ELEMENT));
            body(f, Place::At(n), x);
        }
    }
    if whole < length {
        let rest = f.imm(length - whole);
        let mask = f.first_lanes(rest);
        let x = f.load_masked(Mem::at(row, whole * ELEMENT), mask);
        body(f, Place::At(whole), x);
    }
}

/// Sets sums, totals and largest scores to what they are without any keys.
fn clear(f: &mut Function, s: &Areas) {
    let width = f.a.isa.bytes();
    let fill = |f: &mut Function, area: R, bytes: i64, x: f32| {
        let x = f.a.vector_of(x);
        let (i, end) = (f.a.imm(0), f.a.imm(bytes));
        f.a.each(i, end, width, |a| a.store_vector(Mem::indexed(area, i, 1, 0), x));
    };
    fill(f, s.sums, TILE * s.sum_pitch, 0.0);
    fill(f, s.totals, TILE * width, 0.0);
    fill(f, s.largest, 64, f32::MIN);
}

/// The keys of a task.
struct Keys {
    /// Rows of a panel: one for each k, or each unit.
    rows: i64,
    /// Scales of the keys and what sums begin with, from the first key of the matrix on.
    parameters: Option<(R, R)>,
}

/// The loop over blocks of keys.
fn blocks(f: &mut Function, a: &Attention, t: &Task, s: &Areas) {
    let skips = a.bias.as_ref().is_some_and(|b| b.strides[2] == Extent::Const(0) && b.strides[3] == Extent::Const(1));
    let skips = skips && !matches!(a.keys, Extent::Const(..=COLUMNS));
    let bias = t.bias.filter(|_| skips);
    if let Some(bias) = bias {
        threshold(f, bias.at, t.seen[0], s);
    }
    let heights = match a.queries {
        Extent::Const(_) => tile::heights(a.queries),
        Extent::Param(_) => vec![1, 4, 8, QUERY_TILE],
    };
    let keys = f.extent(a.keys);
    let panels = ceil_div(f, keys, COLUMNS);
    let before = f.a.times(t.matrix, panels);
    let k = match &a.format {
        Format::F32 => Keys { rows: a.depth, parameters: None },
        Format::Bytes(b) => {
            let skipped = f.a.times_imm(before, PANEL_ROW);
            let [scales, sums] = [b.key_scales, b.key_sums].map(|buffer| {
                let at = f.buffer(buffer);
                f.a.plus(at, skipped)
            });
            Keys { rows: (a.depth + 3) / 4, parameters: Some((scales, sums)) }
        }
    };
    let bytes = f.a.times_imm(before, k.rows * PANEL_ROW);
    let panel = f.buffer(a.k);
    f.a.add_into(panel, bytes);
    // Rows of a panel of values, and the bytes of the rows of a key there.
    let (value_rows, key_bytes) = match a.format {
        Format::F32 => (keys, PANEL_ROW),
        Format::Bytes(_) => (ceil_div(f, keys, 4), PANEL_ROW / 4),
    };
    let before = f.a.times(t.matrix, value_rows);
    let bytes = f.a.times_imm(before, s.sum_pitch);
    let values = f.buffer(a.v);
    f.a.add_into(values, bytes);

    let key = f.a.imm(0);
    let (block, exit) = (f.a.label(), f.a.label());
    f.a.bind(block);
    f.a.compare(key, t.seen[1]);
    f.a.jump_if(Cond::Ge, exit);
    if let Some(bias) = bias {
        let visible = f.a.label();
        if_visible(f, bias.at, key, keys, s, visible);
        f.a.add_imm(key, COLUMNS);
        f.a.add_imm(panel, k.rows * PANEL_ROW);
        f.a.jump(block);
        f.a.bind(visible);
    }
    // Scores, panel by panel.
    let (next, to) = (f.a.copy(key), f.a.copy(s.scores));
    let block_end = f.a.lea(Mem::at(key, BLOCK));
    let block_end = f.a.min(block_end, t.seen[1]);
    let (head, scored) = (f.a.label(), f.a.label());
    f.a.bind(head);
    panel_scores(f, a, s, &k, (t.rows, &heights), (panel, next, to), block_end);
    f.a.add_imm(panel, k.rows * PANEL_ROW);
    f.a.add_imm(to, PANEL_ROW);
    f.a.add_imm(next, COLUMNS);
    f.a.compare(next, block_end);
    if let Some(bias) = bias {
        f.a.jump_if(Cond::Ge, scored);
        if_visible(f, bias.at, next, keys, s, head);
    } else {
        f.a.jump_if(Cond::Lt, head);
    }
    f.a.bind(scored);
    let columns = f.a.min(next, block_end);
    f.a.sub_into(columns, key);
    weigh(f, a, t, s, &k, key, columns);
    let right = f.a.times_imm(key, key_bytes);
    f.a.add_into(right, values);
    let multiple = if a.causal { 1 } else { keys_multiple(a.keys) };
    let (count, multiple) = match a.format {
        Format::F32 => (columns, multiple),
        Format::Bytes(_) => (ceil_div(f, columns, 4), (multiple / 4).max(1)),
    };
    weighted_values(f, a, s, t.rows, &heights, &Values { right, count, multiple, panel_rows: value_rows });
    f.a.imm_into(t.begun, 1);
    f.a.copy_into(key, next);
    f.a.jump(block);
    f.a.bind(exit);
}

/// The scores of the keys of a panel that are before `end`, and of some behind: of few keys with fewer vectors.
fn panel_scores(f: &mut Function, a: &Attention, s: &Areas, k: &Keys, rows: (R, &[usize]), at: (R, R, R), end: R) {
    let few = match a.keys {
        Extent::Const(n) if !a.causal => n % COLUMNS,
        _ => COLUMNS / 2,
    };
    let few = ceil(few, f.a.isa.lanes());
    if few == 0 || few == COLUMNS {
        return scores(f, a, s, k, rows, at, COLUMNS);
    }
    let (whole, done) = (f.a.label(), f.a.label());
    let last = f.a.lea(Mem::at(at.1, few));
    f.a.compare(end, last);
    f.a.jump_if(Cond::Gt, whole);
    scores(f, a, s, k, rows, at, few);
    f.a.jump(done);
    f.a.bind(whole);
    scores(f, a, s, k, rows, at, COLUMNS);
    f.a.bind(done);
}

/// The scores of the first `columns` keys of a panel, which begin at `key`, to `to`.
fn scores(f: &mut Function, a: &Attention, s: &Areas, k: &Keys, (rows, heights): (R, &[usize]), (panel, key, to): (R, R, R), columns: i64) {
    let count = f.a.imm(k.rows);
    match k.parameters {
        None => {
            let product = Product {
                left: s.queries,
                left_row: s.query_pitch,
                left_k: ELEMENT,
                right: panel,
                right_elem: Elem::F32,
                k: count,
                k_multiple: a.depth.max(1),
                columns,
                sums: to,
                pitch: SCORE_PITCH,
                accumulate: false,
                next: None,
                next_rows: None,
            };
            tile::by_height(f, heights, rows, |f, h| product.emit(f, h));
        }
        Some((_, sums)) => {
            let product = bytes::Product {
                left: s.queries,
                left_row: s.query_pitch,
                right: panel,
                units: count,
                multiple: k.rows,
                columns,
                begin: Some(f.a.lea(Mem::indexed(sums, key, 4, 0))),
                sums: to,
                pitch: SCORE_PITCH,
                accumulate: false,
            };
            tile::by_height(f, heights, rows, |f, h| product.emit(f, h));
        }
    }
}

/// The values of a block of keys.
struct Values {
    /// The first of them in the first panel.
    right: R,
    /// How many keys, or units of keys, there are, and what is known to divide that.
    count: R,
    multiple: i64,
    /// Rows of a panel.
    panel_rows: R,
}

/// Adds the values of a block of keys times their weights to the sums, panel by panel.
fn weighted_values(f: &mut Function, a: &Attention, s: &Areas, rows: R, heights: &[usize], v: &Values) {
    let sums = f.a.copy(s.sums);
    let panel = |f: &mut Function, columns: i64| match a.format {
        Format::F32 => {
            let product = Product {
                left: s.weights,
                left_row: s.weight_pitch,
                left_k: ELEMENT,
                right: v.right,
                right_elem: Elem::F32,
                k: v.count,
                k_multiple: v.multiple,
                columns,
                sums,
                pitch: s.sum_pitch,
                accumulate: true,
                next: None,
                next_rows: None,
            };
            tile::by_height(f, heights, rows, |f, h| product.emit(f, h));
        }
        Format::Bytes(_) => {
            let product = bytes::Product {
                left: s.weights,
                left_row: s.weight_pitch,
                right: v.right,
                units: v.count,
                multiple: v.multiple,
                columns,
                begin: None,
                sums,
                pitch: s.sum_pitch,
                accumulate: true,
            };
            tile::by_height(f, heights, rows, |f, h| product.emit(f, h));
        }
    };
    let whole = a.value_depth / COLUMNS;
    if whole > 0 {
        let panel_bytes = f.a.times_imm(v.panel_rows, PANEL_ROW);
        let count = f.a.imm(whole);
        let head = f.a.label();
        f.a.bind(head);
        panel(f, COLUMNS);
        f.a.add_into(v.right, panel_bytes);
        f.a.add_imm(sums, PANEL_ROW);
        f.a.count_down(count, 1, head);
    }
    if a.value_depth % COLUMNS != 0 {
        panel(f, a.value_depth % COLUMNS);
    }
}

/// What divides the number of keys of every block.
fn keys_multiple(keys: Extent) -> i64 {
    match keys {
        Extent::Const(n) if n % COLUMNS == 0 => COLUMNS,
        _ => 1,
    }
}

/// Sets the threshold from the bias of the keys that all queries see.
fn threshold(f: &mut Function, bias: R, seen: R, s: &Areas) {
    let lanes = f.a.isa.lanes();
    let lowest = f32::NEG_INFINITY;
    let most = f.a.vector_of(lowest);
    let i = f.a.imm(0);
    let seen = f.a.max(seen, i);
    f.a.each(i, seen, lanes, |a| {
        let x = a.vector_of(Mem::indexed(bias, i, 4, 0));
        a.binary_into(Op::MaxPs, most, x, most);
    });
    let rest = f.a.minus(seen, i);
    let mask = f.a.first_lanes(rest);
    let x = f.a.load_masked(Mem::indexed(bias, i, 4, 0), mask);
    let low = f.a.vector_of(lowest);
    let x = f.a.select(mask, x, low);
    f.a.binary_into(Op::MaxPs, most, x, most);
    let most = f.a.across(most, |a, x, y| a.binary(Op::MaxPs, x, y));
    let most = f.a.splat(most);
    let least = f.a.binary(Op::SubPs, most, HIDDEN);
    f.a.store_vector(Mem::at(s.threshold, 0), least);
}

/// Goes to a label if a key of the panel at `key` is not hidden.
fn if_visible(f: &mut Function, bias: R, key: R, keys: R, s: &Areas, visible: Label) {
    let lanes = f.a.isa.lanes();
    let (partly, hidden) = (f.a.label(), f.a.label());
    let least = f.a.vector_of(Mem::at(s.threshold, 0));
    let left = f.a.minus(keys, key);
    f.a.compare_imm(left, COLUMNS);
    f.a.jump_if(Cond::Lt, partly);
    for exist in [false, true] {
        for v in 0..COLUMNS / lanes {
            let at = Mem::indexed(bias, key, 4, v * lanes * ELEMENT);
            let x = if exist {
                let mask = f.lanes_among(left, v * lanes);
                let x = f.a.load_masked(at, mask);
                let low = f.a.vector_of(f32::NEG_INFINITY);
                f.a.select(mask, x, low)
            } else {
                f.a.vector_of(at)
            };
            let below = f.a.compare_ps(math::LESS, x, least);
            let bits = f.a.lane_bits(below);
            f.a.compare_imm(bits, (1 << lanes) - 1);
            f.a.jump_if(Cond::Ne, visible);
        }
        if !exist {
            f.a.jump(hidden);
            f.a.bind(partly);
        }
    }
    f.a.bind(hidden);
}

/// Turns the scores of a block of keys into weights, and brings totals and sums to the largest score. All
/// rows get their largest score first: no row waits for its own.
fn weigh(f: &mut Function, a: &Attention, t: &Task, s: &Areas, k: &Keys, key: R, columns: R) {
    let lanes = f.a.isa.lanes();
    let padded = ceil_div(f, columns, lanes);
    let padded = f.a.times_imm(padded, lanes);
    largest(f, a, t, s, k, key, (columns, padded));
    let first = f.a.label();
    f.a.compare_imm(t.begun, 0);
    f.a.jump_if(Cond::Eq, first);
    shrink(f, t, s);
    f.a.bind(first);
    weights(f, t, s, padded);
}

/// Completes the scores of a block of keys, and finds the largest score of every row so far and by how much
/// it is greater than the one before.
fn largest(f: &mut Function, a: &Attention, t: &Task, s: &Areas, k: &Keys, key: R, (columns, padded): (R, R)) {
    let (lanes, width) = (f.a.isa.lanes(), f.a.isa.bytes());
    let vectors = COLUMNS / lanes;
    let (scores, largest, drops) = (f.a.copy(s.scores), f.a.copy(s.largest), f.a.copy(s.drops));
    let rounded = k.parameters.zip(s.factors).map(|((scales, _), factors)| (f.a.lea(Mem::indexed(scales, key, 4, 0)), f.a.copy(factors)));
    // Keys of the block that the first query sees; every further one sees a key more.
    let seen = f.a.minus(t.seen[0], key);
    let bias = a.bias.as_ref().zip(t.bias).map(|(access, base)| {
        let at = if base.moves { f.a.lea(Mem::indexed(base.at, key, 4, 0)) } else { f.a.copy(base.at) };
        (at, base.moves, row_bytes(f, access.strides[2]))
    });
    let row = f.a.copy(t.rows);
    let head = f.a.label();
    f.a.bind(head);
    let factor = rounded.map(|(scales, factors)| (scales, f.a.broadcast(Mem::at(factors, 0))));
    let most: Vec<V> = (0..vectors).map(|_| f.a.vector_of(f32::NEG_INFINITY)).collect();
    let hides = a.mask_value.map(|most| f.a.vector_of(f32::from_bits(most)));
    let i = f.a.imm(0);
    let seen_here = if a.causal { clamp(f, seen, columns) } else { columns };
    let score = |f: &mut Asm, skipped: i64, mask: Option<M>| {
        let place = Mem::indexed(scores, i, 4, skipped);
        let x = match factor {
            None => f.vector_of(place),
            Some((scales, factor)) => {
                let x = f.unary(Op::CvtDq2Ps, place);
                let factor = f.binary(Op::MulPs, factor, Mem::indexed(scales, i, 4, skipped));
                f.binary(Op::MulPs, x, factor)
            }
        };
        let Some((at, moves, _)) = bias else { return x };
        let more = match mask {
            _ if !moves => f.broadcast(Mem::at(at, 0)),
            None => f.vector_of(Mem::indexed(at, i, 4, skipped)),
            Some(mask) => f.load_masked(Mem::indexed(at, i, 4, skipped), mask),
        };
        let sum = f.binary(Op::AddPs, x, more);
        let Some(most) = hides else { return sum };
        let hidden = f.compare_ps(math::LESS_EQUAL, more, most);
        f.select(hidden, more, sum)
    };
    let in_place = bias.is_none() && factor.is_none();
    f.a.each(i, seen_here, COLUMNS, |f| {
        for (v, &most) in most.iter().enumerate() {
            let skipped = v as i64 * width;
            let x = score(f, skipped, None);
            if !in_place {
                f.store_vector(Mem::indexed(scores, i, 4, skipped), x);
            }
            // Where a score is not a number the largest so far stays: it shows in the weights all the same.
            f.binary_into(Op::MaxPs, most, x, most);
        }
    });
    if a.causal || !matches!(a.keys, Extent::Const(n) if n % COLUMNS == 0) {
        let (head, exit) = (f.a.label(), f.a.label());
        f.a.compare(i, padded);
        f.a.jump_if(Cond::Ge, exit);
        f.a.bind(head);
        let left = f.a.minus(seen_here, i);
        let mask = f.lanes_among(left, 0);
        let x = score(&mut f.a, 0, Some(mask));
        let low = f.a.vector_of(f32::NEG_INFINITY);
        let x = f.a.select(mask, x, low);
        f.a.store_vector(Mem::indexed(scores, i, 4, 0), x);
        f.a.binary_into(Op::MaxPs, most[0], x, most[0]);
        f.a.add_imm(i, lanes);
        f.a.compare(i, padded);
        f.a.jump_if(Cond::Lt, head);
        f.a.bind(exit);
    }
    let m = combine(&mut f.a, &most, Op::MaxPs);
    let m = f.a.across(m, |a, x, y| a.binary(Op::MaxPs, x, y));
    // No score is below this: weights are 0 where all scores are minus infinity.
    let before = f.a.unary(Op::LoadLane, Mem::at(largest, 0));
    let m = f.a.binary(Op::MaxPs, m, before);
    f.a.store_by(Op::StoreLane, Mem::at(largest, 0), m);
    let drop = f.a.binary(Op::SubPs, before, m);
    f.a.store_by(Op::StoreLane, Mem::at(drops, 0), drop);

    f.a.add_imm(scores, SCORE_PITCH);
    f.a.add_imm(largest, ELEMENT);
    f.a.add_imm(drops, ELEMENT);
    if let Some((_, factors)) = rounded {
        f.a.add_imm(factors, ELEMENT);
    }
    if a.causal {
        f.a.add_imm(seen, 1);
    }
    if let Some((at, _, step)) = bias {
        f.a.add_into(at, step);
    }
    f.a.count_down(row, 1, head);
}

/// Brings totals and sums to the largest scores.
fn shrink(f: &mut Function, t: &Task, s: &Areas) {
    let width = f.a.isa.bytes();
    let (sums, totals, drops, rows) = (f.a.copy(s.sums), f.a.copy(s.totals), f.a.copy(s.drops), f.a.copy(t.rows));
    f.a.repeat(rows, |f| {
        let drop = f.broadcast(Mem::at(drops, 0));
        let shrink = weight(f, s, drop);
        let total = f.binary(Op::MulPs, shrink, Mem::at(totals, 0));
        f.store_vector(Mem::at(totals, 0), total);
        let (i, end) = (f.imm(0), f.imm(s.sum_pitch));
        f.each(i, end, width, |f| {
            let x = f.binary(Op::MulPs, shrink, Mem::indexed(sums, i, 1, 0));
            f.store_vector(Mem::indexed(sums, i, 1, 0), x);
        });
        f.add_imm(sums, s.sum_pitch);
        f.add_imm(totals, width);
        f.add_imm(drops, ELEMENT);
    });
}

/// The weights of a block of keys, and their sums.
fn weights(f: &mut Function, t: &Task, s: &Areas, padded: R) {
    let (lanes, width) = (f.a.isa.lanes(), f.a.isa.bytes());
    let (scores, weights, totals, largest) = (f.a.copy(s.scores), f.a.copy(s.weights), f.a.copy(s.totals), f.a.copy(s.largest));
    let rows = f.a.copy(t.rows);
    f.a.repeat(rows, |f| {
        let m = f.broadcast(Mem::at(largest, 0));
        let parts: Vec<V> = (0..COLUMNS / lanes).map(|v| if v == 0 { f.vector_of(Mem::at(totals, 0)) } else { f.vector_of(0) }).collect();
        let i = f.imm(0);
        let add = |f: &mut Asm, v: usize| {
            let (sum, v) = (parts[v], v as i64);
            let x = f.vector_of(Mem::indexed(scores, i, 4, v * width));
            let x = f.binary(Op::SubPs, x, m);
            let w = if s.factors.is_some() {
                let step = math::exp_step(f, x, WEIGHT_STEPS as f32);
                let element = s.weight_pitch / BLOCK;
                f.store_low_bytes(Mem::indexed(weights, i, element as u32, v * lanes * element), step, None, element == 2);
                f.binary(Op::SubPs, step, math::STEP_SHIFT)
            } else {
                let w = weight(f, s, x);
                f.store_vector(Mem::indexed(weights, i, 4, v * width), w);
                w
            };
            f.binary_into(Op::AddPs, sum, sum, w);
        };
        f.each(i, padded, COLUMNS, |f| (0..parts.len()).for_each(|v| add(f, v)));
        f.each(i, padded, lanes, |f| add(f, 0));
        let total = combine(f, &parts, Op::AddPs);
        f.store_vector(Mem::at(totals, 0), total);
        f.add_imm(scores, SCORE_PITCH);
        f.add_imm(weights, s.weight_pitch);
        f.add_imm(totals, width);
        f.add_imm(largest, ELEMENT);
    });
}

/// The weight of a score relative to the largest: [`math::exp_weight`], or the same for a power of 2.
fn weight(f: &mut Asm, s: &Areas, x: V) -> V {
    if !s.powers_of_2 {
        return math::exp_weight(f, x);
    }
    // At the bound the power of two is 2^-127, whose bits are those of 0. A NaN comes last and stays.
    let low = f.vector_of(-127.0);
    let x = f.binary(Op::MaxPs, low, x);
    let (y, power) = math::exp2(f, x);
    f.binary(Op::MulPs, y, power)
}

/// `n` rounded up to a multiple of `to`.
fn ceil(n: i64, to: i64) -> i64 {
    (n + to - 1) / to * to
}

/// `max(0, min(x, most))`.
fn clamp(f: &mut Function, x: R, most: R) -> R {
    let x = f.a.min(x, most);
    let zero = f.a.imm(0);
    f.a.max(x, zero)
}

fn combine(f: &mut Asm, parts: &[V], op: Op) -> V {
    let mut parts = parts.to_vec();
    while parts.len() > 1 {
        let half = parts.len() / 2;
        parts = (0..half).map(|i| f.binary(op, parts[i], parts[i + half])).collect();
    }
    parts[0]
}

/// Divides the sums by the totals and stores them.
fn result(f: &mut Function, a: &Attention, t: &Task, s: &Areas) {
    let (lanes, width) = (f.a.isa.lanes(), f.a.isa.bytes());
    let zero = f.a.imm(0);
    let to = Evaluator::base(f, &a.out, Elem::F32, &[t.batch, t.head, t.first, zero], Some(3)).at;
    let to = f.a.copy(to);
    let step = row_bytes(f, a.out.strides[2]);
    // Without any keys the result is 0; where all are hidden it is 0 / 0.
    let keys = f.extent(a.keys);
    let one = f.a.imm(1);
    let none = f.a.minus(one, keys);
    let none = f.a.max(none, zero);
    let none = f.a.float_of(none);
    let (sums, totals, rows) = (f.a.copy(s.sums), f.a.copy(s.totals), f.a.copy(t.rows));
    let whole = a.value_depth / lanes * lanes;
    // Scales of rounded values, in the order of their panels.
    let scales = match &a.format {
        Format::F32 => None,
        Format::Bytes(Bytes { value_scales, .. }) => {
            let skipped = f.a.times_imm(t.matrix, s.sum_pitch);
            let at = f.buffer(*value_scales);
            Some(f.a.plus(at, skipped))
        }
    };
    let scaled = |f: &mut Asm, x: V, at: Place| match scales {
        None => x,
        Some(scales) => f.binary(Op::MulPs, x, at.of(scales, ELEMENT)),
    };
    f.a.repeat(rows, |f| {
        let total = f.vector_of(Mem::at(totals, 0));
        let total = f.across(total, |a, x, y| a.binary(Op::AddPs, x, y));
        let total = f.binary(Op::AddPs, total, none);
        let total = f.splat(total);
        let one = f.vector_of(1.0);
        let factor = f.binary(Op::DivPs, one, total);
        let (i, end) = (f.imm(0), f.imm(whole));
        f.each(i, end, lanes, |f| {
            let x = f.binary(Op::MulPs, factor, Mem::indexed(sums, i, 4, 0));
            let x = scaled(f, x, Place::Index(i));
            f.store_vector(Mem::indexed(to, i, 4, 0), x);
        });
        if whole < a.value_depth {
            let rest = f.imm(a.value_depth - whole);
            let mask = f.first_lanes(rest);
            let x = f.binary(Op::MulPs, factor, Mem::at(sums, whole * ELEMENT));
            let x = scaled(f, x, Place::At(whole));
            f.store_masked(Mem::at(to, whole * ELEMENT), x, mask);
        }
        f.add_into(to, step);
        f.add_imm(sums, s.sum_pitch);
        f.add_imm(totals, width);
    });
}

/// A stride in bytes.
fn row_bytes(f: &mut Function, stride: Extent) -> R {
    let elements = f.extent(stride);
    f.a.times_imm(elements, ELEMENT)
}
