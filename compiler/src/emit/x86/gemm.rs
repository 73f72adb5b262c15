//! Matrix products: for a panel of the right operand, one row tile after the other in registers over the
//! whole of k, then the epilogue over the sums of the tile.

use super::asm::{Cond, Mem, R, V};
use super::expr::{Base, Evaluator, Function, Lanes, supported};
use super::isa::{Isa, Op};
use super::pack::matrix_address;
use super::quantized;
use crate::kernel::gemm::{CHUNK, Format, GROUP_TILES, Gemm, PANEL, TILE_ROWS};
use crate::kernel::nest::{Effect, Reduction};
use crate::kernel::{Extent, Kernel};
use cranelift_entity::EntityRef;
use tfc_ir::types::Elem;

const ELEMENT: i64 = 4;
const TILE_ROW: i64 = TILE_ROWS as i64 * ELEMENT;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// Heights of register tiles: what is left of the rows is rounded up to one of them.
const HEIGHTS: [usize; 6] = [1, 2, 4, 6, 8, TILE_ROWS];

/// The register tile of an instruction set: rows and vectors.
fn register_tile(isa: Isa) -> (usize, usize) {
    if isa.evex() { (TILE_ROWS, 2) } else { (6, 2) }
}

/// Whether this emitter can emit a product.
pub fn covers(kernel: &Kernel, g: &Gemm) -> bool {
    let lane_loop = g.batch.len() as u32 + 1;
    let units = matches!((&g.format, g.k), (Format::F32, _) | (Format::Quantized(_), Extent::Const(1..)));
    units
        && supported(kernel, &g.exprs, &g.effects, lane_loop)
        && g.effects
            .iter()
            .all(|e| matches!(e, Effect::Store(a, x) if a.strides[lane_loop as usize] == Extent::Const(1) && g.exprs[*x].1 == Elem::F32))
}

/// Emits a product.
pub fn emit(f: &mut Function, g: &Gemm, begin: R, end: R) {
    let sums = f.a.scratch((TILE_ROWS * PANEL) as i64 * ELEMENT);
    let (depth, panel_row) = match &g.format {
        Format::F32 => (g.k, PANEL_ROW),
        Format::Quantized(q) => {
            let k = g.k.as_const().expect("weights have known sizes");
            (Extent::Const((k + 3) / 4), PANEL_ROW * i64::from(q.bits) / 8)
        }
    };
    let task = f.a.copy(begin);
    let (head, exit) = (f.a.label(), f.a.label());
    f.a.compare(task, end);
    f.a.jump_if(Cond::Ge, exit);
    f.a.bind(head);
    // Where the task is.
    let height = (GROUP_TILES * TILE_ROWS) as i64;
    let (m, n) = (f.extent(g.m), f.extent(g.n));
    let groups = ceil_div(f, m, height);
    let chunks = ceil_div(f, n, CHUNK as i64);
    let (number, group) = f.a.divide(task, groups);
    let (matrix, chunk) = f.a.divide(number, chunks);
    let first_row = f.a.times_imm(group, height);
    let rows_end = f.a.lea(Mem::at(first_row, height));
    let rows_end = f.a.min(rows_end, m);
    let column = f.a.times_imm(chunk, CHUNK as i64);
    let columns_end = f.a.lea(Mem::at(column, CHUNK as i64));
    let columns_end = f.a.min(columns_end, n);
    let k = f.extent(depth);
    let left = matrix_address(f, g.left.buffer, matrix, &g.batch, &g.left.batch, ELEMENT);
    let skipped = f.a.times(first_row, k);
    let skipped = f.a.times_imm(skipped, ELEMENT);
    f.a.add_into(left, skipped);
    let right = matrix_address(f, g.right.buffer, matrix, &g.batch, &g.right.batch, ELEMENT);
    let skipped = f.a.times(column, k);
    let skipped = f.a.times_imm(skipped, panel_row / PANEL as i64);
    f.a.add_into(right, skipped);
    let quantized = match &g.format {
        Format::F32 => None,
        Format::Quantized(q) => {
            let row_sums = f.buffer(q.sums);
            let m = f.extent(g.m);
            let tiles = ceil_div(f, m, TILE_ROWS as i64);
            let before = f.a.times(matrix, tiles);
            let group_tiles = f.a.times_imm(group, GROUP_TILES as i64);
            f.a.add_into(before, group_tiles);
            let skipped = f.a.times_imm(before, q.groups * TILE_ROW);
            f.a.add_into(row_sums, skipped);
            let scales = f.buffer(q.scales);
            let skipped = f.a.times_imm(column, q.groups * ELEMENT);
            f.a.add_into(scales, skipped);
            let ints = if q.groups == 1 { sums } else { f.a.scratch((TILE_ROWS * PANEL) as i64 * ELEMENT) };
            Some((row_sums, scales, ints))
        }
    };
    let batch = split(f, matrix, &g.batch);

    // Panel by panel, row tile by row tile.
    let panel = f.a.label();
    f.a.bind(panel);
    let row = f.a.copy(first_row);
    let tile_left = f.a.copy(left);
    let tile_sums = quantized.map(|(row_sums, ..)| f.a.copy(row_sums));
    let tile = f.a.label();
    f.a.bind(tile);
    let rows = f.a.minus(rows_end, row);
    let done = f.a.label();
    let heights = heights(g.m);
    for (i, &h) in heights.iter().enumerate() {
        let next = f.a.label();
        if i + 1 < heights.len() {
            f.a.compare_imm(rows, h as i64);
            f.a.jump_if(Cond::Gt, next);
        }
        match (&g.format, quantized, tile_sums) {
            (Format::Quantized(q), Some((_, scales, ints)), Some(row_sums)) => {
                let units = depth.as_const().expect("weights have known sizes");
                quantized::product(f, q, units, h, &quantized::Operands { left: tile_left, right, scales, row_sums, sums, ints });
            }
            _ => product(f, g, h, tile_left, right, sums),
        }
        if i + 1 < heights.len() {
            f.a.jump(done);
        }
        f.a.bind(next);
    }
    f.a.bind(done);
    epilogue(f, g, &batch, row, rows_end, column, columns_end, sums);
    let k = f.extent(depth);
    let tile_bytes = f.a.times_imm(k, TILE_ROW);
    f.a.add_into(tile_left, tile_bytes);
    if let (Format::Quantized(q), Some(row_sums)) = (&g.format, tile_sums) {
        f.a.add_imm(row_sums, q.groups * TILE_ROW);
    }
    f.a.add_imm(row, TILE_ROWS as i64);
    f.a.compare(row, rows_end);
    f.a.jump_if(Cond::Lt, tile);
    let k = f.extent(depth);
    let panel_bytes = f.a.times_imm(k, panel_row);
    f.a.add_into(right, panel_bytes);
    if let (Format::Quantized(q), Some((_, scales, _))) = (&g.format, quantized) {
        f.a.add_imm(scales, q.groups * PANEL_ROW);
    }
    f.a.add_imm(column, PANEL as i64);
    f.a.compare(column, columns_end);
    f.a.jump_if(Cond::Lt, panel);

    f.a.add_imm(task, 1);
    f.a.compare(task, end);
    f.a.jump_if(Cond::Lt, head);
    f.a.bind(exit);
}

/// The heights that tiles of `m` rows in all need, ascending.
fn heights(m: Extent) -> Vec<usize> {
    let Extent::Const(m) = m else { return HEIGHTS.to_vec() };
    let rest = m % TILE_ROWS as i64;
    let rest = HEIGHTS.into_iter().find(|&h| (1..=h as i64).contains(&rest));
    let full = (m >= TILE_ROWS as i64).then_some(TILE_ROWS);
    let mut heights: Vec<usize> = rest.into_iter().chain(full).collect();
    heights.dedup();
    heights
}

fn ceil_div(f: &mut Function, x: R, by: i64) -> R {
    let up = f.a.lea(Mem::at(x, by - 1));
    let by = f.a.imm(by);
    f.a.divide(up, by).0
}

/// The indices of the batch loops.
fn split(f: &mut Function, matrix: R, batch: &[Extent]) -> Vec<R> {
    let mut rest = matrix;
    let mut out = vec![];
    for (n, &extent) in batch.iter().enumerate().rev() {
        if n == 0 {
            out.push(rest);
            break;
        }
        let extent = f.extent(extent);
        let (q, r) = f.a.divide(rest, extent);
        rest = q;
        out.push(r);
    }
    out.reverse();
    out
}

/// The sums of a tile of `height` rows by a panel.
fn product(f: &mut Function, g: &Gemm, height: usize, left: R, right: R, sums: R) {
    let (most, vectors) = register_tile(f.a.isa);
    let width = f.a.isa.bytes();
    for first in (0..height).step_by(most) {
        let rows = most.min(height - first);
        for strip in 0..PANEL as i64 * ELEMENT / (vectors as i64 * width) {
            let within = strip * vectors as i64 * width;
            let place = |r: usize, v: usize| Mem::at(sums, (first + r) as i64 * PANEL_ROW + within + v as i64 * width);
            // A sum waits for the one before: low tiles keep several for different k.
            let sets = match rows * vectors {
                0..=3 => 4,
                4..=7 => 2,
                _ => 1,
            };
            let acc: Vec<Vec<V>> = (0..sets).map(|_| (0..rows * vectors).map(|_| f.a.vector_of(0)).collect()).collect();
            let (p, q) = (f.a.lea(Mem::at(left, first as i64 * ELEMENT)), f.a.lea(Mem::at(right, within)));
            let count = f.extent(g.k);
            let step = |f: &mut Function, set: usize, n: i64| {
                let b: Vec<V> = (0..vectors as i64).map(|v| f.a.vector_of(Mem::at(q, n * PANEL_ROW + v * width))).collect();
                for r in 0..rows {
                    let x = f.a.broadcast(Mem::at(p, n * TILE_ROW + r as i64 * ELEMENT));
                    for v in 0..vectors {
                        f.a.update(Op::Fma231, acc[set][r * vectors + v], x, b[v]);
                    }
                }
            };
            let advance = |f: &mut Function, n: i64| {
                f.a.add_imm(p, n * TILE_ROW);
                f.a.add_imm(q, n * PANEL_ROW);
            };
            let unroll = sets.max(if rows >= 4 { 2 } else { 4 }) as i64;
            let (head, tail, exit) = (f.a.label(), f.a.label(), f.a.label());
            f.a.compare_imm(count, unroll);
            f.a.jump_if(Cond::Lt, tail);
            f.a.bind(head);
            for n in 0..unroll {
                step(f, n as usize % sets, n);
            }
            advance(f, unroll);
            f.a.add_imm(count, -unroll);
            f.a.compare_imm(count, unroll);
            f.a.jump_if(Cond::Ge, head);
            f.a.bind(tail);
            if !matches!(g.k, Extent::Const(k) if k % unroll == 0) {
                f.a.compare_imm(count, 0);
                f.a.jump_if(Cond::Le, exit);
                let one = f.a.label();
                f.a.bind(one);
                step(f, 0, 0);
                advance(f, 1);
                f.a.add_imm(count, -1);
                f.a.compare_imm(count, 0);
                f.a.jump_if(Cond::Gt, one);
            }
            f.a.bind(exit);
            let mut sets = acc;
            while sets.len() > 1 {
                let half = sets.split_off(sets.len() / 2);
                for (x, y) in sets.iter().flatten().zip(half.iter().flatten()) {
                    f.a.binary_into(Op::AddPs, *x, *x, *y);
                }
            }
            for r in 0..rows {
                for v in 0..vectors {
                    f.a.store_vector(place(r, v), sets[0][r * vectors + v]);
                }
            }
        }
    }
}

/// The epilogue of a tile: row by row, the vectors of a panel at once.
#[expect(clippy::too_many_arguments, reason = "the coordinates of a tile")]
fn epilogue(f: &mut Function, g: &Gemm, batch: &[R], first: R, rows_end: R, column: R, columns_end: R, sums: R) {
    let lane_loop = g.batch.len() as u32 + 1;
    let lanes = f.a.isa.lanes();
    let tile_end = f.a.lea(Mem::at(first, TILE_ROWS as i64));
    let tile_end = f.a.min(tile_end, rows_end);
    let (row, sum) = (f.a.copy(first), f.a.copy(sums));
    let head = f.a.label();
    f.a.bind(head);
    let mut index = batch.to_vec();
    index.extend([row, column]);
    let mut shared = Evaluator::new(&g.exprs);
    shared.find_loads(f, |_| true, &index, Some(lane_loop));
    let stores: Vec<Base> = g
        .effects
        .iter()
        .map(|e| {
            let Effect::Store(to, x) = e else { unreachable!("products store") };
            Evaluator::base(f, to, g.exprs[*x].1, &index, Some(lane_loop))
        })
        .collect();
    let body = |f: &mut Function, lane: i64, kind: Lanes| {
        let mut e = shared.clone();
        (e.index, e.lanes) = (Some((column, lane)), kind);
        e.reduced[Reduction::new(0)] = Some(f.a.vector_of(Mem::at(sum, lane * ELEMENT)));
        for (effect, &to) in g.effects.iter().zip(&stores) {
            let Effect::Store(_, x) = effect else { unreachable!("products store") };
            e.store(f, to, *x);
        }
    };
    let vectors = PANEL as i64 / lanes;
    let (partly, done) = (f.a.label(), f.a.label());
    let whole = matches!(g.n, Extent::Const(n) if n % PANEL as i64 == 0);
    let left = f.a.minus(columns_end, column);
    if !whole {
        f.a.compare_imm(left, PANEL as i64);
        f.a.jump_if(Cond::Lt, partly);
    }
    for v in 0..vectors {
        body(f, v * lanes, Lanes::All);
    }
    if !whole {
        f.a.jump(done);
        f.a.bind(partly);
        for v in 0..vectors {
            let rest = f.a.lea(Mem::at(left, -v * lanes));
            f.a.compare_imm(rest, 0);
            f.a.jump_if(Cond::Le, done);
            let most = f.a.imm(lanes);
            let count = f.a.min(rest, most);
            let mask = f.a.first_lanes(count);
            body(f, v * lanes, Lanes::Some(mask));
        }
        f.a.bind(done);
    }
    f.a.add_imm(sum, PANEL_ROW);
    f.a.add_imm(row, 1);
    f.a.compare(row, tile_end);
    f.a.jump_if(Cond::Lt, head);
}
