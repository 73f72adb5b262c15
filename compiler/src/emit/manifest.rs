//! The manifest of a program.

use super::clif::target::Cpu;
use super::module::{Sizes, kernel_name};
use super::names::c_identifiers;
use crate::calibration::Accuracy;
use crate::kernel::{Port, Program, Storage, work};
use crate::metrics::Metric;
use target_lexicon::Triple;
use tfc_passes::quantize::{Activations, Scaling};
use tfc_passes::reparameterize::Method;
use tfc_passes::{LedgerEntry, QuantSpec};
use tfc_runtime::abi;
use tfc_runtime::manifest::{Check, CpuVariant, Kernel, Manifest, Measure, QuantEntry, Symbol, TensorInfo, VERSION, WeightsInfo};
use tfc_runtime::weights::Header;

/// Bytes of the stack for what is not code of the object: the functions of the C library that it calls, and what the
/// loader does when they are called for the first time.
const STACK_RESERVE: u64 = 16 << 10;

/// What a manifest says besides the program.
pub struct Info<'a> {
    /// Prefix of all symbols.
    pub name: &'a str,
    /// The target.
    pub target: &'a Triple,
    /// Options in their command-line form.
    pub options: &'a [String],
    /// Hash of the model's files.
    pub model_hash: u128,
    /// The name of the weights file; none if the weights are in the object.
    pub weights_file: Option<&'a str>,
    /// CPU variants, the plainest first.
    pub cpus: &'a [Cpu],
}

/// The manifest without code sizes: it is part of the code.
pub fn of(program: &Program, weights: &Header, info: &Info) -> Manifest {
    let c_names = |names: Vec<&str>| c_identifiers(info.name, &names);
    let ports = |ports: &[Port]| {
        let names = c_names(ports.iter().map(|p| p.name.as_str()).collect());
        let tensor = |(p, c_name): (&Port, String)| TensorInfo {
            name: p.name.clone(),
            c_name,
            elem: p.ty.elem.name().into(),
            shape: p.ty.shape.0.iter().map(ToString::to_string).collect(),
        };
        ports.iter().zip(names).map(tensor).collect()
    };
    let symbol_names = c_names(program.dims.iter().map(|s| s.name()).collect());
    Manifest {
        version: VERSION,
        abi_version: abi::ABI_VERSION,
        name: info.name.into(),
        compiler: concat!("tfc ", env!("CARGO_PKG_VERSION")).into(),
        model_hash: info.model_hash.to_le_bytes().to_vec(),
        target: info.target.to_string(),
        options: info.options.to_vec(),
        symbols: program
            .dims
            .iter()
            .zip(symbol_names)
            .map(|(s, c_name)| Symbol {
                name: s.name().into(),
                min: program.symbols[s].min,
                max: program.symbols[s].max,
                c_name,
                reason: program.bounds.get(s).map(ToString::to_string).unwrap_or_default(),
            })
            .collect(),
        inputs: ports(&program.inputs),
        outputs: ports(&program.outputs),
        checks: program
            .checks
            .iter()
            .map(|c| Check { left: c.left.to_string(), right: c.right.to_string(), reason: c.loc.to_string() })
            .collect(),
        weights: (weights.data_bytes > 0).then(|| WeightsInfo {
            data_bytes: weights.data_bytes,
            hash: weights.hash.to_le_bytes().to_vec(),
            embedded: info.weights_file.is_none(),
            file: info.weights_file.unwrap_or_default().into(),
            source_bytes: program.constant_bytes,
        }),
        cpu_variants: info
            .cpus
            .iter()
            .map(|c| CpuVariant { name: c.name.into(), features: c.features().into_iter().map(Into::into).collect(), code_bytes: 0 })
            .collect(),
        arena_align: abi::ALIGN as u32,
        kernels: program
            .steps
            .iter()
            .map(|s| {
                let work = work::of(program, s);
                Kernel {
                    name: kernel_name(program, s.kernel),
                    kind: program.kernels[s.kernel].body.kind().into(),
                    nodes: s.loc.names().map(Into::into).collect(),
                    summary: s.label.clone(),
                    code_bytes: 0,
                    weight_bytes: s
                        .buffers
                        .iter()
                        .filter(|b| matches!(program.buffers[b.buffer].storage, Storage::Weights(_)))
                        .map(|b| program.buffers[b.buffer].bytes.as_const().unwrap_or(0) as u64)
                        .sum(),
                    operations: work.operations.to_string(),
                    arithmetic: work.arithmetic.map_or("", |a| a.name()).into(),
                    traffic: work.bytes.to_string(),
                    weight_traffic: work.weight_bytes.to_string(),
                }
            })
            .collect(),
        code_bytes: 0,
        table_bytes: 0,
        undefined_symbols: vec![],
        quantization: program.ledger.iter().map(|entry| quantized(program, entry)).collect(),
        accuracy: program.accuracy.as_ref().map_or(vec![], measures),
        stack_bytes: 0,
    }
}

/// What was measured of the whole model: by the name of the option that limits it and, of several outputs, that of the output.
fn measures(accuracy: &Accuracy) -> Vec<Measure> {
    let several = accuracy.outputs.len() > 1;
    let mut all = vec![];
    for metric in Metric::ALL {
        for (output, measured) in &accuracy.outputs {
            let Some(value) = metric.of(measured) else { continue };
            let limit = accuracy.checked.iter().find(|c| c.metric == metric && c.output == *output).map(|c| c.wanted);
            let name = if several { format!("{}:{output}", metric.option()) } else { metric.option().into() };
            all.push(Measure { name, value, limit });
        }
    }
    all
}

/// What quantization did to a product, and the kernel that computes it.
fn quantized(program: &Program, entry: &LedgerEntry) -> QuantEntry {
    let (activations, rounding) = match entry.spec {
        QuantSpec::F32 => ("", ""),
        QuantSpec::Int { activations: Activations::Float, .. } => ("f32", "nearest"),
        QuantSpec::Int { activations: Activations::Int8, scaling: Scaling::Static, .. } => ("static per tensor", "nearest"),
        QuantSpec::Int { activations: Activations::Int8, .. } => ("dynamic per row", "nearest"),
    };
    let fold = entry.fold.as_ref().filter(|f| f.method != Method::None);
    QuantEntry {
        node: entry.loc.to_string(),
        scheme: entry.spec.to_string(),
        activations: activations.into(),
        rounding: rounding.into(),
        reason: entry.reason.clone(),
        source_bytes: entry.source_bytes,
        packed_bytes: entry.packed_bytes,
        weight_error: entry.weight_error,
        total_error: entry.total_error,
        rewrites: fold.map(|f| f.to_string()).into_iter().collect(),
        rewrite_error: fold.map(|f| f.map_error),
        error_share: entry.share,
        outlier_channels: entry.fold.as_ref().map(|f| f.outliers as u32),
        operand_error: entry.operand.as_ref().map(|r| r.error),
        kernel: program.multiplies(&entry.loc).map(|launch| launch as u32),
        ..QuantEntry::default()
    }
}

/// Adds the sizes of the code to a manifest for people; the one in the object cannot know them.
pub fn add_sizes(manifest: &mut Manifest, program: &Program, sizes: &Sizes) {
    for (variant, row) in manifest.cpu_variants.iter_mut().zip(&sizes.kernels) {
        variant.code_bytes = row.iter().sum();
    }
    for (kernel, step) in manifest.kernels.iter_mut().zip(&program.steps) {
        kernel.code_bytes = sizes.kernels.iter().map(|row| row[cranelift_entity::EntityRef::index(step.kernel)]).sum();
    }
    manifest.code_bytes = sizes.glue + manifest.cpu_variants.iter().map(|v| v.code_bytes).sum::<u64>();
    manifest.table_bytes = sizes.data;
    manifest.stack_bytes = (sizes.stack + STACK_RESERVE).next_multiple_of(4096);
}
