//! Inputs for a model: read from an archive and matched with what the model wants, or made up.

use crate::diag::{Diagnostic, Result, list, table};
use crate::memory;
use crate::npz::{self, Archive, NpzError};
use std::collections::BTreeMap;
use std::path::Path;
use tfc_ir::dim::{Bindings, Symbol};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_runtime::expr::Expr;
use tfc_runtime::model::Port;
use tfc_runtime::{Dims, Model, Session, View};

impl From<NpzError> for Box<Diagnostic> {
    fn from(e: NpzError) -> Self {
        let d = Diagnostic::failed(e.reason).at(format!("`{}`", e.path.display()));
        if e.member.is_empty() { d } else { d.at(format!("member `{}`", e.member)) }
    }
}

/// The element type of the IR that is this one of the runtime.
pub fn elem_of(elem: tfc_runtime::Elem) -> Elem {
    Elem::from_name(elem.name()).expect("both lists have the same names")
}

/// A tensor as the runtime takes it.
pub fn view(t: &Tensor) -> View<'_> {
    let elem = tfc_runtime::Elem::from_name(t.elem().name()).expect("both lists have the same names");
    View { elem, shape: t.sizes(), data: t.bytes() }
}

/// Reads the tensors of an archive that belong to `ports`, in their order. `what` is `input` or `output`.
///
/// # Errors
/// Everything that does not match, at once: members that are missing or that the model does not have,
/// element types, numbers of axes, and sizes that the model fixes. Sizes that are symbols are the
/// runtime's matter.
pub fn read(path: &Path, ports: &[Port], what: &str) -> Result<Vec<Tensor>> {
    let mut archive = Archive::open(path)?;
    let faults = mismatches(&archive, ports, what);
    if !faults.is_empty() {
        let d = Diagnostic::failed(format!("the {what}s do not fit the model")).at(format!("`{}`", path.display()));
        let names = list(ports.iter().map(|p| p.name.as_str()));
        return Err(d.note(table(&faults)).help(format!("the model's {what}s are: {names}")));
    }
    Ok(ports.iter().map(|p| archive.tensor_as(&p.name, elem_of(p.elem))).collect::<std::result::Result<_, _>>()?)
}

/// An error of the runtime about inputs that come from `path`.
pub fn at(path: Option<&Path>, e: tfc_runtime::Error) -> Box<Diagnostic> {
    let d = Box::<Diagnostic>::from(e);
    match path {
        Some(path) => d.at(format!("`{}`", path.display())),
        None => d,
    }
}

/// What the symbols of a model are at inputs in its order. `symbols` are those that do not follow from the inputs.
///
/// # Errors
/// When the shapes do not fit the model, or leave a symbol open.
pub fn bindings(model: &Model, tensors: &[Tensor], symbols: &[(&str, i64)]) -> std::result::Result<Bindings, tfc_runtime::Error> {
    let shapes: Vec<(&str, &[usize])> = model.inputs().iter().map(|p| p.name.as_str()).zip(tensors.iter().map(|t| t.sizes())).collect();
    let dims = model.dims_with(&shapes, symbols)?;
    Ok(model.symbols().iter().zip(dims.values()).map(|(s, v)| (Symbol::new(&s.name), *v)).collect())
}

/// Runs a model once on tensors in the order of its inputs; the outputs are in its order too. `symbols` are sizes that do not follow
/// from the inputs.
///
/// # Errors
/// When the model refuses them.
pub fn run(session: &mut Session, tensors: &[Tensor], symbols: &[(&str, i64)]) -> Result<Vec<Tensor>> {
    let model = session.model().clone();
    let named: Vec<(&str, View)> = model.inputs().iter().map(|p| p.name.as_str()).zip(tensors.iter().map(view)).collect();
    let outputs = session.run_with(&named, symbols)?;
    let tensor = |o: tfc_runtime::Output| Tensor::new(elem_of(o.elem), o.shape, npz::owned(o.data));
    Ok(outputs.into_iter().map(|o| tensor(o).expect("the runtime gives whole tensors")).collect())
}

fn mismatches(archive: &Archive, ports: &[Port], what: &str) -> Vec<[String; 3]> {
    let mut faults = vec![];
    for port in ports {
        let name = format!("{what} `{}`", port.name);
        let wanted = format!("the model wants {}", port.type_text());
        let Some(member) = archive.member(&port.name) else {
            faults.push([name, wanted, "the archive has no such member".into()]);
            continue;
        };
        let header = &member.header;
        let fixed = |(e, &size): (&Expr, &usize)| !matches!(e, Expr::Number(n) if *n != size as i128);
        let fits =
            header.can_be(elem_of(port.elem)) && header.shape.len() == port.shape.len() && port.shape.iter().zip(&header.shape).all(fixed);
        if !fits {
            let none = if npz::has_type(elem_of(port.elem)) { String::new() } else { format!(" (.npy files have no {})", port.elem) };
            faults.push([name, format!("{wanted}{none}"), format!("the archive has {}", header.type_text())]);
        }
    }
    for member in archive.members() {
        if !ports.iter().any(|p| p.name == member.name) {
            let name = format!("{what} `{}`", member.name);
            faults.push([name, format!("the model has no such {what}"), format!("the archive has {}", member.header.type_text())]);
        }
    }
    faults
}

/// Inputs that are made up: floats from a normal distribution, integers 1, booleans true. Dimensions
/// follow from `shapes` and `dims`.
///
/// # Errors
/// When these contradict the model, or leave a dimension open; the error names all that are open. When there is no memory for
/// the model at these sizes.
pub fn synthetic(model: &Model, shapes: &BTreeMap<String, Vec<i64>>, dims: &BTreeMap<String, i64>) -> Result<Vec<Tensor>> {
    let dims = dims_of(model, shapes, dims)?;
    fits_memory(model, &dims)?;
    let mut random = Normal::new(0x7fc);
    let mut inputs = vec![];
    for port in model.inputs() {
        let sizes = port.shape_at(&dims)?;
        let bytes = port.bytes_at(&dims)?;
        // Where the system does not tell how much memory there is, it may still refuse.
        if Vec::<u8>::new().try_reserve_exact(bytes).is_err() {
            return Err(Diagnostic::failed(format!("cannot allocate the {bytes} bytes of input `{}`", port.name)));
        }
        let elem = elem_of(port.elem);
        inputs.push(Tensor::build(elem, &sizes, |_| if elem.is_float() { Scalar::Float(random.next()) } else { Scalar::Int(1) }));
    }
    Ok(inputs)
}

/// Whether the machine has the memory that a model takes at some dimensions.
///
/// # Errors
/// When it has not, as far as the system tells; when sizes leave what can be addressed.
pub fn fits_memory(model: &Model, dims: &Dims) -> Result<()> {
    let bytes = |ports: &[Port]| -> Result<u128> { ports.iter().try_fold(0u128, |sum, p| Ok(sum + p.bytes_at(dims)? as u128)) };
    let (inputs, outputs, arena) = (bytes(model.inputs())?, bytes(model.outputs())?, model.arena_bytes(dims)? as u128);
    let needed = inputs + outputs + arena;
    match memory::available() {
        Some(there) if needed > there.into() => {
            let sizes: String = model.symbols().iter().zip(dims.values()).map(|(s, v)| format!(", `{}` = {v}", s.name)).collect();
            let mib = |n: u128| format!("{} MiB", n.div_ceil(1 << 20));
            Err(Diagnostic::failed(format!(
                "the model needs {} of memory at these sizes, and there are {}",
                mib(needed),
                mib(there.into())
            ))
            .note(format!("inputs {}, outputs {}, arena {}{sizes}", mib(inputs), mib(outputs), mib(arena)))
            .help("choose smaller sizes with --dim or --shape"))
        }
        _ => Ok(()),
    }
}

fn dims_of(model: &Model, shapes: &BTreeMap<String, Vec<i64>>, dims: &BTreeMap<String, i64>) -> Result<Dims> {
    let mut sizes: Vec<(&str, Vec<usize>)> = vec![];
    for (name, shape) in shapes {
        let shape = shape.iter().map(|&n| usize::try_from(n)).collect::<std::result::Result<Vec<_>, _>>();
        sizes.push((name, shape.map_err(|_| Diagnostic::usage(format!("the shape of `{name}` has a negative size")))?));
    }
    let sizes: Vec<(&str, &[usize])> = sizes.iter().map(|(n, s)| (*n, &s[..])).collect();
    let values: Vec<(&str, i64)> = dims.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    model.dims_with(&sizes, &values).map_err(|e| match &e {
        tfc_runtime::Error::Dims(d) if matches!(**d, tfc_runtime::solve::DimsError::Undetermined { .. }) => {
            let rows: Vec<[String; 2]> = model.inputs().iter().map(|p| [format!("input `{}`", p.name), p.type_text()]).collect();
            let open = model.symbols().iter().map(|s| s.name.as_str()).filter(|s| !dims.contains_key(*s));
            Diagnostic::failed("the sizes of the inputs are not known")
                .note(format!("free dimensions: {}", list(open)))
                .note(table(&rows))
                .help(help_for(model))
        }
        _ => e.into(),
    })
}

/// An example of the options that fix every free dimension.
fn help_for(model: &Model) -> String {
    let dims: Vec<String> = model.symbols().iter().map(|s| format!("{}={}", s.name, 128.clamp(s.min, s.max))).collect();
    format!("give inputs with --inputs, shapes with --shape NAME=1x128, or dimensions: --dim {}", dims.join(","))
}

/// Normally distributed numbers from a seed (SplitMix64 and the method of Box and Muller).
struct Normal {
    state: u64,
    spare: Option<f64>,
}

impl Normal {
    fn new(seed: u64) -> Normal {
        Normal { state: seed, spare: None }
    }

    /// Uniform in (0, 1].
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + 0.5f64.powi(54)
    }

    fn next(&mut self) -> f64 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let angle = std::f64::consts::TAU * self.uniform();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal_and_repeatable() {
        let mut random = Normal::new(1);
        let xs: Vec<f64> = (0..20_000).map(|_| random.next()).collect();
        let mean = xs.iter().sum::<f64>() / xs.len() as f64;
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / xs.len() as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        assert_eq!(Normal::new(1).next(), xs[0]);
    }
}
