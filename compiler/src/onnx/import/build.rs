//! Values under import, and the small vocabulary in which operators are spelled out.
//!
//! A value is made a value of the graph when it is first used as data. Until then it may be just
//! known: a constant, or an integer tensor whose elements are dimensions.

use super::quotients::Quotients;
use super::{Importer, Res, demand};
use crate::onnx::error::CheckReport;
use crate::onnx::import::unsupported;
use std::collections::BTreeSet;
use std::sync::Arc;
use tfc_ir::dim::{Atom, Bindings, Dim, Range, Symbol, SymbolTable};
use tfc_ir::graph::{DimCheck, Graph, Value};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{
    Add, Cast, Concat, Dims, Div, Eq, Exp, Expand, InferCx, Iota, Le, Log, Lt, Matmul, Max, Min, Mul, Neg, Op, Reduce, RemTrunc, Reshape,
    Select, Slice, Sqrt, Sub, Transpose,
};
use tfc_ir::symbolic::{self, SymTensor};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape, Type};

/// Results of at most this many elements are computed while importing when the operands are known.
const FOLD_LIMIT: i64 = 4096;

/// A value under import.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Val(u32);

/// What is known about the contents of a value.
#[derive(Clone)]
enum Known {
    Nothing,
    Const(Tensor),
    Symbolic(SymTensor),
    /// Not a tensor: a sequence of these; its type is a scalar of their element type.
    Sequence(Vec<Val>),
    /// Not a tensor: an optional without a value.
    Empty,
}

pub(super) struct Data {
    ty: Type,
    known: Known,
    /// The symbols that the contents are computed from, if from nothing else.
    from: Option<BTreeSet<Symbol>>,
    /// What the floats of the contents are exactly, if they are quotients of sizes.
    quotients: Option<Quotients>,
    /// The value in the graph, once it is there.
    value: Option<Value>,
    name: Option<Arc<str>>,
}

/// An import as it was, to go back to.
pub(super) struct State {
    graph: Graph,
    values: usize,
    report: CheckReport,
}

impl Importer<'_> {
    /// The state of the import.
    pub(super) fn state(&self) -> State {
        State { graph: self.graph.clone(), values: self.values.len(), report: self.report.clone() }
    }

    /// Whether the graph allows the same sizes as before.
    pub(super) fn allows_the_same(&self, before: &State) -> bool {
        (&self.graph.symbols, &self.graph.checks) == (&before.graph.symbols, &before.graph.checks)
    }

    /// Forgets what was imported since; the nodes still count.
    pub(super) fn restore(&mut self, state: State) {
        self.graph = state.graph;
        self.report = CheckReport { nodes: self.report.nodes, ..state.report };
        self.values.truncate(state.values);
        for data in &mut self.values {
            data.value = data.value.filter(|&v| self.graph.contains(v));
        }
    }

    fn push(&mut self, ty: Type, known: Known, value: Option<Value>) -> Val {
        let from = match &known {
            Known::Nothing | Known::Sequence(_) | Known::Empty => None,
            Known::Const(_) => Some(BTreeSet::new()),
            Known::Symbolic(s) => Some(symbols_of(&s.values)),
        };
        self.values.push(Data { ty, known, from, quotients: None, value, name: None });
        Val(self.values.len() as u32 - 1)
    }

    fn data(&self, v: Val) -> &Data {
        &self.values[v.0 as usize]
    }

    /// A value that is in the graph.
    pub(super) fn adopt(&mut self, value: Value) -> Val {
        let ty = self.graph.ty(value).clone();
        self.push(ty, Known::Nothing, Some(value))
    }

    /// A constant.
    pub(super) fn constant(&mut self, t: Tensor) -> Val {
        self.push(t.ty(), Known::Const(t), None)
    }

    /// A constant that the file names.
    pub(super) fn named_const(&mut self, t: Tensor, name: Arc<str>) -> Val {
        let v = self.constant(t);
        self.values[v.0 as usize].name = Some(name);
        v
    }

    /// Gives a value the name that it has in the model, unless it has one.
    pub(super) fn name_value(&mut self, v: Val, name: &Arc<str>) {
        let data = &mut self.values[v.0 as usize];
        data.name.get_or_insert_with(|| name.clone());
        if let Some(value) = data.value
            && self.graph.value(value).name.is_none()
        {
            self.graph.set_name(value, Some(name.clone()));
        }
    }

    /// A sequence of tensors of one element type.
    pub(super) fn sequence(&mut self, elem: Elem, parts: Vec<Val>) -> Val {
        self.push(Type::new(elem, Shape::default()), Known::Sequence(parts), None)
    }

    /// An optional without a value.
    pub(super) fn empty(&mut self) -> Val {
        self.push(Type::new(Elem::Bool, Shape::default()), Known::Empty, None)
    }

    /// The tensors of a sequence; `None` when the value is none.
    pub(super) fn parts(&self, v: Val) -> Option<&[Val]> {
        match &self.data(v).known {
            Known::Sequence(parts) => Some(parts),
            _ => None,
        }
    }

    /// Whether the value is an optional without a value.
    pub(super) fn is_empty(&self, v: Val) -> bool {
        matches!(self.data(v).known, Known::Empty)
    }

    /// Whether the value is neither a sequence nor an empty optional.
    pub(super) fn is_tensor(&self, v: Val) -> bool {
        self.parts(v).is_none() && !self.is_empty(v)
    }

    /// A constant scalar.
    pub(super) fn scalar(&mut self, elem: Elem, x: f64) -> Val {
        self.constant(Tensor::scalar(elem, Scalar::Float(x)))
    }

    /// A constant scalar of the type of `v`.
    pub(super) fn like(&mut self, v: Val, x: f64) -> Val {
        self.scalar(self.elem(v), x)
    }

    /// An `i64` tensor of dimensions, in row-major order.
    pub(super) fn dim_tensor(&mut self, sizes: &[usize], values: Vec<Dim>) -> Res<Val> {
        self.emit(Dims { values, shape: sizes.to_vec() }, &[])
    }

    /// Type of a value.
    pub(super) fn ty(&self, v: Val) -> &Type {
        &self.data(v).ty
    }

    /// Shape of a value.
    pub(super) fn shape(&self, v: Val) -> &Shape {
        &self.ty(v).shape
    }

    /// Number of axes of a value.
    pub(super) fn rank(&self, v: Val) -> usize {
        self.ty(v).rank()
    }

    /// Element type of a value.
    pub(super) fn elem(&self, v: Val) -> Elem {
        self.ty(v).elem
    }

    /// The tensor, if the value is a constant.
    pub(super) fn as_const(&self, v: Val) -> Option<&Tensor> {
        match &self.data(v).known {
            Known::Const(t) => Some(t),
            _ => None,
        }
    }

    /// The number, if the value is a constant of one element.
    pub(super) fn const_scalar(&self, v: Val) -> Option<f64> {
        self.as_const(v).filter(|t| t.len() == 1).map(|t| t.get(0).to_f64())
    }

    fn symbolic(&self, v: Val) -> Option<SymTensor> {
        match &self.data(v).known {
            Known::Const(t) if !t.elem().is_float() && t.len() as i64 <= FOLD_LIMIT => SymTensor::from_tensor(t),
            Known::Symbolic(s) if !self.elem(v).is_float() => Some(s.clone()),
            _ => None,
        }
    }

    /// The elements as quotients of sizes, if they are that.
    pub(super) fn quotients(&self, v: Val) -> Option<Quotients> {
        let data = self.data(v);
        match &data.known {
            Known::Const(t) if t.len() <= symbolic::MAX_ELEMENTS => Quotients::of_tensor(t),
            Known::Symbolic(s) => Some(Quotients::whole(s.clone())),
            _ => data.quotients.clone(),
        }
    }

    /// The elements as quotients, if they are floats that were rounded once; with the largest numerator and divisor that is exact.
    pub(super) fn rounded_once(&self, v: Val) -> Option<(&Quotients, i64)> {
        let q = self.data(v).quotients.as_ref()?;
        Some((q, q.once()?))
    }

    /// Whether the elements are known as expressions of sizes.
    pub(super) fn is_symbolic(&self, v: Val) -> bool {
        matches!(self.data(v).known, Known::Symbolic(_)) || self.data(v).quotients.is_some()
    }

    /// The elements of an integer tensor as dimensions; `what` names the operand when they are not known.
    pub(super) fn dims(&self, v: Val, what: &str) -> Res<Vec<Dim>> {
        demand!(!self.elem(v).is_float(), "{what} must be integers, but the operand is {}", self.ty(v));
        match self.symbolic(v) {
            Some(s) => Ok(s.values.iter().map(|d| d.simplify(&self.graph.symbols)).collect()),
            None if let Some(from) = &self.data(v).from => {
                unsupported!("{what}{} depends on the input shapes in a way that is not followed{}", self.called(v), decided_by(from))
            }
            None => unsupported!("data-dependent shape: {what}{} depends on what the model computes", self.called(v)),
        }
    }

    /// The elements of an integer tensor as numbers; `what` names the operand when they are not known.
    pub(super) fn ints(&self, v: Val, what: &str) -> Res<Vec<i64>> {
        let dims = self.dims(v, what)?;
        let numbers: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
        match numbers {
            Some(n) => Ok(n),
            None => {
                let decided = decided_by(&symbols_of(&dims));
                unsupported!("{what}{} must be known at compile time, but is {}{decided}", self.called(v), Shape(dims))
            }
        }
    }

    /// The only element of an integer tensor as a dimension.
    pub(super) fn dim(&self, v: Val, what: &str) -> Res<Dim> {
        let dims = self.dims(v, what)?;
        demand!(dims.len() == 1, "{what} must be one number, but the operand is {}", self.ty(v));
        Ok(dims[0].clone())
    }

    /// The only element of an integer tensor as a number.
    pub(super) fn int(&self, v: Val, what: &str) -> Res<i64> {
        let numbers = self.ints(v, what)?;
        demand!(numbers.len() == 1, "{what} must be one number, but the operand is {}", self.ty(v));
        Ok(numbers[0])
    }

    fn called(&self, v: Val) -> String {
        self.data(v).name.as_ref().map(|n| format!(" (`{n}`)")).unwrap_or_default()
    }

    /// The value in the graph; it is put there if it is only known.
    pub(super) fn value(&mut self, v: Val) -> Result<Value, crate::onnx::Error> {
        if let Some(value) = self.data(v).value {
            return Ok(value);
        }
        let (ty, name) = (self.ty(v).clone(), self.data(v).name.clone());
        let value = match self.data(v).known.clone() {
            Known::Const(t) => self.graph.add_const(t, name),
            Known::Symbolic(s) => {
                let sizes = s.shape.clone();
                let internal = |e: tfc_ir::ops::InferError| crate::onnx::Error::invalid(self.loc.to_string(), e.to_string());
                let dims = self.graph.add(Dims { values: s.values, shape: sizes }, &[], &self.loc).map_err(internal)?;
                let value = match ty.elem {
                    Elem::I64 => dims,
                    to => self.graph.add(Cast { to }, &[dims], &self.loc).map_err(internal)?,
                };
                if self.graph.value(value).name.is_none() {
                    self.graph.set_name(value, name);
                }
                value
            }
            Known::Sequence(_) | Known::Empty => {
                let message = "a sequence or an optional is used where a tensor belongs";
                return Err(crate::onnx::Error::invalid(self.loc.to_string(), message));
            }
            Known::Nothing => unreachable!("what is not known is in the graph"),
        };
        self.values[v.0 as usize].value = Some(value);
        Ok(value)
    }

    /// Applies an operator. With known operands the result is computed, and no node is made.
    pub(super) fn emit(&mut self, op: impl Into<Op>, inputs: &[Val]) -> Res<Val> {
        let op = op.into();
        if let Some(v) = self.compute(&op, inputs)? {
            return Ok(v);
        }
        let mut values = Vec::with_capacity(inputs.len());
        for &v in inputs {
            values.push(self.value(v)?);
        }
        let value = self.graph.add(op.clone(), &values, &self.loc)?;
        self.settle_checks();
        let v = self.adopt(value);
        self.values[v.0 as usize].quotients = self.quotients_of(&op, inputs, self.ty(v));
        let from: Option<Vec<&BTreeSet<Symbol>>> = inputs.iter().map(|&v| self.data(v).from.as_ref()).collect();
        let sizes = symbols_of(&self.shape(v).0);
        self.values[v.0 as usize].from = from.map(|all| all.into_iter().flatten().chain(&sizes).cloned().collect());
        if !self.ty(v).shape.has_few_terms(symbolic::MAX_SIZE) {
            unsupported!("a size of the result has more terms than are followed{}", decided_by(&sizes));
        }
        Ok(v)
    }

    /// [`Self::emit`] for an operator with several results; of small constants they are computed.
    pub(super) fn emit_all(&mut self, op: impl Into<Op>, inputs: &[Val]) -> Res<Vec<Val>> {
        let op = op.into();
        let small = |t: &&Tensor| t.len() as i64 <= FOLD_LIMIT;
        let constants: Option<Vec<Tensor>> = inputs.iter().map(|&v| self.as_const(v).filter(small).cloned()).collect();
        if let Some(results) = constants.and_then(|c| op.eval(&Bindings::new(), &c).ok()) {
            return Ok(results.into_iter().map(|t| self.constant(t)).collect());
        }
        let values = inputs.iter().map(|&v| self.value(v)).collect::<Result<Vec<Value>, _>>()?;
        let results = self.graph.add_node(op, &values, &self.loc)?;
        self.settle_checks();
        Ok(results.into_iter().map(|v| self.adopt(v)).collect())
    }

    /// The result of an operator with known operands, if it can be computed now.
    fn compute(&mut self, op: &Op, inputs: &[Val]) -> Res<Option<Val>> {
        let known = |d: &Dim| d.as_const().is_some_and(|n| n <= FOLD_LIMIT);
        let small = |t: &Type| t.shape.0.iter().all(known) && t.shape.elements().as_const().is_some_and(|n| n <= FOLD_LIMIT);
        let unknown = |v: &Val| matches!(self.data(*v).known, Known::Nothing) && self.rounded_once(*v).is_none();
        if inputs.iter().any(|&v| !small(self.ty(v))) || (!inputs.is_empty() && inputs.iter().all(unknown)) {
            return Ok(None);
        }
        let types: Vec<Type> = inputs.iter().map(|&v| self.ty(v).clone()).collect();
        let mut cx = InferCx::new(&self.graph.symbols);
        let results = op.infer(&mut cx, &types)?;
        let [result] = results.as_slice() else { return Ok(None) };
        if !small(result) || !cx.into_checks().is_empty() {
            return Ok(None);
        }
        let constants: Option<Vec<Tensor>> = inputs.iter().map(|&v| self.as_const(v).cloned()).collect();
        if let Some(t) = constants
            && let Ok(out) = op.eval(&Bindings::new(), &t)
        {
            return Ok(Some(self.constant(out[0].clone())));
        }
        let floats = types.iter().chain(&results).any(|t| t.elem.is_float());
        let compute = |cx: &Importer, symbols: &SymbolTable| match floats {
            true => cx.compute_whole(op, inputs, result, symbols),
            false => cx.compute_dims(op, inputs, result, symbols),
        };
        let out = match self.rounded(op, inputs)? {
            Some(s) => Some(SymTensor { elem: if result.elem.is_float() { Elem::I64 } else { result.elem }, ..s }),
            None => compute(self, &self.graph.symbols).or_else(|| {
                // Where only a size of 0 is in the way, as a divisor or for the sign of `n-1`, it is excluded.
                let symbols = self.symbols_from(1, inputs);
                let out = compute(self, &symbols)?;
                self.narrow_ranges(symbols);
                Some(out)
            }),
        };
        Ok(out.map(|s| match s.to_tensor() {
            Some(t) if !result.elem.is_float() => self.constant(t),
            Some(t) => self.constant(Tensor::build(result.elem, t.sizes(), |i| t.get(i))),
            None => self.push(result.clone(), Known::Symbolic(s), None),
        }))
    }

    /// The ranges of the symbols when those that some values are computed from are `least` or more, as far as they can be.
    pub(super) fn symbols_from(&self, least: i64, values: &[Val]) -> SymbolTable {
        let mut symbols = self.graph.symbols.clone();
        for s in values.iter().filter_map(|&v| self.data(v).from.as_ref()).flatten() {
            if let Some(r) = symbols.get_mut(s).filter(|r| r.max >= least) {
                r.min = r.min.max(least);
            }
        }
        symbols
    }

    /// The symbols that a value is computed from, if from nothing else.
    pub(super) fn computed_from(&self, v: Val) -> Option<&BTreeSet<Symbol>> {
        self.data(v).from.as_ref()
    }

    /// Whether a condition on sizes holds, if these ranges decide.
    pub(super) fn holds(&self, condition: Val, symbols: &SymbolTable) -> Option<bool> {
        match &self.data(condition).known {
            Known::Symbolic(s) => s.values[0].simplify(symbols).as_const().map(|c| c != 0),
            _ => None,
        }
    }

    /// Narrows ranges for the current node.
    pub(super) fn narrow_ranges(&mut self, to: SymbolTable) {
        for (s, r) in &to {
            if self.graph.symbols[s] != *r {
                self.graph.bounds.insert(s.clone(), self.loc.clone());
            }
        }
        self.graph.symbols = to;
    }

    fn compute_dims(&self, op: &Op, inputs: &[Val], result: &Type, symbols: &SymbolTable) -> Option<SymTensor> {
        let operands: Vec<Option<SymTensor>> = inputs.iter().map(|&v| self.symbolic(v)).collect();
        Some(symbolic::eval(op, std::slice::from_ref(result), &operands, symbols)?.swap_remove(0))
    }

    /// The elements of a small tensor of any type, if they are whole numbers, as `i64`.
    pub(super) fn whole_numbers(&self, v: Val) -> Option<SymTensor> {
        match &self.data(v).known {
            Known::Symbolic(s) => Some(SymTensor { elem: Elem::I64, ..s.clone() }),
            Known::Const(t) if t.iter().all(|x| x.to_f64().fract() == 0.0 && x.to_f64().abs() < 1e9) => Some(SymTensor {
                elem: Elem::I64,
                shape: t.sizes().to_vec(),
                values: t.iter().map(|x| Dim::from(x.to_f64() as i64)).collect(),
            }),
            _ => None,
        }
    }

    /// Arithmetic on sizes that were converted to floats: as long as it stays within whole numbers it
    /// is that of integers.
    fn compute_whole(&self, op: &Op, inputs: &[Val], result: &Type, symbols: &SymbolTable) -> Option<SymTensor> {
        let int = |elem: Elem| if elem.is_float() { Elem::I64 } else { elem };
        let mut operands: Vec<Option<SymTensor>> =
            inputs.iter().map(|&v| Some(Some(SymTensor { elem: int(self.elem(v)), ..self.whole_numbers(v)? }))).collect::<Option<_>>()?;
        let types = [result.with_elem(int(result.elem))];
        let eval = |op: &Op| Some(symbolic::eval(op, &types, &operands, symbols)?.swap_remove(0));
        match op {
            Op::Floor(_) | Op::Ceil(_) | Op::Round(_) => operands.swap_remove(0),
            Op::Cast(c) => eval(&Op::Cast(Cast { to: int(c.to) })),
            Op::Div(_) => {
                let rest = eval(&Op::RemTrunc(RemTrunc {}))?;
                if rest.values.iter().all(|d| d.is(0)) { eval(op) } else { None }
            }
            Op::Sqrt(_) => {
                let x = operands.swap_remove(0)?;
                Some(SymTensor { values: x.values.iter().map(|d| d.sqrt_exact(symbols)).collect::<Option<_>>()?, ..x })
            }
            Op::Pow(_) if operands[1].as_ref()?.values.iter().all(|d| d.as_const().is_some()) => eval(op),
            Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Neg(_) | Op::Abs(_) | Op::Min(_) | Op::Max(_) => eval(op),
            Op::Eq(_) | Op::Lt(_) | Op::Le(_) | Op::Select(_) | Op::CumSum(_) | Op::ArgReduce(_) => eval(op),
            Op::Reduce(r) if r.kind != ReduceKind::Mean => eval(op),
            _ if op.traits().moved > 0 => eval(op),
            _ => None,
        }
    }

    /// The common shape of values under broadcasting; what must hold for it is checked at run time.
    pub(super) fn broadcast(&mut self, shapes: &[&Shape]) -> Res<Shape> {
        let mut cx = InferCx::new(&self.graph.symbols);
        let shape = cx.broadcast(shapes)?;
        let checks = cx.into_checks();
        self.note_checks(checks);
        Ok(shape)
    }

    /// The ranges of the symbols.
    pub(super) fn symbols(&self) -> &SymbolTable {
        &self.graph.symbols
    }

    /// Demands that two sizes be equal; what cannot be decided now is checked at run time.
    pub(super) fn require_equal(&mut self, a: &Dim, b: &Dim, what: &str) -> Res<()> {
        let mut cx = InferCx::new(&self.graph.symbols);
        cx.equal(a, b, what)?;
        let checks = cx.into_checks();
        self.note_checks(checks);
        Ok(())
    }

    fn note_checks(&mut self, checks: Vec<(Dim, Dim)>) {
        for (left, right) in checks {
            if !self.graph.checks.iter().any(|c| (&c.left, &c.right) == (&left, &right)) {
                self.graph.checks.push(DimCheck { left, right, loc: self.loc.clone() });
            }
        }
        self.settle_checks();
    }

    /// Turns checks into ranges where they say no more: a size that must equal its minimum with a number
    /// is at most that number (a sequence that positions are added to, which are sliced from a table).
    fn settle_checks(&mut self) {
        let (symbols, bounds) = (&mut self.graph.symbols, &mut self.graph.bounds);
        self.graph.checks.retain(|c| {
            let slack = surplus(&c.left, &c.right).or_else(|| surplus(&c.right, &c.left));
            let Some((symbol, bound)) = slack.as_ref().and_then(not_negative) else { return true };
            let Some(range) = symbols.get_mut(symbol) else { return true };
            let tighter = Range { min: range.min.max(bound.min), max: range.max.min(bound.max) };
            if tighter.min > tighter.max {
                return true;
            }
            if *range != tighter {
                *range = tighter;
                bounds.insert(symbol.clone(), c.loc.clone());
            }
            false
        });
    }

    /// The only element of a tensor of whole numbers, which may have a float type.
    pub(super) fn whole(&self, v: Val, what: &str) -> Res<Dim> {
        match (self.const_scalar(v), &self.data(v).known) {
            (Some(x), _) if self.elem(v).is_float() && x.fract() == 0.0 => Ok(Dim::from(x as i64)),
            (_, Known::Symbolic(s)) if s.values.len() == 1 => Ok(s.values[0].simplify(&self.graph.symbols)),
            _ if self.elem(v).is_float()
                && let Some(from) = self.data(v).from.as_ref().filter(|f| !f.is_empty()) =>
            {
                unsupported!("{what}{} depends on the input shapes in a way that is not followed{}", self.called(v), decided_by(from))
            }
            _ if self.elem(v).is_float() => unsupported!("{what}{} must be known at compile time", self.called(v)),
            _ => self.dim(v, what),
        }
    }

    /// `x + y`.
    pub(super) fn add(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Add {}, &[x, y])
    }

    /// `x - y`.
    pub(super) fn sub(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Sub {}, &[x, y])
    }

    /// `x * y`.
    pub(super) fn mul(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Mul {}, &[x, y])
    }

    /// `x / y`.
    pub(super) fn div(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Div {}, &[x, y])
    }

    /// `-x`.
    pub(super) fn neg(&mut self, x: Val) -> Res<Val> {
        self.emit(Neg {}, &[x])
    }

    /// `e^x`.
    pub(super) fn exp(&mut self, x: Val) -> Res<Val> {
        self.emit(Exp {}, &[x])
    }

    /// Natural logarithm.
    pub(super) fn log(&mut self, x: Val) -> Res<Val> {
        self.emit(Log {}, &[x])
    }

    /// Square root.
    pub(super) fn sqrt(&mut self, x: Val) -> Res<Val> {
        self.emit(Sqrt {}, &[x])
    }

    /// The smaller one.
    pub(super) fn min(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Min {}, &[x, y])
    }

    /// The larger one.
    pub(super) fn max(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Max {}, &[x, y])
    }

    /// `x == y`.
    pub(super) fn eq(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Eq {}, &[x, y])
    }

    /// `x < y`.
    pub(super) fn lt(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Lt {}, &[x, y])
    }

    /// `x <= y`.
    pub(super) fn le(&mut self, x: Val, y: Val) -> Res<Val> {
        self.emit(Le {}, &[x, y])
    }

    /// `c ? x : y`.
    pub(super) fn select(&mut self, c: Val, x: Val, y: Val) -> Res<Val> {
        self.emit(Select {}, &[c, x, y])
    }

    /// `x * k + c` with numbers; the parts that change nothing are left out.
    pub(super) fn affine(&mut self, x: Val, k: f64, c: f64) -> Res<Val> {
        let mut y = x;
        if k != 1.0 {
            let k = self.like(x, k);
            y = self.mul(y, k)?;
        }
        if c != 0.0 {
            let c = self.like(x, c);
            y = self.add(y, c)?;
        }
        Ok(y)
    }

    /// Conversion of the element type.
    pub(super) fn cast(&mut self, v: Val, to: Elem) -> Res<Val> {
        if self.elem(v) == to { Ok(v) } else { self.emit(Cast { to }, &[v]) }
    }

    /// Another shape for the same elements.
    pub(super) fn reshape(&mut self, v: Val, shape: Shape) -> Res<Val> {
        if *self.shape(v) == shape {
            return Ok(v);
        }
        if let Known::Const(t) = &self.data(v).known
            && let Some(sizes) = shape.as_fixed()
            && let Ok(t) = t.reshaped(&sizes)
        {
            return Ok(self.constant(t));
        }
        self.emit(Reshape { shape }, &[v])
    }

    /// Broadcasting to a shape.
    pub(super) fn expand(&mut self, v: Val, shape: Shape) -> Res<Val> {
        if *self.shape(v) == shape { Ok(v) } else { self.emit(Expand { shape }, &[v]) }
    }

    /// Reordered axes.
    pub(super) fn transpose(&mut self, v: Val, perm: Vec<usize>) -> Res<Val> {
        if perm.iter().enumerate().all(|(i, &p)| i == p) { Ok(v) } else { self.emit(Transpose { perm }, &[v]) }
    }

    /// The last two axes swapped.
    pub(super) fn swap_last(&mut self, v: Val) -> Res<Val> {
        let mut perm: Vec<usize> = (0..self.rank(v)).collect();
        let n = perm.len();
        demand!(n >= 2, "a matrix is needed, but the operand is {}", self.ty(v));
        perm.swap(n - 1, n - 2);
        self.transpose(v, perm)
    }

    /// Axes of size 1 inserted so that they are at these places of the result (ascending).
    pub(super) fn unsqueeze(&mut self, v: Val, axes: &[usize]) -> Res<Val> {
        let mut shape = self.shape(v).clone();
        for &a in axes {
            shape.0.insert(a, Dim::from(1));
        }
        self.reshape(v, shape)
    }

    /// Axes left out, which have size 1.
    pub(super) fn squeeze(&mut self, v: Val, axes: &[usize]) -> Res<Val> {
        let kept = self.shape(v).0.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect();
        self.reshape(v, kept)
    }

    /// `len` neighbours from `start` on along an axis.
    pub(super) fn narrow(&mut self, v: Val, axis: usize, start: Dim, len: Dim) -> Res<Val> {
        let mut lens = self.shape(v).clone();
        if start.is(0) && lens[axis] == len {
            return Ok(v);
        }
        let mut starts = vec![Dim::from(0); lens.rank()];
        starts[axis] = start;
        lens.0[axis] = len;
        self.emit(Slice { starts, steps: vec![1; lens.rank()], lens }, &[v])
    }

    /// Tensors joined along an axis.
    pub(super) fn concat(&mut self, parts: &[Val], axis: usize) -> Res<Val> {
        if let [one] = parts { Ok(*one) } else { self.emit(Concat { axis }, parts) }
    }

    /// A reduction over ascending axes; over none it is the operand.
    pub(super) fn reduce(&mut self, v: Val, kind: ReduceKind, axes: &[usize], keep: bool) -> Res<Val> {
        if axes.is_empty() { Ok(v) } else { self.emit(Reduce { kind, axes: axes.to_vec(), keep }, &[v]) }
    }

    /// Matrix product of operands of rank 2 or more.
    pub(super) fn matmul(&mut self, a: Val, b: Val) -> Res<Val> {
        self.emit(Matmul {}, &[a, b])
    }

    /// Positions along an axis of a shape.
    pub(super) fn iota(&mut self, elem: Elem, shape: Shape, axis: usize) -> Res<Val> {
        self.emit(Iota { elem, shape, axis }, &[])
    }

    /// The number of elements along some axes as a scalar of the type of `v`.
    pub(super) fn count(&mut self, v: Val, axes: &[usize]) -> Res<Val> {
        let n: Dim = axes.iter().map(|&a| self.shape(v)[a].clone()).product();
        let elem = self.elem(v);
        match n.as_const() {
            Some(n) => Ok(self.scalar(elem, n as f64)),
            None => {
                let n = self.dim_tensor(&[], vec![n])?;
                self.cast(n, elem)
            }
        }
    }
}

fn symbols_of(dims: &[Dim]) -> BTreeSet<Symbol> {
    let mut symbols = BTreeSet::new();
    dims.iter().for_each(|d| d.collect_symbols(&mut symbols));
    symbols
}

/// The end of a message about what these symbols decide.
pub(super) fn decided_by(symbols: &BTreeSet<Symbol>) -> String {
    if symbols.is_empty() {
        return String::new();
    }
    let options: Vec<String> = symbols.iter().map(|s| format!("{}=N", s.name())).collect();
    format!(": --dim {} decides it", options.join(","))
}

/// If `extremum` is a minimum or maximum of `d` and something, what must not be negative for it to be `d`.
fn surplus(d: &Dim, extremum: &Dim) -> Option<Dim> {
    let mut terms = extremum.terms();
    let (Some((1, [atom])), None) = (terms.next(), terms.next()) else { return None };
    let (Atom::Min(a, b) | Atom::Max(a, b)) = atom else { return None };
    let other = if **a == *d { b } else { Some(a).filter(|_| **b == *d)? };
    let over = d.clone() - (**other).clone();
    Some(if matches!(atom, Atom::Min(..)) { -over } else { over })
}

/// The symbol and its values for which `constant + coefficient * symbol` is not negative.
fn not_negative(d: &Dim) -> Option<(&Symbol, Range)> {
    let (mut constant, mut linear) = (0i64, None);
    for (coefficient, factors) in d.terms() {
        match factors {
            [] => constant = coefficient,
            [Atom::Symbol(s)] if linear.is_none() => linear = Some((coefficient, s)),
            _ => return None,
        }
    }
    let (coefficient, symbol) = linear?;
    let zero = constant.checked_neg()?;
    Some(match coefficient {
        // The quotient is rounded inwards.
        k if k > 0 => (symbol, Range { min: zero.div_euclid(k).checked_add((zero.rem_euclid(k) > 0).into())?, max: i64::MAX }),
        k => (symbol, Range { min: i64::MIN, max: constant.div_euclid(k.checked_neg()?) }),
    })
}
