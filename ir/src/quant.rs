//! Quantization schemes, and the one place where values are rounded, clamped and signed.
//!
//! Everything that quantizes or dequantizes, in the interpreter and in every backend, is defined by
//! [`quantize`] and [`dequantize`], or [`RowRange`] where values are multiplied by the reciprocal of a scale, and tested
//! against them.

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

/// To the nearest whole number, ties to even, for magnitudes below 2²²: by two additions, which vector units do as well.
pub fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// `clamp(round_half_even(x / scale) + zero_point, min, max)`; NaN becomes the zero point.
pub fn quantize(x: f32, scale: f32, zero_point: i32, min: i32, max: i32) -> i32 {
    // The bounds are whole, so clamping first changes nothing.
    let q = round((x / scale).clamp(-65536.0, 65536.0));
    // The conversion makes NaN 0.
    (q as i32).saturating_add(zero_point).clamp(min, max)
}

/// `scale * (q - zero_point)`, the difference formed in integers.
pub fn dequantize(q: i32, scale: f32, zero_point: i32) -> f32 {
    scale * (q - zero_point) as f32
}

/// The smallest range of a row that is divided by; the values of rows with less of it become 0. Above
/// it reciprocals do not overflow.
pub const MIN_RANGE: f32 = 1e-30;

/// How the values of one row are quantized, all of them alike: see [`RowRange::symmetric`],
/// [`RowRange::asymmetric`] and [`RowRange::fixed`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct RowRange {
    /// What a stored step is worth.
    pub scale: f32,
    /// What values are multiplied by before they are rounded: the reciprocal of the scale, rounded on
    /// its own; 0 for rows without a range.
    pub inverse: f32,
    /// The stored value of 0.
    pub zero_point: i32,
}

impl RowRange {
    /// For a row whose largest magnitude is `a` (NaN if the row has one), stored in -127..=127:
    ///
    /// ```text
    /// scale   = a / 127
    /// inverse = 127 / a    if MIN_RANGE <= a < ∞, otherwise 0
    /// ```
    ///
    /// Both are single roundings of f32. A row of zeros has scale 0; a row with an infinity or a NaN
    /// has that as its scale and zeros stored, so that what is computed from it is NaN.
    pub fn symmetric(a: f32) -> RowRange {
        RowRange { scale: a / 127.0, inverse: inverse(a, 127.0), zero_point: 0 }
    }

    /// For a row whose smallest value is `low` and whose largest is `high` (NaN if the row has one),
    /// stored in -128..=127 so that 0 is exact:
    ///
    /// ```text
    /// l = min(low, 0)    h = max(high, 0)    r = h - l
    /// scale      = r / 255
    /// inverse    = 255 / r    if MIN_RANGE <= r < ∞, otherwise 0
    /// zero_point = round_half_even(-128 - l * inverse), NaN becoming 0
    /// ```
    ///
    /// Every operation is rounded to f32 on its own; nothing is fused. The sign of a scale of 0 is not defined.
    pub fn asymmetric(low: f32, high: f32) -> RowRange {
        let propagate = |x: f32, y: f32| if x.is_nan() { x } else { y };
        let (l, h) = (propagate(low, low.min(0.0)), propagate(high, high.max(0.0)));
        let r = h - l;
        let inverse = inverse(r, 255.0);
        // -l * inverse is at most 255 and a rounding, so this is within -128..=127 without a clamp.
        RowRange { scale: r / 255.0, inverse, zero_point: (-128.0 - l * inverse).round_ties_even() as i32 }
    }

    /// For rows that all have a scale that was known before, and its reciprocal rounded to f32.
    pub fn fixed(scale: f32, zero_point: i32) -> RowRange {
        RowRange { scale, inverse: 1.0 / scale, zero_point }
    }

    /// `clamp(round_half_even(x * inverse) + zero_point, min, max)`; NaN becomes the zero point. In a
    /// row that is [symmetric](RowRange::symmetric) the clamp changes nothing.
    pub fn quantize(&self, x: f32, min: i32, max: i32) -> i32 {
        // The conversion saturates, and makes NaN 0.
        let q = (x * self.inverse).round_ties_even() as i32;
        q.saturating_add(self.zero_point).clamp(min, max)
    }
}

/// `steps / range`, or 0 where that is not of use.
fn inverse(range: f32, steps: f32) -> f32 {
    if (MIN_RANGE..f32::INFINITY).contains(&range) { steps / range } else { 0.0 }
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

    #[test]
    fn rows_without_a_range_are_zeros() {
        for a in [0.0, 1e-38, f32::INFINITY, f32::NAN] {
            let r = RowRange::symmetric(a);
            assert_eq!((r.inverse, r.quantize(a, -127, 127), r.quantize(1.0, -127, 127)), (0.0, 0, 0), "{a}");
            assert_eq!(r.scale.to_bits(), (a / 127.0).to_bits());
        }
        for (low, high) in [(0.0, 0.0), (-1e-38, 0.0), (-3e38, 3e38), (f32::NAN, f32::NAN), (f32::NEG_INFINITY, 1.0)] {
            let r = RowRange::asymmetric(low, high);
            assert_eq!(r.inverse, 0.0, "{low} {high}");
            assert_eq!(r.quantize(f32::NAN, -128, 127), r.zero_point);
        }
    }

    proptest::proptest! {
        #[test]
        fn quantizing_is_rounding_halves_to_even(x in -300f32..300.0, half in -260i32..260, z in -128i32..128) {
            for x in [x, half as f32 / 2.0] {
                proptest::prop_assert_eq!(quantize(x, 1.0, z, -128, 127), (x.round_ties_even() as i32 + z).clamp(-128, 127));
            }
        }

        /// The ends of a row reach the ends of the stored range without a clamp, and 0 is exact.
        #[test]
        fn rows_use_their_range(low: f32, high: f32) {
            let a = low.abs().max(high.abs());
            let r = RowRange::symmetric(a);
            if r.inverse != 0.0 {
                assert_eq!([a, -a, 0.0].map(|x| r.quantize(x, -1000, 1000)), [127, -127, 0]);
            }
            let r = RowRange::asymmetric(low.min(high), low.max(high));
            assert!((-128..=127).contains(&r.zero_point));
            assert_eq!(r.quantize(0.0, -128, 127), r.zero_point);
            if r.inverse != 0.0 {
                let ends = [low.min(high).min(0.0), low.max(high).max(0.0)].map(|x| r.quantize(x, -1000, 1000));
                assert!((-129..=-127).contains(&ends[0]) && (126..=128).contains(&ends[1]), "{ends:?}");
            }
        }
    }
}
