//! `tfc`: an ahead-of-time compiler for transformers.
//!
//! Data flows one way: `onnx` decodes a model and imports it into the graph IR, `tfc-passes` rewrites
//! it, [`schedule`] turns it into [`kernel`]s, and [`emit`] makes native code of them.

pub mod artifact;
pub mod emit;
pub mod kernel;
pub mod onnx;
pub mod schedule;
