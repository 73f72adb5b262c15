//! Codes of static quantization as a whole: found among the expressions of a kernel, and computed for less than their parts.

use super::asm::{Asm, V};
use super::expr::Exprs;
use super::isa::Op;
use crate::kernel::nest::{Expr, ExprId};
use crate::kernel::pack::Fixed;
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// What is quantized by the expressions of [`QuantizeStatic`](tfc_ir::ops::QuantizeStatic), and how, if that is what an `i8` is.
pub fn find(exprs: &Exprs, code: ExprId) -> Option<(ExprId, Fixed)> {
    let of = |e: ExprId, prim: Prim, elem: Elem| match &exprs[e] {
        (Expr::Prim(p, args), t) if (*p, *t) == (prim, elem) => Some(&args[..]),
        _ => None,
    };
    // The first operand, and the number that is the second.
    let with = |e: ExprId, prim: Prim| match *of(e, prim, Elem::F32)? {
        [x, c] => match exprs[c].0 {
            Expr::Float(bits) => Some((x, f64::from_bits(bits) as f32)),
            _ => None,
        },
        _ => None,
    };
    let &[sum] = of(code, Prim::Cast, Elem::I8)? else { return None };
    let (steps, zero_point) = match of(sum, Prim::Add, Elem::I32) {
        Some(&[steps, zero]) => match exprs[zero].0 {
            Expr::Int(zero) => (steps, i8::try_from(zero).ok()?),
            _ => return None,
        },
        _ => (sum, 0),
    };
    let &[bounded] = of(steps, Prim::Cast, Elem::I32)? else { return None };
    let (raised, high) = with(bounded, Prim::Min)?;
    let (rounded, low) = with(raised, Prim::Max)?;
    let &[scaled] = of(rounded, Prim::RoundEven, Elem::F32)? else { return None };
    let (x, inverse) = with(scaled, Prim::Mul)?;
    let fixed = Fixed::new(inverse, zero_point, (low + f32::from(zero_point)) as i8);
    (fixed.bounds() == [low, high]).then_some((x, fixed))
}

/// Codes of a vector of f32 by a known scale, in the lowest byte of each lane: other bytes hold anything. What is no number is
/// converted to a number whose lowest byte is 0.
pub fn low_byte(a: &mut Asm, x: V, fixed: Fixed) -> V {
    let x = a.binary(Op::MulPs, x, fixed.inverse());
    of_scaled(a, x, fixed, f32::NEG_INFINITY)
}

/// [`low_byte`] of values that are multiplied already, and are at least `least` where they are numbers.
pub fn of_scaled(a: &mut Asm, x: V, fixed: Fixed, least: f32) -> V {
    // Where one operand is NaN the instruction gives the second.
    let [low, high] = fixed.bounds();
    let x = match least < low {
        true => {
            let low = a.vector_of(low);
            a.binary(Op::MaxPs, low, x)
        }
        false => x,
    };
    let high = a.vector_of(high);
    let x = a.binary(Op::MinPs, high, x);
    let x = a.unary(Op::CvtPs2Dq, x);
    match i32::from(fixed.zero_point) {
        0 => x,
        zero => a.binary(Op::AddD, x, zero),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Extent;
    use crate::kernel::nest::Access;
    use crate::schedule::exprs;
    use tfc_ir::ops::{Cast, QuantizeStatic};

    #[test]
    fn the_operator_is_found_and_others_are_not() {
        for zero_point in [0, -128, 127, 5] {
            let op = QuantizeStatic { scale: 0.25f32.into(), zero_point };
            let mut e = exprs::Exprs::default();
            let access = Access { buffer: 0, offset: Extent::Const(0), strides: vec![], dynamic: vec![] };
            let x = e.push(Expr::Load(access), Elem::F32);
            let code = e.apply(&op.clone().into(), &[x]);
            assert_eq!(find(&e.list, code), Some((x, Fixed::of(&op))));
            let plain = e.apply(&Cast { to: Elem::I8 }.into(), &[x]);
            assert_eq!(find(&e.list, plain), None);
        }
    }
}
