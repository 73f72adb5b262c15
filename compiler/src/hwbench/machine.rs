//! The limits of this machine at a number of threads, and what they say about a kernel.

use super::memory::{self, Bandwidth};
use super::rates::Unit;
use crate::emit::jit::JitError;
use crate::kernel::work::Arithmetic;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;
use tfc_runtime::Pool;

/// Measured limits, of all threads together.
#[derive(Clone, Debug)]
pub struct Machine {
    /// How many threads worked at once.
    pub threads: usize,
    /// Operations per second of each unit that runs here.
    pub compute: Vec<(Unit, f64)>,
    /// Bandwidths, from the nearest level to memory.
    pub memory: Vec<Bandwidth>,
    /// Seconds that a loop takes in which every thread of a pool that is awake does a task of no work; 0 for
    /// one thread.
    pub launch: f64,
}

/// What a kernel does, at given sizes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Load {
    /// Operations of contractions.
    pub operations: f64,
    /// What they are.
    pub arithmetic: Option<Arithmetic>,
    /// Bytes read and written.
    pub bytes: f64,
    /// Those that are weights.
    pub weight_bytes: f64,
}

/// What limits a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// The rate of an instruction.
    Compute(Unit),
    /// The bandwidth of a level.
    Memory(&'static str),
}

impl Bound {
    /// Its name: that of the instruction, or of the level.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Compute(unit) => unit.name(),
            Bound::Memory(level) => level,
        }
    }
}

impl Machine {
    /// Measures this machine with `threads` threads: about a second.
    ///
    /// # Errors
    /// When there is no memory for buffers or code, or no threads.
    pub fn measure(threads: usize) -> Result<Machine, JitError> {
        let units = Unit::ALL.into_iter().filter(|u| u.runs_here());
        let compute = units.map(|u| Ok((u, u.measure(threads)?))).collect::<Result<_, JitError>>()?;
        let levels = memory::levels();
        let last = levels.iter().rev().map(|l| l.size).find(|&s| s != u64::MAX).unwrap_or(0);
        let mut bandwidths = vec![];
        let mut below = 0;
        if cfg!(target_arch = "x86_64") {
            for level in levels {
                bandwidths.push(memory::measure(level, below, last, threads)?);
                below = level.size;
            }
        }
        let launch = if threads > 1 { launch(threads).map_err(|e| JitError::Memory(e.to_string()))? } else { 0.0 };
        Ok(Machine { threads, compute, memory: bandwidths, launch })
    }

    /// The rate of a unit.
    pub fn rate(&self, unit: Unit) -> Option<f64> {
        self.compute.iter().find(|(u, _)| *u == unit).map(|(_, rate)| *rate)
    }

    /// The shortest time in seconds that a kernel could take in code of a CPU variant, and what sets it:
    /// its arithmetic, or its traffic. Weights come from the level that holds all weights of the model,
    /// everything else from the level that holds what the kernel touches.
    pub fn shortest(&self, load: &Load, variant: &str, model_weights: u64) -> Option<(f64, Bound)> {
        let compute = load.arithmetic.and_then(|a| Unit::limit(variant, a)).and_then(|unit| {
            let seconds = load.operations / self.rate(unit)?;
            Some((seconds, Bound::Compute(unit)))
        });
        let read = |bytes: f64, of: f64| {
            let level = self.memory.iter().find(|b| b.level.size as f64 * self.private(b) >= of)?;
            Some((bytes / level.read, level.level.name))
        };
        let weights = read(load.weight_bytes, model_weights as f64);
        let rest = read(load.bytes - load.weight_bytes, load.bytes - load.weight_bytes);
        let memory = weights.zip(rest).map(|(w, r)| (w.0 + r.0, Bound::Memory(if w.0 > r.0 { w.1 } else { r.1 })));
        compute.into_iter().chain(memory).filter(|(t, _)| *t > 0.0).max_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// How many caches of a level the threads have.
    fn private(&self, b: &Bandwidth) -> f64 {
        if matches!(b.level.name, "L1" | "L2") { self.threads as f64 } else { 1.0 }
    }
}

/// Seconds of a loop in which every thread of a pool does one task of no work, the best of many: the
/// workers are awake. A task ends when all have begun, so that no thread does two.
fn launch(threads: usize) -> std::io::Result<f64> {
    let pool = Pool::new(threads)?;
    let mut best = f64::MAX;
    for _ in 0..2000 {
        let begun = AtomicUsize::new(0);
        let t = Instant::now();
        pool.for_each(threads, |tasks| {
            begun.fetch_add(tasks.len(), SeqCst);
            while begun.load(SeqCst) < threads {
                std::hint::spin_loop();
            }
        });
        best = best.min(t.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hwbench::memory::Level;

    #[test]
    fn the_slower_of_arithmetic_and_traffic_sets_the_limit() {
        let level = |name, size, read| Bandwidth { level: Level { name, size }, bytes: 0, read, write: read, copy: read };
        let machine = Machine {
            threads: 1,
            compute: vec![(Unit::Fma256, 100e9)],
            memory: vec![level("L1", 1000, 100e9), level("memory", u64::MAX, 10e9)],
            launch: 0.0,
        };
        let load = |operations, bytes, weight_bytes| Load { operations, arithmetic: Some(Arithmetic::F32), bytes, weight_bytes };
        assert_eq!(machine.shortest(&load(200.0, 100.0, 0.0), "avx2", 0), Some((2e-9, Bound::Compute(Unit::Fma256))));
        assert_eq!(machine.shortest(&load(200.0, 1000.0, 0.0), "avx2", 0), Some((1e-8, Bound::Memory("L1"))));
        assert_eq!(machine.shortest(&load(200.0, 1000.0, 1000.0), "avx2", 5000), Some((1e-7, Bound::Memory("memory"))));
        // There is no such unit here.
        assert_eq!(machine.shortest(&load(200.0, 0.0, 0.0), "avx512vnni", 0), None);
    }
}
