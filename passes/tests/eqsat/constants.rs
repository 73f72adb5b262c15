//! Constants that move, merge and become part of weights.

use super::*;

#[test]
fn constants_move_into_weights() {
    // Scale and shift behind a linear layer, as batch normalisation leaves them.
    becomes(&["add", "matmul"], |b| {
        let (x, w, bias) = (b.input("2, seq, 6"), b.weight(&[6, 4], 1), b.weight(&[4], 2));
        let (scale, shift) = (b.weight(&[4], 3), b.weight(&[4], 4));
        let y = b.op(Matmul {}, &[x, w]);
        let y = b.op(Add {}, &[y, bias]);
        let y = b.op(Mul {}, &[y, scale]);
        b.op(Add {}, &[shift, y])
    });
    becomes(&["matmul"], |b| {
        let (x, w, c) = (b.input("2, seq, 6"), b.weight(&[6, 4], 1), b.weight(&[6], 2));
        let y = b.op(Mul {}, &[c, x]);
        b.op(Matmul {}, &[y, w])
    });
    becomes(&["conv"], |b| {
        let (x, w) = (b.input("2, 3, 9, 9"), b.weight(&[4, 3, 3, 3], 1));
        let (scale, shift) = (b.weight(&[1, 4, 1, 1], 3), b.weight(&[4, 1, 1], 4));
        let ones = vec![1, 1];
        let conv = Conv { strides: ones.clone(), pads_before: ones.clone(), pads_after: ones.clone(), dilations: ones, groups: 1 };
        let y = b.op(conv, &[x, w]);
        let y = b.op(Mul {}, &[y, scale]);
        b.op(Add {}, &[shift, y])
    });
    // A weight that is used twice is not copied for a factor that is cheap to apply.
    never("conv", |b| {
        let (x, c) = (b.input("2, 3"), b.weight(&[2, 1], 1));
        let w = b.weight(&[3, 3], 2);
        let y = b.op(Matmul {}, &[x, w]);
        b.op(Mul {}, &[y, c])
    });
}

#[test]
fn chained_constants_merge() {
    becomes(&["mul"], |b| {
        let x = b.input("2, 8");
        let y = scaled(b, x, 3.0);
        let y = scaled(b, y, 0.7);
        let c = b.scalar(4.0);
        b.op(Div {}, &[y, c])
    });
    becomes(&["add"], |b| {
        let (x, c) = (b.input("2, 8"), b.weight(&[8], 3));
        let y = shifted(b, x, 3.0);
        let y = b.op(Add {}, &[c, y]);
        shifted(b, y, 4.0)
    });
}

/// `x` and so many steps behind it, each with a constant of its own; `kinds` come in turn. Every third constant has a size.
fn chain(b: &mut Build, kinds: &[&str], steps: usize) -> Vec<Value> {
    let mut x = b.input("seq, 8");
    let mut all = vec![];
    for i in 0..steps {
        let kind = kinds[i % kinds.len()];
        let numbers = random(Elem::F32, &[if i % 3 == 0 { 8 } else { 1 }], i as u64).to_f64s();
        let sizes = if i % 3 == 0 { vec![8] } else { vec![] };
        let c = b.constant(Tensor::build(Elem::F32, &sizes, |i| Scalar::Float(1.0 + numbers[i] / 8.0)));
        x = match kind {
            "mul" => b.op(Mul {}, &if i % 2 == 0 { [x, c] } else { [c, x] }),
            "add" => b.op(Add {}, &if i % 2 == 0 { [x, c] } else { [c, x] }),
            "div" => b.op(Div {}, &[x, c]),
            "sub" => b.op(Sub {}, &[x, c]),
            "sub from" => b.op(Sub {}, &[c, x]),
            _ => b.op(Neg {}, &[x]),
        };
        all.push(x);
    }
    all
}

#[test]
fn long_chains_of_constants_become_one_product_and_one_sum() {
    let mixed = ["mul", "add", "div", "sub", "neg", "sub from"];
    let kinds: [(&[&str], &[&str]); 4] =
        [(&["mul"], &["mul"]), (&["add", "sub"], &["add"]), (&["mul", "add"], &["add", "mul"]), (&mixed, &["add", "mul"])];
    for (kinds, expected) in kinds {
        for steps in [9, 300] {
            becomes(expected, |b| *chain(b, kinds, steps).last().unwrap());
        }
        // Every value of the chain is wanted.
        let mut b = Build::new();
        for v in chain(&mut b, kinds, 60) {
            b.output(v);
        }
        let (out, stats) = run(&b.g, "fold,simplify,cse,dce,eqsat");
        assert!(stats.get("e-nodes") < 60 * 8 && stats.get("rounds") < 12, "{stats}");
        assert_close(&b.g, &out);
        // What one step is made of says where it came from.
        let mut b = Build::new();
        let last = *chain(&mut b, kinds, 20).last().unwrap();
        let (out, _) = run(&b.done(last), "eqsat,dce");
        let names: BTreeSet<&str> = out.nodes().flat_map(|(_, d)| d.loc.names()).collect();
        assert_eq!(names.len(), 20, "{names:?}");
    }
}

#[test]
fn chains_of_repeated_numbers_stay_numbers() {
    let mut b = Build::new();
    let x = b.input("1024");
    let ones = b.constant(Tensor::build(Elem::F32, &[1024], |_| Scalar::Float(0.5)));
    let y = (0..20).fold(x, |y, _| b.op(Add {}, &[y, ones]));
    let (out, _) = run(&b.done(y), "eqsat,dce");
    let sizes: Vec<usize> = out.values().filter_map(|(v, _)| out.as_const(v)).map(Tensor::len).collect();
    assert_eq!((count(&out, "add"), &sizes[..]), (1, &[1][..]));
}

#[test]
fn chains_that_cannot_be_merged_do_not_grow() {
    // Each pair of factors overflows or vanishes, but longer parts of the chain do not.
    let mut b = Build::new();
    let mut x = b.input("seq, 8");
    for i in 0..200 {
        x = scaled(&mut b, x, [1e30, 1e30, 1e-30, 1e-30][i % 4]);
    }
    let g = b.done(x);
    let (out, stats) = run(&g, "fold,simplify,cse,dce,eqsat");
    assert!(stats.get("e-nodes") < 200 * 8, "{stats}");
    assert_close(&g, &out);
    // Chains that are left to the rules, one behind the other.
    for kinds in [&["mul"][..], &["add"], &["mul", "add"]] {
        let mut b = Build::new();
        let mut y = b.input("seq, 8");
        for _ in 0..12 {
            let last = *chain(&mut b, kinds, 8).last().unwrap();
            y = b.op(Max {}, &[y, last]);
        }
        let g = b.done(y);
        let (out, stats) = run(&g, "fold,simplify,cse,dce,eqsat");
        assert!(stats.get("e-nodes") < 12 * 8 * 12, "{stats}");
        assert_close(&g, &out);
    }
}

#[test]
fn factors_that_overflow_together_stay_apart() {
    becomes(&["mul", "mul"], |b| {
        let x = b.input("2, 8");
        let y = scaled(b, x, 1e30);
        scaled(b, y, 1e30)
    });
    becomes(&["div"], |b| {
        let (x, c) = (b.input("2, 8"), b.scalar(1e-40));
        b.op(Div {}, &[x, c])
    });
}

/// The scale of a quantization: what is rounded behind it shows its last bit.
#[test]
fn single_numbers_are_divided_by_constants() {
    for (sizes, divisions) in [("", 1), ("1,1", 1), ("2", 0), ("n", 0)] {
        let mut b = Build::new();
        let (x, c) = (b.input(sizes), b.scalar(255.0));
        let y = b.op(Div {}, &[x, c]);
        let (out, _) = run(&b.done(y), PASSES);
        assert_eq!(count(&out, "div"), divisions, "{sizes}");
    }
}

#[test]
fn factors_that_overflow_stay_behind_products() {
    for (factor, products) in [(3.0, 0), (f64::INFINITY, 1), (f64::NAN, 1), (1e-40, 1)] {
        let mut b = Build::new();
        let (x, w) = (b.input("n,4"), b.weight(&[4, 2], 1));
        let y = b.op(Matmul {}, &[x, w]);
        let y = scaled(&mut b, y, factor);
        let (out, _) = run(&b.done(y), PASSES);
        assert_eq!(count(&out, "mul"), products, "{factor}");
    }
}

#[test]
fn adapters_of_low_rank_become_part_of_the_matrix() {
    for biased in [false, true] {
        let mut expected = vec!["matmul"];
        expected.extend(biased.then_some("add"));
        becomes(&expected, |b| {
            let x = b.input("2, seq, 32");
            let (w, down, up) = (b.weight(&[32, 48], 1), b.weight(&[32, 4], 2), b.weight(&[4, 48], 3));
            let mut y = b.op(Matmul {}, &[x, w]);
            if biased {
                let bias = b.weight(&[48], 4);
                y = b.op(Add {}, &[y, bias]);
            }
            let low = b.op(Matmul {}, &[x, down]);
            let low = b.op(Matmul {}, &[low, up]);
            let low = scaled(b, low, 0.25);
            b.op(Add {}, &[y, low])
        });
    }
    // Products of different operands stay two.
    becomes(&["add", "matmul", "matmul"], |b| {
        let (x, y) = (b.input("2, seq, 32"), b.input("2, seq, 32"));
        let (v, w) = (b.weight(&[32, 48], 1), b.weight(&[32, 48], 2));
        let (x, y) = (b.op(Matmul {}, &[x, v]), b.op(Matmul {}, &[y, w]));
        b.op(Add {}, &[x, y])
    });
}
