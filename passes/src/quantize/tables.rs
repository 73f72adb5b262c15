//! Tables whose rows are gathered: which of them are stored in 8 bits.
//!
//! A constant matrix of floats that only gathers of whole rows read, and products that are quantized themselves (an output layer that
//! shares the embedding), has a scale for every row: `max |row| / 127`, and codes in -127..=127. Gathering picks a row of codes and its
//! scale, and multiplies them.

use super::{LARGE, MIN_INNER, QuantConfig, QuantSpec, moves_constant};
use std::collections::{HashMap, HashSet};
use tfc_ir::graph::{Graph, Node, NodeData, Value};
use tfc_ir::ops::Op;
use tfc_ir::types::Elem;

/// For every constant matrix of floats that a gather takes rows of: that it is rounded, and what is said of that beside what decided it;
/// or why it stays as it is.
pub(super) fn decide(graph: &Graph, config: &QuantConfig) -> HashMap<Value, Result<String, String>> {
    let mut users: HashMap<Value, Vec<Node>> = HashMap::new();
    for (n, node) in graph.nodes() {
        node.inputs.iter().for_each(|&v| users.entry(v).or_default().push(n));
    }
    let outputs = graph.outputs().iter().map(|o| o.value).collect();
    let readers = Readers { graph, config, users, outputs };
    let tables: HashSet<Value> = graph.nodes().filter_map(|(_, node)| table_of(graph, node)).collect();
    tables.into_iter().map(|v| (v, readers.decide(v))).collect()
}

/// The constant matrix of floats that the node takes rows of, if these are no shorter than the rows of products must be.
pub(super) fn table_of(graph: &Graph, node: &NodeData) -> Option<Value> {
    let v = node.inputs.first().copied().filter(|_| matches!(&node.op, Op::Gather(g) if g.axis == 0))?;
    let (table, ty) = (graph.as_const(v)?, graph.ty(v));
    let is_table = table.rank() == 2 && ty.elem.is_float() && ty.quant.is_none() && table.sizes()[1] >= MIN_INNER;
    is_table.then_some(v)
}

/// What reads the constants of a graph.
struct Readers<'g> {
    graph: &'g Graph,
    config: &'g QuantConfig,
    users: HashMap<Value, Vec<Node>>,
    outputs: HashSet<Value>,
}

impl Readers<'_> {
    fn decide(&self, v: Value) -> Result<String, String> {
        let table = self.graph.as_const(v).expect("tables are constants");
        let bytes = table.bytes().len() as u64;
        let mut note = String::new();
        for n in self.all(v) {
            let Some(n) = n else { return Err("it is a result of the model as well".into()) };
            let node = self.graph.node(n);
            let (spec, by) = self.config.of(n, &node.loc);
            match &node.op {
                Op::Gather(_) if table_of(self.graph, node) == Some(v) && node.inputs[1] != v => {
                    if spec == QuantSpec::F32 {
                        return Err(by);
                    }
                }
                Op::Matmul(_) if spec == QuantSpec::F32 => return Err(format!("the product {} takes it in f32: {by}", node.loc)),
                Op::Matmul(_) => note = format!("; the product {} has a copy in the order of products", node.loc),
                op => return Err(format!("the operator {} takes it as well", op.mnemonic())),
            }
        }
        if bytes < LARGE {
            return Err(format!("a table of {bytes} bytes, less than {LARGE}: there is little to gain"));
        }
        let finite = match table.elem() {
            Elem::F32 => table.values::<f32>().iter().all(|x| x.is_finite()),
            _ => table.iter().all(|x| x.to_f64().is_finite()),
        };
        if !finite {
            return Err("an element is not finite".into());
        }
        Ok(note)
    }

    /// What takes a value, through what only moves it to a product; `None` stands for the model's results.
    fn all(&self, v: Value) -> Vec<Option<Node>> {
        let mut found = vec![];
        if self.outputs.contains(&v) {
            found.push(None);
        }
        for &n in self.users.get(&v).into_iter().flatten() {
            let node = self.graph.node(n);
            if moves_constant(&node.op) { found.extend(self.all(node.outputs[0])) } else { found.push(Some(n)) }
        }
        found
    }
}
