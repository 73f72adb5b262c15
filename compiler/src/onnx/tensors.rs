//! Contents of tensors: from the model file, from its fields, or from files beside it.

use super::error::Error;
use super::model::{elem_name, require_elem};
use super::wire::DETACHED;
use bytes::Bytes;
use onnx_protobuf::{Message, TensorProto};
use protobuf::UnknownValueRef;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape};

/// The bytes of a file, mapped read-only. They are the file's as long as nobody changes it; a file
/// that shrinks while it is in use makes reads fail, as with every program that maps its inputs.
///
/// # Errors
/// When the file cannot be opened or is not a regular file.
pub fn map_file(path: &Path) -> Result<Bytes, Error> {
    let fail = |what: &str| Error::invalid("", what).in_file(path);
    let file = File::open(path).map_err(|e| fail(&format!("cannot open the file: {e}")))?;
    let meta = file.metadata().map_err(|e| fail(&format!("cannot read the file: {e}")))?;
    if !meta.is_file() {
        return Err(fail("this is not a regular file"));
    }
    if meta.len() == 0 {
        return Ok(Bytes::new());
    }
    #[allow(unsafe_code, reason = "mapping a file is unsafe by its nature")]
    // SAFETY: the mapping is private and only read. Another process that truncates the file meanwhile
    // ends this one by a signal; it cannot make Rust references invalid in any other way.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| fail(&format!("cannot map the file: {e}")))?;
    Ok(Bytes::from_owner(map))
}

/// Where contents of tensors are found.
#[derive(Debug, Default)]
pub struct Contents {
    /// What stayed in the model file; markers are indices into it.
    pub detached: Vec<Bytes>,
    /// The folder of the model, in which files with external contents must lie.
    pub folder: Option<PathBuf>,
    files: BTreeMap<PathBuf, Bytes>,
}

impl Contents {
    /// Contents detached from a model in `folder`; without a folder external contents are refused.
    pub fn new(detached: Vec<Bytes>, folder: Option<PathBuf>) -> Contents {
        Contents { detached, folder, files: BTreeMap::new() }
    }

    /// The tensor that `proto` describes. Contents are shared with the file where possible.
    ///
    /// # Errors
    /// When sizes are negative or too large, the contents have another length than the sizes need,
    /// external contents are outside of the model's folder, or the element type is not supported.
    pub fn tensor(&mut self, mut proto: TensorProto, place: &str) -> Result<Tensor, Error> {
        let elem = require_elem(proto.data_type, place)?;
        if proto.segment.is_some() {
            return Err(Error::unsupported("tensor", place, "tensors in segments are not supported"));
        }
        let mut sizes = Vec::with_capacity(proto.dims.len());
        for &d in &proto.dims {
            match usize::try_from(d) {
                Ok(n) => sizes.push(n),
                Err(_) => return Err(Error::invalid(place, format!("the tensor has the size {d}"))),
            }
        }
        // Sizes behind a 0 count as well: products of some of them are formed everywhere.
        let fits = sizes.iter().try_fold(1usize, |n, &s| n.checked_mul(s.max(1))).is_some_and(|n| n <= isize::MAX as usize / 8);
        let Some(count) = fits.then(|| sizes.iter().product::<usize>()) else {
            return Err(Error::invalid(place, format!("a tensor of the sizes {:?} is too large", proto.dims)));
        };
        let expected = elem.bytes(count);
        let data = if proto.data_location.value() == 1 {
            self.external(&proto, expected, place)?
        } else if let Some(data) = self.detached(&proto) {
            data
        } else if !proto.raw_data.is_empty() {
            Bytes::from(std::mem::take(&mut proto.raw_data))
        } else {
            typed_field(&proto, elem, place)?
        };
        let data = if elem == Elem::Bool { canonical_bools(data) } else { data };
        let found = data.len();
        Tensor::new(elem, sizes, data).map_err(|_| {
            let ty = format!("{}{}", elem_name(proto.data_type), Shape::fixed(&proto.dims));
            Error::invalid(place, format!("a tensor {ty} takes {expected} bytes, but {found} are given"))
                .help("the file is truncated or damaged")
        })
    }

    fn detached(&self, proto: &TensorProto) -> Option<Bytes> {
        match proto.special_fields().unknown_fields().get(DETACHED)? {
            UnknownValueRef::Varint(i) => self.detached.get(usize::try_from(i).ok()?).cloned(),
            _ => None,
        }
    }

    fn external(&mut self, proto: &TensorProto, expected: usize, place: &str) -> Result<Bytes, Error> {
        let entry = |key: &str| proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => match text.parse::<usize>() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(Error::invalid(place, format!("the {key} of the external data is `{text}`, not a number of bytes"))),
            },
        };
        let Some(location) = entry("location") else {
            return Err(Error::invalid(place, "the tensor is in an external file, but its location is missing"));
        };
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if let Some(n) = length
            && n != expected
        {
            return Err(Error::invalid(place, format!("the sizes need {expected} bytes, but the external data has the length {n}")));
        }
        let file = self.open(location, place)?;
        match offset.checked_add(expected) {
            Some(end) if end <= file.len() => Ok(file.slice(offset..end)),
            _ => Err(Error::invalid(
                place,
                format!("the external file `{location}` has {} bytes, but {expected} are needed from byte {offset} on", file.len()),
            )
            .help("the external file is truncated, or belongs to another model")),
        }
    }

    /// Opens a file that must lie in the model's folder, whatever links it goes through.
    fn open(&mut self, location: &str, place: &str) -> Result<Bytes, Error> {
        let refuse = |why: &str| Error::invalid(place, format!("the external file `{location}` {why}"));
        let relative = Path::new(location);
        let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !inside || location.contains('\0') {
            return Err(refuse("is not in the model's folder").help("external data must be addressed relative to the model, without `..`"));
        }
        let Some(folder) = &self.folder else {
            return Err(refuse("cannot be found: the model was not read from a file"));
        };
        let at = |e: std::io::Error| refuse(&format!("cannot be opened: {e}")).help("keep the file beside the model");
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder.as_path() };
        let root = folder.canonicalize().map_err(at)?;
        let path = root.join(relative).canonicalize().map_err(at)?;
        if !path.starts_with(&root) {
            return Err(refuse("is a link that leaves the model's folder"));
        }
        if let Some(bytes) = self.files.get(&path) {
            return Ok(bytes.clone());
        }
        let bytes = map_file(&path)?;
        self.files.insert(path, bytes.clone());
        Ok(bytes)
    }
}

/// The contents from the field that ONNX assigns to the element type. Lengths follow from the file.
fn typed_field(p: &TensorProto, elem: Elem, place: &str) -> Result<Bytes, Error> {
    fn bytes_of<T, const N: usize>(values: &[T], to: impl Fn(&T) -> [u8; N]) -> Bytes {
        values.iter().flat_map(to).collect::<Vec<u8>>().into()
    }
    let small = |ok: fn(i32) -> bool| match p.int32_data.iter().find(|&&x| !ok(x)) {
        Some(x) => Err(Error::invalid(place, format!("the value {x} does not fit {elem}"))),
        None => Ok(()),
    };
    Ok(match elem {
        Elem::F32 => bytes_of(&p.float_data, |x| x.to_le_bytes()),
        Elem::F64 => bytes_of(&p.double_data, |x| x.to_le_bytes()),
        Elem::I64 => bytes_of(&p.int64_data, |x| x.to_le_bytes()),
        Elem::U64 => bytes_of(&p.uint64_data, |x| x.to_le_bytes()),
        Elem::U32 => {
            if let Some(x) = p.uint64_data.iter().find(|&&x| x > u64::from(u32::MAX)) {
                return Err(Error::invalid(place, format!("the value {x} does not fit {elem}")));
            }
            bytes_of(&p.uint64_data, |&x| (x as u32).to_le_bytes())
        }
        Elem::I32 => bytes_of(&p.int32_data, |x| x.to_le_bytes()),
        // Halves are stored by their bits.
        Elem::U16 | Elem::F16 | Elem::Bf16 => {
            small(|x| u16::try_from(x).is_ok())?;
            bytes_of(&p.int32_data, |&x| (x as u16).to_le_bytes())
        }
        Elem::I16 => {
            small(|x| i16::try_from(x).is_ok())?;
            bytes_of(&p.int32_data, |&x| (x as i16).to_le_bytes())
        }
        // One entry holds one byte: two elements of 4 bits. Signed or unsigned spelling of the byte is accepted.
        Elem::I8 | Elem::U8 | Elem::I4 | Elem::U4 | Elem::Bool => {
            small(|x| (-128..256).contains(&x))?;
            bytes_of(&p.int32_data, |&x| [x as u8])
        }
    })
}

/// Truth values as 0 and 1.
fn canonical_bools(data: Bytes) -> Bytes {
    if data.iter().all(|&b| b <= 1) { data } else { data.iter().map(|&b| u8::from(b != 0)).collect::<Vec<u8>>().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_protobuf::StringStringEntryProto;

    fn proto(data_type: i32, dims: &[i64]) -> TensorProto {
        TensorProto { data_type, dims: dims.to_vec(), ..Default::default() }
    }

    fn external(location: &str, offset: &str, dims: &[i64]) -> TensorProto {
        let entry = |k: &str, v: &str| StringStringEntryProto { key: k.into(), value: v.into(), ..Default::default() };
        let mut p = proto(2, dims);
        p.data_location = onnx_protobuf::tensor_proto::DataLocation::EXTERNAL.into();
        p.external_data = vec![entry("location", location), entry("offset", offset)];
        p
    }

    #[test]
    fn typed_fields_are_read() {
        let mut c = Contents::default();
        let mut p = proto(10, &[2]);
        p.int32_data = vec![0x3c00, 0xc000];
        assert_eq!(c.tensor(p, "t").unwrap().to_f64s(), [1.0, -2.0]);
        let mut p = proto(22, &[3]);
        p.int32_data = vec![0x78, 0x0f];
        assert_eq!(c.tensor(p, "t").unwrap().to_i64s().unwrap(), [-8, 7, -1]);
        let mut p = proto(9, &[2]);
        p.raw_data = vec![0, 255];
        assert_eq!(c.tensor(p, "t").unwrap().bytes().as_ref(), [0, 1]);
    }

    #[test]
    fn absurd_sizes_allocate_nothing() {
        let mut c = Contents::default();
        for dims in [vec![i64::MAX], vec![i64::MAX, i64::MAX], vec![1 << 40], vec![-1], vec![2, i64::MIN]] {
            let e = c.tensor(proto(1, &dims), "tensor `w`").unwrap_err();
            assert!(matches!(e, Error::Invalid(_)) && e.to_string().contains("tensor `w`"), "{e}");
        }
        assert!(matches!(c.tensor(proto(8, &[]), "t").unwrap_err(), Error::Unsupported(_)));
        assert!(matches!(c.tensor(proto(99, &[]), "t").unwrap_err(), Error::Invalid(_)));
    }

    #[test]
    fn external_files_stay_in_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, folder) = (dir.path().join("secret"), dir.path().join("model"));
        std::fs::write(&outer, [9; 16]).unwrap();
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("w.bin"), [0, 1, 2, 3, 4]).unwrap();
        let mut c = Contents::new(vec![], Some(folder.clone()));
        assert_eq!(c.tensor(external("w.bin", "1", &[4]), "t").unwrap().bytes().as_ref(), [1, 2, 3, 4]);
        for (location, offset, why) in [
            ("../secret", "0", "not in the model's folder"),
            (outer.to_str().unwrap(), "0", "not in the model's folder"),
            ("missing.bin", "0", "cannot be opened"),
            ("w.bin", "2", "has 5 bytes, but 4 are needed from byte 2 on"),
            ("w.bin", "18446744073709551615", "are needed from byte"),
            ("w.bin", "-1", "not a number"),
            ("", "0", "not in the model's folder"),
        ] {
            let e = c.tensor(external(location, offset, &[4]), "t").unwrap_err().to_string();
            assert!(e.contains(why), "{location} {offset}: {e}");
        }
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&outer, folder.join("link")).unwrap();
            let e = c.tensor(external("link", "0", &[4]), "t").unwrap_err().to_string();
            assert!(e.contains("leaves the model's folder"), "{e}");
        }
    }
}
