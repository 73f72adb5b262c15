//! The wide emitter: kernels as machine code of 256 and 512 bits for x86-64.
//!
//! A kernel becomes one function of the same form as the portable emitter's, without relocations. It is
//! written once over an assembler with virtual registers ([`asm`]); the instruction set ([`isa`]) says how
//! wide vectors are. What it does not cover is left to the portable emitter, kernel by kernel.

mod alloc;
pub mod asm;
mod attention;
mod bytes;
mod codes;
mod columns;
mod dequantized;
mod encode;
mod epilogue;
pub mod expr;
mod floats;
mod gelu;
mod gemm;
pub mod isa;
pub mod math;
mod matrix;
mod nest;
mod pack;
mod quantize;
mod quantized;
mod row;
mod rows;
mod strip;
#[cfg(test)]
mod tests;
mod tile;

use crate::emit::clif::code::Code;
use crate::emit::clif::target::Cpu;
use crate::kernel::{Body, Kernel};
use asm::Asm;
use cranelift_codegen::CodegenError;
use expr::Function;

/// Whether this emitter covers a kernel.
pub fn covers(kernel: &Kernel) -> bool {
    match &kernel.body {
        Body::Nest(n) => nest::covers(kernel, n),
        Body::Pack(p) => pack::covers(kernel, p),
        Body::Gemm(g) => gemm::covers(kernel, g),
        Body::Attention(a) => attention::covers(a),
        Body::TopK(_) => false,
    }
}

/// Whether the packed operand that a kernel writes or reads can be in rows instead of tiles, with matrix tiles.
pub fn takes_rows(kernel: &Kernel) -> bool {
    covers(kernel)
        && match &kernel.body {
            Body::Pack(p) => rows::covers(p),
            Body::Gemm(g) => matrix::covers(g),
            Body::Nest(_) | Body::Attention(_) | Body::TopK(_) => false,
        }
}

/// Compiles a kernel that this emitter covers, for a CPU with a wide instruction set.
///
/// # Errors
/// What the encoder refuses: a bug of ours.
pub fn compile(kernel: &Kernel, cpu: &Cpu) -> Result<Code, CodegenError> {
    let isa = cpu.wide.ok_or_else(|| CodegenError::Unsupported(format!("wide code for {}", cpu.name)))?;
    let (a, [args, begin, end]) = Asm::new(isa);
    let mut f = Function { a, args, buffers: kernel.buffers.len(), sites: vec![] };
    match &kernel.body {
        Body::Nest(n) => {
            codes::bring_sites(&mut f, &n.exprs);
            nest::emit(&mut f, n, begin, end);
        }
        Body::Pack(p) => pack::emit(&mut f, p, begin, end),
        Body::Gemm(g) => {
            codes::bring_sites(&mut f, &g.exprs);
            gemm::emit(&mut f, g, begin, end);
        }
        Body::Attention(a) => attention::emit(&mut f, a, begin, end),
        Body::TopK(_) => return Err(CodegenError::Unsupported("wide code for selection".into())),
    }
    f.a.finish().map_err(|e| CodegenError::Unsupported(format!("wide code: {e}")))
}
