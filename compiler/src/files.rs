//! Writing files so that a failure leaves nothing behind.

use crate::diag::{Diagnostic, Result};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// Files that are written under temporary names, beside where they belong, and get their names
/// together at the end. Dropped without [`Pending::commit`], they are gone.
#[derive(Default)]
pub struct Pending {
    files: Vec<(NamedTempFile, PathBuf)>,
}

impl Pending {
    /// Writes the file that will be `path`.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written, or `write` fails.
    pub fn write(&mut self, path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> Result<()> {
        let fail = |e: io::Error| Diagnostic::io("write", path, &e);
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tfc-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder).map_err(fail)?;
        let mut out = BufWriter::with_capacity(1 << 16, file.as_file_mut());
        write(&mut out).and_then(|()| out.flush()).map_err(fail)?;
        drop(out);
        self.files.push((file, path.to_owned()));
        Ok(())
    }

    /// Forgets the file that was written last.
    pub fn discard_last(&mut self) {
        self.files.pop();
    }

    /// Gives all files their names and returns them.
    ///
    /// # Errors
    /// When a file cannot be renamed; those that were, stay.
    pub fn commit(self) -> Result<Vec<PathBuf>> {
        let mut paths = vec![];
        for (file, path) in self.files {
            file.persist(&path).map_err(|e| Diagnostic::io("write", &path, &e.error))?;
            paths.push(path);
        }
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_appears_before_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let entries = || std::fs::read_dir(folder.path()).unwrap().count();
        let path = folder.path().join("a");
        let mut failing = Pending::default();
        failing.write(&path, |w| w.write_all(b"half")).unwrap();
        failing.write(&folder.path().join("b"), |_| Err(io::Error::other("full"))).unwrap_err();
        drop(failing);
        assert_eq!(entries(), 0);
        let mut good = Pending::default();
        good.write(&path, |w| w.write_all(b"whole")).unwrap();
        assert!(!path.exists());
        good.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(entries(), 1);
    }
}
