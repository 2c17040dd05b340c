//! Runs that end by themselves: because they diverge, because nothing gets better any more.

use std::fs;

use serde_json::{Value, json};

use crate::{
    place::{Place, Said, assert_done, quick, quick_with, run},
    portrait::{adapter_step, result},
};

/// A run that gives up; the steps that are kept.
fn gives_up(parameters: Value, reasons: &[&str]) -> (Place, u64) {
    let place = Place::new(parameters);
    let said = run(&mut place.train());
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    said.assert_says(&["The job failed: ", "is kept as a checkpoint"]);
    said.assert_says(reasons);
    let steps = kept_steps(&said);
    assert_eq!(place.checkpoints(), [format!("step-{steps:08}")]);
    assert!(!place.out().join("adapter").exists() && !place.out().join("result.json").exists());
    (place, steps)
}

fn kept_steps(said: &Said) -> u64 {
    let after = said.stderr.split("what was learnt up to step ").nth(1).unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}

/// No checkpoint but the one that is kept at the end.
fn diverging(changes: Value) -> Value {
    let mut parameters = quick_with(json!({
        "max_steps": 60, "num_epochs": 20, "save_steps": 1000, "eval_steps": 1000, "load_best_at_end": false,
        "learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0, "max_grad_norm": 0,
    }));
    parameters.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    parameters
}

#[test]
fn a_loss_that_grows_ends_the_run() {
    let reasons =
        ["the loss has grown: its mean over 10 steps is ", "try a lower learning rate, or set max_loss_growth"];
    // Steps as large as these do not fall for long.
    let (place, steps) = gives_up(diverging(json!({ "max_loss_growth": 1.01 })), &reasons);
    assert!((10..60).contains(&steps), "{steps}");
    // Whoever goes on from there all the same comes to the same end one step later.
    let again = run(&mut place.resume());
    assert_eq!(again.code, Some(1), "{}", again.stderr);
    again.assert_says(&[&format!("going on after step {steps}"), "the loss has grown"]);
}

#[test]
fn a_run_that_has_learnt_itself_to_death_ends() {
    let reasons = ["no gradient has reached the adapter for 10 steps", "try a lower learning rate"];
    let (_, steps) = gives_up(diverging(json!({ "lora_alpha": 65536, "max_loss_growth": 0 })), &reasons);
    assert!((10..60).contains(&steps), "{steps}");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_before_it_learns_from_it() {
    let first = Place::new(quick());
    assert_done(&run(&mut first.train()));
    let adapter = first.out().join("adapter/adapter_model.safetensors");
    let mut bytes = fs::read(&adapter).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The largest numbers of bf16: their products are none.
    bytes[header..].fill(0x7f);
    fs::write(&adapter, bytes).unwrap();
    let init = first.out().join("adapter");
    let parameters = diverging(json!({ "init_adapter": init, "lora_rank": 2, "max_loss_growth": 0 }));
    let (_, steps) = gives_up(parameters, &["the loss of step 1 is NaN; try a lower learning rate"]);
    assert_eq!(steps, 0);
}

#[test]
fn patience_delivers_the_best_adapter_and_says_so() {
    let constant = json!({ "max_steps": 20, "schedule": "constant", "warmup_steps": 0, "load_best_at_end": false });
    let mut parameters = quick_with(constant.clone());
    let patient = json!({ "early_stopping_patience": 1, "load_best_at_end": null });
    parameters.as_object_mut().unwrap().extend(patient.as_object().unwrap().clone());
    let place = Place::new(parameters);
    let said = run(&mut place.train());
    assert_done(&said);
    let result = result(&place.out());
    let best = result["summary"]["best_validation_step"].as_u64().unwrap();
    let steps = result["current_step"].as_u64().unwrap();
    assert!(best < steps && steps < 20, "{best} of {steps}");
    assert_eq!(adapter_step(&place.out()), best);
    let reason = format!("ended early: the last 1 evaluations were no better than that of step {best} ");
    said.assert_says(&[&reason]);
    assert!(result["warnings"].as_array().unwrap().iter().any(|warning| warning.as_str().unwrap().contains(&reason)));

    // It is the adapter of a run that takes no other steps.
    let mut parameters = quick_with(constant);
    parameters["max_steps"] = best.into();
    assert!(place.portrait().adapter() == Place::unbroken(parameters).adapter());
}
