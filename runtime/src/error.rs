//! What can go wrong when a model is loaded or run.

use crate::abi::Status;
use crate::buffer::OutOfMemory;
use crate::manifest::ManifestError;
use crate::solve::DimsError;
use crate::weights::HeaderError;
use std::path::PathBuf;

/// An error of loading or running a model. Its text says what is wrong, both sides of a disagreement,
/// and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried, such as `open`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file or folder is not something that can be loaded.
    #[error("`{}` cannot be loaded: {reason}", path.display())]
    NotLoadable {
        /// The file or folder.
        path: PathBuf,
        /// What it is instead, and what to do.
        reason: String,
    },
    /// The entry or the manifest of the code is not one that this crate can use.
    #[error("{origin} is not usable: {reason}")]
    Incompatible {
        /// The file, or "the model" for code in memory.
        origin: String,
        /// Both sides of the disagreement.
        reason: String,
    },
    /// The manifest cannot be read.
    #[error("{origin} is not usable: {source}")]
    Manifest {
        /// The file, or "the model" for code in memory.
        origin: String,
        /// Why.
        source: ManifestError,
    },
    /// The weights file is damaged.
    #[error("{origin} is not usable: {source}")]
    Weights {
        /// The weights file.
        origin: String,
        /// Why.
        source: HeaderError,
    },
    /// The weights belong to other code.
    #[error(
        "{origin} belongs to another compilation: the code expects {expected_bytes} bytes with the hash {expected_hash:032x}, \
         the file has {actual_bytes} bytes with {actual_hash:032x}"
    )]
    WeightsMismatch {
        /// The weights file.
        origin: String,
        /// Bytes of data that the code was compiled with.
        expected_bytes: u64,
        /// Their hash.
        expected_hash: u128,
        /// Bytes of data in the file.
        actual_bytes: u64,
        /// Their hash.
        actual_hash: u128,
    },
    /// The model needs weights and none were given, or the other way round.
    #[error("{0}")]
    WeightsUse(String),
    /// The CPU variant that was asked for cannot be had.
    #[error("CPU variant `{wanted}`: {status} (the model has: {available})")]
    CpuVariant {
        /// The name that was asked for.
        wanted: String,
        /// [`Status::CpuUnknown`] or [`Status::CpuNotRunnable`].
        status: Status,
        /// Names of the variants in the object.
        available: String,
    },
    /// An input of the model was not given.
    #[error("input `{name}` is missing: expected {expected} (given: {given})")]
    MissingInput {
        /// The input.
        name: String,
        /// Its type.
        expected: String,
        /// Names that were given.
        given: String,
    },
    /// The model has no such input.
    #[error("the model has no input `{name}` (it has: {known})")]
    UnknownInput {
        /// The name that was given.
        name: String,
        /// Names of the model's inputs.
        known: String,
    },
    /// An input was given twice.
    #[error("input `{0}` is given twice")]
    DuplicateInput(String),
    /// An input has another element type or another shape.
    #[error("input `{name}`: expected {expected}, got {actual}")]
    InputType {
        /// The input.
        name: String,
        /// Type in the model.
        expected: String,
        /// Type that was given.
        actual: String,
    },
    /// The values of the inputs' sizes cannot be combined.
    #[error(transparent)]
    Dims(Box<DimsError>),
    /// The number of buffers, or the size or the alignment of one, is not what the dimensions require.
    #[error("{what}: expected {expected}, got {actual}")]
    Buffer {
        /// Which buffer or list.
        what: String,
        /// What it must be.
        expected: String,
        /// What it is.
        actual: String,
    },
    /// Memory for the arena, an input or an output cannot be had.
    #[error("{what}: {source}")]
    Memory {
        /// What the memory is for.
        what: String,
        /// How much.
        source: OutOfMemory,
    },
    /// A function of the model returned a status.
    #[error("{function} failed with status {code}: {sentence}")]
    Status {
        /// The function, such as `bert_run`.
        function: String,
        /// What it returned; [`Status::from_code`] names it.
        code: i32,
        /// What `status_string` says about it.
        sentence: String,
    },
}

impl Error {
    /// The status that generated code returned, if that is the cause.
    pub fn status(&self) -> Option<Status> {
        match self {
            Error::CpuVariant { status, .. } => Some(*status),
            Error::Status { code, .. } => Status::from_code(*code),
            _ => None,
        }
    }
}

impl From<DimsError> for Error {
    fn from(e: DimsError) -> Error {
        Error::Dims(Box::new(e))
    }
}

/// Names in backquotes, separated by commas; `nothing` if there are none.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("`{n}`")).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}
