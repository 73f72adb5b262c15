//! Dimension expressions as code: integers for sizes, floats to notice that an integer would overflow.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use cranelift_frontend::FunctionBuilder;
use std::collections::{BTreeMap, HashMap};
use tfc_ir::dim::{Atom, Dim, Symbol};

/// Emits dimension expressions into one function. Values are computed where they are first asked for,
/// so ask in a block that dominates all uses.
pub struct DimEmitter {
    symbols: BTreeMap<Symbol, Value>,
    known: HashMap<Dim, Value>,
}

impl DimEmitter {
    /// With the values of the symbols, `i64`.
    pub fn new(symbols: BTreeMap<Symbol, Value>) -> Self {
        DimEmitter { symbols, known: HashMap::new() }
    }

    /// The value as an `i64`.
    pub fn int(&mut self, b: &mut FunctionBuilder, d: &Dim) -> Value {
        if let Some(n) = d.as_const() {
            return b.ins().iconst(types::I64, n);
        }
        if let Some(&v) = self.known.get(d) {
            return v;
        }
        let mut sum = None;
        for (coefficient, factors) in d.terms() {
            let mut product = None;
            for a in factors {
                let f = self.atom(b, a);
                product = Some(product.map_or(f, |p| b.ins().imul(p, f)));
            }
            let term = match product {
                None => b.ins().iconst(types::I64, coefficient),
                Some(p) if coefficient == 1 => p,
                Some(p) => b.ins().imul_imm_s(p, coefficient),
            };
            sum = Some(sum.map_or(term, |s| b.ins().iadd(s, term)));
        }
        let v = sum.unwrap_or_else(|| b.ins().iconst(types::I64, 0));
        self.known.insert(d.clone(), v);
        v
    }

    fn atom(&mut self, b: &mut FunctionBuilder, a: &Atom) -> Value {
        match a {
            Atom::Symbol(s) => self.symbols[s],
            Atom::Min(x, y) => {
                let (x, y) = (self.int(b, x), self.int(b, y));
                b.ins().smin(x, y)
            }
            Atom::Max(x, y) => {
                let (x, y) = (self.int(b, x), self.int(b, y));
                b.ins().smax(x, y)
            }
            Atom::FloorDiv(x, y) => {
                let (x, y) = (self.int(b, x), self.int(b, y));
                floor_div(b, x, y).0
            }
            Atom::Rem(x, y) => {
                let (x, y) = (self.int(b, x), self.int(b, y));
                floor_div(b, x, y).1
            }
            // No program has a size that is too large for [`DimEmitter::magnitude`].
            Atom::Excess => b.ins().iconst(types::I64, i64::MAX),
        }
    }

    /// An upper bound of the magnitude as an `f64`: every product is taken positive.
    pub fn magnitude(&self, b: &mut FunctionBuilder, d: &Dim) -> Value {
        let mut sum = b.ins().f64const(0.0);
        for (coefficient, factors) in d.terms() {
            let mut product = b.ins().f64const((coefficient as f64).abs());
            for a in factors {
                let f = match a {
                    Atom::Symbol(s) => b.ins().fcvt_from_sint(types::F64, self.symbols[s]),
                    Atom::FloorDiv(x, _) | Atom::Rem(x, _) => self.magnitude(b, x),
                    Atom::Min(x, y) | Atom::Max(x, y) => {
                        let (x, y) = (self.magnitude(b, x), self.magnitude(b, y));
                        b.ins().fmax(x, y)
                    }
                    Atom::Excess => b.ins().f64const(f64::INFINITY),
                };
                product = b.ins().fmul(product, f);
            }
            sum = b.ins().fadd(sum, product);
        }
        sum
    }
}

/// Quotient and remainder of the division that rounds down. A divisor of 0 counts as 1.
fn floor_div(b: &mut FunctionBuilder, x: Value, y: Value) -> (Value, Value) {
    let one = b.ins().iconst(types::I64, 1);
    let is_zero = b.ins().icmp_imm_s(IntCC::Equal, y, 0);
    let y = b.ins().select(is_zero, one, y);
    let q = b.ins().sdiv(x, y);
    let p = b.ins().imul(q, y);
    let r = b.ins().isub(x, p);
    let inexact = b.ins().icmp_imm_s(IntCC::NotEqual, r, 0);
    let signs = b.ins().bxor(r, y);
    let differ = b.ins().icmp_imm_s(IntCC::SignedLessThan, signs, 0);
    let adjust = b.ins().band(inexact, differ);
    let less = b.ins().isub(q, one);
    let more = b.ins().iadd(r, y);
    (b.ins().select(adjust, less, q), b.ins().select(adjust, more, r))
}
