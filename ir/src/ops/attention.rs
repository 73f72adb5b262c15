//! `attention`: scaled dot-product attention.

use super::softmax::softmax_row;
use super::support::{Broadcast, broadcasts_to, check_elems, divides, float};
use super::{EvalError, InferCx, InferError, Mapped, Operator, Way};
use crate::attr::Float;
use crate::dim::Bindings;
use crate::tensor::{Scalar, Tensor};
use crate::types::{Shape, Type};

operator! {
    /// `softmax(scale * q kᵀ + bias) v` per batch and head (Vaswani et al. 2017), `q[b, h, n, d]`,
    /// `k[b, g, m, d]`, `v[b, g, m, e]`, result `[b, h, n, e]`; query head `i` uses key head
    /// `i * g / h`. With `causal`, query `i` sees keys up to `i + m - n`: the scores of later ones are
    /// minus infinity. With `mask_value`, a score whose bias is at most that is the bias alone, whatever
    /// the product of query and key is: NaN and infinities of hidden keys do not count. A row that sees
    /// no key gives what softmax gives: NaN where its scores are minus infinity, equal weights where they
    /// are one finite number, or 0 if there are no keys.
    ///
    /// C1. Operands are `q`, `k`, `v` of rank 4 and optionally `bias`, floats of one type.
    /// C2. `g` divides `h`; the other sizes agree.
    /// C3. `bias` broadcasts to `[b, h, n, m]`.
    pub struct Attention("attention", 3..=4) {
        /// Factor of the scores.
        scale: Float,
        /// Whether later keys are hidden.
        causal: bool,
        /// The greatest bias that hides a key.
        mask_value: Option<Float>,
    }
}

impl Attention {
    /// Whether a bias hides its key: it is the score then.
    pub fn hides(&self, bias: f64) -> bool {
        self.mask_value.is_some_and(|most| bias <= most.get())
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
                    let bias = bias.as_ref().map_or(0.0, |(bias, at)| bias[at.offset(row * keys + key)]);
                    if self.hides(bias) { bias } else { self.scale.get() * dot + bias }
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

    fn ways(&self) -> &'static [Way] {
        // The weights of a row sum to 1, unless there are no keys.
        &[&[(2, Mapped::Affine)]]
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_refused, eval, f32s, tensor, ty};
    use super::super::{Add, Expand, Matmul, Mul, Reshape, Select, Softmax, Transpose};
    use super::*;
    use crate::dim::Dim;
    use crate::types::Elem;
    use proptest::prelude::*;

    fn attention(scale: f64, causal: bool) -> Attention {
        Attention { scale: Float::from(scale), causal, mask_value: None }
    }

    #[test]
    fn equal_scores_average_and_later_keys_are_hidden() {
        let q = f32s(&[1, 1, 2, 1], &[0.0, 0.0]);
        let k = f32s(&[1, 1, 3, 1], &[1.0, 2.0, 3.0]);
        let v = f32s(&[1, 1, 3, 1], &[1.0, 3.0, 8.0]);
        assert_close(&eval(attention(1.0, false), &[q.clone(), k.clone(), v.clone()]), &f32s(&[1, 1, 2, 1], &[4.0, 4.0]));
        // The last query sees every key, the one before all but one.
        assert_close(&eval(attention(1.0, true), &[q.clone(), k.clone(), v.clone()]), &f32s(&[1, 1, 2, 1], &[2.0, 4.0]));
        let bias = f32s(&[3], &[0.0, f32::NEG_INFINITY, 3f32.ln()]);
        assert_close(&eval(attention(1.0, false), &[q, k, v, bias]), &f32s(&[1, 1, 2, 1], &[6.25, 6.25]));
    }

    #[test]
    fn hidden_keys_count_for_nothing_whatever_they_are() {
        let q = f32s(&[1, 1, 1, 1], &[1.0]);
        let k = f32s(&[1, 1, 4, 1], &[0.0, f32::NAN, f32::INFINITY, 0.0]);
        let v = f32s(&[1, 1, 4, 1], &[1.0, 70.0, 80.0, 3.0]);
        let masked = |mask_value: f64| Attention { mask_value: Some(Float::from(mask_value)), ..attention(1.0, false) };
        let hidden = |fill: f32| f32s(&[4], &[0.0, fill, fill, 0.0]);
        for (mask_value, fill) in [(f64::NEG_INFINITY, f32::NEG_INFINITY), (-1e4, -1e4), (-1e4, -1e9)] {
            assert_close(&eval(masked(mask_value), &[q.clone(), k.clone(), v.clone(), hidden(fill)]), &f32s(&[1, 1, 1, 1], &[2.0]));
        }
        let exposed = eval(masked(-1e9), &[q.clone(), k.clone(), v.clone(), hidden(-1e4)]).to_f64s();
        assert!(exposed[0].is_nan());
        // Where every key is hidden by one number, all weigh the same.
        let y = eval(masked(-1e9), &[q, k, v, f32s(&[1], &[-1e9])]);
        assert_close(&y, &f32s(&[1, 1, 1, 1], &[38.5]));
    }

    #[test]
    fn rows_without_keys() {
        let q = f32s(&[1, 1, 2, 1], &[1.0, 1.0]);
        let (k, v) = (f32s(&[1, 1, 1, 1], &[1.0]), f32s(&[1, 1, 1, 1], &[7.0]));
        let y = eval(attention(1.0, true), &[q.clone(), k, v]).to_f64s();
        assert!(y[0].is_nan());
        assert_eq!(y[1], 7.0);
        let none = f32s(&[1, 1, 0, 1], &[]);
        assert_eq!(eval(attention(1.0, false), &[q, none.clone(), none]).to_f64s(), [0.0, 0.0]);
    }

    #[test]
    fn constraints() {
        let f = |s| ty(Elem::F32, s);
        let op = attention(1.0, false);
        let refused = |shapes: [&'static str; 3], c: &str| assert_refused(op.clone(), &shapes.map(f), c);
        assert_refused(op.clone(), &[f("1 4 n 8"), f("1 4 m 8"), ty(Elem::F16, "1 4 m 8")], "attention C1");
        refused(["4 n 8", "1 4 m 8", "1 4 m 8"], "attention C1: q");
        refused(["1 4 n 8", "1 3 m 8", "1 3 m 8"], "attention C2");
        refused(["1 4 n 8", "1 0 m 8", "1 0 m 8"], "attention C2");
        refused(["1 4 n 8", "2 4 m 8", "2 4 m 8"], "attention C2: batch");
        refused(["1 4 n 8", "1 4 m 9", "1 4 m 8"], "attention C2: channels");
        refused(["1 4 n 8", "1 4 5 8", "1 4 6 8"], "attention C2: numbers of keys");
        assert_refused(op.clone(), &[f("1 4 n 8"), f("1 4 5 8"), f("1 4 5 8"), f("6")], "attention C3");
    }

    proptest! {
        /// The definition in matrix products: heads repeated, scores, bias and mask, softmax, values.
        #[test]
        fn is_softmax_between_products(
            [b, g, repeat, n, m, d, e] in [0usize..3, 1usize..3, 1usize..3, 0usize..4, 1usize..4, 0usize..4, 0usize..4],
            causal: bool,
            seed: u64,
        ) {
            let h = g * repeat;
            let t = |sizes: &[usize], i: u64| tensor(Elem::F64, sizes, seed ^ i);
            let (q, k, v, bias) = (t(&[b, h, n, d], 1), t(&[b, g, m, d], 2), t(&[b, g, m, e], 3), t(&[h, 1, m], 4));
            let shape = |sizes: &[usize]| Shape(sizes.iter().map(|&n| Dim::from(n)).collect());
            let repeated = |x: Tensor, width: usize| {
                let x = eval(Reshape { shape: shape(&[b, g, 1, m, width]) }, &[x]);
                let x = eval(Expand { shape: shape(&[b, g, repeat, m, width]) }, &[x]);
                eval(Reshape { shape: shape(&[b, h, m, width]) }, &[x])
            };
            let scale = Tensor::scalar(Elem::F64, Scalar::Float(0.5));
            let keys = eval(Transpose { perm: vec![0, 1, 3, 2] }, &[repeated(k.clone(), d)]);
            let scores = eval(Mul {}, &[eval(Matmul {}, &[q.clone(), keys]), scale]);
            let scores = eval(Add {}, &[scores, bias.clone()]);
            let seen = Tensor::build(Elem::Bool, &[n, m], |i| Scalar::Int((!causal || i % m + n <= i / m + m).into()));
            let hidden = Tensor::scalar(Elem::F64, Scalar::Float(f64::NEG_INFINITY));
            let p = eval(Softmax { axis: 3, log: false }, &[eval(Select {}, &[seen, scores, hidden])]);
            let expected = eval(Matmul {}, &[p, repeated(v.clone(), e)]);
            assert_close(&eval(attention(0.5, causal), &[q, k, v, bias]), &expected);
        }
    }
}
