//! Contributed operators with weights of few bits, in blocks that have scales of their own: the weights stay as they are stored.

use super::{Call, Fail, Importer, Res, Val, demand, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::pad::PadMode;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{Dequantize, Div, Gather, Pad, QuantizedMatmul};
use tfc_ir::quant::{Granularity, Scheme};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Shape};

type One = Res<Vec<Val>>;

/// An operand that the weights are made of.
fn known(cx: &Importer, v: Val, what: &str) -> Res<Tensor> {
    match cx.as_const(v) {
        Some(t) => Ok(t.clone()),
        None => unsupported!("{what} must be known at compile time, but the operand is {}, which the model computes or takes", cx.ty(v)),
    }
}

/// An attribute that must be given, and at least 1.
fn size(n: &Call, name: &str) -> Res<usize> {
    match n.opt_int(name)? {
        Some(i) if (1..=i64::from(i32::MAX)).contains(&i) => Ok(i as usize),
        Some(i) => Err(Fail::Invalid(format!("the attribute `{name}` is {i}, but must be between 1 and {}", i32::MAX))),
        None => Err(Fail::Invalid(format!("the attribute `{name}` is missing"))),
    }
}

/// How many neighbours share a scale.
fn block_size(n: &Call, default: Option<i64>) -> Res<usize> {
    let block = match (n.opt_int("block_size")?, default) {
        (None, Some(block)) => block as usize,
        _ => size(n, "block_size")?,
    };
    demand!(block >= 16 && block.is_power_of_two(), "block_size is {block}, but must be a power of 2 and at least 16");
    Ok(block)
}

/// Bits of a code.
fn bits(n: &Call) -> Res<usize> {
    match n.int("bits", 4)? {
        bits @ (2 | 4 | 8) => Ok(bits as usize),
        bits @ 3..8 => unsupported!("weights of {bits} bits are not supported; those of 2, 4 and 8 bits are"),
        bits => Err(Fail::Invalid(format!("bits is {bits}, but must be 2, 4 or 8"))),
    }
}

/// The first `count` codes of every row of bytes, which hold the low bits first.
fn unpacked(rows: &[u8], row: usize, bits: usize, count: usize) -> Vec<u8> {
    let (per_byte, mask) = (8 / bits, (u8::MAX) >> (8 - bits));
    let codes = |row: &[u8]| (0..count).map(|i| row[i / per_byte] >> (i % per_byte * bits) & mask).collect::<Vec<u8>>();
    rows.chunks_exact(row.max(1)).flat_map(codes).collect()
}

/// Codes as a tensor; of those of 4 bits the low halves count.
fn stored(elem: Elem, sizes: &[usize], codes: Vec<u8>) -> Tensor {
    let pair = |c: &[u8]| c[0] & 15 | c.get(1).map_or(0, |high| high << 4);
    let data: Vec<u8> = if elem.bits() == 4 { codes.chunks(2).map(pair).collect() } else { codes };
    Tensor::new(elem, sizes.to_vec(), data.into()).expect("as many codes as elements")
}

/// The type of codes with or without a sign; those of 2 bits are stored in 4.
fn storage(bits: usize, signed: bool) -> Elem {
    match (bits, signed) {
        (8, true) => Elem::I8,
        (8, false) => Elem::U8,
        (_, true) => Elem::I4,
        (_, false) => Elem::U4,
    }
}

fn scheme(storage: Elem, granularity: Granularity, symmetric: bool, scale: Elem) -> Scheme {
    let (min, max) = storage.int_range().expect("codes are integers");
    Scheme { storage, min: min as i16, max: max as i16, granularity, symmetric, scale }
}

/// `[rows, columns]` in row-major order as `[columns, rows]`.
fn turned<T: Copy + Default>(x: &[T], columns: usize) -> Vec<T> {
    let rows = x.len() / columns;
    let mut out = vec![T::default(); x.len()];
    for (j, row) in x.chunks_exact(columns).enumerate() {
        for (i, &x) in row.iter().enumerate() {
            out[i * rows + j] = x;
        }
    }
    out
}

/// Zero points of blocks: whole ones that codes can have, and what is missing to those that the model has.
struct Zeros {
    codes: Vec<u8>,
    missing: Option<Vec<f32>>,
}

/// What a `MatMulNBits` is made of.
struct Weights {
    bits: usize,
    block: usize,
    k: usize,
    n: usize,
    groups: usize,
}

impl Weights {
    fn of(n: &Call) -> Res<Weights> {
        let (k, columns, block) = (size(n, "K")?, size(n, "N")?, block_size(n, None)?);
        Ok(Weights { bits: bits(n)?, block, k, n: columns, groups: k.div_ceil(block) })
    }

    fn described(&self) -> String {
        format!("K = {}, N = {}, {} bits and blocks of {}", self.k, self.n, self.bits, self.block)
    }

    /// The codes of `B`, `[n, k]`; `None` where the model leaves the product out.
    fn codes(&self, cx: &Importer, v: Val) -> Res<Option<Vec<u8>>> {
        let t = known(cx, v, "the weights")?;
        let wanted = [self.n, self.groups, self.block * self.bits / 8];
        let empty = t.rank() == 3 && t.is_empty() && t.sizes().iter().zip(wanted).all(|(&a, b)| a == 0 || a == b);
        let fits = t.elem() == Elem::U8 && (empty || t.sizes() == wanted);
        demand!(fits, "the weights are {}, but {} make {}", t.ty(), self.described(), shaped(Elem::U8, &wanted));
        Ok((!empty).then(|| unpacked(t.bytes(), wanted[1] * wanted[2], self.bits, self.k)))
    }

    /// Numbers for every column and block, `[n, groups]`.
    fn numbers(&self, t: &Tensor, what: &str) -> Res<Vec<f32>> {
        let wanted = [self.n, self.groups];
        let fits = t.elem().is_float() && (t.sizes() == wanted || t.sizes() == [self.n * self.groups]);
        demand!(fits, "the {what} are {}, but {} make {}", t.ty(), self.described(), shaped(Elem::F32, &wanted));
        Ok(t.iter().map(|x| x.to_f64() as f32).collect())
    }

    /// The zero points of every column and block; `None` if they are the middle of the range of codes, as they are by default.
    fn zeros(&self, cx: &Importer, v: Option<Val>) -> Res<Option<Zeros>> {
        let Some(v) = v else { return Ok(None) };
        let t = known(cx, v, "the zero points")?;
        let middle = 1 << (self.bits - 1);
        let zeros = if t.elem() == Elem::U8 {
            let row = (self.groups * self.bits).div_ceil(8);
            let fits = t.sizes() == [self.n, row] || t.sizes() == [self.n * row];
            demand!(fits, "the zero points are {}, but {} make {}", t.ty(), self.described(), shaped(Elem::U8, &[self.n, row]));
            Zeros { codes: unpacked(t.bytes(), row, self.bits, self.groups), missing: None }
        } else {
            let exact = self.numbers(&t, "zero points")?;
            let largest = (1 << self.bits) - 1;
            let codes: Vec<u8> = exact.iter().map(|z| z.round().clamp(0.0, largest as f32) as u8).collect();
            let missing: Vec<f32> = codes.iter().zip(&exact).map(|(&code, z)| f32::from(code) - z).collect();
            Zeros { codes, missing: missing.iter().any(|&d| d != 0.0).then_some(missing) }
        };
        Ok((zeros.missing.is_some() || zeros.codes.iter().any(|&z| z != middle)).then_some(zeros))
    }
}

fn shaped(elem: Elem, sizes: &[usize]) -> String {
    format!("{elem}{sizes:?}")
}

/// `A · B + bias`, `B` stored as `[N, blocks, bytes]`. Activations are f32: that is within every accuracy level that a model may ask for.
pub(super) fn matmul_nbits(cx: &mut Importer, n: &Call) -> One {
    n.at_most(6)?;
    let (x, w) = (n.input(0)?, Weights::of(n)?);
    let (level, prepacked) = (n.int("accuracy_level", 0)?, n.int("weight_prepacked", 0)?);
    demand!((0..=4).contains(&level), "accuracy_level is {level}, but must be between 0 and 4");
    if prepacked != 0 {
        unsupported!("the weights are packed for one kind of GPU (weight_prepacked = {prepacked})");
    }
    let (elem, rank) = (cx.elem(x), cx.rank(x));
    demand!(elem.is_float() && rank >= 1, "the left operand must have floats and an axis at least, but is {}", cx.ty(x));
    let k = cx.shape(x)[rank - 1].clone();
    demand!(k.as_const().is_none_or(|k| k == w.k as i64), "the left operand is {}, but the weights have {}", cx.ty(x), w.described());
    if let Some(order) = n.opt(4) {
        let order = known(cx, order, "g_idx")?;
        let in_order = order.len() >= w.k && (0..w.k).all(|i| order.get(i).to_f64() == (i / w.block) as f64);
        if !in_order {
            unsupported!("g_idx, which is deprecated, must say that blocks are in the order of k, which is what leaving it out says");
        }
    }
    let x = if rank == 1 { cx.unsqueeze(x, &[0])? } else { x };
    let x = cx.cast(x, Elem::F32)?;
    let mut y = match w.codes(cx, n.input(1)?)? {
        Some(codes) => product(cx, n, &w, x, codes)?,
        None => {
            let mut shape = cx.shape(x).clone();
            *shape.0.last_mut().expect("a matrix") = Dim::from(w.n);
            let zero = cx.scalar(Elem::F32, 0.0);
            cx.expand(zero, shape)?
        }
    };
    if let Some(bias) = n.opt(5) {
        demand!(cx.shape(bias).as_fixed().is_some_and(|s| s == [w.n]), "the bias is {}, but N is {}", cx.ty(bias), w.n);
        let bias = cx.cast(bias, Elem::F32)?;
        y = cx.add(y, bias)?;
    }
    let y = if rank == 1 { cx.squeeze(y, &[0])? } else { y };
    Ok(vec![cx.cast(y, elem)?])
}

/// The product of rows of f32 with codes `[n, k]`.
fn product(cx: &mut Importer, n: &Call, w: &Weights, x: Val, mut codes: Vec<u8>) -> Res<Val> {
    let scales = w.numbers(&known(cx, n.input(2)?, "the scales")?, "scales")?;
    let zeros = w.zeros(cx, n.opt(3))?;
    let (granularity, columns) = match w.groups {
        1 => (Granularity::Axis { axis: 1 }, vec![w.n]),
        groups => (Granularity::Blocks { axis: 0, size: w.block as u32 }, vec![groups, w.n]),
    };
    let storage = storage(w.bits, zeros.is_none());
    if zeros.is_none() {
        let middle = 1 << (w.bits - 1);
        codes.iter_mut().for_each(|c| *c = c.wrapping_sub(middle));
    }
    let op = QuantizedMatmul { activations: None, weights: scheme(storage, granularity, zeros.is_none(), Elem::F32) };
    let codes = cx.constant(stored(storage, &[w.k, w.n], turned(&codes, w.k)));
    let mut operands = vec![x, codes, cx.constant(Tensor::of(&columns, turned(&scales, w.groups)))];
    let Some(zeros) = zeros else { return cx.emit(op, &operands) };
    operands.push(cx.constant(stored(storage, &columns, turned(&zeros.codes, w.groups))));
    let y = cx.emit(op, &operands)?;
    let Some(missing) = zeros.missing else { return Ok(y) };
    // What rounding the zero points left out is the same for all of a block: the sum of its activations times it.
    let rest: Vec<f32> = missing.iter().zip(&scales).map(|(d, s)| d * s).collect();
    let rest = cx.constant(Tensor::of(&[w.groups, w.n], turned(&rest, w.groups)));
    let sums = block_sums(cx, w, x)?;
    let rest = cx.matmul(sums, rest)?;
    cx.add(y, rest)
}

/// The sums of every block of the last axis.
fn block_sums(cx: &mut Importer, w: &Weights, mut x: Val) -> Res<Val> {
    let rank = cx.rank(x);
    let missing = w.groups * w.block - w.k;
    if missing > 0 {
        let before = vec![Dim::from(0); rank];
        let mut after = before.clone();
        after[rank - 1] = Dim::from(missing);
        let zero = cx.scalar(Elem::F32, 0.0);
        x = cx.emit(Pad { mode: PadMode::Constant, before, after }, &[x, zero])?;
    }
    let mut shape = cx.shape(x).clone();
    shape.0.splice(rank - 1.., [w.groups, w.block].map(Dim::from));
    let x = cx.reshape(x, shape)?;
    cx.reduce(x, ReduceKind::Sum, &[rank], false)
}

/// Rows of a table that is stored in blocks; only those that are picked are made numbers. An index outside of the table picks zeros.
pub(super) fn gather_block_quantized(cx: &mut Importer, n: &Call) -> One {
    n.at_most(4)?;
    let block = block_size(n, Some(128))?;
    let (data, scales) = (known(cx, n.input(0)?, "the table")?, n.input(2)?);
    let (codes, zeros) = table(cx, n, &data)?;
    let (gather, quantized) = (n.axis("gather_axis", 0, codes.rank())?, n.axis("quantize_axis", 1, codes.rank())?);
    demand!(data.elem() != Elem::U8 || gather == 0, "gather_axis is {gather}, but must be 0 for a table of u8");
    let mut per_block = codes.sizes().to_vec();
    per_block[quantized] = per_block[quantized].div_ceil(block);
    let elem = cx.elem(scales);
    let fits = matches!(elem, Elem::F32 | Elem::F16 | Elem::Bf16) && cx.shape(scales).as_fixed().as_ref() == Some(&per_block);
    let (table, wanted) = (codes.ty(), shaped(Elem::F32, &per_block));
    demand!(fits, "the scales are {}, but blocks of {block} along axis {quantized} of {table} make {wanted}", cx.ty(scales));
    if let Some(z) = &zeros {
        let fits = z.elem() == codes.elem() && z.sizes() == per_block;
        demand!(
            fits,
            "the zero points are {}, but blocks of {block} along axis {quantized} of {table} make {}{per_block:?}",
            z.ty(),
            codes.elem()
        );
    }

    let one = cx.rank(n.input(1)?) == 0;
    let given = n.input(1)?;
    demand!(matches!(cx.elem(given), Elem::I32 | Elem::I64), "the indices must be i32 or i64, but are {}", cx.ty(given));
    let given = if one { cx.unsqueeze(given, &[0])? } else { given };
    let rows = codes.sizes()[gather];
    let (low, high) = (cx.like(given, -(rows as f64)), cx.like(given, rows as f64 - 1.0));
    let indices = cx.max(given, low)?;
    let indices = cx.min(indices, high)?;
    let inside = cx.eq(indices, given)?;
    let axes = cx.rank(indices);
    // Where picking and blocks are along the same axis, every element has the scale that its own block has.
    let (axis, size, of_blocks) = match quantized {
        q if q == gather => (gather, 1, block_of(cx, indices, rows, block)?),
        q => (if q > gather { q + axes - 1 } else { q }, block as u32, indices),
    };
    let storage = codes.elem();
    let codes = cx.constant(codes);
    let mut operands = vec![cx.emit(Gather { axis: gather }, &[codes, indices])?];
    let zeros = zeros.map(|z| cx.constant(z));
    for parameter in [scales].into_iter().chain(zeros) {
        operands.push(cx.emit(Gather { axis: gather }, &[parameter, of_blocks])?);
    }
    let granularity = Granularity::Blocks { axis: axis as u32, size };
    let y = cx.emit(Dequantize { scheme: scheme(storage, granularity, zeros.is_none(), elem), elem }, &operands)?;
    let mut shape = vec![Dim::from(1); cx.rank(y)];
    shape[gather..gather + axes].clone_from_slice(&cx.shape(inside).0);
    let inside = cx.reshape(inside, Shape(shape))?;
    let zero = cx.scalar(elem, 0.0);
    let y = cx.select(inside, y, zero)?;
    Ok(vec![if one { cx.squeeze(y, &[gather])? } else { y }])
}

/// The codes of a table, and its zero points unless they are 0. Those of `u8` have none in the file if they are the middle of the
/// range; then the codes get a sign.
fn table(cx: &Importer, n: &Call, data: &Tensor) -> Res<(Tensor, Option<Tensor>)> {
    let zeros = n.opt(3).map(|z| known(cx, z, "the zero points")).transpose()?;
    if matches!(data.elem(), Elem::I4 | Elem::U4) {
        return Ok((data.clone(), zeros));
    }
    demand!(data.elem() == Elem::U8 && data.rank() >= 1, "the table must be of u8, i4 or u4, but is {}", data.ty());
    let bits = bits(n)?;
    let elem = storage(bits, zeros.is_none());
    let codes = |t: &Tensor, count: usize, shift: u8| {
        let mut sizes = t.sizes().to_vec();
        let row = sizes.pop().expect("an axis");
        sizes.push(count);
        let codes = unpacked(t.bytes(), row, bits, count);
        stored(elem, &sizes, codes.into_iter().map(|c| c.wrapping_sub(shift)).collect())
    };
    let count = data.sizes()[data.rank() - 1] * 8 / bits;
    let Some(zeros) = zeros else { return Ok((codes(data, count, 1 << (bits - 1)), None)) };
    let scales = cx.shape(n.input(2)?).as_fixed().unwrap_or_default();
    let blocks = scales.last().copied().unwrap_or(0);
    let row = (blocks * bits).div_ceil(8);
    let fits = zeros.elem() == Elem::U8 && zeros.sizes().last() == Some(&row);
    demand!(fits, "the zero points are {}, but {blocks} blocks in a row make {row} bytes in a row", zeros.ty());
    let zeros = codes(&zeros, blocks, 0);
    Ok((codes(data, count, 0), Some(zeros)))
}

/// The blocks of an axis of `rows` that indices, which may be negative, are in.
fn block_of(cx: &mut Importer, indices: Val, rows: usize, block: usize) -> Res<Val> {
    let (zero, rows, block) = (cx.like(indices, 0.0), cx.like(indices, rows as f64), cx.like(indices, block as f64));
    let negative = cx.lt(indices, zero)?;
    let from_end = cx.add(indices, rows)?;
    let at = cx.select(negative, from_end, indices)?;
    cx.emit(Div {}, &[at, block])
}
