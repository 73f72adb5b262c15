//! Code generation.

pub mod clif;
