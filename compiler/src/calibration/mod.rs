//! Calibration: what a model does on data, by compiled code.
//!
//! [`data`] reads samples, [`evaluate`] runs graphs on them.

pub mod data;
pub mod evaluate;

pub use data::{Data, Holdout};
pub use evaluate::{Compiled, Progress, Quiet};
