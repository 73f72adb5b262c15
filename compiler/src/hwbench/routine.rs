//! Assembled code in this process, with the ABI of kernels.

use crate::emit::clif::code::Code;
use crate::emit::jit::{JitError, Loose};
use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Code as Opcode, IcedError, Instruction, Register};

/// A routine `(args: *const u64, begin: i64, end: i64)` in executable memory.
pub struct Routine(Loose);

impl Routine {
    /// Assembles a routine: `build` writes all of it, with the arguments in `rdi`, `rsi` and `rdx`.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Result<Routine, JitError> {
        let assembled = CodeAssembler::new(64).and_then(|mut a| {
            build(&mut a)?;
            a.assemble(0)
        });
        let bytes = assembled.expect("the instructions are valid");
        Loose::new(&Code { bytes, align: 64, stack: 0 }).map(Routine)
    }

    /// Calls it.
    ///
    /// # Safety
    ///
    /// The routine may be called with these words and numbers.
    #[allow(unsafe_code, reason = "only the caller knows what the routine does")]
    pub unsafe fn call(&self, args: &[u64], begin: i64, end: i64) {
        // SAFETY: as the caller promises.
        unsafe { self.0.call(args.as_ptr(), begin, end) }
    }
}

/// Appends an instruction with up to three register operands.
///
/// # Errors
/// When the operands do not fit the opcode.
pub fn op(a: &mut CodeAssembler, code: Opcode, operands: &[Register]) -> Result<(), IcedError> {
    a.add_instruction(match *operands {
        [] => Instruction::with(code),
        [x] => Instruction::with1(code, x)?,
        [x, y] => Instruction::with2(code, x, y)?,
        [x, y, z] => Instruction::with3(code, x, y, z)?,
        _ => unreachable!("three operands at most"),
    })
}
