//! What is found on one graph for several configurations.

use super::activations::Found;
use super::spec::{Group, WeightBits};
use super::weights::{Rounded, RoundedRows};
use crate::calibrate::Observed;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tfc_ir::graph::{Node, Value};
use tfc_ir::tensor::Tensor;

/// Which constant of a product is rounded, whether it is the left operand, and how.
pub(super) type Rounding = (Value, bool, WeightBits, Group);

/// An operand, the axis of its channels, and the products that weigh these.
type Weighed = (Value, usize, Vec<Node>);

/// What the pass found on a graph, which holds for every configuration: with one in [`crate::Context::data`], further runs on the same
/// graph by the same statistics find it again. For other graphs it is of no use, and does no harm.
#[derive(Default)]
pub struct Memo {
    /// Rounded matrices of constants.
    pub(super) rounded: Table<Rounding, Tensor, Vec<Arc<Rounded>>>,
    /// Rounded tables of constants.
    pub(super) tables: Table<Value, Tensor, Arc<RoundedRows>>,
    /// Ranges of operands, by what was seen of them.
    pub(super) ranges: Table<Weighed, Arc<Observed>, Found>,
}

/// What was made under each key, and what it was made of.
pub(super) struct Table<K, S, T>(Mutex<HashMap<K, (S, T)>>);

impl<K, S, T> Default for Table<K, S, T> {
    fn default() -> Table<K, S, T> {
        Table(Mutex::default())
    }
}

impl<K: Eq + Hash, S: Clone, T: Clone> Table<K, S, T> {
    /// What was made under a key, if that was of this source, else what `make` makes now.
    pub(super) fn of(&self, key: K, source: &S, is: impl Fn(&S, &S) -> bool, make: impl FnOnce() -> T) -> T {
        if let Some((_, made)) = self.lock().get(&key).filter(|(from, _)| is(from, source)) {
            return made.clone();
        }
        let made = make();
        self.lock().insert(key, (source.clone(), made.clone()));
        made
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, (S, T)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of keys.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}
