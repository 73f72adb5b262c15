//! Import of operators: what changed between operator sets, broadcasting, special values, contents.

mod control;
mod images;
mod sequences;
mod sizes;

use tfc::onnx::{ImportOptions, load};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_tests::onnx_build::{Model, float, int, ints, text};

fn f32s(sizes: &[usize], values: &[f32]) -> Tensor {
    Tensor::of(sizes, values.to_vec())
}

/// `0, 1, 2, …`
fn count(sizes: &[usize]) -> Tensor {
    Tensor::build(Elem::F32, sizes, |i| Scalar::Int(i as i128))
}

fn i64s(sizes: &[usize], values: &[i64]) -> Tensor {
    Tensor::of(sizes, values.to_vec())
}

fn close(found: &Tensor, sizes: &[usize], expected: &[f64]) {
    assert_eq!(found.sizes(), sizes);
    for (i, (a, b)) in found.to_f64s().iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "element {i}: {a} is not {b}");
    }
}

/// A model of one node with one input.
fn single(opset: i64, op: &str, x: &Tensor, others: &str, attributes: &[onnx_protobuf::AttributeProto]) -> Model {
    let sizes: Vec<String> = x.sizes().iter().map(ToString::to_string).collect();
    let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
    Model::new(opset).input("x", x.elem(), &sizes).node(op, &format!("x {others}"), "y", attributes).output("y")
}

#[test]
fn attributes_became_operands() {
    let x = count(&[1, 2, 3]);
    let shape = |m: Model, sizes: &[usize]| assert_eq!(m.run(std::slice::from_ref(&x))[0].sizes(), sizes);
    shape(single(11, "Squeeze", &x, "", &[ints("axes", &[0])]), &[2, 3]);
    shape(single(13, "Squeeze", &x, "a", &[]).list("a", &[0]), &[2, 3]);
    shape(single(13, "Squeeze", &x, "", &[]), &[2, 3]);
    shape(single(11, "Unsqueeze", &x, "", &[ints("axes", &[-1, 0])]), &[1, 1, 2, 3, 1]);
    shape(single(13, "Unsqueeze", &x, "a", &[]).list("a", &[-1, 0]), &[1, 1, 2, 3, 1]);
    for (opset, others, attributes) in [(11, "", vec![ints("axes", &[2])]), (13, "a", vec![])] {
        close(
            &single(opset, "ReduceSum", &x, others, &attributes).list("a", &[2]).run(std::slice::from_ref(&x))[0],
            &[1, 2, 1],
            &[3.0, 12.0],
        );
    }
    for (opset, others, attributes) in [(13, "", vec![ints("axes", &[-1]), int("keepdims", 0)]), (18, "a", vec![int("keepdims", 0)])] {
        close(
            &single(opset, "ReduceMean", &x, others, &attributes).list("a", &[-1]).run(std::slice::from_ref(&x))[0],
            &[1, 2],
            &[1.0, 4.0],
        );
    }
    let noop = single(18, "ReduceSum", &x, "", &[int("noop_with_empty_axes", 1)]);
    assert_eq!(noop.run(std::slice::from_ref(&x))[0], x);
    close(
        &single(9, "Slice", &x, "", &[ints("starts", &[1]), ints("ends", &[9]), ints("axes", &[2])]).run(std::slice::from_ref(&x))[0],
        &[1, 2, 2],
        &[1.0, 2.0, 4.0, 5.0],
    );
    let slice = single(13, "Slice", &x, "s e a t", &[]).list("s", &[-1]).list("e", &[i64::MIN]).list("a", &[-1]).list("t", &[-2]);
    close(&slice.run(std::slice::from_ref(&x))[0], &[1, 2, 2], &[2.0, 0.0, 5.0, 3.0]);
    close(
        &single(10, "Clip", &x, "", &[float("min", 1.0), float("max", 2.0)]).run(std::slice::from_ref(&x))[0],
        &[1, 2, 3],
        &[1.0, 1.0, 2.0, 2.0, 2.0, 2.0],
    );
    let clip = single(13, "Clip", &x, "_ high", &[]).constant("high", f32s(&[], &[2.0]));
    close(&clip.run(std::slice::from_ref(&x))[0], &[1, 2, 3], &[0.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
    close(
        &single(10, "Pad", &x, "", &[ints("pads", &[0, 0, 1, 0, 0, -1]), float("value", 7.0)]).run(std::slice::from_ref(&x))[0],
        &[1, 2, 3],
        &[7.0, 0.0, 1.0, 7.0, 3.0, 4.0],
    );
    let pad = single(18, "Pad", &x, "p v a", &[]).list("p", &[1, -1]).constant("v", f32s(&[], &[7.0])).list("a", &[-1]);
    close(&pad.run(std::slice::from_ref(&x))[0], &[1, 2, 3], &[7.0, 0.0, 1.0, 7.0, 3.0, 4.0]);
}

#[test]
fn softmax_took_trailing_axes_together() {
    let x = count(&[2, 2, 2]);
    let whole: f64 = (0..4).map(|i| f64::from(i).exp()).sum();
    let old = single(11, "Softmax", &x, "", &[]).run(std::slice::from_ref(&x));
    let row: Vec<f64> = (0..4).map(|i| f64::from(i).exp() / whole).collect();
    close(&old[0], &[2, 2, 2], &[row.clone(), row].concat());
    let new = single(13, "Softmax", &x, "", &[]).run(std::slice::from_ref(&x));
    let pair = [1.0 / (1.0 + 1f64.exp()), 1.0 / (1.0 + (-1f64).exp())];
    close(&new[0], &[2, 2, 2], &[pair, pair, pair, pair].concat());
}

#[test]
fn split_divides_evenly_or_not() {
    let x = count(&[5, 2]);
    let m = |opset, attributes: &[_], others: &str, outputs: &str| {
        let mut m = Model::new(opset).input("x", Elem::F32, &["5", "2"]).list("s", &[2, 3]).node(
            "Split",
            &format!("x {others}"),
            outputs,
            attributes,
        );
        for o in outputs.split(' ') {
            m = m.output(o);
        }
        m
    };
    let sizes = |m: Model| m.run(std::slice::from_ref(&x)).iter().map(|t| t.sizes().to_vec()).collect::<Vec<_>>();
    assert_eq!(sizes(m(11, &[ints("split", &[2, 3])], "", "a b")), [[2, 2], [3, 2]]);
    assert_eq!(sizes(m(13, &[], "s", "a b")), [[2, 2], [3, 2]]);
    assert_eq!(sizes(m(18, &[int("num_outputs", 2)], "", "a b")), [[3, 2], [2, 2]]);
    assert!(m(13, &[], "", "a b").import().unwrap_err().to_string().contains("does not divide into 2 parts"));
    assert!(m(13, &[ints("split", &[2, 2])], "", "a b").import().is_err());
}

#[test]
fn normalisation_scales_are_per_group_then_per_channel() {
    let x = count(&[1, 4, 2]);
    let m = |opset, scale: &[f32]| {
        single(opset, "GroupNormalization", &x, "s b", &[int("num_groups", 2)])
            .constant("s", f32s(&[scale.len()], scale))
            .constant("b", f32s(&[scale.len()], &vec![0.0; scale.len()]))
            .run(std::slice::from_ref(&x))
            .swap_remove(0)
    };
    assert_eq!(m(18, &[1.0, 2.0]), m(21, &[1.0, 1.0, 2.0, 2.0]));
}

#[test]
fn vectors_multiply_as_in_numpy() {
    let run = |a: &Tensor, b: &Tensor| {
        let dims = |t: &Tensor| t.sizes().iter().map(ToString::to_string).collect::<Vec<_>>();
        let (da, db) = (dims(a), dims(b));
        let strs = |d: &[String]| d.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let (sa, sb) = (strs(&da), strs(&db));
        let m = Model::new(13)
            .input("a", Elem::F32, &sa.iter().map(String::as_str).collect::<Vec<_>>())
            .input("b", Elem::F32, &sb.iter().map(String::as_str).collect::<Vec<_>>())
            .node("MatMul", "a b", "y", &[])
            .output("y");
        m.run(&[a.clone(), b.clone()]).swap_remove(0)
    };
    close(&run(&count(&[3]), &count(&[3])), &[], &[5.0]);
    close(&run(&count(&[3]), &count(&[3, 2])), &[2], &[10.0, 13.0]);
    close(&run(&count(&[2, 2, 3]), &count(&[3])), &[2, 2], &[5.0, 14.0, 23.0, 32.0]);
}

#[test]
fn einsum_follows_its_equation() {
    let run = |equation: &str, operands: &[Tensor]| {
        let mut m = Model::new(13);
        let mut names = vec![];
        for (i, t) in operands.iter().enumerate() {
            let sizes: Vec<String> = t.sizes().iter().map(ToString::to_string).collect();
            m = m.input(&format!("x{i}"), Elem::F32, &sizes.iter().map(String::as_str).collect::<Vec<_>>());
            names.push(format!("x{i}"));
        }
        m.node("Einsum", &names.join(" "), "y", &[text("equation", equation)]).output("y").run(operands).swap_remove(0)
    };
    close(&run("ij->ji", &[count(&[2, 3])]), &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    close(&run("ii->i", &[count(&[3, 3])]), &[3], &[0.0, 4.0, 8.0]);
    close(&run("ij->", &[count(&[2, 3])]), &[], &[15.0]);
    close(&run("i,j->ij", &[count(&[2]), count(&[3])]), &[2, 3], &[0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
    close(&run("ij,jk", &[count(&[2, 2]), count(&[2, 2])]), &[2, 2], &[2.0, 3.0, 6.0, 11.0]);
    close(&run("...ij,...jk->...ik", &[count(&[2, 1, 2]), count(&[1, 2, 1])]), &[2, 1, 1], &[1.0, 3.0]);
    // A size of 1 is that of the others, whether the label is summed or stays.
    close(&run("ij,jk->ik", &[f32s(&[2, 1], &[1.0, 2.0]), count(&[3, 2])]), &[2, 2], &[6.0, 9.0, 12.0, 18.0]);
    close(&run("ij,jk", &[count(&[2, 3]), f32s(&[1, 1], &[2.0])]), &[2, 1], &[6.0, 24.0]);
    close(&run("bij,bjk->ik", &[count(&[1, 1, 2]), count(&[2, 2, 1])]), &[1, 1], &[4.0]);
    close(&run("i,i->i", &[f32s(&[1], &[3.0]), count(&[3])]), &[3], &[0.0, 3.0, 6.0]);
    close(&run("i,i,i->", &[f32s(&[1], &[3.0]), count(&[3]), f32s(&[1], &[2.0])]), &[], &[18.0]);
    close(&run("...i,i->...", &[count(&[2, 3]), f32s(&[1], &[2.0])]), &[2], &[6.0, 24.0]);
    close(&run("...,...->...", &[f32s(&[1, 2], &[1.0, 2.0]), count(&[2, 1])]), &[2, 2], &[0.0, 0.0, 1.0, 2.0]);
    let m = Model::new(13)
        .input("a", Elem::F32, &["n", "1"])
        .input("b", Elem::F32, &["m", "k"])
        .node("Einsum", "a b", "y", &[text("equation", "ij,jk->ik")])
        .output("y");
    assert!(m.import().unwrap().checks.is_empty());
    close(&m.run(&[count(&[2, 1]), count(&[3, 2])])[0], &[2, 2], &[0.0, 0.0, 6.0, 9.0]);
    // Three operands: sum over j, m of a[b,j,m] b[b,h,j] c[b,h,i], as product-key experts have it.
    let (a, b, c) = (count(&[2, 2, 3]), count(&[2, 2, 2]), count(&[2, 2, 1]));
    let mut expected = vec![];
    for bb in 0..2 {
        for t in 0..1 {
            for m in 0..3 {
                let mut sum = 0.0;
                for h in 0..2 {
                    for j in 0..2 {
                        sum += a.get(bb * 6 + j * 3 + m).to_f64() * b.get(bb * 4 + h * 2 + j).to_f64() * c.get(bb * 2 + h + t).to_f64();
                    }
                }
                expected.push(sum);
            }
        }
    }
    close(&run("bjm,bhj,bhi->bim", &[a, b, c]), &[2, 1, 3], &expected);
}

#[test]
fn scales_of_norms_may_have_all_axes_of_the_operand() {
    let x = Tensor::build(Elem::F32, &[2, 3, 4], |i| Scalar::Float((i * i % 11) as f64));
    let plain = |op: &str, opset: i64| {
        let m = single(opset, op, &x, "one", &[]).constant("one", f32s(&[4], &[1.0; 4]));
        m.run(std::slice::from_ref(&x)).swap_remove(0).to_f64s()
    };
    for sizes in [&[][..], &[4], &[1, 4], &[1, 1, 4], &[3, 4], &[3, 1], &[2, 1, 1], &[2, 3, 4], &[1, 3, 1]] {
        let scale = Tensor::build(Elem::F32, sizes, |i| Scalar::Float(i as f64 + 0.5));
        // Where element `i` of `x` finds its scale.
        let at = |i: usize| {
            let place = [i / 12, i / 4 % 3, i % 4];
            sizes.iter().zip(&place[3 - sizes.len()..]).fold(0, |at, (&n, &p)| at * n + if n == 1 { 0 } else { p })
        };
        let expected = |normed: Vec<f64>, shift: f64| -> Vec<f64> {
            normed.iter().enumerate().map(|(i, y)| y * (at(i) as f64 + 0.5) + shift * (at(i) as f64 + 0.5)).collect()
        };
        for bias in [false, true] {
            let m = single(17, "LayerNormalization", &x, if bias { "s s" } else { "s" }, &[]).constant("s", scale.clone());
            let shift = if bias { 1.0 } else { 0.0 };
            close(&m.run(std::slice::from_ref(&x))[0], &[2, 3, 4], &expected(plain("LayerNormalization", 17), shift));
        }
        let m = single(23, "RMSNormalization", &x, "s", &[]).constant("s", scale.clone());
        close(&m.run(std::slice::from_ref(&x))[0], &[2, 3, 4], &expected(plain("RMSNormalization", 23), 0.0));
    }
    for sizes in [&[1, 1, 1, 4][..], &[3], &[2, 4]] {
        let m = single(17, "LayerNormalization", &x, "s", &[]).constant("s", count(sizes));
        assert!(m.import().unwrap_err().to_string().contains("the scale"));
    }
}

#[test]
fn quantized_pairs_round_to_even_and_saturate() {
    let x = f32s(&[5], &[0.5, 1.5, -2.5, 1000.0, -1000.0]);
    let m = single(13, "QuantizeLinear", &x, "s z", &[]).constant("s", f32s(&[], &[1.0])).constant("z", Tensor::of(&[], vec![1i8]));
    assert_eq!(m.run(&[x])[0], Tensor::of(&[5], vec![1i8, 3, -1, 127, -128]));
    let q = Tensor::of(&[2, 2], vec![1u8, 2, 3, 4]);
    let m = single(13, "DequantizeLinear", &q, "s z", &[int("axis", 0)])
        .constant("s", f32s(&[2], &[0.5, 2.0]))
        .constant("z", Tensor::of(&[2], vec![1u8, 0]));
    close(&m.run(&[q])[0], &[2, 2], &[0.0, 0.5, 6.0, 8.0]);
}

#[test]
fn order_statistics_keep_the_order_of_equals() {
    let x = f32s(&[2, 4], &[3.0, 1.0, 3.0, 2.0, 0.0, 0.0, 5.0, 0.0]);
    let m = |largest| {
        Model::new(13)
            .input("x", Elem::F32, &["2", "4"])
            .list("k", &[3])
            .node("TopK", "x k", "v i", &[int("largest", largest)])
            .output("v")
            .output("i")
    };
    let out = m(1).run(std::slice::from_ref(&x));
    close(&out[0], &[2, 3], &[3.0, 3.0, 2.0, 5.0, 0.0, 0.0]);
    assert_eq!(out[1], i64s(&[2, 3], &[0, 2, 3, 2, 0, 1]));
    assert_eq!(m(0).run(&[x])[1], i64s(&[2, 3], &[1, 3, 0, 0, 1, 3]));
    // A NaN is larger than anything.
    let x = f32s(&[2, 4], &[f32::NAN, 1.0, f32::INFINITY, f32::NAN, 0.0, -0.0, -1.0, f32::NEG_INFINITY]);
    assert_eq!(m(1).run(std::slice::from_ref(&x))[1], i64s(&[2, 3], &[0, 3, 2, 0, 1, 2]));
    assert_eq!(m(0).run(&[x])[1], i64s(&[2, 3], &[1, 2, 0, 3, 2, 0]));
}

/// What is special about numbers: signs of zeros count, and NaN is NaN.
#[test]
fn special_values_are_those_of_ieee_754() {
    let same = |found: &Tensor, expected: &[f64]| {
        for (i, (a, b)) in found.to_f64s().into_iter().zip(expected).enumerate() {
            let near = a == *b && a.is_sign_negative() == b.is_sign_negative() || (a - b).abs() <= 4e-7 * b.abs() && *b != 0.0;
            assert!(near || a.is_nan() && b.is_nan(), "element {i}: {a} is not {b}");
        }
    };
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let of = |op: &str, x: &[f32], expected: &[f64]| {
        let x = f32s(&[x.len()], x);
        same(&single(13, op, &x, "", &[]).run(std::slice::from_ref(&x))[0], expected);
    };
    of("Sign", &[f32::NAN, -0.0, -2.0, f32::INFINITY], &[nan, 0.0, -1.0, 1.0]);
    of("Sinh", &[89.0, -89.0, -0.0, 1e-10, f32::NEG_INFINITY, f32::NAN], &[2.244_806_4e38, -2.244_806_4e38, -0.0, 1e-10, -inf, nan]);
    of("Cosh", &[89.0, -89.0, 0.0, f32::NEG_INFINITY, f32::NAN], &[2.244_806_4e38, 2.244_806_4e38, 1.0, inf, nan]);
    of("Asinh", &[-0.0, f32::MAX, f32::MIN, 1e-10, f32::INFINITY, f32::NAN], &[-0.0, 89.415_986, -89.415_986, 1e-10, inf, nan]);
    of("Acosh", &[1.0, f32::MAX, f32::INFINITY, 0.5, f32::NAN], &[0.0, 89.415_986, inf, nan, nan]);
    of("Sin", &[-0.0, f32::MAX, f32::INFINITY, f32::NAN], &[-0.0, -0.521_876_5, nan, nan]);
    for half in [f32s(&[], &[0.5]), f32s(&[1], &[0.5])] {
        let x = f32s(&[4], &[f32::NEG_INFINITY, -0.0, 4.0, -1.0]);
        same(&single(13, "Pow", &x, "half", &[]).constant("half", half).run(std::slice::from_ref(&x))[0], &[inf, 0.0, 2.0, nan]);
    }
    // Exponents of another type keep their parity and their size.
    let power = |base: &Tensor, exponent: &Tensor| {
        let sizes: Vec<String> = base.sizes().iter().map(ToString::to_string).collect();
        let sizes: Vec<&str> = sizes.iter().map(String::as_str).collect();
        let m = Model::new(15).input("x", base.elem(), &sizes).input("y", exponent.elem(), &sizes);
        m.node("Pow", "x y", "z", &[]).output("z").run(&[base.clone(), exponent.clone()]).remove(0)
    };
    let odd = i32::MAX;
    same(&power(&f32s(&[3], &[-0.0, -1.0, f32::NEG_INFINITY]), &Tensor::of(&[3], vec![odd, odd, -odd])), &[-0.0, -1.0, -0.0]);
    same(&power(&f32s(&[2], &[0.0, 2.0]), &Tensor::of(&[2], vec![1e-300f64, 0.5])), &[0.0, std::f64::consts::SQRT_2]);
    let whole = power(&Tensor::of(&[3], vec![3i32, 2, 7]), &Tensor::of(&[3], vec![1i64 << 32, 3, -(1i64 << 32)]));
    assert_eq!(whole, Tensor::of(&[3], vec![1i32, 8, 0]));
    let whole = power(&Tensor::of(&[5], vec![2i32, 3, -5, 64, -1]), &f32s(&[5], &[3.0, 4.0, 3.0, 1.5, f32::INFINITY]));
    assert_eq!(whole, Tensor::of(&[5], vec![8i32, 81, -125, 512, 1]));
    // Beyond 2^53, and just below a whole number.
    assert_eq!(power(&i64s(&[2], &[3, -7]), &f32s(&[2], &[39.0, 21.0])), i64s(&[2], &[3i64.pow(39), (-7i64).pow(21)]));
    assert_eq!(power(&i64s(&[2], &[1000, 3375]), &Tensor::of(&[2], vec![1.0 / 3.0, 1.0 / 3.0])), i64s(&[2], &[10, 15]));
    // Sums of 16-bit floats that overflow where their mean does not.
    let x = Tensor::build(Elem::F16, &[2], |_| Scalar::Float(65504.0));
    same(&single(13, "Mean", &x, "x", &[]).run(std::slice::from_ref(&x))[0], &[65504.0, 65504.0]);
}

#[test]
fn constants_may_be_inputs_and_outputs() {
    // Old files list initializers among the inputs.
    let m = Model::new(9)
        .input("x", Elem::F32, &["2"])
        .input("w", Elem::F32, &["2"])
        .constant("w", f32s(&[2], &[1.0, 2.0]))
        .node("Identity", "x", "same", &[])
        .output("x")
        .output("w")
        .output("same");
    let g = m.import().unwrap();
    assert_eq!((g.inputs().len(), g.nodes().count()), (1, 0));
    let x = f32s(&[2], &[5.0, 6.0]);
    assert_eq!(m.run(std::slice::from_ref(&x)), [x.clone(), f32s(&[2], &[1.0, 2.0]), x]);
}

#[test]
fn contents_may_be_in_a_file_beside_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut m =
        Model::new(17).input("x", Elem::F32, &["2"]).constant("w", f32s(&[2], &[1.0, 2.0])).node("Add", "x w", "y", &[]).output("y");
    let w = &mut m.graph.initializer[0];
    std::fs::write(dir.path().join("w.bin"), [&[0u8; 4], w.raw_data.as_slice()].concat()).unwrap();
    w.raw_data.clear();
    w.data_location = onnx_protobuf::tensor_proto::DataLocation::EXTERNAL.into();
    for (key, value) in [("location", "w.bin"), ("offset", "4"), ("length", "8")] {
        w.external_data.push(onnx_protobuf::StringStringEntryProto { key: key.into(), value: value.into(), ..Default::default() });
    }
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, m.bytes()).unwrap();
    let g = load(&path, &ImportOptions::default()).unwrap();
    close(&g.evaluate(&[f32s(&[2], &[1.0, 1.0])], &Default::default()).unwrap()[0], &[2], &[2.0, 3.0]);
    std::fs::write(dir.path().join("w.bin"), [0u8; 5]).unwrap();
    let e = load(&path, &ImportOptions::default()).unwrap_err().to_string();
    assert!(e.contains("initializer `w`") && e.contains("has 5 bytes, but 8 are needed from byte 4 on"), "{e}");
}
