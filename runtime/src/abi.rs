//! The C ABI of generated code, version 1, in the form that fits every model.
//!
//! A generated header has one struct type per model for dimensions, inputs and outputs. All fields of
//! such a struct have one type, so in memory it is an array, and that is how it appears here:
//!
//! | C type | here | one element per |
//! |---|---|---|
//! | `NAME_dims` | `*const i64` | symbol, in the order of the manifest |
//! | `NAME_inputs` | `*const *const c_void` | input, in the order of the manifest |
//! | `NAME_outputs` | `*const *mut c_void` | output, in the order of the manifest |
//!
//! A pointer to an array of no elements is never read and may be null.
//!
//! # What generated code promises
//!
//! - It allocates nothing, locks nothing, starts no thread, and writes only to the context (in `init`),
//!   to the outputs and to the arena. Calls that share none of the latter two may run at the same time.
//! - Every function checks its arguments in the order of this list and returns the first [`Status`]
//!   that applies: pointers that must not be null ([`Status::NullPointer`]), the context
//!   ([`Status::Context`]), each dimension in its range ([`Status::DimensionRange`]), the conditions
//!   between dimensions ([`Status::DimensionMismatch`]), the arena ([`Status::Arena`]).
//! - Whatever the numbers in the inputs are, it reads and writes only within the buffers.
//! - A call, of `run` or of a part of a parallel loop, takes at most as much of the stack of its thread as
//!   `NAME_STACK_BYTES` in the model's header says. On the way down it touches every page, so a stack that is too
//!   small ends in a fault at its guard page and never in a write beyond it.
//!
//! # What callers promise
//!
//! - Inputs, outputs and the arena have at least the bytes that belong to the dimensions, and no
//!   output overlaps another buffer of the call.
//! - Inputs and outputs are aligned to their elements ([`crate::elem::Elem::align`]), the arena and
//!   the weights to [`ALIGN`].
//! - The weights stay in place, unchanged, for as long as the context is in use. The context itself may
//!   be copied and moved.

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::mem::{offset_of, size_of};

/// The version of the ABI: functions, their meaning, and status codes.
pub const ABI_VERSION: u32 = 1;
/// Alignment in bytes of the arena, of every slot in it, and of each packed weight.
pub const ALIGN: usize = 64;
/// Bytes of a context.
pub const CONTEXT_BYTES: usize = 64;
/// The first word of a context that `init` has filled.
pub const CONTEXT_MAGIC: u64 = u64::from_le_bytes(*b"TFCCTX01");
/// The first word of an entry.
pub const ENTRY_MAGIC: u64 = u64::from_le_bytes(*b"TFCENTRY");
/// The version of the layout of [`Entry`].
pub const ENTRY_VERSION: u32 = 1;
/// What follows the model's name in the symbol of its entry.
pub const ENTRY_SUFFIX: &str = "_entry";
/// Bit of [`Entry::flags`]: the weights are in the object, `init` takes null and 0 and ignores others.
pub const FLAG_EMBEDDED_WEIGHTS: u32 = 1;

/// Bit of [`Context::flags`]: `run_parallel` hands every step to the callback, once and in the order of
/// [`crate::manifest::Manifest::kernels`], so that the callback can time it. A step with `n` tasks that
/// would have run inline comes as `!n`, a negative number: the callback runs `0..n` on its own thread.
pub const CONTEXT_EVERY_STEP: u32 = 1;

/// `NAME_context`: what `init` found out, owned by the caller. 64 bytes, aligned to 8 (C99 has no way
/// to ask for more), declared in headers as `uint64_t opaque[8]`. It begins as zeros or anything else;
/// `init` writes every field on success, and only zeros on failure.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// [`Context::magic_for`] the compilation, so that the context of another model is noticed. All
    /// functions that take a context compare it.
    pub magic: u64,
    /// The first byte of the packed weights, behind the header; null if the model has none.
    pub weights: *const u8,
    /// Position of the chosen variant in the manifest's list of CPU variants.
    pub variant: u32,
    /// 0 as `init` leaves it, or [`CONTEXT_EVERY_STEP`] in a copy that a profiler made.
    pub flags: u32,
    /// Zero.
    pub reserved: [u64; 5],
}

/// Byte offsets in [`Context`], for code generators.
pub mod context_offset {
    /// [`super::Context::magic`], 8 bytes.
    pub const MAGIC: usize = 0;
    /// [`super::Context::weights`], a pointer.
    pub const WEIGHTS: usize = 8;
    /// [`super::Context::variant`], 4 bytes.
    pub const VARIANT: usize = 16;
    /// [`super::Context::flags`], 4 bytes.
    pub const FLAGS: usize = 20;
    /// Everything from here to the end is zero.
    pub const RESERVED: usize = 24;
}

const _: () = {
    assert!(size_of::<Context>() == CONTEXT_BYTES);
    assert!(offset_of!(Context, magic) == context_offset::MAGIC);
    assert!(offset_of!(Context, weights) == context_offset::WEIGHTS);
    assert!(offset_of!(Context, variant) == context_offset::VARIANT);
    assert!(offset_of!(Context, flags) == context_offset::FLAGS);
    assert!(offset_of!(Context, reserved) == context_offset::RESERVED);
};

impl Context {
    /// A context that `init` has not filled.
    pub const EMPTY: Context = Context { magic: 0, weights: std::ptr::null(), variant: 0, flags: 0, reserved: [0; 5] };

    /// The first word of a context of the compilation `id`: a number that the compiler derives from the
    /// model, the packed weights and the options. Loaders do not need it.
    pub const fn magic_for(id: u64) -> u64 {
        CONTEXT_MAGIC ^ id
    }
}

/// A part of a parallel loop: does the iterations `begin..end`. `arg` is what the caller of
/// [`ParallelForFn`] gave. Parts may run at the same time.
pub type RangeFn = unsafe extern "C" fn(arg: *mut c_void, begin: i64, end: i64);

/// `NAME_parallel_for`: splits `0..n` into ranges, calls `f(arg, begin, end)` so that every index is in
/// exactly one range, on whichever threads, and returns when all calls have returned. `n` may be 0. A thread that gets the
/// same part of every loop finds what it wrote before in its own caches.
pub type ParallelForFn = unsafe extern "C" fn(user: *mut c_void, n: i64, f: RangeFn, arg: *mut c_void);

/// `NAME_init`: checks the weights (a whole file, header included) and picks the best CPU variant.
pub type InitFn = unsafe extern "C" fn(ctx: *mut Context, weights: *const c_void, bytes: usize) -> c_int;
/// `NAME_init_cpu`: the same with the variant called `variant`, or the best one for null.
pub type InitCpuFn = unsafe extern "C" fn(ctx: *mut Context, weights: *const c_void, bytes: usize, variant: *const c_char) -> c_int;
/// `NAME_cpu_variant`: the name of the chosen variant; null for null or a context that was not initialised.
pub type CpuVariantFn = unsafe extern "C" fn(ctx: *const Context) -> *const c_char;
/// `NAME_arena_bytes`: bytes of the arena at these dimensions, a multiple of [`ALIGN`] and never 0;
/// 0 for null, for dimensions out of range or in contradiction.
pub type ArenaBytesFn = unsafe extern "C" fn(dims: *const i64) -> usize;
/// `NAME_output_bytes`: writes the bytes of each output at these dimensions.
pub type OutputBytesFn = unsafe extern "C" fn(dims: *const i64, out: *mut usize) -> c_int;
/// `NAME_run`: runs the model on the calling thread.
pub type RunFn = unsafe extern "C" fn(
    ctx: *const Context,
    dims: *const i64,
    inputs: *const *const c_void,
    outputs: *const *mut c_void,
    arena: *mut c_void,
) -> c_int;
/// `NAME_run_parallel`: runs the model with `pf(user, …)` for its parallel loops; null runs them inline.
pub type RunParallelFn = unsafe extern "C" fn(
    ctx: *const Context,
    dims: *const i64,
    inputs: *const *const c_void,
    outputs: *const *mut c_void,
    arena: *mut c_void,
    pf: Option<ParallelForFn>,
    user: *mut c_void,
) -> c_int;
/// `NAME_status_string`: the sentence of a status; for a number that is none, a sentence that says so.
pub type StatusStringFn = unsafe extern "C" fn(status: c_int) -> *const c_char;
/// `NAME_build_info`: compiler, target and options in one line.
pub type BuildInfoFn = unsafe extern "C" fn() -> *const c_char;

/// `NAME_entry`: everything a loader needs, in one exported, constant struct of 128 bytes, aligned to 8.
/// Integers are in the byte order of the target. Function pointers are never null. Later versions of
/// the layout only add fields behind these.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// [`ENTRY_MAGIC`].
    pub magic: u64,
    /// [`ENTRY_VERSION`].
    pub version: u32,
    /// Bytes of this struct.
    pub bytes: u32,
    /// [`ABI_VERSION`].
    pub abi_version: u32,
    /// [`FLAG_EMBEDDED_WEIGHTS`] or 0.
    pub flags: u32,
    /// [`CONTEXT_BYTES`].
    pub context_bytes: u32,
    /// Number of symbols: elements of `NAME_dims`.
    pub dims: u32,
    /// Number of inputs.
    pub inputs: u32,
    /// Number of outputs.
    pub outputs: u32,
    /// The encoded [`crate::manifest::Manifest`].
    pub manifest: *const u8,
    /// Bytes of the encoded manifest.
    pub manifest_bytes: u64,
    /// `NAME_init`.
    pub init: InitFn,
    /// `NAME_init_cpu`.
    pub init_cpu: InitCpuFn,
    /// `NAME_cpu_variant`.
    pub cpu_variant: CpuVariantFn,
    /// `NAME_arena_bytes`.
    pub arena_bytes: ArenaBytesFn,
    /// `NAME_output_bytes`.
    pub output_bytes: OutputBytesFn,
    /// `NAME_run`.
    pub run: RunFn,
    /// `NAME_run_parallel`.
    pub run_parallel: RunParallelFn,
    /// `NAME_status_string`.
    pub status_string: StatusStringFn,
    /// `NAME_build_info`.
    pub build_info: BuildInfoFn,
}

/// Byte offsets in [`Entry`], for code generators. Pointers have 8 bytes on every supported target.
pub mod entry_offset {
    /// [`super::Entry::magic`], 8 bytes.
    pub const MAGIC: usize = 0;
    /// [`super::Entry::version`], 4 bytes.
    pub const VERSION: usize = 8;
    /// [`super::Entry::bytes`], 4 bytes.
    pub const BYTES: usize = 12;
    /// [`super::Entry::abi_version`], 4 bytes.
    pub const ABI_VERSION: usize = 16;
    /// [`super::Entry::flags`], 4 bytes.
    pub const FLAGS: usize = 20;
    /// [`super::Entry::context_bytes`], 4 bytes.
    pub const CONTEXT_BYTES: usize = 24;
    /// [`super::Entry::dims`], 4 bytes.
    pub const DIMS: usize = 28;
    /// [`super::Entry::inputs`], 4 bytes.
    pub const INPUTS: usize = 32;
    /// [`super::Entry::outputs`], 4 bytes.
    pub const OUTPUTS: usize = 36;
    /// [`super::Entry::manifest`], a pointer.
    pub const MANIFEST: usize = 40;
    /// [`super::Entry::manifest_bytes`], 8 bytes.
    pub const MANIFEST_BYTES: usize = 48;
    /// [`super::Entry::init`], a pointer; the other functions follow.
    pub const INIT: usize = 56;
    /// [`super::Entry::init_cpu`], a pointer.
    pub const INIT_CPU: usize = 64;
    /// [`super::Entry::cpu_variant`], a pointer.
    pub const CPU_VARIANT: usize = 72;
    /// [`super::Entry::arena_bytes`], a pointer.
    pub const ARENA_BYTES: usize = 80;
    /// [`super::Entry::output_bytes`], a pointer.
    pub const OUTPUT_BYTES: usize = 88;
    /// [`super::Entry::run`], a pointer.
    pub const RUN: usize = 96;
    /// [`super::Entry::run_parallel`], a pointer.
    pub const RUN_PARALLEL: usize = 104;
    /// [`super::Entry::status_string`], a pointer.
    pub const STATUS_STRING: usize = 112;
    /// [`super::Entry::build_info`], a pointer.
    pub const BUILD_INFO: usize = 120;
    /// Bytes of the struct.
    pub const END: usize = 128;
}

#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<Entry>() == entry_offset::END);
    assert!(offset_of!(Entry, magic) == entry_offset::MAGIC);
    assert!(offset_of!(Entry, version) == entry_offset::VERSION);
    assert!(offset_of!(Entry, bytes) == entry_offset::BYTES);
    assert!(offset_of!(Entry, abi_version) == entry_offset::ABI_VERSION);
    assert!(offset_of!(Entry, flags) == entry_offset::FLAGS);
    assert!(offset_of!(Entry, context_bytes) == entry_offset::CONTEXT_BYTES);
    assert!(offset_of!(Entry, dims) == entry_offset::DIMS);
    assert!(offset_of!(Entry, inputs) == entry_offset::INPUTS);
    assert!(offset_of!(Entry, outputs) == entry_offset::OUTPUTS);
    assert!(offset_of!(Entry, manifest) == entry_offset::MANIFEST);
    assert!(offset_of!(Entry, manifest_bytes) == entry_offset::MANIFEST_BYTES);
    assert!(offset_of!(Entry, init) == entry_offset::INIT);
    assert!(offset_of!(Entry, init_cpu) == entry_offset::INIT_CPU);
    assert!(offset_of!(Entry, cpu_variant) == entry_offset::CPU_VARIANT);
    assert!(offset_of!(Entry, arena_bytes) == entry_offset::ARENA_BYTES);
    assert!(offset_of!(Entry, output_bytes) == entry_offset::OUTPUT_BYTES);
    assert!(offset_of!(Entry, run) == entry_offset::RUN);
    assert!(offset_of!(Entry, run_parallel) == entry_offset::RUN_PARALLEL);
    assert!(offset_of!(Entry, status_string) == entry_offset::STATUS_STRING);
    assert!(offset_of!(Entry, build_info) == entry_offset::BUILD_INFO);
};

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $sentence:literal;)*) => {
        /// What the functions of generated code return. The numbers are part of the ABI: they are
        /// never reused, later versions may add some.
        #[repr(i32)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Status {
            $($(#[$doc])* $name = $code,)*
        }

        impl Status {
            /// Every status, in the order of the numbers, which have no gaps.
            pub const ALL: &[Status] = &[$(Status::$name),*];

            /// The sentence that `NAME_status_string` returns.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Status::$name => $sentence,)*
                }
            }
        }
    };
}

statuses! {
    /// Success.
    Ok = 0, "success";
    /// A pointer argument, or a pointer to an input or output, is null.
    NullPointer = 1, "a pointer that must not be null is null";
    /// The context was not filled by this model's `init`.
    Context = 2, "the context was not initialised by the init function of this model";
    /// A dimension is outside of the range that the model was compiled for.
    DimensionRange = 3, "a dimension is outside of the range that the model was compiled for";
    /// Dimensions that must agree do not: a condition that the compiler could not prove is false.
    DimensionMismatch = 4, "the dimensions contradict each other: a condition of the model between them does not hold";
    /// The arena is null or not aligned to [`ALIGN`].
    Arena = 5, "the arena is null or not aligned to 64 bytes";
    /// No weights, or fewer bytes than the model's weights have.
    WeightsMissing = 6, "the weights are missing or cut off: pass the whole weights file";
    /// The weights do not begin with the magic of a weights file.
    WeightsMagic = 7, "the weights do not begin with the magic of a weights file";
    /// A weights file of another format version.
    WeightsVersion = 8, "the weights file has another format version than this code";
    /// A weights file of another compilation: its byte count or hash is not the code's.
    WeightsMismatch = 9, "the weights file belongs to another compilation than this code";
    /// The weights are not aligned to [`ALIGN`].
    WeightsAlignment = 10, "the weights are not aligned to 64 bytes: map the file or copy it to aligned memory";
    /// The object has no CPU variant of that name.
    CpuUnknown = 11, "the object has no CPU variant of this name";
    /// The object has the CPU variant, but this CPU or operating system cannot run it.
    CpuNotRunnable = 12, "the requested CPU variant cannot run on this CPU";
    /// No CPU variant of the object can run here.
    CpuTooOld = 13, "this CPU lacks instructions that every variant of the object needs";
    /// An index in the inputs, or computed from them, is outside of the tensor that it selects from.
    IndexRange = 14, "an index is outside of the tensor that it selects from";
}

impl Status {
    /// The status with this number.
    pub fn from_code(code: c_int) -> Option<Status> {
        usize::try_from(code).ok().and_then(|i| Status::ALL.get(i)).copied()
    }

    /// Its number.
    pub const fn code(self) -> c_int {
        self as c_int
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// What `NAME_status_string` returns for a number that is no [`Status`].
pub const UNKNOWN_STATUS: &str = "unknown status";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_gaps() {
        for (i, s) in Status::ALL.iter().enumerate() {
            assert_eq!(s.code(), i as c_int);
            assert_eq!(Status::from_code(s.code()), Some(*s));
        }
        assert_eq!(Status::from_code(-1), None);
        assert_eq!(Status::from_code(Status::ALL.len() as c_int), None);
    }
}
