//! Running a model: memory that is kept from call to call, and checks of everything that a caller may
//! get wrong.
#![allow(unsafe_code, reason = "hands checked buffers to the code of a model")]

use crate::abi::CONTEXT_EVERY_STEP;
use crate::buffer::Buffer;
use crate::elem::Elem;
use crate::error::Error;
use crate::model::{Dims, Model, Port};
use crate::pool::Pool;
use crate::profile::{Profile, Recorder};
use std::ffi::c_void;
use std::sync::Arc;

/// Elements that a caller holds, to be used as an input. Contiguous, in the byte order of the machine,
/// at any address: what is not aligned to its elements is copied.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Element type.
    pub elem: Elem,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// The elements; 4-bit ones two to a byte, the low nibble first.
    pub data: &'a [u8],
}

impl View<'_> {
    /// Its type in text form, such as `f32[2, 64]`.
    pub fn type_text(&self) -> String {
        format!("{}{:?}", self.elem, self.shape)
    }
}

/// An output.
#[derive(Debug)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Element type.
    pub elem: Elem,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The elements, contiguous.
    pub data: Buffer,
}

/// Runs a model, one call at a time. The arena is kept and reused; it grows when a call needs more.
pub struct Session {
    model: Arc<Model>,
    pool: Option<Arc<Pool>>,
    arena: Option<Buffer>,
}

impl Session {
    /// A session with its own pool of `threads` threads: 1 for the calling thread alone, 0 for as many as
    /// there are CPUs.
    pub fn new(model: Arc<Model>, threads: usize) -> std::io::Result<Session> {
        let pool = if threads == 1 { None } else { Some(Arc::new(Pool::new(threads)?)) };
        Ok(Session { model, pool, arena: None })
    }

    /// A session that shares a pool with others. Of calls at the same time, one uses the pool and the
    /// others their own thread.
    pub fn with_pool(model: Arc<Model>, pool: Arc<Pool>) -> Session {
        Session { model, pool: Some(pool), arena: None }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Runs the model on inputs given by name, in any order, and returns its outputs in the model's order.
    /// Dimensions follow from the shapes of the inputs.
    pub fn run(&mut self, inputs: &[(&str, View<'_>)]) -> Result<Vec<Output>, Error> {
        self.run_with(inputs, &[])
    }

    /// [`Session::run`] with values of symbols that do not follow from the inputs.
    pub fn run_with(&mut self, inputs: &[(&str, View<'_>)], symbols: &[(&str, i64)]) -> Result<Vec<Output>, Error> {
        let model = self.model.clone();
        model.match_names(inputs.iter().map(|(name, _)| *name))?;
        let mut ordered = Vec::with_capacity(inputs.len());
        let mut shapes = Vec::with_capacity(inputs.len());
        for port in model.inputs() {
            let Some((name, view)) = inputs.iter().find(|(name, _)| *name == port.name) else { continue };
            if view.elem != port.elem || view.shape.len() != port.shape.len() {
                return Err(Error::InputType { name: port.name.clone(), expected: port.type_text(), actual: view.type_text() });
            }
            ordered.push(view.data);
            shapes.push((*name, view.shape));
        }
        let dims = model.dims_with(&shapes, symbols)?;
        let mut outputs = Vec::with_capacity(model.outputs().len());
        for port in model.outputs() {
            let shape = port.shape_at(&dims)?;
            let data = memory(|| format!("output `{}`", port.name), port.bytes_at(&dims)?)?;
            outputs.push(Output { name: port.name.clone(), elem: port.elem, shape, data });
        }
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(|o| &mut *o.data).collect();
        self.run_into(&dims, &ordered, &mut slices)?;
        Ok(outputs)
    }

    /// Runs the model at `dims` on inputs in the model's order, and writes the outputs, in the model's
    /// order. Every slice must have exactly the bytes that the dimensions require
    /// ([`Port::bytes_at`]). Inputs that are not aligned to their elements are copied first; outputs must
    /// be aligned. Nothing is allocated if all is aligned and the arena of an earlier call is large enough,
    /// but for two short lists of pointers.
    pub fn run_into(&mut self, dims: &Dims, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), Error> {
        self.call(dims, inputs, outputs, None)
    }

    /// [`Session::run_into`] with a clock: how long each step took, and which thread did which part of it.
    ///
    /// # Errors
    /// As [`Session::run_into`], and when the code was compiled before there were profiles.
    pub fn run_profiled(&mut self, dims: &Dims, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<Profile, Error> {
        let recorder = Recorder::new(self.pool.clone());
        self.call(dims, inputs, outputs, Some(&recorder))?;
        recorder.finish(&self.model)
    }

    fn call(&mut self, dims: &Dims, inputs: &[&[u8]], outputs: &mut [&mut [u8]], recorder: Option<&Recorder>) -> Result<(), Error> {
        let model = &*self.model;
        let arena_bytes = model.arena_bytes(dims)?;
        check_count("inputs", model.inputs(), inputs.len())?;
        check_count("outputs", model.outputs(), outputs.len())?;
        let mut copies = Vec::new();
        let mut input_pointers: Vec<*const c_void> = Vec::with_capacity(inputs.len());
        for (port, data) in model.inputs().iter().zip(inputs) {
            check_bytes("input", port, dims, data.len())?;
            let aligned = data.as_ptr().addr().is_multiple_of(port.elem.align());
            input_pointers.push(if aligned {
                data.as_ptr().cast()
            } else {
                let mut copy = memory(|| format!("input `{}`", port.name), data.len())?;
                copy.copy_from_slice(data);
                let pointer = copy.as_ptr().cast();
                copies.push(copy);
                pointer
            });
        }
        let declared = model.output_bytes(dims)?;
        let mut output_pointers: Vec<*mut c_void> = Vec::with_capacity(outputs.len());
        for ((port, data), declared) in model.outputs().iter().zip(outputs.iter_mut()).zip(declared) {
            check_bytes("output", port, dims, data.len())?;
            if declared != data.len() {
                let actual = format!("{declared} by the code");
                return Err(buffer("output", port, format!("{} bytes by the manifest", data.len()), actual));
            }
            if !data.as_ptr().addr().is_multiple_of(port.elem.align()) {
                let expected = format!("an address that is a multiple of {}", port.elem.align());
                return Err(buffer("output", port, expected, format!("{:p}", data.as_ptr())));
            }
            output_pointers.push(data.as_mut_ptr().cast());
        }
        let arena = match &mut self.arena {
            Some(arena) if arena.len() >= arena_bytes => arena,
            // The old one is freed before there is a larger one.
            slot => {
                *slot = None;
                slot.insert(memory(|| "the arena".into(), arena_bytes)?)
            }
        };
        let mut context = model.context;
        let callback = match recorder {
            Some(recorder) => {
                context.flags |= CONTEXT_EVERY_STEP;
                Some(recorder.callback())
            }
            None => self.pool.as_deref().map(Pool::callback),
        };
        // SAFETY: the context belongs to the code, and both and the weights live in the model. The pointers
        // are of slices, in number, size and alignment as checked above; exclusive references keep
        // outputs and arena apart from everything else; `copies` lives until the end of this function,
        // and pool and recorder are borrowed for longer.
        let code = unsafe { model.code.run(&context, &dims.values, &input_pointers, &output_pointers, arena, callback) };
        match code {
            0 => Ok(()),
            code => Err(model.code.status_error(format!("{}_run", model.manifest().name), code)),
        }
    }
}

fn memory(what: impl Fn() -> String, bytes: usize) -> Result<Buffer, Error> {
    Buffer::new(bytes).map_err(|source| Error::Memory { what: what(), source })
}

fn check_count(what: &str, ports: &[Port], actual: usize) -> Result<(), Error> {
    if ports.len() == actual {
        return Ok(());
    }
    Err(Error::Buffer { what: what.into(), expected: format!("{} buffers", ports.len()), actual: actual.to_string() })
}

fn check_bytes(kind: &str, port: &Port, dims: &Dims, actual: usize) -> Result<(), Error> {
    let expected = port.bytes_at(dims)?;
    if expected == actual {
        return Ok(());
    }
    Err(buffer(kind, port, format!("{expected} bytes for {}{:?}", port.elem, port.shape_at(dims)?), actual.to_string()))
}

fn buffer(kind: &str, port: &Port, expected: String, actual: String) -> Error {
    Error::Buffer { what: format!("{kind} `{}`", port.name), expected, actual }
}
