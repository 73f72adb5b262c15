//! The stack that generated code needs: what its header says is enough, and a smaller one ends in a fault at the
//! guard page, never in a write beyond it.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use target_lexicon::Triple;
use tfc::artifact::{self, Kind, Options, WeightsMode};
use tfc::emit::clif::target::Cpu;
use tfc::onnx::{ImportOptions, load};
use tfc_ir::dim::Bindings;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_ir::verify::verify;
use tfc_passes::OptLevel;
use tfc_tests::models::{bind, folders, read_npz};
use tfc_tests::{filetest, native};

/// Runs a model on stacks of every number of pages up to the one that it needs, each in a process of its own, and
/// prints the first that is enough.
const DRIVER: &str = r#"#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

int m_init_cpu(void *ctx, const void *weights, size_t bytes, const char *variant);
size_t m_arena_bytes(const int64_t *dims);
int m_output_bytes(const int64_t *dims, size_t *out);
int m_run(const void *ctx, const int64_t *dims, void *const *in, void *const *out, void *arena);

enum { PAGE = 4096, BELOW = 1 << 20, DONE = 0, FAULT = 1, WILD = 2 };
static uint64_t ctx[8];
static int64_t dims[64];
static void *in[256], *out[256], *arena;
static unsigned char *memory;

static void body(void) { m_run(ctx, dims, in, out, arena); }

static int intact(void) {
    for (size_t i = 0; i < BELOW; i++)
        if (memory[i] != 0xa5) return 0;
    return 1;
}

static void fault(int sig, siginfo_t *info, void *u) {
    (void)sig, (void)u;
    unsigned char *at = info->si_addr;
    _exit(at >= memory + BELOW && at < memory + BELOW + PAGE && intact() ? FAULT : WILD);
}

static int on_stack(size_t bytes) {
    pid_t child = fork();
    if (child == 0) {
        static ucontext_t here, there;
        memory = mmap(NULL, BELOW + PAGE + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(memory, 0xa5, BELOW);
        mprotect(memory + BELOW, PAGE, PROT_NONE);
        stack_t other = {.ss_sp = malloc(1 << 20), .ss_size = 1 << 20};
        sigaltstack(&other, NULL);
        struct sigaction action = {.sa_sigaction = fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigaction(SIGSEGV, &action, NULL);
        sigaction(SIGBUS, &action, NULL);
        getcontext(&there);
        there.uc_stack.ss_sp = memory + BELOW + PAGE;
        there.uc_stack.ss_size = bytes;
        there.uc_link = &here;
        makecontext(&there, body, 0);
        swapcontext(&here, &there);
        _exit(intact() ? DONE : WILD);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : WILD;
}

/* VARIANT STACK INPUTS OUTPUTS DIMS... */
int main(int argc, char **argv) {
    size_t stack = strtoull(argv[2], NULL, 10), bytes[256], first = 0;
    int inputs = atoi(argv[3]), outputs = atoi(argv[4]);
    for (int i = 5; i < argc; i++) dims[i - 5] = strtoll(argv[i], NULL, 10);
    if (m_init_cpu(ctx, NULL, 0, argv[1]) != 0) return 3;
    for (int i = 0; i < inputs; i++) {
        char name[32];
        snprintf(name, sizeof name, "in%d.bin", i);
        FILE *f = fopen(name, "rb");
        in[i] = aligned_alloc(64, 1 << 24);
        if (!f || fread(in[i], 1, 1 << 24, f) == 1 << 24) return 4;
        fclose(f);
    }
    if (m_output_bytes(dims, bytes) != 0) return 5;
    for (int i = 0; i < outputs; i++) out[i] = aligned_alloc(64, (bytes[i] + 64) / 64 * 64);
    arena = aligned_alloc(64, m_arena_bytes(dims));
    for (size_t n = PAGE; n <= stack; n += PAGE) {
        int r = on_stack(n);
        if (r == WILD || (n == stack && r != DONE)) {
            printf("%s: %zu of %zu bytes: %s\n", argv[1], n, stack, r == WILD ? "a write beyond the guard page" : "too few");
            return 6;
        }
        if (r == DONE && first == 0) first = n;
    }
    printf("%zu\n", first);
    return 0;
}
"#;

/// Checks a model on every variant that runs here. Returns how many stacks were too small.
fn check(name: &str, graph: &Graph, bindings: &Bindings, inputs: &[Tensor], level: OptLevel) -> usize {
    let graph = native::optimize(graph, level);
    let verified = verify(&graph).unwrap_or_else(|e| panic!("{name}: {}", e[0]));
    let program = tfc::schedule::schedule(&verified).unwrap_or_else(|e| panic!("{name}: {e}"));
    let folder = tempfile::tempdir().expect("a folder");
    let at = |file: &str| folder.path().join(file);
    let target = Triple::host();
    let cpus: Vec<Cpu> = Cpu::variants(&target).into_iter().filter(Cpu::runs_here).collect();
    let options = Options {
        name: "m",
        kinds: &BTreeSet::from([Kind::Obj]),
        out: &at("m.o"),
        weights: WeightsMode::Embedded,
        target: &target,
        cpus: &cpus,
        options: &[],
        model_hash: 0,
        force: false,
        extra: &[],
    };
    let stack = artifact::write(&program, &options).unwrap_or_else(|e| panic!("{name}: {e}")).manifest.stack_bytes;
    fs::write(at("driver.c"), DRIVER).expect("writable");
    let cc =
        Command::new("cc").args(["-O1", "-w", "driver.c", "m.o", "-o", "driver"]).current_dir(folder.path()).output().expect("a compiler");
    assert!(cc.status.success(), "{}", String::from_utf8_lossy(&cc.stderr));
    for (i, t) in inputs.iter().enumerate() {
        fs::write(at(&format!("in{i}.bin")), t.bytes()).expect("writable");
    }
    let mut small = 0;
    for cpu in &cpus {
        let mut driver = Command::new(at("driver"));
        driver.args([cpu.name, &stack.to_string(), &inputs.len().to_string(), &program.outputs.len().to_string()]);
        driver.args(program.dims.iter().map(|s| bindings[s].to_string())).current_dir(folder.path());
        let output = driver.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {}: {said}", output.status);
        let first: usize = said.trim().parse().expect("a number");
        eprintln!("{name} {level:?} {}: {first} bytes are enough, {stack} are asked for", cpu.name);
        small += first / 4096 - 1;
    }
    small
}

#[test]
fn stacks_are_as_large_as_stated_or_end_in_a_fault() {
    if Command::new("cc").arg("--version").output().is_err() {
        tfc_tests::skip::skipped("there is no `cc`");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests/native");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    let mut small = 0;
    for path in files {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let file = filetest::open(&fs::read_to_string(&path).expect("text")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (bindings, inputs) = file.data().unwrap_or_else(|e| panic!("{name}: {e}"));
        small += check(&name, &file.graph, &bindings, &inputs, OptLevel::O2);
    }
    assert!(small > 0, "no kernel has a frame of several pages");
}

/// The models in the folder `TFC_ZOO`, where one is given.
#[test]
fn stacks_of_whole_models() {
    let Some(root) = std::env::var_os("TFC_ZOO") else { return };
    for folder in folders(Path::new(&root)) {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let graph = load(&folder.join("model.onnx"), &ImportOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = read_npz(&folder.join("inputs.npz"));
        let input = |&v| data[graph.value(v).name.as_deref().expect("a name")].clone();
        let inputs: Vec<Tensor> = graph.inputs().iter().map(input).collect();
        for level in [OptLevel::O0, OptLevel::O3] {
            check(&name, &graph, &bind(&graph, &inputs), &inputs, level);
        }
    }
}
