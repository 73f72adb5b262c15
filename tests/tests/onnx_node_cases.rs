//! ONNX's own operator tests, where they are on disk: `TFC_NODE_CASES` names a folder that holds, per
//! case, `model.onnx` and `test_data_set_N/{input,output}_N.pb`. Every case is imported and evaluated;
//! `TFC_NODE_CASES_REPORT` names a file that gets one line per case.
//!
//! A case must give its answer or be refused as unsupported. Cases known to differ are listed below
//! with the reason.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use tfc::onnx::{Error, ImportOptions, decode, import};
use tfc_ir::tensor::Tensor;
use tfc_tests::models::{bind, folders};

/// Name prefixes of cases whose answers differ by design, and why.
const KNOWN: &[(&str, &str)] = &[
    ("test_cast_FLOAT16_to_INT4", "floats out of range"),
    ("test_cast_FLOAT16_to_UINT4", "floats out of range"),
    ("test_cast_FLOAT_to_INT4", "floats out of range"),
    ("test_cast_FLOAT_to_UINT4", "floats out of range"),
    ("test_castlike_FLOAT16_to_INT4", "floats out of range: ONNX leaves the result open, here it saturates"),
    ("test_castlike_FLOAT16_to_UINT4", "floats out of range"),
    ("test_castlike_FLOAT_to_INT4", "floats out of range"),
    ("test_castlike_FLOAT_to_UINT4", "floats out of range"),
];

enum Outcome {
    Passed,
    Unsupported(String),
    /// The case is not about plain tensors.
    NotTensors,
    Failed(String),
}

fn tensors(folder: &Path, kind: &str) -> Result<Vec<Tensor>, Error> {
    let mut out = vec![];
    for i in 0.. {
        let path = folder.join(format!("{kind}_{i}.pb"));
        if !path.exists() {
            break;
        }
        let bytes = Bytes::from(std::fs::read(&path).expect("readable"));
        out.push(decode::decode_tensor(&bytes)?.1);
    }
    Ok(out)
}

fn close(found: &Tensor, expected: &Tensor) -> Result<(), String> {
    if (found.elem(), found.sizes()) != (expected.elem(), expected.sizes()) {
        return Err(format!("{} instead of {}", found.ty(), expected.ty()));
    }
    let (relative, absolute) = match expected.elem().bits() {
        16 => (1e-2, 1e-2),
        _ => (1e-3, 1e-5),
    };
    for (i, (a, b)) in found.iter().zip(expected.iter()).enumerate() {
        let (a, b) = (a.to_f64(), b.to_f64());
        let same = a == b || a.is_nan() && b.is_nan();
        let near = expected.elem().is_float() && (a - b).abs() <= absolute + relative * b.abs();
        if !same && !near {
            return Err(format!("element {i} is {a}, not {b}"));
        }
    }
    Ok(())
}

fn run(folder: &Path) -> Outcome {
    let model = match decode::read(&folder.join("model.onnx")) {
        Ok(m) => m,
        Err(Error::Unsupported(r)) => return Outcome::Unsupported(r.unsupported[0].reason.clone()),
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    let data = folder.join("test_data_set_0");
    let (Ok(inputs), Ok(outputs)) = (tensors(&data, "input"), tensors(&data, "output")) else { return Outcome::NotTensors };
    // Shapes that operators take as operands are part of a case, not of the program: they are fed in
    // as constants, as exporters write them.
    let mut first = import(&model, &ImportOptions::default());
    if matches!(first, Err(Error::Unsupported(_))) {
        let mut closed = model.clone();
        for (info, t) in model.graph.inputs.iter().zip(&inputs) {
            if !t.elem().is_float() || t.len() <= 8 {
                closed.graph.initializers.push((info.name.clone(), t.clone()));
            }
        }
        first = import(&closed, &ImportOptions::default());
    }
    let graph = match first {
        Ok(g) => g,
        Err(Error::Unsupported(r)) => {
            let u = r.unsupported.first().map(|u| format!("{}: {}", u.operator, u.reason));
            return Outcome::Unsupported(u.unwrap_or_default());
        }
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    let by_name: BTreeMap<&str, &Tensor> = model.graph.inputs.iter().map(|i| &*i.name).zip(&inputs).collect();
    let operands: Vec<Tensor> =
        graph.inputs().iter().map(|&v| by_name[graph.value(v).name.as_deref().unwrap_or_default()].clone()).collect();
    let found = match graph.evaluate(&operands, &bind(&graph, &operands)) {
        Ok(f) => f,
        Err(e) => return Outcome::Failed(format!("evaluation: {e}")),
    };
    for (o, (t, e)) in graph.outputs().iter().zip(found.iter().zip(&outputs)) {
        if let Err(why) = close(t, e) {
            return Outcome::Failed(format!("{}: {why}", o.name));
        }
    }
    Outcome::Passed
}

#[test]
fn operators_give_onnx_answers() {
    let Some(root) = std::env::var_os("TFC_NODE_CASES") else {
        tfc_tests::skip::skipped("TFC_NODE_CASES does not name a folder of ONNX node cases");
        return;
    };
    let only = std::env::var("TFC_NODE_CASES_ONLY").ok();
    let (mut report, mut failures) = (String::new(), vec![]);
    let (mut passed, mut unsupported, mut other) = (0, 0, 0);
    for folder in folders(Path::new(&root)) {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        let line = match run(&folder) {
            Outcome::Passed => {
                passed += 1;
                "passed".to_string()
            }
            Outcome::Unsupported(why) => {
                unsupported += 1;
                format!("unsupported: {why}")
            }
            Outcome::NotTensors => {
                other += 1;
                "not about tensors".to_string()
            }
            Outcome::Failed(why) => {
                let why = why.replace('\n', " ");
                if !KNOWN.iter().any(|(prefix, _)| name.starts_with(prefix)) {
                    failures.push(format!("{name}: {why}"));
                }
                format!("FAILED: {why}")
            }
        };
        writeln!(report, "{name}\t{line}").expect("a string");
    }
    eprintln!("{passed} passed, {} failed, {unsupported} unsupported, {other} not about plain tensors", failures.len());
    if let Some(path) = std::env::var_os("TFC_NODE_CASES_REPORT") {
        std::fs::write(path, &report).expect("writable");
    }
    assert!(failures.is_empty(), "{} cases differ:\n{}", failures.len(), failures.join("\n"));
}
