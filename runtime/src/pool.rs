//! A pool of threads that runs parallel loops: the [`ParallelForFn`] of the C ABI.
//!
//! The loops of a model are short (microseconds to milliseconds) and follow each other closely, so the
//! way in and out of a loop must be cheap:
//!
//! - The thread that starts a loop works on it too. Every thread has a share of the indices, the same part of each
//!   loop, so that it finds in its own caches what it wrote in the loop before; it does its share range by range,
//!   then helps with those of the others.
//! - A loop is *open* from when its ranges are ready until none is left. A worker joins an open loop by
//!   one compare-and-swap on [`Shared::state`]; the owner closes it and waits only for the workers
//!   that joined. A worker that wakes up late costs nothing.
//! - Idle workers look for the next loop for some ten microseconds and sleep after that.
//!
//! A loop that is started while another one runs, from inside of it or from another thread, is run by
//! its caller alone. So nesting cannot deadlock, and one pool may serve several sessions.
#![allow(unsafe_code, reason = "implements a callback of the C ABI, which passes untyped pointers between threads")]

use crate::abi::{ParallelForFn, RangeFn};
use std::any::Any;
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Pauses before an idle worker, or an owner whose workers are still busy, goes to sleep.
const SPINS: u32 = 4000;
/// The same when there are more threads than CPUs, where spinning takes time from the one waited for.
const SPINS_OVERSUBSCRIBED: u32 = 20;

/// Bits of [`Shared::state`] that count the workers inside of the loop.
const JOINED: u64 = (1 << 16) - 1;
/// Bit of [`Shared::state`]: workers may join.
const OPEN: u64 = 1 << 16;
/// The number of the loop is counted in the bits from this one on.
const LOOP: u64 = 1 << 17;

/// A fixed number of threads for parallel loops. Dropping it ends them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Number of the loop, [`OPEN`], and how many workers have joined it.
    state: AtomicU64,
    /// The loop. Written by its owner while `state` is closed and nobody is in it, read by workers that
    /// joined, and by the owner.
    job: UnsafeCell<Job>,
    /// What is left of the shares, one for each thread, that of the owner of the loop first.
    shares: Box<[Share]>,
    /// A loop is running: held by its owner from before it opens the loop until all have left.
    busy: AtomicBool,
    /// Pauses before sleeping.
    spins: u32,
    /// Workers that sleep or are about to.
    sleepers: AtomicUsize,
    /// The owner of the loop sleeps or is about to.
    owner_sleeps: AtomicBool,
    /// The pool is being dropped.
    stop: AtomicBool,
    /// Guards going to sleep, so that no wake-up falls between looking and sleeping.
    sleep: Mutex<()>,
    /// There is a loop, or the pool stops.
    opened: Condvar,
    /// The last worker has left a closed loop.
    left: Condvar,
}

// SAFETY: `job` is the only field that is not `Sync`. Its pointer is handed to a `RangeFn`, whose
// contract allows calls from any thread, and access to it is ordered by `state` as described there.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// What is left of a share, alone in its lines of the caches.
#[repr(align(128))]
struct Share {
    /// First index that no thread has taken; the end of the share if there is none.
    next: AtomicU64,
}

impl Share {
    /// Takes half of what is left up to `end`: ranges are long at first, and short where threads wait for the last
    /// ones (guided self-scheduling, Polychronopoulos and Kuck 1987).
    fn take(&self, end: u64) -> Option<Range<u64>> {
        let half = |begin: u64| begin + (end - begin).div_ceil(2);
        let begin = self.next.fetch_update(Relaxed, Relaxed, |begin| (begin < end).then(|| half(begin))).ok()?;
        Some(begin..half(begin))
    }
}

#[derive(Clone, Copy)]
struct Job {
    f: RangeFn,
    arg: *mut c_void,
    n: u64,
}

impl Pool {
    /// A pool with which `threads` threads work on a loop, the calling one included; 0 stands for the
    /// number of CPUs that the process may use. Fails when the system refuses to start a thread.
    pub fn new(threads: usize) -> std::io::Result<Pool> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cpus } else { threads.min(JOINED as usize) };
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { f: nothing, arg: std::ptr::null_mut(), n: 0 }),
            shares: (0..threads).map(|_| Share { next: AtomicU64::new(0) }).collect(),
            busy: AtomicBool::new(false),
            spins: if threads <= cpus { SPINS } else { SPINS_OVERSUBSCRIBED },
            sleepers: AtomicUsize::new(0),
            owner_sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleep: Mutex::new(()),
            opened: Condvar::new(),
            left: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new() };
        for i in 1..threads {
            let shared = pool.shared.clone();
            pool.workers.push(std::thread::Builder::new().name(format!("tfc-{i}")).spawn(move || shared.work(i))?);
        }
        Ok(pool)
    }

    /// Number of threads that work on a loop, the calling one included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f` with ranges that together are `0..n`, each index once, on several threads, and returns
    /// when all calls have returned. A panic in `f` is raised again on the calling thread.
    pub fn for_each<F: Fn(Range<usize>) + Sync>(&self, n: usize, f: F) {
        struct Call<'a, F> {
            f: &'a F,
            panic: Mutex<Option<Box<dyn Any + Send>>>,
        }
        unsafe extern "C" fn run<F: Fn(Range<usize>) + Sync>(arg: *mut c_void, begin: i64, end: i64) {
            // SAFETY: `arg` is the `call` below, which outlives the loop and is `Sync`.
            let call = unsafe { &*arg.cast::<Call<'_, F>>() };
            // The bounds are in 0..n, and n came from a usize.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (call.f)(begin as usize..end as usize))) {
                *lock(&call.panic) = Some(panic);
            }
        }
        let call = Call { f: &f, panic: Mutex::new(None) };
        // SAFETY: `run::<F>` may be called from any thread with the address of `call` while it lives.
        unsafe { self.run(i64::try_from(n).unwrap_or(i64::MAX), run::<F>, (&raw const call).cast_mut().cast()) };
        if let Some(panic) = call.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
    }

    /// The function and the `user` pointer for `NAME_run_parallel`. The pointer is valid while the pool
    /// is borrowed.
    pub fn callback(&self) -> (ParallelForFn, *mut c_void) {
        (parallel_for, (&raw const *self).cast_mut().cast())
    }

    /// [`ParallelForFn`] on this pool.
    ///
    /// # Safety
    ///
    /// `f` may be called with `arg` from any thread, several times at once, with ranges in `0..n`.
    unsafe fn run(&self, n: i64, f: RangeFn, arg: *mut c_void) {
        let Ok(count) = u64::try_from(n) else { return };
        let shared = &*self.shared;
        if count <= 1 || self.workers.is_empty() || shared.busy.swap(true, Acquire) {
            if count > 0 {
                // SAFETY: as the caller promises.
                unsafe { f(arg, 0, n) };
            }
            return;
        }
        // SAFETY: `busy` makes this thread the only owner, the loop is closed, and the previous owner
        // waited until all workers had left, so nobody reads `job`.
        unsafe { *shared.job.get() = Job { f, arg, n: count } };
        let threads = self.threads() as u64;
        for (share, i) in shared.shares.iter().zip(0..) {
            share.next.store(share_of(count, threads, i).start, Relaxed);
        }
        let number = shared.state.load(Relaxed) & !(JOINED | OPEN);
        shared.state.store(number.wrapping_add(LOOP) | OPEN, SeqCst);
        shared.wake(count - 1);
        shared.take_ranges(0);
        shared.close();
        shared.busy.store(false, Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.opened.notify_all();
        for worker in self.workers.drain(..) {
            // A worker only ends by returning: panics of loops are caught in the loop.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of the worker that begins with the share of this number.
    fn work(&self, share: usize) {
        let mut last = 0;
        let mut idle = 0;
        while !self.stop.load(Relaxed) {
            if self.join(&mut last) {
                self.take_ranges(share);
                self.leave();
                idle = 0;
            } else if idle < self.spins {
                idle += 1;
                std::hint::spin_loop();
            } else {
                self.sleep_until_open(last);
                idle = 0;
            }
        }
    }

    /// Whether `state` is that of an open loop other than `last`.
    fn is_open(state: u64, last: u64) -> bool {
        state & OPEN != 0 && state & !(JOINED | OPEN) != last
    }

    /// Enters the loop if there is one other than `last`, which is then set to it.
    fn join(&self, last: &mut u64) -> bool {
        let mut state = self.state.load(Relaxed);
        while Self::is_open(state, *last) {
            match self.state.compare_exchange_weak(state, state + 1, Acquire, Relaxed) {
                Ok(_) => {
                    *last = state & !(JOINED | OPEN);
                    return true;
                }
                Err(now) => state = now,
            }
        }
        false
    }

    /// Works on the loop that this thread owns or has joined until no index is left: on its own share first, then on
    /// those behind it.
    fn take_ranges(&self, own: usize) {
        // SAFETY: the owner wrote the job before it opened the loop, joining acquires that, and it is
        // not written again before this thread has left.
        let job = unsafe { *self.job.get() };
        let threads = self.shares.len();
        for i in (own..threads).chain(0..own) {
            let share = share_of(job.n, threads as u64, i as u64);
            while let Some(range) = self.shares[i].take(share.end) {
                // SAFETY: the range is within 0..n, which fits i64, and nobody else gets it; the rest is what the
                // caller of `run` promised.
                unsafe { (job.f)(job.arg, range.start as i64, range.end as i64) };
            }
        }
    }

    /// Leaves the loop that this worker joined.
    fn leave(&self) {
        // Releases what the loop wrote to the owner.
        let before = self.state.fetch_sub(1, SeqCst);
        if before & (JOINED | OPEN) == 1 && self.owner_sleeps.load(SeqCst) {
            drop(lock(&self.sleep));
            self.left.notify_one();
        }
    }

    /// Closes the loop that this thread owns, and waits for the workers in it.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, SeqCst);
        let mut spins = 0;
        while state & JOINED != 0 && spins < self.spins {
            spins += 1;
            std::hint::spin_loop();
            state = self.state.load(Acquire);
        }
        if state & JOINED != 0 {
            self.owner_sleeps.store(true, SeqCst);
            let mut guard = lock(&self.sleep);
            while self.state.load(SeqCst) & JOINED != 0 {
                guard = self.left.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.owner_sleeps.store(false, SeqCst);
        }
    }

    /// Wakes up to `wanted` sleeping workers for the loop that was just opened. Either this sees that a
    /// worker sleeps, or the worker sees the open loop before it does: both accesses are `SeqCst`.
    fn wake(&self, wanted: u64) {
        let sleepers = self.sleepers.load(SeqCst) as u64;
        if sleepers == 0 {
            return;
        }
        drop(lock(&self.sleep));
        if wanted >= sleepers {
            self.opened.notify_all();
        } else {
            for _ in 0..wanted {
                self.opened.notify_one();
            }
        }
    }

    fn sleep_until_open(&self, last: u64) {
        let mut guard = lock(&self.sleep);
        self.sleepers.fetch_add(1, SeqCst);
        while !self.stop.load(SeqCst) && !Self::is_open(self.state.load(SeqCst), last) {
            guard = self.opened.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, SeqCst);
    }
}

/// The indices of a loop of `n` that the `i`-th of `threads` threads begins with. Shares differ by at most one.
fn share_of(n: u64, threads: u64, i: u64) -> Range<u64> {
    let (each, rest) = (n / threads, n % threads);
    let begin = |i: u64| i * each + i.min(rest);
    begin(i)..begin(i + 1)
}

/// Nothing panics while it holds one of the pool's locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" fn nothing(_: *mut c_void, _: i64, _: i64) {}

/// The [`ParallelForFn`] of a [`Pool`], whose address is `user`; with null, the caller does it all.
///
/// # Safety
///
/// `user` is null or points to a [`Pool`] that outlives the call. `f` may be called with `arg` from any
/// thread, several times at once, with ranges in `0..n`.
pub unsafe extern "C" fn parallel_for(user: *mut c_void, n: i64, f: RangeFn, arg: *mut c_void) {
    // SAFETY: `user` is a pool or null, as the caller promises.
    match unsafe { user.cast::<Pool>().as_ref() } {
        // SAFETY: as the caller promises.
        Some(pool) => unsafe { pool.run(n, f, arg) },
        None if n > 0 => {
            // SAFETY: as the caller promises.
            unsafe { f(arg, 0, n) }
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    /// How often each index of a loop was visited.
    fn visits(pool: &Pool, n: usize) -> Vec<u32> {
        let seen: Vec<AtomicU32> = (0..n).map(|_| AtomicU32::new(0)).collect();
        pool.for_each(n, |range| {
            for i in range {
                seen[i].fetch_add(1, Relaxed);
            }
        });
        seen.into_iter().map(AtomicU32::into_inner).collect()
    }

    #[test]
    fn every_index_is_visited_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for n in (0..40).chain([100, 1000, 4099]) {
                assert_eq!(visits(&pool, n), vec![1; n], "{threads} threads, {n} indices");
            }
        }
    }

    #[test]
    fn shares_divide_the_work_evenly() {
        for threads in 1..9 {
            for n in (0..400).chain([1 << 40, i64::MAX as u64]) {
                let shares: Vec<Range<u64>> = (0..threads).map(|i| share_of(n, threads, i)).collect();
                assert_eq!((shares[0].start, shares.last().unwrap().end), (0, n));
                assert!(shares.windows(2).all(|s| s[0].end == s[1].start), "{n} by {threads}: {shares:?}");
                let lengths = shares.iter().map(|s| s.end - s.start);
                assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1, "{n} by {threads}: {shares:?}");
            }
        }
    }

    #[test]
    fn a_thread_has_the_same_share_of_every_loop() {
        let pool = Pool::new(2).unwrap();
        let owner = std::thread::current().id();
        for n in [8, 64, 640] {
            // Nobody helps while both threads are at their first range, which is half of a share.
            let arrived = AtomicUsize::new(0);
            let first = Mutex::new(vec![]);
            pool.for_each(n, |r| {
                if arrived.fetch_add(1, SeqCst) < 2 {
                    lock(&first).push((std::thread::current().id() == owner, r));
                }
                while arrived.load(SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
            let mut first = first.into_inner().unwrap();
            first.sort_by_key(|(_, r)| r.start);
            assert_eq!(first, [(true, 0..n / 4), (false, n / 2..n / 2 + n / 4)]);
        }
    }

    #[test]
    fn loops_in_close_succession_do_not_mix() {
        let pool = Pool::new(4).unwrap();
        for round in 0..20_000 {
            let n = 1 + round % 7;
            let sum = AtomicU64::new(0);
            pool.for_each(n, |r| {
                sum.fetch_add(r.map(|i| i as u64 + 1).sum(), Relaxed);
            });
            assert_eq!(sum.into_inner(), (n * (n + 1) / 2) as u64);
        }
    }

    #[test]
    fn workers_that_sleep_are_woken() {
        let pool = Pool::new(3).unwrap();
        while pool.shared.sleepers.load(SeqCst) < 2 {
            std::thread::yield_now();
        }
        // Every range waits until all three threads have one, so the loop ends only if all woke up.
        let arrived = AtomicUsize::new(0);
        pool.for_each(3, |r| {
            arrived.fetch_add(r.len(), SeqCst);
            while arrived.load(SeqCst) < 3 {
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn an_owner_waits_for_a_slow_worker() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..50 {
            let done = AtomicUsize::new(0);
            let here = std::thread::current().id();
            let started = AtomicUsize::new(0);
            pool.for_each(2, |r| {
                started.fetch_add(r.len(), SeqCst);
                while started.load(SeqCst) < 2 {
                    std::thread::yield_now();
                }
                if std::thread::current().id() != here {
                    // Long enough for the owner to fall asleep.
                    for _ in 0..3 * SPINS {
                        std::hint::spin_loop();
                    }
                    while !pool.shared.owner_sleeps.load(SeqCst) {
                        std::thread::yield_now();
                    }
                }
                done.fetch_add(r.len(), SeqCst);
            });
            assert_eq!(done.into_inner(), 2);
        }
    }

    #[test]
    fn nested_loops_run_inline() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        pool.for_each(10, |outer| {
            for _ in outer {
                let here = std::thread::current().id();
                pool.for_each(10, |inner| {
                    assert_eq!(std::thread::current().id(), here);
                    sum.fetch_add(inner.len(), Relaxed);
                });
            }
        });
        assert_eq!(sum.into_inner(), 100);
    }

    #[test]
    fn one_pool_serves_several_threads() {
        let pool = Pool::new(3).unwrap();
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for n in 0..500 {
                        assert_eq!(visits(&pool, n % 50), vec![1; n % 50]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = Pool::new(4).unwrap();
        for bad in [0, 7, 99] {
            let caught = catch_unwind(AssertUnwindSafe(|| pool.for_each(100, |r| assert!(!r.contains(&bad), "index {bad}"))));
            assert_eq!(caught.unwrap_err().downcast_ref::<String>().map(String::as_str), Some(format!("index {bad}").as_str()));
            assert_eq!(visits(&pool, 100), vec![1; 100]);
        }
    }

    #[test]
    fn dropping_ends_the_threads() {
        for threads in 1..6 {
            let pool = Pool::new(threads).unwrap();
            pool.for_each(threads, |_| {});
            let shared = Arc::downgrade(&pool.shared);
            drop(pool);
            assert_eq!(shared.strong_count(), 0);
        }
    }

    #[test]
    fn the_callback_accepts_null_and_empty_loops() {
        unsafe extern "C" fn count(arg: *mut c_void, begin: i64, end: i64) {
            // SAFETY: `arg` is the counter below.
            unsafe { &*arg.cast::<AtomicU64>() }.fetch_add((end - begin) as u64, Relaxed);
        }
        let sum = AtomicU64::new(0);
        let arg = (&raw const sum).cast_mut().cast();
        let pool = Pool::new(2).unwrap();
        let (f, user) = pool.callback();
        for (user, n) in [(std::ptr::null_mut(), 5), (user, 7), (user, 0), (user, -1), (std::ptr::null_mut(), -1)] {
            // SAFETY: the pool and the counter live, and `count` may be called from any thread.
            unsafe { f(user, n, count, arg) };
        }
        assert_eq!(sum.into_inner(), 12);
    }
}
