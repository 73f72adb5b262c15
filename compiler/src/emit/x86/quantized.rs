//! Register tiles of products of `i8` rows with weights of 4 and 8 bits
//! ([`Quantized`](crate::kernel::gemm::Quantized)).
//!
//! With VNNI one instruction adds four products of bytes to an i32, and the sums of a group never leave
//! their registers. Without it, `vpmaddubsw` adds two products of a nibble and a byte in i16 (at most
//! 15 * 2 * 128), of which eight fit an i16; then they are widened and added to i32 in memory. Weights of 8
//! bits are two nibbles there: the sums of the upper ones count sixteen times.

use super::asm::{Asm, Cond, Mem, R, Src, V};
use super::expr::Function;
use super::isa::Op;
use super::tile::AHEAD;
use crate::kernel::gemm::{PANEL, Quantized, RowZeros, TILE_ROWS};

const TILE_ROW: i64 = TILE_ROWS as i64 * 4;
const PANEL_ROW: i64 = PANEL as i64 * 4;

/// Units that are added up in i16.
pub const NARROW: i64 = 8;

/// Addresses of the operands of a tile.
#[derive(Clone, Copy)]
pub struct Operands {
    /// The packed rows.
    pub left: R,
    /// The panel of weights.
    pub right: R,
    /// What the columns of the panel have.
    pub columns: R,
    /// The sums of the rows.
    pub row_sums: R,
    /// Bytes from the sums of one group to those of the next.
    pub group_sums: i64,
    /// The zero points of the rows, if every row has its own.
    pub row_zeros: Option<R>,
    /// The sums of the tile, [`PANEL`] to a row: the result, f32. Of a single group, the i32 before its scales.
    pub sums: R,
    /// As many i32 for the sums of one of several groups.
    pub ints: R,
}

/// Columns and rows of a register tile, of which each row takes two vectors of weights.
struct Shape {
    first_row: usize,
    rows: usize,
    /// The first columns of the vectors of a row of sums.
    columns: Vec<i64>,
}

/// With 32 registers: hands on the sums of a tile of `height` rows by a panel, over `units` units of k, some rows at a
/// time: the number of the first and two vectors each. Of a single group they are the i32 before its scales.
pub fn in_registers(
    f: &mut Function,
    q: &Quantized,
    units: i64,
    height: usize,
    o: &Operands,
    mut done: impl FnMut(&mut Function, usize, &[[V; 2]]),
) {
    let columns = vec![0, f.a.isa.lanes()];
    if q.groups == 1 {
        let a = &mut f.a;
        let s = Shape { first_row: 0, rows: height, columns };
        let (left, right, count) = (a.copy(o.left), a.copy(o.right), a.imm(units));
        let sums = wide_group(a, q, &s, o, left, right, count, units);
        return done(f, 0, &sums);
    }
    // The totals of half of the rows fit beside the sums of a group.
    let rows = if height > TILE_ROWS / 2 { height / 2 } else { height };
    for first_row in (0..height).step_by(rows) {
        let a = &mut f.a;
        let s = Shape { first_row, rows, columns: columns.clone() };
        let totals: Vec<[V; 2]> = (0..rows).map(|_| [a.vector_of(0), a.vector_of(0)]).collect();
        let (left, right) = (a.lea(Mem::at(o.left, first_row as i64 * 4)), a.copy(o.right));
        by_group(a, q, units, o, |a, count, o, per_group| {
            let sums = wide_group(a, q, &s, o, left, right, count, per_group);
            let scale = [0, a.isa.bytes()].map(|at| a.vector_of(Mem::at(o.columns, at)));
            for (totals, sums) in totals.iter().zip(sums) {
                for (v, x) in sums.into_iter().enumerate() {
                    let x = a.unary(Op::CvtDq2Ps, x);
                    a.update(Op::Fma231, totals[v], x, scale[v]);
                }
            }
        });
        done(f, first_row, &totals);
    }
}

/// Emits the body for the groups of `units` units: with the number of units of a group, its operands, and the units of a
/// whole group.
pub fn by_group(a: &mut Asm, q: &Quantized, units: i64, o: &Operands, body: impl FnOnce(&mut Asm, R, &Operands, i64)) {
    let per_group = (q.group + 3) / 4;
    let (columns, row_sums, rest) = (a.copy(o.columns), a.copy(o.row_sums), a.imm(units));
    let head = a.label();
    a.bind(head);
    let most = a.imm(per_group);
    let count = a.min(rest, most);
    a.sub_into(rest, count);
    body(a, count, &Operands { columns, row_sums, ..*o }, per_group);
    a.add_imm(columns, q.column_bytes());
    a.add_imm(row_sums, o.group_sums);
    a.compare_imm(rest, 0);
    a.jump_if(Cond::Gt, head);
}

/// Rows of a register tile with 16 registers.
const FEW_ROWS: usize = 6;

/// With 16 registers: the sums of a tile of `height` rows by a panel in memory, over `units` units of k.
pub fn product(f: &mut Function, q: &Quantized, units: i64, height: usize, o: &Operands) {
    let isa = f.a.isa;
    let (lanes, half) = (isa.lanes(), PANEL as i64 / 2);
    // Four bits: the low and the high nibbles of a vector. Without VNNI, 8 bits are such nibbles too.
    let strips: Vec<Vec<i64>> = match (q.bits, isa.has_vnni()) {
        (4, _) => (0..half).step_by(lanes as usize).map(|c| vec![c, c + half]).collect(),
        (_, true) => (0..2 * half).step_by(2 * lanes as usize).map(|c| vec![c, c + lanes]).collect(),
        (_, false) => (0..2 * half).step_by(lanes as usize).map(|c| vec![c]).collect(),
    };
    for first_row in (0..height).step_by(FEW_ROWS) {
        let rows = FEW_ROWS.min(height - first_row);
        for columns in &strips {
            groups(f, q, units, &Shape { first_row, rows, columns: columns.clone() }, o);
        }
    }
}

fn groups(f: &mut Function, q: &Quantized, units: i64, s: &Shape, o: &Operands) {
    let a = &mut f.a;
    let left = a.lea(Mem::at(o.left, s.first_row as i64 * 4));
    let right = a.lea(Mem::at(o.right, s.columns[0] * 4));
    if q.groups == 1 {
        let count = a.imm(units);
        let o = Operands { ints: o.sums, ..*o };
        if a.isa.has_vnni() {
            let sums = wide_group(a, q, s, &o, left, right, count, units);
            for (r, sums) in sums.into_iter().enumerate() {
                for (&c, x) in s.columns.iter().zip(sums) {
                    a.store_vector(self::place(o.ints, s, r, c), x);
                }
            }
        } else {
            narrow_group(a, q, s, &o, left, right, count);
        }
        return;
    }
    let zero = a.vector_of(0);
    for r in 0..s.rows {
        for &c in &s.columns {
            a.store_vector(place(o.sums, s, r, c), zero);
        }
    }
    by_group(a, q, units, o, |a, count, o, per_group| {
        if a.isa.has_vnni() {
            let sums = wide_group(a, q, s, o, left, right, count, per_group);
            let scale: Vec<V> = s.columns.iter().map(|c| a.vector_of(Mem::at(o.columns, c * 4))).collect();
            for (r, sums) in sums.into_iter().enumerate() {
                for (v, x) in sums.into_iter().enumerate() {
                    let at = place(o.sums, s, r, s.columns[v]);
                    let x = a.unary(Op::CvtDq2Ps, x);
                    let t = a.fma(x, scale[v], at);
                    a.store_vector(at, t);
                }
            }
        } else {
            narrow_group(a, q, s, o, left, right, count);
            finish(a, s, o);
        }
    });
}

/// The place of a column of a row of a tile of sums.
fn place(sums: R, s: &Shape, r: usize, column: i64) -> Mem {
    Mem::at(sums, (s.first_row + r) as i64 * PANEL_ROW + column * 4)
}

/// What the i32 sums of a row begin with, from a column on: see [`Quantized`].
pub fn begin(a: &mut Asm, q: &Quantized, o: &Operands, row: usize, column: i64) -> V {
    let of_row = |at: R| Mem::at(at, row as i64 * 4);
    let of_columns = |word: i64| Mem::at(o.columns, word * PANEL_ROW + column * 4);
    let mut sum = a.broadcast(of_row(o.row_sums));
    if q.zeros {
        sum = a.binary(Op::MulD, sum, of_columns(1));
    }
    let word = 1 + i64::from(q.zeros);
    match (q.row_zeros, o.row_zeros) {
        (RowZeros::None, _) => sum,
        (_, None) => a.binary(Op::AddD, sum, of_columns(word)),
        (_, Some(row_zeros)) => {
            let zero = a.broadcast(of_row(row_zeros));
            let change = a.binary(Op::MulD, zero, of_columns(word));
            a.binary(Op::AddD, sum, change)
        }
    }
}

/// The low and the high nibbles of a vector.
pub fn nibbles(a: &mut Asm, both: V) -> [V; 2] {
    let low = a.binary(Op::And, both, 0x0f0f_0f0f);
    let high = a.unary_imm(Op::ShrW, both, 4);
    [low, a.binary(Op::And, high, 0x0f0f_0f0f)]
}

/// Values of k of which the sum of products of a whole byte of nibbles with an `i8` fits an i32.
const MOST_BOTH: i64 = 65536;

/// Whether the sums of so many units may be those of whole bytes of nibbles.
pub fn most_both(units: i64) -> bool {
    units * 4 <= MOST_BOTH
}

/// The i32 sums of a group, two vectors for a row; `left` and `right` move behind it. `usual` is the count
/// of most groups, and the greatest.
///
/// Unpacking competes with the products for the units that multiply. So of 4 bits the high nibbles are not
/// taken out: products with whole bytes are the sums of the low nibbles and sixteen times those of the high ones.
#[expect(clippy::too_many_arguments, reason = "the operands of a register tile")]
fn wide_group(a: &mut Asm, q: &Quantized, s: &Shape, o: &Operands, left: R, right: R, count: R, usual: i64) -> Vec<[V; 2]> {
    // A sum waits for the one before: low tiles keep several for different units.
    let sets = match s.rows {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    };
    let whole_bytes = q.bits == 4 && most_both(usual);
    let acc: Vec<Vec<[V; 2]>> = (0..sets)
        .map(|set| {
            (0..s.rows)
                .map(|r| match set {
                    0 if whole_bytes => {
                        // What a sum of high nibbles begins with comes last: the low ones are taken off whole.
                        let x = begin(a, q, o, s.first_row + r, s.columns[0]);
                        [x, a.vector_of(x)]
                    }
                    0 => [begin(a, q, o, s.first_row + r, s.columns[0]), begin(a, q, o, s.first_row + r, s.columns[1])],
                    _ => [a.vector_of(0), a.vector_of(0)],
                })
                .collect()
        })
        .collect();
    let step = |a: &mut Asm, set: usize, n: i64| {
        let at = Mem::at(right, n * q.unit_bytes());
        let first = a.vector_of(at);
        let w = match q.bits {
            8 => [first, a.vector_of(at.plus(a.isa.bytes()))],
            _ if whole_bytes => [a.binary(Op::And, first, 0x0f0f_0f0f), first],
            _ => nibbles(a, first),
        };
        for line in (0..q.unit_bytes()).step_by(64) {
            a.prefetch(Mem::at(right, n * q.unit_bytes() + line + AHEAD), false);
        }
        for (r, sums) in acc[set].iter().enumerate() {
            let x = a.broadcast(Mem::at(left, n * TILE_ROW + r as i64 * 4));
            for (&sum, w) in sums.iter().zip(w) {
                a.update(Op::DotBytes, sum, w, x);
            }
        }
    };
    let unroll = sets.max(if s.rows >= 4 { 2 } else { 4 }) as i64;
    // One group: what is left over is known.
    let whole = q.groups == 1 && usual % unroll == 0;
    a.unrolled(count, unroll, whole, |a, n| step(a, n as usize % sets, n), |a, n| advance(a, q, left, right, n));
    let (first, rest) = (acc[0].clone(), acc[1..].concat());
    for (i, other) in rest.into_iter().enumerate() {
        for (x, y) in first[i % s.rows].iter().zip(other) {
            a.binary_into(Op::AddD, *x, *x, y);
        }
    }
    if whole_bytes {
        for (r, [low, high]) in first.iter().enumerate() {
            a.binary_into(Op::SubD, *high, *high, *low);
            let sum = a.unary_imm(Op::SarD, *high, 4);
            let begin = begin(a, q, o, s.first_row + r, s.columns[1]);
            a.binary_into(Op::AddD, *high, sum, begin);
        }
    }
    first
}

/// Moves both operands behind `n` units.
fn advance(a: &mut Asm, q: &Quantized, left: R, right: R, n: i64) {
    a.add_imm(left, n * TILE_ROW);
    a.add_imm(right, n * q.unit_bytes());
}

fn narrow_group(a: &mut Asm, q: &Quantized, s: &Shape, o: &Operands, left: R, right: R, count: R) {
    for r in 0..s.rows {
        for &c in &s.columns {
            let x = begin(a, q, o, s.first_row + r, c);
            a.store_vector(place(o.ints, s, r, c), x);
        }
    }
    let step = |a: &mut Asm, acc: &[[V; 2]], n: i64, first: bool| {
        let both = a.vector_of(Mem::at(right, n * q.unit_bytes()));
        let w = nibbles(a, both);
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
    let widen = |a: &mut Asm, acc: &[[V; 2]]| {
        for (r, &[low, high]) in acc.iter().enumerate() {
            let add = |a: &mut Asm, column: i64, parts: &[(V, i32)]| {
                let at = place(o.ints, s, r, column);
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
                _ => {
                    add(a, s.columns[0], &[(low, 1)]);
                    add(a, s.columns[1], &[(high, 1)]);
                }
            }
        }
    };
    let advance = |a: &mut Asm, n: i64| {
        advance(a, q, left, right, n);
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
    widen(a, &acc);
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
    widen(a, &acc);
    a.bind(exit);
}

/// Converts the sums of a group, multiplies them by its scales and adds the groups before.
fn finish(a: &mut Asm, s: &Shape, o: &Operands) {
    for &c in &s.columns {
        let scale = a.vector_of(Mem::at(o.columns, c * 4));
        for r in 0..s.rows {
            let x = a.unary(Op::CvtDq2Ps, place(o.ints, s, r, c));
            let at = place(o.sums, s, r, c);
            let t = a.fma(x, scale, at);
            a.store_vector(at, t);
        }
    }
}
