//! The wide emitter: kernels as machine code of 256 and 512 bits for x86-64.
//!
//! A kernel becomes one function of the same form as the portable emitter's, without relocations. It is
//! written once over an assembler with virtual registers ([`asm`]); the instruction set ([`isa`]) says how
//! wide vectors are. What it does not cover is left to the portable emitter, kernel by kernel.

mod alloc;
pub mod asm;
mod encode;
pub mod isa;
