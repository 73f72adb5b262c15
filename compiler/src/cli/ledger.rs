//! What quantization did to every product and attention, as tables for people.

use super::console::bytes;
use tfc::diag::table;
use tfc::kernel::Program;
use tfc_passes::quantize::activations::Range;
use tfc_passes::reparameterize::Method;
use tfc_passes::{LedgerEntry, QuantSpec};

/// Every entry, with the number of the launch that multiplies.
pub fn whole(program: &Program) -> String {
    if program.ledger.is_empty() {
        return String::new();
    }
    let all: Vec<&LedgerEntry> = program.ledger.iter().collect();
    rows(&all, |e| program.multiplies(&e.loc).map_or(String::new(), |launch| launch.to_string()))
}

/// How many layers the short table shows.
const WORST: usize = 8;

/// How products are computed, and those with the largest errors; nothing without calibration data.
pub fn short(ledger: &[LedgerEntry]) -> String {
    if ledger.iter().all(|e| e.total_error.is_none()) {
        return String::new();
    }
    let mut schemes: Vec<(String, usize)> = vec![];
    for e in ledger {
        let scheme = e.spec.to_string();
        match schemes.iter_mut().find(|(s, _)| *s == scheme) {
            Some((_, n)) => *n += 1,
            None => schemes.push((scheme, 1)),
        }
    }
    let folded = ledger.iter().filter(|e| e.fold.as_ref().is_some_and(|f| f.method != Method::None)).count();
    let counts: Vec<String> = schemes.iter().map(|(scheme, n)| format!("{n} {scheme}")).collect();
    let mut worst: Vec<&LedgerEntry> = ledger.iter().filter(|e| e.spec != QuantSpec::F32 && e.total_error.is_some()).collect();
    let key = |e: &LedgerEntry| e.share.or(e.total_error).unwrap_or(0.0);
    worst.sort_by(|a, b| key(b).total_cmp(&key(a)));
    let shown = worst.len().min(WORST);
    worst.truncate(shown);
    format!(
        "{} products and attentions: {}; {folded} of them with operands that were mapped into their weights; the largest errors:\n{}",
        ledger.len(),
        counts.join(", "),
        rows(&worst, |_| String::new())
    )
}

/// The columns that say something of one of the entries. `launch` names what computes one.
fn rows(entries: &[&LedgerEntry], launch: impl Fn(&LedgerEntry) -> String) -> String {
    let has = |f: &dyn Fn(&LedgerEntry) -> bool| entries.iter().any(|e| f(e));
    let columns: Vec<(&str, Column)> = vec![
        ("scheme", &|e| e.spec.to_string()),
        ("before", &|e| size(e.source_bytes)),
        ("after", &|e| size(e.packed_bytes)),
        ("operand", &operand),
        ("outliers", &|e| e.fold.as_ref().map_or(String::new(), |f| f.outliers.to_string())),
        ("fold", &fold),
        ("of it alone", &|e| {
            e.fold.as_ref().filter(|f| f.method != Method::None).map_or(String::new(), |f| format!("{:.0e}", f.map_error))
        }),
        ("weight error", &|e| percent(e.weight_error)),
        ("operand error", &|e| percent(e.operand.as_ref().map(|r| r.error))),
        ("result error", &|e| percent(e.total_error)),
        ("share", &|e| percent(e.share)),
        ("launch", &launch),
        ("why", &|e| e.reason.clone()),
        ("ONNX nodes", &|e| e.loc.to_string()),
    ];
    let used: Vec<&(&str, Column)> = columns.iter().filter(|(_, text)| has(&|e| !text(e).is_empty())).collect();
    let mut rows = vec![used.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>()];
    rows.extend(entries.iter().map(|e| used.iter().map(|(_, text)| text(e)).collect()));
    table(&rows)
}

/// What a column says of an entry.
type Column<'a> = &'a dyn Fn(&LedgerEntry) -> String;

fn size(n: u64) -> String {
    if n == 0 { String::new() } else { bytes(n) }
}

fn percent(x: Option<f64>) -> String {
    x.map_or(String::new(), |x| format!("{:.2}%", 100.0 * x))
}

/// The range of the operand, where calibration data says something of it.
fn operand(e: &LedgerEntry) -> String {
    match e.operand.as_ref().map(|r| &r.range) {
        Some(Range::Static(op)) if op.zero_point == 0 => format!("step {:.3e}", op.scale.get()),
        Some(Range::Static(op)) => format!("step {:.3e}, 0 at {}", op.scale.get(), op.zero_point),
        Some(Range::Dynamic) => "by row".into(),
        None => String::new(),
    }
}

/// Method and strength of the fold.
fn fold(e: &LedgerEntry) -> String {
    let Some(f) = e.fold.as_ref().filter(|f| f.method != Method::None) else { return String::new() };
    f.strength.map_or(f.method.name().into(), |s| format!("{} {s:.3}", f.method.name()))
}
