//! Control flow: branches that a constant decides are inlined, others are computed both; loops whose
//! number of rounds is known are unrolled.

use super::build::decided_by;
use super::{Call, Importer, Res, Val, demand, unsupported};
use crate::onnx::model::{Attribute, Graph};
use tfc_ir::dim::{Dim, Range, SymbolTable};
use tfc_ir::ops::Slice;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::{Elem, Shape};

/// The largest number of rounds that a loop is unrolled to.
const MAX_ROUNDS: i64 = 1024;

pub(super) fn graph<'a>(n: &'a Call, name: &str) -> Res<&'a Graph> {
    match n.attributes.get(name) {
        Some(Attribute::Graph(g)) => Ok(g),
        Some(a) => Err(super::Fail::Invalid(format!("the attribute `{name}` must be a graph, but is {}", a.kind()))),
        None => Err(super::Fail::Invalid(format!("the attribute `{name}` is missing"))),
    }
}

/// A branch that is known to be taken is inlined. Sizes may decide which one that is.
pub(super) fn if_(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    let condition = n.input(0)?;
    demand!(
        cx.elem(condition) == Elem::Bool && cx.shape(condition).elements().is(1),
        "the condition must be one truth value, but it is {}",
        cx.ty(condition)
    );
    let (yes, no) = (graph(n, "then_branch")?, graph(n, "else_branch")?);
    if let Some(c) = cx.const_scalar(condition) {
        return cx.subgraph(if c != 0.0 { yes } else { no }, &[]);
    }
    let sizes = cx.computed_from(condition).cloned();
    let Some(sizes) = sizes else { return both(cx, condition, yes, no) };
    // Both branches may be computed only if neither demands anything of the sizes.
    let before = cx.state();
    let results = both(cx, condition, yes, no);
    if results.is_ok() && cx.allows_the_same(&before) {
        return results;
    }
    cx.restore(before);
    // Exporters choose between branches for sizes of 0 or 1 and for all others: these are the ones that are compiled.
    for least in [1, 2] {
        let symbols = cx.symbols_from(least, &[condition]);
        if let Some(c) = cx.holds(condition, &symbols) {
            warn_of_other_branch(cx, condition, c, &symbols);
            cx.narrow_ranges(symbols);
            return cx.subgraph(if c { yes } else { no }, &[]);
        }
    }
    unsupported!("the input shapes decide which branch is taken, and the branches do not allow the same shapes{}", decided_by(&sizes))
}

/// Says which dimensions are about to be narrowed to the ranges in which the condition is `c`, and how the other branch is had.
fn warn_of_other_branch(cx: &mut Importer, condition: Val, c: bool, symbols: &SymbolTable) {
    for (s, to) in symbols {
        let from = cx.symbols()[s];
        if from == *to {
            continue;
        }
        let decides = |n: &i64| {
            let mut fixed = symbols.clone();
            fixed.insert(s.clone(), Range { min: *n, max: *n });
            cx.holds(condition, &fixed) == Some(!c)
        };
        let (name, least, node) = (s.name(), to.min, cx.loc.clone());
        let other = match (from.min..least).rfind(decides) {
            Some(n) => format!("compile with --dim {name}={n} for the other branch"),
            None => format!("compile with --dim {name}=N for smaller sizes"),
        };
        cx.report.warnings.push(format!("dimension `{name}` is taken to be {least} or more because of If `{node}`; {other}"));
    }
}

/// Both branches are pure, so that a run-time condition may choose between their results.
fn both(cx: &mut Importer, condition: Val, yes: &Graph, no: &Graph) -> Res<Vec<Val>> {
    let (yes, no) = (cx.subgraph(yes, &[])?, cx.subgraph(no, &[])?);
    demand!(yes.len() == no.len(), "the branches have {} and {} results", yes.len(), no.len());
    let c = cx.reshape(condition, Shape::default())?;
    let mut out = Vec::with_capacity(yes.len());
    for (i, (a, b)) in yes.into_iter().zip(no).enumerate() {
        out.push(choice(cx, c, a, b, i)?);
    }
    Ok(out)
}

/// `c ? a : b` for result `i` of branches; of sequences entry by entry.
fn choice(cx: &mut Importer, c: Val, a: Val, b: Val, i: usize) -> Res<Val> {
    if a == b {
        return Ok(a);
    }
    if let (Some(x), Some(y)) = (cx.parts(a), cx.parts(b))
        && x.len() == y.len()
    {
        let (x, y) = (x.to_vec(), y.to_vec());
        let parts = x.into_iter().zip(y).map(|(x, y)| choice(cx, c, x, y, i)).collect::<Res<_>>()?;
        return Ok(cx.sequence(cx.elem(a), parts));
    }
    if !cx.is_tensor(a) || !cx.is_tensor(b) {
        unsupported!("the branches give result {i} sequences of different lengths, and the condition is not known at compile time");
    }
    let (ta, tb) = (cx.ty(a).clone(), cx.ty(b).clone());
    if ta.elem != tb.elem || ta.shape != tb.shape {
        unsupported!("the branches give result {i} the types {ta} and {tb}, and the condition is not known at compile time");
    }
    cx.select(c, a, b)
}

impl Importer<'_> {
    /// One round of a loop: nodes that `body` imports are named after it.
    pub(super) fn round(&mut self, n: &Call, round: i64, body: impl FnOnce(&mut Self) -> Res<Vec<Val>>) -> Res<Vec<Val>> {
        let before = self.prefix.len();
        self.prefix.push_str(&format!("{}[{round}]/", n.node.name));
        let results = body(self);
        self.prefix.truncate(before);
        results
    }
}

pub(super) fn loop_(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    let body = graph(n, "body")?;
    let state = n.inputs.len().saturating_sub(2);
    demand!(body.inputs.len() == state + 2, "the body takes {} operands, but the loop carries {state} values", body.inputs.len());
    demand!(body.outputs.len() > state, "the body has {} results, but the loop carries {state} values", body.outputs.len());
    let scans = body.outputs.len() - 1 - state;
    let limit = match n.opt(0) {
        Some(v) => match cx.dim(v, "the number of rounds")?.as_const() {
            Some(n) => n.max(0),
            None => unsupported!("the number of rounds of a loop must be known at compile time"),
        },
        None => i64::MAX,
    };
    let mut carried: Vec<Val> = (0..state).map(|i| n.input(i + 2)).collect::<Res<_>>()?;
    let mut scanned: Vec<Vec<Val>> = vec![vec![]; scans];
    let yes = cx.constant(Tensor::scalar(Elem::Bool, Scalar::Int(1)));
    let mut condition = n.opt(1).unwrap_or(yes);
    let mut round = 0;
    while round < limit {
        match cx.const_scalar(condition) {
            Some(0.0) => break,
            Some(_) => {}
            None => unsupported!("the condition of a loop must be known at compile time"),
        }
        if round == MAX_ROUNDS {
            unsupported!("the loop has more than {MAX_ROUNDS} rounds; at most that many are unrolled");
        }
        let i = cx.constant(Tensor::of(&[], vec![round]));
        let mut operands = vec![i, condition];
        operands.extend(&carried);
        let mut results = cx.round(n, round, |cx| cx.subgraph(body, &operands))?.into_iter();
        condition = results.next().expect("counted above");
        carried = results.by_ref().take(state).collect();
        scanned.iter_mut().zip(results).for_each(|(s, v)| s.push(v));
        round += 1;
    }
    for parts in scanned {
        if parts.is_empty() {
            unsupported!("a loop of no rounds that collects results is not supported");
        }
        carried.push(stack(cx, &parts, 0)?);
    }
    Ok(carried)
}

/// Joins tensors along an axis that is made for it.
pub(super) fn stack(cx: &mut Importer, parts: &[Val], axis: usize) -> Res<Val> {
    demand!(parts.iter().all(|&v| cx.is_tensor(v)), "sequences cannot be joined to a tensor");
    let parts = parts.iter().map(|&v| cx.unsqueeze(v, &[axis])).collect::<Res<Vec<Val>>>()?;
    cx.concat(&parts, axis)
}

/// A scan is a loop over slices, as long as the axis that is scanned.
pub(super) fn scan(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    let body = graph(n, "body")?;
    let scanned = n.int("num_scan_inputs", 0)?;
    let total = n.inputs.len();
    let Some(state) = usize::try_from(scanned).ok().and_then(|s| total.checked_sub(s)) else {
        return Err(super::Fail::Invalid(format!("num_scan_inputs is {scanned}, but {total} operands are given")));
    };
    let count = total - state;
    demand!(count >= 1, "a scan needs something to scan");
    demand!(body.inputs.len() == total, "the body takes {} operands, but the scan has {total}", body.inputs.len());
    demand!(body.outputs.len() >= state, "the body has {} results, but the scan carries {state} values", body.outputs.len());
    let outputs = body.outputs.len() - state;
    let list = |name: &str, len: usize| -> Res<Vec<i64>> {
        let l = n.ints(name)?.unwrap_or_else(|| vec![0; len]);
        demand!(l.len() == len, "`{name}` has {} entries, but {len} are needed", l.len());
        Ok(l)
    };
    let (in_axes, in_back) = (list("scan_input_axes", count)?, list("scan_input_directions", count)?);
    let (out_axes, out_back) = (list("scan_output_axes", outputs)?, list("scan_output_directions", outputs)?);
    let mut carried: Vec<Val> = (0..state).map(|i| n.input(i)).collect::<Res<_>>()?;
    let mut sources = vec![];
    for (i, &axis) in in_axes.iter().enumerate() {
        let v = n.input(state + i)?;
        let axis = super::call::resolve_axis(axis, cx.rank(v))?;
        sources.push((v, axis));
    }
    let size = cx.shape(sources[0].0)[sources[0].1].clone();
    let Some(rounds) = size.as_const() else {
        unsupported!("the scanned axis has the size {size}, which must be known; fix it with --dim")
    };
    if rounds > MAX_ROUNDS {
        unsupported!("the scan has {rounds} rounds; at most {MAX_ROUNDS} are unrolled");
    }
    let mut collected: Vec<Vec<Val>> = vec![vec![]; outputs];
    for round in 0..rounds {
        let mut operands = carried.clone();
        for (i, &(v, axis)) in sources.iter().enumerate() {
            let at = if in_back[i] == 0 { round } else { rounds - 1 - round };
            let mut lens = cx.shape(v).clone();
            let mut starts = vec![Dim::from(0); lens.rank()];
            (starts[axis], lens.0[axis]) = (Dim::from(at), Dim::from(1));
            let part = cx.emit(Slice { starts, steps: vec![1; lens.rank()], lens }, &[v])?;
            operands.push(cx.squeeze(part, &[axis])?);
        }
        let mut results = cx.round(n, round, |cx| cx.subgraph(body, &operands))?.into_iter();
        carried = results.by_ref().take(state).collect();
        collected.iter_mut().zip(results).for_each(|(s, v)| s.push(v));
    }
    for (i, mut parts) in collected.into_iter().enumerate() {
        let Some(&first) = parts.first() else { unsupported!("a scan of no rounds is not supported") };
        if out_back[i] != 0 {
            parts.reverse();
        }
        let axis = super::call::resolve_axis(out_axes[i], cx.rank(first) + 1)?;
        carried.push(stack(cx, &parts, axis)?);
    }
    Ok(carried)
}
