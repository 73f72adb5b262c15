//! Profiles of runs, kernel by kernel.
//!
//! Steps that run the same code on the same sizes are one *row*: what 12 equal layers do appears
//! once, with 12 calls.

use crate::hwbench::machine::{Bound, Load, Machine};
use crate::kernel::work::Arithmetic;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tfc_runtime::expr::{Bindings, Expr};
use tfc_runtime::profile::Profile;
use tfc_runtime::{Dims, Model};

/// Steps with the same code and sizes.
#[derive(Clone, Debug)]
pub struct Row {
    /// The kernel's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Its operators.
    pub summary: String,
    /// The ONNX nodes of all steps.
    pub nodes: Vec<String>,
    /// Positions of the steps in the program.
    pub steps: Vec<usize>,
    /// What one step does.
    pub load: Load,
}

/// The rows of a model at these dimensions, in the order of their first steps.
pub fn rows(model: &Model, dims: &Dims) -> Vec<Row> {
    let symbols = model.symbols().iter().map(|s| s.name.clone());
    let bindings: Bindings = symbols.zip(dims.values().iter().copied()).collect();
    let number = |text: &str| Expr::parse(text).ok().and_then(|e| e.eval(&bindings)).unwrap_or(0);
    let mut rows: Vec<Row> = vec![];
    let mut known: BTreeMap<(String, [i64; 3]), usize> = BTreeMap::new();
    for (i, k) in model.manifest().kernels.iter().enumerate() {
        let sizes = [&k.operations, &k.traffic, &k.weight_traffic].map(|text| number(text));
        let at = *known.entry((k.name.clone(), sizes)).or_insert_with(|| {
            let [operations, bytes, weight_bytes] = sizes.map(|n| n as f64);
            let load = Load { operations, arithmetic: Arithmetic::from_name(&k.arithmetic), bytes, weight_bytes };
            rows.push(Row { name: k.name.clone(), kind: k.kind.clone(), summary: k.summary.clone(), nodes: vec![], steps: vec![], load });
            rows.len() - 1
        });
        rows[at].nodes.extend(k.nodes.iter().cloned());
        rows[at].steps.push(i);
    }
    rows
}

/// The middle of some numbers, the mean of the two in the middle if their count is even; 0 for none.
pub fn median(mut xs: Vec<f64>) -> f64 {
    xs.sort_by(f64::total_cmp);
    match xs.len() {
        0 => 0.0,
        n if n % 2 == 0 => (xs[n / 2 - 1] + xs[n / 2]) / 2.0,
        n => xs[n / 2],
    }
}

/// A row with its times, in seconds.
#[derive(Clone, Debug)]
pub struct Timed {
    /// The steps.
    pub row: Row,
    /// Of all its steps in one run; the median over the runs, step by step.
    pub seconds: f64,
    /// The share of the threads' time in it in which they worked, 0 to 1.
    pub busy: f64,
    /// The share of what the machine could do, 0 to 1, and what sets the limit.
    pub limit: Option<(f64, Bound)>,
}

impl Timed {
    /// Operations per second; `None` for what is no contraction.
    pub fn rate(&self) -> Option<f64> {
        (self.row.load.operations > 0.0).then(|| self.per_second(self.row.load.operations))
    }

    /// Bytes per second.
    pub fn bandwidth(&self) -> f64 {
        self.per_second(self.row.load.bytes)
    }

    fn per_second(&self, n: f64) -> f64 {
        if self.seconds > 0.0 { n * self.row.steps.len() as f64 / self.seconds } else { 0.0 }
    }
}

/// The profiles of several runs.
pub struct Summary {
    /// The rows, the longest first.
    pub rows: Vec<Timed>,
    /// Seconds of a whole run with the clock; the median.
    pub whole: f64,
    /// Seconds of a run outside of its kernels; the median.
    pub between: f64,
    /// The run whose whole time is nearest to the median.
    pub typical: Profile,
}

impl Summary {
    /// Summarizes the profiles of one model, at least one, on `threads` threads.
    pub fn new(model: &Model, dims: &Dims, mut profiles: Vec<Profile>, machine: &Machine) -> Summary {
        let weights = model.manifest().weights.as_ref().map_or(0, |w| w.data_bytes);
        let seconds = |step: usize| median(profiles.iter().map(|p| p.steps[step].time().as_secs_f64()).collect());
        let busy: Vec<Vec<f64>> = profiles.iter().map(busy).collect();
        let timed = |row: Row| {
            let total: f64 = row.steps.iter().map(|&s| seconds(s)).sum();
            let worked: f64 = row.steps.iter().map(|&s| median(busy.iter().map(|b| b[s]).collect())).sum();
            let shortest = machine.shortest(&row.load, model.cpu_variant(), weights).filter(|_| total > 0.0);
            let limit = shortest.map(|(t, bound)| (t * row.steps.len() as f64 / total, bound));
            let busy = if total > 0.0 { (worked / total / machine.threads as f64).min(1.0) } else { 1.0 };
            Timed { row, seconds: total, busy, limit }
        };
        let mut rows: Vec<Timed> = rows(model, dims).into_iter().map(timed).collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let whole = median(profiles.iter().map(|p| p.whole.as_secs_f64()).collect());
        let outside = |p: &Profile| p.whole.as_secs_f64() - p.steps.iter().map(|s| s.time().as_secs_f64()).sum::<f64>();
        let between = median(profiles.iter().map(outside).collect());
        let distance = |p: &Profile| (p.whole.as_secs_f64() - whole).abs();
        let nearest = (0..profiles.len()).min_by(|&a, &b| distance(&profiles[a]).total_cmp(&distance(&profiles[b]))).expect("a profile");
        let typical = profiles.swap_remove(nearest);
        Summary { rows, whole, between, typical }
    }

    /// Seconds of all kernels together.
    pub fn kernels(&self) -> f64 {
        self.rows.iter().map(|r| r.seconds).sum()
    }

    /// What is left of the whole: kernels that were slow in some runs make runs slow, but not medians of
    /// kernels. Small on a quiet machine; it may be negative.
    pub fn unsteady(&self) -> f64 {
        self.whole - self.kernels() - self.between
    }

    /// The summary for tools. `unprofiled` is the median of runs without the clock, in seconds.
    pub fn json(&self, unprofiled: f64) -> Value {
        let ms = |s: f64| s * 1e3;
        let row = |r: &Timed| {
            json!({
                "name": r.row.name,
                "kind": r.row.kind,
                "summary": r.row.summary,
                "nodes": r.row.nodes,
                "calls": r.row.steps.len(),
                "ms": ms(r.seconds),
                "share": r.seconds / self.whole,
                "operations": r.row.load.operations,
                "arithmetic": r.row.load.arithmetic.map(Arithmetic::name),
                "bytes": r.row.load.bytes,
                "gops": r.rate().map(|x| x / 1e9),
                "gbps": r.bandwidth() / 1e9,
                "busy": r.busy,
                "limit_share": r.limit.map(|l| l.0),
                "limit": r.limit.map(|l| l.1.name()),
            })
        };
        json!({
            "kernels": self.rows.iter().map(row).collect::<Vec<_>>(),
            "kernels_ms": ms(self.kernels()),
            "between_ms": ms(self.between),
            "unsteady_ms": ms(self.unsteady()),
            "whole_ms": ms(self.whole),
            "unprofiled_ms": ms(unprofiled),
        })
    }

    /// The summary for people.
    pub fn text(&self, unprofiled: f64) -> String {
        let ms = |s: f64| format!("{:.3}", s * 1e3);
        let percent = |x: f64| format!("{:.1}%", 100.0 * x);
        let giga = |x: f64| format!("{:.1}", x / 1e9);
        let mut cells = vec![["ms", "share", "calls", "GOP/s", "GB/s", "busy", "of the limit", "kernel", "ONNX nodes"].map(String::from)];
        for r in &self.rows {
            cells.push([
                ms(r.seconds),
                percent(r.seconds / self.whole),
                r.row.steps.len().to_string(),
                r.rate().map_or_else(String::new, giga),
                giga(r.bandwidth()),
                format!("{:.0}%", 100.0 * r.busy),
                r.limit.map_or_else(String::new, |(share, bound)| format!("{} {}", percent(share), bound.name())),
                r.row.name.clone(),
                nodes_text(&r.row.nodes),
            ]);
        }
        let mut line = |seconds: f64, what: String| {
            let mut row: [String; 9] = Default::default();
            row[0] = ms(seconds);
            row[1] = percent(seconds / self.whole);
            row[7] = what;
            cells.push(row);
        };
        line(self.kernels(), "all kernels".into());
        line(self.between, "between them: sizes, launches, the clock".into());
        line(self.unsteady(), "what whole runs take beyond these medians".into());
        line(self.whole, format!("the whole run; {} ms without the clock", ms(unprofiled)));
        aligned(&cells)
    }
}

/// Seconds that threads spent in the tasks of each step.
fn busy(profile: &Profile) -> Vec<f64> {
    let mut seconds = vec![0.0; profile.steps.len()];
    for p in &profile.parts {
        seconds[p.step] += (p.end - p.begin).as_secs_f64();
    }
    seconds
}

/// The first nodes and how many more there are.
pub fn nodes_text(nodes: &[String]) -> String {
    const SHOWN: usize = 2;
    let shown = nodes.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if nodes.len() > SHOWN { format!("{shown} and {} more", nodes.len() - SHOWN) } else { shown }
}

/// Columns: cells that begin like numbers are right-aligned, others left-aligned.
pub fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0));
    let numeric = |c: usize| {
        rows.iter().skip(1).all(|r| r[c].is_empty() || r[c].starts_with(|x: char| x.is_ascii_digit() || x == '-') && !r[c].contains(' '))
    };
    let right: [bool; N] = std::array::from_fn(numeric);
    let mut out = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(c, cell)| if right[c] { format!("{cell:>w$}", w = widths[c]) } else { format!("{cell:<w$}", w = widths[c]) })
            .collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A run in the format of Chrome's and Perfetto's trace viewers: one track per thread, on the first one
/// the run, in it the steps, and in those what the thread did of them.
pub fn chrome_trace(model: &Model, dims: &Dims, profile: &Profile) -> Value {
    let us = |t: Duration| t.as_nanos() as f64 / 1e3;
    let name = &model.manifest().name;
    let threads = profile.parts.iter().map(|p| p.thread + 1).max().unwrap_or(1);
    let mut events = vec![json!({ "ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": { "name": format!("tfc {name}") } })];
    for t in 0..threads {
        let title = if t == 0 { "caller".to_string() } else { format!("worker {t}") };
        events.push(json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": t, "args": { "name": title } }));
        events.push(json!({ "ph": "M", "name": "thread_sort_index", "pid": 1, "tid": t, "args": { "sort_index": t } }));
    }
    let complete = |name: &str, category: &str, thread: usize, begin: Duration, end: Duration, args: Value| {
        json!({
            "ph": "X", "name": name, "cat": category, "pid": 1, "tid": thread,
            "ts": us(begin), "dur": us(end) - us(begin), "args": args,
        })
    };
    let sizes: serde_json::Map<String, Value> =
        model.symbols().iter().zip(dims.values()).map(|(s, v)| (s.name.clone(), (*v).into())).collect();
    let about = json!({ "cpu_variant": model.cpu_variant(), "dims": sizes });
    events.push(complete(name, "run", 0, Duration::ZERO, profile.whole, about));
    let kernels = &model.manifest().kernels;
    let mut loads = vec![None; kernels.len()];
    for row in rows(model, dims) {
        row.steps.iter().for_each(|&s| loads[s] = Some(row.load));
    }
    let mut parts = profile.parts.iter().peekable();
    for (i, (k, step)) in kernels.iter().zip(&profile.steps).enumerate() {
        let load = loads[i].expect("every step is in a row");
        let args = json!({
            "step": i, "kind": k.kind, "summary": k.summary, "nodes": k.nodes, "tasks": step.tasks, "parallel": step.parallel,
            "operations": load.operations, "bytes": load.bytes,
        });
        events.push(complete(&k.name, "kernel", 0, step.begin, step.end, args));
        while let Some(p) = parts.next_if(|p| p.step == i) {
            let args = json!({ "step": i, "first_task": p.tasks.0, "last_task": p.tasks.1 - 1 });
            events.push(complete(&k.name, "tasks", p.thread, p.begin, p.end, args));
        }
    }
    json!({ "displayTimeUnit": "ms", "traceEvents": events })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_numbers() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn numbers_are_right_aligned() {
        let rows = [["ms", "what"], ["1.5", "a b"], ["10.25", ""]].map(|r| r.map(String::from));
        assert_eq!(aligned(&rows), "   ms  what\n  1.5  a b\n10.25\n");
    }
}
