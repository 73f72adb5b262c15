//! The command line from outside: exit codes, messages, files.

#[path = "cli/json.rs"]
mod json;

use onnx_protobuf::{
    GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};
use protobuf::MessageField;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use tfc_ir::types::Elem;

const F32: i32 = 1;
const I64: i32 = 7;

/// A folder with models and inputs, in which commands run.
struct Place(TempDir);

/// What a command did.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// The exit code and pieces of the messages are these.
    #[track_caller]
    fn expect(self, code: i32, pieces: &[&str]) -> Ran {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        for piece in pieces {
            assert!(self.err.contains(piece) || self.out.contains(piece), "no {piece:?} in\n{}{}", self.out, self.err);
        }
        self
    }
}

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().expect("a folder"));
        fs::write(place.path("m.onnx"), model("Softmax")).expect("writable");
        place.inputs("in.npz", &[("x", Elem::F32, &[2, 4]), ("index", Elem::I64, &[2])]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Writes an archive of arrays that are ones.
    fn inputs(&self, file: &str, arrays: &[(&str, Elem, &[usize])]) {
        let data: Vec<Vec<u8>> = arrays
            .iter()
            .map(|(_, elem, shape)| tfc_ir::tensor::Tensor::build(*elem, shape, |_| tfc_ir::tensor::Scalar::Int(1)).bytes().to_vec())
            .collect();
        let arrays = arrays.iter().zip(&data).map(|((name, elem, shape), data)| (*name, *elem, *shape, &data[..]));
        tfc::npz::write(File::create(self.path(file)).expect("writable"), arrays).expect("an archive");
    }

    fn command(&self, line: &str) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_tfc"));
        c.args(line.split_whitespace()).current_dir(self.0.path());
        for variable in ["TFC_FLAGS", "TFC_CPU", "NO_COLOR"] {
            c.env_remove(variable);
        }
        c
    }

    fn run(&self, line: &str) -> Ran {
        ran(self.command(line).output().expect("the binary runs"))
    }

    /// Names of all files, sorted.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .expect("a folder")
            .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Ran { code: output.status.code().expect("no signal"), out: text(output.stdout), err: text(output.stderr) }
}

fn value(name: &str, elem: i32, sizes: &[&str]) -> ValueInfoProto {
    use tensor_shape_proto::dimension::Value::{DimParam, DimValue};
    let dim = |s: &&str| {
        let value = s.parse().map_or_else(|_| DimParam(s.to_string()), DimValue);
        tensor_shape_proto::Dimension { value: Some(value), ..Default::default() }
    };
    let shape = TensorShapeProto { dim: sizes.iter().map(dim).collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: elem, shape: MessageField::some(shape), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: MessageField::some(ty), ..Default::default() }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let input = inputs.iter().map(ToString::to_string).collect();
    NodeProto { name: format!("/{op}"), op_type: op.into(), input, output: vec![output.into()], ..Default::default() }
}

/// `y = activation(x w)` and `picked = gather(table, index)`.
fn model(activation: &str) -> Vec<u8> {
    let weight = |name: &str, dims: &[i64]| {
        let n = dims.iter().product::<i64>();
        let raw_data = (0..n).flat_map(|i| (0.25 * (i % 7) as f32 - 0.5).to_le_bytes()).collect();
        TensorProto { name: name.into(), data_type: F32, dims: dims.to_vec(), raw_data, ..Default::default() }
    };
    let graph = GraphProto {
        name: "small".into(),
        node: vec![node("MatMul", &["x", "w"], "p"), node(activation, &["p"], "y"), node("Gather", &["table", "index"], "picked")],
        input: vec![value("x", F32, &["batch", "4"]), value("index", I64, &["count"])],
        output: vec![value("y", F32, &["batch", "40"]), value("picked", F32, &["count", "3"])],
        initializer: vec![weight("w", &[4, 40]), weight("table", &[5, 3])],
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: 17, ..Default::default() };
    let model = ModelProto { ir_version: 8, opset_import: vec![opset], graph: MessageField::some(graph), ..Default::default() };
    model.write_to_bytes().expect("a message")
}

#[test]
fn help_and_versions_are_printed() {
    let p = Place::new();
    p.run("--help").expect(0, &["compile", "run", "bench", "verify", "check", "inspect", "bisect", "hwbench", "TFC_FLAGS", "Exit codes"]);
    p.run("--version").expect(0, &["tfc 0."]);
    for command in ["compile", "run", "bench", "verify", "check", "inspect", "bisect", "hwbench"] {
        let r = p.run(&format!("{command} --help")).expect(0, &["Usage:", "Examples:", "--color"]);
        assert!(r.err.is_empty());
    }
}

#[test]
fn what_is_odd_in_a_model_is_said_and_does_no_harm() {
    let p = Place::new();
    let mut m = ModelProto::parse_from_bytes(&model("Relu")).expect("a model");
    m.graph.mut_or_insert_default().output[0] = value("y", F32, &["batch", "41"]);
    m.graph.mut_or_insert_default().node.push(node("NoSuchOperator", &["x"], "dead"));
    fs::write(p.path("odd.onnx"), m.write_to_bytes().expect("a message")).expect("writable");
    let said = "warning: output `y` is declared with the shape [batch, 41], but has the shape [batch, 40]";
    p.run("run odd.onnx --inputs in.npz --outputs out.npz").expect(0, &[said]);
    let dead = "no output needs these, and they are left out: node `/NoSuchOperator` (NoSuchOperator)";
    p.run("check odd.onnx").expect(0, &[said, dead, "everything is supported"]);
    p.run("check odd.onnx --json").expect(0, &["\"unused\": [", "\"node `/NoSuchOperator` (NoSuchOperator)\""]);
}

#[test]
fn products_of_f64_in_f32_are_noted() {
    let p = Place::new();
    fs::write(p.path("d.tir"), "tfc.ir 1\n\ninput %x: f64[2, 4]\ninput %w: f64[4, 8]\n\n%0 = matmul %x, %w : f64[2, 8]\n\noutput y = %0\n")
        .unwrap();
    let note = "note: a product of f64 is computed in f32, and so is what follows; -O1 keeps f64";
    for line in ["compile d.tir -o d.o", "compile d.tir -O2 -o d.o", "bench d.tir --iters 1"] {
        p.run(line).expect(0, &[note]);
    }
    for line in ["compile d.tir -O1 -o d.o", "compile d.tir -O0 -o d.o", "compile d.tir -q -o d.o", "compile m.onnx -o m.o"] {
        let ran = p.run(line).expect(0, &[]);
        assert!(!ran.err.contains("f64"), "{line}: {}", ran.err);
    }
}

#[test]
fn wrong_usage_has_code_2() {
    let p = Place::new();
    let before = p.files();
    for (line, pieces) in [
        ("", &["Usage"][..]),
        ("frobnicate", &["frobnicate"]),
        ("compile m.onnx --frobnicate", &["--frobnicate"]),
        ("compile", &["MODEL.onnx"]),
        ("compile m.onnx -O7 -o m.o", &["0, 1, 2 and 3"]),
        ("compile m.onnx --passes fold,nothing -o m.o", &["`nothing`", "eqsat"]),
        ("compile m.onnx --stop-after nothing -o m.tir", &["`nothing`", "eqsat"]),
        ("compile m.onnx -O0 --stop-after eqsat -o m.tir", &["does not run", "01-dce"]),
        ("compile m.onnx --stop-after dce -o m.o", &["no code"]),
        ("compile m.onnx --quant w7a7 -o m.o", &["no such scheme", "`w7a7`", "w4a8"]),
        ("bench m.onnx --quant w4a8:g33", &["`g33`", "g128"]),
        ("run m.onnx --inputs in.npz --quant f32:g32", &["`g32`", "none"]),
        ("compile m.onnx --quant-override MatMul -o m.o", &["REGEX=SPEC"]),
        ("compile m.onnx --quant-override (=w8a8 -o m.o", &["not a regular expression", "("]),
        ("compile m.onnx --quant w8a8 --passes fold,fuse -o m.o", &["no pass `quantize`"]),
        ("compile m.onnx --name 1st -o m.o", &["not an identifier", "--name _1st"]),
        ("compile m.onnx -o m.pdf", &["extension", ".tir"]),
        ("compile m.onnx --mcpu i486 -o m.o", &["i486", "`baseline`", "`native`"]),
        ("compile m.onnx --cpu-variants baseline,sse9 -o m.o", &["sse9", "`baseline`"]),
        ("compile m.onnx --target nonsense -o m.o", &["nonsense"]),
        ("compile m.onnx --dim batch=5..2 -o m.o", &["empty"]),
        ("compile m.onnx --shape x=2xtwo -o m.o", &["`two` is not a size"]),
        ("compile m.onnx --shape x=2x4 --shape x=3x4 -o m.o", &["given twice"]),
        ("run m.onnx", &["needs inputs", "`x`: f32[batch, 4]", "--inputs"]),
        ("run m.onnx --inputs in.npz --threads many", &["many"]),
        ("run m.onnx --inputs in.npz --threads 70000", &["70000"]),
        ("bench m.onnx --iters 0", &["--iters"]),
        ("hwbench --assert", &["MODEL"]),
        ("hwbench m.onnx --iters 0", &["--iters"]),
    ] {
        p.run(line).expect(2, pieces);
    }
    assert_eq!(p.files(), before);
}

#[test]
fn bad_models_have_code_1_and_leave_nothing() {
    let p = Place::new();
    let good = p.read("m.onnx");
    fs::write(p.path("truncated.onnx"), &good[..good.len() / 2]).unwrap();
    fs::write(p.path("text.onnx"), "this is a text\n").unwrap();
    fs::write(p.path("empty.onnx"), "").unwrap();
    fs::write(p.path("bad.tir"), "tfc.ir 1\n\ninput %x: f32[2]\n\n%0 = frobnicate %x : f32[2]\n").unwrap();
    fs::write(p.path("wrong.tir"), "tfc.ir 1\n\ninput %x: f32[2]\n\n%0 = exp %x : f32[3]\n\noutput y = %0\n").unwrap();
    let before = p.files();
    for (file, pieces) in [
        ("truncated.onnx", &["error: ", "--> `truncated.onnx`", "byte "][..]),
        ("text.onnx", &["--> `text.onnx`", "does not look like an ONNX model"]),
        ("empty.onnx", &["the file is empty", "--> `empty.onnx`"]),
        ("absent.onnx", &["cannot open the file", "--> `absent.onnx`"]),
        (".", &["not a regular file"]),
        ("bad.tir", &["--> bad.tir:5:", "frobnicate"]),
        ("wrong.tir", &["not valid", "f32[3]", "rule 7"]),
    ] {
        p.run(&format!("compile {file} -o out.o")).expect(1, pieces);
        p.run(&format!("compile {file} -o out")).expect(1, pieces);
    }
    p.run("compile m.onnx --dim nothing=3 -o out.o").expect(1, &["no dimension `nothing`", "help:", "`batch`"]);
    p.run("compile m.onnx --shape x=2x5 -o out.o").expect(1, &["input `x`", "5", "4"]);
    p.run("compile m.onnx -o absent/out.o").expect(1, &["the folder `absent` does not exist"]);
    assert_eq!(p.files(), before);
}

#[test]
fn damaged_models_never_crash() {
    let p = Place::new();
    let good = p.read("m.onnx");
    // A prime distance reaches every kind of byte of the small file.
    for at in (0..good.len()).step_by(13) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(p.path("flipped.onnx"), bytes).unwrap();
        let r = p.run("check flipped.onnx");
        assert!([0, 1, 3].contains(&r.code), "bit flipped in byte {at}: {} {}", r.code, r.err);
    }
}

#[test]
fn what_is_not_supported_has_code_3_and_is_listed_at_once() {
    let p = Place::new();
    fs::write(p.path("odd.onnx"), model("Frobnicate")).unwrap();
    let before = p.files();
    for line in ["compile odd.onnx -o out.o", "check odd.onnx", "run odd.onnx --inputs in.npz"] {
        p.run(line).expect(3, &["operator", "count", "Frobnicate", "`/Frobnicate`", "--> `odd.onnx`"]);
    }
    let json = p.run("check odd.onnx --json").expect(3, &[]).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["supported"], false);
    assert_eq!(json["unsupported"][0]["operator"], "Frobnicate");
    assert_eq!(json["unsupported"][0]["count"], 1);
    p.run("compile m.onnx --quant f16w -o out.o").expect(3, &["`f16w`", "not supported yet", "w4a8"]);
    p.run("run m.onnx --inputs in.npz --quant auto").expect(3, &["`auto`", "not supported yet"]);
    p.run("compile m.onnx -o out.ptx").expect(3, &["ptx"]);
    p.run("compile m.onnx --target sparc64-unknown-linux-gnu -o out.o").expect(3, &["sparc64"]);
    assert_eq!(p.files(), before);
    let json: serde_json::Value = serde_json::from_str(&p.run("check m.onnx --json").expect(0, &[]).out).unwrap();
    assert_eq!(json["supported"], true);
    // The same counts under the same names as when the model is compiled.
    let stats = p.run("compile m.onnx --stats=json -o out.o -q").expect(0, &[]).out;
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    for count in ["launches", "kernels", "weight_bytes"] {
        assert!(json[count].as_u64().unwrap() > 0, "{count}: {json}");
        assert_eq!(json[count], stats["program"][count], "{count}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_named_with_both_sides() {
    let p = Place::new();
    p.run("compile m.onnx -o m.tir -q").expect(0, &[]);
    p.inputs("missing.npz", &[("x", Elem::F32, &[2, 4]), ("other", Elem::F32, &[1])]);
    p.inputs("types.npz", &[("x", Elem::F64, &[2, 4]), ("index", Elem::I64, &[2, 1])]);
    p.inputs("sizes.npz", &[("x", Elem::F32, &[2, 5]), ("index", Elem::I64, &[2])]);
    let whole = p.read("in.npz");
    fs::write(p.path("cut.npz"), &whole[..whole.len() - 30]).unwrap();
    let mut flipped = whole.clone();
    let at = whole.windows(4).position(|w| w == 1f32.to_le_bytes()).unwrap();
    flipped[at] ^= 1;
    fs::write(p.path("flipped.npz"), flipped).unwrap();
    let before = p.files();
    for model in ["m.onnx", "m.tir"] {
        for (file, pieces) in [
            ("missing.npz", &["`index`", "i64[count]", "no such member", "`other`", "no such input", "f32[1]"][..]),
            ("types.npz", &["the model wants f32[batch, 4]", "f64[2, 4]", "the model wants i64[count]", "i64[2, 1]"]),
            ("sizes.npz", &["f32[batch, 4]", "f32[2, 5]"]),
            ("cut.npz", &["cut.npz", "damaged"]),
            ("flipped.npz", &["flipped.npz", "member `x`", "damaged"]),
            ("absent.npz", &["cannot open", "absent.npz"]),
        ] {
            p.run(&format!("run {model} --inputs {file} --outputs out.npz")).expect(1, pieces);
        }
    }
    assert_eq!(p.files(), before);
    p.run("bench m.onnx").expect(1, &["free dimensions: `batch`, `count`", "f32[batch, 4]", "--dim"]);
    p.run("verify m.onnx --inputs in.npz --reference in.npz").expect(1, &["output `y`", "no such member"]);
}

#[test]
fn an_index_out_of_range_is_a_status() {
    let p = Place::new();
    let index: Vec<u8> = 99i64.to_le_bytes().to_vec();
    let x = [0; 16];
    let arrays = [("x", Elem::F32, &[1, 4][..], &x[..]), ("index", Elem::I64, &[1][..], &index[..])];
    tfc::npz::write(File::create(p.path("far.npz")).unwrap(), arrays).unwrap();
    p.run("run m.onnx --inputs far.npz").expect(1, &["index"]);
}

#[test]
fn outputs_have_the_names_of_the_model_and_agree_with_the_interpreter() {
    let p = Place::new();
    p.run("run m.onnx --inputs in.npz --outputs out.npz --threads 2").expect(0, &[]);
    let mut archive = tfc::npz::Archive::open(&p.path("out.npz")).unwrap();
    let types: Vec<String> = archive.members().iter().map(|m| format!("{} {}", m.name, m.header.type_text())).collect();
    assert_eq!(types, ["y f32[2, 40]", "picked f32[2, 3]"]);
    let sum: f64 = archive.tensor("y").unwrap().to_f64s().iter().sum();
    assert!((sum - 2.0).abs() < 1e-5, "{sum}");
    let once = p.read("out.npz");
    p.run("run m.onnx --inputs in.npz --outputs out.npz --threads 1").expect(0, &[]);
    assert_eq!(p.read("out.npz"), once);
    p.run("run m.onnx --inputs in.npz").expect(0, &["y: f32[2, 40]  min", "picked: f32[2, 3]"]);
    for level in 0..4 {
        p.run(&format!("verify m.onnx -O{level} --verify-each --inputs in.npz")).expect(0, &["y ", "picked ", "ok"]);
    }
    p.run("verify m.onnx --dim batch=3,count=2").expect(0, &["f32[3, 40]"]);
    p.run("verify m.onnx --inputs in.npz --reference out.npz").expect(0, &["ok"]);
    // Outputs of other inputs are not the ones of these.
    p.inputs("ones.npz", &[("y", Elem::F32, &[2, 40]), ("picked", Elem::F32, &[2, 3])]);
    p.run("verify m.onnx --inputs in.npz --reference ones.npz").expect(1, &["80 of 80 differ", "`y`, `picked`", "instead of 1"]);
}

#[test]
fn a_benchmark_prints_what_tools_read() {
    let p = Place::new();
    let out = p.run("bench m.onnx --shape x=3x4,index=2 --iters 4 --warmup 2 --threads 1 --json").expect(0, &[]).out;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    for key in ["median_ms", "min_ms", "p90_ms", "first_ms", "load_ms"] {
        assert!(json[key].as_f64().is_some_and(|x| x > 0.0), "{key}: {out}");
    }
    assert_eq!((json["iters"].as_u64(), json["threads"].as_u64()), (Some(4), Some(1)));
    assert!(json["min_ms"].as_f64() <= json["median_ms"].as_f64() && json["median_ms"].as_f64() <= json["p90_ms"].as_f64());
    p.run("bench m.onnx --inputs in.npz --iters 1").expect(0, &["median", "first result"]);
}

#[test]
fn a_profile_accounts_for_the_whole_run() {
    let p = Place::new();
    p.run("compile m.onnx -o bundle -q").expect(0, &[]);
    let mut sources = vec!["m.onnx"];
    sources.extend(p.path("bundle/bundle.so").exists().then_some("bundle"));
    for source in sources {
        for threads in 1..3 {
            let line = format!("bench {source} --inputs in.npz --iters 3 --threads {threads} --profile");
            p.run(&line).expect(0, &["all kernels", "between them", "the whole run", "/MatMul", "/Gather"]);
            let out = p.run(&format!("{line} --json")).expect(0, &[]).out;
            let json: serde_json::Value = serde_json::from_str(&out).unwrap();
            let profile = &json["profile"];
            let number = |v: &serde_json::Value| v.as_f64().unwrap_or_else(|| panic!("{v} in {out}"));
            let kernels = profile["kernels"].as_array().unwrap();
            let sum: f64 = kernels.iter().map(|k| number(&k["ms"])).sum();
            assert!((sum - number(&profile["kernels_ms"])).abs() < 1e-9);
            let parts: f64 = ["kernels_ms", "between_ms", "unsteady_ms"].iter().map(|k| number(&profile[*k])).sum();
            assert!((parts - number(&profile["whole_ms"])).abs() < 1e-9);
            let product = kernels.iter().find(|k| k["arithmetic"] == "f32").unwrap();
            assert_eq!(number(&product["operations"]), 2.0 * 2.0 * 4.0 * 40.0);
            assert!(number(&product["gops"]) > 0.0 && number(&product["busy"]) <= 1.0);
            assert_eq!((&product["calls"], &product["nodes"][0]), (&1.into(), &"/MatMul".into()));
            // Two picked rows of 12 bytes each, their indices, and the result.
            let gather = kernels.iter().find(|k| k["nodes"][0] == "/Gather").unwrap();
            assert_eq!((&gather["gops"], number(&gather["bytes"])), (&serde_json::Value::Null, 24.0 + 16.0 + 24.0));
        }
    }
}

#[test]
fn a_trace_has_nested_complete_events_on_the_tracks_of_threads() {
    let p = Place::new();
    // Large enough for two threads.
    p.run("bench m.onnx --dim batch=4096,count=1 --iters 3 --threads 2 --trace trace.json").expect(0, &["median"]);
    let trace: serde_json::Value = serde_json::from_slice(&p.read("trace.json")).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |category: &str| events.iter().filter(|e| e["cat"] == category).collect::<Vec<_>>();
    let span = |e: &serde_json::Value| {
        assert_eq!((&e["ph"], &e["pid"]), (&"X".into(), &1.into()));
        let begin = e["ts"].as_f64().unwrap();
        (begin, begin + e["dur"].as_f64().unwrap())
    };
    let within = |inner: (f64, f64), outer: (f64, f64)| outer.0 <= inner.0 + 1e-6 && inner.1 <= outer.1 + 1e-6;
    let [run] = of("run")[..] else { panic!("{trace}") };
    let (kernels, tasks) = (of("kernel"), of("tasks"));
    assert_eq!(run["tid"], 0);
    for k in &kernels {
        assert!(within(span(k), span(run)) && k["tid"] == 0, "{k}");
    }
    for pair in kernels.windows(2) {
        assert!(span(pair[0]).1 <= span(pair[1]).0 + 1e-6);
    }
    for t in &tasks {
        let step = kernels.iter().find(|k| k["args"]["step"] == t["args"]["step"]).unwrap();
        assert!(within(span(t), span(step)), "{t} in {step}");
    }
    let parallel = kernels.iter().find(|k| k["args"]["parallel"] == true).expect("a step for two threads");
    let done: i64 = tasks
        .iter()
        .filter(|t| t["args"]["step"] == parallel["args"]["step"])
        .map(|t| t["args"]["last_task"].as_i64().unwrap() - t["args"]["first_task"].as_i64().unwrap() + 1)
        .sum();
    assert_eq!(parallel["args"]["tasks"], done);
    let names = events.iter().filter(|e| e["ph"] == "M" && e["name"] == "thread_name").count();
    let threads: std::collections::BTreeSet<i64> = tasks.iter().map(|t| t["tid"].as_i64().unwrap()).collect();
    assert!(threads.contains(&0) && threads.len() <= names);
    p.run("bench m.onnx --inputs in.npz --iters 1 --trace absent/t.json").expect(1, &["absent"]);
}

#[test]
fn the_machine_is_measured() {
    let p = Place::new();
    p.run("hwbench --threads 1").expect(0, &["1 thread"]);
    let json: serde_json::Value = serde_json::from_str(&p.run("hwbench --json").expect(0, &[]).out).unwrap();
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(runs[0]["threads"], 1);
    for run in runs {
        for rate in run["compute"].as_array().unwrap() {
            assert!(rate["gops"].as_f64().is_some_and(|x| x > 0.0 && x.is_finite()), "{rate}");
        }
        for level in run["memory"].as_array().unwrap() {
            for key in ["read_gbps", "write_gbps", "copy_gbps"] {
                assert!(level[key].as_f64().is_some_and(|x| x > 0.0 && x.is_finite()), "{level}");
            }
        }
        if cfg!(target_arch = "x86_64") {
            assert!(!run["compute"].as_array().unwrap().is_empty());
            assert_eq!(run["memory"].as_array().unwrap().last().unwrap()["level"], "memory");
        }
    }
}

#[test]
fn candidates_of_kernels_are_compared() {
    let p = Place::new();
    let out = p.run("hwbench m.onnx --inputs in.npz --iters 2 --json").expect(0, &[]).out;
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    let kernels = json["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|k| k["nodes"][0] == "/MatMul") && json["rounds"] == 2, "{out}");
    for k in kernels {
        let candidates = k["candidates"].as_array().unwrap();
        assert_eq!(candidates.iter().filter(|c| c["pick"] == true).count(), 1);
        assert!(candidates.iter().any(|c| c["variants"][0] == "baseline"));
        assert!(candidates.iter().all(|c| c["us"].as_f64().is_some_and(|x| x >= 0.0)));
        assert!(k["loss"].as_f64().is_some_and(|x| x >= 0.0));
    }
    p.run("hwbench m.onnx --dim batch=2,count=1 --iters 1").expect(0, &["the compiler's choice", "baseline", "k0"]);
    // Kernels as short as these are not asserted.
    p.run("hwbench m.onnx --dim batch=2,count=1 --iters 1 --assert").expect(0, &[]);
    let r = ran(p.command("hwbench m.onnx --inputs in.npz --iters 1 --json").env("TFC_CPU", "baseline").output().unwrap());
    let json: serde_json::Value = serde_json::from_str(&r.expect(0, &[]).out).unwrap();
    let picks = json["kernels"].as_array().unwrap().iter().flat_map(|k| k["candidates"].as_array().unwrap()).filter(|c| c["pick"] == true);
    assert!(picks.into_iter().all(|c| c["variants"][0] == "baseline"));
    ran(p.command("hwbench m.onnx --inputs in.npz").env("TFC_CPU", "z80").output().unwrap()).expect(1, &["z80"]);
    p.run("hwbench m.onnx").expect(1, &["free dimensions"]);
    p.run("compile m.onnx -o a.o -q").expect(0, &[]);
    p.run("hwbench a.o").expect(2, &["bench --profile"]);
}

#[test]
fn objects_are_the_same_every_time_and_can_be_inspected() {
    let p = Place::new();
    fs::create_dir(p.path("other")).unwrap();
    fs::copy(p.path("m.onnx"), p.path("other/m.onnx")).unwrap();
    p.run("compile m.onnx -o a.o --name m -q").expect(0, &[]);
    p.run("compile other/m.onnx -o other/b.o --name m -q").expect(0, &[]);
    assert_eq!(p.read("a.o"), p.read("other/b.o"));
    let r = p.run("inspect a.o").expect(0, &["batch  0..", "f32[batch, 4]", "picked", "kernels"]);
    assert!(r.err.is_empty());
    let json: serde_json::Value = serde_json::from_str(&p.run("inspect a.o --json").expect(0, &[]).out).unwrap();
    assert_eq!((&json["name"], &json["inputs"][1]["name"]), (&"m".into(), &"index".into()));
    p.run("compile m.onnx -o arm.o --target aarch64-unknown-linux-gnu --name arm -q").expect(0, &[]);
    p.run("inspect arm.o").expect(0, &["aarch64-unknown-linux-gnu"]);
    p.run("inspect m.onnx").expect(1, &["error", "m.onnx"]);
    p.run("compile m.onnx -o bundle -q").expect(0, &[]);
    let json: serde_json::Value = serde_json::from_str(&p.run("inspect bundle --json").expect(0, &[]).out).unwrap();
    let unit = |n: u64| format!("{:.1} KiB", n as f64 / 1024.0);
    let sizes = p.run("inspect bundle --size").expect(0, &["baseline", "nest (", "weights by layer", "/MatMul", "/Gather"]).out;
    let object = sizes.lines().find(|l| l.starts_with("  bundle.o ")).unwrap_or_else(|| panic!("{sizes}"));
    assert!(object.contains(&unit(p.read("bundle/bundle.o").len() as u64)), "{sizes}");
    assert!(sizes.contains(&format!("code by CPU variant ({}", unit(json["code_bytes"].as_u64().unwrap()))), "{sizes}");
    assert!(!p.run("inspect a.o --size").expect(0, &["a.o", "weights by layer"]).out.contains("code by"));
    p.run("inspect a.o --size --json").expect(2, &["--size"]);
    p.run("inspect other").expect(1, &["not a bundle"]);
    p.run("run a.o --inputs in.npz").expect(1, &["relocatable object", "cc -shared"]);
}

#[test]
fn objects_and_libraries_have_a_header_beside_them() {
    let p = Place::new();
    p.run("compile m.onnx -o a.o").expect(0, &["wrote a.o", "wrote a.h"]);
    let header = String::from_utf8(p.read("a.h")).unwrap();
    assert!(header.contains("a_run(") && header.contains("Generated"), "{header}");
    p.run("compile m.onnx -o a.a -q").expect(0, &[]);
    assert_eq!(p.read("a.h"), header.as_bytes());
    p.run("compile m.onnx -o s.s -q").expect(0, &[]);
    assert!(!p.path("s.h").exists());
    // A header of somebody else is not lost.
    fs::write(p.path("mine.h"), "int mine;\n").unwrap();
    let before = p.files();
    p.run("compile m.onnx -o mine.o").expect(1, &["`mine.h`", "not generated by tfc", "--force"]);
    assert_eq!((p.files(), p.read("mine.h")), (before, b"int mine;\n".to_vec()));
    p.run("compile m.onnx -o mine.o --force -q").expect(0, &[]);
    assert!(p.read("mine.h").starts_with(b"/* mine: a model compiled by "));
    fs::create_dir(p.path("folder.h")).unwrap();
    p.run("compile m.onnx -o folder.o").expect(1, &["folder.h"]);
    assert!(!p.path("folder.o").exists());
}

#[test]
fn shells_and_manuals_know_the_command_line() {
    let p = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        p.run(&format!("completions {shell}")).expect(0, &[]).out.split_once("quant-override").unwrap_or_else(|| panic!("{shell}"));
    }
    p.run("completions cmd").expect(2, &["bash"]);
    for (line, wanted) in [("man", [".TH tfc 1", "tfc\\-compile(1)"]), ("man compile", [".TH tfc-compile 1", "\\-\\-quant\\-override"])] {
        let text = p.run(line).expect(0, &[]).out;
        assert!(wanted.iter().all(|w| text.contains(w)), "{line}:\n{text}");
    }
    p.run("man nothing").expect(2, &["nothing", "`compile`"]);
}

#[test]
fn a_text_form_compiles_to_the_same_code() {
    use object::{Object, ObjectSection};
    let p = Place::new();
    p.run("compile m.onnx -o m.tir").expect(0, &["wrote m.tir"]);
    p.run("compile m.tir --passes= -o again.tir -q").expect(0, &[]);
    assert_eq!(p.read("m.tir"), p.read("again.tir"));
    assert_eq!(p.read("m.tir.bin"), p.read("again.tir.bin"));
    p.run("compile m.tir --passes= -o a.o --name m -q").expect(0, &[]);
    p.run("compile again.tir --passes= -o b.o --name m -q").expect(0, &[]);
    assert_eq!(p.read("a.o"), p.read("b.o"));
    p.run("compile m.onnx -o direct.o -q").expect(0, &[]);
    // The manifests differ in the options and in the hash of the model's file, the code does not.
    let sections = |name: &str| -> Vec<usize> {
        let file = p.read(name);
        object::File::parse(&file[..]).unwrap().sections().filter(|s| s.name() == Ok(".text")).map(|s| s.size() as usize).collect()
    };
    assert_eq!(sections("a.o"), sections("direct.o"));
    fs::remove_file(p.path("m.tir.bin")).unwrap();
    p.run("compile m.tir -o c.o").expect(1, &["m.tir.bin"]);
    assert!(!p.path("c.o").exists());
    p.run("compile again.tir --dim batch=2 -o c.o").expect(2, &["ONNX"]);
}

#[test]
fn the_compiler_can_be_looked_into() {
    let p = Place::new();
    let r = p.run("compile m.onnx -o m.o --dump-ir ir --print-ir-after fold --time-passes --stats --opt-report --verify-each");
    let r = r.expect(0, &["[1/4] read m.onnx", "[4/4] generate code", "// after 02-fold", "06-eqsat", "/MatMul", "kind"]);
    assert!(r.out.is_empty(), "{}", r.out);
    let mut dumps: Vec<PathBuf> = fs::read_dir(p.path("ir")).unwrap().map(|e| e.unwrap().path()).collect();
    dumps.retain(|d| d.extension().is_some_and(|e| e == "tir"));
    dumps.sort();
    let name = |d: &Path| d.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!((name(&dumps[0]), name(&dumps[1])), ("00-import.tir".into(), "01-integer-products.tir".into()));
    for d in &dumps {
        p.run(&format!("verify ir/{} --inputs in.npz", name(d))).expect(0, &["ok"]);
    }
    let stats = p.run("compile m.onnx -o m.o -q --stats=json").expect(0, &[]).out;
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["passes"][0]["name"], "integer-products");
    assert!(stats["program"]["kernels"].as_u64().unwrap() > 0);
    p.run("compile m.onnx --stop-after 02-fold").expect(0, &["tfc.ir 1", "matmul"]);
    p.run("compile m.onnx --stop-after import -o i.tir -q").expect(0, &[]);
    assert_eq!(p.read("i.tir"), p.read("ir/00-import.tir"));
    p.run("compile m.onnx --emit clif -o -").expect(0, &["function"]);
    p.run("compile m.onnx --emit asm -o -").expect(0, &["ret"]);
    p.run("compile m.onnx --emit dot,tir,obj -o many -q").expect(0, &[]);
    assert!(String::from_utf8(p.read("many.dot")).unwrap().starts_with("digraph"));
    assert!(p.path("many.tir").exists() && p.path("many.o").exists());
}

#[test]
fn flags_come_from_the_environment_too() {
    let p = Place::new();
    let r = ran(p.command("compile m.onnx -o a.o").env("TFC_FLAGS", "-O0 --name 'from_env'").output().unwrap());
    r.expect(0, &["by 1 passes"]);
    ran(p.command("inspect a.o").env("TFC_FLAGS", "-O0 --name x").output().unwrap()).expect(0, &["from_env", "-O0"]);
    let r = ran(p.command("compile m.onnx -o b.o -O1 --name b").env("TFC_FLAGS", "-O0 --name a").output().unwrap());
    r.expect(0, &[]);
    p.run("inspect b.o").expect(0, &["-O1"]);
    ran(p.command("compile m.onnx -o c.o").env("TFC_FLAGS", "--name 'open").output().unwrap()).expect(2, &["TFC_FLAGS", "not closed"]);
    ran(p.command("run m.onnx --inputs in.npz").env("TFC_CPU", "z80").output().unwrap()).expect(1, &["`z80`", "`baseline`"]);
    ran(p.command("run m.onnx --inputs in.npz -v").env("TFC_CPU", "baseline").output().unwrap()).expect(0, &["variant baseline"]);
}

/// One object has all variants of the target; which of them runs is the same choice in memory and in an
/// artifact, and what this machine cannot run is refused with a sentence.
#[test]
#[cfg(target_arch = "x86_64")]
fn cpu_variants_are_chosen_refused_and_listed() {
    let p = Place::new();
    p.run("compile m.onnx -o all -q").expect(0, &[]);
    let features = ["amx-tile", "avx512vnni", "avxvnni", "f16c", "any CPU"];
    p.run("inspect all").expect(0, &features);
    let json: serde_json::Value = serde_json::from_str(&p.run("inspect all --json").expect(0, &[]).out).unwrap();
    let names: Vec<&str> = json["cpu_variants"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["baseline", "avx2", "avxvnni", "avx512vnni", "amx"]);
    let triple = target_lexicon::Triple::host();
    let best = tfc::emit::clif::target::Cpu::best_here().unwrap().name;
    let models: &[&str] = if p.path("all/all.so").exists() { &["m.onnx", "all"] } else { &["m.onnx"] };
    for model in models {
        p.run(&format!("run {model} --inputs in.npz -v")).expect(0, &[&format!("variant {best}")]);
        for cpu in tfc::emit::clif::target::Cpu::variants(&triple) {
            for command in ["run", "bench --iters 1 --warmup 0", "verify"] {
                if command == "verify" && *model == "all" {
                    continue; // An artifact is verified against outputs that are given.
                }
                let r = ran(p.command(&format!("{command} {model} --inputs in.npz")).env("TFC_CPU", cpu.name).output().unwrap());
                if cpu.runs_here() {
                    r.expect(0, &[]);
                } else {
                    r.expect(1, &[&format!("`{}`", cpu.name), "cannot run on this CPU", "`baseline`"]);
                }
            }
        }
    }
    for (mcpu, variant) in [("native", best), ("x86-64", "baseline"), ("x86-64-v4", "avx2"), ("znver5", "avx512vnni")] {
        p.run(&format!("compile m.onnx --mcpu {mcpu} -o one.o -q")).expect(0, &[]);
        p.run("inspect one.o").expect(0, &[&format!("--cpu-variants={variant}")]);
    }
    p.run("compile m.onnx --cpu-variants avxvnni,baseline -o two.o -q").expect(0, &[]);
    p.run("inspect two.o").expect(0, &["--cpu-variants=baseline,avxvnni"]);
}

#[test]
fn colours_are_for_terminals_unless_told() {
    let p = Place::new();
    let escape = '\x1b';
    assert!(!p.run("compile absent.onnx").err.contains(escape));
    assert!(p.run("compile absent.onnx --color always").err.contains(escape));
    assert!(p.run("compile --color=always --nothing").err.contains(escape));
    assert!(!p.run("compile --color=never --nothing").err.contains(escape));
    let r = ran(p.command("compile absent.onnx").env("NO_COLOR", "1").output().unwrap());
    assert!(!r.err.contains(escape));
}

#[test]
fn a_bundle_runs_like_its_model() {
    let p = Place::new();
    p.run("compile m.onnx -o bundle").expect(0, &["wrote bundle"]);
    assert!(!p.files().iter().any(|f| f.starts_with(".tfc") || f.contains("tmp")), "{:?}", p.files());
    p.run("inspect bundle").expect(0, &["name", "f32[batch, 4]"]);
    if !p.path("bundle/bundle.so").exists() {
        eprintln!("skipped: there is no C compiler, so there is no shared object");
        return;
    }
    p.run("inspect bundle/bundle.so").expect(0, &["f32[batch, 4]"]);
    p.run("run bundle --inputs in.npz --outputs out.npz").expect(0, &[]);
    p.run("verify m.onnx --inputs in.npz --reference out.npz").expect(0, &["ok"]);
    p.run("verify bundle --model m.onnx --inputs in.npz").expect(0, &["ok"]);
    p.run("verify bundle").expect(2, &["--model", "--reference"]);
    p.run("bench bundle --dim batch=2,count=1 --iters 2 --threads 1").expect(0, &["median"]);
    p.run("bench bundle --dim batch=1..2").expect(2, &["must be a number"]);
}

/// The models of the zoo, if they are there: outputs by an independent implementation.
#[test]
fn models_of_the_zoo_agree_with_their_references() {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/zoo");
    let p = Place::new();
    let mut models: Vec<PathBuf> = fs::read_dir(&zoo).map(|d| d.map(|e| e.expect("an entry").path()).collect()).unwrap_or_default();
    models.sort();
    models.retain(|m| m.join("model.onnx").exists());
    if models.is_empty() {
        eprintln!("skipped: there are no models in {}", zoo.display());
    }
    for m in models {
        let file = |name: &str| m.join(name).display().to_string();
        let line = format!("verify {} --inputs {} --reference {}", file("model.onnx"), file("inputs.npz"), file("outputs.npz"));
        p.run(&line).expect(0, &["ok"]);
    }
}

/// Two products in a row, and one that is too small.
const PRODUCTS: &str = "tfc.ir 1
symbol batch 1..64
input %x: f32[batch, 40]
const %a: f32[40, 48] = splat 0.25
const %b: f32[48, 32] = splat -0.5
const %c: f32[32, 2] = splat 1.0
%0 = matmul %x, %a : f32[batch, 48] loc(\"/layer.0/MatMul\")
%1 = relu %0 : f32[batch, 48]
%2 = matmul %1, %b : f32[batch, 32] loc(\"/layer.1/MatMul\")
%3 = matmul %2, %c : f32[batch, 2] loc(\"/head/MatMul\")
output y = %3
";

#[test]
fn models_are_quantized() {
    let p = Place::new();
    fs::write(p.path("p.tir"), PRODUCTS).unwrap();
    p.inputs("p.npz", &[("x", Elem::F32, &[3, 40])]);
    for spec in ["w8a8", "w4a8", "w4a8:g32", "w4a16"] {
        p.run(&format!("verify p.tir --inputs p.npz --quant {spec}")).expect(0, &["ok"]);
    }
    let r = p.run("compile p.tir --quant w4a8:g32 --quant-override layer.1=w8a8 --quant-override none=f32 --stats --opt-report -o p.so");
    let noted = ["none=f32 matches no matrix product", "note: `/head/MatMul` stays float (256 B): it has 2 output channels"];
    r.expect(0, &[&["products quantized: 2", "products left in f32: 1", "--quant-override 'layer.1'", "launch  why"], &noted[..]].concat());
    p.run("inspect p.so").expect(0, &["quantization (3)", "w4a8:g32", "w8a8", "2 output channels", "--quant-override=layer.1=w8a8"]);
    let json: serde_json::Value = serde_json::from_str(&p.run("inspect p.so --json").expect(0, &[]).out).unwrap();
    let ledger = &json["quantization"];
    assert_eq!((&ledger[0]["node"], &ledger[0]["scheme"]), (&"/layer.0/MatMul".into(), &"w4a8:g32".into()));
    assert_eq!((&ledger[0]["source_bytes"], &ledger[0]["packed_bytes"]), (&(40 * 48 * 4).into(), &(40 * 48 / 2 + 2 * 48 * 4).into()));
    assert_eq!((&ledger[1]["scheme"], &ledger[1]["activations"]), (&"w8a8".into(), &"dynamic per row".into()));
    assert!(ledger[1]["weight_error"].as_f64().unwrap() < 1e-6);
    assert_eq!(ledger[2]["scheme"], "f32");
    // The interpreter has the graph that the manifest tells.
    p.run("verify p.so --model p.tir --inputs p.npz --atol 1e-5").expect(0, &["ok"]);
    p.run("run p.so --inputs p.npz --quant w8a8").expect(2, &["--quant", "compiled already"]);
    p.run("run p.so --inputs p.npz").expect(0, &[]);
    p.run("check p.tir --quant w4a8").expect(0, &["everything is supported"]);
}

/// `y = relu(x w1) w2` with numbers that no grid hits, all of different sizes.
fn perceptron() -> Vec<u8> {
    let weight = |name: &str, dims: &[i64], seed: i64| {
        let n = dims.iter().product::<i64>();
        let raw_data = (0..n).flat_map(|i| (((i * 7919 + seed) % 1009) as f32 / 504.0 - 1.0).powi(3).to_le_bytes()).collect();
        TensorProto { name: name.into(), data_type: F32, dims: dims.to_vec(), raw_data, ..Default::default() }
    };
    let named = |name: &str, node: NodeProto| NodeProto { name: name.into(), ..node };
    let graph = GraphProto {
        name: "perceptron".into(),
        node: vec![
            named("/first/MatMul", node("MatMul", &["x", "w1"], "h")),
            node("Relu", &["h"], "r"),
            named("/second/MatMul", node("MatMul", &["r", "w2"], "y")),
        ],
        input: vec![value("x", F32, &["batch", "64"])],
        output: vec![value("y", F32, &["batch", "32"])],
        initializer: vec![weight("w1", &[64, 96], 17), weight("w2", &[96, 32], 5)],
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: 17, ..Default::default() };
    let model = ModelProto { ir_version: 8, opset_import: vec![opset], graph: MessageField::some(graph), ..Default::default() };
    model.write_to_bytes().expect("a message")
}

/// What calibration observes is kept in a file, which gives the same code with the data and without, and is for nothing else.
#[test]
fn a_calibration_cache_gives_the_same_code() {
    let p = Place::new();
    fs::write(p.path("p.onnx"), perceptron()).unwrap();
    let mut other = ModelProto::parse_from_bytes(&perceptron()).unwrap();
    other.graph.as_mut().unwrap().initializer[1].raw_data[0] ^= 1;
    fs::write(p.path("q.onnx"), other.write_to_bytes().unwrap()).unwrap();
    let samples = |file: &str, by: usize| {
        let at = |i: usize| tfc_ir::tensor::Scalar::Float(((i * by + i / 64 * 31) % 1013) as f64 / 500.0 - 1.0);
        let t = tfc_ir::tensor::Tensor::build(Elem::F32, &[40, 64], at);
        tfc::npz::write(File::create(p.path(file)).unwrap(), [("x", t.elem(), t.sizes(), &t.bytes()[..])]).unwrap();
    };
    samples("s.npz", 7919);
    samples("t.npz", 7907);
    let compile = |options: &str| p.run(&format!("compile --cpu-variants baseline {options}"));

    // Data and cache: what is measured is the same too.
    let both = "p.onnx --quant w4a8 --calib s.npz --calib-cache c.npz --max-error 0.5 -o p.so";
    compile(both).expect(0, &["on 8 samples that were held out"]);
    let (first, cache) = (p.read("p.so"), p.read("c.npz"));
    fs::remove_file(p.path("p.so")).unwrap();
    compile(both).expect(0, &["on 8 samples that were held out"]);
    assert!(p.read("p.so") == first && p.read("c.npz") == cache, "the cache gave other code");
    compile("p.onnx --quant w4a8 --calib s.npz --max-error 0.5 -o p.so").expect(0, &[]);
    assert!(p.read("p.so") == first, "the data gives other code without a cache");

    // The cache alone, with a scheme that needs data.
    let alone = "p.onnx --quant w8a8:static --calib-cache d.npz -o p.so";
    compile(&format!("{alone} --calib s.npz --holdout 0")).expect(0, &[]);
    let first = p.read("p.so");
    fs::remove_file(p.path("p.so")).unwrap();
    let r = compile(alone).expect(0, &[]);
    assert!(p.read("p.so") == first, "the cache alone gave other code");
    assert!(!r.err.contains("held out"), "{}", r.err);

    let damaged: Vec<u8> = cache.iter().enumerate().map(|(i, b)| if i == cache.len() / 3 { b ^ 16 } else { *b }).collect();
    fs::write(p.path("damaged.npz"), &damaged).unwrap();
    fs::write(p.path("cut.npz"), &cache[..cache.len() / 2]).unwrap();
    let files = p.files();
    for (options, code, pieces) in [
        ("q.onnx --quant w4a8 --calib s.npz --calib-cache c.npz", 1, &["for another model\n", "c.npz", "delete the file"][..]),
        ("q.onnx --quant w4a8 --calib-cache c.npz", 1, &["for another model\n"]),
        ("p.onnx --quant w4a8 --calib t.npz --calib-cache c.npz", 1, &["for other data\n", "c.npz"]),
        ("p.onnx --quant w4a8 --calib s.npz --calib-cache c.npz --holdout 9", 1, &["for other data\n"]),
        ("p.onnx --quant w8a8 --calib s.npz --calib-cache c.npz", 1, &["for other options\n", "--quant=w4a8\n", "--quant=w8a8\n"]),
        ("p.onnx --quant w4a8 -O2 --calib-cache c.npz", 1, &["for other options\n", "-O3", "-O2"]),
        ("p.onnx --quant w4a8 --dim batch=1..8 --calib-cache c.npz", 1, &["other options", "--dim=batch=1..8"]),
        ("p.onnx --quant w4a8 --calib s.npz --calib-cache damaged.npz", 1, &["damaged.npz"]),
        ("p.onnx --quant w4a8 --calib-cache cut.npz", 1, &["cut.npz"]),
        ("p.onnx --quant w4a8 --calib-cache s.npz", 1, &["s.npz", "not a calibration cache"]),
        ("p.onnx --quant w4a8 --calib-cache absent.npz", 2, &["absent.npz", "--calib DATA.npz"]),
        ("p.onnx --quant w4a8 --calib-cache c.npz --max-error 1", 2, &["--max-error", "--calib"]),
        ("p.onnx --quant w4a8 --calib-cache c.npz --passes quantize,calibrate,fuse", 2, &["`calibrate` before `quantize`"]),
        ("p.onnx --calib-cache c.npz", 2, &["--calib-cache", "--quant"]),
        ("p.onnx --quant w4a8 --calib s.npz --calib-cache e.npz --quant-override /first=w4a8 --max-error 1e-30", 4, &["budget"]),
        ("p.onnx --quant w4a8 --calib s.npz --calib-cache absent/c.npz", 1, &["absent"]),
    ] {
        compile(&format!("{options} -o bad.so")).expect(code, pieces);
        assert_eq!(files, p.files(), "{options}");
    }
    assert!(p.read("c.npz") == cache && p.read("damaged.npz") == damaged, "a run that fails changed the cache");
}

/// A budget that holds at once, one that raises layers, one that cannot be met; and what contradicts itself.
#[test]
fn promises_are_kept_by_raising_layers() {
    let p = Place::new();
    fs::write(p.path("p.onnx"), perceptron()).unwrap();
    let write = |file: &str, name: &str, sizes: &[usize], at: &dyn Fn(usize) -> f64| {
        let t = tfc_ir::tensor::Tensor::build(Elem::F32, sizes, |i| tfc_ir::tensor::Scalar::Float(at(i)));
        tfc::npz::write(File::create(p.path(file)).unwrap(), [(name, t.elem(), t.sizes(), &t.bytes()[..])]).unwrap();
    };
    let sample = |i: usize| ((i * 7919 + i / 64 * 31) % 1013) as f64 / 500.0 - 1.0;
    write("s.npz", "x", &[40, 64], &sample);
    let line = "compile p.onnx --quant w4a8 --calib s.npz --cpu-variants baseline,avx2";
    let json =
        |file: &str| -> serde_json::Value { serde_json::from_str(&p.run(&format!("inspect {file} --json")).expect(0, &[]).out).unwrap() };

    let r = p.run(&format!("{line} --max-error 0.5 -o easy.so")).expect(0, &["on 8 samples that were held out", "kept", "2 products"]);
    assert!(!r.err.contains("raised"), "{}", r.err);
    let measured = json("easy.so")["accuracy"][0].clone();
    assert_eq!((&measured["name"], &measured["limit"]), (&"max-error".into(), &0.5.into()));
    let error = measured["value"].as_f64().unwrap();
    assert!((0.02..0.5).contains(&error), "{error}");
    // Each product has a kernel of its own, though the first one writes codes for the second and so computes of both.
    let manifest = json("easy.so");
    let mut kernels = vec![];
    for e in manifest["quantization"].as_array().unwrap() {
        let kernel = &manifest["kernels"][e["kernel"].as_u64().unwrap() as usize];
        assert!(kernel["kind"] == "gemm" && kernel["nodes"].as_array().unwrap().contains(&e["node"]), "{e} {kernel}");
        assert!(e["total_error"].is_f64() && e["operand_error"].is_f64() && e["error_share"].is_null(), "{e}");
        kernels.push(e["kernel"].as_u64());
    }
    assert!(kernels.len() == 2 && kernels[0] < kernels[1], "{kernels:?}");

    // Half of what 4 bits reach.
    let raising = format!("{line} --max-error {} -o raised.so", error / 2.0);
    p.run(&raising).expect(0, &["raised from w4a8", "by --max-error", "kept"]);
    let manifest = json("raised.so");
    assert!(manifest["accuracy"][0]["value"].as_f64().unwrap() <= error / 2.0, "{manifest}");
    let raised = |e: &serde_json::Value| e["reason"].as_str().unwrap().contains("raised from");
    assert!(manifest["quantization"].as_array().unwrap().iter().any(raised), "{}", manifest["quantization"]);
    assert!(manifest["quantization"].as_array().unwrap().iter().any(|e| e["error_share"].is_f64()), "{}", manifest["quantization"]);
    let first = p.read("raised.so");
    p.run(&raising).expect(0, &[]);
    assert!(first == p.read("raised.so"), "the same data gave other code");

    // Fixed ranges are given up first, where that is enough: a few rows are a hundred times as large as the others.
    write("massive.npz", "x", &[40, 64], &|i| sample(i) * if i / 64 % 13 == 0 { 100.0 } else { 1.0 });
    let line_of = |rest: &str| format!("compile p.onnx --calib massive.npz --cpu-variants baseline,avx2 --quant {rest}");
    let divergence = |file: &str| json(file)["accuracy"][0]["value"].as_f64().unwrap();
    for scaling in ["static", "dynamic"] {
        p.run(&line_of(&format!("w8a8:{scaling} --max-kl 1e9 -o {scaling}.so"))).expect(0, &["kept"]);
    }
    let [fixed, found] = ["static.so", "dynamic.so"].map(divergence);
    assert!(fixed > 4.0 * found, "{fixed} by fixed ranges, {found} by those of run time");
    let r = p.run(&line_of(&format!("w8a8:static --max-kl {} -o some.so", 2.0 * found)));
    r.expect(0, &["w8a8:dynamic: raised from w8a8:static by --max-kl", "kept"]);
    let schemes: Vec<String> = json("some.so")["quantization"].as_array().unwrap().iter().map(|e| e["scheme"].to_string()).collect();
    assert!(schemes.iter().all(|s| s.contains("w8a8")), "{schemes:?}");

    let files = p.files();
    let hopeless = ["an accuracy budget was missed", "with every layer in f32", "as it was asked for"];
    p.run(&format!("{line} --quant-override /first=w4a8 --max-error 1e-30 -o hopeless.so")).expect(4, &hopeless);
    assert_eq!(files, p.files());

    write("nan.npz", "x", &[40, 64], &|i| if i == 70 { f64::NAN } else { sample(i) });
    write("other.npz", "z", &[40, 64], &sample);
    write("narrow.npz", "x", &[40, 63], &sample);
    write("few.npz", "x", &[8, 64], &sample);
    write("none.npz", "x", &[0, 64], &sample);
    write("zeros.npz", "x", &[40, 64], &|_| 0.0);
    for (options, code, pieces) in [
        ("--max-error 0.1", 2, &["--max-error", "--calib"][..]),
        ("--quant w8a8:static", 2, &["static activations", "--calib", ":dynamic"]),
        ("--calib s.npz", 2, &["--quant"]),
        ("--quant w8a8 --calib-mask x", 2, &["--calib"]),
        ("--quant w8a8 --calib s.npz --holdout 0 --max-kl 1", 2, &["--holdout 0", "--max-kl"]),
        ("--quant w8a8 --calib s.npz --calib-mask m", 2, &["--calib-mask m", "`x`"]),
        ("--quant w8a8 --calib s.npz --max-error z=1", 2, &["`z`", "`y`"]),
        ("--quant w8a8 --calib s.npz --holdout 40", 1, &["40 samples, of which 40"]),
        ("--quant w8a8 --calib few.npz", 1, &["8 samples, of which 8", "--holdout"]),
        ("--quant w8a8 --calib none.npz", 1, &["no samples", "none.npz"]),
        ("--quant w8a8 --calib nan.npz", 1, &["element 70", "NaN", "nan.npz", "`x`"]),
        ("--quant w8a8 --calib other.npz", 1, &["`x`", "`z`", "no such member"]),
        ("--quant w8a8 --calib narrow.npz", 1, &["f32[batch, 64]", "[40, 63]"]),
        ("--quant w8a8 --calib absent.npz", 1, &["absent.npz"]),
    ] {
        p.run(&format!("compile p.onnx -o bad.so {options}")).expect(code, pieces);
        assert!(!p.path("bad.so").exists(), "{options}");
    }
    // Nothing but zeros is no range, and no error.
    p.run("compile p.onnx --quant w8a8:static --calib zeros.npz -o zeros.so").expect(0, &[]);
    // All samples may be learned from; then nothing is measured.
    let r = p.run("compile p.onnx --quant w8a8 --calib s.npz --holdout 0 -o all.so").expect(0, &[]);
    assert!(!r.err.contains("held out"), "{}", r.err);
}

/// Logits of two classes with a mask over positions.
const CLASSES: &str = "tfc.ir 1
symbol batch 1..1000
symbol seq 1..64
input %x: f32[batch, seq, 32]
input %mask: i64[batch, seq]
const %w: f32[32, 16] = splat 0.25
%0 = matmul %x, %w : f32[batch, seq, 16] loc(\"/head/MatMul\")
output logits = %0
";

#[test]
fn promises_are_verified() {
    let p = Place::new();
    fs::write(p.path("c.tir"), CLASSES).unwrap();
    let write = |file: &str, arrays: &[(&str, tfc_ir::tensor::Tensor)]| {
        let arrays = arrays.iter().map(|(name, t)| (*name, t.elem(), t.sizes(), &t.bytes()[..]));
        tfc::npz::write(File::create(p.path(file)).unwrap(), arrays).unwrap();
    };
    let floats = |sizes: &[usize], at: &dyn Fn(usize) -> f64| {
        tfc_ir::tensor::Tensor::build(Elem::F32, sizes, |i| tfc_ir::tensor::Scalar::Float(at(i)))
    };
    let ints = |sizes: &[usize], at: &dyn Fn(usize) -> i128| {
        tfc_ir::tensor::Tensor::build(Elem::I64, sizes, |i| tfc_ir::tensor::Scalar::Int(at(i)))
    };
    // More samples than one run takes; of each two positions the second is padding.
    let x = floats(&[130, 2, 32], &|i| ((i * 7919) % 101) as f64 / 50.0 - 1.0);
    write("c.npz", &[("x", x), ("mask", ints(&[130, 2], &|i| 1 - i as i128 % 2))]);
    let line = "verify c.tir --inputs c.npz --quant w8a8";
    let r = p
        .run(&format!("{line} --max-error 0.02 --max-kl logits=0.01 --require-top1 50 -v"))
        .expect(0, &["the reference is the interpreter"]);
    for piece in ["max abs error", "max-error     <= 2.000e-2", "max-kl        <= 1.000e-2", "require-top1  >= 50.000%", "kept"] {
        assert!(r.out.contains(piece), "{}", r.out);
    }
    // The reference is the model in f32, not the rounded one.
    let r =
        p.run(&format!("{line} --max-error 1e-6")).expect(4, &["an accuracy budget was missed: --max-error of `logits`", "CPU variant"]);
    assert!(r.out.contains("missed"), "{}", r.out);
    p.run("verify c.tir --inputs c.npz --max-error 1e-6 --max-kl 1e-9 --require-top1 100").expect(0, &[]);

    // A reference that is right where the mask is 1.
    p.run("run c.tir --inputs c.npz --outputs good.npz").expect(0, &[]);
    let good = tfc::npz::Archive::open(&p.path("good.npz")).unwrap().tensor("logits").unwrap();
    let bad = floats(&[130, 2, 16], &|i| good.get(i).to_f64() + if i / 16 % 2 == 1 { 100.0 * (i % 16) as f64 } else { 0.0 });
    write("bad.npz", &[("logits", bad)]);
    let line = "verify c.tir --inputs c.npz --reference bad.npz --max-error 1e-6 --require-top1 99";
    p.run(line).expect(4, &["1950 of 4160 differ"]);
    p.run(&format!("{line} --calib-mask mask")).expect(0, &["100.000%"]);
    p.run(&format!("{line} --calib-mask nothing")).expect(2, &["--calib-mask nothing", "`x`, `mask`"]);

    // All weights are alike, so the first class is always the largest.
    write("zeros.npz", &[("labels", ints(&[130, 2], &|_| 0))]);
    write("half.npz", &[("logits", ints(&[130, 2], &|i| i as i128 % 2))]);
    p.run("verify c.tir --inputs c.npz --labels zeros.npz").expect(0, &["260     260    100.000%"]);
    p.run("verify c.tir --inputs c.npz --labels half.npz").expect(0, &["260     130    50.000%"]);
    p.run("verify c.tir --inputs c.npz --labels half.npz --calib-mask mask").expect(0, &["130     130    100.000%"]);
    // Labels and a reference; the promise is about the latter.
    let r = p.run("verify c.tir --inputs c.npz --reference good.npz --labels half.npz --require-top1 100").expect(0, &["kept"]);
    assert!(r.out.contains("50.000%") && r.out.contains("100.000%"), "{}", r.out);
    write("far.npz", &[("logits", ints(&[130, 2], &|i| if i == 3 { 16 } else { 0 }))]);
    write("short.npz", &[("logits", ints(&[130], &|_| 0))]);
    write("float.npz", &[("logits", floats(&[130, 2], &|_| 0.0))]);
    write("two.npz", &[("logits", ints(&[130, 2], &|_| 0)), ("other", ints(&[1], &|_| 0))]);
    for (file, pieces) in [
        ("far.npz", &["label 3 is 16", "classes 0 to 15"][..]),
        ("short.npz", &["i64[130]", "f32[130, 2, 16]", "of the shape [130, 2]"]),
        ("float.npz", &["f32[130, 2]"]),
        ("two.npz", &["`other`", "`logits`"]),
    ] {
        p.run(&format!("verify c.tir --inputs c.npz --labels {file}")).expect(1, pieces);
    }

    let count = "%1 = dims {values = [batch], shape = []} : i64[]\noutput logits = %0\noutput count = %1\n";
    fs::write(p.path("two.tir"), CLASSES.replace("output logits = %0\n", count)).unwrap();
    p.run("verify two.tir --inputs c.npz --max-error 1e-6").expect(0, &["kept"]);
    for (option, pieces) in [
        ("--max-error count=1", &["--max-error=count=1", "no output of floats called `count`", "`logits`"][..]),
        ("--max-kl nothing=1", &["`nothing`"]),
        ("--max-error -1", &["-1"]),
        ("--require-top1 101", &["101"]),
    ] {
        p.run(&format!("verify two.tir --inputs c.npz {option}")).expect(2, pieces);
    }
    p.run("compile c.tir --quant w8a8 -o c -q").expect(0, &[]);
    if p.path("c/c.so").exists() {
        p.run("verify c --model c.tir --inputs c.npz --max-error 0.02").expect(0, &["kept"]);
        p.run("verify c --model c.tir --inputs c.npz --max-error 1e-6").expect(4, &["missed"]);
        p.run("verify c --inputs c.npz --labels zeros.npz").expect(0, &["100.000%"]);
        p.run("verify c --inputs c.npz --max-error 1").expect(2, &["--model", "--reference"]);
    }
}

#[test]
fn layers_and_passes_that_differ_are_found() {
    let p = Place::new();
    p.run("bisect m.onnx --inputs in.npz")
        .expect(0, &["y       ", "picked", "/MatMul", "no output differs by more than 1e-3 from the interpreter"]);
    p.run("bisect m.onnx --inputs in.npz --reference-level O0 -O1").expect(0, &["from code of -O0"]);
    let r = p.run("bisect m.onnx --inputs in.npz --json").expect(0, &[]);
    let json: serde_json::Value = serde_json::from_str(&r.out).unwrap();
    assert_eq!((&json["outputs"][1]["name"], &json["fault"]), (&"picked".into(), &serde_json::Value::Null));
    assert!(json["layers"][0]["own_error"].as_f64().unwrap() < 1e-6, "{}", r.out);

    fs::write(p.path("p.tir"), PRODUCTS).unwrap();
    let x = tfc_ir::tensor::Tensor::build(Elem::F32, &[3, 40], |i| tfc_ir::tensor::Scalar::Float(((i * 37) % 101) as f64 / 10.0));
    tfc::npz::write(File::create(p.path("p.npz")).unwrap(), [("x", Elem::F32, x.sizes(), &x.bytes()[..])]).unwrap();
    let line = "bisect p.tir --inputs p.npz --quant w4a8:g32";
    p.run(line).expect(0, &["(share)", "quantize_rows+quantized_matmul", "/layer.0/MatMul", "no output differs by more than 1e-1"]);
    let r = p.run(&format!("{line} --tolerance 1e-6 --layers 1"));
    let r = r
        .expect(1, &["error: the outputs differ from the pass ", "-quantize on", "loses most", "1 more products: --layers", "<-- /layer."]);
    let help = r.err.lines().find_map(|l| l.trim().strip_prefix("help: keep it float: tfc ")).expect("a command to go on with");
    // The command does what it says.
    p.run(&format!("{} -o kept.o --opt-report", help.replace('\'', ""))).expect(0, &["--quant-override '^/layer"]);
    let r = p.run(&format!("{line} --tolerance 1e-6 --json")).expect(1, &[]);
    let json: serde_json::Value = serde_json::from_str(&r.out).unwrap();
    assert_eq!(json["fault"]["pass"]["name"], "quantize");
    assert_eq!(json["fault"]["code"], serde_json::Value::Null);
    let shares: f64 = json["layers"].as_array().unwrap().iter().filter_map(|l| l["share"].as_f64()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{}", r.out);

    // With all that says how the model is compiled, as words of a shell.
    fs::write(p.path("q.onnx"), perceptron()).unwrap();
    let x = tfc_ir::tensor::Tensor::build(Elem::F32, &[3, 64], |i| tfc_ir::tensor::Scalar::Float(((i * 37) % 101) as f64 / 50.0 - 1.0));
    tfc::npz::write(File::create(p.path("q.npz")).unwrap(), [("x", Elem::F32, x.sizes(), &x.bytes()[..])]).unwrap();
    let given = r"--quant w4a8 --quant-override /s.*d\b=w8a8 --calib q.npz --holdout 0 --dim batch=1..8";
    let r = p.run(&format!("bisect q.onnx --inputs q.npz --tolerance 1e-6 {given}")).expect(1, &[]);
    let words = r"tfc compile q.onnx -O3 --quant=w4a8 '--quant-override=/s.*d\b=w8a8' --calib=q.npz --holdout=0 --dim=batch=1..8 '--quant-override=^/";
    assert!(r.err.contains(words), "{}", r.err);

    p.run("bisect m.onnx").expect(2, &["--inputs"]);
    p.run("bisect m.onnx --inputs in.npz --tolerance nan").expect(2, &["--tolerance"]);
    p.run("bisect p.tir --inputs in.npz").expect(1, &["`index`", "no such input"]);
}

/// What is not a regular file is refused before it is opened: a pipe would block.
#[cfg(target_os = "linux")]
#[test]
fn pipes_and_devices_are_no_inputs() {
    use std::os::unix::fs::symlink;
    let p = Place::new();
    let pipe = |name: &str| rustix::fs::mkfifoat(rustix::fs::CWD, p.path(name), rustix::fs::Mode::RWXU).unwrap();
    for name in ["pipe", "pipe.onnx", "pipe.tir", "pipe.so", "pipe.npz", "with.tir.bin"] {
        pipe(name);
    }
    fs::write(p.path("with.tir"), "tfc.ir 1\n").unwrap();
    symlink("/dev/zero", p.path("zero.onnx")).unwrap();
    fs::create_dir(p.path("bundle")).unwrap();
    pipe("bundle/m.so");
    pipe("bundle/m.manifest.json");
    let before = p.files();
    for (line, what) in [
        ("check pipe", "a named pipe, not a regular file"),
        ("compile pipe.onnx -o x.o", "a named pipe"),
        ("compile pipe.tir -o x.o", "a named pipe"),
        ("compile with.tir -o x.o", "a named pipe"),
        ("compile zero.onnx -o x.o", "a device"),
        ("compile bundle -o x.o", "a folder"),
        ("run pipe --inputs in.npz", "a named pipe"),
        ("run pipe.so --inputs in.npz", "a named pipe"),
        ("run bundle --inputs in.npz", "a named pipe"),
        ("run m.onnx --inputs pipe.npz", "a named pipe"),
        ("run m.onnx --inputs /dev/zero", "a device"),
        ("verify m.onnx --inputs in.npz --reference pipe.npz", "a named pipe"),
        ("inspect pipe.so", "a named pipe"),
        ("inspect bundle", "a named pipe"),
    ] {
        p.run(line).expect(1, &[what]);
    }
    p.run("compile m.onnx -o b --weights external -q").expect(0, &[]);
    if p.path("b/b.so").exists() {
        fs::remove_file(p.path("b/b.weights.bin")).unwrap();
        pipe("b/b.weights.bin");
        p.run("run b --inputs in.npz").expect(1, &["b.weights.bin", "a named pipe"]);
    }
    fs::remove_dir_all(p.path("b")).unwrap();
    assert_eq!(p.files(), before);
}

/// Devices and streams of the process are written into, links are written through.
#[cfg(target_os = "linux")]
#[test]
fn outputs_go_into_devices_and_through_links() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let p = Place::new();
    let before = p.files();
    p.run("run m.onnx --inputs in.npz --outputs /dev/null").expect(0, &[]);
    p.run("compile m.onnx -o /dev/null").expect(0, &[]);
    p.run("compile m.onnx --emit shared -o /dev/null").expect(0, &[]);
    p.run("compile m.onnx --emit tir -o /dev/null").expect(0, &[]);
    p.run("compile m.onnx --emit bundle -o /dev/null").expect(1, &["a device or a pipe"]);
    p.run("compile m.onnx --weights external --emit obj -o /dev/null").expect(1, &["--weights embedded"]);
    for line in ["run m.onnx --inputs in.npz --outputs /dev/full", "compile m.onnx -o /dev/full", "compile m.onnx --emit dot -o /dev/full"]
    {
        p.run(line).expect(1, &["cannot write `/dev/full`: No space left on device"]);
    }
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    assert!(p.run("compile m.onnx --emit dot -o /dev/stdout -q").expect(0, &[]).out.starts_with("digraph"));
    assert_eq!(p.files(), before);

    fs::create_dir(p.path("far")).unwrap();
    for (link, to) in [("out.npz", "far/out.npz"), ("m.o", "far/m.o"), ("m.tir", "far/m.tir"), ("bundle", "far/bundle")] {
        symlink(to, p.path(link)).unwrap();
    }
    for _ in 0..2 {
        p.run("run m.onnx --inputs in.npz --outputs out.npz").expect(0, &[]);
        p.run("compile m.onnx -o m.o").expect(0, &[]);
        p.run("compile m.onnx -o m.tir").expect(0, &[]);
        p.run("compile m.onnx -o bundle").expect(0, &[]);
    }
    for link in ["out.npz", "m.o", "m.tir", "bundle"] {
        assert!(p.path(link).is_symlink() && p.path("far").join(link).exists(), "{link}");
    }
    assert_eq!(fs::read_dir(p.path("far")).unwrap().count(), 4);
    p.run("inspect bundle").expect(0, &[]);
}

/// A limit on the size of files stands for a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() {
    let p = Place::new();
    p.inputs("large.npz", &[("x", Elem::F32, &[4000, 4]), ("index", Elem::I64, &[2])]);
    let before = p.files();
    for line in [
        "run m.onnx --inputs large.npz --outputs out.npz",
        "compile m.onnx -o m.o",
        "compile m.onnx -o m.a",
        "compile m.onnx -o bundle",
        "compile m.onnx --weights external -o bundle",
        "compile m.onnx -o m.s",
    ] {
        let tfc = p.command(line);
        let words = tfc.get_args().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
        let script = format!("ulimit -f 4; exec {} {words}", env!("CARGO_BIN_EXE_tfc"));
        let r = ran(Command::new("bash").args(["-c", &script]).current_dir(p.0.path()).output().expect("a shell"));
        let out = line.split(' ').next_back().unwrap();
        r.expect(1, &[&format!("cannot write `{out}`: File too large")]);
        assert_eq!(p.files(), before, "{line}");
    }
}

/// Models that are all called `model.onnx`.
fn models_of_one_name() -> Place {
    let p = Place::new();
    for (folder, activation) in [("a", "Relu"), ("b", "Tanh"), ("c/onnx", "Sigmoid")] {
        fs::create_dir_all(p.path(folder)).unwrap();
        fs::write(p.path(folder).join("model.onnx"), model(activation)).unwrap();
    }
    fs::create_dir(p.path("out")).unwrap();
    p
}

#[test]
fn outputs_name_symbols_and_weights() {
    let p = models_of_one_name();
    p.run("compile a/model.onnx -o out/a.o --weights external").expect(0, &["wrote out/a.o", "wrote out/a.weights.bin"]);
    p.run("compile b/model.onnx -o out/b.o --weights external").expect(0, &["wrote out/b.o", "wrote out/b.weights.bin"]);
    for name in ["a", "b"] {
        let json = p.run(&format!("inspect out/{name}.o --json")).expect(0, &[]).out;
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["name"], &json["weights"]["file"]), (&name.into(), &format!("{name}.weights.bin").into()));
    }
    p.run("compile a/model.onnx --name other -o out/c.o --weights external").expect(0, &["wrote out/c.weights.bin"]);
    p.run("inspect out/c.o").expect(0, &["other"]);
    p.run("compile a/model.onnx -o out/v1.d").expect(2, &["extension"]);
    p.run("compile a/model.onnx --emit obj,asm -o out/two.x --weights external").expect(0, &["out/two.o", "out/two.weights.bin"]);
    let named = |artifact: &str| {
        let json = p.run(&format!("inspect {artifact} --json")).expect(0, &[]).out;
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["name"].as_str().unwrap().to_string()
    };
    // Without an output, the model's name; where it is `model`, its folder's.
    for (line, name, bundle) in [
        ("compile m.onnx", "m", "m/m.o"),
        ("compile a/model.onnx", "a", "a_bundle/a.o"),
        ("compile c/onnx/model.onnx", "c", "c_bundle/c.o"),
        ("compile a/model.onnx --emit obj", "a", "a.o"),
        ("compile a/model.onnx --emit obj -o out", "a", "out/a.o"),
        ("compile a/model.onnx -o out/int", "int_", "out/int/int_.o"),
    ] {
        fs::remove_file(p.path("out/a.o")).ok();
        p.run(line).expect(0, &[]);
        assert_eq!(named(bundle), name, "{line}");
    }
    let there = ran(p.command("compile ../b/model.onnx").current_dir(p.path("out")).output().unwrap());
    there.expect(0, &["wrote b"]);
}

#[test]
fn nothing_of_another_model_is_replaced_unless_forced() {
    let p = models_of_one_name();
    p.run("compile a/model.onnx -o out/bundle").expect(0, &[]);
    p.run("compile a/model.onnx -o out/x.o --weights external").expect(0, &[]);
    p.run("compile a/model.onnx -o out/x.a --weights external").expect(0, &[]);
    fs::copy(p.path("out/x.weights.bin"), p.path("out/y.weights.bin")).unwrap();
    fs::write(p.path("out/z.weights.bin"), "mine").unwrap();
    fs::write(p.path("out/z.o"), "mine").unwrap();
    let hash = |name: &str| {
        let json: serde_json::Value = serde_json::from_str(&p.run(&format!("inspect {name} --json")).expect(0, &[]).out).unwrap();
        json["model_hash"].as_str().unwrap().to_string()
    };
    let theirs = hash("out/x.o");
    let read = || ["bundle/bundle.o", "x.o", "x.a", "x.weights.bin", "y.weights.bin", "z.weights.bin"].map(|f| p.read(&format!("out/{f}")));
    let before = read();
    for (line, what) in [
        ("compile b/model.onnx -o out/bundle", "`out/bundle`: a bundle of another model"),
        ("compile b/model.onnx -o out/bundle --name b", "`out/bundle`: a bundle of another model"),
        ("compile b/model.onnx -o out/x.o", "`out/x.o`: code of another model"),
        ("compile b/model.onnx -o out/x.a", "`out/x.a`: code of another model"),
        ("compile b/model.onnx --emit obj,asm -o out/x", "`out/x.o`: code of another model"),
        ("compile b/model.onnx -o out/y.o --weights external", "`out/y.weights.bin`: the weights file of another model"),
    ] {
        // The hashes of both sides.
        p.run(line).expect(1, &[what, &theirs, "this model's is", "--force"]);
    }
    p.run("compile b/model.onnx -o out/z.o --weights external").expect(1, &["`out/z.weights.bin`", "not known", "--force"]);
    assert!(before == read());
    // Its own things are replaced, whatever the options and the name.
    for line in ["-o out/bundle -O0", "-o out/bundle --name other", "-o out/x.o -O1 --weights external"] {
        p.run(&format!("compile a/model.onnx {line}")).expect(0, &[]);
    }
    p.run("compile a/model.onnx -o out/z.o").expect(0, &[]);
    for line in ["-o out/bundle", "-o out/x.o", "-o out/y.o --weights external", "-o out/z.o --weights external"] {
        p.run(&format!("compile b/model.onnx --force {line}")).expect(0, &[]);
    }
    assert!(hash("out/x.o") != theirs && hash("out/bundle") != theirs);
    // Not even by force: files that no bundle has.
    fs::write(p.path("out/bundle/main.c"), "mine").unwrap();
    p.run("compile b/model.onnx --force -o out/bundle").expect(1, &["`main.c`"]);
}

#[test]
fn occupied_places_are_refused_before_the_work() {
    let p = Place::new();
    fs::create_dir_all(p.path("mine/deep")).unwrap();
    for name in ["x.o", "x.weights.bin", "x.tir", "x.npz", "x.json", "x.cache"] {
        fs::create_dir(p.path(name)).unwrap();
    }
    fs::write(p.path("file"), "mine").unwrap();
    let before = p.files();
    // There is no such model: that is found out first when a model is read.
    for (line, what) in [
        ("compile absent.onnx -o mine", "the folder is not empty"),
        ("compile absent.onnx -o file --emit bundle", "it is a file"),
        ("compile absent.onnx -o .", "needs a name"),
        ("compile absent.onnx --emit obj,asm -o x", "irectory"),
        ("compile absent.onnx -o x.a --weights external", "`x.weights.bin`"),
        ("compile absent.onnx --emit tir,dot -o x", "irectory"),
        ("compile absent.onnx -o no/x.o", "the folder `no` does not exist"),
        ("compile absent.onnx -o y.o --dump-ir file", "`file`"),
        ("run absent.onnx --inputs in.npz --outputs x.npz", "irectory"),
        ("bench absent.onnx --trace x.json", "irectory"),
    ] {
        let said = p.run(line).expect(1, &["error: cannot ", what]);
        assert!(!said.err.contains("absent"), "{}", said.err);
    }
    p.run("compile absent.onnx -o y.o --dump-ir ir").expect(1, &["absent.onnx"]);
    p.run("compile absent.onnx -o y.o").expect(1, &["absent.onnx"]);
    assert_eq!(p.files(), before);
}

/// With other sizes it is still the same model, and takes the place of what was made of it.
#[test]
fn models_are_the_same_with_other_sizes() {
    let p = Place::new();
    let line = format!("compile {}/../fixtures/vit_fmnist.onnx -O0 --mcpu baseline -o vit.o -q", env!("CARGO_MANIFEST_DIR"));
    for sizes in ["", "--dim batch=2..5", "--shape image=3x1x28x28"] {
        p.run(&format!("{line} {sizes}")).expect(0, &[]);
    }
}

/// A linker that never ends holds the compiler where it has files that are half written.
#[cfg(target_os = "linux")]
#[test]
fn signals_leave_nothing() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Stdio};
    use std::thread::sleep;
    use std::time::Duration;
    let p = Place::new();
    fs::create_dir(p.path("bin")).unwrap();
    fs::write(p.path("bin/cc"), "#!/bin/sh\necho $$ > pid.new\nmv pid.new pid\nexec sleep 600\n").unwrap();
    fs::set_permissions(p.path("bin/cc"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", p.path("bin").display(), std::env::var("PATH").unwrap());
    let kill = |signal: &str, pid: &str| {
        assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
    };
    let started = |command: &mut Command| -> (Child, String) {
        let child = command.env("PATH", &path).current_dir(p.0.path()).stderr(Stdio::piped()).spawn().unwrap();
        while !p.path("pid").exists() {
            sleep(Duration::from_millis(5));
        }
        let linker = fs::read_to_string(p.path("pid")).unwrap().trim().to_string();
        fs::remove_file(p.path("pid")).unwrap();
        (child, linker)
    };
    let hidden = || p.files().into_iter().filter(|f| f.starts_with(".tfc")).count();
    let before = p.files();
    for (line, out) in [("compile m.onnx -o m.so", "m.so"), ("compile m.onnx -o bundle", "bundle")] {
        for (name, number) in [("-INT", 2), ("-TERM", 15), ("-HUP", 1)] {
            // What started this test may have these signals ignored, as `nohup` and `&` do; `env` makes them what they are by default.
            let defaults = ["--default-signal=INT,TERM,HUP", env!("CARGO_BIN_EXE_tfc")];
            let (child, linker) = started(Command::new("env").args(defaults).args(line.split_whitespace()).env_remove("TFC_FLAGS"));
            assert_eq!(hidden(), 1);
            kill(name, &child.id().to_string());
            let output = child.wait_with_output().unwrap();
            kill("-KILL", &linker);
            assert_eq!(output.status.signal(), Some(number), "{line} {name}");
            assert!(!String::from_utf8(output.stderr).unwrap().contains("error"), "{line} {name}");
            assert_eq!(p.files(), before, "{line} {name}");
        }
        let (mut child, linker) = started(&mut p.command(line));
        kill("-KILL", &child.id().to_string());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        kill("-KILL", &linker);
        assert_eq!(hidden(), 1);
        assert!(!p.path(out).exists());
        // Whoever writes there next removes it, even if it fails then.
        p.run(&format!("compile absent.onnx -o {out}")).expect(1, &[]);
        assert_eq!(p.files(), before, "{line} -KILL");
    }
    // What is ignored from the start stays so.
    let tfc = format!("trap '' HUP; exec env --default-signal=TERM {} compile m.onnx -o m.so", env!("CARGO_BIN_EXE_tfc"));
    let (mut child, linker) = started(Command::new("sh").args(["-c", &tfc]));
    kill("-HUP", &child.id().to_string());
    sleep(Duration::from_millis(50));
    assert!(child.try_wait().unwrap().is_none());
    kill("-TERM", &child.id().to_string());
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    kill("-KILL", &linker);
    assert_eq!(p.files(), before);
}

/// Dumps have their constants in one file, each once, and go on with it.
#[test]
fn dumps_share_their_constants() {
    let p = Place::new();
    p.run("compile m.onnx -o m.o --dump-ir ir --print-ir-after 00-import -q").expect(0, &["elided #"]);
    let bytes = p.read("ir/constants.bin").len();
    let dumps = fs::read_dir(p.path("ir")).unwrap().count();
    // 160 and 15 floats, as they are and as a pass has them.
    assert!(dumps > 5 && bytes < 3 * (640 + 60), "{dumps} files, {bytes} bytes of constants");
    p.run("compile m.onnx -o m.o --dump-ir ir -q").expect(0, &[]);
    assert_eq!(p.read("ir/constants.bin").len(), bytes);
    // What a process that was killed left is no part of the file.
    let whole = p.read("ir/constants.bin");
    fs::write(p.path("ir/constants.bin"), [&whole[..], &[7; 100]].concat()).unwrap();
    p.run("verify ir/00-import.tir --inputs in.npz").expect(0, &["ok"]);
    p.run("compile m.onnx -O0 -o m.o --dump-ir ir -q").expect(0, &[]);
    assert!(p.read("ir/constants.bin").starts_with(&whole));
    p.run("verify ir/01-dce.tir --inputs in.npz").expect(0, &["ok"]);
    // What is printed is read with the file, and not without.
    let printed = p.run("compile m.onnx --stop-after import --emit tir -o -").expect(0, &[]).out;
    assert_eq!(printed.as_bytes(), p.read("ir/00-import.tir"));
    fs::write(p.path("ir/printed.tir"), &printed).unwrap();
    p.run("verify ir/printed.tir --inputs in.npz").expect(0, &["ok"]);
    fs::write(p.path("printed.tir"), &printed).unwrap();
    p.run("verify printed.tir --inputs in.npz").expect(1, &["elided", "`printed.tir.bin`", "constants.bin"]);
    // Something else of that name stays.
    fs::create_dir(p.path("mine")).unwrap();
    fs::write(p.path("mine/constants.bin"), "mine").unwrap();
    p.run("compile absent.onnx -o m.o --dump-ir mine").expect(1, &["`mine/constants.bin`", "no file of constants"]);
    assert_eq!(p.read("mine/constants.bin"), b"mine");
}

#[test]
fn targets_that_are_not_tested_are_refused() {
    let p = Place::new();
    let before = p.files();
    for target in [
        "x86_64-pc-windows-msvc",
        "x86_64-pc-windows-gnu",
        "aarch64-linux-android",
        "aarch64-apple-ios",
        "x86_64-unknown-freebsd",
        "aarch64-unknown-linux-musl",
        "wasm32-unknown-unknown",
        "riscv64gc-unknown-linux-gnu",
    ] {
        let line = format!("compile m.onnx --target {target} -o out.o");
        p.run(&line).expect(3, &["is not supported", "`x86_64-unknown-linux-gnu`", "`aarch64-unknown-linux-gnu`"]);
    }
    for (target, instead) in [("x86_64-unknown-none", "x86_64-unknown-linux-gnu"), ("aarch64-unknown-none", "aarch64-unknown-linux-gnu")] {
        p.run(&format!("compile m.onnx --target {target}")).expect(3, &["is not supported", "help:", instead, "memcpy"]);
    }
    assert_eq!(p.files(), before);
    p.run("compile m.onnx --target x86_64-unknown-linux-musl -o musl.o").expect(0, &[]);
}

#[test]
fn absurd_sizes_are_errors() {
    // The first takes 168 GB.
    let sizes = ["batch=500000000,count=1", "batch=2147483647,count=1", "batch=2147483647,count=2147483647"];
    if tfc::memory::available().is_none_or(|bytes| bytes > 150 << 30) {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this machine has more memory than the model wants, or does not tell");
        return;
    }
    let p = Place::new();
    for size in sizes {
        let said = p.run(&format!("bench m.onnx --iters 1 --dim {size}")).expect(1, &["error: "]);
        assert!(!said.err.contains("panicked"), "{}", said.err);
    }
    p.run(&format!("bench m.onnx --dim {}", sizes[0])).expect(1, &["of memory at these sizes", "inputs 7630 MiB, outputs 76294 MiB"]);
    p.run("bench m.onnx --dim batch=9000000000000,count=1").expect(1, &["`batch`", "9000000000000", "at most 2147483647"]);
    p.run("bench m.onnx --dim batch=99999999999999999999,count=1").expect(2, &["99999999999999999999"]);
    p.run("compile m.onnx -o bundle -q").expect(0, &[]);
    if p.path("bundle/bundle.so").exists() {
        for size in sizes {
            p.run(&format!("bench bundle --iters 1 --dim {size}")).expect(1, &["error: "]);
        }
    }
}

/// A table of positions bounds the length, and whoever wants more is told the bound.
#[test]
fn sizes_that_a_model_does_not_take_are_told_with_those_that_it_takes() {
    let p = Place::new();
    let weight =
        TensorProto { name: "positions".into(), data_type: F32, dims: vec![7, 4], raw_data: vec![0; 4 * 28], ..Default::default() };
    let pair = |name: &str, at: i64| TensorProto {
        name: name.into(),
        data_type: I64,
        dims: vec![1],
        raw_data: at.to_le_bytes().into(),
        ..Default::default()
    };
    let graph = GraphProto {
        node: vec![
            node("Shape", &["x"], "shape"),
            node("Slice", &["shape", "zero", "one"], "length"),
            node("Slice", &["positions", "zero", "length", "zero"], "rows"),
            node("Add", &["x", "rows"], "y"),
        ],
        input: vec![value("x", F32, &["seq", "4"])],
        output: vec![value("y", F32, &["seq", "4"])],
        initializer: vec![weight, pair("zero", 0), pair("one", 1)],
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: 17, ..Default::default() };
    let model = ModelProto { ir_version: 8, opset_import: vec![opset], graph: MessageField::some(graph), ..Default::default() };
    fs::write(p.path("p.onnx"), model.write_to_bytes().unwrap()).unwrap();
    let said = "cannot be 600: the model takes at most 7, by node `/Add`";
    for line in ["compile p.onnx -o p.o", "bench p.onnx", "check p.onnx"] {
        p.run(&format!("{line} --dim seq=600")).expect(1, &[said, "`seq`", "--> `p.onnx`"]);
        p.run(&format!("{line} --shape x=600x4")).expect(1, &[said, "axis 0 of `x`"]);
    }
    p.run("compile p.onnx -o p.o --dim seq=600..700").expect(1, &["cannot be 600..700", "at most 7"]);
    p.run("compile p.onnx -o p.o --dim seq=7").expect(0, &[]);
    p.run("compile p.onnx -o p.o --dim nothing=600").expect(1, &["no dimension `nothing`"]);
}
