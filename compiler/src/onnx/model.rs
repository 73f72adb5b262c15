//! A decoded ONNX model: plain structures, checked for what can be checked without knowing operators.

use super::error::Error;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;

/// A model file.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Where it came from; empty for models that were built in memory.
    pub file: PathBuf,
    /// Version of the file format.
    pub ir_version: i64,
    /// Operator set version per domain; the default domain is the empty string.
    pub opsets: BTreeMap<String, i64>,
    /// The main graph.
    pub graph: Graph,
    /// The model-local functions that are called, directly or not.
    pub functions: Vec<Function>,
    /// What no output needs and was left out: nodes, initializers, and functions, in words.
    pub unused: Vec<String>,
}

/// A graph or a subgraph.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Its name.
    pub name: String,
    /// Inputs; those that are also initializers are left out, since these are their values.
    pub inputs: Vec<ValueInfo>,
    /// Outputs.
    pub outputs: Vec<ValueInfo>,
    /// Declared types of other values.
    pub values: Vec<ValueInfo>,
    /// The tensors that are used, by name, in the order of the file.
    pub initializers: Vec<(Arc<str>, Tensor)>,
    /// The nodes that outputs need, in an order in which operands are defined before their uses.
    pub nodes: Vec<Node>,
}

/// A name with what is declared about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValueInfo {
    /// The value.
    pub name: Arc<str>,
    /// Its type, if one is declared.
    pub ty: Option<ValueType>,
}

/// A declared type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ValueType {
    /// A dense tensor.
    Tensor {
        /// ONNX code of the element type.
        elem: i32,
        /// Sizes; `None` when not even the rank is declared.
        shape: Option<Vec<Size>>,
    },
    /// Something else; the text says what.
    Other(&'static str),
}

/// A declared size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Size {
    /// A number, not negative.
    Fixed(i64),
    /// A named size.
    Named(String),
    /// Nothing is declared.
    Unknown,
}

/// An application of an operator.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name, unique in the model; nodes without one get their operator and position.
    pub name: Arc<str>,
    /// Operator.
    pub op: String,
    /// Operator domain; empty for the default one.
    pub domain: String,
    /// Which of the functions of one domain and name is meant; empty unless there are several.
    pub overload: String,
    /// Operands; an empty name is an omitted one.
    pub inputs: Vec<Arc<str>>,
    /// Results; an empty name is one that nobody wants.
    pub outputs: Vec<Arc<str>>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
}

/// The value of an attribute.
#[derive(Clone, Debug)]
pub enum Attribute {
    /// An integer.
    Int(i64),
    /// A float.
    Float(f32),
    /// A string; bytes that are not UTF-8 are replaced.
    Text(String),
    /// A tensor.
    Tensor(Tensor),
    /// A subgraph.
    Graph(Box<Graph>),
    /// Integers.
    Ints(Vec<i64>),
    /// Floats.
    Floats(Vec<f32>),
    /// Strings.
    Texts(Vec<String>),
    /// In a function body: the attribute of that name of the calling node.
    Reference(String),
    /// Something that no supported operator takes; the text says what.
    Other(&'static str),
}

impl Attribute {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Attribute::Int(_) => "an integer",
            Attribute::Float(_) => "a float",
            Attribute::Text(_) => "a string",
            Attribute::Tensor(_) => "a tensor",
            Attribute::Graph(_) => "a graph",
            Attribute::Ints(_) => "a list of integers",
            Attribute::Floats(_) => "a list of floats",
            Attribute::Texts(_) => "a list of strings",
            Attribute::Reference(_) => "a reference",
            Attribute::Other(what) => what,
        }
    }
}

/// A model-local function.
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// Its domain.
    pub domain: String,
    /// Its name.
    pub name: String,
    /// What tells it from others of the same domain and name; may be empty.
    pub overload: String,
    /// Parameters.
    pub inputs: Vec<Arc<str>>,
    /// Results.
    pub outputs: Vec<Arc<str>>,
    /// Defaults of attributes.
    pub defaults: BTreeMap<String, Attribute>,
    /// Operator set version per domain.
    pub opsets: BTreeMap<String, i64>,
    /// Body, in executable order.
    pub nodes: Vec<Node>,
}

/// Name of an ONNX element type code.
pub fn elem_name(code: i32) -> String {
    const NAMES: [&str; 27] = [
        "undefined",
        "float",
        "uint8",
        "int8",
        "uint16",
        "int16",
        "int32",
        "int64",
        "string",
        "bool",
        "float16",
        "double",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
        "bfloat16",
        "float8e4m3fn",
        "float8e4m3fnuz",
        "float8e5m2",
        "float8e5m2fnuz",
        "uint4",
        "int4",
        "float4e2m1",
        "float8e8m0",
        "uint2",
        "int2",
    ];
    usize::try_from(code).ok().and_then(|i| NAMES.get(i)).map_or_else(|| format!("element type {code}"), ToString::to_string)
}

/// The element type that an ONNX code stands for; `None` for those that are not supported.
pub fn elem_of(code: i32) -> Option<Elem> {
    Some(match code {
        1 => Elem::F32,
        2 => Elem::U8,
        3 => Elem::I8,
        4 => Elem::U16,
        5 => Elem::I16,
        6 => Elem::I32,
        7 => Elem::I64,
        9 => Elem::Bool,
        10 => Elem::F16,
        11 => Elem::F64,
        12 => Elem::U32,
        13 => Elem::U64,
        16 => Elem::Bf16,
        21 => Elem::U4,
        22 => Elem::I4,
        _ => return None,
    })
}

/// The element type of an ONNX code at `place`.
///
/// # Errors
/// When it is not supported, or there is no such code.
pub fn require_elem(code: i32, place: &str) -> Result<Elem, Error> {
    match elem_of(code) {
        Some(e) => Ok(e),
        None if (8..=26).contains(&code) => {
            Err(Error::unsupported("element type", place, format!("{} elements are not supported", elem_name(code))))
        }
        None => Err(Error::invalid(place, format!("the element type is {}, which ONNX does not define", elem_name(code)))),
    }
}
