//! Sequences and optionals: what is in them is known while importing, so that they leave no trace.

use super::call::resolve_axis;
use super::control::{graph, stack};
use super::{Call, Importer, Res, Val, demand, unsupported};
use crate::onnx::model::{elem_name, elem_of};
use tfc_ir::dim::Dim;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;

type One = Res<Vec<Val>>;

/// The largest number of parts that a tensor is split into.
const MAX_PARTS: i64 = 4096;

fn sequence(cx: &Importer, n: &Call, i: usize) -> Res<Vec<Val>> {
    let v = n.input(i)?;
    match cx.parts(v) {
        Some(parts) => Ok(parts.to_vec()),
        None if cx.is_empty(v) => Err(super::Fail::Invalid(format!("operand {i} must be a sequence, but it is an empty optional"))),
        None => Err(super::Fail::Invalid(format!("operand {i} must be a sequence, but it is a tensor {}", cx.ty(v)))),
    }
}

fn tensor(cx: &Importer, n: &Call, i: usize) -> Res<Val> {
    let v = n.input(i)?;
    demand!(cx.is_tensor(v), "operand {i} must be a tensor, but it is a sequence or an optional");
    Ok(v)
}

/// The place that operand `i` names in a sequence of `len` entries, of which `len + beyond` can be named.
fn position(cx: &Importer, n: &Call, i: usize, len: usize, beyond: usize) -> Res<Option<usize>> {
    let Some(v) = n.opt(i) else { return Ok(None) };
    demand!(cx.is_tensor(v), "operand {i} must be a position, but it is a sequence or an optional");
    let at = cx.int(v, "the position in the sequence")?;
    // Negative positions count from the end of what is there.
    let from_start = if at < 0 { at.saturating_add(len as i64) } else { at };
    match usize::try_from(from_start) {
        Ok(p) if p < len + beyond => Ok(Some(p)),
        _ => Err(super::Fail::Invalid(format!("the position {at} is out of range for a sequence of {len}"))),
    }
}

fn one_type(cx: &Importer, parts: &[Val]) -> Res<()> {
    for w in parts.windows(2) {
        let (a, b) = (cx.elem(w[0]), cx.elem(w[1]));
        demand!(a == b, "a sequence has one element type, but the tensors have {a} and {b}");
    }
    Ok(())
}

pub(super) fn construct(cx: &mut Importer, n: &Call) -> One {
    let parts = n.all()?;
    for i in 0..parts.len() {
        tensor(cx, n, i)?;
    }
    one_type(cx, &parts)?;
    Ok(vec![cx.sequence(cx.elem(parts[0]), parts)])
}

pub(super) fn empty(cx: &mut Importer, n: &Call) -> One {
    let code = n.int("dtype", 1)?;
    let code = i32::try_from(code).unwrap_or(0);
    match elem_of(code) {
        Some(elem) => Ok(vec![cx.sequence(elem, vec![])]),
        None => unsupported!("{} elements are not supported", elem_name(code)),
    }
}

pub(super) fn at(cx: &mut Importer, n: &Call) -> One {
    let parts = sequence(cx, n, 0)?;
    match position(cx, n, 1, parts.len(), 0)? {
        Some(p) => Ok(vec![parts[p]]),
        None => Err(super::Fail::Invalid("the position is missing".into())),
    }
}

pub(super) fn insert(cx: &mut Importer, n: &Call) -> One {
    let (mut parts, new) = (sequence(cx, n, 0)?, tensor(cx, n, 1)?);
    let p = position(cx, n, 2, parts.len(), 1)?.unwrap_or(parts.len());
    let elem = cx.elem(n.input(0)?);
    demand!(cx.elem(new) == elem, "the sequence has the element type {elem}, but the tensor is {}", cx.ty(new));
    parts.insert(p, new);
    Ok(vec![cx.sequence(elem, parts)])
}

pub(super) fn erase(cx: &mut Importer, n: &Call) -> One {
    let mut parts = sequence(cx, n, 0)?;
    let p = position(cx, n, 1, parts.len(), 0)?.or_else(|| parts.len().checked_sub(1));
    let Some(p) = p else { return Err(super::Fail::Invalid("nothing can be erased from an empty sequence".into())) };
    parts.remove(p);
    let elem = cx.elem(n.input(0)?);
    Ok(vec![cx.sequence(elem, parts)])
}

pub(super) fn length(cx: &mut Importer, n: &Call) -> One {
    let len = sequence(cx, n, 0)?.len();
    Ok(vec![cx.constant(Tensor::of(&[], vec![len as i64]))])
}

pub(super) fn concat(cx: &mut Importer, n: &Call) -> One {
    let parts = sequence(cx, n, 0)?;
    let Some(&first) = parts.first() else { unsupported!("an empty sequence cannot be joined: the result has no shape") };
    demand!(n.attributes.contains_key("axis"), "the attribute `axis` is missing");
    let rank = cx.rank(first);
    if n.flag("new_axis", false)? {
        let axis = n.axis("axis", 0, rank + 1)?;
        return Ok(vec![stack(cx, &parts, axis)?]);
    }
    let axis = n.axis("axis", 0, rank)?;
    Ok(vec![cx.concat(&parts, axis)?])
}

/// Parts of a length, the last one shorter, or of a list of lengths; without either, single entries, whose
/// axis may be dropped.
pub(super) fn split(cx: &mut Importer, n: &Call) -> One {
    let x = tensor(cx, n, 0)?;
    let axis = resolve_axis(n.int("axis", 0)?, cx.rank(x))?;
    let size = cx.shape(x)[axis].clone();
    let lens: Vec<Dim> = match n.opt(1).filter(|&v| cx.rank(v) > 0) {
        Some(list) => {
            demand!(cx.rank(list) == 1, "the lengths of the parts must be a number or a list, but they are {}", cx.ty(list));
            let lens = cx.dims(list, "the lengths of the parts")?;
            cx.require_equal(&size, &lens.iter().cloned().sum(), "the parts do not make up the axis")?;
            lens
        }
        None => {
            let len = n.opt(1).map_or(Ok(1), |v| cx.int(v, "the length of a part"))?;
            demand!(len > 0, "the length of a part is {len}");
            let Some(size) = size.as_const() else {
                unsupported!("the number of parts follows from the size {size} of the axis, which must be known; fix it with --dim")
            };
            let count = size / len + i64::from(size % len != 0);
            demand!(count <= MAX_PARTS, "a tensor cannot be split into {count} parts");
            (0..count).map(|i| Dim::from(len.min(size - i * len))).collect()
        }
    };
    let dropped = n.opt(1).is_none() && !n.flag("keepdims", true)?;
    let mut start = Dim::from(0);
    let mut parts = Vec::with_capacity(lens.len());
    for len in lens {
        let part = cx.narrow(x, axis, start.clone(), len.clone())?;
        parts.push(if dropped { cx.squeeze(part, &[axis])? } else { part });
        start = start + len;
    }
    Ok(vec![cx.sequence(cx.elem(x), parts)])
}

/// The body applied to the entries of sequences; what is no sequence goes to each of them.
pub(super) fn map(cx: &mut Importer, n: &Call) -> One {
    let body = graph(n, "body")?;
    let first = sequence(cx, n, 0)?;
    let operands = n.all()?;
    let mut results: Vec<Vec<Val>> = vec![vec![]; body.outputs.len()];
    for i in 0..first.len() {
        let mut entries = vec![];
        for &v in &operands {
            let Some(parts) = cx.parts(v) else {
                entries.push(v);
                continue;
            };
            demand!(parts.len() == first.len(), "the sequences have {} and {} entries", first.len(), parts.len());
            entries.push(parts[i]);
        }
        let found = cx.round(n, i as i64, |cx| cx.subgraph(body, &entries))?;
        results.iter_mut().zip(found).for_each(|(list, v)| list.push(v));
    }
    let mut out = vec![];
    for parts in results {
        let Some(&first) = parts.first() else { unsupported!("a map over an empty sequence has results of unknown type") };
        demand!(parts.iter().all(|&v| cx.is_tensor(v)), "the body gives a sequence, but entries of sequences are tensors");
        one_type(cx, &parts)?;
        out.push(cx.sequence(cx.elem(first), parts));
    }
    Ok(out)
}

/// An optional with a value is that value.
pub(super) fn optional(cx: &mut Importer, n: &Call) -> One {
    Ok(vec![n.opt(0).unwrap_or_else(|| cx.empty())])
}

pub(super) fn has_element(cx: &mut Importer, n: &Call) -> One {
    let has = n.opt(0).is_some_and(|v| !cx.is_empty(v));
    Ok(vec![cx.scalar(Elem::Bool, f64::from(u8::from(has)))])
}

pub(super) fn get_element(cx: &mut Importer, n: &Call) -> One {
    let v = n.input(0)?;
    demand!(!cx.is_empty(v), "the optional has no value");
    Ok(vec![v])
}
