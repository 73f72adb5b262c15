//! One ONNX node while it is imported: its operands and attributes, read with defaults and checked.

use super::{Fail, Importer, Res, Val};
use crate::onnx::model::{Attribute, Node};
use std::collections::BTreeMap;
use tfc_ir::tensor::Tensor;

/// A node with its operands resolved.
pub struct Call<'a> {
    /// The node.
    pub node: &'a Node,
    /// Operands; `None` for those that are left out.
    pub inputs: Vec<Option<Val>>,
    /// Attributes; references of functions are resolved.
    pub attributes: &'a BTreeMap<String, Attribute>,
    /// The version of the operator's set that the model imports.
    pub version: i64,
}

impl Call<'_> {
    /// The operand at `i`, which must be there.
    pub fn input(&self, i: usize) -> Res<Val> {
        self.opt(i).ok_or_else(|| Fail::Invalid(format!("operand {i} is missing; the node has {}", self.inputs.len())))
    }

    /// The operand at `i`, if it is there.
    pub fn opt(&self, i: usize) -> Option<Val> {
        self.inputs.get(i).copied().flatten()
    }

    /// All operands of an operator that takes any number, at least one.
    pub fn all(&self) -> Res<Vec<Val>> {
        let all: Option<Vec<Val>> = self.inputs.iter().copied().collect();
        all.filter(|v| !v.is_empty()).ok_or_else(|| Fail::Invalid("the operator takes one or more operands, none left out".into()))
    }

    /// Refuses more than `n` operands.
    pub fn at_most(&self, n: usize) -> Res<()> {
        if self.inputs[n.min(self.inputs.len())..].iter().all(Option::is_none) {
            return Ok(());
        }
        Err(Fail::Invalid(format!("the operator takes at most {n} operands, but {} are given", self.inputs.len())))
    }

    /// Whether result `i` is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.node.outputs.get(i).is_some_and(|o| !o.is_empty())
    }

    fn get<T>(&self, name: &str, expected: &str, read: impl Fn(&Attribute) -> Option<T>) -> Res<Option<T>> {
        match self.attributes.get(name) {
            None => Ok(None),
            Some(a) => match read(a) {
                Some(v) => Ok(Some(v)),
                None => Err(Fail::Invalid(format!("the attribute `{name}` must be {expected}, but is {}", a.kind()))),
            },
        }
    }

    /// An integer attribute, if given.
    pub fn opt_int(&self, name: &str) -> Res<Option<i64>> {
        self.get(name, "an integer", |a| if let Attribute::Int(i) = a { Some(*i) } else { None })
    }

    /// An integer attribute or its default.
    pub fn int(&self, name: &str, default: i64) -> Res<i64> {
        Ok(self.opt_int(name)?.unwrap_or(default))
    }

    /// An integer attribute that is a truth value: 0 or 1.
    pub fn flag(&self, name: &str, default: bool) -> Res<bool> {
        match self.int(name, default.into())? {
            value @ (0 | 1) => Ok(value == 1),
            other => Err(Fail::Invalid(format!("the attribute `{name}` must be 0 or 1, but is {other}"))),
        }
    }

    /// A float attribute, if given.
    pub fn opt_float(&self, name: &str) -> Res<Option<f64>> {
        self.get(name, "a float", |a| if let Attribute::Float(x) = a { Some(f64::from(*x)) } else { None })
    }

    /// A float attribute or its default.
    pub fn float(&self, name: &str, default: f64) -> Res<f64> {
        Ok(self.opt_float(name)?.unwrap_or(default))
    }

    /// A string attribute or its default.
    pub fn text(&self, name: &str, default: &str) -> Res<String> {
        let found = self.get(name, "a string", |a| if let Attribute::Text(s) = a { Some(s.clone()) } else { None })?;
        Ok(found.unwrap_or_else(|| default.into()))
    }

    /// A list of integers, if given.
    pub fn ints(&self, name: &str) -> Res<Option<Vec<i64>>> {
        self.get(name, "a list of integers", |a| match a {
            Attribute::Ints(l) => Some(l.clone()),
            _ => None,
        })
    }

    /// A list of integers with one entry per spatial axis.
    pub fn spatial(&self, name: &str, axes: usize, default: i64) -> Res<Vec<i64>> {
        let list = self.ints(name)?.filter(|l| !l.is_empty()).unwrap_or_else(|| vec![default; axes]);
        if list.len() != axes {
            return Err(Fail::Invalid(format!("`{name}` has {} entries, but there are {axes} spatial axes", list.len())));
        }
        Ok(list)
    }

    /// A tensor attribute, if given.
    pub fn tensor(&self, name: &str) -> Res<Option<Tensor>> {
        self.get(name, "a tensor", |a| if let Attribute::Tensor(t) = a { Some(t.clone()) } else { None })
    }

    /// An axis attribute of an operand of `rank` axes.
    pub fn axis(&self, name: &str, default: i64, rank: usize) -> Res<usize> {
        resolve_axis(self.int(name, default)?, rank)
    }

    /// A list of axes that is an attribute up to some version and an operand afterwards: its axes, or
    /// `None` when neither is given.
    pub fn axes(&self, cx: &Importer, operand: usize, rank: usize) -> Res<Option<Vec<usize>>> {
        let list = match (self.ints("axes")?, self.opt(operand)) {
            (Some(l), _) => l,
            (None, Some(v)) => cx.ints(v, "the axes")?,
            (None, None) => return Ok(None),
        };
        Ok(Some(distinct_axes(&list, rank)?))
    }
}

/// The axis that a possibly negative number names.
pub fn resolve_axis(axis: i64, rank: usize) -> Res<usize> {
    let at = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    match usize::try_from(at) {
        Ok(a) if a < rank => Ok(a),
        _ => Err(Fail::Invalid(format!("the axis {axis} is out of range for {rank} axes"))),
    }
}

/// Axes, resolved and ascending.
///
/// # Errors
/// When one is out of range or given twice.
pub fn distinct_axes(axes: &[i64], rank: usize) -> Res<Vec<usize>> {
    let mut out = axes.iter().map(|&a| resolve_axis(a, rank)).collect::<Res<Vec<usize>>>()?;
    out.sort_unstable();
    if out.windows(2).any(|w| w[0] == w[1]) {
        return Err(Fail::Invalid(format!("the axes {axes:?} name one axis twice")));
    }
    Ok(out)
}
