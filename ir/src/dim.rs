//! Symbolic dimensions: integer expressions over named symbols (`batch`, `seq`, `2*seq+1`).
//!
//! A [`Dim`] is kept in a canonical form, a sum of products with integer coefficients, so that two
//! dimensions that are equal as polynomials are equal as values: `==` is the question "provably the
//! same size". What is not polynomial (floor division, remainder, minimum, maximum) is an [`Atom`].

use crate::text;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Neg, Sub};
use std::sync::Arc;

/// The name of a run-time dimension, such as `batch`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// A symbol called `name`.
    pub fn new(name: &str) -> Self {
        Symbol(name.into())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if text::is_plain_symbol(&self.0) { f.write_str(&self.0) } else { write!(f, "{}", text::Quoted(&self.0)) }
    }
}

/// The inclusive range of the values that a symbol or an expression may take.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Range {
    /// Smallest value.
    pub min: i64,
    /// Largest value.
    pub max: i64,
}

impl Range {
    /// The range of a symbol that nothing is known about: 1 to 2³¹-1.
    pub const ANY: Range = Range { min: 1, max: i32::MAX as i64 };

    fn of_products(self, other: Range) -> Range {
        let p = [
            self.min.saturating_mul(other.min),
            self.min.saturating_mul(other.max),
            self.max.saturating_mul(other.min),
            self.max.saturating_mul(other.max),
        ];
        Range { min: *p.iter().min().expect("four"), max: *p.iter().max().expect("four") }
    }
}

/// The symbols of a graph with their ranges, in name order.
pub type SymbolTable = BTreeMap<Symbol, Range>;

/// Values for symbols, to evaluate a dimension.
pub type Bindings = BTreeMap<Symbol, i64>;

/// A factor of a product.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Atom {
    /// A named size.
    Symbol(Symbol),
    /// `floor(a / b)`.
    FloorDiv(Box<Dim>, Box<Dim>),
    /// `a - b * floor(a / b)`: has the sign of `b`.
    Rem(Box<Dim>, Box<Dim>),
    /// The smaller one.
    Min(Box<Dim>, Box<Dim>),
    /// The larger one.
    Max(Box<Dim>, Box<Dim>),
}

/// `coefficient * factors[0] * factors[1] * …`, the factors sorted.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Term {
    factors: Vec<Atom>,
    coefficient: i64,
}

/// An integer expression over symbols, in canonical form. Arithmetic saturates at the ends of i64.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Dim {
    /// Sorted by factors, descending in degree first; no coefficient is 0.
    terms: Vec<Term>,
}

impl Dim {
    /// The size that `name` stands for.
    pub fn symbol(name: &str) -> Dim {
        Dim::atom(Atom::Symbol(Symbol::new(name)))
    }

    fn atom(a: Atom) -> Dim {
        Dim { terms: vec![Term { factors: vec![a], coefficient: 1 }] }
    }

    /// The number, if it is one.
    pub fn as_const(&self) -> Option<i64> {
        match self.terms.as_slice() {
            [] => Some(0),
            [t] if t.factors.is_empty() => Some(t.coefficient),
            _ => None,
        }
    }

    /// Whether it is exactly the number `n`.
    pub fn is(&self, n: i64) -> bool {
        self.as_const() == Some(n)
    }

    /// The symbol, if it is nothing but one.
    pub fn as_symbol(&self) -> Option<&Symbol> {
        match self.terms.as_slice() {
            [Term { factors, coefficient: 1 }] => match factors.as_slice() {
                [Atom::Symbol(s)] => Some(s),
                _ => None,
            },
            _ => None,
        }
    }

    fn from_terms(mut terms: Vec<Term>) -> Dim {
        terms.sort_by(|a, b| b.factors.len().cmp(&a.factors.len()).then_with(|| a.factors.cmp(&b.factors)));
        let mut out: Vec<Term> = Vec::with_capacity(terms.len());
        for t in terms {
            match out.last_mut() {
                Some(last) if last.factors == t.factors => last.coefficient = last.coefficient.saturating_add(t.coefficient),
                _ => out.push(t),
            }
        }
        out.retain(|t| t.coefficient != 0);
        Dim { terms: out }
    }

    /// `floor(self / by)`. Division that is exact as polynomials is carried out; a constant divisor
    /// also takes along what it divides of a sum (`(4*s + 6) / 4` is `s + 1` for `s >= 0`).
    pub fn floor_div(&self, by: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b != 0
        {
            return Dim::from(floor_div(a, b));
        }
        if let Some(q) = self.div_exact(by) {
            return q;
        }
        if let Some(b) = by.as_const()
            && b > 0
        {
            let (whole, rest): (Vec<_>, Vec<_>) = self.terms.iter().cloned().partition(|t| t.coefficient % b == 0);
            if !whole.is_empty() {
                let whole = Dim::from_terms(whole.into_iter().map(|t| Term { coefficient: t.coefficient / b, ..t }).collect());
                return whole + Dim::from_terms(rest).floor_div(by);
            }
        }
        Dim::atom(Atom::FloorDiv(Box::new(self.clone()), Box::new(by.clone())))
    }

    /// `ceil(self / by)` for a positive divisor.
    pub fn ceil_div(&self, by: i64) -> Dim {
        (self.clone() + Dim::from(by - 1)).floor_div(&Dim::from(by))
    }

    /// The remainder of [`Dim::floor_div`].
    pub fn rem(&self, by: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b != 0
        {
            return Dim::from(a.wrapping_sub(b.wrapping_mul(floor_div(a, b))));
        }
        if self.div_exact(by).is_some() {
            return Dim::from(0);
        }
        Dim::atom(Atom::Rem(Box::new(self.clone()), Box::new(by.clone())))
    }

    /// The quotient, if the division leaves no rest whatever the symbols are (they are not 0).
    pub fn div_exact(&self, by: &Dim) -> Option<Dim> {
        let lead = by.terms.first()?;
        let mut rest = self.clone();
        let mut quotient = Dim::default();
        // Each step removes the leading term of `rest`, or the division is not exact.
        for _ in 0..=self.terms.len() * 4 {
            let Some(top) = rest.terms.first() else {
                return Some(quotient);
            };
            if lead.coefficient == 0 || top.coefficient % lead.coefficient != 0 {
                return None;
            }
            let factors = multiset_difference(&top.factors, &lead.factors)?;
            let q = Dim { terms: vec![Term { factors, coefficient: top.coefficient / lead.coefficient }] };
            rest = rest - q.clone() * by.clone();
            quotient = quotient + q;
        }
        None
    }

    /// The smaller of two.
    pub fn minimum(&self, other: &Dim) -> Dim {
        self.extremum(other, true)
    }

    /// The larger of two.
    pub fn maximum(&self, other: &Dim) -> Dim {
        self.extremum(other, false)
    }

    fn extremum(&self, other: &Dim, min: bool) -> Dim {
        if let Some(d) = (self.clone() - other.clone()).as_const() {
            return if (d <= 0) == min { self.clone() } else { other.clone() };
        }
        let (a, b) = if self <= other { (self, other) } else { (other, self) };
        let (a, b) = (Box::new(a.clone()), Box::new(b.clone()));
        Dim::atom(if min { Atom::Min(a, b) } else { Atom::Max(a, b) })
    }

    /// The range of its values when the symbols are in theirs. Unknown symbols have [`Range::ANY`].
    pub fn range(&self, symbols: &SymbolTable) -> Range {
        self.terms.iter().fold(Range { min: 0, max: 0 }, |sum, t| {
            let c = Range { min: t.coefficient, max: t.coefficient };
            let r = t.factors.iter().fold(c, |p, a| p.of_products(a.range(symbols)));
            Range { min: sum.min.saturating_add(r.min), max: sum.max.saturating_add(r.max) }
        })
    }

    /// Simplifies minima, maxima, divisions and remainders that the ranges of the symbols decide.
    pub fn simplify(&self, symbols: &SymbolTable) -> Dim {
        let mut sum = Dim::default();
        for t in &self.terms {
            let mut product = Dim::from(t.coefficient);
            for a in &t.factors {
                product = product * a.simplify(symbols);
            }
            sum = sum + product;
        }
        sum
    }

    /// Whether `self == other` follows (`Some(true)`), is impossible (`Some(false)`), or depends on the symbols.
    pub fn same(&self, other: &Dim, symbols: &SymbolTable) -> Option<bool> {
        let decide = |difference: Dim| {
            let r = difference.range(symbols);
            match (r.min, r.max) {
                (0, 0) => Some(true),
                (lo, hi) if lo > 0 || hi < 0 => Some(false),
                _ => None,
            }
        };
        // What the ranges simplify, a minimum with a bound for instance, may cancel.
        decide(self.clone() - other.clone()).or_else(|| decide(self.simplify(symbols) - other.simplify(symbols)))
    }

    /// Its value. `None` when a symbol has no value, a divisor is 0, or the result leaves i64.
    pub fn eval(&self, bindings: &Bindings) -> Option<i64> {
        let mut sum = 0i64;
        for t in &self.terms {
            let mut p = t.coefficient;
            for a in &t.factors {
                p = p.checked_mul(a.eval(bindings)?)?;
            }
            sum = sum.checked_add(p)?;
        }
        Some(sum)
    }

    /// Replaces symbols; those that `by` does not know stay.
    pub fn substitute(&self, by: &dyn Fn(&Symbol) -> Option<Dim>) -> Dim {
        let mut sum = Dim::default();
        for t in &self.terms {
            let mut product = Dim::from(t.coefficient);
            for a in &t.factors {
                product = product * a.substitute(by);
            }
            sum = sum + product;
        }
        sum
    }

    /// Adds the symbols it mentions to `out`.
    pub fn collect_symbols(&self, out: &mut std::collections::BTreeSet<Symbol>) {
        for a in self.terms.iter().flat_map(|t| &t.factors) {
            match a {
                Atom::Symbol(s) => {
                    out.insert(s.clone());
                }
                Atom::FloorDiv(a, b) | Atom::Rem(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                    a.collect_symbols(out);
                    b.collect_symbols(out);
                }
            }
        }
    }

    /// The largest [`Dim::size`] that the text form and the verifier accept.
    pub const MAX_SIZE: usize = 256;

    /// How many terms and factors it has, those within divisions, remainders, minima and maxima included.
    pub fn size(&self) -> usize {
        let of_atom = |a: &Atom| match a {
            Atom::Symbol(_) => 1,
            Atom::FloorDiv(a, b) | Atom::Rem(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => 1 + a.size() + b.size(),
        };
        self.terms.iter().map(|t| 1 + t.factors.iter().map(of_atom).sum::<usize>()).sum()
    }

    /// The sum of products behind it: `(coefficient, factors)`, for code that emits arithmetic.
    pub fn terms(&self) -> impl Iterator<Item = (i64, &[Atom])> {
        self.terms.iter().map(|t| (t.coefficient, t.factors.as_slice()))
    }
}

impl Atom {
    fn range(&self, symbols: &SymbolTable) -> Range {
        match self {
            Atom::Symbol(s) => symbols.get(s).copied().unwrap_or(Range::ANY),
            Atom::Min(a, b) => {
                let (a, b) = (a.range(symbols), b.range(symbols));
                Range { min: a.min.min(b.min), max: a.max.min(b.max) }
            }
            Atom::Max(a, b) => {
                let (a, b) = (a.range(symbols), b.range(symbols));
                Range { min: a.min.max(b.min), max: a.max.max(b.max) }
            }
            Atom::FloorDiv(a, b) => {
                let (a, b) = (a.range(symbols), b.range(symbols));
                if b.min > 0 {
                    let q = [floor_div(a.min, b.min), floor_div(a.min, b.max), floor_div(a.max, b.min), floor_div(a.max, b.max)];
                    Range { min: *q.iter().min().expect("four"), max: *q.iter().max().expect("four") }
                } else {
                    Range { min: i64::MIN, max: i64::MAX }
                }
            }
            Atom::Rem(_, b) => {
                let b = b.range(symbols);
                if b.min > 0 { Range { min: 0, max: b.max - 1 } } else { Range { min: i64::MIN, max: i64::MAX } }
            }
        }
    }

    fn simplify(&self, symbols: &SymbolTable) -> Dim {
        match self {
            Atom::Symbol(s) => match symbols.get(s) {
                Some(r) if r.min == r.max => Dim::from(r.min),
                _ => Dim::atom(self.clone()),
            },
            Atom::FloorDiv(a, b) => a.simplify(symbols).floor_div(&b.simplify(symbols)),
            Atom::Rem(a, b) => {
                let (a, b) = (a.simplify(symbols), b.simplify(symbols));
                let (ra, rb) = (a.range(symbols), b.range(symbols));
                if ra.min >= 0 && ra.max < rb.min { a } else { a.rem(&b) }
            }
            Atom::Min(a, b) | Atom::Max(a, b) => {
                let min = matches!(self, Atom::Min(..));
                let (a, b) = (a.simplify(symbols), b.simplify(symbols));
                let d = (a.clone() - b.clone()).range(symbols);
                if d.max <= 0 {
                    if min { a } else { b }
                } else if d.min >= 0 {
                    if min { b } else { a }
                } else {
                    a.extremum(&b, min)
                }
            }
        }
    }

    fn eval(&self, bindings: &Bindings) -> Option<i64> {
        match self {
            Atom::Symbol(s) => bindings.get(s).copied(),
            Atom::FloorDiv(a, b) => {
                let (a, b) = (a.eval(bindings)?, b.eval(bindings)?);
                (b != 0).then(|| floor_div(a, b))
            }
            Atom::Rem(a, b) => {
                let (a, b) = (a.eval(bindings)?, b.eval(bindings)?);
                (b != 0).then(|| a.wrapping_sub(b.wrapping_mul(floor_div(a, b))))
            }
            Atom::Min(a, b) => Some(a.eval(bindings)?.min(b.eval(bindings)?)),
            Atom::Max(a, b) => Some(a.eval(bindings)?.max(b.eval(bindings)?)),
        }
    }

    fn substitute(&self, by: &dyn Fn(&Symbol) -> Option<Dim>) -> Dim {
        match self {
            Atom::Symbol(s) => by(s).unwrap_or_else(|| Dim::atom(self.clone())),
            Atom::FloorDiv(a, b) => a.substitute(by).floor_div(&b.substitute(by)),
            Atom::Rem(a, b) => a.substitute(by).rem(&b.substitute(by)),
            Atom::Min(a, b) => a.substitute(by).minimum(&b.substitute(by)),
            Atom::Max(a, b) => a.substitute(by).maximum(&b.substitute(by)),
        }
    }
}

/// Division that rounds towards minus infinity; `b` is not 0.
fn floor_div(a: i64, b: i64) -> i64 {
    let q = a.wrapping_div(b);
    if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { q - 1 } else { q }
}

fn multiset_difference(of: &[Atom], minus: &[Atom]) -> Option<Vec<Atom>> {
    let mut rest = of.to_vec();
    for a in minus {
        let at = rest.iter().position(|x| x == a)?;
        rest.remove(at);
    }
    Some(rest)
}

impl From<i64> for Dim {
    fn from(n: i64) -> Dim {
        let terms = if n == 0 { vec![] } else { vec![Term { factors: vec![], coefficient: n }] };
        Dim { terms }
    }
}

impl From<i32> for Dim {
    fn from(n: i32) -> Dim {
        Dim::from(i64::from(n))
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::from(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<Symbol> for Dim {
    fn from(s: Symbol) -> Dim {
        Dim::atom(Atom::Symbol(s))
    }
}

impl Add for Dim {
    type Output = Dim;
    fn add(self, other: Dim) -> Dim {
        let mut terms = self.terms;
        terms.extend(other.terms);
        Dim::from_terms(terms)
    }
}

impl Neg for Dim {
    type Output = Dim;
    fn neg(mut self) -> Dim {
        for t in &mut self.terms {
            t.coefficient = t.coefficient.saturating_neg();
        }
        self
    }
}

impl Sub for Dim {
    type Output = Dim;
    fn sub(self, other: Dim) -> Dim {
        self + -other
    }
}

impl Mul for Dim {
    type Output = Dim;
    fn mul(self, other: Dim) -> Dim {
        let mut terms = Vec::with_capacity(self.terms.len() * other.terms.len());
        for a in &self.terms {
            for b in &other.terms {
                let mut factors: Vec<Atom> = a.factors.iter().chain(&b.factors).cloned().collect();
                factors.sort();
                terms.push(Term { factors, coefficient: a.coefficient.saturating_mul(b.coefficient) });
            }
        }
        Dim::from_terms(terms)
    }
}

impl std::iter::Sum for Dim {
    fn sum<I: Iterator<Item = Dim>>(iter: I) -> Dim {
        iter.fold(Dim::from(0), |a, b| a + b)
    }
}

impl std::iter::Product for Dim {
    fn product<I: Iterator<Item = Dim>>(iter: I) -> Dim {
        iter.fold(Dim::from(1), |a, b| a * b)
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Symbol(s) => write!(f, "{s}"),
            Atom::FloorDiv(a, b) => write!(f, "div({a}, {b})"),
            Atom::Rem(a, b) => write!(f, "rem({a}, {b})"),
            Atom::Min(a, b) => write!(f, "min({a}, {b})"),
            Atom::Max(a, b) => write!(f, "max({a}, {b})"),
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        for (i, t) in self.terms.iter().enumerate() {
            match (i, t.coefficient < 0) {
                (_, true) => f.write_str("-")?,
                (0, false) => {}
                (_, false) => f.write_str("+")?,
            }
            let c = t.coefficient.unsigned_abs();
            if c != 1 || t.factors.is_empty() {
                write!(f, "{c}")?;
                if !t.factors.is_empty() {
                    f.write_str("*")?;
                }
            }
            for (j, a) in t.factors.iter().enumerate() {
                if j > 0 {
                    f.write_str("*")?;
                }
                write!(f, "{a}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(name: &str) -> Dim {
        Dim::symbol(name)
    }

    #[test]
    fn equal_polynomials_are_equal_values() {
        let a = (s("a") + Dim::from(1)) * (s("a") - Dim::from(1));
        let b = s("a") * s("a") - Dim::from(1);
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "a*a-1");
    }

    #[test]
    fn exact_division_is_carried_out() {
        let whole = s("batch") * (s("seq") + Dim::from(1)) * Dim::from(64);
        assert_eq!(whole.floor_div(&(s("seq") + Dim::from(1))), s("batch") * Dim::from(64));
        assert_eq!((s("n") * Dim::from(4) + Dim::from(6)).floor_div(&Dim::from(4)).to_string(), "n+1");
        assert_eq!(s("n").floor_div(&Dim::from(2)).to_string(), "div(n, 2)");
    }

    #[test]
    fn floor_division_rounds_down() {
        assert_eq!(Dim::from(-7).floor_div(&Dim::from(2)), Dim::from(-4));
        assert_eq!(Dim::from(-7).rem(&Dim::from(2)), Dim::from(1));
    }

    #[test]
    fn ranges_decide_minima() {
        let table = SymbolTable::from([(Symbol::new("n"), Range { min: 1, max: 512 })]);
        assert_eq!(s("n").minimum(&Dim::from(512)).simplify(&table), s("n"));
        assert_eq!(s("n").maximum(&Dim::from(1)).simplify(&table), s("n"));
        assert_eq!(s("n").same(&Dim::from(-1), &table), Some(false));
        assert_eq!(s("n").same(&Dim::from(3), &table), None);
        assert_eq!(s("n").same(&s("n").minimum(&Dim::from(512)), &table), Some(true));
    }

    #[test]
    fn arithmetic_saturates_instead_of_panicking() {
        let big = Dim::from(i64::MAX) * Dim::from(4);
        assert_eq!(big.as_const(), Some(i64::MAX));
    }
}
