//! Terms: what rewrite rules see of a program, be it a graph or an e-graph.
//!
//! A [`Term`] stands for a value. In a graph it has one [`Form`], the application that computes it,
//! or none if it is an input or a constant; in an e-graph it has as many as are known to be equal.
//! Rules are written once against [`Terms`]: `simplify` applies the exact ones to a graph, `eqsat`
//! applies all to an e-graph.

use crate::absorb::Plan;
use std::sync::Arc;
use tfc_ir::dim::SymbolTable;
use tfc_ir::ops::{self, Op};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Shape, Type};

/// A value of the program under rewriting.
pub type Term = egg::Id;

/// An application that computes a term.
#[derive(Clone, Debug)]
pub struct Form {
    /// The operator.
    pub op: Arc<Op>,
    /// Its operands.
    pub args: Vec<Term>,
}

/// A program under rewriting.
pub trait Terms {
    /// The representative of a term: terms are known to be equal if theirs are the same.
    fn find(&self, t: Term) -> Term;

    /// Its type.
    fn ty(&self, t: Term) -> &Type;

    /// The applications that compute it, in a fixed order, operands as representatives.
    fn forms(&self, t: Term) -> Vec<Form>;

    /// Its value, if it is a constant.
    fn constant(&self, t: Term) -> Option<&Tensor>;

    /// Whether its value is known, or follows from known ones.
    fn is_known(&self, t: Term) -> bool;

    /// The value that all of its elements have, if that is known.
    fn splat(&self, t: Term) -> Option<Scalar>;

    /// Says that a term which a rule made computes what `original` does for other numbers: it gets the place in the model that this has.
    fn stands_for(&mut self, _made: Term, _original: Term) {}

    /// The map that it is to get by channel, if one is planned.
    fn plan(&self, _: Term) -> Option<&Arc<Plan>> {
        None
    }

    /// The symbols of dimensions.
    fn symbols(&self) -> &SymbolTable;

    /// The term that applies `op`. `None` if it does not take these operands, or only under a
    /// run-time check that the program does not make anyway.
    fn add(&mut self, op: Op, args: &[Term]) -> Option<Term>;

    /// A constant term.
    fn add_constant(&mut self, tensor: Tensor) -> Term;
}

/// Operators by their struct, to match forms.
pub trait Case: Clone {
    /// The operator's attributes, if `op` is it.
    fn of(op: &Op) -> Option<&Self>;
}

macro_rules! cases {
    ($($name:ident)*) => {
        $(impl Case for ops::$name {
            fn of(op: &Op) -> Option<&Self> {
                if let Op::$name(x) = op { Some(x) } else { None }
            }
        })*
    };
}
cases!(Add And Attention Cast Concat Conv Cos Div Erf Exp Expand IsNan LayerNorm Le Log Lt Matmul Max Mul Neg Not Or Pow Reciprocal Reduce Reshape RmsNorm Rsqrt Select Sigmoid Sin Slice Softmax Sqrt Sub Tanh Transpose);

impl dyn Terms + '_ {
    /// Whether two terms are known to be equal.
    pub fn same(&self, a: Term, b: Term) -> bool {
        self.find(a) == self.find(b)
    }

    /// The sizes of a term.
    pub fn shape(&self, t: Term) -> &Shape {
        &self.ty(t).shape
    }

    /// Attributes and operands of all forms that apply `O`.
    pub fn all<O: Case>(&self, t: Term) -> Vec<(O, Vec<Term>)> {
        self.forms(t).into_iter().filter_map(|f| Some((O::of(&f.op)?.clone(), f.args))).collect()
    }

    /// Attributes and operand of all forms that apply the unary operator `O`.
    pub fn unary<O: Case>(&self, t: Term) -> Vec<(O, Term)> {
        self.all::<O>(t).into_iter().map(|(op, args)| (op, args[0])).collect()
    }

    /// Operands of all forms that apply the binary operator `O`.
    pub fn binary<O: Case>(&self, t: Term) -> Vec<(Term, Term)> {
        self.all::<O>(t).into_iter().map(|(_, args)| (args[0], args[1])).collect()
    }

    /// Operands of all forms that apply the commutative operator `O`, in both orders.
    pub fn either<O: Case>(&self, t: Term) -> Vec<(Term, Term)> {
        self.binary::<O>(t).into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect()
    }

    /// The number that all elements of a float term equal.
    pub fn number(&self, t: Term) -> Option<f64> {
        self.ty(t).elem.is_float().then(|| self.splat(t).map(Scalar::to_f64))?
    }

    /// Whether all elements equal `n`, as floats or integers.
    pub fn is(&self, t: Term, n: i32) -> bool {
        match self.splat(t) {
            Some(Scalar::Float(x)) => x == f64::from(n),
            Some(Scalar::Int(x)) => x == i128::from(n),
            None => false,
        }
    }

    /// A constant without axes of `like`'s element type.
    pub fn scalar_like(&mut self, like: Term, value: f64) -> Term {
        let elem = self.ty(like).elem;
        self.add_constant(Tensor::scalar(elem, Scalar::Float(value)))
    }

    /// `t` with the sizes of `ty`, repeated where broadcasting would.
    pub fn broadcast(&mut self, t: Term, shape: &Shape) -> Option<Term> {
        if self.shape(t) == shape { Some(t) } else { self.add(ops::Expand { shape: shape.clone() }.into(), &[t]) }
    }

    /// `t` in another shape.
    pub fn reshape(&mut self, t: Term, shape: Shape) -> Option<Term> {
        if *self.shape(t) == shape { Some(t) } else { self.add(ops::Reshape { shape }.into(), &[t]) }
    }
}
