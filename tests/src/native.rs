//! Running graphs natively, in memory, to compare them with the interpreter.

use std::sync::Arc;
use tfc::emit::jit;
use tfc::schedule::schedule;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;
use tfc_ir::verify::verify;
use tfc_passes::{Context, OptLevel, PassError, pipeline, run_pipeline};
use tfc_runtime::{Session, View};

/// Runs the passes of an optimization level.
///
/// # Panics
/// When a pass fails, or its result does not verify.
pub fn optimize(graph: &Graph, level: OptLevel) -> Graph {
    let result = run_pipeline::<PassError>(graph.clone(), &pipeline(level), &Context::default(), |ran| {
        if let Err(errors) = verify(ran.graph) {
            panic!("after {}: {}\n{}", ran.pass.name, errors[0], ran.graph);
        }
        Ok(std::ops::ControlFlow::Continue(()))
    });
    result.unwrap_or_else(|e| panic!("{e}"))
}

/// Compiles an optimized graph in memory for a CPU variant.
///
/// # Panics
/// When scheduling or code generation fails.
pub fn compile(graph: &Graph, cpu: Option<&str>) -> Session {
    let verified = verify(graph).unwrap_or_else(|e| panic!("{}\n{graph}", e[0]));
    let program = schedule(&verified).unwrap_or_else(|e| panic!("{e}"));
    let model = jit::load(&program, "m", cpu).unwrap_or_else(|e| panic!("{e}"));
    Session::new(Arc::new(model), 1).expect("one thread is the caller's")
}

/// Runs a session on tensors in the order of the graph's inputs.
///
/// # Panics
/// When the runtime refuses.
pub fn run(session: &mut Session, graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let names: Vec<&str> = graph.inputs().iter().map(|&v| graph.value(v).name.as_deref().unwrap_or_default()).collect();
    let elems: Vec<tfc_runtime::Elem> =
        inputs.iter().map(|t| tfc_runtime::Elem::from_name(t.elem().name()).expect("an ABI type")).collect();
    let views: Vec<(&str, View)> =
        inputs.iter().zip(&elems).zip(names).map(|((t, &elem), name)| (name, View { elem, shape: t.sizes(), data: t.bytes() })).collect();
    let outputs = session.run(&views).unwrap_or_else(|e| panic!("{e}\n{graph}"));
    outputs
        .into_iter()
        .map(|o| {
            let elem = Elem::from_name(o.elem.name()).expect("an IR type");
            Tensor::new(elem, o.shape.clone(), bytes::Bytes::copy_from_slice(&o.data)).expect("the runtime gives whole tensors")
        })
        .collect()
}
