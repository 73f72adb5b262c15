//! The rewrite rules, one file per family.
//!
//! A rule is an equality, read from left to right: its doc comment gives the identity and the
//! condition under which it holds, its function finds the left side at a root and builds the right
//! side. Two things hold for every rule and are checked where rules are applied, not in each of
//! them: both sides have the same type, and no run-time check is added.

mod activation;
mod algebra;
mod attention;
mod constants;
mod folds;
mod layout;
mod norm;
mod polynomial;
mod rotary;

pub(crate) use constants::is_normal;

use crate::terms::{Form, Term, Terms};

/// What a rule does to numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numerics {
    /// Both sides give the same bits, except for the sign of a zero and the payload of a NaN.
    Exact,
    /// Both sides are equal over the reals; floats round differently.
    Rounding,
}

/// Where a rule is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// The right side is better wherever the left side occurs.
    Always,
    /// The right side is an alternative: good for what it enables.
    Explore,
}

/// Which forms a rule looks at.
#[derive(Clone, Copy, Debug)]
pub enum Roots {
    /// Applications of the operators with these names.
    Ops(&'static [&'static str]),
    /// Applications of elementwise operators.
    Elementwise,
}

impl Roots {
    /// Whether a form is one of them.
    pub fn contain(self, form: &Form) -> bool {
        match self {
            Roots::Ops(names) => names.contains(&form.op.mnemonic()),
            Roots::Elementwise => form.op.traits().elementwise,
        }
    }
}

/// The left side's root: the term and the form of it that the rule looks at.
pub struct Root<'a> {
    /// The term.
    pub term: Term,
    /// One of its forms.
    pub form: &'a Form,
}

impl Root<'_> {
    /// The form's `i`-th operand.
    pub fn arg(&self, i: usize) -> Term {
        self.form.args[i]
    }

    /// The attributes of the form's operator.
    ///
    /// # Panics
    /// When it is another one: the rule's roots say which it may be.
    pub fn op<O: crate::terms::Case>(&self) -> &O {
        O::of(&self.form.op).expect("a root of the rule")
    }
}

/// A rewrite rule.
pub struct Rule {
    /// Name in reports, in kebab case.
    pub name: &'static str,
    /// What it does to numbers.
    pub numerics: Numerics,
    /// Where it is used.
    pub usage: Use,
    /// The forms it looks at.
    pub roots: Roots,
    /// The right side for a root, if the left side matches.
    pub apply: fn(&mut dyn Terms, &Root) -> Option<Term>,
}

impl Rule {
    const fn new(
        name: &'static str,
        numerics: Numerics,
        usage: Use,
        roots: &'static [&'static str],
        apply: fn(&mut dyn Terms, &Root) -> Option<Term>,
    ) -> Rule {
        Rule { name, numerics, usage, roots: Roots::Ops(roots), apply }
    }
}

/// All rules, family by family.
pub const FAMILIES: &[&[Rule]] =
    &[layout::RULES, algebra::RULES, constants::RULES, activation::RULES, norm::RULES, rotary::RULES, attention::RULES];

/// The rules of `reparameterize`, in a fixed order: folds of planned maps, and what merges the constants that they add.
pub fn folding() -> impl Iterator<Item = &'static Rule> {
    folds::RULES.iter().chain(constants::RULES.iter().filter(|rule| rule.name == "merge-summands"))
}

/// All rules of `simplify` and `eqsat` in a fixed order.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    FAMILIES.iter().flat_map(|family| family.iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfc_ir::ops::Op;

    #[test]
    fn names_are_kebab_case_and_unique_and_roots_exist() {
        let mut seen = std::collections::BTreeSet::new();
        for rule in all().chain(folds::RULES) {
            assert!(rule.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{}", rule.name);
            assert!(seen.insert(rule.name), "{} is there twice", rule.name);
            if let Roots::Ops(names) = rule.roots {
                assert!(names.iter().all(|n| Op::MNEMONICS.contains(n)), "{}", rule.name);
            }
        }
    }
}
