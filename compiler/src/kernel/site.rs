//! Static quantization in kernels. Its numbers are in memory, so that kernels that differ in nothing else are one.
//!
//! A *site* is what all values of one `quantize_static` are quantized by: a buffer of [`WORDS`] words of 32 bits. Kernels that
//! pack rows have it as a parameter, others load its first four words, each an f32, in expressions.

use tfc_ir::ops::QuantizeStatic;
use tfc_ir::quant::RowRange;

/// Words of a site.
pub const WORDS: usize = 8;

/// What values are multiplied by, an f32.
pub const INVERSE: i64 = 0;
/// The least that a rounded value is before the zero point is added, an f32.
pub const LOW: i64 = 1;
/// The largest, an f32.
pub const HIGH: i64 = 2;
/// The zero point, an f32.
pub const ZERO: i64 = 3;
/// The zero point, an i32.
pub const ZERO_I32: i64 = 4;
/// The zero point, twice as an i16.
pub const ZERO_I16: i64 = 5;
/// The least code, four times.
pub const LEAST_I8: i64 = 6;

/// The largest inverse of a site that expressions may load: with it, functions need not be more exact than codes of 8 bits are.
pub const MOST_STEPS: f32 = 400.0;

/// Whether no result of GELU, also where it is off by `8e-5`, is rounded to less than the bound of a site.
pub fn is_above_low(gelu: &QuantizeStatic) -> bool {
    const LEAST: f32 = -0.1702;
    LEAST * gelu.range().inverse >= (i32::from(gelu.scheme().min) - gelu.range().zero_point) as f32 - 0.5
}

/// The words of a site.
pub fn words(op: &QuantizeStatic) -> [u32; WORDS] {
    let (RowRange { inverse, zero_point, .. }, min) = (op.range(), op.scheme().min);
    let bound = |code: i32| ((code - zero_point) as f32).to_bits();
    let twice = u32::from(zero_point as i16 as u16) * 0x0001_0001;
    let least = u32::from_le_bytes([min as u8; 4]);
    [inverse.to_bits(), bound(min.into()), bound(127), (zero_point as f32).to_bits(), zero_point as u32, twice, least, 0]
}
