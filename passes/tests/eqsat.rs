//! eqsat: patterns in the spellings of exporters are recovered, what only looks like them is left
//! alone, and what is computed stays the same.

mod common;

use common::{Build, assert_close, count, random, run, shape};
use proptest::prelude::*;
use std::collections::BTreeSet;
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Graph, Loc, Value};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::*;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;

const PASSES: &str = "fold,simplify,cse,dce,eqsat,fold,simplify,cse,dce";

/// After the passes the graph has exactly these operators, in any order, besides views.
#[track_caller]
fn becomes(expected: &[&str], build: impl FnOnce(&mut Build) -> Value) -> Graph {
    let mut b = Build::new();
    let y = build(&mut b);
    let g = b.done(y);
    let (out, _) = run(&g, PASSES);
    let views = ["reshape", "transpose", "slice", "expand"];
    let mut found: Vec<&str> = out.nodes().map(|(_, d)| d.op.mnemonic()).filter(|m| !views.contains(m)).collect();
    found.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(found, expected);
    assert_close(&g, &out);
    out
}

/// The passes do not introduce the operator.
#[track_caller]
fn never(mnemonic: &str, build: impl FnOnce(&mut Build) -> Value) {
    let mut b = Build::new();
    let y = build(&mut b);
    let g = b.done(y);
    let (out, _) = run(&g, PASSES);
    assert_eq!(count(&out, mnemonic), 0);
    assert_close(&g, &out);
}

fn mean(b: &mut Build, x: Value, axes: &[usize]) -> Value {
    b.op(Reduce { kind: ReduceKind::Mean, axes: axes.to_vec(), keep: true }, &[x])
}

fn reshape(b: &mut Build, x: Value, sizes: &str) -> Value {
    b.op(Reshape { shape: shape(sizes) }, &[x])
}

fn transpose(b: &mut Build, x: Value, perm: &[usize]) -> Value {
    b.op(Transpose { perm: perm.to_vec() }, &[x])
}

fn scaled(b: &mut Build, x: Value, c: f64) -> Value {
    let c = b.scalar(c);
    b.op(Mul {}, &[x, c])
}

fn shifted(b: &mut Build, x: Value, c: f64) -> Value {
    let c = b.scalar(c);
    b.op(Add {}, &[c, x])
}

/// `x / sqrt(v)` in the spellings of exporters.
fn over_root(b: &mut Build, x: Value, v: Value, spelling: u8) -> Value {
    match spelling % 6 {
        0 => {
            let s = b.op(Sqrt {}, &[v]);
            b.op(Div {}, &[x, s])
        }
        1 => {
            let s = b.op(Rsqrt {}, &[v]);
            b.op(Mul {}, &[s, x])
        }
        2 => {
            let s = b.op(Sqrt {}, &[v]);
            let r = b.op(Reciprocal {}, &[s]);
            b.op(Mul {}, &[x, r])
        }
        3 => {
            let (s, one) = (b.op(Sqrt {}, &[v]), b.scalar(1.0));
            let r = b.op(Div {}, &[one, s]);
            b.op(Mul {}, &[x, r])
        }
        4 => {
            let half = b.scalar(-0.5);
            let r = b.op(Pow {}, &[v, half]);
            b.op(Mul {}, &[r, x])
        }
        _ => {
            let half = b.scalar(0.5);
            let r = b.op(Pow {}, &[v, half]);
            b.op(Div {}, &[x, r])
        }
    }
}

fn square(b: &mut Build, x: Value, spelling: u8) -> Value {
    if spelling.is_multiple_of(2) {
        return b.op(Mul {}, &[x, x]);
    }
    let two = b.scalar(2.0);
    b.op(Pow {}, &[x, two])
}

fn layer_norm(b: &mut Build, x: Value, axes: &[usize], width: usize, spelling: u8) -> Value {
    let m = mean(b, x, axes);
    let d = b.op(Sub {}, &[x, m]);
    let s = square(b, d, spelling / 6);
    let v = mean(b, s, axes);
    let v = shifted(b, v, 1e-5);
    let y = over_root(b, d, v, spelling);
    let (gamma, beta) = (b.weight(&[width], 3), b.weight(&[width], 4));
    let y = b.op(Mul {}, &if spelling.is_multiple_of(4) { [gamma, y] } else { [y, gamma] });
    b.op(Add {}, &[beta, y])
}

#[test]
fn layer_norm_in_every_spelling() {
    for spelling in 0..12 {
        becomes(&["layer_norm"], |b| {
            let x = b.input("2, seq, 8");
            layer_norm(b, x, &[2], 8, spelling)
        });
    }
}

#[test]
fn layer_norm_with_the_scale_at_the_root() {
    becomes(&["layer_norm"], |b| {
        let x = b.input("2, 3, 8");
        let m = mean(b, x, &[2]);
        let d = b.op(Sub {}, &[x, m]);
        let s = square(b, d, 0);
        let v = mean(b, s, &[2]);
        let v = shifted(b, v, 1e-3);
        let r = b.op(Rsqrt {}, &[v]);
        let (gamma, beta) = (b.weight(&[8], 3), b.weight(&[8], 4));
        let r = b.op(Mul {}, &[r, gamma]);
        let y = b.op(Mul {}, &[x, r]);
        let moved = b.op(Mul {}, &[m, r]);
        let shift = b.op(Sub {}, &[beta, moved]);
        b.op(Add {}, &[y, shift])
    });
}

#[test]
fn layer_norm_over_sums_and_removed_axes() {
    becomes(&["layer_norm"], |b| {
        let x = b.input("2, 3, 8");
        let sum = |b: &mut Build, x| b.op(Reduce { kind: ReduceKind::Sum, axes: vec![2], keep: true }, &[x]);
        let m = sum(b, x);
        let eight = b.scalar(8.0);
        let m = b.op(Div {}, &[m, eight]);
        let d = b.op(Sub {}, &[x, m]);
        let s = square(b, d, 0);
        let v = b.op(Reduce { kind: ReduceKind::Mean, axes: vec![2], keep: false }, &[s]);
        let v = reshape(b, v, "2, 3, 1");
        let v = shifted(b, v, 1e-3);
        over_root(b, d, v, 0)
    });
}

#[test]
fn what_is_not_quite_a_layer_norm() {
    // The wrong axis.
    never("layer_norm", |b| {
        let x = b.input("2, 8, 8");
        layer_norm(b, x, &[1], 8, 1)
    });
    // The mean is over another axis than the variance.
    never("layer_norm", |b| {
        let x = b.input("2, 8, 8");
        let m = mean(b, x, &[1]);
        let d = b.op(Sub {}, &[x, m]);
        let s = square(b, d, 0);
        let v = mean(b, s, &[2]);
        let v = shifted(b, v, 1e-5);
        over_root(b, d, v, 1)
    });
    // Another tensor is normalised.
    never("layer_norm", |b| {
        let (x, z) = (b.input("2, 8"), b.input("2, 8"));
        let m = mean(b, x, &[1]);
        let d = b.op(Sub {}, &[x, m]);
        let s = square(b, d, 0);
        let v = mean(b, s, &[1]);
        let v = shifted(b, v, 1e-5);
        over_root(b, z, v, 1)
    });
    // One scale per row.
    never("layer_norm", |b| {
        let x = b.input("4, 8");
        let m = mean(b, x, &[1]);
        let d = b.op(Sub {}, &[m, x]);
        let s = square(b, d, 0);
        let v = mean(b, s, &[1]);
        let v = shifted(b, v, 1e-5);
        let y = over_root(b, d, v, 1);
        let rows = b.weight(&[4, 1], 3);
        b.op(Mul {}, &[y, rows])
    });
}

#[test]
fn rms_norm_in_every_spelling() {
    for spelling in 0..12 {
        becomes(&["rms_norm"], |b| {
            let x = b.input("2, seq, 8");
            let s = square(b, x, spelling / 6);
            let v = mean(b, s, &[2]);
            let v = shifted(b, v, 1e-6);
            let y = over_root(b, x, v, spelling);
            let gamma = b.weight(&[8], 3);
            b.op(Mul {}, &[gamma, y])
        });
    }
}

#[test]
fn normalisation_whose_parts_are_wanted_too_is_correct() {
    let mut b = Build::new();
    let x = b.input("2, 8");
    let m = mean(&mut b, x, &[1]);
    b.output(m);
    let d = b.op(Sub {}, &[x, m]);
    b.output(d);
    let s = square(&mut b, d, 0);
    let v = mean(&mut b, s, &[1]);
    let v = shifted(&mut b, v, 1e-5);
    let y = over_root(&mut b, d, v, 1);
    let g = b.done(y);
    let (out, _) = run(&g, PASSES);
    assert_close(&g, &out);
}

/// `x/2 * (1 + erf(x/√2))` with operands, associations and constants in various places.
fn gelu(b: &mut Build, x: Value, spelling: u8) -> Value {
    let z = if spelling & 1 == 0 {
        let root = b.scalar(f64::from(std::f32::consts::SQRT_2));
        b.op(Div {}, &[x, root])
    } else {
        scaled(b, x, std::f64::consts::FRAC_1_SQRT_2)
    };
    let e = b.op(Erf {}, &[z]);
    let e = shifted(b, e, 1.0);
    match spelling / 2 % 4 {
        0 => {
            let y = b.op(Mul {}, &[x, e]);
            scaled(b, y, 0.5)
        }
        1 => {
            let h = scaled(b, x, 0.5);
            b.op(Mul {}, &[h, e])
        }
        2 => {
            let h = scaled(b, e, 0.5);
            b.op(Mul {}, &[h, x])
        }
        _ => {
            let y = b.op(Mul {}, &[e, x]);
            let two = b.scalar(2.0);
            b.op(Div {}, &[y, two])
        }
    }
}

#[test]
fn gelu_in_every_spelling() {
    for spelling in 0..8 {
        becomes(&["gelu"], |b| {
            let x = b.input("2, seq, 8");
            gelu(b, x, spelling)
        });
    }
    // Its operand is a product, and a scaled one.
    becomes(&["gelu", "mul", "mul"], |b| {
        let (x, y) = (b.input("8"), b.input("8"));
        let x = b.op(Mul {}, &[x, y]);
        let x = scaled(b, x, 3.0);
        gelu(b, x, 2)
    });
}

#[test]
fn gelu_by_tanh_in_every_spelling() {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    for spelling in 0..4 {
        becomes(&["gelu"], |b| {
            let x = b.input("2, 8");
            let cube = if spelling & 1 == 0 {
                let three = b.scalar(3.0);
                b.op(Pow {}, &[x, three])
            } else {
                let s = b.op(Mul {}, &[x, x]);
                b.op(Mul {}, &[x, s])
            };
            let z = scaled(b, cube, 0.044715);
            let z = b.op(Add {}, &[x, z]);
            let z = scaled(b, z, c);
            let t = b.op(Tanh {}, &[z]);
            let t = shifted(b, t, 1.0);
            let h = scaled(b, x, 0.5);
            b.op(Mul {}, &if spelling & 2 == 0 { [h, t] } else { [t, h] })
        });
    }
    becomes(&["gelu"], |b| {
        let x = b.input("2, 8");
        let s = b.op(Mul {}, &[x, x]);
        let s = scaled(b, s, 0.044715);
        let s = shifted(b, s, 1.0);
        let xc = scaled(b, x, c);
        let z = b.op(Mul {}, &[xc, s]);
        let t = b.op(Tanh {}, &[z]);
        let t = shifted(b, t, 1.0);
        let t = scaled(b, t, 0.5);
        b.op(Mul {}, &[x, t])
    });
}

/// The powers of -0 and -∞ are not roots.
#[test]
fn roots_of_what_may_be_negative_stay_powers() {
    for (root, exponent) in [("sqrt", 0.5), ("rsqrt", -0.5)] {
        never(root, |b| {
            let (x, n) = (b.input("8"), b.scalar(exponent));
            let x = b.op(Mul {}, &[x, x]);
            let y = b.input("8");
            let d = b.op(Sub {}, &[x, y]);
            b.op(Pow {}, &[d, n])
        });
        becomes(&["mul", "add", root], |b| {
            let (x, n) = (b.input("8"), b.scalar(exponent));
            let x = b.op(Mul {}, &[x, x]);
            let x = shifted(b, x, 1e-5);
            b.op(Pow {}, &[x, n])
        });
    }
}

#[test]
fn what_is_not_quite_a_gelu() {
    never("gelu", |b| {
        let x = b.input("8");
        let z = scaled(b, x, 0.7);
        let e = b.op(Erf {}, &[z]);
        let e = shifted(b, e, 1.0);
        let h = scaled(b, x, 0.5);
        b.op(Mul {}, &[h, e])
    });
    never("gelu", |b| {
        let (x, y) = (b.input("8"), b.input("8"));
        let z = scaled(b, x, std::f64::consts::FRAC_1_SQRT_2);
        let e = b.op(Erf {}, &[z]);
        let e = shifted(b, e, 1.0);
        let h = scaled(b, y, 0.5);
        b.op(Mul {}, &[h, e])
    });
}

#[test]
fn sigmoid_and_silu() {
    becomes(&["silu"], |b| {
        let x = b.input("2, 8");
        let s = b.op(Sigmoid {}, &[x]);
        b.op(Mul {}, &[s, x])
    });
    for by_product in [false, true] {
        becomes(&["silu"], |b| {
            let x = b.input("2, 8");
            let n = b.op(Neg {}, &[x]);
            let e = b.op(Exp {}, &[n]);
            let s = shifted(b, e, 1.0);
            if by_product {
                let r = b.op(Reciprocal {}, &[s]);
                b.op(Mul {}, &[x, r])
            } else {
                b.op(Div {}, &[x, s])
            }
        });
    }
    becomes(&["sigmoid"], |b| {
        let x = b.input("2, 8");
        let h = scaled(b, x, 0.5);
        let t = b.op(Tanh {}, &[h]);
        let t = scaled(b, t, 0.5);
        shifted(b, t, 0.5)
    });
    becomes(&["softplus"], |b| {
        let x = b.input("2, 8");
        let e = b.op(Exp {}, &[x]);
        let s = shifted(b, e, 1.0);
        b.op(Log {}, &[s])
    });
    never("silu", |b| {
        let (x, y) = (b.input("8"), b.input("8"));
        let s = b.op(Sigmoid {}, &[x]);
        b.op(Mul {}, &[s, y])
    });
}

#[test]
fn softmax_is_recovered() {
    for shift in [false, true] {
        becomes(&["softmax"], |b| {
            let x = b.input("2, 8");
            let z = if shift {
                let m = b.op(Reduce { kind: ReduceKind::Max, axes: vec![1], keep: true }, &[x]);
                b.op(Sub {}, &[x, m])
            } else {
                x
            };
            let e = b.op(Exp {}, &[z]);
            let s = b.op(Reduce { kind: ReduceKind::Sum, axes: vec![1], keep: true }, &[e]);
            b.op(Div {}, &[e, s])
        });
    }
}

/// How an attention is written out.
#[derive(Clone, Copy, Debug)]
struct Spelling {
    /// 0: on the scores, 1: on q, 2: on k, 3: on both, 4: scores divided, 5: none.
    scale: u8,
    /// 0: none, 1: added, 2: `select`ed -1e9, 3: `select`ed the lowest number with the arguments swapped, 4: added before the scale,
    /// 5: `select`ed -100, 6: added, then `select`ed the lowest number.
    mask: u8,
    /// Whether batch and heads are one axis in the products, and another rank is used for the mask.
    merged: bool,
    /// Whether k is transposed in one step from `[b, m, h, d]`.
    direct: bool,
}

fn attention(b: &mut Build, s: Spelling) -> Value {
    let (q, k, v) = (b.input("2, seq, 12"), b.input("2, keys, 12"), b.input("2, keys, 12"));
    let heads = |b: &mut Build, x, sizes: &str, perm: &[usize]| {
        let x = reshape(b, x, sizes);
        transpose(b, x, perm)
    };
    let mut q = heads(b, q, "2, seq, 3, 4", &[0, 2, 1, 3]);
    let mut k = if s.direct {
        heads(b, k, "2, keys, 3, 4", &[0, 2, 3, 1])
    } else {
        let k = heads(b, k, "2, keys, 3, 4", &[0, 2, 1, 3]);
        transpose(b, k, &[0, 1, 3, 2])
    };
    let mut v = heads(b, v, "2, keys, 3, 4", &[0, 2, 1, 3]);
    if s.merged {
        q = reshape(b, q, "6, seq, 4");
        k = reshape(b, k, "6, 4, keys");
        v = reshape(b, v, "6, keys, 4");
    }
    if matches!(s.scale, 1 | 3) {
        q = scaled(b, q, if s.scale == 3 { 0.5f64.sqrt() } else { 0.5 });
    }
    if matches!(s.scale, 2 | 3) {
        k = scaled(b, k, if s.scale == 3 { 0.5f64.sqrt() } else { 0.5 });
    }
    let mut scores = b.op(Matmul {}, &[q, k]);
    if s.merged && s.mask != 0 {
        scores = reshape(b, scores, "2, 3, seq, keys");
    }
    if s.mask == 4 {
        let m = b.input("2, 1, 1, keys");
        scores = b.op(Add {}, &[m, scores]);
    }
    match s.scale {
        0 => scores = scaled(b, scores, 0.5),
        4 => {
            let two = b.scalar(2.0);
            scores = b.op(Div {}, &[scores, two]);
        }
        _ => {}
    }
    match s.mask {
        1 => {
            let m = b.input("2, 1, seq, keys");
            scores = b.op(Add {}, &[m, scores]);
        }
        2 => {
            let (m, fill) = (b.input_of(Elem::Bool, "seq, keys"), b.scalar(-1e9));
            scores = b.op(Select {}, &[m, scores, fill]);
        }
        5 => {
            let (m, fill) = (b.input_of(Elem::Bool, "seq, keys"), b.scalar(-100.0));
            scores = b.op(Select {}, &[m, scores, fill]);
        }
        3 | 6 => {
            if s.mask == 6 {
                let bias = b.input("3, seq, keys");
                scores = b.op(Add {}, &[scores, bias]);
            }
            let (m, fill) = (b.input_of(Elem::Bool, "2, 1, 1, keys"), b.scalar(f64::from(f32::MIN)));
            scores = b.op(Select {}, &[m, fill, scores]);
        }
        _ => {}
    }
    if s.merged && s.mask != 0 {
        scores = reshape(b, scores, "6, seq, keys");
    }
    let axis = b.g.ty(scores).rank() - 1;
    let p = b.op(Softmax { axis, log: false }, &[scores]);
    let mut y = b.op(Matmul {}, &[p, v]);
    if s.merged {
        y = reshape(b, y, "2, 3, seq, 4");
    }
    let y = transpose(b, y, &[0, 2, 1, 3]);
    reshape(b, y, "2, seq, 12")
}

fn recovered(s: Spelling) -> (Graph, Graph) {
    let mut b = Build::new();
    let y = attention(&mut b, s);
    let g = b.done(y);
    let out = run(&g, PASSES).0;
    (g, out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention_in_any_spelling(scale in 0u8..6, mask in 0u8..7, merged: bool, direct: bool) {
        let s = Spelling { scale, mask, merged, direct };
        let (g, out) = recovered(s);
        prop_assert_eq!(count(&out, "attention"), 1, "{:?}", s);
        prop_assert_eq!(count(&out, "matmul") + count(&out, "softmax"), 0, "{:?}", s);
        assert_close(&g, &out);
    }
}

#[test]
fn the_scale_of_attention_is_absorbed() {
    for scale in 0..5 {
        let (_, out) = recovered(Spelling { scale, mask: 1, merged: false, direct: true });
        let scales: Vec<f64> =
            out.nodes().filter_map(|(_, d)| if let Op::Attention(a) = &d.op { Some(a.scale.get()) } else { None }).collect();
        assert!(scales.len() == 1 && (scales[0] - 0.5).abs() < 1e-6, "{scales:?}");
        assert_eq!(count(&out, "mul"), 0);
    }
}

#[test]
fn attention_takes_the_place_of_its_decomposition() {
    let (g, out) = recovered(Spelling { scale: 0, mask: 1, merged: true, direct: false });
    let (_, node) = out.nodes().find(|(_, d)| d.op.mnemonic() == "attention").unwrap();
    let parts: Vec<&str> = node.loc.names().collect();
    let softmax = g.nodes().find(|(_, d)| d.op.mnemonic() == "softmax").unwrap().1.loc.clone();
    assert!(parts.contains(&softmax.names().next().unwrap()), "{parts:?}");
    assert!(parts.len() >= 5, "{parts:?}");
    assert!(out.nodes().all(|(_, d)| d.loc != Loc::default()));
}

#[test]
fn attention_behind_the_replacement_of_nan() {
    let guarded = |b: &mut Build, fill: f64| {
        let (q, k, v) = (b.input("2, 3, 5, 4"), b.input("2, 3, 4, 6"), b.input("2, 3, 6, 4"));
        let scores = b.op(Matmul {}, &[q, k]);
        let (m, zero, fill) = (b.constant(random(Elem::Bool, &[5, 6], 5)), b.scalar(0.0), b.scalar(fill));
        let bias = b.op(Select {}, &[m, zero, fill]);
        let scores = b.op(Add {}, &[scores, bias]);
        let p = b.op(Softmax { axis: 3, log: false }, &[scores]);
        let nan = b.op(IsNan {}, &[p]);
        let p = b.op(Select {}, &[nan, zero, p]);
        b.op(Matmul {}, &[p, v])
    };
    becomes(&["attention"], |b| guarded(b, f64::from(f32::MIN)));
    becomes(&["attention", "is_nan", "select"], |b| guarded(b, f64::NEG_INFINITY));
}

#[test]
fn attention_with_grouped_heads() {
    let out = becomes(&["attention"], |b| {
        let (q, k, v) = (b.input("2, 6, 5, 4"), b.input("2, 3, keys, 4"), b.input("2, 3, keys, 4"));
        let repeat = |b: &mut Build, x| {
            let x = reshape(b, x, "2, 3, 1, keys, 4");
            let x = b.op(Expand { shape: shape("2, 3, 2, keys, 4") }, &[x]);
            reshape(b, x, "2, 6, keys, 4")
        };
        let (k, v) = (repeat(b, k), repeat(b, v));
        let k = transpose(b, k, &[0, 1, 3, 2]);
        let s = b.op(Matmul {}, &[q, k]);
        let s = scaled(b, s, 0.5);
        let p = b.op(Softmax { axis: 3, log: false }, &[s]);
        b.op(Matmul {}, &[p, v])
    });
    let (_, node) = out.nodes().find(|(_, d)| d.op.mnemonic() == "attention").unwrap();
    assert_eq!(out.ty(node.inputs[1]).shape, shape("2, 3, keys, 4"));
}

#[test]
fn attention_with_windows_and_two_biases() {
    becomes(&["add", "attention"], |b| {
        let (q, k, v) = (b.input("8, 3, 5, 4"), b.input("8, 3, 5, 4"), b.input("8, 3, 5, 4"));
        let k = transpose(b, k, &[0, 1, 3, 2]);
        let s = b.op(Matmul {}, &[q, k]);
        let position = b.weight(&[3, 5, 5], 9);
        let s = b.op(Add {}, &[s, position]);
        let s = reshape(b, s, "2, 4, 3, 5, 5");
        let windows = b.input("1, 4, 1, 5, 5");
        let s = b.op(Add {}, &[s, windows]);
        let s = reshape(b, s, "8, 3, 5, 5");
        let p = b.op(Softmax { axis: 3, log: false }, &[s]);
        b.op(Matmul {}, &[p, v])
    });
}

#[test]
fn attention_with_a_learnt_temperature_per_head() {
    becomes(&["attention", "mul"], |b| {
        let (q, k, v) = (b.input("2, 3, 5, 4"), b.input("2, 3, 4, 6"), b.input("2, 3, 6, 4"));
        let s = b.op(Matmul {}, &[q, k]);
        let temperature = b.weight(&[3, 1, 1], 9);
        let s = b.op(Mul {}, &[s, temperature]);
        let p = b.op(Softmax { axis: 3, log: false }, &[s]);
        b.op(Matmul {}, &[p, v])
    });
}

#[test]
fn what_is_not_quite_attention() {
    let wrong = |b: &mut Build, axis: usize, fill: Option<f64>, log: bool| {
        let (q, k, v) = (b.input("2, 3, 5, 4"), b.input("2, 3, 4, 5"), b.input("2, 3, 5, 4"));
        let mut s = b.op(Matmul {}, &[q, k]);
        if let Some(fill) = fill {
            let (m, fill) = (b.input_of(Elem::Bool, "5, 5"), b.scalar(fill));
            s = b.op(Select {}, &[m, s, fill]);
        }
        let p = b.op(Softmax { axis, log }, &[s]);
        b.op(Matmul {}, &[p, v])
    };
    never("attention", |b| wrong(b, 2, None, false));
    never("attention", |b| wrong(b, 3, None, true));
    // What is no mask: numbers that a score may as well be.
    never("attention", |b| wrong(b, 3, Some(1.0), false));
}

/// Attention behind `masked`, which gets the scores of 16 queries and `keys` keys.
fn masked_attention(masked: impl FnOnce(&mut Build, Value) -> Value) -> (Graph, Graph) {
    let mut b = Build::new();
    let (q, k, v) = (b.input("2, 3, 16, 8"), b.input("2, 3, 8, keys"), b.input("2, 3, keys, 8"));
    let scores = b.op(Matmul {}, &[q, k]);
    let scores = masked(&mut b, scores);
    let p = b.op(Softmax { axis: 3, log: false }, &[scores]);
    let y = b.op(Matmul {}, &[p, v]);
    let g = b.done(y);
    let out = run(&g, PASSES).0;
    (g, out)
}

#[test]
fn hidden_scores_are_replaced_by_the_fill_whatever_they_are() {
    let hide = |fill: f64| {
        move |b: &mut Build, scores: Value| {
            let (m, fill) = (b.input_of(Elem::Bool, "2, 1, 1, keys"), b.scalar(fill));
            b.op(Select {}, &[m, scores, fill])
        }
    };
    let mask_value = |out: &Graph| out.nodes().find_map(|(_, d)| if let Op::Attention(a) = &d.op { Some(a.mask_value) } else { None });
    let added = |b: &mut Build, scores: Value| {
        let bias = b.input("3, 16, keys");
        b.op(Add {}, &[scores, bias])
    };
    for fill in [-100.0, -1e4, -1e9, f64::from(f32::MIN), f64::NEG_INFINITY] {
        let (_, out) = masked_attention(hide(fill));
        assert_eq!(mask_value(&out), Some(Some(fill.into())), "{fill}");
        // Sums may be as low as a fill that is not low.
        let (_, out) = masked_attention(|b, x| {
            let x = added(b, x);
            hide(fill)(b, x)
        });
        assert_eq!(count(&out, "attention"), usize::from(fill <= -1e9), "{fill}");
    }
    assert_eq!(mask_value(&masked_attention(added).1), Some(None));
    // Queries and keys that make scores of NaN, infinities and 1e30; what is added to the fill does not make it less of one.
    let wild = |sizes: &[usize], every: usize| {
        let numbers = [f64::NAN, f64::INFINITY, 1e30, -1e30];
        Tensor::build(Elem::F32, sizes, |i| Scalar::Float(if i % 6 < every { numbers[i % 4] } else { (i % 7) as f64 / 4.0 - 0.7 }))
    };
    let seen = Tensor::build(Elem::Bool, &[2, 1, 1, 6], |i| Scalar::Int((2..6).contains(&i).into()));
    let bias = Tensor::build(Elem::F32, &[3, 16, 6], |_| Scalar::Float(128.0));
    let inputs = [wild(&[2, 3, 16, 8], 0), wild(&[2, 3, 8, 6], 2), wild(&[2, 3, 6, 8], 0), seen, bias];
    let behind = masked_attention(|b, x| {
        let x = hide(-1e9)(b, x);
        added(b, x)
    });
    for (g, out) in [masked_attention(hide(-1e9)), behind] {
        assert_eq!(count(&out, "attention"), 1);
        let (_, dims) = common::random_inputs(&g, 6, 1);
        let [expected, found] = [&g, &out].map(|g| g.evaluate(&inputs[..g.inputs().len()], &dims).expect("it runs").remove(0).to_f64s());
        for (x, y) in expected.iter().zip(&found) {
            assert!((x - y).abs() < 1e-5, "{y} for {x}");
        }
    }
}

#[test]
fn probabilities_that_are_wanted_are_not_computed_twice() {
    let mut b = Build::new();
    let (q, k, v) = (b.input("2, 3, 64, 16"), b.input("2, 3, 16, 64"), b.input("2, 3, 64, 16"));
    let s = b.op(Matmul {}, &[q, k]);
    let p = b.op(Softmax { axis: 3, log: false }, &[s]);
    b.output(p);
    let y = b.op(Matmul {}, &[p, v]);
    let g = b.done(y);
    let (out, _) = run(&g, PASSES);
    assert_eq!((count(&out, "attention"), count(&out, "softmax"), count(&out, "matmul")), (0, 1, 2));
    assert_close(&g, &out);
}

fn last(b: &mut Build, x: Value, start: i64, step: i64, len: i64) -> Value {
    let mut lens = b.g.ty(x).shape.clone();
    let rank = lens.rank();
    lens.0[rank - 1] = len.into();
    let (mut starts, mut steps) = (vec![Dim::from(0); rank], vec![1; rank]);
    (starts[rank - 1], steps[rank - 1]) = (start.into(), step);
    b.op(Slice { starts, steps, lens }, &[x])
}

#[test]
fn rotary_embedding_of_halves() {
    for swap in [false, true] {
        let out = becomes(&["cos", "mul", "rotary", "sin"], |b| {
            let (x, positions) = (b.input("2, 3, seq, 8"), b.input("1, seq, 1"));
            let frequencies = b.weight(&[1, 1, 4], 3);
            let f = b.op(Mul {}, &[positions, frequencies]);
            let f = b.op(Concat { axis: 2 }, &[f, f]);
            let one = b.scalar(1.0);
            let (cos, sin) = (b.op(Cos {}, &[f]), b.op(Sin {}, &[f]));
            let (cos, sin) = (b.op(Mul {}, &[cos, one]), b.op(Mul {}, &[sin, one]));
            let (cos, sin) = (reshape(b, cos, "1, 1, seq, 8"), reshape(b, sin, "1, 1, seq, 8"));
            let (left, right) = (last(b, x, 0, 1, 4), last(b, x, 4, 1, 4));
            let right = b.op(Neg {}, &[right]);
            let rotated = b.op(Concat { axis: 3 }, &[right, left]);
            let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[rotated, sin]));
            b.op(Add {}, &if swap { [v, u] } else { [u, v] })
        });
        assert_eq!(count(&out, "concat"), 0);
    }
}

#[test]
fn rotary_embedding_by_tables() {
    let table = |seed, repeated: bool| {
        let half = random(Elem::F32, &[6, 4], seed);
        Tensor::build(Elem::F32, &[6, 8], |i| half.get(if repeated { i / 8 * 4 + i % 4 } else { i % 24 }))
    };
    let build = |b: &mut Build, repeated: bool| {
        let x = b.input("2, 3, 6, 8");
        let (cos, sin) = (b.constant(table(1, repeated)), b.constant(table(2, repeated)));
        let (left, right) = (last(b, x, 0, 1, 4), last(b, x, 4, 1, 4));
        let right = b.op(Neg {}, &[right]);
        let rotated = b.op(Concat { axis: 3 }, &[right, left]);
        let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[sin, rotated]));
        b.op(Add {}, &[u, v])
    };
    becomes(&["rotary"], |b| build(b, true));
    never("rotary", |b| build(b, false));
}

#[test]
fn rotary_embedding_of_pairs() {
    becomes(&["rotary"], |b| {
        let (x, cos, sin) = (b.input("2, 3, seq, 8"), b.input("seq, 4"), b.input("seq, 4"));
        let twice = |b: &mut Build, f| {
            let f = reshape(b, f, "seq, 4, 1");
            let f = b.op(Expand { shape: shape("seq, 4, 2") }, &[f]);
            reshape(b, f, "seq, 8")
        };
        let (cos, sin) = (twice(b, cos), twice(b, sin));
        let (even, odd) = (last(b, x, 0, 2, 4), last(b, x, 1, 2, 4));
        let odd = b.op(Neg {}, &[odd]);
        let (odd, even) = (reshape(b, odd, "2, 3, seq, 4, 1"), reshape(b, even, "2, 3, seq, 4, 1"));
        let rotated = b.op(Concat { axis: 4 }, &[odd, even]);
        let rotated = reshape(b, rotated, "2, 3, seq, 8");
        let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[rotated, sin]));
        b.op(Add {}, &[u, v])
    });
}

#[test]
fn rotary_embedding_of_pairs_in_a_part_of_the_channels() {
    // Slices of the rotated part are slices of the whole; `start` moves the odd ones.
    let build = |b: &mut Build, start: i64| {
        let (whole, cos, sin) = (b.input("2, 3, seq, 16"), b.input("seq, 4"), b.input("seq, 4"));
        let twice = |b: &mut Build, f| {
            let f = reshape(b, f, "seq, 4, 1, 1");
            let f = b.op(Expand { shape: shape("seq, 4, 2, 1") }, &[f]);
            reshape(b, f, "seq, 8")
        };
        let (cos, sin) = (twice(b, cos), twice(b, sin));
        let x = last(b, whole, 4, 1, 8);
        let (even, odd) = (last(b, whole, 4, 2, 4), last(b, whole, start, 2, 4));
        let odd = b.op(Neg {}, &[odd]);
        let (odd, even) = (reshape(b, odd, "2, 3, seq, 4, 1"), reshape(b, even, "2, 3, seq, 4, 1"));
        let rotated = b.op(Concat { axis: 4 }, &[odd, even]);
        let rotated = reshape(b, rotated, "2, 3, seq, 8");
        let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[rotated, sin]));
        b.op(Add {}, &[u, v])
    };
    becomes(&["rotary"], |b| build(b, 5));
    never("rotary", |b| build(b, 3));
}

#[test]
fn rotary_embedding_written_by_halves() {
    becomes(&["rotary"], |b| {
        let (x, cos, sin) = (b.input("2, 3, seq, 8"), b.input("seq, 4"), b.input("seq, 4"));
        let (left, right) = (last(b, x, 0, 1, 4), last(b, x, 4, 1, 4));
        let mut product = |x, y| b.op(Mul {}, &[x, y]);
        let (lc, rs, rc, ls) = (product(left, cos), product(right, sin), product(cos, right), product(left, sin));
        let (u, v) = (b.op(Sub {}, &[lc, rs]), b.op(Add {}, &[ls, rc]));
        b.op(Concat { axis: 3 }, &[u, v])
    });
}

#[test]
fn what_is_not_quite_rotary() {
    // The wrong half is negated.
    never("rotary", |b| {
        let x = b.input("2, 3, 6, 8");
        let (cos, sin) = (b.input("6, 4"), b.input("6, 4"));
        let (cos, sin) = (b.op(Concat { axis: 1 }, &[cos, cos]), b.op(Concat { axis: 1 }, &[sin, sin]));
        let (left, right) = (last(b, x, 0, 1, 4), last(b, x, 4, 1, 4));
        let left = b.op(Neg {}, &[left]);
        let rotated = b.op(Concat { axis: 3 }, &[right, left]);
        let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[rotated, sin]));
        b.op(Add {}, &[u, v])
    });
}

#[test]
fn constants_move_into_weights() {
    // Scale and shift behind a linear layer, as batch normalisation leaves them.
    becomes(&["add", "matmul"], |b| {
        let (x, w, bias) = (b.input("2, seq, 6"), b.weight(&[6, 4], 1), b.weight(&[4], 2));
        let (scale, shift) = (b.weight(&[4], 3), b.weight(&[4], 4));
        let y = b.op(Matmul {}, &[x, w]);
        let y = b.op(Add {}, &[y, bias]);
        let y = b.op(Mul {}, &[y, scale]);
        b.op(Add {}, &[shift, y])
    });
    becomes(&["matmul"], |b| {
        let (x, w, c) = (b.input("2, seq, 6"), b.weight(&[6, 4], 1), b.weight(&[6], 2));
        let y = b.op(Mul {}, &[c, x]);
        b.op(Matmul {}, &[y, w])
    });
    becomes(&["conv"], |b| {
        let (x, w) = (b.input("2, 3, 9, 9"), b.weight(&[4, 3, 3, 3], 1));
        let (scale, shift) = (b.weight(&[1, 4, 1, 1], 3), b.weight(&[4, 1, 1], 4));
        let ones = vec![1, 1];
        let conv = Conv { strides: ones.clone(), pads_before: ones.clone(), pads_after: ones.clone(), dilations: ones, groups: 1 };
        let y = b.op(conv, &[x, w]);
        let y = b.op(Mul {}, &[y, scale]);
        b.op(Add {}, &[shift, y])
    });
    // A weight that is used twice is not copied for a factor that is cheap to apply.
    never("conv", |b| {
        let (x, c) = (b.input("2, 3"), b.weight(&[2, 1], 1));
        let w = b.weight(&[3, 3], 2);
        let y = b.op(Matmul {}, &[x, w]);
        b.op(Mul {}, &[y, c])
    });
}

#[test]
fn chained_constants_merge() {
    becomes(&["mul"], |b| {
        let x = b.input("2, 8");
        let y = scaled(b, x, 3.0);
        let y = scaled(b, y, 0.7);
        let c = b.scalar(4.0);
        b.op(Div {}, &[y, c])
    });
    becomes(&["add"], |b| {
        let (x, c) = (b.input("2, 8"), b.weight(&[8], 3));
        let y = shifted(b, x, 3.0);
        let y = b.op(Add {}, &[c, y]);
        shifted(b, y, 4.0)
    });
}

/// `x` and so many steps behind it, each with a constant of its own; `kinds` come in turn. Every third constant has a size.
fn chain(b: &mut Build, kinds: &[&str], steps: usize) -> Vec<Value> {
    let mut x = b.input("seq, 8");
    let mut all = vec![];
    for i in 0..steps {
        let kind = kinds[i % kinds.len()];
        let numbers = random(Elem::F32, &[if i % 3 == 0 { 8 } else { 1 }], i as u64).to_f64s();
        let sizes = if i % 3 == 0 { vec![8] } else { vec![] };
        let c = b.constant(Tensor::build(Elem::F32, &sizes, |i| Scalar::Float(1.0 + numbers[i] / 8.0)));
        x = match kind {
            "mul" => b.op(Mul {}, &if i % 2 == 0 { [x, c] } else { [c, x] }),
            "add" => b.op(Add {}, &if i % 2 == 0 { [x, c] } else { [c, x] }),
            "div" => b.op(Div {}, &[x, c]),
            "sub" => b.op(Sub {}, &[x, c]),
            "sub from" => b.op(Sub {}, &[c, x]),
            _ => b.op(Neg {}, &[x]),
        };
        all.push(x);
    }
    all
}

#[test]
fn long_chains_of_constants_become_one_product_and_one_sum() {
    let mixed = ["mul", "add", "div", "sub", "neg", "sub from"];
    let kinds: [(&[&str], &[&str]); 4] =
        [(&["mul"], &["mul"]), (&["add", "sub"], &["add"]), (&["mul", "add"], &["add", "mul"]), (&mixed, &["add", "mul"])];
    for (kinds, expected) in kinds {
        for steps in [9, 300] {
            becomes(expected, |b| *chain(b, kinds, steps).last().unwrap());
        }
        // Every value of the chain is wanted.
        let mut b = Build::new();
        for v in chain(&mut b, kinds, 60) {
            b.output(v);
        }
        let (out, stats) = run(&b.g, "fold,simplify,cse,dce,eqsat");
        assert!(stats.get("e-nodes") < 60 * 8 && stats.get("rounds") < 12, "{stats}");
        assert_close(&b.g, &out);
        // What one step is made of says where it came from.
        let mut b = Build::new();
        let last = *chain(&mut b, kinds, 20).last().unwrap();
        let (out, _) = run(&b.done(last), "eqsat,dce");
        let names: BTreeSet<&str> = out.nodes().flat_map(|(_, d)| d.loc.names()).collect();
        assert_eq!(names.len(), 20, "{names:?}");
    }
}

#[test]
fn chains_of_repeated_numbers_stay_numbers() {
    let mut b = Build::new();
    let x = b.input("1024");
    let ones = b.constant(Tensor::build(Elem::F32, &[1024], |_| Scalar::Float(0.5)));
    let y = (0..20).fold(x, |y, _| b.op(Add {}, &[y, ones]));
    let (out, _) = run(&b.done(y), "eqsat,dce");
    let sizes: Vec<usize> = out.values().filter_map(|(v, _)| out.as_const(v)).map(Tensor::len).collect();
    assert_eq!((count(&out, "add"), &sizes[..]), (1, &[1][..]));
}

#[test]
fn chains_that_cannot_be_merged_do_not_grow() {
    // Each pair of factors overflows or vanishes, but longer parts of the chain do not.
    let mut b = Build::new();
    let mut x = b.input("seq, 8");
    for i in 0..200 {
        x = scaled(&mut b, x, [1e30, 1e30, 1e-30, 1e-30][i % 4]);
    }
    let g = b.done(x);
    let (out, stats) = run(&g, "fold,simplify,cse,dce,eqsat");
    assert!(stats.get("e-nodes") < 200 * 8, "{stats}");
    assert_close(&g, &out);
    // Chains that are left to the rules, one behind the other.
    for kinds in [&["mul"][..], &["add"], &["mul", "add"]] {
        let mut b = Build::new();
        let mut y = b.input("seq, 8");
        for _ in 0..12 {
            let last = *chain(&mut b, kinds, 8).last().unwrap();
            y = b.op(Max {}, &[y, last]);
        }
        let g = b.done(y);
        let (out, stats) = run(&g, "fold,simplify,cse,dce,eqsat");
        assert!(stats.get("e-nodes") < 12 * 8 * 12, "{stats}");
        assert_close(&g, &out);
    }
}

#[test]
fn factors_that_overflow_together_stay_apart() {
    becomes(&["mul", "mul"], |b| {
        let x = b.input("2, 8");
        let y = scaled(b, x, 1e30);
        scaled(b, y, 1e30)
    });
    becomes(&["div"], |b| {
        let (x, c) = (b.input("2, 8"), b.scalar(1e-40));
        b.op(Div {}, &[x, c])
    });
}

#[test]
fn fused_nodes_pass_unchanged() {
    let (g, out) = recovered(Spelling { scale: 0, mask: 1, merged: true, direct: false });
    let (fused, _) = run(&out, "legalize,fuse");
    let (again, _) = run(&fused, "eqsat,simplify,cse,dce");
    assert_eq!(count(&fused, "fused"), count(&again, "fused"));
    assert_close(&g, &again);
}

#[test]
fn the_same_graph_gives_the_same_result() {
    for s in [Spelling { scale: 3, mask: 2, merged: true, direct: false }, Spelling { scale: 0, mask: 1, merged: false, direct: true }] {
        assert_eq!(recovered(s).1.to_string(), recovered(s).1.to_string());
    }
}

#[test]
fn a_second_run_changes_nothing() {
    let (_, out) = recovered(Spelling { scale: 3, mask: 2, merged: true, direct: false });
    let (again, _) = run(&out, PASSES);
    assert_eq!(
        out.nodes().map(|(_, d)| d.op.mnemonic()).collect::<Vec<_>>(),
        again.nodes().map(|(_, d)| d.op.mnemonic()).collect::<Vec<_>>()
    );
}

#[test]
fn deep_residual_chains_are_extracted_without_blowing_up() {
    let mut b = Build::new();
    let mut x = b.input("1, seq, 8");
    for layer in 0..48 {
        let y = layer_norm(&mut b, x, &[2], 8, layer);
        let w = b.weight(&[8, 8], u64::from(layer));
        let y = b.op(Matmul {}, &[y, w]);
        let y = gelu(&mut b, y, layer);
        x = b.op(Add {}, &[x, y]);
    }
    let g = b.done(x);
    let (out, stats) = run(&g, "fold,simplify,cse,dce,eqsat");
    assert_eq!((count(&out, "layer_norm"), count(&out, "gelu"), count(&out, "erf")), (48, 48, 0), "{stats}");
}

#[test]
fn empty_and_trivial_graphs_pass() {
    let mut b = Build::new();
    let x = b.input("2");
    let c = b.constant(Tensor::scalar(Elem::F32, Scalar::Float(2.0)));
    b.output(x);
    b.output(c);
    let g = b.done(x);
    let (out, _) = run(&g, PASSES);
    assert_eq!((out.nodes().len(), out.outputs().len()), (0, 3));
    assert_close(&g, &out);
}

#[test]
fn attention_in_half_precision_with_a_softmax_in_single() {
    let out = becomes(&["attention", "cast", "cast", "cast", "cast", "cast"], |b| {
        let half = |b: &mut Build, sizes| b.input_of(Elem::F16, sizes);
        let (q, k, v) = (half(b, "2, 3, 5, 4"), half(b, "2, 3, 4, 6"), half(b, "2, 3, 6, 4"));
        let s = b.op(Matmul {}, &[q, k]);
        let bias = half(b, "2, 1, 5, 6");
        let s = b.op(Add {}, &[s, bias]);
        let s = b.op(Cast { to: Elem::F32 }, &[s]);
        let p = b.op(Softmax { axis: 3, log: false }, &[s]);
        let p = b.op(Cast { to: Elem::F16 }, &[p]);
        b.op(Matmul {}, &[p, v])
    });
    let (_, node) = out.nodes().find(|(_, d)| d.op.mnemonic() == "attention").unwrap();
    assert_eq!(out.ty(node.outputs[0]).elem, Elem::F32);
}

#[test]
fn attention_by_einsum_with_keys_first() {
    becomes(&["attention"], |b| {
        let (q, k, v) = (b.input("2, seq, 3, 4"), b.input("2, keys, 3, 4"), b.input("2, keys, 3, 4"));
        let q = transpose(b, q, &[0, 2, 3, 1]);
        let (k, v) = (transpose(b, k, &[0, 2, 1, 3]), transpose(b, v, &[0, 2, 1, 3]));
        let (q, k) = (reshape(b, q, "6, 4, seq"), reshape(b, k, "6, keys, 4"));
        let s = b.op(Matmul {}, &[k, q]);
        let s = reshape(b, s, "2, 3, keys, seq");
        let s = transpose(b, s, &[0, 1, 3, 2]);
        let s = scaled(b, s, 0.5);
        let p = b.op(Softmax { axis: 3, log: false }, &[s]);
        b.op(Matmul {}, &[p, v])
    });
}

#[test]
fn attention_with_transposed_values() {
    becomes(&["attention"], |b| {
        // The attention of convolutional networks: channels first, no heads.
        let (q, k, v) = (b.input("2, 4, seq"), b.input("2, 4, keys"), b.input("2, 8, keys"));
        let q = transpose(b, q, &[0, 2, 1]);
        let s = b.op(Matmul {}, &[q, k]);
        let p = b.op(Softmax { axis: 2, log: false }, &[s]);
        let p = transpose(b, p, &[0, 2, 1]);
        b.op(Matmul {}, &[v, p])
    });
}

/// Attention of `seq` queries over `keys` keys under a mask that `hidden` builds; whether it becomes causal.
fn is_causal(seq: &str, keys: &str, mask: impl FnOnce(&mut Build) -> Value, visible: bool) -> bool {
    let mut b = Build::new();
    let (q, k, v) = (b.input(&format!("2, 3, {seq}, 4")), b.input(&format!("2, 3, {keys}, 4")), b.input(&format!("2, 3, {keys}, 4")));
    let k = transpose(&mut b, k, &[0, 1, 3, 2]);
    let s = b.op(Matmul {}, &[q, k]);
    let (zero, fill) = (b.scalar(0.0), b.scalar(f64::from(f32::MIN)));
    let m = mask(&mut b);
    let bias = b.op(Select {}, &if visible { [m, zero, fill] } else { [m, fill, zero] });
    let s = b.op(Add {}, &[s, bias]);
    let p = b.op(Softmax { axis: 3, log: false }, &[s]);
    let y = b.op(Matmul {}, &[p, v]);
    let g = b.done(y);
    let (out, _) = run(&g, PASSES);
    assert_close(&g, &out);
    let mut causal = out.nodes().filter_map(|(_, d)| if let Op::Attention(a) = &d.op { Some(a.causal) } else { None });
    causal.next().expect("an attention")
}

fn positions(b: &mut Build, n: &str, sizes: &str) -> Value {
    let p = b.op(Iota { elem: Elem::I64, shape: shape(n), axis: 0 }, &[]);
    reshape(b, p, sizes)
}

#[test]
fn causal_masks_are_recognised() {
    let iotas = |b: &mut Build| (positions(b, "seq", "1, 1, 1, seq"), positions(b, "seq", "1, 1, seq, 1"));
    let le = |b: &mut Build| {
        let (k, q) = iotas(b);
        b.op(Le {}, &[k, q])
    };
    let lt = |b: &mut Build| {
        let (k, q) = iotas(b);
        b.op(Lt {}, &[q, k])
    };
    assert!(is_causal("seq", "seq", le, true));
    assert!(is_causal("seq", "seq", lt, false));
    assert!(!is_causal("seq", "seq", le, false));
    assert!(!is_causal("seq", "seq", lt, true));
    let strictly = |b: &mut Build| {
        let (k, q) = iotas(b);
        b.op(Lt {}, &[k, q])
    };
    assert!(!is_causal("seq", "seq", strictly, true), "the first query would see no key");
    let anti = |b: &mut Build| {
        let (k, q) = iotas(b);
        b.op(Le {}, &[q, k])
    };
    assert!(!is_causal("seq", "seq", anti, true));
    // With keys of the past: queries are the last of the keys.
    let with_past = |lead: i64| {
        move |b: &mut Build| {
            let (k, q) = (positions(b, "7", "1, 1, 1, 7"), positions(b, "5", "1, 1, 5, 1"));
            let lead = b.constant(Tensor::scalar(Elem::I64, Scalar::Int(lead.into())));
            let q = b.op(Add {}, &[q, lead]);
            b.op(Le {}, &[k, q])
        }
    };
    assert!(is_causal("5", "7", with_past(2), true));
    assert!(!is_causal("5", "7", with_past(1), true));
    let table = |b: &mut Build| b.constant(Tensor::build(Elem::Bool, &[1, 1, 5, 5], |i| Scalar::Int((i % 5 <= i / 5).into())));
    assert!(is_causal("5", "5", table, true));
}

/// The scale of a quantization: what is rounded behind it shows its last bit.
#[test]
fn single_numbers_are_divided_by_constants() {
    for (sizes, divisions) in [("", 1), ("1,1", 1), ("2", 0), ("n", 0)] {
        let mut b = Build::new();
        let (x, c) = (b.input(sizes), b.scalar(255.0));
        let y = b.op(Div {}, &[x, c]);
        let (out, _) = run(&b.done(y), PASSES);
        assert_eq!(count(&out, "div"), divisions, "{sizes}");
    }
}

#[test]
fn factors_that_overflow_stay_behind_products() {
    for (factor, products) in [(3.0, 0), (f64::INFINITY, 1), (f64::NAN, 1), (1e-40, 1)] {
        let mut b = Build::new();
        let (x, w) = (b.input("n,4"), b.weight(&[4, 2], 1));
        let y = b.op(Matmul {}, &[x, w]);
        let y = scaled(&mut b, y, factor);
        let (out, _) = run(&b.done(y), PASSES);
        assert_eq!(count(&out, "mul"), products, "{factor}");
    }
}

#[test]
fn adapters_of_low_rank_become_part_of_the_matrix() {
    for biased in [false, true] {
        let mut expected = vec!["matmul"];
        expected.extend(biased.then_some("add"));
        becomes(&expected, |b| {
            let x = b.input("2, seq, 32");
            let (w, down, up) = (b.weight(&[32, 48], 1), b.weight(&[32, 4], 2), b.weight(&[4, 48], 3));
            let mut y = b.op(Matmul {}, &[x, w]);
            if biased {
                let bias = b.weight(&[48], 4);
                y = b.op(Add {}, &[y, bias]);
            }
            let low = b.op(Matmul {}, &[x, down]);
            let low = b.op(Matmul {}, &[low, up]);
            let low = scaled(b, low, 0.25);
            b.op(Add {}, &[y, low])
        });
    }
    // Products of different operands stay two.
    becomes(&["add", "matmul", "matmul"], |b| {
        let (x, y) = (b.input("2, seq, 32"), b.input("2, seq, 32"));
        let (v, w) = (b.weight(&[32, 48], 1), b.weight(&[32, 48], 2));
        let (x, y) = (b.op(Matmul {}, &[x, v]), b.op(Matmul {}, &[y, w]));
        b.op(Add {}, &[x, y])
    });
}
