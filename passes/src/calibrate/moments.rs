//! Second moments of what products multiply, for methods that round weights by more than their own size (GPTQ, Frantar et al. 2023).

use super::Oracle;
use super::taps::{Tap, tapped_moments};
use crate::dce;
use crate::table::{Context, PassError};
use std::ops::Range;
use tfc_ir::graph::Graph;
use tfc_ir::tensor::Tensor;

/// The most bytes of moments that are summed at once, unless those of one value take more.
const MAX_BYTES: usize = 256 << 20;

/// The second moments of a value.
#[derive(Clone, PartialEq, Debug)]
pub struct Moments {
    /// The rows that were seen, without those that the mask hides.
    pub count: u64,
    /// The mean of `x xᵀ` over these rows `x`, `[channels, channels]` in row-major order and symmetric; zeros if there are none. Not
    /// finite where a row is not.
    pub matrix: Vec<f64>,
}

/// Sums up the second moments of values of a graph on calibration data. `each` gets the number of a tap and what was seen of it, in
/// order; a few taps at a time are in memory ([`MAX_BYTES`]), and the data is evaluated once for each such set.
///
/// Products within one part of the data are in f32, sums over parts in f64. Positions where the input called `mask` is 0 do not count,
/// as for [`observe`](super::observe).
///
/// # Errors
/// Those of the oracle.
pub fn moments(
    graph: &Graph,
    taps: &[Tap],
    oracle: &dyn Oracle,
    mask: Option<&str>,
    each: &mut dyn FnMut(usize, Moments),
) -> Result<(), PassError> {
    let mask = super::mask(graph, mask);
    for set in sets(graph, taps) {
        let (observer, _) = (dce::PASS.run)(tapped_moments(graph, &taps[set.clone()], mask)?, &Context::default())?;
        let mut sums: Vec<Sum> = taps[set.clone()].iter().map(|t| Sum::new(t.channels(graph))).collect();
        oracle.evaluate(&observer, &mut |_, results| {
            for (sum, part) in sums.iter_mut().zip(results.chunks_exact(2)) {
                sum.add(&part[0], &part[1]);
            }
        })?;
        for (i, sum) in set.zip(sums) {
            each(i, sum.finish());
        }
    }
    Ok(())
}

/// Taps that are evaluated together, in order.
fn sets(graph: &Graph, taps: &[Tap]) -> Vec<Range<usize>> {
    let mut sets: Vec<Range<usize>> = vec![];
    let mut bytes = 0;
    for (i, tap) in taps.iter().enumerate() {
        let own = size_of::<f64>() * tap.channels(graph).pow(2);
        match sets.last_mut() {
            Some(set) if bytes + own <= MAX_BYTES => {
                set.end += 1;
                bytes += own;
            }
            _ => {
                sets.push(i..i + 1);
                bytes = own;
            }
        }
    }
    sets
}

/// Moments of the parts so far: of the upper triangle only.
struct Sum {
    count: u64,
    channels: usize,
    total: Vec<f64>,
}

impl Sum {
    fn new(channels: usize) -> Sum {
        Sum { count: 0, channels, total: vec![0.0; channels * channels] }
    }

    fn add(&mut self, count: &Tensor, part: &Tensor) {
        self.count += count.get(0).to_i128().max(0) as u64;
        let n = self.channels.max(1);
        for (i, (total, part)) in self.total.chunks_exact_mut(n).zip(part.values::<f32>().chunks_exact(n)).enumerate() {
            total[i..].iter_mut().zip(&part[i..]).for_each(|(total, x)| *total += f64::from(*x));
        }
    }

    fn finish(mut self) -> Moments {
        let (n, count) = (self.channels, self.count.max(1) as f64);
        for i in 0..n {
            for j in i..n {
                let mean = self.total[i * n + j] / count;
                self.total[i * n + j] = mean;
                self.total[j * n + i] = mean;
            }
        }
        Moments { count: self.count, matrix: self.total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tfc_ir::text;

    #[test]
    fn sets_are_as_large_as_memory_allows() {
        let source = "tfc.ir 1 symbol n 1..9 input %a: f32[n, 4096] input %b: f32[n, 4096] input %c: f32[n, 8192] output a = %a";
        let graph = text::parse(source, None).unwrap();
        let tap = |i: usize| Tap { value: graph.inputs()[i], axis: 1 };
        assert_eq!(sets(&graph, &[tap(0), tap(1), tap(2), tap(0)]), [0..2, 2..3, 3..4]);
        assert!(sets(&graph, &[]).is_empty());
    }
}
