//! Matrix products: for a panel of the right operand, one row tile after the other in registers over the
//! whole of k, then the epilogue over the sums of the tile.

use super::asm::{Cond, Mem, R, V};
use super::dequantized::{self, Codes};
use super::expr::{Base, Evaluator, Function, Lanes, supported};
use super::isa::{Isa, Op};
use super::pack::matrix_address;
use super::quantized;
use super::tile::{self, Product};
use crate::kernel::gemm::{CHUNK, Format, GROUP_TILES, Gemm, PANEL, RowZeros, TILE_ROWS};
use crate::kernel::nest::{Effect, Expr, ExprId, Reduction};
use crate::kernel::{Extent, Kernel};
use cranelift_entity::{EntityRef, SecondaryMap};
use tfc_ir::types::Elem;

const ELEMENT: i64 = 4;
const TILE_ROW: i64 = TILE_ROWS as i64 * ELEMENT;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// Whether this emitter can emit a product.
pub fn covers(kernel: &Kernel, g: &Gemm) -> bool {
    let lane_loop = g.batch.len() as u32 + 1;
    let units = matches!((&g.format, g.k), (Format::F32, _) | (Format::Dequantized(_) | Format::Quantized(_), Extent::Const(1..)));
    units
        && supported(kernel, &g.exprs, &g.effects, lane_loop)
        && g.effects
            .iter()
            .all(|e| matches!(e, Effect::Store(a, x) if a.strides[lane_loop as usize] == Extent::Const(1) && g.exprs[*x].1 == Elem::F32))
}

/// Emits a product.
pub fn emit(f: &mut Function, g: &Gemm, begin: R, end: R) {
    let height = (GROUP_TILES * TILE_ROWS) as i64;
    let sums = f.a.scratch(height * PANEL_ROW);
    let (depth, panel_row) = match &g.format {
        Format::F32 => (g.k, PANEL_ROW),
        Format::Dequantized(d) => (g.k, d.row_bytes()),
        Format::Quantized(q) => {
            let k = g.k.as_const().expect("weights have known sizes");
            (Extent::Const((k + 3) / 4), q.unit_bytes())
        }
    };
    f.tasks(begin, end, |f, t| task(f, g, t, sums, (depth, panel_row)));
}

/// A task, with room for the sums of its tiles; `depth` is k in elements of 4 bytes, `panel_row` the bytes of one in a panel.
fn task(f: &mut Function, g: &Gemm, task: R, sums: R, (depth, panel_row): (Extent, i64)) {
    let height = (GROUP_TILES * TILE_ROWS) as i64;
    let (m, n) = (f.extent(g.m), f.extent(g.n));
    let groups = ceil_div(f, m, height);
    let chunks = ceil_div(f, n, CHUNK as i64);
    let (number, group) = f.a.divide(task, groups);
    let (matrix, chunk) = f.a.divide(number, chunks);
    let first_row = f.a.times_imm(group, height);
    let rows = f.a.minus(m, first_row);
    let most = f.a.imm(height);
    let rows = f.a.min(rows, most);
    let column = f.a.times_imm(chunk, CHUNK as i64);
    let columns_end = f.a.lea(Mem::at(column, CHUNK as i64));
    let columns_end = f.a.min(columns_end, n);
    let k = f.extent(depth);
    let left = matrix_address(f, g.left.buffer, matrix, &g.batch, &g.left.batch, ELEMENT);
    let skipped = f.a.times(first_row, k);
    let skipped = f.a.times_imm(skipped, ELEMENT);
    f.a.add_into(left, skipped);
    let right = matrix_address(f, g.right.buffer, matrix, &g.batch, &g.right.batch, ELEMENT);
    let skipped = f.a.times(chunk, k);
    let skipped = f.a.times_imm(skipped, (CHUNK / PANEL) as i64 * panel_row);
    f.a.add_into(right, skipped);
    let codes = match &g.format {
        Format::Dequantized(d) => Some(Codes::of_columns(f, d, column)),
        _ => None,
    };
    let parameters = match &g.format {
        Format::F32 | Format::Dequantized(_) => None,
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
        Format::Quantized(q) if q.groups > 1 => Some(f.a.scratch(TILE_ROWS as i64 * PANEL_ROW)),
        _ => None,
    };
    let batch = split(f, matrix, &g.batch);

    // Panel by panel.
    let panel = f.a.label();
    f.a.bind(panel);
    match (&g.format, parameters) {
        (Format::Quantized(q), Some((row_sums, row_zeros, columns))) => {
            let units = depth.as_const().expect("weights have known sizes");
            let (tile_left, tile_sums, row_sums) = (f.a.copy(left), f.a.copy(sums), f.a.copy(row_sums));
            let row_zeros = row_zeros.map(|at| f.a.copy(at));
            tiles(
                f,
                g.m,
                rows,
                |f, h| {
                    let ints = ints.unwrap_or(tile_sums);
                    let o = quantized::Operands { left: tile_left, right, columns, row_sums, row_zeros, sums: tile_sums, ints };
                    quantized::product(f, q, units, h, &o);
                },
                |f| {
                    f.a.add_imm(tile_left, units * TILE_ROW);
                    f.a.add_imm(tile_sums, TILE_ROWS as i64 * PANEL_ROW);
                    f.a.add_imm(row_sums, q.groups * TILE_ROW);
                    if let Some(at) = row_zeros {
                        f.a.add_imm(at, TILE_ROW);
                    }
                },
            );
        }
        _ => match &codes {
            None => floats(f, g, left, right, None, rows, sums),
            Some(codes) => weights_as_floats(f, g, left, right, codes, rows, sums),
        },
    }
    let scales = match (&g.format, parameters) {
        (Format::Quantized(q), Some((.., columns))) if q.groups == 1 => Some(columns),
        _ => None,
    };
    epilogue(f, g, &Part { batch: &batch, first_row, rows, column, columns_end, sums, scales });
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

/// Runs `body` for the row tiles of `rows` rows, with the height that holds what is left of them, and `next` between tiles.
fn tiles(f: &mut Function, m: Extent, rows: R, body: impl Fn(&mut Function, usize), next: impl FnOnce(&mut Function)) {
    let left = f.a.copy(rows);
    let tile = f.a.label();
    f.a.bind(tile);
    tile::by_height(f, &tile::heights(m), left, body);
    next(f);
    f.a.add_imm(left, -(TILE_ROWS as i64));
    f.a.compare_imm(left, 0);
    f.a.jump_if(Cond::Gt, tile);
}

/// The f32 sums by a panel of quantized weights: of few rows by themselves, of others by blocks of f32.
fn weights_as_floats(f: &mut Function, g: &Gemm, left: R, right: R, codes: &Codes, rows: R, sums: R) {
    let Some((most, always)) = dequantized::few_rows(f.a.isa, g.m) else {
        return floats(f, g, left, right, Some(codes), rows, sums);
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
        floats(f, g, left, right, Some(codes), rows, sums);
    }
    f.a.bind(done);
}

/// Values of k that are multiplied at once: with more, the part of a panel that a register tile reads
/// would not stay in the first-level cache for the tiles of a task.
fn block(isa: Isa) -> i64 {
    if isa.evex() { 1024 } else { 256 }
}

/// The f32 sums of the row tiles of a task by a panel: block by block along k, strip by strip, tile by tile. A
/// panel of `codes` becomes one of f32 block by block.
fn floats(f: &mut Function, g: &Gemm, left: R, right: R, codes: Option<&Codes>, rows: R, sums: R) {
    let block = if codes.is_some() { dequantized::BLOCK } else { block(f.a.isa) };
    let one_block = matches!(g.k, Extent::Const(k) if k <= block);
    let strip_bytes = tile::register_tile(f.a.isa).1 as i64 * f.a.isa.bytes();
    // Blocks are multiples of every power of 2 that matters.
    let k_multiple = match g.k {
        Extent::Const(k) => 1 << k.trailing_zeros().min(8),
        Extent::Param(_) => 1,
    };
    let (block_left, rest) = (f.a.copy(left), f.extent(g.k));
    let unpack = codes.map(|c| c.panel(f, right));
    let block_right = f.a.copy(unpack.as_ref().map_or(right, |u| u.to));
    let tile_bytes = f.extent(g.k);
    let tile_bytes = f.a.times_imm(tile_bytes, TILE_ROW);
    if !one_block {
        let (at, zero) = (f.a.copy(sums), f.a.vector_of(0));
        let count = f.a.copy(rows);
        let round = f.a.label();
        f.a.bind(round);
        for i in (0..TILE_ROWS as i64 * PANEL_ROW).step_by(f.a.isa.bytes() as usize) {
            f.a.store_vector(Mem::at(at, i), zero);
        }
        f.a.add_imm(at, TILE_ROWS as i64 * PANEL_ROW);
        f.a.add_imm(count, -(TILE_ROWS as i64));
        f.a.compare_imm(count, 0);
        f.a.jump_if(Cond::Gt, round);
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
    let within = f.a.imm(0);
    let strips = f.a.label();
    f.a.bind(strips);
    let strip = f.a.plus(block_right, within);
    let (tile_left, tile_sums) = (f.a.copy(block_left), f.a.plus(sums, within));
    tiles(
        f,
        g.m,
        rows,
        |f, h| {
            let product = Product {
                left: tile_left,
                left_row: ELEMENT,
                left_k: TILE_ROW,
                right: strip,
                k: count,
                k_multiple,
                columns: strip_bytes / ELEMENT,
                sums: tile_sums,
                pitch: PANEL_ROW,
                accumulate: !one_block,
            };
            product.emit(f, h);
        },
        |f| {
            f.a.add_into(tile_left, tile_bytes);
            f.a.add_imm(tile_sums, TILE_ROWS as i64 * PANEL_ROW);
        },
    );
    if strip_bytes < PANEL_ROW {
        f.a.add_imm(within, strip_bytes);
        f.a.compare_imm(within, PANEL_ROW);
        f.a.jump_if(Cond::Lt, strips);
    }
    if !one_block {
        f.a.add_imm(block_left, block * TILE_ROW);
        if unpack.is_none() {
            f.a.add_imm(block_right, block * PANEL_ROW);
        }
        f.a.add_imm(rest, -block);
        f.a.jump(blocks);
    }
    f.a.bind(done);
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

/// Where a panel of a task is, and its sums.
struct Part<'a> {
    batch: &'a [R],
    first_row: R,
    rows: R,
    column: R,
    columns_end: R,
    sums: R,
    /// The scales of the panel, where the sums are i32.
    scales: Option<R>,
}

/// The epilogue of a panel: row by row, its vectors at once.
fn epilogue(f: &mut Function, g: &Gemm, p: &Part) {
    let vectors = PANEL as i64 / f.a.isa.lanes();
    if matches!(g.n, Extent::Const(n) if n % PANEL as i64 == 0) {
        return rows(f, g, p, &vec![Lanes::All; vectors as usize]);
    }
    let (partly, done) = (f.a.label(), f.a.label());
    let left = f.a.minus(p.columns_end, p.column);
    f.a.compare_imm(left, PANEL as i64);
    f.a.jump_if(Cond::Lt, partly);
    rows(f, g, p, &vec![Lanes::All; vectors as usize]);
    f.a.jump(done);
    f.a.bind(partly);
    let lanes = f.a.isa.lanes();
    let masks: Vec<Lanes> = (0..vectors).map(|v| Lanes::Some(f.lanes_among(left, v * lanes))).collect();
    rows(f, g, p, &masks);
    f.a.bind(done);
}

/// The rows of a panel, of which the lanes of each vector exist that are named.
fn rows(f: &mut Function, g: &Gemm, p: &Part, lanes: &[Lanes]) {
    let row_loop = g.batch.len();
    let lane_loop = row_loop as u32 + 1;
    let width = f.a.isa.lanes();
    let mut index = p.batch.to_vec();
    index.extend([p.first_row, p.column]);
    let mut shared = Evaluator::new(&g.exprs);
    shared.find_loads(f, |_| true, &index, Some(lane_loop));
    let stores: Vec<Base> = g
        .effects
        .iter()
        .map(|e| {
            let Effect::Store(to, x) = e else { unreachable!("products store") };
            Evaluator::base(f, to, g.exprs[*x].1, &index, Some(lane_loop))
        })
        .collect();
    // Addresses move from row to row.
    let mut moving: Vec<(R, Extent, i64)> = vec![];
    let accesses = g.exprs.iter().filter_map(|(id, (e, elem))| match e {
        Expr::Load(a) => Some((a, *elem, shared.loads[id].expect("loads have bases"))),
        _ => None,
    });
    let written = g.effects.iter().zip(&stores).map(|(e, &base)| match e {
        Effect::Store(a, x) => (a, g.exprs[*x].1, base),
        Effect::Reduce(..) => unreachable!("products store"),
    });
    for (access, elem, base) in accesses.chain(written) {
        moving.push((base.at, access.strides[row_loop], i64::from(elem.bits() / 8)));
    }
    // What is the same for all rows is computed before.
    let written: Vec<u32> = g.effects.iter().filter_map(|e| if let Effect::Store(a, _) = e { Some(a.buffer) } else { None }).collect();
    let mut fixed: SecondaryMap<ExprId, bool> = SecondaryMap::new();
    for (id, (expr, _)) in g.exprs.iter() {
        fixed[id] = match expr {
            Expr::Load(a) => a.strides[row_loop] == Extent::Const(0) && !written.contains(&a.buffer),
            Expr::Prim(_, args) => args.iter().all(|&a| fixed[a]),
            Expr::Float(_) | Expr::Int(_) | Expr::Extent(_) => true,
            Expr::Reduced(_) | Expr::Index(_) | Expr::CheckedIndex(..) => false,
        };
    }
    let mut vectors: Vec<(Evaluator, Option<V>)> = vec![];
    for (v, &kind) in lanes.iter().enumerate() {
        let mut e = shared.clone();
        (e.index, e.lanes) = (Some((p.column, v as i64 * width)), kind);
        for id in g.exprs.keys().filter(|&id| fixed[id] && matches!(g.exprs[id].0, Expr::Load(_) | Expr::Prim(..))) {
            e.evaluate(f, id);
        }
        let scale = p.scales.map(|s| f.a.vector_of(Mem::at(s, v as i64 * width * ELEMENT)));
        vectors.push((e, scale));
    }
    let (left, sum) = (f.a.copy(p.rows), f.a.copy(p.sums));
    let head = f.a.label();
    f.a.bind(head);
    for (v, (e, scale)) in vectors.iter().enumerate() {
        let mut e = e.clone();
        let at = Mem::at(sum, v as i64 * width * ELEMENT);
        let dot = match *scale {
            None => f.a.vector_of(at),
            Some(scale) => {
                let x = f.a.unary(Op::CvtDq2Ps, at);
                f.a.fma(x, scale, 0.0)
            }
        };
        e.reduced[Reduction::new(0)] = Some(dot);
        for (effect, &to) in g.effects.iter().zip(&stores) {
            let Effect::Store(_, x) = effect else { unreachable!("products store") };
            e.store(f, to, *x);
        }
    }
    f.a.add_imm(sum, PANEL_ROW);
    for (at, stride, bytes) in moving {
        match stride {
            Extent::Const(0) => {}
            Extent::Const(n) => f.a.add_imm(at, n * bytes),
            Extent::Param(_) => {
                let step = f.extent(stride);
                let step = f.a.times_imm(step, bytes);
                f.a.add_into(at, step);
            }
        }
    }
    f.a.add_imm(left, -1);
    f.a.compare_imm(left, 0);
    f.a.jump_if(Cond::Gt, head);
}
