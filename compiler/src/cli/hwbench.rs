//! `tfc hwbench`.

use super::console::{Console, bytes};
use super::options::{Level, Shapes};
use super::{bench, source};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tfc::diag::{Diagnostic, Result};
use tfc::hwbench::compare::{Alternatives, Compared};
use tfc::hwbench::machine::Machine;
use tfc::profile::{aligned, nodes_text};
use tfc_runtime::LoadOptions;

/// Rounds of the comparison: at least this many, and for at least [`MIN_TIME`].
const MIN_ROUNDS: usize = 7;
const MIN_TIME: Duration = Duration::from_secs(1);

/// `--assert` fails when the choice is slower than the fastest candidate by more than this.
const TOLERANCE: f64 = 0.05;

/// `--assert` leaves out kernels that take less than this: the clock and the launch weigh as much.
const SHORTEST: f64 = 20e-6;

/// How often `--assert` measures again before it believes that a choice is wrong: times only get shorter.
const RETRIES: usize = 3;

/// Measure this machine, or every candidate for the kernels of a model on it.
///
/// Without a model: rates of the instructions that limit matrix products, and bandwidths of caches and
/// memory, on one thread and on all. With a model: each of its kernels, compiled in every way and for every
/// CPU variant that runs here, in runs of the whole model; the one that the compiler chooses is marked.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc hwbench
  tfc hwbench --json | jq .runs[0].compute
  tfc hwbench bert.onnx --dim batch=1,seq=128 --assert
  TFC_CPU=avx2 tfc hwbench gemm.tir

Rates count two operations per multiply-add. A copy counts what it reads and what it writes.
With --assert the exit code is 1 if a kernel that takes 20 microseconds or more is more than 5% slower
than its fastest candidate.")]
pub struct Args {
    /// A model (.onnx, .tir).
    #[arg(value_name = "MODEL")]
    model: Option<PathBuf>,
    /// The inputs; without them, they are made up as by bench.
    #[arg(long, value_name = "IN.npz", requires = "model")]
    inputs: Option<PathBuf>,
    /// Threads, 0 for as many as there are CPUs; without it, one for a model, else one and all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads: Option<u16>,
    /// Rounds of the comparison; without it, seven or more, for a second or more.
    #[arg(long, value_name = "N", requires = "model", value_parser = clap::value_parser!(u32).range(1..))]
    iters: Option<u32>,
    /// Fail if the compiler's choice is more than 5% slower than the fastest candidate.
    #[arg(long, requires = "model")]
    assert: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.map(|n| if n == 0 { cpus } else { n.into() });
    match &args.model {
        Some(model) => compare(args, model, threads.unwrap_or(1), console),
        None => {
            let mut counts = threads.map_or_else(|| vec![1, cpus], |n| vec![n]);
            counts.dedup();
            let machines = counts.into_iter().map(Machine::measure).collect::<std::result::Result<Vec<_>, _>>()?;
            console.result(&if args.json { format!("{:#}\n", machine_json(&machines)) } else { machine_text(&machines) })
        }
    }
}

/// The name of the CPU, where the system tells.
fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name")).and_then(|l| l.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}

fn machine_text(machines: &[Machine]) -> String {
    let heads: Vec<String> =
        machines.iter().map(|m| if m.threads == 1 { "1 thread".into() } else { format!("{} threads", m.threads) }).collect();
    // One or two columns of numbers.
    let column = |i: usize, f: &dyn Fn(&Machine) -> f64| machines.get(i).map_or_else(String::new, |m| format!("{:.1}", f(m)));
    let head = |i: usize| heads.get(i).cloned().unwrap_or_default();
    let first = &machines[0];
    let mut rows = vec![["GOP/s".to_string(), head(0), head(1)]];
    for (i, (unit, _)) in first.compute.iter().enumerate() {
        let rate = |m: &Machine| m.compute[i].1 / 1e9;
        rows.push([unit.name().into(), column(0, &rate), column(1, &rate)]);
    }
    let mut out = format!("{}\n\n{}", cpu_name(), aligned(&rows));
    let mut rows = vec![["GB/s".to_string(), head(0), head(1)]];
    for (i, b) in first.memory.iter().enumerate() {
        let size = if b.level.size == u64::MAX { String::new() } else { format!(" ({})", bytes(b.level.size)) };
        for (what, rate) in [
            ("read", (|m, i| m.memory[i].read / 1e9) as fn(&Machine, usize) -> f64),
            ("write", |m, i| m.memory[i].write / 1e9),
            ("copy", |m, i| m.memory[i].copy / 1e9),
        ] {
            let rate = |m: &Machine| rate(m, i);
            rows.push([format!("{what} {}{size}", b.level.name), column(0, &rate), column(1, &rate)]);
        }
    }
    out.push('\n');
    out.push_str(&aligned(&rows));
    if let Some(m) = machines.iter().find(|m| m.threads > 1) {
        out.push_str(&format!("\nhanding a loop to {} threads and back: {:.2} us\n", m.threads, m.launch * 1e6));
    }
    out
}

fn machine_json(machines: &[Machine]) -> Value {
    let one = |m: &Machine| {
        let compute = m.compute.iter().map(|(u, rate)| json!({ "name": u.name(), "gops": rate / 1e9 }));
        let memory = m.memory.iter().map(|b| {
            json!({
                "level": b.level.name,
                "level_bytes": (b.level.size != u64::MAX).then_some(b.level.size),
                "buffer_bytes": b.bytes,
                "read_gbps": b.read / 1e9,
                "write_gbps": b.write / 1e9,
                "copy_gbps": b.copy / 1e9,
            })
        });
        json!({
            "threads": m.threads,
            "compute": compute.collect::<Vec<_>>(),
            "memory": memory.collect::<Vec<_>>(),
            "launch_us": m.launch * 1e6,
        })
    };
    json!({ "cpu": cpu_name(), "runs": machines.iter().map(one).collect::<Vec<_>>() })
}

fn compare(args: &Args, path: &Path, threads: usize, console: &Console) -> Result<()> {
    if source::is_artifact(path) {
        return Err(Diagnostic::usage("hwbench compiles a model in every way, and this is compiled already")
            .at(format!("`{}`", path.display()))
            .help("give the .onnx or .tir file; `tfc bench --profile` shows the kernels of an artifact"));
    }
    let (program, sizes) = source::program(path, &args.level, &args.shapes, console)?;
    let cpu = LoadOptions::from_env().cpu;
    let mut alternatives = Alternatives::new(&program, cpu.as_deref(), threads)?;
    let model = alternatives.all[alternatives.pick].model.clone();
    let mut data = bench::Data::new(&model, args.inputs.as_deref(), &sizes)?;
    let dims = data.dims.clone();
    let machine = Machine::measure(threads)?;
    let mut rounds = 0;
    let mut measure = |alternatives: &mut Alternatives| -> Result<()> {
        let begin = Instant::now();
        for round in 0.. {
            match args.iters {
                Some(n) if round >= n as usize => break,
                None if round >= MIN_ROUNDS && begin.elapsed() >= MIN_TIME => break,
                _ => {}
            }
            data.run(|dims, inputs, outputs| alternatives.round(dims, inputs, outputs))?;
            rounds += 1;
        }
        Ok(())
    };
    measure(&mut alternatives)?;
    let mut compared = alternatives.compared(&program, &dims, &machine);
    for _ in 0..RETRIES {
        if !args.assert || !compared.iter().any(is_wrong) {
            break;
        }
        measure(&mut alternatives)?;
        compared = alternatives.compared(&program, &dims, &machine);
    }
    let variants = alternatives.all.len();
    console.result(&if args.json {
        format!("{:#}\n", compared_json(&compared, &machine, rounds))
    } else {
        compared_text(&compared, &machine, rounds, variants)
    })?;
    let wrong: Vec<&Compared> = compared.iter().filter(|c| is_wrong(c)).collect();
    if args.assert && !wrong.is_empty() {
        let mut d =
            Diagnostic::failed(format!("the compiler's choice is more than {:.0}% slower than the fastest candidate", TOLERANCE * 100.0));
        for c in wrong {
            let (pick, best) = (c.pick(), c.best());
            d = d.note(format!(
                "{}: {} {} takes {:.1} us, {} {} {:.1} us",
                c.row.name,
                pick.variants.join(" "),
                pick.name,
                pick.seconds * 1e6,
                best.variants.join(" "),
                best.name,
                best.seconds * 1e6
            ));
        }
        return Err(d);
    }
    Ok(())
}

fn is_wrong(c: &Compared) -> bool {
    c.is_wrong(TOLERANCE, SHORTEST)
}

fn compared_text(compared: &[Compared], machine: &Machine, rounds: usize, ways: usize) -> String {
    let giga = |x: f64| format!("{:.1}", x / 1e9);
    let mut rows = vec![["", "us", "of the best", "GOP/s", "GB/s", "of the limit", "variants", "candidate", "kernel"].map(String::from)];
    for c in compared {
        let best = c.best().seconds;
        for (i, m) in c.candidates.iter().enumerate() {
            let per_second = |n: f64| if m.seconds > 0.0 { n / m.seconds } else { 0.0 };
            let operations = c.row.load.operations;
            let kernel = format!("{} x{}  {}", c.row.name, c.row.steps.len(), nodes_text(&c.row.nodes));
            rows.push([
                if m.pick { "*" } else { "" }.into(),
                format!("{:.2}", m.seconds * 1e6),
                if m.seconds > 0.0 { format!("{:.0}%", 100.0 * best / m.seconds) } else { String::new() },
                if operations > 0.0 { giga(per_second(operations)) } else { String::new() },
                giga(per_second(c.row.load.bytes)),
                m.limit.map_or_else(String::new, |(share, bound)| format!("{:.1}% {}", 100.0 * share, bound.name())),
                m.variants.join(" "),
                m.name.into(),
                if i == 0 { kernel } else { String::new() },
            ]);
        }
    }
    let threads = if machine.threads == 1 { "1 thread".into() } else { format!("{} threads", machine.threads) };
    format!(
        "{}\n\n* is the compiler's choice; best of {rounds} rounds of {ways} compilations on {threads}, per call\n",
        aligned(&rows).trim_end()
    )
}

fn compared_json(compared: &[Compared], machine: &Machine, rounds: usize) -> Value {
    let one = |c: &Compared| {
        let candidates = c.candidates.iter().map(|m| {
            let per_second = |n: f64| if m.seconds > 0.0 { n / m.seconds / 1e9 } else { 0.0 };
            json!({
                "variants": m.variants,
                "candidate": m.name,
                "pick": m.pick,
                "us": m.seconds * 1e6,
                "gops": (c.row.load.operations > 0.0).then(|| per_second(c.row.load.operations)),
                "gbps": per_second(c.row.load.bytes),
                "limit_share": m.limit.map(|l| l.0),
                "limit": m.limit.map(|l| l.1.name()),
            })
        });
        json!({
            "name": c.row.name,
            "kind": c.row.kind,
            "summary": c.row.summary,
            "nodes": c.row.nodes,
            "calls": c.row.steps.len(),
            "operations": c.row.load.operations,
            "bytes": c.row.load.bytes,
            "loss": c.loss(),
            "candidates": candidates.collect::<Vec<_>>(),
        })
    };
    json!({
        "machine": machine_json(std::slice::from_ref(machine)),
        "threads": machine.threads,
        "rounds": rounds,
        "kernels": compared.iter().map(one).collect::<Vec<_>>(),
    })
}
