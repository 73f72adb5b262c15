//! From graphs to kernels.
//!
//! The scheduler walks the graph once, in order. Operators that only change how memory is looked at
//! become views ([`view`]); a `fused` node, or a single operator, becomes one kernel: a loop nest
//! ([`group`]), a matrix product with epilogue ([`contraction`]), attention ([`attention`]), or a movement of data
//! ([`movement`]). A fused node whose body does not fit one kernel is scheduled operator by operator,
//! so fusion is never a question of correctness. At the end kernels that make rows and pack them become one
//! ([`made_rows`]), steps that free memory go ahead of others ([`order`]), and buffers get their places in the arena
//! ([`memory`]).
//!
//! Before the walk, *destinations* travel backwards: the operand of a reshape, a transpose or a concat
//! is computed directly into the place where the result is wanted.

mod args;
mod attention;
mod contraction;
pub mod exprs;
mod group;
mod halves;
mod left;
mod made_rows;
mod memory;
mod movement;
mod order;
mod quantized;
mod sites;
mod view;

use crate::kernel::nest::Expr;
use crate::kernel::{Body, Buffer, BufferData, Kernel, KernelId, Port, Program, Step, Storage, Use, Weight};
use args::Args;
use bytes::Bytes;
use cranelift_entity::SecondaryMap;
use std::collections::{BTreeSet, HashMap};
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Def, Graph, Loc, NodeData, Value};
use tfc_ir::ops::{self, InferError, Op};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Type};
use tfc_ir::verify::Verified;
use view::View;

/// The program cannot be scheduled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (operator {op}{})", if *loc == Loc::default() { String::new() } else { format!(" at {loc}") })]
pub struct ScheduleError {
    /// What is the matter.
    pub message: String,
    /// Mnemonic of the operator.
    pub op: String,
    /// Where it came from.
    pub loc: Loc,
}

/// Schedules a verified graph.
///
/// # Errors
/// When an operator has no kernel for the types at hand.
pub fn schedule(graph: &Verified<'_>) -> Result<Program, ScheduleError> {
    let graph: &Graph = graph;
    let mut s = Scheduler {
        program: Program {
            name: graph.name.clone(),
            symbols: graph.symbols.clone(),
            bounds: graph.bounds.clone(),
            checks: graph.checks.clone(),
            ..Program::default()
        },
        temporaries: SecondaryMap::new(),
        slack: SecondaryMap::new(),
        kernel_ids: HashMap::new(),
        weights: HashMap::new(),
        packed_lefts: vec![],
        quantized_rows: vec![],
        widened: vec![],
        zero_points: sites::have_zero_points(graph),
    };
    let port = |name: &str, ty: &Type| Port { name: name.into(), ty: ty.clone() };
    let mut sources = vec![];
    for (i, &v) in graph.inputs().iter().enumerate() {
        let ty = graph.ty(v);
        s.program.inputs.push(port(graph.value(v).name.as_deref().unwrap_or_default(), ty));
        sources.push(Source::View(s.buffer(Storage::Input(i as u32), ty)));
    }
    s.program.dims = dim_order(graph);
    s.program.constant_bytes = graph.values().filter_map(|(v, _)| graph.as_const(v)).map(|t| t.bytes().len() as u64).sum();
    let mut targets = vec![];
    for (i, o) in graph.outputs().iter().enumerate() {
        let ty = graph.ty(o.value);
        s.program.outputs.push(port(&o.name, ty));
        targets.push(s.buffer(Storage::Output(i as u32), ty));
        s.clear_unused_nibble(&targets[i]);
    }
    s.graph(graph, sources, &targets, &Loc::default())?;
    made_rows::join(&mut s.program);
    memory::drop_unread(&mut s.program, &s.temporaries);
    order::free_early(&mut s.program, &s.temporaries);
    memory::plan(&mut s.program, &s.temporaries);
    Ok(s.program)
}

/// The free symbols in the order in which the inputs name them; others behind, by name.
fn dim_order(graph: &Graph) -> Vec<tfc_ir::dim::Symbol> {
    let mut order = vec![];
    for d in graph.inputs().iter().flat_map(|&v| &graph.ty(v).shape.0) {
        let mut symbols = BTreeSet::new();
        d.collect_symbols(&mut symbols);
        order.extend(symbols.into_iter().filter(|s| !order.contains(s)).collect::<Vec<_>>());
    }
    order.extend(graph.symbols.keys().filter(|s| !order.contains(s)).cloned().collect::<Vec<_>>());
    order
}

/// Where the elements of a value come from.
#[derive(Clone)]
enum Source {
    /// Memory.
    View(View),
    /// The compiler knows them; memory is given only if a kernel needs it.
    Const(Tensor),
}

/// A group of operators does not fit one kernel.
struct Unfit;

struct Scheduler {
    program: Program,
    temporaries: SecondaryMap<Buffer, bool>,
    /// Bytes behind the contents of buffers in the arena.
    slack: SecondaryMap<Buffer, i64>,
    kernel_ids: HashMap<Kernel, KernelId>,
    /// Constants in the weights by content and layout.
    weights: HashMap<(u128, Layout), Buffer>,
    /// Left operands of products that are packed already.
    packed_lefts: Vec<left::Shared>,
    /// Quantized rows in memory of the arena.
    quantized_rows: Vec<left::QuantizedRows>,
    /// Halves in memory that are there as f32 too.
    widened: Vec<halves::Widened>,
    /// Whether some rows of products have a zero point that is known and not 0.
    zero_points: bool,
}

/// How a constant is stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Layout {
    RowMajor,
    /// Panels of the right operand of a product.
    Panels,
    /// Panels of quantized weights, whose groups of so many are filled up to whole units.
    Weights {
        padded: Option<usize>,
    },
    /// Panels of quantized weights for rows of f32.
    WeightRows,
    /// Panels of what columns have.
    Columns,
}

/// A graph being scheduled: where its values are, and where they should go.
struct Env<'g> {
    graph: &'g Graph,
    sources: SecondaryMap<Value, Option<Source>>,
    targets: SecondaryMap<Value, Option<View>>,
}

impl Scheduler {
    fn buffer(&mut self, storage: Storage, ty: &Type) -> View {
        let bytes = bytes_of(ty.elem, &ty.shape.elements());
        let buffer = self.program.buffers.push(BufferData { storage, bytes });
        View::contiguous(buffer, ty.elem, ty.shape.clone())
    }

    /// A new buffer in the arena.
    fn temporary(&mut self, ty: &Type) -> View {
        let bytes = bytes_of(ty.elem, &ty.shape.elements());
        let buffer = self.program.buffers.push(memory::temporary(bytes));
        self.temporaries[buffer] = true;
        View::contiguous(buffer, ty.elem, ty.shape.clone())
    }

    /// Sees to it that so many bytes behind the contents of a buffer in the arena can be read.
    fn provide_slack(&mut self, buffer: Buffer, slack: i64) {
        let more = slack - self.slack[buffer];
        if more > 0 {
            self.slack[buffer] = slack;
            let bytes = &mut self.program.buffers[buffer].bytes;
            *bytes = bytes.clone() + Dim::from(more);
        }
    }

    /// A constant in the weights; `data` is asked for only if it is not there yet.
    fn weight(&mut self, hash: u128, layout: Layout, data: impl FnOnce() -> Bytes) -> Buffer {
        if let Some(&b) = self.weights.get(&(hash, layout)) {
            return b;
        }
        let data = data();
        let offset = self.program.weight_bytes().next_multiple_of(memory::ALIGN as u64);
        let bytes = Dim::from(data.len());
        self.program.weights.push(Weight { offset, data });
        let b = self.program.buffers.push(BufferData { storage: Storage::Weights(offset), bytes });
        self.weights.insert((hash, layout), b);
        b
    }

    /// The view of a source; a constant gets a place in the weights.
    fn view(&mut self, source: &Source) -> View {
        match source {
            Source::View(v) => v.clone(),
            Source::Const(t) => {
                let b = self.weight(t.content_hash(), Layout::RowMajor, || t.bytes().clone());
                View::contiguous(b, t.elem(), t.ty().shape)
            }
        }
    }

    /// Appends a launch.
    fn launch(&mut self, body: Body, args: Args, tasks: Dim, work: Dim, label: &str, loc: &Loc) {
        if tasks.is(0) {
            return;
        }
        // An index is checked outside of the loops that it does not depend on, so tasks with empty loops
        // must not run. Those that reduce store what a sum over nothing is.
        let tasks = match &body {
            Body::Nest(n) if n.reductions.is_empty() && n.exprs.values().any(|(e, _)| matches!(e, Expr::CheckedIndex(..))) => {
                let inside: Dim = n.columns.iter().chain(&n.inner).map(|e| e.of(&args.ints)).product();
                tasks * inside.minimum(&Dim::from(1)).simplify(&self.program.symbols)
            }
            _ => tasks,
        };
        self.forget_packed(&args);
        // Two tasks may write to the nibbles of one byte, so they must not run at once.
        let nibbles = args.params.iter().any(|p| p.usage == Use::Write && p.elem.bits() < 8);
        let work = if nibbles { Dim::from(0) } else { work };
        let kernel = Kernel { buffers: args.params, ints: args.ints.len() as u32, body };
        let id = match self.kernel_ids.get(&kernel) {
            Some(&id) => id,
            None => {
                let id = self.program.kernels.push(kernel.clone());
                self.kernel_ids.insert(kernel, id);
                id
            }
        };
        self.program.steps.push(Step {
            kernel: id,
            buffers: args.buffers,
            ints: args.ints,
            tasks,
            work,
            loc: loc.clone(),
            label: label.into(),
        });
    }

    /// Schedules all nodes of a graph. Results are computed into `targets`.
    fn graph(&mut self, graph: &Graph, inputs: Vec<Source>, targets: &[View], loc: &Loc) -> Result<(), ScheduleError> {
        let mut env = Env { graph, sources: SecondaryMap::new(), targets: SecondaryMap::new() };
        for (&v, source) in graph.inputs().iter().zip(inputs) {
            env.sources[v] = Some(source);
        }
        for (v, d) in graph.values() {
            if let Def::Const(t) = &d.def {
                env.sources[v] = Some(Source::Const(t.clone()));
            }
        }
        self.destinations(&mut env, targets);
        for (_, node) in graph.nodes() {
            self.node(&mut env, node, &node.loc.join(loc))?;
        }
        for (o, target) in graph.outputs().iter().zip(targets) {
            let from = env.source(o.value);
            self.copy_unless_there(&from, target, loc);
        }
        Ok(())
    }

    /// Decides, backwards, which values are computed straight into a part of something larger.
    fn destinations(&mut self, env: &mut Env, targets: &[View]) {
        for (o, target) in env.graph.outputs().iter().zip(targets) {
            if env.targets[o.value].is_none() && env.is_computed(o.value) {
                env.targets[o.value] = Some(target.clone());
            }
        }
        let uses = env.graph.use_counts();
        for (_, node) in env.graph.nodes().rev() {
            let alone = |v: Value, env: &Env| uses[v] == 1 && env.targets[v].is_none() && env.is_computed(v);
            if let Some(x) = contraction::left_of_product(node).filter(|&x| alone(x, env)) {
                env.targets[x] = self.place_with_gaps(env.graph.ty(x));
            }
            let (x, y) = match node.inputs.first() {
                Some(&x) => (x, node.outputs[0]),
                None => continue,
            };
            match &node.op {
                Op::Reshape(_) if alone(x, env) => {
                    if let Some(target) = &env.targets[y] {
                        env.targets[x] = target.reshape(&env.graph.ty(x).shape);
                    }
                }
                Op::Transpose(op) if alone(x, env) => {
                    let keeps_last = op.perm.last().is_none_or(|&p| p + 1 == op.perm.len());
                    let made_by_tiles = env.graph.producer(x).is_some_and(|p| matches!(p.op, Op::Attention(_) | Op::QuantizedAttention(_)));
                    if env.targets[y].is_none() && keeps_last && made_by_tiles {
                        env.targets[y] = Some(self.temporary(env.graph.ty(y)));
                    }
                    if let Some(target) = &env.targets[y] {
                        let mut inverse = vec![0; op.perm.len()];
                        op.perm.iter().enumerate().for_each(|(i, &p)| inverse[p] = i);
                        env.targets[x] = keeps_last.then(|| target.transpose(&inverse));
                    }
                }
                Op::Concat(op) => {
                    let whole = env.targets[y].clone().unwrap_or_else(|| self.temporary(env.graph.ty(y)));
                    env.targets[y] = Some(whole.clone());
                    let mut at = Dim::from(0);
                    for &x in &node.inputs {
                        let shape = &env.graph.ty(x).shape;
                        if alone(x, env) {
                            env.targets[x] = Some(movement::part(&whole, op.axis, &at, &shape[op.axis]));
                        }
                        at = at + shape[op.axis].clone();
                    }
                }
                _ => {}
            }
        }
    }

    fn node(&mut self, env: &mut Env, node: &NodeData, loc: &Loc) -> Result<(), ScheduleError> {
        if let Some(view) = self.as_view(env, node, loc) {
            env.sources[node.outputs[0]] = Some(Source::View(view));
            return Ok(());
        }
        let inputs: Vec<Source> = node.inputs.iter().map(|&v| env.source(v)).collect();
        let outputs: Vec<View> = node
            .outputs
            .iter()
            .map(|&v| match env.targets[v].clone() {
                Some(target) => target,
                None => self.temporary(env.graph.ty(v)),
            })
            .collect();
        for (&v, view) in node.outputs.iter().zip(&outputs) {
            env.sources[v] = Some(Source::View(view.clone()));
        }
        // Indices of updates are checked even if there is nothing to update.
        let checks = matches!(node.op, Op::ScatterElements(_) | Op::ScatterNd(_) | Op::Fused(_));
        if outputs.iter().all(|o| o.shape.elements().is(0)) && !checks {
            return Ok(());
        }
        let for_kernels = node.outputs.iter().all(|&v| env.targets[v].is_none());
        if for_kernels && matches!(node.op, Op::QuantizeRows(_) | Op::QuantizeStatic(_)) {
            self.note_quantized_rows(&node.op, &inputs[0], &outputs);
        }
        match &node.op {
            Op::Attention(_) | Op::QuantizedAttention(_) => {
                let (op, rounded) = attention::attention_of(&node.op).expect("just matched");
                let views: Vec<View> = inputs.iter().map(|s| self.view(s)).collect();
                if self.attention(&op, rounded, &views, &outputs[0], loc) {
                    return Ok(());
                }
                let body = attention::unfused_attention(&op, rounded, env.graph, &node.inputs, loc).map_err(|e| internal(node, loc, &e))?;
                self.graph(&body, inputs, &outputs, loc)
            }
            Op::Fused(op) if op.body.0.nodes().len() < 2 => self.graph(&op.body.0, inputs, &outputs, loc),
            Op::Fused(op) => self.group(&op.body.0, inputs, &outputs, loc),
            _ if self.movement(node, &inputs, &outputs, loc) => Ok(()),
            op => {
                let body = single(env.graph, node, loc).map_err(|e| internal(node, loc, &e))?;
                let kernel_op =
                    op.traits().elementwise || matches!(op, Op::Matmul(_) | Op::Reduce(_) | Op::Gather(_) | Op::Iota(_) | Op::Dims(_));
                if kernel_op || lowers(&body) {
                    return self.group(&body, inputs, &outputs, loc);
                }
                Err(ScheduleError { message: "there is no kernel for it".into(), op: op.mnemonic().into(), loc: loc.clone() })
            }
        }
    }

    /// Schedules a group as one kernel, or if it does not fit one, operator by operator.
    fn group(&mut self, body: &Graph, inputs: Vec<Source>, outputs: &[View], loc: &Loc) -> Result<(), ScheduleError> {
        let label = body.nodes().map(|(_, n)| n.op.mnemonic()).collect::<Vec<_>>().join("+");
        let wrap = |e: InferError| ScheduleError { message: format!("internal error: {e}"), op: label.clone(), loc: loc.clone() };
        let lowered = lower(body, true).map_err(wrap)?;
        let fits = if lowered.nodes().any(|(_, n)| contraction::is_product(&n.op)) {
            self.contraction(&lowered, &inputs, outputs, &label, loc)
        } else {
            self.nest(&lowered, &inputs, outputs, &label, loc)
        };
        match fits {
            Ok(()) => Ok(()),
            // Composite operators get another chance on their own before they are taken apart.
            Err(Unfit) if body.nodes().len() > 1 => self.graph(body, inputs, outputs, loc),
            Err(Unfit) if matches!(body.nodes().next(), Some((_, n)) if matches!(n.op, Op::QuantizedMatmul(_))) => {
                let lowered = lower(body, false).map_err(wrap)?;
                self.graph(&lowered, inputs, outputs, loc)
            }
            Err(Unfit) if !lowered.nodes().map(|(_, n)| &n.op).eq(body.nodes().map(|(_, n)| &n.op)) => {
                self.graph(&lowered, inputs, outputs, loc)
            }
            Err(Unfit) => {
                let op = lowered.nodes().next().map_or("", |(_, n)| n.op.mnemonic());
                let types: Vec<String> = body.inputs().iter().map(|&v| body.ty(v).to_string()).collect();
                let message = format!("there is no kernel for {op} of {}", types.join(", "));
                Err(ScheduleError { message, op: op.into(), loc: loc.clone() })
            }
        }
    }

    /// The view that an operator gives, if it moves nothing. A reshape that strides cannot say copies.
    fn as_view(&mut self, env: &Env, node: &NodeData, loc: &Loc) -> Option<View> {
        let result = env.graph.ty(node.outputs[0]);
        let mut x = || self.view(&env.source(node.inputs[0]));
        match &node.op {
            Op::Transpose(op) => Some(x().transpose(&op.perm)),
            Op::Slice(op) => Some(x().slice(&op.starts, &op.steps, &op.lens)),
            Op::Expand(op) => Some(x().expand(&op.shape)),
            Op::Window(op) => Some(x().window(&op.kernel, &op.strides, &op.dilations, &result.shape)),
            Op::Reshape(_) => {
                let x = x();
                if let Some(view) = x.reshape(&result.shape) {
                    return Some(view);
                }
                let target = env.targets[node.outputs[0]].as_ref();
                if let Some((place, target)) = target.and_then(|t| Some((t.reshape(&x.shape)?, t.clone()))) {
                    self.copy(&x, &place, loc);
                    return Some(target);
                }
                let place = self.temporary(&Type::new(x.elem, x.shape.clone()));
                self.copy(&x, &place, loc);
                place.reshape(&result.shape)
            }
            _ => None,
        }
    }

    fn copy_unless_there(&mut self, from: &Source, to: &View, loc: &Loc) {
        let there = match from {
            Source::View(v) => v.buffer == to.buffer && v.offset == to.offset && same_strides(v, to),
            Source::Const(_) => false,
        };
        if !there {
            let from = self.view(from);
            self.copy(&from, to, loc);
        }
    }
}

fn same_strides(a: &View, b: &View) -> bool {
    (0..a.shape.rank()).all(|i| a.shape[i].is(1) || a.strides[i] == b.strides[i])
}

impl Env<'_> {
    fn source(&self, v: Value) -> Source {
        self.sources[v].clone().expect("operands are scheduled before their uses")
    }

    fn is_computed(&self, v: Value) -> bool {
        matches!(self.graph.value(v).def, Def::Result(..))
    }
}

fn bytes_of(elem: Elem, elements: &Dim) -> Dim {
    if elem.bits() < 8 { elements.ceil_div(2) } else { elements.clone() * Dim::from(i64::from(elem.bits() / 8)) }
}

/// A graph of one node with its operands as inputs.
fn single(graph: &Graph, node: &NodeData, loc: &Loc) -> Result<Graph, InferError> {
    let mut body = graph.emptied();
    let inputs: Vec<Value> = node.inputs.iter().enumerate().map(|(i, &v)| body.add_input(&format!("x{i}"), graph.ty(v).clone())).collect();
    let results = body.add_node(node.op.clone(), &inputs, loc)?;
    for (i, v) in results.into_iter().enumerate() {
        body.add_output(&format!("y{i}"), v);
    }
    Ok(body)
}

fn lowers(body: &Graph) -> bool {
    let mut scratch = body.clone();
    body.nodes().any(|(_, n)| n.op.lower(&mut scratch, &n.inputs, &n.loc).is_some())
}

/// Takes every operator apart until none has a decomposition. Products of quantized operands that have a
/// kernel stay if they are to be kept.
fn lower(body: &Graph, keep: bool) -> Result<Graph, InferError> {
    let mut current = body.clone();
    loop {
        let mut changed = false;
        let next = current.rebuild(|g, _, node, inputs| match lower_node(g, node, inputs, keep) {
            Some(results) => {
                changed = true;
                results
            }
            None => g.add_node(node.op.clone(), inputs, &node.loc),
        })?;
        if !changed {
            return Ok(current);
        }
        current = next;
    }
}

/// The decomposition of a node. That of a reduction which drops its axes is one which keeps them; one
/// over no axes is its operand.
fn lower_node(g: &mut Graph, node: &NodeData, inputs: &[Value], keep: bool) -> Option<Result<Vec<Value>, InferError>> {
    match &node.op {
        Op::QuantizedMatmul(_) if keep => None,
        Op::Reduce(op) if op.axes.is_empty() => Some(Ok(inputs.to_vec())),
        Op::Reduce(op) if !op.keep => {
            let shape = g.ty(inputs[0]).shape.clone();
            let rest = (0..shape.rank()).filter(|a| !op.axes.contains(a)).map(|a| shape[a].clone()).collect();
            let kept = g.add(ops::Reduce { keep: true, ..op.clone() }, inputs, &node.loc);
            Some(kept.and_then(|kept| g.add_node(ops::Reshape { shape: rest }, &[kept], &node.loc)))
        }
        op => op.lower(g, inputs, &node.loc),
    }
}

fn internal(node: &NodeData, loc: &Loc, e: &InferError) -> ScheduleError {
    ScheduleError { message: format!("internal error: {e}"), op: node.op.mnemonic().into(), loc: loc.clone() }
}
