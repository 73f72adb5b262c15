//! Finds the values of a model's symbols from the shapes of its inputs.

use crate::expr::{Bindings, Expr, Solution};
use std::collections::BTreeMap;

/// A free dimension with the values that it may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SymbolRange {
    /// Its name.
    pub name: String,
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
    /// The ONNX nodes that allow no wider range; empty if the range is as declared.
    pub reason: String,
}

/// An equality: the expression is the size, because of what `origin` says.
pub(crate) struct Known<'a> {
    /// The expression.
    pub(crate) expr: &'a Expr,
    /// Its text.
    pub(crate) text: &'a str,
    /// Its value.
    pub(crate) size: i64,
    /// Where the value comes from, such as ``input `x` (axis 1)``.
    pub(crate) origin: String,
}

/// A condition between sizes that must hold besides.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Condition {
    pub(crate) left: Expr,
    pub(crate) left_text: String,
    pub(crate) right: Expr,
    pub(crate) right_text: String,
    pub(crate) reason: String,
}

/// Why the sizes do not determine the symbols.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DimsError {
    /// Two sizes disagree about a symbol or an expression.
    #[error("`{text}` is {expected} by {expected_by}, but {actual} by {actual_by}")]
    Contradiction {
        /// The symbol or expression.
        text: String,
        /// Its value by the first source.
        expected: i64,
        /// The first source.
        expected_by: String,
        /// Its value by the second source.
        actual: i64,
        /// The second source.
        actual_by: String,
    },
    /// No value of the symbol gives the size.
    #[error("{origin} is {size}, but no value of `{symbol}` makes `{text}` that")]
    Impossible {
        /// The symbol.
        symbol: String,
        /// The expression.
        text: String,
        /// The size.
        size: i64,
        /// Where the size comes from.
        origin: String,
    },
    /// A value is outside of the range that the model was compiled for.
    #[error("dimension `{symbol}` is {value} by {origin}, outside of {min}..{max} that {}", needs(reason))]
    Range {
        /// The symbol.
        symbol: String,
        /// Its value.
        value: i64,
        /// Where the value comes from.
        origin: String,
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
        /// The ONNX nodes that allow no wider range; empty if the range is as declared.
        reason: String,
    },
    /// Nothing determines the symbol.
    #[error("the value of dimension `{symbol}` ({min}..{max}) does not follow from the shapes of the inputs: give it by name")]
    Undetermined {
        /// The symbol.
        symbol: String,
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
    },
    /// A value was given for a symbol that the model does not have.
    #[error("the model has no dimension `{name}` (it has: {known})")]
    Unknown {
        /// The name that was given.
        name: String,
        /// The model's symbols.
        known: String,
    },
    /// A size that follows from the symbols is negative, too large or not defined.
    #[error("{what} has a size `{text}` that is negative, too large or not defined at these dimensions")]
    Size {
        /// Which tensor.
        what: String,
        /// The expression.
        text: String,
    },
    /// A condition of the model between sizes does not hold.
    #[error(
        "{reason} needs `{left}` = `{right}`, but these are {left_value} and {right_value}{}",
        repeated(left, left_value, right, right_value)
    )]
    Condition {
        /// One side.
        left: String,
        /// Its value.
        left_value: String,
        /// The other side.
        right: String,
        /// Its value.
        right_value: String,
        /// What needs it.
        reason: String,
    },
}

/// What a range comes from.
fn needs(reason: &str) -> String {
    if reason.is_empty() { "the model was compiled for".into() } else { format!("node `{reason}` allows") }
}

/// What helps where one of two sizes is 1.
fn repeated(left: &str, left_value: &str, right: &str, right_value: &str) -> String {
    let one = if left_value == "1" { left } else { right };
    let other = if left_value == "1" { right_value } else { left_value };
    let named = [left_value, right_value].contains(&"1") && other != "1" && Expr::parse(one).is_ok_and(|e| matches!(e, Expr::Symbol(_)));
    if named { format!("; a size of 1 is repeated if it is known to be 1: compile with --dim {one}=1") } else { String::new() }
}

/// The values of all `symbols` that follow from `known` and from values that were `given` by name.
/// Expressions that are linear in one unknown symbol are solved, repeatedly; all others are verified.
pub(crate) fn solve(
    symbols: &[SymbolRange],
    known: &[Known<'_>],
    given: &[(&str, i64)],
    conditions: &[Condition],
) -> Result<Bindings, DimsError> {
    let mut values = Bindings::new();
    let mut origins: BTreeMap<&str, String> = BTreeMap::new();
    for &(name, value) in given {
        let Some(symbol) = symbols.iter().find(|s| s.name == name) else {
            return Err(DimsError::Unknown { name: name.into(), known: crate::error::list(symbols.iter().map(|s| s.name.as_str())) });
        };
        let origin = "the value given by name".to_owned();
        match values.insert(name.into(), value) {
            Some(expected) if expected != value => {
                let expected_by = origin.clone();
                return Err(DimsError::Contradiction { text: name.into(), expected, expected_by, actual: value, actual_by: origin });
            }
            _ => origins.insert(&symbol.name, origin),
        };
    }
    loop {
        let before = values.len();
        for k in known {
            match k.expr.solve(k.size, &values) {
                Solution::Value(symbol, value) => {
                    if let Some(s) = symbols.iter().find(|s| s.name == symbol) {
                        origins.insert(&s.name, k.origin.clone());
                        values.insert(symbol, value);
                    }
                }
                Solution::Impossible(symbol) => {
                    return Err(DimsError::Impossible { symbol, text: k.text.into(), size: k.size, origin: k.origin.clone() });
                }
                Solution::Unknown => {}
            }
        }
        if values.len() == before {
            break;
        }
    }
    for s in symbols {
        let (symbol, min, max) = (s.name.clone(), s.min, s.max);
        match values.get(&s.name) {
            None => return Err(DimsError::Undetermined { symbol, min, max }),
            Some(&value) if !(min..=max).contains(&value) => {
                let (origin, reason) = (origins[s.name.as_str()].clone(), s.reason.clone());
                return Err(DimsError::Range { symbol, value, origin, min, max, reason });
            }
            Some(_) => {}
        }
    }
    for k in known {
        match k.expr.eval(&values) {
            Some(v) if v == k.size => {}
            Some(expected) => {
                let expected_by = match k.expr {
                    Expr::Symbol(s) => origins.get(s.as_str()).cloned().unwrap_or_default(),
                    _ => describe(k.expr, &values, &origins),
                };
                let (actual, actual_by) = (k.size, k.origin.clone());
                return Err(DimsError::Contradiction { text: k.text.into(), expected, expected_by, actual, actual_by });
            }
            None => return Err(DimsError::Size { what: k.origin.clone(), text: k.text.into() }),
        }
    }
    for c in conditions {
        let (left, right) = (c.left.eval(&values), c.right.eval(&values));
        if left.is_none() || left != right {
            let show = |v: Option<i64>| v.map_or("not defined".into(), |v| v.to_string());
            return Err(DimsError::Condition {
                left: c.left_text.clone(),
                left_value: show(left),
                right: c.right_text.clone(),
                right_value: show(right),
                reason: c.reason.clone(),
            });
        }
    }
    Ok(values)
}

/// The symbols of `expr` with their values and where those come from.
fn describe(expr: &Expr, values: &Bindings, origins: &BTreeMap<&str, String>) -> String {
    let mut symbols = Default::default();
    expr.collect_symbols(&mut symbols);
    let each: Vec<String> = symbols
        .iter()
        .map(|s| {
            let value = values.get(*s).copied().unwrap_or_default();
            format!("`{s}` = {value} from {}", origins.get(s).map_or("", String::as_str))
        })
        .collect();
    if each.is_empty() { "the model".into() } else { each.join(" and ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Solves `sizes`, pairs of an expression and its value, for symbols `a`, `b` and `seq` in 1..512.
    fn check(sizes: &[(&str, i64)], given: &[(&str, i64)], conditions: &[(&str, &str)]) -> Result<Vec<(String, i64)>, String> {
        let exprs: Vec<Expr> = sizes.iter().map(|(t, _)| Expr::parse(t).unwrap()).collect();
        let mut used = std::collections::BTreeSet::new();
        exprs.iter().for_each(|e| e.collect_symbols(&mut used));
        let symbols: Vec<SymbolRange> = used
            .iter()
            .map(|s| SymbolRange { name: (*s).into(), min: 1, max: 512, reason: if *s == "b" { "/slice".into() } else { String::new() } })
            .collect();
        let known: Vec<Known<'_>> = sizes
            .iter()
            .zip(&exprs)
            .enumerate()
            .map(|(i, ((text, size), expr))| Known { expr, text, size: *size, origin: format!("input {i}") })
            .collect();
        let conditions: Vec<Condition> = conditions
            .iter()
            .map(|(l, r)| Condition {
                left: Expr::parse(l).unwrap(),
                left_text: (*l).into(),
                right: Expr::parse(r).unwrap(),
                right_text: (*r).into(),
                reason: "node `/add`".into(),
            })
            .collect();
        solve(&symbols, &known, given, &conditions).map(|b| b.into_iter().collect()).map_err(|e| e.to_string())
    }

    fn values(pairs: &[(&str, i64)]) -> Result<Vec<(String, i64)>, String> {
        Ok(pairs.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect())
    }

    #[test]
    fn symbols_follow_from_sizes() {
        assert_eq!(check(&[("a", 2), ("seq", 128), ("seq", 128)], &[], &[]), values(&[("a", 2), ("seq", 128)]));
        assert_eq!(check(&[("2*seq+1", 257)], &[], &[]), values(&[("seq", 128)]));
        assert_eq!(
            check(&[("a*seq", 256), ("div(seq, 2)", 64), ("a+b", 5), ("b", 3)], &[], &[]),
            values(&[("a", 2), ("b", 3), ("seq", 128)])
        );
        assert_eq!(check(&[("div(seq, 2)", 64)], &[("seq", 129)], &[]), values(&[("seq", 129)]));
        assert_eq!(check(&[("a", 4), ("b", 2)], &[], &[("a", "2*b")]), values(&[("a", 4), ("b", 2)]));
        assert_eq!(check(&[("768", 768)], &[], &[]), values(&[]));
    }

    #[test]
    fn disagreements_name_both_sides() {
        let error =
            |sizes: &[(&str, i64)], given: &[(&str, i64)], conditions: &[(&str, &str)]| check(sizes, given, conditions).unwrap_err();
        assert_eq!(error(&[("seq", 128), ("seq", 64)], &[], &[]), "`seq` is 128 by input 0, but 64 by input 1");
        assert_eq!(error(&[("seq", 128), ("2*seq", 64)], &[], &[]), "`2*seq` is 256 by `seq` = 128 from input 0, but 64 by input 1");
        assert_eq!(error(&[("768", 64)], &[], &[]), "`768` is 768 by the model, but 64 by input 0");
        assert_eq!(error(&[("2*seq+1", 4)], &[], &[]), "input 0 is 4, but no value of `seq` makes `2*seq+1` that");
        assert_eq!(
            error(&[("seq", 513)], &[], &[]),
            "dimension `seq` is 513 by input 0, outside of 1..512 that the model was compiled for"
        );
        assert_eq!(error(&[("b", 0)], &[], &[]), "dimension `b` is 0 by input 0, outside of 1..512 that node `/slice` allows");
        assert_eq!(
            error(&[("a*b", 6)], &[], &[]),
            "the value of dimension `a` (1..512) does not follow from the shapes of the inputs: give it by name"
        );
        assert_eq!(error(&[("a", 1)], &[("c", 1)], &[]), "the model has no dimension `c` (it has: `a`)");
        assert_eq!(error(&[("a", 1)], &[("a", 2)], &[]), "`a` is 2 by the value given by name, but 1 by input 0");
        assert_eq!(error(&[("a", 1)], &[("a", 2), ("a", 3)], &[]), "`a` is 2 by the value given by name, but 3 by the value given by name");
        assert_eq!(error(&[("a", 3), ("b", 2)], &[], &[("a", "2*b")]), "node `/add` needs `a` = `2*b`, but these are 3 and 4");
        assert_eq!(
            error(&[("a", 1), ("b", 2)], &[], &[("a", "b")]),
            "node `/add` needs `a` = `b`, but these are 1 and 2; a size of 1 is repeated if it is known to be 1: compile with --dim a=1"
        );
        assert_eq!(
            error(&[("a", 3)], &[], &[("div(a, a-3)", "1")]),
            "node `/add` needs `div(a, a-3)` = `1`, but these are not defined and 1"
        );
        assert_eq!(
            error(&[("a", 3), ("div(1, a-3)", 3)], &[], &[]),
            "input 1 has a size `div(1, a-3)` that is negative, too large or not defined at these dimensions"
        );
    }
}
