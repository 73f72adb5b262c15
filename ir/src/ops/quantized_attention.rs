//! `quantized_attention`: attention by products of 8-bit integers.

use super::attention::Attention;
use super::support::Broadcast;
use super::{EvalError, InferCx, InferError, Operator};
use crate::attr::Float;
use crate::dim::Bindings;
use crate::quant::RowRange;
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};

operator! {
    /// [`Attention`] on operands of 8 bits that are found at run time: every row of `q` and of `k` and every
    /// column of a matrix of `v` (all keys of one channel, hidden ones too) is rounded as
    /// [`RowRange::symmetric`] says, and the weights of a query, relative to the largest, are rounded to
    /// multiples of 1/255. With the integers `q'`, `k'`, `v'` and their scales:
    ///
    /// ```text
    /// s[i, j] = bias[i, j] if that is at most mask_value, else scale * qs[i] * ks[j] * (q'[i] · k'[j]) + bias[i, j]
    /// w[i, j] = round_half_even(255 * exp(s[i, j] - max_j s[i, j]))
    /// y[i, c] = vs[c] * (Σ_j w[i, j] * v'[j, c]) / Σ_j w[i, j]
    /// ```
    ///
    /// Backends may round the weights more finely: relative to the largest score of the keys so far. Keys,
    /// heads, `causal` and rows that see nothing are as in `attention`.
    ///
    /// Constraints are those of `attention`, and:
    /// C4. Operands are f32.
    pub struct QuantizedAttention("quantized_attention", 3..=4) {
        /// Factor of the scores.
        scale: Float,
        /// Whether later keys are hidden.
        causal: bool,
        /// The greatest bias that hides a key.
        mask_value: Option<Float>,
    }
}

/// What a weight of 1 is rounded to.
pub const WEIGHT_STEPS: f64 = 255.0;

impl From<Attention> for QuantizedAttention {
    fn from(op: Attention) -> QuantizedAttention {
        QuantizedAttention { scale: op.scale, causal: op.causal, mask_value: op.mask_value }
    }
}

impl QuantizedAttention {
    /// The attention whose operands and weights are rounded.
    pub fn exact(&self) -> Attention {
        Attention { scale: self.scale, causal: self.causal, mask_value: self.mask_value }
    }
}

/// Lines of numbers as integers, a scale for each; a line is every `step`-th of `count` numbers.
fn rounded(x: &[f32], line: impl Iterator<Item = usize>) -> (Vec<f64>, f64) {
    let values: Vec<f32> = line.map(|at| x[at]).collect();
    let largest = values.iter().fold(0f32, |m, v| if m.is_nan() || v.is_nan() { f32::NAN } else { m.max(v.abs()) });
    let range = RowRange::symmetric(largest);
    (values.iter().map(|&v| f64::from(range.quantize(v, -127, 127))).collect(), f64::from(range.scale))
}

impl Operator for QuantizedAttention {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let result = self.exact().infer(cx, inputs)?;
        require!(inputs[0].elem == Elem::F32, "quantized_attention C4: operands are f32, not {}", inputs[0]);
        Ok(result)
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let &[batch, heads, queries, depth] = inputs[0].sizes() else { unreachable!("q has rank 4") };
        let &[_, key_heads, keys, width] = inputs[2].sizes() else { unreachable!("v has rank 4") };
        let [q, k, v] = [0, 1, 2].map(|i| inputs[i].values::<f32>());
        let rows = |x: &[f32]| -> Vec<(Vec<f64>, f64)> {
            let count = x.len().checked_div(depth).unwrap_or(batch * heads.max(key_heads) * queries.max(keys));
            (0..count).map(|r| rounded(x, r * depth..(r + 1) * depth)).collect()
        };
        let (q, k) = (rows(&q), rows(&k));
        let columns: Vec<(Vec<f64>, f64)> = (0..batch * key_heads * width)
            .map(|n| (n / width * keys * width) + n % width)
            .map(|first| rounded(&v, (0..keys).map(|key| first + key * width)))
            .collect();
        let bias = inputs.get(3).map(|t| (t.to_f64s(), Broadcast::new(t.sizes(), &[batch, heads, queries, keys])));
        let exact = self.exact();
        let mut y = vec![0.0; batch * heads * queries * width];
        // One row of the scores at a time: batch, head and query in one number.
        for row in 0..batch * heads * queries {
            let (head, query) = (row / queries % heads, row % queries);
            let matrix = row / queries / heads * key_heads + head * key_heads / heads;
            let (codes, row_scale) = &q[row];
            let scores: Vec<f64> = (0..keys)
                .map(|key| {
                    if self.causal && key + queries > query + keys {
                        return f64::NEG_INFINITY;
                    }
                    let (others, key_scale) = &k[matrix * keys + key];
                    let dot: f64 = codes.iter().zip(others).map(|(q, k)| q * k).sum();
                    let bias = bias.as_ref().map_or(0.0, |(bias, at)| bias[at.offset(row * keys + key)]);
                    if exact.hides(bias) { bias } else { self.scale.get() * row_scale * key_scale * dot + bias }
                })
                .collect();
            let largest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| if m.is_nan() || s.is_nan() { f64::NAN } else { m.max(s) });
            let weights: Vec<f64> = scores.iter().map(|s| (WEIGHT_STEPS * libm::exp(s - largest)).round_ties_even()).collect();
            let total: f64 = weights.iter().sum();
            for (y, (codes, scale)) in y[row * width..][..width].iter_mut().zip(&columns[matrix * width..][..width]) {
                let sum: f64 = weights.iter().zip(codes).map(|(w, v)| w * v).sum();
                *y = if keys == 0 { 0.0 } else { scale * sum / total };
            }
        }
        Ok(vec![Tensor::build(Elem::F32, &[batch, heads, queries, width], |i| Scalar::Float(y[i]))])
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_refused, eval, f32s, ty};
    use super::*;
    use proptest::prelude::*;

    fn attention(scale: f64, causal: bool) -> QuantizedAttention {
        QuantizedAttention { scale: Float::from(scale), causal, mask_value: None }
    }

    #[test]
    fn operands_and_weights_are_rounded() {
        // 0.3 * 127 / 1 = 38.1: the query counts as 38/127 and 1, the key as 1 and 1.
        let (q, k) = (f32s(&[1, 1, 1, 2], &[0.3, 1.0]), f32s(&[1, 1, 2, 2], &[1.0, 1.0, 0.0, 0.0]));
        let v = f32s(&[1, 1, 2, 1], &[1.0, 0.0]);
        let y = eval(attention(1.0, false), &[q, k, v]).to_f64s()[0];
        let weight = (255.0 * (-(1.0 + 38.0 / 127.0f64)).exp()).round();
        assert!((y - 255.0 / (255.0 + weight)).abs() < 1e-6, "{y} {weight}");
    }

    #[test]
    fn rows_without_keys_and_constraints() {
        let q = f32s(&[1, 1, 2, 1], &[1.0, 1.0]);
        let (k, v) = (f32s(&[1, 1, 1, 1], &[1.0]), f32s(&[1, 1, 1, 1], &[7.0]));
        let y = eval(attention(1.0, true), &[q.clone(), k, v]).to_f64s();
        assert!(y[0].is_nan() && (y[1] - 7.0).abs() < 1e-6);
        let none = f32s(&[1, 1, 0, 1], &[]);
        assert_eq!(eval(attention(1.0, false), &[q, none.clone(), none]).to_f64s(), [0.0, 0.0]);
        let half = |s| ty(Elem::F16, s);
        assert_refused(attention(1.0, false), &[half("1 4 n 8"), half("1 4 m 8"), half("1 4 m 8")], "quantized_attention C4");
        let f = |s| ty(Elem::F32, s);
        assert_refused(attention(1.0, false), &[f("1 4 n 8"), f("1 3 m 8"), f("1 3 m 8")], "attention C2");
    }

    proptest! {
        /// Close to attention: the operands are in [-1, 1], so scores move by less than `depth / 100` and values
        /// by less than 1/100.
        #[test]
        fn is_near_attention(
            [b, g, repeat, n, m, d, e] in [0usize..3, 1usize..3, 1usize..3, 0usize..4, 1usize..6, 0usize..9, 0usize..4],
            causal: bool,
            seed: u64,
        ) {
            let t = |sizes: &[usize], i: u64| super::super::testing::tensor(Elem::F32, sizes, seed ^ i);
            let (q, k, v, bias) = (t(&[b, g * repeat, n, d], 1), t(&[b, g, m, d], 2), t(&[b, g, m, e], 3), t(&[g * repeat, 1, m], 4));
            let limit = q.to_f64s().iter().chain(&k.to_f64s()).chain(&v.to_f64s()).fold(1f64, |m, x| m.max(x.abs()));
            let operands = [q, k, v, bias];
            let (rough, exact) = (eval(attention(0.1, causal), &operands), eval(attention(0.1, causal).exact(), &operands));
            let bound = 0.02 * limit * (1.0 + d as f64 * limit * limit);
            for (x, y) in rough.to_f64s().into_iter().zip(exact.to_f64s()) {
                prop_assert!((x - y).abs() <= bound || x.is_nan() && y.is_nan(), "{x} for {y}");
            }
        }
    }
}
