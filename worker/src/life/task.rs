//! One job under way: who is told how far it is, and who may end it.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use brightrun_trainer::{
    events::{Event, Stage},
    stop::{Stop, StopKind},
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Settings, limits::TimeLimit, shown::Shown};
use crate::{telling::Told, work::Show};

/// A job is refused where its training is planned to take so much longer than is left: plans are no promises.
const MUCH_LONGER: f64 = 1.5;

/// Why a job is to end before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// Nobody wants it any more.
    Stopped,
    /// This worker goes.
    Leaving,
    /// Its time is over.
    OutOfTime,
    /// It would take much longer than it may.
    TooLong,
    /// Another worker has taken it over.
    Lost,
}

/// One job under way.
pub(super) struct Task {
    pub(super) settings: Arc<Settings>,
    /// For what waits in the network.
    pub(super) over: CancellationToken,
    /// For the run.
    pub(super) stop: Stop,
    begin: Instant,
    limit: TimeLimit,
    show: Show,
    /// For everybody besides the queue.
    pub(super) told: Told,
    seen: Mutex<Seen>,
    reason: OnceLock<Reason>,
    planned: OnceLock<Duration>,
}

/// What was shown, and when.
#[derive(Default)]
struct Seen {
    shown: Shown,
    /// When there was the first number to show.
    first_metrics: Option<Instant>,
    /// When the newest came.
    last: Option<Instant>,
}

// === impl Task ===

impl Task {
    pub(super) fn new(settings: Arc<Settings>, show: Show, told: Told, limit: TimeLimit) -> Self {
        Self {
            settings,
            over: CancellationToken::new(),
            stop: Stop::default(),
            begin: Instant::now(),
            limit,
            show,
            told,
            seen: Mutex::default(),
            reason: OnceLock::new(),
            planned: OnceLock::new(),
        }
    }

    /// Ends the job when one of these ends.
    pub(super) async fn watch(&self, stop: &CancellationToken, leave: &CancellationToken) -> Infallible {
        let time = async {
            match self.limit.to_work() {
                Some(time) => sleep(time.saturating_sub(self.begin.elapsed())).await,
                None => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            () = stop.cancelled() => Reason::Stopped,
            () = leave.cancelled() => Reason::Leaving,
            () = time => Reason::OutOfTime,
        };
        self.end(reason);
        // Whoever goes may still be stopped.
        stop.cancelled().await;
        self.end(Reason::Stopped);
        std::future::pending().await
    }

    /// Ends the job, for the first reason that is given.
    pub(super) fn end(&self, reason: Reason) {
        let first = *self.reason.get_or_init(|| reason);
        let kind = |reason| match reason {
            Reason::Stopped | Reason::Lost | Reason::TooLong => StopKind::Cancel,
            Reason::Leaving | Reason::OutOfTime => StopKind::Pause,
        };
        // A later reason may be a stronger one: what nobody wants any more need not be saved either.
        self.stop.ask(kind(first).max(kind(reason)));
        self.over.cancel();
    }

    /// Why it ends, if it is to.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.reason.get().copied()
    }

    /// Whether training for so many seconds takes much longer than the job may.
    pub(super) fn is_too_long(&self, seconds: f64) -> bool {
        let Some(time) = self.limit.to_work() else { return false };
        let left = time.saturating_sub(self.begin.elapsed());
        let planned = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let too_long = planned > left.mul_f64(MUCH_LONGER);
        if too_long {
            self.planned.get_or_init(|| planned);
        }
        too_long
    }

    /// What the owner of a job reads whose time is over, or would be.
    pub(super) fn out_of_time(&self, steps: Option<u64>) -> String {
        let (whole, policy) = (self.limit.whole().unwrap_or_default(), self.limit.policy());
        let may = spoken(whole);
        if let Some(planned) = self.planned.get() {
            return format!(
                "training would take about {}, and the job may take {may}. Send it again with a longer {policy} (the operator \
                 sets what holds for all), or with fewer epochs",
                spoken(*planned)
            );
        }
        let saved = match steps {
            Some(steps) if steps > 0 => format!("{steps} steps are saved"),
            _ => "nothing is trained yet".to_owned(),
        };
        let over = match whole.is_zero() {
            true => "the job's time was over when it came here".to_owned(),
            false => format!("the job may take {may}, and they are nearly over"),
        };
        format!("{over}; {saved}. Send it again with the same job_id and a longer {policy}, and it goes on from there")
    }

    /// Leaves the last numbers of a short job to be seen: whoever asks now and then sees only what is shown at that moment.
    pub(super) async fn hold(&self) {
        let (first, last) = {
            let seen = self.seen();
            (seen.first_metrics, seen.last)
        };
        let (hold, (Some(first), Some(last))) = (self.settings.hold, (first, last)) else { return };
        let left = self.limit.to_work().map_or(hold, |time| time.saturating_sub(self.begin.elapsed()));
        if first.elapsed() < hold {
            self.over.run_until_cancelled(sleep(hold.saturating_sub(last.elapsed()).min(left))).await;
        }
    }

    /// Takes note of what happened, and shows it.
    pub(super) fn note(&self, event: &Event) {
        let mut seen = self.seen();
        if seen.shown.note(event) {
            let now = Instant::now();
            if seen.shown.has_metrics() {
                seen.first_metrics.get_or_insert(now);
                seen.last = Some(now);
            }
            self.tell(json!(seen.shown));
        }
    }

    pub(super) fn stage(&self, stage: Stage) {
        self.note(&Event::Stage { stage });
    }

    /// Shows it as it is.
    pub(super) fn present(&self) {
        self.tell(json!(self.seen().shown));
    }

    fn tell(&self, shown: Value) {
        self.told.progress(&shown);
        self.show.progress(shown);
    }

    /// How far it is.
    pub(super) fn shown(&self) -> Shown {
        self.seen().shown.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Short times in seconds, for in minutes one and the same would be longer than itself.
fn spoken(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil() as u64;
    if seconds < 120 { format!("{seconds} seconds") } else { format!("{} minutes", seconds.div_ceil(60)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        computer::Wanted,
        life::{LeaseTimes, Models},
        storage::{SourcePolicy, upload::Store},
        telling::Telling,
        work::Job,
    };
    use brightrun_trainer::events::{StepMetrics, StepTime};

    fn task(policy: Value, hold: Duration) -> Task {
        let settings = Settings {
            jobs: "/nowhere".into(),
            cache: "/nowhere".into(),
            models: Models::default(),
            sources: SourcePolicy::service(),
            store: Store::Local,
            worker: "w".into(),
            execution: None,
            life: None,
            telling: Telling::from_variables(|_| None, &SourcePolicy::service()).unwrap(),
            lease: LeaseTimes::default(),
            hold,
            device: Wanted::Processor,
            usd_per_hour: None,
        };
        let limit = TimeLimit::of(&policy, None, None, Duration::ZERO);
        let told = settings.telling.begin(&Job::read(json!({ "id": "j" })).unwrap(), "j");
        Task::new(Arc::new(settings), Show::new(|_| {}), told, limit)
    }

    fn step() -> Event {
        Event::Step(StepMetrics {
            step: 1,
            epoch: 1,
            progress: 10.0,
            loss: 2.0,
            smoothed_loss: 2.0,
            learning_rate: 1e-4,
            gradient_norm: 1.0,
            tokens: 10,
            target_tokens: 5,
            tokens_per_second: 1.0,
            time: StepTime::default(),
            peak_memory_bytes: None,
            experts: None,
        })
    }

    #[tokio::test]
    async fn a_job_that_would_take_much_longer_than_it_may_is_refused_with_both_times() {
        let task = task(json!({ "executionTimeout": 3_600_000 }), Duration::ZERO);
        // 55 minutes are for work.
        assert!(!task.is_too_long(80.0 * 60.0) && task.is_too_long(90.0 * 60.0));
        let told = task.out_of_time(None);
        assert!(told.contains("about 90 minutes") && told.contains("may take 60"), "{told}");
        assert!(!super::tests::task(Value::Null, Duration::ZERO).is_too_long(f64::INFINITY));
        assert!(task.is_too_long(f64::INFINITY) && !task.is_too_long(f64::NAN.max(0.0)));
    }

    #[tokio::test]
    async fn times_are_told_so_that_they_can_be_compared() {
        let short = task(json!({ "executionTimeout": 10_000 }), Duration::ZERO);
        assert!(short.is_too_long(55.0));
        let told = short.out_of_time(None);
        assert!(told.contains("about 55 seconds, and the job may take 10 seconds. Send"), "{told}");
        let late =
            Task { limit: TimeLimit::of(&json!({ "ttl": 60_000 }), None, None, Duration::from_secs(90)), ..short };
        let told = Task { planned: OnceLock::new(), ..late }.out_of_time(None);
        assert!(told.starts_with("the job's time was over when it came here; nothing"), "{told}");
        assert!(told.contains("a longer policy.ttl,"), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_numbers_of_a_short_job_stay_to_be_seen() {
        let held = |task: Task| async move {
            let begin = tokio::time::Instant::now();
            task.hold().await;
            begin.elapsed().as_secs()
        };
        let hold = Duration::from_secs(35);
        assert_eq!(held(task(Value::Null, hold)).await, 0, "there is nothing to see");
        let short = task(Value::Null, hold);
        short.note(&step());
        assert!((34..=35).contains(&held(short).await));
        let unheld = task(Value::Null, Duration::ZERO);
        unheld.note(&step());
        assert_eq!(held(unheld).await, 0);
        // Its time is not spent on it, and whoever is to go goes.
        let limited = task(json!({ "executionTimeout": 10_000 }), hold);
        limited.note(&step());
        assert!(held(limited).await <= 8);
        let leaving = task(Value::Null, hold);
        leaving.note(&step());
        leaving.end(Reason::Leaving);
        assert_eq!(held(leaving).await, 0);
    }

    #[tokio::test]
    async fn the_first_reason_is_told_and_the_strongest_counts() {
        let task = task(Value::Null, Duration::ZERO);
        task.end(Reason::Leaving);
        assert_eq!(task.stop.asked(), Some(StopKind::Pause));
        task.end(Reason::Stopped);
        assert_eq!((task.reason(), task.stop.asked()), (Some(Reason::Leaving), Some(StopKind::Cancel)));
    }
}
