//! Products of f32 rows with weights of 4 and 8 bits ([`Dequantized`]).
//!
//! Weights become f32 panels: a block of a panel is converted into scratch memory that stays in the first-level
//! cache, once for all row tiles of a task. Few rows are multiplied with weights that are converted in registers, and a
//! single row with several panels at once.

use super::asm::{Asm, Cond, Mem, R, Src, V};
use super::expr::Function;
use super::isa::{Isa, Op};
use super::row::Streams;
use crate::kernel::Extent;
use crate::kernel::gemm::{self, Dequantized, Gemm, PANEL, TILE_ROWS};

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

/// Up to how many rows tasks of a product are multiplied without blocks, and whether all tasks are; `None` if
/// no task has so few rows.
pub fn few_rows(isa: Isa, g: &Gemm) -> Option<(i64, bool)> {
    let most = most_few(isa) as i64;
    match g.m {
        Extent::Param(_) => Some((most, false)),
        Extent::Const(m) => {
            let rows = gemm::group_rows(g.m, g.row_groups, TILE_ROWS).expect("rows have groups");
            let last = m - (m - 1) / rows.max(1) * rows;
            (1..=most).contains(&last).then_some((most, m <= most))
        }
    }
}

/// What the columns of the panel at hand have.
pub struct Codes<'a> {
    d: &'a Dequantized,
    columns: R,
    scratch: R,
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

/// How the weights of a group become f32.
struct Converter {
    method: Method,
    /// What is taken off the vectors: zero points as they are loaded, with [`Method::Table`] as f32 with what
    /// high nibbles are more.
    less: Vec<Option<Src>>,
    /// Which vectors are of columns that have high nibbles.
    high: Vec<bool>,
}

/// How weights become f32. The units that shift and permute are few: what others can do is left to them.
enum Method {
    /// Of 8 bits: widened and converted.
    Bytes,
    /// Of 4 bits with EVEX: low nibbles by a table; high ones become the mantissa of [`HIGH`] by a mask.
    Table { table: V, mask: V },
    /// Of 4 bits without: low nibbles become the mantissa of [`LOW`] by a mask and `flip`, and are `bias` more than the
    /// weight; high ones are shifted and converted.
    Mantissa { mask: V, flip: V, bias: V },
}

/// What the columns of the panels from the panel of a column on have.
pub fn columns(f: &mut Function, d: &Dequantized, column: R) -> R {
    let columns = f.buffer(d.columns);
    let skipped = f.a.times_imm(column, d.groups * d.column_bytes() / PANEL as i64);
    f.a.add_into(columns, skipped);
    columns
}

impl Codes<'_> {
    /// Begins with the panel that has `columns`.
    pub fn new<'a>(f: &mut Function, d: &'a Dequantized, columns: R) -> Codes<'a> {
        Codes { d, columns, scratch: f.a.scratch(BLOCK * PANEL_ROW) }
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
            let converter = Converter::new(a, d, columns, &strip);
            let acc: Vec<Vec<V>> = (0..sets).map(|_| (0..2 * height).map(|_| a.vector_of(0)).collect()).collect();
            let step = |a: &mut Asm, n: i64| {
                let at = Mem::at(right, n * d.row_bytes());
                let mut w = converter.load(a, at.plus(strip[0]));
                if d.bits == 8 {
                    w.extend(converter.load(a, at.plus(strip[1])));
                }
                let w: Vec<V> = w.into_iter().enumerate().map(|(v, w)| converter.floats(a, w, v)).collect();
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
}

/// 2^19 as an f32: in units of its bit 4 the mantissa counts 1, 2, ….
const HIGH: f32 = 524_288.0;

/// 1.5 * 2^23 as an f32: the mantissa counts 1, 2, …, and -1, -2, … too.
const LOW: f32 = 12_582_912.0;

/// What is added to a signed weight of 4 bits when its sign is flipped and it is taken for a number without sign.
const FLIPPED: i32 = 8;

impl Converter {
    /// For a group, given what its columns have; vectors begin with the columns that are named, those of further panels too.
    fn new(a: &mut Asm, d: &Dequantized, columns: R, firsts: &[i64]) -> Converter {
        let method = match (d.bits, a.isa.evex()) {
            (8, _) => Method::Bytes,
            (_, true) => {
                let weight = |code: usize| if code < 8 { code as f32 } else { code as f32 - 16.0 };
                let table = a.table(std::array::from_fn(weight));
                Method::Table { table: a.vector_of(table), mask: a.vector_of(0xf0) }
            }
            (_, false) => Method::Mantissa {
                mask: a.vector_of(0xf),
                flip: a.vector_of(LOW.to_bits() as i32 | FLIPPED),
                bias: a.vector_of(LOW + FLIPPED as f32),
            },
        };
        let high_bias = HIGH + FLIPPED as f32;
        let bias = (matches!(method, Method::Table { .. }) && !d.zeros).then(|| a.vector_of(high_bias));
        let mut less = |c: i64| -> Option<Src> {
            let zero = Mem::at(columns, PANEL_ROW + c * ELEMENT);
            match (&method, d.zeros) {
                (Method::Table { .. }, false) => bias.filter(|_| is_high(c)).map(Src::from),
                (Method::Table { .. }, true) => {
                    let zero = a.unary(Op::CvtDq2Ps, zero);
                    Some(if is_high(c) { a.binary(Op::AddPs, zero, high_bias).into() } else { zero.into() })
                }
                (_, false) => None,
                // Without EVEX there are too few registers for zero points.
                (_, true) => Some(if a.isa.evex() { a.vector_of(zero).into() } else { zero.into() }),
            }
        };
        let less = firsts.iter().map(|&c| less(c)).collect();
        Converter { method, less, high: firsts.iter().map(|&c| is_high(c)).collect() }
    }

    /// The weights at a place, and with 4 bits those half a panel behind too, for [`floats`](Converter::floats).
    fn load(&self, a: &mut Asm, at: Mem) -> Vec<V> {
        let x = a.unary(Op::WidenI8, at);
        match self.method {
            Method::Bytes => vec![x],
            Method::Table { table, mask } => {
                let low = a.binary(Op::PermPs, x, table);
                a.mask_and_flip(x, mask, HIGH.to_bits() as i32 | FLIPPED << 4);
                vec![low, x]
            }
            Method::Mantissa { mask, flip, .. } => {
                let low = a.binary(Op::And, x, mask);
                vec![a.binary(Op::Xor, low, flip), a.unary_imm(Op::SarD, x, 4)]
            }
        }
    }

    /// The f32 of weights as they are loaded, less their zero points; `v` is the number of their vector.
    fn floats(&self, a: &mut Asm, w: V, v: usize) -> V {
        let subtract = if matches!(self.method, Method::Table { .. }) { Op::SubPs } else { Op::SubD };
        let x = self.less[v].map_or(w, |less| a.binary(subtract, w, less));
        match self.method {
            Method::Table { .. } => x,
            Method::Mantissa { bias, .. } if !self.high[v] => a.binary(Op::SubPs, x, bias),
            _ => a.unary(Op::CvtDq2Ps, x),
        }
    }
}

/// Whether weights of 4 bits of a column are in high nibbles.
fn is_high(column: i64) -> bool {
    column % PANEL as i64 >= PANEL as i64 / 2
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
        let converter = Converter::new(a, d, self.columns, &vectors);
        let scales: Vec<V> = vectors.iter().map(|&c| a.vector_of(Mem::at(self.columns, c * ELEMENT))).collect();
        let step = |a: &mut Asm, n: i64| {
            for c in (0..d.row_bytes()).step_by(lanes as usize) {
                let loaded = converter.load(a, Mem::at(self.at, n * d.row_bytes() + c));
                for (column, w) in [c, c + PANEL as i64 / 2].into_iter().zip(loaded) {
                    let v = (column / lanes) as usize;
                    let x = converter.floats(a, w, v);
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

/// How many panels a single row is multiplied with at once.
pub fn panels(isa: Isa) -> i64 {
    8 / (PANEL as i64 / isa.lanes())
}

/// Sums of different k of a single row, which are added in the end. The same for any number of panels: no result depends on
/// how many there are at once. With the most panels they keep the units that multiply busy.
fn sets(isa: Isa) -> usize {
    if isa.evex() { 2 } else { 1 }
}

/// Puts the f32 sums of a single row by `count` panels, over `k` values of k, to `sums`, [`PANEL`] for each panel. The row
/// is contiguous at `left`. Scales are applied to the sums of groups.
pub fn single(f: &mut Function, d: &Dequantized, k: i64, count: i64, (left, right, columns, sums): (R, R, R, R)) {
    let a = &mut f.a;
    let (lanes, half) = (a.isa.lanes(), PANEL as i64 / 2);
    let streams = Streams::new(a, (left, right), count, k, d.row_bytes());
    // Panels and first columns of all vectors: panel by panel, the two of a vector of nibbles together.
    let of_panel: Vec<i64> = match d.bits {
        4 => (0..half).step_by(lanes as usize).flat_map(|c| [c, c + half]).collect(),
        _ => (0..2 * half).step_by(lanes as usize).collect(),
    };
    let places: Vec<(i64, i64)> = (0..count).flat_map(|panel| of_panel.iter().map(move |&c| (panel, c))).collect();
    let sum = |(panel, c): (i64, i64)| Mem::at(sums, panel * PANEL_ROW + c * ELEMENT);
    // The first words of vectors among those that columns have.
    let words: Vec<i64> = places.iter().map(|(panel, c)| panel * d.groups * d.column_bytes() / ELEMENT + c).collect();
    let sets = self::sets(a.isa);
    let (columns, rest) = (a.copy(columns), a.imm(k));
    if d.groups > 1 {
        let zero = a.vector_of(0);
        places.iter().for_each(|&place| a.store_vector(sum(place), zero));
    }
    let head = a.label();
    a.bind(head);
    let most = a.imm(d.group);
    let values = a.min(rest, most);
    a.sub_into(rest, values);
    let converter = Converter::new(a, d, columns, &words);
    let acc: Vec<Vec<V>> = (0..sets).map(|_| places.iter().map(|_| a.vector_of(0)).collect()).collect();
    let step = |a: &mut Asm, n: i64| {
        let x = streams.unit(a, n);
        let mut v = 0;
        for panel in 0..count {
            for c in (0..d.row_bytes()).step_by(lanes as usize) {
                for w in converter.load(a, streams.weights(panel, n).plus(c)) {
                    let w = converter.floats(a, w, v);
                    a.update(Op::Fma231, acc[n as usize % sets][v], x, w);
                    v += 1;
                }
            }
        }
        streams.fetch(a, n);
    };
    // A round reads whole lines.
    let unroll = 4;
    a.unrolled(values, unroll, k % unroll == 0 && d.group % unroll == 0, step, |a, n| streams.advance(a, n));
    for (v, (&place, word)) in places.iter().zip(words).enumerate() {
        for set in &acc[1..] {
            a.binary_into(Op::AddPs, acc[0][v], acc[0][v], set[v]);
        }
        let scale = a.vector_of(Mem::at(columns, word * ELEMENT));
        let scaled = match d.groups {
            1 => a.binary(Op::MulPs, acc[0][v], scale),
            _ => a.fma(acc[0][v], scale, sum(place)),
        };
        a.store_vector(sum(place), scaled);
    }
    a.add_imm(columns, d.column_bytes());
    a.compare_imm(rest, 0);
    a.jump_if(Cond::Gt, head);
}
