//! Symbolic dimensions: integer expressions over named symbols (`batch`, `seq`, `2*seq+1`).
//!
//! A [`Dim`] is kept in a canonical form, a sum of products with integer coefficients, so that two
//! dimensions that are equal as polynomials are equal as values: `==` is the question "provably the
//! same size". What is not polynomial (floor division, remainder, minimum, maximum) is an [`Atom`].
//!
//! Atoms have a canonical form as well. With numbers as divisors, multiples of the divisor are outside of the
//! division, a quotient that is divided again is one division, and a remainder is what the division leaves
//! (`n-2*div(n, 2)`). A minimum of minima is one with all operands, each once.

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
    /// The range of a symbol that nothing is known about: 0 to 2³¹-1.
    pub const ANY: Range = Range { min: 0, max: i32::MAX as i64 };

    /// All numbers.
    const WHOLE: Range = Range { min: i64::MIN, max: i64::MAX };

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

/// The range of sums.
impl Add for Range {
    type Output = Range;
    fn add(self, other: Range) -> Range {
        Range { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
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
    /// What would need more terms than are kept: nothing is known about it, and all that it is part of is it.
    Excess,
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

    /// The largest number of terms, and of factors of a term, that arithmetic keeps.
    const CAPACITY: usize = 1 << 13;

    fn excess() -> Dim {
        Dim { terms: vec![Term { factors: vec![Atom::Excess], coefficient: 1 }] }
    }

    fn is_excess(&self) -> bool {
        self.terms.iter().any(|t| t.factors.contains(&Atom::Excess))
    }

    fn from_terms(mut terms: Vec<Term>) -> Dim {
        if terms.len() > Dim::CAPACITY || terms.iter().any(|t| t.factors.contains(&Atom::Excess)) {
            return Dim::excess();
        }
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

    /// `floor(self / by)`. Division that is exact as polynomials is carried out; of a sum, a constant divisor
    /// takes out its multiples: `(4*s+6) / 4` is `s+1`, `(s-3) / 2` is `div(s+1, 2)-2`.
    pub fn floor_div(&self, by: &Dim) -> Dim {
        if let (Some(a), Some(b)) = (self.as_const(), by.as_const())
            && b != 0
        {
            return Dim::from(floor_div(a, b));
        }
        if let Some(q) = self.div_exact(by) {
            return q;
        }
        match by.as_const() {
            _ if self.is_excess() || by.is_excess() => Dim::excess(),
            Some(b) if b > 0 => self.floor_div_number(b),
            _ => Dim::atom(Atom::FloorDiv(Box::new(self.clone()), Box::new(by.clone()))),
        }
    }

    /// [`Dim::floor_div`] by a positive number.
    fn floor_div_number(&self, by: i64) -> Dim {
        let (mut whole, mut rest) = (vec![], vec![]);
        for t in &self.terms {
            // The rest of the constant is not negative; that of others has their sign, which keeps ranges narrow.
            let q = if t.factors.is_empty() { floor_div(t.coefficient, by) } else { t.coefficient / by };
            whole.push(Term { coefficient: q, ..t.clone() });
            rest.push(Term { coefficient: t.coefficient - q * by, ..t.clone() });
        }
        let (whole, rest) = (Dim::from_terms(whole), Dim::from_terms(rest));
        if rest.as_const().is_some() {
            return whole;
        }
        // floor((floor(x / k) + r) / by) = floor((x + k * r) / (k * by)) for whole r.
        for t in &rest.terms {
            if let (1, [Atom::FloorDiv(x, k)]) = (t.coefficient, t.factors.as_slice())
                && let Some(k) = k.as_const().filter(|&k| k > 0)
                && let Some(by) = by.checked_mul(k)
            {
                let others = rest.clone() - Dim { terms: vec![t.clone()] };
                return whole + ((**x).clone() + Dim::from(k) * others).floor_div_number(by);
            }
        }
        whole + Dim::atom(Atom::FloorDiv(Box::new(rest), Box::new(Dim::from(by))))
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
        if by.as_const().is_some_and(|b| b > 0) {
            return self.clone() - by.clone() * self.floor_div(by);
        }
        if self.is_excess() || by.is_excess() {
            return Dim::excess();
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

    /// The square root, if it is a number or a product of sizes whatever the symbols are, and these are not negative.
    pub fn sqrt_exact(&self, symbols: &SymbolTable) -> Option<Dim> {
        let [Term { factors, coefficient }] = self.terms.as_slice() else {
            return self.is(0).then(|| self.clone());
        };
        let root = u64::try_from(*coefficient).ok()?.isqrt() as i64;
        // Factors are sorted: pairs of equal ones are neighbours.
        let pairs = factors.chunks(2).all(|p| matches!(p, [a, b] if a == b && a.range(symbols, 0).min >= 0));
        let factors = factors.iter().step_by(2).cloned().collect();
        (root * root == *coefficient && pairs).then(|| Dim { terms: vec![Term { factors, coefficient: root }] })
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
        Dim::extremum_of(&[self, other], min, |d| d.as_const().map_or(Range::WHOLE, |n| Range { min: n, max: n }))
    }

    /// The smallest or largest of several. `range` says what is known about differences.
    fn extremum_of(all: &[&Dim], min: bool, range: impl Fn(&Dim) -> Range) -> Dim {
        let mut operands = vec![];
        all.iter().for_each(|d| d.operands(min, &mut operands));
        operands.sort();
        operands.dedup();
        // Whether `b` does not matter beside `a`.
        let covers = |a: &Dim, b: &Dim| {
            let r = range(&(a.clone() - b.clone()));
            if min { r.max <= 0 } else { r.min >= 0 }
        };
        let mut kept: Vec<Dim> = vec![];
        for d in operands {
            if !kept.iter().any(|k| covers(k, &d)) {
                kept.retain(|k| !covers(&d, k));
                kept.push(d);
            }
        }
        if kept.len() > Dim::CAPACITY || kept.iter().any(Dim::is_excess) {
            return Dim::excess();
        }
        let pair = |rest: Dim, d: Dim| {
            let (a, b) = (Box::new(d), Box::new(rest));
            Dim::atom(if min { Atom::Min(a, b) } else { Atom::Max(a, b) })
        };
        kept.into_iter().rev().reduce(pair).unwrap_or_default()
    }

    /// What it is the minimum or maximum of, itself if it is none.
    fn operands(&self, min: bool, out: &mut Vec<Dim>) {
        match self.terms.as_slice() {
            [Term { factors, coefficient: 1 }] => match factors.as_slice() {
                [Atom::Min(a, b)] if min => [a, b].into_iter().for_each(|d| d.operands(min, out)),
                [Atom::Max(a, b)] if !min => [a, b].into_iter().for_each(|d| d.operands(min, out)),
                _ => out.push(self.clone()),
            },
            _ => out.push(self.clone()),
        }
    }

    /// The range of its values when the symbols are in theirs. Unknown symbols have [`Range::ANY`].
    pub fn range(&self, symbols: &SymbolTable) -> Range {
        /// How many steps down divisions are seen together with other terms: each looks at everything below twice or more.
        const STEPS: u32 = 6;
        self.range_within(symbols, STEPS)
    }

    fn range_within(&self, symbols: &SymbolTable, steps: u32) -> Range {
        let below = steps.saturating_sub(1);
        // When each term has any value of its range.
        let apart = self.terms.iter().fold(Range { min: 0, max: 0 }, |sum, t| {
            let c = Range { min: t.coefficient, max: t.coefficient };
            sum + t.factors.iter().fold(c, |p, a| p.of_products(a.range(symbols, below)))
        });
        match (steps > 0).then(|| self.without_division(symbols, below)).flatten() {
            Some((whole, rest)) => {
                let together = whole.range_within(symbols, below) + rest;
                Range { min: apart.min.max(together.min), max: apart.max.min(together.max) }
            }
            None => apart,
        }
    }

    /// Takes out a division that depends on other terms: the sum without it, and the range of what is to be added. With
    /// `floor(x / k) = (x - rem) / k`, `c * floor(x / k)` is `c / k * x` but for a remainder where `k` divides `c`; and
    /// `floor(x / k) - floor(y / k)` is the quotient of the difference, rounded down or up.
    fn without_division(&self, symbols: &SymbolTable, steps: u32) -> Option<(Dim, Range)> {
        let divisions = || {
            self.terms.iter().filter_map(|t| match t.factors.as_slice() {
                [Atom::FloorDiv(x, k)] => Some((t, x, k.as_const().filter(|&k| k > 0)?)),
                _ => None,
            })
        };
        for (i, (t, x, k)) in divisions().enumerate() {
            let c = t.coefficient;
            let without = |t: &Term| self.clone() - Dim { terms: vec![t.clone()] };
            if c % k == 0 && self.terms.len() > 1 {
                let rest = Range { min: 0, max: k - 1 }.of_products(Range { min: -(c / k), max: -(c / k) });
                return Some((without(t) + Dim::from(c / k) * (**x).clone(), rest));
            }
            if let Some((u, y, _)) = divisions().skip(i + 1).find(|(u, _, l)| u.coefficient == -c && *l == k) {
                let d = ((**x).clone() - (**y).clone()).range_within(symbols, steps);
                let difference = Range { min: floor_div(d.min, k), max: -floor_div(d.max.saturating_neg(), k) };
                return Some((without(t) - Dim { terms: vec![u.clone()] }, difference.of_products(Range { min: c, max: c })));
            }
        }
        None
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
                Atom::Excess => {}
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
            Atom::Excess => Dim::CAPACITY,
        };
        self.terms.iter().map(|t| 1 + t.factors.iter().map(of_atom).sum::<usize>()).sum()
    }

    /// The sum of products behind it: `(coefficient, factors)`, for code that emits arithmetic.
    pub fn terms(&self) -> impl Iterator<Item = (i64, &[Atom])> {
        self.terms.iter().map(|t| (t.coefficient, t.factors.as_slice()))
    }
}

impl Atom {
    fn range(&self, symbols: &SymbolTable, steps: u32) -> Range {
        match self {
            Atom::Symbol(s) => symbols.get(s).copied().unwrap_or(Range::ANY),
            Atom::Min(a, b) => {
                let (a, b) = (a.range_within(symbols, steps), b.range_within(symbols, steps));
                Range { min: a.min.min(b.min), max: a.max.min(b.max) }
            }
            Atom::Max(a, b) => {
                let (a, b) = (a.range_within(symbols, steps), b.range_within(symbols, steps));
                Range { min: a.min.max(b.min), max: a.max.max(b.max) }
            }
            Atom::FloorDiv(a, b) => {
                let (a, b) = (a.range_within(symbols, steps), b.range_within(symbols, steps));
                if b.min > 0 {
                    let q = [floor_div(a.min, b.min), floor_div(a.min, b.max), floor_div(a.max, b.min), floor_div(a.max, b.max)];
                    Range { min: *q.iter().min().expect("four"), max: *q.iter().max().expect("four") }
                } else {
                    Range::WHOLE
                }
            }
            Atom::Rem(_, b) => {
                let b = b.range_within(symbols, steps);
                if b.min > 0 { Range { min: 0, max: b.max - 1 } } else { Range::WHOLE }
            }
            Atom::Excess => Range::WHOLE,
        }
    }

    fn simplify(&self, symbols: &SymbolTable) -> Dim {
        match self {
            Atom::Symbol(s) => match symbols.get(s) {
                Some(r) if r.min == r.max => Dim::from(r.min),
                _ => Dim::atom(self.clone()),
            },
            Atom::FloorDiv(a, b) => {
                let q = a.simplify(symbols).floor_div(&b.simplify(symbols));
                let r = q.range(symbols);
                if r.min == r.max { Dim::from(r.min) } else { q }
            }
            Atom::Rem(a, b) => {
                let (a, b) = (a.simplify(symbols), b.simplify(symbols));
                let (ra, rb) = (a.range(symbols), b.range(symbols));
                if ra.min >= 0 && ra.max < rb.min { a } else { a.rem(&b) }
            }
            Atom::Min(a, b) | Atom::Max(a, b) => {
                let (a, b) = (a.simplify(symbols), b.simplify(symbols));
                Dim::extremum_of(&[&a, &b], matches!(self, Atom::Min(..)), |d| d.range(symbols))
            }
            Atom::Excess => Dim::excess(),
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
            Atom::Excess => None,
        }
    }

    fn substitute(&self, by: &dyn Fn(&Symbol) -> Option<Dim>) -> Dim {
        match self {
            Atom::Symbol(s) => by(s).unwrap_or_else(|| Dim::atom(self.clone())),
            Atom::FloorDiv(a, b) => a.substitute(by).floor_div(&b.substitute(by)),
            Atom::Rem(a, b) => a.substitute(by).rem(&b.substitute(by)),
            Atom::Min(a, b) => a.substitute(by).minimum(&b.substitute(by)),
            Atom::Max(a, b) => a.substitute(by).maximum(&b.substitute(by)),
            Atom::Excess => Dim::excess(),
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
        let longest = |d: &Dim| d.terms.iter().map(|t| t.factors.len()).max().unwrap_or(0);
        if self.terms.len().saturating_mul(other.terms.len()) > Dim::CAPACITY || longest(&self) + longest(&other) > Dim::CAPACITY {
            return Dim::excess();
        }
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
            Atom::Excess => f.write_str("excess"),
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
    fn divisions_by_numbers_are_canonical() {
        let div = |d: Dim, by: i64| d.floor_div(&Dim::from(by));
        let plus = |d: Dim, n: i64| d + Dim::from(n);
        assert_eq!(plus(div(plus(s("n"), -1), 16), 1), div(plus(s("n"), 15), 16));
        assert_eq!(div(s("n") * Dim::from(3) + s("m"), 2), s("n") + div(s("m") + s("n"), 2));
        // Ceilings of halves of halves are ceilings of quarters.
        let half = |d: Dim| div(plus(d, 1), 2);
        assert_eq!(half(half(s("n"))), div(plus(s("n"), 3), 4));
        assert_eq!(div(div(s("n"), 3) + s("m"), 5), div(s("n") + s("m") * Dim::from(3), 15));
        // A size that is padded to a multiple of 8 divides by 8.
        let pad = plus(-s("n").rem(&Dim::from(8)), 8).rem(&Dim::from(8));
        assert_eq!(div(s("n") + pad.clone(), 8) * Dim::from(8), s("n") + pad.clone());
        assert_eq!(pad.range(&SymbolTable::new()), Range { min: 0, max: 7 });
    }

    #[test]
    fn canonical_forms_have_the_same_values() {
        let (n, m) = (s("n"), s("m"));
        for k in [1i64, 2, 3, 5] {
            for c in -7..8 {
                let x = n.clone() * Dim::from(c) + m.clone() * Dim::from(3) + Dim::from(c - 2);
                let once = x.floor_div(&Dim::from(k));
                let d = [
                    (once.clone() - m.clone()).floor_div(&Dim::from(3)),
                    (once.clone() + n.clone()).rem(&Dim::from(4)),
                    once.minimum(&n.minimum(&m).maximum(&x)),
                ];
                for (a, b) in [(0i64, 0i64), (1, 0), (4, 7), (9, 2), (30, 31)] {
                    let bindings = Bindings::from([(Symbol::new("n"), a), (Symbol::new("m"), b)]);
                    let x = a * c + b * 3 + c - 2;
                    let once = x.div_euclid(k);
                    let wanted = [(once - b).div_euclid(3), (once + a).rem_euclid(4), once.min(a.min(b).max(x))];
                    assert_eq!(d.each_ref().map(|d| d.eval(&bindings)), wanted.map(Some), "{d:?} at {a}, {b}");
                    let table =
                        SymbolTable::from([(Symbol::new("n"), Range { min: 0, max: 40 }), (Symbol::new("m"), Range { min: 0, max: 40 })]);
                    for (d, v) in d.iter().zip(wanted) {
                        let r = d.range(&table);
                        assert!((r.min..=r.max).contains(&v), "{v} of {d} is not in {r:?}");
                        assert_eq!(d.simplify(&table).eval(&bindings), Some(v), "{d}");
                    }
                }
            }
        }
    }

    #[test]
    fn squares_have_roots() {
        let root = |d: Dim| d.sqrt_exact(&SymbolTable::new());
        assert_eq!(root(Dim::from(196)), Some(Dim::from(14)));
        assert_eq!(root(s("n") * s("m") * s("n") * s("m") * Dim::from(9)), Some(s("m") * s("n") * Dim::from(3)));
        assert!([s("n"), s("n") * s("n") * Dim::from(2), s("n") * s("m"), Dim::from(-4)].into_iter().all(|d| root(d).is_none()));
    }

    #[test]
    fn differences_of_quotients_are_bounded() {
        let table = SymbolTable::new();
        let quotient = |n: i64| (s("n") * s("m") + Dim::from(n)).floor_div(&Dim::from(4));
        assert_eq!((quotient(3) - quotient(1)).range(&table), Range { min: 0, max: 1 });
        assert_eq!(quotient(3).minimum(&quotient(1)).simplify(&table), quotient(1));
        let whole = s("n") - s("n").floor_div(&Dim::from(4)) * Dim::from(4);
        assert_eq!(whole.range(&table), Range { min: 0, max: 3 });
    }

    #[test]
    fn minima_of_minima_have_each_operand_once() {
        let max = |list: &[&Dim]| list.iter().fold(Dim::from(0), |m, d| m.maximum(d));
        let (a, b, c) = (s("a"), s("b") * Dim::from(2), s("c"));
        let m = max(&[&c, &b, &a]);
        assert_eq!(m, a.maximum(&b.maximum(&c.maximum(&Dim::from(0)))));
        assert_eq!(max(&[&m, &a, &m, &c, &b, &Dim::from(-3)]), m);
        assert_eq!(m.simplify(&SymbolTable::new()), a.maximum(&b).maximum(&c), "sizes are not negative");
    }

    #[test]
    fn what_has_too_many_terms_is_nothing_known() {
        let square = (0..40).fold(s("n") + Dim::from(1), |d, _| d.clone() * d);
        assert!(square.size() > Dim::MAX_SIZE);
        assert_eq!(square.same(&square, &SymbolTable::new()), None);
        assert_eq!(square.eval(&Bindings::from([(Symbol::new("n"), 1)])), None);
        let nested = (square.clone() - square.clone()).floor_div(&s("m")).maximum(&s("n")).rem(&Dim::from(3));
        assert_eq!(nested, square);
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
