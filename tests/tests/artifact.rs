//! Bundles from the outside: C, C++ and Rust compilers take what they are given, programs link and run,
//! and results are those of the interpreter.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use target_lexicon::Triple;
use tempfile::TempDir;
use tfc::artifact::interface::Interface;
use tfc::artifact::{self, ArtifactError, Kind, Options, WeightsMode, Written};
use tfc::emit::clif::target::Cpu;
use tfc::emit::names::c_identifiers;
use tfc::kernel::Program;
use tfc_ir::dim::{Dim, Symbol};
use tfc_ir::graph::{Graph, Loc};
use tfc_ir::ops;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape, Type};
use tfc_ir::verify::verify;
use tfc_passes::OptLevel;
use tfc_runtime::manifest::{Manifest, Symbol as FreeDim, TensorInfo};
use tfc_runtime::{LoadOptions, Model, Session};
use tfc_tests::models::relative_error;
use tfc_tests::native;

const BATCH: usize = 5;

/// A small model with weights, several element types, names that are no identifiers, and an index that
/// can be out of range.
fn mixed(name: &str, width: usize) -> Graph {
    let mut g = Graph::new(name);
    let l = Loc::default();
    let matrix = |elem| Type::new(elem, Shape(vec![Dim::symbol("batch"), Dim::from(width)]));
    let x = g.add_input("x.in", matrix(Elem::F32));
    let ids = g.add_input("ids", Type::new(Elem::I64, Shape(vec![Dim::symbol("batch")])));
    let h = g.add_input("half", matrix(Elem::F16));
    let c = g.add_const(Tensor::of(&[width], (0..width).map(|i| i as f32 * 0.125 - 1.0).collect()), None);
    let table = g.add_const(Tensor::of(&[10, 4], (0..40).map(|i| i as f32).collect()), None);
    let y = g.add(ops::Add {}, &[x, c], &l).unwrap();
    let z = g.add(ops::Softmax { axis: 1, log: false }, &[y], &l).unwrap();
    let n = g.add(ops::LayerNorm { axes: 1, epsilon: 1e-5.into() }, &[y, c, c], &l).unwrap();
    let rows = g.add(ops::Gather { axis: 0 }, &[table, ids], &l).unwrap();
    let twice = g.add(ops::Add {}, &[h, h], &l).unwrap();
    let less = g.add(ops::Lt {}, &[x, c], &l).unwrap();
    for (output, value) in [("z", z), ("int", n), ("rows", rows), ("twice", twice), ("less", less)] {
        g.add_output(output, value);
    }
    g
}

/// A model without inputs, dimensions or weights file.
fn constant(name: &str) -> Graph {
    let mut g = Graph::new(name);
    let c = g.add_const(Tensor::of(&[3], vec![1.0f32, 2.0, 3.0]), None);
    let y = g.add(ops::Exp {}, &[c], &Loc::default()).unwrap();
    g.add_output("y", y);
    g
}

fn inputs(width: usize) -> Vec<Tensor> {
    let n = BATCH * width;
    let halves = (0..n).flat_map(|i| (0x3c00u16 + (i % 16) as u16).to_le_bytes()).collect::<Vec<u8>>();
    vec![
        Tensor::of(&[BATCH, width], (0..n).map(|i| ((i * 7 % 13) as f32 - 6.0) * 0.25).collect()),
        Tensor::of(&[BATCH], (0..BATCH as i64).map(|i| i * 3 % 10).collect()),
        Tensor::new(Elem::F16, vec![BATCH, width], halves.into()).unwrap(),
    ]
}

fn interpreted(g: &Graph, width: usize) -> Vec<Tensor> {
    g.evaluate(&inputs(width), &[(Symbol::new("batch"), BATCH as i64)].into()).unwrap()
}

fn program(g: &Graph) -> Program {
    // What depends on no input would be computed at compile time.
    let g = native::optimize(g, OptLevel::O1);
    let verified = verify(&g).unwrap_or_else(|e| panic!("{}", e[0]));
    tfc::schedule::schedule(&verified).unwrap_or_else(|e| panic!("{e}\n{g}"))
}

struct Emission<'a> {
    name: &'a str,
    kinds: &'a [Kind],
    weights: WeightsMode,
    target: Triple,
}

impl Emission<'_> {
    fn bundle(name: &str, weights: WeightsMode) -> Emission<'_> {
        Emission { name, kinds: &[Kind::Bundle], weights, target: Triple::host() }
    }

    fn write(&self, program: &Program, out: &Path) -> Result<Written, ArtifactError> {
        let kinds: BTreeSet<Kind> = self.kinds.iter().copied().collect();
        let cpus = Cpu::variants(&self.target);
        artifact::write(
            program,
            &Options {
                name: self.name,
                kinds: &kinds,
                out,
                weights: self.weights,
                target: &self.target,
                cpus: &cpus,
                options: &["-O1".into()],
                model_hash: 0x0123_4567_89ab_cdef,
                force: false,
                extra: &[("note.txt", b"more")],
            },
        )
    }
}

fn write_bundle(g: &Graph, name: &str, weights: WeightsMode, folder: &Path) -> PathBuf {
    let out = folder.join(name);
    let written = Emission::bundle(name, weights).write(&program(g), &out).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(written.paths, std::slice::from_ref(&out));
    out
}

/// Whether a tool is there. Tests say what they leave out.
fn has(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    if !found {
        tfc_tests::skip::skipped(format_args!("there is no `{tool}`"));
    }
    found
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    output
}

fn cc<S: AsRef<OsStr>>(args: &[S], folder: &Path) {
    run(Command::new("cc").args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]).args(args).current_dir(folder));
}

/// A C function that runs a model of [`mixed`] on [`inputs`] and writes the outputs to stdout.
fn c_run(name: &str, width: usize) -> String {
    RUN_C.replace("NAME", name).replace("WIDTH", &width.to_string()).replace("BATCH", &BATCH.to_string())
}

const RUN_C: &str = r#"
static uint64_t NAME_arena_memory[1 << 14];
static float NAME_x[BATCH * WIDTH], NAME_z[BATCH * WIDTH], NAME_n[BATCH * WIDTH], NAME_rows[BATCH * 4];
static uint16_t NAME_h[BATCH * WIDTH], NAME_twice[BATCH * WIDTH];
static uint8_t NAME_less[BATCH * WIDTH];
static int64_t NAME_ids[BATCH];

static void *NAME_arena(void) {
    return (void *)(((uintptr_t)NAME_arena_memory + 63) / 64 * 64);
}

static void NAME_fill(void) {
    for (int i = 0; i < BATCH * WIDTH; i++) {
        NAME_x[i] = ((float)(i * 7 % 13) - 6.0f) * 0.25f;
        NAME_h[i] = (uint16_t)(0x3c00 + i % 16);
    }
    for (int i = 0; i < BATCH; i++) NAME_ids[i] = i * 3 % 10;
}

static int NAME_try(const NAME_context *ctx, void *arena) {
    NAME_dims dims = {BATCH};
    NAME_inputs in = {NAME_x, NAME_ids, NAME_h};
    NAME_outputs out = {NAME_z, NAME_n, NAME_rows, NAME_twice, NAME_less};
    return NAME_run(ctx, &dims, &in, &out, arena);
}

static void NAME_write(void) {
    fwrite(NAME_z, sizeof NAME_z, 1, stdout);
    fwrite(NAME_n, sizeof NAME_n, 1, stdout);
    fwrite(NAME_rows, sizeof NAME_rows, 1, stdout);
    fwrite(NAME_twice, sizeof NAME_twice, 1, stdout);
    fwrite(NAME_less, sizeof NAME_less, 1, stdout);
}
"#;

/// Splits what a program wrote into tensors like `want` and compares.
fn compare(bytes: &[u8], want: &[Tensor]) {
    let mut at = 0;
    for w in want {
        let end = at + w.bytes().len();
        let got = Tensor::new(w.elem(), w.sizes().to_vec(), bytes[at..end].to_vec().into()).unwrap();
        let error = relative_error(&got, w);
        assert!(error < if w.elem() == Elem::F32 { 1e-5 } else { 1e-12 }, "{error}: {got:?} is not {w:?}");
        at = end;
    }
    assert_eq!(at, bytes.len());
}

#[test]
fn headers_are_c99_and_cxx() {
    if !has("cc") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut include = String::new();
    for (name, graph, weights) in
        [("mixed", mixed("mixed", 24), WeightsMode::External), ("constant", constant("constant"), WeightsMode::Auto)]
    {
        let bundle = write_bundle(&graph, name, weights, folder.path());
        let header = fs::read_to_string(bundle.join(format!("{name}.h"))).unwrap();
        for line in header.lines().filter(|l| l.starts_with("#include")) {
            assert!(["#include <stddef.h>", "#include <stdint.h>"].contains(&line), "{line}");
        }
        include += &format!("#include \"{name}/{name}.h\"\n#include \"{name}/{name}.h\"\n");
    }
    let source = format!(
        "{include}int main(void) {{ mixed_dims d; d.batch = mixed_STATUS; return (int)d.batch + (int)sizeof(constant_outputs); }}\n"
    )
    .replace("mixed_STATUS", "mixed_INDEX_RANGE");
    fs::write(folder.path().join("a.c"), &source).unwrap();
    cc(&["-c", "a.c", "-o", "a.o"], folder.path());
    if has("c++") {
        fs::write(folder.path().join("a.cc"), &source).unwrap();
        let args = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-c", "a.cc", "-o", "b.o"];
        run(Command::new("c++").args(args).current_dir(folder.path()));
    }
}

#[test]
fn two_models_in_one_program_allocate_nothing() {
    if !has("cc") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (a, b) = (mixed("a", 24), mixed("b", 7));
    write_bundle(&a, "a", WeightsMode::Embedded, folder.path());
    write_bundle(&b, "b", WeightsMode::Embedded, folder.path());
    let source = format!(
        "#include \"a/a.h\"\n#include \"b/b.h\"\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n{}{}{}",
        c_run("a", 24),
        c_run("b", 7),
        r#"
/* An allocator that refuses to work while a model runs. */
static unsigned char heap[1 << 22];
static size_t used;
static int running;
void *malloc(size_t n) {
    if (running) abort();
    used = (used + 15) / 16 * 16;
    if (n > sizeof heap - used) return NULL;
    used += n;
    return heap + used - n;
}
void *calloc(size_t n, size_t m) { return malloc(n * m); }
void *realloc(void *p, size_t n) {
    void *q = malloc(n);
    if (p != NULL && q != NULL) memcpy(q, p, n);
    return q;
}
void free(void *p) {
    if (running && p != NULL) abort();
}

int main(void) {
    a_context ca;
    b_context cb;
    a_fill();
    b_fill();
    running = 1;
    int status = a_init(&ca, NULL, 0);
    if (status == 0) status = b_init(&cb, NULL, 0);
    if (status == 0) status = a_try(&ca, a_arena());
    if (status == 0) status = b_try(&cb, b_arena());
    running = 0;
    a_write();
    b_write();
    fprintf(stderr, "%s", a_status_string(status));
    return status;
}
"#
    );
    fs::write(folder.path().join("main.c"), source).unwrap();
    // One as an object, the other from its library: that needs an index of symbols.
    cc(&["-O1", "main.c", "a/a.o", "-Lb", "-lb", "-o", "main"], folder.path());
    let output = run(&mut Command::new(folder.path().join("main")));
    let want = [interpreted(&a, 24), interpreted(&b, 7)].concat();
    compare(&output.stdout, &want);
}

#[test]
fn threads_share_a_context() {
    if !has("cc") {
        return;
    }
    let folder = TempDir::new().unwrap();
    write_bundle(&mixed("m", 24), "m", WeightsMode::Embedded, folder.path());
    let source = r#"
#include "m/m.h"
#include <pthread.h>
#include <string.h>
#define N 200
static m_context ctx;
struct job {
    float x[N * 24], z[N * 24], n[N * 24], rows[N * 4];
    uint16_t h[N * 24], twice[N * 24];
    int64_t ids[N];
    uint8_t less[N * 24];
    int status;
    uint64_t arena[1 << 17];
};
static struct job jobs[2];

static void *work(void *p) {
    struct job *j = p;
    void *arena = (void *)(((uintptr_t)j->arena + 63) / 64 * 64);
    m_dims dims = {N};
    m_inputs in = {j->x, j->ids, j->h};
    m_outputs out = {j->z, j->n, j->rows, j->twice, j->less};
    if (m_arena_bytes(&dims) > sizeof j->arena - 64) j->status = 100;
    for (int i = 0; i < 50 && j->status == 0; i++) j->status = m_run(&ctx, &dims, &in, &out, arena);
    return NULL;
}

int main(void) {
    pthread_t threads[2];
    if (m_init(&ctx, NULL, 0) != 0) return 1;
    for (int t = 0; t < 2; t++) {
        for (int i = 0; i < N * 24; i++) {
            jobs[t].x[i] = (float)(i % 31) - 10.0f;
            jobs[t].h[i] = (uint16_t)(0x3c00 + i % 64);
        }
        for (int i = 0; i < N; i++) jobs[t].ids[i] = i % 10;
        if (pthread_create(&threads[t], NULL, work, &jobs[t]) != 0) return 2;
    }
    for (int t = 0; t < 2; t++) pthread_join(threads[t], NULL);
    if (jobs[0].status != 0 || jobs[1].status != 0) return 3;
    if (memcmp(jobs[0].z, jobs[1].z, sizeof jobs[0].z) != 0 || jobs[0].z[0] == 0.0f) return 4;
    if (memcmp(jobs[0].n, jobs[1].n, sizeof jobs[0].n) != 0) return 5;
    if (memcmp(jobs[0].rows, jobs[1].rows, sizeof jobs[0].rows) != 0) return 6;
    return 0;
}
"#;
    fs::write(folder.path().join("main.c"), source).unwrap();
    cc(&["-O1", "main.c", "m/m.o", "-pthread", "-o", "main"], folder.path());
    run(&mut Command::new(folder.path().join("main")));
}

#[test]
fn misuse_has_a_status() {
    if !has("cc") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let mut g = mixed("m", 24);
    g.symbols.get_mut(&Symbol::new("batch")).unwrap().max = 64;
    write_bundle(&g, "m", WeightsMode::External, folder.path());
    let main = r#"
static uint64_t file[1 << 14];
#define EXPECT(call, wanted) \
    do { \
        int got = (call); \
        if (got != (wanted)) { \
            printf("line %d: %s is %d (%s), not " #wanted "\n", __LINE__, #call, got, m_status_string(got)); \
            failed = 1; \
        } \
    } while (0)

int main(void) {
    int failed = 0;
    char *weights = (char *)(((uintptr_t)file + 63) / 64 * 64);
    FILE *f = fopen("m/" m_WEIGHTS_FILE, "rb");
    if (f == NULL || fread(weights, 1, m_WEIGHTS_BYTES, f) != m_WEIGHTS_BYTES || fgetc(f) != EOF) return 2;
    fclose(f);
    size_t bytes = m_WEIGHTS_BYTES;
    m_context ctx, empty;
    memset(&empty, 0, sizeof empty);
    m_fill();

    EXPECT(m_init(NULL, weights, bytes), m_NULL_POINTER);
    EXPECT(m_init(&ctx, NULL, 0), m_WEIGHTS_MISSING);
    EXPECT(m_init(&ctx, weights, bytes - 1), m_WEIGHTS_MISSING);
    EXPECT(m_init(&ctx, weights, 100), m_WEIGHTS_MISSING);
    EXPECT(m_init(&ctx, weights + 8, bytes), m_WEIGHTS_ALIGNMENT);
    weights[0] ^= 1;
    EXPECT(m_init(&ctx, weights, bytes), m_WEIGHTS_MAGIC);
    weights[0] ^= 1;
    weights[4] ^= 1;
    EXPECT(m_init(&ctx, weights, bytes), m_WEIGHTS_VERSION);
    weights[4] ^= 1;
    weights[24] ^= 1;
    EXPECT(m_init(&ctx, weights, bytes), m_WEIGHTS_MISMATCH);
    weights[24] ^= 1;
    EXPECT(m_init_cpu(&ctx, weights, bytes, "pdp11"), m_CPU_UNKNOWN);
    EXPECT(m_init_cpu(&ctx, weights, bytes, ""), m_CPU_UNKNOWN);
    EXPECT(m_cpu_variant(&ctx) == NULL, 1);
    EXPECT(m_try(&ctx, m_arena()), m_CONTEXT);
    EXPECT(m_init_cpu(&ctx, weights, bytes, "baseline"), m_OK);
    EXPECT(strcmp(m_cpu_variant(&ctx), "baseline"), 0);
    EXPECT(m_cpu_variant(NULL) == NULL, 1);

    EXPECT(m_try(NULL, m_arena()), m_NULL_POINTER);
    EXPECT(m_try(&empty, m_arena()), m_CONTEXT);
    EXPECT(m_try(&ctx, NULL), m_ARENA);
    EXPECT(m_try(&ctx, (char *)m_arena() + 8), m_ARENA);

    size_t sizes[m_OUTPUTS];
    m_inputs in = {m_x, m_ids, m_h};
    m_outputs out = {m_z, m_n, m_rows, m_twice, m_less};
    m_dims dims = {BATCH};
    EXPECT(m_run(&ctx, NULL, &in, &out, m_arena()), m_NULL_POINTER);
    EXPECT(m_run(&ctx, &dims, NULL, &out, m_arena()), m_NULL_POINTER);
    EXPECT(m_run(&ctx, &dims, &in, NULL, m_arena()), m_NULL_POINTER);
    EXPECT(m_arena_bytes(NULL) == 0, 1);
    EXPECT(m_output_bytes(NULL, sizes), m_NULL_POINTER);
    EXPECT(m_output_bytes(&dims, NULL), m_NULL_POINTER);
    EXPECT(m_output_bytes(&dims, sizes), m_OK);
    EXPECT(sizes[0] == sizeof m_z && sizes[2] == sizeof m_rows && sizes[3] == sizeof m_twice && sizes[4] == sizeof m_less, 1);
    in.ids = NULL;
    EXPECT(m_run(&ctx, &dims, &in, &out, m_arena()), m_NULL_POINTER);
    in.ids = m_ids;
    out.less = NULL;
    EXPECT(m_run(&ctx, &dims, &in, &out, m_arena()), m_NULL_POINTER);
    out.less = m_less;
    const int64_t bad[] = {-1, 65, INT64_MAX, INT64_MIN};
    for (int i = 0; i < 4; i++) {
        dims.batch = bad[i];
        EXPECT(m_run(&ctx, &dims, &in, &out, m_arena()), m_DIMENSION_RANGE);
        EXPECT(m_output_bytes(&dims, sizes), m_DIMENSION_RANGE);
        EXPECT(m_arena_bytes(&dims) == 0, 1);
    }
    m_ids[1] = 10;
    EXPECT(m_try(&ctx, m_arena()), m_INDEX_RANGE);
    m_ids[1] = -11;
    EXPECT(m_try(&ctx, m_arena()), m_INDEX_RANGE);
    m_ids[1] = 3;
    EXPECT(m_try(&ctx, m_arena()), m_OK);
    EXPECT(strcmp(m_status_string(m_OK), "success"), 0);
    EXPECT(strcmp(m_status_string(-1), "unknown status"), 0);
    EXPECT(strcmp(m_status_string(1 << 30), "unknown status"), 0);
    m_write();
    return failed;
}
"#;
    let source = format!(
        "#include \"m/m.h\"\n#include <stdio.h>\n#include <string.h>\n{}{}",
        c_run("m", 24),
        main.replace("BATCH", &BATCH.to_string())
    );
    fs::write(folder.path().join("main.c"), source).unwrap();
    cc(&["-O1", "main.c", "m/m.o", "-o", "main"], folder.path());
    let output = run(Command::new(folder.path().join("main")).current_dir(folder.path()));
    compare(&output.stdout, &interpreted(&g, 24));
}

#[test]
fn all_symbols_begin_with_the_name() {
    use object::{Object, ObjectSymbol, SymbolKind};
    let folder = TempDir::new().unwrap();
    let bundle = write_bundle(&mixed("m", 24), "some_model", WeightsMode::Embedded, folder.path());
    let bytes = fs::read(bundle.join("some_model.o")).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let mut exported = BTreeSet::new();
    for s in file.symbols().filter(|s| !matches!(s.kind(), SymbolKind::Section | SymbolKind::File)) {
        let name = s.name().unwrap();
        if s.is_undefined() {
            assert!(["", "memcpy", "memset", "memmove"].contains(&name), "{name}");
            continue;
        }
        assert!(name.starts_with("some_model_"), "{name}");
        if s.is_global() {
            exported.insert(name.strip_prefix("some_model_").unwrap());
        }
    }
    let abi =
        ["arena_bytes", "build_info", "cpu_variant", "entry", "init", "init_cpu", "output_bytes", "run", "run_parallel", "status_string"];
    assert_eq!(exported, abi.into());
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("some_model.manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["name"], "some_model");
    assert_eq!(manifest["model_hash"], "00000000000000000123456789abcdef");
    assert_eq!(manifest["inputs"][0]["name"], "x.in");
    assert_eq!(manifest["inputs"][0]["c_name"], "x_in");
    assert_eq!(manifest["inputs"][0]["shape"], serde_json::json!(["batch", 24]));
    assert_eq!(manifest["outputs"][1]["c_name"], "int_");
    assert_eq!(manifest["weights"]["embedded"], true);
    assert!(manifest["undefined_symbols"].is_array());
}

fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut out: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| {
            let e = e.unwrap();
            (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())
        })
        .collect();
    out.sort();
    out
}

#[test]
fn equal_compilations_give_equal_bytes() {
    let folder = TempDir::new().unwrap();
    let mut emitted = vec![];
    for place in ["first", "second/deeper"] {
        let parent = folder.path().join(place);
        fs::create_dir_all(&parent).unwrap();
        let emission = Emission { kinds: &[Kind::Bundle, Kind::Asm, Kind::Clif], ..Emission::bundle("m", WeightsMode::External) };
        emission.write(&program(&mixed("m", 24)), &parent.join("m")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(fs::read_dir(&parent).unwrap().count(), 1, "something is left beside the bundle");
        emitted.push(contents(&parent.join("m")));
    }
    for (a, b) in emitted[0].iter().zip(&emitted[1]) {
        assert!(a == b, "{} differs from {}", a.0, b.0);
    }
    let names: Vec<&str> = emitted[0].iter().map(|(n, _)| n.as_str()).collect();
    let mut expected = vec![
        "Makefile",
        "example_main.c",
        "libm.a",
        "m-config.cmake",
        "m.clif",
        "m.h",
        "m.manifest.json",
        "m.note.txt",
        "m.o",
        "m.pc",
        "m.rs",
        "m.s",
        "m.weights.bin",
    ];
    if has("cc") {
        expected.insert(12, "m.so");
    }
    assert_eq!(names, expected);
    let text = |name: &str| String::from_utf8(emitted[0].iter().find(|(n, _)| n == name).unwrap().1.clone()).unwrap();
    for name in ["m.clif", "m.s"] {
        let listing = text(name);
        for wanted in ["softmax", "avx2, avxvnni, avx512vnni, amx", "m_run_parallel"] {
            assert!(listing.contains(wanted) || !cfg!(target_arch = "x86_64"), "{name} has no {wanted}:\n{listing}");
        }
    }
    if cfg!(target_arch = "x86_64") && has("cc") {
        run(Command::new("cc").args(["-c", "-o", "listing.o", "second/deeper/m/m.s"]).current_dir(folder.path()));
    }
    let here = folder.path().to_string_lossy().into_owned();
    for (name, bytes) in &emitted[0] {
        assert!(!bytes.windows(here.len()).any(|w| w == here.as_bytes()), "{name} has a path of this machine");
    }
}

/// Where two models are linked into one application, from a folder whose name has a space.
#[test]
fn bundles_are_packages() {
    let folder = TempDir::new().unwrap();
    let app = folder.path().join("an app");
    fs::create_dir(&app).unwrap();
    let bundles = [("a", WeightsMode::External), ("b", WeightsMode::Embedded)].map(|(n, w)| write_bundle(&mixed(n, 24), n, w, &app));
    let main = "#include \"a.h\"\n#include \"b.h\"\n#include <stdio.h>\nint main(void) {\n    puts(a_status_string(0));\n    \
                b_context ctx;\n    return b_init(&ctx, NULL, 0);\n}\n";
    fs::write(app.join("main.c"), main).unwrap();
    if has("cc") && has("pkg-config") {
        let path = std::env::join_paths(&bundles).unwrap();
        let ask = |args: &[&str]| {
            let output = run(Command::new("pkg-config").args(args).env("PKG_CONFIG_PATH", &path));
            String::from_utf8(output.stdout).unwrap().trim().to_string()
        };
        let flags = ask(&["--cflags", "--libs", "a", "b"]);
        run(Command::new("sh").args(["-c", &format!("cc -std=c99 -Wall -Werror -o with_pkg_config main.c {flags}")]).current_dir(&app));
        run(&mut Command::new(app.join("with_pkg_config")));
        let weights = ask(&["--variable=weights", "a"]).replace('\\', "");
        assert!(Path::new(&weights).is_file(), "{weights}");
        assert_eq!(ask(&["--variable=weights", "b"]), "");
    }
    if has("cc") && has("cmake") {
        let lists = "cmake_minimum_required(VERSION 3.10)\nproject(app C)\nadd_executable(app main.c)\n\
            find_package(a CONFIG REQUIRED PATHS ${CMAKE_SOURCE_DIR}/a NO_DEFAULT_PATH)\n\
            find_package(b CONFIG REQUIRED PATHS ${CMAKE_SOURCE_DIR}/b NO_DEFAULT_PATH)\n\
            target_link_libraries(app PRIVATE a::a b::b)\n\
            if(NOT EXISTS ${a_WEIGHTS} OR DEFINED b_WEIGHTS)\n  message(FATAL_ERROR weights)\nendif()\n";
        fs::write(app.join("CMakeLists.txt"), lists).unwrap();
        run(Command::new("cmake").args(["-S", ".", "-B", "build"]).current_dir(&app));
        run(Command::new("cmake").args(["--build", "build"]).current_dir(&app));
        run(&mut Command::new(app.join("build/app")));
    }
    // What was written is known to be a bundle.
    write_bundle(&mixed("a", 24), "a", WeightsMode::External, &app);
}

#[test]
fn an_example_builds_and_runs_as_it_is() {
    if !has("cc") || !has("make") {
        return;
    }
    let folder = TempDir::new().unwrap();
    for (name, graph, weights) in [
        ("mixed", mixed("mixed", 24), WeightsMode::External),
        ("small", mixed("small", 3), WeightsMode::Embedded),
        ("constant", constant("constant"), WeightsMode::Auto),
    ] {
        let bundle = write_bundle(&graph, name, weights, folder.path());
        run(Command::new("make").current_dir(&bundle).env_remove("CFLAGS").env_remove("CC"));
        let output = run(Command::new(bundle.join("example_main")).args(["--iters", "1"]).env_remove("TFC_CPU").current_dir(folder.path()));
        let stdout = String::from_utf8(output.stdout).unwrap();
        let wanted = if name == "constant" { "y: f32[3]: 2.7182" } else { "rows: f32[1, 4]: 4 5 6 7\n" };
        assert!(stdout.contains(wanted), "{stdout}");
        if name == "constant" {
            continue;
        }
        let output = run(Command::new(bundle.join("example_main")).arg("batch=3").env("TFC_CPU", "baseline"));
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains("rows: f32[3, 4]: 4 5 6 7 4 5 6 7 ...\n") && stdout.contains("cpu baseline,"), "{stdout}");
        let output = Command::new(bundle.join("example_main")).env("TFC_CPU", "z80").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no CPU variant of this name"));
        let output = Command::new(bundle.join("example_main")).arg("batch=-1").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        // It can be made again over what was built.
        write_bundle(&graph, name, weights, folder.path());
    }
}

#[test]
fn loaded_models_give_what_the_interpreter_gives() {
    if !has("cc") {
        return;
    }
    let folder = TempDir::new().unwrap();
    for (name, weights) in [("inside", WeightsMode::Embedded), ("beside", WeightsMode::External)] {
        let g = mixed(name, 24);
        let bundle = write_bundle(&g, name, weights, folder.path());
        for cpu in [None, Some("baseline".to_string())] {
            let options = LoadOptions { cpu, ..LoadOptions::default() };
            let model = Model::load_with(&bundle, &options).unwrap_or_else(|e| panic!("{e}"));
            model.verify_weights().unwrap();
            assert_eq!(model.manifest().weights.as_ref().unwrap().embedded, weights == WeightsMode::Embedded);
            let mut session = Session::new(Arc::new(model), 1).unwrap();
            for (got, want) in native::run(&mut session, &g, &inputs(24)).iter().zip(interpreted(&g, 24)) {
                assert!(relative_error(got, &want) < 1e-5, "{got:?} is not {want:?}");
            }
        }
    }
}

#[test]
fn single_files_go_where_they_are_wanted() {
    if !has("cc") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let (g, at) = (mixed("m", 24), |f: &str| folder.path().join(f));
    let p = program(&g);
    let emit = |kinds: &[Kind], weights, out: &str| {
        Emission { kinds, ..Emission::bundle("m", weights) }.write(&p, &at(out)).unwrap_or_else(|e| panic!("{e}")).paths
    };
    assert_eq!(emit(&[Kind::Obj], WeightsMode::External, "x.o"), [at("x.o"), at("x.h"), at("x.weights.bin")]);
    assert_eq!(emit(&[Kind::Shared], WeightsMode::External, "y.so"), [at("y.so"), at("y.h"), at("y.weights.bin")]);
    assert_eq!(emit(&[Kind::Exe], WeightsMode::Auto, "prog"), [at("prog")]);
    assert_eq!(emit(&[Kind::Lib, Kind::Asm], WeightsMode::Auto, "both"), [at("both.a"), at("both.s"), at("both.h")]);
    assert_eq!(contents(folder.path()).len(), 10);
    let stdout = run(Command::new(at("prog")).arg("batch=2")).stdout;
    assert!(String::from_utf8_lossy(&stdout).contains("rows: f32[2, 4]: 4 5 6 7 4 5 6 7\n"));
    let model = Model::load_with(at("y.so"), &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut session = Session::new(Arc::new(model), 1).unwrap();
    let got = native::run(&mut session, &g, &inputs(24));
    assert!(relative_error(&got[0], &interpreted(&g, 24)[0]) < 1e-5);
}

#[test]
fn other_peoples_folders_stay() {
    let folder = TempDir::new().unwrap();
    let p = program(&constant("m"));
    let out = folder.path().join("m");
    let write = || Emission::bundle("m", WeightsMode::Auto).write(&p, &out);
    let refused = |why: &str| match write() {
        Err(e @ ArtifactError::Occupied { .. }) => assert!(e.to_string().contains(why), "{e}"),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("it was replaced"),
    };
    fs::write(&out, "a file").unwrap();
    refused("it is a file");
    fs::remove_file(&out).unwrap();
    fs::create_dir(&out).unwrap();
    write().unwrap();
    write().unwrap();
    fs::write(out.join("my_main.c"), "mine").unwrap();
    refused("`my_main.c`");
    fs::remove_file(out.join("m.manifest.json")).unwrap();
    refused("`NAME.manifest.json`");
    assert_eq!(fs::read_to_string(out.join("my_main.c")).unwrap(), "mine");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let nowhere = Emission::bundle("m", WeightsMode::Auto).write(&p, &folder.path().join("no/such/m"));
    assert!(matches!(nowhere, Err(ArtifactError::Io { .. })));
}

#[test]
fn rust_modules_compile_without_warnings_and_run() {
    if !has("rustc") || !has("cc") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let g = mixed("m", 24);
    write_bundle(&g, "m", WeightsMode::External, folder.path());
    write_bundle(&constant("c"), "c", WeightsMode::Auto, folder.path());
    let source = r#"#![deny(warnings)]
mod c {
    include!("c/c.rs");
}
#[path = "m/m.rs"]
mod m;
use std::io::Write;

const N: usize = 5 * 24;

fn main() {
    let file = std::fs::read("m/m.weights.bin").unwrap();
    let mut memory = vec![0u8; file.len() + m::ALIGN];
    let skip = memory.as_ptr().align_offset(m::ALIGN);
    memory[skip..skip + file.len()].copy_from_slice(&file);
    let model = m::Model::new(&memory[skip..skip + file.len()]).unwrap();
    let dims = m::Dims { batch: 5 };
    let mut arena = m::Arena::new(&dims).unwrap();
    let x: Vec<f32> = (0..N).map(|i| ((i * 7 % 13) as f32 - 6.0) * 0.25).collect();
    let ids: Vec<i64> = (0..5).map(|i| i * 3 % 10).collect();
    let half: Vec<u16> = (0..N).map(|i| 0x3c00 + (i % 16) as u16).collect();
    let (mut z, mut n, mut rows, mut twice, mut less) = (vec![0.0; N], vec![0.0; N], vec![0.0; 20], vec![0; N], vec![0; N]);
    let inputs = m::Inputs { x_in: &x, ids: &ids, half: &half };
    let mut outputs = m::Outputs { z: &mut z, int_: &mut n, rows: &mut rows, twice: &mut twice, less: &mut less };
    model.run(&dims, &inputs, &mut outputs, &mut arena).unwrap();
    let cut = m::Inputs { x_in: &x[1..], ids: &ids, half: &half };
    let error = model.run(&dims, &cut, &mut outputs, &mut arena).unwrap_err();
    assert_eq!(error, m::Error::Length { what: "x.in", expected: N, actual: N - 1 });
    let error = m::Arena::new(&m::Dims { batch: -1 }).err().unwrap();
    assert!(error.to_string().contains("range"), "{error}");
    assert!(!model.cpu_variant().is_empty() && m::build_info().starts_with("tfc "));
    assert!(m::Model::new(&[]).is_err());
    let mut out = std::io::stdout();
    for f in [&z, &n, &rows] {
        for x in f.iter() {
            out.write_all(&x.to_le_bytes()).unwrap();
        }
    }
    for x in &twice {
        out.write_all(&x.to_le_bytes()).unwrap();
    }
    out.write_all(&less).unwrap();

    let mut y = [0.0; 3];
    let dims = c::Dims {};
    let mut arena = c::Arena::new(&dims).unwrap();
    c::Model::new().unwrap().run(&dims, &c::Inputs {}, &mut c::Outputs { y: &mut y }, &mut arena).unwrap();
    assert!((y[1] - 2f32.exp()).abs() < 1e-5);
}
"#;
    fs::write(folder.path().join("main.rs"), source).unwrap();
    for edition in ["2021", "2024"] {
        let args = ["-C", "link-arg=m/m.o", "-C", "link-arg=c/libc.a", "-C", "opt-level=1", "main.rs", "-o", "main", "--edition", edition];
        run(Command::new("rustc").args(args).current_dir(folder.path()));
        let output = run(Command::new(folder.path().join("main")).current_dir(folder.path()));
        compare(&output.stdout, &interpreted(&g, 24));
    }
}

#[test]
fn bundles_for_other_machines() {
    let target: Triple = "aarch64-unknown-linux-gnu".parse().unwrap();
    if target.architecture == Triple::host().architecture {
        tfc_tests::skip::skipped("this is the other machine");
        return;
    }
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("m");
    let emission = Emission { kinds: &[Kind::Bundle, Kind::Asm], target: target.clone(), ..Emission::bundle("m", WeightsMode::External) };
    let written = emission.write(&program(&mixed("m", 24)), &out).unwrap_or_else(|e| panic!("{e}"));
    let listing = fs::read_to_string(out.join("m.s")).unwrap();
    assert!(listing.contains("m_run_parallel:") && listing.contains("ret"), "{listing}");
    if !has("aarch64-linux-gnu-gcc") {
        assert!(written.notes[0].contains("aarch64-linux-gnu-gcc"));
        return;
    }
    assert!(out.join("m.so").exists());
    if has("make") {
        run(Command::new("make").current_dir(&out).env_remove("CFLAGS").env_remove("CC"));
        if has("qemu-aarch64") {
            let output = run(Command::new("qemu-aarch64").args(["-L", "/usr/aarch64-linux-gnu"]).arg(out.join("example_main")));
            assert!(String::from_utf8_lossy(&output.stdout).contains("rows: f32[1, 4]: 4 5 6 7\n"));
        }
    }
}

/// The standards that a compiler knows of these.
fn standards<'a>(compiler: &str, language: &str, names: &[&'a str]) -> Vec<&'a str> {
    let knows = |name: &&&str| {
        let args = [&format!("-std={name}"), "-x", language, "-fsyntax-only", "/dev/null"];
        Command::new(compiler).args(args).output().is_ok_and(|o| o.status.success())
    };
    names.iter().filter(knows).copied().collect()
}

const C_STANDARDS: [&str; 8] = ["c99", "c11", "c17", "c2x", "c23", "gnu99", "gnu17", "gnu2x"];
const CXX_STANDARDS: [&str; 8] = ["c++11", "c++14", "c++17", "c++20", "c++23", "gnu++11", "gnu++20", "gnu++23"];

/// Headers of C11 to C23. `<tgmath.h>` makes macros of the names of functions, which members may have: they take arguments.
const C_HEADERS: [&str; 29] = [
    "assert",
    "complex",
    "ctype",
    "errno",
    "fenv",
    "float",
    "inttypes",
    "iso646",
    "limits",
    "locale",
    "math",
    "setjmp",
    "signal",
    "stdalign",
    "stdarg",
    "stdatomic",
    "stdbit",
    "stdbool",
    "stdckdint",
    "stddef",
    "stdint",
    "stdio",
    "stdlib",
    "stdnoreturn",
    "string",
    "threads",
    "time",
    "uchar",
    "wchar",
];

/// Those that C++ has, without deprecated ones.
const CXX_HEADERS: [&str; 14] =
    ["assert", "errno", "fenv", "float", "inttypes", "limits", "locale", "math", "setjmp", "signal", "stdio", "stdlib", "time", "wchar"];

/// Includes of the headers that a compiler has.
fn includes(headers: &[&str]) -> String {
    headers.iter().map(|h| format!("#if __has_include(<{h}.h>)\n#include <{h}.h>\n#endif\n")).collect()
}

/// Keywords of C11 to C23, C++11 to C++23 and Rust 2015 to 2024, written down apart from the compiler's own list.
const KEYWORDS: &str = "_Alignas _Alignof _Atomic _BitInt _Bool _Complex _Decimal128 _Decimal32 _Decimal64 _Generic _Imaginary _Noreturn \
    _Static_assert _Thread_local alignas alignof auto bool break case char const constexpr continue default do double else enum extern \
    false float for goto if inline int long nullptr register restrict return short signed sizeof static static_assert struct switch \
    thread_local true typedef typeof typeof_unqual union unsigned void volatile while and and_eq asm bitand bitor catch char16_t \
    char32_t char8_t class co_await co_return co_yield compl concept const_cast consteval constinit decltype delete dynamic_cast \
    explicit export friend mutable namespace new noexcept not not_eq operator or or_eq private protected public reinterpret_cast \
    requires static_cast template this throw try typeid typename using virtual wchar_t xor xor_eq final override import module as async \
    await become box crate dyn fn gen impl in let loop macro match mod move mut priv pub ref self Self super trait type unsafe unsized \
    use where yield macro_rules raw safe _ int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t size_t m_ALIGN m_INPUTS \
    m_ABI_VERSION m_run m_dims m_context linux unix __linux__ __GNUC__ _GNU_SOURCE";

/// A model whose inputs, outputs and dimensions have the names of keywords and of all macros of standard headers.
#[test]
fn members_may_have_any_name() {
    let mut names: Vec<String> = KEYWORDS.split_ascii_whitespace().map(Into::into).collect();
    let folder = TempDir::new().unwrap();
    // The macros of this header are functions too: they take arguments.
    let others: Vec<&str> = C_HEADERS.into_iter().filter(|h| *h != "ctype").collect();
    fs::write(folder.path().join("others.c"), includes(&others)).unwrap();
    for (compiler, language) in [("cc", "c"), ("clang", "c")].into_iter().filter(|(c, _)| has(c)) {
        for standard in standards(compiler, language, &C_STANDARDS) {
            let output =
                run(Command::new(compiler).args([&format!("-std={standard}"), "-dM", "-E", "others.c"]).current_dir(folder.path()));
            let text = String::from_utf8(output.stdout).unwrap();
            let macros = text.lines().filter_map(|l| l.strip_prefix("#define ")?.split(['(', ' ']).next());
            // Systems define more than the standard says where the mode is not a strict one.
            names.extend(macros.filter(|n| standard.starts_with('c') || n.starts_with("INT") || n.starts_with("PRI")).map(Into::into));
        }
    }
    names.sort();
    names.dedup();
    let words: Vec<&str> = names.iter().map(String::as_str).collect();
    let members = c_identifiers("m", &words);
    let kept = ["m_run", "m_dims", "m_context", "macro_rules", "raw", "safe"];
    let reserved: Vec<&&str> = words.iter().zip(&members).filter(|(w, m)| w == m && !kept.contains(w)).map(|(w, _)| w).collect();
    assert!(reserved.is_empty(), "these stay as they are: {reserved:?}");
    let tensor = |(name, member): (&&str, &String)| TensorInfo {
        name: name.to_string(),
        c_name: member.clone(),
        elem: "i64".into(),
        shape: vec![name.to_string()],
    };
    let tensors: Vec<TensorInfo> = words.iter().zip(&members).map(tensor).collect();
    let symbol = |(name, member): (&&str, &String)| FreeDim {
        name: name.to_string(),
        c_name: member.clone(),
        min: 1,
        max: 9,
        reason: String::new(),
    };
    let manifest = Manifest {
        name: "m".into(),
        symbols: words.iter().zip(&members).map(symbol).collect(),
        inputs: tensors.clone(),
        outputs: tensors,
        ..Manifest::default()
    };
    let interface = Interface::of(&manifest).unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("m.h", &artifact::header::text(&interface));
    write("m.rs", &artifact::rust::text(&interface));
    write("example_main.c", &artifact::example::main_c(&interface));
    let warnings = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"];
    for (compiler, language, names, headers) in [
        ("cc", "c", &C_STANDARDS, &C_HEADERS[..]),
        ("clang", "c", &C_STANDARDS, &C_HEADERS),
        ("c++", "c++", &CXX_STANDARDS, &CXX_HEADERS),
        ("clang++", "c++", &CXX_STANDARDS, &CXX_HEADERS),
    ] {
        if !has(compiler) {
            continue;
        }
        let known = standards(compiler, language, names);
        assert!(known.len() >= 3, "{compiler} knows {known:?}");
        for (with, text) in [("bare.c", "#include \"m.h\"\n".into()), ("full.c", format!("{}#include \"m.h\"\n", includes(headers)))] {
            write(with, &text);
            for standard in &known {
                run(Command::new(compiler)
                    .args(warnings)
                    .args([&format!("-std={standard}"), "-x", language, with])
                    .current_dir(folder.path()));
            }
        }
        if language == "c" {
            let args = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "example_main.c"];
            run(Command::new(compiler).args(args).current_dir(folder.path()));
        }
    }
    if has("rustc") {
        for edition in ["2018", "2021", "2024"] {
            let args = ["--crate-type=lib", "--emit=metadata", "--edition", edition, "m.rs"];
            run(Command::new("rustc").args(args).current_dir(folder.path()));
        }
    }
}

/// The other C library of Linux: the bundle builds and its example runs.
#[test]
fn bundles_for_musl() {
    let target: Triple = "x86_64-unknown-linux-musl".parse().unwrap();
    if target.architecture != Triple::host().architecture || !has("x86_64-linux-musl-gcc") || !has("make") {
        tfc_tests::skip::skipped("bundles for musl");
        return;
    }
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("m");
    let emission = Emission { target, ..Emission::bundle("m", WeightsMode::External) };
    emission.write(&program(&mixed("m", 24)), &out).unwrap_or_else(|e| panic!("{e}"));
    assert!(out.join("m.so").exists());
    run(Command::new("make").arg("LDFLAGS=-static").current_dir(&out).env_remove("CFLAGS").env_remove("CC"));
    let output = run(&mut Command::new(out.join("example_main")));
    assert!(String::from_utf8_lossy(&output.stdout).contains("rows: f32[1, 4]: 4 5 6 7\n"));
}
