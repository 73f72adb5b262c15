//! How the left operands of products of bytes are laid out for a CPU variant.
//!
//! The scheduler packs them in tiles, which every emitter takes. Products by matrix tiles want them in rows
//! ([`kernel::pack`](crate::kernel::pack)). Rows are for variants that have such products, and for operands all of
//! whose kernels, the one that packs and those that multiply, can have them so.

use super::clif::target::Cpu;
use super::x86;
use crate::kernel::gemm::{Format, Gemm};
use crate::kernel::pack::{self, Pack};
use crate::kernel::{Body, Buffer, Kernel, KernelId, Program};
use cranelift_entity::PrimaryMap;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The kernels of a program as a CPU variant has them.
pub fn kernels<'a>(program: &'a Program, cpu: &Cpu) -> Cow<'a, PrimaryMap<KernelId, Kernel>> {
    let rows = if cpu.matrix_tiles() { kernels_with_rows(program) } else { BTreeMap::new() };
    if rows.is_empty() {
        return Cow::Borrowed(&program.kernels);
    }
    let mut kernels = program.kernels.clone();
    for (id, kernel) in rows {
        kernels[id] = kernel;
    }
    Cow::Owned(kernels)
}

/// The kernel that packs or multiplies rows instead of tiles, for a CPU variant with matrix tiles, if there is one.
pub fn in_rows(kernel: &Kernel) -> Option<Kernel> {
    if !x86::takes_rows(kernel) {
        return None;
    }
    let mut kernel = kernel.clone();
    match &mut kernel.body {
        Body::Pack(p) => p.pitch = p.k.as_const().map(pack::pitch),
        Body::Gemm(g) => g.left_pitch = g.k.as_const().map(|k| pack::pitch(k) / 4),
        Body::Nest(_) | Body::Attention(_) | Body::TopK(_) => return None,
    }
    Some(kernel)
}

/// The packed operand that a kernel writes or reads, by the buffer parameters of the rows and their sums.
fn operand(kernel: &Kernel) -> Option<[u32; 2]> {
    match &kernel.body {
        Body::Pack(Pack { to, form, .. }) => Some([*to, form.sums()?.buffer]),
        Body::Gemm(Gemm { left, format: Format::Quantized(q), .. }) => Some([left.buffer, q.sums]),
        _ => None,
    }
}

/// The kernels whose packed operand stays in rows: of those that can have it so, those whose operand no other kernel touches.
fn kernels_with_rows(program: &Program) -> BTreeMap<KernelId, Kernel> {
    let mut rows = BTreeMap::new();
    for (id, kernel) in program.kernels.iter().filter(|(_, kernel)| operand(kernel).is_some()) {
        rows.extend(in_rows(kernel).map(|kernel| (id, kernel)));
    }
    // Kernels that use a buffer, and whether as such an operand.
    let mut users: BTreeMap<Buffer, Vec<(KernelId, bool)>> = BTreeMap::new();
    for step in &program.steps {
        let operand = operand(&program.kernels[step.kernel]);
        for (n, arg) in step.buffers.iter().enumerate() {
            let packed = operand.is_some_and(|o| o.contains(&(n as u32))) && arg.offset.is(0);
            users.entry(arg.buffer).or_default().push((step.kernel, packed));
        }
    }
    // A kernel that cannot have rows keeps those that share an operand with it from having them.
    loop {
        let in_rows = |&(kernel, packed): &(KernelId, bool)| packed && rows.contains_key(&kernel);
        let packed = users.values().filter(|users| users.iter().any(|u| u.1));
        let mixed = packed.filter(|users| !users.iter().all(in_rows));
        let out: Vec<KernelId> = mixed.flatten().map(|u| u.0).filter(|id| rows.contains_key(id)).collect();
        if out.is_empty() {
            return rows;
        }
        for id in out {
            rows.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::gemm::{Operand, Quantized, RowZeros, TILE_ROWS};
    use crate::kernel::pack::{Form, Range, Rows, Sums};
    use crate::kernel::{BufferArg, BufferData, BufferParam, Extent, Step, Storage, Use};
    use target_lexicon::Triple;
    use tfc_ir::dim::Dim;
    use tfc_ir::graph::Loc;
    use tfc_ir::types::Elem;

    const K: i64 = 96;

    fn kernel(elems: &[Elem], body: Body) -> Kernel {
        let buffers = elems.iter().map(|&elem| BufferParam { elem, usage: Use::Write }).collect();
        Kernel { buffers, ints: 0, body }
    }

    /// Parameters: f32 rows, bytes, sums, scales.
    fn packing() -> Kernel {
        let body = Pack {
            batch: vec![],
            m: Extent::Const(5),
            row_groups: Extent::Const(1),
            k: Extent::Const(K),
            tile: TILE_ROWS,
            from: Rows { buffer: 0, batch: vec![], row: Extent::Const(K), k: Extent::Const(1) },
            made_by: None,
            to: 1,
            form: Form::Quantize { range: Range::OfRow { scales: 3, zeros: None }, sums: Some(Sums { buffer: 2, group: K, factor: -8 }) },
            pitch: None,
        };
        kernel(&[Elem::F32, Elem::I32, Elem::I32, Elem::F32], Body::Pack(body))
    }

    /// Parameters: bytes, weights, columns, sums.
    fn product(group: i64) -> Kernel {
        let (bits, groups) = (4, (K + group - 1) / group);
        let q = Quantized { bits, group, groups, columns: 2, sums: 3, zeros: false, row_zeros: RowZeros::None };
        let body = Gemm {
            batch: vec![],
            m: Extent::Const(5),
            row_groups: Extent::Const(1),
            n: Extent::Const(32),
            k: Extent::Const(K),
            format: Format::Quantized(q),
            left: Operand { buffer: 0, batch: vec![] },
            left_pitch: None,
            right: Operand { buffer: 1, batch: vec![] },
            exprs: PrimaryMap::new(),
            effects: vec![],
        };
        kernel(&[Elem::I32, Elem::U8, Elem::F32, Elem::I32], Body::Gemm(body))
    }

    /// The kernels of a program of steps, each a kernel and its buffers.
    fn with_rows(steps: &[(&Kernel, &[u32])]) -> Vec<bool> {
        let mut program = Program::default();
        for n in 0..10 {
            program.buffers.push(BufferData { storage: Storage::Input(n), bytes: Dim::from(0) });
        }
        for (kernel, buffers) in steps {
            let known = program.kernels.iter().find(|(_, k)| k == kernel).map(|(id, _)| id);
            let kernel = known.unwrap_or_else(|| program.kernels.push((*kernel).clone()));
            let arg = |&n: &u32| BufferArg { buffer: Buffer::from_u32(n), offset: Dim::from(0) };
            program.steps.push(Step {
                kernel,
                buffers: buffers.iter().map(arg).collect(),
                ints: vec![],
                tasks: Dim::from(1),
                work: Dim::from(1),
                loc: Loc::default(),
                label: String::new(),
            });
        }
        let triple: Triple = "x86_64-unknown-linux-gnu".parse().unwrap();
        let kernels_of = |name: &str| kernels(&program, &Cpu::named(&triple, name).unwrap()).into_owned();
        assert!(kernels_of("avx512vnni").values().all(|k| !k.has_rows()));
        kernels_of("amx").values().map(Kernel::has_rows).collect()
    }

    #[test]
    fn operands_of_products_by_matrix_tiles_are_in_rows() {
        assert_eq!(with_rows(&[(&packing(), &[0, 1, 2, 3]), (&product(K), &[1, 4, 5, 2])]), [true, true]);
        // Groups of 64 are lines, groups of 32 are not.
        assert_eq!(with_rows(&[(&product(64), &[1, 4, 5, 2])]), [true]);
        assert_eq!(with_rows(&[(&product(32), &[1, 4, 5, 2])]), [false]);
    }

    #[test]
    fn one_kernel_that_needs_tiles_keeps_all_others_from_rows() {
        let (packing, whole, groups) = (packing(), product(K), product(32));
        // The second product shares the operand.
        let shared: [(&Kernel, &[u32]); 3] = [(&packing, &[0, 1, 2, 3]), (&whole, &[1, 4, 5, 2]), (&groups, &[1, 6, 7, 2])];
        assert_eq!(with_rows(&shared), [false; 3]);
        // It has an operand of its own, but the kernel that packs it packs the other one too.
        let apart: [(&Kernel, &[u32]); 4] =
            [(&packing, &[0, 1, 2, 3]), (&whole, &[1, 4, 5, 2]), (&packing, &[0, 6, 7, 8]), (&groups, &[6, 4, 5, 7])];
        assert_eq!(with_rows(&apart), [false; 3]);
        // Something else reads the packed rows.
        let read: [(&Kernel, &[u32]); 3] = [(&packing, &[0, 1, 2, 3]), (&whole, &[1, 4, 5, 2]), (&groups, &[6, 1, 7, 8])];
        assert_eq!(with_rows(&read), [false; 3]);
    }
}
