//! Every model of the zoo gives its answers natively: at every optimization level that differs, on
//! every CPU variant, at every shape that has answers, from one compilation.

use std::path::Path;
use tfc::onnx::{ImportOptions, load};
use tfc_ir::graph::Graph;
use tfc_passes::OptLevel;
use tfc_tests::models::{check_answers, folders, zoo};
use tfc_tests::native::{compile, cpus, optimize, run};

const TOLERANCE: f64 = 1e-5;

fn check(folder: &Path, level: OptLevel, cpu: &str) -> Result<f64, String> {
    let graph = load(&folder.join("model.onnx"), &ImportOptions::default()).map_err(|e| e.to_string())?;
    let graph: Graph = optimize(&graph, level);
    let mut session = compile(&graph, Some(cpu));
    check_answers(folder, &graph, TOLERANCE, |inputs| Ok(run(&mut session, &graph, inputs)))
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
        for (level, cpu) in [OptLevel::O0, OptLevel::O3].into_iter().flat_map(|l| cpus().into_iter().map(move |c| (l, c))) {
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
