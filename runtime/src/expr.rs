//! Dimension expressions in text form: `batch`, `2*seq+1`, `div(n-1, 16)+1`.
//!
//! The grammar is what the compiler prints, with parentheses and blanks allowed besides:
//!
//! ```text
//! sum     = ["-"] product { ("+" | "-") product }
//! product = factor { "*" factor }
//! factor  = number | symbol | ("div" | "rem" | "min" | "max") "(" sum "," sum ")" | "(" sum ")"
//! ```
//!
//! `div` rounds towards minus infinity and `rem` is what it leaves, with the sign of the divisor. A
//! symbol is any run of characters without blanks and `+-*(),` that does not begin with a digit, or any
//! characters in double quotes, with the escapes `\"`, `\\`, `\n`, `\r`, `\t` and `\u{HEX}`: so are names
//! written that would read as something else.

use std::collections::{BTreeMap, BTreeSet};

/// Values of symbols.
pub type Bindings = BTreeMap<String, i64>;

/// A parsed expression.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expr {
    /// A number; wider than sizes are, since the text of the smallest `i64` has a sign of its own.
    Number(i128),
    /// A named size.
    Symbol(String),
    /// `a op b`.
    Binary(Op, Box<Expr>, Box<Expr>),
}

/// An operation on two sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a * b`.
    Mul,
    /// `floor(a / b)`.
    Div,
    /// `a - b * floor(a / b)`.
    Rem,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
}

impl Op {
    /// The result; `None` when a divisor is 0 or the result is too large.
    fn apply(self, a: i128, b: i128) -> Option<i128> {
        match self {
            Op::Add => a.checked_add(b),
            Op::Sub => a.checked_sub(b),
            Op::Mul => a.checked_mul(b),
            Op::Div => floor_div(a, b),
            Op::Rem => a.checked_sub(b.checked_mul(floor_div(a, b)?)?),
            Op::Min => Some(a.min(b)),
            Op::Max => Some(a.max(b)),
        }
    }
}

fn floor_div(a: i128, b: i128) -> Option<i128> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) { q - 1 } else { q })
}

/// Why a text is not an expression.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("`{text}` is not a dimension expression: at byte {at}, expected {expected}")]
pub struct ExprError {
    /// The whole text.
    pub text: String,
    /// Where in it.
    pub at: usize,
    /// What would be right there.
    pub expected: &'static str,
}

impl Expr {
    /// The expression that `text` spells.
    pub fn parse(text: &str) -> Result<Expr, ExprError> {
        let mut p = Parser { text, at: 0, depth: 0 };
        let e = p.sum()?;
        if p.at < text.len() { Err(p.expected("an operator or the end")) } else { Ok(e) }
    }

    /// The value. `None` when a symbol has no value, a divisor is 0, or the result leaves `i64`.
    pub fn eval(&self, bindings: &Bindings) -> Option<i64> {
        self.eval_wide(bindings).and_then(|v| i64::try_from(v).ok())
    }

    fn eval_wide(&self, bindings: &Bindings) -> Option<i128> {
        match self {
            Expr::Number(n) => Some(*n),
            Expr::Symbol(s) => bindings.get(s).map(|&v| i128::from(v)),
            Expr::Binary(op, a, b) => op.apply(a.eval_wide(bindings)?, b.eval_wide(bindings)?),
        }
    }

    /// The value of the only symbol without one at which the expression is `value`.
    pub fn solve(&self, value: i64, bindings: &Bindings) -> Solution {
        let mut unknown = BTreeSet::new();
        self.collect_symbols(&mut unknown);
        unknown.retain(|s| !bindings.contains_key(*s));
        let mut unknown = unknown.into_iter();
        let (Some(symbol), None) = (unknown.next(), unknown.next()) else {
            return Solution::Unknown;
        };
        match self.affine(symbol, bindings) {
            Some((a, b)) if a != 0 => {
                let rest = i128::from(value) - b;
                match i64::try_from(rest / a) {
                    Ok(v) if rest % a == 0 => Solution::Value(symbol.to_owned(), v),
                    _ => Solution::Impossible(symbol.to_owned()),
                }
            }
            _ => Solution::Unknown,
        }
    }

    /// `(a, b)` such that the expression is `a * symbol + b` when the other symbols have their values.
    fn affine(&self, symbol: &str, bindings: &Bindings) -> Option<(i128, i128)> {
        match self {
            Expr::Number(n) => Some((0, *n)),
            Expr::Symbol(s) if s == symbol => Some((1, 0)),
            Expr::Symbol(s) => Some((0, i128::from(*bindings.get(s)?))),
            Expr::Binary(op, x, y) => {
                let (a, b) = x.affine(symbol, bindings)?;
                let (c, d) = y.affine(symbol, bindings)?;
                match op {
                    Op::Add => Some((a.checked_add(c)?, b.checked_add(d)?)),
                    Op::Sub => Some((a.checked_sub(c)?, b.checked_sub(d)?)),
                    Op::Mul if a == 0 => Some((b.checked_mul(c)?, b.checked_mul(d)?)),
                    Op::Mul if c == 0 => Some((a.checked_mul(d)?, b.checked_mul(d)?)),
                    _ if a == 0 && c == 0 => Some((0, op.apply(b, d)?)),
                    _ => None,
                }
            }
        }
    }

    /// Adds the symbols that it mentions to `out`.
    pub fn collect_symbols<'a>(&'a self, out: &mut BTreeSet<&'a str>) {
        match self {
            Expr::Number(_) => {}
            Expr::Symbol(s) => {
                out.insert(s);
            }
            Expr::Binary(_, a, b) => {
                a.collect_symbols(out);
                b.collect_symbols(out);
            }
        }
    }
}

/// What [`Expr::solve`] finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Solution {
    /// The symbol has this value.
    Value(String, i64),
    /// No integer value of the symbol gives the wanted size.
    Impossible(String),
    /// The expression has no symbol without a value, more than one, or is not linear in it.
    Unknown,
}

/// Deepest nesting that the parser follows, so that a damaged manifest cannot exhaust the stack.
const MAX_DEPTH: usize = 100;
/// Most operations in one expression, for the same reason: a sum of many terms is a deep tree.
const MAX_BYTES: usize = 10_000;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn expected(&self, expected: &'static str) -> ExprError {
        ExprError { text: self.text.chars().take(200).collect(), at: self.at, expected }
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Whether `c` comes next; if so it is consumed, with the blanks around it.
    fn eat(&mut self, c: char) -> bool {
        self.skip_blanks();
        let found = self.text[self.at..].starts_with(c);
        if found {
            self.at += c.len_utf8();
            self.skip_blanks();
        }
        found
    }

    fn want(&mut self, c: char, expected: &'static str) -> Result<(), ExprError> {
        if self.eat(c) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn sum(&mut self) -> Result<Expr, ExprError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH || self.text.len() > MAX_BYTES {
            return Err(self.expected("a shorter expression"));
        }
        let mut sum = if self.eat('-') { binary(Op::Sub, Expr::Number(0), self.product()?) } else { self.product()? };
        loop {
            if self.eat('+') {
                sum = binary(Op::Add, sum, self.product()?);
            } else if self.eat('-') {
                sum = binary(Op::Sub, sum, self.product()?);
            } else {
                self.depth -= 1;
                return Ok(sum);
            }
        }
    }

    fn product(&mut self) -> Result<Expr, ExprError> {
        let mut product = self.factor()?;
        while self.eat('*') {
            product = binary(Op::Mul, product, self.factor()?);
        }
        Ok(product)
    }

    /// The rest of a name in quotes; the opening one is behind.
    fn quoted(&mut self) -> Result<String, ExprError> {
        let mut name = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(c) = rest.chars().next() else { return Err(self.expected("`\"` at the end of a name")) };
            let escape = if c == '\\' { rest.chars().nth(1) } else { None };
            let (meant, taken) = match (c, escape) {
                ('"', _) => {
                    self.at += 1;
                    return Ok(name);
                }
                ('\\', Some('n')) => ('\n', 2),
                ('\\', Some('r')) => ('\r', 2),
                ('\\', Some('t')) => ('\t', 2),
                ('\\', Some('u')) => {
                    let digits = rest[2..].strip_prefix('{').and_then(|r| r.split_once('}')).map(|(d, _)| d);
                    let code = digits.and_then(|d| u32::from_str_radix(d, 16).ok()).and_then(char::from_u32);
                    match (digits, code) {
                        (Some(d), Some(code)) => (code, d.len() + 4),
                        _ => return Err(self.expected("an escape such as `\\u{7f}`")),
                    }
                }
                ('\\', Some(c @ ('"' | '\\'))) => (c, 2),
                ('\\', _) => return Err(self.expected("an escape")),
                (c, _) => (c, c.len_utf8()),
            };
            name.push(meant);
            self.at += taken;
        }
    }

    fn factor(&mut self) -> Result<Expr, ExprError> {
        if self.eat('(') {
            let e = self.sum()?;
            self.want(')', "`)`")?;
            return Ok(e);
        }
        if self.eat('"') {
            return self.quoted().map(Expr::Symbol);
        }
        let rest = &self.text[self.at..];
        let word = &rest[..rest.find(|c: char| c.is_whitespace() || "+-*(),".contains(c)).unwrap_or(rest.len())];
        if word.is_empty() {
            return Err(self.expected("a number, a symbol, a function or `(`"));
        }
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let n = word.parse::<u64>().map_err(|_| self.expected("a number of at most 64 bits"))?;
            self.at += word.len();
            return Ok(Expr::Number(n.into()));
        }
        self.at += word.len();
        let op = match word {
            "div" => Op::Div,
            "rem" => Op::Rem,
            "min" => Op::Min,
            "max" => Op::Max,
            _ => return Ok(Expr::Symbol(word.to_owned())),
        };
        if !self.eat('(') {
            return Ok(Expr::Symbol(word.to_owned()));
        }
        let a = self.sum()?;
        self.want(',', "`,`")?;
        let b = self.sum()?;
        self.want(')', "`)`")?;
        Ok(binary(op, a, b))
    }
}

fn binary(op: Op, a: Expr, b: Expr) -> Expr {
    Expr::Binary(op, Box::new(a), Box::new(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(text: &str) -> Option<i64> {
        let bindings = Bindings::from([("n".into(), 7), ("seq".into(), 128), ("min".into(), 3)]);
        Expr::parse(text).unwrap().eval(&bindings)
    }

    #[test]
    fn printed_dimensions_are_evaluated() {
        for (text, value) in [
            ("0", 0),
            ("64", 64),
            ("-5", -5),
            ("seq", 128),
            ("2*seq+1", 257),
            ("-seq+n", -121),
            ("n*n*seq-n+3", 49 * 128 - 4),
            ("n-2*seq", 7 - 256),
            ("div(n, 2)", 3),
            ("div(-n, 2)", -4),
            ("rem(-n, 2)", 1),
            ("rem(n, -2)", -1),
            ("3*div(n+1, 2)*n", 84),
            ("max(n, seq)+min(n, div(seq, 64))", 130),
            ("min + min(min, 2)", 5),
            ("\"min\"+min(\"min\", \"n\")", 6),
            (" ( n + 1 ) * 2 ", 16),
            ("n-(seq-1)", -120),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(eval(text), Some(value), "{text}");
        }
    }

    #[test]
    fn values_that_do_not_exist_are_none() {
        assert_eq!(eval("div(n, 0)"), None);
        assert_eq!(eval("rem(n, n-7)"), None);
        assert_eq!(eval("other+1"), None);
        assert_eq!(eval("9223372036854775807+1"), None);
        assert_eq!(eval(&["9223372036854775807"; 9].join("*")), None);
    }

    #[test]
    fn other_texts_are_errors_with_a_place() {
        for (text, at) in [
            ("", 0),
            ("2x", 0),
            ("n+", 2),
            ("n n", 2),
            ("div(n)", 5),
            ("(n", 2),
            ("n)", 1),
            ("div(n, 2", 8),
            ("1e9", 0),
            ("\"n", 2),
            ("\"\\q\"", 1),
            ("\"\\u{110000}\"", 1),
        ] {
            assert_eq!(Expr::parse(text).map_err(|e| e.at), Err(at), "{text}");
        }
        assert!(Expr::parse(&"(".repeat(100_000)).is_err());
        assert!(Expr::parse(&"1+".repeat(100_000)).is_err());
    }

    #[test]
    fn linear_expressions_are_solved() {
        let solve = |text: &str, value| Expr::parse(text).unwrap().solve(value, &Bindings::from([("n".into(), 7)]));
        let found = |v| Solution::Value("s".into(), v);
        assert_eq!(solve("s", 5), found(5));
        assert_eq!(solve("2*s+1", 257), found(128));
        assert_eq!(solve("n*s-s+div(n, 2)", 63), found(10));
        assert_eq!(solve("n-s", 3), found(4));
        assert_eq!(solve("2*s+1", 4), Solution::Impossible("s".into()));
        assert_eq!(solve("div(s, 2)", 4), Solution::Unknown);
        assert_eq!(solve("s*t", 4), Solution::Unknown);
        assert_eq!(solve("s-s", 0), Solution::Unknown);
        assert_eq!(solve("n+1", 8), Solution::Unknown);
    }
}
