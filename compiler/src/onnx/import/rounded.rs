//! Sizes that a model divides as floats and rounds: `ceil(float(n) / 2)`, which exporters write for divisions of sizes.
//!
//! For whole `n` and `d > 0` with `|n| + d <= 2^24`, rounding the float `n / d` gives what rounding the number does.
//! Both operands are floats without an error, and the quotient `x` is rounded once, to a float `f`. Rounding keeps order and
//! keeps whole numbers up to `2^24`, so `f` is on the same side of each of them as `x` is, or is one itself. A quotient that
//! is not whole is at least `1 / d` away from each; a float near `m` is within `|m| * 2^-24` of what it stands for, which is
//! less, as `|m| * d <= |n| + d`. So `f` is whole only if `x` is. The same holds for halves, which decide where rounding
//! goes to the nearest, with `2 * n` for `n`. With f64, `2^53` takes the place of `2^24`.

use super::{Importer, Res, Val};
use tfc_ir::dim::{Dim, Range, SymbolTable};
use tfc_ir::ops::{Expand, Mul, Neg, Op};
use tfc_ir::symbolic::{self, SymTensor};
use tfc_ir::types::{Elem, Type};

/// A small tensor of floats, each a numerator divided by a positive divisor and rounded once.
#[derive(Clone)]
pub(super) struct Quotients {
    numerators: SymTensor,
    divisors: SymTensor,
    /// Up to here all whole numbers are floats of the type.
    limit: i64,
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
    /// The results of an operator as quotients, if they are that; `result` is its type.
    pub(super) fn quotients_of(&self, op: &Op, inputs: &[Val], result: &Type) -> Option<Quotients> {
        let limit = match result.elem {
            Elem::F32 => 1 << 24,
            Elem::F64 => 1 << 53,
            _ => return None,
        };
        let shape = &result.shape;
        let eval = |op: &Op, operands: Vec<SymTensor>| {
            let operands: Vec<Option<SymTensor>> = operands.into_iter().map(Some).collect();
            let ty = Type::new(Elem::I64, shape.clone());
            Some(symbolic::eval(op, &[ty], &operands, self.symbols())?.swap_remove(0))
        };
        let spread = |t: SymTensor| eval(&Expand { shape: shape.clone() }.into(), vec![t]);
        match (op, inputs) {
            (Op::Div(_), &[x, y]) => {
                let (numerators, divisors) = (spread(self.whole_numbers(x)?)?, spread(self.whole_numbers(y)?)?);
                let positive = divisors.values.iter().all(|d| d.range(self.symbols()).min > 0);
                positive.then_some(Quotients { numerators, divisors, limit })
            }
            // A factor such as 0.5 or 1.5 is a quotient of which the divisor is a power of two.
            (Op::Mul(_), &[x, y]) => {
                let (x, y) = if self.as_const(y).is_some() { (x, y) } else { (y, x) };
                let (factors, divisors): (Vec<Dim>, Vec<Dim>) =
                    self.as_const(y)?.to_f64s().into_iter().map(fraction).collect::<Option<_>>()?;
                let sizes = self.shape(y).as_fixed()?;
                let tensor = |values| SymTensor { elem: Elem::I64, shape: sizes.clone(), values };
                let numerators = eval(&Mul {}.into(), vec![self.whole_numbers(x)?, tensor(factors)])?;
                Some(Quotients { numerators, divisors: spread(tensor(divisors))?, limit })
            }
            (Op::Neg(_), &[x]) => {
                let q = self.quotients(x)?.clone();
                Some(Quotients { numerators: eval(&Neg {}.into(), vec![q.numerators])?, ..q })
            }
            (_, &[x]) if op.traits().moved == 1 => {
                let q = self.quotients(x)?.clone();
                Some(Quotients { numerators: eval(op, vec![q.numerators])?, divisors: eval(op, vec![q.divisors])?, limit })
            }
            _ => None,
        }
    }

    /// The whole numbers that an operator rounds quotients to, if it does. That they are small enough to be exact becomes a
    /// bound or is checked at run time.
    pub(super) fn rounded(&mut self, op: &Op, inputs: &[Val]) -> Res<Option<SymTensor>> {
        let (Some(rounding), &[x]) = (Rounding::of(op), inputs) else { return Ok(None) };
        let Some(q) = self.quotients(x).cloned() else { return Ok(None) };
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
        let limit = Dim::from(q.limit);
        for (n, d) in pairs() {
            let twice = if rounding == Rounding::Nearest { 2 } else { 1 };
            let sum = (n.maximum(&-n.clone()) * Dim::from(twice) + d.clone()).simplify(self.symbols());
            let Range { min, max } = sum.range(self.symbols());
            if min > q.limit {
                return Ok(None);
            }
            if max > q.limit {
                self.require_equal(&sum.maximum(&limit), &limit, "sizes that are divided as floats")?;
            }
        }
        Ok(Some(SymTensor { values, ..q.numerators }))
    }
}

/// A float as a numerator and a divisor that is a small power of two, if it is that.
fn fraction(x: f64) -> Option<(Dim, Dim)> {
    const LARGEST: f64 = 1024.0;
    let mut divisor = 1.0;
    while (x * divisor).fract() != 0.0 && divisor < LARGEST {
        divisor *= 2.0;
    }
    let numerator = x * divisor;
    (numerator.fract() == 0.0 && numerator.abs() <= LARGEST * LARGEST).then(|| (Dim::from(numerator as i64), Dim::from(divisor as i64)))
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
        assert_eq!(fraction(1.5), Some((Dim::from(3), Dim::from(2))));
        assert_eq!(fraction(-4.0), Some((Dim::from(-4), Dim::from(1))));
        assert!([0.1, 1.0 / 3.0, f64::NAN, f64::INFINITY, 1e30].into_iter().all(|x| fraction(x).is_none()));
    }
}
