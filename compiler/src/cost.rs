//! What kernels cost, measured: the one place that the choices between kernels read.
//!
//! All numbers are nanoseconds on one core. They were measured by `tfc hwbench` on AMD Zen 4 (EPYC 9004):
//! the rates by `tfc hwbench MODEL` on products of 128 and of 2 rows with a 768 x 768 operand that is packed
//! at run time, and on `add`, `exp` and `softmax` of 128 x 768 elements; the handover by `tfc hwbench`. Those of
//! `avx512vnni`, of quantized products and of packed rows are from `tfc bench --profile` of BERT-base at 128 tokens.
//! Choices compare times of one machine, so that they depend on ratios only. To measure again after kernels
//! have changed: the same commands; `tfc hwbench MODEL --assert` tells whether choices are still right.

use crate::kernel::Body;
use crate::kernel::attention;
use crate::kernel::gemm::Format;
use tfc_ir::dim::Dim;

/// What the code of one CPU variant takes. A program is the same for all variants, so choices take the
/// variant into account for which they matter most.
pub struct Rates {
    /// The variant; others that share its code share its rates.
    pub variant: &'static str,
    /// A multiply-add of a product by tiles, or of attention, f32.
    pub tiles: f64,
    /// A multiply-add of a product with quantized weights, or of attention of 8 bits.
    pub quantized: f64,
    /// An element of 4 bytes of a left operand that is packed.
    pub rows: f64,
    /// A multiply-add of a product of few rows as a nest, f32, with an operand that streams from the
    /// caches.
    pub few_rows: f64,
    /// An element packed into panels at run time.
    pub pack: f64,
    /// A unit of [`work`](crate::kernel::Step::work) of a nest.
    pub nest: f64,
}

/// The measured variants.
pub const RATES: [Rates; 3] = [
    Rates { variant: "baseline", tiles: 0.0694, quantized: 0.0694, rows: 0.363, few_rows: 0.188, pack: 0.363, nest: 0.0600 },
    Rates { variant: "avx2", tiles: 0.0204, quantized: 0.0072, rows: 0.21, few_rows: 0.133, pack: 0.334, nest: 0.0485 },
    Rates { variant: "avx512vnni", tiles: 0.0179, quantized: 0.0047, rows: 0.21, few_rows: 0.133, pack: 0.334, nest: 0.0180 },
];

/// Handing a loop to two threads that are awake, and waiting for both.
pub const HANDOVER: f64 = 700.0;

/// A loop goes to threads if it takes this many handovers on one: workers that fell asleep take longer to
/// come, and half of the loop must be worth more than that.
const HANDOVERS: f64 = 4.0;

/// The least [`work`](crate::kernel::Step::work) of a step that is worth several threads, by the variant
/// that is done with it first.
pub fn parallel_work(body: &Body) -> i64 {
    let unit = |r: &Rates| match body {
        Body::Gemm(g) if matches!(g.format, Format::Quantized(_)) => r.quantized,
        Body::Attention(a) if matches!(a.format, attention::Format::Bytes(_)) => r.quantized,
        Body::Gemm(_) | Body::Attention(_) => r.tiles,
        Body::Pack(_) => r.rows,
        Body::Nest(_) | Body::TopK(_) => r.nest,
    };
    let fastest = RATES.iter().map(unit).fold(f64::MAX, f64::min);
    (HANDOVERS * HANDOVER / fastest) as i64
}

/// The work of a nest in the units of packing, if the nest is part of it, by the variant that is done with it first.
pub fn as_packing(work: &Dim) -> Dim {
    let fastest = RATES.iter().map(|r| r.rows / r.nest).fold(f64::MIN, f64::max);
    work.ceil_div(fastest as i64)
}

/// Products with up to this many rows, and a right operand that would have to be packed at run time, are
/// faster as a nest on every variant.
pub fn few_rows() -> i64 {
    // m rows of k x n: a nest takes m k n few_rows, tiles take k n pack + m k n tiles.
    let rows = |r: &Rates| r.pack / (r.few_rows - r.tiles);
    RATES.iter().map(rows).fold(f64::MAX, f64::min) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nest::Nest;

    #[test]
    fn choices_follow_from_the_rates() {
        for r in &RATES {
            assert!(r.tiles < r.few_rows && r.few_rows < r.pack && r.nest > 0.0, "{}", r.variant);
            let m = few_rows() as f64;
            assert!(m * r.few_rows <= r.pack + m * r.tiles, "{}", r.variant);
        }
        assert!((1..=12).contains(&few_rows()));
        let nest = parallel_work(&Body::Nest(Nest::default()));
        assert!(RATES.iter().all(|r| nest as f64 * r.nest + 1.0 >= HANDOVERS * HANDOVER));
    }
}
