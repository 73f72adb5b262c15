//! The parser. It reads syntax, names and constants; whether types are right is the verifier's matter.

use super::lex::{Lexer, Token};
use super::print::usual_nan;
use super::{SPLAT_BUDGET, VERSION, constants};
use crate::attr::{Attr, AttrValue};
use crate::dim::{Dim, Range, Symbol};
use crate::graph::{DimCheck, Graph, Loc, Node, Value};
use crate::ops::Op;
use crate::quant::Scheme;
use crate::tensor::Tensor;
use crate::types::{Elem, Shape, Type};
use crate::verify::MAX_NESTED;
use bytes::Bytes;
use cranelift_entity::SecondaryMap;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// How deep lists, parentheses and functions may nest.
const MAX_NESTING: usize = 64;

/// A text is not a graph: where, and what was expected there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParseError {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// What is wrong, or what was expected and what was found.
    pub message: String,
    /// The text of the line.
    pub source: String,
}

impl std::error::Error for ParseError {}

impl fmt::Display for ParseError {
    /// The message with the line, and a caret under the place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// How much of a long line is shown before and behind the place.
        const SHOWN: usize = 60;
        let ParseError { line, column, message, source } = self;
        let at = *column as usize - 1;
        let first = at.saturating_sub(SHOWN);
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        let shown: String = source.chars().skip(first).take(2 * SHOWN).map(visible).collect();
        let margin = " ".repeat(line.to_string().len());
        writeln!(f, "{line}:{column}: {message}")?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{line} | {shown}")?;
        write!(f, "{margin} | {}^", " ".repeat(at - first))
    }
}

/// The lines, from 1, where the parts of a parsed graph are written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lines {
    /// Of the declarations of symbols.
    pub symbols: BTreeMap<Symbol, u32>,
    /// Of the checks, in order.
    pub checks: Vec<u32>,
    /// Of the definitions of values.
    pub values: SecondaryMap<Value, u32>,
    /// Of the nodes.
    pub nodes: SecondaryMap<Node, u32>,
    /// Of the outputs, in order.
    pub outputs: Vec<u32>,
    /// Inside of the graphs that nodes contain.
    pub nested: BTreeMap<Node, Lines>,
}

/// Reads a graph. `file` is the file of constants, for texts that refer to it.
///
/// # Errors
/// When the text is not a graph, or its constants are not in `file`.
pub fn parse(text: &str, file: Option<Bytes>) -> Result<Graph, ParseError> {
    parse_with_lines(text, file).map(|(graph, _)| graph)
}

/// Reads a graph, and tells where its parts are written.
///
/// # Errors
/// As [`parse`].
pub fn parse_with_lines(text: &str, file: Option<Bytes>) -> Result<(Graph, Lines), ParseError> {
    let parsed = Parser::new(text, file).and_then(|mut p| p.file());
    parsed.map_err(|Fault { at, message }| {
        let start = text[..at].rfind('\n').map_or(0, |i| i + 1);
        let source = text[start..].lines().next().unwrap_or_default();
        ParseError {
            line: text[..at].bytes().filter(|&b| b == b'\n').count() as u32 + 1,
            column: text[start..at].chars().count() as u32 + 1,
            message,
            source: source.into(),
        }
    })
}

/// An error at a byte of the text.
struct Fault {
    at: usize,
    message: String,
}

impl From<(usize, String)> for Fault {
    fn from((at, message): (usize, String)) -> Fault {
        Fault { at, message }
    }
}

type Parsed<T> = Result<T, Fault>;

/// The values of a graph by their labels: numbers are kept apart from names.
#[derive(Default)]
struct Scope {
    named: HashMap<String, Value>,
    numbered: HashMap<String, Value>,
}

/// A label as it is written.
struct Label {
    text: String,
    numbered: bool,
    at: usize,
    line: u32,
}

impl Label {
    fn name(&self) -> Option<Arc<str>> {
        (!self.numbered).then(|| self.text.as_str().into())
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    /// Where `token` starts.
    at: usize,
    line: u32,
    /// The file of constants, and its index when that has been needed.
    file: Option<Bytes>,
    index: Option<constants::Index>,
    splat_left: usize,
    nesting: usize,
    graphs: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, file: Option<Bytes>) -> Parsed<Self> {
        let mut lexer = Lexer::new(text);
        let (token, at, line) = lexer.next()?;
        Ok(Parser { lexer, token, at, line, file, index: None, splat_left: SPLAT_BUDGET, nesting: 0, graphs: 0 })
    }

    // Tokens.

    fn next(&mut self) -> Parsed<Token<'a>> {
        let (token, at, line) = self.lexer.next()?;
        (self.at, self.line) = (at, line);
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn fault<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err(Fault { at: self.at, message: message.into() })
    }

    fn expected<T>(&self, what: &str) -> Parsed<T> {
        self.fault(format!("expected {what}, found {}", self.token.describe()))
    }

    fn is(&self, c: char) -> bool {
        self.token == Token::Punct(c)
    }

    fn is_word(&self, word: &str) -> bool {
        self.token == Token::Word(word)
    }

    /// Takes the token if it is `c`.
    fn eat(&mut self, c: char) -> Parsed<bool> {
        let found = self.is(c);
        if found {
            self.next()?;
        }
        Ok(found)
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        if self.eat(c)? { Ok(()) } else { self.expected(&format!("`{c}`")) }
    }

    fn word(&mut self, what: &str) -> Parsed<&'a str> {
        match self.token {
            Token::Word(w) => {
                self.next()?;
                Ok(w)
            }
            _ => self.expected(what),
        }
    }

    /// A name, in quotes or not.
    fn name(&mut self, what: &str) -> Parsed<String> {
        match self.next_if(|t| matches!(t, Token::Word(_) | Token::Str(_)))? {
            Some(Token::Word(w)) => Ok(w.into()),
            Some(Token::Str(s)) => Ok(s),
            _ => self.expected(what),
        }
    }

    fn next_if(&mut self, accept: impl FnOnce(&Token) -> bool) -> Parsed<Option<Token<'a>>> {
        if accept(&self.token) { self.next().map(Some) } else { Ok(None) }
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.nesting == MAX_NESTING {
            return self.fault(format!("nested more than {MAX_NESTING} levels deep"));
        }
        self.nesting += 1;
        let result = parse(self);
        self.nesting -= 1;
        result
    }

    /// Items with commas between them up to `end`, which is taken.
    fn items<T>(&mut self, end: char, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = vec![];
        while !self.eat(end)? {
            if !items.is_empty() {
                if !self.is(',') {
                    return self.expected(&format!("`,` or `{end}`"));
                }
                self.next()?;
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    // Statements.

    fn file(&mut self) -> Parsed<(Graph, Lines)> {
        if !self.is_word("tfc.ir") {
            return self.expected("the first line `tfc.ir 1`");
        }
        self.next()?;
        if self.token != Token::Int("1") {
            return self.expected(&format!("{VERSION}, the version of the text form that this program reads"));
        }
        self.next()?;
        self.graph(Graph::default())
    }

    /// Statements up to the end of the text, or up to the closing brace, which is taken.
    fn graph(&mut self, mut graph: Graph) -> Parsed<(Graph, Lines)> {
        let mut lines = Lines::default();
        let mut scope = Scope::default();
        let end = if self.graphs == 0 { Token::End } else { Token::Punct('}') };
        while self.token != end {
            let line = self.line;
            match self.token {
                Token::Word("graph") => {
                    self.next()?;
                    graph.name = self.name("the name of the graph")?;
                }
                Token::Word("symbol") => {
                    let (symbol, range) = self.symbol()?;
                    lines.symbols.insert(symbol.clone(), line);
                    graph.symbols.insert(symbol, range);
                }
                Token::Word("check") => {
                    graph.checks.push(self.check(&graph)?);
                    lines.checks.push(line);
                }
                Token::Word("input") => {
                    self.next()?;
                    let label = self.label()?;
                    self.expect(':')?;
                    let ty = self.ty(&graph)?;
                    let v = graph.add_input(label.name().as_deref().unwrap_or_default(), ty);
                    self.define(&mut scope, &mut lines, &label, v)?;
                }
                Token::Word("const") => {
                    self.next()?;
                    let label = self.label()?;
                    self.expect(':')?;
                    let ty = self.ty(&graph)?;
                    self.expect('=')?;
                    let tensor = self.constant(&ty)?;
                    let v = graph.add_typed_const(tensor, ty, label.name());
                    self.define(&mut scope, &mut lines, &label, v)?;
                }
                Token::Word("output") => {
                    self.next()?;
                    let name = self.name("the name of an output")?;
                    self.expect('=')?;
                    let v = self.use_of(&scope)?;
                    graph.add_output(&name, v);
                    lines.outputs.push(line);
                }
                Token::Value(_) | Token::Numbered(_) => self.node(&mut graph, &mut scope, &mut lines)?,
                _ => return self.expected("`graph`, `symbol`, `check`, `input`, `const`, `output`, or a node such as `%0 = …`"),
            }
        }
        self.next()?;
        Ok((graph, lines))
    }

    fn symbol(&mut self) -> Parsed<(Symbol, Range)> {
        self.next()?;
        let name = self.name("the name of a symbol")?;
        let min = self.integer()?;
        if self.token != Token::DotDot {
            return self.expected("`..` and the largest value");
        }
        self.next()?;
        let max = self.integer()?;
        Ok((Symbol::new(&name), Range { min, max }))
    }

    fn check(&mut self, graph: &Graph) -> Parsed<DimCheck> {
        self.next()?;
        let left = self.dim(graph)?;
        if self.token != Token::EqEq {
            return self.expected("`==`");
        }
        self.next()?;
        let right = self.dim(graph)?;
        Ok(DimCheck { left, right, loc: self.loc()? })
    }

    fn node(&mut self, graph: &mut Graph, scope: &mut Scope, lines: &mut Lines) -> Parsed<()> {
        let line = self.line;
        let mut results = vec![self.label()?];
        while self.eat(',')? {
            results.push(self.label()?);
        }
        self.expect('=')?;
        let op_at = self.at;
        let mnemonic = self.word("the name of an operator")?;
        let mut operands = vec![];
        if matches!(self.token, Token::Value(_) | Token::Numbered(_)) {
            operands.push(self.use_of(scope)?);
            while self.eat(',')? {
                operands.push(self.use_of(scope)?);
            }
        }
        let mut nested = Lines::default();
        let mut attributes = vec![];
        if self.eat('{')? {
            attributes = self.items('}', |p| {
                let name = p.word("the name of an attribute")?;
                p.expect('=')?;
                Ok((name.to_string(), p.attribute(graph, &mut nested)?))
            })?;
        }
        let op = Op::from_attributes(mnemonic, &attributes).map_err(|e| Fault { at: op_at, message: e.to_string() })?;
        let types_at = self.at;
        self.expect(':')?;
        let mut types = vec![self.ty(graph)?];
        while self.eat(',')? {
            types.push(self.ty(graph)?);
        }
        if types.len() != results.len() {
            let message = format!("expected one type per result: {} results, {} types", results.len(), types.len());
            return Err(Fault { at: types_at, message });
        }
        let loc = self.loc()?;
        let node = graph.next_node();
        let values = graph.add_node_typed(op, &operands, types, &loc);
        lines.nodes[node] = line;
        if nested != Lines::default() {
            lines.nested.insert(node, nested);
        }
        for (label, v) in results.iter().zip(values) {
            graph.set_name(v, label.name());
            self.define(scope, lines, label, v)?;
        }
        Ok(())
    }

    fn loc(&mut self) -> Parsed<Loc> {
        if !self.is_word("loc") {
            return Ok(Loc::default());
        }
        self.next()?;
        self.expect('(')?;
        let names = self.items(')', |p| match p.next_if(|t| matches!(t, Token::Str(_)))? {
            Some(Token::Str(s)) => Ok(s),
            _ => p.expected("a name in quotes"),
        })?;
        Ok(Loc::nodes(names.iter().map(String::as_str)))
    }

    // Values.

    fn label(&mut self) -> Parsed<Label> {
        let (at, line) = (self.at, self.line);
        match self.next_if(|t| matches!(t, Token::Value(_) | Token::Numbered(_)))? {
            Some(Token::Value(text)) => Ok(Label { text, numbered: false, at, line }),
            Some(Token::Numbered(n)) => Ok(Label { text: n.into(), numbered: true, at, line }),
            _ => self.expected("a value such as %0 or %name"),
        }
    }

    fn define(&self, scope: &mut Scope, lines: &mut Lines, label: &Label, v: Value) -> Parsed<()> {
        let names = if label.numbered { &mut scope.numbered } else { &mut scope.named };
        lines.values[v] = label.line;
        match names.insert(label.text.clone(), v) {
            None => Ok(()),
            Some(first) => {
                let message = format!("%{} is already defined in line {}", label.text, lines.values[first]);
                Err(Fault { at: label.at, message })
            }
        }
    }

    fn use_of(&mut self, scope: &Scope) -> Parsed<Value> {
        let label = self.label()?;
        let names = if label.numbered { &scope.numbered } else { &scope.named };
        let message = || format!("%{} is not defined above", label.text);
        names.get(&label.text).copied().ok_or_else(|| Fault { at: label.at, message: message() })
    }

    // Types and dimensions.

    fn ty(&mut self, graph: &Graph) -> Parsed<Type> {
        let elem = match self.token {
            Token::Word(w) => Elem::from_name(w),
            _ => None,
        };
        let Some(elem) = elem else {
            return self.expected("a type such as f32[2, seq]");
        };
        self.next()?;
        self.expect('[')?;
        let shape = Shape(self.items(']', |p| p.dim(graph))?);
        let mut quant = None;
        if self.is_word("quant") {
            self.next()?;
            self.expect('<')?;
            let at = self.at;
            let scheme = self.attribute(graph, &mut Lines::default())?;
            quant = Some(Scheme::from_value(&scheme).map_err(|expected| Fault { at, message: format!("expected {expected}") })?);
            self.expect('>')?;
        }
        Ok(Type { elem, shape, quant })
    }

    /// An integer with a sign.
    fn integer(&mut self) -> Parsed<i64> {
        let negative = self.eat('-')?;
        self.unsigned(negative)
    }

    /// Digits; the result has the sign.
    fn unsigned(&mut self, negative: bool) -> Parsed<i64> {
        let Token::Int(digits) = self.token else {
            return self.expected("an integer");
        };
        let magnitude: Option<i128> = digits.parse().ok();
        let value = magnitude.and_then(|n| i64::try_from(if negative { -n } else { n }).ok());
        match value {
            Some(n) => self.next().map(|_| n),
            None => self.fault(format!("{digits} does not fit 64 bits")),
        }
    }

    fn dim(&mut self, graph: &Graph) -> Parsed<Dim> {
        self.nested(|p| {
            let mut sum = p.product(graph)?;
            while p.is('+') || p.is('-') {
                let at = p.at;
                p.eat('+')?;
                sum = sum + p.product(graph)?;
                bounded(&sum, at)?;
            }
            Ok(sum)
        })
    }

    /// A product with an optional minus before it.
    fn product(&mut self, graph: &Graph) -> Parsed<Dim> {
        let negative = self.eat('-')?;
        // The sign belongs to a number, so that the smallest one can be written.
        let mut product = match self.token {
            Token::Int(_) => Dim::from(self.unsigned(negative)?),
            _ if negative => -self.factor(graph)?,
            _ => self.factor(graph)?,
        };
        while self.is('*') {
            let at = self.at;
            self.next()?;
            let factor = self.factor(graph)?;
            if product.terms().count().saturating_mul(factor.terms().count()) > Dim::MAX_SIZE {
                return Err(Fault { at, message: too_large() });
            }
            product = product * factor;
            bounded(&product, at)?;
        }
        Ok(product)
    }

    fn factor(&mut self, graph: &Graph) -> Parsed<Dim> {
        match self.token {
            Token::Int(_) => Ok(Dim::from(self.unsigned(false)?)),
            Token::Punct('(') => {
                self.next()?;
                let d = self.dim(graph)?;
                self.expect(')')?;
                Ok(d)
            }
            Token::Word(word @ ("div" | "rem" | "min" | "max")) => {
                let at = self.at;
                self.next()?;
                self.expect('(')?;
                let a = self.dim(graph)?;
                self.expect(',')?;
                let b = self.dim(graph)?;
                self.expect(')')?;
                let d = match word {
                    "div" => a.floor_div(&b),
                    "rem" => a.rem(&b),
                    "min" => a.minimum(&b),
                    _ => a.maximum(&b),
                };
                bounded(&d, at)?;
                Ok(d)
            }
            Token::Word(_) | Token::Str(_) => {
                let at = self.at;
                let symbol = Symbol::new(&self.name("a symbol")?);
                if !graph.symbols.contains_key(&symbol) {
                    let message = format!("the symbol {symbol} is not declared above: expected a line such as `symbol {symbol} 1..512`");
                    return Err(Fault { at, message });
                }
                Ok(Dim::from(symbol))
            }
            _ => self.expected("a dimension such as 4, seq, or div(seq, 2)"),
        }
    }

    // Attributes.

    fn attribute(&mut self, graph: &Graph, lines: &mut Lines) -> Parsed<AttrValue> {
        self.nested(|p| {
            if p.eat('[')? {
                return Ok(AttrValue::List(p.items(']', |p| p.attribute(graph, lines))?));
            }
            if p.eat('{')? {
                if p.graphs == MAX_NESTED {
                    return p.fault(format!("graphs are nested more than {MAX_NESTED} levels deep"));
                }
                p.graphs += 1;
                let (body, inner) = p.graph(Graph::with_symbols(graph.symbols.clone()))?;
                p.graphs -= 1;
                *lines = inner;
                return Ok(AttrValue::Graph(Arc::new(body)));
            }
            p.number_or_word(graph)
        })
    }

    /// A float, a dimension, or a word.
    fn number_or_word(&mut self, graph: &Graph) -> Parsed<AttrValue> {
        if !self.is('-')
            && let Some(bits) = self.float_bits(Elem::F64, false)?
        {
            return Ok(AttrValue::Float(f64::from_bits(bits)));
        }
        if let Token::Word(w) = self.token {
            // A word alone is a word; one that goes on is a symbol or a function.
            let (follower, ..) = self.lexer.clone().next()?;
            if !matches!(follower, Token::Punct('+' | '-' | '*' | '(')) {
                self.next()?;
                return Ok(AttrValue::Word(w.into()));
            }
        }
        if self.is('-') {
            let (follower, ..) = self.lexer.clone().next()?;
            if matches!(follower, Token::Float(_) | Token::Word("inf" | "nan")) {
                self.next()?;
                let bits = self.float_bits(Elem::F64, true)?.expect("looked at");
                return Ok(AttrValue::Float(f64::from_bits(bits)));
            }
        }
        self.dim(graph).map(AttrValue::Dim)
    }

    /// The bits of a float (not of an integer), if there is one; `negative` if a minus came before it.
    fn float_bits(&mut self, elem: Elem, negative: bool) -> Parsed<Option<u64>> {
        let sign = if negative { 1 << (elem.bits() - 1) } else { 0 };
        let magnitude = match self.token {
            Token::Float(text) => bits_of(elem, text),
            Token::Word("inf") => bits_of(elem, "inf"),
            Token::Word("nan") => {
                self.next()?;
                let mut bits = usual_nan(elem);
                if self.eat('(')? {
                    let given = match self.token {
                        Token::Hash(hex) => u64::from_str_radix(hex, 16).ok(),
                        _ => None,
                    };
                    let mantissa = match elem {
                        Elem::F64 => 52,
                        Elem::F32 => 23,
                        Elem::F16 => 10,
                        _ => 7,
                    };
                    let exponent = bits_of(elem, "inf");
                    let fits = |b: u64| b & !(u64::MAX >> (64 - elem.bits())) == 0;
                    match given.filter(|&b| fits(b) && b & exponent == exponent && b & ((1 << mantissa) - 1) != 0) {
                        Some(b) => bits = b,
                        None => return self.expected(&format!("`#` and the bits of a NaN of {elem}")),
                    }
                    self.next()?;
                    self.expect(')')?;
                }
                return Ok(Some(bits ^ sign));
            }
            _ => return Ok(None),
        };
        self.next()?;
        Ok(Some(magnitude | sign))
    }

    // Constants.

    fn constant(&mut self, ty: &Type) -> Parsed<Tensor> {
        let Some(sizes) = ty.shape.as_fixed() else {
            return self.fault(format!("the sizes of a constant are numbers, not {}", ty.shape));
        };
        let elements = sizes.iter().try_fold(1usize, |n, &s| n.checked_mul(s)).unwrap_or(usize::MAX);
        let bytes = ty.elem.bytes(elements);
        let at = self.at;
        let data: Bytes = match self.token {
            Token::Punct('[') => self.elements(ty, elements)?.into(),
            Token::Word("splat") => {
                self.next()?;
                let element = self.element(ty.elem)?;
                let Some(left) = self.splat_left.checked_sub(bytes) else {
                    return Err(Fault { at, message: format!("splat constants of a text have at most {SPLAT_BUDGET} bytes together") });
                };
                self.splat_left = left;
                let mut data = Vec::with_capacity(bytes);
                (0..elements).for_each(|i| push_element(ty.elem, element, i, &mut data));
                data.into()
            }
            Token::Word("elided") => self.elided(bytes)?,
            _ => return self.expected("the data of a constant: a list such as [1, 2], `splat`, or `elided`"),
        };
        Tensor::new(ty.elem, sizes, data).map_err(|e| Fault { at, message: e.to_string() })
    }

    fn elements(&mut self, ty: &Type, expected: usize) -> Parsed<Vec<u8>> {
        let at = self.at;
        self.next()?;
        let mut data = vec![];
        let mut n = 0;
        self.items(']', |p| {
            if n == expected {
                return p.fault(format!("{ty} has only {expected} elements"));
            }
            let element = p.element(ty.elem)?;
            push_element(ty.elem, element, n, &mut data);
            n += 1;
            Ok(())
        })?;
        if n < expected {
            return Err(Fault { at, message: format!("{ty} has {expected} elements, but {n} are given") });
        }
        Ok(data)
    }

    /// The bits of one element.
    fn element(&mut self, elem: Elem) -> Parsed<u64> {
        if elem == Elem::Bool {
            let bit = match self.token {
                Token::Word("false") => 0,
                Token::Word("true") => 1,
                _ => return self.expected("true or false"),
            };
            self.next()?;
            return Ok(bit);
        }
        let negative = self.eat('-')?;
        if elem.is_float() {
            if let Token::Int(digits) = self.token {
                self.token = Token::Float(digits);
            }
            return match self.float_bits(elem, negative)? {
                Some(bits) => Ok(bits),
                None => self.expected("a number"),
            };
        }
        let Token::Int(digits) = self.token else {
            return self.expected("an integer");
        };
        let (min, max) = elem.int_range().expect("an integer type");
        let value = digits.parse::<i128>().ok().map(|n| if negative { -n } else { n });
        match value.filter(|n| (min..=max).contains(n)) {
            Some(n) => self.next().map(|_| n as u64),
            None => self.fault(format!("expected an element of {elem}, from {min} to {max}")),
        }
    }

    /// The data of a constant of so many bytes.
    fn elided(&mut self, bytes: usize) -> Parsed<Bytes> {
        let at = self.at;
        self.next()?;
        let hash = match self.token {
            Token::Hash(hash) => u128::from_str_radix(hash, 16).ok(),
            _ => None,
        };
        let Some(hash) = hash else {
            return self.expected("`#` and the hash of the constant");
        };
        self.next()?;
        let fault = |message| Err(Fault { at, message });
        let Some(file) = &self.file else {
            return fault(
                "the data of this constant is elided: it is in the file of constants that was written with the text, which is not given"
                    .into(),
            );
        };
        let index = match &mut self.index {
            Some(index) => index,
            none => match constants::index(file) {
                Ok((index, _)) => none.insert(index),
                Err(e) => return fault(format!("what should be the file of constants is none: {e}")),
            },
        };
        let Some(range) = index.get(&hash) else {
            return fault(format!("the file of constants is another one: it has nothing with this hash among {} constants", index.len()));
        };
        if range.len() != bytes {
            return fault(format!("this constant has {bytes} bytes, but {} with its hash are in the file of constants", range.len()));
        }
        let data = file.slice(range.clone());
        match constants::hash(&data) {
            actual if actual == hash => Ok(data),
            actual => fault(format!("the file of constants is damaged: the hash of the constant is {actual:032x}")),
        }
    }
}

fn too_large() -> String {
    format!("the dimension is too large: more than {} terms and factors", Dim::MAX_SIZE)
}

fn bounded(d: &Dim, at: usize) -> Parsed<()> {
    if d.size() <= Dim::MAX_SIZE { Ok(()) } else { Err(Fault { at, message: too_large() }) }
}

/// The bits of the float that `text` (digits or `inf`) gives.
fn bits_of(elem: Elem, text: &str) -> u64 {
    let wide: f64 = text.parse().expect("the lexer takes only what is a number");
    let narrow: f32 = text.parse().expect("the lexer takes only what is a number");
    match elem {
        Elem::F64 => wide.to_bits(),
        Elem::F32 => narrow.to_bits().into(),
        Elem::F16 => half::f16::from_f64(wide).to_bits().into(),
        _ => half::bf16::from_f64(wide).to_bits().into(),
    }
}

/// Appends element `i`, whose stored bits are the lowest of `bits`.
fn push_element(elem: Elem, bits: u64, i: usize, data: &mut Vec<u8>) {
    match elem.bits() as usize / 8 {
        0 if i % 2 == 1 => *data.last_mut().expect("the low nibble came first") |= (bits as u8 & 15) << 4,
        0 => data.push(bits as u8 & 15),
        n => data.extend_from_slice(&bits.to_le_bytes()[..n]),
    }
}
