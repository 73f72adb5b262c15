//! `attention`: scaled dot-product attention.

use super::softmax::softmax_row;
use super::support::{Broadcast, broadcasts_to, check_elems, divides, float};
use super::{EvalError, InferCx, InferError, Operator};
use crate::attr::Float;
use crate::dim::Bindings;
use crate::tensor::{Scalar, Tensor};
use crate::types::{Shape, Type};

operator! {
    /// `softmax(scale * q kᵀ + bias) v` per batch and head (Vaswani et al. 2017), `q[b, h, n, d]`,
    /// `k[b, g, m, d]`, `v[b, g, m, e]`, result `[b, h, n, e]`; query head `i` uses key head
    /// `i * g / h`. With `causal`, query `i` sees keys up to `i + m - n`: the scores of later ones are
    /// minus infinity. A row that sees no key gives what softmax gives: NaN, or 0 if there are no keys.
    ///
    /// C1. Operands are `q`, `k`, `v` of rank 4 and optionally `bias`, floats of one type.
    /// C2. `g` divides `h`; the other sizes agree.
    /// C3. `bias` broadcasts to `[b, h, n, m]`.
    pub struct Attention("attention", 3..=4) {
        /// Factor of the scores.
        scale: Float,
        /// Whether later keys are hidden.
        causal: bool,
    }
}

impl Operator for Attention {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let elem = check_elems(self, inputs, float)?;
        for (name, t) in ["q", "k", "v"].into_iter().zip(inputs) {
            require!(t.rank() == 4, "attention C1: {name} has rank 4, not {} as {t}", t.rank());
        }
        let (q, k, v) = (&inputs[0].shape, &inputs[1].shape, &inputs[2].shape);
        let batch = cx.equal(&q[0], &k[0], "attention C2: batch sizes of q and k")?;
        let batch = cx.equal(&batch, &v[0], "attention C2: batch sizes of q and v")?;
        cx.equal(&k[1], &v[1], "attention C2: heads of k and v")?;
        let keys = cx.equal(&k[2], &v[2], "attention C2: numbers of keys and values")?;
        cx.equal(&q[3], &k[3], "attention C2: channels of q and k")?;
        require!(!k[1].is(0), "attention C2: k {k} has no heads");
        divides(cx, &k[1], &q[1], "attention C2: heads of k and heads of q")?;
        if let Some(bias) = inputs.get(3) {
            let scores = Shape(vec![batch.clone(), q[1].clone(), q[2].clone(), keys]);
            broadcasts_to(cx, &bias.shape, &scores, "attention C3: bias")?;
        }
        Ok(vec![Type::new(elem, Shape(vec![batch, q[1].clone(), q[2].clone(), v[3].clone()]))])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let &[batch, heads, queries, depth] = inputs[0].sizes() else { unreachable!("q has rank 4") };
        let &[_, key_heads, keys, width] = inputs[2].sizes() else { unreachable!("v has rank 4") };
        let (q, k, v) = (inputs[0].to_f64s(), inputs[1].to_f64s(), inputs[2].to_f64s());
        let bias = inputs.get(3).map(|t| (t.to_f64s(), Broadcast::new(t.sizes(), &[batch, heads, queries, keys])));
        let mut y = vec![0.0; batch * heads * queries * width];
        // One row of the scores at a time: batch, head and query in one number.
        for row in 0..batch * heads * queries {
            let (head, query) = (row / queries % heads, row % queries);
            let key_head = row / queries / heads * key_heads + head * key_heads / heads;
            let q = &q[row * depth..][..depth];
            let mut scores: Vec<f64> = (0..keys)
                .map(|key| {
                    if self.causal && key + queries > query + keys {
                        return f64::NEG_INFINITY;
                    }
                    let k = &k[(key_head * keys + key) * depth..][..depth];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    self.scale.get() * dot + bias.as_ref().map_or(0.0, |(bias, at)| bias[at.offset(row * keys + key)])
                })
                .collect();
            softmax_row(&mut scores, false);
            for (key, probability) in scores.iter().enumerate() {
                let v = &v[(key_head * keys + key) * width..][..width];
                for (y, v) in y[row * width..][..width].iter_mut().zip(v) {
                    *y += probability * v;
                }
            }
        }
        Ok(vec![Tensor::build(inputs[0].elem(), &[batch, heads, queries, width], |i| Scalar::Float(y[i]))])
    }
}
