//! Opening the files that are read or mapped as a whole: models, weights, code, data.

use std::fs::{File, FileType, Metadata, metadata};
use std::io;
use std::path::Path;

/// Opens a regular file for reading, through links.
///
/// # Errors
/// When the system refuses, and for everything that is not a regular file. That is not even opened: a named
/// pipe would block until somebody writes to it, and to open a device can have effects.
pub fn open(path: &Path) -> io::Result<File> {
    require_regular(&metadata(path)?)?;
    let file = File::open(path)?;
    // By now the name may belong to something else.
    require_regular(&file.metadata()?)?;
    Ok(file)
}

fn require_regular(meta: &Metadata) -> io::Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("this is {}, not a regular file", kind(meta.file_type()))))
}

/// What something in the file system is, with its article.
pub fn kind(t: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if t.is_fifo() {
            return "a named pipe";
        }
        if t.is_socket() {
            return "a socket";
        }
        if t.is_char_device() || t.is_block_device() {
            return "a device";
        }
    }
    match () {
        () if t.is_dir() => "a folder",
        () if t.is_symlink() => "a link",
        () => "a file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "x").unwrap();
        assert!(open(&path).is_ok());
        assert!(open(folder.path()).unwrap_err().to_string().contains("a folder, not a regular file"));
        assert_eq!(open(&folder.path().join("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
        #[cfg(unix)]
        {
            let (link, socket) = (folder.path().join("link"), folder.path().join("socket"));
            std::os::unix::fs::symlink(&path, &link).unwrap();
            assert!(open(&link).is_ok());
            let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            assert!(open(&socket).unwrap_err().to_string().contains("a socket, not a regular file"));
            assert!(open(Path::new("/dev/null")).unwrap_err().to_string().contains("a device, not a regular file"));
        }
    }
}
