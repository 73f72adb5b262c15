//! `matmul`: matrix product.

use super::support::{Broadcast, broadcast_sizes, check_elems, number};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Way};
use crate::dim::Bindings;
use crate::tensor::{Scalar, Tensor};
use crate::types::{Shape, Type};

operator! {
    /// Matrix product of the last two axes, the axes before broadcast, as NumPy has it. Ranks are at
    /// least 2: importers add axes to vectors. Integers wrap.
    ///
    /// C1. Operands are numbers of one type and of rank 2 or more.
    /// C2. The inner sizes are equal; the axes before them broadcast.
    pub struct Matmul("matmul", 2..=2) {
    }
}

impl Operator for Matmul {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let elem = check_elems(self, inputs, number)?;
        for t in inputs {
            require!(t.rank() >= 2, "matmul C1: operands have rank 2 or more, not {} as {t}", t.rank());
        }
        let (a, b) = (&inputs[0].shape, &inputs[1].shape);
        let (rows, columns) = (&a[a.rank() - 2], &b[b.rank() - 1]);
        cx.equal(&a[a.rank() - 1], &b[b.rank() - 2], &format!("matmul C2: inner sizes of {a} and {b}"))?;
        let batch = |s: &Shape| Shape(s.0[..s.rank() - 2].to_vec());
        let mut shape = cx.broadcast(&[&batch(a), &batch(b)]).map_err(|e| InferError::new(format!("matmul C2: {e}")))?;
        shape.0.extend([rows.clone(), columns.clone()]);
        Ok(vec![Type::new(elem, shape)])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (a, b) = (&inputs[0], &inputs[1]);
        let y = if a.elem().is_float() {
            let (sizes, y) = products(a, b, &a.to_f64s(), &b.to_f64s(), |sum, x, y| sum + x * y)?;
            Tensor::build(a.elem(), &sizes, |i| Scalar::Float(y[i]))
        } else {
            // Arithmetic modulo 2⁶⁴ has the right low bits for every integer type.
            let ints = |t: &Tensor| t.iter().map(|s| s.to_i128() as i64).collect::<Vec<_>>();
            let (sizes, y) = products(a, b, &ints(a), &ints(b), |sum: i64, x, y| sum.wrapping_add(x.wrapping_mul(y)))?;
            Tensor::build(a.elem(), &sizes, |i| Scalar::Int(y[i].into()))
        };
        Ok(vec![y])
    }

    fn ways(&self) -> &'static [Way] {
        &[&[(1, Mapped::Scaled)], &[(0, Mapped::Scaled)]]
    }
}

/// Sizes and elements of the product of `a` and `b`, whose elements are `x` and `y`.
fn products<T: Copy + Default>(
    a: &Tensor,
    b: &Tensor,
    x: &[T],
    y: &[T],
    multiply_add: impl Fn(T, T, T) -> T,
) -> Result<(Vec<usize>, Vec<T>), EvalError> {
    let (batch_a, matrix_a) = a.sizes().split_at(a.rank() - 2);
    let (batch_b, matrix_b) = b.sizes().split_at(b.rank() - 2);
    let (rows, inner, columns) = (matrix_a[0], matrix_a[1], matrix_b[1]);
    let mut sizes = broadcast_sizes(&[batch_a, batch_b])?;
    let (at_a, at_b) = (Broadcast::new(batch_a, &sizes), Broadcast::new(batch_b, &sizes));
    let batch: usize = sizes.iter().product();
    let mut sums = vec![T::default(); batch * rows * columns];
    for n in 0..batch {
        let x = &x[at_a.offset(n) * rows * inner..];
        let y = &y[at_b.offset(n) * inner * columns..];
        for row in 0..rows {
            let sums = &mut sums[(n * rows + row) * columns..][..columns];
            for k in 0..inner {
                let factor = x[row * inner + k];
                for (sum, &y) in sums.iter_mut().zip(&y[k * columns..]) {
                    *sum = multiply_add(*sum, factor, y);
                }
            }
        }
    }
    sizes.extend([rows, columns]);
    Ok((sizes, sums))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_refused, eval, f32s, sizes, tensor, ty};
    use super::*;
    use crate::graph::{Graph, Loc};
    use crate::types::Elem;
    use proptest::prelude::*;

    #[test]
    fn small_products() {
        let a = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let b = f32s(&[3, 1], &[1.0, 0.0, -1.0]);
        assert_eq!(eval(Matmul {}, &[a, b]), f32s(&[2, 1], &[-2.0, -2.0]));
    }

    #[test]
    fn integers_wrap_in_their_type() {
        let a = Tensor::of(&[1, 2], vec![100i8, -128]);
        let b = Tensor::of(&[2, 1], vec![3i8, -128]);
        assert_eq!(eval(Matmul {}, &[a, b]).to_i64s().unwrap(), [(300 + 16384) as i8 as i64]);
        let a = Tensor::of(&[1, 1], vec![u64::MAX]);
        assert_eq!(eval(Matmul {}, &[a.clone(), a]).get(0), Scalar::Int(1));
    }

    #[test]
    fn constraints() {
        let f = |s| ty(Elem::F32, s);
        assert_refused(Matmul {}, &[f("2 3"), ty(Elem::F64, "3 4")], "matmul C1");
        assert_refused(Matmul {}, &[ty(Elem::Bool, "2 3"), ty(Elem::Bool, "3 4")], "matmul C1");
        assert_refused(Matmul {}, &[f("3"), f("3 4")], "matmul C1");
        assert_refused(Matmul {}, &[f("2 3"), f("4 3")], "matmul C2: inner sizes of [2, 3] and [4, 3]");
        assert_refused(Matmul {}, &[f("2 n 3"), f("3 3 4")], "matmul C2");
    }

    #[test]
    fn unknown_inner_sizes_are_checked_at_run_time() {
        let mut g = Graph::new("g");
        let (a, b) = (g.add_input("a", ty(Elem::F32, "n s")), g.add_input("b", ty(Elem::F32, "k 4")));
        let y = g.add(Matmul {}, &[a, b], &Loc::default()).unwrap();
        assert_eq!(*g.ty(y), ty(Elem::F32, "n 4"));
        assert_eq!(g.checks.len(), 1);
    }

    proptest! {
        /// Every element is the product of a row and a column of the matrices that broadcasting picks.
        #[test]
        fn elements_are_dot_products(batch in sizes(0..3), shared: bool, n in 0usize..4, k in 0usize..4, m in 0usize..4, seed: u64) {
            let batch_b = if shared { vec![1; batch.len().min(1)] } else { batch.clone() };
            let a = tensor(Elem::I32, &[&batch[..], &[n, k]].concat(), seed);
            let b = tensor(Elem::I32, &[&batch_b[..], &[k, m]].concat(), !seed);
            let y = eval(Matmul {}, &[a.clone(), b.clone()]).to_i64s().unwrap();
            let (a, b) = (a.to_i64s().unwrap(), b.to_i64s().unwrap());
            for (i, &found) in y.iter().enumerate() {
                let (matrix, row, column) = (i / (n * m), i / m % n, i % m);
                let matrix_b = if shared { 0 } else { matrix };
                let dot: i64 = (0..k).map(|j| a[(matrix * n + row) * k + j] * b[(matrix_b * k + j) * m + column]).sum();
                prop_assert_eq!(found, dot);
            }
        }
    }
}
