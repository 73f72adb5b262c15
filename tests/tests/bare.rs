//! CPU variants on emulated CPUs: which one is chosen, that what cannot run is refused and never faults,
//! and that all give what the interpreter gives, without touching what is not theirs. Skipped with a
//! loud line where the emulator is missing. The emulator has no VEX-coded AVX-VNNI: that variant runs
//! natively where the CPU has it.

use std::path::Path;
use std::time::Duration;
use tfc_ir::dim::{Bindings, Dim, Range, Symbol};
use tfc_ir::graph::{Graph, Loc};
use tfc_ir::ops::{Matmul, Op};
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

/// `m` rows times a constant of `k` x `n`, at every given `m`.
fn products(elem: Elem, n: usize, k: usize, rows: &[i64]) -> Model {
    let m = Symbol::new("m");
    let mut graph = Graph::with_symbols([(m.clone(), Range { min: 1, max: 64 })].into_iter().collect());
    let mut choices = Choices::seeded((n * 1000 + k) as u64);
    let x = graph.add_input("x", Type::new(elem, Shape(vec![Dim::from(m.clone()), Dim::from(k as i64)])));
    let w = graph.add_const(choices.tensor(elem, &[k, n]), None);
    let y = graph.add(Op::from(Matmul {}), &[x, w], &Loc::node("product")).expect("it has a type");
    graph.add_output("y", y);
    let call = |&rows: &i64| (Bindings::from([(m.clone(), rows)]), vec![choices.tensor(elem, &[rows as usize, k])]);
    let calls = rows.iter().map(call).collect();
    Model::new(&format!("{elem} product {k} x {n}"), graph, calls, tolerance)
}

#[test]
fn products_of_odd_sizes() {
    let rows: Vec<i64> = (1..=17).collect();
    let mut models = vec![];
    for elem in [Elem::F32, Elem::I32] {
        for (n, k) in [(1, 1), (7, 3), (31, 5), (33, 17), (65, 67), (101, 259)] {
            models.push(products(elem, n, k, &rows));
        }
    }
    run_everywhere(&models, OptLevel::O3);
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
