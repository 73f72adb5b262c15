//! Products of `i8` rows with weights of 4 and 8 bits ([`Quantized`](crate::kernel::gemm::Quantized)) with 16 registers: a panel
//! is multiplied strip by strip, each of two vectors of weights for a row, and block by block along k, of which the part of the
//! panel stays in the first-level cache.
//!
//! With VNNI tiles are those of [`quantized`](super::quantized). Without it, `vpmaddubsw` adds two products of a nibble and a
//! byte in i16 (at most 15 * 2 * 128), of which eight fit an i16; then they are widened and added to i32 in memory. Weights of
//! 8 bits are two nibbles there: the sums of the upper ones count sixteen times. To take nibbles out of their bytes takes 3
//! operations of the 27 of a unit; so the first tile of rows leaves them on the stack for those behind it.

use super::asm::{Asm, Cond, Mem, R, Src, V};
use super::expr::Function;
use super::isa::{Isa, Op};
use super::quantized::{self, Operands, Shape, Span, begin, begin_in_memory, by_group, even_block, nibbles, place, power_of_2, wide_group};
use super::tile::{heights, strips, tiles};
use crate::kernel::Extent;
use crate::kernel::gemm::{PANEL, Quantized, TILE_ROWS};

const TILE_ROW: i64 = TILE_ROWS as i64 * 4;
const PANEL_ROW: i64 = PANEL as i64 * 4;

/// Units that are added up in i16.
pub const NARROW: i64 = 8;

/// Rows of a register tile.
const ROWS: usize = 6;

/// Bytes of the two vectors of all units of a block: half of a small first-level cache.
const BLOCK: i64 = 16 * 1024;

/// Where the nibbles of a unit are.
#[derive(Clone, Copy)]
enum Nibbles {
    /// In a vector of the panel.
    Packed,
    /// The same; they are left at an address, which moves on.
    Keep(R),
    /// Where they were left.
    Kept(R),
}

/// A product of the rows of a task with a strip of a panel.
struct Strip<'a> {
    q: &'a Quantized,
    m: Extent,
    /// The first columns of the vectors of a row of sums, from that of the strip on.
    columns: Vec<i64>,
    /// Units of the panel.
    units: i64,
    /// Units that all rows are multiplied with before those behind them.
    block: i64,
    /// Where the nibbles of a block are left.
    kept: Option<R>,
}

/// Emits the sums of `rows` rows, of `m`, by a panel of `units` units, to memory.
pub fn product(f: &mut Function, q: &Quantized, m: Extent, units: i64, o: &Operands, rows: R) {
    let (isa, bytes) = (f.a.isa, f.a.isa.bytes());
    let whole = if q.groups > 1 { (q.group + 3) / 4 } else { NARROW };
    let most = BLOCK / (2 * bytes * whole) * whole;
    let several = most > 0 && heights(m).contains(&TILE_ROWS);
    let block = if several { even_block(units, most, whole) } else { units };
    let kept = (several && !isa.has_vnni()).then(|| f.a.scratch(2 * bytes * block));
    let columns = match (q.bits, isa.has_vnni()) {
        (4, _) => vec![0, PANEL as i64 / 2],
        (_, true) => vec![0, isa.lanes()],
        (_, false) => vec![0],
    };
    // Vectors of the panel, and of its columns, from strip to strip.
    let vectors = if q.bits == 8 && isa.has_vnni() { 2 } else { 1 };
    let strip = Strip { q, m, columns, units, block, kept };
    let mut o = *o;
    for at in [&mut o.right, &mut o.columns, &mut o.sums, &mut o.ints] {
        *at = f.a.copy(*at);
    }
    let count = f.a.imm(q.unit_bytes() / (vectors * bytes));
    f.repeat(count, |f| {
        strip.emit(f, &o, rows);
        for at in [o.right, o.columns, o.sums, o.ints] {
            f.a.add_imm(at, vectors * bytes);
        }
    });
}

impl Strip<'_> {
    fn emit(&self, f: &mut Function, o: &Operands, rows: R) {
        if !self.begins_in_registers(f.a.isa) {
            begin_in_memory(f, self.q, o, &self.columns, rows);
        }
        let (left, right) = (f.a.copy(o.left), f.a.copy(o.right));
        let (columns, row_sums) = (f.a.copy(o.columns), f.a.copy(o.row_sums));
        let of_block = Operands { left, right, columns, row_sums, ..*o };
        let rest = f.a.imm(self.units);
        let next = f.a.label();
        f.a.bind(next);
        let most = f.a.imm(self.block);
        let count = f.a.min(rest, most);
        self.block(f, &of_block, count, rows);
        if self.block < self.units {
            of_block.next_block(&mut f.a, self.q, self.block);
            f.a.count_down(rest, self.block, next);
        }
    }

    /// Whether sums are made as a whole.
    fn begins_in_registers(&self, isa: Isa) -> bool {
        isa.has_vnni() && self.q.groups == 1 && self.block == self.units
    }

    /// Adds the products of all rows with `count` units.
    fn block(&self, f: &mut Function, o: &Operands, count: R, rows: R) {
        let there = f.a.imm(0);
        let (left, sums, row_sums) = (f.a.copy(o.left), f.a.copy(o.sums), f.a.copy(o.row_sums));
        let row_zeros = o.row_zeros.map(|at| f.a.copy(at));
        let of_tile = Operands { left, row_sums, row_zeros, sums, ..*o };
        tiles(
            f,
            self.m,
            rows,
            |f, height, _| {
                let a = &mut f.a;
                let shape = |(first_row, rows)| Shape { first_row, rows, columns: self.columns.clone() };
                let registers: Vec<Shape> = strips(height, ROWS).map(shape).collect();
                let Some(kept) = self.kept.filter(|_| height >= ROWS) else {
                    return registers.iter().for_each(|s| self.rows(a, s, Nibbles::Packed, &of_tile, count));
                };
                let (first, others) = registers.split_first().expect("a tile has rows");
                let (again, done) = (a.label(), a.label());
                a.compare_imm(there, 0);
                a.jump_if(Cond::Ne, again);
                self.rows(a, first, if others.is_empty() { Nibbles::Packed } else { Nibbles::Keep(kept) }, &of_tile, count);
                a.jump(done);
                a.bind(again);
                self.rows(a, first, Nibbles::Kept(kept), &of_tile, count);
                a.bind(done);
                others.iter().for_each(|s| self.rows(a, s, Nibbles::Kept(kept), &of_tile, count));
                if height == TILE_ROWS {
                    a.imm_into(there, 1);
                }
            },
            |f| {
                of_tile.next_tile(&mut f.a, self.q, self.units);
                f.a.add_imm(sums, TILE_ROWS as i64 * PANEL_ROW);
            },
        );
    }

    /// Adds the products of the rows of a register tile with `count` units to their sums.
    fn rows(&self, a: &mut Asm, s: &Shape, nibbles: Nibbles, o: &Operands, count: R) {
        let (left, right) = (a.lea(Mem::at(o.left, s.first_row as i64 * 4)), a.copy(o.right));
        let count = a.copy(count);
        if a.isa.has_vnni() {
            return self.dots(a, s, (left, right), o, count);
        }
        let nibbles = match nibbles {
            Nibbles::Packed => Nibbles::Packed,
            Nibbles::Keep(at) => Nibbles::Keep(a.copy(at)),
            Nibbles::Kept(at) => Nibbles::Kept(a.copy(at)),
        };
        if self.q.groups == 1 {
            return self.multiply(a, s, nibbles, (left, right), count, o.sums);
        }
        by_group(a, self.q, count, o, |a, count, o, _| {
            for r in 0..s.rows {
                for &c in &s.columns {
                    let x = begin(a, self.q, o, s.first_row + r, c);
                    a.store_vector(place(o.ints, s, r, c), x);
                }
            }
            self.multiply(a, s, nibbles, (left, right), count, o.ints);
            add_group(a, s, o);
        });
    }

    /// The same with VNNI; both operands move behind the units.
    fn dots(&self, a: &mut Asm, s: &Shape, (left, right): (R, R), o: &Operands, count: R) {
        let q = self.q;
        if q.groups == 1 {
            let span = Span { left, right, count, usual: self.block, multiple: power_of_2(self.block | self.units), kept: None };
            let at = |r: usize, v: usize| place(o.sums, s, r, s.columns[v]);
            let in_registers = self.begins_in_registers(a.isa);
            let begin = |a: &mut Asm, r: usize, v: usize| match in_registers {
                true => begin(a, q, o, s.first_row + r, s.columns[v]),
                false => a.vector_of(at(r, v)),
            };
            return wide_group(a, q, s, &span, begin, |a, r, sums| (0..2).for_each(|v| a.store_vector(at(r, v), sums[v])));
        }
        by_group(a, q, count, o, |a, count, o, per_group| {
            let span = Span { left, right, count, usual: per_group, multiple: power_of_2(per_group | self.units), kept: None };
            let begin = |a: &mut Asm, r: usize, v: usize| begin(a, q, o, s.first_row + r, s.columns[v]);
            wide_group(a, q, s, &span, begin, |a, r, sums| quantized::add_group(a, s, o, r, sums));
        });
    }

    /// Without VNNI: adds products to i32 at `ints`. Both operands, and the address of nibbles, move behind `count` units, which
    /// becomes 0.
    fn multiply(&self, a: &mut Asm, s: &Shape, nibbles: Nibbles, (left, right): (R, R), count: R, ints: R) {
        let step = |a: &mut Asm, acc: &[[V; 2]], n: i64, first: bool| {
            let w = self.take(a, nibbles, right, n);
            for (r, sums) in acc.iter().enumerate() {
                let x = a.broadcast(Mem::at(left, n * TILE_ROW + r as i64 * 4));
                for (&sum, w) in sums.iter().zip(w) {
                    if first {
                        a.binary_into(Op::MaddUbs, sum, w, x);
                    } else {
                        let p = a.binary(Op::MaddUbs, w, x);
                        a.binary_into(Op::AddW, sum, sum, p);
                    }
                }
            }
        };
        let advance = |a: &mut Asm, n: i64| {
            a.add_imm(left, n * TILE_ROW);
            match nibbles {
                Nibbles::Packed => a.add_imm(right, n * self.q.unit_bytes()),
                Nibbles::Keep(at) => {
                    a.add_imm(right, n * self.q.unit_bytes());
                    a.add_imm(at, 2 * n * a.isa.bytes());
                }
                Nibbles::Kept(at) => a.add_imm(at, 2 * n * a.isa.bytes()),
            }
            a.add_imm(count, -n);
        };
        let (head, tail, exit) = (a.label(), a.label(), a.label());
        a.compare_imm(count, NARROW);
        a.jump_if(Cond::Lt, tail);
        a.bind(head);
        let acc: Vec<[V; 2]> = (0..s.rows).map(|_| [a.v(), a.v()]).collect();
        for n in 0..NARROW {
            step(a, &acc, n, n == 0);
        }
        widen(a, s, &acc, ints);
        advance(a, NARROW);
        a.compare_imm(count, NARROW);
        a.jump_if(Cond::Ge, head);
        a.bind(tail);
        a.compare_imm(count, 0);
        a.jump_if(Cond::Le, exit);
        let acc: Vec<[V; 2]> = (0..s.rows).map(|_| [a.vector_of(0), a.vector_of(0)]).collect();
        let one = a.label();
        a.bind(one);
        step(a, &acc, 0, false);
        advance(a, 1);
        a.compare_imm(count, 0);
        a.jump_if(Cond::Gt, one);
        widen(a, s, &acc, ints);
        a.bind(exit);
    }

    /// The low and the high nibbles of unit `n`.
    fn take(&self, a: &mut Asm, from: Nibbles, right: R, n: i64) -> [V; 2] {
        let kept = |a: &Asm, at: R| [0, 1].map(|v| Mem::at(at, (2 * n + v) * a.isa.bytes()));
        if let Nibbles::Kept(at) = from {
            return kept(a, at).map(|at| a.vector_of(at));
        }
        let both = a.vector_of(Mem::at(right, n * self.q.unit_bytes()));
        let w = nibbles(a, both);
        if let Nibbles::Keep(at) = from {
            kept(a, at).into_iter().zip(w).for_each(|(at, w)| a.store_vector(at, w));
        }
        w
    }
}

/// Adds sums of i16 to i32.
fn widen(a: &mut Asm, s: &Shape, acc: &[[V; 2]], ints: R) {
    for (r, &[low, high]) in acc.iter().enumerate() {
        let add = |a: &mut Asm, column: i64, parts: &[(V, i32)]| {
            let at = place(ints, s, r, column);
            let mut sum: Src = at.into();
            for &(x, factor) in parts {
                let x = a.binary(Op::MaddW, x, factor << 16 | factor);
                sum = a.binary(Op::AddD, x, sum).into();
            }
            let sum = a.vector_of(sum);
            a.store_vector(at, sum);
        };
        match s.columns[..] {
            [c] => add(a, c, &[(low, 1), (high, 16)]),
            ref columns => columns.iter().zip([low, high]).for_each(|(&c, x)| add(a, c, &[(x, 1)])),
        }
    }
}

/// Converts the sums of a group, multiplies them by its scales and adds the groups before.
fn add_group(a: &mut Asm, s: &Shape, o: &Operands) {
    for &c in &s.columns {
        let scale = a.vector_of(Mem::at(o.columns, c * 4));
        for r in 0..s.rows {
            let x = a.unary(Op::CvtDq2Ps, place(o.ints, s, r, c));
            let t = a.fma(x, scale, place(o.sums, s, r, c));
            a.store_vector(place(o.sums, s, r, c), t);
        }
    }
}
