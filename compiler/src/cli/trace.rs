//! Looking at the graph between passes: printing, dumping, stopping, and statistics.

use super::console::{Console, bytes};
use super::ledger;
use super::options::{Debugging, StatsFormat};
use serde_json::{Value, json};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tfc::diag::{Diagnostic, Result, table};
use tfc::driver::SHARED_CONSTANTS;
use tfc::files::Pending;
use tfc::kernel::Program;
use tfc::onnx::map_file;
use tfc::scratch::undisturbed;
use tfc_ir::graph::Graph;
use tfc_ir::text::{Constants, write_sharing};
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
    dumps: Option<Dumps>,
}

impl<'a> Trace<'a> {
    /// A trace as the options say, of this pipeline.
    ///
    /// # Errors
    /// When a pass to stop after does not run; when something is where dumps would go.
    pub fn new(options: &'a Debugging, pipeline: &[&'static Pass], console: &'a Console) -> Result<Trace<'a>> {
        if let Some(point) = &options.stop_after
            && !point.is(0, "import")
            && !pipeline.iter().enumerate().any(|(i, p)| point.is(i + 1, p.name))
        {
            let names: Vec<String> = pipeline.iter().enumerate().map(|(i, p)| format!("{:02}-{}", i + 1, p.name)).collect();
            return Err(Diagnostic::usage(format!("--stop-after {point}: this pass does not run"))
                .note(format!("the passes that run: {}", names.join(" "))));
        }
        let dumps = options.dump_ir.as_deref().map(Dumps::new).transpose()?;
        Ok(Trace { options, console, passes: vec![], steps: vec![], imported_nodes: 0, stopped: false, since: Instant::now(), dumps })
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

    /// A pass has run: the observer of [`tfc::driver::optimize`].
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
        if let Some(dumps) = &mut self.dumps {
            dumps.add(&format!("{number:02}-{name}.tir"), graph)?;
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

/// Graphs in a folder, with one file of constants for all: what one has of another, or of an earlier compilation, is not
/// written again.
struct Dumps {
    folder: PathBuf,
    /// Whether the folder was not there.
    made: bool,
    /// The file of constants, and where it is.
    file: File,
    path: PathBuf,
    constants: Constants<'static>,
}

impl Dumps {
    /// Dumps into a folder, which is made if it is not there.
    ///
    /// # Errors
    /// When the folder or the file of constants cannot be written, something else has its name, or another process writes it.
    fn new(folder: &Path) -> Result<Dumps> {
        let made = !folder.exists();
        fs::create_dir_all(folder).map_err(|e| Diagnostic::io("create", folder, &e))?;
        let path = folder.join(SHARED_CONSTANTS);
        let failed = |e: io::Error| Diagnostic::io("write", &path, &e);
        if path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let fresh = !path.exists();
        let file = File::options().read(true).append(true).create(true).open(&path).map_err(failed)?;
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(Diagnostic::failed(format!("cannot write `{}`: another process writes dumps into this folder", path.display())));
        }
        let out = file.try_clone().map_err(failed)?;
        let earlier = if fresh || fs::metadata(&path).is_ok_and(|m| m.len() == 0) { Default::default() } else { map_file(&path)? };
        let constants = Constants::after(&earlier, out)
            .map_err(|e| Diagnostic::failed(format!("cannot write `{}`, which is no file of constants: {e}", path.display())))?;
        drop(earlier);
        // A process that was killed may have left a part of a record.
        file.set_len(constants.bytes()).map_err(failed)?;
        Ok(Dumps { folder: folder.into(), made, file, path, constants })
    }

    /// Writes a graph: its constants first, so that a text that is there is complete. No handled signal comes in between.
    ///
    /// # Errors
    /// When the file system refuses; then the file of constants is as it was.
    fn add(&mut self, name: &str, graph: &Graph) -> Result<()> {
        let (before, mut text) = (self.constants.bytes(), vec![]);
        let written = undisturbed(|| write_sharing(graph, &mut text, &mut self.constants));
        let mut out = Pending::default();
        let written = written.map_err(|e| Diagnostic::io("write", &self.path, &e));
        let written = written.and_then(|()| out.write(&self.folder.join(name), |w| w.write_all(&text))).and_then(|()| out.commit());
        if let Err(e) = written {
            // The first error is the one to tell.
            let _ = self.file.set_len(before);
            return Err(e);
        }
        Ok(())
    }
}

impl Drop for Dumps {
    fn drop(&mut self) {
        // Graphs without large constants need no file, and what failed leaves nothing.
        if self.file.metadata().is_ok_and(|m| m.len() == 0) {
            let _ = fs::remove_file(&self.path);
        }
        if self.made {
            // Not if there is something in it.
            let _ = fs::remove_dir(&self.folder);
        }
    }
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
