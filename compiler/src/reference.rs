//! What a graph computes, without the passes and kernels that are under test.

use crate::diag::{Diagnostic, Result};
use crate::driver::{self, Options};
use crate::inputs;
use std::ops::ControlFlow;
use std::sync::Arc;
use tfc_ir::dim::{Bindings, Symbol};
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_passes::{Context, OptLevel, cost};
use tfc_runtime::Session;

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

impl Reference {
    /// The interpreter for a graph that it evaluates in a few seconds at these sizes, else code of `-O0` for this machine.
    ///
    /// # Errors
    /// When the graph cannot be compiled, or no threads can be had.
    pub fn new(graph: Graph, bindings: &Bindings, threads: usize) -> Result<Reference> {
        if operations(&graph, bindings) <= INTERPRETED_OPERATIONS {
            Ok(Reference::Interpreted(graph))
        } else {
            Reference::compiled(graph, threads)
        }
    }

    /// Code of `-O0` for this machine.
    ///
    /// # Errors
    /// As [`Reference::new`].
    pub fn compiled(graph: Graph, threads: usize) -> Result<Reference> {
        let options = Options { level: OptLevel::O0, ..Options::default() };
        let optimized = driver::optimize(graph, &options, |_| Ok(ControlFlow::Continue(())))?;
        let session = Session::new(Arc::new(driver::jit(&optimized)?), threads);
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
