//! What rounding costs: estimates of the squared error of products with a mapped operand.

use super::candidates::Ranges;
use crate::absorb::ChannelMap;
use crate::calibrate::Observed;
use crate::quantize::{Activations, Group, QuantSpec, Rounded, Scaling, WeightBits, round_to_nearest};
use tfc_ir::quant::round;
use tfc_ir::tensor::Tensor;

/// The most rows that estimates look at.
const ROWS: usize = 64;

/// The most columns of all matrices together: for the estimate by channel, and for the product itself.
const FEW_COLUMNS: usize = 64;
const COLUMNS: usize = 256;

/// What of its range static quantization keeps: the best of these counts.
const CLIPS: [f32; 3] = [1.0, 0.9, 0.75];

/// Columns of matrices that are quantized alike.
struct Columns {
    bits: WeightBits,
    group: Group,
    /// How many there are,
    count: usize,
    /// their elements `[channels, count]`,
    values: Vec<f32>,
    /// and how many columns each stands for.
    each: f64,
}

/// An operand of products, as far as estimates need it. All errors are squares relative to the square of the products, row by row, and
/// averaged over rows: otherwise a few rows of massive values, which language models have, would decide for all.
pub(super) struct Operand {
    channels: usize,
    /// Some rows, `[rows, channels]`.
    pub(super) rows: Vec<f32>,
    /// The reciprocal of each row's Σ_j ‖W_j‖² x_j²; 0 of a row of zeros.
    sizes: Vec<f32>,
    pub(super) ranges: Ranges,
    /// The sum of squares of each channel's weights, in all matrices that rows of bytes are multiplied with.
    squares: Vec<f32>,
    /// When the scales of these rows are found.
    scaling: Scaling,
    few: Vec<Columns>,
    many: Vec<Columns>,
    /// The products of the rows with `many`.
    exact: Vec<Vec<f32>>,
}

/// A mapped operand, rounded.
struct RoundedRows {
    /// The rows `[rows, channels]`,
    values: Vec<f32>,
    /// and the error of the products that it causes, as if errors of channels did not add up.
    error: f64,
}

impl Operand {
    /// `ties` says per channel which one its numbers come from.
    pub(super) fn new(observed: &Observed, matrices: &[(Tensor, QuantSpec)], ties: &[u32]) -> Operand {
        let channels = observed.channels();
        let all = observed.sample().len();
        let taken = ROWS.min(all);
        let rows: Vec<f32> = (0..taken).flat_map(|i| observed.sample().nth(i * all / taken).expect("a row").to_vec()).collect();
        let [mut squares, mut of_bytes, mut weight_max] = [(); 3].map(|()| vec![0f32; channels]);
        let mut scaling = None;
        for (w, spec) in matrices {
            let (values, n) = (w.values::<f32>(), w.sizes()[1]);
            let bytes = matches!(spec, QuantSpec::Int { activations: Activations::Int8, .. });
            if let QuantSpec::Int { scaling: own, .. } = spec
                && *own != Scaling::ByError
            {
                scaling = scaling.or(Some(*own));
            }
            for (j, row) in values.chunks_exact(n.max(1)).enumerate() {
                weight_max[j] = row.iter().fold(weight_max[j], |m, w| m.max(w.abs()));
                let square = row.iter().map(|w| w * w).sum::<f32>();
                squares[j] += square;
                of_bytes[j] += if bytes { square } else { 0.0 };
            }
        }
        let mut mean_abs = vec![0f32; channels];
        for row in rows.chunks_exact(channels) {
            mean_abs.iter_mut().zip(row).for_each(|(m, x)| *m += x.abs() / taken as f32);
        }
        let size = |row: &[f32]| row.iter().zip(&squares).map(|(x, w)| f64::from(x * x) * f64::from(*w)).sum::<f64>();
        let sizes = rows.chunks_exact(channels).map(|row| reciprocal(size(row)) as f32).collect();
        let mut ranges = Ranges { min: observed.min.clone(), max: observed.max.clone(), mean_abs, weight_max };
        share(&mut ranges.min, ties, f32::min);
        share(&mut ranges.max, ties, f32::max);
        share(&mut ranges.mean_abs, ties, f32::max);
        share(&mut ranges.weight_max, ties, f32::max);
        let (few, many) = (columns(matrices, channels, FEW_COLUMNS), columns(matrices, channels, COLUMNS));
        let exact = many.iter().map(|c| product(&rows, &c.values, channels, c.count)).collect();
        Operand { channels, rows, sizes, ranges, squares: of_bytes, scaling: scaling.unwrap_or_default(), few, many, exact }
    }

    fn count(&self) -> usize {
        self.rows.len() / self.channels
    }

    /// The estimate by channel: what rounding the mapped operand costs, if anything takes it in bytes, and what rounding the weights costs,
    /// as if errors of channels did not add up.
    pub(super) fn estimate(&self, map: &ChannelMap) -> f64 {
        let mapped = self.mapped(map);
        // Per channel, the mean of what its squares count.
        let mut means = vec![0f32; self.channels];
        for (row, size) in mapped.chunks_exact(self.channels).zip(&self.sizes) {
            means.iter_mut().zip(row).for_each(|(m, x)| *m += x * x * size);
        }
        let weights: f64 = self.few.iter().map(|c| c.error(map, &means)).sum::<f64>() / self.count() as f64;
        weights + if self.takes_bytes() { self.rounded(map, mapped).error } else { 0.0 }
    }

    /// Whether a product takes the operand in bytes.
    fn takes_bytes(&self) -> bool {
        self.squares.iter().any(|&s| s > 0.0)
    }

    /// The mapped rows.
    fn mapped(&self, map: &ChannelMap) -> Vec<f32> {
        let mut mapped = self.rows.clone();
        let inverse: Vec<f32> = map.scale.iter().map(|s| 1.0 / s).collect();
        for row in mapped.chunks_exact_mut(self.channels) {
            if let Some(shift) = &map.shift {
                row.iter_mut().zip(shift).for_each(|(x, z)| *x -= z);
            }
            row.iter_mut().zip(&inverse).for_each(|(x, s)| *x *= s);
        }
        mapped
    }

    /// Mapped rows in 8 bits: symmetric with a scale per row, or by one range for all, whichever costs less where the scheme leaves the
    /// choice.
    fn rounded(&self, map: &ChannelMap, mapped: Vec<f32>) -> RoundedRows {
        let weights: Vec<f32> = self.squares.iter().zip(&map.scale).map(|(w, s)| w * s * s).collect();
        let error = |values: &[f32]| -> f64 {
            let rows = values.chunks_exact(self.channels).zip(mapped.chunks_exact(self.channels)).zip(&self.sizes);
            let of_row = |(q, x): (&[f32], &[f32])| -> f32 { q.iter().zip(x).zip(&weights).map(|((q, x), w)| w * (q - x) * (q - x)).sum() };
            rows.map(|(row, size)| f64::from(of_row(row)) * f64::from(*size)).sum::<f64>() / self.count() as f64
        };
        let mut best = RoundedRows { error: f64::INFINITY, values: vec![] };
        if self.scaling != Scaling::Static {
            let mut values = mapped.clone();
            for row in values.chunks_exact_mut(self.channels) {
                let step = row.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
                to_grid(row, step, 0.0, -127.0, 127.0);
            }
            best = RoundedRows { error: error(&values), values };
        }
        if self.scaling == Scaling::Dynamic {
            return best;
        }
        let bound = |of: &[f32], pick: fn(f32, f32) -> f32| {
            let shifted = |j: usize| (of[j] - map.shift.as_ref().map_or(0.0, |z| z[j])) / map.scale[j];
            (0..self.channels).map(shifted).fold(0.0, pick)
        };
        let (lo, hi) = (bound(&self.ranges.min, f32::min), bound(&self.ranges.max, f32::max));
        for clip in CLIPS {
            let step = (hi - lo) * clip / 255.0;
            let zero = if step > 0.0 { round(-lo * clip / step) - 128.0 } else { 0.0 };
            let mut values = mapped.clone();
            to_grid(&mut values, step, zero, -128.0, 127.0);
            let error = error(&values);
            if error < best.error || best.values.is_empty() {
                best = RoundedRows { values, error };
            }
        }
        best
    }

    /// The error of the products themselves, with weights rounded as they will be.
    pub(super) fn measured(&self, map: &ChannelMap) -> f64 {
        let mapped = self.mapped(map);
        let rows = if self.takes_bytes() { self.rounded(map, mapped).values } else { mapped };
        self.difference(&rows, map, |c| c.rounded(map).stored())
    }

    /// The error of the products by the map alone, in f32.
    pub(super) fn of_map(&self, map: &ChannelMap) -> f64 {
        self.difference(&self.mapped(map), map, |c| c.scaled(map))
    }

    fn difference(&self, rows: &[f32], map: &ChannelMap, weights: impl Fn(&Columns) -> Vec<f32>) -> f64 {
        let (mut errors, mut norms) = (vec![0f64; self.count()], vec![0f64; self.count()]);
        for (c, exact) in self.many.iter().zip(&self.exact) {
            let found = product(rows, &weights(c), self.channels, c.count);
            let bias = map.shift.as_ref().map(|z| product(z, &c.values, self.channels, c.count));
            let bias = bias.unwrap_or_else(|| vec![0.0; c.count]);
            let rows = found.chunks_exact(c.count).zip(exact.chunks_exact(c.count));
            for ((y, exact), (error, norm)) in rows.zip(errors.iter_mut().zip(&mut norms)) {
                *error += y.iter().zip(&bias).zip(exact).map(|((y, b), e)| f64::from(y + b - e).powi(2)).sum::<f64>();
                *norm += exact.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>();
            }
        }
        errors.iter().zip(norms).map(|(e, n)| e * reciprocal(n)).sum::<f64>() / self.count() as f64
    }
}

/// 1/x, or 0 where that is not finite.
fn reciprocal(x: f64) -> f64 {
    if x > 0.0 && (1.0 / x).is_finite() { 1.0 / x } else { 0.0 }
}

/// Numbers that channels share become those of all of them.
fn share(values: &mut [f32], ties: &[u32], with: fn(f32, f32) -> f32) {
    for (j, &first) in ties.iter().enumerate() {
        values[first as usize] = with(values[first as usize], values[j]);
    }
    for (j, &first) in ties.iter().enumerate() {
        values[j] = values[first as usize];
    }
}

/// `x` becomes `step * (clamp(round(x / step) + zero) - zero)`.
fn to_grid(values: &mut [f32], step: f32, zero: f32, min: f32, max: f32) {
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    for x in values {
        // Within what `round` takes.
        let scaled = (*x * inverse).clamp(-4096.0, 4096.0);
        *x = ((round(scaled) + zero).clamp(min, max) - zero) * step;
    }
}

impl Columns {
    /// Σ_j m_j ‖W'_j - Q(W'_j)‖² for the means `m`, of all columns that these stand for.
    fn error(&self, map: &ChannelMap, means: &[f32]) -> f64 {
        let errors = self.rounded(map).row_errors;
        self.each * errors.iter().zip(means).map(|(error, mean)| error * f64::from(*mean)).sum::<f64>()
    }

    /// The columns with every channel's weights multiplied by its scale.
    fn scaled(&self, map: &ChannelMap) -> Vec<f32> {
        let mut scaled = self.values.clone();
        for (row, s) in scaled.chunks_exact_mut(self.count).zip(&map.scale) {
            row.iter_mut().for_each(|w| *w *= s);
        }
        scaled
    }

    /// The same, rounded.
    fn rounded(&self, map: &ChannelMap) -> Rounded {
        round_to_nearest(&self.scaled(map), map.scale.len(), self.count, self.bits, self.group)
    }
}

/// At most `limit` columns of all matrices, at equal distances, those together that are quantized alike.
fn columns(matrices: &[(Tensor, QuantSpec)], channels: usize, limit: usize) -> Vec<Columns> {
    let total: usize = matrices.iter().map(|(w, _)| w.sizes()[1]).sum();
    let step = total.div_ceil(limit).max(1);
    let mut sets: Vec<(QuantSpec, Vec<Vec<f32>>)> = vec![];
    let mut before = 0usize;
    for (w, spec) in matrices {
        let (values, n) = (w.values::<f32>(), w.sizes()[1]);
        let first = before.next_multiple_of(step) - before;
        let taken = (first..n).step_by(step).map(|c| (0..channels).map(|j| values[j * n + c]).collect());
        let taken: Vec<Vec<f32>> = taken.collect();
        match sets.iter_mut().find(|(s, _)| s == spec) {
            Some((_, set)) => set.extend(taken),
            None => sets.push((*spec, taken)),
        }
        before += n;
    }
    let set = |(spec, columns): (QuantSpec, Vec<Vec<f32>>)| {
        let QuantSpec::Int { weights, group, .. } = spec else { return None };
        let count = columns.len();
        let values = (0..channels * count).map(|at| columns[at % count][at / count]).collect();
        (count > 0).then_some(Columns { bits: weights, group, count, values, each: step as f64 })
    };
    sets.into_iter().filter_map(set).collect()
}

/// `x · w` for `x[rows, k]` and `w[k, n]`, four rows at a time.
fn product(x: &[f32], w: &[f32], k: usize, n: usize) -> Vec<f32> {
    let mut y = vec![0f32; x.len() / k * n];
    for (x, y) in x.chunks(4 * k).zip(y.chunks_mut(4 * n)) {
        if x.len() < 4 * k {
            for (x, y) in x.chunks_exact(k).zip(y.chunks_exact_mut(n)) {
                for (x, w) in x.iter().zip(w.chunks_exact(n)) {
                    y.iter_mut().zip(w).for_each(|(y, w)| *y += x * w);
                }
            }
            continue;
        }
        let (y0, rest) = y.split_at_mut(n);
        let (y1, rest) = rest.split_at_mut(n);
        let (y2, y3) = rest.split_at_mut(n);
        for (j, w) in w.chunks_exact(n).enumerate() {
            let [a, b, c, d] = [x[j], x[k + j], x[2 * k + j], x[3 * k + j]];
            let ys = y0.iter_mut().zip(y1.iter_mut()).zip(y2.iter_mut()).zip(y3.iter_mut());
            for ((((y0, y1), y2), y3), w) in ys.zip(w) {
                *y0 += a * w;
                *y1 += b * w;
                *y2 += c * w;
                *y3 += d * w;
            }
        }
    }
    y
}
