//! Attention as one kernel behind the packing of its keys and values, or in simpler operators.

use super::args::Args;
use super::halves::is_half;
use super::view::View;
use super::{Scheduler, Source};
use crate::kernel::attention::{Attention, Bytes, Format, QUERY_TILE};
use crate::kernel::gemm::PANEL;
use crate::kernel::pack::{Form, Pack, Range, Rows, Sums};
use crate::kernel::{Body, Extent, Use};
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Graph, Loc, Value};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{self, InferError, Op, quantized_attention};
use tfc_ir::quant::MIN_RANGE;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape, Type};

/// The longest value vector that the kernel keeps on the stack.
const MAX_VALUE_DEPTH: i64 = 512;

/// The longest dot product of bytes whose sum is exact as an f32: `k * 255 * 127 < 2^24`.
const MAX_BYTES_DEPTH: i64 = 512;

/// The attention of a node, and whether its operands are rounded to 8 bits.
pub(super) fn attention_of(op: &Op) -> Option<(ops::Attention, bool)> {
    match op {
        Op::Attention(op) => Some((op.clone(), false)),
        Op::QuantizedAttention(op) => Some((op.exact(), true)),
        _ => None,
    }
}

/// Matrices of `rows` rows by `k` as an operand of attention: in panels of rows.
struct Panels {
    view: View,
    scales: View,
    sums: Option<View>,
}

impl Scheduler {
    /// Schedules attention as one kernel; false if it has to be taken apart.
    pub(super) fn attention(&mut self, op: &ops::Attention, rounded: bool, inputs: &[View], out: &View, loc: &Loc) -> bool {
        let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]];
        let (Some(depth), Some(value_depth)) = (q.shape[3].as_const(), v.shape[3].as_const()) else { return false };
        let groups = &k.shape[1];
        let Some(per_group) = q.shape[1].div_exact(groups) else { return false };
        let floats = q.elem == Elem::F32 || is_half(q.elem) && !rounded;
        if !floats || value_depth > MAX_VALUE_DEPTH || rounded && !(1..=MAX_BYTES_DEPTH).contains(&depth) {
            return false;
        }
        let inputs: Vec<View> = inputs.iter().map(|x| self.widened(x, loc)).collect();
        let result = if is_half(out.elem) { &self.temporary(&Type::new(Elem::F32, out.shape.clone())) } else { out };
        let [q, k, v] = [&inputs[0], &inputs[1], &inputs[2]];
        let (k, v) = (self.unshared(k, loc), self.unshared(v, loc));
        let mut args = Args::default();
        let (keys, values, format) = if rounded {
            let keys = self.byte_panels(&k, true, loc);
            let values = self.byte_panels(&v.transpose(&[0, 1, 3, 2]), false, loc);
            let format = Format::Bytes(Bytes {
                key_scales: args.buffer(&keys.scales, Use::Read),
                key_sums: args.buffer(&keys.sums.expect("asked for"), Use::Read),
                value_scales: args.buffer(&values.scales, Use::Read),
            });
            (keys.view, values.view, format)
        } else {
            let keys = self.packed(&Source::View(k.transpose(&[0, 1, 3, 2])), &k.shape.0[..2], loc);
            let values = self.packed(&Source::View(v.clone()), &v.shape.0[..2], loc);
            (keys.view, values.view, Format::F32)
        };
        let scores = Shape(vec![q.shape[0].clone(), q.shape[1].clone(), q.shape[2].clone(), k.shape[2].clone()]);
        let bias = inputs.get(3).map(|b| {
            let strides: Vec<Dim> = (0..4).map(|i| b.stride_in(&scores, i)).collect();
            args.access(b, Use::Read, &strides)
        });
        let kernel = Attention {
            format,
            batch: args.extent(&q.shape[0]),
            heads: args.extent(&q.shape[1]),
            heads_per_group: args.extent(&per_group),
            queries: args.extent(&q.shape[2]),
            keys: args.extent(&k.shape[2]),
            depth,
            value_depth,
            scale: (op.scale.get() as f32).to_bits(),
            causal: op.causal,
            mask_value: op.mask_value.map(|x| (x.get() as f32).to_bits()),
            q: args.access(q, Use::Read, &q.strides),
            k: args.buffer(&keys, Use::Read),
            v: args.buffer(&values, Use::Read),
            bias,
            out: args.access(result, Use::Write, &result.strides),
        };
        let tasks = q.shape[0].clone() * q.shape[1].clone() * q.shape[2].ceil_div(QUERY_TILE as i64);
        let work = scores.elements() * Dim::from(depth + value_depth + 16);
        let label = if rounded { "quantized_attention" } else { "attention" };
        self.launch(Body::Attention(kernel), args, tasks, work, label, loc);
        if is_half(out.elem) {
            self.convert(result, out, loc);
        }
        true
    }

    /// Packs matrices `[batch, group, row, k]` in panels of rows, each row rounded to 8 bits, with the sums of
    /// the rows times -128 if they are wanted.
    fn byte_panels(&mut self, v: &View, with_sums: bool, loc: &Loc) -> Panels {
        let [batch, groups, m, k] = [0, 1, 2, 3].map(|i| v.shape[i].clone());
        let padded = m.ceil_div(PANEL as i64) * Dim::from(PANEL);
        let own = [batch.clone(), groups.clone()];
        let with = |last: Dim| Shape(own.iter().cloned().chain([last]).collect());
        let view = self.temporary(&Type::new(Elem::I32, with(padded.clone() * k.ceil_div(4))));
        let scales = self.temporary(&Type::new(Elem::F32, with(padded.clone())));
        let sums = with_sums.then(|| self.temporary(&Type::new(Elem::I32, with(padded.clone()))));
        let mut args = Args::default();
        let group = k.as_const().unwrap_or(0);
        let body = Pack {
            batch: args.extents(own.iter()),
            m: args.extent(&m),
            row_groups: Extent::Const(1),
            k: args.extent(&k),
            tile: PANEL,
            from: Rows {
                buffer: args.buffer(v, Use::Read),
                batch: (0..2).map(|i| args.extent(&v.strides[i])).collect(),
                row: args.extent(&v.strides[2]),
                k: args.extent(&v.strides[3]),
            },
            made_by: None,
            to: args.buffer(&view, Use::Write),
            form: Form::Quantize {
                range: Range::OfRow { scales: args.buffer(&scales, Use::Write), zeros: None },
                sums: sums.as_ref().map(|s| Sums { buffer: args.buffer(s, Use::Write), group, factor: -128 }),
            },
            pitch: None,
        };
        let tasks = batch * groups * m.ceil_div(PANEL as i64);
        self.launch(Body::Pack(body), args, tasks, v.shape.elements(), "quantize_rows+pack for quantized_attention", loc);
        Panels { view, scales, sums }
    }

    /// The view itself, or a copy if matrices of its batch share memory: the attention kernel wants one each.
    fn unshared(&mut self, v: &View, loc: &Loc) -> View {
        if (0..2).all(|i| v.shape[i].is(1) || !v.strides[i].is(0)) {
            return v.clone();
        }
        let copy = self.temporary(&Type::new(v.elem, v.shape.clone()));
        self.copy(v, &copy, loc);
        copy
    }
}

/// Attention in simpler operators, for types and sizes that the kernel does not take.
pub(super) fn unfused_attention(
    op: &ops::Attention,
    rounded: bool,
    graph: &Graph,
    inputs: &[Value],
    loc: &Loc,
) -> Result<Graph, InferError> {
    let mut g = graph.emptied();
    let mut x: Vec<Value> = inputs.iter().enumerate().map(|(i, &v)| g.add_input(&format!("x{i}"), graph.ty(v).clone())).collect();
    let (q, k) = (g.ty(x[0]).clone(), g.ty(x[1]).clone());
    let elem = q.elem;
    let (b, h, n, d) = (q.shape[0].clone(), q.shape[1].clone(), q.shape[2].clone(), q.shape[3].clone());
    let (groups, m) = (k.shape[1].clone(), k.shape[2].clone());
    let e = g.ty(x[2]).shape[3].clone();
    let per = h.floor_div(&groups);
    if rounded {
        for (operand, axis) in [(0, 3), (1, 3), (2, 2)] {
            x[operand] = rounded_lines(&mut g, x[operand], axis, loc)?;
        }
    }
    // [b, g, h/g, …] so that the heads of a group broadcast.
    let split = Shape(vec![b.clone(), groups.clone(), per.clone(), n.clone(), d.clone()]);
    let q5 = g.add(ops::Reshape { shape: split }, &[x[0]], loc)?;
    let k5 = g.add(ops::Reshape { shape: Shape(vec![b.clone(), groups.clone(), Dim::from(1), m.clone(), d]) }, &[x[1]], loc)?;
    let v5 = g.add(ops::Reshape { shape: Shape(vec![b.clone(), groups.clone(), Dim::from(1), m.clone(), e.clone()]) }, &[x[2]], loc)?;
    let kt = g.add(ops::Transpose { perm: vec![0, 1, 2, 4, 3] }, &[k5], loc)?;
    let s = g.add(ops::Matmul {}, &[q5, kt], loc)?;
    let number = |g: &mut Graph, x: f64| g.add_const(Tensor::scalar(elem, Scalar::Float(x)), None);
    let scale = number(&mut g, op.scale.get());
    let mut s = g.add(ops::Mul {}, &[s, scale], loc)?;
    s = g.add(ops::Reshape { shape: Shape(vec![b.clone(), h.clone(), n.clone(), m.clone()]) }, &[s], loc)?;
    if let Some(&bias) = x.get(3) {
        s = g.add(ops::Add {}, &[s, bias], loc)?;
        if let Some(mask_value) = op.mask_value {
            let most = number(&mut g, mask_value.get());
            let hides = g.add(ops::Le {}, &[bias, most], loc)?;
            s = g.add(ops::Select {}, &[hides, bias, s], loc)?;
        }
    }
    if op.causal {
        let square = Shape(vec![n.clone(), m.clone()]);
        let row = g.add(ops::Iota { elem: Elem::I64, shape: square.clone(), axis: 0 }, &[], loc)?;
        let column = g.add(ops::Iota { elem: Elem::I64, shape: square, axis: 1 }, &[], loc)?;
        let ahead = g.add(ops::Dims { values: vec![m.clone() - n.clone()], shape: vec![] }, &[], loc)?;
        let last = g.add(ops::Add {}, &[row, ahead], loc)?;
        let seen = g.add(ops::Le {}, &[column, last], loc)?;
        let hidden = number(&mut g, f64::NEG_INFINITY);
        s = g.add(ops::Select {}, &[seen, s, hidden], loc)?;
    }
    let p = if rounded { rounded_weights(&mut g, s, loc)? } else { g.add(ops::Softmax { axis: 3, log: false }, &[s], loc)? };
    let p = g.add(ops::Reshape { shape: Shape(vec![b.clone(), groups, per, n.clone(), m]) }, &[p], loc)?;
    let y = g.add(ops::Matmul {}, &[p, v5], loc)?;
    let y = g.add(ops::Reshape { shape: Shape(vec![b, h, n, e]) }, &[y], loc)?;
    g.add_output("y0", y);
    Ok(g)
}

/// What every line along an axis is rounded to, as numbers: see `quant::RowRange::symmetric`.
fn rounded_lines(g: &mut Graph, x: Value, axis: usize, loc: &Loc) -> Result<Value, InferError> {
    let number = |g: &mut Graph, x: f32| g.add_const(Tensor::scalar(Elem::F32, Scalar::Float(x.into())), None);
    let [steps, least, infinity, zero] = [127.0, MIN_RANGE, f32::INFINITY, 0.0].map(|x| number(g, x));
    let magnitude = g.add(ops::Abs {}, &[x], loc)?;
    let range = g.add(ops::Reduce { kind: ReduceKind::Max, axes: vec![axis], keep: true }, &[magnitude], loc)?;
    let scale = g.add(ops::Div {}, &[range, steps], loc)?;
    let inverse = g.add(ops::Div {}, &[steps, range], loc)?;
    let enough = g.add(ops::Le {}, &[least, range], loc)?;
    let finite = g.add(ops::Lt {}, &[range, infinity], loc)?;
    let useful = g.add(ops::And {}, &[enough, finite], loc)?;
    let inverse = g.add(ops::Select {}, &[useful, inverse, zero], loc)?;
    let scaled = g.add(ops::Mul {}, &[x, inverse], loc)?;
    let code = g.add(ops::Round {}, &[scaled], loc)?;
    // The cast makes NaN 0.
    let code = g.add(ops::Cast { to: Elem::I8 }, &[code], loc)?;
    let code = g.add(ops::Cast { to: Elem::F32 }, &[code], loc)?;
    g.add(ops::Mul {}, &[code, scale], loc)
}

/// The weights of scores, rounded to parts of the largest.
fn rounded_weights(g: &mut Graph, scores: Value, loc: &Loc) -> Result<Value, InferError> {
    let largest = g.add(ops::Reduce { kind: ReduceKind::Max, axes: vec![3], keep: true }, &[scores], loc)?;
    let x = g.add(ops::Sub {}, &[scores, largest], loc)?;
    let x = g.add(ops::Exp {}, &[x], loc)?;
    let steps = g.add_const(Tensor::scalar(Elem::F32, Scalar::Float(quantized_attention::WEIGHT_STEPS)), None);
    let x = g.add(ops::Mul {}, &[x, steps], loc)?;
    let weights = g.add(ops::Round {}, &[x], loc)?;
    let total = g.add(ops::Reduce { kind: ReduceKind::Sum, axes: vec![3], keep: true }, &[weights], loc)?;
    g.add(ops::Div {}, &[weights, total], loc)
}
