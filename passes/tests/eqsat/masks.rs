//! Masks of attention.

use super::*;

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
