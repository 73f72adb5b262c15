//! Timing: short runs, the best of several, on one or several threads at once.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long a run should take: long for the clock, short against interruptions.
const RUN: Duration = Duration::from_millis(2);

/// Runs, of which the best counts.
const RUNS: usize = 16;

/// The time in seconds that a round takes when `threads` threads do rounds at once: the shortest of
/// several runs for each thread, and of these the longest. `work(thread, rounds)` does them.
pub fn seconds_per_round(threads: usize, work: &(dyn Fn(usize, i64) + Sync)) -> f64 {
    // Alone, and the best of a few: an interruption must not pass for a long round.
    let shortest = |rounds: i64| (0..3).map(|_| run(|| work(0, rounds))).fold(f64::MAX, f64::min);
    let mut rounds = 1;
    let mut time = shortest(rounds);
    while time < RUN.as_secs_f64() / 2.0 && rounds < 1 << 40 {
        rounds *= if time < RUN.as_secs_f64() / 64.0 { 16 } else { 2 };
        time = shortest(rounds);
    }
    let mut best = vec![f64::MAX; threads];
    for _ in 0..RUNS {
        for (best, time) in best.iter_mut().zip(together(threads, rounds, work)) {
            *best = best.min(time);
        }
    }
    best.into_iter().fold(0.0, f64::max) / rounds as f64
}

/// Seconds of each thread's rounds; all begin together.
fn together(threads: usize, rounds: i64, work: &(dyn Fn(usize, i64) + Sync)) -> Vec<f64> {
    let ready = AtomicUsize::new(0);
    let one = &|thread: usize| {
        ready.fetch_add(1, SeqCst);
        while ready.load(SeqCst) < threads {
            std::thread::yield_now();
        }
        run(|| work(thread, rounds))
    };
    std::thread::scope(|s| {
        let others: Vec<_> = (1..threads).map(|t| s.spawn(move || one(t))).collect();
        let own = one(0);
        [own].into_iter().chain(others.into_iter().map(|t| t.join().expect("measured code does not panic"))).collect()
    })
}

fn run(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_secs_f64()
}
