//! Order statistics.

use super::{Call, Importer, Res, Val, demand};
use tfc_ir::dim::Dim;
use tfc_ir::ops::TopK;

/// The results are in order, whether or not that is asked for.
pub(super) fn top_k(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    let x = n.input(0)?;
    let axis = n.axis("axis", -1, cx.rank(x))?;
    let k = match n.opt(1) {
        Some(k) => cx.dim(k, "the number of results")?,
        None => Dim::from(n.int("k", -1)?),
    };
    if let (Some(k), Some(size)) = (k.as_const(), cx.shape(x)[axis].as_const()) {
        demand!((0..=size).contains(&k), "{k} of {size} elements are asked for");
    }
    cx.emit_all(TopK { largest: n.flag("largest", true)?, axis, k }, &[x])
}
