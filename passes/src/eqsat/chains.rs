//! Chains of steps with constants: products, quotients, sums and differences of one value, one behind the other.
//!
//! Every such step is affine, so a chain is one product and one sum. Rules would find that too, pair by pair and from every
//! end at once, which takes an e-graph of the order of the square of the chain's length. So long chains are merged before, in
//! one sweep over the graph; the rules are left with short ones, which they look at together with what is around them.

use super::uniform;
use crate::rebuild::{Rebuild, index};
use crate::rules::is_normal;
use crate::table::PassError;
use tfc_ir::graph::{Graph, Loc, NodeData, Value};
use tfc_ir::ops::{Add, Mul, Op};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;

/// Chains of up to this many steps are left to the rules: no pattern has more of them in a row.
const SHORT: usize = 8;

/// Numbers of a constant, in `f64`.
#[derive(Clone)]
struct Numbers {
    sizes: Vec<usize>,
    list: Vec<f64>,
}

impl Numbers {
    fn one(x: f64) -> Numbers {
        Numbers { sizes: vec![], list: vec![x] }
    }

    /// Those of a constant; one number where all are the same, as a chain does not change the shape.
    fn of(t: &Tensor) -> Numbers {
        if let Some(x) = uniform(t) {
            return Numbers::one(x.to_f64());
        }
        Numbers { sizes: t.sizes().to_vec(), list: t.to_f64s() }
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Numbers {
        Numbers { sizes: self.sizes.clone(), list: self.list.iter().map(|&x| f(x)).collect() }
    }

    /// `f` of both by element, one of them broadcast to the sizes of the other; `None` if the result has more elements than either.
    fn with(&self, other: &Numbers, f: impl Fn(f64, f64) -> f64) -> Option<Numbers> {
        let (long, short) = if self.list.len() >= other.list.len() { (self, other) } else { (other, self) };
        let rank = long.sizes.len().max(short.sizes.len());
        let padded = |n: &Numbers| [vec![1; rank - n.sizes.len()], n.sizes.clone()].concat();
        let (sizes, repeated) = (padded(long), padded(short));
        if sizes.iter().zip(&repeated).any(|(&n, &m)| m != 1 && m != n) {
            return None;
        }
        let place = |i: usize| {
            let (mut rest, mut at, mut step) = (i, 0, 1);
            for (&n, &m) in sizes.iter().zip(&repeated).rev() {
                at += if m == 1 { 0 } else { rest % n * step };
                (rest, step) = (rest / n, step * m);
            }
            at
        };
        let of = |n: &Numbers, i: usize| if std::ptr::eq(n, long) { n.list[i] } else { n.list[place(i)] };
        let list = (0..long.list.len()).map(|i| f(of(self, i), of(other, i))).collect();
        Some(Numbers { sizes, list })
    }

    fn tensor(&self, elem: Elem) -> Tensor {
        Tensor::build(elem, &self.sizes, |i| Scalar::Float(self.list[i]))
    }
}

/// What a value is: `base * factor + summand`.
#[derive(Clone)]
struct Affine {
    base: Value,
    factor: Numbers,
    summand: Numbers,
    steps: usize,
}

impl Affine {
    /// No step yet.
    fn identity(base: Value) -> Affine {
        Affine { base, factor: Numbers::one(1.0), summand: Numbers::one(0.0), steps: 0 }
    }

    /// One step more, if its numbers are neither too large nor too small for the element type.
    fn then(&self, step: &Step, elem: Elem) -> Option<Affine> {
        let Affine { base, factor, summand, steps } = self;
        let (factor, summand) = match step {
            Step::Mul(c) => (factor.with(c, |x, c| x * c)?, summand.with(c, |x, c| x * c)?),
            Step::Div(c) => (factor.with(c, |x, c| x / c)?, summand.with(c, |x, c| x / c)?),
            Step::Add(c) => (factor.clone(), summand.with(c, |x, c| x + c)?),
            Step::Sub(c) => (factor.clone(), summand.with(c, |x, c| x - c)?),
            Step::SubFrom(c) => (factor.map(|x| -x), summand.with(c, |x, c| c - x)?),
            Step::Neg => (factor.map(|x| -x), summand.map(|x| -x)),
        };
        // A summand may vanish, but not overflow.
        let fits = factor.list.iter().all(|&x| is_normal(x, elem)) && summand.list.iter().all(|x| is_normal(x.abs().max(1.0), elem));
        fits.then(|| Affine { base: *base, factor, summand, steps: steps + 1 })
    }

    fn is_long(&self) -> bool {
        self.steps > SHORT
    }
}

/// A step of a chain, with the constant.
enum Step {
    Mul(Numbers),
    Div(Numbers),
    Add(Numbers),
    Sub(Numbers),
    /// `c - x`
    SubFrom(Numbers),
    Neg,
}

/// The operand that a step is taken from, if the node is a step; by its position.
fn stepped(graph: &Graph, node: &NodeData) -> Option<usize> {
    let is_constant = |v: Value| graph.as_const(v).is_some() && graph.ty(v).quant.is_none();
    let position = match (&node.op, &node.inputs[..]) {
        (Op::Neg(_), _) => 0,
        (Op::Mul(_) | Op::Div(_) | Op::Add(_) | Op::Sub(_), &[_, c]) if is_constant(c) => 0,
        (Op::Mul(_) | Op::Add(_) | Op::Sub(_), &[c, _]) if is_constant(c) => 1,
        _ => return None,
    };
    let (x, y) = (graph.ty(node.inputs[position]), graph.ty(node.outputs[0]));
    (x == y && y.elem.is_float() && !is_constant(node.inputs[position])).then_some(position)
}

/// The step that a node is, which is taken from the operand at this position.
fn step(graph: &Graph, node: &NodeData, position: usize) -> Step {
    let constant = || Numbers::of(graph.as_const(node.inputs[1 - position]).expect("the other operand is constant"));
    match (&node.op, position) {
        (Op::Mul(_), _) => Step::Mul(constant()),
        (Op::Div(_), _) => Step::Div(constant()),
        (Op::Add(_), _) => Step::Add(constant()),
        (Op::Sub(_), 0) => Step::Sub(constant()),
        (Op::Sub(_), _) => Step::SubFrom(constant()),
        _ => Step::Neg,
    }
}

/// What the values in chains are that have more than [`SHORT`] steps with each other, and the value that the last step of each
/// is taken from.
fn chains(graph: &Graph) -> (Vec<Option<Affine>>, Vec<Option<Value>>) {
    let mut from: Vec<Option<Value>> = vec![None; graph.values().len()];
    let mut steps = vec![0; graph.values().len()];
    for (_, node) in graph.nodes() {
        if let Some(position) = stepped(graph, node) {
            let (x, y) = (node.inputs[position], node.outputs[0]);
            from[index(y)] = Some(x);
            steps[index(y)] = steps[index(x)] + 1;
        }
    }
    let mut inside: Vec<bool> = steps.iter().map(|&n| n > SHORT).collect();
    for (_, node) in graph.nodes().rev() {
        let y = index(node.outputs[0]);
        if let Some(x) = from[y].filter(|_| inside[y]) {
            inside[index(x)] = true;
        }
    }
    let mut chains: Vec<Option<Affine>> = vec![None; graph.values().len()];
    for (_, node) in graph.nodes() {
        let y = node.outputs[0];
        if let Some(position) = stepped(graph, node).filter(|_| inside[index(y)]) {
            let (x, elem) = (node.inputs[position], graph.ty(y).elem);
            let step = step(graph, node, position);
            let longer = chains[index(x)].as_ref().and_then(|chain| chain.then(&step, elem));
            chains[index(y)] = longer.or_else(|| Affine::identity(x).then(&step, elem));
        }
    }
    (chains, from)
}

/// The graph with its long chains merged, without what nothing needs then; and how many values that are.
pub(super) fn merged(graph: Graph) -> Result<(Graph, u64), PassError> {
    let (chains, from) = chains(&graph);
    let long = |v: Value| chains[index(v)].as_ref().filter(|chain| chain.is_long());
    if !graph.values().any(|(v, _)| long(v).is_some()) {
        return Ok((graph, 0));
    }
    let mut needed = vec![false; graph.values().len()];
    graph.outputs().iter().for_each(|o| needed[index(o.value)] = true);
    for (_, node) in graph.nodes().rev() {
        if node.outputs.iter().any(|&v| needed[index(v)]) {
            match long(node.outputs[0]) {
                Some(chain) => needed[index(chain.base)] = true,
                None => node.inputs.iter().for_each(|&v| needed[index(v)] = true),
            }
        }
    }
    let mut out = Rebuild::new(&graph);
    let mut count = 0;
    for (n, node) in graph.nodes() {
        let y = node.outputs[0];
        match long(y) {
            _ if !node.outputs.iter().any(|&v| needed[index(v)]) => {}
            None => out.copy(n)?,
            Some(chain) => {
                // The names of all steps up to one that is there itself.
                let mut names: Vec<&str> = node.loc.names().collect();
                let mut at = from[index(y)];
                while let Some(v) = at.filter(|&v| v != chain.base && !needed[index(v)]) {
                    names.extend(graph.producer(v).into_iter().flat_map(|d| d.loc.names()));
                    at = from[index(v)];
                }
                let loc = Loc::nodes(names);
                let mut value = out.get(chain.base);
                let elem = graph.ty(y).elem;
                for (op, numbers, neutral) in [(Op::from(Mul {}), &chain.factor, 1.0), (Add {}.into(), &chain.summand, 0.0)] {
                    if numbers.list.iter().any(|&x| x != neutral) {
                        let constant = out.new.add_const(numbers.tensor(elem), None);
                        value = out.emit(op, &[value, constant], &loc)?[0];
                    }
                }
                out.set(y, value);
                count += 1;
            }
        }
    }
    Ok((out.finish(), count))
}
