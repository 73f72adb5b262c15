//! The weights file: one header page, then the packed weights.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, the bytes `TFCW` |
//! | 4 | 4 | format version, 1 |
//! | 8 | 8 | bytes of the header, 4096: where the data begins |
//! | 16 | 8 | bytes of the data |
//! | 24 | 16 | XXH3-128 of the data |
//! | 40 | 16 | hash of the model that the data were made of; zero if that is not told |
//! | 56 | 4040 | zero |
//!
//! Integers are little-endian on every target; the data are in the byte order of the target. The file
//! ends with the data. The data begin on a page, so a mapped file keeps the alignment that the
//! compiler gave each weight, up to [`PAGE`].
//!
//! The code of a model carries the byte count and the hash of its weights. `NAME_init` compares both
//! with the header, which costs the same for every size; [`verify_contents`] reads all of the data.

use xxhash_rust::xxh3::xxh3_128;

/// Bytes of the header, and the alignment of the data within the file.
pub const PAGE: usize = 4096;
/// The first bytes of a weights file.
pub const MAGIC: [u8; 4] = *b"TFCW";
/// The version that this crate writes and reads.
pub const VERSION: u32 = 1;

/// Offset of the magic.
pub const MAGIC_OFFSET: usize = 0;
/// Offset of the format version, a `u32`.
pub const VERSION_OFFSET: usize = 4;
/// Offset of the header's size in bytes, a `u64`.
pub const HEADER_BYTES_OFFSET: usize = 8;
/// Offset of the data's size in bytes, a `u64`.
pub const DATA_BYTES_OFFSET: usize = 16;
/// Offset of the hash of the data, a `u128`: its low half comes first.
pub const HASH_OFFSET: usize = 24;
/// Offset of the hash of the model, a `u128`. Only the compiler reads it, before it replaces a file.
pub const MODEL_OFFSET: usize = 40;

const FIELDS_END: usize = MODEL_OFFSET + 16;

/// What the header of a weights file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes of the data, without the header.
    pub data_bytes: u64,
    /// [`content_hash`] of the data.
    pub hash: u128,
    /// Hash of the model that the data were made of; zero if that is not told.
    pub model: u128,
}

impl Header {
    /// The header of a file that holds `data`, of a model that it does not tell.
    pub fn of(data: &[u8]) -> Header {
        Header { data_bytes: data.len() as u64, hash: content_hash(data), model: 0 }
    }

    /// Bytes of the whole file; `None` when that leaves `u64`.
    pub fn file_bytes(&self) -> Option<u64> {
        self.data_bytes.checked_add(PAGE as u64)
    }
}

/// Why bytes are not a weights file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file ends before the header or before the data do.
    #[error("it ends after {actual} bytes where {expected} are needed: the file is cut off")]
    Short {
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        actual: u64,
    },
    /// The file has more bytes than the header says.
    #[error("it has {actual} bytes where its header says {expected}: the file is damaged")]
    Long {
        /// Bytes by the header.
        expected: u64,
        /// Bytes there.
        actual: u64,
    },
    /// Another kind of file.
    #[error("it begins with {0:02x?} instead of \"TFCW\": this is not a weights file")]
    Magic([u8; 4]),
    /// A version that this crate does not read.
    #[error("it has format version {0} and this runtime reads version {VERSION}: compile the model again with the matching tfc")]
    Version(u32),
    /// A header that no compiler writes.
    #[error("its header says that {0} bytes precede the data instead of {PAGE}: the file is damaged")]
    HeaderBytes(u64),
    /// The data do not have the hash of the header.
    #[error("its data have the hash {actual:032x} where the header says {expected:032x}: the file is damaged")]
    Contents {
        /// Hash in the header.
        expected: u128,
        /// Hash of the data.
        actual: u128,
    },
}

/// The hash that ties weights to code: XXH3-128 with seed 0.
pub fn content_hash(data: &[u8]) -> u128 {
    xxh3_128(data)
}

/// The first page of a weights file; the data follow it.
pub fn write_header(header: &Header) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[MAGIC_OFFSET..][..4].copy_from_slice(&MAGIC);
    page[VERSION_OFFSET..][..4].copy_from_slice(&VERSION.to_le_bytes());
    page[HEADER_BYTES_OFFSET..][..8].copy_from_slice(&(PAGE as u64).to_le_bytes());
    page[DATA_BYTES_OFFSET..][..8].copy_from_slice(&header.data_bytes.to_le_bytes());
    page[HASH_OFFSET..][..16].copy_from_slice(&header.hash.to_le_bytes());
    page[MODEL_OFFSET..][..16].copy_from_slice(&header.model.to_le_bytes());
    page
}

/// The header of `file`, which holds the whole file: its size must be what the header says. The data
/// are not read.
pub fn parse_header(file: &[u8]) -> Result<Header, HeaderError> {
    let actual = file.len() as u64;
    if let Some(magic) = file.first_chunk::<4>()
        && *magic != MAGIC
    {
        return Err(HeaderError::Magic(*magic));
    }
    let Some(fields) = file.first_chunk::<FIELDS_END>().filter(|_| file.len() >= PAGE) else {
        return Err(HeaderError::Short { expected: PAGE as u64, actual });
    };
    let version = u32::from_le_bytes(array(fields, VERSION_OFFSET));
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    let header_bytes = u64::from_le_bytes(array(fields, HEADER_BYTES_OFFSET));
    if header_bytes != PAGE as u64 {
        return Err(HeaderError::HeaderBytes(header_bytes));
    }
    let header = Header {
        data_bytes: u64::from_le_bytes(array(fields, DATA_BYTES_OFFSET)),
        hash: u128::from_le_bytes(array(fields, HASH_OFFSET)),
        model: u128::from_le_bytes(array(fields, MODEL_OFFSET)),
    };
    match header.file_bytes().unwrap_or(u64::MAX) {
        expected if actual < expected => Err(HeaderError::Short { expected, actual }),
        expected if actual > expected => Err(HeaderError::Long { expected, actual }),
        _ => Ok(header),
    }
}

/// [`parse_header`], and the data have the hash that the header says. Reads all of the file.
pub fn verify_contents(file: &[u8]) -> Result<Header, HeaderError> {
    let header = parse_header(file)?;
    match content_hash(&file[PAGE..]) {
        actual if actual == header.hash => Ok(header),
        actual => Err(HeaderError::Contents { expected: header.hash, actual }),
    }
}

fn array<const N: usize>(fields: &[u8; FIELDS_END], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&fields[offset..offset + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(data: &[u8]) -> Vec<u8> {
        [write_header(&Header::of(data)).as_slice(), data].concat()
    }

    #[test]
    fn a_written_header_is_read_back() {
        for data in [&b""[..], b"weights", &[7; 10_000]] {
            let f = file(data);
            assert_eq!(parse_header(&f), Ok(Header::of(data)));
            assert_eq!(verify_contents(&f), Ok(Header::of(data)));
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let (hash, model) = (0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100, 0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110);
        let page = write_header(&Header { data_bytes: 0x0102, hash, model });
        assert_eq!(page[..8], *b"TFCW\x01\0\0\0");
        assert_eq!(page[8..24], [0, 0x10, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page[24..40], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(page[40..56], std::array::from_fn::<u8, 16, _>(|i| 16 + i as u8));
        assert!(page[56..].iter().all(|&b| b == 0));
    }

    #[test]
    fn the_hash_is_xxh3() {
        assert_eq!(content_hash(b""), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
    }

    #[test]
    fn every_damage_has_its_error() {
        let good = file(b"weights");
        let changed = |at: usize, to: u8| {
            let mut f = good.clone();
            f[at] = to;
            f
        };
        assert_eq!(parse_header(&[]), Err(HeaderError::Short { expected: 4096, actual: 0 }));
        assert_eq!(parse_header(&good[..100]), Err(HeaderError::Short { expected: 4096, actual: 100 }));
        assert_eq!(parse_header(&good[..4100]), Err(HeaderError::Short { expected: 4103, actual: 4100 }));
        assert_eq!(parse_header(&changed(0, b'X')), Err(HeaderError::Magic(*b"XFCW")));
        assert_eq!(parse_header(&changed(4, 2)), Err(HeaderError::Version(2)));
        assert_eq!(parse_header(&changed(8, 64)), Err(HeaderError::HeaderBytes(4096 + 64)));
        assert_eq!(parse_header(&changed(16, 6)), Err(HeaderError::Long { expected: 4102, actual: 4103 }));
        assert!(matches!(verify_contents(&changed(4096, b'W')), Err(HeaderError::Contents { .. })));
        assert!(matches!(verify_contents(&changed(30, 0xff)), Err(HeaderError::Contents { .. })));
        assert!(matches!(parse_header(&changed(23, 0xff)), Err(HeaderError::Short { .. })));
    }
}
