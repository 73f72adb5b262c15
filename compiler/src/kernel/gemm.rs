//! Matrix products by register tiles: `dot[m, n] = Σ_k a[m, k] * b[k, n]` per batch, followed by an
//! epilogue on every element.
//!
//! The right operand is packed in panels of [`PANEL`] columns: element `(k, n)` of one matrix is at
//! `(n / PANEL) * K * PANEL + k * PANEL + n % PANEL`, the last panel filled up with zeros. Constants are
//! packed by [`pack`] at compile time, everything else by a nest before. The left operand is packed in
//! row tiles by a kernel before ([`super::pack`]).
//!
//! # Tasks
//!
//! A task is a group of [`GROUP_TILES`] row tiles by [`CHUNK`] columns of one matrix; at the ends, what is
//! left of them. Task `t` is group `t % R` of chunk `t / R % C` of matrix `t / (R * C)`, with `R` groups and
//! `C` chunks: neighbours use the same columns of the right operand, and a single row still splits by
//! columns. A task computes its elements in an order of its own, so results do not depend on how tasks
//! are distributed.

use super::Extent;
use super::nest::{Effect, Expr, ExprId};
use cranelift_entity::PrimaryMap;
use tfc_ir::types::Elem;

/// Columns of a packed panel.
pub const PANEL: usize = 32;

/// Rows of a tile of the packed left operand, and of the tallest register tile.
///
/// With vectors of four lanes and 16 registers, 12 rows by one vector keep 12 sums; with 16 lanes and 32
/// registers, 12 rows by two vectors keep 24; with 8 lanes and 16 registers, half of the rows by two
/// vectors keep 12.
pub const TILE_ROWS: usize = 12;

/// Row tiles of a task: they use a panel of the right operand while it is in the cache.
pub const GROUP_TILES: usize = 4;

/// Columns of a task, a multiple of the panel width.
pub const CHUNK: usize = 128;

/// A packed operand.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Operand {
    /// Buffer parameter.
    pub buffer: u32,
    /// One per batch loop, in elements; 0 where matrices are shared.
    pub batch: Vec<Extent>,
}

/// A matrix product with its epilogue.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Gemm {
    /// Batch loops, outermost first.
    pub batch: Vec<Extent>,
    /// Rows.
    pub m: Extent,
    /// Columns.
    pub n: Extent,
    /// Length of the dot products.
    pub k: Extent,
    /// `a`, in row tiles.
    pub left: Operand,
    /// `b`, in panels.
    pub right: Operand,
    /// Expressions of the epilogue with their types. Loops (of accesses and `Index`) are the batch
    /// loops, then row, then column. The one `Reduced` expression is the dot product, an f32.
    pub exprs: PrimaryMap<ExprId, (Expr, Elem)>,
    /// What happens to every element.
    pub effects: Vec<Effect>,
}

impl Gemm {
    /// Tasks of a run: groups of row tiles by column chunks of all batches.
    pub fn tasks(batch: tfc_ir::dim::Dim, m: &tfc_ir::dim::Dim, n: &tfc_ir::dim::Dim) -> tfc_ir::dim::Dim {
        batch * m.ceil_div((GROUP_TILES * TILE_ROWS) as i64) * n.ceil_div(CHUNK as i64)
    }
}

/// Elements of a packed `k` x `n` matrix.
pub fn packed_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// Packs the row-major `k` x `n` matrix that `at(k, n)` reads.
pub fn pack(k: usize, n: usize, at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut out = vec![0.0; packed_len(k, n)];
    for (p, panel) in out.chunks_exact_mut((PANEL * k).max(1)).enumerate() {
        let columns = PANEL.min(n - p * PANEL);
        for (row, to) in panel.chunks_exact_mut(PANEL).enumerate() {
            for (c, x) in to[..columns].iter_mut().enumerate() {
                *x = at(row, p * PANEL + c);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_where_the_module_says() {
        let (k, n) = (3, 10);
        let packed = pack(k, n, |i, j| (i * n + j) as f32 + 1.0);
        assert_eq!(packed.len(), packed_len(k, n));
        for i in 0..k {
            for j in 0..n {
                assert_eq!(packed[(j / PANEL) * k * PANEL + i * PANEL + j % PANEL], (i * n + j) as f32 + 1.0);
            }
        }
        assert_eq!(packed.iter().filter(|x| **x == 0.0).count(), (PANEL - n) * k);
    }
}
