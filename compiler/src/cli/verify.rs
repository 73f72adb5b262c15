//! `tfc verify`.

use super::console::Console;
use super::options::{Level, Shapes, Threads, driver_options};
use super::{run, source};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tfc::diag::{Diagnostic, Result, list, table};
use tfc::onnx::ImportOptions;
use tfc::{driver, inputs, npz};
use tfc_ir::dim::{Bindings, Symbol};
use tfc_ir::graph::Graph;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_runtime::{Model, View};

/// Compare compiled code with the interpreter, or with given outputs.
///
/// Floats are compared by |a - b| <= atol + rtol * |b|, where b is the reference; integers and booleans
/// must be equal. A quantized model is compared with the interpretation of the quantized graph. Exit
/// code 1 if an output differs.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc verify bert.onnx                                  made-up inputs; needs --shape or --dim for free dimensions
  tfc verify bert.onnx --inputs in.npz --reference out.npz
  tfc verify bert.onnx --quant w4a8 --shape input_ids=1x16,attention_mask=1x16
  tfc verify bert --model bert.onnx --inputs in.npz     an artifact against the interpreter")]
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
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let artifact = source::is_artifact(&args.model);
    if artifact && args.reference.is_none() && args.original.is_none() {
        return Err(Diagnostic::usage("an artifact has no graph to interpret")
            .help("give the model that it was compiled from with --model MODEL.onnx, or outputs with --reference OUT.npz"));
    }
    if !artifact && args.original.is_some() {
        return Err(Diagnostic::usage("--model is for artifacts: a model is compared with its own interpretation"));
    }
    let source = source::open(&args.model, &args.level, &args.shapes, args.reference.is_none(), console)?;
    let model = Arc::new(source.model);
    let tensors = match &args.inputs {
        Some(path) => inputs::read(path, model.inputs(), "input")?,
        None => inputs::synthetic(&model, &source.sizes.shapes, &source.sizes.dims)?,
    };
    let shapes: Vec<(&str, &[usize])> = model.inputs().iter().map(|p| p.name.as_str()).zip(tensors.iter().map(|t| t.sizes())).collect();
    let symbols: Vec<(&str, i64)> = source.sizes.dims.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    let dims = model.dims_with(&shapes, &symbols).map_err(|e| inputs::at(args.inputs.as_deref(), e))?;

    let bindings: Bindings = model.symbols().iter().zip(dims.values()).map(|(s, v)| (Symbol::new(&s.name), *v)).collect();
    let expected = match (&args.reference, source.graph) {
        (Some(path), _) => inputs::read(path, model.outputs(), "output")?,
        (None, Some(graph)) => {
            console.detail("interpreting the model");
            graph.evaluate(&tensors, &bindings)?
        }
        (None, None) => {
            let path = args.original.as_deref().expect("checked above");
            console.detail("interpreting the model");
            interpret(path, &model, &tensors, &bindings, console)?
        }
    };

    let mut session = run::session(&model, args.threads.count())?;
    let named: Vec<(&str, View)> = model.inputs().iter().map(|p| p.name.as_str()).zip(tensors.iter().map(inputs::view)).collect();
    let outputs = session.run_with(&named, &symbols)?;
    let mut rows = vec![["output", "type", "max abs error", "rel error", "worst at", "verdict"].map(String::from)];
    let mut wrong = vec![];
    let steps = model.manifest().quantization.iter().any(|q| q.activations.starts_with("dynamic"));
    for (output, expected) in outputs.into_iter().zip(&expected) {
        let name = output.name;
        let actual =
            Tensor::new(inputs::elem_of(output.elem), output.shape, npz::owned(output.data)).expect("the runtime gives whole tensors");
        if actual.elem() != expected.elem() || actual.sizes() != expected.sizes() {
            rows.push([
                name.clone(),
                actual.ty().to_string(),
                String::new(),
                String::new(),
                String::new(),
                format!("reference is {}", expected.ty()),
            ]);
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
        let c = compare(&actual, expected, rtol, atol);
        let verdict = if c.outside == 0 { "ok".into() } else { format!("{} of {} differ", c.outside, actual.len()) };
        let worst = c.worst.map_or(String::new(), |(i, a, b)| format!("{:?}: {a} instead of {b}", position(i, actual.sizes())));
        rows.push([name.clone(), actual.ty().to_string(), format!("{:.3e}", c.absolute), format!("{:.3e}", c.relative), worst, verdict]);
        if c.outside > 0 {
            wrong.push(name);
        }
    }
    console.result(&table(&rows))?;
    if wrong.is_empty() {
        return Ok(());
    }
    let against = if args.reference.is_some() { "the reference" } else { "the interpreter" };
    Err(Diagnostic::failed(format!("compiled code and {against} differ in {}", list(wrong.iter().map(String::as_str))))
        .note(format!("CPU variant {}", model.cpu_variant()))
        .help("compare with -O0 and -O1, which keep every bit, and with TFC_CPU=baseline; --rtol and --atol set the tolerance"))
}

/// What differences of a last bit may become behind activations that are rounded to integers, in
/// units of the largest value: a value next to the middle of two steps goes to either, and so on in every layer.
const STEPS_TOLERANCE: f64 = 0.05;

/// The largest finite magnitude.
fn largest(t: &Tensor) -> f64 {
    t.iter().map(|x| x.to_f64().abs()).filter(|x| x.is_finite()).fold(0.0, f64::max)
}

/// The outputs of `model`, by the interpreter on the file that it was compiled from; if it is quantized,
/// behind the passes that the manifest tells.
fn interpret(path: &Path, model: &Model, tensors: &[Tensor], bindings: &Bindings, console: &Console) -> Result<Vec<Tensor>> {
    let sizes = |t: &Tensor| t.sizes().iter().map(|&n| n as i64).collect::<Vec<_>>();
    let shapes: BTreeMap<String, Vec<i64>> = model.inputs().iter().map(|p| p.name.clone()).zip(tensors.iter().map(sizes)).collect();
    // A graph in text form keeps its symbols.
    let import = if driver::is_tir(path) { ImportOptions::default() } else { ImportOptions { shapes, ..Default::default() } };
    let mut graph = driver::load(path, &import)?.graph;
    if !model.manifest().quantization.is_empty() {
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
    let values = graph.evaluate(&ordered, bindings)?;
    let pick =
        |p: &tfc_runtime::model::Port| by_name(graph.outputs().iter().map(|o| &*o.name).collect(), &p.name).map(|i| values[i].clone());
    model.outputs().iter().map(pick).collect::<Option<_>>().ok_or_else(|| other_model(path, &graph, model))
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
