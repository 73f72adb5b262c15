//! The arguments of a kernel launch under construction: symbolic sizes become integer parameters,
//! views become buffer parameters.

use super::view::View;
use crate::kernel::nest::Access;
use crate::kernel::{Buffer, BufferArg, BufferParam, Extent, Use};
use tfc_ir::dim::Dim;

/// Parameters of a kernel and the arguments of one launch.
#[derive(Default)]
pub struct Args {
    /// Buffer parameters.
    pub params: Vec<BufferParam>,
    /// Buffer arguments.
    pub buffers: Vec<BufferArg>,
    /// Integer arguments.
    pub ints: Vec<Dim>,
}

impl Args {
    /// The extent for a dimension: equal dimensions share a parameter.
    pub fn extent(&mut self, d: &Dim) -> Extent {
        if let Some(n) = d.as_const() {
            return Extent::Const(n);
        }
        let at = self.ints.iter().position(|i| i == d).unwrap_or_else(|| {
            self.ints.push(d.clone());
            self.ints.len() - 1
        });
        Extent::Param(at as u32)
    }

    /// Extents for several dimensions.
    pub fn extents<'a>(&mut self, dims: impl IntoIterator<Item = &'a Dim>) -> Vec<Extent> {
        dims.into_iter().map(|d| self.extent(d)).collect()
    }

    /// The parameter for a view's memory, which begins at the view's first element; that of nibbles,
    /// which have no addresses, at the first of the buffer.
    pub fn buffer(&mut self, view: &View, usage: Use) -> u32 {
        let param = BufferParam { elem: view.elem, usage };
        let offset = byte_offset(view);
        let same = |b: &BufferArg, buffer: Buffer| b.buffer == buffer && b.offset == offset;
        let at = self.params.iter().zip(&self.buffers).position(|(p, b)| *p == param && same(b, view.buffer));
        at.unwrap_or_else(|| {
            self.params.push(param);
            self.buffers.push(BufferArg { buffer: view.buffer, offset });
            self.params.len() - 1
        }) as u32
    }

    /// An access to one element of a view, the same in all of so many loops.
    pub fn element(&mut self, view: &View, at: i64, loops: usize) -> Access {
        Access { buffer: self.buffer(view, Use::Read), offset: Extent::Const(at), strides: vec![Extent::Const(0); loops], dynamic: vec![] }
    }

    /// An access to a view with the given strides per loop.
    pub fn access(&mut self, view: &View, usage: Use, strides: &[Dim]) -> Access {
        let buffer = self.buffer(view, usage);
        let offset = if view.elem.bits() < 8 { self.extent(&view.offset) } else { Extent::Const(0) };
        Access { buffer, offset, strides: self.extents(strides), dynamic: vec![] }
    }
}

fn byte_offset(view: &View) -> Dim {
    view.offset.clone() * Dim::from(i64::from(view.elem.bits() / 8))
}
