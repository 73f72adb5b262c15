//! Ranges of activations that are known beforehand, and what they cost in accuracy.
//!
//! The error of an operand's rounding is measured where it counts, in the results of the products that take it: channel `j` of the
//! operand weighs `‖W_j‖²`, the sum of the squares of all weights that it is multiplied by, as if errors of channels were
//! independent (the diagonal of the true error; RepQuant uses the same weights). Every row counts
//! alike, by its error over its own size: otherwise a few rows of massive values, which language models have, would decide for
//! all.
//!
//! Results of GELU, which are not below -0.17, are shifted to 0 before they are quantized by other methods, and `0.17 Σ_k Ŵ_ko` is taken
//! from the bias (AdaLog, Wu et al. 2024). That is a range with a zero point: `s z` takes the place of 0.17, and the product subtracts
//! `s z Σ_k Ŵ_ko`. Both differ by less than a step in where the codes lie, of which a zero point has one on 0; so there is no shift of its own.

use super::spec::Scaling;
use crate::calibrate::Observed;
use tfc_ir::ops::QuantizeStatic;
use tfc_ir::quant::{RowRange, Scheme, round};

/// How the rows of an operand are quantized.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Range {
    /// At run time, each by its own largest magnitude.
    Dynamic,
    /// All alike.
    Static(QuantizeStatic),
}

/// A range, and what was found on the way to it.
#[derive(Clone, PartialEq, Debug)]
pub struct Rated {
    /// The range.
    pub range: Range,
    /// Relative root mean square error of the results that rounding the operand causes,
    pub error: f64,
    /// the same with ranges found at run time,
    pub dynamic_error: f64,
    /// and with the best range for all rows; infinite if there is none.
    pub static_error: f64,
}

/// How much larger a static range may make the error of a product, all of its roundings together: it spares the search for the
/// largest magnitude of every row.
const STATIC_MARGIN: f64 = 1.05;

/// How much larger a symmetric range may make the error of rounding next to the best one: it spares the zero point.
const SYMMETRIC_MARGIN: f64 = 1.02;

/// Rows that ranges are tried on.
const ROWS: usize = 96;

/// Of the largest magnitude, how little the first ranges of the search reach to, in steps of a tenth.
const FIRST: std::ops::RangeInclusive<u32> = 4..=10;

/// How many ranges a round of the search keeps, and how many rounds there are.
const KEPT: usize = 8;
const ROUNDS: u32 = 4;

/// What there is to choose from for an operand.
#[derive(Clone, Debug)]
pub struct Found {
    /// Relative error of the results with ranges found at run time.
    dynamic_error: f64,
    /// The best range for all rows with its error, if there is one.
    best: Option<(QuantizeStatic, f64)>,
}

/// Searches ranges for an operand whose channels have products of these weights, squares and summed. Ranges are searched progressively, as
/// AdaLog's FPCS does for any quantizer of two parameters (lower and upper end): a coarse grid first, then finer steps around the best.
pub fn find(observed: &Observed, channel_weights: &[f64]) -> Found {
    let sample = Sample::new(observed, channel_weights);
    let dynamic_error = sample.error(|row| RowRange::symmetric(row.iter().fold(0f32, |a, x| a.max(x.abs()))), -127);
    Found { dynamic_error, best: if observed.is_finite() { search(&sample, observed) } else { None } }
}

/// The range of an operand, as it is `wanted`: by error, the best static one is taken if it makes the error of the product, whose
/// weights cause `weight_error` of it, little larger. Where data gives no static range, it is found at run time.
pub fn rate(found: &Found, weight_error: f64, wanted: Scaling) -> Rated {
    let Found { dynamic_error, best } = found.clone();
    let static_error = best.as_ref().map_or(f64::INFINITY, |(_, e)| *e);
    let all = |error: f64| error.hypot(weight_error);
    let is_static = |error: f64| match wanted {
        Scaling::ByError => all(error) <= STATIC_MARGIN * all(dynamic_error),
        Scaling::Static => true,
        Scaling::Dynamic => false,
    };
    match best {
        Some((op, error)) if is_static(error) => Rated { range: Range::Static(op), error, dynamic_error, static_error },
        _ => Rated { range: Range::Dynamic, error: dynamic_error, dynamic_error, static_error },
    }
}

/// A range from `low` to `high`, both of which may be moved a little so that 0 is a step.
fn between(low: f32, high: f32) -> Option<QuantizeStatic> {
    // Zero is stored exactly, so it is in the range.
    let range = RowRange::asymmetric(low.min(0.0), high.max(0.0));
    let (scale, zero_point) = if low == -high { (high / 127.0, 0) } else { (range.scale, i64::from(range.zero_point)) };
    let useful = |x: f32| x.is_normal() && x > 0.0;
    (useful(scale) && useful(1.0 / scale)).then(|| QuantizeStatic { scale: f64::from(scale).into(), zero_point })
}

fn search(sample: &Sample, observed: &Observed) -> Option<(QuantizeStatic, f64)> {
    let low = observed.min.iter().copied().fold(0f32, f32::min);
    let high = observed.max.iter().copied().fold(0f32, f32::max);
    let largest = high.max(-low);
    let rated = |(low, high): (f32, f32)| {
        let op = between(low, high)?;
        let Scheme { min, .. } = op.scheme();
        let error = sample.error(|_| op.range(), min.into());
        // Squares of very large numbers overflow.
        error.is_finite().then_some(((low, high), op, error))
    };
    let better = |a: &((f32, f32), QuantizeStatic, f64), b: &((f32, f32), QuantizeStatic, f64)| {
        a.2.total_cmp(&b.2).then(a.0.0.total_cmp(&b.0.0)).then(a.0.1.total_cmp(&b.0.1))
    };
    let best_of = |ranges: Vec<(f32, f32)>, step: f32| -> Option<(QuantizeStatic, f64)> {
        let mut kept: Vec<_> = ranges.into_iter().filter_map(rated).collect();
        let mut step = step;
        for _ in 0..ROUNDS {
            kept.sort_by(better);
            kept.dedup_by(|a, b| a.0 == b.0);
            kept.truncate(KEPT);
            step /= 3.0;
            let around = |&((l, h), ..): &((f32, f32), QuantizeStatic, f64)| {
                let symmetric = l == -h;
                let moves: &[(f32, f32)] =
                    if symmetric { &[(1.0, 1.0), (-1.0, -1.0)] } else { &[(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)] };
                moves.iter().map(|(a, b)| (l * (1.0 + a * step), h * (1.0 + b * step))).collect::<Vec<_>>()
            };
            let finer: Vec<_> = kept.iter().take(KEPT / 2).flat_map(around).collect();
            kept.extend(finer.into_iter().filter_map(rated));
        }
        kept.into_iter().min_by(better).map(|(_, op, error)| (op, error))
    };
    let parts = || FIRST.map(|n| n as f32 / 10.0);
    let percentiles = [0.999, 0.9999, 0.99999].map(|share| sample.percentile(share));
    let tails = percentiles.map(|p| (-p.min(-low), p.min(high)));
    let symmetric = parts().map(|p| p * largest).chain(percentiles.map(|p| p.min(largest))).map(|t| (-t, t)).collect();
    let asymmetric = parts().flat_map(|a| parts().map(move |b| (a * low, b * high))).chain(tails).filter(|(l, h)| *l != -*h).collect();
    let (symmetric, asymmetric) = (best_of(symmetric, 0.1), best_of(asymmetric, 0.1));
    match (symmetric, asymmetric) {
        (Some(s), Some(a)) => Some(if s.1 <= SYMMETRIC_MARGIN * a.1 { s } else { a }),
        (s, a) => s.or(a),
    }
}

/// How many rows vector units work on at once.
const LANES: usize = 16;

/// As many channels have their errors added in f32; sums of more are in f64.
const CHUNK: usize = 64;

/// Rows to measure errors on.
struct Sample<'a> {
    /// Those that are not zeros,
    rows: Vec<&'a [f32]>,
    /// and how much their channels count.
    weights: Vec<f32>,
    /// Weighted squares of each row.
    sizes: Vec<f64>,
    /// The same rows, [`LANES`] after [`LANES`], channel by channel.
    lanes: Vec<Vec<[f32; LANES]>>,
    /// All rows, zeros too, for percentiles.
    all: Vec<&'a [f32]>,
}

impl<'a> Sample<'a> {
    fn new(observed: &'a Observed, channel_weights: &[f64]) -> Sample<'a> {
        let all = observed.sample();
        let every = all.len().div_ceil(ROWS).max(1);
        let all: Vec<&[f32]> = all.step_by(every).collect();
        // Only ratios count: the largest weight is 1.
        let largest = channel_weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let weights: Vec<f32> = channel_weights.iter().map(|w| (w / largest) as f32).collect();
        let size = |row: &[f32]| row.iter().zip(&weights).map(|(x, w)| f64::from(x * x * w)).sum::<f64>();
        let (rows, sizes): (Vec<&[f32]>, Vec<f64>) = all.iter().map(|row| (*row, size(row))).filter(|(_, size)| *size > 0.0).unzip();
        let channel = |rows: &[&[f32]], j: usize| std::array::from_fn(|l| rows.get(l).map_or(0.0, |row| row[j]));
        let lanes = rows.chunks(LANES).map(|rows| (0..weights.len()).map(|j| channel(rows, j)).collect()).collect();
        Sample { rows, weights, sizes, lanes, all }
    }

    /// Relative root mean square error of rows that are quantized by `range`. Rows of zeros do not count.
    fn error(&self, range: impl Fn(&[f32]) -> RowRange, min: i32) -> f64 {
        let mut sum = 0.0;
        for ((values, rows), sizes) in self.lanes.iter().zip(self.rows.chunks(LANES)).zip(self.sizes.chunks(LANES)) {
            let ranges: [RowRange; LANES] = std::array::from_fn(|l| rows.get(l).map_or(RowRange::fixed(1.0, 0), |row| range(row)));
            let [low, high] = [min, 127].map(|end| ranges.map(|r| (end - r.zero_point) as f32));
            let (scale, inverse) = (ranges.map(|r| r.scale), ranges.map(|r| r.inverse));
            let mut errors = [0f64; LANES];
            for (values, weights) in values.chunks(CHUNK).zip(self.weights.chunks(CHUNK)) {
                let mut part = [0f32; LANES];
                for (x, w) in values.iter().zip(weights) {
                    for l in 0..LANES {
                        // The ends are whole numbers, so it is the same to clamp first.
                        let q = x[l] * inverse[l];
                        let q = if q > low[l] { q } else { low[l] };
                        let d = x[l] - round(if q < high[l] { q } else { high[l] }) * scale[l];
                        part[l] += d * d * w;
                    }
                }
                errors.iter_mut().zip(part).for_each(|(e, p)| *e += f64::from(p));
            }
            errors.iter().zip(sizes).for_each(|(e, size)| sum += e / size);
        }
        (sum / self.rows.len().max(1) as f64).sqrt()
    }

    /// The magnitude that a share of all numbers does not exceed.
    fn percentile(&self, share: f64) -> f32 {
        let mut all: Vec<f32> = self.all.iter().flat_map(|row| row.iter().map(|x| x.abs())).collect();
        if all.is_empty() {
            return 0.0;
        }
        let at = ((all.len() - 1) as f64 * share) as usize;
        *all.select_nth_unstable_by(at, f32::total_cmp).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The best static range with its error.
    fn best_static(observed: &Observed, channel_weights: &[f64]) -> Option<(QuantizeStatic, f64)> {
        let rated = rate(&find(observed, channel_weights), 0.0, Scaling::Static);
        match rated.range {
            Range::Static(op) => Some((op, rated.error)),
            Range::Dynamic => None,
        }
    }

    /// Rows of channels that go evenly through their ranges, each at its own pace.
    fn observed(ranges: &[(f32, f32)], rows: usize) -> Observed {
        let at = |i: usize, j: usize| ((i * 37 + j * 11) % 101) as f32 / 100.0;
        let rows: Vec<f32> = (0..rows).flat_map(|i| ranges.iter().enumerate().map(move |(j, (l, h))| l + (h - l) * at(i, j))).collect();
        of_rows(ranges.len(), rows)
    }

    fn of_rows(channels: usize, rows: Vec<f32>) -> Observed {
        let all = |f: fn(f32, f32) -> f32, from: f32| -> Vec<f32> {
            (0..channels).map(|j| rows.iter().skip(j).step_by(channels).copied().fold(from, f)).collect()
        };
        let count = (rows.len() / channels) as u64;
        Observed {
            axis: 1,
            count,
            min: all(f32::min, f32::INFINITY),
            max: all(f32::max, f32::NEG_INFINITY),
            mean: vec![0.0; channels],
            mean_square: vec![0.0; channels],
            rows,
        }
    }

    #[test]
    fn one_sided_values_get_a_zero_point_and_others_do_not() {
        let positive = rate(&find(&observed(&[(0.0, 4.0); 32], 64), &[1.0; 32]), 0.0, Scaling::ByError);
        let Range::Static(op) = &positive.range else { panic!("{positive:?}") };
        assert!(op.zero_point == -128 && positive.static_error < positive.dynamic_error, "{positive:?}");
        let both = rate(&find(&observed(&[(-4.0, 4.0); 32], 64), &[1.0; 32]), 0.0, Scaling::ByError);
        let Range::Static(op) = &both.range else { panic!("{both:?}") };
        assert_eq!(op.zero_point, 0);
        assert!((op.scale.get() - 4.0 / 127.0).abs() < 2e-3, "{op:?}");
    }

    /// A zero point does what a shift of GELU's results by their smallest number does (AdaLog): with 0.17 added codes begin at 0.
    #[test]
    fn results_of_gelu_need_no_shift() {
        const SHIFT: f32 = 0.169_97;
        for sigma in [0.5f32, 1.0, 2.0, 4.0] {
            let mut state = 1u64;
            let mut uniform = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 24) as f32
            };
            // Sums of twelve are as good as normal.
            let mut gelu = || {
                let x = sigma * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0);
                0.5 * x * (1.0 + (0.797_884_6 * (x + 0.044_715 * x.powi(3))).tanh())
            };
            let o = of_rows(64, (0..64 * ROWS).map(|_| gelu()).collect());
            let rated = rate(&find(&o, &[1.0; 64]), 0.0, Scaling::Static);
            let shifted = |step: f32| -> f64 {
                let restored = |x: f32| ((x + SHIFT) / step).round_ties_even().clamp(0.0, 255.0) * step - SHIFT;
                let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
                let error = |row: &[f32]| square(&mut row.iter().map(|&x| restored(x) - x)) / square(&mut row.iter().copied());
                (o.sample().map(error).sum::<f64>() / o.sample().len() as f64).sqrt()
            };
            let top = o.max.iter().copied().fold(0f32, f32::max) + SHIFT;
            let best = (50..=100).map(|i| shifted(top * i as f32 / 100.0 / 255.0)).fold(f64::INFINITY, f64::min);
            assert!(matches!(rated.range, Range::Static(ref op) if op.zero_point < -64), "{rated:?}");
            assert!(rated.error < 1.03 * best && best < 1.03 * rated.error, "σ {sigma}: {} with a zero point, {best} shifted", rated.error);
        }
    }

    /// Ranges far from 0, narrow ones among them: 0 stays exact, and the zero point a byte.
    #[test]
    fn ranges_contain_zero() {
        for (low, high) in [(5.0, 5.01), (-9.0, -8.0), (1e-20, 2e-20), (-3e15, 1e15)] {
            let (op, error) = best_static(&observed(&[(low, high); 32], 64), &[1.0; 32]).unwrap();
            assert!((-128..=127).contains(&op.zero_point) && error < 0.02, "{low} {high}: {op:?} {error}");
        }
        // Zeros have no range.
        assert_eq!(best_static(&observed(&[(0.0, 0.0); 32], 64), &[1.0; 32]), None);
    }

    /// One row of massive values does not take the steps of all others.
    #[test]
    fn massive_rows_leave_ranges_to_run_time() {
        let mut o = observed(&[(-1.0, 1.0); 32], 64);
        o.rows[..32].iter_mut().for_each(|x| *x *= 3000.0);
        let o = of_rows(32, o.rows);
        let rated = rate(&find(&o, &[1.0; 32]), 0.05, Scaling::ByError);
        assert!(rated.range == Range::Dynamic && rated.static_error > 10.0 * rated.dynamic_error, "{rated:?}");
    }

    /// The search is no worse than the whole range, and finds that a rare large value may be cut off.
    #[test]
    fn rare_values_are_cut_off() {
        let mut o = observed(&[(-1.0, 1.0); 64], 96);
        o.rows[777] = 8.0;
        let o = of_rows(64, o.rows);
        let weights = [1.0; 64];
        let whole = Sample::new(&o, &weights).error(|_| between(-8.0, 8.0).unwrap().range(), -127);
        let (op, error) = best_static(&o, &weights).unwrap();
        assert!(error < 0.8 * whole && op.scale.get() < 7.0 / 127.0, "{op:?} {error} {whole}");
    }

    /// What no product takes much of may be rounded coarsely.
    #[test]
    fn channels_weigh_what_their_weights_do() {
        let mut ranges = [(-1.0f32, 1.0f32); 32];
        ranges[7] = (-50.0, 50.0);
        let o = observed(&ranges, 96);
        let mut weights = [1.0; 32];
        let [(_, even), (_, little)] = [1.0, 1e-6].map(|w| {
            weights[7] = w;
            best_static(&o, &weights).unwrap()
        });
        assert!(little > 0.0 && even > 0.0);
        let of = |weights: &[f64]| best_static(&o, weights).unwrap().0.scale.get();
        weights[7] = 1e-8;
        assert!(of(&weights) < 0.5 * of(&[1.0; 32]));
    }
}
