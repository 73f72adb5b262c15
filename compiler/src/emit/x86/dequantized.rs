//! Weights of 4 and 8 bits as f32 panels ([`Dequantized`]): a block of a panel is converted into scratch
//! memory that stays in the first-level cache, once for all row tiles of a task.

use super::asm::{Asm, Cond, Mem, R, Src, V};
use super::expr::Function;
use super::isa::Op;
use crate::kernel::gemm::{Dequantized, PANEL};

const ELEMENT: i64 = 4;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// Values of k of a block: half of a first-level cache of 32 kB.
pub const BLOCK: i64 = 128;

/// Values of k that a round of the loop converts.
const UNROLL: i64 = 2;

/// What the columns of the panel at hand have.
pub struct Codes<'a> {
    d: &'a Dequantized,
    columns: R,
    scratch: R,
}

/// Where the conversion of a panel is.
pub struct Unpack<'a> {
    d: &'a Dequantized,
    at: R,
    columns: R,
    /// Values of k that are left of the group.
    rest: R,
    /// Where blocks are put, in the layout of an f32 panel.
    pub to: R,
}

impl Codes<'_> {
    /// Begins with the panel of a column.
    pub fn of_columns<'a>(f: &mut Function, d: &'a Dequantized, column: R) -> Codes<'a> {
        let columns = f.buffer(d.columns);
        let skipped = f.a.times_imm(column, d.groups * d.column_bytes() / PANEL as i64);
        f.a.add_into(columns, skipped);
        Codes { d, columns, scratch: f.a.scratch(BLOCK * PANEL_ROW) }
    }

    /// Goes to the next panel.
    pub fn next_panel(&self, f: &mut Function) {
        f.a.add_imm(self.columns, self.d.groups * self.d.column_bytes());
    }

    /// The conversion of the panel, whose weights are at `right`, from its begin.
    pub fn panel(&self, f: &mut Function, right: R) -> Unpack<'_> {
        let (at, columns, rest) = (f.a.copy(right), f.a.copy(self.columns), f.a.imm(self.d.group));
        Unpack { d: self.d, at, columns, rest, to: self.scratch }
    }
}

impl Unpack<'_> {
    /// Converts the next `count` values of k, at least one and at most [`BLOCK`].
    pub fn emit(&self, f: &mut Function, count: R) {
        let a = &mut f.a;
        let to = a.copy(self.to);
        if self.d.groups == 1 {
            let count = a.copy(count);
            self.group(a, to, count);
            return;
        }
        let left = a.copy(count);
        let (segment, next) = (a.label(), a.label());
        a.bind(segment);
        let count = a.min(left, self.rest);
        a.sub_into(left, count);
        a.sub_into(self.rest, count);
        self.group(a, to, count);
        a.compare_imm(self.rest, 0);
        a.jump_if(Cond::Gt, next);
        a.imm_into(self.rest, self.d.group);
        a.add_imm(self.columns, self.d.column_bytes());
        a.bind(next);
        a.compare_imm(left, 0);
        a.jump_if(Cond::Gt, segment);
    }

    /// Converts `count` values of k of one group and moves behind them; `count` is 0 then.
    fn group(&self, a: &mut Asm, to: R, count: R) {
        let bytes = a.isa.bytes();
        // Without EVEX there are too few registers for the zero points.
        let words = |a: &mut Asm, word: i64, in_registers: bool| -> Vec<Src> {
            let places = (0..PANEL_ROW).step_by(bytes as usize).map(|i| Mem::at(self.columns, word * PANEL_ROW + i));
            places.map(|m| if in_registers { a.vector_of(m).into() } else { m.into() }).collect()
        };
        let scales = words(a, 0, true);
        let zeros = self.d.zeros.then(|| words(a, 1, a.isa.evex()));
        let (head, tail, exit) = (a.label(), a.label(), a.label());
        let advance = |a: &mut Asm, n: i64| {
            a.add_imm(self.at, n * self.d.row_bytes());
            a.add_imm(to, n * PANEL_ROW);
            a.add_imm(count, -n);
        };
        let row = |a: &mut Asm, n: i64| {
            for (column, w) in self.weights(a, n * self.d.row_bytes()) {
                let v = (column / a.isa.lanes()) as usize;
                let difference = zeros.as_ref().map_or(w, |zeros| a.binary(Op::SubD, w, zeros[v]));
                let x = a.unary(Op::CvtDq2Ps, difference);
                let x = a.binary(Op::MulPs, x, scales[v]);
                a.store_vector(Mem::at(to, n * PANEL_ROW + column * ELEMENT), x);
            }
        };
        a.compare_imm(count, UNROLL);
        a.jump_if(Cond::Lt, tail);
        a.bind(head);
        (0..UNROLL).for_each(|n| row(a, n));
        advance(a, UNROLL);
        a.compare_imm(count, UNROLL);
        a.jump_if(Cond::Ge, head);
        a.bind(tail);
        a.compare_imm(count, 0);
        a.jump_if(Cond::Le, exit);
        let one = a.label();
        a.bind(one);
        row(a, 0);
        advance(a, 1);
        a.compare_imm(count, 0);
        a.jump_if(Cond::Gt, one);
        a.bind(exit);
    }

    /// The weights of one k in i32 lanes, each vector with its first column.
    fn weights(&self, a: &mut Asm, place: i64) -> Vec<(i64, V)> {
        let lanes = a.isa.lanes();
        let mut out = vec![];
        for c in (0..self.d.row_bytes()).step_by(lanes as usize) {
            let x = a.unary(Op::WidenI8, Mem::at(self.at, place + c));
            if self.d.bits == 8 {
                out.push((c, x));
                continue;
            }
            let up = a.unary_imm(Op::ShlD, x, 28);
            out.push((c, a.unary_imm(Op::SarD, up, 28)));
            out.push((c + PANEL as i64 / 2, a.unary_imm(Op::SarD, x, 4)));
        }
        out
    }
}
