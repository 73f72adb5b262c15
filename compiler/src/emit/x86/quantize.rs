//! Packing that quantizes. A first pass over some rows finds their largest magnitudes, a second one their
//! codes: of four rows at a time where the elements of a row are together, whose bytes then only need
//! to be narrowed to be in order; or of a vector of rows where those of one `k` are together.

use super::asm::{Asm, Cond, M, Mem, R, V};
use super::expr::Function;
use super::isa::Op;
use super::math;
use super::pack::ELEMENT;
use crate::kernel::Extent;
use crate::kernel::pack::Pack;
use tfc_ir::quant::MIN_RANGE;

/// Bits of a magnitude: as integers they have the order of the numbers, NaN last.
const MAGNITUDE: i32 = 0x7fff_ffff;

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
    /// Where scales go.
    pub scales: R,
}

/// Quantizes and packs a tile of rows of which the elements are together.
pub fn along_k(f: &mut Function, p: &Pack, t: &Tile) {
    let lanes = f.a.isa.lanes();
    let (pieces, height) = (lanes / 4, p.tile as i64);
    let tile_row = height * ELEMENT;
    let none = f.a.vector_of(0);
    for v in 0..height / 4 {
        f.a.store_by(Op::StoreXmm, Mem::at(t.scales, 16 * v), none);
    }
    // What is left behind whole vectors, and its lanes.
    let rest = (!multiple(p.k, lanes)).then(|| {
        let by = f.a.imm(lanes);
        let (_, rest) = f.a.divide(t.k, by);
        (rest, f.a.first_lanes(rest))
    });
    let step = f.times_bytes(p.from.row);
    let last = f.a.lea(Mem::at(t.rows, -1));
    let (row, to, scales) = (f.a.imm(0), f.a.copy(t.to), f.a.copy(t.scales));
    let head = f.a.label();
    f.a.bind(head);
    // Rows that do not exist repeat the last one.
    let rows: Vec<R> = (0..4)
        .map(|r| {
            let row = f.a.lea(Mem::at(row, r));
            let row = f.a.min(row, last);
            let before = f.a.times(row, step);
            f.a.plus(t.from, before)
        })
        .collect();
    let most = largest_of_four(f, &rows, t.k, rest);
    let (scale, inverse) = scale_and_inverse(&mut f.a, most);
    let left = f.a.minus(t.rows, row);
    let exist = f.lanes_among(left, 0);
    let none = f.a.vector_of(0);
    let scale = f.a.select(exist, scale, none);
    f.a.store_by(Op::StoreXmm, Mem::at(scales, 0), scale);
    let inverses: Vec<V> = (0..4)
        .map(|r| {
            let x = f.a.unary_imm(Op::ShufD, inverse, r * 0b01_01_01_01);
            f.a.splat(x)
        })
        .collect();
    let byte = f.a.vector_of(0xff);
    let (i, at) = (f.a.imm(0), f.a.copy(to));
    let units = |a: &mut Asm, mask: Option<M>| {
        let codes: Vec<V> = (0..4).map(|r| code(a, Mem::indexed(rows[r], i, 4, 0), mask, inverses[r], Some(byte))).collect();
        let (low, high) = (a.binary(Op::NarrowD, codes[0], codes[1]), a.binary(Op::NarrowD, codes[2], codes[3]));
        a.binary(Op::NarrowW, low, high)
    };
    f.a.each(i, t.k, lanes, |a| {
        let x = units(a, None);
        for q in 0..pieces {
            a.store_piece(Mem::at(at, q * tile_row), x, q as u8);
        }
        a.add_imm(at, pieces * tile_row);
    });
    if let Some((rest, mask)) = rest {
        let done = f.a.label();
        f.a.compare_imm(rest, 0);
        f.a.jump_if(Cond::Eq, done);
        let x = units(&mut f.a, Some(mask));
        for q in 0..pieces {
            f.a.store_piece(Mem::at(at, q * tile_row), x, q as u8);
            f.a.compare_imm(rest, 4 * (q + 1));
            f.a.jump_if(Cond::Le, done);
        }
        f.a.bind(done);
    }
    f.a.add_imm(to, 4 * ELEMENT);
    f.a.add_imm(scales, 4 * ELEMENT);
    f.a.add_imm(row, 4);
    f.a.compare(row, t.rows);
    f.a.jump_if(Cond::Lt, head);
}

/// The largest magnitudes of four rows, in the lowest 128 bits.
fn largest_of_four(f: &mut Function, rows: &[R], k: R, rest: Option<(R, M)>) -> V {
    let magnitude = f.a.vector_of(MAGNITUDE);
    let most: Vec<V> = rows.iter().map(|_| f.a.vector_of(0)).collect();
    let i = f.a.imm(0);
    let step = |a: &mut Asm, mask: Option<M>| {
        for (&row, &most) in rows.iter().zip(&most) {
            raise(a, most, Mem::indexed(row, i, 4, 0), mask, magnitude);
        }
    };
    let lanes = f.a.isa.lanes();
    f.a.each(i, k, lanes, |a| step(a, None));
    if let Some((rest, mask)) = rest {
        let done = f.a.label();
        f.a.compare_imm(rest, 0);
        f.a.jump_if(Cond::Eq, done);
        step(&mut f.a, Some(mask));
        f.a.bind(done);
    }
    // Halves of lanes, of two rows and then of all four.
    let a = &mut f.a;
    let halves = |a: &mut Asm, x: V, y: V| {
        let (low, high) = (a.binary(Op::UnpackLow, x, y), a.binary(Op::UnpackHigh, x, y));
        a.binary(Op::MaxD, low, high)
    };
    let (x, y) = (halves(a, most[0], most[1]), halves(a, most[2], most[3]));
    let (low, high) = (a.binary_imm(Op::ShufPs, x, y, 0x44), a.binary_imm(Op::ShufPs, x, y, 0xee));
    let all = a.binary(Op::MaxD, low, high);
    a.fold_pieces(all, |a, x, y| a.binary(Op::MaxD, x, y))
}

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
        let magnitude = f.a.vector_of(MAGNITUDE);
        let most = [f.a.vector_of(0), f.a.vector_of(0)];
        let (i, at) = (f.a.imm(0), f.a.copy(begin));
        f.a.each(i, t.k, 4, |a| {
            for n in 0..4 {
                raise(a, most[n % 2], place(at, n), mask, magnitude);
            }
            a.add_into(at, steps[3]);
        });
        if !multiple(p.k, 4) {
            f.a.each(i, t.k, 1, |a| {
                raise(a, most[0], place(at, 0), mask, magnitude);
                a.add_into(at, steps[0]);
            });
        }
        let most = f.a.binary(Op::MaxD, most[0], most[1]);
        let (scale, inverse) = scale_and_inverse(&mut f.a, most);
        let at = f.a.lea(Mem::at(t.scales, first * ELEMENT));
        put(&mut f.a, at, scale);

        let byte = f.a.vector_of(0xff);
        let (i, at) = (f.a.imm(0), f.a.copy(begin));
        let to = f.a.lea(Mem::at(t.to, first * ELEMENT));
        f.a.each(i, t.k, 4, |a| {
            let mut unit = code(a, place(at, 0), mask, inverse, Some(byte));
            for n in 1..4 {
                // The highest byte keeps nothing else.
                let x = code(a, place(at, n), mask, inverse, (n < 3).then_some(byte));
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
                let x = code(a, place(at, 0), mask, inverse, Some(byte));
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

/// Codes of a vector of memory; bits above the lowest byte are cleared if `byte` is given. What is no
/// number is converted to a number whose lowest byte is 0, as are all values where the inverse is 0.
fn code(a: &mut Asm, m: Mem, mask: Option<M>, inverse: V, byte: Option<V>) -> V {
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

/// Scales and inverses of rows from their largest magnitudes.
fn scale_and_inverse(a: &mut Asm, most: V) -> (V, V) {
    let scale = a.binary(Op::DivPs, most, 127.0);
    let steps = a.vector_of(127.0);
    let inverse = a.binary(Op::DivPs, steps, most);
    let (least, infinity) = (a.vector_of(MIN_RANGE), a.vector_of(f32::INFINITY));
    let (enough, finite) = (a.compare_ps(math::LESS_EQUAL, least, most), a.compare_ps(math::LESS, most, infinity));
    let useful = a.both(enough, finite);
    let none = a.vector_of(0);
    (scale, a.select(useful, inverse, none))
}
