//! Code generation: kernels to machine code, programs to modules, modules to objects or into memory.

pub mod candidates;
pub mod clif;
pub mod cpuid;
mod dims;
mod entry;
pub mod jit;
pub mod layout;
pub mod manifest;
pub mod module;
pub mod names;
pub mod object;
pub mod x86;

/// The largest frame of a kernel, in bytes: threads with small stacks have 256 KiB and more.
const FRAME_BYTES: u64 = 192 << 10;
