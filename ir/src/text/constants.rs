//! Files of constants: what texts leave out, each content once.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | the text `tfc constants 1` and a line feed |
//! | 16 | 48 | zero |
//!
//! Then records, each of them aligned to 64 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 16 | XXH3-128 of the contents |
//! | 16 | 8 | bytes of the contents |
//! | 24 | 40 | zero |
//! | 64 | | the contents, and zeros up to the next record |
//!
//! Integers are little-endian. A file may grow while texts refer to it; a record that is cut off at its end does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

const MAGIC: &[u8; 16] = b"tfc constants 1\n";
const ALIGN: usize = 64;

/// The hash that a text has in the place of a constant's contents.
pub(super) fn hash(contents: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(contents)
}

/// A file of constants that is written.
pub struct Constants<'a> {
    out: Box<dyn io::Write + 'a>,
    known: BTreeSet<u128>,
    bytes: u64,
}

impl<'a> Constants<'a> {
    /// A new file, to which nothing is written before it has a constant.
    pub fn new(out: impl io::Write + 'a) -> Constants<'a> {
        Constants { out: Box::new(out), known: BTreeSet::new(), bytes: 0 }
    }

    /// A file that has `contents`, and is empty or a file of constants. What is written to `out` has its place at
    /// [`Constants::bytes`].
    ///
    /// # Errors
    /// When the contents are something else.
    pub fn after(contents: &[u8], out: impl io::Write + 'a) -> Result<Constants<'a>, String> {
        let mut constants = Constants::new(out);
        if !contents.is_empty() {
            let (records, bytes) = index(contents)?;
            (constants.known, constants.bytes) = (records.into_keys().collect(), bytes as u64);
        }
        Ok(constants)
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes contents that the file does not have, and returns their hash.
    pub(super) fn add(&mut self, contents: &[u8]) -> io::Result<u128> {
        let hash = hash(contents);
        if self.known.contains(&hash) {
            return Ok(hash);
        }
        let mut page = [0; 2 * ALIGN];
        page[..MAGIC.len()].copy_from_slice(MAGIC);
        page[ALIGN..][..16].copy_from_slice(&hash.to_le_bytes());
        page[ALIGN + 16..][..8].copy_from_slice(&(contents.len() as u64).to_le_bytes());
        let page = if self.bytes == 0 { &page[..] } else { &page[ALIGN..] };
        let padding = &[0; ALIGN][..contents.len().next_multiple_of(ALIGN) - contents.len()];
        for part in [page, contents, padding] {
            self.out.write_all(part)?;
            self.bytes += part.len() as u64;
        }
        self.known.insert(hash);
        Ok(hash)
    }
}

/// Where contents are, by their hash.
pub(super) type Index = BTreeMap<u128, Range<usize>>;

/// The index of a file of constants, and where the last whole record of it ends.
///
/// # Errors
/// When it is something else.
pub(super) fn index(file: &[u8]) -> Result<(Index, usize), String> {
    if file.len() < ALIGN || !file.starts_with(MAGIC) {
        return Err("it does not begin as files of constants do".into());
    }
    let (mut records, mut at) = (Index::new(), ALIGN);
    while let Some(record) = file.get(at..at + ALIGN) {
        let hash = u128::from_le_bytes(record[..16].try_into().expect("16 bytes"));
        let bytes = u64::from_le_bytes(record[16..24].try_into().expect("8 bytes"));
        let begin = at + ALIGN;
        let end = usize::try_from(bytes)
            .ok()
            .and_then(|n| begin.checked_add(n))
            .and_then(|end| Some((end, end.checked_next_multiple_of(ALIGN)?)));
        let Some((end, next)) = end.filter(|(_, next)| *next <= file.len()) else { break };
        records.insert(hash, begin..end);
        at = next;
    }
    Ok((records, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_is_there_once_and_cut_records_do_not_count() {
        let mut file = vec![];
        let mut constants = Constants::new(&mut file);
        let contents: [&[u8]; 3] = [&[1; 100], &[2; 64], &[]];
        let hashes: Vec<u128> = contents.iter().map(|c| constants.add(c).unwrap()).collect();
        let bytes = constants.bytes();
        assert_eq!(constants.add(contents[0]).unwrap(), hashes[0]);
        assert_eq!(constants.bytes(), bytes);
        drop(constants);
        assert_eq!((file.len() as u64, bytes), (bytes, 64 + (64 + 128) + (64 + 64) + 64));
        let (records, end) = index(&file).unwrap();
        assert_eq!(end, file.len());
        assert!(hashes.iter().zip(contents).all(|(h, c)| file[records[h].clone()] == *c));

        let (records, end) = index(&file[..file.len() - 65]).unwrap();
        assert_eq!((records.len(), end), (1, 64 + 64 + 128));
        let mut grown = file[..end].to_vec();
        let mut constants = Constants::after(&file[..file.len() - 65], &mut grown).unwrap();
        assert_eq!(constants.bytes(), end as u64);
        assert!(contents.iter().all(|c| constants.add(c).is_ok()));
        drop(constants);
        assert_eq!(grown, file);

        assert!(index(b"").is_err() && index(&[0; 64]).is_err() && Constants::after(b"mine", io::sink()).is_err());
        file[64 + 16..][..8].fill(0xff);
        assert_eq!(index(&file).unwrap().1, 64);
    }
}
