//! The text of a dimension means the same to the compiler that prints it and to the runtime that
//! reads it from a manifest.

use proptest::prelude::*;
use tfc_ir::dim::{Bindings, Dim, Symbol};
use tfc_runtime::expr::Expr;

const SYMBOLS: [&str; 4] = ["batch", "min", "x.0/shape", "a \"b\\c\"\n\u{1}é"];

fn dim() -> impl Strategy<Value = Dim> {
    let leaf = prop_oneof![(-9i64..10).prop_map(Dim::from), prop::sample::select(&SYMBOLS[..]).prop_map(Dim::symbol)];
    leaf.prop_recursive(4, 24, 2, |inner| {
        (0..7, inner.clone(), inner).prop_map(|(op, a, b)| match op {
            0 => a + b,
            1 => a - b,
            2 => a * b,
            3 => a.floor_div(&b),
            4 => a.rem(&b),
            5 => a.minimum(&b),
            _ => a.maximum(&b),
        })
    })
}

proptest! {
    #[test]
    fn a_printed_dimension_has_the_same_value(d in dim(), values in prop::array::uniform4(-20i64..600)) {
        let parsed = Expr::parse(&d.to_string()).unwrap();
        let ours: Bindings = SYMBOLS.iter().zip(values).map(|(s, v)| (Symbol::new(s), v)).collect();
        let theirs = SYMBOLS.iter().zip(values).map(|(s, v)| ((*s).to_owned(), v)).collect();
        // The runtime calculates wider than the compiler, so it may know values where that gives up.
        if let Some(value) = d.eval(&ours) {
            prop_assert_eq!(parsed.eval(&theirs), Some(value), "{}", d);
        }
    }
}
