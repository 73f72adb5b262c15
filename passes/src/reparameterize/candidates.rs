//! The maps that methods propose for an operand of products, from what was seen of it.
//!
//! NoisyQuant (Liu et al. 2023) would be a shift by fixed noise of about a step, different in each channel. It helps where values of a
//! channel pile up between two codes: with 8 bits they seldom do, and a shift by the middle of the channel has moved most of them to 0
//! already. On rows that were not searched on, static ranges, the best of 21 means, then of 20 amplitudes, lowered the error of the products
//! behind the norms, attentions and GELUs of a vision transformer by 0.3 % (w8a8) and 0.03 % (w4a8), behind centred channels by 0.5 % and
//! not at all; of MiniLM by 0.8 % and 0.1 %, behind centred channels by 0.4 % and 0.1 % (geometric means over products). That is below
//! what a map must gain to be chosen, so it is not among the candidates.

use super::Method;
use crate::absorb::ChannelMap;

/// What is known of the channels of an operand and of the matrices that it meets, and is the same for channels that must share their
/// numbers.
#[derive(Clone, Debug)]
pub(super) struct Ranges {
    /// The smallest number of each channel,
    pub(super) min: Vec<f32>,
    /// the largest,
    pub(super) max: Vec<f32>,
    /// and the mean magnitude.
    pub(super) mean_abs: Vec<f32>,
    /// The largest magnitude of a weight of each channel, over all matrices.
    pub(super) weight_max: Vec<f32>,
}

impl Ranges {
    fn channels(&self) -> usize {
        self.min.len()
    }

    /// The largest magnitude of each channel.
    fn largest(&self) -> Vec<f32> {
        self.min.iter().zip(&self.max).map(|(lo, hi)| hi.abs().max(lo.abs())).collect()
    }

    /// The middle of each channel, and its range around that.
    pub(super) fn centred(&self) -> (Vec<f32>, Ranges) {
        let middle: Vec<f32> = self.min.iter().zip(&self.max).map(|(lo, hi)| lo / 2.0 + hi / 2.0).collect();
        let minus = |of: &[f32]| of.iter().zip(&middle).map(|(x, m)| x - m).collect();
        let (min, max) = (minus(&self.min), minus(&self.max));
        (middle, Ranges { min, max, ..self.clone() })
    }

    /// How many channels have a range above five times the median: outliers.
    pub(super) fn outliers(&self) -> usize {
        let ranges: Vec<f64> = self.min.iter().zip(&self.max).map(|(lo, hi)| f64::from(hi - lo)).collect();
        let limit = 5.0 * Target::Median.of(&ranges);
        ranges.iter().filter(|&&r| r > limit).count()
    }
}

/// A map and who proposes it.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) method: Method,
    /// The parameter that the method searches over.
    pub(super) strength: Option<f32>,
    pub(super) map: ChannelMap,
}

/// A scale for all channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// The arithmetic mean, as in RepQ-ViT (Li et al. 2023).
    Mean,
    /// The median, which outliers do not move, as in DopQ-ViT (Yang et al. 2024).
    Median,
    /// The mean of what lies between the 10th and the 90th percentile, as LRP-QViT clips (Ranjan and Savakis 2024).
    Clipped,
}

impl Target {
    /// The scale for channels that have `values`; 0 for none.
    pub fn of(self, values: &[f64]) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let cut = match self {
            Target::Mean => 0,
            Target::Median => n.saturating_sub(1) / 2,
            Target::Clipped => n / 10,
        };
        let kept = &sorted[cut..n - cut];
        kept.iter().sum::<f64>() / kept.len().max(1) as f64
    }
}

/// The scale and zero point of a channel with numbers in `lo..=hi`, for codes in `0..=levels`: `x ≈ s (code - z)`. The zero point is a
/// whole number and may lie outside of the codes.
pub fn affine(lo: f64, hi: f64, levels: f64) -> (f64, f64) {
    let scale = (hi - lo) / levels;
    (scale, if scale > 0.0 { (-lo / scale).round_ties_even() } else { 0.0 })
}

/// The map after which one scale and one zero point do for all channels what those of each channel did before (RepQ-ViT, Li et al.
/// 2023): with the target `s` and a whole `z`, `x' = s (x / s_j + z_j - z)`, so `x' / s + z = x / s_j + z_j`. Rounding the zero point
/// before the shift is formed is what makes the codes equal. A channel without a range keeps its scale.
///
/// Returns scales and shifts by channel, and the target's scale and zero point.
pub fn reparameterized(quantizers: &[(f64, f64)], target: Target) -> (Vec<f64>, Vec<f64>, (f64, f64)) {
    let ranged = || quantizers.iter().filter(|(s, _)| *s > 0.0);
    let scale = target.of(&ranged().map(|q| q.0).collect::<Vec<_>>());
    let zero = (ranged().map(|q| q.1).sum::<f64>() / ranged().count().max(1) as f64).round_ties_even();
    let scales = quantizers.iter().map(|&(s, _)| if s > 0.0 && scale > 0.0 { s / scale } else { 1.0 }).collect();
    let shifts = quantizers.iter().map(|&(s, z)| s * (zero - z)).collect();
    (scales, shifts, (scale, zero))
}

fn repq(method: Method, bounds: &[(f32, f32)], target: Target, shift: bool) -> Candidate {
    let quantizers: Vec<(f64, f64)> = bounds
        .iter()
        .map(|&(lo, hi)| match shift {
            true => affine(lo.into(), hi.into(), 255.0),
            false => (f64::from(hi.abs().max(lo.abs())) / 127.0, 0.0),
        })
        .collect();
    let (scales, shifts, _) = reparameterized(&quantizers, target);
    let narrow = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
    let map = ChannelMap { scale: narrow(scales), shift: shift.then(|| narrow(shifts)) };
    Candidate { method, strength: None, map }
}

/// Outlier Suppression+ (Wei et al. 2023): the middle of each channel moves to 0, and channels that reach beyond a threshold `t` are
/// scaled to it.
pub(super) fn suppressed(ranges: &Ranges, t: f32, shift: bool) -> ChannelMap {
    let (middle, centred) = ranges.centred();
    let largest = if shift { centred.largest() } else { ranges.largest() };
    ChannelMap { scale: largest.iter().map(|a| (a / t).max(1.0)).collect(), shift: shift.then_some(middle) }
}

/// SmoothQuant (Xiao et al. 2023): `s = max|x|^α / max|W|^(1 - α)`, on centred channels with a shift (SQ-b of MPTQ-ViT, 2024).
pub(super) fn smoothed(ranges: &Ranges, alpha: f32, shift: bool) -> ChannelMap {
    let (middle, centred) = ranges.centred();
    let largest = if shift { centred.largest() } else { ranges.largest() };
    let scale = |(a, w): (&f32, &f32)| a.max(FLOOR).powf(alpha) / w.max(FLOOR).powf(1.0 - alpha);
    ChannelMap { scale: largest.iter().zip(&ranges.weight_max).map(scale).collect(), shift: shift.then_some(middle) }
}

/// Smaller magnitudes count as this.
const FLOOR: f32 = 1e-5;

/// AWQ (Lin et al. 2024): channels with a large mean magnitude get weights with a large range: `s = mean|x|^ρ`.
pub(super) fn activation_aware(ranges: &Ranges, rho: f32) -> ChannelMap {
    ChannelMap { scale: ranges.mean_abs.iter().map(|a| a.max(FLOOR).powf(rho)).collect(), shift: None }
}

/// The steps in which strengths from 0 to 1 are searched.
const STEPS: i32 = 10;

/// Thresholds fall by this factor.
const FALL: f32 = 0.8;

/// The most thresholds.
const THRESHOLDS: usize = 32;

/// What all methods propose; without `shift`, scales only. `clipped` are bounds of channels for RepQuant's clipping.
pub(super) fn candidates(ranges: &Ranges, clipped: &[(f32, f32)], shift: bool) -> Vec<Candidate> {
    let bounds: Vec<(f32, f32)> = ranges.min.iter().copied().zip(ranges.max.iter().copied()).collect();
    let mut all = vec![
        repq(Method::RepqMean, &bounds, Target::Mean, shift),
        repq(Method::RepqMedian, &bounds, Target::Median, shift),
        repq(Method::RepqClipped, &bounds, Target::Clipped, shift),
        repq(Method::RepQuant, clipped, Target::Median, shift),
    ];
    let largest = if shift { ranges.centred().1.largest() } else { ranges.largest() };
    let (top, bottom) = (largest.iter().copied().fold(0.0, f32::max), largest.iter().copied().fold(f32::MAX, f32::min));
    let thresholds = std::iter::successors(Some(top), |t| Some(t * FALL)).take_while(|&t| t > 0.0 && t >= bottom).take(THRESHOLDS);
    for t in thresholds {
        all.push(Candidate { method: Method::OutlierSuppression, strength: Some(t), map: suppressed(ranges, t, shift) });
    }
    for step in 1..=STEPS {
        let strength = step as f32 / STEPS as f32;
        let mut add = |method, map| all.push(Candidate { method, strength: Some(strength), map });
        add(Method::SmoothQuant, smoothed(ranges, strength, false));
        if shift {
            add(Method::SmoothQuantShift, smoothed(ranges, strength, true));
        }
        add(Method::Awq, activation_aware(ranges, strength));
    }
    debug_assert!(all.iter().all(|c| c.map.scale.len() == ranges.channels()));
    all
}

/// Per channel the bounds between which 256 codes lose least of some rows `[rows, channels]` (RepQuant, Li et al. 2024, by a grid
/// instead of gradients): both bounds of the channel shrink independently, to half at most. Channels with the same `ties` have one pair
/// of bounds, for the values of all of them.
pub(super) fn dual_clipping(rows: &[f32], ranges: &Ranges, ties: &[u32]) -> Vec<(f32, f32)> {
    let channels = ranges.channels();
    let factors: Vec<f32> = (0..=10).map(|i| 1.0 - 0.05 * i as f32).collect();
    let mut tied: Vec<Vec<usize>> = vec![vec![]; channels];
    ties.iter().enumerate().for_each(|(j, &first)| tied[first as usize].push(j));
    let mut bounds: Vec<(f32, f32)> = Vec::with_capacity(channels);
    for j in 0..channels {
        // The first of those that are tied comes before the others.
        let first = ties[j] as usize;
        if first < j {
            bounds.push(bounds[first]);
            continue;
        }
        let column: Vec<f32> = tied[j].iter().flat_map(|&c| rows.chunks_exact(channels).map(move |row| row[c])).collect();
        let (min, max) = (ranges.min[j], ranges.max[j]);
        let mut best = (f32::INFINITY, (min, max));
        for &low in &factors {
            for &high in &factors {
                let (lo, hi) = (min * low, max * high);
                let step = (hi - lo) / 255.0;
                if step <= 0.0 {
                    continue;
                }
                let inverse = 1.0 / step;
                let error = |x: &f32| {
                    let code = tfc_ir::quant::round((x.clamp(lo, hi) - lo) * inverse);
                    (x - (lo + code * step)).powi(2)
                };
                let total: f32 = column.iter().map(error).sum();
                if total < best.0 {
                    best = (total, (lo, hi));
                }
            }
        }
        bounds.push(best.1);
    }
    bounds
}
