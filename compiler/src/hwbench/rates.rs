//! The limits of arithmetic: loops of independent instructions on registers.

use super::routine::{Routine, op};
use super::{clock, routine};
use crate::emit::cpuid::Feature;
use crate::emit::jit::JitError;
use crate::kernel::work::Arithmetic;
use iced_x86::Code as Opcode;
use iced_x86::IcedError;
use iced_x86::Register::{self, XMM0, YMM0, ZMM0};
use iced_x86::code_asm::{CodeAssembler, qword_ptr, rax, rdx, rsi, rsp, zmmword_ptr};

/// An instruction, or a pair, whose rate is a limit of contractions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// `mulps` and `addps`, 128 bits.
    MulAdd128,
    /// `vfmadd231ps`, 128 bits.
    Fma128,
    /// `vfmadd231ps`, 256 bits.
    Fma256,
    /// `vfmadd231ps`, 512 bits.
    Fma512,
    /// `pmaddwd` and `paddd` on 16-bit factors, 128 bits.
    Maddwd128,
    /// `vpmaddwd` and `vpaddd` on 16-bit factors, 256 bits.
    Maddwd256,
    /// `vpmaddubsw` and `vpaddw`, 256 bits, with the 16-bit sums widened into 32-bit ones every 8 steps.
    Maddubs256,
    /// `vpdpbusd`, 256 bits.
    Dpbusd256,
    /// `vpdpbusd`, 512 bits.
    Dpbusd512,
    /// `tdpbsud`, tiles of 16 rows of 64 bytes.
    Dpbsud,
}

impl Unit {
    /// All units.
    pub const ALL: [Unit; 10] = [
        Unit::MulAdd128,
        Unit::Fma128,
        Unit::Fma256,
        Unit::Fma512,
        Unit::Maddwd128,
        Unit::Maddwd256,
        Unit::Maddubs256,
        Unit::Dpbusd256,
        Unit::Dpbusd512,
        Unit::Dpbsud,
    ];

    /// Its name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Unit::MulAdd128 => "mulps+addps 128",
            Unit::Fma128 => "vfmadd231ps 128",
            Unit::Fma256 => "vfmadd231ps 256",
            Unit::Fma512 => "vfmadd231ps 512",
            Unit::Maddwd128 => "pmaddwd+paddd 128",
            Unit::Maddwd256 => "vpmaddwd+vpaddd 256",
            Unit::Maddubs256 => "vpmaddubsw+vpaddw 256",
            Unit::Dpbusd256 => "vpdpbusd 256",
            Unit::Dpbusd512 => "vpdpbusd 512",
            Unit::Dpbsud => "tdpbsud 16x64",
        }
    }

    /// The unit that limits contractions in code of a CPU variant.
    pub fn limit(variant: &str, arithmetic: Arithmetic) -> Option<Unit> {
        match (arithmetic, variant) {
            (Arithmetic::F32, "baseline") => Some(Unit::MulAdd128),
            (Arithmetic::F32, "avx2" | "avxvnni") => Some(Unit::Fma256),
            (Arithmetic::F32, "avx512vnni" | "amx") => Some(Unit::Fma512),
            (Arithmetic::I8, "baseline") => Some(Unit::Maddwd128),
            (Arithmetic::I8, "avx2") => Some(Unit::Maddubs256),
            (Arithmetic::I8, "avxvnni") => Some(Unit::Dpbusd256),
            (Arithmetic::I8, "avx512vnni") => Some(Unit::Dpbusd512),
            (Arithmetic::I8, "amx") => Some(Unit::Dpbsud),
            _ => None,
        }
    }

    /// Whether this CPU and the operating system can run it.
    pub fn runs_here(self) -> bool {
        match self {
            Unit::MulAdd128 | Unit::Maddwd128 => cfg!(target_arch = "x86_64"),
            Unit::Fma128 | Unit::Fma256 | Unit::Maddwd256 | Unit::Maddubs256 => Feature::Avx2.is_here(),
            Unit::Dpbusd256 => Feature::AvxVnni.is_here() || Feature::Avx512Vnni.is_here(),
            Unit::Fma512 | Unit::Dpbusd512 => Feature::Avx512Vnni.is_here(),
            Unit::Dpbsud => Feature::Amx.is_here(),
        }
    }

    /// Operations per second that `threads` threads reach together, two per multiply-add.
    ///
    /// # Errors
    /// When there is no memory for the loop.
    pub fn measure(self, threads: usize) -> Result<f64, JitError> {
        let rounds = self.rounds()?;
        let seconds = clock::seconds_per_round(threads, &|_, n| rounds.run(n));
        Ok(rounds.operations as f64 * threads as f64 / seconds)
    }

    /// The loop that is measured.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn rounds(self) -> Result<Rounds, JitError> {
        let (x, y, z) = (Bank(XMM0), Bank(YMM0), Bank(ZMM0));
        let dpbusd256 =
            if Feature::Avx512Vnni.is_here() { Opcode::EVEX_Vpdpbusd_ymm_k1z_ymm_ymmm256b32 } else { Opcode::VEX_Vpdpbusd_ymm_ymm_ymmm256 };
        // What a round does, and its operations: lanes times two, times what a lane sums up.
        let (body, operations): (Vec<Op>, usize) = match self {
            Unit::Fma128 => accumulate(x, Opcode::VEX_Vfmadd231ps_xmm_xmm_xmmm128, 12, 4 * 2),
            Unit::Fma256 => accumulate(y, Opcode::VEX_Vfmadd231ps_ymm_ymm_ymmm256, 12, 8 * 2),
            Unit::Fma512 => accumulate(z, Opcode::EVEX_Vfmadd231ps_zmm_k1z_zmm_zmmm512b32_er, 24, 16 * 2),
            Unit::Dpbusd256 => accumulate(y, dpbusd256, 12, 8 * 4 * 2),
            Unit::Dpbusd512 => accumulate(z, Opcode::EVEX_Vpdpbusd_zmm_k1z_zmm_zmmm512b32, 24, 16 * 4 * 2),
            Unit::MulAdd128 => overwrite(x, Opcode::Mulps_xmm_xmmm128, Opcode::Addps_xmm_xmmm128, 4 * 2),
            Unit::Maddwd128 => overwrite(x, Opcode::Pmaddwd_xmm_xmmm128, Opcode::Paddd_xmm_xmmm128, 4 * 2 * 2),
            Unit::Maddwd256 => {
                let [mul, add] = [Opcode::VEX_Vpmaddwd_ymm_ymm_ymmm256, Opcode::VEX_Vpaddd_ymm_ymm_ymmm256];
                let body = (0..10)
                    .flat_map(|i| [(mul, vec![y.at(12 + i % 2), y.at(14), y.at(15)]), (add, vec![y.at(i), y.at(i), y.at(12 + i % 2)])]);
                (body.collect(), 10 * 8 * 2 * 2)
            }
            Unit::Maddubs256 => widening(y),
            Unit::Dpbsud => {
                let tile = |n: u32| Register::TMM0 + n;
                let body = (0..16).map(|i| (Opcode::VEX_Tdpbsud_tmm_tmm_tmm, vec![tile(i % 4), tile(4), tile(5)]));
                (body.collect(), 16 * 16 * 16 * 64 * 2)
            }
        };
        let registers = match self {
            Unit::MulAdd128 | Unit::Maddwd128 => Registers::Legacy,
            Unit::Dpbsud => Registers::Tiles,
            Unit::Fma512 | Unit::Dpbusd512 => Registers::Extended,
            Unit::Fma128 | Unit::Fma256 | Unit::Maddwd256 | Unit::Maddubs256 | Unit::Dpbusd256 => Registers::Wide,
        };
        let routine = Routine::new(|a| rounds(a, &body, registers))?;
        Ok(Rounds { routine, operations })
    }
}

/// The loop of a unit, to be run beside what it is the limit of.
pub struct Rounds {
    routine: Routine,
    /// Operations of a round, two per multiply-add.
    pub operations: usize,
}

impl Rounds {
    /// Runs `n` rounds.
    #[allow(unsafe_code, reason = "runs the loop that was assembled")]
    pub fn run(&self, n: i64) {
        // SAFETY: a CPU with the instructions is the caller's matter (`runs_here`); the loop touches no memory.
        unsafe { self.routine.call(&[0], 0, n) };
    }
}

/// An instruction with its operands.
type Op = (Opcode, Vec<Register>);

/// The registers of one width.
#[derive(Clone, Copy)]
struct Bank(Register);

impl Bank {
    fn at(self, n: u32) -> Register {
        self.0 + n
    }
}

/// Four times `sums` independent sums by an instruction that adds a product to its first operand.
fn accumulate(bank: Bank, code: Opcode, sums: u32, operations: usize) -> (Vec<Op>, usize) {
    let body: Vec<Op> = (0..4 * sums).map(|i| (code, vec![bank.at(i % sums), bank.at(sums), bank.at(sums + 1)])).collect();
    let total = body.len() * operations;
    (body, total)
}

/// Products by an instruction that overwrites its first operand, and sums: two-operand instructions. The
/// copies that a real kernel needs are moves between registers, which are free.
fn overwrite(bank: Bank, mul: Opcode, add: Opcode, operations: usize) -> (Vec<Op>, usize) {
    let pair = |i: u32| {
        let product = bank.at(11 + i % 4);
        [(Opcode::Movaps_xmm_xmmm128, vec![product, bank.at(15)]), (mul, vec![product, bank.at(10)]), (add, vec![bank.at(i % 10), product])]
    };
    ((0..40).flat_map(pair).collect(), 40 * operations)
}

/// Six sums of 16 bits; every 8 steps they are widened into six sums of 32 bits and begin again.
fn widening(y: Bank) -> (Vec<Op>, usize) {
    const SUMS: u32 = 6;
    const STEPS: u32 = 8;
    let mut body: Vec<Op> = vec![];
    for step in 0..STEPS {
        for s in 0..SUMS {
            let product = if step == 0 { y.at(s) } else { y.at(12 + s % 2) };
            body.push((Opcode::VEX_Vpmaddubsw_ymm_ymm_ymmm256, vec![product, y.at(14), y.at(15)]));
            if step > 0 {
                body.push((Opcode::VEX_Vpaddw_ymm_ymm_ymmm256, vec![y.at(s), y.at(s), product]));
            }
        }
    }
    for s in 0..SUMS {
        body.push((Opcode::VEX_Vpmaddwd_ymm_ymm_ymmm256, vec![y.at(12 + s % 2), y.at(s), y.at(15)]));
        body.push((Opcode::VEX_Vpaddd_ymm_ymm_ymmm256, vec![y.at(6 + s), y.at(6 + s), y.at(12 + s % 2)]));
    }
    (body, (STEPS * SUMS) as usize * 32 * 2)
}

/// The registers that a body is on.
#[derive(Clone, Copy, PartialEq)]
enum Registers {
    /// Vectors, by instructions without VEX.
    Legacy,
    /// Vectors, 16 of them.
    Wide,
    /// Vectors, 32 of them.
    Extended,
    /// Matrix tiles.
    Tiles,
}

/// The body `end - begin` times, from registers that are zero.
fn rounds(a: &mut CodeAssembler, body: &[Op], registers: Registers) -> Result<(), IcedError> {
    // What others left there may be numbers that take longer.
    let count = if registers == Registers::Extended { 32 } else { 16 };
    for i in 0..count {
        let (x, y, z) = (XMM0 + i, YMM0 + i, ZMM0 + i);
        match registers {
            Registers::Legacy => op(a, Opcode::Pxor_xmm_xmmm128, &[x, x])?,
            Registers::Wide => op(a, Opcode::VEX_Vpxor_ymm_ymm_ymmm256, &[y, y, y])?,
            Registers::Extended => op(a, Opcode::EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32, &[z, z, z])?,
            Registers::Tiles => {}
        }
    }
    if registers == Registers::Tiles {
        // Palette 1; tiles of 64 bytes by 16 rows, which become 0. The shape is below the stack: nothing is called.
        let (columns, rows) = (0x0040_0040_0040_0040_u64, 0x1010_1010_1010_1010_u64);
        for (i, word) in (0..).zip([1, 0, columns, columns, 0, 0, rows, 0]) {
            a.mov(rax, word)?;
            a.mov(qword_ptr(rsp - 64 + 8 * i), rax)?;
        }
        a.ldtilecfg(zmmword_ptr(rsp - 64))?;
    }
    a.sub(rdx, rsi)?;
    let (mut top, mut done) = (a.create_label(), a.create_label());
    a.jle(done)?;
    a.set_label(&mut top)?;
    for (code, operands) in body {
        routine::op(a, *code, operands)?;
    }
    a.dec(rdx)?;
    a.jnz(top)?;
    a.set_label(&mut done)?;
    match registers {
        Registers::Legacy => {}
        Registers::Wide | Registers::Extended => a.vzeroupper()?,
        Registers::Tiles => a.tilerelease()?,
    }
    a.ret()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_that_runs_here_assembles_and_runs() {
        for unit in Unit::ALL.into_iter().filter(|u| u.runs_here()) {
            let rounds = unit.rounds().unwrap();
            assert!(rounds.operations > 0);
            [0, 1, 3].into_iter().for_each(|n| rounds.run(n));
        }
    }
}
