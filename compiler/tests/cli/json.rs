//! What `--json` prints, results and failures.

use crate::Place;
use serde_json::Value;
use tfc_ir::types::Elem;

/// The object in the last line of standard error.
fn failure(err: &str) -> Value {
    serde_json::from_str(err.lines().last().expect("a line")).unwrap_or_else(|e| panic!("{e}: {err}"))
}

#[test]
fn outputs_of_a_run_are_summed_up() {
    let p = Place::new();
    let object: Value = serde_json::from_str(&p.run("run m.onnx --inputs in.npz --json").expect(0, &[]).out).unwrap();
    let output = &object["outputs"][0];
    assert!(output["name"].is_string() && output["type"] == "f32" && output["not_finite"] == 0, "{object}");
    let [min, mean, max] = ["min", "mean", "max"].map(|key| output[key].as_f64().unwrap());
    assert!(min <= mean && mean <= max, "{object}");
    p.run("run m.onnx --inputs in.npz --json --outputs out.npz").expect(0, &["not_finite"]);
    assert!(p.path("out.npz").exists());
}

#[test]
fn what_was_compared_is_told_whether_it_is_equal_or_not() {
    let p = Place::new();
    let object: Value = serde_json::from_str(&p.run("verify m.onnx --inputs in.npz --json").expect(0, &[]).out).unwrap();
    assert!(object["cpu_variant"].is_string() && object["outputs"][0]["ok"] == true, "{object}");
    p.inputs("ones.npz", &[("y", Elem::F32, &[2, 40]), ("picked", Elem::F32, &[2, 3])]);
    let missed = p.run("verify m.onnx --inputs in.npz --reference ones.npz --json").expect(1, &[]);
    let object: Value = serde_json::from_str(&missed.out).unwrap();
    for output in object["outputs"].as_array().unwrap() {
        assert!(output["ok"] == false && output["worst"]["expected"] == 1.0, "{object}");
    }
    assert_eq!(object["outputs"][0]["outside"], 80, "{object}");
    assert!(failure(&missed.err)["error"]["message"].as_str().unwrap().contains("differ"), "{}", missed.err);
}

#[test]
fn failures_are_objects_too() {
    let p = Place::new();
    let error = |line: &str, code: i32| failure(&p.run(line).expect(code, &[]).err)["error"].clone();
    let absent = error("run absent.onnx --json", 1);
    assert!(absent["code"] == 1 && absent["places"][0] == "`absent.onnx`", "{absent}");
    assert!(["notes", "help"].iter().all(|key| absent[key].is_array()), "{absent}");
    let wrong = error("run --nothing m.onnx --json", 2);
    assert!(wrong["code"] == 2 && wrong["message"].as_str().unwrap().starts_with("unexpected argument"), "{wrong}");
    p.run("run absent.onnx").expect(1, &["error: "]);
}
