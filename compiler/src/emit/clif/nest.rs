//! Loop nests: tasks, stages, inner loops, reductions.
//!
//! In the row form each stage chooses on its own whether its innermost loop runs by vectors: the bulk of
//! it several vectors at a time, with accumulators of their own, then single vectors, then scalars. In
//! the column form a task's columns are cut into such strips, and each strip runs all stages.
//!
//! An expression is emitted at the outermost loop at whose iterations it is fixed.

use super::expr::{Evaluator, Lanes, Val};
use super::prim::{identity, is_scalar_only, reduce, scalar_type, vector_type};
use super::{KernelBuilder, LANES, int_like};
use crate::kernel::Extent;
use crate::kernel::nest::{Access, Effect, Expr, ExprId, Nest, ReduceOp, Reduction, Stage};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{InstBuilder, Value};
use cranelift_entity::SecondaryMap;
use cranelift_frontend::Variable;
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// Emits the tasks of a nest from one to another.
pub fn emit(b: &mut KernelBuilder, nest: &Nest, begin: Value, end: Value) {
    let emitter = Emitter::of(nest);
    let odometer = Odometer::set(b, &nest.tasks, begin);
    let Some(tasks) = b.open_loop(begin, end, 1) else { return };
    let zero = b.int(0);
    let mut index = odometer.read(b, tasks.index);
    index.resize(nest.loops(), zero);
    match nest.columns {
        None => {
            let mut reduced = SecondaryMap::new();
            for stage in &emitter.stages {
                let lanes = emitter.row_lanes(stage);
                emitter.stage(b, stage, &index, None, lanes, &mut reduced);
            }
        }
        Some(columns) => emitter.columns(b, columns, &index),
    }
    odometer.advance(b);
    b.close_loop(tasks);
}

/// The indices of the task loops, counted up from task to task.
pub struct Odometer {
    /// One per task loop.
    wheels: Vec<Wheel>,
}

enum Wheel {
    /// A loop with one iteration.
    Still,
    /// The only loop that turns: its index is the task.
    Task,
    /// Index and extent.
    Turning(Variable, Value),
}

impl Odometer {
    /// Sets it to the task `begin`.
    pub fn set(b: &mut KernelBuilder, extents: &[Extent], begin: Value) -> Odometer {
        let turning = extents.iter().filter(|&&e| e != Extent::Const(1)).count();
        let mut rest = begin;
        let mut wheels: Vec<Wheel> = vec![];
        let mut left = turning;
        for &e in extents.iter().rev() {
            if e == Extent::Const(1) {
                wheels.push(Wheel::Still);
                continue;
            }
            if turning == 1 {
                wheels.push(Wheel::Task);
                continue;
            }
            let extent = b.extent(e);
            left -= 1;
            let index = if left == 0 {
                rest
            } else {
                // An empty loop has no tasks; the division must not trap all the same.
                let one = b.int(1);
                let divisor = match e.as_const() {
                    Some(n) => b.int(n.max(1)),
                    None => b.f.ins().smax(extent, one),
                };
                let index = b.f.ins().urem(rest, divisor);
                rest = b.f.ins().udiv(rest, divisor);
                index
            };
            let variable = b.f.declare_var(I64);
            b.f.def_var(variable, index);
            wheels.push(Wheel::Turning(variable, extent));
        }
        wheels.reverse();
        Odometer { wheels }
    }

    /// The indices, of which the task is one.
    pub fn read(&self, b: &mut KernelBuilder, task: Value) -> Vec<Value> {
        self.wheels
            .iter()
            .map(|w| match w {
                Wheel::Still => b.int(0),
                Wheel::Task => task,
                Wheel::Turning(v, _) => b.f.use_var(*v),
            })
            .collect()
    }

    /// Goes on to the next task.
    pub fn advance(&self, b: &mut KernelBuilder) {
        let mut carry: Option<Value> = None;
        for w in self.wheels.iter().rev() {
            let Wheel::Turning(variable, extent) = w else { continue };
            let i = b.f.use_var(*variable);
            let next = match carry {
                None => b.f.ins().iadd_imm_s(i, 1),
                Some(c) => b.f.ins().iadd(i, c),
            };
            let full = b.f.ins().icmp(IntCC::Equal, next, *extent);
            let zero = b.int(0);
            let wrapped = b.f.ins().select(full, zero, next);
            b.f.def_var(*variable, wrapped);
            carry = Some(b.f.ins().uextend(I64, full));
        }
    }
}

/// A stage with what its emission asks.
struct StageFacts<'a> {
    stage: &'a Stage,
    /// The expressions that it needs, operands first, each with its level: the number of inner loops
    /// whose indices must be known.
    needed: Vec<(ExprId, usize)>,
    /// Whether it reads reductions that it computes: it runs in order.
    running: bool,
}

struct Emitter<'a> {
    nest: &'a Nest,
    /// For every expression, the loops it depends on, as bits.
    depends: SecondaryMap<ExprId, u64>,
    stages: Vec<StageFacts<'a>>,
    /// Number of the first inner loop.
    first_inner: usize,
}

/// The accumulator of a reduction.
struct Accumulator {
    reduction: Reduction,
    /// One per vector, or one scalar.
    parts: Vec<Variable>,
    /// For extrema of float vectors: which lanes have seen a NaN, per part or for all of them. The parts
    /// ignore NaNs then.
    nans: Vec<Variable>,
}

impl Accumulator {
    /// The mask of NaNs of the `i`-th part.
    fn nan_mask(&self, i: usize) -> Option<Variable> {
        self.nans.get(i).or(self.nans.first()).copied()
    }
}

impl<'a> Emitter<'a> {
    fn of(nest: &'a Nest) -> Emitter<'a> {
        let mut depends: SecondaryMap<ExprId, u64> = SecondaryMap::new();
        for (id, (expr, _)) in nest.exprs.iter() {
            depends[id] = match expr {
                Expr::Load(a) => access_loops(a, &depends),
                Expr::Index(l) => 1 << l,
                Expr::Prim(_, args) => args.iter().fold(0, |m, &a| m | depends[a]),
                Expr::CheckedIndex(e, _) => depends[*e],
                Expr::Extent(_) | Expr::Reduced(_) | Expr::Float(_) | Expr::Int(_) => 0,
            };
        }
        let mut e = Emitter { nest, depends, stages: vec![], first_inner: nest.loops() - nest.inner.len() };
        e.stages = nest.stages.iter().map(|s| e.facts(s)).collect();
        e
    }

    fn facts(&self, stage: &'a Stage) -> StageFacts<'a> {
        let exprs = &self.nest.exprs;
        let mut wanted: SecondaryMap<ExprId, bool> = SecondaryMap::new();
        let mut written = vec![];
        let mut own = vec![];
        for effect in &stage.effects {
            match effect {
                Effect::Store(a, e) => {
                    wanted[*e] = true;
                    written.push(a.buffer);
                    for (e, _) in &a.dynamic {
                        wanted[*e] = true;
                    }
                }
                Effect::Reduce(r, e) => {
                    wanted[*e] = true;
                    own.push(*r);
                }
            }
        }
        for (id, (expr, _)) in exprs.iter().rev() {
            if wanted[id] {
                operands(expr, &mut |e| wanted[e] = true);
            }
        }
        // What depends on memory that the stage writes, or on its own reductions, is fixed nowhere.
        let depth = self.nest.inner.len();
        let mut levels: SecondaryMap<ExprId, usize> = SecondaryMap::new();
        let mut running = false;
        let mut needed = vec![];
        for (id, (expr, _)) in exprs.iter() {
            if !wanted[id] {
                continue;
            }
            let volatile = match expr {
                Expr::Load(a) => written.contains(&a.buffer),
                Expr::Reduced(r) => {
                    running |= own.contains(r);
                    own.contains(r)
                }
                _ => false,
            };
            let mut level = if volatile { depth } else { self.level(self.depends[id]) };
            operands(expr, &mut |e| level = level.max(levels[e]));
            levels[id] = level;
            needed.push((id, level));
        }
        StageFacts { stage, needed, running }
    }

    /// The number of inner loops around the innermost one that a value depends on.
    fn level(&self, loops: u64) -> usize {
        let inner = loops >> self.first_inner;
        (u64::BITS - inner.leading_zeros()) as usize
    }

    /// Whether an expression has different values along a loop.
    fn varies(&self, e: ExprId, l: usize) -> bool {
        self.depends[e] >> l & 1 == 1
    }

    /// What vectors along a loop win in a stage, roughly in instructions per element, and how many at
    /// once are right. `None` if there are no vectors of what is reduced.
    fn width(&self, s: &StageFacts, l: usize) -> Option<(i64, usize)> {
        let (mut score, mut work) = (0i64, 0i64);
        for &(id, _) in &s.needed {
            if !self.varies(id, l) {
                continue;
            }
            let (expr, elem) = &self.nest.exprs[id];
            match expr {
                Expr::Load(a) => score += self.access_score(a, l, *elem),
                Expr::Prim(prim, args) => {
                    let operand = if *prim == Prim::Select { *elem } else { self.nest.exprs[args[0]].1 };
                    let counts_steps =
                        operand == Elem::I64 && matches!(prim, Prim::Add | Prim::Sub | Prim::Mul | Prim::Eq | Prim::Lt | Prim::Le);
                    let cost = dearness(*prim);
                    work += cost;
                    if !is_scalar_only(*prim, operand) && vector_type(*elem).is_some() {
                        score += 2 * cost;
                    } else if !counts_steps {
                        score -= 2;
                    }
                }
                Expr::CheckedIndex(..) => score -= 1,
                _ => {}
            }
        }
        let mut accumulators = 0;
        for effect in &s.stage.effects {
            match effect {
                Effect::Store(a, e) => score += self.access_score(a, l, self.nest.exprs[*e].1),
                Effect::Reduce(r, _) => {
                    let (_, elem) = self.nest.reductions[*r];
                    vector_type(elem)?;
                    accumulators += 1;
                    score += 2;
                }
            }
        }
        let vectors = match (accumulators, work) {
            (0, 0..=8) | (1 | 2, 0..=16) => 4,
            (0, 0..24) | (1..=4, _) => 2,
            _ => 1,
        };
        Some((score, vectors))
    }

    fn access_score(&self, a: &Access, l: usize, elem: Elem) -> i64 {
        let scattered = a.dynamic.iter().any(|(e, _)| self.varies(*e, l) && !matches!(self.nest.exprs[*e].0, Expr::Index(_)));
        match a.strides[l] {
            Extent::Const(1) if !scattered && vector_type(elem).is_some() && elem.bits() >= 8 => 3,
            Extent::Const(0) if !scattered => 0,
            _ => -1,
        }
    }

    /// The lanes of the innermost loop of a stage of the row form.
    fn row_lanes(&self, s: &StageFacts) -> Option<Lanes> {
        if s.stage.once || s.running || self.nest.inner.is_empty() {
            return None;
        }
        let l = self.nest.loops() - 1;
        // Iterations must be independent: what is written is read at most at the same place, and every
        // iteration has its own.
        for effect in &s.stage.effects {
            let Effect::Store(to, _) = effect else { continue };
            let moving = to.dynamic.iter().any(|(e, _)| self.varies(*e, l));
            if to.strides[l] == Extent::Const(0) && !moving {
                return None;
            }
            for &(id, _) in &s.needed {
                if let Expr::Load(from) = &self.nest.exprs[id].0
                    && from.buffer == to.buffer
                    && (from != to || moving)
                {
                    return None;
                }
            }
        }
        let (_, vectors) = self.width(s, l).filter(|(score, _)| *score > 0)?;
        Some(Lanes { loop_: l as u32, vectors })
    }

    /// All columns of a task, by strips.
    fn columns(&self, b: &mut KernelBuilder, columns: Extent, index: &[Value]) {
        let l = self.nest.tasks.len();
        let widths: Option<Vec<(i64, usize)>> = self.stages.iter().map(|s| self.width(s, l)).collect();
        let width = widths.filter(|w| w.iter().map(|w| w.0).sum::<i64>() > 0).and_then(|w| w.iter().map(|w| w.1).min());
        let mut index = index.to_vec();
        let end = b.extent(columns);
        let mut at = b.int(0);
        for vectors in strips(width) {
            let step = (vectors.max(1) * if vectors == 0 { 1 } else { LANES }) as i64;
            let Some(strip) = b.open_loop(at, end, step) else { continue };
            index[l] = strip.index;
            let lanes = (vectors > 0).then_some(Lanes { loop_: l as u32, vectors });
            let mut reduced = SecondaryMap::new();
            for s in &self.stages {
                self.stage(b, s, &index, lanes, None, &mut reduced);
            }
            at = b.close_loop(strip);
        }
    }

    /// One stage at the given indices of tasks and column. `lanes` are those of the columns, `row` those
    /// of the innermost loop.
    fn stage(
        &self,
        b: &mut KernelBuilder,
        s: &StageFacts,
        index: &[Value],
        lanes: Option<Lanes>,
        row: Option<Lanes>,
        reduced: &mut SecondaryMap<Reduction, Option<Val>>,
    ) {
        let mut ev = Evaluator::new(&self.nest.exprs, index.to_vec());
        ev.lanes = lanes;
        ev.reduced = reduced.clone();
        let own: Vec<Reduction> =
            s.stage.effects.iter().filter_map(|e| if let Effect::Reduce(r, _) = e { Some(*r) } else { None }).collect();
        let scalars = if row.is_none() { lanes } else { None };
        let accumulators: Vec<Accumulator> = own.iter().map(|&r| self.accumulator(b, r, scalars, false)).collect();
        let by_vectors: Vec<Accumulator> = match row {
            Some(_) => own.iter().map(|&r| self.accumulator(b, r, row, true)).collect(),
            None => vec![],
        };
        let acc = Accumulators { single: &accumulators, row: &by_vectors };
        if s.stage.once {
            self.effects(b, s, &mut ev, &accumulators);
        } else {
            self.inner(b, s, 0, ev, row, &acc);
        }
        for (i, &r) in own.iter().enumerate() {
            let (op, elem) = self.nest.reductions[r];
            reduced[r] = Some(match (&by_vectors.get(i), lanes) {
                (Some(vectors), _) => {
                    let v = self.across(b, vectors);
                    let length = self.nest.inner.last().and_then(|n| n.as_const());
                    Val::Uniform(if length.is_some_and(|n| n % LANES as i64 == 0) {
                        v
                    } else {
                        let x = b.f.use_var(accumulators[i].parts[0]);
                        reduce(b, op, elem, v, x)
                    })
                }
                (None, None) => Val::Uniform(b.f.use_var(accumulators[i].parts[0])),
                (None, Some(_)) => Val::Vectors(self.parts(b, &accumulators[i])),
            });
        }
    }

    /// The accumulator of a reduction over scalars or vectors, set to the reduction's start value. `shared`
    /// says that its lanes will be combined, so that they need not know NaNs apart.
    fn accumulator(&self, b: &mut KernelBuilder, reduction: Reduction, lanes: Option<Lanes>, shared: bool) -> Accumulator {
        let (op, elem) = self.nest.reductions[reduction];
        let (ty, count) = match lanes {
            Some(l) => (vector_type(elem).expect("vectors were chosen"), l.vectors),
            None => (scalar_type(elem), 1),
        };
        let parts = (0..count)
            .map(|_| {
                let x = identity(b, op, elem, ty);
                let v = b.f.declare_var(ty);
                b.f.def_var(v, x);
                v
            })
            .collect();
        let tracks = lanes.is_some() && elem.is_float() && matches!(op, ReduceOp::Max | ReduceOp::Min);
        let masks = match (tracks, shared) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => count,
        };
        let nans = (0..masks)
            .map(|_| {
                let zero = b.int_of(int_like(ty), 0);
                let v = b.f.declare_var(int_like(ty));
                b.f.def_var(v, zero);
                v
            })
            .collect();
        Accumulator { reduction, parts, nans }
    }

    /// The inner loops from `level` on.
    fn inner(&self, b: &mut KernelBuilder, s: &StageFacts, level: usize, mut ev: Evaluator, row: Option<Lanes>, acc: &Accumulators) {
        self.hoist(b, s, &mut ev, level);
        let Some(&extent) = self.nest.inner.get(level) else {
            self.effects(b, s, &mut ev, acc.single);
            return;
        };
        let l = self.first_inner + level;
        let end = b.extent(extent);
        let mut at = b.int(0);
        let is_row = level + 1 == self.nest.inner.len();
        for vectors in strips(row.filter(|_| is_row).map(|r| r.vectors)) {
            let step = (vectors.max(1) * if vectors == 0 { 1 } else { LANES }) as i64;
            let Some(open) = b.open_loop(at, end, step) else { continue };
            let mut inside = ev.clone();
            inside.index[l] = open.index;
            if vectors > 0 {
                inside.lanes = Some(Lanes { loop_: l as u32, vectors });
                self.effects(b, s, &mut inside, acc.row);
            } else {
                self.inner(b, s, level + 1, inside, row, acc);
            }
            at = b.close_loop(open);
        }
    }

    /// Emits what is fixed at a level, unless it is the innermost, where effects ask for it in order.
    fn hoist(&self, b: &mut KernelBuilder, s: &StageFacts, ev: &mut Evaluator, level: usize) {
        if level >= self.nest.inner.len() {
            return;
        }
        for &(e, at) in &s.needed {
            // Constants are cheaper where they are used.
            if at == level && !matches!(self.nest.exprs[e].0, Expr::Float(_) | Expr::Int(_)) {
                ev.value(b, e);
            }
        }
    }

    fn effects(&self, b: &mut KernelBuilder, s: &StageFacts, ev: &mut Evaluator, accumulators: &[Accumulator]) {
        if s.running {
            for a in accumulators {
                // Results of this stage replace those of an outer iteration.
                ev.reduced[a.reduction] = None;
            }
        }
        let (reductions, stores): (Vec<&Effect>, Vec<&Effect>) =
            s.stage.effects.iter().partition(|e| s.running && matches!(e, Effect::Reduce(..)));
        for effect in reductions.into_iter().chain(stores) {
            match effect {
                Effect::Store(access, e) => ev.store(b, access, *e),
                Effect::Reduce(r, e) => {
                    let a = accumulators.iter().find(|a| a.reduction == *r).expect("one per reduction");
                    self.accumulate(b, ev, a, *e);
                    if s.running {
                        let parts = self.parts(b, a);
                        ev.reduced[*r] = Some(if ev.lanes.is_some() { Val::Vectors(parts) } else { Val::Uniform(parts[0]) });
                    }
                }
            }
        }
    }

    /// Adds the value of an expression to an accumulator. A float product is added without rounding it
    /// where the CPU can.
    fn accumulate(&self, b: &mut KernelBuilder, ev: &mut Evaluator, a: &Accumulator, e: ExprId) {
        let (op, elem) = self.nest.reductions[a.reduction];
        let each = |b: &mut KernelBuilder, ev: &mut Evaluator, e: ExprId| match (ev.lanes, ev.value(b, e)) {
            (None, Val::Uniform(x)) => vec![x],
            (None, other) => unreachable!("{other:?} without lanes"),
            (Some(_), v) => ev.vectors(b, &v, elem),
        };
        if let Expr::Prim(Prim::Mul, factors) = &self.nest.exprs[e].0
            && op == ReduceOp::Sum
            && elem.is_float()
        {
            let (xs, ys) = (each(b, ev, factors[0]), each(b, ev, factors[1]));
            for ((x, y), &part) in xs.into_iter().zip(ys).zip(&a.parts) {
                let old = b.f.use_var(part);
                let new = b.fma(x, y, old);
                b.f.def_var(part, new);
            }
            return;
        }
        // A strip of single vectors uses the first accumulator.
        for (i, x) in each(b, ev, e).into_iter().enumerate() {
            let old = b.f.use_var(a.parts[i]);
            let new = match a.nan_mask(i) {
                None => reduce(b, op, elem, old, x),
                Some(nans) => {
                    let seen = b.f.use_var(nans);
                    let nan = b.f.ins().fcmp(FloatCC::NotEqual, x, x);
                    let seen = b.f.ins().bor(seen, nan);
                    b.f.def_var(nans, seen);
                    extremum(b, op, old, x)
                }
            };
            b.f.def_var(a.parts[i], new);
        }
    }

    /// The vectors (or the scalar) of an accumulator.
    fn parts(&self, b: &mut KernelBuilder, a: &Accumulator) -> Vec<Value> {
        a.parts
            .iter()
            .enumerate()
            .map(|(i, &v)| {
                let x = b.f.use_var(v);
                match a.nan_mask(i) {
                    None => x,
                    Some(nans) => {
                        let seen = b.f.use_var(nans);
                        let ty = b.ty(x);
                        let nan = b.float_of(ty, f64::NAN);
                        b.choose(seen, nan, x)
                    }
                }
            })
            .collect()
    }

    /// All lanes of an accumulator as one scalar.
    fn across(&self, b: &mut KernelBuilder, a: &Accumulator) -> Value {
        let (op, elem) = self.nest.reductions[a.reduction];
        let mut parts: Vec<Value> = a.parts.iter().map(|&v| b.f.use_var(v)).collect();
        let combine = |b: &mut KernelBuilder, x: Value, y: Value| match a.nan_mask(0) {
            Some(_) => extremum(b, op, x, y),
            None => reduce(b, op, elem, x, y),
        };
        while parts.len() > 1 {
            parts = parts.chunks(2).map(|p| if let [x, y] = *p { combine(b, x, y) } else { p[0] }).collect();
        }
        let x = b.across(parts[0], combine);
        match a.nan_mask(0) {
            None if elem == Elem::Bool => b.f.ins().icmp_imm_u(IntCC::NotEqual, x, 0),
            None => x,
            Some(nans) => {
                let seen = b.f.use_var(nans);
                let any = b.f.ins().vany_true(seen);
                let ty = b.ty(x);
                let nan = b.float_of(ty, f64::NAN);
                b.choose(any, nan, x)
            }
        }
    }
}

/// The accumulators of a stage: those of its body with all loops, and those of the vectors of a row.
struct Accumulators<'a> {
    single: &'a [Accumulator],
    row: &'a [Accumulator],
}

/// The strips that a loop is cut into: vectors at once, 0 for scalars.
fn strips(width: Option<usize>) -> Vec<usize> {
    match width {
        None => vec![0],
        Some(1) => vec![1, 0],
        Some(n) => vec![n, 1, 0],
    }
}

/// The larger (smaller) one; `x` if the other is NaN.
fn extremum(b: &mut KernelBuilder, op: ReduceOp, x: Value, y: Value) -> Value {
    let (less, greater) = if op == ReduceOp::Max { (x, y) } else { (y, x) };
    let beyond = b.f.ins().fcmp(FloatCC::LessThan, less, greater);
    b.choose(beyond, y, x)
}

fn access_loops(a: &Access, depends: &SecondaryMap<ExprId, u64>) -> u64 {
    let fixed = a.strides.iter().enumerate().filter(|(_, s)| **s != Extent::Const(0)).fold(0, |m, (l, _)| m | 1 << l);
    a.dynamic.iter().fold(fixed, |m, (e, _)| m | depends[*e])
}

fn operands(expr: &Expr, visit: &mut dyn FnMut(ExprId)) {
    match expr {
        Expr::Load(a) => a.dynamic.iter().for_each(|(e, _)| visit(*e)),
        Expr::Prim(_, args) => args.iter().for_each(|e| visit(*e)),
        Expr::CheckedIndex(e, _) => visit(*e),
        Expr::Index(_) | Expr::Extent(_) | Expr::Reduced(_) | Expr::Float(_) | Expr::Int(_) => {}
    }
}

/// Instructions of a primitive, roughly.
fn dearness(prim: Prim) -> i64 {
    match prim {
        Prim::Exp | Prim::Log | Prim::Erf | Prim::Tanh => 20,
        Prim::Expm1 | Prim::Log1p | Prim::Sin | Prim::Cos | Prim::Tan | Prim::Asin | Prim::Acos | Prim::Atan => 60,
        Prim::Pow => 100,
        _ => 1,
    }
}
