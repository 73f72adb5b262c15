//! The manifest: what a compiled model is, for loaders, `tfc inspect` and people.
//!
//! It is encoded by protobuf rules (fields are known by number, unknown ones are skipped, absent ones
//! have their default), so later versions add fields without breaking readers. [`VERSION`] grows when
//! a reader that ignores the added fields would be wrong.
//!
//! Everything in it is a function of the model, the options and the compiler: no dates, hosts or paths.

use prost::Message;

/// The version that this crate writes and the newest that it reads.
pub const VERSION: u32 = 1;

/// A compiled model.
#[derive(Clone, PartialEq, Message)]
pub struct Manifest {
    /// [`VERSION`] of the writer.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// [`crate::abi::ABI_VERSION`] of the code.
    #[prost(uint32, tag = "2")]
    pub abi_version: u32,
    /// The C identifier that every symbol of the object starts with: `NAME` in `NAME_run`.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The compiler and its version, such as `tfc 0.1.0`.
    #[prost(string, tag = "4")]
    pub compiler: String,
    /// Hash of the model file and of the data files that it refers to: 16 bytes, XXH3-128, little-endian.
    #[prost(bytes = "vec", tag = "5")]
    pub model_hash: Vec<u8>,
    /// The target triple, such as `x86_64-unknown-linux-gnu`.
    #[prost(string, tag = "6")]
    pub target: String,
    /// The options that shaped the code, in their command-line form and a fixed order.
    #[prost(string, repeated, tag = "7")]
    pub options: Vec<String>,
    /// Free dimensions, in the order of `NAME_dims`.
    #[prost(message, repeated, tag = "8")]
    pub symbols: Vec<Symbol>,
    /// Inputs, in the order of `NAME_inputs`.
    #[prost(message, repeated, tag = "9")]
    pub inputs: Vec<TensorInfo>,
    /// Outputs, in the order of `NAME_outputs`.
    #[prost(message, repeated, tag = "10")]
    pub outputs: Vec<TensorInfo>,
    /// Conditions between dimensions that the code verifies at run time.
    #[prost(message, repeated, tag = "11")]
    pub checks: Vec<Check>,
    /// The packed weights; absent if the model has none.
    #[prost(message, optional, tag = "12")]
    pub weights: Option<WeightsInfo>,
    /// CPU variants in the object, the least demanding first; `init` picks the last one that can run.
    #[prost(message, repeated, tag = "13")]
    pub cpu_variants: Vec<CpuVariant>,
    /// Alignment of the arena in bytes.
    #[prost(uint32, tag = "14")]
    pub arena_align: u32,
    /// Kernels in the order of execution.
    #[prost(message, repeated, tag = "15")]
    pub kernels: Vec<Kernel>,
    /// Bytes of machine code, of all variants together.
    #[prost(uint64, tag = "16")]
    pub code_bytes: u64,
    /// Bytes of constant tables in the object, without embedded weights.
    #[prost(uint64, tag = "17")]
    pub table_bytes: u64,
    /// Symbols that the object needs from elsewhere, in name order: at most `memcpy`, `memmove`, `memset`.
    #[prost(string, repeated, tag = "18")]
    pub undefined_symbols: Vec<String>,
    /// What quantization and pruning did, one entry per matrix product, in the order of execution.
    /// Empty for a model that is compiled without either.
    #[prost(message, repeated, tag = "19")]
    pub quantization: Vec<QuantEntry>,
    /// What was measured for the whole model on the calibration data, in name order.
    #[prost(message, repeated, tag = "20")]
    pub accuracy: Vec<Measure>,
    /// Bytes of stack that a thread needs that runs the model or parts of its loops; 0 in the manifest of an object,
    /// which is made before its code.
    #[prost(uint64, tag = "21")]
    pub stack_bytes: u64,
}

/// A free dimension.
#[derive(Clone, PartialEq, Message)]
pub struct Symbol {
    /// Its name in the model.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Smallest value that `run` accepts.
    #[prost(int64, tag = "2")]
    pub min: i64,
    /// Largest value that `run` accepts.
    #[prost(int64, tag = "3")]
    pub max: i64,
    /// Its field in `NAME_dims`: the name made a C identifier.
    #[prost(string, tag = "4")]
    pub c_name: String,
    /// The ONNX nodes that allow no wider range; empty if the range is as declared.
    #[prost(string, tag = "5")]
    pub reason: String,
}

/// An input or an output.
#[derive(Clone, PartialEq, Message)]
pub struct TensorInfo {
    /// Its name in the model.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its field in `NAME_inputs` or `NAME_outputs`: the name made a C identifier.
    #[prost(string, tag = "2")]
    pub c_name: String,
    /// The name of its element type, such as `f32` ([`crate::elem::Elem`]).
    #[prost(string, tag = "3")]
    pub elem: String,
    /// Its sizes along each axis, outermost first: an integer expression over the symbols, such as
    /// `batch`, `64` or `2*seq+1` ([`crate::expr::Expr`]). The elements are contiguous.
    #[prost(string, repeated, tag = "4")]
    pub shape: Vec<String>,
}

impl TensorInfo {
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Its type in text form, such as `f32[batch, 3, 224, 224]`.
    pub fn type_text(&self) -> String {
        format!("{}[{}]", self.elem, self.shape.join(", "))
    }
}

/// The condition that two sizes are equal.
#[derive(Clone, PartialEq, Message)]
pub struct Check {
    /// One side, an expression over the symbols.
    #[prost(string, tag = "1")]
    pub left: String,
    /// The other side, an expression over the symbols.
    #[prost(string, tag = "2")]
    pub right: String,
    /// What needs it: the node of the model and the operator's reason.
    #[prost(string, tag = "3")]
    pub reason: String,
}

/// The packed weights of a model.
#[derive(Clone, PartialEq, Message)]
pub struct WeightsInfo {
    /// Bytes of the packed data, without the header of the file.
    #[prost(uint64, tag = "1")]
    pub data_bytes: u64,
    /// [`crate::weights::content_hash`] of the data: 16 bytes, little-endian.
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
    /// The data are in the object and there is no file.
    #[prost(bool, tag = "3")]
    pub embedded: bool,
    /// Name of the weights file beside the object, without a folder; empty if embedded.
    #[prost(string, tag = "4")]
    pub file: String,
    /// Bytes that the constants of the model have in their own types, to compare with.
    #[prost(uint64, tag = "5")]
    pub source_bytes: u64,
}

impl WeightsInfo {
    /// The hash as a number; `None` if it does not have 16 bytes.
    pub fn hash128(&self) -> Option<u128> {
        Some(u128::from_le_bytes(self.hash.as_slice().try_into().ok()?))
    }
}

/// Code for one kind of CPU.
#[derive(Clone, PartialEq, Message)]
pub struct CpuVariant {
    /// Its name for `NAME_init_cpu`, such as `baseline` or `avx2`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Features that it needs beyond the target's baseline, in name order.
    #[prost(string, repeated, tag = "2")]
    pub features: Vec<String>,
    /// Bytes of machine code that only this variant uses.
    #[prost(uint64, tag = "3")]
    pub code_bytes: u64,
}

/// A piece of work between two synchronisations.
#[derive(Clone, PartialEq, Message)]
pub struct Kernel {
    /// Its symbol in the object, without the variant.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it is: `rows`, `contraction`, `attention`, `move` and the like.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// Names of the ONNX nodes that it computes, in the order of the model.
    #[prost(string, repeated, tag = "3")]
    pub nodes: Vec<String>,
    /// Operators and types in one line, for people.
    #[prost(string, tag = "4")]
    pub summary: String,
    /// Bytes of machine code, of all variants together.
    #[prost(uint64, tag = "5")]
    pub code_bytes: u64,
    /// Bytes of packed weights that it reads.
    #[prost(uint64, tag = "6")]
    pub weight_bytes: u64,
    /// Operations of a contraction, two per multiply-add: an expression over the symbols. `0` for others.
    #[prost(string, tag = "7")]
    pub operations: String,
    /// The arithmetic that limits a contraction: `f32` or `i8`; empty for others.
    #[prost(string, tag = "8")]
    pub arithmetic: String,
    /// Bytes that it reads and writes, each once: an expression over the symbols.
    #[prost(string, tag = "9")]
    pub traffic: String,
    /// Those of `traffic` that are weights: an expression over the symbols.
    #[prost(string, tag = "10")]
    pub weight_traffic: String,
}

/// What quantization and pruning did to one matrix product. Errors are relative: the root mean square
/// of the difference to the f32 result over that of the result, on the calibration data; absent where
/// nothing was measured.
#[derive(Clone, PartialEq, Message)]
pub struct QuantEntry {
    /// Name of the ONNX node.
    #[prost(string, tag = "1")]
    pub node: String,
    /// The scheme in the form of `--quant`, such as `w4a8:g64`; `f32` where it was left alone.
    #[prost(string, tag = "2")]
    pub scheme: String,
    /// How activations get their scales, such as `dynamic per token` or `static per tensor`.
    #[prost(string, tag = "3")]
    pub activations: String,
    /// How the weights were rounded, such as `nearest` or `gptq`.
    #[prost(string, tag = "4")]
    pub rounding: String,
    /// Why this scheme and not another.
    #[prost(string, tag = "5")]
    pub reason: String,
    /// Rewrites that prepared it (shift, scale, reparameterization), in the order they were applied.
    #[prost(string, repeated, tag = "6")]
    pub rewrites: Vec<String>,
    /// Bytes of the weight in the model file.
    #[prost(uint64, tag = "7")]
    pub source_bytes: u64,
    /// Bytes of the packed weight with its scales.
    #[prost(uint64, tag = "8")]
    pub packed_bytes: u64,
    /// Share of the weight's blocks that pruning removed, 0 to 1.
    #[prost(double, tag = "9")]
    pub sparsity: f64,
    /// Error of the rewrites alone, in float: what reordering of the arithmetic changes.
    #[prost(double, optional, tag = "10")]
    pub rewrite_error: Option<f64>,
    /// Error of rounding the weights, with float activations.
    #[prost(double, optional, tag = "11")]
    pub weight_error: Option<f64>,
    /// Error of rounding weights and activations.
    #[prost(double, optional, tag = "12")]
    pub total_error: Option<f64>,
    /// Predicted time of the kernel over that of the f32 kernel.
    #[prost(double, optional, tag = "13")]
    pub relative_time: Option<f64>,
    /// By what part of itself the error of the whole model is smaller without the roundings of this product.
    #[prost(double, optional, tag = "14")]
    pub error_share: Option<f64>,
    /// Channels of the operand whose magnitude is far above that of the others; absent where no calibration data was seen.
    #[prost(uint32, optional, tag = "15")]
    pub outlier_channels: Option<u32>,
    /// Error of rounding the operand, with float weights.
    #[prost(double, optional, tag = "16")]
    pub operand_error: Option<f64>,
    /// Index in [`kernels`](Manifest::kernels) of the one that multiplies; absent where none could be told from the others.
    #[prost(uint32, optional, tag = "17")]
    pub kernel: Option<u32>,
}

/// A measured property of the whole model.
#[derive(Clone, PartialEq, Message)]
pub struct Measure {
    /// What was measured, such as `max-error`, `max-kl`, `top1`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The value.
    #[prost(double, tag = "2")]
    pub value: f64,
    /// The limit that the user set.
    #[prost(double, optional, tag = "3")]
    pub limit: Option<f64>,
}

/// Why bytes are not a manifest that this crate can use.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not an encoded manifest.
    #[error("the manifest cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    /// Written by a later compiler whose manifests mean something else.
    #[error("the manifest has version {0} and this runtime reads up to version {VERSION}: use the runtime that belongs to the compiler")]
    Version(u32),
}

impl Manifest {
    /// The bytes to put into an object. Equal manifests give equal bytes.
    pub fn encode_bytes(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// The manifest behind `bytes`.
    pub fn decode_bytes(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let manifest = Manifest::decode(bytes)?;
        match manifest.version {
            1..=VERSION => Ok(manifest),
            other => Err(ManifestError::Version(other)),
        }
    }

    /// The model's hash as a number; `None` if it does not have 16 bytes.
    pub fn model_hash128(&self) -> Option<u128> {
        Some(u128::from_le_bytes(self.model_hash.as_slice().try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_manifest_is_read_back() {
        let m = Manifest {
            version: VERSION,
            name: "bert".into(),
            symbols: vec![Symbol { name: "seq".into(), min: 1, max: 512, c_name: "seq".into(), reason: String::new() }],
            inputs: vec![TensorInfo {
                name: "x".into(),
                c_name: "x".into(),
                elem: "f32".into(),
                shape: vec!["2*seq+1".into(), "64".into()],
            }],
            quantization: vec![QuantEntry { node: "/mm".into(), weight_error: Some(0.0), ..Default::default() }],
            ..Default::default()
        };
        let back = Manifest::decode_bytes(&m.encode_bytes()).unwrap();
        assert_eq!(back, m);
        assert_eq!(back.inputs[0].type_text(), "f32[2*seq+1, 64]");
        assert_eq!(back.quantization[0].total_error, None);
        assert_eq!(back.quantization[0].weight_error, Some(0.0));
    }

    #[test]
    fn other_versions_and_other_bytes_are_errors() {
        let m = Manifest { version: VERSION + 1, ..Default::default() };
        assert_eq!(Manifest::decode_bytes(&m.encode_bytes()), Err(ManifestError::Version(VERSION + 1)));
        assert_eq!(Manifest::decode_bytes(&[]), Err(ManifestError::Version(0)));
        assert!(matches!(Manifest::decode_bytes(&[0xff; 9]), Err(ManifestError::Decode(_))));
    }
}
