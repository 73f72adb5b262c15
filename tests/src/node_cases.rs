//! Small models of one node each, for most operators, written as text, and ways to damage them.

use crate::onnx_build::{Model, float, int, ints, text};
use onnx_protobuf::AttributeProto;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;

/// One node: operator and version, operands, and behind a slash attributes. An operand is `TYPE:SIZES` for an
/// input, `@NUMBERS` for a constant list of i64, `$NUMBER` for a constant f32 scalar, `_` if left out.
/// Attributes are `NAME=NUMBER`, with a point for a float, `NAME=NUMBERS,` for a list, `NAME='TEXT'`.
pub const CASES: &[&str] = &[
    "Add 14 f32:2,3 f32:3",
    "And 7 bool:2,3 bool:3",
    "ArgMax 13 f32:2,3 / axis=1 keepdims=0",
    "Attention 23 f32:1,2,3,4 f32:1,2,5,4 f32:1,2,5,4 bool:3,5",
    "AveragePool 19 f32:1,2,6,6 / kernel_shape=2,2, strides=2,2, pads=0,0,1,1, ceil_mode=1",
    "BatchNormalization 15 f32:2,3,4 f32:3 f32:3 f32:3 f32:3",
    "BitShift 11 u32:4 u32:4 / direction='RIGHT'",
    "Cast 19 f32:2,3 / to=7",
    "Clip 13 f32:2,3 $0 $6",
    "Compress 11 f32:3,2 bool:3 / axis=0",
    "Concat 13 f32:2,3 f32:2,1 / axis=1",
    "ConstantOfShape 9 @2,3",
    "Conv 11 f32:1,4,8,8 f32:6,2,3,3 f32:6 / group=2 pads=1,1,1,1, dilations=1,2, strides=2,1,",
    "ConvInteger 10 u8:1,2,5,5 u8:3,2,3,3 u8: u8:",
    "ConvTranspose 11 f32:1,2,4,4 f32:2,3,3,3 f32:6 / group=2 strides=2,2, output_padding=1,1, pads=1,1,1,1,",
    "CumSum 14 f32:2,3 @1 / reverse=1",
    "DepthToSpace 13 f32:1,8,2,3 / blocksize=2 mode='CRD'",
    "DequantizeLinear 21 i8:2,6 f32:2,2 i8:2,2 / axis=1 block_size=3",
    "DequantizeLinear 13 i8:2,3 f32:3 i8:3 / axis=1",
    "Dropout 13 f32:2,3 $0.5",
    "DynamicQuantizeLinear 11 f32:2,3",
    "Einsum 12 f32:2,3 f32:3,4 / equation='ij,jk->ik'",
    "Einsum 12 f32:2,3,3 f32:3,1 / equation='...ii,ij->...j'",
    "Expand 13 f32:1,3 @2,3",
    "EyeLike 9 f32:2,3 / k=1",
    "Flatten 13 f32:2,3,4 / axis=2",
    "GRU 14 f32:3,2,4 f32:1,9,4 f32:1,9,3 f32:1,18 @3,3 f32:1,2,3 / hidden_size=3 linear_before_reset=1",
    "Gather 13 f32:4,3 i64:2,2 / axis=0",
    "GatherElements 13 f32:4,3 i64:2,3 / axis=0",
    "GatherND 13 f32:4,3,2 i64:4,1 / batch_dims=1",
    "Gelu 20 f32:2,3 / approximate='tanh'",
    "Gemm 13 f32:3,2 f32:4,3 f32:4 / transA=1 transB=1 alpha=0.5 beta=2.0",
    "GlobalAveragePool 7 f32:1,2,3,3",
    "GridSample 20 f32:1,2,4,4 f32:1,3,3,2 / mode='cubic' padding_mode='reflection' align_corners=1",
    "GroupNormalization 21 f32:1,4,3 f32:4 f32:4 / num_groups=2",
    "Hardmax 13 f32:2,3 / axis=1",
    "InstanceNormalization 7 f32:1,4,3 f32:4 f32:4",
    "LRN 13 f32:1,5,2,2 / size=3",
    "LSTM 14 f32:3,2,4 f32:2,12,4 f32:2,12,3 f32:2,24 _ f32:2,2,3 f32:2,2,3 f32:2,9 / hidden_size=3 direction='bidirectional'",
    "LayerNormalization 17 f32:2,3,4 f32:1,1,4 f32:3,4 / axis=-1",
    "LpNormalization 7 f32:2,3 / axis=1 p=1",
    "LpPool 18 f32:1,2,6,6 / kernel_shape=2,2, p=3",
    "MatMul 13 f32:2,3,4 f32:4,5",
    "MatMulInteger 10 u8:2,3 i8:3,4 u8: i8:4",
    "MaxPool 12 f32:1,2,6,6 / kernel_shape=3,3, dilations=1,2, auto_pad='SAME_UPPER'",
    "MeanVarianceNormalization 13 f32:1,2,3,3",
    "NonZero 13 @1,0,2",
    "OneHot 11 i64:2,3 @4 f32:2 / axis=1",
    "PRelu 16 f32:2,3 f32:3",
    "Pad 18 f32:2,3 @1,2 $1.5 @1 / mode='constant'",
    "Pad 10 f32:2,3 / pads=0,1,0,1, mode='reflect'",
    "QLinearConv 10 u8:1,2,5,5 f32: u8: u8:3,2,3,3 f32:3 u8:3 f32: u8: i32:3",
    "QLinearMatMul 10 u8:2,3 f32: u8: u8:3,4 f32: u8: f32: u8:",
    "QuantizeLinear 13 f32:2,3 f32:3 u8:3 / axis=1",
    "RMSNormalization 23 f32:2,3,4 f32:1,4 / axis=-1",
    "RNN 14 f32:3,2,4 f32:1,3,4 f32:1,3,3 f32:1,6 / hidden_size=3 layout=0",
    "Range 11 $0.5 $4 $0.7",
    "ReduceSum 13 f32:2,3,4 @0,-1 / keepdims=0",
    "ReduceLogSumExp 11 f32:2,3,4 / axes=1, keepdims=1",
    "Reshape 14 f32:2,3,4 @0,-1,2 / allowzero=0",
    "Resize 19 f32:1,2,4,4 _ _ @1,2,6,7 / mode='linear' coordinate_transformation_mode='half_pixel'",
    "Resize 10 f32:1,2,4,4 f32:4 / mode='nearest'",
    "RoiAlign 16 f32:1,2,6,6 f32:3,4 i64:3 / output_height=2 output_width=3 sampling_ratio=2",
    "RotaryEmbedding 23 f32:1,2,3,4 f32:5,2 f32:5,2 i64:1,3 / interleaved=1",
    "ScatterElements 18 f32:4,3 i64:2,3 f32:2,3 / axis=0 reduction='add'",
    "ScatterND 18 f32:4,3 i64:2,1 f32:2,3 / reduction='max'",
    "SequenceConstruct 11 f32:2 f32:3",
    "Shape 15 f32:2,3,4 / start=-2 end=9",
    "Slice 13 f32:4,6 @0,-1 @9,-5 @0,1 @2,-2",
    "Slice 9 f32:4,6 / starts=0,1, ends=3,9, axes=0,1,",
    "Softmax 13 f32:2,3 / axis=-1",
    "Softmax 11 f32:2,3,4 / axis=1",
    "SpaceToDepth 13 f32:1,2,4,6 / blocksize=2",
    "Split 18 f32:5,2 @2,3 / axis=0",
    "Split 11 f32:4,2 / axis=0 split=4,",
    "SplitToSequence 11 f32:6,2 @2,4 / axis=0",
    "Squeeze 13 f32:1,3,1 @0,-1",
    "SwiGLU 28 f32:2,8 f32:2,8",
    "TensorScatter 24 f32:1,2,6,4 f32:1,2,3,4 i64:1 / axis=2 mode='circular'",
    "Tile 13 f32:2,3 @2,1",
    "TopK 11 f32:2,5 @3 / axis=1 largest=0",
    "Transpose 13 f32:2,3,4 / perm=2,0,1,",
    "Trilu 14 f32:3,3 @1 / upper=0",
    "Unsqueeze 13 f32:2,3 @0,-1",
    "Upsample 9 f32:1,2,4,4 f32:4 / mode='nearest'",
    "Where 16 bool:2,3 f32:3 f32:2,1",
];

/// An operand of a case.
#[derive(Clone, Debug)]
pub enum Operand {
    /// An input of the model.
    Input(Elem, Vec<i64>),
    /// A constant list.
    List(Vec<i64>),
    /// A constant scalar.
    Scalar(f64),
    /// None.
    Absent,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Case {
    /// The operator.
    pub op: String,
    /// Version of the default operator set.
    pub opset: i64,
    /// Its operands.
    pub operands: Vec<Operand>,
    /// Its attributes.
    pub attributes: Vec<AttributeProto>,
}

fn numbers(text: &str) -> Vec<i64> {
    text.split(',').filter(|n| !n.is_empty()).map(|n| n.parse().expect("a number")).collect()
}

impl Case {
    /// Reads one of [`CASES`].
    ///
    /// # Panics
    /// When the text is none.
    pub fn parse(line: &str) -> Case {
        let (left, right) = line.split_once(" / ").unwrap_or((line, ""));
        let mut words = left.split(' ');
        let (op, opset) = (words.next().expect("an operator").into(), words.next().expect("a version").parse().expect("a number"));
        let operand = |w: &str| match w.split_at(1) {
            ("@", list) => Operand::List(numbers(list)),
            ("$", x) => Operand::Scalar(x.parse().expect("a number")),
            ("_", "") => Operand::Absent,
            _ => {
                let (elem, sizes) = w.split_once(':').expect("a type");
                Operand::Input(Elem::from_name(elem).expect("an element type"), numbers(sizes))
            }
        };
        let attribute = |w: &str| {
            let (name, value) = w.split_once('=').expect("an attribute");
            match value {
                v if v.starts_with('\'') => text(name, v.trim_matches('\'')),
                v if v.contains(',') => ints(name, &numbers(v)),
                v if v.contains('.') => float(name, v.parse().expect("a number")),
                v => int(name, v.parse().expect("a number")),
            }
        };
        let attributes = right.split(' ').filter(|w| !w.is_empty()).map(attribute).collect();
        Case { op, opset, operands: words.map(operand).collect(), attributes }
    }

    /// The model.
    pub fn model(&self) -> Model {
        let mut m = Model::new(self.opset);
        let mut names = vec![];
        for (i, o) in self.operands.iter().enumerate() {
            let name = format!("x{i}");
            names.push(if matches!(o, Operand::Absent) { "_".into() } else { name.clone() });
            m = match o {
                Operand::Input(elem, sizes) => {
                    // Negative sizes are symbols.
                    let sizes: Vec<String> = sizes.iter().map(|&n| if n < 0 { format!("n{}", -n) } else { n.to_string() }).collect();
                    m.input(&name, *elem, &sizes.iter().map(String::as_str).collect::<Vec<_>>())
                }
                Operand::List(l) => m.list(&name, l),
                Operand::Scalar(x) => m.constant(&name, Tensor::scalar(Elem::F32, Scalar::Float(*x))),
                Operand::Absent => m,
            };
        }
        m.node(&self.op, &names.join(" "), "y", &self.attributes).output("y")
    }

    /// Changes one thing: `kind` says what, `at` where, `value` to what.
    pub fn damage(&mut self, kind: u8, at: usize, value: i64) {
        const ELEMS: [Elem; 8] = [Elem::F32, Elem::F16, Elem::I64, Elem::I32, Elem::U8, Elem::Bool, Elem::F64, Elem::I8];
        let (operands, attributes) = (self.operands.len(), self.attributes.len());
        match kind % 8 {
            0 => {
                self.operands.remove(at % operands);
            }
            1 => self.operands[at % operands] = Operand::Absent,
            kind @ 2..6 => match &mut self.operands[at % operands] {
                Operand::Input(elem, sizes) => match kind {
                    2 => *elem = ELEMS[value.rem_euclid(8) as usize],
                    3 => sizes.insert(at / 7 % (sizes.len() + 1), value.clamp(-3, 1 << 20)),
                    4 => drop(sizes.pop()),
                    _ => {
                        let n = sizes.len().max(1);
                        if let Some(s) = sizes.get_mut(at / 7 % n) {
                            *s = value.clamp(-3, 1 << 20);
                        }
                    }
                },
                Operand::List(l) => match kind {
                    2 => l.clear(),
                    3 => l.push(value),
                    4 => drop(l.pop()),
                    _ => {
                        let n = l.len().max(1);
                        if let Some(x) = l.get_mut(at / 7 % n) {
                            *x = value;
                        }
                    }
                },
                Operand::Scalar(x) => *x = value as f64 / 3.0,
                Operand::Absent => self.operands[at % operands] = Operand::Input(Elem::F32, vec![value.clamp(-3, 64); at / 7 % 4]),
            },
            _ if attributes == 0 => self.attributes.push(int("axis", value)),
            6 => {
                self.attributes.remove(at % attributes);
            }
            _ => {
                let a = &mut self.attributes[at % attributes];
                let name = a.name.clone();
                match (a.type_.value(), at % 6) {
                    (7, 0 | 3) => a.ints.push(value),
                    (7, 1 | 4) => drop(a.ints.pop()),
                    (7, _) => {
                        let n = a.ints.len().max(1);
                        if let Some(x) = a.ints.get_mut(at / 7 % n) {
                            *x = value;
                        }
                    }
                    (1, _) => a.f = value as f32 / 3.0,
                    (2, 1..) => a.i = value,
                    (_, 0 | 2 | 4) => *a = ints(&name, &[value]),
                    _ => *a = text(&name, "nothing"),
                }
            }
        }
        if self.operands.is_empty() {
            self.operands.push(Operand::Absent);
        }
    }
}
