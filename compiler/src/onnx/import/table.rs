//! The table of supported operators.

use super::{
    Call, Fail, Importer, Res, Val, arith, attention, blocks, control, einsum, movement, nn, norm, quant, reduce, resize, rnn, sample,
    sequence, shape, sort,
};
use crate::onnx::model::Node;

/// An importer of one operator: returns its results, as many as it can have.
pub(super) type Import = fn(&mut Importer, &Call) -> Res<Vec<Val>>;

/// One supported operator.
pub struct Supported {
    /// Domain; empty for the default one.
    pub domain: &'static str,
    /// Name.
    pub name: &'static str,
    /// The first version of the operator set whose definition is supported. Later definitions are too,
    /// up to [`LATEST`].
    pub since: i64,
    pub(super) import: Import,
}

/// The first version of the default operator set that is supported.
pub const EARLIEST: i64 = 7;

/// The last version of the default operator set that is supported.
pub const LATEST: i64 = 28;

const MICROSOFT: &str = "com.microsoft";

macro_rules! table {
    ($($domain:ident { $($name:literal $since:literal => $module:ident::$import:ident,)* })*) => {
        /// Every operator that is supported, by domain and name.
        pub const OPERATORS: &[Supported] = &[
            $($(Supported { domain: $domain, name: $name, since: $since, import: $module::$import },)*)*
        ];
    };
}

const ONNX: &str = "";

table! {
    ONNX {
        "Abs" 7 => arith::abs,
        "Acos" 7 => arith::acos,
        "Acosh" 9 => arith::acosh,
        "Add" 7 => arith::add,
        "And" 7 => arith::and,
        "ArgMax" 7 => reduce::arg_max,
        "ArgMin" 7 => reduce::arg_min,
        "Asin" 7 => arith::asin,
        "Asinh" 9 => arith::asinh,
        "Atan" 7 => arith::atan,
        "Atanh" 9 => arith::atanh,
        "Attention" 23 => attention::attention,
        "AveragePool" 7 => nn::average_pool,
        "BatchNormalization" 7 => norm::batch_normalization,
        "BitShift" 11 => arith::bit_shift,
        "BitwiseAnd" 18 => arith::and,
        "BitwiseNot" 18 => arith::not,
        "BitwiseOr" 18 => arith::or,
        "BitwiseXor" 18 => arith::xor,
        "Cast" 7 => arith::cast,
        "CastLike" 15 => arith::cast_like,
        "Ceil" 7 => arith::ceil,
        "Celu" 12 => arith::celu,
        "Clip" 7 => arith::clip,
        "Compress" 9 => movement::compress,
        "Concat" 7 => movement::concat,
        "ConcatFromSequence" 11 => sequence::concat,
        "Constant" 7 => shape::constant,
        "ConstantOfShape" 9 => shape::constant_of_shape,
        "Conv" 7 => nn::conv,
        "ConvInteger" 10 => quant::conv_integer,
        "ConvTranspose" 7 => nn::conv_transpose,
        "Cos" 7 => arith::cos,
        "Cosh" 9 => arith::cosh,
        "CumSum" 11 => reduce::cum_sum,
        "DepthToSpace" 7 => movement::depth_to_space,
        "DequantizeLinear" 10 => quant::dequantize_linear,
        "Div" 7 => arith::div,
        "Dropout" 7 => arith::dropout,
        "DynamicQuantizeLinear" 11 => quant::dynamic_quantize_linear,
        "Einsum" 12 => einsum::einsum,
        "Elu" 7 => arith::elu,
        "Equal" 7 => arith::equal,
        "Erf" 9 => arith::erf,
        "Exp" 7 => arith::exp,
        "Expand" 8 => movement::expand,
        "EyeLike" 9 => shape::eye_like,
        "Flatten" 7 => shape::flatten,
        "Floor" 7 => arith::floor,
        "GRU" 7 => rnn::gru,
        "Gather" 7 => movement::gather,
        "GatherElements" 11 => movement::gather_elements,
        "GatherND" 11 => movement::gather_nd,
        "Gelu" 20 => arith::gelu,
        "Gemm" 7 => nn::gemm,
        "GlobalAveragePool" 7 => reduce::global_average_pool,
        "GlobalLpPool" 7 => reduce::global_lp_pool,
        "GlobalMaxPool" 7 => reduce::global_max_pool,
        "Greater" 7 => arith::greater,
        "GreaterOrEqual" 12 => arith::greater_or_equal,
        "GridSample" 16 => sample::grid_sample,
        "GroupNormalization" 18 => norm::group_normalization,
        "HardSigmoid" 7 => arith::hard_sigmoid,
        "HardSwish" 14 => arith::hard_swish,
        "Hardmax" 7 => reduce::hardmax,
        "Identity" 7 => arith::identity,
        "If" 7 => control::if_,
        "InstanceNormalization" 7 => norm::instance_normalization,
        "IsInf" 10 => arith::is_inf,
        "IsNaN" 9 => arith::is_nan,
        "LRN" 7 => nn::lrn,
        "LSTM" 7 => rnn::lstm,
        "LayerNormalization" 17 => norm::layer_normalization,
        "LeakyRelu" 7 => arith::leaky_relu,
        "Less" 7 => arith::less,
        "LessOrEqual" 12 => arith::less_or_equal,
        "Log" 7 => arith::log,
        "LogSoftmax" 7 => reduce::log_softmax,
        "Loop" 7 => control::loop_,
        "LpNormalization" 7 => reduce::lp_normalization,
        "LpPool" 7 => nn::lp_pool,
        "MatMul" 7 => nn::matmul,
        "MatMulInteger" 10 => quant::matmul_integer,
        "Max" 7 => arith::max,
        "MaxPool" 7 => nn::max_pool,
        "Mean" 7 => arith::mean,
        "MeanVarianceNormalization" 9 => norm::mean_variance_normalization,
        "Min" 7 => arith::min,
        "Mish" 18 => arith::mish,
        "Mod" 10 => arith::modulo,
        "Mul" 7 => arith::mul,
        "Neg" 7 => arith::neg,
        "NonZero" 9 => shape::non_zero,
        "Not" 7 => arith::not,
        "OneHot" 9 => shape::one_hot,
        "Optional" 15 => sequence::optional,
        "OptionalGetElement" 15 => sequence::get_element,
        "OptionalHasElement" 15 => sequence::has_element,
        "Or" 7 => arith::or,
        "PRelu" 7 => arith::prelu,
        "Pad" 7 => movement::pad,
        "Pow" 7 => arith::pow,
        "QLinearConv" 10 => quant::qlinear_conv,
        "QLinearMatMul" 10 => quant::qlinear_matmul,
        "QuantizeLinear" 10 => quant::quantize_linear,
        "RMSNormalization" 23 => norm::rms_normalization,
        "RNN" 7 => rnn::rnn,
        "Range" 11 => shape::range,
        "Reciprocal" 7 => arith::reciprocal,
        "ReduceL1" 7 => reduce::l1,
        "ReduceL2" 7 => reduce::l2,
        "ReduceLogSum" 7 => reduce::log_sum,
        "ReduceLogSumExp" 7 => reduce::log_sum_exp,
        "ReduceMax" 7 => reduce::max,
        "ReduceMean" 7 => reduce::mean,
        "ReduceMin" 7 => reduce::min,
        "ReduceProd" 7 => reduce::prod,
        "ReduceSum" 7 => reduce::sum,
        "ReduceSumSquare" 7 => reduce::sum_square,
        "Relu" 7 => arith::relu,
        "Reshape" 7 => movement::reshape,
        "RoiAlign" 10 => sample::roi_align,
        "RotaryEmbedding" 23 => attention::rotary_embedding,
        "Resize" 10 => resize::resize,
        "Round" 11 => arith::round,
        "Scan" 9 => control::scan,
        "Scatter" 9 => movement::scatter_elements,
        "ScatterElements" 11 => movement::scatter_elements,
        "ScatterND" 11 => movement::scatter_nd,
        "Selu" 7 => arith::selu,
        "SequenceAt" 11 => sequence::at,
        "SequenceConstruct" 11 => sequence::construct,
        "SequenceEmpty" 11 => sequence::empty,
        "SequenceErase" 11 => sequence::erase,
        "SequenceInsert" 11 => sequence::insert,
        "SequenceLength" 11 => sequence::length,
        "SequenceMap" 17 => sequence::map,
        "Shape" 7 => shape::shape,
        "Shrink" 9 => arith::shrink,
        "Sigmoid" 7 => arith::sigmoid,
        "Sign" 9 => arith::sign,
        "Sin" 7 => arith::sin,
        "Sinh" 9 => arith::sinh,
        "Size" 7 => shape::size,
        "Slice" 7 => movement::slice,
        "Softmax" 7 => reduce::softmax,
        "Softplus" 7 => arith::softplus,
        "Softsign" 7 => arith::softsign,
        "SpaceToDepth" 7 => movement::space_to_depth,
        "Split" 7 => movement::split,
        "SplitToSequence" 11 => sequence::split,
        "Sqrt" 7 => arith::sqrt,
        "Squeeze" 7 => movement::squeeze,
        "Sub" 7 => arith::sub,
        "Sum" 7 => arith::sum,
        "SwiGLU" 28 => attention::swiglu,
        "Swish" 24 => arith::swish,
        "Tan" 7 => arith::tan,
        "Tanh" 7 => arith::tanh,
        "TensorScatter" 24 => attention::tensor_scatter,
        "ThresholdedRelu" 10 => arith::thresholded_relu,
        "Tile" 7 => movement::tile,
        "TopK" 7 => sort::top_k,
        "Transpose" 7 => movement::transpose,
        "Trilu" 14 => shape::trilu,
        "Unsqueeze" 7 => movement::unsqueeze,
        "Upsample" 7 => resize::resize,
        "Where" 9 => arith::where_,
        "Xor" 7 => arith::xor,
        // What ONNX Runtime's optimizer writes into the default domain.
        "SimplifiedLayerNormalization" 1 => norm::rms_normalization,
    }
    MICROSOFT {
        "BiasGelu" 1 => attention::bias_gelu,
        "DequantizeLinear" 1 => quant::dequantize_linear,
        "FastGelu" 1 => attention::fast_gelu,
        "FusedMatMul" 1 => attention::fused_matmul,
        "GatherBlockQuantized" 1 => blocks::gather_block_quantized,
        "Gelu" 1 => arith::gelu,
        "LayerNormalization" 1 => norm::layer_normalization,
        "MatMulNBits" 1 => blocks::matmul_nbits,
        "QuantizeLinear" 1 => quant::quantize_linear,
        "QuickGelu" 1 => attention::quick_gelu,
        "RotaryEmbedding" 1 => attention::rotary_embedding_microsoft,
        "SimplifiedLayerNormalization" 1 => norm::rms_normalization,
        "SkipLayerNormalization" 1 => norm::skip_layer_normalization,
        "SkipSimplifiedLayerNormalization" 1 => norm::skip_simplified_layer_normalization,
    }
}

/// The importer of a node's operator and the version of its operator set.
pub(super) fn find(node: &Node, opset: Option<i64>) -> Res<(&'static Supported, i64)> {
    let entry = OPERATORS.iter().find(|s| s.name == node.op && s.domain == node.domain);
    let Some(entry) = entry else {
        let reason = match OPERATORS.iter().find(|s| s.name == node.op) {
            Some(s) => format!(
                "the operator is supported in the domain `{}`, not in this one",
                if s.domain.is_empty() { "ai.onnx" } else { s.domain }
            ),
            None => "there is no importer for this operator".into(),
        };
        return Err(Fail::Unsupported(reason));
    };
    let Some(version) = opset else {
        // Contributed operators have had one version only.
        if entry.domain.is_empty() {
            return Err(Fail::Invalid("the model imports no version of the default operator set".into()));
        }
        return Ok((entry, 1));
    };
    if entry.domain.is_empty() && !(EARLIEST..=LATEST).contains(&version) {
        return Err(Fail::Unsupported(format!("the model uses operator set {version}; versions {EARLIEST} to {LATEST} are supported")));
    }
    if version < entry.since {
        return Err(Fail::Unsupported(format!(
            "the operator is supported from version {} of its operator set on, the model imports {version}",
            entry.since
        )));
    }
    Ok((entry, version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_unique() {
        for domain in [ONNX, MICROSOFT] {
            let names: Vec<_> = OPERATORS.iter().filter(|s| s.domain == domain && s.since > 0).map(|s| s.name).collect();
            for (i, n) in names.iter().enumerate() {
                assert!(!names[..i].contains(n), "{n} is listed twice");
            }
        }
    }
}
