//! `calibrate`: what the left operands of products are like, seen on data.
//!
//! The pass changes nothing. It adds taps to a copy of the graph ([`tapped`]): for every value that a quantized product multiplies,
//! reductions over all its rows and a few rows as they are. An [`Oracle`] evaluates that copy on the calibration data, and what
//! comes out is added up to [`Statistics`], which the next pass finds in its context.
//!
//! Memory does not grow with the data: sums take as much for any number of samples, and of the rows at most
//! [`MAX_ROWS`] of each value are kept, fewer in large models ([`MAX_ROWS_BYTES`]).
//!
//! [`moments`] sums up `x xᵀ` of such values, for passes that ask for it; what that takes grows with the square of the channels, so
//! it has a few values in memory at a time.
//!
//! What was observed once can be given again instead of data: a [`Record`].

mod moments;
mod observed;
mod record;
mod taps;

pub use moments::{Moments, moments};
pub use observed::{Observed, Statistics};
pub use record::Record;
pub use taps::{Tap, Taps, tapped, tapped_moments};

use crate::quantize;
use crate::table::{Context, Pass, PassResult, Stats};
use observed::Accumulator;
use std::sync::Arc;
use tfc_ir::graph::{Graph, Value};
use tfc_ir::tensor::Tensor;

/// Observes the left operands of products on the calibration data of the context; without any, it does nothing.
pub const PASS: Pass = Pass { name: "calibrate", summary: "observe the operands of products on calibration data", run };

/// The most rows of a value that are kept.
pub const MAX_ROWS: usize = 512;

/// The most bytes of all rows that are kept, as long as each value has [`MIN_ROWS`].
pub const MAX_ROWS_BYTES: usize = 256 << 20;

/// The fewest rows of a value that are kept, if the data has so many.
pub const MIN_ROWS: usize = 64;

/// The fewest rows that each part of the data offers.
const OFFERED: usize = 64;

/// What can evaluate graphs on calibration data.
pub trait Oracle: Send + Sync {
    /// In how many parts the data is evaluated.
    fn batches(&self) -> usize;

    /// Evaluates a graph that has the inputs of the model on every part of the data, in order. `each` gets the part's number and
    /// the results.
    ///
    /// # Errors
    /// When the graph cannot be compiled or fails on the data, such as by an index out of range.
    fn evaluate(&self, graph: &Graph, each: &mut dyn FnMut(usize, Vec<Tensor>)) -> Result<(), OracleError>;
}

/// Why a graph could not be evaluated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct OracleError {
    /// What failed.
    pub message: String,
    /// The exit code that the failure deserves: 1 if the data is at fault or an operation failed, 3 if something is unsupported.
    pub code: u8,
}

/// Where statistics come from.
#[derive(Clone)]
pub enum Source {
    /// What evaluates graphs on calibration data.
    Data(Arc<dyn Oracle>),
    /// What was observed before.
    Record(Arc<Record>),
}

/// The calibration data, as the caller of the passes provides it in [`Context::data`].
#[derive(Clone)]
pub struct Calibration {
    /// The data, or what was seen of it.
    pub source: Source,
    /// The input of the graph whose zeros are positions that do not count, such as padding; none if all count.
    pub mask: Option<String>,
}

fn run(graph: Graph, cx: &Context) -> PassResult {
    let mut stats = Stats::default();
    let (Some(calibration), Some(config)) = (cx.data.get::<Calibration>(), &cx.quant) else { return Ok((graph, stats)) };
    let sites = quantize::sites(&graph, config);
    let taps: Vec<Tap> = sites.iter().map(|s| Tap { value: s.operand, axis: s.axis }).collect();
    let statistics = observe(&graph, &taps, calibration)?;
    stats.count("values observed", taps.len() as u64);
    stats.count("rows observed", statistics.iter().map(|(_, o)| o.count).sum());
    stats.data.insert(statistics);
    Ok((graph, stats))
}

/// Observes values on calibration data, or takes what a record has of them.
///
/// # Errors
/// Those of the oracle or of [`Record::next`].
pub fn observe(graph: &Graph, taps: &[Tap], calibration: &Calibration) -> Result<Statistics, crate::PassError> {
    let oracle = match &calibration.source {
        Source::Data(oracle) => oracle,
        Source::Record(record) => return Ok(record.next(graph, taps)?),
    };
    if taps.is_empty() {
        return Ok(Statistics::default());
    }
    let mask = mask(graph, calibration.mask.as_deref());
    let batches = oracle.batches().max(1);
    let row_bytes: usize = taps.iter().map(|t| 4 * t.channels(graph)).sum();
    let rows = (MAX_ROWS_BYTES / row_bytes.max(1)).clamp(MIN_ROWS, MAX_ROWS);
    // Every so many parts give rows, so many each.
    let (every, of_each) = (batches.div_ceil(rows), (rows / batches).max(1));
    // Parts offer rows at the same places, so each gives others of them: tokens at one place are alike in many models.
    let places = OFFERED.div_ceil(of_each);
    let Taps { graph: observer, layout } = tapped(graph, taps, mask, of_each * places)?;
    let mut accumulators: Vec<Accumulator> = taps.iter().map(|t| Accumulator::new(t.channels(graph))).collect();
    oracle.evaluate(&observer, &mut |batch, results| {
        for (part, accumulator) in layout.parts(&results).zip(&mut accumulators) {
            accumulator.add(&part, (0..if batch % every == 0 { of_each } else { 0 }).map(|i| i * places + place(batch, i, places)));
        }
    })?;
    Ok(taps.iter().zip(accumulators).map(|(t, a)| (t.value, a.finish(t.axis))).collect())
}

/// The input called `name`.
fn mask(graph: &Graph, name: Option<&str>) -> Option<Value> {
    let name = name?;
    graph.inputs().iter().copied().find(|&v| graph.value(v).name.as_deref() == Some(name))
}

/// Which of so many places row `i` of a part comes from: all of them are as likely, and the first part gives the first.
fn place(part: usize, i: usize, places: usize) -> usize {
    let mixed = (part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7 * (i % 64) as u32);
    (mixed >> 32) as usize % places
}

#[cfg(test)]
mod tests;
