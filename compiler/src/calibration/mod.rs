//! Calibration: what a model does on data, by compiled code.
//!
//! [`data`] reads samples, [`evaluate`] runs graphs on them, [`contract`] measures what quantization changed and keeps promises about it, by raising the layers that `ranking` finds worst,
//! [`cache`] keeps what was observed in files.

pub mod cache;
pub mod contract;
pub mod data;
pub mod evaluate;
mod ranking;

pub use contract::{Accuracy, Contract};
pub use data::{Data, Holdout};
pub use evaluate::{Compiled, Progress, Quiet};
