//! Emission of the expressions of kernels, for one element or for several vectors of them at once.
//!
//! An [`Evaluator`] emits an expression at most once and remembers its value. Without a lane loop every
//! value is a scalar. With one, values that differ along it are vectors of four lanes; the others stay
//! scalars until a vector is needed.
//! How values of each element type are represented is said in [`prim`](super::prim).

use super::memory::{Place, Spread, load_at, load_vector, store_at, store_vector};
use super::prim::{has_vector_form, int_const, polymorphic, scalar_prim, scalar_type, shift, vector_type};
use super::{KernelBuilder, LANES, math};
use crate::kernel::Extent;
use crate::kernel::nest::{Access, Expr, ExprId, Reduction};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::types::{F32X4, I32, I32X4};
use cranelift_codegen::ir::{InstBuilder, Value};
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
                let power = number(y).filter(|p| math::POWERS.contains(p))?;
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
