//! Sizes that models compute: symbols, ranges, checks.

use super::{close, count, f32s, i64s};
use tfc::onnx::{DimSpec, Error, ImportOptions};
use tfc_ir::types::Elem;
use tfc_tests::onnx_build::{Model, branch, graph, int, ints, tensor};

#[test]
fn shapes_are_computed_while_importing() {
    // x[batch, seq, 12] as [batch, seq, 3, 4], then [batch, 3, seq*4] by -1, as exporters write it.
    let m = Model::new(17)
        .input("x", Elem::F32, &["batch", "seq", "12"])
        .constant("zero", i64s(&[], &[0]))
        .constant("one", i64s(&[], &[1]))
        .list("first", &[0])
        .list("tail", &[3, 4])
        .node("Shape", "x", "s", &[])
        .node("Gather", "s zero", "b", &[])
        .node("Gather", "s one", "n", &[])
        .node("Unsqueeze", "b first", "b1", &[])
        .node("Unsqueeze", "n first", "n1", &[])
        .node("Concat", "b1 n1 tail", "heads", &[int("axis", 0)])
        .node("Reshape", "x heads", "h", &[])
        .node("Transpose", "h", "t", &[ints("perm", &[0, 2, 1, 3])])
        .list("three", &[3])
        .list("rest", &[-1])
        .node("Concat", "b1 three rest", "flat", &[int("axis", 0)])
        .node("Reshape", "t flat", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    let mnemonics: Vec<&str> = g.nodes().map(|(_, n)| n.op.mnemonic()).collect();
    assert_eq!(mnemonics, ["reshape", "transpose", "reshape"]);
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[batch, 3, 4*seq]");
    assert!(g.checks.is_empty(), "{:?}", g.checks);
    assert_eq!(m.run(&[count(&[2, 5, 12])])[0].sizes(), [2, 3, 20]);
}

#[test]
fn sizes_are_data_where_they_are_used_as_data() {
    // Positions 0..seq, times seq as a float, and the size through a float division.
    let m = Model::new(17)
        .input("x", Elem::F32, &["seq", "4"])
        .constant("zero", i64s(&[], &[0]))
        .constant("one", i64s(&[], &[1]))
        .constant("two", f32s(&[], &[2.0]))
        .node("Shape", "x", "s", &[])
        .node("Gather", "s zero", "n", &[])
        .node("Range", "zero n one", "places", &[])
        .node("Cast", "places", "f", &[int("to", 1)])
        .node("Cast", "n", "nf", &[int("to", 1)])
        .node("Mul", "f nf", "y", &[])
        .node("Mul", "nf two", "double", &[])
        .node("Div", "double two", "again", &[])
        .node("Floor", "again", "whole", &[])
        .node("Cast", "whole", "size", &[int("to", 7)])
        .list("axes", &[0])
        .node("Unsqueeze", "size axes", "shape", &[])
        .node("ConstantOfShape", "shape", "z", &[tensor("value", &f32s(&[1], &[3.0]))])
        .output("y")
        .output("z");
    let out = m.run(&[count(&[3, 4])]);
    close(&out[0], &[3], &[0.0, 3.0, 6.0]);
    close(&out[1], &[3], &[3.0; 3]);
}

#[test]
fn expand_takes_the_shape_that_exporters_select() {
    let m = Model::new(17)
        .input("mask", Elem::F32, &["batch", "seq"])
        .list("minus", &[-1, -1])
        .list("two", &[2])
        .node("Shape", "mask", "s", &[])
        .node("ConstantOfShape", "two", "ones", &[tensor("value", &i64s(&[1], &[1]))])
        .node("Equal", "s minus", "free", &[])
        .node("Where", "free ones s", "shape", &[])
        .constant("w", f32s(&[1, 1], &[5.0]))
        .node("Expand", "w shape", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[batch, seq]");
}

#[test]
fn slices_of_symbolic_sizes_are_clamped() {
    let m = |start: i64, end: i64, step: i64| {
        Model::new(17)
            .input("x", Elem::F32, &["n"])
            .list("s", &[start])
            .list("e", &[end])
            .list("a", &[0])
            .list("t", &[step])
            .node("Slice", "x s e a t", "y", &[])
            .output("y")
    };
    for n in 1..7usize {
        for (start, end, step) in [
            (0, 3, 1),
            (1, i64::MAX, 1),
            (-2, i64::MAX, 1),
            (0, -1, 1),
            (i64::MAX, i64::MIN, -1),
            (-1, -4, -1),
            (5, 0, -2),
            (0, 100, 3),
            (4, 2, 1),
        ] {
            let out = m(start, end, step).run(&[count(&[n])]).swap_remove(0).to_f64s();
            let n = n as i64;
            let at = |v: i64, low: i64, high: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(low, high);
            let expected: Vec<f64> = if step > 0 {
                (at(start, 0, n)..at(end, 0, n)).step_by(step as usize).map(|i| i as f64).collect()
            } else {
                let (mut i, stop) = (at(start, -1, n - 1), at(end, -1, n - 1));
                let mut l = vec![];
                while i > stop {
                    l.push(i as f64);
                    i += step;
                }
                l
            };
            assert_eq!(out, expected, "{start}:{end}:{step} of {n}");
        }
    }
}

#[test]
fn a_slice_that_starts_behind_the_front_of_a_table_bounds_the_size() {
    // The last `n` rows of a table of eight: `table[8 - n:]`.
    let m = Model::new(17)
        .input("x", Elem::F32, &["n"])
        .constant("table", count(&[8]))
        .list("eight", &[8])
        .list("axes", &[0])
        .list("end", &[i64::MAX])
        .node("Shape", "x", "n", &[])
        .node("Sub", "eight n", "start", &[])
        .node("Slice", "table start end axes", "rows", &[])
        .node("Add", "x rows", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[n]");
    let (_, range) = g.symbols.iter().next().unwrap();
    assert_eq!(range.max, 8);
    assert!(g.checks.is_empty(), "the range says it");
    close(&m.run(&[count(&[3])])[0], &[3], &[5.0, 7.0, 9.0]);
}

#[test]
fn a_shape_that_data_decides_is_refused_with_the_operand() {
    let m = Model::new(17).input("x", Elem::F32, &["4"]).input("shape", Elem::I64, &["2"]).node("Reshape", "x shape", "y", &[]).output("y");
    let e = m.import().unwrap_err();
    assert!(matches!(e, Error::Unsupported(_)));
    let e = e.to_string();
    assert!(e.contains("data-dependent shape") && e.contains("Reshape_0"), "{e}");
}

#[test]
fn ranges_count_by_fractions() {
    let run = |start: f32, limit: f32, step: f32| {
        let m = Model::new(17)
            .constant("a", f32s(&[], &[start]))
            .constant("b", f32s(&[], &[limit]))
            .constant("c", f32s(&[], &[step]))
            .node("Range", "a b c", "y", &[])
            .output("y");
        m.run(&[]).swap_remove(0).to_f64s()
    };
    // The length is what counts: it is that of (limit - start) / step in f64, rounded up. Results of ONNX Runtime.
    assert_eq!([run(0.1, 0.4, 0.1), run(0.1, 1.1, 0.1), run(0.1, 0.6, 0.1)].map(|found| found.len()), [3, 11, 6]);
    for (start, limit, step, n) in [(0.0, 1.0, 0.1, 10), (0.3, 7.7, 0.1, 74), (5.0, -3.0, -0.7, 12), (1.0, 1.0, 0.5, 0), (2.0, 1.0, 0.5, 0)]
    {
        let found = run(start, limit, step);
        assert_eq!(found.len(), n, "{start} to {limit} by {step}");
        assert!(found.iter().enumerate().all(|(i, x)| (x - f64::from(start) - i as f64 * f64::from(step)).abs() < 1e-5));
    }
    // A size decides the limit or the start.
    for (operands, step) in [("half n step", 0.1f32), ("half n step", 0.75), ("n half step", -0.25), ("n half step", -0.3)] {
        let m = Model::new(17)
            .input("x", Elem::F32, &["n"])
            .constant("half", f32s(&[], &[0.5]))
            .constant("step", f32s(&[], &[step]))
            .node("Size", "x", "size", &[])
            .node("Cast", "size", "n", &[int("to", 1)])
            .node("Range", operands, "y", &[])
            .output("y");
        for n in 1..9 {
            let (start, limit) = if step > 0.0 { (0.5, n as f32) } else { (n as f32, 0.5) };
            let found = m.run(&[count(&[n])]).swap_remove(0).to_f64s();
            let expected = run(start, limit, step);
            assert_eq!(found.len(), expected.len(), "{start} to {limit} by {step}");
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }
}

#[test]
fn sizes_choose_between_branches() {
    // `squeeze` as exporters write it: the branches have different ranks.
    let squeeze = graph("then_branch", Model::new(17).node("Squeeze", "x one", "r", &[]).output("r").graph);
    let m = Model::new(17)
        .input("x", Elem::F32, &["b", "t", "2"])
        .list("one", &[1])
        .node("Shape", "x", "s", &[int("start", 1), int("end", 2)])
        .node("Equal", "s one", "c", &[])
        .node("If", "c", "y", &[squeeze, branch("else_branch", "Identity", "x")])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.symbols.iter().map(|(s, r)| (s.name(), r.min)).collect::<Vec<_>>(), [("b", 0), ("t", 2)]);
    assert_eq!(g.bounds.values().map(ToString::to_string).collect::<Vec<_>>(), ["If_0"]);
    assert!(g.checks.is_empty() && m.run(&[count(&[1, 3, 2])])[0].sizes() == [1, 3, 2]);
    let narrowed = "dimension `t` is taken to be 2 or more because of If `If_0`; compile with --dim t=1 for the other branch";
    assert_eq!(m.warnings(), [narrowed]);
    let fixed = ImportOptions { dims: [("t".into(), DimSpec::Fixed(1))].into(), ..Default::default() };
    let fixed = m.import_with(&fixed).unwrap();
    assert_eq!(fixed.ty(fixed.outputs()[0].value).rank(), 2);
    // Branches of one type are both computed, and the size chooses at run time.
    let m = |no: &str| {
        Model::new(17)
            .input("x", Elem::F32, &["n"])
            .node("Shape", "x", "s", &[])
            .list("many", &[3])
            .node("Less", "s many", "c", &[])
            .node("If", "c", "y", &[branch("then_branch", "Neg", "x"), branch("else_branch", no, "x")])
            .output("y")
    };
    assert!(m("Abs").warnings().is_empty());
    close(&m("Abs").run(&[f32s(&[2], &[-1.0, 2.0])])[0], &[2], &[1.0, -2.0]);
    close(&m("Abs").run(&[f32s(&[3], &[-1.0, 2.0, -5.0])])[0], &[3], &[1.0, 2.0, 5.0]);
    let e = m("NonZero").import().unwrap_err().to_string();
    assert!(e.contains("--dim n=N decides it"), "{e}");
    // A branch that demands a size is not computed beside the other one.
    let mut demanding = Model::new(17).list("five", &[5]).node("Reshape", "x five", "r", &[]).node("ReduceMax", "r", "largest", &[]);
    demanding = demanding.node("Sub", "x largest", "r0", &[]).output("r0");
    let mut m = m("Abs");
    m.graph.node[2].attribute[1] = graph("else_branch", demanding.graph);
    let e = m.import().unwrap_err().to_string();
    assert!(e.contains("the branches do not allow the same shapes"), "{e}");
}

#[test]
fn pads_by_sizes_are_not_negative() {
    let m = Model::new(18)
        .input("x", Elem::F32, &["n"])
        .list("three", &[3])
        .list("none", &[0])
        .node("Shape", "x", "s", &[])
        .node("Sub", "s three", "more", &[])
        .node("Concat", "none more", "pads", &[int("axis", 0)])
        .node("Pad", "x pads", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!((g.symbols.values().map(|r| r.min).max(), g.bounds.len()), (Some(3), 1));
    close(&m.run(&[count(&[4])])[0], &[5], &[0.0, 1.0, 2.0, 3.0, 0.0]);
}

#[test]
fn sizes_may_be_0_where_operators_allow_it() {
    let m = Model::new(17)
        .input("past", Elem::F32, &["b", "past", "2"])
        .input("x", Elem::F32, &["b", "seq", "2"])
        .node("Concat", "past x", "k", &[int("axis", 1)])
        .node("Softmax", "k", "y", &[])
        .output("y");
    assert!(m.import().unwrap().symbols.values().all(|r| r.min == 0));
    assert_eq!(m.run(&[count(&[1, 0, 2]), count(&[1, 3, 2])])[0].sizes(), [1, 3, 2]);
    // The window needs three elements, one less with its pad; the last ones need a size that is not 0.
    let m = Model::new(17)
        .input("x", Elem::F32, &["b", "1", "n"])
        .node("MaxPool", "x", "p", &[ints("kernel_shape", &[3]), ints("pads", &[1, 0])])
        .node("Shape", "x", "s", &[int("start", 0), int("end", 1)])
        .node("Neg", "s", "first", &[])
        .list("end", &[i64::MAX])
        .list("axis", &[1])
        .constant("table", count(&[1, 9]))
        .node("Slice", "table first end axis", "y", &[])
        .output("p")
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(
        g.symbols.iter().map(|(s, r)| (s.name(), r.min, r.max)).collect::<Vec<_>>(),
        [("b", 1, i32::MAX.into()), ("n", 2, i32::MAX.into())]
    );
    assert_eq!(g.bounds.values().map(ToString::to_string).collect::<Vec<_>>(), ["Slice_0", "MaxPool_0"]);
    assert!(g.checks.is_empty(), "{:?}", g.checks);
}

#[test]
fn sizes_are_followed_through_floats_and_comparisons() {
    // Shapes of `n` by expressions on its size, against the same expressions on numbers.
    let sizes = |expression: &dyn Fn(Model) -> Model, expected: &dyn Fn(i64) -> i64| {
        let m = Model::new(17)
            .input("x", Elem::F32, &["n"])
            .node("Shape", "x", "s", &[])
            .node("Cast", "s", "f", &[int("to", 1)])
            .list("seven", &[7])
            .constant("two", f32s(&[], &[2.0]))
            .constant("third", f32s(&[], &[3.0]))
            .constant("half", f32s(&[], &[0.5]));
        let m = expression(m).node("ConstantOfShape", "y", "z", &[]).output("z");
        for n in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 31] {
            assert_eq!(m.run(&[count(&[n])])[0].sizes(), [expected(n as i64) as usize], "{n}");
        }
    };
    let divided = |rounding: &'static str, by: &'static str| {
        move |m: Model| m.node("Div", &format!("f {by}"), "q", &[]).node(rounding, "q", "r", &[]).node("Cast", "r", "y", &[int("to", 7)])
    };
    sizes(&divided("Ceil", "two"), &|n| (n + 1) / 2);
    sizes(&divided("Floor", "third"), &|n| n / 3);
    sizes(&divided("Round", "two"), &|n| (n as f32 / 2.0).round_ties_even() as i64);
    sizes(&|m| m.node("Div", "f third", "q", &[]).node("Cast", "q", "y", &[int("to", 7)]), &|n| n / 3);
    sizes(&|m| m.node("Mul", "half f", "q", &[]).node("Ceil", "q", "r", &[]).node("Cast", "r", "y", &[int("to", 7)]), &|n| (n + 1) / 2);
    // Ceilings by floors; quotients that lose and get an axis; a size of 0 would make a number negative.
    sizes(
        &|m| {
            m.node("Div", "f two", "q", &[]).node("Neg", "q", "n", &[]).node("Floor", "n", "r", &[]).node("Neg", "r", "c", &[]).node(
                "Cast",
                "c",
                "y",
                &[int("to", 7)],
            )
        },
        &|n| (n + 1) / 2,
    );
    sizes(
        &|m| {
            let m = m.list("one", &[1]).node("Div", "f two", "q", &[]).node("Squeeze", "q", "s0", &[]).node("Ceil", "s0", "r", &[]);
            m.node("Reshape", "r one", "s1", &[]).node("Cast", "s1", "y", &[int("to", 7)])
        },
        &|n| (n + 1) / 2,
    );
    sizes(
        &|m| {
            let m = m.constant("one", f32s(&[], &[1.0])).node("Sub", "f one", "less", &[]);
            m.node("Div", "less two", "q", &[]).node("Cast", "q", "y", &[int("to", 7)])
        },
        &|n| (n - 1) / 2,
    );
    sizes(&|m| m.node("Greater", "f third", "c", &[]).node("Where", "c third f", "r", &[]).node("Cast", "r", "y", &[int("to", 7)]), &|n| {
        n.min(3)
    });
    sizes(&|m| m.node("Concat", "s seven", "l", &[int("axis", 0)]).node("ReduceMin", "l", "y", &[int("keepdims", 1)]), &|n| n.min(7));
    sizes(&|m| m.node("Mul", "f f", "q", &[]).node("Sqrt", "q", "r", &[]).node("Cast", "r", "y", &[int("to", 7)]), &|n| n);
    sizes(&|m| m.node("Pow", "s two", "y", &[]), &|n| n * n);
    sizes(&|m| m.node("Greater", "s seven", "c", &[]).node("Where", "c seven s", "y", &[]), &|n| n.min(7));
    sizes(&|m| m.node("Equal", "s seven", "c", &[]).node("Not", "c", "d", &[]).node("Cast", "d", "y", &[int("to", 7)]), &|n| {
        (n != 7).into()
    });
    sizes(&|m| m.node("Concat", "seven s", "l", &[int("axis", 0)]).node("ArgMax", "l", "y", &[int("keepdims", 1)]), &|n| (n > 7).into());
    sizes(&|m| m.node("Concat", "s s seven", "l", &[int("axis", 0)]).node("ReduceSum", "l", "y", &[int("keepdims", 1)]), &|n| 2 * n + 7);
    // Whole numbers of f32 end at 2^24: the size stays below.
    let m = Model::new(17).input("x", Elem::F32, &["n"]).node("Shape", "x", "s", &[]).node("Cast", "s", "f", &[int("to", 1)]);
    let m = m.constant("two", f32s(&[], &[2.0])).node("Div", "f two", "q", &[]).node("Ceil", "q", "r", &[]);
    let g = m.node("Cast", "r", "y", &[int("to", 7)]).node("ConstantOfShape", "y", "z", &[]).output("z").import().unwrap();
    assert_eq!(g.symbols.values().map(|r| r.max).collect::<Vec<_>>(), [(1 << 24) - 2]);
    assert_eq!(g.bounds.values().map(ToString::to_string).collect::<Vec<_>>(), ["Ceil_0"]);
    // What is not followed is said to depend on the shapes.
    let m = Model::new(17)
        .input("x", Elem::F32, &["n"])
        .node("Shape", "x", "s", &[])
        .node("Cast", "s", "f", &[int("to", 1)])
        .node("Log", "f", "l", &[])
        .node("Cast", "l", "y", &[int("to", 7)])
        .node("ConstantOfShape", "y", "z", &[])
        .output("z");
    let e = m.import().unwrap_err().to_string();
    assert!(e.contains("depends on the input shapes") && e.contains("--dim n=N decides it"), "{e}");
}

#[test]
fn nested_sizes_end_in_bounded_time() {
    let m = |op: &str, rounds: usize| {
        let mut m = Model::new(17).input("x", Elem::F32, &["n", "m"]).node("Shape", "x", "v0", &[]);
        m = m.node("ReduceMax", "v0", "v1", &[int("keepdims", 1)]).node("ReduceSum", "v0", "w1", &[int("keepdims", 1)]);
        for i in 1..rounds {
            m = m.node(op, &format!("v{i} w{i}"), &format!("v{}", i + 1), &[]).node(
                "Add",
                &format!("v{i} w{i}"),
                &format!("w{}", i + 1),
                &[],
            );
        }
        m.node("ConstantOfShape", &format!("v{rounds}"), "z", &[]).output("z")
    };
    m("Max", 20).import().unwrap();
    let e = m("Mul", 40).import().unwrap_err().to_string();
    assert!(e.contains("depends on the input shapes") && e.contains("--dim m=N,n=N decides it"), "{e}");
    // Windows in ceil mode one after the other.
    let mut pools = Model::new(17).input("v0", Elem::F32, &["1", "1", "n"]);
    for i in 0..8 {
        let attributes = [ints("kernel_shape", &[3]), ints("strides", &[2]), ints("pads", &[1, 1]), int("ceil_mode", 1)];
        pools = pools.node("MaxPool", &format!("v{i}"), &format!("v{}", i + 1), &attributes);
    }
    let pools = pools.output("v8");
    assert_eq!(pools.import().unwrap().ty(pools.import().unwrap().outputs()[0].value).to_string(), "f32[1, 1, div(n+254, 256)+1]");
    assert_eq!(pools.run(&[count(&[1, 1, 1000])])[0].sizes(), [1, 1, 5]);
}

#[test]
fn sums_of_sizes_are_sizes() {
    // What exporters of decoders write: the mask is as long as past and present together.
    let m = Model::new(17)
        .input("past", Elem::F32, &["batch", "past_len"])
        .input("x", Elem::F32, &["batch", "seq"])
        .input("mask", Elem::F32, &["batch", "past_len + seq"])
        .node("Concat", "past x", "all", &[int("axis", 1)])
        .node("Mul", "all mask", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    assert_eq!(g.ty(g.outputs()[0].value).to_string(), "f32[batch, past_len+seq]");
    assert!(g.checks.is_empty() && g.symbols.len() == 3);
}

#[test]
fn a_table_of_positions_bounds_the_sequence() {
    let m = Model::new(17)
        .input("x", Elem::F32, &["seq", "4"])
        .constant("table", count(&[16, 4]))
        .constant("zero", i64s(&[], &[0]))
        .list("first", &[0])
        .node("Shape", "x", "s", &[])
        .node("Gather", "s zero", "n", &[])
        .node("Unsqueeze", "n first", "end", &[])
        .node("Slice", "table first end first", "places", &[])
        .node("Add", "x places", "y", &[])
        .output("y");
    let g = m.import().unwrap();
    let ranges: Vec<_> = g.symbols.values().map(|r| (r.min, r.max)).collect();
    assert_eq!(ranges, [(0, 16)]);
    assert!(g.checks.is_empty(), "{:?}", g.checks);
}
