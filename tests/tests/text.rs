//! Properties of the text form and of the verifier over random graphs and random texts.

use proptest::prelude::*;
use std::collections::BTreeSet;
use tfc_ir::ops::Op;
use tfc_ir::{text, verify::verify};
use tfc_tests::choices::Choices;
use tfc_tests::filetest::check_round_trip;
use tfc_tests::random_graph::{bindings, graphs, inputs, random_graph};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_graphs_survive_the_round_trip_and_are_valid(graph in graphs(12)) {
        check_round_trip(&graph).map_err(TestCaseError::fail)?;
        if let Err(errors) = verify(&graph) {
            return Err(TestCaseError::fail(format!("{errors:#?}\n{graph}")));
        }
    }

    #[test]
    fn evaluation_gives_what_inference_says(graph in graphs(8), seed in any::<u64>()) {
        for bindings in bindings(&graph, 3) {
            let data = inputs(&graph, &bindings, &mut Choices::seeded(seed));
            let Ok(results) = graph.evaluate(&data, &bindings) else { continue };
            for (o, t) in graph.outputs().iter().zip(results) {
                let ty = graph.ty(o.value);
                prop_assert_eq!((ty.elem, ty.shape.eval(&bindings)), (t.elem(), Some(t.sizes().to_vec())), "{} of\n{}", o.name, graph);
            }
        }
    }

    #[test]
    fn changed_texts_never_panic(graph in graphs(6), changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u8>()), 1..6)) {
        let mut text = graph.to_string().into_bytes();
        for (at, kind, byte) in changes {
            let at = at.index(text.len().max(1));
            match kind {
                0 if at < text.len() => text[at] ^= byte,
                1 => text.truncate(at),
                2 => { text.insert(at.min(text.len()), byte); }
                _ => {
                    let token = ["-", "9223372036854775807", "{", "[", "seq", "%0", "nan(", "0", ",", "splat", "f16"][usize::from(byte) % 11];
                    let at = at.min(text.len());
                    text.splice(at..at, token.bytes());
                }
            }
        }
        parse_and_verify(&String::from_utf8_lossy(&text));
    }

    #[test]
    fn arbitrary_texts_never_panic(text in any::<String>(), soup in "(tfc.ir 1)?([ \n\\[\\]{}()<>,:=+*%#\"/.-]|input|const|f32|quant|check|symbol|output|%x|0|12|1e5|nan|splat|div|fused|body){0,40}") {
        parse_and_verify(&text);
        parse_and_verify(&soup);
    }
}

/// Whatever reads must print and read again, and the verifier must bear it.
fn parse_and_verify(text: &str) {
    match text::parse(text, None) {
        Ok(graph) => {
            let valid = verify(&graph).is_ok();
            if valid {
                check_round_trip(&graph).unwrap_or_else(|e| panic!("{e}"));
            }
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
}

#[test]
fn random_graphs_have_every_operator_and_most_of_them_run() {
    let mut seen = BTreeSet::new();
    let mut choices = Choices::seeded(1);
    let mut ran = 0;
    let graphs = 600;
    for _ in 0..graphs {
        let graph = random_graph(&mut choices, 12);
        seen.extend(graph.nodes().map(|(_, n)| n.op.mnemonic()));
        if let [bindings] = &bindings(&graph, 1)[..] {
            let data = inputs(&graph, bindings, &mut choices);
            ran += usize::from(graph.evaluate(&data, bindings).is_ok());
        }
    }
    let missing: Vec<_> = Op::MNEMONICS.iter().filter(|m| !seen.contains(*m)).collect();
    assert!(missing.is_empty(), "never generated: {missing:?}");
    assert!(ran > graphs * 3 / 4, "only {ran} of {graphs} graphs run");
}
