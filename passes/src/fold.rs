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
///
/// There is a budget of memory and of arithmetic, a fixed part and one in proportion to the constants of the model:
/// what exceeds it is computed at run time. So a few bytes of model cannot make gigabytes, however often the pass runs.
pub const PASS: Pass = Pass { name: "fold", summary: "evaluate what is constant", run };

/// How many bytes a folded constant may be larger than those it replaces: a table of 512 by 512
/// floats is worth keeping, and a model has few of them.
const MAX_GROWTH: usize = 1 << 20;

/// Bytes by which constants and results may exceed the constants of the model, besides so many times those.
const HELD_BYTES: usize = 64 << 20;
const HELD_TIMES: usize = 4;

/// The most arithmetic in one node: bounds the time, at some 10⁸ operations a second.
const MAX_WORK: f64 = 3e8;

/// The most arithmetic in all nodes, besides so much for each byte of the model's constants.
const TOTAL_WORK: f64 = 4e7;
const WORK_PER_BYTE: f64 = 8.0;

/// What an operation on single elements counts, whose scalar program is interpreted for each of them.
const INTERPRETED: f64 = 8.0;

/// What is left for further nodes.
struct Budget {
    bytes: usize,
    work: f64,
}

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
    let grown = graph.constant_bytes().saturating_sub(cx.source_bytes);
    let mut budget = Budget {
        bytes: HELD_BYTES.saturating_add(cx.source_bytes.saturating_mul(HELD_TIMES)).saturating_sub(grown),
        work: TOTAL_WORK + WORK_PER_BYTE * cx.source_bytes as f64,
    };
    let mut last_use = vec![None; graph.values().len()];
    for (n, data) in graph.nodes() {
        data.inputs.iter().for_each(|&v| last_use[index(v)] = Some(n));
    }
    for (n, data) in graph.nodes() {
        if let Some(results) = evaluate(&graph, data, &known, &mut budget, cx) {
            for (&v, r) in data.outputs.iter().zip(results) {
                known[index(v)] = Some(r);
            }
        }
        // What is too large to become a constant is only needed as an operand.
        for &v in data.inputs.iter().filter(|&&v| last_use[index(v)] == Some(n)) {
            if let Some(k) = known[index(v)].take_if(|k| !k.is_small()) {
                budget.bytes += k.tensor.bytes().len();
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

/// The results of a node, if all operands are known and the rules of the pass and its budget allow it.
fn evaluate(graph: &Graph, data: &NodeData, known: &[Option<Known>], budget: &mut Budget, cx: &Context) -> Option<Vec<Known>> {
    let quantized = |v: &Value| graph.ty(*v).quant.is_some();
    if data.inputs.iter().chain(&data.outputs).any(quantized) {
        return None;
    }
    let operands: Vec<&Known> = data.inputs.iter().map(|&v| known[index(v)].as_ref()).collect::<Option<_>>()?;
    let mut bytes = 0usize;
    for &v in &data.outputs {
        let ty = graph.ty(v);
        let elements = ty.shape.as_fixed()?.into_iter().try_fold(1usize, usize::checked_mul)?;
        bytes = bytes.checked_add(ty.elem.bytes(elements))?;
    }
    let types: Vec<_> = data.inputs.iter().map(|&v| graph.ty(v)).collect();
    let results: Vec<_> = data.outputs.iter().map(|&v| graph.ty(v)).collect();
    let work = cost::work(&data.op, &types, &results, cx) * if data.op.traits().elementwise { INTERPRETED } else { 1.0 };
    if bytes > budget.bytes || work > MAX_WORK.min(budget.work) {
        return None;
    }
    let source = operands.iter().fold(0usize, |n, k| n.saturating_add(k.source));
    let tensors: Vec<Tensor> = operands.iter().map(|k| k.tensor.clone()).collect();
    budget.work -= work;
    let results = data.op.eval(&Bindings::new(), &tensors).ok()?;
    budget.bytes -= bytes;
    Some(results.into_iter().map(|tensor| Known { tensor, source }).collect())
}
