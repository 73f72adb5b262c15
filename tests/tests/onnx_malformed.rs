//! Damaged and hostile model files: always an error that says where, never a panic, never a hang.

use bytes::Bytes;
use proptest::prelude::*;
use tfc::onnx::{Error, ImportOptions, decode, import};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;
use tfc_tests::onnx_build::{Model, graph, int, ints, node};

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
    let mut m = Model::new(17).input("x", Elem::F32, &["2", "3"]).node("Neg", "x", "y", &[]);
    m.graph.output.push(tfc_tests::onnx_build::value_info("y", Elem::F32, &["2", "7"]));
    let e = error(&m);
    assert!(e.contains("the size 7 is declared for axis 1") && e.contains("f32[2, 3]"), "{e}");
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
