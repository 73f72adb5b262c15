//! The epilogues of products: expressions over the sums of a panel, in registers or in memory, and the stores of
//! their results.

use super::asm::{Cond, Mem, R, Src, V};
use super::expr::{Base, Evaluator, Function, Lanes};
use super::isa::Op;
use super::tile;
use crate::kernel::Extent;
use crate::kernel::gemm::{Gemm, PANEL, TILE_ROWS};
use crate::kernel::nest::{Access, Effect, Expr, ExprId, Reduction};
use cranelift_entity::{EntityRef, SecondaryMap};
use tfc_ir::types::Elem;

const ELEMENT: i64 = 4;
const PANEL_ROW: i64 = PANEL as i64 * ELEMENT;

/// From row to row of an access, in bytes.
#[derive(Clone, Copy)]
enum Step {
    Const(i64),
    Register(R),
}

/// What is the same for all rows of a vector, and its scales.
pub type Vector<'a> = (Evaluator<'a>, Option<V>);

/// The epilogue of the rows of a task by a panel.
pub struct Epilogue<'a> {
    g: &'a Gemm,
    /// Loads of the rows that come next.
    loads: Evaluator<'a>,
    /// Stores of the rows that come next.
    stores: Vec<Base>,
    /// By buffer access: those of loads, then of stores.
    steps: Vec<Step>,
    /// What is the same for all rows.
    fixed: Vec<ExprId>,
    /// Loads that are the same for all columns of a row.
    of_row: Vec<ExprId>,
    column: R,
    columns_end: R,
    /// The scales of the panel, where the sums are i32.
    scales: Option<R>,
}

impl<'a> Epilogue<'a> {
    /// Finds the accesses; `index` is that of the first row and column.
    pub fn new(f: &mut Function, g: &'a Gemm, index: &[R], columns_end: R, scales: Option<R>) -> Epilogue<'a> {
        let row_loop = g.batch.len();
        let lane_loop = Some(row_loop as u32 + 1);
        let mut loads = Evaluator::new(&g.exprs);
        loads.find_loads(f, |_| true, index, lane_loop);
        let stores: Vec<Base> = stored(g).map(|(to, x)| Evaluator::base(f, to, g.exprs[x].1, index, lane_loop)).collect();
        let read = g.exprs.iter().filter(|&(id, _)| loads.loads[id].is_some());
        let read = read.filter_map(|(_, (e, elem))| if let Expr::Load(a) = e { Some((a, *elem)) } else { None });
        let written = stored(g).map(|(a, x)| (a, g.exprs[x].1));
        let steps = read
            .chain(written)
            .map(|(access, elem)| {
                let bytes = i64::from(elem.bits() / 8);
                match access.strides[row_loop] {
                    Extent::Const(n) if i32::try_from(n.saturating_mul(bytes * TILE_ROWS as i64)).is_ok() => Step::Const(n * bytes),
                    stride => {
                        let stride = f.extent(stride);
                        Step::Register(f.a.times_imm(stride, bytes))
                    }
                }
            })
            .collect();
        let mut same: SecondaryMap<ExprId, bool> = SecondaryMap::new();
        for (id, (expr, _)) in g.exprs.iter() {
            same[id] = match expr {
                Expr::Load(a) => a.strides[row_loop] == Extent::Const(0) && stored(g).all(|(to, _)| to.buffer != a.buffer),
                Expr::Prim(_, args) => args.iter().all(|&a| same[a]),
                Expr::Float(_) | Expr::Int(_) | Expr::Extent(_) => true,
                Expr::Reduced(_) | Expr::Index(_) | Expr::CheckedIndex(..) => false,
            };
        }
        let of_row = loads.loads.iter().filter(|(id, base)| base.is_some_and(|b| !b.moves) && !same[*id]).map(|(id, _)| id).collect();
        let fixed = g.exprs.keys().filter(|&id| same[id] && matches!(g.exprs[id].0, Expr::Load(_) | Expr::Prim(..))).collect();
        Epilogue { g, loads, stores, steps, fixed, of_row, column: index[row_loop + 1], columns_end, scales }
    }

    /// Emits the body for a whole panel, and where there are others for the lanes that exist.
    fn by_lanes(&self, f: &mut Function, mut body: impl FnMut(&mut Function, &[Lanes])) {
        let lanes = f.a.isa.lanes();
        let vectors = PANEL as i64 / lanes;
        let whole = vec![Lanes::All; vectors as usize];
        if matches!(self.g.n, Extent::Const(n) if n % PANEL as i64 == 0) {
            return body(f, &whole);
        }
        let (partly, done) = (f.a.label(), f.a.label());
        let left = f.a.minus(self.columns_end, self.column);
        f.a.compare_imm(left, PANEL as i64);
        f.a.jump_if(Cond::Lt, partly);
        body(f, &whole);
        f.a.jump(done);
        f.a.bind(partly);
        let masks: Vec<Lanes> = (0..vectors).map(|v| Lanes::Some(f.lanes_among(left, v * lanes))).collect();
        body(f, &masks);
        f.a.bind(done);
    }

    /// What is the same for all rows of a vector, and its scales.
    fn vector(&self, f: &mut Function, v: usize, lanes: Lanes) -> Vector<'a> {
        let first = v as i64 * f.a.isa.lanes();
        let mut e = self.loads.clone();
        (e.index, e.lanes) = (Some((self.column, first)), lanes);
        for &id in &self.fixed {
            e.evaluate(f, id);
        }
        let scale = self.scales.map(|s| f.a.vector_of(Mem::at(s, first * ELEMENT)));
        (e, scale)
    }

    /// The accesses of an evaluator and of stores in the order of the steps.
    fn accesses<'b>(&self, e: &'b mut Evaluator<'a>, stores: &'b mut [Base]) -> impl Iterator<Item = &'b mut Base> {
        e.loads.values_mut().flatten().chain(stores)
    }

    /// Stores a vector of results; the sum is in a register or in memory.
    fn store(&self, f: &mut Function, mut e: Evaluator<'a>, stores: &[Base], sum: Src, scale: Option<V>) {
        self.find_dot(f, &mut e, sum, scale);
        for ((_, x), &to) in stored(self.g).zip(stores) {
            e.store(f, to, x);
        }
    }

    /// The dot products of a vector.
    fn find_dot(&self, f: &mut Function, e: &mut Evaluator<'a>, sum: Src, scale: Option<V>) {
        let dot = match scale {
            None => f.a.vector_of(sum),
            Some(scale) => {
                let x = f.a.unary(Op::CvtDq2Ps, sum);
                let zero = f.a.vector_of(0);
                f.a.fma(x, scale, zero)
            }
        };
        e.reduced[Reduction::new(0)] = Some(dot);
    }

    /// Rows of a tile of some height, from the `first` on, with their sums in registers; `rows` rows are left with those of
    /// the whole tile, which the accesses stay at.
    pub fn tile(&self, f: &mut Function, (first, height): (usize, usize), sums: &[[V; 2]], rows: R) {
        let sure = tile::sure_rows(self.g.m, height);
        self.by_lanes(f, |f, lanes| {
            for (v, &kind) in lanes.iter().enumerate() {
                let (mut e, scale) = self.vector(f, v, kind);
                let mut stores = self.stores.clone();
                for (base, step) in self.accesses(&mut e, &mut stores).zip(&self.steps) {
                    match *step {
                        Step::Const(n) => base.disp += first as i64 * n,
                        Step::Register(n) => {
                            let skipped = f.a.times_imm(n, first as i64);
                            base.at = f.a.plus(base.at, skipped);
                        }
                    }
                }
                let done = f.a.label();
                for (r, sums) in (first..).zip(sums) {
                    if r >= sure {
                        f.a.compare_imm(rows, r as i64);
                        f.a.jump_if(Cond::Le, done);
                    }
                    self.store(f, e.clone(), &stores, sums[v].into(), scale);
                    for (base, step) in self.accesses(&mut e, &mut stores).zip(&self.steps) {
                        match *step {
                            Step::Const(n) => base.disp += n,
                            Step::Register(n) => f.a.add_into(base.at, n),
                        }
                    }
                }
                f.a.bind(done);
            }
        });
    }

    /// Fetches what the next rows read and write: a row is far from the one before, where no hardware looks ahead.
    pub fn fetch(&self, f: &mut Function, height: usize) {
        let line = 64;
        let width = |elem: Elem| PANEL as i64 * i64::from(elem.bits() / 8);
        let mut e = self.loads.clone();
        e.index = Some((self.column, 0));
        let reads = self.loads.loads.values().flatten().map(|&b| (b, false));
        let writes = self.stores.iter().map(|&b| (b, true));
        for ((mut base, write), step) in reads.chain(writes).zip(&self.steps) {
            let Step::Const(step) = *step else { continue };
            if step == 0 || !base.moves {
                continue;
            }
            for _ in 0..height {
                for at in (0..width(base.elem)).step_by(line) {
                    let place = e.place(base).plus(at);
                    f.a.prefetch(place, write);
                }
                base.disp += step;
            }
        }
    }

    /// `rows` rows, at least one, with their sums in memory; those behind them are next.
    pub fn rows(&self, f: &mut Function, sums: R, rows: R) {
        let width = f.a.isa.bytes();
        let vectors = PANEL as i64 * ELEMENT / width;
        let of_row = |_: &mut Function, &sum: &R| (0..vectors).map(|v| Mem::at(sum, v * width).into()).collect();
        self.rows_of(f, rows, |f| f.a.copy(sums), of_row, |f, sum| f.a.add_imm(*sum, PANEL_ROW));
    }

    /// `rows` rows, at least one, with sums that `sums` finds for the vectors of a row; those behind them are next. `begin`
    /// makes what it finds them by, for the first row, and `next` moves that on by a row.
    pub fn rows_of<S>(
        &self,
        f: &mut Function,
        rows: R,
        begin: impl Fn(&mut Function) -> S,
        sums: impl Fn(&mut Function, &S) -> Vec<Src>,
        next: impl Fn(&mut Function, &S),
    ) {
        self.by_lanes(f, |f, lanes| {
            let vectors = self.vectors(f, lanes);
            let (left, state) = (f.a.copy(rows), begin(f));
            f.repeat(left, |f| {
                let sums = sums(f, &state);
                self.row(f, &vectors, &sums);
                next(f, &state);
            });
        });
    }

    /// What is the same for all rows of the vectors of a panel.
    fn vectors(&self, f: &mut Function, lanes: &[Lanes]) -> Vec<Vector<'a>> {
        lanes.iter().enumerate().map(|(v, &kind)| self.vector(f, v, kind)).collect()
    }

    /// What is the same for all rows of a panel whose lanes all exist.
    pub fn whole(&self, f: &mut Function) -> Vec<Vector<'a>> {
        let vectors = PANEL as i64 / f.a.isa.lanes();
        self.vectors(f, &vec![Lanes::All; vectors as usize])
    }

    /// The next row, with the sums of its vectors.
    pub fn row(&self, f: &mut Function, vectors: &[Vector<'a>], sums: &[Src]) {
        let mut shared = self.loads.clone();
        for &id in &self.of_row {
            shared.evaluate(f, id);
        }
        // Without EVEX, codes of a whole row are stored at once.
        let together = !f.a.isa.evex() && vectors.iter().all(|(e, _)| e.lanes == Lanes::All);
        let mut codes: Vec<Vec<V>> = vec![vec![]; self.stores.len()];
        for ((e, scale), &sum) in vectors.iter().zip(sums) {
            let mut e = e.clone();
            self.of_row.iter().for_each(|&id| e.know(&shared, id));
            self.find_dot(f, &mut e, sum, *scale);
            for (((_, x), &to), codes) in stored(self.g).zip(&self.stores).zip(&mut codes) {
                match if together { e.codes(f, x) } else { None } {
                    Some(x) => codes.push(x),
                    None => e.store(f, to, x),
                }
            }
        }
        for (codes, &to) in codes.into_iter().zip(&self.stores) {
            if let Ok(codes) = <[V; 4]>::try_from(codes) {
                let place = vectors[0].0.place(to);
                f.a.store_low_bytes_of_four(place, codes);
            }
        }
        self.advance(f, 1);
    }

    /// Moves the accesses to where those of another epilogue of the same product are.
    pub fn move_to(&self, f: &mut Function, other: &Epilogue<'a>) {
        let (mut loads, mut stores) = (self.loads.clone(), self.stores.clone());
        let (mut from_loads, mut from_stores) = (other.loads.clone(), other.stores.clone());
        let from = other.accesses(&mut from_loads, &mut from_stores);
        for ((base, from), step) in self.accesses(&mut loads, &mut stores).zip(from).zip(&self.steps) {
            if !matches!(step, Step::Const(0)) {
                f.a.copy_into(base.at, from.at);
            }
        }
    }

    /// Moves the accesses by some rows.
    pub fn advance(&self, f: &mut Function, rows: i64) {
        let (mut loads, mut stores) = (self.loads.clone(), self.stores.clone());
        for (base, step) in self.accesses(&mut loads, &mut stores).zip(&self.steps) {
            match *step {
                Step::Const(0) => {}
                Step::Const(n) => f.a.add_imm(base.at, n * rows),
                Step::Register(n) => {
                    let n = f.a.times_imm(n, rows);
                    f.a.add_into(base.at, n);
                }
            }
        }
    }
}

/// The stores of an epilogue.
fn stored(g: &Gemm) -> impl Iterator<Item = (&Access, ExprId)> {
    g.effects.iter().map(|e| match e {
        Effect::Store(to, x) => (to, *x),
        Effect::Reduce(..) => unreachable!("products store"),
    })
}
