//! A graph under reconstruction: what is asked for is copied, what is not is left behind.

use crate::table::PassError;
use tfc_ir::graph::{Def, Graph, Loc, Node, Value};
use tfc_ir::ops::Op;
use tfc_ir::tensor::Tensor;

/// Builds a new graph from an old one. Inputs are copied at once, constants when first asked for.
pub(crate) struct Rebuild<'g> {
    old: &'g Graph,
    /// The graph so far.
    pub(crate) new: Graph,
    map: Vec<Option<Value>>,
}

impl<'g> Rebuild<'g> {
    /// Starts with nothing but the inputs.
    pub(crate) fn new(old: &'g Graph) -> Rebuild<'g> {
        let mut new = old.emptied();
        let mut map = vec![None; old.values().len()];
        for &v in old.inputs() {
            let d = old.value(v);
            map[index(v)] = Some(new.add_input(d.name.as_deref().unwrap_or_default(), d.ty.clone()));
        }
        Rebuild { old, new, map }
    }

    /// The copy of `v`, if it is an input, a constant, or was [`Rebuild::set`].
    pub(crate) fn try_get(&mut self, v: Value) -> Option<Value> {
        if self.map[index(v)].is_none()
            && let Def::Const(t) = &self.old.value(v).def
        {
            let d = self.old.value(v);
            self.map[index(v)] = Some(self.new.add_typed_const(t.clone(), d.ty.clone(), d.name.clone()));
        }
        self.map[index(v)]
    }

    /// The copy of `v`.
    ///
    /// # Panics
    /// When the pass did not emit the node that defines it before.
    pub(crate) fn get(&mut self, v: Value) -> Value {
        self.try_get(v).unwrap_or_else(|| panic!("{v} is used before it is emitted"))
    }

    /// Declares that `new` stands for `old`; it inherits the name.
    pub(crate) fn set(&mut self, old: Value, new: Value) {
        self.map[index(old)] = Some(new);
        if self.new.value(new).name.is_none() {
            self.new.set_name(new, self.old.value(old).name.clone());
        }
    }

    /// Replaces `old` by a constant.
    pub(crate) fn set_const(&mut self, old: Value, tensor: Tensor) {
        let name = self.old.value(old).name.clone();
        self.map[index(old)] = Some(self.new.add_const(tensor, name));
    }

    /// Copies a node of the old graph.
    pub(crate) fn copy(&mut self, n: Node) -> Result<(), PassError> {
        let old = self.old;
        let data = old.node(n);
        let inputs: Vec<Value> = data.inputs.iter().map(|&v| self.get(v)).collect();
        let results = self.emit(data.op.clone(), &inputs, &data.loc)?;
        for (&v, r) in data.outputs.iter().zip(results) {
            self.set(v, r);
        }
        Ok(())
    }

    /// Appends a node over values of the new graph.
    pub(crate) fn emit(&mut self, op: Op, inputs: &[Value], loc: &Loc) -> Result<Vec<Value>, PassError> {
        self.new.add_node(op, inputs, loc).map_err(|e| PassError::new(e, loc))
    }

    /// Declares the outputs and returns the graph.
    pub(crate) fn finish(mut self) -> Graph {
        for o in self.old.outputs() {
            let v = self.get(o.value);
            self.new.add_output(&o.name, v);
        }
        self.new
    }
}

/// The position of a value in a side table.
pub(crate) fn index(v: Value) -> usize {
    v.as_u32() as usize
}
