//! A graph as a picture: Graphviz' `dot` language.

use petgraph::dot::{Config, Dot};
use petgraph::graph::{DiGraph, NodeIndex};
use std::collections::HashMap;
use tfc_ir::graph::{Def, Graph, Value};

/// The graph in the `dot` language: inputs, operators, outputs, and constants that have at least one
/// axis. Edges carry types.
pub fn dot(graph: &Graph) -> String {
    let mut picture: DiGraph<String, String> = DiGraph::new();
    let mut source: HashMap<Value, NodeIndex> = HashMap::new();
    for &v in graph.inputs() {
        source.insert(v, picture.add_node(format!("input {}", graph.value(v).name.as_deref().unwrap_or_default())));
    }
    for (_, data) in graph.nodes() {
        let place = if data.loc.names().len() == 0 { String::new() } else { format!("\n{}", data.loc) };
        let node = picture.add_node(format!("{}{place}", data.op.mnemonic()));
        for &v in &data.inputs {
            if let Def::Const(t) = &graph.value(v).def {
                if t.rank() == 0 {
                    continue;
                }
                let name = graph.value(v).name.as_deref().unwrap_or_default();
                source.entry(v).or_insert_with(|| picture.add_node(format!("const {name}")));
            }
            picture.add_edge(source[&v], node, graph.ty(v).to_string());
        }
        source.extend(data.outputs.iter().map(|&v| (v, node)));
    }
    for o in graph.outputs() {
        let node = picture.add_node(format!("output {}", o.name));
        let from = *source.entry(o.value).or_insert_with(|| picture.add_node("const".into()));
        picture.add_edge(from, node, graph.ty(o.value).to_string());
    }
    let text = Dot::with_attr_getters(&picture, &[Config::NodeNoLabel, Config::EdgeNoLabel], &|_, e| label(e.weight()), &|_, n| {
        format!("{} shape=box", label(n.1))
    });
    format!("{text:?}")
}

fn label(text: &str) -> String {
    format!("label={:?}", text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_graph_is_drawn() {
        let text =
            "tfc.ir 1\n\ninput %x: f32[2]\n\nconst %w: f32[2] = [1.0, 2.0]\n\n%0 = add %x, %w : f32[2] loc(\"/Add\")\n\noutput y = %0\n";
        let dot = super::dot(&tfc_ir::text::parse(text, None).unwrap());
        assert!(dot.starts_with("digraph {") && dot.contains("label=\"add\\n/Add\""), "{dot}");
        assert_eq!(dot.matches("->").count(), 3, "{dot}");
        assert!(dot.contains("label=\"f32[2]\""), "{dot}");
    }
}
