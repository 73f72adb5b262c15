//! Selection: the largest or smallest elements of rows, in order.

use super::Extent;
use super::nest::Access;

/// For every row its best elements, best first, equal ones by their position: a NaN is larger than any number, and zeros of both
/// signs are equal. A task is a row. It takes time linear in the row, `k log k`, and in the worst case, a row that gets better
/// all the time, `n log k`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TopK {
    /// Independent loops, outermost first: a row is one point of their product.
    pub rows: Vec<Extent>,
    /// The number of elements of a row.
    pub n: Extent,
    /// How many of them are selected, from 1 to `n`.
    pub k: Extent,
    /// Whether larger elements are better.
    pub largest: bool,
    /// The elements. The loops of the accesses are those of rows and then that of elements.
    pub from: Access,
    /// The selected elements.
    pub values: Access,
    /// Their positions in the row, `i64`.
    pub positions: Access,
}
