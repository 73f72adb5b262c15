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
mod quant;
mod ratios;
mod reduce;
mod resize;
mod rnn;
mod rounded;
mod sample;
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
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Graph as Ir, Loc};
use tfc_ir::ops::InferError;
use tfc_ir::types::Type;

/// How many nodes an import may visit: bounds what nested functions and unrolled loops can grow to.
const MAX_NODES: usize = 1_000_000;

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
    let (graph, report) = run(model, options).map_err(|e| e.in_file(&model.file))?;
    if report.is_supported() { Ok(graph) } else { Err(Error::Unsupported(Box::new(report))) }
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
            None => return Err(Error::invalid(format!("output `{}`", o.name), "nothing defines this value")),
            Some(Entry::Unknown) => {}
            Some(Entry::Known(v)) => {
                cx.check_declared(o, cx.ty(v), &sizes)?;
                let value = cx.value(v)?;
                cx.graph.add_output(&o.name, value);
            }
        }
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
}

/// The names of a graph, a subgraph, or a function body.
struct Scope {
    names: HashMap<Arc<str>, Entry>,
    /// Whether names from around are visible: in subgraphs, but not in functions.
    open: bool,
}

/// A function being inlined.
struct Frame {
    /// Domain and name.
    function: (String, String),
    attributes: BTreeMap<String, Attribute>,
    opsets: BTreeMap<String, i64>,
}

/// The state of an import.
pub struct Importer<'m> {
    model: &'m Model,
    graph: Ir,
    values: Vec<build::Data>,
    scopes: Vec<Scope>,
    frames: Vec<Frame>,
    /// Names of the functions and loop rounds around the current node, each followed by a slash.
    prefix: String,
    /// The current node.
    loc: Loc,
    report: CheckReport,
}

impl<'m> Importer<'m> {
    fn new(model: &'m Model) -> Self {
        let frame = Frame { function: Default::default(), attributes: BTreeMap::new(), opsets: model.opsets.clone() };
        Importer {
            model,
            graph: Ir::new(&model.graph.name),
            values: vec![],
            scopes: vec![Scope { names: HashMap::new(), open: false }],
            frames: vec![frame],
            prefix: String::new(),
            loc: Loc::default(),
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
        if self.report.nodes > MAX_NODES {
            return Err(Error::invalid(
                place,
                format!("with functions inlined and loops unrolled the model has more than {MAX_NODES} nodes"),
            ));
        }
        let mut inputs = Vec::with_capacity(node.inputs.len());
        let mut unknown = false;
        for name in &node.inputs {
            inputs.push(match name.is_empty() {
                true => None,
                false => match self.lookup(name) {
                    Some(Entry::Known(v)) => Some(v),
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

    fn function(&self, node: &Node) -> Option<&'m Function> {
        self.model.functions.iter().find(|f| f.domain == node.domain && f.name == node.op)
    }

    fn apply(&mut self, node: &Node, inputs: Vec<Option<Val>>) -> Res<Vec<Val>> {
        let attributes = self.resolve_attributes(node)?;
        if let Some(f) = self.function(node) {
            return self.call_function(f, node, &attributes, inputs);
        }
        let (supported, version) = table::find(node, self.opset(&node.domain))?;
        let outer = std::mem::replace(&mut self.loc, Loc::node(&format!("{}{}", self.prefix, node.name)));
        let results = (supported.import)(self, &Call { node, inputs, attributes: &attributes, version });
        self.loc = outer;
        results
    }

    /// Notes which operators of nodes that cannot be imported, since their operands are unknown, are
    /// not supported themselves.
    fn survey(&mut self, node: &Node, counted: bool) {
        self.report.nodes += usize::from(!counted);
        if self.function(node).is_none()
            && let Err(Fail::Unsupported(reason)) = table::find(node, self.opset(&node.domain))
        {
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
        let resolved = node.attributes.iter().filter_map(|(name, a)| match a {
            Attribute::Reference(r) => given.get(r).map(|a| (name.clone(), a.clone())),
            a => Some((name.clone(), a.clone())),
        });
        Ok(Cow::Owned(resolved.collect()))
    }

    fn call_function(
        &mut self,
        f: &'m Function,
        node: &Node,
        attributes: &BTreeMap<String, Attribute>,
        inputs: Vec<Option<Val>>,
    ) -> Res<Vec<Val>> {
        let key = (f.domain.clone(), f.name.clone());
        demand!(!self.frames.iter().any(|c| c.function == key), "the function `{}` calls itself", f.name);
        demand!(inputs.len() <= f.inputs.len(), "the function takes {} operands, but {} are given", f.inputs.len(), inputs.len());
        let mut names = HashMap::new();
        for (name, v) in f.inputs.iter().zip(&inputs) {
            if let Some(v) = v {
                names.insert(name.clone(), Entry::Known(*v));
            }
        }
        // Nodes of the body see an operand that is left out as left out.
        let absent: Vec<&Arc<str>> = f.inputs.iter().filter(|n| !names.contains_key(*n)).collect();
        let mut all = f.defaults.clone();
        all.extend(attributes.iter().map(|(k, v)| (k.clone(), v.clone())));
        let opsets = if f.opsets.is_empty() { self.model.opsets.clone() } else { f.opsets.clone() };
        self.frames.push(Frame { function: key, attributes: all, opsets });
        self.scopes.push(Scope { names, open: false });
        let prefix = self.prefix.len();
        self.prefix.push_str(&format!("{}/", node.name));
        let mut outcome = Ok(());
        for n in &f.nodes {
            outcome = match n.inputs.iter().any(|i| absent.contains(&i)) {
                false => self.node(n),
                true => {
                    let mut n = n.clone();
                    n.inputs.iter_mut().filter(|i| absent.contains(&&**i)).for_each(|i| *i = "".into());
                    self.node(&n)
                }
            };
            if outcome.is_err() {
                break;
            }
        }
        let results: Vec<Option<Entry>> = f.outputs.iter().map(|o| self.lookup(o)).collect();
        self.prefix.truncate(prefix);
        self.scopes.pop();
        self.frames.pop();
        outcome?;
        self.known_results(results, f.outputs.iter(), &format!("function `{}`", f.name))
    }

    /// The values of a function or subgraph. Where one is unknown the report already says why.
    fn known_results<'a>(&self, found: Vec<Option<Entry>>, names: impl Iterator<Item = &'a Arc<str>>, place: &str) -> Res<Vec<Val>> {
        let mut results = Vec::with_capacity(found.len());
        for (entry, name) in found.into_iter().zip(names) {
            match entry {
                Some(Entry::Known(v)) => results.push(v),
                Some(Entry::Unknown) => return Err(Fail::Whole(Error::Unsupported(Box::default()))),
                None => return Err(Fail::Whole(Error::invalid(place, format!("nothing defines the output `{name}`")))),
            }
        }
        Ok(results)
    }

    /// Imports a subgraph with the given operands and returns its outputs.
    fn subgraph(&mut self, g: &Graph, operands: &[Val]) -> Res<Vec<Val>> {
        demand!(g.inputs.len() == operands.len(), "the subgraph `{}` takes {} operands, not {}", g.name, g.inputs.len(), operands.len());
        self.scopes.push(Scope { names: HashMap::new(), open: true });
        let outcome = (|| {
            for (i, &v) in g.inputs.iter().zip(operands) {
                self.bind(&i.name, Entry::Known(v))?;
            }
            self.initializers(g)?;
            g.nodes.iter().try_for_each(|n| self.node(n))
        })();
        let results: Vec<Option<Entry>> = g.outputs.iter().map(|o| self.lookup(&o.name)).collect();
        self.scopes.pop();
        outcome?;
        self.known_results(results, g.outputs.iter().map(|o| &o.name), &format!("subgraph `{}`", g.name))
    }

    /// Compares what the model declares about a value with what was inferred.
    fn check_declared(&self, declared: &ValueInfo, found: &Type, sizes: &BTreeMap<String, Dim>) -> Result<(), Error> {
        let place = format!("output `{}`", declared.name);
        let Some(ValueType::Tensor { elem, shape }) = &declared.ty else {
            return match declared.ty {
                Some(ValueType::Other(what)) => {
                    Err(Error::invalid(place, format!("{what} is declared, but the value is a tensor {found}")))
                }
                _ => Ok(()),
            };
        };
        if *elem != 0 && elem_of(*elem) != Some(found.elem) {
            return Err(Error::invalid(place, format!("{} elements are declared, but the value is {found}", elem_name(*elem))));
        }
        let Some(shape) = shape else { return Ok(()) };
        if shape.len() != found.rank() {
            return Err(Error::invalid(place, format!("{} axes are declared, but the value is {found}", shape.len())));
        }
        for (axis, (size, d)) in shape.iter().zip(&found.shape.0).enumerate() {
            let expected = match size {
                Size::Fixed(n) => Dim::from(*n),
                Size::Named(p) => match sizes.get(p) {
                    Some(d) => d.clone(),
                    None => continue,
                },
                Size::Unknown => continue,
            };
            if expected.same(d, &self.graph.symbols) == Some(false) {
                return Err(Error::invalid(place, format!("the size {expected} is declared for axis {axis}, but the value is {found}")));
            }
        }
        Ok(())
    }
}
