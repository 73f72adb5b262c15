//! `fold`: constant folding.

use crate::cost;
use crate::rebuild::{Rebuild, index};
use crate::table::{Context, Pass, PassResult, Stats};
use tfc_ir::dim::Bindings;
use tfc_ir::graph::{Def, Graph, NodeData, Value};
use tfc_ir::tensor::Tensor;

/// Evaluates what depends on constants only, with the operators' reference evaluation.
///
/// A result becomes a constant of the graph where something that is not constant takes it, and only
/// if it adds little: at most [`MAX_GROWTH`] bytes more than the constants that it is computed
/// from. So tables of positions, masks and transposed weights are folded, and a small tensor that
/// is expanded to a large one stays small. What fails to evaluate (an index out of range) stays
/// and reports at run time.
pub const PASS: Pass = Pass { name: "fold", summary: "evaluate what is constant", run };

/// How many bytes a folded constant may be larger than those it replaces: a table of 512 by 512
/// floats is worth keeping, and a model has few of them.
const MAX_GROWTH: usize = 1 << 20;

/// The largest intermediate result, in bytes: bounds the memory of the compiler.
const MAX_BYTES: usize = 1 << 30;

/// The most arithmetic in one node: bounds the time, at some 10⁸ operations a second.
const MAX_WORK: f64 = 3e8;

/// A constant value, and the bytes of the graph's constants that it is computed from.
struct Known {
    tensor: Tensor,
    source: usize,
}

impl Known {
    fn is_small(&self) -> bool {
        self.tensor.bytes().len() <= self.source.saturating_add(MAX_GROWTH)
    }
}

fn run(graph: Graph, cx: &Context) -> PassResult {
    let mut known: Vec<Option<Known>> = Vec::new();
    known.resize_with(graph.values().len(), || None);
    for (v, d) in graph.values() {
        if let Def::Const(t) = &d.def {
            known[index(v)] = Some(Known { tensor: t.clone(), source: t.bytes().len() });
        }
    }
    for (_, data) in graph.nodes() {
        if let Some(results) = evaluate(&graph, data, &known, cx) {
            for (&v, r) in data.outputs.iter().zip(results) {
                known[index(v)] = Some(r);
            }
        }
    }
    let mut out = Rebuild::new(&graph);
    let mut stats = Stats::default();
    let mut folded = 0;
    for (n, data) in graph.nodes() {
        let results: Option<Vec<&Known>> = data.outputs.iter().map(|&v| known[index(v)].as_ref().filter(|k| k.is_small())).collect();
        match results {
            Some(results) => {
                for (&v, r) in data.outputs.iter().zip(results) {
                    out.set_const(v, r.tensor.clone());
                }
                folded += 1;
            }
            None => out.copy(n)?,
        }
    }
    stats.count("nodes folded", folded);
    Ok((out.finish(), stats))
}

/// The results of a node, if all operands are known and the rules of the pass allow it.
fn evaluate(graph: &Graph, data: &NodeData, known: &[Option<Known>], cx: &Context) -> Option<Vec<Known>> {
    let quantized = |v: &Value| graph.ty(*v).quant.is_some();
    if data.inputs.iter().chain(&data.outputs).any(quantized) {
        return None;
    }
    let operands: Vec<&Known> = data.inputs.iter().map(|&v| known[index(v)].as_ref()).collect::<Option<_>>()?;
    for &v in &data.outputs {
        let ty = graph.ty(v);
        let elements = ty.shape.as_fixed()?.into_iter().try_fold(1usize, usize::checked_mul)?;
        if ty.elem.bytes(elements) > MAX_BYTES {
            return None;
        }
    }
    let types: Vec<_> = data.inputs.iter().map(|&v| graph.ty(v)).collect();
    let results: Vec<_> = data.outputs.iter().map(|&v| graph.ty(v)).collect();
    if cost::work(&data.op, &types, &results, cx) > MAX_WORK {
        return None;
    }
    let source = operands.iter().fold(0usize, |n, k| n.saturating_add(k.source));
    let tensors: Vec<Tensor> = operands.iter().map(|k| k.tensor.clone()).collect();
    let results = data.op.eval(&Bindings::new(), &tensors).ok()?;
    Some(results.into_iter().map(|tensor| Known { tensor, source }).collect())
}
