//! Samples along the first axis of tensors: some of them, and many in several runs, which need the memory of a few.

use crate::diag::{Diagnostic, Result};
use crate::npz;
use std::collections::BTreeSet;
use tfc_ir::tensor::Tensor;
use tfc_runtime::expr::Expr;
use tfc_runtime::model::Port;
use tfc_runtime::{Buffer, Model};

/// How many samples go into one run.
pub const SAMPLES_AT_ONCE: usize = 64;

/// Runs a model on inputs in its order, `most` samples at a time where it has a free dimension of samples: one that is the first
/// axis of some inputs and of all outputs, and part of no other size. `run` gets the inputs of each run; the outputs of all runs
/// are joined. What has no such dimension, or whose dimension is in `fixed`, is one run.
///
/// # Errors
/// Those of `run`, and when there is no memory for the outputs.
pub fn in_parts(
    model: &Model,
    inputs: &[Tensor],
    fixed: &[(&str, i64)],
    most: usize,
    mut run: impl FnMut(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Result<Vec<Tensor>> {
    let name = sample_dimension(model).filter(|name| !fixed.iter().any(|(f, _)| f == name));
    let along: Vec<bool> = model.inputs().iter().map(|p| name.is_some_and(|name| is_along(p, name))).collect();
    let samples = along.iter().zip(inputs).find(|(along, _)| **along).map_or(0, |(_, t)| t.sizes()[0]);
    if samples <= most {
        return run(inputs);
    }
    let mut parts: Vec<Vec<Tensor>> = vec![];
    for begin in (0..samples).step_by(most) {
        let end = samples.min(begin + most);
        let which: Vec<usize> = (begin..end).collect();
        let part = along.iter().zip(inputs).map(|(along, t)| if *along { rows(t, &which) } else { Ok(t.clone()) });
        parts.push(run(&part.collect::<Result<Vec<_>>>()?)?);
    }
    (0..model.outputs().len()).map(|i| joined(parts.iter().map(|p| &p[i]))).collect()
}

fn sample_dimension(model: &Model) -> Option<&str> {
    let name = model.inputs().iter().find_map(|p| match p.shape.first() {
        Some(Expr::Symbol(s)) => Some(s.as_str()),
        _ => None,
    })?;
    let only_along = |p: &Port| is_along(p, name) && !mentions(&p.shape[1..], name);
    let fits = |p: &Port| only_along(p) || !mentions(&p.shape, name);
    (model.inputs().iter().all(fits) && model.outputs().iter().all(only_along)).then_some(name)
}

fn is_along(port: &Port, name: &str) -> bool {
    matches!(port.shape.first(), Some(Expr::Symbol(s)) if s == name)
}

fn mentions(sizes: &[Expr], name: &str) -> bool {
    let mut symbols = BTreeSet::new();
    sizes.iter().for_each(|e| e.collect_symbols(&mut symbols));
    symbols.contains(name)
}

/// Some indices of the first axis of a tensor, in this order. Neighbours stay where they are in memory; others are copied. No input or
/// output of a model has elements of less than a byte.
///
/// # Errors
/// When there is no memory for a copy.
///
/// # Panics
/// When `which` is empty, or an index is not there.
pub fn rows(t: &Tensor, which: &[usize]) -> Result<Tensor> {
    let bytes = t.bytes().len() / t.sizes()[0];
    let row = |begin: usize, end: usize| {
        let sizes = [&[end - begin], &t.sizes()[1..]].concat();
        Tensor::new(t.elem(), sizes, t.bytes().slice(begin * bytes..end * bytes)).expect("whole rows")
    };
    if which.windows(2).all(|pair| pair[0] + 1 == pair[1]) {
        return Ok(row(which[0], which[0] + which.len()));
    }
    joined(which.iter().map(|&i| row(i, i + 1)).collect::<Vec<_>>().iter())
}

/// Tensors one after the other along the first axis.
fn joined<'a>(parts: impl Iterator<Item = &'a Tensor> + Clone) -> Result<Tensor> {
    let (elem, mut sizes) = parts.clone().next().map(|t| (t.elem(), t.sizes().to_vec())).expect("one part or more");
    sizes[0] = parts.clone().map(|t| t.sizes()[0]).sum();
    let bytes = parts.clone().map(|t| t.bytes().len()).sum();
    let mut data = Buffer::new(bytes).map_err(|e| Diagnostic::failed(format!("no memory for a tensor of {bytes} bytes: {e}")))?;
    let mut at = 0;
    for t in parts {
        data[at..at + t.bytes().len()].copy_from_slice(t.bytes());
        at += t.bytes().len();
    }
    Tensor::new(elem, sizes, npz::owned(data)).map_err(|e| Diagnostic::bug(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{self, Optimized};
    use crate::inputs;
    use std::sync::Arc;
    use tfc_runtime::Session;

    /// How many samples each run had, and what came out.
    fn runs(source: &str, tensors: &[Tensor], fixed: &[(&str, i64)]) -> (Vec<usize>, Vec<Tensor>) {
        let graph = tfc_ir::text::parse(&format!("tfc.ir 1 {source}"), None).unwrap();
        let model = Arc::new(driver::jit(&Optimized { graph, ledger: vec![], notes: vec![], accuracy: None }).unwrap());
        let mut session = Session::new(model.clone(), 1).unwrap();
        let mut seen = vec![];
        let outputs = in_parts(&model, tensors, fixed, 2, |part| {
            seen.push(part[0].sizes()[0]);
            inputs::run(&mut session, part, fixed)
        });
        (seen, outputs.unwrap())
    }

    #[test]
    fn rows_are_taken_in_order() {
        let t = Tensor::of(&[4, 2], (0..8).collect::<Vec<i64>>());
        let of = |which: &[usize]| rows(&t, which).unwrap();
        assert_eq!(of(&[1, 2]), Tensor::of(&[2, 2], vec![2i64, 3, 4, 5]));
        assert_eq!(of(&[3, 0]), Tensor::of(&[2, 2], vec![6i64, 7, 0, 1]));
        // Neighbours are not copied.
        assert_eq!(of(&[1, 2]).bytes().as_ptr(), t.bytes()[16..].as_ptr());
    }

    #[test]
    fn samples_are_split_where_they_are_apart() {
        let x = Tensor::of(&[5, 2], (0..10).map(|i| i as f32).collect());
        let t = Tensor::of(&[2], vec![1f32, -1.0]);
        let sum = Tensor::of(&[5, 2], (0..10).map(|i| i as f32 + if i % 2 == 0 { 1.0 } else { -1.0 }).collect());
        let source = "symbol b 0..9 input %x: f32[b, 2] input %t: f32[2] %y = add %x, %t : f32[b, 2] output y = %y";
        let both = [x.clone(), t];
        assert_eq!(runs(source, &both, &[]), (vec![2, 2, 1], vec![sum.clone()]));
        assert_eq!(runs(source, &both, &[("b", 5)]), (vec![5], vec![sum]));
        // An output that is not one of samples keeps them together.
        let source = "symbol b 0..9 input %x: f32[b, 2] %y = reduce %x {kind = sum, axes = [0], keep = false} : f32[2] output y = %y";
        assert_eq!(runs(source, std::slice::from_ref(&x), &[]), (vec![5], vec![Tensor::of(&[2], vec![20f32, 25.0])]));
        let source = "symbol b 0..9 input %x: f32[b, 2] %y = matmul %x, %z : f32[b, b] output y = %y"
            .replace("%y = matmul", "%z = transpose %x {perm = [1, 0]} : f32[2, b] %y = matmul");
        assert_eq!(runs(&source, &[x], &[]).0, [5]);
    }
}
