//! From an ONNX file to [`Model`]: protobuf types stay in here and in `tensors`.

use super::error::Error;
use super::model::{Attribute, Function, Graph, Model, Node, Size, ValueInfo, ValueType};
use super::order;
use super::tensors::{Contents, map_file};
use super::wire;
use bytes::Bytes;
use onnx_protobuf::tensor_shape_proto::dimension;
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto,
    type_proto,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tfc_ir::tensor::Tensor;

/// Reads a model file. Contents of tensors are mapped, not copied.
///
/// # Errors
/// When the file cannot be read, is not an ONNX model, is damaged, or uses tensors of unsupported types.
/// What no output needs is left out unseen.
pub fn read(path: &Path) -> Result<Model, Error> {
    let bytes = map_file(path)?;
    let mut model = decode(&bytes, Some(path)).map_err(|e| e.in_file(path))?;
    model.file = path.into();
    Ok(model)
}

/// Decodes a model that was read from `path`: external data lie [relative to it](Contents).
///
/// # Errors
/// As [`read`].
pub fn decode(file: &Bytes, path: Option<&Path>) -> Result<Model, Error> {
    const HELP: &str = "is this an ONNX file?";
    if file.is_empty() {
        return Err(Error::invalid("", "the file is empty").help(HELP));
    }
    let stripped = wire::strip(file, wire::Message::Model)?;
    let proto = ModelProto::parse_from_bytes(&stripped.message)
        .map_err(|e| Error::invalid("", format!("the file cannot be decoded: {e}")).help(HELP))?;
    let Some(graph) = proto.graph.into_option() else {
        return Err(Error::invalid("", "the file has no graph").help(HELP));
    };
    if proto.ir_version < 3 {
        return Err(
            Error::invalid("", format!("the file has the IR version {}, but 3 is the first stable one", proto.ir_version)).help(HELP)
        );
    }
    let mut d = Decoder { contents: Contents::new(stripped.contents, path), ..Decoder::default() };
    let graph = d.graph(graph, "")?;
    let functions = d.functions(proto.functions)?;
    let opsets = opsets(&proto.opset_import)?;
    Ok(Model { file: PathBuf::new(), ir_version: proto.ir_version, opsets, graph, functions, unused: d.unused })
}

/// Decodes one tensor that was written on its own (`TensorProto`), as ONNX's test data is.
///
/// # Errors
/// As [`read`].
pub fn decode_tensor(file: &Bytes) -> Result<(String, Tensor), Error> {
    let stripped = wire::strip(file, wire::Message::Tensor)?;
    let proto =
        TensorProto::parse_from_bytes(&stripped.message).map_err(|e| Error::invalid("", format!("the tensor cannot be decoded: {e}")))?;
    let name = proto.name.clone();
    let tensor = Contents::new(stripped.contents, None).tensor(proto, &format!("tensor `{name}`"))?;
    Ok((name, tensor))
}

/// `ai.onnx` is the default domain's other name.
fn domain(name: String) -> String {
    if name == "ai.onnx" { String::new() } else { name }
}

fn opsets(imports: &[OperatorSetIdProto]) -> Result<BTreeMap<String, i64>, Error> {
    let mut out = BTreeMap::new();
    for o in imports {
        let d = domain(o.domain.clone());
        if let Some(other) = out.insert(d.clone(), o.version)
            && other != o.version
        {
            return Err(Error::invalid("", format!("the file imports the versions {other} and {} of the operator set `{d}`", o.version)));
        }
    }
    Ok(out)
}

/// Domain, name, and overload of a function.
type FunctionId = (String, String, String);

#[derive(Default)]
struct Decoder {
    contents: Contents,
    /// How many nodes without a name each operator had.
    unnamed: BTreeMap<String, usize>,
    /// What the nodes apply: operators and functions.
    called: Vec<FunctionId>,
    unused: Vec<String>,
}

impl Decoder {
    /// `place` is empty for the main graph, or the node that holds the subgraph.
    fn graph(&mut self, g: GraphProto, place: &str) -> Result<Graph, Error> {
        let mut seen = BTreeSet::new();
        for name in g.initializer.iter().map(|t| &t.name).chain(g.sparse_initializer.iter().map(|t| &t.values.name)) {
            if name.is_empty() || !seen.insert(name.clone()) {
                let what = if name.is_empty() { "an initializer has no name" } else { "two initializers have this name" };
                return Err(Error::invalid(format!("initializer `{name}`"), what));
            }
        }
        // Branches may return one value twice.
        distinct(&g.input, "input")?;
        distinct(if place.is_empty() { &g.output } else { &[] }, "output")?;
        let inputs: Vec<ValueInfoProto> = g.input.into_iter().filter(|i| !seen.contains(&i.name)).collect();
        let mut nodes = g.node;
        nodes.iter_mut().for_each(|n| self.give_name(n));
        let defined: BTreeSet<&str> = inputs.iter().map(|i| i.name.as_str()).chain(seen.iter().map(String::as_str)).collect();
        let outputs = |n: &'_ NodeProto| n.output.iter().find(|o| !o.is_empty() && defined.contains(o.as_str())).cloned();
        if let Some((n, o)) = nodes.iter().find_map(|n| outputs(n).map(|o| (n, o))) {
            let message = format!("the value `{o}` is defined twice; first as an input or initializer");
            return Err(Error::invalid(order::place_of(n, ""), message));
        }
        let nodes = self.executable(nodes, g.output.iter().map(|o| o.name.as_str()), place)?;
        let mut used: BTreeSet<&str> = g.output.iter().map(|o| o.name.as_str()).collect();
        nodes.iter().for_each(|n| used.extend(order::used_names(n)));
        let mut initializers: Vec<(Arc<str>, Tensor)> = Vec::with_capacity(g.initializer.len());
        for t in g.initializer {
            let at = format!("initializer `{}`", t.name);
            if used.contains(t.name.as_str()) {
                initializers.push((t.name.as_str().into(), self.contents.tensor(t, &at)?));
            } else {
                self.unused.push(at);
            }
        }
        if let Some(s) = g.sparse_initializer.iter().find(|s| used.contains(s.values.name.as_str())) {
            return Err(Error::unsupported("tensor", &s.values.name, "sparse initializers are not supported"));
        }
        self.unused.extend(g.sparse_initializer.iter().map(|s| format!("initializer `{}`", s.values.name)));
        Ok(Graph {
            name: g.name,
            inputs: inputs.into_iter().map(|v| value_info(v, "input", true)).collect::<Result<_, _>>()?,
            outputs: g.output.iter().map(|v| value_info(v.clone(), "output", false)).collect::<Result<_, _>>()?,
            values: g.value_info.into_iter().map(|v| value_info(v, "value", false)).collect::<Result<_, _>>()?,
            initializers,
            nodes: nodes.into_iter().map(|n| self.node(n)).collect::<Result<_, _>>()?,
        })
    }

    /// The nodes that are needed, in order; the others are noted.
    fn executable<'a>(
        &mut self,
        nodes: Vec<NodeProto>,
        wanted: impl Iterator<Item = &'a str>,
        place: &str,
    ) -> Result<Vec<NodeProto>, Error> {
        let (needed, others) = order::executable(nodes, wanted, place)?;
        self.unused.extend(others.iter().map(|n| order::place_of(n, place)));
        Ok(needed)
    }

    /// Decodes the functions that are called, directly or not.
    fn functions(&mut self, list: Vec<FunctionProto>) -> Result<Vec<Function>, Error> {
        let mut open = BTreeMap::new();
        for f in list {
            let id = (domain(f.domain.clone()), f.name.clone(), f.overload.clone());
            let place = format!("function `{}`", f.name);
            if open.insert(id, f).is_some() {
                return Err(Error::invalid(place, "two functions have this domain, name, and overload"));
            }
        }
        let mut functions = vec![];
        while let Some(id) = self.called.pop() {
            if let Some(f) = open.remove(&id) {
                functions.push(self.function(f)?);
            }
        }
        self.unused.extend(open.into_values().map(|f| format!("function `{}`", f.name)));
        Ok(functions)
    }

    fn function(&mut self, f: FunctionProto) -> Result<Function, Error> {
        let place = format!("function `{}`", f.name);
        let mut nodes = f.node;
        nodes.iter_mut().for_each(|n| self.give_name(n));
        let nodes = self.executable(nodes, f.output.iter().map(String::as_str), &place)?;
        let mut defaults: BTreeMap<String, Attribute> = BTreeMap::new();
        for a in f.attribute_proto {
            let name = a.name.clone();
            defaults.insert(name, self.attribute(a, &place)?);
        }
        Ok(Function {
            domain: domain(f.domain),
            name: f.name,
            overload: f.overload,
            inputs: f.input.iter().map(|s| s.as_str().into()).collect(),
            outputs: f.output.iter().map(|s| s.as_str().into()).collect(),
            defaults,
            opsets: opsets(&f.opset_import)?,
            nodes: nodes.into_iter().map(|n| self.node(n)).collect::<Result<_, _>>()?,
        })
    }

    /// Names a node without a name after its operator and its place among those of that operator.
    fn give_name(&mut self, n: &mut NodeProto) {
        if n.name.is_empty() {
            let count = self.unnamed.entry(n.op_type.clone()).or_default();
            n.name = format!("{}_{count}", n.op_type);
            *count += 1;
        }
    }

    fn node(&mut self, n: NodeProto) -> Result<Node, Error> {
        let place = order::place_of(&n, "");
        let mut attributes = BTreeMap::new();
        for a in n.attribute {
            let key = a.name.clone();
            let value = self.attribute(a, &place)?;
            if attributes.insert(key.clone(), value).is_some() {
                return Err(Error::invalid(place, format!("the attribute `{key}` is given twice")));
            }
        }
        let node = Node {
            name: n.name.into(),
            op: n.op_type,
            domain: domain(n.domain),
            overload: n.overload,
            inputs: n.input.iter().map(|s| s.as_str().into()).collect(),
            outputs: n.output.iter().map(|s| s.as_str().into()).collect(),
            attributes,
        };
        self.called.push((node.domain.clone(), node.op.clone(), node.overload.clone()));
        Ok(node)
    }

    fn attribute(&mut self, a: AttributeProto, place: &str) -> Result<Attribute, Error> {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        if !a.ref_attr_name.is_empty() {
            return Ok(Attribute::Reference(a.ref_attr_name));
        }
        let at = format!("{place}, attribute `{}`", a.name);
        Ok(match a.type_.value() {
            1 => Attribute::Float(a.f),
            2 => Attribute::Int(a.i),
            3 => Attribute::Text(text(&a.s)),
            4 => match a.t.into_option() {
                Some(t) => Attribute::Tensor(self.contents.tensor(t, &at)?),
                None => return Err(Error::invalid(at, "the tensor is missing")),
            },
            5 => match a.g.into_option() {
                Some(g) => Attribute::Graph(Box::new(self.graph(g, &at)?)),
                None => return Err(Error::invalid(at, "the graph is missing")),
            },
            6 => Attribute::Floats(a.floats),
            7 => Attribute::Ints(a.ints),
            8 => Attribute::Texts(a.strings.iter().map(text).collect()),
            9 => Attribute::Other("a list of tensors"),
            10 => Attribute::Other("a list of graphs"),
            11 | 12 => Attribute::Other("a sparse tensor"),
            13 | 14 => Attribute::Other("a type"),
            other => return Err(Error::invalid(at, format!("the attribute has the type {other}, which ONNX does not define"))),
        })
    }
}

/// Demands names, and each only once, of inputs or outputs.
fn distinct(list: &[ValueInfoProto], what: &str) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for v in list {
        if v.name.is_empty() || !seen.insert(v.name.as_str()) {
            let wrong = if v.name.is_empty() { format!("an {what} has no name") } else { format!("two {what}s have this name") };
            return Err(Error::invalid(format!("{what} `{}`", v.name), wrong).help("the model is bad: it must be exported again or mended"));
        }
    }
    Ok(())
}

/// `binding` declarations must be right; in others sizes that cannot be are taken as unknown.
fn value_info(v: ValueInfoProto, what: &str, binding: bool) -> Result<ValueInfo, Error> {
    let place = format!("{what} `{}`", v.name);
    let ty = match v.type_.into_option() {
        None => None,
        Some(t) => value_type(t, &place, binding)?,
    };
    Ok(ValueInfo { name: v.name.into(), ty })
}

fn value_type(t: TypeProto, place: &str, binding: bool) -> Result<Option<ValueType>, Error> {
    let t = match t.value {
        None => return Ok(None),
        Some(type_proto::Value::TensorType(t)) => t,
        Some(type_proto::Value::SequenceType(_)) => return Ok(Some(ValueType::Other("a sequence"))),
        Some(type_proto::Value::OptionalType(_)) => return Ok(Some(ValueType::Other("an optional"))),
        Some(type_proto::Value::MapType(_)) => return Ok(Some(ValueType::Other("a map"))),
        Some(_) => return Ok(Some(ValueType::Other("a sparse tensor"))),
    };
    let shape = match t.shape.into_option() {
        None => None,
        Some(s) => {
            let sizes = s.dim.into_iter().map(|d| match d.value {
                Some(dimension::Value::DimValue(n)) if n >= 0 => Ok(Size::Fixed(n)),
                // What several exporters write for a size that they do not know is -1.
                Some(dimension::Value::DimValue(n)) if binding && n != -1 => {
                    Err(Error::invalid(place, format!("the declared shape has the size {n}")))
                }
                Some(dimension::Value::DimParam(p)) if !p.is_empty() => Ok(Size::Named(p)),
                _ => Ok(Size::Unknown),
            });
            Some(sizes.collect::<Result<Vec<_>, _>>()?)
        }
    };
    Ok(Some(ValueType::Tensor { elem: t.elem_type, shape }))
}
