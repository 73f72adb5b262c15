//! Errors as users see them: one format for everything that can go wrong.
//!
//! ```text
//! error: what is wrong
//!   --> where: a file, a node, a byte offset
//!   = both sides of a disagreement, or what follows from it
//!   help: what to do
//! ```

use crate::artifact::ArtifactError;
use crate::emit::jit::JitError;
use crate::emit::module::EmitError;
use crate::onnx;
use crate::schedule::ScheduleError;
use std::fmt::{self, Write as _};
use std::io;
use std::path::Path;
use tfc_ir::ops::EvalError;
use tfc_ir::verify::VerifyError;
use tfc_passes::PassError;

/// What kind of failure it is: the exit code of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The input is bad, or an operation failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The model uses, or the user wants, something that is not supported.
    Unsupported = 3,
    /// An accuracy budget was missed.
    Accuracy = 4,
}

/// A failure with everything that is said about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// The kind of failure.
    pub exit: Exit,
    /// What is wrong, in one sentence.
    pub what: String,
    /// Where; may be empty.
    pub places: Vec<String>,
    /// Both sides of a disagreement, lists, consequences. A note may have several lines.
    pub notes: Vec<String>,
    /// What to do.
    pub help: Vec<String>,
}

/// The result of everything that a user can make fail.
pub type Result<T, E = Box<Diagnostic>> = std::result::Result<T, E>;

impl Diagnostic {
    /// A failure of the kind `exit`.
    pub fn new(exit: Exit, what: impl Into<String>) -> Box<Diagnostic> {
        Box::new(Diagnostic { exit, what: what.into(), places: vec![], notes: vec![], help: vec![] })
    }

    /// The input is bad, or an operation failed.
    pub fn failed(what: impl Into<String>) -> Box<Diagnostic> {
        Diagnostic::new(Exit::Failed, what)
    }

    /// The command line is wrong.
    pub fn usage(what: impl Into<String>) -> Box<Diagnostic> {
        Diagnostic::new(Exit::Usage, what)
    }

    /// Something is not supported.
    pub fn unsupported(what: impl Into<String>) -> Box<Diagnostic> {
        Diagnostic::new(Exit::Unsupported, what)
    }

    /// An operation on a file failed.
    pub fn io(action: &str, path: &Path, error: &io::Error) -> Box<Diagnostic> {
        Diagnostic::failed(format!("cannot {action} `{}`: {error}", path.display()))
    }

    /// A fault of the compiler and not of its input.
    pub fn bug(what: impl Into<String>) -> Box<Diagnostic> {
        Diagnostic::failed(what)
            .note("this is a bug in tfc, not in the model")
            .help("to make a reproducer, run the same command with --verify-each --dump-ir DIR; the last file in DIR shows the fault, and `tfc compile` accepts it")
    }

    /// The same with a place.
    #[must_use]
    pub fn at(mut self: Box<Self>, place: impl Into<String>) -> Box<Diagnostic> {
        let place = place.into();
        if !place.is_empty() {
            self.places.push(place);
        }
        self
    }

    /// The same with a note.
    #[must_use]
    pub fn note(mut self: Box<Self>, note: impl Into<String>) -> Box<Diagnostic> {
        self.notes.push(note.into());
        self
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self: Box<Self>, help: impl Into<String>) -> Box<Diagnostic> {
        let help = help.into();
        if !help.is_empty() {
            self.help.push(help);
        }
        self
    }

    /// Everything in plain lines, for a message of which it becomes a part.
    pub fn text(&self) -> String {
        let rest = self.places.iter().chain(&self.notes).chain(&self.help);
        std::iter::once(&self.what).chain(rest).cloned().collect::<Vec<_>>().join("\n")
    }

    /// The object that `--json` prints: under `error` the exit code (`code`), one sentence (`message`), and the lists `places`,
    /// `notes` and `help`.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({ "error": {
            "code": self.exit as u8,
            "message": self.what,
            "places": self.places,
            "notes": self.notes,
            "help": self.help,
        } })
    }

    /// The text for a terminal, in colours if `color`. Ends with a line break.
    pub fn render(&self, color: bool) -> String {
        let paint = |style: &'static str, text: &str| if color { format!("\x1b[{style}m{text}\x1b[0m") } else { text.into() };
        let mut out = format!("{} {}\n", paint("1;31", "error:"), paint("1", &indented(&self.what, 7)));
        for place in &self.places {
            let _ = writeln!(out, "  {} {}", paint("1;34", "-->"), indented(place, 6));
        }
        for note in &self.notes {
            let _ = writeln!(out, "  {} {}", paint("1;34", "="), indented(note, 4));
        }
        for help in &self.help {
            let _ = writeln!(out, "  {} {}", paint("1;32", "help:"), indented(help, 8));
        }
        out
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Diagnostic {}

/// Continuation lines begin where the first one does.
fn indented(text: &str, by: usize) -> String {
    text.trim_end().replace('\n', &format!("\n{}", " ".repeat(by)))
}

/// Names in backquotes, separated by commas; `nothing` if there are none.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("`{n}`")).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

/// Columns padded to their widest cell; the last one is not padded.
pub fn table<R: AsRef<[String]>>(rows: &[R]) -> String {
    let columns = rows.first().map_or(0, |r| r.as_ref().len());
    let width = |c: usize| rows.iter().map(|r| r.as_ref()[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (c, cell) in row.as_ref().iter().enumerate() {
            if c + 1 == columns {
                let _ = writeln!(out, "{cell}");
            } else {
                let _ = write!(out, "{cell:<width$}  ", width = widths[c]);
            }
        }
    }
    out
}

/// The unsupported parts of a model as a table: operator, count, reason, nodes.
pub fn unsupported_table(report: &onnx::CheckReport) -> String {
    const SHOWN: usize = 3;
    let mut rows = vec![["operator", "count", "reason", "nodes"].map(String::from)];
    for u in &report.unsupported {
        let operator = if u.domain.is_empty() { u.operator.clone() } else { format!("{}.{}", u.domain, u.operator) };
        let nodes = u.some_nodes(SHOWN);
        rows.push([operator, u.nodes.len().to_string(), u.reason.clone(), nodes]);
    }
    table(&rows)
}

impl From<onnx::Error> for Box<Diagnostic> {
    fn from(e: onnx::Error) -> Self {
        match e {
            onnx::Error::Invalid(d) => {
                let file = if d.file.as_os_str().is_empty() { String::new() } else { format!("`{}`", d.file.display()) };
                Diagnostic::failed(d.message.clone()).at(file).at(d.place.clone()).help(d.help.clone())
            }
            onnx::Error::Unsupported(r) => {
                let d = Diagnostic::unsupported("the model uses what is not supported");
                let d = if r.file.as_os_str().is_empty() { d } else { d.at(format!("`{}`", r.file.display())) };
                d.note(unsupported_table(&r))
            }
        }
    }
}

impl From<PassError> for Box<Diagnostic> {
    fn from(e: PassError) -> Self {
        match e {
            PassError::Invalid { .. } => Diagnostic::bug(e.to_string()),
            PassError::Calibration(e) => Diagnostic::new(if e.code == 3 { Exit::Unsupported } else { Exit::Failed }, e.message),
        }
    }
}

impl From<ScheduleError> for Box<Diagnostic> {
    fn from(e: ScheduleError) -> Self {
        let place = match e.loc.names().len() {
            0 => format!("operator `{}`", e.op),
            _ => format!("operator `{}`, from {}", e.op, list(e.loc.names())),
        };
        Diagnostic::unsupported(format!("there is no kernel for this operator: {}", e.message)).at(place)
    }
}

impl From<EmitError> for Box<Diagnostic> {
    fn from(e: EmitError) -> Self {
        Diagnostic::bug(e.to_string())
    }
}

impl From<ArtifactError> for Box<Diagnostic> {
    fn from(e: ArtifactError) -> Self {
        match e {
            ArtifactError::Emit(e) => e.into(),
            ArtifactError::Internal(what) => Diagnostic::bug(what),
            ArtifactError::Target { .. } => Diagnostic::unsupported(e.to_string()),
            ArtifactError::Io { action, path, source } => Diagnostic::io(action, &path, &source),
            ArtifactError::Compiler { command, output } => Diagnostic::failed("the C compiler failed").note(command).note(output),
            ArtifactError::Occupied { .. }
            | ArtifactError::OtherModel { .. }
            | ArtifactError::NoFolder { .. }
            | ArtifactError::OtherHeader { .. }
            | ArtifactError::NoCompiler { .. } => Diagnostic::failed(e.to_string()),
        }
    }
}

impl From<JitError> for Box<Diagnostic> {
    fn from(e: JitError) -> Self {
        match e {
            JitError::Emit(e) => e.into(),
            JitError::Runtime(e) => e.into(),
            JitError::Unsupported(_) => Diagnostic::unsupported(e.to_string()),
            JitError::Memory(_) => Diagnostic::failed(e.to_string()),
        }
    }
}

impl From<tfc_runtime::Error> for Box<Diagnostic> {
    fn from(e: tfc_runtime::Error) -> Self {
        let text = e.to_string();
        let d = Diagnostic::failed(text);
        match e {
            tfc_runtime::Error::Dims(e) if matches!(*e, tfc_runtime::solve::DimsError::Undetermined { .. }) => {
                d.help("give shapes of inputs or values of dimensions, for example --shape input_ids=1x128 or --dim seq=128")
            }
            _ => d,
        }
    }
}

impl From<EvalError> for Box<Diagnostic> {
    fn from(e: EvalError) -> Self {
        Diagnostic::failed(format!("the interpreter stopped: {e}"))
    }
}

/// The verifier refuses a graph that `made_by` made: a pass, or `None` for the importer.
pub fn verifier(errors: &[VerifyError], made_by: &str) -> Box<Diagnostic> {
    const SHOWN: usize = 8;
    let mut d = Diagnostic::bug(format!("the graph is not valid after {made_by}"));
    let mut lines: Vec<String> = errors.iter().take(SHOWN).map(ToString::to_string).collect();
    if errors.len() > SHOWN {
        lines.push(format!("and {} more", errors.len() - SHOWN));
    }
    d.notes.insert(0, lines.join("\n"));
    d
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_its_mark() {
        let d = Diagnostic::failed("input `x` is wrong").at("`in.npz`").at("").note("expected f32[2]\ngot f64[2]").help("convert it");
        assert_eq!(d.render(false), "error: input `x` is wrong\n  --> `in.npz`\n  = expected f32[2]\n    got f64[2]\n  help: convert it\n");
        assert!(d.render(true).starts_with("\x1b[1;31merror:\x1b[0m"));
    }

    #[test]
    fn what_is_unsupported_is_a_table() {
        let mut r = onnx::CheckReport::default();
        for n in ["a", "b", "c", "d"] {
            r.add("ai.example", "Foo", "there is no importer", n);
        }
        r.add("", "If", "the condition is not known", "e");
        let d: Box<Diagnostic> = onnx::Error::Unsupported(Box::new(r)).into();
        assert_eq!(d.exit, Exit::Unsupported);
        let text = d.to_string();
        assert!(text.contains("operator        count  reason"), "{text}");
        assert!(text.contains("ai.example.Foo  4      there is no importer        `a`, `b`, `c` and 1 more"), "{text}");
        assert!(text.contains("If              1      the condition is not known  `e`"), "{text}");
    }
}
