//! Attention: its decompositions, heads, biases and scales.

use super::*;

/// How an attention is written out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spelling {
    /// 0: on the scores, 1: on q, 2: on k, 3: on both, 4: scores divided, 5: none.
    pub(super) scale: u8,
    /// 0: none, 1: added, 2: `select`ed -1e9, 3: `select`ed the lowest number with the arguments swapped, 4: added before the scale,
    /// 5: `select`ed -100, 6: added, then `select`ed the lowest number.
    pub(super) mask: u8,
    /// Whether batch and heads are one axis in the products, and another rank is used for the mask.
    pub(super) merged: bool,
    /// Whether k is transposed in one step from `[b, m, h, d]`.
    pub(super) direct: bool,
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

pub(super) fn recovered(s: Spelling) -> (Graph, Graph) {
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
