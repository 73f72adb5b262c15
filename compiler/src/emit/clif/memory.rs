//! Elements in memory: loads and stores of single elements and of four neighbours, with the conversions
//! to the representations of [`prim`](super::prim).

use super::prim::{f16_to_f32, f32_to_bf16, f32_to_f16, scalar_type, wrap};
use super::{KernelBuilder, MEM};
use crate::kernel::Extent;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{F32, F32X4, I8, I8X16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, Value};
use tfc_ir::types::Elem;

/// Where an access begins: an address, or for nibbles the number of the element.
pub enum Place {
    Bytes { address: Value, size: i64 },
    Nibbles { base: Value, number: Value },
}

/// How the lanes of an access lie.
pub enum Spread {
    /// All on one place.
    None,
    /// At a constant distance, in elements.
    Const(i64),
    /// Each at its own distance from the place, in elements.
    Each(Vec<Value>),
}
/// The address of lane `l` as a base and a displacement.
fn displaced(b: &mut KernelBuilder, address: Value, bytes: i64) -> (Value, i32) {
    match i32::try_from(bytes) {
        Ok(d) => (address, d),
        Err(_) => (b.f.ins().iadd_imm_s(address, bytes), 0),
    }
}

fn lane_address(b: &mut KernelBuilder, address: Value, size: i64, spread: &Spread, l: usize) -> (Value, i32) {
    match spread {
        Spread::None => (address, 0),
        Spread::Const(n) => displaced(b, address, n * l as i64 * size),
        Spread::Each(at) => {
            let bytes = b.times(at[l], Extent::Const(size));
            (b.f.ins().iadd(address, bytes), 0)
        }
    }
}

/// The byte of a nibble and the shift to it.
fn nibble(b: &mut KernelBuilder, base: Value, number: Value, spread: &Spread, l: usize) -> (Value, Value) {
    let (number, more) = lane_address(b, number, 1, spread, l);
    let number = b.f.ins().iadd_imm_s(number, i64::from(more));
    let byte = b.f.ins().sshr_imm_u(number, 1);
    let address = b.f.ins().iadd(base, byte);
    let odd = b.f.ins().band_imm_u(number, 1);
    let odd = b.f.ins().ireduce(I32, odd);
    (address, b.f.ins().ishl_imm_u(odd, 2))
}

/// Loads the element of lane `l`.
pub fn load_at(b: &mut KernelBuilder, place: &Place, spread: &Spread, l: usize, elem: Elem) -> Value {
    match *place {
        Place::Bytes { address, size } => {
            let (p, d) = lane_address(b, address, size, spread, l);
            load_scalar(b, p, d, elem)
        }
        Place::Nibbles { base, number } => {
            let (p, shift) = nibble(b, base, number, spread, l);
            let byte = b.f.ins().uload8(I32, MEM, p, 0);
            let x = b.f.ins().ushr(byte, shift);
            wrap(b, x, elem)
        }
    }
}

/// Stores the element of lane `l`.
pub fn store_at(b: &mut KernelBuilder, place: &Place, spread: &Spread, l: usize, elem: Elem, x: Value) {
    match *place {
        Place::Bytes { address, size } => {
            let (p, d) = lane_address(b, address, size, spread, l);
            store_scalar(b, p, d, elem, x);
        }
        Place::Nibbles { base, number } => {
            // The other nibble of the byte belongs to the same task.
            let (p, shift) = nibble(b, base, number, spread, l);
            let old = b.f.ins().uload8(I32, MEM, p, 0);
            let mask = b.f.ins().iconst(I32, 15);
            let mask = b.f.ins().ishl(mask, shift);
            let keep = b.f.ins().band_not(old, mask);
            let x = b.f.ins().band_imm_u(x, 15);
            let x = b.f.ins().ishl(x, shift);
            let x = b.f.ins().bor(keep, x);
            b.f.ins().istore8(MEM, x, p, 0);
        }
    }
}

/// Loads one element of a type of whole bytes.
pub fn load_scalar(b: &mut KernelBuilder, p: Value, d: i32, elem: Elem) -> Value {
    match elem {
        Elem::Bool => {
            let x = b.f.ins().load(I8, MEM, p, d);
            b.f.ins().icmp_imm_u(IntCC::NotEqual, x, 0)
        }
        Elem::I8 => b.f.ins().sload8(I32, MEM, p, d),
        Elem::U8 => b.f.ins().uload8(I32, MEM, p, d),
        Elem::I16 => b.f.ins().sload16(I32, MEM, p, d),
        Elem::U16 => b.f.ins().uload16(I32, MEM, p, d),
        Elem::F16 => {
            let x = b.f.ins().uload16(I32, MEM, p, d);
            f16_to_f32(b, x)
        }
        Elem::Bf16 => {
            let x = b.f.ins().uload16(I32, MEM, p, d);
            let x = b.shl(x, 16);
            b.bits(F32, x)
        }
        Elem::I32 | Elem::U32 | Elem::F32 | Elem::I64 | Elem::U64 | Elem::F64 => b.f.ins().load(scalar_type(elem), MEM, p, d),
        Elem::I4 | Elem::U4 => unreachable!("nibbles have places of their own"),
    }
}

/// Stores one element of a type of whole bytes.
pub fn store_scalar(b: &mut KernelBuilder, p: Value, d: i32, elem: Elem, x: Value) {
    match elem {
        Elem::I8 | Elem::U8 => b.f.ins().istore8(MEM, x, p, d),
        Elem::I16 | Elem::U16 => b.f.ins().istore16(MEM, x, p, d),
        Elem::F16 => {
            let x = f32_to_f16(b, x);
            b.f.ins().istore16(MEM, x, p, d)
        }
        Elem::Bf16 => {
            let x = f32_to_bf16(b, x);
            b.f.ins().istore16(MEM, x, p, d)
        }
        _ => b.f.ins().store(MEM, x, p, d),
    };
}

/// Loads four elements of a type of whole bytes that has vectors.
pub fn load_vector(b: &mut KernelBuilder, p: Value, bytes: i64, elem: Elem) -> Value {
    let (p, d) = displaced(b, p, bytes);
    let four = |b: &mut KernelBuilder, signed: bool, wide: bool| {
        let v = if wide {
            let x = b.f.ins().load(I64, MEM, p, d);
            let v = b.f.ins().scalar_to_vector(I64X2, x);
            b.bits(I16X8, v)
        } else {
            let x = b.f.ins().load(I32, MEM, p, d);
            let v = b.f.ins().scalar_to_vector(I32X4, x);
            let v = b.bits(I8X16, v);
            if signed { b.f.ins().swiden_low(v) } else { b.f.ins().uwiden_low(v) }
        };
        if signed { b.f.ins().swiden_low(v) } else { b.f.ins().uwiden_low(v) }
    };
    match elem {
        Elem::F32 => b.f.ins().load(F32X4, MEM, p, d),
        Elem::I8 => four(b, true, false),
        Elem::U8 => four(b, false, false),
        Elem::I16 => four(b, true, true),
        Elem::U16 => four(b, false, true),
        Elem::Bool => {
            let v = four(b, false, false);
            let zero = b.int_of(I32X4, 0);
            b.f.ins().icmp(IntCC::NotEqual, v, zero)
        }
        Elem::F16 => {
            let v = four(b, false, true);
            f16_to_f32(b, v)
        }
        Elem::Bf16 => {
            let v = four(b, false, true);
            let v = b.shl(v, 16);
            b.bits(F32X4, v)
        }
        _ => b.f.ins().load(I32X4, MEM, p, d),
    }
}

/// Stores four elements of a type of whole bytes that has vectors.
pub fn store_vector(b: &mut KernelBuilder, p: Value, bytes: i64, elem: Elem, x: Value) {
    let (p, d) = displaced(b, p, bytes);
    let x = match elem {
        Elem::Bool => {
            let one = b.int_of(I32X4, 1);
            b.f.ins().band(x, one)
        }
        Elem::F16 => f32_to_f16(b, x),
        Elem::Bf16 => f32_to_bf16(b, x),
        _ => x,
    };
    // Narrowing saturates with the sign: 16 bits without one come in the range of those with one.
    match elem.bits() {
        32 => {
            b.f.ins().store(MEM, x, p, d);
        }
        16 => {
            let x = b.shl(x, 16);
            let x = b.sar(x, 16);
            let x = b.f.ins().snarrow(x, x);
            let x = b.bits(I64X2, x);
            let x = b.lane(x, 0);
            b.f.ins().store(MEM, x, p, d);
        }
        _ => {
            let x = b.shl(x, 24);
            let x = b.sar(x, 24);
            let x = b.f.ins().snarrow(x, x);
            let x = b.f.ins().snarrow(x, x);
            let x = b.bits(I32X4, x);
            let x = b.lane(x, 0);
            b.f.ins().store(MEM, x, p, d);
        }
    }
}
