//! Matrix products. For one block of `k` after the other, a task multiplies its row tiles strip by strip
//! into sums on the stack, so that the block of the right operand comes from the cache for all tiles but
//! the first. The epilogue runs over the sums.

use super::dequantized::Weights;
use super::expr::{Evaluator, Lanes, Val};
use super::tile::{self, Heights, Rows, Strips};
use super::{KernelBuilder, LANES, MEM, dequantized, quantized};
use crate::kernel::Extent;
use crate::kernel::gemm::{self, CHUNK, Format, GROUP_ROWS, Gemm, PANEL, TILE_ROWS};
use crate::kernel::nest::{Effect, Reduction};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use cranelift_entity::EntityRef;
use tfc_ir::types::Elem;

const F32_BYTES: i64 = 4;

/// Bytes of the elements of one `k` in a row tile.
const TILE_ROW: i64 = TILE_ROWS as i64 * F32_BYTES;

/// Emits a matrix product.
pub fn emit(b: &mut KernelBuilder, g: &Gemm) {
    let (begin, end) = (b.begin, b.end);
    let rows = gemm::group_rows(g.m, g.row_groups, TILE_ROWS).unwrap_or(GROUP_ROWS as i64);
    let sums = tile::scratch(b, rows * CHUNK as i64);

    let task = b.f.declare_var(I64);
    b.f.def_var(task, begin);
    let (head, body, exit) = (b.f.create_block(), b.f.create_block(), b.f.create_block());
    b.f.ins().jump(head, &[]);
    b.f.switch_to_block(head);
    let number = b.f.use_var(task);
    let more = b.f.ins().icmp(IntCC::SignedLessThan, number, end);
    b.f.ins().brif(more, body, &[], exit, &[]);
    b.f.seal_block(body);
    b.f.seal_block(exit);
    b.f.switch_to_block(body);
    b.reload_arguments();
    let t = Task::decode(b, g, number);
    let kept = tile::keep(b, &t.values());
    match &g.format {
        Format::Floats(Elem::F32) => product(b, g, &t, sums),
        Format::Floats(elem) => dequantized::product(b, g, &Weights::Halves(*elem), &t, sums),
        Format::Dequantized(d) => dequantized::product(b, g, &Weights::Codes(d), &t, sums),
        Format::Quantized(q) => quantized::product(b, g, q, &t, sums),
    }
    b.reload_arguments();
    let t = Task::of(&tile::kept(b, kept, t.values().len()));
    epilogue(b, g, &t, sums);
    let next = b.f.use_var(task);
    let next = b.f.ins().iadd_imm_s(next, 1);
    b.f.def_var(task, next);
    b.f.ins().jump(head, &[]);
    b.f.seal_block(head);
    b.f.switch_to_block(exit);
}

/// Where a task is.
pub(super) struct Task {
    /// Indices of the batch loops.
    pub batch: Vec<Value>,
    /// Index of the first row.
    pub first_row: Value,
    /// Index of the first column.
    pub first_column: Value,
    /// Number of rows, at most those of a group.
    pub rows: Value,
    /// Number of columns, at most [`CHUNK`].
    pub columns: Value,
}

impl Task {
    fn decode(b: &mut KernelBuilder, g: &Gemm, task: Value) -> Task {
        let (m, n) = (b.extent(g.m), b.extent(g.n));
        let (groups, height) = (b.extent(g.row_groups), group_rows(b, g));
        let chunks = ceil_div(b, n, CHUNK as i64);
        let (number, chunk) = div_rem(b, task, chunks);
        let (matrix, group) = div_rem(b, number, groups);
        let first_row = b.f.ins().imul(group, height);
        let first_column = b.times(chunk, Extent::Const(CHUNK as i64));
        Task {
            batch: split(b, matrix, &g.batch),
            first_row,
            first_column,
            rows: {
                let left = b.f.ins().isub(m, first_row);
                b.f.ins().smin(left, height)
            },
            columns: rest(b, n, first_column, CHUNK as i64),
        }
    }

    fn values(&self) -> Vec<Value> {
        [self.first_row, self.first_column, self.rows, self.columns].into_iter().chain(self.batch.iter().copied()).collect()
    }

    fn of(values: &[Value]) -> Task {
        let &[first_row, first_column, rows, columns, ref batch @ ..] = values else { unreachable!("as `values` writes them") };
        Task { batch: batch.to_vec(), first_row, first_column, rows, columns }
    }
}

/// The f32 dot products of a task: blocks of `k` one after the other.
fn product(b: &mut KernelBuilder, g: &Gemm, t: &Task, sums: Value) {
    let heights = Heights::of(g.m);
    let k = b.extent(g.k);
    let batch = t.batch.iter().copied();
    let left = address(b, g.left.buffer, F32_BYTES, batch.clone(), &g.left.batch);
    // Groups begin with tiles: `first_row` rows before them take `first_row * k` elements in tiles.
    let skipped = match g.left_pitch {
        Some(pitch) => b.times(t.first_row, Extent::Const(pitch)),
        None => b.f.ins().imul(t.first_row, k),
    };
    let skipped = b.times(skipped, Extent::Const(F32_BYTES));
    let left = b.f.ins().iadd(left, skipped);
    let right = address(b, g.right.buffer, F32_BYTES, batch, &g.right.batch);
    // Chunks begin with panels: `first_column` columns before them take `first_column * k` elements.
    let skipped = b.f.ins().imul(t.first_column, k);
    let skipped = b.times(skipped, Extent::Const(F32_BYTES));
    let right = b.f.ins().iadd(right, skipped);
    let panel_bytes = b.times(k, Extent::Const(PANEL as i64 * F32_BYTES));
    // Rows are packed tile by tile.
    let packed = g.left_pitch.map(|_| tile::scratch(b, TILE_ROWS as i64 * tile::DEPTH));
    let one_block = matches!(g.k, Extent::Const(k) if (1..=tile::DEPTH).contains(&k));
    let zero = b.int(0);
    if !one_block {
        let zeros = b.float_of(F32X4, 0.0);
        let tiles = ceil_div(b, t.rows, TILE_ROWS as i64);
        let all = b.times(tiles, Extent::Const((TILE_ROWS * CHUNK) as i64));
        tile::fill(b, sums, all, zeros);
    }
    let end = b.f.ins().iadd_imm_s(k, tile::DEPTH - 1);
    let Some(block) = b.open_loop(zero, end, tile::DEPTH) else { return };
    let depth = if one_block { k } else { rest(b, k, block.index, tile::DEPTH) };
    let offset = b.times(block.index, Extent::Const(if g.left_pitch.is_some() { F32_BYTES } else { TILE_ROW }));
    let left = b.f.ins().iadd(left, offset);
    let offset = b.times(block.index, Extent::Const(PANEL as i64 * F32_BYTES));
    let right = b.f.ins().iadd(right, offset);

    // A block of the right operand that several tiles use is brought into the cache at once.
    let (bring, go_on) = (b.f.create_block(), b.f.create_block());
    let several = b.f.ins().icmp_imm_s(IntCC::SignedGreaterThan, t.rows, TILE_ROWS as i64);
    b.f.ins().brif(several, bring, &[], go_on, &[]);
    b.f.seal_block(bring);
    b.f.switch_to_block(bring);
    tile::touch(b, right, panel_bytes, depth, t.columns);
    b.f.ins().jump(go_on, &[]);
    b.f.seal_block(go_on);
    b.f.switch_to_block(go_on);

    let end = b.f.ins().iadd_imm_s(t.rows, TILE_ROWS as i64 - 1);
    if let Some(tile) = b.open_loop(zero, end, TILE_ROWS as i64) {
        let rows = rest(b, t.rows, tile.index, TILE_ROWS as i64);
        let offset = match g.left_pitch {
            Some(pitch) => b.times(tile.index, Extent::Const(pitch)),
            None => b.f.ins().imul(tile.index, k),
        };
        let offset = b.times(offset, Extent::Const(F32_BYTES));
        let mut left = b.f.ins().iadd(left, offset);
        if let (Some(pitch), Some(to)) = (g.left_pitch, packed) {
            let row_bytes = b.int(pitch * F32_BYTES);
            let from = Rows { at: left, rows, k: depth, row_bytes, together: false, k_stride: Extent::Const(1) };
            tile::pack(b, &from, TILE_ROWS, to);
            left = to;
        }
        let offset = b.times(tile.index, Extent::Const(CHUNK as i64 * F32_BYTES));
        let sums = b.f.ins().iadd(sums, offset);
        let strips = Strips {
            left,
            right,
            panel_bytes,
            rows,
            k: depth,
            columns: t.columns,
            sums,
            pitch: CHUNK as i64,
            accumulate: !one_block,
            heights: &heights,
        };
        tile::multiply(b, &strips);
        b.close_loop(tile);
    }
    b.close_loop(block);
}

/// The epilogue of a task: by vectors, then what is left of every row element by element.
fn epilogue(b: &mut KernelBuilder, g: &Gemm, t: &Task, sums: Value) {
    const VECTORS: usize = PANEL / LANES;
    let zero = b.int(0);
    let Some(row) = b.open_loop(zero, t.rows, 1) else { return };
    let offset = b.times(row.index, Extent::Const(CHUNK as i64 * F32_BYTES));
    let sums = b.f.ins().iadd(sums, offset);
    let row_index = b.f.ins().iadd(t.first_row, row.index);
    let element = |b: &mut KernelBuilder, column: Value, lanes: Option<Lanes>| {
        let offset = b.times(column, Extent::Const(F32_BYTES));
        let p = b.f.ins().iadd(sums, offset);
        let dot = match lanes {
            Some(l) => Val::Vectors((0..l.vectors).map(|v| b.f.ins().load(F32X4, MEM, p, (v * LANES * 4) as i32)).collect()),
            None => Val::Uniform(b.f.ins().load(F32, MEM, p, 0)),
        };
        let column = b.f.ins().iadd(t.first_column, column);
        let mut e = Evaluator::new(&g.exprs, t.batch.iter().copied().chain([row_index, column]).collect());
        e.lanes = lanes;
        e.reduced[Reduction::new(0)] = Some(dot);
        for effect in &g.effects {
            let Effect::Store(access, value) = effect else { unreachable!("a product's epilogue stores") };
            e.store(b, access, *value);
        }
    };
    let lanes = Lanes { loop_: g.batch.len() as u32 + 1, vectors: VECTORS };
    let mut done = zero;
    if let Some(l) = b.open_loop(zero, t.columns, (VECTORS * LANES) as i64) {
        element(b, l.index, Some(lanes));
        done = b.close_loop(l);
    }
    let no_rest = matches!(g.n, Extent::Const(n) if n % (VECTORS * LANES) as i64 == 0);
    if !no_rest && let Some(l) = b.open_loop(done, t.columns, 1) {
        element(b, l.index, None);
        b.close_loop(l);
    }
    b.close_loop(row);
}

/// The rows of each group but the last.
fn group_rows(b: &mut KernelBuilder, g: &Gemm) -> Value {
    if let Some(rows) = gemm::group_rows(g.m, g.row_groups, TILE_ROWS) {
        return b.int(rows);
    }
    let (m, groups) = (b.extent(g.m), b.extent(g.row_groups));
    let tiles = ceil_div(b, m, TILE_ROWS as i64);
    let up = b.f.ins().iadd(tiles, groups);
    let up = b.f.ins().iadd_imm_s(up, -1);
    let (tiles, _) = div_rem(b, up, groups);
    b.times(tiles, Extent::Const(TILE_ROWS as i64))
}

/// `ceil(x / by)` of a number that is not negative.
pub(super) fn ceil_div(b: &mut KernelBuilder, x: Value, by: i64) -> Value {
    match b.as_const(x) {
        Some(n) => b.int((n + by - 1) / by),
        None => {
            let x = b.f.ins().iadd_imm_s(x, by - 1);
            b.f.ins().udiv_imm_u(x, by)
        }
    }
}

/// `min(total - done, most)`.
pub(super) fn rest(b: &mut KernelBuilder, total: Value, done: Value, most: i64) -> Value {
    let left = b.f.ins().isub(total, done);
    let most = b.int(most);
    b.f.ins().smin(left, most)
}

/// Quotient and remainder of numbers that are not negative; the divisor is not 0 where there are tasks.
pub(super) fn div_rem(b: &mut KernelBuilder, x: Value, by: Value) -> (Value, Value) {
    if b.as_const(by) == Some(1) {
        return (x, b.int(0));
    }
    let q = b.f.ins().udiv(x, by);
    let p = b.f.ins().imul(q, by);
    (q, b.f.ins().isub(x, p))
}

/// The indices of loops from the number of an iteration of their product.
pub(super) fn split(b: &mut KernelBuilder, mut number: Value, loops: &[Extent]) -> Vec<Value> {
    let mut out = vec![];
    for (n, &extent) in loops.iter().enumerate().rev() {
        let index = if n == 0 {
            number
        } else {
            let extent = b.extent(extent);
            let (q, r) = div_rem(b, number, extent);
            number = q;
            r
        };
        out.push(index);
    }
    out.reverse();
    out
}

/// An address in a buffer of elements of `bytes` bytes.
pub(super) fn address<'a>(
    b: &mut KernelBuilder,
    buffer: u32,
    bytes: i64,
    index: impl IntoIterator<Item = Value>,
    strides: impl IntoIterator<Item = &'a Extent>,
) -> Value {
    let mut at = b.int(0);
    for (x, &stride) in index.into_iter().zip(strides) {
        let x = b.times(x, stride);
        at = b.f.ins().iadd(at, x);
    }
    let at = b.times(at, Extent::Const(bytes));
    let base = b.buffer(buffer);
    b.f.ins().iadd(base, at)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Compiled, check_foreign, check_residual, host_cpus, row_groups};
    use super::*;
    use crate::kernel::gemm::{Format, Operand, pack, packed_len};
    use crate::kernel::nest::{Access, Expr, ExprId};
    use crate::kernel::pack::pack as pack_rows;
    use crate::kernel::{Body, BufferParam, Kernel, Use};
    use cranelift_entity::PrimaryMap;
    use proptest::prelude::*;
    use tfc_ir::scalar::Prim;
    use tfc_ir::tensor::{Scalar, Tensor, round_to};

    /// `out[b, m, n] = a b + bias[n] + row * 2 + other[b, m, n]`, without the third term if it is plain.
    #[derive(Clone, Debug)]
    struct Problem {
        batch: usize,
        m: usize,
        n: usize,
        k: usize,
        /// Whether all matrices of a batch have the same right operand.
        shared: bool,
        /// Whether the epilogue is one that the wide emitter takes; others have the number of the row, and `other` transposed
        /// in memory.
        plain: bool,
        /// Whether the result is transposed in memory.
        scattered: bool,
        /// Whether sizes and strides are parameters.
        symbolic: bool,
        /// Whether the left operand is in rows, with gaps between them.
        in_rows: bool,
        /// Type of the right operand, of what is added, and of the result.
        elem: Elem,
    }

    fn value(i: usize) -> f32 {
        ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0
    }

    impl Problem {
        fn kernel(&self) -> (Kernel, Vec<i64>) {
            let Problem { batch, m, n, k, elem, .. } = *self;
            let mut params = vec![];
            let mut extent = |x: usize| {
                if !self.symbolic {
                    return Extent::Const(x as i64);
                }
                params.push(x as i64);
                Extent::Param(params.len() as u32 - 1)
            };
            let mut access = |buffer: u32, strides: [usize; 3]| Access {
                buffer,
                offset: Extent::Const(0),
                strides: strides.into_iter().map(|s| if s < 2 { Extent::Const(s as i64) } else { extent(s) }).collect(),
                dynamic: vec![],
            };
            let bias = access(2, [0, 0, 1]);
            let other = access(3, if self.plain { [m * n, n, 1] } else { [m * n, 1, m] });
            let out = access(4, if self.scattered { [m * n, 1, m] } else { [m * n, n, 1] });
            let mut exprs: PrimaryMap<ExprId, (Expr, Elem)> = PrimaryMap::new();
            let dot = exprs.push((Expr::Reduced(Reduction::new(0)), elem));
            let bias = exprs.push((Expr::Load(bias), elem));
            let other = exprs.push((Expr::Load(other), elem));
            let row = (!self.plain).then(|| {
                let row = exprs.push((Expr::Index(1), Elem::I64));
                let row = exprs.push((Expr::Prim(Prim::Cast, vec![row]), elem));
                let two = exprs.push((Expr::Float(2f64.to_bits()), elem));
                exprs.push((Expr::Prim(Prim::Mul, vec![row, two]), elem))
            });
            let mut y = dot;
            for x in [Some(bias), row, Some(other)].into_iter().flatten() {
                y = exprs.push((Expr::Prim(Prim::Add, vec![y, x]), elem));
            }
            let mut stride = |x: usize| if x == 1 { Extent::Const(1) } else { extent(x) };
            let left_pitch = self.in_rows.then_some(k as i64 + 3);
            let matrix = if self.in_rows { m * (k + 3) } else { m.div_ceil(TILE_ROWS) * TILE_ROWS * k };
            let left = Operand { buffer: 0, batch: vec![stride(matrix)] };
            let right = Operand { buffer: 1, batch: vec![stride(if self.shared { 0 } else { packed_len(k, n) })] };
            let body = Gemm {
                batch: vec![stride(batch)],
                m: stride(m),
                row_groups: stride(row_groups(m, &Format::Floats(Elem::F32))),
                n: stride(n),
                k: if elem == Elem::F32 { stride(k) } else { Extent::Const(k as i64) },
                format: Format::Floats(elem),
                left,
                left_pitch,
                right,
                exprs,
                effects: vec![Effect::Store(out, y)],
            };
            let param = |i| BufferParam { elem: if i == 0 { Elem::F32 } else { elem }, usage: if i == 4 { Use::Write } else { Use::Read } };
            let buffers = (0..5).map(param).collect();
            (Kernel { buffers, ints: params.len() as u32, body: Body::Gemm(body) }, params)
        }

        fn a(&self, b: usize, i: usize, x: usize) -> f32 {
            value((b * self.m + i) * self.k + x)
        }

        fn right(&self, b: usize, i: usize, j: usize) -> f32 {
            let matrix = if self.shared { 0 } else { b };
            self.stored((matrix * self.k + i) * self.n + j + 7)
        }

        /// A value of the type.
        fn stored(&self, i: usize) -> f32 {
            match round_to(self.elem, Scalar::Float(value(i).into())) {
                Scalar::Float(x) => x as f32,
                Scalar::Int(_) => unreachable!("floats stay floats"),
            }
        }

        fn bytes(&self, values: &[f32]) -> Vec<u8> {
            Tensor::build(self.elem, &[values.len()], |i| Scalar::Float(values[i].into())).bytes().to_vec()
        }

        fn tasks(&self) -> i64 {
            (self.batch * row_groups(self.m, &Format::Floats(Elem::F32)) * self.n.div_ceil(CHUNK)) as i64
        }

        /// Left and right operand, bias, what is added, and the result.
        fn buffers(&self) -> [Vec<u8>; 5] {
            let Problem { batch, m, n, k, .. } = *self;
            let left: Vec<f32> = match self.in_rows {
                false => (0..batch).flat_map(|b| pack_rows(m, k, TILE_ROWS, |i, x| self.a(b, i, x))).collect(),
                true => {
                    let row = |i: usize| (0..k).map(move |x| self.a(i / m, i % m, x)).chain([f32::NAN; 3]);
                    let behind = if self.symbolic { (TILE_ROWS - 1) * (k + 3) } else { 0 };
                    (0..batch * m).flat_map(row).chain(vec![f32::NAN; behind]).collect()
                }
            };
            let packed: Vec<f32> = (0..batch).flat_map(|b| pack(k, n, |i, j| self.right(b, i, j))).collect();
            let bias: Vec<f32> = (0..n).map(|i| self.stored(i + 100)).collect();
            let other: Vec<f32> = (0..batch * m * n).map(|i| self.stored(i + 200)).collect();
            let out = vec![f32::NAN; batch * m * n];
            let [packed, bias, other, out] = [packed, bias, other, out].map(|x| self.bytes(&x));
            [bytemuck::cast_slice(&left).to_vec(), packed, bias, other, out]
        }

        fn check(&self) {
            for plain in [false, true] {
                Problem { plain, ..self.clone() }.check_epilogue();
            }
        }

        fn check_epilogue(&self) {
            let Problem { batch, m, n, k, elem, .. } = *self;
            let ((kernel, ints), operands) = (self.kernel(), self.buffers());
            for cpu in host_cpus() {
                let run = Compiled::new(&kernel, &cpu);
                let mut results = vec![];
                for pieces in [1, 3] {
                    let buffers = run.run_pieces(operands.to_vec(), &ints, self.tasks(), pieces);
                    results.push(Tensor::new(elem, vec![batch * m * n], buffers[4].clone().into()).expect("all elements").to_f64s());
                }
                for (b, i, j) in (0..batch).flat_map(|b| (0..m).flat_map(move |i| (0..n).map(move |j| (b, i, j)))) {
                    let at = |transposed: bool| b * m * n + if transposed { j * m + i } else { i * n + j };
                    let dot: f64 = (0..k).map(|x| f64::from(self.a(b, i, x)) * f64::from(self.right(b, x, j))).sum();
                    let expected = dot
                        + f64::from(self.stored(j + 100))
                        + if self.plain { 0.0 } else { 2.0 * i as f64 }
                        + f64::from(self.stored(at(!self.plain) + 200));
                    let at = at(self.scattered);
                    let y = results[0][at];
                    let rounding = match elem {
                        Elem::F16 => 2f64.powi(-11),
                        Elem::Bf16 => 2f64.powi(-8),
                        _ => 0.0,
                    };
                    let tolerance = (1e-5 * (1.0 + k as f64).sqrt() + rounding) * (1.0 + expected.abs());
                    assert!((y - expected).abs() <= tolerance, "{}: {self:?}, ({b}, {i}, {j}): {y} for {expected}", cpu.name);
                    assert_eq!(y.to_bits(), results[1][at].to_bits(), "the distribution of tasks matters");
                }
            }
        }
    }

    const SMALL: Problem = Problem {
        batch: 1,
        m: 5,
        n: 9,
        k: 7,
        shared: false,
        plain: false,
        scattered: false,
        symbolic: false,
        in_rows: false,
        elem: Elem::F32,
    };

    #[test]
    fn rows_where_they_are() {
        for m in 0..=2 * TILE_ROWS {
            for symbolic in [false, true] {
                Problem { m, n: 37, k: 35, in_rows: true, symbolic, ..SMALL }.check();
            }
        }
        for symbolic in [false, true] {
            Problem { batch: 3, m: 29, n: 2 * CHUNK + 5, k: 1600, in_rows: true, symbolic, ..SMALL }.check();
        }
    }

    #[test]
    fn sizes_at_the_edges() {
        SMALL.check();
        for symbolic in [false, true] {
            Problem { m: 0, symbolic, ..SMALL }.check();
            Problem { n: 0, symbolic, ..SMALL }.check();
            Problem { k: 0, symbolic, ..SMALL }.check();
            // More than one chunk of columns and block of k.
            Problem { m: 29, n: 2 * CHUNK + 5, k: 2 * tile::DEPTH as usize + 11, symbolic, ..SMALL }.check();
        }
        for m in 1..=2 * TILE_ROWS {
            Problem { m, n: 16, k: 35, ..SMALL }.check();
            Problem { m, n: 12, k: 35, symbolic: true, ..SMALL }.check();
        }
    }

    #[test]
    fn residuals_are_read_before_they_are_written_over() {
        for (m, n, k) in [(1, 70, 40), (2, 33, 7), (5, 9, 7), (12, 32, 64), (29, 2 * CHUNK + 5, 1600)] {
            for [scattered, symbolic, in_rows] in [[false, false, false], [false, true, true], [true, true, false]] {
                let problem = Problem { batch: 2, m, n, k, plain: !scattered, scattered, symbolic, in_rows, ..SMALL };
                let (kernel, ints) = problem.kernel();
                host_cpus().iter().for_each(|cpu| check_residual(&kernel, cpu, problem.buffers().to_vec(), &ints, problem.tasks()));
            }
        }
    }

    #[test]
    fn halves_are_widened() {
        for elem in [Elem::F16, Elem::Bf16] {
            // More than one block of k.
            Problem { elem, m: 13, n: 33, k: 1600, ..SMALL }.check();
            for [symbolic, in_rows, scattered] in [[false, false, false], [true, true, false], [false, true, true]] {
                let problem = Problem { elem, symbolic, in_rows, scattered, ..SMALL };
                for m in (1..=TILE_ROWS).chain([30]) {
                    Problem { m, n: 37, k: 35, ..problem.clone() }.check();
                }
                Problem { batch: 3, n: 32, k: 1, shared: true, ..problem }.check();
            }
        }
    }

    #[test]
    fn other_architectures() {
        for symbolic in [false, true] {
            check_foreign(&Problem { elem: Elem::F16, symbolic, in_rows: symbolic, ..SMALL }.kernel().0);
            check_foreign(&Problem { symbolic, ..SMALL }.kernel().0);
            check_foreign(&Problem { symbolic, in_rows: true, ..SMALL }.kernel().0);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn is_the_product_with_its_epilogue(
            [batch, m, n, k] in [0usize..3, 0..30, 0..150, 0..60],
            [shared, scattered, symbolic, in_rows]: [bool; 4],
        ) {
            Problem { batch, m, n, k, shared, scattered, symbolic, in_rows, ..SMALL }.check();
        }
    }
}
