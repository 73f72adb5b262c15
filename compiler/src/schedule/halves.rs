//! Operands of f16 and bf16 of the kernels that multiply f32.

use super::Scheduler;
use super::view::View;
use crate::kernel::Buffer;
use tfc_ir::dim::Dim;
use tfc_ir::graph::Loc;
use tfc_ir::types::{Elem, Type};

/// Whether a type becomes f32 in kernels that multiply.
pub(super) fn is_half(elem: Elem) -> bool {
    matches!(elem, Elem::F16 | Elem::Bf16)
}

/// A view of halves and the same elements as f32.
pub(super) struct Widened {
    halves: View,
    floats: View,
}

impl Scheduler {
    /// The elements of a view as f32: halves are converted by a kernel, once as long as nobody writes to their memory.
    pub(super) fn widened(&mut self, v: &View, loc: &Loc) -> View {
        if !is_half(v.elem) {
            return v.clone();
        }
        let same = |w: &&Widened| w.halves.same_elements(v);
        if let Some(w) = self.widened.iter().find(same) {
            return w.floats.clone();
        }
        // Elements that repeat are converted once, and in the order of their memory if there are no gaps.
        let mut from = v.clone();
        let repeats: Vec<bool> = v.strides.iter().map(|s| s.is(0)).collect();
        (0..repeats.len()).filter(|&i| repeats[i]).for_each(|i| from.shape.0[i] = Dim::from(1));
        let order = memory_order(&from).unwrap_or_else(|| (0..from.shape.rank()).collect());
        let from = from.transpose(&order);
        let ty = Type::new(Elem::F32, from.shape.clone());
        let to = self.place_with_gaps(&ty).unwrap_or_else(|| self.temporary(&ty));
        self.convert(&from, &to, loc);
        let mut floats = View { shape: v.shape.clone(), strides: vec![Dim::from(0); order.len()], ..to.clone() };
        for (&axis, stride) in order.iter().zip(to.strides).filter(|(axis, _)| !repeats[**axis]) {
            floats.strides[axis] = stride;
        }
        self.widened.push(Widened { halves: v.clone(), floats: floats.clone() });
        floats
    }

    /// Forgets what was widened from a buffer that is written to.
    pub(super) fn forget_widened(&mut self, written: impl Fn(Buffer) -> bool) {
        self.widened.retain(|w| !written(w.halves.buffer));
    }
}

/// The axes of a view from the outermost in memory to the innermost, if they are dense there in some order.
fn memory_order(v: &View) -> Option<Vec<usize>> {
    let (mut left, single): (Vec<usize>, Vec<usize>) = (0..v.shape.rank()).partition(|&i| !v.shape[i].is(1));
    let (mut inwards, mut stride) = (vec![], Dim::from(1));
    while !left.is_empty() {
        let at = left.iter().position(|&i| v.strides[i] == stride)?;
        let axis = left.remove(at);
        stride = stride * v.shape[axis].clone();
        inwards.push(axis);
    }
    Some(single.into_iter().chain(inwards.into_iter().rev()).collect())
}
