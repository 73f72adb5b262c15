//! Import: a decoded model becomes a graph of the IR.
//!
//! Operators are looked up in one [`table`]; each family of operators is a module. ONNX passes shapes
//! as tensors, the IR has them as attributes, so values carry what is known about their contents:
//! `Shape`, `Gather`, `Concat` and all the arithmetic between them are evaluated over symbolic
//! dimensions while importing, and nodes for them are made only where the numbers are used as data.

mod arith;
mod attention;
mod blocks;
mod build;
mod call;
mod control;
mod einsum;
mod inputs;
mod movement;
mod nn;
mod norm;
mod operands;
mod quant;
mod quotients;
mod reduce;
mod resize;
mod rnn;
mod sample;
mod sequence;
mod shape;
mod sort;
mod table;

pub use build::Val;
pub use call::Call;
pub use inputs::{DimSpec, ImportOptions};
pub use table::{OPERATORS, Supported};

use super::error::{CheckReport, Error};
use super::model::{Attribute, Function, Graph, Model, Node, Size, ValueInfo, ValueType, elem_name, elem_of};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tfc_ir::dim::{Dim, Range, SymbolTable};
use tfc_ir::graph::{Graph as Ir, Loc};
use tfc_ir::ops::InferError;

/// How many nodes an import may visit, four times those of the file at least: bounds what nested functions
/// and unrolled loops can grow to.
const MAX_NODES: usize = 100_000;

/// How many values an import may make, since one node may stand for many.
const MAX_VALUES: usize = 2_000_000;

/// How deep functions and subgraphs may lie in each other: bounds the stack.
const MAX_DEPTH: usize = 100;

/// Why one node could not be imported; the driver adds where.
#[derive(Debug)]
pub enum Fail {
    /// The node contradicts the operator's definition or its operands.
    Invalid(String),
    /// The node is well formed but not supported.
    Unsupported(String),
    /// An error that already says where.
    Whole(Error),
}

/// The result of an importer.
pub type Res<T> = Result<T, Fail>;

impl From<InferError> for Fail {
    fn from(e: InferError) -> Fail {
        Fail::Invalid(e.to_string())
    }
}

impl From<Error> for Fail {
    fn from(e: Error) -> Fail {
        Fail::Whole(e)
    }
}

/// Fails an importer with an "invalid" message unless a condition holds.
macro_rules! demand {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::onnx::import::Fail::Invalid(format!($($message)+)));
        }
    };
}
pub(crate) use demand;

/// Fails an importer with an "unsupported" message.
macro_rules! unsupported {
    ($($message:tt)+) => {
        return Err($crate::onnx::import::Fail::Unsupported(format!($($message)+)))
    };
}
pub(crate) use unsupported;

/// Turns a model into a graph.
///
/// # Errors
/// When the model contradicts itself or `options`, or uses what is not supported (everything at once).
pub fn import(model: &Model, options: &ImportOptions) -> Result<Ir, Error> {
    import_with_warnings(model, options).map(|(graph, _)| graph)
}

/// Turns a model into a graph, and says what in the model is odd but does no harm.
///
/// # Errors
/// As [`import`].
pub fn import_with_warnings(model: &Model, options: &ImportOptions) -> Result<(Ir, Vec<String>), Error> {
    let (graph, report) = run(model, options).map_err(|e| e.in_file(&model.file))?;
    if report.is_supported() { Ok((graph, report.warnings)) } else { Err(Error::Unsupported(Box::new(report))) }
}

/// What of a model is not supported, everything at once.
///
/// # Errors
/// When the model contradicts itself or `options`.
pub fn check(model: &Model, options: &ImportOptions) -> Result<CheckReport, Error> {
    run(model, options).map(|(_, report)| report).map_err(|e| e.in_file(&model.file))
}

fn run(model: &Model, options: &ImportOptions) -> Result<(Ir, CheckReport), Error> {
    let mut cx = Importer::new(model);
    let sizes = inputs::declare(&mut cx, options)?;
    cx.initializers(&model.graph)?;
    for n in &model.graph.nodes {
        cx.node(n)?;
    }
    for o in &model.graph.outputs {
        match cx.lookup(&o.name) {
            None | Some(Entry::Absent) => return Err(Error::invalid(format!("output `{}`", o.name), "nothing defines this value")),
            Some(Entry::Unknown) => {}
            Some(Entry::Known(v)) => {
                let place = format!("output `{}`", o.name);
                if !cx.is_tensor(v) {
                    cx.report.add("", "output", "the output is a sequence or an optional; only tensors are supported", &o.name);
                    continue;
                }
                cx.check_output(o, v, &place)?;
                let warning = cx.compare_shape(o, v, &place, &sizes);
                cx.report.warnings.extend(warning);
                let value = cx.value(v)?;
                cx.graph.add_output(&o.name, value);
            }
        }
    }
    let others = model.graph.values.iter().filter_map(|d| match cx.lookup(&d.name) {
        Some(Entry::Known(v)) if cx.is_tensor(v) => cx.compare_shape(d, v, &format!("value `{}`", d.name), &sizes),
        _ => None,
    });
    let others: Vec<String> = others.collect();
    if let Some(first) = others.first() {
        let more = if others.len() > 1 { format!("; so it is with {} other values", others.len() - 1) } else { String::new() };
        cx.report.warnings.push(format!("{first}{more}"));
    }
    if cx.report.is_supported()
        && let Err(broken) = tfc_ir::verify::verify(&cx.graph)
    {
        let rules = broken.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Err(Error::invalid("", format!("the importer made a graph that is not valid: {rules}"))
            .help("this is a bug of tfc; please report it with the model"));
    }
    Ok((cx.graph, cx.report))
}

/// What a name stands for.
#[derive(Clone, Copy)]
enum Entry {
    Known(Val),
    /// The result of a node that is not supported.
    Unknown,
    /// A parameter of a function that the caller leaves out.
    Absent,
}

/// The names of a graph, a subgraph, or a function body.
struct Scope {
    names: HashMap<Arc<str>, Entry>,
    /// Whether names from around are visible: in subgraphs, but not in functions.
    open: bool,
}

/// A function being inlined.
struct Frame<'m> {
    /// `None` for the model.
    function: Option<FunctionId<'m>>,
    attributes: BTreeMap<String, Attribute>,
    opsets: BTreeMap<String, i64>,
}

/// Domain, name, and overload.
type FunctionId<'m> = (&'m str, &'m str, &'m str);

/// The state of an import.
pub struct Importer<'m> {
    model: &'m Model,
    functions: HashMap<FunctionId<'m>, &'m Function>,
    graph: Ir,
    values: Vec<build::Data>,
    scopes: Vec<Scope>,
    frames: Vec<Frame<'m>>,
    /// Names of the functions and loop rounds around the current node, each followed by a slash.
    prefix: String,
    /// The current node.
    loc: Loc,
    /// How many nodes may be visited.
    most_nodes: usize,
    report: CheckReport,
}

impl<'m> Importer<'m> {
    fn new(model: &'m Model) -> Self {
        let frame = Frame { function: None, attributes: BTreeMap::new(), opsets: model.opsets.clone() };
        let id = |f: &'m Function| ((f.domain.as_str(), f.name.as_str(), f.overload.as_str()), f);
        Importer {
            model,
            functions: model.functions.iter().map(id).collect(),
            graph: Ir::new(&model.graph.name),
            values: vec![],
            scopes: vec![Scope { names: HashMap::new(), open: false }],
            frames: vec![frame],
            prefix: String::new(),
            loc: Loc::default(),
            most_nodes: MAX_NODES.max(4 * (model.graph.nodes.len() + model.functions.iter().map(|f| f.nodes.len()).sum::<usize>())),
            report: CheckReport { file: model.file.clone(), ..CheckReport::default() },
        }
    }

    fn lookup(&self, name: &str) -> Option<Entry> {
        for s in self.scopes.iter().rev() {
            if let Some(e) = s.names.get(name) {
                return Some(*e);
            }
            if !s.open {
                break;
            }
        }
        None
    }

    fn bind(&mut self, name: &Arc<str>, entry: Entry) -> Result<(), Error> {
        let scope = self.scopes.last_mut().expect("a scope is open");
        match scope.names.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(Error::invalid(format!("value `{name}`"), "the value is defined twice")),
        }
    }

    fn initializers(&mut self, g: &Graph) -> Result<(), Error> {
        for (name, t) in &g.initializers {
            let v = self.named_const(t.clone(), name.clone());
            self.bind(name, Entry::Known(v))?;
        }
        Ok(())
    }

    fn place(&self, node: &Node) -> String {
        format!("node `{}{}` ({})", self.prefix, node.name, node.op)
    }

    /// Imports one node into the current scope.
    fn node(&mut self, node: &Node) -> Result<(), Error> {
        let place = self.place(node);
        self.report.nodes += 1;
        if self.report.nodes > self.most_nodes || self.values.len() > MAX_VALUES {
            let message = format!("with functions inlined and loops unrolled the model has more than {} nodes", self.most_nodes);
            return Err(Error::invalid(place, format!("{message} or {MAX_VALUES} values")));
        }
        let mut inputs = Vec::with_capacity(node.inputs.len());
        let mut unknown = false;
        for name in &node.inputs {
            inputs.push(match name.is_empty() {
                true => None,
                false => match self.lookup(name) {
                    Some(Entry::Known(v)) => Some(v),
                    Some(Entry::Absent) => None,
                    Some(Entry::Unknown) => {
                        unknown = true;
                        None
                    }
                    None => return Err(Error::invalid(place, format!("the operand `{name}` is not defined"))),
                },
            });
        }
        let results = if unknown { Err(None) } else { self.apply(node, inputs).map_err(Some) };
        let full_name = format!("{}{}", self.prefix, node.name);
        match results {
            Ok(results) => {
                let wanted = node.outputs.iter().rposition(|o| !o.is_empty()).map_or(0, |i| i + 1);
                if wanted > results.len() {
                    return Err(Error::invalid(place, format!("the node has {wanted} results, but the operator only {}", results.len())));
                }
                for (name, v) in node.outputs.iter().zip(results).filter(|(n, _)| !n.is_empty()) {
                    self.name_value(v, name);
                    self.bind(name, Entry::Known(v))?;
                }
                return Ok(());
            }
            Err(Some(Fail::Invalid(message))) => return Err(Error::invalid(place, message)),
            Err(Some(Fail::Whole(Error::Unsupported(r)))) => {
                for u in r.unsupported {
                    u.nodes.iter().for_each(|n| self.report.add(&u.domain, &u.operator, &u.reason, n));
                }
            }
            Err(Some(Fail::Whole(e))) => return Err(e),
            Err(Some(Fail::Unsupported(reason))) => self.report.add(&node.domain, &node.op, &reason, &full_name),
            Err(None) => self.survey(node, true),
        }
        for name in node.outputs.iter().filter(|o| !o.is_empty()) {
            self.bind(name, Entry::Unknown)?;
        }
        Ok(())
    }

    fn opset(&self, domain: &str) -> Option<i64> {
        self.frames.last().expect("the model is a frame").opsets.get(domain).copied()
    }

    /// What a node applies: an operator that is supported, with the version of its operator set, or else
    /// a function. Where both are there the operator is meant, as in ONNX Runtime.
    fn callee(&self, node: &Node) -> Res<Callee<'m>> {
        let function = self.functions.get(&(node.domain.as_str(), node.op.as_str(), node.overload.as_str()));
        match (table::find(node, self.opset(&node.domain)), function) {
            (Ok((operator, version)), None) => Ok(Callee::Operator(operator, version)),
            (Ok((operator, version)), Some(f)) if f.overload.is_empty() => Ok(Callee::Operator(operator, version)),
            (_, Some(f)) => Ok(Callee::Function(f)),
            (Err(e), None) => Err(e),
        }
    }

    fn apply(&mut self, node: &Node, inputs: Vec<Option<Val>>) -> Res<Vec<Val>> {
        let attributes = self.resolve_attributes(node)?;
        let (operator, version) = match self.callee(node)? {
            Callee::Function(f) => return self.call_function(f, node, &attributes, inputs),
            Callee::Operator(operator, version) => (operator, version),
        };
        operands::check(self, operator, &inputs)?;
        let outer = std::mem::replace(&mut self.loc, Loc::node(&format!("{}{}", self.prefix, node.name)));
        let results = (operator.import)(self, &Call { node, inputs, attributes: &attributes, version });
        self.loc = outer;
        results
    }

    /// Notes which operators of nodes that cannot be imported, since their operands are unknown, are
    /// not supported themselves.
    fn survey(&mut self, node: &Node, counted: bool) {
        self.report.nodes += usize::from(!counted);
        if let Err(Fail::Unsupported(reason)) = self.callee(node) {
            self.report.add(&node.domain, &node.op, &reason, &format!("{}{}", self.prefix, node.name));
        }
        for a in node.attributes.values() {
            if let Attribute::Graph(g) = a {
                g.nodes.iter().for_each(|n| self.survey(n, false));
            }
        }
    }

    /// The node's attributes with references to the function's attributes replaced.
    fn resolve_attributes<'a>(&self, node: &'a Node) -> Res<Cow<'a, BTreeMap<String, Attribute>>> {
        if !node.attributes.values().any(|a| matches!(a, Attribute::Reference(_))) {
            return Ok(Cow::Borrowed(&node.attributes));
        }
        if self.frames.len() == 1 {
            return Err(Fail::Invalid("an attribute refers to a function's attribute, but the node is not in a function".into()));
        }
        let given = &self.frames.last().expect("a function").attributes;
        let mut resolved = BTreeMap::new();
        for (name, a) in &node.attributes {
            let value = if let Attribute::Reference(r) = a { given.get(r) } else { Some(a) };
            if matches!((a, value), (Attribute::Reference(_), Some(Attribute::Graph(_)))) {
                unsupported!("the attribute `{name}` is a subgraph that a function takes as its own attribute");
            }
            resolved.extend(value.map(|v| (name.clone(), v.clone())));
        }
        Ok(Cow::Owned(resolved))
    }

    fn call_function(
        &mut self,
        f: &'m Function,
        node: &Node,
        attributes: &BTreeMap<String, Attribute>,
        inputs: Vec<Option<Val>>,
    ) -> Res<Vec<Val>> {
        let id = Some((f.domain.as_str(), f.name.as_str(), f.overload.as_str()));
        demand!(!self.frames.iter().any(|c| c.function == id), "the function `{}` calls itself", f.name);
        demand!(inputs.len() <= f.inputs.len(), "the function takes {} operands, but {} are given", f.inputs.len(), inputs.len());
        let given = inputs.iter().map(|v| v.map_or(Entry::Absent, Entry::Known)).chain(std::iter::repeat(Entry::Absent));
        let names = f.inputs.iter().cloned().zip(given).collect();
        let mut all = f.defaults.clone();
        all.extend(attributes.iter().map(|(k, v)| (k.clone(), v.clone())));
        let opsets = if f.opsets.is_empty() { self.model.opsets.clone() } else { f.opsets.clone() };
        self.frames.push(Frame { function: id, attributes: all, opsets });
        let prefix = self.prefix.len();
        self.prefix.push_str(&format!("{}/", node.name));
        let results = self.scoped(Scope { names, open: false }, |cx| {
            f.nodes.iter().try_for_each(|n| cx.node(n))?;
            Ok(f.outputs.iter().map(|o| cx.lookup(o)).collect())
        });
        self.prefix.truncate(prefix);
        self.frames.pop();
        self.known_results(results?, f.outputs.iter(), &format!("function `{}`", f.name))
    }

    /// What `inner` does with the names of a function or subgraph.
    fn scoped<T>(&mut self, scope: Scope, inner: impl FnOnce(&mut Self) -> Result<T, Error>) -> Res<T> {
        if self.scopes.len() > MAX_DEPTH {
            unsupported!("functions and subgraphs lie in each other more than {MAX_DEPTH} deep");
        }
        self.scopes.push(scope);
        let outcome = inner(self);
        self.scopes.pop();
        Ok(outcome?)
    }

    /// The values of a function or subgraph. Where one is unknown the report already says why.
    fn known_results<'a>(&self, found: Vec<Option<Entry>>, names: impl Iterator<Item = &'a Arc<str>>, place: &str) -> Res<Vec<Val>> {
        let mut results = Vec::with_capacity(found.len());
        for (entry, name) in found.into_iter().zip(names) {
            match entry {
                Some(Entry::Known(v)) => results.push(v),
                Some(Entry::Unknown) => return Err(Fail::Whole(Error::Unsupported(Box::default()))),
                None | Some(Entry::Absent) => {
                    return Err(Fail::Whole(Error::invalid(place, format!("nothing defines the output `{name}`"))));
                }
            }
        }
        Ok(results)
    }

    /// Imports a subgraph with the given operands and returns its outputs.
    fn subgraph(&mut self, g: &Graph, operands: &[Val]) -> Res<Vec<Val>> {
        demand!(g.inputs.len() == operands.len(), "the subgraph `{}` takes {} operands, not {}", g.name, g.inputs.len(), operands.len());
        let results = self.scoped(Scope { names: HashMap::new(), open: true }, |cx| {
            for (i, &v) in g.inputs.iter().zip(operands) {
                cx.bind(&i.name, Entry::Known(v))?;
            }
            cx.initializers(g)?;
            g.nodes.iter().try_for_each(|n| cx.node(n))?;
            Ok(g.outputs.iter().map(|o| cx.lookup(&o.name)).collect())
        })?;
        self.known_results(results, g.outputs.iter().map(|o| &o.name), &format!("subgraph `{}`", g.name))
    }

    /// Demands that an output be of the element type that is declared.
    fn check_output(&self, declared: &ValueInfo, v: Val, place: &str) -> Result<(), Error> {
        let found = self.ty(v);
        match declared.ty {
            Some(ValueType::Other(what)) => Err(Error::invalid(place, format!("{what} is declared, but the value is a tensor {found}"))),
            Some(ValueType::Tensor { elem, .. }) if elem != 0 && elem_of(elem) != Some(found.elem) => {
                Err(Error::invalid(place, format!("{} elements are declared, but the value is {found}", elem_name(elem))))
            }
            _ => Ok(()),
        }
    }

    /// A warning where a declared shape is not what is computed. What a model says about shapes that are not
    /// those of its inputs is a hint, and exporters get it wrong: names of sizes that are given by hand,
    /// the shapes of one run.
    fn compare_shape(&self, declared: &ValueInfo, v: Val, place: &str, named: &BTreeMap<String, Dim>) -> Option<String> {
        let Some(ValueType::Tensor { shape: Some(shape), .. }) = &declared.ty else { return None };
        let found = self.shape(v);
        // Sizes of 0 make most sizes equal.
        let symbols: SymbolTable =
            self.symbols().iter().map(|(s, r)| (s.clone(), Range { min: r.min.max(1).min(r.max), max: r.max })).collect();
        let differs = |size: &Size, d: &Dim| match size {
            Size::Fixed(n) => Dim::from(*n).same(d, &symbols) == Some(false),
            Size::Named(p) => named.get(p).is_some_and(|e| e.same(d, &symbols) == Some(false)),
            Size::Unknown => false,
        };
        if shape.len() == found.rank() && !shape.iter().zip(&found.0).any(|(size, d)| differs(size, d)) {
            return None;
        }
        let sizes = shape.iter().map(|s| match s {
            Size::Fixed(n) => n.to_string(),
            Size::Named(p) => p.clone(),
            Size::Unknown => "?".into(),
        });
        let declared = sizes.collect::<Vec<_>>().join(", ");
        Some(format!("{place} is declared with the shape [{declared}], but has the shape {found}; the declaration is ignored"))
    }
}

enum Callee<'m> {
    Operator(&'static Supported, i64),
    Function(&'m Function),
}
