//! A program as the functions and data of a module: the same code for objects and for the JIT.
//!
//! Kernels are compiled once per CPU variant, each with the variant's own instruction set, and placed
//! into the one module as bytes; variants share the code that is the same. All symbols begin with the model's name; only the functions of the C
//! ABI and the entry are exported.

use super::candidates::{Candidate, candidates};
use super::clif::code::{Code, frame_bytes};
use super::clif::target::Cpu;
use super::cpuid;
use super::entry;
use super::layout;
use crate::kernel::{KernelId, Program};
use cranelift_codegen::Context;
use cranelift_codegen::ir::{self, InstBuilder, Signature, Value, types};
use cranelift_entity::{EntityRef, SecondaryMap};
use cranelift_frontend::FunctionBuilder;
use cranelift_module::{DataDescription, DataId, FuncId, Linkage, Module, ModuleError};
use iced_x86::IcedError;
use std::borrow::Cow;
use tfc_runtime::abi::{self, entry_offset};
use tfc_runtime::weights::Header;
use xxhash_rust::xxh3::Xxh3;

/// What goes into a module besides the program.
pub struct Options<'a> {
    /// Prefix of all symbols, a C identifier.
    pub name: &'a str,
    /// CPU variants from the plainest to the best.
    pub cpus: &'a [Cpu],
    /// Whether the weights become data of the module.
    pub embed_weights: bool,
    /// The line that `NAME_build_info` returns.
    pub build_info: &'a str,
    /// The encoded manifest.
    pub manifest: &'a [u8],
    /// A number that tells this compilation from others: contexts carry it.
    pub id: u64,
    /// Which of its [candidates] each kernel is compiled by, 0 being the compiler's choice; the last one of
    /// kernels that have fewer.
    pub candidate: usize,
}

/// The module refused something: a bug of ours.
#[derive(Debug, thiserror::Error)]
#[error("code generation failed for {what}: {source}")]
pub struct EmitError {
    /// Function or data at fault.
    pub what: String,
    /// What the code generator said.
    pub source: Box<ModuleError>,
}

/// Code sizes, for the manifest and reports.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    /// Bytes of each kernel per CPU variant; 0 where it shares the code of an earlier variant.
    pub kernels: Vec<Vec<u64>>,
    /// Bytes of the other functions.
    pub glue: u64,
    /// Bytes of tables and strings.
    pub data: u64,
    /// The most bytes of the stack that a call of `NAME_run` takes, of whichever variant.
    pub stack: u64,
}

/// A module under construction.
pub struct Emitter<'a> {
    /// Where everything is defined.
    pub module: &'a mut dyn Module,
    /// What is emitted.
    pub program: &'a Program,
    /// CPU variants.
    pub cpus: &'a [Cpu],
    /// Size and hash of the weights.
    pub weights: Header,
    /// The first word of contexts.
    pub context_magic: u64,
    /// The text of `NAME_build_info`.
    pub build_info: String,
    name: &'a str,
    sizes: Sizes,
    /// Bytes of the stack that each function takes that is not a kernel.
    frames: SecondaryMap<FuncId, u64>,
    /// The most that a kernel takes.
    kernel_stack: u64,
}

/// The exported functions, declared.
pub struct Symbols {
    /// `NAME_init`.
    pub init: FuncId,
    /// `NAME_init_cpu`.
    pub init_cpu: FuncId,
    /// `NAME_cpu_variant`.
    pub cpu_variant: FuncId,
    /// `NAME_arena_bytes`.
    pub arena_bytes: FuncId,
    /// `NAME_output_bytes`.
    pub output_bytes: FuncId,
    /// `NAME_run`.
    pub run: FuncId,
    /// `NAME_run_parallel`.
    pub run_parallel: FuncId,
    /// `NAME_status_string`.
    pub status_string: FuncId,
    /// `NAME_build_info`.
    pub build_info: FuncId,
    /// `NAME_entry`.
    pub entry: DataId,
    /// Addresses of the kernels, a row per CPU variant.
    pub kernel_table: DataId,
    /// The embedded weights.
    pub weights: Option<DataId>,
}

/// The name of a kernel in listings and, behind the model's name, of its symbols.
pub fn kernel_name(program: &Program, id: KernelId) -> String {
    let label = program.steps.iter().find(|s| s.kernel == id).map_or("", |s| s.label.as_str());
    let mut words: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(40).collect();
    if words.is_empty() {
        words = program.kernels[id].body.kind().into();
    }
    format!("k{}_{words}", id.index())
}

/// Size and hash of the packed weights of a program; the model is not told.
pub fn weights_header(program: &Program) -> Header {
    let mut hash = Xxh3::new();
    let mut at = 0;
    for w in &program.weights {
        hash.update(&vec![0; (w.offset - at) as usize]);
        hash.update(&w.data);
        at = w.offset + w.data.len() as u64;
    }
    Header { data_bytes: at, hash: hash.digest128(), model: 0 }
}

/// The packed weights of a program as one piece.
pub fn weight_data(program: &Program) -> Vec<u8> {
    let mut data = Vec::with_capacity(program.weight_bytes() as usize);
    for w in &program.weights {
        data.resize(w.offset as usize, 0);
        data.extend_from_slice(&w.data);
    }
    data
}

/// Emits a program. `weights` are the size and hash of its packed weights.
///
/// # Errors
/// When the code generator refuses something: a bug of ours.
pub fn emit(module: &mut dyn Module, program: &Program, weights: Header, options: &Options) -> Result<(Symbols, Sizes), EmitError> {
    let mut e = Emitter {
        module,
        program,
        cpus: options.cpus,
        weights,
        context_magic: abi::Context::magic_for(options.id),
        build_info: options.build_info.into(),
        name: options.name,
        sizes: Sizes::default(),
        frames: SecondaryMap::new(),
        kernel_stack: 0,
    };
    let failed = |what: &str| {
        let what = what.to_string();
        move |source: ModuleError| EmitError { what, source: Box::new(source) }
    };
    let symbols = declare(&mut e, options.embed_weights).map_err(failed("declarations"))?;
    kernels(&mut e, &symbols, options.candidate)?;
    entry::define(&mut e, &symbols).map_err(failed("the exported functions"))?;
    if let Some(id) = symbols.weights {
        let mut data = DataDescription::new();
        data.define(weight_data(program).into_boxed_slice());
        data.set_align(4096);
        e.module.define_data(id, &data).map_err(failed("the weights"))?;
    }
    entry_data(&mut e, &symbols, options).map_err(failed("the entry"))?;
    Ok((symbols, e.sizes))
}

fn declare(e: &mut Emitter, embed: bool) -> Result<Symbols, ModuleError> {
    use types::{I32, I64};
    let export = |e: &mut Emitter, what: &str, params: &[types::Type], result: types::Type| {
        let sig = entry::signature(e, params, Some(result));
        let name = format!("{}_{what}", e.name);
        e.module.declare_function(&name, Linkage::Export, &sig)
    };
    let has_weights = e.weights.data_bytes > 0;
    Ok(Symbols {
        init: export(e, "init", &[I64, I64, I64], I32)?,
        init_cpu: export(e, "init_cpu", &[I64, I64, I64, I64], I32)?,
        cpu_variant: export(e, "cpu_variant", &[I64], I64)?,
        arena_bytes: export(e, "arena_bytes", &[I64], I64)?,
        output_bytes: export(e, "output_bytes", &[I64, I64], I32)?,
        run: export(e, "run", &[I64; 5], I32)?,
        run_parallel: export(e, "run_parallel", &[I64; 7], I32)?,
        status_string: export(e, "status_string", &[I32], I64)?,
        build_info: export(e, "build_info", &[], I64)?,
        entry: e.module.declare_data(&format!("{}_entry", e.name), Linkage::Export, false, false)?,
        kernel_table: e.module.declare_data(&format!("{}_kernels", e.name), Linkage::Local, false, false)?,
        weights: match embed && has_weights {
            true => Some(e.module.declare_data(&format!("{}_weights", e.name), Linkage::Local, false, false)?),
            false => None,
        },
    })
}

/// The code of a kernel on some of the variants.
struct Shared {
    code: Code,
    func: FuncId,
    /// How it was compiled.
    way: Candidate,
    /// The first of the variants.
    cpu: usize,
}

/// Compiles every kernel for every variant. Where the code is the same, byte by byte, it exists once,
/// under the name of the first variant that has it.
fn kernels(e: &mut Emitter, symbols: &Symbols, candidate: usize) -> Result<(), EmitError> {
    let sig = entry::signature(e, &[types::I64; 3], None);
    let mut table = DataDescription::new();
    table.define(vec![0; e.cpus.len() * e.program.kernels.len() * 8].into_boxed_slice());
    table.set_align(8);
    e.sizes.kernels = vec![vec![]; e.cpus.len()];
    // Only the compiler's choice differs between variants by more than the code.
    let kernels: Vec<_> =
        e.cpus.iter().map(|cpu| if candidate == 0 { layout::kernels(e.program, cpu) } else { Cow::Borrowed(&e.program.kernels) }).collect();
    for id in e.program.kernels.keys() {
        let mut shared: Vec<Shared> = vec![];
        for (i, cpu) in e.cpus.iter().enumerate() {
            let kernel = &kernels[i][id];
            let name = format!("{}_{}_{}", e.name, kernel_name(e.program, id), cpu.name);
            let wrap = |source: ModuleError| EmitError { what: name.clone(), source: Box::new(source) };
            let ways = candidates(kernel, cpu);
            let way = ways[candidate.min(ways.len() - 1)];
            let known = shared.iter().find(|s| way.same_code(cpu, &s.way, &e.cpus[s.cpu]));
            let (func, bytes) = if let Some(s) = known {
                (s.func, 0)
            } else {
                let code = way.compile(kernel, cpu).map_err(|err| wrap(ModuleError::Compilation(err)))?;
                match shared.iter().find(|s| s.code == code) {
                    Some(s) => (s.func, 0),
                    None => {
                        let func = e.module.declare_function(&name, Linkage::Local, &sig).map_err(wrap)?;
                        e.module.define_function_bytes(func, code.align, &code.bytes, &[]).map_err(wrap)?;
                        let bytes = code.bytes.len() as u64;
                        e.kernel_stack = e.kernel_stack.max(code.stack);
                        shared.push(Shared { code, func, way, cpu: i });
                        (func, bytes)
                    }
                }
            };
            e.sizes.kernels[i].push(bytes);
            let func = e.module.declare_func_in_data(func, &mut table);
            table.write_function_addr(((i * e.program.kernels.len() + id.index()) * 8) as u32, func);
        }
    }
    e.sizes.data += (e.cpus.len() * e.program.kernels.len() * 8) as u64;
    e.module
        .define_data(symbols.kernel_table, &table)
        .map_err(|source| EmitError { what: "the kernel table".into(), source: Box::new(source) })
}

/// The functions that ask what can be used, where a variant depends on the answer.
#[derive(Clone, Copy, Default)]
pub(super) struct Asking {
    /// The features of the CPU.
    pub features: Option<FuncId>,
    /// The permission to use matrix tiles.
    pub permission: Option<FuncId>,
}

/// Defines the functions that ask what can be used.
pub(super) fn asking(e: &mut Emitter) -> Result<Asking, ModuleError> {
    let mut define =
        |what: &str, wanted: fn(&Cpu) -> bool, code: fn() -> Result<Vec<u8>, IcedError>| -> Result<Option<FuncId>, ModuleError> {
            if !e.cpus.iter().any(wanted) {
                return Ok(None);
            }
            let sig = entry::signature(e, &[], Some(types::I64));
            let id = e.local(what, &sig)?;
            let code = code().expect("the instructions are valid");
            e.module.define_function_bytes(id, 16, &code, &[])?;
            e.sizes.glue += code.len() as u64;
            Ok(Some(id))
        };
    Ok(Asking {
        features: define("features", |c| cpuid::required(c) != 0, cpuid::x86_features)?,
        permission: define("permission", Cpu::matrix_tiles, cpuid::x86_permission)?,
    })
}

fn entry_data(e: &mut Emitter, s: &Symbols, options: &Options) -> Result<(), ModuleError> {
    let manifest = e.data("manifest", options.manifest, 8)?;
    let mut bytes = vec![0u8; entry_offset::END];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(entry_offset::MAGIC, &abi::ENTRY_MAGIC.to_le_bytes());
    let words = [
        (entry_offset::VERSION, abi::ENTRY_VERSION),
        (entry_offset::BYTES, entry_offset::END as u32),
        (entry_offset::ABI_VERSION, abi::ABI_VERSION),
        (entry_offset::FLAGS, if s.weights.is_some() || e.weights.data_bytes == 0 { abi::FLAG_EMBEDDED_WEIGHTS } else { 0 }),
        (entry_offset::CONTEXT_BYTES, abi::CONTEXT_BYTES as u32),
        (entry_offset::DIMS, e.program.dims.len() as u32),
        (entry_offset::INPUTS, e.program.inputs.len() as u32),
        (entry_offset::OUTPUTS, e.program.outputs.len() as u32),
    ];
    for (at, word) in words {
        put(at, &word.to_le_bytes());
    }
    put(entry_offset::MANIFEST_BYTES, &(options.manifest.len() as u64).to_le_bytes());
    let mut data = DataDescription::new();
    data.define(bytes.into_boxed_slice());
    data.set_align(8);
    data.set_used(true);
    let functions = [
        (entry_offset::INIT, s.init),
        (entry_offset::INIT_CPU, s.init_cpu),
        (entry_offset::CPU_VARIANT, s.cpu_variant),
        (entry_offset::ARENA_BYTES, s.arena_bytes),
        (entry_offset::OUTPUT_BYTES, s.output_bytes),
        (entry_offset::RUN, s.run),
        (entry_offset::RUN_PARALLEL, s.run_parallel),
        (entry_offset::STATUS_STRING, s.status_string),
        (entry_offset::BUILD_INFO, s.build_info),
    ];
    for (at, f) in functions {
        let f = e.module.declare_func_in_data(f, &mut data);
        data.write_function_addr(at as u32, f);
    }
    let manifest = e.module.declare_data_in_data(manifest, &mut data);
    data.write_data_addr(entry_offset::MANIFEST as u32, manifest, 0);
    e.sizes.data += entry_offset::END as u64;
    e.module.define_data(s.entry, &data)
}

impl Emitter<'_> {
    /// Declares a function that only this module calls.
    pub(super) fn local(&mut self, what: &str, sig: &Signature) -> Result<FuncId, ModuleError> {
        self.module.declare_function(&format!("{}_{what}", self.name), Linkage::Local, sig)
    }

    /// Compiles and defines a function that is not a kernel.
    pub(super) fn define(&mut self, id: FuncId, mut context: Context) -> Result<(), ModuleError> {
        self.module.define_function(id, &mut context)?;
        if let Some(code) = context.compiled_code() {
            self.sizes.glue += code.code_buffer().len() as u64;
            self.frames[id] = frame_bytes(code);
        }
        Ok(())
    }

    /// Takes down what a call of `NAME_run` takes of the stack. On its way to a kernel it goes through these functions.
    pub(super) fn set_stack(&mut self, way: &[FuncId]) {
        self.sizes.stack = way.iter().map(|&f| self.frames[f]).sum::<u64>() + self.kernel_stack;
    }

    /// Constant data without references.
    pub(super) fn data(&mut self, what: &str, bytes: &[u8], align: u64) -> Result<DataId, ModuleError> {
        let id = self.module.declare_data(&format!("{}_{what}", self.name), Linkage::Local, false, false)?;
        let mut data = DataDescription::new();
        // An empty object would have no address.
        data.define(if bytes.is_empty() { vec![0] } else { bytes.to_vec() }.into_boxed_slice());
        data.set_align(align);
        self.module.define_data(id, &data)?;
        self.sizes.data += bytes.len() as u64;
        Ok(id)
    }

    /// Zero-terminated strings one after the other, and where each begins.
    pub(super) fn strings(&mut self, what: &str, texts: &[&str]) -> Result<(DataId, Vec<usize>), ModuleError> {
        let mut bytes = vec![];
        let mut offsets = vec![];
        for t in texts {
            offsets.push(bytes.len());
            bytes.extend(t.bytes());
            bytes.push(0);
        }
        Ok((self.data(what, &bytes, 1)?, offsets))
    }

    /// The address of data, in a function.
    pub(super) fn data_address(&mut self, b: &mut FunctionBuilder, id: DataId) -> Value {
        let gv: ir::GlobalValue = self.module.declare_data_in_func(id, b.func);
        b.ins().symbol_value(types::I64, gv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Weight;

    #[test]
    fn the_hash_of_the_pieces_is_that_of_the_whole() {
        let piece = |offset, byte, len| Weight { offset, data: vec![byte; len].into() };
        let program = Program { weights: vec![piece(0, 1, 100), piece(128, 2, 1000), piece(1152, 3, 1)], ..Program::default() };
        assert_eq!(weights_header(&program), Header::of(&weight_data(&program)));
        assert_eq!(weights_header(&Program::default()), Header::of(&[]));
    }
}
