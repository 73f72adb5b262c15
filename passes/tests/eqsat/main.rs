//! eqsat: patterns in the spellings of exporters are recovered, what only looks like them is left
//! alone, and what is computed stays the same.

mod activations;
mod attention;
#[path = "../common/mod.rs"]
mod common;
mod constants;
mod graphs;
mod masks;
mod norms;
mod rotary;

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
