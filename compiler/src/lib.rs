//! `tfc`: an ahead-of-time compiler for transformers.
//!
//! Data flows one way: `onnx` decodes a model and imports it into the graph IR, `tfc-passes` rewrites
//! it, [`schedule`] turns it into [`kernel`]s, and [`emit`] makes native code of them. [`driver`] is that
//! way on one screen. [`cli`] is the command line, for the program `tfc` and for what calls it from elsewhere.

// The command line names the library as others do.
extern crate self as tfc;

pub mod artifact;
pub mod batches;
pub mod bisect;
pub mod calibration;
pub mod cli;
pub mod cost;
pub mod diag;
pub mod dot;
pub mod driver;
pub mod emit;
pub mod files;
pub mod hwbench;
pub mod inputs;
pub mod kernel;
pub mod memory;
pub mod metrics;
pub mod npz;
pub mod onnx;
pub mod profile;
pub mod reference;
pub mod schedule;
pub mod scratch;
