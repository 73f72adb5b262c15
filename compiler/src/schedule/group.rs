//! Groups of elementwise operators and reductions as one loop nest.
//!
//! All values of a group live on one *domain*, the broadcast of their shapes, and all its reductions
//! run over the same axes of it. The loops are the domain's axes: kept axes become tasks, reduced axes
//! inner loops. If the last axis is reduced, or nothing is, the nest has the row form; else, or when
//! the reduced axes are short, the column form. Neighbouring axes that are one axis in every operand
//! are merged.
//!
//! A reduction ends a *level*: what depends on it belongs to the next one, and levels become stages. A
//! value that a later level needs again is computed again from its operands, unless it was stored as a
//! result, or is dear, in which case it is parked in a result of the same type that is stored behind
//! all reads of it, or in the arena.

use super::args::Args;
use super::exprs::{Exprs, is_dear};
use super::sites::Sites;
use super::view::View;
use super::{Scheduler, Source, Unfit};
use crate::kernel::nest::{Access, Effect, Expr, ExprId, Nest, ReduceOp, Reduction, Stage};
use crate::kernel::{Body, Use};
use cranelift_entity::SecondaryMap;
use std::collections::{BTreeMap, BTreeSet};
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Def, Graph, Loc, NodeData, Value};
use tfc_ir::ops::Op;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::scalar::Prim;
use tfc_ir::types::{Elem, Shape, Type};

/// Inner loops of elementwise nests are merged with the loops around them up to this length.
const SHORT_ROW: i64 = 512;

/// Reductions up to this many elements run in the column form, even over the last axis.
const SHORT_REDUCTION: i64 = 64;

impl Scheduler {
    /// Schedules a group of elementwise operators and reductions.
    pub(super) fn nest(&mut self, body: &Graph, sources: &[Source], outputs: &[View], label: &str, loc: &Loc) -> Result<(), Unfit> {
        let facts = Facts::of(body, sources)?;
        let mut args = Args::default();
        let mut views: SecondaryMap<Value, Option<View>> = SecondaryMap::new();
        for (&v, source) in body.inputs().iter().zip(sources) {
            if facts.loaded.contains(&v) {
                views[v] = Some(self.view(source));
            }
        }
        for (v, d) in body.values() {
            if let Def::Const(t) = &d.def
                && facts.loaded.contains(&v)
            {
                views[v] = Some(self.view(&Source::Const(t.clone())));
            }
        }
        let sites = self.sites(body);
        let stored = self.parking(body, &facts, outputs);
        let loops = facts.loops(body, &views, outputs, &stored.places)?;
        let mut b = Builder {
            body,
            facts: &facts,
            sources,
            views: &views,
            sites: &sites,
            stored: &stored,
            loops: &loops,
            args: &mut args,
            exprs: Exprs::default(),
            nest: Nest::default(),
            memo: BTreeMap::new(),
            reductions: SecondaryMap::new(),
        };
        b.stages(outputs)?;
        let Builder { exprs, mut nest, .. } = b;
        nest.exprs = exprs.list;
        nest.tasks = args.extents(loops.tasks.iter().map(|l| &l.extent));
        nest.columns = loops.columns.as_ref().map(|l| args.extent(&l.extent));
        nest.inner = args.extents(loops.inner.iter().map(|l| &l.extent));
        let tasks = loops.tasks.iter().map(|l| l.extent.clone()).product();
        let work = facts.domain.elements() * Dim::from(facts.cost);
        self.launch(Body::Nest(nest), args, tasks, work, label, loc);
        Ok(())
    }

    /// Decides where later levels find what they do not compute again: results that were stored, and places for dear values.
    ///
    /// The buffer of a result holds a parked value until that result is stored, so every read of the value comes before: in
    /// an earlier stage, or in the stage of that result, for a reduction, for a value that is parked elsewhere, for a result
    /// that is stored before it, or for the result itself. Results that lend their buffers come last in their stage, in the
    /// order in which they were chosen; none reads what is parked in the buffer of one before it.
    fn parking(&mut self, body: &Graph, facts: &Facts, outputs: &[View]) -> Stored {
        let mut places: BTreeMap<Value, View> = BTreeMap::new();
        for (o, view) in body.outputs().iter().zip(outputs) {
            if facts.kind(body, o.value) == Kind::Elementwise {
                places.entry(o.value).or_insert_with(|| view.clone());
            }
        }
        let parked: Vec<Value> = facts.parked.iter().copied().filter(|v| !places.contains_key(v)).collect();
        let reads = facts.reads(body, &places.keys().chain(&parked).copied().collect());
        // Results that lend their buffers, each with what is parked there.
        let mut lent: Vec<(usize, Value)> = vec![];
        for &v in &parked {
            let level = |result: usize| facts.level[body.outputs()[result].value];
            let lends = |result: usize| {
                let (own, other) = (body.ty(v), body.ty(body.outputs()[result].value));
                let fits = other.elem == own.elem && other.shape == own.shape && level(result) > facts.level[v];
                let stored_behind_reads = reads.iter().all(|r| r.value != v || r.level <= level(result));
                let reads_behind = |&(before, u): &(usize, Value)| {
                    level(before) == level(result) && reads.contains(&Read { value: u, level: level(result), by: Some(result) })
                };
                fits && stored_behind_reads && !lent.iter().any(|l| l.0 == result || reads_behind(l))
            };
            let view = match (0..outputs.len()).find(|&result| lends(result)) {
                Some(result) => {
                    lent.push((result, v));
                    outputs[result].clone()
                }
                None => self.temporary(&Type::new(body.ty(v).elem, body.ty(v).shape.clone())),
            };
            places.insert(v, view);
        }
        let lends = |result: &usize| lent.iter().any(|l| l.0 == *result);
        let order = (0..outputs.len()).filter(|result| !lends(result)).chain(lent.iter().map(|l| l.0)).collect();
        Stored { places, parked, order }
    }
}

/// What a group stores.
struct Stored {
    /// Where later levels read values instead of computing them again.
    places: BTreeMap<Value, View>,
    /// The values among them that are no results.
    parked: Vec<Value>,
    /// The results by their numbers, in the order in which a stage stores those of its level.
    order: Vec<usize>,
}

/// A read of a value from the place where an earlier stage stored it.
#[derive(PartialEq, Eq)]
struct Read {
    value: Value,
    /// The stage of the read.
    level: u32,
    /// The number of the result that needs it; `None` for a reduction or a value that is parked.
    by: Option<usize>,
}

/// What a value of a group is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// An input or constant.
    Leaf,
    /// Computed per element: elementwise operators, `iota`, `dims`, `gather`.
    Elementwise,
    /// A reduction.
    Reduced,
}

/// What is known about a group before loops are made.
struct Facts {
    domain: Shape,
    /// The reduced axes of the domain.
    reduced: BTreeSet<usize>,
    level: SecondaryMap<Value, u32>,
    /// Leaves that are read from memory.
    loaded: BTreeSet<Value>,
    /// Dear values that a later level needs.
    parked: BTreeSet<Value>,
    /// Axes that `iota` counts: they stay loops of their own.
    counted: BTreeSet<usize>,
    /// Rough operations per point of the domain.
    cost: i64,
}

impl Facts {
    fn of(body: &Graph, sources: &[Source]) -> Result<Facts, Unfit> {
        let domain = domain(body)?;
        let rank = domain.rank();
        let mut f = Facts {
            domain,
            reduced: BTreeSet::new(),
            level: SecondaryMap::new(),
            loaded: BTreeSet::new(),
            parked: BTreeSet::new(),
            counted: BTreeSet::new(),
            cost: 1,
        };
        let mut reduced: Option<BTreeSet<usize>> = None;
        let mut dear: SecondaryMap<Value, bool> = SecondaryMap::new();
        for (_, node) in body.nodes() {
            let y = node.outputs[0];
            if f.kind_of(node).is_none() {
                return Err(Unfit);
            }
            let operands = node.inputs.iter().map(|&v| f.level[v]);
            let level = operands.max().unwrap_or(0);
            match &node.op {
                Op::Reduce(op) => {
                    let missing = rank - body.ty(node.inputs[0]).rank();
                    let axes: BTreeSet<usize> = op.axes.iter().map(|a| a + missing).collect();
                    if !op.keep || reduced.as_ref().is_some_and(|r| *r != axes) {
                        return Err(Unfit);
                    }
                    // What is reduced must have the whole of the reduced axes, not a broadcast 1.
                    let shape = &body.ty(node.inputs[0]).shape;
                    if op.axes.iter().any(|&a| shape[a] != f.domain[a + missing]) {
                        return Err(Unfit);
                    }
                    reduced = Some(axes);
                    f.level[y] = level + 1;
                    f.cost += 1;
                }
                Op::Iota(op) => {
                    f.counted.insert(op.axis + rank - op.shape.rank());
                }
                op => {
                    f.level[y] = level;
                    let elems: Vec<Elem> = node.inputs.iter().map(|&v| body.ty(v).elem).collect();
                    let own = op.traits().elementwise && is_dear(op, &elems);
                    f.cost += if own { 12 } else { 1 };
                    dear[y] = own || node.inputs.iter().any(|&v| dear[v] && f.level[v] == level);
                }
            }
            for (i, &v) in node.inputs.iter().enumerate() {
                let is_gathered = matches!(node.op, Op::Gather(_)) && i == 0;
                if matches!(node.op, Op::Gather(_)) && matches!(body.value(v).def, Def::Result(..)) {
                    return Err(Unfit);
                }
                let leaf = match body.value(v).def {
                    Def::Input(n) => {
                        matches!(&sources[n as usize], Source::View(_)) || Exprs::default().splat(constant(&sources[n as usize])).is_none()
                    }
                    Def::Const(ref t) => Exprs::default().splat(t).is_none(),
                    Def::Result(..) => false,
                };
                if leaf || is_gathered {
                    f.loaded.insert(v);
                }
            }
        }
        for o in body.outputs() {
            if f.kind(body, o.value) == Kind::Leaf {
                return Err(Unfit);
            }
        }
        f.reduced = reduced.unwrap_or_default();
        let mut parked = BTreeSet::new();
        for (_, node) in body.nodes() {
            let level = if matches!(node.op, Op::Reduce(_)) { f.level[node.outputs[0]] - 1 } else { f.level[node.outputs[0]] };
            for &v in &node.inputs {
                if f.level[v] < level
                    && dear[v]
                    && f.kind(body, v) == Kind::Elementwise
                    && f.spread(&body.ty(v).shape)
                    && body.ty(v).shape == f.domain
                {
                    parked.insert(v);
                }
            }
        }
        f.parked = parked;
        Ok(f)
    }

    fn kind_of(&self, node: &NodeData) -> Option<Kind> {
        match &node.op {
            Op::Reduce(_) => Some(Kind::Reduced),
            Op::Iota(_) | Op::Gather(_) => Some(Kind::Elementwise),
            Op::Dims(op) if op.values.len() == 1 => Some(Kind::Elementwise),
            op if op.traits().elementwise => Some(Kind::Elementwise),
            _ => None,
        }
    }

    fn kind(&self, body: &Graph, v: Value) -> Kind {
        body.producer(v).and_then(|n| self.kind_of(n)).unwrap_or(Kind::Leaf)
    }

    /// All reads of values that are stored before they are read.
    fn reads(&self, body: &Graph, stored: &BTreeSet<Value>) -> Vec<Read> {
        let reduced = body.nodes().filter(|(_, n)| matches!(n.op, Op::Reduce(_)));
        let reduced = reduced.map(|(_, n)| (n.inputs[0], self.level[n.outputs[0]] - 1, None));
        let parked = self.parked.iter().map(|&v| (v, self.level[v], None));
        let results = body.outputs().iter().enumerate().map(|(i, o)| (o.value, self.level[o.value], Some(i)));
        let mut reads = vec![];
        for (root, level, by) in reduced.chain(parked).chain(results) {
            let (mut stack, mut seen) = (vec![root], BTreeSet::new());
            while let Some(value) = stack.pop() {
                if !seen.insert(value) {
                    continue;
                }
                if self.level[value] < level && stored.contains(&value) {
                    reads.push(Read { value, level, by });
                } else if let Some(node) = body.producer(value).filter(|n| !matches!(n.op, Op::Reduce(_))) {
                    stack.extend(&node.inputs);
                }
            }
        }
        reads
    }

    /// Whether a shape varies along a reduced axis.
    fn spread(&self, shape: &Shape) -> bool {
        let missing = self.domain.rank() - shape.rank();
        self.reduced.iter().any(|&a| a >= missing && !shape[a - missing].is(1) && !self.domain[a].is(1))
    }

    /// The strides of a view along the axes of the domain.
    fn strides(&self, view: &View) -> Vec<Dim> {
        (0..self.domain.rank()).map(|a| view.stride_in(&self.domain, a)).collect()
    }

    /// The loops, merged as far as all memory that is touched allows.
    fn loops(
        &self,
        body: &Graph,
        views: &SecondaryMap<Value, Option<View>>,
        outputs: &[View],
        stored: &BTreeMap<Value, View>,
    ) -> Result<Loops, Unfit> {
        let mut touched: Vec<Vec<Dim>> = outputs.iter().chain(stored.values()).map(|v| self.strides(v)).collect();
        for (_, node) in body.nodes() {
            for (i, &v) in node.inputs.iter().enumerate() {
                let Some(view) = &views[v] else { continue };
                touched.push(match &node.op {
                    Op::Gather(op) => {
                        let y = &body.ty(node.outputs[0]).shape;
                        let (data, index) = gather_strides(op.axis, view, i == 0, y, body.ty(node.inputs[1]).rank(), &self.domain);
                        if i == 0 { data } else { index }
                    }
                    _ => self.strides(view),
                });
            }
        }
        let rank = self.domain.rank();
        let real: Vec<usize> = (0..rank).filter(|&a| !self.domain[a].is(1)).collect();
        let size = |axes: &mut dyn Iterator<Item = usize>| axes.map(|a| self.domain[a].clone()).product::<Dim>().as_const();
        let kept: Vec<usize> = real.iter().copied().filter(|a| !self.reduced.contains(a)).collect();
        let reduced: Vec<usize> = real.iter().copied().filter(|a| self.reduced.contains(a)).collect();
        let mut loops = Loops::default();
        if self.reduced.is_empty() {
            // Elementwise: the last axis is the row.
            let mut merged = self.merge(&kept, &touched);
            if let Some(row) = merged.pop() {
                loops.inner.push(row);
            }
            loops.tasks = merged;
            return Ok(loops);
        }
        let last_is_reduced = real.last().is_some_and(|a| self.reduced.contains(a));
        let short = size(&mut reduced.iter().copied()).is_some_and(|n| n <= SHORT_REDUCTION);
        let many_columns = kept.last().is_some_and(|&a| self.domain[a].as_const().is_none_or(|n| n >= 8));
        let columns = !reduced.is_empty() && !kept.is_empty() && (!last_is_reduced || (short && reduced.len() > 1 && many_columns));
        loops.inner = self.merge(&reduced, &touched);
        loops.tasks = self.merge(&kept, &touched);
        if columns {
            // A merged column loop would leave nothing to share among threads.
            let (rest, last) = kept.split_at(kept.len() - 1);
            loops.tasks = self.merge(rest, &touched);
            loops.columns = self.merge(last, &touched).pop();
        }
        Ok(loops)
    }

    /// Loops over the given axes, outermost first; neighbours merge where every stride allows it.
    fn merge(&self, axes: &[usize], touched: &[Vec<Dim>]) -> Vec<Loop> {
        let mut out: Vec<Loop> = vec![];
        for &a in axes {
            let extent = &self.domain[a];
            if let Some(last) = out.last_mut() {
                let fits = !self.counted.contains(&a)
                    && !self.counted.contains(&last.axis)
                    && touched.iter().all(|s| s[last.axis] == s[a].clone() * extent.clone());
                // Rows of elementwise nests merge only while they are short: the rest are the tasks.
                let wanted = !self.reduced.is_empty() || axes.last() != Some(&a) || extent.as_const().is_some_and(|n| n < SHORT_ROW);
                if fits && wanted {
                    last.extent = last.extent.clone() * extent.clone();
                    last.axis = a;
                    continue;
                }
            }
            out.push(Loop { axis: a, extent: extent.clone() });
        }
        out
    }
}

fn constant(source: &Source) -> &tfc_ir::tensor::Tensor {
    match source {
        Source::Const(t) => t,
        Source::View(_) => unreachable!("asked only of constants"),
    }
}

/// The broadcast of all shapes that are computed or reduced.
fn domain(body: &Graph) -> Result<Shape, Unfit> {
    let mut shapes: Vec<&Shape> = vec![];
    for (_, node) in body.nodes() {
        shapes.push(&body.ty(node.outputs[0]).shape);
        if matches!(node.op, Op::Reduce(_)) {
            shapes.push(&body.ty(node.inputs[0]).shape);
        }
    }
    let rank = shapes.iter().map(|s| s.rank()).max().unwrap_or(0);
    let mut domain = vec![Dim::from(1); rank];
    for s in &shapes {
        for (d, n) in domain[rank - s.rank()..].iter_mut().zip(&s.0) {
            let number = !n.is(1) && n.as_const().is_some();
            if d.is(1) || (number && d.as_const().is_none()) {
                *d = n.clone();
            } else if number && n != d {
                return Err(Unfit);
            }
        }
    }
    Ok(Shape(domain))
}

/// Strides, along the axes of the domain, of a gather's data (0 along the axes of the index) and of
/// its index. The one that is not asked for is empty.
fn gather_strides(axis: usize, view: &View, data: bool, result: &Shape, index_rank: usize, domain: &Shape) -> (Vec<Dim>, Vec<Dim>) {
    let missing = domain.rank() - result.rank();
    let mut strides = vec![Dim::from(0); domain.rank()];
    for i in 0..result.rank() {
        let indexed = (axis..axis + index_rank).contains(&i);
        let own = match (data, indexed) {
            (true, false) if i < axis => Some(i),
            (true, false) => Some(i + 1 - index_rank),
            (false, true) => Some(i - axis),
            _ => None,
        };
        if let Some(own) = own.filter(|&o| !view.shape[o].is(1)) {
            strides[missing + i] = view.strides[own].clone();
        }
    }
    if data { (strides, vec![]) } else { (vec![], strides) }
}

/// A loop over merged axes of the domain; `axis` is the innermost of them.
struct Loop {
    axis: usize,
    extent: Dim,
}

#[derive(Default)]
struct Loops {
    tasks: Vec<Loop>,
    columns: Option<Loop>,
    inner: Vec<Loop>,
}

impl Loops {
    fn all(&self) -> impl Iterator<Item = &Loop> {
        self.tasks.iter().chain(&self.columns).chain(&self.inner)
    }

    /// Strides per loop from strides per axis of the domain.
    fn strides(&self, per_axis: &[Dim]) -> Vec<Dim> {
        self.all().map(|l| per_axis[l.axis].clone()).collect()
    }
}

struct Builder<'a> {
    body: &'a Graph,
    facts: &'a Facts,
    sources: &'a [Source],
    views: &'a SecondaryMap<Value, Option<View>>,
    sites: &'a Sites,
    stored: &'a Stored,
    loops: &'a Loops,
    args: &'a mut Args,
    exprs: Exprs,
    nest: Nest,
    memo: BTreeMap<(Value, u32), ExprId>,
    reductions: SecondaryMap<Value, Option<Reduction>>,
}

impl Builder<'_> {
    fn stages(&mut self, outputs: &[View]) -> Result<(), Unfit> {
        let last = self.body.values().map(|(v, _)| self.facts.level[v]).max().unwrap_or(0);
        for level in 0..=last {
            let (mut looped, mut once) = (vec![], vec![]);
            for (_, node) in self.body.nodes() {
                let y = node.outputs[0];
                let Op::Reduce(op) = &node.op else { continue };
                if self.facts.level[y] != level + 1 {
                    continue;
                }
                let x = self.value(node.inputs[0], level);
                let elem = self.exprs.list[x].1;
                let kind = match op.kind {
                    ReduceKind::Sum | ReduceKind::Mean => ReduceOp::Sum,
                    ReduceKind::Prod => ReduceOp::Prod,
                    ReduceKind::Max => ReduceOp::Max,
                    ReduceKind::Min => ReduceOp::Min,
                };
                let r = self.nest.reductions.push((kind, elem));
                self.reductions[y] = Some(r);
                looped.push(Effect::Reduce(r, x));
            }
            let parked = self.stored.parked.iter().map(|&v| (v, self.stored.places[&v].clone()));
            let results = self.stored.order.iter().map(|&i| (self.body.outputs()[i].value, outputs[i].clone()));
            let stores: Vec<(Value, View)> = parked.chain(results).collect();
            for (v, view) in stores {
                if self.facts.level[v] != level {
                    continue;
                }
                let x = self.value(v, level);
                let spread = self.facts.spread(&self.body.ty(v).shape);
                if !self.facts.reduced.is_empty() && !spread && self.facts.spread(&self.facts.domain) {
                    once.push(self.store(&view, x));
                } else if self.body.ty(v).shape == self.padded(v) {
                    looped.push(self.store(&view, x));
                } else {
                    return Err(Unfit);
                }
            }
            if !once.is_empty() {
                self.nest.stages.push(Stage { once: true, effects: once });
            }
            if !looped.is_empty() {
                self.nest.stages.push(Stage { once: false, effects: looped });
            }
        }
        Ok(())
    }

    /// The shape that a result stored for every point of the domain must have: the domain itself, up
    /// to leading axes of size 1.
    fn padded(&self, v: Value) -> Shape {
        let rank = self.body.ty(v).rank();
        let domain = &self.facts.domain;
        let cut = domain.rank() - rank;
        if domain.0[..cut].iter().all(|d| d.is(1)) { Shape(domain.0[cut..].to_vec()) } else { domain.clone() }
    }

    fn store(&mut self, view: &View, x: ExprId) -> Effect {
        let access = self.access(view, Use::Write);
        Effect::Store(access, x)
    }

    fn access(&mut self, view: &View, usage: Use) -> Access {
        let strides = self.loops.strides(&self.facts.strides(view));
        self.args.access(view, usage, &strides)
    }

    /// The expression for a value in the stage of a level.
    fn value(&mut self, v: Value, level: u32) -> ExprId {
        if let Some(&x) = self.memo.get(&(v, level)) {
            return x;
        }
        let elem = self.body.ty(v).elem;
        let x = match &self.body.value(v).def {
            _ if self.facts.level[v] < level && self.stored.places.contains_key(&v) => {
                // Written by this kernel at an earlier stage, so read through the same parameter.
                let view = self.stored.places[&v].clone();
                let access = self.access(&view, Use::Write);
                self.exprs.push(Expr::Load(access), elem)
            }
            Def::Const(t) => self.leaf(v, Some(t)),
            Def::Input(n) => match &self.sources[*n as usize] {
                Source::Const(t) => self.leaf(v, Some(t)),
                Source::View(_) => self.leaf(v, None),
            },
            Def::Result(n, _) => {
                let node = self.body.node(*n);
                self.node(node, level)
            }
        };
        self.memo.insert((v, level), x);
        x
    }

    fn leaf(&mut self, v: Value, known: Option<&tfc_ir::tensor::Tensor>) -> ExprId {
        if let Some(x) = known.and_then(|t| self.exprs.splat(t)) {
            return x;
        }
        let view = self.views[v].clone().expect("leaves that are not one number are loaded");
        let access = self.access(&view, Use::Read);
        self.exprs.push(Expr::Load(access), view.elem)
    }

    fn node(&mut self, node: &NodeData, level: u32) -> ExprId {
        let y = node.outputs[0];
        let elem = self.body.ty(y).elem;
        match &node.op {
            Op::Reduce(op) => {
                let r = self.reductions[y].expect("reductions come in an earlier stage");
                let x = self.exprs.push(Expr::Reduced(r), elem);
                if op.kind != ReduceKind::Mean {
                    return x;
                }
                let n: Dim = self.facts.reduced.iter().map(|&a| self.facts.domain[a].clone()).product();
                let n = match n.as_const() {
                    Some(n) => self.exprs.number(n as f64, elem),
                    None => {
                        let e = self.args.extent(&n);
                        let n = self.exprs.push(Expr::Extent(e), Elem::I64);
                        self.exprs.cast(n, elem)
                    }
                };
                self.exprs.push(Expr::Prim(Prim::Div, vec![x, n]), elem)
            }
            Op::Iota(op) => {
                let axis = op.axis + self.facts.domain.rank() - op.shape.rank();
                let index = match self.loops.all().position(|l| l.axis == axis) {
                    Some(l) => self.exprs.push(Expr::Index(l as u32), Elem::I64),
                    None => self.exprs.push(Expr::Int(0), Elem::I64),
                };
                self.exprs.cast(index, elem)
            }
            Op::Dims(op) => {
                let e = self.args.extent(&op.values[0]);
                let expr = e.as_const().map_or(Expr::Extent(e), Expr::Int);
                self.exprs.push(expr, Elem::I64)
            }
            Op::Gather(op) => self.gather(op.axis, node, level),
            op => {
                let operands: Vec<ExprId> = node.inputs.iter().map(|&v| self.value(v, level)).collect();
                match &self.sites[y] {
                    Some(site) => {
                        let loops = self.loops.all().count();
                        self.exprs.codes(operands[0], site.below, |word| self.args.element(&site.view, word, loops))
                    }
                    None => self.exprs.apply(op, &operands),
                }
            }
        }
    }

    fn gather(&mut self, axis: usize, node: &NodeData, level: u32) -> ExprId {
        let (x, indices) = (node.inputs[0], node.inputs[1]);
        let y = &self.body.ty(node.outputs[0]).shape;
        let index_rank = self.body.ty(indices).rank();
        let domain = &self.facts.domain;
        let index = match &self.views[indices] {
            Some(view) => {
                let view = view.clone();
                let (_, strides) = gather_strides(axis, &view, false, y, index_rank, domain);
                let strides = self.loops.strides(&strides);
                let access = self.args.access(&view, Use::Read, &strides);
                self.exprs.push(Expr::Load(access), view.elem)
            }
            None => self.value(indices, level),
        };
        let index = self.exprs.cast(index, Elem::I64);
        let view = self.views[x].clone().expect("gathered data is in memory");
        let size = self.args.extent(&view.shape[axis]);
        let checked = self.exprs.push(Expr::CheckedIndex(index, size), Elem::I64);
        let (strides, _) = gather_strides(axis, &view, true, y, index_rank, domain);
        let strides = self.loops.strides(&strides);
        let mut access = self.args.access(&view, Use::Read, &strides);
        access.dynamic.push((checked, self.args.extent(&view.strides[axis])));
        self.exprs.push(Expr::Load(access), view.elem)
    }
}
