//! Runs single kernels in this process, for tests.

use super::code::Code;
use super::kernel_functions;
use super::target::Cpu;
use crate::emit::candidates::compile;
use crate::emit::layout;
use crate::kernel::gemm::{self, Format};
use crate::kernel::{Body, Extent, Kernel, pack};
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, Signature};
use target_lexicon::Triple;

/// The CPU variants of the host that it can run.
pub fn host_cpus() -> Vec<Cpu> {
    let mut cpus: Vec<Cpu> = Cpu::variants(&Triple::host());
    cpus.retain(Cpu::runs_here);
    assert!(!cpus.is_empty(), "tests run on a supported architecture");
    cpus
}

/// CPU variants to compile for without running: those of other architectures.
pub fn foreign_cpus() -> Vec<Cpu> {
    let triple: Triple = "aarch64-unknown-linux-gnu".parse().expect("a triple");
    Cpu::variants(&triple)
}

/// Compiles a kernel for CPUs that the host is not.
///
/// # Panics
/// When a code generator rejects it, or makes nothing of it.
pub fn check_foreign(kernel: &Kernel) {
    for cpu in foreign_cpus() {
        assert!(!machine_code(kernel, &cpu).bytes.is_empty(), "{}", cpu.name);
    }
}

/// The groups that a product has of a known number of rows.
pub fn row_groups(m: usize, format: &Format) -> usize {
    gemm::row_groups(&(m as i64).into(), format.integers()).as_const().expect("the number of rows is known") as usize
}

/// The machine code of a kernel.
///
/// # Panics
/// When a code generator rejects it.
pub fn machine_code(kernel: &Kernel, cpu: &Cpu) -> Code {
    compile(kernel, cpu).unwrap_or_else(|e| {
        let text: String = kernel_functions(kernel, cpu).iter().map(|f| f.display().to_string()).collect();
        panic!("{}: {e:?}\n{text}", cpu.name)
    })
}

/// The packing kernel of a left operand of `m` rows that is a single matrix, with one to three groups of rows, and its tasks.
///
/// # Panics
/// When the kernel does not pack.
pub fn packing_in_groups(kernel: &Kernel, m: usize) -> [(Kernel, i64); 3] {
    [1, 2, 3].map(|groups| {
        let mut kernel = kernel.clone();
        let Body::Pack(p) = &mut kernel.body else { panic!("it packs") };
        p.batch.clear();
        p.from.batch.clear();
        p.row_groups = Extent::Const(groups);
        (kernel, pack::group_tasks(&(m as i64).into(), &groups.into()).as_const().expect("the number of rows is known"))
    })
}

/// The packing kernel that leaves rows, where a CPU variant has such.
pub fn packing_in_rows(kernel: &Kernel, cpu: &Cpu) -> Option<Kernel> {
    layout::in_rows(kernel).filter(|_| cpu.matrix_tiles())
}

/// A kernel compiled for the host.
pub struct Compiled {
    function: unsafe extern "C" fn(*const u64, i64, i64),
    module: Option<cranelift_jit::JITModule>,
}

impl Compiled {
    /// Compiles a kernel for a CPU that the host can run.
    pub fn new(kernel: &Kernel, cpu: &Cpu) -> Compiled {
        Compiled::of(&machine_code(kernel, cpu), cpu)
    }

    /// Code that takes what kernels take, made for a CPU that the host can run.
    pub fn of(code: &Code, cpu: &Cpu) -> Compiled {
        use cranelift_module::Module;
        // The code is independent of its position, which the module's own compiler refuses.
        let builder = cranelift_jit::JITBuilder::new(cranelift_module::default_libcall_names()).expect("a supported host");
        let mut module = cranelift_jit::JITModule::new(builder);
        let mut signature = Signature::new(cpu.isa.default_call_conv());
        signature.params.extend([AbiParam::new(I64); 3]);
        let id = module.declare_anonymous_function(&signature).expect("a fresh function");
        module.define_function_bytes(id, code.align, &code.bytes, &[]).expect("memory for code");
        module.finalize_definitions().expect("no undefined symbols");
        let address = module.get_finalized_function(id);
        // SAFETY: the function was compiled with this signature in the host's convention.
        #[allow(unsafe_code, reason = "calling compiled code in this process")]
        let function = unsafe { std::mem::transmute::<*const u8, unsafe extern "C" fn(*const u64, i64, i64)>(address) };
        Compiled { function, module: Some(module) }
    }

    /// Runs the tasks `begin..end`. Returns the status word.
    ///
    /// Buffers must be as long as the kernel's accesses with these integers reach.
    pub fn run(&self, buffers: &mut [Vec<u8>], ints: &[i64], begin: i64, end: i64) -> i32 {
        let mut status = 0i32;
        let mut words = vec![&raw mut status as u64];
        words.extend(buffers.iter_mut().map(|b| b.as_mut_ptr() as u64));
        words.extend(ints.iter().map(|&n| n as u64));
        // SAFETY: `words` has the layout that kernels take, the buffers are alive and, as the caller
        // promises, long enough.
        #[allow(unsafe_code, reason = "calling compiled code in this process")]
        unsafe {
            (self.function)(words.as_ptr(), begin, end);
        }
        status
    }

    /// Runs `tasks` tasks in so many pieces. Returns the buffers.
    ///
    /// # Panics
    /// When a piece reports anything but success.
    pub fn run_pieces(&self, mut buffers: Vec<Vec<u8>>, ints: &[i64], tasks: i64, pieces: i64) -> Vec<Vec<u8>> {
        for p in 0..pieces {
            assert_eq!(self.run(&mut buffers, ints, tasks * p / pieces, tasks * (p + 1) / pieces), 0);
        }
        buffers
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        if let Some(module) = self.module.take() {
            // SAFETY: nothing runs or points into the code any more.
            #[allow(unsafe_code, reason = "freeing compiled code")]
            unsafe {
                module.free_memory();
            }
        }
    }
}
