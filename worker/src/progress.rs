//! A run's events for the person in front of it: a bar on a terminal, a line every few seconds elsewhere. All of it goes to
//! standard error, and none of it can fail the run.

use std::{
    io::{self, IsTerminal, Write},
    ops::ControlFlow,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use brightrun_trainer::{
    events::{Event, EventSink, Stage, StepMetrics},
    plan::{TimeEstimate, duration, gigabytes},
};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Pause between two lines where there is no terminal.
const LINE_PAUSE: Duration = Duration::from_secs(5);
/// The same where lines are kept, and dear: platforms drop what is more than a little.
const LOG_PAUSE: Duration = Duration::from_secs(20);
const READING: &str = "{elapsed_precise} [{bar:32}] {bytes}/{total_bytes} read  ETA {eta}";
const BAR: &str = "{elapsed_precise} [{bar:32}] {pos}/{len} steps  {msg}";

/// Shows a run's events.
pub(crate) struct Progress {
    terminal: MultiProgress,
    interactive: bool,
    pause: Duration,
    /// Dollars an hour.
    price: Option<f64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bar: Option<ProgressBar>,
    reading: Option<ProgressBar>,
    steps: u64,
    /// Steps that were taken before.
    resumed: u64,
    estimate: Option<TimeEstimate>,
    tokens: u64,
    seconds: f64,
    begin: Option<Instant>,
    last_line: Option<Instant>,
    validation: Option<f64>,
}

// === impl Progress ===

impl Progress {
    pub(crate) fn new(terminal: MultiProgress) -> Self {
        let interactive = io::stderr().is_terminal();
        Self { terminal, interactive, pause: LINE_PAUSE, price: None, state: Mutex::default() }
    }

    /// For a log, whoever reads it and when.
    pub(crate) fn in_lines() -> Self {
        let terminal = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        Self { interactive: false, pause: LOG_PAUSE, ..Self::new(terminal) }
    }

    /// The same with what an hour costs.
    pub(crate) fn at_price(self, usd_per_hour: Option<f64>) -> Self {
        Self { price: usd_per_hour, ..self }
    }

    /// So much of a dataset is read; it is to be read to its end.
    pub(crate) fn reading(&self, bytes: u64, total: u64) -> ControlFlow<()> {
        self.emit(&Event::Reading { bytes, total });
        ControlFlow::Continue(())
    }

    /// Takes bars away.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.reading.take().inspect(ProgressBar::finish_and_clear);
        state.bar.take().inspect(ProgressBar::abandon);
    }

    fn start(&self, state: &mut State, steps: u64) {
        state.steps = steps;
        state.begin = Some(Instant::now());
        if let Some(estimate) = &mut state.estimate {
            // What the steps before had is not known here; they were like those to come.
            let resumed = state.resumed;
            estimate.resume(resumed, estimate.tokens_of(resumed));
        }
        if self.interactive {
            let bar = self.new_bar(steps, BAR);
            bar.set_position(state.resumed);
            state.bar = Some(bar);
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
        if bytes > 0 && last.elapsed() >= self.pause {
            state.last_line = Some(Instant::now());
            tracing::info!("read {} of {} MiB", bytes >> 20, total >> 20);
        }
    }

    fn step(&self, state: &mut State, metrics: &StepMetrics) {
        state.tokens += metrics.tokens;
        state.seconds += metrics.time.total;
        let seconds = metrics.time.total;
        let left = state.estimate.as_mut().map(|estimate| estimate.update(metrics.step, metrics.tokens, seconds));
        let message = self.describe(state, metrics, left);
        if let Some(bar) = &state.bar {
            bar.set_position(metrics.step);
            bar.set_message(message);
            return;
        }
        let due = state.last_line.is_none_or(|last| last.elapsed() >= self.pause);
        if due || metrics.step == state.steps {
            state.last_line = Some(Instant::now());
            tracing::info!("step {}/{}  {message}", metrics.step, state.steps);
        }
    }

    fn describe(&self, state: &State, metrics: &StepMetrics, left: Option<f64>) -> String {
        let rate = if state.seconds > 0.0 { state.tokens as f64 / state.seconds } else { 0.0 };
        let mut text = format!("epoch {}  loss {:.3}", metrics.epoch, metrics.smoothed_loss);
        let mut add = |part: String| text.push_str(&part);
        state.validation.iter().for_each(|loss| add(format!("  validation {loss:.3}")));
        add(format!("  {rate:.0} tokens/s"));
        left.iter().for_each(|left| add(format!("  ETA {}", duration(*left))));
        if let (Some(price), Some(begin)) = (self.price, state.begin) {
            let spent = begin.elapsed().as_secs_f64() * price / 3600.0;
            let all = spent + left.unwrap_or(0.0) * price / 3600.0;
            add(format!("  ${spent:.2} of ${all:.2}"));
        }
        text
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
            Event::Planned { machine, peak_bytes, usable_bytes, steps, tokens, seconds } => {
                tracing::info!(
                    "planned: {} of memory at its peak ({} may be filled), about {} of training ({machine})",
                    gigabytes(*peak_bytes),
                    gigabytes(*usable_bytes),
                    duration(*seconds),
                );
                state.estimate = Some(TimeEstimate::new(*steps, *tokens, *seconds));
            }
            Event::Resumed { step } => {
                state.resumed = *step;
                tracing::info!("going on after step {step}");
            }
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

    fn progress() -> Progress {
        let terminal = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        Progress { interactive: true, ..Progress::new(terminal) }
    }

    #[test]
    fn a_step_is_described_with_its_speed_and_what_is_left() {
        let mut state = State { tokens: 300, seconds: 2.0, ..State::default() };
        let text = |state: &State, left| progress().describe(state, &metrics(1), left);
        assert_eq!(text(&state, None), "epoch 2  loss 2.500  150 tokens/s");
        state.validation = Some(3.0);
        state.seconds = 0.0;
        let told = text(&state, Some(90.0));
        assert!(told.starts_with("epoch 2  loss 2.500  validation 3.000  0 tokens/s  ETA "), "{told}");
    }

    #[test]
    fn dollars_are_those_so_far_and_those_to_come() {
        let hour_ago = Instant::now().checked_sub(Duration::from_secs(3600));
        let state = State { begin: hour_ago, ..State::default() };
        let text = progress().at_price(Some(3.0)).describe(&state, &metrics(1), Some(1800.0));
        // A machine that was started less than an hour ago knows no such moment.
        assert!(hour_ago.is_none() || text.ends_with("  $3.00 of $4.50"), "{text}");
    }

    #[test]
    fn reading_has_a_bar_of_its_own_that_goes_with_the_stage() {
        let progress = progress();
        progress.emit(&Event::Reading { bytes: 0, total: 10 });
        progress.emit(&Event::Reading { bytes: 7, total: 10 });
        let bar = progress.state.lock().unwrap().reading.clone().unwrap();
        assert_eq!((bar.position(), bar.length()), (7, Some(10)));
        progress.emit(&Event::Stage { stage: Stage::Loading });
        assert!(bar.is_finished() && progress.state.lock().unwrap().reading.is_none());
    }

    #[test]
    fn the_bar_follows_the_steps_and_goes_when_they_end() {
        let progress = progress();
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
