//! Emission of the expressions of kernels on wide vectors.
//!
//! An [`Evaluator`] emits an expression at most once. Along the lane loop values are vectors; what is the
//! same for all lanes is a vector all the same, or a constant. Types are f32, [f16 and bf16](super::floats) as they are loaded
//! and stored (in f32 lanes), i32, i8 as it is loaded and stored (in i32 lanes), `bool` as masks, and `i64` as numbers that do
//! not vary. Everything else is left to the portable emitter: see [`supported`].

use super::asm::{Asm, Cond, M, Mem, R, Src, V};
use super::codes::{self, Site};
use super::floats::{self, is_float};
use super::gelu::{self, Gelu};
use super::isa::Op;
use super::math;
use crate::kernel::nest::{Access, Effect, Expr, ExprId, Reduction};
use crate::kernel::{Extent, Kernel};
use cranelift_entity::{PrimaryMap, SecondaryMap};
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// Expressions with their element types.
pub type Exprs = PrimaryMap<ExprId, (Expr, Elem)>;

/// A function with the arguments of a kernel.
pub struct Function {
    /// Its code.
    pub a: Asm,
    /// Address of the argument words.
    pub args: R,
    /// Number of buffer parameters.
    pub buffers: usize,
    /// The sites that are in the frame.
    pub sites: Vec<Site>,
}

impl Function {
    /// The address of a buffer.
    pub fn buffer(&mut self, n: u32) -> R {
        self.a.load(Mem::at(self.args, 8 * (1 + i64::from(n))))
    }

    /// The site of a buffer, if it is one in the frame.
    pub fn site(&self, buffer: u32) -> Option<&Site> {
        self.sites.iter().find(|s| s.buffer == buffer)
    }

    /// The value of an extent.
    pub fn extent(&mut self, e: Extent) -> R {
        match e {
            Extent::Const(n) => self.a.imm(n),
            Extent::Param(p) => self.a.load(Mem::at(self.args, 8 * (1 + self.buffers as i64 + i64::from(p)))),
        }
    }

    /// Runs the body for the tasks `begin..end`.
    pub fn tasks(&mut self, begin: R, end: R, body: impl FnOnce(&mut Function, R)) {
        let task = self.a.copy(begin);
        let (head, exit) = (self.a.label(), self.a.label());
        self.a.compare(task, end);
        self.a.jump_if(Cond::Ge, exit);
        self.a.bind(head);
        body(self, task);
        self.a.add_imm(task, 1);
        self.a.compare(task, end);
        self.a.jump_if(Cond::Lt, head);
        self.a.bind(exit);
    }

    /// Runs the body `count` times, at least once; `count` is 0 behind.
    pub fn repeat(&mut self, count: R, body: impl FnOnce(&mut Function)) {
        let head = self.a.label();
        self.a.bind(head);
        body(self);
        self.a.count_down(count, 1, head);
    }

    /// The lanes of a vector that are among the first `count`; the vector begins at `skipped`.
    pub fn lanes_among(&mut self, count: R, skipped: i64) -> M {
        let left = self.a.lea(Mem::at(count, -skipped));
        let (zero, most) = (self.a.imm(0), self.a.imm(self.a.isa.lanes()));
        let left = self.a.max(left, zero);
        let left = self.a.min(left, most);
        self.a.first_lanes(left)
    }

    /// A distance in bytes, of elements of four bytes.
    pub fn times_bytes(&mut self, elements: Extent) -> R {
        let n = self.extent(elements);
        self.a.times_imm(n, 4)
    }

    /// `x * by`.
    pub fn times(&mut self, x: R, by: Extent) -> R {
        match by {
            Extent::Const(n) => self.a.times_imm(x, n),
            Extent::Param(_) => {
                let by = self.extent(by);
                self.a.times(x, by)
            }
        }
    }
}

/// The value of an expression.
#[derive(Clone, Copy, Debug)]
enum Val {
    /// Lanes of 32 bits.
    V(V),
    /// The same 32 bits in every lane.
    Splat(u32),
    /// A number, the same for all lanes.
    R(R),
    /// Truth by lane.
    M(M),
}

/// Which lanes of a vector exist.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Lanes {
    /// All of them.
    All,
    /// Those of a mask.
    Some(M),
    /// The lowest.
    One,
}

/// An access with what is fixed outside of the lane loop added up.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// Address of the element at index 0 of the lane loop.
    pub at: R,
    /// Whether the access moves along the lane loop.
    pub moves: bool,
    /// Type of its elements.
    pub elem: Elem,
    /// Bytes behind the address.
    pub disp: i64,
}

/// Whether a set of expressions and effects can be emitted with lanes along a loop.
pub fn supported(kernel: &Kernel, exprs: &Exprs, effects: &[Effect], lane_loop: u32) -> bool {
    let mut ok: SecondaryMap<ExprId, bool> = SecondaryMap::new();
    let access = |a: &Access, elem: Elem| {
        let stride = a.strides.get(lane_loop as usize).copied().unwrap_or(Extent::Const(0));
        a.dynamic.is_empty()
            && matches!(stride, Extent::Const(0 | 1))
            && (elem == Elem::I8 || is_float(elem))
            && kernel.buffers[a.buffer as usize].elem == elem
    };
    for (id, (expr, elem)) in exprs.iter() {
        ok[id] = match expr {
            Expr::Load(a) => access(a, *elem),
            Expr::Reduced(_) | Expr::Float(_) => is_float(*elem),
            Expr::Int(_) => matches!(elem, Elem::I32 | Elem::I8),
            Expr::Extent(_) => true,
            Expr::Index(_) | Expr::CheckedIndex(..) => false,
            Expr::Prim(p, args) => args.iter().all(|&x| ok[x]) && prim_supported(*p, exprs[args[0]].1, *elem, args.len()),
        };
    }
    effects.iter().all(|e| match e {
        Effect::Store(a, x) => {
            let stride = a.strides.get(lane_loop as usize);
            ok[*x] && access(a, exprs[*x].1) && stride != Some(&Extent::Const(0))
        }
        Effect::Reduce(_, x) => ok[*x] && is_float(exprs[*x].1),
    })
}

fn prim_supported(p: Prim, of: Elem, to: Elem, args: usize) -> bool {
    use Prim::*;
    match p {
        Cast => match of {
            Elem::I64 => is_float(to),
            Elem::I32 => matches!(to, Elem::F32 | Elem::I32 | Elem::I8),
            of => (of == Elem::I8 || is_float(of)) && (matches!(to, Elem::I32 | Elem::I8) || is_float(to)),
        },
        Neg | Abs | Sqrt | Exp | Tanh | Erf | Floor | Ceil | Trunc | RoundEven | Div => is_float(to),
        Add | Sub | Mul | Min | Max => to == Elem::I32 || is_float(to),
        Eq | Lt | Le => is_float(of),
        And => to == Elem::Bool,
        Select => args == 3 && (to == Elem::I32 || is_float(to)),
        _ => false,
    }
}

/// Emits expressions at one point of a lane loop.
#[derive(Clone)]
pub struct Evaluator<'a> {
    /// The expressions.
    pub exprs: &'a Exprs,
    /// Where the accesses of loads are.
    pub loads: SecondaryMap<ExprId, Option<Base>>,
    /// Values of reductions.
    pub reduced: SecondaryMap<Reduction, Option<V>>,
    /// Index of the lane loop, if the point is in one, and a constant number of lanes more.
    pub index: Option<(R, i64)>,
    /// Which lanes exist.
    pub lanes: Lanes,
    known: SecondaryMap<ExprId, Option<Val>>,
}

impl<'a> Evaluator<'a> {
    /// An evaluator without values.
    pub fn new(exprs: &'a Exprs) -> Evaluator<'a> {
        let (loads, reduced, known) = (SecondaryMap::new(), SecondaryMap::new(), SecondaryMap::new());
        Evaluator { exprs, loads, reduced, index: None, lanes: Lanes::All, known }
    }

    /// Sets what a memory access of the expressions refers to, for indices of the loops outside of the lane loop.
    pub fn base(f: &mut Function, access: &Access, elem: Elem, index: &[R], lane_loop: Option<u32>) -> Base {
        let bytes = i64::from(elem.bits() / 8);
        let base = f.buffer(access.buffer);
        let mut at: Option<R> = match access.offset {
            Extent::Const(0) => None,
            e => Some(f.extent(e)),
        };
        let mut moves = false;
        for (l, (&stride, &i)) in access.strides.iter().zip(index).enumerate() {
            if Some(l as u32) == lane_loop {
                moves = stride != Extent::Const(0);
                continue;
            }
            if stride == Extent::Const(0) {
                continue;
            }
            let x = f.times(i, stride);
            match at {
                Some(at) => f.a.add_into(at, x),
                None => at = Some(x),
            }
        }
        let at = match at {
            Some(at) => f.a.lea(Mem::indexed(base, at, bytes as u32, 0)),
            None => base,
        };
        Base { at, moves, elem, disp: 0 }
    }

    /// Finds the bases of all loads but those of sites.
    pub fn find_loads(&mut self, f: &mut Function, wanted: impl Fn(ExprId) -> bool, index: &[R], lane_loop: Option<u32>) {
        for (id, (expr, elem)) in self.exprs.iter() {
            if let Expr::Load(access) = expr
                && wanted(id)
                && f.site(access.buffer).is_none()
            {
                self.loads[id] = Some(Self::base(f, access, *elem, index, lane_loop));
            }
        }
    }

    /// The place of the current element.
    pub fn place(&self, b: Base) -> Mem {
        let bytes = i64::from(b.elem.bits() / 8);
        match self.index {
            Some((i, more)) if b.moves => Mem::indexed(b.at, i, bytes as u32, more * bytes + b.disp),
            _ => Mem::at(b.at, b.disp),
        }
    }

    /// The value of an expression as lanes of 32 bits.
    pub fn vector(&mut self, f: &mut Function, e: ExprId) -> V {
        match self.value(f, e) {
            Val::V(v) => v,
            Val::Splat(bits) => f.a.vector_of(bits as i32),
            Val::R(_) | Val::M(_) => unreachable!("asked only of numbers"),
        }
    }

    /// Emits an expression here, for later points where its value is still right. Words of sites are in the frame as they are.
    pub fn evaluate(&mut self, f: &mut Function, e: ExprId) {
        if !self.is_of_site(f, e) {
            self.value(f, e);
        }
    }

    fn is_of_site(&self, f: &Function, e: ExprId) -> bool {
        match &self.exprs[e].0 {
            Expr::Load(a) => f.site(a.buffer).is_some(),
            Expr::Prim(_, args) => args.iter().all(|&a| self.is_of_site(f, a)),
            _ => false,
        }
    }

    /// Takes over the value that another evaluator has emitted, which is the same here.
    pub fn know(&mut self, other: &Evaluator, e: ExprId) {
        self.known[e] = other.known[e];
    }

    fn src(&mut self, f: &mut Function, e: ExprId) -> Src {
        match self.value(f, e) {
            Val::V(v) => Src::Reg(v),
            Val::Splat(bits) => Src::Splat(bits),
            Val::R(_) | Val::M(_) => unreachable!("asked only of numbers"),
        }
    }

    fn mask(&mut self, f: &mut Function, e: ExprId) -> M {
        match self.value(f, e) {
            Val::M(m) => m,
            _ => unreachable!("asked only of truth values"),
        }
    }

    fn value(&mut self, f: &mut Function, e: ExprId) -> Val {
        if let Some(v) = self.known[e] {
            return v;
        }
        let (expr, elem) = &self.exprs[e];
        let v = match expr {
            Expr::Load(a) => Val::V(match (self.loads[e], a.offset) {
                (Some(base), _) => self.load(f, base),
                (None, Extent::Const(word)) => {
                    let site = f.buffer(a.buffer);
                    f.a.broadcast(Mem::at(site, 4 * word))
                }
                (None, Extent::Param(_)) => unreachable!("loads have bases but those of sites"),
            }),
            Expr::Reduced(r) => Val::V(self.reduced[*r].expect("reductions are computed before they are read")),
            Expr::Float(bits) => Val::Splat((f64::from_bits(*bits) as f32).to_bits()),
            Expr::Int(n) => Val::Splat(*n as u32),
            Expr::Extent(n) => Val::R(f.extent(*n)),
            Expr::Prim(p, args) => match gelu::find(self.exprs, e) {
                Some(g) => self.gelu(f, g),
                None => self.prim(f, *p, args, *elem),
            },
            Expr::Index(_) | Expr::CheckedIndex(..) => unreachable!("not supported"),
        };
        self.known[e] = Some(v);
        v
    }

    fn gelu(&mut self, f: &mut Function, g: Gelu) -> Val {
        let x = self.vector(f, g.x);
        Val::V(match g.tanh {
            None => gelu::gelu(&mut f.a, x),
            Some(u) => {
                let u = self.vector(f, u);
                gelu::gelu_tanh(&mut f.a, x, u)
            }
        })
    }

    fn load(&self, f: &mut Function, b: Base) -> V {
        let m = self.place(b);
        if !b.moves || self.index.is_none() {
            return match b.elem {
                Elem::I8 => {
                    let x = f.a.load_signed_byte(m);
                    f.a.splat_word(x)
                }
                elem => floats::broadcast(&mut f.a, elem, m),
            };
        }
        match (b.elem, self.lanes) {
            (elem, Lanes::All) if is_float(elem) => floats::load(&mut f.a, elem, m),
            (elem, Lanes::Some(mask)) if is_float(elem) => floats::load_masked(&mut f.a, elem, m, mask),
            (elem, Lanes::One) if is_float(elem) => floats::broadcast(&mut f.a, elem, m),
            (_, Lanes::All) => f.a.unary(Op::WidenI8, m),
            (_, Lanes::Some(mask)) => f.a.widen_masked(Op::WidenI8, m, mask),
            (_, Lanes::One) => {
                let x = f.a.load_signed_byte(m);
                f.a.splat_word(x)
            }
        }
    }

    /// Stores the value of an expression.
    pub fn store(&mut self, f: &mut Function, to: Base, e: ExprId) {
        let Some(codes) = self.codes(f, e) else {
            let x = self.vector(f, e);
            return self.store_value(f, to, x);
        };
        let m = self.place(to);
        match self.lanes_of(to) {
            Lanes::All => f.a.store_low_bytes(m, codes, None, false),
            Lanes::Some(mask) => f.a.store_low_bytes(m, codes, Some(mask), false),
            Lanes::One => f.a.store_byte(m, codes),
        }
    }

    /// The [codes](codes::low_byte) that an expression is, if it is some.
    pub fn codes(&mut self, f: &mut Function, e: ExprId) -> Option<V> {
        let codes = codes::find(self.exprs, e)?;
        let site = *f.site(codes.site).expect("sites are brought first");
        Some(match (gelu::find(self.exprs, codes.x), site.gelu) {
            (Some(Gelu { x, tanh: None }), Some(by)) if self.known[codes.x].is_none() => {
                let x = self.vector(f, x);
                let scaled = gelu::gelu_coarse(&mut f.a, x, by);
                codes::of_scaled(&mut f.a, scaled, &site, codes.below)
            }
            _ => {
                let x = self.vector(f, codes.x);
                codes::low_byte(&mut f.a, x, &site)
            }
        })
    }

    /// The lanes that are stored.
    fn lanes_of(&self, to: Base) -> Lanes {
        debug_assert!(to.moves || self.index.is_none() || self.lanes == Lanes::One, "lanes of one place");
        if self.index.is_none() { Lanes::One } else { self.lanes }
    }

    /// Stores lanes.
    pub fn store_value(&self, f: &mut Function, to: Base, x: V) {
        let m = self.place(to);
        match (to.elem, self.lanes_of(to)) {
            (elem, Lanes::All) if is_float(elem) => floats::store(&mut f.a, elem, m, x),
            (elem, Lanes::Some(mask)) if is_float(elem) => floats::store_masked(&mut f.a, elem, m, x, mask),
            (elem, Lanes::One) if is_float(elem) => floats::store_lane(&mut f.a, elem, m, x),
            (_, Lanes::All) => f.a.store_bytes(m, x, None),
            (_, Lanes::Some(mask)) => f.a.store_bytes(m, x, Some(mask)),
            (_, Lanes::One) => f.a.store_byte(m, x),
        }
    }

    fn prim(&mut self, f: &mut Function, p: Prim, args: &[ExprId], elem: Elem) -> Val {
        use Prim::*;
        let of = self.exprs[args[0]].1;
        let float = is_float(of);
        let op = |float_op: Op, int_op: Op| if float { float_op } else { int_op };
        let v = match p {
            Cast => return self.cast(f, args[0], elem),
            Eq | Lt | Le => {
                let x = self.vector(f, args[0]);
                let y = self.src(f, args[1]);
                let predicate = match p {
                    Eq => math::EQUAL,
                    Lt => math::LESS,
                    _ => math::LESS_EQUAL,
                };
                return Val::M(f.a.compare_ps(predicate, x, y));
            }
            And => {
                let (x, y) = (self.mask(f, args[0]), self.mask(f, args[1]));
                return Val::M(f.a.both(x, y));
            }
            Select => {
                let m = self.mask(f, args[0]);
                let (x, y) = (self.vector(f, args[1]), self.vector(f, args[2]));
                f.a.select(m, x, y)
            }
            Add | Mul => {
                // A constant is the last operand.
                let (x, y) = match (self.value(f, args[0]), self.value(f, args[1])) {
                    (Val::Splat(_), Val::V(_)) => (args[1], args[0]),
                    _ => (args[0], args[1]),
                };
                let (x, y) = (self.vector(f, x), self.src(f, y));
                f.a.binary(if p == Add { op(Op::AddPs, Op::AddD) } else { op(Op::MulPs, Op::MulD) }, x, y)
            }
            Sub => {
                let (x, y) = (self.vector(f, args[0]), self.src(f, args[1]));
                f.a.binary(op(Op::SubPs, Op::SubD), x, y)
            }
            Div => {
                let (x, y) = (self.vector(f, args[0]), self.src(f, args[1]));
                f.a.binary(Op::DivPs, x, y)
            }
            Min | Max if !float => {
                let (x, y) = (self.vector(f, args[0]), self.src(f, args[1]));
                f.a.binary(if p == Min { Op::MinD } else { Op::MaxD }, x, y)
            }
            Min | Max => {
                let code = if p == Min { Op::MinPs } else { Op::MaxPs };
                match (self.value(f, args[0]), self.value(f, args[1])) {
                    // Where one operand is NaN the instruction gives the second: a number comes first.
                    (Val::V(x), Val::Splat(c)) | (Val::Splat(c), Val::V(x)) if !f32::from_bits(c).is_nan() => {
                        let c = f.a.vector_of(c as i32);
                        f.a.binary(code, c, x)
                    }
                    _ => {
                        let (x, y) = (self.vector(f, args[0]), self.vector(f, args[1]));
                        extremum(&mut f.a, code, x, y)
                    }
                }
            }
            Neg => {
                let x = self.vector(f, args[0]);
                math::neg(&mut f.a, x)
            }
            Abs => {
                let x = self.vector(f, args[0]);
                math::abs(&mut f.a, x)
            }
            Sqrt => {
                let x = self.src(f, args[0]);
                f.a.unary(Op::SqrtPs, x)
            }
            Floor | Ceil | Trunc | RoundEven => {
                let x = self.src(f, args[0]);
                let mode = match p {
                    RoundEven => 8,
                    Floor => 9,
                    Ceil => 10,
                    _ => 11,
                };
                f.a.unary_imm(Op::RoundPs, x, mode)
            }
            Exp | Tanh | Erf => {
                let x = self.vector(f, args[0]);
                match p {
                    Exp => math::exp(&mut f.a, x),
                    Tanh => math::tanh(&mut f.a, x),
                    _ => math::erf(&mut f.a, x),
                }
            }
            _ => unreachable!("{p:?} is not supported"),
        };
        Val::V(v)
    }

    fn cast(&mut self, f: &mut Function, x: ExprId, to: Elem) -> Val {
        let of = self.exprs[x].1;
        match (of, to) {
            (Elem::I64, to) => {
                let Val::R(r) = self.value(f, x) else { unreachable!("`i64` values do not vary") };
                let v = f.a.float_of(r);
                let v = f.a.splat(v);
                Val::V(floats::rounded(&mut f.a, to, v))
            }
            (of, Elem::I32) if is_float(of) => {
                // Saturating, NaN gives 0: the instruction gives i32::MIN where it overflows.
                let x = self.vector(f, x);
                let ordered = f.a.compare_ps(math::EQUAL, x, x);
                let zero = f.a.vector_of(0);
                let x = f.a.select(ordered, x, zero);
                let y = f.a.unary(Op::CvttPs2Dq, x);
                let limit = f.a.vector_of(2_147_483_648.0);
                let above = f.a.compare_ps(math::LESS_EQUAL, limit, x);
                let most = f.a.vector_of(i32::MAX);
                Val::V(f.a.select(above, most, y))
            }
            (of, Elem::I8) if is_float(of) => {
                let x = self.vector(f, x);
                let ordered = f.a.compare_ps(math::EQUAL, x, x);
                let (low, high) = (f.a.vector_of(-128.0), f.a.vector_of(127.0));
                let bounded = f.a.binary(Op::MinPs, high, x);
                let bounded = f.a.binary(Op::MaxPs, low, bounded);
                let zero = f.a.vector_of(0);
                let number = f.a.select(ordered, bounded, zero);
                Val::V(f.a.unary(Op::CvttPs2Dq, number))
            }
            (Elem::I32 | Elem::I8, to) if is_float(to) => {
                let x = self.src(f, x);
                let y = f.a.unary(Op::CvtDq2Ps, x);
                Val::V(floats::rounded(&mut f.a, to, y))
            }
            (_, Elem::F16 | Elem::Bf16) => {
                let x = self.vector(f, x);
                Val::V(floats::rounded(&mut f.a, to, x))
            }
            // To i8: wraps. Values in the range of i8 stay as they are.
            (Elem::I32, Elem::I8) => {
                let x = self.src(f, x);
                let x = match x {
                    Src::Reg(x) => x,
                    x => f.a.vector_of(x),
                };
                let up = f.a.unary_imm(Op::ShlD, x, 24);
                Val::V(f.a.unary_imm(Op::SarD, up, 24))
            }
            _ => self.value(f, x),
        }
    }
}

/// The greater or lesser number by lane; a NaN wins.
pub fn extremum(a: &mut Asm, code: Op, x: V, y: V) -> V {
    let m = a.binary(code, x, y);
    let nan = a.compare_ps(math::UNORDERED, x, x);
    a.select(nan, x, m)
}
