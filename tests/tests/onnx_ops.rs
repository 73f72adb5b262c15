//! Import of operators: what changed between operator sets, symbolic shapes, functions, control flow.

use tfc::onnx::{Error, ImportOptions, load};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_tests::onnx_build::{Model, float, graph, int, ints, node, reference, tensor, text, value_info};

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
fn shapes_are_computed_while_importing() {
    // x[batch, seq, 12] as [batch, seq, 3, 4], then [batch, 3, seq*4] by -1, as exporters write it.
    let m = Model::new(17)
        .input("x", Elem::F32, &["batch", "seq", "12"])
        .constant("zero", i64s(&[], &[0]))
        .constant("one", i64s(&[], &[1]))
        .list("first", &[0])
        .list("tail", &[3, 4])
        .node("Shape", "x", "s", &[])
        .node("Gather", "s zero", "b", &[])
        .node("Gather", "s one", "n", &[])
        .node("Unsqueeze", "b first", "b1", &[])
        .node("Unsqueeze", "n first", "n1", &[])
        .node("Concat", "b1 n1 tail", "heads", &[int("axis", 0)])
        .node("Reshape", "x heads", "h", &[])
        .node("Transpose", "h", "t", &[ints("perm", &[0, 2, 1, 3])])
        .list("three", &[3])
        .list("rest", &[-1])
        .node("Concat", "b1 three rest", "flat", &[int("axis", 0)])
        .node("Reshape", "t flat", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    let mnemonics: Vec<&str> = g.nodes().map(|(_, n)| n.op.mnemonic()).collect();
    assert_eq!(mnemonics, ["reshape", "transpose", "reshape"]);
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[batch, 3, 4*seq]");
    assert!(g.checks.is_empty(), "{:?}", g.checks);
    assert_eq!(m.run(&[count(&[2, 5, 12])])[0].sizes(), [2, 3, 20]);
}

#[test]
fn sizes_are_data_where_they_are_used_as_data() {
    // Positions 0..seq, times seq as a float, and the size through a float division.
    let m = Model::new(17)
        .input("x", Elem::F32, &["seq", "4"])
        .constant("zero", i64s(&[], &[0]))
        .constant("one", i64s(&[], &[1]))
        .constant("two", f32s(&[], &[2.0]))
        .node("Shape", "x", "s", &[])
        .node("Gather", "s zero", "n", &[])
        .node("Range", "zero n one", "places", &[])
        .node("Cast", "places", "f", &[int("to", 1)])
        .node("Cast", "n", "nf", &[int("to", 1)])
        .node("Mul", "f nf", "y", &[])
        .node("Mul", "nf two", "double", &[])
        .node("Div", "double two", "again", &[])
        .node("Floor", "again", "whole", &[])
        .node("Cast", "whole", "size", &[int("to", 7)])
        .list("axes", &[0])
        .node("Unsqueeze", "size axes", "shape", &[])
        .node("ConstantOfShape", "shape", "z", &[tensor("value", &f32s(&[1], &[3.0]))])
        .output("y")
        .output("z");
    let out = m.run(&[count(&[3, 4])]);
    close(&out[0], &[3], &[0.0, 3.0, 6.0]);
    close(&out[1], &[3], &[3.0; 3]);
}

#[test]
fn expand_takes_the_shape_that_exporters_select() {
    let m = Model::new(17)
        .input("mask", Elem::F32, &["batch", "seq"])
        .list("minus", &[-1, -1])
        .list("two", &[2])
        .node("Shape", "mask", "s", &[])
        .node("ConstantOfShape", "two", "ones", &[tensor("value", &i64s(&[1], &[1]))])
        .node("Equal", "s minus", "free", &[])
        .node("Where", "free ones s", "shape", &[])
        .constant("w", f32s(&[1, 1], &[5.0]))
        .node("Expand", "w shape", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[batch, seq]");
}

#[test]
fn slices_of_symbolic_sizes_are_clamped() {
    let m = |start: i64, end: i64, step: i64| {
        Model::new(17)
            .input("x", Elem::F32, &["n"])
            .list("s", &[start])
            .list("e", &[end])
            .list("a", &[0])
            .list("t", &[step])
            .node("Slice", "x s e a t", "y", &[])
            .output("y")
    };
    for n in 1..7usize {
        for (start, end, step) in [
            (0, 3, 1),
            (1, i64::MAX, 1),
            (-2, i64::MAX, 1),
            (0, -1, 1),
            (i64::MAX, i64::MIN, -1),
            (-1, -4, -1),
            (5, 0, -2),
            (0, 100, 3),
            (4, 2, 1),
        ] {
            let out = m(start, end, step).run(&[count(&[n])]).swap_remove(0).to_f64s();
            let n = n as i64;
            let at = |v: i64, low: i64, high: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(low, high);
            let expected: Vec<f64> = if step > 0 {
                (at(start, 0, n)..at(end, 0, n)).step_by(step as usize).map(|i| i as f64).collect()
            } else {
                let (mut i, stop) = (at(start, -1, n - 1), at(end, -1, n - 1));
                let mut l = vec![];
                while i > stop {
                    l.push(i as f64);
                    i += step;
                }
                l
            };
            assert_eq!(out, expected, "{start}:{end}:{step} of {n}");
        }
    }
}

#[test]
fn a_slice_that_starts_behind_the_front_of_a_table_bounds_the_size() {
    // The last `n` rows of a table of eight: `table[8 - n:]`.
    let m = Model::new(17)
        .input("x", Elem::F32, &["n"])
        .constant("table", count(&[8]))
        .list("eight", &[8])
        .list("axes", &[0])
        .list("end", &[i64::MAX])
        .node("Shape", "x", "n", &[])
        .node("Sub", "eight n", "start", &[])
        .node("Slice", "table start end axes", "rows", &[])
        .node("Add", "x rows", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[n]");
    let (_, range) = g.symbols.iter().next().unwrap();
    assert_eq!(range.max, 8);
    assert!(g.checks.is_empty(), "the range says it");
    close(&m.run(&[count(&[3])])[0], &[3], &[5.0, 7.0, 9.0]);
}

#[test]
fn a_shape_that_data_decides_is_refused_with_the_operand() {
    let m = Model::new(17).input("x", Elem::F32, &["4"]).input("shape", Elem::I64, &["2"]).node("Reshape", "x shape", "y", &[]).output("y");
    let e = m.import().unwrap_err();
    assert!(matches!(e, Error::Unsupported(_)));
    let e = e.to_string();
    assert!(e.contains("data-dependent shape") && e.contains("Reshape_0"), "{e}");
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
fn functions_are_inlined_with_their_attributes() {
    let f = onnx_protobuf::FunctionProto {
        domain: "local".into(),
        name: "Leaky".into(),
        input: vec!["a".into(), "b".into()],
        output: vec!["y".into()],
        attribute: vec!["slope".into()],
        node: vec![node("LeakyRelu", "a", "l", &[reference("alpha", "slope", 1)]), node("Clip", "l b", "y", &[])],
        opset_import: vec![onnx_protobuf::OperatorSetIdProto { domain: "".into(), version: 17, ..Default::default() }],
        ..Default::default()
    };
    let m = Model::new(17)
        .opset("local", 1)
        .input("x", Elem::F32, &["2"])
        .foreign("local", "Leaky", "x", "z", &[float("slope", 0.5)])
        .output("z")
        .function(f);
    close(&m.run(&[f32s(&[2], &[-4.0, 4.0])])[0], &[2], &[-2.0, 4.0]);
    let g = m.import().unwrap();
    let names: Vec<String> = g.nodes().map(|(_, n)| n.loc.to_string()).collect();
    assert!(names.iter().all(|n| n.starts_with("Leaky_0/")), "{names:?}");
}

fn branch(name: &str, op: &str) -> onnx_protobuf::AttributeProto {
    graph(name, Model::new(17).node(op, "x", "r", &[]).output("r").graph)
}

#[test]
fn branches_are_inlined_or_selected() {
    let m = Model::new(17)
        .input("x", Elem::F32, &["2"])
        .input("c", Elem::Bool, &[])
        .node("If", "c", "y", &[branch("then_branch", "Neg"), branch("else_branch", "Abs")])
        .output("y");
    let x = f32s(&[2], &[-1.0, 2.0]);
    for (c, expected) in [(1, [1.0, -2.0]), (0, [1.0, 2.0])] {
        close(&m.run(&[x.clone(), Tensor::scalar(Elem::Bool, Scalar::Int(c))])[0], &[2], &expected);
    }
    // A size decides: nothing is left of the branch that is not taken.
    let m = Model::new(17)
        .input("x", Elem::F32, &["n"])
        .node("Size", "x", "n", &[])
        .constant("zero", i64s(&[], &[0]))
        .node("Greater", "n zero", "c", &[])
        .node("If", "c", "y", &[branch("then_branch", "Neg"), branch("else_branch", "NonZero")])
        .output("y");
    assert_eq!(m.import().unwrap().nodes().count(), 1);
}

#[test]
fn loops_are_unrolled() {
    // Three rounds of v = v * x + i, and the squares of the rounds.
    let mut body = Model::new(17)
        .node("Mul", "v x", "p", &[])
        .node("Cast", "i", "f", &[int("to", 1)])
        .node("Add", "p f", "next", &[])
        .node("Mul", "i i", "square", &[])
        .node("Identity", "go", "still", &[])
        .output("still")
        .output("next")
        .output("square")
        .graph;
    body.input = vec![value_info("i", Elem::I64, &[]), value_info("go", Elem::Bool, &[]), value_info("v", Elem::F32, &["1"])];
    let m = |rounds: i64| {
        Model::new(17)
            .input("x", Elem::F32, &["1"])
            .constant("rounds", i64s(&[], &[rounds]))
            .constant("start", f32s(&[1], &[1.0]))
            .node("Loop", "rounds _ start", "end squares", &[graph("body", body.clone())])
            .output("end")
            .output("squares")
    };
    let out = m(3).run(&[f32s(&[1], &[2.0])]);
    close(&out[0], &[1], &[((1.0 * 2.0 + 0.0) * 2.0 + 1.0) * 2.0 + 2.0]);
    assert_eq!(out[1], i64s(&[3], &[0, 1, 4]));
    let e = m(100_000).import().unwrap_err().to_string();
    assert!(e.contains("more than 1024 rounds"), "{e}");
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
}

#[test]
fn upsampling_by_whole_numbers_works_for_symbolic_sizes() {
    let m = Model::new(17)
        .input("x", Elem::F32, &["1", "1", "h", "2"])
        .constant("s", f32s(&[4], &[1.0, 1.0, 2.0, 2.0]))
        .node(
            "Resize",
            "x _ s",
            "y",
            &[text("mode", "nearest"), text("coordinate_transformation_mode", "asymmetric"), text("nearest_mode", "floor")],
        )
        .output("y");
    close(&m.run(&[count(&[1, 1, 1, 2])])[0], &[1, 1, 2, 4], &[0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]);
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
fn sums_of_sizes_are_sizes() {
    // What exporters of decoders write: the mask is as long as past and present together.
    let m = Model::new(17)
        .input("past", Elem::F32, &["batch", "past_len"])
        .input("x", Elem::F32, &["batch", "seq"])
        .input("mask", Elem::F32, &["batch", "past_len + seq"])
        .node("Concat", "past x", "all", &[int("axis", 1)])
        .node("Mul", "all mask", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[batch, past_len+seq]");
    assert!(g.checks.is_empty() && g.symbols.len() == 3);
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

#[test]
fn a_table_of_positions_bounds_the_sequence() {
    let m = Model::new(17)
        .input("x", Elem::F32, &["seq", "4"])
        .constant("table", count(&[16, 4]))
        .constant("zero", i64s(&[], &[0]))
        .list("first", &[0])
        .node("Shape", "x", "s", &[])
        .node("Gather", "s zero", "n", &[])
        .node("Unsqueeze", "n first", "end", &[])
        .node("Slice", "table first end first", "places", &[])
        .node("Add", "x places", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    let ranges: Vec<_> = g.symbols.values().map(|r| (r.min, r.max)).collect();
    assert_eq!(ranges, [(1, 16)]);
    assert!(g.checks.is_empty(), "{:?}", g.checks);
}
