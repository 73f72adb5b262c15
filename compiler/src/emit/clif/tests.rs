//! Primitives and elementary functions compiled for the host, against the interpreter and against libm.

use super::testing::{Compiled, foreign_cpus, host_cpus, machine_code};
use crate::kernel::nest::{Access, Effect, Expr, ExprId, Nest, Stage};
use crate::kernel::{Body, BufferParam, Extent, Kernel, Use};
use std::f64::consts::FRAC_PI_2;
use tfc_ir::scalar::Prim;
use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;

/// A kernel of a nest with the given buffers, all but the last read only.
fn kernel(nest: Nest, buffers: &[Elem], ints: u32) -> Kernel {
    let last = buffers.len() - 1;
    let buffers =
        buffers.iter().enumerate().map(|(i, &elem)| BufferParam { elem, usage: if i == last { Use::Write } else { Use::Read } }).collect();
    Kernel { buffers, ints, body: Body::Nest(nest) }
}

fn access(buffer: u32, strides: &[i64]) -> Access {
    Access { buffer, offset: Extent::Const(0), strides: strides.iter().map(|&s| Extent::Const(s)).collect(), dynamic: vec![] }
}

/// `out[i] = prim(in_0[i], in_1[i], …)` in rows of `row` elements: 4 and more are vectors, fewer scalars.
fn elementwise(prim: Prim, operands: &[Elem], result: Elem, row: i64) -> Kernel {
    let mut nest = Nest { tasks: vec![Extent::Param(0)], inner: vec![Extent::Const(row)], ..Nest::default() };
    let args: Vec<ExprId> =
        operands.iter().enumerate().map(|(i, &e)| nest.exprs.push((Expr::Load(access(i as u32, &[row, 1])), e))).collect();
    let y = nest.exprs.push((Expr::Prim(prim, args), result));
    nest.stages.push(Stage { once: false, effects: vec![Effect::Store(access(operands.len() as u32, &[row, 1]), y)] });
    let buffers: Vec<Elem> = operands.iter().copied().chain([result]).collect();
    kernel(nest, &buffers, 1)
}

/// Runs it over tensors of equal lengths, a multiple of `row`.
fn map(prim: Prim, inputs: &[&Tensor], result: Elem, row: i64, mut check: impl FnMut(&str, &Tensor)) {
    let operands: Vec<Elem> = inputs.iter().map(|t| t.elem()).collect();
    let kernel = elementwise(prim, &operands, result, row);
    let n = inputs[0].len();
    for cpu in foreign_cpus() {
        machine_code(&kernel, &cpu);
    }
    for cpu in host_cpus() {
        machine_code(&kernel, &cpu);
        let mut buffers: Vec<Vec<u8>> = inputs.iter().map(|t| t.bytes().to_vec()).collect();
        buffers.push(vec![0xa5; result.bytes(n)]);
        let tasks = n as i64 / row;
        assert_eq!(Compiled::new(&kernel, &cpu).run(&mut buffers, &[tasks], 0, tasks), 0);
        let out = Tensor::new(result, vec![n], buffers.pop().unwrap().into()).unwrap();
        check(&format!("{prim} {operands:?} -> {result} on {} by {row}", cpu.name), &out);
    }
}

fn floats(elem: Elem, xs: &[f64]) -> Tensor {
    Tensor::build(elem, &[xs.len()], |i| Scalar::Float(xs[i]))
}

/// The unit in the last place of the type at `x`.
fn ulp(elem: Elem, x: f64) -> f64 {
    let (digits, min) = if elem == Elem::F32 { (23, -126) } else { (52, -1022) };
    let exponent = libm::ilogb(x.abs().max(f64::MIN_POSITIVE)).max(min);
    libm::ldexp(1.0, exponent - digits)
}

/// Checks one value of a function with a bound in ulp.
fn close(what: &str, elem: Elem, x: &[f64], got: f64, exact: f64, bound: f64, worst: &mut f64) {
    let rounded = if elem == Elem::F32 { f64::from(exact as f32) } else { exact };
    if exact.is_nan() || rounded.is_infinite() || got.is_infinite() || got.is_nan() {
        let max = if elem == Elem::F32 { f64::from(f32::MAX) } else { f64::MAX };
        let at_the_edge = !exact.is_nan() && !got.is_nan() && exact.abs() >= max * (1.0 - 1e-6) && got.abs() >= max * (1.0 - 1e-6);
        assert!(got.is_nan() == exact.is_nan() && (got.is_nan() || got == rounded || at_the_edge), "{what} {x:?}: {got} for {exact}");
        return;
    }
    let error = (got - exact).abs() / ulp(elem, exact);
    assert!(error <= bound, "{what} {x:?}: {got:e} for {exact:e}, {error:.2} ulp");
    assert!(got != 0.0 || exact != 0.0 || got.is_sign_negative() == exact.is_sign_negative(), "{what} {x:?}: sign of zero");
    *worst = worst.max(error);
}

type Function = (Prim, fn(f64) -> f64, f64, f64);

/// Functions with their bounds in ulp for f32 and for f64.
const FUNCTIONS: [Function; 12] = [
    (Prim::Exp, libm::exp, 1.1, 2.0),
    (Prim::Log, libm::log, 1.0, 2.0),
    (Prim::Tanh, libm::tanh, 1.6, 4.0),
    (Prim::Erf, libm::erf, 1.6, 4.0),
    (Prim::Expm1, libm::expm1, 1.0, 4.0),
    (Prim::Log1p, libm::log1p, 1.0, 4.0),
    (Prim::Sin, libm::sin, 1.0, 4.0),
    (Prim::Cos, libm::cos, 1.0, 4.0),
    (Prim::Tan, libm::tan, 1.0, 4.0),
    (Prim::Asin, libm::asin, 1.0, 4.0),
    (Prim::Acos, libm::acos, 1.0, 4.0),
    (Prim::Atan, libm::atan, 1.0, 4.0),
];

#[test]
fn f32_functions_keep_their_bounds_over_all_exponents() {
    // Every 4099th pattern: all signs, exponents, infinities and NaNs. 4096 * 256 = 1048576 of them fit. Then what is next to
    // multiples of π/2.
    let patterns = (0..1_047_552u32).map(|i| f64::from(f32::from_bits(i.wrapping_mul(4099))));
    let multiples =
        (1..30_000).flat_map(|i| [f64::from(i), f64::from(i) * 1e7, f64::from(i) * 1e33]).map(|n| f64::from((n * FRAC_PI_2) as f32));
    let xs: Vec<f64> = patterns.chain(multiples).chain(edges().map(|x| f64::from(x as f32))).collect();
    let xs: Vec<f64> = xs[xs.len() % 12..].to_vec();
    let input = floats(Elem::F32, &xs);
    for (prim, f, bound, _) in FUNCTIONS {
        let mut exact = vec![];
        for row in [12, 3] {
            map(prim, &[&input], Elem::F32, row, |what, out| {
                if exact.is_empty() {
                    exact = xs.iter().map(|&x| f(x)).collect();
                }
                let mut worst = 0.0;
                for (i, &x) in xs.iter().enumerate() {
                    close(what, Elem::F32, &[x], out.get(i).to_f64(), exact[i], bound, &mut worst);
                }
                report(what, worst);
            });
        }
    }
}

#[test]
fn f64_functions_keep_their_bounds() {
    let mut xs: Vec<f64> = (0..60_000u64).map(|i| f64::from_bits(i.wrapping_mul(0x0001_2345_6789_abcd))).chain(edges()).collect();
    xs.extend((0..60_000).map(|i| (f64::from(i) - 30_000.0) / 1234.5));
    xs.extend((1..20_000).flat_map(|i| [f64::from(i) * 53.0 * FRAC_PI_2, f64::from(i) * 1e300 * FRAC_PI_2]));
    let xs: Vec<f64> = xs[xs.len() % 3..].to_vec();
    let input = floats(Elem::F64, &xs);
    for (prim, f, _, bound) in FUNCTIONS {
        map(prim, &[&input], Elem::F64, 3, |what, out| {
            let mut worst = 0.0;
            for (i, &x) in xs.iter().enumerate() {
                close(what, Elem::F64, &[x], out.get(i).to_f64(), f(x), bound, &mut worst);
            }
            report(what, worst);
        });
    }
}

/// Arguments at which functions turn.
fn edges() -> impl Iterator<Item = f64> {
    let near = |x: f64| [x, x * (1.0 + 1e-7), x * (1.0 - 1e-7), -x];
    [
        0.0,
        1.0,
        0.5,
        0.6,
        0.9,
        2.0,
        3.93,
        10.0,
        88.7228,
        87.3365,
        103.97,
        709.78,
        745.1,
        FRAC_PI_2,
        // The f32 and the f64 that are nearest to multiples of π/2, and the largest of both.
        16_367_173.0 * f64::powi(2.0, 72),
        6_381_956_970_095_103.0 * f64::powi(2.0, 797),
        // Near multiples of π/2, where the lower half of the product that tells how near carries into the upper one.
        5.038202205954096e168,
        5.974190243666078e41,
        2.584850962002879e163,
        f64::from(f32::MAX),
        f64::MAX,
        1e-40,
        f64::INFINITY,
        f64::NAN,
    ]
    .into_iter()
    .flat_map(near)
}

/// Lets a run with `--nocapture` see how much of a bound is used.
fn report(what: &str, worst: f64) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{what}: {worst:.3} ulp");
}

/// Numbers of a type: its ends, those around zero, and many others. A multiple of 12 of them.
fn samples(elem: Elem, seed: u64, len: usize) -> Tensor {
    let mut state = seed;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 16) ^ (state << 40)
    };
    Tensor::build(elem, &[len], |_| {
        let r = random();
        let pick = (r >> 8) % 16;
        match elem.int_range() {
            Some((lo, hi)) => Scalar::Int(match r % 4 {
                0 => [lo, hi, 0, 1, -1, 2, lo + 1, hi - 1, 7, -7, 31, 32, 33, 63, 64, 8][pick as usize],
                1 => i128::from(r >> 12) % 20 - 10,
                _ => lo + i128::from(r) % (hi - lo + 1),
            }),
            None => Scalar::Float(match r % 4 {
                0 => [
                    0.0,
                    -0.0,
                    1.0,
                    -1.0,
                    f64::INFINITY,
                    f64::NEG_INFINITY,
                    f64::NAN,
                    0.5,
                    2.5,
                    -2.5,
                    3.0,
                    1e-40,
                    127.5,
                    -128.5,
                    255.9,
                    2e9,
                ][pick as usize],
                1 => (r >> 12) as f64 % 41.0 - 20.0,
                2 => ((r >> 12) as f64 / 1e12 - 2251.0) * 1e6,
                _ => f64::from(f32::from_bits((r >> 20) as u32)),
            }),
        }
    })
}

fn same(what: &str, args: &[Scalar], got: Scalar, expected: Scalar) {
    let equal = match (got, expected) {
        (Scalar::Float(x), Scalar::Float(y)) => (x.is_nan() && y.is_nan()) || x == y,
        _ => got == expected,
    };
    assert!(equal, "{what} {args:?}: {got:?} for {expected:?}");
}

#[test]
fn primitives_give_what_the_interpreter_gives() {
    use Prim::*;
    const LEN: usize = 600;
    let elems: Vec<Elem> = Elem::ALL.iter().map(|e| e.0).collect();
    for elem in elems {
        let (x, y, c) = (samples(elem, 1, LEN), samples(elem, 2, LEN), samples(Elem::Bool, 3, LEN));
        let (unary, binary): (&[Prim], &[Prim]) = match elem {
            Elem::Bool => (&[Not], &[And, Or, Xor, Eq, Lt, Le, Min, Max, Add, Mul]),
            e if e.is_float() => {
                (&[Neg, Abs, Sqrt, Floor, Ceil, Trunc, RoundEven], &[Add, Sub, Mul, Div, RemFloor, RemTrunc, Min, Max, Eq, Lt, Le])
            }
            e if e.is_signed_int() => {
                (&[Neg, Abs, Not], &[Add, Sub, Mul, Div, RemFloor, RemTrunc, Pow, Min, Max, And, Or, Xor, Shl, Eq, Lt, Le])
            }
            _ => (&[Not], &[Add, Sub, Mul, Div, RemFloor, RemTrunc, Pow, Min, Max, And, Or, Xor, Shl, Shr, Eq, Lt, Le]),
        };
        let programs = unary.iter().map(|&p| (p, vec![&x])).chain(binary.iter().map(|&p| (p, vec![&x, &y])));
        for (prim, inputs) in programs.chain([(Select, vec![&c, &x, &y])]) {
            let result = if matches!(prim, Eq | Lt | Le) { Elem::Bool } else { elem };
            for row in [12, 3] {
                map(prim, &inputs, result, row, |what, out| {
                    for i in 0..LEN {
                        let args: Vec<Scalar> = inputs.iter().map(|t| t.get(i)).collect();
                        same(what, &args, out.get(i), prim.eval(&args, inputs[0].elem(), result));
                    }
                });
            }
        }
    }
}

#[test]
fn casts_give_what_the_interpreter_gives() {
    const LEN: usize = 600;
    for (from, _) in Elem::ALL {
        let x = samples(from, 4, LEN);
        for (to, _) in Elem::ALL {
            // 64 bits reach the narrowest floats by way of f64.
            let twice = from.bits() == 64 && from.is_int() && matches!(to, Elem::F16 | Elem::Bf16);
            for row in [12, 3] {
                map(Prim::Cast, &[&x], to, row, |what, out| {
                    for i in 0..LEN {
                        let (got, expected) = (out.get(i), Prim::Cast.eval(&[x.get(i)], from, to));
                        let off = (got.to_f64() - expected.to_f64()).abs() / expected.to_f64().abs();
                        if !(twice && off < 0.008) {
                            same(what, &[x.get(i)], got, expected);
                        }
                    }
                });
            }
        }
    }
}

#[test]
fn all_halves_convert() {
    for half in [Elem::F16, Elem::Bf16] {
        let all = Tensor::new(half, vec![65_532], (0..65_532u16).flat_map(u16::to_le_bytes).collect::<Vec<u8>>().into()).unwrap();
        // Where roundings turn: the middles between neighbours, and the numbers next to them.
        let middles: Vec<f64> = (0..65_532usize)
            .map(|i| {
                let x = all.get(i).to_f64() as f32;
                let step = if half == Elem::F16 { 0x1000 } else { 0x8000 };
                f64::from(f32::from_bits(x.to_bits().wrapping_add(step - 1 + i as u32 % 3)))
            })
            .collect();
        let middles = floats(Elem::F32, &middles);
        for row in [12, 3] {
            map(Prim::Cast, &[&all], Elem::F32, row, |what, out| {
                (0..all.len()).for_each(|i| same(what, &[all.get(i)], out.get(i), all.get(i)))
            });
            map(Prim::Cast, &[&middles], half, row, |what, out| {
                for i in 0..middles.len() {
                    let x = middles.get(i);
                    same(what, &[x], out.get(i), Prim::Cast.eval(&[x], Elem::F32, half));
                }
            });
        }
    }
}

#[test]
fn powers_are_right_with_all_special_cases() {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        2.0,
        -2.0,
        3.0,
        -3.0,
        0.5,
        -0.5,
        2.5,
        1e30,
        -1e30,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1e-40,
        8_388_609.0,
    ];
    let (mut xs, mut ys): (Vec<f64>, Vec<f64>) = special.iter().flat_map(|&x| special.iter().map(move |&y| (x, y))).unzip();
    for i in 0..12_000 {
        xs.push(f64::from((f64::from(i) * 0.37 - 700.0) as f32));
        ys.push(f64::from((f64::from(i % 97) * 0.41 - 17.0) as f32).round() + if i % 3 == 0 { 0.25 } else { 0.0 });
    }
    for elem in [Elem::F32, Elem::F64] {
        let (x, y) = (floats(elem, &xs), floats(elem, &ys));
        for row in [12, 3] {
            map(Prim::Pow, &[&x, &y], elem, row, |what, out| {
                let mut worst = 0.0;
                for i in 0..x.len() {
                    let (a, b) = (x.get(i).to_f64(), y.get(i).to_f64());
                    // 2e-13 relative are some 1800 units.
                    close(
                        what,
                        elem,
                        &[a, b],
                        out.get(i).to_f64(),
                        libm::pow(a, b),
                        if elem == Elem::F32 { 1.0 } else { 1800.0 },
                        &mut worst,
                    );
                }
                report(what, worst);
            });
        }
    }
}
