//! Loop nests around row programs: elementwise chains, reductions, normalisations, data movement.
//!
//! A nest runs independent tasks. A task runs its *stages* in order; a stage iterates the inner loops
//! (or runs once) and evaluates expressions whose values it stores or reduces. A value that a stage
//! reduced is available to the stages after it: softmax is `max`, then `sum(exp(x - max))` with the
//! exponentials stored, then the division.
//!
//! There are two forms. In the *row* form the innermost of the inner loops is the one to vectorise, and
//! reductions end with a sum over lanes. In the *column* form a further loop, `columns`, lies between
//! tasks and inner loops and is the one to vectorise: every lane has reductions of its own (a sum over
//! axes that are not the last, a depthwise convolution, a product with few rows).

use super::Extent;
use cranelift_entity::{PrimaryMap, entity_impl};
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// An expression of a nest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExprId(u32);
entity_impl!(ExprId, "e");

/// A reduction of a nest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reduction(u32);
entity_impl!(Reduction, "r");

/// A place in a buffer: `offset + Σ strides[l] * index[l] + Σ dynamic`, in elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Access {
    /// Buffer parameter of the kernel.
    pub buffer: u32,
    /// Constant part.
    pub offset: Extent,
    /// One per loop: tasks, columns if there are, inner.
    pub strides: Vec<Extent>,
    /// Run-time indices with their strides: `i64` expressions, checked where they may be out of range.
    pub dynamic: Vec<(ExprId, Extent)>,
}

impl Access {
    /// Whether the element is at the same place of a buffer as another one is of its own, at every index.
    pub fn same_place(&self, other: &Access) -> bool {
        (self.offset, &self.strides, &self.dynamic) == (other.offset, &other.strides, &other.dynamic)
    }
}

/// What an expression is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Expr {
    /// An element of a buffer.
    Load(Access),
    /// The index of a loop, an `i64` (loops as in [`Access::strides`]).
    Index(u32),
    /// A size or another integer parameter, an `i64`.
    Extent(Extent),
    /// The value of a reduction: final in later stages; in the stage that computes it, the running
    /// value including the current element (such a nest runs strictly in order, without lanes).
    Reduced(Reduction),
    /// A float by the bits of its f64.
    Float(u64),
    /// An integer or `bool`.
    Int(i64),
    /// A primitive of earlier expressions, typed as in [`tfc_ir::scalar`]. `f16` and `bf16` are
    /// computed in f32 and rounded when they are stored.
    Prim(Prim, Vec<ExprId>),
    /// An `i64` run-time index made valid: negative ones count from the end; one outside of
    /// `[-size, size)` sets the status of the run and becomes 0.
    CheckedIndex(ExprId, Extent),
}

/// How values are reduced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ReduceOp {
    /// Sum, from 0.
    Sum,
    /// Product, from 1.
    Prod,
    /// Maximum, from the lowest value; a NaN wins.
    Max,
    /// Minimum, from the highest value; a NaN wins.
    Min,
}

/// What a stage does with a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Stores it; the expression has the buffer's element type.
    Store(Access, ExprId),
    /// Reduces it over the inner loops.
    Reduce(Reduction, ExprId),
}

/// A pass over the inner loops.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Stage {
    /// Whether it runs once (per task, or per column) instead of once per iteration of the inner
    /// loops; their indices are 0 then.
    pub once: bool,
    /// What it does, in order.
    pub effects: Vec<Effect>,
}

/// A loop nest.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Nest {
    /// Independent loops, outermost first: a task is one point of their product.
    pub tasks: Vec<Extent>,
    /// In the column form, the loop whose iterations become lanes; they are independent as well.
    pub columns: Option<Extent>,
    /// Sequential loops, outermost first.
    pub inner: Vec<Extent>,
    /// Expressions with their element types; operands come first.
    pub exprs: PrimaryMap<ExprId, (Expr, Elem)>,
    /// The reductions: operation and element type.
    pub reductions: PrimaryMap<Reduction, (ReduceOp, Elem)>,
    /// What runs, in order.
    pub stages: Vec<Stage>,
}

impl Nest {
    /// Number of loops: the length of every [`Access::strides`].
    pub fn loops(&self) -> usize {
        self.tasks.len() + usize::from(self.columns.is_some()) + self.inner.len()
    }

    /// The extents of all loops in the order of [`Access::strides`].
    pub fn extents(&self) -> Vec<Extent> {
        self.tasks.iter().chain(&self.columns).chain(&self.inner).copied().collect()
    }
}
