//! The candidates for each kernel of a program: every way to compile it, for every CPU variant that runs
//! here, measured in runs of the whole model, so with the caches and buffers as they are in a run.

use super::machine::{Bound, Load, Machine};
use crate::emit::candidates::{Candidate, candidates};
use crate::emit::clif::code::Code;
use crate::emit::clif::target::Cpu;
use crate::emit::jit::{self, JitError, JitOptions, WeightFile};
use crate::emit::layout;
use crate::emit::module::EmitError;
use crate::kernel::Program;
use crate::profile::{self, Row};
use cranelift_module::ModuleError;
use std::sync::Arc;
use target_lexicon::Triple;
use tfc_runtime::{Dims, Error, Model, Session};

/// A program compiled in one of the ways.
pub struct Alternative {
    /// The CPU variant.
    pub variant: String,
    /// The number of the candidate.
    candidate: usize,
    /// The candidate of each kernel: its name, and the number of its code among the different ones of
    /// the kernel. `None` for kernels that have fewer candidates.
    ways: Vec<Option<(&'static str, usize)>>,
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

/// The measured time of a candidate. Those with the same code, byte by byte, are one.
pub struct Measured {
    /// The CPU variants that have it.
    pub variants: Vec<String>,
    /// Its name within the variants.
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

    /// Whether the choice is wrong by more than `tolerance` for a kernel that takes at least `shortest` seconds.
    pub fn is_wrong(&self, tolerance: f64, shortest: f64) -> bool {
        self.loss() > tolerance && self.best().seconds >= shortest
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
        let mut codes: Vec<Vec<Code>> = vec![vec![]; program.kernels.len()];
        for target in Cpu::variants(&Triple::host()).into_iter().filter(Cpu::runs_here) {
            let candidates: Vec<Vec<Candidate>> = program.kernels.values().map(|k| candidates(k, &target)).collect();
            let chosen = layout::kernels(program, &target);
            for candidate in 0..candidates.iter().map(Vec::len).max().unwrap_or(1) {
                let mut ways = vec![];
                let kernels = if candidate == 0 { &*chosen } else { &program.kernels };
                for ((kernel, of_kernel), codes) in kernels.values().zip(&candidates).zip(&mut codes) {
                    let Some(way) = of_kernel.get(candidate) else {
                        ways.push(None);
                        continue;
                    };
                    let failed = |e| EmitError { what: kernel.body.kind().into(), source: Box::new(ModuleError::Compilation(e)) };
                    let code = way.compile(kernel, &target).map_err(failed)?;
                    let number = codes.iter().position(|c| *c == code).unwrap_or_else(|| {
                        codes.push(code);
                        codes.len() - 1
                    });
                    ways.push(Some((way.name, number)));
                }
                let options = JitOptions { cpu: Some(target.name), candidate };
                let model = Arc::new(jit::load_with(program, "model", &weights, &options)?);
                let session = Session::new(model.clone(), threads).map_err(|e| JitError::Memory(e.to_string()))?;
                let steps = vec![f64::MAX; program.steps.len()];
                all.push(Alternative { variant: target.name.into(), candidate, ways, model, session, steps });
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
            let mut candidates: Vec<(usize, Measured)> = vec![];
            for (i, a) in self.all.iter().enumerate() {
                let Some((name, code)) = a.ways[kernel] else { continue };
                let seconds = row.steps.iter().map(|&s| a.steps[s]).sum::<f64>() / row.steps.len() as f64;
                let pick = i == self.pick;
                match candidates.iter_mut().find(|(c, _)| *c == code) {
                    Some((_, m)) => {
                        m.variants.push(a.variant.clone());
                        m.seconds = m.seconds.min(seconds);
                        m.pick |= pick;
                    }
                    None => candidates.push((code, Measured { variants: vec![a.variant.clone()], name, pick, seconds, limit: None })),
                }
            }
            let picked = &self.all[self.pick].variant;
            let mut candidates: Vec<Measured> = candidates.into_iter().map(|(_, m)| m).collect();
            for m in &mut candidates {
                let variant = if m.pick { picked } else { m.variants.last().expect("a variant has it") };
                m.limit = share(machine, &row.load, variant, weights, m.seconds);
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_wrong_if_another_one_is_clearly_faster() {
        let compared = |pick: f64, other: f64| {
            let load = Load { operations: 0.0, arithmetic: None, bytes: 0.0, weight_bytes: 0.0 };
            let row = Row { name: "k".into(), kind: "nest".into(), summary: "add".into(), nodes: vec![], steps: vec![0], load };
            let measured = |seconds, pick| Measured { variants: vec!["v".into()], name: "n", pick, seconds, limit: None };
            Compared { row, candidates: vec![measured(other, false), measured(pick, true)] }
        };
        assert!((compared(1.1e-4, 1e-4).loss() - 0.1).abs() < 1e-9);
        assert!(compared(1.1e-4, 1e-4).is_wrong(0.05, 2e-5));
        assert!(!compared(1.04e-4, 1e-4).is_wrong(0.05, 2e-5));
        assert!(!compared(0.9e-4, 1e-4).is_wrong(0.05, 2e-5));
        assert!(!compared(1.1e-5, 1e-5).is_wrong(0.05, 2e-5));
    }
}
