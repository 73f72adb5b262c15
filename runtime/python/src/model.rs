//! A loaded model as a callable object.

use crate::array::{self, Array};
use crate::errors;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tfc::diag::list;
use tfc_runtime::manifest::Kernel;
use tfc_runtime::model::Port;
use tfc_runtime::profile::StepTime;
use tfc_runtime::{Dims, Error, LoadOptions, Pool, Session};

/// The name, the element type and the sizes of an input or an output.
#[pyclass(frozen, get_all, module = "tfc")]
pub struct TensorType {
    name: String,
    /// A `numpy.dtype`; `None` for elements of 4 bits.
    dtype: Option<Py<PyAny>>,
    /// A tuple of numbers, and of texts for sizes that are free.
    shape: Py<PyTuple>,
    text: String,
}

impl TensorType {
    fn of(py: Python<'_>, port: &Port) -> PyResult<TensorType> {
        let sizes = port.shape_text.iter().map(|text| match text.parse::<i64>() {
            Ok(size) => Ok(size.into_pyobject(py)?.into_any()),
            Err(_) => Ok(text.into_pyobject(py)?.into_any()),
        });
        let shape = PyTuple::new(py, sizes.collect::<PyResult<Vec<_>>>()?)?.unbind();
        Ok(TensorType { name: port.name.clone(), dtype: array::dtype(py, port.elem)?, shape, text: port.type_text() })
    }
}

#[pymethods]
impl TensorType {
    fn __repr__(&self) -> String {
        format!("{}: {}", self.name, self.text)
    }
}

/// A kernel in a profile.
#[pyclass(frozen, get_all, module = "tfc")]
pub struct Step {
    name: String,
    kind: String,
    summary: String,
    nodes: Vec<String>,
    seconds: f64,
    tasks: i64,
    threads: usize,
}

#[pymethods]
impl Step {
    fn __repr__(&self) -> String {
        format!("{}: {:.1} us, {}", self.name, self.seconds * 1e6, self.summary)
    }
}

/// A run with a clock.
#[pyclass(frozen, get_all, module = "tfc")]
pub struct Profile {
    outputs: Py<PyDict>,
    seconds: f64,
    steps: Vec<Py<Step>>,
}

/// A model that is ready to run.
#[pyclass(frozen, module = "tfc")]
pub struct Model {
    model: Arc<tfc_runtime::Model>,
    /// Threads that all calls share; `None` if a call has only its own.
    pool: Option<Arc<Pool>>,
    /// Sessions that no call uses, with their memory.
    idle: Mutex<Vec<Session>>,
    inputs: Vec<Py<TensorType>>,
    outputs: Vec<Py<TensorType>>,
    #[pyo3(get)]
    threads: usize,
}

/// Loads a bundle or a shared object.
#[pyfunction]
#[pyo3(signature = (path, *, threads = 0, cpu = None, weights = None, name = None))]
pub fn load(
    py: Python<'_>,
    path: PathBuf,
    threads: u16,
    cpu: Option<String>,
    weights: Option<PathBuf>,
    name: Option<String>,
) -> PyResult<Model> {
    let options = LoadOptions { cpu: cpu.or(LoadOptions::from_env().cpu), weights, name };
    let model = py.detach(|| tfc_runtime::Model::load_with(&path, &options)).map_err(|e| errors::of_loading(py, e))?;
    let pool = if threads == 1 { None } else { Some(Arc::new(Pool::new(threads.into())?)) };
    let types = |ports: &[Port]| ports.iter().map(|p| Py::new(py, TensorType::of(py, p)?)).collect::<PyResult<Vec<_>>>();
    let (inputs, outputs) = (types(model.inputs())?, types(model.outputs())?);
    let threads = pool.as_ref().map_or(1, |p| p.threads());
    Ok(Model { model: Arc::new(model), pool, idle: Mutex::default(), inputs, outputs, threads })
}

#[pymethods]
impl Model {
    #[pyo3(signature = (*args, dims = None, **named))]
    fn __call__<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        dims: Option<BTreeMap<String, i64>>,
        named: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.run(py, args, dims, named, |session, dims, inputs, outputs| session.run_into(dims, inputs, outputs)).map(|(o, ())| o)
    }

    #[pyo3(signature = (*args, dims = None, **named))]
    fn profile<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        dims: Option<BTreeMap<String, i64>>,
        named: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Profile> {
        let (outputs, profile) = self.run(py, args, dims, named, Session::run_profiled)?;
        let threads = |step: usize| profile.parts.iter().filter(|p| p.step == step).map(|p| p.thread).collect::<BTreeSet<_>>().len();
        let step = |(i, (kernel, time)): (usize, (&Kernel, &StepTime))| {
            let (name, kind, summary, nodes) = (kernel.name.clone(), kernel.kind.clone(), kernel.summary.clone(), kernel.nodes.clone());
            let (seconds, tasks) = (time.time().as_secs_f64(), time.tasks);
            Py::new(py, Step { name, kind, summary, nodes, seconds, tasks, threads: threads(i) })
        };
        let steps = self.model.manifest().kernels.iter().zip(&profile.steps).enumerate().map(step).collect::<PyResult<_>>()?;
        Ok(Profile { outputs: outputs.unbind(), seconds: profile.whole.as_secs_f64(), steps })
    }

    /// The inputs, in the order of positional arguments.
    #[getter]
    fn inputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.inputs)
    }

    /// The outputs, in the order of the dictionary that a call returns.
    #[getter]
    fn outputs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.outputs)
    }

    /// The free dimensions with their smallest and largest values.
    #[getter]
    fn dims<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dims = PyDict::new(py);
        self.model.symbols().iter().try_for_each(|s| dims.set_item(&s.name, (s.min, s.max)))?;
        Ok(dims)
    }

    #[getter]
    fn name(&self) -> &str {
        &self.model.manifest().name
    }

    #[getter]
    fn cpu_variant(&self) -> &str {
        self.model.cpu_variant()
    }

    #[getter]
    fn build_info(&self) -> String {
        self.model.build_info()
    }

    fn __repr__(&self) -> String {
        let types = |ports: &[Port]| ports.iter().map(|p| format!("{}: {}", p.name, p.type_text())).collect::<Vec<_>>().join(", ");
        format!("<tfc.Model {}({}) -> {}>", self.name(), types(self.model.inputs()), types(self.model.outputs()))
    }
}

impl Model {
    /// Runs the model on the arguments of a call.
    fn run<'py, R: Send>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        dims: Option<BTreeMap<String, i64>>,
        named: Option<&Bound<'py, PyDict>>,
        run: impl FnOnce(&mut Session, &Dims, &[&[u8]], &mut [&mut [u8]]) -> Result<R, Error> + Send,
    ) -> PyResult<(Bound<'py, PyDict>, R)> {
        let failed = |e| errors::of_call(py, e);
        let model = &*self.model;
        let given = self.arguments(args, named)?;
        let arrays = given.iter().zip(model.inputs()).map(|(given, port)| Array::input(given, port)).collect::<PyResult<Vec<_>>>()?;
        let shapes: Vec<(&str, &[usize])> = model.inputs().iter().map(|p| p.name.as_str()).zip(arrays.iter().map(Array::shape)).collect();
        let values: Vec<(&str, i64)> = dims.iter().flatten().map(|(name, value)| (name.as_str(), *value)).collect();
        let dims = model.dims_with(&shapes, &values).map_err(failed)?;

        let result = PyDict::new(py);
        let mut outputs = Vec::with_capacity(model.outputs().len());
        for (port, ty) in model.outputs().iter().zip(&self.outputs) {
            let Some(dtype) = &ty.get().dtype else {
                return Err(PyTypeError::new_err(format!("output `{}` is {}, which NumPy has not", port.name, port.type_text())));
            };
            let (array, memory) = Array::new(py, port, dtype, &port.shape_at(&dims).map_err(failed)?)?;
            result.set_item(&port.name, array)?;
            outputs.push(memory);
        }
        let inputs: Vec<&[u8]> = arrays.iter().map(Array::bytes).collect();
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Array::bytes_mut).collect();
        let mut session = self.session()?;
        let ran = py.detach(|| run(&mut session, &dims, &inputs, &mut slices));
        self.idle().push(session);
        Ok((result, ran.map_err(failed)?))
    }

    /// The arguments in the order of the inputs.
    fn arguments<'py>(&self, args: &Bound<'py, PyTuple>, named: Option<&Bound<'py, PyDict>>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let (py, inputs) = (args.py(), self.model.inputs());
        let known = || list(inputs.iter().map(|p| p.name.as_str()));
        if args.len() > inputs.len() {
            let (given, count) = (args.len(), inputs.len());
            return Err(PyTypeError::new_err(format!("{given} inputs are given, and the model has {count}: {}", known())));
        }
        let mut given: Vec<Option<Bound<PyAny>>> = args.iter().map(Some).collect();
        given.resize(inputs.len(), None);
        for (name, value) in named.into_iter().flatten() {
            let name: String = name.extract()?;
            let Some(i) = inputs.iter().position(|p| p.name == name) else {
                return Err(errors::of_call(py, Error::UnknownInput { name, known: known() }));
            };
            if given[i].replace(value).is_some() {
                return Err(errors::of_call(py, Error::DuplicateInput(name)));
            }
        }
        let missing = |i: usize| {
            let names = inputs.iter().zip(&given).filter(|(_, given)| given.is_some()).map(|(p, _)| p.name.as_str());
            let (name, expected) = (inputs[i].name.clone(), inputs[i].type_text());
            errors::of_call(py, Error::MissingInput { name, expected, given: list(names) })
        };
        (0..inputs.len()).map(|i| given[i].clone().ok_or_else(|| missing(i))).collect()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session for one call.
    fn session(&self) -> PyResult<Session> {
        if let Some(session) = self.idle().pop() {
            return Ok(session);
        }
        Ok(match &self.pool {
            Some(pool) => Session::with_pool(self.model.clone(), pool.clone()),
            None => Session::new(self.model.clone(), 1)?,
        })
    }
}
