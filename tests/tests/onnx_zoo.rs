//! Every model of the zoo is imported, and the reference evaluation reproduces its answers.

use std::path::Path;
use tfc::onnx::{ImportOptions, load};
use tfc_tests::models::{bind, check_answers, folders, zoo};

/// Largest relative error, and largest number of operand elements: the reference evaluation is slow.
const TOLERANCE: f64 = 1e-5;

fn check(folder: &Path) -> Result<(), String> {
    let graph = load(&folder.join("model.onnx"), &ImportOptions::default()).map_err(|e| e.to_string())?;
    check_answers(folder, &graph, TOLERANCE, |inputs| graph.evaluate(inputs, &bind(&graph, inputs)).map_err(|e| e.to_string()))?;
    Ok(())
}

#[test]
fn zoo_models_give_their_answers() {
    let Some(root) = zoo() else { return };
    let only = std::env::var("TFC_ZOO_ONLY").ok();
    let mut failures = vec![];
    for folder in folders(&root) {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|o| *o != name) {
            continue;
        }
        match check(&folder) {
            Ok(()) => eprintln!("{name}: ok"),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
