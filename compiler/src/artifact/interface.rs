//! What a manifest says about the C interface, in the form that the generators of source text need.

use super::ArtifactError;
use std::collections::BTreeSet;
use tfc_runtime::abi::Status;
use tfc_runtime::elem::Elem;
use tfc_runtime::expr::{Bindings, Expr, Op};
use tfc_runtime::manifest::{Manifest, TensorInfo};
use tfc_runtime::weights::PAGE;

/// The interface of a compiled model.
pub struct Interface<'a> {
    /// What it is read from.
    pub manifest: &'a Manifest,
    /// Inputs in the order of the ABI.
    pub inputs: Vec<Tensor<'a>>,
    /// Outputs in the order of the ABI.
    pub outputs: Vec<Tensor<'a>>,
}

/// An input or an output.
pub struct Tensor<'a> {
    /// Names and type texts.
    pub info: &'a TensorInfo,
    /// Element type.
    pub elem: Elem,
    /// Sizes along each axis.
    pub shape: Vec<Expr>,
}

impl<'a> Interface<'a> {
    /// Reads the types and expressions of a manifest.
    ///
    /// # Errors
    /// When the manifest does not hold what the compiler writes: a bug of ours.
    pub fn of(manifest: &'a Manifest) -> Result<Self, ArtifactError> {
        let tensor = |info: &'a TensorInfo| -> Result<Tensor<'a>, ArtifactError> {
            let elem =
                Elem::from_name(&info.elem).ok_or_else(|| ArtifactError::Internal(format!("`{}` has type `{}`", info.name, info.elem)))?;
            let shape = info.shape.iter().map(|d| Expr::parse(d)).collect::<Result<_, _>>();
            Ok(Tensor { info, elem, shape: shape.map_err(|e| ArtifactError::Internal(e.to_string()))? })
        };
        Ok(Interface {
            manifest,
            inputs: manifest.inputs.iter().map(tensor).collect::<Result<_, _>>()?,
            outputs: manifest.outputs.iter().map(tensor).collect::<Result<_, _>>()?,
        })
    }

    /// The prefix of all symbols.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// The weights file, if the weights are not in the object: its name and bytes.
    pub fn weights_file(&self) -> Option<(&str, u64)> {
        let w = self.manifest.weights.as_ref().filter(|w| !w.embedded)?;
        Some((&w.file, w.data_bytes + PAGE as u64))
    }

    /// An expression as C and as Rust, which agree on this much: symbols are fields of `dims`, reached by
    /// `access`; the operations that neither has are calls of [`Op`]'s [`function`].
    pub fn expression(&self, e: &Expr, access: &str) -> String {
        match e {
            Expr::Number(n) => n.to_string(),
            Expr::Symbol(s) => {
                let field = self.manifest.symbols.iter().find(|x| x.name == *s).map_or(s.as_str(), |x| x.c_name.as_str());
                format!("dims{access}{field}")
            }
            Expr::Binary(op, a, b) => {
                let (x, y) = (self.expression(a, access), self.expression(b, access));
                match op {
                    Op::Add => format!("{x} + {y}"),
                    Op::Sub if is_sum(b) => format!("{x} - ({y})"),
                    Op::Sub => format!("{x} - {y}"),
                    Op::Mul => format!("{} * {}", factor(a, x), factor(b, y)),
                    other => format!("{}({x}, {y})", function(*other).unwrap_or_default()),
                }
            }
        }
    }

    /// The number of elements of a tensor, as [`Interface::expression`].
    pub fn count(&self, t: &Tensor, access: &str) -> String {
        let sizes: Vec<String> = t
            .shape
            .iter()
            .map(|e| {
                let text = self.expression(e, access);
                if t.shape.len() > 1 { factor(e, text) } else { text }
            })
            .collect();
        if sizes.is_empty() { "1".into() } else { sizes.join(" * ") }
    }

    /// The operations that the shapes of these tensors call.
    pub fn functions(&self, tensors: &[&Tensor]) -> BTreeSet<&'static str> {
        fn collect(e: &Expr, out: &mut BTreeSet<&'static str>) {
            if let Expr::Binary(op, a, b) = e {
                out.extend(function(*op));
                collect(a, out);
                collect(b, out);
            }
        }
        let mut out = BTreeSet::new();
        for e in tensors.iter().flat_map(|t| &t.shape) {
            collect(e, &mut out);
        }
        out
    }

    /// Small dimensions in the ranges of the symbols that fulfil the model's conditions. If few tries find
    /// none, ones that are at least in the ranges.
    pub fn small_dims(&self) -> Vec<i64> {
        const TRIES: usize = 20_000;
        let symbols = &self.manifest.symbols;
        let parse = |text: &str| Expr::parse(text).ok();
        let checks: Vec<(Expr, Expr)> = self.manifest.checks.iter().filter_map(|c| parse(&c.left).zip(parse(&c.right))).collect();
        let candidates: Vec<Vec<i64>> = symbols
            .iter()
            .map(|s| {
                let wanted: &[i64] = if s.name.contains("batch") { &[1, 2, 8] } else { &[8, 1, 2, 16, 4, 9, 7, 32, 64, 128, 0] };
                let mut out: Vec<i64> = vec![];
                for n in wanted.iter().map(|&n| n.clamp(s.min, s.max)).chain([s.min, s.max]) {
                    if !out.contains(&n) {
                        out.push(n);
                    }
                }
                out
            })
            .collect();
        let pick = |mut n: usize| -> Vec<i64> {
            let mut take = |c: &Vec<i64>| {
                let value = c[n % c.len()];
                n /= c.len();
                value
            };
            candidates.iter().map(&mut take).collect()
        };
        let fits = |values: &[i64]| {
            let bindings: Bindings = symbols.iter().zip(values).map(|(s, &v)| (s.name.clone(), v)).collect();
            checks.iter().all(|(l, r)| matches!((l.eval(&bindings), r.eval(&bindings)), (Some(a), Some(b)) if a == b))
        };
        let all = candidates.iter().try_fold(1usize, |n, c| n.checked_mul(c.len())).unwrap_or(usize::MAX);
        (0..all.min(TRIES)).map(pick).find(|v| fits(v)).unwrap_or_else(|| pick(0))
    }
}

fn is_sum(e: &Expr) -> bool {
    matches!(e, Expr::Binary(Op::Add | Op::Sub, ..))
}

/// The text of a factor: a sum needs parentheses.
fn factor(e: &Expr, text: String) -> String {
    if is_sum(e) { format!("({text})") } else { text }
}

/// The function that an operation calls in generated source text.
fn function(op: Op) -> Option<&'static str> {
    match op {
        Op::Div => Some("floor_div"),
        Op::Rem => Some("floor_rem"),
        Op::Min => Some("smaller"),
        Op::Max => Some("larger"),
        Op::Add | Op::Sub | Op::Mul => None,
    }
}

/// The name of a status in capitals: `NULL_POINTER`.
pub fn status_name(status: Status) -> String {
    let mut out = String::new();
    for (i, c) in format!("{status:?}").chars().enumerate() {
        if i > 0 && c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
    }
    out
}

/// Text from a model in a comment: on one line, and unable to end it.
pub fn comment(text: &str) -> String {
    text.replace("*/", "* /").replace("/*", "/ *").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A file name as a string literal of C: the bytes of it.
pub fn c_bytes(name: &str) -> String {
    let byte = |b: u8| match b {
        b' ' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'-' | b'.' | b'+' | b'=' | b',' => (b as char).to_string(),
        b => format!("\\{b:03o}"),
    };
    format!("\"{}\"", name.bytes().map(byte).collect::<String>())
}

/// Text from a model as a string literal that C and Rust both read. Anything but printable ASCII becomes
/// `_`, and so do question marks, of which C makes trigraphs.
pub fn literal(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' if c != '?' => out.push(c),
            _ => out.push('_'),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfc_runtime::manifest::{Check, Symbol};

    fn manifest() -> Manifest {
        let symbol =
            |name: &str, c_name: &str| Symbol { name: name.into(), min: 1, max: 100, c_name: c_name.into(), reason: String::new() };
        let tensor = |name: &str, shape: &[&str]| TensorInfo {
            name: name.into(),
            c_name: name.into(),
            elem: "f32".into(),
            shape: shape.iter().map(|&s| s.into()).collect(),
        };
        Manifest {
            name: "m".into(),
            symbols: vec![symbol("batch", "batch"), symbol("seq.len", "seq_len"), symbol("total", "total")],
            inputs: vec![tensor("x", &["batch", "2*seq.len-1", "64"]), tensor("s", &[]), tensor("y", &["div(total-1, 16)+min(batch, 3)"])],
            checks: vec![Check { left: "2*seq.len".into(), right: "total".into(), reason: String::new() }],
            ..Manifest::default()
        }
    }

    #[test]
    fn element_counts_are_expressions() {
        let m = manifest();
        let i = Interface::of(&m).unwrap();
        let counts: Vec<String> = i.inputs.iter().map(|t| i.count(t, ".")).collect();
        assert_eq!(counts, ["dims.batch * (2 * dims.seq_len - 1) * 64", "1", "floor_div(dims.total - 1, 16) + smaller(dims.batch, 3)"]);
        let all: Vec<&Tensor> = i.inputs.iter().collect();
        assert_eq!(i.functions(&all).into_iter().collect::<Vec<_>>(), ["floor_div", "smaller"]);
    }

    #[test]
    fn small_dimensions_fulfil_the_conditions() {
        let m = manifest();
        let dims = Interface::of(&m).unwrap().small_dims();
        assert_eq!(dims[0], 1);
        assert_eq!(2 * dims[1], dims[2]);
    }

    #[test]
    fn text_of_models_stays_where_it_is_put() {
        assert_eq!(comment("a*/\nb/*"), "a* / b/ *");
        assert_eq!(literal("a\"b\\c\nü"), "\"a\\\"b\\\\c__\"");
        assert_eq!(c_bytes("a b-1.x\"?ü"), r#""a b-1.x\042\077\303\274""#);
        assert_eq!(status_name(Status::NullPointer), "NULL_POINTER");
    }
}
