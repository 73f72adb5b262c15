//! fuse: groups of any graph can be put in an order, and compute what the graph computes.

mod common;

use common::{Build, assert_exact, count, run};
use proptest::prelude::*;
use tfc_ir::graph::{Graph, Value};
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::*;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;

fn gather(b: &mut Build, x: Value, indices: Value) -> Value {
    b.op(Gather { axis: 1 }, &[x, indices])
}

/// Values of one shape, each made of two earlier ones: numbers that are gathered, summed up over an axis, or combined.
fn random(choices: &[(u8, u8, u8, bool)]) -> Graph {
    let mut b = Build::new();
    let mut values = vec![b.input("n, 4, 8"), b.weight(&[2, 4, 8], 1)];
    values[1] = b.op(Slice { starts: vec![0.into(); 3], steps: vec![1; 3], lens: common::shape("1, 4, 8") }, &[values[1]]);
    values[1] = b.op(Add {}, &[values[0], values[1]]);
    let given = b.input_of(Elem::I64, "4");
    let fixed = b.constant(Tensor::of(&[4], vec![3i64, 0, 0, 2]));
    for &(kind, x, y, shown) in choices {
        let pick = |at: u8| values[values.len() - 1 - usize::from(at) % values.len()];
        let (x, y) = (pick(x), pick(y));
        let reduced = |b: &mut Build, axes: &[usize]| {
            let sum = b.op(Reduce { kind: ReduceKind::Sum, axes: axes.to_vec(), keep: true }, &[x]);
            b.op(Add {}, &[y, sum])
        };
        let value = match kind % 10 {
            0 | 1 => b.op(Add {}, &[x, y]),
            2 => b.op(Sub {}, &[x, y]),
            3 => b.op(Relu {}, &[x]),
            4 => reduced(&mut b, &[2]),
            5 => reduced(&mut b, &[1, 2]),
            6 => b.op(Softmax { axis: 2, log: false }, &[x]),
            7 | 8 => gather(&mut b, x, given),
            _ => gather(&mut b, x, fixed),
        };
        values.push(value);
        if shown {
            b.output(value);
        }
    }
    b.done(values[values.len() - 1])
}

/// What `last` takes from comes before what it may be grouped with, but waits for a group that takes from that.
#[test]
fn a_group_that_began_early_may_end_late() {
    let mut b = Build::new();
    let (x, indices) = (b.input("n, 4, 8"), b.input_of(Elem::I64, "4"));
    let early = b.op(Relu {}, &[x]);
    let of_early = gather(&mut b, early, indices);
    let late = b.op(Exp {}, &[x]);
    let of_late = gather(&mut b, late, indices);
    let joined = b.op(Add {}, &[early, of_late]);
    b.output(joined);
    let last = b.op(Mul {}, &[late, of_early]);
    let g = b.done(last);
    let (out, _) = run(&g, "fuse");
    assert_exact(&g, &out);
    assert_eq!(count(&out, "fused"), 2, "{out}");
}

/// Nobody needs what was computed, so there is no kernel for it.
#[test]
fn groups_without_results_are_left_out() {
    let mut b = Build::new();
    let x = b.input("n, 4, 8");
    let y = b.op(Neg {}, &[x]);
    b.op(Abs {}, &[y]);
    let z = b.op(Exp {}, &[x]);
    let g = b.done(z);
    let (out, _) = run(&g, "fuse");
    assert_exact(&g, &out);
    assert_eq!((count(&out, "fused"), out.nodes().len()), (0, 1), "{out}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_graphs_keep_their_bits(choices in prop::collection::vec((any::<u8>(), 0u8..12, 0u8..12, prop::bool::weighted(0.1)), 1..48)) {
        let g = random(&choices);
        let (out, _) = run(&g, "fuse");
        assert_exact(&g, &out);
    }
}
