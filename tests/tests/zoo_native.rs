//! Every model of the zoo gives its answers natively: at every optimization level that differs, on
//! every CPU variant, at every shape that has answers, from one compilation.

use std::path::Path;
use tfc::onnx::{ImportOptions, load};
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_passes::OptLevel;
use tfc_tests::models::{folders, read_npz, relative_error, zoo};
use tfc_tests::native::{compile, optimize, run};

const TOLERANCE: f64 = 1e-5;

fn check(folder: &Path, level: OptLevel, cpu: &str) -> Result<f64, String> {
    let graph = load(&folder.join("model.onnx"), &ImportOptions::default()).map_err(|e| e.to_string())?;
    let graph: Graph = optimize(&graph, level);
    let mut session = compile(&graph, Some(cpu));
    let mut worst = 0.0f64;
    for suffix in ["", "_1", "_2"] {
        let (inputs, outputs) = (folder.join(format!("inputs{suffix}.npz")), folder.join(format!("outputs{suffix}.npz")));
        if !inputs.exists() {
            continue;
        }
        let (mut given, expected) = (read_npz(&inputs), read_npz(&outputs));
        let name = |v| graph.value(v).name.as_deref().unwrap_or_default();
        let inputs: Vec<Tensor> = graph.inputs().iter().map(|&v| given.remove(name(v)).expect("an input of the model")).collect();
        for (o, t) in graph.outputs().iter().zip(run(&mut session, &graph, &inputs)) {
            let e = &expected[&*o.name];
            if (t.elem(), t.sizes()) != (e.elem(), e.sizes()) {
                return Err(format!("inputs{suffix}: {} is {}, not {}", o.name, t.ty(), e.ty()));
            }
            let error = relative_error(&t, e);
            if error.is_nan() || error > TOLERANCE {
                return Err(format!("inputs{suffix}: {} is off by {error:.3e}", o.name));
            }
            worst = worst.max(error);
        }
    }
    Ok(worst)
}

#[test]
fn zoo_models_give_their_answers_natively() {
    let Some(root) = zoo() else { return };
    let only = std::env::var("TFC_ZOO_ONLY").ok();
    let mut failures = vec![];
    for folder in folders(&root) {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|o| *o != name) {
            continue;
        }
        for (level, cpu) in [(OptLevel::O0, "baseline"), (OptLevel::O0, "avx2"), (OptLevel::O3, "baseline"), (OptLevel::O3, "avx2")] {
            let result = std::panic::catch_unwind(|| check(&folder, level, cpu));
            match result {
                Ok(Ok(error)) => eprintln!("{name} {level:?} {cpu}: {error:.1e}"),
                Ok(Err(e)) => failures.push(format!("{name} {level:?} {cpu}: {e}")),
                Err(_) => failures.push(format!("{name} {level:?} {cpu}: panicked")),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
