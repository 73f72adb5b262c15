//! The numbers of static quantizations in memory: see [`site`].

use super::view::View;
use super::{Layout, Scheduler};
use crate::kernel::{Buffer, site};
use cranelift_entity::SecondaryMap;
use tfc_ir::graph::{Graph, Value};
use tfc_ir::ops::{Op, QuantizeStatic};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape};

/// The sites of the quantizations of a group, by their results.
pub type Sites = SecondaryMap<Value, Option<Site>>;

/// The site of a quantization.
#[derive(Clone)]
pub struct Site {
    /// Its memory.
    pub view: View,
    /// Whether values may be below its bound.
    pub below: bool,
}

impl Scheduler {
    /// The site of a quantization.
    pub(super) fn site(&mut self, op: &QuantizeStatic) -> View {
        let words = site::words(op).map(f32::from_bits).to_vec();
        let t = Tensor::of(&[words.len()], words);
        view(self.weight(t.content_hash(), Layout::RowMajor, || t.bytes().clone()))
    }

    /// The sites of a group that expressions may load.
    pub(super) fn sites(&mut self, body: &Graph) -> Sites {
        let mut sites = Sites::new();
        for (_, node) in body.nodes() {
            if let Op::QuantizeStatic(op) = &node.op
                && op.range().inverse <= site::MOST_STEPS
            {
                let of_gelu = body.producer(node.inputs[0]).is_some_and(|n| matches!(n.op, Op::Gelu(_)));
                sites[node.outputs[0]] = Some(Site { view: self.site(op), below: !(of_gelu && site::is_above_low(op)) });
            }
        }
        sites
    }
}

/// The memory of a site.
pub fn view(buffer: Buffer) -> View {
    View::contiguous(buffer, Elem::F32, Shape::fixed(&[site::WORDS as i64]))
}

/// Whether some values of a graph are quantized with a zero point other than 0.
pub fn have_zero_points(graph: &Graph) -> bool {
    graph.nodes().any(|(_, node)| match &node.op {
        Op::QuantizeStatic(op) => op.zero_point != 0,
        Op::Fused(op) => have_zero_points(&op.body.0),
        _ => false,
    })
}
