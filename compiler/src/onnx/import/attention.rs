//! Attention and rotary embeddings as single ONNX operators, and activations of `com.microsoft`.

use super::{Call, Fail, Importer, Res, Val, demand, movement, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{And, Attention, Gather, GatherElements, Gelu, Pad, RemFloor, Rotary, Sigmoid, Softmax, Tanh, pad::PadMode};
use tfc_ir::types::{Elem, Shape};

type One = Res<Vec<Val>>;

/// `[b, s, h*d]` as `[b, h, s, d]`.
fn split_heads(cx: &mut Importer, v: Val, heads: i64, what: &str) -> Res<Val> {
    let [b, s, hidden] = cx.shape(v).0.as_slice() else {
        return Err(Fail::Invalid(format!("{what} must have 3 axes like the query, but is {}", cx.ty(v))));
    };
    demand!(heads >= 1, "the number of heads of {what} is {heads}");
    let split = Shape(vec![b.clone(), s.clone(), Dim::from(heads), hidden.floor_div(&Dim::from(heads))]);
    let v = cx.reshape(v, split)?;
    cx.transpose(v, vec![0, 2, 1, 3])
}

/// `[b, h, s, d]` as `[b, s, h*d]`.
fn join_heads(cx: &mut Importer, v: Val) -> Res<Val> {
    let v = cx.transpose(v, vec![0, 2, 1, 3])?;
    let s = cx.shape(v).clone();
    cx.reshape(v, Shape(vec![s[0].clone(), s[1].clone(), s[2].clone() * s[3].clone()]))
}

/// 0 where `allowed`, minus infinity elsewhere.
fn bias_of(cx: &mut Importer, allowed: Val, elem: Elem) -> Res<Val> {
    let (zero, never) = (cx.scalar(elem, 0.0), cx.scalar(elem, f64::NEG_INFINITY));
    cx.select(allowed, zero, never)
}

/// Which keys a query sees by its position: up to itself for causal attention, and within a window.
/// `offset` is the position of the first query, one number or `[batch, 1, 1, 1]`.
fn visible(cx: &mut Importer, n: &Call, q: Val, k: Val, offset: Val, causal: bool) -> Res<Option<Val>> {
    let (left, right) = (n.int("left_window_size", -1)?, n.int("right_window_size", -1)?);
    if !causal && left < 0 && right < 0 {
        return Ok(None);
    }
    let (rows, columns) = (cx.shape(q)[2].clone(), cx.shape(k)[2].clone());
    let rows = cx.iota(Elem::I64, Shape(vec![rows, Dim::from(1)]), 0)?;
    let columns = cx.iota(Elem::I64, Shape(vec![Dim::from(1), columns]), 1)?;
    let at = cx.add(rows, offset)?;
    let mut all: Option<Val> = None;
    let mut demand_also = |cx: &mut Importer, v: Val| -> Res<()> {
        all = Some(match all {
            Some(other) => cx.emit(And {}, &[other, v])?,
            None => v,
        });
        Ok(())
    };
    if causal {
        let seen = cx.le(columns, at)?;
        demand_also(cx, seen)?;
    }
    if left >= 0 {
        let first = cx.affine(at, 1.0, -(left as f64))?;
        let seen = cx.le(first, columns)?;
        demand_also(cx, seen)?;
    }
    if right >= 0 {
        let last = cx.affine(at, 1.0, right as f64)?;
        let seen = cx.le(columns, last)?;
        demand_also(cx, seen)?;
    }
    Ok(all)
}

pub(super) fn attention(cx: &mut Importer, n: &Call) -> One {
    let (mut q, mut k, mut v) = (n.input(0)?, n.input(1)?, n.input(2)?);
    let flat = cx.rank(q) == 3;
    if flat {
        q = split_heads(cx, q, n.int("q_num_heads", 0)?, "the query")?;
        let heads = n.int("kv_num_heads", 0)?;
        k = split_heads(cx, k, heads, "the key")?;
        v = split_heads(cx, v, heads, "the value")?;
    }
    for (x, what) in [(q, "query"), (k, "key"), (v, "value")] {
        demand!(cx.rank(x) == 4, "the {what} must have 3 or 4 axes, but it is {}", cx.ty(x));
    }
    let elem = cx.elem(q);
    let scale = match (n.opt_float("scale")?, cx.shape(q)[3].as_const()) {
        (Some(s), _) => s,
        (None, Some(d)) => 1.0 / (d as f64).sqrt(),
        (None, None) => unsupported!("the head size must be known, but the query is {}", cx.ty(q)),
    };
    let fresh = cx.shape(k)[2].clone();
    let mut offset = cx.dim_tensor(&[], vec![Dim::from(0)])?;
    if let (Some(past_k), Some(past_v)) = (n.opt(4), n.opt(5)) {
        demand!(cx.rank(past_k) == 4 && cx.rank(past_v) == 4, "past keys are {}, past values {}", cx.ty(past_k), cx.ty(past_v));
        let past = cx.shape(past_k)[2].clone();
        offset = cx.dim_tensor(&[], vec![past])?;
        k = cx.concat(&[past_k, k], 2)?;
        v = cx.concat(&[past_v, v], 2)?;
    }
    let (present_k, present_v) = (k, v);
    let mut causal = n.flag("is_causal", false)?;
    let softcap = n.float("softcap", 0.0)?;
    let mut bias = None;
    if let Some(mut mask) = n.opt(3) {
        if cx.elem(mask) == Elem::Bool {
            mask = bias_of(cx, mask, elem)?;
        }
        let mask = pad_mask(cx, mask, k)?;
        bias = Some(cx.cast(mask, elem)?);
    }
    // Keys in use per batch element; the queries are the last ones among them.
    let used = match n.opt(6) {
        Some(l) => {
            let l = cx.cast(l, Elem::I64)?;
            let batch = cx.shape(q)[0].clone();
            Some(cx.reshape(l, Shape(vec![batch, Dim::from(1), Dim::from(1), Dim::from(1)]))?)
        }
        None => None,
    };
    if let Some(used) = used {
        let queries = cx.shape(q)[2].clone();
        let queries = cx.dim_tensor(&[], vec![queries])?;
        offset = cx.sub(used, queries)?;
    }
    // The operator of the IR aligns the last query with the last key. That is what is meant when there
    // are as many queries as new keys.
    let whole = softcap == 0.0 && !n.wants(3);
    let aligned = cx.shape(q)[2] == fresh && whole && bias.is_none() && used.is_none();
    let mut seen = visible(cx, n, q, k, offset, causal && !aligned)?;
    if let Some(used) = used {
        let keys = cx.shape(k)[2].clone();
        let keys = cx.iota(Elem::I64, Shape(vec![keys]), 0)?;
        let there = cx.lt(keys, used)?;
        seen = Some(match seen {
            Some(s) => cx.emit(And {}, &[s, there])?,
            None => there,
        });
    }
    if let Some(seen) = seen {
        let other = bias_of(cx, seen, elem)?;
        bias = Some(match bias {
            Some(b) => cx.add(b, other)?,
            None => other,
        });
    }
    // A query that sees no key gets 0.
    let blind = match bias {
        Some(b) => {
            let axis = cx.rank(b) - 1;
            let top = cx.reduce(b, ReduceKind::Max, &[axis], true)?;
            let never = cx.like(b, f64::NEG_INFINITY);
            Some(cx.eq(top, never)?)
        }
        None => None,
    };
    let seen_only = |cx: &mut Importer, v: Val| match blind {
        Some(b) => {
            let zero = cx.like(v, 0.0);
            cx.select(b, zero, v)
        }
        None => Ok(v),
    };
    causal &= aligned;
    if whole {
        let mut operands = vec![q, k, v];
        operands.extend(bias);
        let y = cx.emit(Attention { scale: scale.into(), causal, mask_value: None }, &operands)?;
        let y = seen_only(cx, y)?;
        let y = if flat { join_heads(cx, y)? } else { y };
        return Ok(vec![y, present_k, present_v]);
    }
    let (queries, keys) = (cx.shape(q)[1].clone(), cx.shape(k)[1].clone());
    if queries != keys {
        let times = queries.div_exact(&keys);
        let Some(times) = times else { return Err(Fail::Invalid(format!("{keys} key heads do not divide {queries} query heads"))) };
        k = repeat_heads(cx, k, &times)?;
        v = repeat_heads(cx, v, &times)?;
    }
    let root = scale.sqrt();
    let (qs, ks) = (cx.affine(q, root, 0.0)?, cx.affine(k, root, 0.0)?);
    let kt = cx.swap_last(ks)?;
    let raw = cx.matmul(qs, kt)?;
    let mut capped = raw;
    if softcap != 0.0 {
        let y = cx.affine(raw, 1.0 / softcap, 0.0)?;
        let y = cx.emit(Tanh {}, &[y])?;
        capped = cx.affine(y, softcap, 0.0)?;
    }
    let scores = match bias {
        Some(b) => cx.add(capped, b)?,
        None => capped,
    };
    let weights = cx.emit(Softmax { axis: 3, log: false }, &[scores])?;
    let weights = seen_only(cx, weights)?;
    let y = cx.matmul(weights, v)?;
    let y = if flat { join_heads(cx, y)? } else { y };
    let shown = match n.int("qk_matmul_output_mode", 0)? {
        0 => raw,
        1 => capped,
        2 => scores,
        3 => weights,
        other => return Err(Fail::Invalid(format!("qk_matmul_output_mode is {other}"))),
    };
    Ok(vec![y, present_k, present_v, shown])
}

/// A mask for fewer keys than there are hides the others.
fn pad_mask(cx: &mut Importer, mask: Val, k: Val) -> Res<Val> {
    let rank = cx.rank(mask);
    demand!(rank >= 1, "the mask is {}", cx.ty(mask));
    let missing = cx.shape(k)[2].clone() - cx.shape(mask)[rank - 1].clone();
    match missing.as_const() {
        Some(n) if n > 0 && !cx.shape(mask)[rank - 1].is(1) => {
            let (before, mut after) = (vec![Dim::from(0); rank], vec![Dim::from(0); rank]);
            after[rank - 1] = Dim::from(n);
            let never = cx.like(mask, f64::NEG_INFINITY);
            cx.emit(Pad { mode: PadMode::Constant, before, after }, &[mask, never])
        }
        _ => Ok(mask),
    }
}

/// Every head `times` times, neighbours.
fn repeat_heads(cx: &mut Importer, v: Val, times: &Dim) -> Res<Val> {
    let s = cx.shape(v).clone();
    let v = cx.unsqueeze(v, &[2])?;
    let wide = [Dim::from(1), Dim::from(1), times.clone(), Dim::from(1), Dim::from(1)];
    let v = movement::repeat(cx, v, &wide)?;
    cx.reshape(v, Shape(vec![s[0].clone(), s[1].clone() * times.clone(), s[2].clone(), s[3].clone()]))
}

/// The operands are `x`, the cosines, the sines, and optionally positions that select rows of both.
pub(super) fn rotary_embedding(cx: &mut Importer, n: &Call) -> One {
    rotary(cx, n, n.input(0)?, [n.input(1)?, n.input(2)?], n.opt(3))
}

/// In `com.microsoft` the positions come before the caches; one number is the first position.
pub(super) fn rotary_embedding_microsoft(cx: &mut Importer, n: &Call) -> One {
    let (x, mut positions) = (n.input(0)?, n.input(1)?);
    if cx.rank(positions) < 2 {
        let axis = if cx.rank(x) == 4 { 2 } else { 1 };
        demand!(cx.rank(x) >= 3, "the operand must have 3 or 4 axes, but is {}", cx.ty(x));
        let (batch, len) = (cx.shape(x)[0].clone(), cx.shape(x)[axis].clone());
        let first = cx.reshape(positions, Shape::fixed(&[1, 1]))?;
        let elem = cx.elem(positions);
        let steps = cx.iota(elem, Shape(vec![Dim::from(1), len.clone()]), 1)?;
        let all = cx.add(steps, first)?;
        positions = cx.expand(all, Shape(vec![batch, len]))?;
    }
    rotary(cx, n, x, [n.input(2)?, n.input(3)?], Some(positions))
}

fn rotary(cx: &mut Importer, n: &Call, x: Val, caches: [Val; 2], positions: Option<Val>) -> One {
    let flat = cx.rank(x) == 3;
    let dim = n.int("rotary_embedding_dim", 0)?;
    let mut y = x;
    if flat {
        let mut heads = n.int("num_heads", 0)?;
        if heads == 0 {
            // The caches say how wide a head is.
            let half = cx.shape(caches[0]).0.last().and_then(Dim::as_const);
            let hidden = cx.shape(x)[2].as_const();
            heads = match (half, hidden, dim) {
                (Some(h), Some(hidden), 0) if h > 0 => hidden / (2 * h),
                _ => return Err(Fail::Invalid("num_heads is missing".into())),
            };
        }
        y = split_heads(cx, x, heads, "the operand")?;
    }
    demand!(cx.rank(y) == 4, "the operand must have 3 or 4 axes, but is {}", cx.ty(x));
    let width = cx.shape(y)[3].clone();
    let turned = if dim == 0 { width.clone() } else { Dim::from(dim) };
    let half = turned.floor_div(&Dim::from(2));
    let mut tables = vec![];
    for cache in caches {
        let t = match positions {
            Some(p) => cx.emit(Gather { axis: 0 }, &[cache, p])?,
            None => cache,
        };
        demand!(cx.rank(t) == 3, "sines and cosines must be given per batch and position, but they are {}", cx.ty(t));
        let t = cx.narrow(t, 2, Dim::from(0), half.clone())?;
        tables.push(cx.unsqueeze(t, &[1])?);
    }
    let part = cx.narrow(y, 3, Dim::from(0), turned.clone())?;
    let op = Rotary { interleaved: n.flag("interleaved", false)? };
    let mut out = cx.emit(op, &[part, tables[0], tables[1]])?;
    if turned != width {
        let rest = cx.narrow(y, 3, turned.clone(), width - turned)?;
        out = cx.concat(&[out, rest], 3)?;
    }
    Ok(vec![if flat { join_heads(cx, out)? } else { out }])
}

/// The approximation by tanh of `x + bias`.
pub(super) fn fast_gelu(cx: &mut Importer, n: &Call) -> One {
    let mut x = n.input(0)?;
    if let Some(bias) = n.opt(1) {
        x = cx.add(x, bias)?;
    }
    Ok(vec![cx.emit(Gelu { tanh: true }, &[x])?])
}

pub(super) fn bias_gelu(cx: &mut Importer, n: &Call) -> One {
    let x = cx.add(n.input(0)?, n.input(1)?)?;
    Ok(vec![cx.emit(Gelu { tanh: false }, &[x])?])
}

pub(super) fn quick_gelu(cx: &mut Importer, n: &Call) -> One {
    let x = n.input(0)?;
    let y = cx.affine(x, n.float("alpha", 1.702)?, 0.0)?;
    let y = cx.emit(Sigmoid {}, &[y])?;
    Ok(vec![cx.mul(x, y)?])
}

/// `alpha * op(a) * op(b)`.
pub(super) fn fused_matmul(cx: &mut Importer, n: &Call) -> One {
    let (mut a, mut b) = (n.input(0)?, n.input(1)?);
    if n.flag("transBatchA", false)? || n.flag("transBatchB", false)? {
        unsupported!("transBatchA and transBatchB are not supported");
    }
    if n.flag("transA", false)? && cx.rank(a) > 1 {
        a = cx.swap_last(a)?;
    }
    if n.flag("transB", false)? && cx.rank(b) > 1 {
        b = cx.swap_last(b)?;
    }
    let y = super::nn::product(cx, a, b)?;
    Ok(vec![cx.affine(y, n.float("alpha", 1.0)?, 0.0)?])
}

/// The second operand, gated: `swish(a) * b`.
pub(super) fn swiglu(cx: &mut Importer, n: &Call) -> One {
    let (a, b) = (n.input(0)?, n.input(1)?);
    let gate = super::arith::swish(cx, n)?[0];
    demand!(cx.rank(a) == cx.rank(b), "the operands have the types {} and {}", cx.ty(a), cx.ty(b));
    Ok(vec![cx.mul(gate, b)?])
}

/// A cache with an update written from a position on, one per batch element.
pub(super) fn tensor_scatter(cx: &mut Importer, n: &Call) -> One {
    let (past, update) = (n.input(0)?, n.input(1)?);
    let rank = cx.rank(past);
    demand!(rank >= 2 && cx.rank(update) == rank, "the cache is {}, the update {}", cx.ty(past), cx.ty(update));
    let axis = n.axis("axis", -2, rank)?;
    demand!(axis > 0, "the batch axis cannot be written to");
    let (size, len) = (cx.shape(past)[axis].clone(), cx.shape(update)[axis].clone());
    let mut counted = vec![Dim::from(1); rank];
    counted[axis] = size.clone();
    let mut source = cx.iota(Elem::I64, Shape(counted), axis)?;
    let circular = match n.text("mode", "linear")?.as_str() {
        "linear" => false,
        "circular" => true,
        other => return Err(Fail::Invalid(format!("the mode is `{other}`, but must be linear or circular"))),
    };
    let mut fits = None;
    if let Some(first) = n.opt(2) {
        let first = cx.cast(first, Elem::I64)?;
        let mut per_batch = vec![Dim::from(1); rank];
        per_batch[0] = cx.shape(past)[0].clone();
        let first = cx.reshape(first, Shape(per_batch))?;
        source = cx.sub(source, first)?;
        let none = cx.like(first, 0.0);
        let mut inside = cx.le(none, first)?;
        if !circular {
            let room = cx.dim_tensor(&[], vec![size.clone() - len.clone()])?;
            let below = cx.le(first, room)?;
            inside = cx.emit(And {}, &[inside, below])?;
        }
        fits = Some(inside);
    }
    if circular {
        let size = cx.dim_tensor(&[], vec![size])?;
        source = cx.emit(RemFloor {}, &[source, size])?;
    }
    let zero = cx.like(source, 0.0);
    let last = cx.dim_tensor(&[], vec![len.clone() - Dim::from(1)])?;
    let (a, b) = (cx.le(zero, source)?, cx.le(source, last)?);
    let written = cx.emit(And {}, &[a, b])?;
    let source = cx.max(source, zero)?;
    let mut source = cx.min(source, last)?;
    if let Some(fits) = fits {
        // An update that does not fit is read behind its end, which is a status at run time.
        let end = cx.dim_tensor(&[], vec![len])?;
        source = cx.select(fits, source, end)?;
    }
    let shape = cx.shape(past).clone();
    let source = cx.expand(source, shape)?;
    let fresh = cx.emit(GatherElements { axis }, &[update, source])?;
    Ok(vec![cx.select(written, fresh, past)?])
}
