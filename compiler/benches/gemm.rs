//! Matrix products and attention against the CPU's limit of f32 multiply-adds, one thread, in every
//! variant that the CPU runs.
//!
//! `cargo bench -p tfc --bench gemm`; the best of many runs of each shape counts. With words as
//! arguments, only the lines that contain all of them are measured: `avx2 attention`.
#![allow(unsafe_code, reason = "compiled kernels are called through pointers")]
#![allow(clippy::print_stdout, reason = "the results of a benchmark")]

use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{AbiParam, Signature};
use cranelift_entity::{EntityRef, PrimaryMap};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::Module;
use std::time::{Duration, Instant};
use target_lexicon::Triple;
use tfc::emit::candidates::compile;
use tfc::emit::clif::code::Code;
use tfc::emit::clif::target::Cpu;
use tfc::hwbench::rates::Unit;
use tfc::kernel::attention::{self, Attention, QUERY_TILE};
use tfc::kernel::gemm::{CHUNK, Format, GROUP_TILES, Gemm, Operand, TILE_ROWS, pack};
use tfc::kernel::nest::{Access, Effect, Expr, ExprId, Reduction};
use tfc::kernel::work::Arithmetic;
use tfc::kernel::{Body, BufferParam, Extent, Kernel, Use};
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// How long a case runs.
const DURATION: Duration = Duration::from_millis(2000);

type KernelFn = unsafe extern "C" fn(*const u64, i64, i64);

fn load(code: &Code, signature: &Signature) -> KernelFn {
    let builder = JITBuilder::new(cranelift_module::default_libcall_names()).expect("a supported host");
    let mut module = JITModule::new(builder);
    let id = module.declare_anonymous_function(signature).expect("a declaration");
    module.define_function_bytes(id, code.align, &code.bytes, &[]).expect("a definition");
    module.finalize_definitions().expect("executable memory");
    let address = module.get_finalized_function(id);
    // SAFETY: the function has the signature of kernels; its module is never freed.
    let f = unsafe { std::mem::transmute::<*const u8, KernelFn>(address) };
    std::mem::forget(module);
    f
}

fn kernel_signature(cpu: &Cpu) -> Signature {
    let mut signature = Signature::new(cpu.isa.default_call_conv());
    signature.params.extend([AbiParam::new(I64); 3]);
    signature
}

struct Case {
    kernel: Kernel,
    buffers: Vec<Vec<f32>>,
    tasks: i64,
    /// Tasks of a piece of a run; it divides their number.
    piece: i64,
    flop: f64,
}

impl Case {
    fn code_bytes(&self, cpu: &Cpu) -> usize {
        compile(&self.kernel, cpu).expect("kernels compile").bytes.len()
    }

    fn seconds(&mut self, cpu: &Cpu) -> f64 {
        let code = compile(&self.kernel, cpu).expect("kernels compile");
        let run = load(&code, &kernel_signature(cpu));
        let mut status = 0i32;
        let mut args = vec![std::ptr::from_mut(&mut status) as u64];
        args.extend(self.buffers.iter_mut().map(|b| b.as_mut_ptr() as u64));
        // In pieces, each with a best time of its own: other processes interrupt long runs. Between two
        // runs of a piece come all others, so caches are as in a run of the whole.
        let pieces: Vec<(i64, i64)> = (0..self.tasks / self.piece).map(|i| (self.piece * i, self.piece * (i + 1))).collect();
        let mut times = vec![f64::MAX; pieces.len()];
        let begin = Instant::now();
        while begin.elapsed() < DURATION {
            for (time, &(begin, end)) in times.iter_mut().zip(&pieces) {
                let t = Instant::now();
                // SAFETY: the arguments are what the kernel's parameters say.
                unsafe { run(args.as_ptr(), begin, end) };
                *time = time.min(t.elapsed().as_secs_f64());
            }
        }
        times.iter().sum()
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7 % 31) as f32 / 31.0 - 0.5).collect()
}

fn strides(s: &[i64]) -> Vec<Extent> {
    s.iter().map(|&n| Extent::Const(n)).collect()
}

/// `a b + bias`, with GELU as exporters write it if asked for.
fn gemm(m: usize, n: usize, k: usize, gelu: bool) -> Case {
    let mut exprs: PrimaryMap<ExprId, (Expr, Elem)> = PrimaryMap::new();
    let f32s = |exprs: &mut PrimaryMap<ExprId, (Expr, Elem)>, e| exprs.push((e, Elem::F32));
    let dot = f32s(&mut exprs, Expr::Reduced(Reduction::new(0)));
    let bias = f32s(&mut exprs, Expr::Load(Access { buffer: 2, offset: Extent::Const(0), strides: strides(&[0, 1]), dynamic: vec![] }));
    let mut y = f32s(&mut exprs, Expr::Prim(Prim::Add, vec![dot, bias]));
    if gelu {
        let number = |exprs: &mut PrimaryMap<ExprId, (Expr, Elem)>, x: f64| exprs.push((Expr::Float(x.to_bits()), Elem::F32));
        let c = number(&mut exprs, std::f64::consts::FRAC_1_SQRT_2);
        let x = f32s(&mut exprs, Expr::Prim(Prim::Mul, vec![y, c]));
        let x = f32s(&mut exprs, Expr::Prim(Prim::Erf, vec![x]));
        let one = number(&mut exprs, 1.0);
        let x = f32s(&mut exprs, Expr::Prim(Prim::Add, vec![x, one]));
        let x = f32s(&mut exprs, Expr::Prim(Prim::Mul, vec![x, y]));
        let half = number(&mut exprs, 0.5);
        y = f32s(&mut exprs, Expr::Prim(Prim::Mul, vec![x, half]));
    }
    let out = Access { buffer: 3, offset: Extent::Const(0), strides: strides(&[n as i64, 1]), dynamic: vec![] };
    let body = Gemm {
        batch: vec![],
        m: Extent::Const(m as i64),
        n: Extent::Const(n as i64),
        k: Extent::Const(k as i64),
        format: Format::F32,
        left: Operand { buffer: 0, batch: vec![] },
        right: Operand { buffer: 1, batch: vec![] },
        exprs,
        effects: vec![Effect::Store(out, y)],
    };
    let right = values(k * n);
    Case {
        kernel: Kernel { buffers: params(4, 3), ints: 0, body: Body::Gemm(body) },
        buffers: vec![values(m.div_ceil(TILE_ROWS) * TILE_ROWS * k), pack(k, n, |i, j| right[i * n + j]), values(n), vec![0.0; m * n]],
        tasks: (m.div_ceil(GROUP_TILES * TILE_ROWS) * n.div_ceil(CHUNK)) as i64,
        piece: m.div_ceil(GROUP_TILES * TILE_ROWS) as i64,
        flop: 2.0 * (m * n * k) as f64,
    }
}

/// Attention of one batch, `heads` heads of 64, with a bias per key as masks have it.
fn attention(heads: usize, queries: usize) -> Case {
    const DEPTH: usize = 64;
    let n = queries as i64;
    let access = |buffer, s: &[i64]| Access { buffer, offset: Extent::Const(0), strides: strides(s), dynamic: vec![] };
    // Queries and result lie as projections leave them and take them: [query, head, depth].
    let width = (heads * DEPTH) as i64;
    let body = Attention {
        format: attention::Format::F32,
        batch: Extent::Const(1),
        heads: Extent::Const(heads as i64),
        heads_per_group: Extent::Const(1),
        queries: Extent::Const(n),
        keys: Extent::Const(n),
        depth: DEPTH as i64,
        value_depth: DEPTH as i64,
        scale: 0.125f32.to_bits(),
        causal: false,
        q: access(0, &[0, DEPTH as i64, width, 1]),
        k: 1,
        v: 2,
        bias: Some(access(3, &[0, 0, 0, 1])),
        out: access(4, &[0, DEPTH as i64, width, 1]),
    };
    let size = heads * queries * DEPTH;
    Case {
        kernel: Kernel { buffers: params(5, 4), ints: 0, body: Body::Attention(body) },
        buffers: vec![values(size), values(size), values(size), values(queries), vec![0.0; size]],
        tasks: (heads * queries.div_ceil(QUERY_TILE)) as i64,
        piece: queries.div_ceil(QUERY_TILE) as i64,
        flop: 4.0 * (size * queries) as f64,
    }
}

fn params(n: usize, out: usize) -> Vec<BufferParam> {
    (0..n).map(|i| BufferParam { elem: Elem::F32, usage: if i == out { Use::Write } else { Use::Read } }).collect()
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for cpu in Cpu::variants(&Triple::host()).into_iter().filter(Cpu::runs_here) {
        let limit = Unit::limit(cpu.name, Arithmetic::F32).map(|unit| (unit, unit.measure(1).expect("memory for a loop")));
        if let Some((unit, limit)) = limit {
            println!("{}: limit of {}: {:.1} GFLOP/s", cpu.name, unit.name(), limit / 1e9);
        }
        let cases = [
            ("128 x 768 x 768", gemm(128, 768, 768, false)),
            ("128 x 3072 x 768, GELU", gemm(128, 3072, 768, true)),
            ("128 x 768 x 3072", gemm(128, 768, 3072, false)),
            ("120 x 384 x 384", gemm(120, 384, 384, false)),
            ("1 x 3072 x 768", gemm(1, 3072, 768, false)),
            ("4 x 3072 x 768", gemm(4, 3072, 768, false)),
            ("attention 12 x 128 x 64", attention(12, 128)),
            ("attention 12 x 512 x 64", attention(12, 512)),
        ];
        for (name, mut case) in cases {
            let line = format!("{} {name}", cpu.name);
            if !wanted.iter().all(|w| line.contains(w.as_str())) {
                continue;
            }
            let t = case.seconds(&cpu);
            let rate = case.flop / t;
            let share = limit.map_or_else(String::new, |(_, limit)| format!(", {:.1}% of the limit", 100.0 * rate / limit));
            println!("{line}: {:.3} ms, {:.1} GFLOP/s{share}, {} bytes of code", t * 1e3, rate / 1e9, case.code_bytes(&cpu));
        }
    }
}
