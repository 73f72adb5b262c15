//! How products are quantized, as the command line says it.

use regex::Regex;
use std::fmt;
use std::str::FromStr;
use tfc_ir::graph::{Loc, Node};

/// How one matrix product is computed: `f32`, `w8a8`, `w4a8:g64`, `w4a16:g128`, …
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum QuantSpec {
    /// In f32, as the model has it.
    #[default]
    F32,
    /// With integer weights.
    Int {
        /// Bits of the weights.
        weights: WeightBits,
        /// What the weights are multiplied with.
        activations: Activations,
        /// What shares a scale.
        group: Group,
        /// When scales of activations are found; of no meaning where these are floats.
        scaling: Scaling,
    },
}

/// When the scales of quantized activations are found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Scaling {
    /// As calibration data says for each operand: by the error; without such data as [`Scaling::Dynamic`].
    #[default]
    ByError,
    /// When the model is compiled, from calibration data: one for all rows.
    Static,
    /// When the model runs: one for each row.
    Dynamic,
}

/// Bits of a weight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WeightBits {
    /// Stored in -8..=7.
    Four,
    /// Stored in -127..=127.
    Eight,
}

/// What quantized weights are multiplied with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Activations {
    /// Floats as they are, by weights converted to f32.
    Float,
    /// 8-bit integers.
    Int8,
}

/// Which weights of an output channel share a scale.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Group {
    /// All of them.
    Channel,
    /// As many neighbours along k; the last group may be shorter.
    Of(u32),
}

/// The schemes in the order of help texts.
const SCHEMES: &str = "f32, f16w, w8a8, w4a8, w4a16, auto";

/// Why a text is not a [`QuantSpec`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SpecError {
    /// There is no such scheme.
    #[error("there is no such scheme as `{0}`; the schemes are: {SCHEMES}")]
    Unknown(String),
    /// The scheme has no such suffix.
    #[error("`{given}` is nothing that `{scheme}` can have; it can have: {known}")]
    Suffix {
        /// What was given.
        given: String,
        /// The scheme before it.
        scheme: String,
        /// What could be given.
        known: &'static str,
    },
    /// A suffix contradicts another one.
    #[error("`{0}` says the same thing twice")]
    Twice(String),
    /// The scheme is planned.
    #[error("the scheme `{0}` is not supported yet")]
    Later(String),
}

impl QuantSpec {
    /// The same with scales of activations found at another time.
    #[must_use]
    pub fn with_scaling(self, to: Scaling) -> QuantSpec {
        match self {
            QuantSpec::Int { weights, activations, group, .. } => QuantSpec::Int { weights, activations, group, scaling: to },
            QuantSpec::F32 => QuantSpec::F32,
        }
    }
}

impl FromStr for QuantSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = text.split(':');
        let scheme = parts.next().unwrap_or_default();
        let (weights, activations, known) = match scheme {
            "w8a8" => (WeightBits::Eight, Activations::Int8, "channel, g32, g64, g128, static, dynamic"),
            "w4a8" => (WeightBits::Four, Activations::Int8, "channel, g32, g64, g128, static, dynamic"),
            "w4a16" => (WeightBits::Four, Activations::Float, "channel, g32, g64, g128"),
            "f16w" | "auto" => return Err(SpecError::Later(scheme.into())),
            "f32" => match parts.next() {
                None => return Ok(QuantSpec::F32),
                Some(given) => return Err(SpecError::Suffix { given: given.into(), scheme: scheme.into(), known: "none" }),
            },
            _ => return Err(SpecError::Unknown(text.into())),
        };
        let (mut group, mut scaling) = (None, None);
        for part in parts {
            let first = match part {
                "channel" => group.replace(Group::Channel).is_none(),
                "g32" => group.replace(Group::Of(32)).is_none(),
                "g64" => group.replace(Group::Of(64)).is_none(),
                "g128" => group.replace(Group::Of(128)).is_none(),
                "static" if activations == Activations::Int8 => scaling.replace(Scaling::Static).is_none(),
                "dynamic" if activations == Activations::Int8 => scaling.replace(Scaling::Dynamic).is_none(),
                _ => return Err(SpecError::Suffix { given: part.into(), scheme: scheme.into(), known }),
            };
            if !first {
                return Err(SpecError::Twice(text.into()));
            }
        }
        let (group, scaling) = (group.unwrap_or(Group::Channel), scaling.unwrap_or_default());
        Ok(QuantSpec::Int { weights, activations, group, scaling })
    }
}

impl fmt::Display for QuantSpec {
    /// The form that is parsed; what is the default is not mentioned.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let QuantSpec::Int { weights, activations, group, scaling } = self else { return f.write_str("f32") };
        f.write_str(match (weights, activations) {
            (WeightBits::Eight, Activations::Int8) => "w8a8",
            (WeightBits::Eight, Activations::Float) => "w8a16",
            (WeightBits::Four, Activations::Int8) => "w4a8",
            (WeightBits::Four, Activations::Float) => "w4a16",
        })?;
        if let Group::Of(n) = group {
            write!(f, ":g{n}")?;
        }
        match scaling {
            Scaling::ByError => Ok(()),
            Scaling::Static => f.write_str(":static"),
            Scaling::Dynamic => f.write_str(":dynamic"),
        }
    }
}

/// How the products of a model are quantized.
#[derive(Clone, Debug, Default)]
pub struct QuantConfig {
    /// What holds where no override does.
    pub spec: QuantSpec,
    /// For products with an ONNX node whose name the expression finds; the last one that does, holds.
    pub overrides: Vec<(Regex, QuantSpec)>,
    /// Nodes of the graph to quantize that get another scheme than these say, each with the reason, so that a promise about accuracy
    /// is kept.
    pub raised: Vec<Raised>,
    /// Whether every quantized product and attention is computed as it was as well, and an input decides which result counts: see
    /// [`super::Gates`].
    pub gated: bool,
}

/// A product with a scheme of its own.
#[derive(Clone, PartialEq, Debug)]
pub struct Raised {
    /// The node.
    pub node: Node,
    /// Its place in the model.
    pub loc: Loc,
    /// Its scheme.
    pub spec: QuantSpec,
    /// Why it has that.
    pub reason: String,
}

impl QuantConfig {
    /// Everything by one scheme.
    pub fn new(spec: QuantSpec) -> QuantConfig {
        QuantConfig { spec, ..QuantConfig::default() }
    }

    /// Whether it quantizes nothing.
    pub fn is_f32(&self) -> bool {
        self.spec == QuantSpec::F32 && self.overrides.iter().all(|(_, s)| *s == QuantSpec::F32)
    }

    /// Whether a scheme demands calibration data.
    pub fn wants_data(&self) -> bool {
        let specs = std::iter::once(&self.spec).chain(self.overrides.iter().map(|(_, s)| s));
        specs.into_iter().any(|s| matches!(s, QuantSpec::Int { scaling: Scaling::Static, .. }))
    }

    /// Whether an override says how a product is computed.
    pub fn overrides(&self, loc: &Loc) -> bool {
        self.overrides.iter().any(|(r, _)| loc.names().any(|n| r.is_match(n)))
    }

    /// The scheme for a node, and what decided it.
    pub fn of(&self, node: Node, loc: &Loc) -> (QuantSpec, String) {
        if let Some(raised) = self.raised.iter().rev().find(|r| r.node == node) {
            return (raised.spec, raised.reason.clone());
        }
        let found = self.overrides.iter().rev().find(|(r, _)| loc.names().any(|n| r.is_match(n)));
        found.map_or_else(|| (self.spec, "--quant".into()), |(r, s)| (*s, format!("--quant-override '{r}'")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_and_written() {
        for text in ["f32", "w8a8", "w4a8", "w4a8:g32", "w8a8:g64", "w4a16:g128", "w4a8:static", "w8a8:g32:dynamic"] {
            assert_eq!(text.parse::<QuantSpec>().unwrap().to_string(), text);
        }
        assert_eq!("w4a8:channel".parse::<QuantSpec>(), "w4a8".parse());
        let error = |text: &str| text.parse::<QuantSpec>().unwrap_err();
        assert!(matches!(error("w7a7"), SpecError::Unknown(_)) && error("w7a7").to_string().contains("w4a8"));
        assert!(error("w4a8:g33").to_string().contains("g33") && error("w4a8:g33").to_string().contains("g128"));
        assert!(matches!(error("f32:g32"), SpecError::Suffix { .. }) && matches!(error("w4a16:static"), SpecError::Suffix { .. }));
        assert!(matches!(error("w4a8:static:dynamic"), SpecError::Twice(_)) && matches!(error("w4a8:g32:g32"), SpecError::Twice(_)));
        assert_eq!("w4a8:static:g32".parse::<QuantSpec>(), "w4a8:g32:static".parse());
        assert!(matches!(error("auto"), SpecError::Later(_)) && matches!(error("f16w:g32"), SpecError::Later(_)));
    }

    #[test]
    fn the_last_override_that_matches_holds() {
        let over = |r: &str, s: &str| (Regex::new(r).unwrap(), s.parse().unwrap());
        let overrides = vec![over("layer", "w8a8"), over("layer.1/", "f32")];
        let mut config = QuantConfig { spec: "w4a8".parse().unwrap(), overrides, ..QuantConfig::default() };
        let [first, second] = [0, 1].map(Node::from_u32);
        let of = |name| config.of(first, &Loc::node(name)).0.to_string();
        assert_eq!([of("head"), of("/layer.0/MatMul"), of("/layer.1/MatMul")], ["w4a8", "w8a8", "f32"]);
        assert!(!config.is_f32() && QuantConfig::default().is_f32());
        config.raised.push(Raised {
            node: second,
            loc: Loc::node("/layer.1/MatMul"),
            spec: "w8a8".parse().unwrap(),
            reason: "a promise".into(),
        });
        let of = |node, name| config.of(node, &Loc::node(name));
        assert_eq!(of(second, "/layer.1/MatMul"), ("w8a8".parse().unwrap(), "a promise".to_string()));
        assert_eq!(of(first, "/layer.1/MatMul").1, "--quant-override 'layer.1/'");
    }
}
