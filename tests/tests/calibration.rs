//! What passes do with calibration data, on whole models by compiled code: folds of maps by channel change nothing where nothing is
//! rounded, RepQ's give the codes that each channel's own quantizer gave, and second moments are those of the rows.

use std::path::Path;
use std::sync::Arc;
use tfc::calibration::data::Batch;
use tfc::calibration::evaluate::Executable;
use tfc::calibration::{Compiled, Data, Holdout, Quiet};
use tfc::onnx::{ImportOptions, load};
use tfc_ir::graph::{Graph, Node, Value};
use tfc_passes::absorb::ChannelMap;
use tfc_passes::calibrate::{Calibration, Observed, Source, Statistics, Tap, moments, observe};
use tfc_passes::quantize::{Site, sites};
use tfc_passes::reparameterize::{Absorber, Target, affine, fold_maps, reparameterized};
use tfc_passes::{Context, OptLevel, PassError, QuantConfig, Stats, parse_passes, pipeline, run_pipeline};
use tfc_tests::models::{folders, read_npz, relative_error, zoo};

/// A model as `quantize` would find it, and data for it.
struct Subject {
    graph: Graph,
    sites: Vec<Site>,
    batches: Vec<Batch>,
    cx: Context,
}

fn passed(graph: Graph, passes: &[&'static tfc_passes::Pass], cx: &Context) -> Graph {
    run_pipeline::<PassError>(graph, passes, cx, |_| Ok(std::ops::ControlFlow::Continue(()))).unwrap()
}

impl Subject {
    fn new(model: &Graph, batches: Vec<Batch>) -> Subject {
        let cx = Context { quant: Some(QuantConfig::new("w8a8".parse().unwrap())), ..Context::default() };
        let mut passes = pipeline(OptLevel::O2);
        passes.truncate(passes.iter().position(|p| p.name == "sink-reshapes").expect("a pass of the level"));
        let graph = passed(model.clone(), &passes, &cx);
        Subject { sites: sites(&graph, cx.quant.as_ref().unwrap()), graph, batches, cx }
    }

    /// The vision transformer for images of clothes, with so many batches of training images.
    fn vit(batches: usize) -> Subject {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures");
        let model = load(&folder.join("vit_fmnist.onnx"), &ImportOptions::default()).unwrap();
        let mut data = Data::read(&[folder.join("fmnist_calib.npz")], &model, Holdout::Count(0)).unwrap().learned;
        data.truncate(batches);
        Subject::new(&model, data)
    }

    /// A model with the inputs that are in its folder.
    fn of(folder: &Path) -> Subject {
        let model = load(&folder.join("model.onnx"), &ImportOptions::default()).unwrap();
        let batch = |suffix: &str| -> Option<Batch> {
            let path = folder.join(format!("inputs{suffix}.npz"));
            let mut given = path.exists().then(|| read_npz(&path))?;
            let inputs = model.inputs().iter().map(|&v| given.remove(model.value(v).name.as_deref().unwrap()).unwrap()).collect();
            Some(Batch { samples: 1, inputs, place: path.display().to_string() })
        };
        Subject::new(&model, ["", "_1", "_2"].into_iter().filter_map(batch).collect())
    }

    fn oracle(&self) -> Compiled {
        Compiled { batches: self.batches.clone(), threads: 1, progress: Arc::new(Quiet) }
    }

    fn observed(&self) -> Statistics {
        let taps: Vec<Tap> = self.sites.iter().map(|s| Tap { value: s.operand, axis: s.axis }).collect();
        observe(&self.graph, &taps, &Calibration { source: Source::Data(Arc::new(self.oracle())), mask: None }).unwrap()
    }

    /// The graph with folded maps.
    fn folded(&self, choose: impl FnMut(&Site, &Absorber) -> Option<ChannelMap>) -> (Graph, Stats) {
        let (graph, stats) = fold_maps(self.graph.clone(), &self.cx, choose).unwrap();
        (passed(graph, &parse_passes("fold,simplify,cse,dce").unwrap(), &self.cx), stats)
    }

    /// The largest relative error of a float result, over all batches.
    fn difference(&self, other: &Graph) -> f64 {
        let [mut a, mut b] = [&self.graph, other].map(|g| Executable::of(g, 1).unwrap());
        let of_batch = |batch: &Batch| {
            let (a, b) = (a.run(batch).unwrap(), b.run(batch).unwrap());
            a.iter().zip(&b).filter(|(a, _)| a.elem().is_float()).map(|(a, b)| relative_error(b, a)).fold(0.0, f64::max)
        };
        self.batches.iter().map(of_batch).fold(0.0, f64::max)
    }
}

/// The quantizers of all channels, `(scale, zero point)` for codes in `0..=levels`: one for those that share numbers; symmetric where no
/// shift is absorbed.
fn quantizers(observed: &Observed, absorber: &Absorber, levels: f64) -> Vec<(f64, f64)> {
    let (mut low, mut high) = (observed.min.clone(), observed.max.clone());
    for (j, &first) in absorber.ties.iter().enumerate() {
        low[first as usize] = low[first as usize].min(observed.min[j]);
        high[first as usize] = high[first as usize].max(observed.max[j]);
    }
    let of = |&first: &u32| {
        let [low, high] = [&low, &high].map(|bounds| f64::from(bounds[first as usize]));
        if absorber.shift { affine(low, high, levels) } else { (2.0 * high.max(-low) / levels, 0.0) }
    };
    absorber.ties.iter().map(of).collect()
}

/// RepQ's map with the mean of all scales, and the quantizer that does for all channels behind it.
fn repq(quantizers: &[(f64, f64)], shift: bool) -> (ChannelMap, (f64, f64)) {
    let (scales, shifts, target) = reparameterized(quantizers, Target::Mean);
    let narrow = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect();
    (ChannelMap { scale: narrow(scales), shift: shift.then(|| narrow(shifts)) }, target)
}

/// Every fold that is legal, with a map that makes the ranges of all channels alike.
fn every_fold_alone(name: &str, subject: &Subject) -> Result<Stats, String> {
    let statistics = subject.observed();
    let mut maps = 0;
    let (folded, stats) = subject.folded(|site, absorber| {
        let observed = statistics.of(site.operand).filter(|o| o.is_finite())?;
        let (map, _) = repq(&quantizers(observed, absorber, 255.0), absorber.shift);
        maps += usize::from(absorber.takes(&map));
        absorber.takes(&map).then_some(map)
    });
    let error = subject.difference(&folded);
    let fired: Vec<String> = stats.iter().filter(|(rule, _)| rule.contains("fold")).map(|(rule, n)| format!("{rule} {n}")).collect();
    eprintln!("{name}: {maps} maps for {} operands, relative error {error:.1e}; {}", subject.sites.len(), fired.join(", "));
    if error.is_nan() || error > 1e-5 { Err(format!("{name}: {error:.1e}")) } else { Ok(stats) }
}

#[test]
fn folds_alone_change_nothing_but_the_rounding_of_f32() {
    let stats = every_fold_alone("the vision transformer", &Subject::vit(2)).unwrap();
    assert!(["fold-into-layer-norm", "fold-into-value-projection"].iter().all(|rule| stats.get(rule) >= 6), "{stats}");
    let Some(root) = zoo() else { return };
    let only = std::env::var("TFC_ZOO_ONLY").ok();
    let named = |folder: &Path| folder.file_name().expect("a name").to_string_lossy().into_owned();
    let chosen = folders(&root).into_iter().filter(|f| only.as_ref().is_none_or(|o| *o == named(f)));
    let failures: Vec<String> = chosen.filter_map(|f| every_fold_alone(&named(&f), &Subject::of(&f)).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The left operand of the product that comes from the same ONNX nodes as `product` of another graph.
fn operand_like(graph: &Graph, of: &Graph, product: Node) -> Value {
    let loc = &of.node(product).loc;
    let mut all = graph.nodes().filter(|(_, n)| n.op.mnemonic() == "matmul" && n.loc.names().any(|name| loc.names().any(|m| m == name)));
    let found = all.next().unwrap_or_else(|| panic!("no product {loc}")).1.inputs[0];
    assert!(all.all(|(_, n)| n.inputs[0] == found), "{loc}");
    found
}

/// A graph whose only result is one of its values.
fn ending_at(graph: &Graph, v: Value) -> Graph {
    let mut g = graph.clone();
    g.clear_outputs();
    g.add_output("y", v);
    g
}

/// Behind every norm: one quantizer of mapped numbers gives the codes that each channel's own quantizer gives. In f64 all of them;
/// in compiled code all but those within 1e-4 of the middle between two.
#[test]
fn one_quantizer_gives_the_codes_of_each_channel() {
    let subject = Subject::vit(4);
    let statistics = subject.observed();
    let norms = |site: &Site| subject.graph.producer(site.operand).is_some_and(|n| n.op.mnemonic() == "layer_norm");
    for bits in [4, 8] {
        let levels = f64::from((1u32 << bits) - 1);
        let mut all = vec![];
        let (folded, _) = subject.folded(|site, absorber| {
            let own = quantizers(statistics.of(site.operand).filter(|_| norms(site))?, absorber, levels);
            let (map, target) = repq(&own, absorber.shift);
            all.push((site.operand, site.products[0], own, target));
            Some(map)
        });
        assert_eq!(all.len(), 12);
        for (value, product, own, (scale, zero)) in all {
            let mut before = Executable::of(&ending_at(&subject.graph, value), 1).unwrap();
            let mut after = Executable::of(&ending_at(&folded, operand_like(&folded, &subject.graph, product)), 1).unwrap();
            let (scales, shifts, _) = reparameterized(&own, Target::Mean);
            let (mut count, mut other, mut farthest) = (0, 0, 0f64);
            for batch in &subject.batches {
                let (x, mapped) = (before.run(batch).unwrap().remove(0).to_f64s(), after.run(batch).unwrap().remove(0).to_f64s());
                for (i, (x, mapped)) in x.iter().zip(&mapped).enumerate() {
                    let j = i % own.len();
                    let steps = x / own[j].0;
                    let code = steps.round_ties_even() + own[j].1;
                    let exact = (x - shifts[j]) / scales[j] / scale;
                    assert_eq!(exact.round_ties_even() + zero, code, "channel {j}: {x}");
                    count += 1;
                    if (mapped / scale).round_ties_even() + zero != code {
                        other += 1;
                        farthest = farthest.max((steps - steps.floor() - 0.5).abs());
                    }
                }
            }
            eprintln!(
                "{}: {bits} bits, {other} of {count} codes differ, at most {farthest:.1e} from a tie",
                subject.graph.node(product).loc
            );
            assert!(farthest < 1e-4, "{farthest}");
        }
    }
}

/// Compiled products sum up what rows in f64 do.
#[test]
fn second_moments_are_those_of_the_rows() {
    let subject = Subject::vit(2);
    let taps: Vec<Tap> = subject.sites.iter().map(|s| Tap { value: s.operand, axis: s.axis }).step_by(5).collect();
    let mut seen = 0;
    moments(&subject.graph, &taps, &subject.oracle(), None, &mut |i, found| {
        assert_eq!(i, seen);
        seen += 1;
        let n = taps[i].channels(&subject.graph);
        let (mut count, mut sums) = (0, vec![0f64; n * n]);
        let mut rows = Executable::of(&ending_at(&subject.graph, taps[i].value), 1).unwrap();
        for batch in &subject.batches {
            for row in rows.run(batch).unwrap()[0].to_f64s().chunks_exact(n) {
                count += 1;
                sums.chunks_exact_mut(n).zip(row).for_each(|(sums, x)| sums.iter_mut().zip(row).for_each(|(sum, y)| *sum += x * y));
            }
        }
        assert_eq!(found.count, count);
        let largest = sums.iter().fold(0f64, |m, x| m.max(x.abs()));
        let error = found.matrix.iter().zip(&sums).map(|(mean, sum)| (mean * count as f64 - sum).abs()).fold(0.0, f64::max) / largest;
        assert!(error < 1e-6, "{error}");
    })
    .unwrap();
    assert_eq!(seen, taps.len());
}
