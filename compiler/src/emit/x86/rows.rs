//! Packing of rows of bytes that stay rows: copied, or quantized from f32, one row after the other, with zeros up to
//! whole lines and with their sums.

use super::asm::{Asm, Cond, M, Mem, R, V};
use super::codes::Site;
use super::expr::Function;
use super::isa::Op;
use super::quantize::{self, By, FixedCodes, Most, Ranges};
use crate::kernel::Extent;
use crate::kernel::gemm::TILE_ROWS;
use crate::kernel::pack::{Form, LINE, Pack, Sums};

const ELEMENT: i64 = 4;

/// Whether a packing kernel that the wide emitter covers can leave rows.
pub fn covers(p: &Pack) -> bool {
    let sums_of_lines = |k: i64| p.form.sums().is_some_and(|s| s.group >= k || s.group % LINE == 0);
    p.form != Form::Floats
        && p.batch.is_empty()
        && p.tile == TILE_ROWS
        && p.from.k == Extent::Const(1)
        && matches!(p.k, Extent::Const(k) if k > 0 && sums_of_lines(k))
}

/// Emits the rows of a task, of which there is at least one: `from` the first of them, quantized `by` something unless they are
/// bytes; `sums` are theirs.
pub fn emit(f: &mut Function, p: &Pack, (from, rows): (R, R), to: R, by: Option<By>, sums: (R, Sums)) {
    let pitch = p.pitch.expect("rows have a pitch");
    let k = p.k.as_const().expect("rows have known sizes");
    let group = sums.1.group.min(k);
    let step = f.extent(p.from.row);
    let step = f.a.times_imm(step, if by.is_some() { ELEMENT } else { 1 });
    let a = &mut f.a;
    let row =
        Row { k, group, groups: sums.1.groups(k), factor: sums.1.factor as i32, from: a.copy(from), to: a.copy(to), sums: a.copy(sums.0) };
    let count = a.copy(rows);
    match by {
        None => a.repeat(count, |a| {
            row.bytes(a, |a, i, exist| match exist {
                None => a.vector_of(Mem::indexed(row.from, i, 1, 0)),
                Some(exist) => {
                    let units = a.imm(exist / 4);
                    let mask = a.first_lanes(units);
                    a.load_masked(Mem::indexed(row.from, i, 1, 0), mask)
                }
            });
            row.next(a, step, pitch);
        }),
        Some(By::OfRow { scales, zeros }) => {
            let (at, zero_at) = (a.copy(scales), zeros.map(|zeros| a.copy(zeros)));
            a.repeat(count, |a| {
                row.quantize(a, at, zero_at);
                a.add_imm(at, ELEMENT);
                zero_at.iter().for_each(|&at| a.add_imm(at, ELEMENT));
                row.next(a, step, pitch);
            });
        }
        Some(By::Fixed(site)) => a.repeat(count, |a| {
            row.quantize_fixed(a, site);
            row.next(a, step, pitch);
        }),
    }
}

/// A row and where it goes.
struct Row {
    k: i64,
    /// Values of k that are summed up.
    group: i64,
    groups: i64,
    /// What sums are multiplied by.
    factor: i32,
    from: R,
    to: R,
    sums: R,
}

impl Row {
    fn next(&self, a: &mut Asm, step: R, pitch: i64) {
        a.add_into(self.from, step);
        a.add_imm(self.to, pitch);
        a.add_imm(self.sums, self.groups * ELEMENT);
    }

    /// Writes the bytes of a row, line by line, and the sums of its groups. `line` makes the bytes from a k on; of the last
    /// line it is given how many exist, and the others are 0.
    fn bytes(&self, a: &mut Asm, line: impl Fn(&mut Asm, R, Option<i64>) -> V) {
        let ones = a.vector_of(0x0101_0101);
        let (i, sums) = (a.imm(0), a.copy(self.sums));
        let group = |a: &mut Asm, length: i64| {
            let sum = a.vector_of(0);
            let put = |a: &mut Asm, exist: Option<i64>| {
                let x = line(a, i, exist);
                a.store_vector(Mem::indexed(self.to, i, 1, 0), x);
                a.update(Op::DotBytes, sum, ones, x);
            };
            if length >= LINE {
                let end = a.lea(Mem::at(i, length / LINE * LINE));
                a.each(i, end, LINE, |a| put(a, None));
            }
            if length % LINE > 0 {
                put(a, Some(length % LINE));
            }
            let sum = a.across(sum, |a, x, y| a.binary(Op::AddD, x, y));
            let sum = a.binary(Op::MulD, sum, self.factor);
            a.store_by(Op::StoreLane, Mem::at(sums, 0), sum);
            a.add_imm(sums, ELEMENT);
        };
        let (whole, rest) = (self.k / self.group, self.k % self.group);
        let count = a.imm(whole);
        a.repeat(count, |a| group(a, self.group));
        if rest > 0 {
            group(a, rest);
        }
    }

    /// Vector `n` of f32 from a k on, and the lanes that exist if not all do.
    fn vector(&self, a: &mut Asm, i: R, n: i64, exist: i64) -> (Mem, Option<M>) {
        let mask = (exist < a.isa.lanes()).then(|| {
            let exist = a.imm(exist);
            a.first_lanes(exist)
        });
        (Mem::indexed(self.from, i, 4, n * LINE), mask)
    }

    /// The codes of a line from a k on, of which so many exist, by `code` of each vector; with their bytes unsigned or not.
    fn line(
        &self,
        a: &mut Asm,
        i: R,
        exist: i64,
        narrow: Op,
        code: impl Fn(&mut Asm, Mem, Option<M>) -> V,
        words: impl Fn(&mut Asm, V) -> V,
    ) -> V {
        let lanes = a.isa.lanes();
        let x: [V; 4] = std::array::from_fn(|n| {
            let exist = exist - n as i64 * lanes;
            if exist <= 0 {
                return a.vector_of(0);
            }
            let (m, mask) = self.vector(a, i, n as i64, exist);
            code(a, m, mask)
        });
        let (low, high) = (a.binary(Op::NarrowD, x[0], x[1]), a.binary(Op::NarrowD, x[2], x[3]));
        let (low, high) = (words(a, low), words(a, high));
        let bytes = a.binary(narrow, low, high);
        // Narrowing leaves in every 128 bits four bytes of each of four vectors.
        let order = a.words(std::array::from_fn(|i| (i % 4 * 4 + i / 4) as u32));
        let order = a.vector_of(order);
        a.binary(Op::PermPs, order, bytes)
    }

    /// Quantizes a row by a site.
    fn quantize_fixed(&self, a: &mut Asm, site: Site) {
        let by = FixedCodes::new(a, site);
        let with_care = |a: &mut Asm, i: R, exist: i64| {
            self.line(a, i, exist, Op::NarrowUnsignedW, |a, m, mask| by.low_byte(a, m, mask, true), |_, x| x)
        };
        self.bytes(a, |a, i, exist| match exist {
            Some(exist) => with_care(a, i, exist),
            None => {
                let bytes = self.line(a, i, LINE, Op::NarrowW, |a, m, _| by.rounded(a, m), |a, x| by.words(a, x));
                by.bytes(a, bytes)
            }
        });
        let done = a.label();
        by.jump_unless_out_of_range(a, done);
        self.bytes(a, |a, i, exist| with_care(a, i, exist.unwrap_or(LINE)));
        a.bind(done);
    }

    /// Quantizes a row, and puts its scale, and its zero point if it has one.
    fn quantize(&self, a: &mut Asm, scale_to: R, zero_to: Option<R>) {
        let lanes = a.isa.lanes();
        let most: [Most; 4] = std::array::from_fn(|_| Most::new(a, zero_to.is_some()));
        let bits = Most::bits(a, zero_to.is_some());
        let raise = |a: &mut Asm, i: R, exist: i64| {
            for (n, most) in (0..).zip(&most) {
                if exist > n * lanes {
                    let (m, mask) = self.vector(a, i, n, exist - n * lanes);
                    most.raise(a, m, mask, bits);
                }
            }
        };
        let (i, end) = (a.imm(0), a.imm(self.k));
        a.each(i, end, LINE, |a| raise(a, i, LINE));
        if self.k % LINE > 0 {
            raise(a, i, self.k % LINE);
        }
        let most = Most::of(&most, |most| {
            let (x, y) = (a.binary(Op::MaxD, most[0], most[1]), a.binary(Op::MaxD, most[2], most[3]));
            let most = a.binary(Op::MaxD, x, y);
            let most = a.across(most, |a, x, y| a.binary(Op::MaxD, x, y));
            a.splat(most)
        });
        let Ranges { scale, inverse, useful, zero } = most.ranges(a);
        a.store_by(Op::StoreLane, Mem::at(scale_to, 0), scale);
        if let Some((zero, to)) = zero.zip(zero_to) {
            a.store_by(Op::StoreLane, Mem::at(to, 0), zero);
        }

        let codes = |a: &mut Asm, i: R, exist: Option<i64>, byte: Option<V>| {
            let narrow = if byte.is_some() && zero.is_none() { Op::NarrowUnsignedW } else { Op::NarrowW };
            let code = |a: &mut Asm, m: Mem, mask: Option<M>| match zero {
                None => quantize::code(a, m, mask, inverse, byte),
                Some(zero) => quantize::code_with_zero(a, m, mask, inverse, zero, byte.is_some()),
            };
            self.line(a, i, exist.unwrap_or(LINE), narrow, code, |_, x| x)
        };
        let byte = a.vector_of(0xff);
        let (careful, done) = (a.label(), a.label());
        let useful = a.lane_bits(useful);
        a.compare_imm(useful, 0);
        a.jump_if(Cond::Eq, careful);
        self.bytes(a, |a, i, exist| codes(a, i, exist, None));
        a.jump(done);
        a.bind(careful);
        self.bytes(a, |a, i, exist| codes(a, i, exist, Some(byte)));
        a.bind(done);
    }
}
