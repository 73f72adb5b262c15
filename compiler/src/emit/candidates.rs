//! The ways to compile a kernel for a CPU: the one place that chooses between emitters and their
//! parameters. `tfc hwbench MODEL` measures every way against the one that is chosen.

use super::clif::code::{self, Code};
use super::clif::target::Cpu;
use super::x86;
use crate::kernel::Kernel;
use cranelift_codegen::CodegenError;
use target_lexicon::OperatingSystem;

/// A way to compile a kernel.
#[derive(Clone, Copy)]
pub struct Candidate {
    /// Its name among those of the same kernel and CPU.
    pub name: &'static str,
    /// Whether all of its code is Cranelift's.
    cranelift: bool,
    compile: fn(&Kernel, &Cpu) -> Result<Code, CodegenError>,
}

impl Candidate {
    /// Compiles the kernel that it is a candidate for.
    ///
    /// # Errors
    /// What the code generator refuses: a bug of ours.
    pub fn compile(&self, kernel: &Kernel, cpu: &Cpu) -> Result<Code, CodegenError> {
        (self.compile)(kernel, cpu)
    }

    /// Whether this way for `cpu` is known to make the same code as another one for another CPU. Code may
    /// turn out to be the same nevertheless.
    pub fn same_code(&self, cpu: &Cpu, other: &Candidate, other_cpu: &Cpu) -> bool {
        self.cranelift && other.cranelift && cpu.same_cranelift(other_cpu)
    }
}

/// All ways to compile a kernel for a CPU variant, at least one; the compiler takes the first.
pub fn candidates(kernel: &Kernel, cpu: &Cpu) -> Vec<Candidate> {
    let mut ways = vec![];
    // Wide kernels take their parameters as System V says.
    let system_v = cpu.isa.triple().operating_system != OperatingSystem::Windows;
    if system_v && cpu.wide.is_some() && x86::covers(kernel) {
        ways.push(Candidate { name: "wide", cranelift: false, compile: x86::compile });
    }
    if !kernel.has_rows() {
        ways.push(Candidate { name: "clif", cranelift: true, compile: code::compile });
    }
    ways
}

/// Compiles a kernel for a CPU in the way that is chosen.
///
/// # Errors
/// What the code generator refuses: a bug of ours.
pub fn compile(kernel: &Kernel, cpu: &Cpu) -> Result<Code, CodegenError> {
    candidates(kernel, cpu)[0].compile(kernel, cpu)
}
