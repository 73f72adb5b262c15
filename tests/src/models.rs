//! Models with reference answers: where they are, their inputs and outputs, and comparison.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tfc::npz::Archive;
use tfc_ir::dim::Bindings;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;

/// The folder of models with reference answers: `TFC_ZOO`, or `shared/zoo` beside the workspace.
/// Says loudly when there is none.
pub fn zoo() -> Option<PathBuf> {
    let path = match std::env::var_os("TFC_ZOO") {
        Some(p) => PathBuf::from(p),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/zoo"),
    };
    if path.is_dir() {
        return Some(path);
    }
    crate::skip::skipped(format_args!("there are no models in {} (set TFC_ZOO)", path.display()));
    None
}

/// The subfolders of a folder, sorted by name.
pub fn folders(root: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(root).expect("a folder").map(|e| e.expect("an entry").path()).filter(|p| p.is_dir()).collect();
    all.sort();
    all
}

/// Tensors of a `.npz` file by name.
pub fn read_npz(path: &Path) -> BTreeMap<String, Tensor> {
    let mut archive = Archive::open(path).expect("an archive");
    let names: Vec<String> = archive.members().iter().map(|m| m.name.clone()).collect();
    names.into_iter().map(|name| (name.clone(), archive.tensor(&name).expect("a tensor"))).collect()
}

/// The values that the symbols of a graph have for these inputs.
pub fn bind(g: &Graph, inputs: &[Tensor]) -> Bindings {
    let mut b = Bindings::new();
    for (&v, t) in g.inputs().iter().zip(inputs) {
        for (d, &n) in g.ty(v).shape.0.iter().zip(t.sizes()) {
            if let Some(s) = d.as_symbol() {
                b.insert(s.clone(), n as i64);
            }
        }
    }
    b
}

/// `‖found - expected‖ / ‖expected‖`; elements that are equal (infinities, NaNs too) count as 0.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in found.iter().zip(expected.iter()) {
        let (a, b) = (a.to_f64(), b.to_f64());
        if a == b || a.is_nan() && b.is_nan() {
            norm += if b.is_finite() { b * b } else { 0.0 };
            continue;
        }
        difference += (a - b) * (a - b);
        norm += b * b;
    }
    if difference == 0.0 { 0.0 } else { (difference / norm.max(1e-30)).sqrt() }
}

/// Compares what `run` computes with the answers in the folder of a model, for every set of inputs there:
/// types equal, no relative error above `tolerance`. Returns the largest error.
///
/// # Errors
/// What differs, or what is missing.
pub fn check_answers(
    folder: &Path,
    graph: &Graph,
    tolerance: f64,
    mut run: impl FnMut(&[Tensor]) -> Result<Vec<Tensor>, String>,
) -> Result<f64, String> {
    let mut worst = 0.0f64;
    for suffix in ["", "_1", "_2"] {
        let (inputs, outputs) = (folder.join(format!("inputs{suffix}.npz")), folder.join(format!("outputs{suffix}.npz")));
        if !inputs.exists() {
            continue;
        }
        let (mut given, expected) = (read_npz(&inputs), read_npz(&outputs));
        let mut input = |v| {
            let name = graph.value(v).name.as_deref().unwrap_or_default();
            given.remove(name).ok_or_else(|| format!("no input {name}"))
        };
        let inputs: Vec<Tensor> = graph.inputs().iter().map(|&v| input(v)).collect::<Result<_, _>>()?;
        for (o, t) in graph.outputs().iter().zip(run(&inputs).map_err(|e| format!("inputs{suffix}: {e}"))?) {
            let e = expected.get(&*o.name).ok_or_else(|| format!("no output {}", o.name))?;
            if (t.elem(), t.sizes()) != (e.elem(), e.sizes()) {
                return Err(format!("inputs{suffix}: {} is {}, not {}", o.name, t.ty(), e.ty()));
            }
            let error = relative_error(&t, e);
            if error.is_nan() || error > tolerance {
                return Err(format!("inputs{suffix}: {} is off by {error:.3e}", o.name));
            }
            worst = worst.max(error);
        }
    }
    Ok(worst)
}
