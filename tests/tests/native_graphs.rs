//! Random graphs: native code gives what the interpreter gives, and passes keep what graphs compute.
//!
//! `PROPTEST_CASES` sets the number of graphs, `PROPTEST_RNG_SEED` draws others.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;
use tfc_ir::verify::verify;
use tfc_passes::table::PASSES;
use tfc_passes::{Context, OptLevel, Pass, PassError, pipeline, run_pipeline};
use tfc_tests::choices::Choices;
use tfc_tests::native::{Tolerance, compare, cpus, optimize, precision, run, try_compile};
use tfc_tests::random_graph::{bindings, inputs, models};

fn config(cases: u32) -> ProptestConfig {
    let from_environment = ProptestConfig::default();
    ProptestConfig {
        failure_persistence: None,
        cases: if std::env::var_os("PROPTEST_CASES").is_some() { from_environment.cases } else { cases },
        rng_seed: if from_environment.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { from_environment.rng_seed },
        max_shrink_iters: 2000,
        ..from_environment
    }
}

/// What a chain of operators of the coarsest float type that a level computes in may add up to.
fn tolerance(graph: &Graph, level: OptLevel) -> Tolerance {
    let mut all: Vec<Elem> = vec![precision(graph, level, Elem::F64)];
    elems(graph, &mut all);
    let t = match all {
        _ if all.contains(&Elem::Bf16) => 0.1,
        _ if all.contains(&Elem::F16) => 0.02,
        _ if all.contains(&Elem::F32) => 1e-4,
        _ => 1e-10,
    };
    Tolerance { relative: t, absolute: t }
}

fn elems(graph: &Graph, all: &mut Vec<Elem>) {
    all.extend(graph.values().map(|(_, d)| d.ty.elem));
    for (_, node) in graph.nodes() {
        if let tfc_ir::ops::Op::Fused(op) = &node.op {
            elems(&op.body.0, all);
        }
    }
}

fn native_is_the_same(graph: &Graph, seed: u64) -> Result<(), String> {
    // O2 runs the passes of O3.
    for level in [OptLevel::O0, OptLevel::O1, OptLevel::O3] {
        let optimized = optimize(graph, level);
        let t = tolerance(graph, level);
        for cpu in cpus() {
            let mut session = try_compile(&optimized, Some(cpu)).map_err(|e| format!("{level:?}: {e}"))?;
            for (i, bindings) in bindings(graph, 3).into_iter().enumerate() {
                let data: Vec<Tensor> = inputs(graph, &bindings, &mut Choices::seeded(seed + i as u64));
                let Ok(wanted) = graph.evaluate(&data, &bindings) else { continue };
                let found = run(&mut session, &optimized, &data);
                let same = compare(&wanted, &found, |_| t);
                same.map_err(|e| format!("{level:?} on {cpu} at {bindings:?}: {e}\noptimized:\n{optimized}"))?;
            }
        }
    }
    Ok(())
}

/// Runs passes; after each one the graph must be valid and compute the same.
fn passes_keep_outputs(graph: &Graph, passes: &[&'static Pass], seed: u64) -> Result<(), String> {
    let demotes = passes.iter().any(|pass| pass.name == "demote");
    let t = tolerance(graph, if demotes { OptLevel::O3 } else { OptLevel::O1 });
    let mut cases = vec![];
    for bindings in bindings(graph, 3) {
        let data = inputs(graph, &bindings, &mut Choices::seeded(seed));
        if let Ok(wanted) = graph.evaluate(&data, &bindings) {
            cases.push((bindings, data, wanted));
        }
    }
    let mut fault = None;
    let result = run_pipeline::<PassError>(graph.clone(), passes, &Context::default(), |ran| {
        let check = || -> Result<(), String> {
            verify(ran.graph).map_err(|errors| errors[0].to_string())?;
            for (bindings, data, wanted) in &cases {
                let found = ran.graph.evaluate(data, bindings).map_err(|e| format!("evaluation says: {e}"))?;
                compare(wanted, &found, |_| t).map_err(|e| format!("at {bindings:?}: {e}"))?;
            }
            Ok(())
        };
        Ok(match check() {
            Ok(()) => std::ops::ControlFlow::Continue(()),
            Err(e) => {
                fault = Some(format!("after {}: {e}\n{}", ran.pass.name, ran.graph));
                std::ops::ControlFlow::Break(())
            }
        })
    });
    result.map_err(|e| e.to_string())?;
    fault.map_or(Ok(()), Err)
}

proptest! {
    #![proptest_config(config(80))]

    #[test]
    fn native_code_gives_what_the_interpreter_gives(model in models(10), seed in any::<u32>()) {
        native_is_the_same(&model.0, seed.into()).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(config(100))]

    #[test]
    fn every_pass_alone_keeps_outputs(model in models(10), seed in any::<u32>()) {
        for &pass in PASSES {
            passes_keep_outputs(&model.0, &[pass], seed.into()).map_err(TestCaseError::fail)?;
        }
    }

    #[test]
    fn pipelines_keep_outputs(model in models(10), list in prop::collection::vec(0..PASSES.len(), 0..8), seed in any::<u32>()) {
        let any: Vec<&'static Pass> = list.into_iter().map(|i| PASSES[i]).collect();
        for passes in [any, pipeline(OptLevel::O1), pipeline(OptLevel::O3)] {
            passes_keep_outputs(&model.0, &passes, seed.into()).map_err(TestCaseError::fail)?;
        }
    }
}
