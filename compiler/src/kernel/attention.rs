//! Fused attention: `out[b, h, i, :] = Σ_j softmax_j(scale * q[b, h, i, :]·k[b, g, j, :] + bias[b, h, i, j]) v[b, g, j, :]`
//! for a tile of queries at a time, by blocks of keys with a running maximum and sum (Milakov and
//! Gimelshein 2018; Dao et al. 2022). Scores live in a block on the stack and never reach memory.
//!
//! Keys and values are packed in panels as the right operands of two matrix products
//! ([`gemm`](super::gemm)): keys as the `d` x `m` matrix `kᵀ`, values as the `m` x `e` matrix `v`.
//!
//! With operands of 8 bits ([`Format::Bytes`]) both products are sums of products of integers.

use super::Extent;
use super::nest::Access;

/// Rows of a query tile. A task is one tile of one head of one batch.
pub const QUERY_TILE: usize = super::gemm::TILE_ROWS;

/// Keys that a block of scores holds, a multiple of the panel width.
pub const KEY_BLOCK: usize = 128;

/// A key whose bias is so much less than the greatest bias that a query sees is hidden from it: its weight
/// is 0, whatever its score, and emitters need not read it. No score of sensible operands makes up for it.
pub const HIDDEN: f32 = 1e8;

/// How keys and values are stored.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// f32 panels.
    F32,
    /// Panels of units of four `i8`.
    Bytes(Bytes),
}

/// Operands of 8 bits, as the operator `quantized_attention` defines them. Keys and values are packed by
/// [`Form::Quantize`](super::pack::Form::Quantize) in tiles of [`PANEL`](super::gemm::PANEL) rows: a row is
/// a key of `depth` numbers, or a channel of the values of all keys. Queries are rounded by the kernel
/// itself; weights are rounded relative to the largest score of the blocks of keys so far.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Bytes {
    /// Buffer parameter of the scales of the keys, as the packing leaves them.
    pub key_scales: u32,
    /// Buffer parameter of the sums of the keys times -128: what is left when queries are stored with 128 added.
    pub key_sums: u32,
    /// Buffer parameter of the scales of the channels of the values.
    pub value_scales: u32,
}

/// Attention. Batch loops are `[batch, head]`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Attention {
    /// How keys and values are stored.
    pub format: Format,
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
    /// The greatest bias that hides a key, the bits of an f32: such a bias is the score, whatever the product is.
    pub mask_value: Option<u32>,
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

impl Attention {
    /// What [`Kernel::in_place`](super::Kernel::in_place) has of it: a task reads its queries before it writes results, which are at
    /// the same places as a rule.
    pub fn in_place(&self) -> Option<(u32, u32)> {
        let (q, out) = (&self.q, &self.out);
        let same_place = q.same_place(out) && self.depth == self.value_depth;
        // Keys and values are packed; a bias is read by all tasks of a head.
        (same_place && self.bias.as_ref().is_none_or(|b| b.buffer != q.buffer)).then_some((q.buffer, out.buffer))
    }
}
