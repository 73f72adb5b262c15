//! `group_norm`: group normalisation.

use super::layer_norm::{standardize, standardize_rows};
use super::support::{cast, check_elems, divides, float, wide};
use super::{Add, EvalError, InferCx, InferError, Mul, Operator, Reshape};
use crate::attr::Float;
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Shape, Type};

operator! {
    /// Normalises groups of channels: axis 1 is split into `groups`, mean and variance are taken over
    /// a group and all axes behind, then scale and bias apply per channel (Wu and He 2018). One group
    /// per channel is instance normalisation.
    ///
    /// C1. Operands are `x` of rank 2 or more, `scale` and `bias` of shape `[channels]`, floats of one type.
    /// C2. `groups` is positive and divides the number of channels.
    pub struct GroupNorm("group_norm", 3..=3) {
        /// Number of groups.
        groups: i64,
        /// Added to the variance.
        epsilon: Float,
    }
}

impl GroupNorm {
    fn decompose(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let Type { elem, shape, .. } = graph.ty(inputs[0]).clone();
        let operands = inputs.iter().map(|&v| cast(graph, v, wide(elem), loc)).collect::<Result<Vec<_>, _>>()?;
        let groups = Dim::from(self.groups);
        let mut grouped = vec![shape[0].clone(), groups.clone(), shape[1].floor_div(&groups)];
        grouped.extend_from_slice(&shape.0[2..]);
        let axes: Vec<usize> = (2..grouped.len()).collect();
        let split = graph.add(Reshape { shape: Shape(grouped) }, &[operands[0]], loc)?;
        let standard = standardize(graph, split, &axes, self.epsilon, loc)?;
        let y = graph.add(Reshape { shape: shape.clone() }, &[standard], loc)?;
        let mut per_channel = vec![Dim::from(1); shape.rank() - 1];
        per_channel[0] = shape[1].clone();
        let per_channel = Reshape { shape: Shape(per_channel) };
        let scale = graph.add(per_channel.clone(), &[operands[1]], loc)?;
        let bias = graph.add(per_channel, &[operands[2]], loc)?;
        let scaled = graph.add(Mul {}, &[y, scale], loc)?;
        let y = graph.add(Add {}, &[scaled, bias], loc)?;
        cast(graph, y, elem, loc)
    }
}

impl Operator for GroupNorm {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        check_elems(self, inputs, float)?;
        require!(x.rank() >= 2, "group_norm C1: x has rank 2 or more, not {} as {x}", x.rank());
        let channels = &x.shape[1];
        for (name, t) in ["scale", "bias"].into_iter().zip(&inputs[1..]) {
            require!(t.rank() == 1, "group_norm C1: {name} has shape [{channels}], not {}", t.shape);
            cx.equal(&t.shape[0], channels, &format!("group_norm C1: size of {name} and channels of x"))?;
        }
        require!(self.groups > 0, "group_norm C2: groups is positive, not {}", self.groups);
        divides(cx, &Dim::from(self.groups), channels, "group_norm C2: groups and channels")?;
        Ok(vec![x.clone()])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let channels = x.sizes()[1];
        let behind: usize = x.sizes()[2..].iter().product();
        let mut values = x.to_f64s();
        standardize_rows(&mut values, x.sizes()[0] * self.groups as usize, self.epsilon);
        let (scale, bias) = (inputs[1].to_f64s(), inputs[2].to_f64s());
        let y = Tensor::build(x.elem(), x.sizes(), |i| {
            let channel = i / behind % channels;
            Scalar::Float(values[i] * scale[channel] + bias[channel])
        });
        Ok(vec![y])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decompose(graph, inputs, loc).map(|v| vec![v]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, assert_lowers, assert_lowers_at, assert_refused, eval, f32s, sizes, tensor, ty};
    use super::*;
    use crate::types::Elem;
    use proptest::prelude::*;

    fn norm(groups: i64) -> GroupNorm {
        GroupNorm { groups, epsilon: Float::from(0.25) }
    }

    #[test]
    fn groups_of_one_and_of_two_channels() {
        let r = 2f32.sqrt();
        let x = f32s(&[1, 2, 2], &[-r, r, 5.0 - r, 5.0 + r]);
        let (scale, bias) = (f32s(&[2], &[1.5, 3.0]), f32s(&[2], &[0.0, 1.0]));
        assert_close(&eval(norm(2), &[x, scale, bias.clone()]), &f32s(&[1, 2, 2], &[-r, r, 1.0 - 2.0 * r, 1.0 + 2.0 * r]));
        // One group: mean 0, variance 2.
        let x = f32s(&[1, 2, 2], &[-r, r, r, -r]);
        assert_close(&eval(norm(1), &[x, f32s(&[2], &[1.5, 3.0]), bias]), &f32s(&[1, 2, 2], &[-r, r, 1.0 + 2.0 * r, 1.0 - 2.0 * r]));
    }

    #[test]
    fn constraints() {
        let f = |s| ty(Elem::F32, s);
        assert_refused(norm(1), &[f("4"), f("4"), f("4")], "group_norm C1: x");
        assert_refused(norm(1), &[f("n 4"), f("4 1"), f("4")], "group_norm C1: scale");
        assert_refused(norm(1), &[f("n 4"), f("4"), f("3")], "group_norm C1: size of bias");
        assert_refused(norm(3), &[f("n 4 s"), f("4"), f("4")], "group_norm C2");
        assert_refused(norm(0), &[f("n 4 s"), f("4"), f("4")], "group_norm C2");
    }

    proptest! {
        #[test]
        fn lowers(mut sizes in sizes(2..5), groups in 1usize..4, seed: u64) {
            sizes[1] = sizes[1] % 3 * groups;
            let channels = sizes[1];
            for elem in [Elem::F32, Elem::F16] {
                let operands = [tensor(elem, &sizes, seed), tensor(elem, &[channels], seed ^ 1), tensor(elem, &[channels], seed ^ 2)];
                assert_lowers(norm(groups as i64), &operands);
            }
        }
    }

    #[test]
    fn lowers_with_symbols() {
        let types = [ty(Elem::F32, "n 4 h w"), ty(Elem::F32, "4"), ty(Elem::F32, "4")];
        let operands = [tensor(Elem::F32, &[2, 4, 3, 1], 1), tensor(Elem::F32, &[4], 2), tensor(Elem::F32, &[4], 3)];
        assert_lowers_at(norm(2), &types, &[("n", 2), ("h", 3), ("w", 1)], &operands);
    }
}
