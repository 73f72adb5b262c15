//! reparameterize: outliers of channels move into weights wherever something absorbs them, nothing else changes, and what is rounded
//! afterwards loses less. What each fold makes of a graph is in `snapshots`; if a change of it is right, accept it:
//! `INSTA_UPDATE=always cargo test -p tfc-passes --test reparameterize`.

mod common;

use common::{Build, count, random, random_inputs};
use std::ops::ControlFlow;
use std::sync::Arc;
use tfc_ir::dim::{Bindings, Dim, Range, Symbol};
use tfc_ir::graph::{Def, Graph, Value};
use tfc_ir::ops::*;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::text;
use tfc_ir::types::Elem;
use tfc_ir::verify::verify;
use tfc_passes::calibrate::{Calibration, Oracle, OracleError, Source};
use tfc_passes::reparameterize::{Fold, Folds, Legal, Method};
use tfc_passes::{Context, PassError, QuantConfig, Stats, parse_passes, run_pipeline};

const FOLDED: &str = "calibrate,reparameterize,fold,simplify,cse,dce";

/// Interprets graphs on random inputs of several seeds.
struct Interpreter(Vec<(Vec<Tensor>, Bindings)>);

impl Oracle for Interpreter {
    fn batches(&self) -> usize {
        self.0.len()
    }

    fn evaluate(&self, graph: &Graph, each: &mut dyn FnMut(usize, Vec<Tensor>)) -> Result<(), OracleError> {
        for (i, (inputs, bindings)) in self.0.iter().enumerate() {
            each(i, graph.evaluate(inputs, bindings).map_err(|e| OracleError { message: e.to_string(), code: 1 })?);
        }
        Ok(())
    }
}

/// The graph after passes, with what `reparameterize` reports.
fn run(g: &Graph, passes: &str, spec: &str) -> (Graph, Stats) {
    let mut found = Stats::default();
    let passes = parse_passes(passes).unwrap();
    let mut cx = Context { quant: Some(QuantConfig::new(spec.parse().unwrap())), ..Context::default() };
    let data = (0..6).map(|seed| random_inputs(g, 5, 100 * seed + 7)).collect();
    cx.data.insert(Calibration { source: Source::Data(Arc::new(Interpreter(data))), mask: None });
    let out = run_pipeline::<PassError>(g.clone(), &passes, &cx, |ran| {
        if ran.pass.name == "reparameterize" {
            found = ran.stats.clone();
        }
        if let Err(e) = verify(ran.graph) {
            panic!("after {}: {e:?}", ran.pass.name);
        }
        Ok(ControlFlow::Continue(()))
    });
    (out.expect("passes succeed"), found)
}

fn folds(stats: &Stats) -> Vec<Fold> {
    stats.data.get::<Folds>().expect("a report").0.clone()
}

/// The largest difference of two graphs' results on new inputs, of the largest magnitude of each result.
fn difference(a: &Graph, b: &Graph) -> f64 {
    let (inputs, bindings) = random_inputs(a, 4, 12345);
    let (x, y) = (a.evaluate(&inputs, &bindings).unwrap(), b.evaluate(&inputs, &bindings).unwrap());
    let of = |(x, y): (&Tensor, &Tensor)| {
        assert_eq!((x.elem(), x.sizes()), (y.elem(), y.sizes()));
        let largest = x.to_f64s().iter().fold(0.0f64, |m, v| m.max(v.abs()));
        x.to_f64s().iter().zip(y.to_f64s()).fold(0.0f64, |m, (p, q)| m.max((p - q).abs())) / largest
    };
    x.iter().zip(&y).map(of).fold(0.0, f64::max)
}

/// A model under construction, of one element type.
struct Model {
    b: Build,
    elem: Elem,
    seed: u64,
}

const WIDTH: usize = 32;

impl Model {
    fn new(elem: Elem) -> Model {
        let mut b = Build::new();
        b.g.symbols.insert(Symbol::new("seq"), Range { min: 1, max: 64 });
        Model { b, elem, seed: 1 }
    }

    fn input(&mut self, sizes: &str) -> Value {
        self.b.input_of(self.elem, sizes)
    }

    fn weight(&mut self, sizes: &[usize]) -> Value {
        self.seed += 1;
        let t = random(self.elem, sizes, self.seed);
        self.b.constant(t)
    }

    /// Numbers by channel, with some that are `factor` times as large.
    fn outliers(&mut self, n: usize, factor: f64) -> Value {
        self.seed += 1;
        let t = random(self.elem, &[n], self.seed);
        let t = Tensor::build(self.elem, &[n], |i| Scalar::Float((t.get(i).to_f64() + 1.5) * if i % 11 == 3 { factor } else { 1.0 }));
        self.b.constant(t)
    }

    fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        self.b.op(op, inputs)
    }

    fn sizes(&self, v: Value) -> Vec<Dim> {
        self.b.g.ty(v).shape.0.clone()
    }

    /// A linear whose weights for channels that [`Model::outliers`] makes large are small.
    fn linear(&mut self, x: Value, n: usize) -> Value {
        let k = self.sizes(x).last().and_then(Dim::as_const).unwrap() as usize;
        self.seed += 1;
        let w = random(self.elem, &[k, n], self.seed);
        let w = Tensor::build(self.elem, &[k, n], |i| Scalar::Float(w.get(i).to_f64() / if i / n % 11 == 3 { 40.0 } else { 1.0 }));
        let (w, bias) = (self.b.constant(w), self.weight(&[n]));
        let y = self.op(Matmul {}, &[x, w]);
        self.op(Add {}, &[y, bias])
    }

    /// A linear whose result has channels that are 40 times as large.
    fn uneven(&mut self, x: Value, n: usize) -> Value {
        let k = self.sizes(x).last().and_then(Dim::as_const).unwrap() as usize;
        let (w, factor, bias) = (random(self.elem, &[k, n], self.seed + 77), self.outliers(n, 40.0), self.outliers(n, 40.0));
        let factors = self.b.g.as_const(factor).unwrap().clone();
        let w = Tensor::build(self.elem, &[k, n], |i| Scalar::Float(w.get(i).to_f64() * factors.get(i % n).to_f64()));
        let w = self.b.constant(w);
        let y = self.op(Matmul {}, &[x, w]);
        self.op(Add {}, &[y, bias])
    }

    fn layer_norm(&mut self, x: Value) -> Value {
        let (gamma, beta) = (self.outliers(WIDTH, 60.0), self.outliers(WIDTH, 100.0));
        self.op(LayerNorm { axes: 1, epsilon: 1e-5.into() }, &[x, gamma, beta])
    }

    fn heads(&mut self, x: Value, heads: usize) -> Value {
        let sizes = self.sizes(x);
        let width = sizes[2].as_const().unwrap() as usize / heads;
        let split = [sizes[0].clone(), sizes[1].clone(), heads.into(), width.into()].into_iter().collect();
        let x = self.op(Reshape { shape: split }, &[x]);
        self.op(Transpose { perm: vec![0, 2, 1, 3] }, &[x])
    }

    fn merged(&mut self, x: Value) -> Value {
        let x = self.op(Transpose { perm: vec![0, 2, 1, 3] }, &[x]);
        let sizes = self.sizes(x);
        let width = sizes[2].clone() * sizes[3].clone();
        self.op(Reshape { shape: [sizes[0].clone(), sizes[1].clone(), width].into_iter().collect() }, &[x])
    }

    fn part(&mut self, x: Value, axis: usize, start: usize, len: usize) -> Value {
        let slice = Slice::of_axis(self.b.g.ty(x), axis, start.into(), len.into());
        self.op(slice, &[x])
    }
}

/// The text form without the elements of constants, but for scalars: behind a fold, what stands for them is which constant of the
/// graph `before` has the same, or `new`.
fn abbreviated(graph: &Graph, before: Option<&Graph>) -> String {
    let labels = text::labels(graph);
    let as_before = |t: &Tensor, before: &Graph| {
        let same = before.values().find(|(_, d)| matches!(&d.def, Def::Const(other) if other == t));
        same.map_or("new".to_string(), |(v, _)| format!("before {}", text::labels(before).get(v)))
    };
    let mut written = graph.to_string();
    for (v, data) in graph.values() {
        let Def::Const(t) = &data.def else { continue };
        let declared = format!("\nconst {}: {} = ", labels.get(v), data.ty);
        let Some(at) = written.find(&declared).map(|at| at + declared.len()).filter(|_| t.rank() > 0) else { continue };
        let end = at + written[at..].find('\n').expect("a line ends");
        written.replace_range(at..end, &before.map_or("...".into(), |before| as_before(t, before)));
    }
    written
}

/// Compares a graph before and after passes with the snapshot of a case.
fn assert_snapshot_of(case: &str, before: &Graph, after: &Graph) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    let text = format!("{}\n==== after ====\n{}", abbreviated(before, None), abbreviated(after, Some(before)));
    settings.bind(|| insta::assert_snapshot!(case, text));
}

/// Both element types: the fold is exact but for the rounding of one; products that are rounded behind it lose far less than
/// without it; the rule that is named did it, and the graph is what the snapshot of the case shows. Returns the f32 graph after the folds, and the report.
#[track_caller]
fn folds_by(rule: &str, case: &str, build: impl Fn(&mut Model) -> Value) -> (Graph, Vec<Fold>) {
    let graph = |elem| {
        let mut m = Model::new(elem);
        let y = build(&mut m);
        m.b.done(y)
    };
    let wide = graph(Elem::F64);
    let (out, _) = run(&wide, FOLDED, "w8a8");
    let exact = difference(&wide, &out);
    assert!(exact < 1e-11, "{exact} in f64");
    let narrow = graph(Elem::F32);
    let (out, stats) = run(&narrow, FOLDED, "w8a8");
    assert!(stats.get(rule) > 0, "{rule} is not among: {stats}");
    let rounding = difference(&narrow, &out);
    assert!(rounding < 1e-5, "{rounding} in f32");
    let found = folds(&stats);
    assert!(found.iter().all(|f| f.folded_error <= f.plain_error && f.map_error < 1e-5), "{found:?}");
    assert!(found.iter().any(|f| f.folded_error < 0.6 * f.plain_error), "{found:?}");
    let quantized = |passes: &str| difference(&narrow, &run(&narrow, passes, "w8a8").0);
    let (plain, folded) = (quantized("quantize"), quantized(&format!("{FOLDED},quantize")));
    assert!(folded < 0.9 * plain, "{plain} without, {folded} with the folds");
    assert_snapshot_of(case, &narrow, &out);
    (out, found)
}

/// No operand gets a map, and the graph stays.
#[track_caller]
fn never(build: impl Fn(&mut Model) -> Value) -> Vec<Fold> {
    let mut m = Model::new(Elem::F32);
    let y = build(&mut m);
    let g = m.b.done(y);
    let (out, stats) = run(&g, FOLDED, "w8a8");
    let found = folds(&stats);
    assert!(found.iter().all(|f| f.method == Method::None), "{found:?}");
    assert!(difference(&g, &out) < 1e-6);
    let (out, _) = run(&g, "calibrate,reparameterize", "w8a8");
    assert_eq!(g.to_string(), out.to_string());
    found
}

#[test]
fn pre_norm() {
    let (out, found) = folds_by("fold-into-layer-norm", "pre_norm", |m| {
        let x = m.input("2, seq, 32");
        let n = m.layer_norm(x);
        let (q, k) = (m.linear(n, 32), m.linear(n, 32));
        let y = m.op(Mul {}, &[q, k]);
        m.op(Add {}, &[x, y])
    });
    assert_eq!((count(&out, "layer_norm"), count(&out, "add"), count(&out, "matmul")), (1, 3, 2));
    assert_eq!((found.len(), found[0].products.len(), found[0].legal), (1, 2, Legal::ScaleAndShift));
}

#[test]
fn post_norm_keeps_its_residual() {
    let (out, _) = folds_by("fold-into-layer-norm", "post_norm_keeps_its_residual", |m| {
        let x = m.input("2, seq, 32");
        let n = m.layer_norm(x);
        let y = m.linear(n, 32);
        let y = m.op(Gelu { tanh: false }, &[y]);
        let n = m.op(Neg {}, &[n]);
        m.op(Add {}, &[n, y])
    });
    assert_eq!(count(&out, "matmul"), 1);
}

#[test]
fn norms_without_bias_get_one() {
    let (out, _) = folds_by("fold-into-layer-norm", "norms_without_bias_get_one", |m| {
        let x = m.input("2, seq, 32");
        let (moved, gamma) = (m.outliers(WIDTH, 20.0), m.outliers(WIDTH, 60.0));
        let x = m.op(Add {}, &[x, moved]);
        let n = m.op(LayerNorm { axes: 1, epsilon: 1e-5.into() }, &[x, gamma]);
        m.linear(n, 32)
    });
    let norm = out.nodes().find(|(_, d)| d.op.mnemonic() == "layer_norm").unwrap().1;
    assert_eq!(norm.inputs.len(), 3);
}

#[test]
fn rms_norm() {
    let (out, found) = folds_by("fold-into-rms-norm", "rms_norm", |m| {
        let x = m.input("2, seq, 32");
        let gamma = m.outliers(WIDTH, 60.0);
        let n = m.op(RmsNorm { axes: 1, epsilon: 1e-5.into() }, &[x, gamma]);
        let w = m.weight(&[WIDTH, 48]);
        m.op(Matmul {}, &[n, w])
    });
    assert_eq!((count(&out, "rms_norm"), count(&out, "add")), (1, 0));
    assert_eq!(found[0].legal, Legal::Scale);
}

/// Attention with `groups` heads of keys and values for 4 heads of queries.
fn attention(m: &mut Model, groups: usize, fused: bool) -> Value {
    let x = m.input("2, seq, 32");
    let (q, k, v) = if fused {
        let all = m.uneven(x, 96);
        let part = |m: &mut Model, i: usize| m.part(all, 2, 32 * i, 32);
        (part(m, 0), part(m, 1), part(m, 2))
    } else {
        (m.linear(x, 32), m.linear(x, 8 * groups), m.uneven(x, 8 * groups))
    };
    let (q, k, v) = (m.heads(q, 4), m.heads(k, groups), m.heads(v, groups));
    let y = m.op(Attention { scale: 0.05.into(), causal: false, mask_value: None }, &[q, k, v]);
    let y = m.merged(y);
    m.linear(y, 32)
}

#[test]
fn values_of_attention() {
    let (out, found) = folds_by("fold-into-value-projection", "values_of_attention", |m| attention(m, 4, false));
    assert_eq!(found.last().unwrap().legal, Legal::ScaleAndShift);
    // What is made in place of a node is called after that, and nothing else is.
    let mut names: Vec<&str> = out
        .nodes()
        .filter(|(_, n)| ["matmul", "attention"].contains(&n.op.mnemonic()))
        .flat_map(|(_, n)| n.loc.names().collect::<Vec<_>>())
        .collect();
    names.sort_unstable();
    assert!(names.len() > 4 && names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    // Without keys the result is 0, shifted or not.
    let (_, found) = folds_by("fold-into-value-projection", "values_of_attention_perhaps_without_keys", |m| {
        m.b.g.symbols.insert(Symbol::new("seq"), Range::ANY);
        attention(m, 4, false)
    });
    assert_eq!(found.last().unwrap().legal, Legal::Scale);
}

#[test]
fn heads_that_share_values_share_numbers() {
    for groups in [1, 2] {
        folds_by("fold-into-value-projection", &format!("{groups}_heads_of_values"), |m| attention(m, groups, false));
    }
}

#[test]
fn values_repeated_for_all_heads_share_numbers() {
    folds_by("fold-into-value-projection", "values_repeated_for_all_heads_share_numbers", |m| {
        let x = m.input("2, seq, 32");
        let (q, k, v) = (m.linear(x, 32), m.linear(x, 16), m.uneven(x, 16));
        let (q, k, v) = (m.heads(q, 4), m.heads(k, 2), m.heads(v, 2));
        let repeated = |m: &mut Model, x: Value| {
            let [b, g, n, d] = m.sizes(x).try_into().unwrap();
            let x = m.op(Reshape { shape: [b.clone(), g.clone(), 1.into(), n.clone(), d.clone()].into_iter().collect() }, &[x]);
            let x = m.op(Expand { shape: [b.clone(), g, 2.into(), n.clone(), d.clone()].into_iter().collect() }, &[x]);
            m.op(Reshape { shape: [b, 4.into(), n, d].into_iter().collect() }, &[x])
        };
        let (k, v) = (repeated(m, k), repeated(m, v));
        let y = m.op(Attention { scale: 0.05.into(), causal: true, mask_value: None }, &[q, k, v]);
        let y = m.merged(y);
        m.linear(y, 32)
    });
}

#[test]
fn values_that_are_a_slice_leave_the_other_slices() {
    let (out, _) = folds_by("slice-beside-fold", "values_that_are_a_slice_leave_the_other_slices", |m| attention(m, 4, true));
    // One product makes queries, keys and values, as before.
    assert_eq!(count(&out, "matmul"), 2);
}

#[test]
fn values_of_attention_in_steps() {
    folds_by("fold-into-product", "values_of_attention_in_steps", |m| {
        let x = m.input("2, seq, 32");
        let (q, k, v) = (m.linear(x, 32), m.linear(x, 32), m.uneven(x, 32));
        let (q, k, v) = (m.heads(q, 4), m.heads(k, 4), m.heads(v, 4));
        let k = m.op(Transpose { perm: vec![0, 1, 3, 2] }, &[k]);
        let scores = m.op(Matmul {}, &[q, k]);
        let weights = m.op(Softmax { axis: 3, log: false }, &[scores]);
        let y = m.op(Matmul {}, &[weights, v]);
        let y = m.merged(y);
        m.linear(y, 32)
    });
}

#[test]
fn gated_projections() {
    for swapped in [false, true] {
        let (_, found) = folds_by("fold-into-gated-up", if swapped { "gated_projections_swapped" } else { "gated_projections" }, |m| {
            let x = m.input("2, seq, 32");
            let (gate, up) = (m.linear(x, 64), m.uneven(x, 64));
            let gate = m.op(Silu {}, &[gate]);
            let y = m.op(Mul {}, &if swapped { [up, gate] } else { [gate, up] });
            m.linear(y, 32)
        });
        assert_eq!(found.last().unwrap().legal, Legal::Scale);
    }
}

#[test]
fn rectifiers_and_their_squares() {
    for squared in [false, true] {
        let (_, found) = folds_by("fold-behind-relu", if squared { "squares_of_rectifiers" } else { "rectifiers" }, |m| {
            let x = m.input("2, seq, 32");
            let y = m.uneven(x, 64);
            let y = m.op(Relu {}, &[y]);
            let y = if squared { m.op(Mul {}, &[y, y]) } else { y };
            m.linear(y, 32)
        });
        assert_eq!(found.last().unwrap().legal, Legal::Scale);
    }
}

#[test]
fn products_behind_each_other() {
    let (_, found) = folds_by("fold-into-product", "products_behind_each_other", |m| {
        let x = m.input("2, seq, 32");
        let y = m.uneven(x, 64);
        m.linear(y, 32)
    });
    assert_eq!(found.last().unwrap().legal, Legal::ScaleAndShift);
}

/// A norm without own scale that is scaled and shifted by what is computed from another input.
#[test]
fn modulated_norms() {
    let (_, found) = folds_by("fold-into-summands", "modulated_norms", |m| {
        let (x, c) = (m.input("2, seq, 32"), m.input("2, 32"));
        let ones = m.b.constant(Tensor::build(m.elem, &[32], |_| Scalar::Float(1.0)));
        let n = m.op(LayerNorm { axes: 1, epsilon: 1e-5.into() }, &[x, ones]);
        let both = m.uneven(c, 64);
        let all = m.op(Reshape { shape: [2, 1, 64].into_iter().map(Dim::from).collect() }, &[both]);
        let (scale, shift) = (m.part(all, 2, 0, 32), m.part(all, 2, 32, 32));
        let one = m.b.constant(Tensor::scalar(m.elem, Scalar::Float(1.0)));
        let scale = m.op(Add {}, &[scale, one]);
        let y = m.op(Mul {}, &[n, scale]);
        let y = m.op(Add {}, &[y, shift]);
        m.linear(y, 32)
    });
    assert_eq!(found.last().unwrap().legal, Legal::ScaleAndShift);
}

/// One product makes what modulates two norms and gates both branches: it is still one product afterwards.
#[test]
fn modulated_norms_share_a_product() {
    let (out, found) = folds_by("fold-into-summands", "modulated_norms_share_a_product", |m| {
        let (x, c) = (m.input("2, seq, 32"), m.input("2, 32"));
        let all = m.uneven(c, 6 * 32);
        let all = m.op(Reshape { shape: [2, 1, 192].into_iter().map(Dim::from).collect() }, &[all]);
        let mut x = x;
        for block in 0..2 {
            let ones = m.b.constant(Tensor::build(m.elem, &[32], |_| Scalar::Float(1.0)));
            let n = m.op(LayerNorm { axes: 1, epsilon: 1e-5.into() }, &[x, ones]);
            let [scale, shift, gate] = [0, 32, 64].map(|at| m.part(all, 2, 96 * block + at, 32));
            let one = m.b.constant(Tensor::scalar(m.elem, Scalar::Float(1.0)));
            let scale = m.op(Add {}, &[scale, one]);
            let y = m.op(Mul {}, &[n, scale]);
            let y = m.op(Add {}, &[y, shift]);
            let y = m.linear(y, 32);
            let y = m.op(Gelu { tanh: false }, &[y]);
            let y = m.op(Mul {}, &[y, gate]);
            x = m.op(Add {}, &[x, y]);
        }
        x
    });
    assert_eq!(found.iter().filter(|f| f.method != Method::None).count(), 2);
    assert_eq!(count(&out, "matmul"), 3);
}

#[test]
fn branches_beside_each_other_share_a_norm() {
    let (out, found) = folds_by("fold-into-layer-norm", "branches_beside_each_other_share_a_norm", |m| {
        let x = m.input("2, seq, 32");
        let n = m.layer_norm(x);
        let (v, h) = (m.linear(n, 32), m.linear(n, 64));
        let v = m.op(Gelu { tanh: false }, &[v]);
        let h = m.op(Gelu { tanh: false }, &[h]);
        let (a, b) = (m.linear(v, 32), m.linear(h, 32));
        let y = m.op(Add {}, &[a, b]);
        m.op(Add {}, &[x, y])
    });
    assert_eq!((count(&out, "layer_norm"), found[0].products.len()), (1, 2));
}

/// A convolution behind a rectifier, as products have it: the matrix on the left, zeros around the image, and one scale for all places
/// of a window.
#[test]
fn convolutions_take_scales_across_borders() {
    let (_, found) = folds_by("fold-behind-relu", "convolutions_take_scales_across_borders", |m| {
        let x = m.input("2, 25, 32");
        let y = m.uneven(x, 16);
        let y = m.op(Relu {}, &[y]);
        let y = m.op(Transpose { perm: vec![0, 2, 1] }, &[y]);
        let fixed = |sizes: &[i64]| sizes.iter().map(|&n| Dim::from(n)).collect();
        let y = m.op(Reshape { shape: fixed(&[2, 16, 5, 5]) }, &[y]);
        let zero = m.b.constant(Tensor::scalar(m.elem, Scalar::Float(0.0)));
        let border = || [0, 0, 1, 1].map(Dim::from).to_vec();
        let y = m.op(Pad { mode: tfc_ir::ops::pad::PadMode::Constant, before: border(), after: border() }, &[y, zero]);
        let y = m.op(Window { kernel: vec![3, 3], strides: vec![1, 1], dilations: vec![1, 1] }, &[y]);
        let y = m.op(Transpose { perm: vec![0, 1, 4, 5, 2, 3] }, &[y]);
        let y = m.op(Reshape { shape: fixed(&[2, 144, 25]) }, &[y]);
        let w = random(m.elem, &[24, 144], 99);
        let small = |i: usize| if i % 144 / 9 % 11 == 3 { 40.0 } else { 1.0 };
        let w = m.b.constant(Tensor::build(m.elem, &[24, 144], |i| Scalar::Float(w.get(i).to_f64() / small(i))));
        m.op(Matmul {}, &[w, y])
    });
    assert_eq!(found.last().unwrap().legal, Legal::Scale);
}

#[test]
fn nothing_passes_through_what_bends() {
    let bends: [fn() -> Op; 4] =
        [|| Gelu { tanh: false }.into(), || Silu {}.into(), || Tanh {}.into(), || Softmax { axis: 2, log: false }.into()];
    for bend in bends {
        let found = never(|m| {
            let x = m.input("2, seq, 32");
            let y = m.uneven(x, 64);
            let y = m.op(bend(), &[y]);
            let w = m.weight(&[64, 32]);
            m.op(Matmul {}, &[y, w])
        });
        assert!(found.iter().all(|f| f.legal == Legal::Nothing), "{found:?}");
    }
}

#[test]
fn what_rows_need_does_not_change_for_one_of_them() {
    // The channels are along rows of another value: nothing takes numbers that differ between positions.
    let found = never(|m| {
        let x = m.input("2, 32, 32");
        let n = m.layer_norm(x);
        let n = m.op(Transpose { perm: vec![0, 2, 1] }, &[n]);
        m.linear(n, 32)
    });
    assert_eq!(found[0].legal, Legal::Nothing);
}

#[test]
fn even_operands_stay() {
    let found = never(|m| {
        let x = m.input("2, seq, 32");
        let y = m.linear(x, 64);
        let y = m.op(Relu {}, &[y]);
        let ones = m.b.constant(Tensor::build(m.elem, &[64], |_| Scalar::Float(1.0)));
        m.op(RmsNorm { axes: 1, epsilon: 1e-5.into() }, &[y, ones])
    });
    assert!(found.iter().all(|f| f.plain_error == f.folded_error));
}

#[test]
fn the_same_graph_gives_the_same_text() {
    let written = || {
        let mut m = Model::new(Elem::F32);
        let y = attention(&mut m, 4, true);
        run(&m.b.done(y), FOLDED, "w4a8:g32").0.to_string()
    };
    assert_eq!(written(), written());
}

/// What else takes a norm gets it back by a product with the scales and a sum with the shifts, which cost less than a second norm.
#[test]
fn what_else_takes_a_norm_undoes_the_map() {
    let (out, _) = folds_by("unfold-norm", "layer_norm_that_something_else_takes", |m| {
        let x = m.input("2, seq, 32");
        let n = m.layer_norm(x);
        let y = m.linear(n, 32);
        let y = m.op(Gelu { tanh: false }, &[y]);
        m.op(Add {}, &[n, y])
    });
    assert_eq!(count(&out, "layer_norm"), 1);
    let (out, _) = folds_by("unfold-norm", "rms_norm_that_something_else_takes", |m| {
        let x = m.input("2, seq, 32");
        let gamma = m.outliers(WIDTH, 60.0);
        let n = m.op(RmsNorm { axes: 1, epsilon: 1e-5.into() }, &[x, gamma]);
        let y = m.linear(n, 32);
        let y = m.op(Gelu { tanh: false }, &[y]);
        m.op(Add {}, &[n, y])
    });
    assert_eq!((count(&out, "rms_norm"), count(&out, "mul")), (1, 1));
}
