//! Packing that quantizes. A first pass over the rows of a tile finds their largest magnitudes, or their ends where zero points are
//! wanted, unless their scale is known, a second one their codes: of four rows at a time where the elements of a row are together, whose bytes then only need
//! to be narrowed to be in order; or of a vector of rows where those of one `k` are together.

use super::asm::{Asm, Cond, Label, M, Mem, R, V};
use super::codes::{self, Site};
use super::expr::Function;
use super::isa::Op;
use super::math;
use super::pack::{ELEMENT, ONES, add_bytes};
use crate::kernel::Extent;
use crate::kernel::pack::{Pack, Sums};
use tfc_ir::quant::MIN_RANGE;

/// Bits of a magnitude: as integers they have the order of the numbers, NaN last.
const MAGNITUDE: i32 = 0x7fff_ffff;

/// The longest k of which four rows, and a tile of them, fit the first-level cache: four rows are packed
/// when their ranges are known, then the next four.
const SHORT: i64 = 1024;

/// Of longer rows, values of k that all rows of a tile are packed for before those behind, unless sums say
/// otherwise: a cache line of a tile belongs to several rows, and what is written fits the first-level cache.
const BLOCK: i64 = 512;

/// A tile of a packing kernel.
pub struct Tile {
    /// Address of its first element.
    pub from: R,
    /// Number of its rows that exist, at least 1.
    pub rows: R,
    /// Number of elements of a row.
    pub k: R,
    /// Where units go.
    pub to: R,
    /// What its rows are quantized by.
    pub by: By,
    /// Where sums go, if any are wanted.
    pub sums: Option<(R, Sums)>,
}

/// What rows are quantized by.
#[derive(Clone, Copy)]
pub enum By {
    /// Scales of their own, and zero points if they are wanted, which go to addresses.
    OfRow {
        /// Where scales go.
        scales: R,
        /// Where zero points go.
        zeros: Option<R>,
    },
    /// A site.
    Fixed(Site),
}

/// Four rows that are packed together: rows that do not exist repeat the last one.
struct FourRows {
    rows: Vec<R>,
    /// What is left of k behind whole vectors, and its lanes, unless nothing is.
    rest: Option<(R, M)>,
}

impl FourRows {
    /// Runs the body if `i`, behind whole vectors, is below `end`: for what is left of k and its lanes.
    fn rest(&self, f: &mut Function, i: R, end: R, body: impl FnOnce(&mut Asm, R, M)) {
        let Some((count, mask)) = self.rest else { return };
        let done = f.a.label();
        f.a.compare(i, end);
        f.a.jump_if(Cond::Ge, done);
        body(&mut f.a, count, mask);
        f.a.bind(done);
    }
}

/// When sums are complete that are added up while rows are packed.
#[derive(Clone, Copy, PartialEq)]
enum Complete {
    /// Behind every block.
    Block,
    /// Behind all of k.
    Row,
}

/// Quantizes and packs a tile of rows of which the elements are together. Returns whether the sums are
/// written.
pub fn along_k(f: &mut Function, p: &Pack, t: &Tile) -> bool {
    let (lanes, width) = (f.a.isa.lanes(), f.a.isa.bytes());
    let height = p.tile as i64;
    let short = matches!(p.k, Extent::Const(..=SHORT));
    let block = if short { SHORT } else { BLOCK };
    let (block, complete) = match t.sums {
        Some((_, sums)) if sums.covers(p.k) => (block, Some(if short { Complete::Block } else { Complete::Row })),
        Some((_, sums)) if sums.group % lanes == 0 => (sums.group, Some(Complete::Block)),
        _ => (block, None),
    };
    let none = f.a.vector_of(0);
    let rest = (!multiple(p.k, lanes)).then(|| {
        let by = f.a.imm(lanes);
        let (_, rest) = f.a.divide(t.k, by);
        (rest, f.a.first_lanes(rest))
    });
    // Where the inverses of rows are, and whether one of these has no usable range.
    let found = |f: &mut Function, scales: R| {
        for v in 0..height / 4 {
            f.a.store_by(Op::StoreXmm, Mem::at(scales, 16 * v), none);
        }
        (f.a.scratch(4 * height + width), f.a.imm(0))
    };
    let find_ranges = |f: &mut Function, (scales, inverses, careful, zeros): (R, R, R, Option<R>), row: R, rows: &FourRows| {
        let Ranges { scale, inverse, useful, zero } = largest(f, rows, t.k, zeros.is_some()).ranges(&mut f.a);
        let left = f.a.minus(t.rows, row);
        let exist = f.lanes_among(left, 0);
        let none = f.a.vector_of(0);
        let scale = f.a.select(exist, scale, none);
        f.a.store_by(Op::StoreXmm, Mem::indexed(scales, row, 4, 0), scale);
        f.a.store_by(Op::StoreXmm, Mem::indexed(inverses, row, 4, 0), inverse);
        if let Some((zero, zeros)) = zero.zip(zeros) {
            f.a.store_by(Op::StoreXmm, Mem::indexed(zeros, row, 4, 0), zero);
        }
        let four = f.a.imm(4);
        let four = f.a.first_lanes(four);
        let useful = f.a.both(useful, four);
        let useful = f.a.lane_bits(useful);
        let all = f.a.label();
        f.a.compare_imm(useful, 0b1111);
        f.a.jump_if(Cond::Eq, all);
        f.a.imm_into(careful, 1);
        f.a.bind(all);
    };
    let sums = t.sums.zip(complete).map(|((to, sums), complete)| {
        // The sums of four rows so far, several of each row.
        let parts = f.a.scratch(width * height / 4);
        if complete == Complete::Row {
            (0..height / 4).for_each(|n| f.a.store_vector(Mem::at(parts, n * width), none));
        }
        Adding { to, factor: sums.factor as i32, complete, parts }
    });
    let pack_codes = |f: &mut Function, row: R, rows: &FourRows, part: &Part, rule: &dyn Fn(&mut Function, R) -> Rule| {
        let rule = rule(f, row);
        let sum = sums.as_ref().map(|s| match s.complete {
            Complete::Block => f.a.vector_of(0),
            Complete::Row => {
                let at = s.part(f, row);
                f.a.vector_of(at)
            }
        });
        let to = f.a.lea(Mem::indexed(part.to, row, 4, 0));
        codes(f, p, rows, part, &rule, to, sum);
        match sums.as_ref().zip(sum) {
            Some((s, sum)) if s.complete == Complete::Block => s.put(f, sum, part.sums, row),
            Some((s, sum)) => {
                let at = s.part(f, row);
                f.a.store_vector(at, sum);
            }
            None => {}
        }
    };
    match t.by {
        By::OfRow { scales, zeros } => {
            let (inverses, careful) = found(f, scales);
            let rule = |f: &mut Function, row: R| {
                let mut each = |at: R| (0..4).map(|r| f.a.broadcast(Mem::indexed(at, row, 4, 4 * r))).collect();
                Rule::OfRow { inverse: each(inverses), zeros: zeros.map(each), careful }
            };
            let find_ranges = |f: &mut Function, row: R, rows: &FourRows| find_ranges(f, (scales, inverses, careful, zeros), row, rows);
            if short {
                each_four(f, p, t, rest, |f, row, rows| {
                    f.a.imm_into(careful, 0);
                    find_ranges(f, row, rows);
                    each_block(f, p, t, block, |f, part| pack_codes(f, row, rows, part, &rule));
                });
            } else {
                each_four(f, p, t, rest, find_ranges);
                each_block(f, p, t, block, |f, part| each_four(f, p, t, rest, |f, row, rows| pack_codes(f, row, rows, part, &rule)));
            }
        }
        By::Fixed(site) => {
            let rule = |f: &mut Function, _: R| Rule::Fixed(FixedCodes::new(&mut f.a, site));
            each_block(f, p, t, block, |f, part| each_four(f, p, t, rest, |f, row, rows| pack_codes(f, row, rows, part, &rule)));
        }
    }
    if let Some(s) = &sums
        && s.complete == Complete::Row
    {
        let exit = f.a.label();
        f.a.compare_imm(t.k, 0);
        f.a.jump_if(Cond::Le, exit);
        each_four(f, p, t, rest, |f, row, _| {
            let at = s.part(f, row);
            let sum = f.a.vector_of(at);
            s.put(f, sum, s.to, row);
        });
        f.a.bind(exit);
    }
    complete.is_some()
}

/// Sums that are added up while rows are packed.
struct Adding {
    /// Where those of a tile go.
    to: R,
    factor: i32,
    complete: Complete,
    /// A vector for every four rows: what their sums are so far.
    parts: R,
}

impl Adding {
    /// Where the sums of four rows are kept.
    fn part(&self, f: &mut Function, row: R) -> Mem {
        let before = f.a.times_imm(row, f.a.isa.bytes() / 4);
        Mem::indexed(self.parts, before, 1, 0)
    }

    /// Stores the sums of four rows.
    fn put(&self, f: &mut Function, sum: V, to: R, row: R) {
        let sum = f.a.fold_pieces(sum, |a, x, y| a.binary(Op::AddD, x, y));
        let sum = f.a.binary(Op::MulD, sum, self.factor);
        f.a.store_by(Op::StoreXmm, Mem::indexed(to, row, 4, 0), sum);
    }
}

/// A part of the columns of a tile: from one k to another, where its units go, and its sums.
struct Part {
    begin: R,
    end: R,
    to: R,
    sums: R,
}

/// Runs the body for every `block` values of k, of which the last may be fewer.
fn each_block(f: &mut Function, p: &Pack, t: &Tile, block: i64, body: impl FnOnce(&mut Function, &Part)) {
    let height = p.tile as i64;
    let (begin, to) = (f.a.imm(0), f.a.copy(t.to));
    let sums = f.a.copy(t.sums.map_or(t.to, |s| s.0));
    let (head, exit) = (f.a.label(), f.a.label());
    f.a.compare(begin, t.k);
    f.a.jump_if(Cond::Ge, exit);
    f.a.bind(head);
    let end = f.a.lea(Mem::at(begin, block));
    let end = f.a.min(end, t.k);
    body(f, &Part { begin, end, to, sums });
    f.a.add_imm(to, block / 4 * height * ELEMENT);
    f.a.add_imm(sums, height * ELEMENT);
    f.a.add_imm(begin, block);
    f.a.compare(begin, t.k);
    f.a.jump_if(Cond::Lt, head);
    f.a.bind(exit);
}

/// Runs the body for every four rows of a tile, with the number of the first.
fn each_four(f: &mut Function, p: &Pack, t: &Tile, rest: Option<(R, M)>, body: impl FnOnce(&mut Function, R, &FourRows)) {
    let step = f.times_bytes(p.from.row);
    let last = f.a.lea(Mem::at(t.rows, -1));
    let row = f.a.imm(0);
    let head = f.a.label();
    f.a.bind(head);
    let rows = (0..4).map(|r| {
        let row = f.a.lea(Mem::at(row, r));
        let row = f.a.min(row, last);
        let before = f.a.times(row, step);
        f.a.plus(t.from, before)
    });
    let rows = FourRows { rows: rows.collect(), rest };
    body(f, row, &rows);
    f.a.add_imm(row, 4);
    f.a.compare(row, t.rows);
    f.a.jump_if(Cond::Lt, head);
}

/// The extremes of four rows, in the lowest 128 bits.
fn largest(f: &mut Function, rows: &FourRows, k: R, ends: bool) -> Most {
    let bits = Most::bits(&mut f.a, ends);
    let most: [Most; 4] = std::array::from_fn(|_| Most::new(&mut f.a, ends));
    let i = f.a.imm(0);
    let step = |a: &mut Asm, mask: Option<M>| {
        for (&row, most) in rows.rows.iter().zip(&most) {
            most.raise(a, Mem::indexed(row, i, 4, 0), mask, bits);
        }
    };
    let lanes = f.a.isa.lanes();
    f.a.each(i, k, lanes, |a| step(a, None));
    rows.rest(f, i, k, |a, _, mask| step(a, Some(mask)));
    // Halves of lanes, of two rows and then of all four.
    let a = &mut f.a;
    let halves = |a: &mut Asm, x: V, y: V| {
        let (low, high) = (a.binary(Op::UnpackLow, x, y), a.binary(Op::UnpackHigh, x, y));
        a.binary(Op::MaxD, low, high)
    };
    Most::of(&most, |most| {
        let (x, y) = (halves(a, most[0], most[1]), halves(a, most[2], most[3]));
        let (low, high) = (a.binary_imm(Op::ShufPs, x, y, 0x44), a.binary_imm(Op::ShufPs, x, y, 0xee));
        let all = a.binary(Op::MaxD, low, high);
        a.fold_pieces(all, |a, x, y| a.binary(Op::MaxD, x, y))
    })
}

/// How the codes of four rows are made.
enum Rule {
    /// By the inverses of the rows, and their zero points if they have any; and whether one of them has no usable range.
    OfRow { inverse: Vec<V>, zeros: Option<Vec<V>>, careful: R },
    /// By a site.
    Fixed(FixedCodes),
}

/// Packs the codes of four rows from one k to another, and adds them to sums.
fn codes(f: &mut Function, p: &Pack, rows: &FourRows, part: &Part, rule: &Rule, to: R, sum: Option<V>) {
    let pieces = f.a.isa.lanes() / 4;
    let tile_row = p.tile as i64 * ELEMENT;
    let (byte, ones) = (f.a.vector_of(0xff), f.a.vector_of(ONES));
    let signed = matches!(rule, Rule::OfRow { zeros: Some(_), .. });
    let (i, at, end) = (f.a.copy(part.begin), f.a.copy(to), part.end);
    let first_sum = sum.filter(|_| matches!(rule, Rule::Fixed(_))).map(|sum| f.a.vector_of(sum));
    // The units of a vector of k: the bytes of a row are neighbours, those of the rows too.
    let units = |a: &mut Asm, careful: bool, mask: Option<M>| {
        let x: Vec<V> = (0..4)
            .map(|r| {
                let m = Mem::indexed(rows.rows[r], i, 4, 0);
                match rule {
                    Rule::OfRow { inverse, zeros: Some(zeros), .. } => code_with_zero(a, m, mask, inverse[r], zeros[r], careful),
                    Rule::OfRow { inverse, .. } => code(a, m, mask, inverse[r], careful.then_some(byte)),
                    Rule::Fixed(by) if careful => by.low_byte(a, m, mask, true),
                    Rule::Fixed(by) => by.rounded(a, m),
                }
            })
            .collect();
        let (mut low, mut high) = (a.binary(Op::NarrowD, x[0], x[1]), a.binary(Op::NarrowD, x[2], x[3]));
        let bytes = match rule {
            Rule::Fixed(by) if !careful => {
                (low, high) = (by.words(a, low), by.words(a, high));
                let bytes = a.binary(Op::NarrowW, low, high);
                by.bytes(a, bytes)
            }
            _ => a.binary(if careful && !signed { Op::NarrowUnsignedW } else { Op::NarrowW }, low, high),
        };
        if let Some(sum) = sum {
            add_bytes(a, sum, ones, bytes);
        }
        bytes
    };
    let put = |a: &mut Asm, careful: bool| {
        let x = units(a, careful, None);
        (0..pieces).for_each(|q| a.store_piece(Mem::at(at, q * tile_row), x, q as u8));
        a.add_imm(at, pieces * tile_row);
    };
    let (with_care, done) = (f.a.label(), f.a.label());
    if let Rule::OfRow { careful, .. } = rule {
        f.a.compare_imm(*careful, 0);
        f.a.jump_if(Cond::Ne, with_care);
    }
    f.a.each(i, end, 4 * pieces, |a| put(a, false));
    match rule {
        Rule::OfRow { .. } => f.a.jump(done),
        Rule::Fixed(by) => {
            // Once more where a value may have been none of those that quick code is right for.
            by.jump_unless_out_of_range(&mut f.a, done);
            f.a.copy_into(i, part.begin);
            f.a.copy_into(at, to);
            if let (Some(sum), Some(first)) = (sum, first_sum) {
                f.a.set(sum, first);
            }
        }
    }
    f.a.bind(with_care);
    f.a.each(i, end, 4 * pieces, |a| put(a, true));
    f.a.bind(done);
    rows.rest(f, i, end, |a, count, mask| {
        let x = units(a, true, Some(mask));
        let done = a.label();
        for q in 0..pieces {
            a.store_piece(Mem::at(at, q * tile_row), x, q as u8);
            a.compare_imm(count, 4 * (q + 1));
            a.jump_if(Cond::Le, done);
        }
        a.bind(done);
    });
}

/// Makes the codes of a vector of memory; with other bytes cleared if they are to be alone.
type CodeAt = Box<dyn Fn(&mut Asm, Mem, bool) -> V>;

/// Quantizes and packs a tile of which the rows of one `k` are together.
pub fn along_rows(f: &mut Function, p: &Pack, t: &Tile) {
    let (lanes, width) = (f.a.isa.lanes(), f.a.isa.bytes());
    let height = p.tile as i64;
    let tile_row = height * ELEMENT;
    let steps = {
        let one = f.times_bytes(p.from.k);
        let two = f.a.plus(one, one);
        [one, two, f.a.plus(two, one), f.a.plus(two, two)]
    };
    let place = |at: R, n: usize| match n {
        0 => Mem::at(at, 0),
        n => Mem::indexed(at, steps[n - 1], 1, 0),
    };
    for first in (0..height).step_by(lanes as usize) {
        let rows = lanes.min(height - first);
        let put = |a: &mut Asm, at: R, x: V| match rows == lanes {
            true => a.store_vector(Mem::at(at, 0), x),
            false => (0..rows / 4).for_each(|q| a.store_piece(Mem::at(at, 16 * q), x, q as u8)),
        };
        // Lanes of rows that do not exist are 0.
        let mask = (rows < lanes || !multiple(p.m, height)).then(|| f.lanes_among(t.rows, first));
        let begin = f.a.lea(Mem::at(t.from, first / lanes * width));
        let largest = |f: &mut Function, ends: bool| {
            let bits = Most::bits(&mut f.a, ends);
            let most: [Most; 2] = std::array::from_fn(|_| Most::new(&mut f.a, ends));
            let (i, at) = (f.a.imm(0), f.a.copy(begin));
            f.a.each(i, t.k, 4, |a| {
                for n in 0..4 {
                    most[n % 2].raise(a, place(at, n), mask, bits);
                }
                a.add_into(at, steps[3]);
            });
            if !multiple(p.k, 4) {
                f.a.each(i, t.k, 1, |a| {
                    most[0].raise(a, place(at, 0), mask, bits);
                    a.add_into(at, steps[0]);
                });
            }
            Most::of(&most, |most| f.a.binary(Op::MaxD, most[0], most[1]))
        };
        // The highest byte of a unit keeps nothing else: codes need not be alone there.
        let code: CodeAt = match t.by {
            By::OfRow { scales, zeros } => {
                let Ranges { scale, inverse, zero, .. } = largest(f, zeros.is_some()).ranges(&mut f.a);
                let at = f.a.lea(Mem::at(scales, first * ELEMENT));
                put(&mut f.a, at, scale);
                let byte = f.a.vector_of(0xff);
                match zero.zip(zeros) {
                    None => Box::new(move |a, m, alone| code(a, m, mask, inverse, alone.then_some(byte))),
                    Some((zero, zeros)) => {
                        let at = f.a.lea(Mem::at(zeros, first * ELEMENT));
                        put(&mut f.a, at, zero);
                        Box::new(move |a, m, alone| {
                            let x = code_with_zero(a, m, mask, inverse, zero, true);
                            let x = a.binary(Op::MaxD, x, -128);
                            let x = a.binary(Op::MinD, x, 127);
                            if alone { a.binary(Op::And, x, byte) } else { x }
                        })
                    }
                }
            }
            By::Fixed(site) => {
                let by = FixedCodes::new(&mut f.a, site);
                Box::new(move |a, m, alone| by.low_byte(a, m, mask, alone))
            }
        };

        let (i, at) = (f.a.imm(0), f.a.copy(begin));
        let to = f.a.lea(Mem::at(t.to, first * ELEMENT));
        f.a.each(i, t.k, 4, |a| {
            let mut unit = code(a, place(at, 0), true);
            for n in 1..4 {
                let x = code(a, place(at, n), n < 3);
                let x = a.unary_imm(Op::ShlD, x, 8 * n as u8);
                unit = a.binary(Op::Or, unit, x);
            }
            put(a, to, unit);
            a.add_into(at, steps[3]);
            a.add_imm(to, tile_row);
        });
        if !multiple(p.k, 4) {
            let done = f.a.label();
            let left = f.a.minus(t.k, i);
            f.a.compare_imm(left, 0);
            f.a.jump_if(Cond::Le, done);
            // From the last element to the first.
            let before = f.a.lea(Mem::at(left, -1));
            let before = f.a.times(before, steps[0]);
            f.a.add_into(at, before);
            let unit = f.a.vector_of(0);
            f.a.repeat(left, |a| {
                let x = code(a, place(at, 0), true);
                let higher = a.unary_imm(Op::ShlD, unit, 8);
                a.binary_into(Op::Or, unit, higher, x);
                a.sub_into(at, steps[0]);
            });
            put(&mut f.a, to, unit);
            f.a.bind(done);
        }
    }
}

/// Whether an extent is known to be a multiple of a number.
fn multiple(e: Extent, of: i64) -> bool {
    matches!(e, Extent::Const(n) if n % of == 0)
}

/// What is known of the values of rows, by lanes, none of it below 0: as integers such bits have the order of the numbers, NaN last.
#[derive(Clone, Copy)]
pub enum Most {
    /// The largest magnitude.
    Magnitude(V),
    /// The highest value, and the lowest with its sign changed.
    Ends([V; 2]),
}

impl Most {
    /// Before the first value.
    pub fn new(a: &mut Asm, ends: bool) -> Most {
        let none = a.vector_of(0);
        if ends { Most::Ends([none, a.vector_of(0)]) } else { Most::Magnitude(none) }
    }

    /// What [`Self::raise`] needs: the bits of a magnitude, or of a sign.
    pub fn bits(a: &mut Asm, ends: bool) -> V {
        a.vector_of(if ends { !MAGNITUDE } else { MAGNITUDE })
    }

    /// Looks at a vector of memory.
    pub fn raise(&self, a: &mut Asm, m: Mem, mask: Option<M>, bits: V) {
        match *self {
            Most::Magnitude(most) => raise(a, most, m, mask, bits),
            Most::Ends([high, low]) => {
                let x = match mask {
                    Some(mask) => a.load_masked(m, mask),
                    None => a.vector_of(m),
                };
                a.binary_into(Op::MaxD, high, high, x);
                let x = a.binary(Op::Xor, x, bits);
                a.binary_into(Op::MaxD, low, low, x);
            }
        }
    }

    /// Of what is known of several parts, all of one kind, `join` of each number.
    pub fn of(parts: &[Most], mut join: impl FnMut(&[V]) -> V) -> Most {
        let each = |n: usize| -> Vec<V> {
            let number = |most: &Most| match *most {
                Most::Magnitude(most) => most,
                Most::Ends(ends) => ends[n],
            };
            parts.iter().map(number).collect()
        };
        match parts[0] {
            Most::Magnitude(_) => Most::Magnitude(join(&each(0))),
            Most::Ends(_) => Most::Ends([join(&each(0)), join(&each(1))]),
        }
    }

    /// Scales, inverses and zero points of rows.
    pub fn ranges(self, a: &mut Asm) -> Ranges {
        match self {
            Most::Magnitude(most) => ranges(a, most, 127.0),
            Most::Ends([high, low]) => {
                let range = a.binary(Op::AddPs, high, low);
                let found = ranges(a, range, 255.0);
                let shift = a.binary(Op::MulPs, low, found.inverse);
                let zero = a.binary(Op::AddPs, shift, -128.0);
                let zero = a.unary(Op::CvtPs2Dq, zero);
                let zero = without_overflow(a, zero);
                // Rows with a NaN have 0.
                let (number, none) = (a.compare_ps(math::EQUAL, range, range), a.vector_of(0));
                Ranges { zero: Some(a.select(number, zero, none)), ..found }
            }
        }
    }
}

/// Small integers, and 0 for the lowest one, which conversions make of what they cannot convert.
fn without_overflow(a: &mut Asm, x: V) -> V {
    let doubled = a.unary_imm(Op::ShlD, x, 1);
    a.unary_imm(Op::SarD, doubled, 1)
}

/// `most = max(most, |memory|)` by the order of bits.
fn raise(a: &mut Asm, most: V, m: Mem, mask: Option<M>, magnitude: V) {
    let x = match mask {
        Some(mask) => {
            let x = a.load_masked(m, mask);
            a.binary(Op::And, magnitude, x)
        }
        None => a.binary(Op::And, magnitude, m),
    };
    a.binary_into(Op::MaxD, most, most, x);
}

/// Codes of a vector of memory in rows with zero points, i32 that are yet to be clamped; 0 in lanes that are not in the mask. If
/// `careful`, what is no number becomes the zero point.
pub fn code_with_zero(a: &mut Asm, m: Mem, mask: Option<M>, inverse: V, zero: V, careful: bool) -> V {
    let x = code(a, m, mask, inverse, None);
    let x = if careful { without_overflow(a, x) } else { x };
    let x = a.binary(Op::AddD, x, zero);
    match mask {
        Some(mask) => {
            let none = a.vector_of(0);
            a.select(mask, x, none)
        }
        None => x,
    }
}

/// Codes of a vector of memory; bits above the lowest byte are cleared if `byte` is given. What is no
/// number is converted to a number whose lowest byte is 0, as are all values where the inverse is 0.
pub fn code(a: &mut Asm, m: Mem, mask: Option<M>, inverse: V, byte: Option<V>) -> V {
    let x = match mask {
        Some(mask) => {
            let x = a.load_masked(m, mask);
            a.binary(Op::MulPs, inverse, x)
        }
        None => a.binary(Op::MulPs, inverse, m),
    };
    let x = a.unary(Op::CvtPs2Dq, x);
    match byte {
        Some(byte) => a.binary(Op::And, x, byte),
        None => x,
    }
}

/// The codes of values by a site.
///
/// Values of a usual magnitude are [rounded](Self::rounded), narrowed to words and to bytes. A value that is none, or far beyond
/// the bounds, is noticed by the way; then all are made again from their [low bytes](Self::low_byte).
pub struct FixedCodes {
    site: Site,
    inverse: V,
    /// The least words so far.
    least: V,
}

/// What a word is if its value is to be looked at once more: conversions make the lowest i32 of what they cannot convert.
const SUSPECT: i32 = 0x8000_8000u32 as i32;

impl FixedCodes {
    /// Before the first value.
    pub fn new(a: &mut Asm, site: Site) -> FixedCodes {
        FixedCodes { site, inverse: a.vector_of(site.inverse), least: a.vector_of(0) }
    }

    /// A vector of memory as i32 without the zero point, right but for what [`Self::jump_unless_out_of_range`] notices.
    pub fn rounded(&self, a: &mut Asm, m: Mem) -> V {
        let x = a.binary(Op::MulPs, self.inverse, m);
        a.unary(Op::CvtPs2Dq, x)
    }

    /// Words of rounded values, with the zero point.
    pub fn words(&self, a: &mut Asm, x: V) -> V {
        a.binary_into(Op::MinW, self.least, self.least, x);
        a.binary(Op::AddSaturatedW, x, self.site.zero_words)
    }

    /// Codes of words that were narrowed to bytes.
    pub fn bytes(&self, a: &mut Asm, x: V) -> V {
        a.binary(Op::MaxB, x, self.site.least)
    }

    /// Jumps unless a value since [`Self::new`] was NaN or below -32767, or rounding it overflowed.
    pub fn jump_unless_out_of_range(&self, a: &mut Asm, to: Label) {
        let least = a.across(self.least, |a, x, y| a.binary(Op::MinW, x, y));
        // Words are negative or 0: less 1, the suspect one alone is positive.
        let less = a.binary(Op::AddW, least, -1);
        let signs = a.binary(Op::And, less, SUSPECT);
        let wanted = a.binary(Op::Xor, signs, SUSPECT);
        let wanted = a.to_word(wanted);
        a.compare_imm(wanted, 0);
        a.jump_if(Cond::Eq, to);
    }

    /// Codes of a vector of memory whatever the values are, in the lowest byte of each lane; the others are cleared if it is to be
    /// `alone`. Those of lanes that are not in the mask are 0.
    pub fn low_byte(&self, a: &mut Asm, m: Mem, mask: Option<M>, alone: bool) -> V {
        let x = match mask {
            Some(mask) => a.load_masked(m, mask),
            None => a.vector_of(m),
        };
        let x = codes::low_byte(a, x, &self.site);
        let x = match mask {
            Some(mask) => {
                let none = a.vector_of(0);
                a.select(mask, x, none)
            }
            None => x,
        };
        if alone { a.binary(Op::And, x, 0xff) } else { x }
    }
}

/// What rows have, by lanes.
pub struct Ranges {
    /// What codes are multiplied by.
    pub scale: V,
    /// What values are multiplied by, 0 for rows with no range to divide by.
    pub inverse: V,
    /// Rows with a range that is divided by.
    pub useful: M,
    /// Zero points, if there are any.
    pub zero: Option<V>,
}

/// Scales and inverses of rows whose values span `most`, stored in that many steps.
fn ranges(a: &mut Asm, most: V, steps: f32) -> Ranges {
    let scale = a.binary(Op::DivPs, most, steps);
    let steps = a.vector_of(steps);
    let inverse = a.binary(Op::DivPs, steps, most);
    let (least, infinity) = (a.vector_of(MIN_RANGE), a.vector_of(f32::INFINITY));
    let (enough, finite) = (a.compare_ps(math::LESS_EQUAL, least, most), a.compare_ps(math::LESS, most, infinity));
    let useful = a.both(enough, finite);
    let none = a.vector_of(0);
    Ranges { scale, inverse: a.select(useful, inverse, none), useful, zero: None }
}
