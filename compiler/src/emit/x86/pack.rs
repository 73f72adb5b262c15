//! Packing of the operands of products: four rows at a time, transposed in registers; or all rows of a tile
//! where those of one `k` are together.

use super::asm::{Asm, Cond, Mem, R, Src, V};
use super::codes::{self, Site};
use super::expr::Function;
use super::gemm::{ceil_div, group_rows};
use super::isa::Op;
use super::nest;
use super::quantize::{self, By};
use super::rows;
use crate::kernel::gemm::TILE_ROWS;
use crate::kernel::pack::{Form, MATRIX_ROWS, Pack, Range, Sums};
use crate::kernel::{Extent, Kernel};

/// Bytes of an element of a tile.
pub const ELEMENT: i64 = 4;

const TILE: i64 = TILE_ROWS as i64;
const TILE_ROW: i64 = TILE * ELEMENT;

/// Rows of a matrix tile that are made before they are packed: those of a whole tile leave the first-level cache.
const MADE_ROWS: i64 = 4;

/// Whether this emitter can emit a packing kernel.
pub fn covers(kernel: &Kernel, p: &Pack) -> bool {
    // Bytes are packed by units, whose loads may not go beyond a row: rows are known to be whole units.
    let whole = match p.form {
        Form::Floats => true,
        Form::Bytes(_) => matches!(p.k, Extent::Const(k) if k % 4 == 0),
        Form::Quantize { .. } => true,
    };
    let together = p.from.row == Extent::Const(1) && !matches!(p.form, Form::Bytes(_));
    let made = p.made_by.as_ref().is_none_or(|nest| nest::covers(kernel, nest));
    whole && made && (p.from.k == Extent::Const(1) || together)
}

/// Emits a packing kernel.
pub fn emit(f: &mut Function, p: &Pack, begin: R, end: R) {
    if let Some(nest) = &p.made_by {
        codes::bring_sites(f, &nest.exprs);
    }
    if let Form::Quantize { range: Range::Fixed { site }, .. } = p.form
        && f.site(site).is_none()
    {
        let site = Site::new(f, site, false);
        f.sites.push(site);
    }
    if let Some(pitch) = p.pitch {
        return matrix_rows(f, p, pitch, begin, end);
    }
    let mut end = end;
    if p.row_groups != Extent::Const(1) {
        // Tiles of a single matrix are numbered like tasks, which may be more.
        let m = f.extent(p.m);
        let tiles = ceil_div(f, m, p.tile as i64);
        end = f.a.min(end, tiles);
    }
    f.tasks(begin, end, |f, task| {
        let m = f.extent(p.m);
        let height = p.tile as i64;
        let tiles = ceil_div(f, m, height);
        let (matrix, tile, number) = decode(f, p, task, tiles);
        let first = f.a.times_imm(tile, height);
        let rows_end = f.a.lea(Mem::at(first, height));
        let rows_end = f.a.min(rows_end, m);
        let rows = f.a.minus(rows_end, first);
        if let Some(nest) = &p.made_by {
            nest::emit(f, nest, first, rows_end);
        }
        let bytes = if matches!(p.form, Form::Bytes(_)) { 1 } else { ELEMENT };
        let from = matrix_address(f, p.from.buffer, matrix, &p.batch, &p.from.batch, bytes);
        let k = match (p.form, p.k) {
            (Form::Floats, k) => f.extent(k),
            (_, Extent::Const(k)) => f.a.imm((k + 3) / 4),
            (_, k) => {
                let k = f.extent(k);
                ceil_div(f, k, 4)
            }
        };
        let to = f.a.times(number, k);
        let to = f.a.times_imm(to, height * ELEMENT);
        let base = f.buffer(p.to);
        f.a.add_into(to, base);
        let last = f.a.lea(Mem::at(m, -1));
        let begin_of_tile = f.a.copy(to);
        let sums = p.form.sums().map(|sums| (sums_of_tile(f, height, k, &sums, number), sums));
        let mut summed = false;
        if let Form::Quantize { range, .. } = p.form {
            let before = f.times(first, p.from.row);
            let from = f.a.lea(Mem::indexed(from, before, 4, 0));
            let by = match range {
                Range::OfRow { scales, zeros } => {
                    let before = f.a.times_imm(number, height * ELEMENT);
                    let mut of_tile = |buffer| {
                        let at = f.buffer(buffer);
                        f.a.add_into(at, before);
                        at
                    };
                    By::OfRow { scales: of_tile(scales), zeros: zeros.map(of_tile) }
                }
                Range::Fixed { site } => By::Fixed(*f.site(site).expect("sites are brought first")),
            };
            let tile = quantize::Tile { from, rows, k: f.extent(p.k), to, by, sums };
            if p.from.k == Extent::Const(1) {
                summed = quantize::along_k(f, p, &tile);
            } else {
                quantize::along_rows(f, p, &tile);
            }
        } else if p.from.k == Extent::Const(1) {
            let done = f.a.label();
            if p.tile == TILE_ROWS && !matches!(p.m, Extent::Const(..TILE)) {
                let partly = f.a.label();
                f.a.compare_imm(rows, TILE);
                f.a.jump_if(Cond::Lt, partly);
                whole_tile(f, p, from, first, k, to, bytes, sums);
                if let Some((to, sums)) = sums.filter(|(_, sums)| !sums_while_packing(f, p, sums)) {
                    row_sums(f, height, k, &sums, begin_of_tile, to);
                }
                f.a.jump(done);
                f.a.bind(partly);
            }
            let row = f.a.copy(first);
            // All of a panel is multiplied, and what it holds by chance may be slow to multiply.
            let rows_end = if p.tile == TILE_ROWS { rows_end } else { f.a.lea(Mem::at(first, height)) };
            let groups = f.a.label();
            f.a.bind(groups);
            four_rows(f, p, from, row, last, k, to, bytes);
            f.a.add_imm(to, 4 * ELEMENT);
            f.a.add_imm(row, 4);
            f.a.compare(row, rows_end);
            f.a.jump_if(Cond::Lt, groups);
            if let Some((to, sums)) = sums {
                row_sums(f, height, k, &sums, begin_of_tile, to);
            }
            f.a.bind(done);
            summed = true;
        } else {
            let from = f.a.lea(Mem::indexed(from, first, 4, 0));
            rows_together(f, p, from, rows, k, to);
        }
        if let Some((to, sums)) = sums
            && !summed
        {
            row_sums(f, height, k, &sums, begin_of_tile, to);
        }
    });
}

/// The matrix of a task, its tile there, and its number among the tiles of all matrices; a matrix has `tiles`.
fn decode(f: &mut Function, p: &Pack, task: R, tiles: R) -> (R, R, R) {
    let heads = match p.batch.last() {
        Some(&heads) if p.has_heads() => f.extent(heads),
        _ => {
            let (matrix, tile) = f.a.divide(task, tiles);
            return (matrix, tile, task);
        }
    };
    let (rest, head) = f.a.divide(task, heads);
    let (outer, tile) = f.a.divide(rest, tiles);
    let matrix = f.a.times(outer, heads);
    f.a.add_into(matrix, head);
    let number = f.a.times(matrix, tiles);
    f.a.add_into(number, tile);
    (matrix, tile, number)
}

/// Packs a single matrix whose rows stay rows: a matrix tile a task.
fn matrix_rows(f: &mut Function, p: &Pack, pitch: i64, begin: R, end: R) {
    f.tasks(begin, end, |f, task| {
        let by = f.a.imm(TILE);
        let tasks_rows = group_rows(f, p.m, p.row_groups, TILE_ROWS);
        let (tasks, _) = f.a.divide(tasks_rows, by);
        let (group, tile) = f.a.divide(task, tasks);
        let height = group_rows(f, p.m, p.row_groups, MATRIX_ROWS as usize);
        let group_first = f.a.times(group, height);
        let group_end = f.a.plus(group_first, height);
        let m = f.extent(p.m);
        let group_end = f.a.min(group_end, m);
        let first = f.a.times_imm(tile, MATRIX_ROWS);
        f.a.add_into(first, group_first);
        let rows_end = f.a.lea(Mem::at(first, MATRIX_ROWS));
        let rows_end = f.a.min(rows_end, group_end);
        let rows = f.a.minus(rows_end, first);
        let nothing = f.a.label();
        f.a.compare_imm(rows, 0);
        f.a.jump_if(Cond::Le, nothing);
        match &p.made_by {
            None => some_rows(f, p, pitch, (first, rows)),
            Some(nest) => {
                let row = f.a.copy(first);
                let head = f.a.label();
                f.a.bind(head);
                let end = f.a.lea(Mem::at(row, MADE_ROWS));
                let end = f.a.min(end, rows_end);
                nest::emit(f, nest, row, end);
                let rows = f.a.minus(end, row);
                some_rows(f, p, pitch, (row, rows));
                f.a.copy_into(row, end);
                f.a.compare(row, rows_end);
                f.a.jump_if(Cond::Lt, head);
            }
        }
        f.a.bind(nothing);
    });
}

/// Packs so many rows of a single matrix from the `first` on, which stay rows.
fn some_rows(f: &mut Function, p: &Pack, pitch: i64, (first, rows): (R, R)) {
    let before = f.times(first, p.from.row);
    let from = f.buffer(p.from.buffer);
    let from = f.a.lea(Mem::indexed(from, before, if matches!(p.form, Form::Bytes(_)) { 1 } else { 4 }, 0));
    let to = f.buffer(p.to);
    let before = f.a.times_imm(first, pitch);
    f.a.add_into(to, before);
    let by = match p.form {
        Form::Quantize { range: Range::OfRow { scales, zeros }, .. } => {
            let mut of_rows = |buffer| {
                let all = f.buffer(buffer);
                f.a.lea(Mem::indexed(all, first, 4, 0))
            };
            Some(By::OfRow { scales: of_rows(scales), zeros: zeros.map(of_rows) })
        }
        Form::Quantize { range: Range::Fixed { site }, .. } => Some(By::Fixed(*f.site(site).expect("sites are brought first"))),
        Form::Floats | Form::Bytes(_) => None,
    };
    let sums = p.form.sums().expect("rows of bytes have sums");
    let k = p.k.as_const().expect("rows have known sizes");
    let to_sums = f.buffer(sums.buffer);
    let before = f.a.times_imm(first, sums.groups(k) * ELEMENT);
    f.a.add_into(to_sums, before);
    rows::emit(f, p, (from, rows), to, by, (to_sums, sums));
}

/// Whether the sums of bytes are added up while a whole tile is packed: groups are whole steps of that.
fn sums_while_packing(f: &Function, p: &Pack, sums: &Sums) -> bool {
    let whole = |units: i64| units % f.a.isa.lanes() == 0;
    matches!(p.k, Extent::Const(k) if whole(k / 4) && (sums.covers(p.k) || whole(sums.group_units())))
}

/// Packs a left operand's tile whose rows all exist, from the `first` on, in the order of its memory: the lines of all
/// rows of a few `k` stay in the first-level cache until they are full. Sums are written if they are made
/// [on the way](sums_while_packing).
#[expect(clippy::too_many_arguments, reason = "a part of a packing kernel")]
fn whole_tile(f: &mut Function, p: &Pack, from: R, first: R, k: R, to: R, bytes: i64, sums: Option<(R, Sums)>) {
    let pieces = f.a.isa.bytes() / 16;
    let step = 4 * pieces;
    let bytes = f.a.imm(bytes);
    let pitch = f.times(bytes, p.from.row);
    let before = f.a.times(first, pitch);
    let begin = f.a.plus(from, before);
    // Three rows are addressed from one register.
    let mut rows: Vec<(R, Mem)> = vec![];
    for group in 0..TILE / 3 {
        let skipped = f.a.times_imm(pitch, 3 * group);
        let at = f.a.plus(begin, skipped);
        rows.extend([Mem::at(at, 0), Mem::indexed(at, pitch, 1, 0), Mem::indexed(at, pitch, 2, 0)].map(|m| (at, m)));
    }
    let advance = |a: &mut Asm, n: i64| rows.iter().step_by(3).for_each(|&(at, _)| a.add_imm(at, n * ELEMENT));
    let (i, at) = (f.a.imm(0), f.a.copy(to));
    let pack = |a: &mut Asm, sums: Option<(&[V], V)>| {
        let mut columns: Vec<V> = vec![];
        for (group, rows) in rows.chunks(4).enumerate() {
            let x = [0, 1, 2, 3].map(|r| a.vector_of(rows[r].1));
            let out = transposed(a, x);
            if let Some((sums, ones)) = sums {
                out.iter().for_each(|&units| add_bytes(a, sums[group], ones, units));
            }
            if a.isa.evex() {
                columns.extend(out);
            } else {
                store_pieces(a, at, group as i64 * 4 * ELEMENT, TILE_ROW, &out);
            }
        }
        advance(a, step);
        // Piece `u` of the rows of one `q` is of group `u % 3` and k = 4 q + u / 3.
        for part in 0..columns.len() / 4 {
            let x = [0, 1, 2, 3].map(|l| (4 * part + l) % 3 * 4 + (4 * part + l) / 3).map(|n| columns[n]);
            let halves = [(0, 0x44), (2, 0x44), (0, 0xee), (2, 0xee)].map(|(n, imm)| a.binary_imm(Op::ShufPieces, x[n], x[n + 1], imm));
            for q in 0..4 {
                let line = a.binary_imm(Op::ShufPieces, halves[q / 2 * 2], halves[q / 2 * 2 + 1], if q % 2 == 0 { 0x88 } else { 0xdd });
                a.store_vector(Mem::at(at, q as i64 * 4 * TILE_ROW + part as i64 * 64), line);
            }
        }
        a.add_imm(at, step * TILE_ROW);
    };
    if let Some((to, sums)) = sums.filter(|(_, sums)| sums_while_packing(f, p, sums)) {
        let (head, end) = (f.a.label(), f.a.imm(0));
        f.a.bind(head);
        f.a.add_imm(end, sums.group_units());
        let group_end = f.a.min(end, k);
        let ones = f.a.vector_of(ONES);
        let of_rows: Vec<V> = rows.chunks(4).map(|_| f.a.vector_of(0)).collect();
        f.a.each(i, group_end, step, |a| pack(a, Some((&of_rows, ones))));
        for (group, sum) in (0..).zip(of_rows) {
            let sum = f.a.fold_pieces(sum, |a, x, y| a.binary(Op::AddD, x, y));
            let sum = f.a.binary(Op::MulD, sum, sums.factor as i32);
            f.a.store_by(Op::StoreXmm, Mem::at(to, group * 4 * ELEMENT), sum);
        }
        f.a.add_imm(to, TILE_ROW);
        f.a.compare(i, k);
        return f.a.jump_if(Cond::Lt, head);
    }
    f.a.each(i, k, step, |a| pack(a, None));
    f.a.each(i, k, 1, |a| {
        for (n, &(_, row)) in rows.iter().enumerate() {
            let x = a.load_word(row);
            a.store_word(Mem::at(at, n as i64 * ELEMENT), x);
        }
        advance(a, 1);
        a.add_imm(at, TILE_ROW);
    });
}

/// Four rows with those of one `k` together: piece `q` of vector `j` holds them at k = 4 q + j.
fn transposed(a: &mut Asm, x: [V; 4]) -> [V; 4] {
    let (low, high) = (a.binary(Op::UnpackLow, x[0], x[1]), a.binary(Op::UnpackHigh, x[0], x[1]));
    let (low2, high2) = (a.binary(Op::UnpackLow, x[2], x[3]), a.binary(Op::UnpackHigh, x[2], x[3]));
    [(low, low2, 0x44), (low, low2, 0xee), (high, high2, 0x44), (high, high2, 0xee)].map(|(x, y, imm)| a.binary_imm(Op::ShufPs, x, y, imm))
}

/// Stores what [`transposed`] returns to a tile with rows of `tile_row` bytes, `skipped` bytes into each.
fn store_pieces(a: &mut Asm, at: R, skipped: i64, tile_row: i64, out: &[V; 4]) {
    for (j, &v) in out.iter().enumerate() {
        for q in 0..a.isa.bytes() / 16 {
            a.store_piece(Mem::at(at, (4 * q + j as i64) * tile_row + skipped), v, q as u8);
        }
    }
}

/// Packs the rows from `row` on; those behind `last` repeat it.
#[expect(clippy::too_many_arguments, reason = "a part of a tile")]
fn four_rows(f: &mut Function, p: &Pack, from: R, row: R, last: R, k: R, to: R, bytes: i64) {
    let pieces = f.a.isa.bytes() / 16;
    let (step, tile_row) = (4 * pieces, p.tile as i64 * ELEMENT);
    let rows: Vec<R> = (0..4)
        .map(|r| {
            let row = f.a.lea(Mem::at(row, r));
            let row = f.a.min(row, last);
            let at = f.times(row, p.from.row);
            f.a.lea(Mem::indexed(from, at, bytes as u32, 0))
        })
        .collect();
    let (i, at) = (f.a.imm(0), f.a.copy(to));
    f.a.each(i, k, step, |a| {
        let x = std::array::from_fn(|r| a.vector_of(Mem::indexed(rows[r], i, 4, 0)));
        let out = transposed(a, x);
        store_pieces(a, at, 0, tile_row, &out);
        a.add_imm(at, step * tile_row);
    });
    f.a.each(i, k, 1, |a| {
        for (j, &r) in rows.iter().enumerate() {
            let x = a.load_word(Mem::indexed(r, i, 4, 0));
            a.store_word(Mem::at(at, j as i64 * ELEMENT), x);
        }
        a.add_imm(at, tile_row);
    });
}

/// Packs the `rows` rows of a tile, at least one, of which those of one `k` are neighbours in memory.
fn rows_together(f: &mut Function, p: &Pack, from: R, rows: R, k: R, to: R) {
    let (lanes, height) = (f.a.isa.lanes(), p.tile as i64);
    let step = f.extent(p.from.k);
    let step = f.a.times_imm(step, ELEMENT);
    let (zero, all, most) = (f.a.imm(0), f.a.imm(lanes), f.a.imm(height));
    let (partly, done) = (f.a.label(), f.a.label());
    f.a.compare(rows, most);
    f.a.jump_if(Cond::Lt, partly);
    for whole in [true, false] {
        // What is left of a row behind its whole vectors is stored through a mask.
        let masks: Vec<_> = (0..(height + lanes - 1) / lanes)
            .map(|v| {
                let exist = if whole { most } else { rows };
                (!whole || (v + 1) * lanes > height).then(|| {
                    let left = f.a.lea(Mem::at(exist, -v * lanes));
                    let left = f.a.max(left, zero);
                    let left = f.a.min(left, all);
                    f.a.first_lanes(left)
                })
            })
            .collect();
        let (i, from, to) = (f.a.imm(0), f.a.copy(from), f.a.copy(to));
        f.a.each(i, k, 1, |a| {
            for (v, mask) in masks.iter().enumerate() {
                let (at, into) = (Mem::at(from, v as i64 * a.isa.bytes()), Mem::at(to, v as i64 * a.isa.bytes()));
                let x = match *mask {
                    Some(mask) => a.load_masked(at, mask),
                    None => a.vector_of(at),
                };
                match *mask {
                    Some(mask) if (v as i64 + 1) * lanes > height => a.store_masked(into, x, mask),
                    _ => a.store_vector(into, x),
                }
            }
            a.add_into(from, step);
            a.add_imm(to, height * ELEMENT);
        });
        if whole {
            f.a.jump(done);
            f.a.bind(partly);
        }
    }
    f.a.bind(done);
}

/// Where the sums of a tile go.
fn sums_of_tile(f: &mut Function, height: i64, units: R, sums: &Sums, number: R) -> R {
    let groups = ceil_div(f, units, sums.group_units());
    let skipped = f.a.times(number, groups);
    let skipped = f.a.times_imm(skipped, height * ELEMENT);
    let to = f.buffer(sums.buffer);
    f.a.add_into(to, skipped);
    to
}

/// Sums of the bytes of every row of a packed tile of `height` rows, group by group, times a factor.
fn row_sums(f: &mut Function, height: i64, units: R, sums: &Sums, tile: R, to: R) {
    let (lanes, tile_row) = (f.a.isa.lanes(), height * ELEMENT);
    // Lanes behind the rows hold what is not looked at.
    let vectors = (height + lanes - 1) / lanes;
    let partly = (height % lanes != 0).then(|| {
        let rows = f.a.imm(height % lanes);
        f.a.first_lanes(rows)
    });
    let (at, rest) = (tile, f.a.copy(units));
    let (head, done) = (f.a.label(), f.a.label());
    f.a.compare_imm(rest, 0);
    f.a.jump_if(Cond::Le, done);
    f.a.bind(head);
    let most = f.a.imm(sums.group_units());
    let count = f.a.min(rest, most);
    f.a.sub_into(rest, count);
    let acc: Vec<_> = (0..vectors).map(|_| f.a.vector_of(0)).collect();
    f.a.repeat(count, |a| {
        for (v, &acc) in acc.iter().enumerate() {
            let ones = a.vector_of(ONES);
            add_bytes(a, acc, ones, Mem::at(at, v as i64 * a.isa.bytes()));
        }
        a.add_imm(at, tile_row);
    });
    for (v, &acc) in acc.iter().enumerate() {
        let x = f.a.binary(Op::MulD, acc, sums.factor as i32);
        let at = Mem::at(to, v as i64 * f.a.isa.bytes());
        match partly {
            Some(mask) if v as i64 + 1 == vectors => f.a.store_masked(at, x, mask),
            _ => f.a.store_vector(at, x),
        }
    }
    f.a.add_imm(to, tile_row);
    f.a.compare_imm(rest, 0);
    f.a.jump_if(Cond::Gt, head);
    f.a.bind(done);
}

/// Bytes of 1, by which [`add_bytes`] multiplies.
pub const ONES: i32 = 0x0101_0101;

/// Adds the four bytes of every lane to an i32; `ones` are [`ONES`].
pub fn add_bytes(a: &mut Asm, sum: V, ones: V, bytes: impl Into<Src>) {
    if a.isa.has_vnni() {
        return a.update(Op::DotBytes, sum, ones, bytes);
    }
    let pairs = a.binary(Op::MaddUbs, ones, bytes);
    let all = a.binary(Op::MaddW, pairs, 0x0001_0001);
    a.binary_into(Op::AddD, sum, sum, all);
}

/// The address of a matrix of a batch, by its number; strides count elements of `bytes` bytes.
pub fn matrix_address(f: &mut Function, buffer: u32, matrix: R, batch: &[Extent], strides: &[Extent], bytes: i64) -> R {
    let at = f.buffer(buffer);
    let mut rest = matrix;
    for (n, (&extent, &stride)) in batch.iter().zip(strides).enumerate().rev() {
        let index = if n == 0 {
            rest
        } else {
            let extent = f.extent(extent);
            let (q, r) = f.a.divide(rest, extent);
            rest = q;
            r
        };
        if stride == Extent::Const(0) {
            continue;
        }
        let x = f.times(index, stride);
        let x = f.a.times_imm(x, bytes);
        f.a.add_into(at, x);
    }
    at
}
