//! Activations and softmax.

use super::*;

/// `x/2 * (1 + erf(x/√2))` with operands, associations and constants in various places.
pub(super) fn gelu(b: &mut Build, x: Value, spelling: u8) -> Value {
    let z = if spelling & 1 == 0 {
        let root = b.scalar(f64::from(std::f32::consts::SQRT_2));
        b.op(Div {}, &[x, root])
    } else {
        scaled(b, x, std::f64::consts::FRAC_1_SQRT_2)
    };
    let e = b.op(Erf {}, &[z]);
    let e = shifted(b, e, 1.0);
    match spelling / 2 % 4 {
        0 => {
            let y = b.op(Mul {}, &[x, e]);
            scaled(b, y, 0.5)
        }
        1 => {
            let h = scaled(b, x, 0.5);
            b.op(Mul {}, &[h, e])
        }
        2 => {
            let h = scaled(b, e, 0.5);
            b.op(Mul {}, &[h, x])
        }
        _ => {
            let y = b.op(Mul {}, &[e, x]);
            let two = b.scalar(2.0);
            b.op(Div {}, &[y, two])
        }
    }
}

#[test]
fn gelu_in_every_spelling() {
    for spelling in 0..8 {
        becomes(&["gelu"], |b| {
            let x = b.input("2, seq, 8");
            gelu(b, x, spelling)
        });
    }
    // Its operand is a product, and a scaled one.
    becomes(&["gelu", "mul", "mul"], |b| {
        let (x, y) = (b.input("8"), b.input("8"));
        let x = b.op(Mul {}, &[x, y]);
        let x = scaled(b, x, 3.0);
        gelu(b, x, 2)
    });
}

#[test]
fn gelu_by_tanh_in_every_spelling() {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    for spelling in 0..4 {
        becomes(&["gelu"], |b| {
            let x = b.input("2, 8");
            let cube = if spelling & 1 == 0 {
                let three = b.scalar(3.0);
                b.op(Pow {}, &[x, three])
            } else {
                let s = b.op(Mul {}, &[x, x]);
                b.op(Mul {}, &[x, s])
            };
            let z = scaled(b, cube, 0.044715);
            let z = b.op(Add {}, &[x, z]);
            let z = scaled(b, z, c);
            let t = b.op(Tanh {}, &[z]);
            let t = shifted(b, t, 1.0);
            let h = scaled(b, x, 0.5);
            b.op(Mul {}, &if spelling & 2 == 0 { [h, t] } else { [t, h] })
        });
    }
    becomes(&["gelu"], |b| {
        let x = b.input("2, 8");
        let s = b.op(Mul {}, &[x, x]);
        let s = scaled(b, s, 0.044715);
        let s = shifted(b, s, 1.0);
        let xc = scaled(b, x, c);
        let z = b.op(Mul {}, &[xc, s]);
        let t = b.op(Tanh {}, &[z]);
        let t = shifted(b, t, 1.0);
        let t = scaled(b, t, 0.5);
        b.op(Mul {}, &[x, t])
    });
}

/// The powers of -0 and -∞ are not roots.
#[test]
fn roots_of_what_may_be_negative_stay_powers() {
    for (root, exponent) in [("sqrt", 0.5), ("rsqrt", -0.5)] {
        never(root, |b| {
            let (x, n) = (b.input("8"), b.scalar(exponent));
            let x = b.op(Mul {}, &[x, x]);
            let y = b.input("8");
            let d = b.op(Sub {}, &[x, y]);
            b.op(Pow {}, &[d, n])
        });
        becomes(&["mul", "add", root], |b| {
            let (x, n) = (b.input("8"), b.scalar(exponent));
            let x = b.op(Mul {}, &[x, x]);
            let x = shifted(b, x, 1e-5);
            b.op(Pow {}, &[x, n])
        });
    }
}

#[test]
fn what_is_not_quite_a_gelu() {
    never("gelu", |b| {
        let x = b.input("8");
        let z = scaled(b, x, 0.7);
        let e = b.op(Erf {}, &[z]);
        let e = shifted(b, e, 1.0);
        let h = scaled(b, x, 0.5);
        b.op(Mul {}, &[h, e])
    });
    never("gelu", |b| {
        let (x, y) = (b.input("8"), b.input("8"));
        let z = scaled(b, x, std::f64::consts::FRAC_1_SQRT_2);
        let e = b.op(Erf {}, &[z]);
        let e = shifted(b, e, 1.0);
        let h = scaled(b, y, 0.5);
        b.op(Mul {}, &[h, e])
    });
}

#[test]
fn sigmoid_and_silu() {
    becomes(&["silu"], |b| {
        let x = b.input("2, 8");
        let s = b.op(Sigmoid {}, &[x]);
        b.op(Mul {}, &[s, x])
    });
    for by_product in [false, true] {
        becomes(&["silu"], |b| {
            let x = b.input("2, 8");
            let n = b.op(Neg {}, &[x]);
            let e = b.op(Exp {}, &[n]);
            let s = shifted(b, e, 1.0);
            if by_product {
                let r = b.op(Reciprocal {}, &[s]);
                b.op(Mul {}, &[x, r])
            } else {
                b.op(Div {}, &[x, s])
            }
        });
    }
    becomes(&["sigmoid"], |b| {
        let x = b.input("2, 8");
        let h = scaled(b, x, 0.5);
        let t = b.op(Tanh {}, &[h]);
        let t = scaled(b, t, 0.5);
        shifted(b, t, 0.5)
    });
    becomes(&["softplus"], |b| {
        let x = b.input("2, 8");
        let e = b.op(Exp {}, &[x]);
        let s = shifted(b, e, 1.0);
        b.op(Log {}, &[s])
    });
    never("silu", |b| {
        let (x, y) = (b.input("8"), b.input("8"));
        let s = b.op(Sigmoid {}, &[x]);
        b.op(Mul {}, &[s, y])
    });
}

#[test]
fn softmax_is_recovered() {
    for shift in [false, true] {
        becomes(&["softmax"], |b| {
            let x = b.input("2, 8");
            let z = if shift {
                let m = b.op(Reduce { kind: ReduceKind::Max, axes: vec![1], keep: true }, &[x]);
                b.op(Sub {}, &[x, m])
            } else {
                x
            };
            let e = b.op(Exp {}, &[z]);
            let s = b.op(Reduce { kind: ReduceKind::Sum, axes: vec![1], keep: true }, &[e]);
            b.op(Div {}, &[e, s])
        });
    }
}
