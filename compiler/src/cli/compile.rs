//! `tfc compile`.

use super::console::{Console, bytes};
use super::options::{Accuracy, Debugging, Level, Shapes, driver_options};
use super::{ledger, trace::Trace};
use clap::ValueEnum;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use target_lexicon::{OperatingSystem, Triple};
use tfc::artifact::{self, Kind, WeightsMode};
use tfc::diag::{Diagnostic, Result, list, table};
use tfc::driver::{self, Optimized};
use tfc::emit::clif::target::Cpu;
use tfc::emit::names::{c_identifier, is_identifier};
use tfc::files::{self, Pending, Place};
use tfc::kernel::Program;
use tfc::metrics::{Metric, promises_table};
use tfc::scratch::Scratch;
use tfc_ir::graph::Graph;

/// Compile a model.
///
/// Without -o, a bundle is written to a folder that is named after the model (after the model's folder, where the file is
/// called model.onnx): object, static and shared library, C header, Rust wrapper, weights, manifest, and an example that
/// builds. What was compiled from another model is not replaced, unless --force says so.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc compile bert.onnx                                 a bundle in the folder `bert`
  tfc compile bert.onnx -o bert.o                       an object; the weights go beside it
  tfc compile bert.onnx --dim batch=1,seq=1..512 --mcpu native -o bert.so
  tfc compile bert.onnx --quant w4a8:g128 --quant-override 'layer.0/=w8a8' --opt-report
  tfc compile bert.onnx --target aarch64-unknown-linux-gnu -o bert-arm
  tfc compile bert.onnx -O2 --emit tir,asm -o out       out.tir and out.s
  tfc compile bert.onnx --dump-ir ir                    a file for each pass; then:
  tfc compile ir/06-eqsat.tir --passes dce,legalize,sink-reshapes,fuse -o bert.o")]
pub struct Args {
    /// The model: ONNX, or a graph in text form (.tir).
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Where to write. The extension says what, unless --emit does: .o .a .so .tir .clif .s .dot;
    /// a folder, or a name without extension, gets a bundle. `-` prints a text. Links are written
    /// through, devices and pipes are written into; they get an object unless --emit says otherwise.
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// What to write; several with commas. Without a bundle, several go to OUT with their extensions.
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',')]
    emit: Vec<Emit>,
    /// The prefix of all symbols and of the files in a bundle, a C identifier [default: the name of OUT; without one that
    /// of the model, which is its folder's where the file is called model.onnx].
    #[arg(long)]
    name: Option<String>,
    /// Replace what was compiled from another model: bundles, code and weights.
    #[arg(long)]
    force: bool,
    /// Whether the weights are in the object or in a file beside it [default: in the object below 1 MiB].
    #[arg(long, value_enum, value_name = "WHERE")]
    weights: Option<Weights>,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
    /// The target: x86_64-unknown-linux-gnu, x86_64-unknown-linux-musl or aarch64-unknown-linux-gnu [default: this machine].
    #[arg(long, value_name = "TRIPLE", help_heading = "Target")]
    target: Option<String>,
    /// Make code for one kind of CPU only: native (the best variant that this machine runs), a variant
    /// (baseline, avx2, avxvnni, avx512vnni, amx), a level (x86-64-v3), or a CPU (haswell, icelake-server, znver4).
    #[arg(long, value_name = "CPU", conflicts_with = "cpu_variants", help_heading = "Target")]
    mcpu: Option<String>,
    /// CPU variants in the object, of which the best that can run is chosen at run time
    /// [default: all that there are for the target].
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Target")]
    cpu_variants: Vec<String>,
    #[command(flatten)]
    debugging: Debugging,
    #[command(flatten)]
    accuracy: Accuracy,
}

/// What can be written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
enum Emit {
    /// A folder with everything.
    Bundle,
    /// A relocatable object.
    Obj,
    /// A static library.
    Lib,
    /// A shared object.
    Shared,
    /// A program that runs the model on made-up inputs.
    Exe,
    /// Code for NVIDIA GPUs.
    #[value(hide = true)]
    Ptx,
    /// The graph after the passes, in text form.
    Tir,
    /// The kernels in Cranelift's IR.
    Clif,
    /// The kernels as assembly.
    Asm,
    /// The graph after the passes as a picture, for Graphviz.
    Dot,
}

impl Emit {
    fn kind(self) -> Option<Kind> {
        match self {
            Emit::Bundle => Some(Kind::Bundle),
            Emit::Obj => Some(Kind::Obj),
            Emit::Lib => Some(Kind::Lib),
            Emit::Shared => Some(Kind::Shared),
            Emit::Exe => Some(Kind::Exe),
            Emit::Clif => Some(Kind::Clif),
            Emit::Asm => Some(Kind::Asm),
            Emit::Ptx | Emit::Tir | Emit::Dot => None,
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Emit::Ptx => "ptx",
            Emit::Tir => "tir",
            Emit::Dot => "dot",
            _ => self.kind().and_then(Kind::extension).unwrap_or_default(),
        }
    }

    fn of_extension(extension: &str) -> Option<Emit> {
        Emit::value_variants().iter().copied().find(|e| !e.extension().is_empty() && e.extension() == extension)
    }

    fn is_graph(self) -> bool {
        matches!(self, Emit::Tir | Emit::Dot)
    }
}

/// Where the weights go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Weights {
    /// Into the object.
    Embedded,
    /// Into a file.
    External,
}

/// What is written, and where.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    emits: BTreeSet<Emit>,
    out: PathBuf,
    /// The only thing that is emitted is printed.
    stdout: bool,
}

impl Plan {
    /// The file of one kind.
    fn file(&self, emit: Emit) -> PathBuf {
        if self.emits.len() == 1 { self.out.clone() } else { self.out.with_extension(emit.extension()) }
    }
}

/// What to write of the program, for the functions that write it.
struct Native<'a> {
    args: &'a Args,
    plan: &'a Plan,
    name: &'a str,
    target: &'a Triple,
    cpus: &'a [Cpu],
    kinds: BTreeSet<Kind>,
    options: Vec<String>,
}

impl Native<'_> {
    /// Where it goes.
    fn out(&self) -> PathBuf {
        let mut native = self.plan.emits.iter().filter(|e| e.kind().is_some());
        match (native.next(), native.next()) {
            // Kinds that are not native have their own names; the only native one gets the same.
            (Some(&only), None) if only != Emit::Bundle => self.plan.file(only),
            _ => self.plan.out.clone(),
        }
    }

    /// For the model with this hash.
    fn artifact<'b>(&'b self, out: &'b Path, model_hash: u128, extra: &'b [(&'b str, &'b [u8])]) -> artifact::Options<'b> {
        artifact::Options {
            name: self.name,
            kinds: &self.kinds,
            out,
            force: self.args.force,
            weights: match self.args.weights {
                None => WeightsMode::Auto,
                Some(Weights::Embedded) => WeightsMode::Embedded,
                Some(Weights::External) => WeightsMode::External,
            },
            target: self.target,
            cpus: self.cpus,
            options: &self.options,
            model_hash,
            extra,
        }
    }
}

/// Whoever waits for a compilation shall not learn only at its end that there is no place for it.
fn check_places(plan: &Plan, native: &Native) -> Result<()> {
    if plan.stdout {
        return Ok(());
    }
    files::check_folder(&plan.out)?;
    if !native.kinds.is_empty() {
        artifact::check(&native.artifact(&native.out(), 0, &[]))?;
    }
    let bundle = plan.emits.contains(&Emit::Bundle);
    plan.emits.iter().filter(|e| e.is_graph() && !bundle).try_for_each(|&e| files::check(&plan.file(e)))
}

/// The same of what was compiled from another model. Weights of this many bytes get a file of their own, however they are
/// quantized; of smaller ones it turns out later.
fn check_models(graph: &Graph, hash: u128, plan: &Plan, native: &Native) -> Result<()> {
    const SURE: usize = 16 * artifact::EMBED_LIMIT as usize;
    if plan.stdout || native.kinds.is_empty() {
        return Ok(());
    }
    let bytes = || graph.values().filter_map(|(v, _)| graph.as_const(v)).map(|t| t.bytes().len()).sum::<usize>();
    let weights_file = match native.args.weights {
        Some(Weights::External) => bytes() > 0,
        Some(Weights::Embedded) => false,
        None => bytes() >= SURE && !Place::is_stream(&plan.out),
    };
    Ok(artifact::check_model(&native.artifact(&native.out(), hash, &[]), weights_file)?)
}

/// Compiles. Returns where the output is; empty if it was printed.
pub fn run(args: &Args, console: &Console) -> Result<PathBuf> {
    let name = name(args)?;
    let mut plan = plan(&args.emit, args.output.as_deref(), &name, args.debugging.stop_after.is_some())?;
    if args.output.is_none() && plan.emits.contains(&Emit::Bundle) {
        plan.out = default_folder(&name, &args.model);
    }
    let target = target(args.target.as_deref())?;
    let cpus = cpus(args, &target)?;
    let kinds = plan.emits.iter().filter_map(|e| e.kind()).collect();
    let code = Native { args, plan: &plan, name: &name, target: &target, cpus: &cpus, kinds, options: canonical_options(args, &cpus) };
    check_places(&plan, &code)?;
    args.level.quantization.mask_has_samples()?;
    let mut options = driver_options(&args.level, &args.shapes, console)?;
    options.promise(args.accuracy.promise(), args.debugging.opt_report)?;
    let pipeline = options.pipeline();
    let mut trace = Trace::new(&args.debugging, &pipeline, console)?;

    let native = plan.emits.iter().any(|e| !e.is_graph());
    let report = args.debugging.stop_after.is_none() && (args.debugging.opt_report || args.debugging.stats.is_some());
    let steps = if native { 4 } else { 2 + usize::from(report) };
    console.progress(1, steps, &format!("read {}", args.model.display()));
    let loaded = driver::load(&args.model, &options.import)?;
    console.warnings(&loaded.warnings);
    check_models(&loaded.graph, loaded.hash, &plan, &code)?;
    trace.step("import");
    trace.imported(&loaded.graph)?;
    let optimized = if trace.stopped() {
        Optimized { graph: loaded.graph, ledger: vec![], notes: vec![], accuracy: None }
    } else {
        console.progress(2, steps, &format!("rewrite {} nodes by {} passes", loaded.graph.nodes().len(), pipeline.len()));
        driver::optimize(loaded.graph, &options, |ran| trace.ran(ran))?
    };
    trace.step("passes");
    console.notes(&optimized.notes);
    args.level.quantization.note(&optimized.ledger, trace.stopped(), console);
    if !args.debugging.opt_report {
        console.info(ledger::short(&optimized.ledger).trim_end());
    }
    if let Some(accuracy) = &optimized.accuracy {
        console.info(accuracy_text(accuracy).trim_end());
    }

    let mut pending = Pending::default();
    let extra = write_graph(&optimized.graph, &plan, &mut pending, console)?;
    let mut program = None;
    if native || report {
        console.progress(3, steps, &format!("schedule {} nodes", optimized.graph.nodes().len()));
        program = Some(driver::lower(&optimized)?);
        trace.step("schedule");
    }
    if let Some(program) = program.as_ref().filter(|_| native) {
        console.progress(4, steps, &format!("generate code for {} kernels, {} CPU variants", program.kernels.len(), cpus.len()));
        drop(optimized);
        write_native(program, &code, loaded.hash, &extra, console)?;
        trace.step("code");
    }
    for path in pending.commit()? {
        console.info(&format!("wrote {}", path.display()));
    }
    trace.finish(program.as_ref())?;
    Ok(if plan.stdout { PathBuf::new() } else { plan.out })
}

/// What was measured on held-out samples, what was promised, and what was done to keep it.
fn accuracy_text(a: &tfc::calibration::Accuracy) -> String {
    let mut rows = vec![["output", "relative error", "divergence", "top-1 agreement"].map(String::from)];
    for (name, m) in &a.outputs {
        let text = |metric: Metric| metric.of(m).map_or(String::new(), |x| metric.text(x));
        rows.push([name.clone(), text(Metric::Error), text(Metric::Divergence), text(Metric::Top1)]);
    }
    let mut text = format!("against f32, on {} samples that were held out:\n{}", a.samples, table(&rows));
    if !a.checked.is_empty() {
        text += &promises_table(&a.checked);
    }
    for r in &a.raised {
        let name = r.loc.names().next().unwrap_or("a node without a name");
        text += &format!("`{name}` is {}: {}\n", r.spec, r.reason);
    }
    text
}

/// Writes what shows the graph. Returns what goes into the bundle, if there is one.
fn write_graph(graph: &Graph, plan: &Plan, pending: &mut Pending, console: &Console) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut extra = vec![];
    let bundle = plan.emits.contains(&Emit::Bundle);
    for &emit in plan.emits.iter().filter(|e| e.is_graph()) {
        let text = |emit| if emit == Emit::Tir { graph.to_string() } else { tfc::dot::dot(graph) };
        match emit {
            _ if plan.stdout => console.result(&text(emit))?,
            Emit::Tir if bundle => {
                let (mut text, mut blob) = (vec![], vec![]);
                tfc_ir::text::write(graph, &mut text, Some(&mut blob))
                    .map_err(|e| Diagnostic::failed(format!("cannot print the graph: {e}")))?;
                extra.push(("tir", text));
                if !blob.is_empty() {
                    extra.push(("tir.bin", blob));
                }
            }
            Emit::Tir => driver::write_tir(graph, &plan.file(emit), pending)?,
            _ if bundle => extra.push(("dot", text(emit).into_bytes())),
            _ => pending.write(&plan.file(emit), |w| std::io::Write::write_all(w, text(emit).as_bytes()))?,
        }
    }
    Ok(extra)
}

fn write_native(program: &Program, code: &Native, hash: u128, extra: &[(&'static str, Vec<u8>)], console: &Console) -> Result<()> {
    let temporary = std::env::temp_dir();
    let folder =
        code.plan.stdout.then(|| Scratch::new(&temporary)).transpose().map_err(|e| Diagnostic::io("write into", &temporary, &e))?;
    let out = folder.as_ref().map_or_else(|| code.out(), |folder| folder.join("listing"));
    let extra: Vec<(&str, &[u8])> = extra.iter().map(|(e, data)| (*e, &data[..])).collect();
    let written = artifact::write(program, &code.artifact(&out, hash, &extra))?;
    if code.plan.stdout {
        let text = std::fs::read_to_string(&out).map_err(|e| Diagnostic::io("read", &out, &e))?;
        return console.result(&text);
    }
    console.notes(&written.notes);
    let m = &written.manifest;
    let weights = m.weights.as_ref().map_or(0, |w| w.data_bytes);
    for path in &written.paths {
        console.info(&format!("wrote {} (code {}, weights {})", path.display(), bytes(m.code_bytes), bytes(weights)));
    }
    Ok(())
}

/// What shapes the code, in the form of the command line and in a fixed order.
fn canonical_options(args: &Args, cpus: &[Cpu]) -> Vec<String> {
    let mut options = args.level.canonical();
    options.push(format!("--cpu-variants={}", cpus.iter().map(|c| c.name).collect::<Vec<_>>().join(",")));
    options.extend(args.shapes.canonical());
    options
}

/// The prefix of all symbols: what the user says, else the name of the output, else that of the model.
fn name(args: &Args) -> Result<String> {
    let Some(name) = &args.name else {
        let of_output = args.output.as_deref().and_then(|out| output_name(out, &args.emit));
        return Ok(of_output.unwrap_or_else(|| model_name(&args.model)));
    };
    if is_identifier(name) {
        return Ok(name.clone());
    }
    Err(Diagnostic::usage(format!("--name {name}: this is not an identifier in C")).help(format!("use --name {}", c_identifier(name))))
}

/// The name of an output; none for streams, and for folders that single files go into.
fn output_name(out: &Path, emit: &[Emit]) -> Option<String> {
    let folder = out.is_dir();
    let bundle = emit.contains(&Emit::Bundle) || (emit.is_empty() && (folder || out.extension().is_none()));
    if out == "-" || Place::is_stream(out) || (folder && !bundle) {
        return None;
    }
    let name = if bundle { out.file_name() } else { out.file_stem() };
    name.map(|n| c_identifier(&n.to_string_lossy()))
}

/// The name of a model: that of its file, or, where all are called `model`, that of its folder, or of the one above
/// where that is called `onnx`.
fn model_name(model: &Path) -> String {
    let stem = model.file_stem().unwrap_or_default();
    let path = std::path::absolute(model).unwrap_or_default();
    let folder = path.ancestors().skip(1).filter_map(Path::file_name).find(|f| *f != "onnx").filter(|_| stem == "model");
    c_identifier(&folder.unwrap_or(stem).to_string_lossy())
}

/// Where a bundle goes without -o: to a folder called `name`, if that is not where the model is.
fn default_folder(name: &str, model: &Path) -> PathBuf {
    let of_model = std::path::absolute(files::folder(model)).and_then(|f| f.canonicalize());
    match (Path::new(name).canonicalize(), of_model) {
        (Ok(place), Ok(model)) if model.starts_with(&place) => format!("{name}_bundle").into(),
        _ => name.into(),
    }
}

fn plan(emit: &[Emit], output: Option<&Path>, name: &str, stop: bool) -> Result<Plan> {
    let folder = output.is_some_and(Path::is_dir);
    let stdout = output.is_some_and(|o| o == "-");
    let mut emits: BTreeSet<Emit> = emit.iter().copied().collect();
    if emits.is_empty() {
        let extension = output.and_then(|o| o.extension()).map(|e| e.to_string_lossy().into_owned());
        let only = match extension {
            _ if stop && (stdout || output.is_none()) => {
                return Ok(Plan { emits: [Emit::Tir].into(), out: PathBuf::new(), stdout: true });
            }
            _ if stdout => {
                return Err(Diagnostic::usage("-o - prints a text, but which one?").help("add --emit tir, clif, asm or dot"));
            }
            Some(e) if !folder => Emit::of_extension(&e).ok_or_else(|| {
                Diagnostic::usage(format!(
                    "-o {}: what to write does not follow from the extension",
                    output.unwrap_or(Path::new("")).display()
                ))
                .note("extensions that say what: .o .a .so .tir .clif .s .dot; without one, a bundle is written")
                .help("say it with --emit")
            })?,
            // A folder cannot be written into a device or a pipe, an object can.
            _ if output.is_some_and(Place::is_stream) => Emit::Obj,
            _ => Emit::Bundle,
        };
        emits.insert(only);
    }
    if emits.contains(&Emit::Ptx) {
        return Err(Diagnostic::unsupported("code for NVIDIA GPUs (ptx) is not supported yet"));
    }
    if stop && emits.iter().any(|e| !e.is_graph()) {
        return Err(
            Diagnostic::usage("with --stop-after there is a graph, but no code").help("write it with -o NAME.tir, or --emit tir,dot")
        );
    }
    if stdout && (emits.len() > 1 || !emits.iter().all(|e| matches!(e, Emit::Tir | Emit::Dot | Emit::Clif | Emit::Asm))) {
        return Err(Diagnostic::usage("-o - prints one text").help("give one of --emit tir, clif, asm, dot"));
    }
    let single = if emits.len() == 1 { emits.first().map_or("", |e| e.extension()) } else { "" };
    let default = Path::new(name).with_extension(single);
    let out = match output {
        None => default,
        // A bundle takes the folder itself; other files go into it.
        Some(o) if folder && !emits.contains(&Emit::Bundle) => o.join(default),
        Some(o) => o.into(),
    };
    Ok(Plan { emits, out, stdout })
}

/// The targets whose code is tested: bundles build and their examples run.
const TESTED: [&str; 3] = ["x86_64-unknown-linux-gnu", "x86_64-unknown-linux-musl", "aarch64-unknown-linux-gnu"];

fn target(triple: Option<&str>) -> Result<Triple> {
    let host = Triple::host();
    let target = match triple {
        None => host.clone(),
        Some(t) => {
            t.parse().map_err(|e| Diagnostic::usage(format!("--target {t}: {e}")).help("a target is like x86_64-unknown-linux-gnu"))?
        }
    };
    let same = |t: &Triple| {
        (t.architecture, t.operating_system, t.environment) == (target.architecture, target.operating_system, target.environment)
    };
    let tested = || TESTED.iter().filter_map(|t| t.parse().ok()).chain([host.clone()]).any(|t| same(&t));
    if Cpu::baseline(&target).is_some() && tested() {
        return Ok(target);
    }
    let why = if Cpu::baseline(&target).is_none() { "there is no code generator for it" } else { "no code for it has ever been run" };
    let d = Diagnostic::unsupported(format!("the target {target} is not supported: {why}"))
        .note(format!("targets that are tested: {}; this machine is {host}", list(TESTED)));
    Err(match target.operating_system {
        OperatingSystem::None_ | OperatingSystem::Unknown if Cpu::baseline(&target).is_some() => d.help(format!(
            "without an operating system use an object for {}-unknown-linux-gnu (-o NAME.o): it needs memcpy, memmove and memset and nothing else",
            target.architecture
        )),
        _ => d,
    })
}

fn cpus(args: &Args, target: &Triple) -> Result<Vec<Cpu>> {
    let all = Cpu::variants(target);
    let names = || list(all.iter().map(|c| c.name));
    let pick = |asked: &String| {
        let found = all.iter().find(|c| c.name == asked).cloned();
        found.ok_or_else(|| {
            Diagnostic::usage(format!("--cpu-variants {asked}: there is no such CPU variant for {target}"))
                .note(format!("there are {}", names()))
        })
    };
    if let Some(mcpu) = &args.mcpu {
        let cpu = match mcpu.as_str() {
            "native" if target.architecture != Triple::host().architecture => {
                return Err(Diagnostic::usage("--mcpu native: the target is not this machine").note(format!("the target is {target}")));
            }
            "native" => all.iter().rfind(|c| c.runs_here()).cloned(),
            name => Cpu::named(target, name),
        };
        return cpu.map(|c| vec![c]).ok_or_else(|| {
            let known = list(["native"].into_iter().chain(Cpu::names(target)));
            Diagnostic::usage(format!("--mcpu {mcpu}: no such CPU is known for {target}")).note(format!("there are {known}"))
        });
    }
    if args.cpu_variants.is_empty() {
        return Ok(all);
    }
    let chosen = args.cpu_variants.iter().map(pick).collect::<Result<Vec<_>>>()?;
    // The order is that of the demands, however they were listed.
    Ok(all.iter().filter(|c| chosen.iter().any(|w| w.name == c.name)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(emit: &[Emit], output: Option<&str>) -> (Vec<Emit>, String, bool) {
        let p = plan(emit, output.map(Path::new), "bert", false).unwrap();
        (p.emits.into_iter().collect(), p.out.display().to_string(), p.stdout)
    }

    #[test]
    fn the_extension_says_what_is_written() {
        assert_eq!(planned(&[], None), (vec![Emit::Bundle], "bert".into(), false));
        assert_eq!(planned(&[], Some("x")), (vec![Emit::Bundle], "x".into(), false));
        assert_eq!(planned(&[], Some("d/x.so")), (vec![Emit::Shared], "d/x.so".into(), false));
        assert_eq!(planned(&[Emit::Obj], None), (vec![Emit::Obj], "bert.o".into(), false));
        assert_eq!(planned(&[Emit::Obj], Some("y")), (vec![Emit::Obj], "y".into(), false));
        assert_eq!(planned(&[Emit::Asm, Emit::Tir], Some("y")).1, "y");
        assert_eq!(planned(&[Emit::Tir], Some("-")), (vec![Emit::Tir], "-".into(), true));
        let exit = |emit: &[Emit], output: &str, stop| plan(emit, Some(Path::new(output)), "m", stop).unwrap_err().exit as u8;
        assert_eq!(exit(&[], "x.pdf", false), 2);
        assert_eq!(exit(&[], "-", false), 2);
        assert_eq!(exit(&[], "x.ptx", false), 3);
        assert_eq!(exit(&[], "x.o", true), 2);
    }
}
