//! Facts per class, and how rules see the e-graph.

use super::language::ENode;
use crate::absorb::Plan;
use crate::terms::{Form, Term, Terms};
use egg::{Analysis, DidMerge, EGraph, Id};
use std::collections::HashMap;
use std::sync::Arc;
use tfc_ir::dim::{Dim, SymbolTable};
use tfc_ir::graph::{DimCheck, Graph};
use tfc_ir::ops::{InferCx, Op};
use tfc_ir::tensor::{Scalar, Tensor, round_to};
use tfc_ir::types::Type;

/// What is known of all e-nodes of a class.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// The type. Rules only join classes of one type.
    pub(super) ty: Arc<Type>,
    /// The number of the constant that it equals.
    pub(super) constant: Option<u32>,
    /// What all elements equal.
    pub(super) splat: Option<Scalar>,
    /// Whether it follows from constants: it will be folded.
    pub(super) foldable: bool,
    /// The map that it is to get.
    pub(super) plan: Option<Arc<Plan>>,
}

/// A constant of the graph, or one that a rule made.
pub(super) struct Constant {
    pub(super) tensor: Tensor,
    pub(super) ty: Type,
    pub(super) name: Option<Arc<str>>,
}

/// What the e-graph's analysis knows besides the classes.
pub(super) struct Knowledge {
    symbols: SymbolTable,
    checks: Vec<DimCheck>,
    /// The constants; equal ones are shared.
    pub(super) constants: Vec<Constant>,
    by_content: HashMap<(u128, Type), u32>,
    /// Terms that rules made, and those whose place in the model they have.
    pub(super) stand_ins: Vec<(Id, Id)>,
    /// The type of the e-node that is being added.
    next: Option<Type>,
}

impl Knowledge {
    /// The knowledge to start with for a graph.
    pub(super) fn new(graph: &Graph) -> Knowledge {
        Knowledge {
            symbols: graph.symbols.clone(),
            checks: graph.checks.clone(),
            constants: vec![],
            by_content: HashMap::new(),
            stand_ins: vec![],
            next: None,
        }
    }

    /// The number of a constant.
    pub(super) fn constant(&mut self, tensor: Tensor, ty: Type, name: Option<Arc<str>>) -> u32 {
        let number = self.constants.len() as u32;
        let known = *self.by_content.entry((tensor.content_hash(), ty.clone())).or_insert(number);
        if known == number {
            self.constants.push(Constant { tensor, ty, name });
        }
        known
    }

    /// The type of a result, if it needs no run-time check that the graph does not make.
    fn infer(&self, op: &Op, args: &[Type]) -> Option<Type> {
        let mut cx = InferCx::new(&self.symbols);
        let types = op.infer(&mut cx, args).ok()?;
        let made = |(l, r): &(Dim, Dim)| self.checks.iter().any(|c| (&c.left, &c.right) == (l, r) || (&c.left, &c.right) == (r, l));
        let [ty] = <[Type; 1]>::try_from(types).ok()?;
        cx.into_checks().iter().all(made).then_some(ty)
    }
}

impl Analysis<ENode> for Knowledge {
    type Data = Facts;

    fn make(egraph: &mut EGraph<ENode, Self>, enode: &ENode, _: Id) -> Facts {
        let next = egraph.analysis.next.take();
        let facts = |id: &Id| &egraph[*id].data;
        match enode {
            ENode::Constant(n) => {
                let c = &egraph.analysis.constants[*n as usize];
                let splat = if c.ty.quant.is_none() { uniform(&c.tensor) } else { None };
                Facts { ty: Arc::new(c.ty.clone()), constant: Some(*n), splat, foldable: true, plan: None }
            }
            ENode::Apply { op, args } => {
                let ty = next.unwrap_or_else(|| {
                    let types: Vec<Type> = args.iter().map(|a| (*facts(a).ty).clone()).collect();
                    let mut types = op.infer(&mut InferCx::new(&egraph.analysis.symbols), &types).expect("checked when it was added");
                    types.remove(0)
                });
                let splat = match &**op {
                    Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_) | Op::Slice(_) => facts(&args[0]).splat,
                    Op::Cast(c) => facts(&args[0]).splat.map(|s| round_to(c.to, s)),
                    _ => None,
                };
                let known = match &**op {
                    Op::Dims(op) => op.values.iter().all(|d| d.as_const().is_some()),
                    _ => args.iter().all(|a| facts(a).foldable),
                };
                let foldable = known && ty.shape.as_fixed().is_some();
                Facts { ty: Arc::new(ty), constant: None, splat, foldable, plan: None }
            }
            ENode::Input(_) | ENode::Opaque { .. } => {
                let ty = next.expect("given when it was added");
                Facts { ty: Arc::new(ty), constant: None, splat: None, foldable: false, plan: None }
            }
        }
    }

    fn remake(egraph: &mut EGraph<ENode, Self>, enode: &ENode, id: Id) -> Facts {
        // Only what may have become known can change; the type of a class is fixed.
        let class = egraph[id].data.clone();
        let Facts { splat, foldable, .. } = match enode {
            ENode::Apply { .. } => {
                egraph.analysis.next = Some((*class.ty).clone());
                Self::make(egraph, enode, id)
            }
            _ => class.clone(),
        };
        Facts { splat, foldable, ..class }
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        let (mut changed_a, mut changed_b) = (false, false);
        let mut keep = |a_lacks: bool, b_lacks: bool| {
            changed_a |= a_lacks;
            changed_b |= b_lacks;
        };
        keep(a.constant.is_none() && b.constant.is_some(), b.constant.is_none() && a.constant.is_some());
        keep(a.splat.is_none() && b.splat.is_some(), b.splat.is_none() && a.splat.is_some());
        keep(!a.foldable && b.foldable, !b.foldable && a.foldable);
        keep(a.plan.is_none() && b.plan.is_some(), b.plan.is_none() && a.plan.is_some());
        a.constant = a.constant.or(b.constant);
        a.splat = a.splat.or(b.splat);
        a.foldable |= b.foldable;
        a.plan = a.plan.take().or(b.plan);
        DidMerge(changed_a, changed_b)
    }
}

/// What all elements equal.
pub(crate) fn uniform(t: &Tensor) -> Option<Scalar> {
    if t.is_empty() {
        return None;
    }
    let first = t.get(0);
    (1..t.len()).all(|i| t.get(i) == first).then_some(first)
}

/// The e-graph of a graph.
pub(super) type Classes = EGraph<ENode, Knowledge>;

/// Adds an e-node of a known type.
pub(super) fn add_typed(egraph: &mut Classes, enode: ENode, ty: Type) -> Id {
    egraph.analysis.next = Some(ty);
    let id = egraph.add(enode);
    egraph.analysis.next = None;
    id
}

/// The e-graph as rules see it.
pub(super) struct View<'a>(pub(super) &'a mut Classes);

impl Terms for View<'_> {
    fn find(&self, t: Term) -> Term {
        self.0.find(t)
    }

    fn ty(&self, t: Term) -> &Type {
        &self.0[t].data.ty
    }

    fn forms(&self, t: Term) -> Vec<Form> {
        let applications = self.0[t].iter().filter_map(|n| match n {
            ENode::Apply { op, args } => Some(Form { op: op.clone(), args: args.iter().map(|&a| self.0.find(a)).collect() }),
            _ => None,
        });
        applications.collect()
    }

    fn constant(&self, t: Term) -> Option<&Tensor> {
        let c = &self.0.analysis.constants[self.0[t].data.constant? as usize];
        c.ty.quant.is_none().then_some(&c.tensor)
    }

    fn is_known(&self, t: Term) -> bool {
        self.0[t].data.foldable
    }

    fn splat(&self, t: Term) -> Option<Scalar> {
        self.0[t].data.splat
    }

    fn stands_for(&mut self, made: Term, original: Term) {
        if !self.0.analysis.stand_ins.contains(&(made, original)) {
            self.0.analysis.stand_ins.push((made, original));
        }
    }

    fn plan(&self, t: Term) -> Option<&Arc<Plan>> {
        self.0[t].data.plan.as_ref()
    }

    fn symbols(&self) -> &SymbolTable {
        &self.0.analysis.symbols
    }

    fn add(&mut self, op: Op, args: &[Term]) -> Option<Term> {
        let enode = ENode::Apply { op: Arc::new(op), args: args.iter().map(|&a| self.0.find(a)).collect() };
        if let Some(known) = self.0.lookup(enode.clone()) {
            return Some(known);
        }
        let ENode::Apply { op, args } = &enode else { unreachable!("just made") };
        let types: Vec<Type> = args.iter().map(|&a| (*self.0[a].data.ty).clone()).collect();
        let ty = self.0.analysis.infer(op, &types)?;
        Some(add_typed(self.0, enode, ty))
    }

    fn add_constant(&mut self, tensor: Tensor) -> Term {
        let ty = tensor.ty();
        let number = self.0.analysis.constant(tensor, ty, None);
        self.0.add(ENode::Constant(number))
    }
}
