//! Scalar programs: what an elementwise operator does to one element, as a small expression DAG.
//!
//! An elementwise operator is defined once, by the program it builds. The interpreter evaluates the
//! program, and kernels inline it, so a new elementwise operator needs no code in any backend.

use crate::tensor::{Scalar, round_to};
use crate::types::Elem;
use cranelift_entity::{PrimaryMap, entity_impl};
use std::collections::BTreeMap;
use std::fmt;

/// A value in a scalar program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScalarId(u32);
entity_impl!(ScalarId, "s");

/// Primitive operations on scalars. Operands and result have one element type, unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Prim {
    /// `-x`; integers wrap.
    Neg,
    /// `|x|`; integers wrap.
    Abs,
    /// Square root (floats).
    Sqrt,
    /// `e^x` (floats).
    Exp,
    /// Natural logarithm (floats).
    Log,
    /// `e^x - 1` without cancellation near 0 (floats).
    Expm1,
    /// `log(1 + x)` without cancellation near 0 (floats).
    Log1p,
    /// Sine (floats).
    Sin,
    /// Cosine (floats).
    Cos,
    /// Tangent (floats).
    Tan,
    /// Arc sine (floats).
    Asin,
    /// Arc cosine (floats).
    Acos,
    /// Arc tangent (floats).
    Atan,
    /// Hyperbolic tangent (floats).
    Tanh,
    /// Error function (floats).
    Erf,
    /// Towards minus infinity (floats).
    Floor,
    /// Towards plus infinity (floats).
    Ceil,
    /// Towards zero (floats).
    Trunc,
    /// To the nearest, halves to even (floats).
    RoundEven,
    /// Bitwise complement; for `bool` the negation.
    Not,
    /// `x + y`; integers wrap.
    Add,
    /// `x - y`; integers wrap.
    Sub,
    /// `x * y`; integers wrap.
    Mul,
    /// `x / y`; integers truncate towards zero, and a zero divisor gives 0.
    Div,
    /// Remainder with the sign of the divisor; integers: a zero divisor gives 0.
    RemFloor,
    /// Remainder with the sign of the dividend; integers: a zero divisor gives 0.
    RemTrunc,
    /// `x ^ y`; integers: by repeated multiplication with wrapping, negative exponents give 0 (or ±1 for bases of ±1).
    Pow,
    /// The smaller one; a NaN wins.
    Min,
    /// The larger one; a NaN wins.
    Max,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// Left shift; shifting by the width or more gives 0.
    Shl,
    /// Logical right shift of unsigned integers; shifting by the width or more gives 0.
    Shr,
    /// `x == y`, a `bool`; false if one is NaN.
    Eq,
    /// `x < y`, a `bool`; false if one is NaN.
    Lt,
    /// `x <= y`, a `bool`; false if one is NaN.
    Le,
    /// `c ? x : y` with a `bool` first operand.
    Select,
    /// Conversion to the node's element type: integers wrap, floats to integers truncate and
    /// saturate (NaN gives 0), anything to `bool` is `x != 0`.
    Cast,
}

/// A node of a scalar program.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ScalarNode {
    /// The operator's `n`-th operand.
    Arg(u32),
    /// A float constant by the bits of its f64.
    Float(u64),
    /// An integer or `bool` constant.
    Int(i64),
    /// A primitive applied to earlier nodes.
    Prim(Prim, Vec<ScalarId>),
}

/// A scalar program under construction or finished. Equal nodes are shared.
#[derive(Clone, Debug, Default)]
pub struct ScalarProgram {
    nodes: PrimaryMap<ScalarId, (ScalarNode, Elem)>,
    known: BTreeMap<(ScalarNode, Elem), ScalarId>,
}

impl ScalarProgram {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    fn node(&mut self, node: ScalarNode, elem: Elem) -> ScalarId {
        let key = (node, elem);
        if let Some(&id) = self.known.get(&key) {
            return id;
        }
        let id = self.nodes.push(key.clone());
        self.known.insert(key, id);
        id
    }

    /// The operator's `n`-th operand, of type `elem`.
    pub fn arg(&mut self, n: usize, elem: Elem) -> ScalarId {
        self.node(ScalarNode::Arg(n as u32), elem)
    }

    /// A constant of type `elem`; for integer types `value` is truncated.
    pub fn constant(&mut self, value: f64, elem: Elem) -> ScalarId {
        if elem.is_float() { self.node(ScalarNode::Float(value.to_bits()), elem) } else { self.int(value as i64, elem) }
    }

    /// An integer constant of type `elem`.
    pub fn int(&mut self, value: i64, elem: Elem) -> ScalarId {
        if elem.is_float() {
            return self.constant(value as f64, elem);
        }
        self.node(ScalarNode::Int(value), elem)
    }

    /// Applies a primitive; its type follows from the operands.
    pub fn prim(&mut self, prim: Prim, args: &[ScalarId]) -> ScalarId {
        let elem = match prim {
            Prim::Eq | Prim::Lt | Prim::Le => Elem::Bool,
            Prim::Select => self.elem(args[1]),
            _ => self.elem(args[0]),
        };
        self.node(ScalarNode::Prim(prim, args.to_vec()), elem)
    }

    /// Applies a primitive to one operand.
    pub fn unary(&mut self, prim: Prim, x: ScalarId) -> ScalarId {
        self.prim(prim, &[x])
    }

    /// Applies a primitive to two operands.
    pub fn binary(&mut self, prim: Prim, x: ScalarId, y: ScalarId) -> ScalarId {
        self.prim(prim, &[x, y])
    }

    /// Applies a primitive to an operand and a constant of its type.
    pub fn with(&mut self, prim: Prim, x: ScalarId, value: f64) -> ScalarId {
        let y = self.constant(value, self.elem(x));
        self.prim(prim, &[x, y])
    }

    /// `c ? x : y`.
    pub fn select(&mut self, c: ScalarId, x: ScalarId, y: ScalarId) -> ScalarId {
        self.prim(Prim::Select, &[c, x, y])
    }

    /// Conversion to `elem`; none if it has that type already.
    pub fn cast(&mut self, x: ScalarId, elem: Elem) -> ScalarId {
        if self.elem(x) == elem { x } else { self.node(ScalarNode::Prim(Prim::Cast, vec![x]), elem) }
    }

    /// Element type of a node.
    pub fn elem(&self, id: ScalarId) -> Elem {
        self.nodes[id].1
    }

    /// The nodes in order: operands come first.
    pub fn nodes(&self) -> impl Iterator<Item = (ScalarId, &ScalarNode, Elem)> {
        self.nodes.iter().map(|(id, (n, e))| (id, n, *e))
    }

    /// Evaluates every node for given operands and returns the value of `result`. Each primitive
    /// is computed in f64 or i128 and rounded to its type; floats of 16 bits are rounded as such by conversions and in the
    /// end only, before as those of 32, as in kernels.
    pub fn eval(&self, args: &[Scalar], result: ScalarId) -> Scalar {
        let computed = |elem: Elem| if matches!(elem, Elem::F16 | Elem::Bf16) { Elem::F32 } else { elem };
        let mut values: Vec<Scalar> = Vec::with_capacity(self.nodes.len());
        for (_, node, elem) in self.nodes() {
            let value = match node {
                ScalarNode::Arg(n) => args[*n as usize],
                ScalarNode::Float(bits) => round_to(computed(elem), Scalar::Float(f64::from_bits(*bits))),
                ScalarNode::Int(n) => round_to(elem, Scalar::Int((*n).into())),
                ScalarNode::Prim(prim, ids) => {
                    let operands: Vec<Scalar> = ids.iter().map(|i| values[i.0 as usize]).collect();
                    let to = if *prim == Prim::Cast { elem } else { computed(elem) };
                    prim.eval(&operands, computed(self.elem(ids[0])), to)
                }
            };
            values.push(value);
        }
        round_to(self.elem(result), values[result.0 as usize])
    }
}

impl Prim {
    /// Applies it to values of type `operand`, giving one of type `result`.
    pub fn eval(self, args: &[Scalar], operand: Elem, result: Elem) -> Scalar {
        use Scalar::{Float, Int};
        let value = match (self, args) {
            (Prim::Select, [c, x, y]) => return if c.to_i128() != 0 { *x } else { *y },
            (Prim::Cast, [x]) => *x,
            (_, [Float(x)]) => Float(self.float1(*x)),
            (_, [Int(x)]) => Int(match self {
                Prim::Neg => -*x,
                Prim::Abs => x.abs(),
                Prim::Not if operand == Elem::Bool => 1 - *x,
                Prim::Not => !*x,
                _ => unreachable!("{self:?} of an integer"),
            }),
            (_, [Float(x), Float(y)]) => match self {
                Prim::Eq => Int((x == y).into()),
                Prim::Lt => Int((x < y).into()),
                Prim::Le => Int((x <= y).into()),
                _ => Float(self.float2(*x, *y)),
            },
            (_, [Int(x), Int(y)]) => Int(self.int2(*x, *y, operand)),
            _ => unreachable!("{self:?} of {args:?}"),
        };
        round_to(result, value)
    }

    fn float1(self, x: f64) -> f64 {
        match self {
            Prim::Neg => -x,
            Prim::Abs => x.abs(),
            Prim::Sqrt => x.sqrt(),
            Prim::Exp => libm::exp(x),
            Prim::Log => libm::log(x),
            Prim::Expm1 => libm::expm1(x),
            Prim::Log1p => libm::log1p(x),
            Prim::Sin => libm::sin(x),
            Prim::Cos => libm::cos(x),
            Prim::Tan => libm::tan(x),
            Prim::Asin => libm::asin(x),
            Prim::Acos => libm::acos(x),
            Prim::Atan => libm::atan(x),
            Prim::Tanh => libm::tanh(x),
            Prim::Erf => libm::erf(x),
            Prim::Floor => x.floor(),
            Prim::Ceil => x.ceil(),
            Prim::Trunc => x.trunc(),
            Prim::RoundEven => x.round_ties_even(),
            _ => unreachable!("{self:?} of a float"),
        }
    }

    fn float2(self, x: f64, y: f64) -> f64 {
        match self {
            Prim::Add => x + y,
            Prim::Sub => x - y,
            Prim::Mul => x * y,
            Prim::Div => x / y,
            Prim::RemTrunc => x % y,
            Prim::RemFloor => {
                let r = x % y;
                if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
            }
            Prim::Pow => libm::pow(x, y),
            Prim::Min | Prim::Max if x.is_nan() || y.is_nan() => f64::NAN,
            Prim::Min => x.min(y),
            Prim::Max => x.max(y),
            _ => unreachable!("{self:?} of floats"),
        }
    }

    fn int2(self, x: i128, y: i128, elem: Elem) -> i128 {
        match self {
            Prim::Eq => (x == y).into(),
            Prim::Lt => (x < y).into(),
            Prim::Le => (x <= y).into(),
            Prim::Add => x + y,
            Prim::Sub => x - y,
            Prim::Mul => x.wrapping_mul(y),
            Prim::Div | Prim::RemFloor | Prim::RemTrunc if y == 0 => 0,
            Prim::Div => x / y,
            Prim::RemTrunc => x % y,
            Prim::RemFloor => {
                let r = x % y;
                if r != 0 && (r < 0) != (y < 0) { r + y } else { r }
            }
            Prim::Pow => int_pow(x, y, elem),
            Prim::Min => x.min(y),
            Prim::Max => x.max(y),
            Prim::And => x & y,
            Prim::Or => x | y,
            Prim::Xor => x ^ y,
            Prim::Shl | Prim::Shr if !(0..i128::from(elem.bits())).contains(&y) => 0,
            Prim::Shl => x << y,
            Prim::Shr => x >> y,
            _ => unreachable!("{self:?} of integers"),
        }
    }
}

fn int_pow(x: i128, y: i128, elem: Elem) -> i128 {
    let as_int = |s| match s {
        Scalar::Int(n) => n,
        Scalar::Float(_) => unreachable!("integers stay integers"),
    };
    if y < 0 {
        return match x {
            1 => 1,
            -1 => {
                if y % 2 == 0 {
                    1
                } else {
                    -1
                }
            }
            _ => 0,
        };
    }
    let (mut base, mut e, mut p) = (x, y, 1i128);
    while e > 0 {
        if e & 1 == 1 {
            p = as_int(round_to(elem, Scalar::Int(p.wrapping_mul(base))));
        }
        base = as_int(round_to(elem, Scalar::Int(base.wrapping_mul(base))));
        e >>= 1;
    }
    p
}

impl fmt::Display for Prim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_have_the_documented_signs() {
        let rem = |p: Prim, x: i128, y: i128| p.eval(&[Scalar::Int(x), Scalar::Int(y)], Elem::I32, Elem::I32).to_i128();
        for (x, y) in [(7, 3), (-7, 3), (7, -3), (-7, -3), (6, 3), (-6, -3), (5, 0)] {
            let floor = if y == 0 { 0 } else { x - y * (x as f64 / y as f64).floor() as i128 };
            assert_eq!(rem(Prim::RemFloor, x, y), floor, "{x} {y}");
            assert_eq!(rem(Prim::RemTrunc, x, y), if y == 0 { 0 } else { x % y }, "{x} {y}");
        }
    }

    #[test]
    fn equal_nodes_are_shared() {
        let mut p = ScalarProgram::new();
        let x = p.arg(0, Elem::F32);
        let a = p.with(Prim::Mul, x, 0.5);
        let b = p.with(Prim::Mul, x, 0.5);
        assert_eq!(a, b);
        assert_eq!(p.eval(&[Scalar::Float(3.0)], a), Scalar::Float(1.5));
    }

    #[test]
    fn halves_are_rounded_in_the_end() {
        for elem in [Elem::F16, Elem::Bf16] {
            let mut p = ScalarProgram::new();
            let x = p.arg(0, elem);
            let more = p.with(Prim::Add, x, 1.0 / 1024.0);
            let rest = p.binary(Prim::Sub, more, x);
            assert_eq!(p.eval(&[Scalar::Float(256.0)], rest), Scalar::Float(1.0 / 1024.0));
            assert_eq!(p.eval(&[Scalar::Float(256.0)], more), Scalar::Float(256.0));
            // A conversion rounds.
            let wide = p.cast(more, Elem::F32);
            let narrow = p.cast(wide, elem);
            let rest = p.binary(Prim::Sub, narrow, x);
            assert_eq!(p.eval(&[Scalar::Float(256.0)], rest), Scalar::Float(0.0));
        }
    }
}
