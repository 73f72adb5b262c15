//! Matrix products: for a panel of the right operand, one row tile after the other in registers over the
//! whole of k, then the epilogue over its sums. With 32 registers the sums of a tile by a panel are in
//! registers until their epilogue; otherwise, and where k has several blocks or groups, they wait in memory.

use super::asm::{Asm, Cond, Mem, R, V};
use super::dequantized::{self, Codes};
use super::epilogue::Epilogue;
use super::expr::{Function, supported};
use super::floats::is_float;
use super::isa::Isa;
use super::matrix;
use super::pack::matrix_address;
use super::quantized::{self, Block, Operands};
use super::row;
use super::strip;
use super::tile::{self, Product};
use crate::kernel::gemm::{self, CHUNK, Format, GROUP_ROWS, Gemm, PANEL, Quantized, RowZeros, TILE_ROWS};
use crate::kernel::nest::{Effect, Expr};
use crate::kernel::{Extent, Kernel};
use tfc_ir::types::Elem;

const ELEMENT: i64 = 4;
const TILE_ROW: i64 = TILE_ROWS as i64 * ELEMENT;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// Whether this emitter can emit a product. Bytes are read by whole vectors only: not every instruction set has masks for
/// them.
pub fn covers(kernel: &Kernel, g: &Gemm) -> bool {
    let lane_loop = g.batch.len() as u32 + 1;
    let units = matches!((&g.format, g.k), (Format::Floats(Elem::F32), _) | (_, Extent::Const(1..)));
    let whole = matches!(g.n, Extent::Const(n) if n % PANEL as i64 == 0);
    let fits = |elem: Elem| is_float(elem) || (whole && elem == Elem::I8);
    let reads = |(expr, elem): &(Expr, Elem)| match expr {
        Expr::Load(a) => fits(*elem) || a.strides[lane_loop as usize] == Extent::Const(0),
        _ => true,
    };
    units
        && supported(kernel, &g.exprs, &g.effects, lane_loop)
        && g.exprs.values().all(reads)
        && g.effects.iter().all(|e| matches!(e, Effect::Store(a, _) if a.strides[lane_loop as usize] == Extent::Const(1)))
}

/// Emits a product.
pub fn emit(f: &mut Function, g: &Gemm, begin: R, end: R) {
    let height = GROUP_ROWS as i64;
    let sums = f.a.scratch(height * PANEL_ROW);
    let (depth, panel_row) = match &g.format {
        Format::Floats(elem) => (g.k, PANEL as i64 * bytes_of(*elem)),
        Format::Dequantized(d) => (g.k, d.row_bytes()),
        Format::Quantized(q) => {
            let k = g.k.as_const().expect("weights have known sizes");
            (Extent::Const((k + 3) / 4), q.unit_bytes())
        }
    };
    let size = (depth, panel_row);
    let all_tasks = |f: &mut Function| match &g.format {
        Format::Quantized(q) if g.left_pitch.is_some() => matrix::emit(f, g, q, begin, end),
        _ => f.tasks(begin, end, |f, t| task(f, g, t, sums, size, None)),
    };
    let Some(row) = Alone::of(f, g, size) else {
        return all_tasks(f);
    };
    if !g.batch.is_empty() {
        return f.tasks(begin, end, |f, t| task(f, g, t, sums, size, Some((&row, None))));
    }
    let (many, done) = (f.a.label(), f.a.label());
    if let Extent::Param(_) = g.m {
        let m = f.extent(g.m);
        f.a.compare_imm(m, 1);
        f.a.jump_if(Cond::Ne, many);
    }
    f.a.compare(begin, end);
    f.a.jump_if(Cond::Ge, done);
    let left = f.buffer(g.left.buffer);
    row.bring_together(f, left);
    task(f, g, begin, sums, size, Some((&row, Some(end))));
    if let Extent::Param(_) = g.m {
        f.a.jump(done);
        f.a.bind(many);
        all_tasks(f);
    }
    f.a.bind(done);
}

/// A task, with room for the sums of its tiles; `depth` is k in elements of 4 bytes, `panel_row` the bytes of one in a panel.
/// A single row may do all tasks up to another at once, which are neighbours if there is one matrix: then its units are together.
fn task(f: &mut Function, g: &Gemm, task: R, sums: R, (depth, panel_row): (Extent, i64), alone: Option<(&Alone, Option<R>)>) {
    let (m, n) = (f.extent(g.m), f.extent(g.n));
    let (groups, height) = (f.extent(g.row_groups), group_rows(f, g.m, g.row_groups, TILE_ROWS));
    let chunks = ceil_div(f, n, CHUNK as i64);
    let (number, chunk) = f.a.divide(task, chunks);
    let (matrix, group) = f.a.divide(number, groups);
    let first_row = f.a.times(group, height);
    let rows = f.a.minus(m, first_row);
    let rows = f.a.min(rows, height);
    let column = f.a.times_imm(chunk, CHUNK as i64);
    let columns_end = match alone {
        Some((_, Some(end))) => f.a.times_imm(end, CHUNK as i64),
        _ => f.a.lea(Mem::at(column, CHUNK as i64)),
    };
    let columns_end = f.a.min(columns_end, n);
    let k = f.extent(depth);
    let left = matrix_address(f, g.left.buffer, matrix, &g.batch, &g.left.batch, ELEMENT);
    let skipped = match g.left_pitch {
        Some(pitch) => f.a.times_imm(first_row, pitch),
        None => f.a.times(first_row, k),
    };
    let skipped = f.a.times_imm(skipped, ELEMENT);
    f.a.add_into(left, skipped);
    let right_element = if let Format::Floats(elem) = g.format { bytes_of(elem) } else { ELEMENT };
    let right = matrix_address(f, g.right.buffer, matrix, &g.batch, &g.right.batch, right_element);
    let skipped = f.a.times(chunk, k);
    let skipped = f.a.times_imm(skipped, (CHUNK / PANEL) as i64 * panel_row);
    f.a.add_into(right, skipped);
    let parameters = match &g.format {
        Format::Floats(_) | Format::Dequantized(_) => None,
        Format::Quantized(q) => {
            // The sums of rows are ordered like the row tiles, which lie one behind the other.
            let begin = f.buffer(g.left.buffer);
            let before = f.a.minus(left, begin);
            let tile_bytes = f.a.times_imm(k, TILE_ROW);
            let (tiles, _) = f.a.divide(before, tile_bytes);
            let row_sums = f.buffer(q.sums);
            let skipped = f.a.times_imm(tiles, q.groups * TILE_ROW);
            f.a.add_into(row_sums, skipped);
            let columns = f.buffer(q.columns);
            let skipped = f.a.times_imm(column, q.groups * q.column_bytes() / PANEL as i64);
            f.a.add_into(columns, skipped);
            let row_zeros = match q.row_zeros {
                RowZeros::Each(buffer) => {
                    let at = f.buffer(buffer);
                    let skipped = f.a.times_imm(tiles, TILE_ROW);
                    f.a.add_into(at, skipped);
                    Some(at)
                }
                RowZeros::None | RowZeros::Same => None,
            };
            Some((row_sums, row_zeros, columns))
        }
    };
    let ints = match &g.format {
        Format::Quantized(q) if q.groups > 1 && !f.a.isa.has_vnni() => Some(f.a.scratch(TILE_ROWS as i64 * PANEL_ROW)),
        _ => None,
    };
    let mut index = split(f, matrix, &g.batch);
    index.extend([first_row, column]);
    if let Some((row, together)) = alone {
        if together.is_none() {
            row.bring_together(f, left);
        }
        return match (&g.format, parameters) {
            (Format::Quantized(q), Some((row_sums, row_zeros, columns))) => {
                let ints = ints.unwrap_or(sums);
                let group_sums = if g.left_pitch.is_some() { ELEMENT } else { TILE_ROW };
                let o = Operands { left: row.left, right, columns, row_sums, group_sums, row_zeros, sums, ints };
                let scales = (q.groups == 1).then_some(columns);
                row.task(f, g, &index, columns_end, (right, columns), sums, scales, |f, count| {
                    row::product(f, q, row.units, count, &o);
                });
            }
            (Format::Dequantized(d), _) => {
                let columns = dequantized::columns(f, d, column);
                row.task(f, g, &index, columns_end, (right, columns), sums, None, |f, count| {
                    dequantized::single(f, d, row.units, count, (row.left, right, columns, sums));
                });
            }
            _ => unreachable!("rows are alone with quantized weights"),
        };
    }
    let codes = match &g.format {
        Format::Dequantized(d) => {
            let columns = dequantized::columns(f, d, column);
            Some(Codes::new(f, d, columns))
        }
        _ => None,
    };

    // Panel by panel.
    let panel = f.a.label();
    f.a.bind(panel);
    match (&g.format, parameters) {
        (Format::Quantized(q), Some((row_sums, row_zeros, columns))) => {
            let epilogue = Epilogue::new(f, g, &index, columns_end, (q.groups == 1).then_some(columns));
            let units = depth.as_const().expect("weights have known sizes");
            let ints = ints.unwrap_or(sums);
            let o = Operands { left, right, columns, row_sums, group_sums: TILE_ROW, row_zeros, sums, ints };
            if f.a.isa.evex() {
                integers(f, g, q, units, &o, rows, &epilogue);
            } else {
                strip::product(f, q, g.m, units, &o, rows);
                epilogue.rows(f, sums, rows);
            }
        }
        _ => {
            let epilogue = Epilogue::new(f, g, &index, columns_end, None);
            match &codes {
                None => floats(f, g, left, right, None, rows, sums, Some(&epilogue)),
                Some(codes) => {
                    weights_as_floats(f, g, left, right, codes, rows, sums);
                    epilogue.rows(f, sums, rows);
                }
            }
        }
    }
    let k = f.extent(depth);
    let panel_bytes = f.a.times_imm(k, panel_row);
    f.a.add_into(right, panel_bytes);
    if let (Format::Quantized(q), Some((.., columns))) = (&g.format, parameters) {
        f.a.add_imm(columns, q.groups * q.column_bytes());
    }
    if let Some(codes) = &codes {
        codes.next_panel(f);
    }
    f.a.add_imm(column, PANEL as i64);
    f.a.compare(column, columns_end);
    f.a.jump_if(Cond::Lt, panel);
}

/// The most units of a single row that are brought together on the stack.
const MOST_ALONE: i64 = 16384;

/// A single row of a product with quantized weights.
struct Alone {
    /// Its units: elements of 4 bytes.
    units: i64,
    /// Where they are neighbours.
    left: R,
    /// Whether they always are, in rows.
    in_rows: bool,
    /// How many panels are read at once.
    at_once: i64,
    /// Bytes of a panel.
    panel_bytes: i64,
    /// Bytes of what its columns have.
    column_bytes: i64,
}

impl Alone {
    /// A product that has a single row, or may have, with room for its units; if there are not too many, and if they are brought
    /// together once for all tasks where other numbers of rows are possible. Read by panels from a tile, they would be in the way
    /// of the weights.
    fn of(f: &mut Function, g: &Gemm, (depth, panel_row): (Extent, i64)) -> Option<Alone> {
        let (at_once, column_bytes) = match &g.format {
            Format::Floats(_) => return None,
            Format::Dequantized(d) => (dequantized::panels(f.a.isa), d.groups * d.column_bytes()),
            Format::Quantized(q) => (row::panels(f.a.isa, q), q.groups * q.column_bytes()),
        };
        let possible = match g.m {
            Extent::Const(m) => m == 1,
            Extent::Param(_) => g.batch.is_empty(),
        };
        let units = depth.as_const().filter(|&units| possible && units <= MOST_ALONE)?;
        let in_rows = g.left_pitch.is_some();
        let left = if in_rows { f.a.r() } else { f.a.scratch(units * ELEMENT) };
        Some(Alone { units, left, in_rows, at_once, panel_bytes: units * panel_row, column_bytes })
    }

    /// Copies the units from the first row of a tile, unless they are together.
    fn bring_together(&self, f: &mut Function, tile: R) {
        if self.in_rows {
            return f.a.copy_into(self.left, tile);
        }
        let (from, i) = (f.a.copy(tile), f.a.imm(0));
        let end = f.a.imm(self.units);
        let copy = |a: &mut Asm, n: i64| {
            for unit in 0..n {
                let x = a.load_word(Mem::at(from, unit * TILE_ROW));
                a.store_word(Mem::indexed(self.left, i, 4, unit * ELEMENT), x);
            }
            a.add_imm(from, n * TILE_ROW);
        };
        f.a.each(i, end, 8, |a| copy(a, 8));
        f.a.each(i, end, 1, |a| copy(a, 1));
    }

    /// The columns of a task: as many panels as are read at once, or one, by `product`, which leaves their sums at `sums`, then
    /// their epilogues. `index` and operands, the weights and what columns have, are those of the first panel and move on;
    /// `scales` are those of sums that are i32.
    #[expect(clippy::too_many_arguments, reason = "the operands of a product and of its epilogue")]
    fn task(
        &self,
        f: &mut Function,
        g: &Gemm,
        index: &[R],
        columns_end: R,
        (right, columns): (R, R),
        sums: R,
        scales: Option<R>,
        product: impl Fn(&mut Function, i64),
    ) {
        let column = index[index.len() - 1];
        let (panels, few, panel) = (f.a.label(), f.a.label(), f.a.label());
        f.a.bind(panels);
        let (count, one) = (f.a.imm(self.at_once), f.a.imm(1));
        let at = f.a.copy(sums);
        let width = self.at_once * PANEL as i64;
        let always = CHUNK as i64 % width == 0 && matches!(g.n, Extent::Const(n) if n % width == 0);
        if !always {
            let last = f.a.lea(Mem::at(column, width - PANEL as i64));
            f.a.compare(last, columns_end);
            f.a.jump_if(Cond::Ge, few);
        }
        product(f, self.at_once);
        if !always {
            f.a.jump(panel);
            f.a.bind(few);
            f.a.copy_into(count, one);
            product(f, 1);
        }
        f.a.bind(panel);
        let epilogue = Epilogue::new(f, g, index, columns_end, scales);
        epilogue.rows(f, at, one);
        f.a.add_imm(at, PANEL_ROW);
        f.a.add_imm(right, self.panel_bytes);
        f.a.add_imm(columns, self.column_bytes);
        f.a.add_imm(column, PANEL as i64);
        f.a.count_down(count, 1, panel);
        f.a.compare(column, columns_end);
        f.a.jump_if(Cond::Lt, panels);
    }
}

/// The f32 sums by a panel of quantized weights: of few rows by themselves, of others by blocks of f32.
fn weights_as_floats(f: &mut Function, g: &Gemm, left: R, right: R, codes: &Codes, rows: R, sums: R) {
    let Some((most, always)) = dequantized::few_rows(f.a.isa, g) else {
        return floats(f, g, left, right, Some(codes), rows, sums, None);
    };
    let k = g.k.as_const().expect("weights have known sizes");
    let (many, done) = (f.a.label(), f.a.label());
    if !always {
        f.a.compare_imm(rows, most);
        f.a.jump_if(Cond::Gt, many);
    }
    let heights: Vec<usize> = tile::heights(g.m).into_iter().filter(|&h| h as i64 <= most).collect();
    tile::by_height(f, &heights, rows, |f, h| codes.few(f, k, h, left, right, sums));
    if !always {
        f.a.jump(done);
        f.a.bind(many);
        floats(f, g, left, right, Some(codes), rows, sums, None);
    }
    f.a.bind(done);
}

/// Values of k that are multiplied at once. The part of a panel that a register tile reads comes from the second-level
/// cache for every tile, in time for it; with more, it would not stay there for the tiles of a task.
fn block(isa: Isa) -> i64 {
    if isa.evex() { 1536 } else { 768 }
}

/// With 32 registers: the sums of the row tiles of a task by a panel of quantized weights, of `units` units: block by block along
/// k, tile by tile, and their epilogue.
fn integers(f: &mut Function, g: &Gemm, q: &Quantized, units: i64, o: &Operands, rows: R, epilogue: &Epilogue) {
    let block = &Block::new(f, q, g.m, units);
    let one_block = block.units == units;
    let (left, right, columns, row_sums) = (f.a.copy(o.left), f.a.copy(o.right), f.a.copy(o.columns), f.a.copy(o.row_sums));
    let of_block = Operands { left, right, columns, row_sums, ..*o };
    let rest = f.a.imm(units);
    if !one_block {
        quantized::begin_in_memory(f, q, o, &[0, f.a.isa.lanes()], rows);
    }
    let blocks = f.a.label();
    f.a.bind(blocks);
    let most = f.a.imm(block.units);
    let count = f.a.min(rest, most);
    block.begin(f);
    let (left, sums, row_sums) = (f.a.copy(of_block.left), f.a.copy(o.sums), f.a.copy(of_block.row_sums));
    let row_zeros = o.row_zeros.map(|at| f.a.copy(at));
    let of_tile = Operands { left, row_sums, row_zeros, sums, ..of_block };
    tile::tiles(
        f,
        g.m,
        rows,
        |f, h, left| {
            if one_block {
                epilogue.fetch(f, h);
            }
            let sums = if q.groups == 1 {
                quantized::one_group(f, q, (block, count), h, &of_tile, !one_block)
            } else {
                quantized::several_groups(f, q, (block, count), h, &of_tile, !one_block);
                if !one_block {
                    return;
                }
                quantized::load(f, &of_tile, h)
            };
            if one_block {
                epilogue.tile(f, (0, h), &sums, left);
            } else {
                quantized::store(f, &of_tile, &sums);
            }
        },
        |f| {
            of_tile.next_tile(&mut f.a, q, units);
            if one_block {
                epilogue.advance(f, TILE_ROWS as i64);
            } else {
                f.a.add_imm(sums, TILE_ROWS as i64 * PANEL_ROW);
            }
        },
    );
    if !one_block {
        of_block.next_block(&mut f.a, q, block.units);
        f.a.count_down(rest, block.units, blocks);
    }
    if !one_block {
        epilogue.rows(f, o.sums, rows);
    }
}

/// The f32 sums of the row tiles of a task by a panel of floats: block by block along k, strip by strip, tile by tile. A
/// panel of `codes` becomes one of f32 block by block. The epilogue follows, or the sums stay in memory.
#[expect(clippy::too_many_arguments, reason = "the operands of a product and where its sums go")]
fn floats(f: &mut Function, g: &Gemm, left: R, right: R, codes: Option<&Codes>, rows: R, sums: R, epilogue: Option<&Epilogue>) {
    let block = if codes.is_some() { dequantized::BLOCK } else { block(f.a.isa) };
    let one_block = matches!(g.k, Extent::Const(k) if k <= block);
    let in_registers = epilogue.filter(|_| one_block && f.a.isa.evex());
    let strip_bytes = tile::register_tile(f.a.isa).1 as i64 * f.a.isa.bytes();
    let right_elem = if let Format::Floats(elem) = g.format { elem } else { Elem::F32 };
    let panel_row = PANEL as i64 * bytes_of(right_elem);
    // Blocks are multiples of every power of 2 that matters.
    let k_multiple = match g.k {
        Extent::Const(k) => 1 << k.trailing_zeros().min(8),
        Extent::Param(_) => 1,
    };
    let (block_left, rest) = (f.a.copy(left), f.extent(g.k));
    let unpack = codes.map(|c| c.panel(f, right));
    let block_right = f.a.copy(unpack.as_ref().map_or(right, |u| u.to));
    let (left_row, left_k) = g.left_pitch.map_or((ELEMENT, TILE_ROW), |pitch| (pitch * ELEMENT, ELEMENT));
    let tile_bytes = match g.left_pitch {
        Some(pitch) => f.a.imm(pitch * TILE_ROW),
        None => {
            let k = f.extent(g.k);
            f.a.times_imm(k, TILE_ROW)
        }
    };
    let dense_rows = one_block && g.left_pitch.is_some() && g.left_pitch == g.k.as_const();
    if !one_block {
        let (at, zero) = (f.a.copy(sums), f.a.vector_of(0));
        let count = f.a.copy(rows);
        let round = f.a.label();
        f.a.bind(round);
        for i in (0..TILE_ROWS as i64 * PANEL_ROW).step_by(f.a.isa.bytes() as usize) {
            f.a.store_vector(Mem::at(at, i), zero);
        }
        f.a.add_imm(at, TILE_ROWS as i64 * PANEL_ROW);
        f.a.count_down(count, TILE_ROWS as i64, round);
    }
    let (blocks, done) = (f.a.label(), f.a.label());
    f.a.bind(blocks);
    let count = if one_block {
        f.a.copy(rest)
    } else {
        f.a.compare_imm(rest, 0);
        f.a.jump_if(Cond::Le, done);
        let most = f.a.imm(block);
        f.a.min(rest, most)
    };
    if let Some(unpack) = &unpack {
        unpack.emit(f, count);
    }
    // The next block, or the next panel, lies behind this one. The first tiles fetch it.
    let bytes = f.a.times_imm(count, panel_row);
    let next = unpack.is_none().then(|| f.a.plus(block_right, bytes));
    let next_end = next.map(|next| f.a.plus(next, bytes));
    let within = f.a.imm(0);
    let strips = f.a.label();
    f.a.bind(strips);
    // The strip of the sums, which are f32, and that of the panel.
    let before = if right_elem == Elem::F32 { within } else { f.a.half(within) };
    let strip = f.a.plus(block_right, before);
    let (tile_left, tile_sums) = (f.a.copy(block_left), f.a.plus(sums, within));
    tile::tiles(
        f,
        g.m,
        rows,
        |f, h, left| {
            let product = Product {
                left: tile_left,
                left_row,
                left_k,
                right: strip,
                right_elem,
                k: count,
                k_multiple,
                columns: strip_bytes / ELEMENT,
                sums: tile_sums,
                pitch: PANEL_ROW,
                accumulate: !one_block,
                next,
                next_rows: dense_rows.then(|| f.a.plus(tile_left, tile_bytes)),
            };
            if let Some(epilogue) = in_registers {
                epilogue.fetch(f, h);
                let sums = product.strip(f, (0, h), (0, 2));
                let rows: Vec<[V; 2]> = sums.chunks(2).map(|row| [row[0], row[1]]).collect();
                epilogue.tile(f, (0, h), &rows, left);
            } else {
                product.emit(f, h);
            }
        },
        |f| {
            f.a.add_into(tile_left, tile_bytes);
            if let (Some(next), Some(end)) = (next, next_end) {
                let at = f.a.min(next, end);
                f.a.copy_into(next, at);
            }
            match in_registers {
                Some(epilogue) => epilogue.advance(f, TILE_ROWS as i64),
                None => f.a.add_imm(tile_sums, TILE_ROWS as i64 * PANEL_ROW),
            }
        },
    );
    if strip_bytes < PANEL_ROW {
        f.a.add_imm(within, strip_bytes);
        f.a.compare_imm(within, PANEL_ROW);
        f.a.jump_if(Cond::Lt, strips);
    }
    if !one_block {
        f.a.add_imm(block_left, block * left_k);
        if unpack.is_none() {
            f.a.add_imm(block_right, block * panel_row);
        }
        f.a.add_imm(rest, -block);
        f.a.jump(blocks);
    }
    f.a.bind(done);
    if let (Some(epilogue), None) = (epilogue, in_registers) {
        epilogue.rows(f, sums, rows);
    }
}

/// Bytes of a float in memory.
fn bytes_of(elem: Elem) -> i64 {
    i64::from(elem.bits() / 8)
}

/// The rows of each group but the last, which are whole tiles of `tile` rows.
pub fn group_rows(f: &mut Function, m: Extent, groups: Extent, tile: usize) -> R {
    if let Some(rows) = gemm::group_rows(m, groups, tile) {
        return f.a.imm(rows);
    }
    let (m, groups) = (f.extent(m), f.extent(groups));
    let tiles = ceil_div(f, m, tile as i64);
    let up = f.a.plus(tiles, groups);
    let up = f.a.lea(Mem::at(up, -1));
    let (tiles, _) = f.a.divide(up, groups);
    f.a.times_imm(tiles, tile as i64)
}

/// `x / by`, rounded up.
pub fn ceil_div(f: &mut Function, x: R, by: i64) -> R {
    let up = f.a.lea(Mem::at(x, by - 1));
    let by = f.a.imm(by);
    f.a.divide(up, by).0
}

/// The indices of the batch loops.
fn split(f: &mut Function, matrix: R, batch: &[Extent]) -> Vec<R> {
    let mut rest = matrix;
    let mut out = vec![];
    for (n, &extent) in batch.iter().enumerate().rev() {
        if n == 0 {
            out.push(rest);
            break;
        }
        let extent = f.extent(extent);
        let (q, r) = f.a.divide(rest, extent);
        rest = q;
        out.push(r);
    }
    out.reverse();
    out
}
