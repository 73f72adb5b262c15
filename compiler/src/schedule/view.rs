//! Views: where the elements of a value are. Reshaping, transposing, slicing, repeating and windowing
//! change a view and move nothing.

use crate::kernel::Buffer;
use tfc_ir::dim::Dim;
use tfc_ir::types::{Elem, Shape};

/// A strided view of a buffer. Offsets and strides count elements.
#[derive(Clone, Debug)]
pub struct View {
    /// The memory.
    pub buffer: Buffer,
    /// Element type.
    pub elem: Elem,
    /// The element at index 0.
    pub offset: Dim,
    /// Sizes.
    pub shape: Shape,
    /// One per axis; 0 where elements repeat.
    pub strides: Vec<Dim>,
}

impl View {
    /// The row-major view of a whole buffer.
    pub fn contiguous(buffer: Buffer, elem: Elem, shape: Shape) -> View {
        let strides = shape.strides();
        View { buffer, elem, offset: Dim::from(0), shape, strides }
    }

    /// Whether the elements lie in row-major order without gaps. Axes of size 1 do not matter.
    pub fn is_contiguous(&self) -> bool {
        let expected = self.shape.strides();
        (0..self.shape.rank()).all(|i| self.shape[i].is(1) || self.strides[i] == expected[i])
    }

    /// Whether another view has the same elements of the same memory.
    pub fn same_elements(&self, other: &View) -> bool {
        let place = |v: &View| (v.buffer, v.elem, v.offset.clone());
        place(self) == place(other) && self.shape == other.shape && self.strides == other.strides
    }

    /// Axis `i` of the result is axis `perm[i]`.
    pub fn transpose(&self, perm: &[usize]) -> View {
        View {
            shape: perm.iter().map(|&p| self.shape[p].clone()).collect(),
            strides: perm.iter().map(|&p| self.strides[p].clone()).collect(),
            ..self.clone()
        }
    }

    /// `lens` elements per axis, from `starts` in steps of `steps`.
    pub fn slice(&self, starts: &[Dim], steps: &[i64], lens: &Shape) -> View {
        let offset = self.strides.iter().zip(starts).map(|(s, at)| s.clone() * at.clone()).sum::<Dim>() + self.offset.clone();
        let strides = self.strides.iter().zip(steps).map(|(s, &step)| s.clone() * Dim::from(step)).collect();
        View { offset, shape: lens.clone(), strides, ..self.clone() }
    }

    /// Broadcast to `shape`.
    pub fn expand(&self, shape: &Shape) -> View {
        let strides = (0..shape.rank()).map(|i| self.stride_in(shape, i)).collect();
        View { shape: shape.clone(), strides, ..self.clone() }
    }

    /// The stride of this view along axis `axis` of a shape that it broadcasts to.
    pub fn stride_in(&self, shape: &Shape, axis: usize) -> Dim {
        match (axis + self.shape.rank()).checked_sub(shape.rank()) {
            Some(own) if !self.shape[own].is(1) => self.strides[own].clone(),
            _ => Dim::from(0),
        }
    }

    /// Window positions and taps of the last axes, as the operator `window` defines them.
    pub fn window(&self, kernel: &[i64], strides: &[i64], dilations: &[i64], shape: &Shape) -> View {
        let first = self.shape.rank() - kernel.len();
        let mut all = self.strides[..first].to_vec();
        let axes = &self.strides[first..];
        all.extend(axes.iter().zip(strides).map(|(s, &by)| s.clone() * Dim::from(by)));
        all.extend(axes.iter().zip(dilations).map(|(s, &by)| s.clone() * Dim::from(by)));
        View { shape: shape.clone(), strides: all, ..self.clone() }
    }

    /// The same elements in row-major order under another shape, if strides can say it. That both shapes
    /// have as many elements may be known only by a check at run time.
    pub fn reshape(&self, shape: &Shape) -> Option<View> {
        if self.is_contiguous() || self.shape.elements().is(0) {
            return Some(View { strides: shape.strides(), shape: shape.clone(), ..self.clone() });
        }
        // Runs of old axes that are one axis in memory: (size, stride of its last element).
        let mut runs: Vec<(Dim, Dim)> = vec![];
        for (d, s) in self.shape.0.iter().zip(&self.strides) {
            match runs.last_mut() {
                _ if d.is(1) => {}
                Some((size, stride)) if *stride == s.clone() * d.clone() => {
                    *size = size.clone() * d.clone();
                    *stride = s.clone();
                }
                _ => runs.push((d.clone(), s.clone())),
            }
        }
        // New axes are cut from the runs, innermost first.
        let mut strides = vec![Dim::from(0); shape.rank()];
        let mut current: Option<(Dim, Dim)> = None;
        for i in (0..shape.rank()).rev() {
            let d = &shape[i];
            if d.is(1) {
                continue;
            }
            let (left, stride) = match current.take() {
                Some(run) => run,
                None => runs.pop()?,
            };
            strides[i] = stride.clone();
            let rest = left.div_exact(d)?;
            if !rest.is(1) {
                current = Some((rest, stride * d.clone()));
            }
        }
        (current.is_none() && runs.is_empty()).then(|| View { shape: shape.clone(), strides, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cranelift_entity::EntityRef;

    fn view(shape: &[&str]) -> View {
        let dim = |s: &&str| s.parse::<i64>().map_or_else(|_| Dim::symbol(s), Dim::from);
        View::contiguous(Buffer::new(0), Elem::F32, shape.iter().map(dim).collect())
    }

    #[test]
    fn heads_are_split_and_merged_without_copies() {
        let x = view(&["b", "s", "64"]);
        let heads = Shape(vec![Dim::symbol("b"), Dim::symbol("s"), Dim::from(4), Dim::from(16)]);
        let split = x.reshape(&heads).unwrap().transpose(&[0, 2, 1, 3]);
        assert_eq!(split.strides.iter().map(ToString::to_string).collect::<Vec<_>>(), ["64*s", "16", "64", "1"]);
        let back = split.transpose(&[0, 2, 1, 3]).reshape(&x.shape).unwrap();
        assert_eq!(back.strides, x.strides);
        assert!(split.reshape(&x.shape).is_none());
    }

    #[test]
    fn sizes_that_only_a_check_makes_equal_do_not_hinder_dense_views() {
        let x = view(&["b", "s", "64"]);
        let fixed = Shape(vec![Dim::from(20), Dim::from(4), Dim::from(16)]);
        assert_eq!(x.reshape(&fixed).unwrap().strides, fixed.strides());
        assert!(x.transpose(&[1, 0, 2]).reshape(&fixed).is_none());
    }

    #[test]
    fn axes_of_size_one_do_not_hinder() {
        let x = view(&["1", "s", "1", "8"]).transpose(&[2, 1, 0, 3]);
        assert!(x.reshape(&Shape(vec![Dim::symbol("s") * Dim::from(8)])).is_some());
    }
}
