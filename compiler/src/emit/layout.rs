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
use std::collections::{BTreeMap, BTreeSet};

/// The kernels of a program as a CPU variant has them.
pub fn kernels<'a>(program: &'a Program, cpu: &Cpu) -> Cow<'a, PrimaryMap<KernelId, Kernel>> {
    let rows = if cpu.wide.is_some_and(|w| w.matrix_tiles()) { kernels_with_rows(program) } else { BTreeSet::new() };
    if rows.is_empty() {
        return Cow::Borrowed(&program.kernels);
    }
    let mut kernels = program.kernels.clone();
    for id in rows {
        match &mut kernels[id].body {
            Body::Pack(p) => p.pitch = p.k.as_const().map(pack::pitch),
            Body::Gemm(g) => g.left_pitch = g.k.as_const().map(|k| pack::pitch(k) / 4),
            Body::Nest(_) | Body::Attention(_) => unreachable!("they pack and multiply no rows"),
        }
    }
    Cow::Owned(kernels)
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
fn kernels_with_rows(program: &Program) -> BTreeSet<KernelId> {
    let mut rows = BTreeSet::new();
    for (id, kernel) in program.kernels.iter() {
        if operand(kernel).is_some() && x86::takes_rows(kernel) {
            rows.insert(id);
        }
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
        let out: Vec<KernelId> = users
            .values()
            .filter(|users| users.iter().any(|&(kernel, packed)| !(packed && rows.contains(&kernel))))
            .flat_map(|users| users.iter().filter(|&&(kernel, packed)| packed && rows.contains(&kernel)).map(|u| u.0))
            .collect();
        if out.is_empty() {
            return rows;
        }
        for id in out {
            rows.remove(&id);
        }
    }
}
