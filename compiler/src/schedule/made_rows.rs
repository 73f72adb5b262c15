//! Rows that are packed where they are made. A nest that writes the rows of a left operand, a norm as a rule, and the kernel
//! that packs them become one kernel: a loop less to share out between threads, and rows that are still in the nearest
//! cache of the one that made them.

use super::args::Args;
use crate::cost;
use crate::kernel::nest::{Access, Effect, Expr, Nest};
use crate::kernel::pack::{Form, Pack, Range, Rows, Sums};
use crate::kernel::{Body, Buffer, BufferArg, Extent, Kernel, Program, Step, Use};
use std::collections::HashMap;
use tfc_ir::dim::Dim;
use tfc_ir::types::Elem;

/// Joins every kernel that packs rows with the nest that makes them, in the place of the nest, where that is possible.
pub fn join(program: &mut Program) {
    let mut ids = HashMap::new();
    for at in 0..program.steps.len() {
        let Some((maker, kernel, step)) = joined(program, at) else { continue };
        let id = *ids.entry(kernel).or_insert_with_key(|kernel| program.kernels.push(kernel.clone()));
        program.steps[maker] = Step { kernel: id, ..step };
        // Without tasks it goes when the others have been looked at.
        program.steps[at].tasks = Dim::from(0);
    }
    program.steps.retain(|s| !s.tasks.is(0));
}

/// The nest that makes the rows that a step packs, and what both are as one.
fn joined(program: &Program, at: usize) -> Option<(usize, Kernel, Step)> {
    let step = &program.steps[at];
    let Body::Pack(pack) = &program.kernels[step.kernel].body else { return None };
    let from = &step.buffers[pack.from.buffer as usize];
    let uses = |step: usize| program.uses(&program.steps[step]);
    let maker = (0..at).rev().find(|&i| uses(i).any(|(b, usage)| b == from.buffer && usage == Use::Write))?;
    let made = &program.steps[maker];
    let Body::Nest(nest) = &program.kernels[made.kernel].body else { return None };
    let to = stored(nest, made, from)?;
    let written: Vec<Buffer> = uses(at).filter(|(_, usage)| *usage == Use::Write).map(|(b, _)| b).collect();
    let in_the_way = (maker..at).any(|i| uses(i).any(|(b, _)| written.contains(&b)));
    if in_the_way || !is_plain(nest) || !makes(nest, made, to, pack, step) {
        return None;
    }

    // Parameters of the nest, then those of the packing that are not among them.
    let mut args = Args { params: program.kernels[made.kernel].buffers.clone(), buffers: made.buffers.clone(), ints: made.ints.clone() };
    let buffers: Vec<u32> = (0..)
        .zip(&step.buffers)
        .map(|(n, arg)| {
            if n == pack.from.buffer {
                return to.buffer;
            }
            args.params.push(program.kernels[step.kernel].buffers[n as usize]);
            args.buffers.push(arg.clone());
            args.buffers.len() as u32 - 1
        })
        .collect();
    let buffer = |n: u32| buffers[n as usize];
    let sums = |s: Sums| Sums { buffer: buffer(s.buffer), ..s };
    let mut extent = |e: Extent| args.extent(&e.of(&step.ints));
    let body = Body::Pack(Pack {
        batch: vec![],
        m: extent(pack.m),
        row_groups: extent(pack.row_groups),
        k: extent(pack.k),
        tile: pack.tile,
        from: Rows { buffer: buffer(pack.from.buffer), batch: vec![], row: extent(pack.from.row), k: extent(pack.from.k) },
        made_by: Some(nest.clone()),
        to: buffer(pack.to),
        form: match pack.form {
            Form::Floats => Form::Floats,
            Form::Bytes(s) => Form::Bytes(sums(s)),
            Form::Quantize { range, sums: s } => {
                let range = match range {
                    Range::OfRow { scales, zeros } => Range::OfRow { scales: buffer(scales), zeros: zeros.map(buffer) },
                    Range::Fixed { site } => Range::Fixed { site: buffer(site) },
                };
                Form::Quantize { range, sums: s.map(sums) }
            }
        },
        pitch: None,
    });
    let kernel = Kernel { buffers: args.params, ints: args.ints.len() as u32, body };
    let joined = Step {
        kernel: step.kernel,
        buffers: args.buffers,
        ints: args.ints,
        tasks: step.tasks.clone(),
        work: cost::as_packing(&made.work) + step.work.clone(),
        loc: made.loc.join(&step.loc),
        label: format!("{}+{}", made.label, step.label),
    };
    Some((maker, kernel, joined))
}

/// Whether every emitter that packs can emit a nest as well: rows of f32, all of whose places are known.
fn is_plain(nest: &Nest) -> bool {
    nest.columns.is_none()
        && nest.inner.len() == 1
        && nest.exprs.values().all(|(e, elem)| {
            *elem == Elem::F32
                && match e {
                    Expr::Load(a) => a.dynamic.is_empty(),
                    Expr::CheckedIndex(..) => false,
                    _ => true,
                }
        })
}

/// Where a nest stores what begins at an argument of a later step.
fn stored<'a>(nest: &'a Nest, made: &Step, arg: &BufferArg) -> Option<&'a Access> {
    let same = |b: &BufferArg| b.buffer == arg.buffer && b.offset == arg.offset;
    nest.stages.iter().filter(|s| !s.once).flat_map(|s| &s.effects).find_map(|e| match e {
        Effect::Store(to, _) if same(&made.buffers[to.buffer as usize]) => Some(to),
        _ => None,
    })
}

/// Whether task `r` of a nest, which stores there, writes all of row `r` of the one matrix that is packed.
fn makes(nest: &Nest, made: &Step, to: &Access, pack: &Pack, step: &Step) -> bool {
    let [loops @ .., along_k] = &to.strides[..] else { return false };
    let row_by_row = nest.tasks.iter().zip(loops).enumerate().all(|(l, (&extent, &stride))| {
        let inside: Dim = nest.tasks[l + 1..].iter().map(|e| e.of(&made.ints)).product();
        extent == Extent::Const(1) || stride.of(&made.ints) == inside * pack.from.row.of(&step.ints)
    });
    pack.batch.is_empty()
        && pack.from.k == Extent::Const(1)
        && *along_k == Extent::Const(1)
        && to.offset == Extent::Const(0)
        && to.dynamic.is_empty()
        && made.tasks == pack.m.of(&step.ints)
        && nest.inner[0].of(&made.ints) == pack.k.of(&step.ints)
        && row_by_row
}
