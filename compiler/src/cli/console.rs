//! What is printed where: results on stdout, everything for people on stderr.

use super::options::Color;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex};
use tfc::calibration::{Progress, Quiet};
use tfc::diag::{Diagnostic, Result};

/// The two streams with the user's wishes about them.
pub struct Console {
    color: bool,
    verbosity: u8,
    quiet: bool,
    json: bool,
}

impl Console {
    /// `NO_COLOR` and whether stderr is a terminal decide where `color` does not.
    pub fn new(color: Color, verbosity: u8, quiet: bool) -> Console {
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && io::stderr().is_terminal(),
        };
        Console { color, verbosity, quiet, json: false }
    }

    /// The same with failures as JSON if `json`.
    pub fn with_json(self, json: bool) -> Console {
        Console { json, ..self }
    }

    /// Prints a result. Nobody who reads is not an error.
    pub fn result(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Diagnostic::failed(format!("cannot write to standard output: {e}"))),
            _ => Ok(()),
        }
    }

    /// Prints what the user asked for besides the result.
    pub fn report(&self, text: &str) {
        let mut out = io::stderr().lock();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        // There is nowhere to say that stderr is gone.
        let _ = write!(out, "{text}{end}");
    }

    /// Says what begins: step `step` of `steps`.
    pub fn progress(&self, step: usize, steps: usize, what: &str) {
        if !self.quiet {
            let mark = format!("[{step}/{steps}]");
            self.report(&if self.color { format!("\x1b[1;36m{mark}\x1b[0m {what}") } else { format!("{mark} {what}") });
        }
    }

    /// Says something unless the user wants quiet.
    pub fn info(&self, what: &str) {
        if !self.quiet && !what.is_empty() {
            self.report(what);
        }
    }

    /// Says what is odd in a model, a few of the same kind at most, unless the user wants quiet.
    pub fn warnings(&self, warnings: &[String]) {
        const SHOWN: usize = 8;
        for w in warnings.iter().take(SHOWN) {
            let mark = if self.color { "\x1b[1;33mwarning:\x1b[0m" } else { "warning:" };
            self.info(&format!("{mark} {w}"));
        }
        if warnings.len() > SHOWN {
            self.info(&format!("and {} more warnings", warnings.len() - SHOWN));
        }
    }

    /// Says what a user should know about the results, unless the user wants quiet.
    pub fn notes(&self, notes: &[String]) {
        notes.iter().for_each(|note| self.info(&format!("note: {note}")));
    }

    /// Says something if the user wants more.
    pub fn detail(&self, what: &str) {
        if self.verbosity > 0 && !self.quiet {
            self.report(what);
        }
    }

    /// Prints a failure: a text, or as JSON in one line.
    pub fn error(&self, d: &Diagnostic) {
        self.report(&if self.json { d.json().to_string() } else { d.render(self.color) });
    }
}

impl Console {
    /// Says how far a long evaluation is: a bar on a terminal, lines elsewhere.
    pub fn samples(&self) -> Arc<dyn Progress> {
        match () {
            () if self.quiet => Arc::new(Quiet),
            () if io::stderr().is_terminal() => Arc::new(Bar(Mutex::new(None))),
            () => Arc::new(Lines),
        }
    }
}

/// A bar, which goes away at its end.
struct Bar(Mutex<Option<ProgressBar>>);

impl Progress for Bar {
    fn at(&self, what: &str, done: usize, total: usize) {
        let mut bar = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if done == 0 {
            let style = ProgressStyle::with_template("      {msg} [{bar:32}] {pos}/{len}").expect("a template");
            let new = ProgressBar::new(total as u64).with_style(style).with_message(what.to_string());
            new.tick();
            *bar = Some(new);
        } else if let Some(bar) = &*bar {
            bar.set_position(done as u64);
            if done == total {
                bar.finish_and_clear();
            }
        }
    }
}

/// A line at the begin of each evaluation.
struct Lines;

impl Progress for Lines {
    fn at(&self, what: &str, done: usize, total: usize) {
        if done == 0 {
            // There is nowhere to say that stderr is gone.
            let _ = writeln!(io::stderr().lock(), "      {what}: {total}");
        }
    }
}

/// Bytes in the unit that suits them.
pub fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}
