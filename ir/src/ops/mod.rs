//! The operators: a closed list, one file each.
//!
//! A file holds the operator's documentation with its numbered constraints, its attributes, type
//! inference, reference evaluation, its decomposition into simpler operators, and the facts that
//! generic rules ask for. Everything else (printing, parsing, hashing, the e-graph encoding) derives
//! from the list at the end of this module. To add an operator, write its file and add its line.

use crate::attr::AttrValue;
use crate::dim::{Bindings, Dim, SymbolTable};
use crate::graph::{Graph, Loc, Value};
use crate::scalar::{ScalarId, ScalarProgram};
use crate::tensor::Tensor;
use crate::types::{Shape, Type};
use std::fmt;
use std::ops::RangeInclusive;

mod spatial;
pub mod support;
#[cfg(test)]
mod testing;

/// What type inference knows besides the operand types, and where it notes what must hold at run time.
pub struct InferCx<'a> {
    symbols: &'a SymbolTable,
    checks: Vec<(Dim, Dim)>,
}

impl<'a> InferCx<'a> {
    /// A context over the symbols of a graph.
    pub fn new(symbols: &'a SymbolTable) -> Self {
        InferCx { symbols, checks: vec![] }
    }

    /// The symbols and their ranges.
    pub fn symbols(&self) -> &SymbolTable {
        self.symbols
    }

    /// The equalities that were assumed.
    pub fn into_checks(self) -> Vec<(Dim, Dim)> {
        self.checks
    }

    /// Demands that two sizes be equal and returns the simpler one. What cannot be decided now is
    /// checked at run time.
    ///
    /// # Errors
    /// When they can never be equal; `what` names them in the message.
    pub fn equal(&mut self, a: &Dim, b: &Dim, what: &str) -> Result<Dim, InferError> {
        match a.same(b, self.symbols) {
            Some(true) => {}
            Some(false) => return Err(InferError::new(format!("{what}: {a} and {b} differ"))),
            None => {
                let pair = (a.clone(), b.clone());
                if !self.checks.contains(&pair) {
                    self.checks.push(pair);
                }
            }
        }
        Ok(if b.as_const().is_some() { b.clone() } else { a.clone() })
    }

    /// The common shape of operands under NumPy's broadcasting. Sizes that are neither provably 1
    /// nor provably equal are taken to be equal and checked at run time.
    ///
    /// # Errors
    /// When two sizes can never be equal and none is 1.
    pub fn broadcast(&mut self, shapes: &[&Shape]) -> Result<Shape, InferError> {
        let rank = shapes.iter().map(|s| s.rank()).max().unwrap_or(0);
        let mut out = Vec::with_capacity(rank);
        for i in 0..rank {
            let mut size = Dim::from(1);
            for s in shapes {
                let Some(at) = (i + s.rank()).checked_sub(rank) else {
                    continue;
                };
                let d = &s[at];
                if size.is(1) {
                    size = d.clone();
                } else if !d.is(1) {
                    let what = format!("axis {i} of {} does not broadcast", join(shapes, " with "));
                    size = self.equal(&size, d, &what)?;
                }
            }
            out.push(size);
        }
        Ok(Shape(out))
    }
}

fn join(items: &[impl fmt::Display], with: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(with)
}

/// Operands do not satisfy an operator: the message names the constraint and both sides.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct InferError(String);

impl InferError {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        InferError(message.into())
    }
}

/// Fails type inference with a message unless a condition holds.
#[macro_export]
macro_rules! require {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::ops::InferError::new(format!($($message)+)));
        }
    };
}

/// Evaluation met something that only run-time values decide, such as an index out of range.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}{}", if *.loc == Loc::default() { String::new() } else { format!(" (at {loc})") })]
pub struct EvalError {
    message: String,
    loc: Loc,
}

impl EvalError {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        EvalError { message: message.into(), loc: Loc::default() }
    }

    /// The same error with the place, unless it has one.
    pub fn at(mut self, loc: &Loc) -> Self {
        if self.loc == Loc::default() {
            self.loc = loc.clone();
        }
        self
    }
}

/// What generic rules ask of an operator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traits {
    /// The operator applies [`Operator::scalar`] to every element of its broadcast operands.
    pub elementwise: bool,
    /// The first `moved` operands' elements reach the result unchanged: only their places change.
    /// Operands after them decide places (indices). 0 when elements are computed.
    pub moved: usize,
    /// The result is the operand's elements in the same row-major order, under another shape.
    pub reshapes: bool,
    /// Swapping the two operands changes nothing.
    pub commutative: bool,
}

impl Traits {
    /// An elementwise operator.
    pub const ELEMENTWISE: Traits = Traits { elementwise: true, moved: 0, reshapes: false, commutative: false };
    /// An elementwise operator of two interchangeable operands.
    pub const COMMUTATIVE: Traits = Traits { commutative: true, ..Traits::ELEMENTWISE };
    /// An operator that moves the elements of its first operand.
    pub const MOVES: Traits = Traits { elementwise: false, moved: 1, reshapes: false, commutative: false };
    /// An operator that gives its operand another shape.
    pub const RESHAPES: Traits = Traits { reshapes: true, ..Traits::MOVES };
}

/// How an operand is mapped in place of the result: see [`Operator::ways`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapped {
    /// `x / s`
    Scaled,
    /// `(x - z) / s`
    Affine,
    /// `(x + z) / s`
    Mirrored,
}

/// The operands that are mapped in place of the result, each with how; the others stay as they are.
pub type Way = &'static [(usize, Mapped)];

/// What [`operator!`](crate::operator) generates: name, arity and attributes.
pub trait Attributes: Sized {
    /// Name in the text form.
    const MNEMONIC: &'static str;
    /// How many operands it takes.
    const ARITY: RangeInclusive<usize>;

    /// The attributes by name, in the order of declaration.
    fn attributes(&self) -> Vec<(&'static str, AttrValue)>;

    /// The operator with the given attributes.
    ///
    /// # Errors
    /// When one is missing, unknown, or not of its type.
    fn from_attributes(attributes: &[(String, AttrValue)]) -> Result<Self, InferError>;
}

/// What an operator's file implements.
pub trait Operator: Attributes {
    /// Types of the results.
    ///
    /// # Errors
    /// When the operands break a constraint.
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError>;

    /// Values of the results, written for reading: the definition that everything is compared with.
    /// `bindings` gives the symbols of dimension attributes their values.
    ///
    /// # Errors
    /// What only run-time values can decide, such as an index out of range.
    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError>;

    /// For elementwise operators: appends what happens to one element. `args` have the operand types.
    fn scalar(&self, program: &mut ScalarProgram, args: &[ScalarId]) -> Option<ScalarId> {
        let _ = (program, args);
        None
    }

    /// The same function in simpler operators, appended to `graph`; `None` for operators that the
    /// backends have kernels for. Decompositions end in elementwise operators, `reduce`, `matmul`,
    /// `attention`, and operators that move data.
    ///
    /// # Errors
    /// Only when the decomposition itself is wrong for types that inference accepted.
    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        let _ = (graph, inputs, loc);
        None
    }

    /// What generic rules ask.
    fn traits(&self) -> Traits {
        Traits::default()
    }

    /// The ways to map operands in place of the result, none unless an operator says otherwise: for floats and numbers `s > 0`
    /// and `z`, `(f(x, …) - z) / s = f(x', …)` over the reals, where [`Mapped`] says what `x'` is. A way that leaves `z` out, since
    /// it only scales, holds for `z = 0`. `s` and `z` may differ between elements of the result, as long as no element of
    /// an operand that is mapped meets several of them. An operand that may be absent counts as zeros.
    fn ways(&self) -> &'static [Way] {
        &[]
    }
}

/// Declares an operator: its struct with attributes, its name in the text form, and its arity.
#[macro_export]
macro_rules! operator {
    ($(#[$doc:meta])* pub struct $name:ident($mnemonic:literal, $arity:expr) { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        impl $crate::ops::Attributes for $name {
            const MNEMONIC: &'static str = $mnemonic;
            const ARITY: std::ops::RangeInclusive<usize> = $arity;

            fn attributes(&self) -> Vec<(&'static str, $crate::attr::AttrValue)> {
                vec![$((stringify!($field), $crate::attr::Attr::to_value(&self.$field)),)*]
            }

            fn from_attributes(attributes: &[(String, $crate::attr::AttrValue)]) -> Result<Self, $crate::ops::InferError> {
                let known: &[&str] = &[$(stringify!($field)),*];
                $crate::ops::check_attribute_names($mnemonic, known, attributes)?;
                Ok($name { $($field: $crate::ops::attribute($mnemonic, stringify!($field), attributes)?,)* })
            }
        }
    };
}

/// Refuses attributes that the operator does not have, or has twice.
#[doc(hidden)]
pub fn check_attribute_names(mnemonic: &str, known: &[&str], given: &[(String, AttrValue)]) -> Result<(), InferError> {
    for (i, (name, _)) in given.iter().enumerate() {
        require!(known.contains(&name.as_str()), "{mnemonic} has no attribute {name}; it has: {}", known.join(", "));
        require!(given[..i].iter().all(|(n, _)| n != name), "attribute {name} of {mnemonic} is given twice");
    }
    Ok(())
}

/// Reads one attribute.
#[doc(hidden)]
pub fn attribute<T: crate::attr::Attr>(mnemonic: &str, name: &str, given: &[(String, AttrValue)]) -> Result<T, InferError> {
    let Some((_, v)) = given.iter().find(|(n, _)| n == name) else {
        return T::absent().ok_or_else(|| InferError::new(format!("{mnemonic} needs the attribute {name}")));
    };
    T::from_value(v).map_err(|expected| InferError::new(format!("attribute {name} of {mnemonic} must be {expected}")))
}

macro_rules! operators {
    ($($module:ident :: $name:ident,)*) => {
        $(pub mod $module; pub use $module::$name;)*

        /// An operator with its attributes.
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Op { $(#[doc = concat!("See [`", stringify!($name), "`].")] $name($name),)* }

        $(impl From<$name> for Op {
            fn from(op: $name) -> Op {
                Op::$name(op)
            }
        })*

        impl Op {
            /// Names of all operators in the order of the list.
            pub const MNEMONICS: &'static [&'static str] = &[$(<$name as Attributes>::MNEMONIC),*];

            /// Name in the text form.
            pub fn mnemonic(&self) -> &'static str {
                match self { $(Op::$name(_) => <$name as Attributes>::MNEMONIC,)* }
            }

            /// How many operands it takes.
            pub fn arity(&self) -> RangeInclusive<usize> {
                match self { $(Op::$name(_) => <$name as Attributes>::ARITY,)* }
            }

            /// The attributes by name, in the order of declaration.
            pub fn attributes(&self) -> Vec<(&'static str, AttrValue)> {
                match self { $(Op::$name(op) => op.attributes(),)* }
            }

            /// The operator called `mnemonic` with the given attributes.
            ///
            /// # Errors
            /// When there is no such operator, or its attributes are not these.
            pub fn from_attributes(mnemonic: &str, attributes: &[(String, AttrValue)]) -> Result<Op, InferError> {
                match mnemonic {
                    $(<$name as Attributes>::MNEMONIC => <$name as Attributes>::from_attributes(attributes).map(Op::$name),)*
                    _ => Err(InferError::new(format!("there is no operator called {mnemonic}"))),
                }
            }

            /// See [`Operator::infer`]; the number of operands is checked first.
            ///
            /// # Errors
            /// When the operands break a constraint.
            pub fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
                let arity = self.arity();
                require!(arity.contains(&inputs.len()), "{} takes {} operands, not {}", self.mnemonic(), arity_text(&arity), inputs.len());
                let types = match self { $(Op::$name(op) => op.infer(cx, inputs),)* }?;
                for t in &types {
                    support::check_size(t)?;
                }
                Ok(types)
            }

            /// See [`Operator::eval`].
            ///
            /// # Errors
            /// What only run-time values can decide.
            pub fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
                match self { $(Op::$name(op) => op.eval(bindings, inputs),)* }
            }

            /// See [`Operator::scalar`].
            pub fn scalar(&self, program: &mut ScalarProgram, args: &[ScalarId]) -> Option<ScalarId> {
                match self { $(Op::$name(op) => op.scalar(program, args),)* }
            }

            /// See [`Operator::lower`].
            pub fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
                match self { $(Op::$name(op) => op.lower(graph, inputs, loc),)* }
            }

            /// See [`Operator::traits`].
            pub fn traits(&self) -> Traits {
                match self { $(Op::$name(op) => op.traits(),)* }
            }

            /// See [`Operator::ways`].
            pub fn ways(&self) -> &'static [Way] {
                match self { $(Op::$name(op) => op.ways(),)* }
            }
        }
    };
}

fn arity_text(arity: &RangeInclusive<usize>) -> String {
    match (arity.start(), arity.end()) {
        (a, b) if a == b => a.to_string(),
        (a, &usize::MAX) => format!("{a} or more"),
        (a, b) => format!("{a} to {b}"),
    }
}

operators! {
    abs::Abs,
    acos::Acos,
    add::Add,
    and::And,
    arg_reduce::ArgReduce,
    asin::Asin,
    atan::Atan,
    attention::Attention,
    cast::Cast,
    ceil::Ceil,
    concat::Concat,
    conv::Conv,
    cos::Cos,
    cum_sum::CumSum,
    dequantize::Dequantize,
    dims::Dims,
    div::Div,
    eq::Eq,
    erf::Erf,
    exp::Exp,
    expand::Expand,
    expm1::Expm1,
    floor::Floor,
    fused::Fused,
    gather::Gather,
    gather_elements::GatherElements,
    gather_nd::GatherNd,
    gelu::Gelu,
    group_norm::GroupNorm,
    iota::Iota,
    is_nan::IsNan,
    layer_norm::LayerNorm,
    le::Le,
    log::Log,
    log1p::Log1p,
    lt::Lt,
    matmul::Matmul,
    max::Max,
    min::Min,
    mul::Mul,
    neg::Neg,
    not::Not,
    or::Or,
    pad::Pad,
    pool::Pool,
    pow::Pow,
    quantize::Quantize,
    quantize_rows::QuantizeRows,
    quantize_static::QuantizeStatic,
    quantized_attention::QuantizedAttention,
    quantized_matmul::QuantizedMatmul,
    reciprocal::Reciprocal,
    reduce::Reduce,
    relu::Relu,
    rem_floor::RemFloor,
    rem_trunc::RemTrunc,
    reshape::Reshape,
    rms_norm::RmsNorm,
    rotary::Rotary,
    round::Round,
    rsqrt::Rsqrt,
    scatter_elements::ScatterElements,
    scatter_nd::ScatterNd,
    select::Select,
    shl::Shl,
    shr::Shr,
    sigmoid::Sigmoid,
    silu::Silu,
    sin::Sin,
    slice::Slice,
    softmax::Softmax,
    softplus::Softplus,
    sqrt::Sqrt,
    sub::Sub,
    tan::Tan,
    tanh::Tanh,
    top_k::TopK,
    transpose::Transpose,
    window::Window,
    xor::Xor,
}

#[cfg(test)]
mod tests {
    use super::testing::{eval, tensor};
    use super::*;
    use crate::tensor::Scalar;
    use crate::types::Elem;
    use proptest::prelude::*;

    /// Operators that have ways, with sizes of operands.
    fn operators() -> Vec<(Op, Vec<Vec<usize>>)> {
        let (matrix, vector) = (vec![3, 4], vec![4]);
        let both = vec![matrix.clone(), vector.clone()];
        let dims = |sizes: &[usize]| sizes.iter().map(|&n| Dim::from(n)).collect::<Vec<_>>();
        let (before, after) = (dims(&[0, 1]), dims(&[2, 0]));
        let epsilon = crate::attr::Float::from(1e-3);
        let heads = |h: usize, n: usize| vec![2, h, n, 3];
        vec![
            (Add {}.into(), both.clone()),
            (Sub {}.into(), both.clone()),
            (Mul {}.into(), both.clone()),
            (Div {}.into(), both.clone()),
            (Max {}.into(), both.clone()),
            (Min {}.into(), both.clone()),
            (Neg {}.into(), vec![matrix.clone()]),
            (Relu {}.into(), vec![matrix.clone()]),
            (Cast { to: Elem::F32 }.into(), vec![matrix.clone()]),
            (Reshape { shape: Shape(dims(&[2, 6])) }.into(), vec![matrix.clone()]),
            (Transpose { perm: vec![1, 0] }.into(), vec![matrix.clone()]),
            (Expand { shape: Shape(dims(&[2, 4])) }.into(), vec![vector.clone()]),
            (Slice { starts: dims(&[1, 3]), steps: vec![1, -1], lens: Shape(dims(&[2, 3])) }.into(), vec![matrix.clone()]),
            (Window { kernel: vec![2], strides: vec![1], dilations: vec![1] }.into(), vec![matrix.clone()]),
            (Pad { mode: pad::PadMode::Constant, before: before.clone(), after: after.clone() }.into(), vec![matrix.clone(), vec![]]),
            (Pad { mode: pad::PadMode::Edge, before, after }.into(), vec![matrix.clone()]),
            (Matmul {}.into(), vec![matrix.clone(), vec![4, 5]]),
            (LayerNorm { axes: 1, epsilon }.into(), vec![matrix.clone(), vector.clone(), vec![1]]),
            (RmsNorm { axes: 1, epsilon }.into(), vec![matrix, vector]),
            (
                Attention { scale: crate::attr::Float::from(0.5), causal: true, mask_value: None }.into(),
                vec![heads(4, 3), heads(2, 5), heads(2, 5), vec![5]],
            ),
        ]
    }

    proptest! {
        /// The identity of every way, with the same numbers for all elements.
        #[test]
        fn ways_map_the_result(seed: u64, s in 0.25f64..4.0, shift in -2.0f64..2.0) {
            for (op, sizes) in operators() {
                let inputs: Vec<Tensor> = sizes.iter().zip(1u64..).map(|(sizes, i)| tensor(Elem::F64, sizes, seed ^ i)).collect();
                prop_assert!(!op.ways().is_empty(), "{op:?}");
                for way in op.ways() {
                    let z = if way.iter().any(|(_, mapped)| *mapped != Mapped::Scaled) { shift } else { 0.0 };
                    let map = |t: &Tensor, z: f64| Tensor::build(t.elem(), t.sizes(), |i| Scalar::Float((t.get(i).to_f64() - z) / s));
                    let mut operands = inputs.clone();
                    for &(i, mapped) in *way {
                        let z = match mapped {
                            Mapped::Scaled => 0.0,
                            Mapped::Affine => z,
                            Mapped::Mirrored => -z,
                        };
                        operands[i] = map(&operands[i], z);
                    }
                    let (found, expected) = (eval(op.clone(), &operands), map(&eval(op.clone(), &inputs), z));
                    let tolerance = if found.elem() == Elem::F32 { 1e-5 } else { 1e-12 };
                    for (f, e) in found.to_f64s().into_iter().zip(expected.to_f64s()) {
                        let close = f == e || (f - e).abs() <= tolerance * e.abs().max(1.0);
                        prop_assert!(close || f.is_nan() && e.is_nan(), "{op:?}: {f} {e}");
                    }
                }
            }
        }
    }

    #[test]
    fn select_maps_both_choices() {
        assert_eq!(Select {}.ways(), [[(1, Mapped::Affine), (2, Mapped::Affine)]]);
        assert!(Gelu { tanh: false }.ways().is_empty() && Silu {}.ways().is_empty() && Tanh {}.ways().is_empty());
    }
}
