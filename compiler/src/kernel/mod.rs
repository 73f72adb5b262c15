//! The kernel layer: what the scheduler produces and the emitters read.
//!
//! A [`Program`] is a list of [`Step`]s. Each step launches a [`Kernel`] (a piece of code, shared by
//! all steps that need the same code) on buffers and integers. Kernels come in five kinds: loop
//! nests around row programs ([`nest`]), matrix products by tiles ([`gemm`]) with the packing of their
//! left operands ([`pack`]), fused attention ([`attention`]), and selection ([`top_k`]); data movement is a nest.
//!
//! # How a kernel is called
//!
//! `fn kernel(args: *const u64, begin: i64, end: i64)` runs the independent tasks `begin..end`; it is
//! the callback that `parallel_for` takes, so a kernel is handed to a thread pool as it is. `args`
//! points to words of 8 bytes: word 0 is the address of the status (an `i32` that a kernel sets when a
//! run-time index is out of range), then one address per buffer parameter, then one `i64` per integer
//! parameter. Everything symbolic has become one of those integers: a kernel knows no symbols.

pub mod attention;
pub mod gemm;
pub mod nest;
pub mod pack;
pub mod site;
pub mod top_k;
pub mod work;

use attention::Attention;
use cranelift_entity::{PrimaryMap, entity_impl};
use gemm::Gemm;
use nest::Nest;
use pack::Pack;
use std::collections::BTreeMap;
use std::fmt;
use tfc_ir::dim::{Dim, Symbol, SymbolTable};
use tfc_ir::graph::{DimCheck, Loc};
use tfc_ir::types::{Elem, Type};
use top_k::TopK;

/// A size, stride or offset in a kernel: a number, or an integer parameter of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Extent {
    /// Known at compile time.
    Const(i64),
    /// The `n`-th integer parameter.
    Param(u32),
}

impl Extent {
    /// The number, if it is one.
    pub fn as_const(self) -> Option<i64> {
        match self {
            Extent::Const(n) => Some(n),
            Extent::Param(_) => None,
        }
    }

    /// What it is in a launch with these integers.
    pub fn of(self, ints: &[Dim]) -> Dim {
        match self {
            Extent::Const(n) => Dim::from(n),
            Extent::Param(p) => ints[p as usize].clone(),
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Extent::Const(n) => write!(f, "{n}"),
            Extent::Param(p) => write!(f, "i{p}"),
        }
    }
}

/// What a kernel does with a buffer parameter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Use {
    /// It only reads.
    Read,
    /// It writes, and may read what it wrote.
    Write,
}

/// A buffer parameter of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BufferParam {
    /// Type of its elements. Strides and offsets count these.
    pub elem: Elem,
    /// Direction.
    pub usage: Use,
}

/// The code of a kernel. Two steps with equal kernels share one function.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Kernel {
    /// Buffer parameters in the order of the argument words.
    pub buffers: Vec<BufferParam>,
    /// Number of integer parameters.
    pub ints: u32,
    /// What it computes.
    pub body: Body,
}

impl Kernel {
    /// Pairs of buffer parameters, one that is read and one that is written, of which any one pair may be the same memory: a task
    /// writes what it has read before, and no other task has to do with that. It is for emitters to keep this order.
    pub fn in_place(&self) -> Vec<(u32, u32)> {
        match &self.body {
            Body::Gemm(g) => g.in_place(),
            Body::Attention(a) => a.in_place().into_iter().collect(),
            Body::Nest(_) | Body::Pack(_) | Body::TopK(_) => vec![],
        }
    }

    /// Whether it packs or multiplies bytes that stay in [rows](pack).
    pub fn has_rows(&self) -> bool {
        match &self.body {
            Body::Pack(p) => p.pitch.is_some(),
            Body::Gemm(g) => g.left_pitch.is_some() && matches!(g.format, gemm::Format::Quantized(_)),
            Body::Nest(_) | Body::Attention(_) | Body::TopK(_) => false,
        }
    }
}

/// The kinds of kernels.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Body {
    /// A loop nest around row programs.
    Nest(Nest),
    /// A left operand of a matrix product, packed.
    Pack(Pack),
    /// A matrix product.
    Gemm(Gemm),
    /// Fused attention.
    Attention(Attention),
    /// Selection of elements.
    TopK(TopK),
}

impl Body {
    /// A word for names and listings.
    pub fn kind(&self) -> &'static str {
        match self {
            Body::Nest(_) => "nest",
            Body::Pack(_) => "pack",
            Body::Gemm(_) => "gemm",
            Body::Attention(_) => "attention",
            Body::TopK(_) => "top_k",
        }
    }
}

/// A kernel of a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelId(u32);
entity_impl!(KernelId, "kernel");

/// A buffer of a program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(u32);
entity_impl!(Buffer, "buffer");

/// A slot of the arena: memory that buffers with disjoint lifetimes share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);
entity_impl!(Slot, "slot");

/// Where a buffer lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Storage {
    /// The caller's `n`-th input.
    Input(u32),
    /// The caller's `n`-th output.
    Output(u32),
    /// In the weights, this many bytes from their begin (a multiple of 64).
    Weights(u64),
    /// At the begin of an arena slot.
    Slot(Slot),
}

/// A contiguous piece of memory.
#[derive(Clone, Debug)]
pub struct BufferData {
    /// Where it is.
    pub storage: Storage,
    /// Its size in bytes.
    pub bytes: Dim,
}

/// A buffer argument of a step.
#[derive(Clone, Debug)]
pub struct BufferArg {
    /// The buffer.
    pub buffer: Buffer,
    /// Where the argument begins, in bytes from the begin of the buffer.
    pub offset: Dim,
}

/// A launch of a kernel.
#[derive(Clone, Debug)]
pub struct Step {
    /// The code.
    pub kernel: KernelId,
    /// One per buffer parameter.
    pub buffers: Vec<BufferArg>,
    /// One per integer parameter.
    pub ints: Vec<Dim>,
    /// Number of independent tasks.
    pub tasks: Dim,
    /// Rough number of elementary operations: decides whether threads are worth it.
    pub work: Dim,
    /// The ONNX nodes it computes.
    pub loc: Loc,
    /// What it computes, in words of the IR: `matmul+add+gelu`.
    pub label: String,
}

/// An input or output of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    /// Name in the model.
    pub name: String,
    /// Its type.
    pub ty: Type,
}

/// A compiled model before code generation.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Name of the model.
    pub name: String,
    /// The free dimensions in the order of the `dims` struct: that of their first use by the inputs.
    pub dims: Vec<Symbol>,
    /// Ranges of the free dimensions.
    pub symbols: SymbolTable,
    /// The ONNX nodes that narrowed ranges.
    pub bounds: BTreeMap<Symbol, Loc>,
    /// What must hold between dimensions.
    pub checks: Vec<DimCheck>,
    /// The inputs.
    pub inputs: Vec<Port>,
    /// The outputs.
    pub outputs: Vec<Port>,
    /// All buffers.
    pub buffers: PrimaryMap<Buffer, BufferData>,
    /// Sizes of the arena slots in bytes. Slot after slot, each begins at a multiple of 64.
    pub slots: PrimaryMap<Slot, Dim>,
    /// The kernels.
    pub kernels: PrimaryMap<KernelId, Kernel>,
    /// What to launch, in order.
    pub steps: Vec<Step>,
    /// The prepacked weights in order of their offsets; the gaps are zeros.
    pub weights: Vec<Weight>,
    /// Bytes that the constants of the graph have in their own types.
    pub constant_bytes: u64,
    /// What quantization did to every product; empty if the model was not quantized.
    pub ledger: Vec<tfc_passes::LedgerEntry>,
    /// How near it is to the model in f32, if that was measured.
    pub accuracy: Option<crate::calibration::Accuracy>,
}

/// A prepacked constant.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Bytes from the begin of the weights, a multiple of 64.
    pub offset: u64,
    /// The contents.
    pub data: bytes::Bytes,
}

impl Program {
    /// The buffers of a step and what it does with them.
    pub fn uses<'a>(&'a self, step: &'a Step) -> impl Iterator<Item = (Buffer, Use)> + 'a {
        self.kernels[step.kernel].buffers.iter().zip(&step.buffers).map(|(p, b)| (b.buffer, p.usage))
    }

    /// The index of the step that multiplies for ONNX nodes, those of a product or an attention before it was fused with others:
    /// of the steps that compute one of them, the one that computes the fewest others. `None` where nothing multiplies for them, as
    /// for a product that was folded into a constant, and for nodes without names.
    pub fn multiplies(&self, nodes: &Loc) -> Option<usize> {
        let shared = |s: &Step| s.loc.names().filter(|name| nodes.names().any(|n| n == *name)).count();
        let product = |s: &Step| {
            s.label.split(['+', ' ']).any(|op| matches!(op, "matmul" | "quantized_matmul" | "attention" | "quantized_attention"))
        };
        let computes = |body: &Body| matches!(body, Body::Gemm(_) | Body::Attention(_) | Body::Nest(_));
        let mut best: Option<(usize, usize, usize)> = None;
        for (i, s) in self.steps.iter().enumerate().filter(|(_, s)| computes(&self.kernels[s.kernel].body) && product(s)) {
            let (shared, all) = (shared(s), s.loc.names().len());
            // A larger part of the step's nodes: shared / all, without rounding.
            if shared > 0 && best.is_none_or(|(_, s, a)| shared * a > s * all) {
                best = Some((i, shared, all));
            }
        }
        best.map(|(i, _, _)| i)
    }

    /// Total size of the weights in bytes.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.last().map_or(0, |w| w.offset + w.data.len() as u64)
    }
}
