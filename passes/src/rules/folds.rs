//! Folds: a map by channel before a product is undone by its matrix and absorbed by what computes the operand.
//!
//! They fire for values that have a [`Plan`](crate::absorb::Plan), which says with which numbers; `reparameterize` makes plans and
//! is the only pass that uses these rules. The identity is `x · W = x' · (diag(s) W) + z · W` with `x' = (x - z) / s`. Whatever else
//! takes `x` keeps it. Sources: for norms SmoothQuant (Xiao et al. 2023), with a shift Outlier Suppression+ (Wei et al. 2023) and
//! RepQ-ViT (Li et al. 2023); for values and gated projections AWQ (Lin et al. 2024).

use super::Numerics::Rounding;
use super::Use::Explore;
use super::{Root, Rule};
use crate::absorb::Family;
use crate::terms::{Term, Terms};
use std::sync::Arc;
use tfc_ir::ops::{Add, Matmul, Mul, Slice};
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Shape;

#[rustfmt::skip]
pub(super) const RULES: &[Rule] = &[
    Rule::new("fold-into-layer-norm",       Rounding, Explore, &["matmul"], into_layer_norm),
    Rule::new("fold-into-rms-norm",         Rounding, Explore, &["matmul"], into_rms_norm),
    Rule::new("fold-into-value-projection", Rounding, Explore, &["matmul"], into_values),
    Rule::new("fold-into-gated-up",         Rounding, Explore, &["matmul"], into_gated_up),
    Rule::new("fold-behind-relu",           Rounding, Explore, &["matmul"], behind_relu),
    Rule::new("fold-into-summands",         Rounding, Explore, &["matmul"], into_summands),
    Rule::new("fold-into-product",          Rounding, Explore, &["matmul"], into_product),
    Rule::new("unfold-norm",                Rounding, Explore, &["layer_norm", "rms_norm"], unfold_norm),
    Rule::new("slice-beside-fold",          Rounding, Explore, &["slice"],  slice_beside_fold),
];

/// `norm(u; γ, β) · W = norm(u; γ/s, (β - z)/s) · (diag(s) W) + z · W` for the layer norm, whose bias counts as zeros if it has none
fn into_layer_norm(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    folded(t, root, Family::LayerNorm)
}

/// `norm(u; γ) · W = norm(u; γ/s) · (diag(s) W)` for the RMS norm
fn into_rms_norm(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    folded(t, root, Family::RmsNorm)
}

/// `attention(q, k, v) · W = attention(q, k, (v - z)/s) · (diag(s) W) + z · W`, since the weights of a row sum to 1; heads with the same
/// values have the same numbers, and there must be keys
fn into_values(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    folded(t, root, Family::Value)
}

/// `(u * g) · W = ((u/s) * g) · (diag(s) W)`
fn into_gated_up(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    folded(t, root, Family::Gated)
}

/// `relu(u) · W = relu(u/s) · (diag(s) W)` and `relu(u)² · W = relu(u/√s)² · (diag(s) W)`
fn behind_relu(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    folded(t, root, Family::Relu)
}

/// `(a + b) · W = (a/s + (b - z)/s) · (diag(s) W) + z · W`, such as a norm that is scaled and shifted by other inputs:
/// `n * (1 + g) + h`, where what computes `g` and `h` takes the map
fn into_summands(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    folded(t, root, Family::Sum)
}

/// `(u V + b) · W = (u (V/s) + (b - z)/s) · (diag(s) W) + z · W`
fn into_product(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    folded(t, root, Family::Product)
}

/// The product of a mapped operand with the matrix that undoes the map, whichever side the matrix is on.
fn folded(t: &mut dyn Terms, root: &Root, family: Family) -> Option<Term> {
    (0..2).find_map(|side| {
        let (x, w) = (root.arg(side), root.arg(1 - side));
        let plan = t.plan(x).filter(|_| t.is_known(w) && !t.is_known(x))?.clone();
        let axis = t.shape(x).rank() - 1 - side;
        if plan.axis != Some(axis) || plan.path.family() != family {
            return None;
        }
        let mapped = plan.build(t)?;
        let (k, elem) = (plan.map.scale.len(), t.ty(x).elem);
        let numbers = |sizes: [usize; 2], values: &[f32]| Tensor::build(elem, &sizes, |i| Scalar::Float(values[i].into()));
        // The channels are the rows of a right operand, and the columns of a left one.
        let (along_w, along_x) = if side == 0 { ([k, 1], [1, k]) } else { ([1, k], [k, 1]) };
        let scale = t.add_constant(numbers(along_w, &plan.map.scale));
        let scaled = t.add(Mul {}.into(), &[w, scale]).filter(|&scaled| t.ty(scaled) == t.ty(w))?;
        let ordered = |x: Term, w: Term| if side == 0 { [x, w] } else { [w, x] };
        let product = t.add(Matmul {}.into(), &ordered(mapped, scaled))?;
        let Some(shift) = &plan.map.shift else { return Some(product) };
        let shift = t.add_constant(numbers(along_x, shift));
        let mut bias = t.add(Matmul {}.into(), &ordered(shift, w))?;
        if side == 0 && t.shape(bias).rank() == 2 {
            let columns = Shape(vec![t.shape(bias)[1].clone()]);
            bias = t.reshape(bias, columns)?;
        }
        t.add(Add {}.into(), &[product, bias])
    })
}

/// `norm(u; γ, β) = norm(u; γ/s, (β - z)/s) * s + z`: what else takes the norm needs no second one
fn unfold_norm(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let plan = t.plan(root.term)?.clone();
    let mapped = plan.build(t)?;
    plan.undone(t, mapped)
}

/// `slice(x) = slice(x')` where the slice takes elements only that the map leaves as they are
fn slice_beside_fold(t: &mut dyn Terms, root: &Root) -> Option<Term> {
    let plan: Arc<_> = t.plan(root.arg(0))?.clone();
    if !plan.path.leaves(root.op::<Slice>(), t.shape(root.arg(0))) {
        return None;
    }
    let mapped = plan.build(t)?;
    t.add((*root.form.op).clone(), &[mapped])
}
