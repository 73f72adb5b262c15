//! Wide instruction sets as parameters: how wide a vector is, how many registers there are, and which
//! encoding of an operation a variant uses.

use iced_x86::{Code, Register};

pub use crate::emit::clif::target::Wide as Isa;

impl Isa {
    /// Bytes of a vector.
    pub fn bytes(self) -> i64 {
        if self.evex() { 64 } else { 32 }
    }

    /// 32-bit lanes of a vector.
    pub fn lanes(self) -> i64 {
        self.bytes() / 4
    }

    /// Vector registers.
    pub fn registers(self) -> usize {
        if self.evex() { 32 } else { 16 }
    }

    /// Whether instructions are EVEX-coded: masks, embedded broadcasts, 32 registers.
    pub fn evex(self) -> bool {
        matches!(self, Isa::Avx512Vnni | Isa::Amx)
    }

    /// Whether there are registers of matrix tiles, and products of them.
    pub fn matrix_tiles(self) -> bool {
        self == Isa::Amx
    }

    /// Whether four products of bytes are added to 32 bits by one instruction.
    pub fn has_vnni(self) -> bool {
        self != Isa::Avx2
    }
}

/// The width of an operand in an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// A whole vector.
    Full,
    /// Its lower half.
    Half,
    /// Its lowest 128 bits.
    Xmm,
    /// A general register of 32 bits.
    Word,
    /// A general register.
    Long,
    /// A mask: a vector, or with EVEX an opmask register.
    Mask,
}

impl Width {
    /// The register of this width with a number.
    pub fn register(self, isa: Isa, number: usize) -> Register {
        let n = number as u32;
        match self {
            Width::Full if isa.evex() => Register::ZMM0 + n,
            Width::Half if !isa.evex() => Register::XMM0 + n,
            Width::Full | Width::Half => Register::YMM0 + n,
            Width::Xmm => Register::XMM0 + n,
            Width::Word => Register::EAX + n,
            Width::Long => Register::RAX + n,
            Width::Mask if isa.evex() => Register::K0 + n,
            Width::Mask => Register::YMM0 + n,
        }
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident: $vex:ident, $evex:ident, $($width:ident)*;)*) => {
        /// A vector operation that both encodings have.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Op {
            $($(#[$doc])* $name,)*
        }

        impl Op {
            /// The instruction of an instruction set.
            pub fn code(self, isa: Isa) -> Code {
                match self {
                    $(Op::$name => if isa.evex() { Code::$evex } else { Code::$vex },)*
                }
            }

            /// The widths of its register operands, the result first.
            pub fn widths(self) -> &'static [Width] {
                match self {
                    $(Op::$name => &[$(Width::$width),*],)*
                }
            }
        }
    };
}

operations! {
    /// f32 sum.
    AddPs: VEX_Vaddps_ymm_ymm_ymmm256, EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er, Full Full Full;
    /// f32 difference.
    SubPs: VEX_Vsubps_ymm_ymm_ymmm256, EVEX_Vsubps_zmm_k1z_zmm_zmmm512b32_er, Full Full Full;
    /// f32 product.
    MulPs: VEX_Vmulps_ymm_ymm_ymmm256, EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er, Full Full Full;
    /// f32 quotient.
    DivPs: VEX_Vdivps_ymm_ymm_ymmm256, EVEX_Vdivps_zmm_k1z_zmm_zmmm512b32_er, Full Full Full;
    /// The greater of two f32; the second where one is NaN.
    MaxPs: VEX_Vmaxps_ymm_ymm_ymmm256, EVEX_Vmaxps_zmm_k1z_zmm_zmmm512b32_sae, Full Full Full;
    /// The lesser of two f32; the second where one is NaN.
    MinPs: VEX_Vminps_ymm_ymm_ymmm256, EVEX_Vminps_zmm_k1z_zmm_zmmm512b32_sae, Full Full Full;
    /// f32 square root.
    SqrtPs: VEX_Vsqrtps_ymm_ymmm256, EVEX_Vsqrtps_zmm_k1z_zmmm512b32_er, Full Full;
    /// Integral f32 by the rounding mode of the immediate.
    RoundPs: VEX_Vroundps_ymm_ymmm256_imm8, EVEX_Vrndscaleps_zmm_k1z_zmmm512b32_imm8_sae, Full Full;
    /// f32 to i32, half to even.
    CvtPs2Dq: VEX_Vcvtps2dq_ymm_ymmm256, EVEX_Vcvtps2dq_zmm_k1z_zmmm512b32_er, Full Full;
    /// f32 to i32, towards 0.
    CvttPs2Dq: VEX_Vcvttps2dq_ymm_ymmm256, EVEX_Vcvttps2dq_zmm_k1z_zmmm512b32_sae, Full Full;
    /// i32 to f32.
    CvtDq2Ps: VEX_Vcvtdq2ps_ymm_ymmm256, EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er, Full Full;
    /// `dst = dst * a + b`.
    Fma213: VEX_Vfmadd213ps_ymm_ymm_ymmm256, EVEX_Vfmadd213ps_zmm_k1z_zmm_zmmm512b32_er, Full Full Full;
    /// `dst = a * b + dst`.
    Fma231: VEX_Vfmadd231ps_ymm_ymm_ymmm256, EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, Full Full Full;
    /// `dst = -(a * b) + dst`.
    Fnma231: VEX_Vfnmadd231ps_ymm_ymm_ymmm256, EVEX_Vfnmadd231ps_zmm_k1z_zmm_zmmm512b32_er, Full Full Full;
    /// i32 sum.
    AddD: VEX_Vpaddd_ymm_ymm_ymmm256, EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// i32 difference.
    SubD: VEX_Vpsubd_ymm_ymm_ymmm256, EVEX_Vpsubd_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// i32 product.
    MulD: VEX_Vpmulld_ymm_ymm_ymmm256, EVEX_Vpmulld_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// The greater i32.
    MaxD: VEX_Vpmaxsd_ymm_ymm_ymmm256, EVEX_Vpmaxsd_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// The lesser i32.
    MinD: VEX_Vpminsd_ymm_ymm_ymmm256, EVEX_Vpminsd_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// Bits of both.
    And: VEX_Vpand_ymm_ymm_ymmm256, EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// Bits of the second that the first has not.
    AndNot: VEX_Vpandn_ymm_ymm_ymmm256, EVEX_Vpandnd_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// Bits of either.
    Or: VEX_Vpor_ymm_ymm_ymmm256, EVEX_Vpord_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// Bits of one.
    Xor: VEX_Vpxor_ymm_ymm_ymmm256, EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// Left shift of 32 bits by the immediate.
    ShlD: VEX_Vpslld_ymm_ymm_imm8, EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8, Full Full;
    /// Logical right shift of 32 bits by the immediate.
    ShrD: VEX_Vpsrld_ymm_ymm_imm8, EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8, Full Full;
    /// Arithmetic right shift of 32 bits by the immediate.
    SarD: VEX_Vpsrad_ymm_ymm_imm8, EVEX_Vpsrad_zmm_k1z_zmmm512b32_imm8, Full Full;
    /// Logical right shift of 16 bits by the immediate.
    ShrW: VEX_Vpsrlw_ymm_ymm_imm8, EVEX_Vpsrlw_zmm_k1z_zmmm512_imm8, Full Full;
    /// i16 sum; what does not fit becomes what fits best.
    AddSaturatedW: VEX_Vpaddsw_ymm_ymm_ymmm256, EVEX_Vpaddsw_zmm_k1z_zmm_zmmm512, Full Full Full;
    /// The lesser i16.
    MinW: VEX_Vpminsw_ymm_ymm_ymmm256, EVEX_Vpminsw_zmm_k1z_zmm_zmmm512, Full Full Full;
    /// The greater i8.
    MaxB: VEX_Vpmaxsb_ymm_ymm_ymmm256, EVEX_Vpmaxsb_zmm_k1z_zmm_zmmm512, Full Full Full;
    /// i16 sum.
    AddW: VEX_Vpaddw_ymm_ymm_ymmm256, EVEX_Vpaddw_zmm_k1z_zmm_zmmm512, Full Full Full;
    /// Sums of two products of unsigned and signed bytes, in i16.
    MaddUbs: VEX_Vpmaddubsw_ymm_ymm_ymmm256, EVEX_Vpmaddubsw_zmm_k1z_zmm_zmmm512, Full Full Full;
    /// Sums of two products of i16, in i32.
    MaddW: VEX_Vpmaddwd_ymm_ymm_ymmm256, EVEX_Vpmaddwd_zmm_k1z_zmm_zmmm512, Full Full Full;
    /// Adds four products of unsigned and signed bytes to an i32.
    DotBytes: VEX_Vpdpbusd_ymm_ymm_ymmm256, EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// i32 to i16 within every 128 bits, the first operand's lanes before the second's; what does not fit becomes what fits best.
    NarrowD: VEX_Vpackssdw_ymm_ymm_ymmm256, EVEX_Vpackssdw_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// i16 to i8 in the same way.
    NarrowW: VEX_Vpacksswb_ymm_ymm_ymmm256, EVEX_Vpacksswb_zmm_k1z_zmm_zmmm512, Full Full Full;
    /// i16 to u8 in the same way.
    NarrowUnsignedW: VEX_Vpackuswb_ymm_ymm_ymmm256, EVEX_Vpackuswb_zmm_k1z_zmm_zmmm512, Full Full Full;
    /// A whole vector from a register or memory.
    Move: VEX_Vmovups_ymm_ymmm256, EVEX_Vmovups_zmm_k1z_zmmm512, Full Full;
    /// A whole vector to memory.
    Store: VEX_Vmovups_ymmm256_ymm, EVEX_Vmovups_zmmm512_k1z_zmm, Full Full;
    /// A half vector to memory.
    StoreHalf: VEX_Vmovups_xmmm128_xmm, EVEX_Vmovups_ymmm256_k1z_ymm, Half Half;
    /// 128 bits from memory.
    LoadXmm: VEX_Vmovups_xmm_xmmm128, EVEX_Vmovups_xmm_k1z_xmmm128, Xmm Xmm;
    /// 128 bits to memory.
    StoreXmm: VEX_Vmovups_xmmm128_xmm, EVEX_Vmovups_xmmm128_k1z_xmm, Xmm Xmm;
    /// 32 bits of memory in every lane; the form of 512 bits for f32 takes the time of a product on Zen 4.
    BroadcastMem: VEX_Vbroadcastss_ymm_m32, EVEX_Vpbroadcastd_zmm_k1z_xmmm32, Full Xmm;
    /// 64 bits of memory in every pair of lanes.
    BroadcastLong: VEX_Vbroadcastsd_ymm_m64, EVEX_Vbroadcastsd_zmm_k1z_xmmm64, Full Xmm;
    /// 16 bits of memory in every word of half a vector.
    BroadcastWord: VEX_Vpbroadcastw_xmm_xmmm16, EVEX_Vpbroadcastw_ymm_k1z_xmmm16, Half Xmm;
    /// The lowest lane in every lane.
    Broadcast: VEX_Vbroadcastss_ymm_xmm, EVEX_Vbroadcastss_zmm_k1z_xmmm32, Full Xmm;
    /// 32 bits of memory, the other lanes 0.
    LoadLane: VEX_Vmovss_xmm_m32, EVEX_Vmovss_xmm_k1z_m32, Xmm Xmm;
    /// The lowest lane to memory.
    StoreLane: VEX_Vmovss_m32_xmm, EVEX_Vmovss_m32_k1_xmm, Xmm Xmm;
    /// A general register of 32 bits into the lowest lane.
    FromWord: VEX_Vmovd_xmm_rm32, EVEX_Vmovd_xmm_rm32, Xmm Word;
    /// The lowest lane into a general register.
    ToWord: VEX_Vmovd_rm32_xmm, EVEX_Vmovd_rm32_xmm, Word Xmm;
    /// i8 to i16.
    WidenBytes: VEX_Vpmovsxbw_ymm_xmmm128, EVEX_Vpmovsxbw_zmm_k1z_ymmm256, Full Half;
    /// i8 to i32.
    WidenI8: VEX_Vpmovsxbd_ymm_xmmm64, EVEX_Vpmovsxbd_zmm_k1z_xmmm128, Full Xmm;
    /// u8 to i32.
    WidenU8: VEX_Vpmovzxbd_ymm_xmmm64, EVEX_Vpmovzxbd_zmm_k1z_xmmm128, Full Xmm;
    /// i16 to i32.
    WidenI16: VEX_Vpmovsxwd_ymm_xmmm128, EVEX_Vpmovsxwd_zmm_k1z_ymmm256, Full Half;
    /// u16 to i32.
    WidenU16: VEX_Vpmovzxwd_ymm_xmmm128, EVEX_Vpmovzxwd_zmm_k1z_ymmm256, Full Half;
    /// f16 to f32.
    WidenF16: VEX_Vcvtph2ps_ymm_xmmm128, EVEX_Vcvtph2ps_zmm_k1z_ymmm256_sae, Full Half;
    /// f32 to f16 by the rounding mode of the immediate.
    NarrowF16: VEX_Vcvtps2ph_xmmm128_ymm_imm8, EVEX_Vcvtps2ph_ymmm256_k1z_zmm_imm8_sae, Half Full;
    /// Pairs of 32-bit lanes, the lower ones of every 128 bits.
    UnpackLow: VEX_Vunpcklps_ymm_ymm_ymmm256, EVEX_Vunpcklps_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// Pairs of 32-bit lanes, the upper ones of every 128 bits.
    UnpackHigh: VEX_Vunpckhps_ymm_ymm_ymmm256, EVEX_Vunpckhps_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// Two lanes of each operand within every 128 bits, by the immediate.
    ShufPs: VEX_Vshufps_ymm_ymm_ymmm256_imm8, EVEX_Vshufps_zmm_k1z_zmm_zmmm512b32_imm8, Full Full Full;
    /// Two pieces of 128 bits of each operand, by the immediate; with VEX any two of the four.
    ShufPieces: VEX_Vperm2f128_ymm_ymm_ymmm256_imm8, EVEX_Vshuff32x4_zmm_k1z_zmm_zmmm512b32_imm8, Full Full Full;
    /// A permutation of the lanes within every 128 bits, by the immediate.
    ShufD: VEX_Vpshufd_ymm_ymmm256_imm8, EVEX_Vpshufd_zmm_k1z_zmmm512b32_imm8, Full Full;
    /// Lanes of the second operand by the low bits of every lane of the first: three, with EVEX four.
    PermPs: VEX_Vpermps_ymm_ymm_ymmm256, EVEX_Vpermps_zmm_k1z_zmm_zmmm512b32, Full Full Full;
    /// A comparison of f32 by the predicate of the immediate.
    CmpPs: VEX_Vcmpps_ymm_ymm_ymmm256_imm8, EVEX_Vcmpps_kr_k1_zmm_zmmm512b32_imm8_sae, Mask Full Full;
    /// f32 sum of the lowest 128 bits.
    AddXmm: VEX_Vaddps_xmm_xmm_xmmm128, EVEX_Vaddps_xmm_k1z_xmm_xmmm128b32, Xmm Xmm Xmm;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_name_the_registers() {
        assert_eq!(Width::Full.register(Isa::Avx2, 3), Register::YMM3);
        assert_eq!(Width::Full.register(Isa::Avx512Vnni, 31), Register::ZMM31);
        assert_eq!(Width::Half.register(Isa::Avx512Vnni, 9), Register::YMM9);
        assert_eq!(Width::Mask.register(Isa::Avx512Vnni, 1), Register::K1);
        assert_eq!(Width::Long.register(Isa::Avx2, 15), Register::R15);
        assert_eq!(Width::Word.register(Isa::Avx2, 8), Register::R8D);
    }
}
