//! `Einsum`: any equation, by transposing, reshaping, multiplying and reducing.

use super::{Call, Fail, Importer, Res, Val, demand};
use std::collections::BTreeMap;
use tfc_ir::dim::Dim;
use tfc_ir::ops::reduce::ReduceKind;
use tfc_ir::types::{Elem, Shape};

/// A letter, or an axis of the ellipsis counted from the right.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Label {
    Rest(usize),
    Letter(char),
}

/// A tensor whose axes have labels.
#[derive(Clone)]
struct Term {
    value: Val,
    labels: Vec<Label>,
}

pub(super) fn einsum(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    let text: String = n.text("equation", "")?.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match text.split_once("->") {
        Some((l, r)) => (l, Some(r)),
        None => (text.as_str(), None),
    };
    let operands = n.all()?;
    let parts: Vec<&str> = left.split(',').collect();
    demand!(parts.len() == operands.len(), "the equation `{text}` has {} terms, but {} operands are given", parts.len(), operands.len());
    let mut terms = vec![];
    for (part, &value) in parts.iter().zip(&operands) {
        terms.push(Term { value, labels: labels(part, Some(cx.rank(value)), &text)? });
    }
    let rest =
        terms.iter().flat_map(|t| &t.labels).filter_map(|l| if let Label::Rest(i) = l { Some(i + 1) } else { None }).max().unwrap_or(0);
    let output = match right {
        Some(r) => {
            let letters = r.replace("...", "").chars().count();
            labels(r, Some(letters + if r.contains("...") { rest } else { 0 }), &text)?
        }
        None => {
            let all: Vec<Label> = terms.iter().flat_map(|t| t.labels.iter().copied()).collect();
            let mut once: Vec<Label> = all.iter().copied().filter(|l| all.iter().filter(|m| *m == l).count() == 1).collect();
            once.retain(|l| matches!(l, Label::Letter(_)));
            once.sort();
            (0..rest).rev().map(Label::Rest).chain(once).collect()
        }
    };
    for (i, l) in output.iter().enumerate() {
        demand!(!output[..i].contains(l), "a label is twice in the result of `{text}`");
        demand!(terms.iter().any(|t| t.labels.contains(l)), "a label of the result of `{text}` is in no term");
    }
    for t in &mut terms {
        diagonals(cx, t)?;
    }
    broadcast(cx, &mut terms)?;
    let mut product: Option<Term> = None;
    for i in 0..terms.len() {
        let needed = |l: &Label| output.contains(l) || terms[i + 1..].iter().any(|t| t.labels.contains(l));
        let other = product.as_ref().map(|p| p.labels.clone()).unwrap_or_default();
        let term = sum_out(cx, terms[i].clone(), |l| needed(l) || other.contains(l))?;
        product = Some(match product {
            None => term,
            Some(p) => {
                let p = sum_out(cx, p, |l| needed(l) || term.labels.contains(l))?;
                multiply(cx, &p, &term, needed)?
            }
        });
    }
    let product = product.expect("an operand");
    let perm = output.iter().map(|l| position(&product.labels, l)).collect();
    Ok(vec![cx.transpose(product.value, perm)?])
}

fn labels(part: &str, rank: Option<usize>, text: &str) -> Res<Vec<Label>> {
    let bad = |what: &str| Fail::Invalid(format!("the equation `{text}` {what}"));
    let (before, after) = match part.split_once("...") {
        Some((b, a)) => (b, Some(a)),
        None => (part, None),
    };
    let letters = |s: &str| {
        s.chars()
            .map(|c| if c.is_ascii_alphabetic() { Ok(Label::Letter(c)) } else { Err(bad(&format!("has `{c}` where a letter belongs"))) })
            .collect::<Res<Vec<_>>>()
    };
    let mut out = letters(before)?;
    if let Some(after) = after {
        let tail = letters(after)?;
        let Some(axes) = rank.and_then(|r| r.checked_sub(out.len() + tail.len())) else {
            return Err(bad(&format!("has more labels in `{part}` than the operand has axes")));
        };
        out.extend((0..axes).rev().map(Label::Rest));
        out.extend(tail);
    }
    match rank {
        Some(r) if r != out.len() => Err(bad(&format!("has {} labels in `{part}`, but the operand has {r} axes", out.len()))),
        _ => Ok(out),
    }
}

fn position(labels: &[Label], l: &Label) -> usize {
    labels.iter().position(|m| m == l).expect("checked")
}

/// Takes the diagonal of axes with one label: everything else becomes 0 and is summed away.
fn diagonals(cx: &mut Importer, t: &mut Term) -> Res<()> {
    while let Some((i, j)) = (0..t.labels.len()).find_map(|j| t.labels[..j].iter().position(|l| *l == t.labels[j]).map(|i| (i, j))) {
        let rank = t.labels.len();
        let shape = cx.shape(t.value).clone();
        cx.require_equal(&shape[i], &shape[j], "axes of one label differ")?;
        let mut places = vec![];
        for axis in [i, j] {
            let mut counted = vec![Dim::from(1); rank];
            counted[axis] = shape[axis].clone();
            places.push(cx.iota(Elem::I64, Shape(counted), axis)?);
        }
        let hit = cx.eq(places[0], places[1])?;
        let zero = cx.like(t.value, 0.0);
        let kept = cx.select(hit, t.value, zero)?;
        t.value = cx.reduce(kept, ReduceKind::Sum, &[j], false)?;
        t.labels.remove(j);
    }
    Ok(())
}

/// Leaves labels out of the terms in which they have the size 1 while they have another one elsewhere: what
/// does not depend on a label is the same for each of its values. Then every label has one size.
fn broadcast(cx: &mut Importer, terms: &mut [Term]) -> Res<()> {
    let sizes = |cx: &Importer, t: &Term| t.labels.iter().copied().zip(cx.shape(t.value).0.clone()).collect::<Vec<_>>();
    let mut wide: BTreeMap<Label, Dim> = BTreeMap::new();
    let all: Vec<(Label, Dim)> = terms.iter().flat_map(|t| sizes(cx, t)).collect();
    for (label, size) in all.into_iter().filter(|(_, size)| !size.is(1)) {
        match wide.get(&label) {
            Some(other) => cx.require_equal(other, &size, "axes of one label differ")?,
            None => drop(wide.insert(label, size)),
        }
    }
    for t in terms {
        let spread = |(label, size): &(Label, Dim)| size.is(1) && wide.contains_key(label);
        let gone: Vec<usize> = sizes(cx, t).iter().enumerate().filter(|(_, l)| spread(l)).map(|(i, _)| i).collect();
        t.value = cx.squeeze(t.value, &gone)?;
        t.labels = t.labels.iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, l)| *l).collect();
    }
    Ok(())
}

fn sum_out(cx: &mut Importer, t: Term, keep: impl Fn(&Label) -> bool) -> Res<Term> {
    let gone: Vec<usize> = (0..t.labels.len()).filter(|&i| !keep(&t.labels[i])).collect();
    let value = cx.reduce(t.value, ReduceKind::Sum, &gone, false)?;
    Ok(Term { value, labels: t.labels.iter().copied().filter(|l| keep(l)).collect() })
}

/// The product of two terms, summed over the labels that both have and nobody needs afterwards.
fn multiply(cx: &mut Importer, a: &Term, b: &Term, needed: impl Fn(&Label) -> bool) -> Res<Term> {
    let (mut batch, mut summed, mut rows) = (vec![], vec![], vec![]);
    for &l in &a.labels {
        match (b.labels.contains(&l), needed(&l)) {
            (true, true) => batch.push(l),
            (true, false) => summed.push(l),
            (false, _) => rows.push(l),
        }
    }
    let columns: Vec<Label> = b.labels.iter().copied().filter(|l| !a.labels.contains(l)).collect();
    let ordered = |cx: &mut Importer, t: &Term, order: &[&[Label]]| {
        let perm = order.iter().flat_map(|part| part.iter()).map(|l| position(&t.labels, l)).collect();
        cx.transpose(t.value, perm)
    };
    let x = ordered(cx, a, &[&batch, &rows, &summed])?;
    let y = ordered(cx, b, &[&batch, &summed, &columns])?;
    let (sx, sy) = (cx.shape(x).clone(), cx.shape(y).clone());
    let labels: Vec<Label> = batch.iter().chain(&rows).chain(&columns).copied().collect();
    let nb = batch.len();
    if summed.is_empty() {
        // An outer product: rows get axes of size 1 for the columns and the other way round.
        let x = cx.reshape(x, Shape(sx.0.iter().cloned().chain(vec![Dim::from(1); columns.len()]).collect()))?;
        let mut wide = sy.0[..nb].to_vec();
        wide.extend(vec![Dim::from(1); rows.len()]);
        wide.extend_from_slice(&sy.0[nb..]);
        let y = cx.reshape(y, Shape(wide))?;
        return Ok(Term { value: cx.mul(x, y)?, labels });
    }
    let product = |d: &[Dim]| d.iter().cloned().product::<Dim>();
    let flat = |s: &Shape, split: usize| {
        let mut out = s.0[..nb].to_vec();
        out.push(product(&s.0[nb..split]));
        out.push(product(&s.0[split..]));
        Shape(out)
    };
    let (fx, fy) = (flat(&sx, nb + rows.len()), flat(&sy, nb + summed.len()));
    let (x, y) = (cx.reshape(x, fx)?, cx.reshape(y, fy)?);
    let z = cx.matmul(x, y)?;
    let mut out = cx.shape(z).0[..nb].to_vec();
    out.extend_from_slice(&sx.0[nb..nb + rows.len()]);
    out.extend_from_slice(&sy.0[nb + summed.len()..]);
    Ok(Term { value: cx.reshape(z, Shape(out))?, labels })
}
