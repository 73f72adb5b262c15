//! simplify: every rule fires on its left side and keeps the bits, and not on what only looks like it.

mod common;

use common::{Build, assert_exact, count, run, shape};
use proptest::prelude::*;
use tfc_ir::dim::Dim;
use tfc_ir::graph::{Graph, Value};
use tfc_ir::ops::*;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;

fn slice(b: &mut Build, x: Value, starts: &[i64], steps: &[i64], lens: &str) -> Value {
    b.op(Slice { starts: starts.iter().map(|&n| Dim::from(n)).collect(), steps: steps.to_vec(), lens: shape(lens) }, &[x])
}

fn reshape(b: &mut Build, x: Value, sizes: &str) -> Value {
    b.op(Reshape { shape: shape(sizes) }, &[x])
}

fn transpose(b: &mut Build, x: Value, perm: &[usize]) -> Value {
    b.op(Transpose { perm: perm.to_vec() }, &[x])
}

/// `rule` rewrites the graph, which then has `nodes` nodes and gives the same bits.
fn fires(rule: &str, nodes: usize, build: impl FnOnce(&mut Build) -> Value) {
    let mut b = Build::new();
    let y = build(&mut b);
    let g = b.done(y);
    let (out, stats) = run(&g, "simplify");
    assert!(stats.get(rule) > 0, "{rule} does not fire: {stats}");
    assert_eq!(out.nodes().len(), nodes, "{rule}: {stats}");
    assert_exact(&g, &out);
}

/// Nothing is rewritten.
fn rests(build: impl FnOnce(&mut Build) -> Value) {
    let mut b = Build::new();
    let y = build(&mut b);
    let g = b.done(y);
    let (out, stats) = run(&g, "simplify");
    assert_eq!(out.nodes().len(), g.nodes().len(), "{stats}");
    assert_eq!(stats.iter().len(), 0, "{stats}");
}

#[test]
fn views_merge_and_cancel() {
    fires("reshape-of-reshape", 1, |b| {
        let x = b.input("2, seq, 6");
        let y = reshape(b, x, "2, seq, 2, 3");
        let y = reshape(b, y, "1, 2, seq, 6");
        reshape(b, y, "2, seq, 3, 2")
    });
    fires("reshape-of-reshape", 0, |b| {
        let x = b.input("2, seq, 6");
        let y = reshape(b, x, "2, seq, 2, 3");
        reshape(b, y, "2, seq, 6")
    });
    fires("reshape-to-same", 0, |b| {
        let x = b.input("2, seq, 6");
        reshape(b, x, "2, seq, 6")
    });
    fires("transpose-of-transpose", 1, |b| {
        let x = b.input("2, 3, 4");
        let y = transpose(b, x, &[1, 2, 0]);
        transpose(b, y, &[2, 1, 0])
    });
    fires("transpose-of-transpose", 0, |b| {
        let x = b.input("2, 3, 4");
        let y = transpose(b, x, &[1, 2, 0]);
        transpose(b, y, &[2, 0, 1])
    });
    fires("transpose-of-unit-axes", 1, |b| {
        let x = b.input("2, 1, seq, 1");
        transpose(b, x, &[1, 0, 3, 2])
    });
    fires("expand-to-same", 0, |b| {
        let x = b.input("2, seq");
        b.op(Expand { shape: shape("2, seq") }, &[x])
    });
    fires("expand-of-expand", 1, |b| {
        let x = b.input("1, 3");
        let y = b.op(Expand { shape: shape("4, 3") }, &[x]);
        b.op(Expand { shape: shape("2, 4, 3") }, &[y])
    });
    fires("slice-of-all", 0, |b| {
        let x = b.input("2, 5");
        slice(b, x, &[0, 0], &[1, 1], "2, 5")
    });
    fires("slice-of-slice", 1, |b| {
        let x = b.input("20");
        let y = slice(b, x, &[18], &[-2], "9");
        slice(b, y, &[1], &[3], "2")
    });
    fires("slice-of-concat", 1, |b| {
        let (x, y) = (b.input("2, 3"), b.input("2, 4"));
        let c = b.op(Concat { axis: 1 }, &[x, y]);
        slice(b, c, &[0, 4], &[1, 1], "2, 2")
    });
    fires("concat-of-concat", 1, |b| {
        let (x, y) = (b.input("2, 3"), b.input("2, 4"));
        let c = b.op(Concat { axis: 1 }, &[x, y]);
        b.op(Concat { axis: 1 }, &[y, c, x])
    });
    fires("concat-of-one", 0, |b| {
        let x = b.input("2, 3");
        b.op(Concat { axis: 1 }, &[x])
    });
}

#[test]
fn views_that_do_something_stay() {
    rests(|b| {
        let x = b.input("2, 3, 4");
        transpose(b, x, &[1, 0, 2])
    });
    rests(|b| {
        let x = b.input("2, 5");
        slice(b, x, &[0, 4], &[1, -1], "2, 5")
    });
    rests(|b| {
        let (x, y) = (b.input("2, 3"), b.input("2, 4"));
        let c = b.op(Concat { axis: 1 }, &[x, y]);
        slice(b, c, &[0, 2], &[1, 1], "2, 2")
    });
    rests(|b| {
        let (x, y) = (b.input("2, 3"), b.input("4, 3"));
        let c = b.op(Concat { axis: 0 }, &[x, y]);
        let d = b.input("6, 1");
        b.op(Concat { axis: 1 }, &[c, d])
    });
}

#[test]
fn broadcasting_needs_no_expansion() {
    fires("expand-in-elementwise", 1, |b| {
        let (x, y) = (b.input("2, seq, 3"), b.input("1, 3"));
        let y = b.op(Expand { shape: shape("2, seq, 3") }, &[y]);
        b.op(Add {}, &[x, y])
    });
    fires("expand-in-matmul", 1, |b| {
        let (x, y) = (b.input("4, 2, 3"), b.input("1, 3, 5"));
        let y = b.op(Expand { shape: shape("4, 3, 5") }, &[y]);
        b.op(Matmul {}, &[x, y])
    });
    // The expansion gives the result its size.
    rests(|b| {
        let (x, y) = (b.input("3"), b.input("1, 3"));
        let y = b.op(Expand { shape: shape("2, 3") }, &[y]);
        b.op(Add {}, &[x, y])
    });
}

#[test]
fn neutral_elements_go() {
    for (n, rule, op) in [(0.0, "add-zero", Op::from(Add {})), (1.0, "mul-one", Mul {}.into())] {
        for swap in [false, true] {
            fires(rule, 0, |b| {
                let (x, c) = (b.input("2, 3"), b.scalar(n));
                b.op(op.clone(), &if swap { [c, x] } else { [x, c] })
            });
        }
    }
    for (n, rule, op) in [(0.0, "sub-zero", Op::from(Sub {})), (1.0, "div-by-one", Div {}.into()), (1.0, "pow-one", Pow {}.into())] {
        fires(rule, 0, |b| {
            let (x, c) = (b.input("2, 3"), b.scalar(n));
            b.op(op.clone(), &[x, c])
        });
    }
    // The neutral element still broadcasts.
    fires("mul-one", 1, |b| {
        let x = b.input("3");
        let ones = b.constant(Tensor::build(Elem::F32, &[2, 3], |_| Scalar::Float(1.0)));
        b.op(Mul {}, &[x, ones])
    });
    rests(|b| {
        let (x, c) = (b.input("2, 3"), b.scalar(0.0));
        b.op(Sub {}, &[c, x])
    });
    rests(|b| {
        let (x, c) = (b.input("2, 3"), b.scalar(0.0));
        b.op(Mul {}, &[c, x])
    });
}

#[test]
fn operators_become_simpler_ones() {
    fires("div-of-one", 1, |b| {
        let (x, c) = (b.input("2, 3"), b.scalar(1.0));
        b.op(Div {}, &[c, x])
    });
    fires("pow-two", 1, |b| {
        let (x, c) = (b.input("2, 3"), b.scalar(2.0));
        b.op(Pow {}, &[x, c])
    });
    fires("mul-minus-one", 1, |b| {
        let (x, c) = (b.input("2, 3"), b.scalar(-1.0));
        b.op(Mul {}, &[x, c])
    });
    fires("max-zero", 1, |b| {
        let (x, c) = (b.input("2, 3"), b.scalar(0.0));
        b.op(Max {}, &[c, x])
    });
    fires("neg-of-neg", 0, |b| {
        let x = b.input("2, 3");
        let y = b.op(Neg {}, &[x]);
        b.op(Neg {}, &[y])
    });
    fires("select-of-not", 1, |b| {
        let (c, x, y) = (b.input_of(Elem::Bool, "3"), b.input("2, 3"), b.input("2, 3"));
        let c = b.op(Not {}, &[c]);
        b.op(Select {}, &[c, x, y])
    });
    fires("select-decided", 1, |b| {
        let (x, y) = (b.input("1"), b.input("2, 3"));
        let c = b.constant(Tensor::scalar(Elem::Bool, Scalar::Int(1)));
        b.op(Select {}, &[c, x, y])
    });
    fires("and-neutral", 0, |b| {
        let x = b.input_of(Elem::Bool, "2, 3");
        let c = b.constant(Tensor::scalar(Elem::Bool, Scalar::Int(1)));
        b.op(And {}, &[c, x])
    });
    rests(|b| {
        let x = b.input_of(Elem::I32, "2, 3");
        let c = b.constant(Tensor::scalar(Elem::I32, Scalar::Int(1)));
        b.op(And {}, &[c, x])
    });
}

#[test]
fn conversions_go_only_if_every_value_survives() {
    let chain = |elem: Elem, to: &[Elem]| {
        let mut b = Build::new();
        let x = b.input_of(elem, "2, 3");
        let y = to.iter().fold(x, |y, &to| b.op(Cast { to }, &[y]));
        b.done(y)
    };
    let kept = |elem, to: &[Elem]| {
        let g = chain(elem, to);
        let (out, _) = run(&g, "simplify");
        assert_exact(&g, &out);
        count(&out, "cast")
    };
    assert_eq!(kept(Elem::F32, &[Elem::F32]), 0);
    assert_eq!(kept(Elem::F16, &[Elem::F32, Elem::F16]), 0);
    assert_eq!(kept(Elem::F32, &[Elem::F16, Elem::F32]), 2);
    assert_eq!(kept(Elem::Bool, &[Elem::I64, Elem::F32]), 1);
    assert_eq!(kept(Elem::I64, &[Elem::I32, Elem::I64]), 2);
    assert_eq!(kept(Elem::I32, &[Elem::F32, Elem::I32]), 2);
    assert_eq!(kept(Elem::I8, &[Elem::F32, Elem::U8]), 2, "floats saturate where integers wrap");
    assert_eq!(kept(Elem::I8, &[Elem::F32, Elem::I16]), 1);
}

/// A chain of views over `[2, 3, 4]`, each chosen by a number.
fn views(choices: &[u8]) -> Graph {
    let mut b = Build::new();
    let mut y = b.input("2, 3, 4");
    for &c in choices {
        let sizes: Vec<i64> = b.g.ty(y).shape.0.iter().map(|d| d.as_const().unwrap()).collect();
        let rank = sizes.len();
        let text = |s: &[i64]| s.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let total: i64 = sizes.iter().product();
        y = match c % 6 {
            0 => reshape(&mut b, y, &total.to_string()),
            1 if total % 4 == 0 => reshape(&mut b, y, &format!("{}, 2, 2", total / 4)),
            2 => {
                let mut perm: Vec<usize> = (0..rank).collect();
                perm.rotate_left(usize::from(c) / 6 % rank.max(1));
                transpose(&mut b, y, &perm)
            }
            3 => slice(&mut b, y, &vec![0; rank], &vec![1; rank], &text(&sizes)),
            4 if sizes[0] > 1 => {
                let mut lens = sizes.clone();
                lens[0] -= 1;
                slice(&mut b, y, &vec![0; rank], &vec![1; rank], &text(&lens))
            }
            _ => {
                let zero = b.scalar(0.0);
                b.op(Add {}, &[y, zero])
            }
        };
    }
    b.done(y)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn chains_of_views_keep_their_bits_and_simplify_once(choices in prop::collection::vec(any::<u8>(), 0..10)) {
        let g = views(&choices);
        let (once, _) = run(&g, "simplify");
        assert_exact(&g, &once);
        let (twice, stats) = run(&once, "simplify");
        prop_assert_eq!(once.nodes().len(), twice.nodes().len());
        prop_assert_eq!(stats.iter().len(), 0, "{}", stats);
    }
}
