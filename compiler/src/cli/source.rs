//! What `run`, `bench` and `verify` work on: a model that is compiled in memory, or an artifact.

use super::console::Console;
use super::options::{Fixed, Level, Shapes, driver_options};
use std::collections::BTreeMap;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use tfc::diag::{Diagnostic, Result};
use tfc::kernel::Program;
use tfc::onnx::ImportOptions;
use tfc::{driver, inputs};
use tfc_ir::dim::Bindings;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_runtime::Model;

/// A model that is ready to run.
pub struct Source {
    /// Its code.
    pub model: Model,
    /// The graph to compare with, as [`Keep`] says; `None` for artifacts.
    pub graph: Option<Graph>,
    /// Shapes of inputs and sizes of free dimensions, as far as the options give them.
    pub sizes: Fixed,
}

/// Which graph is kept for comparisons.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// None.
    Nothing,
    /// What the code should compute: the graph as it was imported, or, if it is quantized, behind the passes, because what is
    /// rounded to integers depends on them.
    Computed,
    /// The graph as it was imported.
    Imported,
}

/// Whether a path is that of an artifact: a folder, or a file with machine code.
pub fn is_artifact(path: &Path) -> bool {
    const CODE: [&[u8]; 2] = [b"\x7fELF", b"!<ar"];
    let mut magic = [0; 4];
    path.is_dir()
        || path.extension().is_some_and(|e| e == "so" || e == "o" || e == "a")
        || tfc_runtime::file::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && CODE.contains(&&magic[..])
}

/// Opens an artifact, or compiles a model in memory.
///
/// # Errors
/// When the file cannot be used; when the options do not fit it.
pub fn open(path: &Path, level: &Level, shapes: &Shapes, keep: Keep, console: &Console) -> Result<Source> {
    if is_artifact(path) {
        let option = match () {
            () if level.passes.is_some() => Some("--passes"),
            () if level.quantization.is_given() => Some("--quant"),
            () => None,
        };
        if let Some(option) = option {
            return Err(
                Diagnostic::usage(format!("{option} is for models, and this is compiled already")).at(format!("`{}`", path.display()))
            );
        }
        let model = Model::load(path)?;
        console.detail(&format!("CPU variant {}", model.cpu_variant()));
        return Ok(Source { model, graph: None, sizes: shapes.fixed()? });
    }
    let (graph, options, sizes) = load(path, level, shapes, console)?;
    let imported = match keep {
        Keep::Nothing => None,
        Keep::Computed if options.quant.is_some() => None,
        Keep::Computed | Keep::Imported => Some(graph.clone()),
    };
    let optimized = driver::optimize(graph, &options, |_| Ok(ControlFlow::Continue(())))?;
    console.notes(&optimized.notes);
    level.quantization.note(&optimized.ledger, false, console);
    let model = driver::jit(&optimized)?;
    console.detail(&format!("CPU variant {}", model.cpu_variant()));
    let graph = imported.or((keep == Keep::Computed).then_some(optimized.graph));
    Ok(Source { model, graph, sizes })
}

/// The inputs of a model from an archive, with the sizes at which they have their shapes. `sizes` are those that do not follow from them.
///
/// # Errors
/// When the archive cannot be read or does not fit the model.
pub fn inputs(path: &Path, model: &Model, sizes: &Fixed) -> Result<(Vec<Tensor>, Bindings)> {
    let tensors = inputs::read(path, model.inputs(), "input")?;
    let bindings = inputs::bindings(model, &tensors, &sizes.symbols()).map_err(|e| inputs::at(Some(path), e))?;
    Ok((tensors, bindings))
}

/// Compiles a model up to the program.
///
/// # Errors
/// As [`open`].
pub fn program(path: &Path, level: &Level, shapes: &Shapes, console: &Console) -> Result<(Program, Fixed)> {
    let (graph, options, sizes) = load(path, level, shapes, console)?;
    let graph = driver::optimize(graph, &options, |_| Ok(ControlFlow::Continue(())))?;
    Ok((driver::lower(&graph)?, sizes))
}

/// Imports a model. The sizes are what the import leaves open.
///
/// # Errors
/// When the file cannot be used; when the options do not fit it.
pub fn load(path: &Path, level: &Level, shapes: &Shapes, console: &Console) -> Result<(Graph, driver::Options, Fixed)> {
    let mut options = driver_options(level, shapes, console)?;
    let sizes = if driver::is_tir(path) {
        // Symbols of a graph in text form stay; sizes are for the inputs only.
        options.import = ImportOptions::default();
        shapes.fixed()?
    } else {
        // The import leaves no symbol of those that are fixed.
        Fixed { shapes: options.import.shapes.clone(), dims: BTreeMap::new() }
    };
    console.detail(&format!("compiling {} in memory", path.display()));
    let loaded = driver::load(path, &options.import)?;
    console.warnings(&loaded.warnings);
    Ok((loaded.graph, options, sizes))
}
