//! Matrix products and attention against the CPU's limits of f32 multiply-adds and of products of bytes, one
//! thread, in every variant that the CPU runs.
//!
//! `cargo bench -p tfc --bench gemm`; the best of many runs of each shape counts, and so does the best of the runs of its
//! limit that take turns with them: clocks and neighbours change within seconds. With words as
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
use tfc::emit::layout;
use tfc::hwbench::rates::{Rounds, Unit};
use tfc::kernel::attention::{self, Attention, QUERY_TILE};
use tfc::kernel::gemm::{CHUNK, Format, Gemm, Operand, Quantized, RowZeros, TILE_ROWS, pack, packed_weights_len, row_groups};
use tfc::kernel::nest::{Access, Effect, Expr, ExprId, Reduction};
use tfc::kernel::pack::{MATRIX_ROWS, pitch};
use tfc::kernel::work::Arithmetic;
use tfc::kernel::{Body, BufferParam, Extent, Kernel, Use};
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// How long a case runs.
const DURATION: Duration = Duration::from_millis(1000);

/// Rounds of the loop of a limit at a time: 10 to 100 microseconds.
const LIMIT_ROUNDS: i64 = 1000;

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

/// Numbers that begin with a line of the caches, as weights and activations of models do.
struct Aligned {
    memory: Vec<f32>,
    first: usize,
}

impl Aligned {
    /// Numbers of a line.
    const LINE: usize = 16;

    fn of(x: &[f32]) -> Aligned {
        let mut memory = vec![0.0; x.len() + Aligned::LINE];
        let first = memory.as_ptr().align_offset(Aligned::LINE * size_of::<f32>());
        memory[first..first + x.len()].copy_from_slice(x);
        Aligned { memory, first }
    }

    fn address(&mut self) -> u64 {
        self.memory[self.first..].as_mut_ptr() as u64
    }
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

    /// The time of a run, and the operations a second of the loop of its limit.
    fn measure(&self, cpu: &Cpu, limit: Option<&Rounds>) -> (f64, f64) {
        let code = compile(&self.kernel, cpu).expect("kernels compile");
        let run = load(&code, &kernel_signature(cpu));
        let mut status = 0i32;
        let mut args = vec![std::ptr::from_mut(&mut status) as u64];
        let mut buffers: Vec<Aligned> = self.buffers.iter().map(|b| Aligned::of(b)).collect();
        args.extend(buffers.iter_mut().map(|b| b.address()));
        // In pieces, each with a best time of its own: other processes interrupt long runs. Between two
        // runs of a piece come all others, so caches are as in a run of the whole.
        let pieces: Vec<(i64, i64)> = (0..self.tasks / self.piece).map(|i| (self.piece * i, self.piece * (i + 1))).collect();
        let mut times = vec![f64::MAX; pieces.len()];
        let mut best = 0.0f64;
        let begin = Instant::now();
        while begin.elapsed() < DURATION {
            if let Some(limit) = limit {
                let t = Instant::now();
                limit.run(LIMIT_ROUNDS);
                best = best.max(limit.operations as f64 * LIMIT_ROUNDS as f64 / t.elapsed().as_secs_f64());
            }
            for (time, &(begin, end)) in times.iter_mut().zip(&pieces) {
                let t = Instant::now();
                // SAFETY: the arguments are what the kernel's parameters say.
                unsafe { run(args.as_ptr(), begin, end) };
                *time = time.min(t.elapsed().as_secs_f64());
            }
        }
        (times.iter().sum(), best)
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7 % 31) as f32 / 31.0 - 0.5).collect()
}

fn strides(s: &[i64]) -> Vec<Extent> {
    s.iter().map(|&n| Extent::Const(n)).collect()
}

/// The formats that are measured: of f32, or bits of a weight and values of k in a group (0: all).
#[derive(Clone, Copy, PartialEq)]
enum Weights {
    F32,
    Codes(u8, usize),
}

/// `a b + bias`, with GELU as exporters write it if asked for.
fn gemm(m: usize, n: usize, k: usize, gelu: bool, weights: Weights) -> Case {
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
    let rows = m.div_ceil(TILE_ROWS) * TILE_ROWS;
    // Tiles, or rows with what a last matrix tile reads behind them.
    let left_bytes = (m + MATRIX_ROWS as usize) * pitch(k as i64) as usize;
    // Any bytes are codes; sums of rows are only added.
    let (format, parameters, left, right) = match weights {
        Weights::F32 => {
            let right = values(k * n);
            (Format::Floats(Elem::F32), vec![], values(rows * k), pack(k, n, |i, j| right[i * n + j]))
        }
        Weights::Codes(bits, group) => {
            let group = if group == 0 { k } else { group };
            let groups = k.div_ceil(group);
            let q = Quantized {
                bits,
                group: group as i64,
                groups: groups as i64,
                columns: 4,
                sums: 5,
                zeros: false,
                row_zeros: RowZeros::None,
            };
            let parameters = vec![values(n * groups), values(rows * groups)];
            (Format::Quantized(q), parameters, values(left_bytes / 4), values(packed_weights_len(bits, k, n) / 4))
        }
    };
    let groups = row_groups(&(m as i64).into(), format.integers()).as_const().expect("the number of rows is known");
    let body = Gemm {
        batch: vec![],
        m: Extent::Const(m as i64),
        row_groups: Extent::Const(groups),
        n: Extent::Const(n as i64),
        k: Extent::Const(k as i64),
        format,
        left: Operand { buffer: 0, batch: vec![] },
        left_pitch: None,
        right: Operand { buffer: 1, batch: vec![] },
        exprs,
        effects: vec![Effect::Store(out, y)],
    };
    let mut buffers = vec![left, right, values(n), vec![0.0; m * n]];
    buffers.extend(parameters);
    let mut kernel = Kernel { buffers: params(buffers.len(), 3), ints: 0, body: Body::Gemm(body) };
    if weights != Weights::F32 {
        for (buffer, elem) in [(0, Elem::I8), (1, Elem::U8), (5, Elem::I32)] {
            kernel.buffers[buffer].elem = elem;
        }
    }
    Case { kernel, buffers, tasks: groups * n.div_ceil(CHUNK) as i64, piece: groups, flop: 2.0 * (m * n * k) as f64 }
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
        mask_value: None,
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
        let limit = |arithmetic| Unit::limit(cpu.name, arithmetic).map(|unit| unit.rounds().expect("memory for a loop"));
        let limits = [Arithmetic::F32, Arithmetic::I8].map(limit);
        let mut cases: Vec<(String, bool, Case)> = vec![];
        let formats = [
            ("f32", Weights::F32),
            ("w8a8", Weights::Codes(8, 0)),
            ("w4a8", Weights::Codes(4, 0)),
            ("w4a8:g128", Weights::Codes(4, 128)),
            ("w4a8:g32", Weights::Codes(4, 32)),
        ];
        for (format, weights) in formats {
            let shapes = [
                (128, 768, 768),
                (128, 768, 3072),
                (120, 384, 384),
                (197, 384, 384),
                (48, 128, 768),
                (16, 384, 384),
                (1, 3072, 768),
                (4, 3072, 768),
            ];
            for (m, n, k) in shapes {
                cases.push((format!("{format} {m} x {n} x {k}"), weights != Weights::F32, gemm(m, n, k, false, weights)));
            }
            cases.push((format!("{format} 128 x 3072 x 768, GELU"), weights != Weights::F32, gemm(128, 3072, 768, true, weights)));
        }
        cases.push(("attention 12 x 128 x 64".into(), false, attention(12, 128)));
        cases.push(("attention 12 x 512 x 64".into(), false, attention(12, 512)));
        for (name, integers, mut case) in cases {
            if cpu.matrix_tiles() {
                case.kernel = layout::in_rows(&case.kernel).unwrap_or(case.kernel);
            }
            let line = format!("{} {name}", cpu.name);
            if !wanted.iter().all(|w| line.contains(w.as_str())) {
                continue;
            }
            let (t, limit) = case.measure(&cpu, limits[usize::from(integers)].as_ref());
            let rate = case.flop / t;
            let share = if limit > 0.0 { format!(", {:.1}% of {:.1}", 100.0 * rate / limit, limit / 1e9) } else { String::new() };
            println!("{line}: {:.3} ms, {:.1} GOP/s{share}, {} bytes of code", t * 1e3, rate / 1e9, case.code_bytes(&cpu));
        }
    }
}
