//! `tfc bisect`.

use super::console::Console;
use super::options::{Level, Shapes, Threads};
use super::source;
use clap::ValueEnum;
use serde_json::{Value, json};
use std::path::PathBuf;
use tfc::bisect::{self, Fault, Here, Layer, Report, Stage, Subject, bisect};
use tfc::diag::{Diagnostic, Result, table};
use tfc::driver::is_tir;
use tfc::profile::nodes_text;
use tfc::reference::interface;
use tfc_ir::types::Elem;
use tfc_passes::Pass;

/// The tolerance of models in f32 and f64.
const OF_FLOATS: f64 = 1e-3;
/// The tolerance of models with f16 or bf16.
const OF_HALVES: f64 = 2e-2;
/// The tolerance of models that are quantized.
const OF_INTEGERS: f64 = 0.1;

/// Find the layer, and the pass or kernel, that makes a compiled model differ from the model as it is.
///
/// The model is compiled as the options say and run on the inputs. A layer is a value of floats that has a name in the
/// model and that the passes leave. Its own error is what its operators add when they get the right values of the layers
/// before; the accumulated error is that of the whole model up to there. Both are relative RMS errors to the
/// model as it was imported. With --quant, products are sorted by the share that they have in the sum of all squared own errors.
///
/// If outputs differ, the pass behind which they first do is searched; if the graph is right behind all passes, other ways to
/// generate code are tried. Exit code 1 if outputs differ beyond the tolerance.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc bisect bert.onnx --inputs in.npz                  does -O3 compute what the model says?
  tfc bisect bert.onnx --inputs in.npz --quant w4a8     which products lose most, and whether it is too much
  tfc bisect bert.onnx --inputs in.npz -O1 --tolerance 1e-6 --json")]
pub struct Args {
    /// The model (.onnx, .tir).
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The inputs.
    #[arg(long, value_name = "IN.npz")]
    inputs: PathBuf,
    /// The largest relative RMS error of an output or a layer that is no fault [default: 1e-3; 2e-2 for 16-bit floats; 0.1 if
    /// the model is quantized]. Of outputs of integers it is the largest share that differs.
    #[arg(long, value_name = "X")]
    tolerance: Option<f64>,
    /// How right values are found. Without it, by the interpreter, or, from some 1e9 multiply-adds on, by code of -O0 for
    /// the baseline CPU.
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto")]
    reference_level: ReferenceLevel,
    /// How many layers are printed.
    #[arg(long, value_name = "N", default_value_t = 20)]
    layers: usize,
    /// Print one JSON object, with all layers.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
}

/// How right values are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum ReferenceLevel {
    /// As the size of the model says.
    Auto,
    /// By the interpreter.
    Interpreter,
    /// By code of -O0 for the baseline CPU.
    #[value(name = "O0", alias = "o0")]
    O0,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    if args.tolerance.is_some_and(|x| x.is_nan() || x < 0.0) {
        return Err(Diagnostic::usage("--tolerance: expected a number of 0 or more"));
    }
    let (graph, options, sizes) = source::load(&args.model, &args.level, &args.shapes, console)?;
    let model = interface(&graph)?;
    let (tensors, bindings) = source::inputs(&args.inputs, &model, &sizes)?;
    let halves = graph.values().any(|(_, d)| matches!(d.ty.elem, Elem::F16 | Elem::Bf16));
    let tolerance = args.tolerance.unwrap_or(match () {
        () if options.quant.is_some() => OF_INTEGERS,
        () if halves => OF_HALVES,
        () => OF_FLOATS,
    });
    let subject = Subject {
        graph: &graph,
        options: &options,
        inputs: &tensors,
        bindings: &bindings,
        tolerance,
        reference: match args.reference_level {
            ReferenceLevel::Auto => bisect::Level::Auto,
            ReferenceLevel::Interpreter => bisect::Level::Interpreter,
            ReferenceLevel::O0 => bisect::Level::O0,
        },
        threads: args.threads.count(),
    };
    let here = Here { cpu: tfc_runtime::LoadOptions::from_env().cpu, threads: subject.threads };
    let report = bisect(&subject, &here, |what| console.detail(what))?;
    let pipeline = options.pipeline();
    let failure = report.fault.as_ref().map(|fault| verdict(args, &pipeline, &report, fault, tolerance));
    if args.json {
        let said = failure.as_ref().map_or_else(|| nothing_differs(&report, tolerance), |d| d.what.clone());
        let next = failure.as_ref().map_or(vec![], |d| d.help.clone());
        console.result(&format!("{:#}\n", to_json(&report, tolerance, here.variant(), &said, &next)))?;
    } else {
        console.result(&to_text(&report, args.layers, tolerance))?;
    }
    match failure {
        Some(d) => Err(d.note(format!("CPU variant {}, reference: {}", here.variant(), report.reference))),
        None if args.json => Ok(()),
        None => console.result(&format!("{}\n", nothing_differs(&report, tolerance))),
    }
}

fn nothing_differs(report: &Report, tolerance: f64) -> String {
    format!("no output differs by more than {tolerance:e} from {}", report.reference)
}

/// What is wrong, and what to do.
fn verdict(args: &Args, pipeline: &[&Pass], report: &Report, fault: &Fault, tolerance: f64) -> Box<Diagnostic> {
    let layer = fault.layer.map(|i| &report.layers[i]);
    let compile = |further: &[&str]| command("compile", args, &args.level.canonical(), further);
    let place = match fault.layer {
        None => String::new(),
        Some(i) if report.quantized() => {
            let share = 100.0 * report.shares()[i];
            format!("; of the products `{}` loses most, {share:.1}% of the sum of squares", report.layers[i].name)
        }
        Some(i) => format!("; the layer `{}` differs first", report.layers[i].name),
    };
    let d = match &fault.stage {
        Stage::Pass { number, name, before, errors } => {
            let [good, bad] = errors;
            let d = Diagnostic::failed(format!("the outputs differ from the pass {number:02}-{name} on{place}"))
                .note(format!("largest error of an output: {good:.3e} behind {before}, {bad:.3e} behind {number:02}-{name}"));
            match layer.filter(|_| *name == "quantize") {
                Some(l) => {
                    let others = |n: &str| report.layers.iter().filter(|l| l.loc.names().any(|other| other == n)).count();
                    let node = l.loc.names().min_by_key(|n| others(n)).unwrap_or(&l.name);
                    d.help(format!("keep it float: {}", compile(&[&format!("--quant-override=^{}$=f32", regex::escape(node))])))
                }
                None => d.help(format!(
                    "look at the graphs: {}, and --stop-after {number:02}-{name} -o after.tir",
                    compile(&["--stop-after", before, "-o", "before.tir"])
                )),
            }
        }
        Stage::Code { ways, launches } => {
            let d = Diagnostic::failed(format!("the graph is right behind all passes, but its code is not{place}"));
            let rows: Vec<[String; 2]> = ways.iter().map(|(way, e)| [way.to_string(), format!("{e:.3e}")]).collect();
            let mut d = d.note(format!("largest error of an output by\n{}", table(&rows)));
            if !launches.is_empty() {
                d = d.note(format!("kernels of the layer:\n{}", launches.join("\n")));
            }
            d.help(format!("compare the code: {}", compile(&["--mcpu", "native", "--emit", "asm", "-o", "code.s"])))
        }
    };
    let d = d.note(format!("tolerance {tolerance:e}"));
    if fault.seen {
        return d;
    }
    d.note("while layers are results, the outputs do not differ: the fault is in what is fused across them")
        .help(format!("try without fusing: {}", without_fusing(args, pipeline)))
}

/// A command on the same model with the options that say how it is compiled, and others.
fn command(name: &str, args: &Args, level: &[String], further: &[&str]) -> String {
    let mut words = vec!["tfc".to_string(), name.into(), args.model.display().to_string()];
    words.extend_from_slice(level);
    words.extend(args.level.quantization.data());
    // A graph in text form has its sizes.
    if !is_tir(&args.model) {
        words.extend(args.shapes.canonical());
    }
    words.extend(further.iter().map(ToString::to_string));
    words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ")
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// The command that compares a model without those passes that fuse.
fn without_fusing(args: &Args, pipeline: &[&Pass]) -> String {
    let passes: Vec<&str> = pipeline.iter().map(|p| p.name).filter(|n| *n != "fuse").collect();
    let level: Vec<String> = args.level.canonical().into_iter().filter(|o| !o.starts_with("--passes=")).collect();
    let file = args.inputs.display().to_string();
    command("verify", args, &level, &["--inputs", &file, "--passes", &passes.join(",")])
}

fn to_text(report: &Report, most: usize, tolerance: f64) -> String {
    let verdict = |e: f64| if e <= tolerance { "ok" } else { "differs" }.to_string();
    let mut outputs = vec![["output", "error", "verdict"].map(String::from)];
    outputs.extend(report.outputs.iter().map(|(name, e)| [name.clone(), format!("{e:.3e}"), verdict(*e)]));

    let quantized = report.quantized();
    let shares = report.shares();
    let culprit = report.fault.as_ref().and_then(|f| f.layer);
    // Those with the largest errors, by their share, or else in order.
    let mut shown: Vec<usize> = (0..report.layers.len()).filter(|&i| !quantized || report.layers[i].quantized).collect();
    let all = shown.len();
    let weight = |i: usize| (culprit == Some(i), report.layers[i].own);
    shown.sort_by(|&a, &b| weight(b).0.cmp(&weight(a).0).then(weight(b).1.total_cmp(&weight(a).1)));
    shown.truncate(most);
    if !quantized {
        shown.sort_unstable();
    }
    let mut layers = vec![["layer", "own error", "accumulated", "operators", "ONNX nodes"].map(String::from)];
    for i in shown {
        let l = &report.layers[i];
        let mark = if culprit == Some(i) { "<-- " } else { "" };
        let share = if quantized { format!(" ({:.1}%)", 100.0 * shares[i]) } else { String::new() };
        let (own, nodes) =
            (format!("{:.3e}{share}", l.own), format!("{mark}{}", nodes_text(&l.loc.names().map(Into::into).collect::<Vec<_>>())));
        layers.push([l.name.clone(), own, format!("{:.3e}", l.accumulated), operators(l), nodes]);
    }
    if quantized {
        layers[0][1] += " (share)";
    }
    let what = if quantized { "products" } else { "layers" };
    let more = if all > most { format!("{} more {what}: --layers N prints more\n", all - most) } else { String::new() };
    format!("{}\n{}{more}", table(&outputs), table(&layers))
}

/// The operators of a layer, not more than fit a table.
fn operators(layer: &Layer) -> String {
    const SHOWN: usize = 4;
    let names = &layer.operators;
    let begin = names.len().saturating_sub(SHOWN);
    format!("{}{}", if begin > 0 { "...+" } else { "" }, names[begin..].join("+"))
}

/// A number in JSON, which has no infinity.
fn number(x: f64) -> Value {
    if x.is_finite() { x.into() } else { "infinity".into() }
}

fn to_json(report: &Report, tolerance: f64, variant: &str, verdict: &str, next: &[String]) -> Value {
    let shares = report.shares();
    let layer = |(i, l): (usize, &Layer)| {
        json!({
            "name": l.name,
            "nodes": l.loc.names().collect::<Vec<_>>(),
            "operators": l.operators,
            "quantized": l.quantized,
            "own_error": number(l.own),
            "accumulated_error": number(l.accumulated),
            "share": if l.quantized { shares[i].into() } else { Value::Null },
        })
    };
    let fault = report.fault.as_ref().map(|f| {
        let stage = match &f.stage {
            Stage::Pass { number: n, name, before, errors } => {
                json!({ "number": n, "name": name, "before": before, "error_before": number(errors[0]), "error_behind": number(errors[1]) })
            }
            Stage::Code { .. } => Value::Null,
        };
        let code = match &f.stage {
            Stage::Code { ways, launches } => {
                let ways: Vec<Value> = ways.iter().map(|(w, e)| json!({ "way": w.to_string(), "error": number(*e) })).collect();
                json!({ "ways": ways, "launches": launches })
            }
            Stage::Pass { .. } => Value::Null,
        };
        json!({
            "layer": f.layer.map(|i| report.layers[i].name.clone()),
            "seen_with_layers_as_results": f.seen,
            "pass": stage,
            "code": code,
        })
    });
    json!({
        "reference": report.reference,
        "cpu_variant": variant,
        "tolerance": tolerance,
        "outputs": report.outputs.iter().map(|(name, e)| json!({ "name": name, "error": number(*e) })).collect::<Vec<_>>(),
        "layers": report.layers.iter().enumerate().map(layer).collect::<Vec<_>>(),
        "fault": fault,
        "verdict": verdict,
        "next": next,
    })
}
