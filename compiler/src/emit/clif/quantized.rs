//! Products of packed `i8` rows with weights of 4 and 8 bits
//! ([`Quantized`](crate::kernel::gemm::Quantized)).
//!
//! A register tile is a few rows by a strip of eight columns: four neighbours, and the four that are half a
//! panel behind them, which share their bytes where weights have 4 bits. Both operands are widened to
//! i16; pairs of products are added in i32, and the two pairs of a column once per group.
//!
//! Within a panel, groups are the outer loop: the weights of a group stay in the first-level cache for all
//! rows of a task, while the sums wait in memory.

use super::gemm::{Task, address, ceil_div, rest};
use super::tile;
use super::{KernelBuilder, MEM};
use crate::kernel::Extent;
use crate::kernel::gemm::{CHUNK, Gemm, PANEL, Quantized, RowZeros, TILE_ROWS};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32X4, I8X16, I16X8, I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use cranelift_frontend::Variable;

/// Bytes of an f32, an i32 and a unit.
const ELEMENT: i64 = 4;

/// Bytes of a unit of all rows of a packed tile.
const TILE_ROW: i64 = TILE_ROWS as i64 * ELEMENT;

/// Bytes of the elements of a panel's columns.
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// Columns between the two halves of a strip.
const HALF: i64 = PANEL as i64 / 2;

/// Vectors of sums of a row of a strip: each has the two pairs of two columns.
const PAIRS: usize = 4;

/// What a group of a row tile is computed from and where it goes, all `i64`.
struct Group {
    /// Address of the units of the rows.
    left: Value,
    /// Address of the units of the panel.
    right: Value,
    /// Number of units.
    count: Value,
    /// Address of what the columns of the panel have.
    columns: Value,
    /// Address of the sums of the rows.
    row_sums: Value,
    /// Address of the zero points of the rows; anything if not every row has its own.
    row_zeros: Value,
    /// Number of strips.
    strips: Value,
    /// Address of the results.
    sums: Value,
}

/// `at + n * bytes`.
fn offset(b: &mut KernelBuilder, at: Value, n: Value, bytes: i64) -> Value {
    let bytes = b.times(n, Extent::Const(bytes));
    b.f.ins().iadd(at, bytes)
}

/// Emits the dot products of a task, [`CHUNK`] f32 to a row at `sums`.
pub(super) fn product(b: &mut KernelBuilder, g: &Gemm, q: &Quantized, t: &Task, sums: Value) {
    let k = g.k.as_const().expect("weights have known sizes");
    let units = (k + 3) / 4;
    let per_group = (q.group + 3) / 4;
    let unit_bytes = PANEL_ROW * i64::from(q.bits) / 8;

    let left = address(b, g.left.buffer, ELEMENT, t.batch.iter().copied(), &g.left.batch);
    let left = offset(b, left, t.first_row, units * ELEMENT);
    // The sums of rows are ordered like the row tiles, which lie one behind the other.
    let begin = b.buffer(g.left.buffer);
    let before = b.f.ins().isub(left, begin);
    let tiles = b.f.ins().udiv_imm_u(before, (units * TILE_ROW).max(1));
    let row_sums = b.buffer(q.sums);
    let row_sums = offset(b, row_sums, tiles, q.groups * TILE_ROW);
    let right = address(b, g.right.buffer, ELEMENT, t.batch.iter().copied(), &g.right.batch);
    let right = offset(b, right, t.first_column, units * unit_bytes / PANEL as i64);
    let column_bytes = q.groups * q.column_bytes() / PANEL as i64;
    let of_columns = b.buffer(q.columns);
    let of_columns = offset(b, of_columns, t.first_column, column_bytes);

    let zero = b.int(0);
    let row_zeros = match q.row_zeros {
        RowZeros::Each(buffer) => {
            let at = b.buffer(buffer);
            offset(b, at, tiles, TILE_ROW)
        }
        RowZeros::None | RowZeros::Same => zero,
    };
    if q.groups != 1 {
        let zeros = b.float_of(F32X4, 0.0);
        let tiles = ceil_div(b, t.rows, TILE_ROWS as i64);
        let all = b.times(tiles, Extent::Const((TILE_ROWS * CHUNK) as i64));
        tile::fill(b, sums, all, zeros);
    }
    let end = b.f.ins().iadd_imm_s(t.columns, PANEL as i64 - 1);
    let Some(panel) = b.open_loop(zero, end, PANEL as i64) else { return };
    let columns = rest(b, t.columns, panel.index, PANEL as i64);
    let half = rest(b, columns, zero, HALF);
    let strips = ceil_div(b, half, 4);
    let right = offset(b, right, panel.index, units * unit_bytes / PANEL as i64);
    let of_columns = offset(b, of_columns, panel.index, column_bytes);
    let sums = offset(b, sums, panel.index, ELEMENT);
    let (all_units, all_groups) = (b.int(units), b.int(q.groups));
    if let Some(group) = b.open_loop(zero, all_groups, 1) {
        let first = b.times(group.index, Extent::Const(per_group));
        let count = rest(b, all_units, first, per_group);
        let left = offset(b, left, first, TILE_ROW);
        let right = offset(b, right, first, unit_bytes);
        let columns = offset(b, of_columns, group.index, q.column_bytes());
        let row_sums = offset(b, row_sums, group.index, TILE_ROW);
        let end = b.f.ins().iadd_imm_s(t.rows, TILE_ROWS as i64 - 1);
        if let Some(tile) = b.open_loop(zero, end, TILE_ROWS as i64) {
            let left = offset(b, left, tile.index, units * ELEMENT);
            let row_sums = offset(b, row_sums, tile.index, q.groups * ELEMENT);
            let row_zeros = offset(b, row_zeros, tile.index, ELEMENT);
            let sums = offset(b, sums, tile.index, CHUNK as i64 * ELEMENT);
            let rows = rest(b, t.rows, tile.index, TILE_ROWS as i64);
            row_tile(b, g.m, q, rows, &Group { left, right, count, columns, row_sums, row_zeros, strips, sums });
            b.close_loop(tile);
        }
        b.close_loop(group);
    }
    b.close_loop(panel);
}

/// A group of `rows` rows, of `m` in all: several at a time, a last one alone.
fn row_tile(b: &mut KernelBuilder, m: Extent, q: &Quantized, rows: Value, tile: &Group) {
    // The sums of two rows by a strip are eight vectors, beside four of weights.
    let height = if b.cpu.vector_registers() >= 32 { 4 } else { 2 };
    let zero = b.int(0);
    let end = b.f.ins().iadd_imm_s(rows, height - 1);
    let Some(row) = b.open_loop(zero, end, height) else { return };
    let group = Group {
        left: offset(b, tile.left, row.index, ELEMENT),
        row_sums: offset(b, tile.row_sums, row.index, ELEMENT),
        row_zeros: offset(b, tile.row_zeros, row.index, ELEMENT),
        sums: offset(b, tile.sums, row.index, CHUNK as i64 * ELEMENT),
        ..*tile
    };
    match m {
        Extent::Const(1) => strips(b, q, 1, &group),
        Extent::Const(m) if m % height != 1 => strips(b, q, height as usize, &group),
        _ => {
            let [one, several, done] = [b.f.create_block(), b.f.create_block(), b.f.create_block()];
            let last = b.f.ins().iadd_imm_s(rows, -1);
            let alone = b.f.ins().icmp(IntCC::Equal, row.index, last);
            b.f.ins().brif(alone, one, &[], several, &[]);
            for (block, height) in [(one, 1), (several, height as usize)] {
                b.f.seal_block(block);
                b.f.switch_to_block(block);
                strips(b, q, height, &group);
                b.f.ins().jump(done, &[]);
            }
            b.f.seal_block(done);
            b.f.switch_to_block(done);
        }
    }
    b.close_loop(row);
}

/// A group of `height` rows by the strips of a panel, as a helper function.
fn strips(b: &mut KernelBuilder, q: &Quantized, height: usize, g: &Group) {
    let q = q.clone();
    let args = [g.left, g.right, g.count, g.columns, g.row_sums, g.row_zeros, g.strips, g.sums];
    b.call(format!("quantized {height}"), &args, |b, p| {
        let &[left, right, count, columns, row_sums, row_zeros, strips, sums] = p else { unreachable!("eight parameters") };
        let zero = b.int(0);
        let strip = b.open_loop(zero, strips, 1).expect("a number that is not known");
        // Four columns of one half: as many bytes of what columns have, of sums, and of units.
        let right = offset(b, right, strip.index, 4 * ELEMENT);
        let columns = offset(b, columns, strip.index, 4 * ELEMENT);
        let sums = offset(b, sums, strip.index, 4 * ELEMENT);
        let pairs = dots(b, q.bits, height, left, right, count);
        finish(b, &q, &pairs, columns, [row_sums, row_zeros], sums);
        b.close_loop(strip);
    });
}

/// The i32 sums of `height` rows by a strip over `count` units, [`PAIRS`] vectors to a row.
fn dots(b: &mut KernelBuilder, bits: u8, height: usize, left: Value, right: Value, count: Value) -> Vec<Value> {
    let unit_bytes = PANEL_ROW * i64::from(bits) / 8;
    let rows = b.f.declare_var(I64);
    b.f.def_var(rows, left);
    let acc: Vec<Variable> = (0..height * PAIRS).map(|_| b.f.declare_var(I32X4)).collect();
    let zeros = b.int_of(I32X4, 0);
    for &a in &acc {
        b.f.def_var(a, zeros);
    }
    let end = offset(b, right, count, unit_bytes);
    let mut at = right;
    for several in [2, 1] {
        let unit = b.open_loop(at, end, several * unit_bytes).expect("a number that is not known");
        let left = b.f.use_var(rows);
        for n in 0..several {
            let w = weights(b, bits, unit.index, n * unit_bytes);
            for first in (0..height).step_by(2) {
                let x = b.f.ins().sload8x8(MEM, left, (n * TILE_ROW + first as i64 * ELEMENT) as i32);
                let x = b.bits(I32X4, x);
                for row in first..height.min(first + 2) {
                    let low = 2 * (row - first) as u8;
                    let x = b.shuffle(x, x, [low, low + 1, low, low + 1]);
                    let x = b.bits(I16X8, x);
                    for (&a, &w) in acc[row * PAIRS..].iter().zip(&w) {
                        let products = add_pairs(b, x, w);
                        let sum = b.f.use_var(a);
                        let sum = b.f.ins().iadd(sum, products);
                        b.f.def_var(a, sum);
                    }
                }
            }
        }
        let left = b.f.ins().iadd_imm_s(left, several * TILE_ROW);
        b.f.def_var(rows, left);
        at = b.close_loop(unit);
    }
    acc.into_iter().map(|a| b.f.use_var(a)).collect()
}

/// The codes of a unit of a strip in i16, two columns to a vector.
fn weights(b: &mut KernelBuilder, bits: u8, at: Value, place: i64) -> [Value; PAIRS] {
    let load = |b: &mut KernelBuilder, place: i64| b.f.ins().load(I8X16, MEM, at, place as i32);
    let [low, high] = match bits {
        4 => {
            let both = load(b, place);
            let nibble = b.int_of(I8X16, 0x0f);
            let wide = b.bits(I16X8, both);
            let high = b.shr(wide, 4);
            let high = b.bits(I8X16, high);
            [b.f.ins().band(both, nibble), b.f.ins().band(high, nibble)]
        }
        _ => [load(b, place), load(b, place + HALF * 4)],
    };
    [b.f.ins().uwiden_low(low), b.f.ins().uwiden_high(low), b.f.ins().uwiden_low(high), b.f.ins().uwiden_high(high)]
}

/// `x[2 i] y[2 i] + x[2 i + 1] y[2 i + 1]` of vectors of i16, in i32. Cranelift has one instruction for it on x86-64.
fn add_pairs(b: &mut KernelBuilder, x: Value, y: Value) -> Value {
    let (x_low, y_low) = (b.f.ins().swiden_low(x), b.f.ins().swiden_low(y));
    let (x_high, y_high) = (b.f.ins().swiden_high(x), b.f.ins().swiden_high(y));
    let (low, high) = (b.f.ins().imul(x_low, y_low), b.f.ins().imul(x_high, y_high));
    b.f.ins().iadd_pairwise(low, high)
}

/// Adds what zero points change to the sums of a strip, converts them and multiplies them by their scales,
/// on top of the groups before if there are several. `rows` are the addresses of sums and zero points of the rows.
fn finish(b: &mut KernelBuilder, q: &Quantized, pairs: &[Value], columns: Value, rows: [Value; 2], sums: Value) {
    let half = (HALF * ELEMENT) as i32;
    let of_columns =
        |b: &mut KernelBuilder, ty: Type, word: i64, h: i32| b.f.ins().load(ty, MEM, columns, (word * PANEL_ROW) as i32 + h * half);
    let scales = [0, 1].map(|h| of_columns(b, F32X4, 0, h));
    for (r, pairs) in pairs.chunks(PAIRS).enumerate() {
        let of_row = |b: &mut KernelBuilder, at: Value| {
            let x = b.f.ins().load(I32, MEM, at, r as i32 * ELEMENT as i32);
            b.splat(x)
        };
        let row_sum = of_row(b, rows[0]);
        let row_zero = matches!(q.row_zeros, RowZeros::Each(_)).then(|| of_row(b, rows[1]));
        for (h, pairs) in pairs.chunks(2).enumerate() {
            let mut begin = row_sum;
            if q.zeros {
                let zero = of_columns(b, I32X4, 1, h as i32);
                begin = b.f.ins().imul(begin, zero);
            }
            if q.row_zeros != RowZeros::None {
                let mut change = of_columns(b, I32X4, 1 + i64::from(q.zeros), h as i32);
                if let Some(row_zero) = row_zero {
                    change = b.f.ins().imul(change, row_zero);
                }
                begin = b.f.ins().iadd(begin, change);
            }
            let dot = b.f.ins().iadd_pairwise(pairs[0], pairs[1]);
            let dot = b.f.ins().iadd(dot, begin);
            let dot = b.f.ins().fcvt_from_sint(F32X4, dot);
            let place = (r * CHUNK * ELEMENT as usize) as i32 + h as i32 * half;
            let before = if q.groups != 1 { b.f.ins().load(F32X4, MEM, sums, place) } else { b.float_of(F32X4, 0.0) };
            let sum = b.fma(dot, scales[h], before);
            b.f.ins().store(MEM, sum, sums, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::Cpu;
    use super::super::testing::{Compiled, check_foreign, check_residual, host_cpus, row_groups};
    use crate::emit::layout;
    use crate::kernel::gemm::{CHUNK, Format, Gemm, Operand, Quantized, RowZeros, TILE_ROWS, pack_columns, pack_weights};
    use crate::kernel::nest::{Access, Effect, Expr, ExprId, Reduction};
    use crate::kernel::pack::{LINE, MATRIX_ROWS, SLACK, pack, pitch};
    use crate::kernel::{Body, BufferParam, Extent, Kernel, Use};
    use cranelift_entity::{EntityRef, PrimaryMap};
    use proptest::prelude::*;
    use tfc_ir::scalar::Prim;
    use tfc_ir::types::Elem;

    /// Where the values of an operand are from.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Values {
        Mixed,
        Smallest,
        Largest,
    }

    impl Values {
        /// Value `i` of a type of that many bits.
        fn at(self, bits: u8, i: usize) -> i32 {
            let end = 1 << (bits - 1);
            match self {
                Values::Mixed => ((i.wrapping_mul(2_654_435_761) >> 7) % (2 * end) as usize) as i32 - end,
                Values::Smallest => -end,
                Values::Largest => end - 1,
            }
        }
    }

    /// Zero points of rows.
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Zeros {
        None,
        Same(i32),
        Each(Values),
    }

    /// `out[b, m, n] = (a[b, m] - row_zero[b, m]) (w[n] - zero[n]) * row_scale[b, m]`.
    #[derive(Clone, Copy, Debug)]
    struct Problem {
        batch: usize,
        m: usize,
        n: usize,
        k: usize,
        bits: u8,
        /// Values of k in a group; 0 is all of k.
        group: usize,
        left: Values,
        weights: Values,
        /// The zero points of weights; without any they are the middle of the codes.
        zeros: Option<Values>,
        /// Those of rows.
        row_zeros: Zeros,
        /// Whether all matrices of the batch have the same left operand.
        shared: bool,
        /// Whether sizes and strides are parameters.
        symbolic: bool,
    }

    impl Problem {
        fn group(&self) -> usize {
            if self.group == 0 { self.k } else { self.group }
        }

        fn groups(&self) -> usize {
            self.k.div_ceil(self.group())
        }

        fn kernel(&self) -> (Kernel, Vec<i64>) {
            let Problem { batch, m, n, k, bits, .. } = *self;
            let mut params = vec![];
            let mut extent = |x: usize| {
                if !self.symbolic || x < 2 {
                    return Extent::Const(x as i64);
                }
                params.push(x as i64);
                Extent::Param(params.len() as u32 - 1)
            };
            let mut access = |buffer: u32, strides: [usize; 3]| Access {
                buffer,
                offset: Extent::Const(0),
                strides: strides.map(&mut extent).to_vec(),
                dynamic: vec![],
            };
            let row_scale = access(4, [m, 1, 0]);
            let out = access(6, [m * n, n, 1]);
            let mut exprs: PrimaryMap<ExprId, (Expr, Elem)> = PrimaryMap::new();
            let dot = exprs.push((Expr::Reduced(Reduction::new(0)), Elem::F32));
            let row_scale = exprs.push((Expr::Load(row_scale), Elem::F32));
            let y = exprs.push((Expr::Prim(Prim::Mul, vec![dot, row_scale]), Elem::F32));
            let matrix = m.div_ceil(TILE_ROWS) * TILE_ROWS * k.div_ceil(4);
            let format = Format::Quantized(Quantized {
                bits,
                group: self.group() as i64,
                groups: self.groups() as i64,
                columns: 2,
                sums: 3,
                zeros: self.zeros.is_some(),
                row_zeros: match self.row_zeros {
                    Zeros::None => RowZeros::None,
                    Zeros::Same(_) => RowZeros::Same,
                    Zeros::Each(_) => RowZeros::Each(5),
                },
            });
            let body = Gemm {
                batch: vec![extent(batch)],
                m: extent(m),
                row_groups: extent(row_groups(m, &format)),
                n: extent(n),
                k: Extent::Const(k as i64),
                format,
                left: Operand { buffer: 0, batch: vec![extent(if self.shared { 0 } else { matrix })] },
                left_pitch: None,
                right: Operand { buffer: 1, batch: vec![Extent::Const(0)] },
                exprs,
                effects: vec![Effect::Store(out, y)],
            };
            let elems = [Elem::I32, Elem::U8, Elem::F32, Elem::I32, Elem::F32, Elem::I32, Elem::F32];
            let buffers = elems.into_iter().enumerate();
            let buffers = buffers.map(|(i, elem)| BufferParam { elem, usage: if i == 6 { Use::Write } else { Use::Read } }).collect();
            (Kernel { buffers, ints: params.len() as u32, body: Body::Gemm(body) }, params)
        }

        fn a(&self, b: usize, i: usize, x: usize) -> i32 {
            let b = if self.shared { 0 } else { b };
            self.left.at(8, (b * self.m + i) * self.k + x)
        }

        fn w(&self, x: usize, j: usize) -> i32 {
            self.weights.at(self.bits, x * self.n + j + 12_345)
        }

        /// A zero point in the range of signed weights.
        fn zero(&self, g: usize, j: usize) -> i32 {
            self.zeros.map_or(0, |z| z.at(self.bits, g * self.n + j + 999))
        }

        fn row_zero(&self, b: usize, i: usize) -> i32 {
            match self.row_zeros {
                Zeros::None => 0,
                Zeros::Same(z) => z,
                Zeros::Each(values) => values.at(8, (if self.shared { 0 } else { b }) * self.m + i + 31),
            }
        }

        /// A word of a column.
        fn column(&self, g: usize, j: usize, word: usize) -> u32 {
            let end = self.k.min((g + 1) * self.group());
            let difference = || (g * self.group()..end).map(|x| self.w(x, j) - self.zero(g, j)).sum::<i32>();
            match (word, self.zeros) {
                (0, _) => Self::scale(g, j).to_bits(),
                (1, Some(_)) => -(self.zero(g, j) + (1 << (self.bits - 1))) as u32,
                _ => match self.row_zeros {
                    Zeros::Same(z) => -z.wrapping_mul(difference()) as u32,
                    _ => -difference() as u32,
                },
            }
        }

        fn scale(g: usize, j: usize) -> f32 {
            let s = 1e-3 * (1.0 + ((g * 7 + j * 13) % 101) as f32 / 37.0);
            if (g + j).is_multiple_of(5) { -s } else { s }
        }

        fn row_scale(row: usize) -> f32 {
            0.01 + (row % 17) as f32 / 3.0
        }

        /// The buffers of the kernel. What the packed rows hold behind the last one is not used.
        fn buffers(&self) -> [Vec<u8>; 7] {
            let Problem { batch, m, n, k, bits, .. } = *self;
            let matrices = if self.shared { 1 } else { batch };
            let unit = |b: usize, i: usize, u: usize| -> [u8; 4] {
                std::array::from_fn(|j| if 4 * u + j < k { self.a(b, i, 4 * u + j) as u8 } else { 0 })
            };
            let mut left: Vec<[u8; 4]> = (0..matrices).flat_map(|b| pack(m, k.div_ceil(4), TILE_ROWS, |i, u| unit(b, i, u))).collect();
            left.extend(vec![[0xa5; 4]; SLACK as usize / 4]);
            let factor = if self.zeros.is_some() { 1 } else { -(1 << (bits - 1)) };
            let sum = |b: usize, i: usize, g: usize| -> i32 {
                let end = k.min((g + 1) * self.group());
                (g * self.group()..end).map(|x| self.a(b, i, x)).sum::<i32>() * factor
            };
            let (mut sums, mut row_zeros) = (vec![], vec![]);
            for (b, tile) in (0..matrices).flat_map(|b| (0..m.div_ceil(TILE_ROWS)).map(move |t| (b, t))) {
                row_zeros
                    .extend((tile * TILE_ROWS..(tile + 1) * TILE_ROWS).map(|row| if row < m { self.row_zero(b, row) } else { 1 << 29 }));
                for (g, r) in (0..self.groups()).flat_map(|g| (0..TILE_ROWS).map(move |r| (g, r))) {
                    let row = tile * TILE_ROWS + r;
                    sums.push(if row < m { sum(b, row, g) } else { 1 << 30 });
                }
            }
            let words = 1 + usize::from(self.zeros.is_some()) + usize::from(self.row_zeros != Zeros::None);
            let columns = pack_columns(self.groups(), n, words, |g, j, word| self.column(g, j, word));
            let row_scales: Vec<f32> = (0..batch * m).map(Self::row_scale).collect();
            [
                left.concat(),
                pack_weights(bits, k, n, |x, j| self.w(x, j)),
                bytemuck::cast_slice(&columns).to_vec(),
                bytemuck::cast_slice(&sums).to_vec(),
                bytemuck::cast_slice(&row_scales).to_vec(),
                bytemuck::cast_slice(&row_zeros).to_vec(),
                bytemuck::cast_slice(&vec![f32::NAN; batch * m * n]).to_vec(),
            ]
        }

        /// The result in integers, with the multiply-adds of groups as the CPU has them.
        fn expected(&self, cpu: &Cpu) -> Vec<f32> {
            let Problem { batch, m, n, k, .. } = *self;
            let weights: Vec<i32> = (0..n).flat_map(|j| (0..k).map(move |x| self.w(x, j) - self.zero(x / self.group(), j))).collect();
            let mut out = Vec::with_capacity(batch * m * n);
            for (b, i) in (0..batch).flat_map(|b| (0..m).map(move |i| (b, i))) {
                let row: Vec<i32> = (0..k).map(|x| self.a(b, i, x) - self.row_zero(b, i)).collect();
                for j in 0..n {
                    let column = &weights[j * k..][..k];
                    let dots = row.chunks(self.group()).zip(column.chunks(self.group()));
                    let dot = dots.enumerate().fold(0f32, |t, (g, (a, w))| {
                        let dot: i32 = a.iter().zip(w).map(|(x, y)| x * y).sum();
                        let (dot, scale) = (dot as f32, Self::scale(g, j));
                        if cpu.has_fma() { dot.mul_add(scale, t) } else { dot * scale + t }
                    });
                    out.push(dot * Self::row_scale(b * m + i));
                }
            }
            out
        }

        /// The kernel of a single matrix with the left operand in rows, if there is one.
        fn kernel_of_rows(&self) -> Option<Kernel> {
            let mut kernel = self.kernel().0;
            if let Body::Gemm(g) = &mut kernel.body {
                g.batch.clear();
                g.left.batch.clear();
                let of_expr = g.exprs.values_mut().filter_map(|(e, _)| if let Expr::Load(a) = e { Some(a) } else { None });
                let of_effect = g.effects.iter_mut().filter_map(|e| if let Effect::Store(a, _) = e { Some(a) } else { None });
                of_expr.chain(of_effect).for_each(|a| a.strides = a.strides.split_off(1));
            }
            layout::in_rows(&kernel).filter(|_| self.batch == 1)
        }

        /// What is different in the buffers of such a kernel: rows, which are followed by what is not used, and their sums.
        fn buffers_of_rows(&self, tiles: &[Vec<u8>; 7]) -> [Vec<u8>; 7] {
            let (m, k, groups) = (self.m, self.k, self.groups());
            let mut rows = vec![0xa5; (m + MATRIX_ROWS as usize - 1) * pitch(k as i64) as usize];
            for (i, row) in rows.chunks_exact_mut(pitch(k as i64) as usize).take(m).enumerate() {
                row[..k.next_multiple_of(LINE as usize)].fill(0);
                (0..k).for_each(|x| row[x] = self.a(0, i, x) as u8);
            }
            let of_tiles: Vec<i32> = bytemuck::pod_collect_to_vec(&tiles[3]);
            let sum = |at: usize| of_tiles[(at / groups / TILE_ROWS * groups + at % groups) * TILE_ROWS + at / groups % TILE_ROWS];
            let sums: Vec<i32> = (0..of_tiles.len()).map(sum).collect();
            let mut buffers = tiles.clone();
            buffers[0] = rows;
            buffers[3] = bytemuck::cast_slice(&sums).to_vec();
            buffers
        }

        fn check(&self) {
            let (kernel, ints) = self.kernel();
            let operands = self.buffers();
            let of_rows = self.kernel_of_rows();
            for cpu in host_cpus() {
                self.check_kernel(&kernel, &ints, &cpu, &operands);
                if let Some(of_rows) = of_rows.as_ref().filter(|_| cpu.matrix_tiles()) {
                    self.check_kernel(of_rows, &ints, &cpu, &self.buffers_of_rows(&operands));
                }
            }
        }

        fn tasks(&self, kernel: &Kernel) -> i64 {
            let Body::Gemm(g) = &kernel.body else { unreachable!("it is a product") };
            (self.batch * row_groups(self.m, &g.format) * self.n.div_ceil(CHUNK)) as i64
        }

        fn check_kernel(&self, kernel: &Kernel, ints: &[i64], cpu: &Cpu, operands: &[Vec<u8>]) {
            let (n, tasks) = (self.n, self.tasks(kernel));
            let run = Compiled::new(kernel, cpu);
            let expected = self.expected(cpu);
            for pieces in [1, 3] {
                let buffers = run.run_pieces(operands.to_vec(), ints, tasks, pieces);
                let out: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[6]);
                let wrong = out.iter().zip(&expected).position(|(x, y)| x.to_bits() != y.to_bits());
                if let Some(at) = wrong {
                    let (row, column) = (at / n, at % n);
                    let (x, y, rows) = (out[at], expected[at], kernel.has_rows());
                    panic!("{}, rows {rows}, {pieces} pieces: {self:?}, row {row}, column {column}: {x} for {y}", cpu.name);
                }
            }
        }
    }

    const SMALL: Problem = Problem {
        batch: 1,
        m: 5,
        n: 9,
        k: 24,
        bits: 4,
        group: 0,
        left: Values::Mixed,
        weights: Values::Mixed,
        zeros: None,
        row_zeros: Zeros::None,
        shared: false,
        symbolic: false,
    };

    #[test]
    fn every_number_of_rows() {
        for bits in [4, 8] {
            for m in (1..=17).chain([29, 50]) {
                Problem { m, bits, n: 37, k: 67, ..SMALL }.check();
                Problem { m, bits, n: 33, k: 96, group: 32, symbolic: true, ..SMALL }.check();
            }
        }
    }

    #[test]
    fn sizes_at_the_edges() {
        for bits in [4, 8] {
            for symbolic in [false, true] {
                let small = Problem { bits, symbolic, ..SMALL };
                Problem { m: 0, ..small }.check();
                Problem { n: 0, ..small }.check();
                Problem { batch: 0, ..small }.check();
                for k in 1..=9 {
                    Problem { k, ..small }.check();
                }
                for n in [1, 4, 5, 8, 16, 17, 31, 32, 64, CHUNK, 2 * CHUNK + 5] {
                    Problem { n, ..small }.check();
                }
            }
        }
    }

    #[test]
    fn residuals_are_read_before_they_are_written_over() {
        for (m, bits) in [(1, 4), (3, 8), (5, 4), (16, 8), (33, 4), (40, 8), (70, 4), (100, 4)] {
            for (n, k, group, symbolic) in [(37, 67, 0, false), (192, 128, 0, true), (100, 192, 64, true)] {
                let problem = Problem { m, n, k, bits, group, symbolic, ..SMALL };
                let ((kernel, ints), operands) = (problem.kernel(), problem.buffers());
                for cpu in host_cpus() {
                    check_residual(&kernel, &cpu, operands.to_vec(), &ints, problem.tasks(&kernel));
                    if let Some(of_rows) = problem.kernel_of_rows().filter(|_| cpu.matrix_tiles()) {
                        let operands = problem.buffers_of_rows(&operands).to_vec();
                        check_residual(&of_rows, &cpu, operands, &ints, problem.tasks(&of_rows));
                    }
                }
            }
        }
    }

    #[test]
    fn several_steps_strips_and_passes() {
        for bits in [4, 8] {
            for k in [63, 64, 65, 128, 192, 200, 256, 320, 769] {
                Problem { bits, k, m: 33, n: 70, ..SMALL }.check();
            }
            for (m, symbolic) in [(16, false), (32, true), (48, false), (97, true), (200, false), (300, true)] {
                Problem { bits, m, symbolic, n: 200, k: 130, ..SMALL }.check();
                Problem { bits, m, symbolic, n: 100, k: 300, group: 64, ..SMALL }.check();
            }
            // Whole panels of whole steps, and all that sums may begin with.
            for (zeros, row_zeros) in WAYS.into_iter().chain([(None, Zeros::None)]) {
                Problem { bits, m: 40, n: 96, k: 128, zeros, row_zeros, ..SMALL }.check();
            }
            for k in [64, 128, 192, 1024] {
                for (m, symbolic) in [(17, true), (31, false), (32, true), (33, false), (70, true)] {
                    Problem { bits, m, k, symbolic: symbolic && k != 1024, n: 192, ..SMALL }.check();
                }
            }
            // More chunks of columns than are multiplied at once.
            Problem { bits, m: 100, n: 400, k: 9000, ..SMALL }.check();
        }
    }

    #[test]
    fn groups_of_every_size() {
        for bits in [4, 8] {
            for (group, k) in [(4, 30), (8, 9), (32, 32), (32, 100), (32, 129), (64, 192), (64, 130), (128, 129), (128, 383), (128, 100)] {
                Problem { bits, group, k, m: 13, ..SMALL }.check();
                Problem { bits, group, k, m: 1, n: 34, ..SMALL }.check();
            }
        }
    }

    #[test]
    fn groups_of_products_that_are_taken_in_blocks() {
        for (zeros, row_zeros) in WAYS {
            for (group, k) in [(128, 2600), (32, 2304), (1024, 5000), (8192, 9000)] {
                Problem { bits: 4, group, k, m: 41, n: 40, zeros, row_zeros, ..SMALL }.check();
            }
            Problem { bits: 8, group: 128, k: 1300, m: 31, n: 40, zeros, row_zeros, ..SMALL }.check();
        }
    }

    #[test]
    fn sums_of_extreme_values_are_exact() {
        use Values::{Largest, Mixed, Smallest};
        for bits in [4, 8] {
            for left in [Smallest, Largest, Mixed] {
                for weights in [Smallest, Largest, Mixed] {
                    let most = Problem { bits, left, weights, k: 65_536, m: 2, n: 2, ..SMALL };
                    Problem { m: 13, n: 17, k: 131, ..most }.check();
                    Problem { m: 7, k: 1024, group: 128, ..most }.check();
                    most.check();
                }
            }
        }
    }

    /// Beyond what whole bytes of nibbles may be summed up over.
    #[test]
    fn long_sums_of_nibbles_are_exact() {
        use Values::{Largest, Mixed, Smallest};
        for (left, weights) in [(Smallest, Largest), (Largest, Largest), (Smallest, Smallest), (Mixed, Mixed)] {
            for (m, n) in [(1, 2), (3, 2), (1, 33)] {
                Problem { left, weights, m, n, k: 140_003, ..SMALL }.check();
            }
        }
    }

    /// All ways to have zero points.
    const WAYS: [(Option<Values>, Zeros); 6] = {
        let zeros = Some(Values::Mixed);
        let each = Zeros::Each(Values::Mixed);
        [
            (zeros, Zeros::None),
            (None, each),
            (zeros, each),
            (None, Zeros::Same(-5)),
            (zeros, Zeros::Same(113)),
            (Some(Values::Largest), Zeros::Each(Values::Smallest)),
        ]
    };

    #[test]
    fn zero_points_are_taken_out() {
        for bits in [4, 8] {
            for (zeros, row_zeros) in WAYS {
                let of = Problem { bits, zeros, row_zeros, ..SMALL };
                for m in (1..=13).chain([29, 50]) {
                    Problem { m, n: 37, k: 67, ..of }.check();
                }
                for (group, k) in [(4, 30), (32, 100), (128, 383)] {
                    Problem { m: 13, n: 70, k, group, ..of }.check();
                    Problem { batch: 3, m: 1, k, group, shared: true, symbolic: true, ..of }.check();
                    Problem { batch: 3, m: 14, k, group, symbolic: true, ..of }.check();
                }
            }
        }
    }

    #[test]
    fn a_single_row_by_several_panels() {
        for bits in [4, 8] {
            for (zeros, row_zeros) in WAYS {
                for batch in [1, 2] {
                    let of = Problem { batch, m: 1, bits, zeros, row_zeros, ..SMALL };
                    for (n, group, k) in [(128, 0, 67), (128, 32, 100), (70, 64, 130), (100, 12, 61), (256, 128, 383), (257, 0, 129)] {
                        Problem { n, group, k, ..of }.check();
                    }
                }
            }
        }
    }

    #[test]
    fn sums_with_extreme_zero_points_are_exact() {
        use Values::{Largest, Smallest};
        for bits in [4, 8] {
            for (left, row) in [(Smallest, Largest), (Largest, Smallest), (Smallest, Smallest)] {
                for (weights, zeros) in [(Smallest, Largest), (Largest, Smallest)] {
                    for row_zeros in [Zeros::None, Zeros::Each(row), Zeros::Same(row.at(8, 0))] {
                        let most = match (bits, row_zeros) {
                            (4, _) => 65_536,
                            (_, Zeros::None) => 65_536,
                            _ => 33_025,
                        };
                        let zeros = Some(zeros);
                        let problem = Problem { bits, left, weights, zeros, row_zeros, k: most, m: 2, n: 2, ..SMALL };
                        problem.check();
                        Problem { m: 13, k: 1024, group: 128, ..problem }.check();
                    }
                }
            }
        }
    }

    #[test]
    fn matrices_of_a_batch_may_be_one() {
        for symbolic in [false, true] {
            Problem { batch: 3, m: 13, shared: true, group: 8, symbolic, ..SMALL }.check();
            Problem { batch: 3, m: 13, group: 8, symbolic, ..SMALL }.check();
        }
    }

    #[test]
    fn other_architectures() {
        for (bits, group, symbolic) in [(4, 0, false), (4, 8, true), (8, 0, true), (8, 8, false)] {
            for (zeros, row_zeros) in [(None, Zeros::None), WAYS[2]] {
                check_foreign(&Problem { bits, group, zeros, row_zeros, symbolic, ..SMALL }.kernel().0);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn is_the_product_in_integers(
            [batch, m, n, k] in [1usize..3, 1..60, 1..150, 1..200],
            (units, bits) in (0usize..40, prop_oneof![Just(4u8), Just(8)]),
            [shared, symbolic]: [bool; 2],
            way in 0..2 * WAYS.len(),
        ) {
            let (zeros, row_zeros) = WAYS.get(way).copied().unwrap_or((None, Zeros::None));
            let group = if 4 * units < k { 4 * units } else { 0 };
            Problem { batch, m, n, k, bits, group, zeros, row_zeros, shared, symbolic, ..SMALL }.check();
        }
    }
}
