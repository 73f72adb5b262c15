//! Memory planning: buffers whose lifetimes do not overlap share a slot of the arena, and so do a result and an operand that
//! a kernel may write it over.

use crate::kernel::nest::Expr;
use crate::kernel::{Body, Buffer, BufferData, Kernel, KernelId, Program, Slot, Step, Storage, Use};
use cranelift_entity::packed_option::ReservedValue;
use cranelift_entity::{PrimaryMap, SecondaryMap};
use std::cmp::Reverse;
use tfc_ir::dim::{Bindings, Dim};

/// Slots begin at multiples of this many bytes.
pub const ALIGN: i64 = 64;

/// The value that a free dimension is taken to have when sizes are compared; clamped to its range.
const NOMINAL: i64 = 128;

/// Drops the steps that write temporaries which no step reads, and nothing else. Steps that check
/// indices stay.
pub fn drop_unread(program: &mut Program, temporaries: &SecondaryMap<Buffer, bool>) {
    let mut read: SecondaryMap<Buffer, bool> = SecondaryMap::new();
    let mut kept: Vec<Step> = vec![];
    for step in std::mem::take(&mut program.steps).into_iter().rev() {
        let kernel = &program.kernels[step.kernel];
        let checks = matches!(&kernel.body, Body::Nest(n) if n.exprs.values().any(|(e, _)| matches!(e, Expr::CheckedIndex(..))));
        if !checks && program.uses(&step).all(|(b, usage)| usage == Use::Read || temporaries[b] && !read[b]) {
            continue;
        }
        program.uses(&step).filter(|(_, usage)| *usage == Use::Read).for_each(|(b, _)| read[b] = true);
        kept.push(step);
    }
    kept.reverse();
    // Kernels in the order of their first use.
    let mut kernels: PrimaryMap<KernelId, Kernel> = PrimaryMap::new();
    let mut ids: SecondaryMap<KernelId, Option<KernelId>> = SecondaryMap::new();
    for step in &mut kept {
        let id = *ids[step.kernel].get_or_insert_with(|| kernels.push(program.kernels[step.kernel].clone()));
        step.kernel = id;
    }
    program.steps = kept;
    program.kernels = kernels;
}

/// Gives every temporary a slot. `temporaries` says which buffers are in the arena; a buffer lives
/// from the first step that names it to the last one, and takes the place of one that dies there if the kernel can work
/// [in place](Kernel::in_place).
pub fn plan(program: &mut Program, temporaries: &SecondaryMap<Buffer, bool>) {
    let mut lives: SecondaryMap<Buffer, Option<(usize, usize)>> = SecondaryMap::new();
    for (i, step) in program.steps.iter().enumerate() {
        for arg in &step.buffers {
            let life = lives[arg.buffer].get_or_insert((i, i));
            life.1 = i;
        }
    }
    let size = nominal(program);
    let over = in_place(program, temporaries, &lives);
    let mut order: Vec<Buffer> = program.buffers.keys().filter(|&b| temporaries[b] && lives[b].is_some()).collect();
    order.sort_by_key(|&b| (lives[b].map_or(0, |l| l.0), Reverse(size(&program.buffers[b].bytes)), b));
    let mut slots: PrimaryMap<Slot, (Dim, usize)> = PrimaryMap::new();
    for b in order {
        let (first, last) = lives[b].expect("only live buffers are listed");
        let bytes = round_up(&program.buffers[b].bytes);
        let want = size(&bytes);
        // The free slot that wastes least; one that must grow counts what it grows by.
        let best = slots.iter().filter(|(_, (_, until))| *until < first).min_by_key(|(s, (have, _))| (size(have).abs_diff(want), *s));
        let grows_too_much = |have: &Dim| size(have) < want / 4;
        let grown = |have: &Dim| have.maximum(&bytes).simplify(&program.symbols);
        let slot = match best {
            _ if let Some(Storage::Slot(s)) = over[b].map(|from| program.buffers[from].storage) => s,
            Some((s, (have, _))) if !grows_too_much(have) && grown(have).size() <= Dim::MAX_SIZE => s,
            _ => slots.push((Dim::from(0), 0)),
        };
        slots[slot] = (grown(&slots[slot].0), last);
        program.buffers[b].storage = Storage::Slot(slot);
    }
    program.slots = slots.into_iter().map(|(_, (bytes, _))| bytes).collect();
}

/// The buffers that are written over one that is read for the last time, and which that is.
fn in_place(
    program: &Program,
    temporaries: &SecondaryMap<Buffer, bool>,
    lives: &SecondaryMap<Buffer, Option<(usize, usize)>>,
) -> SecondaryMap<Buffer, Option<Buffer>> {
    let mut over: SecondaryMap<Buffer, Option<Buffer>> = SecondaryMap::new();
    for (i, step) in program.steps.iter().enumerate() {
        let once = |buffer: Buffer| temporaries[buffer] && step.buffers.iter().filter(|arg| arg.buffer == buffer).count() == 1;
        let kernel = &program.kernels[step.kernel];
        let pair = kernel.in_place().into_iter().find(|&(from, to)| {
            let [from_elem, to_elem] = [from, to].map(|n| kernel.buffers[n as usize].elem);
            let [from, to] = [from, to].map(|n| &step.buffers[n as usize]);
            let dies = lives[from.buffer].is_some_and(|(first, last)| first < i && last == i);
            let begins = lives[to.buffer].is_some_and(|(first, _)| first == i);
            from_elem == to_elem && from.offset == to.offset && once(from.buffer) && once(to.buffer) && dies && begins
        });
        if let Some((from, to)) = pair {
            over[step.buffers[to as usize].buffer] = Some(step.buffers[from as usize].buffer);
        }
    }
    over
}

/// Evaluates sizes for comparisons, every free dimension at the nearest value to [`NOMINAL`] in its range.
pub fn nominal(program: &Program) -> impl Fn(&Dim) -> i64 + use<> {
    let nominal: Bindings = program.symbols.iter().map(|(s, r)| (s.clone(), NOMINAL.clamp(r.min, r.max))).collect();
    move |d| d.eval(&nominal).unwrap_or(i64::MAX)
}

fn round_up(bytes: &Dim) -> Dim {
    if bytes.div_exact(&Dim::from(ALIGN)).is_some() { bytes.clone() } else { bytes.ceil_div(ALIGN) * Dim::from(ALIGN) }
}

/// A temporary as it stands before planning.
pub fn temporary(bytes: Dim) -> BufferData {
    BufferData { storage: Storage::Slot(Slot::reserved_value()), bytes }
}
