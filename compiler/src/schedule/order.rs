//! The order of steps: what makes memory smaller goes as near as it can to what wrote that memory.
//!
//! The walk schedules operators in the order of the graph, so the keys of an attention are packed behind the products that
//! make queries and values too. Right behind their own product they are still in the nearest caches, and the memory
//! that they leave is that of the values.

use super::memory;
use crate::kernel::{Buffer, Program, Use};
use cranelift_entity::SecondaryMap;
use std::collections::BTreeSet;

/// Moves every step that frees more bytes of the arena than it needs right behind the last step that it waits for.
/// `temporaries` says which buffers are in the arena.
pub fn free_early(program: &mut Program, temporaries: &SecondaryMap<Buffer, bool>) {
    let size = memory::nominal(program);
    for at in 0..program.steps.len() {
        let uses = |step: usize| program.uses(&program.steps[step]);
        let mine: Vec<(Buffer, Use)> = uses(at).collect();
        let waits_for = |step: usize| uses(step).any(|(b, how)| mine.iter().any(|&(own, own_how)| own == b && (how, own_how) != (Use::Read, Use::Read)));
        let to = (0..at).rev().find(|&step| waits_for(step)).map_or(0, |last| last + 1);
        let touched = |steps: std::ops::Range<usize>, buffer: Buffer| steps.filter(|&step| step != at).any(|step| uses(step).any(|(b, _)| b == buffer));
        let bytes = |buffers: BTreeSet<Buffer>| buffers.into_iter().filter(|&b| temporaries[b]).map(|b| size(&program.buffers[b].bytes)).fold(0, i64::saturating_add);
        let freed = mine.iter().map(|u| u.0).filter(|&b| !touched(to..program.steps.len(), b)).collect();
        let needed = mine.iter().map(|u| u.0).filter(|&b| !touched(0..at, b)).collect();
        if bytes(freed) > bytes(needed) {
            program.steps[to..=at].rotate_right(1);
        }
    }
}
