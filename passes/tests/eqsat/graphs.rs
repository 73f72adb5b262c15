//! What holds for any graph.

use super::activations::gelu;
use super::attention::{Spelling, recovered};
use super::norms::layer_norm;
use super::*;

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
