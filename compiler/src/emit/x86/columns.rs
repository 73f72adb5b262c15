//! Loop nests of the column form: the columns of a task run by strips of several vectors, in which every lane has
//! reductions of its own. Short inner loops are written out.

use super::asm::{Cond, Mem, R, V};
use super::expr::{Base, Evaluator, Function, Lanes};
use super::floats::is_float;
use super::isa::Op;
use super::nest::{combine, identity, only_floats, varying, wanted};
use crate::kernel::Extent;
use crate::kernel::nest::{Access, Effect, Expr, ExprId, Nest, ReduceOp, Reduction, Stage};
use cranelift_entity::SecondaryMap;
use tfc_ir::scalar::Prim;

/// Vectors of a strip: as many sums as hide how long an addition takes.
const STRIP: usize = 4;

/// The most iterations of inner loops that are written out, for each vector.
const UNROLLED: i64 = 64;

/// All columns of a task; `index` are those of the task loops.
pub fn emit(f: &mut Function, nest: &Nest, index: &[R]) {
    let columns = nest.columns.expect("the column form has columns");
    let lanes = f.a.isa.lanes();
    let strip_lanes = STRIP as i64 * lanes;
    let varies = varying(nest, nest.tasks.len() as u32, true);
    let strips = Strips { nest, i: f.a.imm(0), index, varies };
    let end = f.extent(columns);
    let whole = [Lanes::All; STRIP];
    match columns {
        Extent::Const(n) => {
            strips.repeat(f, end, &whole, n >= strip_lanes);
            strips.repeat(f, end, &whole[..(n % strip_lanes / lanes) as usize], n % strip_lanes >= lanes);
        }
        Extent::Param(_) => {
            strips.repeat(f, end, &whole, true);
            strips.repeat(f, end, &whole[..1], true);
        }
    }
    if matches!(columns, Extent::Const(n) if n % lanes == 0) {
        return;
    }
    let maskable = f.a.isa.evex() || nest.stages.iter().all(|s| only_floats(nest, s, &wanted(nest, s)));
    if !maskable {
        return strips.repeat(f, end, &[Lanes::One], true);
    }
    let exit = f.a.label();
    f.a.compare(strips.i, end);
    f.a.jump_if(Cond::Ge, exit);
    let left = f.a.minus(end, strips.i);
    let mask = f.a.first_lanes(left);
    strips.strip(f, &[Lanes::Some(mask)]);
    f.a.bind(exit);
}

struct Strips<'a> {
    nest: &'a Nest,
    /// The first column of the strip.
    i: R,
    index: &'a [R],
    /// The expressions that differ between columns.
    varies: SecondaryMap<ExprId, bool>,
}

/// A stage at some indices of the inner loops.
#[derive(Clone)]
struct Point<'a> {
    /// With the places of loads.
    evaluator: Evaluator<'a>,
    /// The places of stores, by effect.
    stores: Vec<Option<Base>>,
}

impl<'a> Strips<'a> {
    /// Strips of these vectors as long as there are enough columns, if there are any.
    fn repeat(&self, f: &mut Function, end: R, kinds: &[Lanes], any: bool) {
        if !any {
            return;
        }
        let columns = kinds.iter().map(|&k| if k == Lanes::One { 1 } else { f.a.isa.lanes() }).sum::<i64>();
        let (head, exit) = (f.a.label(), f.a.label());
        let last = f.a.lea(Mem::at(end, -columns));
        f.a.compare(self.i, last);
        f.a.jump_if(Cond::Gt, exit);
        f.a.bind(head);
        self.strip(f, kinds);
        f.a.add_imm(self.i, columns);
        f.a.compare(self.i, last);
        f.a.jump_if(Cond::Le, head);
        f.a.bind(exit);
    }

    /// All stages for the columns of a strip.
    fn strip(&self, f: &mut Function, kinds: &[Lanes]) {
        let nest = self.nest;
        let lane_loop = Some(nest.tasks.len() as u32);
        let mut reduced: Vec<SecondaryMap<Reduction, Option<V>>> = vec![SecondaryMap::new(); kinds.len()];
        for stage in &nest.stages {
            let wanted = wanted(nest, stage);
            // Without indices of the inner loops, places are those of their first iteration.
            let mut evaluator = Evaluator::new(&nest.exprs);
            let mut index = self.index.to_vec();
            index.push(self.i);
            evaluator.find_loads(f, |id| wanted[id], &index, lane_loop);
            let place = |f: &mut Function, e: &Effect| match e {
                Effect::Store(to, x) => Some(Evaluator::base(f, to, nest.exprs[*x].1, &index, lane_loop)),
                Effect::Reduce(..) => None,
            };
            let stores = stage.effects.iter().map(|e| place(f, e)).collect();
            let mut sums: Vec<Vec<V>> = vec![];
            for e in &stage.effects {
                let start = match e {
                    Effect::Reduce(r, _) => identity(nest.reductions[*r].0),
                    Effect::Store(..) => continue,
                };
                sums.push(kinds.iter().map(|_| f.a.vector_of(start)).collect());
            }
            let body = Body { strips: self, stage, kinds, wanted: &wanted, reduced: &reduced, sums: &sums };
            let point = Point { evaluator, stores };
            if stage.once {
                body.emit(f, &point)
            } else {
                body.inner(f, 0, point)
            }
            let own = stage.effects.iter().filter_map(|e| if let Effect::Reduce(r, _) = e { Some(*r) } else { None });
            for (r, sums) in own.zip(sums) {
                for (reduced, sum) in reduced.iter_mut().zip(sums) {
                    reduced[r] = Some(sum);
                }
            }
        }
    }
}

/// What a stage does for the columns of a strip.
struct Body<'a, 'b> {
    strips: &'b Strips<'a>,
    stage: &'a Stage,
    kinds: &'b [Lanes],
    wanted: &'b SecondaryMap<ExprId, bool>,
    /// The results of the stages before, by vector.
    reduced: &'b [SecondaryMap<Reduction, Option<V>>],
    /// The sums of the stage's reductions, in their order, by vector.
    sums: &'b [Vec<V>],
}

impl<'a> Body<'a, '_> {
    /// The inner loops from `level` on.
    fn inner(&self, f: &mut Function, level: usize, mut point: Point<'a>) {
        let nest = self.strips.nest;
        let Some(&extent) = nest.inner.get(level) else { return self.emit(f, &point) };
        let iterations = nest.inner[level..].iter().try_fold(1i64, |n, e| n.checked_mul(e.as_const()?));
        let steps = self.steps(level, &point);
        let constant = steps.iter().all(|s| matches!(s, Extent::Const(_)));
        if let Extent::Const(n) = extent
            && constant
            && iterations.is_some_and(|n| n <= UNROLLED)
        {
            for _ in 0..n {
                self.inner(f, level + 1, point.clone());
                for (base, step) in places(&mut point).zip(&steps) {
                    base.disp += step.as_const().expect("constant steps") * i64::from(base.elem.bits() / 8);
                }
            }
            return;
        }
        let distances: Vec<Option<R>> = places(&mut point)
            .zip(&steps)
            .map(|(base, &step)| {
                (step != Extent::Const(0)).then(|| {
                    base.at = f.a.copy(base.at);
                    let step = f.extent(step);
                    f.a.times_imm(step, i64::from(base.elem.bits() / 8))
                })
            })
            .collect();
        let left = f.extent(extent);
        let left = f.a.copy(left);
        let (head, exit) = (f.a.label(), f.a.label());
        f.a.compare_imm(left, 0);
        f.a.jump_if(Cond::Le, exit);
        f.a.bind(head);
        self.inner(f, level + 1, point.clone());
        for (base, distance) in places(&mut point).zip(distances) {
            if let Some(distance) = distance {
                f.a.add_into(base.at, distance);
            }
        }
        f.a.count_down(left, 1, head);
        f.a.bind(exit);
    }

    /// How far an iteration of an inner loop moves the places of a point, in elements.
    fn steps(&self, level: usize, point: &Point) -> Vec<Extent> {
        let nest = self.strips.nest;
        let l = nest.tasks.len() + 1 + level;
        let step = |a: &Access| a.strides[l];
        let loads = nest.exprs.iter().filter(|&(id, _)| point.evaluator.loads[id].is_some());
        let loads = loads.filter_map(|(_, (e, _))| if let Expr::Load(a) = e { Some(step(a)) } else { None });
        let stores = self.stage.effects.iter().filter_map(|e| if let Effect::Store(a, _) = e { Some(step(a)) } else { None });
        loads.chain(stores).collect()
    }

    /// One iteration.
    fn emit(&self, f: &mut Function, point: &Point<'a>) {
        let nest = self.strips.nest;
        let mut shared = point.evaluator.clone();
        // What is the same for all columns.
        let varies = &self.strips.varies;
        let same = nest.exprs.iter().filter(|&(id, (e, _))| self.wanted[id] && !varies[id] && matches!(e, Expr::Load(_) | Expr::Prim(..)));
        for (id, _) in same {
            shared.evaluate(f, id);
        }
        for (v, &kind) in self.kinds.iter().enumerate() {
            let mut e = shared.clone();
            e.reduced = self.reduced[v].clone();
            (e.index, e.lanes) = (Some((self.strips.i, v as i64 * f.a.isa.lanes())), kind);
            let mut sums = self.sums.iter();
            for (effect, store) in self.stage.effects.iter().zip(&point.stores) {
                match effect {
                    Effect::Store(_, x) => e.store(f, store.expect("stores have places"), *x),
                    Effect::Reduce(r, x) => {
                        let sum = sums.next().expect("every reduction accumulates")[v];
                        accumulate(f, &mut e, nest.reductions[*r].0, *x, sum);
                    }
                }
            }
        }
    }
}

/// The places of loads, then of stores.
fn places<'p>(point: &'p mut Point) -> impl Iterator<Item = &'p mut Base> {
    point.evaluator.loads.values_mut().flatten().chain(point.stores.iter_mut().flatten())
}

/// Adds a value to a sum, or whatever the reduction does. Lanes that do not exist have sums that nobody reads.
fn accumulate(f: &mut Function, e: &mut Evaluator, op: ReduceOp, x: ExprId, sum: V) {
    if op == ReduceOp::Sum
        && let (Expr::Prim(Prim::Mul, args), elem) = &e.exprs[x]
        && is_float(*elem)
    {
        let (x, y) = (e.vector(f, args[0]), e.vector(f, args[1]));
        return f.a.update(Op::Fma231, sum, x, y);
    }
    let x = e.vector(f, x);
    let y = combine(f, op, x, sum);
    f.a.set(sum, y);
}
