//! A run's events for the person in front of it: a bar on a terminal, a line every few seconds elsewhere. All of it goes to
//! standard error, and none of it can fail the run.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use brightrun_trainer::events::{Event, EventSink, Stage, StepMetrics};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Pause between two lines where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(5);
const READING: &str = "{elapsed_precise} [{bar:32}] {bytes}/{total_bytes} read  ETA {eta}";
const BAR: &str = "{elapsed_precise} [{bar:32}] {pos}/{len} steps  {msg}  ETA {eta}";

/// Shows a run's events.
pub(crate) struct Progress {
    terminal: MultiProgress,
    interactive: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    reading: Option<ProgressBar>,
    steps: u64,
    tokens: u64,
    begin: Option<Instant>,
    last_line: Option<Instant>,
    validation: Option<f64>,
}

// === impl Progress ===

impl Progress {
    pub(crate) fn new(terminal: MultiProgress) -> Self {
        Self { terminal, interactive: io::stderr().is_terminal(), state: Mutex::default() }
    }

    /// Takes a bar for reading away.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.reading.take().inspect(ProgressBar::finish_and_clear);
    }

    fn start(&self, state: &mut State, steps: u64) {
        state.steps = steps;
        state.begin = Some(Instant::now());
        if self.interactive {
            state.bar = Some(self.new_bar(steps, BAR));
        }
    }

    fn new_bar(&self, length: u64, template: &str) -> ProgressBar {
        let bar = self.terminal.add(ProgressBar::new(length));
        // The template is a constant; should it ever be wrong, indicatif's own bar is as good.
        bar.set_style(
            ProgressStyle::with_template(template)
                .map_or_else(|_| ProgressStyle::default_bar(), |s| s.progress_chars("=> ")),
        );
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }

    fn read(&self, state: &mut State, bytes: u64, total: u64) {
        if self.interactive {
            state.reading.get_or_insert_with(|| self.new_bar(total, READING)).set_position(bytes);
            return;
        }
        // Small files are read before a line is due.
        let last = *state.last_line.get_or_insert_with(Instant::now);
        if bytes > 0 && last.elapsed() >= LINE_PAUSE {
            state.last_line = Some(Instant::now());
            tracing::info!("read {} of {} MiB", bytes >> 20, total >> 20);
        }
    }

    fn step(&self, state: &mut State, metrics: &StepMetrics) {
        state.tokens += metrics.tokens;
        let elapsed = state.begin.map_or(0.0, |begin| begin.elapsed().as_secs_f64());
        let message = describe(metrics, state.tokens, elapsed, state.validation);
        if let Some(bar) = &state.bar {
            bar.set_position(metrics.step);
            bar.set_message(message);
            return;
        }
        let due = state.last_line.is_none_or(|last| last.elapsed() >= LINE_PAUSE);
        if due || metrics.step == state.steps {
            state.last_line = Some(Instant::now());
            let left = elapsed / metrics.step.max(1) as f64 * state.steps.saturating_sub(metrics.step) as f64;
            tracing::info!("step {}/{}  {message}  ETA {left:.0} s", metrics.step, state.steps);
        }
    }
}

impl EventSink for Progress {
    fn emit(&self, event: &Event) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Stage { stage } => {
                state.reading.take().inspect(ProgressBar::finish_and_clear);
                if *stage != Stage::Training && *stage != Stage::Evaluating {
                    state.bar.take().inspect(ProgressBar::finish);
                    tracing::info!("{}", stage_name(*stage));
                }
            }
            Event::Started {
                trainable_parameters,
                base_parameters,
                sequences,
                validation_sequences,
                steps,
                epochs,
            } => {
                tracing::info!(
                    "training {trainable_parameters} of {base_parameters} parameters on {sequences} sequences \
                     ({validation_sequences} for validation): {steps} steps, {epochs} epochs"
                );
                self.start(&mut state, *steps);
            }
            Event::Reading { bytes, total } => self.read(&mut state, *bytes, *total),
            Event::Step(metrics) => self.step(&mut state, metrics),
            Event::Evaluation { step, loss, perplexity, .. } => {
                state.validation = Some(*loss);
                if state.bar.is_none() {
                    tracing::info!("after step {step}: validation loss {loss:.4}, perplexity {perplexity:.2}");
                }
            }
            Event::Resumed { step } => tracing::info!("going on after step {step}"),
            Event::Saved { step, bytes } => {
                tracing::debug!("checkpoint after step {step}: {:.1} MiB", *bytes as f64 / f64::from(1 << 20));
            }
            Event::Health { .. } => {}
            Event::Warning { message } => tracing::warn!("{message}"),
            Event::Finished { .. } => drop(state.bar.take().inspect(ProgressBar::finish)),
        }
    }
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Fetching => "reading the dataset",
        Stage::Loading => "loading the base model",
        Stage::Training => "training",
        Stage::Evaluating => "evaluating",
        Stage::Saving => "writing the adapter",
        Stage::Uploading => "uploading",
    }
}

fn describe(metrics: &StepMetrics, tokens: u64, elapsed: f64, validation: Option<f64>) -> String {
    let rate = if elapsed > 0.0 { tokens as f64 / elapsed } else { 0.0 };
    let validation = validation.map(|loss| format!("  validation {loss:.3}")).unwrap_or_default();
    format!("epoch {}  loss {:.3}{validation}  {rate:.0} tokens/s", metrics.epoch, metrics.smoothed_loss)
}

// === impl LogWriter ===

/// Writes log lines to standard error without cutting through a progress bar.
#[derive(Clone)]
pub(crate) struct LogWriter {
    terminal: MultiProgress,
}

impl LogWriter {
    pub(crate) fn new(terminal: MultiProgress) -> Self {
        Self { terminal }
    }
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.terminal.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use brightrun_trainer::events::StepTime;

    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: 2,
            progress: 50.0,
            loss: 2.0,
            smoothed_loss: 2.5,
            learning_rate: 1e-3,
            gradient_norm: 1.0,
            tokens: 100,
            target_tokens: 50,
            tokens_per_second: 50.0,
            time: StepTime::default(),
            peak_memory_bytes: None,
            experts: None,
        }
    }

    #[test]
    fn a_step_is_described_with_its_speed() {
        assert_eq!(describe(&metrics(1), 300, 2.0, None), "epoch 2  loss 2.500  150 tokens/s");
        assert_eq!(describe(&metrics(1), 300, 0.0, Some(3.0)), "epoch 2  loss 2.500  validation 3.000  0 tokens/s");
    }

    #[test]
    fn reading_has_a_bar_of_its_own_that_goes_with_the_stage() {
        let terminal = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let progress = Progress { terminal, interactive: true, state: Mutex::default() };
        progress.emit(&Event::Reading { bytes: 0, total: 10 });
        progress.emit(&Event::Reading { bytes: 7, total: 10 });
        let bar = progress.state.lock().unwrap().reading.clone().unwrap();
        assert_eq!((bar.position(), bar.length()), (7, Some(10)));
        progress.emit(&Event::Stage { stage: Stage::Loading });
        assert!(bar.is_finished() && progress.state.lock().unwrap().reading.is_none());
    }

    #[test]
    fn the_bar_follows_the_steps_and_goes_when_they_end() {
        let terminal = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let progress = Progress { terminal, interactive: true, state: Mutex::default() };
        // A step before the start must not divide by nothing.
        progress.emit(&Event::Step(metrics(0)));
        let (trainable_parameters, base_parameters) = (10, 100);
        progress.emit(&Event::Started {
            trainable_parameters,
            base_parameters,
            sequences: 4,
            validation_sequences: 0,
            steps: 4,
            epochs: 1,
        });
        progress.emit(&Event::Step(metrics(3)));
        let bar = progress.state.lock().unwrap().bar.clone().unwrap();
        assert_eq!((bar.position(), bar.length()), (3, Some(4)));
        assert!(bar.message().contains("loss 2.500"));
        progress.emit(&Event::Stage { stage: Stage::Saving });
        assert!(bar.is_finished() && progress.state.lock().unwrap().bar.is_none());
    }
}
