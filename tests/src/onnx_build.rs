//! Small ONNX models, made in code.

use bytes::Bytes;
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use protobuf::{EnumOrUnknown, MessageField};
use tfc::onnx::{Error, ImportOptions, decode, import, import_with_warnings};
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;
use tfc_ir::types::Elem;

/// A model under construction.
#[derive(Clone, Default)]
pub struct Model {
    /// The graph, open to every abuse.
    pub graph: GraphProto,
    opsets: Vec<(String, i64)>,
    functions: Vec<FunctionProto>,
}

/// ONNX's code of an element type.
pub fn code(elem: Elem) -> i32 {
    match elem {
        Elem::F32 => 1,
        Elem::U8 => 2,
        Elem::I8 => 3,
        Elem::U16 => 4,
        Elem::I16 => 5,
        Elem::I32 => 6,
        Elem::I64 => 7,
        Elem::Bool => 9,
        Elem::F16 => 10,
        Elem::F64 => 11,
        Elem::U32 => 12,
        Elem::U64 => 13,
        Elem::Bf16 => 16,
        Elem::U4 => 21,
        Elem::I4 => 22,
    }
}

/// A tensor with its contents as raw data.
pub fn tensor_proto(name: &str, t: &Tensor) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: code(t.elem()),
        dims: t.sizes().iter().map(|&n| n as i64).collect(),
        raw_data: t.bytes().to_vec(),
        ..Default::default()
    }
}

/// A declared value; sizes are numbers or names, `?` is unknown.
pub fn value_info(name: &str, elem: Elem, sizes: &[&str]) -> ValueInfoProto {
    let dim = sizes.iter().map(|s| {
        use tensor_shape_proto::dimension::Value::{DimParam, DimValue};
        let value = match s.parse() {
            Ok(n) => Some(DimValue(n)),
            Err(_) if *s == "?" => None,
            Err(_) => Some(DimParam(s.to_string())),
        };
        tensor_shape_proto::Dimension { value, ..Default::default() }
    });
    let shape = TensorShapeProto { dim: dim.collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: code(elem), shape: MessageField::some(shape), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: MessageField::some(ty), ..Default::default() }
}

fn attribute(name: &str, ty: i32) -> AttributeProto {
    AttributeProto { name: name.into(), type_: EnumOrUnknown::from_i32(ty), ..Default::default() }
}

/// An integer attribute.
pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attribute(name, 2) }
}

/// A float attribute.
pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f, ..attribute(name, 1) }
}

/// A list of integers.
pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..attribute(name, 7) }
}

/// A string attribute.
pub fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { s: s.into(), ..attribute(name, 3) }
}

/// A tensor attribute.
pub fn tensor(name: &str, t: &Tensor) -> AttributeProto {
    AttributeProto { t: MessageField::some(tensor_proto("", t)), ..attribute(name, 4) }
}

/// A subgraph.
pub fn graph(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: MessageField::some(g), ..attribute(name, 5) }
}

/// A reference to an attribute of the function around the node.
pub fn reference(name: &str, to: &str, ty: i32) -> AttributeProto {
    AttributeProto { ref_attr_name: to.into(), ..attribute(name, ty) }
}

/// A node; operands and results are names separated by blanks, `_` is one that is left out.
pub fn node(op: &str, inputs: &str, outputs: &str, attributes: &[AttributeProto]) -> NodeProto {
    let names = |s: &str| s.split_whitespace().map(|n| if n == "_" { String::new() } else { n.to_string() }).collect();
    NodeProto { op_type: op.into(), input: names(inputs), output: names(outputs), attribute: attributes.to_vec(), ..Default::default() }
}

/// A branch of `If`: one node, which takes its operands from around it.
pub fn branch(name: &str, op: &str, operands: &str) -> AttributeProto {
    graph(name, Model::new(17).node(op, operands, "r", &[]).output("r").graph)
}

/// A function with the result `y`.
pub fn function(domain: &str, name: &str, inputs: &[&str], nodes: Vec<NodeProto>, opset: i64) -> FunctionProto {
    FunctionProto {
        domain: domain.into(),
        name: name.into(),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec!["y".into()],
        node: nodes,
        opset_import: vec![OperatorSetIdProto { version: opset, ..Default::default() }],
        ..Default::default()
    }
}

impl Model {
    /// An empty model of a version of the default operator set.
    pub fn new(opset: i64) -> Model {
        Model { opsets: vec![(String::new(), opset)], ..Model::default() }
    }

    /// Adds an input.
    pub fn input(mut self, name: &str, elem: Elem, sizes: &[&str]) -> Model {
        self.graph.input.push(value_info(name, elem, sizes));
        self
    }

    /// Adds an output without a type.
    pub fn output(mut self, name: &str) -> Model {
        self.graph.output.push(ValueInfoProto { name: name.into(), ..Default::default() });
        self
    }

    /// Adds an initializer.
    pub fn constant(mut self, name: &str, t: Tensor) -> Model {
        self.graph.initializer.push(tensor_proto(name, &t));
        self
    }

    /// Adds a list of integers as an initializer.
    pub fn list(self, name: &str, values: &[i64]) -> Model {
        self.constant(name, Tensor::of(&[values.len()], values.to_vec()))
    }

    /// Adds a node.
    pub fn node(mut self, op: &str, inputs: &str, outputs: &str, attributes: &[AttributeProto]) -> Model {
        self.graph.node.push(node(op, inputs, outputs, attributes));
        self
    }

    /// Adds a node of another domain.
    pub fn foreign(mut self, domain: &str, op: &str, inputs: &str, outputs: &str, attributes: &[AttributeProto]) -> Model {
        self.graph.node.push(NodeProto { domain: domain.into(), ..node(op, inputs, outputs, attributes) });
        self
    }

    /// Adds a function.
    pub fn function(mut self, f: FunctionProto) -> Model {
        self.functions.push(f);
        self
    }

    /// Imports an operator set.
    pub fn opset(mut self, domain: &str, version: i64) -> Model {
        self.opsets.push((domain.into(), version));
        self
    }

    /// The model as its file has it.
    pub fn proto(&self) -> ModelProto {
        let opset =
            |(domain, version): &(String, i64)| OperatorSetIdProto { domain: domain.clone(), version: *version, ..Default::default() };
        ModelProto {
            ir_version: 8,
            opset_import: self.opsets.iter().map(opset).collect(),
            graph: MessageField::some(self.graph.clone()),
            functions: self.functions.clone(),
            ..Default::default()
        }
    }

    /// The file's contents.
    pub fn bytes(&self) -> Bytes {
        self.proto().write_to_bytes().expect("encodable").into()
    }

    /// Decodes and imports the model.
    pub fn import(&self) -> Result<Graph, Error> {
        self.import_with(&ImportOptions::default())
    }

    /// Decodes and imports the model with options.
    pub fn import_with(&self, options: &ImportOptions) -> Result<Graph, Error> {
        import(&decode::decode(&self.bytes(), None)?, options)
    }

    /// What the import of the model warns of.
    pub fn warnings(&self) -> Vec<String> {
        let model = decode::decode(&self.bytes(), None).unwrap_or_else(|e| panic!("{e}"));
        import_with_warnings(&model, &ImportOptions::default()).unwrap_or_else(|e| panic!("{e}")).1
    }

    /// Imports the model and evaluates it.
    pub fn run(&self, inputs: &[Tensor]) -> Vec<Tensor> {
        let g = self.import().unwrap_or_else(|e| panic!("{e}"));
        g.evaluate(inputs, &crate::models::bind(&g, inputs)).unwrap_or_else(|e| panic!("{e}"))
    }
}
