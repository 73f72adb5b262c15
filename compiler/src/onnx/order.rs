//! Which nodes of a graph are needed, and in which order: ONNX demands that operands be defined before
//! their uses; files that do not keep to it are sorted. Cycles and doubly defined values are found here.

use super::error::Error;
use onnx_protobuf::NodeProto;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

/// A node as messages name it; `place` is empty in the main graph.
pub fn place_of(node: &NodeProto, place: &str) -> String {
    let node = format!("node `{}` ({})", node.name, node.op_type);
    if place.is_empty() { node } else { format!("{node} in {place}") }
}

/// Leaves the nodes that the values called `wanted` need, directly or not, in an executable order, as
/// close to the given one as possible. The others are returned second.
///
/// # Errors
/// When a value is defined by two nodes, or values that are needed depend on themselves.
pub fn executable<'a>(
    nodes: Vec<NodeProto>,
    wanted: impl Iterator<Item = &'a str>,
    place: &str,
) -> Result<(Vec<NodeProto>, Vec<NodeProto>), Error> {
    let (needed, order) = order(&nodes, wanted, place)?;
    let mut slots: Vec<Option<NodeProto>> = nodes.into_iter().map(Some).collect();
    let kept = order.into_iter().filter_map(|i| slots[i].take()).collect();
    Ok((kept, slots.into_iter().zip(needed).filter_map(|(n, needed)| n.filter(|_| !needed)).collect()))
}

/// Which nodes are needed, and these in an executable order.
fn order<'w>(nodes: &[NodeProto], wanted: impl Iterator<Item = &'w str>, place: &str) -> Result<(Vec<bool>, Vec<usize>), Error> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (i, n) in nodes.iter().enumerate() {
        for o in n.output.iter().filter(|o| !o.is_empty()) {
            if let Some(first) = producer.insert(o, i) {
                let message = format!("the value `{o}` is defined twice; first by node `{}`", nodes[first].name);
                return Err(Error::invalid(place_of(n, place), message));
            }
        }
    }
    let operands: Vec<BTreeSet<usize>> =
        nodes.iter().map(|n| used_names(n).into_iter().filter_map(|name| producer.get(name).copied()).collect()).collect();
    let mut needed = vec![false; nodes.len()];
    let mut open: Vec<usize> = wanted.filter_map(|name| producer.get(name).copied()).collect();
    while let Some(i) = open.pop() {
        if !std::mem::replace(&mut needed[i], true) {
            open.extend(&operands[i]);
        }
    }
    let all = || (0..nodes.len()).filter(|&i| needed[i]);
    if all().all(|i| operands[i].iter().all(|&p| p < i)) {
        let order = all().collect();
        return Ok((needed, order));
    }
    let mut waits_for: Vec<usize> = operands.iter().map(BTreeSet::len).collect();
    let mut users: Vec<Vec<usize>> = vec![vec![]; nodes.len()];
    for i in all() {
        operands[i].iter().for_each(|&p| users[p].push(i));
    }
    let mut ready: BinaryHeap<Reverse<usize>> = all().filter(|&i| waits_for[i] == 0).map(Reverse).collect();
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
    let stuck: Vec<usize> = all().filter(|&i| waits_for[i] > 0).collect();
    if let Some(&first) = stuck.first() {
        let names: Vec<String> = stuck.iter().take(5).map(|&i| format!("`{}`", nodes[i].name)).collect();
        return Err(Error::invalid(place_of(&nodes[first], place), format!("nodes depend on their own results: {}", names.join(", "))));
    }
    Ok((needed, order))
}

/// The names that a node uses, including those that its subgraphs take from around them.
pub fn used_names(node: &NodeProto) -> BTreeSet<&str> {
    let mut out: BTreeSet<&str> = node.input.iter().map(String::as_str).collect();
    for g in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
        let mut inner: BTreeSet<&str> = g.output.iter().map(|o| o.name.as_str()).collect();
        g.node.iter().for_each(|n| inner.extend(used_names(n)));
        let inputs = g.input.iter().map(|i| i.name.as_str());
        let initializers = g.initializer.iter().map(|t| t.name.as_str());
        for own in inputs.chain(initializers).chain(g.node.iter().flat_map(|n| n.output.iter().map(String::as_str))) {
            inner.remove(own);
        }
        out.extend(inner);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let names = |l: &[&str]| l.iter().map(ToString::to_string).collect();
        NodeProto { name: name.into(), op_type: "Add".into(), input: names(inputs), output: names(outputs), ..NodeProto::default() }
    }

    fn names(nodes: &[NodeProto]) -> Vec<&str> {
        nodes.iter().map(|n| n.name.as_str()).collect()
    }

    #[test]
    fn nodes_are_sorted_stably() {
        let nodes = vec![node("c", &["b"], &["y"]), node("a", &["x"], &["a"]), node("b", &["a"], &["b"]), node("d", &["x"], &["z"])];
        assert_eq!(names(&executable(nodes, ["y", "z"].into_iter(), "").unwrap().0), ["a", "b", "c", "d"]);
    }

    #[test]
    fn nodes_that_nothing_needs_are_set_apart() {
        let nodes = vec![node("a", &["x"], &["a"]), node("b", &["b", "a"], &["b"]), node("c", &["a"], &["c", "d"])];
        let (kept, dead) = executable(nodes, ["d"].into_iter(), "").unwrap();
        assert_eq!((names(&kept), names(&dead)), (vec!["a", "c"], vec!["b"]));
    }

    #[test]
    fn cycles_and_double_definitions_are_errors() {
        let e = executable(vec![node("a", &["y"], &["x"]), node("b", &["x"], &["y"])], ["y"].into_iter(), "").unwrap_err().to_string();
        assert!(e.contains("depend on their own results: `a`, `b`"), "{e}");
        let e = executable(vec![node("a", &[], &["x"]), node("b", &[], &["x"])], ["x"].into_iter(), "").unwrap_err().to_string();
        assert!(e.contains("`x` is defined twice; first by node `a`"), "{e}");
    }
}
