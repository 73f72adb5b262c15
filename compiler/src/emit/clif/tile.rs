//! The register tiles that matrix products and attention share: packing of left operands, and the
//! product of packed rows with packed panels.

use super::{KernelBuilder, LANES, MEM};
use crate::kernel::Extent;
use crate::kernel::gemm::{PANEL, TILE_ROWS};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F32X4, I64};
use cranelift_codegen::ir::{BlockArg, InstBuilder, MemFlagsData, StackSlot, StackSlotData, StackSlotKind, Type, Value};

/// Bytes of an element.
const F32_BYTES: i64 = 4;

/// Bytes of the `TILE_ROWS` packed elements of one `k`.
const PACKED: i64 = TILE_ROWS as i64 * F32_BYTES;

/// Bytes of the elements of one `k` in a panel.
const PANEL_ROW: i64 = PANEL as i64 * F32_BYTES;

/// Flags of loads of factors. Both operands are complete before the loop that reads them begins, and
/// that loop writes nothing; Cranelift may then place each load at its only use.
const FACTOR: MemFlagsData = MEM.with_readonly().with_can_move();

/// Elements of a row that are packed and multiplied at once: with [`TILE_ROWS`] rows and a panel they
/// fit a first-level cache of 32 kB.
pub const DEPTH: i64 = 256;

/// Heights of register tiles. A tile of fewer rows computes the smallest height that holds them.
#[derive(Clone, Debug)]
pub struct Heights(Vec<usize>);

impl Heights {
    /// All heights, for any number of rows.
    pub const ALL: [usize; 6] = [1, 2, 4, 6, 8, TILE_ROWS];

    /// The heights that tiles of `rows` rows in all need.
    pub fn of(rows: Extent) -> Heights {
        let Extent::Const(m) = rows else { return Heights(Heights::ALL.to_vec()) };
        let full = (m >= TILE_ROWS as i64).then_some(TILE_ROWS);
        let rest = Heights::ALL.into_iter().find(|&h| (1..=h as i64).contains(&(m % TILE_ROWS as i64)));
        let mut heights: Vec<usize> = rest.into_iter().chain(full).collect();
        heights.dedup();
        Heights(heights)
    }

    /// A choice of heights, ascending, the last one [`TILE_ROWS`].
    pub fn some(heights: &[usize]) -> Heights {
        debug_assert_eq!(heights.last(), Some(&TILE_ROWS));
        Heights(heights.to_vec())
    }
}

/// Sums of one element, for different `k`, that a tile of `height` rows keeps so that a multiply-add
/// need not wait for the one before.
fn sums(height: usize) -> usize {
    match height {
        1 => 8,
        2 => 4,
        3..=6 => 2,
        _ => 1,
    }
}

/// The address of an area of the stack of `floats` elements, aligned to 16 bytes, not initialised.
pub fn scratch(b: &mut KernelBuilder, floats: i64) -> Value {
    let bytes = u32::try_from(floats * F32_BYTES).expect("scratch areas are small");
    let slot = b.f.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4));
    b.f.ins().stack_addr(I64, slot, 0)
}

/// Stores integers on the stack, to be loaded by [`kept`] behind loops that need the registers: where
/// more values live than there are registers, Cranelift moves them about within the innermost loops.
pub fn keep(b: &mut KernelBuilder, values: &[Value]) -> StackSlot {
    let bytes = 8 * values.len() as u32;
    let slot = b.f.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 3));
    for (n, &x) in values.iter().enumerate() {
        b.f.ins().stack_store(I64, x, slot, 8 * n as i32);
    }
    slot
}

/// Loads the integers that [`keep`] stored.
pub fn kept(b: &mut KernelBuilder, slot: StackSlot, values: usize) -> Vec<Value> {
    (0..values).map(|n| b.f.ins().stack_load(I64, I64, slot, 8 * n as i32)).collect()
}

/// Fills `floats` elements, a multiple of four, with a vector.
pub fn fill(b: &mut KernelBuilder, at: Value, floats: Value, vector: Value) {
    let zero = b.int(0);
    let Some(l) = b.open_loop(zero, floats, LANES as i64) else { return };
    let offset = b.times(l.index, Extent::Const(F32_BYTES));
    let p = b.f.ins().iadd(at, offset);
    b.f.ins().store(MEM, vector, p, 0);
    b.close_loop(l);
}

/// Rows to pack.
pub struct Rows {
    /// Address of the first element.
    pub at: Value,
    /// Number of rows, at least 1.
    pub rows: Value,
    /// Number of elements of a row, of four bytes each.
    pub k: Value,
    /// Distance of rows, in bytes.
    pub row_bytes: Value,
    /// Whether the rows of one k are neighbours in memory.
    pub together: bool,
    /// Distance of the elements of a row, in elements.
    pub k_stride: Extent,
}

/// Packs a tile of `height` rows at `to`, of which `from.rows` exist: element `(r, k)` goes to
/// `k * height + r`. Rows are packed by four; what of them does not exist repeats the last row.
pub fn pack(b: &mut KernelBuilder, from: &Rows, height: usize, to: Value) {
    let packed = height as i64 * F32_BYTES;
    let zero = b.int(0);
    let group_end = b.f.ins().iadd_imm_s(from.rows, 3);
    let last = b.f.ins().iadd_imm_s(from.rows, -1);
    let mut begin = zero;
    if from.together
        && let Some(groups) = b.open_loop(zero, from.rows, LANES as i64)
    {
        let group = b.times(groups.index, Extent::Const(F32_BYTES));
        let (at, to) = (b.f.ins().iadd(from.at, group), b.f.ins().iadd(to, group));
        if let Some(l) = b.open_loop(zero, from.k, 1) {
            let offset = b.times(l.index, from.k_stride);
            let offset = b.times(offset, Extent::Const(F32_BYTES));
            let p = b.f.ins().iadd(at, offset);
            let x = b.f.ins().load(F32X4, MEM, p, 0);
            let offset = b.times(l.index, Extent::Const(packed));
            let p = b.f.ins().iadd(to, offset);
            b.f.ins().store(MEM, x, p, 0);
            b.close_loop(l);
        }
        begin = b.close_loop(groups);
    }
    let Some(groups) = b.open_loop(begin, group_end, 4) else { return };
    let to_group = b.times(groups.index, Extent::Const(F32_BYTES));
    let to = b.f.ins().iadd(to, to_group);
    let rows: Vec<Value> = (0..LANES as i64)
        .map(|r| {
            let row = b.f.ins().iadd_imm_s(groups.index, r);
            let row = b.f.ins().smin(row, last);
            let offset = b.f.ins().imul(row, from.row_bytes);
            b.f.ins().iadd(from.at, offset)
        })
        .collect();
    let mut done = zero;
    if from.k_stride == Extent::Const(1)
        && let Some(l) = b.open_loop(zero, from.k, LANES as i64)
    {
        let offset = b.times(l.index, Extent::Const(F32_BYTES));
        let x: Vec<Value> = rows
            .iter()
            .map(|&row| {
                let p = b.f.ins().iadd(row, offset);
                b.f.ins().load(F32X4, MEM, p, 0)
            })
            .collect();
        let offset = b.times(l.index, Extent::Const(packed));
        let p = b.f.ins().iadd(to, offset);
        for (k, v) in transpose(b, [x[0], x[1], x[2], x[3]]).into_iter().enumerate() {
            b.f.ins().store(MEM, v, p, (k as i64 * packed) as i32);
        }
        done = b.close_loop(l);
    }
    let k_stride = b.extent(from.k_stride);
    let k_stride = b.times(k_stride, Extent::Const(F32_BYTES));
    if let Some(l) = b.open_loop(done, from.k, 1) {
        let offset = b.f.ins().imul(l.index, k_stride);
        let to_offset = b.times(l.index, Extent::Const(packed));
        let to = b.f.ins().iadd(to, to_offset);
        for (r, &row) in rows.iter().enumerate() {
            let p = b.f.ins().iadd(row, offset);
            let x = b.f.ins().load(F32, MEM, p, 0);
            b.f.ins().store(MEM, x, to, (r as i64 * F32_BYTES) as i32);
        }
        b.close_loop(l);
    }
    b.close_loop(groups);
}

/// Transposes four vectors.
fn transpose(b: &mut KernelBuilder, [x0, x1, x2, x3]: [Value; 4]) -> [Value; 4] {
    let (low, high) = ([0, 4, 1, 5], [2, 6, 3, 7]);
    let (a, c) = (b.shuffle(x0, x1, low), b.shuffle(x2, x3, low));
    let (d, e) = (b.shuffle(x0, x1, high), b.shuffle(x2, x3, high));
    let (first, second) = ([0, 1, 4, 5], [2, 3, 6, 7]);
    [b.shuffle(a, c, first), b.shuffle(a, c, second), b.shuffle(d, e, first), b.shuffle(d, e, second)]
}

/// A product of packed rows and strips of four columns, added to a block of sums.
pub struct Strips<'a> {
    /// Address of the packed rows, see [`pack`].
    pub left: Value,
    /// Address of the first element of the first panel.
    pub right: Value,
    /// Distance of panels in bytes.
    pub panel_bytes: Value,
    /// Number of rows, at least 1.
    pub rows: Value,
    /// Length of the dot products.
    pub k: Value,
    /// Number of columns; whole strips are computed.
    pub columns: Value,
    /// Address of the sums.
    pub sums: Value,
    /// Distance of their rows, in elements.
    pub pitch: i64,
    /// Whether to add to the sums, or to begin with zeros.
    pub accumulate: bool,
    /// Heights of the register tiles.
    pub heights: &'a Heights,
}

/// Emits a product, as a helper function. All rows of the height that is chosen are written.
pub fn multiply(b: &mut KernelBuilder, s: &Strips) {
    let shape = Shape { pitch: s.pitch, accumulate: s.accumulate };
    let heights = &s.heights.0;
    let name = format!("{shape:?} {heights:?}");
    b.call(name, &[s.left, s.right, s.panel_bytes, s.rows, s.k, s.columns, s.sums], |b, p| {
        let &[left, right, panel_bytes, rows, k, columns, sums] = p else { unreachable!("seven parameters") };
        let strips = Operands { left, right, panel_bytes, k, columns, sums };
        for (n, &height) in heights.iter().enumerate() {
            if n + 1 == heights.len() {
                emit_strips(b, &strips, &shape, height);
                continue;
            }
            let (this, next) = (b.f.create_block(), b.f.create_block());
            let fits = b.f.ins().icmp_imm_s(IntCC::SignedLessThanOrEqual, rows, height as i64);
            b.f.ins().brif(fits, this, &[], next, &[]);
            b.f.switch_to_block(this);
            emit_strips(b, &strips, &shape, height);
            b.f.ins().return_(&[]);
            b.f.switch_to_block(next);
        }
    });
}

/// Reads a byte of every cache line of a block of panels, as a helper function: `k` rows of the panels of
/// `columns` columns. A product that is about to use the block several times finds it in the cache; its
/// own loads are too far apart in time to wait for memory at the same time.
pub fn touch(b: &mut KernelBuilder, right: Value, panel_bytes: Value, k: Value, columns: Value) {
    const LINE: i64 = 64;
    b.call("touch".into(), &[right, panel_bytes, k, columns], |b, p| {
        let &[right, panel_bytes, k, columns] = p else { unreachable!("four parameters") };
        let zero = b.int(0);
        let bytes = b.times(k, Extent::Const(PANEL_ROW));
        let end = b.f.ins().iadd_imm_s(columns, PANEL as i64 - 1);
        let panels = b.open_loop(zero, end, PANEL as i64).expect("a number that is not known");
        let panel = b.f.ins().ushr_imm_u(panels.index, i64::from(PANEL.ilog2()));
        let panel = b.f.ins().imul(panel, panel_bytes);
        let at = b.f.ins().iadd(right, panel);
        let lines = b.open_loop(zero, bytes, LINE).expect("a number that is not known");
        let p = b.f.ins().iadd(at, lines.index);
        // Cranelift keeps loads without a use, unless they are known to read constant memory.
        b.f.ins().uload8(I64, MEM, p, 0);
        b.close_loop(lines);
        b.close_loop(panels);
    });
}

/// What is fixed in the code of a product.
#[derive(Debug)]
struct Shape {
    pitch: i64,
    accumulate: bool,
}

/// The parameters of the code of a product, see [`Strips`].
struct Operands {
    left: Value,
    right: Value,
    panel_bytes: Value,
    k: Value,
    columns: Value,
    sums: Value,
}

fn emit_strips(b: &mut KernelBuilder, o: &Operands, shape: &Shape, height: usize) {
    let zero = b.int(0);
    let end = b.f.ins().iadd_imm_s(o.columns, LANES as i64 - 1);
    let Some(l) = b.open_loop(zero, end, LANES as i64) else { return };
    let panel = b.f.ins().ushr_imm_u(l.index, i64::from(PANEL.ilog2()));
    let panel = b.f.ins().imul(panel, o.panel_bytes);
    let right = b.f.ins().iadd(o.right, panel);
    let within = b.f.ins().band_imm_u(l.index, PANEL as i64 - 1);
    let within = b.times(within, Extent::Const(F32_BYTES));
    let right = b.f.ins().iadd(right, within);
    let column = b.times(l.index, Extent::Const(F32_BYTES));
    let sums = b.f.ins().iadd(o.sums, column);
    tile(b, o, shape, height, right, sums);
    b.close_loop(l);
}

/// One register tile of `height` rows by four columns.
fn tile(b: &mut KernelBuilder, o: &Operands, shape: &Shape, height: usize, right: Value, at: Value) {
    let sets = sums(height);
    let zero = b.float_of(F32X4, 0.0);
    let place = |r: usize| (r as i64 * shape.pitch * F32_BYTES) as i32;
    let mut acc = vec![zero; height * sets];
    if shape.accumulate {
        for (r, a) in acc.iter_mut().take(height).enumerate() {
            *a = b.f.ins().load(F32X4, MEM, at, place(r));
        }
    }
    let bytes = b.times(o.k, Extent::Const(PANEL_ROW));
    let end = b.f.ins().iadd(right, bytes);
    let whole = b.f.ins().band_imm_s(bytes, -(sets as i64) * PANEL_ROW);
    let whole_end = b.f.ins().iadd(right, whole);
    let (left, right) = dots(b, o.left, right, whole_end, height, &mut acc);
    let mut totals = acc[..height].to_vec();
    for set in acc[height..].chunks(height) {
        for (t, x) in totals.iter_mut().zip(set) {
            *t = b.f.ins().fadd(*t, *x);
        }
    }
    if sets > 1 {
        dots(b, left, right, end, height, &mut totals);
    }
    for (r, x) in totals.into_iter().enumerate() {
        b.f.ins().store(MEM, x, at, place(r));
    }
}

/// The loop of a register tile until the panel's address is `end`, a step for every set of sums at a
/// time. Returns the addresses at the end.
///
/// ```text
/// entry ──even──▶ head ──▶ first ──▶ second ──▶ head
///   └─────────────odd────────────────▲
/// ```
///
/// Three things make good code of this on x86. The sums are used once, by a jump: that lets Cranelift
/// load broadcast factors by the instruction that broadcasts. `second` is entered from two sides: that
/// keeps Cranelift from ordering both halves by sums. And as a multiply-add overwrites the factor, each
/// sum moves to another register, which the one before it has left; the second half runs backwards, so
/// that all sums move back.
fn dots(b: &mut KernelBuilder, left: Value, right: Value, end: Value, height: usize, acc: &mut [Value]) -> (Value, Value) {
    let blocks = [b.f.create_block(), b.f.create_block(), b.f.create_block(), b.f.create_block()];
    let [head, first, second, exit] = blocks;
    let types: Vec<Type> = [I64, I64].into_iter().chain(acc.iter().map(|_| F32X4)).collect();
    for block in [head, second] {
        for &t in &types {
            b.f.append_block_param(block, t);
        }
    }
    let forwards = |left: Value, right: Value, acc: &[Value]| -> Vec<BlockArg> {
        [left, right].iter().chain(acc).map(|&v| BlockArg::from(v)).collect()
    };
    let backwards = |left: Value, right: Value, acc: &[Value]| -> Vec<BlockArg> {
        [left, right].iter().chain(acc.iter().rev()).map(|&v| BlockArg::from(v)).collect()
    };
    let steps = acc.len() / height;
    let (left_bytes, right_bytes) = (steps as i64 * PACKED, steps as i64 * PANEL_ROW);
    let half = |b: &mut KernelBuilder, from: usize, left: Value, right: Value, acc: &[Value]| {
        let mut acc = acc.to_vec();
        for (set, sums) in acc.chunks_mut(height).enumerate() {
            let k = (from + set) as i64;
            let y = b.f.ins().load(F32X4, FACTOR, right, (k * PANEL_ROW) as i32);
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = b.f.ins().load(F32, FACTOR, left, (k * PACKED + r as i64 * F32_BYTES) as i32);
                let x = b.splat(x);
                *sum = b.fma(x, y, *sum);
            }
        }
        acc
    };

    let bytes = b.f.ins().isub(end, right);
    let odd = b.f.ins().band_imm_u(bytes, right_bytes);
    let (early_left, early_right) = (b.f.ins().iadd_imm_s(left, -left_bytes), b.f.ins().iadd_imm_s(right, -right_bytes));
    b.f.ins().brif(odd, second, &forwards(early_left, early_right, acc), head, &backwards(left, right, acc));

    b.f.switch_to_block(head);
    let params = b.f.block_params(head).to_vec();
    let (left, right) = (params[0], params[1]);
    for (a, &p) in acc.iter_mut().rev().zip(&params[2..]) {
        *a = p;
    }
    let more = b.f.ins().icmp(IntCC::NotEqual, right, end);
    b.f.ins().brif(more, first, &[], exit, &[]);

    b.f.switch_to_block(first);
    let next = half(b, 0, left, right, acc);
    b.f.ins().jump(second, &forwards(left, right, &next));

    b.f.switch_to_block(second);
    let params = b.f.block_params(second).to_vec();
    let next = half(b, steps, params[0], params[1], &params[2..]);
    let (next_left, next_right) = (b.f.ins().iadd_imm_s(params[0], 2 * left_bytes), b.f.ins().iadd_imm_s(params[1], 2 * right_bytes));
    b.f.ins().jump(head, &backwards(next_left, next_right, &next));
    for block in blocks {
        b.f.seal_block(block);
    }
    b.f.switch_to_block(exit);
    (left, right)
}
