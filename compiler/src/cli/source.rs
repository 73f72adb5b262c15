//! What `run`, `bench` and `verify` work on: a model that is compiled in memory, or an artifact.

use super::console::Console;
use super::options::{Level, Shapes, driver_options};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use tfc::diag::{Diagnostic, Result};
use tfc::driver;
use tfc_ir::graph::Graph;
use tfc_runtime::Model;

/// A model that is ready to run.
pub struct Source {
    /// Its code.
    pub model: Model,
    /// The graph as it was imported; `None` for artifacts.
    pub graph: Option<Graph>,
    /// Shapes by input that are still to be considered: an import has used them up.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Values of dimensions, likewise.
    pub dims: BTreeMap<String, i64>,
}

/// Whether a path is that of an artifact: a folder, or a file with machine code.
pub fn is_artifact(path: &Path) -> bool {
    const CODE: [&[u8]; 2] = [b"\x7fELF", b"!<ar"];
    let mut magic = [0; 4];
    path.is_dir()
        || path.extension().is_some_and(|e| e == "so" || e == "o" || e == "a")
        || std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && CODE.contains(&&magic[..])
}

/// Opens an artifact, or compiles a model in memory. `keep` asks for the graph as it was imported.
///
/// # Errors
/// When the file cannot be used; when the options do not fit it.
pub fn open(path: &Path, level: &Level, shapes: &Shapes, keep: bool, console: &Console) -> Result<Source> {
    if is_artifact(path) {
        if level.passes.is_some() {
            return Err(Diagnostic::usage("--passes is for models, and this is compiled already").at(format!("`{}`", path.display())));
        }
        let (shapes, dims) = shapes.fixed()?;
        return Ok(Source { model: Model::load(path)?, graph: None, shapes, dims });
    }
    let mut options = driver_options(level, shapes)?;
    let (given, mut dims) = (options.import.shapes.clone(), BTreeMap::new());
    if driver::is_tir(path) {
        // Symbols of a graph in text form stay; sizes are for the inputs only.
        dims = shapes.fixed()?.1;
        options.import = Default::default();
    }
    console.detail(&format!("compiling {} in memory", path.display()));
    let graph = driver::load(path, &options.import)?.graph;
    let kept = keep.then(|| graph.clone());
    let model = driver::jit(graph, &options)?;
    console.detail(&format!("CPU variant {}", model.cpu_variant()));
    Ok(Source { model, graph: kept, shapes: given, dims })
}
