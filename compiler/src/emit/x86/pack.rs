//! Packing of left operands: four rows at a time, transposed in registers.

use super::asm::{Cond, Mem, R};
use super::expr::Function;
use super::isa::Op;
use crate::kernel::gemm::TILE_ROWS;
use crate::kernel::pack::Pack;
use crate::kernel::{Extent, Kernel};
use tfc_ir::types::Elem;

/// Bytes of an element, and of the elements of one `k` in a tile.
const ELEMENT: i64 = 4;
const TILE_ROW: i64 = TILE_ROWS as i64 * ELEMENT;

/// Whether this emitter can emit a packing kernel.
pub fn covers(_: &Kernel, p: &Pack) -> bool {
    p.elem == Elem::F32 && p.from.k == Extent::Const(1)
}

/// Emits a packing kernel.
pub fn emit(f: &mut Function, p: &Pack, begin: R, end: R) {
    let task = f.a.copy(begin);
    let (head, exit) = (f.a.label(), f.a.label());
    f.a.compare(task, end);
    f.a.jump_if(Cond::Ge, exit);
    f.a.bind(head);
    let m = f.extent(p.m);
    let up = f.a.lea(Mem::at(m, TILE_ROWS as i64 - 1));
    let by = f.a.imm(TILE_ROWS as i64);
    let (tiles, _) = f.a.divide(up, by);
    let (matrix, tile) = f.a.divide(task, tiles);
    let first = f.a.times_imm(tile, TILE_ROWS as i64);
    let from = matrix_address(f, p.from.buffer, matrix, &p.batch, &p.from.batch);
    let k = f.extent(p.k);
    let to = f.a.times(task, k);
    let to = f.a.times_imm(to, TILE_ROW);
    let base = f.buffer(p.to);
    f.a.add_into(to, base);
    let last = f.a.lea(Mem::at(m, -1));
    let rows_end = f.a.lea(Mem::at(first, TILE_ROWS as i64));
    let rows_end = f.a.min(rows_end, m);
    let row = f.a.copy(first);
    let groups = f.a.label();
    f.a.bind(groups);
    four_rows(f, p, from, row, last, k, to);
    f.a.add_imm(to, 4 * ELEMENT);
    f.a.add_imm(row, 4);
    f.a.compare(row, rows_end);
    f.a.jump_if(Cond::Lt, groups);
    f.a.add_imm(task, 1);
    f.a.compare(task, end);
    f.a.jump_if(Cond::Lt, head);
    f.a.bind(exit);
}

/// Packs the rows from `row` on; those behind `last` repeat it.
fn four_rows(f: &mut Function, p: &Pack, from: R, row: R, last: R, k: R, to: R) {
    let pieces = f.a.isa.bytes() / 16;
    let step = 4 * pieces;
    let rows: Vec<R> = (0..4)
        .map(|r| {
            let row = f.a.lea(Mem::at(row, r));
            let row = f.a.min(row, last);
            let at = f.times(row, p.from.row);
            f.a.lea(Mem::indexed(from, at, 4, 0))
        })
        .collect();
    let (i, at) = (f.a.imm(0), f.a.copy(to));
    f.a.each(i, k, step, |a| {
        let x: Vec<_> = rows.iter().map(|&r| a.vector_of(Mem::indexed(r, i, 4, 0))).collect();
        let (low, high) = (a.binary(Op::UnpackLow, x[0], x[1]), a.binary(Op::UnpackHigh, x[0], x[1]));
        let (low2, high2) = (a.binary(Op::UnpackLow, x[2], x[3]), a.binary(Op::UnpackHigh, x[2], x[3]));
        // Piece `q` of vector `j` holds the four rows at k = 4 q + j.
        let out = [
            a.binary_imm(Op::ShufPs, low, low2, 0x44),
            a.binary_imm(Op::ShufPs, low, low2, 0xee),
            a.binary_imm(Op::ShufPs, high, high2, 0x44),
            a.binary_imm(Op::ShufPs, high, high2, 0xee),
        ];
        for (j, v) in out.into_iter().enumerate() {
            for q in 0..pieces {
                a.store_piece(Mem::at(at, (4 * q + j as i64) * TILE_ROW), v, q as u8);
            }
        }
        a.add_imm(at, step * TILE_ROW);
    });
    f.a.each(i, k, 1, |a| {
        for (j, &r) in rows.iter().enumerate() {
            let x = a.load_word(Mem::indexed(r, i, 4, 0));
            a.store_word(Mem::at(at, j as i64 * ELEMENT), x);
        }
        a.add_imm(at, TILE_ROW);
    });
}

/// The address of a matrix of a batch, by its number.
pub fn matrix_address(f: &mut Function, buffer: u32, matrix: R, batch: &[Extent], strides: &[Extent]) -> R {
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
        let x = f.a.times_imm(x, ELEMENT);
        f.a.add_into(at, x);
    }
    at
}
