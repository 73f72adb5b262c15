//! Every model of the zoo is imported, and the reference evaluation reproduces its answers.

use std::path::Path;
use tfc::onnx::{ImportOptions, load};
use tfc_ir::tensor::Tensor;
use tfc_tests::models::{bind, folders, read_npz, relative_error, zoo};

/// Largest relative error, and largest number of operand elements: the reference evaluation is slow.
const TOLERANCE: f64 = 1e-5;

fn check(folder: &Path) -> Result<(), String> {
    let graph = load(&folder.join("model.onnx"), &ImportOptions::default()).map_err(|e| e.to_string())?;
    for suffix in ["", "_1", "_2"] {
        let (inputs, outputs) = (folder.join(format!("inputs{suffix}.npz")), folder.join(format!("outputs{suffix}.npz")));
        if !inputs.exists() {
            continue;
        }
        let (mut given, expected) = (read_npz(&inputs), read_npz(&outputs));
        let inputs: Vec<Tensor> = graph
            .inputs()
            .iter()
            .map(|&v| {
                let name = graph.value(v).name.as_deref().unwrap_or_default();
                given.remove(name).ok_or_else(|| format!("no input {name}"))
            })
            .collect::<Result<_, _>>()?;
        let found = graph.evaluate(&inputs, &bind(&graph, &inputs)).map_err(|e| format!("inputs{suffix}: {e}"))?;
        for (o, t) in graph.outputs().iter().zip(&found) {
            let e = expected.get(&*o.name).ok_or_else(|| format!("no output {}", o.name))?;
            if (t.elem(), t.sizes()) != (e.elem(), e.sizes()) {
                return Err(format!("inputs{suffix}: {} is {}, not {}", o.name, t.ty(), e.ty()));
            }
            let error = relative_error(t, e);
            if error.is_nan() || error > TOLERANCE {
                return Err(format!("inputs{suffix}: {} is off by {error:.3e}", o.name));
            }
        }
    }
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
