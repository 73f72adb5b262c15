//! The assembler: values beyond the registers, forms of multiply-adds, masks, and integers, on every wide
//! instruction set that the host has.

use super::asm::{Asm, Cond, Mem, R};
use super::isa::Op;
use crate::emit::clif::target::Cpu;
use crate::emit::clif::testing::{Compiled, host_cpus};
use proptest::prelude::*;

fn wide_cpus() -> Vec<Cpu> {
    host_cpus().into_iter().filter(|c| c.wide.is_some()).collect()
}

/// Runs code that reads the first buffer and writes the second one.
fn run(cpu: &Cpu, from: &[u8], to: usize, emit: impl FnOnce(&mut Asm, R, R)) -> Vec<u8> {
    let (mut a, [args, ..]) = Asm::new(cpu.wide.expect("a wide CPU"));
    let (x, y) = (a.load(Mem::at(args, 8)), a.load(Mem::at(args, 16)));
    emit(&mut a, x, y);
    let code = a.finish().expect("valid instructions");
    let mut buffers = [from.to_vec(), vec![0xaa; to]];
    assert_eq!(Compiled::of(&code, cpu).run(&mut buffers, &[], 0, 1), 0);
    buffers[1].clone()
}

fn floats(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect()
}

#[test]
fn vectors_beyond_the_registers_live_in_the_frame() {
    for cpu in wide_cpus() {
        let width = cpu.wide.expect("wide").lanes() as usize;
        for n in [3, 14, 16, 31, 40, 70] {
            let from = floats(n * width);
            let bytes = run(&cpu, bytemuck::cast_slice(&from), n * width * 4, |a, x, y| {
                let at = |i: usize| (i * width * 4) as i64;
                let v: Vec<_> = (0..n).map(|i| a.vector_of(Mem::at(x, at(i)))).collect();
                let count = a.imm(3);
                a.repeat(count, |a| {
                    for i in 0..n {
                        let next = a.fma(v[i], v[(i + 1) % n], 0.5);
                        a.set(v[i], next);
                    }
                });
                for (i, &v) in v.iter().enumerate() {
                    a.store_vector(Mem::at(y, at(i)), v);
                }
            });
            let mut expected = from;
            for _ in 0..3 {
                for i in 0..n {
                    for l in 0..width {
                        expected[i * width + l] = expected[i * width + l].mul_add(expected[(i + 1) % n * width + l], 0.5);
                    }
                }
            }
            assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes), expected, "{}: {n} vectors", cpu.name);
        }
    }
}

#[test]
fn integers_beyond_the_registers_live_in_the_frame() {
    let from: Vec<i64> = (0..30).map(|i| 1000 + i * i * 37).collect();
    for cpu in wide_cpus() {
        let bytes = run(&cpu, bytemuck::cast_slice(&from), 30 * 8, |a, x, y| {
            let v: Vec<_> = (0..30).map(|i| a.load(Mem::at(x, 8 * i))).collect();
            for i in 0..30 {
                let (p, q) = (v[i], v[(i + 7) % 30]);
                let (quotient, remainder) = a.divide(p, q);
                let product = a.times(quotient, q);
                let sum = a.plus(product, remainder);
                let least = a.min(sum, q);
                let most = a.max(least, p);
                let difference = a.minus(most, remainder);
                let index = a.imm(i as i64);
                a.store(Mem::indexed(y, index, 8, 0), difference);
            }
        });
        let expected: Vec<i64> = (0..30)
            .map(|i| {
                let (p, q) = (from[i], from[(i + 7) % 30]);
                p.min(q).max(p) - p % q
            })
            .collect();
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, i64>(&bytes), expected, "{}", cpu.name);
    }
}

#[test]
fn multiply_adds_take_memory_and_constants_anywhere() {
    for cpu in wide_cpus() {
        let width = cpu.wide.expect("wide").lanes() as usize;
        let from = floats(3 * width);
        let bytes = run(&cpu, bytemuck::cast_slice(&from), 6 * width * 4, |a, x, y| {
            let place = |i: usize| Mem::at(x, (i * width * 4) as i64);
            let v: Vec<_> = (0..3).map(|i| a.vector_of(place(i))).collect();
            let results = [
                a.fma(v[0], v[1], v[2]),
                a.fma(v[0], place(1), v[2]),
                a.fma(v[0], v[1], place(2)),
                a.fma(v[0], 0.25, v[2]),
                a.fma(v[0], v[1], -3.0),
                a.fma(v[0], v[0], v[0]),
            ];
            for (i, r) in results.into_iter().enumerate() {
                a.store_vector(Mem::at(y, (i * width * 4) as i64), r);
            }
            // The operands are still wanted.
            for (i, v) in v.into_iter().enumerate() {
                a.store_vector(place(i), v);
            }
        });
        let results: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
        for l in 0..width {
            let [x, y, z] = [0, 1, 2].map(|i| from[i * width + l]);
            let fma = f32::mul_add;
            let expected = [fma(x, y, z), fma(x, y, z), fma(x, y, z), fma(x, 0.25, z), fma(x, y, -3.0), fma(x, x, x)];
            for (i, e) in expected.into_iter().enumerate() {
                assert_eq!(results[i * width + l], e, "{}: form {i}", cpu.name);
            }
        }
    }
}

#[test]
fn sums_across_lanes_are_in_every_lane() {
    for cpu in wide_cpus() {
        let width = cpu.wide.expect("wide").lanes() as usize;
        let from: Vec<f32> = (0..width).map(|i| (1 << i) as f32).collect();
        let bytes = run(&cpu, bytemuck::cast_slice(&from), width * 4, |a, x, y| {
            let v = a.vector_of(Mem::at(x, 0));
            let sum = a.across(v, |a, x, y| a.binary(Op::AddPs, x, y));
            let all = a.splat(sum);
            a.store_vector(Mem::at(y, 0), all);
        });
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes), vec![((1 << width) - 1) as f32; width], "{}", cpu.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn masks_keep_to_their_lanes(count in 0usize..17) {
        for cpu in wide_cpus() {
            let width = cpu.wide.expect("wide").lanes() as usize;
            let count = count.min(width);
            // The memory ends with the lanes.
            let from = floats(count.max(1));
            let bytes = run(&cpu, bytemuck::cast_slice(&from), 2 * width * 4, |a, x, y| {
                let n = a.imm(count as i64);
                let (skip, done) = (a.label(), a.label());
                a.compare_imm(n, 0);
                a.jump_if(Cond::Eq, skip);
                let mask = a.first_lanes(n);
                let v = a.load_masked(Mem::at(x, 0), mask);
                a.store_masked(Mem::at(y, 0), v, mask);
                a.store_vector(Mem::at(y, (width * 4) as i64), v);
                a.jump(done);
                a.bind(skip);
                let zero = a.vector_of(0);
                a.store_vector(Mem::at(y, (width * 4) as i64), zero);
                a.bind(done);
            });
            let untouched = f32::from_le_bytes([0xaa; 4]);
            let results: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
            for l in 0..width {
                let (stored, loaded) = if l < count { (from[l], from[l]) } else { (untouched, 0.0) };
                prop_assert_eq!((results[l], results[width + l]), (stored, loaded), "{}: lane {}", cpu.name, l);
            }
        }
    }
}

#[test]
fn offsets_may_have_more_than_32_bits() {
    for cpu in wide_cpus() {
        let width = cpu.wide.expect("wide").lanes() as usize;
        let from = floats(2 * width);
        let bytes = run(&cpu, bytemuck::cast_slice(&from), 8 * width, |a, x, y| {
            for (i, far) in [i64::from(i32::MAX) + 1, -(1 << 40)].into_iter().enumerate() {
                let at = (i * width * 4) as i64;
                let index = a.imm(at / 4);
                let (before, behind) = (a.imm(far), a.imm(-far));
                let (x, y) = (a.plus(x, before), a.plus(y, behind));
                let v = a.vector_of(Mem::at(x, at - far));
                a.store_vector(Mem::indexed(y, index, 4, far), v);
            }
        });
        assert_eq!(bytes, bytemuck::cast_slice::<f32, u8>(&from), "{}", cpu.name);
    }
}
