//! Floats that models compute from sizes to scale others by, such as `float(height) / 7`, as ratios of sizes.
//!
//! Ratios are exact, where the model rounds to floats after every step. A float that is meant to be a whole number
//! (`float(31) / 7 * 7`) may fall short of it by rounding, and then its floor is one less than that of the
//! exact number.

use super::{Importer, Val};
use tfc_ir::dim::Dim;
use tfc_ir::ops::{Add, Mul, Neg, Op, Sub};
use tfc_ir::symbolic::{self, SymTensor};
use tfc_ir::tensor::Tensor;
use tfc_ir::types::{Elem, Type};

/// Numerators and divisors beyond this are not followed, so that arithmetic on them stays far from the ends of i64.
const MAX_COEFFICIENT: i64 = 1 << 44;

/// A small tensor of floats that are exactly `numerator / divisor`, element by element. Divisors are not negative.
#[derive(Clone, Debug)]
pub(super) struct Ratios {
    numerators: SymTensor,
    divisors: SymTensor,
}

impl Ratios {
    /// Whole numbers.
    pub(super) fn whole(numerators: SymTensor) -> Ratios {
        let numerators = SymTensor { elem: Elem::I64, ..numerators };
        let divisors = SymTensor { values: vec![Dim::from(1); numerators.values.len()], ..numerators.clone() };
        Ratios { numerators, divisors }
    }

    /// The elements of a constant; `None` if one has more digits behind the point than are followed.
    pub(super) fn of_tensor(t: &Tensor) -> Option<Ratios> {
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
        Some(Ratios { numerators: tensor(numerators), divisors: tensor(divisors) })
    }

    /// Numerator and divisor of each element, in row-major order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Dim, &Dim)> {
        self.numerators.values.iter().zip(&self.divisors.values)
    }

    /// Divides numerators and divisors by what they have in common; `None` if they have grown too large.
    fn reduced(mut self) -> Option<Ratios> {
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
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a.saturating_abs() } else { gcd(b, a % b) }
}

impl Importer<'_> {
    /// The results of an operator on ratios; `result` is its type. `None` if it gives others, or too much is unknown.
    pub(super) fn ratios_of(&self, op: &Op, inputs: &[Val], result: &Type) -> Option<Ratios> {
        if !result.elem.is_float() || !(inputs.iter().any(|&v| self.is_symbolic(v))) {
            return None;
        }
        let types = [result.with_elem(Elem::I64)];
        let eval = |op: Op, operands: &[&SymTensor]| {
            let operands: Vec<Option<SymTensor>> = operands.iter().map(|t| Some((*t).clone())).collect();
            Some(symbolic::eval(&op, &types, &operands, self.symbols())?.swap_remove(0))
        };
        let all: Vec<Ratios> = inputs.iter().map(|&v| self.ratios(v)).collect::<Option<_>>()?;
        let [numerators, divisors] = match (op, all.as_slice()) {
            (Op::Cast(_), [x]) => [x.numerators.clone(), x.divisors.clone()],
            (Op::Neg(_), [x]) => [eval(Neg {}.into(), &[&x.numerators])?, x.divisors.clone()],
            (Op::Mul(_), [x, y]) => {
                [eval(Mul {}.into(), &[&x.numerators, &y.numerators])?, eval(Mul {}.into(), &[&x.divisors, &y.divisors])?]
            }
            (Op::Div(_), [x, y]) if y.numerators.values.iter().all(|d| d.range(self.symbols()).min >= 0) => {
                [eval(Mul {}.into(), &[&x.numerators, &y.divisors])?, eval(Mul {}.into(), &[&x.divisors, &y.numerators])?]
            }
            (Op::Add(_) | Op::Sub(_), [x, y]) => {
                let (a, b) = (eval(Mul {}.into(), &[&x.numerators, &y.divisors])?, eval(Mul {}.into(), &[&y.numerators, &x.divisors])?);
                let sum = if matches!(op, Op::Add(_)) { Add {}.into() } else { Sub {}.into() };
                [eval(sum, &[&a, &b])?, eval(Mul {}.into(), &[&x.divisors, &y.divisors])?]
            }
            // Operators that move elements move both alike; operands behind the moved ones are indices.
            _ if op.traits().moved > 0 => {
                let moved = |part: fn(&Ratios) -> &SymTensor| {
                    let operands: Vec<&SymTensor> =
                        all.iter().enumerate().map(|(i, x)| if i < op.traits().moved { part(x) } else { &x.numerators }).collect();
                    eval(op.clone(), &operands)
                };
                [moved(|x| &x.numerators)?, moved(|x| &x.divisors)?]
            }
            _ => return None,
        };
        Ratios { numerators, divisors }.reduced()
    }
}
