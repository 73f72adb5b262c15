//! `tfc bench`.

use super::console::{Console, bytes};
use super::options::{Fixed, Level, Shapes, Threads};
use super::{run, source};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tfc::diag::{Diagnostic, Result, table};
use tfc::files::{self, Pending};
use tfc::hwbench::machine::Machine;
use tfc::inputs;
use tfc::profile::{Summary, chrome_trace};
use tfc_ir::tensor::Tensor;
use tfc_runtime::{Buffer, Dims, Model};

/// Runs without --iters: at least this many, and for at least [`MIN_TIME`].
const MIN_ITERS: usize = 10;
const MIN_TIME: Duration = Duration::from_secs(1);

/// Where the 90th percentile is more than this many times the median, other programs take the processor.
const NOISE: f64 = 1.3;

/// Measure how long a model takes.
///
/// Without --inputs, inputs are made up: floats from a seeded normal distribution, integers 1,
/// booleans true. With a model, --shape and --dim also fix the dimensions that it is compiled for.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc bench bert --shape input_ids=1x128,attention_mask=1x128
  tfc bench bert.onnx --dim batch=1,seq=128 --threads 1 --json
  tfc bench bert --inputs in.npz --warmup 10 --iters 100
  tfc bench bert.onnx --dim batch=1,seq=128 --profile --trace trace.json

The object that --json prints has at least: median_ms, min_ms, p90_ms, iters, threads, peak_rss_bytes,
noisy (p90 far above the median), model, compiler, first_ms (from the start of the process to the first result), load_ms, cpu_variant.
With --profile it has `profile` too: kernels (name, nodes, calls, ms, share, gops, gbps, limit_share, ...),
kernels_ms, between_ms, unsteady_ms, whole_ms.")]
pub struct Args {
    /// A model (.onnx, .tir) or an artifact (a bundle, a .so).
    #[arg(value_name = "MODEL|ARTIFACT")]
    model: PathBuf,
    /// The inputs.
    #[arg(long, value_name = "IN.npz")]
    inputs: Option<PathBuf>,
    #[command(flatten)]
    threads: Threads,
    /// Runs before the measurement, the first one included.
    #[arg(long, value_name = "N", default_value_t = 3)]
    warmup: usize,
    /// Runs that are measured; without it, ten or more, for a second or more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    iters: Option<u32>,
    /// Show where the time goes, kernel by kernel: each run is followed by one with a clock, and the
    /// limits of the machine are measured.
    #[arg(long)]
    profile: bool,
    /// Write a typical run as a trace for Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
}

pub fn run(args: &Args, console: &Console, start: Instant) -> Result<()> {
    let before_main = time_before_main(start);
    args.trace.as_deref().map_or(Ok(()), files::check)?;
    let load = Instant::now();
    args.level.quantization.mask_has_samples()?;
    let source = source::open(&args.model, &args.level, &args.shapes, source::Keep::Nothing, console)?;
    let load = load.elapsed();
    let model = Arc::new(source.model);
    let threads = args.threads.count();
    let mut session = run::session(&model, threads)?;
    let mut data = Data::new(&model, args.inputs.as_deref(), &source.sizes)?;

    data.run(|dims, inputs, outputs| session.run_into(dims, inputs, outputs))?;
    let first = before_main + start.elapsed();
    for _ in 1..args.warmup {
        data.run(|dims, inputs, outputs| session.run_into(dims, inputs, outputs))?;
    }
    let profiling = args.profile || args.trace.is_some();
    let mut times = vec![];
    let mut profiles = vec![];
    let begin = Instant::now();
    loop {
        let t = Instant::now();
        data.run(|dims, inputs, outputs| session.run_into(dims, inputs, outputs))?;
        times.push(t.elapsed());
        if profiling {
            profiles.push(data.run(|dims, inputs, outputs| session.run_profiled(dims, inputs, outputs))?);
        }
        match args.iters {
            Some(n) if times.len() < n as usize => {}
            None if times.len() < MIN_ITERS || begin.elapsed() < MIN_TIME => {}
            _ => break,
        }
    }
    times.sort();
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    let median = if times.len() % 2 == 0 { (times[times.len() / 2 - 1] + times[times.len() / 2]) / 2 } else { times[times.len() / 2] };
    let (min, p90) = (times[0], at(0.9));
    let noisy = p90.as_secs_f64() > NOISE * median.as_secs_f64();
    let ms = |t: Duration| t.as_secs_f64() * 1e3;
    let arena = model.arena_bytes(&data.dims)?;
    let memory = peak_memory();
    let dims = &data.dims;
    // The machine is measured after the model, whose first result should not wait for it.
    let summary = match profiling {
        true => Some(Summary::new(&model, dims, profiles, &Machine::measure(threads)?)),
        false => None,
    };
    if let (Some(path), Some(summary)) = (&args.trace, &summary) {
        let trace = chrome_trace(&model, dims, &summary.typical);
        let mut out = Pending::default();
        out.write(path, |w| writeln!(w, "{trace}"))?;
        out.commit()?;
    }
    let profile = summary.filter(|_| args.profile);
    if args.json {
        let mut object = json!({
            "model": model.manifest().name,
            "compiler": model.manifest().compiler,
            "median_ms": ms(median),
            "min_ms": ms(min),
            "p90_ms": ms(p90),
            "noisy": noisy,
            "iters": times.len(),
            "threads": threads,
            "peak_rss_bytes": memory,
            "first_ms": ms(first),
            "load_ms": ms(load),
            "cpu_variant": model.cpu_variant(),
            "arena_bytes": arena,
            "weights_bytes": model.manifest().weights.as_ref().map_or(0, |w| w.data_bytes),
            "dims": model.symbols().iter().zip(dims.values()).map(|(s, v)| (s.name.clone(), (*v).into())).collect::<serde_json::Map<_, _>>(),
        });
        if let Some(profile) = &profile {
            object["profile"] = profile.json(median.as_secs_f64());
        }
        return console.result(&format!("{object:#}\n"));
    }
    let time = |t: Duration| format!("{:.3} ms", ms(t));
    if noisy {
        console.warnings(&[format!("the machine is noisy: one run in ten took {} or more, the median is {}", time(p90), time(median))]);
    }
    let sizes: Vec<String> = model.symbols().iter().zip(dims.values()).map(|(s, v)| format!("{}={v}", s.name)).collect();
    let mut rows = vec![
        ["model", &format!("{}, compiled by {}", model.manifest().name, model.manifest().compiler)].map(String::from),
        ["median", &time(median)].map(String::from),
        ["minimum", &time(min)].map(String::from),
        ["90th percentile", &time(p90)].map(String::from),
        ["runs", &format!("{} on {threads} threads, variant {}", times.len(), model.cpu_variant())].map(String::from),
        ["first result", &format!("{} after the start of the process, of which loading {}", time(first), time(load))].map(String::from),
        ["arena", &bytes(arena as u64)].map(String::from),
    ];
    if let Some(memory) = memory {
        rows.push(["peak memory", &bytes(memory)].map(String::from));
    }
    if !sizes.is_empty() {
        rows.push(["dimensions", &sizes.join(" ")].map(String::from));
    }
    let mut text = table(&rows);
    if let Some(profile) = &profile {
        text.push('\n');
        text.push_str(&profile.text(median.as_secs_f64()));
    }
    console.result(&text)
}

/// Inputs and outputs of a model, and its dimensions.
pub struct Data {
    /// The dimensions.
    pub dims: Dims,
    inputs: Vec<Tensor>,
    outputs: Vec<Buffer>,
}

impl Data {
    /// Reads inputs from an archive, or makes them up at these sizes.
    ///
    /// # Errors
    /// When they do not fit the model, or sizes are open; when there is no memory.
    pub fn new(model: &Model, path: Option<&Path>, sizes: &Fixed) -> Result<Data> {
        let tensors = match path {
            Some(path) => inputs::read(path, model.inputs(), "input")?,
            None => inputs::synthetic(model, &sizes.shapes, &sizes.dims)?,
        };
        let shapes: Vec<(&str, &[usize])> = model.inputs().iter().map(|p| p.name.as_str()).zip(tensors.iter().map(|t| t.sizes())).collect();
        let dims: Vec<(&str, i64)> = sizes.dims.iter().map(|(n, v)| (n.as_str(), *v)).collect();
        let dims = model.dims_with(&shapes, &dims).map_err(|e| inputs::at(path, e))?;
        inputs::fits_memory(model, &dims)?;
        let mut outputs = vec![];
        for port in model.outputs() {
            outputs.push(Buffer::new(port.bytes_at(&dims)?).map_err(|e| Diagnostic::failed(format!("output `{}`: {e}", port.name)))?);
        }
        Ok(Data { dims, inputs: tensors, outputs })
    }

    /// Runs the model.
    ///
    /// # Errors
    /// What running gives.
    pub fn run<T>(&mut self, run: impl FnOnce(&Dims, &[&[u8]], &mut [&mut [u8]]) -> Result<T, tfc_runtime::Error>) -> Result<T> {
        let inputs: Vec<&[u8]> = self.inputs.iter().map(|t| &t.bytes()[..]).collect();
        let mut outputs: Vec<&mut [u8]> = self.outputs.iter_mut().map(|o| &mut o[..]).collect();
        Ok(run(&self.dims, &inputs, &mut outputs)?)
    }
}

/// How long the process had been running when `main` began: what the scheduler counts for it until
/// now, running and waiting to run, without what `main` has taken. 0 where the system does not tell.
fn time_before_main(start: Instant) -> Duration {
    let Ok(text) = std::fs::read_to_string("/proc/self/schedstat") else { return Duration::ZERO };
    let total: u64 = text.split_whitespace().take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Duration::from_nanos(total).saturating_sub(start.elapsed())
}

/// The most memory that the process has had, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
