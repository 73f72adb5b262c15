//! Static libraries.

use super::ArtifactError;
use ar_archive_writer::{ArchiveKind, DEFAULT_OBJECT_READER, NewArchiveMember, write_archive_to_stream};
use std::io::Cursor;
use target_lexicon::{BinaryFormat, Triple};

/// A static library with one object and an index of its symbols. Owner and date of the member are 0.
///
/// # Errors
/// When the object cannot be read: a bug of ours.
pub fn of(object: &[u8], member: &str, target: &Triple) -> Result<Vec<u8>, ArtifactError> {
    let kind = match target.binary_format {
        BinaryFormat::Macho => ArchiveKind::Darwin,
        BinaryFormat::Coff => ArchiveKind::Coff,
        _ => ArchiveKind::Gnu,
    };
    let members = [NewArchiveMember::new(object, &DEFAULT_OBJECT_READER, member.into())];
    let mut out = Cursor::new(vec![]);
    write_archive_to_stream(&mut out, &members, kind, false, None)
        .map_err(|e| ArtifactError::Internal(format!("no static library: {e}")))?;
    Ok(out.into_inner())
}
