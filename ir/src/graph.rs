//! The graph: values with types, operators that define them, in an order that can be executed.

use crate::dim::{Bindings, Dim, Range, Symbol, SymbolTable};
use crate::ops::{EvalError, InferCx, InferError, Op};
use crate::tensor::Tensor;
use crate::types::Type;
use cranelift_entity::{PrimaryMap, SecondaryMap, entity_impl};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A value: an input, a constant, or a result of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(u32);
entity_impl!(Value, "v");

/// An application of an operator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(u32);
entity_impl!(Node, "n");

/// Where something came from: the names of the ONNX nodes, sorted, without repetition. May be empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Loc(Vec<Arc<str>>);

impl Loc {
    /// The location of one ONNX node.
    pub fn node(name: &str) -> Loc {
        Loc(vec![name.into()])
    }

    /// The location of several ONNX nodes.
    pub fn nodes<'a>(names: impl IntoIterator<Item = &'a str>) -> Loc {
        let mut names: Vec<Arc<str>> = names.into_iter().map(Arc::from).collect();
        names.sort();
        names.dedup();
        Loc(names)
    }

    /// Everything that either came from.
    pub fn join(&self, other: &Loc) -> Loc {
        let mut names: Vec<_> = self.0.iter().chain(&other.0).cloned().collect();
        names.sort();
        names.dedup();
        Loc(names)
    }

    /// The names of the ONNX nodes.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|n| &**n)
    }
}

impl fmt::Display for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// What defines a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Def {
    /// The graph's `n`-th input.
    Input(u32),
    /// A tensor known at compile time.
    Const(Tensor),
    /// The `n`-th result of a node.
    Result(Node, u32),
}

/// A value's type, definition and name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValueData {
    /// Its type.
    pub ty: Type,
    /// What defines it.
    pub def: Def,
    /// The name it has in the model: always set for inputs, for constants if the file names them.
    pub name: Option<Arc<str>>,
}

/// A node's operator, operands, results and origin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeData {
    /// The operator with its attributes.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<Value>,
    /// Results, at least one.
    pub outputs: Vec<Value>,
    /// Which ONNX nodes it came from.
    pub loc: Loc,
}

/// A result of the graph under its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// Name in the model.
    pub name: Arc<str>,
    /// The value.
    pub value: Value,
}

/// Two dimensions that must be equal at run time; where they are not, the model reports a status.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct DimCheck {
    /// One side.
    pub left: Dim,
    /// The other side.
    pub right: Dim,
    /// What demands it.
    pub loc: Loc,
}

/// A pure dataflow graph. Nodes are stored in an executable order: operands are defined before.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// The free dimensions and their ranges.
    pub symbols: SymbolTable,
    /// What must hold between dimensions at run time.
    pub checks: Vec<DimCheck>,
    /// What narrowed the range of a symbol: for messages, not part of the text form.
    pub bounds: BTreeMap<Symbol, Loc>,
    nodes: PrimaryMap<Node, NodeData>,
    values: PrimaryMap<Value, ValueData>,
    inputs: Vec<Value>,
    outputs: Vec<Output>,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// An empty graph without a name: where the body of a node starts.
    pub fn with_symbols(symbols: SymbolTable) -> Graph {
        Graph { symbols, ..Graph::default() }
    }

    /// An empty graph with this one's name, symbols, bounds and checks: where a pass starts to rebuild.
    pub fn emptied(&self) -> Graph {
        let (symbols, bounds) = (self.symbols.clone(), self.bounds.clone());
        Graph { name: self.name.clone(), symbols, bounds, checks: self.checks.clone(), ..Graph::default() }
    }

    /// Adds an input. Symbols of its shape that the graph does not know yet get [`Range::ANY`].
    pub fn add_input(&mut self, name: &str, ty: Type) -> Value {
        let mut symbols = Default::default();
        ty.shape.0.iter().for_each(|d| d.collect_symbols(&mut symbols));
        for s in symbols {
            self.symbols.entry(s).or_insert(Range::ANY);
        }
        let def = Def::Input(self.inputs.len() as u32);
        let v = self.values.push(ValueData { ty, def, name: Some(name.into()) });
        self.inputs.push(v);
        v
    }

    /// Adds a constant.
    pub fn add_const(&mut self, tensor: Tensor, name: Option<Arc<str>>) -> Value {
        self.values.push(ValueData { ty: tensor.ty(), def: Def::Const(tensor), name })
    }

    /// Adds a constant with a quantized type.
    ///
    /// # Panics
    /// When element type or shape of `ty` are not the tensor's.
    pub fn add_typed_const(&mut self, tensor: Tensor, ty: Type, name: Option<Arc<str>>) -> Value {
        assert_eq!((ty.elem, &ty.shape), (tensor.elem(), &tensor.ty().shape), "type of a constant");
        self.values.push(ValueData { ty, def: Def::Const(tensor), name })
    }

    /// Appends a node; the types of its results are inferred.
    ///
    /// # Errors
    /// When the operands break a constraint of the operator. The graph is unchanged then.
    pub fn add_node(&mut self, op: impl Into<Op>, inputs: &[Value], loc: &Loc) -> Result<Vec<Value>, InferError> {
        let op = op.into();
        let operand_types: Vec<Type> = inputs.iter().map(|&v| self.values[v].ty.clone()).collect();
        let mut cx = InferCx::new(&self.symbols);
        let types = op.infer(&mut cx, &operand_types)?;
        for (left, right) in cx.into_checks() {
            let check = DimCheck { left, right, loc: loc.clone() };
            if !self.checks.iter().any(|c| (&c.left, &c.right) == (&check.left, &check.right)) {
                self.checks.push(check);
            }
        }
        Ok(self.add_node_typed(op, inputs, types, loc))
    }

    /// Appends a node with one result.
    ///
    /// # Errors
    /// As [`Graph::add_node`].
    pub fn add(&mut self, op: impl Into<Op>, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        Ok(self.add_node(op, inputs, loc)?[0])
    }

    /// Appends a node whose result types are given: for parsers; the verifier compares them with inference.
    pub fn add_node_typed(&mut self, op: Op, inputs: &[Value], types: Vec<Type>, loc: &Loc) -> Vec<Value> {
        let node = self.nodes.next_key();
        let outputs: Vec<Value> = types
            .into_iter()
            .enumerate()
            .map(|(i, ty)| self.values.push(ValueData { ty, def: Def::Result(node, i as u32), name: None }))
            .collect();
        self.nodes.push(NodeData { op, inputs: inputs.to_vec(), outputs: outputs.clone(), loc: loc.clone() });
        outputs
    }

    /// Declares a result of the graph.
    pub fn add_output(&mut self, name: &str, value: Value) {
        self.outputs.push(Output { name: name.into(), value });
    }

    /// Forgets all declared results.
    pub fn clear_outputs(&mut self) {
        self.outputs.clear();
    }

    /// The inputs in order.
    pub fn inputs(&self) -> &[Value] {
        &self.inputs
    }

    /// The results in order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The nodes in execution order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (Node, &NodeData)> + ExactSizeIterator {
        self.nodes.iter()
    }

    /// A node.
    pub fn node(&self, n: Node) -> &NodeData {
        &self.nodes[n]
    }

    /// All values in the order of their definition.
    pub fn values(&self) -> impl ExactSizeIterator<Item = (Value, &ValueData)> {
        self.values.iter()
    }

    /// Whether `v` is a value of this graph.
    pub fn contains(&self, v: Value) -> bool {
        self.values.is_valid(v)
    }

    /// The node that will be appended next.
    pub fn next_node(&self) -> Node {
        self.nodes.next_key()
    }

    /// A value.
    pub fn value(&self, v: Value) -> &ValueData {
        &self.values[v]
    }

    /// Gives a value a name; names are for people and for the text form.
    pub fn set_name(&mut self, v: Value, name: Option<Arc<str>>) {
        self.values[v].name = name;
    }

    /// A value's type.
    pub fn ty(&self, v: Value) -> &Type {
        &self.values[v].ty
    }

    /// Bytes of all constants.
    pub fn constant_bytes(&self) -> usize {
        self.values().filter_map(|(v, _)| self.as_const(v)).map(|t| t.bytes().len()).sum()
    }

    /// The tensor, if the value is a constant.
    pub fn as_const(&self, v: Value) -> Option<&Tensor> {
        match &self.values[v].def {
            Def::Const(t) => Some(t),
            _ => None,
        }
    }

    /// The node that computes the value, if one does.
    pub fn producer(&self, v: Value) -> Option<&NodeData> {
        match self.values[v].def {
            Def::Result(n, _) => Some(&self.nodes[n]),
            _ => None,
        }
    }

    /// For every value the nodes that take it (once per operand position).
    pub fn users(&self) -> SecondaryMap<Value, Vec<Node>> {
        let mut users: SecondaryMap<Value, Vec<Node>> = SecondaryMap::new();
        for (n, data) in self.nodes() {
            for &v in &data.inputs {
                users[v].push(n);
            }
        }
        users
    }

    /// How often every value is used: as an operand or as a result of the graph.
    pub fn use_counts(&self) -> SecondaryMap<Value, u32> {
        let mut counts = SecondaryMap::new();
        for (_, data) in self.nodes() {
            for &v in &data.inputs {
                counts[v] += 1;
            }
        }
        for o in &self.outputs {
            counts[o.value] += 1;
        }
        counts
    }

    /// Copies inputs and, through `emit`, every node into a new graph; `emit` gets the graph under
    /// construction, the node and its operands there, and returns the results there. Constants are
    /// copied when they are first used. This is how passes are written: nothing dangles, the order
    /// stays executable, and whatever `emit` does not emit is gone.
    ///
    /// # Errors
    /// The first error of `emit`.
    pub fn rebuild<E>(&self, mut emit: impl FnMut(&mut Graph, Node, &NodeData, &[Value]) -> Result<Vec<Value>, E>) -> Result<Graph, E> {
        let mut out = self.emptied();
        let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::new();
        for &v in &self.inputs {
            let d = &self.values[v];
            map[v] = Some(out.add_input(d.name.as_deref().unwrap_or_default(), d.ty.clone()));
        }
        let import = |out: &mut Graph, map: &mut SecondaryMap<Value, Option<Value>>, v: Value| match map[v] {
            Some(new) => new,
            None => {
                let d = &self.values[v];
                let Def::Const(t) = &d.def else { unreachable!("operands are defined before their uses") };
                let new = out.add_typed_const(t.clone(), d.ty.clone(), d.name.clone());
                map[v] = Some(new);
                new
            }
        };
        for (n, data) in self.nodes() {
            let inputs: Vec<Value> = data.inputs.iter().map(|&v| import(&mut out, &mut map, v)).collect();
            let results = emit(&mut out, n, data, &inputs)?;
            debug_assert_eq!(results.len(), data.outputs.len(), "results of {}", data.op.mnemonic());
            for (&old, new) in data.outputs.iter().zip(results) {
                map[old] = Some(new);
                if out.values[new].name.is_none() {
                    out.values[new].name = self.values[old].name.clone();
                }
            }
        }
        for o in &self.outputs {
            let v = import(&mut out, &mut map, o.value);
            out.add_output(&o.name, v);
        }
        Ok(out)
    }

    /// Appends a copy of `body` with its inputs replaced by `inputs`; returns the copies of its outputs.
    ///
    /// # Errors
    /// When an operator of the body does not take the types it gets here.
    pub fn inline(&mut self, body: &Graph, inputs: &[Value], loc: &Loc) -> Result<Vec<Value>, InferError> {
        let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::new();
        for (&v, &new) in body.inputs.iter().zip(inputs) {
            map[v] = Some(new);
        }
        for (v, d) in body.values() {
            if let Def::Const(t) = &d.def {
                map[v] = Some(self.add_typed_const(t.clone(), d.ty.clone(), d.name.clone()));
            }
        }
        let mapped = |map: &SecondaryMap<Value, Option<Value>>, v: Value| map[v].expect("defined before its use");
        for (_, data) in body.nodes() {
            let operands: Vec<Value> = data.inputs.iter().map(|&v| mapped(&map, v)).collect();
            let results = self.add_node(data.op.clone(), &operands, &data.loc.join(loc))?;
            for (&old, new) in data.outputs.iter().zip(results) {
                map[old] = Some(new);
            }
        }
        Ok(body.outputs.iter().map(|o| mapped(&map, o.value)).collect())
    }

    /// Runs the graph with the operators' reference evaluation. `inputs` are in the graph's order.
    /// Values are dropped after their last use.
    ///
    /// # Errors
    /// When a dimension check fails, a symbol has no value, or an operator meets a run-time error
    /// such as an index out of range.
    pub fn evaluate(&self, inputs: &[Tensor], bindings: &Bindings) -> Result<Vec<Tensor>, EvalError> {
        for c in &self.checks {
            let (l, r) = (c.left.eval(bindings), c.right.eval(bindings));
            if l != r || l.is_none() {
                return Err(EvalError::new(format!("dimensions differ: {} = {l:?}, {} = {r:?}", c.left, c.right)).at(&c.loc));
            }
        }
        let mut left = self.use_counts();
        let mut env: SecondaryMap<Value, Option<Tensor>> = SecondaryMap::new();
        for (&v, t) in self.inputs.iter().zip(inputs) {
            env[v] = Some(t.clone());
        }
        for (v, d) in self.values() {
            if let Def::Const(t) = &d.def {
                env[v] = Some(t.clone());
            }
        }
        for (_, data) in self.nodes() {
            let operands: Vec<Tensor> = data.inputs.iter().map(|&v| env[v].clone().expect("defined before its use")).collect();
            let results = data.op.eval(bindings, &operands).map_err(|e| e.at(&data.loc))?;
            for (&v, t) in data.outputs.iter().zip(results) {
                env[v] = Some(t);
            }
            for &v in &data.inputs {
                left[v] -= 1;
                if left[v] == 0 {
                    env[v] = None;
                }
            }
        }
        Ok(self.outputs.iter().map(|o| env[o.value].clone().expect("defined before its use")).collect())
    }
}
