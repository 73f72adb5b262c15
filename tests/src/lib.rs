//! What the tests of several crates share.

pub mod models;
pub mod onnx_build;
