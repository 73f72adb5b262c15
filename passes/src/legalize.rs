//! `legalize`: takes composite operators apart that no kernel computes as they are, so that fusion and
//! scheduling see what really runs.
//!
//! An operator whose decomposition only computes per element and reduces (softmax, the norms) stays:
//! it becomes one kernel. So does a product with a quantized matrix, for which the scheduler decides. Everything else that has a decomposition (convolution, pooling, rotary
//! embedding, …) is replaced by it. Reductions keep their axes; a reshape drops them.

use crate::table::{Context, Pass, PassError, Stats};
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Graph, Loc, NodeData, Value};
use tfc_ir::ops::{InferError, Op, Reduce, Reshape};

/// Takes composite operators apart that no kernel computes as they are.
pub const PASS: Pass = Pass { name: "legalize", summary: "take apart what no kernel computes as it is", run };

fn run(graph: Graph, _: &Context) -> Result<(Graph, Stats), PassError> {
    let mut current = graph;
    let mut replaced = 0;
    loop {
        let before = replaced;
        current = current.rebuild(|g, _, node, inputs| {
            let results = match replacement(g, node, inputs) {
                Ok(Some(results)) => {
                    replaced += 1;
                    Ok(results)
                }
                Ok(None) => g.add_node(node.op.clone(), inputs, &node.loc),
                Err(e) => Err(e),
            };
            results.map_err(|e| PassError::new(e, &node.loc))
        })?;
        if replaced == before {
            let mut stats = Stats::default();
            stats.count("operators replaced", replaced);
            return Ok((current, stats));
        }
    }
}

fn replacement(g: &mut Graph, node: &NodeData, inputs: &[Value]) -> Result<Option<Vec<Value>>, InferError> {
    if let Op::Reduce(op) = &node.op {
        return if op.keep { Ok(None) } else { drop_axes(g, op, inputs[0], &node.loc).map(|v| Some(vec![v])) };
    }
    // The scheduler chooses kernels for quantized products, or takes them apart.
    if matches!(node.op, Op::QuantizedMatmul(_)) || is_row_operator(g, node, inputs) {
        return Ok(None);
    }
    node.op.lower(g, inputs, &node.loc).transpose()
}

fn drop_axes(g: &mut Graph, op: &Reduce, x: Value, loc: &Loc) -> Result<Value, InferError> {
    let kept = g.add(Reduce { keep: true, ..op.clone() }, &[x], loc)?;
    let shape = &g.ty(x).shape;
    let rest: Vec<Dim> = (0..shape.rank()).filter(|a| !op.axes.contains(a)).map(|a| shape[a].clone()).collect();
    g.add(Reshape { shape: tfc_ir::types::Shape(rest) }, &[kept], loc)
}

/// Whether the operator's decomposition only computes per element and reduces.
pub(crate) fn is_row_operator(g: &Graph, node: &NodeData, inputs: &[Value]) -> bool {
    let operands: Vec<_> = inputs.iter().map(|&v| g.ty(v).clone()).collect();
    lowered_nodes(g, &node.op, &operands)
        .is_some_and(|body| body.nodes().all(|(_, n)| n.op.traits().elementwise || matches!(&n.op, Op::Reduce(r) if r.keep)))
}

/// The decomposition of an operator on operands of the given types, alone in a graph.
pub(crate) fn lowered_nodes(g: &Graph, op: &Op, operands: &[tfc_ir::types::Type]) -> Option<Graph> {
    let mut body = g.emptied();
    let inputs: Vec<Value> = operands.iter().map(|ty| body.add_input("x", ty.clone())).collect();
    op.lower(&mut body, &inputs, &Loc::default())?.ok()?;
    Some(body)
}
