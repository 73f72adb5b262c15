//! Code in memory: compiles a program for this machine and hands it to the runtime.

use super::clif::target::Cpu;
use super::module::{self, EmitError, Options};
use crate::emit::manifest;
use crate::kernel::Program;
use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::default_libcall_names;
use std::ops::Deref;
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

/// Packed weights with their header, aligned.
struct WeightFile(Buffer);

impl Deref for WeightFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Compiles a program for this machine, for one CPU variant: the one called `cpu`, or the best for `None`.
///
/// # Errors
/// When there is no code generator for this machine, or it refuses something (our bug), or the variant
/// cannot run here.
#[allow(unsafe_code, reason = "the entry of compiled code is a raw pointer")]
pub fn load(program: &Program, name: &str, cpu: Option<&str>) -> Result<Model, JitError> {
    let triple = Triple::host();
    let cpus = [variant(&triple, cpu)?];
    let builder = JITBuilder::with_isa(module_isa().ok_or(JitError::Unsupported(triple.clone()))?, default_libcall_names());
    let mut jit = JITModule::new(builder);
    let header = module::weights_header(program);
    let info = manifest::Info { name, target: &triple, options: &[], model_hash: 0, embedded: false, cpus: &cpus };
    let encoded = manifest::of(program, &header, &info).encode_bytes();
    let options =
        Options { name, cpus: &cpus, embed_weights: false, build_info: "tfc, in memory", manifest: &encoded, id: header.hash as u64 };
    let (symbols, _) = module::emit(&mut jit, program, header, &options)?;
    jit.finalize_definitions().map_err(|e| JitError::Memory(e.to_string()))?;
    let (entry, _) = jit.get_finalized_data(symbols.entry);
    let weights = if header.data_bytes == 0 {
        Weights::Embedded
    } else {
        let mut file = Buffer::new(PAGE + header.data_bytes as usize).map_err(|e| JitError::Memory(e.to_string()))?;
        file[..PAGE].copy_from_slice(&write_header(&header));
        for w in &program.weights {
            file[PAGE + w.offset as usize..][..w.data.len()].copy_from_slice(&w.data);
        }
        Weights::File(Box::new(WeightFile(file)))
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
    for (setting, value) in [("opt_level", "speed"), ("is_pic", "false"), ("use_colocated_libcalls", "false"), ("unwind_info", "false")] {
        flags.set(setting, value).ok()?;
    }
    cranelift_native::builder().ok()?.finish(settings::Flags::new(flags)).ok()
}
