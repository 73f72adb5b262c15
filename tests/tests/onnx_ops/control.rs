//! Functions, branches and loops: bodies take the place of their calls.

use super::{close, count, f32s, i64s};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_tests::onnx_build::{Model, branch, float, function, graph, int, node, reference, value_info};

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
    let x = [f32s(&[2], &[-1.0, 2.0])];
    let out = m.run(&x);
    close(&out[0], &[2], &[0.0, 2.0]);
    close(&out[1], &[2], &[1.0, -2.0]);
    // A node that names an overload means the function.
    let mut other = function("", "Relu", &["x"], vec![node("Neg", "x", "y", &[])], 17);
    other.overload = "other".into();
    let mut m = m.function(other);
    m.graph.node[0].overload = "other".into();
    close(&m.run(&x)[0], &[2], &[1.0, -2.0]);
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
fn branches_are_inlined_or_selected() {
    let m = Model::new(17)
        .input("x", Elem::F32, &["2"])
        .input("c", Elem::Bool, &[])
        .node("If", "c", "y", &[branch("then_branch", "Neg", "x"), branch("else_branch", "Abs", "x")])
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
        .node("If", "c", "y", &[branch("then_branch", "Neg", "x"), branch("else_branch", "NonZero", "x")])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.nodes().count(), 1);
    assert_eq!((g.symbols.values().map(|r| r.min).max(), g.bounds.len()), (Some(1), 1), "a size of 0 takes the other branch");
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
