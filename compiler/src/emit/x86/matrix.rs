//! Products of `i8` rows with weights of 4 and 8 bits by matrix tiles (AMX).
//!
//! A tile is 16 rows of 64 bytes. Two tiles of rows of the left operand times two tiles of columns of a panel are
//! added to four tiles of i32, [`STEP`] units of k at a time: `tdpbsud` multiplies 16 rows of 16 units with 16 units
//! of 16 columns. The left operand stays in rows ([`kernel::pack`](crate::kernel::pack)), filled up with zeros to whole
//! steps. Panels of 8 bits are what tiles of columns are loaded from as they are. So are those of 4 bits, whole bytes:
//! products with them are the sums of the low nibbles and sixteen times those of the high ones. The low nibbles
//! alone are taken out some steps ahead of their products, to slots on the stack: vector instructions run beside
//! those of tiles.

use super::asm::{Asm, Cond, Mem, R, Src, Tile, V};
use super::epilogue::{Epilogue, Vector};
use super::expr::Function;
use super::gemm::{ceil_div, group_rows};
use super::isa::Op;
use super::quantized::{LOW_NIBBLES, Operands, begin, most_both};
use super::tile::{LINE, by_height};
use crate::kernel::Extent;
use crate::kernel::gemm::{CHUNK, Format, Gemm, PANEL, Quantized, RowZeros};
use crate::kernel::pack::MATRIX_ROWS;

const ELEMENT: i64 = 4;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// Units of k that a product of tiles sums up: those of a line of a row.
const STEP: i64 = LINE / ELEMENT;

/// Bytes of a slot: the units of a step of a panel of 8 bits, or of the low nibbles and of whole bytes.
const SLOT: i64 = STEP * PANEL_ROW;

/// Sums: two tiles of rows by two of columns.
const SUMS: [[Tile; 2]; 2] = [[Tile(0), Tile(1)], [Tile(2), Tile(3)]];

/// Tiles of rows.
const ROWS: [Tile; 2] = [Tile(4), Tile(5)];

/// Tiles of columns.
const COLUMNS: [Tile; 2] = [Tile(6), Tile(7)];

/// Rows of a strip: those of all tiles of rows.
const STRIP: i64 = ROWS.len() as i64 * MATRIX_ROWS;

/// Steps that low nibbles are ahead of their products.
const AHEAD_STEPS: i64 = 2;

/// How far ahead weights are fetched, in bytes, where they may be in memory or a far cache.
const FETCH_AHEAD: i64 = 4096;

/// How many steps ahead strips of two tiles fetch them, which take longer at every step: into the second-level cache, since fewer
/// lines can be on their way to the first.
const FETCH_STEPS: i64 = 8;

/// Bytes of weights that all rows are multiplied with before those behind: they stay in the second-level cache.
const PASS: i64 = 512 * 1024;

/// Rows that take no longer without matrix tiles, which are as long for one row as for all.
const FEW: i64 = 4;

/// Whether a product that the wide emitter covers is one of matrix tiles. A single row has code of its own either way.
pub fn covers(g: &Gemm) -> bool {
    let Format::Quantized(q) = &g.format else { return false };
    // Displacements of rows have 32 bits.
    let most = i64::from(i32::MAX) / 64;
    let sums_fit = |k: i64| q.bits == 8 || most_both((k.min(q.group) + 3) / 4);
    g.batch.is_empty()
        && !matches!(g.m, Extent::Const(..=FEW))
        && matches!(g.k, Extent::Const(k) if (1..most).contains(&k) && sums_fit(k))
        && (q.groups == 1 || q.group % LINE == 0)
}

/// Emits the tasks of a product whose left operand is in rows.
///
/// Tasks are those of any product, but groups of rows are whole tiles. Neighbours are done together: those of several
/// columns by one group, or those of all columns by several groups.
pub fn emit(f: &mut Function, g: &Gemm, q: &Quantized, first: R, end: R) {
    let units = (g.k.as_const().expect("weights have known sizes") + 3) / 4;
    let pitch = g.left_pitch.expect("rows have a pitch") * ELEMENT;
    let exit = f.a.label();
    f.a.compare(first, end);
    f.a.jump_if(Cond::Ge, exit);
    f.a.configure_tiles();
    let product = Product { g, q, units, pitch, left_pitch: f.a.imm(pitch), unit_pitch: f.a.imm(q.unit_bytes()) };
    let p = Scratch {
        sums: f.a.scratch(STRIP * PANEL_ROW),
        ints: (q.groups > 1).then(|| [0, 1].map(|_| f.a.scratch(STRIP * PANEL_ROW))),
        slots: f.a.scratch(2 * SLOT),
    };
    let (m, n) = (f.extent(g.m), f.extent(g.n));
    let chunks = ceil_div(f, n, CHUNK as i64);
    let height = group_rows(f, g.m, g.row_groups, MATRIX_ROWS as usize);

    let task = f.a.copy(first);
    let head = f.a.label();
    f.a.bind(head);
    let (group, chunk) = f.a.divide(task, chunks);
    let behind = f.a.minus(chunks, chunk);
    let left = f.a.minus(end, task);
    let count = f.a.min(behind, left);
    let high = f.a.imm(1);
    let partly = f.a.label();
    f.a.compare(count, chunks);
    f.a.jump_if(Cond::Ne, partly);
    let (whole, _) = f.a.divide(left, chunks);
    f.a.copy_into(high, whole);
    f.a.bind(partly);
    let done = f.a.times(high, count);
    f.a.add_into(task, done);

    let first_row = f.a.times(group, height);
    let rows = f.a.times(high, height);
    f.a.add_into(rows, first_row);
    let rows_end = f.a.min(rows, m);
    let column = f.a.times_imm(chunk, CHUNK as i64);
    let columns = f.a.times_imm(count, CHUNK as i64);
    f.a.add_into(columns, column);
    let last_column = f.a.min(columns, n);
    let (rows, columns) = ((first_row, rows_end), (column, last_column));
    if product.has_whole_panels() && !matches!(g.m, Extent::Const(..=MATRIX_ROWS)) {
        product.without_a_break(f, &p, rows, columns);
    } else {
        product.strip_by_strip(f, &p, rows, columns);
    }

    f.a.compare(task, end);
    f.a.jump_if(Cond::Lt, head);
    f.a.release_tiles();
    f.a.bind(exit);
}

/// Memory on the stack.
struct Scratch {
    /// Sums of a strip by a panel: i32, or f32 with several groups.
    sums: R,
    /// The i32 of a group and of the one before, where there are several.
    ints: Option<[R; 2]>,
    /// What is made of steps of a panel.
    slots: R,
}

struct Product<'a> {
    g: &'a Gemm,
    q: &'a Quantized,
    /// Units of a row.
    units: i64,
    /// Bytes from row to row of the left operand.
    pitch: i64,
    left_pitch: R,
    /// Bytes from unit to unit of a panel.
    unit_pitch: R,
}

impl<'a> Product<'a> {
    /// Emits products and epilogues of rows and columns, each from one to another, a strip of one or two tiles at a time.
    fn strip_by_strip(&self, f: &mut Function, s: &Scratch, (first_row, rows_end): (R, R), (column, last_column): (R, R)) {
        let column = f.a.copy(column);
        let heights: &[usize] = match self.g.m {
            Extent::Const(..=MATRIX_ROWS) => &[MATRIX_ROWS as usize],
            _ => &[MATRIX_ROWS as usize, STRIP as usize],
        };
        let (pass, strip) = (f.a.label(), f.a.label());
        f.a.bind(pass);
        let columns_end = self.pass_end(f, column, last_column);
        let row = f.a.copy(first_row);
        f.a.bind(strip);
        let left = f.a.minus(rows_end, row);
        by_height(f, heights, left, |f, h| {
            let most = f.a.imm(h as i64);
            let rows = f.a.min(left, most);
            self.strip(f, s, h as i64 / MATRIX_ROWS, (row, rows), (column, columns_end));
        });
        f.a.add_imm(row, STRIP);
        f.a.compare(row, rows_end);
        f.a.jump_if(Cond::Lt, strip);
        f.a.copy_into(column, columns_end);
        f.a.compare(column, last_column);
        f.a.jump_if(Cond::Lt, pass);
    }

    /// Where the pass ends that begins with a column.
    fn pass_end(&self, f: &mut Function, column: R, last_column: R) -> R {
        let panels = (PASS / (self.units * self.q.unit_bytes())).max(1);
        let end = f.a.lea(Mem::at(column, panels * PANEL as i64));
        f.a.min(end, last_column)
    }

    /// Emits the product and the epilogue of `rows` rows, in `tiles` tiles, by all panels from one column to another.
    fn strip(&self, f: &mut Function, s: &Scratch, tiles: i64, (row, rows): (R, R), (column, columns_end): (R, R)) {
        let q = self.q;
        let o = self.operands(f, s, row, column);
        let column = f.a.copy(column);
        let head = f.a.label();
        f.a.bind(head);
        let scales = (q.groups == 1).then_some(o.columns);
        let epilogue = Epilogue::new(f, self.g, &[row, column], columns_end, scales);
        match q.groups {
            1 => {
                self.steps(&mut f.a, s, tiles, self.units, o.left, o.right);
                self.store(&mut f.a, tiles, o.ints);
                let begin_rows = |f: &mut Function| RowAt::new(&mut f.a, &o);
                let sums = |f: &mut Function, at: &RowAt| at.sums(&mut f.a, q, &o).map(Src::from).to_vec();
                epilogue.rows_of(f, rows, begin_rows, sums, |f, at| at.next(&mut f.a, q));
            }
            _ => {
                self.groups(f, s, tiles, rows, &o);
                epilogue.rows(f, o.sums, rows);
            }
        }
        f.a.add_imm(o.right, self.units * q.unit_bytes());
        f.a.add_imm(o.columns, q.groups * q.column_bytes());
        f.a.add_imm(column, PANEL as i64);
        f.a.compare(column, columns_end);
        f.a.jump_if(Cond::Lt, head);
    }

    /// The operands of a row by a panel, in registers that may move.
    fn operands(&self, f: &mut Function, s: &Scratch, row: R, column: R) -> Operands {
        let q = self.q;
        let left = f.buffer(self.g.left.buffer);
        let before = f.a.times_imm(row, self.pitch);
        f.a.add_into(left, before);
        let row_sums = f.buffer(q.sums);
        let before = f.a.times_imm(row, q.groups * ELEMENT);
        f.a.add_into(row_sums, before);
        let row_zeros = match q.row_zeros {
            RowZeros::Each(buffer) => {
                let at = f.buffer(buffer);
                Some(f.a.lea(Mem::indexed(at, row, 4, 0)))
            }
            RowZeros::None | RowZeros::Same => None,
        };
        let by = f.a.imm(PANEL as i64);
        let (panel, _) = f.a.divide(column, by);
        let right = f.buffer(self.g.right.buffer);
        let before = f.a.times_imm(panel, self.units * q.unit_bytes());
        f.a.add_into(right, before);
        let columns = f.buffer(q.columns);
        let before = f.a.times_imm(panel, q.groups * q.column_bytes());
        f.a.add_into(columns, before);
        let ints = s.ints.map_or(s.sums, |ints| ints[0]);
        Operands { left, right, columns, row_sums, group_sums: ELEMENT, row_zeros, sums: s.sums, ints }
    }

    /// Whether all panels are whole steps of whole columns, with one group: then panels are multiplied without a break.
    fn has_whole_panels(&self) -> bool {
        self.q.groups == 1 && self.units % STEP == 0 && matches!(self.g.n, Extent::Const(n) if n % PANEL as i64 == 0)
    }

    /// What [`Product::strip_by_strip`] does, where [panels are whole](Product::has_whole_panels): strips of two tiles one behind
    /// the other, then what is left, a strip of one.
    fn without_a_break(&self, f: &mut Function, s: &Scratch, (first_row, rows_end): (R, R), columns: (R, R)) {
        let (low, done) = (f.a.label(), f.a.label());
        let all = f.a.minus(rows_end, first_row);
        let more_than_a_tile = f.a.lea(Mem::at(all, STRIP - MATRIX_ROWS - 1));
        let by = f.a.imm(STRIP);
        let (strips, _) = f.a.divide(more_than_a_tile, by);
        let row = f.a.times_imm(strips, STRIP);
        f.a.add_into(row, first_row);
        let row = f.a.min(row, rows_end);
        f.a.compare(row, first_row);
        f.a.jump_if(Cond::Le, low);
        self.tall_strips(f, s, (first_row, row), columns);
        f.a.compare(row, rows_end);
        f.a.jump_if(Cond::Ge, done);
        f.a.bind(low);
        let rows = f.a.minus(rows_end, row);
        self.strip(f, s, 1, (row, rows), columns);
        f.a.bind(done);
    }

    /// Strips of two tiles, pass by pass. The rows of a panel get their epilogue while the next panel is multiplied, a few at
    /// every step: the units for tiles and those for vectors work at the same time.
    fn tall_strips(&self, f: &mut Function, s: &Scratch, (first_row, rows_end): (R, R), (first_column, last_column): (R, R)) {
        let q = self.q;
        let steps = self.units / STEP;
        let step_bytes = STEP * q.unit_bytes();
        let slots: Vec<R> = (0..AHEAD_STEPS + 1).map(|n| f.a.lea(Mem::at(s.slots, n * SLOT / 2))).collect();
        // Behind the last step of all panels nothing is read.
        let last = {
            let Extent::Const(n) = self.g.n else { unreachable!("panels are whole") };
            let begin = f.buffer(self.g.right.buffer);
            let bytes = f.a.imm(n / PANEL as i64 * self.units * q.unit_bytes() - step_bytes);
            f.a.plus(begin, bytes)
        };
        let low_nibbles = |f: &mut Function, right: R, ahead: i64, slot: R| {
            let from = f.a.lea(Mem::at(right, ahead * step_bytes));
            let from = f.a.min(from, last);
            self.low_nibbles(&mut f.a, Mem::at(from, 0), Mem::at(slot, 0), STEP);
        };
        let finishing = Finishing::none(f, self, s, (first_row, first_column), last_column);
        let row = f.a.copy(first_row);
        let first_of_pass = f.a.copy(first_column);
        let columns_end = self.pass_end(f, first_column, last_column);

        let strip = f.a.label();
        f.a.bind(strip);
        let column = f.a.copy(first_of_pass);
        let o = self.operands(f, s, row, column);
        let first = Epilogue::new(f, self.g, &[row, finishing.column], last_column, Some(finishing.operands.columns));
        let rows = f.a.minus(rows_end, row);
        let most = f.a.imm(STRIP);
        let rows = f.a.min(rows, most);
        let right = f.a.copy(o.right);
        if q.bits == 4 {
            (0..AHEAD_STEPS).zip(&slots).for_each(|(n, &slot)| low_nibbles(f, right, n, slot));
        }

        let panel = f.a.label();
        f.a.bind(panel);
        let vectors = finishing.epilogue.whole(f);
        SUMS.iter().flatten().for_each(|&t| f.a.zero_tile(t));
        let (left, count) = (f.a.copy(o.left), f.a.imm(steps));
        f.repeat(count, |f| {
            // The strips behind the first of a pass find its weights in the second-level cache.
            let near = f.a.label();
            f.a.compare(row, first_row);
            f.a.jump_if(Cond::Ne, near);
            self.lines_ahead(right, FETCH_STEPS * step_bytes).for_each(|line| f.a.prefetch_far(line));
            f.a.bind(near);
            if q.bits == 4 {
                low_nibbles(f, right, AHEAD_STEPS, slots[slots.len() - 1]);
                self.step(&mut f.a, 2, Mem::at(left, 0), [Mem::at(slots[0], 0), Mem::at(right, 0)]);
                for pair in slots.windows(2) {
                    f.a.swap(pair[0], pair[1]);
                }
            } else {
                self.step(&mut f.a, 2, Mem::at(left, 0), halves(Mem::at(right, 0)));
            }
            f.a.add_imm(left, LINE);
            f.a.add_imm(right, step_bytes);
            // So many that none are left behind the last step.
            let some = f.a.imm((STRIP + steps - 1) / steps);
            finishing.some_rows(f, q, &vectors, some);
        });
        self.store(&mut f.a, 2, s.sums);
        finishing.begin(f, &first, &o, column, rows);
        f.a.add_imm(o.columns, q.column_bytes());
        f.a.add_imm(column, PANEL as i64);
        f.a.compare(column, columns_end);
        f.a.jump_if(Cond::Lt, panel);

        f.a.add_imm(row, STRIP);
        f.a.compare(row, rows_end);
        f.a.jump_if(Cond::Lt, strip);
        f.a.copy_into(row, first_row);
        f.a.copy_into(first_of_pass, columns_end);
        let next_end = self.pass_end(f, first_of_pass, last_column);
        f.a.copy_into(columns_end, next_end);
        f.a.compare(first_of_pass, last_column);
        f.a.jump_if(Cond::Lt, strip);

        let vectors = finishing.epilogue.whole(f);
        finishing.some_rows(f, q, &vectors, finishing.left);
    }

    /// The f32 sums over several groups, in memory. The i32 of a group are converted while the next one is multiplied.
    fn groups(&self, f: &mut Function, s: &Scratch, tiles: i64, rows: R, o: &Operands) {
        let q = self.q;
        let a = &mut f.a;
        let zero = a.vector_of(0);
        for at in (0..tiles * MATRIX_ROWS * PANEL_ROW).step_by(LINE as usize) {
            a.store_vector(Mem::at(o.sums, at), zero);
        }
        let (left, right) = (a.copy(o.left), a.copy(o.right));
        let (columns, row_sums) = (a.copy(o.columns), a.copy(o.row_sums));
        // The group that was multiplied last: its operands, and how many of its rows are to be converted.
        let before = Operands { columns: a.copy(columns), row_sums: a.copy(row_sums), ints: a.copy(o.ints), ..*o };
        let (other_ints, pending) = (a.copy(s.ints.expect("there are groups")[1]), a.imm(0));
        let convert = |a: &mut Asm| {
            let done = a.label();
            a.compare_imm(pending, 0);
            a.jump_if(Cond::Le, done);
            let scale = [0, 1].map(|v| a.vector_of(Mem::at(before.columns, v * LINE)));
            let (at, sum, count) = (RowAt::new(a, &before), a.copy(o.sums), a.copy(pending));
            a.repeat(count, |a| {
                for ((v, &scale), x) in (0..).zip(&scale).zip(at.sums(a, q, &before)) {
                    let x = a.unary(Op::CvtDq2Ps, x);
                    let to = Mem::at(sum, v * LINE);
                    let total = a.fma(x, scale, to);
                    a.store_vector(to, total);
                }
                at.next(a, q);
                a.add_imm(sum, PANEL_ROW);
            });
            a.bind(done);
        };
        let group = |a: &mut Asm, units: i64| {
            self.steps(a, s, tiles, units, left, right);
            convert(a);
            self.store(a, tiles, other_ints);
            a.swap(before.ints, other_ints);
            a.copy_into(before.columns, columns);
            a.copy_into(before.row_sums, row_sums);
            a.copy_into(pending, rows);
            a.add_imm(left, units * ELEMENT);
            a.add_imm(right, units * q.unit_bytes());
            a.add_imm(columns, q.column_bytes());
            a.add_imm(row_sums, ELEMENT);
        };
        let per_group = q.group / ELEMENT;
        let (whole, rest) = (self.units / per_group, self.units % per_group);
        if whole > 0 {
            let count = a.imm(whole);
            a.repeat(count, |a| group(a, per_group));
        }
        if rest > 0 {
            group(a, rest);
        }
        convert(a);
    }

    /// Stores the tiles of sums.
    fn store(&self, a: &mut Asm, tiles: i64, to: R) {
        let pitch = a.imm(PANEL_ROW);
        for (r, sums) in (0..tiles).zip(SUMS) {
            for (c, sum) in (0..).zip(sums) {
                a.store_tile(Mem::at(to, r * MATRIX_ROWS * PANEL_ROW + c * LINE), pitch, sum);
            }
        }
    }

    /// The tiles of sums over `units` units of k.
    fn steps(&self, a: &mut Asm, s: &Scratch, tiles: i64, units: i64, left: R, right: R) {
        let q = self.q;
        for sums in &SUMS[..tiles as usize] {
            sums.iter().for_each(|&t| a.zero_tile(t));
        }
        let (left, right) = (a.copy(left), a.copy(right));
        let steps = (units + STEP - 1) / STEP;
        let last = units - (steps - 1) * STEP;
        let slot = |n: i64| Mem::at(s.slots, n % 2 * SLOT);
        let advance = |a: &mut Asm, n: i64| {
            a.add_imm(left, n * LINE);
            a.add_imm(right, n * STEP * q.unit_bytes());
        };
        let step_bytes = STEP * q.unit_bytes();
        let fetch = |a: &mut Asm, n: i64| {
            self.lines_ahead(right, n * step_bytes + FETCH_AHEAD).for_each(|line| a.prefetch(line, false));
        };
        // Panels end with their last unit: only whole steps are loaded from them.
        let whole = units / STEP;
        if q.bits == 8 {
            let step = |a: &mut Asm, n: i64| {
                fetch(a, n);
                self.step(a, tiles, Mem::at(left, n * LINE), halves(Mem::at(right, n * step_bytes)));
            };
            if whole > 0 {
                let count = a.imm(whole);
                a.unrolled(count, 2, whole % 2 == 0, step, advance);
            }
            if whole < steps {
                self.copy(a, Mem::at(right, 0), slot(0), last);
                self.step(a, tiles, Mem::at(left, 0), halves(slot(0)));
            }
            return;
        }
        self.low_nibbles(a, Mem::at(right, 0), slot(0), STEP.min(units));
        // All steps whose next one is whole.
        let ahead = (steps - 2).max(0);
        let step = |a: &mut Asm, n: i64| {
            fetch(a, n);
            self.low_nibbles(a, Mem::at(right, (n + 1) * step_bytes), slot(n + 1), STEP);
            self.step(a, tiles, Mem::at(left, n * LINE), [slot(n), Mem::at(right, n * step_bytes)]);
        };
        if ahead > 0 {
            let count = a.imm(ahead);
            a.unrolled(count, 2, ahead % 2 == 0, step, advance);
        }
        if steps > 1 {
            self.low_nibbles(a, Mem::at(right, step_bytes), slot(ahead + 1), last);
            self.step(a, tiles, Mem::at(left, 0), [slot(ahead), Mem::at(right, 0)]);
        }
        let (behind, at) = if steps > 1 { (1, slot(ahead + 1)) } else { (0, slot(0)) };
        let mut bytes = Mem::at(right, behind * step_bytes);
        if whole < steps {
            let copied = at.plus(SLOT / 2);
            self.copy(a, bytes, copied, last);
            bytes = copied;
        }
        self.step(a, tiles, Mem::at(left, behind * LINE), [at, bytes]);
    }

    /// The lines of the step of a panel that comes some bytes after the one at `right`.
    fn lines_ahead(&self, right: R, bytes: i64) -> impl Iterator<Item = Mem> {
        (0..STEP * self.q.unit_bytes()).step_by(LINE as usize).map(move |line| Mem::at(right, bytes + line))
    }

    /// Adds the products of a step of k: rows at `left`, units of both tiles of columns at `right`.
    fn step(&self, a: &mut Asm, tiles: i64, left: Mem, right: [Mem; 2]) {
        for (r, (rows, sums)) in (0..tiles).zip(ROWS.into_iter().zip(SUMS)) {
            a.load_tile(rows, left.plus(r * MATRIX_ROWS * self.pitch), self.left_pitch);
            for (c, (columns, sum)) in COLUMNS.into_iter().zip(sums).enumerate() {
                if r == 0 {
                    a.load_tile(columns, right[c], self.unit_pitch);
                }
                a.multiply_tiles(sum, rows, columns);
            }
        }
    }

    /// Takes the low nibbles out of `units` units of a panel.
    fn low_nibbles(&self, a: &mut Asm, from: Mem, to: Mem, units: i64) {
        let mask = a.vector_of(LOW_NIBBLES);
        for at in (0..units).map(|u| u * LINE) {
            let both = a.vector_of(from.plus(at));
            let low = a.binary(Op::And, both, mask);
            a.store_vector(to.plus(at), low);
        }
    }

    /// Copies `units` units of a panel.
    fn copy(&self, a: &mut Asm, from: Mem, to: Mem, units: i64) {
        for at in (0..units * self.q.unit_bytes()).step_by(LINE as usize) {
            let x = a.vector_of(from.plus(at));
            a.store_vector(to.plus(at), x);
        }
    }
}

/// Both tiles of columns of a step of 8 bits.
fn halves(at: Mem) -> [Mem; 2] {
    [at, at.plus(LINE)]
}

/// The rows of a panel that get their epilogue while the next one is multiplied.
struct Finishing<'a> {
    epilogue: Epilogue<'a>,
    /// Those of the panel.
    operands: Operands,
    /// Its first column.
    column: R,
    /// The next row.
    at: RowAt,
    /// How many rows are left.
    left: R,
}

impl<'a> Finishing<'a> {
    /// No rows, of a panel that is still to be multiplied.
    fn none(f: &mut Function, p: &Product<'a>, s: &Scratch, (row, column): (R, R), last_column: R) -> Finishing<'a> {
        let operands = p.operands(f, s, row, column);
        let column = f.a.copy(column);
        let epilogue = Epilogue::new(f, p.g, &[row, column], last_column, Some(operands.columns));
        let at = RowAt::new(&mut f.a, &operands);
        Finishing { epilogue, operands, column, at, left: f.a.imm(0) }
    }

    /// Begins with `rows` rows of a panel that was multiplied.
    fn begin(&self, f: &mut Function, first: &Epilogue, o: &Operands, column: R, rows: R) {
        self.epilogue.move_to(f, first);
        self.at.return_to(&mut f.a, o);
        f.a.copy_into(self.operands.columns, o.columns);
        f.a.copy_into(self.column, column);
        f.a.copy_into(self.left, rows);
    }

    /// The next rows, up to `most`, with what is the same for all of them.
    fn some_rows(&self, f: &mut Function, q: &Quantized, vectors: &[Vector], most: R) {
        let none = f.a.label();
        let now = f.a.min(self.left, most);
        f.a.sub_into(self.left, now);
        f.a.compare_imm(now, 0);
        f.a.jump_if(Cond::Le, none);
        f.repeat(now, |f| {
            let sums = self.at.sums(&mut f.a, q, &self.operands).map(Src::from);
            self.epilogue.row(f, vectors, &sums);
            self.at.next(&mut f.a, q);
        });
        f.a.bind(none);
    }
}

/// A row of i32 in memory, and what its sums begin with.
struct RowAt {
    ints: R,
    row_sums: R,
    row_zeros: Option<R>,
}

impl RowAt {
    /// The first row.
    fn new(a: &mut Asm, o: &Operands) -> RowAt {
        RowAt { ints: a.copy(o.ints), row_sums: a.copy(o.row_sums), row_zeros: o.row_zeros.map(|at| a.copy(at)) }
    }

    /// Back to the first row.
    fn return_to(&self, a: &mut Asm, o: &Operands) {
        a.copy_into(self.ints, o.ints);
        a.copy_into(self.row_sums, o.row_sums);
        if let (Some(at), Some(first)) = (self.row_zeros, o.row_zeros) {
            a.copy_into(at, first);
        }
    }

    /// The two vectors of its sums.
    fn sums(&self, a: &mut Asm, q: &Quantized, o: &Operands) -> [V; 2] {
        let of_row = Operands { row_sums: self.row_sums, row_zeros: self.row_zeros, ..*o };
        let first = begin(a, q, &of_row, 0, 0);
        let second = if q.corrects_columns() { begin(a, q, &of_row, 0, a.isa.lanes()) } else { first };
        let [sums, others] = [0, LINE].map(|at| Mem::at(self.ints, at));
        if q.bits == 8 {
            return [a.binary(Op::AddD, first, sums), a.binary(Op::AddD, second, others)];
        }
        // The others are of whole bytes: less the low nibbles.
        let low = a.vector_of(sums);
        let both = a.vector_of(others);
        let high = a.binary(Op::SubD, both, low);
        let high = a.unary_imm(Op::SarD, high, 4);
        [a.binary(Op::AddD, low, first), a.binary(Op::AddD, high, second)]
    }

    /// The next row.
    fn next(&self, a: &mut Asm, q: &Quantized) {
        a.add_imm(self.ints, PANEL_ROW);
        a.add_imm(self.row_sums, q.groups * ELEMENT);
        if let Some(at) = self.row_zeros {
            a.add_imm(at, ELEMENT);
        }
    }
}
