//! The module `tfc._tfc`: what the Python package `tfc` is made of, in Rust. Its documentation for users is in `_tfc.pyi`.
//!
//! | module | is |
//! |---|---|
//! | [`errors`] | which exception an error becomes |
//! | [`array`] | NumPy arrays as bytes, and back |
//! | [`model`] | a loaded model as a callable object |

mod array;
mod errors;
mod model;

use pyo3::prelude::*;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

#[pymodule(name = "_tfc")]
mod module {
    #[pymodule_export]
    use super::errors::Error;
    #[pymodule_export]
    use super::model::{Model, Profile, Step, TensorType, load};
    #[pymodule_export]
    use super::{compile, main};
}

/// Runs `tfc compile` with these arguments and returns where the output is.
#[pyfunction]
fn compile(py: Python<'_>, args: Vec<OsString>) -> PyResult<PathBuf> {
    py.detach(|| tfc::cli::compile(args)).map_err(|d| errors::of_command_line(py, &d))
}

/// Runs the command line, the name of the program first, and returns its exit code.
#[pyfunction]
fn main(py: Python<'_>, args: Vec<OsString>) -> u8 {
    py.detach(|| tfc::cli::main(args, Instant::now()))
}
