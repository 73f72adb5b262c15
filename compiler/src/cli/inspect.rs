//! `tfc inspect`: the manifest of an artifact. No code of the artifact runs.

use super::console::{Console, bytes};
use object::read::archive::ArchiveFile;
use object::{File, Object, ObjectKind, ObjectSection, ObjectSymbol, ObjectSymbolTable, RelocationTarget, SectionIndex};
use serde_json::Value;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use tfc::artifact::json;
use tfc::diag::{Diagnostic, Result, table};
use tfc::onnx::map_file;
use tfc_runtime::abi::{ENTRY_MAGIC, ENTRY_SUFFIX, entry_offset};
use tfc_runtime::manifest::Manifest;

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
    let manifest = if args.artifact.is_dir() { of_bundle(&args.artifact)? } else { json::value(&of_file(&args.artifact)?) };
    if args.json { console.result(&format!("{manifest:#}\n")) } else { console.result(&text(&manifest)) }
}

/// The manifest of a bundle is a file in it: it knows the sizes of the code, which the code cannot.
fn of_bundle(folder: &Path) -> Result<Value> {
    let entries = std::fs::read_dir(folder).map_err(|e| Diagnostic::io("list", folder, &e))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.file_name().is_some_and(|n| n.to_string_lossy().ends_with(".manifest.json")));
    files.sort();
    let [file] = files.as_slice() else {
        let what = if files.is_empty() { "the folder is not a bundle" } else { "the folder has several manifests" };
        return Err(Diagnostic::failed(what).at(format!("`{}`", folder.display())).note("a bundle has one file NAME.manifest.json"));
    };
    let text = tfc_runtime::file::open(file).and_then(std::io::read_to_string).map_err(|e| Diagnostic::io("read", file, &e))?;
    serde_json::from_str(&text).map_err(|e| Diagnostic::failed(format!("the manifest is damaged: {e}")).at(format!("`{}`", file.display())))
}

fn of_file(path: &Path) -> Result<Manifest> {
    let file = map_file(path)?;
    let fail = |what: String| {
        Diagnostic::failed(what)
            .at(format!("`{}`", path.display()))
            .help("inspect takes a bundle, or an .o, .a or .so that `tfc compile` wrote")
    };
    let damaged = |e: object::Error| fail(format!("the file cannot be read as an object: {e}"));
    if file.starts_with(b"!<arch>\n") {
        let archive = ArchiveFile::parse(&file[..]).map_err(damaged)?;
        for member in archive.members() {
            let data = member.and_then(|m| m.data(&file[..])).map_err(damaged)?;
            if let Ok(object) = File::parse(data)
                && let Some(manifest) = of_object(&object).map_err(fail)?
            {
                return Ok(manifest);
            }
        }
        return Err(fail("no member of the library was made by tfc".into()));
    }
    let object = File::parse(&file[..]).map_err(damaged)?;
    of_object(&object).map_err(fail)?.ok_or_else(|| fail("the object was not made by tfc: it has no `NAME_entry`".into()))
}

/// The manifest that the entry of an object points to; `None` without an entry.
fn of_object(object: &File) -> Result<Option<Manifest>, String> {
    let little = object.is_little_endian();
    for symbol in object.symbols().chain(object.dynamic_symbols()) {
        if !symbol.name().is_ok_and(|n| n.ends_with(ENTRY_SUFFIX)) || !symbol.is_definition() {
            continue;
        }
        let Some(section) = symbol.section_index() else { continue };
        let Some(entry) = at(object, section, symbol.address(), entry_offset::END as u64) else { continue };
        let word = |offset: usize| {
            let bytes: [u8; 8] = entry[offset..offset + 8].try_into().expect("8 bytes");
            if little { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) }
        };
        if word(entry_offset::MAGIC) != ENTRY_MAGIC {
            continue;
        }
        let broken = || "the entry of the object does not point to a manifest: the file is damaged".to_string();
        let (section, address) = pointer(object, section, symbol.address() + entry_offset::MANIFEST as u64).ok_or_else(broken)?;
        let encoded = at(object, section, address, word(entry_offset::MANIFEST_BYTES)).ok_or_else(broken)?;
        return Manifest::decode_bytes(encoded).map(Some).map_err(|e| e.to_string());
    }
    Ok(None)
}

/// `len` bytes from `address` on, which is in `section`.
fn at<'a>(object: &File<'a>, section: SectionIndex, address: u64, len: u64) -> Option<&'a [u8]> {
    let section = object.section_by_index(section).ok()?;
    let begin = address.checked_sub(section.address())?;
    section.data().ok()?.get(usize::try_from(begin).ok()?..usize::try_from(begin.checked_add(len)?).ok()?)
}

/// Where the pointer at `address` in `section` will point to when the object is linked or loaded.
fn pointer(object: &File, section: SectionIndex, address: u64) -> Option<(SectionIndex, u64)> {
    if object.kind() != ObjectKind::Relocatable {
        let mut relocations = object.dynamic_relocations()?;
        let (_, r) = relocations.find(|(at, _)| *at == address)?;
        let base = match r.target() {
            RelocationTarget::Symbol(s) => object.dynamic_symbol_table()?.symbol_by_index(s).ok()?.address(),
            _ => 0,
        };
        let to = base.checked_add_signed(r.addend())?;
        let holds = |s: &object::Section| s.address() <= to && to - s.address() < s.size();
        return Some((object.sections().find(holds)?.index(), to));
    }
    let (_, r) = object.section_by_index(section).ok()?.relocations().find(|(at, _)| *at == address)?;
    match r.target() {
        RelocationTarget::Symbol(s) => {
            let symbol = object.symbol_by_index(s).ok()?;
            Some((symbol.section_index()?, symbol.address().checked_add_signed(r.addend())?))
        }
        RelocationTarget::Section(s) => Some((s, u64::try_from(r.addend()).ok()?)),
        _ => None,
    }
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
