//! Products of f32 rows with weights of 4 and 8 bits ([`Dequantized`]).
//!
//! Weights become f32 panels: a block of a panel is converted into scratch memory that stays in the first-level
//! cache, once for all row tiles of a task. Few rows are multiplied with weights that are converted in registers.

use super::asm::{Asm, Cond, Mem, R, Src, V};
use super::expr::Function;
use super::isa::{Isa, Op};
use crate::kernel::Extent;
use crate::kernel::gemm::{Dequantized, GROUP_TILES, PANEL, TILE_ROWS};

const ELEMENT: i64 = 4;
const TILE_ROW: i64 = TILE_ROWS as i64 * ELEMENT;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// Values of k of a block: half of a first-level cache of 32 kB.
pub const BLOCK: i64 = 128;

/// The most rows that are multiplied without blocks: one register tile.
fn most_few(isa: Isa) -> usize {
    if isa.evex() { TILE_ROWS } else { 4 }
}

/// Values of k that a round of the loop converts.
const UNROLL: i64 = 2;

/// Up to how many rows tasks of a product of `m` rows are multiplied without blocks, and whether all tasks are; `None` if
/// no task has so few rows.
pub fn few_rows(isa: Isa, m: Extent) -> Option<(i64, bool)> {
    let most = most_few(isa) as i64;
    match m {
        Extent::Param(_) => Some((most, false)),
        Extent::Const(m) => (1..=most).contains(&(m % (GROUP_TILES * TILE_ROWS) as i64)).then_some((most, m <= most)),
    }
}

/// What the columns of the panel at hand have.
pub struct Codes<'a> {
    d: &'a Dequantized,
    columns: R,
    scratch: R,
    /// The f32 of every weight of 4 bits, where a vector holds them.
    table: Option<R>,
}

/// Where the conversion of a panel is.
pub struct Unpack<'a> {
    codes: &'a Codes<'a>,
    at: R,
    columns: R,
    /// Values of k that are left of the group.
    rest: R,
    /// Where blocks are put, in the layout of an f32 panel.
    pub to: R,
}

/// What weights of a group are converted with.
struct Converter {
    zeros: Option<Vec<Src>>,
    table: Option<V>,
}

impl Codes<'_> {
    /// Begins with the panel of a column.
    pub fn of_columns<'a>(f: &mut Function, d: &'a Dequantized, column: R) -> Codes<'a> {
        let columns = f.buffer(d.columns);
        let skipped = f.a.times_imm(column, d.groups * d.column_bytes() / PANEL as i64);
        f.a.add_into(columns, skipped);
        let table = (d.bits == 4 && f.a.isa.evex()).then(|| {
            let table = f.a.scratch(16 * ELEMENT);
            for code in 0..16i64 {
                let weight = (if code < 8 { code } else { code - 16 }) as f32;
                let bits = f.a.imm(weight.to_bits().into());
                f.a.store_word(Mem::at(table, code * ELEMENT), bits);
            }
            table
        });
        Codes { d, columns, scratch: f.a.scratch(BLOCK * PANEL_ROW), table }
    }

    /// Goes to the next panel.
    pub fn next_panel(&self, f: &mut Function) {
        f.a.add_imm(self.columns, self.d.groups * self.d.column_bytes());
    }

    /// The conversion of the panel, whose weights are at `right`, from its begin.
    pub fn panel(&self, f: &mut Function, right: R) -> Unpack<'_> {
        let (at, columns, rest) = (f.a.copy(right), f.a.copy(self.columns), f.a.imm(self.d.group));
        Unpack { codes: self, at, columns, rest, to: self.scratch }
    }

    /// The f32 sums of a tile of `height` rows by the panel, whose weights are at `right`, over `k` values of k. Scales are
    /// applied to the sums of groups.
    pub fn few(&self, f: &mut Function, k: i64, height: usize, left: R, right: R, sums: R) {
        let (a, d) = (&mut f.a, self.d);
        let lanes = a.isa.lanes();
        let half = PANEL as i64 / 2;
        let strips: Vec<[i64; 2]> = match d.bits {
            4 => (0..half).step_by(lanes as usize).map(|c| [c, c + half]).collect(),
            _ => (0..2 * half).step_by(2 * lanes as usize).map(|c| [c, c + lanes]).collect(),
        };
        // A sum waits for the one before: low tiles keep several for different k.
        let sets = 4 / height.min(4);
        for strip in strips {
            let place = |r: usize, v: usize| Mem::at(sums, r as i64 * PANEL_ROW + strip[v] * ELEMENT);
            let (left, right, columns, rest) = (a.copy(left), a.copy(right), a.copy(self.columns), a.imm(k));
            if d.groups > 1 {
                let zero = a.vector_of(0);
                (0..height).for_each(|r| (0..2).for_each(|v| a.store_vector(place(r, v), zero)));
            }
            let head = a.label();
            a.bind(head);
            let most = a.imm(d.group);
            let count = a.min(rest, most);
            a.sub_into(rest, count);
            let converter = self.converter(a, columns, &strip);
            let acc: Vec<Vec<V>> = (0..sets).map(|_| (0..2 * height).map(|_| a.vector_of(0)).collect()).collect();
            let step = |a: &mut Asm, n: i64| {
                let mut w = self.load(a, right, n * d.row_bytes() + strip[0], converter.table);
                if d.bits == 8 {
                    w.extend(self.load(a, right, n * d.row_bytes() + strip[1], None));
                }
                let w: Vec<V> = w.into_iter().enumerate().map(|(v, w)| converter.difference(a, w, v)).collect();
                for r in 0..height {
                    let x = a.broadcast(Mem::at(left, n * TILE_ROW + r as i64 * ELEMENT));
                    for (v, &w) in w.iter().enumerate() {
                        a.update(Op::Fma231, acc[n as usize % sets][2 * r + v], x, w);
                    }
                }
            };
            let advance = |a: &mut Asm, n: i64| {
                a.add_imm(left, n * TILE_ROW);
                a.add_imm(right, n * d.row_bytes());
            };
            a.unrolled(count, sets.max(2) as i64, false, step, advance);
            for (i, &total) in acc[0].iter().enumerate() {
                for set in &acc[1..] {
                    a.binary_into(Op::AddPs, total, total, set[i]);
                }
                let (r, v) = (i / 2, i % 2);
                let scale = a.vector_of(Mem::at(columns, strip[v] * ELEMENT));
                let scaled = match d.groups {
                    1 => a.binary(Op::MulPs, total, scale),
                    _ => a.fma(total, scale, place(r, v)),
                };
                a.store_vector(place(r, v), scaled);
            }
            a.add_imm(columns, d.column_bytes());
            a.compare_imm(rest, 0);
            a.jump_if(Cond::Gt, head);
        }
    }

    /// What the weights of a group become f32 with, given what its columns have; vectors begin with the columns that are named.
    fn converter(&self, a: &mut Asm, columns: R, firsts: &[i64]) -> Converter {
        let table = self.table.map(|t| a.vector_of(Mem::at(t, 0)));
        let place = |c: i64| Mem::at(columns, PANEL_ROW + c * ELEMENT);
        let zeros = self.d.zeros.then(|| match table {
            Some(_) => firsts.iter().map(|&c| a.unary(Op::CvtDq2Ps, place(c)).into()).collect(),
            // Without EVEX there are too few registers for zero points.
            None => firsts.iter().map(|&c| if a.isa.evex() { a.vector_of(place(c)).into() } else { place(c).into() }).collect(),
        });
        Converter { zeros, table }
    }

    /// The weights at a place: those that are loaded at once, and with 4 bits those half a panel behind too. With a table as f32, else as i32.
    fn load(&self, a: &mut Asm, at: R, place: i64, table: Option<V>) -> Vec<V> {
        let x = a.unary(Op::WidenI8, Mem::at(at, place));
        if self.d.bits == 8 {
            return vec![x];
        }
        let Some(table) = table else {
            let low = a.unary_imm(Op::ShlD, x, 28);
            return vec![a.unary_imm(Op::SarD, low, 28), a.unary_imm(Op::SarD, x, 4)];
        };
        let high = a.unary_imm(Op::ShrD, x, 4);
        vec![a.binary(Op::PermPs, x, table), a.binary(Op::PermPs, high, table)]
    }
}

impl Converter {
    /// The f32 of weights as they are loaded, less their zero points; `v` is the number of their vector.
    fn difference(&self, a: &mut Asm, w: V, v: usize) -> V {
        let subtract = if self.table.is_some() { Op::SubPs } else { Op::SubD };
        let x = self.zeros.as_ref().map_or(w, |zeros| a.binary(subtract, w, zeros[v]));
        if self.table.is_some() { x } else { a.unary(Op::CvtDq2Ps, x) }
    }
}

impl Unpack<'_> {
    /// Converts the next `count` values of k, at least one and at most [`BLOCK`].
    pub fn emit(&self, f: &mut Function, count: R) {
        let (a, d) = (&mut f.a, self.codes.d);
        let to = a.copy(self.to);
        if d.groups == 1 {
            let count = a.copy(count);
            self.group(a, to, count);
            return;
        }
        let left = a.copy(count);
        let (segment, next) = (a.label(), a.label());
        a.bind(segment);
        let count = a.min(left, self.rest);
        a.sub_into(left, count);
        a.sub_into(self.rest, count);
        self.group(a, to, count);
        a.compare_imm(self.rest, 0);
        a.jump_if(Cond::Gt, next);
        a.imm_into(self.rest, d.group);
        a.add_imm(self.columns, d.column_bytes());
        a.bind(next);
        a.compare_imm(left, 0);
        a.jump_if(Cond::Gt, segment);
    }

    /// Converts `count` values of k of one group and moves behind them; `count` is 0 then.
    fn group(&self, a: &mut Asm, to: R, count: R) {
        let d = self.codes.d;
        let lanes = a.isa.lanes();
        let vectors: Vec<i64> = (0..PANEL as i64).step_by(lanes as usize).collect();
        let converter = self.codes.converter(a, self.columns, &vectors);
        let scales: Vec<V> = vectors.iter().map(|&c| a.vector_of(Mem::at(self.columns, c * ELEMENT))).collect();
        let step = |a: &mut Asm, n: i64| {
            for c in (0..d.row_bytes()).step_by(lanes as usize) {
                let loaded = self.codes.load(a, self.at, n * d.row_bytes() + c, converter.table);
                for (column, w) in [c, c + PANEL as i64 / 2].into_iter().zip(loaded) {
                    let v = (column / lanes) as usize;
                    let x = converter.difference(a, w, v);
                    let x = a.binary(Op::MulPs, x, scales[v]);
                    a.store_vector(Mem::at(to, n * PANEL_ROW + column * ELEMENT), x);
                }
            }
        };
        let advance = |a: &mut Asm, n: i64| {
            a.add_imm(self.at, n * d.row_bytes());
            a.add_imm(to, n * PANEL_ROW);
        };
        a.unrolled(count, UNROLL, false, step, advance);
    }
}
