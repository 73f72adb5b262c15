//! Files with what calibration observed, so that the same model need not be observed again, nor on every machine.
//!
//! A cache is an `.npz` archive. It belongs to a [`Key`]; `format` is the version of the layout, `cpu` names the CPU variant that
//! evaluated, which only informs. `calls` has for every time that the model was observed the number of values; of value `i` of time
//! `t` there are the fields of [`Observed`] as `t.i.axis`, `t.i.count`, `t.i.min`, and so on. The same observations give the same bytes.

use crate::diag::{Diagnostic, Result};
use crate::driver::Options;
use crate::files::Pending;
use crate::npz::{self, Archive};
use crate::onnx::DimSpec;
use std::fmt::Write as _;
use std::path::Path;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::{Element, Tensor};
use tfc_ir::text;
use tfc_passes::calibrate::{MAX_ROWS, Observed, Statistics};
use xxhash_rust::xxh3::Xxh3;

/// Version of the layout.
const FORMAT: u64 = 1;

/// Members that every cache has.
const HEAD: [&str; 6] = ["format", "model", "options", "data", "cpu", "calls"];

/// Members of one observed value.
const FIELDS: usize = 7;

/// What observations depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    /// Hash of the model as it is imported.
    pub model: u128,
    /// The options that decide what is observed, in the form of the command line and in a fixed order.
    pub options: String,
    /// Hash of the data; none where it is not at hand.
    pub data: Option<u128>,
}

impl Key {
    /// The key of a graph before all passes, of the options that it is compiled with, and of the data with the hash `data`.
    pub fn new(graph: &Graph, options: &Options, data: Option<u128>) -> Key {
        let mut printed = vec![];
        text::write(graph, &mut printed, None).expect("memory takes what is written");
        let mut hash = Xxh3::new();
        hash.update(&printed);
        for tensor in graph.values().filter_map(|(v, _)| graph.as_const(v)) {
            hash.update(&tensor.content_hash().to_le_bytes());
        }
        Key { model: hash.digest128(), options: canonical(options), data }
    }
}

fn canonical(options: &Options) -> String {
    let mut text = format!("tfc {} -{:?}", env!("CARGO_PKG_VERSION"), options.level);
    let mut add = |option: std::fmt::Arguments| text.write_fmt(format_args!(" --{option}")).expect("a string grows");
    if let Some(passes) = &options.passes {
        add(format_args!("passes={}", passes.iter().map(|p| p.name).collect::<Vec<_>>().join(",")));
    }
    if let Some(quant) = &options.quant {
        add(format_args!("quant={}", quant.spec));
        quant.overrides.iter().for_each(|(regex, spec)| add(format_args!("quant-override={regex}={spec}")));
    }
    if let Some(mask) = options.calibration.as_ref().and_then(|c| c.mask.as_deref()) {
        add(format_args!("calib-mask={mask}"));
    }
    for (name, sizes) in &options.import.shapes {
        add(format_args!("shape={name}={}", sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")));
    }
    for (name, spec) in &options.import.dims {
        match spec {
            DimSpec::Fixed(n) => add(format_args!("dim={name}={n}")),
            DimSpec::Range(r) => add(format_args!("dim={name}={}..{}", r.min, r.max)),
        }
    }
    text
}

/// Writes a cache. `calls` is what was observed, each time; `cpu` the variant that evaluated. A key without data has no hash of it.
///
/// # Errors
/// As [`Pending::write`].
pub fn write(path: &Path, key: &Key, cpu: &str, calls: &[Statistics], out: &mut Pending) -> Result<()> {
    let bytes = |text: &str| Tensor::of(&[text.len()], text.as_bytes().to_vec());
    let hash = |h: u128| Tensor::of(&[2], vec![(h >> 64) as u64, h as u64]);
    let head = [
        Tensor::of(&[1], vec![FORMAT]),
        hash(key.model),
        bytes(&key.options),
        hash(key.data.unwrap_or_default()),
        bytes(cpu),
        Tensor::of(&[calls.len()], calls.iter().map(|c| c.iter().len() as u64).collect()),
    ];
    let mut members: Vec<(String, Tensor)> = HEAD.iter().map(ToString::to_string).zip(head).collect();
    for (t, call) in calls.iter().enumerate() {
        for (i, (_, o)) in call.iter().enumerate() {
            let n = o.channels();
            let fields: [(&str, Tensor); FIELDS] = [
                ("axis", Tensor::of(&[1], vec![o.axis as u64])),
                ("count", Tensor::of(&[1], vec![o.count])),
                ("min", Tensor::of(&[n], o.min.clone())),
                ("max", Tensor::of(&[n], o.max.clone())),
                ("mean", Tensor::of(&[n], o.mean.clone())),
                ("mean_square", Tensor::of(&[n], o.mean_square.clone())),
                ("rows", Tensor::of(&[o.sample().len(), n], o.rows.clone())),
            ];
            members.extend(fields.map(|(field, tensor)| (format!("{t}.{i}.{field}"), tensor)));
        }
    }
    out.write(path, |w| npz::write(w, members.iter().map(|(name, t)| (&**name, t.elem(), t.sizes(), &t.bytes()[..]))))
}

/// What a cache says was observed, each time, if it belongs to `key`. Without the hash of data, that of the cache does not matter.
///
/// # Errors
/// When the file cannot be read, is no cache or a damaged one, or belongs to something else; the error says what differs.
pub fn read(path: &Path, key: &Key) -> Result<Vec<Vec<Observed>>> {
    let mut file = Reader { archive: Archive::open(path)? };
    if file.archive.member("format").is_none() || file.archive.member("calls").is_none() {
        return Err(Diagnostic::failed("this is not a calibration cache, or it is damaged").at(file.place()).help(HELP));
    }
    let [format] = file.array::<u64, 1>("format")?;
    if format != FORMAT {
        return Err(Diagnostic::failed("the calibration cache is from another version of tfc")
            .at(file.place())
            .note(format!("its format is {format}; this version reads {FORMAT}"))
            .help(HELP));
    }
    let hash = |[high, low]: [u64; 2]| u128::from(high) << 64 | u128::from(low);
    let (model, options) = (hash(file.array("model")?), file.text("options")?);
    let data = hash(file.array("data")?);
    file.text("cpu")?;
    let differ = [
        ("another model", model != key.model),
        ("other options", options != key.options),
        ("other data", key.data.is_some_and(|d| d != data)),
    ];
    let differ: Vec<&str> = differ.iter().filter(|(_, differs)| *differs).map(|(what, _)| *what).collect();
    if !differ.is_empty() {
        let mut d = Diagnostic::failed(format!("the calibration cache is for {}", differ.join(", "))).at(file.place());
        if options != key.options {
            d = d.note(format!("it was made with: {options}\nand is used with: {}", key.options));
        }
        return Err(d.help(HELP));
    }
    let calls: Vec<u64> = file.tensor("calls", &[None])?;
    let values = calls.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
    let members = values.and_then(|n| n.checked_mul(FIELDS as u64)?.checked_add(HEAD.len() as u64));
    if members != Some(file.archive.members().len() as u64) {
        let found = file.archive.members().len();
        return Err(file.damaged(format!("the number of its members, {found}, does not fit the number of observed values")));
    }
    (0..calls.len()).map(|t| (0..calls[t]).map(|i| file.observed(&format!("{t}.{i}"))).collect()).collect()
}

const HELP: &str = "delete the file to calibrate again, or name another one with --calib-cache";

struct Reader {
    archive: Archive,
}

impl Reader {
    fn place(&self) -> String {
        format!("`{}`", self.archive.path().display())
    }

    fn damaged(&self, how: String) -> Box<Diagnostic> {
        Diagnostic::failed("the calibration cache is damaged").at(self.place()).note(how).help(HELP)
    }

    /// A member of these sizes; any number of what has none.
    fn tensor<T: Element>(&mut self, name: &str, sizes: &[Option<usize>]) -> Result<Vec<T>> {
        let tensor = self.archive.tensor_as(name, T::ELEM)?;
        let found = tensor.sizes();
        if found.len() != sizes.len() || found.iter().zip(sizes).any(|(&n, wanted)| wanted.is_some_and(|w| w != n)) {
            let wanted: Vec<String> = sizes.iter().map(|s| s.map_or("?".into(), |s| s.to_string())).collect();
            return Err(self.damaged(format!("member `{name}` has the sizes {found:?}, not [{}]", wanted.join(", "))));
        }
        Ok(tensor.values().into_owned())
    }

    fn array<T: Element, const N: usize>(&mut self, name: &str) -> Result<[T; N]> {
        let values = self.tensor(name, &[Some(N)])?;
        Ok(values.try_into().unwrap_or_else(|_| unreachable!("the size was checked")))
    }

    fn text(&mut self, name: &str) -> Result<String> {
        let bytes = self.tensor(name, &[None])?;
        String::from_utf8(bytes).map_err(|_| self.damaged(format!("member `{name}` is not text in UTF-8")))
    }

    fn observed(&mut self, name: &str) -> Result<Observed> {
        let field = |field: &str| format!("{name}.{field}");
        let [axis] = self.array::<u64, 1>(&field("axis"))?;
        let [count] = self.array(&field("count"))?;
        let min: Vec<f32> = self.tensor(&field("min"), &[None])?;
        let n = Some(min.len());
        let observed = Observed {
            axis: usize::try_from(axis).unwrap_or(usize::MAX),
            count,
            max: self.tensor(&field("max"), &[n])?,
            mean: self.tensor(&field("mean"), &[n])?,
            mean_square: self.tensor(&field("mean_square"), &[n])?,
            rows: self.tensor(&field("rows"), &[None, n])?,
            min,
        };
        match contradiction(&observed) {
            Some(how) => Err(self.damaged(format!("observed value {name}: {how}"))),
            None => Ok(observed),
        }
    }
}

/// What in an observation cannot be.
fn contradiction(o: &Observed) -> Option<&'static str> {
    let within = |x: f32, j: usize| (o.min[j]..=o.max[j]).contains(&x);
    // The same row may be there several times.
    if o.sample().len() > MAX_ROWS || (o.count == 0 && !o.rows.is_empty()) {
        Some("there are more rows than are kept, or none was observed")
    } else if o.mean_square.iter().any(|&x| x < 0.0) {
        Some("a mean of squares is negative")
    } else if !o.is_finite() {
        None
    } else if o.min.iter().zip(&o.max).any(|(min, max)| min > max) {
        Some("a smallest number is above the largest")
    } else if o.mean.iter().any(|x| !x.is_finite()) {
        Some("a mean is not finite, but all numbers are")
    } else if o.sample().any(|row| row.iter().enumerate().any(|(j, &x)| !within(x, j))) {
        Some("a number of a row is not between the smallest and the largest")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use tfc_ir::graph::Value;

    fn key() -> Key {
        Key { model: 7 << 64 | 9, options: "-O3 --quant=w4a8".into(), data: Some(3) }
    }

    fn observed(channels: usize) -> Observed {
        let row = |by: f32| (0..channels).map(move |j| j as f32 * by);
        Observed {
            axis: 1,
            count: 5,
            min: row(-1.0).collect(),
            max: row(2.0).collect(),
            mean: row(0.5).map(f64::from).collect(),
            mean_square: row(3.0).map(f64::from).collect(),
            rows: row(1.0).chain(row(-0.5)).collect(),
        }
    }

    /// Two calls, of two values and of none.
    fn calls() -> Vec<Statistics> {
        let values = [(Value::from_u32(1), observed(3)), (Value::from_u32(4), observed(2))];
        vec![values.into_iter().collect(), Statistics::default()]
    }

    fn bytes_of(calls: &[Statistics]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.npz");
        let mut out = Pending::default();
        write(&path, &key(), "avx2", calls, &mut out).unwrap();
        assert!(!path.exists());
        out.commit().unwrap();
        std::fs::read(path).unwrap()
    }

    fn read_bytes(bytes: &[u8], key: &Key) -> Result<Vec<Vec<Observed>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.npz");
        std::fs::write(&path, bytes).unwrap();
        read(&path, key)
    }

    static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| bytes_of(&calls()));

    #[test]
    fn what_is_written_is_read_by_its_key() {
        let expected = [vec![observed(3), observed(2)], vec![]];
        assert_eq!(read_bytes(&GOOD, &key()).unwrap(), expected);
        assert_eq!(read_bytes(&GOOD, &Key { data: None, ..key() }).unwrap(), expected);
        assert_eq!(*GOOD, bytes_of(&calls()));
        // Nothing was seen, or what is no number.
        let hidden = Observed { count: 0, min: vec![f32::INFINITY], max: vec![f32::NEG_INFINITY], rows: vec![], ..observed(1) };
        let odd = Observed { min: vec![f32::NAN], max: vec![f32::NAN], mean: vec![f64::NAN], mean_square: vec![f64::NAN], ..observed(1) };
        let values = [(Value::from_u32(0), hidden.clone()), (Value::from_u32(1), odd)];
        let back = read_bytes(&bytes_of(&[values.into_iter().collect()]), &key()).unwrap();
        assert_eq!((&back[0][0], back[0][1].min[0].is_nan()), (&hidden, true));
    }

    #[test]
    fn what_differs_is_named() {
        for (other, what) in [
            (Key { model: 9, ..key() }, "for another model\n"),
            (Key { data: Some(4), ..key() }, "for other data\n"),
            (Key { options: "-O2".into(), ..key() }, "for other options\n"),
            (Key { options: "-O2".into(), model: 1, data: Some(4) }, "for another model, other options, other data\n"),
        ] {
            let message = read_bytes(&GOOD, &other).unwrap_err().render(false);
            assert!([what, "c.npz", "delete the file"].iter().all(|part| message.contains(part)), "{message}");
            assert_eq!(message.contains("with: -O3 --quant=w4a8"), other.options == "-O2", "{message}");
        }
    }

    #[test]
    fn contradictions_are_damage() {
        for (o, what) in [
            (Observed { count: 0, ..observed(2) }, "none was observed"),
            (Observed { rows: vec![0.0; 2 * MAX_ROWS + 2], ..observed(2) }, "more rows"),
            (Observed { mean_square: vec![-1.0, 0.0], ..observed(2) }, "negative"),
            (Observed { min: vec![9.0, 0.0], ..observed(2) }, "above the largest"),
            (Observed { mean: vec![f64::NAN, 0.0], ..observed(2) }, "not finite"),
            (Observed { rows: vec![0.0, 5.0], ..observed(2) }, "between"),
        ] {
            let calls = [[(Value::from_u32(0), o)].into_iter().collect()];
            let message = read_bytes(&bytes_of(&calls), &key()).unwrap_err().render(false);
            assert!(message.contains(what) && message.contains("damaged") && message.contains("0.0"), "{message}");
        }
    }

    #[test]
    fn other_archives_are_refused() {
        let archive = |members: &[(&str, Tensor)]| {
            let mut file = std::io::Cursor::new(vec![]);
            npz::write(&mut file, members.iter().map(|(n, t)| (*n, t.elem(), t.sizes(), &t.bytes()[..]))).unwrap();
            read_bytes(file.get_ref(), &key()).unwrap_err().render(false)
        };
        let number = |n: u64| Tensor::of(&[1], vec![n]);
        assert!(archive(&[("x", number(1))]).contains("not a calibration cache"));
        assert!(archive(&[("format", number(2)), ("calls", number(0))]).contains("its format is 2"));
        assert!(archive(&[("format", Tensor::of(&[1], vec![1f32])), ("calls", number(0))]).contains("`format`"));
        let head = |calls: u64| {
            let hash = |h: u64| Tensor::of(&[2], vec![h >> 32, h]);
            let text = |t: &str| Tensor::of(&[t.len()], t.as_bytes().to_vec());
            let model = Tensor::of(&[2], vec![7u64, 9]);
            let (options, cpu) = (text(&key().options), text(""));
            archive(&[
                ("format", number(1)),
                ("model", model),
                ("options", options),
                ("data", hash(3)),
                ("cpu", cpu),
                ("calls", number(calls)),
            ])
        };
        assert!([1, u64::MAX, u64::MAX / 7].iter().all(|&n| head(n).contains("number of its members")));
        assert!(read_bytes(b"nothing", &key()).unwrap_err().render(false).contains("c.npz"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Damage is an error, or in bytes that mean nothing.
        #[test]
        fn damage_is_seen(flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4), cut in prop::option::of(any::<prop::sample::Index>())) {
            let mut bytes = GOOD.clone();
            for (at, flip) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            match read_bytes(&bytes, &key()) {
                Ok(back) => prop_assert_eq!(back, [vec![observed(3), observed(2)], vec![]]),
                Err(e) => prop_assert!(e.render(false).contains("c.npz")),
            }
        }
    }
}
