//! Code in memory: compiles a program for this machine and hands it to the runtime.

use super::clif;
use super::clif::target::Cpu;
use super::module::{self, EmitError, Options};
use crate::emit::manifest;
use crate::kernel::Program;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{Module, ModuleError, default_libcall_names};
use std::ops::Deref;
use std::sync::Arc;
use target_lexicon::Triple;
use tfc_runtime::abi::{Entry, Status};
use tfc_runtime::weights::{PAGE, write_header};
use tfc_runtime::{Buffer, Model, Weights};

/// Compiling in memory failed.
#[derive(Debug, thiserror::Error)]
pub enum JitError {
    /// Code generation: a bug of ours.
    #[error(transparent)]
    Emit(#[from] EmitError),
    /// No memory for code or weights.
    #[error("not enough memory: {0}")]
    Memory(String),
    /// The runtime refuses the model.
    #[error(transparent)]
    Runtime(#[from] tfc_runtime::Error),
    /// This build of the compiler makes no code for the machine that it runs on.
    #[error("there is no code generator for this machine ({0})")]
    Unsupported(Triple),
}

/// Compiled code; its memory is freed when the model that uses it is dropped.
struct Code(Option<JITModule>);

#[allow(unsafe_code, reason = "a module is not `Send` for the symbol look-up functions in it")]
// SAFETY: after finalization nothing calls those functions; the module is only dropped, by one thread.
unsafe impl Send for Code {}

impl Drop for Code {
    #[allow(unsafe_code, reason = "freeing code is a promise that nothing runs it")]
    fn drop(&mut self) {
        if let Some(module) = self.0.take() {
            // SAFETY: the model owns this value next to its pointers into the code, and is gone.
            unsafe { module.free_memory() }
        }
    }
}

/// Packed weights with their header, aligned, which several models may share; `None` for no weights.
#[derive(Clone)]
pub struct WeightFile(Option<Arc<Buffer>>);

impl WeightFile {
    /// Packs the weights of a program.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(program: &Program) -> Result<WeightFile, JitError> {
        let header = module::weights_header(program);
        if header.data_bytes == 0 {
            return Ok(WeightFile(None));
        }
        let mut file = Buffer::new(PAGE + header.data_bytes as usize).map_err(|e| JitError::Memory(e.to_string()))?;
        file[..PAGE].copy_from_slice(&write_header(&header));
        for w in &program.weights {
            file[PAGE + w.offset as usize..][..w.data.len()].copy_from_slice(&w.data);
        }
        Ok(WeightFile(Some(Arc::new(file))))
    }
}

impl Deref for WeightFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |b| b)
    }
}

/// How a program is compiled in memory.
#[derive(Clone, Copy, Default)]
pub struct JitOptions<'a> {
    /// The CPU variant; the best one that runs here if absent.
    pub cpu: Option<&'a str>,
    /// Which of its [candidates](super::candidates) each kernel is compiled by, 0 being the compiler's choice;
    /// the last one of kernels that have fewer.
    pub candidate: usize,
}

/// One kernel, or any code with its ABI, in executable memory.
pub struct Loose {
    entry: *const u8,
    _code: Code,
}

#[allow(unsafe_code, reason = "the pointer is to code, which nobody writes")]
// SAFETY: the code is read-only and lives as long as this value.
unsafe impl Send for Loose {}
#[allow(unsafe_code, reason = "the pointer is to code, which nobody writes")]
// SAFETY: as above.
unsafe impl Sync for Loose {}

impl Loose {
    /// Places code, whose entry is its begin.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(code: &clif::code::Code) -> Result<Loose, JitError> {
        let memory = |e: ModuleError| JitError::Memory(e.to_string());
        let isa = module_isa().ok_or_else(|| JitError::Unsupported(Triple::host()))?;
        let mut jit = JITModule::new(JITBuilder::with_isa(isa, default_libcall_names()));
        let id = jit.declare_anonymous_function(&jit.make_signature()).map_err(memory)?;
        jit.define_function_bytes(id, code.align, &code.bytes, &[]).map_err(memory)?;
        jit.finalize_definitions().map_err(memory)?;
        Ok(Loose { entry: jit.get_finalized_function(id), _code: Code(Some(jit)) })
    }

    /// Runs the tasks `begin..end`.
    ///
    /// # Safety
    ///
    /// The code has the ABI of kernels, the CPU has its instructions, and `args` are what it expects.
    #[allow(unsafe_code, reason = "only the caller knows what the code does")]
    pub unsafe fn call(&self, args: *const u64, begin: i64, end: i64) {
        // SAFETY: as the caller promises.
        let f = unsafe { std::mem::transmute::<*const u8, unsafe extern "C" fn(*const u64, i64, i64)>(self.entry) };
        // SAFETY: as the caller promises.
        unsafe { f(args, begin, end) }
    }
}

/// Compiles a program for this machine, for one CPU variant: the one called `cpu`, or the best for `None`.
///
/// # Errors
/// When there is no code generator for this machine, or it refuses something (our bug), or the variant
/// cannot run here.
pub fn load(program: &Program, name: &str, cpu: Option<&str>) -> Result<Model, JitError> {
    load_with(program, name, &WeightFile::new(program)?, &JitOptions { cpu, candidate: 0 })
}

/// [`load`] with weights that were packed before, and options.
///
/// # Errors
/// As [`load`].
#[allow(unsafe_code, reason = "the entry of compiled code is a raw pointer")]
pub fn load_with(program: &Program, name: &str, weights: &WeightFile, options: &JitOptions) -> Result<Model, JitError> {
    let cpu = options.cpu;
    let triple = Triple::host();
    let cpus = [variant(&triple, cpu)?];
    let builder = JITBuilder::with_isa(module_isa().ok_or(JitError::Unsupported(triple.clone()))?, default_libcall_names());
    let mut jit = JITModule::new(builder);
    let header = module::weights_header(program);
    let info = manifest::Info { name, target: &triple, options: &[], model_hash: 0, weights_file: Some(""), cpus: &cpus };
    let encoded = manifest::of(program, &header, &info).encode_bytes();
    let options = Options {
        name,
        cpus: &cpus,
        embed_weights: false,
        build_info: "tfc, in memory",
        manifest: &encoded,
        id: header.hash as u64,
        candidate: options.candidate,
    };
    let (symbols, _) = module::emit(&mut jit, program, header, &options)?;
    jit.finalize_definitions().map_err(|e| JitError::Memory(e.to_string()))?;
    let (entry, _) = jit.get_finalized_data(symbols.entry);
    let weights = match weights.0 {
        None => Weights::Embedded,
        Some(_) => Weights::File(Box::new(weights.clone())),
    };
    // SAFETY: `emit` laid the entry out as the runtime defines it; the code lives as long as its owner.
    Ok(unsafe { Model::from_entry(entry.cast::<Entry>(), Box::new(Code(Some(jit))), weights, cpu) }?)
}

/// The CPU variant with a name, or the best one, if it runs here.
fn variant(triple: &Triple, name: Option<&str>) -> Result<Cpu, JitError> {
    let Some(name) = name else { return Cpu::best_here().ok_or_else(|| JitError::Unsupported(triple.clone())) };
    let all = Cpu::variants(triple);
    let status = match all.iter().find(|c| c.name == name) {
        Some(c) if c.runs_here() => return Ok(c.clone()),
        Some(_) => Status::CpuNotRunnable,
        None => Status::CpuUnknown,
    };
    let available = all.iter().map(|c| format!("`{}`", c.name)).collect::<Vec<_>>().join(", ");
    Err(tfc_runtime::Error::CpuVariant { wanted: name.into(), status, available }.into())
}

/// The instruction set for what is not a kernel: the JIT wants absolute addresses.
fn module_isa() -> Option<OwnedTargetIsa> {
    let mut flags = settings::builder();
    for (setting, value) in [
        ("opt_level", "speed"),
        ("is_pic", "false"),
        ("use_colocated_libcalls", "false"),
        ("enable_probestack", "true"),
        ("probestack_strategy", "inline"),
        ("unwind_info", "false"),
    ] {
        flags.set(setting, value).ok()?;
    }
    cranelift_native::builder().ok()?.finish(settings::Flags::new(flags)).ok()
}
