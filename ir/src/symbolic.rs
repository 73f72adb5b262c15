//! Symbolic evaluation of small integer tensors.
//!
//! Models compute shapes with the same operators as data: take the sizes of a tensor, pick some,
//! multiply, join, reshape to the result. [`eval`] carries such arithmetic out on dimensions instead of
//! numbers. Operators that move elements are run by their own reference evaluation on numbered
//! elements, and elementwise operators by their scalar programs, so none needs code here.
//!
//! Sizes are taken not to overflow 32 and 64 bits; in narrower types it must be provable.

use crate::dim::{Bindings, Dim, SymbolTable};
use crate::ops::support::{Broadcast, is_at_most, lines, ravel, unravel};
use crate::ops::{ArgReduce, CumSum, Op, reduce::ReduceKind, scatter_elements::ScatterReduction};
use crate::scalar::{Prim, ScalarId, ScalarNode, ScalarProgram};
use crate::tensor::{Scalar, Tensor};
use crate::types::{Elem, Type};

/// The largest number of elements of a tensor that is evaluated symbolically.
pub const MAX_ELEMENTS: usize = 1024;

/// The largest number of elements of a tensor in which some are no numbers: what shapes are computed from is about as long as
/// they are, and what is longer is data.
pub const MAX_SIZES: usize = 64;

/// The largest [`Dim::size`] of an element. What operators are lowered to has sizes that are a few times as large.
pub const MAX_SIZE: usize = Dim::MAX_SIZE / 4;

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
/// symbols do not decide, for operators whose results are no dimensions, and beyond [`MAX_SIZES`] and [`MAX_SIZE`].
/// `result_types` are what inference says.
pub fn eval(op: &Op, result_types: &[Type], inputs: &[Option<SymTensor>], symbols: &SymbolTable) -> Option<Vec<SymTensor>> {
    let results = eval_any(op, result_types, inputs, symbols)?;
    let few = |t: &SymTensor| t.values.len() <= MAX_SIZES || t.values.iter().all(|d| d.as_const().is_some());
    results.iter().all(few).then_some(results)
}

fn eval_any(op: &Op, result_types: &[Type], inputs: &[Option<SymTensor>], symbols: &SymbolTable) -> Option<Vec<SymTensor>> {
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
        Op::CumSum(sum) => single(eval_cum_sum(sum, inputs[0].as_ref()?, symbols)?),
        Op::ArgReduce(arg) => single(eval_arg_reduce(arg, inputs[0].as_ref()?, symbols)?),
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

fn eval_cum_sum(op: &CumSum, x: &SymTensor, symbols: &SymbolTable) -> Option<Vec<Dim>> {
    let mut sums = vec![Dim::from(0); x.values.len()];
    for line in lines(&x.shape, op.axis) {
        let mut places: Vec<usize> = line.collect();
        if op.reverse {
            places.reverse();
        }
        let mut sum = Dim::from(0);
        for at in places {
            let with = eval_prim(Prim::Add, &[Some(sum.clone()), Some(x.values[at].clone())], x.elem, x.elem, symbols)?;
            sums[at] = if op.exclusive { sum } else { with.clone() };
            sum = with;
        }
    }
    Some(sums)
}

fn eval_arg_reduce(op: &ArgReduce, x: &SymTensor, symbols: &SymbolTable) -> Option<Vec<Dim>> {
    let prim = if op.largest { Prim::Max } else { Prim::Min };
    let position = |line: &mut dyn Iterator<Item = usize>| {
        let mut best = x.values[line.next()?].clone();
        let mut at = Dim::from(0);
        for (i, element) in line.map(|place| &x.values[place]).enumerate() {
            let (low, high) = if op.largest { (&best, element) } else { (element, &best) };
            // Among equals the first one stays, unless the last one is meant.
            let better = if op.last { not(less(high, low, symbols)) } else { less(low, high, symbols) };
            at = choose(&better, &Dim::from(i + 1), &at, symbols).simplify(symbols);
            best = eval_prim(prim, &[Some(best.clone()), Some(element.clone())], x.elem, x.elem, symbols)?;
            (at.size() <= MAX_SIZE).then_some(())?;
        }
        Some(at)
    };
    lines(&x.shape, op.axis).map(|mut line| position(&mut line)).collect()
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
    let (x, y) = (args[0].as_ref(), args.get(1).and_then(Option::as_ref));
    let range = |d: &Dim| d.range(symbols);
    match prim {
        Prim::Select => {
            let other = args[2].as_ref();
            match x.and_then(Dim::as_const) {
                Some(c) => return if c != 0 { y } else { other }.cloned(),
                None if y == other => return y.cloned(),
                None => {}
            }
        }
        Prim::And if result == Elem::Bool && [x, y].into_iter().flatten().any(|d| d.is(0)) => return Some(Dim::from(0)),
        Prim::Or if result == Elem::Bool && [x, y].into_iter().flatten().any(|d| d.is(1)) => return Some(Dim::from(1)),
        _ => {}
    }
    let x = x?;
    let value = match (prim, y) {
        (Prim::Cast, _) if result == Elem::Bool => not(equal(x, &Dim::from(0), symbols)),
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
        // An exponent of more than a few is no power of a size.
        (Prim::Pow, Some(y)) => match y.as_const() {
            Some(n @ 0..=8) => (0..n).map(|_| x.clone()).product(),
            _ => return None,
        },
        (Prim::Eq, Some(y)) => equal(x, y, symbols),
        (Prim::Lt, Some(y)) => less(x, y, symbols),
        (Prim::Le, Some(y)) => not(less(y, x, symbols)),
        (Prim::Not, _) if result == Elem::Bool => not(x.clone()),
        (Prim::And, Some(y)) if result == Elem::Bool => x.minimum(y),
        (Prim::Or, Some(y)) if result == Elem::Bool => x.maximum(y),
        (Prim::Xor, Some(y)) if result == Elem::Bool => not(equal(x, y, symbols)),
        (Prim::Select, Some(y)) => choose(x, y, args[2].as_ref()?, symbols),
        _ => return None,
    };
    let value = value.simplify(symbols);
    let r = range(&value);
    let fits = match result {
        Elem::Bool => r.min >= 0 && r.max <= 1,
        Elem::I32 | Elem::I64 => true,
        Elem::U32 | Elem::U64 => r.min >= 0,
        _ => result.int_range().is_some_and(|(lo, hi)| lo <= r.min.into() && i128::from(r.max) <= hi),
    };
    (fits && value.size() <= MAX_SIZE).then_some(value)
}

/// 1 where `x < y`, else 0.
fn less(x: &Dim, y: &Dim, symbols: &SymbolTable) -> Dim {
    let (zero, one) = (Dim::from(0), Dim::from(1));
    if is_at_most(&(x.clone() + one.clone()), y, symbols) {
        one
    } else if is_at_most(y, x, symbols) {
        zero
    } else {
        (y.clone() - x.clone()).maximum(&zero).minimum(&one)
    }
}

/// 1 where `x == y`, else 0.
fn equal(x: &Dim, y: &Dim, symbols: &SymbolTable) -> Dim {
    let (zero, one) = (Dim::from(0), Dim::from(1));
    let above = |x: &Dim, y: &Dim| is_at_most(&(y.clone() + one.clone()), x, symbols);
    match x.same(y, symbols) {
        Some(true) => one,
        Some(false) => zero,
        None if above(x, y) || above(y, x) => zero,
        None => {
            let d = x.clone() - y.clone();
            not(d.maximum(&-d.clone()).maximum(&zero).minimum(&one))
        }
    }
}

/// 1 for 0 and 0 for 1.
fn not(x: Dim) -> Dim {
    Dim::from(1) - x
}

/// `x` where `c` is 1, `y` where it is 0.
fn choose(c: &Dim, x: &Dim, y: &Dim, symbols: &SymbolTable) -> Dim {
    let is = |condition: Dim| condition.simplify(symbols) == *c;
    if is(less(x, y, symbols)) || is(not(less(y, x, symbols))) {
        x.minimum(y)
    } else if is(less(y, x, symbols)) || is(not(less(x, y, symbols))) {
        x.maximum(y)
    } else {
        y.clone() + c.clone() * (x.clone() - y.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dim::{Range, Symbol};
    use crate::ops::*;
    use crate::types::Shape;

    fn symbols() -> SymbolTable {
        let batch = Range { min: 1, ..Range::ANY };
        SymbolTable::from([(Symbol::new("batch"), batch), (Symbol::new("seq"), Range { min: 1, max: 512 })])
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
        let value = |op: Op, y: i64| run(op, &[seq.clone(), scalar(n(y))]).map(|t| t.values[0].clone());
        let decided = |op: Op, y: i64| value(op, y).filter(|d| !matches!(d.range(&symbols()), Range { min: 0, max: 1 }));
        assert_eq!(decided(Lt {}.into(), 513), Some(n(1)));
        assert_eq!(decided(Lt {}.into(), 512), None);
        assert_eq!(decided(Lt {}.into(), 1), Some(n(0)));
        assert_eq!(decided(Le {}.into(), 512), Some(n(1)));
        assert_eq!(decided(Eq {}.into(), 0), Some(n(0)));
        assert_eq!(decided(Eq {}.into(), 7), None);
        assert!(decided(Pow {}.into(), 2) == Some(d("seq") * d("seq")) && value(Pow {}.into(), 9).is_none());
        assert_eq!(decided(Min {}.into(), 512), Some(d("seq")));
        assert_eq!(decided(Max {}.into(), 600), Some(n(600)));
        assert_eq!(decided(Div {}.into(), 2), Some(d("seq").floor_div(&n(2))));
        assert_eq!(value(RemTrunc {}.into(), 2), Some(d("seq").rem(&n(2))));
        assert_eq!(run(Div {}, &[scalar(n(0) - d("seq")), scalar(n(2))]), None, "truncation is not rounding down");
        assert_eq!(run(Div {}, &[scalar(d("seq")), scalar(d("seq") - n(1))]), None, "the divisor may be 0");
        assert_eq!(run(Abs {}, &[scalar(n(0) - d("seq"))]).unwrap().values, [d("seq")]);
    }

    /// The value of an operator on sizes at every `batch` and `seq` is that of numbers.
    fn same_as_numbers(op: impl Into<Op>, inputs: &[Vec<Dim>]) {
        let op = op.into();
        let operands: Vec<Option<SymTensor>> = inputs.iter().map(|v| vector(v)).collect();
        let found = run(op.clone(), &operands).unwrap();
        assert!(found.values.iter().any(|d| d.as_const().is_none()), "{found:?}");
        for (batch, seq) in [(1, 1), (1, 2), (2, 1), (3, 7), (7, 3), (4, 4), (600, 512), (2, 512)] {
            let at = Bindings::from([(Symbol::new("batch"), batch), (Symbol::new("seq"), seq)]);
            let value = |d: &Dim| d.eval(&at).unwrap();
            let numbers: Vec<Option<SymTensor>> =
                inputs.iter().map(|v| vector(&v.iter().map(|d| n(value(d))).collect::<Vec<_>>())).collect();
            let wanted: Vec<i64> = run(op.clone(), &numbers).unwrap().values.iter().map(value).collect();
            assert_eq!(found.values.iter().map(value).collect::<Vec<_>>(), wanted, "{op:?} at {at:?}: {found:?}");
        }
    }

    #[test]
    fn comparisons_choose_sizes() {
        let x = vec![d("seq"), d("batch") + n(2), n(3), d("seq") - d("batch")];
        let y = vec![d("batch"), d("seq"), d("seq"), n(0)];
        for op in [Op::from(Lt {}), Le {}.into(), Eq {}.into(), Min {}.into()] {
            same_as_numbers(op, &[x.clone(), y.clone()]);
        }
        same_as_numbers(CumSum { axis: 0, exclusive: true, reverse: true }, std::slice::from_ref(&x));
        same_as_numbers(CumSum { axis: 0, exclusive: false, reverse: false }, std::slice::from_ref(&y));
        for (largest, last) in [(true, true), (true, false), (false, true), (false, false)] {
            same_as_numbers(ArgReduce { largest, axis: 0, keep: true, last }, &[vec![d("seq"), d("batch"), n(3)]]);
        }
    }

    #[test]
    fn conditions_on_sizes_are_sizes() {
        let bool_of = |op: Op, x: &[Option<SymTensor>]| run(op, x).unwrap();
        let long = bool_of(Lt {}.into(), &[scalar(n(128)), scalar(d("seq"))]);
        let odd = bool_of(Eq {}.into(), &[scalar(d("seq").rem(&n(2))), scalar(n(1))]);
        let at = |t: &SymTensor, seq: i64| t.values[0].eval(&Bindings::from([(Symbol::new("seq"), seq)]));
        for seq in [1, 2, 127, 128, 129, 130, 511, 512] {
            let (l, o) = (seq > 128, seq % 2 == 1);
            let both = |op: Op| at(&run(op, &[Some(long.clone()), Some(odd.clone())]).unwrap(), seq);
            assert_eq!(both(And {}.into()), Some((l && o).into()));
            assert_eq!(both(Or {}.into()), Some((l || o).into()));
            assert_eq!(both(Xor {}.into()), Some((l != o).into()));
            assert_eq!(at(&run(Not {}, &[Some(odd.clone())]).unwrap(), seq), Some((!o).into()));
            let chosen = run(Select {}, &[Some(odd.clone()), scalar(d("seq") * n(3)), scalar(n(5))]).unwrap();
            assert_eq!(at(&chosen, seq), Some(if o { 3 * seq } else { 5 }));
        }
        let clipped = run(Select {}, &[Some(long), scalar(n(128)), scalar(d("seq"))]).unwrap();
        assert_eq!(clipped.values, [d("seq").minimum(&n(128))], "a choice by a comparison of both is the smaller one");
    }

    #[test]
    fn what_grows_too_large_is_not_followed() {
        let mut x = scalar(d("seq") + d("batch"));
        let squares = (0..40).take_while(|_| {
            x = x.take().and_then(|x| run(Mul {}, &[Some(x.clone()), Some(x)]));
            x.is_some()
        });
        assert!((1..8).contains(&squares.count()));
        let many: Vec<Dim> = (0..65).map(|i| d("seq") + n(i)).collect();
        assert_eq!(run(Add {}, &[vector(&many), scalar(n(1))]), None);
    }

    #[test]
    fn casts_keep_what_fits() {
        let cast = |to, value: Dim| run(Cast { to }, &[scalar(value)]).map(|t| t.values[0].clone());
        assert_eq!(cast(Elem::I32, d("seq")), Some(d("seq")));
        assert_eq!(cast(Elem::Bool, d("seq")), Some(n(1)));
        assert_eq!(cast(Elem::Bool, d("seq") - n(1)), Some((d("seq") - n(1)).minimum(&n(1))));
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
