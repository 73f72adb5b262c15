//! Random well-typed graphs over every operator.
//!
//! A graph grows by nodes whose operands are earlier values or fresh inputs and constants of the type
//! that the operator needs. What inference refuses is left out, so graphs are valid by construction;
//! some assume equalities of dimensions, and [`bindings`] gives values for which they hold.

use crate::choices::Choices;
use cranelift_entity::SecondaryMap;
use proptest::prelude::*;
use std::fmt::{self, Display};
use std::sync::Arc;
use tfc_ir::attr::{Body, Float};
use tfc_ir::dim::{Bindings, Dim, Range, Symbol};
use tfc_ir::graph::{Graph, Loc, Value};
use tfc_ir::ops::{self, Op};
use tfc_ir::quant::{Granularity, Scheme};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape, Type};

/// Largest number of elements of a value at any values of the symbols.
const MAX_ELEMENTS: i64 = 1024;

/// The symbols, and the values that [`bindings`] tries.
const SYMBOLS: [(&str, Range); 2] = [("m", Range { min: 0, max: 3 }), ("n", Range { min: 1, max: 5 })];

/// Names that are awkward in a text form, next to plain ones.
const NAMES: [&str; 8] = ["h", "layer.0.weight", "a/b", "123", "with space", "quote\"d\\", "größe", "loc"];

/// Graphs for proptest, with up to `nodes` nodes. They shrink to fewer and simpler nodes.
pub fn graphs(nodes: usize) -> impl Strategy<Value = Graph> {
    prop::collection::vec(any::<u32>(), 1..nodes * 24).prop_map(move |list| random_graph(&mut Choices::list(list), nodes))
}

/// A graph that proptest shows in its text form.
#[derive(Clone)]
pub struct Model(pub Graph);

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

/// Graphs for proptest that are made to run: see [`random_model`].
pub fn models(nodes: usize) -> impl Strategy<Value = Model> {
    prop::collection::vec(any::<u32>(), 1..nodes * 24).prop_map(move |list| Model(random_model(&mut Choices::list(list), nodes)))
}

/// A graph of up to `nodes` nodes.
pub fn random_graph(choices: &mut Choices, nodes: usize) -> Graph {
    let mut builder = Builder::new(choices, Style::default());
    builder.nodes(nodes);
    builder.outputs();
    builder.graph
}

/// A graph of up to `nodes` nodes that is made to run by different means and to give the same results
/// up to rounding: an input [`SIZES`] has every symbol as a size, operands may be views, indices may be
/// computed, and nothing jumps or blows up when its operand is off by rounding.
pub fn random_model(choices: &mut Choices, nodes: usize) -> Graph {
    let mut builder = Builder::new(choices, Style { runs: true, views: true, stable: true, elem: None });
    builder.nodes(nodes);
    builder.outputs();
    builder.graph
}

/// A graph with `count` applications of one operator to operands of one element type, where it takes
/// that type; each to operands of its own, which may be views, with a result that may be looked at
/// through a view. As in a model, an input has every symbol as a size.
pub fn operator_graph(choices: &mut Choices, mnemonic: &str, elem: Elem, count: usize) -> Graph {
    let mut builder = Builder::new(choices, Style { runs: true, views: true, stable: false, elem: Some(elem) });
    for _ in 0..4 * count {
        if builder.graph.nodes().filter(|(_, n)| n.op.mnemonic() == mnemonic).count() >= count {
            break;
        }
        builder.pool.clear();
        let before = builder.graph.clone();
        builder.node(mnemonic);
        let of_elem = |v: &Value| builder.graph.ty(*v).elem == elem;
        let made = builder.graph.nodes().skip(before.nodes().len()).find(|(_, n)| n.op.mnemonic() == mnemonic);
        if made.is_none_or(|(_, n)| mnemonic != "fused" && !n.inputs.iter().chain(&n.outputs).any(of_elem)) {
            builder.graph = before;
            builder.wanted.clear();
            continue;
        }
        if let Some(&y) = builder.pool.last()
            && builder.choices.one_in(3)
        {
            let view = if builder.choices.one_in(2) { "transpose" } else { "slice" };
            builder.pool = vec![y];
            builder.style.elem = Some(builder.graph.ty(y).elem);
            builder.node(view);
            builder.style.elem = Some(elem);
        }
    }
    builder.pool = builder.graph.nodes().flat_map(|(_, n)| n.outputs.clone()).collect();
    builder.outputs();
    builder.graph
}

/// Name of the input that has every symbol as a size.
pub const SIZES: &str = "sizes";

/// How a graph is made.
#[derive(Clone, Copy, Default)]
struct Style {
    /// There is an input with every symbol as a size, and indices may be computed.
    runs: bool,
    /// Fresh operands may be views of other tensors.
    views: bool,
    /// Operators that jump or blow up are not applied to values that are rounded.
    stable: bool,
    /// The element type of operands, where the operator leaves a choice.
    elem: Option<Elem>,
}

/// Values for the symbols of a random graph for which its checks hold: at most `n` of them.
pub fn bindings(graph: &Graph, n: usize) -> Vec<Bindings> {
    let mut all = vec![Bindings::new()];
    for (name, range) in SYMBOLS {
        let with = |b: Bindings| {
            (range.min..=range.max).map(move |n| {
                let mut b = b.clone();
                b.insert(Symbol::new(name), n);
                b
            })
        };
        all = all.into_iter().flat_map(with).collect();
    }
    let holds = |b: &Bindings| {
        let equal = |c: &tfc_ir::graph::DimCheck| c.left.eval(b).is_some() && c.left.eval(b) == c.right.eval(b);
        graph.checks.iter().all(equal) && graph.values().all(|(_, d)| d.ty.shape.eval(b).is_some())
    };
    // The largest values first: they exercise most.
    all.into_iter().rev().filter(holds).take(n).collect()
}

/// Data for the inputs of a graph.
///
/// # Panics
/// When a size is negative with these bindings; [`bindings`] gives no such ones.
pub fn inputs(graph: &Graph, bindings: &Bindings, choices: &mut Choices) -> Vec<Tensor> {
    let of = |&v: &Value| {
        let ty = graph.ty(v);
        choices.tensor(ty.elem, &ty.shape.eval(bindings).expect("sizes"))
    };
    graph.inputs().iter().map(of).collect()
}

/// Whether a small change of an operand can change the result by much.
fn jumps(op: &Op) -> bool {
    use Op::*;
    match op {
        Cast(op) => !op.to.is_float(),
        Acos(_) | ArgReduce(_) | Asin(_) | Ceil(_) | Div(_) | Eq(_) | Floor(_) | Fused(_) | GroupNorm(_) | IsNan(_) | LayerNorm(_) => true,
        Le(_)
        | Log(_)
        | Log1p(_)
        | Lt(_)
        | Pow(_)
        | Quantize(_)
        | QuantizeRows(_)
        | QuantizeStatic(_)
        | QuantizedAttention(_)
        | Reciprocal(_)
        | RemFloor(_)
        | RemTrunc(_)
        | RmsNorm(_) => true,
        Round(_) | Rsqrt(_) | Sqrt(_) | Tan(_) | TopK(_) => true,
        _ => false,
    }
}

/// Whether an operator on floats may round.
fn rounds(op: &Op) -> bool {
    use Op::*;
    let exact =
        matches!(op, Abs(_) | Ceil(_) | Dims(_) | Floor(_) | Iota(_) | Max(_) | Min(_) | Neg(_) | Relu(_) | Round(_) | Select(_) | TopK(_));
    !(exact || op.traits().moved > 0)
}

struct Builder<'a> {
    graph: Graph,
    choices: &'a mut Choices,
    /// Values that later nodes may use.
    pool: Vec<Value>,
    depth: usize,
    /// Number of inputs so far, for names.
    values: usize,
    style: Style,
    /// Values that may be off by rounding.
    rounded: SecondaryMap<Value, bool>,
    /// Values that are outputs whether or not something uses them.
    wanted: Vec<Value>,
}

impl<'a> Builder<'a> {
    fn new(choices: &'a mut Choices, style: Style) -> Builder<'a> {
        let mut graph = Graph::new("random");
        for (name, range) in SYMBOLS {
            graph.symbols.insert(Symbol::new(name), range);
        }
        if style.runs {
            let shape = SYMBOLS.map(|(name, _)| Dim::symbol(name)).into_iter().collect();
            graph.add_input(SIZES, Type::new(Elem::U8, shape));
        }
        Builder { graph, choices, pool: vec![], depth: 0, values: 0, style, rounded: SecondaryMap::new(), wanted: vec![] }
    }

    fn nodes(&mut self, n: usize) {
        for i in 0..n {
            if self.choices.ended() && i > 0 {
                break;
            }
            if self.choices.one_in(8) {
                self.rows();
            } else {
                let mnemonic = *self.choices.pick(Op::MNEMONICS);
                self.node(mnemonic);
            }
        }
    }

    /// Appends a node of this operator, unless inference refuses it.
    fn node(&mut self, mnemonic: &str) {
        if let Some((op, operands)) = self.operator(mnemonic) {
            self.apply(op, &operands);
        }
    }

    /// Appends a node, unless inference refuses it or the style does; the first of its results.
    fn apply(&mut self, op: Op, operands: &[Value]) -> Option<Value> {
        let loc = match self.choices.below(3) {
            0 => Loc::node(&format!("/{}", op.mnemonic())),
            1 => Loc::default(),
            _ => Loc::nodes(["/b", "/a \"x\""]),
        };
        // Attention of 8 bits rounds the weights that it computed.
        let unstable = matches!(op, Op::QuantizedAttention(_)) || jumps(&op) && operands.iter().any(|&v| self.rounded[v]);
        if self.style.stable && unstable {
            return None;
        }
        let rounded = rounds(&op) || operands.iter().any(|&v| self.rounded[v]);
        let checks = self.graph.checks.clone();
        let mut trial = self.graph.clone();
        let results = trial.add_node(op, operands, &loc).ok()?;
        let small = results.iter().all(|&v| {
            let elements = trial.ty(v).shape.0.iter().fold(1i64, |n, d| n.saturating_mul(d.range(&trial.symbols).max));
            elements <= MAX_ELEMENTS
        });
        // Few checks may be assumed, or no binding fulfils all.
        if !small || trial.checks.len() > checks.len() + 1 || trial.checks.len() > 2 {
            return None;
        }
        self.graph = trial;
        for &v in &results {
            self.rounded[v] = rounded && self.graph.ty(v).elem.is_float();
            if self.choices.one_in(4) {
                let name = *self.choices.pick(&NAMES);
                self.graph.set_name(v, Some(name.into()));
            }
            if self.choices.one_in(6) {
                self.wanted.push(v);
            }
            self.pool.push(v);
        }
        results.first().copied()
    }

    /// Appends nodes that go over the rows of one tensor several times: norms, softmax and reductions, and what is computed from
    /// them per element, at little cost or at much. They may become one kernel, with values that are needed again and again.
    fn rows(&mut self) {
        use ops::reduce::ReduceKind::{Max, Mean, Min, Sum};
        // Up to this magnitude, differences of sums and products keep enough of their digits.
        const MOST: f64 = 32.0;
        let elem = self.float();
        let x = self.plain(elem, 1);
        let shape = self.shape_of(x);
        let axis = if self.choices.one_in(4) { self.choices.below(shape.rank()) } else { shape.rank() - 1 };
        // Values of the shape of `x`, and values that have size 1 along the axis; each with its magnitude.
        let mut whole = vec![(x, 2.0)];
        let mut reduced: Vec<(Value, f64)> = vec![];
        for _ in 0..3 + self.choices.below(6) {
            let (v, most) = whole[self.choices.below(whole.len())];
            let (op, operands, most): (Op, Vec<Value>, f64) = match self.choices.below(9) {
                0 => (ops::Sigmoid {}.into(), vec![v], 1.0),
                1 => (ops::Tanh {}.into(), vec![v], 1.0),
                2 if self.choices.one_in(2) => (ops::Silu {}.into(), vec![v], most),
                2 => (ops::Gelu { tanh: false }.into(), vec![v], most),
                3 => (ops::Softmax { axis, log: false }.into(), vec![v], 1.0),
                4 if axis + 1 == shape.rank() => {
                    let scale = self.exactly(elem, Shape(vec![shape[axis].clone()]));
                    let op = if self.choices.one_in(2) {
                        ops::RmsNorm { axes: 1, epsilon: self.epsilon() }.into()
                    } else {
                        ops::LayerNorm { axes: 1, epsilon: self.epsilon() }.into()
                    };
                    (op, vec![v, scale], 8.0)
                }
                4 | 5 => {
                    let kind = *self.choices.pick(&[Mean, Max, Sum, Min]);
                    if let Some(r) = self.apply(ops::Reduce { kind, axes: vec![axis], keep: true }.into(), &[v]) {
                        reduced.push((r, if kind == Sum { 5.0 * most } else { most }));
                    }
                    continue;
                }
                kind => {
                    let others = if !reduced.is_empty() && self.choices.one_in(2) { &reduced } else { &whole };
                    let (w, other) = others[self.choices.below(others.len())];
                    match kind {
                        6 => (ops::Mul {}.into(), vec![v, w], most * other),
                        7 => (ops::Max {}.into(), vec![v, w], most.max(other)),
                        _ if self.choices.one_in(2) => (ops::Sub {}.into(), vec![v, w], most + other),
                        _ => (ops::Add {}.into(), vec![v, w], most + other),
                    }
                }
            };
            if most <= MOST
                && let Some(y) = self.apply(op, &operands)
            {
                whole.push((y, most));
            }
        }
    }

    /// What nothing uses becomes outputs, and what is wanted, perhaps twice; now and then a value that is not computed too.
    fn outputs(&mut self) {
        let uses = self.graph.use_counts();
        let mut outputs: Vec<Value> = self.pool.iter().copied().filter(|&v| uses[v] == 0 && self.graph.producer(v).is_some()).collect();
        outputs.append(&mut self.wanted);
        if outputs.is_empty() {
            outputs.extend(self.pool.last());
        }
        if !self.pool.is_empty() && self.choices.one_in(16) {
            outputs.push(*self.choices.pick(&self.pool));
        }
        for (i, v) in outputs.into_iter().enumerate() {
            self.graph.add_output(&format!("y{i}"), v);
        }
    }

    // Sizes, types and values.

    fn elem(&mut self) -> Elem {
        if let Some(elem) = self.style.elem {
            return elem;
        }
        if self.choices.below(2) == 0 { Elem::F32 } else { self.choices.pick(&Elem::ALL).0 }
    }

    fn float(&mut self) -> Elem {
        if let Some(elem) = self.style.elem.filter(|e| e.is_float()) {
            return elem;
        }
        *self.choices.pick(&[Elem::F32, Elem::F32, Elem::F16, Elem::Bf16, Elem::F64])
    }

    fn dim(&mut self) -> Dim {
        let (m, n) = (Dim::symbol("m"), Dim::symbol("n"));
        match self.choices.below(12) {
            0..3 => Dim::from(2),
            3 => Dim::from(3),
            4 => Dim::from(1),
            5 => Dim::from(4),
            6..8 => n,
            8 => n + Dim::from(1),
            9 => m * Dim::from(2),
            10 => m,
            _ => Dim::from(0),
        }
    }

    fn shape(&mut self, least_rank: usize) -> Shape {
        let rank = least_rank + self.choices.below(4 - least_rank.min(3));
        (0..rank).map(|_| self.dim()).collect()
    }

    /// A new value: an input, a constant if the sizes are known, or a view of one.
    fn fresh(&mut self, ty: Type) -> Value {
        let view = if self.style.views && ty.quant.is_none() && self.choices.below(2) == 1 { self.fresh_view(&ty) } else { None };
        let v = view.unwrap_or_else(|| self.leaf(ty));
        self.pool.push(v);
        v
    }

    /// A value of this type that is a view of a fresh one.
    fn fresh_view(&mut self, ty: &Type) -> Option<Value> {
        let rank = ty.rank();
        let symbols = self.graph.symbols.clone();
        let (op, shape): (Op, Shape) = match self.choices.below(5) {
            0 => {
                let perm = self.permutation(rank);
                let mut shape = ty.shape.clone();
                perm.iter().enumerate().for_each(|(i, &p)| shape.0[p] = ty.shape[i].clone());
                (ops::Transpose { perm }.into(), shape)
            }
            1 => {
                let (mut starts, mut steps, mut shape) = (vec![], vec![], vec![]);
                for d in &ty.shape.0 {
                    let step = *self.choices.pick(&[1, 1, -1, 2, -2]);
                    let (before, behind) = (self.choices.between(0, 2), self.choices.between(0, 2));
                    let spread = (d.clone() - Dim::from(1)) * Dim::from(i64::abs(step));
                    let low = if d.range(&symbols).min >= 1 { Dim::from(before) } else { Dim::from(before + i64::abs(step)) };
                    starts.push(if step > 0 { low.clone() } else { low.clone() + spread.clone() });
                    steps.push(step);
                    shape.push(low + spread + Dim::from(1 + behind));
                }
                (ops::Slice { starts, steps, lens: ty.shape.clone() }.into(), Shape(shape))
            }
            2 => {
                let skip = self.choices.below(rank + 1);
                let keep = |(i, d): (usize, &Dim)| if (i + skip).is_multiple_of(2) { Dim::from(1) } else { d.clone() };
                (ops::Expand { shape: ty.shape.clone() }.into(), ty.shape.0[skip..].iter().enumerate().map(keep).collect())
            }
            3 if rank >= 2 => {
                let (positions, kernel) = (ty.shape[rank - 2].clone(), ty.shape[rank - 1].as_const().filter(|&k| k >= 1)?);
                if positions.range(&symbols).min < 1 {
                    return None;
                }
                let (stride, dilation) = (self.choices.between(1, 2), self.choices.between(1, 2));
                let size = (positions - Dim::from(1)) * Dim::from(stride) + Dim::from((kernel - 1) * dilation + 1);
                let mut shape = ty.shape.0[..rank - 2].to_vec();
                shape.push(size);
                (ops::Window { kernel: vec![kernel], strides: vec![stride], dilations: vec![dilation] }.into(), Shape(shape))
            }
            _ => (ops::Reshape { shape: ty.shape.clone() }.into(), Shape(vec![ty.shape.elements()])),
        };
        let mut trial = self.graph.clone();
        let x = trial.add_input("view", Type::new(ty.elem, shape.clone()));
        let y = trial.add(op.clone(), &[x], &Loc::default()).ok()?;
        if trial.ty(y) != ty || trial.checks.len() != self.graph.checks.len() {
            return None;
        }
        let x = self.leaf(Type::new(ty.elem, shape));
        Some(self.graph.add(op, &[x], &Loc::default()).expect("it was tried"))
    }

    /// An input, or a constant if the sizes are known.
    fn leaf(&mut self, ty: Type) -> Value {
        match ty.shape.as_fixed() {
            Some(sizes) if self.choices.below(3) == 0 => {
                let tensor = if self.choices.below(2) == 0 {
                    let element = self.choices.tensor(ty.elem, &[]).get(0);
                    Tensor::build(ty.elem, &sizes, |_| element)
                } else {
                    self.choices.tensor(ty.elem, &sizes)
                };
                let name = self.choices.one_in(3).then(|| Arc::from(*self.choices.pick(&NAMES)));
                self.graph.add_typed_const(tensor, ty, name)
            }
            _ => {
                self.values += 1;
                let name = if self.choices.one_in(8) { format!("in/{}", self.values) } else { format!("x{}", self.values) };
                self.graph.add_input(&name, ty)
            }
        }
    }

    fn permutation(&mut self, rank: usize) -> Vec<usize> {
        let mut perm: Vec<usize> = (0..rank).collect();
        for i in 1..perm.len() {
            perm.swap(i, self.choices.below(i + 1));
        }
        perm
    }

    /// A value with a type that `accept` accepts: an earlier one if there is one, or a fresh one.
    fn value(&mut self, accept: impl Fn(&Type) -> bool, fresh: impl FnOnce(&mut Self) -> Type) -> Value {
        let fit: Vec<Value> = self.pool.iter().copied().filter(|&v| accept(self.graph.ty(v))).collect();
        if !fit.is_empty() && self.choices.below(4) > 0 {
            return fit[self.choices.below(fit.len())];
        }
        let ty = fresh(self);
        self.fresh(ty)
    }

    /// A value that is not quantized, of this element type and at least this rank.
    fn plain(&mut self, elem: Elem, least_rank: usize) -> Value {
        let accept = |t: &Type| t.elem == elem && t.quant.is_none() && t.rank() >= least_rank;
        self.value(accept, |b| Type::new(elem, b.shape(least_rank)))
    }

    fn exactly(&mut self, elem: Elem, shape: Shape) -> Value {
        let ty = Type::new(elem, shape);
        self.value(|t| *t == ty, |_| ty.clone())
    }

    /// A value whose shape broadcasts with `shape`.
    fn broadcasting(&mut self, elem: Elem, shape: &Shape) -> Value {
        if self.choices.one_in(16) {
            // Perhaps the sizes must be equal at run time.
            return self.plain(elem, 0);
        }
        let skip = if self.choices.one_in(3) { self.choices.below(shape.rank() + 1) } else { 0 };
        let other: Shape = shape.0[skip..].iter().map(|d| if self.choices.one_in(4) { Dim::from(1) } else { d.clone() }).collect();
        self.exactly(elem, other)
    }

    fn rank(&self, v: Value) -> usize {
        self.graph.ty(v).rank()
    }

    fn shape_of(&self, v: Value) -> Shape {
        self.graph.ty(v).shape.clone()
    }

    /// Indices below the size `bound` of an axis, as a constant, or computed if graphs are to run; `None`
    /// if there may be none.
    fn indices(&mut self, sizes: &[usize], bound: &Dim) -> Option<Value> {
        if self.style.runs && self.choices.one_in(2) {
            let shape = sizes.iter().map(|&n| Dim::from(n)).collect();
            let x = self.fresh(Type::new(Elem::I64, shape));
            let bound = self.graph.add(ops::Dims { values: vec![bound.clone()], shape: vec![] }, &[], &Loc::default()).ok()?;
            return self.graph.add(ops::RemFloor {}, &[x, bound], &Loc::default()).ok();
        }
        let least = bound.range(&self.graph.symbols).min;
        let empty = sizes.contains(&0);
        if least < 1 && !empty {
            return None;
        }
        let values: Vec<i64> = (0..sizes.iter().product()).map(|_| self.choices.between(-least, least - 1)).collect();
        let tensor = if self.choices.below(2) == 0 {
            Tensor::of(sizes, values)
        } else {
            Tensor::of(sizes, values.into_iter().map(|i| i as i32).collect())
        };
        Some(self.graph.add_const(tensor, None))
    }

    fn sizes(&mut self, rank: usize) -> Vec<usize> {
        (0..rank).map(|_| self.choices.below(4)).collect()
    }

    fn list(&mut self, n: usize, low: i64, high: i64) -> Vec<i64> {
        (0..n).map(|_| self.choices.between(low, high)).collect()
    }

    fn epsilon(&mut self) -> Float {
        Float::from(*self.choices.pick(&[1e-5, 1e-6, 0.5]))
    }

    fn scheme(&mut self, shape: &Shape, storage: Elem) -> Scheme {
        let axis = self.choices.below(shape.rank()) as u32;
        let granularity = match self.choices.below(3) {
            1 if shape.rank() > 0 => Granularity::Axis { axis },
            2 if shape.rank() > 0 => Granularity::Blocks { axis, size: self.choices.between(1, 3) as u32 },
            _ => Granularity::Tensor,
        };
        let (low, high) = storage.int_range().expect("an integer type");
        let narrow = i128::from(self.choices.one_in(2));
        Scheme {
            storage,
            min: (low + narrow) as i16,
            max: high as i16,
            granularity,
            symmetric: storage.is_signed_int() && self.choices.below(2) == 0,
            scale: *self.choices.pick(&[Elem::F32, Elem::F16, Elem::Bf16]),
        }
    }

    /// `x`, scale and, unless symmetric, zero point.
    fn with_scales(&mut self, x: Value, scheme: &Scheme) -> Vec<Value> {
        let mut shape = self.shape_of(x);
        match scheme.granularity {
            Granularity::Tensor => shape = Shape::default(),
            Granularity::Axis { axis } => shape = Shape(vec![shape[axis as usize].clone()]),
            Granularity::Blocks { axis, size } => shape.0[axis as usize] = shape[axis as usize].ceil_div(size.into()),
        }
        let mut operands = vec![x, self.exactly(scheme.scale, shape.clone())];
        if !scheme.symmetric {
            operands.push(self.exactly(scheme.storage, shape));
        }
        operands
    }

    // Operators.

    /// An operator of this name with operands that most likely fit.
    fn operator(&mut self, mnemonic: &str) -> Option<(Op, Vec<Value>)> {
        let op: (Op, Vec<Value>) = match mnemonic {
            "arg_reduce" => {
                let elem = self.elem();
                let x = self.plain(elem, 1);
                let (largest, keep, last) = (self.choices.one_in(2), self.choices.one_in(2), self.choices.one_in(2));
                (ops::ArgReduce { largest, axis: self.choices.below(self.rank(x)), keep, last }.into(), vec![x])
            }
            "attention" => self.attention(false),
            "quantized_attention" => self.attention(true),
            "cast" => {
                let (from, to) = (self.elem(), self.choices.pick(&Elem::ALL).0);
                (ops::Cast { to }.into(), vec![self.plain(from, 0)])
            }
            "concat" => {
                let elem = self.elem();
                let x = self.plain(elem, 1);
                let axis = self.choices.below(self.rank(x));
                let mut operands = vec![x];
                for _ in 0..self.choices.below(3) {
                    let mut shape = self.shape_of(x);
                    if self.choices.one_in(2) {
                        shape.0[axis] = self.dim();
                    }
                    operands.push(self.exactly(elem, shape));
                }
                (ops::Concat { axis }.into(), operands)
            }
            "conv" => self.conv(),
            "cum_sum" => {
                let elem = self.elem();
                let x = self.plain(elem, 1);
                let (exclusive, reverse) = (self.choices.one_in(2), self.choices.one_in(2));
                (ops::CumSum { axis: self.choices.below(self.rank(x)), exclusive, reverse }.into(), vec![x])
            }
            "top_k" => {
                let elem = self.elem();
                let x = self.plain(elem, 1);
                let axis = self.choices.below(self.rank(x));
                let k = match self.graph.ty(x).shape[axis].clone() {
                    n if n.as_const().is_none() || self.choices.one_in(2) => n,
                    n => Dim::from(self.choices.below(n.as_const().unwrap_or(0) as usize + 1)),
                };
                (ops::TopK { largest: self.choices.one_in(2), axis, k }.into(), vec![x])
            }
            "dequantize" => {
                let storage = *self.choices.pick(&[Elem::I8, Elem::U8, Elem::I4, Elem::U4]);
                let x = self.value(|t| t.elem == storage, |b| Type::new(storage, b.shape(0)));
                let ty = self.graph.ty(x).clone();
                let scheme = ty.quant.unwrap_or_else(|| self.scheme(&ty.shape, storage));
                (ops::Dequantize { scheme, elem: self.float() }.into(), self.with_scales(x, &scheme))
            }
            "dims" => {
                let shape = self.sizes(1);
                let values = (0..shape[0]).map(|_| self.dim()).collect();
                (ops::Dims { values, shape }.into(), vec![])
            }
            "expand" => {
                let elem = self.elem();
                let x = self.plain(elem, 0);
                let mut shape: Vec<Dim> = (0..self.choices.below(2)).map(|_| self.dim()).collect();
                for d in self.shape_of(x).0 {
                    shape.push(if d.is(1) { self.dim() } else { d });
                }
                (ops::Expand { shape: Shape(shape) }.into(), vec![x])
            }
            "fused" => return self.fused(),
            "gather" => {
                let elem = self.elem();
                let x = self.plain(elem, 1);
                let axis = self.choices.below(self.rank(x));
                let rank = self.choices.below(3);
                let sizes = self.sizes(rank);
                (ops::Gather { axis }.into(), vec![x, self.indices(&sizes, &self.shape_of(x)[axis])?])
            }
            "gather_elements" => {
                let (x, axis, indices, _) = self.elements_along_axis()?;
                (ops::GatherElements { axis }.into(), vec![x, indices])
            }
            "gather_nd" => {
                let elem = self.elem();
                let x = self.plain(elem, 1);
                let count = self.choices.below(3);
                (ops::GatherNd { batch: 0 }.into(), vec![x, self.indices(&[count, 1], &self.shape_of(x)[0])?])
            }
            "gelu" => {
                let elem = self.float();
                (ops::Gelu { tanh: self.choices.one_in(2) }.into(), vec![self.plain(elem, 0)])
            }
            "group_norm" => {
                let elem = self.float();
                let x = self.plain(elem, 2);
                let channels = Shape(vec![self.shape_of(x)[1].clone()]);
                let (scale, bias) = (self.exactly(elem, channels.clone()), self.exactly(elem, channels));
                (ops::GroupNorm { groups: self.choices.between(1, 2), epsilon: self.epsilon() }.into(), vec![x, scale, bias])
            }
            "iota" => {
                let (elem, shape) = (self.elem(), self.shape(1));
                (ops::Iota { elem, axis: self.choices.below(shape.rank()), shape }.into(), vec![])
            }
            "layer_norm" | "rms_norm" => {
                let elem = self.float();
                let x = self.plain(elem, 1);
                let axes = 1 + self.choices.below(self.rank(x).min(2));
                let last = Shape(self.shape_of(x).0[self.rank(x) - axes..].to_vec());
                let epsilon = self.epsilon();
                let mut operands = vec![x, self.exactly(elem, last.clone())];
                if mnemonic == "rms_norm" {
                    (ops::RmsNorm { axes, epsilon }.into(), operands)
                } else {
                    if self.choices.below(2) == 0 {
                        operands.push(self.exactly(elem, last));
                    }
                    (ops::LayerNorm { axes, epsilon }.into(), operands)
                }
            }
            "matmul" => {
                let elem = self.elem();
                let a = self.plain(elem, 2);
                let mut shape = self.shape_of(a);
                let rank = shape.rank();
                shape.0[rank - 2] = shape[rank - 1].clone();
                shape.0[rank - 1] = self.dim();
                let skip = self.choices.below(rank - 1);
                (ops::Matmul {}.into(), vec![a, self.exactly(elem, Shape(shape.0[skip..].to_vec()))])
            }
            "pad" => self.pad(),
            "pool" => {
                let (x, spatial) = self.image();
                let pads = self.list(2 * spatial, 0, 1);
                let op = ops::Pool {
                    average: self.choices.one_in(2),
                    kernel: self.list(spatial, 1, 2),
                    strides: self.list(spatial, 1, 2),
                    pads_before: pads[..spatial].to_vec(),
                    pads_after: pads[spatial..].to_vec(),
                    dilations: self.list(spatial, 1, 2),
                    count_pads: self.choices.one_in(2),
                    ceil: self.choices.one_in(2),
                };
                (op.into(), vec![x])
            }
            "quantize" => {
                let elem = self.float();
                let x = self.plain(elem, 0);
                let storage = *self.choices.pick(&[Elem::I8, Elem::U8, Elem::I4, Elem::U4]);
                let scheme = self.scheme(&self.shape_of(x), storage);
                (ops::Quantize { scheme }.into(), self.with_scales(x, &scheme))
            }
            "quantize_rows" => {
                let elem = self.float();
                let mut shape = self.shape(1);
                *shape.0.last_mut().expect("one axis") = Dim::from(self.choices.between(1, 5));
                (ops::QuantizeRows { symmetric: self.choices.one_in(2) }.into(), vec![self.exactly(elem, shape)])
            }
            "quantize_static" => {
                let elem = self.float();
                let x = self.plain(elem, 0);
                (self.quantize_static().into(), vec![x])
            }
            "quantized_matmul" => self.quantized_matmul(),
            "reduce" => {
                use ops::reduce::ReduceKind::{Max, Mean, Min, Prod, Sum};
                let elem = self.elem();
                let x = self.plain(elem, 0);
                let axes = (0..self.rank(x)).filter(|_| self.choices.below(2) == 0).collect();
                let kind = *self.choices.pick(&[Sum, Mean, Max, Min, Prod]);
                (ops::Reduce { kind, axes, keep: self.choices.one_in(2) }.into(), vec![x])
            }
            "reshape" => {
                let elem = self.elem();
                let x = self.plain(elem, 0);
                let mut shape = self.shape_of(x).0;
                if self.choices.one_in(2) && shape.len() > 1 {
                    let last = shape.pop().expect("two sizes");
                    let before = shape.pop().expect("two sizes");
                    shape.push(before * last);
                }
                shape.insert(self.choices.below(shape.len() + 1), Dim::from(1));
                (ops::Reshape { shape: Shape(shape) }.into(), vec![x])
            }
            "rotary" => {
                let elem = self.float();
                let half = self.choices.between(1, 2);
                let mut shape = self.shape(1);
                let last = shape.rank() - 1;
                shape.0[last] = Dim::from(2 * half);
                let x = self.exactly(elem, shape.clone());
                shape.0[last] = Dim::from(half);
                let (cos, sin) = (self.exactly(elem, shape.clone()), self.exactly(elem, shape));
                (ops::Rotary { interleaved: self.choices.one_in(2) }.into(), vec![x, cos, sin])
            }
            "scatter_elements" => {
                let (x, axis, indices, sizes) = self.elements_along_axis()?;
                let elem = self.graph.ty(x).elem;
                let updates = self.exactly(elem, sizes.into_iter().map(Dim::from).collect());
                (ops::ScatterElements { axis, reduction: self.reduction() }.into(), vec![x, indices, updates])
            }
            "scatter_nd" => {
                let elem = self.elem();
                let x = self.plain(elem, 1);
                let mut shape = self.shape_of(x);
                let count = self.choices.below(3);
                let indices = self.indices(&[count, 1], &shape[0])?;
                shape.0[0] = Dim::from(count);
                (ops::ScatterNd { reduction: self.reduction() }.into(), vec![x, indices, self.exactly(elem, shape)])
            }
            "select" => {
                let elem = self.elem();
                let x = self.plain(elem, 0);
                let shape = self.shape_of(x);
                (ops::Select {}.into(), vec![self.broadcasting(Elem::Bool, &shape), x, self.broadcasting(elem, &shape)])
            }
            "slice" => {
                let elem = self.elem();
                let x = self.plain(elem, 1);
                let (mut starts, mut steps, mut lens) = (vec![], vec![], vec![]);
                for d in self.shape_of(x).0 {
                    let (start, step, len) = match self.choices.below(4) {
                        1 if d.range(&self.graph.symbols).min > 0 => (Dim::from(0), 1, Dim::from(1)),
                        2 if d.range(&self.graph.symbols).min > 0 => (Dim::from(1), 1, d - Dim::from(1)),
                        3 if d.range(&self.graph.symbols).min > 0 => (d.clone() - Dim::from(1), -1, d),
                        _ => (Dim::from(0), 1, d),
                    };
                    starts.push(start);
                    steps.push(step);
                    lens.push(len);
                }
                (ops::Slice { starts, steps, lens: Shape(lens) }.into(), vec![x])
            }
            "softmax" => {
                let elem = self.float();
                let x = self.plain(elem, 1);
                (ops::Softmax { axis: self.choices.below(self.rank(x)), log: self.choices.one_in(2) }.into(), vec![x])
            }
            "transpose" => {
                let elem = self.elem();
                let x = self.value(|t| t.elem == elem, |b| Type::new(elem, b.shape(0)));
                let perm = self.permutation(self.rank(x));
                (ops::Transpose { perm }.into(), vec![x])
            }
            "window" => {
                let (x, spatial) = self.image();
                let op = ops::Window {
                    kernel: self.list(spatial, 1, 2),
                    strides: self.list(spatial, 1, 2),
                    dilations: self.list(spatial, 1, 2),
                };
                (op.into(), vec![x])
            }
            _ => return self.elementwise(mnemonic),
        };
        Some(op)
    }

    fn quantize_static(&mut self) -> ops::QuantizeStatic {
        let zero_point = *self.choices.pick(&[0, 0, -128, 127, 5]);
        ops::QuantizeStatic { scale: Float::from(*self.choices.pick(&[0.25, 0.01, 3.0f32])), zero_point }
    }

    fn quantized_matmul(&mut self) -> (Op, Vec<Value>) {
        let storages = [Elem::I8, Elem::U8, Elem::I4, Elem::U4];
        let storage = self.style.elem.filter(|e| storages.contains(e)).unwrap_or_else(|| *self.choices.pick(&storages));
        let (k, n) = (self.choices.between(1, 7), self.dim());
        let mut shape = self.shape(2);
        let rank = shape.rank();
        shape.0[rank - 1] = Dim::from(k);
        let granularity = match self.choices.below(2) {
            0 => Granularity::Axis { axis: 1 },
            _ => Granularity::Blocks { axis: 0, size: self.choices.between(1, 4) as u32 },
        };
        let (min, max) = storage.int_range().expect("an integer type");
        let symmetric = self.choices.one_in(2);
        let weights = Scheme { storage, min: min as i16, max: max as i16, granularity, symmetric, scale: Elem::F32 };
        let rows = ops::QuantizeRows { symmetric: self.choices.one_in(2) };
        let (activations, mut operands) = match self.choices.below(5) {
            0 => (None, vec![self.exactly(Elem::F32, shape)]),
            1 => {
                let scheme = Scheme { granularity: Granularity::Tensor, ..rows.scheme(rank, k as u32) };
                let x = self.exactly(Elem::I8, shape);
                (Some(scheme), self.with_scales(x, &scheme))
            }
            2 => {
                let scheme = rows.scheme(rank, k as u32);
                let x = self.exactly(Elem::I8, shape);
                (Some(scheme), self.with_scales(x, &scheme))
            }
            // Fresh ones, which are not rounded: quantization jumps.
            3 => {
                let x = self.fresh(Type::new(Elem::F32, shape));
                let op = self.quantize_static();
                let mut operands = self.graph.add_node(op.clone(), &[x], &Loc::default()).expect("an f32 operand");
                operands.extend(op.parameters().into_iter().map(|t| self.graph.add_const(t, None)));
                (Some(op.scheme()), operands)
            }
            _ => {
                let x = self.fresh(Type::new(Elem::F32, shape));
                let scheme = rows.scheme(rank, k as u32);
                (Some(scheme), self.graph.add_node(rows, &[x], &Loc::default()).expect("its rows have a size"))
            }
        };
        let w = self.exactly(storage, Shape(vec![Dim::from(k), n]));
        operands.extend(self.with_scales(w, &weights));
        (ops::QuantizedMatmul { activations, weights }.into(), operands)
    }

    /// An elementwise operator without attributes, on an element type that it accepts.
    fn elementwise(&mut self, mnemonic: &str) -> Option<(Op, Vec<Value>)> {
        let op = Op::from_attributes(mnemonic, &[]).ok()?;
        let accepts = |elem: Elem| {
            let operands = vec![Type::fixed(elem, &[]); *op.arity().start()];
            op.infer(&mut ops::InferCx::new(&Default::default()), &operands).is_ok()
        };
        let wished = self.elem();
        let elem = [wished, Elem::F32, Elem::I32].into_iter().find(|&e| accepts(e))?;
        let x = self.plain(elem, 0);
        let shape = self.shape_of(x);
        let mut operands = vec![x];
        for _ in 1..*op.arity().start() {
            operands.push(self.broadcasting(elem, &shape));
        }
        if operands.len() > 1 && self.choices.one_in(3) {
            operands.reverse();
        }
        Some((op, operands))
    }

    fn attention(&mut self, rounded: bool) -> (Op, Vec<Value>) {
        let elem = if rounded { Elem::F32 } else { self.float() };
        let (groups, per_group) = (self.choices.between(1, 2), self.choices.between(1, 2));
        let [batch, n, m] = [(); 3].map(|()| self.dim());
        let (d, e) = (self.choices.between(1, 3), self.choices.between(1, 3));
        let shape = |heads: i64, length: &Dim, size: i64| Shape(vec![batch.clone(), Dim::from(heads), length.clone(), Dim::from(size)]);
        let q = self.exactly(elem, shape(groups * per_group, &n, d));
        let k = self.exactly(elem, shape(groups, &m, d));
        let v = self.exactly(elem, shape(groups, &m, e));
        let mut operands = vec![q, k, v];
        if self.choices.one_in(2) {
            operands.push(self.exactly(elem, Shape(vec![n, m])));
        }
        let mask_value = self.choices.one_in(2).then(|| Float::from(-0.5));
        let op = ops::Attention { scale: Float::from(0.5), causal: self.choices.one_in(2), mask_value };
        let op = if rounded { ops::QuantizedAttention::from(op).into() } else { op.into() };
        (op, operands)
    }

    /// A float of batch, channels and one or two axes of known sizes; and the number of those.
    fn image(&mut self) -> (Value, usize) {
        let elem = self.float();
        let accept = |t: &Type| {
            t.elem == elem && (3..=4).contains(&t.rank()) && t.quant.is_none() && t.shape.0[2..].iter().all(|d| d.as_const().is_some())
        };
        let x = self.value(accept, |b| {
            let mut shape = vec![b.dim(), Dim::from(2 * b.choices.between(1, 2))];
            (0..1 + b.choices.below(2)).for_each(|_| shape.push(Dim::from(b.choices.between(2, 5))));
            Type::new(elem, Shape(shape))
        });
        (x, self.rank(x) - 2)
    }

    fn conv(&mut self) -> (Op, Vec<Value>) {
        let (x, spatial) = self.image();
        let elem = self.graph.ty(x).elem;
        let channels = self.shape_of(x)[1].as_const().unwrap_or(1).max(1);
        let groups = *self.choices.pick(&[1, 2, channels]);
        let outputs = groups * self.choices.between(1, 2);
        let kernel = self.list(spatial, 1, 2);
        let w = [&[outputs, channels / groups], &kernel[..]].concat();
        let mut operands = vec![x, self.exactly(elem, Shape::fixed(&w))];
        if self.choices.one_in(2) {
            operands.push(self.exactly(elem, Shape::fixed(&[outputs])));
        }
        let op = ops::Conv {
            strides: self.list(spatial, 1, 2),
            pads_before: self.list(spatial, 0, 1),
            pads_after: self.list(spatial, 0, 1),
            dilations: self.list(spatial, 1, 2),
            groups,
        };
        (op.into(), operands)
    }

    fn pad(&mut self) -> (Op, Vec<Value>) {
        use ops::pad::PadMode::{Constant, Edge, Reflect, Wrap};
        let elem = self.elem();
        let x = self.plain(elem, 1);
        let mode = *self.choices.pick(&[Constant, Reflect, Edge, Wrap]);
        let rank = self.rank(x);
        let mut border = || self.list(rank, 0, 2).into_iter().map(Dim::from).collect();
        let (before, after) = (border(), border());
        let mut operands = vec![x];
        if mode == Constant {
            operands.push(self.exactly(elem, Shape::default()));
        }
        (ops::Pad { mode, before, after }.into(), operands)
    }

    fn reduction(&mut self) -> ops::scatter_elements::ScatterReduction {
        use ops::scatter_elements::ScatterReduction::{Add, Max, Min, Mul, Replace};
        *self.choices.pick(&[Replace, Add, Mul, Max, Min])
    }

    /// A value of known sizes, an axis, and indices of a shape that fits, with its sizes.
    fn elements_along_axis(&mut self) -> Option<(Value, usize, Value, Vec<usize>)> {
        let elem = self.elem();
        let fixed = |t: &Type| t.elem == elem && t.quant.is_none() && t.rank() > 0 && t.shape.as_fixed().is_some();
        let x = self.value(fixed, |b| Type::fixed(elem, &[b.choices.between(1, 3), b.choices.between(0, 3)]));
        let mut sizes = self.shape_of(x).as_fixed()?;
        let axis = self.choices.below(sizes.len());
        let bound = Dim::from(sizes[axis]);
        sizes[axis] = self.choices.below(3);
        let indices = self.indices(&sizes, &bound)?;
        Some((x, axis, indices, sizes))
    }

    /// A nested graph of a few nodes.
    fn fused(&mut self) -> Option<(Op, Vec<Value>)> {
        if self.depth == 2 {
            return None;
        }
        let style = Style { runs: false, ..self.style };
        let mut body = Builder::new(self.choices, style);
        body.graph.symbols = self.graph.symbols.clone();
        body.depth = self.depth + 1;
        body.nodes(3);
        body.outputs();
        let body = body.graph;
        if body.outputs().is_empty() {
            return None;
        }
        let types: Vec<Type> = body.inputs().iter().map(|&v| body.ty(v).clone()).collect();
        let operands = types.iter().map(|ty| self.value(|t| t == ty, |_| ty.clone())).collect();
        Some((ops::Fused { body: Body(Arc::new(body)) }.into(), operands))
    }
}
