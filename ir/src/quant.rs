//! Quantization schemes, and the one place where values are rounded, clamped and signed.
//!
//! Everything that quantizes or dequantizes, in the interpreter and in every backend, is defined by
//! [`quantize`] and [`dequantize`] and tested against them.

use crate::attr::Attr;
use crate::types::Elem;
use std::fmt;

/// Which elements share a scale and a zero point.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Granularity {
    /// One for the whole tensor.
    Tensor,
    /// One per index along `axis`.
    Axis {
        /// Axis of the quantized tensor.
        axis: u32,
    },
    /// One per block of `size` neighbours along `axis`, and per index of every other axis. The last
    /// block may be shorter.
    Blocks {
        /// Axis of the quantized tensor.
        axis: u32,
        /// Block length, at least 1.
        size: u32,
    },
}

/// How real numbers are stored as integers: `real = scale * (stored - zero_point)`.
///
/// Scales and zero points are ordinary values of the graph; the scheme says what shape they have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Scheme {
    /// Integer type that is stored.
    pub storage: Elem,
    /// Smallest stored value in use.
    pub min: i16,
    /// Largest stored value in use.
    pub max: i16,
    /// What shares a scale.
    pub granularity: Granularity,
    /// Whether the zero point is 0 and not stored.
    pub symmetric: bool,
    /// Format of the scales: `F32`, `F16` or `Bf16`.
    pub scale: Elem,
}

/// `clamp(round_half_even(x / scale) + zero_point, min, max)`; NaN becomes the zero point.
pub fn quantize(x: f32, scale: f32, zero_point: i32, min: i32, max: i32) -> i32 {
    let q = (x / scale).round_ties_even();
    if q.is_nan() {
        return zero_point.clamp(min, max);
    }
    // The bounds fit f32 exactly, so clamping first avoids an overflowing conversion.
    (q.clamp(-65536.0, 65536.0) as i32).saturating_add(zero_point).clamp(min, max)
}

/// `scale * (q - zero_point)`, the difference formed in integers.
pub fn dequantize(q: i32, scale: f32, zero_point: i32) -> f32 {
    scale * (q - zero_point) as f32
}

impl fmt::Display for Scheme {
    /// As the attribute is written: `[i8, [-128, 127], [axis, 0], symmetric, f32]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_value().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_even_and_ends_clamp() {
        let q = |x| quantize(x, 1.0, 0, -128, 127);
        assert_eq!([q(0.5), q(1.5), q(2.5), q(-0.5), q(-1.5)], [0, 2, 2, 0, -2]);
        assert_eq!([q(1e30), q(-1e30), q(f32::INFINITY), q(f32::NAN)], [127, -128, 127, 0]);
    }

    #[test]
    fn every_code_survives_the_round_trip() {
        for z in [0, 3, 128] {
            for c in 0..=255 {
                assert_eq!(quantize(dequantize(c, 0.37, z), 0.37, z, 0, 255), c);
            }
        }
    }
}
