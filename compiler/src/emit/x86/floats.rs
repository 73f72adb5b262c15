//! Floats of memory as lanes of f32: f32 itself, and f16 and bf16, which are widened when they are loaded and rounded to the
//! nearest, ties to even, when they are stored.

use super::asm::{Asm, M, Mem, V};
use super::isa::Op;
use super::math;
use tfc_ir::types::Elem;

/// Whether values of a type are lanes of f32.
pub fn is_float(elem: Elem) -> bool {
    elem == Elem::F32 || is_half(elem)
}

/// Whether a type has 16 bits in memory.
pub fn is_half(elem: Elem) -> bool {
    matches!(elem, Elem::F16 | Elem::Bf16)
}

/// A vector of neighbours.
pub fn load(a: &mut Asm, elem: Elem, m: Mem) -> V {
    match elem {
        Elem::F16 => a.unary(Op::WidenF16, m),
        Elem::Bf16 => {
            let words = a.unary(Op::WidenU16, m);
            a.unary_imm(Op::ShlD, words, 16)
        }
        _ => a.vector_of(m),
    }
}

/// Neighbours of which only the lanes of a mask exist, the first so many; the others are 0.
pub fn load_masked(a: &mut Asm, elem: Elem, m: Mem, mask: M) -> V {
    if !is_half(elem) {
        return a.load_masked(m, mask);
    }
    let words = a.load_words(m, mask);
    widened(a, elem, words)
}

/// One number in every lane.
pub fn broadcast(a: &mut Asm, elem: Elem, m: Mem) -> V {
    if !is_half(elem) {
        return a.broadcast(m);
    }
    let words = a.unary(Op::BroadcastWord, m);
    widened(a, elem, words)
}

/// Stores a vector of neighbours.
pub fn store(a: &mut Asm, elem: Elem, m: Mem, x: V) {
    if !is_half(elem) {
        return a.store_vector(m, x);
    }
    let words = narrowed(a, elem, x);
    a.store_by(Op::StoreHalf, m, words);
}

/// Stores the lanes of a mask, the first so many.
pub fn store_masked(a: &mut Asm, elem: Elem, m: Mem, x: V, mask: M) {
    if !is_half(elem) {
        return a.store_masked(m, x, mask);
    }
    let words = narrowed(a, elem, x);
    a.store_words(m, words, mask);
}

/// Stores the lowest lane.
pub fn store_lane(a: &mut Asm, elem: Elem, m: Mem, x: V) {
    if !is_half(elem) {
        return a.store_by(Op::StoreLane, m, x);
    }
    let words = narrowed(a, elem, x);
    a.store_lowest_word(m, words);
}

/// The numbers of a type that are nearest to those of the lanes.
pub fn rounded(a: &mut Asm, elem: Elem, x: V) -> V {
    match elem {
        Elem::F16 => {
            let words = narrowed(a, elem, x);
            widened(a, elem, words)
        }
        Elem::Bf16 => {
            let x = upper_rounded(a, x);
            a.binary(Op::And, x, 0xffff_0000_u32 as i32)
        }
        _ => x,
    }
}

/// The lanes of words, which are half a vector.
fn widened(a: &mut Asm, elem: Elem, words: V) -> V {
    if elem == Elem::F16 {
        return a.unary(Op::WidenF16, words);
    }
    let words = a.unary(Op::WidenU16, words);
    a.unary_imm(Op::ShlD, words, 16)
}

/// The words of lanes, half a vector.
fn narrowed(a: &mut Asm, elem: Elem, x: V) -> V {
    if elem == Elem::F16 {
        return a.unary_imm(Op::NarrowF16, x, 0);
    }
    let x = upper_rounded(a, x);
    let x = a.unary_imm(Op::ShrD, x, 16);
    a.low_words(x)
}

/// Lanes whose upper 16 bits are the nearest bf16. A NaN stays one: its payload could carry over, or be lost.
fn upper_rounded(a: &mut Asm, x: V) -> V {
    let upper = a.unary_imm(Op::ShrD, x, 16);
    let odd = a.binary(Op::And, upper, 1);
    let half = a.binary(Op::AddD, x, 0x7fff);
    let rounded = a.binary(Op::AddD, half, odd);
    let nan = a.compare_ps(math::UNORDERED, x, x);
    let quiet = a.binary(Op::Or, x, 0x0040_0000);
    a.select(nan, quiet, rounded)
}
