//! Left operands of products, packed in row tiles. Products of the same rows share what is packed, and rows
//! that are quantized for products alone, dynamically or statically, are quantized while they are packed. Where it does no harm, rows of
//! f32 stay where they are.

use super::args::Args;
use super::contraction::{Packed, Product, QuantizedRight};
use super::view::View;
use super::{Scheduler, Source, sites};
use crate::kernel::gemm::{self, TILE_ROWS};
use crate::kernel::pack::{self, Form, Pack, Range, Rows, Sums};
use crate::kernel::{Body, Buffer, Use};
use tfc_ir::dim::Dim;
use tfc_ir::graph::Loc;
use tfc_ir::ops::Op;
use tfc_ir::types::{Elem, Shape, Type};

/// A packed left operand.
pub(super) struct PackedLeft {
    /// The row tiles.
    pub packed: Packed,
    /// Sums of the rows if they are quantized.
    pub sums: Option<View>,
    /// Scales of the rows if packing finds them, one row of a matrix after the other.
    pub scales: Option<Packed>,
    /// Zero points of the rows if they have any, i32, in the order of the packed rows.
    pub row_zeros: Option<View>,
}

/// How a left operand is packed.
#[derive(Clone, Copy, PartialEq)]
enum LeftForm {
    /// f32 as they are.
    Floats,
    /// `i8`, with sums.
    Bytes(Groups),
    /// f32 that are quantized, with sums.
    Quantize(By, Groups),
}

/// What f32 rows are quantized by.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// Every row by its own scale, and its own zero point if there are any.
    Row { zeros: bool },
    /// All by a [site](crate::kernel::site).
    Site(Buffer),
}

/// What the left operand of a product with quantized weights is before it is packed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum LeftRows {
    /// `i8`, with scales.
    Bytes,
    /// f32 that are quantized while they are packed, which finds a scale for every row, and a zero point if there are any.
    OfRow {
        /// Whether there are.
        zeros: bool,
    },
    /// f32 that are quantized while they are packed, all by a [site](crate::kernel::site).
    Fixed(Buffer),
}

/// Sums that are wanted: the length of a group, how many there are, and what they are multiplied by.
#[derive(Clone, Copy, PartialEq)]
struct Groups {
    group: i64,
    groups: i64,
    factor: i64,
}

impl LeftForm {
    fn of(quantized: Option<&QuantizedRight>) -> LeftForm {
        let Some(q) = quantized else { return LeftForm::Floats };
        let groups = Groups { group: q.format.group, groups: q.format.groups, factor: q.factor };
        match q.rows {
            LeftRows::Bytes => LeftForm::Bytes(groups),
            LeftRows::OfRow { zeros } => LeftForm::Quantize(By::Row { zeros }, groups),
            LeftRows::Fixed(site) => LeftForm::Quantize(By::Site(site), groups),
        }
    }

    /// The sums that are wanted.
    fn groups(self) -> Option<Groups> {
        match self {
            LeftForm::Floats => None,
            LeftForm::Bytes(groups) | LeftForm::Quantize(_, groups) => Some(groups),
        }
    }
}

/// Memory along loops: the first element, and a stride per loop.
#[derive(PartialEq)]
struct Along {
    buffer: Buffer,
    offset: Dim,
    strides: Vec<Dim>,
}

/// What makes packed operands equal.
#[derive(PartialEq)]
struct Key {
    /// Along the batch loops, rows and k.
    left: Along,
    /// Sizes of these loops.
    sizes: Vec<Dim>,
    /// Zero points along the batch loops and rows.
    zeros: Option<Along>,
    form: LeftForm,
}

/// Memory that was packed.
pub(super) struct Shared {
    key: Key,
    packed: View,
    sums: Option<View>,
    scales: Option<View>,
    row_zeros: Option<View>,
}

/// Results of quantization and what they were made from.
pub(super) struct QuantizedRows {
    rows: View,
    codes: View,
    by: QuantizedBy,
}

/// What rows were quantized by.
enum QuantizedBy {
    /// These scales, one for every row, and zero points if there are any.
    Scales(View, Option<View>),
    /// A site.
    Fixed(Buffer),
}

impl Scheduler {
    /// Remembers what the results of a quantization are made from, if packing can do the same.
    pub(super) fn note_quantized_rows(&mut self, op: &Op, rows: &Source, results: &[View]) {
        let Source::View(rows) = rows else { return };
        let (codes, by) = match (op, results) {
            (Op::QuantizeRows(_), [codes, scales, zeros @ ..]) => (codes, QuantizedBy::Scales(scales.clone(), zeros.first().cloned())),
            (Op::QuantizeStatic(op), [codes]) => (codes, QuantizedBy::Fixed(self.site(op).buffer)),
            _ => return,
        };
        if rows.elem == Elem::F32 {
            self.quantized_rows.push(QuantizedRows { rows: rows.clone(), codes: codes.clone(), by });
        }
    }

    /// The f32 rows that quantization made all of `codes` from, and all of `scales` and `zeros` if these are no constants; and how.
    pub(super) fn unquantized(&self, codes: &View, scales: &Source, zeros: Option<&View>) -> Option<(View, LeftRows)> {
        let same = |x: &View, y: &View| x.buffer == y.buffer && x.offset == y.offset && x.shape == y.shape && x.is_contiguous();
        let q = self.quantized_rows.iter().find(|q| same(codes, &q.codes))?;
        match (&q.by, scales) {
            (QuantizedBy::Scales(by, by_zeros), Source::View(scales)) if same(scales, by) => {
                let fit = match (by_zeros, zeros) {
                    (Some(by), Some(zeros)) => same(zeros, by),
                    (by, zeros) => by.is_none() && zeros.is_none(),
                };
                fit.then(|| (q.rows.clone(), LeftRows::OfRow { zeros: zeros.is_some() }))
            }
            (QuantizedBy::Fixed(site), _) => Some((q.rows.clone(), LeftRows::Fixed(*site))),
            _ => None,
        }
    }

    /// The left operand of a product in row tiles, by a kernel of its own unless it is there. Matrices that
    /// repeat along a batch axis are packed once. `strides` are those of the operand per axis of the domain.
    pub(super) fn packed_left(
        &mut self,
        p: &Product,
        strides: &[Dim],
        (axes, sizes): (&[usize], &[Dim]),
        (row_axis, m): (usize, &Dim),
        quantized: Option<&QuantizedRight>,
        loc: &Loc,
    ) -> PackedLeft {
        // Zero points that packing finds are not read.
        let zero = quantized.filter(|q| !matches!(q.rows, LeftRows::OfRow { .. })).and_then(|q| q.row_zero.as_ref());
        let zero_stride = |axis: usize| zero.map_or(Dim::from(0), |z| z.stride_in(&p.domain, axis));
        let repeats = |axis: usize| strides[axis].is(0) && zero_stride(axis).is(0);
        let own: Vec<Dim> = axes.iter().zip(sizes).map(|(&a, n)| if repeats(a) { Dim::from(1) } else { n.clone() }).collect();
        let kept = || (0..axes.len()).filter(|&i| !own[i].is(1)).map(|i| axes[i]).chain([row_axis]);
        let key = Key {
            left: Along {
                buffer: p.left.buffer,
                offset: p.left.offset.clone(),
                strides: kept().map(|a| strides[a].clone()).chain(p.left.strides.last().cloned()).collect(),
            },
            sizes: own.iter().filter(|n| !n.is(1)).chain([m, &p.k]).cloned().collect(),
            zeros: zero.map(|z| Along { buffer: z.buffer, offset: z.offset.clone(), strides: kept().map(zero_stride).collect() }),
            form: LeftForm::of(quantized),
        };
        let at = match self.packed_lefts.iter().position(|s| s.key == key) {
            Some(at) => at,
            None => {
                let shared = self.pack_left(&p.left, zero, key, p.label, loc);
                self.packed_lefts.push(shared);
                self.packed_lefts.len() - 1
            }
        };
        let Shared { key, packed, sums, scales, row_zeros } = &self.packed_lefts[at];
        let matrices = |view: &View, matrix: Dim| {
            let full = Shape(own.iter().cloned().chain([matrix]).collect()).strides();
            let strides = (0..own.len()).map(|i| if own[i].is(1) { Dim::from(0) } else { full[i].clone() });
            Packed { view: view.clone(), strides: strides.collect() }
        };
        PackedLeft {
            packed: matrices(packed, pack::packed_len(m, &elements(key.form, &p.k))),
            sums: sums.clone(),
            scales: scales.as_ref().map(|view| matrices(view, pack::packed_len(m, &Dim::from(1)))),
            row_zeros: row_zeros.clone(),
        }
    }

    /// The left operand of an f32 product where it is, and from row to row of it, if kernels may read it so. `strides` and
    /// `axes` are those of [`Self::packed_left`].
    pub(super) fn rows_in_place(
        &mut self,
        p: &Product,
        strides: &[Dim],
        axes: &[usize],
        (row_axis, m): (usize, &Dim),
    ) -> Option<(Packed, i64)> {
        let pitch = strides[row_axis].as_const().filter(|&n| i32::try_from(n.saturating_mul(4 * TILE_ROWS as i64)).is_ok())?;
        let rows = m.as_const().unwrap_or(i64::MAX);
        if !(p.left.strides.last()?.is(1) && pitch >= p.k.as_const()? && gemm::spread(4 * pitch, rows)) {
            return None;
        }
        if m.as_const().is_none() {
            // Register tiles may read rows that do not exist.
            if !self.temporaries[p.left.buffer] {
                return None;
            }
            self.provide_slack(p.left.buffer, (TILE_ROWS as i64 - 1) * pitch * 4);
        }
        Some((Packed { view: p.left.clone(), strides: axes.iter().map(|&a| strides[a].clone()).collect() }, pitch))
    }

    /// A place for f32 rows that only a product reads, with gaps between them, if it could not read them where they are
    /// otherwise.
    pub(super) fn place_with_gaps(&mut self, ty: &Type) -> Option<View> {
        const LINE: i64 = 16;
        let [.., m, k] = &ty.shape.0[..] else { return None };
        let k = k.as_const()?;
        let spread = |k: i64| gemm::spread(k.saturating_mul(4), m.as_const().unwrap_or(i64::MAX));
        let pitch = (k / LINE + 2) * LINE;
        if ty.elem != Elem::F32 || spread(k) || !spread(pitch) {
            return None;
        }
        let mut shape = ty.shape.clone();
        *shape.0.last_mut()? = Dim::from(pitch);
        let all = self.temporary(&Type::new(Elem::F32, shape));
        Some(View { shape: ty.shape.clone(), ..all })
    }

    /// Packs a left operand.
    fn pack_left(&mut self, left: &View, zero: Option<&View>, key: Key, label: &str, loc: &Loc) -> Shared {
        let [batch @ .., m, k] = &key.sizes[..] else { unreachable!("rows and k are loops") };
        let [batch_strides @ .., row, step] = &key.left.strides[..] else { unreachable!("rows and k are loops") };
        let matrices: Dim = batch.iter().cloned().product();
        let tiles = matrices.clone() * m.ceil_div(TILE_ROWS as i64);
        let (single, integers) = (batch.is_empty(), key.form != LeftForm::Floats);
        let row_groups = if single { gemm::row_groups(m, integers) } else { Dim::from(1) };
        let tasks = if single { pack::group_tasks(m, &row_groups) } else { tiles.clone() };
        let size = matrices * pack::packed_len(m, &elements(key.form, k));
        let elem = if integers { Elem::I32 } else { Elem::F32 };
        // A single matrix of bytes may stay in rows.
        let room = match k.as_const() {
            Some(k) if integers && single => pack::packed_units_len(m, k),
            _ => size.clone(),
        };
        let packed = self.temporary(&Type::new(elem, Shape(vec![room])));
        self.provide_slack(packed.buffer, pack::SLACK);
        let mut per_row = |elem, n: i64| self.temporary(&Type::new(elem, Shape(vec![tiles.clone() * Dim::from(n * TILE_ROWS as i64)])));
        let sums = key.form.groups().map(|g| per_row(Elem::I32, g.groups));
        let scales = matches!(key.form, LeftForm::Quantize(By::Row { .. }, _)).then(|| per_row(Elem::F32, 1));
        let found_zeros = matches!(key.form, LeftForm::Quantize(By::Row { zeros: true }, _)).then(|| per_row(Elem::I32, 1));
        let mut args = Args::default();
        let written = |args: &mut Args, view: &Option<View>| view.as_ref().map_or(0, |v| args.buffer(v, Use::Write));
        let body = Pack {
            batch: args.extents(batch),
            m: args.extent(m),
            row_groups: args.extent(&row_groups),
            k: args.extent(k),
            tile: TILE_ROWS,
            from: Rows {
                buffer: args.buffer(left, Use::Read),
                batch: args.extents(batch_strides),
                row: args.extent(row),
                k: args.extent(step),
            },
            made_by: None,
            to: args.buffer(&packed, Use::Write),
            form: {
                let buffer = written(&mut args, &sums);
                let sums = |g: Groups| Sums { buffer, group: g.group, factor: g.factor };
                match key.form {
                    LeftForm::Floats => Form::Floats,
                    LeftForm::Bytes(g) => Form::Bytes(sums(g)),
                    LeftForm::Quantize(by, g) => {
                        let range = match by {
                            By::Site(site) => Range::Fixed { site: args.buffer(&sites::view(site), Use::Read) },
                            By::Row { .. } => Range::OfRow {
                                scales: written(&mut args, &scales),
                                zeros: found_zeros.as_ref().map(|v| args.buffer(v, Use::Write)),
                            },
                        };
                        Form::Quantize { range, sums: Some(sums(g)) }
                    }
                }
            },
            pitch: None,
        };
        let (what, work) = match key.form {
            LeftForm::Quantize(By::Row { .. }, _) => ("quantize_rows+pack", size * Dim::from(8)),
            LeftForm::Quantize(By::Site(_), _) => ("quantize_static+pack", size * Dim::from(8)),
            _ => ("pack", size),
        };
        self.launch(Body::Pack(body), args, tasks, work, &format!("{what} for {label}"), loc);
        let given_zeros = zero.zip(key.zeros.as_ref()).map(|(zero, along)| {
            // In the order of the packed rows, those of a tile that do not exist included.
            let all = batch.iter().cloned().chain([pack::packed_len(m, &Dim::from(1))]).collect();
            let all = self.temporary(&Type::new(Elem::I32, Shape(all)));
            let shape = Shape(batch.iter().chain([m]).cloned().collect());
            let from = View { shape: shape.clone(), strides: along.strides.clone(), ..zero.clone() };
            self.convert(&from, &View { shape, ..all.clone() }, loc);
            all
        });
        Shared { key, packed, sums, scales, row_zeros: found_zeros.or(given_zeros) }
    }

    /// Forgets what was packed or widened from buffers that are written to.
    pub(super) fn forget_packed(&mut self, args: &Args) {
        let written = |buffer: Buffer| args.params.iter().zip(&args.buffers).any(|(p, b)| p.usage == Use::Write && b.buffer == buffer);
        self.packed_lefts.retain(|s| !written(s.key.left.buffer) && s.key.zeros.as_ref().is_none_or(|z| !written(z.buffer)));
        self.quantized_rows.retain(|q| !written(q.rows.buffer));
        self.forget_widened(written);
    }
}

/// Elements of 4 bytes of a row: floats, or units of four bytes.
fn elements(form: LeftForm, k: &Dim) -> Dim {
    if form == LeftForm::Floats { k.clone() } else { k.ceil_div(4) }
}
