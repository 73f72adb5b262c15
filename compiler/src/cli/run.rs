//! `tfc run`.

use super::console::Console;
use super::options::{Level, Shapes, Threads};
use super::source;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use tfc::diag::{Diagnostic, Result};
use tfc::files::{self, Pending};
use tfc::{inputs, npz};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_runtime::Session;

/// Run a model once on given inputs.
///
/// A model (.onnx, .tir) is compiled in memory first; an artifact (a bundle's folder, or a .so) is
/// loaded. Members of the .npz files have the names and element types of the model's inputs and outputs;
/// bf16 is what NumPy saves of ml_dtypes' bfloat16, or uint16 with the same bits for inputs.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc run bert --inputs in.npz --outputs out.npz
  tfc run bert.onnx --inputs in.npz            a summary of each output
  TFC_CPU=baseline tfc run bert/bert.so --inputs in.npz --threads 1")]
pub struct Args {
    /// A model (.onnx, .tir) or an artifact (a bundle, a .so).
    #[arg(value_name = "MODEL|ARTIFACT")]
    model: PathBuf,
    /// The inputs.
    #[arg(long, value_name = "IN.npz")]
    inputs: Option<PathBuf>,
    /// Where to write the outputs; without it, a summary of each is printed.
    #[arg(long, value_name = "OUT.npz")]
    outputs: Option<PathBuf>,
    /// Print one JSON object with the summaries of the outputs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    args.outputs.as_deref().map_or(Ok(()), files::check)?;
    args.level.quantization.mask_has_samples()?;
    let source = source::open(&args.model, &args.level, &args.shapes, source::Keep::Nothing, console)?;
    let model = Arc::new(source.model);
    if let Some(port) = model.outputs().iter().find(|p| args.outputs.is_some() && !npz::has_type(inputs::elem_of(p.elem))) {
        return Err(Diagnostic::failed(format!("output `{}` cannot be written: .npy files have no {}", port.name, port.elem)));
    }
    let tensors = match &args.inputs {
        Some(path) => source::inputs(path, &model, &source.sizes)?.0,
        None if model.inputs().is_empty() => vec![],
        None => {
            let wanted: Vec<String> = model.inputs().iter().map(|p| format!("`{}`: {}", p.name, p.type_text())).collect();
            return Err(Diagnostic::usage("the model needs inputs").note(wanted.join("\n")).help("give them with --inputs IN.npz"));
        }
    };
    let mut session = session(&model, args.threads.count())?;
    let outputs = inputs::run(&mut session, &tensors, &source.sizes.symbols())?;
    let named = || model.outputs().iter().map(|p| p.name.as_str()).zip(&outputs);
    if let Some(path) = &args.outputs {
        let mut out = Pending::default();
        let arrays = named().map(|(name, t)| (name, t.elem(), t.sizes(), &t.bytes()[..]));
        out.write(path, |w| npz::write(w, arrays))?;
        out.commit()?;
    }
    let summaries = || named().map(|(name, t)| Summary::new(name, t));
    match () {
        () if args.json => {
            let outputs: Vec<Value> = summaries().map(|s| s.json()).collect();
            console.result(&format!("{:#}\n", json!({ "cpu_variant": model.cpu_variant(), "outputs": outputs })))
        }
        () if args.outputs.is_none() => console.result(&summaries().map(|s| s.text()).collect::<String>()),
        () => Ok(()),
    }
}

/// A session with `threads` threads.
///
/// # Errors
/// When the system refuses to start a thread.
pub fn session(model: &Arc<tfc_runtime::Model>, threads: usize) -> Result<Session> {
    Session::new(model.clone(), threads).map_err(|e| Diagnostic::failed(format!("cannot start {threads} threads: {e}")))
}

/// What is said of an output.
struct Summary<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    /// Least, largest and mean of the finite elements, if there are any.
    range: Option<[f64; 3]>,
    /// Elements that are not finite.
    odd: usize,
    /// The first elements.
    first: Vec<Scalar>,
}

impl<'a> Summary<'a> {
    fn new(name: &'a str, tensor: &'a Tensor) -> Summary<'a> {
        const SHOWN: usize = 6;
        let (mut min, mut max, mut sum, mut odd) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0);
        for x in tensor.iter().map(Scalar::to_f64) {
            if !x.is_finite() {
                odd += 1;
                continue;
            }
            (min, max, sum) = (min.min(x), max.max(x), sum + x);
        }
        let range = (min <= max).then(|| [min, max, sum / (tensor.len() - odd) as f64]);
        Summary { name, tensor, range, odd, first: tensor.iter().take(SHOWN).collect() }
    }

    /// Two lines.
    fn text(&self) -> String {
        let number = |s: &Scalar| match s {
            Scalar::Float(x) => format!("{x:.6}"),
            Scalar::Int(n) => n.to_string(),
        };
        let mut out = format!("{}: {}", self.name, self.tensor.ty());
        if let Some([min, max, mean]) = self.range {
            let _ = write!(out, "  min {min:.6}  max {max:.6}  mean {mean:.6}");
        }
        if self.odd > 0 {
            let _ = write!(out, "  {} not finite", self.odd);
        }
        let first: Vec<String> = self.first.iter().map(number).collect();
        let more = if self.tensor.len() > first.len() { " ..." } else { "" };
        let _ = writeln!(out, "\n  {}{more}", first.join(" "));
        out
    }

    /// An object; what is not finite is null.
    fn json(&self) -> Value {
        let t = self.tensor;
        json!({
            "name": self.name,
            "type": t.elem().name(),
            "shape": t.sizes(),
            "min": self.range.map(|r| r[0]),
            "max": self.range.map(|r| r[1]),
            "mean": self.range.map(|r| r[2]),
            "not_finite": self.odd,
            "first": self.first.iter().map(|s| s.to_f64()).collect::<Vec<_>>(),
        })
    }
}
