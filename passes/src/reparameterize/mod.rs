//! `reparameterize`: what channels of an operand are too large for 8 bits moves into the weights that it meets.
//!
//! For every operand of products that `quantize` will round, and that `calibrate` observed, it asks which maps `x' = (x - z) / s` by
//! channel what computes the operand can absorb ([`Path`]), lets methods propose numbers, and takes those after which rounding loses
//! least ([`search`]). The maps are plans in an e-graph, where rules ([`rules::folding`]) add the products with mapped operands; what is
//! extracted pays for a second norm, or for the way back, only where that is worth it. Nothing but f32 and f64 is mapped: weights in
//! 16 bits would lose to the map what they gain.

mod candidates;
mod objective;
mod search;

pub use candidates::{Target, affine, reparameterized};

use crate::absorb::{ChannelMap, Channels, Path, Plan};
use crate::calibrate::Statistics;
use crate::eqsat::Program;
use crate::quantize::{self, Site};
use crate::rules;
use crate::table::{Context, Pass, PassError, PassResult, Stats};
use std::fmt;
use tfc_ir::graph::{Graph, Loc};
use tfc_ir::types::Elem;

/// Folds maps by channel into what computes the operands of quantized products; without statistics, it does nothing.
pub const PASS: Pass = Pass { name: "reparameterize", summary: "move outliers of channels into the weights that they meet", run };

/// Who proposed the numbers of a map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Method {
    /// Nobody: the operand stays as it is.
    None,
    /// RepQ-ViT with the mean of the scales as target (Li et al. 2023).
    RepqMean,
    /// The same with the median, as in DopQ-ViT (Yang et al. 2024).
    RepqMedian,
    /// The same with the mean between two percentiles.
    RepqClipped,
    /// RepQuant's clipping by channel before (Li et al. 2024).
    RepQuant,
    /// Outlier Suppression+ (Wei et al. 2023).
    OutlierSuppression,
    /// SmoothQuant (Xiao et al. 2023).
    SmoothQuant,
    /// SmoothQuant of centred channels (SQ-b of MPTQ-ViT, 2024).
    SmoothQuantShift,
    /// AWQ's scales (Lin et al. 2024).
    Awq,
}

impl Method {
    /// The name in reports and counters.
    pub fn name(self) -> &'static str {
        match self {
            Method::None => "none",
            Method::RepqMean => "repq mean",
            Method::RepqMedian => "repq median",
            Method::RepqClipped => "repq clipped mean",
            Method::RepQuant => "repquant",
            Method::OutlierSuppression => "os+",
            Method::SmoothQuant => "smoothquant",
            Method::SmoothQuantShift => "sq-b",
            Method::Awq => "awq",
        }
    }
}

/// What was decided for one operand.
#[derive(Clone, PartialEq, Debug)]
pub struct Fold {
    /// The ONNX nodes of the products that take it.
    pub products: Vec<Loc>,
    /// What it can be mapped by.
    pub legal: Legal,
    /// Who proposed the map.
    pub method: Method,
    /// The method's parameter: a threshold, or an exponent from 0 to 1.
    pub strength: Option<f32>,
    /// Channels with a range above five times the median.
    pub outliers: usize,
    /// The estimated relative error of the products by rounding, the root of the mean of ‖y - ŷ‖² / ‖y‖² over rows, of the operand as it
    /// is,
    pub plain_error: f64,
    /// and of the mapped one.
    pub folded_error: f64,
    /// The relative error of the map alone, in f32.
    pub map_error: f64,
}

/// The maps that an operand can get.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Legal {
    /// None: what computes it cannot absorb one, or nothing finite was observed.
    Nothing,
    /// A scale by channel.
    Scale,
    /// A scale and a shift.
    ScaleAndShift,
}

/// What was decided for every operand of products that are quantized, in order.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Folds(pub Vec<Fold>);

impl fmt::Display for Fold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let products: Vec<String> = self.products.iter().map(Loc::to_string).collect();
        write!(f, "{}: {}", products.join(", "), self.method.name())?;
        if let Some(strength) = self.strength {
            write!(f, " {strength:.3}")?;
        }
        write!(f, ", {} outliers, error {:.4} -> {:.4}", self.outliers, self.plain_error, self.folded_error)
    }
}

fn run(graph: Graph, cx: &Context) -> PassResult {
    let mut stats = Stats::default();
    let (Some(statistics), Some(config)) = (cx.data.get::<Statistics>(), &cx.quant) else { return Ok((graph, stats)) };
    let sites = quantize::sites(&graph, config);
    let mut program = Program::new(&graph);
    let absorbers = stats.timed("looking for what absorbs maps", || absorbers(&graph, &mut program, &sites));
    let choices = stats.timed("search for maps", || search::search(&graph, config, statistics, &sites, &absorbers));
    stats.count("operands", sites.len() as u64);
    for choice in &choices {
        stats.count(choice.fold.method.name(), 1);
    }
    let worth = |fold: &Fold| 1.0 - (fold.folded_error / fold.plain_error.max(f64::MIN_POSITIVE)).powi(2);
    let maps = choices.iter().map(|c| c.map.clone().map(|map| (map, worth(&c.fold).clamp(0.0, 1.0)))).collect();
    stats.data.insert(Folds(choices.into_iter().map(|c| c.fold).collect()));
    let plans = planned(&sites, absorbers, maps);
    let graph = if plans.is_empty() { graph } else { folded(program, plans, cx, &mut stats)? };
    Ok((graph, stats))
}

/// Folds maps that the caller chooses, to see what they change where nothing is rounded: for every operand that [`PASS`] would look at,
/// if something can absorb a map, `choose` gets it and what that is, in order.
///
/// # Errors
/// Only by a defect of a rule.
///
/// # Panics
/// When a map does not fit what absorbs it.
pub fn fold_maps(graph: Graph, cx: &Context, mut choose: impl FnMut(&Site, &Absorber) -> Option<ChannelMap>) -> PassResult {
    let mut stats = Stats::default();
    let sites = cx.quant.as_ref().map_or(vec![], |config| quantize::sites(&graph, config));
    let mut program = Program::new(&graph);
    let absorbers = absorbers(&graph, &mut program, &sites);
    let mut map = |(site, absorber): (&Site, &Option<Absorber>)| {
        let absorber = absorber.as_ref()?;
        let map = choose(site, absorber)?;
        assert!(absorber.takes(&map), "a map of {} channels does not fit {}", map.scale.len(), graph.ty(site.operand));
        Some((map, 1.0))
    };
    let maps = sites.iter().zip(&absorbers).map(&mut map).collect();
    let plans = planned(&sites, absorbers, maps);
    let graph = if plans.is_empty() { graph } else { folded(program, plans, cx, &mut stats)? };
    Ok((graph, stats))
}

/// The graph with the products that plans are for, and what absorbs their maps.
fn folded(mut program: Program, plans: Vec<Plan>, cx: &Context, stats: &mut Stats) -> Result<Graph, PassError> {
    for plan in shared(&plans, &mut program) {
        program.plan(plan.path.term(), plan);
    }
    for plan in plans {
        program.plan(plan.path.term(), plan);
    }
    program.saturated(&rules::folding().collect::<Vec<_>>(), cx, stats)
}

/// What can absorb a map of an operand.
pub struct Absorber {
    path: Path,
    /// Per channel the one whose numbers it must have, itself if it is free.
    pub ties: Vec<u32>,
    /// Whether it absorbs a shift too.
    pub shift: bool,
}

impl Absorber {
    fn find(graph: &Graph, program: &mut Program, site: &Site) -> Option<Absorber> {
        let ty = graph.ty(site.operand);
        let count = ty.shape[site.axis].as_const().filter(|_| matches!(ty.elem, Elem::F32 | Elem::F64))? as usize;
        let channels = Channels::along(site.axis, ty.rank(), count);
        let term = program.term(site.operand);
        let terms = program.terms();
        let of = |shift: bool| Path::find(&terms, term, channels.clone(), shift).map(|(path, pairs)| (path, pairs, shift));
        let (path, pairs, shift) = of(true).or_else(|| of(false))?;
        Some(Absorber { path, ties: representatives(count, &pairs)?, shift })
    }

    /// Whether it absorbs the map: as many channels, numbers that are normal, equal where they must be, and a shift only if it takes one.
    pub fn takes(&self, map: &ChannelMap) -> bool {
        let tied = |of: &[f32]| of.len() == self.ties.len() && self.ties.iter().zip(of).all(|(&first, x)| *x == of[first as usize]);
        map.is_usable() && tied(&map.scale) && map.shift.as_ref().is_none_or(|shift| self.shift && tied(shift))
    }
}

/// What can absorb a map of each operand.
fn absorbers(graph: &Graph, program: &mut Program, sites: &[Site]) -> Vec<Option<Absorber>> {
    sites.iter().map(|s| Absorber::find(graph, program, s)).collect()
}

/// Per channel the first one that pairs connect it with; `None` if one is to share its numbers with what stays as it is.
fn representatives(count: usize, pairs: &[(u32, u32)]) -> Option<Vec<u32>> {
    let mut first: Vec<u32> = (0..count as u32).collect();
    fn root(first: &mut [u32], mut c: u32) -> u32 {
        while first[c as usize] != c {
            first[c as usize] = first[first[c as usize] as usize];
            c = first[c as usize];
        }
        c
    }
    for &(a, b) in pairs {
        if a.max(b) as usize >= count {
            return None;
        }
        let (a, b) = (root(&mut first, a), root(&mut first, b));
        first[a.max(b) as usize] = a.min(b);
    }
    Some((0..count as u32).map(|c| root(&mut first, c)).collect())
}

/// The plans for the operands that get a map, each with what that is worth ([`Plan::worth`]).
fn planned(sites: &[Site], absorbers: Vec<Option<Absorber>>, maps: Vec<Option<(ChannelMap, f64)>>) -> Vec<Plan> {
    let absorbed = sites.iter().zip(absorbers).zip(maps).filter_map(|((site, absorber), map)| Some((site, absorber?.path, map?)));
    absorbed.map(|(site, path, (map, worth))| Plan { path, map, axis: Some(site.axis), worth }).collect()
}

/// Plans for values of which slices are mapped: one for all maps of its slices, if they agree.
fn shared(plans: &[Plan], program: &mut Program) -> Vec<Plan> {
    let mut sliced: Vec<(egg::Id, Vec<Plan>)> = vec![];
    for plan in plans {
        for part in plan.sliced() {
            let term = part.path.term();
            if plans.iter().all(|p| p.path.term() != term) {
                match sliced.iter_mut().find(|(t, _)| *t == term) {
                    Some((_, parts)) => parts.push(part),
                    None => sliced.push((term, vec![part])),
                }
            }
        }
    }
    let terms = program.terms();
    sliced.into_iter().filter_map(|(_, parts)| Plan::joined(&terms, &parts)).collect()
}

#[cfg(test)]
mod tests;
