//! What ONNX demands of the element types of operands where the importers would take any: truth values,
//! positions, sizes. (Where an operator computes with floats or needs equal types the IR says so.)

use super::table::Supported;
use super::{Importer, Res, Val, demand};
use tfc_ir::types::Elem;

/// A set of element types.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    /// Integers of any width, no truth values.
    Integer,
    /// What addresses elements.
    Index,
    I64,
}

impl Kind {
    fn has(self, elem: Elem) -> bool {
        match self {
            Kind::Bool => elem == Elem::Bool,
            Kind::Integer => !elem.is_float() && elem != Elem::Bool,
            Kind::Index => matches!(elem, Elem::I32 | Elem::I64),
            Kind::I64 => elem == Elem::I64,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Integer => "integers",
            Kind::Index => "i32 or i64",
            Kind::I64 => "i64",
        }
    }
}

/// The operands of an operator of the default domain that have a kind, by their places.
fn kinds(operator: &str) -> &'static [(usize, Kind)] {
    use Kind::{Bool, I64, Index, Integer};
    match operator {
        "And" | "Or" | "Xor" => &[(0, Bool), (1, Bool)],
        "Not" | "If" | "Where" => &[(0, Bool)],
        "Compress" => &[(1, Bool)],
        "Loop" => &[(0, I64), (1, Bool)],
        "Dropout" => &[(2, Bool)],
        "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "BitShift" => &[(0, Integer), (1, Integer)],
        "BitwiseNot" => &[(0, Integer)],
        "Gather" | "GatherElements" | "Scatter" | "ScatterElements" | "CumSum" => &[(1, Index)],
        "SequenceAt" | "SequenceErase" | "SplitToSequence" => &[(1, Index)],
        "SequenceInsert" => &[(2, Index)],
        "GatherND" | "ScatterND" | "Reshape" | "Expand" | "Tile" | "Squeeze" | "Unsqueeze" | "Split" | "TopK" | "Trilu" => &[(1, I64)],
        "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean" | "ReduceMin" | "ReduceProd"
        | "ReduceSum" | "ReduceSumSquare" => &[(1, I64)],
        "ConstantOfShape" => &[(0, I64)],
        "Slice" => &[(1, Index), (2, Index), (3, Index), (4, Index)],
        "Pad" => &[(1, I64), (3, Index)],
        "GRU" | "LSTM" | "RNN" => &[(4, Index)],
        _ => &[],
    }
}

/// Operators that take sequences or optionals: those on them, and those that hand on what they are given.
const ON_SEQUENCES: [&str; 13] = [
    "ConcatFromSequence",
    "Identity",
    "Loop",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SplitToSequence",
];

/// Refuses operands whose element types the operator does not take, and sequences where tensors belong.
pub(super) fn check(cx: &Importer, operator: &Supported, inputs: &[Option<Val>]) -> Res<()> {
    let kinds = if operator.domain.is_empty() { kinds(operator.name) } else { &[] };
    for (i, v) in inputs.iter().enumerate() {
        let Some(v) = *v else { continue };
        let kind = kinds.iter().find(|(at, _)| *at == i).map(|(_, kind)| kind);
        let tensor = cx.is_tensor(v) || kind.is_none() && ON_SEQUENCES.contains(&operator.name);
        demand!(tensor, "operand {i} must be a tensor, but it is a sequence or an optional");
        if let Some(kind) = kind {
            demand!(kind.has(cx.elem(v)), "operand {i} must be {}, but it is {}", kind.text(), cx.ty(v));
        }
    }
    Ok(())
}
