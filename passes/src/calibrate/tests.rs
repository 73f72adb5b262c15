use super::*;
use crate::QuantConfig;
use tfc_ir::dim::{Bindings, Symbol};
use tfc_ir::text;

/// Interprets graphs on parts of data.
struct Interpreter {
    parts: Vec<(Bindings, Vec<Tensor>)>,
}

impl Oracle for Interpreter {
    fn batches(&self) -> usize {
        self.parts.len()
    }

    fn evaluate(&self, graph: &Graph, each: &mut dyn FnMut(usize, Vec<Tensor>)) -> Result<(), OracleError> {
        for (i, (bindings, inputs)) in self.parts.iter().enumerate() {
            let results = graph.evaluate(inputs, bindings).map_err(|e| OracleError { message: e.to_string(), code: 1 })?;
            each(i, results);
        }
        Ok(())
    }
}

const SOURCE: &str = "tfc.ir 1 symbol b 0..9 symbol s 0..9 input %x: f32[b, s, 32] input %mask: i64[b, s] const %w: f32[32, 16] = splat 0.5
    %y = relu %x : f32[b, s, 32] %z = matmul %y, %w : f32[b, s, 16] output z = %z";

/// Parts with `b` and `s`; element `i` of a part is `i` of it in some order, half of them negative; every third position is hidden.
fn parts(sizes: &[(usize, usize)]) -> Interpreter {
    let part = |&(b, s): &(usize, usize)| {
        let x: Vec<f32> = (0..b * s * 32).map(|i| (i * 7919 % 1000) as f32 / 100.0 - 5.0).collect();
        let mask: Vec<i64> = (0..b * s).map(|i| i64::from(i % 3 != 2)).collect();
        let bindings = Bindings::from([(Symbol::new("b"), b as i64), (Symbol::new("s"), s as i64)]);
        (bindings, vec![Tensor::of(&[b, s, 32], x), Tensor::of(&[b, s], mask)])
    };
    Interpreter { parts: sizes.iter().map(part).collect() }
}

fn observed(sizes: &[(usize, usize)], mask: Option<&str>) -> Observed {
    let graph = text::parse(SOURCE, None).unwrap();
    let calibration = Calibration { source: Source::Data(Arc::new(parts(sizes))), mask: mask.map(Into::into) };
    let mut cx = Context { quant: Some(QuantConfig::new("w4a8".parse().unwrap())), ..Context::default() };
    cx.data.insert(calibration);
    let (same, stats) = run(graph.clone(), &cx).unwrap();
    assert_eq!(same.to_string(), graph.to_string());
    let statistics = stats.data.get::<Statistics>().unwrap();
    let [(_, observed)] = statistics.iter().collect::<Vec<_>>()[..] else { panic!("one value") };
    Observed::clone(observed)
}

/// What should be seen, from the definition.
fn expected(sizes: &[(usize, usize)], masked: bool) -> (u64, Vec<f32>, Vec<f64>) {
    let (mut count, mut max, mut sum) = (0, vec![0f32; 32], vec![0f64; 32]);
    for (_, inputs) in &parts(sizes).parts {
        let (x, mask) = (inputs[0].values::<f32>(), inputs[1].values::<i64>());
        for (row, _) in x.chunks(32).zip(mask.iter()).filter(|(_, m)| !masked || **m != 0) {
            count += 1;
            row.iter().enumerate().for_each(|(j, &x)| {
                max[j] = max[j].max(x);
                sum[j] += f64::from(x.max(0.0));
            });
        }
    }
    (count, max, sum)
}

#[test]
fn reductions_are_those_of_all_rows_that_count() {
    let sizes = [(2, 5), (1, 1), (3, 7)];
    for mask in [None, Some("mask")] {
        let o = observed(&sizes, mask);
        let (count, max, sum) = expected(&sizes, mask.is_some());
        assert_eq!((o.axis, o.count, &o.max), (2, count, &max));
        assert!(o.min.iter().all(|&x| x >= 0.0) && o.is_finite());
        for (mean, sum) in o.mean.iter().zip(&sum) {
            assert!((mean - sum / count as f64).abs() < 1e-5, "{mean} {sum}");
        }
        assert!(o.mean_square.iter().zip(&o.mean).all(|(square, mean)| *square >= mean * mean - 1e-6));
        // All rows that were kept are rows that count.
        assert!(o.sample().len() > 10 && o.sample().all(|row| row.iter().zip(&max).all(|(x, max)| x <= max)));
    }
}

#[test]
fn rows_do_not_grow_with_the_data() {
    let o = observed(&vec![(1, 3); 2_000], None);
    assert!((MAX_ROWS / 2..=MAX_ROWS).contains(&o.sample().len()), "{}", o.sample().len());
    // Of a single part, the first row is there.
    let first = observed(&[(1, 9)], None);
    let x = parts(&[(1, 9)]).parts[0].1[0].values::<f32>()[..32].iter().map(|x| x.max(0.0)).collect::<Vec<_>>();
    assert_eq!(first.sample().next().unwrap(), x);
}

/// Parts of few rows, of which each gives one: rows of all places are there, not those of one place only.
#[test]
fn rows_come_from_all_places() {
    let source =
        "tfc.ir 1 symbol s 0..9 input %x: f32[s, 32] const %w: f32[32, 16] = splat 0.5 %y = matmul %x, %w : f32[s, 16] output y = %y";
    let graph = text::parse(source, None).unwrap();
    let part = |_| (Bindings::from([(Symbol::new("s"), 8)]), vec![Tensor::of(&[8, 32], (0..256).map(|i| (i / 32) as f32).collect())]);
    let oracle = Arc::new(Interpreter { parts: (0..MAX_ROWS).map(part).collect() });
    let tap = Tap { value: graph.inputs()[0], axis: 1 };
    let statistics = observe(&graph, &[tap], &Calibration { source: Source::Data(oracle), mask: None }).unwrap();
    let mut seen = [0; 8];
    statistics.of(tap.value).unwrap().sample().for_each(|row| seen[row[0] as usize] += 1);
    assert!(seen.iter().all(|n| (MAX_ROWS / 12..MAX_ROWS / 5).contains(n)), "{seen:?}");
}

#[test]
fn all_positions_may_be_hidden() {
    let graph = text::parse(SOURCE, None).unwrap();
    let mut oracle = parts(&[(1, 1)]);
    oracle.parts[0].1[1] = Tensor::of(&[1, 1], vec![0i64]);
    let tap = Tap { value: graph.nodes().next().unwrap().1.outputs[0], axis: 2 };
    let statistics = observe(&graph, &[tap], &Calibration { source: Source::Data(Arc::new(oracle)), mask: Some("mask".into()) }).unwrap();
    let o = statistics.of(tap.value).unwrap();
    assert_eq!((o.count, o.sample().len(), o.is_finite()), (0, 0, false));
}

#[test]
fn channels_of_a_right_operand_are_rows() {
    let source = "tfc.ir 1 input %x: f32[64, 5] const %w: f32[16, 64] = splat 0.5 %y = matmul %w, %x : f32[16, 5] output y = %y";
    let graph = text::parse(source, None).unwrap();
    let x = Tensor::of(&[64, 5], (0..320).map(|i| i as f32).collect());
    let oracle = Arc::new(Interpreter { parts: vec![(Bindings::new(), vec![x])] });
    let tap = Tap { value: graph.inputs()[0], axis: 0 };
    let statistics = observe(&graph, &[tap], &Calibration { source: Source::Data(oracle), mask: None }).unwrap();
    let o = statistics.of(graph.inputs()[0]).unwrap();
    assert_eq!((o.count, o.min[1], o.max[1], o.mean[1]), (5, 5.0, 9.0, 7.0));
    assert_eq!(o.sample().next().unwrap()[..3], [0.0, 5.0, 10.0]);
}

#[test]
fn a_record_gives_what_was_observed_and_nothing_else() {
    let graph = text::parse(SOURCE, None).unwrap();
    let tap = Tap { value: graph.nodes().next().unwrap().1.outputs[0], axis: 2 };
    let seen = observed(&[(2, 5)], None);
    let source = |calls| Calibration { source: Source::Record(Arc::new(Record::new("`file`".into(), calls))), mask: None };
    let calibration = source(vec![vec![seen.clone()], vec![]]);
    assert_eq!(**observe(&graph, &[tap], &calibration).unwrap().of(tap.value).unwrap(), seen);
    let Source::Record(record) = &calibration.source else { panic!("a record") };
    assert!(record.finish().unwrap_err().message.contains("1 times more"));
    assert_eq!(observe(&graph, &[], &calibration).unwrap().iter().len(), 0);
    record.finish().unwrap();
    let error = |calls| observe(&graph, &[tap], &source(calls)).unwrap_err().to_string();
    assert!(error(vec![]).contains("`file` does not fit the model: the model is observed more often"));
    assert!(error(vec![vec![seen.clone(), seen.clone()]]).contains("2 values were observed, but the model has 1"));
    let wrong = error(vec![vec![Observed { axis: 1, ..seen.clone() }]]);
    assert!(wrong.contains("32 channels along axis 1, but that of the model has 32 channels along axis 2"), "{wrong}");
    assert!(error(vec![vec![Observed { min: vec![0.0], ..seen }]]).contains("value 0 has 1 channels"));
}

/// `Σ x xᵀ` of rows that count, each from f64 products of the interpreter's f32 rows.
#[test]
fn moments_are_those_of_all_rows_that_count() {
    let sizes = [(2, 5), (1, 1), (3, 7)];
    let graph = text::parse(SOURCE, None).unwrap();
    let input = Tap { value: graph.inputs()[0], axis: 2 };
    let activation = Tap { value: graph.nodes().next().unwrap().1.outputs[0], axis: 2 };
    for mask in [None, Some("mask")] {
        let (mut count, mut expected) = (0, [vec![0f64; 32 * 32], vec![0f64; 32 * 32]]);
        for (_, inputs) in &parts(&sizes).parts {
            let (x, shown) = (inputs[0].values::<f32>(), inputs[1].values::<i64>());
            for (row, _) in x.chunks(32).zip(shown.iter()).filter(|(_, m)| mask.is_none() || **m != 0) {
                count += 1;
                let positive: Vec<f32> = row.iter().map(|x| x.max(0.0)).collect();
                for (sums, row) in expected.iter_mut().zip([row, &positive]) {
                    sums.iter_mut().enumerate().for_each(|(at, sum)| *sum += f64::from(row[at / 32]) * f64::from(row[at % 32]));
                }
            }
        }
        let mut seen = vec![];
        moments(&graph, &[input, activation], &parts(&sizes), mask, &mut |i, found| seen.push((i, found))).unwrap();
        assert_eq!(seen.len(), 2);
        for ((i, found), expected) in seen.into_iter().zip(&expected) {
            assert_eq!(found.count, count);
            for (at, (found_at, sum)) in found.matrix.iter().zip(expected).enumerate() {
                let mean = sum / count as f64;
                assert!((found_at - mean).abs() < 1e-5 * mean.abs().max(1.0), "{i} at {at}: {found_at} {mean}");
                assert_eq!(*found_at, found.matrix[at % 32 * 32 + at / 32]);
            }
        }
    }
}

#[test]
fn moments_of_nothing_are_zeros() {
    let graph = text::parse(SOURCE, None).unwrap();
    let mut oracle = parts(&[(1, 1)]);
    oracle.parts[0].1[1] = Tensor::of(&[1, 1], vec![0i64]);
    let tap = Tap { value: graph.inputs()[0], axis: 2 };
    let mut seen = vec![];
    moments(&graph, &[tap], &oracle, Some("mask"), &mut |_, found| seen.push(found)).unwrap();
    assert_eq!(seen, [Moments { count: 0, matrix: vec![0.0; 32 * 32] }]);
}

#[test]
fn moments_of_a_right_operand_are_those_of_its_columns() {
    let source = "tfc.ir 1 input %x: f32[2, 3] const %w: f32[16, 2] = splat 0.5 %y = matmul %w, %x : f32[16, 3] output y = %y";
    let graph = text::parse(source, None).unwrap();
    let x = Tensor::of(&[2, 3], vec![1f32, 2.0, 3.0, 0.0, 1.0, -1.0]);
    let oracle = Interpreter { parts: vec![(Bindings::new(), vec![x])] };
    let mut seen = vec![];
    let tap = Tap { value: graph.inputs()[0], axis: 0 };
    moments(&graph, &[tap], &oracle, None, &mut |_, found| seen.push(found.matrix)).unwrap();
    assert_eq!(seen, [[14.0, -1.0, -1.0, 2.0].map(|sum| sum / 3.0)]);
}
