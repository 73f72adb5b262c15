//! `quantize`: products with constant matrices become products with quantized ones.
//!
//! A product `x · W` with a constant `W` in f32 becomes `quantized_matmul` with `W` rounded to the nearest
//! ([`round_to_nearest`]), and `x` quantized per row at run time where the scheme
//! says so ([`QuantSpec`]). A product `W · x`, as convolutions have it, is transposed first. Products that
//! have the same left operand share its quantization. Attention becomes `quantized_attention` where the
//! scheme has integer activations: both of its products are then of 8 bits. What is not quantized, and
//! why, is in the ledger as well.

mod spec;
mod weights;

pub use spec::{Activations, Group, QuantConfig, QuantSpec, SpecError, WeightBits};
pub use weights::{Rounded, round_to_nearest};

use crate::rebuild::Rebuild;
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use std::collections::HashMap;
use tfc_ir::dim::Bindings;
use tfc_ir::graph::{Graph, Loc, Node, NodeData, Value};
use tfc_ir::ops::{Attention, Op, QuantizeRows, QuantizedAttention, QuantizedMatmul, Transpose};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Type};

/// Rounds constant matrices to integers, as `Context::quant` says; without it, it changes nothing.
pub const PASS: Pass = Pass { name: "quantize", summary: "round constant matrices to integers, as --quant says", run };

/// The smallest k: below it, to quantize a row costs more than to multiply it, and there is little to round.
const MIN_INNER: usize = 32;

/// The fewest output channels: quantizing a row costs as much as some 16 dot products with it.
const MIN_COLUMNS: usize = 16;

/// The fewest channels of a head: below, rounding the weights costs more than multiplying them.
const MIN_DEPTH: i64 = 16;

/// What became of one matrix product, or of one attention, whose two products are quantized alike.
#[derive(Clone, PartialEq, Debug)]
pub struct LedgerEntry {
    /// The ONNX nodes of the product.
    pub loc: Loc,
    /// How it is computed.
    pub spec: QuantSpec,
    /// Why so.
    pub reason: String,
    /// Bytes of the constant matrix as it was; 0 without one.
    pub source_bytes: u64,
    /// Bytes of the stored values and their scales; what it was if it stayed as it was.
    pub packed_bytes: u64,
    /// ‖W - Ŵ‖ / ‖W‖, if it was rounded.
    pub weight_error: Option<f64>,
}

fn run(graph: Graph, cx: &Context) -> PassResult {
    let mut stats = Stats::default();
    let Some(config) = cx.quant.as_ref().filter(|c| !c.is_f32()) else { return Ok((graph, stats)) };
    let mut pass = Quantizer { graph: &graph, config, out: Rebuild::new(&graph), rows: HashMap::new(), weights: HashMap::new() };
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
            _ => pass.out.copy(n)?,
        }
    }
    stats.count("rows quantized at run time", pass.rows.len() as u64);
    Ok((pass.out.finish(), stats))
}

impl LedgerEntry {
    fn kept(loc: &Loc, reason: impl Into<String>, bytes: u64) -> LedgerEntry {
        let (source_bytes, packed_bytes) = (bytes, bytes);
        LedgerEntry { loc: loc.clone(), spec: QuantSpec::F32, reason: reason.into(), source_bytes, packed_bytes, weight_error: None }
    }
}

/// A constant operand of a product.
struct Matrix {
    /// `[k, n]` in f32, row-major.
    data: Tensor,
    /// Whether it is the left operand, and `data` its transpose.
    left: bool,
}

impl Matrix {
    fn sizes(&self) -> [usize; 2] {
        [self.data.sizes()[0], self.data.sizes()[1]]
    }
}

/// A rounded matrix in the new graph.
#[derive(Clone)]
struct Weights {
    codes: Value,
    scales: Value,
    op: QuantizedMatmul,
    bytes: u64,
    error: f64,
}

struct Quantizer<'g> {
    graph: &'g Graph,
    config: &'g QuantConfig,
    out: Rebuild<'g>,
    /// Results of quantizing values of the new graph per row.
    rows: HashMap<Value, Vec<Value>>,
    /// What was rounded already: by the operand, whether it is the left one, and how.
    weights: HashMap<(Value, bool, QuantSpec), Weights>,
}

impl Quantizer<'_> {
    /// Emits a product, quantized if that is wanted and possible.
    fn product(&mut self, n: Node, node: &NodeData) -> Result<LedgerEntry, PassError> {
        let Some(matrix) = self.matrix(node) else {
            self.out.copy(n)?;
            return Ok(LedgerEntry::kept(&node.loc, self.why_not(node), 0));
        };
        let bytes = matrix.data.bytes().len() as u64;
        let (spec, by) = self.config.of(&node.loc);
        let mut reason = by.map_or_else(|| "--quant".to_string(), |r| format!("--quant-override '{r}'"));
        let QuantSpec::Int { weights: bits, activations, group } = spec else {
            self.out.copy(n)?;
            return Ok(LedgerEntry::kept(&node.loc, reason, bytes));
        };
        let [k, columns] = matrix.sizes();
        let kept = match () {
            () if k < MIN_INNER => Some(format!("its inner size {k} is below {MIN_INNER}: there is nothing to gain")),
            () if columns < MIN_COLUMNS => {
                Some(format!("it has {columns} output channels, fewer than {MIN_COLUMNS}: there is nothing to gain"))
            }
            () if matrix.data.values::<f32>().iter().any(|w| !w.is_finite()) => Some("a weight is not finite".into()),
            () => None,
        };
        if let Some(kept) = kept {
            self.out.copy(n)?;
            return Ok(LedgerEntry::kept(&node.loc, kept, bytes));
        }
        if matches!(group, Group::Of(size) if size as usize >= k) {
            reason += "; one group holds all of k";
        }
        let constant = node.inputs[usize::from(!matrix.left)];
        let x = self.left_operand(node, matrix.left)?;
        let rank = self.out.new.ty(x).rank();
        let key = (constant, matrix.left, spec);
        let weights = match self.weights.get(&key) {
            Some(w) => w.clone(),
            None => {
                let rounded = round_to_nearest(&matrix.data.values::<f32>(), k, columns, bits, group);
                let bytes = (rounded.codes.bytes().len() + rounded.scales.bytes().len()) as u64;
                let (op, error) = (QuantizedMatmul { activations: None, weights: rounded.scheme }, rounded.relative_error);
                let ty = Type { quant: Some(rounded.scheme), ..rounded.codes.ty() };
                let name = self.graph.value(constant).name.clone();
                let codes = self.out.new.add_typed_const(rounded.codes, ty, name);
                let scales = self.out.new.add_const(rounded.scales, None);
                let w = Weights { codes, scales, op, bytes, error };
                self.weights.insert(key, w.clone());
                w
            }
        };
        let mut op = weights.op;
        let mut operands = vec![x];
        if activations == Activations::Int8 {
            let rows = QuantizeRows { symmetric: true };
            op.activations = Some(rows.scheme(rank, k as u32));
            operands = match self.rows.get(&x) {
                Some(results) => results.clone(),
                None => {
                    let results = self.out.emit(rows.into(), &[x], &node.loc)?;
                    self.rows.insert(x, results.clone());
                    results
                }
            };
        }
        operands.extend([weights.codes, weights.scales]);
        let mut y = self.out.emit(op.into(), &operands, &node.loc)?[0];
        if matrix.left {
            y = self.transposed(y, &node.loc)?;
        }
        self.out.set(node.outputs[0], y);
        Ok(LedgerEntry {
            loc: node.loc.clone(),
            spec,
            reason,
            source_bytes: bytes,
            packed_bytes: weights.bytes,
            weight_error: Some(weights.error),
        })
    }

    /// Emits attention, quantized if that is wanted and possible.
    fn attention(&mut self, n: Node, node: &NodeData, op: &Attention) -> Result<LedgerEntry, PassError> {
        let (spec, by) = self.config.of(&node.loc);
        let by = by.map_or_else(|| "--quant".to_string(), |r| format!("--quant-override '{r}'"));
        let kept = match spec {
            QuantSpec::F32 => Some(format!("{by}: attention in f32")),
            QuantSpec::Int { activations: Activations::Float, .. } => Some(format!("{by}: attention has no weights")),
            QuantSpec::Int { .. } => self.why_not_attention(node),
        };
        if let Some(kept) = kept {
            self.out.copy(n)?;
            return Ok(LedgerEntry::kept(&node.loc, kept, 0));
        }
        let operands: Vec<Value> = node.inputs.iter().map(|&v| self.out.get(v)).collect();
        let op = QuantizedAttention { scale: op.scale, causal: op.causal };
        let y = self.out.emit(op.into(), &operands, &node.loc)?[0];
        self.out.set(node.outputs[0], y);
        let spec = QuantSpec::Int { weights: WeightBits::Eight, activations: Activations::Int8, group: Group::Channel };
        let reason = format!("{by}: attention by rows of queries and keys and columns of values");
        Ok(LedgerEntry { spec, ..LedgerEntry::kept(&node.loc, reason, 0) })
    }

    fn why_not_attention(&self, node: &NodeData) -> Option<String> {
        let [q, v] = [0, 2].map(|i| self.graph.ty(node.inputs[i]));
        let depths = [q, v].map(|t| t.shape[3].as_const());
        match () {
            () if q.elem != Elem::F32 => Some(format!("attention of {q}, which is not f32")),
            () if depths.iter().any(|d| d.is_none_or(|d| d < MIN_DEPTH)) => {
                Some(format!("attention of heads below {MIN_DEPTH} channels or of no fixed size: there is nothing to gain"))
            }
            () => None,
        }
    }

    /// The operand that is not constant, as the left one of rank 2 or more.
    fn left_operand(&mut self, node: &NodeData, transposed: bool) -> Result<Value, PassError> {
        let x = self.out.get(node.inputs[usize::from(transposed)]);
        if transposed { self.transposed(x, &node.loc) } else { Ok(x) }
    }

    /// The last two axes swapped.
    fn transposed(&mut self, v: Value, loc: &Loc) -> Result<Value, PassError> {
        let rank = self.out.new.ty(v).rank();
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        Ok(self.out.emit(Transpose { perm }.into(), &[v], loc)?[0])
    }

    /// The constant operand, if exactly one is, in f32, and is one matrix for all of the other operand.
    fn matrix(&self, node: &NodeData) -> Option<Matrix> {
        let constants = [0, 1].map(|i| self.constant(node.inputs[i]));
        let (data, left) = match constants {
            [None, Some(w)] => (w, false),
            [Some(w), None] => (w, true),
            _ => return None,
        };
        let sizes = data.sizes();
        let (batch, matrix) = sizes.split_at(sizes.len() - 2);
        let other = self.graph.ty(node.inputs[usize::from(left)]);
        if data.elem() != Elem::F32 || batch.iter().any(|&n| n != 1) || sizes.len() > other.rank() || data.is_empty() {
            return None;
        }
        let data = data.reshaped(matrix).expect("axes of size 1 are left out");
        if !left {
            return Some(Matrix { data, left });
        }
        let swapped = Op::from(Transpose { perm: vec![1, 0] }).eval(&Bindings::new(), &[data]).ok()?.remove(0);
        Some(Matrix { data: swapped, left })
    }

    /// The tensor of a value that is constant, perhaps behind reshapes and transposes.
    fn constant(&self, v: Value) -> Option<Tensor> {
        if let Some(t) = self.graph.as_const(v) {
            return self.graph.ty(v).quant.is_none().then(|| t.clone());
        }
        let node = self.graph.producer(v)?;
        if !matches!(node.op, Op::Reshape(_) | Op::Transpose(_)) {
            return None;
        }
        let operand = self.constant(node.inputs[0])?;
        node.op.eval(&Bindings::new(), &[operand]).ok().map(|mut r| r.remove(0))
    }

    fn why_not(&self, node: &NodeData) -> String {
        let constant = [0, 1].map(|i| self.constant(node.inputs[i]).is_some());
        match constant {
            [false, false] => "no operand is constant".into(),
            [true, true] => "both operands are constant".into(),
            [left, _] => {
                let of = |i: usize| self.graph.ty(node.inputs[i]);
                let (w, x) = if left { (of(0), of(1)) } else { (of(1), of(0)) };
                format!("its constant operand {w} is not one f32 matrix for all of {x}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cse;
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
    fn what_stays_says_why() {
        let source =
            "tfc.ir 1 input %x: f32[4, 64] input %t: f32[4, 16] const %narrow: f32[64, 8] = splat 0.5 const %short: f32[16, 64] = splat 1.0
            const %bad: f32[64, 64] = splat inf const %many: f32[2, 64, 64] = splat 1.0 input %w: f32[64, 64]
            %a = matmul %x, %narrow : f32[4, 8] %b = matmul %t, %short : f32[4, 64] %c = matmul %x, %bad : f32[4, 64]
            %d = matmul %x, %many : f32[2, 4, 64] %e = matmul %x, %w : f32[4, 64]
            output a = %a output b = %b output c = %c output d = %d output e = %e";
        let (graph, stats) = quantize(source, "w8a8");
        assert_eq!(ops(&graph), ["matmul"; 5]);
        let reasons: Vec<&str> = stats.ledger.iter().map(|e| e.reason.as_str()).collect();
        for (reason, wanted) in
            reasons.iter().zip(["8 output channels", "inner size 16", "not finite", "not one f32 matrix", "no operand is constant"])
        {
            assert!(reason.contains(wanted), "{reason}");
        }
    }
}
