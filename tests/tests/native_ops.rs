//! Every operator natively: random applications to operands of every element type, of any shape
//! (without elements too), broadcast, behind views, with symbolic sizes; one compilation serves all
//! values of the symbols. What native code computes is compared with the interpreter.
//!
//! `PROPTEST_CASES` multiplies the work: 1 by default. `TFC_OPS_ONLY` names one operator.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tfc_ir::dim::{Dim, Range, Symbol};
use tfc_ir::graph::{Graph, Loc};
use tfc_ir::ops::{self, Op};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::text;
use tfc_ir::types::{Elem, Shape, Type};
use tfc_ir::verify::verify;
use tfc_passes::OptLevel;
use tfc_tests::choices::Choices;
use tfc_tests::models::bind;
use tfc_tests::native::{Tolerance, compare, compile, cpus, optimize, precision, try_compile, try_run};
use tfc_tests::random_graph::{bindings, inputs, operator_graph};

/// Applications of an operator per graph.
const PER_GRAPH: usize = 3;

/// What has no kernels yet: operator, element type, and why. An entry that is not needed is a failure.
const GAPS: &[(&str, Elem, &str)] = &[];

/// How far results of type `elem` may be from those of the interpreter, which rounds after every primitive; most operands are
/// of type `of`.
fn tolerance(op: &str, of: Elem, elem: Elem) -> Tolerance {
    match op {
        // Within a kernel nothing is rounded to 16 bits, not even what becomes a longer float.
        "fused" if elem.is_float() && of.is_float() && of.bits() == 16 => Tolerance::roundings(of, 64.0, 1.0),
        "pow" => Tolerance::roundings(elem, 1024.0, 1.0),
        // A weight may be rounded the other way: a step of the 255 of the largest.
        "quantized_attention" => Tolerance { relative: 0.02, absolute: 0.05 },
        _ => Tolerance::roundings(elem, 64.0, 1.0),
    }
}

struct Failures {
    list: Vec<String>,
    /// What could not be scheduled.
    gaps: BTreeSet<(&'static str, Elem)>,
}

/// Compiles a graph and runs it at all values of its symbols.
fn check(graph: &Graph, (op, of): (&'static str, Elem), level: OptLevel, cpu: &str, seed: u64) -> Result<bool, String> {
    let optimized = optimize(graph, level);
    let mut session = match try_compile(&optimized, Some(cpu)) {
        Ok(session) => session,
        Err(e) if e.message.starts_with("there is no kernel") => {
            eprintln!("{op}: {e}");
            return Ok(false);
        }
        Err(e) => return Err(e.to_string()),
    };
    for (i, bindings) in bindings(graph, 6).into_iter().enumerate() {
        let mut choices = Choices::seeded(seed + i as u64);
        let hard = i % 2 == 1 && (op == "top_k" || elementwise_or_movement(graph, op));
        let data: Vec<Tensor> = if hard {
            let of = |t: Tensor| choices.hard_tensor(t.elem(), t.sizes());
            inputs(graph, &bindings, &mut Choices::seeded(0)).into_iter().map(of).collect()
        } else {
            inputs(graph, &bindings, &mut choices)
        };
        let found = try_run(&mut session, &optimized, &data);
        let result = match (graph.evaluate(&data, &bindings), found) {
            (Ok(wanted), Ok(found)) => compare(&wanted, &found, |elem| tolerance(op, of, precision(graph, level, elem))),
            (Err(_), Err(e)) if e.status() == Some(tfc_runtime::abi::Status::IndexRange) => Ok(()),
            (Err(e), Ok(_)) => Err(format!("only the interpreter says: {e}")),
            (_, Err(e)) => Err(format!("native code says: {e}")),
        };
        result.map_err(|e| format!("at {bindings:?}: {e}\n{data:?}"))?;
    }
    Ok(true)
}

/// Operators whose results do not depend on the order of roundings.
fn elementwise_or_movement(graph: &Graph, op: &str) -> bool {
    graph.nodes().any(|(_, n)| n.op.mnemonic() == op && (n.op.traits().elementwise || n.op.traits().moved > 0))
}

#[test]
fn every_operator_gives_the_same_natively() {
    let rounds = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1u64);
    let only = std::env::var("TFC_OPS_ONLY").ok();
    let cpus = cpus();
    let mut failures = Failures { list: vec![], gaps: BTreeSet::new() };
    for (index, &op) in Op::MNEMONICS.iter().enumerate() {
        if only.as_ref().is_some_and(|o| o != op) {
            continue;
        }
        let mut applied = 0;
        for round in 0..rounds {
            for (nth, (elem, ..)) in Elem::ALL.into_iter().enumerate() {
                let seed = (index as u64) << 32 | round << 8 | nth as u64;
                let graph = operator_graph(&mut Choices::seeded(seed), op, elem, PER_GRAPH);
                applied += graph.nodes().filter(|(_, n)| n.op.mnemonic() == op).count();
                if graph.outputs().is_empty() {
                    continue;
                }
                for (level, cpu) in [OptLevel::O0, OptLevel::O3].into_iter().flat_map(|l| cpus.iter().map(move |c| (l, *c))) {
                    let result = catch_unwind(AssertUnwindSafe(|| check(&graph, (op, elem), level, cpu, seed)));
                    let case = || format!("{op} of {elem}, {level:?}, {cpu}");
                    match result {
                        Ok(Ok(true)) => continue,
                        Ok(Ok(false)) => {
                            failures.gaps.insert((op, elem));
                        }
                        Ok(Err(e)) => failures.list.push(format!("{}: {e}\n{graph}", case())),
                        Err(_) => failures.list.push(format!("{}: a panic\n{graph}", case())),
                    }
                    break;
                }
            }
        }
        if applied == 0 {
            failures.list.push(format!("{op} was never applied"));
        }
    }
    let known: BTreeSet<(&str, Elem)> = GAPS.iter().map(|g| (g.0, g.1)).collect();
    if only.is_none() && known != failures.gaps {
        failures.list.push(format!("without kernels are {:?}; known is {known:?}", failures.gaps));
    }
    assert!(failures.list.is_empty(), "{} failures\n{}", failures.list.len(), failures.list.join("\n\n"));
}

/// Operators that take indices `at` into axis 1 of `x`, which has `n` elements, or `c` constant ones.
const INDEXED: [&str; 6] = [
    "%y = gather %x, %at {axis = 1} : f32[2, 2, 3]",
    "%y = gather_elements %x, %wide {axis = 1} : f32[2, 2, 3]",
    "%y = gather_nd %turned, %column {batch = 0} : f32[2, 2, 3]",
    "%y = scatter_elements %x, %wide, %wide_updates {axis = 1, reduction = add} : f32[2, n, 3]",
    "%y = scatter_nd %turned, %column, %updates {reduction = replace} : f32[n, 2, 3]",
    "%loaded = gather %x, %at {axis = 1} : f32[2, 2, 3] %y = exp %loaded : f32[2, 2, 3]",
];

#[test]
fn indices_out_of_range_are_reported() {
    let cpus = cpus();
    for (op, elem) in INDEXED.into_iter().flat_map(|op| ["i32", "i64"].map(|e| (op, e))) {
        let text = format!(
            "tfc.ir 1 symbol n 0..9
            input %x: f32[2, n, 3] input %at: {elem}[2] input %updates: f32[2, 2, 3]
            %turned = transpose %x {{perm = [1, 0, 2]}} : f32[n, 2, 3]
            %column = reshape %at {{shape = [2, 1]}} : {elem}[2, 1]
            %wide = expand %column {{shape = [2, 2, 3]}} : {elem}[2, 2, 3]
            %wide_updates = transpose %updates {{perm = [1, 0, 2]}} : f32[2, 2, 3]
            {op} output y = %y"
        );
        let graph = tfc_ir::text::parse(&text, None).unwrap_or_else(|e| panic!("{e}\n{text}"));
        for (level, cpu) in [OptLevel::O0, OptLevel::O3].into_iter().flat_map(|l| cpus.iter().map(move |c| (l, *c))) {
            let optimized = optimize(&graph, level);
            let mut session = try_compile(&optimized, Some(cpu)).unwrap_or_else(|e| panic!("{e}"));
            for (n, at, fits) in [
                (4usize, [0i64, 3], true),
                (4, [-4, -1], true),
                (4, [0, 4], false),
                (4, [-5, 0], false),
                (4, [1, i64::from(i32::MIN)], false),
                (4, [i64::from(i32::MAX), 1], false),
                (1, [0, -1], true),
                (0, [0, 0], false),
            ] {
                let mut choices = Choices::seeded(n as u64);
                let at = if elem == "i32" { Tensor::of(&[2], at.map(|i| i as i32).to_vec()) } else { Tensor::of(&[2], at.to_vec()) };
                let data = [choices.tensor(Elem::F32, &[2, n, 3]), at, choices.tensor(Elem::F32, &[2, 2, 3])];
                let bindings = tfc_ir::dim::Bindings::from([(tfc_ir::dim::Symbol::new("n"), n as i64)]);
                let wanted = graph.evaluate(&data, &bindings);
                let found = try_run(&mut session, &optimized, &data);
                let case = format!("{op} of {data:?}, {level:?}, {cpu}");
                assert_eq!(wanted.is_ok(), fits, "{case}");
                match found {
                    Ok(found) => {
                        compare(&wanted.expect(&case), &found, |elem| tolerance("", elem, elem)).unwrap_or_else(|e| panic!("{case}: {e}"))
                    }
                    Err(e) => {
                        assert!(!fits, "{case}: {e}");
                        assert_eq!(e.status(), Some(tfc_runtime::abi::Status::IndexRange), "{case}: {e}");
                    }
                }
            }
        }
    }
}

/// Half of the last byte of an odd number of nibbles holds nothing: it is 0 whatever was in the memory of the output.
#[test]
fn the_unused_nibble_of_an_output_is_0() {
    for elem in [Elem::I4, Elem::U4] {
        let mut g = Graph::new("nibbles");
        let sizes = [Dim::symbol("m"), Dim::symbol("n")];
        g.symbols = [("m", Range { min: 0, max: 9 }), ("n", Range { min: 0, max: 9 })].map(|(s, r)| (Symbol::new(s), r)).into();
        let x = g.add_input("x", Type::new(Elem::F32, Shape(sizes.to_vec())));
        let codes = g.add(ops::Cast { to: elem }, &[x], &Loc::default()).expect("valid");
        let turned = g.add(ops::Transpose { perm: vec![1, 0] }, &[codes], &Loc::default()).expect("valid");
        g.add_output("codes", codes);
        g.add_output("turned", turned);
        for cpu in cpus() {
            let mut session = compile(&g, Some(cpu));
            for (m, n) in [(1, 1), (3, 5), (3, 4), (0, 3), (7, 1)] {
                let input = Tensor::build(Elem::F32, &[m, n], |i| Scalar::Int((i % 8) as i128));
                let expected = g.evaluate(std::slice::from_ref(&input), &bind(&g, std::slice::from_ref(&input))).expect("it runs");
                let dims = session.model().dims_with(&[("x", &[m, n])], &[]).expect("known sizes");
                let mut dirty: Vec<Vec<u8>> = expected.iter().map(|t| vec![0xff; t.bytes().len()]).collect();
                let mut outputs: Vec<&mut [u8]> = dirty.iter_mut().map(Vec::as_mut_slice).collect();
                session.run_into(&dims, &[input.bytes()], &mut outputs).expect("it runs");
                for (found, expected) in dirty.iter().zip(&expected) {
                    assert_eq!(found, expected.bytes(), "{elem} {m} x {n} on {cpu}");
                }
            }
        }
    }
}

/// Numbers between two neighbours become the nearest, ties the even one; a NaN stays one, whatever its payload is.
#[test]
fn floats_of_16_bits_are_rounded_to_the_nearest() {
    for (elem, half) in [(Elem::Bf16, 0x8000u32), (Elem::F16, 0x1000)] {
        let begins =
            [0x3f80_0000u32, 0x3f81_0000, 0x3f82_2000, 0x4110_6000, 0x477f_e000, 0x7f7f_0000, 0x7f80_0000, 0x3880_0000, 0x0001_0000];
        let steps = [0, half - 1, half, half + 1, 2 * half - 1, 2 * half, 3 * half];
        let all = begins.iter().flat_map(|b| steps.iter().map(move |s| b + s)).flat_map(|bits| [bits, bits | 1 << 31]);
        let numbers: Vec<f32> = all.map(f32::from_bits).collect();
        let mut g = Graph::new("rounding");
        let x = g.add_input("x", Type::fixed(Elem::F32, &[numbers.len() as i64]));
        let y = g.add(ops::Cast { to: elem }, &[x], &Loc::default()).expect("valid");
        g.add_output("y", y);
        let data = [Tensor::of(&[numbers.len()], numbers)];
        let wanted = g.evaluate(&data, &bind(&g, &data)).expect("it runs");
        for cpu in cpus() {
            let found = try_run(&mut compile(&g, Some(cpu)), &g, &data).expect("it runs");
            compare(&wanted, &found, |_| Tolerance::NONE).unwrap_or_else(|e| panic!("{elem} on {cpu}: {e}"));
        }
    }
}

#[test]
fn a_nan_is_the_largest_whatever_its_sign() {
    for (elem, nan) in [(Elem::F32, f64::from(-f32::NAN)), (Elem::F32, f64::NAN), (Elem::F64, -f64::NAN)] {
        let row = [1.0, f64::INFINITY, nan, f64::NEG_INFINITY, 3.0];
        let data = [Tensor::build(elem, &[5], |i| Scalar::Float(row[i]))];
        for (largest, first) in [(true, [2, 1]), (false, [3, 0])] {
            let mut g = Graph::new("top");
            let x = g.add_input("x", Type::fixed(elem, &[5]));
            let y = g.add_node(ops::TopK { largest, axis: 0, k: Dim::from(2) }, &[x], &Loc::default()).expect("valid");
            g.add_output("places", y[1]);
            for cpu in cpus() {
                let found = try_run(&mut compile(&g, Some(cpu)), &g, &data).expect("it runs");
                assert_eq!(found[0].to_i64s().expect("places"), first, "{nan:?} of {elem} on {cpu}");
            }
        }
    }
}

#[test]
fn gelu_of_infinities_is_what_its_parts_are() {
    for (elem, tanh) in [Elem::F32, Elem::F16, Elem::Bf16, Elem::F64].into_iter().flat_map(|e| [(e, false), (e, true)]) {
        let x = [f64::NEG_INFINITY, -3.0, 0.5, f64::INFINITY].map(Scalar::Float);
        let data = [Tensor::build(elem, &[40], |i| x[i % 4])];
        let mut g = Graph::new("gelu");
        let v = g.add_input("x", Type::fixed(elem, &[40]));
        let y = g.add(ops::Gelu { tanh }, &[v], &Loc::default()).expect("valid");
        g.add_output("y", y);
        let wanted = g.evaluate(&data, &bind(&g, &data)).expect("it runs");
        for cpu in cpus() {
            let found = try_run(&mut compile(&g, Some(cpu)), &g, &data).expect("it runs");
            compare(&wanted, &found, |elem| tolerance("gelu", elem, elem)).unwrap_or_else(|e| panic!("{elem} tanh = {tanh} on {cpu}: {e}"));
        }
    }
}

#[test]
fn a_step_may_have_any_number_of_arguments() {
    let sizes: Vec<String> = (0..200).map(|i| format!("n+{}", i + 1)).collect();
    let dims = format!("%y = dims {{values = [{}], shape = [200]}} : i64[200]\noutput y = %y\n", sizes.join(", "));
    let graph = text::parse(&format!("tfc.ir 1\ngraph g\nsymbol n 0..9\ninput %x: f32[n]\n{dims}"), None).unwrap();
    for cpu in cpus() {
        let mut session = try_compile(&graph, Some(cpu)).unwrap();
        for bindings in bindings(&graph, 2) {
            let data = inputs(&graph, &bindings, &mut Choices::seeded(0));
            let found = try_run(&mut session, &graph, &data).unwrap();
            compare(&graph.evaluate(&data, &bindings).unwrap(), &found, |elem| tolerance("dims", elem, elem)).unwrap();
        }
    }
}

#[test]
fn sizes_of_slots_do_not_grow_with_the_number_of_layers() {
    let terms = |layers: usize| {
        let mut graph = String::from("tfc.ir 1\ngraph g\nsymbol m 0..99\nsymbol n 0..99\ninput %x0: f32[m, n]\n");
        for i in 0..layers {
            graph += &format!("%t{i} = transpose %x{i} {{perm = [1, 0]}} : f32[n, m]\n");
            graph += &format!("%s{i} = matmul %x{i}, %t{i} : f32[m, m]\n");
            graph += &format!("%p{i} = softmax %s{i} {{axis = 1, log = false}} : f32[m, m]\n");
            graph += &format!("%x{} = matmul %p{i}, %x{i} : f32[m, n]\n", i + 1);
        }
        graph += &format!("output y = %x{layers}\n");
        let optimized = optimize(&text::parse(&graph, None).unwrap(), OptLevel::O0);
        let program = tfc::schedule::schedule(&verify(&optimized).unwrap()).unwrap();
        program.slots.values().map(|bytes| bytes.size()).sum::<usize>()
    };
    assert_eq!(terms(24), terms(6));
}

/// One slot for buffers of many sizes would have a size with as many terms.
#[test]
fn slots_of_many_sizes_have_sizes_of_few_terms() {
    let names: Vec<String> = (0..26).map(|i| format!("s{i:02}")).collect();
    let mut graph = String::from("tfc.ir 1\ngraph g\n");
    names.iter().for_each(|s| graph += &format!("symbol {s} 0..9\n"));
    names.iter().for_each(|s| graph += &format!("input %x{s}: f32[{s}, {s}, {s}, {s}, {s}, {s}]\n"));
    graph += "const %zero: f32[] = [0.0]\n";
    let mut sum = "zero".to_string();
    for s in &names {
        graph += &format!("%e{s} = exp %x{s} : f32[{s}, {s}, {s}, {s}, {s}, {s}]\n");
        graph += &format!("%r{s} = reduce %e{s} {{kind = sum, axes = [0, 1, 2, 3, 4, 5], keep = false}} : f32[]\n");
        graph += &format!("%y{s} = add %{sum}, %r{s} : f32[]\n");
        sum = format!("y{s}");
    }
    graph += &format!("output y = %{sum}\n");
    let optimized = optimize(&text::parse(&graph, None).unwrap(), OptLevel::O0);
    let program = tfc::schedule::schedule(&verify(&optimized).unwrap()).unwrap();
    assert!(program.slots.len() < names.len() / 2, "{} slots", program.slots.len());
    assert!(program.slots.values().all(|bytes| bytes.size() <= Dim::MAX_SIZE));
}
