//! `cse`: common subexpression elimination.

use crate::rebuild::{Rebuild, index};
use crate::table::{Context, Pass, PassResult, Stats};
use std::collections::HashMap;
use tfc_ir::graph::{Def, Graph, Loc, Node, Value};
use tfc_ir::ops::Op;
use tfc_ir::types::Type;

/// Merges nodes with the same operator over the same operands, and constants with the same contents.
/// Operands of commutative operators are compared without regard to their order.
pub const PASS: Pass = Pass { name: "cse", summary: "compute equal things once", run };

fn run(graph: Graph, _: &Context) -> PassResult {
    let mut first: Vec<Value> = graph.values().map(|(v, _)| v).collect();
    let mut constants: HashMap<(u128, Type), Value> = HashMap::new();
    let mut nodes: HashMap<(Op, Vec<Value>), Node> = HashMap::new();
    let mut locs: HashMap<Node, Loc> = HashMap::new();
    let mut stats = Stats::default();
    let (mut merged_nodes, mut merged_constants) = (0, 0);
    for (v, d) in graph.values() {
        if let Def::Const(t) = &d.def {
            first[index(v)] = *constants.entry((t.content_hash(), d.ty.clone())).or_insert(v);
            merged_constants += u64::from(first[index(v)] != v);
        }
    }
    let mut kept = vec![];
    for (n, data) in graph.nodes() {
        let mut operands: Vec<Value> = data.inputs.iter().map(|&v| first[index(v)]).collect();
        if data.op.traits().commutative {
            operands.sort();
        }
        match nodes.entry((data.op.clone(), operands)) {
            std::collections::hash_map::Entry::Occupied(e) => {
                let original = *e.get();
                for (&v, &o) in data.outputs.iter().zip(&graph.node(original).outputs) {
                    first[index(v)] = o;
                }
                let loc = locs.entry(original).or_insert_with(|| graph.node(original).loc.clone());
                *loc = loc.join(&data.loc);
                merged_nodes += 1;
            }
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(n);
                kept.push(n);
            }
        }
    }
    let mut out = Rebuild::new(&graph);
    for n in kept {
        let data = graph.node(n);
        let inputs: Vec<Value> = data.inputs.iter().map(|&v| out.get(first[index(v)])).collect();
        let results = out.emit(data.op.clone(), &inputs, locs.get(&n).unwrap_or(&data.loc))?;
        for (&v, r) in data.outputs.iter().zip(results) {
            out.set(v, r);
        }
    }
    for o in graph.outputs() {
        let r = out.get(first[index(o.value)]);
        out.set(o.value, r);
    }
    stats.count("nodes merged", merged_nodes);
    stats.count("constants merged", merged_constants);
    Ok((out.finish(), stats))
}
