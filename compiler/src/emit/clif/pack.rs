//! Packing of left operands, a row tile a task.

use super::KernelBuilder;
use super::gemm::{address, ceil_div, div_rem, rest, split};
use super::tile::{self, Rows};
use crate::kernel::Extent;
use crate::kernel::gemm::TILE_ROWS;
use crate::kernel::pack::Pack;
use cranelift_codegen::ir::InstBuilder;

/// Bytes of an element.
const ELEMENT: i64 = 4;

/// Emits a packing kernel.
pub fn emit(b: &mut KernelBuilder, p: &Pack) {
    let (begin, end) = (b.begin, b.end);
    let Some(task) = b.open_loop(begin, end, 1) else { return };
    b.reload_arguments();
    let (m, k) = (b.extent(p.m), b.extent(p.k));
    let tiles = ceil_div(b, m, TILE_ROWS as i64);
    let (matrix, tile) = div_rem(b, task.index, tiles);
    let first = b.times(tile, Extent::Const(TILE_ROWS as i64));
    let rows = rest(b, m, first, TILE_ROWS as i64);
    let batch = split(b, matrix, &p.batch);
    let at = address(b, p.from.buffer, batch.into_iter().chain([first]), p.from.batch.iter().chain([&p.from.row]));
    let to = b.times(task.index, Extent::Const(TILE_ROWS as i64 * ELEMENT));
    let to = b.f.ins().imul(to, k);
    let base = b.buffer(p.to);
    let to = b.f.ins().iadd(base, to);
    tile::pack(b, &Rows { at, rows, k, row_stride: p.from.row, k_stride: p.from.k }, to);
    b.close_loop(task);
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Compiled, foreign_cpus, host_cpus, machine_code};
    use crate::kernel::gemm::TILE_ROWS;
    use crate::kernel::pack::{Form, Pack, Rows, pack};
    use crate::kernel::{Body, BufferParam, Extent, Kernel, Use};
    use proptest::prelude::*;
    use tfc_ir::types::Elem;

    fn kernel([batch, m, k]: [usize; 3], transposed: bool, symbolic: bool) -> (Kernel, Vec<i64>) {
        let mut ints = vec![];
        let mut extent = |n: usize| {
            if !symbolic || n == 1 {
                return Extent::Const(n as i64);
            }
            ints.push(n as i64);
            Extent::Param(ints.len() as u32 - 1)
        };
        let (row, column) = if transposed { (1, m) } else { (k, 1) };
        let from = Rows { buffer: 0, batch: vec![extent(m * k)], row: extent(row), k: extent(column) };
        let body = Pack { batch: vec![extent(batch)], m: extent(m), k: extent(k), from, to: 1, form: Form::Floats };
        let buffers = [Use::Read, Use::Write].map(|usage| BufferParam { elem: Elem::F32, usage }).to_vec();
        (Kernel { buffers, ints: ints.len() as u32, body: Body::Pack(body) }, ints)
    }

    #[test]
    fn other_architectures() {
        for cpu in foreign_cpus() {
            assert!(!machine_code(&kernel([2, 3, 4], false, true).0, &cpu).bytes.is_empty());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn rows_are_where_the_kernel_layer_says([batch, m, k] in [1usize..3, 1..40, 0..50], [transposed, symbolic]: [bool; 2]) {
            let (kernel, ints) = kernel([batch, m, k], transposed, symbolic);
            let from: Vec<f32> = (0..batch * m * k).map(|i| i as f32).collect();
            let expected: Vec<f32> = (0..batch)
                .flat_map(|b| pack(m, k, |r, x| from[b * m * k + if transposed { x * m + r } else { r * k + x }]))
                .collect();
            let tiles = batch * m.div_ceil(TILE_ROWS);
            for cpu in host_cpus() {
                let mut buffers = [&from, &vec![f32::NAN; expected.len()]].map(|x| bytemuck::cast_slice(x).to_vec());
                let run = Compiled::new(&kernel, &cpu);
                prop_assert_eq!(run.run(&mut buffers, &ints, 0, 1), 0);
                prop_assert_eq!(run.run(&mut buffers, &ints, 1, tiles as i64), 0);
                let packed: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[1]);
                for (i, (x, y)) in packed.iter().zip(&expected).enumerate() {
                    let (tile, r) = (i / TILE_ROWS / k % m.div_ceil(TILE_ROWS), i % TILE_ROWS);
                    prop_assert!(tile * TILE_ROWS + r >= m || x == y, "{}: element {i}: {x} for {y}", cpu.name);
                }
            }
        }
    }
}
