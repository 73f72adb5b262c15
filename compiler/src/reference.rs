//! What a graph computes, without the passes and kernels that are under test.

use crate::diag::{Diagnostic, Result};
use crate::driver::{self, Optimized, Options};
use crate::emit::jit;
use crate::inputs;
use std::ops::ControlFlow;
use std::sync::Arc;
use tfc_ir::dim::{Bindings, Symbol};
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_passes::{Context, OptLevel, cost};
use tfc_runtime::{Model, Session};

/// The most operations that are interpreted, a multiply-add being one: some seconds.
pub const INTERPRETED_OPERATIONS: f64 = 1e9;

/// A graph that can be evaluated.
pub enum Reference {
    /// By the interpreter.
    Interpreted(Graph),
    /// By code, node by node.
    Compiled(Session),
}

/// The operations of one evaluation of a graph at these sizes, a multiply-add being one.
pub fn operations(graph: &Graph, bindings: &Bindings) -> f64 {
    let cx = Context { nominal: bindings.clone(), ..Context::default() };
    let types = |values: &[tfc_ir::graph::Value]| values.iter().map(|&v| graph.ty(v)).collect::<Vec<_>>();
    graph.nodes().map(|(_, n)| cost::work(&n.op, &types(&n.inputs), &types(&n.outputs), &cx)).sum()
}

/// A model that has the inputs, symbols and checks of a graph, and computes nothing.
///
/// # Errors
/// When there is no code generator for this machine.
pub fn interface(graph: &Graph) -> Result<Model> {
    let mut out = graph.emptied();
    for &v in graph.inputs() {
        out.add_input(graph.value(v).name.as_deref().unwrap_or_default(), graph.ty(v).clone());
    }
    driver::jit(&Optimized { graph: out, ledger: vec![], notes: vec![], accuracy: None })
}

impl Reference {
    /// The interpreter for a graph that it evaluates in a few seconds at these sizes, else code of `-O0` for this machine.
    ///
    /// # Errors
    /// When the graph cannot be compiled, or no threads can be had.
    pub fn new(graph: Graph, bindings: &Bindings, threads: usize) -> Result<Reference> {
        match operations(&graph, bindings) {
            n if n <= INTERPRETED_OPERATIONS => Ok(Reference::Interpreted(graph)),
            _ => Reference::compiled(graph, threads, None),
        }
    }

    /// Code of `-O0`, for a CPU variant, or for the best one that runs here.
    ///
    /// # Errors
    /// As [`Reference::new`], and when the variant does not run here.
    pub fn compiled(graph: Graph, threads: usize, cpu: Option<&str>) -> Result<Reference> {
        let options = Options { level: OptLevel::O0, ..Options::default() };
        let optimized = driver::optimize(graph, &options, |_| Ok(ControlFlow::Continue(())))?;
        let model = jit::load(&driver::lower(&optimized)?, "model", cpu)?;
        let session = Session::new(Arc::new(model), threads);
        Ok(Reference::Compiled(session.map_err(|e| Diagnostic::failed(format!("cannot start {threads} threads: {e}")))?))
    }

    /// What it is, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Reference::Interpreted(_) => "the interpreter",
            Reference::Compiled(_) => "code of -O0",
        }
    }

    /// The outputs at inputs in the order of the graph.
    ///
    /// # Errors
    /// When the inputs do not fit, or an operator fails on them.
    pub fn run(&mut self, tensors: &[Tensor], bindings: &Bindings) -> Result<Vec<Tensor>> {
        match self {
            Reference::Interpreted(graph) => Ok(graph.evaluate(tensors, bindings)?),
            Reference::Compiled(session) => {
                let model = session.model().clone();
                let value = |s: &tfc_runtime::model::SymbolRange| bindings.get(&Symbol::new(&s.name)).copied();
                let symbols = model.symbols().iter().filter_map(|s| Some((s.name.as_str(), value(s)?)));
                inputs::run(session, tensors, &symbols.collect::<Vec<_>>())
            }
        }
    }
}
