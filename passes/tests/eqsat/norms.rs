//! Layer norm and RMS norm.

use super::*;

/// `x / sqrt(v)` in the spellings of exporters.
fn over_root(b: &mut Build, x: Value, v: Value, spelling: u8) -> Value {
    match spelling % 6 {
        0 => {
            let s = b.op(Sqrt {}, &[v]);
            b.op(Div {}, &[x, s])
        }
        1 => {
            let s = b.op(Rsqrt {}, &[v]);
            b.op(Mul {}, &[s, x])
        }
        2 => {
            let s = b.op(Sqrt {}, &[v]);
            let r = b.op(Reciprocal {}, &[s]);
            b.op(Mul {}, &[x, r])
        }
        3 => {
            let (s, one) = (b.op(Sqrt {}, &[v]), b.scalar(1.0));
            let r = b.op(Div {}, &[one, s]);
            b.op(Mul {}, &[x, r])
        }
        4 => {
            let half = b.scalar(-0.5);
            let r = b.op(Pow {}, &[v, half]);
            b.op(Mul {}, &[r, x])
        }
        _ => {
            let half = b.scalar(0.5);
            let r = b.op(Pow {}, &[v, half]);
            b.op(Div {}, &[x, r])
        }
    }
}

fn square(b: &mut Build, x: Value, spelling: u8) -> Value {
    if spelling.is_multiple_of(2) {
        return b.op(Mul {}, &[x, x]);
    }
    let two = b.scalar(2.0);
    b.op(Pow {}, &[x, two])
}

pub(super) fn layer_norm(b: &mut Build, x: Value, axes: &[usize], width: usize, spelling: u8) -> Value {
    let m = mean(b, x, axes);
    let d = b.op(Sub {}, &[x, m]);
    let s = square(b, d, spelling / 6);
    let v = mean(b, s, axes);
    let v = shifted(b, v, 1e-5);
    let y = over_root(b, d, v, spelling);
    let (gamma, beta) = (b.weight(&[width], 3), b.weight(&[width], 4));
    let y = b.op(Mul {}, &if spelling.is_multiple_of(4) { [gamma, y] } else { [y, gamma] });
    b.op(Add {}, &[beta, y])
}

#[test]
fn layer_norm_in_every_spelling() {
    for spelling in 0..12 {
        becomes(&["layer_norm"], |b| {
            let x = b.input("2, seq, 8");
            layer_norm(b, x, &[2], 8, spelling)
        });
    }
}

#[test]
fn layer_norm_with_the_scale_at_the_root() {
    becomes(&["layer_norm"], |b| {
        let x = b.input("2, 3, 8");
        let m = mean(b, x, &[2]);
        let d = b.op(Sub {}, &[x, m]);
        let s = square(b, d, 0);
        let v = mean(b, s, &[2]);
        let v = shifted(b, v, 1e-3);
        let r = b.op(Rsqrt {}, &[v]);
        let (gamma, beta) = (b.weight(&[8], 3), b.weight(&[8], 4));
        let r = b.op(Mul {}, &[r, gamma]);
        let y = b.op(Mul {}, &[x, r]);
        let moved = b.op(Mul {}, &[m, r]);
        let shift = b.op(Sub {}, &[beta, moved]);
        b.op(Add {}, &[y, shift])
    });
}

#[test]
fn layer_norm_over_sums_and_removed_axes() {
    becomes(&["layer_norm"], |b| {
        let x = b.input("2, 3, 8");
        let sum = |b: &mut Build, x| b.op(Reduce { kind: ReduceKind::Sum, axes: vec![2], keep: true }, &[x]);
        let m = sum(b, x);
        let eight = b.scalar(8.0);
        let m = b.op(Div {}, &[m, eight]);
        let d = b.op(Sub {}, &[x, m]);
        let s = square(b, d, 0);
        let v = b.op(Reduce { kind: ReduceKind::Mean, axes: vec![2], keep: false }, &[s]);
        let v = reshape(b, v, "2, 3, 1");
        let v = shifted(b, v, 1e-3);
        over_root(b, d, v, 0)
    });
}

#[test]
fn what_is_not_quite_a_layer_norm() {
    // The wrong axis.
    never("layer_norm", |b| {
        let x = b.input("2, 8, 8");
        layer_norm(b, x, &[1], 8, 1)
    });
    // The mean is over another axis than the variance.
    never("layer_norm", |b| {
        let x = b.input("2, 8, 8");
        let m = mean(b, x, &[1]);
        let d = b.op(Sub {}, &[x, m]);
        let s = square(b, d, 0);
        let v = mean(b, s, &[2]);
        let v = shifted(b, v, 1e-5);
        over_root(b, d, v, 1)
    });
    // Another tensor is normalised.
    never("layer_norm", |b| {
        let (x, z) = (b.input("2, 8"), b.input("2, 8"));
        let m = mean(b, x, &[1]);
        let d = b.op(Sub {}, &[x, m]);
        let s = square(b, d, 0);
        let v = mean(b, s, &[1]);
        let v = shifted(b, v, 1e-5);
        over_root(b, z, v, 1)
    });
    // One scale per row.
    never("layer_norm", |b| {
        let x = b.input("4, 8");
        let m = mean(b, x, &[1]);
        let d = b.op(Sub {}, &[m, x]);
        let s = square(b, d, 0);
        let v = mean(b, s, &[1]);
        let v = shifted(b, v, 1e-5);
        let y = over_root(b, d, v, 1);
        let rows = b.weight(&[4, 1], 3);
        b.op(Mul {}, &[y, rows])
    });
}

#[test]
fn rms_norm_in_every_spelling() {
    for spelling in 0..12 {
        becomes(&["rms_norm"], |b| {
            let x = b.input("2, seq, 8");
            let s = square(b, x, spelling / 6);
            let v = mean(b, s, &[2]);
            let v = shifted(b, v, 1e-6);
            let y = over_root(b, x, v, spelling);
            let gamma = b.weight(&[8], 3);
            b.op(Mul {}, &[gamma, y])
        });
    }
}

#[test]
fn normalisation_whose_parts_are_wanted_too_is_correct() {
    let mut b = Build::new();
    let x = b.input("2, 8");
    let m = mean(&mut b, x, &[1]);
    b.output(m);
    let d = b.op(Sub {}, &[x, m]);
    b.output(d);
    let s = square(&mut b, d, 0);
    let v = mean(&mut b, s, &[1]);
    let v = shifted(&mut b, v, 1e-5);
    let y = over_root(&mut b, d, v, 1);
    let g = b.done(y);
    let (out, _) = run(&g, PASSES);
    assert_close(&g, &out);
}
