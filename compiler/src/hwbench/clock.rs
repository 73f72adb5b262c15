//! Timing: short runs, the best of several, on one or several threads at once.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long a run should take: long for the clock, short against interruptions.
const RUN: Duration = Duration::from_millis(4);

/// Runs, of which the best counts.
const RUNS: usize = 8;

/// The shortest time in seconds that a round takes when `threads` threads do rounds at once.
/// `work(thread, rounds)` does them.
pub fn seconds_per_round(threads: usize, work: &(dyn Fn(usize, i64) + Sync)) -> f64 {
    let mut rounds = 1;
    let mut time = once(threads, rounds, work);
    while time < RUN.as_secs_f64() / 2.0 && rounds < 1 << 40 {
        rounds *= if time < RUN.as_secs_f64() / 64.0 { 16 } else { 2 };
        time = once(threads, rounds, work);
    }
    (0..RUNS).map(|_| once(threads, rounds, work)).fold(time, f64::min) / rounds as f64
}

/// Seconds from when the first thread begins to when the last one ends; all begin together.
fn once(threads: usize, rounds: i64, work: &(dyn Fn(usize, i64) + Sync)) -> f64 {
    let ready = AtomicUsize::new(0);
    let run = |thread: usize| {
        ready.fetch_add(1, SeqCst);
        while ready.load(SeqCst) < threads {
            std::hint::spin_loop();
        }
        let begin = Instant::now();
        work(thread, rounds);
        (begin, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = std::thread::scope(|s| {
        let run = &run;
        let others: Vec<_> = (1..threads).map(|t| s.spawn(move || run(t))).collect();
        let own = run(0);
        others.into_iter().map(|t| t.join().expect("measured code does not panic")).chain([own]).collect()
    });
    let begin = times.iter().map(|t| t.0).min().expect("at least one thread");
    let end = times.iter().map(|t| t.1).max().expect("at least one thread");
    (end - begin).as_secs_f64()
}
