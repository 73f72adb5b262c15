//! The printer.

use super::constants::{self, Constants};
use super::{MAX_INLINE, Quoted, SPLAT_BUDGET, VERSION, is_identifier};
use crate::attr::AttrValue;
use crate::dim::SymbolTable;
use crate::graph::{Graph, Loc, Value};
use crate::tensor::Tensor;
use crate::types::Elem;
use cranelift_entity::SecondaryMap;
use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

/// Prints a graph. With `file`, what is elided goes there, as a file of constants; without it, the text cannot be read without
/// one. Returns the bytes written to `file`.
///
/// # Errors
/// Those of the writers.
pub fn write(graph: &Graph, text: &mut dyn io::Write, file: Option<&mut dyn io::Write>) -> io::Result<u64> {
    let mut constants = file.map(Constants::new);
    print(graph, text, constants.as_mut())?;
    Ok(constants.map_or(0, |c| c.bytes()))
}

/// As [`write`], with a file of constants that other texts have too.
///
/// # Errors
/// Those of the writers. Then the file may end with a part of a record.
pub fn write_sharing(graph: &Graph, text: &mut dyn io::Write, constants: &mut Constants) -> io::Result<()> {
    print(graph, text, Some(constants))
}

fn print(graph: &Graph, text: &mut dyn io::Write, constants: Option<&mut Constants>) -> io::Result<()> {
    /// Passes text on as bytes and keeps the error that `fmt::Error` cannot carry.
    struct Utf8<'a>(&'a mut dyn io::Write, io::Result<()>);
    impl fmt::Write for Utf8<'_> {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            self.1 = self.0.write_all(s.as_bytes());
            if self.1.is_ok() { Ok(()) } else { Err(fmt::Error) }
        }
    }
    let mut text = io::BufWriter::new(text);
    let mut out = Utf8(&mut text, Ok(()));
    let mut printer = Printer::new(&mut out, constants);
    let printed = printer.file(graph);
    printer.error?;
    out.1?;
    printed.map_err(io::Error::other)?;
    text.flush()
}

impl fmt::Display for Graph {
    /// The text form with large constants elided.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printer::new(f, None).file(self)
    }
}

impl fmt::Display for AttrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printer::new(f, None).value(self, &SymbolTable::new())
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// Displays a name, in quotes if need be.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_identifier(self.0) { f.write_str(self.0) } else { write!(f, "{}", Quoted(self.0)) }
    }
}

/// How the values of a graph are called in its text form.
pub struct Labels(SecondaryMap<Value, Option<String>>);

impl Labels {
    /// The label with its `%`; `%?` for a value that the graph does not have.
    pub fn get(&self, v: Value) -> &str {
        self.0[v].as_deref().unwrap_or("%?")
    }
}

/// The labels that the values of a graph have in its text form.
pub fn labels(graph: &Graph) -> Labels {
    let results = graph.nodes().flat_map(|(_, d)| d.outputs.iter().copied());
    let order = graph.inputs().iter().copied().chain(constants(graph)).chain(results);
    let mut labels = SecondaryMap::new();
    let mut taken = HashSet::new();
    let mut unnamed = 0;
    for v in order {
        labels[v] = Some(match graph.value(v).name.as_deref() {
            Some(name) if !name.is_empty() && taken.insert(name) => format!("%{}", Name(name)),
            _ => {
                unnamed += 1;
                format!("%{}", unnamed - 1)
            }
        });
    }
    Labels(labels)
}

/// The constants of a graph in the order in which they are printed: by their first use, then the unused ones.
pub(super) fn constants(graph: &Graph) -> Vec<Value> {
    let used = graph.nodes().flat_map(|(_, d)| d.inputs.iter().copied()).chain(graph.outputs().iter().map(|o| o.value));
    let mut seen: SecondaryMap<Value, bool> = SecondaryMap::new();
    used.filter(|&v| graph.contains(v))
        .chain(graph.values().map(|(v, _)| v))
        .filter(|&v| graph.as_const(v).is_some() && !std::mem::replace(&mut seen[v], true))
        .collect()
}

struct Printer<'a, 'f> {
    out: &'a mut dyn fmt::Write,
    /// The file for what is elided, and the error that `fmt::Error` cannot carry.
    constants: Option<&'a mut Constants<'f>>,
    error: io::Result<()>,
    /// Bytes that `splat` constants may still have.
    splat_left: usize,
    /// How many graphs are around the one that is printed.
    depth: usize,
}

impl<'a, 'f> Printer<'a, 'f> {
    fn new(out: &'a mut dyn fmt::Write, constants: Option<&'a mut Constants<'f>>) -> Self {
        Printer { out, constants, error: Ok(()), splat_left: SPLAT_BUDGET, depth: 0 }
    }

    fn file(&mut self, graph: &Graph) -> fmt::Result {
        writeln!(self.out, "tfc.ir {VERSION}")?;
        self.graph(graph, &SymbolTable::new())
    }

    /// The statements of a graph inside of one with the symbols `around`.
    fn graph(&mut self, graph: &Graph, around: &SymbolTable) -> fmt::Result {
        let labels = labels(graph);
        let constants = constants(graph);
        if !graph.name.is_empty() {
            self.indent()?;
            writeln!(self.out, "graph {}", Name(&graph.name))?;
        }
        let symbols: Vec<_> = graph.symbols.iter().filter(|(s, r)| around.get(s) != Some(r)).collect();
        self.section(symbols.is_empty())?;
        for (symbol, range) in symbols {
            self.indent()?;
            writeln!(self.out, "symbol {symbol} {}..{}", range.min, range.max)?;
        }
        self.section(graph.checks.is_empty())?;
        for check in &graph.checks {
            self.indent()?;
            write!(self.out, "check {} == {}", check.left, check.right)?;
            self.loc(&check.loc)?;
        }
        self.section(graph.inputs().is_empty())?;
        for &v in graph.inputs() {
            self.indent()?;
            writeln!(self.out, "input {}: {}", labels.get(v), graph.ty(v))?;
        }
        self.section(constants.is_empty())?;
        for v in constants {
            let Some(tensor) = graph.as_const(v) else { continue };
            self.indent()?;
            write!(self.out, "const {}: {} = ", labels.get(v), graph.ty(v))?;
            self.constant(tensor)?;
            self.out.write_char('\n')?;
        }
        self.section(graph.nodes().len() == 0)?;
        for (_, node) in graph.nodes() {
            self.indent()?;
            self.list(&node.outputs, ", ", |p, &v| p.out.write_str(labels.get(v)))?;
            write!(self.out, " = {}", node.op.mnemonic())?;
            for (i, &v) in node.inputs.iter().enumerate() {
                write!(self.out, "{} {}", if i == 0 { "" } else { "," }, labels.get(v))?;
            }
            let attributes = node.op.attributes();
            if !attributes.is_empty() {
                self.out.write_str(" {")?;
                self.list(&attributes, ", ", |p, (name, value)| {
                    write!(p.out, "{name} = ")?;
                    p.value(value, &graph.symbols)
                })?;
                self.out.write_str("}")?;
            }
            self.out.write_str(" : ")?;
            self.list(&node.outputs, ", ", |p, &v| write!(p.out, "{}", graph.ty(v)))?;
            self.loc(&node.loc)?;
        }
        self.section(graph.outputs().is_empty())?;
        for o in graph.outputs() {
            self.indent()?;
            writeln!(self.out, "output {} = {}", Name(&o.name), labels.get(o.value))?;
        }
        Ok(())
    }

    /// Starts a section: a blank line before it, but not in nested graphs.
    fn section(&mut self, empty: bool) -> fmt::Result {
        if self.depth == 0 && !empty { self.out.write_char('\n') } else { Ok(()) }
    }

    fn indent(&mut self) -> fmt::Result {
        write!(self.out, "{:1$}", "", 2 * self.depth)
    }

    /// The place, if there is one, and the end of the line.
    fn loc(&mut self, loc: &Loc) -> fmt::Result {
        if loc.names().len() > 0 {
            self.out.write_str(" loc(")?;
            self.list(&loc.names().collect::<Vec<_>>(), ", ", |p, name| write!(p.out, "{}", Quoted(name)))?;
            self.out.write_str(")")?;
        }
        self.out.write_char('\n')
    }

    fn list<T>(&mut self, items: &[T], between: &str, mut print: impl FnMut(&mut Self, &T) -> fmt::Result) -> fmt::Result {
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.write_str(between)?;
            }
            print(self, item)?;
        }
        Ok(())
    }

    /// An attribute of a node in a graph with the symbols `around`.
    fn value(&mut self, value: &AttrValue, around: &SymbolTable) -> fmt::Result {
        match value {
            AttrValue::Word(w) => self.out.write_str(w),
            AttrValue::Dim(d) => write!(self.out, "{d}"),
            AttrValue::Float(x) => self.out.write_str(&float(Elem::F64, x.to_bits())),
            AttrValue::List(items) => {
                self.out.write_char('[')?;
                self.list(items, ", ", |p, item| p.value(item, around))?;
                self.out.write_char(']')
            }
            AttrValue::Graph(body) => {
                self.out.write_str("{\n")?;
                self.depth += 1;
                self.graph(body, around)?;
                self.depth -= 1;
                self.indent()?;
                self.out.write_char('}')
            }
        }
    }

    fn constant(&mut self, tensor: &Tensor) -> fmt::Result {
        let n = tensor.len();
        if n > 1 && tensor.bytes().len() <= self.splat_left && is_splat(tensor) {
            self.splat_left -= tensor.bytes().len();
            return write!(self.out, "splat {}", element(tensor, 0));
        }
        if n <= MAX_INLINE {
            self.out.write_char('[')?;
            for i in 0..n {
                write!(self.out, "{}{}", if i == 0 { "" } else { ", " }, element(tensor, i))?;
            }
            return self.out.write_char(']');
        }
        let hash = match &mut self.constants {
            Some(constants) => constants.add(tensor.bytes()),
            None => Ok(constants::hash(tensor.bytes())),
        };
        match hash {
            Ok(hash) => write!(self.out, "elided #{hash:032x}"),
            Err(e) => {
                self.error = Err(e);
                Err(fmt::Error)
            }
        }
    }
}

/// The stored bits of an element.
fn bits(tensor: &Tensor, i: usize) -> u64 {
    match tensor.elem().bits() as usize / 8 {
        0 => (tensor.bytes()[i / 2] >> (4 * (i % 2)) & 15).into(),
        n => tensor.bytes()[i * n..][..n].iter().rev().fold(0, |bits, &b| bits << 8 | u64::from(b)),
    }
}

fn is_splat(tensor: &Tensor) -> bool {
    let first = bits(tensor, 0);
    (1..tensor.len()).all(|i| bits(tensor, i) == first)
}

fn element(tensor: &Tensor, i: usize) -> String {
    match tensor.elem() {
        Elem::Bool => (tensor.get(i).to_i128() != 0).to_string(),
        e if e.is_float() => float(e, bits(tensor, i)),
        _ => tensor.get(i).to_i128().to_string(),
    }
}

/// The shortest text that reads back as the float with these bits.
fn float(elem: Elem, bits: u64) -> String {
    let (x, narrow) = match elem {
        Elem::F64 => (f64::from_bits(bits), false),
        Elem::F32 => (f32::from_bits(bits as u32).into(), true),
        Elem::F16 => (half::f16::from_bits(bits as u16).into(), true),
        _ => (half::bf16::from_bits(bits as u16).into(), true),
    };
    match x {
        _ if x.is_nan() && bits == usual_nan(elem) => "nan".into(),
        _ if x.is_nan() => format!("nan(#{bits:x})"),
        _ if narrow => format!("{:?}", x as f32),
        _ => format!("{x:?}"),
    }
}

/// The bits of the NaN that prints as `nan`.
pub(super) fn usual_nan(elem: Elem) -> u64 {
    match elem {
        Elem::F64 => f64::NAN.to_bits(),
        Elem::F32 => f32::NAN.to_bits().into(),
        Elem::F16 => half::f16::NAN.to_bits().into(),
        _ => half::bf16::NAN.to_bits().into(),
    }
}
