//! Tests that cannot run on this machine say so, where everybody sees it.

use std::fmt::Display;
use std::io::Write;

/// Says that something is not tested, and why: a line `SKIPPED: …` on standard error. The macros that print are captured from tests
/// that pass; what is written to the stream itself is not.
pub fn skipped(why: impl Display) {
    // A closed stream is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
