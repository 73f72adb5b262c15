//! The canonical text form of graphs.
//!
//! A graph prints deterministically, and what is printed reads back as an equal graph:
//!
//! ```text
//! tfc.ir 1                                       the version of the format
//! graph encoder                                  the name
//!
//! symbol seq 1..512                              free dimensions with their ranges
//!
//! check seq == 2*half loc("/Split")              equalities that are checked at run time
//!
//! input %x: f32[seq, 4]
//!
//! const %w: f32[4] = [1.0, 2.0, 3.0, 4.0]        up to 8 elements
//! const %z: f32[4, 768] = splat 0.0              all elements have the same bits
//! const %"enc/b": i8[768, 768] = elided #1f…     the hash of what is in a file of constants
//!
//! %0 = softmax %x {axis = 1, log = false} : f32[seq, 4] loc("/Softmax")
//! %1 = fused %0, %w {body = {
//!   input %a: f32[seq, 4]
//!   input %b: f32[4]
//!   %0 = mul %a, %b : f32[seq, 4]
//!   output y = %0
//! }} : f32[seq, 4]
//!
//! output y = %1
//! ```
//!
//! - A value prints under its name, quoted if it is not an identifier; values without a name, or with
//!   one that an earlier value has, are numbered in the order of their definition. Constants are
//!   ordered by their first use. So the text does not depend on internal numbers.
//! - Names that are not identifiers are quoted wherever they occur, also those of symbols. In strings
//!   `\"`, `\\`, `\n`, `\r`, `\t` and `\u{…}` are escapes.
//! - Dimensions are expressions: `2*seq+1`, `div(a, b)` (rounds down), `rem(a, b)`, `min(a, b)`,
//!   `max(a, b)`, and parentheses.
//! - Floats read back with the same bits; `nan(#7fc00001)` gives the bits of a NaN that is not the usual one.
//! - A graph in braces starts with the symbols of the graph around it and lists those that differ.
//! - `//` starts a comment that goes to the end of the line; line breaks are like other white space.
//! - The data of constants of more elements are elided: the parser finds them by their hash in a file of constants, which may
//!   be that of many texts, and refuses them without it. Lists that are read may have any length.

mod constants;
mod lex;
mod parse;
mod print;

pub use constants::Constants;
pub use parse::{Lines, ParseError, parse, parse_with_lines};
pub use print::{Labels, labels, write, write_sharing};

use crate::graph::{Def, Graph};
use crate::tensor::Tensor;

/// The version of the format, printed in the first line.
pub const VERSION: u32 = 1;

/// The largest number of elements that is printed as a list.
const MAX_INLINE: usize = 8;

/// How many bytes the `splat` constants of one text may have together: a short text cannot make the
/// parser allocate more. Further ones are elided.
const SPLAT_BUDGET: usize = 1 << 28;

/// Whether a name prints without quotes.
fn is_identifier(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.bytes().all(is_word_byte)
}

fn is_word_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'.'
}

/// Words that an expression understands otherwise; symbols of these names are quoted.
pub(crate) fn is_plain_symbol(name: &str) -> bool {
    is_identifier(name) && !["div", "rem", "min", "max", "inf", "nan"].contains(&name)
}

/// Displays a string in quotes with escapes.
pub(crate) struct Quoted<'a>(pub &'a str);

impl PartialEq for Graph {
    /// Whether both print alike and have the same constants.
    fn eq(&self, other: &Graph) -> bool {
        fn constants(g: &Graph) -> Vec<&Tensor> {
            let order = print::constants(g);
            order.into_iter().filter_map(|v| if let Def::Const(t) = &g.value(v).def { Some(t) } else { None }).collect()
        }
        self.to_string() == other.to_string() && constants(self) == constants(other)
    }
}

impl Eq for Graph {}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn message(text: &str) -> String {
        parse(text, None).expect_err("a broken text").to_string()
    }

    #[track_caller]
    fn round_trip(text: &str) {
        let graph = parse(text, None).unwrap_or_else(|e| panic!("{e}"));
        let printed = graph.to_string();
        assert_eq!(printed, text);
        assert_eq!(parse(&printed, None).unwrap_or_else(|e| panic!("{e}")), graph);
    }

    #[test]
    fn every_part_prints_as_it_was_read() {
        round_trip(
            r#"tfc.ir 1
graph "my model"

symbol "batch size" 1..8
symbol m 1..2147483647
symbol seq 0..512

check seq == 2*m+1 loc("/Add")

input %x: f32["batch size"*m+1, div(seq, 2)]
input %"a/b": i8[4, 4] quant<[i8, [-128, 127], [axis, 0], symmetric, f32]>

const %w: f16[4] = splat -0.5
const %0: bool[2] = [true, false]
const %unused: i4[3] = [-8, 7, 0]

%1 = reduce %x {kind = max, axes = [0, 1], keep = false} : f32[]
%y = gelu %1 {tanh = true} : f32[] loc("/Gelu", "/Tanh \"1\"\n")
%2 = iota {elem = i32, shape = ["batch size", 2*seq+1, -9223372036854775808*m], axis = 0} : i32[3]
%3, %z = fused %y, %w {body = {
  graph body
  symbol other 1..2
  input %0: f32[other]
  input %1: f16[4]
  const %2: f64[2] = [inf, nan(#fff8000000000001)]
  %3 = fused %0 {body = {
    input %0: f32[other]
    output "" = %0
  }} : f32[other]
  output a = %3
  output b = %2
}} : f32[], f64[2]
%4 = concat %0, %0 {axis = 0} : bool[4]

output "out 1" = %3
output out = %x
"#,
        );
    }

    #[test]
    fn floats_keep_their_bits() {
        for text in ["f32[5] = [inf, -inf, nan, nan(#ffc00000), nan(#7f800001)]", "f32[4] = [-0.0, 1e-45, 3.4028235e38, 0.1]"] {
            round_trip(&format!("tfc.ir 1\n\nconst %0: {text}\n"));
        }
        for x in [0.1, f64::MIN_POSITIVE, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -f64::NAN] {
            let attribute = crate::attr::AttrValue::Float(x).to_string();
            round_trip(&format!("tfc.ir 1\n\ninput %x: f32[2]\n\n%0 = rms_norm %x {{axes = 1, epsilon = {attribute}}} : f32[2]\n"));
        }
    }

    #[test]
    fn large_constants_go_to_a_file() {
        let mut graph = Graph::new("g");
        let small = graph.add_const(Tensor::of(&[9], (0..9u8).collect()), Some("small".into()));
        let large = graph.add_const(Tensor::of(&[100], (0..100i64).collect()), None);
        let same = graph.add_const(Tensor::of(&[3, 3], (0..9u8).collect()), None);
        graph.add_output("b", large);
        graph.add_output("a", small);
        graph.add_output("c", same);
        let (mut text, mut file) = (vec![], vec![]);
        let written = write(&graph, &mut text, Some(&mut file)).unwrap();
        assert_eq!((written, file.len()), (64 + 64 + 832 + 64 + 64, 64 + 64 + 832 + 64 + 64));
        let text = String::from_utf8(text).unwrap();
        // What is printed for people is the same, and can be read with the file too.
        assert_eq!(text, graph.to_string());
        assert_eq!(text.matches("elided #").count(), 3, "{text}");
        assert_eq!(parse(&text, Some(file.clone().into())).unwrap(), graph);
        let error = |file: Option<Bytes>| parse(&text, file).unwrap_err().message;
        file[150] ^= 1;
        assert!(error(Some(file.clone().into())).contains("the file of constants is damaged"), "{}", error(Some(file.clone().into())));
        assert!(error(Some(file[..900].to_vec().into())).contains("has nothing with this hash"));
        assert!(error(Some(Bytes::new())).contains("is none"));
        assert!(error(None).contains("which is not given"));
        let more = text.replace("i64[100]", "i64[101]");
        file[150] ^= 1;
        assert!(parse(&more, Some(file.into())).unwrap_err().message.contains("808"));
    }

    #[test]
    fn texts_share_a_file() {
        let graph = |name: &str| {
            let mut graph = Graph::new(name);
            let shared = graph.add_const(Tensor::of(&[50], (0..50u8).collect()), None);
            let own = graph.add_const(Tensor::of(&[20], [name.len() as u8, 1].repeat(10)), None);
            graph.add_output("a", shared);
            graph.add_output("b", own);
            graph
        };
        let graphs = ["first", "second"].map(graph);
        let mut file = vec![];
        let mut constants = Constants::new(&mut file);
        let texts = graphs.each_ref().map(|g| {
            let mut text = vec![];
            write_sharing(g, &mut text, &mut constants).unwrap();
            String::from_utf8(text).unwrap()
        });
        drop(constants);
        assert_eq!(file.len(), 64 + 3 * 128);
        let file = Bytes::from(file);
        assert!(texts.iter().zip(graphs).all(|(t, g)| parse(t, Some(file.clone())).unwrap() == g));
    }

    #[test]
    fn labels_do_not_depend_on_internal_numbers() {
        let mut graph = Graph::new("g");
        let late = graph.add_const(Tensor::of(&[1], vec![1i8]), Some("x".into()));
        let early = graph.add_const(Tensor::of(&[1], vec![2i8]), None);
        let x = graph.add_input("x", crate::types::Type::fixed(crate::types::Elem::F32, &[]));
        for v in [early, late, x] {
            graph.add_output("o", v);
        }
        let labels = labels(&graph);
        assert_eq!([early, late, x].map(|v| labels.get(v)), ["%0", "%1", "%x"]);
    }

    #[test]
    fn errors_show_the_place() {
        let text = "tfc.ir 1\n// a comment\ninput %x: f32[2, ]  // another\n";
        assert_eq!(
            message(text),
            "3:18: expected a dimension such as 4, seq, or div(seq, 2), found `]`\n  |\n3 | input %x: f32[2, ]  // another\n  |                  ^"
        );
        assert!(message("tfc.ir 2").starts_with("1:8: expected 1, the version"));
        assert!(message("").starts_with("1:1: expected the first line `tfc.ir 1`, found the end of the text"));
        assert!(message("tfc.ir 1 input %x: f32[n]").contains("the symbol n is not declared"));
        assert!(message("tfc.ir 1 input %x: f32[] input %x: f32[]").contains("%x is already defined in line 1"));
        assert!(message("tfc.ir 1 %0 = exp %1 : f32[]").contains("%1 is not defined above"));
        assert!(message("tfc.ir 1 %0 = explode : f32[]").contains("no operator called explode"));
        assert!(message("tfc.ir 1 const %0: i8[1] = [128]").contains("from -128 to 127"));
        assert!(message("tfc.ir 1 const %0: i8[2] = [1]").contains("has 2 elements, but 1 are given"));
        assert!(message("tfc.ir 1 const %0: i8[1] = [1, 2]").contains("has only 1 elements"));
        assert!(message("tfc.ir 1 graph \"a\nb\"").contains("closing quote"));
    }

    #[test]
    fn small_texts_cannot_take_much_memory_or_stack() {
        assert!(message("tfc.ir 1 const %0: i8[4096, 1048576] = splat 0").contains("at most"));
        assert!(message("tfc.ir 1 const %0: i8[9223372036854775807, 4, 4] = splat 0").contains("at most"));
        let deep = format!("tfc.ir 1 input %x: f32[{}", "(".repeat(100_000));
        assert!(message(&deep).contains("nested more than"));
        let deep = format!("tfc.ir 1 {}", "%0 = fused {body = {".repeat(100_000));
        assert!(message(&deep).contains("graphs are nested more than"));
        let product: String = (0..40).map(|i| format!("symbol a{i} 1..2 ")).collect();
        let factors: Vec<String> = (0..40).map(|i| format!("(a{i}+1)")).collect();
        assert!(message(&format!("tfc.ir 1 {product} input %x: f32[{}]", factors.join("*"))).contains("the dimension is too large"));
    }
}
