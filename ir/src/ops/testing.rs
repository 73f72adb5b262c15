//! What the operators' tests share: tensors, types, and the comparison of an operator with its decomposition.

use super::{InferCx, Op};
use crate::dim::{Bindings, Dim, SymbolTable};
use crate::graph::{Graph, Loc};
use crate::quant::{Granularity, Scheme};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};
use proptest::prelude::*;

/// A type from words: numbers and names of symbols.
pub(super) fn ty(elem: Elem, shape: &str) -> Type {
    let dim = |w: &str| w.parse::<i64>().map_or_else(|_| Dim::symbol(w), Dim::from);
    Type::new(elem, shape.split_whitespace().map(dim).collect())
}

/// A tensor of eighths between -4 and 4, or of integers between -16 and 16, that `seed` decides.
pub(super) fn tensor(elem: Elem, sizes: &[usize], seed: u64) -> Tensor {
    let mut state = seed;
    Tensor::build(elem, sizes, |_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let n = (state >> 33) % 65;
        if elem.is_float() { Scalar::Float(n as f64 / 8.0 - 4.0) } else { Scalar::Int((n / 2) as i128 - 16) }
    })
}

/// An f32 tensor.
pub(super) fn f32s(sizes: &[usize], values: &[f32]) -> Tensor {
    Tensor::of(sizes, values.to_vec())
}

/// Evaluates an operator; its result must have the inferred type.
pub(super) fn eval(op: impl Into<Op>, inputs: &[Tensor]) -> Tensor {
    let types: Vec<Type> = inputs.iter().map(Tensor::ty).collect();
    eval_at(&op.into(), &types, &Bindings::new(), inputs)
}

fn eval_at(op: &Op, types: &[Type], bindings: &Bindings, inputs: &[Tensor]) -> Tensor {
    let mut g = Graph::new("direct");
    let operands: Vec<_> = types.iter().map(|t| g.add_input("x", t.clone())).collect();
    let y = g.add(op.clone(), &operands, &Loc::default()).expect("inference accepts the operands");
    g.add_output("y", y);
    let result = g.evaluate(inputs, bindings).expect("evaluation").remove(0);
    let inferred = g.ty(y);
    assert_eq!(inferred.shape.eval(bindings).as_deref(), Some(result.sizes()), "inferred {inferred}");
    assert_eq!(inferred.elem, result.elem());
    result
}

/// Demands that an operator and its decomposition agree.
pub(super) fn assert_lowers(op: impl Into<Op>, inputs: &[Tensor]) {
    let types: Vec<Type> = inputs.iter().map(Tensor::ty).collect();
    assert_lowers_at(op, &types, &[], inputs);
}

/// [`assert_lowers`] for operand types with symbols that have the given values.
pub(super) fn assert_lowers_at(op: impl Into<Op>, types: &[Type], symbols: &[(&str, i64)], inputs: &[Tensor]) {
    let op = op.into();
    let bindings: Bindings = symbols.iter().map(|&(s, n)| (crate::dim::Symbol::new(s), n)).collect();
    let expected = eval_at(&op, types, &bindings, inputs);
    let mut g = Graph::new("lowered");
    let operands: Vec<_> = types.iter().map(|t| g.add_input("x", t.clone())).collect();
    let inferred = op.infer(&mut InferCx::new(&g.symbols), types).expect("inference accepts the operands");
    let y = op.lower(&mut g, &operands, &Loc::default()).expect("it has a decomposition").expect("the decomposition has types")[0];
    assert!(g.nodes().all(|(_, n)| n.op.mnemonic() != op.mnemonic()), "a decomposition is in simpler operators");
    assert_eq!(*g.ty(y), inferred[0], "type of the decomposition of {op:?}");
    g.add_output("y", y);
    let found = g.evaluate(inputs, &bindings).expect("evaluation of the decomposition").remove(0);
    assert_close(&found, &expected);
}

/// Demands equal integers, and floats that differ by rounding only.
pub(super) fn assert_close(found: &Tensor, expected: &Tensor) {
    assert_eq!((found.elem(), found.sizes()), (expected.elem(), expected.sizes()));
    let tolerance = match found.elem() {
        Elem::F16 | Elem::Bf16 => 1e-2,
        _ => 1e-4,
    };
    for (i, (f, e)) in found.iter().zip(expected.iter()).enumerate() {
        let close = match (f, e) {
            (Scalar::Float(f), Scalar::Float(e)) => f == e || (f.is_nan() && e.is_nan()) || (f - e).abs() <= tolerance * (1.0 + e.abs()),
            (f, e) => f == e,
        };
        assert!(close, "element {i} of {:?}: {f:?} instead of {e:?}", found.sizes());
    }
}

/// The message with which inference refuses operands.
pub(super) fn refusal(op: impl Into<Op>, types: &[Type]) -> String {
    let op = op.into();
    match op.infer(&mut InferCx::new(&Default::default()), types) {
        Ok(result) => panic!("{op:?} accepts {types:?} and gives {result:?}"),
        Err(e) => e.to_string(),
    }
}

/// Demands that inference refuses operands with a message that begins with `constraint`.
pub(super) fn assert_refused(op: impl Into<Op>, types: &[Type], constraint: &str) {
    let message = refusal(op, types);
    assert!(message.starts_with(constraint), "{message:?} does not begin with {constraint:?}");
}

/// Shapes of a rank in a range, sizes 0 to 4.
pub(super) fn sizes(rank: std::ops::Range<usize>) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..5, rank)
}

/// The type that inference gives the first result, and what it wants to be checked at run time, as
/// text. All symbols have the widest range.
pub(super) fn infer(op: impl Into<Op>, types: &[Type]) -> (String, Vec<String>) {
    let symbols = SymbolTable::new();
    let mut cx = InferCx::new(&symbols);
    let results = op.into().infer(&mut cx, types).expect("inference accepts the operands");
    (results[0].to_string(), cx.into_checks().iter().map(|(a, b)| format!("{a} = {b}")).collect())
}

/// The message with which evaluation ends.
pub(super) fn failure(op: impl Into<Op>, inputs: &[Tensor]) -> String {
    op.into().eval(&Bindings::new(), inputs).expect_err("evaluation fails").to_string()
}

/// A type quantized with one scale per index of an axis.
pub(super) fn per_axis(t: Type, axis: u32) -> Type {
    let granularity = Granularity::Axis { axis };
    Type { quant: Some(Scheme { storage: t.elem, min: -8, max: 7, granularity, symmetric: true, scale: Elem::F32 }), ..t }
}
