//! Products of a single row with weights of 4 and 8 bits: what memory delivers is all that counts. Several panels are
//! read at once ([`Streams`]), each a stream of its own that the CPU looks ahead of by itself. Rows of `i8` are here, those
//! of f32 in [`dequantized`](super::dequantized).

use super::asm::{Asm, Cond, Mem, R, Src, V};
use super::expr::Function;
use super::isa::{Isa, Op};
use super::quantized::{Operands, begin, by_group, most_both, nibbles};
use super::strip::NARROW;
use super::tile::LINE;
use crate::kernel::gemm::{PANEL, Quantized};

const ELEMENT: i64 = 4;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// How far ahead a panel is fetched, in bytes: little more than what is read at the time. More requests would take the place of
/// those of the CPU itself.
const AHEAD: i64 = 256;

/// Sums in registers that are independent: as many as keep the units that multiply busy.
const SUMS: i64 = 8;

/// How many panels are read at once.
pub fn panels(isa: Isa, q: &Quantized) -> i64 {
    match isa.has_vnni() {
        true => SUMS / (PANEL as i64 / isa.lanes()),
        // Two sums of 16 bits for every vector of weights.
        false => SUMS / (2 * (q.unit_bytes() / isa.bytes())),
    }
}

/// A row and the panels that are read at once.
pub struct Streams {
    count: i64,
    /// Bytes from one panel to the next.
    bytes: i64,
    /// Bytes of the weights of a unit of a panel.
    unit_bytes: i64,
    /// Units of the row, one behind the other.
    left: R,
    right: R,
    /// What is fetched.
    fetched: R,
    /// The end of the first panel, until that is behind.
    fetched_end: R,
}

impl Streams {
    /// `count` panels of `units` units, from the begin of the row at `left` and of the first panel at `right`.
    pub fn new(a: &mut Asm, (left, right): (R, R), count: i64, units: i64, unit_bytes: i64) -> Streams {
        let bytes = units * unit_bytes;
        let (left, right) = (a.copy(left), a.copy(right));
        let fetched = a.lea(Mem::at(right, AHEAD));
        let fetched_end = a.lea(Mem::at(right, bytes));
        Streams { count, bytes, unit_bytes, left, right, fetched, fetched_end }
    }

    /// Unit `n` of the row in every lane.
    pub fn unit(&self, a: &mut Asm, n: i64) -> V {
        a.broadcast(Mem::at(self.left, n * ELEMENT))
    }

    /// Where the weights of unit `n` of a panel are.
    pub fn weights(&self, panel: i64, n: i64) -> Mem {
        Mem::at(self.right, panel * self.bytes + n * self.unit_bytes)
    }

    /// Fetches the panels ahead of unit `n` of a round: every line once.
    pub fn fetch(&self, a: &mut Asm, n: i64) {
        let at = n * self.unit_bytes;
        if at % LINE != 0 {
            return;
        }
        for panel in 0..self.count {
            for line in (0..self.unit_bytes).step_by(LINE as usize) {
                a.prefetch(Mem::at(self.fetched, panel * self.bytes + at + line), false);
            }
        }
    }

    /// Moves behind `n` units; behind the end of the panels, those are fetched that are read next.
    pub fn advance(&self, a: &mut Asm, n: i64) {
        let bytes = n * self.unit_bytes;
        a.add_imm(self.left, n * ELEMENT);
        a.add_imm(self.right, bytes);
        a.add_imm(self.fetched, bytes);
        let within = a.label();
        a.compare(self.fetched, self.fetched_end);
        a.jump_if(Cond::Lt, within);
        a.add_imm(self.fetched, (self.count - 1) * self.bytes);
        a.imm_into(self.fetched_end, i64::MAX);
        a.bind(within);
    }
}

/// The row of units of `i8` and the panels that are read at once.
struct Panels<'a> {
    q: &'a Quantized,
    count: i64,
    /// Bytes between what columns have from one panel to the next.
    column_bytes: i64,
    streams: Streams,
}

/// Puts the sums of the row by `count` panels, over `units` units of k, to `o.sums`, [`PANEL`] for each panel. Its units
/// are neighbours at `o.left`.
pub fn product(f: &mut Function, q: &Quantized, units: i64, count: i64, o: &Operands) {
    let a = &mut f.a;
    let streams = Streams::new(a, (o.left, o.right), count, units, q.unit_bytes());
    let p = Panels { q, count, column_bytes: q.groups * q.column_bytes(), streams };
    let places = p.places(a.isa);
    let store = |a: &mut Asm, sums: &[V]| {
        for (&(panel, column), &sum) in places.iter().zip(sums) {
            a.store_vector(p.sum(o.sums, panel, column), sum);
        }
    };
    match (q.groups, a.isa.has_vnni()) {
        (1, true) => {
            let units_left = a.imm(units);
            let sums = p.wide(a, o, units_left, units);
            store(a, &sums);
        }
        (1, false) => {
            let units_left = a.imm(units);
            p.narrow(a, &Operands { ints: o.sums, ..*o }, units_left);
        }
        (_, true) => {
            let totals: Vec<V> = places.iter().map(|_| a.vector_of(0)).collect();
            let rest = a.imm(units);
            by_group(a, q, rest, o, |a, units_left, o, per_group| {
                let sums = p.wide(a, o, units_left, per_group);
                for ((&(panel, column), &total), sum) in places.iter().zip(&totals).zip(sums) {
                    let x = a.unary(Op::CvtDq2Ps, sum);
                    a.update(Op::Fma231, total, x, p.column(o.columns, panel, column));
                }
            });
            store(a, &totals);
        }
        (_, false) => {
            let zero = a.vector_of(0);
            store(a, &vec![zero; places.len()]);
            let rest = a.imm(units);
            by_group(a, q, rest, o, |a, units_left, o, _| {
                p.narrow(a, o, units_left);
                for &(panel, column) in &places {
                    let x = a.unary(Op::CvtDq2Ps, p.sum(o.ints, panel, column));
                    let scale = a.vector_of(p.column(o.columns, panel, column));
                    let total = a.fma(x, scale, p.sum(o.sums, panel, column));
                    a.store_vector(p.sum(o.sums, panel, column), total);
                }
            });
        }
    }
}

impl Panels<'_> {
    /// Panels and first columns of all vectors of sums: panel by panel, the two of a vector of nibbles together.
    fn places(&self, isa: Isa) -> Vec<(i64, i64)> {
        let half = PANEL as i64 / 2;
        let columns: Vec<i64> = match self.q.bits {
            4 => (0..half).step_by(isa.lanes() as usize).flat_map(|c| [c, c + half]).collect(),
            _ => (0..2 * half).step_by(isa.lanes() as usize).collect(),
        };
        (0..self.count).flat_map(|panel| columns.iter().map(move |&c| (panel, c))).collect()
    }

    /// The place of a sum.
    fn sum(&self, sums: R, panel: i64, column: i64) -> Mem {
        Mem::at(sums, panel * PANEL_ROW + column * ELEMENT)
    }

    /// The place of a word of a column of a panel: the first of them.
    fn column(&self, columns: R, panel: i64, column: i64) -> Mem {
        Mem::at(columns, panel * self.column_bytes + column * ELEMENT)
    }

    /// What the i32 sums at a place begin with.
    fn begin(&self, a: &mut Asm, o: &Operands, (panel, column): (i64, i64)) -> V {
        begin(a, self.q, o, 0, panel * self.column_bytes / ELEMENT + column)
    }

    /// With VNNI: the i32 sums of a group of `count` units, `usual` in most groups and at most.
    fn wide(&self, a: &mut Asm, o: &Operands, count: R, usual: i64) -> Vec<V> {
        let q = self.q;
        let places = self.places(a.isa);
        let vectors = places.len();
        let sets = (SUMS as usize / vectors).max(1);
        let whole_bytes = q.bits == 4 && most_both(usual);
        let sums: Vec<Vec<V>> = (0..sets)
            .map(|set| {
                let first = |a: &mut Asm, i: usize| match set {
                    // The sums of low nibbles are taken off whole from those of whole bytes.
                    0 if !(whole_bytes && i % 2 == 1) => self.begin(a, o, places[i]),
                    _ => a.vector_of(0),
                };
                (0..vectors).map(|i| first(a, i)).collect()
            })
            .collect();
        if whole_bytes {
            for i in (1..vectors).step_by(2) {
                a.set(sums[0][i], sums[0][i - 1]);
            }
        }
        let step = |a: &mut Asm, n: i64| {
            let sums = &sums[n as usize % sets];
            let x = self.streams.unit(a, n);
            for panel in 0..self.count {
                let at = self.streams.weights(panel, n);
                for (v, line) in (0..q.unit_bytes()).step_by(a.isa.bytes() as usize).enumerate() {
                    let w = a.vector_of(at.plus(line));
                    let parts = match q.bits {
                        8 => vec![w],
                        _ if whole_bytes => vec![a.binary(Op::And, w, 0x0f0f_0f0f), w],
                        _ => nibbles(a, w).to_vec(),
                    };
                    let first = panel as usize * vectors / self.count as usize + v * parts.len();
                    for (part, i) in parts.into_iter().zip(first..) {
                        a.update(Op::DotBytes, sums[i], part, x);
                    }
                }
            }
            self.streams.fetch(a, n);
        };
        let unroll = 4;
        a.unrolled(count, unroll, self.q.groups == 1 && usual % unroll == 0, step, |a, n| self.streams.advance(a, n));
        for set in &sums[1..] {
            for (&x, &y) in sums[0].iter().zip(set) {
                a.binary_into(Op::AddD, x, x, y);
            }
        }
        if whole_bytes {
            for i in (1..vectors).step_by(2) {
                let (low, both) = (sums[0][i - 1], sums[0][i]);
                a.binary_into(Op::SubD, both, both, low);
                let high = a.unary_imm(Op::SarD, both, 4);
                let begin = self.begin(a, o, places[i]);
                a.binary_into(Op::AddD, both, high, begin);
            }
        }
        sums.into_iter().next().expect("a set")
    }

    /// Without VNNI: adds up the i32 sums of a group of `count` units at `o.ints`.
    fn narrow(&self, a: &mut Asm, o: &Operands, count: R) {
        let q = self.q;
        for (panel, column) in self.places(a.isa) {
            let x = self.begin(a, o, (panel, column));
            a.store_vector(self.sum(o.ints, panel, column), x);
        }
        let lines: Vec<i64> = (0..q.unit_bytes()).step_by(a.isa.bytes() as usize).collect();
        let sums: Vec<[V; 2]> = (0..self.count as usize * lines.len()).map(|_| [a.v(), a.v()]).collect();
        let step = |a: &mut Asm, n: i64, first: bool| {
            let x = self.streams.unit(a, n);
            for (i, sums) in sums.iter().enumerate() {
                let (panel, line) = ((i / lines.len()) as i64, lines[i % lines.len()]);
                let both = a.vector_of(self.streams.weights(panel, n).plus(line));
                for (w, &sum) in nibbles(a, both).into_iter().zip(sums) {
                    if first {
                        a.binary_into(Op::MaddUbs, sum, w, x);
                    } else {
                        let product = a.binary(Op::MaddUbs, w, x);
                        a.binary_into(Op::AddW, sum, sum, product);
                    }
                }
            }
            self.streams.fetch(a, n);
        };
        let places = self.places(a.isa);
        let widen = |a: &mut Asm| {
            for (i, &[low, high]) in sums.iter().enumerate() {
                // The place of a vector of bytes, or those of both vectors of nibbles.
                let parts: Vec<(usize, Vec<(V, i32)>)> = match q.bits {
                    8 => vec![(i, vec![(low, 1), (high, 16)])],
                    _ => vec![(2 * i, vec![(low, 1)]), (2 * i + 1, vec![(high, 1)])],
                };
                for (place, parts) in parts {
                    let at = self.sum(o.ints, places[place].0, places[place].1);
                    let mut sum: Src = at.into();
                    for (x, factor) in parts {
                        let x = a.binary(Op::MaddW, x, factor << 16 | factor);
                        sum = a.binary(Op::AddD, x, sum).into();
                    }
                    let sum = a.vector_of(sum);
                    a.store_vector(at, sum);
                }
            }
        };
        let (head, tail, exit) = (a.label(), a.label(), a.label());
        a.compare_imm(count, NARROW);
        a.jump_if(Cond::Lt, tail);
        a.bind(head);
        (0..NARROW).for_each(|n| step(a, n, n == 0));
        widen(a);
        self.streams.advance(a, NARROW);
        a.add_imm(count, -NARROW);
        a.compare_imm(count, NARROW);
        a.jump_if(Cond::Ge, head);
        a.bind(tail);
        a.compare_imm(count, 0);
        a.jump_if(Cond::Le, exit);
        sums.iter().flatten().for_each(|&sum| a.zero_into(sum));
        let one = a.label();
        a.bind(one);
        step(a, 0, false);
        self.streams.advance(a, 1);
        a.count_down(count, 1, one);
        widen(a);
        a.bind(exit);
    }
}
