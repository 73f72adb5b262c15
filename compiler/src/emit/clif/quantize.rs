//! Packing that quantizes: four rows at a time, in a pass for the largest magnitudes, or one for each end of rows with zero points,
//! unless the scale is known, and one for the codes.

use super::pack::ELEMENT;
use super::tile::Rows;
use super::{KernelBuilder, LANES, MEM};
use crate::kernel::Extent;
use crate::kernel::site;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, I8X16, I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use tfc_ir::quant::MIN_RANGE;

/// A float of at most 2^22 plus this has the nearest integer, half to even, in its lowest bits.
const ROUNDING: f64 = 12_582_912.0;

/// Four rows: the addresses of their first elements.
struct Four<'a> {
    from: &'a Rows,
    rows: Vec<Value>,
    /// Bytes from one k to the next.
    k_bytes: Value,
}

impl Four<'_> {
    /// Four neighbours along k of a row.
    fn along_k(&self, b: &mut KernelBuilder, row: usize, unit: Value) -> Value {
        if self.from.k_stride == Extent::Const(1) {
            let before = b.times(unit, Extent::Const(4 * ELEMENT));
            let p = b.f.ins().iadd(self.rows[row], before);
            return b.f.ins().load(F32X4, MEM, p, 0);
        }
        let first = b.times(unit, Extent::Const(4));
        let before = b.f.ins().imul(first, self.k_bytes);
        let mut p = b.f.ins().iadd(self.rows[row], before);
        let lanes: Vec<Value> = (0..LANES)
            .map(|n| {
                if n > 0 {
                    p = b.f.ins().iadd(p, self.k_bytes);
                }
                b.f.ins().load(F32, MEM, p, 0)
            })
            .collect();
        b.pack(&lanes)
    }

    /// The elements of all four rows at one k.
    fn along_rows(&self, b: &mut KernelBuilder, k: Value) -> Value {
        let before = b.f.ins().imul(k, self.k_bytes);
        let lanes: Vec<Value> = self
            .rows
            .iter()
            .map(|&row| {
                let p = b.f.ins().iadd(row, before);
                b.f.ins().load(F32, MEM, p, 0)
            })
            .collect();
        b.pack(&lanes)
    }

    /// The bits of the largest of 0 and what `of` makes from the bits of the elements, of every row: as integers, numbers that are
    /// not negative have their order, NaN last, and negative ones are less than 0.
    fn largest(&self, b: &mut KernelBuilder, whole: Value, done: Value, of: impl Fn(&mut KernelBuilder, Value) -> Value) -> Value {
        let zeros = b.int_of(I32X4, 0);
        let most: Vec<_> = (0..=LANES).map(|_| b.f.declare_var(I32X4)).collect();
        most.iter().for_each(|&v| b.f.def_var(v, zeros));
        let raise = |b: &mut KernelBuilder, n: usize, x: Value| {
            let x = b.bits(I32X4, x);
            let x = of(b, x);
            let before = b.f.use_var(most[n]);
            let x = b.f.ins().smax(before, x);
            b.f.def_var(most[n], x);
        };
        let zero = b.int(0);
        if let Some(l) = b.open_loop(zero, whole, 1) {
            for row in 0..LANES {
                let x = self.along_k(b, row, l.index);
                raise(b, row, x);
            }
            b.close_loop(l);
        }
        if let Some(l) = b.open_loop(done, self.from.k, 1) {
            let x = self.along_rows(b, l.index);
            raise(b, LANES, x);
            b.close_loop(l);
        }
        let lanes: Vec<Value> = (0..LANES)
            .map(|row| {
                let x = b.f.use_var(most[row]);
                b.across(x, |b, x, y| b.f.ins().smax(x, y))
            })
            .collect();
        let (x, y) = (b.pack(&lanes), b.f.use_var(most[LANES]));
        b.f.ins().smax(x, y)
    }
}

/// What rows are quantized by.
pub enum By {
    /// Scales of their own, and zero points if they are wanted, which go to addresses.
    OfRow {
        /// Where scales go.
        scales: Value,
        /// Where zero points go.
        zeros: Option<Value>,
    },
    /// A [site].
    Fixed {
        /// Its address.
        site: Value,
    },
}

/// How the codes of four rows are made.
enum Rule {
    /// By the inverses of the rows, and the bits of codes that are kept: as lanes, and each in every lane.
    OfRow { lanes: [Value; 2], by_row: Vec<[Value; 2]> },
    /// By the inverses of the rows, the bits of steps that are kept, and the zero points: as lanes, and each in every lane.
    WithZeros { lanes: [Value; 3], by_row: Vec<[Value; 3]> },
    /// By a site.
    Fixed(Site),
}

/// The numbers of a site, each in every lane.
struct Site {
    inverse: Value,
    low: Value,
    high: Value,
    /// An i32.
    zero: Value,
}

impl Site {
    fn load(b: &mut KernelBuilder, at: Value) -> Site {
        let mut word = |ty, n: i64| {
            let x = b.f.ins().load(ty, MEM, at, (ELEMENT * n) as i32);
            b.splat(x)
        };
        let [inverse, low, high] = [site::INVERSE, site::LOW, site::HIGH].map(|n| word(F32, n));
        Site { inverse, low, high, zero: word(I32, site::ZERO_I32) }
    }
}

impl Rule {
    /// By what the largest magnitudes of four rows say; the scales go to `scales`.
    fn of_row(b: &mut KernelBuilder, largest: Value, scales: Value) -> Rule {
        let [steps, least, infinity] = [127.0, MIN_RANGE.into(), f64::INFINITY].map(|x| b.float_of(F32X4, x));
        let scale = b.f.ins().fdiv(largest, steps);
        b.f.ins().store(MEM, scale, scales, 0);
        let enough = b.f.ins().fcmp(FloatCC::GreaterThanOrEqual, largest, least);
        let finite = b.f.ins().fcmp(FloatCC::LessThan, largest, infinity);
        let useful = b.f.ins().band(enough, finite);
        let inverse = b.f.ins().fdiv(steps, largest);
        // The codes of a row without a usable range are 0 whatever its values are.
        let byte = b.int_of(I32X4, 0xff);
        let kept = b.f.ins().band(byte, useful);
        let lanes = [inverse, kept];
        Rule::OfRow { lanes, by_row: by_row(b, lanes) }
    }

    /// By the highest values of four rows and the lowest with their signs changed, none below 0; scales and zero points go to `scales`
    /// and `zeros`.
    fn with_zeros(b: &mut KernelBuilder, [high, low]: [Value; 2], scales: Value, zeros: Value) -> Rule {
        let [steps, least, infinity, first] = [255.0, MIN_RANGE.into(), f64::INFINITY, -128.0].map(|x| b.float_of(F32X4, x));
        let range = b.f.ins().fadd(high, low);
        let scale = b.f.ins().fdiv(range, steps);
        b.f.ins().store(MEM, scale, scales, 0);
        let enough = b.f.ins().fcmp(FloatCC::GreaterThanOrEqual, range, least);
        let finite = b.f.ins().fcmp(FloatCC::LessThan, range, infinity);
        let useful = b.f.ins().band(enough, finite);
        let inverse = b.f.ins().fdiv(steps, range);
        let inverse = b.bits(I32X4, inverse);
        let inverse = b.f.ins().band(inverse, useful);
        let inverse = b.bits(F32X4, inverse);
        let shift = b.f.ins().fmul(low, inverse);
        let zero = b.f.ins().fadd(first, shift);
        // NaN becomes 0, and so does any zero point of a row that has one.
        let [number, all] = [zero, range].map(|x| b.f.ins().fcmp(FloatCC::Equal, x, x));
        let number = b.f.ins().band(number, all);
        let zero = steps_of(b, zero);
        let zero = b.f.ins().band(zero, number);
        b.f.ins().store(MEM, zero, zeros, 0);
        let lanes = [inverse, useful, zero];
        Rule::WithZeros { lanes, by_row: by_row(b, lanes) }
    }

    /// The codes of four elements, of a row or one of each, in the lowest bytes.
    fn codes(&self, b: &mut KernelBuilder, x: Value, row: Option<usize>) -> Value {
        let rounding = b.float_of(F32X4, ROUNDING);
        match self {
            Rule::OfRow { lanes, by_row } => {
                let [inverse, kept] = row.map_or(*lanes, |row| by_row[row]);
                let x = b.f.ins().fmul(x, inverse);
                let x = b.f.ins().fadd(x, rounding);
                let x = b.bits(I32X4, x);
                b.f.ins().band(x, kept)
            }
            Rule::WithZeros { lanes, by_row } => {
                let [inverse, kept, zero] = row.map_or(*lanes, |row| by_row[row]);
                let x = b.f.ins().fmul(x, inverse);
                let x = steps_of(b, x);
                let x = b.f.ins().band(x, kept);
                let x = b.f.ins().iadd(x, zero);
                let [least, most, byte] = [-128, 127, 0xff].map(|n| b.int_of(I32X4, n));
                let x = b.f.ins().smax(x, least);
                let x = b.f.ins().smin(x, most);
                b.f.ins().band(x, byte)
            }
            &Rule::Fixed(Site { inverse, low, high, zero }) => {
                let x = b.f.ins().fmul(x, inverse);
                // NaN becomes the code of 0.
                let number = b.f.ins().fcmp(FloatCC::Equal, x, x);
                let x = b.f.ins().fmax(x, low);
                let x = b.f.ins().fmin(x, high);
                let x = b.f.ins().fadd(x, rounding);
                let x = b.bits(I32X4, x);
                let x = b.f.ins().band(x, number);
                let byte = b.int_of(I32X4, 0xff);
                let x = b.f.ins().iadd(x, zero);
                b.f.ins().band(x, byte)
            }
        }
    }
}

/// Lanes, each in every lane of a vector.
fn by_row<const N: usize>(b: &mut KernelBuilder, lanes: [Value; N]) -> Vec<[Value; N]> {
    let splat = |row| {
        lanes.map(|x| {
            let x = b.lane(x, row);
            b.splat(x)
        })
    };
    (0..LANES).map(splat).collect()
}

/// The nearest integers of floats whose magnitudes are at most 2^22; anything of others.
fn steps_of(b: &mut KernelBuilder, x: Value) -> Value {
    let (rounding, bits) = (b.float_of(F32X4, ROUNDING), b.int_of(I32X4, (ROUNDING as f32).to_bits().into()));
    let x = b.f.ins().fadd(x, rounding);
    let x = b.bits(I32X4, x);
    b.f.ins().isub(x, bits)
}

/// Quantizes and packs a tile of `height` rows to `to`, of which `from.rows` exist, and writes their scales and zero points if it
/// finds them.
pub fn rows(b: &mut KernelBuilder, from: &Rows, units: Value, height: usize, to: Value, by: By) {
    let zero = b.int(0);
    let none = b.int_of(I32X4, 0);
    if let By::OfRow { scales, .. } = by {
        for v in 0..height / LANES {
            b.f.ins().store(MEM, none, scales, 16 * v as i32);
        }
    }
    let (whole, done) = match b.as_const(from.k) {
        Some(k) => (b.int(k / 4), b.int(k / 4 * 4)),
        None => {
            let whole = b.f.ins().ushr_imm_u(from.k, 2);
            (whole, b.times(whole, Extent::Const(4)))
        }
    };
    let k_bytes = b.extent(from.k_stride);
    let k_bytes = b.times(k_bytes, Extent::Const(ELEMENT));
    let tile_row = height as i64 * ELEMENT;
    let last = b.f.ins().iadd_imm_s(from.rows, -1);
    let end = b.f.ins().iadd_imm_s(from.rows, LANES as i64 - 1);
    let Some(group) = b.open_loop(zero, end, LANES as i64) else { return };
    let addresses = (0..LANES as i64).map(|r| {
        let row = b.f.ins().iadd_imm_s(group.index, r);
        let row = b.f.ins().smin(row, last);
        let before = b.f.ins().imul(row, from.row_bytes);
        b.f.ins().iadd(from.at, before)
    });
    let four = Four { from, rows: addresses.collect(), k_bytes };
    let place = b.times(group.index, Extent::Const(ELEMENT));
    let rule = match by {
        By::OfRow { scales, zeros } => {
            // Rows that do not exist are 0.
            let left = b.f.ins().isub(from.rows, group.index);
            let left = b.f.ins().ireduce(I32, left);
            let left = b.splat(left);
            let numbers: Vec<u8> = (0..LANES as i32).flat_map(i32::to_le_bytes).collect();
            let numbers = b.vector(I32X4, &numbers);
            let exist = b.f.ins().icmp(IntCC::SignedGreaterThan, left, numbers);
            let scales = b.f.ins().iadd(scales, place);
            let largest = |b: &mut KernelBuilder, of: &dyn Fn(&mut KernelBuilder, Value) -> Value| {
                let x = four.largest(b, whole, done, of);
                let x = b.f.ins().band(x, exist);
                b.bits(F32X4, x)
            };
            match zeros {
                None => {
                    let magnitude = b.int_of(I32X4, 0x7fff_ffff);
                    let largest = largest(b, &|b, x| b.f.ins().band(x, magnitude));
                    Rule::of_row(b, largest, scales)
                }
                Some(zeros) => {
                    let sign = b.int_of(I32X4, i32::MIN.into());
                    let ends = [largest(b, &|_, x| x), largest(b, &|b, x| b.f.ins().bxor(x, sign))];
                    let zeros = b.f.ins().iadd(zeros, place);
                    Rule::with_zeros(b, ends, scales, zeros)
                }
            }
        }
        By::Fixed { site } => Rule::Fixed(Site::load(b, site)),
    };
    let to = b.f.ins().iadd(to, place);
    if let Some(unit) = b.open_loop(zero, whole, 1) {
        let codes: Vec<Value> = (0..LANES)
            .map(|row| {
                let x = four.along_k(b, row, unit.index);
                rule.codes(b, x, Some(row))
            })
            .collect();
        // The bytes of a row are neighbours, those of the rows too.
        let (low, high) = (b.f.ins().snarrow(codes[0], codes[1]), b.f.ins().snarrow(codes[2], codes[3]));
        let bytes = b.f.ins().unarrow(low, high);
        debug_assert_eq!(b.ty(bytes), I8X16);
        let before = b.times(unit.index, Extent::Const(tile_row));
        let p = b.f.ins().iadd(to, before);
        b.f.ins().store(MEM, bytes, p, 0);
        b.close_loop(unit);
    }
    // A unit that is not whole ends with zeros.
    if let Some(unit) = b.open_loop(whole, units, 1) {
        let bytes = b.f.declare_var(I32X4);
        b.f.def_var(bytes, none);
        if let Some(k) = b.open_loop(done, from.k, 1) {
            let x = four.along_rows(b, k.index);
            let x = rule.codes(b, x, None);
            let bits = b.f.ins().band_imm_u(k.index, 3);
            let bits = b.times(bits, Extent::Const(8));
            let x = b.f.ins().ishl(x, bits);
            let before = b.f.use_var(bytes);
            let x = b.f.ins().bor(before, x);
            b.f.def_var(bytes, x);
            b.close_loop(k);
        }
        let x = b.f.use_var(bytes);
        let before = b.times(unit.index, Extent::Const(tile_row));
        let p = b.f.ins().iadd(to, before);
        b.f.ins().store(MEM, x, p, 0);
        b.close_loop(unit);
    }
    debug_assert_eq!(b.ty(zero), I64);
    b.close_loop(group);
}

#[cfg(test)]
mod tests {
    use super::super::target::Cpu;
    use super::super::testing::{Compiled, check_foreign, host_cpus, packing_in_groups, packing_in_rows};
    use crate::kernel::gemm::{PANEL, TILE_ROWS};
    use crate::kernel::pack::{self, By, Form, Pack, QuantizedRows, Range, Rows, SLACK, Sums};
    use crate::kernel::{Body, BufferParam, Extent, Kernel, Use, site};
    use proptest::prelude::*;
    use tfc_ir::ops::QuantizeStatic;
    use tfc_ir::types::Elem;

    /// How rows are in memory.
    #[derive(Clone, Copy, Debug)]
    enum Order {
        /// Row after row.
        AlongK,
        /// The same, with the rows of all matrices beside each other.
        Heads,
        /// The elements of one k after those of another.
        AlongRows,
        /// With gaps between any elements.
        Apart,
    }

    #[derive(Clone, Debug)]
    struct Case {
        batch: usize,
        m: usize,
        k: usize,
        tile: usize,
        order: Order,
        /// Length of a group and factor.
        sums: Option<(usize, i32)>,
        /// Which extents are integer parameters.
        symbolic: [bool; 3],
        /// How rows are quantized.
        how: How,
    }

    /// How rows are quantized.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum How {
        /// By their largest magnitudes.
        Magnitude,
        /// By their ends, with zero points.
        Ends,
        /// By a fixed scale, and this zero point.
        Fixed(i8),
    }
    use How::{Ends, Fixed, Magnitude};

    impl Case {
        fn fixed(&self) -> Option<QuantizeStatic> {
            match self.how {
                Fixed(zero_point) => Some(QuantizeStatic { scale: (0.037f32).into(), zero_point: zero_point.into() }),
                Magnitude | Ends => None,
            }
        }

        /// The bytes of the site, if there is one.
        fn site(&self) -> Vec<u8> {
            self.fixed().map_or(vec![], |op| bytemuck::cast_slice(&site::words(&op)).to_vec())
        }

        fn strides(&self) -> [usize; 3] {
            let (m, k) = (self.m, self.k);
            match self.order {
                Order::Heads => [k, self.batch * k, 1],
                Order::AlongK => [m * k + 3, k, 1],
                Order::AlongRows => [m * k + 3, 1, m],
                Order::Apart => [2 * m * (k + 1), 2 * (k + 1), 2],
            }
        }

        fn kernel(&self) -> (Kernel, Vec<i64>) {
            let mut ints = vec![];
            let mut extent = |n: usize, symbolic: bool| {
                if !symbolic {
                    return Extent::Const(n as i64);
                }
                ints.push(n as i64);
                Extent::Param(ints.len() as u32 - 1)
            };
            let [s, t, u] = self.symbolic;
            let [matrix, row, k] = self.strides();
            let from = Rows { buffer: 0, batch: vec![extent(matrix, t)], row: extent(row, u && row != 1), k: extent(k, u && k != 1) };
            let sums = self.sums.map(|(group, factor)| Sums { buffer: 3, group: group as i64, factor: factor.into() });
            let range = match self.how {
                Magnitude => Range::OfRow { scales: 2, zeros: None },
                Ends => Range::OfRow { scales: 2, zeros: Some(5) },
                Fixed(_) => Range::Fixed { site: 4 },
            };
            let form = Form::Quantize { range, sums };
            let body = Pack {
                batch: vec![extent(self.batch, t)],
                m: extent(self.m, s),
                row_groups: Extent::Const(1),
                k: extent(self.k, t),
                tile: self.tile,
                from,
                made_by: None,
                to: 1,
                form,
                pitch: None,
            };
            let written = [Elem::I32, Elem::F32, Elem::I32].map(|elem| (elem, Use::Write));
            let buffers = [(Elem::F32, Use::Read), written[0], written[1], written[2], (Elem::F32, Use::Read), (Elem::I32, Use::Write)];
            let buffers = buffers.map(|(elem, usage)| BufferParam { elem, usage }).to_vec();
            (Kernel { buffers, ints: ints.len() as u32, body: Body::Pack(body) }, ints)
        }

        /// Checks codes, scales and sums for the values that `value` gives.
        fn check(&self, value: impl Fn(usize) -> f32) {
            let Case { batch, m, k, tile, sums, .. } = *self;
            let (kernel, ints) = self.kernel();
            let [matrix, row, step] = self.strides();
            let from: Vec<f32> = (0..batch * matrix.max(m * k)).map(value).collect();
            let mut expected = QuantizedRows::default();
            for b in 0..batch {
                let by = match self.how {
                    Magnitude => By::Magnitude,
                    Ends => By::Ends,
                    Fixed(_) => By::Fixed(self.fixed().expect("a site")),
                };
                let one = pack::quantize([m, k], tile, by, sums, |r, x| from[b * matrix + r * row + x * step]);
                expected.codes.extend(one.codes);
                expected.scales.extend(one.scales);
                expected.zeros.extend(one.zeros);
                expected.sums.extend(one.sums);
            }
            let (tiles, untouched) = (batch * m.div_ceil(tile), 0x77);
            let units = k.div_ceil(4);
            let mut kernels = vec![(kernel.clone(), tiles as i64)];
            if batch == 1 && tile == TILE_ROWS {
                kernels.extend(packing_in_groups(&kernel, m));
            }
            for (cpu, (kernel, tasks)) in host_cpus().iter().flat_map(|cpu| kernels.iter().map(move |kernel| (cpu, kernel))) {
                if let Some(kernel) = packing_in_rows(kernel, cpu) {
                    self.check_rows(cpu, (&kernel, &ints, *tasks), &from, &expected);
                }
                // What a kernel reads ends with the last element.
                let mut buffers = [
                    bytemuck::cast_slice(&from[..from.len().min((batch - 1) * matrix + (m - 1) * row + k.saturating_sub(1) * step + 1)])
                        .to_vec(),
                    vec![untouched; expected.codes.len() + SLACK as usize],
                    vec![untouched; 4 * expected.scales.len() + 64],
                    vec![untouched; 4 * expected.sums.len() + 64],
                    self.site(),
                    vec![untouched; 4 * expected.zeros.len() + 64],
                ];
                let run = Compiled::new(kernel, cpu);
                assert_eq!(run.run(&mut buffers, &ints, 1, *tasks), 0);
                assert_eq!(run.run(&mut buffers, &ints, 0, 1), 0);
                let zeros_end = if self.how == Ends { 4 * expected.zeros.len() } else { 0 };
                let behind = [(1, expected.codes.len()), (2, 4 * expected.scales.len()), (3, 4 * expected.sums.len()), (5, zeros_end)];
                for (buffer, behind) in behind {
                    assert!(buffers[buffer][behind..].iter().all(|&x| x == untouched), "{}: {self:?}: more is written", cpu.name);
                }
                let zeros: Vec<i32> = bytemuck::pod_collect_to_vec(&buffers[5][..zeros_end]);
                let scales: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[2][..4 * expected.scales.len()]);
                let sums: Vec<i32> = bytemuck::pod_collect_to_vec(&buffers[3][..4 * expected.sums.len()]);
                let at = |what: &str, i: usize, r: usize| format!("{}: {self:?}: {what} of tile {i}, row {r}", cpu.name);
                for (i, r) in (0..tiles).flat_map(|i| (0..tile).map(move |r| (i, r))) {
                    let (x, y) = (scales[i * tile + r], expected.scales[i * tile + r]);
                    let same = x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
                    assert!(same || self.fixed().is_some(), "{}: {x} for {y}", at("scale", i, r));
                    if i % m.div_ceil(tile) * tile + r >= m {
                        continue;
                    }
                    if self.how == Ends {
                        assert_eq!(zeros[i * tile + r], expected.zeros[i * tile + r], "{}", at("zero point", i, r));
                    }
                    for unit in 0..units {
                        let place = 4 * ((i * units + unit) * tile + r);
                        let codes: &[i8] = bytemuck::cast_slice(&buffers[1][place..place + 4]);
                        assert_eq!(codes, &expected.codes[place..place + 4], "{}, unit {unit}", at("codes", i, r));
                    }
                    let groups = sums.len() / tiles / tile;
                    for group in 0..groups {
                        let place = (i * groups + group) * tile + r;
                        assert_eq!(sums[place], expected.sums[place], "{}, group {group}", at("sum", i, r));
                    }
                }
            }
        }
    }

    impl Case {
        /// The same of a single matrix that stays in rows.
        fn check_rows(&self, cpu: &Cpu, (kernel, ints, tasks): (&Kernel, &[i64], i64), from: &[f32], expected: &QuantizedRows) {
            let (m, k, pitch) = (self.m, self.k, pack::pitch(self.k as i64) as usize);
            let (tiles, untouched) = (m.div_ceil(TILE_ROWS), 0x77);
            let mut buffers = [
                bytemuck::cast_slice(&from[..m * k]).to_vec(),
                vec![untouched; (m + 1) * pitch],
                vec![untouched; 4 * expected.scales.len() + 64],
                vec![untouched; 4 * expected.sums.len() + 64],
                self.site(),
                vec![untouched; 4 * expected.zeros.len() + 64],
            ];
            let run = Compiled::new(kernel, cpu);
            assert_eq!(run.run(&mut buffers, ints, 1, tasks), 0);
            assert_eq!(run.run(&mut buffers, ints, 0, 1), 0);
            let at = |what: &str, i: usize| format!("{}, rows: {self:?}: {what} of row {i}", cpu.name);
            let scales: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[2][..4 * expected.scales.len()]);
            let sums: Vec<i32> = bytemuck::pod_collect_to_vec(&buffers[3][..4 * expected.sums.len()]);
            let groups = sums.len() / tiles / TILE_ROWS;
            for (i, (x, y)) in scales.iter().zip(&expected.scales).take(m).enumerate() {
                let same = x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
                assert!(same || self.fixed().is_some(), "{}: {x} for {y}", at("scale", i));
            }
            if self.how == Ends {
                let zeros: Vec<i32> = bytemuck::pod_collect_to_vec(&buffers[5][..4 * m]);
                assert_eq!(zeros, expected.zeros[..m], "{}", at("zero points", 0));
            }
            for (i, row) in buffers[1].chunks_exact(pitch).take(m).enumerate() {
                let (tile, r) = (i / TILE_ROWS, i % TILE_ROWS);
                let code = |x: usize| match x {
                    x if x < k => expected.codes[4 * ((tile * k.div_ceil(4) + x / 4) * TILE_ROWS + r) + x % 4],
                    _ => 0,
                };
                let codes: Vec<i8> = (0..k.next_multiple_of(pack::LINE as usize)).map(code).collect();
                assert_eq!(bytemuck::cast_slice::<u8, i8>(&row[..codes.len()]), codes, "{}", at("codes", i));
                assert!(row[codes.len()..].iter().all(|&x| x == untouched), "{}", at("more is written", i));
                for group in 0..groups {
                    assert_eq!(sums[i * groups + group], expected.sums[(tile * groups + group) * TILE_ROWS + r], "{}", at("sums", i));
                }
            }
            let zeros_end = if self.how == Ends { 4 * m } else { 0 };
            for (buffer, behind) in [(1, m * pitch), (2, 4 * m), (3, 4 * m * groups), (5, zeros_end)] {
                assert!(buffers[buffer][behind..].iter().all(|&x| x == untouched), "{}: more is written", at("behind", m));
            }
        }
    }

    /// Numbers of all magnitudes, and what is none.
    fn wild(seed: usize) -> impl Fn(usize) -> f32 {
        move |i| {
            let bits = ((i + seed) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let random = (bits >> 20) as u32;
            match bits >> 52 & 0xff {
                0 => f32::NAN,
                1 => f32::from_bits(0xff80_0001 | random & 0x3f_ffff),
                2 => f32::INFINITY,
                3 => f32::NEG_INFINITY,
                4 => -0.0,
                5..30 => f32::from_bits(random & 0x807f_ffff),
                30..50 => f32::from_bits(random),
                _ => (random >> 8) as f32 / 1e6 - 8.0,
            }
        }
    }

    #[test]
    fn rows_of_one_kind() {
        let values = [0.0, -0.0, 1e-40, 9e-31, 1e-30, 1.1e-30, 1.0, 3e38, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let orders = [Order::AlongK, Order::AlongRows, Order::Apart];
        for (order, how) in orders.into_iter().flat_map(|order| [Magnitude, Ends, Fixed(0), Fixed(-5)].map(|how| (order, how))) {
            for tile in [TILE_ROWS, PANEL] {
                let case = Case { batch: 1, m: values.len(), k: 37, tile, order, sums: Some((37, -8)), symbolic: [false; 3], how };
                let [_, row, k] = case.strides();
                for other in [0.0, 1e-31, 0.3, f32::NEG_INFINITY, -f32::NAN] {
                    case.check(|i| {
                        let (r, x) = (i / row % values.len(), i / k % 37);
                        if x == 20 { values[r] } else { other * x as f32 }
                    });
                }
            }
        }
    }

    #[test]
    fn rows_of_every_length() {
        for k in [1, 15, 16, 17, 63, 64, 65, 127, 128, 192, 200, 800] {
            let ways = [((k, -8), Magnitude), ((64, 1), Fixed(7)), ((128, -128), Magnitude), ((k, -8), Fixed(0)), ((k, 1), Fixed(-128))];
            for (sums, how) in ways.into_iter().chain([((k, -8), Ends), ((64, 1), Ends)]) {
                let case = Case { batch: 1, m: 14, k, tile: TILE_ROWS, order: Order::AlongK, sums: Some(sums), symbolic: [false; 3], how };
                case.check(wild(k));
                // No value that quick code would not be right for.
                case.check(|i| ((i * 7919 + k) % 1013) as f32 / 100.0 - 5.0);
            }
        }
    }

    #[test]
    fn halves_go_to_even_codes() {
        for order in [Order::AlongK, Order::AlongRows] {
            let case = Case { batch: 1, m: 1, k: 512, tile: TILE_ROWS, order, sums: None, symbolic: [false; 3], how: Magnitude };
            case.check(|i| if i == 0 { 127.0 } else { (i as f32 - 256.0) / 2.0 % 127.0 });
        }
    }

    #[test]
    fn other_architectures() {
        for order in [Order::AlongK, Order::AlongRows, Order::Apart] {
            for symbolic in [false, true] {
                let case =
                    Case { batch: 2, m: 3, k: 6, tile: TILE_ROWS, order, sums: Some((4, -8)), symbolic: [symbolic; 3], how: Magnitude };
                check_foreign(&case.kernel().0);
                check_foreign(&Case { how: Fixed(-5), ..case }.kernel().0);
                check_foreign(&Case { how: Ends, ..case }.kernel().0);
            }
        }
    }

    #[test]
    fn heads_share_rows() {
        for (tile, k) in [(TILE_ROWS, 64), (PANEL, 20)] {
            Case { batch: 3, m: 2 * tile + 5, k, tile, order: Order::Heads, sums: Some((k, -128)), symbolic: [false; 3], how: Magnitude }
                .check(wild(5));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(160))]

        #[test]
        fn codes_scales_and_sums_are_those_of_the_reference(
            [batch, m, k] in [1usize..3, 1..41, 1..71],
            long in prop_oneof![4 => Just(0usize), 1 => Just(192), 1 => 450usize..1100],
            order in prop_oneof![3 => Just(Order::AlongK), 2 => Just(Order::Heads), 3 => Just(Order::AlongRows), 1 => Just(Order::Apart)],
            panels: bool,
            sums in prop_oneof![Just(None), (0usize..34, prop_oneof![Just(1), Just(-8), Just(-128)]).prop_map(Some)],
            symbolic: [bool; 3],
            how in prop_oneof![2 => Just(Magnitude), 2 => Just(Ends), 1 => Just(Fixed(0)), 1 => any::<i8>().prop_map(Fixed)],
            seed: u16,
        ) {
            let k = k + long;
            let group = |g: usize| match g {
                0 => k,
                1 => usize::MAX >> 1,
                g => 4 * g,
            };
            let sums = sums.map(|(g, factor)| (group(g), factor));
            let case = Case { batch, m, k, tile: if panels { PANEL } else { TILE_ROWS }, order, sums, symbolic, how };
            case.check(wild(seed.into()));
        }
    }
}
