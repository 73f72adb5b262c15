//! Quantized models: native code gives what the interpreter gives for the quantized graph, bit for bit
//! in integers, and both stay near the float model.

use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use tfc::driver::{self, Options};
use tfc::onnx::{ImportOptions, load};
use tfc::schedule::schedule;
use tfc_ir::dim::{Bindings, Dim};
use tfc_ir::graph::{Graph, Loc};
use tfc_ir::ops;
use tfc_ir::quant::{Granularity, Scheme};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape, Type};
use tfc_ir::verify::verify;
use tfc_passes::{OptLevel, QuantConfig};
use tfc_tests::choices::Choices;
use tfc_tests::models::{bind, read_npz, relative_error, zoo};
use tfc_tests::native::{self, Tolerance, compare, compile, cpus, run};

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

/// Rows for every expert, and rows for all of them, by a stack of matrices, and then by one.
fn experts(elem: Elem) -> Graph {
    let mut g = Graph::new("experts");
    let mut choices = Choices::seeded(5);
    let rows = Dim::symbol("rows");
    let own = g.add_input("own", Type::new(elem, Shape(vec![3.into(), rows.clone(), 40.into()])));
    let all = g.add_input("all", Type::new(elem, Shape(vec![rows, 40.into()])));
    let mut constant = |g: &mut Graph, sizes: &[usize]| {
        let t = Tensor::build(elem, sizes, |_| Scalar::Float(choices.between(-1000, 1000) as f64 / 3000.0));
        g.add_const(t, None)
    };
    let (stack, one) = (constant(&mut g, &[3, 40, 48]), constant(&mut g, &[1, 48, 24]));
    let loc = Loc::default();
    for (name, x) in [("own", own), ("all", all)] {
        let y = g.add(ops::Matmul {}, &[x, stack], &loc).unwrap();
        let y = g.add(ops::Gelu { tanh: false }, &[y], &loc).unwrap();
        let y = g.add(ops::Matmul {}, &[y, one], &loc).unwrap();
        g.add_output(name, y);
    }
    g
}

#[test]
fn stacks_and_halves_are_quantized() {
    for elem in [Elem::F32, Elem::F16, Elem::Bf16, Elem::F64] {
        let graph = experts(elem);
        for (spec, level) in [("w4a8", OptLevel::O0), ("w8a8", OptLevel::O3), ("w4a16:g32", OptLevel::O3)] {
            let optimized = quantized(&graph, level, spec);
            let mut choices = Choices::seeded(3);
            let inputs = [choices.tensor(elem, &[3, 5, 40]), choices.tensor(elem, &[5, 40])];
            let bindings = bind(&graph, &inputs);
            let wanted = optimized.evaluate(&inputs, &bindings).expect("an evaluation");
            for (float, q) in graph.evaluate(&inputs, &bindings).expect("an evaluation").iter().zip(&wanted) {
                let error = relative_error(q, float);
                assert!(error < 0.25, "{elem} {spec}: off by {error}");
            }
            for cpu in cpus() {
                let found = run(&mut compile(&optimized, Some(cpu)), &optimized, &inputs);
                for (wanted, found) in wanted.iter().zip(&found) {
                    assert_eq!((wanted.elem(), wanted.sizes()), (found.elem(), found.sizes()));
                    // A rounding to halves may be to the other side, and then a step of the activations behind it.
                    let error = relative_error(found, wanted);
                    assert!(error < STEPS, "{elem} {spec} {level:?} on {cpu}: off by {error}\n{optimized}");
                }
            }
        }
    }
}

/// Rows of a table of 8,192 words, scaled, and an output layer of the same words.
fn embeddings(elem: Elem) -> Graph {
    let mut g = Graph::new("embeddings");
    let mut choices = Choices::seeded(11);
    let ids = g.add_input("ids", Type::new(Elem::I64, Shape(vec![Dim::symbol("rows")])));
    let numbers = |choices: &mut Choices, n: usize| (0..n).map(|_| choices.between(-1000, 1000) as f32 / 3000.0).collect::<Vec<_>>();
    let words = numbers(&mut choices, 8192 * 72);
    let scale = Tensor::build(elem, &[72], |i| Scalar::Float(0.5 + i as f64));
    let words = g.add_const(Tensor::build(elem, &[8192, 72], |i| Scalar::Float(words[i].into())), None);
    let scale = g.add_const(scale, None);
    let loc = Loc::default();
    let x = g.add(ops::Gather { axis: 0 }, &[words, ids], &loc).unwrap();
    let x = g.add(ops::Mul {}, &[x, scale], &loc).unwrap();
    let layer = g.add(ops::Transpose { perm: vec![1, 0] }, &[words], &loc).unwrap();
    let y = g.add(ops::Matmul {}, &[x, layer], &loc).unwrap();
    g.add_output("x", x);
    g.add_output("y", y);
    g
}

#[test]
fn tables_in_8_bits_are_the_same_natively() {
    for (elem, spec, level) in
        [(Elem::F32, "w8a8", OptLevel::O3), (Elem::F16, "w4a16", OptLevel::O3), (Elem::F32, "w4a8:g32", OptLevel::O0)]
    {
        let graph = embeddings(elem);
        let optimized = quantized(&graph, level, spec);
        let largest = optimized.values().filter_map(|(v, _)| optimized.as_const(v)).map(|t| t.bytes().len()).max();
        assert!(largest <= Some(8192 * 72), "a table of {elem} is left: {optimized}");
        let inputs = [Tensor::of(&[5], vec![0i64, 8191, -8192, -1, 4000])];
        let bindings = bind(&graph, &inputs);
        let wanted = optimized.evaluate(&inputs, &bindings).expect("an evaluation");
        let float = graph.evaluate(&inputs, &bindings).expect("an evaluation");
        let errors: Vec<f64> = float.iter().zip(&wanted).map(|(float, q)| relative_error(q, float)).collect();
        assert!(0.0 < errors[0] && errors[0] < 0.01 && errors[1] < 0.25, "{elem} {spec}: off by {errors:?}");
        for cpu in cpus() {
            let found = run(&mut compile(&optimized, Some(cpu)), &optimized, &inputs);
            assert!(found[0] == wanted[0], "{elem} {spec} on {cpu}: rows differ\n{optimized}");
            let error = relative_error(&found[1], &wanted[1]);
            assert!(error < STEPS, "{elem} {spec} on {cpu}: off by {error}\n{optimized}");
        }
    }
}

#[test]
fn sums_beyond_32_bits_are_split() {
    let (k, n) = (131_080, 17);
    let mut g = Graph::new("long");
    let mut choices = Choices::seeded(k as u64);
    let x = g.add_input("x", Type::new(Elem::F32, Shape(vec![Dim::symbol("rows"), k.into()])));
    let w = g.add_const(Tensor::of(&[k, n], (0..k * n).map(|_| choices.between(900, 1000) as f32).collect()), None);
    let y = g.add(ops::Matmul {}, &[x, w], &Loc::default()).unwrap();
    g.add_output("y", y);
    for spec in ["w8a8", "w4a8"] {
        let optimized = quantized(&g, OptLevel::O3, spec);
        let x = Tensor::of(&[1, k], vec![1f32; k]);
        let wanted = optimized.evaluate(std::slice::from_ref(&x), &bind(&g, std::slice::from_ref(&x))).expect("an evaluation");
        for cpu in cpus() {
            let found = run(&mut compile(&optimized, Some(cpu)), &optimized, std::slice::from_ref(&x));
            compare(&wanted, &found, |elem| Tolerance::roundings(elem, 4.0, 1.0)).unwrap_or_else(|e| panic!("{spec} on {cpu}: {e}"));
        }
    }
}

/// What is multiplied by constant weights.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Left {
    Float,
    /// Bytes with a constant scale, and a constant zero point unless symmetric.
    Static(bool),
    /// Bytes with scales and, unless symmetric, zero points that are not known.
    Dynamic(bool),
}

/// A product with constant weights, `group` values of k to a scale (0: all of them). Scales are powers of two,
/// so that sums of groups are exact in any order.
fn product_of(left: Left, storage: Elem, symmetric: bool, group: usize, [k, n]: [usize; 2], choices: &mut Choices) -> Graph {
    let mut g = Graph::new("product");
    let loc = Loc::default();
    let rows = |k: usize| Shape(vec![2.into(), Dim::symbol("rows"), k.into()]);
    let (min, max) = storage.int_range().expect("an integer type");
    let stored = |elem: Elem, sizes: &[usize], choices: &mut Choices| {
        let (low, high) = elem.int_range().expect("an integer type");
        Tensor::build(elem, sizes, |_| Scalar::Int(choices.between(low as i64, high as i64).into()))
    };
    let scales = |sizes: &[usize], choices: &mut Choices| Tensor::build(Elem::F32, sizes, |_| Scalar::Float(*choices.pick(&[0.5, 1.0])));
    let elem = if left == Left::Float { Elem::F32 } else { Elem::I8 };
    let mut operands = vec![g.add_input("x", Type::new(elem, rows(k)))];
    let mut activations = None;
    match left {
        Left::Float => {}
        Left::Static(symmetric) => {
            operands.push(g.add_const(scales(&[], choices), None));
            operands.extend((!symmetric).then(|| g.add_const(stored(Elem::I8, &[], choices), None)));
            activations = Some(Scheme { granularity: Granularity::Tensor, ..ops::QuantizeRows { symmetric }.scheme(3, k as u32) });
        }
        Left::Dynamic(symmetric) => {
            operands.push(g.add_input("scale", Type::new(Elem::F32, rows(1))));
            operands.extend((!symmetric).then(|| g.add_input("zero", Type::new(Elem::I8, rows(1)))));
            activations = Some(ops::QuantizeRows { symmetric }.scheme(3, k as u32));
        }
    }
    let (sizes, granularity) = match group {
        0 => (vec![n], Granularity::Axis { axis: 1 }),
        size => (vec![k.div_ceil(size), n], Granularity::Blocks { axis: 0, size: size as u32 }),
    };
    operands.push(g.add_const(stored(storage, &[k, n], choices), None));
    operands.push(g.add_const(scales(&sizes, choices), None));
    operands.extend((!symmetric).then(|| g.add_const(stored(storage, &sizes, choices), None)));
    let weights = Scheme { storage, min: min as i16, max: max as i16, granularity, symmetric, scale: Elem::F32 };
    let y = g.add(ops::QuantizedMatmul { activations, weights }, &operands, &loc).expect("the operands fit");
    g.add_output("y", y);
    g
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn constant_weights_of_every_form_have_kernels(
        left in prop_oneof![Just(Left::Float), any::<bool>().prop_map(Left::Static), any::<bool>().prop_map(Left::Dynamic)],
        storage in prop_oneof![Just(Elem::I4), Just(Elem::U4), Just(Elem::I8), Just(Elem::U8)],
        symmetric: bool,
        group in prop_oneof![Just(0), 1usize..40],
        [k, n, rows] in [1usize..150, 1..70, 1..45],
        seed: u64,
    ) {
        let mut choices = Choices::seeded(seed);
        let graph = product_of(left, storage, symmetric, group, [k, n], &mut choices);
        let program = schedule(&verify(&graph).expect("a valid graph")).expect("a program");
        let products = program.kernels.values().filter(|kernel| kernel.body.kind() == "gemm").count();
        prop_assert_eq!(products, 1);
        let inputs: Vec<Tensor> = graph
            .inputs()
            .iter()
            .map(|&v| {
                let ty = graph.ty(v);
                let sizes = [2, rows, if graph.value(v).name.as_deref() == Some("x") { k } else { 1 }];
                match (ty.elem, left) {
                    (Elem::I8, _) => Tensor::build(Elem::I8, &sizes, |_| Scalar::Int(choices.between(-128, 127).into())),
                    (_, Left::Float) => choices.tensor(Elem::F32, &sizes),
                    _ => Tensor::build(Elem::F32, &sizes, |_| Scalar::Float(*choices.pick(&[0.5, 1.0]))),
                }
            })
            .collect();
        let wanted = graph.evaluate(&inputs, &bind(&graph, &inputs)).expect("an evaluation");
        for cpu in cpus() {
            let found = run(&mut native::load(&program, Some(cpu)), &graph, &inputs);
            let tolerance = |elem| if left == Left::Float { Tolerance::roundings(elem, 64.0, 200.0) } else { Tolerance::NONE };
            let same = compare(&wanted, &found, tolerance);
            prop_assert!(same.is_ok(), "on {}: {:?}", cpu, same);
        }
    }
}

/// A step of a chain of products with rows that are quantized statically.
#[derive(Clone, Debug)]
struct StaticStep {
    storage: Elem,
    /// Values of k to a scale, 0 for all of them.
    group: usize,
    n: usize,
    zero_point: i64,
    relu: bool,
}

/// Products one behind the other, each of rows that are quantized statically. All scales are powers of two.
fn static_chain(k: usize, steps: &[StaticStep], choices: &mut Choices) -> Graph {
    let mut g = Graph::new("chain");
    let loc = Loc::default();
    let mut x = g.add_input("x", Type::new(Elem::F32, Shape(vec![Dim::symbol("rows"), k.into()])));
    for step in steps {
        let k = g.ty(x).shape[1].as_const().expect("a known size") as usize;
        let op = ops::QuantizeStatic { scale: (*choices.pick(&[0.5f32, 0.03125, 4.0])).into(), zero_point: step.zero_point };
        let codes = g.add(op.clone(), &[x], &loc).expect("an f32 operand");
        let mut operands = vec![codes];
        operands.extend(op.parameters().into_iter().map(|t| g.add_const(t, None)));
        let (low, high) = step.storage.int_range().expect("an integer type");
        let stored = |_| Scalar::Int(choices.between(low as i64, high as i64).into());
        operands.push(g.add_const(Tensor::build(step.storage, &[k, step.n], stored), None));
        let (sizes, granularity) = match step.group {
            0 => (vec![step.n], Granularity::Axis { axis: 1 }),
            size => (vec![k.div_ceil(size), step.n], Granularity::Blocks { axis: 0, size: size as u32 }),
        };
        let scales = Tensor::build(Elem::F32, &sizes, |_| Scalar::Float(*choices.pick(&[1.0 / 64.0, 1.0 / 128.0])));
        operands.push(g.add_const(scales, None));
        let (min, max) = (low as i16, high as i16);
        let weights = Scheme { storage: step.storage, min, max, granularity, symmetric: true, scale: Elem::F32 };
        x = g.add(ops::QuantizedMatmul { activations: Some(op.scheme()), weights }, &operands, &loc).expect("the operands fit");
        if step.relu {
            x = g.add(ops::Relu {}, &[x], &loc).expect("a number");
        }
    }
    g.add_output("y", x);
    g
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn chains_of_static_products_give_the_bits_of_the_interpreter(
        [k, rows] in [1usize..150, 1..45],
        steps in prop::collection::vec(
            (prop_oneof![Just(Elem::I4), Just(Elem::I8)], prop_oneof![Just(0usize), Just(32), Just(128), 1usize..40],
             prop_oneof![1usize..70, Just(96)], prop_oneof![2 => Just(0i64), 1 => -128i64..128], any::<bool>())
                .prop_map(|(storage, group, n, zero_point, relu)| StaticStep { storage, group, n, zero_point, relu }),
            1..4),
        seed: u64,
    ) {
        let mut choices = Choices::seeded(seed);
        let graph = static_chain(k, &steps, &mut choices);
        let optimized = tfc_tests::native::optimize(&graph, OptLevel::O3);
        let program = schedule(&verify(&optimized).expect("a valid graph")).expect("a program");
        let of_kind = |kind: &str| program.steps.iter().filter(|s| program.kernels[s.kernel].body.kind() == kind).count();
        // A product and what packs its rows; rows whose groups are no whole units are filled up by others.
        if steps.iter().all(|s| s.group % 4 == 0) {
            prop_assert_eq!((of_kind("gemm"), of_kind("pack"), program.steps.len()), (steps.len(), steps.len(), 2 * steps.len()));
        }
        let usual = choices.tensor(Elem::F32, &[rows, k]);
        let wild = choices.hard_tensor(Elem::F32, &[rows, k]);
        for x in [usual, wild] {
            let inputs = [x];
            let wanted = graph.evaluate(&inputs, &bind(&graph, &inputs)).expect("an evaluation");
            for cpu in cpus() {
                let found = run(&mut native::load(&program, Some(cpu)), &optimized, &inputs);
                let same = compare(&wanted, &found, |_| Tolerance::NONE);
                prop_assert!(same.is_ok(), "on {}: {:?}", cpu, same);
            }
        }
    }
}

/// How many different kernels a graph has.
fn kernels(graph: &Graph) -> usize {
    let optimized = tfc_tests::native::optimize(graph, OptLevel::O3);
    let program = schedule(&verify(&optimized).expect("a valid graph")).expect("a program");
    program.steps.iter().map(|s| s.kernel).collect::<BTreeSet<_>>().len()
}

#[test]
fn static_products_of_one_shape_share_kernels_whatever_their_scales_and_zero_points_are() {
    // What packs the first rows and what packs codes, the products that make codes, and the last one.
    let steps = [0, -5, 100, 0, -128].map(|zero_point| StaticStep { storage: Elem::I8, group: 0, n: 64, zero_point, relu: true });
    for count in 3..=steps.len() {
        assert_eq!(kernels(&static_chain(64, &steps[..count], &mut Choices::seeded(1))), 4);
    }
    // Norms that quantize, and the products of each.
    let mut g = Graph::new("norms");
    let loc = Loc::default();
    let x = g.add_input("x", Type::new(Elem::F32, Shape(vec![Dim::symbol("rows"), 64.into()])));
    for (i, (scale, zero_point)) in [(0.25f32, 0), (0.0123, 17), (3.0, -128)].into_iter().enumerate() {
        let constant = |g: &mut Graph, x: f32| g.add_const(Tensor::build(Elem::F32, &[64], |i| Scalar::Float((x + i as f32).into())), None);
        let (gain, bias) = (constant(&mut g, scale), constant(&mut g, 0.5));
        let norm = g.add(ops::LayerNorm { axes: 1, epsilon: 1e-5.into() }, &[x, gain, bias], &loc).unwrap();
        let op = ops::QuantizeStatic { scale: scale.into(), zero_point };
        let mut operands = vec![g.add(op.clone(), &[norm], &loc).unwrap()];
        operands.extend(op.parameters().into_iter().map(|t| g.add_const(t, None)));
        operands.push(g.add_const(Tensor::build(Elem::I8, &[64, 32], |j| Scalar::Int(((i + j) % 9) as i128)), None));
        operands.push(g.add_const(Tensor::build(Elem::F32, &[32], |_| Scalar::Float(0.125)), None));
        let granularity = Granularity::Axis { axis: 1 };
        let weights = Scheme { storage: Elem::I8, min: -128, max: 127, granularity, symmetric: true, scale: Elem::F32 };
        let y = g.add(ops::QuantizedMatmul { activations: Some(op.scheme()), weights }, &operands, &loc).unwrap();
        g.add_output(&format!("y{i}"), y);
    }
    assert_eq!(kernels(&g), 2);
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
