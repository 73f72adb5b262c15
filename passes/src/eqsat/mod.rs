//! `eqsat`: equality saturation.
//!
//! The graph becomes an e-graph over the IR's own operators. Rules add what they prove equal, in any
//! order and without destroying what they match, so one spelling more of a pattern is one small rule,
//! not a combination of all rules. Then the cheapest program is extracted.
//!
//! All limits are counts. Reaching one is not an error: what was proved so far stands, and the
//! statistics say so.

mod analysis;
mod chains;
mod extract;
mod language;

pub(crate) use analysis::uniform;

use crate::absorb::Plan;
use crate::rebuild::index;
use crate::rules::{self, Root, Roots, Rule};
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use crate::terms::{Term, Terms};
use analysis::{Classes, Knowledge, View, add_typed};
use egg::{Applier, Id, Language, PatternAst, Rewrite, Runner, SearchMatches, Searcher, SimpleScheduler, StopReason, Subst, Symbol, Var};
use language::ENode;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tfc_ir::graph::{Def, Graph, Loc, Node, Value};
use tfc_ir::ops::Op;

/// Recovers normalisations, activations, rotary embeddings and attention from their decompositions,
/// moves constants into weights, and cancels movements of data.
pub const PASS: Pass = Pass { name: "eqsat", summary: "rewrite by equality saturation", run };

/// E-nodes per node of the graph. Rules add a handful of alternatives to some nodes; a graph that needs
/// more than this is growing without end.
const MAX_NODES_PER_NODE: usize = 16;

/// E-nodes that even the smallest graph may have: a recovered pattern takes some dozens.
const MIN_NODES: usize = 2_000;

/// Rounds of all rules. A pattern is recovered in as many rounds as it has layers of rules, of which
/// attention has the most: cast, reciprocal, reduction, softmax, reshapes, attention, heads, scale.
const MAX_ROUNDS: usize = 24;

fn run(graph: Graph, cx: &Context) -> PassResult {
    let (graph, chained) = chains::merged(graph)?;
    let mut stats = Stats::default();
    if chained > 0 {
        stats.count("chains merged", chained);
    }
    let new = Program::new(&graph).saturated(&rules::all().collect::<Vec<_>>(), cx, &mut stats)?;
    Ok((new, stats))
}

/// A rule as egg takes it: the searcher lists classes that have a root, the applier does the matching.
struct Adapter(&'static Rule);

fn rewrite(rule: &'static Rule) -> Rewrite<ENode, Knowledge> {
    Rewrite::new(rule.name, Adapter(rule), Adapter(rule)).expect("rules bind no variables")
}

impl Searcher<ENode, Knowledge> for Adapter {
    fn search_eclass_with_limit(&self, egraph: &Classes, eclass: Id, _: usize) -> Option<SearchMatches<'_, ENode>> {
        let is_root = |n: &ENode| {
            matches!((n, self.0.roots), (ENode::Apply { op, .. }, Roots::Elementwise) if op.traits().elementwise)
                || matches!((n.discriminant(), self.0.roots), (Some(name), Roots::Ops(names)) if names.contains(&name))
        };
        egraph[eclass].iter().any(is_root).then(|| SearchMatches { eclass, substs: vec![Subst::default()], ast: None })
    }

    fn search_with_limit(&self, egraph: &Classes, limit: usize) -> Vec<SearchMatches<'_, ENode>> {
        let classes: BTreeSet<Id> = match self.0.roots {
            Roots::Ops(names) => names.iter().filter_map(|&name| egraph.classes_for_op(&Some(name))).flatten().collect(),
            Roots::Elementwise => egraph.classes().map(|c| c.id).collect(),
        };
        classes.into_iter().filter_map(|id| self.search_eclass_with_limit(egraph, id, limit)).collect()
    }

    fn vars(&self) -> Vec<Var> {
        vec![]
    }
}

impl Applier<ENode, Knowledge> for Adapter {
    fn apply_one(&self, egraph: &mut Classes, eclass: Id, _: &Subst, _: Option<&PatternAst<ENode>>, name: Symbol) -> Vec<Id> {
        let forms = View(egraph).forms(eclass);
        let mut changed = vec![];
        for form in forms.iter().filter(|f| self.0.roots.contain(f)) {
            let term = egraph.find(eclass);
            let Some(found) = (self.0.apply)(&mut View(egraph), &Root { term, form }) else { continue };
            if egraph[found].data.ty == egraph[eclass].data.ty && egraph.union_trusted(eclass, found, name) {
                changed.push(eclass);
            }
        }
        changed
    }
}

/// A graph as an e-graph.
pub(crate) struct Program<'g> {
    graph: &'g Graph,
    egraph: Classes,
    /// The class of every value.
    values: Vec<Option<Id>>,
}

impl<'g> Program<'g> {
    /// The e-graph that knows what the graph says.
    pub(crate) fn new(graph: &'g Graph) -> Program<'g> {
        let mut program = Program { graph, egraph: Classes::new(Knowledge::new(graph)), values: vec![None; graph.values().len()] };
        for (v, d) in graph.values() {
            program.values[index(v)] = match &d.def {
                Def::Input(n) => Some(add_typed(&mut program.egraph, ENode::Input(*n), d.ty.clone())),
                Def::Const(t) => {
                    let number = program.egraph.analysis.constant(t.clone(), d.ty.clone(), d.name.clone());
                    Some(program.egraph.add(ENode::Constant(number)))
                }
                Def::Result(..) => None,
            };
        }
        for (n, _) in graph.nodes() {
            for (result, enode) in enodes(graph, n, &program.values).into_iter().enumerate() {
                let v = graph.node(n).outputs[result];
                program.values[index(v)] = Some(add_typed(&mut program.egraph, enode, graph.ty(v).clone()));
            }
        }
        program
    }

    /// The term of a value.
    pub(crate) fn term(&self, v: Value) -> Term {
        self.egraph.find(self.values[index(v)].expect("imported"))
    }

    /// What rules see of it.
    pub(crate) fn terms(&mut self) -> impl Terms + '_ {
        View(&mut self.egraph)
    }

    /// Plans a map of a term.
    pub(crate) fn plan(&mut self, t: Term, plan: Plan) {
        self.egraph[t].data.plan = Some(Arc::new(plan));
    }

    /// Applies rules until they find nothing new or reach a limit, and extracts the cheapest program.
    ///
    /// # Errors
    /// Only by a defect of a rule.
    pub(crate) fn saturated(self, rules: &[&'static Rule], cx: &Context, stats: &mut Stats) -> Result<Graph, PassError> {
        let Program { graph, egraph, values } = self;
        let nodes = graph.nodes().len();
        let rewrites: Vec<Rewrite<ENode, Knowledge>> = rules.iter().copied().map(rewrite).collect();
        let runner = Runner::<ENode, Knowledge, ()>::new(Knowledge::new(graph))
            .with_egraph(egraph)
            .with_scheduler(SimpleScheduler)
            .with_node_limit(MIN_NODES.max(nodes * MAX_NODES_PER_NODE))
            .with_iter_limit(MAX_ROUNDS)
            // Time decides nothing: the limits above bound the work.
            .with_time_limit(Duration::MAX);
        let runner = stats.timed("rules", || runner.run(&rewrites));
        let egraph = &runner.egraph;
        let outputs: Vec<Id> = graph.outputs().iter().map(|o| egraph.find(values[index(o.value)].expect("imported"))).collect();
        let new = stats.timed("extraction", || {
            let original = original_forms(egraph, graph, &values);
            let (choice, _) = extract::extract(egraph, &outputs, cx, &original);
            Export::new(graph, egraph, &values, &choice).run(&outputs)
        })?;
        for rule in rules {
            let name = Symbol::from(rule.name);
            let applied: usize = runner.iterations.iter().map(|i| i.applied.get(&name).copied().unwrap_or(0)).sum();
            if applied > 0 {
                stats.count(rule.name, applied as u64);
            }
        }
        stats.count("rounds", runner.iterations.len() as u64);
        stats.count("e-nodes", egraph.total_number_of_nodes() as u64);
        stats.count("classes", egraph.number_of_classes() as u64);
        let limit = match runner.stop_reason {
            Some(StopReason::NodeLimit(n)) => Some((n, "stopped at the limit of e-nodes", "e-nodes")),
            Some(StopReason::IterationLimit(n)) => Some((n, "stopped at the limit of rounds", "rounds")),
            _ => None,
        };
        if let Some((n, counter, what)) = limit {
            stats.count(counter, n as u64);
            stats
                .notes
                .push(format!("rewriting stopped after {n} {what}, its limit: the model is right, but may be slower than it could be"));
        }
        Ok(new)
    }
}

/// The e-nodes of a node's results.
fn enodes(graph: &Graph, n: Node, values: &[Option<Id>]) -> Vec<ENode> {
    let data = graph.node(n);
    let args: Vec<Id> = data.inputs.iter().map(|&v| values[index(v)].expect("operands come first")).collect();
    if data.outputs.len() == 1 && !matches!(data.op, Op::Fused(_)) {
        return vec![ENode::Apply { op: Arc::new(data.op.clone()), args }];
    }
    (0..data.outputs.len() as u32).map(|result| ENode::Opaque { node: n.as_u32(), result, args: args.clone() }).collect()
}

/// The e-node that the graph had in a class, the first if it had several.
fn original_forms(egraph: &Classes, graph: &Graph, values: &[Option<Id>]) -> HashMap<Id, ENode> {
    let mut forms = HashMap::new();
    for (v, d) in graph.values() {
        let Some(id) = values[index(v)].map(|id| egraph.find(id)) else { continue };
        let enode = match &d.def {
            Def::Input(n) => ENode::Input(*n),
            Def::Const(_) => ENode::Constant(egraph[id].data.constant.expect("a constant")),
            Def::Result(n, result) => enodes(graph, *n, values).swap_remove(*result as usize),
        };
        forms.entry(id).or_insert(enode);
    }
    forms
}

/// The chosen program on its way into a graph.
struct Export<'a> {
    old: &'a Graph,
    egraph: &'a Classes,
    choice: &'a extract::Choice,
    new: Graph,
    done: HashMap<Id, Value>,
    constants: HashMap<u32, Value>,
    /// The nodes of the old graph in each class.
    members: HashMap<Id, Vec<Node>>,
    /// For classes without such nodes, the class in whose place they are, if they are in one's.
    originals: HashMap<Id, Id>,
    values: &'a [Option<Id>],
}

impl<'a> Export<'a> {
    fn new(old: &'a Graph, egraph: &'a Classes, values: &'a [Option<Id>], choice: &'a extract::Choice) -> Export<'a> {
        let mut members: HashMap<Id, Vec<Node>> = HashMap::new();
        for (n, data) in old.nodes() {
            for &v in &data.outputs {
                members.entry(egraph.find(values[index(v)].expect("imported"))).or_default().push(n);
            }
        }
        // What a rule made in place of something is where that was.
        let mut originals = HashMap::new();
        for (made, original) in egraph.analysis.stand_ins.iter().map(|(a, b)| (egraph.find(*a), egraph.find(*b))) {
            if !members.contains_key(&made) {
                originals.entry(made).or_insert(original);
            }
        }
        Export { old, egraph, choice, new: old.emptied(), done: HashMap::new(), constants: HashMap::new(), members, originals, values }
    }

    fn run(mut self, outputs: &[Id]) -> Result<Graph, PassError> {
        for &v in self.old.inputs() {
            let d = self.old.value(v);
            let new = self.new.add_input(d.name.as_deref().unwrap_or_default(), d.ty.clone());
            let id = self.egraph.find(self.values[index(v)].expect("imported"));
            // A class with several inputs cannot arise: rules do not equate them.
            self.done.insert(id, new);
        }
        let order = self.order(outputs);
        let places = order.iter().filter_map(|id| self.originals.get(id));
        let emitted: BTreeSet<Id> = order.iter().chain(places).copied().collect();
        let locs = self.locs(&order, &emitted);
        for id in order {
            if !self.done.contains_key(&id) {
                self.emit(id, &locs[&id])?;
            }
        }
        for (o, id) in self.old.outputs().iter().zip(outputs) {
            self.new.add_output(&o.name, self.done[id]);
        }
        Ok(self.new)
    }

    /// The chosen classes, operands first.
    fn order(&self, outputs: &[Id]) -> Vec<Id> {
        let mut order = vec![];
        let mut seen = BTreeSet::new();
        let mut stack: Vec<(Id, usize)> = vec![];
        for &root in outputs {
            if seen.insert(root) {
                stack.push((root, 0));
            }
            while let Some((id, next)) = stack.last_mut() {
                match self.choice.of(*id).children().get(*next) {
                    Some(&child) => {
                        *next += 1;
                        let child = self.egraph.find(child);
                        if seen.insert(child) {
                            stack.push((child, 0));
                        }
                    }
                    None => {
                        order.push(*id);
                        stack.pop();
                    }
                }
            }
        }
        order
    }

    /// The location of every chosen class: of the old nodes in it, and of those behind them that are
    /// not in a chosen class. A class that rules made takes that of its first user.
    fn locs(&self, order: &[Id], emitted: &BTreeSet<Id>) -> HashMap<Id, Loc> {
        let mut locs: HashMap<Id, Loc> = HashMap::new();
        for &id in order.iter().rev() {
            let mut names = locs.remove(&id).unwrap_or_default();
            let mut seen = BTreeSet::new();
            let place = self.originals.get(&id).unwrap_or(&id);
            let mut stack: Vec<Node> = self.members.get(place).cloned().unwrap_or_default();
            if !stack.is_empty() {
                names = Loc::default();
            }
            while let Some(n) = stack.pop() {
                if !seen.insert(n) {
                    continue;
                }
                names = names.join(&self.old.node(n).loc);
                for &v in &self.old.node(n).inputs {
                    let class = self.egraph.find(self.values[index(v)].expect("imported"));
                    if class != *place && !emitted.contains(&class) {
                        stack.extend(self.members.get(&class).into_iter().flatten());
                    }
                }
            }
            for &child in self.choice.of(id).children() {
                let child = self.egraph.find(child);
                if !self.members.contains_key(&child) && !self.originals.contains_key(&child) {
                    locs.entry(child).or_insert_with(|| names.clone());
                }
            }
            locs.insert(id, names);
        }
        locs
    }

    fn emit(&mut self, id: Id, loc: &Loc) -> Result<(), PassError> {
        let enode = self.choice.of(id);
        let args: Vec<Value> = enode.children().iter().map(|&c| self.done[&self.egraph.find(c)]).collect();
        match enode {
            ENode::Input(_) => unreachable!("inputs are there from the start"),
            ENode::Constant(n) => {
                let c = &self.egraph.analysis.constants[*n as usize];
                let new = &mut self.new;
                let v = *self.constants.entry(*n).or_insert_with(|| new.add_typed_const(c.tensor.clone(), c.ty.clone(), c.name.clone()));
                self.done.insert(id, v);
            }
            ENode::Apply { op, .. } => {
                let v = self.new.add((**op).clone(), &args, loc).map_err(|e| PassError::new(e, loc))?;
                self.name(id, v);
                self.done.insert(id, v);
            }
            ENode::Opaque { node, .. } => {
                let data = self.old.node(Node::from_u32(*node));
                let results = self.new.add_node(data.op.clone(), &args, &data.loc).map_err(|e| PassError::new(e, &data.loc))?;
                for (&old, new) in data.outputs.iter().zip(results) {
                    let id = self.egraph.find(self.values[index(old)].expect("imported"));
                    self.name(id, new);
                    self.done.entry(id).or_insert(new);
                }
            }
        }
        Ok(())
    }

    /// Gives a new value the name of the first old one in its class.
    fn name(&mut self, id: Id, new: Value) {
        let members = self.members.get(&id).into_iter().flatten();
        let names =
            members.flat_map(|&n| &self.old.node(n).outputs).filter(|&&v| self.values[index(v)].map(|v| self.egraph.find(v)) == Some(id));
        let name = names.filter_map(|&v| self.old.value(v).name.clone()).next();
        self.new.set_name(new, name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfc_ir::text;
    use tfc_ir::types::Shape;

    /// `reshape(x) = reshape(reshape(x))` with an axis more in between, without end.
    static DETOUR: Rule = Rule {
        name: "detour",
        numerics: rules::Numerics::Exact,
        usage: rules::Use::Explore,
        roots: Roots::Ops(&["reshape"]),
        apply: |t, root| {
            let shape = t.shape(root.term).clone();
            let longer = Shape([vec![1.into()], shape.0.clone()].concat());
            let detour = t.reshape(root.arg(0), longer)?;
            t.reshape(detour, shape)
        },
    };

    #[test]
    fn a_limit_that_is_reached_is_noted() {
        let source = "tfc.ir 1 input %x: f32[6] %y = reshape %x {shape = [2, 3]} : f32[2, 3] output y = %y";
        let graph = text::parse(source, None).unwrap();
        for (rules, notes) in [(&[][..], 0), (&[&DETOUR][..], 1)] {
            let mut stats = Stats::default();
            let out = Program::new(&graph).saturated(rules, &Context::default(), &mut stats).unwrap();
            assert_eq!(out.to_string(), graph.to_string());
            assert_eq!((stats.get("stopped at the limit of rounds") > 0, stats.notes.len()), (notes > 0, notes), "{stats}");
        }
    }
}
