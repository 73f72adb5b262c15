//! The order of nodes: ONNX demands that operands be defined before their uses; files that do not
//! keep to it are sorted, and cycles and doubly defined values are found here.

use super::error::Error;
use super::model::{Attribute, Node};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

/// Brings nodes into an executable order, as close to the given one as possible.
///
/// # Errors
/// When a value is defined by two nodes, or values depend on themselves.
pub fn sort(nodes: Vec<Node>, place: &str) -> Result<Vec<Node>, Error> {
    let at = |n: &Node| {
        let node = format!("node `{}` ({})", n.name, n.op);
        if place.is_empty() { node } else { format!("{node} in {place}") }
    };
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        for o in n.outputs.iter().filter(|o| !o.is_empty()) {
            if let Some(first) = producer.insert(o, i) {
                return Err(Error::invalid(at(n), format!("the value `{o}` is defined twice; first by node `{}`", nodes[first].name)));
            }
        }
    }
    let mut waits_for = vec![0usize; nodes.len()];
    let mut users: Vec<Vec<usize>> = vec![vec![]; nodes.len()];
    let mut sorted = true;
    for (i, n) in nodes.iter().enumerate() {
        let mut names = BTreeSet::new();
        used_names(n, &mut names);
        let before: BTreeSet<usize> = names.iter().filter_map(|name| producer.get(name).copied()).collect();
        sorted &= before.iter().all(|&p| p < i);
        waits_for[i] = before.len();
        for p in before {
            users[p].push(i);
        }
    }
    if sorted {
        return Ok(nodes);
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len()).filter(|&i| waits_for[i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(i)) = ready.pop() {
        order.push(i);
        for &u in &users[i] {
            waits_for[u] -= 1;
            if waits_for[u] == 0 {
                ready.push(Reverse(u));
            }
        }
    }
    if order.len() < nodes.len() {
        let stuck: Vec<String> = (0..nodes.len()).filter(|&i| waits_for[i] > 0).take(5).map(|i| format!("`{}`", nodes[i].name)).collect();
        let first = (0..nodes.len()).find(|&i| waits_for[i] > 0).expect("one is left");
        return Err(Error::invalid(at(&nodes[first]), format!("nodes depend on their own results: {}", stuck.join(", "))));
    }
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    Ok(order.into_iter().map(|i| slots[i].take().expect("each once")).collect())
}

/// The names that a node uses, including those that its subgraphs take from around them.
fn used_names<'a>(node: &'a Node, out: &mut BTreeSet<&'a str>) {
    out.extend(node.inputs.iter().map(|s| &**s));
    for a in node.attributes.values() {
        if let Attribute::Graph(g) = a {
            let mut inner: BTreeSet<&str> = g.outputs.iter().map(|o| &*o.name).collect();
            g.nodes.iter().for_each(|n| used_names(n, &mut inner));
            let own = g.inputs.iter().map(|i| &*i.name).chain(g.initializers.iter().map(|(n, _)| &**n));
            for name in own.chain(g.nodes.iter().flat_map(|n| n.outputs.iter().map(|o| &**o))) {
                inner.remove(name);
            }
            out.extend(inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, inputs: &[&str], outputs: &[&str]) -> Node {
        let names = |l: &[&str]| l.iter().map(|&s| s.into()).collect();
        Node { name: name.into(), op: "Add".into(), inputs: names(inputs), outputs: names(outputs), ..Node::default() }
    }

    #[test]
    fn nodes_are_sorted_stably() {
        let nodes = vec![node("c", &["b"], &["y"]), node("a", &["x"], &["a"]), node("b", &["a"], &["b"]), node("d", &["x"], &["z"])];
        let names: Vec<_> = sort(nodes, "").unwrap().iter().map(|n| n.name.to_string()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
    }

    #[test]
    fn cycles_and_double_definitions_are_errors() {
        let e = sort(vec![node("a", &["y"], &["x"]), node("b", &["x"], &["y"])], "").unwrap_err().to_string();
        assert!(e.contains("depend on their own results: `a`, `b`"), "{e}");
        let e = sort(vec![node("a", &[], &["x"]), node("b", &[], &["x"])], "").unwrap_err().to_string();
        assert!(e.contains("`x` is defined twice; first by node `a`"), "{e}");
    }
}
