//! How near the outputs of a compiled model are to those of a reference, and what was promised about that.
//!
//! [`Accumulator`] adds up three measures of one output over any number of batches, in f64 and in a fixed order:
//!
//! - the *relative RMS error* ‖a - r‖ / ‖r‖ over all elements that count, 0 if both are equal;
//! - the *divergence*: the mean over rows of KL(softmax(r) ‖ softmax(a)) = Σ p_r (ln p_r - ln p_a), in nats, where a row is what lies
//!   along the last axis;
//! - the *top-1 agreement*: in how many percent of the rows the largest elements are at the same place; of equal ones the first counts.
//!
//! Rows have two elements or more; outputs without such rows have only an error. A mask leaves out positions, such as padding
//! ([`Accumulator::add`]). What is not finite never counts as near: equal infinities and NaNs on both sides are left out of the error,
//! on one side they make it infinite.

use crate::diag::{Diagnostic, Result, list, table};
use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Type};
use tfc_passes::parallel;

/// The sums of one output.
#[derive(Clone, Debug, Default)]
pub struct Accumulator {
    elements: u64,
    squared_error: f64,
    squared_reference: f64,
    rows: u64,
    divergence: f64,
    agreeing: u64,
}

/// What was measured of one output. A measure is absent if nothing counted: no element, or no row of two or more.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Measured {
    /// ‖a - r‖ / ‖r‖, 0 or more, may be infinite.
    pub error: Option<f64>,
    /// The mean divergence of softmax over the last axis in nats, 0 or more, may be infinite.
    pub divergence: Option<f64>,
    /// Rows whose largest elements are at the same place, in percent.
    pub top1: Option<f64>,
}

/// Two tensors that should have the same sizes have not.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the output is {actual}, and its reference {reference}")]
pub struct ShapeError {
    actual: Type,
    reference: Type,
}

impl Accumulator {
    /// Adds an output and its reference, tensors of the same sizes. Where `mask` is zero does not count, if some of the leading axes
    /// (all but the last) are together as many positions as the mask has: a mask `[batch, seq]` holds for `[batch, seq, classes]` and
    /// for `[batch * seq, classes]`, not for `[batch, classes]`.
    ///
    /// # Errors
    /// When the sizes differ. Nothing is added then.
    pub fn add(&mut self, actual: &Tensor, reference: &Tensor, mask: Option<&Tensor>) -> std::result::Result<(), ShapeError> {
        self.add_some(actual, reference, mask, usize::MAX)
    }

    /// The same for `most` of the rows along the last axis that count, at about equal distances, if there are more.
    ///
    /// # Errors
    /// As [`Accumulator::add`].
    pub fn add_some(
        &mut self,
        actual: &Tensor,
        reference: &Tensor,
        mask: Option<&Tensor>,
        most: usize,
    ) -> std::result::Result<(), ShapeError> {
        if actual.sizes() != reference.sizes() {
            return Err(ShapeError { actual: actual.ty(), reference: reference.ty() });
        }
        let width = row_width(actual.sizes());
        let rows: Vec<usize> = (0..actual.len() / width).filter(visible(actual.sizes(), mask)).collect();
        let rows: Vec<usize> = rows.iter().copied().step_by(rows.len().div_ceil(most).max(1)).collect();
        let parts: Vec<&[usize]> = rows.chunks((ELEMENTS / width).max(1)).collect();
        let values = [actual, reference].map(Floats::of);
        let sums = parallel::map(parts.len(), |i| {
            let mut sums = Accumulator::default();
            let [mut a, mut r] = [vec![], vec![]];
            for &row in parts[i] {
                values[0].read(row * width..(row + 1) * width, &mut a);
                values[1].read(row * width..(row + 1) * width, &mut r);
                sums.add_row(&a, &r);
            }
            sums
        });
        sums.iter().for_each(|part| self.merge(part));
        Ok(())
    }

    fn merge(&mut self, other: &Accumulator) {
        self.elements += other.elements;
        self.squared_error += other.squared_error;
        self.squared_reference += other.squared_reference;
        self.rows += other.rows;
        self.divergence += other.divergence;
        self.agreeing += other.agreeing;
    }

    fn add_row(&mut self, actual: &[f64], reference: &[f64]) {
        let same = |a: f64, r: f64| a == r || a.is_nan() && r.is_nan();
        let mut identical = true;
        for (&a, &r) in actual.iter().zip(reference) {
            identical &= same(a, r);
            if a.is_finite() && r.is_finite() {
                self.squared_error += (a - r) * (a - r);
                self.squared_reference += r * r;
            } else if !same(a, r) {
                self.squared_error = f64::INFINITY;
            }
        }
        self.elements += actual.len() as u64;
        if actual.len() < 2 {
            return;
        }
        self.rows += 1;
        let largest = (argmax(actual), argmax(reference));
        self.agreeing += u64::from(identical || largest.0.is_some() && largest.0 == largest.1);
        if !identical {
            self.divergence += divergence(actual, reference);
        }
    }

    /// The measures of everything that was added.
    pub fn finish(&self) -> Measured {
        let error = match (self.squared_error, self.squared_reference) {
            (0.0, _) => 0.0,
            (e, r) if e.is_finite() && r.is_finite() && r > 0.0 => e.sqrt() / r.sqrt(),
            _ => f64::INFINITY,
        };
        let of_rows = |x: f64| (self.rows > 0).then_some(x / self.rows as f64);
        Measured {
            error: (self.elements > 0).then_some(error),
            divergence: of_rows(self.divergence),
            top1: of_rows(100.0 * self.agreeing as f64),
        }
    }
}

/// How many rows of an output have their largest element at the class that a label says.
#[derive(Clone, Debug, Default)]
pub struct Classified {
    /// Rows that count.
    pub rows: u64,
    /// Those with the right class.
    pub right: u64,
}

/// Labels do not fit an output.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LabelError {
    /// They are not integers, or of another shape than the axes of the output before the last one.
    #[error("the labels are {labels}, but {output} needs an integer for each of its rows{}", sizes(output))]
    Type {
        /// The labels.
        labels: Type,
        /// The output.
        output: Type,
    },
    /// A label is no class.
    #[error("label {index} is {label}, but there are the classes 0 to {}", classes - 1)]
    Class {
        /// Which one, in row-major order.
        index: usize,
        /// The label.
        label: i128,
        /// The number of classes.
        classes: usize,
    },
}

fn sizes(output: &Type) -> String {
    let rank = output.rank();
    if rank == 0 { String::new() } else { format!(", of the shape {}", tfc_ir::types::Shape(output.shape.0[..rank - 1].to_vec())) }
}

impl Classified {
    /// Adds an output `[..., classes]` with labels `[...]`, integers. Positions that `mask` hides do not count, as in
    /// [`Accumulator::add`].
    ///
    /// # Errors
    /// When types or sizes do not fit, or a label that counts is not one of the classes.
    pub fn add(&mut self, output: &Tensor, labels: &Tensor, mask: Option<&Tensor>) -> std::result::Result<(), LabelError> {
        let fits = !labels.elem().is_float() && output.rank() > 0 && output.sizes()[..output.rank() - 1] == *labels.sizes();
        let classes = row_width(output.sizes());
        if !fits || output.sizes().last() == Some(&0) {
            return Err(LabelError::Type { labels: labels.ty(), output: output.ty() });
        }
        let (values, mut row) = (Floats::of(output), vec![]);
        for index in (0..output.len() / classes).filter(visible(output.sizes(), mask)) {
            values.read(index * classes..(index + 1) * classes, &mut row);
            let label = labels.get(index).to_i128();
            let class = usize::try_from(label).ok().filter(|&c| c < classes).ok_or(LabelError::Class { index, label, classes })?;
            self.rows += 1;
            self.right += u64::from(argmax(&row) == Some(class));
        }
        Ok(())
    }

    /// The share of rows with the right class in percent; `None` without any row.
    pub fn percent(&self) -> Option<f64> {
        (self.rows > 0).then(|| 100.0 * self.right as f64 / self.rows as f64)
    }
}

/// About as many elements are compared by one thread at a time.
const ELEMENTS: usize = 1 << 16;

/// The elements of a tensor as floats.
enum Floats<'t> {
    /// As they lie in memory.
    F32(Cow<'t, [f32]>),
    /// Of another type.
    Other(&'t Tensor),
}

impl Floats<'_> {
    fn of(t: &Tensor) -> Floats<'_> {
        if t.elem() == Elem::F32 { Floats::F32(t.values()) } else { Floats::Other(t) }
    }

    /// Some of them, in place of what `to` has.
    fn read(&self, range: Range<usize>, to: &mut Vec<f64>) {
        to.clear();
        match self {
            Floats::F32(values) => to.extend(values[range].iter().map(|&x| f64::from(x))),
            Floats::Other(t) => to.extend(range.map(|i| t.get(i).to_f64())),
        }
    }
}

/// The size of the last axis, 1 without axes. Never 0: there are no rows then anyway.
fn row_width(sizes: &[usize]) -> usize {
    sizes.last().copied().unwrap_or(1).max(1)
}

/// Which rows of a tensor count.
fn visible(sizes: &[usize], mask: Option<&Tensor>) -> impl Fn(&usize) -> bool {
    let leading = &sizes[..sizes.len().saturating_sub(1)];
    let covers = |mask: &&Tensor| (1..=leading.len()).find(|&n| leading[..n].iter().product::<usize>() == mask.len());
    let hides = mask.and_then(|mask| {
        let n = covers(&mask)?;
        let shown: Vec<bool> = mask.iter().map(|x| x.to_f64() != 0.0).collect();
        Some((shown, leading[n..].iter().product::<usize>()))
    });
    move |row| hides.as_ref().is_none_or(|(shown, inner)| shown[row / inner])
}

/// The first of the largest elements; `None` if there is a NaN.
fn argmax(row: &[f64]) -> Option<usize> {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if x.is_nan() {
            return None;
        }
        if *x > row[best] {
            best = i;
        }
    }
    Some(best)
}

/// KL(softmax(reference) ‖ softmax(actual)); infinite where either is not defined.
fn divergence(actual: &[f64], reference: &[f64]) -> f64 {
    let largest = |row: &[f64]| row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (a, r) = (largest(actual), largest(reference));
    // Sums of e^x, of e^y and of e^y (y - x), where the largest x and y are 0.
    let (mut of_actual, mut of_reference, mut weighed) = (0.0, 0.0, 0.0);
    for (x, y) in actual.iter().zip(reference) {
        let (x, y) = (x - a, y - r);
        let e = y.exp();
        of_actual += x.exp();
        of_reference += e;
        weighed += if y == f64::NEG_INFINITY { 0.0 } else { e * (y - x) };
    }
    let sum: f64 = weighed / of_reference - of_reference.ln() + of_actual.ln();
    // Rounding may leave a little less than 0.
    if sum.is_nan() { f64::INFINITY } else { sum.max(0.0) }
}

/// A measure that can be promised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Metric {
    /// The relative RMS error is at most the limit.
    Error,
    /// The divergence is at most the limit, in nats.
    Divergence,
    /// The top-1 agreement is at least the limit, in percent.
    Top1,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 3] = [Metric::Error, Metric::Divergence, Metric::Top1];

    /// The option that promises it, without dashes.
    pub fn option(self) -> &'static str {
        match self {
            Metric::Error => "max-error",
            Metric::Divergence => "max-kl",
            Metric::Top1 => "require-top1",
        }
    }

    /// What was measured.
    pub fn of(self, measured: &Measured) -> Option<f64> {
        match self {
            Metric::Error => measured.error,
            Metric::Divergence => measured.divergence,
            Metric::Top1 => measured.top1,
        }
    }

    /// Whether a value is within a limit; what is not a number is not.
    pub fn keeps(self, value: f64, limit: f64) -> bool {
        match self {
            Metric::Error | Metric::Divergence => value <= limit,
            Metric::Top1 => value >= limit,
        }
    }

    /// A value with its unit.
    pub fn text(self, value: f64) -> String {
        match self {
            Metric::Error | Metric::Divergence => format!("{value:.3e}"),
            Metric::Top1 => format!("{value:.3}%"),
        }
    }
}

/// A limit of one measure.
#[derive(Clone, PartialEq, Debug)]
pub struct Bound {
    /// The measure.
    pub metric: Metric,
    /// The output; without a name, every output of floats that has the measure and no limit of its own.
    pub output: Option<String>,
    /// The limit in the unit of the measure.
    pub limit: f64,
}

/// How near the outputs of a compiled model must be to those of the model in f32. Of several bounds for the same, the last one holds.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Promise(pub Vec<Bound>);

/// A bound and what was measured.
#[derive(Clone, PartialEq, Debug)]
pub struct Checked {
    /// The output.
    pub output: String,
    /// The measure.
    pub metric: Metric,
    /// The limit.
    pub wanted: f64,
    /// The value; absent if nothing counted.
    pub measured: Option<f64>,
}

impl Checked {
    /// Whether the promise is kept. It is not if there was nothing to measure.
    pub fn kept(&self) -> bool {
        self.measured.is_some_and(|m| self.metric.keeps(m, self.wanted))
    }
}

impl Promise {
    /// Whether nothing is promised.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks, before anything is measured, that the outputs it names are among `outputs`, those of floats.
    ///
    /// # Errors
    /// Of usage: an output has no such name, or there are no outputs of floats.
    pub fn fits(&self, outputs: &[&str]) -> Result<()> {
        for bound in &self.0 {
            let option = format!("--{bound}");
            match &bound.output {
                Some(name) if !outputs.contains(&name.as_str()) => {
                    return Err(Diagnostic::usage(format!("{option}: the model has no output of floats called `{name}`"))
                        .note(format!("it has {}", list(outputs.iter().copied()))));
                }
                None if outputs.is_empty() => return Err(Diagnostic::usage(format!("{option}: the model has no output of floats"))),
                _ => {}
            }
        }
        Ok(())
    }

    /// Compares the promise with what was measured of each output of floats, measure by measure.
    pub fn check(&self, measured: &[(String, Measured)]) -> Vec<Checked> {
        let mut all = vec![];
        for metric in Metric::ALL {
            let bounds = || self.0.iter().rev().filter(move |b| b.metric == metric);
            for (name, m) in measured {
                let own = bounds().find(|b| b.output.as_deref() == Some(name));
                let Some(bound) = own.or_else(|| bounds().find(|b| b.output.is_none() && metric.of(m).is_some())) else { continue };
                all.push(Checked { output: name.clone(), metric, wanted: bound.limit, measured: metric.of(m) });
            }
            // A promise about nothing is not kept.
            if let Some(bound) = bounds().find(|b| b.output.is_none())
                && !all.iter().any(|c| c.metric == metric)
            {
                all.push(Checked { output: "(none)".into(), metric, wanted: bound.limit, measured: None });
            }
        }
        all
    }
}

impl fmt::Display for Bound {
    /// As on the command line, without the dashes: `max-error=logits=0.01`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=", self.metric.option())?;
        if let Some(output) = &self.output {
            write!(f, "{output}=")?;
        }
        write!(f, "{}", self.limit)
    }
}

/// A table of what was wanted and what was measured.
pub fn promises_table(checked: &[Checked]) -> String {
    let mut rows = vec![["output", "promise", "wanted", "measured", "verdict"].map(String::from)];
    for c in checked {
        let sign = if c.metric == Metric::Top1 { ">=" } else { "<=" };
        let measured = c.measured.map_or("nothing to measure".into(), |m| c.metric.text(m));
        let verdict = if c.kept() { "kept" } else { "missed" };
        let wanted = format!("{sign} {}", c.metric.text(c.wanted));
        rows.push([c.output.clone(), c.metric.option().into(), wanted, measured, verdict.into()]);
    }
    table(&rows)
}

/// The failure, if a promise was missed.
pub fn missed(checked: &[Checked]) -> Option<Box<Diagnostic>> {
    let missed: Vec<String> = checked.iter().filter(|c| !c.kept()).map(|c| format!("--{} of `{}`", c.metric.option(), c.output)).collect();
    (!missed.is_empty())
        .then(|| Diagnostic::new(crate::diag::Exit::Accuracy, format!("an accuracy budget was missed: {}", missed.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(sizes: &[usize], values: &[f32]) -> Tensor {
        Tensor::of(sizes, values.to_vec())
    }

    fn measured(sizes: &[usize], a: &[f32], r: &[f32], mask: Option<(&[usize], &[i64])>) -> Measured {
        let mask = mask.map(|(s, v)| Tensor::of(s, v.to_vec()));
        let mut sums = Accumulator::default();
        sums.add(&t(sizes, a), &t(sizes, r), mask.as_ref()).unwrap();
        sums.finish()
    }

    #[test]
    fn errors_are_relative_to_the_norm_of_the_reference() {
        let m = measured(&[2, 2], &[3.0, 0.0, 0.0, 4.5], &[3.0, 0.0, 0.0, 4.0], None);
        assert_eq!((m.error, m.top1), (Some(0.1), Some(100.0)));
        // Batches add up as if they were one.
        let (mut parts, whole) = (Accumulator::default(), m);
        parts.add(&t(&[1, 2], &[3.0, 0.0]), &t(&[1, 2], &[3.0, 0.0]), None).unwrap();
        parts.add(&t(&[1, 2], &[0.0, 4.5]), &t(&[1, 2], &[0.0, 4.0]), None).unwrap();
        assert_eq!(parts.finish(), whole);
        assert!(Accumulator::default().add(&t(&[2], &[0.0; 2]), &t(&[1, 2], &[0.0; 2]), None).is_err());
        // Of 5 rows at most 3 are every second one.
        let mut some = Accumulator::default();
        let rows = |wrong: [f32; 5]| t(&[5, 2], &wrong.map(|x| [4.0, 3.0 + x]).concat());
        some.add_some(&rows([0.0, 9.0, 0.5, 9.0, 0.0]), &rows([0.0; 5]), None, 3).unwrap();
        assert_eq!((some.rows, some.squared_error), (3, 0.25));
    }

    #[test]
    fn divergence_and_agreement_are_of_rows() {
        let ln = |p: f32| p.ln();
        // The reference says 1/2, 1/2; the output 1/4, 3/4.
        let m = measured(&[2], &[ln(0.25), ln(0.75)], &[0.0, 0.0], None);
        let wanted = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((m.divergence.unwrap() - wanted).abs() < 1e-7, "{m:?}");
        // Of equals the first counts.
        assert_eq!(m.top1, Some(0.0));
        assert_eq!(measured(&[1, 3], &[1.0, 5.0, 5.0], &[0.0, 2.0, 1.0], None).top1, Some(100.0));
        assert_eq!(measured(&[2, 2], &[1.0, 0.0, 1.0, 0.0], &[1.0, 0.0, 0.0, 1.0], None).top1, Some(50.0));
        // What has no probability in the reference does not count, the other way round everything is lost.
        let cut = f32::NEG_INFINITY;
        assert!(measured(&[3], &[1.0, 2.0, -50.0], &[1.0, 2.0, cut], None).divergence.unwrap() < 1e-12);
        assert_eq!(measured(&[3], &[1.0, 2.0, cut], &[1.0, 2.0, 0.0], None).divergence, Some(f64::INFINITY));
    }

    #[test]
    fn outputs_without_rows_have_an_error_only() {
        for sizes in [&[][..], &[1], &[1, 1]] {
            let m = measured(sizes, &[1.0], &[2.0], None);
            assert_eq!((m.error, m.divergence, m.top1), (Some(0.5), None, None));
        }
        assert_eq!(measured(&[0, 4], &[], &[], None), Measured::default());
        assert_eq!(measured(&[4, 0], &[], &[], None), Measured::default());
    }

    #[test]
    fn a_reference_of_zeros_needs_zeros() {
        assert_eq!(measured(&[2], &[0.0, -0.0], &[0.0; 2], None).error, Some(0.0));
        assert_eq!(measured(&[2], &[0.0, 1e-30], &[0.0; 2], None).error, Some(f64::INFINITY));
    }

    #[test]
    fn what_is_not_a_number_is_never_near() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (a, r) in [([nan, 1.0], [0.0, 1.0]), ([0.0, 1.0], [nan, 1.0]), ([inf, 1.0], [0.0, 1.0]), ([inf, 1.0], [-inf, 1.0])] {
            let m = measured(&[2], &a, &r, None);
            assert_eq!((m.error, m.divergence), (Some(f64::INFINITY), Some(f64::INFINITY)), "{a:?} {r:?}");
        }
        assert_eq!(measured(&[2], &[0.0, nan], &[0.0, 1.0], None).top1, Some(0.0));
        // Both alike: nothing differs, and an infinite norm hides no other error.
        let m = measured(&[2, 2], &[nan, inf, 1.0, 2.0], &[nan, inf, 1.0, 1.0], None);
        assert_eq!(m.error, Some(1.0 / 2f64.sqrt()));
        assert_eq!(
            measured(&[1, 2], &[nan, inf], &[nan, inf], None),
            Measured { error: Some(0.0), divergence: Some(0.0), top1: Some(100.0) }
        );
        let keeps = |metric: Metric, limit| metric.keeps(f64::NAN, limit);
        assert!(!keeps(Metric::Error, f64::INFINITY) && !keeps(Metric::Top1, 0.0));
    }

    #[test]
    fn masked_positions_are_left_out() {
        let (a, r) = ([1.0, 0.0, 9.0, 9.0, 0.0, 1.0, 9.0, 0.0], [1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
        let mask = Some((&[2, 2][..], &[1, 0, 1, 0][..]));
        let good = Measured { error: Some(0.0), divergence: Some(0.0), top1: Some(100.0) };
        assert_eq!(measured(&[2, 2, 2], &a, &r, mask), good);
        assert_eq!(measured(&[4, 2], &a, &r, mask), good);
        // Inner axes belong to the positions before them.
        assert_eq!(measured(&[2, 2, 1, 2], &a, &r, mask), good);
        let sequences = measured(&[2, 2, 2], &[1.0, 0.0, 0.0, 1.0, 9.0, 9.0, 9.0, 0.0], &r, Some((&[2, 1], &[1, 0])));
        assert_eq!(sequences, good);
        assert!(measured(&[2, 2, 2], &a, &r, Some((&[2, 2], &[1, 1, 0, 0]))).error > Some(1.0));
        // The mask has other axes than the output.
        assert_eq!(measured(&[2, 4], &a, &r, mask).error, measured(&[2, 4], &a, &r, None).error);
        assert_eq!(measured(&[2, 2, 2], &a, &r, Some((&[2, 2], &[0; 4]))), Measured::default());
    }

    #[test]
    fn labels_are_classes() {
        let output = t(&[3, 2], &[0.0, 1.0, 1.0, 0.0, f32::NAN, 0.0]);
        let labels = |v: &[i64]| Tensor::of(&[v.len()], v.to_vec());
        let mut sums = Classified::default();
        sums.add(&output, &labels(&[1, 1, 0]), None).unwrap();
        assert_eq!(sums.percent(), Some(100.0 / 3.0));
        let error = |labels: &Tensor| Classified::default().add(&output, labels, None).unwrap_err().to_string();
        assert_eq!(error(&labels(&[1, 2, 0])), "label 1 is 2, but there are the classes 0 to 1");
        assert!(error(&labels(&[1, -1, 0])).contains("label 1 is -1"));
        assert!(error(&labels(&[1, 0])).contains("i64[2]"));
        assert!(error(&t(&[3], &[0.0; 3])).contains("f32[3]"));
        // Labels of hidden positions may be anything.
        let output = t(&[1, 2, 2], &[0.0, 1.0, 1.0, 0.0]);
        let mut sums = Classified::default();
        sums.add(&output, &Tensor::of(&[1, 2], vec![1i64, -100]), Some(&Tensor::of(&[1, 2], vec![1i64, 0]))).unwrap();
        assert_eq!(sums.percent(), Some(100.0));
    }

    #[test]
    fn promises_are_kept_or_missed() {
        let bound = |metric, output: Option<&str>, limit| Bound { metric, output: output.map(Into::into), limit };
        let of = |error, top1| Measured { error: Some(error), divergence: top1, top1 };
        let measured = [("a".to_string(), of(0.1, Some(99.0))), ("b".to_string(), of(0.3, None))];
        let promise = Promise(vec![bound(Metric::Error, None, 0.2), bound(Metric::Error, Some("b"), 0.3), bound(Metric::Top1, None, 99.5)]);
        let kept: Vec<(String, bool)> = promise.check(&measured).iter().map(|c| (c.output.clone(), c.kept())).collect();
        assert_eq!(kept, [("a".into(), true), ("b".into(), true), ("a".into(), false)]);
        assert_eq!(missed(&promise.check(&measured)).unwrap().exit, crate::diag::Exit::Accuracy);
        assert!(missed(&Promise(promise.0[..2].to_vec()).check(&measured)).is_none());
        // What cannot be measured is not kept.
        let named = Promise(vec![bound(Metric::Top1, Some("b"), 0.0)]);
        assert!(!named.check(&measured)[0].kept());
        assert!(!Promise(vec![bound(Metric::Divergence, None, 1.0)]).check(&measured[1..])[0].kept());
        assert!(named.fits(&["a", "b"]).is_ok());
        assert!(named.fits(&["a"]).unwrap_err().to_string().contains("--require-top1=b=0: the model has no output of floats called `b`"));
        let text = promises_table(&promise.check(&measured));
        assert!(text.contains("a       require-top1  >= 99.500%   99.000%   missed"), "{text}");
    }
}
