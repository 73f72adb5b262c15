//! `fused`: operators that become one kernel.

use super::{EvalError, InferCx, InferError, Operator};
use crate::attr::Body;
use crate::dim::Bindings;
use crate::tensor::Tensor;
use crate::types::Type;

operator! {
    /// Runs a nested graph. The body's inputs are the operands, its outputs the results; its symbols are those of the graph around it. The fusion pass makes these nodes; the scheduler turns each into one kernel.
    ///
    /// C1. Operands have the types of the body's inputs.
    /// C2. What the body demands of dimensions holds around it.
    /// C3. The body has an output.
    pub struct Fused("fused", 0..=usize::MAX) {
        /// The nested graph.
        body: Body,
    }
}

impl Operator for Fused {
    fn infer(&self, cx: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let body = &self.body.0;
        let parameters = body.inputs();
        require!(inputs.len() == parameters.len(), "fused C1: {} operands for {} inputs of the body", inputs.len(), parameters.len());
        for (i, (given, &parameter)) in inputs.iter().zip(parameters).enumerate() {
            let wanted = body.ty(parameter);
            let alike = (given.elem, given.quant, given.rank()) == (wanted.elem, wanted.quant, wanted.rank());
            require!(alike, "fused C1: operand {i} is {given}, but the body takes {wanted}");
            for axis in 0..given.rank() {
                let what = format!("fused C1: axis {axis} of operand {i}, {given}, and of {wanted}");
                cx.equal(&given.shape[axis], &wanted.shape[axis], &what)?;
            }
        }
        for c in &body.checks {
            cx.equal(&c.left, &c.right, "fused C2: dimensions that the body takes to be equal")?;
        }
        require!(!body.outputs().is_empty(), "fused C3: the body has no output");
        Ok(body.outputs().iter().map(|o| body.ty(o.value).clone()).collect())
    }

    fn eval(&self, bindings: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        self.body.0.evaluate(inputs, bindings)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Add, Neg};
    use super::*;
    use crate::graph::{Graph, Loc};
    use crate::types::Elem;
    use std::sync::Arc;

    fn body() -> Fused {
        let mut g = Graph::new("body");
        let x = g.add_input("x", ty(Elem::F32, "n"));
        let y = g.add_input("y", ty(Elem::F32, "m"));
        let sum = g.add(Add {}, &[x, y], &Loc::default()).unwrap();
        let negated = g.add(Neg {}, &[sum], &Loc::default()).unwrap();
        g.add_output("sum", sum);
        g.add_output("negated", negated);
        Fused { body: Body(Arc::new(g)) }
    }

    #[test]
    fn the_body_runs() {
        let bindings = Bindings::from([("n", 2), ("m", 2)].map(|(s, n)| (crate::dim::Symbol::new(s), n)));
        let results = body().eval(&bindings, &[f32s(&[2], &[1.0, 2.0]), f32s(&[2], &[3.0, 4.0])]).unwrap();
        assert_eq!(results, [f32s(&[2], &[4.0, 6.0]), f32s(&[2], &[-4.0, -6.0])]);
    }

    #[test]
    fn its_demands_are_those_of_the_node() {
        let (y, checks) = infer(body(), &[ty(Elem::F32, "n"), ty(Elem::F32, "4")]);
        assert_eq!((y.as_str(), checks), ("f32[n]", vec!["4 = m".into(), "n = m".into()]));
    }

    #[test]
    fn constraints() {
        let x = ty(Elem::F32, "n");
        for types in [vec![x.clone()], vec![x.clone(), ty(Elem::F16, "m")], vec![x.clone(), ty(Elem::F32, "m 1")]] {
            assert_refused(body(), &types, "fused C1");
        }
        let mut g = Graph::new("body");
        g.checks.push(crate::graph::DimCheck { left: 1.into(), right: 2.into(), loc: Loc::default() });
        assert_refused(Fused { body: Body(Arc::new(g)) }, &[], "fused C2");
        assert_refused(Fused { body: Body(Arc::new(Graph::new("body"))) }, &[], "fused C3");
    }
}
