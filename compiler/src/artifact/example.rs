//! `example_main.c` and `Makefile`: a program that runs the model on made-up inputs, to try it, to
//! measure it, and to copy from.

use super::header::c_type;
use super::interface::{Interface, Tensor, comment, literal};
use std::collections::BTreeSet;
use std::fmt::Write;
use target_lexicon::Triple;
use tfc_runtime::elem::Elem;

/// The text of `example_main.c`.
pub fn main_c(i: &Interface) -> String {
    let mut out = String::new();
    write_main(&mut out, i).expect("a string takes everything");
    out
}

/// The text of `Makefile`. `cc` is the C compiler for the target.
pub fn makefile(name: &str, target: &Triple, cc: &str) -> String {
    format!(
        "# Builds the example for {target}. Generated, do not edit.
ifeq ($(origin CC),default)
CC = {cc}
endif
CFLAGS ?= -O2 -Wall -Wextra -Werror

# No built-in rules: they would make the object from a listing beside it.
.SUFFIXES:

example_main: example_main.c {name}.h {name}.o
\t$(CC) -std=c99 $(CPPFLAGS) $(CFLAGS) -o $@ example_main.c {name}.o $(LDFLAGS) $(LDLIBS)

run: example_main
\t./example_main

clean:
\trm -f example_main

.PHONY: run clean
"
    )
}

fn write_main(o: &mut String, i: &Interface) -> std::fmt::Result {
    let n = i.name();
    let symbols = &i.manifest.symbols;
    let weights = i.weights_file().is_some();
    let symbol_args: String = symbols.iter().map(|s| format!(" [{}=N]", comment(&s.c_name))).collect();
    let weights_arg = if weights { " [--weights FILE]" } else { "" };
    let usage = format!("{symbol_args}{weights_arg} [--iters N]");
    writeln!(o, "/* Runs {n} on made-up inputs: floats from a seeded normal distribution, integers 1, booleans true.")?;
    writeln!(o, " *")?;
    writeln!(o, " *     ./example_main{usage}")?;
    writeln!(o, " *")?;
    writeln!(o, " * The environment variable TFC_CPU names the CPU variant to use. Generated, do not edit. */")?;
    writeln!(o, "#define _POSIX_C_SOURCE 200112L\n")?;
    writeln!(o, "#include \"{n}.h\"\n")?;
    if weights {
        writeln!(o, "#include <fcntl.h>")?;
    }
    writeln!(o, "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>")?;
    if weights {
        writeln!(o, "#include <sys/mman.h>\n#include <sys/stat.h>")?;
    }
    writeln!(o, "#include <time.h>")?;
    if weights {
        writeln!(o, "#include <unistd.h>")?;
    }
    writeln!(o)?;
    o.push_str(&COMMON.replace("NAME", n));
    if weights {
        o.push_str(&MAP_WEIGHTS.replace("NAME", n));
    }
    let shaped: Vec<&Tensor> = i.inputs.iter().chain(&i.outputs).collect();
    for f in i.functions(&shaped) {
        o.push_str(match f {
            "floor_div" => FLOOR_DIV,
            "floor_rem" => FLOOR_REM,
            "smaller" => SMALLER,
            _ => LARGER,
        });
    }
    fills(o, i)?;
    shows(o, i)?;

    writeln!(o, "int main(int argc, char **argv) {{")?;
    let small = i.small_dims();
    match symbols.is_empty() {
        true => writeln!(o, "    {n}_dims dims = {{0}};")?,
        false => writeln!(o, "    {n}_dims dims = {{{}}};", small.iter().map(|v| c_int(*v)).collect::<Vec<_>>().join(", "))?,
    }
    if weights {
        writeln!(o, "    const char *weights_file = NULL;")?;
    }
    writeln!(o, "    long iters = 10;")?;
    writeln!(o, "    for (int a = 1; a < argc; a++) {{")?;
    for s in symbols {
        let prefix = format!("{}=", s.c_name);
        writeln!(o, "        if (strncmp(argv[a], {}, {}) == 0) {{", literal(&prefix), prefix.len())?;
        writeln!(o, "            dims.{} = number(argv[a] + {});\n            continue;\n        }}", s.c_name, prefix.len())?;
    }
    if weights {
        writeln!(o, "        if (strcmp(argv[a], \"--weights\") == 0 && a + 1 < argc) {{")?;
        writeln!(o, "            weights_file = argv[++a];\n            continue;\n        }}")?;
    }
    writeln!(o, "        if (strcmp(argv[a], \"--iters\") == 0 && a + 1 < argc) {{")?;
    writeln!(o, "            iters = (long)number(argv[++a]);\n            continue;\n        }}")?;
    writeln!(o, "        fprintf(stderr, \"usage: %s%s\\n\", argv[0], {});", literal(&usage))?;
    writeln!(o, "        return 2;\n    }}\n")?;

    writeln!(o, "    {n}_context ctx;")?;
    if weights {
        writeln!(o, "    size_t weights_bytes;")?;
        writeln!(o, "    const void *weights = map_weights(weights_file, argv[0], &weights_bytes);")?;
    }
    let given = if weights { "weights, weights_bytes" } else { "NULL, 0" };
    writeln!(o, "    const char *cpu = getenv(\"TFC_CPU\");")?;
    writeln!(o, "    check({n}_init_cpu(&ctx, {given}, cpu != NULL && *cpu != '\\0' ? cpu : NULL), \"{n}_init_cpu\");")?;
    let slots = i.outputs.len().max(1);
    writeln!(o, "    size_t bytes[{slots}];")?;
    writeln!(o, "    check({n}_output_bytes(&dims, bytes), \"{n}_output_bytes\");")?;
    writeln!(o, "    size_t arena_bytes = {n}_arena_bytes(&dims);")?;
    writeln!(o, "    void *arena = allocate(arena_bytes);\n")?;

    writeln!(o, "    {n}_inputs in;")?;
    if i.inputs.is_empty() {
        writeln!(o, "    in.unused = NULL;")?;
    }
    for t in &i.inputs {
        writeln!(o, "    in.{} = fill_{}((size_t)({}));", t.info.c_name, t.elem, i.count(t, "."))?;
    }
    writeln!(o, "    {n}_outputs out;")?;
    if i.outputs.is_empty() {
        writeln!(o, "    out.unused = NULL;")?;
    }
    for (at, t) in i.outputs.iter().enumerate() {
        writeln!(o, "    out.{} = allocate(bytes[{at}]);", t.info.c_name)?;
    }

    o.push_str(&TIMING.replace("NAME", n));
    for t in &i.outputs {
        let c_name = &t.info.c_name;
        writeln!(o, "    {{")?;
        match t.shape.len() {
            0 => writeln!(o, "        const int64_t *shape = NULL;")?,
            _ => {
                let sizes: Vec<String> = t.shape.iter().map(|e| i.expression(e, ".")).collect();
                writeln!(o, "        const int64_t shape[] = {{{}}};", sizes.join(", "))?;
            }
        }
        writeln!(o, "        show_{}({}, shape, {}, out.{c_name});", t.elem, literal(&t.info.name), t.shape.len())?;
        writeln!(o, "    }}")?;
    }
    for t in &i.outputs {
        writeln!(o, "    free(out.{});", t.info.c_name)?;
    }
    for t in &i.inputs {
        writeln!(o, "    free((void *)in.{});", t.info.c_name)?;
    }
    writeln!(o, "    free(arena);")?;
    if weights {
        writeln!(o, "    munmap((void *)weights, weights_bytes);")?;
    }
    writeln!(o, "    return 0;\n}}")
}

/// A C constant of 64 bits.
fn c_int(n: i64) -> String {
    if i32::try_from(n).is_ok() { n.to_string() } else { format!("INT64_C({n})") }
}

/// One function `fill_ELEM` for each element type among the inputs.
fn fills(o: &mut String, i: &Interface) -> std::fmt::Result {
    let elems: BTreeSet<Elem> = i.inputs.iter().map(|t| t.elem).collect();
    let is_float = |e: &Elem| matches!(e, Elem::F16 | Elem::Bf16 | Elem::F32 | Elem::F64);
    if elems.iter().any(is_float) {
        o.push_str(NORMAL);
    }
    for bits in [Elem::F16, Elem::Bf16] {
        if elems.contains(&bits) {
            o.push_str(if bits == Elem::F16 { TO_HALF } else { TO_BFLOAT });
        }
    }
    for e in elems {
        let ty = c_type(e);
        let one = match e {
            Elem::F32 => "(float)normal()",
            Elem::F64 => "normal()",
            Elem::F16 => "to_half((float)normal())",
            Elem::Bf16 => "to_bfloat((float)normal())",
            Elem::I4 | Elem::U4 => "0x11",
            _ => "1",
        };
        writeln!(o, "static const {ty} *fill_{e}(size_t count) {{")?;
        if e.bits() == 4 {
            writeln!(o, "    count = count / 2 + count % 2;")?;
        }
        writeln!(o, "    {ty} *out = allocate(count * sizeof *out);")?;
        writeln!(o, "    for (size_t i = 0; i < count; i++) out[i] = {one};\n    return out;\n}}\n")?;
    }
    Ok(())
}

/// One function `show_ELEM` for each element type among the outputs.
fn shows(o: &mut String, i: &Interface) -> std::fmt::Result {
    let elems: BTreeSet<Elem> = i.outputs.iter().map(|t| t.elem).collect();
    if elems.is_empty() {
        return Ok(());
    }
    o.push_str(SHOW);
    if elems.contains(&Elem::F16) {
        o.push_str(FROM_HALF);
    }
    if elems.contains(&Elem::Bf16) {
        o.push_str(FROM_BFLOAT);
    }
    for e in elems {
        let value = match e {
            Elem::F16 => "from_half(x[i])",
            Elem::Bf16 => "from_bfloat(x[i])",
            Elem::U4 => "(double)(x[i / 2] >> i % 2 * 4 & 15)",
            Elem::I4 => "(double)(((x[i / 2] >> i % 2 * 4 & 15) ^ 8) - 8)",
            _ => "(double)x[i]",
        };
        writeln!(o, "static void show_{e}(const char *name, const int64_t *shape, int rank, const {} *x) {{", c_type(e))?;
        writeln!(o, "    size_t n = show_type(name, \"{e}\", shape, rank);")?;
        writeln!(o, "    for (size_t i = 0; i < n && i < SHOWN; i++) printf(\" %.9g\", {value});")?;
        writeln!(o, "    printf(n > SHOWN ? \" ...\\n\" : \"\\n\");\n}}\n")?;
    }
    Ok(())
}

const COMMON: &str = r#"static void check(int status, const char *what) {
    if (status == NAME_OK) return;
    fprintf(stderr, "%s: %s\n", what, NAME_status_string(status));
    exit(1);
}

static void *allocate(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, NAME_ALIGN, bytes > 0 ? bytes : 1) != 0) {
        fprintf(stderr, "no memory for %lu bytes\n", (unsigned long)bytes);
        exit(1);
    }
    return p;
}

static int64_t number(const char *text) {
    char *end;
    long long n = strtoll(text, &end, 10);
    if (end == text || *end != '\0') {
        fprintf(stderr, "`%s` is not a number\n", text);
        exit(2);
    }
    return n;
}

static double milliseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

"#;

const MAP_WEIGHTS: &str = r#"/* Maps the weights file: `file`, or the one beside the program. */
static const void *map_weights(const char *file, const char *program, size_t *bytes) {
    char *beside = NULL;
    if (file == NULL) {
        const char *slash = strrchr(program, '/');
        size_t folder = slash != NULL ? (size_t)(slash - program) + 1 : 0;
        beside = allocate(folder + sizeof NAME_WEIGHTS_FILE);
        memcpy(beside, program, folder);
        memcpy(beside + folder, NAME_WEIGHTS_FILE, sizeof NAME_WEIGHTS_FILE);
        file = beside;
    }
    struct stat info;
    int fd = open(file, O_RDONLY);
    if (fd < 0 || fstat(fd, &info) != 0) {
        perror(file);
        exit(1);
    }
    *bytes = (size_t)info.st_size;
    const void *p = *bytes > 0 ? mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    if (p == MAP_FAILED) {
        perror(file);
        exit(1);
    }
    close(fd);
    free(beside);
    return p;
}

"#;

const FLOOR_DIV: &str = "static int64_t floor_div(int64_t a, int64_t b) {
    int64_t q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

";

const FLOOR_REM: &str = "static int64_t floor_rem(int64_t a, int64_t b) {
    int64_t r = a % b;
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

";

const SMALLER: &str = "static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }\n\n";

const LARGER: &str = "static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }\n\n";

const NORMAL: &str = r#"/* A sum of 12 uniform numbers has nearly a normal distribution: mean 0, deviation 1. */
static double normal(void) {
    static uint64_t state = 1;
    double sum = -6.0;
    for (int i = 0; i < 12; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(state >> 32) / 4294967296.0;
    }
    return sum;
}

"#;

const TO_HALF: &str = r#"static uint16_t to_half(float x) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    uint32_t sign = b >> 16 & 0x8000u, exponent = b >> 23 & 255u, fraction = b >> 13 & 0x3ffu;
    if (exponent <= 112) return (uint16_t)sign;
    if (exponent >= 143) return (uint16_t)(sign | 0x7c00u);
    return (uint16_t)(sign | (exponent - 112) << 10 | fraction);
}

"#;

const TO_BFLOAT: &str = r#"static uint16_t to_bfloat(float x) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return (uint16_t)(b >> 16);
}

"#;

const FROM_HALF: &str = r#"static double from_half(uint16_t h) {
    uint32_t exponent = h >> 10 & 31u, fraction = h & 0x3ffu;
    uint32_t b = (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float x;
    memcpy(&x, &b, sizeof x);
    double magnitude = exponent == 0 ? fraction / 16777216.0 : (double)x;
    return h & 0x8000u ? -magnitude : magnitude;
}

"#;

const FROM_BFLOAT: &str = r#"static double from_bfloat(uint16_t h) {
    uint32_t b = (uint32_t)h << 16;
    float x;
    memcpy(&x, &b, sizeof x);
    return (double)x;
}

"#;

const SHOW: &str = r#"/* How many values of an output are printed. */
#define SHOWN 8

/* Prints the name and type of an output and returns its number of elements. */
static size_t show_type(const char *name, const char *type, const int64_t *shape, int rank) {
    size_t n = 1;
    printf("%s: %s[", name, type);
    for (int i = 0; i < rank; i++) {
        n *= (size_t)shape[i];
        printf(i > 0 ? ", %lld" : "%lld", (long long)shape[i]);
    }
    printf("]:");
    return n;
}

"#;

const TIMING: &str = r#"
    double begin = milliseconds();
    check(NAME_run(&ctx, &dims, &in, &out, arena), "NAME_run");
    double first = milliseconds() - begin, best = first;
    for (long k = 0; k < iters; k++) {
        begin = milliseconds();
        check(NAME_run(&ctx, &dims, &in, &out, arena), "NAME_run");
        double t = milliseconds() - begin;
        if (t < best) best = t;
    }
    printf("%s\n", NAME_build_info());
    printf("cpu %s, arena %lu bytes, first run %.3f ms, best of %ld more %.3f ms\n", NAME_cpu_variant(&ctx),
           (unsigned long)arena_bytes, first, iters, best);
"#;
