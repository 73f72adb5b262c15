//! Import of operators: what changed between operator sets, symbolic shapes, functions, control flow.

use tfc::onnx::{DimSpec, Error, ImportOptions, load};
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

fn function(domain: &str, name: &str, inputs: &[&str], nodes: Vec<onnx_protobuf::NodeProto>, opset: i64) -> onnx_protobuf::FunctionProto {
    onnx_protobuf::FunctionProto {
        domain: domain.into(),
        name: name.into(),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec!["y".into()],
        node: nodes,
        opset_import: vec![onnx_protobuf::OperatorSetIdProto { version: opset, ..Default::default() }],
        ..Default::default()
    }
}

#[test]
fn functions_of_one_name_are_told_apart_by_their_overload() {
    let mut m = Model::new(17).opset("local", 1).input("x", Elem::F32, &["2"]).output("a").output("b").output("c");
    for (overload, op, output) in [("negative", "Neg", "a"), ("", "Abs", "b"), ("twice", "Sqrt", "c")] {
        let mut f = function("local", "act", &["x"], vec![node(op, "x", "y", &[])], 17);
        f.overload = overload.into();
        m = m.function(f).foreign("local", "act", "x", output, &[]);
        m.graph.node.last_mut().unwrap().overload = overload.into();
    }
    let out = m.run(&[f32s(&[2], &[4.0, 9.0])]);
    close(&out[0], &[2], &[-4.0, -9.0]);
    close(&out[1], &[2], &[4.0, 9.0]);
    close(&out[2], &[2], &[2.0, 3.0]);
    m.graph.node[0].overload = "other".into();
    assert!(m.import().unwrap_err().to_string().contains("there is no importer for this operator"));
    let m = m.function(function("local", "act", &["x"], vec![], 17));
    assert!(m.import().unwrap_err().to_string().contains("two functions have this domain, name, and overload"));
}

#[test]
fn functions_have_defaults_and_operator_sets_of_their_own() {
    // Softmax of version 11 takes trailing axes together, that of 13 does not.
    let mut soft = function(
        "local",
        "soft",
        &["x"],
        vec![node("Softmax", "x", "s", &[]), node("LeakyRelu", "s", "y", &[reference("alpha", "slope", 1)])],
        11,
    );
    soft.attribute_proto.push(float("slope", 0.5));
    let x = count(&[1, 2, 2]);
    let m = |attributes: &[_]| {
        Model::new(13)
            .opset("local", 1)
            .input("x", Elem::F32, &["1", "2", "2"])
            .foreign("local", "soft", "x", "s", attributes)
            .node("Softmax", "x", "t", &[])
            .output("s")
            .output("t")
            .function(soft.clone())
            .run(std::slice::from_ref(&x))
    };
    let sums = |t: &Tensor| [t.to_f64s()[..2].iter().sum::<f64>(), t.to_f64s()[2..].iter().sum()];
    let out = m(&[]);
    assert!((sums(&out[0])[0] + sums(&out[0])[1] - 1.0).abs() < 1e-6 && (sums(&out[1])[0] - 1.0).abs() < 1e-6);
    // A default that the caller overrides.
    let mut leaky = function("local", "leaky", &["x"], vec![node("LeakyRelu", "x", "y", &[reference("alpha", "slope", 1)])], 17);
    leaky.attribute_proto.push(float("slope", 0.5));
    let m = |attributes: &[_]| {
        Model::new(17)
            .opset("local", 1)
            .input("x", Elem::F32, &["1"])
            .foreign("local", "leaky", "x", "y", attributes)
            .output("y")
            .function(leaky.clone())
    };
    close(&m(&[]).run(&[f32s(&[1], &[-4.0])])[0], &[1], &[-2.0]);
    close(&m(&[float("slope", 0.25)]).run(&[f32s(&[1], &[-4.0])])[0], &[1], &[-1.0]);
}

#[test]
fn a_function_does_not_take_the_place_of_an_operator() {
    // As in ONNX Runtime: a function is what an operator is made of where there is no kernel for it.
    let m = Model::new(17)
        .input("x", Elem::F32, &["2"])
        .node("Relu", "x", "y", &[])
        .node("Unheard", "x", "z", &[])
        .output("y")
        .output("z")
        .function(function("", "Relu", &["x"], vec![node("Neg", "x", "y", &[])], 17))
        .function(function("ai.onnx", "Unheard", &["x"], vec![node("Neg", "x", "y", &[])], 17));
    let out = m.run(&[f32s(&[2], &[-1.0, 2.0])]);
    close(&out[0], &[2], &[0.0, 2.0]);
    close(&out[1], &[2], &[1.0, -2.0]);
}

#[test]
fn an_operand_that_is_left_out_is_left_out_in_subgraphs_too() {
    let inner = |name: &str| graph(name, Model::new(17).node("Clip", "x low high", "r", &[]).output("r").graph);
    let body = vec![node("If", "c", "y", &[inner("then_branch"), inner("else_branch")])];
    let m = Model::new(17)
        .opset("local", 1)
        .input("x", Elem::F32, &["3"])
        .input("c", Elem::Bool, &[])
        .constant("high", f32s(&[], &[1.0]))
        .foreign("local", "bounded", "x c _ high", "y", &[])
        .output("y")
        .function(function("local", "bounded", &["x", "c", "low", "high"], body, 17));
    let out = m.run(&[f32s(&[3], &[-5.0, 0.5, 2.0]), Tensor::scalar(Elem::Bool, Scalar::Int(1))]);
    close(&out[0], &[3], &[-5.0, 0.5, 1.0]);
}

#[test]
fn sequences_leave_no_trace() {
    let x = count(&[5, 2]);
    let m = || {
        Model::new(17)
            .input("x", Elem::F32, &["5", "2"])
            .constant("two", i64s(&[], &[2]))
            .constant("zero", i64s(&[], &[0]))
            .constant("last", i64s(&[], &[-1]))
            .list("parts", &[1, 4])
    };
    let sizes = |m: Model| m.run(std::slice::from_ref(&x)).iter().map(|t| t.sizes().to_vec()).collect::<Vec<_>>();
    // A length: the last part is shorter. A list. Nothing: single entries, with their axis or without.
    let split = |operands: &str, attributes: &[_]| {
        let m = m().node("SplitToSequence", operands, "s", attributes);
        let m = m.node("SequenceAt", "s zero", "a", &[]).node("SequenceAt", "s last", "b", &[]).node("SequenceLength", "s", "n", &[]);
        m.output("a").output("b").output("n")
    };
    for (operands, attributes, first, last, n) in [
        ("x two", vec![], vec![2, 2], vec![1, 2], 3),
        ("x parts", vec![], vec![1, 2], vec![4, 2], 2),
        ("x parts", vec![int("keepdims", 0)], vec![1, 2], vec![4, 2], 2),
        ("x", vec![], vec![1, 2], vec![1, 2], 5),
        ("x", vec![int("keepdims", 0)], vec![2], vec![2], 5),
        ("x", vec![int("axis", -1), int("keepdims", 0)], vec![5], vec![5], 2),
    ] {
        let m = split(operands, &attributes);
        assert_eq!(m.run(std::slice::from_ref(&x))[2], i64s(&[], &[n]));
        assert_eq!(sizes(m)[..2], [first, last], "{operands}");
    }
    let built = m()
        .node("Neg", "x", "minus", &[])
        .node("SequenceEmpty", "", "none", &[])
        .node("SequenceInsert", "none x", "one", &[])
        .node("SequenceInsert", "one minus zero", "two_of_them", &[])
        .node("Identity", "two_of_them", "same", &[])
        .node("SequenceInsert", "same x last", "three", &[])
        .node("SequenceErase", "three zero", "rest", &[])
        .node("SequenceErase", "three", "begin", &[])
        .node("ConcatFromSequence", "rest", "y", &[int("axis", 1)])
        .node("ConcatFromSequence", "begin", "z", &[int("axis", -1), int("new_axis", 1)])
        .output("y")
        .output("z");
    let out = built.run(std::slice::from_ref(&x));
    // minus, x, x: without the first two of x, and without the last minus beside x.
    assert_eq!((out[0].sizes(), out[1].sizes()), (&[5, 4][..], &[5, 2, 2][..]));
    assert_eq!(out[0].to_f64s()[..8], [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0]);
    assert_eq!(out[1].to_f64s()[..8], [0.0, 0.0, -1.0, 1.0, -2.0, 2.0, -3.0, 3.0]);
}

#[test]
fn sequences_go_through_branches_loops_and_functions() {
    let x = f32s(&[2], &[1.0, -2.0]);
    // A condition that is not known chooses entry by entry.
    let pair = |name: &str, op: &str| {
        graph(name, Model::new(17).node(op, "x", "r", &[]).node("SequenceConstruct", "x r", "s", &[]).output("s").graph)
    };
    let m = Model::new(17)
        .input("x", Elem::F32, &["2"])
        .input("c", Elem::Bool, &[])
        .node("If", "c", "s", &[pair("then_branch", "Neg"), pair("else_branch", "Abs")])
        .node("ConcatFromSequence", "s", "y", &[int("axis", 0)])
        .output("y");
    close(&m.run(&[x.clone(), Tensor::scalar(Elem::Bool, Scalar::Int(0))])[0], &[4], &[1.0, -2.0, 1.0, 2.0]);
    // A list that a loop appends to, as PyTorch exports it, and a map over it in a function.
    let mut body = Model::new(17)
        .node("SequenceInsert", "list x", "longer", &[])
        .node("Identity", "go", "still", &[])
        .output("still")
        .output("longer")
        .graph;
    body.input = vec![value_info("i", Elem::I64, &[]), value_info("go", Elem::Bool, &[]), Default::default()];
    body.input[2].name = "list".into();
    let mut twice = Model::new(17).node("Add", "e e", "d", &[]).output("d").graph;
    twice.input = vec![value_info("e", Elem::F32, &["2"])];
    let m = Model::new(17)
        .opset("local", 1)
        .input("x", Elem::F32, &["2"])
        .constant("rounds", i64s(&[], &[3]))
        .node("SequenceEmpty", "", "none", &[])
        .node("Loop", "rounds _ none", "list", &[graph("body", body)])
        .foreign("local", "doubled", "list", "all", &[])
        .node("ConcatFromSequence", "all", "y", &[int("axis", 0), int("new_axis", 1)])
        .output("y")
        .function(function("local", "doubled", &["l"], vec![node("SequenceMap", "l", "y", &[graph("body", twice)])], 17));
    close(&m.run(std::slice::from_ref(&x))[0], &[3, 2], &[2.0, -4.0, 2.0, -4.0, 2.0, -4.0]);
    let m = Model::new(17)
        .input("x", Elem::F32, &["2"])
        .node("Optional", "x", "o", &[])
        .node("OptionalHasElement", "o", "has", &[])
        .node("OptionalGetElement", "o", "y", &[])
        .output("has")
        .output("y");
    let out = m.run(std::slice::from_ref(&x));
    assert_eq!((&out[0], &out[1]), (&Tensor::scalar(Elem::Bool, Scalar::Int(1)), &x));
}

#[test]
fn sequences_that_are_not_known_are_refused() {
    let m = || {
        Model::new(17).input("x", Elem::F32, &["n", "2"]).input("i", Elem::I64, &[]).constant("nine", i64s(&[], &[9])).node(
            "SequenceConstruct",
            "x x",
            "s",
            &[],
        )
    };
    for (m, unsupported, message) in [
        (m().node("SequenceAt", "s i", "y", &[]).output("y"), true, "the position in the sequence depends on what the model computes"),
        (m().node("SplitToSequence", "x", "p", &[]).node("SequenceLength", "p", "y", &[]).output("y"), true, "fix it with --dim"),
        (m().output("s"), true, "the output is a sequence"),
        (m().node("SequenceAt", "s nine", "y", &[]).output("y"), false, "the position 9 is out of range for a sequence of 2"),
        (m().node("Neg", "s", "y", &[]).output("y"), false, "operand 0 must be a tensor, but it is a sequence"),
        (m().node("SequenceLength", "x", "y", &[]).output("y"), false, "operand 0 must be a sequence, but it is a tensor f32[n, 2]"),
        (m().node("SequenceInsert", "s i", "t", &[]).node("SequenceLength", "t", "y", &[]).output("y"), false, "has the element type f32"),
    ] {
        let e = m.import().unwrap_err();
        assert_eq!(matches!(e, Error::Unsupported(_)), unsupported, "{e}");
        assert!(e.to_string().contains(message), "{e}");
    }
}

#[test]
fn ranges_count_by_fractions() {
    let run = |start: f32, limit: f32, step: f32| {
        let m = Model::new(17)
            .constant("a", f32s(&[], &[start]))
            .constant("b", f32s(&[], &[limit]))
            .constant("c", f32s(&[], &[step]))
            .node("Range", "a b c", "y", &[])
            .output("y");
        m.run(&[]).swap_remove(0).to_f64s()
    };
    // The length is what counts: it is that of (limit - start) / step, rounded up.
    for (start, limit, step, n) in [(0.0, 1.0, 0.1, 10), (0.3, 7.7, 0.1, 74), (5.0, -3.0, -0.7, 12), (1.0, 1.0, 0.5, 0), (2.0, 1.0, 0.5, 0)]
    {
        let found = run(start, limit, step);
        assert_eq!(found.len(), n, "{start} to {limit} by {step}");
        assert!(found.iter().enumerate().all(|(i, x)| (x - f64::from(start) - i as f64 * f64::from(step)).abs() < 1e-5));
    }
    // A size decides the limit or the start.
    for (operands, step) in [("half n step", 0.1f32), ("half n step", 0.75), ("n half step", -0.25), ("n half step", -0.3)] {
        let m = Model::new(17)
            .input("x", Elem::F32, &["n"])
            .constant("half", f32s(&[], &[0.5]))
            .constant("step", f32s(&[], &[step]))
            .node("Size", "x", "size", &[])
            .node("Cast", "size", "n", &[int("to", 1)])
            .node("Range", operands, "y", &[])
            .output("y");
        for n in 1..9 {
            let (start, limit) = if step > 0.0 { (0.5, n as f32) } else { (n as f32, 0.5) };
            let found = m.run(&[count(&[n])]).swap_remove(0).to_f64s();
            let expected = run(start, limit, step);
            assert_eq!(found.len(), expected.len(), "{start} to {limit} by {step}");
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
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
    let g = m.import().unwrap();
    assert_eq!(g.nodes().count(), 1);
    assert_eq!((g.symbols.values().map(|r| r.min).max(), g.bounds.len()), (Some(1), 1), "a size of 0 takes the other branch");
}

#[test]
fn sizes_choose_between_branches() {
    // `squeeze` as exporters write it: the branches have different ranks.
    let squeeze = graph("then_branch", Model::new(17).node("Squeeze", "x one", "r", &[]).output("r").graph);
    let m = Model::new(17)
        .input("x", Elem::F32, &["b", "t", "2"])
        .list("one", &[1])
        .node("Shape", "x", "s", &[int("start", 1), int("end", 2)])
        .node("Equal", "s one", "c", &[])
        .node("If", "c", "y", &[squeeze, branch("else_branch", "Identity")])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.symbols.iter().map(|(s, r)| (s.name(), r.min)).collect::<Vec<_>>(), [("b", 0), ("t", 2)]);
    assert_eq!(g.bounds.values().map(ToString::to_string).collect::<Vec<_>>(), ["If_0"]);
    assert!(g.checks.is_empty() && m.run(&[count(&[1, 3, 2])])[0].sizes() == [1, 3, 2]);
    let narrowed = "dimension `t` is taken to be 2 or more because of If `If_0`; compile with --dim t=1 for the other branch";
    assert_eq!(m.warnings(), [narrowed]);
    let fixed = ImportOptions { dims: [("t".into(), DimSpec::Fixed(1))].into(), ..Default::default() };
    let fixed = m.import_with(&fixed).unwrap();
    assert_eq!(fixed.ty(fixed.outputs()[0].value).rank(), 2);
    // Branches of one type are both computed, and the size chooses at run time.
    let m = |no: &str| {
        Model::new(17)
            .input("x", Elem::F32, &["n"])
            .node("Shape", "x", "s", &[])
            .list("many", &[3])
            .node("Less", "s many", "c", &[])
            .node("If", "c", "y", &[branch("then_branch", "Neg"), branch("else_branch", no)])
            .output("y")
    };
    assert!(m("Abs").warnings().is_empty());
    close(&m("Abs").run(&[f32s(&[2], &[-1.0, 2.0])])[0], &[2], &[1.0, -2.0]);
    close(&m("Abs").run(&[f32s(&[3], &[-1.0, 2.0, -5.0])])[0], &[3], &[1.0, 2.0, 5.0]);
    let e = m("NonZero").import().unwrap_err().to_string();
    assert!(e.contains("--dim n=N decides it"), "{e}");
}

#[test]
fn sizes_may_be_0_where_operators_allow_it() {
    let m = Model::new(17)
        .input("past", Elem::F32, &["b", "past", "2"])
        .input("x", Elem::F32, &["b", "seq", "2"])
        .node("Concat", "past x", "k", &[int("axis", 1)])
        .node("Softmax", "k", "y", &[])
        .output("y");
    assert!(m.import().unwrap().symbols.values().all(|r| r.min == 0));
    assert_eq!(m.run(&[count(&[1, 0, 2]), count(&[1, 3, 2])])[0].sizes(), [1, 3, 2]);
    // The window needs three elements, one less with its pad; the last ones need a size that is not 0.
    let m = Model::new(17)
        .input("x", Elem::F32, &["b", "1", "n"])
        .node("MaxPool", "x", "p", &[ints("kernel_shape", &[3]), ints("pads", &[1, 0])])
        .node("Shape", "x", "s", &[int("start", 0), int("end", 1)])
        .node("Neg", "s", "first", &[])
        .list("end", &[i64::MAX])
        .list("axis", &[1])
        .constant("table", count(&[1, 9]))
        .node("Slice", "table first end axis", "y", &[])
        .output("p")
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(
        g.symbols.iter().map(|(s, r)| (s.name(), r.min, r.max)).collect::<Vec<_>>(),
        [("b", 1, i32::MAX.into()), ("n", 2, i32::MAX.into())]
    );
    assert_eq!(g.bounds.values().map(ToString::to_string).collect::<Vec<_>>(), ["Slice_0", "MaxPool_0"]);
    assert!(g.checks.is_empty(), "{:?}", g.checks);
}

#[test]
fn sizes_are_followed_through_floats_and_comparisons() {
    // Shapes of `n` by expressions on its size, against the same expressions on numbers.
    let sizes = |expression: &dyn Fn(Model) -> Model, expected: &dyn Fn(i64) -> i64| {
        let m = Model::new(17)
            .input("x", Elem::F32, &["n"])
            .node("Shape", "x", "s", &[])
            .node("Cast", "s", "f", &[int("to", 1)])
            .list("seven", &[7])
            .constant("two", f32s(&[], &[2.0]))
            .constant("third", f32s(&[], &[3.0]))
            .constant("half", f32s(&[], &[0.5]));
        let m = expression(m).node("ConstantOfShape", "y", "z", &[]).output("z");
        for n in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 31] {
            assert_eq!(m.run(&[count(&[n])])[0].sizes(), [expected(n as i64) as usize], "{n}");
        }
    };
    let divided = |rounding: &'static str, by: &'static str| {
        move |m: Model| m.node("Div", &format!("f {by}"), "q", &[]).node(rounding, "q", "r", &[]).node("Cast", "r", "y", &[int("to", 7)])
    };
    sizes(&divided("Ceil", "two"), &|n| (n + 1) / 2);
    sizes(&divided("Floor", "third"), &|n| n / 3);
    sizes(&divided("Round", "two"), &|n| (n as f32 / 2.0).round_ties_even() as i64);
    sizes(&|m| m.node("Div", "f third", "q", &[]).node("Cast", "q", "y", &[int("to", 7)]), &|n| n / 3);
    sizes(&|m| m.node("Mul", "half f", "q", &[]).node("Ceil", "q", "r", &[]).node("Cast", "r", "y", &[int("to", 7)]), &|n| (n + 1) / 2);
    sizes(&|m| m.node("Mul", "f f", "q", &[]).node("Sqrt", "q", "r", &[]).node("Cast", "r", "y", &[int("to", 7)]), &|n| n);
    sizes(&|m| m.node("Pow", "s two", "y", &[]), &|n| n * n);
    sizes(&|m| m.node("Greater", "s seven", "c", &[]).node("Where", "c seven s", "y", &[]), &|n| n.min(7));
    sizes(&|m| m.node("Equal", "s seven", "c", &[]).node("Not", "c", "d", &[]).node("Cast", "d", "y", &[int("to", 7)]), &|n| {
        (n != 7).into()
    });
    sizes(&|m| m.node("Concat", "seven s", "l", &[int("axis", 0)]).node("ArgMax", "l", "y", &[int("keepdims", 1)]), &|n| (n > 7).into());
    sizes(&|m| m.node("Concat", "s s seven", "l", &[int("axis", 0)]).node("ReduceSum", "l", "y", &[int("keepdims", 1)]), &|n| 2 * n + 7);
    // What is not followed is said to depend on the shapes.
    let m = Model::new(17)
        .input("x", Elem::F32, &["n"])
        .node("Shape", "x", "s", &[])
        .node("Cast", "s", "f", &[int("to", 1)])
        .node("Log", "f", "l", &[])
        .node("Cast", "l", "y", &[int("to", 7)])
        .node("ConstantOfShape", "y", "z", &[])
        .output("z");
    let e = m.import().unwrap_err().to_string();
    assert!(e.contains("depends on the input shapes") && e.contains("--dim n=N decides it"), "{e}");
}

#[test]
fn nested_sizes_end_in_bounded_time() {
    let m = |op: &str, rounds: usize| {
        let mut m = Model::new(17).input("x", Elem::F32, &["n", "m"]).node("Shape", "x", "v0", &[]);
        m = m.node("ReduceMax", "v0", "v1", &[int("keepdims", 1)]).node("ReduceSum", "v0", "w1", &[int("keepdims", 1)]);
        for i in 1..rounds {
            m = m.node(op, &format!("v{i} w{i}"), &format!("v{}", i + 1), &[]).node(
                "Add",
                &format!("v{i} w{i}"),
                &format!("w{}", i + 1),
                &[],
            );
        }
        m.node("ConstantOfShape", &format!("v{rounds}"), "z", &[]).output("z")
    };
    m("Max", 20).import().unwrap();
    let e = m("Mul", 40).import().unwrap_err().to_string();
    assert!(e.contains("depends on the input shapes") && e.contains("--dim m=N,n=N decides it"), "{e}");
    // Windows in ceil mode one after the other.
    let mut pools = Model::new(17).input("v0", Elem::F32, &["1", "1", "n"]);
    for i in 0..8 {
        let attributes = [ints("kernel_shape", &[3]), ints("strides", &[2]), ints("pads", &[1, 1]), int("ceil_mode", 1)];
        pools = pools.node("MaxPool", &format!("v{i}"), &format!("v{}", i + 1), &attributes);
    }
    let pools = pools.output("v8");
    assert_eq!(pools.import().unwrap().ty(pools.import().unwrap().outputs()[0].value).to_string(), "f32[1, 1, div(n+254, 256)+1]");
    assert_eq!(pools.run(&[count(&[1, 1, 1000])])[0].sizes(), [1, 1, 5]);
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
    // Sums of 16-bit floats that overflow where their mean does not.
    let x = Tensor::build(Elem::F16, &[2], |_| Scalar::Float(65504.0));
    same(&single(13, "Mean", &x, "x", &[]).run(std::slice::from_ref(&x))[0], &[65504.0, 65504.0]);
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
    assert_eq!(ranges, [(0, 16)]);
    assert!(g.checks.is_empty(), "{:?}", g.checks);
}

fn resize(sizes: &[&str], scales: &[f32], attributes: &[onnx_protobuf::AttributeProto]) -> Model {
    Model::new(19)
        .input("x", Elem::F32, sizes)
        .constant("s", f32s(&[scales.len()], scales))
        .node("Resize", "x _ s", "y", attributes)
        .output("y")
}

/// Results of ONNX Runtime.
#[test]
fn resizing_follows_the_definitions() {
    let x = f32s(&[1, 1, 3, 4], &[0.0, 1.0, 4.0, 2.0, 2.0, 4.0, 1.0, 0.0, 1.0, 4.0, 2.0, 2.0]);
    let is = |attributes: &[onnx_protobuf::AttributeProto], expected: &[f64]| {
        let y = resize(&["1", "1", "3", "4"], &[1.0, 1.0, 1.7, 0.6], attributes).run(std::slice::from_ref(&x)).swap_remove(0);
        close(&y, &[1, 1, 5, 2], expected);
    };
    let (linear, cubic, nearest) = (text("mode", "linear"), text("mode", "cubic"), text("mode", "nearest"));
    let (antialias, places) = (int("antialias", 1), |name: &str| text("coordinate_transformation_mode", name));
    let half_pixel = [0.333333, 4.0, 1.22549, 2.852941, 2.598039, 1.088235, 2.294118, 1.558824, 2.0, 2.0];
    is(std::slice::from_ref(&linear), &half_pixel);
    is(&[linear.clone(), places("pytorch_half_pixel")], &half_pixel);
    is(
        &[linear.clone(), places("half_pixel_symmetric")],
        &[0.666667, 3.333333, 1.764706, 2.235294, 3.333333, 0.666667, 3.137255, 1.450981, 3.0, 2.0],
    );
    is(std::slice::from_ref(&cubic), &[-0.109716, 4.292129, 1.174053, 2.826893, 2.75159, 1.047306, 2.593007, 1.321349, 1.996121, 2.080241]);
    is(
        &[cubic.clone(), int("exclude_outside", 1), float("cubic_coeff_a", -0.5)],
        &[-0.018957, 4.23124, 1.024808, 2.966517, 2.624982, 1.035325, 2.325696, 1.448186, 1.851322, 2.059622],
    );
    is(&[linear, antialias.clone()], &[0.375, 2.888889, 1.283088, 2.336601, 2.680147, 1.486928, 2.400735, 2.003268, 2.125, 2.444444]);
    is(&[cubic, antialias], &[0.093107, 3.206748, 1.354811, 2.429887, 2.909517, 1.559668, 2.772698, 2.030793, 2.201954, 2.70502]);
    is(&[nearest.clone(), text("nearest_mode", "ceil")], &[1.0, 4.0, 4.0, 1.0, 4.0, 1.0, 4.0, 2.0, 4.0, 2.0]);
    is(&[nearest, text("nearest_mode", "round_prefer_ceil"), places("asymmetric")], &[0.0, 4.0, 2.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 2.0]);
}

#[test]
fn nearest_places_were_rounded_up_where_images_shrank() {
    let x = f32s(&[1, 1, 1, 8], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let scaled = |opset, op, s: f32| {
        single(opset, op, &x, "s", &[]).constant("s", f32s(&[4], &[1.0, 1.0, 1.0, s])).run(std::slice::from_ref(&x)).swap_remove(0)
    };
    close(&scaled(10, "Resize", 0.6), &[1, 1, 1, 4], &[1.0, 3.0, 5.0, 6.0]);
    close(&scaled(9, "Upsample", 1.25), &[1, 1, 1, 10], &[1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 6.0, 7.0, 8.0]);
    let mut scales = onnx_protobuf::AttributeProto { name: "scales".into(), ..Default::default() };
    scales.type_ = onnx_protobuf::attribute_proto::AttributeType::FLOATS.into();
    scales.floats = vec![1.0, 1.0, 1.0, 2.0];
    let doubled = single(7, "Upsample", &x, "", &[scales]).run(std::slice::from_ref(&x)).swap_remove(0);
    assert_eq!(doubled.to_f64s()[..6], [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
}

/// Images of free sizes are resized as those of fixed ones, whatever their sizes are.
#[test]
fn free_sizes_are_resized_as_fixed_ones() {
    let modes = [
        vec![text("mode", "nearest")],
        vec![text("mode", "nearest"), text("nearest_mode", "round_prefer_ceil")],
        vec![text("mode", "linear")],
        vec![text("mode", "linear"), int("antialias", 1)],
        vec![text("mode", "cubic")],
        vec![text("mode", "cubic"), int("antialias", 1)],
        vec![text("mode", "cubic"), int("exclude_outside", 1)],
    ];
    for coordinates in ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"] {
        for (mode, scales) in modes.iter().flat_map(|m| [[1.0, 1.0, 0.5, 2.5], [1.0, 1.0, 1.75, 2.0]].map(|s| (m, s))) {
            let attributes = [mode.clone(), vec![text("coordinate_transformation_mode", coordinates)]].concat();
            let free = resize(&["1", "1", "h", "w"], &scales, &attributes);
            for (h, w) in [(2, 3), (5, 4), (7, 1)] {
                let x = [Tensor::build(Elem::F32, &[1, 1, h, w], |i| Scalar::Int((i * i % 11) as i128))];
                let (h, w) = (h.to_string(), w.to_string());
                let fixed = resize(&["1", "1", &h, &w], &scales, &attributes);
                assert_eq!(free.run(&x), fixed.run(&x), "{coordinates} {mode:?} {scales:?} {h} x {w}");
            }
        }
    }
}

/// As exporters write position tables of vision transformers.
#[test]
fn scales_may_be_quotients_of_sizes() {
    for (offset, size) in [(0.0, 7), (0.1, 7), (0.1, 37), (0.0, 16)] {
        let m = Model::new(18)
            .input("x", Elem::F32, &["1", "1", "h", "w"])
            .constant("table", count(&[1, 1, size, size]))
            .constant("size", f32s(&[], &[size as f32]))
            .constant("offset", f32s(&[], &[offset]))
            .constant("ones", f32s(&[2], &[1.0, 1.0]))
            .list("two", &[2])
            .list("four", &[4])
            .node("Shape", "x", "all", &[])
            .node("Slice", "all two four", "hw", &[])
            .node("Cast", "hw", "floats", &[int("to", 1)])
            .node("Add", "floats offset", "more", &[])
            .node("Div", "more size", "spatial", &[])
            .node("Concat", "ones spatial", "scales", &[int("axis", 0)])
            .node("Resize", "table _ scales", "places", &[text("mode", "cubic")])
            .node("Add", "x places", "y", &[])
            .output("y");
        let g = m.import().unwrap();
        assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[1, 1, h, w]");
        for (h, w) in [(5, 11), (7, 7), (31, 3)] {
            let y = m.run(&[count(&[1, 1, h, w])]).swap_remove(0);
            assert!(y.to_f64s().iter().all(|y| y.is_finite()));
        }
    }
    let scales = Model::new(18)
        .input("x", Elem::F32, &["1", "1", "h", "4"])
        .input("s", Elem::F32, &["4"])
        .node("Resize", "x _ s", "y", &[text("mode", "linear")])
        .output("y");
    assert!(scales.import().unwrap_err().to_string().contains("must be known at compile time or be computed from sizes"));
    let tie = resize(&["1", "1", "h", "4"], &[1.0, 1.0, 1.3, 1.0], &[]).import().unwrap_err();
    assert!(tie.to_string().contains("--dim"), "{tie}");
}

#[test]
fn what_is_not_finite_stays_where_it_is() {
    let mut image = vec![1f32; 8 * 8];
    (image[3 * 8 + 4], image[6 * 8 + 1]) = (f32::NAN, f32::INFINITY);
    let x = [f32s(&[1, 1, 8, 8], &image)];
    for (mode, reach) in [("linear", 1.0), ("cubic", 2.0)] {
        for antialias in [0, 1] {
            let y = resize(&["1", "1", "8", "8"], &[1.0, 1.0, 2.0, 2.0], &[text("mode", mode), int("antialias", antialias)]).run(&x);
            for (i, v) in y[0].to_f64s().into_iter().enumerate() {
                // Without antialiasing linear places are within the image, and their neighbours may have weight 0.
                let least = if mode == "linear" && antialias == 0 { 0.0 } else { -1.0 };
                let place = |at: usize| (at as f64 / 2.0 - 0.25).max(least);
                let (row, column) = (place(i / 16), place(i % 16));
                let near = |r: f64, c: f64| (row - r).abs() <= reach && (column - c).abs() <= reach;
                assert_eq!(v.is_finite(), !near(3.0, 4.0) && !near(6.0, 1.0), "{mode} {row} {column}: {v}");
            }
        }
    }
    // What lies outside of an image is 0, whatever its border is.
    let x = f32s(&[1, 1, 1, 2], &[f32::NAN, f32::INFINITY]);
    let grid = f32s(&[1, 1, 2, 2], &[-9.0, 0.0, 9.0, 0.0]);
    for mode in ["nearest", "linear", "cubic"] {
        let m = Model::new(20)
            .input("x", Elem::F32, &["1", "1", "1", "2"])
            .input("g", Elem::F32, &["1", "1", "2", "2"])
            .node("GridSample", "x g", "y", &[text("mode", mode)])
            .output("y");
        close(&m.run(&[x.clone(), grid.clone()])[0], &[1, 1, 1, 2], &[0.0, 0.0]);
    }
    let rois = f32s(&[1, 4], &[-40.0, -40.0, -30.0, -30.0]);
    let m = Model::new(16)
        .input("x", Elem::F32, &["1", "1", "1", "2"])
        .input("r", Elem::F32, &["1", "4"])
        .input("b", Elem::I64, &["1"])
        .node("RoiAlign", "x r b", "y", &[int("output_height", 1), int("output_width", 1), int("sampling_ratio", 1)])
        .output("y");
    close(&m.run(&[x, rois, i64s(&[1], &[0])])[0], &[1, 1, 1, 1], &[0.0]);
}

/// A place outside of the image weighs its neighbours as it would within, and those beyond the border repeat it.
#[test]
fn cubic_samples_repeat_the_border() {
    let m = Model::new(20)
        .input("x", Elem::F32, &["1", "1", "1", "3"])
        .input("g", Elem::F32, &["1", "1", "1", "2"])
        .node("GridSample", "x g", "y", &[text("mode", "cubic"), text("padding_mode", "border")])
        .output("y");
    // The place is -0.25, between elements -1 and 0: distances 1.75, 0.75, 0.25, 1.25.
    let weights = [-0.03515625, 0.26171875, 0.87890625, -0.10546875];
    let y = m.run(&[f32s(&[1, 1, 1, 3], &[2.0, 10.0, 3.0]), f32s(&[1, 1, 1, 2], &[-2.5 / 3.0, 0.0])]);
    close(&y[0], &[1, 1, 1, 1], &[2.0 * (weights[0] + weights[1] + weights[2]) + 10.0 * weights[3]]);
}

#[test]
fn indices_of_images_and_caches_are_checked() {
    let result = |m: &Model, inputs: &[Tensor]| {
        let g = m.import().unwrap();
        g.evaluate(inputs, &tfc_tests::models::bind(&g, inputs)).map_err(|e| e.to_string())
    };
    let align = Model::new(16)
        .input("x", Elem::F32, &["n", "1", "2", "2"])
        .input("r", Elem::F32, &["1", "4"])
        .input("b", Elem::I64, &["1"])
        .node("RoiAlign", "x r b", "y", &[int("output_height", 1), int("output_width", 1), int("sampling_ratio", 1)])
        .output("y");
    for (image, fine) in [(0, true), (1, true), (2, false), (-1, false), (i64::MIN / 4, false)] {
        let rois = f32s(&[1, 4], &[0.0, 0.0, 1.0, 1.0]);
        assert_eq!(result(&align, &[count(&[2, 1, 2, 2]), rois, i64s(&[1], &[image])]).is_ok(), fine, "image {image}");
    }
    for mode in ["linear", "circular"] {
        let scatter = Model::new(24)
            .input("past", Elem::F32, &["2", "5", "1"])
            .input("update", Elem::F32, &["2", "2", "1"])
            .input("at", Elem::I64, &["2"])
            .node("TensorScatter", "past update at", "y", &[text("mode", mode)])
            .output("y");
        for (at, linear, circular) in [(0, true, true), (3, true, true), (4, false, true), (-1, false, false), (12, false, true)] {
            let fine = if mode == "linear" { linear } else { circular };
            let inputs = [count(&[2, 5, 1]), count(&[2, 2, 1]), i64s(&[2], &[0, at])];
            assert_eq!(result(&scatter, &inputs).is_ok(), fine, "{mode} at {at}");
        }
    }
}
