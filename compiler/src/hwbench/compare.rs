//! The candidates for each kernel of a program: every way to compile it, for every CPU variant that runs
//! here, measured in runs of the whole model, so with the caches and buffers as they are in a run.

use super::machine::{Bound, Load, Machine};
use crate::emit::candidates::candidates;
use crate::emit::clif::target::Cpu;
use crate::emit::jit::{self, JitError, JitOptions, WeightFile};
use crate::kernel::Program;
use crate::profile::{self, Row};
use std::sync::Arc;
use target_lexicon::Triple;
use tfc_runtime::{Dims, Error, Model, Session};

/// A program compiled in one of the ways.
pub struct Alternative {
    /// The CPU variant.
    pub variant: String,
    /// The number of the candidate.
    candidate: usize,
    /// The name of the candidate of each kernel; `None` for kernels that have fewer.
    names: Vec<Option<&'static str>>,
    /// The code.
    pub model: Arc<Model>,
    session: Session,
    /// The shortest time of each step so far, in seconds.
    steps: Vec<f64>,
}

/// The alternatives of a program.
pub struct Alternatives {
    /// All of them, by variant.
    pub all: Vec<Alternative>,
    /// The one that the compiler and `init` choose.
    pub pick: usize,
}

/// A kernel with its candidates.
pub struct Compared {
    /// The steps.
    pub row: Row,
    /// The candidates.
    pub candidates: Vec<Measured>,
}

/// The measured time of a candidate.
pub struct Measured {
    /// The CPU variant.
    pub variant: String,
    /// Its name within the variant.
    pub name: &'static str,
    /// Whether it is the one that runs.
    pub pick: bool,
    /// Seconds of a call: the shortest time of each step, their mean over the steps.
    pub seconds: f64,
    /// The share of what the machine could do, 0 to 1, and what sets the limit.
    pub limit: Option<(f64, Bound)>,
}

impl Compared {
    /// The one that runs.
    pub fn pick(&self) -> &Measured {
        self.candidates.iter().find(|c| c.pick).expect("every kernel has a candidate that runs")
    }

    /// The fastest.
    pub fn best(&self) -> &Measured {
        self.candidates.iter().min_by(|a, b| a.seconds.total_cmp(&b.seconds)).expect("every kernel has a candidate")
    }

    /// How much slower the one that runs is than the fastest: 0.05 for 5%.
    pub fn loss(&self) -> f64 {
        let best = self.best().seconds;
        if best > 0.0 { self.pick().seconds / best - 1.0 } else { 0.0 }
    }
}

impl Alternatives {
    /// Compiles a program in all ways. `cpu` is the CPU variant to be used instead of the best one.
    ///
    /// # Errors
    /// When a way fails, or no variant runs here.
    pub fn new(program: &Program, cpu: Option<&str>, threads: usize) -> Result<Alternatives, JitError> {
        let weights = WeightFile::new(program)?;
        let mut all = vec![];
        for target in Cpu::variants(&Triple::host()) {
            let ways: Vec<_> = program.kernels.values().map(|k| candidates(k, &target)).collect();
            for candidate in 0..ways.iter().map(Vec::len).max().unwrap_or(1) {
                let options = JitOptions { cpu: Some(target.name), candidate };
                let model = match jit::load_with(program, "model", &weights, &options) {
                    Ok(model) => Arc::new(model),
                    Err(JitError::Runtime(Error::CpuVariant { .. })) => break,
                    Err(e) => return Err(e),
                };
                let session = Session::new(model.clone(), threads).map_err(|e| JitError::Memory(e.to_string()))?;
                let names = ways.iter().map(|w| w.get(candidate).map(|c| c.name)).collect();
                let steps = vec![f64::MAX; program.steps.len()];
                all.push(Alternative { variant: target.name.into(), candidate, names, model, session, steps });
            }
        }
        let best = || all.iter().rposition(|a| a.candidate == 0);
        let named = |wanted: &str| all.iter().position(|a| a.candidate == 0 && a.variant == wanted);
        match cpu.map_or_else(best, named) {
            Some(pick) => Ok(Alternatives { all, pick }),
            // Says why the variant does not run.
            None => Err(jit::load_with(program, "model", &weights, &JitOptions { cpu, candidate: 0 })
                .err()
                .unwrap_or_else(|| JitError::Unsupported(Triple::host()))),
        }
    }

    /// Runs every alternative once and keeps the shortest times.
    ///
    /// # Errors
    /// What running gives.
    pub fn round(&mut self, dims: &Dims, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), Error> {
        for a in &mut self.all {
            let profile = a.session.run_profiled(dims, inputs, outputs)?;
            for (best, step) in a.steps.iter_mut().zip(&profile.steps) {
                *best = best.min(step.time().as_secs_f64());
            }
        }
        Ok(())
    }

    /// What was measured so far, the kernels that take longest first.
    pub fn compared(&self, program: &Program, dims: &Dims, machine: &Machine) -> Vec<Compared> {
        let weights = program.weight_bytes();
        let compare = |row: Row| {
            let kernel = cranelift_entity::EntityRef::index(program.steps[row.steps[0]].kernel);
            let candidates = self.all.iter().enumerate().filter_map(|(i, a)| {
                let name = a.names[kernel]?;
                let seconds = row.steps.iter().map(|&s| a.steps[s]).sum::<f64>() / row.steps.len() as f64;
                let limit = share(machine, &row.load, &a.variant, weights, seconds);
                Some(Measured { variant: a.variant.clone(), name, pick: i == self.pick, seconds, limit })
            });
            let candidates: Vec<Measured> = candidates.collect();
            Compared { row, candidates }
        };
        let mut compared: Vec<Compared> = profile::rows(&self.all[self.pick].model, dims).into_iter().map(compare).collect();
        let total = |c: &Compared| c.pick().seconds * c.row.steps.len() as f64;
        compared.sort_by(|a, b| total(b).total_cmp(&total(a)));
        compared
    }
}

fn share(machine: &Machine, load: &Load, variant: &str, weights: u64, seconds: f64) -> Option<(f64, Bound)> {
    let (shortest, bound) = machine.shortest(load, variant, weights)?;
    (seconds > 0.0).then(|| (shortest / seconds, bound))
}
