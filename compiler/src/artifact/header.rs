//! `NAME.h`: the C interface with the types of the model.

use super::interface::{Interface, Tensor, c_bytes, comment, status_name};
use std::fmt::Write;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use tfc_runtime::abi::{self, Status};
use tfc_runtime::elem::Elem;

/// The C type of an element, or of two elements of 4 bits.
pub fn c_type(elem: Elem) -> &'static str {
    match elem {
        Elem::Bool | Elem::U8 | Elem::I4 | Elem::U4 => "uint8_t",
        Elem::I8 => "int8_t",
        Elem::I16 => "int16_t",
        Elem::U16 | Elem::F16 | Elem::Bf16 => "uint16_t",
        Elem::I32 => "int32_t",
        Elem::U32 => "uint32_t",
        Elem::I64 => "int64_t",
        Elem::U64 => "uint64_t",
        Elem::F32 => "float",
        Elem::F64 => "double",
    }
}

/// What the C type does not say.
pub fn elem_note(elem: Elem) -> &'static str {
    match elem {
        Elem::Bool => ", 0 or 1",
        Elem::I4 | Elem::U4 => ", two to a byte, the low half first",
        Elem::F16 => ", bits of IEEE half precision",
        Elem::Bf16 => ", upper half of the bits of a float",
        _ => "",
    }
}

/// What ends the first line of a generated header.
const GENERATED: &str = ". Generated, do not edit.";

/// Whether a file is a header that was generated.
pub fn is_generated(file: &Path) -> bool {
    let mut line = String::new();
    let read = File::open(file).and_then(|f| BufReader::new(f.take(4096)).read_line(&mut line));
    read.is_ok() && line.contains(": a model compiled by ") && line.trim_end().ends_with(GENERATED)
}

/// The text of the header.
pub fn text(i: &Interface) -> String {
    let mut out = String::new();
    write_header(&mut out, i).expect("a string takes everything");
    out
}

fn write_header(o: &mut String, i: &Interface) -> std::fmt::Result {
    let n = i.name();
    let m = i.manifest;
    writeln!(o, "/* {n}: a model compiled by {} for {}{GENERATED}", comment(&m.compiler), comment(&m.target))?;
    writeln!(o, " *")?;
    writeln!(o, " * The functions allocate nothing, take no locks and write only to the context (init), the outputs and")?;
    writeln!(o, " * the arena, so calls with different arenas and outputs may run at the same time on one context.")?;
    writeln!(o, " * They return a status: 0 for success, else the reason, see {n}_status_string. */")?;
    writeln!(o, "#ifndef {n}_H_\n#define {n}_H_\n")?;
    writeln!(o, "#include <stddef.h>\n#include <stdint.h>\n")?;
    writeln!(o, "#ifdef __cplusplus\nextern \"C\" {{\n#endif\n")?;
    writeln!(o, "/* Version of this interface. */\n#define {n}_ABI_VERSION {}", abi::ABI_VERSION)?;
    writeln!(o, "/* Alignment in bytes of the arena and of weights in memory. */\n#define {n}_ALIGN {}", abi::ALIGN)?;
    writeln!(o, "/* Bytes of stack that a call of {n}_run needs at most, and each call of a loop's part by {n}_run_parallel. Pages are")?;
    writeln!(o, " * touched in their order: a stack that is too small ends in a fault at its guard page, not in a write beyond it. */")?;
    writeln!(o, "#define {n}_STACK_BYTES {}", m.stack_bytes)?;
    writeln!(o, "/* Numbers of free dimensions, inputs and outputs. */")?;
    writeln!(o, "#define {n}_DIMS {}", m.symbols.len())?;
    writeln!(o, "#define {n}_INPUTS {}\n#define {n}_OUTPUTS {}", i.inputs.len(), i.outputs.len())?;
    match i.weights_file() {
        Some((file, bytes)) => {
            writeln!(o, "/* Name and bytes of the weights file, whose contents {n}_init takes. */")?;
            writeln!(o, "#define {n}_WEIGHTS_FILE {}\n#define {n}_WEIGHTS_BYTES {bytes}\n", c_bytes(file))?;
        }
        None => writeln!(o, "/* There is no weights file: {n}_init takes NULL and 0. */\n#define {n}_WEIGHTS_BYTES 0\n")?,
    }
    statuses(o, n)?;

    writeln!(o, "/* The free dimensions. */\ntypedef struct {{")?;
    for s in &m.symbols {
        writeln!(o, "    int64_t {}; /* {}: {} to {} */", s.c_name, comment(&s.name), s.min, s.max)?;
    }
    dummy(o, m.symbols.is_empty(), "int64_t unused; /* the model has none; may be anything */")?;
    writeln!(o, "}} {n}_dims;\n")?;

    writeln!(o, "/* The inputs: contiguous elements, the last axis fastest. They are only read. */\ntypedef struct {{")?;
    ports(o, &i.inputs, "const ")?;
    dummy(o, i.inputs.is_empty(), "const void *unused; /* the model has none; may be anything */")?;
    writeln!(o, "}} {n}_inputs;\n")?;

    writeln!(o, "/* Where the outputs go, in memory of the caller that overlaps nothing else: {n}_output_bytes each. */")?;
    writeln!(o, "typedef struct {{")?;
    ports(o, &i.outputs, "")?;
    dummy(o, i.outputs.is_empty(), "void *unused; /* the model has none; may be anything */")?;
    writeln!(o, "}} {n}_outputs;\n")?;

    writeln!(o, "/* What {n}_init found out. It may be copied and moved; its contents are private. */")?;
    writeln!(o, "typedef struct {{\n    uint64_t opaque[{}];\n}} {n}_context;\n", abi::CONTEXT_BYTES / 8)?;
    functions(o, n, i.outputs.is_empty(), i.manifest.cpu_variants.iter().any(|v| v.name == "amx"))?;
    writeln!(o, "#ifdef __cplusplus\n}}\n#endif\n\n#endif")
}

fn statuses(o: &mut String, n: &str) -> std::fmt::Result {
    writeln!(o, "/* What functions return. */\nenum {{")?;
    for (at, &s) in Status::ALL.iter().enumerate() {
        let comma = if at + 1 < Status::ALL.len() { "," } else { "" };
        writeln!(o, "    /* {} */\n    {n}_{} = {}{comma}", s.sentence(), status_name(s), s.code())?;
    }
    writeln!(o, "}};\n")
}

fn dummy(o: &mut String, needed: bool, member: &str) -> std::fmt::Result {
    // C has no structs without members.
    if needed { writeln!(o, "    {member}") } else { Ok(()) }
}

fn ports(o: &mut String, tensors: &[Tensor], qualifier: &str) -> std::fmt::Result {
    for t in tensors {
        let (ty, note) = (c_type(t.elem), elem_note(t.elem));
        writeln!(o, "    {qualifier}{ty} *{}; /* {}: {}{note} */", t.info.c_name, comment(&t.info.name), comment(&t.info.type_text()))?;
    }
    Ok(())
}

fn functions(o: &mut String, n: &str, no_outputs: bool, matrix_tiles: bool) -> std::fmt::Result {
    let array = if no_outputs { "*out".into() } else { format!("out[{n}_OUTPUTS]") };
    let tiles = match matrix_tiles {
        true => {
            "\n * Where that is the variant `amx`, Linux is asked for the use of matrix tiles: from then on the process can have\n \
             * alternative signal stacks only if they have room for tiles (getauxval(AT_MINSIGSTKSZ))."
        }
        false => "",
    };
    write!(
        o,
        "/* Runs fn(arg, begin, end) on ranges that cover 0 .. n once each, on any threads, and returns when all
 * have returned. `user` is what was given to {n}_run_parallel. Loops are faster where a thread gets the same
 * part of 0 .. n in each: it finds what it wrote before in its own caches. */
typedef void (*{n}_parallel_for)(void *user, int64_t n, void (*fn)(void *arg, int64_t begin, int64_t end), void *arg);

/* Checks the weights (a whole weights file in memory, aligned to {n}_ALIGN: map it) and picks the best CPU
 * variant that runs here. The weights must stay where they are for as long as the context is in use.{tiles} */
int {n}_init({n}_context *ctx, const void *weights, size_t bytes);
/* The same with the CPU variant of that name; NULL picks the best one. */
int {n}_init_cpu({n}_context *ctx, const void *weights, size_t bytes, const char *variant);
/* The name of the CPU variant in use; NULL for a context that is not one of this model. */
const char *{n}_cpu_variant(const {n}_context *ctx);
/* Bytes of the arena at these dimensions; 0 if they are out of range or contradict each other. An arena of megabytes is
 * faster by some percent in large pages (on Linux: aligned to 2 MiB, madvise MADV_HUGEPAGE before its first use). */
size_t {n}_arena_bytes(const {n}_dims *dims);
/* Bytes of each output at these dimensions, in the order of {n}_outputs. */
int {n}_output_bytes(const {n}_dims *dims, size_t {array});
/* Runs the model on the calling thread, which needs {n}_STACK_BYTES of stack. Give each call in flight an arena of its own. */
int {n}_run(const {n}_context *ctx, const {n}_dims *dims, const {n}_inputs *in, {n}_outputs *out, void *arena);
/* Runs the model with pf(user, ...) for its parallel loops, whose threads need as much stack; NULL runs them on the
 * calling thread. */
int {n}_run_parallel(const {n}_context *ctx, const {n}_dims *dims, const {n}_inputs *in, {n}_outputs *out, void *arena,
                     {n}_parallel_for pf, void *user);
/* What a status says, as an English sentence. */
const char *{n}_status_string(int status);
/* Compiler, target and options in one line. */
const char *{n}_build_info(void);
/* All of the above in one table, for programs that load models by name. */
extern const uint64_t {n}_entry[{}];

",
        abi::entry_offset::END / 8,
    )
}
