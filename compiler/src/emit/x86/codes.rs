//! Codes of static quantization as a whole: found among the expressions of a kernel, and computed for less than their parts.
//! The numbers of a [site](crate::kernel::site) are brought into the frame where a kernel begins.

use super::asm::{Asm, Local, Mem, V};
use super::expr::{Exprs, Function};
use super::gelu::{self, Gelu};
use super::isa::Op;
use crate::kernel::nest::{Expr, ExprId};
use crate::kernel::{Extent, site};
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// A site, each number a vector of the frame.
#[derive(Clone, Copy)]
pub struct Site {
    /// Its buffer parameter.
    pub buffer: u32,
    /// What values are multiplied by.
    pub inverse: Local,
    /// The bounds of rounded values.
    bounds: [Local; 2],
    /// The zero point as i32.
    zero: Local,
    /// The zero point as i16.
    pub zero_words: Local,
    /// The least code as i8.
    pub least: Local,
    /// What codes of GELU are made by.
    pub gelu: Option<gelu::Scaled>,
}

impl Site {
    /// Brings a site into the frame; with what codes of GELU need, if that is wanted.
    pub fn new(f: &mut Function, buffer: u32, of_gelu: bool) -> Site {
        let at = f.buffer(buffer);
        let word = |a: &mut Asm, n: i64| {
            let x = a.broadcast(Mem::at(at, 4 * n));
            a.local(x)
        };
        let a = &mut f.a;
        let inverse = word(a, site::INVERSE);
        Site {
            buffer,
            inverse,
            bounds: [site::LOW, site::HIGH].map(|n| word(a, n)),
            zero: word(a, site::ZERO_I32),
            zero_words: word(a, site::ZERO_I16),
            least: word(a, site::LEAST_I8),
            gelu: of_gelu.then(|| gelu::Scaled::new(a, inverse)),
        }
    }
}

/// Brings the sites into the frame by which expressions are quantized.
pub fn bring_sites(f: &mut Function, exprs: &Exprs) {
    let is_gelu = |x: ExprId| matches!(gelu::find(exprs, x), Some(Gelu { tanh: None, .. }));
    let found: Vec<(u32, bool)> = exprs.keys().filter_map(|e| find(exprs, e)).map(|c| (c.site, is_gelu(c.x))).collect();
    for &(buffer, _) in &found {
        if f.site(buffer).is_none() {
            let site = Site::new(f, buffer, found.contains(&(buffer, true)));
            f.sites.push(site);
        }
    }
}

/// Codes that [`Exprs::codes`](crate::schedule::exprs::Exprs::codes) makes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Codes {
    /// What is quantized.
    pub x: ExprId,
    /// Whether that may be below the bound of the site.
    pub below: bool,
    /// Buffer parameter of the site.
    pub site: u32,
}

/// The codes that an `i8` is, if it is some.
pub fn find(exprs: &Exprs, code: ExprId) -> Option<Codes> {
    let of = |e: ExprId, prim: Prim, elem: Elem| match &exprs[e] {
        (Expr::Prim(p, args), t) if (*p, *t) == (prim, elem) => Some(&args[..]),
        _ => None,
    };
    // The buffer whose word is loaded.
    let loaded = |e: ExprId, word: i64| match &exprs[e].0 {
        Expr::Load(a) if a.offset == Extent::Const(word) && a.strides.iter().all(|&s| s == Extent::Const(0)) => Some(a.buffer),
        _ => None,
    };
    // The first operand, and the buffer whose word is the second.
    let with = |e: ExprId, prim: Prim, word: i64| match *of(e, prim, Elem::F32)? {
        [x, n] => Some((x, loaded(n, word)?)),
        _ => None,
    };
    let &[sum] = of(code, Prim::Cast, Elem::I8)? else { return None };
    let &[steps, zero] = of(sum, Prim::Add, Elem::I32)? else { return None };
    let (&[bounded], &[zero]) = (of(steps, Prim::Cast, Elem::I32)?, of(zero, Prim::Cast, Elem::I32)?) else { return None };
    let (raised, high) = with(bounded, Prim::Min, site::HIGH)?;
    let raise = with(raised, Prim::Max, site::LOW);
    let (rounded, low) = raise.unwrap_or((raised, high));
    let &[scaled] = of(rounded, Prim::RoundEven, Elem::F32)? else { return None };
    let (x, inverse) = with(scaled, Prim::Mul, site::INVERSE)?;
    let zero = loaded(zero, site::ZERO)?;
    let one = [high, low, zero].iter().all(|&buffer| buffer == inverse);
    one.then_some(Codes { x, below: raise.is_some(), site: inverse })
}

/// Codes of a vector of f32 by a site, in the lowest byte of each lane: other bytes hold anything. What is no number is
/// converted to a number whose lowest byte is 0.
pub fn low_byte(a: &mut Asm, x: V, site: &Site) -> V {
    let x = a.binary(Op::MulPs, x, site.inverse);
    of_scaled(a, x, site, true)
}

/// [`low_byte`] of values that are multiplied already, and may be `below` the bound or not.
pub fn of_scaled(a: &mut Asm, x: V, site: &Site, below: bool) -> V {
    // Where one operand is NaN the instruction gives the second.
    let raised = if below {
        let low = a.vector_of(site.bounds[0]);
        a.binary(Op::MaxPs, low, x)
    } else {
        x
    };
    let high = a.vector_of(site.bounds[1]);
    let x = a.binary(Op::MinPs, high, raised);
    let x = a.unary(Op::CvtPs2Dq, x);
    a.binary(Op::AddD, x, site.zero)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nest::Access;
    use crate::schedule::exprs;
    use tfc_ir::ops::Cast;

    #[test]
    fn codes_are_found_and_other_bytes_are_not() {
        let access = |buffer: u32, n: i64| Access { buffer, offset: Extent::Const(n), strides: vec![], dynamic: vec![] };
        let mut e = exprs::Exprs::default();
        let x = e.push(Expr::Load(access(0, 0)), Elem::F32);
        for below in [false, true] {
            let code = e.codes(x, below, |n| access(7, n));
            assert_eq!(find(&e.list, code), Some(Codes { x, below, site: 7 }));
            // Words of several sites.
            let mixed = e.codes(x, below, |n| access(n as u32, n));
            assert_eq!(find(&e.list, mixed), None);
        }
        let plain = e.apply(&Cast { to: Elem::I8 }.into(), &[x]);
        assert_eq!(find(&e.list, plain), None);
    }
}
