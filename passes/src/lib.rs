//! Graph passes: functions from a graph to a graph that computes the same.
//!
//! [`table`] lists every pass under the name that users type, says which passes each optimization
//! level runs, and drives a pipeline. A pass lives in its own file:
//!
//! - [`dce`] removes what no output needs, [`cse`] what is computed twice, [`fold`] what is constant;
//! - [`simplify`] applies local exact rules to a fixed point: algebra of shapes and of elements;
//! - [`eqsat`] rewrites in an e-graph: it recovers normalisations, activations, rotary embeddings
//!   and attention from whatever spelling an exporter chose;
//! - [`integer_products`] finds the products of integers that quantized models spell out;
//! - [`demote`] computes products of f64, and what follows from them, in f32;
//! - [`calibrate`] observes operands of products on data, [`reparameterize`] moves outliers of their channels into weights, and
//!   [`quantize`] rounds constant matrices to integers, where that is asked for;
//! - [`legalize`] takes composite operators apart that no kernel computes, [`sink_reshapes`] brings
//!   elementwise operators next to the products that they follow, [`fold_scales`] leaves products fewer scales, and [`fuse`]
//!   groups what becomes one kernel.
//!
//! Passes preserve types, the order of inputs and outputs, and run-time checks, and are
//! deterministic: the same graph gives the same result, to the byte of its text form.

pub mod absorb;
pub mod calibrate;
pub mod cost;
pub mod cse;
pub mod dce;
pub mod demote;
pub mod eqsat;
pub mod fold;
pub mod fold_scales;
pub mod fuse;
pub mod integer_products;
pub mod legalize;
pub mod parallel;
pub mod quantize;
mod rebuild;
pub mod reparameterize;
pub mod rules;
pub mod side_data;
pub mod simplify;
pub mod sink_reshapes;
pub mod table;
pub mod terms;

pub use quantize::{LedgerEntry, QuantConfig, QuantSpec};
pub use table::{
    Context, OptLevel, Pass, PassError, PassResult, Ran, Stats, UnknownPass, calibrating_pipeline, parse_passes, pipeline,
    quantizing_pipeline, run_pipeline,
};
