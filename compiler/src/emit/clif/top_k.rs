//! Selection of the best elements of rows.
//!
//! The results are the memory that this takes: a heap of the best elements so far, with their positions, whose root is the worst
//! of them. Each element of the row that is better than the root takes its place; in the end the heap is sorted in place.

use super::KernelBuilder;
use super::memory::{load_scalar, store_scalar};
use super::nest::Odometer;
use crate::kernel::Extent;
use crate::kernel::nest::Access;
use crate::kernel::top_k::TopK;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F64, I64};
use cranelift_codegen::ir::{InstBuilder, Value};
use tfc_ir::types::Elem;

/// Emits the rows of a task range.
pub fn emit(b: &mut KernelBuilder, t: &TopK) {
    let (begin, end) = (b.begin, b.end);
    let odometer = Odometer::set(b, &t.rows, begin);
    let Some(rows) = b.open_loop(begin, end, 1) else { return };
    let index = odometer.read(b, rows.index);
    let from = Line::of(b, &t.from, &index);
    let heap = Heap { values: Line::of(b, &t.values, &index), positions: Line::of(b, &t.positions, &index), largest: t.largest };
    let (n, k) = (b.extent(t.n), b.extent(t.k));
    let (zero, one) = (b.int(0), b.int(1));
    // The first elements, as a heap.
    repeat(b, zero, k, |b, i| {
        let value = from.load(b, i);
        heap.put(b, i, Item { value, position: i });
    });
    let inner = b.f.ins().sshr(k, one);
    repeat(b, zero, inner, |b, i| {
        let i = b.f.ins().isub(inner, i);
        let i = b.f.ins().iadd_imm_s(i, -1);
        let item = heap.get(b, i);
        heap.sift(b, i, k, item);
    });
    let root = b.f.declare_var(I64);
    let worst = heap.key_at(b, zero);
    b.f.def_var(root, worst);
    repeat(b, k, n, |b, i| {
        let value = from.load(b, i);
        let (key, worst) = (heap.key(b, value), b.f.use_var(root));
        let better = b.f.ins().icmp(IntCC::SignedGreaterThan, key, worst);
        let (replace, next) = (b.f.create_block(), b.f.create_block());
        b.f.ins().brif(better, replace, &[], next, &[]);
        b.f.seal_block(replace);
        b.f.switch_to_block(replace);
        heap.sift(b, zero, k, Item { value, position: i });
        let worst = heap.key_at(b, zero);
        b.f.def_var(root, worst);
        b.f.ins().jump(next, &[]);
        b.f.seal_block(next);
        b.f.switch_to_block(next);
    });
    // The worst of the rest goes behind the rest.
    repeat(b, one, k, |b, i| {
        let last = b.f.ins().isub(k, i);
        let (item, worst) = (heap.get(b, last), heap.get(b, zero));
        heap.put(b, last, worst);
        heap.sift(b, zero, last, item);
    });
    odometer.advance(b);
    b.close_loop(rows);
}

/// Runs the body for the indices `begin..end`.
fn repeat(b: &mut KernelBuilder, begin: Value, end: Value, body: impl FnOnce(&mut KernelBuilder, Value)) {
    if let Some(l) = b.open_loop(begin, end, 1) {
        body(b, l.index);
        b.close_loop(l);
    }
}

/// Elements at equal distances.
struct Line {
    first: Value,
    /// Bytes from one to the next.
    step: Value,
    elem: Elem,
}

impl Line {
    /// The elements of the last loop of an access.
    fn of(b: &mut KernelBuilder, access: &Access, index: &[Value]) -> Line {
        let elem = b.params[access.buffer as usize].elem;
        let size = Extent::Const(i64::from(elem.bits() / 8));
        let (last, rows) = access.strides.split_last().expect("the loop of elements");
        let mut at = b.extent(access.offset);
        for (&i, &stride) in index.iter().zip(rows) {
            let x = b.times(i, stride);
            at = b.f.ins().iadd(at, x);
        }
        let at = b.times(at, size);
        let base = b.buffer(access.buffer);
        let stride = b.extent(*last);
        Line { first: b.f.ins().iadd(base, at), step: b.times(stride, size), elem }
    }

    fn place(&self, b: &mut KernelBuilder, i: Value) -> Value {
        let bytes = b.f.ins().imul(i, self.step);
        b.f.ins().iadd(self.first, bytes)
    }

    fn load(&self, b: &mut KernelBuilder, i: Value) -> Value {
        let p = self.place(b, i);
        load_scalar(b, p, 0, self.elem)
    }

    fn store(&self, b: &mut KernelBuilder, i: Value, x: Value) {
        let p = self.place(b, i);
        store_scalar(b, p, 0, self.elem, x);
    }
}

/// An element and its position in the row.
#[derive(Clone, Copy)]
struct Item {
    value: Value,
    position: Value,
}

/// The best elements so far. None is better than a child of its own, which item `i` has at `2 i + 1` and `2 i + 2`.
struct Heap {
    values: Line,
    positions: Line,
    largest: bool,
}

impl Heap {
    fn get(&self, b: &mut KernelBuilder, i: Value) -> Item {
        Item { value: self.values.load(b, i), position: self.positions.load(b, i) }
    }

    fn put(&self, b: &mut KernelBuilder, i: Value, item: Item) {
        self.values.store(b, i, item.value);
        self.positions.store(b, i, item.position);
    }

    fn key_at(&self, b: &mut KernelBuilder, i: Value) -> Value {
        let value = self.values.load(b, i);
        self.key(b, value)
    }

    /// An `i64` that is larger where an element is better, and equal for equals.
    fn key(&self, b: &mut KernelBuilder, x: Value) -> Value {
        let elem = self.values.elem;
        let key = if elem.is_float() {
            let ty = b.ty(x);
            // The zeros become one. Numbers are in the order of their bits, negative ones against it.
            let zero = b.float_of(ty, 0.0);
            let y = b.f.ins().fadd(x, zero);
            let bits = if ty == F64 {
                b.bits(I64, y)
            } else {
                let y = b.f.ins().fpromote(F64, y);
                b.bits(I64, y)
            };
            let sign = b.sar(bits, 63);
            let below = b.shr(sign, 1);
            let key = b.f.ins().bxor(bits, below);
            let nan = b.f.ins().fcmp(FloatCC::Unordered, x, x);
            let most = b.int(i64::MAX);
            b.f.ins().select(nan, most, key)
        } else {
            match elem {
                Elem::I64 => x,
                Elem::U64 => {
                    let sign = b.int(i64::MIN);
                    b.f.ins().bxor(x, sign)
                }
                _ if elem.is_signed_int() => b.f.ins().sextend(I64, x),
                _ => b.f.ins().uextend(I64, x),
            }
        };
        if self.largest { key } else { b.f.ins().bnot(key) }
    }

    /// Whether an item is worse than another one: it comes behind it.
    fn worse(&self, b: &mut KernelBuilder, [x, y]: [(Value, Item); 2]) -> Value {
        let less = b.f.ins().icmp(IntCC::SignedLessThan, x.0, y.0);
        let equal = b.f.ins().icmp(IntCC::Equal, x.0, y.0);
        let later = b.f.ins().icmp(IntCC::SignedGreaterThan, x.1.position, y.1.position);
        let tie = b.f.ins().band(equal, later);
        b.f.ins().bor(less, tie)
    }

    /// Puts an item at `start`, or below it where a child is worse, among the first `end`.
    fn sift(&self, b: &mut KernelBuilder, start: Value, end: Value, item: Item) {
        let key = self.key(b, item.value);
        let hole = b.f.declare_var(I64);
        b.f.def_var(hole, start);
        let last = b.f.ins().iadd_imm_s(end, -1);
        let (head, body, down, exit) = (b.f.create_block(), b.f.create_block(), b.f.create_block(), b.f.create_block());
        b.f.ins().jump(head, &[]);
        b.f.switch_to_block(head);
        let at = b.f.use_var(hole);
        let left = b.f.ins().iadd(at, at);
        let left = b.f.ins().iadd_imm_s(left, 1);
        let any = b.f.ins().icmp(IntCC::SignedLessThan, left, end);
        b.f.ins().brif(any, body, &[], exit, &[]);
        b.f.seal_block(body);
        b.f.switch_to_block(body);
        // An only child is both.
        let right = b.f.ins().iadd_imm_s(left, 1);
        let right = b.f.ins().smin(right, last);
        let child = |b: &mut KernelBuilder, i: Value| {
            let item = self.get(b, i);
            (self.key(b, item.value), item)
        };
        let (l, r) = (child(b, left), child(b, right));
        let right_is_worse = self.worse(b, [r, l]);
        let mut pick = |x: Value, y: Value| b.f.ins().select(right_is_worse, x, y);
        let place = pick(right, left);
        let worst = (pick(r.0, l.0), Item { value: pick(r.1.value, l.1.value), position: pick(r.1.position, l.1.position) });
        let moves = self.worse(b, [worst, (key, item)]);
        b.f.ins().brif(moves, down, &[], exit, &[]);
        b.f.seal_block(down);
        b.f.switch_to_block(down);
        self.put(b, at, worst.1);
        b.f.def_var(hole, place);
        b.f.ins().jump(head, &[]);
        b.f.seal_block(head);
        b.f.seal_block(exit);
        b.f.switch_to_block(exit);
        let at = b.f.use_var(hole);
        self.put(b, at, item);
    }
}
