//! Running graphs natively, in memory, to compare them with the interpreter.

use std::sync::Arc;
use target_lexicon::Triple;
use tfc::emit::clif::target::Cpu;
use tfc::emit::jit;
use tfc::kernel::Program;
use tfc::schedule::{ScheduleError, schedule};
use tfc_ir::graph::{Graph, NodeData};
use tfc_ir::ops::Op;
use tfc_ir::tensor::{Scalar, Tensor};
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
    try_compile(graph, cpu).unwrap_or_else(|e| panic!("{e}"))
}

/// [`compile`] for graphs that the scheduler may have no kernels for.
///
/// # Errors
/// When it has none.
///
/// # Panics
/// When code generation fails.
pub fn try_compile(graph: &Graph, cpu: Option<&str>) -> Result<Session, ScheduleError> {
    let verified = verify(graph).unwrap_or_else(|e| panic!("{}\n{graph}", e[0]));
    Ok(load(&schedule(&verified)?, cpu))
}

/// Makes code of a program in memory.
///
/// # Panics
/// When code generation fails.
pub fn load(program: &Program, cpu: Option<&str>) -> Session {
    let model = jit::load(program, "m", cpu).unwrap_or_else(|e| panic!("{e}"));
    Session::new(Arc::new(model), 1).expect("one thread is the caller's")
}

/// The CPU variants that run on this machine.
pub fn cpus() -> Vec<&'static str> {
    Cpu::variants(&Triple::host()).iter().filter(|c| c.runs_here()).map(|c| c.name).collect()
}

/// Runs a session on tensors in the order of the graph's inputs.
///
/// # Panics
/// When the runtime refuses.
pub fn run(session: &mut Session, graph: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    try_run(session, graph, inputs).unwrap_or_else(|e| panic!("{e}\n{graph}"))
}

/// [`run`] for inputs that may be refused, such as indices out of range.
///
/// # Errors
/// What the runtime says.
pub fn try_run(session: &mut Session, graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, tfc_runtime::Error> {
    let names: Vec<&str> = graph.inputs().iter().map(|&v| graph.value(v).name.as_deref().unwrap_or_default()).collect();
    let elems: Vec<tfc_runtime::Elem> =
        inputs.iter().map(|t| tfc_runtime::Elem::from_name(t.elem().name()).expect("an ABI type")).collect();
    let views: Vec<(&str, View)> =
        inputs.iter().zip(&elems).zip(names).map(|((t, &elem), name)| (name, View { elem, shape: t.sizes(), data: t.bytes() })).collect();
    let outputs = session.run(&views)?;
    Ok(outputs
        .into_iter()
        .map(|o| {
            let elem = Elem::from_name(o.elem.name()).expect("an IR type");
            Tensor::new(elem, o.shape.clone(), bytes::Bytes::copy_from_slice(&o.data)).expect("the runtime gives whole tensors")
        })
        .collect())
}

/// How far results may be apart: `|a - b| <= relative * max(|a|, |b|) + absolute`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// In units of the larger one.
    pub relative: f64,
    /// In units of 1.
    pub absolute: f64,
}

impl Tolerance {
    /// No difference at all.
    pub const NONE: Tolerance = Tolerance { relative: 0.0, absolute: 0.0 };

    /// `n` times the relative precision of an element type, near 0 that of numbers around `unit`.
    pub fn roundings(elem: Elem, n: f64, unit: f64) -> Tolerance {
        let epsilon = match elem {
            Elem::F64 => f64::EPSILON,
            Elem::F32 => f32::EPSILON.into(),
            Elem::F16 => half::f16::EPSILON.to_f64(),
            Elem::Bf16 => half::bf16::EPSILON.to_f64(),
            _ => return Tolerance::NONE,
        };
        Tolerance { relative: n * epsilon, absolute: n * epsilon * unit }
    }

    fn holds(self, a: f64, b: f64) -> bool {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= self.relative * a.abs().max(b.abs()) + self.absolute
    }
}

/// The type in whose precision a level computes the results of type `elem` of a graph: from -O2 on, products of f64 and what
/// follows from them are in f32.
pub fn precision(graph: &Graph, level: OptLevel, elem: Elem) -> Elem {
    let product = |n: &NodeData| matches!(n.op, Op::Matmul(_) | Op::Conv(_) | Op::Attention(_)) && graph.ty(n.outputs[0]).elem == Elem::F64;
    let demoted = elem == Elem::F64 && level >= OptLevel::O2 && graph.nodes().any(|(_, n)| product(n));
    if demoted { Elem::F32 } else { elem }
}

/// Compares tensors: element types and sizes, then elements, those that are not floats exactly.
///
/// # Errors
/// The first difference.
pub fn compare(wanted: &[Tensor], found: &[Tensor], tolerance: impl Fn(Elem) -> Tolerance) -> Result<(), String> {
    if wanted.len() != found.len() {
        return Err(format!("{} outputs, not {}", found.len(), wanted.len()));
    }
    for (i, (w, f)) in wanted.iter().zip(found).enumerate() {
        if (w.elem(), w.sizes()) != (f.elem(), f.sizes()) {
            return Err(format!("output {i} is {}, not {}", f.ty(), w.ty()));
        }
        if w == f {
            continue;
        }
        let t = if w.elem().is_float() { tolerance(w.elem()) } else { Tolerance::NONE };
        let same = |at: usize| match (w.get(at), f.get(at)) {
            (Scalar::Float(a), Scalar::Float(b)) => t.holds(a, b),
            (a, b) => a == b,
        };
        if let Some(at) = (0..w.len()).find(|&at| !same(at)) {
            return Err(format!("output {i}, {}, differs at {at}: {:?}, not {:?}", w.ty(), f.get(at), w.get(at)));
        }
    }
    Ok(())
}
