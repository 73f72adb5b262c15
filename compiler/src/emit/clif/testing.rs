//! Runs single kernels in this process, for tests.

use super::code::Code;
use super::kernel_functions;
use super::target::Cpu;
use crate::emit::candidates::compile;
use crate::emit::layout;
use crate::kernel::gemm::{self, Format};
use crate::kernel::nest::{Access, Effect, Expr};
use crate::kernel::{Body, BufferParam, Extent, Kernel, Use, pack};
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, Signature};
use target_lexicon::Triple;
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

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

/// The packing kernel that leaves rows, where a CPU has all that it takes: the vectors of those that have matrix tiles.
pub fn packing_in_rows(kernel: &Kernel, cpu: &Cpu) -> Option<Kernel> {
    layout::in_rows(kernel).filter(|_| cpu.wide.is_some_and(|isa| isa.evex()))
}

/// Checks that a product with a residual behind its epilogue, which lies in memory like the result, gives the same in place.
///
/// # Panics
/// When it does not, or the kernel is no product of f32 results.
pub fn check_residual(kernel: &Kernel, cpu: &Cpu, mut buffers: Vec<Vec<u8>>, ints: &[i64], tasks: i64) {
    let mut kernel = kernel.clone();
    let Body::Gemm(g) = &mut kernel.body else { panic!("it is a product") };
    let Some(Effect::Store(out, y)) = g.effects.pop() else { panic!("it stores its result") };
    let residual = kernel.buffers.len() as u32;
    let x = g.exprs.push((Expr::Load(Access { buffer: residual, ..out.clone() }), Elem::F32));
    let sum = g.exprs.push((Expr::Prim(Prim::Add, vec![y, x]), Elem::F32));
    let pair = (residual, out.buffer);
    g.effects.push(Effect::Store(out, sum));
    kernel.buffers.push(BufferParam { elem: Elem::F32, usage: Use::Read });
    let numbers: Vec<f32> = (0..buffers[pair.1 as usize].len() / 4).map(|i| (i % 1013) as f32).collect();
    buffers.push(bytemuck::cast_slice(&numbers).to_vec());
    assert!(kernel.in_place().contains(&pair), "a residual can be written over");
    Compiled::new(&kernel, cpu).check_in_place(&kernel, &buffers, ints, tasks);
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
        let addresses: Vec<u64> = buffers.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
        self.run_at(&addresses, ints, begin, end)
    }

    /// Runs the tasks `begin..end` on buffers at addresses.
    fn run_at(&self, addresses: &[u64], ints: &[i64], begin: i64, end: i64) -> i32 {
        let mut status = 0i32;
        let mut words = vec![&raw mut status as u64];
        words.extend(addresses);
        words.extend(ints.iter().map(|&n| n as u64));
        // SAFETY: `words` has the layout that kernels take, the buffers are alive and, as the caller
        // promises, long enough.
        #[allow(unsafe_code, reason = "calling compiled code in this process")]
        unsafe {
            (self.function)(words.as_ptr(), begin, end);
        }
        status
    }

    /// Checks that the kernel gives the same where it may work [in place](Kernel::in_place).
    ///
    /// # Panics
    /// When it does not, or a run reports anything but success.
    pub fn check_in_place(&self, kernel: &Kernel, buffers: &[Vec<u8>], ints: &[i64], tasks: i64) {
        for (from, to) in kernel.in_place().into_iter().map(|(from, to)| (from as usize, to as usize)) {
            let apart = self.run_pieces(buffers.to_vec(), ints, tasks, 2);
            let mut buffers = buffers.to_vec();
            let mut addresses: Vec<u64> = buffers.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
            addresses[to] = addresses[from];
            assert_eq!(self.run_at(&addresses, ints, 0, tasks), 0);
            assert!(buffers[from] == apart[to], "buffer {to} has other contents in the place of {from}: {kernel:?}");
        }
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
