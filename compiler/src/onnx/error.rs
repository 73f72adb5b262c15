//! What can be wrong with a model: the file is bad, or it needs something that is not supported.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

/// Why a model could not be read or imported.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, is damaged, or contradicts itself or the options (exit code 1).
    #[error("{0}")]
    Invalid(Box<Diagnostic>),
    /// The model is well formed but uses what `tfc` does not support (exit code 3).
    #[error("{0}")]
    Unsupported(Box<CheckReport>),
}

/// One thing that is wrong, where it is, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// The file it concerns; empty for models that were built in memory.
    pub file: PathBuf,
    /// Where in the file: a node with its operator, a tensor, a byte offset. Empty when it is the file as a whole.
    pub place: String,
    /// What is wrong, with both sides of a disagreement.
    pub message: String,
    /// What to do; empty when the message says it.
    pub help: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match (self.file.as_os_str().is_empty(), self.place.is_empty()) {
            (true, true) => {}
            (true, false) => write!(f, "\n  at {}", self.place)?,
            (false, true) => write!(f, "\n  in {}", self.file.display())?,
            (false, false) => write!(f, "\n  in {}, {}", self.file.display(), self.place)?,
        }
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        Ok(())
    }
}

/// One kind of thing that is not supported, with the nodes that need it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Unsupported {
    /// ONNX operator, or what else is meant (`tensor`, `input`).
    pub operator: String,
    /// Operator domain; empty for the default one.
    pub domain: String,
    /// Why.
    pub reason: String,
    /// Names of the nodes (or values) concerned, in the order of the file.
    pub nodes: Vec<String>,
}

/// Everything in a model that is not supported; empty when it can be compiled.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// The file; empty for models that were built in memory.
    pub file: PathBuf,
    /// Number of nodes that were looked at, those of functions and subgraphs included.
    pub nodes: usize,
    /// Entries in the order in which they were met.
    pub unsupported: Vec<Unsupported>,
    /// What is odd but does no harm, each a sentence.
    pub warnings: Vec<String>,
}

impl CheckReport {
    /// Whether nothing stands against compiling the model.
    pub fn is_supported(&self) -> bool {
        self.unsupported.is_empty()
    }

    /// Adds a finding; findings of the same operator and reason share an entry.
    pub fn add(&mut self, domain: &str, operator: &str, reason: &str, node: &str) {
        let same = |u: &&mut Unsupported| u.operator == operator && u.domain == domain && u.reason == reason;
        match self.unsupported.iter_mut().find(same) {
            Some(u) => {
                if u.nodes.last().is_none_or(|n| n != node) {
                    u.nodes.push(node.into());
                }
            }
            None => self.unsupported.push(Unsupported {
                operator: operator.into(),
                domain: domain.into(),
                reason: reason.into(),
                nodes: vec![node.into()],
            }),
        }
    }
}

impl Unsupported {
    /// The first few nodes, and how many more there are; names of nodes deep inside functions and subgraphs without their middle.
    pub fn some_nodes(&self, most: usize) -> String {
        let mut text = self.nodes.iter().take(most).map(|n| format!("`{}`", shortened(n))).collect::<Vec<_>>().join(", ");
        if self.nodes.len() > most {
            let _ = write!(text, " and {} more", self.nodes.len() - most);
        }
        text
    }
}

/// A name of at most some hundred characters: of a longer one the beginning and the end.
fn shortened(name: &str) -> String {
    const KEPT: usize = 48;
    let count = name.chars().count();
    if count <= 2 * KEPT + 1 {
        return name.into();
    }
    name.chars().take(KEPT).chain(['…']).chain(name.chars().skip(count - KEPT)).collect()
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        let count: usize = self.unsupported.iter().map(|u| u.nodes.len()).sum();
        write!(f, "the model uses what is not supported: {count} {}", if count == 1 { "finding" } else { "findings" })?;
        if !self.file.as_os_str().is_empty() {
            write!(f, "\n  in {}", self.file.display())?;
        }
        for u in &self.unsupported {
            let dot = if u.domain.is_empty() { "" } else { "." };
            write!(f, "\n  {}{dot}{} x{}: {}", u.domain, u.operator, u.nodes.len(), u.reason)?;
            write!(f, "\n    nodes: {}", u.some_nodes(SHOWN))?;
        }
        Ok(())
    }
}

impl Error {
    /// The file is bad at `place`.
    pub fn invalid(place: impl Into<String>, message: impl Into<String>) -> Error {
        Error::Invalid(Box::new(Diagnostic { file: PathBuf::new(), place: place.into(), message: message.into(), help: String::new() }))
    }

    /// One thing is not supported.
    pub fn unsupported(operator: &str, node: &str, reason: impl Into<String>) -> Error {
        let mut report = CheckReport::default();
        report.add("", operator, &reason.into(), node);
        Error::Unsupported(Box::new(report))
    }

    /// The same error with advice.
    pub fn help(mut self, help: impl Into<String>) -> Error {
        if let Error::Invalid(d) = &mut self {
            d.help = help.into();
        }
        self
    }

    /// The same error with the file, unless it names one.
    pub fn in_file(mut self, file: &Path) -> Error {
        let slot = match &mut self {
            Error::Invalid(d) => &mut d.file,
            Error::Unsupported(r) => &mut r.file,
        };
        if slot.as_os_str().is_empty() {
            *slot = file.into();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_of_one_kind_are_collected() {
        let mut r = CheckReport::default();
        for n in ["a", "b", "b", "c", "d", "e", "f"] {
            r.add("ai.example", "Foo", "there is no importer for it", n);
        }
        r.add("", "Bar", "there is no importer for it", "g");
        let text = r.to_string();
        assert!(text.contains("7 findings") && text.contains("ai.example.Foo x6") && text.contains("and 2 more"), "{text}");
    }

    #[test]
    fn long_names_lose_their_middle() {
        let mut r = CheckReport::default();
        r.add("", "Foo", "it is deep", &format!("outermost/{}innermost", "f/".repeat(200)));
        let text = r.unsupported[0].some_nodes(1);
        assert!(text.len() < 110 && text.starts_with("`outermost/f/") && text.ends_with("f/innermost`") && text.contains('…'), "{text}");
    }
}
