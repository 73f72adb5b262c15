//! sink-reshapes: what moves, what stays, and that every move saves a kernel and keeps the bits.

mod common;

use common::{Build, assert_exact, run, shape};
use proptest::prelude::*;
use tfc_ir::attr::Float;
use tfc_ir::graph::{Graph, Value};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::*;
use tfc_ir::types::Elem;

fn reshape(b: &mut Build, x: Value, sizes: &str) -> Value {
    b.op(Reshape { shape: shape(sizes) }, &[x])
}

/// `[n, 4, 8] · [8, 6]`
fn product(b: &mut Build) -> Value {
    let x = b.input("n, 4, 8");
    let w = b.weight(&[8, 6], 1);
    b.op(Matmul {}, &[x, w])
}

/// How many nodes compute something after fusion.
fn kernels(g: &Graph, passes: &str) -> usize {
    let (out, _) = run(g, passes);
    out.nodes().filter(|(_, d)| !matches!(d.op, Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_) | Op::Slice(_))).count()
}

/// The pass moves `moved` groups; each saves a kernel. All outputs keep their bits.
#[track_caller]
fn moves(moved: u64, build: impl FnOnce(&mut Build) -> Value) {
    let mut b = Build::new();
    let y = build(&mut b);
    let g = b.done(y);
    let (out, stats) = run(&g, "sink-reshapes");
    assert_eq!(stats.get("groups moved"), moved, "{out}");
    assert_eq!(kernels(&g, "fuse"), kernels(&out, "fuse") + moved as usize, "{out}");
    assert_exact(&g, &out);
    if moved == 0 {
        assert_eq!(out.to_string(), g.to_string());
    }
}

#[test]
fn chains_with_numbers_biases_and_residuals_move() {
    moves(1, |b| {
        let p = product(b);
        let r = reshape(b, p, "n, 2, 2, 3, 2");
        let bias = b.weight(&[2, 2, 1, 1], 2);
        let half = b.weight(&[1, 1], 3);
        let residual = b.input("n, 2, 2, 3, 2");
        let y = b.op(Add {}, &[bias, r]);
        let y = b.op(Mul {}, &[y, half]);
        let y = b.op(Gelu { tanh: true }, &[y]);
        b.op(Add {}, &[residual, y])
    });
}

#[test]
fn one_result_after_the_other_moves() {
    moves(2, |b| {
        let p = product(b);
        let r = reshape(b, p, "n, 24");
        let y = b.op(Relu {}, &[r]);
        let r = reshape(b, y, "n, 2, 12");
        let bias = b.weight(&[2, 1], 2);
        // The bias belongs to pairs of rows and has no counterpart in `n, 4, 6`: this stays, the next moves here.
        let y = b.op(Add {}, &[r, bias]);
        let r = reshape(b, y, "n, 3, 8");
        let y = b.op(Exp {}, &[r]);
        b.output(y);
        y
    });
}

#[test]
fn what_was_reduced_goes_on() {
    moves(1, |b| {
        let x = b.input("n, 4, 6, 5");
        let sums = b.op(Reduce { kind: ReduceKind::Sum, axes: vec![3], keep: true }, &[x]);
        let r = reshape(b, sums, "n, 4, 2, 3");
        let bias = b.weight(&[4, 1, 1], 1);
        let y = b.op(Add {}, &[r, bias]);
        b.op(Relu {}, &[y])
    });
}

#[test]
fn two_products_of_one_sum_meet() {
    moves(1, |b| {
        let (p, q) = (product(b), product(b));
        let (p, q) = (reshape(b, p, "n, 2, 2, 6"), reshape(b, q, "n, 2, 2, 6"));
        let q = b.op(Relu {}, &[q]);
        b.op(Add {}, &[p, q])
    });
}

#[test]
fn what_belongs_to_another_kernel_stays() {
    // The addition is part of the normalisation.
    moves(0, |b| {
        let p = product(b);
        let r = reshape(b, p, "n, 2, 2, 6");
        let residual = b.input("n, 2, 2, 6");
        let y = b.op(Add {}, &[r, residual]);
        let gain = b.weight(&[6], 2);
        b.op(RmsNorm { axes: 1, epsilon: Float::from(1e-5f32) }, &[y, gain])
    });
    // The addition is part of the other product.
    moves(0, |b| {
        let p = product(b);
        let r = reshape(b, p, "n, 2, 2, 6");
        let (x, w) = (b.input("n, 2, 2, 3"), b.weight(&[3, 6], 2));
        let q = b.op(Matmul {}, &[x, w]);
        b.op(Add {}, &[r, q])
    });
}

#[test]
fn what_would_make_a_cycle_stays() {
    moves(0, |b| {
        let p = product(b);
        let r = reshape(b, p, "n, 2, 2, 6");
        let mean = b.op(Reduce { kind: ReduceKind::Mean, axes: vec![1, 2, 3], keep: true }, &[r]);
        b.op(Mul {}, &[r, mean])
    });
}

#[test]
fn operands_without_a_counterpart_stay() {
    // A part of a run of axes.
    moves(0, |b| {
        let p = product(b);
        let r = reshape(b, p, "n, 4, 2, 3");
        let bias = b.weight(&[3], 2);
        b.op(Add {}, &[r, bias])
    });
    // A view whose rows are apart in memory.
    let transposed = |b: &mut Build| {
        let p = product(b);
        let r = reshape(b, p, "n, 4, 2, 3");
        let x = b.input("n, 4, 3, 2");
        let x = b.op(Transpose { perm: vec![0, 1, 3, 2] }, &[x]);
        b.op(Add {}, &[r, x])
    };
    moves(0, transposed);
    // It only gets an axis of size 1.
    moves(1, |b| {
        let p = product(b);
        let r = reshape(b, p, "n, 1, 4, 6");
        let x = b.input("n, 1, 6, 4");
        let x = b.op(Transpose { perm: vec![0, 1, 3, 2] }, &[x]);
        b.op(Add {}, &[r, x])
    });
}

#[test]
fn types_may_change_on_the_way() {
    moves(1, |b| {
        let p = product(b);
        let r = reshape(b, p, "n, 24");
        let mask = b.input_of(Elem::Bool, "n, 24");
        let zero = b.scalar(0.0);
        b.op(Select {}, &[mask, r, zero])
    });
}

/// Shapes of `n · 24` elements that values are reshaped to.
const SHAPES: [&str; 6] = ["n, 4, 6", "n, 24", "n, 1, 4, 2, 3", "n, 2, 12", "n, 2, 2, 6, 1", "24, n"];

/// A graph of reshapes, elementwise operators, reductions, transposes and products over values of `n · 24` elements.
fn random(choices: &[(u8, u8, u8)]) -> Graph {
    let mut b = Build::new();
    let mut values = vec![product(&mut b)];
    for &(what, at, with) in choices {
        let pick = |i: u8| values[values.len() - 1 - usize::from(i) % values.len()];
        let (x, y) = (pick(at), pick(with));
        let sizes = b.g.ty(x).shape.clone();
        let alike = b.g.ty(y).shape == sizes;
        let last = sizes.rank() - 1;
        let v = match what {
            0..5 => b.op(Reshape { shape: shape(SHAPES[usize::from(with) % SHAPES.len()]) }, &[x]),
            5 => b.op(Relu {}, &[x]),
            6 | 7 if alike => b.op(Add {}, &[x, y]),
            6 | 7 => b.op(Neg {}, &[x]),
            8 => {
                let axis = usize::from(with) % sizes.rank();
                let size = sizes[axis].as_const().unwrap_or(1) as usize;
                let bias = [vec![size], vec![1; last - axis]].concat();
                let bias = b.weight(&bias, 7);
                b.op(Mul {}, &[x, bias])
            }
            9 => {
                let mean = b.op(Reduce { kind: ReduceKind::Mean, axes: vec![last], keep: true }, &[x]);
                b.op(Sub {}, &[x, mean])
            }
            10 => {
                let perm = (0..last - 1).chain([last, last - 1]).collect();
                b.op(Transpose { perm }, &[x])
            }
            _ => {
                let x = b.op(Reshape { shape: shape("n, 4, 6") }, &[x]);
                let w = b.weight(&[6, 6], with.into());
                b.op(Matmul {}, &[x, w])
            }
        };
        values.push(v);
        if what % 4 == 3 && with % 3 == 0 {
            b.output(v);
        }
    }
    let y = values[values.len() - 1];
    b.done(y)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_graphs_keep_their_bits_and_never_get_more_kernels(choices in prop::collection::vec((0u8..12, 0u8..4, any::<u8>()), 0..24)) {
        let g = random(&choices);
        let (out, _) = run(&g, "sink-reshapes");
        assert_exact(&g, &out);
        prop_assert!(kernels(&out, "dce,fuse") <= kernels(&g, "dce,fuse"), "{g}\n{out}");
    }
}
