//! The way of a model through the compiler.
//!
//! ```text
//! load      .onnx is decoded and imported, .tir is parsed        → Graph
//! optimize  the passes of a level, or of a list, with observers  → Optimized
//! lower     the verifier, then the scheduler                     → Program
//! jit       machine code in memory                               → Model
//! ```
//!
//! What becomes of a program otherwise (objects, bundles, listings) is in [`crate::emit`] and
//! `artifact`.

use crate::calibration::contract::{self, Quantized};
use crate::calibration::data::Batch;
use crate::calibration::{Accuracy, Compiled, Contract, Data, Holdout, Progress, cache, evaluate};
use crate::diag::{self, Diagnostic, Result, list};
use crate::emit::jit;
use crate::files::{self, Pending, Place};
use crate::kernel::Program;
use crate::metrics::Promise;
use crate::onnx::{self, DimSpec, ImportOptions};
use crate::schedule::schedule;
use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tfc_ir::dim::{Dim, Symbol};
use tfc_ir::graph::{Graph, Loc};
use tfc_ir::text;
use tfc_ir::verify::verify;
use tfc_passes::calibrate::{Calibration, Record, Source, Statistics};
use tfc_passes::quantize::{Gates, Memo};
use tfc_passes::reparameterize::{Fold, Folds};
use tfc_passes::side_data::SideData;
use tfc_passes::{
    Context, LedgerEntry, OptLevel, Pass, PassError, QuantConfig, Ran, calibrating_pipeline, pipeline, quantizing_pipeline, run_pipeline,
};
use tfc_runtime::Model;
use xxhash_rust::xxh3::Xxh3;

/// How a model is compiled, up to the program.
#[derive(Clone, Default)]
pub struct Options {
    /// Shapes and dimensions that the user fixes or bounds.
    pub import: ImportOptions,
    /// Which passes run, unless `passes` says so.
    pub level: OptLevel,
    /// Exactly these passes.
    pub passes: Option<Vec<&'static Pass>>,
    /// How products are quantized; `None` leaves the model as it is.
    pub quant: Option<QuantConfig>,
    /// The data that decides how; only with `quant`.
    pub calibration: Option<CalibrationOptions>,
    /// The verifier runs after each pass, not only at the begin and at the end.
    pub verify_each: bool,
}

/// What a model is calibrated on.
#[derive(Clone)]
pub struct CalibrationOptions {
    /// Archives with samples; none if a cache has all that is needed.
    pub paths: Vec<PathBuf>,
    /// The file that keeps what is observed ([`cache`]): if it is there, it is used and the samples are only measured on; else it is
    /// written.
    pub cache: Option<PathBuf>,
    /// The input whose zeros are positions that do not count.
    pub mask: Option<String>,
    /// How many samples are only measured on.
    pub holdout: Holdout,
    /// How many threads evaluate the model.
    pub threads: usize,
    /// Who is told how far it is.
    pub progress: Arc<dyn Progress>,
    /// What must hold on the samples that are held out.
    pub promise: Promise,
    /// Whether it is measured what part of the error each layer has.
    pub shares: bool,
}

impl CalibrationOptions {
    /// What the data and the cache provide.
    ///
    /// # Errors
    /// As [`Data::read`] and [`cache::read`], when the mask is no input, and when there is neither data nor a cache.
    fn read(&self, graph: &Graph, options: &Options) -> Result<Provided> {
        let names: Vec<&str> = graph.inputs().iter().map(|&v| graph.value(v).name.as_deref().unwrap_or_default()).collect();
        if let Some(mask) = self.mask.as_deref().filter(|m| !names.contains(m)) {
            return Err(Diagnostic::usage(format!("--calib-mask {mask}: the model has no such input"))
                .note(format!("the model's inputs are: {}", list(names))));
        }
        let exists = |path: &PathBuf| path.try_exists().map_err(|e| Diagnostic::io("read", path, &e));
        let cached = self.cache.as_ref().map(exists).transpose()?.unwrap_or(false);
        if self.paths.is_empty() && !cached {
            let file = self.cache.as_deref().map_or(String::new(), |path| format!("--calib-cache {}: ", path.display()));
            return Err(Diagnostic::usage(format!("{file}there is no such file, and no data to calibrate on"))
                .help("give samples with --calib DATA.npz; what is observed on them is written to the file"));
        }
        // Whoever waits for calibration shall not learn only at its end that there is no place for the cache.
        if let Some(path) = self.cache.as_deref().filter(|_| !cached) {
            files::check(path)?;
        }
        let data = if self.paths.is_empty() { None } else { Some(Data::read(&self.paths, graph, self.holdout)?) };
        let key = self.cache.clone().map(|path| (path, cache::Key::new(graph, options, data.as_ref().map(|d| d.hash))));
        let (learned, held_out) = data.map_or((vec![], vec![]), |d| (d.learned, d.held_out));
        let (source, record) = match key {
            Some((path, key)) if cached => {
                let record = Record::new(format!("the calibration cache `{}`", path.display()), cache::read(&path, &key)?);
                (Source::Record(Arc::new(record)), None)
            }
            key => {
                let oracle = Compiled { batches: learned, threads: self.threads, progress: self.progress.clone() };
                (Source::Data(Arc::new(oracle)), key)
            }
        };
        Ok(Provided { calibration: Calibration { source, mask: self.mask.clone() }, held_out, record })
    }
}

/// What calibration works with.
struct Provided {
    /// For the passes.
    calibration: Calibration,
    /// What is measured on.
    held_out: Vec<Batch>,
    /// The cache to write, if there is one.
    record: Option<(PathBuf, cache::Key)>,
}

impl Options {
    /// Adds what must hold of the result. `shares` asks for the part of the error that each layer has.
    ///
    /// # Errors
    /// When something is promised that there are no samples to measure on.
    pub fn promise(&mut self, promise: Promise, shares: bool) -> Result<()> {
        let options = || list(promise.0.iter().map(|b| format!("--{b}")).collect::<Vec<_>>().iter().map(String::as_str));
        match &mut self.calibration {
            calibration if !promise.is_empty() && calibration.as_ref().is_none_or(|c| c.paths.is_empty()) => {
                Err(Diagnostic::usage(format!("{} can only be kept on samples", options()))
                    .help("give some with --calib DATA.npz; for a model that is compiled already there is `tfc verify`"))
            }
            None => Ok(()),
            Some(c) if c.holdout == Holdout::Count(0) && !promise.is_empty() => {
                Err(Diagnostic::usage(format!("--holdout 0 leaves no samples to measure {} on", options())))
            }
            Some(c) => {
                (c.promise, c.shares) = (promise, shares);
                Ok(())
            }
        }
    }

    /// The passes that run, in order.
    pub fn pipeline(&self) -> Vec<&'static Pass> {
        let of_level = || match (&self.quant, &self.calibration) {
            (Some(_), Some(_)) => calibrating_pipeline(self.level),
            (Some(_), None) => quantizing_pipeline(self.level),
            (None, _) => pipeline(self.level),
        };
        self.passes.clone().unwrap_or_else(of_level)
    }
}

/// A graph behind the passes.
#[derive(Clone)]
pub struct Optimized {
    /// The graph.
    pub graph: Graph,
    /// What quantization did to every product, in order; empty if the model was not quantized.
    pub ledger: Vec<LedgerEntry>,
    /// What a user should know about the results, a sentence each.
    pub notes: Vec<String>,
    /// How near it is to the model in f32, if samples were held out to measure that.
    pub accuracy: Option<Accuracy>,
}

/// A model that was read.
pub struct Loaded {
    /// The graph; it is valid.
    pub graph: Graph,
    /// Hash of the model's file and of its graph's tensors, wherever they lie; whatever sizes it was imported with.
    pub hash: u128,
    /// What in the model is odd but does no harm.
    pub warnings: Vec<String>,
}

/// Whether a path names a graph in text form.
pub fn is_tir(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "tir")
}

/// The file of constants of one graph in text form: `model.tir.bin` for `model.tir`.
pub fn companion(tir: &Path) -> PathBuf {
    let mut name: OsString = tir.into();
    name.push(".bin");
    name.into()
}

/// The name of the file of constants of all graphs in a folder of dumps.
pub const SHARED_CONSTANTS: &str = "constants.bin";

/// The file of constants of a graph in text form: its own, else that of its folder; `None` if there is neither.
fn constants_of(tir: &Path) -> Option<PathBuf> {
    [companion(tir), tir.with_file_name(SHARED_CONSTANTS)].into_iter().find(|path| path.exists())
}

/// Reads a model: `.tir` as text, with its file of constants if there is one, everything else as ONNX.
///
/// # Errors
/// When the file cannot be read, is not such a model, uses what is not supported, or contradicts `import`.
pub fn load(path: &Path, import: &ImportOptions) -> Result<Loaded> {
    let file = onnx::map_file(path)?;
    // Of what the model has, not of what sizes made of it: with other sizes it is still the same model.
    let mut hash = Xxh3::new();
    hash.update(&file);
    let (graph, warnings) = if is_tir(path) {
        let graph = parse(path, &file, import)?;
        let constants = graph.values().filter_map(|(v, _)| graph.as_const(v));
        constants.for_each(|t| hash.update(&t.content_hash().to_le_bytes()));
        (graph, vec![])
    } else {
        let model = decode(path)?;
        model.graph.initializers.iter().for_each(|(_, t)| hash.update(&t.content_hash().to_le_bytes()));
        self::import(&model, import)?
    };
    if let Err(errors) = verify(&graph) {
        if !is_tir(path) {
            return Err(diag::verifier(&errors, "the import"));
        }
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(Diagnostic::failed("the graph in the file is not valid").at(format!("`{}`", path.display())).note(lines.join("\n")));
    }
    Ok(Loaded { graph, hash: hash.digest128(), warnings })
}

/// Imports a model. Where it takes no sizes as `import` gives, the error says which it takes.
fn import(model: &onnx::model::Model, import: &ImportOptions) -> Result<(Graph, Vec<String>)> {
    onnx::import_with_warnings(model, import).map_err(|e| sizes_taken(model, import, e.into()))
}

/// An error of an import with sizes, with what the model takes in front of it if it is that.
pub fn sizes_taken(model: &onnx::model::Model, import: &ImportOptions, e: Box<Diagnostic>) -> Box<Diagnostic> {
    if e.exit != diag::Exit::Failed || *import == ImportOptions::default() {
        return e;
    }
    // What the model says of its sizes if nothing else does.
    let Ok((graph, _)) = onnx::import_with_warnings(model, &ImportOptions::default()) else { return e };
    let given = |(name, spec): (&String, &DimSpec)| match spec {
        DimSpec::Fixed(n) => (format!("`{name}`"), Dim::from(Symbol::new(name)), *n, *n),
        DimSpec::Range(r) => (format!("`{name}`"), Dim::from(Symbol::new(name)), r.min, r.max),
    };
    let inputs = graph.inputs().iter().filter_map(|&v| Some((graph.value(v).name.as_deref()?, &graph.ty(v).shape.0)));
    let shapes = inputs.filter_map(|(name, dims)| Some((name, dims, import.shapes.get(name)?))).flat_map(|(name, dims, sizes)| {
        let axis = move |(axis, (dim, &n)): (usize, (&Dim, &i64))| (format!("{dim} (axis {axis} of `{name}`)"), dim.clone(), n, n);
        dims.iter().zip(sizes).enumerate().map(axis).collect::<Vec<_>>()
    });
    for (what, dim, min, max) in import.dims.iter().map(given).chain(shapes) {
        let Some(symbol) = dim.as_symbol() else { continue };
        let Some(takes) = graph.symbols.get(symbol) else { continue };
        if min <= takes.max && takes.min <= max {
            continue;
        }
        let by = graph.bounds.get(symbol).map_or(String::new(), |loc| format!(", by node `{loc}`"));
        let given = if min == max { min.to_string() } else { format!("{min}..{max}") };
        let limit = if min > takes.max { format!("at most {}", takes.max) } else { format!("at least {}", takes.min) };
        let file = format!("`{}`", model.file.display());
        return Diagnostic::failed(format!("the dimension {what} cannot be {given}: the model takes {limit}{by}")).at(file).note(e.text());
    }
    e
}

/// Decodes an ONNX model.
///
/// # Errors
/// When the file cannot be read or is not an ONNX model. For a file that does not begin as these do,
/// with the version, the error says so.
pub fn decode(path: &Path) -> Result<onnx::model::Model> {
    const VERSION_FIELD: u8 = 8;
    onnx::decode::read(path).map_err(|e| {
        let d: Box<Diagnostic> = e.into();
        let begin = onnx::map_file(path).ok().and_then(|file| file.first().copied());
        if begin.is_none_or(|b| b == VERSION_FIELD) || !d.help.is_empty() { d } else { d.help("this does not look like an ONNX model") }
    })
}

fn parse(path: &Path, file: &[u8], import: &ImportOptions) -> Result<Graph> {
    let place = format!("`{}`", path.display());
    if *import != ImportOptions::default() {
        return Err(Diagnostic::usage("shapes and dimensions can only be given when an ONNX model is imported")
            .at(place)
            .note("a .tir file is imported already")
            .help("edit the ranges of its symbols, or start from the ONNX model"));
    }
    let text = std::str::from_utf8(file)
        .map_err(|e| Diagnostic::failed("the file is not text in UTF-8").at(place.clone()).at(format!("byte {}", e.valid_up_to())))?;
    let constants = constants_of(path);
    let file = constants.as_deref().map(onnx::map_file).transpose()?;
    text::parse(text, file).map_err(|e| {
        let (message, lines) = (e.message.clone(), e.to_string());
        let excerpt = lines.split_once('\n').map_or("", |(_, rest)| rest).to_string();
        let d = Diagnostic::failed(message).at(format!("{}:{}:{}", path.display(), e.line, e.column)).note(excerpt);
        match &constants {
            Some(constants) => d.note(format!("its file of constants is `{}`", constants.display())),
            None => d.note(format!("there is no file `{}` and no `{SHARED_CONSTANTS}` beside it", companion(path).display())),
        }
    })
}

/// Runs the passes. `observer` sees the graph after each of them and may stop the pipeline. With calibration data, the passes from
/// quantization on run as often as it takes to keep what is promised; the observer sees the last time.
///
/// # Errors
/// What the observer says; what is wrong with calibration data; a promise that cannot be kept (exit code 4); a pass or the verifier
/// only by a bug of ours.
pub fn optimize(graph: Graph, options: &Options, mut observer: impl FnMut(&Ran) -> Result<ControlFlow<()>>) -> Result<Optimized> {
    let passes = options.pipeline();
    let cx = Context { quant: options.quant.clone(), ..Context::default() };
    let Some(calibration) = &options.calibration else {
        let part = Part { passes: &passes, first: 0, verify_each: options.verify_each };
        let ran = part.run(graph, &cx, &mut observer)?;
        return Ok(Optimized { graph: ran.graph, ledger: ran.ledger, notes: ran.notes, accuracy: None });
    };
    calibrated(graph, options, calibration, &passes, cx, &mut observer)
}

/// Runs the passes with calibration data.
fn calibrated(
    graph: Graph,
    options: &Options,
    calibration: &CalibrationOptions,
    passes: &[&'static Pass],
    mut cx: Context,
    observer: &mut dyn FnMut(&Ran) -> Result<ControlFlow<()>>,
) -> Result<Optimized> {
    let position = |name: &str| passes.iter().position(|p| p.name == name);
    let quantize = position("quantize").unwrap_or(passes.len());
    let observe = position("calibrate").unwrap_or(quantize).min(quantize);
    if calibration.cache.is_some() && passes[quantize..].iter().any(|p| p.name == "calibrate") {
        return Err(Diagnostic::usage("--calib-cache keeps what is observed before quantization, but --passes has `calibrate` behind it")
            .help("move `calibrate` before `quantize`, or leave --calib-cache out"));
    }
    let Provided { calibration: provided, held_out, record } = calibration.read(&graph, options)?;
    let source = provided.source.clone();
    let mask = provided.mask.as_deref().and_then(|m| graph.inputs().iter().position(|&v| graph.value(v).name.as_deref() == Some(m)));
    cx.data.insert(provided);
    let part = |passes, first| Part { passes, first, verify_each: options.verify_each };
    // What comes before the first observation is the model in f32.
    let exact = part(&passes[..observe], 0).run(graph, &cx, observer)?;
    if exact.stopped {
        return Ok(exact.into());
    }
    let contract = match held_out.is_empty() {
        true => None,
        false => {
            let (promise, threads) = (calibration.promise.clone(), calibration.threads);
            Some(Contract::new(&exact.graph, held_out, mask, promise, threads, calibration.progress.clone())?)
        }
    };
    let ready = part(&passes[observe..quantize], observe).run(exact.graph, &cx, observer)?;
    if ready.stopped {
        return Ok(Optimized { notes: [exact.notes, ready.notes].concat(), graph: ready.graph, ledger: vec![], accuracy: None });
    }
    if let Source::Record(record) = &source {
        record.finish().map_err(PassError::from)?;
    }
    // What one attempt finds out serves all others.
    cx.data.insert(Memo::default());
    let quantized = |config: &QuantConfig, last: usize, observer: &mut dyn FnMut(&Ran) -> Result<ControlFlow<()>>| {
        let cx = Context { quant: Some(config.clone()), data: ready.data.over(&cx.data), ..cx.clone() };
        part(&passes[quantize..last], quantize).run(ready.graph.clone(), &cx, observer)
    };
    let mut config = options.quant.clone().unwrap_or_default();
    let (mut accuracy, mut shares) = (None, vec![]);
    if let Some(mut contract) = contract {
        let mut attempt = |config: &QuantConfig| {
            let last = if config.gated { passes.len().min(quantize + 1) } else { passes.len() };
            let ran = quantized(config, last, &mut |_| Ok(ControlFlow::Continue(())))?;
            Ok(Quantized { graph: ran.graph, ledger: ran.ledger, gates: ran.gates })
        };
        let kept = contract::keep(&mut contract, &config, calibration.shares, &mut attempt)?;
        (config, accuracy, shares) = (kept.config, Some(kept.accuracy), kept.shares);
    }
    let last = quantized(&config, passes.len(), observer)?;
    let mut ledger = last.ledger;
    for entry in &mut ledger {
        let named = |loc: &Loc| loc.names().any(|n| entry.loc.names().any(|m| m == n));
        // Of products, since only these have weights.
        entry.fold = ready.folds.iter().find(|f| entry.source_bytes > 0 && f.products.iter().any(named)).cloned();
        entry.share = shares.iter().find(|(node, _)| *node == entry.node).map(|(_, share)| *share);
    }
    if let Some((path, key)) = record {
        let mut out = Pending::default();
        cache::write(&path, &key, &evaluate::variant(), &ready.observed, &mut out)?;
        out.commit()?;
    }
    Ok(Optimized { graph: last.graph, ledger, notes: [exact.notes, ready.notes, last.notes].concat(), accuracy })
}

/// Passes of a pipeline that run one after the other.
struct Part<'p> {
    passes: &'p [&'static Pass],
    /// Position of the first in the pipeline.
    first: usize,
    verify_each: bool,
}

/// What passes made.
struct Passed {
    graph: Graph,
    ledger: Vec<LedgerEntry>,
    notes: Vec<String>,
    folds: Vec<Fold>,
    gates: Gates,
    /// What was observed, each time.
    observed: Vec<Statistics>,
    /// What the last pass said of the graph.
    data: SideData,
    /// The observer ended the pipeline.
    stopped: bool,
}

impl From<Passed> for Optimized {
    fn from(p: Passed) -> Optimized {
        Optimized { graph: p.graph, ledger: p.ledger, notes: p.notes, accuracy: None }
    }
}

impl Part<'_> {
    fn run(&self, graph: Graph, cx: &Context, observer: &mut dyn FnMut(&Ran) -> Result<ControlFlow<()>>) -> Result<Passed> {
        let (mut ledger, mut notes, mut folds, mut gates) = (vec![], vec![], vec![], Gates::default());
        let (mut data, mut observed, mut stopped) = (SideData::default(), vec![], false);
        let graph = run_pipeline(graph, self.passes, cx, |ran: &Ran| {
            let ran = Ran { index: self.first + ran.index, ..*ran };
            ledger.extend_from_slice(&ran.stats.ledger);
            notes.extend_from_slice(&ran.stats.notes);
            folds.extend(ran.stats.data.get::<Folds>().iter().flat_map(|f| f.0.iter().cloned()));
            gates.0.extend(ran.stats.data.get::<Gates>().iter().flat_map(|g| g.0.iter().cloned()));
            observed.extend(ran.stats.data.get::<Statistics>().cloned());
            data = ran.stats.data.clone();
            // The observer is first: it may write the graph that the verifier refuses.
            let flow = observer(&ran)?;
            stopped |= flow.is_break();
            match self.verify_each.then(|| verify(ran.graph)) {
                Some(Err(errors)) => Err(diag::verifier(&errors, &format!("the pass `{}` (number {})", ran.pass.name, ran.index + 1))),
                _ => Ok(flow),
            }
        })?;
        Ok(Passed { graph, ledger, notes, folds, gates, observed, data, stopped })
    }
}

/// Verifies and schedules a graph.
///
/// # Errors
/// When there is no kernel for an operator; when the graph is not valid, by a bug of ours.
pub fn lower(optimized: &Optimized) -> Result<Program> {
    let verified = verify(&optimized.graph).map_err(|errors| diag::verifier(&errors, "the passes"))?;
    Ok(Program { ledger: optimized.ledger.clone(), accuracy: optimized.accuracy.clone(), ..schedule(&verified)? })
}

/// Compiles a graph for this machine, in memory. The environment variable `TFC_CPU` names the CPU variant.
///
/// # Errors
/// As [`lower`], and when there is no code generator for this machine.
pub fn jit(optimized: &Optimized) -> Result<Model> {
    let program = lower(optimized)?;
    let cpu = tfc_runtime::LoadOptions::from_env().cpu;
    Ok(jit::load(&program, "model", cpu.as_deref())?)
}

/// Writes a graph as text, and what it elides to its file of constants if there is any. A device or a pipe has no such file.
///
/// # Errors
/// When a file cannot be written.
pub fn write_tir(graph: &Graph, path: &Path, out: &mut Pending) -> Result<()> {
    if Place::is_stream(path) {
        return out.write(path, |w| text::write(graph, w, None).map(|_| ()));
    }
    let mut text = vec![];
    let mut bytes = 0;
    out.write(&companion(path), |blob| {
        bytes = text::write(graph, &mut text, Some(blob))?;
        Ok(())
    })?;
    if bytes == 0 {
        out.discard_last();
    }
    out.write(path, |w| w.write_all(&text))
}
