//! Samples for a model, from `.npz` archives.
//!
//! Members are named like the model's inputs. A member has the input's axes, of which the first is free in the model or 1, and then
//! holds one sample per index of it; or it has an axis more in front, and then holds a whole input per index of that. A
//! member of just the shape that the input has in the model, whose first axis is fixed, belongs to all samples of its archive. Archives may differ in all
//! sizes that are free.

use crate::batches::rows;
use crate::diag::{Diagnostic, Result, list, table};
use crate::npz::Archive;
use std::path::{Path, PathBuf};
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Type;
use xxhash_rust::xxh3::Xxh3;

/// How many samples are kept apart, to measure what calibration made of the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Holdout {
    /// An eighth, at least [`Holdout::LEAST`].
    #[default]
    Default,
    /// So many.
    Count(usize),
}

impl Holdout {
    /// The fewest samples that are kept apart, if nothing else is said.
    pub const LEAST: usize = 8;

    /// How many of `samples`.
    ///
    /// # Errors
    /// When none would be left.
    pub fn of(self, samples: usize) -> Result<usize> {
        let (n, help) = match self {
            Holdout::Default => {
                (Holdout::LEAST.max(samples / 8), "give more samples, or fewer to be held out: --holdout 0 measures nothing")
            }
            Holdout::Count(n) => (n, "give more samples, or a smaller --holdout"),
        };
        match samples.checked_sub(n) {
            None | Some(0) => {
                let what =
                    format!("the calibration data has {samples} samples, of which {n} are held out to measure the error: none is left");
                Err(Diagnostic::failed(what).help(help))
            }
            Some(_) => Ok(n),
        }
    }
}

/// Inputs of one evaluation: a few samples of equal sizes.
#[derive(Clone, Debug)]
pub struct Batch {
    /// How many samples.
    pub samples: usize,
    /// In the order of the model's inputs.
    pub inputs: Vec<Tensor>,
    /// Where they come from, for messages.
    pub place: String,
}

/// Samples for a model.
#[derive(Clone, Debug)]
pub struct Data {
    /// Those that are learned from.
    pub learned: Vec<Batch>,
    /// Those that are measured on.
    pub held_out: Vec<Batch>,
    /// Hash of the contents, their order, and of what is held out.
    pub hash: u128,
}

/// The most numbers of an input that are evaluated at once, if it is more than one sample.
const BATCH_ELEMENTS: usize = 1024;

/// The most samples that are evaluated at once.
const BATCH_SAMPLES: usize = 8;

impl Data {
    /// Reads the samples of all archives, in order, for the inputs of `graph`.
    ///
    /// # Errors
    /// When a file cannot be read; when members do not fit the inputs, all at once; when there are no samples, or no more than
    /// are held out; when a float is not a number or infinite.
    pub fn read(paths: &[PathBuf], graph: &Graph, holdout: Holdout) -> Result<Data> {
        let ports: Vec<Port> = graph.inputs().iter().map(|&v| Port::of(graph, v)).collect();
        let files: Vec<File> = paths.iter().map(|path| File::read(path, &ports)).collect::<Result<_>>()?;
        let samples: usize = files.iter().map(|f| f.samples).sum();
        if samples == 0 {
            return Err(Diagnostic::failed("the calibration data has no samples").at(places(paths)));
        }
        let held = holdout.of(samples).map_err(|d| d.at(places(paths)))?;
        let mut hash = Xxh3::new();
        files.iter().for_each(|f| f.hash(&mut hash));
        hash.update(&(held as u64).to_le_bytes());
        // Held out are samples at equal distances.
        let is_held = |i: usize| (i + 1) * held / samples != i * held / samples;
        let mut data = Data { learned: vec![], held_out: vec![], hash: hash.digest128() };
        let mut first = 0;
        for file in &files {
            for (of, batches) in [(false, &mut data.learned), (true, &mut data.held_out)] {
                let own: Vec<usize> = (0..file.samples).filter(|i| is_held(first + i) == of).collect();
                for samples in own.chunks(file.at_once()) {
                    batches.push(file.batch(samples)?);
                }
            }
            first += file.samples;
        }
        Ok(data)
    }

    /// Samples that are learned from, and that are held out.
    pub fn counts(&self) -> [usize; 2] {
        [&self.learned, &self.held_out].map(|b| b.iter().map(|b| b.samples).sum())
    }
}

fn places(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", ")
}

/// An input of the model.
struct Port {
    name: String,
    ty: Type,
}

impl Port {
    fn of(graph: &Graph, v: tfc_ir::graph::Value) -> Port {
        Port { name: graph.value(v).name.as_deref().unwrap_or_default().into(), ty: graph.ty(v).clone() }
    }

    /// What a member of this shape holds, if it fits.
    fn layout(&self, shape: &[usize]) -> Option<Layout> {
        let own = &self.ty.shape.0;
        let fits =
            |sizes: &[usize]| sizes.len() == own.len() && own.iter().zip(sizes).all(|(d, &n)| d.as_const().is_none_or(|d| d == n as i64));
        match shape.split_first() {
            Some((_, rest)) if fits(rest) => Some(Layout::Whole),
            Some((_, rest)) if own.first().is_some_and(|d| d.is(1)) && !fits(shape) && fits(&[&[1], rest].concat()) => Some(Layout::One),
            _ if !fits(shape) => None,
            _ if own.first().is_some_and(|d| d.as_const().is_none()) => Some(Layout::Batch),
            _ => Some(Layout::Shared),
        }
    }
}

/// How a member holds samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Layout {
    /// Along the first axis of the input.
    Batch,
    /// Along the first axis of the input, which has one index in the model.
    One,
    /// Along an axis before those of the input.
    Whole,
    /// One value for all samples.
    Shared,
}

/// An archive.
struct File {
    path: PathBuf,
    samples: usize,
    members: Vec<(Layout, Tensor)>,
}

impl File {
    fn read(path: &Path, ports: &[Port]) -> Result<File> {
        let mut archive = Archive::open(path)?;
        let place = || format!("`{}`", path.display());
        let faults = mismatches(&archive, ports);
        if !faults.is_empty() {
            let names = list(ports.iter().map(|p| p.name.as_str()));
            return Err(Diagnostic::failed("the calibration data does not fit the model").at(place()).note(table(&faults)).help(format!(
                "the model's inputs are: {names}; samples are along the first axis if it is free or 1, or along one more in front"
            )));
        }
        let mut members = vec![];
        for port in ports {
            let tensor = archive.tensor_as(&port.name, port.ty.elem)?;
            if let Some(i) = tensor.elem().is_float().then(|| tensor.iter().position(|x| !x.to_f64().is_finite())).flatten() {
                return Err(Diagnostic::failed(format!("element {i} of the calibration data is {}", tensor.get(i).to_f64()))
                    .at(place())
                    .at(format!("member `{}`", port.name))
                    .help("calibration needs finite numbers"));
            }
            members.push((port.layout(tensor.sizes()).expect("checked before"), tensor));
        }
        let counts: Vec<(&Port, usize)> =
            ports.iter().zip(&members).filter(|(_, (l, _))| *l != Layout::Shared).map(|(p, (_, t))| (p, t.sizes()[0])).collect();
        let samples = counts.first().map_or(1, |(_, n)| *n);
        if let Some((other, n)) = counts.iter().find(|(_, n)| *n != samples) {
            return Err(Diagnostic::failed("the inputs of the calibration data have different numbers of samples")
                .at(place())
                .note(format!("`{}` has {samples}, `{}` has {n}", counts[0].0.name, other.name)));
        }
        Ok(File { path: path.into(), samples, members })
    }

    fn hash(&self, hash: &mut Xxh3) {
        for (layout, t) in &self.members {
            hash.update(&[*layout as u8]);
            hash.update(&t.content_hash().to_le_bytes());
        }
    }

    /// How many samples are evaluated at once.
    fn at_once(&self) -> usize {
        let batches = self.members.iter().filter(|(l, _)| *l != Layout::Shared).all(|(l, _)| *l == Layout::Batch);
        let largest = self.members.iter().map(|(_, t)| t.len() / self.samples.max(1)).max().unwrap_or(0);
        if batches { (BATCH_ELEMENTS / largest.max(1)).clamp(1, BATCH_SAMPLES) } else { 1 }
    }

    /// Some of the samples as inputs.
    fn batch(&self, samples: &[usize]) -> Result<Batch> {
        let inputs = self.members.iter().map(|(layout, t)| match layout {
            Layout::Shared => Ok(t.clone()),
            Layout::Batch | Layout::One => rows(t, samples),
            Layout::Whole => Ok(rows(t, samples)?.reshaped(&t.sizes()[1..]).expect("a whole input")),
        });
        let (first, last) = (samples[0], samples[samples.len() - 1]);
        let which = if first == last { format!("sample {first}") } else { format!("samples {first} to {last}") };
        Ok(Batch { samples: samples.len(), inputs: inputs.collect::<Result<_>>()?, place: format!("`{}`, {which}", self.path.display()) })
    }
}

fn mismatches(archive: &Archive, ports: &[Port]) -> Vec<[String; 3]> {
    let mut faults = vec![];
    for port in ports {
        let (name, wanted) = (format!("input `{}`", port.name), format!("the model wants {}", port.ty));
        let Some(member) = archive.member(&port.name) else {
            faults.push([name, wanted, "the archive has no such member".into()]);
            continue;
        };
        let header = &member.header;
        if !header.can_be(port.ty.elem) || port.layout(&header.shape).is_none() {
            faults.push([name, wanted, format!("the archive has {}", header.type_text())]);
        }
    }
    for member in archive.members().iter().filter(|m| ports.iter().all(|p| p.name != m.name)) {
        let name = format!("input `{}`", member.name);
        faults.push([name, "the model has no such input".into(), format!("the archive has {}", member.header.type_text())]);
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::npz;
    use tfc_ir::text;

    fn archive(folder: &Path, name: &str, members: &[(&str, Tensor)]) -> PathBuf {
        let path = folder.join(name);
        let file = std::fs::File::create(&path).unwrap();
        npz::write(file, members.iter().map(|(n, t)| (*n, t.elem(), t.sizes(), &t.bytes()[..]))).unwrap();
        path
    }

    fn graph(source: &str) -> Graph {
        text::parse(&format!("tfc.ir 1 {source}"), None).unwrap()
    }

    fn ids(sizes: [usize; 2]) -> Tensor {
        Tensor::of(&sizes, (0..(sizes[0] * sizes[1]) as i64).collect())
    }

    #[test]
    fn samples_are_along_the_free_axis_and_files_may_differ_in_length() {
        let folder = tempfile::tempdir().unwrap();
        let g = graph("symbol b 0..9 symbol s 0..99 input %ids: i64[b, s] input %m: i64[b, s] output y = %ids");
        let a = archive(folder.path(), "a.npz", &[("ids", ids([10, 3])), ("m", ids([10, 3]))]);
        let b = archive(folder.path(), "b.npz", &[("m", ids([2, 5])), ("ids", ids([2, 5]))]);
        let data = Data::read(&[a.clone(), b.clone()], &g, Holdout::Count(3)).unwrap();
        assert_eq!(data.counts(), [9, 3]);
        // Numbers 3, 7 and 11 of 12 are held out; equal sizes go together.
        assert_eq!(data.learned.iter().map(|b| b.samples).collect::<Vec<_>>(), [8, 1]);
        assert_eq!(data.learned[0].inputs[0].sizes(), [8, 3]);
        assert_eq!(data.held_out[0].inputs[1].to_i64s().unwrap(), [9, 10, 11, 21, 22, 23]);
        assert_eq!(data.held_out[1].inputs[0].sizes(), [1, 5]);
        assert!(data.held_out[0].place.contains("samples 3 to 7"), "{}", data.held_out[0].place);
        // The order of the files and what is held out count.
        assert_ne!(data.hash, Data::read(&[b, a.clone()], &g, Holdout::Count(3)).unwrap().hash);
        assert_ne!(
            Data::read(std::slice::from_ref(&a), &g, Holdout::Count(3)).unwrap().hash,
            Data::read(&[a], &g, Holdout::Count(4)).unwrap().hash
        );
    }

    #[test]
    fn whole_inputs_are_along_an_axis_more_and_fixed_ones_are_shared() {
        let folder = tempfile::tempdir().unwrap();
        let g = graph("input %x: f32[1, 4] input %table: f32[2] output y = %x");
        let x = Tensor::of(&[3, 1, 4], (0..12).map(|i| i as f32).collect());
        let table = Tensor::of(&[2], vec![1f32, 2.0]);
        let path = archive(folder.path(), "x.npz", &[("x", x), ("table", table.clone())]);
        let data = Data::read(&[path], &g, Holdout::Count(0)).unwrap();
        assert_eq!((data.counts(), data.learned.len()), ([3, 0], 3));
        assert_eq!(data.learned[1].inputs, [Tensor::of(&[1, 4], vec![4f32, 5.0, 6.0, 7.0]), table.clone()]);
        // Along an axis that the model fixes at 1.
        let rows = Tensor::of(&[3, 4], (0..12).map(|i| i as f32).collect());
        let path = archive(folder.path(), "rows.npz", &[("x", rows), ("table", table.clone())]);
        assert_eq!(Data::read(&[path], &g, Holdout::Count(0)).unwrap().learned[1].inputs, data.learned[1].inputs);
        // One whole input is a sample.
        let path =
            archive(folder.path(), "one.npz", &[("x", Tensor::of(&[1, 4], vec![0f32; 4])), ("table", Tensor::of(&[2], vec![0f32; 2]))]);
        assert_eq!(Data::read(&[path], &g, Holdout::Count(0)).unwrap().counts(), [1, 0]);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let g = graph("symbol b 0..9 input %x: f32[b, 2] input %y: f32[b, 2] output y = %x");
        let floats = |n: usize, x: f32| Tensor::of(&[n, 2], vec![x; 2 * n]);
        let read = |members: &[(&str, Tensor)], holdout| {
            let path = archive(folder.path(), "bad.npz", members);
            Data::read(&[path], &g, holdout).unwrap_err().render(false)
        };
        let all = Holdout::Count(0);
        let wrong = read(&[("x", ids([3, 2])), ("z", floats(3, 0.0))], all);
        for part in ["`x`", "f32[b, 2]", "i64", "no such member", "no such input", "bad.npz"] {
            assert!(wrong.contains(part), "{wrong}");
        }
        assert!(read(&[("x", Tensor::of(&[3, 5], vec![0f32; 15])), ("y", floats(3, 0.0))], all).contains("[3, 5]"));
        let counts = read(&[("x", floats(3, 0.0)), ("y", floats(4, 0.0))], all);
        assert!(counts.contains("`x` has 3, `y` has 4"), "{counts}");
        let nan = read(&[("x", floats(3, 0.0)), ("y", floats(3, f32::NAN))], all);
        assert!(nan.contains("element 0") && nan.contains("NaN") && nan.contains("member `y`"), "{nan}");
        assert!(read(&[("x", floats(0, 0.0)), ("y", floats(0, 0.0))], all).contains("no samples"));
        let few = read(&[("x", floats(8, 0.0)), ("y", floats(8, 0.0))], Holdout::Default);
        assert!(few.contains("8 samples, of which 8") && few.contains("--holdout"), "{few}");
        assert!(read(&[("x", floats(2, 0.0)), ("y", floats(2, 0.0))], Holdout::Count(2)).contains("none is left"));
    }
}
