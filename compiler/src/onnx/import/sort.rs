//! Order statistics by comparing every element with every other: the IR has no sort.

use super::{Call, Importer, Res, Val, demand};
use tfc_ir::dim::Dim;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::ops::{And, GatherElements, Or};
use tfc_ir::types::{Elem, Shape};

/// An element's rank is the number of elements that come before it: better ones, and equal ones with
/// a lower index. The element of rank `r` is the `r`-th result.
pub(super) fn top_k(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let rank = cx.rank(x);
    let axis = n.axis("axis", -1, rank)?;
    let k = match n.opt(1) {
        Some(k) => cx.dim(k, "the number of results")?,
        None => Dim::from(n.int("k", -1)?),
    };
    let size = cx.shape(x)[axis].clone();
    if let (Some(k), Some(size)) = (k.as_const(), size.as_const()) {
        demand!((0..=size).contains(&k), "{k} of {size} elements are asked for");
    }
    let largest = n.flag("largest", true)?;
    // The axis comes last.
    let mut perm: Vec<usize> = (0..rank).filter(|&a| a != axis).collect();
    perm.push(axis);
    let mut back: Vec<usize> = (0..rank - 1).collect();
    back.insert(axis, rank - 1);
    let y = cx.transpose(x, perm)?;
    let (mine, other) = (cx.unsqueeze(y, &[rank])?, cx.unsqueeze(y, &[rank - 1])?);
    let better = if largest { cx.lt(mine, other)? } else { cx.lt(other, mine)? };
    let equal = cx.eq(mine, other)?;
    let rows = cx.iota(Elem::I64, Shape(vec![size.clone(), Dim::from(1)]), 0)?;
    let columns = cx.iota(Elem::I64, Shape(vec![Dim::from(1), size]), 1)?;
    let earlier = cx.lt(columns, rows)?;
    let tie = cx.emit(And {}, &[equal, earlier])?;
    let before = cx.emit(Or {}, &[better, tie])?;
    let before = cx.cast(before, Elem::I64)?;
    let place = cx.reduce(before, ReduceKind::Sum, &[rank], false)?;
    let place = cx.unsqueeze(place, &[rank - 1])?;
    let slots = cx.iota(Elem::I64, Shape(vec![k, Dim::from(1)]), 0)?;
    let hit = cx.eq(place, slots)?;
    let zero = cx.scalar(Elem::I64, 0.0);
    let indices = cx.select(hit, columns, zero)?;
    let indices = cx.reduce(indices, ReduceKind::Sum, &[rank], false)?;
    let values = cx.emit(GatherElements { axis: rank - 1 }, &[y, indices])?;
    Ok(vec![cx.transpose(values, back.clone())?, cx.transpose(indices, back)?])
}
