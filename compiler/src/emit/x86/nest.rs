//! Loop nests. In the row form the innermost loop runs by vectors, several at a time where it reduces; the column form has
//! a file of its own.

use super::asm::{Cond, Mem, R, V};
use super::columns;
use super::expr::{Base, Evaluator, Function, Lanes, extremum, supported};
use super::floats::is_float;
use super::isa::Op;
use crate::kernel::nest::{Effect, Expr, ExprId, Nest, ReduceOp, Reduction, Stage};
use crate::kernel::{Extent, Kernel};
use cranelift_entity::SecondaryMap;

/// Accumulators of a reduction: additions wait for each other otherwise.
const ACCUMULATORS: i64 = 4;

/// Whether this emitter can emit a nest.
pub fn covers(kernel: &Kernel, nest: &Nest) -> bool {
    if nest.columns.is_none() && nest.inner.is_empty() {
        return false;
    }
    let lane_loop = if nest.columns.is_some() { nest.tasks.len() } else { nest.loops() - 1 } as u32;
    // Rows have no lanes in stages that run once: any stride will do.
    let is_scalar = |s: &Stage| s.once && nest.columns.is_none();
    let reductions = nest.reductions.values().all(|(op, elem)| is_float(*elem) && *op != ReduceOp::Prod);
    reductions
        && nest.stages.iter().all(|s| {
            let stores_lanes = s.effects.iter().all(|e| match e {
                Effect::Store(a, _) => is_scalar(s) || a.strides[lane_loop as usize] == Extent::Const(1),
                Effect::Reduce(..) => !s.once,
            });
            let lanes = if is_scalar(s) { u32::MAX } else { lane_loop };
            let wanted = wanted(nest, s);
            let reduces = |r: &Reduction| s.effects.iter().any(|e| matches!(e, Effect::Reduce(own, _) if own == r));
            // A stage that reads what it reduces runs in order, element by element.
            let running = nest.exprs.iter().any(|(id, (e, _))| wanted[id] && matches!(e, Expr::Reduced(r) if reduces(r)));
            stores_lanes && !running && supported(kernel, &nest.exprs, &s.effects, lanes) && safe(nest, s, &wanted)
        })
}

/// Whether what a stage writes is read at most at the place where it is written.
fn safe(nest: &Nest, s: &Stage, wanted: &SecondaryMap<ExprId, bool>) -> bool {
    s.effects.iter().all(|e| match e {
        Effect::Store(to, _) => nest.exprs.iter().all(|(id, (x, _))| match x {
            Expr::Load(from) => !wanted[id] || from.buffer != to.buffer || from == to,
            _ => true,
        }),
        Effect::Reduce(..) => true,
    })
}

/// The expressions that a stage needs.
pub fn wanted(nest: &Nest, s: &Stage) -> SecondaryMap<ExprId, bool> {
    let mut wanted: SecondaryMap<ExprId, bool> = SecondaryMap::new();
    for e in &s.effects {
        match e {
            Effect::Store(_, x) | Effect::Reduce(_, x) => wanted[*x] = true,
        }
    }
    for (id, (expr, _)) in nest.exprs.iter().rev() {
        if wanted[id]
            && let Expr::Prim(_, args) = expr
        {
            args.iter().for_each(|&a| wanted[a] = true);
        }
    }
    wanted
}

/// Emits a nest.
pub fn emit(f: &mut Function, nest: &Nest, begin: R, end: R) {
    let tasks = nest.tasks.len();
    // The indices of the task loops, counted up from task to task.
    let mut index: Vec<R> = vec![];
    let rest = f.a.copy(begin);
    let extents: Vec<R> = nest.tasks.iter().map(|&e| f.extent(e)).collect();
    for (n, &extent) in extents.iter().enumerate().rev() {
        if n == 0 {
            index.push(f.a.copy(rest));
        } else {
            let one = f.a.imm(1);
            let by = f.a.max(extent, one);
            let (q, r) = f.a.divide(rest, by);
            index.push(f.a.copy(r));
            f.a.copy_into(rest, q);
        }
    }
    index.reverse();
    f.tasks(begin, end, |f, _| {
        match nest.columns {
            Some(_) => columns::emit(f, nest, &index),
            None => row(f, nest, &index),
        }
        // The next task.
        let next = f.a.label();
        for n in (0..tasks).rev() {
            f.a.add_imm(index[n], 1);
            if n > 0 {
                let extent = f.extent(nest.tasks[n]);
                f.a.compare(index[n], extent);
                f.a.jump_if(Cond::Lt, next);
                f.a.imm_into(index[n], 0);
            }
        }
        f.a.bind(next);
    });
}

/// All stages of a row; `index` are those of the task loops.
fn row(f: &mut Function, nest: &Nest, index: &[R]) {
    let mut all = index.to_vec();
    let zero = f.a.imm(0);
    all.resize(nest.loops(), zero);
    let mut reduced: SecondaryMap<Reduction, Option<V>> = SecondaryMap::new();
    for stage in &nest.stages {
        if stage.once {
            once(f, nest, stage, &all, &reduced);
        } else {
            looped(f, nest, stage, &all, &mut reduced);
        }
    }
}

fn once(f: &mut Function, nest: &Nest, stage: &Stage, index: &[R], reduced: &SecondaryMap<Reduction, Option<V>>) {
    let wanted = wanted(nest, stage);
    let mut e = Evaluator::new(&nest.exprs);
    e.reduced = reduced.clone();
    e.lanes = Lanes::One;
    e.find_loads(f, |id| wanted[id], index, None);
    for effect in &stage.effects {
        let Effect::Store(to, x) = effect else { unreachable!("reductions loop") };
        let base = Evaluator::base(f, to, nest.exprs[*x].1, index, None);
        e.store(f, base, *x);
    }
}

/// What an accumulator begins with.
pub fn identity(op: ReduceOp) -> f32 {
    match op {
        ReduceOp::Sum => 0.0,
        ReduceOp::Prod => 1.0,
        ReduceOp::Max => f32::NEG_INFINITY,
        ReduceOp::Min => f32::INFINITY,
    }
}

pub fn combine(f: &mut Function, op: ReduceOp, x: V, y: V) -> V {
    match op {
        ReduceOp::Sum | ReduceOp::Prod => f.a.binary(Op::AddPs, x, y),
        ReduceOp::Max => extremum(&mut f.a, Op::MaxPs, x, y),
        ReduceOp::Min => extremum(&mut f.a, Op::MinPs, x, y),
    }
}

/// The accumulators of a stage: for every reduction one or several vectors.
struct Accumulators(Vec<(Reduction, ReduceOp, Vec<V>)>);

fn looped(f: &mut Function, nest: &Nest, stage: &Stage, index: &[R], reduced: &mut SecondaryMap<Reduction, Option<V>>) {
    let lane_loop = nest.loops() as u32 - 1;
    let row = *nest.inner.last().expect("rows have a loop");
    let mut accumulators = Accumulators(vec![]);
    let long = !matches!(row, Extent::Const(n) if n < 2 * ACCUMULATORS * f.a.isa.lanes());
    for effect in &stage.effects {
        let Effect::Reduce(r, _) = effect else { continue };
        let op = nest.reductions[*r].0;
        let count = if long { ACCUMULATORS } else { 1 };
        let parts = (0..count).map(|_| f.a.vector_of(identity(op))).collect();
        accumulators.0.push((*r, op, parts));
    }
    let wanted = wanted(nest, stage);
    let mut index = index.to_vec();
    outer_loops(f, nest, stage, &wanted, &mut index, nest.loops() - nest.inner.len(), lane_loop, reduced, &accumulators);
    for (r, op, parts) in accumulators.0 {
        let mut parts = parts;
        while parts.len() > 1 {
            let half = parts.len() / 2;
            parts = (0..half).map(|i| combine(f, op, parts[i], parts[i + half])).collect();
        }
        let total = f.a.across(parts[0], |a, x, y| match op {
            ReduceOp::Sum | ReduceOp::Prod => a.binary(Op::AddPs, x, y),
            ReduceOp::Max => extremum(a, Op::MaxPs, x, y),
            ReduceOp::Min => extremum(a, Op::MinPs, x, y),
        });
        reduced[r] = Some(f.a.splat(total));
    }
}

#[expect(clippy::too_many_arguments, reason = "the state of a recursion over loops")]
fn outer_loops(
    f: &mut Function,
    nest: &Nest,
    stage: &Stage,
    wanted: &SecondaryMap<ExprId, bool>,
    index: &mut [R],
    l: usize,
    lane_loop: u32,
    reduced: &SecondaryMap<Reduction, Option<V>>,
    accumulators: &Accumulators,
) {
    if l as u32 == lane_loop {
        return lanes(f, nest, stage, wanted, index, lane_loop, reduced, accumulators);
    }
    let inner = nest.inner[l + nest.inner.len() - nest.loops()];
    let (i, end) = (f.a.imm(0), f.extent(inner));
    let (head, exit) = (f.a.label(), f.a.label());
    f.a.bind(head);
    f.a.compare(i, end);
    f.a.jump_if(Cond::Ge, exit);
    let before = std::mem::replace(&mut index[l], i);
    outer_loops(f, nest, stage, wanted, index, l + 1, lane_loop, reduced, accumulators);
    index[l] = before;
    f.a.add_imm(i, 1);
    f.a.jump(head);
    f.a.bind(exit);
}

/// The innermost loop: several vectors at a time where there are several accumulators, then single
/// vectors, then what is left.
#[expect(clippy::too_many_arguments, reason = "the innermost of a recursion over loops")]
fn lanes(
    f: &mut Function,
    nest: &Nest,
    stage: &Stage,
    wanted: &SecondaryMap<ExprId, bool>,
    index: &[R],
    lane_loop: u32,
    reduced: &SecondaryMap<Reduction, Option<V>>,
    accumulators: &Accumulators,
) {
    let row = *nest.inner.last().expect("rows have a loop");
    let lanes = f.a.isa.lanes();
    let mut shared = Evaluator::new(&nest.exprs);
    shared.reduced = reduced.clone();
    shared.find_loads(f, |id| wanted[id], index, Some(lane_loop));
    let stores: Vec<Option<Base>> = stage
        .effects
        .iter()
        .map(|e| match e {
            Effect::Store(to, x) => Some(Evaluator::base(f, to, nest.exprs[*x].1, index, Some(lane_loop))),
            Effect::Reduce(..) => None,
        })
        .collect();
    // What is the same for the whole row is computed before the loop.
    let varies = varying(nest, lane_loop, false);
    for id in nest.exprs.keys().filter(|&id| wanted[id] && !varies[id] && matches!(nest.exprs[id].0, Expr::Load(_) | Expr::Prim(..))) {
        shared.evaluate(f, id);
    }
    let i = f.a.imm(0);
    let end = f.extent(row);
    let body = |f: &mut Function, more: i64, kind: Lanes, part: usize| {
        let mut e = shared.clone();
        (e.index, e.lanes) = (Some((i, more)), kind);
        for (effect, store) in stage.effects.iter().zip(&stores) {
            match effect {
                Effect::Store(_, x) => e.store(f, store.expect("stores have places"), *x),
                Effect::Reduce(r, x) => {
                    let (_, op, parts) = accumulators.0.iter().find(|(q, ..)| q == r).expect("every reduction accumulates");
                    let acc = parts[part % parts.len()];
                    let mut x = e.vector(f, *x);
                    if kind != Lanes::All {
                        let id = f.a.vector_of(identity(*op));
                        x = match kind {
                            Lanes::Some(mask) => f.a.select(mask, x, id),
                            _ => {
                                let one = f.a.imm(1);
                                let first = f.a.first_lanes(one);
                                f.a.select(first, x, id)
                            }
                        };
                    }
                    match op {
                        ReduceOp::Sum | ReduceOp::Prod => f.a.binary_into(Op::AddPs, acc, acc, x),
                        ReduceOp::Max | ReduceOp::Min => {
                            let y = combine(f, *op, x, acc);
                            f.a.set(acc, y);
                        }
                    }
                }
            }
        }
    };
    let parts = accumulators.0.iter().map(|(.., p)| p.len()).max().unwrap_or(1) as i64;
    let loop_by = |f: &mut Function, vectors: i64| {
        let (head, exit) = (f.a.label(), f.a.label());
        let last = f.a.lea(Mem::at(end, -vectors * lanes));
        f.a.compare(i, last);
        f.a.jump_if(Cond::Gt, exit);
        f.a.bind(head);
        for v in 0..vectors {
            body(f, v * lanes, Lanes::All, v as usize);
        }
        f.a.add_imm(i, vectors * lanes);
        f.a.compare(i, last);
        f.a.jump_if(Cond::Le, head);
        f.a.bind(exit);
    };
    if parts > 1 {
        loop_by(f, parts);
    }
    if parts == 1 || !matches!(row, Extent::Const(n) if n % (parts * lanes) == 0) {
        loop_by(f, 1);
    }
    if matches!(row, Extent::Const(n) if n % lanes == 0) {
        return;
    }
    let exit = f.a.label();
    f.a.compare(i, end);
    f.a.jump_if(Cond::Ge, exit);
    if f.a.isa.evex() || only_floats(nest, stage, wanted) {
        let left = f.a.minus(end, i);
        let mask = f.a.first_lanes(left);
        body(f, 0, Lanes::Some(mask), 0);
    } else {
        let head = f.a.label();
        f.a.bind(head);
        body(f, 0, Lanes::One, 0);
        f.a.add_imm(i, 1);
        f.a.compare(i, end);
        f.a.jump_if(Cond::Lt, head);
    }
    f.a.bind(exit);
}

/// Whether all memory that a stage touches along its lanes is of floats.
pub fn only_floats(nest: &Nest, stage: &Stage, wanted: &SecondaryMap<ExprId, bool>) -> bool {
    let loads = nest.exprs.iter().all(|(id, (e, elem))| !wanted[id] || !matches!(e, Expr::Load(_)) || is_float(*elem));
    loads && stage.effects.iter().all(|e| matches!(e, Effect::Store(_, x) | Effect::Reduce(_, x) if is_float(nest.exprs[*x].1)))
}

/// The expressions that differ along a loop; results of reductions do where every iteration has its own.
pub fn varying(nest: &Nest, l: u32, reduced: bool) -> SecondaryMap<ExprId, bool> {
    let mut varies: SecondaryMap<ExprId, bool> = SecondaryMap::new();
    for (id, (expr, _)) in nest.exprs.iter() {
        varies[id] = match expr {
            Expr::Load(a) => a.strides[l as usize] != Extent::Const(0),
            Expr::Index(i) => *i == l,
            Expr::Prim(_, args) => args.iter().any(|&a| varies[a]),
            Expr::CheckedIndex(e, _) => varies[*e],
            Expr::Reduced(_) => reduced,
            Expr::Extent(_) | Expr::Float(_) | Expr::Int(_) => false,
        };
    }
    varies
}
