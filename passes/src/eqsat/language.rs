//! The e-graph's language: the operators of the IR themselves.

use egg::{Id, Language};
use std::sync::Arc;
use tfc_ir::ops::Op;

/// An e-node.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum ENode {
    /// The graph's input of this number.
    Input(u32),
    /// The constant of this number in [`super::analysis::Knowledge`].
    Constant(u32),
    /// A result of a node that rules do not look into: one with several results, or a fused one.
    Opaque {
        /// The node's number in the graph.
        node: u32,
        /// Which of its results.
        result: u32,
        /// Its operands.
        args: Vec<Id>,
    },
    /// An operator with its attributes, applied to classes.
    Apply {
        /// The operator; shared between copies of the e-node.
        op: Arc<Op>,
        /// Its operands.
        args: Vec<Id>,
    },
}

/// What e-nodes are indexed by: the mnemonic of an application, or nothing for leaves.
pub(super) type Kind = Option<&'static str>;

impl Language for ENode {
    type Discriminant = Kind;

    fn discriminant(&self) -> Kind {
        match self {
            ENode::Apply { op, .. } => Some(op.mnemonic()),
            _ => None,
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (ENode::Apply { op: a, args: x }, ENode::Apply { op: b, args: y }) => x.len() == y.len() && a == b,
            (ENode::Opaque { node: a, result: i, .. }, ENode::Opaque { node: b, result: j, .. }) => (a, i) == (b, j),
            (a, b) => a == b,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            ENode::Input(_) | ENode::Constant(_) => &[],
            ENode::Opaque { args, .. } | ENode::Apply { args, .. } => args,
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            ENode::Input(_) | ENode::Constant(_) => &mut [],
            ENode::Opaque { args, .. } | ENode::Apply { args, .. } => args,
        }
    }
}
