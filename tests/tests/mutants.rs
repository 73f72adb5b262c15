//! Structured mutants of models: each compiles and gives what the interpreter gives, or is refused with an error that
//! is not our own. Never a panic.
//!
//! `TFC_MUTANTS` is the number of mutants, `TFC_MUTANTS_SEED` the first one's number, `TFC_ZOO` a folder with further
//! models to change. `TFC_MUTANTS_OUT` names a folder: mutants are written there, and nothing else is done with them.

use onnx_protobuf::{FunctionProto, Message, ModelProto, OperatorSetIdProto};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use tfc::diag::{Diagnostic, Exit};
use tfc::driver::{self, Options};
use tfc::emit::jit;
use tfc::onnx::ImportOptions;
use tfc_ir::dim::Bindings;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;
use tfc_passes::OptLevel;
use tfc_runtime::Session;
use tfc_tests::choices::Choices;
use tfc_tests::models::{folders, relative_error};
use tfc_tests::mutate::{CONTENTS, mutate};
use tfc_tests::native::try_run;
use tfc_tests::node_cases::{CASES, Case};
use tfc_tests::onnx_build::{Model, branch, float, function, graph, int, ints, node, reference, text, value_info};
use tfc_tests::random_graph::inputs;

/// A constant of small floats.
fn weights(sizes: &[usize]) -> Tensor {
    Choices::seeded(sizes.iter().sum::<usize>() as u64).tensor(Elem::F32, sizes)
}

fn bytes(sizes: &[usize], factor: usize) -> Tensor {
    Tensor::build(Elem::U8, sizes, |i| Scalar::Int((i * factor % 251) as i128))
}

fn scalar(x: f32) -> Tensor {
    Tensor::scalar(Elem::F32, Scalar::Float(x.into()))
}

/// A block of a transformer with a mask, as exporters write it.
fn transformer() -> Model {
    let m = Model::new(17)
        .input("x", Elem::F32, &["batch", "seq", "8"])
        .input("mask", Elem::I64, &["batch", "seq"])
        .constant("qkv", weights(&[8, 24]))
        .constant("out", weights(&[8, 8]))
        .constant("up", weights(&[8, 16]))
        .constant("down", weights(&[16, 8]))
        .constant("gamma", weights(&[8]))
        .constant("beta", weights(&[8]))
        .constant("scale", scalar(0.5))
        .constant("one", scalar(1.0))
        .constant("low", scalar(-1e9))
        .list("heads", &[0, 0, 2, 4])
        .list("merged", &[0, 0, 8])
        .list("axes", &[1, 2])
        .node("MatMul", "x qkv", "p", &[])
        .node("Split", "p", "q k v", &[int("axis", -1)]);
    let m = ["q", "k", "v"].into_iter().fold(m, |m, n| {
        let perm: &[i64] = if n == "k" { &[0, 2, 3, 1] } else { &[0, 2, 1, 3] };
        m.node("Reshape", &format!("{n} heads"), &format!("{n}h"), &[]).node(
            "Transpose",
            &format!("{n}h"),
            &format!("{n}t"),
            &[ints("perm", perm)],
        )
    });
    m.node("MatMul", "qt kt", "s", &[])
        .node("Mul", "s scale", "scaled", &[])
        .node("Unsqueeze", "mask axes", "m4", &[])
        .node("Cast", "m4", "mf", &[int("to", 1)])
        .node("Sub", "one mf", "hidden", &[])
        .node("Mul", "hidden low", "bias", &[])
        .node("Add", "scaled bias", "masked", &[])
        .node("Softmax", "masked", "w", &[int("axis", -1)])
        .node("MatMul", "w vt", "c", &[])
        .node("Transpose", "c", "ct", &[ints("perm", &[0, 2, 1, 3])])
        .node("Reshape", "ct merged", "cm", &[])
        .node("MatMul", "cm out", "o", &[])
        .node("Add", "x o", "r", &[])
        .node("LayerNormalization", "r gamma beta", "n", &[int("axis", -1), float("epsilon", 1e-5)])
        .node("MatMul", "n up", "u", &[])
        .node("Relu", "u", "a", &[])
        .node("MatMul", "a down", "d", &[])
        .node("Add", "n d", "y", &[])
        .output("y")
}

fn convolutions() -> Model {
    Model::new(17)
        .input("x", Elem::F32, &["n", "3", "8", "8"])
        .constant("w1", weights(&[4, 3, 3, 3]))
        .constant("w2", weights(&[4, 1, 3, 3]))
        .constant("channel", weights(&[4]))
        .constant("positive", Tensor::of(&[4], vec![0.5f32, 1.0, 2.0, 3.0]))
        .constant("fc", weights(&[4, 5]))
        .constant("b", weights(&[5]))
        .node("Conv", "x w1 channel", "c1", &[ints("pads", &[1, 1, 1, 1]), ints("strides", &[2, 2])])
        .node("BatchNormalization", "c1 channel channel channel positive", "n", &[])
        .node("Relu", "n", "r", &[])
        .node("Conv", "r w2", "c2", &[int("group", 4), ints("pads", &[1, 1, 1, 1])])
        .node("MaxPool", "c2", "p", &[ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])])
        .node("GlobalAveragePool", "p", "g", &[])
        .node("Flatten", "g", "f", &[])
        .node("Gemm", "f fc b", "y", &[float("alpha", 0.5)])
        .output("y")
}

fn images() -> Model {
    Model::new(19)
        .input("x", Elem::F32, &["1", "2", "h", "w"])
        .input("grid", Elem::F32, &["1", "3", "3", "2"])
        .constant("scales", Tensor::of(&[4], vec![1.0f32, 1.0, 2.0, 2.0]))
        .list("sizes", &[1, 2, 6, 7])
        .list("pads", &[0, 0, 1, 1, 0, 0, 1, 1])
        .node("Pad", "x pads", "p", &[text("mode", "constant")])
        .node("Resize", "p _ scales", "r", &[text("mode", "nearest")])
        .node("Resize", "r _ _ sizes", "s", &[text("mode", "linear")])
        .node("GridSample", "s grid", "g", &[text("mode", "bilinear")])
        .node("AveragePool", "s", "a", &[ints("kernel_shape", &[2, 2]), int("ceil_mode", 1)])
        .output("g")
        .output("a")
}

fn recurrent() -> Model {
    Model::new(14)
        .input("x", Elem::F32, &["3", "2", "4"])
        .constant("w", weights(&[1, 12, 4]))
        .constant("r", weights(&[1, 12, 3]))
        .constant("b", weights(&[1, 24]))
        .constant("gw", weights(&[1, 9, 3]))
        .constant("gr", weights(&[1, 9, 3]))
        .list("axes", &[1])
        .node("LSTM", "x w r b", "l h c", &[int("hidden_size", 3)])
        .node("Squeeze", "l axes", "s", &[])
        .node("GRU", "s gw gr", "y last", &[int("hidden_size", 3), int("linear_before_reset", 1)])
        .output("y")
        .output("last")
        .output("c")
}

fn control() -> Model {
    let mut body = Model::new(17)
        .node("Mul", "v x", "p", &[])
        .node("Cast", "i", "f", &[int("to", 1)])
        .node("Add", "p f", "next", &[])
        .node("Identity", "go", "still", &[])
        .node("Mul", "i i", "square", &[])
        .output("still")
        .output("next")
        .output("square")
        .graph;
    body.input = vec![value_info("i", Elem::I64, &[]), value_info("go", Elem::Bool, &[]), value_info("v", Elem::F32, &["2"])];
    Model::new(17)
        .input("x", Elem::F32, &["2"])
        .input("c", Elem::Bool, &[])
        .constant("rounds", Tensor::of(&[], vec![3i64]))
        .constant("start", weights(&[2]))
        .node("Loop", "rounds _ start", "end squares", &[graph("body", body)])
        .node("If", "c", "y", &[branch("then_branch", "Neg", "end"), branch("else_branch", "Add", "end x")])
        .output("y")
        .output("squares")
}

/// Sizes that are computed, and that choose.
fn sizes() -> Model {
    Model::new(17)
        .input("x", Elem::F32, &["batch", "seq", "4"])
        .constant("zero", Tensor::of(&[], vec![0i64]))
        .constant("one", Tensor::of(&[], vec![1i64]))
        .constant("table", weights(&[16, 4]))
        .list("first", &[0])
        .list("four", &[4])
        .list("rest", &[-1])
        .node("Shape", "x", "s", &[])
        .node("Gather", "s one", "n", &[int("axis", 0)])
        .node("Range", "zero n one", "places", &[])
        .node("Gather", "table places", "rows", &[])
        .node("Add", "x rows", "h", &[])
        .node("Slice", "s first rest", "two", &[])
        .node("ReduceProd", "two", "all", &[int("keepdims", 1)])
        .node("Concat", "all four", "flat", &[int("axis", 0)])
        .node("Reshape", "h flat", "y", &[])
        .node("ConstantOfShape", "two", "z", &[])
        .node("Greater", "n one", "c", &[])
        .node("If", "c", "w", &[branch("then_branch", "Neg", "h"), branch("else_branch", "Abs", "h")])
        .output("y")
        .output("z")
        .output("w")
}

fn quantized() -> Model {
    Model::new(13)
        .input("x", Elem::F32, &["rows", "8"])
        .constant("s", scalar(0.05))
        .constant("z", Tensor::of(&[], vec![128u8]))
        .constant("w", bytes(&[8, 6], 37))
        .constant("wi", Tensor::build(Elem::I8, &[8, 6], |i| Scalar::Int(i as i128 * 29 % 255 - 127)))
        .constant("ws", Tensor::build(Elem::F32, &[6], |i| Scalar::Float(0.01 * (i + 1) as f64)))
        .constant("wz", Tensor::of(&[6], vec![0i8; 6]))
        .node("QuantizeLinear", "x s z", "q", &[])
        .node("DequantizeLinear", "q s z", "d", &[])
        .node("DequantizeLinear", "wi ws wz", "wd", &[int("axis", 1)])
        .node("MatMul", "d wd", "m", &[])
        .node("DynamicQuantizeLinear", "x", "dq ds dz", &[])
        .node("MatMulInteger", "dq w dz z", "mi", &[])
        .node("Cast", "mi", "mf", &[int("to", 1)])
        .node("Mul", "mf ds", "ms", &[])
        .output("m")
        .output("ms")
}

fn sequences() -> Model {
    Model::new(17)
        .input("x", Elem::F32, &["5", "2"])
        .constant("two", Tensor::of(&[], vec![2i64]))
        .constant("zero", Tensor::of(&[], vec![0i64]))
        .node("SplitToSequence", "x two", "s", &[int("axis", 0)])
        .node("SequenceAt", "s zero", "a", &[])
        .node("SequenceInsert", "s a zero", "t", &[])
        .node("SequenceErase", "t two", "u", &[])
        .node("SequenceLength", "u", "n", &[])
        .node("ConcatFromSequence", "u", "y", &[int("axis", 0)])
        .output("y")
        .output("n")
}

fn blocks() -> Model {
    let attributes = [int("K", 32), int("N", 4), int("bits", 4), int("block_size", 16)];
    let gather = [int("bits", 4), int("block_size", 16), int("gather_axis", 0), int("quantize_axis", 1)];
    Model::new(17)
        .opset("com.microsoft", 1)
        .input("x", Elem::F32, &["rows", "32"])
        .input("ids", Elem::I64, &["n"])
        .constant("w", bytes(&[4, 2, 8], 37))
        .constant("s", weights(&[4, 2]))
        .constant("z", bytes(&[4, 1], 91))
        .constant("table", bytes(&[6, 16], 53))
        .constant("ts", weights(&[6, 2]))
        .foreign("com.microsoft", "MatMulNBits", "x w s z", "y", &attributes)
        .foreign("com.microsoft", "GatherBlockQuantized", "table ids ts", "g", &gather)
        .output("y")
        .output("g")
}

fn functions() -> Model {
    let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version, ..Default::default() };
    let f = |name: &str, nodes: Vec<_>| FunctionProto {
        attribute: vec!["slope".into()],
        opset_import: vec![opset("", 17), opset("local", 1)],
        ..function("local", name, &["a", "b"], nodes, 17)
    };
    let mut call = node("inner", "a b", "i", &[reference("slope", "slope", 1)]);
    call.domain = "local".into();
    Model::new(17)
        .opset("local", 1)
        .input("x", Elem::F32, &["n", "3"])
        .constant("w", weights(&[3]))
        .foreign("local", "outer", "x w", "z", &[float("slope", 0.5)])
        .output("z")
        .function(f("inner", vec![node("LeakyRelu", "a", "l", &[reference("alpha", "slope", 1)]), node("Mul", "l b", "y", &[])]))
        .function(f("outer", vec![call, node("Add", "i a", "y", &[])]))
}

fn selections() -> Model {
    Model::new(18)
        .input("x", Elem::F32, &["4", "m"])
        .input("at", Elem::I64, &["2", "1"])
        .input("c", Elem::Bool, &["m"])
        .constant("k", Tensor::of(&[1], vec![2i64]))
        .constant("updates", weights(&[2, 3]))
        .constant("depth", Tensor::of(&[], vec![5i64]))
        .constant("values", weights(&[2]))
        .constant("data", weights(&[4, 3]))
        .node("TopK", "x k", "best where", &[int("axis", 0)])
        .node("GatherElements", "x where", "e", &[int("axis", 0)])
        .node("ScatterND", "data at updates", "s", &[text("reduction", "add")])
        .node("ArgMax", "x", "top", &[int("axis", 0), int("keepdims", 0)])
        .node("OneHot", "top depth values", "hot", &[int("axis", -1)])
        .node("Where", "c e best", "y", &[])
        .node("Einsum", "y best", "dots", &[text("equation", "ij,kj->ik")])
        .output("s")
        .output("hot")
        .output("dots")
}

fn halves() -> Model {
    let half = |sizes: &[usize]| Choices::seeded(3).tensor(Elem::F16, sizes);
    Model::new(17)
        .input("x", Elem::F16, &["n", "8"])
        .constant("w", half(&[8, 8]))
        .constant("g", half(&[8]))
        .node("MatMul", "x w", "h", &[])
        .node("Erf", "h", "e", &[])
        .node("LayerNormalization", "e g", "l", &[])
        .node("Sigmoid", "l", "s", &[])
        .node("Mul", "s h", "y", &[])
        .node("ReduceMean", "y", "mean", &[ints("axes", &[1])])
        .output("y")
        .output("mean")
}

fn attention() -> Model {
    Model::new(23)
        .input("q", Elem::F32, &["b", "2", "s", "4"])
        .input("k", Elem::F32, &["b", "2", "t", "4"])
        .input("v", Elem::F32, &["b", "2", "t", "4"])
        .input("mask", Elem::Bool, &["s", "t"])
        .constant("g", weights(&[4]))
        .node("RMSNormalization", "q g", "n", &[int("axis", -1)])
        .node("Attention", "n k v mask", "y", &[float("scale", 0.5)])
        .node("Gelu", "y", "z", &[text("approximate", "tanh")])
        .output("z")
}

fn integers() -> Model {
    Model::new(18)
        .input("a", Elem::I32, &["n", "3"])
        .input("b", Elem::I32, &["3"])
        .constant("two", Tensor::of(&[], vec![2i32]))
        .constant("axis", Tensor::of(&[], vec![1i64]))
        .node("Mod", "a two", "m", &[])
        .node("Div", "a b", "d", &[])
        .node("BitwiseAnd", "a b", "w", &[])
        .node("Max", "m d w", "x", &[])
        .node("CumSum", "x axis", "c", &[])
        .node("Less", "c b", "l", &[])
        .node("Not", "l", "y", &[])
        .node("Cast", "c", "f", &[int("to", 10)])
        .output("y")
        .output("f")
}

fn models() -> Vec<ModelProto> {
    let built = [
        transformer(),
        convolutions(),
        images(),
        recurrent(),
        control(),
        sizes(),
        quantized(),
        sequences(),
        blocks(),
        functions(),
        selections(),
        halves(),
        attention(),
        integers(),
    ];
    built.iter().map(Model::proto).collect()
}

fn read(path: &Path) -> ModelProto {
    ModelProto::parse_from_bytes(&std::fs::read(path).expect("a model")).expect("it decodes")
}

/// The mutant of a number. One in three is of a model of one node.
fn mutant(number: u64, models: &[ModelProto]) -> ModelProto {
    let mut choices = Choices::seeded(number);
    let mut model = match choices.below(3) {
        0 => Case::parse(CASES[choices.below(CASES.len())]).model().proto(),
        _ => choices.pick(models).clone(),
    };
    mutate(&mut model, &mut choices);
    model
}

/// A model is refused, by an error that is not our own.
fn refused(e: &Diagnostic) -> Result<(), String> {
    let (text, fine) = (e.to_string(), matches!(e.exit, Exit::Failed | Exit::Unsupported));
    let ours = ["bug in tfc", "internal error"].iter().any(|s| text.contains(s));
    if fine && !ours { Ok(()) } else { Err(text) }
}

/// Sizes for the symbols for which all checks hold and no value is large.
fn bindings(graph: &Graph, optimized: &Graph, choices: &mut Choices) -> Option<Bindings> {
    const MOST: usize = 1 << 14;
    let small = |g: &Graph, b: &Bindings| {
        let sizes = |ty: &tfc_ir::types::Type| ty.shape.eval(b).and_then(|s| s.iter().try_fold(1usize, |n, &s| n.checked_mul(s.max(1))));
        g.checks.iter().all(|c| c.left.eval(b).is_some() && c.left.eval(b) == c.right.eval(b))
            && g.values().all(|(_, v)| sizes(&v.ty).is_some_and(|n| n <= MOST))
    };
    (0..8).find_map(|round| {
        let mut value = |r: &tfc_ir::dim::Range| (r.min.max(0) + choices.between(0, 4)).min(r.max);
        let all: Bindings =
            graph.symbols.iter().map(|(s, r)| (s.clone(), if round == 0 { 2.clamp(r.min, r.max) } else { value(r) })).collect();
        (small(graph, &all) && small(optimized, &all)).then_some(all)
    })
}

/// Types are the same, and elements that are not floats. Floats are near as a whole: one that is quantized may be rounded
/// the other way. Those that are not finite in one of the two are left out: by factors at the limits sums overflow in
/// one order of steps and not in another.
fn compare(wanted: &[Tensor], found: &[Tensor]) -> Result<(), String> {
    for (i, (w, f)) in wanted.iter().zip(found).enumerate() {
        let finite = |t: &Tensor, i: usize| t.get(i).to_f64().is_finite();
        let both =
            |t: &Tensor| Tensor::build(t.elem(), t.sizes(), |i| if finite(w, i) && finite(f, i) { t.get(i) } else { Scalar::Float(0.0) });
        let near = || relative_error(&both(f), &both(w)) <= if w.elem().bits() == 16 { 0.05 } else { 0.02 };
        let same = (w.elem(), w.sizes()) == (f.elem(), f.sizes()) && (w == f || w.elem().is_float() && near());
        if !same {
            return Err(format!("output {i} is {f:?}, not {w:?}"));
        }
    }
    Ok(())
}

/// Compiles a model and runs it. Says whether it ran.
fn check(path: &Path, choices: &mut Choices) -> Result<bool, String> {
    let level = *choices.pick(&[OptLevel::O3, OptLevel::O0]);
    let options = Options { level, verify_each: true, ..Options::default() };
    let compiled = || -> tfc::diag::Result<_> {
        let graph = driver::load(path, &ImportOptions::default())?.graph;
        let optimized = driver::optimize(graph.clone(), &options, |_| Ok(std::ops::ControlFlow::Continue(())))?;
        let program = driver::lower(&optimized)?;
        Ok((graph, optimized.graph, program))
    };
    let (graph, optimized, program) = match compiled() {
        Ok(all) => all,
        Err(e) => return refused(&e).map(|()| false),
    };
    let Some(bindings) = bindings(&graph, &optimized, choices) else { return Ok(false) };
    let model = match jit::load(&program, "m", None) {
        Ok(model) => model,
        Err(e) => return refused(&Box::<Diagnostic>::from(e)).map(|()| false),
    };
    let mut session = Session::new(Arc::new(model), 1).map_err(|e| e.to_string())?;
    let data = inputs(&graph, &bindings, choices);
    let same = match (graph.evaluate(&data, &bindings), try_run(&mut session, &optimized, &data)) {
        (Ok(wanted), Ok(found)) => compare(&wanted, &found),
        (Err(_), Err(e)) if e.status() == Some(tfc_runtime::abi::Status::IndexRange) => Ok(()),
        (Err(e), Ok(_)) => Err(format!("only the interpreter says: {e}")),
        (_, Err(e)) => Err(format!("native code says: {e}")),
    };
    same.map(|()| true).map_err(|e| format!("{level:?}, at {bindings:?}: {e}\n{graph}"))
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn models_are_fine_before_they_are_changed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    for (i, model) in models().iter().enumerate() {
        std::fs::write(&path, model.write_to_bytes().expect("it encodes")).expect("a file");
        for seed in 0..4 {
            assert_eq!(check(&path, &mut Choices::seeded(seed)), Ok(true), "model {i}");
        }
    }
}

#[test]
fn mutants_compile_or_are_refused() {
    let mut models = models();
    if let Some(zoo) = std::env::var_os("TFC_ZOO") {
        models.extend(folders(Path::new(&zoo)).iter().map(|folder| read(&folder.join("model.onnx"))));
    }
    let (first, count) = (variable("TFC_MUTANTS_SEED").unwrap_or(0), variable("TFC_MUTANTS").unwrap_or(3000));
    let given = std::env::var_os("TFC_MUTANTS_OUT");
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = given.as_ref().map_or(temporary.path(), Path::new);
    std::fs::write(folder.join(CONTENTS), [0x3f; 4096]).expect("a file");
    let (mut ran, mut failures) = (0, vec![]);
    for number in first..first + count {
        let path = folder.join(if given.is_some() { format!("{number:06}.onnx") } else { "m.onnx".into() });
        std::fs::write(&path, mutant(number, &models).write_to_bytes().expect("it encodes")).expect("a file");
        if given.is_some() {
            continue;
        }
        match catch_unwind(AssertUnwindSafe(|| check(&path, &mut Choices::seeded(number)))) {
            Ok(Ok(has_run)) => ran += u64::from(has_run),
            Ok(Err(e)) => failures.push(format!("mutant {number}: {e}")),
            Err(_) => failures.push(format!("mutant {number}: a panic")),
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {count} mutants fail (TFC_MUTANTS_SEED=N TFC_MUTANTS=1 repeats one)\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    assert!(given.is_some() || count < 100 || ran * 5 > count, "only {ran} of {count} mutants ran");
}

/// Real weights and sizes: only few, since each takes as long as the model does.
#[test]
fn mutants_of_a_real_model_compile_or_are_refused() {
    let models = [read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/vit_fmnist.onnx"))];
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join(CONTENTS), [0x3f; 4096]).expect("a file");
    let path = folder.path().join("m.onnx");
    for number in 0..12 {
        let mut choices = Choices::seeded(number);
        let mut model = models[0].clone();
        mutate(&mut model, &mut choices);
        std::fs::write(&path, model.write_to_bytes().expect("it encodes")).expect("a file");
        check(&path, &mut choices).unwrap_or_else(|e| panic!("mutant {number}: {e}"));
    }
}
