//! What the tests of passes share: building graphs, running passes, comparing what graphs compute.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use tfc_ir::dim::{Bindings, Dim};
use tfc_ir::graph::{Def, Graph, Loc, Value};
use tfc_ir::ops::Op;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape, Type};
use tfc_ir::verify::verify;
use tfc_passes::{Context, PassError, Stats, parse_passes, run_pipeline};

/// A graph under construction, with short names for what tests build.
pub struct Build {
    pub g: Graph,
    nodes: usize,
}

impl Build {
    pub fn new() -> Build {
        Build { g: Graph::new("test"), nodes: 0 }
    }

    /// An f32 input; sizes are written `2, seq, 8`.
    pub fn input(&mut self, sizes: &str) -> Value {
        self.input_of(Elem::F32, sizes)
    }

    pub fn input_of(&mut self, elem: Elem, sizes: &str) -> Value {
        let name = format!("in{}", self.g.inputs().len());
        self.g.add_input(&name, Type::new(elem, shape(sizes)))
    }

    /// An f32 scalar constant.
    pub fn scalar(&mut self, x: f64) -> Value {
        self.g.add_const(Tensor::scalar(Elem::F32, Scalar::Float(x)), None)
    }

    /// An f32 constant of pseudo-random numbers in [-1, 1).
    pub fn weight(&mut self, sizes: &[usize], seed: u64) -> Value {
        self.g.add_const(random(Elem::F32, sizes, seed), None)
    }

    pub fn constant(&mut self, t: Tensor) -> Value {
        self.g.add_const(t, None)
    }

    /// Adds a node; its location is `nodeN`.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        let op = op.into();
        let loc = Loc::node(&format!("node{}", self.nodes));
        self.nodes += 1;
        self.g.add(op.clone(), inputs, &loc).unwrap_or_else(|e| panic!("{}: {e}", op.mnemonic()))
    }

    pub fn output(&mut self, v: Value) {
        let name = format!("out{}", self.g.outputs().len());
        self.g.add_output(&name, v);
    }

    pub fn done(mut self, output: Value) -> Graph {
        self.output(output);
        self.g
    }
}

/// Sizes written `2, seq, 8`; a word is a symbol.
pub fn shape(sizes: &str) -> Shape {
    let words = sizes.split(',').map(str::trim).filter(|w| !w.is_empty());
    words.map(|w| w.parse::<i64>().map(Dim::from).unwrap_or_else(|_| Dim::symbol(w))).collect()
}

/// Pseudo-random elements: floats in [-1, 1), integers in 0..4, truth values.
pub fn random(elem: Elem, sizes: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    Tensor::build(elem, sizes, |_| match elem {
        e if e.is_float() => Scalar::Float(next() as f64 / (1u64 << 30) as f64 - 1.0),
        Elem::Bool => Scalar::Int(i128::from(next() % 2)),
        _ => Scalar::Int(i128::from(next() % 4)),
    })
}

/// Random inputs for a graph, every symbol bound to `size`.
pub fn random_inputs(g: &Graph, size: i64, seed: u64) -> (Vec<Tensor>, Bindings) {
    let bindings: Bindings = g.symbols.keys().map(|s| (s.clone(), size)).collect();
    let tensor = |(i, &v): (usize, &Value)| {
        let ty = g.ty(v);
        random(ty.elem, &ty.shape.eval(&bindings).expect("symbols are bound"), seed + i as u64)
    };
    (g.inputs().iter().enumerate().map(tensor).collect(), bindings)
}

/// Runs passes by name, verifying after each one; returns the graph and the statistics of the last one.
pub fn run(g: &Graph, passes: &str) -> (Graph, Stats) {
    let mut last = Stats::default();
    let passes = parse_passes(passes).expect("known passes");
    let out = run_pipeline::<PassError>(g.clone(), &passes, &Context::default(), |ran| {
        last = ran.stats.clone();
        if let Err(e) = verify(ran.graph) {
            panic!("after {}: {e:?}", ran.pass.name);
        }
        Ok(std::ops::ControlFlow::Continue(()))
    });
    (out.expect("passes succeed"), last)
}

/// How many nodes have the mnemonic.
pub fn count(g: &Graph, mnemonic: &str) -> usize {
    g.nodes().filter(|(_, d)| d.op.mnemonic() == mnemonic).count()
}

/// The constants that something uses.
pub fn constants(g: &Graph) -> Vec<&Tensor> {
    let uses = g.use_counts();
    let used = g.values().filter(|(v, _)| uses[*v] > 0);
    used.filter_map(|(_, d)| if let Def::Const(t) = &d.def { Some(t) } else { None }).collect()
}

/// Both graphs compute the same bits for random inputs.
pub fn assert_exact(a: &Graph, b: &Graph) {
    for (seed, size) in [(1, 3), (50, 5)] {
        let (inputs, bindings) = random_inputs(a, size, seed);
        assert_eq!(a.evaluate(&inputs, &bindings).unwrap(), b.evaluate(&inputs, &bindings).unwrap());
    }
}

/// Both graphs compute the same up to 1e-5 (halves: 5e-3) relative to the largest element, for random inputs.
pub fn assert_close(a: &Graph, b: &Graph) {
    for (seed, size) in [(1, 3), (50, 5)] {
        let (inputs, bindings) = random_inputs(a, size, seed);
        let (x, y) = (a.evaluate(&inputs, &bindings).unwrap(), b.evaluate(&inputs, &bindings).unwrap());
        for (x, y) in x.iter().zip(&y) {
            assert_eq!((x.elem(), x.sizes()), (y.elem(), y.sizes()));
            let tolerance = if x.elem() == Elem::F16 { 5e-3 } else { 1e-5 };
            let largest = x.to_f64s().iter().fold(0.0f64, |m, v| m.max(v.abs()));
            for (i, (p, q)) in x.to_f64s().iter().zip(y.to_f64s()).enumerate() {
                assert!(
                    *p == q || (p - q).abs() <= tolerance * largest.max(1e-3) || (p.is_nan() && q.is_nan()),
                    "element {i}: {p} and {q}"
                );
            }
        }
    }
}
