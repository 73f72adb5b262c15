//! Matrix products by register tiles, f32: `dot[m, n] = Σ_k a[m, k] * b[k, n]` per batch, followed by an
//! epilogue on every element.
//!
//! The right operand is packed in panels of [`PANEL`] columns: element `(k, n)` of one matrix is at
//! `(n / PANEL) * K * PANEL + k * PANEL + n % PANEL`, the last panel filled up with zeros. Constants are
//! packed by [`pack`] at compile time, everything else by a nest before. The left operand is read in
//! place with any strides.

use super::Extent;
use super::nest::{Effect, Expr, ExprId};
use cranelift_entity::PrimaryMap;
use tfc_ir::types::Elem;

/// Columns of a packed panel.
pub const PANEL: usize = 8;

/// Rows of a register tile. A task is one tile of rows of one batch.
pub const TILE_ROWS: usize = 6;

/// The left operand: any strides, in elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Left {
    /// Buffer parameter.
    pub buffer: u32,
    /// First element.
    pub offset: Extent,
    /// One per batch loop.
    pub batch: Vec<Extent>,
    /// From row to row.
    pub row: Extent,
    /// From one `k` to the next.
    pub k: Extent,
}

/// The packed right operand.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Right {
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
    /// `a`.
    pub left: Left,
    /// `b`.
    pub right: Right,
    /// Expressions of the epilogue with their types. Loops (of accesses and `Index`) are the batch
    /// loops, then row, then column. The one `Reduced` expression is the dot product, an f32.
    pub exprs: PrimaryMap<ExprId, (Expr, Elem)>,
    /// What happens to every element.
    pub effects: Vec<Effect>,
}

impl Gemm {
    /// Tasks of a run: the row tiles of all batches.
    pub fn tasks(batch: tfc_ir::dim::Dim, m: &tfc_ir::dim::Dim, _n: &tfc_ir::dim::Dim) -> tfc_ir::dim::Dim {
        batch * m.ceil_div(TILE_ROWS as i64)
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
        assert_eq!(packed.iter().filter(|x| **x == 0.0).count(), 6 * k);
    }
}
