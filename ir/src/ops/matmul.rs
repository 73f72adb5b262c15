//! `matmul`: matrix product.

use super::support::{Broadcast, broadcast_sizes, check_elems, number};
use super::{EvalError, InferCx, InferError, Operator};
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
