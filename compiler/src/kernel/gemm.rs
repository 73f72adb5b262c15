//! Matrix products by register tiles: `dot[m, n] = Σ_k a[m, k] * b[k, n]` per batch, followed by an
//! epilogue on every element.
//!
//! The right operand is packed in panels of [`PANEL`] columns: element `(k, n)` of one matrix is at
//! `(n / PANEL) * K * PANEL + k * PANEL + n % PANEL`, the last panel filled up with anything. Constants are
//! packed by [`pack`] at compile time, everything else by a kernel before. The left operand is packed in
//! row tiles by a kernel before ([`super::pack`]), or f32 rows are read where they are if they [`spread`].
//!
//! # Tasks
//!
//! A task is a group of row tiles by [`CHUNK`] columns of one matrix; at the ends, what is left of them. The
//! [groups](row_groups) share the tiles evenly, see [`group_rows`]. Task `t` is chunk `t % C` of group
//! `t / C % R` of matrix `t / (C * R)`, with `C` chunks and `R` groups: neighbours use the same rows, which so stay in a
//! near cache, and with the thread that wrote them; a single row still splits by columns. A task computes its elements in
//! an order of its own, so results do not depend on how tasks are distributed.

use super::Extent;
use super::nest::{Effect, Expr, ExprId};
use cranelift_entity::PrimaryMap;
use tfc_ir::dim::Dim;
use tfc_ir::types::Elem;

/// Columns of a packed panel.
pub const PANEL: usize = 32;

/// Rows of a tile of the packed left operand, and of the tallest register tile.
///
/// With vectors of four lanes and 16 registers, 12 rows by one vector keep 12 sums; with 16 lanes and 32
/// registers, 12 rows by two vectors keep 24; with 8 lanes and 16 registers, half of the rows by two
/// vectors keep 12.
pub const TILE_ROWS: usize = 12;

/// The most row tiles of a task: they use a panel of the right operand while it is in the cache.
pub const GROUP_TILES: usize = 8;

/// The most rows of a group.
pub const GROUP_ROWS: usize = GROUP_TILES * TILE_ROWS;

/// Columns of a task, a multiple of the panel width.
pub const CHUNK: usize = 64;

/// The most rows that are in one group alone: of more, two threads have a group each, whose rows they keep from product to
/// product. Each of them then reads all of the right operand, which takes too long where it is f32.
pub fn alone_rows(integers: bool) -> usize {
    if integers { 5 * TILE_ROWS } else { GROUP_ROWS }
}

/// How many groups the `m` rows of a product of integers, or of another one, are in: as few as have at most [`GROUP_TILES`] tiles,
/// but two where there are more rows than one [should](alone_rows) have.
pub fn row_groups(m: &Dim, integers: bool) -> Dim {
    let of_few = m.ceil_div(alone_rows(integers) as i64).minimum(&2.into());
    m.ceil_div(GROUP_ROWS as i64).maximum(&of_few)
}

/// The rows of each of some groups of `m` rows but the last, which has what is left: whole tiles of `tile` rows. `None` where
/// rows or groups are not known.
pub fn group_rows(m: Extent, groups: Extent, tile: usize) -> Option<i64> {
    let tiles = (m.as_const()? as usize).div_ceil(tile).div_ceil(groups.as_const()?.max(1) as usize);
    Some((tiles * tile) as i64)
}

/// Whether the rows of a tile can be read where they are: what is read of `rows` rows at the same time, a line of each, stays
/// in a first-level cache of 64 sets of 8 lines, and leaves room for others in each.
pub fn spread(row_bytes: i64, rows: i64) -> bool {
    const LINE: i64 = 64;
    const SETS: i64 = 64;
    const MOST: i64 = 6;
    let set = |row: i64| row * row_bytes / LINE % SETS;
    let rows = rows.min(TILE_ROWS as i64);
    (0..rows).all(|row| (0..rows).filter(|&other| set(other) == set(row)).count() as i64 <= MOST)
}

/// An operand that is packed, or `a` in rows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Operand {
    /// Buffer parameter.
    pub buffer: u32,
    /// One per batch loop, in elements of 4 bytes, those of floats in elements of their type; 0 where matrices are shared.
    pub batch: Vec<Extent>,
}

/// How the operands are stored.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// Rows of f32 with panels of f32; or of f16 or bf16, whose k is known and not 0, and which are widened when they are read.
    Floats(Elem),
    /// f32 rows with quantized weights, see [`Dequantized`].
    Dequantized(Dequantized),
    /// `i8` rows with quantized weights, see [`Quantized`].
    Quantized(Quantized),
}

impl Format {
    /// Whether integers are multiplied.
    pub fn integers(&self) -> bool {
        matches!(self, Format::Quantized(_))
    }
}

/// Products of f32 rows with weights of 4 or 8 bits: `b[k, n] = scale[g, n] * f32(w[k, n] - zero[g, n])`, `g` the
/// group of `k`.
///
/// Weights and zero points are signed; those of types without a sign are less by half of their range. The
/// weights of one k of a panel are [`row_bytes`](Dequantized::row_bytes) neighbours. With 8 bits, byte c is
/// column c; with 4 bits, the low nibble of byte c, c below 16, is column c and the high nibble column c + 16.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Dequantized {
    /// Bits of a weight, 4 or 8.
    pub bits: u8,
    /// Values of k that share a scale, at least 1.
    pub group: i64,
    /// Number of groups; the last may be shorter.
    pub groups: i64,
    /// Buffer parameter of what columns have, see [`pack_columns`]: scales (f32), then, if there are any, zero
    /// points (i32).
    pub columns: u32,
    /// Whether there are zero points other than 0.
    pub zeros: bool,
}

impl Dequantized {
    /// Bytes of the weights of one k in a panel.
    pub fn row_bytes(&self) -> i64 {
        PANEL as i64 * i64::from(self.bits) / 8
    }

    /// Bytes of what the columns of a panel have for one group.
    pub fn column_bytes(&self) -> i64 {
        COLUMN_WORDS * (1 + i64::from(self.zeros))
    }
}

/// Products of `i8` rows with weights of 4 or 8 bits:
/// `dot[m, n] = Σ_g scale[g, n] * f32(Σ_{k in g} (a[m, k] - row_zero[m]) (w[k, n] - zero[g, n]))`, the groups in order,
/// the inner sum exact in i32, each step one fused multiply-add.
///
/// Four neighbours along k are a *unit* of 4 bytes, and k is filled up with zeros to whole units. The left
/// operand is packed in units ([`super::pack`]). Weights are stored as unsigned codes, and a zero point is the
/// code of 0. Unit `u` of a panel of 32 columns begins at `u * PANEL * bits / 2` bytes. With 8 bits, byte
/// `4 c + j` is column c, `k = 4 u + j`. With 4 bits, the low nibble of byte `4 c + j`, c below 16, is column
/// c and the high nibble column `c + 16`.
///
/// The products that are added up are those of stored values. What zero points change is what an i32
/// sum begins with, modulo 2³²:
///
/// ```text
/// - zero[g, n] * Σ_{k in g} a[m, k] - row_zero[m] * Σ_{k in g} (w[k, n] - zero[g, n])
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Quantized {
    /// Bits of a weight, 4 or 8.
    pub bits: u8,
    /// Values of k that share a scale: a multiple of 4, or all of k.
    pub group: i64,
    /// Number of groups; the last may be shorter.
    pub groups: i64,
    /// Buffer parameter of what columns have, see [`pack_columns`]: scales (f32); with `zeros`, zero points, negated
    /// (i32); unless rows have none, what their zero points are multiplied by, or what they change: see [`RowZeros`] (i32).
    pub columns: u32,
    /// Buffer parameter of the sums of the left operand that its packing leaves, times minus the zero point
    /// that all weights have; or, with `zeros`, as they are.
    pub sums: u32,
    /// Whether zero points of columns or groups differ.
    pub zeros: bool,
    /// The zero points of rows.
    pub row_zeros: RowZeros,
}

/// Zero points of rows of a left operand.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RowZeros {
    /// They are 0.
    None,
    /// One that the compiler knows; columns have `-row_zero * Σ (w - zero)`.
    Same,
    /// The i32 of a buffer parameter, tile after tile, one for every row of a tile; columns have `-Σ (w - zero)`.
    Each(u32),
}

impl Quantized {
    /// Bytes of the weights of a unit in a panel.
    pub fn unit_bytes(&self) -> i64 {
        PANEL as i64 * i64::from(self.bits) / 2
    }

    /// Whether what sums begin with differs from column to column.
    pub fn corrects_columns(&self) -> bool {
        self.zeros || self.row_zeros != RowZeros::None
    }

    /// Bytes of what the columns of a panel have for one group.
    pub fn column_bytes(&self) -> i64 {
        COLUMN_WORDS * (1 + i64::from(self.zeros) + i64::from(self.row_zeros != RowZeros::None))
    }
}

/// Bytes of one 32-bit word for every column of a panel.
const COLUMN_WORDS: i64 = PANEL as i64 * 4;

/// A matrix product with its epilogue.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Gemm {
    /// Batch loops, outermost first.
    pub batch: Vec<Extent>,
    /// Rows.
    pub m: Extent,
    /// The groups of rows that tasks have: [`row_groups`] of `m`.
    pub row_groups: Extent,
    /// Columns.
    pub n: Extent,
    /// Length of the dot products.
    pub k: Extent,
    /// How the operands are stored.
    pub format: Format,
    /// `a`, in row tiles or in rows.
    pub left: Operand,
    /// From row to row of `a` in elements of 4 bytes, if it is in rows. Rows of f32 are contiguous, and where the compiler
    /// does not know how many there are, `TILE_ROWS - 1` more can be read behind the last. Rows of bytes are
    /// [packed](super::pack) as such, with their sums, and there are no batch loops.
    pub left_pitch: Option<i64>,
    /// `b`, in panels.
    pub right: Operand,
    /// Expressions of the epilogue with their types. Loops (of accesses and `Index`) are the batch
    /// loops, then row, then column. The one `Reduced` expression is the dot product, an f32
    /// or of a type that is computed in f32.
    pub exprs: PrimaryMap<ExprId, (Expr, Elem)>,
    /// What happens to every element.
    pub effects: Vec<Effect>,
}

impl Gemm {
    /// What [`Kernel::in_place`](super::Kernel::in_place) has of a product: the epilogue reads an element, a residual as a rule,
    /// and last of all writes another buffer at the same place.
    pub fn in_place(&self) -> Vec<(u32, u32)> {
        let Some(Effect::Store(to, _)) = self.effects.last() else { return vec![] };
        let loads = || self.exprs.values().filter_map(|(e, _)| if let Expr::Load(from) = e { Some(from) } else { None });
        let only_there = |buffer: u32| loads().filter(|from| from.buffer == buffer).all(|from| from.same_place(to));
        // Rows of f32 may be read where they are, by many tasks.
        let operand = |buffer: u32| [self.left.buffer, self.right.buffer].contains(&buffer);
        let mut from: Vec<u32> = loads().map(|from| from.buffer).filter(|&b| only_there(b) && !operand(b)).collect();
        from.sort_unstable();
        from.dedup();
        from.into_iter().map(|from| (from, to.buffer)).collect()
    }
}

/// Elements of a packed `k` x `n` matrix.
pub fn packed_len(k: usize, n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL * k
}

/// Packs the row-major `k` x `n` matrix that `at(k, n)` reads.
pub fn pack<T: Copy + Default>(k: usize, n: usize, at: impl Fn(usize, usize) -> T) -> Vec<T> {
    let mut out = vec![T::default(); packed_len(k, n)];
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

/// Bytes of the packed weights of a `k` x `n` matrix of 4 or 8 bits.
pub fn packed_weights_len(bits: u8, k: usize, n: usize) -> usize {
    k.div_ceil(4) * n.div_ceil(PANEL) * PANEL * usize::from(bits) / 2
}

/// Packs the weights of 4 or 8 bits that `at(k, n)` reads, see [`Quantized`].
pub fn pack_weights(bits: u8, k: usize, n: usize, at: impl Fn(usize, usize) -> i32) -> Vec<u8> {
    let zero = 1 << (bits - 1);
    let units = k.div_ceil(4);
    let mut out = Vec::with_capacity(packed_weights_len(bits, k, n));
    for panel in 0..n.div_ceil(PANEL) {
        let code = |u: usize, c: usize, j: usize| {
            let (x, y) = (4 * u + j, panel * PANEL + c);
            let w = if x < k && y < n { at(x, y) } else { 0 };
            (w + zero) as u8
        };
        for u in 0..units {
            for c in 0..PANEL * usize::from(bits) / 8 {
                for j in 0..4 {
                    out.push(match bits {
                        4 => code(u, c, j) | code(u, c + PANEL / 2, j) << 4,
                        _ => code(u, c, j),
                    });
                }
            }
        }
    }
    out
}

/// Bytes of the weights of a `k` x `n` matrix of 4 or 8 bits that are packed for rows of f32.
pub fn packed_rows_len(bits: u8, k: usize, n: usize) -> usize {
    k * n.div_ceil(PANEL) * PANEL * usize::from(bits) / 8
}

/// Packs the signed weights of 4 or 8 bits that `at(k, n)` reads, see [`Dequantized`].
pub fn pack_weight_rows(bits: u8, k: usize, n: usize, at: impl Fn(usize, usize) -> i32) -> Vec<u8> {
    let mut out = Vec::with_capacity(packed_rows_len(bits, k, n));
    for panel in 0..n.div_ceil(PANEL) {
        let byte = |x: usize, c: usize| if panel * PANEL + c < n { at(x, panel * PANEL + c) as u8 } else { 0 };
        for x in 0..k {
            match bits {
                4 => out.extend((0..PANEL / 2).map(|c| byte(x, c) & 15 | byte(x, c + PANEL / 2) << 4)),
                _ => out.extend((0..PANEL).map(|c| byte(x, c))),
            }
        }
    }
    out
}

/// Packs what the columns of `groups` groups have, `words` words of 32 bits each: panel after panel, group after
/// group, word after word, [`PANEL`] columns. `at(g, n, word)` reads them.
pub fn pack_columns(groups: usize, n: usize, words: usize, at: impl Fn(usize, usize, usize) -> u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(n.div_ceil(PANEL) * PANEL * groups * words);
    for panel in 0..n.div_ceil(PANEL) {
        for (g, word) in (0..groups).flat_map(|g| (0..words).map(move |word| (g, word))) {
            let columns = panel * PANEL..(panel + 1) * PANEL;
            out.extend(columns.map(|c| if c < n { at(g, c, word) } else { 0 }));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_tiles_evenly() {
        for integers in [false, true] {
            for m in 0..2000 {
                let groups = row_groups(&m.into(), integers).as_const().unwrap();
                let rows = group_rows(Extent::Const(m), Extent::Const(groups), TILE_ROWS).unwrap();
                let tiles = rows / TILE_ROWS as i64;
                assert!(tiles <= GROUP_TILES as i64 && groups * rows >= m, "{m}");
                assert!(groups > 1 || m <= alone_rows(integers) as i64, "{m}");
                // None of them is empty.
                assert!(groups == 0 || (groups - 1) * rows < m, "{m}");
            }
        }
    }

    #[test]
    fn rows_spread_unless_they_are_pages_apart() {
        for (elements, rows, wanted) in [
            (384, 128, true),
            (768, 128, true),
            (1536, 128, true),
            (1024, 128, false),
            (1025, 128, false),
            (3072, 6, true),
            (3072, 7, false),
        ] {
            assert_eq!(spread(4 * elements, rows), wanted, "{elements}, {rows}");
        }
    }

    #[test]
    fn panels_are_where_the_module_says() {
        let (k, n) = (3, 10);
        let packed: Vec<f32> = pack(k, n, |i, j| (i * n + j) as f32 + 1.0);
        assert_eq!(packed.len(), packed_len(k, n));
        for i in 0..k {
            for j in 0..n {
                assert_eq!(packed[(j / PANEL) * k * PANEL + i * PANEL + j % PANEL], (i * n + j) as f32 + 1.0);
            }
        }
        assert_eq!(packed.iter().filter(|x| **x == 0.0).count(), (PANEL - n) * k);
    }
}
