//! Recurrent layers, unrolled over sequences of known length.

use super::{Call, Fail, Importer, Res, Val, demand, unsupported};
use tfc_ir::dim::Dim;
use tfc_ir::ops::{Relu, Sigmoid, Tanh};
use tfc_ir::types::Shape;

/// The longest sequence that is unrolled.
const MAX_STEPS: i64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rnn,
    Gru,
    Lstm,
}

impl Kind {
    fn gates(self) -> usize {
        match self {
            Kind::Rnn => 1,
            Kind::Gru => 3,
            Kind::Lstm => 4,
        }
    }

    fn activations(self) -> &'static [&'static str] {
        match self {
            Kind::Rnn => &["Tanh"],
            Kind::Gru => &["Sigmoid", "Tanh"],
            Kind::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        }
    }
}

/// What one direction needs: weights transposed, bias of the input and of the state.
struct Direction {
    w: Val,
    r: Val,
    input_bias: Option<Val>,
    state_bias: Option<Val>,
    peepholes: Option<[Val; 3]>,
    activations: Vec<String>,
}

fn activate(cx: &mut Importer, name: &str, v: Val) -> Res<Val> {
    match name.to_ascii_lowercase().as_str() {
        "sigmoid" => cx.emit(Sigmoid {}, &[v]),
        "tanh" => cx.emit(Tanh {}, &[v]),
        "relu" => cx.emit(Relu {}, &[v]),
        _ => unsupported!("the activation {name} is not supported in recurrent layers"),
    }
}

/// Part `i` of `parts` along an axis.
fn part(cx: &mut Importer, v: Val, axis: usize, i: usize, size: &Dim) -> Res<Val> {
    cx.narrow(v, axis, size.clone() * Dim::from(i), size.clone())
}

/// Entry `i` of the first axis, without it.
fn entry(cx: &mut Importer, v: Val, i: usize) -> Res<Val> {
    let v = cx.narrow(v, 0, Dim::from(i), Dim::from(1))?;
    cx.squeeze(v, &[0])
}

fn recurrent(cx: &mut Importer, n: &Call, kind: Kind) -> Res<Vec<Val>> {
    let (x, w, r) = (n.input(0)?, n.input(1)?, n.input(2)?);
    for (v, what) in [(x, "sequence"), (w, "weights"), (r, "recurrence weights")] {
        demand!(cx.rank(v) == 3, "the {what} must have 3 axes, but the operand is {}", cx.ty(v));
    }
    for (i, rank, what) in [(3, 2, "bias"), (5, 3, "first state"), (6, 3, "first cell state"), (7, 2, "peepholes")] {
        if let Some(v) = n.opt(i) {
            demand!(cx.rank(v) == rank, "the {what} must have {rank} axes, but the operand is {}", cx.ty(v));
        }
    }
    let batch_first = n.flag("layout", false)?;
    let x = if batch_first { cx.transpose(x, vec![1, 0, 2])? } else { x };
    let Some(steps) = cx.shape(x)[0].as_const() else {
        unsupported!("a recurrent layer needs sequences of known length, but the operand is {}; fix it with --dim", cx.ty(x));
    };
    if !(1..=MAX_STEPS).contains(&steps) {
        unsupported!("sequences of {steps} elements are not unrolled; 1 to {MAX_STEPS} are");
    }
    if n.opt(4).is_some_and(|v| cx.ints(v, "").map_or(true, |l| l.iter().any(|&s| s != steps))) {
        unsupported!("sequences of different lengths are not supported");
    }
    if n.opt_float("clip")?.is_some() {
        unsupported!("clipping of recurrent layers is not supported");
    }
    if n.flag("input_forget", false)? {
        unsupported!("coupled gates are not supported");
    }
    let directions: &[bool] = match n.text("direction", "forward")?.as_str() {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(Fail::Invalid(format!("the direction is `{other}`"))),
    };
    let (count, hidden) = (Dim::from(directions.len()), cx.shape(r)[2].clone());
    let gates = hidden.clone() * Dim::from(kind.gates());
    let expected = [
        (1, "weights", vec![count.clone(), gates.clone(), cx.shape(x)[2].clone()]),
        (2, "recurrence weights", vec![count.clone(), gates.clone(), hidden.clone()]),
        (3, "bias", vec![count.clone(), gates * Dim::from(2)]),
        (7, "peepholes", vec![count, hidden.clone() * Dim::from(3)]),
    ];
    for (i, what, sizes) in expected {
        let Some(v) = n.opt(i).filter(|_| i != 7 || kind == Kind::Lstm) else { continue };
        for (a, size) in sizes.iter().enumerate() {
            let found = cx.shape(v)[a].clone();
            cx.require_equal(&found, size, &format!("axis {a} of the {what}, {}, must be {size}", cx.ty(v)))?;
        }
    }
    let batch = cx.shape(x)[1].clone();
    let names = match n.attributes.get("activations") {
        Some(crate::onnx::model::Attribute::Texts(l)) => l.clone(),
        _ => kind.activations().iter().cycle().take(kind.activations().len() * directions.len()).map(ToString::to_string).collect(),
    };
    demand!(names.len() == kind.activations().len() * directions.len(), "{} activations are given", names.len());
    let (mut outputs, mut last_h, mut last_c) = (vec![], vec![], vec![]);
    for (d, &reverse) in directions.iter().enumerate() {
        let transposed = |cx: &mut Importer, v: Val| {
            let m = entry(cx, v, d)?;
            cx.swap_last(m)
        };
        let (wt, rt) = (transposed(cx, w)?, transposed(cx, r)?);
        let half = hidden.clone() * Dim::from(kind.gates());
        let bias = |cx: &mut Importer, i: usize| -> Res<Option<Val>> {
            let Some(b) = n.opt(3) else { return Ok(None) };
            let b = entry(cx, b, d)?;
            Ok(Some(part(cx, b, 0, i, &half)?))
        };
        let peepholes = match n.opt(7).filter(|_| kind == Kind::Lstm) {
            Some(p) => {
                let p = entry(cx, p, d)?;
                Some([part(cx, p, 0, 0, &hidden)?, part(cx, p, 0, 1, &hidden)?, part(cx, p, 0, 2, &hidden)?])
            }
            None => None,
        };
        let per = kind.activations().len();
        let dir = Direction {
            w: wt,
            r: rt,
            input_bias: bias(cx, 0)?,
            state_bias: bias(cx, 1)?,
            peepholes,
            activations: names[d * per..(d + 1) * per].to_vec(),
        };
        let state = |cx: &mut Importer, i: usize| -> Res<Val> {
            match n.opt(i).filter(|_| i == 5 || kind == Kind::Lstm) {
                Some(v) => {
                    let v = if batch_first { cx.transpose(v, vec![1, 0, 2])? } else { v };
                    entry(cx, v, d)
                }
                None => {
                    let zero = cx.like(x, 0.0);
                    cx.expand(zero, Shape(vec![batch.clone(), hidden.clone()]))
                }
            }
        };
        let (mut h, mut c) = (state(cx, 5)?, state(cx, 6)?);
        // The input's share of all steps is one product.
        let mut inputs = cx.matmul(x, dir.w)?;
        if let Some(b) = dir.input_bias {
            inputs = cx.add(inputs, b)?;
        }
        let mut seen = vec![];
        for i in 0..steps {
            let at = if reverse { steps - 1 - i } else { i };
            let xt = entry(cx, inputs, at as usize)?;
            (h, c) = match kind {
                Kind::Rnn => (rnn_step(cx, &dir, xt, h)?, c),
                Kind::Gru => (gru_step(cx, &dir, xt, h, &hidden, n.flag("linear_before_reset", false)?)?, c),
                Kind::Lstm => lstm_step(cx, &dir, xt, h, c, &hidden)?,
            };
            seen.push(cx.unsqueeze(h, &[0])?);
        }
        if reverse {
            seen.reverse();
        }
        let all = cx.concat(&seen, 0)?;
        outputs.push(cx.unsqueeze(all, &[1])?);
        last_h.push(cx.unsqueeze(h, &[0])?);
        last_c.push(cx.unsqueeze(c, &[0])?);
    }
    let (mut y, mut h, mut c) = (cx.concat(&outputs, 1)?, cx.concat(&last_h, 0)?, cx.concat(&last_c, 0)?);
    if batch_first {
        y = cx.transpose(y, vec![2, 0, 1, 3])?;
        h = cx.transpose(h, vec![1, 0, 2])?;
        c = cx.transpose(c, vec![1, 0, 2])?;
    }
    Ok(if kind == Kind::Lstm { vec![y, h, c] } else { vec![y, h] })
}

/// `h R + b`.
fn state_share(cx: &mut Importer, d: &Direction, h: Val) -> Res<Val> {
    let y = cx.matmul(h, d.r)?;
    match d.state_bias {
        Some(b) => cx.add(y, b),
        None => Ok(y),
    }
}

fn rnn_step(cx: &mut Importer, d: &Direction, x: Val, h: Val) -> Res<Val> {
    let s = state_share(cx, d, h)?;
    let s = cx.add(x, s)?;
    activate(cx, &d.activations[0], s)
}

/// Gates in the order update, reset, hidden.
fn gru_step(cx: &mut Importer, d: &Direction, x: Val, h: Val, hidden: &Dim, linear_first: bool) -> Res<Val> {
    let s = state_share(cx, d, h)?;
    let gate = |cx: &mut Importer, i: usize| {
        let (a, b) = (part(cx, x, 1, i, hidden)?, part(cx, s, 1, i, hidden)?);
        let g = cx.add(a, b)?;
        activate(cx, &d.activations[0], g)
    };
    let (z, r) = (gate(cx, 0)?, gate(cx, 1)?);
    let share = if linear_first {
        let own = part(cx, s, 1, 2, hidden)?;
        cx.mul(r, own)?
    } else {
        let kept = cx.mul(r, h)?;
        let weights = part(cx, d.r, 1, 2, hidden)?;
        let y = cx.matmul(kept, weights)?;
        match d.state_bias {
            Some(b) => {
                let b = part(cx, b, 0, 2, hidden)?;
                cx.add(y, b)?
            }
            None => y,
        }
    };
    let own = part(cx, x, 1, 2, hidden)?;
    let fresh = cx.add(own, share)?;
    let fresh = activate(cx, &d.activations[1], fresh)?;
    // (1 - z) * fresh + z * h
    let change = cx.sub(h, fresh)?;
    let change = cx.mul(z, change)?;
    cx.add(fresh, change)
}

/// Gates in the order input, output, forget, cell.
fn lstm_step(cx: &mut Importer, d: &Direction, x: Val, h: Val, c: Val, hidden: &Dim) -> Res<(Val, Val)> {
    let s = state_share(cx, d, h)?;
    let s = cx.add(x, s)?;
    let gate = |cx: &mut Importer, i: usize, cell: Val| {
        let mut g = part(cx, s, 1, i, hidden)?;
        if let Some(p) = d.peepholes {
            let share = cx.mul(p[i], cell)?;
            g = cx.add(g, share)?;
        }
        activate(cx, &d.activations[0], g)
    };
    let (i, f) = (gate(cx, 0, c)?, gate(cx, 2, c)?);
    let fresh = part(cx, s, 1, 3, hidden)?;
    let fresh = activate(cx, &d.activations[1], fresh)?;
    let (kept, added) = (cx.mul(f, c)?, cx.mul(i, fresh)?);
    let c = cx.add(kept, added)?;
    let o = gate(cx, 1, c)?;
    let shown = activate(cx, &d.activations[2], c)?;
    Ok((cx.mul(o, shown)?, c))
}

pub(super) fn rnn(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    recurrent(cx, n, Kind::Rnn)
}

pub(super) fn gru(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    recurrent(cx, n, Kind::Gru)
}

pub(super) fn lstm(cx: &mut Importer, n: &Call) -> Res<Vec<Val>> {
    recurrent(cx, n, Kind::Lstm)
}
