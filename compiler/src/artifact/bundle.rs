//! Files and folders that are complete or not there: everything is written into a scratch folder beside its place and
//! renamed at the end.

use super::ArtifactError;
use crate::files::{self, Place};
use crate::kernel::Program;
use crate::scratch::{Scratch, undisturbed};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use tfc_runtime::weights::{Header, write_header};

/// A folder beside the place of an artifact, gone when it is dropped.
pub struct Staging {
    folder: Scratch,
    /// Where files are put that will be renamed: made with the usual permissions.
    pub inside: PathBuf,
    /// What the user calls the artifact.
    out: PathBuf,
}

impl Staging {
    /// A staging folder for `out`, which is at `place`.
    ///
    /// # Errors
    /// When the parent folder of `out` is not there or not writable.
    pub fn beside(out: &Path, place: &Place) -> Result<Staging, ArtifactError> {
        let parent = match place {
            Place::Name(name) => files::folder(name).to_path_buf(),
            Place::Stream(_) => std::env::temp_dir(),
        };
        let failed = |e| ArtifactError::io("write", out, e);
        let folder = Scratch::new(&parent).map_err(failed)?;
        let inside = folder.join("new");
        fs::create_dir(&inside).map_err(failed)?;
        Ok(Staging { folder, inside, out: out.into() })
    }

    /// Writes a file to be renamed later and returns where it is.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, ArtifactError> {
        let path = self.inside.join(name);
        fs::write(&path, contents).map_err(|e| ArtifactError::io("write", &self.out, e))?;
        Ok(path)
    }

    /// Writes the weights file: a header page, then the packed weights, without a copy of them in memory.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write_weights(&self, name: &str, program: &Program, header: &Header) -> Result<PathBuf, ArtifactError> {
        let path = self.inside.join(name);
        let failed = |e| ArtifactError::io("write", &self.out, e);
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

    /// Puts all files in place as the folder `place`. A folder that is there must be empty or an earlier bundle
    /// ([`check_place`]). At every moment there is a whole bundle at `place`, the earlier one or the new one,
    /// where the file system can exchange two folders; elsewhere a process that ends between two steps leaves the
    /// earlier one aside, and [`recover`] brings it back.
    ///
    /// # Errors
    /// When the file system refuses; then the earlier bundle is still there.
    pub fn place_folder(self, place: &Path) -> Result<(), ArtifactError> {
        check_place(place)?;
        undisturbed(|| self.replace(place)).map_err(|e| ArtifactError::io("write", &self.out, e))
    }

    fn replace(&self, place: &Path) -> io::Result<()> {
        if !place.exists() {
            return fs::rename(&self.inside, place);
        }
        if exchange(&self.inside, place).is_ok() {
            return Ok(());
        }
        let old = aside(place);
        fs::rename(place, &old)?;
        if let Err(e) = fs::rename(&self.inside, place) {
            // The first error is the one to tell.
            let _ = fs::rename(&old, place);
            return Err(e);
        }
        fs::rename(&old, self.folder.join("old"))
    }
}

/// Exchanges two folders in one step, where the system can.
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    {
        let _ = (a, b);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Where an earlier bundle is while its place is taken, on systems that cannot exchange folders.
fn aside(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}.tfc-old"))
}

/// Ends what a process left that was stopped while it replaced a bundle: the earlier bundle comes back if there is
/// none, else it goes.
///
/// # Errors
/// When the file system refuses.
pub fn recover(place: &Path) -> Result<(), ArtifactError> {
    let old = aside(place);
    if !old.is_dir() || check_place(&old).is_err() {
        return Ok(());
    }
    let done = if place.exists() { fs::remove_dir_all(&old) } else { fs::rename(&old, place) };
    done.map_err(|e| ArtifactError::io("write", place, e))
}

/// Whether a bundle may be put at `out`, as far as no file of others would be lost: nothing is there, or an empty folder,
/// or a bundle and nothing else. Returns whether it is a bundle.
///
/// # Errors
/// [`ArtifactError::Occupied`].
pub fn check_place(out: &Path) -> Result<bool, ArtifactError> {
    let occupied = |reason: String| Err(ArtifactError::Occupied { path: out.into(), reason });
    if !out.exists() {
        return Ok(false);
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
    if entries.is_empty() {
        return Ok(false);
    }
    let Some(name) = entries.iter().find_map(|f| f.strip_suffix(MANIFEST)) else {
        return occupied(format!("the folder is not empty and has no `NAME{MANIFEST}`, so it is not an earlier bundle"));
    };
    let own = |f: &str| {
        let named = f.starts_with(&format!("{name}.")) || f == format!("lib{name}.a") || f == format!("{name}-config.cmake");
        named || f.starts_with("example_main") || f == "Makefile"
    };
    match entries.iter().find(|f| !own(f)) {
        Some(other) => occupied(format!("`{other}` in it is not part of a bundle and would be lost")),
        None => Ok(true),
    }
}

/// What is behind the name of a bundle in the name of its manifest.
const MANIFEST: &str = ".manifest.json";

#[cfg(test)]
mod tests {
    use super::*;

    /// A bundle called `m` whose manifest has this text.
    fn bundle(at: &Path, text: &str) {
        fs::create_dir(at).unwrap();
        fs::write(at.join("m.manifest.json"), text).unwrap();
    }

    fn text(at: &Path) -> String {
        fs::read_to_string(at.join("m.manifest.json")).unwrap()
    }

    #[test]
    fn a_bundle_takes_the_place_of_the_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("m");
        for n in ["first", "second", "third"] {
            let staging = Staging::beside(&place, &Place::Name(place.clone())).unwrap();
            staging.write("m.manifest.json", n.as_bytes()).unwrap();
            staging.place_folder(&place).unwrap();
            assert_eq!(text(&place), n);
            assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        }
    }

    /// Where two steps would fail, since something is where the earlier bundle would wait, one does not.
    #[cfg(target_os = "linux")]
    #[test]
    fn bundles_are_exchanged_in_one_step() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("m");
        bundle(&place, "earlier");
        fs::create_dir(aside(&place)).unwrap();
        fs::write(aside(&place).join("mine"), "").unwrap();
        let staging = Staging::beside(&place, &Place::Name(place.clone())).unwrap();
        staging.write("m.manifest.json", b"new").unwrap();
        staging.place_folder(&place).unwrap();
        assert_eq!(text(&place), "new");
        assert!(aside(&place).join("mine").exists());
    }

    #[test]
    fn what_a_stopped_process_left_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("m");
        // Between the two renames: the earlier bundle is aside.
        bundle(&aside(&place), "earlier");
        recover(&place).unwrap();
        assert_eq!(text(&place), "earlier");
        // Behind them: it has not been removed.
        bundle(&aside(&place), "earliest");
        recover(&place).unwrap();
        assert_eq!(text(&place), "earlier");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
        // Not ours.
        fs::create_dir(aside(&place)).unwrap();
        fs::write(aside(&place).join("mine"), "").unwrap();
        recover(&place).unwrap();
        assert!(aside(&place).join("mine").exists());
    }
}
