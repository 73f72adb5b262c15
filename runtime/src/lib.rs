//! Loads and runs what `tfc` compiled.
//!
//! The crate is the meeting point of the compiler, which writes artifacts, and of programs that use
//! them without generated headers. It depends on no other crate of the project.
//!
//! | module | is |
//! |---|---|
//! | [`abi`] | the C ABI of generated code: the entry, the context, status codes, callbacks |
//! | [`weights`] | the format of a `NAME.weights.bin` file |
//! | [`manifest`] | the description of a model that is encoded in its object |
//! | [`elem`] | element types of inputs and outputs |
//! | [`expr`] | dimension expressions in text form |
//! | [`model`] | loading: a bundle, a shared object, or code in memory |
//! | [`session`] | running a loaded model |
//! | [`pool`] | threads for parallel loops |
//! | [`cpu`] | what a process has to ask for before code may use it |
//! | [`profile`] | how long each step of a run took |
//! | [`buffer`] | aligned memory |
//! | [`file`] | opening files that have to be regular |
//! | [`error`] | everything that can go wrong |
//!
//! ```no_run
//! use std::sync::Arc;
//! use tfc_runtime::{Elem, Model, Session, View};
//!
//! let model = Arc::new(Model::load("bert")?);
//! let mut session = Session::new(model, 2)?;
//! let ids: Vec<u8> = [101i64, 7592, 102].iter().flat_map(|id| id.to_ne_bytes()).collect();
//! let outputs = session.run(&[("input_ids", View { elem: Elem::I64, shape: &[1, 3], data: &ids })])?;
//! println!("{} {:?}", outputs[0].name, outputs[0].shape);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod abi;
pub mod buffer;
mod code;
pub mod cpu;
pub mod elem;
mod elf;
pub mod error;
pub mod expr;
pub mod file;
pub mod manifest;
pub mod model;
pub mod pool;
pub mod profile;
pub mod session;
pub mod solve;
pub mod weights;

pub use buffer::Buffer;
pub use elem::Elem;
pub use error::Error;
pub use model::{Dims, LoadOptions, Model, Weights};
pub use pool::Pool;
pub use session::{Output, Session, View};
