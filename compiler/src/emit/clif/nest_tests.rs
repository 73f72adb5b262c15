//! Whole nests: those that models need, and random ones.

use super::reference;
use super::testing::{Compiled, foreign_cpus, host_cpus, machine_code};
use crate::kernel::nest::{Access, Effect, Expr, ExprId, Nest, ReduceOp, Reduction, Stage};
use crate::kernel::{Body, BufferParam, Extent, Kernel, Use};
use proptest::prelude::*;
use tfc_ir::scalar::Prim;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;

/// A nest under construction with its buffers.
#[derive(Default)]
struct Build {
    nest: Nest,
    params: Vec<BufferParam>,
    data: Vec<Vec<u8>>,
    ints: Vec<i64>,
}

impl Build {
    fn input(&mut self, t: &Tensor) -> u32 {
        self.params.push(BufferParam { elem: t.elem(), usage: Use::Read });
        self.data.push(t.bytes().to_vec());
        self.data.len() as u32 - 1
    }

    fn output(&mut self, elem: Elem, len: usize) -> u32 {
        self.params.push(BufferParam { elem, usage: Use::Write });
        self.data.push(vec![0; elem.bytes(len)]);
        self.data.len() as u32 - 1
    }

    fn param(&mut self, n: i64) -> Extent {
        self.ints.push(n);
        Extent::Param(self.ints.len() as u32 - 1)
    }

    fn expr(&mut self, e: Expr, elem: Elem) -> ExprId {
        self.nest.exprs.push((e, elem))
    }

    fn load(&mut self, buffer: u32, strides: &[i64]) -> ExprId {
        let elem = self.params[buffer as usize].elem;
        self.expr(Expr::Load(access(buffer, strides)), elem)
    }

    fn f32(&mut self, x: f64) -> ExprId {
        self.expr(Expr::Float(x.to_bits()), Elem::F32)
    }

    fn prim(&mut self, p: Prim, args: &[ExprId]) -> ExprId {
        let of = |e: ExprId| self.nest.exprs[e].1;
        let elem = match p {
            Prim::Eq | Prim::Lt | Prim::Le => Elem::Bool,
            Prim::Select => of(args[1]),
            _ => of(args[0]),
        };
        self.expr(Expr::Prim(p, args.to_vec()), elem)
    }

    fn reduction(&mut self, op: ReduceOp, elem: Elem) -> (Reduction, ExprId) {
        let r = self.nest.reductions.push((op, elem));
        (r, self.expr(Expr::Reduced(r), elem))
    }

    fn stage(&mut self, once: bool, effects: Vec<Effect>) {
        self.nest.stages.push(Stage { once, effects });
    }

    /// Runs it on every CPU of the host, split at every place among its tasks and whole, and compares all
    /// buffers with the interpreter's by `same`.
    fn check(self, same: impl Fn(Elem, f64, f64) -> bool) {
        let kernel = Kernel { buffers: self.params.clone(), ints: self.ints.len() as u32, body: Body::Nest(self.nest.clone()) };
        let mut expected = self.data.clone();
        let valid = reference::run(&self.nest, &self.params, &mut expected, &self.ints);
        let tasks: i64 = self
            .nest
            .tasks
            .iter()
            .map(|e| match e {
                Extent::Const(n) => *n,
                Extent::Param(p) => self.ints[*p as usize],
            })
            .product();
        for cpu in foreign_cpus() {
            machine_code(&kernel, &cpu);
        }
        for cpu in host_cpus() {
            machine_code(&kernel, &cpu);
            let compiled = Compiled::new(&kernel, &cpu);
            for cut in [0, tasks / 2, tasks / 3] {
                let mut data = self.data.clone();
                let first = compiled.run(&mut data, &self.ints, 0, cut);
                let second = compiled.run(&mut data, &self.ints, cut, tasks);
                assert_eq!(first == 0 && second == 0, valid, "{} {:?}", cpu.name, self.nest);
                if !valid {
                    continue;
                }
                for (b, (got, expected)) in data.iter().zip(&expected).enumerate() {
                    let elem = self.params[b].elem;
                    let n = got.len() * 8 / elem.bits() as usize;
                    let tensor = |bytes: &[u8]| Tensor::new(elem, vec![n], bytes.to_vec().into()).unwrap();
                    for (i, (x, y)) in tensor(got).iter().zip(tensor(expected).iter()).enumerate() {
                        let equal = match (x, y) {
                            (Scalar::Float(x), Scalar::Float(y)) => same(elem, x, y),
                            _ => x == y,
                        };
                        assert!(equal, "{} buffer {b} at {i}: {x:?} for {y:?} in {:?} {:?}", cpu.name, self.nest, self.ints);
                    }
                }
            }
        }
    }
}

fn access(buffer: u32, strides: &[i64]) -> Access {
    Access { buffer, offset: Extent::Const(0), strides: strides.iter().map(|&s| Extent::Const(s)).collect(), dynamic: vec![] }
}

fn wave(n: usize) -> Tensor {
    Tensor::build(Elem::F32, &[n], |i| Scalar::Float((i as f64 * 0.7).sin() * 3.0))
}

fn near(_: Elem, x: f64, y: f64) -> bool {
    (x.is_nan() && y.is_nan()) || x == y || (x - y).abs() <= 2e-6 * (1.0 + y.abs())
}

/// Rows of `n` of `softmax`, the length a constant or a parameter.
fn softmax(rows: i64, n: i64, dynamic: bool) -> Build {
    let mut b = Build::default();
    let x = b.input(&wave((rows * n) as usize));
    let y = b.output(Elem::F32, (rows * n) as usize);
    let tasks = b.param(rows);
    b.nest.tasks = vec![tasks];
    b.nest.inner = vec![if dynamic { b.param(n) } else { Extent::Const(n) }];
    let load = b.load(x, &[n, 1]);
    let (max, max_value) = b.reduction(ReduceOp::Max, Elem::F32);
    b.stage(false, vec![Effect::Reduce(max, load)]);
    let d = b.prim(Prim::Sub, &[load, max_value]);
    let e = b.prim(Prim::Exp, &[d]);
    let (sum, sum_value) = b.reduction(ReduceOp::Sum, Elem::F32);
    b.stage(false, vec![Effect::Store(access(y, &[n, 1]), e), Effect::Reduce(sum, e)]);
    let parked = b.load(y, &[n, 1]);
    let q = b.prim(Prim::Div, &[parked, sum_value]);
    b.stage(false, vec![Effect::Store(access(y, &[n, 1]), q)]);
    b
}

/// Rows of a layer normalisation.
fn layer_norm(rows: i64, n: i64) -> Build {
    let mut b = Build::default();
    let x = b.input(&wave((rows * n) as usize));
    let gamma = b.input(&wave(n as usize));
    let y = b.output(Elem::F32, (rows * n) as usize);
    let tasks = b.param(rows);
    b.nest.tasks = vec![tasks];
    b.nest.inner = vec![Extent::Const(n)];
    let load = b.load(x, &[n, 1]);
    let scale = b.load(gamma, &[0, 1]);
    let (sum, sum_value) = b.reduction(ReduceOp::Sum, Elem::F32);
    b.stage(false, vec![Effect::Reduce(sum, load)]);
    let inverse = b.f32(1.0 / n as f64);
    let mean = b.prim(Prim::Mul, &[sum_value, inverse]);
    let d = b.prim(Prim::Sub, &[load, mean]);
    let square = b.prim(Prim::Mul, &[d, d]);
    let (squares, squares_value) = b.reduction(ReduceOp::Sum, Elem::F32);
    b.stage(false, vec![Effect::Reduce(squares, square)]);
    let variance = b.prim(Prim::Mul, &[squares_value, inverse]);
    let epsilon = b.f32(1e-5);
    let variance = b.prim(Prim::Add, &[variance, epsilon]);
    let root = b.prim(Prim::Sqrt, &[variance]);
    let normal = b.prim(Prim::Div, &[d, root]);
    let scaled = b.prim(Prim::Mul, &[normal, scale]);
    b.stage(false, vec![Effect::Store(access(y, &[n, 1]), scaled)]);
    b
}

/// `softmax` over the rows of matrices of `rows` by `n`, each column for itself; sizes are constants or parameters.
fn softmax_of_columns(matrices: i64, rows: i64, n: i64, dynamic: bool) -> Build {
    let mut b = Build::default();
    let len = (matrices * rows * n) as usize;
    let x = b.input(&wave(len));
    let y = b.output(Elem::F32, len);
    let [tasks, columns, inner] = [matrices, n, rows].map(|n| if dynamic { b.param(n) } else { Extent::Const(n) });
    (b.nest.tasks, b.nest.columns, b.nest.inner) = (vec![tasks], Some(columns), vec![inner]);
    let strides = match inner {
        Extent::Const(_) => [rows * n, 1, n].map(Extent::Const),
        Extent::Param(_) => [b.param(rows * n), Extent::Const(1), columns],
    };
    let at = |buffer| Access { buffer, offset: Extent::Const(0), strides: strides.to_vec(), dynamic: vec![] };
    let load = b.expr(Expr::Load(at(x)), Elem::F32);
    let (max, max_value) = b.reduction(ReduceOp::Max, Elem::F32);
    b.stage(false, vec![Effect::Reduce(max, load)]);
    let d = b.prim(Prim::Sub, &[load, max_value]);
    let e = b.prim(Prim::Exp, &[d]);
    let (sum, sum_value) = b.reduction(ReduceOp::Sum, Elem::F32);
    b.stage(false, vec![Effect::Store(at(y), e), Effect::Reduce(sum, e)]);
    let parked = b.expr(Expr::Load(at(y)), Elem::F32);
    let q = b.prim(Prim::Div, &[parked, sum_value]);
    b.stage(false, vec![Effect::Store(at(y), q)]);
    b
}

/// A depthwise convolution of `channels` images, with `taps` by `taps` weights for each, and what follows it.
fn depthwise(channels: i64, height: i64, width: i64, taps: i64) -> Build {
    let mut b = Build::default();
    let padded = (height + taps - 1, width + taps - 1);
    let x = b.input(&wave((channels * padded.0 * padded.1) as usize));
    let w = b.input(&wave((channels * taps * taps) as usize));
    let bias = b.input(&wave(channels as usize));
    let y = b.output(Elem::F32, (channels * height * width) as usize);
    b.nest.tasks = vec![Extent::Const(channels), Extent::Const(height)];
    (b.nest.columns, b.nest.inner) = (Some(Extent::Const(width)), vec![Extent::Const(taps); 2]);
    let image = b.load(x, &[padded.0 * padded.1, padded.1, 1, padded.1, 1]);
    let weight = b.load(w, &[taps * taps, 0, 0, taps, 1]);
    let bias = b.load(bias, &[1, 0, 0, 0, 0]);
    let product = b.prim(Prim::Mul, &[image, weight]);
    let (sum, value) = b.reduction(ReduceOp::Sum, Elem::F32);
    b.stage(false, vec![Effect::Reduce(sum, product)]);
    let shifted = b.prim(Prim::Add, &[value, bias]);
    let zero = b.f32(0.0);
    let relu = b.prim(Prim::Max, &[shifted, zero]);
    b.stage(true, vec![Effect::Store(access(y, &[height * width, width, 1, 0, 0]), relu)]);
    b
}

#[test]
fn columns_have_reductions_of_their_own() {
    for n in [1, 7, 8, 16, 17, 56, 64, 131] {
        for dynamic in [false, true] {
            softmax_of_columns(2, 5, n, dynamic).check(near);
        }
        // Taps that are written out, by rows, and not at all.
        for taps in [3, 9, 65] {
            // A product and a sum may be rounded at once: the error is one of the terms, which are up to 9, not of the sum.
            let bound = 9e-7 * (taps * taps) as f64;
            depthwise(3, 2, n, taps).check(|_, x, y| (x - y).abs() <= bound);
        }
    }
}

#[test]
fn softmax_rows() {
    for (rows, n, dynamic) in [(3, 37, true), (3, 37, false), (2, 128, false), (2, 0, true), (4, 3, true), (2, 1, false)] {
        softmax(rows, n, dynamic).check(near);
    }
}

#[test]
fn layer_norm_rows() {
    for (rows, n) in [(3, 48), (2, 768), (3, 5)] {
        layer_norm(rows, n).check(near);
    }
}

#[test]
fn extrema_keep_nan_in_any_lane() {
    for at in [0, 3, 17, 36] {
        for op in [ReduceOp::Max, ReduceOp::Min] {
            for columns in [false, true] {
                let mut b = Build::default();
                let x = b.input(&Tensor::build(Elem::F32, &[37 * 5], |i| Scalar::Float(if i == at * 5 { f64::NAN } else { i as f64 })));
                let y = b.output(Elem::F32, 37);
                let t = b.param(37);
                let load = if columns {
                    b.nest.columns = Some(t);
                    b.nest.inner = vec![Extent::Const(5)];
                    b.load(x, &[5, 1])
                } else {
                    b.nest.tasks = vec![Extent::Const(5)];
                    b.nest.inner = vec![t];
                    b.load(x, &[1, 5])
                };
                let (r, value) = b.reduction(op, Elem::F32);
                b.stage(false, vec![Effect::Reduce(r, load)]);
                b.stage(true, vec![Effect::Store(access(y, &[1, 0]), value)]);
                b.check(near);
            }
        }
    }
}

#[test]
fn running_sums_are_in_order() {
    for columns in [None, Some(11)] {
        let mut b = Build::default();
        let (c, n) = (columns.unwrap_or(1), 13);
        let x = b.input(&wave((c * n) as usize));
        let y = b.output(Elem::F32, (c * n) as usize);
        b.nest.tasks = vec![Extent::Const(1)];
        b.nest.columns = columns.map(Extent::Const);
        b.nest.inner = vec![Extent::Const(n)];
        let strides: &[i64] = if columns.is_some() { &[0, 1, 11] } else { &[0, 1] };
        let load = b.load(x, strides);
        let (r, value) = b.reduction(ReduceOp::Sum, Elem::F32);
        b.stage(false, vec![Effect::Reduce(r, load), Effect::Store(access(y, strides), value)]);
        b.check(near);
    }
}

/// `y[t, i] = x[t, index[..]] ` with the index varying along the row or not.
fn gather(indices: &[i64], by_row: bool, n: i64) -> Build {
    let mut b = Build::default();
    let tasks = 4;
    let x = b.input(&wave((tasks * n) as usize));
    let index = b.input(&Tensor::build(Elem::I64, &[indices.len()], |i| Scalar::Int(indices[i].into())));
    let y = b.output(Elem::F32, (tasks * n) as usize);
    b.nest.tasks = vec![Extent::Const(tasks)];
    b.nest.inner = vec![Extent::Const(n)];
    let i = b.load(index, if by_row { &[1, 0] } else { &[0, 1] });
    let size = if by_row { tasks } else { n };
    let size = b.param(size);
    let i = b.expr(Expr::CheckedIndex(i, size), Elem::I64);
    let rows = [n, 0];
    let mut from = access(x, if by_row { &[0, 1] } else { &rows });
    from.dynamic.push((i, Extent::Const(if by_row { n } else { 1 })));
    let load = b.expr(Expr::Load(from), Elem::F32);
    b.stage(false, vec![Effect::Store(access(y, &[n, 1]), load)]);
    b
}

#[test]
fn indices_are_checked() {
    gather(&[3, -1, 0, -4], true, 9).check(near);
    gather(&[3, -1, 0, 4], true, 9).check(near);
    gather(&[3, -1, 0, -5], true, 9).check(near);
    gather(&[8, -1, 0, -9, 5, 4, 3, 2, 1], false, 9).check(near);
    gather(&[8, -1, 0, -9, 5, 4, 3, 2, 9], false, 9).check(near);
    gather(&[8, i64::MIN, 0, -9, 5, 4, 3, 2, 1], false, 9).check(near);
}

#[test]
fn scattered_sums_meet_in_order() {
    let mut b = Build::default();
    let indices = [2i64, 2, -1, 0, 2, 3, 2, 2, 1, 1, 2, 2];
    let index = b.input(&Tensor::build(Elem::I64, &[12], |i| Scalar::Int(indices[i].into())));
    let x = b.input(&wave(12));
    let y = b.output(Elem::F32, 4);
    b.nest.inner = vec![Extent::Const(12)];
    let i = b.load(index, &[1]);
    let i = b.expr(Expr::CheckedIndex(i, Extent::Const(4)), Elem::I64);
    let new = b.load(x, &[1]);
    let place = Access { dynamic: vec![(i, Extent::Const(1))], ..access(y, &[0]) };
    let old = b.expr(Expr::Load(place.clone()), Elem::F32);
    let sum = b.prim(Prim::Add, &[old, new]);
    b.stage(false, vec![Effect::Store(place, sum)]);
    b.check(|_, x, y| x == y);
}

#[test]
fn masks_compare_positions() {
    // y[i, j] = j <= i + shift ? x[i, j] : j as f32
    for shift in [-3, 0, 5, i64::MAX / 2, i64::MIN / 2] {
        let mut b = Build::default();
        let x = b.input(&wave(21 * 21));
        let y = b.output(Elem::F32, 21 * 21);
        b.nest.tasks = vec![Extent::Const(21)];
        b.nest.inner = vec![b.param(21)];
        let (i, j) = (b.expr(Expr::Index(0), Elem::I64), b.expr(Expr::Index(1), Elem::I64));
        let n = b.param(shift);
        let n = b.expr(Expr::Extent(n), Elem::I64);
        let limit = b.prim(Prim::Add, &[i, n]);
        let seen = b.prim(Prim::Le, &[j, limit]);
        let load = b.load(x, &[21, 1]);
        let position = b.expr(Expr::Prim(Prim::Cast, vec![j]), Elem::F32);
        let z = b.prim(Prim::Select, &[seen, load, position]);
        b.stage(false, vec![Effect::Store(access(y, &[21, 1]), z)]);
        b.check(near);
    }
}

/// How a random nest is made. Numbers choose among what is possible.
#[derive(Clone, Debug)]
struct Recipe {
    tasks: Vec<i64>,
    columns: Option<i64>,
    inner: Vec<i64>,
    elem: Elem,
    /// Per loop: whether its extent is a parameter, and how inputs stride along it.
    dynamic: u32,
    layout: Vec<u8>,
    ops: Vec<u32>,
    reduce: ReduceOp,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let elem = proptest::sample::select(Elem::ALL.iter().map(|e| e.0).filter(|e| e.bits() >= 8).collect::<Vec<_>>());
    let reduce = proptest::sample::select(vec![ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min]);
    (
        proptest::collection::vec(0i64..5, 0..3),
        proptest::option::of(0i64..40),
        proptest::collection::vec(prop_oneof![0i64..6, 16i64..24], 0..3),
        elem,
        any::<u32>(),
        proptest::collection::vec(any::<u8>(), 6),
        proptest::collection::vec(any::<u32>(), 0..8),
        reduce,
    )
        .prop_map(|(tasks, columns, inner, elem, dynamic, layout, ops, reduce)| Recipe {
            tasks,
            columns,
            inner,
            elem,
            dynamic,
            layout,
            ops,
            reduce,
        })
}

impl Recipe {
    /// Values are small integers, so that sums are exact in any order.
    fn build(&self) -> Build {
        let mut b = Build::default();
        let sizes: Vec<i64> = self.tasks.iter().chain(&self.columns).chain(&self.inner).copied().collect();
        let extents: Vec<Extent> =
            sizes.iter().enumerate().map(|(l, &n)| if self.dynamic >> l & 1 == 1 { b.param(n) } else { Extent::Const(n) }).collect();
        let (t, c) = (self.tasks.len(), usize::from(self.columns.is_some()));
        b.nest.tasks = extents[..t].to_vec();
        b.nest.columns = extents[t..t + c].first().copied();
        b.nest.inner = extents[t + c..].to_vec();
        let mut contiguous = vec![1i64; sizes.len()];
        for l in (1..sizes.len()).rev() {
            contiguous[l - 1] = contiguous[l] * sizes[l].max(1);
        }
        let len = sizes.iter().map(|n| n.max(&1)).product::<i64>() as usize;
        let mut pool: Vec<ExprId> = vec![];
        for input in 0..2 {
            // Contiguous, backwards, broadcast, or with a stride that is a parameter.
            let mut offset = 0;
            let mut strides = vec![];
            for (l, &n) in sizes.iter().enumerate() {
                strides.push(match self.layout[(l + 3 * input) % 6] % 8 {
                    0 => Extent::Const(0),
                    1 => {
                        offset += contiguous[l] * (n - 1).max(0);
                        Extent::Const(-contiguous[l])
                    }
                    2 => b.param(contiguous[l]),
                    _ => Extent::Const(contiguous[l]),
                });
            }
            let x = b.input(&Tensor::build(self.elem, &[len], |i| Scalar::Int(((i * 7 + input * 3) % 11) as i128 - 5)));
            let offset = if offset % 2 == 1 { b.param(offset) } else { Extent::Const(offset) };
            pool.push(b.expr(Expr::Load(Access { buffer: x, offset, strides, dynamic: vec![] }), self.elem));
        }
        for l in 0..sizes.len() {
            let i = b.expr(Expr::Index(l as u32), Elem::I64);
            pool.push(if self.elem == Elem::I64 { i } else { b.expr(Expr::Prim(Prim::Cast, vec![i]), self.elem) });
        }
        let number = if self.elem.is_float() { Expr::Float(2.0f64.to_bits()) } else { Expr::Int(1) };
        pool.push(b.expr(number, self.elem));
        for &code in &self.ops {
            self.apply(&mut b, &mut pool, code);
        }
        let (r, value) = b.reduction(self.reduce, self.elem);
        let last = *pool.last().expect("operands");
        let first = b.output(self.elem, len);
        b.stage(false, vec![Effect::Store(access(first, &contiguous), last), Effect::Reduce(r, last)]);
        pool.push(value);
        self.apply(&mut b, &mut pool, self.dynamic);
        let second = b.output(self.elem, len);
        let last = *pool.last().expect("operands");
        b.stage(false, vec![Effect::Store(access(second, &contiguous), last)]);
        let third = b.output(self.elem, len);
        let mut once = contiguous.clone();
        once[t + c..].fill(0);
        b.stage(true, vec![Effect::Store(access(third, &once), value)]);
        b
    }

    fn apply(&self, b: &mut Build, pool: &mut Vec<ExprId>, code: u32) {
        use Prim::*;
        let binary: &[Prim] = match self.elem {
            Elem::Bool => &[And, Or, Xor, Eq],
            e if e.is_float() => &[Add, Sub, Min, Max, Eq, Lt],
            _ => &[Add, Sub, Mul, Div, RemFloor, Min, Max, Xor, Eq, Lt],
        };
        let pick = |shift: u32| pool[(code >> shift) as usize % pool.len()];
        let prim = binary[code as usize % binary.len()];
        let (x, y) = (pick(8), pick(16));
        let z = b.prim(prim, &[x, y]);
        pool.push(if b.nest.exprs[z].1 == self.elem { z } else { b.prim(Select, &[z, y, x]) });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_nests_agree_with_the_interpreter(recipe in recipe()) {
        recipe.build().check(|_, x, y| x == y);
    }
}
