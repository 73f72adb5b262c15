//! Fused attention, f32: `out[b, h, i, :] = Σ_j softmax_j(scale * q[b, h, i, :]·k[b, g, j, :] + bias[b, h, i, j]) v[b, g, j, :]`
//! for a tile of queries at a time, by blocks of keys with a running maximum and sum (Milakov and
//! Gimelshein 2018; Dao et al. 2022). Scores live in a block on the stack and never reach memory.
//!
//! Keys and values are packed in panels as the right operands of two matrix products
//! ([`gemm`](super::gemm)): keys as the `d` x `m` matrix `kᵀ`, values as the `m` x `e` matrix `v`.

use super::Extent;
use super::nest::Access;

/// Rows of a query tile. A task is one tile of one head of one batch.
pub const QUERY_TILE: usize = super::gemm::TILE_ROWS;

/// Keys that a block of scores holds, a multiple of the panel width.
pub const KEY_BLOCK: usize = 128;

/// A key whose bias is so much less than the greatest bias that a query sees is hidden from it: its weight
/// is 0, whatever its score, and emitters need not read it. No score of sensible operands makes up for it.
pub const HIDDEN: f32 = 1e8;

/// Attention. Batch loops are `[batch, head]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attention {
    /// Size of the batch.
    pub batch: Extent,
    /// Query heads.
    pub heads: Extent,
    /// How many query heads share a key head.
    pub heads_per_group: Extent,
    /// Queries.
    pub queries: Extent,
    /// Keys.
    pub keys: Extent,
    /// Length of queries and keys.
    pub depth: i64,
    /// Length of values.
    pub value_depth: i64,
    /// Factor of the scores, the bits of an f32.
    pub scale: u32,
    /// Whether query `i` sees only keys up to `i + keys - queries`.
    pub causal: bool,
    /// Queries; loops are batch, head, query, depth.
    pub q: Access,
    /// Buffer parameter of the packed keys: `[batch, group]` contiguous matrices.
    pub k: u32,
    /// Buffer parameter of the packed values: `[batch, group]` contiguous matrices.
    pub v: u32,
    /// Added to the scores; loops are batch, head, query, key.
    pub bias: Option<Access>,
    /// The result; loops are batch, head, query, value depth.
    pub out: Access,
}
