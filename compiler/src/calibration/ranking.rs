//! Which layers of a quantized model do the most damage: what the model gains without the roundings of each.
//!
//! The graph is cut into parts that end behind gates ([`tfc_passes::quantize::Gates`]), and all of it is run once, quantized. To measure
//! a layer without its roundings, the parts before its own need not run again, since what they computed is kept where the cuts are;
//! its own part runs with its gate closed, and the parts behind it as they are, without gates. So a layer takes half a run of the quantized
//! model on average, and the graph with both results of every layer is never run as a whole, nor are all its weights in memory at once.
//! Measured is on so many samples as [`OPERATIONS`] allow, in [`ROWS`] rows of each output: differences between layers are large next to those
//! between samples.

use super::data::Batch;
use super::evaluate::Executable;
use crate::diag::{Diagnostic, Result};
use crate::reference::operations;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use tfc_ir::graph::{Def, Graph, NodeData, Value};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_passes::quantize::Gates;

/// The most parts.
const PARTS: usize = 16;

/// The most operations of all layers' evaluations together, a multiply-add being one, as if each ran the whole model: a minute or two.
/// One part of the data is evaluated at least.
pub const OPERATIONS: f64 = 1e13;

/// The most parts of the data.
const BATCHES: usize = 8;

/// The most rows of an output that are compared, of each part of the data.
pub const ROWS: usize = 128;

/// As many of the samples as layers are ranked on: all layers together shall take no more than so many operations ([`OPERATIONS`]). `graph`
/// is the one with gates, `model` any code of the same model.
///
/// # Errors
/// As [`Executable::bindings`].
pub fn samples<'s>(graph: &Graph, gates: &Gates, model: &Executable, samples: &'s [Batch], most: f64) -> Result<&'s [Batch]> {
    let (mut count, mut left) = (0, most);
    for batch in samples.iter().take(BATCHES) {
        left -= operations(graph, &model.bindings(batch)?) * gates.0.len() as f64;
        if count > 0 && left < 0.0 {
            break;
        }
        count += 1;
    }
    Ok(&samples[..count])
}

/// Who gets the outputs: the gate that is closed, if one is, the number of the batch, and what it gives.
pub type Each<'e> = dyn FnMut(Option<usize>, usize, &[Tensor]) -> Result<()> + 'e;

/// For every gate the outputs of the model without the roundings of its layer, in the order of the gates, batch
/// by batch; before these, the outputs with all roundings.
///
/// # Errors
/// As [`Executable::of`] and [`Executable::run`], and those of `each`.
pub fn without_each(graph: &Graph, gates: &Gates, samples: &[Batch], threads: usize, each: &mut Each) -> Result<()> {
    let parts = parts(graph, gates);
    let mut plain = vec![];
    for part in &parts {
        plain.push(Executable::of(&part.graph(graph, gates, true)?, threads)?);
    }
    let open = |closed: Option<usize>| {
        let input = graph.ty(graph.inputs()[graph.inputs().len() - 1]);
        let sizes: Vec<usize> = input.shape.0.iter().filter_map(|d| d.as_const()).map(|n| n as usize).collect();
        Tensor::build(Elem::Bool, &sizes, |i| Scalar::Int((Some(i) != closed).into()))
    };
    let all_open = open(None);
    let mut kept: Vec<Values> = vec![];
    for (i, batch) in samples.iter().enumerate() {
        let mut values = Values::new();
        for (part, code) in parts.iter().zip(&mut plain) {
            part.run(code, batch, &all_open, &Values::new(), &mut values)?;
        }
        each(None, i, &outputs(graph, batch, &[&values]))?;
        // What is an output and nothing else need not be kept.
        let needed: BTreeSet<Value> = parts.iter().flat_map(|p| p.needs.iter().copied()).collect();
        values.retain(|v, _| needed.contains(v));
        kept.push(values);
    }
    for (at, part) in parts.iter().enumerate() {
        let mut gated = Executable::of(&part.graph(graph, gates, false)?, threads)?;
        for gate in part.gates.clone() {
            let closed = open(Some(gate));
            for (i, (batch, kept)) in samples.iter().zip(&kept).enumerate() {
                let mut values = Values::new();
                part.run(&mut gated, batch, &closed, kept, &mut values)?;
                for (part, code) in parts.iter().zip(&mut plain).skip(at + 1) {
                    part.run(code, batch, &all_open, kept, &mut values)?;
                }
                each(Some(gate), i, &outputs(graph, batch, &[&values, kept]))?;
            }
        }
    }
    Ok(())
}

/// Results of nodes.
type Values = BTreeMap<Value, Tensor>;

/// The outputs of the graph, from the first values that have them.
fn outputs(graph: &Graph, batch: &Batch, values: &[&Values]) -> Vec<Tensor> {
    let of = |v: Value| match &graph.value(v).def {
        Def::Const(t) => t.clone(),
        _ => match graph.inputs().iter().position(|&i| i == v) {
            Some(i) => batch.inputs[i].clone(),
            None => values.iter().find_map(|values| values.get(&v)).expect("every part has run").clone(),
        },
    };
    graph.outputs().iter().map(|o| of(o.value)).collect()
}

/// Nodes of a graph, one after the other.
struct Part {
    /// Their positions.
    nodes: Range<usize>,
    /// The gates among them.
    gates: Range<usize>,
    /// What they take from nodes before.
    needs: Vec<Value>,
    /// What nodes behind them, or the outputs, take from them.
    gives: Vec<Value>,
}

impl Part {
    /// The part on its own: it has the inputs of the whole graph, whose sizes say what dimensions are, and those that it needs. If `open`,
    /// the quantized result of every layer counts, and nothing computes the exact one.
    fn graph(&self, whole: &Graph, gates: &Gates, open: bool) -> Result<Graph> {
        let mut out = whole.emptied();
        let mut copies: BTreeMap<Value, Value> = BTreeMap::new();
        for &v in whole.inputs() {
            let d = whole.value(v);
            copies.insert(v, out.add_input(d.name.as_deref().unwrap_or_default(), d.ty.clone()));
        }
        for (i, &v) in self.needs.iter().enumerate() {
            copies.insert(v, out.add_input(&format!("tfc.cut.{i}"), whole.ty(v).clone()));
        }
        let chosen: BTreeSet<Value> = gates.0[self.gates.clone()].iter().map(|g| g.chosen).collect();
        for (_, node) in whole.nodes().skip(self.nodes.start).take(self.nodes.len()) {
            let mut copy = |v: Value| {
                *copies.entry(v).or_insert_with(|| {
                    let Def::Const(t) = &whole.value(v).def else { unreachable!("the part needs what it does not compute") };
                    out.add_typed_const(t.clone(), whole.ty(v).clone(), whole.value(v).name.clone())
                })
            };
            let operands: Vec<Value> = node.inputs.iter().map(|&v| copy(v)).collect();
            if open && chosen.contains(&node.outputs[0]) {
                copies.insert(node.outputs[0], operands[1]);
                continue;
            }
            let types = node.outputs.iter().map(|&v| whole.ty(v).clone()).collect();
            let results = out.add_node_typed(node.op.clone(), &operands, types, &node.loc);
            copies.extend(node.outputs.iter().copied().zip(results));
        }
        for (i, v) in self.gives.iter().enumerate() {
            let v = *copies.get(v).ok_or_else(|| Diagnostic::bug(format!("{v} is in no part of the graph")))?;
            out.add_output(&format!("tfc.cut.{i}"), v);
        }
        Ok(out)
    }

    /// Runs the code of the part. What it needs comes from `values`, or else from `kept`; what it gives is added to `values`.
    fn run(&self, code: &mut Executable, batch: &Batch, gates: &Tensor, kept: &Values, values: &mut Values) -> Result<()> {
        let needs = self.needs.iter().map(|v| values.get(v).or_else(|| kept.get(v)).expect("the parts before have run").clone());
        let inputs = batch.inputs.iter().cloned().chain([gates.clone()]).chain(needs).collect();
        let results = code.run(&Batch { inputs, ..batch.clone() })?;
        values.extend(self.gives.iter().copied().zip(results));
        Ok(())
    }
}

/// The parts of a graph: about as many layers in each, cut where the fewest values pass, none of them of integers that are rounded floats.
fn parts(graph: &Graph, gates: &Gates) -> Vec<Part> {
    let nodes: Vec<&NodeData> = graph.nodes().map(|(_, n)| n).collect();
    // Where values come from and where they are last taken; outputs are taken at the end.
    let mut defined: BTreeMap<Value, usize> = BTreeMap::new();
    let mut last: BTreeMap<Value, usize> = BTreeMap::new();
    for (i, node) in nodes.iter().enumerate() {
        defined.extend(node.outputs.iter().map(|&v| (v, i)));
        last.extend(node.inputs.iter().map(|&v| (v, i)));
    }
    last.extend(graph.outputs().iter().map(|o| (o.value, nodes.len())));
    let (defined, last) = (&defined, &last);
    let live =
        |at: usize| defined.iter().filter(move |(v, from)| **from < at && last.get(v).is_some_and(|last| *last >= at)).map(|(&v, _)| v);
    let place = |gate: usize| defined[&gates.0[gate].chosen] + 1;
    let count = gates.0.len();
    let wanted = PARTS.min(count);
    let mut cuts = vec![(0, 0)];
    for part in 1..wanted {
        // Behind this gate or one of the next, before the next cut.
        let (first, end) = (part * count / wanted, (part + 1) * count / wanted);
        let positions = (place(first - 1)..place(end - 1)).filter(|&at| live(at).all(|v| graph.ty(v).quant.is_none()));
        if let Some(at) = positions.min_by_key(|&at| live(at).count()) {
            cuts.push((at, (0..count).filter(|&g| place(g) <= at).count()));
        }
    }
    cuts.push((nodes.len(), count));
    let part = |ends: &[(usize, usize)]| {
        let (nodes_of, gates_of) = (ends[0].0..ends[1].0, ends[0].1..ends[1].1);
        let inside = |v: &Value| defined.get(v).is_some_and(|at| nodes_of.contains(at));
        let needs: BTreeSet<Value> = nodes[nodes_of.clone()]
            .iter()
            .flat_map(|n| n.inputs.iter().copied())
            .filter(|v| defined.contains_key(v) && !inside(v))
            .collect();
        let gives = live(nodes_of.end).filter(inside).collect();
        Part { nodes: nodes_of, gates: gates_of, needs: needs.into_iter().collect(), gives }
    };
    cuts.windows(2).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::ControlFlow;
    use tfc_ir::dim::Bindings;
    use tfc_passes::{Context, QuantConfig, Ran, parse_passes, run_pipeline};

    /// Four layers with a residual stream, quantized with gates.
    fn gated(outputs: &str) -> (Graph, Gates) {
        let mut source = "tfc.ir 1 symbol b 1..9 input %x: f32[b, 64]\n".to_string();
        for i in 0..4 {
            source += &format!("const %w{i}: f32[64, 64] = splat 0.0{}\n", i + 1);
        }
        source += "%y0 = relu %x : f32[b, 64]\n";
        for i in 0..4 {
            source += &format!("%p{i} = matmul %y{i}, %w{i} : f32[b, 64]\n%y{} = add %p{i}, %y{i} : f32[b, 64]\n", i + 1);
        }
        source += outputs;
        let graph = tfc_ir::text::parse(&source, None).unwrap();
        let quant = QuantConfig { gated: true, ..QuantConfig::new("w4a8".parse().unwrap()) };
        let cx = Context { quant: Some(quant), ..Context::default() };
        let mut gates = Gates::default();
        let graph = run_pipeline(graph, &parse_passes("quantize").unwrap(), &cx, |ran: &Ran| {
            gates = ran.stats.data.get::<Gates>().unwrap().clone();
            Ok::<_, Box<Diagnostic>>(ControlFlow::Continue(()))
        });
        (graph.unwrap(), gates)
    }

    fn batch(samples: usize, seed: usize) -> Batch {
        let x = Tensor::of(&[samples, 64], (0..64 * samples).map(|i| ((i * 37 + seed) % 101) as f32 / 25.0 - 1.7).collect());
        Batch { samples, inputs: vec![x], place: "test".into() }
    }

    /// What runs in parts gives what the whole graph gives with one gate closed.
    #[test]
    fn parts_compute_what_the_whole_does() {
        let (graph, gates) = gated("output y = %y4 output early = %y1 output x = %x");
        assert_eq!((gates.0.len(), parts(&graph, &gates).len()), (4, 4));
        let samples = [batch(3, 5), batch(2, 11)];
        let mut seen = vec![];
        without_each(&graph, &gates, &samples, 1, &mut |gate, i, outputs| {
            let open = Tensor::build(Elem::Bool, &[4], |g| Scalar::Int((Some(g) != gate).into()));
            let inputs = [samples[i].inputs.clone(), vec![open]].concat();
            let bindings = Bindings::from_iter([(tfc_ir::dim::Symbol::new("b"), samples[i].samples as i64)]);
            let whole = graph.evaluate(&inputs, &bindings).unwrap();
            assert_eq!(whole.len(), outputs.len());
            for (a, b) in whole.iter().zip(outputs) {
                assert_eq!(a.sizes(), b.sizes());
                let near = |(a, b): (f64, f64)| (a - b).abs() <= 1e-5 * a.abs() + 1e-6;
                assert!(a.to_f64s().into_iter().zip(b.to_f64s()).all(near), "gate {gate:?}, samples {i}");
            }
            seen.push((gate, i));
            Ok(())
        })
        .unwrap();
        let wanted = [None, Some(0), Some(1), Some(2), Some(3)].into_iter().flat_map(|gate| [(gate, 0), (gate, 1)]);
        assert_eq!(seen, wanted.collect::<Vec<_>>());
    }

    /// No part is cut where rows are bytes, and nothing that a part has no use for passes through it.
    #[test]
    fn cuts_are_where_little_passes() {
        let (graph, gates) = gated("output y = %y4");
        for part in parts(&graph, &gates) {
            assert!(part.needs.iter().all(|&v| graph.ty(v).quant.is_none()));
            assert!(part.needs.len() <= 1, "{:?}", part.needs);
        }
    }

    #[test]
    fn large_models_are_ranked_on_few_samples() {
        let (graph, gates) = gated("output y = %y4");
        let code = Executable::of(&graph, 1).unwrap();
        let all: Vec<Batch> = (0..20)
            .map(|i| {
                let mut b = batch(2, i);
                b.inputs.push(Tensor::build(Elem::Bool, &[4], |_| Scalar::Int(1)));
                b
            })
            .collect();
        assert_eq!(samples(&graph, &gates, &code, &all, 1e13).unwrap().len(), BATCHES);
        assert_eq!(samples(&graph, &gates, &code, &all, 0.0).unwrap().len(), 1);
        assert_eq!(samples(&graph, &gates, &code, &[], 0.0).unwrap().len(), 0);
    }
}
