//! What an operator costs, estimated from types: the one place that weighs alternatives.

use crate::table::Context;
use tfc_ir::ops::{Op, Reduce};
use tfc_ir::types::{Shape, Type};

/// The size that a symbol counts as when the context has none: a sentence, a small batch of tiles.
pub const NOMINAL_SIZE: i64 = 128;

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
        Op::Matmul(_) => out * last(0),
        Op::Conv(_) => out * elements(&Shape(operands[1].shape.0[1..].to_vec()), cx),
        Op::Attention(_) => {
            let keys = elements(&Shape(vec![operands[1].shape[2].clone()]), cx);
            of(0) * keys + out * keys
        }
        Op::Reduce(Reduce { .. }) | Op::Softmax(_) | Op::LayerNorm(_) | Op::RmsNorm(_) | Op::GroupNorm(_) => out.max(of(0)),
        _ => out,
    }
}
