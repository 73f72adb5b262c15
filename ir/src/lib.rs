//! The typed graph IR of `tfc`.
//!
//! A [`graph::Graph`] is a pure dataflow graph over tensors whose sizes are expressions over named
//! symbols ([`dim::Dim`]). Its operators ([`ops::Op`]) are a closed list, one file each, and every one
//! has a reference evaluation: [`graph::Graph::evaluate`] runs a graph, and everything that the
//! compiler does is compared with it. [`verify`] checks a graph and returns the token that the
//! backends demand; [`text`] prints and parses the canonical text form.
//!
//! This crate knows nothing of ONNX, of rewriting, or of machine code.

pub mod attr;
pub mod dim;
pub mod graph;
pub mod ops;
pub mod quant;
pub mod scalar;
pub mod symbolic;
pub mod tensor;
pub mod text;
pub mod types;
pub mod verify;
