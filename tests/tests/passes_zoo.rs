//! Models of the zoo after graph passes: every pass leaves a valid graph, the reference evaluation still gives
//! the answers, and the decompositions that exporters wrote are recovered.

use std::ops::ControlFlow;
use std::path::Path;
use tfc::onnx::{ImportOptions, load};
use tfc_ir::graph::Graph;
use tfc_ir::verify::verify;
use tfc_passes::{Context, OptLevel, PassError, pipeline, run_pipeline};
use tfc_tests::models::{bind, check_answers, folders, zoo};

/// Largest relative error.
const TOLERANCE: f64 = 1e-5;

fn count(g: &Graph, mnemonics: &[&str]) -> usize {
    g.nodes().filter(|(_, d)| mnemonics.contains(&d.op.mnemonic())).count()
}

/// Runs the passes of a level up to the recovery of patterns.
fn recovered(graph: &Graph) -> Result<Graph, String> {
    let mut invalid = None;
    let passes = pipeline(OptLevel::O2);
    let out = run_pipeline::<PassError>(graph.clone(), &passes, &Context::default(), |ran| {
        if let Err(e) = verify(ran.graph) {
            invalid = Some(format!("after {}: {e:?}", ran.pass.name));
        }
        Ok(if ran.pass.name == "eqsat" || invalid.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    invalid.map_or_else(|| out.map_err(|e| e.to_string()), Err)
}

fn check(folder: &Path) -> Result<(), String> {
    let before = load(&folder.join("model.onnx"), &ImportOptions::default()).map_err(|e| e.to_string())?;
    let after = recovered(&before)?;
    if recovered(&before)?.to_string() != after.to_string() {
        return Err("two runs differ".into());
    }
    check_answers(folder, &after, TOLERANCE, |inputs| after.evaluate(inputs, &bind(&after, inputs)).map_err(|e| e.to_string()))?;
    // Every softmax of these models belongs to an attention, every error function and hyperbolic tangent
    // to a GELU; square roots occur in normalisations only.
    let pairs: [(&[&str], &[&str]); 3] = [
        (&["softmax", "attention"], &["attention"]),
        (&["erf", "tanh", "gelu"], &["gelu"]),
        (&["sqrt", "rsqrt", "rms_norm", "layer_norm"], &["rms_norm", "layer_norm"]),
    ];
    for (parts, whole) in pairs {
        let (found, expected) = (count(&after, whole), count(&before, parts));
        if (count(&after, parts), found) != (expected, expected) {
            return Err(format!("{found} of {expected} {whole:?}"));
        }
    }
    eprintln!(
        "{}: {} attention, {} gelu, {} layer_norm, {} rms_norm, {} rotary, {} silu",
        folder.file_name().unwrap_or_default().display(),
        count(&after, &["attention"]),
        count(&after, &["gelu"]),
        count(&after, &["layer_norm"]),
        count(&after, &["rms_norm"]),
        count(&after, &["rotary"]),
        count(&after, &["silu"]),
    );
    Ok(())
}

#[test]
fn zoo_models_keep_their_answers_and_lose_their_decompositions() {
    let Some(root) = zoo() else { return };
    let checks = folders(&root).into_iter().map(|f| (check(&f), f));
    let failures: Vec<String> = checks.filter_map(|(r, f)| r.err().map(|e| format!("{}: {e}", f.display()))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
