//! Packing of the operands of matrix products.
//!
//! A matrix of `m` rows becomes tiles of `T` rows: element `(r, k)` is at `(r / T) * K * T + k * T + r % T`.
//! Rows of the last tile that do not exist hold anything. A register tile reads, for one `k`, all of its
//! rows from one place. Left operands have tiles of [`TILE_ROWS`] rows; the panels of a right operand are
//! tiles of [`PANEL`](super::gemm::PANEL) rows of its transpose.
//!
//! Of `i8` rows an element is a unit of four neighbours, the last one filled up with zeros, so `K` is
//! `ceil(k / 4)`; and their sums, which weights with a zero point need, are written too. Rows of f32 may be
//! quantized to such rows while they are packed.
//!
//! # Made on the way
//!
//! What packs the rows of a single matrix may make them too, by a [`Nest`] with a task for each: the rows of a tile are
//! made, then packed while they are in the nearest cache.
//!
//! # Rows
//!
//! Products by matrix tiles read rows of bytes as they are. For them a matrix stays in rows, [`pitch`] bytes apart: its
//! bytes, zeros up to whole lines, and maybe a line of anything. Sums are row after row, group after group; scales are
//! row after row. The scheduler makes tiles only; which kernels have rows instead is decided for each CPU variant.
//!
//! # Tasks
//!
//! Threads begin with equal shares of the tasks of a kernel. What packs a single left operand has the groups of rows of the
//! products that read it, and as many tasks of each, so that a thread packs the rows that it multiplies, and those that
//! it got from the product before. Group `g` has tiles `g * P` to `(g + 1) * P` for `P = ceil(tiles / groups)`, which is
//! the number of its tasks. Matrix tiles are higher, and groups of whole ones have other rows: then the first tasks of a
//! group have a matrix tile each. Tasks behind the last tile have nothing to do.

use super::Extent;
use super::gemm::TILE_ROWS;
use super::nest::Nest;
use tfc_ir::dim::Dim;

/// A packing kernel. A [task](self#tasks) is one row tile of one matrix. Neighbours are the tiles of a matrix, or of
/// [heads](Pack::has_heads) those of the same rows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Pack {
    /// Batch loops, outermost first.
    pub batch: Vec<Extent>,
    /// Rows.
    pub m: Extent,
    /// Groups of rows that tasks are counted by; 1 with batch loops, and of panels.
    pub row_groups: Extent,
    /// Elements of a row.
    pub k: Extent,
    /// Rows of a tile.
    pub tile: usize,
    /// What is packed.
    pub from: Rows,
    /// What writes it, unless it is there before: task `r` all of row `r`.
    pub made_by: Option<Nest>,
    /// Buffer parameter of the packed matrices, contiguous.
    pub to: u32,
    /// What an element is.
    pub form: Form,
    /// From row to row in bytes, if bytes are packed as rows instead of tiles: see the module. Then there are no
    /// batch loops, k is known, and groups of sums are multiples of [`LINE`], or all of k.
    pub pitch: Option<i64>,
}

impl Pack {
    /// Whether the rows of the matrices of the innermost batch loop are known to be parts of longer rows, as heads of attention
    /// are. Whoever made some of the longer rows, or has read one part of them, has the others near.
    pub fn has_heads(&self) -> bool {
        let within = |row| matches!(self.from.batch.last(), Some(&Extent::Const(part)) if 0 < part && part < row);
        self.from.k == Extent::Const(1) && matches!(self.from.row, Extent::Const(row) if within(row))
    }
}

/// What is packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Form {
    /// f32 elements.
    Floats,
    /// Units of four `i8`, in tiles of [`TILE_ROWS`] rows.
    Bytes(Sums),
    /// f32 rows, quantized to units of four `i8`, bit for bit as an operator does it.
    Quantize {
        /// What the codes of a row are.
        range: Range,
        /// The sums that are wanted.
        sums: Option<Sums>,
    },
}

/// How rows are quantized.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Range {
    /// Every row by [`RowRange::symmetric`] of its largest magnitude, or [`RowRange::asymmetric`] of its ends if zero points are
    /// wanted, as the operator `quantize_rows` does it.
    ///
    /// [`RowRange::symmetric`]: tfc_ir::quant::RowRange::symmetric
    /// [`RowRange::asymmetric`]: tfc_ir::quant::RowRange::asymmetric
    OfRow {
        /// Buffer parameter of the scales, f32: tile after tile, one for every row of a tile, 0 for rows that
        /// do not exist.
        scales: u32,
        /// Buffer parameter of the zero points, i32, in the same order; anything for rows that do not exist.
        zeros: Option<u32>,
    },
    /// All rows alike, as the operator `quantize_static` does it.
    Fixed {
        /// Buffer parameter of the [site](super::site).
        site: u32,
    },
}

impl Form {
    /// The sums that are written.
    pub fn sums(&self) -> Option<Sums> {
        match *self {
            Form::Floats => None,
            Form::Bytes(sums) => Some(sums),
            Form::Quantize { sums, .. } => sums,
        }
    }
}

/// Sums of packed bytes along k.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Sums {
    /// Buffer parameter of the sums, i32: tile after tile, group after group, one for every row of a tile.
    pub buffer: u32,
    /// Values of k that are summed up: a multiple of 4, or at least k for a single sum.
    pub group: i64,
    /// What sums are multiplied by.
    pub factor: i64,
}

impl Sums {
    /// Whether a single sum of all k is known to be wanted.
    pub fn covers(&self, k: Extent) -> bool {
        matches!(k, Extent::Const(k) if k <= self.group) || self.group_units() == MOST_UNITS
    }

    /// The groups of rows of `k` values.
    pub fn groups(&self, k: i64) -> i64 {
        let group = 4 * self.group_units();
        (k + group - 1) / group
    }

    /// Units of a group.
    pub fn group_units(&self) -> i64 {
        (self.group / 4 + i64::from(self.group % 4 != 0)).clamp(1, MOST_UNITS)
    }
}

/// More units than a row has whose sum fits an i32.
const MOST_UNITS: i64 = 1 << 28;

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

/// Bytes of a line of the caches, and of a row of a matrix tile.
pub const LINE: i64 = 64;

/// Rows of a matrix tile.
pub const MATRIX_ROWS: i64 = 16;

/// From row to row of a matrix of bytes that stays in rows, in bytes: an odd number of lines, so that the rows of a
/// matrix tile are in different sets of a cache.
pub fn pitch(k: i64) -> i64 {
    (((k + LINE - 1) / LINE) | 1) * LINE
}

/// The tasks of a single left operand of `m` rows in groups.
pub fn group_tasks(m: &Dim, row_groups: &Dim) -> Dim {
    let groups = row_groups.maximum(&1.into());
    (m.ceil_div(TILE_ROWS as i64) + groups.clone() - Dim::from(1)).floor_div(&groups) * groups
}

/// Elements of a packed left operand of units, in tiles or in rows, those included that a last matrix tile reads.
pub fn packed_units_len(m: &Dim, k: i64) -> Dim {
    let rows = (m.clone() + Dim::from(MATRIX_ROWS - 1)) * Dim::from(pitch(k) / 4);
    debug_assert!(MATRIX_ROWS > TILE_ROWS as i64 && pitch(k) / 4 >= (k + 3) / 4, "rows are larger than tiles");
    rows
}

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

/// What [`Form::Quantize`] writes.
#[cfg(test)]
#[derive(Default)]
pub struct QuantizedRows {
    /// Units, byte by byte.
    pub codes: Vec<i8>,
    /// Scales.
    pub scales: Vec<f32>,
    /// Zero points.
    pub zeros: Vec<i32>,
    /// Sums.
    pub sums: Vec<i32>,
}

/// How [`quantize`] finds the range of a row.
#[cfg(test)]
#[derive(Clone, Debug)]
pub enum By {
    /// By its largest magnitude.
    Magnitude,
    /// By its ends, with a zero point.
    Ends,
    /// As a site says.
    Fixed(tfc_ir::ops::QuantizeStatic),
}

/// Quantizes and packs the row-major `m` x `k` matrix that `at(m, k)` reads; `sums` are group and factor. Codes, scales and sums of
/// rows that do not exist are 0.
#[cfg(test)]
pub fn quantize([m, k]: [usize; 2], tile: usize, by: By, sums: Option<(usize, i32)>, at: impl Fn(usize, usize) -> f32) -> QuantizedRows {
    use tfc_ir::quant::RowRange;
    let largest = |row: usize, of: fn(f32) -> f32| {
        let values = (0..k).map(|x| of(at(row, x)));
        values.fold(0.0, |a: f32, b| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) })
    };
    let range = |row: usize| match &by {
        By::Fixed(op) => op.range(),
        _ if row >= m => RowRange::symmetric(0.0),
        By::Magnitude => RowRange::symmetric(largest(row, f32::abs)),
        By::Ends => RowRange::asymmetric(-largest(row, |x| -x), largest(row, |x| x)),
    };
    let min = match &by {
        By::Fixed(op) => op.scheme().min.into(),
        By::Magnitude => -127,
        By::Ends => -128,
    };
    let mut out = QuantizedRows::default();
    for first in (0..m).step_by(tile) {
        let rows: Vec<(usize, RowRange)> = (first..first + tile).map(|row| (row, range(row))).collect();
        let code = |(row, range): &(usize, RowRange), x: usize| {
            if *row < m && x < k { range.quantize(at(*row, x), min, 127) as i8 } else { 0 }
        };
        out.scales.extend(rows.iter().map(|r| r.1.scale));
        out.zeros.extend(rows.iter().map(|r| r.1.zero_point));
        for unit in 0..k.div_ceil(4) {
            out.codes.extend(rows.iter().flat_map(|r| (4 * unit..4 * unit + 4).map(|x| code(r, x))));
        }
        if let Some((group, factor)) = sums {
            for begin in (0..k).step_by(group) {
                let sum = |r| (begin..k.min(begin.saturating_add(group))).map(|x| i32::from(code(r, x))).sum::<i32>() * factor;
                out.sums.extend(rows.iter().map(sum));
            }
        }
    }
    out
}
