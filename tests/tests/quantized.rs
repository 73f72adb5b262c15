//! Quantized models: native code gives what the interpreter gives for the quantized graph, bit for bit
//! in integers, and both stay near the float model.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use tfc::driver::{self, Options};
use tfc::onnx::{ImportOptions, load};
use tfc_ir::dim::{Bindings, Dim};
use tfc_ir::graph::{Graph, Loc};
use tfc_ir::ops;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape, Type};
use tfc_passes::{OptLevel, QuantConfig};
use tfc_tests::choices::Choices;
use tfc_tests::models::{bind, read_npz, relative_error, zoo};
use tfc_tests::native::{Tolerance, compare, compile, cpus, run};

/// Schemes with the relative error that they may have on a product of random numbers.
const SPECS: [(&str, f64); 6] =
    [("w8a8", 0.015), ("w8a8:g32", 0.015), ("w4a8", 0.15), ("w4a8:g32", 0.12), ("w4a8:g128", 0.15), ("w4a16", 0.15)];

/// The graph behind the passes of a level with a scheme; some product must be quantized.
fn quantized(graph: &Graph, level: OptLevel, spec: &str) -> Graph {
    let quant = Some(QuantConfig::new(spec.parse().expect("a scheme")));
    let options = Options { level, quant, verify_each: true, ..Options::default() };
    let optimized = driver::optimize(graph.clone(), &options, |_| Ok(ControlFlow::Continue(()))).unwrap_or_else(|e| panic!("{}", e.what));
    assert!(optimized.ledger.iter().any(|e| e.weight_error.is_some()), "nothing is quantized: {:?}", optimized.ledger);
    optimized.graph
}

/// Products of one input: with a bias, an activation and a residual behind them, and with the constant on the left.
fn products(k: usize, n: usize) -> Graph {
    let mut g = Graph::new("products");
    let mut choices = Choices::seeded(k as u64);
    let x = g.add_input("x", Type::new(Elem::F32, Shape(vec![Dim::symbol("rows"), k.into()])));
    let mut constant = |g: &mut Graph, sizes: &[usize]| {
        let values = (0..sizes.iter().product()).map(|_| choices.between(-1000, 1000) as f32 / 3000.0).collect();
        g.add_const(Tensor::of(sizes, values), None)
    };
    let (a, b, c, bias) = (constant(&mut g, &[k, n]), constant(&mut g, &[k, n]), constant(&mut g, &[n, k]), constant(&mut g, &[n]));
    let loc = Loc::default();
    let y = g.add(ops::Matmul {}, &[x, a], &loc).unwrap();
    let y = g.add(ops::Add {}, &[y, bias], &loc).unwrap();
    let y = g.add(ops::Gelu { tanh: false }, &[y], &loc).unwrap();
    let z = g.add(ops::Matmul {}, &[x, b], &loc).unwrap();
    let sum = g.add(ops::Add {}, &[y, z], &loc).unwrap();
    let turned = g.add(ops::Transpose { perm: vec![1, 0] }, &[x], &loc).unwrap();
    let left = g.add(ops::Matmul {}, &[c, turned], &loc).unwrap();
    g.add_output("sum", sum);
    g.add_output("left", left);
    g
}

#[test]
fn products_are_the_same_natively_and_near_the_float_ones() {
    for (k, n) in [(32, 16), (71, 37), (200, 48)] {
        let graph = products(k, n);
        for (spec, bound) in SPECS {
            for level in [OptLevel::O0, OptLevel::O1, OptLevel::O3] {
                let optimized = quantized(&graph, level, spec);
                let mut sessions: Vec<_> = cpus().into_iter().map(|cpu| (cpu, compile(&optimized, Some(cpu)))).collect();
                for rows in [1, 2, 13] {
                    let inputs = [Choices::seeded(rows as u64).tensor(Elem::F32, &[rows, k])];
                    let bindings = bind(&graph, &inputs);
                    let wanted = optimized.evaluate(&inputs, &bindings).expect("an evaluation");
                    for (float, q) in graph.evaluate(&inputs, &bindings).expect("an evaluation").iter().zip(&wanted) {
                        let error = relative_error(q, float);
                        assert!(error < bound, "{spec} {level:?}, {rows} rows of {k}: off by {error}");
                        assert!(error > 0.0 || spec == "f32", "{spec} changes nothing");
                    }
                    for (cpu, session) in &mut sessions {
                        let found = run(session, &optimized, &inputs);
                        let same = compare(&wanted, &found, |elem| Tolerance::roundings(elem, 64.0, 1.0));
                        same.unwrap_or_else(|e| panic!("{spec} {level:?} on {cpu}, {rows} rows of {k}: {e}\n{optimized}"));
                    }
                }
            }
        }
    }
}

/// A difference of a last bit before a rounding can become a step of the quantized activations, so models of many
/// layers are compared by their error.
const STEPS: f64 = 0.02;

fn check_model(folder: &Path, spec: &str, bound: f64) {
    let graph = load(&folder.join("model.onnx"), &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let optimized = quantized(&graph, OptLevel::O3, spec);
    let mut given: BTreeMap<String, Tensor> = read_npz(&folder.join("inputs.npz"));
    let inputs: Vec<Tensor> = graph.inputs().iter().map(|&v| given.remove(graph.value(v).name.as_deref().unwrap()).unwrap()).collect();
    let bindings: Bindings = bind(&graph, &inputs);
    let float = graph.evaluate(&inputs, &bindings).expect("an evaluation");
    let wanted = optimized.evaluate(&inputs, &bindings).expect("an evaluation");
    let found = run(&mut compile(&optimized, None), &optimized, &inputs);
    for ((float, wanted), found) in float.iter().zip(&wanted).zip(&found) {
        let (native, rounding) = (relative_error(found, wanted), relative_error(wanted, float));
        eprintln!("{} {spec}: native {native:.1e}, quantization {rounding:.1e}", folder.display());
        assert!(native < STEPS, "{spec}: native code is off by {native}");
        assert!(rounding < bound, "{spec}: quantization is off by {rounding}");
    }
}

#[test]
fn zoo_models_are_quantized() {
    let Some(root) = zoo() else { return };
    for name in ["bert", "deit_distilled", "gpt2", "llama"] {
        for (spec, bound) in [("w8a8", 0.05), ("w4a8", 0.5), ("w4a8:g32", 0.5), ("w4a16", 0.5)] {
            check_model(&root.join(name), spec, bound);
        }
    }
}
