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
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tfc_ir::tensor::Tensor;

/// Reads a model file. Contents of tensors are mapped, not copied.
///
/// # Errors
/// When the file cannot be read, is not an ONNX model, is damaged, or has tensors of unsupported types.
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
    let mut d = Decoder { contents: Contents::new(stripped.contents, path), unnamed: BTreeMap::new() };
    let functions = proto.functions.into_iter().map(|f| d.function(f)).collect::<Result<_, _>>()?;
    Ok(Model {
        file: PathBuf::new(),
        ir_version: proto.ir_version,
        opsets: opsets(&proto.opset_import)?,
        graph: d.graph(graph, "")?,
        functions,
    })
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

struct Decoder {
    contents: Contents,
    /// How many nodes without a name each operator had.
    unnamed: BTreeMap<String, usize>,
}

impl Decoder {
    /// `place` is empty for the main graph, or the node that holds the subgraph.
    fn graph(&mut self, g: GraphProto, place: &str) -> Result<Graph, Error> {
        if let Some(s) = g.sparse_initializer.first() {
            return Err(Error::unsupported("tensor", &s.values.name, "sparse initializers are not supported"));
        }
        let mut initializers: Vec<(Arc<str>, Tensor)> = Vec::with_capacity(g.initializer.len());
        let mut seen = std::collections::BTreeSet::new();
        for t in g.initializer {
            let name: Arc<str> = t.name.as_str().into();
            let at = format!("initializer `{name}`");
            if name.is_empty() || !seen.insert(name.clone()) {
                let what = if name.is_empty() { "an initializer has no name" } else { "two initializers have this name" };
                return Err(Error::invalid(at, what));
            }
            initializers.push((name, self.contents.tensor(t, &at)?));
        }
        let nodes = g.node.into_iter().map(|n| self.node(n)).collect::<Result<Vec<_>, _>>()?;
        let defined: std::collections::BTreeSet<&str> = g.input.iter().map(|i| i.name.as_str()).chain(seen.iter().map(|n| &**n)).collect();
        if let Some((n, o)) =
            nodes.iter().flat_map(|n| n.outputs.iter().map(move |o| (n, o))).find(|(_, o)| !o.is_empty() && defined.contains(&***o))
        {
            return Err(Error::invalid(
                format!("node `{}` ({})", n.name, n.op),
                format!("the value `{o}` is defined twice; first as an input or initializer"),
            ));
        }
        let infos = |list: Vec<ValueInfoProto>, what: &str| list.into_iter().map(|v| value_info(v, what)).collect::<Result<Vec<_>, _>>();
        Ok(Graph {
            name: g.name,
            inputs: infos(g.input, "input")?,
            outputs: infos(g.output, "output")?,
            values: infos(g.value_info, "value")?,
            initializers,
            nodes: order::sort(nodes, place)?,
        })
    }

    fn function(&mut self, f: FunctionProto) -> Result<Function, Error> {
        let place = format!("function `{}`", f.name);
        let nodes = f.node.into_iter().map(|n| self.node(n)).collect::<Result<Vec<_>, _>>()?;
        let mut defaults: BTreeMap<String, Attribute> = BTreeMap::new();
        for a in f.attribute_proto {
            let name = a.name.clone();
            defaults.insert(name, self.attribute(a, &place)?);
        }
        Ok(Function {
            domain: domain(f.domain),
            name: f.name,
            inputs: f.input.iter().map(|s| s.as_str().into()).collect(),
            outputs: f.output.iter().map(|s| s.as_str().into()).collect(),
            defaults,
            opsets: opsets(&f.opset_import)?,
            nodes: order::sort(nodes, &place)?,
        })
    }

    fn node(&mut self, n: NodeProto) -> Result<Node, Error> {
        let name: Arc<str> = if n.name.is_empty() {
            let count = self.unnamed.entry(n.op_type.clone()).or_default();
            *count += 1;
            format!("{}_{}", n.op_type, *count - 1).into()
        } else {
            n.name.into()
        };
        let place = format!("node `{name}` ({})", n.op_type);
        let mut attributes = BTreeMap::new();
        for a in n.attribute {
            let key = a.name.clone();
            let value = self.attribute(a, &place)?;
            if attributes.insert(key.clone(), value).is_some() {
                return Err(Error::invalid(place, format!("the attribute `{key}` is given twice")));
            }
        }
        Ok(Node {
            name,
            op: n.op_type,
            domain: domain(n.domain),
            inputs: n.input.iter().map(|s| s.as_str().into()).collect(),
            outputs: n.output.iter().map(|s| s.as_str().into()).collect(),
            attributes,
        })
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

fn value_info(v: ValueInfoProto, what: &str) -> Result<ValueInfo, Error> {
    let place = format!("{what} `{}`", v.name);
    let ty = match v.type_.into_option() {
        None => None,
        Some(t) => value_type(t, &place)?,
    };
    Ok(ValueInfo { name: v.name.into(), ty })
}

fn value_type(t: TypeProto, place: &str) -> Result<Option<ValueType>, Error> {
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
                // What several exporters write for a size that they do not know.
                Some(dimension::Value::DimValue(-1)) => Ok(Size::Unknown),
                Some(dimension::Value::DimValue(n)) => Err(Error::invalid(place, format!("the declared shape has the size {n}"))),
                Some(dimension::Value::DimParam(p)) if !p.is_empty() => Ok(Size::Named(p)),
                _ => Ok(Size::Unknown),
            });
            Some(sizes.collect::<Result<Vec<_>, _>>()?)
        }
    };
    Ok(Some(ValueType::Tensor { elem: t.elem_type, shape }))
}
