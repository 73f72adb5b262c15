//! Structured mutants of ONNX models: files that decode, and in which anything may be wrong or odd: attributes, shapes,
//! element types, contents, names, operators, the order of nodes, versions.

use crate::choices::Choices;
use crate::onnx_build::{code, float, int, ints, tensor_proto, text, value_info};
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    ValueInfoProto, tensor_proto::DataLocation, tensor_shape_proto, type_proto,
};
use std::collections::BTreeSet;
use tfc_ir::types::Elem;

/// The file with external contents that mutants name.
pub const CONTENTS: &str = "contents.bin";

const NUMBERS: &[i64] = &[
    0,
    1,
    -1,
    16,
    64,
    127,
    255,
    1000,
    1 << 20,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 32,
    1 << 40,
    i64::MAX,
    i64::MAX - 1,
    i64::MIN,
    i64::MIN + 1,
];
const FLOATS: &[f32] =
    &[0.0, -0.0, 1.0, -1.0, 0.5, 2.5, 1e-6, 1e-30, 1e-45, 1e9, 3e18, f32::MAX, f32::MIN, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
const OPERATORS: &[&str] = &[
    "Add",
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "CumSum",
    "Div",
    "Equal",
    "Expand",
    "Flatten",
    "Gather",
    "Gemm",
    "Identity",
    "If",
    "Loop",
    "MatMul",
    "MaxPool",
    "Mod",
    "Mul",
    "NonZero",
    "Not",
    "Pad",
    "Pow",
    "Range",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "ScatterND",
    "Shape",
    "Size",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
];
const ATTRIBUTES: &[&str] = &[
    "axis",
    "axes",
    "to",
    "perm",
    "pads",
    "strides",
    "dilations",
    "kernel_shape",
    "group",
    "keepdims",
    "value",
    "mode",
    "alpha",
    "epsilon",
    "auto_pad",
    "ceil_mode",
    "num_outputs",
    "allowzero",
    "start",
    "end",
    "then_branch",
    "body",
    "block_size",
    "batch_dims",
];
const TEXTS: &[&str] = &[
    "",
    "linear",
    "nearest",
    "cubic",
    "constant",
    "reflect",
    "edge",
    "wrap",
    "SAME_UPPER",
    "VALID",
    "add",
    "none",
    "ij,jk->ik",
    "...",
    "->",
];
const NAMES: &[&str] = &["", "_", "int", "x y", "a/b:0", "1", "\"", "*/", "é\u{0}", "-1", "N", "m_run", "%"];
const DOMAINS: &[&str] = &["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "local", "nowhere"];

/// What a model says already, so that mutants contradict it in plausible ways.
struct Words {
    values: Vec<String>,
    operators: Vec<String>,
    attributes: Vec<String>,
    texts: Vec<String>,
}

impl Words {
    fn of(model: &ModelProto) -> Words {
        let list = |fixed: &[&str]| fixed.iter().map(ToString::to_string).collect::<BTreeSet<String>>();
        let mut all = [list(NAMES), list(OPERATORS), list(ATTRIBUTES), list(TEXTS)];
        model.graph.iter().for_each(|g| Words::graph(g, &mut all));
        model.functions.iter().for_each(|f| Words::nodes(&f.node, &mut all));
        let [values, operators, attributes, texts] = all.map(|words| words.into_iter().collect());
        Words { values, operators, attributes, texts }
    }

    fn graph(graph: &GraphProto, all: &mut [BTreeSet<String>; 4]) {
        all[0].extend(graph.input.iter().chain(&graph.output).map(|v| v.name.clone()));
        all[0].extend(graph.initializer.iter().map(|t| t.name.clone()));
        Words::nodes(&graph.node, all);
    }

    fn nodes(nodes: &[NodeProto], all: &mut [BTreeSet<String>; 4]) {
        for node in nodes {
            all[0].extend(node.input.iter().chain(&node.output).cloned());
            all[1].insert(node.op_type.clone());
            for a in &node.attribute {
                all[2].insert(a.name.clone());
                all[3].extend(std::str::from_utf8(&a.s).map(ToString::to_string));
                a.g.iter().for_each(|g| Words::graph(g, all));
            }
        }
    }
}

fn number(choices: &mut Choices) -> i64 {
    if choices.one_in(3) { *choices.pick(NUMBERS) } else { choices.between(-4, 9) }
}

fn elem(choices: &mut Choices) -> i32 {
    if choices.one_in(4) { choices.between(-1, 26) as i32 } else { code(choices.pick(&Elem::ALL).0) }
}

/// Removes, repeats, swaps or inserts an entry.
fn shuffle<T: Clone>(list: &mut Vec<T>, choices: &mut Choices, new: impl FnOnce(&mut Choices) -> T) {
    let (n, kind) = (list.len(), choices.below(6));
    let (at, other) = (choices.below(n), choices.below(n));
    match kind {
        0 if n > 0 => drop(list.remove(at)),
        1 if n > 0 => list.insert(other, list[at].clone()),
        2 if n > 1 => list.swap(at, other),
        3 if n > 0 => list.truncate(at),
        4 | 5 if n > 0 => list[at] = new(choices),
        _ => list.push(new(choices)),
    }
}

/// The graph, or one within it.
fn graph<'a>(outer: &'a mut GraphProto, choices: &mut Choices) -> &'a mut GraphProto {
    let within = |(n, node): (usize, &NodeProto)| {
        let graphs = node.attribute.iter().enumerate().filter(|(_, a)| a.g.is_some());
        graphs.map(|(a, _)| (n, a)).collect::<Vec<_>>()
    };
    let inner: Vec<(usize, usize)> = outer.node.iter().enumerate().flat_map(within).collect();
    if inner.is_empty() || choices.one_in(2) {
        return outer;
    }
    let &(n, a) = choices.pick(&inner);
    graph(outer.node[n].attribute[a].g.mut_or_insert_default(), choices)
}

fn any_graph<'a>(model: &'a mut ModelProto, choices: &mut Choices) -> &'a mut GraphProto {
    graph(model.graph.mut_or_insert_default(), choices)
}

fn nodes<'a>(model: &'a mut ModelProto, choices: &mut Choices) -> &'a mut Vec<NodeProto> {
    let functions = model.functions.len();
    if functions > 0 && choices.one_in(2) {
        return &mut model.functions[choices.below(functions)].node;
    }
    &mut any_graph(model, choices).node
}

fn node<'a>(model: &'a mut ModelProto, choices: &mut Choices) -> Option<&'a mut NodeProto> {
    let nodes = nodes(model, choices);
    let at = choices.below(nodes.len());
    nodes.get_mut(at)
}

fn new_attribute(name: &str, choices: &mut Choices, words: &Words) -> AttributeProto {
    match choices.below(6) {
        0 | 1 => int(name, number(choices)),
        2 => {
            let n = choices.below(5);
            ints(name, &(0..n).map(|_| number(choices)).collect::<Vec<_>>())
        }
        3 => float(name, *choices.pick(FLOATS)),
        4 => text(name, choices.pick(&words.texts).as_str()),
        _ => {
            let (elem, n) = (choices.pick(&Elem::ALL).0, choices.below(4));
            crate::onnx_build::tensor(name, &choices.tensor(elem, &[n]))
        }
    }
}

fn attributes(model: &mut ModelProto, choices: &mut Choices, words: &Words) {
    let Some(node) = node(model, choices) else { return };
    let at = choices.below(node.attribute.len());
    let kind = choices.below(8);
    let Some(a) = node.attribute.get_mut(at).filter(|_| kind > 1) else {
        return shuffle(&mut node.attribute, choices, |c| new_attribute(c.pick(&words.attributes).as_str(), c, words));
    };
    match kind {
        2 => *a = new_attribute(&a.name.clone(), choices, words),
        3 if choices.one_in(3) => a.name.clone_from(choices.pick(&words.attributes)),
        3 if choices.one_in(2) => a.type_ = protobuf::EnumOrUnknown::from_i32(choices.between(0, 15) as i32),
        3 => a.ref_attr_name.clone_from(choices.pick(&words.attributes)),
        _ => match a.type_.value() {
            1 => a.f = *choices.pick(FLOATS),
            2 => a.i = number(choices),
            3 => a.s = choices.pick(&words.texts).clone().into_bytes(),
            4 => contents(a.t.mut_or_insert_default(), choices, words),
            6 => shuffle(&mut a.floats, choices, |c| *c.pick(FLOATS)),
            7 => shuffle(&mut a.ints, choices, number),
            _ => *a = new_attribute(&a.name.clone(), choices, words),
        },
    }
}

/// Changes a constant: sizes, element type, contents, where they are.
fn contents(t: &mut TensorProto, choices: &mut Choices, words: &Words) {
    match choices.below(9) {
        0 | 1 => shuffle(&mut t.dims, choices, number),
        2 => t.data_type = elem(choices),
        3 => {
            let n = choices.below(t.raw_data.len() + 9);
            t.raw_data.resize(n, 0x3f);
        }
        4 | 5 => {
            let value = match choices.below(2) {
                0 => number(choices).to_le_bytes().to_vec(),
                _ => choices.pick(FLOATS).to_le_bytes().to_vec(),
            };
            let places = t.raw_data.len() / value.len();
            let at = choices.below(places) * value.len();
            if let Some(bytes) = t.raw_data.get_mut(at..at + value.len()) {
                bytes.copy_from_slice(&value);
            }
        }
        6 => {
            t.data_location = DataLocation::EXTERNAL.into();
            let size = t.raw_data.len() as i64;
            for (key, plain) in [("location", None), ("offset", Some(0)), ("length", Some(size))] {
                let value = match plain {
                    None if choices.one_in(4) => (*choices.pick(&["", "../contents.bin", "/dev/zero", "missing", "."])).into(),
                    None => CONTENTS.into(),
                    Some(_) if choices.one_in(3) => number(choices).to_string(),
                    Some(n) => n.to_string(),
                };
                if !choices.one_in(6) {
                    t.external_data.push(StringStringEntryProto { key: key.into(), value, ..Default::default() });
                }
            }
        }
        7 => t.name.clone_from(choices.pick(&words.values)),
        _ => match choices.below(3) {
            0 => shuffle(&mut t.int64_data, choices, number),
            1 => shuffle(&mut t.float_data, choices, |c| *c.pick(FLOATS)),
            _ => shuffle(&mut t.int32_data, choices, |c| number(c) as i32),
        },
    }
}

fn constants(model: &mut ModelProto, choices: &mut Choices, words: &Words) {
    let constants = &mut any_graph(model, choices).initializer;
    let at = choices.below(constants.len());
    let kind = choices.below(8);
    match constants.get_mut(at).filter(|_| kind > 0) {
        Some(t) => contents(t, choices, words),
        None => shuffle(constants, choices, |c| {
            let (elem, n) = (c.pick(&Elem::ALL).0, c.below(4));
            tensor_proto(c.pick(&words.values).as_str(), &c.tensor(elem, &[n]))
        }),
    }
}

fn new_dim(choices: &mut Choices) -> tensor_shape_proto::Dimension {
    use tensor_shape_proto::dimension::Value::{DimParam, DimValue};
    let value = match choices.below(4) {
        0 => None,
        1 => Some(DimParam((*choices.pick(&["batch", "seq", "n", "past", "2*n", "n+1", "", "-1", "*"])).into())),
        _ => Some(DimValue(number(choices))),
    };
    tensor_shape_proto::Dimension { value, ..Default::default() }
}

fn new_info(choices: &mut Choices, words: &Words) -> ValueInfoProto {
    value_info(choices.pick(&words.values).as_str(), choices.pick(&Elem::ALL).0, &["n", "4"][..choices.below(3)])
}

/// Changes the declaration of an input, of an output, or of a value in between.
fn declarations(model: &mut ModelProto, choices: &mut Choices, words: &Words) {
    let graph = any_graph(model, choices);
    let list = match choices.below(6) {
        0..3 => &mut graph.input,
        3 | 4 => &mut graph.output,
        _ => &mut graph.value_info,
    };
    let (at, kind) = (choices.below(list.len()), choices.below(8));
    let Some(info) = list.get_mut(at).filter(|_| kind > 0) else { return shuffle(list, choices, |c| new_info(c, words)) };
    match (kind, &mut info.type_.mut_or_insert_default().value) {
        (1, _) => info.name.clone_from(choices.pick(&words.values)),
        (2, _) if choices.one_in(3) => info.type_ = None.into(),
        (2 | 3, Some(type_proto::Value::TensorType(t))) => t.elem_type = elem(choices),
        (_, Some(type_proto::Value::TensorType(t))) => shuffle(&mut t.shape.mut_or_insert_default().dim, choices, new_dim),
        _ => info.type_ = new_info(choices, words).type_,
    }
}

fn operands(model: &mut ModelProto, choices: &mut Choices, words: &Words) {
    let Some(node) = node(model, choices) else { return };
    let list = if choices.one_in(3) { &mut node.output } else { &mut node.input };
    let name = |c: &mut Choices| c.pick(&words.values).clone();
    if choices.one_in(4) {
        let at = choices.below(list.len());
        list.get_mut(at).into_iter().for_each(String::clear);
    } else {
        shuffle(list, choices, name);
    }
}

fn operators(model: &mut ModelProto, choices: &mut Choices, words: &Words) {
    let Some(node) = node(model, choices) else { return };
    match choices.below(6) {
        0 => node.domain = (*choices.pick(DOMAINS)).into(),
        1 => node.name.clone_from(choices.pick(&words.values)),
        _ => node.op_type.clone_from(choices.pick(&words.operators)),
    }
}

fn order(model: &mut ModelProto, choices: &mut Choices, _: &Words) {
    let nodes = nodes(model, choices);
    let repeated = nodes.first().cloned().unwrap_or_default();
    if choices.one_in(6) { nodes.reverse() } else { shuffle(nodes, choices, |_| repeated) }
}

fn new_opset(choices: &mut Choices) -> OperatorSetIdProto {
    let version = if choices.one_in(4) { number(choices) } else { choices.between(1, 26) };
    OperatorSetIdProto { domain: (*choices.pick(DOMAINS)).into(), version, ..Default::default() }
}

fn versions(model: &mut ModelProto, choices: &mut Choices, _: &Words) {
    let at = choices.below(model.opset_import.len());
    match model.opset_import.get_mut(at) {
        Some(set) if !choices.one_in(4) => set.version = new_opset(choices).version,
        _ if choices.one_in(4) => model.ir_version = number(choices),
        _ => shuffle(&mut model.opset_import, choices, new_opset),
    }
}

fn functions(model: &mut ModelProto, choices: &mut Choices, words: &Words) {
    let (at, name) = (choices.below(model.functions.len()), |c: &mut Choices| c.pick(&words.values).clone());
    let Some(f) = model.functions.get_mut(at) else { return attributes(model, choices, words) };
    match choices.below(9) {
        0 => f.name = name(choices),
        1 => f.domain = (*choices.pick(DOMAINS)).into(),
        2 => f.overload = name(choices),
        3 => shuffle(&mut f.input, choices, name),
        4 => shuffle(&mut f.output, choices, name),
        5 => shuffle(&mut f.attribute, choices, |c| c.pick(&words.attributes).clone()),
        6 => shuffle(&mut f.attribute_proto, choices, |c| new_attribute(c.pick(&words.attributes).as_str(), c, words)),
        7 => shuffle(&mut f.opset_import, choices, new_opset),
        _ => shuffle(&mut model.functions, choices, |_| FunctionProto::default()),
    }
}

/// Gives a value of the outer graph another name wherever it is named; there may be a value of that name.
fn names(model: &mut ModelProto, choices: &mut Choices, words: &Words) {
    let (from, to) = (choices.pick(&words.values), choices.pick(&words.values));
    let graph = model.graph.mut_or_insert_default();
    let declared = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info).map(|v| &mut v.name);
    let constants = graph.initializer.iter_mut().map(|t| &mut t.name);
    let used = graph.node.iter_mut().flat_map(|n| n.input.iter_mut().chain(&mut n.output));
    declared.chain(constants).chain(used).filter(|name| *name == from).for_each(|name| name.clone_from(to));
}

/// Makes another value an output of the graph.
fn outputs(model: &mut ModelProto, choices: &mut Choices, words: &Words) {
    let output = ValueInfoProto { name: choices.pick(&words.values).clone(), ..Default::default() };
    any_graph(model, choices).output.push(output);
}

type Change = fn(&mut ModelProto, &mut Choices, &Words);

/// Changes one to three things in a model.
pub fn mutate(model: &mut ModelProto, choices: &mut Choices) {
    const CHANGES: [Change; 16] = [
        attributes,
        attributes,
        attributes,
        constants,
        constants,
        constants,
        declarations,
        declarations,
        operands,
        operands,
        operators,
        order,
        versions,
        functions,
        names,
        outputs,
    ];
    let words = Words::of(model);
    for _ in 0..=choices.below(5).saturating_sub(2) {
        choices.pick(&CHANGES)(model, choices, &words);
    }
}
