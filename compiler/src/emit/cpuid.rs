//! What the CPU can do, asked by code in the object: `fn() -> u64` with one bit per [`Feature`]. Bits
//! that need wide registers are set only if the operating system saves them (`xgetbv`). Every bit
//! stands for the features before it as well: the ones of AVX-VNNI and AVX-512 are only set with AVX2's, that of
//! AMX only with AVX-512's.
//!
//! Linux keeps the matrix tiles of a process only if it was asked to (`arch_prctl(ARCH_REQ_XCOMP_PERM)`, see the
//! kernel's `Documentation/arch/x86/xstate.rst`); using them without is a fault. A function of its own asks, once for
//! all threads, where a variant with tiles is about to be picked: from then on alternative stacks of signals have to
//! have room for tiles, which nobody shall need who does not use them.

use super::clif::target::{Cpu, Wide};
use iced_x86::code_asm::{CodeAssembler, cl, eax, ebx, ecx, edi, edx, esi, r8d, r9d, r10d, r11d, rax, rbx};
use iced_x86::{BlockEncoderOptions, IcedError};
use tfc_runtime::cpu::{ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA};

/// An instruction set extension, numbered by its bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// AVX2, FMA, F16C, BMI1, BMI2, LZCNT, MOVBE, POPCNT and what they build on: x86-64-v3.
    Avx2 = 0,
    /// AVX-VNNI (VEX-coded `vpdpbusd`).
    AvxVnni = 1,
    /// AVX-512 F, BW, CD, DQ, VL and VNNI.
    Avx512Vnni = 2,
    /// AMX-TILE and AMX-INT8; the permission to use them is another matter.
    Amx = 3,
}

/// The features that a CPU variant needs, as bits.
pub fn required(cpu: &Cpu) -> u64 {
    let bit = |f: Feature| 1u64 << f as u32;
    match cpu.wide {
        None => 0,
        Some(Wide::Avx2) => bit(Feature::Avx2),
        Some(Wide::AvxVnni) => bit(Feature::Avx2) | bit(Feature::AvxVnni),
        Some(Wide::Avx512Vnni) => bit(Feature::Avx2) | bit(Feature::Avx512Vnni),
        Some(Wide::Amx) => bit(Feature::Avx2) | bit(Feature::Avx512Vnni) | bit(Feature::Amx),
    }
}

impl Feature {
    /// Whether the machine that the compiler runs on has it.
    pub fn is_here(self) -> bool {
        of_this_machine() & 1 << self as u32 != 0
    }
}

/// The features of the machine that the compiler runs on, as bits. Asks for what has to be asked for.
pub fn of_this_machine() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let v3 = has!("avx2") && has!("fma") && has!("f16c") && has!("movbe") && has!("popcnt");
        let v3 = v3 && has!("bmi1") && has!("bmi2") && has!("lzcnt");
        let wide = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
        let bit = |f: Feature, yes: bool| u64::from(v3 && yes) << f as u32;
        let wide = wide && has!("avx512vnni");
        bit(Feature::Avx2, true)
            | bit(Feature::AvxVnni, has!("avxvnni"))
            | bit(Feature::Avx512Vnni, wide)
            | bit(Feature::Amx, wide && tfc_runtime::cpu::matrix_tiles())
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Machine code of the function for x86-64, System V: clobbers only caller-saved registers.
///
/// # Errors
/// When the assembler refuses an instruction: our bug.
pub fn x86_features() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut done, mut no_avx, mut no_leaf7) = (a.create_label(), a.create_label(), a.create_label());
    let (mut no_v3, mut no_vnni, mut no_512) = (a.create_label(), a.create_label(), a.create_label());
    a.push(rbx)?;
    a.xor(r11d, r11d)?; // the answer
    a.xor(r10d, r10d)?; // XCR0
    a.xor(eax, eax)?;
    a.cpuid()?;
    a.mov(r8d, eax)?; // highest leaf
    a.cmp(r8d, 7)?;
    a.jb(no_leaf7)?;
    a.mov(eax, 1)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.mov(r9d, ecx)?;
    a.bt(r9d, 27)?; // OSXSAVE
    a.jnc(no_avx)?;
    a.xor(ecx, ecx)?;
    a.xgetbv()?;
    a.mov(r10d, eax)?;
    a.and(eax, 6)?;
    a.cmp(eax, 6)?; // XMM and YMM state
    a.jne(no_avx)?;
    // Leaf 1: FMA 12, SSE4.1 19, SSE4.2 20, MOVBE 22, POPCNT 23, AVX 28, F16C 29, SSSE3 9, SSE3 0.
    let leaf1 = (1 << 0) | (1 << 9) | (1 << 12) | (1 << 19) | (1 << 20) | (1 << 22) | (1 << 23) | (1 << 28) | (1 << 29);
    a.mov(eax, r9d)?;
    a.and(eax, leaf1)?;
    a.cmp(eax, leaf1)?;
    a.jne(no_v3)?;
    a.mov(eax, 0x8000_0001u32)?;
    a.cpuid()?;
    a.bt(ecx, 5)?; // LZCNT
    a.jnc(no_v3)?;
    a.mov(eax, 7)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.mov(r8d, eax)?;
    a.mov(r9d, ecx)?;
    a.mov(esi, ebx)?;
    // Leaf 7: BMI1 3, AVX2 5, BMI2 8.
    let leaf7 = (1 << 3) | (1 << 5) | (1 << 8);
    a.mov(eax, esi)?;
    a.and(eax, leaf7)?;
    a.cmp(eax, leaf7)?;
    a.jne(no_v3)?;
    a.or(r11d, 1 << Feature::Avx2 as i32)?;
    a.cmp(r8d, 1)?; // highest subleaf
    a.jb(no_vnni)?;
    a.mov(eax, 7)?;
    a.mov(ecx, 1)?;
    a.cpuid()?;
    a.bt(eax, 4)?; // AVX-VNNI
    a.jnc(no_vnni)?;
    a.or(r11d, 1 << Feature::AvxVnni as i32)?;
    a.set_label(&mut no_vnni)?;
    // XCR0: opmask, upper ZMM, high ZMM. Leaf 7: F 16, DQ 17, CD 28, BW 30, VL 31; ecx VNNI 11.
    a.mov(eax, r10d)?;
    a.and(eax, 0xe6)?;
    a.cmp(eax, 0xe6)?;
    a.jne(no_512)?;
    let avx512 = (1u32 << 16) | (1 << 17) | (1 << 28) | (1 << 30) | (1 << 31);
    a.mov(eax, esi)?;
    a.and(eax, avx512 as i32)?;
    a.cmp(eax, avx512 as i32)?;
    a.jne(no_512)?;
    a.bt(r9d, 11)?;
    a.jnc(no_512)?;
    a.or(r11d, 1 << Feature::Avx512Vnni as i32)?;
    // XCR0: tile configuration 17 and data 18. Leaf 7: edx AMX-TILE 24, AMX-INT8 25.
    let tiles = (1 << 17) | (1 << 18);
    a.and(r10d, tiles)?;
    a.cmp(r10d, tiles)?;
    a.jne(no_512)?;
    let amx = (1 << 24) | (1 << 25);
    a.mov(eax, 7)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.and(edx, amx)?;
    a.cmp(edx, amx)?;
    a.jne(no_512)?;
    a.or(r11d, 1 << Feature::Amx as i32)?;
    a.set_label(&mut no_512)?;
    a.jmp(done)?;
    a.set_label(&mut no_leaf7)?;
    a.nop()?;
    a.set_label(&mut no_avx)?;
    a.nop()?;
    a.set_label(&mut no_v3)?;
    a.nop()?;
    a.set_label(&mut done)?;
    a.mov(eax, r11d)?;
    a.pop(rbx)?;
    a.ret()?;
    let encoded = a.assemble_options(0, BlockEncoderOptions::NONE)?;
    Ok(encoded.inner.code_buffer)
}

/// Machine code of a function for Linux on x86-64, `fn() -> u64`: asks for the use of matrix tiles, and returns whether
/// it is allowed. Clobbers only caller-saved registers.
///
/// # Errors
/// When the assembler refuses an instruction: our bug.
pub fn x86_permission() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(eax, ARCH_PRCTL)?;
    a.mov(edi, ARCH_REQ_XCOMP_PERM)?;
    a.mov(esi, XFEATURE_XTILEDATA)?;
    a.syscall()?;
    a.xor(ecx, ecx)?;
    a.test(rax, rax)?;
    a.sete(cl)?;
    a.mov(eax, ecx)?;
    a.ret()?;
    a.assemble(0)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use cranelift_codegen::ir::{AbiParam, types};
    use cranelift_module::{Linkage, Module};

    /// What assembled code returns.
    fn call(code: &[u8]) -> u64 {
        let builder = cranelift_jit::JITBuilder::new(cranelift_module::default_libcall_names()).unwrap();
        let mut module = cranelift_jit::JITModule::new(builder);
        let mut signature = module.make_signature();
        signature.returns.push(AbiParam::new(types::I64));
        let id = module.declare_function("code", Linkage::Local, &signature).unwrap();
        module.define_function_bytes(id, 16, code, &[]).unwrap();
        module.finalize_definitions().unwrap();
        let address = module.get_finalized_function(id);
        // SAFETY: the code takes nothing, returns a word, and keeps to the C convention; the module is
        // alive.
        #[allow(unsafe_code, reason = "calling assembled code in this process")]
        let found = unsafe { std::mem::transmute::<*const u8, extern "C" fn() -> u64>(address)() };
        // SAFETY: nothing runs the code any more.
        #[allow(unsafe_code, reason = "freeing assembled code")]
        unsafe {
            module.free_memory();
        }
        found
    }

    #[test]
    fn the_code_finds_what_the_standard_library_finds() {
        let tiles = 1 << Feature::Amx as u32;
        let found = call(&x86_features().unwrap());
        assert_eq!(found & !tiles, of_this_machine() & !tiles);
        let allowed = cfg!(target_os = "linux") && found & tiles != 0 && call(&x86_permission().unwrap()) != 0;
        assert_eq!(allowed, Feature::Amx.is_here());
    }
}
