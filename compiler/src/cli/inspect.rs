//! `tfc inspect`: the manifest of an artifact. No code of the artifact runs.

use super::console::{Console, bytes};
use serde_json::Value;
use std::fmt::Write;
use std::path::PathBuf;
use tfc::artifact::{json, read};
use tfc::diag::{Result, table};

/// Show what an artifact is: inputs, outputs, dimensions, sizes, CPU variants, kernels.
///
/// Reads a bundle, an object, a static library or a shared object, for any target; its code is not run.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc inspect bert
  tfc inspect bert/bert.o --json | jq .inputs")]
pub struct Args {
    /// A bundle, .o, .a or .so.
    #[arg(value_name = "ARTIFACT")]
    artifact: PathBuf,
    /// Print the manifest as JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let manifest = if args.artifact.is_dir() { read::of_bundle(&args.artifact)? } else { json::value(&read::of_file(&args.artifact)?) };
    if args.json { console.result(&format!("{manifest:#}\n")) } else { console.result(&text(&manifest)) }
}

/// The manifest for people.
fn text(m: &Value) -> String {
    let word = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let items = |key: &str| m[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let size = |v: &Value| bytes(v.as_u64().unwrap_or_default());
    let words = |v: &Value, separator: &str| v.as_array().map_or(String::new(), |a| a.iter().map(word).collect::<Vec<_>>().join(separator));
    let mut out = String::new();
    let w = &m["weights"];
    let weights = match w["embedded"].as_bool() {
        None => "none".into(),
        Some(true) => format!("{} in the object", size(&w["bytes"])),
        Some(false) => format!("{} in {}", size(&w["bytes"]), word(&w["file"])),
    };
    let mut rows = vec![
        ["name".to_string(), word(&m["name"])],
        ["compiler".into(), word(&m["compiler"])],
        ["target".into(), word(&m["target"])],
        ["options".into(), words(&m["options"], " ")],
        ["model hash".into(), word(&m["model_hash"])],
        ["weights".into(), weights],
    ];
    if m["code_bytes"].as_u64().is_some_and(|n| n > 0) {
        rows.push(["code".into(), format!("{}, tables {}", size(&m["code_bytes"]), size(&m["table_bytes"]))]);
    }
    if m["stack_bytes"].as_u64().is_some_and(|n| n > 0) {
        rows.push(["stack".into(), size(&m["stack_bytes"])]);
    }
    if !items("undefined_symbols").is_empty() {
        rows.push(["needs".into(), words(&m["undefined_symbols"], ", ")]);
    }
    out.push_str(&table(&rows));
    let mut section = |title: &str, rows: Vec<[String; 3]>| {
        if !rows.is_empty() {
            let _ = write!(out, "\n{title}\n");
            for line in table(&rows).lines() {
                let _ = writeln!(out, "  {}", line.trim_end());
            }
        }
    };
    let variant = |v: &Value| {
        let code = v["code_bytes"].as_u64().filter(|&n| n > 0).map_or(String::new(), |_| size(&v["code_bytes"]));
        let features = words(&v["features"], " ");
        [word(&v["name"]), code, if features.is_empty() { "any CPU".into() } else { features }]
    };
    section("CPU variants", items("cpu_variants").iter().map(variant).collect());
    section(
        "dimensions",
        items("symbols").iter().map(|s| [word(&s["name"]), format!("{}..{}", word(&s["min"]), word(&s["max"])), c_name(s)]).collect(),
    );
    for (title, key) in [("inputs", "inputs"), ("outputs", "outputs")] {
        let row = |t: &Value| [word(&t["name"]), format!("{}[{}]", word(&t["type"]), words(&t["shape"], ", ")), c_name(t)];
        section(title, items(key).iter().map(row).collect());
    }
    section(
        "checks at run time",
        items("checks").iter().map(|c| [word(&c["left"]), format!("== {}", word(&c["right"])), word(&c["reason"])]).collect(),
    );
    section(
        &format!("kernels ({})", items("kernels").len()),
        items("kernels")
            .iter()
            .enumerate()
            .map(|(i, k)| {
                let weights =
                    if k["weight_bytes"].as_u64() == Some(0) { String::new() } else { format!(" weights {}", size(&k["weight_bytes"])) };
                [format!("{i} {}", word(&k["kind"])), word(&k["summary"]), format!("{}{weights}", words(&k["nodes"], ", "))]
            })
            .collect(),
    );
    section(
        &format!("quantization ({})", items("quantization").len()),
        items("quantization")
            .iter()
            .map(|q| {
                let sizes = match q["source_bytes"].as_u64() {
                    Some(0) | None => String::new(),
                    Some(_) => format!("{} -> {}, ", size(&q["source_bytes"]), size(&q["packed_bytes"])),
                };
                let off = |what: &str, key: &str| q[key].as_f64().map_or(String::new(), |e| format!("{what} off by {:.2}%, ", 100.0 * e));
                let errors = [off("weights", "weight_error"), off("operand", "operand_error"), off("result", "total_error")].concat();
                let kernel = q["kernel"].as_u64().map_or(String::new(), |i| format!("kernel {i}, "));
                [word(&q["node"]), word(&q["scheme"]), format!("{sizes}{errors}{kernel}{}", word(&q["reason"]))]
            })
            .collect(),
    );
    section(
        "accuracy",
        items("accuracy").iter().map(|a| [word(&a["name"]), word(&a["value"]), format!("limit {}", word(&a["limit"]))]).collect(),
    );
    out
}

/// The name in C, where it is another one.
fn c_name(v: &Value) -> String {
    if v["c_name"] == v["name"] { String::new() } else { format!("in C: {}", v["c_name"].as_str().unwrap_or_default()) }
}
