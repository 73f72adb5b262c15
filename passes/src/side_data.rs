//! What accompanies a graph on its way through the passes: one value of any type each.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// At most one value of each type. Cloning shares the values.
#[derive(Clone, Default)]
pub struct SideData {
    values: BTreeMap<TypeId, (&'static str, Arc<dyn Any + Send + Sync>)>,
}

impl SideData {
    /// The value of type `T`, if there is one.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.values.get(&TypeId::of::<T>())?.1.downcast_ref()
    }

    /// Keeps a value, in place of the one of its type.
    pub fn insert<T: Any + Send + Sync>(&mut self, value: T) {
        self.values.insert(TypeId::of::<T>(), (std::any::type_name::<T>(), Arc::new(value)));
    }

    /// These values and, for other types, those of `base`.
    pub fn over(&self, base: &SideData) -> SideData {
        let mut all = base.clone();
        all.values.extend(self.values.iter().map(|(t, v)| (*t, v.clone())));
        all
    }
}

impl fmt::Debug for SideData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.values().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_type() {
        let mut base = SideData::default();
        base.insert(1u32);
        base.insert("base");
        let mut own = SideData::default();
        own.insert(2u32);
        let all = own.over(&base);
        assert_eq!((all.get::<u32>(), all.get::<&str>(), all.get::<u8>()), (Some(&2), Some(&"base"), None));
        assert_eq!(base.get::<u32>(), Some(&1));
    }
}
