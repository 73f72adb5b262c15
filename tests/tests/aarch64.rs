//! Objects for aarch64 give the interpreter's answers: a C program around them, built with a cross
//! compiler, runs under an emulator. Skipped with a loud line where either is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use target_lexicon::Triple;
use tfc::artifact::{self, Kind, Options, WeightsMode};
use tfc::emit::clif::target::Cpu;
use tfc::onnx::{ImportOptions, load};
use tfc::schedule::schedule;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_ir::verify::verify;
use tfc_passes::OptLevel;
use tfc_tests::models::{folders, read_npz, relative_error, zoo};
use tfc_tests::native::optimize;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const CC: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
const TOLERANCE: f64 = 1e-5;

/// Arguments: the dimensions. Inputs are `inN.bin`, outputs become `outN.bin`. A program of C99 that
/// knows the model only through its header.
const DRIVER: &str = r#"
#include "m.h"
#include <stdio.h>
#include <stdlib.h>

static void *slurp(const char *format, int i) {
    char name[32];
    snprintf(name, sizeof name, format, i);
    FILE *f = fopen(name, "rb");
    if (!f) exit(10);
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    void *p = malloc((size_t)n + 1);
    if (fread(p, 1, (size_t)n, f) != (size_t)n) exit(11);
    fclose(f);
    return p;
}

int main(int argc, char **argv) {
    int64_t dims[16] = {0};
    for (int i = 1; i < argc; i++) dims[i - 1] = atoll(argv[i]);
    const void *in[64];
    void *out[64];
    size_t bytes[64];
    m_context ctx;
    if (m_init(&ctx, NULL, 0)) return 1;
    size_t arena_bytes = m_arena_bytes((const m_dims *)dims);
    if (!arena_bytes || m_output_bytes((const m_dims *)dims, bytes)) return 2;
    for (int i = 0; i < m_INPUTS; i++) in[i] = slurp("in%d.bin", i);
    for (int i = 0; i < m_OUTPUTS; i++) out[i] = malloc(bytes[i] + 1);
    char *raw = malloc(arena_bytes + 64);
    void *arena = raw + (64 - (uintptr_t)raw % 64);
    int status = m_run(&ctx, (const m_dims *)dims, (const m_inputs *)in, (m_outputs *)out, arena);
    if (status) { fprintf(stderr, "%s\n", m_status_string(status)); return 3; }
    for (int i = 0; i < m_OUTPUTS; i++) {
        char name[32];
        snprintf(name, sizeof name, "out%d.bin", i);
        FILE *f = fopen(name, "wb");
        if (!f || fwrite(out[i], 1, bytes[i], f) != bytes[i]) return 4;
        fclose(f);
    }
    puts(m_cpu_variant(&ctx));
    return 0;
}
"#;

fn tools() -> bool {
    let found = |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    let missing: Vec<&str> = [CC, EMULATOR].into_iter().filter(|t| !found(t)).collect();
    if !missing.is_empty() {
        tfc_tests::skip::skipped(format_args!("objects for aarch64 are not run, there is no {}", missing.join(" and no ")));
    }
    missing.is_empty()
}

/// Compiles a graph for aarch64 and builds the program around it in `folder`.
fn build(graph: &Graph, folder: &Path) {
    let triple: Triple = TARGET.parse().expect("a triple");
    let verified = verify(graph).unwrap_or_else(|e| panic!("{}", e[0]));
    let program = schedule(&verified).unwrap_or_else(|e| panic!("{e}"));
    let bundle = folder.join("bundle");
    let options = Options {
        name: "m",
        kinds: &BTreeSet::from([Kind::Bundle]),
        out: &bundle,
        weights: WeightsMode::Embedded,
        target: &triple,
        cpus: &Cpu::variants(&triple),
        options: &[],
        model_hash: 0,
        force: false,
        extra: &[],
    };
    artifact::write(&program, &options).unwrap_or_else(|e| panic!("{e}"));
    fs::write(folder.join("driver.c"), DRIVER).expect("a folder to write to");
    let built = Command::new(CC)
        .current_dir(folder)
        .args(["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-Ibundle", "-o", "driver", "driver.c", "bundle/m.o"])
        .output()
        .expect("the cross compiler runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

fn run(graph: &Graph, inputs: &[Tensor], folder: &Path) -> Vec<u8> {
    let bindings = tfc_tests::models::bind(graph, inputs);
    for (i, t) in inputs.iter().enumerate() {
        fs::write(folder.join(format!("in{i}.bin")), t.bytes()).expect("a folder to write to");
    }
    let verified = verify(graph).unwrap_or_else(|e| panic!("{}", e[0]));
    let dims = schedule(&verified).unwrap_or_else(|e| panic!("{e}")).dims;
    let ran = Command::new(EMULATOR)
        .current_dir(folder)
        .arg("./driver")
        .args(dims.iter().map(|s| bindings[s].to_string()))
        .output()
        .expect("the emulator runs");
    assert!(ran.status.success(), "{:?} {}", ran.status, String::from_utf8_lossy(&ran.stderr));
    fs::read(folder.join("out0.bin")).expect("an output")
}

#[test]
fn zoo_models_give_their_answers_on_aarch64() {
    if !tools() {
        return;
    }
    let Some(root) = zoo() else { return };
    for folder in folders(&root) {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let graph = load(&folder.join("model.onnx"), &ImportOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let graph = optimize(&graph, OptLevel::O3);
        let scratch = tempfile::tempdir().expect("a folder to write to");
        build(&graph, scratch.path());
        for suffix in ["", "_1"] {
            let inputs = folder.join(format!("inputs{suffix}.npz"));
            if !inputs.exists() {
                continue;
            }
            let mut given = read_npz(&inputs);
            let input = |v| given.remove(graph.value(v).name.as_deref().unwrap_or_default()).expect("an input of the model");
            let inputs: Vec<Tensor> = graph.inputs().iter().copied().map(input).collect();
            let expected = read_npz(&folder.join(format!("outputs{suffix}.npz")));
            let want = &expected[&*graph.outputs()[0].name];
            let bytes = run(&graph, &inputs, scratch.path());
            let found = Tensor::new(want.elem(), want.sizes().to_vec(), bytes.into()).expect("as many bytes as expected");
            let error = relative_error(&found, want);
            assert!(error <= TOLERANCE, "{name}{suffix}: off by {error:.1e}");
            eprintln!("{name}{suffix}: {error:.1e}");
        }
    }
}
