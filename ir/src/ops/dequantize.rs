//! `dequantize`: real values of quantized elements.

use super::quantize::{align, check_parameters, parameter_position};
use super::support::cast;
use super::{Cast, EvalError, InferCx, InferError, Mul, Operator, Sub};
use crate::dim::Bindings;
use crate::graph::{Graph, Loc, Value};
use crate::quant::{self, Scheme};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};

operator! {
    /// `scale * (x - zero_point)` as `quant::dequantize` defines it.
    ///
    /// C1. Operands are `x` (quantized by the scheme, or plain elements of its storage type), `scale` (the type that the scheme
    /// names) and, unless symmetric, `zero_point` (the storage type).
    /// C2. `scale` and `zero_point` have the shape that the granularity demands, as for `quantize`.
    /// C3. The scheme stores a part of the range of an integer of at most 16 bits, or 32 if symmetric, its scales are `f32`,
    /// `f16` or `bf16`, and `x` has its axis.
    /// C4. The result is a float.
    pub struct Dequantize("dequantize", 2..=3) {
        /// How `x` is stored.
        scheme: Scheme,
        /// Element type of the result, a float.
        elem: Elem,
    }
}

impl Dequantize {
    fn decomposition(&self, g: &mut Graph, inputs: &[Value], loc: &Loc) -> Result<Value, InferError> {
        let (shape, granularity) = (g.ty(inputs[0]).shape.clone(), self.scheme.granularity);
        // The cast also leaves the scheme behind.
        let mut q = g.add(Cast { to: Elem::I32 }, &inputs[..1], loc)?;
        if let Some(&zero_point) = inputs.get(2) {
            let zero_point = cast(g, zero_point, Elem::I32, loc)?;
            let zero_point = align(g, zero_point, &shape, granularity, loc)?;
            q = g.add(Sub {}, &[q, zero_point], loc)?;
        }
        let q = cast(g, q, Elem::F32, loc)?;
        let scale = cast(g, inputs[1], Elem::F32, loc)?;
        let scale = align(g, scale, &shape, granularity, loc)?;
        let y = g.add(Mul {}, &[scale, q], loc)?;
        cast(g, y, self.elem, loc)
    }
}

impl Operator for Dequantize {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        require!(x.elem == self.scheme.storage, "dequantize C1: {x} is not stored as {}", self.scheme);
        require!(x.quant.is_none_or(|q| q == self.scheme), "dequantize C1: {x} is not quantized as {}", self.scheme);
        require!(self.elem.is_float(), "dequantize C4: the result must be a float, not {}", self.elem);
        check_parameters(cx, x, &self.scheme, &inputs[1..], "dequantize")?;
        Ok(vec![x.with_elem(self.elem)])
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let (x, scale, zero_point) = (&inputs[0], &inputs[1], inputs.get(2));
        let y = Tensor::build(self.elem, x.sizes(), |i| {
            let p = parameter_position(i, x.sizes(), self.scheme.granularity);
            let zero = zero_point.map_or(0, |z| z.get(p).to_i128() as i32);
            Scalar::Float(quant::dequantize(x.get(i).to_i128() as i32, scale.get(p).to_f64() as f32, zero).into())
        });
        Ok(vec![y])
    }

    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decomposition(graph, inputs, loc).map(|v| vec![v]))
    }
}
