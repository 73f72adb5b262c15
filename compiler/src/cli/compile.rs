//! `tfc compile`.

use super::console::{Console, bytes};
use super::options::{Accuracy, Debugging, Level, Shapes, driver_options};
use super::{ledger, trace::Trace};
use clap::ValueEnum;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use target_lexicon::Triple;
use tfc::artifact::{self, Kind, WeightsMode};
use tfc::diag::{Diagnostic, Result, list, table};
use tfc::driver::{self, Optimized};
use tfc::emit::clif::target::Cpu;
use tfc::emit::manifest::c_identifier;
use tfc::files::{Pending, Place};
use tfc::kernel::Program;
use tfc::metrics::{Metric, promises_table};
use tfc_ir::graph::Graph;

/// Compile a model.
///
/// Without -o, a bundle is written to a folder that is named after the model: object, static and shared
/// library, C header, Rust wrapper, weights, manifest, and an example that builds.
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
    /// The prefix of all symbols and files, a C identifier [default: the model's file name].
    #[arg(long)]
    name: Option<String>,
    /// Whether the weights are in the object or in a file beside it [default: in the object below 1 MiB].
    #[arg(long, value_enum, value_name = "WHERE")]
    weights: Option<Weights>,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
    /// The target, such as aarch64-unknown-linux-gnu [default: this machine].
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

/// Compiles. Returns where the output is; empty if it was printed.
pub fn run(args: &Args, console: &Console) -> Result<PathBuf> {
    let name = name(args)?;
    let plan = plan(&args.emit, args.output.as_deref(), &name, args.debugging.stop_after.is_some())?;
    check_folder(&plan)?;
    let target = target(args.target.as_deref())?;
    let cpus = cpus(args, &target)?;
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
        write_native(program, args, &plan, &name, &target, &cpus, loaded.hash, &extra, console)?;
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

#[expect(clippy::too_many_arguments, reason = "the one place where everything comes together")]
fn write_native(
    program: &Program,
    args: &Args,
    plan: &Plan,
    name: &str,
    target: &Triple,
    cpus: &[Cpu],
    hash: u128,
    extra: &[(&'static str, Vec<u8>)],
    console: &Console,
) -> Result<()> {
    let kinds: BTreeSet<Kind> = plan.emits.iter().filter_map(|e| e.kind()).collect();
    let folder =
        if plan.stdout { Some(tempfile::tempdir().map_err(|e| Diagnostic::io("create", &std::env::temp_dir(), &e))?) } else { None };
    let out = match &folder {
        Some(folder) => folder.path().join("listing"),
        // Kinds that are not native have their own names; the only native one gets the same.
        None if plan.emits.len() > 1 && kinds.len() == 1 && !kinds.contains(&Kind::Bundle) => {
            let emit = plan.emits.iter().find(|e| e.kind().is_some()).expect("one kind");
            plan.file(*emit)
        }
        None => plan.out.clone(),
    };
    let extra: Vec<(&str, &[u8])> = extra.iter().map(|(e, data)| (*e, &data[..])).collect();
    let written = artifact::write(
        program,
        &artifact::Options {
            name,
            kinds: &kinds,
            out: &out,
            weights: match args.weights {
                None => WeightsMode::Auto,
                Some(Weights::Embedded) => WeightsMode::Embedded,
                Some(Weights::External) => WeightsMode::External,
            },
            target,
            cpus,
            options: &canonical_options(args, cpus),
            model_hash: hash,
            extra: &extra,
        },
    )?;
    if plan.stdout {
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

/// Whoever waits for a compilation shall not learn only at its end that there is no place for it.
fn check_folder(plan: &Plan) -> Result<()> {
    let folder = plan.out.parent().filter(|f| !f.as_os_str().is_empty() && !plan.stdout);
    match folder {
        Some(folder) if !folder.is_dir() => {
            let what = if folder.exists() { "is not a folder" } else { "does not exist" };
            Err(Diagnostic::failed(format!("cannot write `{}`: the folder `{}` {what}", plan.out.display(), folder.display())))
        }
        _ => Ok(()),
    }
}

fn name(args: &Args) -> Result<String> {
    let Some(name) = &args.name else {
        return Ok(c_identifier(&args.model.file_stem().unwrap_or_default().to_string_lossy()));
    };
    match c_identifier(name) {
        id if id == *name => Ok(id),
        id => Err(Diagnostic::usage(format!("--name {name}: this is not an identifier in C")).help(format!("use --name {id}"))),
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

fn target(triple: Option<&str>) -> Result<Triple> {
    let target = match triple {
        None => Triple::host(),
        Some(t) => {
            t.parse().map_err(|e| Diagnostic::usage(format!("--target {t}: {e}")).help("a target is like x86_64-unknown-linux-gnu"))?
        }
    };
    if Cpu::baseline(&target).is_none() {
        return Err(Diagnostic::unsupported(format!("there is no code generator for the target {target}"))
            .note("there are ones for x86_64 and aarch64"));
    }
    Ok(target)
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
