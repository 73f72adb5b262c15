//! `select`: choice between two operands.

use super::Mapped::Affine;
use super::Traits;
use super::support::{any, elementwise};

operator! {
    /// `c ? x : y`.
    ///
    /// C1. The operands broadcast; the first is `bool`, the others have one type.
    pub struct Select("select", 3..=3) {}
}

elementwise!(Select, Traits::ELEMENTWISE, 1, any, |_op, p, args| p.select(args[0], args[1], args[2]), ways: &[&[(1, Affine), (2, Affine)]]);

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_refused, ty};
    use super::*;
    use crate::types::Elem;

    #[test]
    fn conditions_are_truth_values() {
        for elem in [Elem::I8, Elem::F32] {
            assert_refused(Select {}, &[ty(elem, "n"), ty(Elem::F32, "n"), ty(Elem::F32, "n")], "select chooses by bool, not by");
        }
    }
}
