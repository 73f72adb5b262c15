//! What this machine can do, measured: unit rates of arithmetic, bandwidths of caches and memory, the
//! cost of handing a loop to threads; and every candidate for the kernels of a program, run side by side.
//!
//! | module | is |
//! |---|---|
//! | [`routine`] | assembled code in this process |
//! | [`rates`] | loops of one instruction: the limits of arithmetic |
//! | [`memory`] | reading, writing and copying at each level of the memory hierarchy |
//! | [`clock`] | the best of several short runs, on one or several threads |
//! | [`machine`] | all of it together, and the shortest time that a kernel could take |
//! | [`compare`] | the candidates for each kernel of a program |

pub mod clock;
pub mod compare;
pub mod machine;
pub mod memory;
pub mod rates;
pub mod routine;
