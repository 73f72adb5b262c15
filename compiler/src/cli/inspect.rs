//! `tfc inspect`: the manifest of an artifact. No code of the artifact runs.

use super::console::{Console, bytes};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use tfc::artifact::{json, read};
use tfc::diag::{Diagnostic, Result, table};

/// How many layers the sizes name.
const LAYERS: usize = 40;

/// Show what an artifact is: inputs, outputs, dimensions, sizes, CPU variants, kernels.
///
/// Reads a bundle, an object, a static library or a shared object, for any target; its code is not run.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc inspect bert
  tfc inspect bert --size
  tfc inspect bert/bert.o --json | jq .inputs")]
pub struct Args {
    /// A bundle, .o, .a or .so.
    #[arg(value_name = "ARTIFACT")]
    artifact: PathBuf,
    /// Print the manifest as JSON.
    #[arg(long)]
    json: bool,
    /// What it is made of instead: files, weights by layer, and of a bundle the code by CPU variant and by kind of kernel.
    #[arg(long, conflicts_with = "json")]
    size: bool,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let manifest = if args.artifact.is_dir() { read::of_bundle(&args.artifact)? } else { json::value(&read::of_file(&args.artifact)?) };
    if args.size {
        return console.result(&sizes(&manifest, &files(&args.artifact)?));
    }
    if args.json { console.result(&format!("{manifest:#}\n")) } else { console.result(&text(&manifest)) }
}

/// The files of an artifact with their bytes, by name.
fn files(artifact: &Path) -> Result<Vec<(String, u64)>> {
    let failed = |e: std::io::Error| Diagnostic::io("list", artifact, &e);
    let mut paths = vec![artifact.to_path_buf()];
    if artifact.is_dir() {
        let entries = artifact.read_dir().and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(failed)?;
        paths = entries.iter().map(|e| e.path()).collect();
        paths.sort();
    }
    let file = |p: &PathBuf| Ok((p.file_name().unwrap_or_default().to_string_lossy().into_owned(), p.metadata().map_err(failed)?.len()));
    paths.iter().map(file).collect()
}

/// What an artifact is made of, as tables for people. Shares are of all code and of all weights.
fn sizes(m: &Value, files: &[(String, u64)]) -> String {
    let number = |v: &Value| v.as_u64().unwrap_or_default();
    let list = |key: &str| m[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = |name: &str, n: u64, all: u64| {
        let share = if all > 0 { format!("{:.1}%", 100.0 * n as f64 / all as f64) } else { String::new() };
        [name.to_string(), bytes(n), share]
    };
    let mut out = String::new();
    let mut section = |title: String, rows: Vec<[String; 3]>| {
        if !rows.is_empty() {
            let space = if out.is_empty() { "" } else { "\n" };
            let lines: String = table(&rows).lines().map(|line| format!("  {}\n", line.trim_end())).collect();
            let _ = write!(out, "{space}{title}\n{lines}");
        }
    };
    section("files".into(), files.iter().map(|(name, n)| row(name, *n, 0)).collect());
    let (code, tables, weights) = (number(&m["code_bytes"]), number(&m["table_bytes"]), number(&m["weights"]["bytes"]));
    let variants = list("cpu_variants")
        .iter()
        .filter(|_| code > 0)
        .map(|v| row(v["name"].as_str().unwrap_or_default(), number(&v["code_bytes"]), code));
    section(format!("code by CPU variant ({}; tables and the manifest beside it {})", bytes(code), bytes(tables)), variants.collect());

    let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut known = BTreeSet::new();
    let mut layers: Vec<(String, u64)> = vec![];
    for k in list("kernels") {
        // Launches of one kernel share its code.
        if known.insert(k["name"].as_str()) {
            let kind = kinds.entry(k["kind"].as_str().unwrap_or_default()).or_default();
            *kind = (kind.0 + 1, kind.1 + number(&k["code_bytes"]));
        }
        let nodes: Vec<&str> = k["nodes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if number(&k["weight_bytes"]) > 0 {
            layers.push((nodes.join(", "), number(&k["weight_bytes"])));
        }
    }
    // The manifest in an object does not know how large the object's code is.
    kinds.retain(|_, _| code > 0);
    let kinds = kinds.iter().map(|(kind, (count, n))| row(&format!("{kind} ({count})"), *n, code)).collect();
    section("code by kind of kernel, all variants".into(), kinds);
    layers.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let shown = layers.len().min(LAYERS);
    let rest: u64 = layers[shown..].iter().map(|l| l.1).sum();
    let mut rows: Vec<_> = layers[..shown].iter().map(|(nodes, n)| row(nodes, *n, weights)).collect();
    if layers.len() > shown {
        rows.push(row(&format!("{} others", layers.len() - shown), rest, weights));
    }
    section(format!("weights by layer ({}; what several layers read counts for each)", bytes(weights)), rows);
    out
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
