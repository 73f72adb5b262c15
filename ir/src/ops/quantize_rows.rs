//! `quantize_rows`: quantization with a scale per row, found at run time.

use super::reduce::{ReduceKind, reduce_kept};
use super::support::{cast, constant};
use super::{Abs, Add, And, Cast, Div, EvalError, InferCx, InferError, Le, Lt, Max, Min, Mul, Operator, Round, Select, Sub};
use crate::dim::{Bindings, Dim};
use crate::graph::{Graph, Loc, Value};
use crate::quant::{Granularity, MIN_RANGE, RowRange, Scheme};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};

operator! {
    /// Dynamic quantization to 8 bits: every row (the last axis) gets the scale that its own values need, as
    /// `quant::RowRange` defines it. Results are the stored values (`i8`), the scales (`f32`, last axis 1)
    /// and, unless symmetric, the zero points (`i8`, last axis 1).
    ///
    /// Everything is computed in f32, into which other types are converted first: the largest magnitude
    /// of a row, or its smallest and largest value, where a NaN wins; then `RowRange::symmetric`
    /// or `RowRange::asymmetric`; then `RowRange::quantize` of every element. The results are the same
    /// bits wherever this is computed.
    ///
    /// C1. The operand is a float that is not quantized.
    /// C2. Its last axis exists and has a known size of at least 1.
    pub struct QuantizeRows("quantize_rows", 1..=1) {
        /// Whether rows are stored in -127..=127 around 0, or in -128..=127 with a zero point.
        symmetric: bool,
    }
}

impl QuantizeRows {
    /// How the stored values of an operand with `rank` axes and `k` elements in a row stand for numbers.
    pub fn scheme(&self, rank: usize, k: u32) -> Scheme {
        Scheme {
            storage: Elem::I8,
            min: if self.symmetric { -127 } else { -128 },
            max: 127,
            granularity: Granularity::Blocks { axis: rank as u32 - 1, size: k },
            symmetric: self.symmetric,
            scale: Elem::F32,
        }
    }

    /// The scheme for an operand of this type, if constraint C2 holds.
    fn scheme_of(&self, x: &Type) -> Option<Scheme> {
        let k = x.shape.0.last()?.as_const()?;
        u32::try_from(k).ok().filter(|&k| k > 0).map(|k| self.scheme(x.rank(), k))
    }

    fn decomposition(&self, g: &mut Graph, x: Value, loc: &Loc) -> Result<Vec<Value>, InferError> {
        let axes = [g.ty(x).rank() - 1];
        let x = cast(g, x, Elem::F32, loc)?;
        if self.symmetric {
            let magnitude = g.add(Abs {}, &[x], loc)?;
            let a = reduce_kept(g, ReduceKind::Max, &axes, magnitude, loc)?;
            let (scale, inverse) = steps(g, a, 127.0, loc)?;
            let q = rounded(g, x, inverse, loc)?;
            return Ok(vec![g.add(Cast { to: Elem::I8 }, &[q], loc)?, scale]);
        }
        let zero = constant(g, Elem::F32, 0.0);
        let low = reduce_kept(g, ReduceKind::Min, &axes, x, loc)?;
        let low = g.add(Min {}, &[low, zero], loc)?;
        let high = reduce_kept(g, ReduceKind::Max, &axes, x, loc)?;
        let high = g.add(Max {}, &[high, zero], loc)?;
        let range = g.add(Sub {}, &[high, low], loc)?;
        let (scale, inverse) = steps(g, range, 255.0, loc)?;
        let shift = g.add(Mul {}, &[low, inverse], loc)?;
        let first = constant(g, Elem::F32, -128.0);
        let zero_point = g.add(Sub {}, &[first, shift], loc)?;
        let zero_point = g.add(Round {}, &[zero_point], loc)?;
        let zero_point = cast(g, zero_point, Elem::I32, loc)?;
        let q = rounded(g, x, inverse, loc)?;
        let q = g.add(Add {}, &[q, zero_point], loc)?;
        let (min, max) = (constant(g, Elem::I32, -128.0), constant(g, Elem::I32, 127.0));
        let q = g.add(Max {}, &[q, min], loc)?;
        let q = g.add(Min {}, &[q, max], loc)?;
        Ok(vec![cast(g, q, Elem::I8, loc)?, scale, cast(g, zero_point, Elem::I8, loc)?])
    }
}

/// Scale and inverse of rows whose values span `range`, stored in that many steps.
fn steps(g: &mut Graph, range: Value, steps: f64, loc: &Loc) -> Result<(Value, Value), InferError> {
    let [steps, least, infinity, zero] = [steps, MIN_RANGE.into(), f64::INFINITY, 0.0].map(|c| constant(g, Elem::F32, c));
    let scale = g.add(Div {}, &[range, steps], loc)?;
    let inverse = g.add(Div {}, &[steps, range], loc)?;
    let enough = g.add(Le {}, &[least, range], loc)?;
    let finite = g.add(Lt {}, &[range, infinity], loc)?;
    let useful = g.add(And {}, &[enough, finite], loc)?;
    Ok((scale, g.add(Select {}, &[useful, inverse, zero], loc)?))
}

/// `round_half_even(x * inverse)` as an integer; the cast makes NaN 0.
fn rounded(g: &mut Graph, x: Value, inverse: Value, loc: &Loc) -> Result<Value, InferError> {
    let scaled = g.add(Mul {}, &[x, inverse], loc)?;
    let rounded = g.add(Round {}, &[scaled], loc)?;
    cast(g, rounded, Elem::I32, loc)
}

impl Operator for QuantizeRows {
    fn infer(&self, _: &mut InferCx, inputs: &[Type]) -> Result<Vec<Type>, InferError> {
        let x = &inputs[0];
        require!(x.elem.is_float() && x.quant.is_none(), "quantize_rows C1: {x} is not a float, or is quantized");
        let scheme = self.scheme_of(x);
        let Some(scheme) = scheme else {
            return Err(InferError::new(format!("quantize_rows C2: the rows of {x} have no known size of at least 1")));
        };
        let mut per_row = x.shape.clone();
        *per_row.0.last_mut().expect("C2") = Dim::from(1);
        let mut results = vec![
            Type { elem: Elem::I8, shape: x.shape.clone(), quant: Some(scheme) },
            Type::new(Elem::F32, per_row.clone()),
        ];
        if !self.symmetric {
            results.push(Type::new(Elem::I8, per_row));
        }
        Ok(results)
    }

    fn eval(&self, _: &Bindings, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
        let x = &inputs[0];
        let k = *x.sizes().last().expect("C2");
        let Scheme { min, max, .. } = self.scheme(x.rank(), k as u32);
        let values: Vec<f32> = x.iter().map(|x| x.to_f64() as f32).collect();
        // `f32::min` and `f32::max` lose a NaN, which must win.
        let fold = |row: &[f32], pick: fn(f32, f32) -> f32, of: fn(f32) -> f32| {
            row.iter().copied().map(of).reduce(|a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { pick(a, b) }).expect("C2")
        };
        let range = |row: &[f32]| match self.symmetric {
            true => RowRange::symmetric(fold(row, f32::max, f32::abs)),
            false => RowRange::asymmetric(fold(row, f32::min, |x| x), fold(row, f32::max, |x| x)),
        };
        let ranges: Vec<RowRange> = values.chunks_exact(k).map(range).collect();
        let q = Tensor::build(Elem::I8, x.sizes(), |i| Scalar::Int(ranges[i / k].quantize(values[i], min.into(), max.into()).into()));
        let mut per_row = x.sizes().to_vec();
        *per_row.last_mut().expect("C2") = 1;
        let mut results = vec![q, Tensor::of(&per_row, ranges.iter().map(|r| r.scale).collect())];
        if !self.symmetric {
            results.push(Tensor::of(&per_row, ranges.iter().map(|r| r.zero_point as i8).collect()));
        }
        Ok(results)
    }

    /// The stored values are plain: without the scheme.
    fn lower(&self, graph: &mut Graph, inputs: &[Value], loc: &Loc) -> Option<Result<Vec<Value>, InferError>> {
        Some(self.decomposition(graph, inputs[0], loc))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use proptest::prelude::*;

    /// All results of the operator, and of its decomposition.
    fn both(op: &QuantizeRows, x: &Tensor) -> [Vec<Tensor>; 2] {
        let mut direct = Graph::new("direct");
        let input = direct.add_input("x", x.ty());
        let results = direct.add_node(op.clone(), &[input], &Loc::default()).unwrap();
        results.into_iter().for_each(|v| direct.add_output("y", v));
        let mut lowered = Graph::new("lowered");
        let input = lowered.add_input("x", x.ty());
        let results = op.lower(&mut lowered, &[input], &Loc::default()).unwrap().unwrap();
        results.into_iter().for_each(|v| lowered.add_output("y", v));
        [direct, lowered].map(|g| g.evaluate(std::slice::from_ref(x), &Bindings::new()).unwrap())
    }

    #[test]
    fn rows_have_their_own_scale() {
        let x = f32s(&[3, 2], &[1.0, -2.0, 0.0, 0.0, 0.5, 254.0]);
        let [y, _] = both(&QuantizeRows { symmetric: true }, &x);
        assert_eq!(y[0].to_i64s().unwrap(), [64, -127, 0, 0, 0, 127]);
        assert_eq!(y[1], f32s(&[3, 1], &[2.0 / 127.0, 0.0, 2.0]));
        let [y, _] = both(&QuantizeRows { symmetric: false }, &x);
        assert_eq!(y[0].to_i64s().unwrap(), [127, -128, -128, -128, -127, 127]);
        assert_eq!(y[2].to_i64s().unwrap(), [42, -128, -128]);
        assert_eq!(y[1], f32s(&[3, 1], &[3.0 / 255.0, 0.0, 254.0 / 255.0]));
    }

    #[test]
    fn what_is_not_finite_spoils_its_row_only() {
        let x = f32s(&[3, 2], &[1.0, f32::NAN, f32::INFINITY, 2.0, 3.0, -1.0]);
        for symmetric in [true, false] {
            let [y, lowered] = both(&QuantizeRows { symmetric }, &x);
            assert!(y[1].get(0).to_f64().is_nan() && y[1].get(1).to_f64().is_infinite() && y[1].get(2).to_f64() < 0.1);
            assert_eq!(y[0], lowered[0]);
            let zero = if symmetric { 0 } else { y[2].get(0).to_i128() };
            assert_eq!(y[0].get(0).to_i128(), zero);
        }
    }

    #[test]
    fn results_have_types() {
        let types = |symmetric, t: Type| QuantizeRows { symmetric }.infer(&mut InferCx::new(&Default::default()), &[t]).unwrap();
        let of = |types: Vec<Type>| types.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            of(types(true, ty(Elem::F16, "n 3 8"))),
            ["i8[n, 3, 8] quant<[i8, [-127, 127], [blocks, 2, 8], symmetric, f32]>", "f32[n, 3, 1]"]
        );
        assert_eq!(
            of(types(false, ty(Elem::F32, "8"))),
            ["i8[8] quant<[i8, [-128, 127], [blocks, 0, 8], asymmetric, f32]>", "f32[1]", "i8[1]"]
        );
    }

    #[test]
    fn constraints() {
        let refused = |t, c| assert_refused(QuantizeRows { symmetric: true }, &[t], c);
        refused(ty(Elem::I8, "2 4"), "quantize_rows C1");
        refused(ty(Elem::F32, "4 n"), "quantize_rows C2");
        refused(ty(Elem::F32, "4 0"), "quantize_rows C2");
        refused(ty(Elem::F32, ""), "quantize_rows C2");
    }

    proptest! {
        /// The decomposition gives the same bits.
        #[test]
        fn lowers(rows in 0usize..4, k in 1usize..6, bits in prop::collection::vec(any::<u32>(), 24), symmetric: bool, wild: bool) {
            let value = |i: usize| match bits[i % bits.len()] {
                b if wild => f32::from_bits(b),
                b => (b >> 8) as f32 / 1e6 - 8.0,
            };
            let x = f32s(&[rows, k], &(0..rows * k).map(value).collect::<Vec<_>>());
            let [direct, lowered] = both(&QuantizeRows { symmetric }, &x);
            for (i, (a, b)) in direct.iter().zip(&lowered).enumerate() {
                let same = |(a, b): (Scalar, Scalar)| a == b || (a.to_f64().is_nan() && b.to_f64().is_nan());
                prop_assert!(a.ty() == b.ty() && a.iter().zip(b.iter()).all(same), "result {}: {:?} {:?}", i, a, b);
            }
        }

        #[test]
        fn other_floats_lower_too(rows in 0usize..3, seed: u64, symmetric: bool) {
            for elem in [Elem::F16, Elem::Bf16, Elem::F64] {
                let [direct, lowered] = both(&QuantizeRows { symmetric }, &tensor(elem, &[rows, 5], seed));
                prop_assert_eq!(direct, lowered);
            }
        }
    }
}
