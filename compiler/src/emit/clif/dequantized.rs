//! Products of f32 rows with weights of 4 and 8 bits ([`Dequantized`]) and of 16 bits (f16 and bf16): block by block of a
//! panel, the weights are converted into scratch memory, and multiplied with all row tiles of a task.

use super::gemm::{Task, address, ceil_div, rest};
use super::tile::{self, Heights, Rows, Strips};
use super::{KernelBuilder, LANES, MEM, memory};
use crate::kernel::Extent;
use crate::kernel::gemm::{CHUNK, Dequantized, Gemm, PANEL, TILE_ROWS};
use cranelift_codegen::ir::types::{F32X4, I8X16, I16X8, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
use tfc_ir::types::Elem;

const ELEMENT: i64 = 4;
const TILE_ROW: i64 = TILE_ROWS as i64 * ELEMENT;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// Values of k of a block: half of a first-level cache of 32 kB.
const DEPTH: i64 = 128;

/// Columns of the codes that are loaded at once.
const CODES: i64 = 16;

/// The weights of a product.
pub(super) enum Weights<'a> {
    /// Of 4 or 8 bits.
    Codes(&'a Dequantized),
    /// f16 or bf16.
    Halves(Elem),
}

impl Weights<'_> {
    /// Bytes of the weights of one k in a panel.
    fn row_bytes(&self) -> i64 {
        match self {
            Weights::Codes(d) => d.row_bytes(),
            Weights::Halves(elem) => PANEL as i64 * i64::from(elem.bits() / 8),
        }
    }
}

/// `at + n * bytes`.
fn offset(b: &mut KernelBuilder, at: Value, n: Value, bytes: i64) -> Value {
    let bytes = b.times(n, Extent::Const(bytes));
    b.f.ins().iadd(at, bytes)
}

/// Emits the dot products of a task, [`CHUNK`] f32 to a row at `sums`.
pub(super) fn product(b: &mut KernelBuilder, g: &Gemm, w: &Weights, t: &Task, sums: Value) {
    let heights = Heights::of(g.m);
    let k = g.k.as_const().expect("weights have known sizes");
    let block_of_weights = tile::scratch(b, DEPTH.min(k) * PANEL as i64);
    let left = address(b, g.left.buffer, ELEMENT, t.batch.iter().copied(), &g.left.batch);
    // From row to row, and from one k to the next, in rows or in tiles.
    let (row_bytes, k_bytes) = g.left_pitch.map_or((k * ELEMENT, TILE_ROW), |pitch| (pitch * ELEMENT, ELEMENT));
    let left = offset(b, left, t.first_row, row_bytes);
    let right_element = if let Weights::Halves(elem) = w { i64::from(elem.bits() / 8) } else { ELEMENT };
    let right = address(b, g.right.buffer, right_element, t.batch.iter().copied(), &g.right.batch);
    let first_panel = b.f.ins().ushr_imm_u(t.first_column, i64::from(PANEL.ilog2()));
    let right = offset(b, right, first_panel, k * w.row_bytes());
    let of_columns = match w {
        Weights::Codes(d) => {
            let columns = b.buffer(d.columns);
            Some((d, offset(b, columns, first_panel, d.groups * d.column_bytes())))
        }
        Weights::Halves(_) => None,
    };
    // Rows are packed tile by tile.
    let packed = g.left_pitch.map(|_| tile::scratch(b, TILE_ROWS as i64 * DEPTH.min(k)));

    let (zero, k_value) = (b.int(0), b.int(k));
    let zeros = b.float_of(F32X4, 0.0);
    let tiles = ceil_div(b, t.rows, TILE_ROWS as i64);
    let all = b.times(tiles, Extent::Const((TILE_ROWS * CHUNK) as i64));
    tile::fill(b, sums, all, zeros);
    let end = b.f.ins().iadd_imm_s(t.columns, PANEL as i64 - 1);
    let Some(panel) = b.open_loop(zero, end, PANEL as i64) else { return };
    let columns = rest(b, t.columns, panel.index, PANEL as i64);
    let number = b.f.ins().ushr_imm_u(panel.index, i64::from(PANEL.ilog2()));
    let right = offset(b, right, number, k * w.row_bytes());
    let of_columns = of_columns.map(|(d, columns)| (d, offset(b, columns, number, d.groups * d.column_bytes())));
    let sums = offset(b, sums, panel.index, ELEMENT);
    let end = b.int(k + DEPTH - 1);
    let block = b.open_loop(zero, end, DEPTH).expect("k is not 0");
    let depth = rest(b, k_value, block.index, DEPTH);
    let weights = offset(b, right, block.index, w.row_bytes());
    match (w, of_columns) {
        (Weights::Halves(elem), _) => widen(b, *elem, [weights, depth, block_of_weights]),
        (_, Some((d, columns))) => convert(b, d, [weights, block.index, depth, block_of_weights, columns]),
        (Weights::Codes(_), None) => unreachable!("codes have columns"),
    }
    let left = offset(b, left, block.index, k_bytes);
    let end = b.f.ins().iadd_imm_s(t.rows, TILE_ROWS as i64 - 1);
    if let Some(tile) = b.open_loop(zero, end, TILE_ROWS as i64) {
        let rows = rest(b, t.rows, tile.index, TILE_ROWS as i64);
        let mut left = offset(b, left, tile.index, row_bytes);
        if let Some(to) = packed {
            let row_bytes = b.int(row_bytes);
            let from = Rows { at: left, rows, k: depth, row_bytes, together: false, k_stride: Extent::Const(1) };
            tile::pack(b, &from, TILE_ROWS, to);
            left = to;
        }
        let strips = Strips {
            left,
            right: block_of_weights,
            panel_bytes: zero,
            rows,
            k: depth,
            columns,
            sums: offset(b, sums, tile.index, CHUNK as i64 * ELEMENT),
            pitch: CHUNK as i64,
            accumulate: true,
            heights: &heights,
        };
        tile::multiply(b, &strips);
        b.close_loop(tile);
    }
    b.close_loop(block);
    b.close_loop(panel);
}

/// Widens weights of 16 bits into a block of an f32 panel, as a helper function. Arguments are the address of the weights, how
/// many k there are, and the place of the block.
fn widen(b: &mut KernelBuilder, elem: Elem, args: [Value; 3]) {
    let element = i64::from(elem.bits() / 8);
    b.call(format!("widen_{}", elem.name()), &args, |b, p| {
        let &[weights, count, to] = p else { unreachable!("three parameters") };
        let zero = b.int(0);
        let row = b.open_loop(zero, count, 1).expect("a number that is not known");
        let weights = offset(b, weights, row.index, PANEL as i64 * element);
        let to = offset(b, to, row.index, PANEL_ROW);
        for column in (0..PANEL as i64).step_by(LANES) {
            let x = memory::load_vector(b, weights, column * element, elem);
            b.f.ins().store(MEM, x, to, (column * ELEMENT) as i32);
        }
        b.close_loop(row);
    });
}

/// Converts weights into a block of an f32 panel, as a helper function. Arguments are the address of the
/// weights, the first k, how many there are, the place of the block, and the address of what the panel's
/// columns have.
fn convert(b: &mut KernelBuilder, d: &Dequantized, args: [Value; 5]) {
    let d = d.clone();
    b.call("dequantize".into(), &args, |b, p| {
        let &[codes, first, count, to, of_columns] = p else { unreachable!("five parameters") };
        let end = b.f.ins().iadd(first, count);
        // Group by group, as far as it is in the block.
        let (first_group, last_group) = (b.f.ins().udiv_imm_u(first, d.group), b.f.ins().iadd_imm_s(end, d.group - 1));
        let last_group = b.f.ins().udiv_imm_u(last_group, d.group);
        let group = b.open_loop(first_group, last_group, 1).expect("a number that is not known");
        let group_begin = b.times(group.index, Extent::Const(d.group));
        let group_end = b.f.ins().iadd_imm_s(group_begin, d.group);
        let (from, until) = (b.f.ins().smax(group_begin, first), b.f.ins().smin(group_end, end));
        let (from, until) = (b.f.ins().isub(from, first), b.f.ins().isub(until, first));
        let of_columns = offset(b, of_columns, group.index, d.column_bytes());
        let row = b.open_loop(from, until, 1).expect("a number that is not known");
        let codes = offset(b, codes, row.index, d.row_bytes());
        let to = offset(b, to, row.index, PANEL_ROW);
        for (column, w) in weights(b, d.bits, codes) {
            let place = (column * ELEMENT) as i32;
            let mut difference = w;
            if d.zeros {
                let zero = b.f.ins().load(I32X4, MEM, of_columns, place + PANEL_ROW as i32);
                difference = b.f.ins().isub(w, zero);
            }
            let x = b.f.ins().fcvt_from_sint(F32X4, difference);
            let scale = b.f.ins().load(F32X4, MEM, of_columns, place);
            let x = b.f.ins().fmul(x, scale);
            b.f.ins().store(MEM, x, to, place);
        }
        b.close_loop(row);
        b.close_loop(group);
    });
}

/// The weights of one k of a panel in i32, four to a vector with its first column.
fn weights(b: &mut KernelBuilder, bits: u8, at: Value) -> Vec<(i64, Value)> {
    let mut out = vec![];
    for c in (0..PANEL as i64 * i64::from(bits) / 8).step_by(CODES as usize) {
        let x = b.f.ins().load(I8X16, MEM, at, c as i32);
        if bits == 8 {
            widened(b, c, x, &mut out);
            continue;
        }
        let (nibble, sign) = (b.int_of(I8X16, 0x0f), b.int_of(I8X16, 8));
        let wide = b.bits(I16X8, x);
        let high = b.shr(wide, 4);
        let high = b.bits(I8X16, high);
        for (column, x) in [(c, x), (c + PANEL as i64 / 2, high)] {
            // The sign of a nibble: its upper half of the range moves below 0.
            let x = b.f.ins().band(x, nibble);
            let x = b.f.ins().bxor(x, sign);
            let x = b.f.ins().isub(x, sign);
            widened(b, column, x, &mut out);
        }
    }
    out
}

/// Sixteen columns as vectors of four.
fn widened(b: &mut KernelBuilder, column: i64, x: Value, out: &mut Vec<(i64, Value)>) {
    let halves = [b.f.ins().swiden_low(x), b.f.ins().swiden_high(x)];
    for (h, half) in halves.into_iter().enumerate() {
        let quarters = [b.f.ins().swiden_low(half), b.f.ins().swiden_high(half)];
        for (q, v) in quarters.into_iter().enumerate() {
            out.push((column + 8 * h as i64 + 4 * q as i64, v));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Compiled, check_foreign, check_residual, host_cpus, row_groups};
    use crate::kernel::gemm::{CHUNK, Dequantized, Format, Gemm, Operand, TILE_ROWS, pack_columns, pack_weight_rows};
    use crate::kernel::nest::{Access, Effect, Expr, ExprId, Reduction};
    use crate::kernel::pack::pack;
    use crate::kernel::{Body, BufferParam, Extent, Kernel, Use};
    use cranelift_entity::{EntityRef, PrimaryMap};
    use proptest::prelude::*;
    use tfc_ir::types::Elem;

    /// `out[m, n] = a[m] w[n]`.
    #[derive(Clone, Copy, Debug)]
    struct Problem {
        m: usize,
        n: usize,
        k: usize,
        bits: u8,
        /// Values of k in a group; 0 is all of k.
        group: usize,
        zeros: bool,
        /// Whether the number of rows is a parameter.
        symbolic: bool,
    }

    fn mixed(i: usize) -> usize {
        i.wrapping_mul(2_654_435_761) >> 9
    }

    impl Problem {
        fn group(&self) -> usize {
            if self.group == 0 { self.k } else { self.group }
        }

        fn groups(&self) -> usize {
            self.k.div_ceil(self.group())
        }

        fn format(&self) -> Format {
            let groups = self.groups() as i64;
            Format::Dequantized(Dequantized { bits: self.bits, group: self.group() as i64, groups, columns: 2, zeros: self.zeros })
        }

        fn kernel(&self) -> Kernel {
            let Problem { m, n, k, .. } = *self;
            let extent = |param: u32, x: usize| if self.symbolic { Extent::Param(param) } else { Extent::Const(x as i64) };
            let strides = vec![Extent::Const(n as i64), Extent::Const(1)];
            let mut exprs: PrimaryMap<ExprId, (Expr, Elem)> = PrimaryMap::new();
            let dot = exprs.push((Expr::Reduced(Reduction::new(0)), Elem::F32));
            let format = self.format();
            let out = Access { buffer: 3, offset: Extent::Const(0), strides, dynamic: vec![] };
            let body = Gemm {
                batch: vec![],
                m: extent(0, m),
                row_groups: extent(1, row_groups(m, &format)),
                n: Extent::Const(n as i64),
                k: Extent::Const(k as i64),
                format,
                left: Operand { buffer: 0, batch: vec![] },
                left_pitch: None,
                right: Operand { buffer: 1, batch: vec![] },
                exprs,
                effects: vec![Effect::Store(out, dot)],
            };
            let elems = [Elem::F32, Elem::U8, Elem::F32, Elem::F32].into_iter().enumerate();
            let buffers = elems.map(|(i, elem)| BufferParam { elem, usage: if i == 3 { Use::Write } else { Use::Read } }).collect();
            Kernel { buffers, ints: 2 * u32::from(self.symbolic), body: Body::Gemm(body) }
        }

        fn a(&self, i: usize, x: usize) -> f32 {
            (mixed(i * self.k + x) % 1000) as f32 / 500.0 - 1.0
        }

        /// A value of the weights' type.
        fn stored(&self, i: usize) -> i32 {
            let end = 1 << (self.bits - 1);
            (mixed(i) % (2 * end)) as i32 - end as i32
        }

        fn weight(&self, x: usize, j: usize) -> i32 {
            self.stored(x * self.n + j + 77)
        }

        fn zero(&self, g: usize, j: usize) -> i32 {
            if self.zeros { self.stored(g * self.n + j + 12_345) } else { 0 }
        }

        fn scale(g: usize, j: usize) -> f32 {
            let s = 1e-3 * (1.0 + ((g * 7 + j * 13) % 101) as f32 / 37.0);
            if (g + j).is_multiple_of(5) { -s } else { s }
        }

        fn buffers(&self) -> [Vec<u8>; 4] {
            let Problem { m, n, k, bits, .. } = *self;
            let columns = pack_columns(self.groups(), n, 1 + usize::from(self.zeros), |g, j, word| match word {
                0 => Self::scale(g, j).to_bits(),
                _ => self.zero(g, j) as u32,
            });
            [
                bytemuck::cast_slice(&pack(m, k, TILE_ROWS, |i, x| self.a(i, x))).to_vec(),
                pack_weight_rows(bits, k, n, |x, j| self.weight(x, j)),
                bytemuck::cast_slice(&columns).to_vec(),
                bytemuck::cast_slice(&vec![f32::NAN; m * n]).to_vec(),
            ]
        }

        /// The integers of a launch, and its tasks.
        fn launch(&self) -> (Vec<i64>, i64) {
            let groups = row_groups(self.m, &self.format());
            let ints = if self.symbolic { vec![self.m as i64, groups as i64] } else { vec![] };
            (ints, (groups * self.n.div_ceil(CHUNK)) as i64)
        }

        fn check(&self) {
            let Problem { n, k, .. } = *self;
            let expected = |i: usize, j: usize| -> (f64, f64) {
                let products = (0..k).map(|x| {
                    let g = x / self.group();
                    f64::from(self.a(i, x)) * f64::from((self.weight(x, j) - self.zero(g, j)) as f32 * Self::scale(g, j))
                });
                products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
            };
            let (kernel, operands, (ints, tasks)) = (self.kernel(), self.buffers(), self.launch());
            for cpu in host_cpus() {
                let run = Compiled::new(&kernel, &cpu);
                let mut results = vec![];
                for pieces in [1, 3] {
                    let buffers = run.run_pieces(operands.to_vec(), &ints, tasks, pieces);
                    results.push(bytemuck::pod_collect_to_vec::<u8, f32>(&buffers[3]));
                }
                for (at, &y) in results[0].iter().enumerate() {
                    let (wanted, size) = expected(at / n, at % n);
                    let error = (f64::from(y) - wanted).abs();
                    assert!(error <= 1e-6 * size, "{}: {self:?}, ({}, {}): {y} for {wanted}", cpu.name, at / n, at % n);
                    assert_eq!(y.to_bits(), results[1][at].to_bits(), "the distribution of tasks matters");
                }
            }
        }
    }

    const SMALL: Problem = Problem { m: 5, n: 9, k: 24, bits: 4, group: 0, zeros: false, symbolic: false };

    #[test]
    fn every_number_of_rows() {
        for bits in [4, 8] {
            for m in (0..=17).chain([29, 50]) {
                Problem { m, bits, n: 37, k: 67, ..SMALL }.check();
                Problem { m, bits, n: 33, k: 96, group: 32, zeros: true, symbolic: true }.check();
            }
        }
    }

    #[test]
    fn sizes_at_the_edges() {
        for (bits, zeros) in [(4, false), (4, true), (8, false), (8, true)] {
            let small = Problem { bits, zeros, ..SMALL };
            for k in [1, 2, 3, 127, 128, 129, 300] {
                Problem { k, ..small }.check();
            }
            for n in [1, 15, 16, 17, 31, 32, 64, CHUNK, 2 * CHUNK + 5] {
                Problem { n, ..small }.check();
            }
        }
    }

    #[test]
    fn groups_of_every_size() {
        for bits in [4, 8] {
            for (group, k) in [(1, 5), (3, 130), (32, 100), (33, 300), (64, 192), (100, 129), (128, 383), (130, 400), (300, 700)] {
                Problem { bits, group, k, zeros: true, m: 13, ..SMALL }.check();
                Problem { bits, group, k, m: 1, n: 34, ..SMALL }.check();
            }
        }
    }

    #[test]
    fn residuals_are_read_before_they_are_written_over() {
        for (m, bits) in [(1, 4), (2, 8), (5, 4), (12, 8), (30, 4)] {
            for (n, symbolic) in [(37, false), (2 * CHUNK + 32, true)] {
                let problem = Problem { m, n, bits, symbolic, ..SMALL };
                let (kernel, (ints, tasks)) = (problem.kernel(), problem.launch());
                host_cpus().iter().for_each(|cpu| check_residual(&kernel, cpu, problem.buffers().to_vec(), &ints, tasks));
            }
        }
    }

    #[test]
    fn a_single_row_by_several_panels() {
        for (bits, zeros) in [(4, false), (4, true), (8, false), (8, true)] {
            for (group, k) in [(0, 1), (0, 64), (0, 131), (1, 7), (6, 45), (32, 96), (64, 200)] {
                for n in [31, 32, 65, 97, 128, 150, 2 * CHUNK + 100] {
                    for symbolic in [false, true] {
                        Problem { m: 1, n, k, bits, group, zeros, symbolic }.check();
                    }
                }
            }
        }
    }

    #[test]
    fn long_rows() {
        for k in [5000, 17_000] {
            Problem { m: 1, n: 130, k, group: 128, zeros: true, ..SMALL }.check();
        }
    }

    #[test]
    fn other_architectures() {
        for (bits, group, zeros) in [(4, 0, false), (4, 8, true), (8, 0, true), (8, 8, false)] {
            check_foreign(&Problem { bits, group, zeros, symbolic: zeros, ..SMALL }.kernel());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn is_the_product_with_the_weights_as_floats(
            [m, n, k, group] in [1usize..60, 1..150, 1..400, 0..200],
            eight: bool, zeros: bool, symbolic: bool,
        ) {
            let (bits, group) = (if eight { 8 } else { 4 }, if group < k { group } else { 0 });
            Problem { m, n, k, bits, group, zeros, symbolic }.check();
        }
    }
}
