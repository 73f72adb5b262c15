//! Rotary embeddings.

use super::*;

fn last(b: &mut Build, x: Value, start: i64, step: i64, len: i64) -> Value {
    let mut lens = b.g.ty(x).shape.clone();
    let rank = lens.rank();
    lens.0[rank - 1] = len.into();
    let (mut starts, mut steps) = (vec![Dim::from(0); rank], vec![1; rank]);
    (starts[rank - 1], steps[rank - 1]) = (start.into(), step);
    b.op(Slice { starts, steps, lens }, &[x])
}

#[test]
fn rotary_embedding_of_halves() {
    for swap in [false, true] {
        let out = becomes(&["cos", "mul", "rotary", "sin"], |b| {
            let (x, positions) = (b.input("2, 3, seq, 8"), b.input("1, seq, 1"));
            let frequencies = b.weight(&[1, 1, 4], 3);
            let f = b.op(Mul {}, &[positions, frequencies]);
            let f = b.op(Concat { axis: 2 }, &[f, f]);
            let one = b.scalar(1.0);
            let (cos, sin) = (b.op(Cos {}, &[f]), b.op(Sin {}, &[f]));
            let (cos, sin) = (b.op(Mul {}, &[cos, one]), b.op(Mul {}, &[sin, one]));
            let (cos, sin) = (reshape(b, cos, "1, 1, seq, 8"), reshape(b, sin, "1, 1, seq, 8"));
            let (left, right) = (last(b, x, 0, 1, 4), last(b, x, 4, 1, 4));
            let right = b.op(Neg {}, &[right]);
            let rotated = b.op(Concat { axis: 3 }, &[right, left]);
            let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[rotated, sin]));
            b.op(Add {}, &if swap { [v, u] } else { [u, v] })
        });
        assert_eq!(count(&out, "concat"), 0);
    }
}

#[test]
fn rotary_embedding_by_tables() {
    let table = |seed, repeated: bool| {
        let half = random(Elem::F32, &[6, 4], seed);
        Tensor::build(Elem::F32, &[6, 8], |i| half.get(if repeated { i / 8 * 4 + i % 4 } else { i % 24 }))
    };
    let build = |b: &mut Build, repeated: bool| {
        let x = b.input("2, 3, 6, 8");
        let (cos, sin) = (b.constant(table(1, repeated)), b.constant(table(2, repeated)));
        let (left, right) = (last(b, x, 0, 1, 4), last(b, x, 4, 1, 4));
        let right = b.op(Neg {}, &[right]);
        let rotated = b.op(Concat { axis: 3 }, &[right, left]);
        let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[sin, rotated]));
        b.op(Add {}, &[u, v])
    };
    becomes(&["rotary"], |b| build(b, true));
    never("rotary", |b| build(b, false));
}

#[test]
fn rotary_embedding_of_pairs() {
    becomes(&["rotary"], |b| {
        let (x, cos, sin) = (b.input("2, 3, seq, 8"), b.input("seq, 4"), b.input("seq, 4"));
        let twice = |b: &mut Build, f| {
            let f = reshape(b, f, "seq, 4, 1");
            let f = b.op(Expand { shape: shape("seq, 4, 2") }, &[f]);
            reshape(b, f, "seq, 8")
        };
        let (cos, sin) = (twice(b, cos), twice(b, sin));
        let (even, odd) = (last(b, x, 0, 2, 4), last(b, x, 1, 2, 4));
        let odd = b.op(Neg {}, &[odd]);
        let (odd, even) = (reshape(b, odd, "2, 3, seq, 4, 1"), reshape(b, even, "2, 3, seq, 4, 1"));
        let rotated = b.op(Concat { axis: 4 }, &[odd, even]);
        let rotated = reshape(b, rotated, "2, 3, seq, 8");
        let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[rotated, sin]));
        b.op(Add {}, &[u, v])
    });
}

#[test]
fn rotary_embedding_of_pairs_in_a_part_of_the_channels() {
    // Slices of the rotated part are slices of the whole; `start` moves the odd ones.
    let build = |b: &mut Build, start: i64| {
        let (whole, cos, sin) = (b.input("2, 3, seq, 16"), b.input("seq, 4"), b.input("seq, 4"));
        let twice = |b: &mut Build, f| {
            let f = reshape(b, f, "seq, 4, 1, 1");
            let f = b.op(Expand { shape: shape("seq, 4, 2, 1") }, &[f]);
            reshape(b, f, "seq, 8")
        };
        let (cos, sin) = (twice(b, cos), twice(b, sin));
        let x = last(b, whole, 4, 1, 8);
        let (even, odd) = (last(b, whole, 4, 2, 4), last(b, whole, start, 2, 4));
        let odd = b.op(Neg {}, &[odd]);
        let (odd, even) = (reshape(b, odd, "2, 3, seq, 4, 1"), reshape(b, even, "2, 3, seq, 4, 1"));
        let rotated = b.op(Concat { axis: 4 }, &[odd, even]);
        let rotated = reshape(b, rotated, "2, 3, seq, 8");
        let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[rotated, sin]));
        b.op(Add {}, &[u, v])
    };
    becomes(&["rotary"], |b| build(b, 5));
    never("rotary", |b| build(b, 3));
}

#[test]
fn rotary_embedding_written_by_halves() {
    becomes(&["rotary"], |b| {
        let (x, cos, sin) = (b.input("2, 3, seq, 8"), b.input("seq, 4"), b.input("seq, 4"));
        let (left, right) = (last(b, x, 0, 1, 4), last(b, x, 4, 1, 4));
        let mut product = |x, y| b.op(Mul {}, &[x, y]);
        let (lc, rs, rc, ls) = (product(left, cos), product(right, sin), product(cos, right), product(left, sin));
        let (u, v) = (b.op(Sub {}, &[lc, rs]), b.op(Add {}, &[ls, rc]));
        b.op(Concat { axis: 3 }, &[u, v])
    });
}

#[test]
fn what_is_not_quite_rotary() {
    // The wrong half is negated.
    never("rotary", |b| {
        let x = b.input("2, 3, 6, 8");
        let (cos, sin) = (b.input("6, 4"), b.input("6, 4"));
        let (cos, sin) = (b.op(Concat { axis: 1 }, &[cos, cos]), b.op(Concat { axis: 1 }, &[sin, sin]));
        let (left, right) = (last(b, x, 0, 1, 4), last(b, x, 4, 1, 4));
        let left = b.op(Neg {}, &[left]);
        let rotated = b.op(Concat { axis: 3 }, &[right, left]);
        let (u, v) = (b.op(Mul {}, &[x, cos]), b.op(Mul {}, &[rotated, sin]));
        b.op(Add {}, &[u, v])
    });
}
