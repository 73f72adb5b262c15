//! Symbolic evaluation of small integer tensors.
//!
//! Models compute shapes with the same operators as data: take the sizes of a tensor, pick some,
//! multiply, join, reshape to the result. [`eval`] carries such arithmetic out on dimensions instead of
//! numbers. Operators that move elements are run by their own reference evaluation on numbered
//! elements, and elementwise operators by their scalar programs, so none needs code here.
//!
//! Sizes are taken not to overflow 32 and 64 bits; in narrower types it must be provable.

use crate::dim::{Bindings, Dim, SymbolTable};
use crate::ops::support::{Broadcast, is_at_most, ravel, unravel};
use crate::ops::{Op, reduce::ReduceKind, scatter_elements::ScatterReduction};
use crate::scalar::{Prim, ScalarId, ScalarNode, ScalarProgram};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};

/// The largest number of elements of a tensor that is evaluated symbolically.
pub const MAX_ELEMENTS: usize = 1024;

/// A small tensor of integers or truth values that are expressions over symbols.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SymTensor {
    /// Element type: an integer or `bool`.
    pub elem: Elem,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub values: Vec<Dim>,
}

impl SymTensor {
    /// An `i64` vector of dimensions.
    pub fn vector(values: Vec<Dim>) -> SymTensor {
        SymTensor { elem: Elem::I64, shape: vec![values.len()], values }
    }

    /// An `i64` scalar.
    pub fn scalar(value: Dim) -> SymTensor {
        SymTensor { elem: Elem::I64, shape: vec![], values: vec![value] }
    }

    /// The elements of a tensor; `None` if they are floats, leave i64, or are more than [`MAX_ELEMENTS`].
    pub fn from_tensor(t: &Tensor) -> Option<SymTensor> {
        if t.len() > MAX_ELEMENTS {
            return None;
        }
        let values = t.to_i64s()?.into_iter().map(Dim::from).collect();
        Some(SymTensor { elem: t.elem(), shape: t.sizes().to_vec(), values })
    }

    /// The tensor, if all elements are numbers.
    pub fn to_tensor(&self) -> Option<Tensor> {
        let values: Vec<i64> = self.values.iter().map(Dim::as_const).collect::<Option<_>>()?;
        Some(Tensor::build(self.elem, &self.shape, |i| Scalar::Int(values[i].into())))
    }
}

/// The results of an operator on symbolic operands; `None` where an operand is not known or the
/// symbols do not decide, or for operators whose results are no dimensions. `result_types` are what
/// inference says.
pub fn eval(op: &Op, result_types: &[Type], inputs: &[Option<SymTensor>], symbols: &SymbolTable) -> Option<Vec<SymTensor>> {
    let mut sizes = Vec::with_capacity(result_types.len());
    for t in result_types {
        let fixed = t.shape.simplify(symbols).as_fixed()?;
        let small = fixed.iter().try_fold(1, |n: usize, &s| n.checked_mul(s)).is_some_and(|n| n <= MAX_ELEMENTS);
        if t.elem.is_float() || t.quant.is_some() || !small {
            return None;
        }
        sizes.push(fixed);
    }
    if let Some(results) = eval_constant(op, inputs) {
        return Some(results);
    }
    let single = |values| Some(vec![SymTensor { elem: result_types[0].elem, shape: sizes[0].clone(), values }]);
    match op {
        Op::Dims(dims) => single(dims.values.iter().map(|d| d.simplify(symbols)).collect()),
        Op::Reduce(reduce) => single(eval_reduce(reduce.kind, &reduce.axes, inputs[0].as_ref()?, symbols)?),
        _ if op.traits().elementwise => single(eval_elementwise(op, result_types[0].elem, &sizes[0], inputs, symbols)?),
        _ => Some(vec![eval_moved(op, result_types[0].elem, inputs)?]),
    }
}

/// Runs the operator on numbers.
fn eval_constant(op: &Op, inputs: &[Option<SymTensor>]) -> Option<Vec<SymTensor>> {
    let operands: Vec<Tensor> = inputs.iter().map(|t| t.as_ref()?.to_tensor()).collect::<Option<_>>()?;
    let results = op.eval(&Bindings::new(), &operands).ok()?;
    results.iter().map(SymTensor::from_tensor).collect()
}

/// Which operands only change places.
fn is_moved(op: &Op, operand: usize) -> bool {
    match op {
        Op::ScatterElements(s) => s.reduction == ScatterReduction::Replace && operand != 1,
        Op::ScatterNd(s) => s.reduction == ScatterReduction::Replace && operand != 1,
        _ => operand < op.traits().moved,
    }
}

/// Runs an operator that moves elements on their numbers, to see which one goes where.
fn eval_moved(op: &Op, elem: Elem, inputs: &[Option<SymTensor>]) -> Option<SymTensor> {
    let mut values: Vec<&Dim> = vec![];
    let mut operands = Vec::with_capacity(inputs.len());
    for (i, t) in inputs.iter().enumerate() {
        let t = t.as_ref()?;
        if is_moved(op, i) {
            let first = values.len();
            values.extend(&t.values);
            operands.push(Tensor::build(Elem::I64, &t.shape, |i| Scalar::Int((first + i) as i128)));
        } else {
            operands.push(t.to_tensor()?);
        }
    }
    if values.is_empty() {
        return None;
    }
    let result = op.eval(&Bindings::new(), &operands).ok()?.into_iter().next()?;
    let numbers = result.to_i64s()?.into_iter();
    Some(SymTensor { elem, shape: result.sizes().to_vec(), values: numbers.map(|n| values[n as usize].clone()).collect() })
}

fn eval_reduce(kind: ReduceKind, axes: &[usize], x: &SymTensor, symbols: &SymbolTable) -> Option<Vec<Dim>> {
    let prim = match kind {
        ReduceKind::Sum => Prim::Add,
        ReduceKind::Prod => Prim::Mul,
        ReduceKind::Max => Prim::Max,
        ReduceKind::Min => Prim::Min,
        ReduceKind::Mean => return None,
    };
    let sizes: Vec<usize> = x.shape.iter().enumerate().map(|(a, &n)| if axes.contains(&a) { 1 } else { n }).collect();
    let mut results: Vec<Option<Dim>> = vec![None; sizes.iter().product()];
    for (i, value) in x.values.iter().enumerate() {
        let mut index = unravel(i, &x.shape);
        axes.iter().for_each(|&a| index[a] = 0);
        let result = &mut results[ravel(&index, &sizes)];
        *result = match result.take() {
            None => Some(value.clone()),
            Some(so_far) => Some(eval_prim(prim, &[Some(so_far), Some(value.clone())], x.elem, x.elem, symbols)?),
        };
    }
    results.into_iter().collect()
}

fn eval_elementwise(op: &Op, elem: Elem, sizes: &[usize], inputs: &[Option<SymTensor>], symbols: &SymbolTable) -> Option<Vec<Dim>> {
    let mut p = ScalarProgram::new();
    // An operand that is not known takes part as the unknown; its type is that of the result where it can be chosen.
    let args: Vec<ScalarId> = inputs.iter().enumerate().map(|(i, t)| p.arg(i, t.as_ref().map_or(elem, |t| t.elem))).collect();
    let result = op.scalar(&mut p, &args)?;
    let places: Vec<Option<Broadcast>> = inputs.iter().map(|t| t.as_ref().map(|t| Broadcast::new(&t.shape, sizes))).collect();
    (0..sizes.iter().product())
        .map(|i| {
            let args: Vec<Option<Dim>> =
                inputs.iter().zip(&places).map(|(t, b)| Some(t.as_ref()?.values[b.as_ref()?.offset(i)].clone())).collect();
            let mut values: Vec<(ScalarId, Option<Dim>)> = vec![];
            for (id, node, elem) in p.nodes() {
                let value = match node {
                    ScalarNode::Arg(n) => args[*n as usize].clone(),
                    ScalarNode::Int(n) => Some(Dim::from(*n)),
                    ScalarNode::Float(_) => None,
                    ScalarNode::Prim(prim, ids) => {
                        let operands: Vec<Option<Dim>> = ids.iter().map(|id| find(&values, *id).cloned()).collect();
                        eval_prim(*prim, &operands, p.elem(ids[0]), elem, symbols)
                    }
                };
                values.push((id, value));
            }
            find(&values, result).cloned()
        })
        .collect()
}

fn find(values: &[(ScalarId, Option<Dim>)], id: ScalarId) -> Option<&Dim> {
    values.iter().find(|(i, _)| *i == id)?.1.as_ref()
}

/// One primitive on dimensions of type `operand`, giving one of type `result`; `None` if an operand
/// that matters is unknown, or the symbols do not decide.
fn eval_prim(prim: Prim, args: &[Option<Dim>], operand: Elem, result: Elem, symbols: &SymbolTable) -> Option<Dim> {
    if operand.is_float() || result.is_float() {
        return None;
    }
    let numbers: Option<Vec<Scalar>> = args.iter().map(|d| Some(Scalar::Int(d.as_ref()?.as_const()?.into()))).collect();
    if let Some(numbers) = numbers {
        return Some(Dim::from(i64::try_from(prim.eval(&numbers, operand, result).to_i128()).ok()?));
    }
    let truth = |b: bool| Some(Dim::from(i64::from(b)));
    let (x, y) = (args[0].as_ref(), args.get(1).and_then(Option::as_ref));
    let range = |d: &Dim| d.range(symbols);
    match prim {
        Prim::Select => {
            let other = args[2].as_ref();
            return match x.and_then(Dim::as_const) {
                Some(c) => if c != 0 { y } else { other }.cloned(),
                None => y.filter(|_| y == other).cloned(),
            };
        }
        Prim::And if result == Elem::Bool => return [x, y].into_iter().flatten().any(|d| d.is(0)).then(|| Dim::from(0)),
        Prim::Or if result == Elem::Bool => return [x, y].into_iter().flatten().any(|d| d.is(1)).then(|| Dim::from(1)),
        _ => {}
    }
    let x = x?;
    let value = match (prim, y) {
        (Prim::Cast, _) if result == Elem::Bool => return truth(!x.same(&Dim::from(0), symbols)?),
        (Prim::Cast, _) => x.clone(),
        (Prim::Neg, _) => -x.clone(),
        (Prim::Abs, _) => x.maximum(&-x.clone()),
        (Prim::Add, Some(y)) => x.clone() + y.clone(),
        (Prim::Sub, Some(y)) => x.clone() - y.clone(),
        (Prim::Mul, Some(y)) => x.clone() * y.clone(),
        (Prim::Min, Some(y)) => x.minimum(y),
        (Prim::Max, Some(y)) => x.maximum(y),
        (Prim::Div | Prim::RemFloor | Prim::RemTrunc, Some(y)) => {
            let (rx, ry) = (range(x), range(y));
            let rounds_down = prim == Prim::RemFloor || rx.min >= 0 && ry.min > 0;
            if ry.min <= 0 && ry.max >= 0 {
                return None;
            }
            match prim {
                Prim::Div => x.div_exact(y).or_else(|| rounds_down.then(|| x.floor_div(y)))?,
                _ if x.div_exact(y).is_some() || rounds_down => x.rem(y),
                _ => return None,
            }
        }
        (Prim::Eq, Some(y)) => {
            let one = Dim::from(1);
            let apart = || is_at_most(&(x.clone() + one.clone()), y, symbols) || is_at_most(&(y.clone() + one.clone()), x, symbols);
            return x.same(y, symbols).or_else(|| apart().then_some(false)).and_then(truth);
        }
        (Prim::Lt, Some(y)) => return less(x, y, symbols).and_then(truth),
        (Prim::Le, Some(y)) => return less(y, x, symbols).and_then(|b| truth(!b)),
        _ => return None,
    };
    let value = value.simplify(symbols);
    let r = range(&value);
    let fits = match result {
        Elem::Bool => value.is(0) || value.is(1),
        Elem::I32 | Elem::I64 => true,
        Elem::U32 | Elem::U64 => r.min >= 0,
        _ => result.int_range().is_some_and(|(lo, hi)| lo <= r.min.into() && i128::from(r.max) <= hi),
    };
    fits.then_some(value)
}

/// Whether `x < y`, if the symbols decide.
fn less(x: &Dim, y: &Dim, symbols: &SymbolTable) -> Option<bool> {
    if is_at_most(&(x.clone() + Dim::from(1)), y, symbols) {
        return Some(true);
    }
    is_at_most(y, x, symbols).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::{Range, Symbol};
    use crate::ops::*;
    use crate::types::Shape;

    fn symbols() -> SymbolTable {
        SymbolTable::from([(Symbol::new("batch"), Range::ANY), (Symbol::new("seq"), Range { min: 1, max: 512 })])
    }

    fn d(name: &str) -> Dim {
        Dim::symbol(name)
    }

    fn n(value: i64) -> Dim {
        Dim::from(value)
    }

    fn vector(values: &[Dim]) -> Option<SymTensor> {
        Some(SymTensor::vector(values.to_vec()))
    }

    fn scalar(value: Dim) -> Option<SymTensor> {
        Some(SymTensor::scalar(value))
    }

    fn run(op: impl Into<Op>, inputs: &[Option<SymTensor>]) -> Option<SymTensor> {
        let (op, symbols) = (op.into(), symbols());
        // An unknown operand is an i64 vector as long as the first one.
        let len = inputs.iter().flatten().next().map_or(1, |t| t.values.len());
        let ty = |t: &Option<SymTensor>| match t {
            Some(t) => Type::new(t.elem, t.shape.iter().map(|&n| n.into()).collect()),
            None => Type::fixed(Elem::I64, &[len as i64]),
        };
        let types: Vec<Type> = inputs.iter().map(ty).collect();
        let results = op.infer(&mut InferCx::new(&symbols), &types).expect("the operands fit");
        Some(eval(&op, &results, inputs, &symbols)?.remove(0))
    }

    #[test]
    fn the_shape_chain_of_exporters_is_evaluated() {
        // x: [batch, seq, 768] -> reshape to [batch, seq, 12, 768 / 12] -> and back to [0-dim, -1]
        let shape = vector(&[d("batch"), d("seq"), n(768)]);
        let batch = run(Gather { axis: 0 }, &[shape.clone(), scalar(n(0))]).unwrap();
        assert_eq!(batch, SymTensor::scalar(d("batch")));
        let unsqueezed = run(Reshape { shape: Shape::fixed(&[1]) }, &[Some(batch)]);
        let seq = run(Slice { starts: vec![n(1)], steps: vec![1], lens: Shape::fixed(&[1]) }, std::slice::from_ref(&shape));
        let width = run(Gather { axis: 0 }, &[shape.clone(), vector(&[n(-1)])]);
        let head = run(Div {}, &[width, vector(&[n(12)])]);
        let joined = run(Concat { axis: 0 }, &[unsqueezed, seq, vector(&[n(12)]), head]).unwrap();
        assert_eq!(joined, SymTensor::vector(vec![d("batch"), d("seq"), n(12), n(64)]));
        let product = run(Reduce { kind: reduce::ReduceKind::Prod, axes: vec![0], keep: false }, &[Some(joined)]).unwrap();
        assert_eq!(product, SymTensor::scalar(d("batch") * d("seq") * n(768)));
    }

    #[test]
    fn expand_shapes_with_minus_one_are_selected() {
        let shape = vector(&[d("batch"), n(-1), d("seq")]);
        let keeps = run(Eq {}, &[shape.clone(), scalar(n(-1))]).unwrap();
        assert_eq!((keeps.elem, keeps.values.clone()), (Elem::Bool, vec![n(0), n(1), n(0)]));
        let chosen = run(Select {}, &[Some(keeps), vector(&[n(1), n(1), n(1)]), shape]).unwrap();
        assert_eq!(chosen.values, [d("batch"), n(1), d("seq")]);
    }

    #[test]
    fn operands_that_do_not_matter_may_be_unknown() {
        let yes = Some(SymTensor { elem: Elem::Bool, shape: vec![], values: vec![n(1)] });
        assert_eq!(run(Select {}, &[yes.clone(), scalar(d("seq")), None]).unwrap().values, [d("seq")]);
        assert_eq!(run(Select {}, &[yes, None, scalar(d("seq"))]), None);
        assert_eq!(run(Add {}, &[scalar(d("seq")), None]), None);
    }

    #[test]
    fn ranges_decide_or_nothing_does() {
        let seq = scalar(d("seq"));
        let decided = |op: Op, y: i64| run(op, &[seq.clone(), scalar(n(y))]).map(|t| t.values[0].clone());
        assert_eq!(decided(Lt {}.into(), 513), Some(n(1)));
        assert_eq!(decided(Lt {}.into(), 512), None);
        assert_eq!(decided(Lt {}.into(), 1), Some(n(0)));
        assert_eq!(decided(Le {}.into(), 512), Some(n(1)));
        assert_eq!(decided(Eq {}.into(), 0), Some(n(0)));
        assert_eq!(decided(Eq {}.into(), 7), None);
        assert_eq!(decided(Min {}.into(), 512), Some(d("seq")));
        assert_eq!(decided(Max {}.into(), 600), Some(n(600)));
        assert_eq!(decided(Div {}.into(), 2), Some(d("seq").floor_div(&n(2))));
        assert_eq!(decided(RemTrunc {}.into(), 2), Some(d("seq").rem(&n(2))));
        assert_eq!(run(Div {}, &[scalar(n(0) - d("seq")), scalar(n(2))]), None, "truncation is not rounding down");
        assert_eq!(run(Div {}, &[scalar(d("seq")), scalar(d("seq") - n(1))]), None, "the divisor may be 0");
        assert_eq!(run(Abs {}, &[scalar(n(0) - d("seq"))]).unwrap().values, [d("seq")]);
    }

    #[test]
    fn casts_keep_what_fits() {
        let cast = |to, value: Dim| run(Cast { to }, &[scalar(value)]).map(|t| t.values[0].clone());
        assert_eq!(cast(Elem::I32, d("seq")), Some(d("seq")));
        assert_eq!(cast(Elem::Bool, d("seq")), Some(n(1)));
        assert_eq!(cast(Elem::Bool, d("seq") - n(1)), None);
        assert_eq!(cast(Elem::U8, n(300)), Some(n(44)));
        assert_eq!(cast(Elem::U8, d("seq")), None);
        assert_eq!(cast(Elem::U16, d("seq")), Some(d("seq")));
        assert_eq!(cast(Elem::F32, d("seq")), None);
    }

    #[test]
    fn scatter_moves_both_of_its_data_operands() {
        let scatter = ScatterNd { reduction: ScatterReduction::Replace };
        let at = Some(SymTensor { elem: Elem::I64, shape: vec![1, 1], values: vec![n(1)] });
        let result = run(scatter, &[vector(&[d("batch"), n(1), n(3)]), at, vector(&[d("seq")])]).unwrap();
        assert_eq!(result.values, [d("batch"), d("seq"), n(3)]);
    }

    #[test]
    fn sizes_reach_data_and_large_tensors_do_not() {
        let dims = Dims { values: vec![d("seq"), d("batch") * n(2)], shape: vec![2] };
        assert_eq!(run(dims, &[]).unwrap().values, [d("seq"), d("batch") * n(2)]);
        let iota = |n: i64| run(Iota { elem: Elem::I32, shape: Shape::fixed(&[n]), axis: 0 }, &[]);
        assert_eq!(iota(3).unwrap().values, [n(0), n(1), n(2)]);
        assert_eq!(iota(1025), None);
        assert_eq!(run(Reshape { shape: Shape::fixed(&[1]) }, &[None]), None);
    }

    #[test]
    fn tensors_come_back() {
        let t = Tensor::of(&[2, 2], vec![1i32, -2, 3, 4]);
        assert_eq!(SymTensor::from_tensor(&t).unwrap().to_tensor(), Some(t));
        assert_eq!(SymTensor::from_tensor(&Tensor::of(&[1], vec![1f32])), None);
        assert_eq!(SymTensor::vector(vec![d("seq")]).to_tensor(), None);
    }
}
