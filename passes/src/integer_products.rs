//! `integer-products`: products of integers that a model brings along become `quantized_matmul`.
//!
//! Quantized models say how their matrices are stored, and spell the arithmetic out: a tensor of 8 bits is
//! converted, loses its zero point, and is multiplied by its scale, and the results meet in a product of
//! f32; or the product is one of 32-bit integers, and is converted and scaled. Both are products of stored
//! integers, for which there are kernels.
//!
//! An operand is *stored* if it is `scale * (codes - zero)`, each of the two optional, behind any conversions that
//! are exact and anything that only moves elements; padding with 0 pads codes with their zero point.
//!
//! - Activations are codes of 8 bits, computed or given, with one scale and one zero point, which may be known at
//!   run time only. Codes without a sign are less by 128, as are their zero points.
//! - Weights are constant codes of 8 or 4 bits; scales and zero points are for everything, for every column, or for
//!   groups of at least [`MIN_GROUP`] along k.
//!
//! What becomes a `quantized_matmul`, and how its results compare, `acc` being the exact sum of integers:
//!
//! - A product of stored integers in `i32`, `i64` or `f64` that is converted to f32, perhaps moved on the way: with
//!   scales of 1, it is `f32(acc)`, the same bits. What multiplies it by scales stays. If integers `c` were
//!   added before the conversion, they are added as f32 behind it: the same bits where `|acc| + |c|` cannot exceed
//!   2²⁴; otherwise within 2⁻²³ (|acc| + |c|) of what it was.
//! - Such a product of two computed operands whose sums cannot exceed 2²⁴ is one of f32, in which they are exact.
//! - A product of stored operands in f32: `f32(acc) * w_scale * x_scale` is within 5 · 2⁻²⁴ Σ |x w|, to first order, of the
//!   sum of products of rounded factors.
//! - A product of other f32 activations with stored weights: the same factors.
//!
//! A convolution of one group whose operands are both stored is taken apart, and its product is one of these. Sums that may
//! exceed an i32 are split along k where the product is one of f32, one more rounding for each part; where it is one of integers, it
//! stays as it is, and so does what is not of this form.

use crate::rebuild::{Rebuild, index};
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use std::collections::HashMap;
use tfc_ir::dim::{Bindings, Dim};
use tfc_ir::graph::{Def, Graph, Loc, NodeData, Value};
use tfc_ir::ops::pad::PadMode;
use tfc_ir::ops::{Add, Cast, Expand, InferCx, Matmul, Max, Min, Op, QuantizedMatmul, Reshape, Sub, Transpose, Xor};
use tfc_ir::quant::{Granularity, Scheme};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape, Type};

/// Finds products of stored integers.
pub const PASS: Pass = Pass { name: "integer-products", summary: "products of integers that the model stores", run };

/// The shortest group along k that shares a scale: kernels scale once per group and column.
const MIN_GROUP: usize = 16;

/// How many operators a match goes through: models have some ten, and deep graphs must not exhaust the stack.
const MAX_DEPTH: usize = 64;

/// What is left to match of a value.
#[derive(Clone, Copy)]
struct Rest {
    /// So many operators more.
    depth: usize,
    /// Whether there may be a scale.
    scale: bool,
}

impl Rest {
    const ALL: Rest = Rest { depth: MAX_DEPTH, scale: true };

    /// Behind an operator; `None` if that is one too many.
    fn behind(self) -> Option<Rest> {
        Some(Rest { depth: self.depth.checked_sub(1)?, ..self })
    }

    /// Behind a multiplication by a scale.
    fn unscaled(self) -> Rest {
        Rest { scale: false, ..self }
    }
}

/// The largest constant that is evaluated, in elements.
const MAX_ELEMENTS: i64 = 1 << 30;

fn run(graph: Graph, cx: &Context) -> PassResult {
    let graph = taken_apart(&graph)?;
    let mut stats = Stats::default();
    let mut pass = Products { graph: &graph, out: Rebuild::new(&graph), constant: constants(&graph), tensors: HashMap::new() };
    for (n, node) in graph.nodes() {
        let found = match &node.op {
            Op::Matmul(_) if graph.ty(node.outputs[0]).elem == Elem::F32 => pass.product(node)?,
            Op::Cast(Cast { to: Elem::F32 }) => pass.converted(node.inputs[0], Rest::ALL)?,
            _ => None,
        };
        if let (None, Op::Cast(op)) = (&found, &node.op)
            && is_wide(op.to)
            && let Some(y) = pass.widened(node.inputs[0], op.to, &node.loc)?
        {
            stats.count("codes widened without a type of 8 bits", 1);
            pass.out.set(node.outputs[0], y);
            continue;
        }
        match found {
            Some(Product { y, integers, .. }) => {
                stats.count(if integers { "products of integers" } else { "products in f32" }, 1);
                pass.out.set(node.outputs[0], y);
            }
            None => pass.out.copy(n)?,
        }
    }
    // What only was an operand of a product in 32 bits, or of a match that was given up, is not used.
    Ok(((crate::dce::PASS.run)(pass.out.finish(), cx)?.0, stats))
}

/// The graph with dequantization and convolutions of stored operands as simpler operators.
fn taken_apart(graph: &Graph) -> Result<Graph, PassError> {
    let simple = |g: &Graph, node: &NodeData, inputs: &[Value]| match &node.op {
        Op::Dequantize(_) => true,
        Op::Conv(op) => op.groups == 1 && inputs[..2].iter().all(|&v| may_be_stored(g, v)),
        _ => false,
    };
    graph.rebuild(|g, _, node, inputs| {
        let lowered = if simple(g, node, inputs) { node.op.lower(g, inputs, &node.loc) } else { None };
        lowered.unwrap_or_else(|| g.add_node(node.op.clone(), inputs, &node.loc)).map_err(|e| PassError::new(e, &node.loc))
    })
}

/// Whether there are codes where a stored operand has them.
fn may_be_stored(g: &Graph, mut v: Value) -> bool {
    while !is_code(g.ty(v).elem) {
        let Some(node) = g.producer(v) else { return false };
        let next = match &node.op {
            Op::Cast(_) | Op::Sub(_) => node.inputs[0],
            // The scale has fewer axes, or is a constant.
            Op::Mul(_) => match node.inputs.iter().find(|&&v| g.producer(v).is_some_and(|n| matches!(n.op, Op::Cast(_)))) {
                Some(&v) => v,
                None => return false,
            },
            op if moves(op) => node.inputs[0],
            _ => return false,
        };
        v = next;
    }
    true
}

fn is_code(elem: Elem) -> bool {
    matches!(elem, Elem::I8 | Elem::U8 | Elem::I4 | Elem::U4)
}

/// Whether a number is a code of this type.
fn is_code_of(elem: Elem, x: Scalar) -> bool {
    let (low, high) = elem.int_range().expect("codes are integers");
    x.to_f64().fract() == 0.0 && (low as f64..=high as f64).contains(&x.to_f64())
}

/// Whether every code, and every difference of two, is exact in this type.
fn is_wide(elem: Elem) -> bool {
    matches!(elem, Elem::I16 | Elem::I32 | Elem::I64 | Elem::F32 | Elem::F64)
}

/// Whether the operator only moves elements of its one operand.
fn moves(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Expand(_) | Op::Window(_))
}

/// Which values depend on constants only.
fn constants(graph: &Graph) -> Vec<bool> {
    let mut constant: Vec<bool> = graph.values().map(|(_, d)| matches!(d.def, Def::Const(_))).collect();
    for (_, node) in graph.nodes() {
        let all = node.inputs.iter().all(|&v| constant[index(v)]);
        node.outputs.iter().for_each(|&v| constant[index(v)] = all);
    }
    constant
}

/// A product as it is in the new graph.
struct Product {
    y: Value,
    /// The largest magnitude of an exact sum, and what was added to it.
    bound: i128,
    /// Whether both operands are stored.
    integers: bool,
}

/// Activations `scale * (codes - zero)` in the new graph: codes and zero point are `i8`, and one zero point and one scale, without
/// axes, are for all.
struct Activations {
    codes: Value,
    zero: Option<Value>,
    scale: Option<Value>,
    /// Type of the codes as the model has them.
    stored: Elem,
    /// Whether a zero point was subtracted.
    shifted: bool,
}

/// Constants `scale * (codes - zero)`. Scales and zero points have as many axes as the codes, of size 1 where they repeat.
struct Stored {
    codes: Tensor,
    zero: Option<Tensor>,
    scale: Option<Tensor>,
}

/// A stored matrix as the operator takes it.
struct Matrix {
    scheme: Scheme,
    codes: Tensor,
    zero: Option<Tensor>,
    scale: Option<Tensor>,
    /// The shape of scales.
    columns: Vec<usize>,
}

struct Products<'g> {
    graph: &'g Graph,
    out: Rebuild<'g>,
    constant: Vec<bool>,
    /// What was evaluated.
    tensors: HashMap<Value, Option<Tensor>>,
}

impl Products<'_> {
    /// Emits a product with stored weights; `None` if it is not one.
    fn product(&mut self, node: &NodeData) -> Result<Option<Product>, PassError> {
        let loc = &node.loc;
        let elem = self.graph.ty(node.outputs[0]).elem;
        for turned in [false, true] {
            let [x, w] = if turned { [1, 0] } else { [0, 1] }.map(|i| node.inputs[i]);
            let ranks = [x, w].map(|v| self.graph.ty(v).rank());
            if self.constant[index(x)] || ranks[1] > ranks[0] {
                continue;
            }
            let Some(w_matrix) = self.stored(w, Rest::ALL).and_then(|s| matrix(s, turned)) else { continue };
            let activations = self.activations(x, Rest::ALL, loc)?;
            let integers = activations.is_some();
            let scaled = w_matrix.scale.is_some() || activations.as_ref().is_some_and(|a| a.scale.is_some());
            // f32 activations stay where they are: to turn them around costs a copy.
            if (elem != Elem::F32 && scaled) || (!integers && (turned || elem != Elem::F32 || !scaled)) {
                continue;
            }
            let bytes = activations.as_ref().map(|a| Scheme { symmetric: a.zero.is_none(), ..full_range(Elem::I8, Granularity::Tensor) });
            let w_matrix = match &bytes {
                // Exact sums of integers stay sums of all of k.
                Some(bytes) if elem == Elem::F32 => w_matrix.with_short_sums(bytes),
                _ => w_matrix,
            };
            let op = QuantizedMatmul { activations: bytes, weights: w_matrix.scheme };
            let mut operands = vec![match &activations {
                Some(a) => a.codes,
                None => self.out.get(x),
            }];
            if let Some(a) = activations {
                operands.push(match a.scale {
                    Some(scale) => scale,
                    None => self.out.new.add_const(Tensor::of(&[], vec![1f32]), None),
                });
                operands.extend(a.zero);
            }
            if turned {
                operands[0] = self.transposed(operands[0], loc)?;
            }
            let bound = w_matrix.codes.sizes()[0] as i128 * 255 * 255;
            operands.extend(self.emit_matrix(w_matrix, w));
            let op = Op::from(op);
            let types: Vec<Type> = operands.iter().map(|&v| self.out.new.ty(v).clone()).collect();
            if op.infer(&mut InferCx::new(&self.out.new.symbols), &types).is_err() {
                continue;
            }
            let mut y = self.emit(op, &operands, loc)?;
            if turned {
                y = self.transposed(y, loc)?;
            }
            return Ok(Some(Product { y, bound, integers }));
        }
        Ok(None)
    }

    /// A product of integers that is not in f32, converted to it; perhaps moved, perhaps with constants added.
    fn converted(&mut self, v: Value, rest: Rest) -> Result<Option<Product>, PassError> {
        let graph = self.graph;
        let elem = graph.ty(v).elem;
        let Some(node) = graph.producer(v).filter(|_| matches!(elem, Elem::I32 | Elem::I64 | Elem::F64)) else { return Ok(None) };
        let Some(rest) = rest.behind() else { return Ok(None) };
        match &node.op {
            Op::Matmul(_) => match self.product(node)?.filter(|p| p.integers) {
                None => self.product_of_floats(node),
                found => Ok(found),
            },
            Op::Cast(_) => self.converted(node.inputs[0], rest),
            op if moves(op) => {
                let Some(p) = self.converted(node.inputs[0], rest)? else { return Ok(None) };
                let y = self.emit(op.clone(), &[p.y], &node.loc)?;
                Ok(Some(Product { y, ..p }))
            }
            Op::Add(_) => {
                for (a, b) in [(0, 1), (1, 0)] {
                    if self.constant[index(node.inputs[a])] {
                        continue;
                    }
                    let Some(t) = self.tensor(node.inputs[b]) else { continue };
                    let largest = t.iter().map(|c| c.to_f64().abs()).fold(0.0, f64::max);
                    let whole = t.iter().all(|c| c.to_f64().fract() == 0.0);
                    let Some(p) = self.converted(node.inputs[a], rest)? else { continue };
                    let bound = p.bound + largest as i128;
                    if !whole || bound > i32::MAX.into() {
                        continue;
                    }
                    let added = Tensor::of(t.sizes(), t.iter().map(|c| c.to_f64() as f32).collect());
                    let added = self.out.new.add_const(added, None);
                    let y = self.emit(Add {}.into(), &[p.y, added], &node.loc)?;
                    return Ok(Some(Product { y, bound, ..p }));
                }
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// A product of codes or differences of codes, none of which is constant, in f32, if every sum is exact there.
    fn product_of_floats(&mut self, node: &NodeData) -> Result<Option<Product>, PassError> {
        let graph = self.graph;
        let [a, b] = [0, 1].map(|i| node.inputs[i]);
        let k = graph.ty(b).shape[graph.ty(b).rank() - 2].as_const();
        let Some(bound) = k.map(|k| i128::from(k) * 255 * 255).filter(|&bound| bound <= 1 << 24) else { return Ok(None) };
        if ![a, b].iter().all(|&v| self.is_small(v, Rest::ALL)) {
            return Ok(None);
        }
        let mut operands = [a, b].map(|v| self.out.get(v));
        for v in &mut operands {
            *v = self.emit(Cast { to: Elem::F32 }.into(), &[*v], &node.loc)?;
        }
        let y = self.emit(Matmul {}.into(), &operands, &node.loc)?;
        Ok(Some(Product { y, bound, integers: false }))
    }

    /// Whether the elements are whole numbers of magnitudes of at most 255: codes, or differences of two that both have a
    /// sign or both have none.
    fn is_small(&mut self, v: Value, rest: Rest) -> bool {
        let graph = self.graph;
        let code = |mut v: Value| loop {
            if is_code(graph.ty(v).elem) {
                return Some(graph.ty(v).elem);
            }
            let node = graph.producer(v).filter(|n| is_wide(graph.ty(v).elem) && (moves(&n.op) || matches!(n.op, Op::Cast(_))))?;
            v = node.inputs[0];
        };
        if code(v).is_some() {
            return true;
        }
        match graph.producer(v).map(|n| (&n.op, &n.inputs[..])) {
            Some((Op::Sub(_), &[a, b])) => {
                let Some(elem) = code(a) else { return false };
                code(b) == Some(elem) || self.tensor(b).is_some_and(|t| t.iter().all(|z| is_code_of(elem, z)))
            }
            Some((op, &[x, ..])) if moves(op) || matches!(op, Op::Cast(_)) && is_wide(graph.ty(v).elem) => {
                rest.behind().is_some_and(|rest| self.is_small(x, rest))
            }
            _ => false,
        }
    }

    /// The codes behind activations, emitted; `None` if there are none.
    fn activations(&mut self, v: Value, rest: Rest, loc: &Loc) -> Result<Option<Activations>, PassError> {
        let graph = self.graph;
        let ty = graph.ty(v);
        if matches!(ty.elem, Elem::I8 | Elem::U8) {
            let codes = self.signed(v, loc)?;
            let zero = (ty.elem == Elem::U8).then(|| self.code(-128));
            return Ok(Some(Activations { codes, zero, scale: None, stored: ty.elem, shifted: false }));
        }
        let Some(node) = graph.producer(v).filter(|_| is_wide(ty.elem)) else { return Ok(None) };
        let Some(rest) = rest.behind() else { return Ok(None) };
        let same_shape = |v: Value| graph.ty(v).shape == ty.shape;
        Ok(match &node.op {
            Op::Cast(_) => self.activations(node.inputs[0], rest, loc)?.filter(|a| a.scale.is_none()),
            Op::Sub(_) if same_shape(node.inputs[0]) => {
                let a = self.activations(node.inputs[0], rest, loc)?.filter(|a| a.scale.is_none() && !a.shifted);
                let Some(a) = a else { return Ok(None) };
                let zero = self.zero_point(node.inputs[1], a.stored, loc)?;
                zero.map(|zero| Activations { zero, shifted: true, ..a })
            }
            Op::Mul(_) if ty.elem == Elem::F32 && rest.scale => {
                for (a, b) in [(0, 1), (1, 0)] {
                    let [x, scale] = [a, b].map(|i| node.inputs[i]);
                    if !graph.ty(scale).shape.elements().is(1) || !same_shape(x) {
                        continue;
                    }
                    if let Some(a) = self.activations(x, rest.unscaled(), loc)? {
                        let scale = self.out.get(scale);
                        return Ok(Some(Activations { scale: Some(self.without_axes(scale, loc)?), ..a }));
                    }
                }
                None
            }
            Op::Pad(op) if op.mode == PadMode::Constant => {
                let zero = self.tensor(node.inputs[1]).is_some_and(|t| t.get(0).to_f64() == 0.0);
                let Some(a) = self.activations(node.inputs[0], rest, loc)?.filter(|_| zero) else { return Ok(None) };
                let value = match a.zero {
                    Some(zero) => zero,
                    None => self.code(0),
                };
                Some(Activations { codes: self.emit(op.clone().into(), &[a.codes, value], loc)?, ..a })
            }
            op if moves(op) => match self.activations(node.inputs[0], rest, loc)? {
                Some(a) => Some(Activations { codes: self.emit(op.clone(), &[a.codes], loc)?, ..a }),
                None => None,
            },
            _ => None,
        })
    }

    /// One zero point for codes that the model stores as `elem`, signed and without axes, if `v` is one. It is
    /// `Some(None)` if it is 0.
    fn zero_point(&mut self, v: Value, elem: Elem, loc: &Loc) -> Result<Option<Option<Value>>, PassError> {
        let graph = self.graph;
        if !graph.ty(v).shape.elements().is(1) {
            return Ok(None);
        }
        if let Some(t) = self.tensor(v) {
            if !is_code_of(elem, t.get(0)) {
                return Ok(None);
            }
            let zero = t.get(0).to_f64() as i32 - if elem == Elem::U8 { 128 } else { 0 };
            return Ok(Some((zero != 0).then(|| self.code(zero as i8))));
        }
        let mut at = v;
        while graph.ty(at).elem != elem {
            match graph.producer(at).map(|n| (&n.op, n.inputs[0])) {
                Some((Op::Cast(_) | Op::Reshape(_), next)) if is_wide(graph.ty(at).elem) => at = next,
                _ => return Ok(None),
            }
        }
        let zero = self.signed(at, loc)?;
        Ok(Some(Some(self.without_axes(zero, loc)?)))
    }

    /// A constant code without axes.
    fn code(&mut self, code: i8) -> Value {
        self.out.new.add_const(Tensor::of(&[], vec![code]), None)
    }

    /// Plain codes as `i8`: those without a sign less by 128.
    fn signed(&mut self, v: Value, loc: &Loc) -> Result<Value, PassError> {
        if let Some(codes) = self.rounded(v, loc)? {
            return Ok(codes);
        }
        let ty = self.graph.ty(v);
        let mut codes = self.out.get(v);
        if ty.elem == Elem::U8 {
            // The cast leaves a scheme behind.
            codes = if ty.quant.is_some() { self.emit(Cast { to: Elem::U8 }.into(), &[codes], loc)? } else { codes };
            let half = self.out.new.add_const(Tensor::of(&[], vec![128u8]), None);
            codes = self.emit(Xor {}.into(), &[codes, half], loc)?;
        } else if ty.quant.is_none() {
            return Ok(codes);
        }
        self.emit(Cast { to: Elem::I8 }.into(), &[codes], loc)
    }

    /// The codes of `u8` that f32 are converted to, less by 128, as `i8`: `None` if `v` is something else.
    fn rounded(&mut self, v: Value, loc: &Loc) -> Result<Option<Value>, PassError> {
        let Some(codes) = self.widened(v, Elem::I32, loc)? else { return Ok(None) };
        let half = self.out.new.add_const(Tensor::of(&[], vec![128i32]), None);
        let codes = self.emit(Sub {}.into(), &[codes, half], loc)?;
        Ok(Some(self.emit(Cast { to: Elem::I8 }.into(), &[codes], loc)?))
    }

    /// The codes of `u8` that f32 are converted to, in a wider type: `None` if `v` is something else. So no value
    /// is of a type without a sign, which kernels convert one by one.
    fn widened(&mut self, v: Value, to: Elem, loc: &Loc) -> Result<Option<Value>, PassError> {
        let graph = self.graph;
        let from = graph.producer(v).filter(|n| graph.ty(v).elem == Elem::U8 && matches!(n.op, Op::Cast(_)));
        let Some(x) = from.map(|n| n.inputs[0]).filter(|&x| graph.ty(x).elem == Elem::F32) else { return Ok(None) };
        let mut y = self.out.get(x);
        if !self.is_clamped(x) {
            let [low, high] = [0f32, 255.0].map(|end| self.out.new.add_const(Tensor::of(&[], vec![end]), None));
            y = self.emit(Max {}.into(), &[y, low], loc)?;
            y = self.emit(Min {}.into(), &[y, high], loc)?;
        }
        y = self.emit(Cast { to: Elem::I32 }.into(), &[y], loc)?;
        Ok(Some(if to == Elem::I32 { y } else { self.emit(Cast { to }.into(), &[y], loc)? }))
    }

    /// Whether a value is NaN or in 0..=255, by a minimum of a maximum.
    fn is_clamped(&mut self, v: Value) -> bool {
        let graph = self.graph;
        let mut bounded = |v: Value, is: fn(&Op) -> bool, by: fn(f64) -> bool| {
            let node = graph.producer(v).filter(|n| is(&n.op))?;
            let [a, b] = node.inputs[..] else { return None };
            let end = |t: Tensor| t.len() == 1 && by(t.get(0).to_f64());
            if self.tensor(b).is_some_and(end) { Some(a) } else { self.tensor(a).is_some_and(end).then_some(b) }
        };
        let below = bounded(v, |op| matches!(op, Op::Min(_)), |end| (0.0..=255.0).contains(&end));
        below.is_some_and(|v| bounded(v, |op| matches!(op, Op::Max(_)), |end| (0.0..=255.0).contains(&end)).is_some())
    }

    fn without_axes(&mut self, v: Value, loc: &Loc) -> Result<Value, PassError> {
        let shape = Shape::default();
        if self.out.new.ty(v).shape == shape { Ok(v) } else { self.emit(Reshape { shape }.into(), &[v], loc) }
    }

    /// The last two axes swapped.
    fn transposed(&mut self, v: Value, loc: &Loc) -> Result<Value, PassError> {
        let rank = self.out.new.ty(v).rank();
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.emit(Transpose { perm }.into(), &[v], loc)
    }

    fn emit(&mut self, op: Op, inputs: &[Value], loc: &Loc) -> Result<Value, PassError> {
        Ok(self.out.emit(op, inputs, loc)?[0])
    }

    /// Codes, scales and zero points of a matrix that stands for `old`.
    fn emit_matrix(&mut self, m: Matrix, old: Value) -> Vec<Value> {
        let name = self.graph.value(old).name.clone();
        let ty = Type { quant: Some(m.scheme), ..m.codes.ty() };
        let scale = m.scale.unwrap_or_else(|| Tensor::build(Elem::F32, &m.columns, |_| Scalar::Float(1.0)));
        let mut values = vec![self.out.new.add_typed_const(m.codes, ty, name), self.out.new.add_const(scale, None)];
        values.extend(m.zero.map(|zero| self.out.new.add_const(zero, None)));
        values
    }

    /// A constant value, computed if need be.
    fn tensor(&mut self, v: Value) -> Option<Tensor> {
        self.tensor_within(v, Rest::ALL)
    }

    fn tensor_within(&mut self, v: Value, rest: Rest) -> Option<Tensor> {
        let graph = self.graph;
        if !self.constant[index(v)] {
            return None;
        }
        if let Some(t) = graph.as_const(v) {
            return Some(t.clone());
        }
        if let Some(known) = self.tensors.get(&v) {
            return known.clone();
        }
        let small = graph.ty(v).shape.elements().as_const().is_some_and(|n| n <= MAX_ELEMENTS);
        let node = graph.producer(v).filter(|n| small && n.outputs.len() == 1)?;
        let rest = rest.behind()?;
        let inputs: Option<Vec<Tensor>> = node.inputs.iter().map(|&v| self.tensor_within(v, rest)).collect();
        let result = inputs.and_then(|inputs| Some(node.op.eval(&Bindings::new(), &inputs).ok()?.remove(0)));
        self.tensors.insert(v, result.clone());
        result
    }

    /// The constant that a value is, if it is a stored one.
    fn stored(&mut self, v: Value, rest: Rest) -> Option<Stored> {
        let graph = self.graph;
        let ty = graph.ty(v);
        if !self.constant[index(v)] {
            return None;
        }
        if is_code(ty.elem) {
            return Some(Stored { codes: self.tensor(v)?, zero: None, scale: None });
        }
        let node = graph.producer(v).filter(|_| is_wide(ty.elem))?;
        let rest = rest.behind()?;
        match &node.op {
            Op::Cast(_) => self.stored(node.inputs[0], rest).filter(|s| s.scale.is_none()),
            Op::Sub(_) => {
                let s = self.stored(node.inputs[0], rest).filter(|s| s.scale.is_none() && s.zero.is_none())?;
                let zero = self.tensor(node.inputs[1])?;
                let elem = s.codes.elem();
                if !zero.iter().all(|z| is_code_of(elem, z)) {
                    return None;
                }
                let zero = Tensor::build(elem, zero.sizes(), |i| Scalar::Int(zero.get(i).to_f64() as i128));
                Some(Stored { zero: Some(aligned(&zero, s.codes.sizes())?), ..s })
            }
            Op::Mul(_) if ty.elem == Elem::F32 && rest.scale => [(0, 1), (1, 0)].into_iter().find_map(|(a, b)| {
                let s = self.stored(node.inputs[a], rest.unscaled())?;
                let scale = self.tensor(node.inputs[b])?;
                Some(Stored { scale: Some(aligned(&scale, s.codes.sizes())?), ..s })
            }),
            op if moves(op) => self.stored(node.inputs[0], rest)?.moved(op),
            _ => None,
        }
    }
}

impl Stored {
    /// The same under an operator that moves elements.
    fn moved(self, op: &Op) -> Option<Stored> {
        let of = |t: Tensor| Some(op.eval(&Bindings::new(), &[t]).ok()?.remove(0));
        let sizes = self.codes.sizes().to_vec();
        // Axes of size 1 are swapped like others; what else happens to them does not happen to what repeats along them.
        let full = |t: Option<Tensor>| match (t, op) {
            (None, _) => Some(None),
            (Some(t), Op::Transpose(_)) => of(t).map(Some),
            (Some(t), _) => of(expanded(t, &sizes)?).map(Some),
        };
        Some(Stored { zero: full(self.zero)?, scale: full(self.scale)?, codes: of(self.codes)? })
    }
}

impl Matrix {
    /// The same in groups whose sums with activations that are stored so fit an i32, if all of k is one group.
    fn with_short_sums(mut self, activations: &Scheme) -> Matrix {
        let (k, n) = (self.codes.sizes()[0], self.codes.sizes()[1]);
        let size = QuantizedMatmul::longest_group(activations, &self.scheme);
        if k > size as usize && matches!(self.scheme.granularity, Granularity::Axis { .. }) {
            self.scheme.granularity = Granularity::Blocks { axis: 0, size };
            self.columns = vec![k.div_ceil(size as usize), n];
            let repeated = |t: Tensor| Tensor::build(t.elem(), &self.columns, |i| t.get(i % n));
            (self.zero, self.scale) = (self.zero.map(repeated), self.scale.map(repeated));
        }
        self
    }
}

/// With as many axes as `sizes`, if it broadcasts to them.
fn aligned(t: &Tensor, sizes: &[usize]) -> Option<Tensor> {
    let missing = sizes.len().checked_sub(t.rank())?;
    let own = [&vec![1; missing], t.sizes()].concat();
    let fits = own.iter().zip(sizes).all(|(&n, &size)| n == 1 || n == size);
    fits.then(|| t.reshaped(&own).ok())?
}

fn expanded(t: Tensor, sizes: &[usize]) -> Option<Tensor> {
    if t.sizes() == sizes {
        return Some(t);
    }
    let shape = Shape(sizes.iter().map(|&n| Dim::from(n as i64)).collect());
    Some(Op::from(Expand { shape }).eval(&Bindings::new(), &[t]).ok()?.remove(0))
}

fn full_range(storage: Elem, granularity: Granularity) -> Scheme {
    let (min, max) = storage.int_range().expect("codes are integers");
    Scheme { storage, min: min as i16, max: max as i16, granularity, symmetric: true, scale: Elem::F32 }
}

/// One matrix for all of the other operand, `turned` if it is the left operand; `None` if it is not one, or if
/// scales and zero points change more often along k than every [`MIN_GROUP`] indices.
fn matrix(s: Stored, turned: bool) -> Option<Matrix> {
    let flat = |t: Tensor| {
        let (batch, sizes) = t.sizes().split_at(t.rank() - 2);
        let t = if batch.iter().all(|&n| n == 1) { t.reshaped(sizes).ok()? } else { return None };
        if !turned {
            return Some(t);
        }
        Some(Op::from(Transpose { perm: vec![1, 0] }).eval(&Bindings::new(), &[t]).ok()?.remove(0))
    };
    let codes = flat(s.codes)?;
    let zero = match s.zero {
        Some(zero) if zero.iter().any(|z| z.to_i128() != 0) => Some(flat(zero)?),
        _ => None,
    };
    let scale = match s.scale {
        Some(scale) => Some(flat(scale)?),
        None => None,
    };
    let (k, n) = (codes.sizes()[0], codes.sizes()[1]);
    let group = match [&scale, &zero].into_iter().flatten().fold(0, common_divisor) {
        0 => k,
        group => group,
    };
    let (granularity, columns) = match u32::try_from(group).ok()? {
        _ if group == k => (Granularity::Axis { axis: 1 }, vec![n]),
        size if group >= MIN_GROUP => (Granularity::Blocks { axis: 0, size }, vec![k.div_ceil(group), n]),
        _ => return None,
    };
    let at = |t: Tensor| {
        let sizes = [t.sizes()[0], t.sizes()[1]];
        Tensor::build(t.elem(), &columns, |i| {
            let row = if sizes[0] == 1 { 0 } else { i / n * group };
            t.get(row * sizes[1] + if sizes[1] == 1 { 0 } else { i % n })
        })
    };
    let scheme = Scheme { symmetric: zero.is_none(), ..full_range(codes.elem(), granularity) };
    Some(Matrix { scheme, zero: zero.map(at), scale: scale.map(at), columns: columns.clone(), codes })
}

/// The greatest common divisor of `n` and the indices along the first axis where something differs from what is
/// before; 0 if it is 0 and nothing differs.
fn common_divisor(n: usize, t: &Tensor) -> usize {
    let columns = t.sizes()[1];
    let differs = |i: &usize| (0..columns).any(|j| t.get(i * columns + j) != t.get((i - 1) * columns + j));
    (1..t.sizes()[0]).filter(differs).fold(n, |mut a, mut b| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    })
}
