//! The order of steps: what makes memory smaller goes as near as it can to what wrote that memory.
//!
//! The walk schedules operators in the order of the graph, so the keys of an attention are packed behind the products that
//! make queries and values too. Right behind their own product they are still in the nearest caches, and the memory
//! that they leave is that of the values.

use super::memory;
use crate::kernel::{Buffer, Program, Storage};
use cranelift_entity::SecondaryMap;
use std::collections::BTreeSet;

/// Moves every step that frees more bytes of the arena than it needs right behind the last step that has to do with the same
/// memory. `temporaries` says which buffers are in the arena.
pub fn free_early(program: &mut Program, temporaries: &SecondaryMap<Buffer, bool>) {
    let size = memory::nominal(program);
    // The last step that has to do with a buffer: of all, and of those that have their place already.
    let mut last: SecondaryMap<Buffer, usize> = SecondaryMap::new();
    let mut latest: SecondaryMap<Buffer, Option<usize>> = SecondaryMap::new();
    for (at, step) in program.steps.iter().enumerate() {
        program.uses(step).for_each(|(b, _)| last[b] = at);
    }
    for at in 0..program.steps.len() {
        let only_read = |b: Buffer| matches!(program.buffers[b].storage, Storage::Input(_) | Storage::Weights(_));
        let mine: BTreeSet<Buffer> = program.uses(&program.steps[at]).map(|(b, _)| b).filter(|&b| !only_read(b)).collect();
        let behind = mine.iter().filter_map(|&b| latest[b]).max().map_or(0, |last| last + 1);
        let bytes = |of: &dyn Fn(Buffer) -> bool| {
            mine.iter().filter(|&&b| temporaries[b] && of(b)).map(|&b| size(&program.buffers[b].bytes)).fold(0, i64::saturating_add)
        };
        let (freed, needed) = (bytes(&|b| last[b] == at), bytes(&|b| latest[b].is_none()));
        let to = if freed > needed { behind } else { at };
        program.steps[to..=at].rotate_right(1);
        for (step, moved) in program.steps.iter().enumerate().take(at + 1).skip(to) {
            program.uses(moved).for_each(|(b, _)| latest[b] = Some(step));
        }
    }
}
