//! `cast`: conversion of the element type.

use super::support::{any, elementwise};
use super::Traits;
use crate::types::Elem;

operator! {
    /// Conversion to another element type: integers wrap, floats to integers truncate and saturate
    /// (NaN gives 0), anything to `bool` is `x != 0`.
    ///
    /// C1. The operand is not quantized.
    pub struct Cast("cast", 1..=1) {
        /// Element type of the result.
        to: Elem,
    }
}

elementwise!(Cast, Traits::ELEMENTWISE, 0, any, |op, p, args| p.cast(args[0], op.to));
