//! `trainer_state.json`: the log of a run in the shape that transformers' `Trainer` writes, so that tools made for it read
//! ours.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::history::{History, finite, perplexity};
use crate::events::{Event, StepMetrics};

/// The name of the file in a job's output folder.
pub const STATE_FILE: &str = "trainer_state.json";

/// What the state says beside what was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Steps the run was to take.
    pub max_steps: u64,
    /// Passes over the data it was to make.
    pub num_train_epochs: u32,
    /// Steps of one pass.
    pub steps_per_epoch: u64,
    /// Examples of a step.
    pub batch_size: usize,
    /// Steps between two evaluations, where that is fixed.
    pub eval_steps: u64,
    /// Steps between two checkpoints, where that is fixed.
    pub save_steps: Option<u64>,
}

/// The fields of transformers' class of that name, which takes no others.
#[derive(Debug, Serialize)]
struct TrainerState {
    best_global_step: Option<u64>,
    best_metric: Option<f64>,
    best_model_checkpoint: Option<String>,
    epoch: f64,
    eval_steps: u64,
    global_step: u64,
    is_hyper_param_search: bool,
    is_local_process_zero: bool,
    is_world_process_zero: bool,
    log_history: Vec<Value>,
    logging_steps: u64,
    max_steps: u64,
    num_input_tokens_seen: u64,
    num_train_epochs: u32,
    save_steps: u64,
    stateful_callbacks: Map<String, Value>,
    total_flos: f64,
    train_batch_size: usize,
    trial_name: Option<String>,
    trial_params: Option<Value>,
}

/// The state after a run.
pub fn trainer_state(history: &History, plan: &Plan) -> impl Serialize + use<> {
    let summary = history.summary();
    let epoch = |step: u64| step as f64 / plan.steps_per_epoch.max(1) as f64;
    let mut tokens = 0;
    let mut log_history: Vec<Value> = Vec::new();
    for moment in history.moments() {
        match moment.event {
            Event::Step(metrics) => {
                tokens += metrics.tokens;
                log_history.push(step_entry(metrics, epoch(metrics.step), tokens));
            }
            Event::Evaluation { step, loss, seconds, .. } => {
                log_history.push(evaluation_entry(*step, *loss, *seconds, epoch(*step)));
            }
            _ => {}
        }
    }
    if summary.steps > 0 {
        let mut entry = json!({ "epoch": epoch(summary.steps), "step": summary.steps, "total_flos": 0.0 });
        insert(&mut entry, "train_loss", summary.mean_loss);
        insert(&mut entry, "train_runtime", Some(summary.training_seconds + summary.evaluation_seconds));
        let speed = |count: u64| (summary.training_seconds > 0.0).then(|| count as f64 / summary.training_seconds);
        insert(&mut entry, "train_steps_per_second", speed(summary.steps));
        insert(&mut entry, "train_tokens_per_second", summary.mean_tokens_per_second);
        log_history.push(entry);
    }
    TrainerState {
        best_global_step: summary.best_validation_step,
        best_metric: summary.best_validation_loss,
        best_model_checkpoint: None,
        epoch: epoch(summary.steps),
        // 0 and "where it suits" are one to the Trainer, which counts these from checkpoints only.
        eval_steps: plan.eval_steps,
        global_step: summary.steps,
        is_hyper_param_search: false,
        is_local_process_zero: true,
        is_world_process_zero: true,
        log_history,
        logging_steps: 1,
        max_steps: plan.max_steps,
        num_input_tokens_seen: summary.tokens,
        num_train_epochs: plan.num_train_epochs,
        save_steps: plan.save_steps.unwrap_or(plan.max_steps),
        stateful_callbacks: Map::new(),
        // Not measured.
        total_flos: 0.0,
        train_batch_size: plan.batch_size,
        trial_name: None,
        trial_params: None,
    }
}

fn step_entry(metrics: &StepMetrics, epoch: f64, tokens: u64) -> Value {
    let mut entry = json!({ "epoch": epoch });
    insert(&mut entry, "grad_norm", Some(metrics.gradient_norm));
    insert(&mut entry, "learning_rate", Some(metrics.learning_rate));
    insert(&mut entry, "loss", Some(metrics.loss));
    insert(&mut entry, "loss_smoothed", Some(metrics.smoothed_loss));
    entry["num_tokens"] = tokens.into();
    entry["step"] = metrics.step.into();
    entry
}

fn evaluation_entry(step: u64, loss: f64, seconds: f64, epoch: f64) -> Value {
    let mut entry = json!({ "epoch": epoch });
    insert(&mut entry, "eval_loss", Some(loss));
    insert(&mut entry, "eval_perplexity", perplexity(loss));
    insert(&mut entry, "eval_runtime", Some(seconds));
    entry["step"] = step.into();
    entry
}

/// JSON has no NaN; readers of this file expect numbers, so a field without one is left out.
fn insert(entry: &mut Value, name: &str, number: Option<f64>) {
    if let Some(number) = number.and_then(finite) {
        entry[name] = number.into();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{evaluation, sample, step};
    use super::*;

    const PLAN: Plan = Plan {
        max_steps: 60,
        num_train_epochs: 3,
        steps_per_epoch: 20,
        batch_size: 8,
        eval_steps: 10,
        save_steps: None,
    };

    fn state(history: &History) -> Value {
        serde_json::to_value(trainer_state(history, &PLAN)).unwrap()
    }

    #[test]
    fn the_log_has_an_entry_per_measurement_and_one_for_all() {
        let history = sample(60);
        let state = state(&history);
        let log = state["log_history"].as_array().unwrap();
        assert_eq!(log.len(), 60 + 6 + 1);
        assert_eq!(log[0]["epoch"], 0.05);
        assert_eq!((&log[10]["eval_runtime"], &log[10]["epoch"]), (&json!(0.25), &json!(0.5)));
        let last = log.last().unwrap();
        assert_eq!(
            (&last["train_runtime"], &last["train_steps_per_second"]),
            (&json!(60.0 * 0.5 + 6.0 * 0.25), &json!(2.0))
        );
        assert_eq!(
            (&state["epoch"], &state["global_step"], &state["num_train_epochs"]),
            (&json!(3.0), &json!(60), &json!(3))
        );
        assert_eq!(state["best_global_step"], history.summary().best_validation_step.unwrap());
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let mut history = History::default();
        history.record(&step(1, f64::NAN));
        history.record(&evaluation(1, f64::INFINITY));
        let state = state(&history);
        assert_eq!(state["best_metric"], Value::Null);
        let log = state["log_history"].as_array().unwrap();
        assert!(
            log[0].get("loss").is_none() && log[1].get("eval_loss").is_none() && log[2].get("train_loss").is_none()
        );
        assert_eq!(log[1]["step"], 1);
    }
}
