//! Movement of data: copies, borders, selection and assignment by index, selection by order, running sums.

use super::args::Args;
use super::exprs::Exprs;
use super::view::View;
use super::{Scheduler, Source};
use crate::kernel::nest::{Effect, Expr, ExprId, Nest, ReduceOp, Stage};
use crate::kernel::top_k::TopK;
use crate::kernel::{Body, Use};
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Loc, NodeData};
use tfc_ir::ops::pad::PadMode;
use tfc_ir::ops::scatter_elements::ScatterReduction;
use tfc_ir::ops::{self, Op};
use tfc_ir::scalar::Prim;
use tfc_ir::types::{Elem, Shape};

/// The part of `len` elements along an axis.
pub(super) fn part(whole: &View, axis: usize, start: &Dim, len: &Dim) -> View {
    let mut view = whole.clone();
    view.offset = view.offset + whole.strides[axis].clone() * start.clone();
    view.shape.0[axis] = len.clone();
    view
}

/// A nest over the axes of a shape under construction: every axis is a loop.
struct Loops {
    args: Args,
    exprs: Exprs,
    nest: Nest,
    shape: Shape,
}

impl Loops {
    fn over(shape: &Shape) -> Loops {
        Loops { args: Args::default(), exprs: Exprs::default(), nest: Nest::default(), shape: shape.clone() }
    }

    fn load(&mut self, view: &View, usage: Use, strides: &[Dim], dynamic: Vec<(ExprId, Dim)>) -> ExprId {
        let access = self.access(view, usage, strides, dynamic);
        self.exprs.push(Expr::Load(access), view.elem)
    }

    fn access(&mut self, view: &View, usage: Use, strides: &[Dim], dynamic: Vec<(ExprId, Dim)>) -> crate::kernel::nest::Access {
        let mut access = self.args.access(view, usage, strides);
        access.dynamic = dynamic.iter().map(|(e, s)| (*e, self.args.extent(s))).collect();
        access
    }

    fn index(&mut self, index: ExprId, size: &Dim) -> ExprId {
        let index = self.exprs.cast(index, Elem::I64);
        let size = self.args.extent(size);
        self.exprs.push(Expr::CheckedIndex(index, size), Elem::I64)
    }

    fn prim(&mut self, prim: Prim, args: &[ExprId]) -> ExprId {
        let elem = match prim {
            Prim::Lt | Prim::Le | Prim::Eq => Elem::Bool,
            Prim::Select => self.exprs.list[args[1]].1,
            _ => self.exprs.list[args[0]].1,
        };
        self.exprs.push(Expr::Prim(prim, args.to_vec()), elem)
    }

    fn int(&mut self, d: &Dim) -> ExprId {
        let e = self.args.extent(d);
        self.exprs.push(e.as_const().map_or(Expr::Extent(e), Expr::Int), Elem::I64)
    }
}

impl Scheduler {
    /// Launches a nest of one stage. With `in_order` all axes are sequential in one task; else all but
    /// the last are tasks.
    fn launch_loops(&mut self, mut l: Loops, effects: Vec<Effect>, in_order: bool, label: &str, loc: &Loc) {
        let split = if in_order { 0 } else { l.shape.rank().saturating_sub(1) };
        l.nest.tasks = l.args.extents(&l.shape.0[..split]);
        l.nest.inner = l.args.extents(&l.shape.0[split..]);
        l.nest.exprs = l.exprs.list;
        l.nest.stages = vec![Stage { once: false, effects }];
        let tasks = l.shape.0[..split].iter().cloned().product();
        let work = l.shape.elements();
        self.launch(Body::Nest(l.nest), l.args, tasks, work, label, loc);
    }

    /// Copies elements. Axes that are one axis on both sides are merged.
    pub(super) fn copy(&mut self, from: &View, to: &View, loc: &Loc) {
        if to.shape.elements().is(0) {
            return;
        }
        let (from, to) = merged(&from.expand(&to.shape), to);
        let mut l = Loops::over(&to.shape);
        let x = l.load(&from, Use::Read, &from.strides, vec![]);
        let store = Effect::Store(l.access(&to, Use::Write, &to.strides, vec![]), x);
        self.launch_loops(l, vec![store], false, "copy", loc);
    }

    /// Copies numbers to elements of another type.
    pub(super) fn convert(&mut self, from: &View, to: &View, loc: &Loc) {
        let mut l = Loops::over(&to.shape);
        let x = l.load(from, Use::Read, &from.strides, vec![]);
        let x = l.exprs.cast(x, to.elem);
        let store = Effect::Store(l.access(to, Use::Write, &to.strides, vec![]), x);
        self.launch_loops(l, vec![store], false, "convert", loc);
    }

    /// Writes one number everywhere.
    pub(super) fn fill(&mut self, to: &View, value: f64, loc: &Loc) {
        let mut l = Loops::over(&to.shape);
        let x = l.exprs.number(value, to.elem);
        let store = Effect::Store(l.access(to, Use::Write, &to.strides, vec![]), x);
        self.launch_loops(l, vec![store], false, "fill", loc);
    }

    /// Clears the last byte of nibbles if only half of it is used: a store of an element keeps the other half.
    pub(super) fn clear_unused_nibble(&mut self, to: &View) {
        if to.elem.bits() >= 8 {
            return;
        }
        let count = to.shape.elements();
        let odd = count.rem(&Dim::from(2)).simplify(&self.program.symbols);
        if odd.is(0) {
            return;
        }
        let mut last = View::contiguous(to.buffer, Elem::U8, Shape(vec![odd]));
        last.offset = count.floor_div(&Dim::from(2));
        self.fill(&last, 0.0, &Loc::default());
    }

    /// Schedules an operator that moves data; false if it is not one of them.
    pub(super) fn movement(&mut self, node: &NodeData, inputs: &[Source], outputs: &[View], loc: &Loc) -> bool {
        let out = &outputs[0];
        match &node.op {
            Op::Concat(op) => {
                let mut at = Dim::from(0);
                for source in inputs {
                    let shape = match source {
                        Source::View(v) => v.shape.clone(),
                        Source::Const(t) => t.ty().shape,
                    };
                    let place = part(out, op.axis, &at, &shape[op.axis]);
                    self.copy_unless_there(source, &place, loc);
                    at = at + shape[op.axis].clone();
                }
            }
            Op::Pad(op) => self.pad(op, inputs, out, loc),
            Op::GatherElements(op) => {
                let (x, indices) = (self.view(&inputs[0]), self.view(&inputs[1]));
                let mut l = Loops::over(&out.shape);
                let index = l.load(&indices, Use::Read, &indices.strides, vec![]);
                let index = l.index(index, &x.shape[op.axis]);
                let mut strides = x.strides.clone();
                strides[op.axis] = Dim::from(0);
                let y = l.load(&x, Use::Read, &strides, vec![(index, x.strides[op.axis].clone())]);
                let store = Effect::Store(l.access(out, Use::Write, &out.strides, vec![]), y);
                self.launch_loops(l, vec![store], false, "gather_elements", loc);
            }
            Op::GatherNd(op) => {
                let (x, indices) = (self.view(&inputs[0]), self.view(&inputs[1]));
                let mut l = Loops::over(&out.shape);
                let tuple_axes = indices.shape.rank() - 1;
                let dynamic = tuple(&mut l, &indices, &x, op.batch);
                // Result axes: batch, the rest of the index, the rest of the data.
                let behind = op.batch + dynamic.len();
                let strides: Vec<Dim> = (0..out.shape.rank())
                    .map(|i| match i {
                        i if i < op.batch => x.strides[i].clone(),
                        i if i < tuple_axes => Dim::from(0),
                        i => x.strides[behind + i - tuple_axes].clone(),
                    })
                    .collect();
                let y = l.load(&x, Use::Read, &strides, dynamic);
                let store = Effect::Store(l.access(out, Use::Write, &out.strides, vec![]), y);
                self.launch_loops(l, vec![store], false, "gather_nd", loc);
            }
            Op::ScatterElements(op) => {
                self.copy_unless_there(&inputs[0], out, loc);
                let (indices, updates) = (self.view(&inputs[1]), self.view(&inputs[2]));
                let mut l = Loops::over(&indices.shape);
                let index = l.load(&indices, Use::Read, &indices.strides, vec![]);
                let index = l.index(index, &out.shape[op.axis]);
                let mut strides = out.strides.clone();
                strides[op.axis] = Dim::from(0);
                let dynamic = vec![(index, out.strides[op.axis].clone())];
                let store = update(&mut l, out, &strides, dynamic, &updates, op.reduction);
                self.launch_loops(l, vec![store], true, "scatter_elements", loc);
            }
            Op::ScatterNd(op) => {
                self.copy_unless_there(&inputs[0], out, loc);
                let (indices, updates) = (self.view(&inputs[1]), self.view(&inputs[2]));
                let mut l = Loops::over(&updates.shape);
                let tuple_axes = indices.shape.rank() - 1;
                let dynamic = tuple(&mut l, &indices, out, 0);
                let behind = dynamic.len();
                let strides: Vec<Dim> = (0..updates.shape.rank())
                    .map(|i| if i < tuple_axes { Dim::from(0) } else { out.strides[behind + i - tuple_axes].clone() })
                    .collect();
                let store = update(&mut l, out, &strides, dynamic, &updates, op.reduction);
                self.launch_loops(l, vec![store], true, "scatter_nd", loc);
            }
            Op::CumSum(op) => self.cum_sum(op, &inputs[0], out, loc),
            Op::TopK(op) => self.top_k(op, &inputs[0], [out, &outputs[1]], loc),
            Op::Dims(op) if op.values.len() != 1 => {
                let mut l = Loops::over(&Shape(vec![]));
                let effects = op
                    .values
                    .iter()
                    .enumerate()
                    .map(|(i, d)| {
                        let x = l.int(d);
                        let mut place = out.clone();
                        place.offset = place.offset + Dim::from(i);
                        Effect::Store(l.access(&place, Use::Write, &[], vec![]), x)
                    })
                    .collect();
                self.launch_loops(l, effects, true, "dims", loc);
            }
            _ => return false,
        }
        true
    }

    fn pad(&mut self, op: &ops::Pad, inputs: &[Source], out: &View, loc: &Loc) {
        let x = self.view(&inputs[0]);
        if op.mode == PadMode::Constant {
            let value = self.view(&inputs[1]);
            let border = value.expand(&out.shape);
            self.copy(&border, out, loc);
            let inside = out.slice(&op.before, &vec![1; op.before.len()], &x.shape);
            self.copy(&x, &inside, loc);
            return;
        }
        let mut l = Loops::over(&out.shape);
        let (mut strides, mut dynamic) = (x.strides.clone(), vec![]);
        for (a, s) in strides.iter_mut().enumerate() {
            if op.before[a].is(0) && op.after[a].is(0) {
                continue;
            }
            let i = l.exprs.push(Expr::Index(a as u32), Elem::I64);
            let (before, size) = (l.int(&op.before[a]), l.int(&x.shape[a]));
            let i = l.prim(Prim::Sub, &[i, before]);
            let (zero, one) = (l.int(&Dim::from(0)), l.int(&Dim::from(1)));
            let last = l.prim(Prim::Sub, &[size, one]);
            let source = match op.mode {
                PadMode::Edge | PadMode::Constant => {
                    let i = l.prim(Prim::Max, &[i, zero]);
                    l.prim(Prim::Min, &[i, last])
                }
                PadMode::Wrap => l.prim(Prim::RemFloor, &[i, size]),
                PadMode::Reflect => {
                    let i = l.prim(Prim::Abs, &[i]);
                    let beyond = l.prim(Prim::Sub, &[i, last]);
                    let back = l.prim(Prim::Sub, &[last, beyond]);
                    let outside = l.prim(Prim::Lt, &[last, i]);
                    l.prim(Prim::Select, &[outside, back, i])
                }
            };
            dynamic.push((source, s.clone()));
            *s = Dim::from(0);
        }
        let y = l.load(&x, Use::Read, &strides, dynamic);
        let store = Effect::Store(l.access(out, Use::Write, &out.strides, vec![]), y);
        self.launch_loops(l, vec![store], false, "pad", loc);
    }

    fn top_k(&mut self, op: &ops::TopK, input: &Source, [values, positions]: [&View; 2], loc: &Loc) {
        let x = self.view(input);
        let (rows, n) = (Shape(without(&x.shape.0, op.axis)), x.shape[op.axis].clone());
        let mut args = Args::default();
        let mut access = |view: &View, usage: Use| {
            let mut strides = without(&view.strides, op.axis);
            strides.push(view.strides[op.axis].clone());
            args.access(view, usage, &strides)
        };
        let (from, to, at) = (access(&x, Use::Read), access(values, Use::Write), access(positions, Use::Write));
        let body = TopK {
            rows: args.extents(&rows.0),
            n: args.extent(&n),
            k: args.extent(&op.k),
            largest: op.largest,
            from,
            values: to,
            positions: at,
        };
        let any = op.k.minimum(&Dim::from(1)).simplify(&self.program.symbols);
        let work = x.shape.elements() * Dim::from(4);
        self.launch(Body::TopK(body), args, rows.elements() * any, work, "top_k", loc);
    }

    fn cum_sum(&mut self, op: &ops::CumSum, input: &Source, out: &View, loc: &Loc) {
        let x = self.view(input);
        let rank = x.shape.rank();
        // The axis last; backwards if wanted.
        let turned = |v: &View| {
            let mut perm: Vec<usize> = (0..rank).filter(|&a| a != op.axis).collect();
            perm.push(op.axis);
            let v = v.transpose(&perm);
            if !op.reverse {
                return v;
            }
            let mut starts = vec![Dim::from(0); rank];
            let mut steps = vec![1; rank];
            starts[rank - 1] = v.shape[rank - 1].clone() - Dim::from(1);
            steps[rank - 1] = -1;
            v.slice(&starts, &steps, &v.shape)
        };
        let (mut x, mut out) = (turned(&x), turned(out));
        if op.exclusive {
            // The first sum is 0, the others are one element behind.
            let n = x.shape[rank - 1].clone();
            let first = n.minimum(&Dim::from(1));
            self.fill(&part(&out, rank - 1, &Dim::from(0), &first), 0.0, loc);
            let rest = (n - first).simplify(&self.program.symbols);
            x = part(&x, rank - 1, &Dim::from(0), &rest);
            out = part(&out, rank - 1, &Dim::from(1), &rest);
        }
        let mut l = Loops::over(&x.shape);
        let value = l.load(&x, Use::Read, &x.strides, vec![]);
        let r = l.nest.reductions.push((ReduceOp::Sum, x.elem));
        let sum = l.exprs.push(Expr::Reduced(r), x.elem);
        let store = Effect::Store(l.access(&out, Use::Write, &out.strides, vec![]), sum);
        self.launch_loops(l, vec![Effect::Reduce(r, value), store], false, "cum_sum", loc);
    }
}

/// What a list has for the other axes.
fn without(list: &[Dim], axis: usize) -> Vec<Dim> {
    (0..list.len()).filter(|&a| a != axis).map(|a| list[a].clone()).collect()
}

/// The run-time indices of a tuple in the last axis of `indices`, with the strides of the axes of `x`
/// behind the first `batch` that they index. Loops: the axes of `indices` without the last, then others.
fn tuple(l: &mut Loops, indices: &View, x: &View, batch: usize) -> Vec<(ExprId, Dim)> {
    let last = indices.shape.rank() - 1;
    let len = indices.shape[last].as_const().unwrap_or(0);
    let mut strides = indices.strides[..last].to_vec();
    strides.resize(l.shape.rank(), Dim::from(0));
    (0..len)
        .map(|j| {
            let component = part(indices, last, &Dim::from(j), &Dim::from(1));
            let index = l.load(&component, Use::Read, &strides, vec![]);
            let axis = batch + j as usize;
            (l.index(index, &x.shape[axis]), x.strides[axis].clone())
        })
        .collect()
}

fn update(l: &mut Loops, out: &View, strides: &[Dim], dynamic: Vec<(ExprId, Dim)>, updates: &View, reduction: ScatterReduction) -> Effect {
    let new = l.load(updates, Use::Read, &updates.strides, vec![]);
    let prim = match reduction {
        ScatterReduction::Replace => None,
        ScatterReduction::Add => Some(Prim::Add),
        ScatterReduction::Mul => Some(Prim::Mul),
        ScatterReduction::Max => Some(Prim::Max),
        ScatterReduction::Min => Some(Prim::Min),
    };
    let value = match prim {
        None => new,
        Some(p) => {
            let old = l.load(out, Use::Write, strides, dynamic.clone());
            l.prim(p, &[old, new])
        }
    };
    Effect::Store(l.access(out, Use::Write, strides, dynamic), value)
}

/// Two views of one shape with neighbouring axes merged where both allow it, without axes of size 1.
fn merged(a: &View, b: &View) -> (View, View) {
    let (mut shape, mut sa, mut sb): (Vec<Dim>, Vec<Dim>, Vec<Dim>) = (vec![], vec![], vec![]);
    for i in 0..b.shape.rank() {
        let d = &b.shape[i];
        if d.is(1) {
            continue;
        }
        let (x, y) = (a.strides[i].clone(), b.strides[i].clone());
        let fits = |s: &[Dim], inner: &Dim| s.last().is_some_and(|outer| *outer == inner.clone() * d.clone());
        if fits(&sa, &x) && fits(&sb, &y) && d.as_const().is_some_and(|n| n < 512) {
            let last = shape.len() - 1;
            shape[last] = shape[last].clone() * d.clone();
            sa[last] = x;
            sb[last] = y;
        } else {
            shape.push(d.clone());
            sa.push(x);
            sb.push(y);
        }
    }
    let shape = Shape(shape);
    (View { shape: shape.clone(), strides: sa, ..a.clone() }, View { shape, strides: sb, ..b.clone() })
}
