//! What several operators share: inference and evaluation of elementwise operators, index arithmetic.

use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::require;
use crate::scalar::{ScalarId, ScalarProgram};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Shape, Type};

/// The largest tensor, in bytes, whose size is accepted: what an address on the target can span.
const MAX_BYTES: i64 = 1 << 47;

/// Refuses negative sizes and tensors too large to address.
pub(super) fn check_size(t: &Type) -> Result<(), InferError> {
    for d in &t.shape.0 {
        require!(d.as_const().is_none_or(|n| n >= 0), "size {d} of {t} is negative");
    }
    if let Some(n) = t.shape.elements().as_const() {
        require!(n.saturating_mul(i64::from(t.elem.bits())) / 8 <= MAX_BYTES, "{t} is too large to address");
    }
    Ok(())
}

/// Inference of an elementwise operator: broadcasts the shapes, and takes the element type from the
/// scalar program. `accepts` says which element types the operands may have; all operands from
/// `first_alike` on must have the same one.
pub(super) fn infer_elementwise(
    op: &impl Operator,
    cx: &mut InferCx,
    inputs: &[Type],
    first_alike: usize,
    accepts: fn(Elem) -> bool,
) -> Result<Vec<Type>, InferError> {
    let alike = &inputs[first_alike.min(inputs.len() - 1)..];
    for t in alike {
        require!(accepts(t.elem), "{} does not take {}", op.mnemonic(), t.elem);
        require!(t.elem == alike[0].elem, "{} takes operands of one type, not {} and {}", op.mnemonic(), alike[0].elem, t.elem);
    }
    for t in inputs {
        require!(t.quant.is_none(), "{} does not take quantized operands such as {t}", op.mnemonic());
    }
    let shapes: Vec<&Shape> = inputs.iter().map(|t| &t.shape).collect();
    let shape = cx.broadcast(&shapes)?;
    let mut p = ScalarProgram::new();
    let result = scalar_result(op, &mut p, inputs.iter().map(|t| t.elem));
    Ok(vec![Type::new(p.elem(result), shape)])
}

fn scalar_result(op: &impl Operator, p: &mut ScalarProgram, elems: impl Iterator<Item = Elem>) -> ScalarId {
    let args: Vec<ScalarId> = elems.enumerate().map(|(i, e)| p.arg(i, e)).collect();
    op.scalar(p, &args).expect("elementwise operators have a scalar program")
}

/// Evaluation of an elementwise operator by its scalar program.
pub(super) fn eval_elementwise(op: &impl Operator, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
    let sizes = broadcast_sizes(&inputs.iter().map(Tensor::sizes).collect::<Vec<_>>())?;
    let mut p = ScalarProgram::new();
    let result = scalar_result(op, &mut p, inputs.iter().map(Tensor::elem));
    let operands: Vec<Broadcast> = inputs.iter().map(|t| Broadcast::new(t.sizes(), &sizes)).collect();
    let mut args = Vec::with_capacity(inputs.len());
    let out = Tensor::build(p.elem(result), &sizes, |i| {
        args.clear();
        args.extend(inputs.iter().zip(&operands).map(|(t, b)| t.get(b.offset(i))));
        p.eval(&args, result)
    });
    Ok(vec![out])
}

/// Sizes of the result of broadcasting; a run-time mismatch is an error.
pub(super) fn broadcast_sizes(sizes: &[&[usize]]) -> Result<Vec<usize>, EvalError> {
    let rank = sizes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for s in sizes {
        for (o, &n) in out[rank - s.len()..].iter_mut().zip(*s) {
            if *o == 1 {
                *o = n;
            } else if n != 1 && n != *o {
                return Err(EvalError::new(format!("{sizes:?} do not broadcast")));
            }
        }
    }
    Ok(out)
}

/// Maps row-major positions of a broadcast result to positions of one operand.
pub(super) struct Broadcast {
    /// Per axis of the result: size there, and the operand's stride (0 where it repeats).
    axes: Vec<(usize, usize)>,
}

impl Broadcast {
    /// For an operand of sizes `from` in a result of sizes `to`.
    pub(super) fn new(from: &[usize], to: &[usize]) -> Broadcast {
        let strides = strides(from);
        let missing = to.len() - from.len();
        let axes = to.iter().enumerate().map(|(i, &n)| match i.checked_sub(missing) {
            Some(j) if from[j] != 1 => (n, strides[j]),
            _ => (n, 0),
        });
        Broadcast { axes: axes.collect() }
    }

    /// The operand's position for position `i` of the result.
    pub(super) fn offset(&self, mut i: usize) -> usize {
        let mut at = 0;
        for &(n, stride) in self.axes.iter().rev() {
            at += i % n * stride;
            i /= n;
        }
        at
    }
}

/// Row-major strides in elements.
pub(super) fn strides(sizes: &[usize]) -> Vec<usize> {
    let mut s = vec![1; sizes.len()];
    for i in (1..sizes.len()).rev() {
        s[i - 1] = s[i] * sizes[i];
    }
    s
}

/// The index along every axis of row-major position `i`.
pub(super) fn unravel(mut i: usize, sizes: &[usize]) -> Vec<usize> {
    let mut index = vec![0; sizes.len()];
    for (x, &n) in index.iter_mut().zip(sizes).rev() {
        *x = i % n;
        i /= n;
    }
    index
}

/// The row-major position of an index.
pub(super) fn ravel(index: &[usize], sizes: &[usize]) -> usize {
    index.iter().zip(sizes).fold(0, |at, (&x, &n)| at * n + x)
}

/// The sizes that dimension attributes have at run time.
pub(super) fn eval_shape(shape: &Shape, bindings: &Bindings) -> Result<Vec<usize>, EvalError> {
    shape.eval(bindings).ok_or_else(|| EvalError::new(format!("{shape} has no value")))
}

/// Constraint C1 of most operators: operands are not quantized, have one element type, and `accepts`
/// takes it. Returns it.
pub(super) fn check_elems(op: &impl Named, inputs: &[Type], accepts: fn(Elem) -> bool) -> Result<Elem, InferError> {
    let (name, first) = (op.mnemonic(), &inputs[0]);
    for t in inputs {
        require!(t.quant.is_none(), "{name} C1: it does not take quantized operands such as {t}");
        require!(accepts(t.elem), "{name} C1: it does not take elements of type {}", t.elem);
        require!(t.elem == first.elem, "{name} C1: operands have one element type, not {} and {}", first.elem, t.elem);
    }
    Ok(first.elem)
}

/// Constraint C2 of operators that work along an axis: it is below the rank.
pub(super) fn check_axis(op: &impl Named, axis: usize, t: &Type) -> Result<(), InferError> {
    require!(axis < t.rank(), "{} C2: axis {axis} is not below the rank {} of {t}", op.mnemonic(), t.rank());
    Ok(())
}

/// Demands that `from` broadcasts to exactly `to`; `what` begins the message. Sizes that are not
/// provably 1 are taken to be equal and checked at run time.
pub(super) fn broadcasts_to(cx: &mut InferCx, from: &Shape, to: &Shape, what: &str) -> Result<(), InferError> {
    let what = format!("{what}: {from} does not broadcast to {to}");
    require!(from.rank() <= to.rank(), "{what}: it has more axes");
    for (d, t) in from.0.iter().rev().zip(to.0.iter().rev()) {
        if !d.is(1) {
            cx.equal(d, t, &what)?;
        }
    }
    Ok(())
}

/// Demands that the positive number `by` divides `d` and returns the quotient; `what` begins the message.
pub(super) fn divides(cx: &mut InferCx, by: &Dim, d: &Dim, what: &str) -> Result<Dim, InferError> {
    let quotient = d.floor_div(by);
    let product = quotient.clone() * by.clone();
    if d.as_const().is_some() {
        require!(product.as_const().is_none() || product == *d, "{what}: {by} does not divide {d}");
    }
    cx.equal(d, &product, what)?;
    Ok(quotient)
}

/// Demands that `d` is at least `min`, at run time if it is not certain; `what` begins the message.
pub(super) fn at_least(cx: &mut InferCx, d: &Dim, min: i64, what: &str) -> Result<(), InferError> {
    let range = d.range(cx.symbols());
    require!(range.max >= min, "{what}: {d} is less than {min}");
    if range.min < min {
        cx.equal(&d.maximum(&Dim::from(min)), d, what)?;
    }
    Ok(())
}

/// The row-major positions of the elements along `axis`, one line for every index of the other axes.
pub(super) fn lines(sizes: &[usize], axis: usize) -> impl Iterator<Item = impl DoubleEndedIterator<Item = usize> + Clone> {
    let outer: usize = sizes[..axis].iter().product();
    let n = sizes[axis];
    let inner: usize = sizes[axis + 1..].iter().product();
    (0..outer).flat_map(move |o| (0..inner).map(move |i| (0..n).map(move |k| (o * n + k) * inner + i)))
}

/// A scalar constant of type `elem`.
pub(super) fn constant(graph: &mut Graph, elem: Elem, value: f64) -> Value {
    graph.add_const(Tensor::scalar(elem, Scalar::Float(value)), None)
}

/// The type in which decompositions compute on `elem`: 16-bit floats are too coarse for sums.
pub(super) fn wide(elem: Elem) -> Elem {
    match elem {
        Elem::F16 | Elem::Bf16 => Elem::F32,
        e => e,
    }
}

/// `v` as elements of type `to`.
pub(super) fn cast(graph: &mut Graph, v: Value, to: Elem, loc: &Loc) -> Result<Value, InferError> {
    if graph.ty(v).elem == to { Ok(v) } else { graph.add(super::Cast { to }, &[v], loc) }
}

/// Declares an elementwise operator's [`Operator`] impl from its scalar program.
macro_rules! elementwise {
    ($name:ident, $accepts:expr, |$p:ident, $args:ident| $body:expr) => {
        crate::ops::support::elementwise!($name, crate::ops::Traits::ELEMENTWISE, 0, $accepts, |_op, $p, $args| $body);
    };
    ($name:ident, $traits:expr, $alike:expr, $accepts:expr, |$op:ident, $p:ident, $args:ident| $body:expr) => {
        impl crate::ops::Operator for $name {
            fn infer(
                &self,
                cx: &mut crate::ops::InferCx,
                inputs: &[crate::types::Type],
            ) -> Result<Vec<crate::types::Type>, crate::ops::InferError> {
                crate::ops::support::infer_elementwise(self, cx, inputs, $alike, $accepts)
            }

            fn eval(
                &self,
                _: &crate::dim::Bindings,
                inputs: &[crate::tensor::Tensor],
            ) -> Result<Vec<crate::tensor::Tensor>, crate::ops::EvalError> {
                crate::ops::support::eval_elementwise(self, inputs)
            }

            fn scalar(&self, $p: &mut crate::scalar::ScalarProgram, $args: &[crate::scalar::ScalarId]) -> Option<crate::scalar::ScalarId> {
                let $op = self;
                Some($body)
            }

            fn traits(&self) -> crate::ops::Traits {
                $traits
            }
        }
    };
}
pub(super) use elementwise;

/// Accepts every element type.
pub(super) fn any(_: Elem) -> bool {
    true
}

/// Accepts floats.
pub(super) fn float(e: Elem) -> bool {
    e.is_float()
}

/// Accepts integers and floats.
pub(super) fn number(e: Elem) -> bool {
    e != Elem::Bool
}

/// Accepts integers.
pub(super) fn int(e: Elem) -> bool {
    e.is_int()
}

/// Accepts integers and `bool`.
pub(super) fn bits(e: Elem) -> bool {
    !e.is_float()
}

/// The mnemonic as a method, for messages.
pub(super) trait Named {
    /// Name in the text form.
    fn mnemonic(&self) -> &'static str;
}

impl<T: super::Attributes> Named for T {
    fn mnemonic(&self) -> &'static str {
        T::MNEMONIC
    }
}
