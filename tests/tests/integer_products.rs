//! Models that bring integers along: their products become products of integers, which compute the same.

use proptest::prelude::*;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_ir::verify::verify;
use tfc_passes::{Context, OptLevel, integer_products};
use tfc_tests::choices::Choices;
use tfc_tests::models::{bind, relative_error};
use tfc_tests::native::{Tolerance, compare, compile, cpus, optimize, run};
use tfc_tests::onnx_build::{Model, int, ints};

/// Sizes of the products: rows, k and columns; enough that importing does not compute the weights.
const SIZES: (usize, usize, usize) = (5, 72, 67);

/// What comes out of the pass may differ from what went in by.
#[derive(Clone, Copy)]
enum Same {
    Bits,
    Roundings,
}

fn codes(choices: &mut Choices, elem: Elem, sizes: &[usize]) -> Tensor {
    let (low, high) = elem.int_range().expect("codes");
    Tensor::build(elem, sizes, |_| {
        Scalar::Int(match choices.below(4) {
            0 => low,
            1 => high,
            _ => choices.between(low as i64, high as i64 + 1).into(),
        })
    })
}

fn scales(choices: &mut Choices, sizes: &[usize]) -> Tensor {
    Tensor::of(sizes, (0..sizes.iter().product()).map(|_| choices.between(1, 1000) as f32 / 4096.0).collect())
}

/// Numbers that are rounded, halves among them, and that saturate.
fn numbers(choices: &mut Choices, sizes: &[usize]) -> Tensor {
    Tensor::of(
        sizes,
        (0..sizes.iter().product())
            .map(|_| match choices.below(8) {
                0 => *choices.pick(&[1e9f32, -1e9, 1e-30, -0.0]),
                1 => choices.between(-9, 9) as f32 / 8.0,
                _ => choices.between(-4000, 4000) as f32 / 777.0,
            })
            .collect(),
    )
}

fn products(graph: &Graph) -> usize {
    graph.nodes().filter(|(_, n)| n.op.mnemonic() == "quantized_matmul").count()
}

/// Runs the pass: it must find so many products, and evaluation must give the same. Then compiles, and compares with the
/// evaluation of what was compiled.
fn check(model: &Model, inputs: &[Tensor], found: usize, same: Same) -> Result<(), String> {
    let graph = model.import().map_err(|e| e.to_string())?;
    let bindings = bind(&graph, inputs);
    let evaluate = |g: &Graph| g.evaluate(inputs, &bindings).map_err(|e| e.to_string());
    let (after, stats) = (integer_products::PASS.run)(graph.clone(), &Context::default()).map_err(|e| e.to_string())?;
    verify(&after).map_err(|e| format!("{}\n{after}", e[0]))?;
    if products(&after) != found {
        return Err(format!("{} products, not {found} ({stats})\n{graph}\n{after}", products(&after)));
    }
    let (wanted, results) = (evaluate(&graph)?, evaluate(&after)?);
    match same {
        Same::Bits if wanted != results => return Err(format!("other bits\n{graph}\n{after}")),
        Same::Roundings => {
            for (w, r) in wanted.iter().zip(&results) {
                let error = relative_error(r, w);
                if error > 1e-6 {
                    return Err(format!("off by {error}\n{graph}\n{after}"));
                }
            }
        }
        Same::Bits => {}
    }
    let optimized = optimize(&graph, OptLevel::O3);
    if products(&optimized) + optimized.nodes().map(|(_, n)| inner(n)).sum::<usize>() != found {
        return Err(format!("a product is lost\n{optimized}"));
    }
    let wanted = evaluate(&optimized)?;
    let unit = wanted.iter().filter(|t| t.elem().is_float()).flat_map(|t| t.to_f64s()).fold(1.0, |a: f64, x| a.max(x.abs()));
    for cpu in cpus() {
        let results = run(&mut compile(&optimized, Some(cpu)), &optimized, inputs);
        compare(&wanted, &results, |elem| Tolerance::roundings(elem, 16.0, unit)).map_err(|e| format!("{cpu}: {e}\n{optimized}"))?;
    }
    Ok(())
}

/// Products in the body of a fused node.
fn inner(node: &tfc_ir::graph::NodeData) -> usize {
    if let tfc_ir::ops::Op::Fused(f) = &node.op { products(&f.body.0) } else { 0 }
}

/// A static product: `QuantizeLinear`, `DequantizeLinear` of it and of the weights, a product, and a bias.
#[derive(Clone, Copy, Debug)]
struct Static {
    activations: Elem,
    weights: Elem,
    per_column: bool,
    zeros: bool,
    /// Weights are stored `[n, k]` and transposed.
    swapped: bool,
    /// The weights are the left operand.
    turned: bool,
}

impl Static {
    fn model(self, seed: u64) -> (Model, Tensor) {
        let (m, k, n) = SIZES;
        let choices = &mut Choices::seeded(seed);
        let stored = if self.swapped != self.turned { [n, k] } else { [k, n] };
        let columns = if self.per_column { vec![n] } else { vec![] };
        let axis = int("axis", if stored == [n, k] { 0 } else { 1 });
        let x = if self.turned { [k, m] } else { [m, k] };
        let mut model = Model::new(21)
            .input("x", Elem::F32, if self.turned { &["72", "rows"] } else { &["rows", "72"] })
            .constant("xs", Tensor::of(&[], vec![0.04f32]))
            .constant("xz", codes(choices, self.activations, &[]))
            .constant("w", codes(choices, self.weights, &stored))
            .constant("ws", scales(choices, &columns))
            .constant("bias", numbers(choices, if self.turned { &[67, 1] } else { &[67] }))
            .node("QuantizeLinear", "x xs xz", "q", &[])
            .node("DequantizeLinear", "q xs xz", "a", &[]);
        model = match self.zeros {
            true => model.constant("wz", codes(choices, self.weights, &columns)).node("DequantizeLinear", "w ws wz", "b", &[axis]),
            false => model.node("DequantizeLinear", "w ws", "b", &[axis]),
        };
        if self.swapped {
            model = model.node("Transpose", "b", "bt", &[ints("perm", &[1, 0])]);
        }
        let b = if self.swapped { "bt" } else { "b" };
        let operands = if self.turned { format!("{b} a") } else { format!("a {b}") };
        let model = model.node("MatMul", &operands, "p", &[]).node("Add", "bias p", "y", &[]).output("y");
        (model, numbers(choices, &x))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn static_pairs(form in 0usize..64, elem in 0usize..4, seed: u64) {
        let bit = |i: usize| form >> i & 1 == 1;
        let case = Static {
            activations: if bit(0) { Elem::U8 } else { Elem::I8 },
            weights: [Elem::I8, Elem::U8, Elem::I4, Elem::U4][elem],
            per_column: bit(1),
            zeros: bit(2),
            swapped: bit(3),
            turned: bit(4),
        };
        let (model, x) = case.model(seed);
        check(&model, &[x], 1, Same::Roundings).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    }
}

#[test]
fn dynamic_ranges_keep_their_bits() {
    let (m, k, n) = SIZES;
    for (seed, elem, zero, columns) in [(1, Elem::I8, false, true), (2, Elem::U8, true, false), (3, Elem::I8, true, true)] {
        let choices = &mut Choices::seeded(seed);
        let sizes = if columns { vec![n] } else { vec![] };
        let mut model = Model::new(13)
            .input("x", Elem::F32, &["rows", "72"])
            .constant("w", codes(choices, elem, &[k, n]))
            .constant("ws", scales(choices, &sizes))
            .constant("bias", numbers(choices, &[n]))
            .node("DynamicQuantizeLinear", "x", "q s z", &[])
            .node("Mul", "s ws", "scale", &[]);
        model = match zero {
            true => model.constant("wz", codes(choices, elem, &sizes)).node("MatMulInteger", "q w z wz", "i", &[]),
            false => model.node("MatMulInteger", "q w z", "i", &[]),
        };
        let model =
            model.node("Cast", "i", "f", &[int("to", 1)]).node("Mul", "f scale", "p", &[]).node("Add", "p bias", "y", &[]).output("y");
        let x = Tensor::of(&[m, k], (0..m * k).map(|_| choices.between(-4000, 4000) as f32 / 777.0).collect());
        for x in [x, Tensor::of(&[m, k], vec![0f32; m * k]), Tensor::of(&[1, k], vec![-3f32; k])] {
            check(&model, &[x], 1, Same::Bits).unwrap_or_else(|e| panic!("{elem} {zero} {columns}: {e}"));
        }
    }
}

#[test]
fn requantized_products_keep_their_bits() {
    let (m, k, odd) = SIZES;
    // Whole panels are written as bytes by wide code.
    for (seed, elem, n) in [(1, Elem::U8, odd), (2, Elem::I8, odd), (3, Elem::U8, 96), (4, Elem::I8, 96)] {
        let choices = &mut Choices::seeded(seed);
        let model = Model::new(13)
            .input("x", Elem::F32, &["rows", "72"])
            .constant("xs", Tensor::of(&[], vec![0.04f32]))
            .constant("xz", codes(choices, elem, &[]))
            .constant("w", codes(choices, Elem::I8, &[k, n]))
            .constant("ws", scales(choices, &[n]))
            .constant("wz", codes(choices, Elem::I8, &[n]))
            .constant("v", codes(choices, Elem::U8, &[n, n]))
            .constant("vs", scales(choices, &[]))
            .constant("vz", codes(choices, Elem::U8, &[]))
            .constant("ys", Tensor::of(&[], vec![7.5f32]))
            .constant("yz", codes(choices, elem, &[]))
            .node("QuantizeLinear", "x xs xz", "q", &[])
            .node("QLinearMatMul", "q xs xz w ws wz ys yz", "h", &[])
            .node("QLinearMatMul", "h ys yz v vs vz ys yz", "y", &[])
            .node("DequantizeLinear", "h ys yz", "before", &[])
            .node("DequantizeLinear", "y ys yz", "behind", &[])
            .node("Add", "before behind", "sum", &[])
            .output("y")
            .output("sum");
        let x = numbers(choices, &[m, k]);
        check(&model, &[x], 2, Same::Bits).unwrap_or_else(|e| panic!("{elem} {n}: {e}"));
    }
}

#[test]
fn products_of_two_computed_operands_are_exact_in_f32() {
    let choices = &mut Choices::seeded(7);
    let model = Model::new(13)
        .input("a", Elem::U8, &["rows", "72"])
        .input("b", Elem::I8, &["72", "67"])
        .constant("s", Tensor::of(&[], vec![0.04f32]))
        .constant("az", codes(choices, Elem::U8, &[]))
        .constant("bz", codes(choices, Elem::I8, &[]))
        .constant("yz", codes(choices, Elem::U8, &[]))
        .node("QLinearMatMul", "a s az b s bz s yz", "y", &[])
        .output("y");
    let inputs = [codes(choices, Elem::U8, &[5, 72]), codes(choices, Elem::I8, &[72, 67])];
    check(&model, &inputs, 0, Same::Bits).unwrap();
    let (after, stats) = (integer_products::PASS.run)(model.import().unwrap(), &Context::default()).unwrap();
    assert_eq!(stats.get("products in f32"), 1, "{after}");
}

#[test]
fn convolutions_are_products_too() {
    for (seed, pads, elem) in [(1, 0, Elem::U8), (2, 1, Elem::U8), (3, 1, Elem::I8)] {
        let choices = &mut Choices::seeded(seed);
        let attributes = [ints("pads", &[pads; 4]), ints("strides", &[2, 2])];
        let pairs = Model::new(13)
            .input("x", Elem::F32, &["batch", "3", "9", "8"])
            .constant("xs", Tensor::of(&[], vec![0.04f32]))
            .constant("xz", codes(choices, elem, &[]))
            .constant("w", codes(choices, Elem::I8, &[163, 3, 3, 3]))
            .constant("ws", scales(choices, &[163]))
            .constant("wz", Tensor::of(&[163], vec![0i8; 163]))
            .constant("ys", Tensor::of(&[], vec![2.5f32]))
            .constant("yz", codes(choices, elem, &[]))
            .constant("bias", Tensor::of(&[163], (0..163).map(|i| i * 37 - 500).collect::<Vec<i32>>()))
            .node("QuantizeLinear", "x xs xz", "q", &[]);
        let operators = pairs.clone().node("QLinearConv", "q xs xz w ws wz ys yz bias", "y", &attributes).output("y");
        let pairs = pairs
            .node("DequantizeLinear", "q xs xz", "a", &[])
            .node("DequantizeLinear", "w ws wz", "b", &[int("axis", 0)])
            .node("Conv", "a b", "y", &attributes)
            .output("y");
        let x = numbers(choices, &[2, 3, 9, 8]);
        check(&pairs, std::slice::from_ref(&x), 1, Same::Roundings).unwrap_or_else(|e| panic!("{pads} {elem}: {e}"));
        check(&operators, &[x], 1, Same::Bits).unwrap_or_else(|e| panic!("{pads} {elem}: {e}"));
    }
}

#[test]
fn groups_of_weights_stay_stored_behind_float_activations() {
    let (m, k, n) = SIZES;
    for (seed, elem) in [(1, Elem::I4), (2, Elem::U4), (3, Elem::U8)] {
        let choices = &mut Choices::seeded(seed);
        let model = |block: i64| {
            let groups = k.div_ceil(block as usize);
            Model::new(21)
                .input("x", Elem::F32, &["rows", "72"])
                .constant("w", codes(&mut Choices::seeded(seed), elem, &[k, n]))
                .constant("ws", scales(&mut Choices::seeded(seed), &[groups, n]))
                .constant("wz", codes(&mut Choices::seeded(!seed), elem, &[groups, n]))
                .node("DequantizeLinear", "w ws wz", "b", &[int("axis", 0), int("block_size", block)])
                .node("MatMul", "x b", "y", &[])
                .output("y")
        };
        let x = Tensor::of(&[m, k], (0..m * k).map(|_| choices.between(-4000, 4000) as f32 / 777.0).collect());
        check(&model(32), std::slice::from_ref(&x), 1, Same::Bits).unwrap_or_else(|e| panic!("{elem}: {e}"));
        // Too many scales to be of use.
        check(&model(8), &[x], 0, Same::Bits).unwrap_or_else(|e| panic!("{elem}: {e}"));
    }
}

#[test]
fn sums_beyond_32_bits_are_split() {
    let (k, n) = (33_100, 17);
    let choices = &mut Choices::seeded(13);
    let model = Model::new(13)
        .input("q", Elem::U8, &["rows", "33100"])
        .constant("s", Tensor::of(&[], vec![0.5f32]))
        .constant("z", Tensor::of(&[], vec![3u8]))
        .constant("w", codes(choices, Elem::U8, &[k, n]))
        .constant("ws", scales(choices, &[n]))
        .constant("wz", codes(choices, Elem::U8, &[n]));
    let floats = model
        .clone()
        .node("DequantizeLinear", "q s z", "a", &[])
        .node("DequantizeLinear", "w ws wz", "b", &[int("axis", 1)])
        .node("MatMul", "a b", "y", &[])
        .output("y");
    // Codes of 255 less 3 with codes less 0 or 255 make sums that may be beyond an i32.
    let largest = Tensor::of(&[1, k], vec![255u8; k]);
    let random = codes(choices, Elem::U8, &[1, k]);
    for q in [largest, random] {
        check(&floats, &[q], 1, Same::Roundings).unwrap();
    }
    let small = Tensor::of(&[1, k], vec![4u8; k]);
    let integers = model.node("MatMulInteger", "q w z wz", "i", &[]).node("Cast", "i", "y", &[int("to", 1)]).output("y");
    check(&integers, &[small], 0, Same::Bits).unwrap();
}

#[test]
fn what_is_no_product_of_stored_integers_stays() {
    let (k, n) = (SIZES.1, SIZES.2);
    let choices = &mut Choices::seeded(11);
    let model = |scale: Tensor, zero: Tensor| {
        Model::new(13)
            .input("q", Elem::U8, &["5", "72"])
            .constant("s", scale)
            .constant("z", zero)
            .constant("w", codes(&mut Choices::seeded(1), Elem::I8, &[k, n]))
            .constant("ws", scales(&mut Choices::seeded(2), &[k]))
            .node("DequantizeLinear", "q s z", "a", &[int("axis", 0)])
            .node("DequantizeLinear", "w ws", "b", &[int("axis", 0)])
            .node("MatMul", "a b", "y", &[])
            .output("y")
    };
    let q = codes(choices, Elem::U8, &[5, k]);
    // Weights whose scale changes with k; rows with scales of their own.
    let one = model(Tensor::of(&[], vec![0.5f32]), Tensor::of(&[], vec![3u8]));
    let rows = model(scales(choices, &[5]), Tensor::of(&[5], vec![3u8; 5]));
    check(&one, std::slice::from_ref(&q), 0, Same::Bits).unwrap();
    check(&rows, std::slice::from_ref(&q), 0, Same::Bits).unwrap();
    // A sum of 32 bits that is an output.
    let sum = Model::new(13)
        .input("q", Elem::U8, &["5", "72"])
        .constant("w", codes(choices, Elem::I8, &[k, n]))
        .node("MatMulInteger", "q w", "y", &[])
        .output("y");
    check(&sum, &[q], 0, Same::Bits).unwrap();
}

#[test]
fn deep_graphs_end() {
    let mut g = Graph::new("deep");
    let loc = tfc_ir::graph::Loc::default();
    let x = g.add_input("x", tfc_ir::types::Type::fixed(Elem::F32, &[1, 1]));
    let (mut a, mut b) = (x, g.add_const(Tensor::of(&[1, 1], vec![1f32]), None));
    for _ in 0..100_000 {
        a = g.add(tfc_ir::ops::Mul {}, &[a, a], &loc).unwrap();
        b = g.add(tfc_ir::ops::Mul {}, &[b, b], &loc).unwrap();
    }
    let y = g.add(tfc_ir::ops::Matmul {}, &[a, b], &loc).unwrap();
    g.add_output("y", y);
    let (after, _) = (integer_products::PASS.run)(g, &Context::default()).unwrap();
    assert_eq!(after.nodes().count(), 200_001);
}
