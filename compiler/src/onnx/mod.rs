//! ONNX models: decoding files and importing them into the graph IR.
//!
//! [`decode`] reads a file into a plain [`model::Model`], [`import`](mod@import) turns that into a
//! [`tfc_ir::graph::Graph`]. Both return an [`Error`] that says where in the model something is wrong,
//! or everything at once that is not supported.

pub mod decode;
mod error;
pub mod import;
pub mod model;
mod order;
mod tensors;
mod wire;

pub use error::{CheckReport, Diagnostic, Error, Unsupported};
pub use import::{DimSpec, ImportOptions, check, import, import_with_warnings};
pub use tensors::map_file;

use std::path::Path;

/// Reads a model file and imports it.
///
/// # Errors
/// When the file is bad, contradicts `options`, or uses what is not supported.
pub fn load(path: &Path, options: &ImportOptions) -> Result<tfc_ir::graph::Graph, Error> {
    import(&decode::read(path)?, options)
}
