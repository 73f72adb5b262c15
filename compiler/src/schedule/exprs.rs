//! Expressions of kernels from operators: scalar programs are copied in, equal expressions are shared.

use crate::kernel::nest::{Access, Expr, ExprId};
use crate::kernel::site;
use cranelift_entity::{EntityRef, PrimaryMap};
use std::collections::HashMap;
use tfc_ir::ops::Op;
use tfc_ir::scalar::{Prim, ScalarId, ScalarNode, ScalarProgram};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;

/// Expressions under construction.
#[derive(Default)]
pub struct Exprs {
    /// The expressions.
    pub list: PrimaryMap<ExprId, (Expr, Elem)>,
    known: HashMap<(Expr, Elem), ExprId>,
}

impl Exprs {
    /// Adds an expression unless there is an equal one.
    pub fn push(&mut self, expr: Expr, elem: Elem) -> ExprId {
        let key = (expr, elem);
        if let Some(&id) = self.known.get(&key) {
            return id;
        }
        let id = self.list.push(key.clone());
        self.known.insert(key, id);
        id
    }

    /// A conversion, unless the expression has that type.
    pub fn cast(&mut self, x: ExprId, to: Elem) -> ExprId {
        if self.list[x].1 == to { x } else { self.push(Expr::Prim(Prim::Cast, vec![x]), to) }
    }

    /// A constant of type `elem`.
    pub fn number(&mut self, x: f64, elem: Elem) -> ExprId {
        let expr = if elem.is_float() { Expr::Float(x.to_bits()) } else { Expr::Int(x as i64) };
        self.push(expr, elem)
    }

    /// The element that a constant has everywhere, if it has one.
    pub fn splat(&mut self, t: &Tensor) -> Option<ExprId> {
        let first = if t.is_empty() { None } else { Some(t.get(0)) }?;
        let width = t.elem().bits() as usize / 8;
        if width == 0 || t.bytes().chunks_exact(width).any(|c| c != &t.bytes()[..width]) {
            return None;
        }
        let expr = match first {
            tfc_ir::tensor::Scalar::Float(x) => Expr::Float(x.to_bits()),
            tfc_ir::tensor::Scalar::Int(n) => Expr::Int(n as i64),
        };
        Some(self.push(expr, t.elem()))
    }

    /// What `quantize_static` makes of a float, which may be `below` the bound, by the words of a [site]; `load` is the access to
    /// one of them.
    pub fn codes(&mut self, x: ExprId, below: bool, mut load: impl FnMut(i64) -> Access) -> ExprId {
        let mut word = |n: i64| self.push(Expr::Load(load(n)), Elem::F32);
        let (inverse, high, zero) = (word(site::INVERSE), word(site::HIGH), word(site::ZERO));
        let low = below.then(|| word(site::LOW));
        let (x, zero) = (self.cast(x, Elem::F32), self.cast(zero, Elem::I32));
        let mut prim = |p: Prim, args: &[ExprId], elem: Elem| self.push(Expr::Prim(p, args.to_vec()), elem);
        let scaled = prim(Prim::Mul, &[x, inverse], Elem::F32);
        let rounded = prim(Prim::RoundEven, &[scaled], Elem::F32);
        let raised = low.map_or(rounded, |low| prim(Prim::Max, &[rounded, low], Elem::F32));
        let bounded = prim(Prim::Min, &[raised, high], Elem::F32);
        let steps = prim(Prim::Cast, &[bounded], Elem::I32);
        let code = prim(Prim::Add, &[steps, zero], Elem::I32);
        prim(Prim::Cast, &[code], Elem::I8)
    }

    /// Applies an elementwise operator.
    pub fn apply(&mut self, op: &Op, args: &[ExprId]) -> ExprId {
        let mut program = ScalarProgram::new();
        let operands: Vec<ScalarId> = args.iter().enumerate().map(|(i, &a)| program.arg(i, self.list[a].1)).collect();
        let result = op.scalar(&mut program, &operands).expect("elementwise operators have a scalar program");
        let mut map: Vec<ExprId> = vec![];
        for (_, node, elem) in program.nodes() {
            let id = match node {
                ScalarNode::Arg(n) => args[*n as usize],
                ScalarNode::Float(bits) => self.push(Expr::Float(*bits), elem),
                ScalarNode::Int(n) => self.push(Expr::Int(*n), elem),
                ScalarNode::Prim(p, ids) => {
                    let ids = ids.iter().map(|i| map[i.index()]).collect();
                    self.push(Expr::Prim(*p, ids), elem)
                }
            };
            map.push(id);
        }
        map[result.index()]
    }
}

/// Whether computing the operator's element is dear compared with loading it.
pub fn is_dear(op: &Op, operands: &[Elem]) -> bool {
    let mut p = ScalarProgram::new();
    let args: Vec<ScalarId> = operands.iter().enumerate().map(|(i, &e)| p.arg(i, e)).collect();
    op.scalar(&mut p, &args).is_some()
        && p.nodes().any(|(_, n, _)| {
            use Prim::*;
            let ScalarNode::Prim(prim, _) = n else { return false };
            matches!(prim, Exp | Log | Expm1 | Log1p | Sin | Cos | Tan | Asin | Acos | Atan | Tanh | Erf | Pow | Sqrt | RemFloor | RemTrunc)
        })
}
