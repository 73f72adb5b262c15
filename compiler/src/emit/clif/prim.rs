//! Primitives of scalar programs as instructions, with the semantics of [`tfc_ir::scalar`].
//!
//! | elements | scalar | vector |
//! |---|---|---|
//! | `bool` | `i8`, 0 or 1 | `i32x4`, all bits of a lane |
//! | integers up to 32 bits | `i32`, sign- or zero-extended | `i32x4`, the same |
//! | `i64`, `u64` | `i64` | one scalar per lane, or first and step |
//! | `f16`, `bf16`, `f32` | `f32` | `f32x4` |
//! | `f64` | `f64` | one scalar per lane |

use super::{KernelBuilder, int_like, math};
use crate::kernel::nest::ReduceOp;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, F64, I8, I32, I32X4, I64};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// The type of a scalar.
pub fn scalar_type(elem: Elem) -> Type {
    match elem {
        Elem::Bool => I8,
        Elem::F16 | Elem::Bf16 | Elem::F32 => F32,
        Elem::F64 => F64,
        Elem::I64 | Elem::U64 => I64,
        _ => I32,
    }
}

/// The type of a vector, for element types that have one.
pub fn vector_type(elem: Elem) -> Option<Type> {
    match elem {
        Elem::F16 | Elem::Bf16 | Elem::F32 => Some(F32X4),
        Elem::F64 | Elem::I64 | Elem::U64 => None,
        _ => Some(I32X4),
    }
}
/// An integer or `bool` constant in its scalar representation.
pub fn int_const(b: &mut KernelBuilder, elem: Elem, n: i64) -> Value {
    use tfc_ir::tensor::{Scalar, round_to};
    let n = round_to(elem, Scalar::Int(n.into())).to_i128() as i64;
    b.int_of(scalar_type(elem), n)
}

/// Brings the low bits of an integer into the representation of its type.
pub fn wrap(b: &mut KernelBuilder, x: Value, elem: Elem) -> Value {
    let ty = b.ty(x);
    let bits = i64::from(elem.bits());
    if bits >= 32 {
        x
    } else if elem.is_signed_int() {
        let x = b.shl(x, 32 - bits);
        b.sar(x, 32 - bits)
    } else {
        let mask = b.int_of(ty, (1 << bits) - 1);
        b.f.ins().band(x, mask)
    }
}

/// Whether a primitive of operands of 32 bits or less has a form for vectors.
pub fn has_vector_form(prim: Prim, operand: Elem) -> bool {
    use Prim::*;
    match prim {
        RemFloor | RemTrunc | Pow | Shl | Shr => false,
        Div => operand.is_float() || operand == Elem::Bool,
        _ => true,
    }
}

/// Whether a primitive of operands of this type is computed lane by lane, or has no vectors at all.
pub fn is_scalar_only(prim: Prim, operand: Elem) -> bool {
    vector_type(operand).is_none() || !has_vector_form(prim, operand)
}

/// Applies a primitive to scalars. `from` is the type of the first operand, `operand` that of those that
/// are computed with.
pub fn scalar_prim(b: &mut KernelBuilder, prim: Prim, x: &[Value], operand: Elem, from: Elem, to: Elem) -> Value {
    match prim {
        Prim::Pow if operand.is_float() => {
            let wide: Vec<Value> = x.iter().map(|&x| promote(b, x)).collect();
            let y = math::pow(b, wide[0], wide[1]);
            demote(b, y, to)
        }
        Prim::RemFloor | Prim::RemTrunc if operand.is_float() => {
            let wide: Vec<Value> = x.iter().map(|&x| promote(b, x)).collect();
            let y = math::remainder(b, wide[0], wide[1], prim == Prim::RemFloor);
            demote(b, y, to)
        }
        Prim::Pow => {
            let y = int_power(b, x[0], x[1], operand);
            wrap(b, y, operand)
        }
        Prim::Div | Prim::RemFloor | Prim::RemTrunc if operand.is_int() => {
            let y = int_division(b, prim, x[0], x[1], operand);
            wrap(b, y, operand)
        }
        Prim::Shl | Prim::Shr => shift(b, prim, x[0], x[1], operand),
        _ => polymorphic(b, prim, x, operand, from, to),
    }
}

fn promote(b: &mut KernelBuilder, x: Value) -> Value {
    if b.ty(x) == F64 { x } else { b.f.ins().fpromote(F64, x) }
}

fn demote(b: &mut KernelBuilder, x: Value, elem: Elem) -> Value {
    if elem == Elem::F64 { x } else { b.f.ins().fdemote(F32, x) }
}

/// Primitives whose instructions are the same for scalars and vectors. `from` is the type of the first
/// operand, `operand` that of those that are computed with.
pub fn polymorphic(b: &mut KernelBuilder, prim: Prim, x: &[Value], operand: Elem, from: Elem, to: Elem) -> Value {
    match prim {
        Prim::Select => b.choose(x[0], x[1], x[2]),
        Prim::Cast => cast(b, x[0], from, to),
        _ if operand.is_float() => float_prim(b, prim, x),
        _ if operand == Elem::Bool => bool_prim(b, prim, x),
        _ => {
            let y = int_prim(b, prim, x, operand);
            if to == Elem::Bool { y } else { wrap(b, y, operand) }
        }
    }
}

fn float_prim(b: &mut KernelBuilder, prim: Prim, x: &[Value]) -> Value {
    match prim {
        Prim::Neg => b.f.ins().fneg(x[0]),
        Prim::Abs => b.f.ins().fabs(x[0]),
        Prim::Sqrt => b.f.ins().sqrt(x[0]),
        Prim::Floor | Prim::Ceil | Prim::Trunc | Prim::RoundEven => math::round(b, prim, x[0]),
        Prim::Add => b.f.ins().fadd(x[0], x[1]),
        Prim::Sub => b.f.ins().fsub(x[0], x[1]),
        Prim::Mul => b.f.ins().fmul(x[0], x[1]),
        Prim::Div => b.f.ins().fdiv(x[0], x[1]),
        Prim::Min => b.f.ins().fmin(x[0], x[1]),
        Prim::Max => b.f.ins().fmax(x[0], x[1]),
        Prim::Eq => b.f.ins().fcmp(FloatCC::Equal, x[0], x[1]),
        Prim::Lt => b.f.ins().fcmp(FloatCC::LessThan, x[0], x[1]),
        Prim::Le => b.f.ins().fcmp(FloatCC::LessThanOrEqual, x[0], x[1]),
        other => math::unary(b, other, x[0]),
    }
}

fn bool_prim(b: &mut KernelBuilder, prim: Prim, x: &[Value]) -> Value {
    let ty = b.ty(x[0]);
    let not = |b: &mut KernelBuilder, x: Value| {
        let all = b.int_of(ty, if ty.is_vector() { -1 } else { 1 });
        b.f.ins().bxor(x, all)
    };
    match prim {
        Prim::Not => not(b, x[0]),
        Prim::Neg | Prim::Abs => x[0],
        Prim::And | Prim::Mul | Prim::Min | Prim::Div => b.f.ins().band(x[0], x[1]),
        Prim::Or | Prim::Add | Prim::Max => b.f.ins().bor(x[0], x[1]),
        Prim::Xor | Prim::Sub => b.f.ins().bxor(x[0], x[1]),
        Prim::Eq => {
            let differ = b.f.ins().bxor(x[0], x[1]);
            not(b, differ)
        }
        Prim::Lt => {
            let n = not(b, x[0]);
            b.f.ins().band(n, x[1])
        }
        Prim::Le => {
            let n = not(b, x[0]);
            b.f.ins().bor(n, x[1])
        }
        _ => unreachable!("{prim:?} of bool"),
    }
}

fn int_prim(b: &mut KernelBuilder, prim: Prim, x: &[Value], elem: Elem) -> Value {
    let signed = elem.is_signed_int();
    match prim {
        Prim::Neg => b.f.ins().ineg(x[0]),
        Prim::Abs if signed => b.f.ins().iabs(x[0]),
        Prim::Abs => x[0],
        Prim::Not => b.f.ins().bnot(x[0]),
        Prim::Add => b.f.ins().iadd(x[0], x[1]),
        Prim::Sub => b.f.ins().isub(x[0], x[1]),
        Prim::Mul => b.f.ins().imul(x[0], x[1]),
        Prim::Min if signed => b.f.ins().smin(x[0], x[1]),
        Prim::Min => b.f.ins().umin(x[0], x[1]),
        Prim::Max if signed => b.f.ins().smax(x[0], x[1]),
        Prim::Max => b.f.ins().umax(x[0], x[1]),
        Prim::And => b.f.ins().band(x[0], x[1]),
        Prim::Or => b.f.ins().bor(x[0], x[1]),
        Prim::Xor => b.f.ins().bxor(x[0], x[1]),
        Prim::Eq => b.f.ins().icmp(IntCC::Equal, x[0], x[1]),
        Prim::Lt => b.f.ins().icmp(if signed { IntCC::SignedLessThan } else { IntCC::UnsignedLessThan }, x[0], x[1]),
        Prim::Le => b.f.ins().icmp(if signed { IntCC::SignedLessThanOrEqual } else { IntCC::UnsignedLessThanOrEqual }, x[0], x[1]),
        _ => unreachable!("{prim:?} of {elem}"),
    }
}

/// Shifts by a scalar; by the width or more, or by a negative number, the result is 0.
pub fn shift(b: &mut KernelBuilder, prim: Prim, x: Value, by: Value, elem: Elem) -> Value {
    let ty = b.ty(x);
    let y = match prim {
        Prim::Shl => b.f.ins().ishl(x, by),
        _ if elem.is_signed_int() => b.f.ins().sshr(x, by),
        _ => b.f.ins().ushr(x, by),
    };
    let fits = b.f.ins().icmp_imm_u(IntCC::UnsignedLessThan, by, i64::from(elem.bits()));
    let zero = b.int_of(ty, 0);
    let y = b.f.ins().select(fits, y, zero);
    wrap(b, y, elem)
}

/// Division and remainders of integers without traps: a zero divisor gives 0, the smallest number
/// divided by -1 wraps.
fn int_division(b: &mut KernelBuilder, prim: Prim, x: Value, y: Value, elem: Elem) -> Value {
    let ty = b.ty(x);
    let (zero, one) = (b.int_of(ty, 0), b.int_of(ty, 1));
    let by_zero = b.f.ins().icmp(IntCC::Equal, y, zero);
    if !elem.is_signed_int() {
        let divisor = b.f.ins().select(by_zero, one, y);
        let r = if prim == Prim::Div { b.f.ins().udiv(x, divisor) } else { b.f.ins().urem(x, divisor) };
        return b.f.ins().select(by_zero, zero, r);
    }
    let minus_one = b.int_of(ty, -1);
    let by_minus_one = b.f.ins().icmp(IntCC::Equal, y, minus_one);
    let special = b.f.ins().bor(by_zero, by_minus_one);
    let divisor = b.f.ins().select(special, one, y);
    if prim == Prim::Div {
        let q = b.f.ins().sdiv(x, divisor);
        let negated = b.f.ins().ineg(x);
        let q = b.f.ins().select(by_minus_one, negated, q);
        return b.f.ins().select(by_zero, zero, q);
    }
    let r = b.f.ins().srem(x, divisor);
    if prim == Prim::RemTrunc {
        return r;
    }
    // A remainder whose sign differs from the divisor's is one divisor off; of a zero divisor it is 0.
    let sum = b.f.ins().iadd(r, y);
    let signs = b.f.ins().bxor(r, y);
    let differ = b.f.ins().icmp(IntCC::SignedLessThan, signs, zero);
    let some = b.f.ins().icmp(IntCC::NotEqual, r, zero);
    let off = b.f.ins().band(differ, some);
    b.f.ins().select(off, sum, r)
}

/// `x ^ y` by squaring; negative exponents give 0, or ±1 for the bases ±1.
fn int_power(b: &mut KernelBuilder, x: Value, y: Value, elem: Elem) -> Value {
    let ty = b.ty(x);
    let (base, exponent, result) = (b.f.declare_var(ty), b.f.declare_var(ty), b.f.declare_var(ty));
    let (zero, one) = (b.int_of(ty, 0), b.int_of(ty, 1));
    let (start, count) = if elem.is_signed_int() {
        // A negative exponent is an even or odd one of ±1, and 0 becomes of all other bases.
        let negative = b.f.ins().icmp(IntCC::SignedLessThan, y, zero);
        let odd = b.f.ins().band(y, one);
        let count = b.f.ins().select(negative, odd, y);
        let up = b.f.ins().iadd(x, one);
        let two = b.int_of(ty, 2);
        let unit = b.f.ins().icmp(IntCC::UnsignedLessThanOrEqual, up, two);
        let non_zero = b.f.ins().icmp(IntCC::NotEqual, x, zero);
        let unit = b.f.ins().band(unit, non_zero);
        let unit = b.f.ins().uextend(ty, unit);
        (b.f.ins().select(negative, unit, one), count)
    } else {
        (one, y)
    };
    b.f.def_var(base, x);
    b.f.def_var(exponent, count);
    b.f.def_var(result, start);
    let (head, body, exit) = (b.f.create_block(), b.f.create_block(), b.f.create_block());
    b.f.ins().jump(head, &[]);
    b.f.switch_to_block(head);
    let e = b.f.use_var(exponent);
    b.f.ins().brif(e, body, &[], exit, &[]);
    b.f.seal_block(body);
    b.f.switch_to_block(body);
    let (p, r) = (b.f.use_var(base), b.f.use_var(result));
    let bit = b.f.ins().band(e, one);
    let product = b.f.ins().imul(r, p);
    let r = b.f.ins().select(bit, product, r);
    b.f.def_var(result, r);
    let square = b.f.ins().imul(p, p);
    b.f.def_var(base, square);
    let e = b.f.ins().ushr(e, one);
    b.f.def_var(exponent, e);
    b.f.ins().jump(head, &[]);
    b.f.seal_block(head);
    b.f.seal_block(exit);
    b.f.switch_to_block(exit);
    b.f.use_var(result)
}

/// Conversion of a scalar, or of a vector between types that have vectors.
pub fn cast(b: &mut KernelBuilder, x: Value, from: Elem, to: Elem) -> Value {
    let ty = b.ty(x);
    let vector = ty.is_vector();
    let target = if vector { vector_type(to).expect("a type with vectors") } else { scalar_type(to) };
    if from == to {
        return x;
    }
    match (from, to) {
        (Elem::Bool, to) if to.is_float() => {
            let one = b.float_of(target, 1.0);
            let zero = b.float_of(target, 0.0);
            b.choose(x, one, zero)
        }
        (Elem::Bool, _) if vector => {
            let one = b.int_of(ty, 1);
            b.f.ins().band(x, one)
        }
        (Elem::Bool, _) => b.f.ins().uextend(target, x),
        (from, Elem::Bool) if from.is_float() => {
            let zero = b.float_of(ty, 0.0);
            b.f.ins().fcmp(FloatCC::NotEqual, x, zero)
        }
        (_, Elem::Bool) => {
            let zero = b.int_of(ty, 0);
            b.f.ins().icmp(IntCC::NotEqual, x, zero)
        }
        (from, to) if from.is_float() && to.is_float() => {
            let x = match (from, to) {
                (_, Elem::F64) => b.f.ins().fpromote(F64, x),
                (Elem::F64, Elem::F32) => b.f.ins().fdemote(F32, x),
                (Elem::F64, _) => demote_to_odd(b, x),
                _ => x,
            };
            round_narrow(b, x, to)
        }
        (from, to) if from.is_float() => float_to_int(b, x, to),
        (from, to) if to.is_float() => {
            let unsigned = !from.is_signed_int();
            // 32 bits are exact in f64, from where narrow floats round once.
            let narrow = matches!(to, Elem::F16 | Elem::Bf16) && !vector;
            let via = if narrow { F64 } else { target };
            let y = if unsigned { b.f.ins().fcvt_from_uint(via, x) } else { b.f.ins().fcvt_from_sint(via, x) };
            let y = if narrow { demote_to_odd(b, y) } else { y };
            round_narrow(b, y, to)
        }
        _ => {
            let x = match (ty, target) {
                (I32, I64) if from.is_signed_int() => b.f.ins().sextend(I64, x),
                (I32, I64) => b.f.ins().uextend(I64, x),
                (I64, I32) => b.f.ins().ireduce(I32, x),
                _ => x,
            };
            wrap(b, x, to)
        }
    }
}

/// Rounds an f32 to a narrower float type, staying in f32.
fn round_narrow(b: &mut KernelBuilder, x: Value, to: Elem) -> Value {
    let ty = b.ty(x);
    match to {
        Elem::F16 => {
            let h = f32_to_f16(b, x);
            f16_to_f32(b, h)
        }
        Elem::Bf16 => {
            let h = f32_to_bf16(b, x);
            let h = b.shl(h, 16);
            b.bits(ty, h)
        }
        _ => x,
    }
}

/// An f64 as f32, rounded to odd, so that rounding once more to a narrower type is right.
fn demote_to_odd(b: &mut KernelBuilder, x: Value) -> Value {
    let y = b.f.ins().fdemote(F32, x);
    let back = b.f.ins().fpromote(F64, y);
    let (x_abs, back_abs) = (b.f.ins().fabs(x), b.f.ins().fabs(back));
    let too_far = b.f.ins().fcmp(FloatCC::GreaterThan, back_abs, x_abs);
    let inexact = b.f.ins().fcmp(FloatCC::NotEqual, back_abs, x_abs);
    let bits = b.bits(I32, y);
    let too_far = b.f.ins().uextend(I32, too_far);
    let bits = b.f.ins().isub(bits, too_far);
    let inexact = b.f.ins().uextend(I32, inexact);
    let bits = b.f.ins().bor(bits, inexact);
    b.bits(F32, bits)
}

fn float_to_int(b: &mut KernelBuilder, x: Value, to: Elem) -> Value {
    let vector = b.ty(x).is_vector();
    let ty = if vector { I32X4 } else { scalar_type(to) };
    let y = if to.is_signed_int() { b.f.ins().fcvt_to_sint_sat(ty, x) } else { b.f.ins().fcvt_to_uint_sat(ty, x) };
    if to.bits() >= 32 {
        return y;
    }
    let (lo, hi) = to.int_range().expect("an integer type");
    let hi = b.int_of(ty, hi as i64);
    if to.is_signed_int() {
        let lo = b.int_of(ty, lo as i64);
        let y = b.f.ins().smin(y, hi);
        b.f.ins().smax(y, lo)
    } else {
        b.f.ins().umin(y, hi)
    }
}

/// The f32 of the `f16` in the low bits of integers.
pub fn f16_to_f32(b: &mut KernelBuilder, x: Value) -> Value {
    let ty = b.ty(x);
    let float = if ty.is_vector() { F32X4 } else { F32 };
    let magnitude = b.int_of(ty, 0x7fff);
    let magnitude = b.f.ins().band(x, magnitude);
    // The exponent is rebased by a product with 2^112, exact for subnormal numbers as well.
    let shifted = b.shl(magnitude, 13);
    let shifted = b.bits(float, shifted);
    let rebase = b.float_of(float, 2f64.powi(112));
    let finite = b.f.ins().fmul(shifted, rebase);
    let finite = b.bits(ty, finite);
    // Infinities and NaNs have become numbers from 2^16.
    let last_finite = b.int_of(ty, 0x7bff);
    let special = b.f.ins().icmp(IntCC::SignedGreaterThan, magnitude, last_finite);
    let exponent = b.int_of(ty, 0x7f80_0000);
    let with_exponent = b.f.ins().bor(finite, exponent);
    let bits = b.choose(special, with_exponent, finite);
    let sign = b.int_of(ty, 0x8000);
    let sign = b.f.ins().band(x, sign);
    let sign = b.shl(sign, 16);
    let bits = b.f.ins().bor(bits, sign);
    b.bits(float, bits)
}

/// `f16` bits, in 32-bit integers, of f32 values: rounded to nearest even.
pub fn f32_to_f16(b: &mut KernelBuilder, x: Value) -> Value {
    let float = b.ty(x);
    let ty = int_like(float);
    let bits = b.bits(ty, x);
    let all = b.int_of(ty, 0x7fff_ffff);
    let magnitude = b.f.ins().band(bits, all);
    // Normal results: half of a unit less one, plus the lowest bit that stays, and the exponent rebased.
    let one = b.int_of(ty, 1);
    let odd = b.shr(magnitude, 13);
    let odd = b.f.ins().band(odd, one);
    let rebase = b.int_of(ty, 0xfff - (112 << 23));
    let normal = b.f.ins().iadd(magnitude, rebase);
    let normal = b.f.ins().iadd(normal, odd);
    let normal = b.shr(normal, 13);
    // Subnormal results: adding 0.5 leaves units of 2^-24 in the mantissa.
    let float_magnitude = b.bits(float, magnitude);
    let half = b.float_of(float, 0.5);
    let small = b.f.ins().fadd(float_magnitude, half);
    let small = b.bits(ty, small);
    let half_bits = b.int_of(ty, 0x3f00_0000);
    let small = b.f.ins().isub(small, half_bits);
    let first_normal = b.int_of(ty, 113 << 23);
    let is_small = b.f.ins().icmp(IntCC::SignedLessThan, magnitude, first_normal);
    let y = b.choose(is_small, small, normal);
    // 65520 and more become infinite; NaNs keep the upper part of their payload and become quiet.
    let infinity = b.int_of(ty, 0x7c00);
    let first_infinite = b.int_of(ty, 0x477f_f000);
    let is_large = b.f.ins().icmp(IntCC::SignedGreaterThanOrEqual, magnitude, first_infinite);
    let y = b.choose(is_large, infinity, y);
    let inf_bits = b.int_of(ty, 0x7f80_0000);
    let is_nan = b.f.ins().icmp(IntCC::SignedGreaterThan, magnitude, inf_bits);
    let payload = b.shr(magnitude, 13);
    let low = b.int_of(ty, 0x3ff);
    let payload = b.f.ins().band(payload, low);
    let quiet = b.int_of(ty, 0x7e00);
    let nan = b.f.ins().bor(payload, quiet);
    let y = b.choose(is_nan, nan, y);
    let sign = b.shr(bits, 16);
    let sign_bit = b.int_of(ty, 0x8000);
    let sign = b.f.ins().band(sign, sign_bit);
    b.f.ins().bor(y, sign)
}

/// `bf16` bits, in 32-bit integers, of f32 values: rounded to nearest even.
pub fn f32_to_bf16(b: &mut KernelBuilder, x: Value) -> Value {
    let float = b.ty(x);
    let ty = int_like(float);
    let bits = b.bits(ty, x);
    let upper = b.shr(bits, 16);
    let one = b.int_of(ty, 1);
    let odd = b.f.ins().band(upper, one);
    let half = b.int_of(ty, 0x7fff);
    let rounded = b.f.ins().iadd(bits, half);
    let rounded = b.f.ins().iadd(rounded, odd);
    let rounded = b.shr(rounded, 16);
    let quiet = b.int_of(ty, 0x40);
    let nan = b.f.ins().bor(upper, quiet);
    let is_nan = b.f.ins().fcmp(FloatCC::NotEqual, x, x);
    b.choose(is_nan, nan, rounded)
}

/// The start value of a reduction.
pub fn identity(b: &mut KernelBuilder, op: ReduceOp, elem: Elem, ty: Type) -> Value {
    if elem.is_float() {
        let x = match op {
            ReduceOp::Sum => 0.0,
            ReduceOp::Prod => 1.0,
            ReduceOp::Max => f64::NEG_INFINITY,
            ReduceOp::Min => f64::INFINITY,
        };
        return b.float_of(ty, x);
    }
    let (lo, hi) = elem.int_range().expect("an integer type or bool");
    let n = match op {
        ReduceOp::Sum => 0,
        ReduceOp::Prod => 1,
        ReduceOp::Max => lo,
        ReduceOp::Min => hi,
    };
    let n = if elem == Elem::Bool && ty.is_vector() { -n } else { n };
    b.int_of(ty, n as i64)
}

/// The primitive that reduces.
pub fn reducer(op: ReduceOp) -> Prim {
    match op {
        ReduceOp::Sum => Prim::Add,
        ReduceOp::Prod => Prim::Mul,
        ReduceOp::Max => Prim::Max,
        ReduceOp::Min => Prim::Min,
    }
}

/// `acc` combined with a further value: scalars, or vectors of types that have them.
pub fn reduce(b: &mut KernelBuilder, op: ReduceOp, elem: Elem, acc: Value, x: Value) -> Value {
    polymorphic(b, reducer(op), &[acc, x], elem, elem, elem)
}
