//! What the platform is shown while a job runs.

use std::sync::{Arc, Mutex, OnceLock};

use brightrun_worker::{
    life::Training,
    work::{self, Job, Show, Work},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{bench, ended};

/// Numbers from here on are refused by the platform's database.
const TOO_LARGE: f64 = 10_000.0;

/// Everything that a job shows, in order, before anything of it is left out on its way.
fn shown() -> &'static [Value] {
    static ALL: OnceLock<Vec<Value>> = OnceLock::new();
    ALL.get_or_init(|| {
        let volume = tempfile::tempdir().unwrap();
        let training = Training::new(bench::settings(volume.path(), "one"));
        let input = bench::input("shown", json!({ "max_steps": 12, "eval_steps": 4, "learning_rate": 0.01 }));
        let job = Job::read(json!({ "id": "shown", "input": input })).unwrap();
        let all = Arc::new(Mutex::new(Vec::new()));
        let seen = all.clone();
        let show = Show::new(move |update| seen.lock().unwrap().push(update));
        let (stop, leave) = (CancellationToken::new(), CancellationToken::new());
        let ended = Runtime::new().unwrap().block_on(training.carry_out(job, show, stop, leave));
        assert!(matches!(ended, work::Ended::Answered(answer) if answer.error.is_none()));
        Arc::into_inner(all).unwrap().into_inner().unwrap()
    })
}

/// Those with numbers.
fn metrics() -> impl Iterator<Item = &'static Value> {
    shown().iter().map(|update| &update["metrics"]).filter(|metrics| !metrics.is_null())
}

#[test]
fn what_the_platform_sees_is_what_is_shown() {
    let job = &ended(&[bench::input("seen", json!({}))])[0];
    let seen = &job.view.progress;
    assert!(!seen.is_empty());
    let names = |update: &Value| update.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let known: Vec<Vec<String>> = shown().iter().map(names).collect();
    assert!(seen.iter().all(|update| known.contains(&names(update))), "{seen:#?}");
}

#[test]
fn status_is_always_an_object() {
    for update in shown() {
        let object = update.as_object().unwrap();
        for name in ["status", "stage", "progress", "current_epoch", "current_step", "error_message"] {
            assert!(object.contains_key(name), "{name} is not in {update}");
        }
        assert_eq!((&update["status"], &update["error_message"]), (&json!("running"), &Value::Null));
    }
}

#[test]
fn current_step_and_epoch_are_integers() {
    assert!(shown().iter().all(|update| update["current_step"].is_u64() && update["current_epoch"].is_u64()));
    assert!(shown().iter().any(|update| update["current_step"] == 12));
}

#[test]
fn metrics_are_left_out_until_there_is_a_loss() {
    let (without, with): (Vec<&Value>, Vec<&Value>) =
        shown().iter().partition(|update| update.get("metrics").is_none());
    assert!(!without.is_empty() && !with.is_empty());
    assert!(without.iter().all(|update| update["current_step"] == 0));
    assert!(metrics().all(|metrics| metrics["training_loss"].is_f64()));
}

#[test]
fn losses_and_gradient_norm_are_finite_and_small_enough() {
    for metrics in metrics() {
        for name in ["training_loss", "validation_loss", "learning_rate", "gradient_norm"] {
            let number = metrics.get(name).map(|number| number.as_f64().unwrap());
            assert!(number.is_none_or(|number| number.is_finite() && number.abs() < TOO_LARGE), "{metrics}");
        }
    }
}

#[test]
fn gpu_utilization_is_a_percentage_where_there_is_a_gpu() {
    for metrics in metrics() {
        let share = metrics.get("gpu_utilization").map(|share| share.as_f64().unwrap());
        assert!(share.is_none_or(|share| (0.0..=100.0).contains(&share)), "{metrics}");
    }
}

#[test]
fn in_the_end_all_metrics_are_there() {
    let last = metrics().last().unwrap();
    for name in ["training_loss", "validation_loss", "learning_rate", "throughput", "gradient_norm"] {
        assert!(last[name].is_f64(), "{name} is not in {last}");
    }
}

#[test]
fn progress_is_a_percentage_and_never_falls() {
    let progress: Vec<f64> = shown().iter().map(|update| update["progress"].as_f64().unwrap()).collect();
    assert!(progress.iter().all(|progress| (0.0..=100.0).contains(progress)), "{progress:?}");
    assert!(progress.is_sorted(), "{progress:?}");
    assert!(progress.iter().any(|progress| *progress > 0.0));
}

#[test]
fn the_reported_loss_is_smoothed_and_the_raw_one_stands_beside_it() {
    let spread = |name: &str| {
        let losses: Vec<f64> = metrics().map(|metrics| metrics[name].as_f64().unwrap()).collect();
        losses.windows(2).map(|two| (two[1] - two[0]).abs()).fold(0.0, f64::max)
    };
    let (smoothed, raw) = (spread("training_loss"), spread("training_loss_raw"));
    assert!(smoothed > 0.0 && smoothed < raw, "steps of up to {smoothed} and {raw}");
}

#[test]
fn every_stage_is_shown_in_its_order() {
    let mut stages: Vec<&str> = shown().iter().map(|update| update["stage"].as_str().unwrap()).collect();
    stages.dedup();
    let known = ["fetching", "loading", "training", "evaluating", "saving", "uploading"];
    assert!(stages.iter().all(|stage| known.contains(stage)), "{stages:?}");
    let firsts: Vec<usize> = known.iter().filter_map(|stage| stages.iter().position(|seen| seen == stage)).collect();
    assert_eq!(firsts.len(), known.len(), "{stages:?}");
    assert!(firsts.is_sorted(), "{stages:?}");
}
