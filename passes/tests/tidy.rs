//! dce, cse and fold: what they remove, and that they change nothing else.

mod common;

use common::{Build, assert_exact, constants, count, run, shape};
use tfc_ir::graph::{Loc, Value};
use tfc_ir::ops::reduce::{Reduce, ReduceKind};
use tfc_ir::ops::{Add, Exp, Iota, Mul, Sub};
use tfc_ir::types::Elem;

#[test]
fn dce_removes_what_no_output_needs_and_keeps_inputs() {
    let mut b = Build::new();
    let (x, unused) = (b.input("2, 3"), b.input("3"));
    let c = b.scalar(5.0);
    let dead = b.op(Mul {}, &[unused, c]);
    b.op(Exp {}, &[dead]);
    let y = b.op(Exp {}, &[x]);
    let g = b.done(y);
    let (out, stats) = run(&g, "dce");
    assert_eq!((out.nodes().len(), stats.get("nodes removed"), out.inputs().len()), (1, 2, 2));
    assert!(constants(&out).is_empty());
    assert_exact(&g, &out);
}

#[test]
fn cse_merges_equal_nodes_across_operand_order_and_joins_locations() {
    let mut b = Build::new();
    let (x, y) = (b.input("2, 3"), b.input("3"));
    let (c, d) = (b.scalar(2.0), b.scalar(2.0));
    let s = b.op(Add {}, &[x, y]);
    let t = b.op(Add {}, &[y, x]);
    let s = b.op(Mul {}, &[s, c]);
    let t = b.op(Mul {}, &[d, t]);
    let difference = b.op(Sub {}, &[s, t]);
    let other = b.op(Sub {}, &[x, y]);
    let sum = b.op(Add {}, &[difference, other]);
    let g = b.done(sum);
    let (out, stats) = run(&g, "cse");
    assert_eq!((stats.get("nodes merged"), stats.get("constants merged")), (2, 1));
    assert_eq!((count(&out, "add"), count(&out, "mul"), count(&out, "sub")), (2, 1, 2));
    let (_, add) = out.nodes().next().unwrap();
    assert_eq!(add.loc, Loc::node("node0").join(&Loc::node("node1")));
    assert_exact(&g, &out);
}

#[test]
fn subtraction_does_not_commute() {
    let mut b = Build::new();
    let (x, y) = (b.input("3"), b.input("3"));
    let s = b.op(Sub {}, &[x, y]);
    let t = b.op(Sub {}, &[y, x]);
    let m = b.op(Mul {}, &[s, t]);
    let g = b.done(m);
    let (out, _) = run(&g, "cse");
    assert_eq!(count(&out, "sub"), 2);
    assert_exact(&g, &out);
}

#[test]
fn fold_evaluates_chains_of_constants() {
    let mut b = Build::new();
    let x = b.input("2, 3");
    let w = b.weight(&[2, 3], 7);
    let two = b.scalar(2.0);
    let w = b.op(Mul {}, &[w, two]);
    let w = b.op(Exp {}, &[w]);
    let y = b.op(Add {}, &[x, w]);
    let g = b.done(y);
    let (out, stats) = run(&g, "fold,dce");
    assert_eq!((out.nodes().len(), constants(&out).len()), (1, 1), "{stats}");
    assert_exact(&g, &out);
}

#[test]
fn fold_does_not_blow_up_small_constants() {
    let mut b = Build::new();
    let (row, column) = (b.weight(&[1, 600], 1), b.weight(&[600, 1], 2));
    let table = b.op(Mul {}, &[row, column]);
    let x = b.input("1");
    let y = b.op(Add {}, &[x, table]);
    let g = b.done(y);
    let (out, _) = run(&g, "fold,dce");
    assert_eq!(count(&out, "mul"), 1, "600 x 600 floats from 1200 are not worth storing");
    assert_exact(&g, &out);
}

/// `[1]`: the sum of the numbers below `n`.
fn sum_of_numbers(b: &mut Build, n: i64) -> Value {
    let numbers = b.op(Iota { elem: Elem::I64, shape: shape(&n.to_string()), axis: 0 }, &[]);
    b.op(Reduce { kind: ReduceKind::Sum, axes: vec![0], keep: true }, &[numbers])
}

#[test]
fn fold_leaves_what_exceeds_its_memory_to_the_run() {
    let mut b = Build::new();
    let x = b.input_of(Elem::I64, "1");
    let sum = sum_of_numbers(&mut b, 1 << 30);
    let y = b.op(Add {}, &[x, sum]);
    let (out, stats) = run(&b.done(y), "fold,dce");
    assert_eq!((stats.get("nodes folded"), count(&out, "iota"), count(&out, "reduce")), (0, 1, 1));
}

#[test]
fn fold_gives_back_the_memory_of_operands() {
    let mut b = Build::new();
    let x = b.input_of(Elem::I64, "1");
    // Together they take 72 MiB.
    let y = (0..9).fold(x, |y, _| {
        let sum = sum_of_numbers(&mut b, 1 << 20);
        b.op(Add {}, &[y, sum])
    });
    let (out, _) = run(&b.done(y), "fold,dce");
    assert_eq!((count(&out, "iota"), count(&out, "add"), constants(&out).len()), (0, 9, 9));
}

#[test]
fn fold_leaves_long_work_on_elements_to_the_run() {
    let mut b = Build::new();
    let x = b.input("1");
    let numbers = b.op(Iota { elem: Elem::F32, shape: shape("1048576"), axis: 0 }, &[]);
    let powers = (0..20).fold(numbers, |y, _| b.op(Exp {}, &[y]));
    let sum = b.op(Reduce { kind: ReduceKind::Sum, axes: vec![0], keep: true }, &[powers]);
    let y = b.op(Add {}, &[x, sum]);
    let (out, stats) = run(&b.done(y), "fold,dce");
    assert_eq!((stats.get("nodes folded"), count(&out, "exp")), (0, 20));
}

#[test]
fn fold_keeps_the_constants_of_small_models_small() {
    let mut b = Build::new();
    let x = b.input_of(Elem::I64, "1");
    // 1 MiB each.
    let y = (0..100).fold(x, |y, _| {
        let numbers = b.op(Iota { elem: Elem::I64, shape: shape("131072"), axis: 0 }, &[]);
        b.op(Add {}, &[y, numbers])
    });
    let (out, _) = run(&b.done(y), "fold,fold,dce");
    assert_eq!((count(&out, "iota"), constants(&out).len()), (36, 64));
}
