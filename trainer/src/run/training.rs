//! The steps of a run: one after another, measured now and then, saved now and then, from wherever it was left.

use serde::{Deserialize, Serialize};

use super::Data;
use super::closing::Before;
use super::learner::{Learner, fingerprint};
use super::rules::Rules;
use super::watch::Watch;
use super::{RunSpec, reading};
use crate::checkpoint::{Captured, Checkpoints, Ended};
use crate::engine::{Engine, Updated};
use crate::events::{Event, LayerHealth, Stage, StepMetrics, StepTime};
use crate::schedule::Schedule;
use crate::step::{ExpertCounts, Position, StepOptions};
use crate::{Error, Result};

/// Share of the old value in each update of the smoothed loss.
const SMOOTHING: f64 = 0.9;
/// What helps against numbers that are none.
const LOWER: &str = "try a lower learning rate";

/// Where a run stands: with the adapter and the optimiser, all that it takes to go on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Standing {
    /// Optimiser steps taken.
    pub(super) steps: u64,
    /// Passes over the data, begun ones included.
    pub(super) epochs: u32,
    pub(super) first_loss: f64,
    pub(super) smoothed_loss: f64,
    pub(super) tokens: u64,
    pub(super) validation_loss: Option<f64>,
    /// The last step that was evaluated after.
    evaluated_step: u64,
    /// When the job was begun for the first time, in seconds since 1970.
    pub(super) started_at: f64,
    /// Why it ended before its last step.
    pub(super) ended_early: Option<String>,
    /// What its owner was told so far.
    warnings: Vec<String>,
    /// Use of the experts since the last look at the layers.
    experts: ExpertCounts,
    pub(super) rules: Rules,
}

/// The steps of a run.
pub(super) struct Training<'a> {
    parameters: &'a super::Parameters,
    data: &'a Data,
    learner: &'a Learner,
    pub(super) engine: &'a mut dyn Engine,
    schedule: Schedule,
    options: StepOptions,
    pub(super) checkpoints: Checkpoints,
    pub(super) standing: Standing,
    /// Steps in all.
    pub(super) total: u64,
    /// The steps of one pass over the data, and which pass that is.
    epoch: (u32, Vec<Vec<u32>>),
    saved_at: f64,
    saved_step: Option<u64>,
}

// === impl Standing ===

impl Standing {
    fn add(&mut self, loss: f64, tokens: u64) {
        if self.steps == 0 {
            (self.first_loss, self.smoothed_loss) = (loss, loss);
        }
        self.smoothed_loss = SMOOTHING * self.smoothed_loss + (1.0 - SMOOTHING) * loss;
        self.steps += 1;
        self.tokens += tokens;
    }
}

// === impl Training ===

impl<'a> Training<'a> {
    /// From the beginning, or from the newest checkpoint of the same run.
    pub(super) fn begin(
        spec: &'a RunSpec,
        data: &'a Data,
        learner: &'a Learner,
        engine: &'a mut dyn Engine,
        before: &Before,
        watch: &mut Watch,
    ) -> Result<Self> {
        let parameters = &spec.parameters;
        let total = data.report().steps.total;
        let (checkpoints, notes) = Checkpoints::open(
            &spec.checkpoint_dir,
            parameters.keep_checkpoints,
            fingerprint(spec, data, before, learner)?,
            watch.around.storage.clone(),
        )?;
        notes.into_iter().for_each(|note| watch.warn(note));
        let options = StepOptions {
            recompute: learner.recompute,
            dropout: parameters.lora_dropout as f32,
            seed: parameters.seed,
            neftune_alpha: parameters.neftune_noise_alpha as f32,
            aux_coefficient: parameters.router_aux_loss.then_some(learner.config.moe.aux_loss_coefficient),
        };
        let started_at = watch.around.clock.since_1970().as_secs_f64();
        let mut training = Self {
            parameters,
            data,
            learner,
            engine,
            schedule: Schedule::new(parameters.learning_rate, parameters.schedule, parameters.warmup, total)?,
            options,
            checkpoints,
            standing: Standing { started_at, ..Standing::default() },
            total,
            epoch: (0, Vec::new()),
            saved_at: watch.now(),
            saved_step: None,
        };
        training.resume(watch)?;
        Ok(training)
    }

    fn resume(&mut self, watch: &mut Watch) -> Result<()> {
        let found = self.checkpoints.latest()?;
        found.notes.into_iter().for_each(|note| watch.warn(note));
        watch.saved_step = found.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let Some(restored) = found.checkpoint else { return Ok(()) };
        self.standing = restored.progress()?;
        watch.recall(&self.standing.warnings);
        self.saved_step = Some(restored.step);
        watch.history = reading::history(&restored)?;
        restored.restore(&self.learner.adapters, self.engine.optimizer_mut())?;
        self.engine.take_adapters()?;
        watch.emit(&Event::Resumed { step: self.standing.steps });
        Ok(())
    }

    /// Takes all steps that are left. Interrupted, it keeps what was learnt up to the last whole step.
    pub(super) fn run(&mut self, watch: &mut Watch) -> Result<()> {
        watch.stage(Stage::Training);
        let ended = self.steps(watch);
        if matches!(ended, Err(Error::Cancelled)) && watch.is_paused() {
            self.keep(watch)?;
        }
        ended
    }

    fn steps(&mut self, watch: &mut Watch) -> Result<()> {
        // Evaluations and checkpoints are not in the time of a step.
        loop {
            // A run that was interrupted in an evaluation goes on with it.
            let best = self.is_evaluation_due() && self.evaluate(watch)?;
            let delivered = best && self.is_to_be_delivered();
            let over = self.standing.steps == self.total || self.standing.ended_early.is_some();
            // What follows the last step takes time too, and can be interrupted as well.
            let last = over && self.saved_step != Some(self.standing.steps);
            if delivered || last || self.is_save_due(watch) {
                self.save(watch)?;
            }
            let ended = self.checkpoints.poll();
            self.tell(ended, watch);
            if over {
                let ended = self.checkpoints.finish();
                self.tell(ended, watch);
                return Ok(());
            }
            let begin = watch.now();
            self.step(begin, watch)?;
        }
    }

    /// Saves and waits until it is saved; an error where it cannot be, for nothing else is left of the run.
    fn keep(&mut self, watch: &mut Watch) -> Result<()> {
        if self.saved_step != Some(self.standing.steps) {
            self.save(watch)?;
        }
        for ended in self.checkpoints.finish() {
            match ended {
                Ok(saved) => watch.saved(vec![Ok(saved)]),
                Err(error) => return Err(Error::Invalid(error.to_string())),
            }
        }
        Ok(())
    }

    /// One optimiser step. Its micro-batches are read when it is their turn.
    fn step(&mut self, begin: f64, watch: &mut Watch) -> Result<()> {
        let step = self.standing.steps;
        let documents = self.documents(step)?;
        let (clock, learning_rate) = (watch.around.clock, self.schedule.learning_rate(step));
        let targets = self.data.targets(&documents);
        let bins = self.data.training_bins(&documents)?;
        let (mut loss_sum, mut seen, mut time) = (0.0, 0, StepTime::default());
        for (index, bin) in bins.iter().enumerate() {
            watch.go_on()?;
            let before = watch.now();
            let batch = self.data.training_batch(bin)?;
            time.data += watch.now() - before;
            let position = Position { step, micro_batch: index as u64, micro_batches: bins.len() as u64 };
            let report = self.engine.accumulate(&batch, &self.options, position, targets, clock)?;
            loss_sum += report.loss_sum;
            seen += report.targets;
            time.forward += report.forward.as_secs_f64();
            time.backward += report.backward.as_secs_f64();
        }
        reading::same_targets(seen as u64, targets as u64)?;
        let loss = loss_sum / targets as f64;
        if !loss.is_finite() {
            return Err(self.give_up(watch, &format!("the loss of step {} is {loss}; {LOWER}", step + 1)));
        }
        let before = watch.now();
        // A norm that is not finite is refused by the optimiser before it changes anything.
        let Updated { gradient_norm, experts } = match self.engine.update(learning_rate) {
            Ok(updated) => updated,
            Err(error) => return Err(self.give_up(watch, &format!("step {}: {error}", step + 1))),
        };
        let now = watch.now();
        time.optimizer = now - before;
        time.total = now - begin;
        time.idle = (time.total - time.data - time.forward - time.backward - time.optimizer).max(0.0);

        let tokens = self.data.tokens(&documents);
        self.standing.add(loss, tokens);
        self.standing.epochs = self.epoch.0;
        self.standing.experts.merge(&experts);
        watch.emit(&Event::Step(StepMetrics {
            step: self.standing.steps,
            epoch: self.standing.epochs,
            progress: 100.0 * self.standing.steps as f64 / self.total as f64,
            loss,
            smoothed_loss: self.standing.smoothed_loss,
            learning_rate,
            gradient_norm,
            tokens,
            target_tokens: targets as u64,
            tokens_per_second: if time.total > 0.0 { tokens as f64 / time.total } else { 0.0 },
            time,
            peak_memory_bytes: self.engine.peak_memory().or_else(|| (watch.around.peak_memory)()),
            experts: experts.summary(),
        }));
        match self.standing.rules.after_step(self.parameters, loss, gradient_norm) {
            Some(reason) => Err(self.give_up(watch, &reason)),
            None => Ok(()),
        }
    }

    /// The documents of a step, counted from 0.
    fn documents(&mut self, step: u64) -> Result<Vec<u32>> {
        let per_epoch = self.data.report().steps.per_epoch.max(1);
        let epoch = u32::try_from(step / per_epoch + 1)
            .map_err(|_| Error::Invalid(format!("step {step} lies beyond the last pass over the data")))?;
        if self.epoch.0 != epoch {
            self.epoch = (epoch, self.data.epoch(epoch));
        }
        let place = (step % per_epoch) as usize;
        let documents = self.epoch.1.get(place).cloned();
        documents.ok_or_else(|| Error::Invalid(format!("a pass over the data has no step {}", place + 1)))
    }

    fn is_evaluation_due(&self) -> bool {
        let steps = self.standing.steps;
        let every = self.parameters.evaluation_interval(self.data.report().steps.per_epoch);
        let is_place = steps > 0 && (steps.is_multiple_of(every) || steps == self.total);
        self.data.has_validation() && is_place && self.standing.evaluated_step != steps
    }

    /// Measures the validation side; says whether it was never better.
    fn evaluate(&mut self, watch: &mut Watch) -> Result<bool> {
        watch.stage(Stage::Evaluating);
        let (step, begin) = (self.standing.steps, watch.now());
        let loss = reading::validation_loss(self.engine, self.data, watch)?;
        if !loss.is_finite() {
            return Err(self.give_up(watch, &format!("the validation loss after step {step} is {loss}; {LOWER}")));
        }
        let best = self.standing.rules.after_evaluation(self.parameters, step, loss);
        self.standing.validation_loss = Some(loss);
        self.standing.evaluated_step = step;
        watch.emit(&Event::Evaluation { step, loss, perplexity: loss.exp(), best, seconds: watch.now() - begin });
        watch.emit(&Event::Health { step, layers: self.health()? });
        self.standing.experts = ExpertCounts::default();
        self.standing.ended_early = self.standing.rules.early_end(self.parameters);
        watch.stage(Stage::Training);
        Ok(best)
    }

    fn health(&self) -> Result<Vec<LayerHealth>> {
        self.engine.give_adapters()?;
        let norms = self.learner.adapters.layer_norms()?;
        let counts: std::collections::BTreeMap<_, _> = self.standing.experts.layers().collect();
        let layer = |layer: usize| LayerHealth {
            layer,
            tokens_per_expert: counts.get(&layer).map(|counts| counts.tokens.clone()).unwrap_or_default(),
            router_entropy: counts.get(&layer).map(|counts| counts.router_entropy()),
            adapter_norm: norms.get(&layer).copied(),
        };
        let known = |layer: &usize| counts.contains_key(layer) || norms.contains_key(layer);
        Ok((0..self.learner.config.layers.len()).filter(known).map(layer).collect())
    }

    /// The adapter as it is now is the best so far, and the best one is delivered.
    fn is_to_be_delivered(&self) -> bool {
        let is_best = self.standing.rules.best().is_some_and(|best| best.step == self.standing.steps);
        is_best && self.parameters.delivers_best()
    }

    fn is_save_due(&self, watch: &Watch) -> bool {
        let steps = self.standing.steps;
        let by_steps = self.parameters.save_steps.is_some_and(|every| steps > 0 && steps.is_multiple_of(every));
        let minutes = self.parameters.save_minutes;
        let by_time = minutes > 0.0 && watch.now() - self.saved_at >= 60.0 * minutes;
        (by_steps || by_time) && self.saved_step != Some(steps)
    }

    /// Hands a checkpoint to whoever writes it.
    fn save(&mut self, watch: &mut Watch) -> Result<()> {
        let metrics = watch.history.to_bytes()?;
        self.standing.warnings.clone_from(&watch.warnings);
        let steps = self.standing.steps;
        self.engine.give_adapters()?;
        let optimizer = self.engine.optimizer();
        let captured = Captured::take(steps, &self.learner.adapters, optimizer, &self.standing, &metrics)?;
        let ended = self.checkpoints.save(if self.is_to_be_delivered() { captured.best() } else { captured });
        self.tell(ended, watch);
        self.saved_at = watch.now();
        self.saved_step = Some(steps);
        Ok(())
    }

    /// Tells what became of checkpoints. What could not be saved is worth another try, should the run be interrupted.
    fn tell(&mut self, ended: Vec<Ended>, watch: &mut Watch) {
        let mut failed = ended.iter().filter_map(|end| end.as_ref().err());
        if failed.next_back().is_some_and(|failed| self.saved_step == Some(failed.step)) {
            self.saved_step = None;
        }
        watch.saved(ended);
    }

    /// Keeps the last good step, and says why there is no other.
    fn give_up(&mut self, watch: &mut Watch, reason: &str) -> Error {
        let steps = self.standing.steps;
        let kept = match self.keep(watch) {
            Ok(()) => format!("what was learnt up to step {steps} is kept as a checkpoint"),
            Err(error) => format!("what was learnt up to step {steps} could not be kept: {error}"),
        };
        Error::Invalid(format!("{reason}; {kept}"))
    }
}
