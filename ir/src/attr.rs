//! Attributes of operators: how typed fields become text and come back.

use crate::dim::Dim;
use crate::graph::Graph;
use crate::quant::{Granularity, Scheme};
use crate::types::{Elem, Shape};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The value of an attribute as the text form has it.
#[derive(Clone, Debug)]
pub enum AttrValue {
    /// A word: `true`, `reflect`, `f32`.
    Word(String),
    /// An integer or a dimension.
    Dim(Dim),
    /// A float, written so that it reads back the same.
    Float(f64),
    /// A list in brackets.
    List(Vec<AttrValue>),
    /// A nested graph.
    Graph(Arc<Graph>),
}

/// A type that an attribute field may have.
pub trait Attr: Sized {
    /// The value for the text form.
    fn to_value(&self) -> AttrValue;
    /// The field, or what was expected instead.
    ///
    /// # Errors
    /// A noun phrase that says what the field takes.
    fn from_value(v: &AttrValue) -> Result<Self, String>;
    /// The field where the text form leaves it out, none if it has to be given.
    fn absent() -> Option<Self> {
        None
    }
}

impl Attr for bool {
    fn to_value(&self) -> AttrValue {
        AttrValue::Word(self.to_string())
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        match v {
            AttrValue::Word(w) if w == "true" => Ok(true),
            AttrValue::Word(w) if w == "false" => Ok(false),
            _ => Err("true or false".into()),
        }
    }
}

impl Attr for Dim {
    fn to_value(&self) -> AttrValue {
        AttrValue::Dim(self.clone())
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        match v {
            AttrValue::Dim(d) => Ok(d.clone()),
            AttrValue::Word(w) => Ok(Dim::symbol(w)),
            _ => Err("a dimension".into()),
        }
    }
}

impl Attr for i64 {
    fn to_value(&self) -> AttrValue {
        AttrValue::Dim(Dim::from(*self))
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        match v {
            AttrValue::Dim(d) => d.as_const().ok_or_else(|| "an integer".into()),
            _ => Err("an integer".into()),
        }
    }
}

impl Attr for usize {
    fn to_value(&self) -> AttrValue {
        AttrValue::Dim(Dim::from(*self))
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        i64::from_value(v).ok().and_then(|n| usize::try_from(n).ok()).ok_or_else(|| "an integer that is not negative".into())
    }
}

impl<T: Attr> Attr for Vec<T> {
    fn to_value(&self) -> AttrValue {
        AttrValue::List(self.iter().map(Attr::to_value).collect())
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        match v {
            AttrValue::List(l) => l.iter().map(T::from_value).collect(),
            _ => Err("a list in brackets".into()),
        }
    }
}

impl<T: Attr> Attr for Option<T> {
    fn to_value(&self) -> AttrValue {
        self.as_ref().map_or_else(|| AttrValue::Word("none".into()), Attr::to_value)
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        match v {
            AttrValue::Word(w) if w == "none" => Ok(None),
            v => T::from_value(v).map(Some).map_err(|expected| format!("none, or {expected}")),
        }
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl Attr for Shape {
    fn to_value(&self) -> AttrValue {
        self.0.to_value()
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        Ok(Shape(Vec::from_value(v)?))
    }
}

impl Attr for Elem {
    fn to_value(&self) -> AttrValue {
        AttrValue::Word(self.name().into())
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        match v {
            AttrValue::Word(w) => Elem::from_name(w).ok_or_else(|| "an element type".into()),
            _ => Err("an element type".into()),
        }
    }
}

impl Attr for Scheme {
    fn to_value(&self) -> AttrValue {
        let word = |w: &str| AttrValue::Word(w.into());
        let granularity = match self.granularity {
            Granularity::Tensor => vec![word("tensor")],
            Granularity::Axis { axis } => vec![word("axis"), i64::from(axis).to_value()],
            Granularity::Blocks { axis, size } => vec![word("blocks"), i64::from(axis).to_value(), i64::from(size).to_value()],
        };
        AttrValue::List(vec![
            self.storage.to_value(),
            AttrValue::List(vec![i64::from(self.min).to_value(), i64::from(self.max).to_value()]),
            AttrValue::List(granularity),
            word(if self.symmetric { "symmetric" } else { "asymmetric" }),
            self.scale.to_value(),
        ])
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        let parse = || {
            let AttrValue::List(parts) = v else { return None };
            let [storage, range, granularity, AttrValue::Word(symmetry), scale] = parts.as_slice() else { return None };
            let [min, max] = <[i64; 2]>::try_from(Vec::from_value(range).ok()?).ok()?;
            let AttrValue::List(granularity) = granularity else { return None };
            let number = |v| u32::try_from(i64::from_value(v).ok()?).ok();
            let granularity = match granularity.as_slice() {
                [AttrValue::Word(w)] if w == "tensor" => Granularity::Tensor,
                [AttrValue::Word(w), axis] if w == "axis" => Granularity::Axis { axis: number(axis)? },
                [AttrValue::Word(w), axis, size] if w == "blocks" => Granularity::Blocks { axis: number(axis)?, size: number(size)? },
                _ => return None,
            };
            let symmetric = match symmetry.as_str() {
                "symmetric" => true,
                "asymmetric" => false,
                _ => return None,
            };
            Some(Scheme {
                storage: Elem::from_value(storage).ok()?,
                min: min.try_into().ok()?,
                max: max.try_into().ok()?,
                granularity,
                symmetric,
                scale: Elem::from_value(scale).ok()?,
            })
        };
        parse().ok_or_else(|| "a scheme such as [i8, [-128, 127], [axis, 0], symmetric, f32]".into())
    }
}

/// A float attribute: compared and hashed by its bits, so that operators can be keys.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Float(u64);

impl Float {
    /// Its value.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl From<f64> for Float {
    fn from(x: f64) -> Float {
        Float(x.to_bits())
    }
}

impl From<f32> for Float {
    fn from(x: f32) -> Float {
        Float(f64::from(x).to_bits())
    }
}

impl fmt::Debug for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.get())
    }
}

impl Attr for Float {
    fn to_value(&self) -> AttrValue {
        AttrValue::Float(self.get())
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        match v {
            AttrValue::Float(x) => Ok(Float::from(*x)),
            AttrValue::Dim(d) => d.as_const().map(|n| Float::from(n as f64)).ok_or_else(|| "a number".into()),
            _ => Err("a number".into()),
        }
    }
}

/// A nested graph: the body of a fused node. Compared by its text form.
#[derive(Clone)]
pub struct Body(pub Arc<Graph>);

impl Body {
    fn text(&self) -> String {
        self.0.to_string()
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Body) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Body {}

impl PartialOrd for Body {
    fn partial_cmp(&self, other: &Body) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Body {
    fn cmp(&self, other: &Body) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.text().cmp(&other.text()) }
    }
}

impl Hash for Body {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text().hash(state);
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Attr for Body {
    fn to_value(&self) -> AttrValue {
        AttrValue::Graph(self.0.clone())
    }
    fn from_value(v: &AttrValue) -> Result<Self, String> {
        match v {
            AttrValue::Graph(g) => Ok(Body(g.clone())),
            _ => Err("a nested graph in braces".into()),
        }
    }
}

/// Declares an enumeration whose variants are words in the text form.
#[macro_export]
macro_rules! word_attr {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $crate::attr::Attr for $name {
            fn to_value(&self) -> $crate::attr::AttrValue {
                $crate::attr::AttrValue::Word(match self { $($name::$variant => $word,)* }.into())
            }
            fn from_value(v: &$crate::attr::AttrValue) -> Result<Self, String> {
                match v {
                    $($crate::attr::AttrValue::Word(w) if w == $word => Ok($name::$variant),)*
                    _ => Err(concat!("one of:" $(, " ", $word)*).into()),
                }
            }
        }
    };
}
