//! Emission of the expressions of kernels, for one element or for several vectors of them at once.
//!
//! An [`Evaluator`] emits an expression at most once and remembers its value. Without a lane loop every
//! value is a scalar. With one, values that differ along it are vectors of four lanes; the others stay
//! scalars until a vector is needed.
//!
//! | elements | scalar | vector |
//! |---|---|---|
//! | `bool` | `i8`, 0 or 1 | `i32x4`, all bits of a lane |
//! | integers up to 32 bits | `i32`, sign- or zero-extended | `i32x4`, the same |
//! | `i64`, `u64` | `i64` | one scalar per lane, or first and step |
//! | `f16`, `bf16`, `f32` | `f32` | `f32x4` |
//! | `f64` | `f64` | one scalar per lane |

use super::{KernelBuilder, LANES, MEM, int_like, math};
use crate::kernel::Extent;
use crate::kernel::nest::{Access, Expr, ExprId, ReduceOp, Reduction};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32, F32X4, F64, I8, I8X16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use cranelift_entity::{PrimaryMap, SecondaryMap};
use tfc_ir::scalar::Prim;
use tfc_ir::types::Elem;

/// The value of an expression.
#[derive(Clone, PartialEq, Debug)]
pub enum Val {
    /// One scalar, the same for all lanes.
    Uniform(Value),
    /// Vectors: lane `l` of all is lane `l % 4` of vector `l / 4`.
    Vectors(Vec<Value>),
    /// One scalar per lane.
    Scalars(Vec<Value>),
    /// An `i64` that is `first + lane * step`.
    Steps {
        /// Its value for the first lane.
        first: Value,
        /// The difference of neighbours.
        step: i64,
    },
}

impl Val {
    /// Applies a function to all its scalars or vectors; `None` for steps.
    fn map(&self, mut f: impl FnMut(Value) -> Value) -> Option<Val> {
        match self {
            Val::Uniform(x) => Some(Val::Uniform(f(*x))),
            Val::Vectors(xs) => Some(Val::Vectors(xs.iter().map(|&x| f(x)).collect())),
            Val::Scalars(xs) => Some(Val::Scalars(xs.iter().map(|&x| f(x)).collect())),
            Val::Steps { .. } => None,
        }
    }
}

/// The loop whose iterations are the lanes of vectors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lanes {
    /// The loop, numbered as in [`Access::strides`].
    pub loop_: u32,
    /// How many vectors are computed at once.
    pub vectors: usize,
}

/// Emits expressions at one point of a loop nest.
#[derive(Clone)]
pub struct Evaluator<'a> {
    /// The expressions with their types.
    pub exprs: &'a PrimaryMap<ExprId, (Expr, Elem)>,
    /// The index of every loop; of the lane loop, that of the first lane.
    pub index: Vec<Value>,
    /// The lane loop, if values are vectors.
    pub lanes: Option<Lanes>,
    /// Values of reductions.
    pub reduced: SecondaryMap<Reduction, Option<Val>>,
    /// Values that were emitted where they are still valid.
    pub known: SecondaryMap<ExprId, Option<Val>>,
}

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

/// Where an access begins: an address, or for nibbles the number of the element.
enum Place {
    Bytes { address: Value, size: i64 },
    Nibbles { base: Value, number: Value },
}

/// How the lanes of an access lie.
enum Spread {
    /// All on one place.
    None,
    /// At a constant distance, in elements.
    Const(i64),
    /// Each at its own distance from the place, in elements.
    Each(Vec<Value>),
}

impl<'a> Evaluator<'a> {
    /// An evaluator for scalars at the given indices.
    pub fn new(exprs: &'a PrimaryMap<ExprId, (Expr, Elem)>, index: Vec<Value>) -> Self {
        Evaluator { exprs, index, lanes: None, reduced: SecondaryMap::new(), known: SecondaryMap::new() }
    }

    /// Element type of an expression.
    pub fn elem(&self, e: ExprId) -> Elem {
        self.exprs[e].1
    }

    fn lane_count(&self) -> usize {
        self.lanes.map_or(1, |l| l.vectors * LANES)
    }

    /// The value of an expression.
    pub fn value(&mut self, b: &mut KernelBuilder, e: ExprId) -> Val {
        if let Some(v) = &self.known[e] {
            return v.clone();
        }
        let (expr, elem) = &self.exprs[e];
        let v = match expr {
            Expr::Load(access) => self.load(b, access),
            Expr::Index(l) => match self.lanes {
                Some(lanes) if lanes.loop_ == *l => Val::Steps { first: self.index[*l as usize], step: 1 },
                _ => Val::Uniform(self.index[*l as usize]),
            },
            Expr::Extent(n) => Val::Uniform(b.extent(*n)),
            Expr::Reduced(r) => self.reduced[*r].clone().expect("a reduction is computed before it is read"),
            Expr::Float(bits) => Val::Uniform(b.float_of(scalar_type(*elem), f64::from_bits(*bits))),
            Expr::Int(n) => Val::Uniform(int_const(b, *elem, *n)),
            Expr::Prim(prim, args) => self.prim(b, *prim, args, *elem),
            Expr::CheckedIndex(index, size) => self.checked_index(b, *index, *size),
        };
        self.known[e] = Some(v.clone());
        v
    }

    /// A value as vectors.
    pub fn vectors(&self, b: &mut KernelBuilder, v: &Val, elem: Elem) -> Vec<Value> {
        let n = self.lanes.expect("vectors need a lane loop").vectors;
        match v {
            Val::Vectors(vs) => vs.clone(),
            Val::Uniform(x) => vec![splat(b, *x, elem); n],
            Val::Scalars(_) | Val::Steps { .. } => {
                let xs = self.scalars(b, v, elem);
                xs.chunks(LANES).map(|c| pack(b, c, elem)).collect()
            }
        }
    }

    /// A value as one scalar per lane.
    pub fn scalars(&self, b: &mut KernelBuilder, v: &Val, elem: Elem) -> Vec<Value> {
        match v {
            Val::Scalars(xs) => xs.clone(),
            Val::Uniform(x) => vec![*x; self.lane_count()],
            Val::Steps { first, step } => (0..self.lane_count()).map(|l| b.f.ins().iadd_imm_s(*first, step * l as i64)).collect(),
            Val::Vectors(vs) => vs
                .iter()
                .flat_map(|v| (0..LANES).map(|l| (*v, l)).collect::<Vec<_>>())
                .map(|(v, l)| {
                    let x = b.lane(v, l);
                    if elem == Elem::Bool { b.f.ins().icmp_imm_u(IntCC::NotEqual, x, 0) } else { x }
                })
                .collect(),
        }
    }

    /// The scalar of a value that is the same in all lanes.
    ///
    /// # Panics
    /// When it is not.
    pub fn uniform(&mut self, b: &mut KernelBuilder, e: ExprId) -> Value {
        match self.value(b, e) {
            Val::Uniform(x) => x,
            other => unreachable!("{e:?} differs between lanes: {other:?}"),
        }
    }

    fn prim(&mut self, b: &mut KernelBuilder, prim: Prim, args: &[ExprId], elem: Elem) -> Val {
        let from = self.elem(args[0]);
        let operand = if prim == Prim::Select { elem } else { from };
        let vals: Vec<Val> = args.iter().map(|&a| self.value(b, a)).collect();
        let types: Vec<Elem> = args.iter().map(|&a| self.elem(a)).collect();
        if let [x, y] = args
            && let Some(v) = self.with_constant(b, prim, &vals, *x, *y, operand)
        {
            return v;
        }
        if let Some(xs) = vals.iter().map(|v| if let Val::Uniform(x) = v { Some(*x) } else { None }).collect::<Option<Vec<_>>>() {
            return Val::Uniform(scalar_prim(b, prim, &xs, operand, from, elem));
        }
        if let Some(v) = self.steps(b, prim, &vals, operand, elem) {
            return v;
        }
        if types.iter().all(|&t| vector_type(t).is_some()) && vector_type(elem).is_some() && has_vector_form(prim, operand) {
            let vectors: Vec<Vec<Value>> = vals.iter().zip(&types).map(|(v, &t)| self.vectors(b, v, t)).collect();
            return Val::Vectors(
                (0..vectors[0].len())
                    .map(|i| {
                        let xs: Vec<Value> = vectors.iter().map(|v| v[i]).collect();
                        polymorphic(b, prim, &xs, operand, from, elem)
                    })
                    .collect(),
            );
        }
        let scalars: Vec<Vec<Value>> = vals.iter().zip(&types).map(|(v, &t)| self.scalars(b, v, t)).collect();
        let results: Vec<Value> = (0..scalars[0].len())
            .map(|l| {
                let xs: Vec<Value> = scalars.iter().map(|v| v[l]).collect();
                scalar_prim(b, prim, &xs, operand, from, elem)
            })
            .collect();
        match vector_type(elem) {
            Some(_) => Val::Vectors(results.chunks(LANES).map(|c| pack(b, c, elem)).collect()),
            None => Val::Scalars(results),
        }
    }

    /// Forms that are cheaper when an operand is a constant: extrema (a number is not NaN), powers,
    /// shifts.
    fn with_constant(&self, b: &mut KernelBuilder, prim: Prim, vals: &[Val], x: ExprId, y: ExprId, operand: Elem) -> Option<Val> {
        let number = |e: ExprId| match self.exprs[e].0 {
            Expr::Float(bits) => Some(f64::from_bits(bits)).filter(|x| !x.is_nan()),
            _ => None,
        };
        match prim {
            Prim::Min | Prim::Max if operand.is_float() => {
                let (n, v) = match (number(x), number(y)) {
                    (Some(n), None) => (n, &vals[1]),
                    (None, Some(n)) => (n, &vals[0]),
                    _ => return None,
                };
                v.map(|v| {
                    let ty = b.ty(v);
                    let n = b.float_of(ty, n);
                    // An unordered comparison chooses `v`.
                    let (less, greater) = if prim == Prim::Max { (v, n) } else { (n, v) };
                    let beyond = b.f.ins().fcmp(FloatCC::LessThan, less, greater);
                    b.choose(beyond, n, v)
                })
            }
            Prim::Pow if operand.is_float() => {
                let power = number(y).filter(|p| [-1.0, 0.5, 1.0, 2.0, 3.0].contains(p))?;
                vals[0].map(|v| math::power(b, v, power))
            }
            Prim::Shl | Prim::Shr => {
                let (Val::Vectors(_), Val::Uniform(by)) = (&vals[0], &vals[1]) else { return None };
                vals[0].map(|v| shift(b, prim, v, *by, operand))
            }
            _ => None,
        }
    }

    /// Arithmetic that keeps `i64` values in the form of steps, and comparisons of steps with a uniform
    /// value: `first + l < y` is `l < y - first` in 32 bits.
    fn steps(&self, b: &mut KernelBuilder, prim: Prim, vals: &[Val], operand: Elem, elem: Elem) -> Option<Val> {
        match (prim, vals) {
            (Prim::Add, [Val::Steps { first, step }, Val::Uniform(y)] | [Val::Uniform(y), Val::Steps { first, step }]) => {
                Some(Val::Steps { first: b.f.ins().iadd(*first, *y), step: *step })
            }
            (Prim::Sub, [Val::Steps { first, step }, Val::Uniform(y)]) => {
                Some(Val::Steps { first: b.f.ins().isub(*first, *y), step: *step })
            }
            (Prim::Sub, [Val::Uniform(x), Val::Steps { first, step }]) => {
                Some(Val::Steps { first: b.f.ins().isub(*x, *first), step: -step })
            }
            (Prim::Mul, [Val::Steps { first, step }, Val::Uniform(y)] | [Val::Uniform(y), Val::Steps { first, step }]) => {
                let n = b.as_const(*y).filter(|n| n.unsigned_abs() < 1 << 20)?;
                Some(Val::Steps { first: b.f.ins().imul(*first, *y), step: step.checked_mul(n).filter(|s| s.unsigned_abs() < 1 << 24)? })
            }
            (Prim::Cast, [Val::Steps { first, step }]) if matches!(elem, Elem::I64 | Elem::U64) => {
                Some(Val::Steps { first: *first, step: *step })
            }
            (Prim::Cast, [Val::Steps { first, step }]) if matches!(elem, Elem::I32 | Elem::U32) => {
                let first = b.f.ins().ireduce(I32, *first);
                let first = b.splat(first);
                Some(Val::Vectors(
                    (0..self.lane_count() / LANES)
                        .map(|v| {
                            let offsets = iota(b, (v * LANES) as i64 * step, *step);
                            b.f.ins().iadd(first, offsets)
                        })
                        .collect(),
                ))
            }
            (Prim::Eq | Prim::Lt | Prim::Le, [x, y]) if operand == Elem::I64 => {
                let (first, step, other, flipped) = match (x, y) {
                    (Val::Steps { first, step }, Val::Uniform(y)) => (*first, *step, *y, false),
                    (Val::Uniform(x), Val::Steps { first, step }) => (*first, *step, *x, true),
                    _ => return None,
                };
                // Indices and sizes are far from the ends of i64; the difference saturates far from lanes.
                let bounded = |b: &mut KernelBuilder, x: Value, limit: i64| {
                    let (lo, hi) = (b.int(-limit), b.int(limit));
                    let x = b.f.ins().smax(x, lo);
                    b.f.ins().smin(x, hi)
                };
                let (other, first) = (bounded(b, other, i64::MAX / 4), bounded(b, first, i64::MAX / 4));
                let d = b.f.ins().isub(other, first);
                let d = bounded(b, d, 1 << 30);
                let d = b.f.ins().ireduce(I32, d);
                let d = b.splat(d);
                let cc = match prim {
                    Prim::Eq => IntCC::Equal,
                    Prim::Lt => IntCC::SignedLessThan,
                    _ => IntCC::SignedLessThanOrEqual,
                };
                Some(Val::Vectors(
                    (0..self.lane_count() / LANES)
                        .map(|v| {
                            let l = iota(b, (v * LANES) as i64 * step, step);
                            if flipped { b.f.ins().icmp(cc, d, l) } else { b.f.ins().icmp(cc, l, d) }
                        })
                        .collect(),
                ))
            }
            _ => None,
        }
    }

    fn checked_index(&mut self, b: &mut KernelBuilder, index: ExprId, size: Extent) -> Val {
        let size = b.extent(size);
        let v = self.value(b, index);
        let xs = match &v {
            Val::Uniform(x) => vec![*x],
            other => self.scalars(b, other, Elem::I64),
        };
        let mut bad = None;
        let out: Vec<Value> = xs
            .iter()
            .map(|&x| {
                let from_end = b.f.ins().iadd(x, size);
                let negative = b.f.ins().icmp_imm_s(IntCC::SignedLessThan, x, 0);
                let x = b.f.ins().select(negative, from_end, x);
                let outside = b.f.ins().icmp(IntCC::UnsignedGreaterThanOrEqual, x, size);
                bad = Some(match bad {
                    None => outside,
                    Some(others) => b.f.ins().bor(others, outside),
                });
                x
            })
            .collect();
        b.fail_if(bad.expect("at least one lane"));
        if let Val::Uniform(_) = v { Val::Uniform(out[0]) } else { Val::Scalars(out) }
    }

    /// The place of the first lane, and how the others lie from it.
    fn place(&mut self, b: &mut KernelBuilder, access: &Access) -> (Place, Spread) {
        let elem = b.params[access.buffer as usize].elem;
        let bits = i64::from(elem.bits());
        let lane_loop = self.lanes.map(|l| l.loop_ as usize);
        let mut spread = match lane_loop.map(|l| access.strides[l]) {
            None | Some(Extent::Const(0)) => Spread::None,
            Some(Extent::Const(n)) => Spread::Const(n),
            Some(stride) => Spread::Each(
                (0..self.lane_count())
                    .map(|l| {
                        let l = b.int(l as i64);
                        b.times(l, stride)
                    })
                    .collect(),
            ),
        };
        // Elements for nibbles, bytes for the rest.
        let size = if bits < 8 { 1 } else { bits / 8 };
        let base = b.buffer(access.buffer);
        let mut at = if bits < 8 { b.int(0) } else { base };
        let add = |b: &mut KernelBuilder, at: Value, x: Value, stride: Extent| {
            let scaled = match stride {
                Extent::Const(n) => b.times(x, Extent::Const(n * size)),
                Extent::Param(_) => {
                    // The stride in bytes first: it does not change.
                    let stride = b.extent(stride);
                    let bytes = b.times(stride, Extent::Const(size));
                    b.f.ins().imul(x, bytes)
                }
            };
            b.f.ins().iadd(at, scaled)
        };
        match access.offset {
            Extent::Const(0) => {}
            Extent::Const(n) => at = b.f.ins().iadd_imm_s(at, n * size),
            offset => {
                let x = b.extent(offset);
                at = add(b, at, x, Extent::Const(1));
            }
        }
        for (l, &stride) in access.strides.iter().enumerate() {
            if stride != Extent::Const(0) && b.as_const(self.index[l]) != Some(0) {
                at = add(b, at, self.index[l], stride);
            }
        }
        for (e, stride) in &access.dynamic {
            match self.value(b, *e) {
                Val::Uniform(x) => at = add(b, at, x, *stride),
                Val::Steps { first, step } if stride.as_const().is_some() && !matches!(spread, Spread::Each(_)) => {
                    at = add(b, at, first, *stride);
                    let by = step * stride.as_const().unwrap_or(0);
                    spread = match spread {
                        Spread::Const(n) => Spread::Const(n + by),
                        _ => Spread::Const(by),
                    };
                }
                v => {
                    let xs = self.scalars(b, &v, Elem::I64);
                    let each = xs.iter().enumerate().map(|(l, &x)| {
                        let x = b.times(x, *stride);
                        match &spread {
                            Spread::None => x,
                            Spread::Const(n) => b.f.ins().iadd_imm_s(x, n * l as i64),
                            Spread::Each(ys) => b.f.ins().iadd(x, ys[l]),
                        }
                    });
                    spread = Spread::Each(each.collect());
                }
            }
        }
        let place = if bits < 8 { Place::Nibbles { base, number: at } } else { Place::Bytes { address: at, size } };
        (place, spread)
    }

    fn load(&mut self, b: &mut KernelBuilder, access: &Access) -> Val {
        let elem = b.params[access.buffer as usize].elem;
        let (place, spread) = self.place(b, access);
        let vectors = self.lanes.map_or(0, |l| l.vectors);
        match (&place, &spread) {
            (_, Spread::None) => return Val::Uniform(load_at(b, &place, &spread, 0, elem)),
            (Place::Bytes { address, size }, Spread::Const(1)) if vector_type(elem).is_some() => {
                return Val::Vectors((0..vectors).map(|v| load_vector(b, *address, (v * LANES) as i64 * size, elem)).collect());
            }
            _ => {}
        }
        let scalars: Vec<Value> = (0..self.lane_count()).map(|l| load_at(b, &place, &spread, l, elem)).collect();
        match vector_type(elem) {
            Some(_) => Val::Vectors(scalars.chunks(LANES).map(|c| pack(b, c, elem)).collect()),
            None => Val::Scalars(scalars),
        }
    }

    /// Stores the value of an expression.
    pub fn store(&mut self, b: &mut KernelBuilder, access: &Access, e: ExprId) {
        let elem = b.params[access.buffer as usize].elem;
        debug_assert_eq!(elem, self.elem(e), "the expression has the buffer's element type");
        let v = self.value(b, e);
        let (place, spread) = self.place(b, access);
        match (&place, &spread) {
            (_, Spread::None) => {
                // Where all lanes go to one place, the last one stays.
                let x = match &v {
                    Val::Uniform(x) => *x,
                    other => *self.scalars(b, other, elem).last().expect("at least one lane"),
                };
                store_at(b, &place, &spread, 0, elem, x);
            }
            (Place::Bytes { address, size }, Spread::Const(1)) if vector_type(elem).is_some() => {
                for (n, x) in self.vectors(b, &v, elem).into_iter().enumerate() {
                    store_vector(b, *address, (n * LANES) as i64 * size, elem, x);
                }
            }
            _ => {
                for (l, x) in self.scalars(b, &v, elem).into_iter().enumerate() {
                    store_at(b, &place, &spread, l, elem, x);
                }
            }
        }
    }
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

fn load_at(b: &mut KernelBuilder, place: &Place, spread: &Spread, l: usize, elem: Elem) -> Value {
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

fn store_at(b: &mut KernelBuilder, place: &Place, spread: &Spread, l: usize, elem: Elem, x: Value) {
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

/// `start, start + step, …` as `i32x4`.
fn iota(b: &mut KernelBuilder, start: i64, step: i64) -> Value {
    let bytes: Vec<u8> = (0..LANES as i64).flat_map(|l| ((start + l * step) as i32).to_le_bytes()).collect();
    b.vector(I32X4, &bytes)
}

fn splat(b: &mut KernelBuilder, x: Value, elem: Elem) -> Value {
    use cranelift_codegen::ir::{InstructionData, ValueDef};
    let dfg = &b.f.func.dfg;
    if let ValueDef::Result(inst, _) = dfg.value_def(dfg.resolve_aliases(x))
        && let InstructionData::UnaryIeee32 { imm, .. } = dfg.insts[inst]
    {
        return b.vector(F32X4, &imm.bits().to_le_bytes().repeat(LANES));
    }
    if elem == Elem::Bool {
        let x = b.f.ins().uextend(I32, x);
        let x = b.f.ins().ineg(x);
        return b.splat(x);
    }
    b.splat(x)
}

fn pack(b: &mut KernelBuilder, lanes: &[Value], elem: Elem) -> Value {
    if elem == Elem::Bool {
        let lanes: Vec<Value> = lanes
            .iter()
            .map(|&x| {
                let x = b.f.ins().uextend(I32, x);
                b.f.ins().ineg(x)
            })
            .collect();
        return b.pack(&lanes);
    }
    b.pack(lanes)
}

/// An integer or `bool` constant in its scalar representation.
pub fn int_const(b: &mut KernelBuilder, elem: Elem, n: i64) -> Value {
    use tfc_ir::tensor::{Scalar, round_to};
    let n = round_to(elem, Scalar::Int(n.into())).to_i128() as i64;
    b.int_of(scalar_type(elem), n)
}

/// Brings the low bits of an integer into the representation of its type.
fn wrap(b: &mut KernelBuilder, x: Value, elem: Elem) -> Value {
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
fn has_vector_form(prim: Prim, operand: Elem) -> bool {
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

fn scalar_prim(b: &mut KernelBuilder, prim: Prim, x: &[Value], operand: Elem, from: Elem, to: Elem) -> Value {
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
fn polymorphic(b: &mut KernelBuilder, prim: Prim, x: &[Value], operand: Elem, from: Elem, to: Elem) -> Value {
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
fn shift(b: &mut KernelBuilder, prim: Prim, x: Value, by: Value, elem: Elem) -> Value {
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
