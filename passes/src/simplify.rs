//! `simplify`: exact rules applied to the graph, one node after the other.

use crate::eqsat::uniform;
use crate::rules::{self, Numerics, Root, Rule, Use};
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use crate::terms::{Form, Term, Terms};
use std::sync::Arc;
use tfc_ir::dim::{Dim, SymbolTable};
use tfc_ir::graph::{Graph, Loc, Value};
use tfc_ir::ops::{InferCx, Op};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Type;

/// Applies the exact rules whose right side is always better, until none applies.
pub const PASS: Pass = Pass { name: "simplify", summary: "local exact rules, to a fixed point", run };

/// Rounds over the whole graph. One is enough for rules that look at operands; a few more serve rules
/// whose result is the operand of a node that was visited before. Each round but the last makes the
/// graph smaller or simpler.
const MAX_ROUNDS: usize = 8;

/// How often one node is rewritten within a round: rules shrink what they match, so chains are short.
const MAX_STEPS: usize = 32;

fn run(mut graph: Graph, cx: &Context) -> PassResult {
    let mut stats = Stats::default();
    for round in 0..MAX_ROUNDS {
        let before = stats.clone();
        graph = once(&graph, &mut stats)?;
        graph = (crate::dce::PASS.run)(graph, cx)?.0;
        if stats.iter().eq(before.iter()) {
            break;
        }
        if round + 1 == MAX_ROUNDS {
            stats.count("stopped at the limit of rounds", MAX_ROUNDS as u64);
        }
    }
    Ok((graph, stats))
}

fn once(old: &Graph, stats: &mut Stats) -> Result<Graph, PassError> {
    let rules: Vec<&Rule> = rules::all().filter(|r| r.numerics == Numerics::Exact && r.usage == Use::Always).collect();
    let mut growing = Growing::new(old);
    let mut map: Vec<Option<Term>> = vec![None; old.values().len()];
    for (v, d) in old.values() {
        if let tfc_ir::graph::Def::Const(t) = &d.def {
            let value = growing.graph.add_typed_const(t.clone(), d.ty.clone(), d.name.clone());
            map[v.as_u32() as usize] = Some(growing.term(value));
        }
    }
    for &v in old.inputs() {
        let d = old.value(v);
        let value = growing.graph.add_input(d.name.as_deref().unwrap_or_default(), d.ty.clone());
        map[v.as_u32() as usize] = Some(growing.term(value));
    }
    for (_, data) in old.nodes() {
        let args: Vec<Value> = data.inputs.iter().map(|v| value(map[v.as_u32() as usize].expect("operands come first"))).collect();
        growing.loc = data.loc.clone();
        let results = growing.graph.add_node(data.op.clone(), &args, &data.loc).map_err(|e| PassError::new(e, &data.loc))?;
        for (&v, &r) in data.outputs.iter().zip(&results) {
            let mut term = growing.term(r);
            if results.len() == 1 {
                term = growing.simplified(term, &rules, stats);
            }
            map[v.as_u32() as usize] = Some(term);
            let new = value(term);
            if growing.graph.value(new).name.is_none() {
                growing.graph.set_name(new, old.value(v).name.clone());
            }
        }
    }
    for o in old.outputs() {
        let v = value(map[o.value.as_u32() as usize].expect("outputs are defined"));
        growing.graph.add_output(&o.name, v);
    }
    Ok(growing.graph)
}

fn value(t: Term) -> Value {
    Value::from_u32(usize::from(t) as u32)
}

/// The graph under construction, as rules see it. Nodes of abandoned matches stay behind, unused.
struct Growing {
    graph: Graph,
    /// The checks of the graph from the start: rules add none.
    checks: usize,
    loc: Loc,
    forms: Vec<Option<Form>>,
    known: Vec<bool>,
    splats: Vec<Option<Scalar>>,
}

impl Growing {
    fn new(old: &Graph) -> Growing {
        let graph = old.emptied();
        Growing { checks: graph.checks.len(), graph, loc: Loc::default(), forms: vec![], known: vec![], splats: vec![] }
    }

    /// Registers a value that was just added.
    fn term(&mut self, v: Value) -> Term {
        while self.forms.len() <= v.as_u32() as usize {
            let v = Value::from_u32(self.forms.len() as u32);
            let form = self.graph.producer(v).filter(|d| d.outputs.len() == 1);
            let form = form.map(|d| Form { op: Arc::new(d.op.clone()), args: d.inputs.iter().map(|&v| term(v)).collect() });
            let splat = match &form {
                Some(f) if matches!(&*f.op, Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_)) => self.splats[usize::from(f.args[0])],
                _ => self.graph.as_const(v).filter(|_| self.graph.ty(v).quant.is_none()).and_then(uniform),
            };
            let known = match &form {
                Some(f) => !f.args.is_empty() && f.args.iter().all(|&a| self.known[usize::from(a)]),
                None => self.graph.as_const(v).is_some(),
            };
            self.known.push(known);
            self.forms.push(form);
            self.splats.push(splat);
        }
        term(v)
    }

    /// The end of a chain of rewrites.
    fn simplified(&mut self, mut t: Term, rules: &[&Rule], stats: &mut Stats) -> Term {
        for _ in 0..MAX_STEPS {
            let Some(next) = self.step(t, rules, stats) else { break };
            t = next;
        }
        t
    }

    fn step(&mut self, t: Term, rules: &[&Rule], stats: &mut Stats) -> Option<Term> {
        let form = self.forms[usize::from(t)].clone()?;
        let own = self.loc.clone();
        for rule in rules.iter().filter(|r| r.roots.contain(&form)) {
            self.loc = own.join(&self.operand_locs(&form));
            let found = (rule.apply)(self, &Root { term: t, form: &form });
            self.loc = own.clone();
            if let Some(found) = found.filter(|&f| f != t && self.ty(f) == self.ty(t)) {
                stats.count(rule.name, 1);
                return Some(found);
            }
        }
        None
    }

    /// Where the operands came from that a rule may skip: those that only this node takes are not known
    /// here, so all that are nodes count.
    fn operand_locs(&self, form: &Form) -> Loc {
        let views = form.args.iter().filter_map(|&a| self.graph.producer(value(a)));
        views.filter(|d| d.op.traits().moved > 0).fold(Loc::default(), |loc, d| loc.join(&d.loc))
    }
}

fn term(v: Value) -> Term {
    Term::from(v.as_u32() as usize)
}

impl Terms for Growing {
    fn find(&self, t: Term) -> Term {
        t
    }

    fn ty(&self, t: Term) -> &Type {
        self.graph.ty(value(t))
    }

    fn forms(&self, t: Term) -> Vec<Form> {
        self.forms[usize::from(t)].iter().cloned().collect()
    }

    fn constant(&self, t: Term) -> Option<&Tensor> {
        self.graph.as_const(value(t)).filter(|_| self.ty(t).quant.is_none())
    }

    fn is_known(&self, t: Term) -> bool {
        self.known[usize::from(t)]
    }

    fn splat(&self, t: Term) -> Option<Scalar> {
        self.splats[usize::from(t)]
    }

    fn symbols(&self) -> &SymbolTable {
        &self.graph.symbols
    }

    fn add(&mut self, op: Op, args: &[Term]) -> Option<Term> {
        let operands: Vec<Type> = args.iter().map(|&a| self.ty(a).clone()).collect();
        let mut cx = InferCx::new(&self.graph.symbols);
        let types = op.infer(&mut cx, &operands).ok()?;
        let known = &self.graph.checks[..self.checks];
        let made = |(l, r): &(Dim, Dim)| known.iter().any(|c| (&c.left, &c.right) == (l, r) || (&c.left, &c.right) == (r, l));
        if types.len() != 1 || !cx.into_checks().iter().all(made) {
            return None;
        }
        let inputs: Vec<Value> = args.iter().map(|&a| value(a)).collect();
        let loc = self.loc.clone();
        let v = self.graph.add(op, &inputs, &loc).ok()?;
        Some(self.term(v))
    }

    fn add_constant(&mut self, tensor: Tensor) -> Term {
        let v = self.graph.add_const(tensor, None);
        self.term(v)
    }
}
