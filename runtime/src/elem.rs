//! Element types of the inputs and outputs of a model.

use std::fmt;

/// Element type of a tensor that a program hands to a model or gets from it.
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
    /// Every element type with its name in manifests and its bits.
    pub const ALL: [(Elem, &'static str, usize); 15] = [
        (Elem::Bool, "bool", 8),
        (Elem::I4, "i4", 4),
        (Elem::U4, "u4", 4),
        (Elem::I8, "i8", 8),
        (Elem::U8, "u8", 8),
        (Elem::I16, "i16", 16),
        (Elem::U16, "u16", 16),
        (Elem::I32, "i32", 32),
        (Elem::U32, "u32", 32),
        (Elem::I64, "i64", 64),
        (Elem::U64, "u64", 64),
        (Elem::F16, "f16", 16),
        (Elem::Bf16, "bf16", 16),
        (Elem::F32, "f32", 32),
        (Elem::F64, "f64", 64),
    ];

    /// Its name in manifests.
    pub fn name(self) -> &'static str {
        Elem::ALL[self as usize].1
    }

    /// The element type called `name`.
    pub fn from_name(name: &str) -> Option<Elem> {
        Elem::ALL.iter().find(|(_, n, _)| *n == name).map(|(e, ..)| *e)
    }

    /// Bits of one element.
    pub fn bits(self) -> usize {
        Elem::ALL[self as usize].2
    }

    /// Bytes of `count` elements, rounded up; `None` when that leaves `usize`.
    pub fn bytes(self, count: usize) -> Option<usize> {
        Some(count.checked_mul(self.bits())?.div_ceil(8))
    }

    /// The alignment in bytes that a buffer of such elements must have.
    pub fn align(self) -> usize {
        self.bits().div_ceil(8)
    }
}

impl fmt::Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, (e, name, _)) in Elem::ALL.iter().enumerate() {
            assert_eq!(*e as usize, i);
            assert_eq!(Elem::from_name(name), Some(*e));
        }
        assert_eq!(Elem::I4.bytes(3), Some(2));
        assert_eq!(Elem::F64.bytes(usize::MAX), None);
    }
}
