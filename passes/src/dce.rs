//! `dce`: dead code elimination.

use crate::rebuild::{Rebuild, index};
use crate::table::{Context, Pass, PassResult, Stats};
use tfc_ir::graph::Graph;

/// Removes nodes and constants that no output needs. Inputs stay: they are the model's interface.
pub const PASS: Pass = Pass { name: "dce", summary: "remove what no output needs", run };

fn run(graph: Graph, _: &Context) -> PassResult {
    let mut live = vec![false; graph.values().len()];
    for o in graph.outputs() {
        live[index(o.value)] = true;
    }
    for (_, data) in graph.nodes().rev() {
        if data.outputs.iter().any(|&v| live[index(v)]) {
            data.inputs.iter().for_each(|&v| live[index(v)] = true);
        }
    }
    let mut out = Rebuild::new(&graph);
    for (n, data) in graph.nodes() {
        if data.outputs.iter().any(|&v| live[index(v)]) {
            out.copy(n)?;
        }
    }
    let new = out.finish();
    let mut stats = Stats::default();
    stats.count("nodes removed", (graph.nodes().len() - new.nodes().len()) as u64);
    Ok((new, stats))
}
