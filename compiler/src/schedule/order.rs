//! The order of steps: what makes memory smaller goes as near as it can to what wrote that memory.
//!
//! The walk schedules operators in the order of the graph, so the keys of an attention are packed behind the products that
//! make queries and values too. Right behind their own product they are still in the nearest caches, and the memory
//! that they leave is that of the values.

use super::memory;
use crate::kernel::{Buffer, Program, Storage};
use cranelift_entity::SecondaryMap;
use std::collections::BTreeSet;
use std::ops::Range;

/// Moves every step that frees more bytes of the arena than it needs right behind the last step that has to do with the same
/// memory. `temporaries` says which buffers are in the arena.
pub fn free_early(program: &mut Program, temporaries: &SecondaryMap<Buffer, bool>) {
    let size = memory::nominal(program);
    for at in 0..program.steps.len() {
        let buffers = |step: usize| program.uses(&program.steps[step]).map(|(b, _)| b);
        let only_read = |b: Buffer| matches!(program.buffers[b].storage, Storage::Input(_) | Storage::Weights(_));
        let mine: BTreeSet<Buffer> = buffers(at).filter(|&b| !only_read(b)).collect();
        let to = (0..at).rev().find(|&step| buffers(step).any(|b| mine.contains(&b))).map_or(0, |last| last + 1);
        let bytes_of_no_other = |others: Range<usize>| {
            let used = |b: Buffer| others.clone().any(|step| buffers(step).any(|other| other == b));
            mine.iter().filter(|&&b| temporaries[b] && !used(b)).map(|&b| size(&program.buffers[b].bytes)).fold(0, i64::saturating_add)
        };
        let (freed, needed) = (bytes_of_no_other(at + 1..program.steps.len()), bytes_of_no_other(0..at));
        if freed > needed {
            program.steps[to..=at].rotate_right(1);
        }
    }
}
