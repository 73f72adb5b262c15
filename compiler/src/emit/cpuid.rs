//! What the CPU can do, asked by code in the object: `fn() -> u64` with one bit per [`Feature`]. Bits
//! that need wide registers are set only if the operating system saves them (`xgetbv`).

use iced_x86::code_asm::{CodeAssembler, eax, ebx, ecx, r8d, r9d, r10d, r11d, rbx};
use iced_x86::{BlockEncoderOptions, IcedError};

/// An instruction set extension, numbered by its bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// AVX2, FMA, F16C, BMI1, BMI2, LZCNT, POPCNT and what they build on: x86-64-v3.
    Avx2 = 0,
    /// AVX-VNNI (VEX-coded `vpdpbusd`).
    AvxVnni = 1,
    /// AVX-512 F, BW, CD, DQ, VL and VNNI.
    Avx512Vnni = 2,
}

/// The features that a CPU variant needs, as bits.
pub fn required(variant: &str) -> u64 {
    match variant {
        "avx2" => 1 << Feature::Avx2 as u32,
        "avxvnni" => 1 << Feature::Avx2 as u32 | 1 << Feature::AvxVnni as u32,
        "avx512vnni" => 1 << Feature::Avx2 as u32 | 1 << Feature::Avx512Vnni as u32,
        _ => 0,
    }
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
    a.mov(r8d, ebx)?;
    a.mov(r9d, ecx)?;
    // Leaf 7: BMI1 3, AVX2 5, BMI2 8.
    let leaf7 = (1 << 3) | (1 << 5) | (1 << 8);
    a.mov(eax, r8d)?;
    a.and(eax, leaf7)?;
    a.cmp(eax, leaf7)?;
    a.jne(no_v3)?;
    a.or(r11d, 1 << Feature::Avx2 as i32)?;
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
    a.mov(eax, r8d)?;
    a.and(eax, avx512 as i32)?;
    a.cmp(eax, avx512 as i32)?;
    a.jne(no_512)?;
    a.bt(r9d, 11)?;
    a.jnc(no_512)?;
    a.or(r11d, 1 << Feature::Avx512Vnni as i32)?;
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
