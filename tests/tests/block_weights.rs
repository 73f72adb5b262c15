//! Weights of few bits in blocks, as ONNX Runtime's contributed operators have them: every way to store them against sums in f64.

use proptest::prelude::*;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_passes::OptLevel;
use tfc_tests::choices::Choices;
use tfc_tests::native::{Tolerance, compare, compile, cpus, optimize, run};
use tfc_tests::onnx_build::{Model, int};

/// How zero points are given.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Zeros {
    Absent,
    Packed,
    /// Floats, whole numbers or not.
    Float(bool),
}

/// Rows of codes with the low bits first.
fn packed(codes: &[u8], row: usize, bits: usize) -> Vec<u8> {
    let byte = |codes: &[u8]| codes.iter().enumerate().fold(0, |byte, (i, code)| byte | code << (i * bits));
    codes.chunks(row).flat_map(|row| row.chunks(8 / bits).map(byte).collect::<Vec<u8>>()).collect()
}

fn operands(graph: &Graph) -> Vec<String> {
    let all = graph.nodes().flat_map(|(_, n)| n.inputs.iter().copied());
    all.filter(|&v| graph.as_const(v).is_some()).map(|v| graph.ty(v).to_string()).collect()
}

/// `MatMulNBits` as a file has it.
#[derive(Clone, Copy, Debug)]
struct Product {
    bits: usize,
    block: usize,
    k: usize,
    n: usize,
    zeros: Zeros,
    elem: Elem,
    bias: bool,
    /// Scales and zero points have one axis.
    flat: bool,
}

impl Product {
    fn codes(self, count: usize, choices: &mut Choices) -> Vec<u8> {
        (0..count).map(|_| choices.below(1 << self.bits) as u8).collect()
    }

    /// The model, and its result for rows.
    fn model(self, rows: usize, seed: u64) -> (Model, Tensor, Vec<f64>) {
        let Product { bits, block, k, n, zeros, elem, bias, flat } = self;
        let choices = &mut Choices::seeded(seed);
        let (groups, middle) = (k.div_ceil(block), 1 << (bits - 1));
        let floats = |sizes: &[usize], values: &[f64]| Tensor::build(elem, sizes, |i| Scalar::Float(values[i]));
        let codes = self.codes(n * groups * block, choices);
        let per_block = |row: usize| if flat { vec![n * row] } else { vec![n, row] };
        let scales: Vec<f64> = (0..n * groups).map(|_| choices.between(-64, 64) as f64 / 256.0).collect();
        let x = floats(&[rows, k], &(0..rows * k).map(|_| choices.between(-40, 40) as f64 / 32.0).collect::<Vec<_>>());
        let width = k.to_string();
        let mut model = Model::new(17)
            .opset("com.microsoft", 1)
            .input("x", elem, &["rows", &width])
            .constant("w", Tensor::of(&[n, groups, block * bits / 8], packed(&codes, block, bits)))
            .constant("s", floats(&per_block(groups), &scales));
        let zero: Vec<f64> = match zeros {
            Zeros::Absent => vec![f64::from(middle); n * groups],
            Zeros::Packed => {
                let zero = self.codes(n * groups, choices);
                let row = (groups * bits).div_ceil(8);
                model = model.constant("z", Tensor::of(&per_block(row), packed(&zero, groups, bits)));
                zero.into_iter().map(f64::from).collect()
            }
            Zeros::Float(whole) => {
                let zero = |choices: &mut Choices| match whole {
                    true => choices.below(1 << bits) as f64,
                    false => choices.between(-16, 16 * (1 << bits)) as f64 / 16.0,
                };
                let zero: Vec<f64> = (0..n * groups).map(|_| zero(choices)).collect();
                model = model.constant("z", floats(&per_block(groups), &zero));
                zero
            }
        };
        let added: Vec<f64> = (0..n).map(|j| if bias { j as f64 / 4.0 } else { 0.0 }).collect();
        let names = ["x w s", if zeros == Zeros::Absent { "_" } else { "z" }, "_", if bias { "b" } else { "_" }].join(" ");
        let attributes = [("K", k), ("N", n), ("bits", bits), ("block_size", block)].map(|(name, i)| int(name, i as i64));
        let model = model.constant("b", floats(&[n], &added)).foreign("com.microsoft", "MatMulNBits", &names, "y", &attributes).output("y");
        let wanted = (0..rows * n).map(|at| {
            let (row, column) = (at / n, at % n);
            let term = |i: usize| {
                let group = column * groups + i / block;
                x.get(row * k + i).to_f64() * (f64::from(codes[column * groups * block + i]) - zero[group]) * scales[group]
            };
            (0..k).map(term).sum::<f64>() + added[column]
        });
        let wanted = wanted.collect();
        (model, x, wanted)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn products_with_blocks(
        (bits, block) in (prop_oneof![Just(2usize), Just(4), Just(8)], prop_oneof![Just(16usize), Just(32), Just(64), Just(128)]),
        (k, n, rows) in (1usize..300, 1usize..70, 1usize..20),
        zeros in prop_oneof![Just(Zeros::Absent), Just(Zeros::Packed), any::<bool>().prop_map(Zeros::Float)],
        half: bool, bias: bool, flat: bool, seed: u64,
    ) {
        let case = Product { bits, block, k, n, zeros, elem: if half { Elem::F16 } else { Elem::F32 }, bias, flat };
        let (model, x, wanted) = case.model(rows, seed);
        let graph = model.import().map_err(|e| TestCaseError::fail(e.to_string()))?;
        // The weights are what the file has: codes, not numbers.
        let stored = |sign: char| format!("{sign}{}[{k}, {n}]", bits.max(4));
        let found = operands(&graph);
        let whole = zeros == Zeros::Absent;
        prop_assert!(found.contains(&stored('i')) || (!whole && found.contains(&stored('u'))), "{found:?}");
        prop_assert!(!found.contains(&format!("f32[{k}, {n}]")) || k.div_ceil(block) == k, "{found:?}");
        let unit = wanted.iter().fold(1.0, |a: f64, x| a.max(x.abs()));
        let wanted = [Tensor::build(case.elem, &[rows, n], |i| Scalar::Float(wanted[i]))];
        for level in [OptLevel::O0, OptLevel::O3] {
            let optimized = optimize(&graph, level);
            for cpu in cpus() {
                let results = run(&mut compile(&optimized, Some(cpu)), &optimized, std::slice::from_ref(&x));
                let same = compare(&wanted, &results, |elem| Tolerance::roundings(elem, if elem == Elem::F32 { 64.0 } else { 4.0 }, unit));
                prop_assert!(same.is_ok(), "{case:?} {level:?} on {cpu}: {same:?}\n{optimized}");
            }
        }
    }

    #[test]
    fn tables_in_blocks(
        // Elements of the table: u8 with so many bits, u4 or i4.
        kind in prop_oneof![Just((Elem::U8, 2usize)), Just((Elem::U8, 4)), Just((Elem::U8, 8)), Just((Elem::U4, 4)), Just((Elem::I4, 4))],
        [outer, rows, width] in [1usize..4, 1..40, 1..80],
        (gather, quantized) in (0usize..3, 0usize..3),
        (block, zeros, half, scalar, outside, seed) in (prop_oneof![Just(16usize), Just(32)], any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>()),
    ) {
        let (elem, bits) = kind;
        let choices = &mut Choices::seeded(seed);
        // Tables of bytes are looked up along the first axis and have blocks along the last.
        let (gather, quantized) = if elem == Elem::U8 { (0, 2) } else { (gather, quantized) };
        let sizes = [outer, rows, if elem == Elem::U8 { width.next_multiple_of(8 / bits) } else { width }];
        let mut per_block = sizes;
        per_block[quantized] = per_block[quantized].div_ceil(block);
        let (low, high) = if elem == Elem::U8 { (0, (1 << bits) - 1) } else { elem.int_range().unwrap() };
        let mut codes = |sizes: [usize; 3]| -> Vec<i64> {
            (0..sizes.iter().product()).map(|_| choices.between(low as i64, high as i64)).collect()
        };
        let (data, zero) = (codes(sizes), codes(per_block));
        let stored = |codes: &[i64], sizes: [usize; 3]| match elem {
            Elem::U8 => {
                let codes: Vec<u8> = codes.iter().map(|&c| c as u8).collect();
                Tensor::of(&[sizes[0], sizes[1], (sizes[2] * bits).div_ceil(8)], packed(&codes, sizes[2], bits))
            }
            _ => Tensor::build(elem, &sizes, |i| Scalar::Int(codes[i].into())),
        };
        let float = if half { Elem::F16 } else { Elem::F32 };
        let scales: Vec<f64> = (0..zero.len()).map(|_| choices.between(-64, 64) as f64 / 256.0).collect();
        let picked = sizes[gather] as i64;
        let edge = i64::from(outside) * 2;
        let count = if scalar { 1 } else { 6 };
        let at: Vec<i64> = (0..count).map(|_| choices.between(-picked - edge, picked - 1 + edge)).collect();
        let indices = Tensor::of(if scalar { &[][..] } else { &[2, 3] }, at.clone());
        let mut model = Model::new(21)
            .opset("com.microsoft", 1)
            .input("i", Elem::I64, if scalar { &[] } else { &["rows", "3"] })
            .constant("d", stored(&data, sizes))
            .constant("s", Tensor::build(float, &per_block, |i| Scalar::Float(scales[i])));
        if zeros {
            model = model.constant("z", stored(&zero, per_block));
        }
        let attributes = [("bits", bits), ("block_size", block), ("gather_axis", gather), ("quantize_axis", quantized)];
        let attributes = attributes.map(|(name, i)| int(name, i as i64));
        let names = if zeros { "d i s z" } else { "d i s" };
        let graph = model.foreign("com.microsoft", "GatherBlockQuantized", names, "y", &attributes).output("y").import();
        let graph = graph.map_err(|e| TestCaseError::fail(e.to_string()))?;
        let default = if elem == Elem::U8 { 1 << (bits - 1) } else { 0 };
        let mut shape = sizes.to_vec();
        shape.splice(gather..=gather, indices.sizes().iter().copied());
        let inner: usize = sizes[gather + 1..].iter().product();
        let value = |i: usize| {
            let (before, index, behind) = (i / inner / count, at[i / inner % count], i % inner);
            let row = if index < 0 { index + picked } else { index };
            if !(0..picked).contains(&row) {
                return 0.0;
            }
            let element = (before * sizes[gather] + row as usize) * inner + behind;
            let mut place = [element / sizes[2] / sizes[1], element / sizes[2] % sizes[1], element % sizes[2]];
            place[quantized] /= block;
            let group = (place[0] * per_block[1] + place[1]) * per_block[2] + place[2];
            (data[element] - if zeros { zero[group] } else { default }) as f64 * scales[group]
        };
        let wanted = [Tensor::build(float, &shape, |i| Scalar::Float(value(i)))];
        for level in [OptLevel::O0, OptLevel::O3] {
            let optimized = optimize(&graph, level);
            for cpu in cpus() {
                let results = run(&mut compile(&optimized, Some(cpu)), &optimized, std::slice::from_ref(&indices));
                let same = compare(&wanted, &results, |elem| Tolerance::roundings(elem, 1.0, 1.0));
                prop_assert!(same.is_ok(), "{level:?} on {cpu}: {same:?}\n{optimized}");
            }
        }
    }
}

/// A product of 64 by 24 in blocks of 32, with another operand or attribute.
fn changed(name: &str, t: Option<Tensor>, attributes: &[(&str, i64)]) -> Model {
    let case = Product { bits: 4, block: 32, k: 64, n: 24, zeros: Zeros::Packed, elem: Elem::F32, bias: true, flat: false };
    let mut model = case.model(2, 7).0;
    if let Some(t) = t {
        model.graph.initializer.retain(|i| i.name != name);
        model = model.constant(name, t);
    }
    let node = &mut model.graph.node[0];
    for &(name, i) in attributes {
        node.attribute.retain(|a| a.name != name);
        node.attribute.push(int(name, i));
    }
    if name == "g" {
        node.input[4] = "g".into();
    }
    model
}

#[test]
fn blocks_that_do_not_fit_are_refused() {
    let bytes = |sizes: &[usize]| Some(Tensor::of(sizes, vec![0u8; sizes.iter().product()]));
    let floats = |sizes: &[usize]| Some(Tensor::of(sizes, vec![1f32; sizes.iter().product()]));
    let order = |order: Vec<i32>| Some(Tensor::of(&[64], order));
    let refused = |model: Model, words: &[&str]| {
        let e = model.import().expect_err("it does not fit").to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{e} does not say {words:?}");
    };
    assert!(changed("", None, &[("accuracy_level", 4)]).import().is_ok());
    assert!(changed("g", order((0..64).map(|i| i / 32).collect()), &[]).import().is_ok());
    refused(changed("w", bytes(&[24, 2, 15]), &[]), &["u8[24, 2, 15]", "u8[24, 2, 16]", "K = 64"]);
    refused(changed("w", floats(&[24, 2, 16]), &[]), &["f32[24, 2, 16]", "u8[24, 2, 16]"]);
    refused(changed("s", floats(&[24, 3]), &[]), &["the scales", "f32[24, 3]", "[24, 2]"]);
    refused(changed("z", bytes(&[24, 2]), &[]), &["the zero points", "u8[24, 2]", "u8[24, 1]"]);
    refused(changed("z", floats(&[2, 24]), &[]), &["the zero points", "f32[2, 24]", "[24, 2]"]);
    refused(changed("b", floats(&[25]), &[]), &["the bias", "f32[25]", "24"]);
    refused(changed("", None, &[("K", 65)]), &["K = 65"]);
    refused(changed("", None, &[("K", 0)]), &["`K` is 0"]);
    refused(changed("", None, &[("block_size", 24)]), &["block_size is 24"]);
    refused(changed("", None, &[("bits", 9)]), &["bits is 9"]);
    refused(changed("", None, &[("bits", 3)]), &["3 bits are not supported"]);
    refused(changed("", None, &[("weight_prepacked", 1)]), &["weight_prepacked = 1"]);
    refused(changed("", None, &[("accuracy_level", 5)]), &["accuracy_level is 5"]);
    refused(changed("g", order((0..64).map(|i| i % 2).collect()), &[]), &["g_idx"]);
    let mut taken = changed("", None, &[]);
    taken.graph.initializer.retain(|i| i.name != "w");
    refused(taken.input("w", Elem::U8, &["24", "2", "16"]), &["the weights must be known at compile time"]);
}

#[test]
fn a_product_that_the_model_leaves_out_is_its_bias() {
    let model = changed("w", Some(Tensor::of(&[24, 0, 16], Vec::<u8>::new())), &[]);
    let y = model.run(&[Tensor::of(&[1, 64], vec![1f32; 64])]).swap_remove(0);
    assert_eq!(y.to_f64s(), (0..24).map(|j| f64::from(j) / 4.0).collect::<Vec<_>>());
}

#[test]
fn rows_of_a_free_length_are_those_of_the_weights() {
    let attributes = [int("K", 32), int("N", 4), int("bits", 4), int("block_size", 16)];
    let of_rows = |sizes: &[&str]| {
        Model::new(17)
            .opset("com.microsoft", 1)
            .input("x", Elem::F32, sizes)
            .constant("w", Tensor::of(&[4, 2, 8], (0..64u8).map(|i| i.wrapping_mul(37)).collect()))
            .constant("s", Tensor::of(&[4, 2], vec![0.5f32, 1.0, -0.25, 0.75, 1.5, -2.0, 0.125, 1.0]))
            .foreign("com.microsoft", "MatMulNBits", "x w s", "y", &attributes)
            .output("y")
            .import()
            .unwrap()
    };
    for rows in [1, 3] {
        let x = Choices::seeded(rows as u64).tensor(Elem::F32, &[rows, 32]);
        let (fixed, inputs) = (of_rows(&["m", "32"]), [x]);
        let wanted = fixed.evaluate(&inputs, &tfc_tests::models::bind(&fixed, &inputs)).unwrap();
        let graph = optimize(&of_rows(&["m", "k"]), OptLevel::O3);
        for cpu in cpus() {
            let found = run(&mut compile(&graph, Some(cpu)), &graph, &inputs);
            compare(&wanted, &found, |elem| Tolerance::roundings(elem, 64.0, 16.0)).unwrap_or_else(|e| panic!("{cpu}: {e}"));
        }
    }
}
