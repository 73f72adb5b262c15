//! `tfc verify`.

use super::console::Console;
use super::options::{Accuracy, Level, Shapes, Threads, driver_options};
use super::source::Keep;
use super::{run, source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tfc::batches::{SAMPLES_AT_ONCE, in_parts};
use tfc::diag::{Diagnostic, Result, list, table};
use tfc::metrics::{Accumulator, Checked, Classified, Metric, Promise, missed, promises_table};
use tfc::npz::Archive;
use tfc::onnx::ImportOptions;
use tfc::reference::Reference;
use tfc::{driver, inputs};
use tfc_ir::dim::Bindings;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_runtime::Model;
use tfc_runtime::model::Port;

/// Compare compiled code with the interpreter, or with given outputs.
///
/// Floats are compared by |a - b| <= atol + rtol * |b|, where b is the reference; integers and booleans
/// must be equal. A quantized model is compared with the interpretation of the quantized graph. Exit
/// code 1 if an output differs.
///
/// With --max-error, --max-kl or --require-top1, outputs of floats must keep these promises instead, next to the
/// outputs of --reference or of the model in f32 (interpreted, or, if that takes long, compiled with -O0). Exit code 4 if
/// one is missed. --labels prints how often the largest entry is at the right class; without anything
/// else, nothing is compared. Both run 64 samples at a time where a model has a free dimension of samples.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc verify bert.onnx                                  made-up inputs; needs --shape or --dim for free dimensions
  tfc verify bert.onnx --inputs in.npz --reference out.npz
  tfc verify bert.onnx --quant w4a8 --shape input_ids=1x16,attention_mask=1x16
  tfc verify bert --model bert.onnx --inputs in.npz     an artifact against the interpreter
  tfc verify vit --inputs in.npz --reference f32.npz --max-error 0.05 --require-top1 99.5
  tfc verify vit --inputs in.npz --labels labels.npz    top-1 accuracy")]
pub struct Args {
    /// A model (.onnx, .tir) or an artifact (a bundle, a .so).
    #[arg(value_name = "MODEL|ARTIFACT")]
    model: PathBuf,
    /// The inputs; made up if absent.
    #[arg(long, value_name = "IN.npz")]
    inputs: Option<PathBuf>,
    /// The outputs to compare with, instead of the interpreter's.
    #[arg(long, value_name = "OUT.npz")]
    reference: Option<PathBuf>,
    /// The model that an artifact was compiled from, for the interpreter.
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "reference")]
    original: Option<PathBuf>,
    /// Relative tolerance of floats [default: 1e-3; 1e-2 for 16-bit floats].
    #[arg(long, value_name = "X")]
    rtol: Option<f64>,
    /// Absolute tolerance of floats [default: 1e-4; 1e-2 for 16-bit floats; 5% of the largest value if
    /// activations are rounded to integers, where a difference in the last bit can become a step].
    #[arg(long, value_name = "X")]
    atol: Option<f64>,
    /// Classes: integers of the shape of an output without its last axis, under the output's name; a single member is for
    /// the only output of floats. Top-1 accuracy is printed; --require-top1 is about the reference all the same.
    #[arg(long, value_name = "LABELS.npz", help_heading = "Accuracy")]
    labels: Option<PathBuf>,
    /// Print one JSON object; numbers that are not finite are null.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    accuracy: Accuracy,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let promise = args.accuracy.promise();
    // Labels alone need nothing to compare with.
    let compares = args.labels.is_none() || !promise.is_empty() || args.reference.is_some() || args.original.is_some();
    let artifact = source::is_artifact(&args.model);
    if artifact && compares && args.reference.is_none() && args.original.is_none() {
        return Err(Diagnostic::usage("an artifact has no graph to interpret")
            .help("give the model that it was compiled from with --model MODEL.onnx, or outputs with --reference OUT.npz"));
    }
    if !artifact && args.original.is_some() {
        return Err(Diagnostic::usage("--model is for artifacts: a model is compared with its own interpretation"));
    }
    let keep = match () {
        () if !compares || args.reference.is_some() => Keep::Nothing,
        () if !promise.is_empty() => Keep::Imported,
        () => Keep::Computed,
    };
    let source = source::open(&args.model, &args.level, &args.shapes, keep, console)?;
    let model = Arc::new(source.model);
    promise.fits(&floats(&model).map(|p| p.name.as_str()).collect::<Vec<_>>())?;
    let tensors = match &args.inputs {
        Some(path) => source::inputs(path, &model, &source.sizes)?.0,
        None => inputs::synthetic(&model, &source.sizes.shapes, &source.sizes.dims)?,
    };
    let symbols = source.sizes.symbols();
    let bindings = |tensors: &[Tensor]| inputs::bindings(&model, tensors, &symbols).map_err(|e| inputs::at(args.inputs.as_deref(), e));
    let mask = mask(args.level.quantization.calib_mask.as_deref(), &model, &tensors)?;
    let labels = args.labels.as_deref().map(|path| labels(path, &model)).transpose()?;

    // Promises and labels are about many samples.
    let at_once = if promise.is_empty() && labels.is_none() { usize::MAX } else { SAMPLES_AT_ONCE };
    let in_parts = |run: &mut dyn FnMut(&[Tensor]) -> Result<Vec<Tensor>>| in_parts(&model, &tensors, &symbols, at_once, run);
    let expected = match (&args.reference, source.graph) {
        (Some(path), _) => Some(inputs::read(path, model.outputs(), "output")?),
        (None, Some(graph)) if promise.is_empty() => {
            console.detail("interpreting the model");
            Some(graph.evaluate(&tensors, &bindings(&tensors)?)?)
        }
        (None, Some(graph)) => {
            let mut reference = Reference::new(graph, &bindings(&tensors)?, args.threads.count())?;
            console.detail(&format!("the reference is {}", reference.name()));
            Some(in_parts(&mut |part| reference.run(part, &bindings(part)?))?)
        }
        (None, None) if compares => {
            let path = args.original.as_deref().expect("checked above");
            console.detail("evaluating the model that the artifact was compiled from");
            let rounded = promise.is_empty();
            Some(in_parts(&mut |part| original(path, &model, part, &bindings(part)?, rounded, args.threads.count(), console))?)
        }
        (None, None) => None,
    };
    let mut session = run::session(&model, args.threads.count())?;
    let outputs = in_parts(&mut |part| inputs::run(&mut session, part, &symbols))?;

    let mut report = Report { console, json: args.json.then(|| json!({ "cpu_variant": model.cpu_variant() })) };
    let mut differ = vec![];
    if let Some(expected) = &expected {
        differ = elementwise(args, &model, &outputs, expected, &mut report)?;
    }
    if let Some(labels) = &labels {
        classified(&model, &outputs, labels, mask, &mut report)?;
    }
    if !promise.is_empty() {
        let expected = expected.as_deref().unwrap_or_default();
        let missed = promised(&promise, &model, &outputs, expected, mask, &mut report)?;
        report.finish()?;
        return missed.map_or(Ok(()), Err);
    }
    report.finish()?;
    if differ.is_empty() {
        return Ok(());
    }
    let against = if args.reference.is_some() { "the reference" } else { "the interpreter" };
    Err(Diagnostic::failed(format!("compiled code and {against} differ in {}", list(differ.iter().map(String::as_str))))
        .note(format!("CPU variant {}", model.cpu_variant()))
        .help("compare with -O0 and -O1, which keep every bit, and with TFC_CPU=baseline; --rtol and --atol set the tolerance"))
}

/// Tables for people as they come, or one JSON object at the end.
struct Report<'a> {
    console: &'a Console,
    json: Option<Value>,
}

impl Report<'_> {
    /// A table, and the same rows as objects under `key`.
    fn add(&mut self, key: &str, objects: Vec<Value>, text: &str) -> Result<()> {
        match &mut self.json {
            Some(object) => object[key] = objects.into(),
            None => self.console.result(text)?,
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        self.json.map_or(Ok(()), |object| self.console.result(&format!("{object:#}\n")))
    }
}

/// The outputs of floats.
fn floats(model: &Model) -> impl Iterator<Item = &Port> {
    model.outputs().iter().filter(|p| inputs::elem_of(p.elem).is_float())
}

/// The input that hides positions.
fn mask<'t>(name: Option<&str>, model: &Model, tensors: &'t [Tensor]) -> Result<Option<&'t Tensor>> {
    let Some(name) = name else { return Ok(None) };
    let at = model.inputs().iter().position(|p| p.name == name).ok_or_else(|| {
        Diagnostic::usage(format!("--calib-mask {name}: the model has no such input"))
            .note(format!("it has {}", list(model.inputs().iter().map(|p| p.name.as_str()))))
    })?;
    Ok(Some(&tensors[at]))
}

/// Labels by the positions of their outputs: members that are named as outputs, or one member for the only output of floats.
fn labels(path: &Path, model: &Model) -> Result<Vec<(usize, Tensor)>> {
    let mut archive = Archive::open(path)?;
    let names: Vec<String> = archive.members().iter().map(|m| m.name.clone()).collect();
    let output = |name: &str| model.outputs().iter().position(|p| p.name == name && inputs::elem_of(p.elem).is_float());
    let mut found = vec![];
    for name in &names {
        let only = (names.len() == 1 && floats(model).count() == 1).then(|| floats(model).next().map(|p| p.name.as_str())).flatten();
        let Some(i) = output(name).or_else(|| only.and_then(output)) else {
            return Err(Diagnostic::failed(format!("the labels `{name}` are for no output of floats"))
                .at(format!("`{}`", path.display()))
                .note(format!("the model's outputs of floats are: {}", list(floats(model).map(|p| p.name.as_str()))))
                .help("name each member after the output that it has labels for"));
        };
        found.push((i, archive.tensor(name)?));
    }
    if found.is_empty() {
        return Err(Diagnostic::failed("there are no labels in the archive").at(format!("`{}`", path.display())));
    }
    Ok(found)
}

/// Prints how many rows have the class of their label.
fn classified(model: &Model, outputs: &[Tensor], labels: &[(usize, Tensor)], mask: Option<&Tensor>, report: &mut Report) -> Result<()> {
    let mut objects = vec![];
    let mut rows = vec![["output", "labels", "right", "top-1"].map(String::from)];
    for (i, labels) in labels {
        let name = &model.outputs()[*i].name;
        let mut sums = Classified::default();
        sums.add(&outputs[*i], labels, mask).map_err(|e| Diagnostic::failed(format!("the labels of output `{name}` do not fit: {e}")))?;
        objects.push(json!({ "output": name, "labels": sums.rows, "right": sums.right, "top1": sums.percent() }));
        let percent = sums.percent().map_or("nothing to measure".into(), |p| Metric::Top1.text(p));
        rows.push([name.clone(), sums.rows.to_string(), sums.right.to_string(), percent]);
    }
    report.add("labels", objects, &table(&rows))
}

/// Compares outputs with what was promised; the failure, if a promise was missed.
fn promised(
    promise: &Promise,
    model: &Model,
    outputs: &[Tensor],
    expected: &[Tensor],
    mask: Option<&Tensor>,
    report: &mut Report,
) -> Result<Option<Box<Diagnostic>>> {
    let mut measured = vec![];
    for ((port, actual), expected) in model.outputs().iter().zip(outputs).zip(expected) {
        if actual.elem().is_float() {
            let mut sums = Accumulator::default();
            sums.add(actual, expected, mask).map_err(|e| Diagnostic::failed(format!("output `{}`: {e}", port.name)))?;
            measured.push((port.name.clone(), sums.finish()));
        }
    }
    let checked = promise.check(&measured);
    let object = |c: &Checked| json!({ "output": c.output, "promise": c.metric.option(), "wanted": c.wanted, "measured": c.measured, "kept": c.kept() });
    report.add("promises", checked.iter().map(object).collect(), &promises_table(&checked))?;
    Ok(missed(&checked).map(|d| d.note(format!("CPU variant {}", model.cpu_variant()))))
}

/// Compares outputs element by element and prints a table; the outputs that are not within the tolerances.
fn elementwise(args: &Args, model: &Model, outputs: &[Tensor], expected: &[Tensor], report: &mut Report) -> Result<Vec<String>> {
    let mut objects = vec![];
    let mut rows = vec![["output", "type", "max abs error", "rel error", "worst at", "verdict"].map(String::from)];
    let mut wrong = vec![];
    let steps = model.manifest().quantization.iter().any(|q| !matches!(q.activations.as_str(), "" | "f32"));
    for ((port, actual), expected) in model.outputs().iter().zip(outputs).zip(expected) {
        let name = port.name.clone();
        if actual.elem() != expected.elem() || actual.sizes() != expected.sizes() {
            rows.push([
                name.clone(),
                actual.ty().to_string(),
                String::new(),
                String::new(),
                String::new(),
                format!("reference is {}", expected.ty()),
            ]);
            objects
                .push(json!({ "output": name, "type": actual.ty().to_string(), "reference_type": expected.ty().to_string(), "ok": false }));
            wrong.push(name);
            continue;
        }
        let half = matches!(actual.elem(), Elem::F16 | Elem::Bf16);
        let rtol = args.rtol.unwrap_or(if half { 1e-2 } else { 1e-3 });
        let atol = args.atol.unwrap_or(match () {
            () if steps && actual.elem().is_float() => STEPS_TOLERANCE * largest(expected),
            () if half => 1e-2,
            () => 1e-4,
        });
        let c = compare(actual, expected, rtol, atol);
        let verdict = if c.outside == 0 { "ok".into() } else { format!("{} of {} differ", c.outside, actual.len()) };
        objects.push(json!({
            "output": name,
            "type": actual.ty().to_string(),
            "max_abs_error": c.absolute,
            "relative_error": c.relative,
            "worst": c.worst.map(|(i, a, b)| json!({ "at": position(i, actual.sizes()), "actual": a, "expected": b })),
            "outside": c.outside,
            "elements": actual.len(),
            "ok": c.outside == 0,
        }));
        let worst = c.worst.map_or(String::new(), |(i, a, b)| format!("{:?}: {a} instead of {b}", position(i, actual.sizes())));
        rows.push([name.clone(), actual.ty().to_string(), format!("{:.3e}", c.absolute), format!("{:.3e}", c.relative), worst, verdict]);
        if c.outside > 0 {
            wrong.push(name);
        }
    }
    report.add("outputs", objects, &table(&rows))?;
    Ok(wrong)
}

/// What differences of a last bit may become behind activations that are rounded to integers, in
/// units of the largest value: a value next to the middle of two steps goes to either, and so on in every layer.
const STEPS_TOLERANCE: f64 = 0.05;

/// The largest finite magnitude.
fn largest(t: &Tensor) -> f64 {
    t.iter().map(|x| x.to_f64().abs()).filter(|x| x.is_finite()).fold(0.0, f64::max)
}

/// The outputs of `model`, by the file that it was compiled from: if `rounded`, by the interpreter, and if it is quantized behind the
/// passes that the manifest tells; else in f32, by a [`Reference`].
fn original(
    path: &Path,
    model: &Model,
    tensors: &[Tensor],
    bindings: &Bindings,
    rounded: bool,
    threads: usize,
    console: &Console,
) -> Result<Vec<Tensor>> {
    let sizes = |t: &Tensor| t.sizes().iter().map(|&n| n as i64).collect::<Vec<_>>();
    let shapes: BTreeMap<String, Vec<i64>> = model.inputs().iter().map(|p| p.name.clone()).zip(tensors.iter().map(sizes)).collect();
    // A graph in text form keeps its symbols.
    let import = if driver::is_tir(path) { ImportOptions::default() } else { ImportOptions { shapes, ..Default::default() } };
    let mut graph = driver::load(path, &import)?.graph;
    if rounded && !model.manifest().quantization.is_empty() {
        let options = driver_options(&Level::recorded(&model.manifest().options)?, &Shapes::default(), console)?;
        graph = driver::optimize(graph, &options, |_| Ok(ControlFlow::Continue(())))?.graph;
    }
    let by_name = |names: Vec<&str>, wanted: &str| names.iter().position(|n| *n == wanted);
    let mut ordered = vec![];
    for &v in graph.inputs() {
        let name = graph.value(v).name.as_deref().unwrap_or_default();
        match by_name(model.inputs().iter().map(|p| p.name.as_str()).collect(), name) {
            Some(i) if tensors[i].elem() == graph.ty(v).elem => ordered.push(tensors[i].clone()),
            _ => return Err(other_model(path, &graph, model)),
        }
    }
    let outputs: Vec<String> = graph.outputs().iter().map(|o| o.name.to_string()).collect();
    let place = |p: &Port| by_name(outputs.iter().map(String::as_str).collect(), &p.name);
    let places: Option<Vec<usize>> = model.outputs().iter().map(place).collect();
    let places = places.ok_or_else(|| other_model(path, &graph, model))?;
    let values =
        if rounded { graph.evaluate(&ordered, bindings)? } else { Reference::new(graph, bindings, threads)?.run(&ordered, bindings)? };
    Ok(places.into_iter().map(|i| values[i].clone()).collect())
}

fn other_model(path: &Path, graph: &Graph, model: &Model) -> Box<Diagnostic> {
    let names = |inputs: Vec<&str>, outputs: Vec<&str>| format!("inputs {}; outputs {}", list(inputs), list(outputs));
    let of_graph = names(
        graph.inputs().iter().map(|&v| graph.value(v).name.as_deref().unwrap_or_default()).collect(),
        graph.outputs().iter().map(|o| &*o.name).collect(),
    );
    let of_model =
        names(model.inputs().iter().map(|p| p.name.as_str()).collect(), model.outputs().iter().map(|p| p.name.as_str()).collect());
    Diagnostic::failed("the artifact was compiled from another model")
        .at(format!("`{}`", path.display()))
        .note(format!("the model has {of_graph}"))
        .note(format!("the artifact has {of_model}"))
}

/// How two tensors of one type differ.
struct Comparison {
    /// Largest difference.
    absolute: f64,
    /// Largest difference over the largest magnitude of the reference.
    relative: f64,
    /// Elements outside of the tolerance.
    outside: usize,
    /// Where the difference is largest, and both values there; absent without a difference.
    worst: Option<(usize, f64, f64)>,
}

fn compare(actual: &Tensor, expected: &Tensor, rtol: f64, atol: f64) -> Comparison {
    let mut c = Comparison { absolute: 0.0, relative: 0.0, outside: 0, worst: None };
    let mut largest = 0.0f64;
    for (i, (a, b)) in actual.iter().zip(expected.iter()).enumerate() {
        let (x, y) = (a.to_f64(), b.to_f64());
        let equal = a == b || x == y || x.is_nan() && y.is_nan();
        if y.is_finite() {
            largest = largest.max(y.abs());
        }
        if equal && (matches!(a, Scalar::Float(_)) || a == b) {
            continue;
        }
        // What is not a number on one side only, or infinite, differs by everything.
        let difference = if (x - y).is_finite() { (x - y).abs() } else { f64::INFINITY };
        let within = actual.elem().is_float() && difference <= atol + rtol * y.abs();
        c.outside += usize::from(!within);
        if difference > c.absolute || c.worst.is_none() {
            (c.absolute, c.worst) = (difference, Some((i, x, y)));
        }
    }
    c.relative = if largest > 0.0 { c.absolute / largest } else { c.absolute };
    c
}

/// The indices along each axis of the element at row-major position `i`.
fn position(mut i: usize, sizes: &[usize]) -> Vec<usize> {
    let mut at = vec![0; sizes.len()];
    for (slot, &n) in at.iter_mut().zip(sizes).rev() {
        (*slot, i) = (i % n, i / n);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differ(a: Tensor, b: Tensor) -> (usize, f64, Option<usize>) {
        let c = compare(&a, &b, 0.0, 0.01);
        (c.outside, c.absolute, c.worst.map(|w| w.0))
    }

    #[test]
    fn differences_are_found_and_placed() {
        let t = |v: [f32; 3]| Tensor::of(&[3], v.to_vec());
        assert_eq!(differ(t([1.0, 2.0, 3.0]), t([1.0, 2.0, 3.0])), (0, 0.0, None));
        assert_eq!(differ(t([1.0, 2.5, 3.0]), t([1.0, 2.0, 3.0])), (1, 0.5, Some(1)));
        assert_eq!(differ(t([f32::NAN, f32::INFINITY, 3.0]), t([f32::NAN, f32::INFINITY, 3.0])), (0, 0.0, None));
        assert_eq!(differ(t([f32::NAN, 2.0, 3.0]), t([1.0, 2.0, 3.0])), (1, f64::INFINITY, Some(0)));
        assert_eq!(differ(Tensor::of(&[1], vec![1i64 << 60]), Tensor::of(&[1], vec![(1i64 << 60) + 1])).0, 1);
        assert_eq!(position(5, &[2, 3]), [1, 2]);
    }
}
