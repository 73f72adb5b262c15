//! `fold-scales`: where all rows of a product with a quantized matrix have one scale that is known, the scales of the columns
//! are multiplied by it and it becomes 1, which no kernel multiplies by.
//!
//! Scales that would overflow or lose digits stay apart.

use crate::rules::is_normal;
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use tfc_ir::graph::{Graph, NodeData, Value};
use tfc_ir::ops::{Op, QuantizedMatmul};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;

/// Multiplies the scales of columns by the one scale of all rows. Results may differ in their last bit.
pub const PASS: Pass = Pass { name: "fold-scales", summary: "multiply scales of columns by the one scale of all rows", run };

fn run(graph: Graph, _: &Context) -> PassResult {
    let mut stats = Stats::default();
    let out = graph.rebuild(|g, _, node, inputs| {
        let operands = match &node.op {
            Op::QuantizedMatmul(op) => folded(&graph, g, op, node, inputs),
            _ => None,
        };
        if operands.is_some() {
            stats.count("products", 1);
        }
        g.add_node(node.op.clone(), operands.as_deref().unwrap_or(inputs), &node.loc).map_err(|e| PassError::new(e, &node.loc))
    })?;
    Ok((out, stats))
}

/// The operands with the scale of the rows in those of the columns, if there is one to fold.
fn folded(old: &Graph, new: &mut Graph, op: &QuantizedMatmul, node: &NodeData, inputs: &[Value]) -> Option<Vec<Value>> {
    let o = op.operands(&node.inputs)?;
    let of_rows = old.as_const(*o.x_scale?).filter(|t| t.len() == 1)?.values::<f32>()[0];
    let of_columns = old.as_const(*o.w_scale)?;
    let product: Vec<f32> = of_columns.values::<f32>().iter().map(|scale| scale * of_rows).collect();
    if of_rows == 1.0 || !product.iter().all(|&scale| scale == 0.0 || is_normal(scale.into(), Elem::F32)) {
        return None;
    }
    let mut operands = inputs.to_vec();
    let [rows, columns] = [1, inputs.len() - if o.w_zero.is_some() { 2 } else { 1 }];
    operands[rows] = new.add_const(Tensor::of(&[], vec![1f32]), None);
    operands[columns] = new.add_const(Tensor::of(of_columns.sizes(), product), None);
    Some(operands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfc_ir::graph::Loc;
    use tfc_ir::ops::{QuantizeRows, QuantizeStatic};
    use tfc_ir::quant::{Granularity, Scheme};
    use tfc_ir::types::{Shape, Type};

    /// A product of rows by a static scale, or by scales of their own.
    fn product(scale: Option<f32>) -> Graph {
        let mut g = Graph::new("product");
        let loc = Loc::default();
        let x = g.add_input("x", Type::new(Elem::F32, Shape::fixed(&[2, 3])));
        let rows = QuantizeRows { symmetric: true };
        let (scheme, mut operands) = match scale {
            Some(scale) => {
                let op = QuantizeStatic { scale: scale.into(), zero_point: 3 };
                let mut operands = g.add_node(op.clone(), &[x], &loc).unwrap();
                operands.extend(op.parameters().into_iter().map(|t| g.add_const(t, None)));
                (op.scheme(), operands)
            }
            None => (rows.scheme(2, 3), g.add_node(rows.clone(), &[x], &loc).unwrap()),
        };
        let weights = Scheme { granularity: Granularity::Axis { axis: 1 }, ..rows.scheme(2, 3) };
        operands.push(g.add_const(Tensor::of(&[3, 2], vec![1i8, -2, 3, 4, 5, -6]), None));
        operands.push(g.add_const(Tensor::of(&[2], vec![0.5f32, 0.0]), None));
        let y = g.add(QuantizedMatmul { activations: Some(scheme), weights }, &operands, &loc).unwrap();
        g.add_output("y", y);
        g
    }

    fn count(scale: Option<f32>) -> u64 {
        let graph = product(scale);
        let (out, stats) = run(graph.clone(), &Context::default()).unwrap();
        let x = [Tensor::of(&[2, 3], vec![0.3f32, -0.2, 0.7, 1.0, 0.0, -0.9])];
        let [y, z] = [&graph, &out].map(|g| g.evaluate(&x, &Default::default()).unwrap().remove(0).to_f64s());
        assert!(y.iter().zip(&z).all(|(y, z)| (y - z).abs() <= 1e-6 * y.abs()), "{y:?} {z:?}");
        // A second time there is nothing left.
        assert_eq!(run(out, &Context::default()).unwrap().1.get("products"), 0);
        stats.get("products")
    }

    #[test]
    fn one_scale_of_all_rows_is_folded() {
        assert_eq!([Some(0.3), Some(0.25), Some(1.0), None].map(count), [1, 1, 0, 0]);
    }

    #[test]
    fn scales_stay_apart_where_they_would_lose_digits() {
        assert_eq!(count(Some(2e-38)), 0);
    }
}
