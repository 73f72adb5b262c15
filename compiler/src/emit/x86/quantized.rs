//! Register tiles of products of `i8` rows with weights of 4 and 8 bits
//! ([`Quantized`](crate::kernel::gemm::Quantized)), with VNNI; [`strip`](super::strip) has what 16 registers need.
//!
//! One instruction adds four products of bytes to an i32, and the sums of a group never leave
//! their registers. With 32 registers, weights of 4 bits are taken out of their bytes by the first tile of a panel
//! only, which leaves them on the stack for the tiles behind it ([`Kept`]).

use super::asm::{Asm, Cond, Mem, R, V};
use super::expr::Function;
use super::isa::Op;
use super::tile::{AHEAD, FAR_AHEAD, LINE, heights};
use crate::kernel::Extent;
use crate::kernel::gemm::{PANEL, Quantized, RowZeros, TILE_ROWS};

const TILE_ROW: i64 = TILE_ROWS as i64 * 4;
const PANEL_ROW: i64 = PANEL as i64 * 4;

/// Addresses of the operands of a tile.
#[derive(Clone, Copy)]
pub struct Operands {
    /// The packed rows.
    pub left: R,
    /// The panel of weights.
    pub right: R,
    /// What the columns of the panel have.
    pub columns: R,
    /// The sums of the rows.
    pub row_sums: R,
    /// Bytes from the sums of one group to those of the next.
    pub group_sums: i64,
    /// The zero points of the rows, if every row has its own.
    pub row_zeros: Option<R>,
    /// The sums of the tile, [`PANEL`] to a row: the result, f32. Of a single group, the i32 before its scales.
    pub sums: R,
    /// As many i32 for the sums of one of several groups.
    pub ints: R,
}

impl Operands {
    /// Moves from a tile of rows of `units` units to the next one, but for its sums.
    pub fn next_tile(&self, a: &mut Asm, q: &Quantized, units: i64) {
        a.add_imm(self.left, units * TILE_ROW);
        a.add_imm(self.row_sums, q.groups * TILE_ROW);
        if let Some(at) = self.row_zeros {
            a.add_imm(at, TILE_ROW);
        }
    }

    /// Moves behind a block of `units` units: of several groups, behind whole ones.
    pub fn next_block(&self, a: &mut Asm, q: &Quantized, units: i64) {
        a.add_imm(self.left, units * TILE_ROW);
        a.add_imm(self.right, units * q.unit_bytes());
        if q.groups > 1 {
            let groups = units * 4 / q.group;
            a.add_imm(self.columns, groups * q.column_bytes());
            a.add_imm(self.row_sums, groups * TILE_ROW);
        }
    }
}

/// Columns and rows of a register tile, of which each row takes two vectors of weights.
pub struct Shape {
    pub first_row: usize,
    pub rows: usize,
    /// The first columns of the vectors of a row of sums.
    pub columns: Vec<i64>,
}

/// Bytes of weights that are kept on the stack.
const KEPT: i64 = 64 * 1024;

/// Weights of 4 bits that the first tile of a panel takes out of their bytes and leaves for the others: to take them out takes
/// the place of products in some CPUs. Of a single group they are the low nibbles of all units, since products with whole bytes
/// give the high ones; of several, units of 8 bits, since every group would have to take its sums apart.
#[derive(Clone, Copy)]
pub struct Kept {
    at: R,
    /// Whether they are: 0 while the first tile is multiplied. If that is known, they are.
    there: Option<R>,
    /// Whether they are units of 8 bits.
    both: bool,
}

impl Kept {
    /// Where what is kept of unit `n` begins, from the first unit on, in bytes.
    fn offset(both: bool, n: i64) -> i64 {
        n * if both { PANEL_ROW } else { PANEL_ROW / 2 }
    }
}

/// With 32 registers: how many units of k all tiles of a task are multiplied with before those behind them.
#[derive(Clone, Copy)]
pub struct Block {
    /// Of all blocks but the last, which has what is left.
    pub units: i64,
    /// A power of 2 that divides the units of every block, or of every group.
    multiple: i64,
    /// Where tiles leave weights for those behind them.
    kept: Option<Kept>,
}

impl Block {
    /// The blocks of `units` units. If weights are to be kept there are as few, and as even ones, as there is room for on the
    /// stack, and they are whole groups; otherwise there is one.
    pub fn new(f: &mut Function, q: &Quantized, m: Extent, units: i64) -> Block {
        let per_group = (q.group + 3) / 4;
        let both = q.groups > 1;
        let whole = if both { per_group } else { UNROLL };
        let most = KEPT / Kept::offset(both, whole) * whole;
        let (mut block, mut kept) = (units, None);
        if q.bits == 4 && most > 0 && heights(m).contains(&TILE_ROWS) {
            block = even_block(units, most, whole);
            kept = Some(Kept { at: f.a.scratch(Kept::offset(both, block)), there: Some(f.a.imm(0)), both });
        }
        let added_up = if both { per_group } else { block };
        Block { units: block, multiple: power_of_2(added_up | units), kept }
    }

    /// Before the first tile of a panel, or of a block of one.
    pub fn begin(&self, f: &mut Function) {
        if let Some(there) = self.kept.and_then(|kept| kept.there) {
            f.a.imm_into(there, 0);
        }
    }
}

/// The units of blocks of `units` units: of as few, and as even ones, as have at most `most`, and multiples of `whole`.
pub fn even_block(units: i64, most: i64, whole: i64) -> i64 {
    let blocks = ceil_div(units, most);
    (ceil_div(ceil_div(units, blocks), whole) * whole).min(units)
}

/// `x / by`, rounded up.
fn ceil_div(x: i64, by: i64) -> i64 {
    (x + by - 1) / by
}

/// The greatest power of 2 that divides a number; of `x | y`, the greatest that divides both.
pub fn power_of_2(x: i64) -> i64 {
    1 << x.trailing_zeros()
}

/// With 32 registers: the i32 sums of a tile of `height` rows by a panel of a single group, over `count` units of a block, before
/// their scales. With `go_on` they are added to those in memory.
pub fn one_group(f: &mut Function, q: &Quantized, (block, count): (&Block, R), height: usize, o: &Operands, go_on: bool) -> Vec<[V; 2]> {
    let a = &mut f.a;
    let s = Shape { first_row: 0, rows: height, columns: vec![0, a.isa.lanes()] };
    let kept = block.kept.filter(|_| height == TILE_ROWS);
    let span = Span {
        left: a.copy(o.left),
        right: a.copy(o.right),
        count: a.copy(count),
        usual: block.units,
        multiple: block.multiple,
        kept: kept.map(|kept| Kept { at: a.copy(kept.at), ..kept }),
    };
    let begin = |a: &mut Asm, r: usize, v: usize| match go_on {
        true => a.vector_of(place(o.sums, &s, r, s.columns[v])),
        false => begin(a, q, o, r, s.columns[v]),
    };
    let mut sums = vec![];
    wide_group(a, q, &s, &span, begin, |_, _, row| sums.push(row));
    if let Some(there) = kept.and_then(|kept| kept.there) {
        a.imm_into(there, 1);
    }
    sums
}

/// With 32 registers: the f32 sums of a tile of `height` rows by a panel of several groups, over `count` units of a block, to
/// memory. With `go_on` they are added to those there.
pub fn several_groups(f: &mut Function, q: &Quantized, (block, count): (&Block, R), height: usize, o: &Operands, go_on: bool) {
    let a = &mut f.a;
    let s = Shape { first_row: 0, rows: height, columns: vec![0, a.isa.lanes()] };
    if !go_on {
        clear(a, &s, o);
    }
    let product = |a: &mut Asm, kept: Option<Kept>| {
        let (left, right, units) = (a.copy(o.left), a.copy(o.right), a.copy(count));
        let kept = kept.map(|kept| Kept { at: a.copy(kept.at), ..kept });
        by_group(a, q, units, o, |a, count, o, per_group| {
            let span = Span { left, right, count, usual: per_group, multiple: block.multiple, kept };
            let begin = |a: &mut Asm, r: usize, v: usize| begin(a, q, o, r, s.columns[v]);
            wide_group(a, q, &s, &span, begin, |a, r, sums| add_group(a, &s, o, r, sums));
        });
    };
    let Some((kept, there)) = block.kept.and_then(|kept| Some((kept, kept.there?))) else {
        return product(a, None);
    };
    if height == TILE_ROWS {
        product(a, Some(kept));
        return a.imm_into(there, 1);
    }
    // Tiles that are not whole are the last ones; for low ones it is not worth the code.
    if height >= TILE_ROWS / 2 {
        let (alone, done) = (a.label(), a.label());
        a.compare_imm(there, 0);
        a.jump_if(Cond::Eq, alone);
        product(a, Some(Kept { there: None, ..kept }));
        a.jump(done);
        a.bind(alone);
        product(a, None);
        return a.bind(done);
    }
    product(a, None);
}

/// Sets the f32 sums of a register tile in memory to what they are without any groups.
fn clear(a: &mut Asm, s: &Shape, o: &Operands) {
    let zero = a.vector_of(0);
    for r in 0..s.rows {
        for &c in &s.columns {
            a.store_vector(place(o.sums, s, r, c), zero);
        }
    }
}

/// Converts the sums of a row of one of several groups, multiplies them by its scales and adds the groups before.
pub fn add_group(a: &mut Asm, s: &Shape, o: &Operands, row: usize, sums: [V; 2]) {
    for (&c, x) in s.columns.iter().zip(sums) {
        let at = place(o.sums, s, row, c);
        let x = a.unary(Op::CvtDq2Ps, x);
        let total = a.vector_of(at);
        a.update(Op::Fma231, total, x, Mem::at(o.columns, c * 4));
        a.store_vector(at, total);
    }
}

/// The sums of a tile of `height` rows in memory.
pub fn load(f: &mut Function, o: &Operands, height: usize) -> Vec<[V; 2]> {
    let width = f.a.isa.bytes();
    (0..height as i64).map(|r| [0, 1].map(|v| f.a.vector_of(Mem::at(o.sums, r * PANEL_ROW + v * width)))).collect()
}

/// What the sums of a task begin with, in the vectors at some columns of every row, to memory: those of several groups are f32.
pub fn begin_in_memory(f: &mut Function, q: &Quantized, o: &Operands, columns: &[i64], rows: R) {
    let a = &mut f.a;
    let (at, row_sums) = (a.copy(o.sums), a.copy(o.row_sums));
    let row_zeros = o.row_zeros.map(|at| a.copy(at));
    let count = a.copy(rows);
    a.repeat(count, |a| {
        for &column in columns {
            let x = match q.groups {
                1 => begin(a, q, &Operands { row_sums, row_zeros, ..*o }, 0, column),
                _ => a.vector_of(0),
            };
            a.store_vector(Mem::at(at, column * 4), x);
        }
        a.add_imm(at, PANEL_ROW);
        a.add_imm(row_sums, 4);
        if let Some(at) = row_zeros {
            a.add_imm(at, 4);
        }
    });
}

/// Stores the sums of a tile to memory.
pub fn store(f: &mut Function, o: &Operands, sums: &[[V; 2]]) {
    for (r, sums) in (0..).zip(sums) {
        for (v, &sum) in (0..).zip(sums) {
            f.a.store_vector(Mem::at(o.sums, r * PANEL_ROW + v * f.a.isa.bytes()), sum);
        }
    }
}

/// Emits the body for the groups of `rest` units, which becomes 0: with the number of units of a group, its operands, and the
/// units of a whole group.
pub fn by_group(a: &mut Asm, q: &Quantized, rest: R, o: &Operands, body: impl FnOnce(&mut Asm, R, &Operands, i64)) {
    let per_group = (q.group + 3) / 4;
    let (columns, row_sums) = (a.copy(o.columns), a.copy(o.row_sums));
    let head = a.label();
    a.bind(head);
    let most = a.imm(per_group);
    let count = a.min(rest, most);
    a.sub_into(rest, count);
    body(a, count, &Operands { columns, row_sums, ..*o }, per_group);
    a.add_imm(columns, q.column_bytes());
    a.add_imm(row_sums, o.group_sums);
    a.compare_imm(rest, 0);
    a.jump_if(Cond::Gt, head);
}

/// The place of a column of a row of a tile of sums.
pub fn place(sums: R, s: &Shape, r: usize, column: i64) -> Mem {
    Mem::at(sums, (s.first_row + r) as i64 * PANEL_ROW + column * 4)
}

/// What the i32 sums of a row begin with, from a column on: see [`Quantized`].
pub fn begin(a: &mut Asm, q: &Quantized, o: &Operands, row: usize, column: i64) -> V {
    let of_row = |at: R| Mem::at(at, row as i64 * 4);
    let of_columns = |word: i64| Mem::at(o.columns, word * PANEL_ROW + column * 4);
    let mut sum = a.broadcast(of_row(o.row_sums));
    if q.zeros {
        sum = a.binary(Op::MulD, sum, of_columns(1));
    }
    let word = 1 + i64::from(q.zeros);
    match (q.row_zeros, o.row_zeros) {
        (RowZeros::None, _) => sum,
        (_, None) => a.binary(Op::AddD, sum, of_columns(word)),
        (_, Some(row_zeros)) => {
            let zero = a.broadcast(of_row(row_zeros));
            let change = a.binary(Op::MulD, zero, of_columns(word));
            a.binary(Op::AddD, sum, change)
        }
    }
}

/// The low nibbles of four bytes.
pub const LOW_NIBBLES: i32 = 0x0f0f_0f0f;

/// The low and the high nibbles of a vector.
pub fn nibbles(a: &mut Asm, both: V) -> [V; 2] {
    let low = a.binary(Op::And, both, LOW_NIBBLES);
    let high = a.unary_imm(Op::ShrW, both, 4);
    [low, a.binary(Op::And, high, LOW_NIBBLES)]
}

/// Values of k of which the sum of products of a whole byte of nibbles with an `i8` fits an i32.
const MOST_BOTH: i64 = 65536;

/// Whether the sums of so many units may be those of whole bytes of nibbles.
pub fn most_both(units: i64) -> bool {
    units * 4 <= MOST_BOTH
}

/// Units that are multiplied in a round of a loop; by low tiles, and in groups, twice as many.
const UNROLL: i64 = 2;

/// Rows whose products come between the last ones of a row and its finish, which waits for them.
const LATER: usize = 2;

/// The units of a group, or of a block of a single one, that a tile is multiplied with.
pub struct Span {
    pub left: R,
    pub right: R,
    pub count: R,
    /// The most units that there are.
    pub usual: i64,
    /// A power of 2 that divides their number.
    pub multiple: i64,
    pub kept: Option<Kept>,
}

impl Span {
    fn keeps_both(&self) -> bool {
        self.kept.is_some_and(|kept| kept.both)
    }

    /// Whether the second sums are those of whole bytes, of which the first ones, of low nibbles, are taken off at the end.
    fn has_whole_bytes(&self, q: &Quantized) -> bool {
        q.bits == 4 && most_both(self.usual) && !self.keeps_both()
    }

    /// The weights of unit `n` in the panel.
    fn at(&self, q: &Quantized, n: i64) -> Mem {
        Mem::at(self.right, n * q.unit_bytes())
    }

    /// What is kept of unit `n`.
    fn kept_at(a: &Asm, kept: Kept, n: i64) -> [Mem; 2] {
        let at = Mem::at(kept.at, Kept::offset(kept.both, n));
        [at, at.plus(a.isa.bytes())]
    }

    /// The weights of unit `n`, from the panel.
    fn take_out(&self, a: &mut Asm, q: &Quantized, n: i64) -> [V; 2] {
        let at = self.at(q, n);
        let first = a.vector_of(at);
        let bytes = if q.bits == 8 { 2 } else { 1 } * a.isa.bytes();
        for line in (0..bytes).step_by(LINE as usize) {
            a.prefetch(at.plus(line + AHEAD), false);
            a.prefetch_far(at.plus(line + FAR_AHEAD));
        }
        match q.bits {
            8 => [first, a.vector_of(at.plus(a.isa.bytes()))],
            _ if self.has_whole_bytes(q) => [a.binary(Op::And, first, LOW_NIBBLES), first],
            _ => nibbles(a, first),
        }
    }

    /// The same; they are kept.
    fn keep(&self, a: &mut Asm, q: &Quantized, kept: Kept, n: i64) -> [V; 2] {
        let w = self.take_out(a, q, n);
        let to = Span::kept_at(a, kept, n);
        (0..if kept.both { 2 } else { 1 }).for_each(|v| a.store_vector(to[v], w[v]));
        w
    }

    /// The same from where they were kept.
    fn take_kept(&self, a: &mut Asm, q: &Quantized, kept: Kept, n: i64) -> [V; 2] {
        let [low, high] = Span::kept_at(a, kept, n);
        let from = [low, if kept.both { high } else { self.at(q, n) }];
        let w = from.map(|at| a.vector_of(at));
        from.into_iter().for_each(|at| a.prefetch(at.plus(AHEAD), false));
        w
    }

    /// Moves behind `n` units.
    fn advance(&self, a: &mut Asm, q: &Quantized, n: i64) {
        advance(a, q, self.left, self.right, n);
        if let Some(kept) = self.kept {
            a.add_imm(kept.at, Kept::offset(kept.both, n));
        }
    }
}

/// Makes the i32 sums of a group from what they `begin` with, by row and vector, and hands those of each row to `finish`. The
/// operands and what is kept move behind the group.
///
/// Unpacking competes with the products for the units that multiply. So of 4 bits the high nibbles are not
/// taken out: products with whole bytes are the sums of the low nibbles and sixteen times those of the high ones.
pub fn wide_group(
    a: &mut Asm,
    q: &Quantized,
    s: &Shape,
    span: &Span,
    begin: impl Fn(&mut Asm, usize, usize) -> V,
    mut finish: impl FnMut(&mut Asm, usize, [V; 2]),
) {
    // A sum waits for the one before: low tiles keep several for different units.
    let sets = match s.rows {
        1 => 4,
        2 | 3 => 2,
        _ => 1,
    };
    // What the sums of a group of a row begin with differs by columns only through zero points.
    let same = q.groups > 1 && !q.corrects_columns();
    let whole_bytes = span.has_whole_bytes(q);
    let first = |a: &mut Asm, r: usize| match begin(a, r, 0) {
        // What a sum of high nibbles begins with comes last: the low ones are taken off whole.
        x if whole_bytes || same => [x, a.vector_of(x)],
        x => [x, begin(a, r, 1)],
    };
    let acc: Vec<Vec<[V; 2]>> = (0..sets)
        .map(|set| (0..s.rows).map(|r| if set == 0 { first(a, r) } else { [0; 2].map(|zero| a.vector_of(zero)) }).collect())
        .collect();
    let add_row = |a: &mut Asm, r: usize, n: i64, w: [V; 2]| {
        let x = a.broadcast(Mem::at(span.left, n * TILE_ROW + r as i64 * 4));
        for (&sum, w) in acc[n as usize % sets][r].iter().zip(w) {
            a.update(Op::DotBytes, sum, w, x);
        }
    };
    let more = s.rows < 4 || (span.keeps_both() && span.multiple % (2 * UNROLL) == 0);
    let unroll = if more { 2 * UNROLL } else { UNROLL };
    let whole = span.multiple % unroll == 0;
    let finishes_early = whole && span.keeps_both();
    let mut multiply = |a: &mut Asm, weights: &dyn Fn(&mut Asm, i64) -> [V; 2]| {
        let step = |a: &mut Asm, n: i64| {
            let w = weights(a, n);
            (0..s.rows).for_each(|r| add_row(a, r, n, w));
        };
        let advance = |a: &mut Asm, n: i64| span.advance(a, q, n);
        if !finishes_early {
            return a.unrolled(span.count, unroll, whole, step, advance);
        }
        a.add_imm(span.count, -unroll);
        a.unrolled(span.count, unroll, true, step, advance);
        (0..unroll - 1).for_each(|n| step(a, n));
        let w = weights(a, unroll - 1);
        for r in 0..s.rows + LATER {
            if r < s.rows {
                add_row(a, r, unroll - 1, w);
            }
            if let Some(r) = r.checked_sub(LATER) {
                finish(a, r, acc[0][r]);
            }
        }
        advance(a, unroll);
    };
    match span.kept {
        None => multiply(a, &|a, n| span.take_out(a, q, n)),
        Some(kept @ Kept { there: None, .. }) => multiply(a, &|a, n| span.take_kept(a, q, kept, n)),
        Some(kept @ Kept { there: Some(there), .. }) => {
            let (first, done) = (a.label(), a.label());
            a.compare_imm(there, 0);
            a.jump_if(Cond::Eq, first);
            multiply(a, &|a, n| span.take_kept(a, q, kept, n));
            a.jump(done);
            a.bind(first);
            multiply(a, &|a, n| span.keep(a, q, kept, n));
            a.bind(done);
        }
    }
    if finishes_early {
        return;
    }
    for (sums, others) in (0..s.rows).map(|r| (acc[0][r], acc[1..].iter().map(move |set| set[r]))) {
        for (x, y) in others.flat_map(|others| sums.into_iter().zip(others)) {
            a.binary_into(Op::AddD, x, x, y);
        }
    }
    if whole_bytes {
        for (r, &[low, high]) in acc[0].iter().enumerate() {
            a.binary_into(Op::SubD, high, high, low);
            let sum = a.unary_imm(Op::SarD, high, 4);
            let begin = begin(a, r, 1);
            a.binary_into(Op::AddD, high, sum, begin);
        }
    }
    acc[0].iter().enumerate().for_each(|(r, &sums)| finish(a, r, sums));
}

/// Moves both operands behind `n` units.
fn advance(a: &mut Asm, q: &Quantized, left: R, right: R, n: i64) {
    a.add_imm(left, n * TILE_ROW);
    a.add_imm(right, n * q.unit_bytes());
}
