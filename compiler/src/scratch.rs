//! Folders for what is not complete yet. However the process ends, none stays for long.
//!
//! A scratch folder lies beside the place of an output, so that its contents can be renamed to there. It goes
//!
//! - when it is dropped;
//! - when SIGINT, SIGTERM or SIGHUP ends the process, after [`end_on_signals`];
//! - else, when the next scratch folder is made in the same folder, by whatever process. A process holds a lock on the
//!   file `lock` in each of its scratch folders, which the system releases when the process ends; so a number that
//!   another process has by now does not matter.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PREFIX: &str = ".tfc-";
const LOCK: &str = "lock";

/// The scratch folders of this process. Whoever holds it keeps signals from ending the process.
static FOLDERS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The number of the next one. None is given twice: whoever removes a folder shall not meet another one of its name.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn folders() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` so that a handled signal ends the process before or behind it, but not within. `f` makes and drops no scratch
/// folders.
pub fn undisturbed<T>(f: impl FnOnce() -> T) -> T {
    let _held = folders();
    f()
}

/// A folder for what is not complete yet.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    lock: Option<File>,
}

impl Scratch {
    /// A new folder in `folder`, which the user alone can look into. What dead processes left there is removed.
    ///
    /// # Errors
    /// When the system refuses. The error does not name the new folder, which nobody knows.
    pub fn new(folder: &Path) -> io::Result<Scratch> {
        let folder = std::path::absolute(folder)?;
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{PREFIX}{}-{n}", std::process::id()));
            let mut held = folders();
            match create(&path) {
                Ok(()) => held.insert(path.clone()),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            drop(held);
            let mut scratch = Scratch { path, lock: None };
            // Another process may take it for a dead one's until it is locked.
            if let Some(lock) = locked(&scratch.path)? {
                scratch.lock = Some(lock);
                remove_stale(&folder, &scratch.path);
                return Ok(scratch);
            }
        }
    }

    /// Where something of this name is in the folder.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Some systems do not remove open files.
        self.lock = None;
        let mut held = folders();
        remove(&self.path);
        held.remove(&self.path);
    }
}

fn create(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Locks a new scratch folder; `None` if it has been taken for a dead process's. Where files cannot be locked, nothing is
/// taken for that.
fn locked(path: &Path) -> io::Result<Option<File>> {
    let name = path.join(LOCK);
    let lock = match File::create_new(&name) {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let taken = matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)) || !name.exists();
    Ok((!taken).then_some(lock))
}

/// Removes the scratch folders of dead processes of the same user, whose folder `own` is.
fn remove_stale(folder: &Path, own: &Path) {
    // What cannot be listed, opened or removed is no matter of the one who wants to write something else.
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX) && path != own && same_owner(&path, own);
        if !ours {
            continue;
        }
        match File::options().write(true).open(path.join(LOCK)) {
            Ok(lock) if lock.try_lock().is_ok() => remove(&path),
            // Its process has not come to the lock, or was killed before; it has nothing in it. If it lives, it makes another.
            Err(e) if e.kind() == io::ErrorKind::NotFound => drop(fs::remove_dir(&path)),
            _ => {}
        }
    }
}

/// Whether the first path is a folder (not a link to one) of the same user as the second.
fn same_owner(path: &Path, own: &Path) -> bool {
    let (Ok(a), Ok(b)) = (path.symlink_metadata(), own.symlink_metadata()) else { return false };
    #[cfg(unix)]
    let same = std::os::unix::fs::MetadataExt::uid(&a) == std::os::unix::fs::MetadataExt::uid(&b);
    #[cfg(not(unix))]
    let same = b.is_dir();
    same && a.is_dir()
}

/// Removes a scratch folder, the lock last: whoever is stopped within leaves it for the next.
fn remove(path: &Path) {
    // A linker that outlives its caller may add a file in between.
    const TRIES: usize = 4;
    let once = || -> io::Result<()> {
        for entry in fs::read_dir(path)?.flatten().filter(|e| e.file_name() != LOCK) {
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
        match fs::remove_file(path.join(LOCK)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => fs::remove_dir(path),
        }
    };
    // What is left then is removed by the next one who writes here.
    let _ = (0..TRIES).any(|_| once().is_ok());
}

#[cfg(unix)]
mod signals {
    use super::{folders, remove};
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, OnceLock};

    static ENDING: OnceLock<Arc<AtomicBool>> = OnceLock::new();

    /// Lets SIGINT, SIGTERM and SIGHUP remove the scratch folders of the process before they end it, as they do by default:
    /// whoever waits for the process sees the signal. What the process was started to ignore (`nohup`) stays ignored, where
    /// the system tells.
    ///
    /// # Errors
    /// When the system refuses a handler or a thread.
    pub fn end_on_signals() -> io::Result<()> {
        let ignored = ignored();
        let wanted: Vec<i32> = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| ignored >> (s - 1) & 1 == 0).collect();
        let mut signals = Signals::new(&wanted)?;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let Some(signal) = signals.forever().next() else { return };
            // Held to the end: nothing is begun any more.
            let held = folders();
            held.iter().for_each(|path| remove(path));
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            std::process::exit(128 + signal);
        })?;
        let ending = ENDING.get_or_init(Arc::default);
        wanted.iter().try_for_each(|&signal| signal_hook::flag::register(signal, ending.clone()).map(drop))
    }

    /// Waits for the end of the process if a signal has come: an error that follows from it is not told.
    pub fn wait_if_ending() {
        while ENDING.get().is_some_and(|ending| ending.load(Ordering::SeqCst)) {
            std::thread::park();
        }
    }

    /// The signals that the process ignores, as bits; none where the system does not tell.
    fn ignored() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
        mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
    }
}

#[cfg(not(unix))]
mod signals {
    /// Other systems have no such signals.
    ///
    /// # Errors
    /// None.
    pub fn end_on_signals() -> std::io::Result<()> {
        Ok(())
    }

    /// Nothing ends the process from outside.
    pub fn wait_if_ending() {}
}

pub use signals::{end_on_signals, wait_if_ending};

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// What a process that was killed leaves: its lock is free.
    fn dead(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        fs::create_dir_all(path.join("new/deep")).unwrap();
        fs::write(path.join("new/deep/file"), "half").unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        path
    }

    #[test]
    fn what_dead_processes_left_goes_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        // Of a process whose number is this one's by now, of one that was killed before its lock, and while it removed.
        dead(folder, &format!("{PREFIX}{}-0", std::process::id()));
        fs::create_dir(folder.join(".tfc-1-0")).unwrap();
        fs::write(folder.join(".tfc-file"), "mine").unwrap();
        fs::create_dir(folder.join(".tfc-mine")).unwrap();
        fs::write(folder.join(".tfc-mine/file"), "mine").unwrap();
        // One that lives.
        let alive = dead(folder, ".tfc-2-0");
        let lock = File::open(alive.join(LOCK)).unwrap();
        lock.try_lock().unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(&alive, folder.join(".tfc-link")).unwrap();

        let scratch = Scratch::new(folder).unwrap();
        fs::write(scratch.join("new"), "half").unwrap();
        let second = Scratch::new(folder).unwrap();
        assert!(scratch.join("new").exists() && second.path.exists());
        drop((scratch, second));
        let link = if cfg!(unix) { vec![".tfc-link"] } else { vec![] };
        assert_eq!(names(folder), [vec![".tfc-2-0", ".tfc-file"], link, vec![".tfc-mine"]].concat());
        assert!(alive.join("new/deep/file").exists() && folder.join(".tfc-mine/file").exists());
        drop(lock);
        drop(Scratch::new(folder).unwrap());
        assert!(!alive.exists());
    }

    #[test]
    fn many_make_and_remove_at_once() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50 {
                        let scratch = Scratch::new(folder.path()).unwrap();
                        fs::write(scratch.join("new"), "half").unwrap();
                        assert_eq!(fs::read(scratch.join("new")).unwrap(), b"half");
                    }
                });
            }
        });
        assert!(names(folder.path()).is_empty());
    }
}
