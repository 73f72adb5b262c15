//! What an operator costs, estimated from types: the one place that weighs alternatives.

use crate::table::Context;
use tfc_ir::ops::{Op, Reduce};
use tfc_ir::types::{Shape, Type};

/// The size that a symbol counts as when the context has none: a sentence, a small batch of tiles.
pub const NOMINAL_SIZE: i64 = 128;

/// The fixed cost of a node that becomes a loop of its own, in the unit of this module: the time to
/// move a byte, some 50 ps.
pub const LAUNCH: f64 = 2_000.0;

/// The cost of a node that only changes how elements are addressed.
const VIEW: f64 = 50.0;

/// Number of elements of a shape at nominal sizes.
pub fn elements(shape: &Shape, cx: &Context) -> f64 {
    let size = |d: &tfc_ir::dim::Dim| {
        let with = d.substitute(&|s| Some(cx.nominal.get(s).copied().unwrap_or(NOMINAL_SIZE).into()));
        with.as_const().unwrap_or(NOMINAL_SIZE).max(0) as f64
    };
    shape.0.iter().map(size).product()
}

/// Arithmetic operations of a node: multiply-adds count as one, transcendental functions too.
pub fn work(op: &Op, operands: &[&Type], results: &[&Type], cx: &Context) -> f64 {
    let out: f64 = results.iter().map(|t| elements(&t.shape, cx)).sum();
    let of = |i: usize| elements(&operands[i].shape, cx);
    let last = |i: usize| elements(&Shape(operands[i].shape.0.iter().rev().take(1).cloned().collect()), cx);
    match op {
        Op::Matmul(_) | Op::QuantizedMatmul(_) => out * last(0),
        Op::Conv(_) => out * elements(&Shape(operands[1].shape.0[1..].to_vec()), cx),
        Op::Attention(_) | Op::QuantizedAttention(_) => {
            let keys = elements(&Shape(vec![operands[1].shape[2].clone()]), cx);
            of(0) * keys + out * keys
        }
        Op::Reduce(Reduce { .. }) | Op::Softmax(_) | Op::LayerNorm(_) | Op::RmsNorm(_) | Op::GroupNorm(_) | Op::TopK(_) => out.max(of(0)),
        _ => out,
    }
}

/// What one arithmetic operation of a node costs next to a multiply-add: operators that are called per element are dearer.
fn weight(op: &Op) -> f64 {
    match op {
        Op::Pow(_) | Op::Tan(_) | Op::Asin(_) | Op::Acos(_) | Op::Atan(_) => 40.0,
        Op::Exp(_) | Op::Expm1(_) | Op::Log(_) | Op::Log1p(_) | Op::Tanh(_) | Op::Erf(_) | Op::Sin(_) | Op::Cos(_) => 10.0,
        Op::Gelu(_) | Op::Silu(_) | Op::Sigmoid(_) | Op::Softplus(_) | Op::Softmax(_) => 12.0,
        Op::Div(_) | Op::Sqrt(_) | Op::Rsqrt(_) | Op::Reciprocal(_) | Op::RemFloor(_) | Op::RemTrunc(_) => 4.0,
        Op::LayerNorm(_) | Op::RmsNorm(_) | Op::GroupNorm(_) => 4.0,
        // Vector units and reuse of registers make the operations of products the cheapest.
        Op::Matmul(_) | Op::QuantizedMatmul(_) | Op::Conv(_) | Op::Attention(_) | Op::QuantizedAttention(_) => 0.25,
        _ => 1.0,
    }
}

/// The cost of a node: moving its operands and results, its arithmetic, and a fixed part. What only
/// changes addresses costs next to nothing.
pub fn node(op: &Op, operands: &[&Type], results: &[&Type], cx: &Context) -> f64 {
    if matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Slice(_) | Op::Expand(_) | Op::Window(_)) {
        return VIEW;
    }
    let bytes: f64 = operands.iter().chain(results).map(|t| bytes(t, cx)).sum();
    LAUNCH + bytes + work(op, operands, results, cx) * weight(op)
}

/// The cost of what is folded to a constant: nothing at run time, but the constant takes memory, so
/// it is not made without use.
pub fn folded(operands: &[&Type], result: &Type, cx: &Context) -> f64 {
    let largest = operands.iter().map(|t| bytes(t, cx)).fold(0.0, f64::max);
    1.0 + 1e-2 * bytes(result, cx) + if bytes(result, cx) > largest { bytes(result, cx) } else { 0.0 }
}

fn bytes(t: &Type, cx: &Context) -> f64 {
    elements(&t.shape, cx) * f64::from(t.elem.bits()) / 8.0
}
