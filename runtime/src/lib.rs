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
//! | [`pool`] | threads for parallel loops |

pub mod abi;
pub mod elem;
pub mod expr;
pub mod manifest;
pub mod pool;
pub mod weights;
