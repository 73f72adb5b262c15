//! The manifest as JSON: `NAME.manifest.json` and `tfc inspect --json`. Keys are in a fixed order; ones
//! that say nothing are there with their empty value, so that readers need no defaults.

use serde_json::{Value, json};
use tfc_runtime::manifest::{Manifest, TensorInfo};

/// The whole manifest. Hashes are 32 hexadecimal digits, sizes are bytes.
pub fn value(m: &Manifest) -> Value {
    json!({
        "version": m.version,
        "abi_version": m.abi_version,
        "name": m.name,
        "compiler": m.compiler,
        "model_hash": hash(&m.model_hash),
        "target": m.target,
        "options": m.options,
        "symbols": each(&m.symbols, |s| json!({ "name": s.name, "c_name": s.c_name, "min": s.min, "max": s.max })),
        "inputs": each(&m.inputs, tensor),
        "outputs": each(&m.outputs, tensor),
        "checks": each(&m.checks, |c| json!({ "left": c.left, "right": c.right, "reason": c.reason })),
        "weights": m.weights.as_ref().map(|w| json!({
            "bytes": w.data_bytes,
            "hash": hash(&w.hash),
            "embedded": w.embedded,
            "file": if w.embedded { Value::Null } else { json!(w.file) },
            "source_bytes": w.source_bytes,
        })),
        "arena_align": m.arena_align,
        "cpu_variants": each(&m.cpu_variants, |v| json!({ "name": v.name, "features": v.features, "code_bytes": v.code_bytes })),
        "code_bytes": m.code_bytes,
        "table_bytes": m.table_bytes,
        "stack_bytes": m.stack_bytes,
        "undefined_symbols": m.undefined_symbols,
        "kernels": each(&m.kernels, |k| json!({
            "name": k.name,
            "kind": k.kind,
            "nodes": k.nodes,
            "summary": k.summary,
            "code_bytes": k.code_bytes,
            "weight_bytes": k.weight_bytes,
            "operations": size(&k.operations),
            "arithmetic": k.arithmetic,
            "traffic": size(&k.traffic),
            "weight_traffic": size(&k.weight_traffic),
        })),
        "quantization": each(&m.quantization, |q| json!({
            "node": q.node,
            "scheme": q.scheme,
            "activations": q.activations,
            "rounding": q.rounding,
            "reason": q.reason,
            "rewrites": q.rewrites,
            "source_bytes": q.source_bytes,
            "packed_bytes": q.packed_bytes,
            "sparsity": q.sparsity,
            "rewrite_error": q.rewrite_error,
            "weight_error": q.weight_error,
            "total_error": q.total_error,
            "relative_time": q.relative_time,
            "error_share": q.error_share,
            "outlier_channels": q.outlier_channels,
            "operand_error": q.operand_error,
            "kernel": q.kernel,
        })),
        "accuracy": each(&m.accuracy, |a| json!({ "name": a.name, "value": a.value, "limit": a.limit })),
    })
}

/// The manifest as an indented text that ends with a line feed.
pub fn text(m: &Manifest) -> String {
    format!("{:#}\n", value(m))
}

fn each<T>(items: &[T], f: impl Fn(&T) -> Value) -> Vec<Value> {
    items.iter().map(f).collect()
}

/// A number where it is fixed, else the expression over the symbols.
fn size(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n))
}

fn tensor(t: &TensorInfo) -> Value {
    let shape = each(&t.shape, |d| size(d));
    json!({ "name": t.name, "c_name": t.c_name, "type": t.elem, "shape": shape })
}

/// A little-endian hash as the digits of its number.
fn hash(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}
