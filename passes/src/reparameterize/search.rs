//! The search for the map of each operand.
//!
//! Methods propose maps; an estimate by channel, which is cheap, picks the best of each method, and the product itself on a few rows,
//! rounded as it will be, decides among those and against leaving the operand as it is.

use super::candidates::{Candidate, candidates, dual_clipping};
use super::objective::Operand;
use super::{Absorber, Fold, Legal, Method};
use crate::absorb::ChannelMap;
use crate::calibrate::{Observed, Statistics};
use crate::parallel;
use crate::quantize::{self, QuantConfig, Site};
use std::collections::BTreeMap;
use tfc_ir::graph::Graph;

/// The part of the squared error that a map must remove to be chosen.
const MARGIN: f64 = 0.02;

/// What was found for an operand.
pub(super) struct Choice {
    /// The map, if it gets one.
    pub(super) map: Option<ChannelMap>,
    /// The report.
    pub(super) fold: Fold,
}

/// The best map of every site, in order.
pub(super) fn search(
    graph: &Graph,
    config: &QuantConfig,
    statistics: &Statistics,
    sites: &[Site],
    absorbers: &[Option<Absorber>],
) -> Vec<Choice> {
    let one = |i: usize| {
        let observed = statistics.of(sites[i].operand).filter(|o| o.is_finite() && o.axis == sites[i].axis && !o.rows.is_empty());
        choice(graph, config, &sites[i], absorbers[i].as_ref(), observed.map(|o| &**o))
    };
    parallel::map(sites.len(), one)
}

fn choice(graph: &Graph, config: &QuantConfig, site: &Site, absorber: Option<&Absorber>, observed: Option<&Observed>) -> Choice {
    let mut fold = Fold {
        products: site.products.iter().map(|&n| graph.node(n).loc.clone()).collect(),
        legal: match absorber {
            None => Legal::Nothing,
            Some(a) if a.shift => Legal::ScaleAndShift,
            Some(_) => Legal::Scale,
        },
        method: Method::None,
        strength: None,
        outliers: 0,
        plain_error: 0.0,
        folded_error: 0.0,
        map_error: 0.0,
    };
    let Some(observed) = observed else { return Choice { map: None, fold } };
    let channels = observed.channels();
    let own: Vec<u32> = (0..channels as u32).collect();
    let operand = Operand::new(observed, &quantize::weights(graph, config, site), absorber.map_or(&own, |a| &a.ties));
    fold.outliers = operand.ranges.outliers();
    let plain = ChannelMap { scale: vec![1.0; channels], shift: None };
    let plain_error = operand.measured(&plain);
    fold.plain_error = plain_error.sqrt();
    fold.folded_error = fold.plain_error;
    let best = absorber.and_then(|absorber| best(&operand, absorber));
    let Some((error, best)) = best.filter(|(error, _)| *error < plain_error * (1.0 - MARGIN)) else { return Choice { map: None, fold } };
    fold.method = best.method;
    fold.strength = best.strength;
    fold.folded_error = error.sqrt();
    fold.map_error = operand.of_map(&best.map).sqrt();
    Choice { map: Some(best.map), fold }
}

/// The map with the smallest error of those that can be absorbed, the first of equal ones.
fn best(operand: &Operand, absorber: &Absorber) -> Option<(f64, Candidate)> {
    let clipped = dual_clipping(&operand.rows, &operand.ranges, &absorber.ties);
    let mut finalists: BTreeMap<Method, (f64, Candidate)> = BTreeMap::new();
    for candidate in candidates(&operand.ranges, &clipped, absorber.shift).into_iter().filter(|c| absorber.takes(&c.map)) {
        let estimate = operand.estimate(&candidate.map);
        let best = finalists.get(&candidate.method).map_or(f64::INFINITY, |(error, _)| *error);
        if estimate < best {
            finalists.insert(candidate.method, (estimate, candidate));
        }
    }
    let measured = finalists.into_values().map(|(_, c)| (operand.measured(&c.map), c));
    measured.filter(|(error, _)| error.is_finite()).min_by(|a, b| a.0.total_cmp(&b.0))
}
