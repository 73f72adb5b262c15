//! Taps: results that say what a value of a graph is like.

use crate::table::PassError;
use std::borrow::Cow;
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Graph, Loc, Value};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Cast, Dims, Div, Expand, Gather, Matmul, Mul, Op, Reduce, Reshape, Select, Transpose};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape};

/// A value to observe, and the axis of it along which its channels are, whose size is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tap {
    /// A value of floats.
    pub value: Value,
    /// The axis.
    pub axis: usize,
}

impl Tap {
    /// The number of channels.
    ///
    /// # Panics
    /// When the size of the axis is not known.
    pub fn channels(&self, graph: &Graph) -> usize {
        graph.ty(self.value).shape[self.axis].as_const().expect("channels of a known number") as usize
    }
}

/// A graph whose results are observations.
pub struct Taps {
    /// It has the inputs of the graph that it was made from.
    pub graph: Graph,
    /// Which results belong to which tap.
    pub layout: Layout,
}

/// What the results of a tapped graph are: for every tap in order, those of [`Part`].
pub struct Layout {
    taps: usize,
    masked: Vec<bool>,
}

/// What one evaluation says of a value.
pub struct Part<'a> {
    /// Rows that count.
    pub count: u64,
    /// Of each channel: the smallest number,
    pub min: Cow<'a, [f32]>,
    /// the largest,
    pub max: Cow<'a, [f32]>,
    /// the sum,
    pub sum: Cow<'a, [f32]>,
    /// and the sum of squares.
    pub sum_of_squares: Cow<'a, [f32]>,
    /// Some rows, `[rows, channels]`.
    pub rows: Cow<'a, [f32]>,
    /// Which of them count.
    pub valid: Vec<bool>,
}

impl Layout {
    /// The parts of the results of a tapped graph, tap by tap.
    pub fn parts<'a>(&'a self, results: &'a [Tensor]) -> impl Iterator<Item = Part<'a>> {
        let mut rest = results;
        (0..self.taps).map(move |i| {
            let (own, others) = rest.split_at(6 + usize::from(self.masked[i]));
            rest = others;
            let channels = own[1].len().max(1);
            let valid = match own.get(6) {
                Some(valid) => valid.iter().map(|s| s.to_i128() != 0).collect(),
                None => vec![true; own[5].len() / channels],
            };
            Part {
                count: own[0].get(0).to_i128().max(0) as u64,
                min: own[1].values(),
                max: own[2].values(),
                sum: own[3].values(),
                sum_of_squares: own[4].values(),
                rows: own[5].values(),
                valid,
            }
        })
    }
}

/// A copy of a graph whose results are what `taps` observe. Positions where the input `mask` is 0 do not count, in values whose
/// leading axes are those of the mask. Of each value `rows` rows are results as well, at equal distances from the first on.
///
/// # Errors
/// Only by a defect of this function.
pub fn tapped(graph: &Graph, taps: &[Tap], mask: Option<Value>, rows: usize) -> Result<Taps, PassError> {
    let mut g = graph.clone();
    g.clear_outputs();
    let mut masked = vec![];
    for (i, tap) in taps.iter().enumerate() {
        let loc = graph.producer(tap.value).map_or_else(Loc::default, |n| n.loc.clone());
        let mut b = Builder { g: &mut g, loc };
        let results = b.tap(tap, mask, rows)?;
        masked.push(results.len() > 6);
        for (what, v) in ["count", "min", "max", "sum", "squares", "rows", "valid"].iter().zip(results) {
            g.add_output(&format!("{i}.{what}"), v);
        }
    }
    Ok(Taps { graph: g, layout: Layout { taps: taps.len(), masked } })
}

/// A copy of a graph that computes second moments: for each of `taps` in order, how many rows count, `[1]`, and the sum of `x xᵀ` over
/// them, `[channels, channels]` in f32. Positions where the input `mask` is 0 do not count, as in [`tapped`]. Nothing else is computed.
///
/// # Errors
/// Only by a defect of this function.
pub fn tapped_moments(graph: &Graph, taps: &[Tap], mask: Option<Value>) -> Result<Graph, PassError> {
    let mut g = graph.clone();
    g.clear_outputs();
    for (i, tap) in taps.iter().enumerate() {
        let loc = graph.producer(tap.value).map_or_else(Loc::default, |n| n.loc.clone());
        let results = Builder { g: &mut g, loc }.moments(tap, mask)?;
        for (what, v) in ["count", "moments"].iter().zip(results) {
            g.add_output(&format!("{i}.{what}"), v);
        }
    }
    Ok(g)
}

struct Builder<'g> {
    g: &'g mut Graph,
    loc: Loc,
}

impl Builder<'_> {
    fn add(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Result<Value, PassError> {
        let op: Op = op.into();
        self.g.add(op, inputs, &self.loc).map_err(|e| PassError::new(e, &self.loc))
    }

    fn reshape(&mut self, v: Value, shape: Shape) -> Result<Value, PassError> {
        if self.g.ty(v).shape == shape { Ok(v) } else { self.add(Reshape { shape }, &[v]) }
    }

    fn number(&mut self, x: f64) -> Value {
        self.g.add_const(Tensor::scalar(Elem::F32, Scalar::Float(x)), None)
    }

    fn tap(&mut self, tap: &Tap, mask: Option<Value>, rows: usize) -> Result<Vec<Value>, PassError> {
        let (x, leading, count) = self.matrix(tap)?;
        let channels = self.g.ty(x).shape[1].clone();
        let valid = self.valid(mask, &leading, &count)?;
        let [zero, low, high] = [0.0, f64::NEG_INFINITY, f64::INFINITY].map(|x| self.number(x));
        let reduced = |b: &mut Self, kind, x: Value, instead: Value| {
            let x = b.shown(x, valid, &count, instead)?;
            b.add(Reduce { kind, axes: vec![0], keep: false }, &[x])
        };
        let min = reduced(self, ReduceKind::Min, x, high)?;
        let max = reduced(self, ReduceKind::Max, x, low)?;
        let sum = reduced(self, ReduceKind::Sum, x, zero)?;
        let squares = self.add(Mul {}, &[x, x])?;
        let sum_of_squares = reduced(self, ReduceKind::Sum, squares, zero)?;
        let counted = self.counted(valid, &count)?;
        // Row j of r is number j * count / r.
        let positions = self.g.add_const(Tensor::of(&[rows], (0..rows as i64).collect()), None);
        let all = self.add(Dims { values: vec![count.clone()], shape: vec![1] }, &[])?;
        let scaled = self.add(Mul {}, &[positions, all])?;
        let parts = self.g.add_const(Tensor::of(&[1], vec![rows as i64]), None);
        let indices = self.add(Div {}, &[scaled, parts])?;
        let some = self.add(Gather { axis: 0 }, &[x, indices])?;
        let some = self.reshape(some, Shape(vec![rows.into(), channels]))?;
        let mut results = vec![counted, min, max, sum, sum_of_squares, some];
        if let Some(valid) = valid {
            results.push(self.add(Gather { axis: 0 }, &[valid, indices])?);
        }
        Ok(results)
    }

    /// How many rows count, and the sum of `x xᵀ` over them.
    fn moments(&mut self, tap: &Tap, mask: Option<Value>) -> Result<[Value; 2], PassError> {
        let (x, leading, count) = self.matrix(tap)?;
        let valid = self.valid(mask, &leading, &count)?;
        let zero = self.number(0.0);
        let x = self.shown(x, valid, &count, zero)?;
        let columns = self.add(Transpose { perm: vec![1, 0] }, &[x])?;
        Ok([self.counted(valid, &count)?, self.add(Matmul {}, &[columns, x])?])
    }

    /// The rows `[count, channels]` with a number `instead` of those that do not count.
    fn shown(&mut self, x: Value, valid: Option<Value>, count: &Dim, instead: Value) -> Result<Value, PassError> {
        let Some(valid) = valid else { return Ok(x) };
        let column = self.reshape(valid, Shape(vec![count.clone(), 1.into()]))?;
        self.add(Select {}, &[column, x, instead])
    }

    /// How many rows count, `[1]`.
    fn counted(&mut self, valid: Option<Value>, count: &Dim) -> Result<Value, PassError> {
        match valid {
            Some(valid) => {
                let ones = self.add(Cast { to: Elem::I64 }, &[valid])?;
                self.add(Reduce { kind: ReduceKind::Sum, axes: vec![0], keep: true }, &[ones])
            }
            None => self.add(Dims { values: vec![count.clone()], shape: vec![1] }, &[]),
        }
    }

    /// The value in f32 as `[rows, channels]`, the sizes of the axes that rows come from, and their number.
    fn matrix(&mut self, tap: &Tap) -> Result<(Value, Vec<Dim>, Dim), PassError> {
        let mut x = tap.value;
        if self.g.ty(x).elem != Elem::F32 {
            x = self.add(Cast { to: Elem::F32 }, &[x])?;
        }
        let rank = self.g.ty(x).rank();
        if tap.axis + 1 != rank {
            let perm = (0..rank).filter(|&a| a != tap.axis).chain([tap.axis]).collect();
            x = self.add(Transpose { perm }, &[x])?;
        }
        let mut leading = self.g.ty(x).shape.0.clone();
        let channels = leading.pop().expect("an axis of channels");
        let count: Dim = leading.iter().cloned().product();
        let x = self.reshape(x, Shape(vec![count.clone(), channels]))?;
        Ok((x, leading, count))
    }

    /// Which rows count, `[rows]`, if there is a mask and some of the leading axes are together its axes; `None` if all do.
    fn valid(&mut self, mask: Option<Value>, leading: &[Dim], count: &Dim) -> Result<Option<Value>, PassError> {
        let Some(mask) = mask else { return Ok(None) };
        let positions = self.g.ty(mask).shape.elements();
        let prefix = |n: &usize| leading[..*n].iter().cloned().product::<Dim>() == positions;
        let Some(n) = (1..=leading.len()).find(prefix) else { return Ok(None) };
        let mut shape = leading[..n].to_vec();
        shape.resize(leading.len(), 1.into());
        let mask = self.add(Cast { to: Elem::Bool }, &[mask])?;
        let mask = self.reshape(mask, Shape(shape))?;
        let all = self.add(Expand { shape: Shape(leading.to_vec()) }, &[mask])?;
        Ok(Some(self.reshape(all, Shape(vec![count.clone()]))?))
    }
}
