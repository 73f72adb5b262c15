//! A loaded model: its code, its weights, and what its manifest says.

use crate::abi::{Context, Entry, Status};
use crate::buffer::Buffer;
use crate::code::{self, Code};
use crate::elem::Elem;
use crate::error::{Error, list};
use crate::expr::{Bindings, Expr};
use crate::manifest::{Manifest, TensorInfo, WeightsInfo};
pub use crate::solve::SymbolRange;
use crate::solve::{Condition, DimsError, Known, solve};
use crate::weights;
use memmap2::Mmap;
use std::any::Any;
use std::ffi::CString;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// The environment variable that [`LoadOptions::from_env`] reads the CPU variant from.
pub const CPU_VARIABLE: &str = "TFC_CPU";

/// How to load a model.
#[derive(Clone, Default, Debug)]
pub struct LoadOptions {
    /// The CPU variant to use; the best one that runs here if absent.
    pub cpu: Option<String>,
    /// The weights file; the one that the manifest names, beside the code, if absent.
    pub weights: Option<PathBuf>,
    /// The model's name in a shared object that holds several.
    pub name: Option<String>,
}

impl LoadOptions {
    /// The defaults, with the CPU variant that the environment variable `TFC_CPU` names; an empty or
    /// absent one leaves the choice to the model.
    pub fn from_env() -> LoadOptions {
        LoadOptions { cpu: std::env::var(CPU_VARIABLE).ok().filter(|v| !v.is_empty()), ..Default::default() }
    }
}

/// The weights of code in memory: a whole weights file, header included.
pub enum Weights {
    /// The code holds its weights, or the model has none.
    Embedded,
    /// A file, mapped or in memory that is aligned to [`crate::abi::ALIGN`].
    File(Box<dyn Deref<Target = [u8]> + Send + Sync>),
}

/// An input or an output of a model.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub elem: Elem,
    /// Its sizes over the symbols, outermost first.
    pub shape: Vec<Expr>,
    /// The texts of `shape`.
    pub shape_text: Vec<String>,
}

impl Port {
    fn of(info: &TensorInfo) -> Result<Port, String> {
        let elem = Elem::from_name(&info.elem).ok_or_else(|| format!("`{}` has the unknown element type `{}`", info.name, info.elem))?;
        let shape = info.shape.iter().map(|d| Expr::parse(d)).collect::<Result<_, _>>().map_err(|e| format!("`{}`: {e}", info.name))?;
        Ok(Port { name: info.name.clone(), elem, shape, shape_text: info.shape.clone() })
    }

    /// Its type in text form, such as `f32[batch, 64]`.
    pub fn type_text(&self) -> String {
        format!("{}[{}]", self.elem, self.shape_text.join(", "))
    }

    /// Its sizes at these dimensions.
    pub fn shape_at(&self, dims: &Dims) -> Result<Vec<usize>, Error> {
        let size = |(e, text): (&Expr, &String)| {
            let size = e.eval(&dims.bindings).and_then(|v| usize::try_from(v).ok());
            size.ok_or_else(|| DimsError::Size { what: format!("`{}`", self.name), text: text.clone() })
        };
        Ok(self.shape.iter().zip(&self.shape_text).map(size).collect::<Result<_, _>>()?)
    }

    /// Its bytes at these dimensions.
    pub fn bytes_at(&self, dims: &Dims) -> Result<usize, Error> {
        let count = self.shape_at(dims)?.into_iter().try_fold(1usize, usize::checked_mul);
        let bytes = count.and_then(|c| self.elem.bytes(c)).filter(|&b| isize::try_from(b).is_ok());
        Ok(bytes.ok_or_else(|| DimsError::Size { what: format!("`{}`", self.name), text: self.shape_text.join("*") })?)
    }
}

/// Values for the symbols of a model that are in their ranges and fulfil its conditions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dims {
    /// In the order of the manifest.
    pub(crate) values: Vec<i64>,
    bindings: Bindings,
}

impl Dims {
    /// The value of the symbol `name`.
    pub fn get(&self, name: &str) -> Option<i64> {
        self.bindings.get(name).copied()
    }

    /// The values, in the order of the model's symbols.
    pub fn values(&self) -> &[i64] {
        &self.values
    }
}

/// A model that is ready to run. It is never changed, so any number of [`crate::session::Session`]s
/// may use it at the same time.
pub struct Model {
    pub(crate) code: Code,
    pub(crate) context: Context,
    manifest: Manifest,
    symbols: Vec<SymbolRange>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    conditions: Vec<Condition>,
    weights: Weights,
    cpu_variant: String,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({} from {}, {})", self.manifest.name, self.code.origin, self.cpu_variant)
    }
}

impl Model {
    /// Loads a model by [`LoadOptions::from_env`].
    pub fn load(path: impl AsRef<Path>) -> Result<Model, Error> {
        Model::load_with(path, &LoadOptions::from_env())
    }

    /// Loads the bundle or the shared object at `path`.
    ///
    /// In a shared object the model is found by its exported symbol `NAME_entry`: the one of
    /// `options.name`, or the only one, or the one that the file is named after. The weights are mapped,
    /// not read: only their size and hash in the header are compared with the code.
    ///
    /// Loading runs code, so load only files that you trust.
    pub fn load_with(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Model, Error> {
        let path = path.as_ref();
        let object = if path.is_dir() { object_in_bundle(path)? } else { path.to_owned() };
        let (code, manifest) = code::open(&object, options.name.as_deref())?;
        let weights = match &manifest.weights {
            Some(w) if !code.embedded_weights => {
                let file = options.weights.clone().map_or_else(|| beside(&object, w, &code.origin), Ok)?;
                let map: Mmap = code::map_file(&file)?;
                check_weights(&map, w, format!("`{}`", file.display()))?;
                Weights::File(Box::new(map))
            }
            _ if options.weights.is_some() => {
                return Err(Error::WeightsUse(format!("{} holds its own weights: give no weights file", code.origin)));
            }
            _ => Weights::Embedded,
        };
        Model::new(code, manifest, weights, options.cpu.as_deref())
    }

    /// A model whose code is in memory: compiled in this process or linked to the program.
    ///
    /// # Safety
    ///
    /// `entry` points to the entry of code that `tfc` compiled, which stays valid while `owner` lives.
    #[allow(unsafe_code, reason = "only the caller knows where the pointer comes from")]
    pub unsafe fn from_entry(entry: *const Entry, owner: Box<dyn Any + Send>, weights: Weights, cpu: Option<&str>) -> Result<Model, Error> {
        // SAFETY: as the caller promises.
        let (code, manifest) = unsafe { code::from_entry(entry, owner) }?;
        match (&weights, &manifest.weights) {
            (Weights::File(bytes), Some(w)) if !code.embedded_weights => check_weights(bytes, w, "the weights".into())?,
            (Weights::Embedded, Some(_)) if !code.embedded_weights => {
                return Err(Error::WeightsUse(format!("{} needs the contents of its weights file", code.origin)));
            }
            (Weights::File(_), _) => return Err(Error::WeightsUse(format!("{} holds its own weights: give no weights file", code.origin))),
            (Weights::Embedded, _) => {}
        }
        Model::new(code, manifest, weights, cpu)
    }

    fn new(code: Code, manifest: Manifest, weights: Weights, cpu: Option<&str>) -> Result<Model, Error> {
        let incompatible = |reason: String| Error::Incompatible { origin: code.origin.clone(), reason };
        let counts = [manifest.symbols.len(), manifest.inputs.len(), manifest.outputs.len()];
        if counts != code.counts.map(|c| c as usize) {
            return Err(incompatible(format!("its entry says {:?} symbols, inputs and outputs, and its manifest {counts:?}", code.counts)));
        }
        let ports = |infos: &[TensorInfo]| infos.iter().map(Port::of).collect::<Result<Vec<_>, _>>().map_err(incompatible);
        let (inputs, outputs) = (ports(&manifest.inputs)?, ports(&manifest.outputs)?);
        let range = |s: &crate::manifest::Symbol| SymbolRange { name: s.name.clone(), min: s.min, max: s.max, reason: s.reason.clone() };
        let symbols = manifest.symbols.iter().map(range).collect();
        let condition = |c: &crate::manifest::Check| {
            Ok(Condition {
                left: Expr::parse(&c.left)?,
                left_text: c.left.clone(),
                right: Expr::parse(&c.right)?,
                right_text: c.right.clone(),
                reason: c.reason.clone(),
            })
        };
        let conditions = manifest.checks.iter().map(condition).collect::<Result<_, crate::expr::ExprError>>();
        let conditions = conditions.map_err(|e| incompatible(e.to_string()))?;

        let bytes: Option<&[u8]> = match &weights {
            Weights::Embedded => None,
            Weights::File(bytes) => Some(bytes),
        };
        let variant = cpu.map(CString::new).transpose().map_err(|_| incompatible("the name of a CPU variant has no zero byte".into()))?;
        let context = code.init(bytes, variant.as_deref()).map_err(|status| match (Status::from_code(status), cpu) {
            (Some(status @ (Status::CpuUnknown | Status::CpuNotRunnable)), Some(wanted)) => {
                let available = list(manifest.cpu_variants.iter().map(|v| v.name.as_str()));
                Error::CpuVariant { wanted: wanted.into(), status, available }
            }
            _ => code.status_error(format!("{}_init", manifest.name), status),
        })?;
        let cpu_variant = code.cpu_variant(&context);
        Ok(Model { code, context, manifest, symbols, inputs, outputs, conditions, weights, cpu_variant })
    }

    /// What the compiler says about the model.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its inputs, in the order of the ABI.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// Its outputs, in the order of the ABI.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Its free dimensions, in the order of the ABI.
    pub fn symbols(&self) -> &[SymbolRange] {
        &self.symbols
    }

    /// The name of the CPU variant in use.
    pub fn cpu_variant(&self) -> &str {
        &self.cpu_variant
    }

    /// Compiler, target and options in one line.
    pub fn build_info(&self) -> String {
        self.code.build_info()
    }

    /// Reads all of the weights and compares their hash. Nothing to do for embedded ones, which are as
    /// trustworthy as the code.
    pub fn verify_weights(&self) -> Result<(), Error> {
        match &self.weights {
            Weights::Embedded => Ok(()),
            Weights::File(bytes) => match weights::verify_contents(bytes) {
                Ok(_) => Ok(()),
                Err(source) => Err(Error::Weights { origin: format!("the weights file of {}", self.code.origin), source }),
            },
        }
    }

    /// The dimensions that have these values; every symbol must be given.
    pub fn dims(&self, values: &[(&str, i64)]) -> Result<Dims, Error> {
        self.dims_with(&[], values)
    }

    /// The dimensions at which the inputs have these shapes. Every input must be given.
    pub fn dims_from_shapes(&self, shapes: &[(&str, &[usize])]) -> Result<Dims, Error> {
        self.match_names(shapes.iter().map(|(name, _)| *name))?;
        self.dims_with(shapes, &[])
    }

    /// The dimensions that follow from the shapes of some inputs and from values of some symbols. Shapes
    /// are solved for symbols that they are linear in; everything else is verified.
    pub fn dims_with(&self, shapes: &[(&str, &[usize])], values: &[(&str, i64)]) -> Result<Dims, Error> {
        let mut known = Vec::new();
        for (name, sizes) in shapes {
            let Some(port) = self.inputs.iter().find(|p| p.name == *name) else {
                return Err(self.unknown_input(name));
            };
            let fixed = |e: &Expr| matches!(e, Expr::Number(_));
            let fits = |(e, size): (&Expr, &usize)| !fixed(e) || e.eval(&Bindings::new()) == i64::try_from(*size).ok();
            if port.shape.len() != sizes.len() || !port.shape.iter().zip(*sizes).all(fits) {
                let actual = format!("{}{sizes:?}", port.elem);
                return Err(Error::InputType { name: port.name.clone(), expected: port.type_text(), actual });
            }
            for (axis, ((expr, text), &size)) in port.shape.iter().zip(&port.shape_text).zip(*sizes).enumerate() {
                let size = i64::try_from(size).unwrap_or(i64::MAX);
                known.push(Known { expr, text, size, origin: format!("input `{name}` (axis {axis})") });
            }
        }
        let bindings = solve(&self.symbols, &known, values, &self.conditions)?;
        Ok(Dims { values: self.symbols.iter().map(|s| bindings[&s.name]).collect(), bindings })
    }

    /// Each input of the model is in `names` once, and nothing else is.
    pub(crate) fn match_names<'a>(&self, names: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let names: Vec<&str> = names.collect();
        for (i, name) in names.iter().enumerate() {
            if !self.inputs.iter().any(|p| p.name == *name) {
                return Err(self.unknown_input(name));
            }
            if names[..i].contains(name) {
                return Err(Error::DuplicateInput((*name).into()));
            }
        }
        match self.inputs.iter().find(|p| !names.contains(&p.name.as_str())) {
            Some(p) => Err(Error::MissingInput { name: p.name.clone(), expected: p.type_text(), given: list(names) }),
            None => Ok(()),
        }
    }

    fn unknown_input(&self, name: &str) -> Error {
        Error::UnknownInput { name: name.into(), known: list(self.inputs.iter().map(|p| p.name.as_str())) }
    }

    /// Bytes of the arena at these dimensions.
    pub fn arena_bytes(&self, dims: &Dims) -> Result<usize, Error> {
        self.check_dims(dims)?;
        match self.code.arena_bytes(&dims.values) {
            0 => Err(self.code.status_error(format!("{}_arena_bytes", self.manifest.name), Status::DimensionRange.code())),
            bytes => Ok(bytes),
        }
    }

    /// Bytes of each output at these dimensions.
    pub fn output_bytes(&self, dims: &Dims) -> Result<Vec<usize>, Error> {
        self.check_dims(dims)?;
        self.code.output_bytes(&dims.values).map_err(|code| self.code.status_error(format!("{}_output_bytes", self.manifest.name), code))
    }

    /// The dimensions are ones of this model.
    pub(crate) fn check_dims(&self, dims: &Dims) -> Result<(), Error> {
        let own =
            dims.values.len() == self.symbols.len() && self.symbols.iter().zip(&dims.values).all(|(s, v)| dims.get(&s.name) == Some(*v));
        if own {
            return Ok(());
        }
        Err(Error::Buffer {
            what: "dimensions".into(),
            expected: format!("values for {}", list(self.symbols.iter().map(|s| s.name.as_str()))),
            actual: format!("values for {}", list(dims.bindings.keys().map(String::as_str))),
        })
    }
}

impl From<Buffer> for Weights {
    fn from(file: Buffer) -> Weights {
        Weights::File(Box::new(file))
    }
}

/// The header of `file` is the one that the code was compiled with.
fn check_weights(file: &[u8], expected: &WeightsInfo, origin: String) -> Result<(), Error> {
    let header = weights::parse_header(file).map_err(|source| Error::Weights { origin: origin.clone(), source })?;
    let expected_hash = expected.hash128().unwrap_or_default();
    if header.data_bytes != expected.data_bytes || header.hash != expected_hash {
        return Err(Error::WeightsMismatch {
            origin,
            expected_bytes: expected.data_bytes,
            expected_hash,
            actual_bytes: header.data_bytes,
            actual_hash: header.hash,
        });
    }
    Ok(())
}

/// The weights file beside the object that needs it.
fn beside(object: &Path, weights: &WeightsInfo, origin: &str) -> Result<PathBuf, Error> {
    let name = Path::new(&weights.file);
    // A name with folders could lead anywhere.
    if name.file_name() != Some(name.as_os_str()) {
        let reason = format!("its manifest names the weights file `{}`, which is not a plain file name", weights.file);
        return Err(Error::Incompatible { origin: origin.into(), reason });
    }
    Ok(object.with_file_name(name))
}

/// The shared object in a bundle: the only `.so`, or the one named like the folder.
fn object_in_bundle(folder: &Path) -> Result<PathBuf, Error> {
    let io = |source| Error::Io { action: "list", path: folder.to_owned(), source };
    let not_loadable = |reason| Error::NotLoadable { path: folder.to_owned(), reason };
    let mut objects = Vec::new();
    let mut static_only = false;
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("so") => objects.push(path),
            Some("a") => static_only = true,
            _ => {}
        }
    }
    objects.sort();
    let name = |p: &PathBuf| p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    if objects.len() > 1
        && let Some(own) = folder.file_name()
        && let Some(i) = objects.iter().position(|p| p.file_stem() == Some(own))
    {
        return Ok(objects.swap_remove(i));
    }
    match objects.as_slice() {
        [only] => Ok(only.clone()),
        [] if static_only => {
            Err(not_loadable("this bundle has no .so, since it was made without a system linker: link its .a with `cc -shared`".into()))
        }
        [] => Err(not_loadable("it is not a bundle: it has no .so".into())),
        several => {
            let names: Vec<String> = several.iter().map(name).collect();
            Err(not_loadable(format!("it has several shared objects, so name one of them: {}", list(names.iter().map(String::as_str)))))
        }
    }
}
