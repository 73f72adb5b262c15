//! How long each step of a run took.
//!
//! A recorder is the `parallel_for` of the run. With [`CONTEXT_EVERY_STEP`](crate::abi::CONTEXT_EVERY_STEP)
//! the code hands every step to it, in the order of the manifest; it looks at the clock, runs the step as
//! it would have run without a profile (on the pool, or inline), and looks again. So steps are
//! distributed as always, and a profile costs two looks at the clock per step and per range of tasks.
#![allow(unsafe_code, reason = "implements a callback of the C ABI")]

use crate::abi::{ParallelForFn, RangeFn};
use crate::error::Error;
use crate::model::Model;
use crate::pool::{self, Pool};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// A run, step by step. All times count from the begin of the run.
#[derive(Clone, Debug)]
pub struct Profile {
    /// How long the whole run took.
    pub whole: Duration,
    /// One per kernel of the manifest, in its order.
    pub steps: Vec<StepTime>,
    /// What each thread did, in the order of the steps; within one, in the order of time.
    pub parts: Vec<Part>,
}

/// When a step ran.
#[derive(Clone, Copy, Debug)]
pub struct StepTime {
    /// Its begin.
    pub begin: Duration,
    /// Its end, when all threads had done their parts.
    pub end: Duration,
    /// Number of independent tasks.
    pub tasks: i64,
    /// Whether the tasks were offered to several threads.
    pub parallel: bool,
}

impl StepTime {
    /// How long it took.
    pub fn time(&self) -> Duration {
        self.end - self.begin
    }
}

/// Tasks of a step that one thread did in one go.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The step's number.
    pub step: usize,
    /// The thread: 0 is the one that called `run`.
    pub thread: usize,
    /// First task, and the one behind the last.
    pub tasks: (i64, i64),
    /// Its begin.
    pub begin: Duration,
    /// Its end.
    pub end: Duration,
}

/// Records a run.
pub(crate) struct Recorder {
    pool: Option<Arc<Pool>>,
    start: Instant,
    steps: Mutex<Vec<StepTime>>,
    parts: Mutex<Vec<(ThreadId, Part)>>,
}

/// A step while it runs.
struct Running<'a> {
    recorder: &'a Recorder,
    step: usize,
    f: RangeFn,
    arg: *mut c_void,
}

impl Recorder {
    /// A recorder whose clock begins now; loops run on `pool` if there is one.
    pub(crate) fn new(pool: Option<Arc<Pool>>) -> Recorder {
        Recorder { pool, start: Instant::now(), steps: Mutex::default(), parts: Mutex::default() }
    }

    /// The function and the `user` pointer for `NAME_run_parallel`. The pointer is valid while the recorder
    /// is borrowed.
    pub(crate) fn callback(&self) -> (ParallelForFn, *mut c_void) {
        (record, (&raw const *self).cast_mut().cast())
    }

    /// What was recorded. An error if the code did not hand over every step.
    pub(crate) fn finish(self, model: &Model) -> Result<Profile, Error> {
        let whole = self.start.elapsed();
        let steps = self.steps.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut parts = self.parts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let expected = model.manifest().kernels.len();
        if steps.len() != expected {
            let reason = format!("it reported {} of {expected} steps, so it cannot be profiled: compile the model again", steps.len());
            return Err(Error::Incompatible { origin: model.manifest().name.clone(), reason });
        }
        parts.sort_by_key(|(_, p)| (p.step, p.begin));
        // Threads are numbered as they appear, but for the calling one.
        let mut threads = vec![std::thread::current().id()];
        let parts = parts
            .into_iter()
            .map(|(id, part)| {
                let thread = threads.iter().position(|t| *t == id).unwrap_or_else(|| {
                    threads.push(id);
                    threads.len() - 1
                });
                Part { thread, ..part }
            })
            .collect();
        Ok(Profile { whole, steps, parts })
    }

    /// Runs a step and records it.
    ///
    /// # Safety
    ///
    /// As [`record`].
    unsafe fn step(&self, n: i64, f: RangeFn, arg: *mut c_void) {
        let (tasks, parallel) = if n < 0 { (!n, false) } else { (n, true) };
        let step = lock(&self.steps).len();
        let running = Running { recorder: self, step, f, arg };
        let begin = self.start.elapsed();
        match self.pool.as_deref().filter(|_| parallel) {
            Some(pool) => {
                let (pf, user) = pool.callback();
                // SAFETY: `part` may be called from any thread with the address of `running` while that lives.
                unsafe { pf(user, tasks, part, (&raw const running).cast_mut().cast()) }
            }
            // SAFETY: as above, and with a null pool this thread does it all.
            None => unsafe { pool::parallel_for(std::ptr::null_mut(), tasks, part, (&raw const running).cast_mut().cast()) },
        }
        let end = self.start.elapsed();
        lock(&self.steps).push(StepTime { begin, end, tasks, parallel });
    }
}

/// The [`ParallelForFn`] of a recorder, whose address is `user`.
///
/// # Safety
///
/// `user` points to a [`Recorder`] that outlives the call. `f` may be called with `arg` from any thread,
/// several times at once, with ranges in `0..n`, or in `0..!n` from this thread if `n` is negative.
unsafe extern "C" fn record(user: *mut c_void, n: i64, f: RangeFn, arg: *mut c_void) {
    // SAFETY: as the caller promises.
    unsafe { (*user.cast::<Recorder>()).step(n, f, arg) }
}

/// Runs a range of tasks and records it.
///
/// # Safety
///
/// `arg` points to a [`Running`] that outlives the call, and its function may be called with the range.
unsafe extern "C" fn part(arg: *mut c_void, begin: i64, end: i64) {
    // SAFETY: as the caller promises.
    let running = unsafe { &*arg.cast::<Running>() };
    let from = running.recorder.start.elapsed();
    // SAFETY: as the caller promises.
    unsafe { (running.f)(running.arg, begin, end) };
    let to = running.recorder.start.elapsed();
    let part = Part { step: running.step, thread: 0, tasks: (begin, end), begin: from, end: to };
    lock(&running.recorder.parts).push((std::thread::current().id(), part));
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

    unsafe extern "C" fn count(arg: *mut c_void, begin: i64, end: i64) {
        // SAFETY: `arg` is the counter below.
        unsafe { &*arg.cast::<AtomicI64>() }.fetch_add(end - begin, Relaxed);
    }

    #[test]
    fn steps_and_their_parts_are_recorded() {
        for pool in [None, Some(Arc::new(Pool::new(2).unwrap()))] {
            let threads = pool.as_ref().map_or(1, |p| p.threads());
            let recorder = Recorder::new(pool);
            let (pf, user) = recorder.callback();
            let done = AtomicI64::new(0);
            for n in [100, !7, !0, 0] {
                // SAFETY: the recorder and the counter live, and `count` may be called from any thread.
                unsafe { pf(user, n, count, (&raw const done).cast_mut().cast()) };
            }
            assert_eq!(done.into_inner(), 107);
            let steps = recorder.steps.lock().unwrap();
            assert_eq!(steps.iter().map(|s| (s.tasks, s.parallel)).collect::<Vec<_>>(), [(100, true), (7, false), (0, false), (0, true)]);
            assert!(steps.windows(2).all(|w| w[0].begin <= w[0].end && w[0].end <= w[1].begin));
            let parts = recorder.parts.lock().unwrap();
            for (i, n) in [(0, 100), (1, 7), (2, 0), (3, 0)] {
                let of_step: Vec<&Part> = parts.iter().map(|(_, p)| p).filter(|p| p.step == i).collect();
                assert_eq!(of_step.iter().map(|p| p.tasks.1 - p.tasks.0).sum::<i64>(), n);
                assert!(of_step.iter().all(|p| p.begin >= steps[i].begin && p.end <= steps[i].end));
                assert!(threads > 1 || of_step.len() <= 1);
            }
        }
    }
}
