//! Damaged and hostile model files: always an error that says where, never a panic, never a hang.

use bytes::Bytes;
use proptest::prelude::*;
use tfc::onnx::{Error, ImportOptions, decode, import};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;
use tfc_tests::node_cases::{CASES, Case};
use tfc_tests::onnx_build::{Model, graph, int, ints, node, value_info};

/// A model with most kinds of fields.
fn model() -> Model {
    let branch = |op: &str| {
        let m = Model::new(17).node(op, "h", "r", &[]).output("r");
        graph(if op == "Relu" { "then_branch" } else { "else_branch" }, m.graph)
    };
    Model::new(17)
        .input("x", Elem::F32, &["batch", "4"])
        .input("c", Elem::Bool, &[])
        .constant("w", Tensor::of(&[4, 300], vec![0.5f32; 1200]))
        .list("shape", &[0, -1, 3])
        .node("MatMul", "x w", "h", &[])
        .node("If", "c", "y", &[branch("Relu"), branch("Neg")])
        .node("Reshape", "y shape", "z", &[])
        .node("Transpose", "z", "t", &[ints("perm", &[0, 2, 1])])
        .node("Softmax", "t", "out", &[int("axis", -1)])
        .output("out")
}

/// Decodes and imports; what comes out must name a place or be fine.
fn survive(bytes: Vec<u8>) -> Result<(), Error> {
    let m = decode::decode(&Bytes::from(bytes), None)?;
    import(&m, &ImportOptions::default()).map(|_| ())
}

fn error(m: &Model) -> String {
    let e = m.import().expect_err("a bad model");
    assert!(matches!(e, Error::Invalid(_)), "{e}");
    e.to_string()
}

#[test]
fn the_model_is_fine_before_it_is_damaged() {
    model().import().unwrap();
}

#[test]
fn every_truncation_is_an_error_with_a_place() {
    let whole = model().bytes();
    for n in 0..whole.len() {
        let e = survive(whole[..n].to_vec()).expect_err("a truncated file").to_string();
        let ends_between_fields = e.contains("the file has no graph") || e.contains("imports no version");
        assert!(n == 0 || e.contains("at ") || ends_between_fields, "{n}: {e}");
    }
}

#[test]
fn files_that_are_no_models_are_errors() {
    for bytes in [&b""[..], b"hello, world\n", b"{\"a\": 1}", b"\x89PNG\r\n\x1a\n", &[0; 64], &[0xff; 64], b"PK\x03\x04"] {
        assert!(matches!(survive(bytes.to_vec()), Err(Error::Invalid(_))), "{bytes:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..6)) {
        let mut bytes = model().bytes().to_vec();
        for (at, bit) in flips {
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
        }
        let _ = survive(bytes);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = survive(bytes);
    }

    #[test]
    fn absurd_numbers_never_panic(
        dims in prop::collection::vec(prop_oneof![Just(i64::MAX), Just(i64::MIN), Just(-1i64), Just(0i64), Just(1i64 << 40), -3..5i64], 0..5),
        axis in prop_oneof![Just(i64::MAX), Just(i64::MIN), -4..5i64],
    ) {
        let mut m = Model::new(13)
            .input("x", Elem::F32, &["n", "4"])
            .list("dims", &dims)
            .list("axes", &[axis])
            .node("Reshape", "x dims", "a", &[])
            .node("ConstantOfShape", "dims", "b", &[])
            .node("Expand", "x dims", "c", &[])
            .node("Slice", "x dims dims", "d", &[])
            .node("Pad", "x dims", "e", &[])
            .node("Tile", "x dims", "f", &[])
            .node("Unsqueeze", "x axes", "g", &[])
            .node("Concat", "x x", "h", &[int("axis", axis)])
            .node("Range", "axes axes axes", "i", &[])
            .node("Split", "x dims", "j k", &[int("axis", axis)])
            .node("AveragePool", "x", "l", &[ints("kernel_shape", &dims), ints("strides", &dims)])
            .node("Cast", "x", "m", &[int("to", axis)])
            .node("DepthToSpace", "x", "o", &[int("blocksize", axis)]);
        let nodes = m.graph.node.clone();
        // Each node on its own: the first bad one would hide the others.
        for n in nodes {
            m.graph.node = vec![n.clone()];
            m.graph.output.clear();
            m = m.output(&n.output[0]);
            let _ = m.import();
        }
    }
}

#[test]
fn the_nodes_are_fine_before_they_are_damaged() {
    for line in CASES {
        match Case::parse(line).model().import() {
            Ok(_) => {}
            Err(Error::Unsupported(r))
                if r.unsupported.iter().any(|u| {
                    ["output", "data-dependent", "must be known"].iter().any(|s| format!("{}: {}", u.operator, u.reason).contains(s))
                }) => {}
            Err(e) => panic!("{line}: {e}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is wrong with ranks, sizes, element types, operands and attributes: an error, and never our own.
    #[test]
    fn damaged_nodes_are_fine_or_refused(
        changes in prop::collection::vec(
            (any::<u8>(), any::<u16>(), prop_oneof![
                8 => -4..9i64,
                1 => Just(i64::MAX), 1 => Just(i64::MIN), 1 => Just(1 << 40), 1 => Just(i64::from(i32::MIN)), 1 => Just(1 << 20),
            ]),
            1..4,
        ),
    ) {
        for line in CASES {
            let mut case = Case::parse(line);
            changes.iter().for_each(|&(kind, at, value)| case.damage(kind, at.into(), value));
            let imported = std::panic::catch_unwind(|| case.model().import().err().map(|e| e.to_string()));
            match imported {
                Ok(e) => prop_assert!(e.as_ref().is_none_or(|e| !e.contains("bug")), "{case:?}: {e:?}"),
                Err(_) => return Err(TestCaseError::fail(format!("a panic: {case:?}"))),
            }
        }
    }
}

#[test]
fn operands_have_the_element_types_that_onnx_demands() {
    for (line, operand) in [
        ("Where 16 i8:3 f32:3 f32:3", 0),
        ("And 7 i32:3 i32:3", 0),
        ("Or 7 bool:3 f32:3", 1),
        ("Not 7 u8:3", 0),
        ("BitwiseAnd 18 bool:3 bool:3", 0),
        ("Compress 11 f32:3,2 i64:3 / axis=0", 1),
        ("Gather 13 f32:4,3 u8:2", 1),
        ("Gather 13 f32:4,3 f32:2", 1),
        ("GatherND 13 f32:4,3 i32:2,1", 1),
        ("ScatterElements 18 f32:4,3 bool:2,3 f32:2,3", 1),
        ("Reshape 14 f32:4,3 i32:1", 1),
        ("TopK 11 f32:2,5 i32:1", 1),
    ] {
        let e = error(&Case::parse(line).model());
        assert!(e.contains(&format!("operand {operand} must be")) && e.contains("but it is"), "{line}: {e}");
    }
    let branch = |name: &str| graph(name, Model::new(17).node("Neg", "x", "r", &[]).output("r").graph);
    let m = Model::new(17)
        .input("x", Elem::F32, &["2"])
        .input("c", Elem::I32, &[])
        .node("If", "c", "y", &[branch("then_branch"), branch("else_branch")])
        .output("y");
    assert!(error(&m).contains("operand 0 must be bool, but it is i32[]"));
}

#[test]
fn truth_values_are_0_or_1() {
    for (line, name) in [("ReduceSum 13 f32:2,3 / keepdims=9", "keepdims"), ("CumSum 14 f32:2,3 @1 / reverse=-1", "reverse")] {
        let e = error(&Case::parse(line).model());
        assert!(e.contains(&format!("the attribute `{name}` must be 0 or 1, but is")), "{line}: {e}");
    }
}

#[test]
fn names_that_are_given_twice_are_the_fault_of_the_model() {
    let m = || Model::new(17).input("x", Elem::F32, &["2"]).node("Neg", "x", "y", &[]).output("y");
    for (model, pieces) in [
        (m().output("y"), ["output `y`", "two outputs have this name"]),
        (m().input("x", Elem::F32, &["2"]), ["input `x`", "two inputs have this name"]),
        (m().input("", Elem::F32, &["2"]), ["input ``", "an input has no name"]),
        (m().node("Split", "x", "a a", &[]), ["Split", "`a` is defined twice"]),
        (m().node("Abs", "x", "y", &[]), ["Abs", "`y` is defined twice; first by node `Neg_0`"]),
        (m().list("w", &[1]).list("w", &[2]), ["initializer `w`", "two initializers have this name"]),
        (m().list("y", &[1]), ["Neg_0", "`y` is defined twice; first as an input or initializer"]),
        (m().output("z"), ["output `z`", "nothing defines this value"]),
    ] {
        let e = error(&model);
        assert!(pieces.iter().all(|p| e.contains(p)) && !e.contains("bug"), "{e}");
    }
}

#[test]
fn a_declared_shape_that_is_not_computed_is_a_warning() {
    let m = |name: &str, declared: &[&str]| {
        let mut m = Model::new(17).input("x", Elem::F32, &["batch", "seq", "4"]).node("Concat", "x x", "h", &[int("axis", 1)]).node(
            "Neg",
            "h",
            "y",
            &[],
        );
        m = if name == "y" { m } else { m.output("y") };
        let info = value_info(name, Elem::F32, declared);
        if name == "y" {
            m.graph.output.push(info)
        } else {
            m.graph.value_info.push(info)
        }
        tfc::onnx::import_with_warnings(&decode::decode(&m.bytes(), None).unwrap(), &ImportOptions::default()).map(|(_, w)| w)
    };
    for name in ["y", "h"] {
        for declared in [&["batch", "seq", "4"][..], &["batch", "?", "5"], &["batch", "4"], &[]] {
            let warnings = m(name, declared).unwrap();
            let sizes = format!("declared with the shape [{}], but has the shape [batch, 2*seq, 4]", declared.join(", "));
            assert!(warnings.len() == 1 && warnings[0].contains(&sizes) && warnings[0].contains(&format!("`{name}`")), "{warnings:?}");
        }
        for fits in [&["batch", "longer", "4"][..], &["?", "?", "?"], &["-7", "?", "?"]] {
            assert!(m(name, fits).unwrap().is_empty());
        }
    }
    let mut wrong = Model::new(17).input("x", Elem::F32, &["2"]).node("Neg", "x", "y", &[]);
    wrong.graph.output.push(value_info("y", Elem::I64, &["2"]));
    assert!(error(&wrong).contains("int64 elements are declared, but the value is f32[2]"));
}

#[test]
fn what_no_output_needs_is_left_out_unseen() {
    let used = Model::new(17).input("x", Elem::F32, &["2"]).node("Neg", "x", "y", &[]).output("y");
    let mut m = used
        .clone()
        .input("w", Elem::F32, &["3"])
        .constant("w", Tensor::of(&[3], vec![0f32; 3]))
        .node("NoSuchOp", "x w", "a", &[])
        .node("MatMul", "a a", "b", &[])
        .node("Add", "c ghost", "c", &[]);
    for (name, data_type) in [("strings", 8), ("float8", 17), ("packed", 23), ("unknown", 99)] {
        m.graph.initializer.push(onnx_protobuf::TensorProto { name: name.into(), data_type, dims: vec![-4], ..Default::default() });
    }
    let values = onnx_protobuf::TensorProto { name: "sparse".into(), ..Default::default() };
    m.graph.sparse_initializer.push(onnx_protobuf::SparseTensorProto { values: Some(values).into(), ..Default::default() });
    let mut external = onnx_protobuf::TensorProto { name: "gone".into(), data_type: 1, dims: vec![9], ..Default::default() };
    external.data_location = onnx_protobuf::tensor_proto::DataLocation::EXTERNAL.into();
    m.graph.initializer.push(external);
    let g = m.import().unwrap();
    assert_eq!((g.inputs().len(), g.nodes().count()), (1, 1));
    let unused = decode::decode(&m.bytes(), None).unwrap().unused;
    for part in ["node `NoSuchOp_0` (NoSuchOp)", "node `Add_0` (Add)", "initializer `w`", "initializer `strings`", "initializer `sparse`"] {
        assert!(unused.iter().any(|u| u == part), "{part}: {unused:?}");
    }
    // Where it is used it is looked at.
    let m = m.node("Add", "y strings", "z", &[]).output("z");
    assert!(m.import().unwrap_err().to_string().contains("string elements are not supported"));
}

#[test]
fn cycles_and_undefined_values_name_the_node() {
    let cycle = Model::new(17).input("x", Elem::F32, &["2"]).node("Add", "x b", "a", &[]).node("Neg", "a", "b", &[]).output("a");
    assert!(error(&cycle).contains("depend on their own results: `Add_0`, `Neg_0`"));
    let undefined = Model::new(17).input("x", Elem::F32, &["2"]).node("Add", "x ghost", "a", &[]).output("a");
    let e = error(&undefined);
    assert!(e.contains("`ghost` is not defined") && e.contains("node `Add_0` (Add)"), "{e}");
    let twice = Model::new(17).input("x", Elem::F32, &["2"]).node("Neg", "x", "x", &[]).output("x");
    assert!(error(&twice).contains("`x` is defined twice"));
    let missing = Model::new(17).input("x", Elem::F32, &["2"]).output("y");
    assert!(error(&missing).contains("output `y`"));
}

#[test]
fn contradictions_name_both_sides() {
    let m =
        Model::new(17).input("x", Elem::F32, &["2", "3"]).input("y", Elem::F32, &["4", "5"]).node("MatMul", "x y", "z", &[]).output("z");
    let e = error(&m);
    assert!(e.contains("node `MatMul_0` (MatMul)") && e.contains('3') && e.contains('4'), "{e}");
}

#[test]
fn deep_nesting_is_an_error() {
    let mut inner = Model::new(17).node("Identity", "x", "y", &[]).output("y").graph;
    for _ in 0..200 {
        let mut outer = Model::new(17).output("y").graph;
        outer.node.push(node("If", "c", "y", &[graph("then_branch", inner.clone()), graph("else_branch", Default::default())]));
        inner = outer;
    }
    let mut m = Model::new(17).input("x", Elem::F32, &["2"]).input("c", Elem::Bool, &[]);
    m.graph.node = inner.node;
    let e = error(&m.output("y"));
    assert!(e.contains("nest more than") && e.contains("byte"), "{e}");
}

#[test]
fn functions_do_not_call_themselves() {
    let body = |name: &str, calls: &str| onnx_protobuf::FunctionProto {
        domain: "local".into(),
        name: name.into(),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node: vec![onnx_protobuf::NodeProto { domain: "local".into(), ..node(calls, "a", "b", &[]) }],
        opset_import: vec![onnx_protobuf::OperatorSetIdProto { domain: "".into(), version: 17, ..Default::default() }],
        ..Default::default()
    };
    let m = Model::new(17)
        .opset("local", 1)
        .input("x", Elem::F32, &["2"])
        .foreign("local", "F", "x", "y", &[])
        .output("y")
        .function(body("F", "G"))
        .function(body("G", "F"));
    assert!(error(&m).contains("calls itself"));
}

/// `Fi(a) = combine(F(i-1)(a), …)` for `i` up to `n`, `F0(a) = Relu(a)`, and the model that applies the last.
fn chain(n: usize, calls: usize) -> Model {
    let mut m = Model::new(17).opset("d", 1).input("x", Elem::F32, &["2"]).foreign("d", &format!("F{n}"), "x", "y", &[]).output("y");
    for i in 0..=n {
        let mut body = vec![];
        for c in 0..calls {
            let mut inner = node(if i == 0 { "Relu" } else { "" }, "a", &format!("b{c}"), &[]);
            if i > 0 {
                (inner.domain, inner.op_type) = ("d".into(), format!("F{}", i - 1));
            }
            body.push(inner);
        }
        let all: Vec<String> = (0..calls).map(|c| format!("b{c}")).collect();
        body.push(node("Sum", &all.join(" "), "b", &[]));
        m = m.function(onnx_protobuf::FunctionProto {
            domain: "d".into(),
            name: format!("F{i}"),
            input: vec!["a".into()],
            output: vec!["b".into()],
            node: body,
            opset_import: vec![onnx_protobuf::OperatorSetIdProto { version: 17, ..Default::default() }],
            ..Default::default()
        });
    }
    m
}

#[test]
fn functions_may_lie_in_each_other_to_a_depth() {
    assert_eq!(chain(90, 1).import().unwrap().nodes().count(), 1);
    let e = chain(10_000, 1).import().unwrap_err();
    assert!(matches!(e, Error::Unsupported(_)) && e.to_string().contains("more than 100 deep"), "{e}");
    // 2^40 nodes when inlined.
    assert!(error(&chain(40, 2)).contains("more than 100000 nodes"));
}

#[test]
fn everything_unsupported_is_reported_at_once() {
    let m = Model::new(17)
        .input("x", Elem::F32, &["n", "4"])
        .node("NoSuchOp", "x", "a", &[])
        .node("NoSuchOp", "a", "b", &[])
        .foreign("ai.example", "Strange", "b", "c", &[])
        .node("NonZero", "x", "d", &[])
        .node("Neg", "d", "e", &[])
        .output("c")
        .output("e");
    let decoded = decode::decode(&m.bytes(), None).unwrap();
    let report = tfc::onnx::check(&decoded, &ImportOptions::default()).unwrap();
    let found: Vec<(&str, &str, usize)> =
        report.unsupported.iter().map(|u| (u.domain.as_str(), u.operator.as_str(), u.nodes.len())).collect();
    assert_eq!(found, [("", "NoSuchOp", 2), ("ai.example", "Strange", 1), ("", "NonZero", 1)]);
    assert!(matches!(m.import(), Err(Error::Unsupported(r)) if r.unsupported == report.unsupported));
    let old = Model::new(5).input("x", Elem::F32, &["2"]).node("Neg", "x", "y", &[]).output("y");
    assert!(matches!(old.import(), Err(Error::Unsupported(_))));
}

#[test]
fn options_name_what_the_model_has() {
    let m = Model::new(17)
        .input("x", Elem::F32, &["batch", "?"])
        .input("y", Elem::F32, &["batch", "4"])
        .node("Add", "x y", "z", &[])
        .output("z");
    let with = |shapes: &[(&str, &[i64])], dims: &[(&str, i64, i64)]| {
        let options = ImportOptions {
            shapes: shapes.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect(),
            dims: dims
                .iter()
                .map(|(n, min, max)| (n.to_string(), tfc::onnx::DimSpec::Range(tfc_ir::dim::Range { min: *min, max: *max })))
                .collect(),
        };
        m.import_with(&options)
    };
    let g = with(&[("x", &[2, 4])], &[]).unwrap();
    assert_eq!(g.ty(g.inputs()[1]).to_string(), "f32[2, 4]");
    let g = with(&[], &[("batch", 1, 8)]).unwrap();
    assert_eq!(g.symbols.iter().map(|(s, r)| format!("{s} {} {}", r.min, r.max)).collect::<Vec<_>>(), ["batch 1 8", "x_d1 0 2147483647"]);
    let e = with(&[("q", &[1])], &[]).unwrap_err().to_string();
    assert!(e.contains("`q`") && e.contains("`x`, `y`"), "{e}");
    let e = with(&[], &[("seq", 1, 2)]).unwrap_err().to_string();
    assert!(e.contains("`seq`") && e.contains("`batch`, `x_d1`"), "{e}");
    assert!(with(&[("x", &[2, 4]), ("y", &[3, 4])], &[]).unwrap_err().to_string().contains("given the size 3"));
    assert!(with(&[("x", &[2, 4, 1])], &[]).is_err() && with(&[("x", &[-2, 4])], &[]).is_err() && with(&[], &[("batch", 5, 2)]).is_err());
}
