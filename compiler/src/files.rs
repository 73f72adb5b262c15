//! Writing files so that a failure leaves nothing behind.
//!
//! What is written goes to a [`Scratch`] folder beside its place and gets its name at the end. Links are written
//! through: the file that a link leads to is replaced, the link stays. Devices, pipes and the streams of the process
//! are written into; they are never replaced.

use crate::diag::{Diagnostic, Result};
use crate::scratch::{Scratch, undisturbed};
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

/// Where an output goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A file or folder, behind all links: replaced as a whole. Perhaps there is none yet.
    Name(PathBuf),
    /// A device, a pipe or a stream of the process: written into.
    Stream(PathBuf),
}

impl Place {
    /// The place that a path leads to.
    ///
    /// # Errors
    /// When the system refuses, and when links lead to each other.
    pub fn of(path: &Path) -> io::Result<Place> {
        const MAX_LINKS: usize = 40;
        let mut path = path.to_path_buf();
        for _ in 0..MAX_LINKS {
            let Some(name) = path.file_name() else { return Ok(Place::Name(path)) };
            let folder = folder(&path).canonicalize()?;
            path = folder.join(name);
            // Links in there stand for open files, which may have no name: `/dev/stdout` leads here.
            if cfg!(target_os = "linux") && folder.starts_with("/proc") {
                return Ok(Place::Stream(path));
            }
            match path.symlink_metadata() {
                Ok(meta) if meta.is_symlink() => path = folder.join(path.read_link()?),
                Ok(meta) if meta.is_file() || meta.is_dir() => return Ok(Place::Name(path)),
                Ok(_) => return Ok(Place::Stream(path)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Place::Name(path)),
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other("there are too many links, one leading to the next"))
    }

    /// Whether a path leads to a stream.
    pub fn is_stream(path: &Path) -> bool {
        matches!(Place::of(path), Ok(Place::Stream(_)))
    }
}

/// The folder that a path is in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Files that get their names together at the end. Dropped without [`Pending::commit`], they are gone.
#[derive(Default)]
pub struct Pending {
    files: Vec<(Draft, PathBuf)>,
}

/// What will be at a path.
enum Draft {
    /// A file beside the place that it will have.
    Beside(Scratch, PathBuf),
    /// What will be written into a stream.
    Apart(File, PathBuf),
}

/// The name of a file in its scratch folder.
const DRAFT: &str = "new";

impl Pending {
    /// Writes the file that will be `path`.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written, there is a folder at `path`, or `write` fails.
    pub fn write(&mut self, path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> Result<()> {
        let draft = draft(path, write).map_err(|e| Diagnostic::io("write", path, &e))?;
        self.files.push((draft, path.to_owned()));
        Ok(())
    }

    /// Forgets the file that was written last.
    pub fn discard_last(&mut self) {
        self.files.pop();
    }

    /// Gives all files their names, which no handled signal interrupts, and returns them. Streams come first: they may wait.
    ///
    /// # Errors
    /// When a file cannot be renamed, or a stream does not take what is for it; what has its name already, stays.
    pub fn commit(mut self) -> Result<Vec<PathBuf>> {
        for (draft, path) in &mut self.files {
            if let Draft::Apart(file, stream) = draft {
                file.rewind().and_then(|()| pour(file, stream)).map_err(|e| Diagnostic::io("write", path, &e))?;
            }
        }
        undisturbed(|| {
            for (draft, path) in &self.files {
                if let Draft::Beside(scratch, place) = draft {
                    fs::rename(scratch.join(DRAFT), place).map_err(|e| Diagnostic::io("write", path, &e))?;
                }
            }
            Ok::<_, Box<Diagnostic>>(())
        })?;
        Ok(self.files.into_iter().map(|(_, path)| path).collect())
    }
}

fn draft(path: &Path, write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> io::Result<Draft> {
    let fill = |mut file: File| -> io::Result<File> {
        let mut out = BufWriter::with_capacity(1 << 16, &mut file);
        write(&mut out).and_then(|()| out.flush())?;
        drop(out);
        Ok(file)
    };
    match Place::of(path)? {
        Place::Name(place) => {
            let scratch = beside(&place)?;
            fill(File::create(scratch.join(DRAFT))?)?;
            Ok(Draft::Beside(scratch, place))
        }
        Place::Stream(stream) => Ok(Draft::Apart(fill(tempfile::tempfile()?)?, stream)),
    }
}

/// A scratch folder in the folder of `place`, where no folder is.
fn beside(place: &Path) -> io::Result<Scratch> {
    if place.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Scratch::new(folder(place)) }
}

/// Asks whether there is a folder for what will be at `path`.
///
/// # Errors
/// When there is not.
pub fn check_folder(path: &Path) -> Result<()> {
    let folder = folder(path);
    if folder.is_dir() {
        return Ok(());
    }
    let what = if folder.exists() { "is not a folder" } else { "does not exist" };
    Err(Diagnostic::failed(format!("cannot write `{}`: the folder `{}` {what}", path.display(), folder.display())))
}

/// Asks whether a file can be written at `path`, before the work that its contents take.
///
/// # Errors
/// When there is a folder at `path`, or its folder does not exist or cannot be written.
pub fn check(path: &Path) -> Result<()> {
    check_folder(path)?;
    let checked = match Place::of(path) {
        Ok(Place::Name(place)) => beside(&place).map(drop),
        Ok(Place::Stream(_)) => Ok(()),
        Err(e) => Err(e),
    };
    checked.map_err(|e| Diagnostic::io("write", path, &e))
}

/// Puts files at paths, in their order, which no handled signal interrupts where renaming is all it takes.
///
/// # Errors
/// When the system refuses, with the path; what has been put then stays.
pub fn put_all(files: &[(PathBuf, PathBuf)]) -> Result<(), (&Path, io::Error)> {
    let rename = |(file, path): &(PathBuf, PathBuf)| match Place::of(path) {
        Ok(Place::Name(place)) => fs::rename(file, place).is_ok(),
        _ => false,
    };
    let done = undisturbed(|| files.iter().take_while(|f| rename(f)).count());
    files[done..].iter().try_for_each(|(file, path)| put(file, path).map_err(|e| (path.as_path(), e)))
}

/// Puts a file at `path`: under this name, over what is there, or into the stream.
///
/// # Errors
/// When the system refuses; then what was there still is, unless it is a stream.
fn put(file: &Path, path: &Path) -> io::Result<()> {
    match Place::of(path)? {
        Place::Stream(stream) => pour(&mut File::open(file)?, &stream),
        Place::Name(place) => match fs::rename(file, &place) {
            // A link may lead to another file system.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                let scratch = beside(&place)?;
                fs::copy(file, scratch.join(DRAFT))?;
                fs::rename(scratch.join(DRAFT), place)
            }
            done => done,
        },
    }
}

/// Writes the rest of a file into a stream.
fn pour(from: &mut File, stream: &Path) -> io::Result<()> {
    io::copy(from, &mut open_stream(stream)?).map(|_| ())
}

/// Opens a stream for writing, behind what is in it. A pipe that nobody reads is an error: waiting for a reader could
/// take for ever.
fn open_stream(stream: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
        let file = open(stream, OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
        Ok(file.into())
    }
    #[cfg(not(unix))]
    fs::OpenOptions::new().append(true).open(stream)
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
        let e = Pending::default().write(folder.path(), |_| Ok(())).unwrap_err();
        assert!(e.what.contains("directory"), "{e}");
        let e = Pending::default().write(&folder.path().join("absent/a"), |_| Ok(())).unwrap_err();
        assert!(e.what.contains("absent/a`") && !e.what.contains(".tfc-"), "{e}");
        // Nobody makes files in there.
        let e = Pending::default().write(Path::new("/sys/a"), |_| Ok(())).unwrap_err();
        assert!(e.what.contains("/sys/a`") && !e.what.contains(".tfc-"), "{e}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_written_through() {
        use std::os::unix::fs::symlink;
        let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let link = near.path().join("link");
        symlink(far.path().join("target"), near.path().join("second")).unwrap();
        symlink("second", &link).unwrap();
        for text in ["new", "newer"] {
            let mut out = Pending::default();
            out.write(&link, |w| w.write_all(text.as_bytes())).unwrap();
            out.commit().unwrap();
            assert_eq!(fs::read_to_string(far.path().join("target")).unwrap(), text);
        }
        fs::write(near.path().join("file"), "put").unwrap();
        put(&near.path().join("file"), &link).unwrap();
        assert_eq!(fs::read_to_string(far.path().join("target")).unwrap(), "put");
        assert!(link.is_symlink() && near.path().join("second").is_symlink());
        assert_eq!((near.path().read_dir().unwrap().count(), far.path().read_dir().unwrap().count()), (2, 1));
        symlink("circle", near.path().join("circle")).unwrap();
        let e = Pending::default().write(&near.path().join("circle"), |_| Ok(())).unwrap_err();
        assert!(e.what.contains("too many links"), "{e}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_and_pipes_are_written_into() {
        use std::io::Read;
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let null = folder.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        let mut out = Pending::default();
        out.write(&null, |w| w.write_all(b"nothing")).unwrap();
        out.commit().unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device() && null.is_symlink());

        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        let write = |text: &str| {
            let mut out = Pending::default();
            out.write(&pipe, |w| w.write_all(text.as_bytes()))?;
            out.commit()
        };
        write("nobody reads").unwrap_err();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || {
                let mut text = String::new();
                File::open(pipe).unwrap().read_to_string(&mut text).unwrap();
                text
            }
        });
        // The reader may not have come yet.
        while write("somebody reads").is_err() {
            std::thread::yield_now();
        }
        assert_eq!(reader.join().unwrap(), "somebody reads");
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    }
}
