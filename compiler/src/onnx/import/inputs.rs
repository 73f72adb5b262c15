//! The inputs of a model: their types, the symbols of their shapes, and the user's wishes about both.

use super::{Entry, Importer};
use crate::onnx::error::Error;
use crate::onnx::model::{Size, ValueInfo, ValueType, require_elem};
use std::collections::{BTreeMap, BTreeSet};
use tfc_ir::dim::{Dim, Range, Symbol};
use tfc_ir::types::{Shape, Type};

/// What the user demands of a dimension.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DimSpec {
    /// It has this size.
    Fixed(i64),
    /// It stays a symbol, within this range.
    Range(Range),
}

/// How a model is imported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ImportOptions {
    /// Shapes of inputs, by name.
    pub shapes: BTreeMap<String, Vec<i64>>,
    /// Sizes or ranges of dimensions, by the name that the model or the symbol has.
    pub dims: BTreeMap<String, DimSpec>,
}

/// Declares the inputs that are not constants. Returns the dimensions that the model names.
///
/// # Errors
/// When an input has no usable type, or the options name what the model does not have or contradict it.
pub(super) fn declare(cx: &mut Importer, options: &ImportOptions) -> Result<BTreeMap<String, Dim>, Error> {
    let g = &cx.model.graph;
    let constants: BTreeSet<&str> = g.initializers.iter().map(|(n, _)| &**n).collect();
    let inputs: Vec<&ValueInfo> = g.inputs.iter().filter(|i| !constants.contains(&*i.name)).collect();
    for name in options.shapes.keys() {
        if !inputs.iter().any(|i| &*i.name == name.as_str()) {
            return Err(Error::invalid("", format!("a shape is given for `{name}`, but the model has no such input"))
                .help(format!("its inputs are: {}", list(inputs.iter().map(|i| &*i.name)))));
        }
    }
    let declared = inputs.iter().map(|i| declared_shape(i, options)).collect::<Result<Vec<_>, _>>()?;
    let mut symbols = Symbols::new(&inputs, &declared);
    symbols.fix_by_shapes(&inputs, &declared, options)?;
    symbols.apply_dims(options)?;
    for (input, (elem, sizes)) in inputs.iter().zip(&declared) {
        let shape: Shape = sizes.iter().enumerate().map(|(axis, s)| symbols.dim(&input.name, axis, s)).collect();
        let ty = Type::new(*elem, shape);
        if ty.shape.elements().as_const() == Some(i64::MAX) {
            return Err(Error::invalid(format!("input `{}`", input.name), format!("a tensor {ty} is too large")));
        }
        for d in &ty.shape.0 {
            let mut used = BTreeSet::new();
            d.collect_symbols(&mut used);
            for s in used {
                let range = symbols.ranges.get(&s).copied().unwrap_or(Range::ANY);
                cx.graph.symbols.insert(s, range);
            }
        }
        let v = cx.graph.add_input(&input.name, ty);
        let v = cx.adopt(v);
        cx.bind(&input.name, Entry::Known(v))?;
    }
    Ok(symbols.named)
}

type Declared = (tfc_ir::types::Elem, Vec<Size>);

fn declared_shape(input: &ValueInfo, options: &ImportOptions) -> Result<Declared, Error> {
    let place = format!("input `{}`", input.name);
    let (elem, shape) = match &input.ty {
        None => return Err(Error::invalid(place, "the input has no type")),
        Some(ValueType::Other(what)) => return Err(Error::unsupported("input", &input.name, format!("the input is {what}"))),
        Some(ValueType::Tensor { elem, shape }) => (require_elem(*elem, &place)?, shape),
    };
    let given = options.shapes.get(&*input.name);
    match (shape, given) {
        (Some(s), Some(g)) if s.len() != g.len() => {
            Err(Error::invalid(place, format!("the given shape {g:?} has {} axes, but the model declares {}", g.len(), s.len())))
        }
        (Some(s), _) => Ok((elem, s.clone())),
        (None, Some(g)) => Ok((elem, vec![Size::Unknown; g.len()])),
        (None, None) => Err(Error::invalid(place, "the model does not say how many axes the input has")
            .help(format!("give its shape, for example --shape {}=1x128", input.name))),
    }
}

/// The dimensions of the inputs.
struct Symbols {
    /// Dimensions that the model names.
    named: BTreeMap<String, Dim>,
    /// Dimensions without a name, by input and axis.
    unnamed: BTreeMap<(String, usize), Dim>,
    ranges: BTreeMap<Symbol, Range>,
}

impl Symbols {
    fn new(inputs: &[&ValueInfo], declared: &[Declared]) -> Symbols {
        let mut taken = BTreeSet::new();
        let mut s = Symbols { named: BTreeMap::new(), unnamed: BTreeMap::new(), ranges: BTreeMap::new() };
        let sizes = || inputs.iter().zip(declared).flat_map(|(i, (_, sizes))| sizes.iter().enumerate().map(move |(a, s)| (i, a, s)));
        // Plain names first, so that names which need a spelling as an identifier give way to them.
        for plain in [true, false] {
            for (_, _, size) in sizes() {
                if let Size::Named(name) = size
                    && !s.named.contains_key(name)
                    && is_identifier(name) == plain
                {
                    let dim = polynomial(name, &s.named).unwrap_or_else(|| Dim::symbol(&unique(&identifier(name), &mut taken)));
                    s.named.insert(name.clone(), dim);
                }
            }
        }
        for (input, axis, size) in sizes() {
            if *size == Size::Unknown {
                let name = unique(&identifier(&format!("{}_d{axis}", input.name)), &mut taken);
                s.unnamed.insert((input.name.to_string(), axis), Dim::symbol(&name));
            }
        }
        s
    }

    fn dim(&self, input: &str, axis: usize, size: &Size) -> Dim {
        match size {
            Size::Fixed(n) => Dim::from(*n),
            Size::Named(name) => self.named[name].clone(),
            Size::Unknown => self.unnamed[&(input.to_string(), axis)].clone(),
        }
    }

    fn substitute(&mut self, symbol: &Symbol, n: i64) {
        for d in self.named.values_mut().chain(self.unnamed.values_mut()) {
            *d = d.substitute(&|s| (s == symbol).then(|| Dim::from(n)));
        }
    }

    /// Gives symbols the sizes that `--shape` names.
    fn fix_by_shapes(&mut self, inputs: &[&ValueInfo], declared: &[Declared], options: &ImportOptions) -> Result<(), Error> {
        // Sums and products of symbols are compared when the symbols themselves are fixed.
        for bare in [true, false] {
            for (input, (_, sizes)) in inputs.iter().zip(declared) {
                let Some(given) = options.shapes.get(&*input.name) else { continue };
                for (axis, (size, &n)) in sizes.iter().zip(given).enumerate() {
                    let place = format!("input `{}`", input.name);
                    if !(0..=i64::from(i32::MAX)).contains(&n) {
                        return Err(Error::invalid(place, format!("the given size {n} of axis {axis} is not between 0 and {}", i32::MAX)));
                    }
                    let dim = self.dim(&input.name, axis, size);
                    match (dim.as_symbol().cloned(), dim.as_const()) {
                        (Some(s), _) if bare => self.substitute(&s, n),
                        (_, Some(c)) if c != n => {
                            return Err(Error::invalid(
                                place,
                                format!("axis {axis} is given the size {n}, but it is {c} in the model or by another input"),
                            ));
                        }
                        (None, None) if !bare => {
                            return Err(Error::invalid(
                                place,
                                format!("axis {axis} has the size {dim}, which the given size {n} does not determine"),
                            )
                            .help("fix its symbols with --dim"));
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives symbols the sizes and ranges that `--dim` names.
    fn apply_dims(&mut self, options: &ImportOptions) -> Result<(), Error> {
        let mut known: BTreeMap<String, Dim> = self.named.clone();
        for d in self.named.values().chain(self.unnamed.values()) {
            if let Some(s) = d.as_symbol() {
                known.insert(s.name().into(), d.clone());
            }
        }
        for (name, spec) in &options.dims {
            let Some(dim) = known.get(name) else {
                let mut names: Vec<&str> = known.keys().map(String::as_str).collect();
                names.sort_unstable();
                let help =
                    if names.is_empty() { "it has no free dimensions".into() } else { format!("its dimensions are: {}", list(names)) };
                return Err(Error::invalid("", format!("the model has no dimension `{name}`")).help(help));
            };
            let (min, max) = match *spec {
                DimSpec::Fixed(n) => (n, n),
                DimSpec::Range(r) => (r.min, r.max),
            };
            if min < 0 || max < min || max > i64::from(i32::MAX) {
                return Err(Error::invalid(
                    "",
                    format!("the dimension `{name}` cannot be {min}..{max}: 0 <= minimum <= maximum < 2^31 must hold"),
                ));
            }
            match (dim.as_symbol().cloned(), dim.as_const()) {
                (Some(s), _) if min == max => self.substitute(&s, min),
                (Some(s), _) => {
                    self.ranges.insert(s, Range { min, max });
                }
                (None, Some(c)) if (min..=max).contains(&c) => {}
                (None, Some(c)) => {
                    return Err(Error::invalid(
                        "",
                        format!("the dimension `{name}` is given as {min}..{max}, but a given shape makes it {c}"),
                    ));
                }
                (None, None) => {
                    return Err(Error::invalid("", format!("the dimension `{name}` is {dim}; fix or bound its symbols instead")));
                }
            }
        }
        Ok(())
    }
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A spelling of `name` as an identifier.
fn identifier(name: &str) -> String {
    let mut out: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    out.truncate(64);
    if !is_identifier(&out) {
        out.insert(0, 'd');
    }
    out
}

fn unique(name: &str, taken: &mut BTreeSet<String>) -> String {
    let fresh = (1..)
        .map(|i| if i == 1 { name.to_string() } else { format!("{name}_{i}") })
        .find(|n| !taken.contains(n))
        .expect("some number is free");
    taken.insert(fresh.clone());
    fresh
}

/// A size such as `past + 2*seq` over names that are sizes themselves; exporters of decoders write them.
fn polynomial(text: &str, known: &BTreeMap<String, Dim>) -> Option<Dim> {
    let mut sum = Dim::from(0);
    for term in text.split('+') {
        let mut product = Dim::from(1);
        for factor in term.split('*') {
            let factor = factor.trim();
            product = product
                * match factor.parse::<i64>() {
                    Ok(n) => Dim::from(n),
                    Err(_) => known.get(factor)?.clone(),
                };
        }
        sum = sum + product;
    }
    // A name on its own is a symbol, and so is something that is no size.
    (sum.as_symbol().is_none() && sum.as_const().is_none()).then_some(sum)
}
