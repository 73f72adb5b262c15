//! Sliding windows over the spatial axes of convolution and pooling: the axes behind batch and channels.

use super::pad::PadMode;
use super::support::at_most;
use super::{InferCx, InferError, Pad};
use crate::dim::Dim;
use crate::graph::{Graph, Loc, Value};
use crate::require;

/// Windows and the borders that are added to the operand. Every list has one entry per spatial axis.
#[derive(Clone, Copy)]
pub(super) struct Windows<'a> {
    /// Taps of a window.
    pub(super) kernel: &'a [i64],
    /// Distance of windows.
    pub(super) strides: &'a [i64],
    /// Distance of taps.
    pub(super) dilations: &'a [i64],
    /// Elements added before.
    pub(super) before: &'a [i64],
    /// Elements added behind.
    pub(super) after: &'a [i64],
}

impl Windows<'_> {
    /// Demands lists of `axes` entries, positive ones but for pads, which are not negative. `what`
    /// begins the message: operator and constraint.
    pub(super) fn check(&self, axes: usize, what: &str) -> Result<(), InferError> {
        let lists = [
            ("kernel", self.kernel, 1),
            ("strides", self.strides, 1),
            ("dilations", self.dilations, 1),
            ("pads_before", self.before, 0),
            ("pads_after", self.after, 0),
        ];
        for (name, list, least) in lists {
            require!(list.len() == axes, "{what}: {name} has one entry for each of {axes} spatial axes, not {}", list.len());
            if let Some(bad) = list.iter().find(|&&n| n < least || n > i64::from(i32::MAX)) {
                return Err(InferError::new(format!("{what}: entries of {name} are {least} to {}, not {bad}", i32::MAX)));
            }
        }
        Ok(())
    }

    /// How many elements a window spans along an axis.
    pub(super) fn extent(&self, axis: usize) -> i64 {
        (self.kernel[axis] - 1) * self.dilations[axis] + 1
    }

    /// The number of windows that fit along `axis` of an operand of size `size`; `what` begins the message.
    pub(super) fn positions(&self, cx: &mut InferCx, axis: usize, size: &Dim, what: &str) -> Result<Dim, InferError> {
        let padded = size.clone() + Dim::from(self.before[axis]) + Dim::from(self.after[axis]);
        if padded.is(0) {
            return Ok(padded);
        }
        let extent = self.extent(axis);
        at_most(cx, &Dim::from(extent), &padded, &format!("{what}: span of a window and size of spatial axis {axis} with its pads"))?;
        let positions = (padded - Dim::from(extent)).floor_div(&Dim::from(self.strides[axis])) + Dim::from(1);
        Ok(positions.simplify(cx.symbols()))
    }

    /// The taps of the window at `position` that meet elements of the operand and not its border:
    /// where the element is among the spatial ones, and which tap of the window meets it.
    pub(super) fn taps(&self, position: &[usize], sizes: &[usize]) -> Vec<(usize, usize)> {
        let mut taps = vec![(0, 0)];
        for (axis, &size) in sizes.iter().enumerate() {
            let kernel = self.kernel[axis] as usize;
            let met = self.met(axis, position[axis], size);
            taps = taps.iter().flat_map(|&(at, tap)| met.iter().map(move |&(x, k)| (at * size + x, tap * kernel + k))).collect();
        }
        taps
    }

    /// [`Windows::taps`] along one axis.
    fn met(&self, axis: usize, position: usize, size: usize) -> Vec<(usize, usize)> {
        let start = position as i64 * self.strides[axis] - self.before[axis];
        let first = ceil_div((-start).max(0), self.dilations[axis]);
        (first..self.kernel[axis])
            .map(|k| (start + k * self.dilations[axis], k))
            .take_while(|&(x, _)| x < size as i64)
            .map(|(x, k)| (x as usize, k as usize))
            .collect()
    }

    /// How many taps of the window at `position` are within the operand and its border.
    pub(super) fn within_border(&self, position: &[usize], sizes: &[usize]) -> usize {
        let along = |(axis, &size): (usize, &usize)| {
            let start = position[axis] as i64 * self.strides[axis] - self.before[axis];
            let room = (size as i64 + self.after[axis] - start).max(0);
            ceil_div(room, self.dilations[axis]).min(self.kernel[axis]) as usize
        };
        sizes.iter().enumerate().map(along).product()
    }
}

/// `ceil(a / b)` of a number that is not negative and a positive one.
fn ceil_div(a: i64, b: i64) -> i64 {
    (a + b - 1) / b
}

/// Appends a border of `value` around the last axes of `x`; nothing if there is none.
pub(super) fn pad(graph: &mut Graph, x: Value, before: &[Dim], after: &[Dim], value: Value, loc: &Loc) -> Result<Value, InferError> {
    if before.iter().chain(after).all(|d| d.is(0)) {
        return Ok(x);
    }
    let outer = graph.ty(x).rank() - before.len();
    let with_outer = |d: &[Dim]| [vec![Dim::from(0); outer], d.to_vec()].concat();
    graph.add(Pad { mode: PadMode::Constant, before: with_outer(before), after: with_outer(after) }, &[x, value], loc)
}
