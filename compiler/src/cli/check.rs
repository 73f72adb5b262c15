//! `tfc check`.

use super::console::Console;
use super::options::{Level, Shapes, driver_options};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::PathBuf;
use tfc::diag::{Diagnostic, Exit, Result, unsupported_table};
use tfc::{driver, onnx};

/// How many of the parts that are left out are named.
const SHOWN: usize = 4;

/// Say what in a model is not supported, everything at once, without compiling it.
///
/// A model whose operators are all known is also optimized and scheduled, to see that there is a kernel
/// for everything. Exit code 3 if something is not supported. What no output needs is left out unseen, be it
/// supported or not, and said.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  tfc check bert.onnx
  tfc check bert.onnx --json | jq '.unsupported[].operator'")]
pub struct Args {
    /// The model.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    level: Level,
    #[command(flatten)]
    shapes: Shapes,
}

pub fn run(args: &Args, console: &Console) -> Result<()> {
    let options = driver_options(&args.level, &args.shapes, console)?;
    // What is not supported shall not hide what else is not.
    let (report, graph, unused) = if driver::is_tir(&args.model) {
        let graph = driver::load(&args.model, &options.import)?.graph;
        let nodes = graph.nodes().len();
        (onnx::CheckReport { nodes, ..Default::default() }, Some(graph), vec![])
    } else {
        let model = driver::decode(&args.model)?;
        let report = onnx::check(&model, &options.import).map_err(|e| driver::sizes_taken(&model, &options.import, e.into()))?;
        let graph = if report.is_supported() { Some(onnx::import(&model, &options.import)?) } else { None };
        (report, graph, model.unused)
    };
    console.warnings(&report.warnings);
    let mut failure = None;
    let mut program = None;
    if let Some(graph) = graph {
        match driver::optimize(graph, &options, |_| Ok(ControlFlow::Continue(()))).and_then(|g| driver::lower(&g)) {
            Ok(p) => program = Some(p),
            Err(d) if d.exit == Exit::Unsupported => failure = Some(d),
            Err(d) => return Err(d),
        }
    }
    if args.json {
        let unsupported: Vec<_> = report
            .unsupported
            .iter()
            .map(|u| json!({ "operator": u.operator, "domain": u.domain, "count": u.nodes.len(), "reason": u.reason, "nodes": u.nodes }))
            .collect();
        let object = json!({
            "supported": report.is_supported() && failure.is_none(),
            "nodes": report.nodes,
            "launches": program.as_ref().map(|p| p.steps.len()),
            "kernels": program.as_ref().map(|p| p.kernels.len()),
            "weight_bytes": program.as_ref().map(|p| p.weight_bytes()),
            "unused": unused,
            "unsupported": unsupported,
            "unscheduled": failure.as_ref().map(|d| json!({ "reason": d.what, "where": d.places })),
        });
        console.result(&format!("{object:#}\n"))?;
    }
    if !report.is_supported() {
        let d = Diagnostic::unsupported("the model uses what is not supported").at(format!("`{}`", args.model.display()));
        return Err(d.note(unsupported_table(&report)));
    }
    if let Some(d) = failure {
        return Err(d.at(format!("`{}`", args.model.display())));
    }
    if !args.json {
        if !unused.is_empty() {
            let names = unused.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if unused.len() > SHOWN { format!(" and {} more", unused.len() - SHOWN) } else { String::new() };
            console.result(&format!("no output needs these, and they are left out: {names}{more}\n"))?;
        }
        let (launches, kernels) = program.map_or((0, 0), |p| (p.steps.len(), p.kernels.len()));
        console.result(&format!("everything is supported: {} nodes become {launches} launches of {kernels} kernels\n", report.nodes))?;
    }
    Ok(())
}
