//! Dense tensors in memory: constants of a graph, and the values of the interpreter.

use crate::types::{Elem, Type};
use bytes::Bytes;
use half::{bf16, f16};
use std::borrow::Cow;
use std::fmt;

/// A Rust type that is stored as the elements of a tensor.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The element type it stands for.
    const ELEM: Elem;
}

macro_rules! elements {
    ($($t:ty => $e:ident),* $(,)?) => { $(impl Element for $t { const ELEM: Elem = Elem::$e; })* };
}
elements!(i8 => I8, u8 => U8, i16 => I16, u16 => U16, i32 => I32, u32 => U32, i64 => I64, u64 => U64, f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64);

/// One element: exact for every element type.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Scalar {
    /// A floating-point number.
    Float(f64),
    /// An integer or a truth value (0 or 1).
    Int(i128),
}

impl Scalar {
    /// As a float; integers are rounded to the nearest.
    pub fn to_f64(self) -> f64 {
        match self {
            Scalar::Float(x) => x,
            Scalar::Int(n) => n as f64,
        }
    }

    /// As an integer; floats are truncated and saturate, NaN gives 0.
    pub fn to_i128(self) -> i128 {
        match self {
            Scalar::Float(x) => x as i128,
            Scalar::Int(n) => n,
        }
    }
}

/// A contiguous tensor of known sizes. Cloning shares the data.
#[derive(Clone)]
pub struct Tensor {
    elem: Elem,
    sizes: Vec<usize>,
    data: Bytes,
}

/// The bytes of a tensor do not fit its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{elem}{sizes:?} takes {expected} bytes, but {found} are given")]
pub struct SizeError {
    elem: Elem,
    sizes: Vec<usize>,
    expected: usize,
    found: usize,
}

impl Tensor {
    /// A tensor over `data`: little endian, row-major, 4-bit elements two to a byte.
    ///
    /// # Errors
    /// When the number of bytes is not what the sizes need.
    pub fn new(elem: Elem, sizes: Vec<usize>, data: Bytes) -> Result<Tensor, SizeError> {
        let n = sizes.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).unwrap_or(usize::MAX);
        let expected = elem.bytes(n);
        if expected != data.len() {
            return Err(SizeError { elem, sizes, expected, found: data.len() });
        }
        Ok(Tensor { elem, sizes, data })
    }

    /// A tensor of Rust numbers.
    ///
    /// # Panics
    /// When `values` has another length than the sizes need.
    pub fn of<T: Element>(sizes: &[usize], values: Vec<T>) -> Tensor {
        assert_eq!(values.len(), sizes.iter().product::<usize>(), "values for {sizes:?}");
        /// Numbers that lend their bytes.
        struct Numbers<T>(Vec<T>);
        impl<T: Element> AsRef<[u8]> for Numbers<T> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        Tensor { elem: T::ELEM, sizes: sizes.to_vec(), data: Bytes::from_owner(Numbers(values)) }
    }

    /// A tensor without axes.
    pub fn scalar(elem: Elem, value: Scalar) -> Tensor {
        Tensor::build(elem, &[], |_| value)
    }

    /// A tensor whose element at row-major position `i` is `at(i)`, converted to `elem`: floats
    /// rounded to the nearest, integers wrapped.
    pub fn build(elem: Elem, sizes: &[usize], mut at: impl FnMut(usize) -> Scalar) -> Tensor {
        let n = sizes.iter().product();
        let mut data = Vec::with_capacity(elem.bytes(n));
        for i in 0..n {
            push(elem, at(i), i, &mut data);
        }
        Tensor { elem, sizes: sizes.to_vec(), data: data.into() }
    }

    /// Element type.
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Sizes, outermost first.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.sizes.len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.sizes.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its type, all dimensions numbers.
    pub fn ty(&self) -> Type {
        Type::new(self.elem, self.sizes.iter().map(|&n| n.into()).collect())
    }

    /// The stored bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// The element at row-major position `i`.
    ///
    /// # Panics
    /// When `i` is not below [`Tensor::len`].
    pub fn get(&self, i: usize) -> Scalar {
        macro_rules! read {
            ($t:ty) => {{
                let n = size_of::<$t>();
                bytemuck::pod_read_unaligned::<$t>(&self.data[i * n..(i + 1) * n])
            }};
        }
        let nibble = || (self.data[i / 2] >> (4 * (i % 2))) & 15;
        match self.elem {
            Elem::Bool => Scalar::Int((self.data[i] != 0).into()),
            Elem::U4 => Scalar::Int(nibble().into()),
            Elem::I4 => Scalar::Int((((nibble() << 4) as i8) >> 4).into()),
            Elem::I8 => Scalar::Int(read!(i8).into()),
            Elem::U8 => Scalar::Int(self.data[i].into()),
            Elem::I16 => Scalar::Int(read!(i16).into()),
            Elem::U16 => Scalar::Int(read!(u16).into()),
            Elem::I32 => Scalar::Int(read!(i32).into()),
            Elem::U32 => Scalar::Int(read!(u32).into()),
            Elem::I64 => Scalar::Int(read!(i64).into()),
            Elem::U64 => Scalar::Int(read!(u64).into()),
            Elem::F16 => Scalar::Float(read!(f16).to_f64()),
            Elem::Bf16 => Scalar::Float(read!(bf16).to_f64()),
            Elem::F32 => Scalar::Float(read!(f32).into()),
            Elem::F64 => Scalar::Float(read!(f64)),
        }
    }

    /// All elements in row-major order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Scalar> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The elements as Rust numbers, borrowed where the alignment of the data allows.
    ///
    /// # Panics
    /// When `T` is not the element type; `u8` also reads `bool`.
    pub fn values<T: Element>(&self) -> Cow<'_, [T]> {
        let bool_as_u8 = self.elem == Elem::Bool && T::ELEM == Elem::U8;
        assert!(self.elem == T::ELEM || bool_as_u8, "{} read as {}", self.elem, T::ELEM);
        match bytemuck::try_cast_slice::<u8, T>(&self.data) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(&self.data)),
        }
    }

    /// All elements as floats.
    pub fn to_f64s(&self) -> Vec<f64> {
        self.iter().map(Scalar::to_f64).collect()
    }

    /// All elements as integers; `None` if the type is a float or a value leaves i64.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        if self.elem.is_float() {
            return None;
        }
        self.iter().map(|s| i64::try_from(s.to_i128()).ok()).collect()
    }

    /// The same data in another shape of the same number of elements.
    ///
    /// # Errors
    /// When the numbers of elements differ.
    pub fn reshaped(&self, sizes: &[usize]) -> Result<Tensor, SizeError> {
        Tensor::new(self.elem, sizes.to_vec(), self.data.clone())
    }

    /// A 128-bit hash of type, sizes and contents.
    pub fn content_hash(&self) -> u128 {
        let mut h = xxhash_rust::xxh3::Xxh3::new();
        h.update(self.elem.name().as_bytes());
        // The rank separates the sizes from the contents.
        h.update(&(self.sizes.len() as u64).to_le_bytes());
        for s in &self.sizes {
            h.update(&(*s as u64).to_le_bytes());
        }
        h.update(&self.data);
        h.digest128()
    }
}

/// `x` as f32, rounded so that rounding once more to a type of half the width gives what rounding `x`
/// itself gives: an inexact result is the neighbour with an odd mantissa.
fn round_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest) == x || x.is_nan() {
        return nearest;
    }
    let inwards = if f64::from(nearest).abs() > x.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest };
    f32::from_bits(inwards.to_bits() | 1)
}

/// Converts `value` to `elem` and back: the value that is stored.
pub fn round_to(elem: Elem, value: Scalar) -> Scalar {
    match elem {
        Elem::Bool => Scalar::Int(match value {
            Scalar::Float(x) => (x != 0.0).into(),
            Scalar::Int(n) => (n != 0).into(),
        }),
        Elem::F64 => Scalar::Float(value.to_f64()),
        Elem::F32 => Scalar::Float((value.to_f64() as f32).into()),
        Elem::F16 => Scalar::Float(f16::from_f32(round_to_odd(value.to_f64())).to_f64()),
        Elem::Bf16 => Scalar::Float(bf16::from_f32(round_to_odd(value.to_f64())).to_f64()),
        _ => {
            let bits = elem.bits();
            let n = match value {
                // A float outside of the range saturates, as Rust's `as` and Cranelift's `fcvt_to_sint_sat` do.
                Scalar::Float(x) => {
                    let (lo, hi) = elem.int_range().expect("an integer type");
                    (x as i128).clamp(lo, hi)
                }
                Scalar::Int(n) => n,
            };
            let low = n & ((1i128 << bits) - 1);
            let negative = elem.is_signed_int() && low >> (bits - 1) == 1;
            Scalar::Int(if negative { low - (1i128 << bits) } else { low })
        }
    }
}

fn push(elem: Elem, value: Scalar, i: usize, out: &mut Vec<u8>) {
    match (elem, round_to(elem, value)) {
        (Elem::F64, Scalar::Float(x)) => out.extend(x.to_le_bytes()),
        (Elem::F32, Scalar::Float(x)) => out.extend((x as f32).to_le_bytes()),
        (Elem::F16, Scalar::Float(x)) => out.extend(f16::from_f32(round_to_odd(x)).to_le_bytes()),
        (Elem::Bf16, Scalar::Float(x)) => out.extend(bf16::from_f32(round_to_odd(x)).to_le_bytes()),
        (Elem::I4 | Elem::U4, Scalar::Int(n)) => {
            let nibble = (n & 15) as u8;
            if i.is_multiple_of(2) {
                out.push(nibble);
            } else {
                *out.last_mut().expect("the low nibble came first") |= nibble << 4;
            }
        }
        (_, s) => out.extend_from_slice(&s.to_i128().to_le_bytes()[..elem.bits() as usize / 8]),
    }
}

impl PartialEq for Tensor {
    /// Bitwise equality: NaNs with the same bits are equal, 0 and -0 are not.
    fn eq(&self, other: &Tensor) -> bool {
        self.elem == other.elem && self.sizes == other.sizes && (self.data.as_ptr() == other.data.as_ptr() || self.data == other.data)
    }
}

impl Eq for Tensor {}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ty())?;
        f.debug_list().entries(self.iter().take(8).map(Scalar::to_f64)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_keep_their_order_and_sign() {
        let t = Tensor::build(Elem::I4, &[3], |i| Scalar::Int([-8, 7, -1][i]));
        assert_eq!(t.bytes().as_ref(), [0x78, 0x0f]);
        assert_eq!(t.to_i64s().unwrap(), [-8, 7, -1]);
    }

    #[test]
    fn integers_wrap_and_floats_saturate() {
        assert_eq!(round_to(Elem::I8, Scalar::Int(200)), Scalar::Int(-56));
        assert_eq!(round_to(Elem::U8, Scalar::Float(-3.0)), Scalar::Int(0));
        assert_eq!(round_to(Elem::I32, Scalar::Float(1e20)), Scalar::Int(i32::MAX.into()));
        assert_eq!(round_to(Elem::Bool, Scalar::Float(0.25)), Scalar::Int(1));
    }

    #[test]
    fn halves_are_rounded_once() {
        let round = |elem, x: f64| round_to(elem, Scalar::Float(x)).to_f64();
        // Just above the middle between 1 and the next bf16 (f16), by less than f32 can tell.
        assert_eq!(round(Elem::Bf16, 1.0 + 2f64.powi(-8) + 2f64.powi(-40)), 1.0 + 2f64.powi(-7));
        assert_eq!(round(Elem::F16, 1.0 + 2f64.powi(-11) + 2f64.powi(-40)), 1.0 + 2f64.powi(-10));
        assert_eq!(round(Elem::F16, 1.0 + 2f64.powi(-11)), 1.0);
        assert_eq!(round(Elem::F16, 65_519.99), 65_504.0);
        assert_eq!(round(Elem::F16, 1e300), f64::INFINITY);
    }

    #[test]
    fn sizes_and_contents_are_told_apart() {
        let (empty, zeros) = (Tensor::of(&[2, 0], Vec::<i32>::new()), Tensor::of(&[2], vec![0i32, 0]));
        assert_ne!(empty.content_hash(), zeros.content_hash());
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(Tensor::new(Elem::F32, vec![2, 2], Bytes::from_static(&[0; 15])).is_err());
        assert!(Tensor::new(Elem::F32, vec![usize::MAX, 8], Bytes::new()).is_err());
    }
}
