//! `demote`: products and attention of f64 are computed in f32, and so is what follows from their results.
//!
//! The fast kernels multiply f32. So the operands of `matmul`, `conv` and `attention` in f64 are converted to f32, constants at
//! compile time, and the operators behind them stay in f32 as far as the results of products reach: these have 24 bits of precision
//! anyway. A value goes back to f64 where an output takes it, or an operator that has no form in f32.
//!
//! These stay in f64: what comes before the first product; what no product has a part in, such as arithmetic of positions; and
//! products of whole numbers (integers, their sums and products), because these are exact in f64.
//!
//! A finite number that is converted and does not fit into f32 becomes the largest or lowest f32: a mask of the lowest f64
//! hides as before. What products and the operators behind them compute beyond the range of f32 is infinite, and 0 where it is
//! too close to 0.

use crate::rebuild::{Rebuild, index};
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use tfc_ir::attr::Float;
use tfc_ir::graph::{Graph, Loc, NodeData, Value};
use tfc_ir::ops::{Abs, Attention, Cast, InferCx, Le, Max, Min, Op, Select};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Type};

/// Computes products and attention of f64, and what follows from their results, in f32.
pub const PASS: Pass = Pass { name: "demote", summary: "compute products of f64, and what follows from them, in f32", run };

/// How many operators in a row [`is_whole`] looks at.
const MAX_DEPTH: usize = 12;

fn run(graph: Graph, _: &Context) -> PassResult {
    let mut stats = Stats::default();
    if !graph.nodes().any(|(_, n)| is_product(&graph, n)) {
        return Ok((graph, stats));
    }
    let values = graph.values().len();
    let mut pass = Demotion { graph: &graph, narrow: vec![None; values], demoted: vec![false; values], out: Rebuild::new(&graph) };
    let (mut products, mut others) = (0, 0);
    for (n, node) in graph.nodes() {
        let product = is_product(&graph, node);
        if (product || node.inputs.iter().any(|&v| pass.demoted[index(v)])) && pass.emit_narrow(node)? {
            *if product { &mut products } else { &mut others } += 1;
            continue;
        }
        for &v in &node.inputs {
            pass.emit_wide(v)?;
        }
        pass.out.copy(n)?;
    }
    for o in graph.outputs() {
        pass.emit_wide(o.value)?;
    }
    stats.count("products and attentions", products);
    stats.count("operators behind them", others);
    if products > 0 {
        let what = if products == 1 { "a product of f64 is".into() } else { format!("{products} products of f64 are") };
        stats.notes.push(format!("{what} computed in f32, and so is what follows; -O1 keeps f64"));
    }
    Ok((pass.out.finish(), stats))
}

/// Whether a node is a product of f64 that is computed in f32.
fn is_product(graph: &Graph, node: &NodeData) -> bool {
    matches!(node.op, Op::Matmul(_) | Op::Conv(_) | Op::Attention(_))
        && graph.ty(node.outputs[0]).elem == Elem::F64
        && !node.inputs[..2].iter().all(|&v| is_whole(graph, v, MAX_DEPTH))
}

/// Whether all elements are whole numbers, as far as `depth` operators show it.
fn is_whole(graph: &Graph, v: Value, depth: usize) -> bool {
    if !graph.ty(v).elem.is_float() {
        return true;
    }
    if let Some(t) = graph.as_const(v) {
        return t.iter().all(|x| x.to_f64().fract() == 0.0);
    }
    let (Some(node), Some(depth)) = (graph.producer(v), depth.checked_sub(1)) else { return false };
    match &node.op {
        Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Neg(_) | Op::Abs(_) | Op::Max(_) | Op::Min(_) | Op::Relu(_) | Op::Select(_) => {}
        Op::Cast(_) | Op::Matmul(_) | Op::Conv(_) | Op::Iota(_) | Op::Dims(_) => {}
        Op::Round(_) | Op::Floor(_) | Op::Ceil(_) => return true,
        op if op.traits().moved > 0 => {}
        _ => return false,
    }
    node.inputs.iter().all(|&v| is_whole(graph, v, depth))
}

/// The graph under construction.
struct Demotion<'g> {
    graph: &'g Graph,
    /// The forms in f32 of values of f64, so far.
    narrow: Vec<Option<Value>>,
    /// What is computed in f32; it has a form in f64 in the new graph only where something takes it.
    demoted: Vec<bool>,
    out: Rebuild<'g>,
}

impl Demotion<'_> {
    /// Emits a node with all its operands of f64 in f32, unless its operator has no such form.
    fn emit_narrow(&mut self, node: &NodeData) -> Result<bool, PassError> {
        let narrowed = |ty: &Type| if ty.elem == Elem::F64 && ty.quant.is_none() { ty.with_elem(Elem::F32) } else { ty.clone() };
        let types: Vec<Type> = node.inputs.iter().map(|&v| narrowed(self.graph.ty(v))).collect();
        let results: Vec<&Type> = node.outputs.iter().map(|&v| self.graph.ty(v)).collect();
        let same = |found: &Type, wanted: &Type| found == wanted || *found == narrowed(wanted);
        match node.op.infer(&mut InferCx::new(&self.graph.symbols), &types) {
            Ok(found) if found.iter().zip(results).all(|(found, wanted)| same(found, wanted)) => {}
            _ => return Ok(false),
        }
        let op = match &node.op {
            // Compared with the operand that is converted like it.
            Op::Attention(op) => {
                let fits = |x: Float| Float::from(f64::from(saturated(x.get())));
                Attention { mask_value: op.mask_value.map(fits), ..op.clone() }.into()
            }
            op => op.clone(),
        };
        let inputs = node.inputs.iter().map(|&v| self.emit_operand(v)).collect::<Result<Vec<_>, _>>()?;
        let made = self.out.emit(op, &inputs, &node.loc)?;
        for (&old, new) in node.outputs.iter().zip(made) {
            if self.out.new.ty(new) == self.graph.ty(old) {
                self.out.set(old, new);
            } else {
                self.out.new.set_name(new, self.graph.value(old).name.clone());
                self.narrow[index(old)] = Some(new);
                self.demoted[index(old)] = true;
            }
        }
        Ok(true)
    }

    /// The form of an operand that a node in f32 takes.
    fn emit_operand(&mut self, v: Value) -> Result<Value, PassError> {
        if self.graph.ty(v).elem != Elem::F64 {
            return Ok(self.out.get(v));
        }
        if let Some(narrow) = self.narrow[index(v)] {
            return Ok(narrow);
        }
        let narrow = match (self.graph.as_const(v), self.graph.producer(v)) {
            (Some(t), _) => {
                let rounded = Tensor::of(t.sizes(), t.values::<f64>().iter().map(|&x| saturated(x)).collect());
                self.out.new.add_const(rounded, self.graph.value(v).name.clone())
            }
            // What is looked at through views is converted once for all of them.
            (_, Some(node)) if matches!(node.op, Op::Reshape(_) | Op::Transpose(_) | Op::Expand(_)) => {
                let viewed = self.emit_operand(node.inputs[0])?;
                self.out.emit(node.op.clone(), &[viewed], &node.loc)?[0]
            }
            // Other types have no number that is too large.
            (_, Some(node)) if matches!(node.op, Op::Cast(_)) && self.graph.ty(node.inputs[0]).elem != Elem::F64 => {
                let wide = self.out.get(v);
                self.emit_cast(wide, &node.loc)?
            }
            (_, node) => {
                let loc = node.map_or_else(Loc::default, |n| n.loc.clone());
                let fitting = self.emit_saturated(v, &loc)?;
                self.emit_cast(fitting, &loc)?
            }
        };
        self.narrow[index(v)] = Some(narrow);
        Ok(narrow)
    }

    fn emit_cast(&mut self, v: Value, loc: &Loc) -> Result<Value, PassError> {
        Ok(self.out.emit(Cast { to: Elem::F32 }.into(), &[v], loc)?[0])
    }

    /// [`saturated`] of every element, in f64.
    fn emit_saturated(&mut self, v: Value, loc: &Loc) -> Result<Value, PassError> {
        let x = self.out.get(v);
        let [largest, lowest, finite] =
            [f32::MAX.into(), f32::MIN.into(), f64::MAX].map(|n| self.out.new.add_const(Tensor::scalar(Elem::F64, Scalar::Float(n)), None));
        let mut emit = |op: Op, operands: &[Value]| self.out.emit(op, operands, loc).map(|results| results[0]);
        let magnitude = emit(Abs {}.into(), &[x])?;
        let is_finite = emit(Le {}.into(), &[magnitude, finite])?;
        let clamped = emit(Max {}.into(), &[x, lowest])?;
        let clamped = emit(Min {}.into(), &[clamped, largest])?;
        emit(Select {}.into(), &[is_finite, clamped, x])
    }

    /// Gives a value a form of its own type, which nodes and outputs in f64 take.
    fn emit_wide(&mut self, v: Value) -> Result<(), PassError> {
        if let Some(narrow) = self.narrow[index(v)].filter(|_| self.demoted[index(v)] && self.out.try_get(v).is_none()) {
            let loc = self.graph.producer(v).map_or_else(Loc::default, |n| n.loc.clone());
            let wide = self.out.emit(Cast { to: Elem::F64 }.into(), &[narrow], &loc)?[0];
            self.out.set(v, wide);
        }
        Ok(())
    }
}

/// The nearest f32; for a finite number, the nearest finite one.
fn saturated(x: f64) -> f32 {
    if x.is_finite() { x.clamp(f32::MIN.into(), f32::MAX.into()) as f32 } else { x as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_the_range_become_the_last_ones_within() {
        let (largest, lowest) = (f32::MAX, f32::MIN);
        let pairs = [(0.1, 0.1), (1e39, largest), (f64::MAX, largest), (f64::MIN, lowest), (3.402_823_6e38, largest), (-0.0, -0.0)];
        for (x, y) in pairs {
            assert_eq!(saturated(x).to_bits(), f32::to_bits(y), "{x}");
        }
        assert_eq!([f64::INFINITY, f64::NEG_INFINITY].map(saturated), [f32::INFINITY, f32::NEG_INFINITY]);
        assert!(saturated(f64::NAN).is_nan());
    }
}
