//! Register tiles of f32 products: a few rows by a panel of columns, multiplied over the whole of k.

use super::asm::{Asm, Cond, Mem, R, V};
use super::expr::Function;
use super::floats;
use super::isa::{Isa, Op};
use crate::kernel::Extent;
use crate::kernel::gemm::{PANEL, TILE_ROWS};
use tfc_ir::types::Elem;

const ELEMENT: i64 = 4;

/// Bytes of a line of the caches.
pub const LINE: i64 = 64;

/// How far ahead the right operand is fetched, in bytes: the first tile of a panel finds it in memory or a far
/// cache, and what a CPU fetches by itself ends at every page.
pub const AHEAD: i64 = 2048;

/// How far ahead weights are fetched into the second-level cache as well, in bytes: of those that are in no cache of the core,
/// more can be on their way there than to the first.
pub const FAR_AHEAD: i64 = 4 * AHEAD;

/// Heights of register tiles for unknown numbers of rows: what is left of the rows is rounded up to one of them.
const HEIGHTS: [usize; 6] = [1, 2, 4, 6, 8, TILE_ROWS];

/// The register tile of an instruction set: rows and vectors.
pub fn register_tile(isa: Isa) -> (usize, usize) {
    if isa.evex() { (TILE_ROWS, 2) } else { (6, 2) }
}

/// The strips of rows that a tile is multiplied in, at most `most` at once: the first row of each and how many there are.
/// They are as even as can be, since low ones wait for loads.
pub fn strips(height: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let rows = height.div_ceil(height.div_ceil(most).max(1)).max(1);
    (0..height).step_by(rows).map(move |first| (first, rows.min(height - first)))
}

/// The heights that tiles of `m` rows in all need, ascending.
pub fn heights(m: Extent) -> Vec<usize> {
    let Extent::Const(m) = m else { return HEIGHTS.to_vec() };
    let (m, rest) = (m as usize, m as usize % TILE_ROWS);
    (rest > 0).then_some(rest).into_iter().chain((m >= TILE_ROWS).then_some(TILE_ROWS)).collect()
}

/// How many rows a tile of one of these heights has at least.
pub fn sure_rows(m: Extent, height: usize) -> usize {
    match m {
        Extent::Const(_) => height,
        Extent::Param(_) => HEIGHTS.into_iter().take_while(|&h| h < height).last().unwrap_or(0) + 1,
    }
}

/// Runs the body of the least height, of several ascending ones, that holds a number of rows.
pub fn by_height(f: &mut Function, heights: &[usize], rows: R, mut body: impl FnMut(&mut Function, usize)) {
    let done = f.a.label();
    for (i, &h) in heights.iter().enumerate() {
        if i + 1 == heights.len() {
            body(f, h);
            break;
        }
        let next = f.a.label();
        f.a.compare_imm(rows, h as i64);
        f.a.jump_if(Cond::Gt, next);
        body(f, h);
        f.a.jump(done);
        f.a.bind(next);
    }
    f.a.bind(done);
}

/// Runs `body` for the row tiles of `rows` rows, with the height that holds what is left of them and how many these are,
/// and `next` between tiles.
pub fn tiles(f: &mut Function, m: Extent, rows: R, body: impl Fn(&mut Function, usize, R), next: impl FnOnce(&mut Function)) {
    let left = f.a.copy(rows);
    let tile = f.a.label();
    f.a.bind(tile);
    by_height(f, &heights(m), left, |f, h| body(f, h, left));
    next(f);
    f.a.count_down(left, TILE_ROWS as i64, tile);
}

/// Rows by a panel.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// The left operand.
    pub left: R,
    /// Bytes from row to row of the left operand.
    pub left_row: i64,
    /// Bytes from one k to the next of the left operand.
    pub left_k: i64,
    /// The panel, or a part of its columns.
    pub right: R,
    /// Type of its elements.
    pub right_elem: Elem,
    /// Length of the dot products.
    pub k: R,
    /// What is known to divide k.
    pub k_multiple: i64,
    /// How many columns of the panel are wanted; others may be computed too.
    pub columns: i64,
    /// The sums.
    pub sums: R,
    /// Bytes from row to row of the sums.
    pub pitch: i64,
    /// Whether products are added to the sums that are there.
    pub accumulate: bool,
    /// Memory that is wanted next: a line is fetched into the second-level cache for two k, and the address moved on.
    pub next: Option<R>,
    /// Rows that are wanted next, one behind the other: as many bytes as are multiplied are fetched into the second-level cache,
    /// and the address moved on. Hardware looks ahead too late where every row is a stream of its own.
    pub next_rows: Option<R>,
}

impl Product {
    /// Emits the product of the first `height` rows.
    pub fn emit(&self, f: &mut Function, height: usize) {
        let (most, widest) = register_tile(f.a.isa);
        let lanes = f.a.isa.lanes();
        let all = (self.columns + lanes - 1) / lanes;
        for rows in strips(height, most) {
            let mut done = 0;
            while done < all {
                let vectors = (all - done).min(widest as i64);
                let strip = (rows, (done, vectors as usize));
                let sums = self.strip(f, strip.0, strip.1);
                for (i, &sum) in sums.iter().enumerate() {
                    f.a.store_vector(self.place(f.a.isa, strip, i), sum);
                }
                done += vectors;
            }
        }
    }

    /// Emits some rows by some vectors, each given by the first and how many there are; their sums, row by row.
    pub fn strip(&self, f: &mut Function, (first, rows): (usize, usize), (skipped, vectors): (i64, usize)) -> Vec<V> {
        let isa = f.a.isa;
        let element = i64::from(self.right_elem.bits() / 8);
        let (panel_row, width) = (PANEL as i64 * element, isa.lanes() * element);
        let within = skipped * width;
        let place = |i: usize| self.place(isa, ((first, rows), (skipped, vectors)), i);
        // A sum waits for the one before: low tiles keep several for different k.
        let sets = match rows * vectors {
            0..=3 => 4,
            4..=7 => 2,
            _ => 1,
        };
        let mut acc: Vec<Vec<V>> = vec![];
        for set in 0..sets {
            let begin = |f: &mut Function, i| if self.accumulate && set == 0 { f.a.vector_of(place(i)) } else { f.a.vector_of(0) };
            acc.push((0..rows * vectors).map(|i| begin(f, i)).collect());
        }
        let (p, q) = (f.a.lea(Mem::at(self.left, first as i64 * self.left_row)), f.a.lea(Mem::at(self.right, within)));
        let count = f.a.copy(self.k);
        let step = |a: &mut Asm, n: i64| {
            let b: Vec<V> = (0..vectors as i64).map(|v| floats::load(a, self.right_elem, Mem::at(q, n * panel_row + v * width))).collect();
            for line in (0..vectors as i64 * width).step_by(LINE as usize) {
                a.prefetch(Mem::at(q, n * panel_row + line + AHEAD), false);
            }
            if let (Some(next), 1) = (self.next, n % 2) {
                a.prefetch_far(Mem::at(next, n / 2 * LINE));
            }
            if let Some(next) = self.next_rows {
                a.prefetch_far(Mem::at(next, n * rows as i64 * ELEMENT));
            }
            for r in 0..rows {
                let x = a.broadcast(Mem::at(p, n * self.left_k + r as i64 * self.left_row));
                for v in 0..vectors {
                    a.update(Op::Fma231, acc[n as usize % sets][r * vectors + v], x, b[v]);
                }
            }
        };
        let advance = |a: &mut Asm, n: i64| {
            a.add_imm(p, n * self.left_k);
            a.add_imm(q, n * panel_row);
            if let Some(next) = self.next_rows {
                a.add_imm(next, n * rows as i64 * ELEMENT);
            }
            if let (Some(next), 2..) = (self.next, n) {
                a.add_imm(next, n / 2 * LINE);
            }
        };
        let unroll = sets.max(if rows >= 4 { 2 } else { 4 }) as i64;
        f.a.unrolled(count, unroll, self.k_multiple % unroll == 0, step, advance);
        while acc.len() > 1 {
            let half = acc.split_off(acc.len() / 2);
            for (x, y) in acc.iter().flatten().zip(half.iter().flatten()) {
                f.a.binary_into(Op::AddPs, *x, *x, *y);
            }
        }
        acc.swap_remove(0)
    }

    /// The place of a sum of a strip.
    fn place(&self, isa: Isa, ((first, _), (skipped, vectors)): ((usize, usize), (i64, usize)), i: usize) -> Mem {
        let (row, vector) = (first + i / vectors, skipped + (i % vectors) as i64);
        Mem::at(self.sums, row as i64 * self.pitch + vector * isa.bytes())
    }
}
