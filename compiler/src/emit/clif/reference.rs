//! The meaning of a nest as a plain interpreter, to compare compiled code with.

use crate::kernel::nest::{Access, Effect, Expr, ExprId, Nest, ReduceOp, Reduction};
use crate::kernel::{BufferParam, Extent};
use cranelift_entity::SecondaryMap;
use tfc_ir::scalar::Prim;
use tfc_ir::tensor::{Scalar, Tensor, round_to};
use tfc_ir::types::Elem;

/// Runs all tasks of a nest on buffers of bytes. Returns whether all checked indices were valid.
pub fn run(nest: &Nest, params: &[BufferParam], buffers: &mut [Vec<u8>], ints: &[i64]) -> bool {
    let size = |e: &Extent| match e {
        Extent::Const(n) => *n,
        Extent::Param(p) => ints[*p as usize],
    };
    let outer: Vec<i64> = nest.tasks.iter().chain(&nest.columns).map(size).collect();
    let inner: Vec<i64> = nest.inner.iter().map(size).collect();
    let mut m = Machine { nest, params, buffers, ints, index: vec![], reduced: SecondaryMap::new(), valid: true };
    points(&outer, &mut |point| {
        m.reduced.clear();
        for stage in &nest.stages {
            for effect in &stage.effects {
                if let Effect::Reduce(r, _) = effect {
                    m.reduced[*r] = Some(m.identity(*r));
                }
            }
            let loops = if stage.once { vec![1; inner.len()] } else { inner.clone() };
            points(&loops, &mut |inside| {
                m.index = point.iter().chain(inside).copied().collect();
                for effect in &stage.effects {
                    m.effect(effect);
                }
            });
        }
    });
    m.valid
}

fn points(sizes: &[i64], f: &mut dyn FnMut(&[i64])) {
    fn go(sizes: &[i64], at: &mut Vec<i64>, f: &mut dyn FnMut(&[i64])) {
        let Some((&n, rest)) = sizes.split_first() else { return f(at) };
        for i in 0..n {
            at.push(i);
            go(rest, at, f);
            at.pop();
        }
    }
    go(sizes, &mut vec![], f);
}

struct Machine<'a> {
    nest: &'a Nest,
    params: &'a [BufferParam],
    buffers: &'a mut [Vec<u8>],
    ints: &'a [i64],
    index: Vec<i64>,
    reduced: SecondaryMap<Reduction, Option<Scalar>>,
    valid: bool,
}

impl Machine<'_> {
    fn extent(&self, e: Extent) -> i64 {
        match e {
            Extent::Const(n) => n,
            Extent::Param(p) => self.ints[p as usize],
        }
    }

    fn identity(&self, r: Reduction) -> Scalar {
        let (op, elem) = self.nest.reductions[r];
        let (lo, hi) = elem.int_range().unwrap_or((0, 0));
        match op {
            ReduceOp::Sum => round_to(elem, Scalar::Int(0)),
            ReduceOp::Prod => round_to(elem, Scalar::Int(1)),
            ReduceOp::Max if elem.is_float() => Scalar::Float(f64::NEG_INFINITY),
            ReduceOp::Min if elem.is_float() => Scalar::Float(f64::INFINITY),
            ReduceOp::Max => Scalar::Int(lo),
            ReduceOp::Min => Scalar::Int(hi),
        }
    }

    fn effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Store(access, e) => {
                let x = self.value(*e);
                let (buffer, elem, at) = self.place(access);
                let one = Tensor::build(elem, &[1], |_| x);
                if elem.bits() < 8 {
                    let byte = &mut self.buffers[buffer][at / 2];
                    let shift = 4 * (at % 2);
                    *byte = (*byte & !(15 << shift)) | (one.bytes()[0] & 15) << shift;
                } else {
                    let n = one.bytes().len();
                    self.buffers[buffer][at * n..(at + 1) * n].copy_from_slice(one.bytes());
                }
            }
            Effect::Reduce(r, e) => {
                let x = self.value(*e);
                let (op, elem) = self.nest.reductions[*r];
                let prim = match op {
                    ReduceOp::Sum => Prim::Add,
                    ReduceOp::Prod => Prim::Mul,
                    ReduceOp::Max => Prim::Max,
                    ReduceOp::Min => Prim::Min,
                };
                let old = self.reduced[*r].expect("started");
                self.reduced[*r] = Some(prim.eval(&[old, x], elem, computed(elem)));
            }
        }
    }

    fn place(&mut self, a: &Access) -> (usize, Elem, usize) {
        let mut at = self.extent(a.offset);
        for (l, s) in a.strides.iter().enumerate() {
            at += self.extent(*s) * self.index[l];
        }
        for (e, s) in &a.dynamic {
            at += self.value(*e).to_i128() as i64 * self.extent(*s);
        }
        (a.buffer as usize, self.params[a.buffer as usize].elem, usize::try_from(at).expect("inside of the buffer"))
    }

    fn value(&mut self, e: ExprId) -> Scalar {
        let (expr, elem) = self.nest.exprs[e].clone();
        match expr {
            Expr::Load(a) => {
                let (buffer, elem, at) = self.place(&a);
                let bits = elem.bits() as usize;
                let bytes = if bits < 8 {
                    vec![self.buffers[buffer][at / 2] >> (4 * (at % 2)) & 15]
                } else {
                    self.buffers[buffer][at * bits / 8..(at + 1) * bits / 8].to_vec()
                };
                Tensor::new(elem, vec![1], bytes.into()).expect("one element").get(0)
            }
            Expr::Index(l) => Scalar::Int(self.index[l as usize].into()),
            Expr::Extent(n) => Scalar::Int(self.extent(n).into()),
            Expr::Reduced(r) => self.reduced[r].expect("computed before"),
            Expr::Float(bits) => round_to(computed(elem), Scalar::Float(f64::from_bits(bits))),
            Expr::Int(n) => round_to(elem, Scalar::Int(n.into())),
            Expr::Prim(prim, args) => {
                let operands: Vec<Scalar> = args.iter().map(|&a| self.value(a)).collect();
                let from = self.nest.exprs[args[0]].1;
                let to = if prim == Prim::Cast { elem } else { computed(elem) };
                prim.eval(&operands, from, to)
            }
            Expr::CheckedIndex(e, size) => {
                let size = i128::from(self.extent(size));
                let i = self.value(e).to_i128();
                let i = if i < 0 { i + size } else { i };
                if (0..size).contains(&i) {
                    Scalar::Int(i)
                } else {
                    self.valid = false;
                    Scalar::Int(0)
                }
            }
        }
    }
}

/// The type that values are computed in.
fn computed(elem: Elem) -> Elem {
    if matches!(elem, Elem::F16 | Elem::Bf16) { Elem::F32 } else { elem }
}
