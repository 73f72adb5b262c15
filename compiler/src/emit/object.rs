//! Relocatable objects.

use super::clif::target::Cpu;
use super::manifest;
use super::module::{self, EmitError, Options, Sizes};
use crate::kernel::Program;
use cranelift_module::default_libcall_names;
use cranelift_object::{ObjectBuilder, ObjectModule};
use target_lexicon::Triple;
use tfc_runtime::manifest::Manifest;
use tfc_runtime::weights::Header;

/// An object in memory with what belongs to it.
pub struct Object {
    /// The bytes of the `.o` file.
    pub bytes: Vec<u8>,
    /// The manifest, with sizes.
    pub manifest: Manifest,
    /// The header of the weights file.
    pub weights: Header,
    /// Code sizes.
    pub sizes: Sizes,
}

/// What shapes an object besides the program.
pub struct ObjectOptions<'a> {
    /// Prefix of all symbols, a C identifier.
    pub name: &'a str,
    /// The target.
    pub target: &'a Triple,
    /// CPU variants from the plainest to the best; at least one.
    pub cpus: &'a [Cpu],
    /// Whether the weights go into the object.
    pub embed_weights: bool,
    /// The name of the weights file, if they do not.
    pub weights_file: &'a str,
    /// Options in their command-line form, for the manifest.
    pub options: &'a [String],
    /// Hash of the model's files.
    pub model_hash: u128,
}

/// Emits a program as an object.
///
/// # Errors
/// When the code generator refuses something: a bug of ours.
pub fn emit(program: &Program, options: &ObjectOptions) -> Result<Object, EmitError> {
    let weights = Header { model: options.model_hash, ..module::weights_header(program) };
    let info = manifest::Info {
        name: options.name,
        target: options.target,
        options: options.options,
        model_hash: options.model_hash,
        weights_file: (!options.embed_weights).then_some(options.weights_file),
        cpus: options.cpus,
    };
    let mut manifest = manifest::of(program, &weights, &info);
    let encoded = manifest.encode_bytes();
    // Contexts of two compilations differ in the weights, or in the code, which the manifest stands for.
    let id = (weights.hash ^ tfc_runtime::weights::content_hash(&encoded)) as u64;
    let failed = |what: &str| {
        let what = what.to_string();
        move |source: cranelift_module::ModuleError| EmitError { what, source: Box::new(source) }
    };
    let isa = options.cpus[0].isa.clone();
    let mut builder = ObjectBuilder::new(isa, options.name, default_libcall_names()).map_err(failed("the object"))?;
    builder.per_function_section(false);
    let mut object = ObjectModule::new(builder);
    let build_info = format!("{}, {}, {}", manifest.compiler, options.target, options.options.join(" "));
    let module_options = Options {
        name: options.name,
        cpus: options.cpus,
        embed_weights: options.embed_weights,
        build_info: &build_info,
        manifest: &encoded,
        id,
        candidate: 0,
    };
    let (_, sizes) = module::emit(&mut object, program, weights, &module_options)?;
    let product = object.finish();
    let bytes = product
        .emit()
        .map_err(|e| EmitError { what: "the object file".into(), source: Box::new(cranelift_module::ModuleError::Backend(e.into())) })?;
    manifest::add_sizes(&mut manifest, program, &sizes);
    Ok(Object { bytes, manifest, weights, sizes })
}
