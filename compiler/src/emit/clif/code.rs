//! Machine code of kernels: the function of the kernel and the helper functions that it calls, in one
//! piece without relocations.

use super::kernel_functions;
use super::target::Cpu;
use crate::emit::FRAME_BYTES;
use crate::kernel::Kernel;
use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::ExternalName;
use cranelift_codegen::{CodegenError, CompiledCode, Context, FinalizedRelocTarget};

/// The machine code of one kernel, which begins with its entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Code {
    /// Instructions and constants.
    pub bytes: Vec<u8>,
    /// Alignment of the begin.
    pub align: u64,
    /// The most bytes of the stack that a call takes, with its return address and what it calls.
    pub stack: u64,
}

/// A call of a helper function.
struct Call {
    /// Number of the function that calls.
    from: usize,
    /// The bytes to patch.
    at: usize,
    kind: Reloc,
    addend: i64,
    /// Number of the function.
    to: usize,
}

/// Compiles one kernel for one CPU.
///
/// # Errors
/// What Cranelift refuses: a bug of ours.
pub fn compile(kernel: &Kernel, cpu: &Cpu) -> Result<Code, CodegenError> {
    let mut out = Code { bytes: vec![], align: 1, stack: 0 };
    let (mut begins, mut calls, mut frames) = (vec![], vec![], vec![]);
    for function in kernel_functions(kernel, cpu) {
        // Values that registers have no room for come on top, a small part of what is left to callers.
        let frame: u64 = function.sized_stack_slots.values().map(|s| u64::from(s.size)).sum();
        debug_assert!(frame <= FRAME_BYTES, "a kernel takes {frame} bytes of the stack");
        let mut context = Context::for_function(function);
        context.compile(&*cpu.isa, &mut ControlPlane::default()).map_err(|e| e.inner)?;
        let code = context.compiled_code().expect("compiled");
        let align = u64::from(code.buffer.alignment).max(16);
        out.align = out.align.max(align);
        out.bytes.resize(out.bytes.len().next_multiple_of(align as usize), 0);
        let begin = out.bytes.len();
        frames.push(frame_bytes(code));
        begins.push(begin);
        out.bytes.extend_from_slice(code.code_buffer());
        for r in code.buffer.relocs() {
            let FinalizedRelocTarget::ExternalName(ExternalName::User(name)) = &r.target else {
                return Err(CodegenError::Unsupported(format!("a kernel refers to {:?}", r.target)));
            };
            let to = context.func.params.user_named_funcs()[*name].index as usize;
            calls.push(Call { from: begins.len() - 1, at: begin + r.offset as usize, kind: r.kind, addend: r.addend, to });
        }
    }
    for call in &calls {
        patch(&mut out.bytes, call, begins[call.to])?;
    }
    out.stack = deepest(0, &frames, &calls);
    Ok(out)
}

/// Bytes of the stack that a call of a function takes by itself: its frame, the frame pointer and the return address.
pub fn frame_bytes(code: &CompiledCode) -> u64 {
    16 + u64::from(code.buffer.frame_layout().expect("of a whole function").frame_to_fp_offset)
}

/// Bytes of the stack that a call of a function takes with what it calls. Helper functions do not call themselves.
fn deepest(function: usize, frames: &[u64], calls: &[Call]) -> u64 {
    let below = calls.iter().filter(|c| c.from == function).map(|c| deepest(c.to, frames, calls)).max();
    frames[function] + below.unwrap_or(0)
}

fn patch(bytes: &mut [u8], call: &Call, target: usize) -> Result<(), CodegenError> {
    let distance = target as i64 + call.addend - call.at as i64;
    let word = &mut bytes[call.at..call.at + 4];
    let old = u32::from_le_bytes(word.try_into().expect("four bytes"));
    let new = match call.kind {
        Reloc::X86CallPCRel4 | Reloc::X86PCRel4 => i32::try_from(distance).ok().map(|d| d as u32),
        // 26 bits, in instructions.
        Reloc::Arm64Call => (distance >> 2 >= -(1 << 25) && distance >> 2 < 1 << 25).then_some(old | (distance >> 2) as u32 & 0x03ff_ffff),
        _ => None,
    };
    let new = new.ok_or_else(|| CodegenError::Unsupported(format!("a call by {:?} over {distance} bytes", call.kind)))?;
    word.copy_from_slice(&new.to_le_bytes());
    Ok(())
}
