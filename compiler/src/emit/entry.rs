//! The exported functions of an object: what `interface.md` calls the C ABI, emitted with Cranelift
//! against the layouts of [`tfc_runtime::abi`].
//!
//! `NAME_run_parallel` is straight-line code: it evaluates the dimension expressions once, then for
//! every step writes the kernel's arguments and launches it. Kernels are found through a table, one row
//! per CPU variant, so that this code exists once. The arena begins with the status word and the
//! argument block ([`arena_header`]); the slots follow.

use super::clif::target::Cpu;
use super::cpuid;
use super::dims::DimEmitter;
use super::module::{Asking, Emitter, Symbols};
use crate::cost;
use crate::kernel::{Program, Step, Storage};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{AbiParam, Block, FuncRef, InstBuilder, MemFlagsData, SigRef, Signature, Value, types};
use cranelift_entity::EntityRef;
use cranelift_frontend::FunctionBuilder;
use cranelift_module::{FuncId, ModuleError};
use std::collections::BTreeMap;
use tfc_ir::dim::Dim;
use tfc_runtime::abi::{self, Status, context_offset};
use tfc_runtime::weights;

/// Where the argument block begins in the arena; the status word is before it.
const ARGS_OFFSET: i64 = 64;

/// Bytes at the begin of the arena: the status word, then from [`ARGS_OFFSET`] on the argument block, which has room for the
/// arguments of any step.
fn arena_header(program: &Program) -> i64 {
    /// The least size, so that slots of most programs begin at the same place.
    const LEAST: i64 = 1024;
    let words = program.steps.iter().map(|s| 1 + s.buffers.len() + s.ints.len()).max().unwrap_or(0);
    ((ARGS_OFFSET as usize + 8 * words).next_multiple_of(abi::ALIGN) as i64).max(LEAST)
}

/// The largest arena or tensor, in bytes, that dimensions may ask for.
const MAX_BYTES: f64 = (1u64 << 47) as f64;

const PTR: types::Type = types::I64;

fn flags() -> MemFlagsData {
    MemFlagsData::trusted()
}

/// Signatures of the ABI.
pub fn signature(e: &Emitter, params: &[types::Type], result: Option<types::Type>) -> Signature {
    let mut s = e.module.make_signature();
    s.params.extend(params.iter().map(|&t| AbiParam::new(t)));
    s.returns.extend(result.map(AbiParam::new));
    s
}

/// A function under construction with its parameters.
struct Function<'a, 'b> {
    b: &'a mut FunctionBuilder<'b>,
    params: Vec<Value>,
}

impl Function<'_, '_> {
    fn int(&mut self, n: i64) -> Value {
        self.b.ins().iconst(types::I64, n)
    }

    /// Returns a status.
    fn finish(&mut self, status: Status) {
        let code = self.b.ins().iconst(types::I32, i64::from(status.code()));
        self.b.ins().return_(&[code]);
    }

    /// Returns `status` if the condition holds, else goes on.
    fn bail_if(&mut self, condition: Value, status: Status) {
        self.branch_out(condition, |f| f.finish(status));
    }

    fn branch_out(&mut self, condition: Value, out: impl FnOnce(&mut Self)) {
        let (bad, good) = (self.b.create_block(), self.b.create_block());
        self.b.set_cold_block(bad);
        self.b.ins().brif(condition, bad, &[], good, &[]);
        self.b.switch_to_block(bad);
        out(self);
        self.b.switch_to_block(good);
    }

    fn is_null(&mut self, p: Value) -> Value {
        self.b.ins().icmp_imm_s(IntCC::Equal, p, 0)
    }

    fn load(&mut self, t: types::Type, p: Value, offset: usize) -> Value {
        self.b.ins().load(t, flags(), p, offset as i32)
    }
}

/// Defines all exported functions.
///
/// # Errors
/// What the module refuses: our bugs.
pub fn define(e: &mut Emitter, s: &Symbols) -> Result<(), ModuleError> {
    let check = check_dims(e)?;
    output_bytes(e, s, check)?;
    arena_bytes(e, s, check)?;
    let launch = launch(e)?;
    run_parallel(e, s, check, launch)?;
    run(e, s)?;
    let asking = super::module::asking(e)?;
    init_cpu(e, s, asking)?;
    init(e, s)?;
    cpu_variant(e, s)?;
    status_string(e, s)?;
    build_info(e, s)?;
    e.set_stack(&[s.run, s.run_parallel, check, launch]);
    Ok(())
}

fn define_function(e: &mut Emitter, id: FuncId, build: impl FnOnce(&mut Emitter, &mut Function)) -> Result<(), ModuleError> {
    let signature = e.module.declarations().get_function_decl(id).signature.clone();
    let mut ctx = e.module.make_context();
    ctx.func.signature = signature;
    let mut fctx = cranelift_frontend::FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut ctx.func, &mut fctx);
    let entry = b.create_block();
    b.append_block_params_for_function_params(entry);
    b.switch_to_block(entry);
    let params = b.block_params(entry).to_vec();
    build(e, &mut Function { b: &mut b, params });
    b.seal_all_blocks();
    b.finalize(e.module.target_config());
    e.define(id, ctx)
}

/// The values of the symbols from a dims pointer.
fn load_dims(e: &Emitter, f: &mut Function, dims: Value) -> DimEmitter {
    let symbols: BTreeMap<_, _> = e.program.dims.iter().enumerate().map(|(i, s)| (s.clone(), f.load(types::I64, dims, i * 8))).collect();
    DimEmitter::new(symbols)
}

/// `fn(dims) -> status`: ranges, sizes that overflow, and the conditions between dimensions.
fn check_dims(e: &mut Emitter) -> Result<FuncId, ModuleError> {
    let sig = signature(e, &[PTR], Some(types::I32));
    let id = e.local("check_dims", &sig)?;
    define_function(e, id, |e, f| {
        let dims = f.params[0];
        if !e.program.dims.is_empty() {
            let null = f.is_null(dims);
            f.bail_if(null, Status::NullPointer);
        }
        for (i, s) in e.program.dims.iter().enumerate() {
            let range = e.program.symbols[s];
            let v = f.load(types::I64, dims, i * 8);
            let low = f.b.ins().icmp_imm_s(IntCC::SignedLessThan, v, range.min);
            f.bail_if(low, Status::DimensionRange);
            let high = f.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, v, range.max);
            f.bail_if(high, Status::DimensionRange);
        }
        let mut d = load_dims(e, f, dims);
        let symbolic: Vec<&Dim> =
            e.program.slots.values().chain(e.program.buffers.values().map(|b| &b.bytes)).filter(|d| d.as_const().is_none()).collect();
        let mut seen: Vec<&Dim> = vec![];
        for bytes in symbolic {
            if seen.contains(&bytes) {
                continue;
            }
            seen.push(bytes);
            let size = d.magnitude(f.b, bytes);
            let limit = f.b.ins().f64const(MAX_BYTES / 1024.0);
            let over = f.b.ins().fcmp(FloatCC::GreaterThan, size, limit);
            f.bail_if(over, Status::DimensionRange);
        }
        for c in &e.program.checks {
            let (l, r) = (d.int(f.b, &c.left), d.int(f.b, &c.right));
            let differ = f.b.ins().icmp(IntCC::NotEqual, l, r);
            f.bail_if(differ, Status::DimensionMismatch);
        }
        f.finish(Status::Ok);
    })?;
    Ok(id)
}

fn call_check(e: &mut Emitter, f: &mut Function, check: FuncId, dims: Value) -> Value {
    let check = e.module.declare_func_in_func(check, f.b.func);
    let call = f.b.ins().call(check, &[dims]);
    f.b.inst_results(call)[0]
}

/// Returns the status in `code` unless it is 0.
fn pass_on(f: &mut Function, code: Value) {
    let bad = f.b.ins().icmp_imm_s(IntCC::NotEqual, code, 0);
    f.branch_out(bad, |f| {
        f.b.ins().return_(&[code]);
    });
}

fn output_bytes(e: &mut Emitter, s: &Symbols, check: FuncId) -> Result<(), ModuleError> {
    define_function(e, s.output_bytes, |e, f| {
        let (dims, out) = (f.params[0], f.params[1]);
        if !e.program.outputs.is_empty() {
            let null = f.is_null(out);
            f.bail_if(null, Status::NullPointer);
        }
        let code = call_check(e, f, check, dims);
        pass_on(f, code);
        let mut d = load_dims(e, f, dims);
        for data in e.program.buffers.values() {
            if let Storage::Output(i) = data.storage {
                let bytes = d.int(f.b, &data.bytes);
                f.b.ins().store(flags(), bytes, out, i as i32 * 8);
            }
        }
        f.finish(Status::Ok);
    })
}

fn arena_bytes(e: &mut Emitter, s: &Symbols, check: FuncId) -> Result<(), ModuleError> {
    define_function(e, s.arena_bytes, |e, f| {
        let dims = f.params[0];
        let code = call_check(e, f, check, dims);
        let bad = f.b.ins().icmp_imm_s(IntCC::NotEqual, code, 0);
        f.branch_out(bad, |f| {
            let zero = f.int(0);
            f.b.ins().return_(&[zero]);
        });
        let mut d = load_dims(e, f, dims);
        let mut total = f.int(arena_header(e.program));
        for bytes in e.program.slots.values() {
            let bytes = d.int(f.b, bytes);
            total = f.b.ins().iadd(total, bytes);
        }
        f.b.ins().return_(&[total]);
    })
}

/// `fn(kernel, n, worth, args, pf, user, every)`: by `pf` if there is one and the work is worth it, else
/// inline. With `every` not 0, what would run inline goes to `pf` too, with `!n` instead of `n`.
fn launch(e: &mut Emitter) -> Result<FuncId, ModuleError> {
    let sig = signature(e, &[PTR, types::I64, types::I8, PTR, PTR, PTR, types::I32], None);
    let id = e.local("launch", &sig)?;
    let kernel_sig = signature(e, &[PTR, types::I64, types::I64], None);
    let pf_sig = signature(e, &[PTR, types::I64, PTR, PTR], None);
    define_function(e, id, |_, f| {
        let [kernel, n, worth, args, pf, user, every] = f.params[..] else { unreachable!("seven parameters") };
        let kernel_sig: SigRef = f.b.import_signature(kernel_sig);
        let pf_sig = f.b.import_signature(pf_sig);
        let (threads, alone, done) = (f.b.create_block(), f.b.create_block(), f.b.create_block());
        let has = f.b.ins().icmp_imm_s(IntCC::NotEqual, pf, 0);
        let several = f.b.ins().icmp_imm_s(IntCC::SignedGreaterThan, n, 1);
        let both = f.b.ins().band(has, worth);
        let all = f.b.ins().band(both, several);
        f.b.ins().brif(all, threads, &[], alone, &[]);
        f.b.switch_to_block(threads);
        f.b.ins().call_indirect(pf_sig, pf, &[user, n, kernel, args]);
        f.b.ins().jump(done, &[]);
        f.b.switch_to_block(alone);
        let every = f.b.ins().icmp_imm_s(IntCC::NotEqual, every, 0);
        let seen = f.b.ins().band(every, has);
        f.branch_out(seen, |f| {
            let inline = f.b.ins().bnot(n);
            f.b.ins().call_indirect(pf_sig, pf, &[user, inline, kernel, args]);
            f.b.ins().return_(&[]);
        });
        let zero = f.int(0);
        f.b.ins().call_indirect(kernel_sig, kernel, &[args, zero, n]);
        f.b.ins().jump(done, &[]);
        f.b.switch_to_block(done);
        f.b.ins().return_(&[]);
    })?;
    Ok(id)
}

/// The base address of every buffer that steps use, and what they are computed from.
struct Bases {
    arena: Value,
    weights: Value,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    slots: Vec<Value>,
}

impl Bases {
    fn of(&self, f: &mut Function, storage: Storage) -> Value {
        match storage {
            Storage::Input(i) => self.inputs[i as usize],
            Storage::Output(i) => self.outputs[i as usize],
            Storage::Weights(0) => self.weights,
            Storage::Weights(offset) => f.b.ins().iadd_imm_s(self.weights, offset as i64),
            Storage::Slot(s) => self.slots[s.index()],
        }
    }
}

fn run_parallel(e: &mut Emitter, s: &Symbols, check: FuncId, launch: FuncId) -> Result<(), ModuleError> {
    let table = s.kernel_table;
    define_function(e, s.run_parallel, |e, f| {
        let [ctx, dims, inputs, outputs, arena, pf, user] = f.params[..] else { unreachable!("seven parameters") };
        let null = f.is_null(ctx);
        f.bail_if(null, Status::NullPointer);
        let ports = [(inputs, e.program.inputs.len()), (outputs, e.program.outputs.len())].map(|(array, n)| {
            if n > 0 {
                let null = f.is_null(array);
                f.bail_if(null, Status::NullPointer);
            }
            (0..n)
                .map(|i| {
                    let p = f.load(PTR, array, i * 8);
                    let null = f.is_null(p);
                    f.bail_if(null, Status::NullPointer);
                    p
                })
                .collect::<Vec<_>>()
        });
        let magic = f.load(types::I64, ctx, context_offset::MAGIC);
        let expected = f.int(e.context_magic as i64);
        let other = f.b.ins().icmp(IntCC::NotEqual, magic, expected);
        f.bail_if(other, Status::Context);
        let code = call_check(e, f, check, dims);
        pass_on(f, code);
        let null = f.is_null(arena);
        f.bail_if(null, Status::Arena);
        let low = f.b.ins().band_imm_u(arena, abi::ALIGN as i64 - 1);
        let crooked = f.b.ins().icmp_imm_s(IntCC::NotEqual, low, 0);
        f.bail_if(crooked, Status::Arena);

        let zero = f.b.ins().iconst(types::I32, 0);
        f.b.ins().store(flags(), zero, arena, 0);
        let every = f.load(types::I32, ctx, context_offset::FLAGS);
        let variant = f.b.ins().uload32(flags(), ctx, context_offset::VARIANT as i32);
        let row = f.b.ins().imul_imm_s(variant, e.program.kernels.len() as i64 * 8);
        let kernels = e.data_address(f.b, table);
        let kernels = f.b.ins().iadd(kernels, row);
        let weights = f.load(PTR, ctx, context_offset::WEIGHTS);
        let mut d = load_dims(e, f, dims);
        let mut slots = vec![];
        let mut at = f.b.ins().iadd_imm_s(arena, arena_header(e.program));
        for bytes in e.program.slots.values() {
            slots.push(at);
            let bytes = d.int(f.b, bytes);
            at = f.b.ins().iadd(at, bytes);
        }
        let [inputs, outputs] = ports;
        let bases = Bases { arena, weights, inputs, outputs, slots };
        let args = f.b.ins().iadd_imm_s(arena, ARGS_OFFSET);
        // The word for the status stays from step to step.
        f.b.ins().store(flags(), arena, args, 0);
        let launch = e.module.declare_func_in_func(launch, f.b.func);
        for step in &e.program.steps {
            emit_step(e, f, &mut d, &bases, step, Launch { launch, kernels, args, pf, user, every });
        }
        let status = f.b.ins().load(types::I32, flags(), bases.arena, 0);
        f.b.ins().return_(&[status]);
    })
}

/// What all launches share.
#[derive(Clone, Copy)]
struct Launch {
    launch: FuncRef,
    kernels: Value,
    args: Value,
    pf: Value,
    user: Value,
    every: Value,
}

fn emit_step(e: &Emitter, f: &mut Function, d: &mut DimEmitter, bases: &Bases, step: &Step, l: Launch) {
    for (i, arg) in step.buffers.iter().enumerate() {
        let base = bases.of(f, e.program.buffers[arg.buffer].storage);
        let address = match arg.offset.as_const() {
            Some(0) => base,
            _ => {
                let offset = d.int(f.b, &arg.offset);
                f.b.ins().iadd(base, offset)
            }
        };
        f.b.ins().store(flags(), address, l.args, (1 + i) as i32 * 8);
    }
    for (i, n) in step.ints.iter().enumerate() {
        let n = d.int(f.b, n);
        f.b.ins().store(flags(), n, l.args, (1 + step.buffers.len() + i) as i32 * 8);
    }
    let kernel = f.load(PTR, l.kernels, step.kernel.index() * 8);
    let n = d.int(f.b, &step.tasks);
    let least = cost::parallel_work(&e.program.kernels[step.kernel].body);
    let worth = match step.work.as_const() {
        Some(work) => f.b.ins().iconst(types::I8, i64::from(work >= least)),
        None => {
            let work = d.int(f.b, &step.work);
            f.b.ins().icmp_imm_s(IntCC::SignedGreaterThanOrEqual, work, least)
        }
    };
    f.b.ins().call(l.launch, &[kernel, n, worth, l.args, l.pf, l.user, l.every]);
}

fn run(e: &mut Emitter, s: &Symbols) -> Result<(), ModuleError> {
    let target = s.run_parallel;
    define_function(e, s.run, |e, f| {
        let target = e.module.declare_func_in_func(target, f.b.func);
        let null = f.int(0);
        let args: Vec<Value> = f.params.iter().copied().chain([null, null]).collect();
        let call = f.b.ins().call(target, &args);
        let status = f.b.inst_results(call)[0];
        f.b.ins().return_(&[status]);
    })
}

fn init(e: &mut Emitter, s: &Symbols) -> Result<(), ModuleError> {
    let target = s.init_cpu;
    define_function(e, s.init, |e, f| {
        let target = e.module.declare_func_in_func(target, f.b.func);
        let null = f.int(0);
        let args: Vec<Value> = f.params.iter().copied().chain([null]).collect();
        let call = f.b.ins().call(target, &args);
        let status = f.b.inst_results(call)[0];
        f.b.ins().return_(&[status]);
    })
}

fn init_cpu(e: &mut Emitter, s: &Symbols, asking: Asking) -> Result<(), ModuleError> {
    let embedded = s.weights;
    define_function(e, s.init_cpu, |e, f| {
        let [ctx, file, bytes, name] = f.params[..] else { unreachable!("four parameters") };
        let null = f.is_null(ctx);
        f.bail_if(null, Status::NullPointer);
        let zero = f.int(0);
        for word in 0..abi::CONTEXT_BYTES / 8 {
            f.b.ins().store(flags(), zero, ctx, word as i32 * 8);
        }
        let weights = match embedded {
            Some(data) => e.data_address(f.b, data),
            None if e.weights.data_bytes == 0 => zero,
            None => check_weights(e, f, file, bytes),
        };
        let ask = |e: &mut Emitter, f: &mut Function, id: FuncId| {
            let id = e.module.declare_func_in_func(id, f.b.func);
            let call = f.b.ins().call(id, &[]);
            f.b.inst_results(call)[0]
        };
        let supported = match asking.features {
            Some(id) => ask(e, f, id),
            None => zero,
        };
        let permission = |cpu: &Cpu| asking.permission.filter(|_| cpu.matrix_tiles());
        let found = f.b.create_block();
        f.b.append_block_param(found, types::I64);
        let (named, best) = (f.b.create_block(), f.b.create_block());
        let is_null = f.is_null(name);
        f.b.ins().brif(is_null, best, &[], named, &[]);

        f.b.switch_to_block(named);
        for (i, cpu) in e.cpus.iter().enumerate() {
            let (next, same) = (f.b.create_block(), f.b.create_block());
            compare_text(f, name, cpu.name.as_bytes(), same, next);
            f.b.switch_to_block(same);
            let lacks = lacking(f, supported, cpuid::required(cpu));
            f.bail_if(lacks, Status::CpuNotRunnable);
            if let Some(id) = permission(cpu) {
                let allowed = ask(e, f, id);
                let denied = f.b.ins().icmp_imm_s(IntCC::Equal, allowed, 0);
                f.bail_if(denied, Status::CpuNotRunnable);
            }
            let i = f.int(i as i64);
            f.b.ins().jump(found, &[i.into()]);
            f.b.switch_to_block(next);
        }
        f.finish(Status::CpuUnknown);

        f.b.switch_to_block(best);
        for (i, cpu) in e.cpus.iter().enumerate().rev() {
            let next = f.b.create_block();
            let lacks = lacking(f, supported, cpuid::required(cpu));
            let i = f.int(i as i64);
            if let Some(id) = permission(cpu) {
                let may = f.b.create_block();
                f.b.ins().brif(lacks, next, &[], may, &[]);
                f.b.switch_to_block(may);
                let allowed = ask(e, f, id);
                f.b.ins().brif(allowed, found, &[i.into()], next, &[]);
            } else {
                f.b.ins().brif(lacks, next, &[], found, &[i.into()]);
            }
            f.b.switch_to_block(next);
        }
        f.finish(Status::CpuTooOld);

        f.b.switch_to_block(found);
        let variant = f.b.block_params(found)[0];
        f.b.ins().store(flags(), weights, ctx, context_offset::WEIGHTS as i32);
        f.b.ins().istore32(flags(), variant, ctx, context_offset::VARIANT as i32);
        let magic = f.int(e.context_magic as i64);
        f.b.ins().store(flags(), magic, ctx, context_offset::MAGIC as i32);
        f.finish(Status::Ok);
    })
}

/// Whether a required feature is missing.
fn lacking(f: &mut Function, supported: Value, required: u64) -> Value {
    let missing = f.b.ins().bnot(supported);
    let missing = f.b.ins().band_imm_u(missing, required as i64);
    f.b.ins().icmp_imm_s(IntCC::NotEqual, missing, 0)
}

/// Goes to `same` if the C string equals the text, else to `next`.
fn compare_text(f: &mut Function, string: Value, text: &[u8], same: Block, next: Block) {
    for (i, &byte) in text.iter().chain(&[0]).enumerate() {
        let c = f.b.ins().uload8(types::I64, flags(), string, i as i32);
        let equal = f.b.ins().icmp_imm_s(IntCC::Equal, c, i64::from(byte));
        let go_on = if i == text.len() { same } else { f.b.create_block() };
        f.b.ins().brif(equal, go_on, &[], next, &[]);
        if i < text.len() {
            f.b.switch_to_block(go_on);
        }
    }
}

/// Checks the header of a weights file and returns the address of its data.
fn check_weights(e: &Emitter, f: &mut Function, file: Value, bytes: Value) -> Value {
    let null = f.is_null(file);
    f.bail_if(null, Status::WeightsMissing);
    let need = f.int((weights::PAGE as u64 + e.weights.data_bytes) as i64);
    let header = f.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, bytes, weights::PAGE as i64);
    f.bail_if(header, Status::WeightsMissing);
    let low = f.b.ins().band_imm_u(file, abi::ALIGN as i64 - 1);
    let crooked = f.b.ins().icmp_imm_s(IntCC::NotEqual, low, 0);
    f.bail_if(crooked, Status::WeightsAlignment);
    let word = |f: &mut Function, offset: usize, expected: u64, t: types::Type, status: Status| {
        let found = f.load(t, file, offset);
        let expected = f.b.ins().iconst(t, expected as i64);
        let other = f.b.ins().icmp(IntCC::NotEqual, found, expected);
        f.bail_if(other, status);
    };
    word(f, weights::MAGIC_OFFSET, u32::from_le_bytes(weights::MAGIC).into(), types::I32, Status::WeightsMagic);
    word(f, weights::VERSION_OFFSET, weights::VERSION.into(), types::I32, Status::WeightsVersion);
    word(f, weights::HEADER_BYTES_OFFSET, weights::PAGE as u64, types::I64, Status::WeightsVersion);
    word(f, weights::DATA_BYTES_OFFSET, e.weights.data_bytes, types::I64, Status::WeightsMismatch);
    word(f, weights::HASH_OFFSET, e.weights.hash as u64, types::I64, Status::WeightsMismatch);
    word(f, weights::HASH_OFFSET + 8, (e.weights.hash >> 64) as u64, types::I64, Status::WeightsMismatch);
    let short = f.b.ins().icmp(IntCC::UnsignedLessThan, bytes, need);
    f.bail_if(short, Status::WeightsMissing);
    f.b.ins().iadd_imm_s(file, weights::PAGE as i64)
}

fn cpu_variant(e: &mut Emitter, s: &Symbols) -> Result<(), ModuleError> {
    let names: Vec<&str> = e.cpus.iter().map(|c| c.name).collect();
    let (strings, offsets) = e.strings("cpu_names", &names)?;
    define_function(e, s.cpu_variant, |e, f| {
        let ctx = f.params[0];
        let null = f.is_null(ctx);
        let zero = f.int(0);
        f.branch_out(null, |f| {
            f.b.ins().return_(&[zero]);
        });
        let magic = f.load(types::I64, ctx, context_offset::MAGIC);
        let expected = f.int(e.context_magic as i64);
        let other = f.b.ins().icmp(IntCC::NotEqual, magic, expected);
        f.branch_out(other, |f| {
            f.b.ins().return_(&[zero]);
        });
        let variant = f.b.ins().uload32(flags(), ctx, context_offset::VARIANT as i32);
        let base = e.data_address(f.b, strings);
        let mut offset = zero;
        for (i, &at) in offsets.iter().enumerate() {
            let is = f.b.ins().icmp_imm_s(IntCC::Equal, variant, i as i64);
            let at = f.int(at as i64);
            offset = f.b.ins().select(is, at, offset);
        }
        let p = f.b.ins().iadd(base, offset);
        f.b.ins().return_(&[p]);
    })
}

fn status_string(e: &mut Emitter, s: &Symbols) -> Result<(), ModuleError> {
    let mut sentences: Vec<&str> = Status::ALL.iter().map(|s| s.sentence()).collect();
    sentences.push(abi::UNKNOWN_STATUS);
    let (strings, offsets) = e.strings("status_strings", &sentences)?;
    let table: Vec<u8> = offsets.iter().flat_map(|&o| (o as u32).to_le_bytes()).collect();
    let table = e.data("status_offsets", &table, 4)?;
    define_function(e, s.status_string, |e, f| {
        let unknown = f.int(Status::ALL.len() as i64);
        let code = f.b.ins().sextend(types::I64, f.params[0]);
        let outside = f.b.ins().icmp(IntCC::UnsignedGreaterThan, code, unknown);
        let code = f.b.ins().select(outside, unknown, code);
        let (base, table) = (e.data_address(f.b, strings), e.data_address(f.b, table));
        let at = f.b.ins().imul_imm_s(code, 4);
        let at = f.b.ins().iadd(table, at);
        let offset = f.b.ins().uload32(flags(), at, 0);
        let p = f.b.ins().iadd(base, offset);
        f.b.ins().return_(&[p]);
    })
}

fn build_info(e: &mut Emitter, s: &Symbols) -> Result<(), ModuleError> {
    let info = e.build_info.clone();
    let (string, _) = e.strings("build_info_text", &[&info])?;
    define_function(e, s.build_info, |e, f| {
        let p = e.data_address(f.b, string);
        f.b.ins().return_(&[p]);
    })
}
