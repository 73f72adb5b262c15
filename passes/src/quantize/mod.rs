//! `quantize`: products with constant matrices become products with quantized ones.
//!
//! A product `x · W` with a constant `W` of floats becomes `quantized_matmul` with `W` rounded to the nearest
//! ([`round_to_nearest`]), and `x` quantized where the scheme says so ([`QuantSpec`]): per row at run time, or, with
//! [`Statistics`] of the pass before, by a range that is known beforehand where that costs next to nothing ([`activations`]). A product `W · x`, as convolutions have it, is transposed first. A stack of matrices, as
//! experts have them, becomes a product for each. What rounding takes from the mean of all rows is added to the product again,
//! or to the constant that is added to it anyway, where data show that this is much of the error ([`bias`]). Products that
//! have the same left operand share its quantization. Weights that the model stores as integers stay what they are, and only
//! their activations follow the scheme. Attention becomes `quantized_attention` where the
//! scheme has integer activations: both of its products are then of 8 bits. Operands in f16, bf16 and f64 are converted
//! to f32, and results back. Tables of which rows are gathered are stored in 8 bits with a scale for every row where nothing else but
//! quantized products reads them ([`round_rows`]). What is not quantized, and
//! why, is in the ledger as well.

pub mod activations;
pub mod bias;
mod memo;
mod spec;
mod tables;
mod weights;

pub use memo::Memo;
pub use spec::{Activations, Group, QuantConfig, QuantSpec, Raised, Scaling, SpecError, WeightBits};
pub use weights::{Rounded, RoundedRows, round_rows, round_to_nearest};

use crate::calibrate::{Observed, Statistics};
use crate::parallel;
use crate::rebuild::Rebuild;
use crate::reparameterize::Fold;
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use activations::{Range, Rated, rate};
use memo::Rounding;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tfc_ir::dim::{Bindings, Dim};
use tfc_ir::graph::{Graph, Loc, Node, NodeData, Value};
use tfc_ir::ops::{
    Add, Attention, Cast, Concat, Gather, InferCx, Mul, Op, Operator, QuantizeRows, QuantizeStatic, QuantizedAttention, QuantizedMatmul,
    Reshape, Select, Slice, Transpose,
};
use tfc_ir::quant::{Granularity, Scheme};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape, Type};

/// Rounds constant matrices to integers, as `Context::quant` says; without it, it changes nothing.
pub const PASS: Pass = Pass { name: "quantize", summary: "round constant matrices to integers, as --quant says", run };

/// The smallest k: below it, to quantize a row costs more than to multiply it, and there is little to round.
const MIN_INNER: usize = 32;

/// The fewest output channels: quantizing a row costs as much as some 16 dot products with it.
const MIN_COLUMNS: usize = 16;

/// The fewest channels of a head: below, rounding the weights costs more than multiplying them.
const MIN_DEPTH: i64 = 16;

/// The smallest share of the squared error of a product that correcting its bias must take away. The error itself falls by half of
/// it; errors are estimated as if channels were independent, which is not exact to less than that.
const MIN_CORRECTED: f64 = 0.01;

/// The most matrices of a stack, each of which becomes a product.
const MAX_STACK: usize = 1024;

/// The smallest table that is stored in 8 bits, and the smallest constant of another operator that the ledger mentions, in bytes.
const LARGE: u64 = 1 << 20;

/// What became of one matrix product, of one attention, whose two products are quantized alike, of a table of which one node gathers
/// rows, or of a large constant that something else takes.
#[derive(Clone, PartialEq, Debug)]
pub struct LedgerEntry {
    /// The node of the graph that was quantized.
    pub node: Node,
    /// The ONNX nodes of the product.
    pub loc: Loc,
    /// How it is computed.
    pub spec: QuantSpec,
    /// Why so.
    pub reason: String,
    /// Bytes of the constant as the model has it; 0 without one.
    pub source_bytes: u64,
    /// Bytes of the stored values and their scales; what it was if it stayed as it was.
    pub packed_bytes: u64,
    /// ‖W - Ŵ‖ / ‖W‖, if it was rounded; of a stack, the largest one.
    pub weight_error: Option<f64>,
    /// How its operand is quantized and what that costs, as far as calibration data says it.
    pub operand: Option<Rated>,
    /// Relative root mean square error of its result by all roundings, as estimated from calibration data.
    pub total_error: Option<f64>,
    /// What was done to its operand and its weights before they were rounded.
    pub fold: Option<Fold>,
    /// By how much of itself the error of the whole model is smaller without the roundings of this, as far as that was measured;
    /// negative if it is larger.
    pub share: Option<f64>,
}

fn run(graph: Graph, cx: &Context) -> PassResult {
    let mut stats = Stats::default();
    let Some(config) = cx.quant.as_ref().filter(|c| !c.is_f32()) else { return Ok((graph, stats)) };
    let own = Memo::default();
    let mut pass = Quantizer::new(&graph, config, cx.data.get::<Memo>().unwrap_or(&own));
    if config.gated {
        pass.add_gates();
    }
    pass.tables = tables::decide(&graph, config);
    pass.round_all();
    if let Some(statistics) = cx.data.get::<Statistics>() {
        pass.rate_operands(statistics);
        pass.sums = sums_of_products(&graph);
    }
    for (n, node) in graph.nodes() {
        match &node.op {
            Op::Matmul(_) => {
                let entry = pass.product(n, node)?;
                match entry.spec {
                    QuantSpec::F32 => stats.count("products left in f32", 1),
                    QuantSpec::Int { .. } => stats.count("products quantized", 1),
                }
                stats.count("bytes of weights before", entry.source_bytes);
                stats.count("bytes of weights after", entry.packed_bytes);
                stats.ledger.push(entry);
            }
            Op::Attention(op) => {
                let entry = pass.attention(n, node, op)?;
                if entry.spec != QuantSpec::F32 {
                    stats.count("attentions quantized", 1);
                }
                stats.ledger.push(entry);
            }
            Op::Gather(_) if tables::table_of(&graph, node).is_some() => {
                let entry = pass.gather(n, node)?;
                if entry.spec != QuantSpec::F32 {
                    stats.count("gathers of tables in 8 bits", 1);
                }
                stats.ledger.push(entry);
            }
            Op::QuantizedMatmul(op) if op.activations.is_none() => {
                let entry = pass.stored_product(n, node, op)?;
                stats.count("products with stored weights", 1);
                stats.ledger.push(entry);
            }
            _ => match pass.biases.remove(&n) {
                Some(bias) => pass.with_corrected_bias(node, bias)?,
                None => {
                    stats.ledger.extend(pass.large_constants(n, node));
                    pass.out.copy(n)?;
                }
            },
        }
    }
    if pass.corrected > 0 {
        stats.count("biases corrected", pass.corrected);
    }
    let dynamic = pass.rows.keys().filter(|(_, range)| *range == Range::Dynamic).count();
    stats.count("rows quantized at run time", dynamic as u64);
    if pass.rows.len() > dynamic {
        stats.count("rows quantized by fixed ranges", (pass.rows.len() - dynamic) as u64);
    }
    if let Some((_, gates)) = pass.gates.take() {
        stats.data.insert(gates);
    }
    Ok((pass.out.finish(), stats))
}

impl LedgerEntry {
    fn kept(node: Node, loc: &Loc, reason: impl Into<String>, bytes: u64) -> LedgerEntry {
        let (source_bytes, packed_bytes) = (bytes, bytes);
        LedgerEntry {
            node,
            loc: loc.clone(),
            spec: QuantSpec::F32,
            reason: reason.into(),
            source_bytes,
            packed_bytes,
            weight_error: None,
            operand: None,
            total_error: None,
            fold: None,
            share: None,
        }
    }
}

/// A constant operand of a product: a matrix, or several.
struct Matrices {
    /// The constant as the graph has it.
    source: Tensor,
    /// `[k, n]` in f32, row-major, each.
    data: Vec<Tensor>,
    /// Whether it is the left operand, and `data` its transpose.
    left: bool,
    /// The axis along which several are, counted from the end of the operand's shape.
    stacked: Option<usize>,
}

impl Matrices {
    fn sizes(&self) -> [usize; 2] {
        [self.data[0].sizes()[0], self.data[0].sizes()[1]]
    }
}

/// A rounded matrix in the new graph.
#[derive(Clone)]
struct Weights {
    codes: Value,
    scales: Value,
    op: QuantizedMatmul,
    rounded: Arc<Rounded>,
}

impl Weights {
    fn bytes(&self) -> u64 {
        (self.rounded.codes.bytes().len() + self.rounded.scales.bytes().len()) as u64
    }
}

/// What data says of the operand of some products.
#[derive(Clone)]
struct RatedSite {
    rated: Rated,
    /// Relative error of the results that rounding the weights causes.
    weight_error: f64,
    /// What was seen of it.
    observed: Arc<Observed>,
}

impl RatedSite {
    /// What corrects the bias of a product of this operand whose relative error is `total_error`, if that takes [`MIN_CORRECTED`] of
    /// the squared error on rows beside those that were seen.
    fn correction(&self, matrices: &Matrices, weights: &[Weights], total_error: f64) -> Option<Correction> {
        // Each matrix of a stack meets rows of its own, whose means are not known.
        let ([w], [rounded]) = (&matrices.data[..], weights) else { return None };
        if !self.seen() {
            return None;
        }
        let mean = &self.observed.mean;
        let bias = bias::correction(mean, &w.values::<f32>(), &rounded.rounded);
        let lost: f64 = bias.iter().map(|&b| f64::from(b).powi(2)).sum();
        // What rows have beside their mean stays, as if channels were independent.
        let spread = self.observed.mean_square.iter().zip(mean).map(|(square, mean)| square - mean * mean);
        let left: f64 = spread.zip(&rounded.rounded.row_errors).map(|(v, e)| v.max(0.0) * e).sum();
        // The mean of so many rows is off by `left / count`, which `lost` has in it and other rows get added.
        let gain = lost - 2.0 * left / self.observed.count as f64;
        let share = gain / (lost + left) * (self.weight_error / total_error).powi(2);
        (share >= MIN_CORRECTED).then(|| Correction { bias: Tensor::of(&[bias.len()], bias), share })
    }

    /// Rows were seen, and all of them were finite.
    fn seen(&self) -> bool {
        self.observed.is_finite()
    }
}

/// What is added to the results of a product, `[n]`.
struct Correction {
    bias: Tensor,
    /// Of the squared error of the results, how much it takes away.
    share: f64,
}

/// The products, attentions and gathers of a graph that [`QuantConfig::gated`] gave gates, in the order of those: element `i` of the graph's last
/// input, [`Gates::INPUT`], says whether the quantized result of number `i` counts.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Gates(pub Vec<Gate>);

/// A choice between two results.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Gate {
    /// The node of the graph that was quantized.
    pub node: Node,
    /// What was chosen, in the graph right behind the pass: the result of a `select` of the gate, the quantized result, and the exact
    /// one.
    pub chosen: Value,
}

impl Gates {
    /// The name of the input: booleans, at least as many as there are gates.
    pub const INPUT: &'static str = "tfc.gates";
}

struct Quantizer<'g> {
    graph: &'g Graph,
    config: &'g QuantConfig,
    memo: &'g Memo,
    out: Rebuild<'g>,
    /// Results of quantizing values of the new graph: per row, or by one range.
    rows: HashMap<(Value, Range), Vec<Value>>,
    /// Values of the new graph in f32.
    converted: HashMap<Value, Value>,
    /// The input with the gates, if there are any, and what has one.
    gates: Option<(Value, Gates)>,
    /// Operands of products, with the axis that is summed over, whose values are known from data.
    rated: HashMap<(Value, usize), RatedSite>,
    /// What the new graph has of rounded matrices.
    weights: HashMap<Rounding, Vec<Weights>>,
    /// Constants of which rows are gathered: what is said beside what decides that they are rounded, or why they are not.
    tables: HashMap<Value, Result<String, String>>,
    /// What the new graph has of rounded tables: codes and scales.
    rounded_tables: HashMap<Value, [Value; 2]>,
    /// Large constants that the ledger has.
    mentioned: HashSet<Value>,
    /// The sums of products that nothing else takes, if there is data.
    sums: HashMap<Node, Node>,
    /// Of such sums, the constant with the correction of the product in it.
    biases: HashMap<Node, Tensor>,
    /// Products whose bias was corrected.
    corrected: u64,
}

impl<'g> Quantizer<'g> {
    fn new(graph: &'g Graph, config: &'g QuantConfig, memo: &'g Memo) -> Quantizer<'g> {
        Quantizer {
            graph,
            config,
            memo,
            out: Rebuild::new(graph),
            rows: HashMap::new(),
            gates: None,
            rated: HashMap::new(),
            converted: HashMap::new(),
            weights: HashMap::new(),
            tables: HashMap::new(),
            rounded_tables: HashMap::new(),
            mentioned: HashSet::new(),
            sums: HashMap::new(),
            biases: HashMap::new(),
            corrected: 0,
        }
    }

    /// The constant matrices of a product, the scheme that it gets and what said so; or why it stays as it is.
    fn quantizable(&self, n: Node, node: &NodeData) -> Result<(Matrices, QuantSpec, String), String> {
        let matrices = self.matrices(node)?;
        let (spec, by) = self.config.of(n, &node.loc);
        if spec == QuantSpec::F32 {
            return Err(by);
        }
        let [k, columns] = matrices.sizes();
        let finite = |t: &Tensor| t.values::<f32>().iter().all(|w| w.is_finite());
        let x = self.graph.ty(node.inputs[usize::from(matrices.left)]);
        let of_rows = &x.shape[channel_axis(x, matrices.left)];
        match () {
            () if k < MIN_INNER => Err(format!("its inner size {k} is below {MIN_INNER}: there is nothing to gain")),
            () if columns < MIN_COLUMNS => {
                Err(format!("it has {columns} output channels, fewer than {MIN_COLUMNS}: there is nothing to gain"))
            }
            () if of_rows.as_const().is_none() => Err(format!("the size {of_rows} of the rows of {x} is not known")),
            () if !matrices.data.iter().all(finite) => Err("a weight is not finite".into()),
            () => Ok((matrices, spec, by)),
        }
    }

    /// Emits a product, quantized if that is wanted and possible.
    fn product(&mut self, n: Node, node: &NodeData) -> Result<LedgerEntry, PassError> {
        let bytes = self.constant_bytes(node);
        let (matrices, mut spec, mut reason) = match self.quantizable(n, node) {
            Ok(found) => found,
            Err(why_not) => {
                self.out.copy(n)?;
                return Ok(LedgerEntry::kept(n, &node.loc, why_not, bytes));
            }
        };
        let QuantSpec::Int { weights: bits, activations, group: wanted_group, .. } = spec else { unreachable!("f32 is not quantizable") };
        let [k, _] = matrices.sizes();
        let group = group_of(bits, activations, wanted_group, k);
        if matches!(group, Group::Of(size) if size as usize >= k) {
            reason += "; one group holds all of k";
        }
        if group != wanted_group {
            reason += &format!("; in groups of {}, whose sums fit 32 bits", longest_group(bits));
        }
        if matrices.data.len() > 1 {
            reason += &format!("; a product for each of {} matrices", matrices.data.len());
        }
        let weights = self.weights(node, &matrices, spec);
        let operand = node.inputs[usize::from(matrices.left)];
        let site = self.rated.get(&(operand, channel_axis(self.graph.ty(operand), matrices.left))).cloned();
        if let Some(site) = site.as_ref().filter(|_| activations == Activations::Int8) {
            if !site.seen() {
                reason += "; rows are quantized at run time, since calibration saw no finite ones";
            }
            spec = spec.with_scaling(if site.rated.range == Range::Dynamic { Scaling::Dynamic } else { Scaling::Static });
        }
        let range = site.as_ref().map_or(Range::Dynamic, |s| s.rated.range.clone());
        let mut total_error = site.as_ref().filter(|s| s.seen()).map(|s| match activations {
            Activations::Int8 => s.rated.error.hypot(s.weight_error),
            Activations::Float => s.weight_error,
        });
        let correction = site.as_ref().zip(total_error).and_then(|(site, total)| site.correction(&matrices, &weights, total));
        if let Some(found) = &correction {
            reason += "; bias corrected";
            total_error = total_error.map(|e| e * (1.0 - found.share).sqrt());
        }
        let bias = correction.and_then(|found| self.in_next_bias(n, &matrices, found.bias));
        let x = self.left_operand(node, matrices.left)?;
        let wanted = self.graph.ty(node.outputs[0]).clone();
        let mut parts = vec![];
        for (i, w) in weights.iter().enumerate() {
            let part = match matrices.stacked {
                Some(axis) => self.part(x, axis, i, &node.loc)?,
                None => x,
            };
            let mut y = self.quantized(part, w, activations, &range, &node.loc)?;
            if let Some(bias) = &bias {
                let bias = self.out.new.add_const(bias.clone(), None);
                y = self.out.emit(Add {}.into(), &[y, bias], &node.loc)?[0];
            }
            if matrices.left {
                y = self.transposed(y, &node.loc)?;
            }
            let mut shape = wanted.shape.clone();
            if let Some(axis) = matrices.stacked {
                let axis = shape.rank() - axis;
                shape.0[axis] = Dim::from(1);
            }
            if self.out.new.ty(y).shape != shape {
                y = self.out.emit(Reshape { shape }.into(), &[y], &node.loc)?[0];
            }
            parts.push(self.cast(y, wanted.elem, &node.loc)?);
        }
        let y = match matrices.stacked {
            Some(axis) => self.out.emit(Concat { axis: wanted.rank() - axis }.into(), &parts, &node.loc)?[0],
            None => parts[0],
        };
        let y = self.gated(n, node, y)?;
        self.out.set(node.outputs[0], y);
        Ok(LedgerEntry {
            node: n,
            loc: node.loc.clone(),
            spec,
            reason,
            source_bytes: bytes,
            packed_bytes: weights.iter().map(Weights::bytes).sum(),
            weight_error: weights.iter().map(|w| w.rounded.relative_error).reduce(f64::max),
            total_error,
            operand: site.filter(|s| s.seen() && activations == Activations::Int8).map(|s| s.rated),
            fold: None,
            share: None,
        })
    }

    /// Adds the correction of a product to the constant that the next operator adds, if that is all that takes the product; else
    /// returns it, to be added on its own.
    fn in_next_bias(&mut self, n: Node, matrices: &Matrices, correction: Tensor) -> Option<Tensor> {
        self.corrected += 1;
        // A gate chooses between the product with its correction and the exact one.
        if let Some(&user) = self.sums.get(&n).filter(|_| !matrices.left && self.gates.is_none())
            && let Some(bias) = self.graph.node(user).inputs.iter().find_map(|&v| self.graph.as_const(v))
            && bias.ty() == correction.ty()
        {
            let (a, b) = (bias.values::<f32>(), correction.values::<f32>());
            let sum = a.iter().zip(&*b).map(|(a, b)| a + b).collect();
            self.biases.insert(user, Tensor::of(bias.sizes(), sum));
            return None;
        }
        Some(correction)
    }

    /// Emits the sum of a product and a constant that took in the product's correction.
    fn with_corrected_bias(&mut self, node: &NodeData, bias: Tensor) -> Result<(), PassError> {
        let operands: Vec<Value> = node
            .inputs
            .iter()
            .map(|&v| match self.graph.as_const(v) {
                Some(_) => self.out.new.add_const(bias.clone(), self.graph.value(v).name.clone()),
                None => self.out.get(v),
            })
            .collect();
        let y = self.out.emit(node.op.clone(), &operands, &node.loc)?[0];
        self.out.set(node.outputs[0], y);
        Ok(())
    }

    /// Adds the input that decides which results count.
    fn add_gates(&mut self) {
        let most = self.graph.nodes().filter(|(_, n)| matches!(n.op, Op::Matmul(_) | Op::Attention(_) | Op::Gather(_))).count().max(1);
        let input = self.out.new.add_input(Gates::INPUT, Type::new(Elem::Bool, Shape::fixed(&[most as i64])));
        self.gates = Some((input, Gates::default()));
    }

    /// The quantized result of a node or the one that it had, as its gate says, if it gets one.
    fn gated(&mut self, n: Node, node: &NodeData, quantized: Value) -> Result<Value, PassError> {
        let Some((input, gates)) = &self.gates else { return Ok(quantized) };
        let (input, at) = (*input, gates.0.len());
        let slice = Slice::of_axis(self.out.new.ty(input), 0, Dim::from(at), Dim::from(1));
        let gate = self.out.emit(slice.into(), &[input], &node.loc)?[0];
        let gate = self.out.emit(Reshape { shape: Shape::default() }.into(), &[gate], &node.loc)?[0];
        let operands: Vec<Value> = node.inputs.iter().map(|&v| self.out.get(v)).collect();
        let exact = self.out.emit(node.op.clone(), &operands, &node.loc)?[0];
        let chosen = self.out.emit(Select {}.into(), &[gate, quantized, exact], &node.loc)?[0];
        if let Some((_, gates)) = &mut self.gates {
            gates.0.push(Gate { node: n, chosen });
        }
        Ok(chosen)
    }

    /// Rounds all matrices, on several threads.
    fn round_all(&self) {
        let products: Vec<(Node, &NodeData)> = self.graph.nodes().filter(|(_, n)| matches!(n.op, Op::Matmul(_))).collect();
        parallel::map(products.len(), |i| {
            let (n, node) = products[i];
            if let Ok((matrices, spec, _)) = self.quantizable(n, node) {
                self.rounded(node, &matrices, spec);
            }
        });
    }

    /// Finds the ranges of all operands that data says something of.
    fn rate_operands(&mut self, statistics: &Statistics) {
        let sites = sites(self.graph, self.config);
        let rated = parallel::map(sites.len(), |i| Some(self.rated_site(&sites[i], statistics.of(sites[i].operand)?)));
        self.rated = sites.iter().zip(rated).filter_map(|(site, rated)| Some(((site.operand, site.axis), rated?))).collect();
    }

    fn rated_site(&self, site: &Site, observed: &Arc<Observed>) -> RatedSite {
        let channels = observed.channels();
        // Over all products: squares of weights and of their errors by channel, as values of the operand weigh them.
        let (mut weights, mut errors) = (vec![0f64; channels], vec![0f64; channels]);
        let mut scalings = vec![];
        for &n in &site.products {
            let node = self.graph.node(n);
            let Ok((matrices, spec, _)) = self.quantizable(n, node) else { continue };
            let rounded = self.rounded(node, &matrices, spec);
            for (matrix, rounded) in matrices.data.iter().zip(&rounded) {
                let columns = matrix.sizes()[1];
                for (sum, row) in weights.iter_mut().zip(matrix.values::<f32>().chunks_exact(columns)) {
                    *sum += row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>();
                }
                errors.iter_mut().zip(&rounded.row_errors).for_each(|(sum, e)| *sum += e);
            }
            if let QuantSpec::Int { scaling, .. } = spec {
                scalings.push(scaling);
            }
        }
        let weighed = |by: &[f64]| observed.mean_square.iter().zip(by).map(|(x, w)| x * w).sum::<f64>();
        let (signal, noise) = (weighed(&weights), weighed(&errors));
        let weight_error = if signal > 0.0 { (noise / signal).sqrt() } else { 0.0 };
        // Products that share rows share how these are quantized: if one wants that at run time, at run time.
        let wanted = [Scaling::Dynamic, Scaling::Static].into_iter().find(|s| scalings.contains(s)).unwrap_or_default();
        let key = (site.operand, site.axis, site.products.clone());
        let found = self.memo.ranges.of(key, observed, Arc::ptr_eq, || activations::find(observed, &weights));
        RatedSite { rated: rate(&found, weight_error, wanted), weight_error, observed: observed.clone() }
    }

    /// The rounded matrices of a product; equal operands are rounded once.
    fn rounded(&self, node: &NodeData, matrices: &Matrices, spec: QuantSpec) -> Vec<Arc<Rounded>> {
        let Some(key) = rounding(node, matrices, spec) else { return vec![] };
        let (_, _, bits, group) = key;
        let [k, columns] = matrices.sizes();
        let round = |w: &Tensor| Arc::new(round_to_nearest(&w.values::<f32>(), k, columns, bits, group));
        let same = |a: &Tensor, b: &Tensor| a.bytes().as_ptr_range() == b.bytes().as_ptr_range() && a.ty() == b.ty();
        self.memo.rounded.of(key, &matrices.source, same, || matrices.data.iter().map(round).collect())
    }

    /// The rounded matrices of a product in the new graph.
    fn weights(&mut self, node: &NodeData, matrices: &Matrices, spec: QuantSpec) -> Vec<Weights> {
        let Some(key) = rounding(node, matrices, spec) else { return vec![] };
        if let Some(weights) = self.weights.get(&key) {
            return weights.clone();
        }
        let name = self.graph.value(key.0).name.clone();
        let mut weights = vec![];
        for rounded in self.rounded(node, matrices, spec) {
            let op = QuantizedMatmul { activations: None, weights: rounded.scheme };
            let ty = Type { quant: Some(rounded.scheme), ..rounded.codes.ty() };
            let codes = self.out.new.add_typed_const(rounded.codes.clone(), ty, name.clone());
            let scales = self.out.new.add_const(rounded.scales.clone(), None);
            weights.push(Weights { codes, scales, op, rounded });
        }
        self.weights.insert(key, weights.clone());
        weights
    }

    /// Emits a product of f32 with a rounded matrix.
    fn quantized(&mut self, x: Value, w: &Weights, activations: Activations, range: &Range, loc: &Loc) -> Result<Value, PassError> {
        let (mut op, mut operands) = (w.op.clone(), vec![x]);
        if activations == Activations::Int8 {
            (op.activations, operands) = match range {
                Range::Dynamic => (Some(self.rows_scheme(x)), self.quantized_rows(x, loc)?),
                Range::Static(by) => (Some(by.scheme()), self.statically_quantized(x, by, loc)?),
            };
        }
        operands.extend([w.codes, w.scales]);
        Ok(self.out.emit(op.into(), &operands, loc)?[0])
    }

    /// How rows of a left operand are quantized.
    fn rows_scheme(&self, x: Value) -> Scheme {
        let ty = self.out.new.ty(x);
        let k = ty.shape.0.last().and_then(Dim::as_const).expect("weights have known sizes");
        ROWS.scheme(ty.rank(), k as u32)
    }

    /// Rows of bytes with their scales.
    fn quantized_rows(&mut self, x: Value, loc: &Loc) -> Result<Vec<Value>, PassError> {
        let key = (x, Range::Dynamic);
        if let Some(results) = self.rows.get(&key) {
            return Ok(results.clone());
        }
        let results = self.out.emit(ROWS.into(), &[x], loc)?;
        self.rows.insert(key, results.clone());
        Ok(results)
    }

    /// Bytes with the scale of all of them and, unless symmetric, the zero point.
    fn statically_quantized(&mut self, x: Value, by: &QuantizeStatic, loc: &Loc) -> Result<Vec<Value>, PassError> {
        let key = (x, Range::Static(by.clone()));
        if let Some(results) = self.rows.get(&key) {
            return Ok(results.clone());
        }
        let mut results = self.out.emit(by.clone().into(), &[x], loc)?;
        results.extend(by.parameters().into_iter().map(|t| self.out.new.add_const(t, None)));
        self.rows.insert(key, results.clone());
        Ok(results)
    }

    /// What of a left operand meets matrix `i` of a stack along an axis, which is counted from the end.
    fn part(&mut self, x: Value, axis: usize, i: usize, loc: &Loc) -> Result<Value, PassError> {
        let ty = self.out.new.ty(x);
        match ty.rank().checked_sub(axis) {
            Some(axis) if !ty.shape[axis].is(1) => {
                let slice = Slice::of_axis(ty, axis, Dim::from(i), Dim::from(1));
                Ok(self.out.emit(slice.into(), &[x], loc)?[0])
            }
            _ => Ok(x),
        }
    }

    /// Emits a product with weights that the model stores as integers. Only its activations follow the scheme.
    fn stored_product(&mut self, n: Node, node: &NodeData, op: &QuantizedMatmul) -> Result<LedgerEntry, PassError> {
        let (spec, by) = self.config.of(n, &node.loc);
        let stored = &node.inputs[1..];
        let bytes = stored.iter().filter_map(|&v| self.graph.as_const(v)).map(|t| t.bytes().len() as u64).sum();
        let entry = |activations, reason| LedgerEntry {
            spec: QuantSpec::Int {
                weights: if op.weights.storage.bits() == 8 { WeightBits::Eight } else { WeightBits::Four },
                activations,
                group: match op.weights.granularity {
                    Granularity::Blocks { size, .. } => Group::Of(size),
                    Granularity::Axis { .. } | Granularity::Tensor => Group::Channel,
                },
                scaling: Scaling::ByError,
            },
            ..LedgerEntry::kept(n, &node.loc, reason, bytes)
        };
        let reason = format!("{by}; weights as the model stores them");
        if !matches!(spec, QuantSpec::Int { activations: Activations::Int8, .. }) {
            self.out.copy(n)?;
            return Ok(entry(Activations::Float, reason));
        }
        let x = self.out.get(node.inputs[0]);
        let ty = self.out.new.ty(x);
        if ty.shape[ty.rank() - 1].as_const().is_none() {
            let why = format!("{reason}, activations as floats: the size of the rows of {ty} is not known");
            self.out.copy(n)?;
            return Ok(entry(Activations::Float, why));
        }
        let wide = QuantizedMatmul { activations: Some(self.rows_scheme(x)), ..op.clone() };
        let types = ROWS.infer(&mut InferCx::new(&self.graph.symbols), &[self.out.new.ty(x).clone()]).map(|mut rows| {
            rows.extend(stored.iter().map(|&v| self.graph.ty(v).clone()));
            rows
        });
        if let Err(e) = types.and_then(|types| wide.infer(&mut InferCx::new(&self.graph.symbols), &types)) {
            self.out.copy(n)?;
            return Ok(entry(Activations::Float, format!("{reason}, activations as floats: {e}")));
        }
        let mut operands = self.quantized_rows(x, &node.loc)?;
        operands.extend(stored.iter().map(|&v| self.out.get(v)));
        let y = self.out.emit(wide.into(), &operands, &node.loc)?[0];
        self.out.set(node.outputs[0], y);
        Ok(entry(Activations::Int8, reason))
    }

    /// Emits a gather of rows of a table, from codes and scales if it is rounded.
    fn gather(&mut self, n: Node, node: &NodeData) -> Result<LedgerEntry, PassError> {
        let (v, indices) = (node.inputs[0], node.inputs[1]);
        let table = self.graph.as_const(v).expect("a table is constant");
        let bytes = table.bytes().len() as u64;
        let note = match &self.tables[&v] {
            Ok(note) => note.clone(),
            Err(why_not) => {
                let entry = LedgerEntry::kept(n, &node.loc, why_not.clone(), bytes);
                self.out.copy(n)?;
                return Ok(entry);
            }
        };
        let same = |a: &Tensor, b: &Tensor| a.bytes().as_ptr_range() == b.bytes().as_ptr_range() && a.ty() == b.ty();
        let rounded = self.memo.tables.of(v, table, same, || Arc::new(round_rows(table)));
        let [codes, scales] = *self.rounded_tables.entry(v).or_insert_with(|| {
            let codes = self.out.new.add_const(rounded.codes.clone(), self.graph.value(v).name.clone());
            [codes, self.out.new.add_const(rounded.scales.clone(), None)]
        });
        let indices = self.out.get(indices);
        let codes = self.out.emit(Gather { axis: 0 }.into(), &[codes, indices], &node.loc)?[0];
        let scale = self.out.emit(Gather { axis: 0 }.into(), &[scales, indices], &node.loc)?[0];
        let codes = self.out.emit(Cast { to: Elem::F32 }.into(), &[codes], &node.loc)?[0];
        let y = self.out.emit(Mul {}.into(), &[scale, codes], &node.loc)?[0];
        let y = self.cast(y, self.graph.ty(node.outputs[0]).elem, &node.loc)?;
        let y = self.gated(n, node, y)?;
        self.out.set(node.outputs[0], y);
        let (_, by) = self.config.of(n, &node.loc);
        let group = Group::Channel;
        Ok(LedgerEntry {
            spec: QuantSpec::Int { weights: WeightBits::Eight, activations: Activations::Float, group, scaling: Scaling::ByError },
            packed_bytes: (rounded.codes.bytes().len() + rounded.scales.bytes().len()) as u64,
            weight_error: Some(rounded.relative_error),
            ..LedgerEntry::kept(n, &node.loc, format!("{by}: a table, by row{note}"), bytes)
        })
    }

    /// Large constants of floats that a node takes which is no product, each once.
    fn large_constants(&mut self, n: Node, node: &NodeData) -> Vec<LedgerEntry> {
        let mut entries = vec![];
        if moves_constant(&node.op) {
            return entries;
        }
        let constants: Vec<Value> = node.inputs.iter().filter_map(|&v| self.root(v)).collect();
        for v in constants {
            let ty = self.graph.ty(v);
            let bytes = self.graph.as_const(v).map_or(0, |t| t.bytes().len() as u64);
            if bytes >= LARGE && ty.elem.is_float() && ty.quant.is_none() && self.mentioned.insert(v) {
                let reason = format!("the operator {} of a constant {ty} is no product", node.op.mnemonic());
                entries.push(LedgerEntry::kept(n, &node.loc, reason, bytes));
            }
        }
        entries
    }

    /// Emits attention, quantized if that is wanted and possible.
    fn attention(&mut self, n: Node, node: &NodeData, op: &Attention) -> Result<LedgerEntry, PassError> {
        let (spec, by) = self.config.of(n, &node.loc);
        let kept = match spec {
            QuantSpec::F32 => Some(format!("{by}: attention in f32")),
            QuantSpec::Int { activations: Activations::Float, .. } => Some(format!("{by}: attention has no weights")),
            QuantSpec::Int { .. } => self.why_not_attention(node),
        };
        if let Some(kept) = kept {
            self.out.copy(n)?;
            return Ok(LedgerEntry::kept(n, &node.loc, kept, 0));
        }
        let mut operands: Vec<Value> = node.inputs.iter().map(|&v| self.out.get(v)).collect();
        for v in &mut operands {
            *v = self.cast(*v, Elem::F32, &node.loc)?;
        }
        let op = QuantizedAttention::from(op.clone());
        let y = self.out.emit(op.into(), &operands, &node.loc)?[0];
        let y = self.cast(y, self.graph.ty(node.outputs[0]).elem, &node.loc)?;
        let y = self.gated(n, node, y)?;
        self.out.set(node.outputs[0], y);
        let spec =
            QuantSpec::Int { weights: WeightBits::Eight, activations: Activations::Int8, group: Group::Channel, scaling: Scaling::ByError };
        let reason = format!("{by}: attention by rows of queries and keys and columns of values");
        Ok(LedgerEntry { spec, ..LedgerEntry::kept(n, &node.loc, reason, 0) })
    }

    fn why_not_attention(&self, node: &NodeData) -> Option<String> {
        let [q, v] = [0, 2].map(|i| self.graph.ty(node.inputs[i]));
        let depths = [q, v].map(|t| t.shape[3].as_const());
        match () {
            () if depths.iter().any(|d| d.is_none_or(|d| d < MIN_DEPTH)) => {
                Some(format!("attention of heads below {MIN_DEPTH} channels or of no fixed size: there is nothing to gain"))
            }
            () => None,
        }
    }

    /// The operand that is not constant, as the left one of rank 2 or more, in f32.
    fn left_operand(&mut self, node: &NodeData, transposed: bool) -> Result<Value, PassError> {
        let x = self.out.get(node.inputs[usize::from(transposed)]);
        let x = self.cast(x, Elem::F32, &node.loc)?;
        if transposed { self.transposed(x, &node.loc) } else { Ok(x) }
    }

    /// A value in another type of floats.
    fn cast(&mut self, v: Value, to: Elem, loc: &Loc) -> Result<Value, PassError> {
        if self.out.new.ty(v).elem == to {
            return Ok(v);
        }
        if to == Elem::F32
            && let Some(&known) = self.converted.get(&v)
        {
            return Ok(known);
        }
        let y = self.out.emit(Cast { to }.into(), &[v], loc)?[0];
        if to == Elem::F32 {
            self.converted.insert(v, y);
        }
        Ok(y)
    }

    /// The last two axes swapped.
    fn transposed(&mut self, v: Value, loc: &Loc) -> Result<Value, PassError> {
        let rank = self.out.new.ty(v).rank();
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        Ok(self.out.emit(Transpose { perm }.into(), &[v], loc)?[0])
    }

    /// The constant operand, if exactly one is: floats, one matrix for all of the other operand, or a stack of right operands; or
    /// why there is none.
    fn matrices(&self, node: &NodeData) -> Result<Matrices, String> {
        let [a, b] = [0, 1].map(|i| self.constant(node.inputs[i]));
        let (data, left) = match (a, b) {
            (None, Some(w)) => (w, false),
            (Some(w), None) => (w, true),
            (None, None) => return Err("no operand is constant".into()),
            (Some(_), Some(_)) => return Err("both operands are constant".into()),
        };
        let (own, other) = (data.ty(), self.graph.ty(node.inputs[usize::from(left)]));
        if !own.elem.is_float() || data.is_empty() {
            return Err(format!("its constant operand {own} has no floats"));
        }
        let (batch, sizes) = data.sizes().split_at(data.rank() - 2);
        let mut several = batch.iter().enumerate().filter(|(_, n)| **n != 1).map(|(axis, _)| data.rank() - axis);
        let (stacked, others) = (several.next(), several.next());
        let count = batch.iter().product::<usize>();
        if others.is_some() || (left && stacked.is_some()) || count > MAX_STACK {
            return Err(format!(
                "its constant operand {own} is neither one matrix for all of {other} nor a stack of at most {MAX_STACK} on the right"
            ));
        }
        if let Some(axis) = stacked.and_then(|axis| other.rank().checked_sub(axis)).filter(|&axis| other.shape[axis].as_const().is_none()) {
            return Err(format!("the size of axis {axis} of {other}, which meets a stack of {own}, is not known"));
        }
        let (sizes, bytes, source) = (sizes.to_vec(), Elem::F32.bytes(sizes.iter().product()), data.clone());
        let floats = if data.elem() == Elem::F32 { data } else { Tensor::build(Elem::F32, data.sizes(), |i| data.get(i)) };
        let matrix = |i: usize| {
            let t = Tensor::new(Elem::F32, sizes.clone(), floats.bytes().slice(i * bytes..(i + 1) * bytes)).expect("a part of the stack");
            let swapped = |t| Op::from(Transpose { perm: vec![1, 0] }).eval(&Bindings::new(), &[t]).expect("a matrix").remove(0);
            if left { swapped(t) } else { t }
        };
        Ok(Matrices { data: (0..count).map(matrix).collect(), source, left, stacked })
    }

    /// The tensor of a value that is constant, perhaps behind reshapes, transposes and conversions between floats.
    fn constant(&self, v: Value) -> Option<Tensor> {
        if let Some(t) = self.graph.as_const(v) {
            return self.graph.ty(v).quant.is_none().then(|| t.clone());
        }
        let node = self.graph.producer(v).filter(|n| moves_constant(&n.op))?;
        let operand = self.constant(node.inputs[0]).filter(|t| t.elem().is_float())?;
        node.op.eval(&Bindings::new(), &[operand]).ok().map(|mut r| r.remove(0))
    }

    /// The constant that a value is, behind what [`Quantizer::constant`] looks through.
    fn root(&self, mut v: Value) -> Option<Value> {
        while self.graph.as_const(v).is_none() {
            v = self.graph.producer(v).filter(|n| moves_constant(&n.op))?.inputs[0];
        }
        Some(v)
    }

    /// Bytes of the constant operands of a node as the model has them.
    fn constant_bytes(&self, node: &NodeData) -> u64 {
        let constants = node.inputs.iter().filter_map(|&v| self.graph.as_const(self.root(v)?));
        constants.map(|t| t.bytes().len() as u64).sum()
    }
}

/// Which constant of a product is rounded, whether it is the left operand, and how.
fn rounding(node: &NodeData, matrices: &Matrices, spec: QuantSpec) -> Option<Rounding> {
    let QuantSpec::Int { weights, activations, group, .. } = spec else { return None };
    let group = group_of(weights, activations, group, matrices.sizes()[0]);
    Some((node.inputs[usize::from(!matrices.left)], matrices.left, weights, group))
}

/// The group of weights that has a scale: what is wanted, unless sums with rows of bytes would not fit an i32.
fn group_of(bits: WeightBits, activations: Activations, group: Group, k: usize) -> Group {
    let too_long = activations == Activations::Int8 && group == Group::Channel && k > longest_group(bits) as usize;
    if too_long { Group::Of(longest_group(bits)) } else { group }
}

/// How rows are quantized at run time.
const ROWS: QuantizeRows = QuantizeRows { symmetric: true };

/// The longest group whose sums with rows of bytes fit an i32.
fn longest_group(bits: WeightBits) -> u32 {
    let storage = if bits == WeightBits::Eight { Elem::I8 } else { Elem::I4 };
    let rows = ROWS.scheme(2, 1);
    QuantizedMatmul::longest_group(&rows, &Scheme { storage, ..rows })
}

/// The axis of a product's operand that is summed over: the last one of a left operand, the one before of a right one, which is
/// the `left` operand of the transposed product.
fn channel_axis(x: &Type, left: bool) -> usize {
    x.rank() - if left { 2 } else { 1 }
}

/// An operand of products that get integer weights.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// The operand that is not constant.
    pub operand: Value,
    /// The axis of it that the products sum over.
    pub axis: usize,
    /// The products, in order.
    pub products: Vec<Node>,
}

/// The operands of all products that [`PASS`] would quantize by a configuration, in order.
pub fn sites(graph: &Graph, config: &QuantConfig) -> Vec<Site> {
    let memo = Memo::default();
    let pass = Quantizer::new(graph, config, &memo);
    let mut sites: Vec<Site> = vec![];
    for (n, node) in graph.nodes().filter(|(_, node)| matches!(node.op, Op::Matmul(_))) {
        let Ok((matrices, ..)) = pass.quantizable(n, node) else { continue };
        let operand = node.inputs[usize::from(matrices.left)];
        let axis = channel_axis(graph.ty(operand), matrices.left);
        match sites.iter_mut().find(|s| (s.operand, s.axis) == (operand, axis)) {
            Some(site) => site.products.push(n),
            None => sites.push(Site { operand, axis, products: vec![n] }),
        }
    }
    sites
}

/// The constant matrices of a site's products, `[k, n]` in f32 with the channels of the operand as rows, and how each is quantized.
pub(crate) fn weights(graph: &Graph, config: &QuantConfig, site: &Site) -> Vec<(Tensor, QuantSpec)> {
    let memo = Memo::default();
    let pass = Quantizer::new(graph, config, &memo);
    let found = site.products.iter().filter_map(|&n| pass.quantizable(n, graph.node(n)).ok());
    found.flat_map(|(matrices, spec, _)| matrices.data.into_iter().map(move |w| (w, spec))).collect()
}

/// The products whose result nothing but a sum takes, with that sum.
fn sums_of_products(graph: &Graph) -> HashMap<Node, Node> {
    let users = graph.users();
    let outputs: HashSet<Value> = graph.outputs().iter().map(|o| o.value).collect();
    let sum = |(n, node): (Node, &NodeData)| match users[node.outputs[0]][..] {
        [user] if matches!(graph.node(user).op, Op::Add(_)) && !outputs.contains(&node.outputs[0]) => Some((n, user)),
        _ => None,
    };
    graph.nodes().filter(|(_, node)| matches!(node.op, Op::Matmul(_))).filter_map(sum).collect()
}

/// Whether a constant behind the operator still counts as one.
fn moves_constant(op: &Op) -> bool {
    matches!(op, Op::Reshape(_) | Op::Transpose(_)) || matches!(op, Op::Cast(c) if c.to.is_float())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cse;
    use crate::side_data::SideData;
    use tfc_ir::ops::Matmul;
    use tfc_ir::tensor::Scalar;
    use tfc_ir::text;

    fn quantize(source: &str, spec: &str) -> (Graph, Stats) {
        let graph = text::parse(source, None).unwrap();
        let cx = Context { quant: Some(QuantConfig::new(spec.parse().unwrap())), ..Context::default() };
        run(graph, &cx).unwrap()
    }

    fn ops(graph: &Graph) -> Vec<&'static str> {
        graph.nodes().map(|(_, n)| n.op.mnemonic()).collect()
    }

    #[test]
    fn operands_are_quantized_once() {
        let source = "tfc.ir 1 symbol s 1..9 input %x: f32[s, 64] const %a: f32[64, 32] = splat 0.5 const %b: f32[64, 16] = splat 0.25
            %y = matmul %x, %a : f32[s, 32] %z = matmul %x, %b : f32[s, 16] %v = matmul %x, %a : f32[s, 32] output y = %y output z = %z output v = %v";
        let (graph, stats) = quantize(source, "w4a8:g32");
        assert_eq!(ops(&graph), ["quantize_rows", "quantized_matmul", "quantized_matmul", "quantized_matmul"]);
        assert_eq!((stats.get("products quantized"), stats.get("rows quantized at run time")), (3, 1));
        // What is equal stays findable: equal products become one.
        let (graph, _) = (cse::PASS.run)(graph, &Context::default()).unwrap();
        assert_eq!(ops(&graph).len(), 3);
        let (graph, stats) = quantize(source, "f32");
        assert_eq!((ops(&graph)[0], stats.ledger.len()), ("matmul", 0));
    }

    /// What one run keeps changes nothing in the next, on the same graph or on another one with the same names of values.
    #[test]
    fn what_is_kept_is_of_its_graph() {
        let graph = |scale: f32, mean: f32| {
            let mut graph = Graph::new("test");
            let x = graph.add_input("x", Type::new(Elem::F32, Shape::fixed(&[4, 64])));
            let w = Tensor::of(&[64, 48], (0..64 * 48).map(|i| (i as f32 * 1.37).sin() * scale).collect());
            let w = graph.add_const(w, None);
            let y = graph.add(Matmul {}, &[x, w], &Loc::node("product")).unwrap();
            graph.add_output("y", y);
            let rows: Vec<f32> = (0..4 * 64).map(|i| (i as f32 * 0.731).sin() * scale + mean).collect();
            let (min, max) = (vec![mean - scale; 64], vec![mean + scale; 64]);
            let (mean, mean_square) = (vec![f64::from(mean); 64], vec![f64::from(scale * scale + mean * mean); 64]);
            (graph, Statistics::from_iter([(x, Observed { axis: 1, count: 4, min, max, mean, mean_square, rows })]))
        };
        let quantized = |(graph, statistics): &(Graph, Statistics), spec: &str, memo: Option<&SideData>| {
            let mut cx = Context { quant: Some(QuantConfig::new(spec.parse().unwrap())), ..Context::default() };
            cx.data = memo.cloned().unwrap_or_default();
            cx.data.insert(statistics.clone());
            let (graph, stats) = run(graph.clone(), &cx).unwrap();
            (graph.to_string(), stats.ledger)
        };
        let mut memo = SideData::default();
        memo.insert(Memo::default());
        let models = [graph(1.0, 0.0), graph(3.0, 1.0)];
        for spec in ["w4a8:static", "w4a8:dynamic", "w8a8:static", "w4a8:g32", "w4a8:static"] {
            for model in &models {
                assert_eq!(quantized(model, spec, Some(&memo)), quantized(model, spec, None), "{spec}");
            }
        }
        let Memo { rounded, ranges, .. } = memo.get::<Memo>().unwrap();
        assert_eq!((rounded.len(), ranges.len()), (3, 1));
    }

    /// With all gates open the graph computes what the quantized one does, with none what it did before.
    #[test]
    fn gates_decide_which_result_counts() {
        let source = "tfc.ir 1 input %x: f32[4, 64] const %a: f32[64, 32] = splat 0.013 const %b: f32[32, 48] = splat 0.3
            %y = matmul %x, %a : f32[4, 32] %z = matmul %y, %b : f32[4, 48] output z = %z";
        let graph = text::parse(source, None).unwrap();
        let mut config = QuantConfig::new("w4a8".parse().unwrap());
        let with = |config: &QuantConfig| run(graph.clone(), &Context { quant: Some(config.clone()), ..Context::default() }).unwrap();
        let (plain, _) = with(&config);
        config.gated = true;
        let (gated, stats) = with(&config);
        assert_eq!(stats.data.get::<Gates>().unwrap().0.len(), 2);
        let x = Tensor::of(&[4, 64], (0..256).map(|i| (i as f32 * 0.37).sin()).collect());
        let of = |g: &Graph, inputs: &[Tensor]| g.evaluate(inputs, &Bindings::new()).unwrap();
        let by = |gates: [bool; 2]| of(&gated, &[x.clone(), Tensor::build(Elem::Bool, &[2], |i| Scalar::Int(gates[i].into()))]);
        assert_eq!(by([true, true]), of(&plain, std::slice::from_ref(&x)));
        assert_eq!(by([false, false]), of(&graph, std::slice::from_ref(&x)));
        assert!(by([true, false]) != by([true, true]) && by([true, false]) != by([false, false]));
    }

    /// Operands far from 0: what rounding takes from all rows alike comes back, in the constant that is added anyway or in one of its
    /// own; around 0 there is nothing to correct.
    #[test]
    fn biases_are_corrected() {
        let rows = |mean: f32, seed: f32| Tensor::of(&[40, 64], (0..40 * 64).map(|i| (i as f32 * 0.731 + seed).sin() + mean).collect());
        let w = Tensor::of(&[64, 48], (0..64 * 48).map(|i| (i as f32 * 1.37).sin()).collect());
        for (mean, biased) in [(0.8, true), (0.8, false), (0.0, false)] {
            let (mut graph, loc) = (Graph::new("test"), Loc::node("product"));
            let x = graph.add_input("x", rows(0.0, 0.0).ty());
            let w = graph.add_const(w.clone(), None);
            let mut y = graph.add(Matmul {}, &[x, w], &loc).unwrap();
            if biased {
                let bias = graph.add_const(Tensor::of(&[48], vec![0.25f32; 48]), None);
                y = graph.add(Add {}, &[bias, y], &loc).unwrap();
            }
            graph.add_output("y", y);
            let mut cx = Context { quant: Some(QuantConfig::new("w4a16".parse().unwrap())), ..Context::default() };
            let (plain, _) = run(graph.clone(), &cx).unwrap();
            let sample = rows(mean, 0.0);
            let over = |f: fn(f64) -> f64| {
                (0..64).map(|c| (0..40).map(|r| f(sample.get(64 * r + c).to_f64())).sum::<f64>() / 40.0).collect::<Vec<_>>()
            };
            let (min, max, rows_seen) = (vec![mean - 1.0; 64], vec![mean + 1.0; 64], sample.values::<f32>().to_vec());
            let observed = Observed { axis: 1, count: 40, min, max, mean: over(|x| x), mean_square: over(|x| x * x), rows: rows_seen };
            cx.data.insert(Statistics::from_iter([(x, observed)]));
            let (corrected, stats) = run(graph.clone(), &cx).unwrap();
            let wanted = mean > 0.0;
            assert_eq!(ops(&corrected), if wanted { &["quantized_matmul", "add"][..] } else { &["quantized_matmul"] });
            assert_eq!(stats.get("biases corrected"), u64::from(wanted));
            assert_eq!(stats.ledger[0].reason.contains("; bias corrected"), wanted);
            let error = |quantized: &Graph| {
                let x = [rows(mean, 7.0)];
                let [y, rounded] = [&graph, quantized].map(|g| g.evaluate(&x, &Bindings::new()).unwrap()[0].to_f64s());
                y.iter().zip(rounded).map(|(y, q)| (y - q).powi(2)).sum::<f64>()
            };
            let (plain, corrected) = (error(&plain), error(&corrected));
            assert!(if wanted { corrected < 0.7 * plain } else { corrected == plain }, "{plain} without, {corrected} with the correction");
        }
    }

    #[test]
    fn attention_follows_the_activations() {
        let source = |depth| {
            format!(
                "tfc.ir 1 input %q: f32[1, 2, 9, {depth}] input %k: f32[1, 2, 7, {depth}] input %v: f32[1, 2, 7, {depth}]
                %y = attention %q, %k, %v {{scale = 0.5, causal = true}} : f32[1, 2, 9, {depth}] output y = %y"
            )
        };
        let (graph, stats) = quantize(&source(32), "w4a8:g32");
        assert_eq!((ops(&graph), stats.ledger[0].spec.to_string().as_str()), (vec!["quantized_attention"], "w8a8"));
        let (graph, stats) = quantize(&source(32), "w4a16");
        assert!(ops(&graph) == ["attention"] && stats.ledger[0].reason.contains("no weights"), "{:?}", stats.ledger);
        let (graph, stats) = quantize(&source(8), "w4a8");
        assert!(ops(&graph) == ["attention"] && stats.ledger[0].reason.contains("below 16"), "{:?}", stats.ledger);
    }

    #[test]
    fn long_sums_are_split() {
        let source = |k: usize| {
            format!("tfc.ir 1 input %x: f32[4, {k}] const %w: f32[{k}, 16] = splat 0.5 %y = matmul %x, %w : f32[4, 16] output y = %y")
        };
        for (spec, k, group) in [("w8a8", 65_536, "w8a8"), ("w8a8", 131_072, "w8a8"), ("w8a8:g128", 131_072, "w8a8:g128")] {
            let (graph, stats) = quantize(&source(k), spec);
            assert_eq!((ops(&graph), stats.ledger[0].spec.to_string()), (vec!["quantize_rows", "quantized_matmul"], group.to_string()));
            assert_eq!(stats.ledger[0].reason.contains("groups of 65536"), k > 65_536 && spec == "w8a8");
        }
    }

    #[test]
    fn stacks_are_a_product_for_each_matrix() {
        let source = "tfc.ir 1 symbol s 1..9 input %x: f16[3, s, 64] input %z: f16[s, 64] const %w: f16[3, 64, 32] = splat 0.5
            const %b: f16[3, 1, 32] = splat 0.25
            %a = matmul %x, %w : f16[3, s, 32] %c = matmul %z, %w : f16[3, s, 32] %d = add %a, %b : f16[3, s, 32] output c = %c output d = %d";
        let (graph, stats) = quantize(source, "w4a8:g32");
        let count = |name| ops(&graph).iter().filter(|op| **op == name).count();
        // Rows that all matrices take are quantized once.
        assert_eq!(["quantized_matmul", "quantize_rows", "slice", "concat"].map(count), [6, 4, 3, 2], "{graph}");
        let entry = &stats.ledger[0];
        assert_eq!((entry.source_bytes, entry.packed_bytes), (3 * 64 * 32 * 2, 3 * (64 * 32 / 2 + 2 * 32 * 4)));
        assert!(entry.reason.contains("each of 3 matrices"), "{}", entry.reason);
        let (graph, _) = quantize(source, "w4a16");
        assert!(ops(&graph).iter().all(|op| *op != "quantize_rows" && *op != "matmul"), "{graph}");
    }

    #[test]
    fn stored_weights_get_the_activations_of_the_scheme() {
        let scheme = "[i4, [-8, 7], [blocks, 0, 32], symmetric, f32]";
        let source = format!(
            "tfc.ir 1 input %x: f32[4, 64] const %w: i4[64, 16] = splat 3 const %s: f32[2, 16] = splat 0.5
            %y = quantized_matmul %x, %w, %s {{activations = none, weights = {scheme}}} : f32[4, 16] output y = %y"
        );
        let (graph, stats) = quantize(&source, "w8a8");
        assert_eq!((ops(&graph), stats.ledger[0].spec.to_string()), (vec!["quantize_rows", "quantized_matmul"], "w4a8:g32".to_string()));
        let (graph, stats) = quantize(&source, "w4a16:g128");
        assert_eq!((ops(&graph), stats.ledger[0].spec.to_string()), (vec!["quantized_matmul"], "w4a16:g32".to_string()));
    }

    #[test]
    fn large_constants_of_other_operators_are_in_the_ledger() {
        let source = "tfc.ir 1 input %x: f32[8192, 64] const %t: f32[8192, 64] = splat 0.5 %y = add %t, %x : f32[8192, 64] output y = %y";
        let entry = quantize(source, "w8a8").1.ledger.swap_remove(0);
        assert_eq!((entry.spec, entry.source_bytes), (QuantSpec::F32, 8192 * 64 * 4));
        assert!(entry.reason.contains("operator add"), "{}", entry.reason);
    }

    /// A table of rows of 64 that nodes read, each as `[op operands]`, the first a gather; what the ledger says of that.
    fn table(rows: usize, value: &str, readers: &str, spec: &str) -> (Graph, LedgerEntry) {
        let source = format!(
            "tfc.ir 1 input %i: i64[4] input %x: f32[4, 64] const %t: f32[{rows}, 64] = splat {value}
            %y = gather %t, %i {{axis = 0}} : f32[4, 64] loc(\"/words/Gather\") output y = %y {readers}"
        );
        let (graph, stats) = quantize(&source, spec);
        (graph, stats.ledger.into_iter().find(|e| e.loc.names().any(|n| n == "/words/Gather")).unwrap())
    }

    #[test]
    fn tables_are_stored_in_8_bits() {
        let output_layer = "%w = transpose %t {perm = [1, 0]} : f32[64, 8192] %z = matmul %x, %w : f32[4, 8192] output z = %z";
        for spec in ["w8a8", "w4a8", "w4a16:g32"] {
            for (readers, said) in [("", "by row"), (output_layer, "a copy in the order of products")] {
                let (graph, entry) = table(8192, "0.5", readers, spec);
                assert_eq!((entry.spec.to_string(), entry.source_bytes), ("w8a16".into(), 8192 * 64 * 4));
                assert_eq!(entry.packed_bytes, 8192 * (64 + 4), "{graph}");
                assert!(entry.reason.contains(said) && entry.weight_error.is_some_and(|e| e < 0.01), "{}", entry.reason);
                assert_eq!(ops(&graph)[..4], ["gather", "gather", "cast", "mul"], "{graph}");
            }
        }
    }

    #[test]
    fn tables_that_something_else_reads_stay() {
        let with = |readers: &str| table(8192, "0.5", readers, "w8a8");
        let cases = [
            (with("output t = %t"), "a result of the model"),
            (with("%a = neg %t : f32[8192, 64] output a = %a"), "operator neg"),
            (with("%r = reshape %t {shape = [64, 8192]} : f32[64, 8192] %a = neg %r : f32[64, 8192] output a = %a"), "operator neg"),
            (with("%a = gather %t, %i {axis = 1} : f32[8192, 4] output a = %a"), "operator gather"),
            (table(4095, "0.5", "", "w8a8"), "less than 1048576"),
            (table(8192, "inf", "", "w8a8"), "not finite"),
        ];
        for ((graph, entry), why) in cases {
            assert!(!ops(&graph).contains(&"mul"), "{graph}");
            assert_eq!((entry.spec, entry.packed_bytes), (QuantSpec::F32, entry.source_bytes));
            assert!(entry.reason.contains(why), "{}", entry.reason);
        }
    }

    #[test]
    fn overrides_keep_tables() {
        let source = "tfc.ir 1 input %i: i64[4] input %x: f32[4, 64] const %t: f32[8192, 64] = splat 0.5
            %y = gather %t, %i {axis = 0} : f32[4, 64] loc(\"/words/Gather\") output y = %y
            %w = transpose %t {perm = [1, 0]} : f32[64, 8192] %z = matmul %x, %w : f32[4, 8192] loc(\"/head/MatMul\") output z = %z";
        let graph = text::parse(source, None).unwrap();
        for (name, scheme, wanted) in
            [("words", "f32", "'words'"), ("head", "f32", "/head/MatMul takes it in f32"), ("words", "w4a8", "by row")]
        {
            let overrides = vec![(regex::Regex::new(name).unwrap(), scheme.parse().unwrap())];
            let config = QuantConfig { overrides, ..QuantConfig::new("w8a8".parse().unwrap()) };
            let stats = run(graph.clone(), &Context { quant: Some(config), ..Context::default() }).unwrap().1;
            let entry = &stats.ledger[0];
            assert!(entry.reason.contains(wanted) && (entry.spec == QuantSpec::F32) == (scheme == "f32"), "{}", entry.reason);
        }
    }

    #[test]
    fn what_stays_says_why() {
        let source =
            "tfc.ir 1 input %x: f32[4, 64] input %t: f32[4, 16] const %narrow: f32[64, 8] = splat 0.5 const %short: f32[16, 64] = splat 1.0
            const %bad: f32[64, 64] = splat inf const %many: f32[2, 2, 64, 64] = splat 1.0 input %w: f32[64, 64]
            %a = matmul %x, %narrow : f32[4, 8] %b = matmul %t, %short : f32[4, 64] %c = matmul %x, %bad : f32[4, 64]
            %d = matmul %x, %many : f32[2, 2, 4, 64] %e = matmul %x, %w : f32[4, 64]
            output a = %a output b = %b output c = %c output d = %d output e = %e";
        let (graph, stats) = quantize(source, "w8a8");
        assert_eq!(ops(&graph), ["matmul"; 5]);
        let reasons: Vec<&str> = stats.ledger.iter().map(|e| e.reason.as_str()).collect();
        for (reason, wanted) in
            reasons.iter().zip(["8 output channels", "inner size 16", "not finite", "neither one matrix", "no operand is constant"])
        {
            assert!(reason.contains(wanted), "{reason}");
        }
    }
}
