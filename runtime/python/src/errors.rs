//! Which exception an error becomes.

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyMemoryError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use tfc::diag::Diagnostic;

create_exception!(tfc, Error, PyException, "What `tfc` says on the command line; `code` is the exit code that it would have.");

fn with_code(py: Python<'_>, text: String, code: u8) -> PyErr {
    let error = Error::new_err(text);
    match error.value(py).setattr("code", code) {
        Ok(()) => error,
        Err(other) => other,
    }
}

/// An error of the compiler: the text of the command line, without the word `error` in front.
pub fn of_command_line(py: Python<'_>, d: &Diagnostic) -> PyErr {
    let text = d.to_string();
    with_code(py, text.strip_prefix("error: ").unwrap_or(&text).into(), d.exit as u8)
}

/// An error of loading.
pub fn of_loading(py: Python<'_>, e: tfc_runtime::Error) -> PyErr {
    with_code(py, e.to_string(), 1)
}

/// An error of a call: what Python raises for arguments that are too many or have other names, for values that do not fit, for
/// memory that there is not; else what the model says.
pub fn of_call(py: Python<'_>, e: tfc_runtime::Error) -> PyErr {
    use tfc_runtime::Error as E;
    let text = e.to_string();
    match e {
        E::MissingInput { .. } | E::UnknownInput { .. } | E::DuplicateInput(_) => PyTypeError::new_err(text),
        E::InputType { .. } | E::Dims(_) | E::Buffer { .. } => PyValueError::new_err(text),
        E::Memory { .. } => PyMemoryError::new_err(text),
        _ => with_code(py, text, 1),
    }
}
