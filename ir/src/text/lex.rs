//! The lexer.

use super::is_word_byte;

/// A token. Strings are unescaped.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Token<'a> {
    /// `softmax`, `tfc.ir`, `f32`.
    Word(&'a str),
    /// `%x` or `%"x/y"`.
    Value(String),
    /// `%12`.
    Numbered(&'a str),
    /// Digits.
    Int(&'a str),
    /// `1.0`, `1e-5`.
    Float(&'a str),
    /// `"text"`.
    Str(String),
    /// `#` and hexadecimal digits, without the `#`.
    Hash(&'a str),
    /// One of `[ ] { } ( ) < > , : = + - *`.
    Punct(char),
    /// `..`
    DotDot,
    /// `==`
    EqEq,
    /// The end of the text.
    End,
}

impl Token<'_> {
    /// What the token is called in messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Token::Word(w) => format!("`{w}`"),
            Token::Value(name) => format!("the value %{name}"),
            Token::Numbered(n) => format!("the value %{n}"),
            Token::Int(n) | Token::Float(n) => format!("the number {n}"),
            Token::Str(_) => "a string".into(),
            Token::Hash(_) => "a hash".into(),
            Token::Punct(c) => format!("`{c}`"),
            Token::DotDot => "`..`".into(),
            Token::EqEq => "`==`".into(),
            Token::End => "the end of the text".into(),
        }
    }
}

/// Splits a text into tokens. A clone looks ahead.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// Line of `at`, from 1.
    line: u32,
}

/// What is wrong, and the byte where.
pub(super) type LexError = (usize, String);

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Lexer { text, at: 0, line: 1 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take(&mut self, bytes: usize) -> &'a str {
        let taken = &self.text[self.at..self.at + bytes];
        self.at += bytes;
        taken
    }

    fn take_while(&mut self, mut accept: impl FnMut(u8) -> bool) -> &'a str {
        let n = self.rest().bytes().take_while(|&b| accept(b)).count();
        self.take(n)
    }

    fn skip_space(&mut self) {
        loop {
            let space = self.take_while(|b| b.is_ascii_whitespace());
            self.line += space.bytes().filter(|&b| b == b'\n').count() as u32;
            if !self.rest().starts_with("//") {
                return;
            }
            self.take_while(|b| b != b'\n');
        }
    }

    /// The next token, the byte where it starts, and its line.
    pub(super) fn next(&mut self) -> Result<(Token<'a>, usize, u32), LexError> {
        self.skip_space();
        let (start, line) = (self.at, self.line);
        let Some(c) = self.rest().chars().next() else {
            return Ok((Token::End, start, line));
        };
        let token = match c {
            '.' if self.rest().starts_with("..") => {
                self.take(2);
                Token::DotDot
            }
            '=' if self.rest().starts_with("==") => {
                self.take(2);
                Token::EqEq
            }
            '[' | ']' | '{' | '}' | '(' | ')' | '<' | '>' | ',' | ':' | '=' | '+' | '-' | '*' => {
                self.take(1);
                Token::Punct(c)
            }
            'a'..='z' | 'A'..='Z' | '_' => Token::Word(self.take_while(is_word_byte)),
            '0'..='9' => self.number()?,
            '"' => Token::Str(self.string()?),
            '#' => {
                self.take(1);
                Token::Hash(self.take_while(|b| b.is_ascii_hexdigit()))
            }
            '%' => {
                self.take(1);
                match self.rest().bytes().next() {
                    Some(b'"') => Token::Value(self.string()?),
                    Some(b'0'..=b'9') => Token::Numbered(self.take_while(|b| b.is_ascii_digit())),
                    Some(b) if is_word_byte(b) && b != b'.' => Token::Value(self.take_while(is_word_byte).into()),
                    _ => return Err((start, "expected a name or a number after `%`".into())),
                }
            }
            _ => return Err((start, format!("unexpected character {c:?}"))),
        };
        Ok((token, start, line))
    }

    fn number(&mut self) -> Result<Token<'a>, LexError> {
        let start = self.at;
        let digit = |s: &str, i: usize| s.as_bytes().get(i).is_some_and(u8::is_ascii_digit);
        self.take_while(|b| b.is_ascii_digit());
        let mut float = false;
        if self.rest().starts_with('.') && digit(self.rest(), 1) {
            float = true;
            self.take(1);
            self.take_while(|b| b.is_ascii_digit());
        }
        if self.rest().starts_with(['e', 'E']) {
            let signed = usize::from(self.rest()[1..].starts_with(['+', '-']));
            if digit(self.rest(), 1 + signed) {
                float = true;
                self.take(1 + signed);
                self.take_while(|b| b.is_ascii_digit());
            }
        }
        let text = &self.text[start..self.at];
        if self.rest().bytes().next().is_some_and(|b| is_word_byte(b) && b != b'.') {
            return Err((start, "expected a number; names start with a letter".into()));
        }
        Ok(if float { Token::Float(text) } else { Token::Int(text) })
    }

    fn string(&mut self) -> Result<String, LexError> {
        let start = self.at;
        self.take(1);
        let mut out = String::new();
        loop {
            let at = self.at;
            let Some(c) = self.rest().chars().next().filter(|&c| c != '\n') else {
                return Err((start, "expected a closing quote on the same line".into()));
            };
            self.take(c.len_utf8());
            match c {
                '"' => return Ok(out),
                '\\' => {
                    out.push(self.escape().ok_or_else(|| (at, "expected one of the escapes \\\" \\\\ \\n \\r \\t \\u{…}".to_string()))?)
                }
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.take(c.len_utf8());
        match c {
            '"' | '\\' => Some(c),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'u' => {
                let (code, _) = self.rest().strip_prefix('{')?.split_once('}')?;
                let c = u32::from_str_radix(code, 16).ok().and_then(char::from_u32)?;
                self.take(code.len() + 2);
                Some(c)
            }
            _ => None,
        }
    }
}
