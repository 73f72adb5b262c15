//! Terms as polynomials in another term: what makes rules insensitive to how an exporter wrote
//! `0.5 * x`, `x / 2` or `(x + 1) * 0.5`, and to the order of operands.

use crate::terms::{Term, Terms};
use tfc_ir::ops::{Add, Div, Mul, Neg, Pow, Sub};
use tfc_ir::types::Elem;

/// The deepest nest of sums and products that is looked through for an affine function: no exporter
/// writes deeper ones.
const MAX_AFFINE: usize = 8;

/// The same for polynomials, where both operands are followed and work doubles with every level.
const MAX_POLYNOMIAL: usize = 6;

/// The most ways to write one product that are tried.
const MAX_PRODUCTS: usize = 24;

/// Coefficients of `1, x, x², x³`.
pub(super) type Coefficients = [f64; 4];

/// Whether `a` and `b` are the same number up to how an exporter rounds constants of type `elem`.
pub(super) fn close(a: f64, b: f64, elem: Elem) -> bool {
    let tolerance = match elem {
        Elem::F16 => 2e-3,
        Elem::Bf16 => 1.5e-2,
        _ => 2e-6,
    };
    (a - b).abs() <= tolerance * b.abs()
}

/// `y` as a polynomial in `x` of degree 3 or less, all of the same type.
pub(super) fn polynomial(t: &dyn Terms, y: Term, x: Term) -> Option<Coefficients> {
    nested_polynomial(t, y, x, MAX_POLYNOMIAL)
}

fn nested_polynomial(t: &dyn Terms, y: Term, x: Term, depth: usize) -> Option<Coefficients> {
    if t.same(y, x) {
        return Some([0.0, 1.0, 0.0, 0.0]);
    }
    if let Some(c) = t.number(y) {
        return Some([c, 0.0, 0.0, 0.0]);
    }
    let depth = depth.checked_sub(1)?;
    let of = |y| nested_polynomial(t, y, x, depth);
    let zip = |a: Term, b: Term, f: fn(f64, f64) -> f64| {
        let (a, b) = (of(a)?, of(b)?);
        Some(std::array::from_fn(|i| f(a[i], b[i])))
    };
    let sums = t.binary::<Add>(y).into_iter().find_map(|(a, b)| zip(a, b, |a, b| a + b));
    sums.or_else(|| t.binary::<Sub>(y).into_iter().find_map(|(a, b)| zip(a, b, |a, b| a - b)))
        .or_else(|| t.binary::<Mul>(y).into_iter().find_map(|(a, b)| product(of(a)?, of(b)?)))
        .or_else(|| t.unary::<Neg>(y).into_iter().find_map(|(_, a)| Some(of(a)?.map(|c| -c))))
        .or_else(|| t.binary::<Div>(y).into_iter().find_map(|(a, b)| t.number(b).and_then(|b| Some(of(a)?.map(|c| c / b)))))
        .or_else(|| {
            t.binary::<Pow>(y).into_iter().find_map(|(a, n)| {
                let a = of(a)?;
                match t.number(n)? {
                    2.0 => product(a, a),
                    3.0 => product(product(a, a)?, a),
                    _ => None,
                }
            })
        })
}

fn product(a: Coefficients, b: Coefficients) -> Option<Coefficients> {
    let mut c = [0.0; 4];
    for (i, x) in a.iter().enumerate() {
        for (j, y) in b.iter().enumerate() {
            match c.get_mut(i + j) {
                Some(c) => *c += x * y,
                None if x * y == 0.0 => {}
                None => return None,
            }
        }
    }
    Some(c)
}

/// `y = scale * base + offset` for a `base` that `wanted` accepts.
pub(super) struct Affine<T> {
    /// The factor.
    pub(super) scale: f64,
    /// The summand.
    pub(super) offset: f64,
    /// What `wanted` returned for the base.
    pub(super) base: T,
}

/// `y` as a scaled and shifted term that `wanted` accepts.
pub(super) fn affine<T>(t: &dyn Terms, y: Term, wanted: &dyn Fn(Term) -> Option<T>) -> Option<Affine<T>> {
    nested_affine(t, y, wanted, MAX_AFFINE)
}

fn nested_affine<T>(t: &dyn Terms, y: Term, wanted: &dyn Fn(Term) -> Option<T>, depth: usize) -> Option<Affine<T>> {
    if let Some(base) = wanted(y) {
        return Some(Affine { scale: 1.0, offset: 0.0, base });
    }
    let depth = depth.checked_sub(1)?;
    let of = |y| nested_affine(t, y, wanted, depth);
    let sum = |(x, c): (Term, Term)| {
        let c = t.number(c)?;
        of(x).map(|a| Affine { offset: a.offset + c, ..a })
    };
    let scaled = |x, c: f64| of(x).map(|a| Affine { scale: a.scale * c, offset: a.offset * c, ..a });
    (t.either::<Add>(y).into_iter().find_map(sum))
        .or_else(|| t.either::<Mul>(y).into_iter().find_map(|(x, c)| scaled(x, t.number(c)?)))
        .or_else(|| t.binary::<Div>(y).into_iter().find_map(|(x, c)| scaled(x, 1.0 / t.number(c)?)))
        .or_else(|| t.unary::<Neg>(y).into_iter().find_map(|(_, x)| scaled(x, -1.0)))
        .or_else(|| {
            t.binary::<Sub>(y).into_iter().find_map(|(x, c)| match (t.number(x), t.number(c)) {
                (_, Some(c)) => of(x).map(|a| Affine { offset: a.offset - c, ..a }),
                (Some(x), None) => of(c).map(|a| Affine { scale: -a.scale, offset: x - a.offset, ..a }),
                _ => None,
            })
        })
}

/// `scale * factors[0] * factors[1] * …`
#[derive(Clone, PartialEq)]
pub(super) struct Product {
    /// The constant factor.
    pub(super) scale: f64,
    /// The other factors.
    pub(super) factors: Vec<Term>,
}

/// The ways to read `y` as a product of one or more factors, from coarse to fine.
pub(super) fn products(t: &dyn Terms, y: Term) -> Vec<Product> {
    nested_products(t, y, 5)
}

fn nested_products(t: &dyn Terms, y: Term, depth: usize) -> Vec<Product> {
    let mut all = vec![Product { scale: 1.0, factors: vec![t.find(y)] }];
    let Some(depth) = depth.checked_sub(1) else { return all };
    let scaled = |x: Term, c: f64| nested_products(t, x, depth).into_iter().map(move |p| Product { scale: p.scale * c, ..p });
    for (a, b) in t.binary::<Mul>(y) {
        match (t.number(a), t.number(b)) {
            (_, Some(c)) => all.extend(scaled(a, c)),
            (Some(c), None) => all.extend(scaled(b, c)),
            (None, None) => {
                let right = nested_products(t, b, depth);
                for p in nested_products(t, a, depth) {
                    for q in &right {
                        let factors = p.factors.iter().chain(&q.factors).copied().collect();
                        all.push(Product { scale: p.scale * q.scale, factors });
                    }
                }
            }
        }
    }
    for (a, b) in t.binary::<Div>(y) {
        if let Some(c) = t.number(b) {
            all.extend(scaled(a, 1.0 / c));
        }
    }
    for (_, a) in t.unary::<Neg>(y) {
        all.extend(scaled(a, -1.0));
    }
    all.truncate(MAX_PRODUCTS);
    all
}

/// Whether `y` is `x * x`, and if so `x`.
pub(super) fn square_root_of(t: &dyn Terms, y: Term) -> Option<Term> {
    let product = t.binary::<Mul>(y).into_iter().find(|&(a, b)| t.same(a, b)).map(|(a, _)| a);
    product.or_else(|| t.binary::<Pow>(y).into_iter().find(|&(_, n)| t.number(n) == Some(2.0)).map(|(a, _)| a))
}
