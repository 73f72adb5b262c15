//! Matrix products with their epilogues.

use super::args::Args;
use super::exprs::Exprs;
use super::halves::is_half;
use super::left::{LeftRows, PackedLeft};
use super::sites::Sites;
use super::view::View;
use super::{Layout, Scheduler, Source, Unfit};
use crate::cost;
use crate::kernel::gemm::{self, Format, Gemm, Operand, PANEL, RowZeros};
use crate::kernel::nest::{Effect, Expr, ExprId, Nest, ReduceOp, Stage};
use crate::kernel::pack::{Form, Pack, Rows};
use crate::kernel::{Body, Extent, Use};
use cranelift_entity::SecondaryMap;
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Def, Graph, Loc, NodeData, Value};
use tfc_ir::ops::Op;
use tfc_ir::scalar::Prim;
use tfc_ir::tensor::{Element, Tensor};
use tfc_ir::types::{Elem, Shape, Type};

/// A packed operand: where it is, and the strides of its batch axes in elements.
pub(super) struct Packed {
    pub view: View,
    pub strides: Vec<Dim>,
}

/// Quantized operands of a product, as the kernels take them.
pub(super) struct QuantizedRight {
    /// How they are stored; buffer parameters are filled in when there are arguments.
    pub format: gemm::Quantized,
    /// The length of groups that are not whole units, and are filled up.
    pub padded: Option<i64>,
    /// What the sums of rows are multiplied by.
    pub factor: i64,
    /// Packed weights.
    pub weights: View,
    /// What columns have, packed.
    pub columns: View,
    /// What the rows are before they are packed.
    pub rows: LeftRows,
    /// Scales of the rows, or one for all of them; of no use if packing finds them.
    pub row_scale: Source,
    /// Zero points of the rows, `i8`, if the compiler does not know them.
    pub row_zero: Option<View>,
}

/// Quantized weights for rows of f32, as the kernels take them.
pub(super) struct DequantizedRight {
    /// How they are stored; buffer parameters are filled in when there are arguments.
    pub format: gemm::Dequantized,
    /// Packed weights.
    pub weights: View,
    /// What columns have, packed.
    pub columns: View,
}

/// The right operand of a product.
pub(super) enum RightOperand {
    /// Floats.
    Dense(Source),
    /// Weights of few bits for rows of f32.
    Dequantized(DequantizedRight),
    /// Weights of few bits for rows of bytes.
    Quantized(Box<QuantizedRight>),
}

/// A matrix product found in a group, on the domain `[batch…, m, n]` of its result.
pub(super) struct Product<'a> {
    body: &'a Graph,
    node: &'a NodeData,
    pub domain: Shape,
    /// The left operand; f32 also if it is quantized while it is packed.
    pub left: View,
    pub k: Dim,
    /// What the kernel computes, in words.
    pub label: &'a str,
}

impl Scheduler {
    /// Schedules a product and the elementwise operators behind it.
    pub(super) fn contraction(&mut self, body: &Graph, sources: &[Source], outputs: &[View], label: &str, loc: &Loc) -> Result<(), Unfit> {
        let mut products = body.nodes().filter(|(_, n)| is_product(&n.op));
        let (Some((_, node)), None) = (products.next(), products.next()) else { return Err(Unfit) };
        let source = |v: Value| match &body.value(v).def {
            Def::Input(n) => Ok(sources[*n as usize].clone()),
            Def::Const(t) => Ok(Source::Const(t.clone())),
            Def::Result(..) => Err(Unfit),
        };
        let left = source(node.inputs[0])?;
        let domain = body.ty(node.outputs[0]).shape.clone();
        let full = |s: &Shape| s.rank() <= domain.rank() && s.0.iter().rev().zip(domain.0.iter().rev()).all(|(a, b)| a == b);
        for (_, n) in body.nodes() {
            let elementwise = n.op.traits().elementwise;
            // A product of lower rank than what follows would be repeated: that is another kernel.
            if n.outputs[0] != node.outputs[0] && (!elementwise || body.ty(n.outputs[0]).rank() > domain.rank()) {
                return Err(Unfit);
            }
        }
        if body.outputs().iter().any(|o| !full(&body.ty(o.value).shape) || body.ty(o.value).rank() != domain.rank()) {
            return Err(Unfit);
        }
        let mut left = self.view(&left);
        let k = left.shape.0.last_mut().expect("a matrix");
        // A check says that both operands have the same one.
        if k.as_const().is_none() {
            let right = &body.ty(node.inputs[1]).shape;
            k.clone_from(&right[right.rank() - 2]);
        }
        let k = k.clone();
        let mut p = Product { body, node, domain, left, k, label };
        if let Op::QuantizedMatmul(op) = &node.op {
            let operands: Vec<Source> = node.inputs.iter().map(|&v| source(v)).collect::<Result<_, _>>()?;
            let mut right = self.quantized_operand(op, &operands)?;
            if let RightOperand::Quantized(q) = &mut right {
                if let Some(group) = q.padded {
                    p.left = self.padded_groups(&p.left, group, loc);
                    p.k = p.left.shape[p.left.shape.rank() - 1].clone();
                } else if let Some((rows, how)) = self.unquantized(&p.left, &q.row_scale, q.row_zero.as_ref()) {
                    p.left = rows;
                    q.rows = how;
                }
            }
            return self.gemm(&p, right, sources, outputs, loc);
        }
        let right = source(node.inputs[1])?;
        let rows = &p.domain[p.domain.rank() - 2];
        let few = rows.as_const().is_some_and(|m| m <= cost::few_rows()) && matches!(right, Source::View(_));
        let elem = p.left.elem;
        let tiles = elem == Elem::F32 || is_half(elem) && !p.k.is(0);
        if !tiles || few {
            let right = self.view(&right);
            return self.product_nest(&p, &right, sources, outputs, loc);
        }
        p.left = self.widened(&p.left, loc);
        self.gemm(&p, RightOperand::Dense(right), sources, outputs, loc)
    }

    fn gemm(&mut self, p: &Product, right: RightOperand, sources: &[Source], outputs: &[View], loc: &Loc) -> Result<(), Unfit> {
        let rank = p.domain.rank();
        let every_matrix = |weights: &View| Packed { view: weights.clone(), strides: vec![Dim::from(0); rank - 2] };
        let packed = match &right {
            RightOperand::Dense(right) => self.packed(right, &p.domain.0[..rank - 2], loc),
            RightOperand::Dequantized(DequantizedRight { weights, .. }) => every_matrix(weights),
            RightOperand::Quantized(q) => every_matrix(&q.weights),
        };
        let (dequantized, quantized) = match right {
            RightOperand::Dense(_) => (None, None),
            RightOperand::Dequantized(d) => (Some(d), None),
            RightOperand::Quantized(q) => (None, Some(q)),
        };
        let views = self.epilogue_views(p, sources);
        // Strides per axis of the domain, of everything that is touched.
        let a: Vec<Dim> =
            (0..rank - 2).map(|i| stride(&p.left, &p.domain, i)).chain([p.left.strides[p.left.shape.rank() - 2].clone()]).collect();
        let b: Vec<Dim> = packed.strides.iter().cloned().chain([Dim::from(0)]).collect();
        let mut touched: Vec<Vec<Dim>> = vec![a.clone(), b.clone()];
        let of_rows = |v: &View| (0..rank - 1).map(|i| v.stride_in(&p.domain, i)).collect();
        // Of rows that packing finds scales and zero points for, none are read.
        let given = quantized.as_ref().filter(|q| !matches!(q.rows, LeftRows::OfRow { .. }));
        let scales_in_memory = given.filter(|q| !is_number(&q.row_scale)).map(|q| self.view(&q.row_scale));
        touched.extend(scales_in_memory.iter().chain(given.iter().flat_map(|q| &q.row_zero)).map(of_rows));
        touched
            .extend(outputs.iter().chain(views.iter().map(|(_, v)| v)).map(|v| (0..rank - 1).map(|i| v.stride_in(&p.domain, i)).collect()));
        // Batch and row axes that are one axis in all memory become one loop; the last is the rows.
        let mut loops: Vec<(usize, Dim)> = vec![];
        for i in 0..rank - 1 {
            let size = &p.domain[i];
            if size.is(1) && i + 2 != rank {
                continue;
            }
            match loops.last_mut() {
                Some((axis, extent)) if touched.iter().all(|s| s[*axis] == s[i].clone() * size.clone()) => {
                    *extent = extent.clone() * size.clone();
                    *axis = i;
                }
                _ => loops.push((i, size.clone())),
            }
        }
        let (row_axis, m) = loops.pop().expect("the row axis is always a loop");
        let mut args = Args::default();
        let (axes, sizes): (Vec<usize>, Vec<Dim>) = loops.iter().cloned().unzip();
        let n = p.domain[rank - 1].clone();
        let dense = quantized.is_none() && dequantized.is_none();
        let in_place = if dense { self.rows_in_place(p, &a, &axes, (row_axis, &m)) } else { None };
        let left_pitch = in_place.as_ref().map(|(_, pitch)| *pitch);
        let packed_left = match in_place {
            Some((rows, _)) => PackedLeft { packed: rows, sums: None, scales: None, row_zeros: None },
            None => self.packed_left(p, &a, (&axes, &sizes), (row_axis, &m), quantized.as_deref(), loc),
        };
        let left = Operand {
            buffer: args.buffer(&packed_left.packed.view, Use::Read),
            batch: packed_left.packed.strides.iter().map(|s| args.extent(s)).collect(),
        };
        let right = Operand { buffer: args.buffer(&packed.view, Use::Read), batch: axes.iter().map(|&i| args.extent(&b[i])).collect() };
        let loop_axes: Vec<usize> = axes.iter().copied().chain([row_axis, rank - 1]).collect();
        let sites = self.sites(p.body);
        let mut epilogue = Epilogue::new(p, sources, &views, &sites, &loop_axes);
        let elem = if dense { p.body.ty(p.node.outputs[0]).elem } else { Elem::F32 };
        let mut dot = epilogue.exprs.push(Expr::Reduced(cranelift_entity::EntityRef::new(0)), elem);
        let mut format = Format::Floats(packed.view.elem);
        if let Some(d) = dequantized {
            format = Format::Dequantized(gemm::Dequantized { columns: args.buffer(&d.columns, Use::Read), ..d.format });
        }
        if let Some(q) = quantized {
            let found =
                packed_left.scales.map(|Packed { view, strides }| (view, strides.into_iter().chain([1, 0].map(Dim::from)).collect()));
            let scales = found.or_else(|| scales_in_memory.map(|view| (view.clone(), epilogue.strides(&view))));
            let scale = match (scales, &q.row_scale) {
                (Some((scales, strides)), _) => epilogue.exprs.push(Expr::Load(args.access(&scales, Use::Read, &strides)), Elem::F32),
                (None, Source::Const(scale)) => epilogue.exprs.splat(scale).expect("one number"),
                (None, Source::View(_)) => unreachable!("scales are found, in memory, or one number"),
            };
            if epilogue.exprs.list[scale].0 != Expr::Float(1f64.to_bits()) {
                dot = epilogue.exprs.push(Expr::Prim(Prim::Mul, vec![dot, scale]), Elem::F32);
            }
            let sums = packed_left.sums.expect("rows of bytes have sums");
            let (columns, sums) = (args.buffer(&q.columns, Use::Read), args.buffer(&sums, Use::Read));
            let row_zeros = packed_left.row_zeros.map_or(q.format.row_zeros, |z| RowZeros::Each(args.buffer(&z, Use::Read)));
            format = Format::Quantized(gemm::Quantized { columns, sums, row_zeros, ..q.format });
        }
        let effects = epilogue.effects(dot, outputs, &mut args);
        let batch: Dim = loops.iter().map(|l| l.1.clone()).product();
        let row_groups = gemm::row_groups(&m, format.integers());
        let tasks = batch * row_groups.clone() * n.ceil_div(gemm::CHUNK as i64);
        let work = p.domain.elements() * p.k.clone();
        let body = Gemm {
            batch: args.extents(loops.iter().map(|l| &l.1)),
            m: args.extent(&m),
            row_groups: args.extent(&row_groups),
            n: args.extent(&n),
            k: args.extent(&p.k),
            format,
            left,
            left_pitch,
            right,
            exprs: epilogue.exprs.list,
            effects,
        };
        self.launch(Body::Gemm(body), args, tasks, work, p.label, loc);
        Ok(())
    }

    /// Memory that the epilogue reads.
    fn epilogue_views(&mut self, p: &Product, sources: &[Source]) -> Vec<(Value, View)> {
        let mut views: Vec<(Value, View)> = vec![];
        for (_, node) in p.body.nodes().filter(|(_, n)| n.outputs[0] != p.node.outputs[0]) {
            for &v in &node.inputs {
                let source = match &p.body.value(v).def {
                    Def::Input(n) => sources[*n as usize].clone(),
                    Def::Const(t) => Source::Const(t.clone()),
                    Def::Result(..) => continue,
                };
                if !is_number(&source) && !views.iter().any(|(w, _)| *w == v) {
                    views.push((v, self.view(&source)));
                }
            }
        }
        views
    }

    /// The right operand in panels: constants are packed now, others by a kernel at run time.
    pub(super) fn packed(&mut self, right: &Source, batch: &[Dim], loc: &Loc) -> Packed {
        let (rank, shape) = match right {
            Source::Const(t) => (t.rank(), t.ty().shape),
            Source::View(v) => (v.shape.rank(), v.shape.clone()),
        };
        let (k, n) = (shape[rank - 2].clone(), shape[rank - 1].clone());
        let matrix = n.ceil_div(PANEL as i64) * Dim::from(PANEL) * k;
        // Batch axes of its own, of size 1 where matrices repeat.
        let own: Vec<Dim> = match right {
            Source::Const(_) => shape.0[..rank - 2].to_vec(),
            Source::View(v) => (0..rank - 2).map(|i| if v.strides[i].is(0) { Dim::from(1) } else { shape[i].clone() }).collect(),
        };
        let mut full = Shape(own.clone());
        full.0.push(matrix);
        let own_strides = full.strides();
        let view = match right {
            Source::Const(t) => {
                let buffer = self.weight(t.content_hash(), Layout::Panels, || pack_constant(t));
                View::contiguous(buffer, t.elem(), full.clone())
            }
            Source::View(v) => {
                let v = self.widened(v, loc);
                self.pack_at_run_time(&v, &full, loc)
            }
        };
        let missing = batch.len() - own.len();
        let strides = (0..batch.len())
            .map(|i| match i.checked_sub(missing) {
                Some(j) if !own[j].is(1) => own_strides[j].clone(),
                _ => Dim::from(0),
            })
            .collect();
        Packed { view, strides }
    }

    /// Copies matrices into panels. `full` is the batch shape of the result and the size of a matrix.
    fn pack_at_run_time(&mut self, v: &View, full: &Shape, loc: &Loc) -> View {
        let to = self.temporary(&Type::new(Elem::F32, full.clone()));
        let rank = v.shape.rank();
        let (k, n) = (&v.shape[rank - 2], &v.shape[rank - 1]);
        let batch: Vec<usize> = (0..rank - 2).filter(|&i| !full[i].is(1)).collect();
        let mut args = Args::default();
        // Panels are tiles of the transpose.
        let body = Pack {
            batch: args.extents(batch.iter().map(|&i| &full[i])),
            m: args.extent(n),
            row_groups: Extent::Const(1),
            k: args.extent(k),
            tile: PANEL,
            from: Rows {
                buffer: args.buffer(v, Use::Read),
                batch: batch.iter().map(|&i| args.extent(&v.strides[i])).collect(),
                row: args.extent(&v.strides[rank - 1]),
                k: args.extent(&v.strides[rank - 2]),
            },
            made_by: None,
            to: args.buffer(&to, Use::Write),
            form: Form::Floats,
            pitch: None,
        };
        let tasks = batch.iter().map(|&i| full[i].clone()).product::<Dim>() * n.ceil_div(PANEL as i64);
        self.launch(Body::Pack(body), args, tasks, full.elements(), "pack", loc);
        to
    }

    /// A product as a nest: for types that have no tiles, and for few rows.
    fn product_nest(&mut self, p: &Product, right: &View, sources: &[Source], outputs: &[View], loc: &Loc) -> Result<(), Unfit> {
        let rank = p.domain.rank();
        let views = self.epilogue_views(p, sources);
        let mut args = Args::default();
        let axes: Vec<usize> = (0..rank).collect();
        let (lr, rr) = (p.left.shape.rank(), right.shape.rank());
        let zero = Dim::from(0);
        let mut a: Vec<Dim> = (0..rank - 2).map(|i| stride(&p.left, &p.domain, i)).collect();
        a.extend([p.left.strides[lr - 2].clone(), zero.clone(), p.left.strides[lr - 1].clone()]);
        let mut b: Vec<Dim> = (0..rank - 2).map(|i| stride(right, &p.domain, i)).collect();
        b.extend([zero, right.strides[rr - 1].clone(), right.strides[rr - 2].clone()]);
        // Rows over k are vectors if k is contiguous on both sides; else columns are.
        let along_k = a[rank].is(1) && b[rank].is(1);
        let elem = p.left.elem;
        let sites = self.sites(p.body);
        let mut epilogue = Epilogue::new(p, sources, &views, &sites, &axes);
        let x = Expr::Load(args.access(&p.left, Use::Read, &a));
        let y = Expr::Load(args.access(right, Use::Read, &b));
        let (x, y) = (epilogue.exprs.push(x, elem), epilogue.exprs.push(y, elem));
        let product = epilogue.exprs.push(Expr::Prim(Prim::Mul, vec![x, y]), elem);
        let mut nest = Nest::default();
        let r = nest.reductions.push((ReduceOp::Sum, elem));
        let dot = epilogue.exprs.push(Expr::Reduced(r), elem);
        let effects = epilogue.effects(dot, outputs, &mut args);
        nest.exprs = epilogue.exprs.list;
        // The epilogue's accesses know nothing of the loop over k.
        let widen = |access: &mut crate::kernel::nest::Access| access.strides.resize(rank + 1, crate::kernel::Extent::Const(0));
        for (_, (e, _)) in nest.exprs.iter_mut() {
            if let Expr::Load(access) = e {
                widen(access);
            }
        }
        let effects = effects
            .into_iter()
            .map(|e| match e {
                Effect::Store(mut access, x) => {
                    widen(&mut access);
                    Effect::Store(access, x)
                }
                e @ Effect::Reduce(..) => e,
            })
            .collect();
        nest.stages = vec![Stage { once: false, effects: vec![Effect::Reduce(r, product)] }, Stage { once: true, effects }];
        let kept = if along_k { rank } else { rank - 1 };
        nest.tasks = args.extents(&p.domain.0[..kept]);
        nest.columns = (!along_k).then(|| args.extent(&p.domain[rank - 1]));
        nest.inner = vec![args.extent(&p.k)];
        let tasks = p.domain.0[..kept].iter().cloned().product();
        let work = p.domain.elements() * p.k.clone();
        self.launch(Body::Nest(nest), args, tasks, work, p.label, loc);
        Ok(())
    }
}

/// Whether all elements are a number that the compiler knows.
fn is_number(source: &Source) -> bool {
    matches!(source, Source::Const(t) if Exprs::default().splat(t).is_some())
}

/// Whether an operator is a matrix product.
pub(super) fn is_product(op: &Op) -> bool {
    matches!(op, Op::Matmul(_) | Op::QuantizedMatmul(_))
}

/// The left operand of the f32 product that a node is, or has in its body.
pub(super) fn left_of_product(node: &NodeData) -> Option<Value> {
    match &node.op {
        Op::Matmul(_) => Some(node.inputs[0]),
        Op::Fused(op) => {
            let body = &op.body.0;
            let left = body.nodes().find(|(_, n)| matches!(n.op, Op::Matmul(_)))?.1.inputs[0];
            let at = body.inputs().iter().position(|&v| v == left)?;
            Some(node.inputs[at])
        }
        _ => None,
    }
}

/// The stride of a product's operand along a batch axis of the result.
fn stride(operand: &View, domain: &Shape, axis: usize) -> Dim {
    match (axis + operand.shape.rank()).checked_sub(domain.rank()) {
        Some(own) if !operand.shape[own].is(1) => operand.strides[own].clone(),
        _ => Dim::from(0),
    }
}

fn pack_constant(t: &Tensor) -> bytes::Bytes {
    match t.elem() {
        Elem::F16 => pack_values::<half::f16>(t),
        Elem::Bf16 => pack_values::<half::bf16>(t),
        _ => pack_values::<f32>(t),
    }
}

fn pack_values<T: Element + Default>(t: &Tensor) -> bytes::Bytes {
    let rank = t.rank();
    let (k, n) = (t.sizes()[rank - 2], t.sizes()[rank - 1]);
    let values = t.values::<T>();
    let mut out: Vec<T> = Vec::with_capacity(t.len());
    for i in 0..t.sizes()[..rank - 2].iter().product() {
        let matrix = &values[i * k * n..(i + 1) * k * n];
        out.extend(gemm::pack(k, n, |r, c| matrix[r * n + c]));
    }
    let sizes = [out.len()];
    Tensor::of(&sizes, out).bytes().clone()
}

/// The operators behind a product, as expressions over its loops.
struct Epilogue<'a> {
    p: &'a Product<'a>,
    sources: &'a [Source],
    views: &'a [(Value, View)],
    sites: &'a Sites,
    /// The axis of the domain that each loop runs over.
    loop_axes: &'a [usize],
    exprs: Exprs,
    values: SecondaryMap<Value, Option<ExprId>>,
}

impl<'a> Epilogue<'a> {
    fn new(p: &'a Product, sources: &'a [Source], views: &'a [(Value, View)], sites: &'a Sites, loop_axes: &'a [usize]) -> Epilogue<'a> {
        Epilogue { p, sources, views, sites, loop_axes, exprs: Exprs::default(), values: SecondaryMap::new() }
    }

    fn effects(&mut self, dot: ExprId, outputs: &[View], args: &mut Args) -> Vec<Effect> {
        self.values[self.p.node.outputs[0]] = Some(dot);
        let body = self.p.body;
        for (_, node) in body.nodes().filter(|(_, n)| n.outputs[0] != self.p.node.outputs[0]) {
            let operands: Vec<ExprId> = node.inputs.iter().map(|&v| self.value(v, args)).collect();
            self.values[node.outputs[0]] = Some(match &self.sites[node.outputs[0]] {
                Some(site) => self.exprs.codes(operands[0], site.below, |word| args.element(&site.view, word, self.loop_axes.len())),
                None => self.exprs.apply(&node.op, &operands),
            });
        }
        let stored: Vec<(Value, &View)> = body.outputs().iter().map(|o| o.value).zip(outputs).collect();
        stored
            .into_iter()
            .map(|(v, view)| {
                let x = self.value(v, args);
                let strides = self.strides(view);
                Effect::Store(args.access(view, Use::Write, &strides), x)
            })
            .collect()
    }

    fn strides(&self, view: &View) -> Vec<Dim> {
        self.loop_axes.iter().map(|&a| view.stride_in(&self.p.domain, a)).collect()
    }

    fn value(&mut self, v: Value, args: &mut Args) -> ExprId {
        if let Some(x) = self.values[v] {
            return x;
        }
        let known = match &self.p.body.value(v).def {
            Def::Const(t) => Some(t),
            Def::Input(n) => match &self.sources[*n as usize] {
                Source::Const(t) => Some(t),
                Source::View(_) => None,
            },
            Def::Result(..) => unreachable!("nodes come in order"),
        };
        let x = match known.and_then(|t| self.exprs.splat(t)) {
            Some(x) => x,
            None => {
                let view = &self.views.iter().find(|(w, _)| *w == v).expect("leaves have views").1;
                let access = args.access(view, Use::Read, &self.strides(view));
                self.exprs.push(Expr::Load(access), view.elem)
            }
        };
        self.values[v] = Some(x);
        x
    }
}
