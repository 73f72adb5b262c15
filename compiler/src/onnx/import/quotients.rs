//! Floats that models compute from sizes, as quotients of sizes: `float(height) / 7` to scale an image by,
//! `ceil(float(n) / 2)`, which exporters write for divisions of sizes.
//!
//! Quotients are exact, where the model rounds to floats after every step. A float that is meant to be a whole number
//! (`float(31) / 7 * 7`) may fall short of it by rounding, and then its floor is one less than that of the
//! exact number.
//!
//! Where the model rounds only once, the floor is the same. For whole `n` and `d > 0` with `|n| + d <= 2^24`, rounding the float
//! `n / d` to a whole number gives what rounding the number does.
//! Both operands are floats without an error, and the quotient `x` is rounded once, to a float `f`. Rounding keeps order and
//! keeps whole numbers up to `2^24`, so `f` is on the same side of each of them as `x` is, or is one itself. A quotient that
//! is not whole is at least `1 / d` away from each; a float near `m` is within `|m| * 2^-24` of what it stands for, which is
//! less, as `|m| * d <= |n| + d`. So `f` is whole only if `x` is. The same holds for halves, which decide where rounding
//! goes to the nearest, with `2 * n` for `n`. With f64, `2^53` takes the place of `2^24`.

use super::{Importer, Res, Val};
use tfc_ir::dim::{Dim, Range, SymbolTable};
use tfc_ir::ops::{Add, Mul, Neg, Op, Sub};
use tfc_ir::symbolic::{self, SymTensor};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Type};

/// Numerators and divisors beyond this are not followed, so that arithmetic on them stays far from the ends of i64.
const MAX_COEFFICIENT: i64 = 1 << 44;

/// The largest divisor of a constant factor such as 0.5 or 1.5 whose product with a size counts as their quotient.
const MAX_DIVISOR: i64 = 1 << 10;

/// A small tensor of floats that are exactly `numerator / divisor`, element by element. Divisors are not negative.
#[derive(Clone, Debug)]
pub(super) struct Quotients {
    numerators: SymTensor,
    divisors: SymTensor,
    /// Set where numerators and divisors are floats without an error as long as they are at most this, the divisors are positive,
    /// and the model rounds their quotients once. All whole numbers up to it are floats of the type.
    once: Option<i64>,
}

impl Quotients {
    /// Whole numbers.
    pub(super) fn whole(numerators: SymTensor) -> Quotients {
        let numerators = SymTensor { elem: Elem::I64, ..numerators };
        let divisors = SymTensor { values: vec![Dim::from(1); numerators.values.len()], ..numerators.clone() };
        Quotients { numerators, divisors, once: None }
    }

    /// The elements of a constant; `None` if one has more digits behind the point than are followed.
    pub(super) fn of_tensor(t: &Tensor) -> Option<Quotients> {
        let (mut numerators, mut divisors) = (vec![], vec![]);
        for x in t.iter() {
            let (mut x, mut divisor) = (x.to_f64(), 1i64);
            while x.fract() != 0.0 && divisor < MAX_COEFFICIENT {
                (x, divisor) = (x * 2.0, divisor * 2);
            }
            if x.fract() != 0.0 || x.abs() > MAX_COEFFICIENT as f64 {
                return None;
            }
            numerators.push(Dim::from(x as i64));
            divisors.push(Dim::from(divisor));
        }
        let tensor = |values| SymTensor { elem: Elem::I64, shape: t.sizes().to_vec(), values };
        Some(Quotients { numerators: tensor(numerators), divisors: tensor(divisors), once: None })
    }

    /// Numerator and divisor of each element, in row-major order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Dim, &Dim)> {
        self.numerators.values.iter().zip(&self.divisors.values)
    }

    /// Divides numerators and divisors by what they have in common; `None` if they have grown too large.
    pub(super) fn reduced(mut self) -> Option<Quotients> {
        for (n, d) in self.numerators.values.iter_mut().zip(&mut self.divisors.values) {
            if let Some(q) = n.div_exact(d) {
                (*n, *d) = (q, Dim::from(1));
            }
            let coefficients = || n.terms().chain(d.terms()).map(|(c, _)| c);
            let common = coefficients().fold(0, gcd);
            if common > 1 {
                let by = Dim::from(common);
                (*n, *d) = (n.div_exact(&by)?, d.div_exact(&by)?);
            }
            if n.terms().chain(d.terms()).any(|(c, _)| c.saturating_abs() > MAX_COEFFICIENT) {
                return None;
            }
        }
        Some(self)
    }

    /// The largest numerator and divisor that is a float without an error, if the model rounds their quotients once.
    pub(super) fn once(&self) -> Option<i64> {
        self.once
    }

    /// Whether they are factors whose products with sizes count as quotients.
    fn are_factors(&self) -> bool {
        let small = |d: &Dim, most: i64| d.as_const().is_some_and(|n| n.abs() <= most);
        self.iter().all(|(n, d)| small(n, MAX_DIVISOR * MAX_DIVISOR) && small(d, MAX_DIVISOR))
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.saturating_abs() } else { gcd(b, a % b) }
}

/// How a float becomes a whole number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rounding {
    Down,
    Up,
    /// To the nearest, halves to even.
    Nearest,
    TowardsZero,
}

impl Rounding {
    fn of(op: &Op) -> Option<Rounding> {
        match op {
            Op::Floor(_) => Some(Rounding::Down),
            Op::Ceil(_) => Some(Rounding::Up),
            Op::Round(_) => Some(Rounding::Nearest),
            Op::Cast(c) if c.to.is_int() => Some(Rounding::TowardsZero),
            _ => None,
        }
    }

    /// `n / d` rounded, for a positive `d`; `None` if the sign of `n` decides and is not known.
    fn apply(self, n: &Dim, d: &Dim, symbols: &SymbolTable) -> Option<Dim> {
        let up = || -(-n.clone()).floor_div(d);
        let range = n.range(symbols);
        let rounded = match self {
            Rounding::Down => n.floor_div(d),
            Rounding::Up => up(),
            Rounding::TowardsZero if range.min >= 0 => n.floor_div(d),
            Rounding::TowardsZero if range.max <= 0 => up(),
            Rounding::TowardsZero => return None,
            Rounding::Nearest => {
                let double = n.clone() * Dim::from(2) + d.clone();
                let nearest = double.floor_div(&(d.clone() * Dim::from(2)));
                // A half was rounded up to an odd number where twice the sum leaves half of the divisor; an odd divisor has no halves.
                let off = double.rem(&(d.clone() * Dim::from(4))) - d.clone() * Dim::from(2);
                let odd_half = Dim::from(1) - off.maximum(&-off.clone()).maximum(&Dim::from(0)).minimum(&Dim::from(1));
                if d.as_const().is_some_and(|d| d % 2 != 0) { nearest } else { nearest - odd_half }
            }
        };
        Some(rounded.simplify(symbols))
    }
}

impl Importer<'_> {
    /// The results of an operator on quotients; `result` is its type. `None` if it gives others, or too much is unknown.
    pub(super) fn quotients_of(&self, op: &Op, inputs: &[Val], result: &Type) -> Option<Quotients> {
        if !result.elem.is_float() || !inputs.iter().any(|&v| self.is_symbolic(v)) {
            return None;
        }
        let types = [result.with_elem(Elem::I64)];
        let eval = |op: Op, operands: &[&SymTensor]| {
            let operands: Vec<Option<SymTensor>> = operands.iter().map(|t| Some((*t).clone())).collect();
            Some(symbolic::eval(&op, &types, &operands, self.symbols())?.swap_remove(0))
        };
        let product = |a: &SymTensor, b: &SymTensor| eval(Mul {}.into(), &[a, b]);
        let all: Vec<Quotients> = inputs.iter().map(|&v| self.quotients(v)).collect::<Option<_>>()?;
        let [numerators, divisors] = match (op, all.as_slice()) {
            (Op::Cast(_), [x]) => [x.numerators.clone(), x.divisors.clone()],
            (Op::Neg(_), [x]) => [eval(Neg {}.into(), &[&x.numerators])?, x.divisors.clone()],
            (Op::Mul(_), [x, y]) => [product(&x.numerators, &y.numerators)?, product(&x.divisors, &y.divisors)?],
            (Op::Div(_), [x, y]) if y.numerators.values.iter().all(|d| d.range(self.symbols()).min >= 0) => {
                [product(&x.numerators, &y.divisors)?, product(&x.divisors, &y.numerators)?]
            }
            (Op::Add(_) | Op::Sub(_), [x, y]) => {
                let (a, b) = (product(&x.numerators, &y.divisors)?, product(&y.numerators, &x.divisors)?);
                let sum = if matches!(op, Op::Add(_)) { Add {}.into() } else { Sub {}.into() };
                [eval(sum, &[&a, &b])?, product(&x.divisors, &y.divisors)?]
            }
            // Operators that move elements move both alike; operands behind the moved ones are indices.
            _ if op.traits().moved > 0 => {
                let moved = |part: fn(&Quotients) -> &SymTensor| {
                    let operands: Vec<&SymTensor> =
                        all.iter().enumerate().map(|(i, x)| if i < op.traits().moved { part(x) } else { &x.numerators }).collect();
                    eval(op.clone(), &operands)
                };
                [moved(|x| &x.numerators)?, moved(|x| &x.divisors)?]
            }
            _ => return None,
        };
        let once = self.rounds_once(op, inputs, &all, result.elem);
        let q = Quotients { numerators, divisors, once };
        // What is without an error need not be so when it is reduced.
        if once.is_some() { Some(q) } else { q.reduced() }
    }

    /// [`Quotients::once`] of the results of an operator.
    fn rounds_once(&self, op: &Op, inputs: &[Val], all: &[Quotients], elem: Elem) -> Option<i64> {
        let exact = match elem {
            Elem::F32 => 1 << 24,
            Elem::F64 => 1 << 53,
            _ => return None,
        };
        let whole = |v: Val| self.whole_numbers(v).is_some();
        let factors = |i: usize| self.as_const(inputs[i]).is_some() && all[i].are_factors();
        match (op, inputs) {
            (Op::Div(_), &[x, y]) => {
                let positive = all[1].numerators.values.iter().all(|d| d.range(self.symbols()).min > 0);
                (positive && whole(x) && whole(y)).then_some(exact)
            }
            (Op::Mul(_), &[x, y]) => (whole(x) && factors(1) || factors(0) && whole(y)).then_some(exact),
            (Op::Neg(_), _) => all[0].once,
            (_, [_]) if op.traits().moved == 1 => all[0].once,
            _ => None,
        }
    }

    /// The whole numbers that an operator rounds quotients to, if it does. That they are small enough to be exact becomes a
    /// bound or is checked at run time.
    pub(super) fn rounded(&mut self, op: &Op, inputs: &[Val]) -> Res<Option<SymTensor>> {
        let (Some(rounding), &[x]) = (Rounding::of(op), inputs) else { return Ok(None) };
        let Some((q, exact)) = self.rounded_once(x).map(|(q, exact)| (q.clone(), exact)) else { return Ok(None) };
        let pairs = || q.numerators.values.iter().zip(&q.divisors.values);
        let apply = |symbols: &SymbolTable| pairs().map(|(n, d)| rounding.apply(n, d, symbols)).collect::<Option<Vec<Dim>>>();
        let values = match apply(self.symbols()) {
            Some(values) => values,
            // Where only a size of 0 makes a number negative, it is excluded.
            None => {
                let symbols = self.symbols_from(1, &[x]);
                let Some(values) = apply(&symbols) else { return Ok(None) };
                self.narrow_ranges(symbols);
                values
            }
        };
        if values.iter().any(|d| d.size() > symbolic::MAX_SIZE) {
            return Ok(None);
        }
        let limit = Dim::from(exact);
        for (n, d) in pairs() {
            let twice = if rounding == Rounding::Nearest { 2 } else { 1 };
            let sum = (n.maximum(&-n.clone()) * Dim::from(twice) + d.clone()).simplify(self.symbols());
            let Range { min, max } = sum.range(self.symbols());
            if min > exact {
                return Ok(None);
            }
            if max > exact {
                self.require_equal(&sum.maximum(&limit), &limit, "sizes that are divided as floats")?;
            }
        }
        Ok(Some(SymTensor { values, ..q.numerators }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfc_ir::dim::{Bindings, Symbol};

    const ALL: [Rounding; 4] = [Rounding::Down, Rounding::Up, Rounding::Nearest, Rounding::TowardsZero];

    fn as_float(rounding: Rounding, n: i64, d: i64) -> i64 {
        let f = n as f32 / d as f32;
        (match rounding {
            Rounding::Down => f.floor(),
            Rounding::Up => f.ceil(),
            Rounding::Nearest => f.round_ties_even(),
            Rounding::TowardsZero => f.trunc(),
        }) as i64
    }

    #[test]
    fn rounded_quotients_are_those_of_floats() {
        let n = Symbol::new("n");
        let check = |at: i64, d: i64, shift: i64| {
            // Numerators on both sides of 0, each of a known sign.
            for sign in [1, -1] {
                let numerator = Dim::from(sign) * (Dim::from(n.clone()) + Dim::from(shift));
                let bindings = Bindings::from([(n.clone(), at)]);
                for rounding in ALL {
                    let found = rounding.apply(&numerator, &Dim::from(d), &SymbolTable::new()).unwrap();
                    assert_eq!(
                        found.eval(&bindings),
                        Some(as_float(rounding, sign * (at + shift), d)),
                        "{rounding:?} of {at} + {shift} by {d}: {found}"
                    );
                }
            }
        };
        for d in 1..20 {
            (0..70).for_each(|at| check(at, d, at % 3));
        }
        // At the limit of the argument: |2n| + d <= 2^24.
        let limit = 1i64 << 24;
        for d in [2, 3, 5, 7, 64, 1000, 1023, 4095, 4096, 65_537, (1 << 23) - 1] {
            for back in 0..50 {
                check((limit - d) / 2 - back, d, 0);
                let quotient = ((limit - d) / 2 / d - back).max(1);
                (-1..2).for_each(|off| check((quotient * d + off).max(0).min((limit - d) / 2), d, 0));
            }
        }
    }

    #[test]
    fn signs_that_are_open_are_not_truncated() {
        let n = Dim::symbol("n") - Dim::from(3);
        assert_eq!(Rounding::TowardsZero.apply(&n, &Dim::from(2), &SymbolTable::new()), None);
        assert!(ALL[..3].iter().all(|r| r.apply(&n, &Dim::from(2), &SymbolTable::new()).is_some()));
    }

    #[test]
    fn factors_are_small_fractions() {
        let of = |x: f64| Quotients::of_tensor(&Tensor::of(&[], vec![x]));
        let fraction =
            |x: f64| of(x).filter(Quotients::are_factors).map(|q| q.iter().map(|(n, d)| (n.clone(), d.clone())).collect::<Vec<_>>());
        assert_eq!(fraction(1.5), Some(vec![(Dim::from(3), Dim::from(2))]));
        assert_eq!(fraction(-4.0), Some(vec![(Dim::from(-4), Dim::from(1))]));
        assert!([0.1, 1.0 / 3.0, f64::NAN, f64::INFINITY, 1e30].into_iter().all(|x| fraction(x).is_none()));
    }
}
