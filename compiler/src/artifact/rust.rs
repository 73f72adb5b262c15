//! `NAME.rs`: a Rust module around the C interface, without dependencies.

use super::interface::{Interface, Tensor, comment, literal};
use std::fmt::Write;
use tfc_runtime::abi;
use tfc_runtime::elem::Elem;

fn rust_type(elem: Elem) -> &'static str {
    match elem {
        Elem::Bool | Elem::U8 | Elem::I4 | Elem::U4 => "u8",
        Elem::I8 => "i8",
        Elem::I16 => "i16",
        Elem::U16 | Elem::F16 | Elem::Bf16 => "u16",
        Elem::I32 => "i32",
        Elem::U32 => "u32",
        Elem::I64 => "i64",
        Elem::U64 => "u64",
        Elem::F32 => "f32",
        Elem::F64 => "f64",
    }
}

/// The text of the module: for `#[path]` as well as for `include!`, which takes no inner attributes.
pub fn text(i: &Interface) -> String {
    let n = i.name();
    let m = i.manifest;
    let mut module = String::new();
    write_module(&mut module, i).expect("a string takes everything");
    let mut out = format!(
        "// {n}: a model compiled by {} for {}. Generated, do not edit.
//
// Link {n}.o or lib{n}.a, and declare the module with
//     #[path = \"…/{n}.rs\"] mod {n};
// or, from a build script's output,
//     mod {n} {{ include!(concat!(env!(\"OUT_DIR\"), \"/…/{n}.rs\")); }}

#[allow(unused_imports, reason = \"a program may use it by its parts\")]
pub use interface::*;

#[allow(dead_code, non_snake_case, reason = \"no program uses all of it; names come from the model\")]
mod interface {{
",
        comment(&m.compiler),
        comment(&m.target)
    );
    for line in module.lines() {
        if !line.is_empty() {
            out += "    ";
        }
        out += line;
        out.push('\n');
    }
    out += "}\n";
    out
}

fn write_module(o: &mut String, i: &Interface) -> std::fmt::Result {
    let n = i.name();
    let m = i.manifest;
    writeln!(o, "use std::ffi::{{CStr, c_char, c_int, c_void}};\nuse std::fmt;\nuse std::marker::PhantomData;\n")?;
    writeln!(o, "/// Version of the C interface.\npub const ABI_VERSION: u32 = {};", abi::ABI_VERSION)?;
    writeln!(o, "/// Alignment in bytes of the arena and of weights in memory.\npub const ALIGN: usize = {};", abi::ALIGN)?;
    writeln!(o, "/// Bytes of stack that a thread needs at most that runs the model or parts of its loops. As with all functions of")?;
    writeln!(o, "/// Rust, a stack that is too small ends in a fault at its guard page: pages are touched in their order.")?;
    writeln!(o, "pub const STACK_BYTES: usize = {};", m.stack_bytes)?;
    match i.weights_file() {
        Some((file, bytes)) => {
            writeln!(o, "/// Name of the weights file.\npub const WEIGHTS_FILE: &str = \"{file}\";")?;
            writeln!(o, "/// Bytes of the weights file.\npub const WEIGHTS_BYTES: usize = {bytes};")?;
        }
        None => writeln!(o, "/// There is no weights file.\npub const WEIGHTS_BYTES: usize = 0;")?,
    }
    writeln!(o, "/// Number of outputs.\npub const OUTPUTS: usize = {};\n", i.outputs.len())?;

    writeln!(o, "/// The free dimensions.\n#[repr(C)]\n#[derive(Clone, Copy, Debug, PartialEq, Eq)]\npub struct Dims {{")?;
    for s in &m.symbols {
        writeln!(o, "    /// `{}`: {} to {}.\n    pub {}: i64,", comment(&s.name), s.min, s.max, s.c_name)?;
    }
    writeln!(o, "}}\n")?;
    struct_of(o, "Inputs", "The inputs: contiguous elements, the last axis fastest.", &i.inputs, "")?;
    struct_of(o, "Outputs", "Where the outputs go.", &i.outputs, "mut ")?;
    externs(o, n)?;
    o.push_str(&COMMON.replace("NAME", n));
    counts(o, i)?;
    model(o, i)
}

fn struct_of(o: &mut String, name: &str, doc: &str, tensors: &[Tensor], mutable: &str) -> std::fmt::Result {
    let lifetime = if tensors.is_empty() { "" } else { "<'a>" };
    writeln!(o, "/// {doc}\n#[derive(Debug)]\npub struct {name}{lifetime} {{")?;
    for t in tensors {
        let note = match t.elem {
            Elem::Bool => ", 0 or 1",
            Elem::I4 | Elem::U4 => ", two to a byte, the low half first",
            Elem::F16 => ", bits of IEEE half precision",
            Elem::Bf16 => ", upper half of the bits of a float",
            _ => "",
        };
        writeln!(o, "    /// `{}`: `{}`{note}.", comment(&t.info.name), comment(&t.info.type_text()))?;
        writeln!(o, "    pub {}: &'a {mutable}[{}],", t.info.c_name, rust_type(t.elem))?;
    }
    writeln!(o, "}}\n")
}

fn externs(o: &mut String, n: &str) -> std::fmt::Result {
    write!(
        o,
        "/// Runs `f(arg, begin, end)` on ranges that cover `0..n` once each and returns when all have returned. A thread that
/// gets the same part of every loop finds what it wrote before in its own caches.
pub type ParallelFor =
    unsafe extern \"C\" fn(user: *mut c_void, n: i64, f: unsafe extern \"C\" fn(*mut c_void, i64, i64), arg: *mut c_void);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Context([u64; {}]);

unsafe extern \"C\" {{
    fn {n}_init_cpu(ctx: *mut Context, weights: *const c_void, bytes: usize, variant: *const c_char) -> c_int;
    fn {n}_cpu_variant(ctx: *const Context) -> *const c_char;
    fn {n}_arena_bytes(dims: *const i64) -> usize;
    fn {n}_output_bytes(dims: *const i64, out: *mut usize) -> c_int;
    fn {n}_run_parallel(
        ctx: *const Context,
        dims: *const i64,
        inputs: *const *const c_void,
        outputs: *const *mut c_void,
        arena: *mut c_void,
        parallel_for: Option<ParallelFor>,
        user: *mut c_void,
    ) -> c_int;
    fn {n}_status_string(status: c_int) -> *const c_char;
    fn {n}_build_info() -> *const c_char;
}}

",
        abi::CONTEXT_BYTES / 8
    )
}

/// The methods of `Dims` that give lengths of slices.
fn counts(o: &mut String, i: &Interface) -> std::fmt::Result {
    let shaped: Vec<&Tensor> = i.inputs.iter().chain(&i.outputs).collect();
    for f in i.functions(&shaped) {
        o.push_str(match f {
            "floor_div" => {
                "fn floor_div(a: i64, b: i64) -> i64 {\n    let q = a / b;\n    if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q }\n}\n\n"
            }
            "floor_rem" => {
                "fn floor_rem(a: i64, b: i64) -> i64 {\n    let r = a % b;\n    if r != 0 && (r < 0) != (b < 0) { r + b } else { r }\n}\n\n"
            }
            "smaller" => "fn smaller(a: i64, b: i64) -> i64 {\n    a.min(b)\n}\n\n",
            _ => "fn larger(a: i64, b: i64) -> i64 {\n    a.max(b)\n}\n\n",
        });
    }
    for (what, tensors) in [("input", &i.inputs), ("output", &i.outputs)] {
        writeln!(o, "/// Elements of the slice of each {what}. The dimensions are in range.")?;
        let dims =
            if tensors.iter().any(|t| t.shape.iter().any(|e| !matches!(e, tfc_runtime::expr::Expr::Number(_)))) { "dims" } else { "_dims" };
        writeln!(o, "fn {what}_lengths({dims}: &Dims) -> [usize; {}] {{", tensors.len())?;
        let each: Vec<String> = tensors
            .iter()
            .map(|t| {
                let count = i.count(t, ".");
                if t.elem.bits() == 4 { format!("({count}) as usize / 2 + ({count}) as usize % 2") } else { as_usize(&count) }
            })
            .collect();
        writeln!(o, "    [{}]\n}}\n", each.join(", "))?;
    }
    Ok(())
}

fn as_usize(count: &str) -> String {
    if count.bytes().all(|b| b.is_ascii_digit()) { count.into() } else { format!("({count}) as usize") }
}

fn model(o: &mut String, i: &Interface) -> std::fmt::Result {
    let n = i.name();
    let weights = i.weights_file().is_some();
    let (generics, field) = if weights { ("<'w>", "&'w [u8]") } else { ("", "()") };
    let (parameter, doc, pointer) = match weights {
        true => (
            "weights: &'w [u8], ",
            " with the contents of the weights file, aligned to [`ALIGN`]: map it",
            "weights.as_ptr().cast(), weights.len()",
        ),
        false => ("", "", "std::ptr::null(), 0"),
    };
    let list = |tensors: &[Tensor], what: &str, f: &dyn Fn(&str) -> String| -> String {
        tensors.iter().map(|t| f(&format!("{what}.{}", t.info.c_name))).collect::<Vec<_>>().join(", ")
    };
    let lengths = |tensors: &[Tensor], what: &str| -> String {
        let given: Vec<String> = tensors.iter().map(|t| format!("({}, {what}.{}.len())", literal(&t.info.name), t.info.c_name)).collect();
        format!("[{}]", given.join(", "))
    };
    let inputs_ty = if i.inputs.is_empty() { "Inputs" } else { "Inputs<'_>" };
    let outputs_ty = if i.outputs.is_empty() { "Outputs" } else { "Outputs<'_>" };
    let (inputs_name, outputs_name) =
        (if i.inputs.is_empty() { "_inputs" } else { "inputs" }, if i.outputs.is_empty() { "_outputs" } else { "outputs" });
    let input_pointers = list(&i.inputs, "inputs", &|x| format!("{x}.as_ptr().cast()"));
    let output_pointers = list(&i.outputs, "outputs", &|x| format!("{x}.as_mut_ptr().cast()"));
    write!(
        o,
        "/// The model, ready to run, from any number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Model{generics} {{
    context: Context,
    weights: PhantomData<{field}>,
}}

impl{generics} Model{generics} {{
    /// The model{doc}. Uses the best CPU variant that runs here.
    pub fn new({}) -> Result<Self, Error> {{
        Self::with_cpu({}None)
    }}

    /// The model with a CPU variant by name.
    pub fn with_cpu({parameter}variant: Option<&CStr>) -> Result<Self, Error> {{
        let mut context = Context([0; {}]);
        let variant = variant.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the context is ours, the weights are a slice, and the name is a C string or null.
        check(unsafe {{ {n}_init_cpu(&mut context, {pointer}, variant) }})?;
        Ok(Model {{ context, weights: PhantomData }})
    }}

    /// The name of the CPU variant in use.
    pub fn cpu_variant(&self) -> &'static str {{
        // SAFETY: the context was initialised.
        text(unsafe {{ {n}_cpu_variant(&self.context) }})
    }}

    /// Runs the model on this thread, which needs [`STACK_BYTES`] of stack.
    pub fn run(&self, dims: &Dims, inputs: &{inputs_ty}, outputs: &mut {outputs_ty}, arena: &mut Arena) -> Result<(), Error> {{
        // SAFETY: without a callback there is nothing to promise.
        unsafe {{ self.run_parallel(dims, inputs, outputs, arena, None, std::ptr::null_mut()) }}
    }}

    /// Runs the model with `parallel_for(user, …)` for its parallel loops, whose threads need as much stack.
    ///
    /// # Safety
    ///
    /// `parallel_for` does what its type says when it is called with `user`.
    pub unsafe fn run_parallel(
        &self,
        dims: &Dims,
        {inputs_name}: &{inputs_ty},
        {outputs_name}: &mut {outputs_ty},
        arena: &mut Arena,
        parallel_for: Option<ParallelFor>,
        user: *mut c_void,
    ) -> Result<(), Error> {{
        dims.check()?;
        lengths(&input_lengths(dims), &{})?;
        lengths(&output_lengths(dims), &{})?;
        if arena.bytes() < dims.arena_bytes() {{
            return Err(Error::Length {{ what: \"the arena\", expected: dims.arena_bytes(), actual: arena.bytes() }});
        }}
        let inputs: [*const c_void; {}] = [{input_pointers}];
        let outputs: [*mut c_void; {}] = [{output_pointers}];
        // SAFETY: the context was initialised, every buffer has the length that the dimensions need and the
        // alignment of its elements, and exclusive references keep outputs and arena apart.
        check(unsafe {{
            {n}_run_parallel(&self.context, dims.as_ptr(), inputs.as_ptr(), outputs.as_ptr(), arena.0.as_mut_ptr().cast(), parallel_for, user)
        }})
    }}
}}
",
        parameter.trim_end_matches(", "),
        if weights { "weights, " } else { "" },
        abi::CONTEXT_BYTES / 8,
        lengths(&i.inputs, "inputs"),
        lengths(&i.outputs, "outputs"),
        i.inputs.len(),
        i.outputs.len(),
    )
}

const COMMON: &str = r#"/// Why a function refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A status of the C interface.
    Status(c_int),
    /// A slice has another length than the dimensions need, or the arena is too small.
    Length {
        /// Which one.
        what: &'static str,
        /// What the dimensions need.
        expected: usize,
        /// What is there.
        actual: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // SAFETY: every number has a sentence.
            Error::Status(code) => f.write_str(text(unsafe { NAME_status_string(*code) })),
            Error::Length { what, expected, actual } => write!(f, "{what} has length {actual} where the dimensions need {expected}"),
        }
    }
}

impl std::error::Error for Error {}

fn check(status: c_int) -> Result<(), Error> {
    if status == 0 { Ok(()) } else { Err(Error::Status(status)) }
}

fn lengths<const N: usize>(expected: &[usize; N], actual: &[(&'static str, usize); N]) -> Result<(), Error> {
    for (&expected, &(what, actual)) in expected.iter().zip(actual) {
        if actual != expected {
            return Err(Error::Length { what, expected, actual });
        }
    }
    Ok(())
}

fn text(p: *const c_char) -> &'static str {
    if p.is_null() {
        return "";
    }
    // SAFETY: the strings of the object are constants that end with a zero.
    unsafe { CStr::from_ptr(p) }.to_str().unwrap_or("")
}

/// Compiler, target and options in one line.
pub fn build_info() -> &'static str {
    // SAFETY: the function has no conditions.
    text(unsafe { NAME_build_info() })
}

impl Dims {
    fn as_ptr(&self) -> *const i64 {
        std::ptr::from_ref(self).cast()
    }

    /// The dimensions are in range and do not contradict each other.
    pub fn check(&self) -> Result<(), Error> {
        self.output_bytes().map(|_| ())
    }

    /// Bytes of the arena; 0 for dimensions that [`Dims::check`] refuses.
    pub fn arena_bytes(&self) -> usize {
        // SAFETY: the pointer is to as many numbers as the model has free dimensions.
        unsafe { NAME_arena_bytes(self.as_ptr()) }
    }

    /// Bytes of each output.
    pub fn output_bytes(&self) -> Result<[usize; OUTPUTS], Error> {
        let mut out = [0; OUTPUTS];
        // SAFETY: the pointers are to as many numbers as the model has free dimensions and outputs.
        check(unsafe { NAME_output_bytes(self.as_ptr(), out.as_mut_ptr()) })?;
        Ok(out)
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Memory for a call of [`Model::run`]. It may be used again, for the same or for smaller dimensions.
pub struct Arena(Vec<Line>);

impl Arena {
    /// Memory for calls with these dimensions.
    pub fn new(dims: &Dims) -> Result<Arena, Error> {
        dims.check()?;
        Ok(Arena(vec![Line([0; 64]); dims.arena_bytes().div_ceil(64)]))
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.0.len() * 64
    }
}

"#;
