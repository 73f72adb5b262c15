#![allow(missing_docs, clippy::print_stdout, reason = "scratch")]
use std::collections::BTreeMap;
use std::ops::ControlFlow;
fn main() {
    let level = tfc_passes::pipeline(tfc_passes::OptLevel::O2);
    let args: Vec<String> = std::env::args().skip(1).collect();
    let print = std::env::var("PRINT").ok();
    let mut opts = tfc::onnx::ImportOptions::default();
    if let Ok(d) = std::env::var("DIMS") {
        for kv in d.split(',') {
            let (k, v) = kv.split_once('=').unwrap();
            let _ = (k, v);
        }
    }
    let _ = &mut opts;
    for name in &args {
        let path = std::path::Path::new(name);
        let t = std::time::Instant::now();
        let g = match tfc::onnx::load(path, &opts) {
            Ok(g) => g,
            Err(e) => {
                println!("{name}: {e}");
                continue;
            }
        };
        println!("== {name}: {} nodes, import {:?}", g.nodes().len(), t.elapsed());
        if print.as_deref() == Some("import") {
            println!("{g}");
        }
        let out = tfc_passes::run_pipeline::<tfc_passes::PassError>(g, &level, &Default::default(), |r| {
            println!("  {:9} {:>10.3?} {:5} nodes  {}", r.pass.name, r.time, r.graph.nodes().len(), r.stats);
            if let Err(e) = tfc_ir::verify::verify(r.graph) {
                println!("   INVALID {e:?}");
            }
            if print.as_deref() == Some(r.pass.name) {
                println!("{}", r.graph);
            }
            Ok(ControlFlow::Continue(()))
        });
        match out {
            Ok(g) => {
                let mut h: BTreeMap<&str, usize> = BTreeMap::new();
                for (_, d) in g.nodes() {
                    *h.entry(d.op.mnemonic()).or_default() += 1;
                }
                println!("  {h:?}");
                if print.as_deref() == Some("final") {
                    println!("{g}");
                }
            }
            Err(e) => println!("  ERROR {e}"),
        }
    }
}
