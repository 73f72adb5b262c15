//! What was observed before, given again instead of data.

use super::{Observed, OracleError, Statistics, Tap};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use tfc_ir::graph::{Graph, Value};

/// What one run of a pipeline observed, for another run of it on the same model: for every time that [`super::PASS`] runs, what was
/// seen of its values, in their order.
pub struct Record {
    place: String,
    calls: Mutex<VecDeque<Vec<Observed>>>,
}

impl Record {
    /// A record that comes from `place`, for messages.
    pub fn new(place: String, calls: Vec<Vec<Observed>>) -> Record {
        Record { place, calls: Mutex::new(calls.into()) }
    }

    /// What the next run of the pass observes in `graph`.
    ///
    /// # Errors
    /// When nothing is left, or what is there is not of as many values with as many channels along the same axes.
    pub fn next(&self, graph: &Graph, taps: &[Tap]) -> Result<Statistics, OracleError> {
        let taps: BTreeMap<Value, &Tap> = taps.iter().map(|t| (t.value, t)).collect();
        let calls = &mut self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let observed = calls.pop_front().ok_or_else(|| self.misfit("the model is observed more often than it was".into()))?;
        if observed.len() != taps.len() {
            return Err(self.misfit(format!("{} values were observed, but the model has {} to observe", observed.len(), taps.len())));
        }
        for (i, (tap, o)) in taps.values().zip(&observed).enumerate() {
            let channels = tap.channels(graph);
            if (o.axis, o.channels()) != (tap.axis, channels) {
                let (found, wanted) = ((o.channels(), o.axis), (channels, tap.axis));
                let text = |(channels, axis): (usize, usize)| format!("{channels} channels along axis {axis}");
                return Err(self.misfit(format!("observed value {i} has {}, but that of the model has {}", text(found), text(wanted))));
            }
        }
        Ok(taps.into_keys().zip(observed).collect())
    }

    /// Whether everything was given.
    ///
    /// # Errors
    /// When something is left.
    pub fn finish(&self) -> Result<(), OracleError> {
        match self.calls.lock().unwrap_or_else(PoisonError::into_inner).len() {
            0 => Ok(()),
            n => Err(self.misfit(format!("the model was observed {n} times more than it is"))),
        }
    }

    fn misfit(&self, how: String) -> OracleError {
        OracleError { message: format!("{} does not fit the model: {how}", self.place), code: 1 }
    }
}
