//! What the tests of `tfc` share: the harness of the filetests, generators, and ONNX models.

pub mod bare;
pub mod choices;
pub mod filetest;
pub mod models;
pub mod mutate;
pub mod native;
pub mod node_cases;
pub mod onnx_build;
pub mod random_graph;
pub mod skip;
