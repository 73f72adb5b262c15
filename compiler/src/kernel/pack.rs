//! Packing of the operands of matrix products.
//!
//! A matrix of `m` rows becomes tiles of `T` rows: element `(r, k)` is at `(r / T) * K * T + k * T + r % T`.
//! Rows of the last tile that do not exist hold anything. A register tile reads, for one `k`, all of its
//! rows from one place. Left operands have tiles of [`TILE_ROWS`] rows; the panels of a right operand are
//! tiles of [`PANEL`](super::gemm::PANEL) rows of its transpose.
//!
//! Of `i8` rows an element is a unit of four neighbours, the last one filled up with zeros, so `K` is
//! `ceil(k / 4)`; and their sums, which weights with a zero point need, are written too.

use super::Extent;
use super::gemm::TILE_ROWS;
use tfc_ir::dim::Dim;

/// A packing kernel. A task is one row tile of one matrix; tiles of a matrix are neighbours.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pack {
    /// Batch loops, outermost first.
    pub batch: Vec<Extent>,
    /// Rows.
    pub m: Extent,
    /// Elements of a row.
    pub k: Extent,
    /// Rows of a tile.
    pub tile: usize,
    /// What is packed.
    pub from: Rows,
    /// Buffer parameter of the packed matrices, contiguous.
    pub to: u32,
    /// What an element is.
    pub form: Form,
}

/// What is packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// f32 elements.
    Floats,
    /// Units of four `i8`, in tiles of [`TILE_ROWS`] rows.
    Bytes {
        /// Buffer parameter of the sums, i32: tile after tile, group after group, one for every row of a tile.
        sums: u32,
        /// Values of k that are summed up: a multiple of 4, or all of k.
        group: i64,
        /// What sums are multiplied by.
        factor: i64,
    },
}

/// Rows in memory with any strides, in elements.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rows {
    /// Buffer parameter.
    pub buffer: u32,
    /// One per batch loop.
    pub batch: Vec<Extent>,
    /// From row to row.
    pub row: Extent,
    /// From one `k` to the next.
    pub k: Extent,
}

/// Bytes behind a packed operand that kernels may read: whole vectors at the end of a tile.
pub const SLACK: i64 = 64;

/// Elements of a packed left operand.
pub fn packed_len(m: &Dim, k: &Dim) -> Dim {
    m.ceil_div(TILE_ROWS as i64) * Dim::from(TILE_ROWS) * k.clone()
}

/// Packs the row-major `m` x `k` matrix that `at(m, k)` reads; the last row is repeated in place of those that do not exist.
pub fn pack<T: Copy>(m: usize, k: usize, tile: usize, at: impl Fn(usize, usize) -> T) -> Vec<T> {
    let mut out = Vec::with_capacity(m.div_ceil(tile) * tile * k);
    for first in (0..m).step_by(tile) {
        for x in 0..k {
            out.extend((first..first + tile).map(|r| at(r.min(m - 1), x)));
        }
    }
    out
}
