//! Sources of choices for generators: a list, which proptest shrinks, or a seed.

use tfc_ir::tensor::{Scalar, Tensor};
use tfc_ir::types::Elem;

/// A sequence of choices. When a list has ended, every further choice is 0, the simplest one.
pub struct Choices {
    list: std::vec::IntoIter<u32>,
    seed: Option<u64>,
}

impl Choices {
    /// The choices of a list.
    pub fn list(list: Vec<u32>) -> Choices {
        Choices { list: list.into_iter(), seed: None }
    }

    /// An endless pseudo-random sequence (SplitMix64).
    pub fn seeded(seed: u64) -> Choices {
        Choices { list: vec![].into_iter(), seed: Some(seed) }
    }

    /// Whether a list has ended.
    pub fn ended(&self) -> bool {
        self.seed.is_none() && self.list.len() == 0
    }

    fn next(&mut self) -> u32 {
        let Some(state) = &mut self.seed else { return self.list.next().unwrap_or(0) };
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 32) as u32 ^ z as u32
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { self.next() as usize % n }
    }

    /// A number from `low` to `high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// One of the items.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A tensor of small values that every element type represents exactly: floats are sixteenths
    /// from -2 to 2, integers -4 to 4, or 0 to 4 without a sign.
    pub fn tensor(&mut self, elem: Elem, sizes: &[usize]) -> Tensor {
        Tensor::build(elem, sizes, |_| match elem {
            Elem::Bool => Scalar::Int(self.below(2) as i128),
            e if e.is_float() => Scalar::Float(self.between(-32, 32) as f64 / 16.0),
            e if e.is_signed_int() => Scalar::Int(self.between(-4, 4).into()),
            _ => Scalar::Int(self.below(5) as i128),
        })
    }

    /// A tensor of values that are hard: the limits of integers, and NaN, infinities, zeros with both
    /// signs, halves, large and tiny numbers; among small ones as [`Choices::tensor`] gives them.
    pub fn hard_tensor(&mut self, elem: Elem, sizes: &[usize]) -> Tensor {
        #[rustfmt::skip]
        const FLOATS: [f64; 18] = [
            f64::NAN, f64::INFINITY, -f64::INFINITY, 0.0, -0.0, 0.5, 1.5, -2.5, 1e-30,
            -1e-6, 100.0, 65504.0, 3e9, -3e9, 1e20, 88.0, 3.4e38, -3.4e38,
        ];
        Tensor::build(elem, sizes, |_| match elem {
            Elem::Bool => Scalar::Int(self.below(2) as i128),
            e if e.is_float() && self.below(2) == 0 => Scalar::Float(*self.pick(&FLOATS)),
            e if e.is_float() => Scalar::Float(self.between(-32, 32) as f64 / 16.0),
            e => {
                let (low, high) = e.int_range().expect("an integer type");
                Scalar::Int(match self.below(4) {
                    0 => self.between(0, 8).into(),
                    1 => low + i128::from(self.between(0, 2)),
                    2 => high - i128::from(self.between(0, 2)),
                    _ => i128::from(self.next()) * i128::from(self.next()) - i128::from(self.next()),
                })
            }
        })
    }
}
