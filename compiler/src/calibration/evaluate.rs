//! Evaluation of graphs on samples, by code that is compiled for this machine.

use super::data::Batch;
use crate::diag::{Diagnostic, Result};
use crate::driver::{self, Optimized};
use crate::emit::clif::target::Cpu;
use crate::inputs;
use std::ops::ControlFlow;
use std::sync::Arc;
use target_lexicon::Triple;
use tfc_ir::dim::Bindings;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_passes::calibrate::{Oracle, OracleError};
use tfc_passes::{Context, Pass, Ran, run_pipeline};
use tfc_runtime::Session;

/// Who is told how far a long evaluation is.
pub trait Progress: Send + Sync {
    /// `done` of `total` things are done of what is called `what`, which says what they are; all of it begins with 0.
    fn at(&self, what: &str, done: usize, total: usize);
}

/// Nobody.
pub struct Quiet;

impl Progress for Quiet {
    fn at(&self, _: &str, _: usize, _: usize) {}
}

/// A graph as code in memory.
pub struct Executable {
    session: Session,
}

impl Executable {
    /// Compiles a graph that is behind all passes.
    ///
    /// # Errors
    /// As [`driver::jit`], and when no threads can be had.
    pub fn new(graph: &Graph, threads: usize) -> Result<Executable> {
        let model = Arc::new(driver::jit(&Optimized { graph: graph.clone(), ledger: vec![], notes: vec![], accuracy: None })?);
        let session = Session::new(model, threads).map_err(|e| Diagnostic::failed(format!("cannot start {threads} threads: {e}")))?;
        Ok(Executable { session })
    }

    /// Compiles a graph from the middle of a pipeline: what makes kernels of it comes first.
    ///
    /// # Errors
    /// As [`Executable::new`].
    pub fn of(graph: &Graph, threads: usize) -> Result<Executable> {
        let graph =
            run_pipeline(graph.clone(), &finishing(), &Context::default(), |_: &Ran| Ok::<_, Box<Diagnostic>>(ControlFlow::Continue(())))?;
        Executable::new(&graph, threads)
    }

    /// The results for some samples.
    ///
    /// # Errors
    /// When the code refuses the inputs.
    pub fn run(&mut self, batch: &Batch) -> Result<Vec<Tensor>> {
        inputs::run(&mut self.session, &batch.inputs, &[]).map_err(|d| d.at(batch.place.clone()))
    }

    /// What symbols are at some samples.
    ///
    /// # Errors
    /// When the samples do not fit the model.
    pub fn bindings(&self, batch: &Batch) -> Result<Bindings> {
        inputs::bindings(self.session.model(), &batch.inputs, &[]).map_err(|e| inputs::at(None, e).at(batch.place.clone()))
    }
}

/// The CPU variant that evaluates: the one that the environment variable `TFC_CPU` names, else the best that runs on this machine.
pub fn variant() -> String {
    let best = || Cpu::variants(&Triple::host()).iter().rfind(|c| c.runs_here()).map_or(String::new(), |c| c.name.to_string());
    tfc_runtime::LoadOptions::from_env().cpu.unwrap_or_else(best)
}

/// What makes kernels of any graph.
fn finishing() -> Vec<&'static Pass> {
    tfc_passes::parse_passes("fold,legalize,simplify,cse,dce,sink-reshapes,fuse").expect("names of passes")
}

/// Evaluates graphs on samples, for passes that want to see what values are like.
pub struct Compiled {
    /// The samples.
    pub batches: Vec<Batch>,
    /// How many threads evaluate; results do not depend on it.
    pub threads: usize,
    /// Who is told.
    pub progress: Arc<dyn Progress>,
}

impl Oracle for Compiled {
    fn batches(&self) -> usize {
        self.batches.len()
    }

    fn evaluate(&self, graph: &Graph, each: &mut dyn FnMut(usize, Vec<Tensor>)) -> std::result::Result<(), OracleError> {
        let failed = |d: Box<Diagnostic>| OracleError { message: d.text(), code: d.exit as u8 };
        let total = self.batches.iter().map(|b| b.samples).sum();
        let mut done = 0;
        self.progress.at("calibrate on samples", done, total);
        let mut executable = Executable::of(graph, self.threads).map_err(failed)?;
        for (i, batch) in self.batches.iter().enumerate() {
            each(i, executable.run(batch).map_err(failed)?);
            done += batch.samples;
            self.progress.at("calibrate on samples", done, total);
        }
        Ok(())
    }
}
