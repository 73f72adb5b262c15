//! Files and folders that are complete or not there: everything is written into a temporary folder beside
//! its place and renamed at the end.

use super::ArtifactError;
use crate::kernel::Program;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tfc_runtime::weights::{Header, write_header};

/// A folder beside the place of an artifact, gone when it is dropped.
pub struct Staging {
    folder: TempDir,
    /// Where files are put that will be renamed: made with the usual permissions.
    pub inside: PathBuf,
}

impl Staging {
    /// A staging folder beside `out`.
    ///
    /// # Errors
    /// When the parent folder of `out` is not there or not writable.
    pub fn beside(out: &Path) -> Result<Staging, ArtifactError> {
        let parent = parent(out);
        let folder = tempfile::Builder::new().prefix(".tfc-").tempdir_in(parent).map_err(|e| ArtifactError::io("write to", parent, e))?;
        let inside = folder.path().join("new");
        fs::create_dir(&inside).map_err(|e| ArtifactError::io("create", &inside, e))?;
        Ok(Staging { folder, inside })
    }

    /// Writes a file to be renamed later and returns where it is.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, ArtifactError> {
        let path = self.inside.join(name);
        fs::write(&path, contents).map_err(|e| ArtifactError::io("write", &path, e))?;
        Ok(path)
    }

    /// Writes the weights file: a header page, then the packed weights, without a copy of them in memory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write_weights(&self, name: &str, program: &Program, header: &Header) -> Result<PathBuf, ArtifactError> {
        let path = self.inside.join(name);
        let failed = |e| ArtifactError::io("write", &path, e);
        let mut file = BufWriter::new(File::create(&path).map_err(failed)?);
        file.write_all(&write_header(header)).map_err(failed)?;
        let mut at = 0;
        for w in &program.weights {
            let gap = (w.offset - at) as usize;
            file.write_all(&vec![0; gap]).and_then(|()| file.write_all(&w.data)).map_err(failed)?;
            at = w.offset + w.data.len() as u64;
        }
        file.flush().map_err(failed)?;
        Ok(path)
    }

    /// Puts a written file in its place, over what is there.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn place(&self, file: &Path, out: &Path) -> Result<(), ArtifactError> {
        fs::rename(file, out).map_err(|e| ArtifactError::io("write", out, e))
    }

    /// Puts all files in place as the folder `out`. A folder that is there must be empty or an earlier
    /// bundle of the same name ([`check_place`]).
    ///
    /// # Errors
    /// When the file system refuses; then the earlier bundle is still there.
    pub fn place_folder(self, out: &Path, name: &str) -> Result<(), ArtifactError> {
        check_place(out, name)?;
        let failed = |e| ArtifactError::io("write", out, e);
        if !out.exists() {
            return fs::rename(&self.inside, out).map_err(failed);
        }
        let old = self.folder.path().join("old");
        fs::rename(out, &old).map_err(failed)?;
        fs::rename(&self.inside, out).map_err(|e| {
            // The first error is the one to tell.
            let _ = fs::rename(&old, out);
            failed(e)
        })
    }
}

fn parent(out: &Path) -> &Path {
    match out.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Whether a bundle called `name` may be put at `out`: nothing is there, or an empty folder, or a bundle
/// of that name without files of others in it.
///
/// # Errors
/// [`ArtifactError::Occupied`].
pub fn check_place(out: &Path, name: &str) -> Result<(), ArtifactError> {
    let occupied = |reason: String| Err(ArtifactError::Occupied { path: out.into(), reason });
    if !out.exists() {
        return Ok(());
    }
    if !out.is_dir() {
        return occupied("it is a file".into());
    }
    let failed = |e| ArtifactError::io("list", out, e);
    let mut entries = vec![];
    for entry in fs::read_dir(out).map_err(failed)? {
        entries.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    entries.sort();
    let manifest = format!("{name}.manifest.json");
    if !entries.is_empty() && !entries.contains(&manifest) {
        return occupied(format!("the folder is not empty and has no `{manifest}`, so it is not an earlier bundle of this model"));
    }
    let own =
        |f: &str| f.starts_with(&format!("{name}.")) || f == format!("lib{name}.a") || f.starts_with("example_main") || f == "Makefile";
    match entries.iter().find(|f| !own(f)) {
        Some(other) => occupied(format!("`{other}` in it is not part of a bundle and would be lost")),
        None => Ok(()),
    }
}
