//! What several operators share: inference and evaluation of elementwise operators, index arithmetic.

use super::{EvalError, InferCx, InferError, Operator};
use crate::dim::{Atom, Bindings, Dim, SymbolTable};
use crate::graph::{Graph, Loc, Value};
use crate::quant::Granularity;
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
    // Sizes beside a 0 count as well: products of some of the sizes are formed everywhere.
    let sizes: Option<Vec<i64>> = t.shape.0.iter().map(|d| d.as_const()).collect();
    if let Some(sizes) = sizes {
        let n = sizes.iter().fold(1i64, |n, &s| n.saturating_mul(s.max(1)));
        require!(n.saturating_mul(i64::from(t.elem.bits())) / 8 <= MAX_BYTES, "{t} is too large to address");
    }
    Ok(())
}

/// Inference of an elementwise operator: broadcasts the shapes, and takes the element type from the
/// scalar program. `accepts` says which element types the operands may have; all operands from
/// `first_alike` on must have the same one, and those before are conditions.
pub(super) fn infer_elementwise(
    op: &impl Operator,
    cx: &mut InferCx,
    inputs: &[Type],
    first_alike: usize,
    accepts: fn(Elem) -> bool,
) -> Result<Vec<Type>, InferError> {
    let (conditions, alike) = inputs.split_at(first_alike.min(inputs.len() - 1));
    for t in conditions {
        require!(t.elem == Elem::Bool, "{} chooses by bool, not by {t}", op.mnemonic());
    }
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
    if let Some(y) = eval_f32(op.mnemonic(), inputs, &sizes) {
        return Ok(vec![y]);
    }
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

/// Sums, differences, products and quotients of f32 by arithmetic in f32, which gives the bits that rounding the result in f64 gives:
/// f64 has more than twice the digits. Constants of this size are folded.
fn eval_f32(mnemonic: &str, inputs: &[Tensor], sizes: &[usize]) -> Option<Tensor> {
    let apply: fn(f32, f32) -> f32 = match mnemonic {
        "add" => |x, y| x + y,
        "sub" => |x, y| x - y,
        "mul" => |x, y| x * y,
        "div" => |x, y| x / y,
        _ => return None,
    };
    let [a, b] = inputs else { return None };
    if [a, b].iter().any(|t| t.elem() != Elem::F32) {
        return None;
    }
    let n = sizes.last().copied().unwrap_or(1);
    let count: usize = sizes.iter().product();
    // Along the last axis an operand advances by one, or repeats.
    let [(x, at_x, step_x), (y, at_y, step_y)] = [a, b].map(|t| {
        let repeats = t.sizes().last().is_none_or(|&last| last != n);
        (t.values::<f32>(), Broadcast::new(t.sizes(), sizes), usize::from(!repeats))
    });
    let mut values = Vec::with_capacity(count);
    for first in (0..count).step_by(n.max(1)) {
        let (x, y) = (&x[at_x.offset(first)..], &y[at_y.offset(first)..]);
        match (step_x, step_y) {
            (1, 1) => values.extend(x[..n].iter().zip(&y[..n]).map(|(&x, &y)| apply(x, y))),
            _ => values.extend((0..n).map(|i| apply(x[i * step_x], y[i * step_y]))),
        }
    }
    Some(Tensor::of(sizes, values))
}

/// Sizes of the result of broadcasting; a run-time mismatch is an error.
pub(crate) fn broadcast_sizes(sizes: &[&[usize]]) -> Result<Vec<usize>, EvalError> {
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
pub(crate) struct Broadcast {
    /// Per axis of the result: size there, and the operand's stride (0 where it repeats).
    axes: Vec<(usize, usize)>,
}

impl Broadcast {
    /// For an operand of sizes `from` in a result of sizes `to`.
    pub(crate) fn new(from: &[usize], to: &[usize]) -> Broadcast {
        let strides = strides(from);
        let missing = to.len() - from.len();
        let axes = to.iter().enumerate().map(|(i, &n)| match i.checked_sub(missing) {
            Some(j) if from[j] != 1 => (n, strides[j]),
            _ => (n, 0),
        });
        Broadcast { axes: axes.collect() }
    }

    /// The operand's position for position `i` of the result.
    pub(crate) fn offset(&self, mut i: usize) -> usize {
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
pub(crate) fn unravel(mut i: usize, sizes: &[usize]) -> Vec<usize> {
    let mut index = vec![0; sizes.len()];
    for (x, &n) in index.iter_mut().zip(sizes).rev() {
        *x = i % n;
        i /= n;
    }
    index
}

/// The row-major position of an index.
pub(crate) fn ravel(index: &[usize], sizes: &[usize]) -> usize {
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

/// The row-major positions of the elements along `axis`, one line for every index of the other axes.
pub(crate) fn lines(sizes: &[usize], axis: usize) -> impl Iterator<Item = impl DoubleEndedIterator<Item = usize> + Clone> {
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

/// The tensor of `sizes` whose element at row-major position `i` is, bit for bit, element `p` of
/// `from[t]`, where `(t, p)` is `source(i)`. Positions are asked for in ascending order.
pub(super) fn pick(from: &[&Tensor], sizes: &[usize], source: impl FnMut(usize) -> (usize, usize)) -> Tensor {
    let elem = from[0].elem();
    let bytes: Vec<&[u8]> = from.iter().map(|t| t.bytes().as_ref()).collect();
    let sources = (0..sizes.iter().product()).map(source);
    let data = match elem.bits() {
        4 => pick_nibbles(&bytes, sources),
        8 => pick_bytes::<1>(&bytes, sources),
        16 => pick_bytes::<2>(&bytes, sources),
        32 => pick_bytes::<4>(&bytes, sources),
        _ => pick_bytes::<8>(&bytes, sources),
    };
    Tensor::new(elem, sizes.to_vec(), data.into()).expect("one source per position")
}

fn pick_bytes<const N: usize>(from: &[&[u8]], sources: impl ExactSizeIterator<Item = (usize, usize)>) -> Vec<u8> {
    let mut data = Vec::with_capacity(N * sources.len());
    for (t, p) in sources {
        data.extend_from_slice(&from[t][p * N..(p + 1) * N]);
    }
    data
}

fn pick_nibbles(from: &[&[u8]], sources: impl ExactSizeIterator<Item = (usize, usize)>) -> Vec<u8> {
    let mut data = vec![0; sources.len().div_ceil(2)];
    for (i, (t, p)) in sources.enumerate() {
        let nibble = (from[t][p / 2] >> (4 * (p % 2))) & 15;
        data[i / 2] |= nibble << (4 * (i % 2));
    }
    data
}

/// A strided read: with `axes` the sizes and strides of the result, its element at index `i…` is the
/// element of `t` at position `start + Σ i * stride`.
pub(super) fn strided(t: &Tensor, start: isize, axes: &[(usize, isize)]) -> Tensor {
    let sizes: Vec<usize> = axes.iter().map(|a| a.0).collect();
    let mut index = vec![0; axes.len()];
    let mut next = start;
    pick(&[t], &sizes, |_| {
        let here = next as usize;
        for (x, &(n, stride)) in index.iter_mut().zip(axes).rev() {
            *x += 1;
            next += stride;
            if *x < n {
                break;
            }
            next -= stride * n as isize;
            *x = 0;
        }
        (0, here)
    })
}

/// The place that a run-time index names on an axis of `size`: negative ones count from the end.
pub(super) fn resolve_index(index: i64, size: usize, axis: usize) -> Result<usize, EvalError> {
    let from_end = if index < 0 { size as i64 } else { 0 };
    match usize::try_from(index.saturating_add(from_end)) {
        Ok(i) if i < size => Ok(i),
        _ => Err(EvalError::new(format!("index {index} is outside of [-{size}, {size}) on axis {axis}"))),
    }
}

/// The values of an index operand.
pub(super) fn index_values(indices: &Tensor) -> Vec<i64> {
    indices.to_i64s().expect("inference accepts i32 and i64")
}

/// Refuses what cannot be an index operand; `constraint` is cited.
pub(super) fn check_indices(t: &Type, constraint: &str) -> Result<(), InferError> {
    let ok = matches!(t.elem, Elem::I32 | Elem::I64) && t.quant.is_none();
    require!(ok, "{constraint}: indices are i32 or i64, not {t}");
    Ok(())
}

/// Refuses to move elements whose scales belong to places: `mnemonic` would have to move the scales too.
pub(super) fn check_movable(t: &Type, mnemonic: &str) -> Result<(), InferError> {
    let ok = t.quant.is_none_or(|q| q.granularity == Granularity::Tensor);
    require!(ok, "{mnemonic} does not move elements of {t}: dequantize it first, or quantize it per tensor");
    Ok(())
}

/// Demands `a <= b`. What cannot be decided now is checked at run time.
///
/// # Errors
/// When it can never hold; `what` names the sides in the message.
pub(super) fn at_most(cx: &mut InferCx, a: &Dim, b: &Dim, what: &str) -> Result<(), InferError> {
    if is_at_most(a, b, cx.symbols()) {
        return Ok(());
    }
    let room = (b.clone() - a.clone()).simplify(cx.symbols()).range(cx.symbols());
    require!(room.max >= 0, "{what}: {a} is above {b}");
    cx.equal(&a.maximum(b).simplify(cx.symbols()), b, what)?;
    Ok(())
}

/// Whether `a <= b` follows from the ranges of the symbols.
pub(crate) fn is_at_most(a: &Dim, b: &Dim, symbols: &SymbolTable) -> bool {
    /// Each step replaces one minimum, maximum or division by its operands.
    const STEPS: u32 = 6;
    never_negative(&(b.clone() - a.clone()), symbols, STEPS)
}

fn never_negative(d: &Dim, symbols: &SymbolTable, steps: u32) -> bool {
    let d = d.simplify(symbols);
    if d.range(symbols).min >= 0 {
        return true;
    }
    if steps == 0 {
        return false;
    }
    let replaced = |c: i64, atom: &Dim, by: Dim| never_negative(&(d.clone() - Dim::from(c) * atom.clone() + by), symbols, steps - 1);
    for (c, factors) in d.terms() {
        match factors {
            [atom @ (Atom::Min(x, y) | Atom::Max(x, y))] => {
                let is_min = matches!(atom, Atom::Min(..));
                let whole = if is_min { x.minimum(y) } else { x.maximum(y) };
                let with = |z: &Dim| replaced(c, &whole, Dim::from(c) * z.clone());
                // The term is the smaller of the two `c * z`, or the larger one.
                return if is_min == (c > 0) { with(x) && with(y) } else { with(x) || with(y) };
            }
            [Atom::FloorDiv(x, k)] => {
                // x - (k - 1) <= k * floor(x / k) <= x
                if let Some(k) = k.as_const().filter(|&k| k > 0 && c % k == 0) {
                    let bound = if c > 0 { (**x).clone() - Dim::from(k - 1) } else { (**x).clone() };
                    return replaced(c, &x.floor_div(&Dim::from(k)), Dim::from(c / k) * bound);
                }
            }
            _ => {}
        }
    }
    false
}

/// Declares an elementwise operator's [`Operator`] impl from its scalar program, and its ways if it has any.
macro_rules! elementwise {
    ($name:ident, $accepts:expr, |$p:ident, $args:ident| $body:expr $(, ways: $ways:expr)?) => {
        crate::ops::support::elementwise!(
            $name, crate::ops::Traits::ELEMENTWISE, 0, $accepts, |_op, $p, $args| $body $(, ways: $ways)?
        );
    };
    ($name:ident, $traits:expr, $alike:expr, $accepts:expr, |$op:ident, $p:ident, $args:ident| $body:expr $(, ways: $ways:expr)?) => {
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

            $(fn ways(&self) -> &'static [crate::ops::Way] {
                $ways
            })?
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

#[cfg(test)]
mod tests {
    use super::super::{Add, Div, Mul, Operator, Sub};
    use super::{Broadcast, Named, broadcast_sizes, eval_f32, scalar_result};
    use crate::scalar::ScalarProgram;
    use crate::tensor::{Scalar, Tensor};
    use proptest::prelude::*;

    fn assert_program(op: &impl Operator, inputs: &[Tensor]) {
        let sizes = broadcast_sizes(&inputs.iter().map(Tensor::sizes).collect::<Vec<_>>()).unwrap();
        let found = eval_f32(op.mnemonic(), inputs, &sizes).expect("operands in f32");
        let mut p = ScalarProgram::new();
        let result = scalar_result(op, &mut p, inputs.iter().map(Tensor::elem));
        let at: Vec<Broadcast> = inputs.iter().map(|t| Broadcast::new(t.sizes(), &sizes)).collect();
        for (i, found) in found.values::<f32>().iter().enumerate() {
            let args: Vec<Scalar> = inputs.iter().zip(&at).map(|(t, at)| t.get(at.offset(i))).collect();
            let expected = p.eval(&args, result).to_f64() as f32;
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{args:?}: {found} {expected}");
        }
    }

    proptest! {
        /// All floats, denormal and infinite ones and NaN among them, in every way to broadcast.
        #[test]
        fn arithmetic_in_f32_has_the_bits_of_the_scalar_program(bits in prop::collection::vec(any::<u32>(), 18), one: bool, last: bool) {
            let t = |sizes: &[usize], from: usize| {
                Tensor::of(sizes, bits[from..][..sizes.iter().product()].iter().map(|&b| f32::from_bits(b)).collect())
            };
            let other: &[usize] = if one { &[] } else if last { &[3, 1] } else { &[4] };
            for inputs in [[t(&[3, 4], 0), t(other, 12)], [t(other, 12), t(&[3, 4], 0)], [t(&[3, 4], 0), t(&[3, 4], 6)]] {
                assert_program(&Add {}, &inputs);
                assert_program(&Sub {}, &inputs);
                assert_program(&Mul {}, &inputs);
                assert_program(&Div {}, &inputs);
            }
        }
    }
}
