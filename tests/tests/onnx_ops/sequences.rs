//! Sequences and optionals, which are known while importing.

use super::{close, count, f32s, i64s};
use tfc::onnx::Error;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_tests::onnx_build::{Model, function, graph, int, node, value_info};

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
