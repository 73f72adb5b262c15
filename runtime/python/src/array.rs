//! NumPy arrays as bytes, and back.

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;
use std::ptr::NonNull;
use tfc_runtime::Elem;
use tfc_runtime::model::Port;

static NUMPY: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

fn numpy(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    Ok(NUMPY.get_or_try_init(py, || py.import("numpy").map(Bound::unbind))?.bind(py))
}

/// The `numpy.dtype` of elements, and whether arrays of it are reinterpreted to cross the border: the buffer protocol has no bf16. Those
/// are `ml_dtypes.bfloat16`, or, where there is no such package, `uint16` with the same bits. `None` for elements of 4 bits, which NumPy
/// has not.
pub fn dtype(py: Python<'_>, elem: Elem) -> PyResult<Option<Py<PyAny>>> {
    let name = match elem {
        Elem::I4 | Elem::U4 => return Ok(None),
        Elem::Bool => "bool",
        Elem::I8 => "int8",
        Elem::U8 => "uint8",
        Elem::I16 => "int16",
        Elem::U16 => "uint16",
        Elem::I32 => "int32",
        Elem::U32 => "uint32",
        Elem::I64 => "int64",
        Elem::U64 => "uint64",
        Elem::F16 => "float16",
        Elem::F32 => "float32",
        Elem::F64 => "float64",
        Elem::Bf16 => match py.import("ml_dtypes") {
            Ok(types) => return Ok(Some(numpy(py)?.getattr("dtype")?.call1((types.getattr("bfloat16")?,))?.unbind())),
            Err(_) => "uint16",
        },
    };
    Ok(Some(numpy(py)?.getattr("dtype")?.call1((name,))?.unbind()))
}

/// The element type of a buffer whose elements have this format, in the notation of Python's module `struct`, and so many bytes.
/// `None` for other formats, among them numbers in the other byte order.
fn elem_of(format: &[u8], bytes: usize) -> Option<Elem> {
    let native = if cfg!(target_endian = "little") { b'<' } else { b'>' };
    let letter = match format {
        [letter] => letter,
        [order, letter] if [b'@', b'=', native].contains(order) => letter,
        // One byte has no order.
        [_, letter] if bytes == 1 => letter,
        _ => return None,
    };
    let of_bits = |elems: [Elem; 4]| elems.into_iter().find(|e| e.bits() == 8 * bytes);
    match letter {
        b'?' => Some(Elem::Bool),
        b'b' | b'h' | b'i' | b'l' | b'q' | b'n' => of_bits([Elem::I8, Elem::I16, Elem::I32, Elem::I64]),
        b'B' | b'H' | b'I' | b'L' | b'Q' | b'N' => of_bits([Elem::U8, Elem::U16, Elem::U32, Elem::U64]),
        b'e' => Some(Elem::F16),
        b'f' => Some(Elem::F32),
        b'd' => Some(Elem::F64),
        _ => None,
    }
}

/// A contiguous array, held so that nobody frees or resizes it.
pub struct Array {
    buffer: PyUntypedBuffer,
    /// It has no axes; the buffer of such an array would have no shape, so this is that of a view with one.
    scalar: bool,
}

impl Array {
    /// What was given for the input `port`: its own memory if it is a contiguous array; a contiguous copy of another array; what
    /// `numpy.asarray` makes of anything else.
    ///
    /// # Errors
    /// `ValueError` with both sides when the element type or the number of axes is another one.
    pub fn input(given: &Bound<'_, PyAny>, port: &Port) -> PyResult<Array> {
        let array = match PyUntypedBuffer::get(given) {
            Ok(buffer) if buffer.is_c_contiguous() => Array { buffer, scalar: false },
            _ => Array::contiguous(given, port)?,
        };
        let elem = elem_of(array.buffer.format().to_bytes(), array.buffer.item_size());
        let same_bits = port.elem == Elem::Bf16 && elem == Some(Elem::U16);
        if (elem == Some(port.elem) || same_bits) && array.shape().len() == port.shape.len() {
            return Ok(array);
        }
        let name = match elem {
            Some(elem) => elem.name().into(),
            None => numpy(given.py())?.call_method1("asarray", (given,))?.getattr("dtype")?.str()?.to_string(),
        };
        Err(wrong_type(port, format!("{name}{:?}", array.shape())))
    }

    /// What has no contiguous buffer, as a contiguous array.
    fn contiguous(given: &Bound<'_, PyAny>, port: &Port) -> PyResult<Array> {
        let numpy = numpy(given.py())?;
        let given = numpy.call_method1("asarray", (given,))?;
        let dtype = given.getattr("dtype")?;
        let (mut array, shape): (_, Vec<usize>) = (given.clone(), given.getattr("shape")?.extract()?);
        if port.elem == Elem::Bf16 && dtype.getattr("name")?.extract::<String>()? == "bfloat16" {
            array = array.call_method1("view", ("uint16",))?;
        }
        // With an axis even if there was none.
        array = numpy.call_method1("ascontiguousarray", (array,))?;
        match PyUntypedBuffer::get(&array) {
            Ok(buffer) => Ok(Array { buffer, scalar: shape.is_empty() }),
            Err(_) => Err(wrong_type(port, format!("{}{shape:?}", dtype.str()?))),
        }
    }

    /// A new array without contents.
    pub fn new<'py>(py: Python<'py>, port: &Port, dtype: &Py<PyAny>, shape: &[usize]) -> PyResult<(Bound<'py, PyAny>, Array)> {
        let array = numpy(py)?.getattr("empty")?.call1((PyTuple::new(py, shape)?, dtype))?;
        let mut view = array.clone();
        if shape.is_empty() {
            view = view.call_method1("reshape", (1,))?;
        }
        if port.elem == Elem::Bf16 {
            view = view.call_method1("view", ("uint16",))?;
        }
        Ok((array, Array { buffer: PyUntypedBuffer::get(&view)?, scalar: shape.is_empty() }))
    }

    /// Its sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        if self.scalar { &[] } else { self.buffer.shape() }
    }

    fn pointer(&self) -> *mut u8 {
        // An array without elements may be nowhere.
        NonNull::new(self.buffer.buf_ptr().cast::<u8>()).unwrap_or(NonNull::<u64>::dangling().cast()).as_ptr()
    }

    /// Its elements. As with everything that computes on arrays without holding the interpreter's lock, nobody may write to them
    /// until the call is over.
    #[allow(unsafe_code, reason = "the memory of an array as a slice")]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the buffer is contiguous, of so many bytes, and the exporter keeps it until `self` is dropped.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.buffer.len_bytes()) }
    }

    /// The elements of an array that [`Array::new`] made.
    #[allow(unsafe_code, reason = "the memory of an array as a slice")]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; and it is a new array that only its maker knows, who hands it out when the call is over.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.buffer.len_bytes()) }
    }
}

fn wrong_type(port: &Port, actual: String) -> PyErr {
    let e = tfc_runtime::Error::InputType { name: port.name.clone(), expected: port.type_text(), actual };
    PyValueError::new_err(e.to_string())
}
