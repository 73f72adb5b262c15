//! Extraction: one e-node per class, so that what the outputs need costs least in total, shared
//! terms counted once.
//!
//! First every class gets the e-node whose term is cheapest when its own subterms are counted
//! once each. That does not see what the rest of the program computes anyway, so single choices
//! are then changed as long as the whole program gets cheaper. Ties go to the earlier e-node in egg's
//! order, which follows from the graph alone.

use super::analysis::Classes;
use super::language::ENode;
use crate::cost;
use crate::table::Context;
use egg::{Id, Language};
use std::collections::HashMap;
use tfc_ir::ops::Op;

/// How often all classes are gone through in either phase once every class that can be reached has been. Both
/// phases end by themselves when nothing improves, usually after three rounds; the limit bounds the time on
/// graphs built to be hostile.
const MAX_ROUNDS: usize = 12;

/// How much cheaper a choice must be to replace another: above the rounding of sums of costs.
const MIN_GAIN: f64 = 1e-3;

/// The chosen e-node of every class that has one.
pub(super) struct Choice {
    chosen: HashMap<Id, ENode>,
}

impl Choice {
    /// The e-node that represents a class; `id` is canonical.
    ///
    /// # Panics
    /// When nothing was chosen: every class that an output reaches has a choice.
    pub(super) fn of(&self, id: Id) -> &ENode {
        &self.chosen[&id]
    }
}

/// A set of classes by their dense numbers.
#[derive(Clone, PartialEq)]
struct Set(Vec<u64>);

impl Set {
    fn contains(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    fn insert(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn union(&mut self, other: &Set) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(word, &bits)| {
            // Each step takes the lowest bit away.
            let rests = std::iter::successors(Some(bits), |rest| Some(rest & rest.wrapping_sub(1)));
            rests.take_while(|&rest| rest != 0).map(move |rest| word * 64 + rest.trailing_zeros() as usize)
        })
    }
}

/// The e-graph with dense numbers, children resolved and costs known.
struct Dense {
    ids: Vec<Id>,
    /// Per class its e-nodes: children, own cost.
    nodes: Vec<Vec<(Vec<usize>, f64)>>,
}

/// A class's choice so far: which e-node, and all classes that it needs, itself included.
struct Best {
    node: usize,
    /// What all of them cost; 0 where there is no other e-node to compare with.
    cost: f64,
    needs: Set,
}

/// Chooses e-nodes for everything that `outputs` need. `original` says which e-node the graph had in a
/// class; it is the way out should choices be cyclic.
pub(super) fn extract(egraph: &Classes, outputs: &[Id], cx: &Context, original: &HashMap<Id, ENode>) -> (Choice, f64) {
    let dense = Dense::new(egraph, cx);
    let number: HashMap<Id, usize> = dense.ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
    let roots: Vec<usize> = outputs.iter().map(|&id| number[&egraph.find(id)]).collect();
    let mut choice = dense.cheapest_terms();
    let position = |i: usize, n: &ENode| {
        let canonical = |n: &ENode| n.clone().map_children(|c| egraph.find(c));
        egraph[dense.ids[i]].iter().position(|m| canonical(m) == canonical(n))
    };
    let mut first: Vec<Option<usize>> = vec![None; dense.ids.len()];
    for (&id, n) in original {
        let i = number[&egraph.find(id)];
        first[i] = position(i, n);
    }
    dense.break_cycles(&roots, &mut choice, &first);
    let cost = dense.improve(&roots, &mut choice);
    let chosen = |i: usize, node: usize| (dense.ids[i], egraph[dense.ids[i]].iter().nth(node).expect("an e-node of the class").clone());
    match cost {
        Some(cost) => {
            let chosen = choice.iter().enumerate().filter_map(|(i, c)| c.map(|node| chosen(i, node)));
            (Choice { chosen: chosen.collect() }, cost)
        }
        None => (Choice { chosen: original.iter().map(|(&id, n)| (egraph.find(id), n.clone())).collect() }, f64::INFINITY),
    }
}

impl Dense {
    fn new(egraph: &Classes, cx: &Context) -> Dense {
        let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
        ids.sort();
        let number: HashMap<Id, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        let class_nodes = |id: &Id| {
            let class = &egraph[*id];
            let node = |n: &ENode| {
                let children: Vec<usize> = n.children().iter().map(|&c| number[&egraph.find(c)]).collect();
                (children, own_cost(egraph, *id, n, cx))
            };
            class.iter().map(node).collect()
        };
        let nodes = ids.iter().map(class_nodes).collect();
        Dense { ids, nodes }
    }

    /// Per class the e-node whose term is cheapest, its subterms counted once.
    fn cheapest_terms(&self) -> Vec<Option<usize>> {
        let n = self.ids.len();
        let mut best: Vec<Option<Best>> = Vec::new();
        best.resize_with(n, || None);
        // Per class what the e-node costs that is chosen so far.
        let mut owns = vec![0.0; n];
        let mut rounds = 0;
        while rounds < MAX_ROUNDS {
            let (mut changed, mut reached) = (false, false);
            for i in 0..n {
                for (k, (children, own)) in self.nodes[i].iter().enumerate() {
                    let Some(needs) = needs(&best, i, children, n) else { continue };
                    let of = |j: usize| if j == i { *own } else { owns[j] };
                    let cost = if self.nodes[i].len() > 1 { needs.iter().map(of).sum() } else { 0.0 };
                    let better = match &best[i] {
                        None => true,
                        // The same choice is refreshed when its subterms changed.
                        Some(b) if b.node == k => b.needs != needs || b.cost != cost,
                        Some(b) => cost + MIN_GAIN < b.cost,
                    };
                    if better {
                        reached |= best[i].is_none();
                        best[i] = Some(Best { node: k, cost, needs });
                        owns[i] = *own;
                        changed = true;
                    }
                }
            }
            if !changed {
                break;
            }
            // The terms of a class may come after it, layer by layer.
            rounds = if reached { 0 } else { rounds + 1 };
        }
        best.into_iter().map(|b| b.map(|b| b.node)).collect()
    }

    /// Goes back to the e-node that the graph had in a class of every cycle. The cheapest terms of two classes
    /// may need each other where a rule moves an operator to and fro.
    fn break_cycles(&self, roots: &[usize], choice: &mut [Option<usize>], original: &[Option<usize>]) {
        while let Some(cycle) = self.cycle(roots, choice) {
            let changed = cycle.into_iter().filter(|&i| original[i].is_some() && choice[i] != original[i]).min();
            let Some(i) = changed else { return };
            choice[i] = original[i];
        }
    }

    /// The classes of a cycle among what the roots need; `None` if there is none.
    fn cycle(&self, roots: &[usize], choice: &[Option<usize>]) -> Option<Vec<usize>> {
        let (mut open, mut done) = (vec![false; self.ids.len()], vec![false; self.ids.len()]);
        let mut stack: Vec<(usize, usize)> = vec![];
        for &root in roots {
            if !done[root] {
                stack.push((root, 0));
                open[root] = true;
            }
            while let Some((i, next)) = stack.last_mut() {
                match self.nodes[*i][choice[*i]?].0.get(*next) {
                    Some(&child) => {
                        *next += 1;
                        if open[child] {
                            let begin = stack.iter().position(|(j, _)| *j == child).expect("open classes are on the stack");
                            return Some(stack[begin..].iter().map(|(j, _)| *j).collect());
                        }
                        if !done[child] {
                            open[child] = true;
                            stack.push((child, 0));
                        }
                    }
                    None => {
                        (open[*i], done[*i]) = (false, true);
                        stack.pop();
                    }
                }
            }
        }
        None
    }

    /// Changes single choices while the whole program gets cheaper; its cost, or `None` if the choices
    /// are cyclic from the start.
    fn improve(&self, roots: &[usize], choice: &mut [Option<usize>]) -> Option<f64> {
        let (mut total, mut order) = self.program(roots, choice)?;
        for _ in 0..MAX_ROUNDS {
            let mut changed = false;
            for i in order.clone() {
                for k in 0..self.nodes[i].len() {
                    let current = choice[i];
                    if current == Some(k) || self.nodes[i].len() == 1 {
                        continue;
                    }
                    choice[i] = Some(k);
                    match self.program(roots, choice) {
                        Some((cost, _)) if cost + MIN_GAIN < total => {
                            total = cost;
                            changed = true;
                        }
                        _ => choice[i] = current,
                    }
                }
            }
            if !changed {
                break;
            }
            order = self.program(roots, choice)?.1;
        }
        Some(total)
    }

    /// Cost and classes of the program that the choices make, operands first; `None` if it is cyclic or
    /// a class has no choice.
    fn program(&self, roots: &[usize], choice: &[Option<usize>]) -> Option<(f64, Vec<usize>)> {
        const OPEN: u8 = 1;
        const DONE: u8 = 2;
        let mut state = vec![0u8; self.ids.len()];
        let (mut total, mut order) = (0.0, vec![]);
        let mut stack: Vec<(usize, usize)> = vec![];
        for &root in roots {
            if state[root] == 0 {
                stack.push((root, 0));
                state[root] = OPEN;
            }
            while let Some((i, next)) = stack.last_mut() {
                let (children, own) = &self.nodes[*i][choice[*i]?];
                match children.get(*next) {
                    Some(&child) => {
                        *next += 1;
                        match state[child] {
                            0 => {
                                state[child] = OPEN;
                                stack.push((child, 0));
                            }
                            OPEN => return None,
                            _ => {}
                        }
                    }
                    None => {
                        state[*i] = DONE;
                        total += own;
                        order.push(*i);
                        stack.pop();
                    }
                }
            }
        }
        Some((total, order))
    }
}

/// All classes that an e-node of class `i` needs; `None` if a child has no choice yet, or needs `i` itself.
fn needs(best: &[Option<Best>], i: usize, children: &[usize], n: usize) -> Option<Set> {
    let mut needs = Set(vec![0; n.div_ceil(64)]);
    for &c in children {
        let child = &best[c].as_ref()?.needs;
        if child.contains(i) {
            return None;
        }
        needs.union(child);
    }
    needs.insert(i);
    Some(needs)
}

/// What an e-node costs without its operands.
fn own_cost(egraph: &Classes, class: Id, enode: &ENode, cx: &Context) -> f64 {
    let result = &*egraph[class].data.ty;
    match enode {
        ENode::Input(_) | ENode::Constant(_) => 0.0,
        ENode::Opaque { .. } => cost::LAUNCH,
        ENode::Apply { op, args } => {
            let types: Vec<_> = args.iter().map(|&a| &*egraph[a].data.ty).collect();
            let foldable = egraph[class].data.foldable;
            if foldable {
                return cost::folded(&types, result, cx);
            }
            if gives_norm_back(egraph, class, op) {
                return cost::work(op, &types, &[result], cx);
            }
            let cost = cost::node(op, &types, &[result], cx);
            cost + unmapped(egraph, op, args, cost)
        }
    }
}

/// Whether a sum or product gives back a norm that a plan maps: the kernel that makes the mapped norm makes it as well, without a
/// launch or reading anything.
fn gives_norm_back(egraph: &Classes, class: Id, op: &Op) -> bool {
    let is_norm = |n: &ENode| matches!(n, ENode::Apply { op, .. } if matches!(**op, Op::LayerNorm(_) | Op::RmsNorm(_)));
    let class = &egraph[class];
    matches!(op, Op::Add(_) | Op::Mul(_)) && class.data.plan.is_some() && class.iter().any(is_norm)
}

/// What a product or a slice loses, which costs `cost` itself, if its operand is to be mapped and is not.
fn unmapped(egraph: &Classes, op: &Op, args: &[Id], cost: f64) -> f64 {
    let plan = |i: usize| egraph[args[i]].data.plan.as_ref();
    match op {
        Op::Slice(_) => plan(0).filter(|plan| plan.axis.is_none()).map_or(0.0, |plan| plan.worth),
        Op::Matmul(_) => {
            let lost = |side: usize| {
                let (x, w) = (&egraph[args[side]].data, &egraph[args[1 - side]].data);
                let plan = plan(side).filter(|plan| plan.axis == Some(x.ty.rank() - 1 - side) && w.foldable && !x.foldable);
                plan.map_or(0.0, |plan| plan.worth * cost)
            };
            lost(0) + lost(1)
        }
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::analysis::add_typed;
    use super::super::{Program, original_forms};
    use super::*;
    use crate::rebuild::index;
    use std::sync::Arc;
    use tfc_ir::ops::Reshape;
    use tfc_ir::text;
    use tfc_ir::types::Type;

    /// Two leaves, and a class that needs the dear one or, at more cost of its own, the cheap one.
    #[test]
    fn terms_cost_what_they_are_made_of() {
        let leaf = |cost: f64| vec![(vec![], cost)];
        let nodes = vec![vec![(vec![1], 1.0), (vec![2], 2.0)], leaf(10.0), leaf(1.0)];
        let dense = Dense { ids: (0..3usize).map(Id::from).collect(), nodes };
        assert_eq!(dense.cheapest_terms(), [Some(1), Some(0), Some(0)]);
    }

    /// Squares in three shapes, each of which is also a reshape of another. In one round, the first takes the
    /// second before that takes the third, which still sees what the first needed before, and takes it.
    #[test]
    fn choices_that_need_each_other_are_taken_back() {
        let source = "tfc.ir 1 input %x: f32[2, 3] const %two: f32[] = splat 2.0
            %x32 = reshape %x {shape = [3, 2]} : f32[3, 2]
            %0 = pow %x32, %two : f32[3, 2] %a = relu %0 : f32[3, 2]
            %b = pow %x, %two : f32[2, 3]
            %x6 = reshape %x {shape = [6]} : f32[6] %c = mul %x6, %x6 : f32[6]
            output a = %a output b = %b output c = %c";
        let graph = text::parse(source, None).unwrap();
        let Program { mut egraph, values, .. } = Program::new(&graph);
        egraph.rebuild();
        let outputs: Vec<Id> = graph.outputs().iter().map(|o| values[index(o.value)].unwrap()).collect();
        let original = original_forms(&egraph, &graph, &values);
        let [a, b, c] = outputs[..] else { unreachable!("three outputs") };
        for (to, from) in [(a, b), (b, c), (c, a)] {
            let ty = Type::clone(&egraph[to].data.ty);
            let op = Arc::new(Reshape { shape: ty.shape.clone() }.into());
            let view = add_typed(&mut egraph, ENode::Apply { op, args: vec![from] }, ty);
            egraph.union_trusted(to, view, "a reshape");
        }
        egraph.rebuild();
        let cx = Context::default();
        let dense = Dense::new(&egraph, &cx);
        let root = dense.ids.iter().position(|&id| id == egraph.find(c)).unwrap();
        assert!(dense.cycle(&[root], &dense.cheapest_terms()).is_some(), "nothing is to be taken back");
        let (choice, cost) = extract(&egraph, &[c], &cx, &original);
        let kinds = |id: Id| choice.of(egraph.find(id)).discriminant();
        assert!(cost.is_finite());
        assert_eq!(kinds(c), Some("mul"));
    }
}
