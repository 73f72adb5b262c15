//! Bias correction: what rounded weights add to every row alike is taken back.

use super::weights::Rounded;

/// What the mean row loses by rounding a matrix `[k, n]`: `E[x] · (W - Ŵ)`, a number for each of the `n` columns, to be added to the
/// products' bias (Nagel et al. 2019). The mean error of the products is 0 then, on rows with that mean; no other way
/// to choose the bias has a smaller squared error.
///
/// # Panics
/// When `mean` has not `k` numbers, or the matrix is not the one that was rounded.
pub fn correction(mean: &[f64], w: &[f32], rounded: &Rounded) -> Vec<f32> {
    let (k, n) = (rounded.codes.sizes()[0], rounded.codes.sizes()[1]);
    assert_eq!((mean.len(), w.len()), (k, k * n), "a mean for each row of the matrix");
    let mut lost = vec![0f64; n];
    for ((w, stored), mean) in w.chunks_exact(n.max(1)).zip(rounded.stored().chunks_exact(n.max(1))).zip(mean) {
        for ((lost, w), stored) in lost.iter_mut().zip(w).zip(stored) {
            *lost += mean * (f64::from(*w) - f64::from(*stored));
        }
    }
    lost.into_iter().map(|x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Group, WeightBits, round_to_nearest};
    use super::*;
    use proptest::prelude::*;

    /// `x · w` for one row.
    fn product(x: &[f64], w: &[f32], n: usize) -> Vec<f64> {
        let mut y = vec![0.0; n];
        for (x, w) in x.iter().zip(w.chunks_exact(n)) {
            y.iter_mut().zip(w).for_each(|(y, w)| *y += x * f64::from(*w));
        }
        y
    }

    proptest! {
        /// The mean error of all rows vanishes, and the squared error does not grow.
        #[test]
        fn the_mean_error_vanishes(
            w in prop::collection::vec(-1f32..1.0, 60), rows in prop::collection::vec(-1f64..3.0, 100),
            group in prop::option::of(3u32..6), four: bool,
        ) {
            let (k, n) = (20, 3);
            let bits = if four { WeightBits::Four } else { WeightBits::Eight };
            let rounded = round_to_nearest(&w, k, n, bits, group.map_or(Group::Channel, Group::Of));
            let count = rows.len() / k;
            let mean: Vec<f64> = (0..k).map(|j| rows.iter().skip(j).step_by(k).sum::<f64>() / count as f64).collect();
            let bias = correction(&mean, &w, &rounded);
            let stored = rounded.stored();
            let (mut sums, mut plain, mut corrected) = (vec![0.0; n], 0.0, 0.0);
            for x in rows.chunks_exact(k) {
                let (y, rounded) = (product(x, &w, n), product(x, &stored, n));
                for c in 0..n {
                    sums[c] += y[c] - rounded[c] - f64::from(bias[c]);
                    plain += (y[c] - rounded[c]).powi(2);
                    corrected += (y[c] - rounded[c] - f64::from(bias[c])).powi(2);
                }
            }
            prop_assert!(sums.iter().all(|s| s.abs() < 1e-5), "{sums:?}");
            prop_assert!(corrected <= plain + 1e-9, "{corrected} {plain}");
        }
    }

    #[test]
    fn weights_that_are_stored_exactly_need_none() {
        let w = [0.5, -0.5, 0.25, 0.25];
        let rounded = round_to_nearest(&[127.0, -127.0, 3.0, 64.0], 2, 2, WeightBits::Eight, Group::Channel);
        assert_eq!(correction(&[5.0, -3.0], &[127.0, -127.0, 3.0, 64.0], &rounded), [0.0, 0.0]);
        let rounded = round_to_nearest(&w, 2, 2, WeightBits::Four, Group::Channel);
        let lost = correction(&[0.0, 2.0], &w, &rounded);
        let stored = rounded.stored();
        assert_eq!(lost, [2.0 * (0.25 - stored[2]), 2.0 * (0.25 - stored[3])]);
    }
}
