//! Looking at the graph between passes: printing, dumping, stopping, and statistics.

use super::console::{Console, bytes};
use super::ledger;
use super::options::{Debugging, StatsFormat};
use serde_json::{Value, json};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};
use tfc::diag::{Diagnostic, Result, table};
use tfc::driver;
use tfc::files::Pending;
use tfc::kernel::Program;
use tfc_ir::graph::Graph;
use tfc_passes::{Pass, Ran, Stats};

/// What happens to the graph besides being compiled.
pub struct Trace<'a> {
    options: &'a Debugging,
    console: &'a Console,
    /// Rows of the reports: the name, how long it took, what it did, and how many nodes there are then.
    passes: Vec<(&'static str, Duration, Stats, usize)>,
    steps: Vec<(&'static str, Duration)>,
    imported_nodes: usize,
    stopped: bool,
    since: Instant,
}

impl<'a> Trace<'a> {
    /// A trace as the options say, of this pipeline.
    ///
    /// # Errors
    /// When a pass to stop after does not run.
    pub fn new(options: &'a Debugging, pipeline: &[&'static Pass], console: &'a Console) -> Result<Trace<'a>> {
        if let Some(point) = &options.stop_after
            && !point.is(0, "import")
            && !pipeline.iter().enumerate().any(|(i, p)| point.is(i + 1, p.name))
        {
            let names: Vec<String> = pipeline.iter().enumerate().map(|(i, p)| format!("{:02}-{}", i + 1, p.name)).collect();
            return Err(Diagnostic::usage(format!("--stop-after {point}: this pass does not run"))
                .note(format!("the passes that run: {}", names.join(" "))));
        }
        Ok(Trace { options, console, passes: vec![], steps: vec![], imported_nodes: 0, stopped: false, since: Instant::now() })
    }

    /// The step since the last call (or the begin) has ended.
    pub fn step(&mut self, name: &'static str) {
        self.steps.push((name, self.since.elapsed()));
        self.since = Instant::now();
    }

    /// Whether `--stop-after` has ended the pipeline.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The model has been imported.
    ///
    /// # Errors
    /// When a dump cannot be written.
    pub fn imported(&mut self, graph: &Graph) -> Result<()> {
        self.imported_nodes = graph.nodes().len();
        self.look(0, "import", graph)
    }

    /// A pass has run: the observer of [`driver::optimize`].
    ///
    /// # Errors
    /// When a dump cannot be written.
    pub fn ran(&mut self, ran: &Ran) -> Result<ControlFlow<()>> {
        self.passes.push((ran.pass.name, ran.time, ran.stats.clone(), ran.graph.nodes().len()));
        self.look(ran.index + 1, ran.pass.name, ran.graph)?;
        Ok(if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn look(&mut self, number: usize, name: &str, graph: &Graph) -> Result<()> {
        let o = self.options;
        if o.print_ir_after_all || o.print_ir_after.iter().any(|p| p.is(number, name)) {
            self.console.report(&format!("// after {number:02}-{name}\n{graph}"));
        }
        if let Some(folder) = &o.dump_ir {
            dump(folder, &format!("{number:02}-{name}.tir"), graph)?;
        }
        self.stopped = o.stop_after.as_ref().is_some_and(|p| p.is(number, name));
        Ok(())
    }

    /// Prints the reports that the options ask for.
    ///
    /// # Errors
    /// When stdout cannot be written.
    pub fn finish(&self, program: Option<&Program>) -> Result<()> {
        let o = self.options;
        if o.time_passes {
            self.console.report(&self.times());
        }
        match o.stats {
            Some(StatsFormat::Text) => self.console.report(&self.stats_text(program)),
            Some(StatsFormat::Json) => self.console.result(&format!("{:#}\n", self.stats_json(program)))?,
            None => {}
        }
        if let Some(program) = program.filter(|_| o.opt_report) {
            self.console.report(&opt_report(program));
        }
        Ok(())
    }

    fn times(&self) -> String {
        let ms = |t: &Duration| format!("{:10.3} ms", t.as_secs_f64() * 1e3);
        let mut rows: Vec<[String; 2]> = vec![];
        for (name, time) in &self.steps {
            rows.push([ms(time), (*name).into()]);
            if *name == "passes" {
                for (i, (name, time, stats, _)) in self.passes.iter().enumerate() {
                    rows.push([ms(time), format!("  {:02}-{name}", i + 1)]);
                    rows.extend(stats.times.iter().map(|(part, time)| [ms(time), format!("    {part}")]));
                }
            }
        }
        rows.push([ms(&self.steps.iter().map(|(_, t)| *t).sum()), "total".into()]);
        table(&rows)
    }

    fn stats_text(&self, program: Option<&Program>) -> String {
        let mut rows = vec![["00-import".to_string(), format!("{} nodes", self.imported_nodes), String::new()]];
        for (i, (name, _, stats, nodes)) in self.passes.iter().enumerate() {
            rows.push([format!("{:02}-{name}", i + 1), format!("{nodes} nodes"), stats.to_string()]);
        }
        if let Some(p) = program {
            rows.push(["schedule".into(), format!("{} kernels", p.steps.len()), sizes(p)]);
        }
        table(&rows)
    }

    fn stats_json(&self, program: Option<&Program>) -> Value {
        let pass = |(i, (name, _, stats, nodes)): (usize, &(&str, Duration, Stats, usize))| {
            let counters: serde_json::Map<String, Value> = stats.iter().map(|(k, n)| (k.to_string(), n.into())).collect();
            json!({ "number": i + 1, "name": name, "nodes": nodes, "counters": counters })
        };
        json!({
            "imported_nodes": self.imported_nodes,
            "passes": self.passes.iter().enumerate().map(pass).collect::<Vec<_>>(),
            "program": program.map(|p| json!({
                "launches": p.steps.len(),
                "kernels": p.kernels.len(),
                "weight_bytes": p.weight_bytes(),
                "arena_slots": p.slots.len(),
            })),
        })
    }
}

fn sizes(p: &Program) -> String {
    format!("{} different ones, weights {}, {} arena slots", p.kernels.len(), bytes(p.weight_bytes()), p.slots.len())
}

fn dump(folder: &Path, name: &str, graph: &Graph) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Diagnostic::io("create", folder, &e))?;
    let mut out = Pending::default();
    driver::write_tir(graph, &folder.join(name), &mut out)?;
    out.commit()?;
    Ok(())
}

/// Every launch with its kind, its operators and the ONNX nodes.
fn opt_report(program: &Program) -> String {
    [kernels(program), ledger::whole(program)].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("\n")
}

fn kernels(program: &Program) -> String {
    let mut rows = vec![["#", "kind", "operators", "ONNX nodes"].map(String::from)];
    for (i, s) in program.steps.iter().enumerate() {
        let nodes: Vec<&str> = s.loc.names().collect();
        rows.push([i.to_string(), program.kernels[s.kernel].body.kind().into(), s.label.clone(), nodes.join(", ")]);
    }
    table(&rows)
}
