//! Register tiles of products of rows of `u8` with panels of units of four `i8`, both made at run time.
//!
//! With VNNI one instruction adds four products to an i32. Without it rows are kept as words
//! ([`unit_bytes`]), the bytes of a panel are widened to words, and `vpmaddwd` adds two products: nothing
//! can overflow, where the sum of two products of bytes would not fit 16 bits.

use super::asm::{Asm, Mem, R, V};
use super::expr::Function;
use super::isa::{Isa, Op};
use super::tile::{register_tile, strips};
use crate::kernel::gemm::PANEL;

/// Bytes of the units of one k of a panel, and of a row of sums.
const PANEL_ROW: i64 = PANEL as i64 * 4;

/// Bytes of a unit of four elements of a row.
pub fn unit_bytes(isa: Isa) -> i64 {
    if isa.has_vnni() { 4 } else { 8 }
}

/// Rows by a panel.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The rows.
    pub left: R,
    /// Bytes from row to row.
    pub left_row: i64,
    /// The panel.
    pub right: R,
    /// Units of a row that are multiplied, at least one.
    pub units: R,
    /// What is known to divide their number.
    pub multiple: i64,
    /// How many columns of the panel are wanted; others may be computed too.
    pub columns: i64,
    /// What the sums of a column begin with: i32, one for each column of the panel.
    pub begin: Option<R>,
    /// The sums: i32, or f32 that the sums are added to.
    pub sums: R,
    /// Bytes from row to row of the sums.
    pub pitch: i64,
    /// Whether the sums are added to f32 that are there.
    pub accumulate: bool,
}

/// A register tile: rows and columns, each given by the first and how many there are.
#[derive(Clone, Copy)]
struct Tile {
    row: usize,
    rows: usize,
    column: i64,
    /// Vectors of i32 sums of a row.
    vectors: usize,
}

impl Product {
    /// Emits the product of the first `height` rows.
    pub fn emit(&self, f: &mut Function, height: usize) {
        let (most, vectors) = register_tile(f.a.isa);
        let lanes = f.a.isa.lanes();
        for (row, rows) in strips(height, most) {
            let mut column = 0;
            while column < self.columns {
                let left = (self.columns - column + lanes - 1) / lanes;
                // Without VNNI two vectors of partial sums become one.
                let vectors = if f.a.isa.has_vnni() { left.min(vectors as i64) } else { 1 };
                let tile = Tile { row, rows, column, vectors: vectors as usize };
                if f.a.isa.has_vnni() {
                    self.dots(f, tile)
                } else {
                    self.pairs(f, tile)
                }
                column += vectors * lanes;
            }
        }
    }

    fn dots(&self, f: &mut Function, t: Tile) {
        let width = f.a.isa.bytes();
        // A sum waits for the one before: low tiles keep several for different units.
        let sets = match t.rows * t.vectors {
            0..=3 => 4,
            4..=7 => 2,
            _ => 1,
        };
        let acc: Vec<Vec<V>> = (0..sets)
            .map(|set| {
                let begin = self.begin.filter(|_| set == 0);
                (0..t.rows * t.vectors)
                    .map(|i| match begin {
                        Some(begin) => f.a.vector_of(Mem::at(begin, t.column * 4 + (i % t.vectors) as i64 * width)),
                        None => f.a.vector_of(0),
                    })
                    .collect()
            })
            .collect();
        let unroll = sets.max(if t.rows >= 4 { 2 } else { 4 });
        self.over_units(f, t, unroll as i64, |a, p, q, n| {
            let w: Vec<V> = (0..t.vectors as i64).map(|v| a.vector_of(Mem::at(q, n * PANEL_ROW + v * width))).collect();
            for r in 0..t.rows {
                let x = a.broadcast(Mem::at(p, n * 4 + r as i64 * self.left_row));
                for (v, &w) in w.iter().enumerate() {
                    a.update(Op::DotBytes, acc[n as usize % sets][r * t.vectors + v], x, w);
                }
            }
        });
        let (first, rest) = acc.split_first().expect("at least one");
        for (i, &sum) in first.iter().enumerate() {
            for other in rest {
                f.a.binary_into(Op::AddD, sum, sum, other[i]);
            }
            self.finish(f, t, i / t.vectors, i % t.vectors, sum);
        }
    }

    fn pairs(&self, f: &mut Function, t: Tile) {
        // Lanes are the two pairs of a unit, of half of the columns in each vector.
        let acc: Vec<[V; 2]> = (0..t.rows).map(|_| [f.a.vector_of(0), f.a.vector_of(0)]).collect();
        self.over_units(f, t, 2, |a, p, q, n| {
            let w = [0, 1].map(|half| a.unary(Op::WidenBytes, Mem::at(q, n * PANEL_ROW + half * 16)));
            for (r, acc) in acc.iter().enumerate() {
                let x = a.unary(Op::BroadcastLong, Mem::at(p, n * 8 + r as i64 * self.left_row));
                for (&acc, w) in acc.iter().zip(w) {
                    let pairs = a.binary(Op::MaddW, w, x);
                    a.binary_into(Op::AddD, acc, acc, pairs);
                }
            }
        });
        for (r, [low, high]) in acc.into_iter().enumerate() {
            let mut x = f.a.sums_of_pairs(low, high);
            if let Some(begin) = self.begin {
                x = f.a.binary(Op::AddD, x, Mem::at(begin, t.column * 4));
            }
            self.finish(f, t, r, 0, x);
        }
    }

    /// Runs `step(row address, panel address, n)` for the units of a tile, `n` counting those since the addresses moved.
    fn over_units(&self, f: &mut Function, t: Tile, unroll: i64, step: impl Fn(&mut Asm, R, R, i64)) {
        let p = f.a.lea(Mem::at(self.left, t.row as i64 * self.left_row));
        let q = f.a.lea(Mem::at(self.right, t.column * 4));
        let count = f.a.copy(self.units);
        let unit = unit_bytes(f.a.isa);
        let advance = |a: &mut Asm, n: i64| {
            a.add_imm(p, n * unit);
            a.add_imm(q, n * PANEL_ROW);
        };
        f.a.unrolled(count, unroll, self.multiple % unroll == 0, |a, n| step(a, p, q, n), advance);
    }

    /// Puts a vector of sums where it belongs.
    fn finish(&self, f: &mut Function, t: Tile, row: usize, vector: usize, sum: V) {
        let at = t.column * 4 + vector as i64 * f.a.isa.bytes();
        let at = Mem::at(self.sums, (t.row + row) as i64 * self.pitch + at);
        if self.accumulate {
            let x = f.a.unary(Op::CvtDq2Ps, sum);
            let x = f.a.binary(Op::AddPs, x, at);
            f.a.store_vector(at, x);
        } else {
            f.a.store_vector(at, sum);
        }
    }
}
