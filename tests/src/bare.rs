//! Objects on emulated x86-64 CPUs without an operating system, for CPU variants that this machine
//! lacks and for the choice among them.
//!
//! [`Image`] links compiled models with a freestanding C program (`tests/bare/models.c`), which runs them
//! on all variants that the CPU can run and compares with what the interpreter says; [`Image::run`]
//! boots it in Bochs on a named CPU model and reads what it says on the serial port. Weights, arena,
//! inputs and outputs end at pages that are not mapped, so an access behind an end is a fault.

use crate::native::{self, Tolerance};
use object::{Object, ObjectSymbol, SymbolKind};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use target_lexicon::Triple;
use tempfile::TempDir;
use tfc::emit::clif::target::Cpu;
use tfc::emit::module::weight_data;
use tfc::emit::object::{ObjectOptions, emit};
use tfc::schedule::schedule;
use tfc_ir::dim::Bindings;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;
use tfc_ir::verify::verify;
use tfc_passes::OptLevel;
use tfc_runtime::abi::Status;
use tfc_runtime::weights::write_header;

/// The state components that an operating system without AVX-512, AVX and XSAVE switches on.
pub const XCR0: [u32; 4] = [0xE7, 0x07, 0x03, 0];

/// Bytes that one buffer may have: `FENCE_BYTES` of `bare.h` without what lies before it.
const MOST_BYTES: usize = (2 << 21) - 4096;

/// Commands, and files of Debian's packages bochs, bochs-term, bochsbios, vgabios, isolinux and
/// syslinux-common.
const COMMANDS: [&str; 6] = ["gcc", "ld", "objcopy", "xorriso", "bochs", "script"];
const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
const VGA_BIOS: &str = "/usr/share/vgabios/vgabios.bin";
const LOADER: [&str; 5] = [
    "/usr/lib/ISOLINUX/isolinux.bin",
    "/usr/lib/syslinux/modules/bios/ldlinux.c32",
    "/usr/lib/syslinux/modules/bios/mboot.c32",
    "/usr/lib/syslinux/modules/bios/libcom32.c32",
    "/usr/lib/syslinux/modules/bios/libutil.c32",
];

/// Whether the emulator and what builds programs for it are there. Says loudly what is missing.
pub fn available() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |command: &str| std::env::split_paths(&path).any(|folder| folder.join(command).is_file());
    let commands = COMMANDS.into_iter().filter(|c| !found(c));
    let files = LOADER.into_iter().chain([BIOS, VGA_BIOS]).filter(|f| !Path::new(f).exists());
    let missing: Vec<&str> = commands.chain(files).collect();
    if !missing.is_empty() {
        crate::skip::skipped(format_args!("nothing is run on emulated CPUs, there is no {}", missing.join(", no ")));
    }
    missing.is_empty() && cfg!(target_arch = "x86_64")
}

/// A model with calls and what they must give.
pub struct Model {
    /// What a failure is reported with.
    pub name: String,
    graph: Graph,
    calls: Vec<Call>,
    tolerance: fn(Elem) -> Tolerance,
    cpus: Vec<Cpu>,
}

/// One call and what the interpreter says; an index out of range has no outputs.
struct Call {
    bindings: Bindings,
    inputs: Vec<Tensor>,
    outputs: Option<Vec<Tensor>>,
}

impl Model {
    /// A model that is called with each of `inputs`. Floats in outputs may be `tolerance` of the type that they are computed in
    /// apart ([`native::precision`]).
    pub fn new(name: &str, graph: Graph, inputs: Vec<(Bindings, Vec<Tensor>)>, tolerance: fn(Elem) -> Tolerance) -> Model {
        let call = |(bindings, inputs): (Bindings, Vec<Tensor>)| {
            let outputs = graph.evaluate(&inputs, &bindings).ok();
            Call { bindings, inputs, outputs }
        };
        let calls = inputs.into_iter().map(call).collect();
        Model { name: name.into(), graph, calls, tolerance, cpus: variants() }
    }

    /// What an output of a type may differ by at a level.
    fn tolerance(&self, level: OptLevel, elem: Elem) -> Tolerance {
        (self.tolerance)(native::precision(&self.graph, level, elem))
    }

    /// Runs all calls on this machine with a CPU variant that it has.
    ///
    /// # Errors
    /// The first difference.
    ///
    /// # Panics
    /// When compilation fails.
    pub fn run_here(&self, level: OptLevel, cpu: &str) -> Result<(), String> {
        let graph = native::optimize(&self.graph, level);
        let mut session = native::compile(&graph, Some(cpu));
        for call in &self.calls {
            let found = native::try_run(&mut session, &graph, &call.inputs);
            let same = match (&call.outputs, found) {
                (Some(wanted), Ok(found)) => native::compare(wanted, &found, |elem| self.tolerance(level, elem)),
                (None, Err(e)) if e.status() == Some(Status::IndexRange) => Ok(()),
                (None, Ok(_)) => Err("only the interpreter refuses".into()),
                (_, Err(e)) => Err(e.to_string()),
            };
            same.map_err(|e| format!("{} at {:?} on {cpu}: {e}", self.name, call.bindings))?;
        }
        Ok(())
    }

    /// The same with only some CPU variants.
    pub fn only(mut self, keep: impl FnMut(&Cpu) -> bool) -> Model {
        self.cpus.retain(keep);
        self
    }
}

/// What the models are compiled for.
fn target() -> Triple {
    "x86_64-unknown-linux-gnu".parse().expect("a triple")
}

/// The CPU variants of x86-64.
pub fn variants() -> Vec<Cpu> {
    Cpu::variants(&target())
}

/// A program for a machine without an operating system.
pub struct Image {
    folder: TempDir,
    elf: PathBuf,
    /// What each case is, for messages.
    cases: Vec<String>,
}

/// What a program said about one setting of XCR0.
#[derive(Default, Debug)]
pub struct Report {
    /// The setting.
    pub xcr0: u32,
    /// Status and variant of `NAME_init`, per model.
    pub init: Vec<(i32, String)>,
    /// Status and variant of `NAME_init_cpu` for each name, per model.
    pub init_cpu: Vec<BTreeMap<String, (i32, String)>>,
    /// What was not as expected: the case, the variant, and what.
    pub failures: Vec<String>,
    /// Number of calls that ran.
    pub ran: usize,
}

impl Image {
    /// Compiles the models at an optimization level and links them with the program, which runs all calls
    /// with each of the settings of XCR0.
    ///
    /// # Panics
    /// When something fails, or a buffer is too large.
    pub fn new(models: &[Model], level: OptLevel, settings: &[u32]) -> Image {
        let folder = tempfile::tempdir().expect("a folder to write to");
        let (mut objects, mut cases) = (vec![], vec![]);
        let mut source = Source::default();
        for (i, m) in models.iter().enumerate() {
            let graph = native::optimize(&m.graph, level);
            let verified = verify(&graph).unwrap_or_else(|e| panic!("{}: {}", m.name, e[0]));
            let program = schedule(&verified).unwrap_or_else(|e| panic!("{}: {e}", m.name));
            let name = format!("m{i}");
            let options = ObjectOptions {
                name: &name,
                target: &target(),
                cpus: &m.cpus,
                embed_weights: false,
                weights_file: "",
                options: &[],
                model_hash: 0,
            };
            let object = emit(&program, &options).unwrap_or_else(|e| panic!("{}: {e}", m.name));
            let file = folder.path().join(format!("{name}.o"));
            fs::write(&file, &object.bytes).expect("a folder to write to");
            objects.push(file);
            let weights = match object.weights.data_bytes {
                0 => vec![],
                _ => [&write_header(&object.weights)[..], &weight_data(&program)].concat(),
            };
            source.model(i, &weights);
            for call in &m.calls {
                let dims: Vec<i64> = program.dims.iter().map(|s| call.bindings[s]).collect();
                source.case(i, &dims, call, |elem| m.tolerance(level, elem));
                cases.push(format!("{} at {:?}", m.name, call.bindings));
            }
        }
        let write = |name: &str, contents: &[u8]| fs::write(folder.path().join(name), contents).expect("a folder to write to");
        write("cases.h", source.finish(settings).as_bytes());
        write("data.bin", &source.data);
        write(
            "data.S",
            b".section .rodata\n.balign 64\n.globl data\ndata: .incbin \"data.bin\"\n.section .note.GNU-stack, \"\", @progbits\n",
        );
        let bare = Path::new(env!("CARGO_MANIFEST_DIR")).join("bare");
        let flags = "-O2 -std=gnu11 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fno-pic -mno-red-zone -c";
        for (file, out) in [(bare.join("boot.S"), "boot.o"), (bare.join("models.c"), "models.o"), ("data.S".into(), "data.o")] {
            tool(folder.path(), Command::new("gcc").args(flags.split(' ')).arg("-I.").arg("-I").arg(&bare).arg(file).args(["-o", out]));
        }
        let mut link = Command::new("ld");
        link.args(["-n", "--no-warn-rwx-segments", "-o", "image", "-T"]).arg(bare.join("link.ld"));
        tool(folder.path(), link.args(["boot.o", "models.o", "data.o"]).args(objects));
        let iso = folder.path().join("iso");
        fs::create_dir(&iso).expect("a folder to write to");
        // Loaders take 32-bit files only, whatever the code is.
        tool(folder.path(), Command::new("objcopy").args(["-O", "elf32-i386", "image", "iso/image"]));
        for file in LOADER.map(Path::new) {
            fs::copy(file, iso.join(file.file_name().expect("a name"))).expect("a loader");
        }
        write("iso/isolinux.cfg", b"default image\nprompt 0\ntimeout 1\nlabel image\n kernel mboot.c32\n append image\n");
        let disk = "-as mkisofs -quiet -o boot.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table iso";
        tool(folder.path(), Command::new("xorriso").args(disk.split(' ')));
        Image { elf: folder.path().join("image"), folder, cases }
    }

    /// Boots on a CPU model of Bochs. One report per setting of XCR0.
    ///
    /// # Errors
    /// A fault, a machine that does not end in time, or an emulator that does not start: what is known.
    pub fn run(&self, cpu: &str, limit: Duration) -> Result<Vec<Report>, String> {
        let place = tempfile::tempdir_in(self.folder.path()).map_err(|e| e.to_string())?;
        let file = |name: &str| place.path().join(name);
        let configuration = format!(
            "cpu: model={cpu}, count=1, ips=4000000, reset_on_triple_fault=0\n\
             memory: guest=512, host=512\n\
             romimage: file={BIOS}\n\
             vgaromimage: file={VGA_BIOS}\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=cdrom, path={}, status=inserted\n\
             boot: cdrom\n\
             com1: enabled=1, mode=file, dev={}\n\
             display_library: term\n\
             log: {}\n\
             panic: action=fatal\n",
            self.folder.path().join("boot.iso").display(),
            file("serial").display(),
            file("log").display()
        );
        fs::write(file("bochsrc"), configuration).map_err(|e| e.to_string())?;
        fs::write(file("commands"), "continue\n").map_err(|e| e.to_string())?;
        // The emulator wants a terminal.
        let mut child = Command::new("script")
            .args(["-qc", "exec bochs -q -f bochsrc -rc commands", "/dev/null"])
            .current_dir(place.path())
            .env("TERM", "linux")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("script: {e}"))?;
        let begin = Instant::now();
        let ended = loop {
            if child.try_wait().map_err(|e| e.to_string())?.is_some() {
                break true;
            }
            if begin.elapsed() > limit {
                // The emulator loses its terminal with this, and ends.
                child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?;
                break false;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        let text = |name: &str| fs::read(file(name)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        fs::File::open(file("serial")).and_then(|mut f| f.read_to_string(&mut said)).map_err(|e| {
            let log = text("log");
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            format!("{cpu}: the emulator said nothing ({e}): {}", last.join(" | "))
        })?;
        self.read(&said).map_err(|e| {
            let how = if ended { "ended" } else { "did not end in time" };
            let log = text("log");
            let panics: Vec<&str> = log.lines().filter(|l| l.contains("PANIC") && !l.contains("shutdown requested")).collect();
            format!("{cpu}: {e}; the machine {how}{}", panics.iter().map(|p| format!(": {p}")).collect::<String>())
        })
    }

    /// The reports in what the program said.
    fn read(&self, said: &str) -> Result<Vec<Report>, String> {
        let mut reports: Vec<Report> = vec![];
        for line in said.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let odd = || format!("the program said `{line}`");
            let number = |s: &str| s.parse::<usize>().map_err(|_| odd());
            let status = |s: &str| s.parse::<i32>().map_err(|_| odd());
            if let ["xcr0", mask] = words[..] {
                reports.push(Report { xcr0: u32::from_str_radix(mask, 16).map_err(|_| odd())?, ..Report::default() });
                continue;
            }
            if words == ["end"] {
                return Ok(reports);
            }
            if let ["fault", ..] = words[..] {
                return Err(self.fault(&words));
            }
            let Some(report) = reports.last_mut() else { return Err(odd()) };
            match words[..] {
                ["init", _, s, variant] => {
                    report.init.push((status(s)?, variant.into()));
                    report.init_cpu.push(BTreeMap::new());
                }
                ["cpu", _, wanted, s, variant] => {
                    let model = report.init_cpu.last_mut().ok_or_else(odd)?;
                    model.insert(wanted.into(), (status(s)?, variant.into()));
                }
                ["bad", case, variant, ..] => {
                    let case = self.cases.get(number(case)?).ok_or_else(odd)?;
                    report.failures.push(format!("{case} on {variant}, XCR0 {:#x}: {}", report.xcr0, words[3..].join(" ")));
                }
                ["ran", n] => report.ran = number(n)?,
                _ => return Err(odd()),
            }
        }
        Err(format!("the program stopped after `{}`", said.lines().last().unwrap_or_default()))
    }

    /// A fault in words: where, and in which case.
    fn fault(&self, words: &[&str]) -> String {
        let at = words.get(3).and_then(|a| u64::from_str_radix(a, 16).ok()).unwrap_or_default();
        let mut out = words.join(" ");
        let bytes = fs::read(&self.elf).unwrap_or_default();
        if let Ok(elf) = object::File::parse(&*bytes) {
            let functions = elf.symbols().filter(|s| s.kind() == SymbolKind::Text && s.address() <= at);
            if let Some(f) = functions.max_by_key(ObjectSymbol::address) {
                let _ = write!(out, ", {} + {:#x}", f.name().unwrap_or_default(), at - f.address());
            }
        }
        if let (Some(Ok(n)), true) = (words.get(7).map(|n| n.parse::<usize>()), words.len() == 9)
            && let Some(case) = self.cases.get(n)
        {
            let _ = write!(out, ", {case}");
        }
        out
    }
}

/// The generated part of the program.
#[derive(Default)]
struct Source {
    declarations: String,
    models: String,
    cases: String,
    models_count: usize,
    cases_count: usize,
    data: Vec<u8>,
}

impl Source {
    /// Adds bytes to the data and says where they begin.
    fn put(&mut self, bytes: &[u8]) -> usize {
        assert!(bytes.len() <= MOST_BYTES, "{} bytes are too many for one buffer", bytes.len());
        self.data.resize(self.data.len().next_multiple_of(64), 0);
        self.data.extend_from_slice(bytes);
        self.data.len() - bytes.len()
    }

    fn model(&mut self, i: usize, weights: &[u8]) {
        let at = self.put(weights);
        self.models_count += 1;
        let _ = writeln!(self.declarations, "extern const entry m{i}_entry;");
        let _ = writeln!(self.models, "    {{&m{i}_entry, {at}, {}}},", weights.len());
    }

    fn case(&mut self, model: usize, dims: &[i64], call: &Call, tolerance: impl Fn(Elem) -> Tolerance) {
        let n = self.cases_count;
        self.cases_count += 1;
        let list = |items: Vec<String>| if items.is_empty() { "0".into() } else { items.join(", ") };
        let dims = list(dims.iter().map(|d| format!("{d}LL")).collect());
        let _ = writeln!(self.declarations, "static const int64_t dims{n}[] = {{{dims}}};");
        let outputs = call.outputs.as_deref().unwrap_or_default();
        for (what, tensors) in [("inputs", &call.inputs[..]), ("outputs", outputs)] {
            let tensors: Vec<String> = tensors.iter().map(|t| self.tensor(t, tolerance(t.elem()))).collect();
            let tensors = if tensors.is_empty() { "{0}".into() } else { tensors.join(", ") };
            let _ = writeln!(self.declarations, "static const tensor {what}{n}[] = {{{tensors}}};");
        }
        let status = if call.outputs.is_some() { Status::Ok } else { Status::IndexRange }.code();
        let _ = writeln!(self.cases, "    {{{model}, {status}, dims{n}, inputs{n}, outputs{n}}},");
    }

    fn tensor(&mut self, t: &Tensor, tolerance: Tolerance) -> String {
        let kind = match t.elem() {
            Elem::F32 => "FLOAT",
            Elem::F64 => "DOUBLE",
            Elem::F16 => "HALF",
            Elem::Bf16 => "BFLOAT",
            _ => "EXACT",
        };
        let at = self.put(t.bytes());
        format!("{{{at}, {}, {kind}, {:e}, {:e}}}", t.bytes().len(), tolerance.relative, tolerance.absolute)
    }

    fn finish(&self, settings: &[u32]) -> String {
        let settings: Vec<String> = settings.iter().map(|s| format!("{s:#x}")).collect();
        format!(
            "{}#define MODELS {}\n#define CASES {}\nstatic const model models[] = {{\n{}}};\nstatic const test_case cases[] = {{\n{}}};\n\
             static const uint32_t settings[] = {{{}}};\n",
            self.declarations,
            self.models_count,
            self.cases_count,
            self.models,
            self.cases,
            settings.join(", ")
        )
    }
}

fn tool(folder: &Path, command: &mut Command) {
    let output = command.current_dir(folder).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
}
