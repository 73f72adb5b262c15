//! The accuracy contract: how near a quantized model is to the one in f32 on samples that were held out, and what is done about it.
//!
//! If a promise does not hold, layers are raised, worst first, until it does: to ranges that are found at run time, where these were
//! fixed by the user, then to weights of 8 bits, then to f32. Worst is the layer without whose roundings the error of the whole model is
//! smallest ([`ranking`]); among fixed ranges it is the one whose roundings would gain most by ranges of run time. What `--quant-override`
//! says of a layer holds. How many steps of this ranking it takes is found by bisection, first between kinds of steps, each measured by
//! the code that would ship.

use super::data::Batch;
use super::evaluate::{Executable, Progress};
use super::ranking;
use crate::diag::{Diagnostic, Result};
use crate::metrics::{Accumulator, Checked, Measured, Metric, Promise, missed, promises_table};
use std::sync::Arc;
use tfc_ir::graph::{Graph, Node};
use tfc_ir::tensor::Tensor;
use tfc_passes::quantize::{Activations, Gates, Raised, Scaling, WeightBits};
use tfc_passes::{LedgerEntry, QuantConfig, QuantSpec};

/// What is measured on, and against what.
pub struct Contract {
    /// Samples that nothing was learned from.
    pub samples: Vec<Batch>,
    /// The position of the input whose zeros are positions that do not count.
    pub mask: Option<usize>,
    /// What must hold.
    pub promise: Promise,
    /// Threads that evaluate.
    pub threads: usize,
    /// Who is told how far it is.
    pub progress: Arc<dyn Progress>,
    /// The model in f32,
    exact: Graph,
    /// and its code, made when it is first needed: calibration has no memory for it.
    reference: Option<Executable>,
    /// Names of the outputs; those that are no floats are not measured.
    outputs: Vec<Option<String>>,
}

/// What was measured of a model on held-out samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accuracy {
    /// How many samples.
    pub samples: usize,
    /// Every output of floats.
    pub outputs: Vec<(String, Measured)>,
    /// Every promise.
    pub checked: Vec<Checked>,
    /// Layers that were raised to keep them, worst first.
    pub raised: Vec<Raised>,
}

impl Accuracy {
    /// Whether every promise is kept.
    pub fn kept(&self) -> bool {
        self.checked.iter().all(Checked::kept)
    }
}

/// How much the model gains without the roundings of a layer.
struct Ranked {
    node: Node,
    share: f64,
}

impl Contract {
    /// A contract about a model that is `graph` in f32.
    ///
    /// # Errors
    /// When the promise names outputs that are not there.
    pub fn new(
        graph: &Graph,
        samples: Vec<Batch>,
        mask: Option<usize>,
        promise: Promise,
        threads: usize,
        progress: Arc<dyn Progress>,
    ) -> Result<Contract> {
        let name = |o: &tfc_ir::graph::Output| graph.ty(o.value).elem.is_float().then(|| o.name.to_string());
        let outputs: Vec<Option<String>> = graph.outputs().iter().map(name).collect();
        promise.fits(&outputs.iter().flatten().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Contract { samples, mask, promise, threads, progress, exact: graph.clone(), reference: None, outputs })
    }

    /// The code of the model in f32.
    fn reference(&mut self) -> Result<&mut Executable> {
        if self.reference.is_none() {
            self.reference = Some(Executable::of(&self.exact, self.threads)?);
        }
        self.reference.as_mut().ok_or_else(|| Diagnostic::bug("there is no code of the model in f32"))
    }

    /// Measures a graph that is behind all passes.
    ///
    /// # Errors
    /// As [`Executable::new`] and [`Executable::run`].
    pub fn measure(&mut self, graph: &Graph) -> Result<Accuracy> {
        let mut executable = Executable::new(graph, self.threads)?;
        let mut sums = vec![Accumulator::default(); self.outputs.len()];
        let total = self.samples.iter().map(|b| b.samples).sum();
        let mut done = 0;
        self.progress.at("measure on samples", done, total);
        for batch in self.samples.clone() {
            let (actual, expected) = (executable.run(&batch)?, self.reference()?.run(&batch)?);
            self.add(&mut sums, &batch, &actual, &expected, usize::MAX)?;
            done += batch.samples;
            self.progress.at("measure on samples", done, total);
        }
        let outputs = self.finish(&sums);
        Ok(Accuracy { samples: total, checked: self.promise.check(&outputs), outputs, raised: vec![] })
    }

    /// Adds what the outputs have in at most `rows` rows each.
    fn add(&self, sums: &mut [Accumulator], batch: &Batch, actual: &[Tensor], expected: &[Tensor], rows: usize) -> Result<()> {
        let mask = self.mask.map(|i| &batch.inputs[i]);
        for (((sum, name), a), e) in sums.iter_mut().zip(&self.outputs).zip(actual).zip(expected) {
            if name.is_some() {
                sum.add_some(a, e, mask, rows).map_err(|e| Diagnostic::bug(e.to_string()).at(batch.place.clone()))?;
            }
        }
        Ok(())
    }

    fn finish(&self, sums: &[Accumulator]) -> Vec<(String, Measured)> {
        self.outputs.iter().zip(sums).filter_map(|(name, s)| Some((name.clone()?, s.finish()))).collect()
    }

    /// Layers by what the model gains without their roundings, most first.
    fn rank(&mut self, gated: &Quantized) -> Result<Vec<Ranked>> {
        let Quantized { graph, gates, .. } = gated;
        let count = gates.0.len();
        if count == 0 {
            return Ok(vec![]);
        }
        let all = self.samples.clone();
        let reference = self.reference()?;
        let samples = ranking::samples(graph, gates, reference, &all, ranking::OPERATIONS)?;
        let expected: Vec<Vec<Tensor>> = samples.iter().map(|b| reference.run(b)).collect::<Result<_>>()?;
        let none = vec![Accumulator::default(); self.outputs.len()];
        // With all roundings, then without those of each layer.
        let mut sums = vec![none; count + 1];
        self.progress.at("rank layers", 0, count);
        ranking::without_each(graph, gates, samples, self.threads, &mut |gate, i, actual| {
            self.add(&mut sums[gate.map_or(0, |g| g + 1)], &samples[i], actual, &expected[i], ranking::ROWS)?;
            if let Some(gate) = gate.filter(|_| i + 1 == samples.len()) {
                self.progress.at("rank layers", gate + 1, count);
            }
            Ok(())
        })?;
        let damage: Vec<f64> = sums.iter().map(|s| self.finish(s).iter().map(|(_, m)| self.damage(m)).fold(0.0, f64::max)).collect();
        let share = |without: f64| if damage[0] > 0.0 && damage[0].is_finite() { 1.0 - without / damage[0] } else { 0.0 };
        let mut ranked: Vec<Ranked> =
            damage[1..].iter().zip(&gates.0).map(|(d, gate)| Ranked { node: gate.node, share: share(*d) }).collect();
        ranked.sort_by(|a, b| b.share.total_cmp(&a.share));
        Ok(ranked)
    }

    /// What layers are ranked by: the first measure that is promised, or the one behind it that changes smoothly.
    fn damage(&self, m: &Measured) -> f64 {
        let by = match self.promise.0.first().map(|b| b.metric) {
            Some(Metric::Divergence | Metric::Top1) => m.divergence.or(m.error),
            Some(Metric::Error) | None => m.error,
        };
        by.unwrap_or(0.0)
    }
}

/// A graph behind all passes, or, if it has gates, right behind quantization, with what the passes said.
pub struct Quantized {
    /// The graph.
    pub graph: Graph,
    /// What became of every product.
    pub ledger: Vec<LedgerEntry>,
    /// The gates of `graph`, if they were asked for.
    pub gates: Gates,
}

/// How a promise is kept.
pub struct Kept {
    /// The configuration by which it holds.
    pub config: QuantConfig,
    /// What was measured with it.
    pub accuracy: Accuracy,
    /// What part of the error each layer has, worst first, if that was measured: by how much it is smaller without the roundings of
    /// the layer.
    pub shares: Vec<(Node, f64)>,
}

/// The configuration by which the promise of a contract holds. `quantize` runs the passes from quantization on. Shares are measured if
/// the promise does not hold as it is, or if `shares` asks for them.
///
/// # Errors
/// Exit code 4 when no layers that are raised make the promise hold; the error says what was best. And those of `quantize`.
pub fn keep(
    contract: &mut Contract,
    config: &QuantConfig,
    shares: bool,
    quantize: &mut dyn FnMut(&QuantConfig) -> Result<Quantized>,
) -> Result<Kept> {
    let plain = quantize(config)?;
    let accuracy = contract.measure(&plain.graph)?;
    if accuracy.kept() && !shares {
        return Ok(Kept { config: config.clone(), accuracy, shares: vec![] });
    }
    let gated = quantize(&QuantConfig { gated: true, ..config.clone() })?;
    let ranked = contract.rank(&gated)?;
    drop(gated);
    let shares: Vec<(Node, f64)> = ranked.iter().map(|r| (r.node, r.share)).collect();
    if accuracy.kept() {
        return Ok(Kept { config: config.clone(), accuracy, shares });
    }
    // What the user decided for a layer holds.
    let free = |e: &&LedgerEntry| e.spec != QuantSpec::F32 && !config.overrides(&e.loc);
    let entry = |r: &Ranked| Some((plain.ledger.iter().filter(free).find(|e| e.node == r.node)?, r.share));
    let by_rank: Vec<(&LedgerEntry, f64)> = ranked.iter().filter_map(entry).collect();
    let (steps, kinds) = steps(config, &by_rank, &accuracy);
    let with = |count: usize| QuantConfig { raised: steps[..count].to_vec(), ..config.clone() };
    let mut measured = |count: usize, contract: &mut Contract| contract.measure(&quantize(&with(count))?.graph);
    // The first kind of steps that is enough. What all of them reach is the best there is.
    let (mut low, mut high, mut best) = (0, 0, accuracy.clone());
    for end in kinds {
        if !best.kept() && end > high {
            (low, high, best) = (high, end, measured(end, contract)?);
        }
    }
    if !best.kept() {
        return Err(unkept(&accuracy, &best));
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let here = measured(middle, contract)?;
        if here.kept() {
            (high, best) = (middle, here);
        } else {
            low = middle;
        }
    }
    let config = with(high);
    best.raised = latest(&config.raised);
    Ok(Kept { config, accuracy: best, shares })
}

/// What is tried, one after the other, of layers with their shares; every step keeps those before it. And how many steps there are with
/// each kind of them: ranges of run time, weights of 8 bits, f32.
fn steps(config: &QuantConfig, layers: &[(&LedgerEntry, f64)], accuracy: &Accuracy) -> (Vec<Raised>, [usize; 3]) {
    let missed: Vec<String> = accuracy.checked.iter().filter(|c| !c.kept()).map(|c| format!("--{}", c.metric.option())).collect();
    let mut reasons = missed;
    reasons.dedup();
    let raised = |layer: &LedgerEntry, spec: QuantSpec| Raised {
        node: layer.node,
        loc: layer.loc.clone(),
        spec,
        reason: format!("raised from {} by {}", layer.spec, reasons.join(", ")),
    };
    let wanted = |layer: &LedgerEntry| config.of(layer.node, &layer.loc).0;
    let is_static = |layer: &LedgerEntry| matches!(wanted(layer), QuantSpec::Int { scaling: Scaling::Static, .. });
    let mut dynamic: Vec<(&LedgerEntry, f64)> =
        layers.iter().filter(|(l, _)| is_static(l)).map(|(l, share)| (*l, share * less_by_dynamic_ranges(l))).collect();
    dynamic.sort_by(|a, b| b.1.total_cmp(&a.1));
    let dynamic = dynamic.into_iter().map(|(l, _)| raised(l, wanted(l).with_scaling(Scaling::Dynamic)));
    let eight = layers.iter().filter_map(|(l, _)| match wanted(l) {
        QuantSpec::Int { weights: WeightBits::Four, activations: activations @ Activations::Int8, group, scaling } if has_weights(l) => {
            // Weights of 8 bits lose by fixed ranges what they gain.
            let scaling = if scaling == Scaling::Static { Scaling::Dynamic } else { scaling };
            Some(raised(l, QuantSpec::Int { weights: WeightBits::Eight, activations, group, scaling }))
        }
        _ => None,
    });
    let float = layers.iter().map(|(l, _)| raised(l, QuantSpec::F32));
    let mut steps: Vec<Raised> = dynamic.collect();
    let mut kinds = [steps.len(); 3];
    steps.extend(eight);
    kinds[1] = steps.len();
    steps.extend(float);
    kinds[2] = steps.len();
    (steps, kinds)
}

/// The part of a layer's squared error that ranges of run time would take away, as estimated from calibration data: from 0 to 1.
fn less_by_dynamic_ranges(layer: &LedgerEntry) -> f64 {
    let (Some(operand), Some(total)) = (&layer.operand, layer.total_error) else { return 0.0 };
    let less = (operand.error.powi(2) - operand.dynamic_error.powi(2)) / total.powi(2);
    if less.is_nan() { 0.0 } else { less.clamp(0.0, 1.0) }
}

/// Whether the layer is a product with weights of 4 bits.
fn has_weights(layer: &LedgerEntry) -> bool {
    matches!(layer.spec, QuantSpec::Int { weights: WeightBits::Four, .. })
}

/// The last step of every layer, in the order of the first.
fn latest(raised: &[Raised]) -> Vec<Raised> {
    let mut latest: Vec<Raised> = vec![];
    for r in raised {
        match latest.iter_mut().find(|l| l.node == r.node) {
            Some(l) => *l = r.clone(),
            None => latest.push(r.clone()),
        }
    }
    latest
}

fn unkept(first: &Accuracy, best: &Accuracy) -> Box<Diagnostic> {
    let failure = missed(&best.checked).unwrap_or_else(|| Diagnostic::bug("a promise is missed and kept"));
    failure
        .note(format!(
            "with every layer in f32 that no --quant-override fixes, on {} held-out samples:\n{}",
            best.samples,
            promises_table(&best.checked)
        ))
        .note(format!("as it was asked for:\n{}", promises_table(&first.checked)))
        .help("promise less, or override less; what is left without overrides is what rewrites in f32 change")
}
