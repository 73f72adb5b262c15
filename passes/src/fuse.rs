//! `fuse`: groups operators that become one kernel into `fused` nodes.
//!
//! A group has one *domain*, the shape over which its kernel iterates, and one of three kinds:
//!
//! - *elementwise*: every operator has the domain as its shape;
//! - *row*: also reductions over the same axes of the domain, and operators on what they reduced;
//! - *contraction*: one matrix product, and elementwise operators on its result.
//!
//! A static quantization goes with the product that makes what it quantizes, or stays alone: the codes of all else are made where
//! they are packed for a product.
//!
//! Going through the nodes in order, a node joins the groups of its operands where kinds and domains
//! agree and no path between the two leaves the group (which would be a cycle). Values that are used
//! outside of the group become its results, whatever else uses them inside.

use crate::legalize::lowered_nodes;
use crate::table::{Context, Pass, PassError, Stats};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tfc_ir::attr::Body;
use tfc_ir::graph::{Def, Graph, Loc, Node, NodeData, Value};
use tfc_ir::ops::{Fused, InferError, Op};
use tfc_ir::types::{Shape, Type};

/// The most nodes of a group: keeps kernels small enough for registers and caches.
const MAX_NODES: usize = 48;

/// The most values that a group reads or writes: keeps the pointers in registers.
const MAX_VALUES: usize = 16;

/// Groups operators that become one kernel into `fused` nodes. Nothing that comes after may look into
/// them, so it is the last pass of a pipeline.
pub const PASS: Pass = Pass { name: "fuse", summary: "group operators that become one kernel", run };

fn run(graph: Graph, _: &Context) -> Result<(Graph, Stats), PassError> {
    let groups = Groups::formed(&graph);
    let (out, count, grouped) = groups.emit().map_err(|e| PassError::new(e, &Loc::default()))?;
    let mut stats = Stats::default();
    stats.count("groups", count);
    stats.count("nodes grouped", grouped);
    Ok((out, stats))
}

/// What a node may become part of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Elementwise,
    /// With reductions over these axes of the domain.
    Row(BTreeSet<usize>),
    Contraction,
    /// Elementwise, and only ever part of a contraction.
    Codes,
    /// Stays alone.
    Other,
}

/// Nodes that become one kernel.
pub(crate) struct Group {
    pub(crate) kind: Kind,
    /// The shape over which the kernel iterates.
    pub(crate) domain: Shape,
    pub(crate) nodes: BTreeSet<Node>,
}

/// The groups of a graph. Each has a number, which it may lose to another one that it is merged with.
pub(crate) struct Groups<'g> {
    pub(crate) graph: &'g Graph,
    /// The group of each node, by the node's position.
    of: BTreeMap<Node, usize>,
    list: Vec<Option<Group>>,
    /// All groups, each behind those that it takes operands from. Numbers of groups that are merged into others stay.
    order: Vec<usize>,
    /// Where each group is in the order.
    place: Vec<usize>,
    users: BTreeMap<Value, Vec<Node>>,
    results: BTreeSet<Value>,
}

impl<'g> Groups<'g> {
    fn new(graph: &'g Graph) -> Self {
        let mut users: BTreeMap<Value, Vec<Node>> = BTreeMap::new();
        let (mut of, mut list) = (BTreeMap::new(), vec![]);
        for (n, node) in graph.nodes() {
            for &v in &node.inputs {
                users.entry(v).or_default().push(n);
            }
            of.insert(n, list.len());
            let (kind, domain) = classify(graph, node);
            list.push(Some(Group { kind, domain, nodes: BTreeSet::from([n]) }));
        }
        let results = graph.outputs().iter().map(|o| o.value).collect();
        // Nodes come behind their operands, and so do groups of one node.
        let order: Vec<usize> = (0..list.len()).collect();
        Groups { graph, of, list, place: order.clone(), order, users, results }
    }

    /// The groups that become kernels.
    pub(crate) fn formed(graph: &'g Graph) -> Self {
        let mut groups = Groups::new(graph);
        for (n, node) in graph.nodes() {
            for &v in &node.inputs {
                if let Def::Result(p, _) = graph.value(v).def {
                    groups.try_merge(p, n);
                }
            }
        }
        groups
    }

    /// The group of a number, unless it was merged with another one.
    pub(crate) fn get(&self, g: usize) -> Option<&Group> {
        self.list[g].as_ref()
    }

    /// The group of a node.
    pub(crate) fn group(&self, n: Node) -> &Group {
        self.list[self.of[&n]].as_ref().expect("nodes are in live groups")
    }

    fn try_merge(&mut self, producer: Node, consumer: Node) {
        let (p, c) = (self.of[&producer], self.of[&consumer]);
        if p == c {
            return;
        }
        let (a, b) = (self.group(producer), self.group(consumer));
        if let Some((kind, domain)) = self.combined(a, b, consumer) {
            self.merge(p, c, kind, domain);
        }
    }

    /// Merges group `p` with group `c`, which depends on it, unless the union is too large or a path between them leaves both.
    fn merge(&mut self, p: usize, c: usize, kind: Kind, domain: Shape) -> bool {
        let [a, b] = [p, c].map(|g| &self.list[g].as_ref().expect("live").nodes);
        let nodes: BTreeSet<Node> = a.union(b).copied().collect();
        if nodes.len() > MAX_NODES || self.boundary(&nodes) > MAX_VALUES || self.would_cycle(p, c) {
            return false;
        }
        self.move_behind(p, c);
        for n in &nodes {
            self.of.insert(*n, c);
        }
        self.list[p] = None;
        self.list[c] = Some(Group { kind, domain, nodes });
        true
    }

    /// Makes the order right for `c` with what is in `p`: what lies between the two and depends on `p` goes behind `c`.
    fn move_behind(&mut self, p: usize, c: usize) {
        let (from, to) = (self.place[p], self.place[c]);
        let (mut before, mut behind, mut dependent) = (vec![], vec![], BTreeSet::from([p]));
        for &g in &self.order[from + 1..to] {
            if self.list[g].is_some() && !self.sources(g).is_disjoint(&dependent) {
                dependent.insert(g);
                behind.push(g);
            } else {
                before.push(g);
            }
        }
        let moved = before.into_iter().chain([p, c]).chain(behind);
        for (at, g) in (from..=to).zip(moved) {
            self.order[at] = g;
            self.place[g] = at;
        }
    }

    /// [`Groups::formed`] goes on as if group `c` were elementwise in a shape of `producer`'s group, which
    /// it takes through `views`: the two are merged, unless fusion would not. Returns whether they are.
    pub(crate) fn merge_through(&mut self, producer: Node, views: &BTreeSet<Node>, c: usize) -> bool {
        let p = self.of[&producer];
        for &v in views {
            let view = self.of.insert(v, p).expect("nodes are in groups");
            if view != p {
                self.list[view] = None;
            }
            self.list[p].as_mut().expect("live").nodes.insert(v);
        }
        let Group { kind, domain, .. } = self.group(producer);
        let (kind, domain) = (kind.clone(), domain.clone());
        p != c && self.merge(p, c, kind, domain)
    }

    /// Kind and domain of the union, if the two go together.
    fn combined(&self, producer: &Group, consumer: &Group, node: Node) -> Option<(Kind, Shape)> {
        use Kind::{Codes, Contraction, Elementwise, Other, Row};
        let same = producer.domain == consumer.domain;
        let y = &self.graph.ty(self.graph.node(node).outputs[0]).shape;
        match (&producer.kind, &consumer.kind) {
            (Other, _) | (_, Other) => None,
            // A gather reads anywhere in its data, which must be in memory.
            _ if self.indexes_into(producer, consumer) => None,
            (Elementwise, Elementwise) if same => Some((Elementwise, producer.domain.clone())),
            (Contraction, Elementwise | Codes) if same => Some((Contraction, producer.domain.clone())),
            (Elementwise, Contraction)
                if same && consumer.nodes.len() > 1 && consumer.nodes.contains(&node) && !self.feeds_product(producer, consumer) =>
            {
                Some((Contraction, producer.domain.clone()))
            }
            (Elementwise, Row(axes)) if same => Some((Row(axes.clone()), producer.domain.clone())),
            (Row(axes), Elementwise) if same || (consumer.nodes.len() == 1 && *y == reduced_shape(&producer.domain, axes)) => {
                Some((Row(axes.clone()), producer.domain.clone()))
            }
            (Row(a), Row(b)) if same && a == b => Some((Row(a.clone()), producer.domain.clone())),
            _ => None,
        }
    }

    fn indexes_into(&self, producer: &Group, consumer: &Group) -> bool {
        consumer.nodes.iter().any(|&n| {
            let node = self.graph.node(n);
            matches!(node.op, Op::Gather(_)) && node.inputs.iter().any(|&v| self.is_in(v, producer))
        })
    }

    fn feeds_product(&self, producer: &Group, consumer: &Group) -> bool {
        consumer.nodes.iter().any(|&n| {
            let node = self.graph.node(n);
            matches!(node.op, Op::Matmul(_)) && node.inputs.iter().any(|&v| self.is_in(v, producer))
        })
    }

    /// Whether a node of the group computes `v`.
    pub(crate) fn is_in(&self, v: Value, group: &Group) -> bool {
        matches!(self.graph.value(v).def, Def::Result(n, _) if group.nodes.contains(&n))
    }

    /// How many values enter and leave a set of nodes.
    fn boundary(&self, nodes: &BTreeSet<Node>) -> usize {
        self.operands(nodes).len() + self.leaving(nodes).len()
    }

    /// What the nodes take from outside, in the order of first use.
    pub(crate) fn operands(&self, nodes: &BTreeSet<Node>) -> Vec<Value> {
        let mut out: Vec<Value> = vec![];
        for &n in nodes {
            for &v in &self.graph.node(n).inputs {
                let inside = matches!(self.graph.value(v).def, Def::Result(p, _) if nodes.contains(&p));
                if !inside && !self.is_number(v) && !out.contains(&v) {
                    out.push(v);
                }
            }
        }
        out
    }

    /// What others take from the nodes.
    fn leaving(&self, nodes: &BTreeSet<Node>) -> Vec<Value> {
        let outside = |v: &Value| self.results.contains(v) || self.users.get(v).is_some_and(|u| u.iter().any(|n| !nodes.contains(n)));
        nodes.iter().flat_map(|&n| self.graph.node(n).outputs.iter().copied()).filter(outside).collect()
    }

    /// Constants of one element go into the body; larger ones stay operands.
    fn is_number(&self, v: Value) -> bool {
        self.graph.as_const(v).is_some_and(|t| t.len() == 1)
    }

    /// Whether a path from group `p` to group `c` leaves both: merging would make a cycle.
    fn would_cycle(&self, p: usize, c: usize) -> bool {
        let mut visited = BTreeSet::new();
        let mut stack: Vec<usize> = self.sources(c).into_iter().filter(|&g| g != p).collect();
        while let Some(g) = stack.pop() {
            if g == p {
                return true;
            }
            // What comes before the producer does not depend on it.
            if self.place[g] < self.place[p] || !visited.insert(g) {
                continue;
            }
            stack.extend(self.sources(g));
        }
        false
    }

    /// The groups that a group takes operands from.
    fn sources(&self, g: usize) -> BTreeSet<usize> {
        let nodes = &self.list[g].as_ref().expect("live").nodes;
        let producers = self.operands(nodes).into_iter().filter_map(|v| match self.graph.value(v).def {
            Def::Result(n, _) => Some(self.of[&n]),
            _ => None,
        });
        producers.collect()
    }

    /// Groups in an order in which operands come first; among those that are ready, the one whose
    /// first node is first.
    pub(crate) fn order(&self) -> Vec<usize> {
        let live: Vec<usize> = (0..self.list.len()).filter(|&g| self.list[g].is_some()).collect();
        let mut waiting: BTreeMap<usize, usize> = BTreeMap::new();
        let mut dependents: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &g in &live {
            let sources = self.sources(g);
            waiting.insert(g, sources.len());
            for s in sources {
                dependents.entry(s).or_default().push(g);
            }
        }
        let first = |g: usize| *self.list[g].as_ref().expect("live").nodes.first().expect("not empty");
        let mut ready: BTreeSet<(Node, usize)> = live.iter().filter(|g| waiting[g] == 0).map(|&g| (first(g), g)).collect();
        let mut order = vec![];
        while let Some((_, g)) = ready.pop_first() {
            order.push(g);
            for &d in dependents.get(&g).into_iter().flatten() {
                let left = waiting.get_mut(&d).expect("live");
                *left -= 1;
                if *left == 0 {
                    ready.insert((first(d), d));
                }
            }
        }
        order
    }

    fn emit(&self) -> Result<(Graph, u64, u64), InferError> {
        let mut out = self.graph.emptied();
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for &v in self.graph.inputs() {
            let d = self.graph.value(v);
            map.insert(v, out.add_input(d.name.as_deref().unwrap_or_default(), d.ty.clone()));
        }
        let (mut groups, mut grouped) = (0, 0);
        for g in self.order() {
            let group = self.list[g].as_ref().expect("live");
            let nodes: Vec<&NodeData> = group.nodes.iter().map(|&n| self.graph.node(n)).collect();
            if let [node] = nodes[..] {
                let operands: Vec<Value> = node.inputs.iter().map(|&v| self.import(&mut out, &mut map, v)).collect();
                let results = out.add_node(node.op.clone(), &operands, &node.loc)?;
                map.extend(node.outputs.iter().copied().zip(results));
                continue;
            }
            let operands = self.operands(&group.nodes);
            let leaving = self.leaving(&group.nodes);
            // A kernel that writes nothing is none.
            if leaving.is_empty() {
                continue;
            }
            groups += 1;
            grouped += nodes.len() as u64;
            let body = self.body(&nodes, &operands, &leaving)?;
            let loc = nodes.iter().fold(Loc::default(), |l, n| l.join(&n.loc));
            let operands: Vec<Value> = operands.into_iter().map(|v| self.import(&mut out, &mut map, v)).collect();
            let results = out.add_node(Fused { body: Body(Arc::new(body)) }, &operands, &loc)?;
            for (v, new) in leaving.into_iter().zip(results) {
                out.set_name(new, self.graph.value(v).name.clone());
                map.insert(v, new);
            }
        }
        for o in self.graph.outputs() {
            let v = self.import(&mut out, &mut map, o.value);
            out.add_output(&o.name, v);
        }
        Ok((out, groups, grouped))
    }

    fn import(&self, out: &mut Graph, map: &mut BTreeMap<Value, Value>, v: Value) -> Value {
        *map.entry(v).or_insert_with(|| {
            let d = self.graph.value(v);
            let Def::Const(t) = &d.def else { unreachable!("operands come first") };
            out.add_typed_const(t.clone(), d.ty.clone(), d.name.clone())
        })
    }

    fn body(&self, nodes: &[&NodeData], operands: &[Value], leaving: &[Value]) -> Result<Graph, InferError> {
        let mut body = Graph::with_symbols(self.graph.symbols.clone());
        let mut map: BTreeMap<Value, Value> = BTreeMap::new();
        for (i, &v) in operands.iter().enumerate() {
            map.insert(v, body.add_input(&format!("x{i}"), self.graph.ty(v).clone()));
        }
        for node in nodes {
            let inputs: Vec<Value> = node.inputs.iter().map(|&v| self.import(&mut body, &mut map, v)).collect();
            let results = body.add_node(node.op.clone(), &inputs, &node.loc)?;
            map.extend(node.outputs.iter().copied().zip(results));
        }
        for (i, v) in leaving.iter().enumerate() {
            body.add_output(&format!("y{i}"), map[v]);
        }
        Ok(body)
    }
}

fn classify(graph: &Graph, node: &NodeData) -> (Kind, Shape) {
    let y = &graph.ty(node.outputs[0]).shape;
    let other = (Kind::Other, y.clone());
    match &node.op {
        Op::Matmul(_) | Op::QuantizedMatmul(_) => (Kind::Contraction, y.clone()),
        // Its stored values are packed for the product that takes them.
        Op::QuantizeRows(_) => other,
        Op::QuantizeStatic(_) => (Kind::Codes, y.clone()),
        Op::Iota(_) => (Kind::Elementwise, y.clone()),
        Op::Dims(op) if op.values.len() == 1 => (Kind::Elementwise, y.clone()),
        Op::Gather(_) if node.inputs.iter().all(|&v| graph.ty(v).quant.is_none()) => (Kind::Elementwise, y.clone()),
        Op::Reduce(op) if op.keep => {
            let x = &graph.ty(node.inputs[0]).shape;
            (Kind::Row(op.axes.iter().copied().collect()), x.clone())
        }
        op if op.traits().elementwise => (Kind::Elementwise, y.clone()),
        op => {
            let operands: Vec<Type> = node.inputs.iter().map(|&v| graph.ty(v).clone()).collect();
            let Some(body) = lowered_nodes(graph, op, &operands) else { return other };
            let mut row: Option<(BTreeSet<usize>, Shape)> = None;
            for (_, n) in body.nodes() {
                match &n.op {
                    Op::Reduce(r) if r.keep => {
                        let this = (r.axes.iter().copied().collect(), body.ty(n.inputs[0]).shape.clone());
                        if row.as_ref().is_some_and(|r| *r != this) {
                            return other;
                        }
                        row = Some(this);
                    }
                    op if op.traits().elementwise => {}
                    _ => return other,
                }
            }
            row.map_or(other, |(axes, domain)| (Kind::Row(axes), domain))
        }
    }
}

/// The shape of what is reduced over axes of the domain.
pub(crate) fn reduced_shape(domain: &Shape, axes: &BTreeSet<usize>) -> Shape {
    (0..domain.rank()).map(|a| if axes.contains(&a) { tfc_ir::dim::Dim::from(1) } else { domain[a].clone() }).collect()
}
