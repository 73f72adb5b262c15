//! The accuracy contract: how near a quantized model is to the one in f32 on samples that were held out, and what is done about it.
//!
//! If a promise does not hold, layers are raised, worst first, until it does: to ranges that are found at run time, where these were
//! fixed by the user, then to weights of 8 bits, then to f32. Worst is the layer without whose roundings the error of the whole model is
//! smallest; what `--quant-override` says of a layer holds. That is measured by one program in which gates choose between the quantized and the exact result of every layer
//! ([`Gates`]). How many steps of this ranking it takes is found by bisection, each step measured by the code that would ship.

use super::data::Batch;
use super::evaluate::{Executable, Progress};
use crate::diag::{Diagnostic, Result};
use crate::metrics::{Accumulator, Checked, Measured, Metric, Promise, missed, promises_table};
use std::sync::Arc;
use tfc_ir::graph::{Graph, Node};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
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
    /// The model in f32.
    reference: Executable,
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
    layer: usize,
    share: f64,
}

impl Contract {
    /// A contract about a model that is `graph` in f32.
    ///
    /// # Errors
    /// When the promise names outputs that are not there, and as [`Executable::of`].
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
        let reference = Executable::of(graph, threads)?;
        Ok(Contract { samples, mask, promise, threads, progress, reference, outputs })
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
        self.progress.at("measure", done, total);
        for batch in &self.samples {
            let (actual, expected) = (executable.run(batch)?, self.reference.run(batch)?);
            self.add(&mut sums, batch, &actual, &expected)?;
            done += batch.samples;
            self.progress.at("measure", done, total);
        }
        let outputs = self.finish(&sums);
        Ok(Accuracy { samples: total, checked: self.promise.check(&outputs), outputs, raised: vec![] })
    }

    fn add(&self, sums: &mut [Accumulator], batch: &Batch, actual: &[Tensor], expected: &[Tensor]) -> Result<()> {
        let mask = self.mask.map(|i| &batch.inputs[i]);
        for (((sum, name), a), e) in sums.iter_mut().zip(&self.outputs).zip(actual).zip(expected) {
            if name.is_some() {
                sum.add(a, e, mask).map_err(|e| Diagnostic::bug(e.to_string()).at(batch.place.clone()))?;
            }
        }
        Ok(())
    }

    fn finish(&self, sums: &[Accumulator]) -> Vec<(String, Measured)> {
        self.outputs.iter().zip(sums).filter_map(|(name, s)| Some((name.clone()?, s.finish()))).collect()
    }

    /// Layers by what the model gains without their roundings, most first. `gated` is a graph behind all passes.
    fn rank(&mut self, gated: &Graph, gates: &Gates) -> Result<Vec<Ranked>> {
        let samples: Vec<Batch> = self.samples.iter().take(RANKING_BATCHES).cloned().collect();
        let expected: Vec<Vec<Tensor>> = samples.iter().map(|b| self.reference.run(b)).collect::<Result<_>>()?;
        let input = gated.inputs().last().copied().expect("a gated graph has its gates");
        let size = gated.ty(input).shape[0].as_const().expect("a known number of gates") as usize;
        let mut executable = Executable::new(gated, self.threads)?;
        let mut error_without = |closed: Option<usize>| -> Result<f64> {
            let gates = Tensor::build(Elem::Bool, &[size], |i| Scalar::Int((Some(i) != closed).into()));
            let mut sums = vec![Accumulator::default(); self.outputs.len()];
            for (batch, expected) in samples.iter().zip(&expected) {
                let mut with_gates = batch.clone();
                with_gates.inputs.push(gates.clone());
                let actual = executable.run(&with_gates)?;
                self.add(&mut sums, batch, &actual, expected)?;
            }
            Ok(self.finish(&sums).iter().map(|(_, m)| self.damage(m)).fold(0.0, f64::max))
        };
        let all = error_without(None)?;
        let count = gates.0.len();
        self.progress.at("rank layers", 0, count);
        let mut ranked = vec![];
        for layer in 0..count {
            let without = error_without(Some(layer))?;
            let share = if all > 0.0 && all.is_finite() { 1.0 - without / all } else { 0.0 };
            ranked.push(Ranked { layer, share });
            self.progress.at("rank layers", layer + 1, count);
        }
        ranked.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.layer.cmp(&b.layer)));
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

/// Parts of the data that layers are ranked on: the differences between layers are large next to those between samples.
const RANKING_BATCHES: usize = 2;

/// A graph behind all passes, with what they said.
pub struct Quantized {
    /// The graph.
    pub graph: Graph,
    /// What became of every product.
    pub ledger: Vec<LedgerEntry>,
    /// The gates, if they were asked for.
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
    let ranked = contract.rank(&gated.graph, &gated.gates)?;
    let shares: Vec<(Node, f64)> = ranked.iter().map(|r| (gated.gates.0[r.layer], r.share)).collect();
    if accuracy.kept() {
        return Ok(Kept { config: config.clone(), accuracy, shares });
    }
    // What the user decided for a layer holds.
    let free = |e: &&LedgerEntry| e.spec != QuantSpec::F32 && !config.overrides(&e.loc);
    let entry = |node: Node| plain.ledger.iter().filter(free).find(|e| e.node == node);
    let by_rank: Vec<&LedgerEntry> = shares.iter().filter_map(|(node, _)| entry(*node)).collect();
    let steps = steps(config, &by_rank, &accuracy);
    let with = |count: usize| QuantConfig { raised: steps[..count].to_vec(), ..config.clone() };
    let mut measured = |count: usize, contract: &mut Contract| contract.measure(&quantize(&with(count))?.graph);
    // What all steps together reach is the best there is.
    let (mut low, mut high) = (0, steps.len());
    let mut best = measured(high, contract)?;
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

/// What is tried, one after the other; every step keeps those before it.
fn steps(config: &QuantConfig, layers: &[&LedgerEntry], accuracy: &Accuracy) -> Vec<Raised> {
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
    let dynamic = layers.iter().filter(|l| is_static(l)).map(|l| raised(l, wanted(l).with_scaling(Scaling::Dynamic)));
    let eight = layers.iter().filter_map(|l| match wanted(l) {
        QuantSpec::Int { weights: WeightBits::Four, activations: activations @ Activations::Int8, group, scaling } if has_weights(l) => {
            // Weights of 8 bits lose by fixed ranges what they gain.
            let scaling = if scaling == Scaling::Static { Scaling::Dynamic } else { scaling };
            Some(raised(l, QuantSpec::Int { weights: WeightBits::Eight, activations, group, scaling }))
        }
        _ => None,
    });
    let float = layers.iter().map(|l| raised(l, QuantSpec::F32));
    dynamic.chain(eight).chain(float).collect()
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
