//! The portable emitter: kernels as Cranelift IR, for every CPU that Cranelift knows.
//!
//! A kernel becomes one function `(args: *const u64, begin: i64, end: i64)` as described in
//! [`kernel`](crate::kernel). It calls at most helper functions of its own, which [`code`] puts behind it,
//! so its code has no relocations; floating-point constants are in the pools that Cranelift places behind
//! functions.
//!
//! Addresses are written as sums, the outermost loop's part first. Cranelift's global value numbering
//! shares equal parts, and its loop-invariant code motion takes them out of inner loops; only loads and
//! checked indices are hoisted by the emitters themselves.

mod attention;
mod bytes;
pub mod code;
mod dequantized;
pub mod expr;
mod gemm;
pub mod math;
mod memory;
pub mod nest;
#[cfg(test)]
mod nest_tests;
mod pack;
mod prim;
mod quantize;
mod quantized;
#[cfg(test)]
mod reference;
pub mod target;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod tile;
mod top_k;

use crate::kernel::{Body, BufferParam, Extent, Kernel};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F32X4, F64, F64X2, I8X16, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{
    AbiParam, Block, ConstantData, Endianness, ExtFuncData, ExternalName, Function, InstBuilder, MemFlagsData, Signature, Type,
    UserExternalName, UserFuncName, Value,
};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use target::Cpu;

/// What a kernel writes to the status word when a run-time index is out of range: the runtime's code
/// for it.
pub const STATUS_INDEX_OUT_OF_RANGE: i64 = tfc_runtime::abi::Status::IndexRange as i64;

/// Flags of all memory accesses: they cannot trap; vectors need not be aligned.
pub const MEM: MemFlagsData = MemFlagsData::new().with_notrap();

/// The lanes of a vector.
pub const LANES: usize = 4;

/// Emits a kernel: first its own function, of the target's default calling convention, then the helper
/// functions that it calls. Function `n` is called by the name `u0:n`.
pub fn kernel_functions(kernel: &Kernel, cpu: &Cpu) -> Vec<Function> {
    let mut sig = Signature::new(cpu.isa.default_call_conv());
    sig.params.extend([AbiParam::new(I64); 3]);
    let mut function = Function::with_name_signature(UserFuncName::user(0, 0), sig);
    let mut context = FunctionBuilderContext::new();
    let mut b = KernelBuilder::new(&mut function, &mut context, kernel, cpu);
    match &kernel.body {
        Body::Nest(nest) => {
            let (begin, end) = (b.begin, b.end);
            nest::emit(&mut b, nest, begin, end);
        }
        Body::Pack(pack) => pack::emit(&mut b, pack),
        Body::Gemm(gemm) => gemm::emit(&mut b, gemm),
        Body::Attention(attention) => attention::emit(&mut b, attention),
        Body::TopK(top_k) => top_k::emit(&mut b, top_k),
    }
    let helpers = std::mem::take(&mut b.helpers);
    b.finish();
    std::iter::once(function).chain(helpers.into_iter().map(|(_, f)| f)).collect()
}

/// A function under construction: Cranelift's builder with the kernel's arguments and what all
/// emitters need.
pub struct KernelBuilder<'a> {
    /// The builder of the function.
    pub f: FunctionBuilder<'a>,
    /// The CPU it is for.
    pub cpu: &'a Cpu,
    /// First task.
    pub begin: Value,
    /// The task behind the last one.
    pub end: Value,
    /// The buffer parameters of the kernel.
    pub params: &'a [BufferParam],
    args: Value,
    buffers: Vec<Value>,
    ints: Vec<Value>,
    status: Value,
    exit: Block,
    helpers: Vec<(String, Function)>,
}

/// An open loop, see [`KernelBuilder::open_loop`].
pub struct Loop {
    /// The index in the body.
    pub index: Value,
    variable: Variable,
    last: Value,
    step: i64,
    body: Option<Block>,
    exit: Option<Block>,
    behind: Option<i64>,
}

impl<'a> KernelBuilder<'a> {
    /// Begins the function: its entry block loads all argument words.
    pub fn new(function: &'a mut Function, context: &'a mut FunctionBuilderContext, kernel: &'a Kernel, cpu: &'a Cpu) -> Self {
        let mut f = FunctionBuilder::new(function, context);
        let entry = f.create_block();
        let exit = f.create_block();
        f.append_block_params_for_function_params(entry);
        f.switch_to_block(entry);
        f.seal_block(entry);
        let [args, begin, end] = *f.block_params(entry) else { unreachable!("three parameters") };
        let flags = MEM.with_readonly().with_can_move().with_aligned();
        let mut word = |n: usize| f.ins().load(I64, flags, args, 8 * n as i32);
        let status = word(0);
        let buffers: Vec<Value> = (0..kernel.buffers.len()).map(|n| word(1 + n)).collect();
        let ints = (0..kernel.ints as usize).map(|n| word(1 + buffers.len() + n)).collect();
        KernelBuilder { f, cpu, begin, end, params: &kernel.buffers, args, buffers, ints, status, exit, helpers: vec![] }
    }

    /// Calls a helper function with `i64` arguments. Helpers with equal names are the same function, which
    /// `emit` emits from its parameters. A helper keeps the values of the kernel out of the registers of
    /// its loops.
    pub fn call(&mut self, name: String, args: &[Value], emit: impl FnOnce(&mut KernelBuilder, &[Value])) {
        let mut sig = Signature::new(self.cpu.isa.default_call_conv());
        sig.params.extend(args.iter().map(|_| AbiParam::new(I64)));
        let known = self.helpers.iter().position(|(n, _)| *n == name);
        let number = 1 + known.unwrap_or(self.helpers.len()) as u32;
        if known.is_none() {
            let mut function = Function::with_name_signature(UserFuncName::user(0, number), sig.clone());
            let mut context = FunctionBuilderContext::new();
            let mut f = FunctionBuilder::new(&mut function, &mut context);
            let (entry, exit) = (f.create_block(), f.create_block());
            f.append_block_params_for_function_params(entry);
            f.switch_to_block(entry);
            f.seal_block(entry);
            let params = f.block_params(entry).to_vec();
            let none = params[0];
            let (buffers, ints, helpers) = (vec![], vec![], vec![]);
            let (args, begin, end, status) = (none, none, none, none);
            let mut b = KernelBuilder { f, cpu: self.cpu, begin, end, params: &[], args, buffers, ints, status, exit, helpers };
            emit(&mut b, &params);
            b.finish();
            self.helpers.push((name, function));
        }
        let signature = self.f.import_signature(sig);
        let name = self.f.func.declare_imported_user_function(UserExternalName { namespace: 0, index: number });
        let data = ExtFuncData { name: ExternalName::user(name), signature, colocated: true, patchable: false };
        let helper = self.f.import_function(data);
        self.f.ins().call(helper, args);
    }

    /// Loads all argument words but the status again. What follows uses these values: the former ones need
    /// no registers in the loops between.
    pub fn reload_arguments(&mut self) {
        let words = 1..1 + self.buffers.len() + self.ints.len();
        let args = self.args;
        let loaded: Vec<Value> = words.map(|n| self.f.ins().load(I64, MEM.with_aligned(), args, 8 * n as i32)).collect();
        let (buffers, ints) = loaded.split_at(self.buffers.len());
        (self.buffers, self.ints) = (buffers.to_vec(), ints.to_vec());
    }

    /// Ends the function.
    pub fn finish(mut self) {
        self.f.ins().jump(self.exit, &[]);
        self.f.switch_to_block(self.exit);
        self.f.ins().return_(&[]);
        self.f.seal_all_blocks();
        self.f.finalize(self.cpu.isa.frontend_config());
    }

    /// The address of a buffer argument.
    pub fn buffer(&self, n: u32) -> Value {
        self.buffers[n as usize]
    }

    /// An `i64` constant.
    pub fn int(&mut self, n: i64) -> Value {
        self.f.ins().iconst(I64, n)
    }

    /// The value of an extent, an `i64`.
    pub fn extent(&mut self, e: Extent) -> Value {
        match e {
            Extent::Const(n) => self.int(n),
            Extent::Param(p) => self.ints[p as usize],
        }
    }

    /// `x * by`, an `i64`.
    pub fn times(&mut self, x: Value, by: Extent) -> Value {
        match by {
            Extent::Const(0) => self.int(0),
            Extent::Const(1) => x,
            Extent::Const(n) if n > 0 && n & (n - 1) == 0 => self.f.ins().ishl_imm_u(x, i64::from(n.trailing_zeros())),
            Extent::Const(n) => {
                let n = self.int(n);
                self.f.ins().imul(x, n)
            }
            Extent::Param(p) => self.f.ins().imul(x, self.ints[p as usize]),
        }
    }

    /// The number that a value is, if it is an `i64` constant.
    pub fn as_const(&self, v: Value) -> Option<i64> {
        use cranelift_codegen::ir::{InstructionData, Opcode, ValueDef};
        let dfg = &self.f.func.dfg;
        match dfg.value_def(dfg.resolve_aliases(v)) {
            ValueDef::Result(inst, _) => match dfg.insts[inst] {
                InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(imm.bits()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Begins a loop whose body runs with the indices `begin`, `begin + step`, … as long as
    /// `index + step <= end`. Loop-carried values are [`Variable`]s. A loop that is known to run
    /// once costs nothing; `None` if it is known not to run at all.
    pub fn open_loop(&mut self, begin: Value, end: Value, step: i64) -> Option<Loop> {
        let constant = self.as_const(begin).zip(self.as_const(end));
        let known = constant.map(|(b, e)| (e - b).max(0) / step);
        if known == Some(0) {
            return None;
        }
        let behind = constant.map(|(b, e)| b + (e - b) / step * step);
        let variable = self.f.declare_var(I64);
        let last = match self.as_const(end) {
            Some(e) => self.int(e - step),
            None => self.f.ins().iadd_imm_s(end, -step),
        };
        if known == Some(1) {
            return Some(Loop { index: begin, variable, last, step, body: None, exit: None, behind });
        }
        self.f.def_var(variable, begin);
        let (body, exit) = (self.f.create_block(), self.f.create_block());
        if known.is_some() {
            self.f.ins().jump(body, &[]);
        } else {
            let any = self.f.ins().icmp(IntCC::SignedLessThanOrEqual, begin, last);
            self.f.ins().brif(any, body, &[], exit, &[]);
        }
        self.f.switch_to_block(body);
        let index = self.f.use_var(variable);
        Some(Loop { index, variable, last, step, body: Some(body), exit: Some(exit), behind })
    }

    /// Ends the body of a loop and continues behind it. Returns the index of the first iteration that
    /// did not run.
    pub fn close_loop(&mut self, l: Loop) -> Value {
        let (Some(body), Some(exit)) = (l.body, l.exit) else {
            return self.int(l.behind.expect("the loop runs once"));
        };
        let next = self.f.ins().iadd_imm_s(l.index, l.step);
        self.f.def_var(l.variable, next);
        let again = self.f.ins().icmp(IntCC::SignedLessThanOrEqual, next, l.last);
        self.f.ins().brif(again, body, &[], exit, &[]);
        self.f.seal_block(body);
        self.f.seal_block(exit);
        self.f.switch_to_block(exit);
        match l.behind {
            Some(n) => self.int(n),
            None => self.f.use_var(l.variable),
        }
    }

    /// Ends the run with the status "index out of range" if `c` is not 0.
    pub fn fail_if(&mut self, c: Value) {
        let (fail, go_on) = (self.f.create_block(), self.f.create_block());
        self.f.set_cold_block(fail);
        self.f.ins().brif(c, fail, &[], go_on, &[]);
        self.f.seal_block(fail);
        self.f.seal_block(go_on);
        self.f.switch_to_block(fail);
        let code = self.f.ins().iconst(I32, STATUS_INDEX_OUT_OF_RANGE);
        self.f.ins().store(MEM, code, self.status, 0);
        self.f.ins().jump(self.exit, &[]);
        self.f.switch_to_block(go_on);
    }

    /// A constant of the type of the lanes of `ty`, in all lanes. Integer types take the low bits.
    pub fn int_of(&mut self, ty: Type, n: i64) -> Value {
        if !ty.is_vector() {
            let bits = ty.bits();
            let n = if bits == 64 { n } else { n & ((1 << bits) - 1) };
            return self.f.ins().iconst(ty, n);
        }
        let lane = &n.to_le_bytes()[..ty.lane_type().bytes() as usize];
        self.vector(ty, &lane.repeat(ty.lane_count() as usize))
    }

    /// A float constant of a float type, in all lanes.
    pub fn float_of(&mut self, ty: Type, x: f64) -> Value {
        match ty {
            F32 => self.f.ins().f32const(x as f32),
            F64 => self.f.ins().f64const(x),
            F32X4 => self.vector(ty, &(x as f32).to_le_bytes().repeat(4)),
            F64X2 => self.vector(ty, &x.to_le_bytes().repeat(2)),
            _ => unreachable!("{ty} is not a float type"),
        }
    }

    /// A vector constant by its bytes, the first lane first.
    pub fn vector(&mut self, ty: Type, bytes: &[u8]) -> Value {
        let constant = self.f.func.dfg.constants.insert(ConstantData::from(bytes));
        self.f.ins().vconst(ty, constant)
    }

    /// `x * y + z`: fused where the CPU can.
    pub fn fma(&mut self, x: Value, y: Value, z: Value) -> Value {
        if self.cpu.has_fma() {
            self.f.ins().fma(x, y, z)
        } else {
            let p = self.f.ins().fmul(x, y);
            self.f.ins().fadd(p, z)
        }
    }

    /// The same bits as another type of the same size.
    pub fn bits(&mut self, ty: Type, x: Value) -> Value {
        let from = self.f.func.dfg.value_type(x);
        if from == ty {
            return x;
        }
        let flags = MemFlagsData::new();
        let flags = if from.is_vector() || ty.is_vector() { flags.with_endianness(Endianness::Little) } else { flags };
        self.f.ins().bitcast(ty, flags, x)
    }

    /// Type of a value.
    pub fn ty(&self, x: Value) -> Type {
        self.f.func.dfg.value_type(x)
    }

    /// `mask ? x : y` by lane; masks are what comparisons give.
    pub fn choose(&mut self, mask: Value, x: Value, y: Value) -> Value {
        let ty = self.ty(x);
        if !ty.is_vector() {
            return self.f.ins().select(mask, x, y);
        }
        let mask = self.bits(ty, mask);
        self.f.ins().bitselect(mask, x, y)
    }

    /// Left shift of every lane by a constant.
    pub fn shl(&mut self, x: Value, by: i64) -> Value {
        let by = self.f.ins().iconst(I32, by);
        self.f.ins().ishl(x, by)
    }

    /// Logical right shift of every lane by a constant.
    pub fn shr(&mut self, x: Value, by: i64) -> Value {
        let by = self.f.ins().iconst(I32, by);
        self.f.ins().ushr(x, by)
    }

    /// Arithmetic right shift of every lane by a constant.
    pub fn sar(&mut self, x: Value, by: i64) -> Value {
        let by = self.f.ins().iconst(I32, by);
        self.f.ins().sshr(x, by)
    }

    /// `x` in every lane of a vector.
    pub fn splat(&mut self, x: Value) -> Value {
        let ty = self.ty(x).by(LANES as u32).expect("a vector type");
        self.f.ins().splat(ty, x)
    }

    /// Lane `n` of a vector.
    pub fn lane(&mut self, x: Value, n: usize) -> Value {
        self.f.ins().extractlane(x, n as u8)
    }

    /// A vector of scalars of 32 bits.
    pub fn pack(&mut self, lanes: &[Value]) -> Value {
        let mut v = self.splat(lanes[0]);
        for (n, x) in lanes.iter().enumerate().skip(1) {
            v = self.f.ins().insertlane(v, *x, n as u8);
        }
        v
    }

    /// A vector whose lane `n` is lane `order[n]` of the concatenation of `x` and `y`, for vectors of four lanes.
    pub fn shuffle(&mut self, x: Value, y: Value, order: [u8; LANES]) -> Value {
        let ty = self.ty(x);
        let mask: Vec<u8> = order.iter().flat_map(|&n| (0..4).map(move |b| 4 * n + b)).collect();
        let mask = self.f.func.dfg.immediates.push(ConstantData::from(mask.as_slice()));
        let (x, y) = (self.bits(I8X16, x), self.bits(I8X16, y));
        let out = self.f.ins().shuffle(x, y, mask);
        self.bits(ty, out)
    }

    /// Combines the four lanes of a vector to a scalar: `(0 op 2) op (1 op 3)`.
    pub fn across(&mut self, v: Value, mut op: impl FnMut(&mut Self, Value, Value) -> Value) -> Value {
        let swapped = self.shuffle(v, v, [2, 3, 0, 1]);
        let v = op(self, v, swapped);
        let swapped = self.shuffle(v, v, [1, 0, 3, 2]);
        let v = op(self, v, swapped);
        self.lane(v, 0)
    }
}

/// The integer type with the lanes of a float type.
pub fn int_like(ty: Type) -> Type {
    match ty {
        F32 => I32,
        F64 => I64,
        F32X4 => I32X4,
        F64X2 => I64X2,
        other => other,
    }
}
