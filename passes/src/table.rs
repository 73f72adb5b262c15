//! The pass table: every pass by name, the pipelines of the optimization levels, and the driver.

use crate::calibrate::OracleError;
use crate::quantize::{LedgerEntry, QuantConfig};
use crate::side_data::SideData;
use crate::{
    calibrate, cse, dce, demote, eqsat, fold, fold_scales, fuse, integer_products, legalize, quantize, reparameterize, simplify,
    sink_reshapes,
};
use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tfc_ir::dim::Bindings;
use tfc_ir::graph::{Graph, Loc};
use tfc_ir::ops::InferError;

/// The graph that a pass made and what it did.
pub type PassResult = Result<(Graph, Stats), PassError>;

/// A pass of the table.
pub struct Pass {
    /// The name that users type in `--passes` and see in reports.
    pub name: &'static str,
    /// One line for lists of passes.
    pub summary: &'static str,
    /// The pass: a graph that computes the same, and what was done.
    pub run: fn(Graph, &Context) -> PassResult,
}

/// What passes know besides the graph.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Sizes to expect where a dimension is a symbol: they weigh alternatives against each other and
    /// never decide what is legal. Symbols without an entry count as [`crate::cost::NOMINAL_SIZE`].
    pub nominal: Bindings,
    /// How products are quantized, where [`quantize`] runs.
    pub quant: Option<QuantConfig>,
    /// Bytes of the constants of the graph before the first pass; [`run_pipeline`] fills it in.
    pub source_bytes: usize,
    /// What the caller provides, such as a [`crate::calibrate::Calibration`], and what the pass before said of the graph that it
    /// made ([`Stats::data`]). Only the next pass sees the latter: values of the graph have other names behind it.
    pub data: SideData,
}

/// What a pass did.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Counters under fixed names, in the order in which the pass reports them.
    counters: Vec<(&'static str, u64)>,
    /// What became of every matrix product, in order: from [`quantize`], else empty.
    pub ledger: Vec<LedgerEntry>,
    /// What it says of the graph that it made, for the next pass and for whoever observes.
    pub data: SideData,
    /// What a user should know about the results, a sentence each.
    pub notes: Vec<String>,
    /// How long parts of it took, in order: for reports only.
    pub times: Vec<(&'static str, Duration)>,
}

impl Stats {
    /// Adds to a counter; counters appear in the order of their first mention.
    pub fn count(&mut self, counter: &'static str, n: u64) {
        match self.counters.iter_mut().find(|(name, _)| *name == counter) {
            Some((_, total)) => *total += n,
            None => self.counters.push((counter, n)),
        }
    }

    /// Does a part of the pass, and notes how long it took.
    pub fn timed<T>(&mut self, part: &'static str, run: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = run();
        self.times.push((part, start.elapsed()));
        result
    }

    /// A counter's value, 0 if the pass did not mention it.
    pub fn get(&self, counter: &str) -> u64 {
        self.counters.iter().find(|(name, _)| *name == counter).map_or(0, |(_, n)| *n)
    }

    /// The counters in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'static str, u64)> + '_ {
        self.counters.iter().copied()
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, n)) in self.counters.iter().enumerate() {
            write!(f, "{}{name}: {n}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// Why a pass failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PassError {
    /// It built a node that its operands do not fit. This is a defect of the pass, not of the model.
    #[error("pass {} built a node that is not valid{}: {error}", if pass.is_empty() { "?" } else { pass }, place(loc))]
    Invalid {
        /// The pass; the driver fills it in.
        pass: &'static str,
        /// What the operator's inference said.
        error: InferError,
        /// Where the node came from.
        loc: Loc,
    },
    /// The graph could not be evaluated on the calibration data.
    #[error(transparent)]
    Calibration(#[from] OracleError),
}

fn place(loc: &Loc) -> String {
    if loc.names().len() == 0 { String::new() } else { format!(" (for {loc})") }
}

impl PassError {
    /// An error for a node that came from `loc`.
    pub fn new(error: InferError, loc: &Loc) -> PassError {
        PassError::Invalid { pass: "", error, loc: loc.clone() }
    }

    /// The error as one of `pass`.
    fn of(self, pass: &'static str) -> PassError {
        match self {
            PassError::Invalid { error, loc, .. } => PassError::Invalid { pass, error, loc },
            other => other,
        }
    }
}

/// How much work goes into the code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum OptLevel {
    /// Nodes become kernels one by one: for finding faults.
    O0,
    /// Rules that are exact, to the bit.
    O1,
    /// Also rules that change the rounding: recovered normalisations, attention, folded weights, products of stored integers;
    /// products of f64 are computed in f32.
    #[default]
    O2,
    /// Everything.
    O3,
}

/// Every pass, in alphabetical order.
pub const PASSES: &[&Pass] = &[
    &calibrate::PASS,
    &cse::PASS,
    &dce::PASS,
    &demote::PASS,
    &eqsat::PASS,
    &fold::PASS,
    &fold_scales::PASS,
    &fuse::PASS,
    &integer_products::PASS,
    &legalize::PASS,
    &quantize::PASS,
    &reparameterize::PASS,
    &simplify::PASS,
    &sink_reshapes::PASS,
];

const O0: &[&Pass] = &[&dce::PASS];

const O1: &[&Pass] = &[
    &fold::PASS, //
    &simplify::PASS,
    &cse::PASS,
    &dce::PASS,
    &legalize::PASS,
    &simplify::PASS,
    &cse::PASS,
    &dce::PASS,
    &sink_reshapes::PASS,
    &fuse::PASS,
];

const O2: &[&Pass] = &[
    // Stored matrices must not have become constants in f32 yet.
    &integer_products::PASS,
    &fold::PASS,
    &simplify::PASS,
    &cse::PASS,
    &dce::PASS,
    &eqsat::PASS,
    &fold::PASS,
    &simplify::PASS,
    &cse::PASS,
    &dce::PASS,
    &demote::PASS,
    &legalize::PASS,
    &simplify::PASS,
    &cse::PASS,
    &dce::PASS,
    &sink_reshapes::PASS,
    &fold_scales::PASS,
    &fuse::PASS,
];

/// The passes of an optimization level, in order.
pub fn pipeline(level: OptLevel) -> Vec<&'static Pass> {
    match level {
        OptLevel::O0 => O0,
        OptLevel::O1 => O1,
        OptLevel::O2 | OptLevel::O3 => O2,
    }
    .to_vec()
}

/// The passes of an optimization level for a model that is quantized: [`quantize`] sees what every other
/// rewrite has left, just before what prepares fusion, and the transposes that it adds are simplified.
pub fn quantizing_pipeline(level: OptLevel) -> Vec<&'static Pass> {
    let mut passes = pipeline(level);
    let at = passes.iter().position(|p| p.name == sink_reshapes::PASS.name).unwrap_or(passes.len());
    let added: &[&'static Pass] = match level {
        OptLevel::O0 => &[&quantize::PASS, &dce::PASS],
        _ => &[&quantize::PASS, &simplify::PASS, &cse::PASS, &dce::PASS],
    };
    passes.splice(at..at, added.iter().copied());
    passes
}

/// The passes of an optimization level for a model that is quantized by what calibration data shows: as
/// [`quantizing_pipeline`], but what [`calibrate`] observes first decides how [`reparameterize`] changes the model, which is then observed again.
pub fn calibrating_pipeline(level: OptLevel) -> Vec<&'static Pass> {
    let mut passes = quantizing_pipeline(level);
    let at = passes.iter().position(|p| p.name == quantize::PASS.name).unwrap_or(passes.len());
    let folds: &[&'static Pass] = match level {
        // Rules that change the rounding are for the levels that have such.
        OptLevel::O0 | OptLevel::O1 => &[],
        OptLevel::O2 | OptLevel::O3 => &[&calibrate::PASS, &reparameterize::PASS, &fold::PASS, &simplify::PASS, &cse::PASS, &dce::PASS],
    };
    passes.splice(at..at, folds.iter().copied().chain([&calibrate::PASS]));
    passes
}

/// No pass has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no pass called `{name}`; the passes are: {known}")]
pub struct UnknownPass {
    /// The name that was given.
    pub name: String,
    known: String,
}

/// The pass called `name`.
///
/// # Errors
/// When there is none; the error lists those that exist.
pub fn find(name: &str) -> Result<&'static Pass, UnknownPass> {
    PASSES
        .iter()
        .find(|p| p.name == name)
        .copied()
        .ok_or_else(|| UnknownPass { name: name.into(), known: PASSES.iter().map(|p| p.name).collect::<Vec<_>>().join(", ") })
}

/// The passes of a list such as `fold,cse,dce`. Spaces around names are ignored; an empty list is no pass.
///
/// # Errors
/// When a name is unknown.
pub fn parse_passes(list: &str) -> Result<Vec<&'static Pass>, UnknownPass> {
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(find).collect()
}

/// What an observer of a pipeline sees after each pass.
pub struct Ran<'a> {
    /// The pass.
    pub pass: &'static Pass,
    /// Its position in the pipeline, from 0.
    pub index: usize,
    /// The graph that it made.
    pub graph: &'a Graph,
    /// What it did.
    pub stats: &'a Stats,
    /// How long it took: for reports only.
    pub time: Duration,
}

/// Runs passes in order. `observer` is called after each one; it prints, dumps or verifies, and
/// ends the pipeline early by `Break`.
///
/// # Errors
/// The first error of a pass or of the observer.
pub fn run_pipeline<E: From<PassError>>(
    mut graph: Graph,
    passes: &[&'static Pass],
    cx: &Context,
    mut observer: impl FnMut(&Ran) -> Result<ControlFlow<()>, E>,
) -> Result<Graph, E> {
    let mut cx = Context { source_bytes: graph.constant_bytes(), ..cx.clone() };
    let given = cx.data.clone();
    for (index, &pass) in passes.iter().enumerate() {
        let start = Instant::now();
        let (next, stats) = (pass.run)(graph, &cx).map_err(|e| e.of(pass.name))?;
        graph = next;
        cx.data = stats.data.over(&given);
        if observer(&Ran { pass, index, graph: &graph, stats: &stats, time: start.elapsed() })?.is_break() {
            break;
        }
    }
    Ok(graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_holds_every_pipeline() {
        assert!(PASSES.windows(2).all(|w| w[0].name < w[1].name));
        for level in [OptLevel::O0, OptLevel::O1, OptLevel::O2, OptLevel::O3] {
            for p in pipeline(level) {
                assert!(find(p.name).is_ok(), "{}", p.name);
            }
        }
    }

    #[test]
    fn unknown_names_list_the_known_ones() {
        assert_eq!(parse_passes(" dce , fold,").unwrap().iter().map(|p| p.name).collect::<Vec<_>>(), ["dce", "fold"]);
        let error = parse_passes("dce,nothing").err().unwrap().to_string();
        assert!(error.contains("`nothing`") && error.contains("dce, demote, eqsat, fold"), "{error}");
    }

    #[test]
    fn the_observer_sees_every_pass_and_can_stop() {
        let mut seen = vec![];
        let passes = parse_passes("fold,cse,dce").unwrap();
        run_pipeline::<PassError>(Graph::new("g"), &passes, &Context::default(), |ran| {
            seen.push((ran.index, ran.pass.name));
            Ok(if ran.index == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .unwrap();
        assert_eq!(seen, [(0, "fold"), (1, "cse")]);
    }
}
