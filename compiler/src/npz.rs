//! Tensors in `.npz` files: what NumPy's `savez`, `savez_compressed` and `load` write and read.
//!
//! An `.npz` is a zip archive with a file `NAME.npy` per array. An `.npy` begins with the magic
//! `\x93NUMPY`, two bytes of version, the length of the header, and the header: a Python dictionary with
//! the keys `descr`, `fortran_order` and `shape`. The elements follow.
//!
//! Headers are read first and for all members; elements only when they are asked for, into memory that
//! is aligned for every element type. Nothing is allocated before the size by the header is compared
//! with the size by the archive, and the latter with what the compressed bytes can hold.
//!
//! NumPy has no `bf16`. What the package `ml_dtypes` calls `bfloat16` is saved as `V2`, two bytes without
//! a meaning, and so is `bf16` here: `numpy.load(FILE)["x"].view(ml_dtypes.bfloat16)` reads it. Where
//! `bf16` is wanted, `uint16` with the same bits will do.

use bytes::Bytes;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;
use tfc_runtime::Buffer;
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// The longest header that is read; real ones have about a hundred bytes.
const MAX_HEADER: usize = 1 << 16;
/// Deflate cannot shrink by more than this.
const MAX_RATIO: u64 = 1032;

/// Something is wrong with an archive or a member.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {reason}", path.display(), if member.is_empty() { String::new() } else { format!(", member `{member}`") })]
pub struct NpzError {
    /// The archive.
    pub path: PathBuf,
    /// The array; empty when it is the archive.
    pub member: String,
    /// What is wrong.
    pub reason: String,
}

/// What the header of a member says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// NumPy's name of the element type, such as `<f4`.
    pub descr: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The first axis runs fastest.
    fortran: bool,
    /// The element type, unless there is none for `descr`.
    pub elem: Option<Elem>,
    /// The bytes of an element are the other way round.
    big_endian: bool,
    /// Bytes before the elements.
    bytes: u64,
}

impl Header {
    /// Whether the elements can be read as `elem`: they have this type, or they are the bits of `bf16`.
    pub fn can_be(&self, elem: Elem) -> bool {
        self.elem == Some(elem) || (self.elem, elem) == (Some(Elem::U16), Elem::Bf16)
    }

    /// The type in text form, such as `f32[2, 64]`.
    pub fn type_text(&self) -> String {
        let elem = self.elem.map_or_else(|| format!("`{}`", self.descr), |e| e.name().into());
        format!("{elem}{:?}", self.shape)
    }
}

/// A member of an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// The name of the array.
    pub name: String,
    /// Its header.
    pub header: Header,
    index: usize,
}

/// An archive whose headers have been read.
pub struct Archive {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    members: Vec<Member>,
}

impl Archive {
    /// Opens an archive and reads the headers of all arrays in it.
    ///
    /// # Errors
    /// When the file is not a regular one, cannot be read, is not an archive, or a header is not one.
    pub fn open(path: &Path) -> Result<Archive, NpzError> {
        let whole = |reason: String| NpzError { path: path.into(), member: String::new(), reason };
        let file = tfc_runtime::file::open(path).map_err(|e| whole(format!("cannot open the file: {e}")))?;
        let zip =
            ZipArchive::new(BufReader::new(file)).map_err(|e| whole(format!("this is not an .npz archive, or it is damaged: {e}")))?;
        if zip.has_duplicate_names() {
            return Err(whole("the archive has a member twice".into()));
        }
        let mut archive = Archive { path: path.into(), zip, members: vec![] };
        for index in 0..archive.zip.len() {
            let entry = archive.zip.by_index(index).map_err(|e| whole(format!("entry {index} of the archive: {}", reason(e))))?;
            let name = entry.name().map_err(|e| whole(format!("the name of entry {index} of the archive: {}", reason(e))))?;
            let Some(name) = name.strip_suffix(".npy").map(str::to_owned) else { continue };
            let fail = |reason: String| NpzError { path: path.into(), member: name.clone(), reason };
            let (size, packed, stored) = (entry.size(), entry.compressed_size(), entry.compression() == CompressionMethod::Stored);
            let most = if stored { packed } else { packed.saturating_mul(MAX_RATIO).saturating_add(MAX_RATIO) };
            if size > most {
                return Err(fail(format!("the archive says that {packed} bytes unpack to {size}: it is damaged")));
            }
            let header = read_header(entry).map_err(fail)?;
            if let Some(elem) = header.elem {
                let count = header.shape.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
                let expected = count.and_then(|n| (n as u64).checked_mul(elem.bits() as u64 / 8)).and_then(|n| n.checked_add(header.bytes));
                if expected != Some(size) {
                    let found = size.saturating_sub(header.bytes);
                    return Err(fail(format!("the header says {}, but the member has {found} bytes of elements", header.type_text())));
                }
            }
            archive.members.push(Member { name, header, index });
        }
        Ok(archive)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The arrays, in the order of the archive.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The array called `name`.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|m| m.name == name)
    }

    /// The elements of an array, row-major and in the byte order of the machine, aligned to 64 bytes.
    ///
    /// # Errors
    /// When there is no such array, its elements have a type that models do not have, they are
    /// damaged, or there is not enough memory.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor, NpzError> {
        let elem = self.member(name).and_then(|m| m.header.elem);
        self.tensor_as(name, elem.unwrap_or(Elem::F32))
    }

    /// As [`Archive::tensor`], with elements of the type `elem`, which the header must allow ([`Header::can_be`]).
    ///
    /// # Errors
    /// As [`Archive::tensor`]; when the header does not allow `elem`.
    pub fn tensor_as(&mut self, name: &str, elem: Elem) -> Result<Tensor, NpzError> {
        let path = self.path.clone();
        let fail = |reason: String| NpzError { path: path.clone(), member: name.into(), reason };
        let Some(Member { header, index, .. }) = self.member(name).cloned() else {
            return Err(fail("the archive has no such member".into()));
        };
        if header.elem.is_none() {
            return Err(fail(format!("models have no elements of the type `{}`", header.descr)));
        }
        if !header.can_be(elem) {
            return Err(fail(format!("the array is {}, not {elem}", header.type_text())));
        }
        let width = elem.bits() as usize / 8;
        let count: usize = header.shape.iter().product();
        let mut data = Buffer::new(count * width).map_err(|e| fail(e.to_string()))?;
        let mut entry = self.zip.by_index(index).map_err(|e| fail(reason(e)))?;
        let damaged = |e: io::Error| fail(format!("the elements are damaged: {e}"));
        io::copy(&mut entry.by_ref().take(header.bytes), &mut io::sink()).map_err(damaged)?;
        entry.read_exact(&mut data).map_err(damaged)?;
        // The checksum is compared at the end.
        io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        if header.big_endian {
            data.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        if elem == Elem::Bool && data.iter().any(|&b| b > 1) {
            return Err(fail("an element of the bool array is neither 0 nor 1".into()));
        }
        if header.fortran && header.shape.len() > 1 {
            data = row_major(&data, &header.shape, width).map_err(|e| fail(e.to_string()))?;
        }
        Tensor::new(elem, header.shape, owned(data)).map_err(|e| fail(e.to_string()))
    }
}

/// The memory of a buffer as shared bytes.
pub fn owned(buffer: Buffer) -> Bytes {
    struct Owner(Buffer);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Owner(buffer))
}

fn reason(e: ZipError) -> String {
    match e {
        ZipError::Io(e) => e.to_string(),
        ZipError::InvalidArchive(what) => format!("the archive is damaged: {what}"),
        ZipError::UnsupportedArchive(what) => format!("this kind of archive is not supported: {what}"),
        ZipError::FileNotFound => "there is no such file in the archive".into(),
        other => other.to_string(),
    }
}

/// Column-major elements in row-major order.
fn row_major(data: &[u8], shape: &[usize], width: usize) -> Result<Buffer, tfc_runtime::buffer::OutOfMemory> {
    let mut out = Buffer::new(data.len())?;
    let mut index = vec![0usize; shape.len()];
    let strides: Vec<usize> = shape.iter().scan(width, |s, &n| Some(std::mem::replace(s, *s * n))).collect();
    for to in out.chunks_exact_mut(width) {
        let from: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        to.copy_from_slice(&data[from..from + width]);
        for (i, &n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
    Ok(out)
}

fn read_header(mut npy: impl Read) -> Result<Header, String> {
    let mut read = |n: usize| {
        let mut bytes = vec![0; n];
        npy.read_exact(&mut bytes).map_err(|e| format!("the header is cut off or damaged: {e}")).map(|()| bytes)
    };
    let start = read(8)?;
    if start[..6] != *MAGIC {
        return Err("this is not an .npy file".into());
    }
    let (len, before) = match start[6] {
        1 => (u16::from_le_bytes(read(2)?.try_into().expect("2 bytes")) as usize, 10),
        2 | 3 => (u32::from_le_bytes(read(4)?.try_into().expect("4 bytes")) as usize, 12),
        v => return Err(format!("version {v} of the .npy format is not known")),
    };
    if len > MAX_HEADER {
        return Err(format!("the header has {len} bytes; at most {MAX_HEADER} are read"));
    }
    let text = String::from_utf8(read(len)?).map_err(|_| "the header is not text")?;
    parse_header(&text, (before + len) as u64).ok_or_else(|| format!("the header is not one of a plain array: {}", text.trim()))
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
fn parse_header(text: &str, bytes: u64) -> Option<Header> {
    let mut descr = None;
    let mut fortran = None;
    let mut shape = None;
    let mut rest = text.trim().strip_prefix('{')?.trim_start();
    while !rest.starts_with('}') {
        let (key, after) = quoted(rest)?;
        rest = after.trim_start().strip_prefix(':')?.trim_start();
        match key {
            "descr" => {
                let (value, after) = quoted(rest)?;
                (descr, rest) = (Some(value), after);
            }
            "fortran_order" => {
                let (value, word) = [(false, "False"), (true, "True")].into_iter().find(|(_, w)| rest.starts_with(w))?;
                (fortran, rest) = (Some(value), &rest[word.len()..]);
            }
            "shape" => {
                let (sizes, after) = rest.strip_prefix('(')?.split_once(')')?;
                let sizes = sizes.split(',').map(str::trim).filter(|s| !s.is_empty());
                (shape, rest) = (Some(sizes.map(|s| s.trim_end_matches('L').parse().ok()).collect::<Option<Vec<usize>>>()?), after);
            }
            _ => return None,
        }
        rest = rest.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    let (descr, fortran, shape) = (descr?, fortran?, shape?);
    Some(Header { descr: descr.into(), shape, fortran, elem: elem(descr), big_endian: descr.starts_with('>'), bytes })
}

/// The string in quotes at the begin of `text`, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}

/// The element types by NumPy's names, without the mark of the byte order.
const DESCRS: [(&str, Elem); 13] = [
    ("b1", Elem::Bool),
    ("i1", Elem::I8),
    ("u1", Elem::U8),
    ("i2", Elem::I16),
    ("u2", Elem::U16),
    ("i4", Elem::I32),
    ("u4", Elem::U32),
    ("i8", Elem::I64),
    ("u8", Elem::U64),
    ("f2", Elem::F16),
    ("V2", Elem::Bf16),
    ("f4", Elem::F32),
    ("f8", Elem::F64),
];

fn elem(descr: &str) -> Option<Elem> {
    let plain = descr.strip_prefix(['<', '>', '|', '='])?;
    DESCRS.iter().find(|(d, _)| *d == plain).map(|(_, e)| *e)
}

/// Whether `.npy` files can hold elements of this type; they have no 4-bit integers.
pub fn has_type(elem: Elem) -> bool {
    DESCRS.iter().any(|(_, e)| *e == elem)
}

/// Writes an archive with these arrays. The same arrays give the same bytes.
///
/// # Errors
/// Those of the writer, and when an array has a type that `.npy` files do not have ([`has_type`]).
pub fn write<'a>(out: impl Write + Seek, arrays: impl IntoIterator<Item = (&'a str, Elem, &'a [usize], &'a [u8])>) -> io::Result<()> {
    let mut zip = ZipWriter::new(out);
    for (name, elem, shape, data) in arrays {
        let Some((descr, _)) = DESCRS.iter().find(|(_, e)| *e == elem) else {
            return Err(io::Error::other(format!("`{name}` has elements of the type {elem}, which .npy files do not have")));
        };
        let order = if elem.bits() == 8 { '|' } else { '<' };
        let sizes: String = shape.iter().map(|s| format!("{s},")).collect();
        let mut header = format!("{{'descr': '{order}{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
        // Elements begin at a multiple of 64 bytes, and the header ends with a line break.
        let padding = (10 + header.len() + 1).next_multiple_of(64) - (10 + header.len() + 1);
        header.extend(std::iter::repeat_n(' ', padding));
        header.push('\n');
        let len = u16::try_from(header.len()).map_err(|_| io::Error::other(format!("`{name}` has too many axes")))?;
        let large = data.len() as u64 > u64::from(u32::MAX) - 4096;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(large);
        zip.start_file(format!("{name}.npy"), options)?;
        zip.write_all(MAGIC)?;
        zip.write_all(&[1, 0])?;
        zip.write_all(&len.to_le_bytes())?;
        zip.write_all(header.as_bytes())?;
        zip.write_all(data)?;
    }
    zip.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use tfc_ir::tensor::Scalar;

    /// An archive with one member of this header and these bytes.
    fn archive(header: &str, data: &[u8], method: CompressionMethod) -> Result<Tensor, NpzError> {
        let mut zip = ZipWriter::new(Cursor::new(vec![]));
        zip.start_file("x.npy", SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
        zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
        zip.write_all(header.as_bytes()).unwrap();
        zip.write_all(data).unwrap();
        read(&zip.finish().unwrap().into_inner())
    }

    fn read(file: &[u8]) -> Result<Tensor, NpzError> {
        let mut temporary = tempfile::NamedTempFile::new().unwrap();
        temporary.write_all(file).unwrap();
        Archive::open(temporary.path())?.tensor("x")
    }

    fn header(descr: &str, fortran: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
    }

    #[test]
    fn every_type_is_written_and_read_back() {
        for (_, elem) in DESCRS {
            for sizes in [&[][..], &[3], &[2, 3], &[0, 5]] {
                let t = Tensor::build(elem, sizes, |i| Scalar::Int(i as i128 % 2));
                let mut file = Cursor::new(vec![]);
                write(&mut file, [("x", elem, sizes, &t.bytes()[..])]).unwrap();
                assert_eq!(read(file.get_ref()).unwrap(), t, "{elem}");
            }
        }
        assert!(write(Cursor::new(vec![]), [("x", Elem::I4, &[][..], &[0][..])]).unwrap_err().to_string().contains("i4"));
    }

    #[test]
    fn orders_and_compression_are_understood() {
        let big: Vec<u8> = [1.5f32, -2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_be_bytes()).collect();
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let t = archive(&header(">f4", "False", "(2, 3)"), &big, method).unwrap();
            assert_eq!(t.to_f64s(), [1.5, -2.0, 3.0, 4.0, 5.0, 6.0]);
            let t = archive(&header(">f4", "True", "(2, 3)"), &big, method).unwrap();
            assert_eq!(t.to_f64s(), [1.5, 3.0, 5.0, -2.0, 4.0, 6.0]);
        }
        let t = archive("{\"shape\": (2L,), \"descr\": \"|b1\", \"fortran_order\": False}", &[0, 1], CompressionMethod::Stored).unwrap();
        assert_eq!((t.elem(), t.sizes()), (Elem::Bool, &[2][..]));
    }

    #[test]
    fn bf16_is_two_bytes_without_a_meaning_or_their_bits() {
        // 1 and -2.
        let bits = [0x80, 0x3f, 0x00, 0xc0];
        for descr in ["<V2", "|V2", "<u2"] {
            let mut zip = ZipWriter::new(Cursor::new(vec![]));
            let text = header(descr, "False", "(2,)");
            zip.start_file("x.npy", SimpleFileOptions::default()).unwrap();
            zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
            zip.write_all(&(text.len() as u16).to_le_bytes()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
            zip.write_all(&bits).unwrap();
            let mut temporary = tempfile::NamedTempFile::new().unwrap();
            temporary.write_all(&zip.finish().unwrap().into_inner()).unwrap();
            let mut archive = Archive::open(temporary.path()).unwrap();
            assert_eq!(archive.tensor_as("x", Elem::Bf16).unwrap().to_f64s(), [1.0, -2.0], "{descr}");
            assert!(archive.tensor_as("x", Elem::F16).unwrap_err().to_string().contains("not f16"));
        }
    }

    #[test]
    fn damage_is_an_error_that_names_the_member() {
        let message = |h: &str, data: &[u8]| archive(h, data, CompressionMethod::Stored).unwrap_err().to_string();
        let m = message(&header("<f4", "False", "(3,)"), &[0; 8]);
        assert!(m.contains("member `x`: the header says f32[3], but the member has 8 bytes"), "{m}");
        let huge = header("<f8", "False", "(4294967296, 4294967296, 4294967296)");
        assert!(message(&huge, &[0; 8]).contains("has 8 bytes of elements"));
        assert!(message(&header("<V4", "False", "(2,)"), &[0; 8]).contains("no elements of the type `<V4`"));
        assert!(message("{'descr': [('a', '<f4')], 'shape': ()}", &[]).contains("not one of a plain array"));
        assert!(message(&header("|b1", "False", "(1,)"), &[2]).contains("neither 0 nor 1"));
        let mut twice = Cursor::new(vec![]);
        write(&mut twice, [("x", Elem::U8, &[1][..], &[1][..]), ("y", Elem::U8, &[1][..], &[2][..])]).unwrap();
        let twice: Vec<u8> = twice.into_inner();
        let named = |from: u8| twice.windows(5).enumerate().filter(move |(_, w)| w[0] == from && w[1..] == *b".npy").map(|(i, _)| i);
        let mut renamed = twice.clone();
        named(b'y').for_each(|i| renamed[i] = b'x');
        assert!(read(&renamed).unwrap_err().to_string().contains("a member twice"));
        assert!(read(b"not a zip archive at all").unwrap_err().to_string().contains("not an .npz archive"));
        let mut file = Cursor::new(vec![]);
        write(&mut file, [("x", Elem::U8, &[100][..], &[7; 100][..])]).unwrap();
        let good = file.into_inner();
        assert!(read(&good[..good.len() / 2]).is_err());
        let mut flipped = good.clone();
        let at = flipped.windows(4).position(|w| w == [7; 4]).unwrap();
        flipped[at] ^= 1;
        assert!(read(&flipped).unwrap_err().to_string().contains("damaged"));
    }
}
