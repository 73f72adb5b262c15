//! Register tiles of products of rows of `u8` with panels of units of four `i8`, both made at run time.
//!
//! With VNNI one instruction adds four products to an i32. Without it rows are kept as words
//! ([`unit_bytes`]), the bytes of a panel are widened to words, and `vpmaddwd` adds two products: nothing
//! can overflow, where the sum of two products of bytes would not fit 16 bits.
//!
//! With matrix tiles all rows of a query tile are multiplied at once, those that do not exist too. Where the number of
//! units is not known, it is rounded up to whole tiles: rows have zeros there, and panels anything.

use super::asm::{Asm, Mem, R, Signed, Tile, V};
use super::expr::Function;
use super::gemm::ceil_div;
use super::isa::{Isa, Op};
use super::tile::{LINE, register_tile, strips};
use crate::kernel::attention::QUERY_TILE;
use crate::kernel::gemm::PANEL;
use crate::kernel::pack::MATRIX_ROWS;

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
    /// Their number, if it is known.
    pub known_units: Option<i64>,
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

/// Units that a product of matrix tiles sums up.
pub const STEP: i64 = LINE / 4;

/// Matrix tiles of sums, 16 columns each.
const SUMS: [Tile; 2] = [Tile(0), Tile(1)];

/// Matrix tiles of rows and of columns.
const WHOLE: (Tile, [Tile; 2]) = (Tile(4), [Tile(6), Tile(7)]);

/// Those of the last units of a known number.
const LAST: (Tile, [Tile; 2]) = (Tile(5), [Tile(2), Tile(3)]);

/// Gives matrix tiles the shapes for products of a known number of units, and of unknown numbers.
pub fn configure_tiles(a: &mut Asm, known_units: i64) {
    let rows = QUERY_TILE as i64;
    let last = match known_units % STEP {
        0 => STEP,
        last => last,
    };
    let (sums, columns) = ((rows, LINE), (MATRIX_ROWS, LINE));
    a.configure_tiles([sums, sums, (last, LINE), (last, LINE), (rows, LINE), (rows, 4 * last), columns, columns]);
}

/// A register tile: rows and columns, each given by the first and how many there are.
#[derive(Clone, Copy)]
struct Strip {
    row: usize,
    rows: usize,
    column: i64,
    /// Vectors of i32 sums of a row.
    vectors: usize,
}

impl Product {
    /// Emits the product of the first `height` rows.
    pub fn emit(&self, f: &mut Function, height: usize) {
        if f.a.isa.matrix_tiles() {
            return self.matrix(f);
        }
        let (most, vectors) = register_tile(f.a.isa);
        let lanes = f.a.isa.lanes();
        for (row, rows) in strips(height, most) {
            let mut column = 0;
            while column < self.columns {
                let left = (self.columns - column + lanes - 1) / lanes;
                // Without VNNI two vectors of partial sums become one.
                let vectors = if f.a.isa.has_vnni() { left.min(vectors as i64) } else { 1 };
                let tile = Strip { row, rows, column, vectors: vectors as usize };
                if f.a.isa.has_vnni() {
                    self.dots(f, tile)
                } else {
                    self.pairs(f, tile)
                }
                column += vectors * lanes;
            }
        }
    }

    /// The product of all rows of a query tile.
    fn matrix(&self, f: &mut Function) {
        let columns = (self.columns + MATRIX_ROWS - 1) / MATRIX_ROWS;
        let columns = 0..columns as usize;
        let [left_pitch, panel_pitch, none] = [self.left_row, PANEL_ROW, 0].map(|n| f.a.imm(n));
        for c in columns.clone() {
            match self.begin {
                Some(begin) => f.a.load_tile(SUMS[c], Mem::at(begin, c as i64 * LINE), none),
                None => f.a.zero_tile(SUMS[c]),
            }
        }
        let (p, q) = (f.a.copy(self.left), f.a.copy(self.right));
        let step = |a: &mut Asm, (rows, tiles): (Tile, [Tile; 2])| {
            a.load_tile(rows, Mem::at(p, 0), left_pitch);
            for c in columns.clone() {
                a.load_tile(tiles[c], Mem::at(q, c as i64 * LINE), panel_pitch);
                a.multiply_tiles(Signed::Columns, SUMS[c], rows, tiles[c]);
            }
            a.add_imm(p, LINE);
            a.add_imm(q, STEP * PANEL_ROW);
        };
        let steps = match self.known_units {
            Some(units) => f.a.imm(units / STEP),
            None => ceil_div(f, self.units, STEP),
        };
        if self.known_units.is_none_or(|units| units >= STEP) {
            f.a.repeat(steps, |a| step(a, WHOLE));
        }
        if self.known_units.is_some_and(|units| units % STEP > 0) {
            step(&mut f.a, LAST);
        }
        let store = |a: &mut Asm, to: R, pitch: R| {
            for c in columns.clone() {
                a.store_tile(Mem::at(to, c as i64 * LINE), pitch, SUMS[c]);
            }
        };
        if !self.accumulate {
            let pitch = f.a.imm(self.pitch);
            return store(&mut f.a, self.sums, pitch);
        }
        let ints = f.a.scratch(QUERY_TILE as i64 * PANEL_ROW);
        store(&mut f.a, ints, panel_pitch);
        let (from, to, rows) = (f.a.copy(ints), f.a.copy(self.sums), f.a.imm(QUERY_TILE as i64));
        f.a.repeat(rows, |a| {
            for c in columns.clone() {
                let x = a.unary(Op::CvtDq2Ps, Mem::at(from, c as i64 * LINE));
                let x = a.binary(Op::AddPs, x, Mem::at(to, c as i64 * LINE));
                a.store_vector(Mem::at(to, c as i64 * LINE), x);
            }
            a.add_imm(from, PANEL_ROW);
            a.add_imm(to, self.pitch);
        });
    }

    fn dots(&self, f: &mut Function, t: Strip) {
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

    fn pairs(&self, f: &mut Function, t: Strip) {
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
    fn over_units(&self, f: &mut Function, t: Strip, unroll: i64, step: impl Fn(&mut Asm, R, R, i64)) {
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
    fn finish(&self, f: &mut Function, t: Strip, row: usize, vector: usize, sum: V) {
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
