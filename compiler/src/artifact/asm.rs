//! Listings for people: machine code (`--emit=asm`) and Cranelift IR (`--emit=clif`), each function headed
//! by what it computes.
//!
//! For x86-64 the listing is a disassembly of the object itself, so it shows what is shipped. For other
//! targets it is Cranelift's text of the instructions.

use super::{ArtifactError, Options};
use crate::emit::clif;
use crate::emit::clif::target::Cpu;
use crate::emit::module::{self, kernel_name};
use crate::kernel::{KernelId, Program};
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::isa::{OwnedTargetIsa, TargetIsa};
use cranelift_codegen::{Context, ir};
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module, ModuleDeclarations, ModuleError, ModuleReloc, ModuleResult};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, Mnemonic, OpKind, SymbolResolver, SymbolResult};
use object::{Object, ObjectSection, ObjectSymbol, RelocationKind, RelocationTarget, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use target_lexicon::Architecture;
use tfc_runtime::weights::Header;

/// Which text of Cranelift's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The IR, before optimization.
    Clif,
    /// The instructions.
    Instructions,
}

/// The listing of an object that was emitted of `program` with `options`.
///
/// # Errors
/// When the object cannot be read back or code generation fails: bugs of ours.
pub fn listing(object: &[u8], program: &Program, options: &Options) -> Result<String, ArtifactError> {
    match options.target.architecture {
        Architecture::X86_64 => disassembly(object, program, options),
        _ => cranelift(program, options, Form::Instructions),
    }
}

/// The Cranelift IR of all functions.
///
/// # Errors
/// When code generation fails: a bug of ours.
pub fn clif(program: &Program, options: &Options) -> Result<String, ArtifactError> {
    cranelift(program, options, Form::Clif)
}

/// What a kernel computes, a comment line for each step that launches it.
fn origin(program: &Program, id: KernelId, variants: &str, mark: &str) -> String {
    let kernel = &program.kernels[id];
    let mut out = format!("{mark} {}, {variants}: {} buffers, {} integers\n", kernel.body.kind(), kernel.buffers.len(), kernel.ints);
    for step in program.steps.iter().filter(|s| s.kernel == id) {
        let nodes: Vec<&str> = step.loc.names().collect();
        let nodes = if nodes.is_empty() { String::new() } else { format!(" of {}", nodes.join(", ")) };
        let line: String = format!("{}{nodes}", step.label).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        out += &format!("{mark}   {line}\n");
    }
    out
}

/// Which kernel a symbol is, and the CPU variants that use it.
type Kernels = BTreeMap<String, (KernelId, Vec<&'static str>)>;

/// The symbols of the kernels, read from the object's table of them: variants share what is the same.
fn kernel_symbols(file: &object::File, program: &Program, options: &Options) -> Result<Kernels, object::Error> {
    let mut out = Kernels::new();
    let name = format!("{}_kernels", options.name);
    let Some(table) = file.symbols().find(|s| s.name() == Ok(&name)) else { return Ok(out) };
    let Some(section) = table.section_index() else { return Ok(out) };
    let relocations: BTreeMap<u64, object::Relocation> = file.section_by_index(section)?.relocations().collect();
    let begin = table.address() - file.section_by_index(section)?.address();
    let rows = options.cpus.iter().flat_map(|cpu| program.kernels.keys().map(move |id| (id, cpu.name)));
    for (i, (id, cpu)) in rows.enumerate() {
        if let Some(RelocationTarget::Symbol(s)) = relocations.get(&(begin + 8 * i as u64)).map(object::Relocation::target) {
            let name = file.symbol_by_index(s)?.name()?.to_string();
            out.entry(name).or_insert((id, vec![])).1.push(cpu);
        }
    }
    Ok(out)
}

fn disassembly(bytes: &[u8], program: &Program, options: &Options) -> Result<String, ArtifactError> {
    let broken = |e: object::Error| ArtifactError::Internal(format!("the object cannot be read back: {e}"));
    let file = object::File::parse(bytes).map_err(broken)?;
    let kernels = kernel_symbols(&file, program, options).map_err(broken)?;
    let mut out = format!("# {} for {}, disassembled\n    .text\n", options.name, options.target);
    for section in file.sections() {
        let data = section.data().map_err(broken)?;
        let mut relocations = BTreeMap::new();
        for (at, r) in section.relocations() {
            if let RelocationTarget::Symbol(s) = r.target() {
                let symbol = file.symbol_by_index(s).map_err(broken)?.name().map_err(broken)?;
                let suffix = match r.kind() {
                    RelocationKind::GotRelative => "@GOTPCREL",
                    RelocationKind::PltRelative => "@PLT",
                    _ => "",
                };
                relocations.insert(at, format!("{symbol}{suffix}"));
            }
        }
        let mut functions: Vec<_> =
            file.symbols().filter(|s| s.section_index() == Some(section.index()) && s.kind() == SymbolKind::Text).collect();
        functions.sort_by_key(|s| s.address());
        for (number, f) in functions.into_iter().enumerate() {
            let name = f.name().map_err(broken)?;
            let (begin, size) = (f.address() - section.address(), f.size());
            let code = data.get(begin as usize..(begin + size) as usize);
            let code = code.ok_or_else(|| ArtifactError::Internal(format!("`{name}` is not within its section")))?;
            out.push('\n');
            if let Some((id, variants)) = kernels.get(name) {
                out += &origin(program, *id, &variants.join(", "), "#");
            }
            if f.is_global() {
                out += &format!("    .globl {name}\n");
            }
            out += &format!("{name}:\n");
            let relocations = relocations.range(begin..begin + size).map(|(&at, name)| (at - begin, name.clone())).collect();
            function(&mut out, number, code, &relocations);
        }
    }
    Ok(out)
}

/// Names for the places that the instructions of a function refer to.
#[derive(Clone, Default)]
struct Names {
    /// Tells the labels of one function from those of others.
    function: usize,
    /// Places in the function.
    inside: BTreeSet<u64>,
    /// What relocations name, by the begin of the instruction.
    outside: BTreeMap<u64, String>,
}

impl Names {
    fn label(&self, at: u64) -> String {
        format!(".L{}_{at:x}", self.function)
    }
}

impl SymbolResolver for Names {
    fn symbol(&mut self, i: &Instruction, _: u32, operand: Option<u32>, address: u64, _: u32) -> Option<SymbolResult<'_>> {
        // Immediate operands are numbers, whatever they are equal to.
        match i.try_op_kind(operand?).ok()? {
            OpKind::NearBranch64 => {}
            OpKind::Memory if i.is_ip_rel_memory_operand() => {}
            _ => return None,
        }
        let name = self.outside.get(&i.ip()).cloned().or_else(|| self.inside.contains(&address).then(|| self.label(address)))?;
        Some(SymbolResult::with_string(address, name))
    }
}

/// Disassembles a function. What is reached from its begin is instructions; the rest is constants.
fn function(out: &mut String, number: usize, code: &[u8], relocations: &BTreeMap<u64, String>) {
    let mut names = Names { function: number, ..Names::default() };
    let mut instructions: BTreeMap<u64, Instruction> = BTreeMap::new();
    let mut begins = vec![0u64];
    while let Some(begin) = begins.pop() {
        let Some(rest) = code.get(begin as usize..) else { continue };
        let mut decoder = Decoder::with_ip(64, rest, begin, DecoderOptions::NONE);
        while decoder.can_decode() && !instructions.contains_key(&decoder.ip()) {
            let i = decoder.decode();
            if let Some((_, name)) = relocations.range(i.ip()..i.next_ip()).next() {
                names.outside.insert(i.ip(), name.clone());
            } else if i.op0_kind() == OpKind::NearBranch64 {
                names.inside.insert(i.near_branch_target());
                begins.push(i.near_branch_target());
            } else if i.is_ip_rel_memory_operand() {
                names.inside.insert(i.ip_rel_memory_address());
            }
            instructions.insert(i.ip(), i);
            if matches!(i.mnemonic(), Mnemonic::Ret | Mnemonic::Jmp | Mnemonic::Ud2 | Mnemonic::INVALID) {
                break;
            }
        }
    }
    let mut formatter = GasFormatter::with_options(Some(Box::new(names.clone())), None);
    formatter.options_mut().set_rip_relative_addresses(true);
    formatter.options_mut().set_space_after_operand_separator(true);
    let mut line = String::new();
    let mut at = 0;
    while at < code.len() as u64 {
        if names.inside.contains(&at) {
            *out += &format!("{}:\n", names.label(at));
        }
        if let Some(i) = instructions.get(&at) {
            line.clear();
            formatter.format(i, &mut line);
            *out += &format!("    {line}\n");
            at = i.next_ip();
            continue;
        }
        let label = names.inside.range(at + 1..).next().copied().unwrap_or(u64::MAX);
        let instruction = instructions.range(at..).next().map_or(u64::MAX, |(&ip, _)| ip);
        let end = label.min(instruction).min(code.len() as u64);
        data(out, &code[at as usize..end as usize]);
        at = end;
    }
}

/// Constants, or the zeros between functions.
fn data(out: &mut String, bytes: &[u8]) {
    if bytes.iter().all(|&b| b == 0) {
        *out += &format!("    .zero {}\n", bytes.len());
        return;
    }
    for chunk in bytes.chunks(16) {
        let bytes: Vec<String> = chunk.iter().map(|b| format!("0x{b:02x}")).collect();
        *out += &format!("    .byte {}\n", bytes.join(", "));
    }
}

fn cranelift(program: &Program, options: &Options, form: Form) -> Result<String, ArtifactError> {
    let mark = if form == Form::Clif { ";" } else { "//" };
    let mut out = format!("{mark} {} for {}\n", options.name, options.target);
    for cpus in options.cpus.chunk_by(Cpu::same_cranelift) {
        let (cpu, variants) = (&cpus[0], cpus.iter().map(|c| c.name).collect::<Vec<_>>().join(", "));
        for (id, kernel) in &program.kernels {
            let name = format!("{}_{}_{}", options.name, kernel_name(program, id), cpu.name);
            out += &format!("\n{}", origin(program, id, &variants, mark));
            // The helper functions of a kernel follow it; it calls them by these names.
            for (n, function) in clif::kernel_functions(kernel, cpu).into_iter().enumerate() {
                let text = text(Context::for_function(function), &*cpu.isa, form);
                let text = text.map_err(|e| ArtifactError::Internal(format!("{name}: {e}")))?;
                let name = if n == 0 { name.clone() } else { format!("{name}_u0_{n}") };
                out += &titled(&name, &text, form);
            }
        }
    }
    let Some(cpu) = options.cpus.first() else { return Ok(out) };
    let mut recorder = Recorder { isa: cpu.isa.clone(), declarations: ModuleDeclarations::default(), form, functions: vec![] };
    let weights = Header { data_bytes: program.weight_bytes(), hash: 0, model: 0 };
    let module_options = module::Options {
        name: options.name,
        cpus: options.cpus,
        embed_weights: false,
        build_info: "",
        manifest: &[],
        id: 0,
        candidate: 0,
    };
    module::emit(&mut recorder, program, weights, &module_options)?;
    for (name, text) in recorder.functions {
        out += &format!("\n{}", titled(&name, &text, form));
    }
    Ok(out)
}

fn titled(name: &str, text: &str, form: Form) -> String {
    match form {
        Form::Clif => format!("; {name}\n{text}"),
        Form::Instructions => format!("{name}:\n{text}"),
    }
}

fn text(mut context: Context, isa: &dyn TargetIsa, form: Form) -> Result<String, cranelift_codegen::CodegenError> {
    if form == Form::Clif {
        return Ok(context.func.display().to_string());
    }
    context.set_disasm(true);
    let code = context.compile(isa, &mut ControlPlane::default()).map_err(|e| e.inner)?;
    Ok(code.vcode.clone().unwrap_or_default())
}

/// A module that keeps the texts of functions and no code.
struct Recorder {
    isa: OwnedTargetIsa,
    declarations: ModuleDeclarations,
    form: Form,
    functions: Vec<(String, String)>,
}

impl Recorder {
    /// A comment line for each other symbol that a function names.
    fn legend(&self, f: &ir::Function, mark: &str) -> String {
        let mut out = String::new();
        for name in f.params.user_named_funcs().values() {
            let symbol = match name.namespace {
                0 => self.declarations.get_function_decl(FuncId::from_u32(name.index)).name.clone(),
                _ => self.declarations.get_data_decl(DataId::from_u32(name.index)).name.clone(),
            };
            out += &format!("{mark} u{}:{} is {}\n", name.namespace, name.index, symbol.unwrap_or_default());
        }
        out
    }
}

impl Module for Recorder {
    fn isa(&self) -> &dyn TargetIsa {
        &*self.isa
    }

    fn declarations(&self) -> &ModuleDeclarations {
        &self.declarations
    }

    fn declare_function(&mut self, name: &str, linkage: Linkage, signature: &ir::Signature) -> ModuleResult<FuncId> {
        Ok(self.declarations.declare_function(name, linkage, signature)?.0)
    }

    fn declare_anonymous_function(&mut self, signature: &ir::Signature) -> ModuleResult<FuncId> {
        self.declarations.declare_anonymous_function(signature)
    }

    fn declare_data(&mut self, name: &str, linkage: Linkage, writable: bool, tls: bool) -> ModuleResult<DataId> {
        Ok(self.declarations.declare_data(name, linkage, writable, tls)?.0)
    }

    fn declare_anonymous_data(&mut self, writable: bool, tls: bool) -> ModuleResult<DataId> {
        self.declarations.declare_anonymous_data(writable, tls)
    }

    fn define_function_with_control_plane(&mut self, func: FuncId, context: &mut Context, _: &mut ControlPlane) -> ModuleResult<()> {
        let name = self.declarations.get_function_decl(func).linkage_name(func).into_owned();
        let mark = if self.form == Form::Clif { ";" } else { "//" };
        let legend = self.legend(&context.func, mark);
        let body = text(Context::for_function(context.func.clone()), &*self.isa, self.form).map_err(ModuleError::Compilation)?;
        self.functions.push((name, format!("{legend}{body}")));
        Ok(())
    }

    fn define_function_bytes(&mut self, _: FuncId, _: u64, _: &[u8], _: &[ModuleReloc]) -> ModuleResult<()> {
        Ok(())
    }

    fn define_data(&mut self, _: DataId, _: &DataDescription) -> ModuleResult<()> {
        Ok(())
    }
}
