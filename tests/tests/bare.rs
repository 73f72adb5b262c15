//! CPU variants on emulated CPUs: which one is chosen, that what cannot run is refused and never faults,
//! and that all give what the interpreter gives, without touching what is not theirs. Skipped with a
//! loud line where the emulator is missing. The emulator has no VEX-coded AVX-VNNI: that variant runs
//! natively where the CPU has it.

use std::path::Path;
use std::time::Duration;
use tfc_ir::attr::Float;
use tfc_ir::dim::{Bindings, Dim, Range, Symbol};
use tfc_ir::graph::{Graph, Loc, Value};
use tfc_ir::ops::{Attention, Matmul, Op, QuantizeRows, QuantizeStatic, QuantizedAttention, QuantizedMatmul, Relu};
use tfc_ir::quant::{Granularity, Scheme};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape, Type};
use tfc_passes::OptLevel;
use tfc_runtime::abi::Status;
use tfc_tests::bare::{Image, Model, Report, XCR0, available, variants};
use tfc_tests::choices::Choices;
use tfc_tests::filetest;
use tfc_tests::native::Tolerance;

/// CPU models, and the best variant of each with every setting of [`XCR0`].
const CPUS: [(&str, [&str; 4]); 8] = [
    ("tigerlake", ["avx512vnni", "avx2", "baseline", "baseline"]),
    ("corei7_icelake_u", ["avx512vnni", "avx2", "baseline", "baseline"]),
    ("corei7_skylake_x", ["avx2", "avx2", "baseline", "baseline"]), // AVX-512 without VNNI
    ("ryzen", ["avx2", "avx2", "baseline", "baseline"]),
    ("corei7_haswell_4770", ["avx2", "avx2", "baseline", "baseline"]),
    ("corei7_sandy_bridge_2600k", ["baseline"; 4]), // AVX without AVX2
    ("core2_penryn_t9600", ["baseline"; 4]),        // XSAVE without AVX
    ("athlon64_venice", ["baseline"; 4]),           // no XSAVE
];

/// What runs where the best variant is this one.
fn runnable(best: &str) -> &'static [&'static str] {
    match best {
        "avx512vnni" => &["baseline", "avx2", "avx512vnni"],
        "avx2" => &["baseline", "avx2"],
        _ => &["baseline"],
    }
}

const LIMIT: Duration = Duration::from_secs(120);

/// What kernels may differ by from the interpreter, which rounds after every primitive.
fn tolerance(elem: Elem) -> Tolerance {
    Tolerance::roundings(elem, 64.0, 1.0)
}

#[test]
fn the_best_variant_is_chosen_and_the_others_are_refused() {
    if !available() {
        return;
    }
    let whole = || products(Elem::F32, 19, 21, &[5]);
    let objects = [variants(), variants().into_iter().filter(|c| c.wide.is_some()).collect::<Vec<_>>()];
    let models = [whole(), whole().only(|c| c.wide.is_some())];
    let image = Image::new(&models, OptLevel::O3, &XCR0);
    for (cpu, bests) in CPUS {
        let reports = image.run(cpu, LIMIT).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(reports.iter().map(|r| r.xcr0).collect::<Vec<_>>(), XCR0, "{cpu}");
        for (report, best) in reports.iter().zip(bests) {
            let at = format!("{cpu} with XCR0 {:#x}", report.xcr0);
            check(report, &at);
            let too_old = if best == "baseline" { (Status::CpuTooOld.code(), "-") } else { (0, best) };
            assert_eq!(report.init, [(0, best), too_old].map(|(s, name)| (s, name.to_string())), "{at}");
            for (object, answers) in objects.iter().zip(&report.init_cpu) {
                for (name, answer) in answers {
                    let expected = match name.as_str() {
                        n if !object.iter().any(|c| c.name == n) => (Status::CpuUnknown.code(), "-"),
                        n if runnable(best).contains(&n) => (0, n),
                        _ => (Status::CpuNotRunnable.code(), "-"),
                    };
                    assert_eq!(*answer, (expected.0, expected.1.to_string()), "{name} of {} variants, {at}", object.len());
                }
                assert_eq!(answers.len(), variants().len() + 1, "{at}");
            }
            assert_eq!(report.ran, 2 * runnable(best).len() - 1, "{at}");
        }
    }
}

/// Runs models on the CPUs that the variants are made for, with everything switched on.
fn run_everywhere(models: &[Model], level: OptLevel) {
    if !available() {
        return;
    }
    let image = Image::new(models, level, &XCR0[..1]);
    for (cpu, best) in [("tigerlake", "avx512vnni"), ("corei7_haswell_4770", "avx2")] {
        let reports = image.run(cpu, LIMIT).unwrap_or_else(|e| panic!("{e}"));
        let [report] = &reports[..] else { panic!("{} reports", reports.len()) };
        check(report, cpu);
        assert!(report.init.iter().all(|i| i.1 == best), "{:?}", report.init);
    }
}

fn check(report: &Report, at: &str) {
    assert!(report.failures.is_empty(), "{} failures on {at}:\n{}", report.failures.len(), report.failures.join("\n"));
    assert!(report.ran > 0, "nothing ran on {at}");
}

/// Numbers of rows: every remainder of every tile height.
fn rows() -> Vec<i64> {
    (1..=17).collect()
}

/// An empty graph with a symbol for the number of rows.
fn graph_of_rows() -> (Graph, Symbol) {
    let m = Symbol::new("m");
    (Graph::with_symbols([(m.clone(), Range { min: 1, max: 160 })].into_iter().collect()), m)
}

/// `m` rows times a constant of `k` x `n`, at every given `m`.
fn products(elem: Elem, n: usize, k: usize, rows: &[i64]) -> Model {
    let (mut graph, m) = graph_of_rows();
    let mut choices = Choices::seeded((n * 1000 + k) as u64);
    let x = graph.add_input("x", Type::new(elem, Shape(vec![Dim::from(m.clone()), Dim::from(k as i64)])));
    let w = graph.add_const(choices.tensor(elem, &[k, n]), None);
    let y = graph.add(Matmul {}, &[x, w], &Loc::node("product")).expect("it has a type");
    graph.add_output("y", y);
    let call = |&rows: &i64| (Bindings::from([(m.clone(), rows)]), vec![choices.tensor(elem, &[rows as usize, k])]);
    let calls = rows.iter().map(call).collect();
    Model::new(&format!("{elem} product {k} x {n}"), graph, calls, tolerance)
}

/// What is multiplied by a quantized matrix.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Left {
    /// Stored values with a scale for every row, and a zero point unless symmetric.
    Rows { symmetric: bool },
    /// The same with one scale for all.
    Whole { symmetric: bool },
    /// f32, quantized by rows.
    Quantized { symmetric: bool },
    /// f32, quantized statically.
    Static { zero_point: i64 },
    /// f32.
    Float,
}

/// A quantized product: how the weights are stored, a group length (0: a scale for every column), what
/// is on the left, and whether all stored values are extreme ones.
#[derive(Clone, Copy, Debug)]
struct Quantized {
    storage: Elem,
    symmetric: bool,
    group: u32,
    left: Left,
    extreme: bool,
    k: usize,
    n: usize,
}

impl Quantized {
    fn scheme(self) -> Scheme {
        let (min, max) = self.storage.int_range().expect("an integer type");
        let granularity = match self.group {
            0 => Granularity::Axis { axis: 1 },
            size => Granularity::Blocks { axis: 0, size },
        };
        Scheme { storage: self.storage, min: min as i16, max: max as i16, granularity, symmetric: self.symmetric, scale: Elem::F32 }
    }

    /// Stored values: extreme ones, or any.
    fn stored(self, elem: Elem, sizes: &[usize], choices: &mut Choices) -> Tensor {
        let (low, high) = elem.int_range().expect("an integer type");
        let any = |choices: &mut Choices| choices.between(low as i64, high as i64).into();
        Tensor::build(elem, sizes, |_| Scalar::Int(if self.extreme { *choices.pick(&[low, low, high]) } else { any(choices) }))
    }

    /// Scales that are powers of two: every partial sum of a row is a number of f32, so the results do
    /// not depend on the order of its groups, and a wrong bit shows.
    fn scales(sizes: &[usize], choices: &mut Choices) -> Tensor {
        Tensor::build(Elem::F32, sizes, |_| Scalar::Float(*choices.pick(&[0.5, 1.0])))
    }

    /// Exact but for f32 on the left, whose sums are rounded.
    fn model(self, rows: &[i64]) -> Model {
        let (mut graph, m) = graph_of_rows();
        let mut choices = Choices::seeded((self.n * 100_000 + self.k) as u64);
        let loc = Loc::node("product");
        let shape = |k: usize| Shape(vec![Dim::from(m.clone()), Dim::from(k as i64)]);
        let mut operands = vec![];
        let mut activations = None;
        let by_rows = |symmetric| QuantizeRows { symmetric }.scheme(2, self.k as u32);
        match self.left {
            Left::Float => operands.push(graph.add_input("x", Type::new(Elem::F32, shape(self.k)))),
            Left::Quantized { symmetric } => {
                let x = graph.add_input("x", Type::new(Elem::F32, shape(self.k)));
                operands = graph.add_node(QuantizeRows { symmetric }, &[x], &loc).expect("rows of a known size");
                activations = Some(by_rows(symmetric));
            }
            Left::Static { zero_point } => {
                let op = QuantizeStatic { scale: 0.0625f32.into(), zero_point };
                let x = graph.add_input("x", Type::new(Elem::F32, shape(self.k)));
                operands = static_rows(&mut graph, &op, x);
                activations = Some(op.scheme());
            }
            Left::Rows { symmetric } | Left::Whole { symmetric } => {
                let whole = matches!(self.left, Left::Whole { .. });
                let parameters = if whole { Shape(vec![]) } else { shape(1) };
                operands.push(graph.add_input("x", Type::new(Elem::I8, shape(self.k))));
                operands.push(graph.add_input("scale", Type::new(Elem::F32, parameters.clone())));
                if !symmetric {
                    operands.push(graph.add_input("zero", Type::new(Elem::I8, parameters)));
                }
                let scheme = by_rows(symmetric);
                activations = Some(if whole { Scheme { granularity: Granularity::Tensor, ..scheme } } else { scheme });
            }
        }
        let weights = self.scheme();
        let sizes = if self.group == 0 { vec![self.n] } else { vec![self.k.div_ceil(self.group as usize), self.n] };
        operands.push(graph.add_const(self.stored(self.storage, &[self.k, self.n], &mut choices), None));
        operands.push(graph.add_const(Quantized::scales(&sizes, &mut choices), None));
        if !self.symmetric {
            operands.push(graph.add_const(self.stored(self.storage, &sizes, &mut choices), None));
        }
        let y = graph.add(QuantizedMatmul { activations, weights }, &operands, &loc).expect("the operands fit");
        graph.add_output("y", y);
        let types: Vec<Type> = graph.inputs().iter().map(|&v| graph.ty(v).clone()).collect();
        let mut data = |ty: &Type, bindings: &Bindings, nth: usize| {
            let sizes = ty.shape.eval(bindings).expect("a size");
            match (ty.elem, nth) {
                (Elem::I8, _) => self.stored(Elem::I8, &sizes, &mut choices),
                (_, 0) => choices.tensor(Elem::F32, &sizes),
                _ => Quantized::scales(&sizes, &mut choices),
            }
        };
        let call = |&rows: &i64| {
            let bindings = Bindings::from([(m.clone(), rows)]);
            let inputs = types.iter().enumerate().map(|(i, t)| data(t, &bindings, i)).collect();
            (bindings, inputs)
        };
        let calls = rows.iter().map(call).collect();
        let tolerance = if self.left == Left::Float { tolerance_of_sums } else { |_| Tolerance::NONE };
        Model::new(&format!("{self:?}"), graph, calls, tolerance)
    }
}

/// The codes of statically quantized rows, with their scale and zero point.
fn static_rows(graph: &mut Graph, op: &QuantizeStatic, x: Value) -> Vec<Value> {
    let mut operands = vec![graph.add(op.clone(), &[x], &Loc::node("rows")).expect("rows of f32")];
    operands.extend(op.parameters().into_iter().map(|t| graph.add_const(t, None)));
    operands
}

/// Products one behind the other, of rows that are quantized statically: whole panels and others, a row, and strips of tiles.
fn static_chains() -> Vec<Model> {
    let mut models = vec![];
    for (sizes, zero_point, rows) in [([67, 33, 9], 0, rows()), ([64, 32, 64], 0, vec![1, 5, 33]), ([128, 96, 32], -100, vec![1, 16, 37])] {
        let (mut graph, m) = graph_of_rows();
        let mut choices = Choices::seeded(sizes[0] as u64);
        let mut x = graph.add_input("x", Type::new(Elem::F32, Shape(vec![Dim::from(m.clone()), Dim::from(sizes[0] as i64)])));
        for (kn, storage) in sizes.windows(2).zip([Elem::I8, Elem::I4]) {
            let [k, n] = [kn[0], kn[1]];
            let symmetric = true;
            let q = Quantized { storage, symmetric, group: 0, left: Left::Static { zero_point }, extreme: false, k, n };
            let op = QuantizeStatic { scale: 0.25f32.into(), zero_point };
            let mut operands = static_rows(&mut graph, &op, x);
            operands.push(graph.add_const(q.stored(storage, &[k, n], &mut choices), None));
            operands.push(graph.add_const(Tensor::of(&[n], vec![1.0f32 / 64.0; n]), None));
            let op = QuantizedMatmul { activations: Some(op.scheme()), weights: q.scheme() };
            let y = graph.add(op, &operands, &Loc::node("product")).expect("the operands fit");
            x = graph.add(Relu {}, &[y], &Loc::node("relu")).expect("a number");
        }
        graph.add_output("y", x);
        let mut tensor = |rows: i64| {
            let sizes = [rows as usize, sizes[0]];
            if rows % 4 == 0 { choices.hard_tensor(Elem::F32, &sizes) } else { choices.tensor(Elem::F32, &sizes) }
        };
        let calls = rows.into_iter().map(|r| (Bindings::from([(m.clone(), r)]), vec![tensor(r)])).collect();
        models.push(Model::new(&format!("static products {sizes:?}, zero point {zero_point}"), graph, calls, |_| Tolerance::NONE));
    }
    models
}

/// Sums in f32 of products around 100.
fn tolerance_of_sums(elem: Elem) -> Tolerance {
    Tolerance::roundings(elem, 64.0, 100.0)
}

/// Every scheme, group lengths that do not divide k, every kind of left operand, and extreme values.
fn quantized_products() -> Vec<Model> {
    let (rows, symmetric) = (rows(), true);
    let base = Quantized { storage: Elem::I8, symmetric, group: 0, left: Left::Rows { symmetric }, extreme: false, k: 67, n: 33 };
    let mut list = vec![];
    for storage in [Elem::I8, Elem::I4] {
        for (group, k, n) in
            [(0, 67, 33), (0, 1, 1), (0, 130, 65), (32, 33, 7), (32, 131, 31), (64, 150, 17), (128, 131, 3), (128, 128, 32), (32, 61, 131)]
        {
            list.push(Quantized { storage, group, k, n, ..base });
        }
    }
    for storage in [Elem::I8, Elem::U8, Elem::I4, Elem::U4] {
        for (group, symmetric) in [(0, false), (32, false), (0, true)] {
            let left = Left::Rows { symmetric: false };
            list.push(Quantized { storage, symmetric, group, left, k: 61, n: 19, ..base });
            list.push(Quantized { storage, symmetric, group, left, k: 61, n: 19, extreme: true });
        }
        let whole = [Left::Whole { symmetric }, Left::Whole { symmetric: false }];
        let of_floats =
            [Left::Quantized { symmetric: false }, Left::Static { zero_point: 0 }, Left::Static { zero_point: 77 }, Left::Float];
        for left in whole.into_iter().chain(of_floats) {
            list.push(Quantized { storage, left, k: 45, n: 35, ..base });
        }
    }
    let mut models: Vec<Model> = list.into_iter().map(|q| q.model(&rows)).collect();
    for (storage, left) in [(Elem::I8, Left::Rows { symmetric }), (Elem::I4, Left::Rows { symmetric: false })] {
        models.push(Quantized { storage, left, extreme: true, k: 65536, n: 3, ..base }.model(&[1, 2]));
    }
    // Tiles that share what the first one takes out of a panel, all of it at once and block by block.
    for (group, k, n) in [(0, 61, 33), (32, 61, 33), (36, 150, 65), (0, 4500, 3), (32, 2300, 35), (128, 4100, 3)] {
        for symmetric in [true, false] {
            let left = Left::Rows { symmetric };
            models.push(Quantized { storage: Elem::I4, symmetric, group, left, extreme: !symmetric, k, n }.model(&[5, 12, 25, 31, 41]));
        }
    }
    models
}

/// Products that matrix tiles multiply without a break: whole panels, strips of one and of two tiles, weights of several passes.
/// They are too long for an emulated CPU.
fn strips_of_tiles() -> Vec<Model> {
    let mut models = vec![];
    for storage in [Elem::I8, Elem::I4] {
        for (k, n, rows) in [(64, 32, &[5, 16, 17, 32, 33, 48, 49][..]), (192, 96, &[31, 65, 97, 130]), (4096, 320, &[33, 81, 100])] {
            for symmetric in [true, false] {
                let left = Left::Rows { symmetric };
                models.push(Quantized { storage, symmetric, group: 0, left, extreme: !symmetric, k, n }.model(rows));
            }
        }
    }
    models
}

/// Dynamic quantization of rows of odd lengths, hard values among them: the same bits everywhere.
fn quantized_rows() -> Vec<Model> {
    let mut models = vec![];
    for (k, symmetric) in [(1, true), (1, false), (19, true), (19, false), (67, true), (67, false), (129, true), (129, false)] {
        let (mut graph, m) = graph_of_rows();
        let x = graph.add_input("x", Type::new(Elem::F32, Shape(vec![Dim::from(m.clone()), Dim::from(k)])));
        let outputs = graph.add_node(QuantizeRows { symmetric }, &[x], &Loc::node("rows")).expect("rows of a known size");
        for (v, name) in outputs.into_iter().zip(["y", "scale", "zero"]) {
            graph.add_output(name, v);
        }
        let mut choices = Choices::seeded(k as u64);
        let mut tensor = |rows: i64| {
            let sizes = [rows as usize, k as usize];
            if rows % 4 == 0 { choices.hard_tensor(Elem::F32, &sizes) } else { choices.tensor(Elem::F32, &sizes) }
        };
        let calls = rows().into_iter().map(|r| (Bindings::from([(m.clone(), r)]), vec![tensor(r)])).collect();
        models.push(Model::new(&format!("quantize_rows of {k}, symmetric: {symmetric}"), graph, calls, |_| Tolerance::NONE));
    }
    models
}

/// Attention in f32 and of 8 bits: heads that share keys, depths that fill no vector, one block of keys and several.
fn attentions() -> Vec<Model> {
    // A weight of 8 bits may be rounded the other way: a step of the 255 of the largest.
    let rounded = |_| Tolerance { relative: 0.02, absolute: 0.05 };
    let scale = Float::from(0.25);
    let mut models = vec![];
    for (i, (keys, depth, width, causal)) in
        [(1, 1, 1, false), (37, 20, 7, true), (64, 32, 32, false), (301, 17, 40, false), (45, 65, 33, true)].into_iter().enumerate()
    {
        let ops: [Op; 2] =
            [Attention { scale, causal, mask_value: None }.into(), QuantizedAttention { scale, causal, mask_value: None }.into()];
        for (op, eight_bits) in ops.into_iter().zip([false, true]) {
            let (mut graph, m) = graph_of_rows();
            let sizes = [[2, keys, depth], [2, keys, width]];
            let ty =
                |heads: i64, rows: Dim, last: i64| Type::new(Elem::F32, Shape(vec![Dim::from(1), Dim::from(heads), rows, Dim::from(last)]));
            let q = graph.add_input("q", ty(4, Dim::from(m.clone()), depth));
            let [k, v] = [("k", sizes[0]), ("v", sizes[1])].map(|(name, [h, n, d])| graph.add_input(name, ty(h, Dim::from(n), d)));
            let bias = graph.add_input("bias", Type::new(Elem::F32, Shape(vec![Dim::from(keys)])));
            let y = graph.add(op, &[q, k, v, bias], &Loc::node("attention")).expect("it has a type");
            graph.add_output("y", y);
            let mut choices = Choices::seeded(i as u64);
            let mut tensor = |sizes: &[i64]| choices.tensor(Elem::F32, &sizes.iter().map(|&n| n as usize).collect::<Vec<_>>());
            let calls = [1, 2, 5, 12, 13]
                .into_iter()
                .filter(|&rows| !causal || rows <= keys)
                .map(|rows| {
                    let operands = [vec![1, 4, rows, depth], vec![1, 2, keys, depth], vec![1, 2, keys, width], vec![keys]];
                    (Bindings::from([(m.clone(), rows)]), operands.iter().map(|s| tensor(s)).collect())
                })
                .collect();
            let name = format!("attention of {keys} keys, depths {depth} and {width}, causal {causal}, 8 bits {eight_bits}");
            models.push(if eight_bits { Model::new(&name, graph, calls, rounded) } else { Model::new(&name, graph, calls, tolerance) });
        }
    }
    models
}

fn odd_products() -> Vec<Model> {
    let sizes = [(1, 1), (7, 3), (31, 5), (33, 17), (65, 67), (101, 259)];
    [Elem::F32, Elem::I32].into_iter().flat_map(|elem| sizes.map(|(n, k)| products(elem, n, k, &rows()))).collect()
}

#[test]
fn products_of_odd_sizes() {
    run_everywhere(&odd_products(), OptLevel::O3);
}

#[test]
fn quantized_products_of_odd_sizes() {
    run_everywhere(&quantized_products(), OptLevel::O3);
}

#[test]
fn chains_of_static_products() {
    run_everywhere(&static_chains(), OptLevel::O3);
}

#[test]
fn attention_of_odd_sizes() {
    run_everywhere(&attentions(), OptLevel::O3);
}

#[test]
fn rows_are_quantized_to_the_same_bits() {
    run_everywhere(&quantized_rows(), OptLevel::O3);
}

/// The same natively, on every variant that this machine has: the emulator has no AVX-VNNI.
#[test]
fn variants_of_this_machine() {
    let models = [odd_products(), quantized_products(), static_chains(), strips_of_tiles(), quantized_rows(), attentions()];
    let models: Vec<Model> = models.into_iter().flatten().collect();
    for cpu in variants() {
        if !cpu.runs_here() {
            tfc_tests::skip::skipped(format_args!("{} is not run natively, this machine lacks it", cpu.name));
            continue;
        }
        let failures: Vec<String> = models.iter().filter_map(|m| m.run_here(OptLevel::O3, cpu.name).err()).collect();
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

#[test]
fn the_graphs_of_the_filetests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests/native");
    let mut files: Vec<_> = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    let mut models = vec![];
    for path in files {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let file = filetest::open(&std::fs::read_to_string(&path).expect("text")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = file.data().unwrap_or_else(|e| panic!("{name}: {e}"));
        models.push(Model::new(&name, file.graph, vec![data], tolerance));
    }
    run_everywhere(&models, OptLevel::O2);
}
