//! Packing of the operands of products, a tile a task.

use super::gemm::{address, ceil_div, div_rem, rest, split};
use super::tile::{self, Rows};
use super::{KernelBuilder, LANES, MEM, nest, quantize};
use crate::kernel::Extent;
use crate::kernel::gemm::TILE_ROWS;
use crate::kernel::pack::{Form, Pack, Range, Sums};
use cranelift_codegen::ir::types::{I8X16, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Value};

/// Bytes of an element of a packed tile.
pub const ELEMENT: i64 = 4;

/// Bytes of the elements of all rows of a tile of a left operand.
const TILE_ROW: i64 = TILE_ROWS as i64 * ELEMENT;

/// Emits a packing kernel.
pub fn emit(b: &mut KernelBuilder, p: &Pack) {
    let (begin, mut end) = (b.begin, b.end);
    if p.row_groups != Extent::Const(1) {
        // Tiles of a single matrix are numbered like tasks, which may be more.
        let m = b.extent(p.m);
        let tiles = ceil_div(b, m, p.tile as i64);
        end = b.f.ins().smin(end, tiles);
    }
    let Some(task) = b.open_loop(begin, end, 1) else { return };
    b.reload_arguments();
    let height = p.tile as i64;
    let (m, k) = (b.extent(p.m), b.extent(p.k));
    let tiles = ceil_div(b, m, height);
    let (matrix, tile, number) = decode(b, p, task.index, tiles);
    let first = b.times(tile, Extent::Const(height));
    let rows = rest(b, m, first, height);
    if let Some(nest) = &p.made_by {
        let end = b.f.ins().iadd(first, rows);
        nest::emit(b, nest, first, end);
    }
    let batch = split(b, matrix, &p.batch);
    let bytes = if matches!(p.form, Form::Bytes(_)) { 1 } else { ELEMENT };
    let elements = if p.form == Form::Floats { k } else { ceil_div(b, k, 4) };
    let at = address(b, p.from.buffer, bytes, batch.into_iter().chain([first]), p.from.batch.iter().chain([&p.from.row]));
    let row_bytes = b.extent(p.from.row);
    let row_bytes = b.times(row_bytes, Extent::Const(bytes));
    let to = b.times(number, Extent::Const(height * ELEMENT));
    let to = b.f.ins().imul(to, elements);
    let base = b.buffer(p.to);
    let to = b.f.ins().iadd(base, to);
    let from = Rows { at, rows, k, row_bytes, together: p.from.row == Extent::Const(1), k_stride: p.from.k };
    match p.form {
        Form::Floats => tile::pack(b, &from, p.tile, to),
        Form::Bytes(_) => pack_bytes(b, &from, elements, to),
        Form::Quantize { range: Range::OfRow { scales, zeros }, .. } => {
            let before = b.times(number, Extent::Const(height * ELEMENT));
            let mut of_tile = |buffer| {
                let all = b.buffer(buffer);
                b.f.ins().iadd(all, before)
            };
            let (scales, zeros) = (of_tile(scales), zeros.map(of_tile));
            quantize::rows(b, &from, elements, p.tile, to, quantize::By::OfRow { scales, zeros });
        }
        Form::Quantize { range: Range::Fixed { site }, .. } => {
            let site = b.buffer(site);
            quantize::rows(b, &from, elements, p.tile, to, quantize::By::Fixed { site });
        }
    }
    if let Some(sums) = p.form.sums() {
        let groups = ceil_div(b, elements, sums.group_units());
        let before = b.f.ins().imul(number, groups);
        let before = b.times(before, Extent::Const(height * ELEMENT));
        let at = b.buffer(sums.buffer);
        let at = b.f.ins().iadd(at, before);
        row_sums(b, p.tile, to, elements, &sums, at);
    }
    b.close_loop(task);
}

/// The matrix of a task, its tile there, and its number among the tiles of all matrices; a matrix has `tiles`.
fn decode(b: &mut KernelBuilder, p: &Pack, task: Value, tiles: Value) -> (Value, Value, Value) {
    let heads = match p.batch.last() {
        Some(&heads) if p.has_heads() => b.extent(heads),
        _ => {
            let (matrix, tile) = div_rem(b, task, tiles);
            return (matrix, tile, task);
        }
    };
    let (rest, head) = div_rem(b, task, heads);
    let (outer, tile) = div_rem(b, rest, tiles);
    let matrix = b.f.ins().imul(outer, heads);
    let matrix = b.f.ins().iadd(matrix, head);
    let number = b.f.ins().imul(matrix, tiles);
    (matrix, tile, b.f.ins().iadd(number, tile))
}

/// Packs rows of bytes, of which `k_stride` counts single ones, as `units` units: whole units as
/// elements of four bytes where the bytes are neighbours, what is left byte by byte.
fn pack_bytes(b: &mut KernelBuilder, from: &Rows, units: Value, to: Value) {
    let zero = b.int(0);
    let whole = match b.as_const(from.k) {
        Some(k) => b.int(k / 4),
        None => b.f.ins().ushr_imm_u(from.k, 2),
    };
    let mut done = zero;
    if from.k_stride == Extent::Const(1) {
        tile::pack(b, &Rows { k: whole, together: false, ..*from }, TILE_ROWS, to);
        done = match b.as_const(from.k) {
            Some(k) => b.int(k / 4 * 4),
            None => b.times(whole, Extent::Const(4)),
        };
    }
    // A unit that is not whole ends with zeros.
    if let Some(l) = b.open_loop(whole, units, 1) {
        let place = b.times(l.index, Extent::Const(TILE_ROW));
        let place = b.f.ins().iadd(to, place);
        let zeros = b.int_of(I32X4, 0);
        for v in 0..TILE_ROWS / LANES {
            b.f.ins().store(MEM, zeros, place, 16 * v as i32);
        }
        b.close_loop(l);
    }
    let k_bytes = b.extent(from.k_stride);
    let Some(row) = b.open_loop(zero, from.rows, 1) else { return };
    let before = b.f.ins().imul(row.index, from.row_bytes);
    let from_row = b.f.ins().iadd(from.at, before);
    let place = b.times(row.index, Extent::Const(ELEMENT));
    let to_row = b.f.ins().iadd(to, place);
    if let Some(l) = b.open_loop(done, from.k, 1) {
        let before = b.f.ins().imul(l.index, k_bytes);
        let p = b.f.ins().iadd(from_row, before);
        let byte = b.f.ins().uload8(I64, MEM, p, 0);
        let within = b.f.ins().band_imm_u(l.index, 3);
        let unit = b.f.ins().ushr_imm_u(l.index, 2);
        let place = b.times(unit, Extent::Const(TILE_ROW));
        let p = b.f.ins().iadd(to_row, place);
        let p = b.f.ins().iadd(p, within);
        b.f.ins().istore8(MEM, byte, p, 0);
        b.close_loop(l);
    }
    b.close_loop(row);
}

/// Writes the sums of the bytes of every row of a packed tile of `height` rows to `to`, group by group, times a factor.
fn row_sums(b: &mut KernelBuilder, height: usize, tile: Value, units: Value, sums: &Sums, to: Value) {
    let (vectors, tile_row, group_units) = (height / LANES, height as i64 * ELEMENT, sums.group_units());
    let next = b.f.declare_var(I64);
    b.f.def_var(next, to);
    let zero = b.int(0);
    let end = match b.as_const(units) {
        Some(n) => b.int(n + group_units - 1),
        None => b.f.ins().iadd_imm_s(units, group_units - 1),
    };
    let Some(group) = b.open_loop(zero, end, group_units) else { return };
    let count = rest(b, units, group.index, group_units);
    let before = b.times(group.index, Extent::Const(tile_row));
    let begin = b.f.ins().iadd(tile, before);
    let bytes = b.times(count, Extent::Const(tile_row));
    let end = b.f.ins().iadd(begin, bytes);
    // Two vectors of pairs for four rows.
    let zeros = b.int_of(I32X4, 0);
    let acc: Vec<_> = (0..2 * vectors).map(|_| b.f.declare_var(I32X4)).collect();
    for &a in &acc {
        b.f.def_var(a, zeros);
    }
    if let Some(unit) = b.open_loop(begin, end, tile_row) {
        for (v, acc) in acc.chunks(2).enumerate() {
            let bytes = b.f.ins().load(I8X16, MEM, unit.index, 16 * v as i32);
            let halves = [b.f.ins().swiden_low(bytes), b.f.ins().swiden_high(bytes)];
            for (x, &a) in halves.into_iter().zip(acc) {
                let (low, high) = (b.f.ins().swiden_low(x), b.f.ins().swiden_high(x));
                let pairs = b.f.ins().iadd_pairwise(low, high);
                let sum = b.f.use_var(a);
                let sum = b.f.ins().iadd(sum, pairs);
                b.f.def_var(a, sum);
            }
        }
        b.close_loop(unit);
    }
    let to = b.f.use_var(next);
    let factor = b.int_of(I32X4, sums.factor);
    for (v, acc) in acc.chunks(2).enumerate() {
        let (low, high) = (b.f.use_var(acc[0]), b.f.use_var(acc[1]));
        let sum = b.f.ins().iadd_pairwise(low, high);
        let sum = b.f.ins().imul(sum, factor);
        b.f.ins().store(MEM, sum, to, 16 * v as i32);
    }
    let to = b.f.ins().iadd_imm_s(to, tile_row);
    b.f.def_var(next, to);
    b.close_loop(group);
}

#[cfg(test)]
mod tests {
    use super::super::target::Cpu;
    use super::super::testing::{Compiled, check_foreign, host_cpus, packing_in_groups, packing_in_rows};
    use crate::kernel::gemm::{PANEL, TILE_ROWS};
    use crate::kernel::pack::{Form, LINE, Pack, Rows, SLACK, Sums, pack, pitch};
    use crate::kernel::{Body, BufferParam, Extent, Kernel, Use};
    use proptest::prelude::*;
    use tfc_ir::types::Elem;

    /// How matrices lie in memory.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Lie {
        /// One behind the other.
        Rows,
        /// The same, transposed.
        Transposed,
        /// Row by row of all of them.
        Heads,
    }

    impl Lie {
        /// From matrix to matrix, row to row and k to k.
        fn strides(self, [batch, m, k]: [usize; 3]) -> [usize; 3] {
            match self {
                Lie::Rows => [m * k, k, 1],
                Lie::Transposed => [m * k, 1, m],
                Lie::Heads => [k, batch * k, 1],
            }
        }

        /// The place of an element.
        fn at(self, sizes: [usize; 3], index: [usize; 3]) -> usize {
            self.strides(sizes).iter().zip(index).map(|(stride, i)| stride * i).sum()
        }
    }

    const LIES: [Lie; 3] = [Lie::Rows, Lie::Transposed, Lie::Heads];

    fn kernel([batch, m, k]: [usize; 3], tile: usize, lie: Lie, symbolic: bool) -> (Kernel, Vec<i64>) {
        let mut ints = vec![];
        let mut extent = |n: usize| {
            if !symbolic || n == 1 {
                return Extent::Const(n as i64);
            }
            ints.push(n as i64);
            Extent::Param(ints.len() as u32 - 1)
        };
        let [matrix, row, column] = lie.strides([batch, m, k]).map(&mut extent);
        let from = Rows { buffer: 0, batch: vec![matrix], row, k: column };
        let body = Pack {
            batch: vec![extent(batch)],
            m: extent(m),
            row_groups: Extent::Const(1),
            k: extent(k),
            tile,
            from,
            made_by: None,
            to: 1,
            form: Form::Floats,
            pitch: None,
        };
        let buffers = [Use::Read, Use::Write].map(|usage| BufferParam { elem: Elem::F32, usage }).to_vec();
        (Kernel { buffers, ints: ints.len() as u32, body: Body::Pack(body) }, ints)
    }

    #[test]
    fn other_architectures() {
        check_foreign(&kernel([2, 3, 4], TILE_ROWS, Lie::Rows, true).0);
        check_foreign(&kernel([2, 3, 4], TILE_ROWS, Lie::Heads, false).0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn rows_are_where_the_kernel_layer_says([batch, m, k] in [1usize..3, 1..80, 0..50], lie in proptest::sample::select(&LIES[..]), [panels, symbolic]: [bool; 2]) {
            let height = if panels { PANEL } else { TILE_ROWS };
            let (kernel, ints) = kernel([batch, m, k], height, lie, symbolic);
            let from: Vec<f32> = (0..batch * m * k).map(|i| i as f32).collect();
            let expected: Vec<f32> = (0..batch)
                .flat_map(|b| pack(m, k, height, |r, x| from[lie.at([batch, m, k], [b, r, x])]))
                .collect();
            let tiles = batch * m.div_ceil(height);
            for cpu in host_cpus() {
                let mut buffers = [&from, &vec![f32::NAN; expected.len()]].map(|x| bytemuck::cast_slice(x).to_vec());
                let run = Compiled::new(&kernel, &cpu);
                prop_assert_eq!(run.run(&mut buffers, &ints, 0, 1), 0);
                prop_assert_eq!(run.run(&mut buffers, &ints, 1, tiles as i64), 0);
                let packed: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[1]);
                for (i, (x, y)) in packed.iter().zip(&expected).enumerate() {
                    let (tile, r) = (i / height / k % m.div_ceil(height), i % height);
                    prop_assert!(tile * height + r >= m || x == y, "{}: element {i}: {x} for {y}", cpu.name);
                }
            }
        }
    }

    /// Rows of bytes with their sums.
    #[derive(Clone, Debug)]
    struct Bytes {
        batch: usize,
        m: usize,
        k: usize,
        group: usize,
        factor: i64,
        lie: Lie,
        symbolic: bool,
    }

    impl Bytes {
        fn kernel(&self) -> (Kernel, Vec<i64>) {
            let Bytes { batch, m, k, group, factor, lie, symbolic } = *self;
            let (mut kernel, ints) = kernel([batch, m, k], TILE_ROWS, lie, symbolic);
            if let Body::Pack(p) = &mut kernel.body {
                p.form = Form::Bytes(Sums { buffer: 2, group: group as i64, factor });
            }
            kernel.buffers = [(Elem::I8, Use::Read), (Elem::I32, Use::Write), (Elem::I32, Use::Write)]
                .map(|(elem, usage)| BufferParam { elem, usage })
                .to_vec();
            (kernel, ints)
        }

        /// Checks units and sums for the values that `at` gives by their place.
        fn check(&self, at: impl Fn(usize) -> i8) {
            let Bytes { batch, m, k, group, factor, lie, .. } = *self;
            let (kernel, ints) = self.kernel();
            let from: Vec<i8> = (0..batch * m * k).map(at).collect();
            let value = |b: usize, r: usize, x: usize| if x < k { from[lie.at([batch, m, k], [b, r, x])] } else { 0 };
            let (units, tiles, groups) = (k.div_ceil(4), m.div_ceil(TILE_ROWS), k.div_ceil(group));
            let empty = [
                bytemuck::cast_slice(&from).to_vec(),
                vec![0x77; batch * tiles * TILE_ROWS * units * 4 + SLACK as usize],
                vec![0x77; batch * tiles * TILE_ROWS * groups * 4],
            ];
            let mut kernels = vec![(kernel.clone(), (batch * tiles) as i64)];
            if batch == 1 {
                kernels.extend(packing_in_groups(&kernel, m));
            }
            for (cpu, (kernel, tasks)) in host_cpus().iter().flat_map(|cpu| kernels.iter().map(move |kernel| (cpu, kernel))) {
                if let Some(kernel) = packing_in_rows(kernel, cpu) {
                    self.check_rows(cpu, (&kernel, &ints, *tasks), &from);
                }
                let mut buffers = empty.clone();
                let run = Compiled::new(kernel, cpu);
                assert_eq!(run.run(&mut buffers, &ints, 0, 1), 0);
                assert_eq!(run.run(&mut buffers, &ints, 1, *tasks), 0);
                let sums: Vec<i32> = bytemuck::pod_collect_to_vec(&buffers[2]);
                for (b, r) in (0..batch).flat_map(|b| (0..m).map(move |r| (b, r))) {
                    let (tile, row) = (b * tiles + r / TILE_ROWS, r % TILE_ROWS);
                    for x in 0..4 * units {
                        let y = buffers[1][((tile * units + x / 4) * TILE_ROWS + row) * 4 + x % 4] as i8;
                        assert_eq!(y, value(b, r, x), "{}: {self:?}: matrix {b}, row {r}, k {x}", cpu.name);
                    }
                    for g in 0..groups {
                        let sum: i64 = (g * group..(g + 1) * group).map(|x| i64::from(value(b, r, x))).sum();
                        let y = sums[(tile * groups + g) * TILE_ROWS + row];
                        assert_eq!(i64::from(y), sum * factor, "{}: {self:?}: matrix {b}, row {r}, group {g}", cpu.name);
                    }
                }
            }
        }
    }

    impl Bytes {
        /// The same of a single matrix that stays in rows.
        fn check_rows(&self, cpu: &Cpu, (kernel, ints, tasks): (&Kernel, &[i64], i64), from: &[i8]) {
            let Bytes { m, k, group, factor, .. } = *self;
            let (pitch, tiles, groups) = (pitch(k as i64) as usize, m.div_ceil(TILE_ROWS), k.div_ceil(group));
            let mut buffers = [bytemuck::cast_slice(from).to_vec(), vec![0x77; m * pitch + 64], vec![0x77; tiles * TILE_ROWS * groups * 4]];
            let run = Compiled::new(kernel, cpu);
            assert_eq!(run.run(&mut buffers, ints, 1, tasks), 0);
            assert_eq!(run.run(&mut buffers, ints, 0, 1), 0);
            let sums: Vec<i32> = bytemuck::pod_collect_to_vec(&buffers[2]);
            let rows: &[i8] = bytemuck::cast_slice(&buffers[1]);
            for (r, row) in rows.chunks_exact(pitch).take(m).enumerate() {
                let lines = k.next_multiple_of(LINE as usize);
                assert_eq!(row[..k], from[r * k..][..k], "{}: {self:?}: row {r}", cpu.name);
                assert!(row[k..lines].iter().all(|&x| x == 0), "{}: {self:?}: behind row {r}", cpu.name);
                assert!(row[lines..].iter().all(|&x| x == 0x77), "{}: {self:?}: far behind row {r}", cpu.name);
                for (g, values) in from[r * k..][..k].chunks(group).enumerate() {
                    let sum: i64 = values.iter().map(|&x| i64::from(x)).sum();
                    assert_eq!(i64::from(sums[r * groups + g]), sum * factor, "{}: {self:?}: row {r}, group {g}", cpu.name);
                }
            }
            assert!(rows[m * pitch..].iter().all(|&x| x == 0x77), "{}: {self:?}: behind all rows", cpu.name);
        }
    }

    #[test]
    fn rows_of_every_length_have_sums() {
        for (k, group) in [(4, 4), (60, 60), (64, 64), (68, 68), (128, 64), (200, 128), (260, 64), (768, 768), (772, 256)] {
            for m in [1, 12, 13, 30] {
                let bytes = Bytes { batch: 1, m, k, group, factor: -8, lie: Lie::Rows, symbolic: false };
                bytes.check(|i| (i.wrapping_mul(2_654_435_761) >> 9) as i8);
            }
        }
    }

    #[test]
    fn sums_of_extreme_bytes_are_exact() {
        for (k, group) in [(65_536, 65_536), (65_535, 65_535), (4096, 128), (1000, 64)] {
            let bytes = Bytes { batch: 1, m: 13, k, group, factor: -128, lie: Lie::Rows, symbolic: false };
            bytes.check(|_| -128);
            bytes.check(|_| 127);
        }
    }

    #[test]
    fn other_architectures_pack_bytes() {
        for (lie, symbolic) in [(Lie::Rows, false), (Lie::Heads, false), (Lie::Transposed, true)] {
            check_foreign(&Bytes { batch: 2, m: 3, k: 5, group: 4, factor: -8, lie, symbolic }.kernel().0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn bytes_become_units_with_sums(
            [batch, m, k] in [1usize..3, 1..40, 1..150],
            group in 0usize..20,
            whole: bool,
            factor in prop_oneof![Just(-8i64), Just(-128)],
            lie in proptest::sample::select(&LIES[..]),
            symbolic: bool,
        ) {
            let k = if whole { 4 * k } else { k };
            let group = if group == 0 || 4 * group > k { k } else { 4 * group };
            let bytes = Bytes { batch, m, k, group, factor, lie, symbolic };
            bytes.check(|i| (i.wrapping_mul(2_654_435_761) >> 9) as i8);
        }
    }
}
