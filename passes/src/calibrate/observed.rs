//! What was seen of values, and how it is added up.

use super::taps::Part;
use std::collections::BTreeMap;
use std::sync::Arc;
use tfc_ir::graph::Value;

/// What was seen of one value: `count` rows of as many numbers as it has channels.
#[derive(Clone, PartialEq, Debug)]
pub struct Observed {
    /// The axis of the value along which its channels are; all other axes count rows.
    pub axis: usize,
    /// Rows that were seen, without those that the mask hides.
    pub count: u64,
    /// The smallest number of each channel; infinite if none was seen, NaN if one was.
    pub min: Vec<f32>,
    /// The largest number of each channel, likewise.
    pub max: Vec<f32>,
    /// The arithmetic mean of each channel.
    pub mean: Vec<f64>,
    /// The mean of the squares of each channel.
    pub mean_square: Vec<f64>,
    /// Some of the rows, `[rows, channels]` in row-major order: of every part of the data as many, at about equal distances, from
    /// other places of each part; the first row of the first part is among them.
    pub rows: Vec<f32>,
}

impl Observed {
    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.min.len()
    }

    /// Whether rows were seen and all numbers are finite.
    pub fn is_finite(&self) -> bool {
        self.count > 0 && self.min.iter().chain(&self.max).all(|x| x.is_finite()) && self.mean_square.iter().all(|x| x.is_finite())
    }

    /// The rows that were kept.
    pub fn sample(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.rows.chunks_exact(self.channels().max(1))
    }
}

/// What was seen of the values of a graph.
#[derive(Clone, Default, Debug)]
pub struct Statistics {
    observed: BTreeMap<Value, Arc<Observed>>,
}

impl Statistics {
    /// What was seen of a value.
    pub fn of(&self, v: Value) -> Option<&Arc<Observed>> {
        self.observed.get(&v)
    }

    /// All values that were observed, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Value, &Arc<Observed>)> {
        self.observed.iter().map(|(&v, o)| (v, o))
    }
}

impl FromIterator<(Value, Observed)> for Statistics {
    fn from_iter<I: IntoIterator<Item = (Value, Observed)>>(values: I) -> Statistics {
        Statistics { observed: values.into_iter().map(|(v, o)| (v, Arc::new(o))).collect() }
    }
}

/// Sums over the parts of the data so far.
pub(super) struct Accumulator {
    count: u64,
    min: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f64>,
    sum_of_squares: Vec<f64>,
    rows: Vec<f32>,
}

impl Accumulator {
    pub(super) fn new(channels: usize) -> Accumulator {
        let (min, max) = (vec![f32::INFINITY; channels], vec![f32::NEG_INFINITY; channels]);
        let sum = vec![0.0; channels];
        Accumulator { count: 0, min, max, sum_of_squares: sum.clone(), sum, rows: vec![] }
    }

    /// Adds what was seen in one part, and those of its rows that count among the given ones.
    pub(super) fn add(&mut self, part: &Part, rows: impl Iterator<Item = usize>) {
        // A NaN stays, on either side.
        let pick = |to: &mut f32, x: f32, better: bool| {
            if x.is_nan() || better {
                *to = x;
            }
        };
        self.count += part.count;
        self.min.iter_mut().zip(&*part.min).for_each(|(to, &x)| pick(to, x, x < *to));
        self.max.iter_mut().zip(&*part.max).for_each(|(to, &x)| pick(to, x, x > *to));
        self.sum.iter_mut().zip(&*part.sum).for_each(|(to, &x)| *to += f64::from(x));
        self.sum_of_squares.iter_mut().zip(&*part.sum_of_squares).for_each(|(to, &x)| *to += f64::from(x));
        let channels = self.min.len();
        for row in rows.filter(|&row| part.valid[row]) {
            self.rows.extend(&part.rows[row * channels..][..channels]);
        }
    }

    pub(super) fn finish(self, axis: usize) -> Observed {
        let n = self.count.max(1) as f64;
        let over = |sums: Vec<f64>| sums.into_iter().map(|s| s / n).collect();
        Observed {
            axis,
            count: self.count,
            min: self.min,
            max: self.max,
            mean: over(self.sum),
            mean_square: over(self.sum_of_squares),
            rows: self.rows,
        }
    }
}
