//! The verifier. A graph is valid if these rules hold, and only valid graphs reach a backend:
//!
//! 1. The range of a symbol is not empty and has no negative number.
//! 2. Symbols in types, checks and attributes are declared.
//! 3. Types have at most [`MAX_RANK`] axes; no size is negative whatever the symbols are; sizes and
//!    other dimensions are not larger than [`Dim::MAX_SIZE`], the number of elements, multiplied
//!    out, has at most [`MAX_TERMS`] terms; so has the product of a list in an attribute, but for `dims`.
//! 4. The element type of a quantized type is an integer and the one that its scheme stores; the
//!    range of stored values is not empty and within it; the axis exists; blocks are not empty;
//!    scales are `f32`, `f16` or `bf16`.
//! 5. A constant has the element type and sizes of its tensor; `bool` elements are 0 or 1; the unused
//!    nibble behind an odd number of 4-bit elements is 0.
//! 6. Operands are inputs, constants, or results of earlier nodes of the same graph.
//! 7. The operator takes its operands, and its results have the types that inference gives: sizes
//!    equal for all values of the symbols.
//! 8. The equalities of dimensions that inference assumes are among the checks of the graph.
//! 9. Outputs are values of the graph. Names of inputs are distinct and not empty, those of outputs
//!    too; those of nested graphs are free.
//! 10. Nested graphs obey these rules, declare the symbols of the graph around them with the same
//!     ranges, and are at most [`MAX_NESTED`] deep.
//!
//! Not checked, because the methods of [`Graph`] maintain it: that every value has one definition and
//! lists refer to each other. Not checked, because it is allowed: values, symbols and checks without
//! use, checks that always hold. Not checked, because only a run can: the contents of index operands,
//! and whether sizes stay in range where the symbols leave it open.

use crate::attr::AttrValue;
use crate::dim::{Dim, Symbol, SymbolTable};
use crate::graph::{DimCheck, Graph, Loc, Node, NodeData, Value};
use crate::ops::{InferCx, Op};
use crate::quant::{Granularity, Scheme};
use crate::tensor::Tensor;
use crate::text::{Labels, labels};
use crate::types::{Elem, Type};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Deref;

/// Most axes of a type.
pub const MAX_RANK: usize = 32;

/// Most terms of a number of elements, multiplied out.
pub const MAX_TERMS: usize = 4096;

/// How deep graphs nest at most.
pub const MAX_NESTED: usize = 8;

/// A graph that has been verified: what backends demand.
#[derive(Clone, Copy, Debug)]
pub struct Verified<'a>(&'a Graph);

impl<'a> Verified<'a> {
    /// The graph, for as long as it is borrowed.
    pub fn graph(self) -> &'a Graph {
        self.0
    }
}

impl Deref for Verified<'_> {
    type Target = Graph;
    fn deref(&self) -> &Graph {
        self.0
    }
}

/// The part of a graph that breaks a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// A symbol's declaration.
    Symbol(Symbol),
    /// The `n`-th check.
    Check(usize),
    /// An input or a constant.
    Value(Value),
    /// A node.
    Node(Node),
    /// The `n`-th output.
    Output(usize),
}

/// A broken rule. Where a pass made the graph, this is a bug of the pass.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifyError {
    /// The number of the rule in the list of this module.
    pub rule: u32,
    /// The nodes, from the outermost one, whose nested graphs lead to `part`.
    pub inside: Vec<Node>,
    /// What breaks the rule.
    pub part: Part,
    /// `part` as the text form writes it.
    pub label: String,
    /// Where it came from.
    pub loc: Loc,
    /// What is wrong.
    pub message: String,
}

impl std::error::Error for VerifyError {}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (rule {} of the verifier", self.label, self.message, self.rule)?;
        if self.loc != Loc::default() {
            write!(f, ", at {}", self.loc)?;
        }
        f.write_str(")")
    }
}

/// Checks every rule.
///
/// # Errors
/// All that is wrong, in the order of the text form.
pub fn verify(graph: &Graph) -> Result<Verified<'_>, Vec<VerifyError>> {
    let mut verifier = Verifier { graph, labels: labels(graph), inside: vec![], part: Part::Output(0), errors: vec![] };
    verifier.names();
    verifier.graph(None);
    if verifier.errors.is_empty() { Ok(Verified(graph)) } else { Err(verifier.errors) }
}

struct Verifier<'a> {
    graph: &'a Graph,
    labels: Labels,
    inside: Vec<Node>,
    /// What is being looked at.
    part: Part,
    errors: Vec<VerifyError>,
}

impl Verifier<'_> {
    fn error(&mut self, rule: u32, message: String) {
        let (label, loc) = match &self.part {
            Part::Symbol(s) => (format!("symbol {s}"), Loc::default()),
            Part::Check(i) => {
                let DimCheck { left, right, loc } = &self.graph.checks[*i];
                (format!("check {left} == {right}"), loc.clone())
            }
            Part::Value(v) => (self.labels.get(*v).to_string(), Loc::default()),
            Part::Node(n) => {
                let NodeData { op, outputs, loc, .. } = self.graph.node(*n);
                let results: Vec<&str> = outputs.iter().map(|&v| self.labels.get(v)).collect();
                (format!("{} = {}", results.join(", "), op.mnemonic()), loc.clone())
            }
            Part::Output(i) => (format!("output {:?}", self.graph.outputs()[*i].name), Loc::default()),
        };
        self.errors.push(VerifyError { rule, inside: self.inside.clone(), part: self.part.clone(), label, loc, message });
    }

    fn require(&mut self, rule: u32, holds: bool, message: impl FnOnce() -> String) -> bool {
        if !holds {
            self.error(rule, message());
        }
        holds
    }

    /// Rule 9 for names.
    fn names(&mut self) {
        let graph = self.graph;
        let mut seen = BTreeSet::new();
        for &v in graph.inputs() {
            self.part = Part::Value(v);
            let name = graph.value(v).name.as_deref().unwrap_or_default();
            self.require(9, !name.is_empty(), || "an input has no name".into());
            self.require(9, seen.insert(name) || name.is_empty(), || format!("another input is called {name}"));
        }
        seen.clear();
        for (i, o) in graph.outputs().iter().enumerate() {
            self.part = Part::Output(i);
            self.require(9, !o.name.is_empty(), || "an output has no name".into());
            self.require(9, seen.insert(&*o.name) || o.name.is_empty(), || format!("another output is called {}", o.name));
        }
    }

    /// All rules but that for names. `around` are the symbols of the graph around this one.
    fn graph(&mut self, around: Option<&SymbolTable>) {
        let graph = self.graph;
        for (s, r) in &graph.symbols {
            self.part = Part::Symbol(s.clone());
            self.require(1, 0 <= r.min && r.min <= r.max, || format!("the range {}..{} is empty or has negative numbers", r.min, r.max));
            if let Some(around) = around {
                self.require(10, around.get(s) == Some(r), || "the graph around this one does not declare the symbol so".into());
            }
        }
        for (i, c) in graph.checks.iter().enumerate() {
            self.part = Part::Check(i);
            self.dim(&c.left);
            self.dim(&c.right);
        }
        // Results become defined as their nodes are passed.
        let mut defined: BTreeSet<Value> = graph.values().filter(|(v, _)| graph.producer(*v).is_none()).map(|(v, _)| v).collect();
        for &v in graph.inputs() {
            self.part = Part::Value(v);
            self.ty(graph.ty(v));
        }
        for (v, data) in graph.values() {
            if let Some(tensor) = graph.as_const(v) {
                self.part = Part::Value(v);
                self.ty(&data.ty);
                self.constant(tensor, &data.ty);
            }
        }
        for (n, node) in graph.nodes() {
            self.part = Part::Node(n);
            self.node(n, node, &defined);
            defined.extend(&node.outputs);
        }
        for (i, o) in graph.outputs().iter().enumerate() {
            self.part = Part::Output(i);
            self.require(9, graph.contains(o.value), || "the value is not one of this graph".into());
        }
    }

    /// Rules 6 to 8, and those for result types and attributes.
    fn node(&mut self, n: Node, node: &NodeData, defined: &BTreeSet<Value>) {
        let graph = self.graph;
        let before = self.errors.len();
        for &v in &node.inputs {
            let of = if graph.contains(v) { self.labels.get(v).to_string() } else { "a value of another graph".into() };
            self.require(6, defined.contains(&v), || format!("the operand {of} is not defined before"));
        }
        for &v in &node.outputs {
            self.ty(graph.ty(v));
        }
        for (_, value) in node.op.attributes() {
            self.attribute(n, &value);
        }
        // Inference may rely on what has been checked so far.
        if self.errors.len() > before {
            return;
        }
        let operands: Vec<Type> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
        let mut cx = InferCx::new(&graph.symbols);
        let inferred = match node.op.infer(&mut cx, &operands) {
            Ok(types) => types,
            Err(e) => return self.error(7, e.to_string()),
        };
        let stated: Vec<&Type> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
        self.require(7, stated.len() == inferred.len(), || format!("{} results are given, but it has {}", stated.len(), inferred.len()));
        for (stated, inferred) in stated.iter().zip(&inferred) {
            self.require(7, same_type(stated, inferred, &graph.symbols), || {
                format!("the result is given as {stated}, but it is {inferred}")
            });
        }
        for (left, right) in cx.into_checks() {
            let difference = left.clone() - right.clone();
            let checked = graph.checks.iter().map(|c| c.left.clone() - c.right.clone()).any(|d| d == difference || -d == difference);
            self.require(8, checked, || format!("it needs the equality {left} == {right}, which the graph does not check"));
        }
    }

    /// Dimensions and nested graphs of an attribute of node `n`.
    fn attribute(&mut self, n: Node, value: &AttrValue) {
        match value {
            AttrValue::Word(_) | AttrValue::Float(_) => {}
            AttrValue::Dim(d) => self.dim(d),
            AttrValue::List(items) => {
                items.iter().for_each(|item| self.attribute(n, item));
                let dims = items.iter().filter_map(|item| if let AttrValue::Dim(d) = item { Some(d) } else { None });
                if !matches!(self.graph.node(n).op, Op::Dims(_)) {
                    let message = || format!("the product of a list of dimensions has more than {MAX_TERMS} terms");
                    self.require(3, terms_of_product(dims) <= MAX_TERMS, message);
                }
            }
            AttrValue::Graph(body) => {
                if !self.require(10, self.inside.len() < MAX_NESTED, || format!("graphs nest more than {MAX_NESTED} levels deep")) {
                    return;
                }
                let missing: Vec<String> =
                    self.graph.symbols.keys().filter(|&s| !body.symbols.contains_key(s)).map(ToString::to_string).collect();
                self.require(10, missing.is_empty(), || format!("the nested graph does not declare {}", missing.join(", ")));
                let mut inside = self.inside.clone();
                inside.push(n);
                let mut inner = Verifier { graph: body, labels: labels(body), inside, part: Part::Output(0), errors: vec![] };
                inner.graph(Some(&self.graph.symbols));
                self.errors.append(&mut inner.errors);
            }
        }
    }

    /// Rules 2 and 3 for one dimension.
    fn dim(&mut self, d: &Dim) {
        let mut symbols = BTreeSet::new();
        d.collect_symbols(&mut symbols);
        for s in symbols {
            self.require(2, self.graph.symbols.contains_key(&s), || format!("the symbol {s} is not declared"));
        }
        self.require(3, d.size() <= Dim::MAX_SIZE, || format!("the dimension {d} has more than {} terms and factors", Dim::MAX_SIZE));
    }

    /// Rules 2 to 4 for a type.
    fn ty(&mut self, ty: &Type) {
        self.require(3, ty.rank() <= MAX_RANK, || format!("{ty} has more than {MAX_RANK} axes"));
        for d in &ty.shape.0 {
            self.dim(d);
            self.require(3, d.range(&self.graph.symbols).max >= 0, || format!("the size {d} of {ty} is negative"));
        }
        self.require(3, terms_of_product(ty.shape.0.iter()) <= MAX_TERMS, || {
            format!("the number of elements of {ty} has more than {MAX_TERMS} terms")
        });
        if let Some(scheme) = &ty.quant
            && let Some(message) = scheme_error(scheme, ty)
        {
            self.error(4, message);
        }
    }

    /// Rule 5.
    fn constant(&mut self, tensor: &Tensor, ty: &Type) {
        let fits = tensor.elem() == ty.elem && tensor.ty().shape == ty.shape;
        self.require(5, fits, || format!("the type is {ty}, but the data is {}", tensor.ty()));
        let bools = tensor.elem() != Elem::Bool || tensor.bytes().iter().all(|&b| b <= 1);
        self.require(5, bools, || "an element of the bool constant is neither 0 nor 1".into());
        let odd = tensor.elem().bits() == 4 && tensor.len() % 2 == 1;
        let clean = !odd || tensor.bytes().last().is_none_or(|&b| b >> 4 == 0);
        self.require(5, clean, || "the unused nibble behind the last element is not 0".into());
    }
}

/// How many terms the product of dimensions has at most, multiplied out.
pub(crate) fn terms_of_product<'a>(dims: impl Iterator<Item = &'a Dim>) -> usize {
    dims.fold(1, |n: usize, d| n.saturating_mul(d.terms().count().max(1)))
}

/// What is wrong with a scheme in a type.
fn scheme_error(scheme: &Scheme, ty: &Type) -> Option<String> {
    let Scheme { storage, min, max, granularity, scale, symmetric: _ } = *scheme;
    if storage != ty.elem {
        return Some(format!("{ty} is made of {}, but its scheme stores {storage}", ty.elem));
    }
    let Some((low, high)) = storage.int_range().filter(|_| storage.is_int()) else {
        return Some(format!("{storage} of {ty} is not an integer type"));
    };
    if min > max || i128::from(min) < low || high < i128::from(max) {
        return Some(format!("the range {min} to {max} of {ty} is empty or not within {storage}"));
    }
    if let Granularity::Axis { axis } | Granularity::Blocks { axis, .. } = granularity
        && axis as usize >= ty.rank()
    {
        return Some(format!("{ty} has no axis {axis}"));
    }
    if matches!(granularity, Granularity::Blocks { size: 0, .. }) {
        return Some(format!("blocks of {ty} have no elements"));
    }
    (!matches!(scale, Elem::F32 | Elem::F16 | Elem::Bf16)).then(|| format!("scales of {ty} cannot be {scale}"))
}

fn same_type(a: &Type, b: &Type, symbols: &SymbolTable) -> bool {
    let same = |(a, b): (&Dim, &Dim)| a == b || a.same(b, symbols) == Some(true);
    (a.elem, a.quant, a.rank()) == (b.elem, b.quant, b.rank()) && a.shape.0.iter().zip(&b.shape.0).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::Range;
    use crate::ops::{Exp, Reshape};
    use crate::types::Shape;
    use bytes::Bytes;

    fn rules(graph: &Graph) -> Vec<u32> {
        verify(graph).err().unwrap_or_default().iter().map(|e| e.rule).collect()
    }

    // What the text form cannot express; the rest is in the filetests.

    #[test]
    fn operands_of_other_graphs_are_refused() {
        let mut other = Graph::new("other");
        let values: Vec<Value> = (0..3).map(|i| other.add_input(&i.to_string(), Type::fixed(Elem::F32, &[]))).collect();
        let mut graph = Graph::new("g");
        graph.add_node_typed(Op::Exp(Exp {}), &values[2..], vec![Type::fixed(Elem::F32, &[])], &Loc::node("/Exp"));
        graph.add_output("y", values[1]);
        let errors = verify(&graph).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "%0 = exp: the operand a value of another graph is not defined before (rule 6 of the verifier, at /Exp)"
        );
        assert_eq!(rules(&graph), [6, 9]);
        assert!(graph.to_string().contains("%0 = exp %? : f32[]"));
    }

    #[test]
    fn a_result_cannot_be_used_before_it_is_defined() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", Type::fixed(Elem::F32, &[]));
        let own = Value::from_u32(1);
        graph.add_node_typed(Op::Exp(Exp {}), &[own], vec![Type::fixed(Elem::F32, &[])], &Loc::default());
        graph.add_output("y", x);
        assert_eq!(rules(&graph), [6]);
    }

    #[test]
    fn names_of_inputs_and_outputs_are_distinct() {
        let mut graph = Graph::new("g");
        let x = graph.add_input("x", Type::fixed(Elem::F32, &[]));
        graph.add_input("x", Type::fixed(Elem::F32, &[]));
        graph.add_output("", x);
        assert_eq!(rules(&graph), [9, 9]);
    }

    #[test]
    fn shapes_that_multiply_out_to_too_much_are_refused() {
        let mut graph = Graph::new("g");
        let shape: Shape = (0..31).map(|i| Dim::symbol(&format!("s{i}")) + Dim::from(1)).collect();
        let x = graph.add_input("x", Type::new(Elem::F32, shape.clone()));
        graph.add_node_typed(Op::Reshape(Reshape { shape }), &[x], vec![Type::fixed(Elem::F32, &[1])], &Loc::default());
        assert_eq!(rules(&graph), [3, 3]);
    }

    #[test]
    fn bytes_of_constants_are_what_the_type_allows() {
        let mut graph = Graph::new("g");
        graph.add_const(Tensor::new(Elem::Bool, vec![2], Bytes::from_static(&[1, 2])).unwrap(), None);
        graph.add_const(Tensor::new(Elem::U4, vec![3], Bytes::from_static(&[0, 0x10])).unwrap(), None);
        graph.symbols.insert(Symbol::new("n"), Range { min: 3, max: 2 });
        assert_eq!(rules(&graph), [1, 5, 5]);
    }
}
