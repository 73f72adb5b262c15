//! Where a compiled model begins to differ from what it should compute: in which layer, and by which pass or kernel.
//!
//! A *layer* is a value of floats that has a name in the imported graph and still has it behind the passes. Its *segment* is what
//! computes it from other layers. Two errors are measured of every layer, relative RMS errors to the value in the imported graph:
//!
//! - its *own* error: its segment is compiled alone and gets the right values of the layers before;
//! - the *accumulated* error: the whole model is compiled, with the layer as one more result.
//!
//! Layers become results behind all passes but those that fuse, so that rewriting is that of the model as it is. Fusing and what comes
//! after see more results than in the model, and may hide a fault: whether the model's own results still differ is told too.
//!
//! Which pass is at fault is found by evaluating the graph behind half of the passes, then a quarter, and so on, without generating
//! the code in question: by the interpreter, or, for large models, by code of `-O0` for the baseline CPU. If the graph behind the last pass is
//! right, the fault is in the code, and other ways to generate it are tried.

use crate::diag::{Diagnostic, Result};
use crate::driver::{self, Optimized, Options};
use crate::emit::clif::target::Cpu;
use crate::emit::jit::{self, JitOptions, WeightFile};
use crate::metrics::Accumulator;
use crate::reference::{INTERPRETED_OPERATIONS, Reference, operations};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use target_lexicon::Triple;
use tfc_ir::dim::Bindings;
use tfc_ir::graph::{Def, Graph, Loc, Node, NodeData, Value};
use tfc_ir::ops::Op;
use tfc_ir::tensor::Tensor;
use tfc_ir::text;
use tfc_runtime::Session;

/// The most bytes of layers that are compared at a time.
const LAYER_BYTES: usize = 256 << 20;

/// What is examined.
pub struct Subject<'a> {
    /// The graph as it was imported.
    pub graph: &'a Graph,
    /// How it is compiled.
    pub options: &'a Options,
    /// The inputs in the order of the graph.
    pub inputs: &'a [Tensor],
    /// The sizes that they have.
    pub bindings: &'a Bindings,
    /// The largest relative RMS error that is no fault. Of outputs of integers it is the largest share that differs.
    pub tolerance: f64,
    /// How right values are found.
    pub reference: Level,
    /// Threads for compiled references.
    pub threads: usize,
}

/// How right values are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// By the interpreter if that takes at most [`INTERPRETED_OPERATIONS`], else by code of `-O0`.
    Auto,
    /// By the interpreter.
    Interpreter,
    /// By code of `-O0` for the baseline CPU.
    O0,
}

/// A way to generate code for this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// As the compiler chooses.
    Chosen,
    /// For the same CPU variant, but each kernel by the emitter that has the fewest special cases.
    Plain,
    /// For another CPU variant.
    Variant(&'static str),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Way::Chosen => f.write_str("the chosen kernels"),
            Way::Plain => f.write_str("the plainest kernels"),
            Way::Variant(name) => write!(f, "CPU variant {name}"),
        }
    }
}

/// What compiles and runs graphs that are behind all passes.
pub trait Code {
    /// The results at inputs in the order of the graph.
    ///
    /// # Errors
    /// When the graph cannot be compiled or its code fails.
    fn run(&self, graph: &Graph, inputs: &[Tensor], bindings: &Bindings, way: Way) -> Result<Vec<Tensor>>;

    /// The ways besides [`Way::Chosen`].
    fn others(&self) -> Vec<Way>;
}

/// This machine.
pub struct Here {
    /// The chosen CPU variant; the best one for `None`.
    pub cpu: Option<String>,
    /// Threads.
    pub threads: usize,
}

impl Here {
    /// The name of the chosen CPU variant.
    pub fn variant(&self) -> &str {
        self.cpu.as_deref().or_else(|| Cpu::best_here().map(|c| c.name)).unwrap_or("baseline")
    }
}

impl Code for Here {
    fn run(&self, graph: &Graph, inputs: &[Tensor], bindings: &Bindings, way: Way) -> Result<Vec<Tensor>> {
        let program = driver::lower(&Optimized { graph: graph.clone(), ledger: vec![], notes: vec![], accuracy: None })?;
        let cpu = if let Way::Variant(name) = way { Some(name) } else { self.cpu.as_deref() };
        let candidate = if way == Way::Plain { usize::MAX } else { 0 };
        let weights = WeightFile::new(&program)?;
        let model = Arc::new(jit::load_with(&program, "model", &weights, &JitOptions { cpu, candidate })?);
        let session = Session::new(model, self.threads);
        let session = session.map_err(|e| Diagnostic::failed(format!("cannot start {} threads: {e}", self.threads)))?;
        Reference::Compiled(session).run(inputs, bindings)
    }

    fn others(&self) -> Vec<Way> {
        let variants = Cpu::variants(&Triple::host()).into_iter().filter(|c| c.runs_here() && c.name != self.variant());
        [Way::Plain].into_iter().chain(variants.map(|c| Way::Variant(c.name))).collect()
    }
}

/// A named value of the model.
#[derive(Clone, PartialEq, Debug)]
pub struct Layer {
    /// Its name in the imported graph.
    pub name: String,
    /// The ONNX nodes that its products of integers came from, or, without any, its last operator.
    pub loc: Loc,
    /// The operators of its segment, in order.
    pub operators: Vec<&'static str>,
    /// Whether a product of its segment is one of integers.
    pub quantized: bool,
    /// Its own error.
    pub own: f64,
    /// The accumulated error.
    pub accumulated: f64,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where right values come from.
    pub reference: &'static str,
    /// The outputs with their errors.
    pub outputs: Vec<(String, f64)>,
    /// The layers in the order of execution.
    pub layers: Vec<Layer>,
    /// What is at fault; `None` if no output differs beyond the tolerance.
    pub fault: Option<Fault>,
}

impl Report {
    /// Whether products of integers are among the layers.
    pub fn quantized(&self) -> bool {
        self.layers.iter().any(|l| l.quantized)
    }

    /// The share that each layer with products of integers has in the sum of their squared own errors, 0 to 1; 0 for others.
    pub fn shares(&self) -> Vec<f64> {
        let square = |l: &Layer| if l.quantized { l.own * l.own } else { 0.0 };
        let sum: f64 = self.layers.iter().map(square).sum();
        self.layers.iter().map(|l| if sum > 0.0 && sum.is_finite() { square(l) / sum } else { 0.0 }).collect()
    }
}

/// What makes outputs differ.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The layer: with products of integers the one with the largest error of its own; else the first whose own error is beyond the
    /// tolerance, or, if there is none, the first whose accumulated error is.
    pub layer: Option<usize>,
    /// Whether the outputs still differ while the layers are results.
    pub seen: bool,
    /// Pass or code.
    pub stage: Stage,
}

/// What of the compiler makes outputs differ.
#[derive(Clone, Debug)]
pub enum Stage {
    /// The first pass behind which the graph gives other outputs.
    Pass {
        /// Its number, from 1.
        number: usize,
        /// Its name.
        name: &'static str,
        /// The name, with its number, of what was still right: the pass before, or `00-import`.
        before: String,
        /// The largest error of an output before it, and behind it.
        errors: [f64; 2],
    },
    /// The graph is right behind all passes; the code is not.
    Code {
        /// The largest error of an output for each way to generate code.
        ways: Vec<(Way, f64)>,
        /// The launches that compute the layer: what they compute, from which nodes.
        launches: Vec<String>,
    },
}

/// Examines a model. `step` is told what begins.
///
/// # Errors
/// When the model cannot be compiled, or its code or its interpretation fails.
pub fn bisect(subject: &Subject, code: &dyn Code, mut step: impl FnMut(&str)) -> Result<Report> {
    let imported = named(subject.graph);
    let interpreted = match subject.reference {
        Level::Auto => operations(&imported, subject.bindings) <= INTERPRETED_OPERATIONS,
        level => level == Level::Interpreter,
    };
    let bisection = Bisection { subject, code, interpreted };
    step("rewrite the model");
    let mut graphs = vec![("import", imported.clone())];
    driver::optimize(imported.clone(), subject.options, |ran| {
        graphs.push((ran.pass.name, ran.graph.clone()));
        Ok(ControlFlow::Continue(()))
    })?;
    let last = &graphs[graphs.len() - 1].1;

    step("evaluate the outputs");
    let mut reference = bisection.reference(&imported)?;
    let right = reference.run(subject.inputs, subject.bindings)?;
    let actual = bisection.run(last, Way::Chosen)?;
    let names = imported.outputs().iter().map(|o| o.name.to_string());
    let outputs: Vec<(String, f64)> = names.zip(actual.iter().zip(&right).map(|(a, r)| distance(a, r))).collect();
    let error = largest(&actual, &right);

    step("compare the layers");
    let fusing = graphs.iter().position(|(name, _)| *name == "fuse").unwrap_or(graphs.len());
    let fuse = Options { passes: Some(subject.options.pipeline().split_off(fusing - 1)), calibration: None, ..subject.options.clone() };
    let (layers, error_seen) = bisection.layers(&imported, &graphs[fusing - 1].1, &fuse, &right)?;
    let mut report = Report { reference: reference.name(), outputs, layers, fault: None };
    if error <= subject.tolerance {
        return Ok(report);
    }

    step("search the pass");
    let layer = culprit(&report.layers, subject.tolerance);
    // Rounding differs a little between code and reference, so a pass that makes most of the error is the one.
    let limit = subject.tolerance.min(error / 2.0);
    // A graph that cannot be evaluated is as wrong as can be.
    let evaluate = |graph| bisection.reference(graph)?.run(subject.inputs, subject.bindings);
    let error_behind =
        |i: usize| if i == 0 { 0.0 } else { evaluate(&graphs[i].1).map_or(f64::INFINITY, |values| largest(&values, &right)) };
    let stage = match first_beyond(graphs.len(), limit, error_behind) {
        Some((number, errors)) => {
            Stage::Pass { number, name: graphs[number].0, before: format!("{:02}-{}", number - 1, graphs[number - 1].0), errors }
        }
        None => {
            step("try other ways to generate code");
            let error_by = |way| bisection.run(last, way).map_or(f64::INFINITY, |values| largest(&values, &right));
            let ways = [Way::Chosen].into_iter().chain(code.others()).map(|way| (way, error_by(way))).collect();
            Stage::Code { ways, launches: launches(last, layer.map(|i| &report.layers[i].loc))? }
        }
    };
    report.fault = Some(Fault { layer, seen: error_seen.is_none_or(|e| e > subject.tolerance), stage });
    Ok(report)
}

/// What evaluates graphs.
struct Bisection<'a> {
    subject: &'a Subject<'a>,
    code: &'a dyn Code,
    interpreted: bool,
}

impl Bisection<'_> {
    fn reference(&self, graph: &Graph) -> Result<Reference> {
        match self.interpreted {
            true => Ok(Reference::Interpreted(graph.clone())),
            false => Reference::compiled(graph.clone(), self.subject.threads, Some("baseline")),
        }
    }

    fn run(&self, graph: &Graph, way: Way) -> Result<Vec<Tensor>> {
        self.code.run(graph, self.subject.inputs, self.subject.bindings, way)
    }

    /// The layers of a graph that only `fuse` has not seen yet, and the largest error of an output while they are results; `None` if
    /// there are none.
    fn layers(&self, imported: &Graph, graph: &Graph, fuse: &Options, right: &[Tensor]) -> Result<(Vec<Layer>, Option<f64>)> {
        let Subject { inputs, bindings, .. } = self.subject;
        let finish = |graph: Graph| driver::optimize(graph, fuse, |_| Ok(ControlFlow::Continue(()))).map(|o| o.graph);
        let taps = taps(imported, graph, bindings);
        let mut layers = vec![];
        let mut error: Option<f64> = None;
        for group in groups(graph, &taps, bindings) {
            let parts = Parts::new(graph, &taps, group.clone());
            let wanted: Vec<Value> = group.clone().chain(parts.before.iter().copied()).map(|i| taps[i].imported).collect();
            let mut values = self.reference(&with_outputs(imported, &wanted, false))?.run(inputs, bindings)?;
            let own_inputs: Vec<Tensor> = inputs.iter().cloned().chain(values.split_off(group.len())).collect();
            let own = self.code.run(&finish(parts.graph)?, &own_inputs, bindings, Way::Chosen)?;
            let whole = with_outputs(graph, &group.clone().map(|i| taps[i].value).collect::<Vec<_>>(), true);
            let mut accumulated = self.run(&finish(whole)?, Way::Chosen)?;
            let of_outputs = largest(&accumulated.split_off(group.len()), right);
            error = Some(error.map_or(of_outputs, |e| e.max(of_outputs)));
            for (j, i) in group.enumerate() {
                let nodes: Vec<&NodeData> = parts.segments[j].iter().map(|&n| graph.node(n)).collect();
                let products = nodes.iter().filter(|n| matches!(n.op, Op::QuantizedMatmul(_) | Op::QuantizedAttention(_)));
                let rounded = products.map(|n| n.loc.clone()).reduce(|a, b| a.join(&b));
                let last = || graph.producer(taps[i].value).map_or_else(Loc::default, |n| n.loc.clone());
                layers.push(Layer {
                    name: taps[i].name.clone(),
                    quantized: rounded.is_some(),
                    loc: rounded.unwrap_or_else(last),
                    operators: nodes.iter().map(|n| n.op.mnemonic()).collect(),
                    own: distance(&own[j], &values[j]),
                    accumulated: distance(&accumulated[j], &values[j]),
                });
            }
        }
        Ok((layers, error))
    }
}

/// The largest distance of results from the right ones.
fn largest(actual: &[Tensor], right: &[Tensor]) -> f64 {
    actual.iter().zip(right).map(|(a, r)| distance(a, r)).fold(0.0, f64::max)
}

/// How far a tensor is from the right one: the relative RMS error of floats, the share of other elements that differ; infinite if the
/// types do.
fn distance(actual: &Tensor, right: &Tensor) -> f64 {
    if actual.elem() != right.elem() || actual.sizes() != right.sizes() {
        return f64::INFINITY;
    }
    if actual.elem().is_float() {
        let mut sums = Accumulator::default();
        return if sums.add(actual, right, None).is_ok() { sums.finish().error.unwrap_or(0.0) } else { f64::INFINITY };
    }
    let differ = actual.iter().zip(right.iter()).filter(|(a, r)| a != r).count();
    differ as f64 / actual.len().max(1) as f64
}

/// The first of `count` stages whose error is beyond the tolerance and the one before is not, if the last one's is, with both
/// errors; found by halving. Stage 0 is within it.
fn first_beyond(count: usize, tolerance: f64, mut error_of: impl FnMut(usize) -> f64) -> Option<(usize, [f64; 2])> {
    let (mut good, mut bad) = ((0, error_of(0)), (count - 1, error_of(count - 1)));
    if bad.1 <= tolerance {
        return None;
    }
    while bad.0 - good.0 > 1 {
        let middle = (good.0 + bad.0) / 2;
        match error_of(middle) {
            e if e <= tolerance => good = (middle, e),
            e => bad = (middle, e),
        }
    }
    Some((bad.0, [good.1, bad.1]))
}

/// See [`Fault::layer`].
fn culprit(layers: &[Layer], tolerance: f64) -> Option<usize> {
    let quantized = (0..layers.len()).filter(|&i| layers[i].quantized);
    if let Some(largest) = quantized.reduce(|a, b| if layers[b].own > layers[a].own { b } else { a }) {
        return Some(largest);
    }
    layers.iter().position(|l| l.own > tolerance).or_else(|| layers.iter().position(|l| l.accumulated > tolerance))
}

/// The launches of a graph that come from any of these nodes; none if these are not known.
fn launches(graph: &Graph, loc: Option<&Loc>) -> Result<Vec<String>> {
    let Some(loc) = loc else { return Ok(vec![]) };
    let program = driver::lower(&Optimized { graph: graph.clone(), ledger: vec![], notes: vec![], accuracy: None })?;
    let names: BTreeSet<&str> = loc.names().collect();
    let steps = program.steps.iter().enumerate().filter(|(_, s)| s.loc.names().any(|n| names.contains(n)));
    Ok(steps.map(|(i, s)| format!("#{i} {} ({}), from {}", program.kernels[s.kernel].body.kind(), s.label, s.loc)).collect())
}

/// A copy in which the result of every node has a name of its own: the one it has, or that of its ONNX node and its operator, or its
/// label in the text form.
fn named(graph: &Graph) -> Graph {
    let labels = text::labels(graph);
    let mut out = graph.clone();
    let mut taken = BTreeSet::new();
    for (_, node) in graph.nodes() {
        for &v in &node.outputs {
            let mut nodes = node.loc.names();
            let of_node = nodes.next().filter(|_| nodes.len() == 0).map(|n| format!("{n}:{}", node.op.mnemonic()).into());
            let free = [graph.value(v).name.clone(), of_node].into_iter().flatten().find(|name| taken.insert(name.clone()));
            out.set_name(v, Some(free.unwrap_or_else(|| labels.get(v).into())));
        }
    }
    out
}

/// A value that is a layer.
struct Tap {
    name: String,
    /// The value in the imported graph.
    imported: Value,
    /// The value behind the passes.
    value: Value,
}

/// The layers of a graph behind passes, in order: values of floats that an operator computes rather than moves, and that have the name
/// and the type of a value of the imported graph.
fn taps(imported: &Graph, graph: &Graph, bindings: &Bindings) -> Vec<Tap> {
    let mut known: BTreeMap<&str, Value> = BTreeMap::new();
    for v in imported.nodes().flat_map(|(_, n)| n.outputs.iter().copied()) {
        if let Some(name) = imported.value(v).name.as_deref() {
            known.entry(name).or_insert(v);
        }
    }
    let computed = graph.nodes().filter(|(_, n)| !moves(&n.op)).flat_map(|(_, n)| n.outputs.iter().copied());
    let tap = |value: Value| {
        let name = graph.value(value).name.as_deref()?;
        let imported_value = known.remove(name)?;
        let (own, other) = (graph.ty(value), imported.ty(imported_value));
        let same = own.elem == other.elem && sizes(graph, value, bindings) == sizes(imported, imported_value, bindings);
        (same && own.elem.is_float() && own.quant.is_none()).then(|| Tap { name: name.into(), imported: imported_value, value })
    };
    computed.filter_map(tap).collect()
}

/// Whether an operator only says where elements are.
fn moves(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Expand(_) | Op::Window(_))
}

fn sizes(graph: &Graph, v: Value, bindings: &Bindings) -> Option<Vec<i64>> {
    graph.ty(v).shape.0.iter().map(|d| d.eval(bindings)).collect()
}

/// Layers one after the other in groups of at most [`LAYER_BYTES`], one at least.
fn groups(graph: &Graph, taps: &[Tap], bindings: &Bindings) -> Vec<Range<usize>> {
    let bytes = |t: &Tap| {
        let elements = sizes(graph, t.value, bindings).map_or(0, |s| s.iter().product::<i64>());
        graph.ty(t.value).elem.bytes(usize::try_from(elements).unwrap_or(0))
    };
    let (mut groups, mut begin, mut total) = (vec![], 0, 0);
    for (i, tap) in taps.iter().enumerate() {
        if i > begin && total + bytes(tap) > LAYER_BYTES {
            groups.push(begin..i);
            (begin, total) = (i, 0);
        }
        total += bytes(tap);
    }
    groups.push(begin..taps.len());
    groups.retain(|g| !g.is_empty());
    groups
}

/// A copy that has these values as results, and, behind them, its own if `own`.
fn with_outputs(graph: &Graph, values: &[Value], own: bool) -> Graph {
    let mut out = graph.clone();
    out.clear_outputs();
    for (i, &v) in values.iter().enumerate() {
        out.add_output(&format!("layer{i}"), v);
    }
    if own {
        for (i, o) in graph.outputs().iter().enumerate() {
            out.add_output(&format!("result{i}"), o.value);
        }
    }
    out
}

/// The segments of some layers as one graph, whose further inputs are the layers before them.
struct Parts {
    graph: Graph,
    /// Which layers are inputs.
    before: Vec<usize>,
    /// The nodes of each segment that do not only move elements.
    segments: Vec<Vec<Node>>,
}

impl Parts {
    fn new(graph: &Graph, taps: &[Tap], group: Range<usize>) -> Parts {
        let layer_of: HashMap<Value, usize> = taps.iter().enumerate().map(|(i, t)| (t.value, i)).collect();
        let (mut before, mut needed) = (BTreeSet::new(), BTreeSet::new());
        let mut segments = vec![];
        for i in group.clone() {
            let mut own = BTreeSet::new();
            let mut stack = vec![taps[i].value];
            while let Some(v) = stack.pop() {
                let Def::Result(n, _) = graph.value(v).def else { continue };
                if own.insert(n) {
                    for u in &graph.node(n).inputs {
                        match layer_of.get(u) {
                            Some(&layer) => _ = before.insert(layer),
                            None => stack.push(*u),
                        }
                    }
                }
            }
            segments.push(own.iter().copied().filter(|&n| !moves(&graph.node(n).op)).collect());
            needed.extend(own);
        }

        let mut out = graph.emptied();
        let mut map: HashMap<Value, Value> = HashMap::new();
        for (i, &v) in graph.inputs().iter().enumerate() {
            map.insert(v, out.add_input(&format!("input{i}"), graph.ty(v).clone()));
        }
        // What a layer is to its users is not what computes it here.
        let mut computed = map.clone();
        for &layer in &before {
            let v = taps[layer].value;
            map.insert(v, out.add_input(&format!("layer{layer}"), graph.ty(v).clone()));
        }
        for &n in &needed {
            let node = graph.node(n);
            let mut operands = vec![];
            for &u in &node.inputs {
                let operand = map.get(&u).or_else(|| computed.get(&u)).copied();
                let operand = operand.unwrap_or_else(|| {
                    let data = graph.value(u);
                    let Def::Const(t) = &data.def else { unreachable!("operands are inputs, layers, or in the segment") };
                    out.add_typed_const(t.clone(), data.ty.clone(), data.name.clone())
                });
                if graph.as_const(u).is_some() {
                    map.insert(u, operand);
                }
                operands.push(operand);
            }
            let types = node.outputs.iter().map(|&v| graph.ty(v).clone()).collect();
            let results = out.add_node_typed(node.op.clone(), &operands, types, &node.loc);
            computed.extend(node.outputs.iter().copied().zip(results));
        }
        for i in group {
            out.add_output(&format!("out{i}"), computed[&taps[i].value]);
        }
        Parts { graph: out, before: before.into_iter().collect(), segments }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfc_ir::tensor::Scalar;
    use tfc_ir::types::Elem;
    use tfc_passes::{Context, OptLevel, Pass, PassResult, Stats};

    /// Three layers of a product and an activation.
    const MODEL: &str = "tfc.ir 1 symbol batch 1..9 input %x: f32[batch, 32]
        const %w: f32[32, 32] = splat 0.0625
        %a = matmul %x, %w : f32[batch, 32] loc(\"/0/MatMul\") %ra = relu %a : f32[batch, 32] loc(\"/0/Relu\")
        %b = matmul %ra, %w : f32[batch, 32] loc(\"/1/MatMul\") %rb = exp %b : f32[batch, 32] loc(\"/1/Exp\")
        %c = matmul %rb, %w : f32[batch, 32] loc(\"/2/MatMul\") output y = %c";

    fn passes(names: &str) -> Vec<&'static Pass> {
        tfc_passes::parse_passes(names).unwrap()
    }

    fn inputs() -> Vec<Tensor> {
        vec![Tensor::build(Elem::F32, &[3, 32], |i| Scalar::Float(((i * 37) % 19) as f64 / 4.0 - 2.0))]
    }

    fn examine(graph: &Graph, options: &Options, code: &dyn Code) -> Report {
        examine_within(1e-3, graph, options, code)
    }

    fn examine_within(tolerance: f64, graph: &Graph, options: &Options, code: &dyn Code) -> Report {
        let bindings = Bindings::from([(tfc_ir::dim::Symbol::new("batch"), 3)]);
        let inputs = inputs();
        let subject = Subject { graph, options, inputs: &inputs, bindings: &bindings, tolerance, reference: Level::Auto, threads: 1 };
        bisect(&subject, code, |_| {}).unwrap()
    }

    fn graph() -> Graph {
        text::parse(MODEL, None).unwrap()
    }

    const HERE: Here = Here { cpu: None, threads: 1 };

    /// A copy of a graph with every operator that is `wrong` replaced by `neg`, in bodies too.
    fn spoilt(graph: &Graph, wrong: fn(&Op) -> bool) -> Graph {
        let spoil = |out: &mut Graph, _, node: &tfc_ir::graph::NodeData, operands: &[Value]| {
            let op = match &node.op {
                op if wrong(op) => tfc_ir::ops::Neg {}.into(),
                Op::Fused(f) => tfc_ir::ops::Fused { body: tfc_ir::attr::Body(Arc::new(spoilt(&f.body.0, wrong))) }.into(),
                op => op.clone(),
            };
            out.add_node(op, operands, &node.loc)
        };
        graph.rebuild(spoil).unwrap()
    }

    /// A pass that takes exponentials for negations.
    const WRONG: Pass = Pass { name: "wrong", summary: "", run: wrong };

    fn wrong(graph: Graph, _: &Context) -> PassResult {
        Ok((spoilt(&graph, |op| matches!(op, Op::Exp(_))), Stats::default()))
    }

    #[test]
    fn models_without_a_fault_have_none() {
        for level in [OptLevel::O0, OptLevel::O3] {
            let report = examine(&graph(), &Options { level, ..Options::default() }, &HERE);
            assert!(report.fault.is_none() && report.reference == "the interpreter");
            let names: Vec<&str> = report.layers.iter().map(|l| l.name.as_str()).collect();
            assert_eq!(names, ["a", "ra", "b", "rb", "c"]);
            assert!(report.layers.iter().all(|l| l.own < 1e-6 && l.accumulated < 1e-5), "{:?}", report.layers);
        }
    }

    #[test]
    fn a_wrong_pass_is_found_and_the_layer_that_it_spoils() {
        for wrong_at in 0..6 {
            let mut list = passes("fold,simplify,cse,dce,sink-reshapes");
            list.insert(wrong_at, &WRONG);
            list.extend(passes("fuse"));
            let before = if wrong_at == 0 { "import" } else { list[wrong_at - 1].name };
            let report = examine(&graph(), &Options { passes: Some(list), ..Options::default() }, &HERE);
            let fault = report.fault.unwrap();
            let Stage::Pass { number, name, before: found, errors } = fault.stage else { panic!("{fault:?}") };
            assert_eq!((number, name, found), (wrong_at + 1, "wrong", format!("{wrong_at:02}-{before}")));
            assert!(errors[0] < 1e-3 && errors[1] > 1e-3 && fault.seen);
            assert_eq!(report.layers[fault.layer.unwrap()].name, "rb");
            // What comes after is right by itself.
            assert!(report.layers[4].own < 1e-6 && report.layers[4].accumulated > 1e-3);
        }
    }

    /// Code that computes some operators wrongly, in some graphs, unless for the baseline.
    struct Faulty(fn(&Op) -> bool, fn(&Graph) -> bool);

    impl Code for Faulty {
        fn run(&self, graph: &Graph, inputs: &[Tensor], bindings: &Bindings, way: Way) -> Result<Vec<Tensor>> {
            let wrong = way == Way::Chosen && self.1(graph);
            Ok(if wrong { spoilt(graph, self.0) } else { graph.clone() }.evaluate(inputs, bindings)?)
        }

        fn others(&self) -> Vec<Way> {
            vec![Way::Variant("baseline")]
        }
    }

    #[test]
    fn wrong_code_is_told_from_wrong_passes() {
        let report = examine(&graph(), &Options::default(), &Faulty(|op| matches!(op, Op::Exp(_)), |_| true));
        let fault = report.fault.unwrap();
        let Stage::Code { ways, launches } = fault.stage else { panic!("{fault:?}") };
        assert!(ways[0].0 == Way::Chosen && ways[0].1 > 1e-3 && ways[1] == (Way::Variant("baseline"), 0.0), "{ways:?}");
        assert!(launches.len() == 1 && launches[0].contains("/1/Exp"), "{launches:?}");
        assert_eq!(report.layers[fault.layer.unwrap()].name, "rb");
        assert!(fault.seen);
    }

    /// Code whose results are a hundredth too large.
    struct Loud;

    impl Code for Loud {
        fn run(&self, graph: &Graph, inputs: &[Tensor], bindings: &Bindings, _: Way) -> Result<Vec<Tensor>> {
            let louder = |t: &Tensor| Tensor::build(t.elem(), t.sizes(), |i| Scalar::Float(1.01 * t.get(i).to_f64()));
            Ok(graph.evaluate(inputs, bindings)?.iter().map(louder).collect())
        }

        fn others(&self) -> Vec<Way> {
            vec![]
        }
    }

    #[test]
    fn a_pass_that_makes_most_of_an_error_is_at_fault_though_the_code_exceeds_the_tolerance() {
        let options = Options { passes: Some(vec![&WRONG]), ..Options::default() };
        let error = examine(&graph(), &options, &HERE).outputs[0].1;
        let report = examine_within(1.001 * error, &graph(), &options, &Loud);
        assert!(report.outputs[0].1 > 1.001 * error);
        assert!(matches!(report.fault.unwrap().stage, Stage::Pass { name: "wrong", .. }));
    }

    #[test]
    fn faults_that_looking_hides_are_told() {
        let report = examine(&graph(), &Options::default(), &Faulty(|op| matches!(op, Op::Exp(_)), |g| g.outputs().len() == 1));
        let fault = report.fault.unwrap();
        assert!(!fault.seen && fault.layer.is_none(), "{fault:?}");
        // Wrong wherever layers are computed from the inputs, right where they are computed from each other.
        let report = examine(&graph(), &Options::default(), &Faulty(|op| matches!(op, Op::Exp(_)), |g| g.inputs().len() == 1));
        let fault = report.fault.unwrap();
        let layer = &report.layers[fault.layer.unwrap()];
        assert!(fault.seen && layer.name == "rb" && layer.own == 0.0 && layer.accumulated > 1e-3, "{fault:?} {layer:?}");
    }

    #[test]
    fn a_layer_that_rounds_badly_has_the_largest_share() {
        let mut g = Graph::new("outlier");
        let mut x = g.add_input("x", tfc_ir::types::Type::new(Elem::F32, tfc_ir::types::Shape(vec![3.into(), 32.into()])));
        // One channel of the second product's operand is a thousand times as large as the others, and its weights as small.
        let scale = |i: usize| if i == 5 { 1000.0 } else { 1.0 };
        for layer in 0..3 {
            let weight = |i: usize| ((i * 7919 + layer * 31) % 101) as f64 / 150.0 - 1.0 / 3.0;
            let part = |i: usize| if layer == 1 { 1.0 / scale(i / 32) } else { 1.0 };
            let w = g.add_const(Tensor::build(Elem::F32, &[32, 32], |i| Scalar::Float(weight(i) * part(i))), None);
            if layer == 1 {
                let scales = g.add_const(Tensor::build(Elem::F32, &[32], |i| Scalar::Float(scale(i))), None);
                x = g.add(tfc_ir::ops::Mul {}, &[x, scales], &Loc::default()).unwrap();
            }
            x = g.add(tfc_ir::ops::Matmul {}, &[x, w], &Loc::node(&format!("/{layer}/MatMul"))).unwrap();
        }
        g.add_output("y", x);
        let quant = Some(tfc_passes::QuantConfig::new("w8a8".parse().unwrap()));
        let report = examine(&g, &Options { quant, ..Options::default() }, &HERE);
        let products: Vec<usize> = (0..report.layers.len()).filter(|&i| report.layers[i].quantized).collect();
        assert_eq!(products.len(), 3, "{:?}", report.layers);
        let shares = report.shares();
        assert!(shares[products[1]] > 0.9 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{shares:?} {:?}", report.layers);
        let last = &report.layers[products[2]];
        assert!(last.own < 0.03 && last.accumulated > 0.1, "{last:?}");
        let fault = report.fault.as_ref().unwrap();
        assert_eq!(report.layers[fault.layer.unwrap()].loc, Loc::node("/1/MatMul"));
        assert!(matches!(fault.stage, Stage::Pass { name: "quantize", .. }), "{fault:?}");
    }

    #[test]
    fn the_first_stage_beyond_the_tolerance_is_found_by_halving() {
        for (count, first) in [(2, 1), (9, 1), (9, 5), (9, 8), (17, 11)] {
            let mut calls = 0;
            let found = first_beyond(count, 0.5, |i| {
                calls += 1;
                if i < first { 0.25 } else { 1.0 }
            });
            assert!(found == Some((first, [0.25, 1.0])) && calls <= 7, "{found:?} {calls}");
        }
        assert_eq!(first_beyond(1, 0.5, |_| 0.0), None);
        assert_eq!(first_beyond(9, 0.5, |i| if i == 3 { 1.0 } else { 0.0 }), None);
    }
}
