//! Types of values: an element type and a shape of symbolic dimensions, with a quantization scheme
//! where the elements are quantized.

use crate::dim::{Bindings, Dim, SymbolTable};
use crate::quant::Scheme;
use std::fmt;

/// Element type of a tensor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Elem {
    /// One byte, 0 or 1.
    Bool,
    /// Signed 4 bits, two to a byte, the low nibble first.
    I4,
    /// Unsigned 4 bits, two to a byte, the low nibble first.
    U4,
    /// Signed 8 bits.
    I8,
    /// Unsigned 8 bits.
    U8,
    /// Signed 16 bits.
    I16,
    /// Unsigned 16 bits.
    U16,
    /// Signed 32 bits.
    I32,
    /// Unsigned 32 bits.
    U32,
    /// Signed 64 bits.
    I64,
    /// Unsigned 64 bits.
    U64,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl Elem {
    /// Every element type with its name in the text form.
    pub const ALL: [(Elem, &'static str); 15] = [
        (Elem::Bool, "bool"),
        (Elem::I4, "i4"),
        (Elem::U4, "u4"),
        (Elem::I8, "i8"),
        (Elem::U8, "u8"),
        (Elem::I16, "i16"),
        (Elem::U16, "u16"),
        (Elem::I32, "i32"),
        (Elem::U32, "u32"),
        (Elem::I64, "i64"),
        (Elem::U64, "u64"),
        (Elem::F16, "f16"),
        (Elem::Bf16, "bf16"),
        (Elem::F32, "f32"),
        (Elem::F64, "f64"),
    ];

    /// Its name in the text form.
    pub fn name(self) -> &'static str {
        Elem::ALL.iter().find(|(e, _)| *e == self).expect("listed").1
    }

    /// The element type called `name`.
    pub fn from_name(name: &str) -> Option<Elem> {
        Elem::ALL.iter().find(|(_, n)| *n == name).map(|(e, _)| *e)
    }

    /// Bits of one element.
    pub fn bits(self) -> u32 {
        match self {
            Elem::I4 | Elem::U4 => 4,
            Elem::Bool | Elem::I8 | Elem::U8 => 8,
            Elem::I16 | Elem::U16 | Elem::F16 | Elem::Bf16 => 16,
            Elem::I32 | Elem::U32 | Elem::F32 => 32,
            Elem::I64 | Elem::U64 | Elem::F64 => 64,
        }
    }

    /// Bytes that `n` elements take.
    pub fn bytes(self, n: usize) -> usize {
        n.saturating_mul(self.bits() as usize).div_ceil(8)
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Elem::F16 | Elem::Bf16 | Elem::F32 | Elem::F64)
    }

    /// Whether it is an integer type (`bool` is not).
    pub fn is_int(self) -> bool {
        !self.is_float() && self != Elem::Bool
    }

    /// Whether it is an integer type with a sign.
    pub fn is_signed_int(self) -> bool {
        matches!(self, Elem::I4 | Elem::I8 | Elem::I16 | Elem::I32 | Elem::I64)
    }

    /// Smallest and largest value of an integer type or `bool`; `None` for floats.
    pub fn int_range(self) -> Option<(i128, i128)> {
        let bits = self.bits();
        match self {
            Elem::Bool => Some((0, 1)),
            e if e.is_float() => None,
            e if e.is_signed_int() => Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)),
            _ => Some((0, (1i128 << bits) - 1)),
        }
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The sizes of a tensor along its axes, outermost first. A scalar has none.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// A shape of known sizes.
    pub fn fixed(sizes: &[i64]) -> Shape {
        Shape(sizes.iter().map(|&n| Dim::from(n)).collect())
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements.
    pub fn elements(&self) -> Dim {
        self.0.iter().cloned().product()
    }

    /// Whether no size is larger than `limit` ([`Dim::size`]) and the number of elements, multiplied out, has no more than
    /// [`MAX_TERMS`](crate::verify::MAX_TERMS) terms.
    pub fn has_few_terms(&self, limit: usize) -> bool {
        self.0.iter().all(|d| d.size() <= limit) && crate::verify::terms_of_product(self.0.iter()) <= crate::verify::MAX_TERMS
    }

    /// The sizes, if all of them are numbers.
    pub fn as_fixed(&self) -> Option<Vec<usize>> {
        self.0.iter().map(|d| d.as_const().and_then(|n| usize::try_from(n).ok())).collect()
    }

    /// The sizes at given values of the symbols; `None` when one has no value or is negative.
    pub fn eval(&self, bindings: &Bindings) -> Option<Vec<usize>> {
        self.0.iter().map(|d| d.eval(bindings).and_then(|n| usize::try_from(n).ok())).collect()
    }

    /// Every dimension simplified by the ranges of the symbols.
    pub fn simplify(&self, symbols: &SymbolTable) -> Shape {
        Shape(self.0.iter().map(|d| d.simplify(symbols)).collect())
    }

    /// The axis that a possibly negative ONNX-style axis names.
    pub fn axis(&self, axis: i64) -> Option<usize> {
        let rank = self.rank() as i64;
        let a = if axis < 0 { axis + rank } else { axis };
        (0..rank).contains(&a).then_some(a as usize)
    }

    /// Strides, in elements, of the contiguous layout.
    pub fn strides(&self) -> Vec<Dim> {
        let mut strides = vec![Dim::from(1); self.rank()];
        for i in (1..self.rank()).rev() {
            strides[i - 1] = strides[i].clone() * self.0[i].clone();
        }
        strides
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

impl std::ops::Index<usize> for Shape {
    type Output = Dim;
    fn index(&self, i: usize) -> &Dim {
        &self.0[i]
    }
}

impl FromIterator<Dim> for Shape {
    fn from_iter<I: IntoIterator<Item = Dim>>(iter: I) -> Shape {
        Shape(iter.into_iter().collect())
    }
}

/// The type of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Type {
    /// Element type; the storage type where `quant` is set.
    pub elem: Elem,
    /// Sizes.
    pub shape: Shape,
    /// How the elements stand for real numbers, if they are quantized.
    pub quant: Option<Scheme>,
}

impl Type {
    /// A tensor type without quantization.
    pub fn new(elem: Elem, shape: Shape) -> Type {
        Type { elem, shape, quant: None }
    }

    /// A tensor type of known sizes.
    pub fn fixed(elem: Elem, sizes: &[i64]) -> Type {
        Type::new(elem, Shape::fixed(sizes))
    }

    /// The same shape with other elements.
    pub fn with_elem(&self, elem: Elem) -> Type {
        Type::new(elem, self.shape.clone())
    }

    /// The same elements in another shape.
    pub fn with_shape(&self, shape: Shape) -> Type {
        Type { elem: self.elem, shape, quant: self.quant }
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.elem, self.shape)?;
        match &self.quant {
            Some(q) => write!(f, " quant<{q}>"),
            None => Ok(()),
        }
    }
}
