//! `metrics.jsonl`: everything a run measured, one line per step, evaluation and look at the layers. Every number that
//! another artifact shows follows from it, so whoever doubts one can compute it again.

mod summary;

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

pub use summary::{ExpertSummary, Summary, TimeShares};
pub(super) use summary::{finite, perplexity};

use crate::{
    Error, Result,
    events::{Event, LayerHealth, StepMetrics},
};

/// The name of the file in a job's output folder.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Longest line; the longest there are have a number for every expert of every layer, 16 MB in the largest model that
/// `config` accepts.
const MAX_LINE_BYTES: u64 = 64 * 1024 * 1024;

/// What a run measured, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    events: Vec<Event>,
}

/// A look at the validation sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// After this optimiser step.
    pub step: u64,
    /// Mean loss per target token.
    pub loss: f64,
    /// How long it took.
    pub seconds: f64,
}

/// A measurement and when it was made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment<'a> {
    /// Seconds that steps and evaluations took up to its end. Loading, saving and pauses between two parts of a run are
    /// not in it.
    pub seconds: f64,
    /// What was measured.
    pub event: &'a Event,
}

// === impl History ===

impl History {
    /// Takes note of steps, evaluations and looks at the layers; other events are no measurements. What is measured a
    /// second time replaces the first, and a step that is taken again undoes everything from it on.
    pub fn record(&mut self, event: &Event) {
        let Some((kind, step)) = place(event) else { return };
        if kind == Kind::Step {
            self.keep(|other| other < step);
        } else if let Some(known) = self.known(kind, step) {
            self.events[known] = event.clone();
            return;
        }
        self.events.push(event.clone());
    }

    /// Forgets what came after a step, for going on from there.
    pub fn truncate_after(&mut self, step: u64) {
        self.keep(|other| other <= step);
    }

    /// All lines.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for event in &self.events {
            serde_json::to_writer(&mut bytes, event)
                .map_err(|error| Error::Invalid(format!("a metrics line cannot be written: {error}")))?;
            bytes.push(b'\n');
        }
        Ok(bytes)
    }

    /// Reads a file that [`History::to_bytes`] made.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_reader(File::open(path).map_err(Error::io("cannot open", path))?, path)
    }

    /// Reads lines; `path` is named in errors.
    pub fn from_reader(reader: impl Read, path: &Path) -> Result<Self> {
        let mut reader = BufReader::new(reader);
        let mut history = Self::default();
        for number in 1.. {
            let mut line = Vec::new();
            let limited = &mut (&mut reader).take(MAX_LINE_BYTES + 1);
            limited.read_until(b'\n', &mut line).map_err(Error::io("cannot read", path))?;
            if line.is_empty() {
                break;
            }
            let refuse = |reason: String| Error::file(path, format!("line {number}: {reason}"));
            if line.len() as u64 > MAX_LINE_BYTES {
                return Err(refuse(format!("longer than {MAX_LINE_BYTES} bytes")));
            }
            let event: Event =
                serde_json::from_slice(&line).map_err(|error| refuse(format!("is no measurement: {error}")))?;
            history.append(event).map_err(refuse)?;
        }
        Ok(history)
    }

    /// Adds what must come next.
    fn append(&mut self, event: Event) -> std::result::Result<(), String> {
        let Some((kind, step)) = place(&event) else {
            return Err("expected a step, an evaluation or a look at the layers".into());
        };
        let last = self.last_step();
        let follows = if kind == Kind::Step { step > last } else { step >= last && self.known(kind, step).is_none() };
        if !follows {
            return Err(format!("step {step} does not come after step {last}; the file was changed or put together"));
        }
        self.events.push(event);
        Ok(())
    }

    /// The step of the last measurement; 0 before the first.
    fn last_step(&self) -> u64 {
        self.events.last().and_then(place).map_or(0, |(_, step)| step)
    }

    /// Steps ascend, so what is kept is a beginning.
    fn keep(&mut self, wanted: impl Fn(u64) -> bool) {
        let kept = self.events.partition_point(|event| place(event).is_some_and(|(_, step)| wanted(step)));
        self.events.truncate(kept);
    }

    fn known(&self, kind: Kind, step: u64) -> Option<usize> {
        let recent = self.events.iter().enumerate().rev();
        let same_step = |(_, event): &(usize, &Event)| place(event).is_some_and(|(_, other)| other >= step);
        recent.take_while(same_step).find(|(_, event)| place(event) == Some((kind, step))).map(|(index, _)| index)
    }

    /// Every measurement, with the time it took to get there.
    pub fn moments(&self) -> impl Iterator<Item = Moment<'_>> {
        self.events.iter().scan(0.0, |seconds, event| {
            *seconds += match event {
                Event::Step(metrics) => metrics.time.total,
                Event::Evaluation { seconds, .. } => *seconds,
                _ => 0.0,
            };
            Some(Moment { seconds: *seconds, event })
        })
    }

    /// The optimiser steps.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &StepMetrics> {
        self.events.iter().filter_map(|event| if let Event::Step(metrics) = event { Some(metrics) } else { None })
    }

    /// The evaluations.
    pub fn evaluations(&self) -> impl DoubleEndedIterator<Item = Evaluation> {
        self.events.iter().filter_map(|event| match *event {
            Event::Evaluation { step, loss, seconds, .. } => Some(Evaluation { step, loss, seconds }),
            _ => None,
        })
    }

    /// The looks at the layers.
    pub fn health(&self) -> impl DoubleEndedIterator<Item = (u64, &[LayerHealth])> {
        self.events.iter().filter_map(|event| match event {
            Event::Health { step, layers } => Some((*step, layers.as_slice())),
            _ => None,
        })
    }

    /// What all measurements together say.
    pub fn summary(&self) -> Summary {
        Summary::of(self)
    }
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Step,
    Evaluation,
    Health,
}

/// What a measurement is about and after which step it was made; nothing for other events.
fn place(event: &Event) -> Option<(Kind, u64)> {
    match event {
        Event::Step(metrics) => Some((Kind::Step, metrics.step)),
        Event::Evaluation { step, .. } => Some((Kind::Evaluation, *step)),
        Event::Health { step, .. } => Some((Kind::Health, *step)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{evaluation, sample, step};
    use super::*;
    use crate::events::Stage;

    fn read(text: &str) -> Result<History> {
        History::from_reader(text.as_bytes(), Path::new("metrics.jsonl"))
    }

    #[test]
    fn measurements_become_lines_and_nothing_else_does() {
        let mut history = History::default();
        history.record(&Event::Stage { stage: Stage::Training });
        history.record(&evaluation(5, 1.5));
        let text = String::from_utf8(history.to_bytes().unwrap()).unwrap();
        assert_eq!(
            text,
            "{\"event\":\"evaluation\",\"step\":5,\"loss\":1.5,\"perplexity\":4.4816890703380645,\"best\":true,\
             \"seconds\":0.25}\n"
        );
    }

    #[test]
    fn what_was_written_reads_the_same() {
        let history = sample(60);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS_FILE);
        std::fs::write(&path, history.to_bytes().unwrap()).unwrap();
        assert_eq!(History::read(&path).unwrap(), history);
    }

    #[test]
    fn going_on_from_a_step_gives_what_an_unbroken_run_gives() {
        let whole = sample(20);
        let mut broken = sample(13);
        broken.truncate_after(10);
        assert_eq!((broken.last_step(), broken.evaluations().next_back().unwrap().step), (10, 10));
        whole.events.iter().filter(|event| place(event).unwrap().1 > 10).for_each(|event| broken.record(event));
        assert_eq!(broken.to_bytes().unwrap(), whole.to_bytes().unwrap());
    }

    #[test]
    fn what_is_measured_again_counts_once() {
        let mut history = sample(20);
        let before = history.clone();
        let again: Vec<Event> = history.events.iter().filter(|event| place(event).unwrap().1 == 20).cloned().collect();
        again[1..].iter().for_each(|event| history.record(event));
        assert_eq!(history, before, "evaluations and looks at the layers replace their like");
        history.record(&step(15, 3.0));
        assert_eq!(history.last_step(), 15);
        assert_eq!(history.steps().count(), 15);
        assert_eq!(history.steps().next_back().unwrap().loss, 3.0);
    }

    #[test]
    fn numbers_that_are_none_survive_as_none() {
        let mut history = History::default();
        history.record(&step(1, f64::INFINITY));
        history.record(&evaluation(1, f64::NAN));
        let bytes = history.to_bytes().unwrap();
        let back = read(std::str::from_utf8(&bytes).unwrap()).unwrap();
        assert!(back.steps().next().unwrap().loss.is_nan());
        assert_eq!(back.to_bytes().unwrap(), bytes);
        assert_eq!(back.summary(), history.summary());
        assert_eq!(back.summary().first_loss, None);
    }

    #[test]
    fn a_damaged_file_is_refused_by_line() {
        let good = String::from_utf8(sample(3).to_bytes().unwrap()).unwrap();
        let lines: Vec<&str> = good.lines().collect();
        for (text, reason) in [
            (format!("{}\nnonsense\n", lines[0]), "line 2: is no measurement"),
            (format!("{}\n{}", lines[0], &lines[1][..40]), "line 2: is no measurement"),
            (format!("{}\n{}\n", lines[1], lines[0]), "line 2: step 1 does not come after step 2"),
            (format!("{0}\n{0}\n", lines[0]), "line 2: step 1 does not come after step 1"),
            ("{\"event\":\"stage\",\"stage\":\"loading\"}\n".into(), "line 1: expected a step"),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.starts_with("metrics.jsonl: ") && error.contains(reason), "{error}");
        }
        assert_eq!(read("").unwrap(), History::default());
    }

    proptest! {
        #[test]
        fn every_number_survives(loss in proptest::num::f64::NORMAL, time in 0.0..1e9f64, tokens: u64) {
            let Event::Step(mut metrics) = step(1, loss) else { unreachable!() };
            (metrics.tokens, metrics.time.total) = (tokens, time);
            let mut history = History::default();
            history.record(&Event::Step(metrics));
            let bytes = history.to_bytes().unwrap();
            prop_assert_eq!(History::from_reader(bytes.as_slice(), Path::new("m")).unwrap(), history);
        }
    }
}
