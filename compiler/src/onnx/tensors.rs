//! Contents of tensors: from the model file, from its fields, or from files beside it.

use super::error::Error;
use super::model::{elem_name, require_elem};
use super::wire::DETACHED;
use bytes::Bytes;
use onnx_protobuf::{Message, TensorProto};
use protobuf::UnknownValueRef;
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape};

/// The bytes of a file, mapped read-only. They are the file's as long as nobody changes it; a file
/// that shrinks while it is in use makes reads fail, as with every program that maps its inputs.
///
/// # Errors
/// When the file cannot be opened or is not a regular file.
pub fn map_file(path: &Path) -> Result<Bytes, Error> {
    map(path).map_err(|e| Error::invalid("", format!("cannot open the file: {e}")).in_file(path))
}

fn map(path: &Path) -> io::Result<Bytes> {
    let file = tfc_runtime::file::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    #[allow(unsafe_code, reason = "mapping a file is unsafe by its nature")]
    // SAFETY: the mapping is private and only read. Another process that truncates the file meanwhile
    // ends this one by a signal; it cannot make Rust references invalid in any other way.
    let map = unsafe { memmap2::Mmap::map(&file) }?;
    Ok(Bytes::from_owner(map))
}

/// Where contents of tensors are found.
///
/// A file with external contents lies in the folder of the model, or below it, wherever links lead. If the model is
/// a link itself, as in caches that keep contents apart from names, it may also lie in the folder of what the model
/// leads to, step by step, or below that. The model's own text never leads out of a folder: it has no `..` and no
/// absolute path.
#[derive(Debug, Default)]
pub struct Contents {
    /// What stayed in the model file; markers are indices into it.
    detached: Vec<Bytes>,
    /// The path of the model.
    model: Option<PathBuf>,
    files: BTreeMap<PathBuf, Bytes>,
}

impl Contents {
    /// Contents detached from the model at this path; without one, external contents are refused.
    pub fn new(detached: Vec<Bytes>, model: Option<&Path>) -> Contents {
        Contents { detached, model: model.map(Path::to_path_buf), files: BTreeMap::new() }
    }

    /// The tensor that `proto` describes. Contents are shared with the file where possible.
    ///
    /// # Errors
    /// When sizes are negative or too large, the contents have another length than the sizes need,
    /// external contents are not where they may be, or the element type is not supported.
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

    /// Opens a file with external contents, which must lie where they may.
    fn open(&mut self, location: &str, place: &str) -> Result<Bytes, Error> {
        let refuse = |why: &str| Error::invalid(place, format!("the external file `{location}` {why}"));
        let relative = Path::new(location);
        let inside = relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !inside || location.contains('\0') {
            return Err(refuse("is not in the model's folder").help("external data must be addressed relative to the model, without `..`"));
        }
        let Some(model) = &self.model else {
            return Err(refuse("cannot be found: the model was not read from a file"));
        };
        let at = |e: io::Error| refuse(&format!("cannot be opened: {e}")).help("keep the file beside the model");
        let folders = folders(model).map_err(at)?;
        let found: Vec<io::Result<PathBuf>> = folders.iter().map(|f| f.join(relative).canonicalize()).collect();
        let first = found.iter().position(Result::is_ok).unwrap_or(0);
        let path = found.into_iter().nth(first).expect("a model has a folder").map_err(at)?;
        if !folders.iter().any(|f| path.starts_with(f)) {
            return Err(refuse(&format!("is a link that leaves the model's folder: it leads to `{}`", path.display())).help(
                "keep the file beside the model; where the model is a link itself, it may be beside the file that the model leads to",
            ));
        }
        if let Some(bytes) = self.files.get(&path) {
            return Ok(bytes.clone());
        }
        let bytes = map(&path).map_err(at)?;
        self.files.insert(path, bytes.clone());
        Ok(bytes)
    }
}

/// The folder of a model, and, while the model is a link, that of what it leads to.
fn folders(model: &Path) -> io::Result<Vec<PathBuf>> {
    // That links come to an end has been found out when the model was read.
    let (mut folders, mut at) = (vec![], model.to_path_buf());
    loop {
        let folder = at.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new(".")).canonicalize()?;
        let to = if at.is_symlink() { Some(folder.join(at.read_link()?)) } else { None };
        folders.push(folder);
        match to {
            Some(to) => at = to,
            None => return Ok(folders),
        }
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
        let model = folder.join("model.onnx");
        std::fs::write(&model, "").unwrap();
        let mut c = Contents::new(vec![], Some(&model));
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
            let _listener = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
            let e = c.tensor(external("socket", "0", &[4]), "t").unwrap_err().to_string();
            assert!(e.contains("the external file `socket` cannot be opened: this is a socket"), "{e}");
        }
    }

    /// The cache of a hub: names are links to contents, which are kept apart.
    #[cfg(unix)]
    #[test]
    fn external_files_may_be_beside_what_a_linked_model_leads_to() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let path = |p: &str| dir.path().join(p);
        for folder in ["cache/blobs/deep", "cache/snapshots/main/onnx", "elsewhere"] {
            std::fs::create_dir_all(path(folder)).unwrap();
        }
        for (file, contents) in [("cache/blobs/1111", &[][..]), ("cache/blobs/2222", &[1, 2]), ("elsewhere/w", &[3, 4])] {
            std::fs::write(path(file), contents).unwrap();
        }
        std::fs::copy(path("cache/blobs/2222"), path("cache/blobs/deep/w")).unwrap();
        let links = [
            ("model.onnx", "../../../blobs/1111"),
            ("model.onnx_data", "../../../blobs/2222"),
            ("twice", "model.onnx_data"),
            ("outside", "../../../../elsewhere/w"),
        ];
        for (name, to) in links {
            symlink(to, path("cache/snapshots/main/onnx").join(name)).unwrap();
        }
        symlink("snapshots/main", path("cache/latest")).unwrap();
        symlink("cache/latest/onnx/model.onnx", path("short.onnx")).unwrap();
        let read = |model: &str, location: &str| {
            let mut c = Contents::new(vec![], Some(&path(model)));
            c.tensor(external(location, "0", &[2]), "t").map(|t| t.bytes().to_vec()).map_err(|e| e.to_string())
        };
        for model in ["cache/snapshots/main/onnx/model.onnx", "cache/latest/onnx/model.onnx"] {
            assert_eq!(read(model, "model.onnx_data").unwrap(), [1, 2]);
            assert_eq!(read(model, "./twice").unwrap(), [1, 2]);
            assert!(read(model, "outside").unwrap_err().contains("leaves the model's folder"));
            assert!(read(model, "../../../blobs/2222").unwrap_err().contains("not in the model's folder"));
        }
        // Beside what the model leads to, under the name that the model gives.
        assert_eq!(read("short.onnx", "model.onnx_data").unwrap(), [1, 2]);
        assert_eq!(read("short.onnx", "2222").unwrap(), [1, 2]);
        assert_eq!(read("short.onnx", "deep/w").unwrap(), [1, 2]);
        assert!(read("short.onnx", "absent").unwrap_err().contains("cannot be opened"));
        // A model that is no link keeps everything in its folder.
        std::fs::remove_file(path("cache/snapshots/main/onnx/model.onnx")).unwrap();
        std::fs::write(path("cache/snapshots/main/onnx/model.onnx"), "").unwrap();
        assert!(read("cache/snapshots/main/onnx/model.onnx", "model.onnx_data").unwrap_err().contains("leaves the model's folder"));
    }
}
