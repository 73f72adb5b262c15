//! Rounding of weights to the nearest stored value.

use super::spec::{Group, WeightBits};
use crate::parallel;
use std::borrow::Cow;
use tfc_ir::quant::{Granularity, Scheme, dequantize, round};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;

/// A quantized matrix.
pub struct Rounded {
    /// The stored values, `[k, n]`.
    pub codes: Tensor,
    /// The scales: `[n]`, or `[groups, n]`.
    pub scales: Tensor,
    /// How they belong together.
    pub scheme: Scheme,
    /// ‖W - Ŵ‖ / ‖W‖; 0 for a matrix of zeros.
    pub relative_error: f64,
    /// Squares of W - Ŵ, summed over each row of the matrix.
    pub row_errors: Vec<f64>,
}

impl Rounded {
    /// What is stored, as numbers `[k, n]`.
    pub fn stored(&self) -> Vec<f32> {
        let (k, n) = (self.codes.sizes()[0], self.codes.sizes()[1]);
        let scales = self.scales.values::<f32>();
        let rows_per_scale = match self.scheme.granularity {
            Granularity::Blocks { size, .. } => size as usize,
            Granularity::Axis { .. } | Granularity::Tensor => k,
        };
        let mut stored = Vec::with_capacity(k * n);
        for (row, codes) in codes_of(&self.codes).chunks_exact(n.max(1)).enumerate() {
            let scales = &scales[row / rows_per_scale * n..][..n];
            stored.extend(codes.iter().zip(scales).map(|(&code, &scale)| dequantize(code.into(), scale, 0)));
        }
        stored
    }
}

/// A matrix in 8 bits with a scale for every row.
pub struct RoundedRows {
    /// The stored values, `[rows, n]`, in -127..=127.
    pub codes: Tensor,
    /// The scales, `[rows, 1]`.
    pub scales: Tensor,
    /// ‖W - Ŵ‖ / ‖W‖; 0 for a matrix of zeros.
    pub relative_error: f64,
}

/// Rounds a matrix `[rows, n]` of finite floats to 8 bits, with the scale `max |w| / 127` for every row.
pub fn round_rows(table: &Tensor) -> RoundedRows {
    /// Rows that are rounded as one task.
    const ROWS: usize = 1024;
    let [rows, n] = table.sizes()[..] else { unreachable!("a matrix has two axes") };
    let floats: Cow<Tensor> = match table.elem() {
        Elem::F32 => Cow::Borrowed(table),
        _ => Cow::Owned(Tensor::build(Elem::F32, table.sizes(), |i| table.get(i))),
    };
    let w = floats.values::<f32>();
    let parts = parallel::map(rows.div_ceil(ROWS), |part| {
        let rows = &w[part * ROWS * n..w.len().min((part + 1) * ROWS * n)];
        let (mut codes, mut scales, mut error, mut norm) = (Vec::with_capacity(rows.len()), vec![], 0.0, 0.0);
        for row in rows.chunks_exact(n) {
            let scale = row.iter().fold(0f32, |l, w| l.max(w.abs())) / 127.0;
            for &w in row {
                let stored = nearest(w, scale, [-127.0, 127.0]);
                codes.push(stored as i32 as i8);
                error += (f64::from(w) - f64::from(scale * stored)).powi(2);
                norm += f64::from(w).powi(2);
            }
            scales.push(scale);
        }
        (codes, scales, error, norm)
    });
    let (mut codes, mut scales, mut error, mut norm) = (Vec::with_capacity(w.len()), Vec::with_capacity(rows), 0.0, 0.0);
    for part in parts {
        codes.extend(part.0);
        scales.extend(part.1);
        error += part.2;
        norm += part.3;
    }
    let relative_error = if norm > 0.0 { (error / norm).sqrt() } else { 0.0 };
    RoundedRows { codes: Tensor::of(&[rows, n], codes), scales: Tensor::of(&[rows, 1], scales), relative_error }
}

/// Integers of 4 or 8 bits, two of 4 in a byte, the first one in its low half.
fn codes_of(codes: &Tensor) -> Cow<'_, [i8]> {
    match codes.elem() {
        Elem::I4 => {
            let halves = |byte: &u8| [(byte << 4) as i8 >> 4, *byte as i8 >> 4];
            codes.bytes().iter().flat_map(halves).take(codes.len()).collect()
        }
        _ => codes.values(),
    }
}

/// A tensor of integers of 4 bits.
fn of_halves(sizes: &[usize], codes: &[i8]) -> Tensor {
    let bytes: Vec<u8> = codes.chunks(2).map(|pair| (pair[0] & 15) as u8 | (pair.get(1).map_or(0, |c| *c as u8) << 4)).collect();
    Tensor::new(Elem::I4, sizes.to_vec(), bytes.into()).expect("two numbers in a byte")
}

/// Rounds a matrix `[k, n]` of finite numbers, with a scale for every column, or for every group of
/// rows in it.
///
/// With 8 bits the scale of a group is `max |w| / 127`. With 4 bits it is one of two, the one with the
/// smaller squared error (the first, if they are equal): `max |w| / 7`, which uses -7..=7, or `-v / 8` with `v`
/// the value of largest magnitude, which is stored as -8 and leaves 7 steps for the other side.
pub fn round_to_nearest(w: &[f32], k: usize, n: usize, bits: WeightBits, group: Group) -> Rounded {
    assert_eq!(w.len(), k * n, "elements of the matrix");
    let (storage, min, max) = match bits {
        WeightBits::Four => (Elem::I4, -8, 7),
        WeightBits::Eight => (Elem::I8, -127, 127),
    };
    let ends = [min as f32, max as f32];
    let (size, granularity) = match group {
        Group::Of(size) if (size as usize) < k => (size as usize, Granularity::Blocks { axis: 0, size }),
        _ => (k, Granularity::Axis { axis: 1 }),
    };
    let mut codes = vec![0i8; k * n];
    let (mut scales, mut row_errors) = (vec![], vec![]);
    let (mut error, mut norm) = (0.0, 0.0);
    for (rows, codes) in w.chunks(size * n).zip(codes.chunks_mut(size * n)) {
        // Of every column the value of largest magnitude, the first of them.
        let mut largest = vec![0f32; n];
        for row in rows.chunks_exact(n) {
            largest.iter_mut().zip(row).for_each(|(l, &w)| *l = if w.abs() > l.abs() { w } else { *l });
        }
        let columns = |divide: fn(f32) -> f32| -> Candidate {
            let scales: Vec<f32> = largest.iter().map(|&l| divide(l)).collect();
            let errors = squared_errors(rows, &scales, ends);
            Candidate { scales, errors }
        };
        let best = match bits {
            WeightBits::Eight => columns(|l| l.abs() / 127.0),
            WeightBits::Four => columns(|l| l.abs() / 7.0).or(columns(|l| -l / 8.0)),
        };
        for (row, codes) in rows.chunks_exact(n).zip(codes.chunks_exact_mut(n)) {
            let mut row_error = 0.0;
            for ((&w, &scale), code) in row.iter().zip(&best.scales).zip(codes) {
                let stored = nearest(w, scale, ends);
                *code = stored as i32 as i8;
                row_error += (f64::from(w) - f64::from(scale * stored)).powi(2);
            }
            row_errors.push(row_error);
        }
        error += best.errors.iter().sum::<f64>();
        norm += rows.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
        scales.extend(best.scales);
    }
    let groups = scales.len() / n;
    let sizes = if matches!(granularity, Granularity::Axis { .. }) { vec![n] } else { vec![groups, n] };
    let codes = match bits {
        WeightBits::Eight => Tensor::of(&[k, n], codes),
        WeightBits::Four => of_halves(&[k, n], &codes),
    };
    Rounded {
        codes,
        scales: Tensor::of(&sizes, scales),
        scheme: Scheme { storage, min: min as i16, max: max as i16, granularity, symmetric: true, scale: Elem::F32 },
        relative_error: if norm > 0.0 { (error / norm).sqrt() } else { 0.0 },
        row_errors,
    }
}

/// Scales of the columns of a group, and their squared errors.
struct Candidate {
    scales: Vec<f32>,
    errors: Vec<f64>,
}

impl Candidate {
    /// Column by column the better one.
    fn or(mut self, other: Candidate) -> Candidate {
        for (i, &e) in other.errors.iter().enumerate() {
            if e < self.errors[i] {
                (self.errors[i], self.scales[i]) = (e, other.scales[i]);
            }
        }
        self
    }
}

fn squared_errors(rows: &[f32], scales: &[f32], ends: [f32; 2]) -> Vec<f64> {
    let mut errors = vec![0f64; scales.len()];
    for row in rows.chunks_exact(scales.len()) {
        for ((&w, &scale), error) in row.iter().zip(scales).zip(&mut errors) {
            *error += (f64::from(w) - f64::from(scale * nearest(w, scale, ends))).powi(2);
        }
    }
    errors
}

/// What is stored for `w`: [`tfc_ir::quant::quantize`] without a zero point, in operations that vector units have.
fn nearest(w: f32, scale: f32, [min, max]: [f32; 2]) -> f32 {
    let q = w / scale;
    let q = if q.is_nan() { 0.0 } else { q };
    let q = if q > min { q } else { min };
    round(if q < max { q } else { max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tfc_ir::tensor::Scalar;

    #[test]
    fn halves_of_bytes_are_integers() {
        for n in [0, 1, 6, 7] {
            let numbers: Vec<i8> = (0..n).map(|i| (i * 5 % 16) as i8 - 8).collect();
            let t = of_halves(&[numbers.len()], &numbers);
            assert_eq!(t, Tensor::build(Elem::I4, &[numbers.len()], |i| Scalar::Int(numbers[i].into())));
            assert_eq!(*codes_of(&t), numbers);
        }
    }

    fn codes(r: &Rounded) -> Vec<i64> {
        r.codes.to_i64s().unwrap()
    }

    #[test]
    fn the_better_range_is_taken() {
        // -8 and 7 steps fit exactly; for the second column -7 and 7 do; the third is the first with other signs.
        let w = [-0.8, -0.7, 0.8, 0.7, 0.7, -0.7, 0.1, 0.1, -0.1];
        let r = round_to_nearest(&w, 3, 3, WeightBits::Four, Group::Channel);
        assert_eq!(codes(&r), [-8, -7, -8, 7, 7, 7, 1, 1, 1]);
        let scales = r.scales.to_f64s();
        assert!(scales.iter().zip([0.1, 0.1, -0.1]).all(|(a, b)| (a - b).abs() < 1e-6), "{scales:?}");
        assert!(r.relative_error < 1e-6);
    }

    #[test]
    fn groups_have_their_own_scales_and_zeros_stay() {
        let w = [127.0, 0.0, -254.0, 0.0, 1.0, 0.0];
        let r = round_to_nearest(&w, 3, 2, WeightBits::Eight, Group::Of(2));
        assert_eq!((codes(&r), r.scales.to_f64s()), (vec![64, 0, -127, 0, 127, 0], vec![2.0, 0.0, f64::from(1f32 / 127.0), 0.0]));
        assert_eq!(r.scales.sizes(), [2, 2]);
        assert_eq!(r.scheme.granularity, Granularity::Blocks { axis: 0, size: 2 });
        // A group that holds everything is a channel.
        let r = round_to_nearest(&w, 3, 2, WeightBits::Eight, Group::Of(32));
        assert_eq!((r.scales.sizes(), r.scheme.granularity), (&[2][..], Granularity::Axis { axis: 1 }));
    }

    #[test]
    fn rows_have_their_own_scales() {
        let w = Tensor::of(&[3, 2], vec![127f32, -1.4, 0.0, 0.0, 1.0, -2.0]);
        let r = round_rows(&w);
        assert_eq!((r.codes.to_i64s().unwrap(), r.scales.sizes()), (vec![127, -1, 0, 0, 64, -127], &[3, 1][..]));
        assert_eq!(r.scales.values::<f32>()[..], [1.0, 0.0, 2.0 / 127.0]);
        // The codes of a matrix whose columns the rows are.
        let columns = round_to_nearest(&[127.0, 0.0, 1.0, -1.4, 0.0, -2.0], 2, 3, WeightBits::Eight, Group::Channel);
        assert_eq!((codes(&columns), columns.scales.to_f64s()), (vec![127, 0, 64, -1, 0, -127], r.scales.to_f64s()));
        assert!((columns.relative_error - r.relative_error).abs() < 1e-12 && r.relative_error > 0.0);
        // More rows than one task takes, of another type.
        let w = Tensor::build(Elem::F16, &[2500, 3], |i| Scalar::Float((i % 7) as f64 - 3.0));
        let r = round_rows(&w);
        let near = |i: usize| (w.get(i).to_f64() - r.codes.get(i).to_f64() * r.scales.get(i / 3).to_f64()).abs() < 0.012;
        assert!((0..w.len()).all(near));
    }

    proptest! {
        /// The number that is stored is the one that the scheme defines.
        #[test]
        fn the_nearest_is_stored(w in prop::num::f32::NORMAL | prop::num::f32::ZERO | prop::num::f32::SUBNORMAL, scale in -2f32..2.0, by in -3i32..4) {
            for scale in [scale, w / 127.0, 0.0, w * (by as f32 + 0.5)] {
                for (min, max) in [(-8, 7), (-127, 127)] {
                    prop_assert_eq!(nearest(w, scale, [min as f32, max as f32]) as i32, tfc_ir::quant::quantize(w, scale, 0, min, max));
                }
            }
        }

        /// Every weight is off by half a step at most, or by the part of a step that clamping to 7 of 8 cuts off.
        #[test]
        fn errors_are_bounded(w in prop::collection::vec(-8f32..8.0, 1..60), n in 1usize..4, group in 1u32..9, eight: bool) {
            let k = w.len() / n;
            prop_assume!(k > 0);
            let w = &w[..k * n];
            let bits = if eight { WeightBits::Eight } else { WeightBits::Four };
            let r = round_to_nearest(w, k, n, bits, Group::Of(group));
            let (codes, scales) = (codes(&r), r.scales.to_f64s());
            let (mut error, mut norm) = (0.0, 0.0);
            for (i, &w) in w.iter().enumerate() {
                let scale = scales[if scales.len() == n { i % n } else { i / n / group as usize * n + i % n }];
                let difference = (f64::from(w) - codes[i] as f64 * scale).abs();
                let bound = if scale < 0.0 || codes[i] == -8 { 1.0 } else { 0.5001 };
                prop_assert!(difference <= scale.abs() * bound + 1e-9 || codes[i] == 7, "{w} {} {scale}", codes[i]);
                error += difference * difference;
                norm += f64::from(w).powi(2);
            }
            prop_assert!((r.relative_error - (error / norm.max(1e-30)).sqrt()).abs() < 1e-3);
            prop_assert!((r.row_errors.iter().sum::<f64>() - error).abs() <= 1e-3 * error + 1e-9);
        }
    }
}
