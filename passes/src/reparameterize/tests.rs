use super::candidates::*;
use proptest::prelude::*;
use tfc_ir::quant::round;

fn ranges(bounds: &[(f32, f32)], weight_max: &[f32]) -> Ranges {
    let (min, max) = bounds.iter().copied().unzip();
    let mean_abs = bounds.iter().map(|(lo, hi)| (hi - lo) / 4.0).collect();
    Ranges { min, max, mean_abs, weight_max: weight_max.to_vec() }
}

fn bounds() -> impl Strategy<Value = Vec<(f32, f32)>> {
    prop::collection::vec((-50f32..50.0, 0.01f32..60.0).prop_map(|(lo, width)| (lo, lo + width)), 2..20)
}

proptest! {
    /// One scale and one whole zero point give, for the mapped numbers, the codes that every channel's own gave before.
    #[test]
    fn reparameterized_codes_are_those_of_each_channel(
        bounds in bounds(), bits in prop::sample::select(vec![4u32, 8]), parts in prop::collection::vec(0f64..1.0, 64), median: bool,
    ) {
        let levels = f64::from((1u32 << bits) - 1);
        let quantizers: Vec<(f64, f64)> = bounds.iter().map(|&(lo, hi)| affine(lo.into(), hi.into(), levels)).collect();
        let target = if median { Target::Median } else { Target::Mean };
        let (scales, shifts, (scale, zero)) = reparameterized(&quantizers, target);
        prop_assert_eq!(zero, zero.round());
        for (j, (&(lo, hi), &(own, z))) in bounds.iter().zip(&quantizers).enumerate() {
            for part in &parts {
                let x = f64::from(lo) + part * f64::from(hi - lo);
                let mapped = (x - shifts[j]) / scales[j];
                // Codes are compared away from the middle between two of them, where either is right.
                let steps = x / own;
                if (steps - steps.floor() - 0.5).abs() > 1e-6 {
                    prop_assert_eq!((mapped / scale).round_ties_even() + zero, steps.round_ties_even() + z);
                }
            }
        }
    }

    /// Every channel is centred, and none reaches beyond the threshold.
    #[test]
    fn suppressed_channels_are_centred_within_the_threshold(bounds in bounds(), t in 0.5f32..60.0) {
        let map = suppressed(&ranges(&bounds, &vec![1.0; bounds.len()]), t, true);
        let shift = map.shift.unwrap();
        for (j, (lo, hi)) in bounds.into_iter().enumerate() {
            let [lo, hi] = [lo, hi].map(|x| (x - shift[j]) / map.scale[j]);
            prop_assert!((lo + hi).abs() <= 1e-4 * hi.max(1.0) && hi <= t * 1.0001, "{lo} {hi} {t}");
            prop_assert!(map.scale[j] >= 1.0);
        }
    }

    /// With all of the strength on the activations they become 1, with none of it the weights do.
    #[test]
    fn smoothing_moves_ranges_to_either_side(bounds in bounds(), weight in 0.1f32..3.0, shift: bool) {
        let weights: Vec<f32> = (0..bounds.len()).map(|j| weight * (j + 1) as f32).collect();
        let ranges = ranges(&bounds, &weights);
        let all = smoothed(&ranges, 1.0, shift);
        for (j, (lo, hi)) in bounds.iter().enumerate() {
            let z = all.shift.as_ref().map_or(0.0, |z| z[j]);
            let largest = [lo, hi].map(|x| ((x - z) / all.scale[j]).abs()).into_iter().fold(0.0, f32::max);
            prop_assert!((largest - 1.0).abs() < 1e-4, "{largest}");
        }
        let none = smoothed(&ranges, 0.0, shift);
        prop_assert!(none.scale.iter().zip(&weights).all(|(s, w)| (s * w - 1.0).abs() < 1e-4));
    }

    /// The grid contains the bounds as they are.
    #[test]
    fn clipping_never_loses(rows in prop::collection::vec(-4f32..4.0, 8..200), spike in 0f32..100.0) {
        let mut rows = rows;
        rows[0] = spike;
        let (lo, hi) = rows.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &x| (lo.min(x), hi.max(x)));
        let error = |lo: f32, hi: f32| -> f32 {
            let step = (hi - lo) / 255.0;
            rows.iter().map(|x| (x - (lo + round((x.clamp(lo, hi) - lo) / step) * step)).powi(2)).sum()
        };
        let clipped = dual_clipping(&rows, &ranges(&[(lo, hi)], &[1.0]), &[0])[0];
        prop_assert!(clipped.0 >= lo.min(lo / 2.0) && clipped.1 <= hi.max(hi / 2.0));
        prop_assert!(error(clipped.0, clipped.1) <= error(lo, hi) * 1.001 + 1e-6);
    }

    #[test]
    fn rounding_is_to_the_nearest_even(x in -4_000_000f32..4_000_000.0) {
        prop_assert_eq!(round(x), x.round_ties_even());
        prop_assert_eq!(round(x.trunc() + 0.5), (x.trunc() + 0.5).round_ties_even());
    }
}

#[test]
fn an_outlier_moves_the_mean_but_not_the_median() {
    let mut scales: Vec<f64> = (1..=20).map(|i| 0.1 * f64::from(i)).collect();
    let before = [Target::Mean, Target::Median, Target::Clipped].map(|t| t.of(&scales));
    scales[19] *= 1000.0;
    let after = [Target::Mean, Target::Median, Target::Clipped].map(|t| t.of(&scales));
    assert!(after[0] > 50.0 * before[0], "{after:?}");
    assert_eq!(after[1..], before[1..]);
}

#[test]
fn channels_without_range_stay_in_place() {
    let quantizers = [affine(2.0, 2.0, 255.0), affine(-1.0, 3.0, 255.0)];
    let (scales, shifts, _) = reparameterized(&quantizers, Target::Mean);
    assert_eq!((scales[0], shifts[0]), (1.0, 0.0));
    assert_eq!((scales[1], shifts[1]), (1.0, 0.0));
}

#[test]
fn outliers_are_counted_against_the_median() {
    let bounds: Vec<(f32, f32)> = (0..9).map(|i| (0.0, if i == 4 { 9.0 } else { 1.0 })).collect();
    assert_eq!(ranges(&bounds, &[1.0; 9]).outliers(), 1);
}

#[test]
fn channels_that_are_tied_have_one_representative() {
    assert_eq!(super::representatives(5, &[(1, 3), (3, 4), (0, 0)]), Some(vec![0, 1, 2, 1, 1]));
    assert_eq!(super::representatives(5, &[(1, u32::MAX)]), None);
}

/// Heads with the same values must be mapped alike, though what attention makes of them differs.
#[test]
fn channels_that_are_tied_get_the_same_numbers() {
    // Channels 0 and 2 are one; 0 has an outlier that the others have not.
    let rows: Vec<f32> =
        (0..64).flat_map(|i| [1.0, 1.0, 0.3].map(|by| by * ((i * 37 % 64) as f32 / 32.0 - 1.0))).chain([8.0, 1.0, 0.3]).collect();
    let ranges = ranges(&[(-1.0, 8.0), (-1.0, 1.0), (-1.0, 8.0)], &[1.0; 3]);
    let [free, tied] = [[0, 1, 2], [0, 1, 0]].map(|ties| dual_clipping(&rows, &ranges, &ties));
    assert_ne!(free[0], free[2]);
    assert!(tied[0] == tied[2] && tied[1] == free[1], "{tied:?}");
    for candidate in candidates(&ranges, &tied, true) {
        assert_eq!(candidate.map.scale[0], candidate.map.scale[2], "{:?}", candidate.method);
        assert_eq!(candidate.map.shift.as_ref().map(|z| z[0]), candidate.map.shift.as_ref().map(|z| z[2]), "{:?}", candidate.method);
    }
}
