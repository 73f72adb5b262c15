//! `sink-reshapes`: moves reshapes of what a kernel computes behind the elementwise operators that
//! follow: `f(reshape(p)) = reshape(f(p))`.
//!
//! A convolution ends in the reshape of a product, and fusion never looks through a view: activation and
//! residual would be a kernel of their own. The pass asks [`crate::fuse`] which groups it is going to
//! form. An *elementwise* group that takes the reshape of a result of another group moves into the
//! shape of that result, as a whole, if then the two become one group. The other groups stay as they
//! are, so every move saves one kernel.
//!
//! The other operands of the group must have a counterpart in the new shape: one that broadcasts keeps
//! or drops whole runs of axes, and one that is itself a strided view (a transpose, a slice) gains or
//! loses axes of size 1 only, so that its reshape is a view as well and nothing is copied.

use crate::fuse::{Group, Groups, Kind, reduced_shape};
use crate::rebuild::Rebuild;
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use std::collections::{BTreeMap, BTreeSet};
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Def, Graph, Loc, Node, Value};
use tfc_ir::ops::{Op, Reshape};
use tfc_ir::types::Shape;

/// Moves reshapes of what a kernel computes behind elementwise operators. What it leaves is for `fuse`.
pub const PASS: Pass =
    Pass { name: "sink-reshapes", summary: "move reshapes behind elementwise operators, where that saves a kernel", run };

fn run(graph: Graph, cx: &Context) -> PassResult {
    let mut stats = Stats::default();
    let moved = plan(&graph, &mut stats);
    if moved.is_empty() {
        return Ok((graph, stats));
    }
    let graph = rebuilt(&graph, &moved)?;
    Ok(((crate::dce::PASS.run)(graph, cx)?.0, stats))
}

/// The nodes that move, each with the shape that it moves into.
fn plan(graph: &Graph, stats: &mut Stats) -> BTreeMap<Node, Shape> {
    let mut groups = Groups::formed(graph);
    let mut moved = BTreeMap::new();
    for g in groups.order() {
        let Some(group) = groups.get(g).filter(|group| group.kind == Kind::Elementwise) else { continue };
        let nodes: Vec<Node> = group.nodes.iter().copied().collect();
        let Some(target) = sources(&groups, group, &moved).into_iter().find(|s| joins(&mut groups, g, s, &moved)).map(|s| s.shape) else {
            continue;
        };
        stats.count("groups moved", 1);
        stats.count("nodes moved", nodes.len() as u64);
        moved.extend(nodes.into_iter().map(|n| (n, target.clone())));
    }
    moved
}

/// A result of a kernel that an elementwise group takes through reshapes.
struct Source {
    /// The node that computes it.
    node: Node,
    /// The reshapes between it and the group.
    views: BTreeSet<Node>,
    /// Its shape.
    shape: Shape,
}

/// The results that the group takes through reshapes and whose kernels could go on with it.
fn sources(groups: &Groups, group: &Group, moved: &BTreeMap<Node, Shape>) -> Vec<Source> {
    let graph = groups.graph;
    let mut out: Vec<Source> = vec![];
    for v in groups.operands(&group.nodes) {
        if graph.ty(v).shape != group.domain {
            continue;
        }
        let (root, views) = behind_reshapes(graph, v);
        let Def::Result(node, _) = graph.value(root).def else { continue };
        let shape = moved.get(&node).unwrap_or(&graph.ty(root).shape);
        let producer = groups.group(node);
        let open = match &producer.kind {
            Kind::Contraction => *shape == producer.domain,
            // What is reduced goes on with operators on what it reduced, one by one.
            Kind::Row(axes) => {
                *shape == producer.domain || (*shape == reduced_shape(&producer.domain, axes) && all_follow(graph, group, v))
            }
            Kind::Elementwise => *shape == producer.domain,
            Kind::Codes | Kind::Other => false,
        };
        if open && *shape != group.domain {
            out.push(Source { node, views, shape: shape.clone() });
        }
    }
    // Products first: what follows them in registers costs no pass over memory.
    out.sort_by_key(|s| groups.group(s.node).kind == Kind::Elementwise);
    out
}

/// What `v` is a reshape of, and the reshapes between.
fn behind_reshapes(graph: &Graph, mut v: Value) -> (Value, BTreeSet<Node>) {
    let mut views = BTreeSet::new();
    while let Def::Result(n, _) = graph.value(v).def
        && matches!(graph.node(n).op, Op::Reshape(_))
    {
        views.insert(n);
        v = graph.node(n).inputs[0];
    }
    (v, views)
}

/// Whether every node of the group depends on `v` through the group.
fn all_follow(graph: &Graph, group: &Group, v: Value) -> bool {
    let mut following = BTreeSet::from([v]);
    group.nodes.iter().all(|&n| {
        let node = graph.node(n);
        following.extend(node.outputs.iter().copied());
        node.inputs.iter().any(|i| *i == v || (following.contains(i) && !node.outputs.contains(i)))
    })
}

/// Merges group `g` with that of the source, if it can move into its shape and `fuse` will do the same.
fn joins(groups: &mut Groups, g: usize, source: &Source, moved: &BTreeMap<Node, Shape>) -> bool {
    let Some(group) = groups.get(g) else { return false };
    let graph = groups.graph;
    let movable = |&n: &Node| {
        let node = graph.node(n);
        node.op.traits().elementwise
            && node.inputs.iter().chain(&node.outputs).all(|&v| graph.ty(v).quant.is_none())
            && node.inputs.iter().filter(|&&v| !groups.is_in(v, group)).all(|&v| {
                let from = &graph.ty(v).shape;
                let Some(to) = counterpart(from, &group.domain, &source.shape) else { return false };
                let (root, _) = behind_reshapes(graph, v);
                let is_moved = matches!(graph.value(root).def, Def::Result(n, _) if moved.contains_key(&n));
                is_moved || !is_strided(graph, root) || long_axes(from).eq(long_axes(&to))
            })
    };
    if !group.nodes.iter().all(movable) {
        return false;
    }
    groups.merge_through(source.node, &source.views, g)
}

/// Whether a value is a view whose elements are apart or in another order in memory.
fn is_strided(graph: &Graph, v: Value) -> bool {
    graph.producer(v).is_some_and(|d| matches!(d.op, Op::Transpose(_) | Op::Slice(_) | Op::Expand(_) | Op::Window(_)))
}

fn long_axes(shape: &Shape) -> impl Iterator<Item = &Dim> {
    shape.0.iter().filter(|d| !d.is(1))
}

/// The shape that broadcasts to `target` as `shape` does to `domain`, where elements of `domain` and `target` are the
/// same in row-major order; none if there is no such shape.
fn counterpart(shape: &Shape, domain: &Shape, target: &Shape) -> Option<Shape> {
    let missing = domain.rank().checked_sub(shape.rank())?;
    let size = |axis: usize| if axis < missing { Dim::from(1) } else { shape[axis - missing].clone() };
    let mut sizes = vec![Dim::from(1); target.rank()];
    for (from, to) in runs(domain, target)? {
        if from.iter().all(|&a| size(a) == domain[a]) {
            to.iter().for_each(|&a| sizes[a] = target[a].clone());
        } else if !from.iter().all(|&a| size(a).is(1)) {
            return None;
        }
    }
    // A number stays one wherever it broadcasts.
    Some(if sizes != target.0 && sizes.iter().all(|d| d.is(1)) { Shape::default() } else { Shape(sizes) })
}

/// The shortest runs of axes of two shapes that hold the same numbers of elements, without axes of size 1;
/// none if the shapes do not provably have as many elements, or none at all.
fn runs(a: &Shape, b: &Shape) -> Option<Vec<(Vec<usize>, Vec<usize>)>> {
    let axes = |s: &Shape| (0..s.rank()).filter(|&i| !s[i].is(1)).collect::<Vec<_>>();
    let (axes_a, axes_b) = (axes(a), axes(b));
    let (mut rest_a, mut rest_b) = (&axes_a[..], &axes_b[..]);
    if a.0.iter().chain(&b.0).any(|d| d.is(0)) {
        return None;
    }
    let product = |s: &Shape, axes: &[usize]| -> Dim { axes.iter().map(|&i| s[i].clone()).product() };
    let mut out = vec![];
    while !rest_a.is_empty() || !rest_b.is_empty() {
        let lengths = (1..=rest_a.len()).flat_map(|i| (1..=rest_b.len()).map(move |j| (i, j)));
        let (i, j) = { lengths }.find(|&(i, j)| product(a, &rest_a[..i]) == product(b, &rest_b[..j]))?;
        out.push((rest_a[..i].to_vec(), rest_b[..j].to_vec()));
        (rest_a, rest_b) = (&rest_a[i..], &rest_b[j..]);
    }
    Some(out)
}

/// The graph with nodes moved into other shapes, and reshapes of their results for those who take them.
fn rebuilt(graph: &Graph, moved: &BTreeMap<Node, Shape>) -> Result<Graph, PassError> {
    let mut re = Rebuild::new(graph);
    for (n, data) in graph.nodes() {
        let Some(target) = moved.get(&n) else {
            match &data.op {
                Op::Reshape(op) => {
                    let x = re.get(data.inputs[0]);
                    let y = reshaped(&mut re, x, &op.shape, &data.loc)?;
                    re.set(data.outputs[0], y);
                }
                _ => re.copy(n)?,
            }
            continue;
        };
        let domain = &graph.ty(data.outputs[0]).shape;
        let mut inputs = vec![];
        for &v in &data.inputs {
            let shape = counterpart(&graph.ty(v).shape, domain, target).expect("operands of nodes that move have one");
            let x = re.get(v);
            inputs.push(reshaped(&mut re, x, &shape, &data.loc)?);
        }
        let results = re.emit(data.op.clone(), &inputs, &data.loc)?;
        for (&v, &r) in data.outputs.iter().zip(&results) {
            let y = reshaped(&mut re, r, domain, &data.loc)?;
            re.set(v, y);
        }
    }
    Ok(re.finish())
}

/// `x` in another shape, by at most one reshape of what `x` is made from; numbers stay constants.
fn reshaped(re: &mut Rebuild, x: Value, shape: &Shape, loc: &Loc) -> Result<Value, PassError> {
    let elements = shape.elements();
    let mut root = x;
    while re.new.ty(root).shape != *shape
        && let Some(d) = re.new.producer(root)
        && matches!(d.op, Op::Reshape(_))
        && re.new.ty(d.inputs[0]).shape.elements() == elements
    {
        root = d.inputs[0];
    }
    if re.new.ty(root).shape == *shape {
        return Ok(root);
    }
    if shape.rank() == 0
        && let Some(number) = re.new.as_const(root).and_then(|t| t.reshaped(&[]).ok())
    {
        return Ok(re.new.add_const(number, None));
    }
    Ok(re.emit(Reshape { shape: shape.clone() }.into(), &[root], loc)?.remove(0))
}
