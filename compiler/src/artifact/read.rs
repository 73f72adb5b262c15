//! The manifest of an artifact, for any target. No code of the artifact runs.

use crate::diag::{Diagnostic, Result};
use crate::onnx::map_file;
use object::read::archive::ArchiveFile;
use object::{File, Object, ObjectKind, ObjectSection, ObjectSymbol, ObjectSymbolTable, RelocationTarget, SectionIndex};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tfc_runtime::abi::{ENTRY_MAGIC, ENTRY_SUFFIX, entry_offset};
use tfc_runtime::manifest::Manifest;

/// The manifest of a bundle is a file in it: it knows the sizes of the code, which the code cannot.
///
/// # Errors
/// When the folder does not have one such file, or it cannot be read.
pub fn of_bundle(folder: &Path) -> Result<Value> {
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

/// The manifest in an object, a static library, a shared library or an executable.
///
/// # Errors
/// When the file cannot be read, or was not made by tfc.
pub fn of_file(path: &Path) -> Result<Manifest> {
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
