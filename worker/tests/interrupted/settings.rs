//! A folder with checkpoints of one job is not for another one: every difference is named, and nothing is changed.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    place::{PAUSED, Place, assert_done, files, quick, quick_with, run},
    shim::{Action, Call},
};

/// A run that was killed with its checkpoints whole.
fn begun(parameters: Value) -> Place {
    let place = Place::new(parameters);
    let killed = place.train_until(&Call::first("mkdir out/adapter"), Action::Kill);
    assert_eq!(killed.code, None, "{}", killed.stderr);
    assert_eq!(place.checkpoints(), ["step-00000002", "step-00000003"]);
    place
}

fn checkpoints(place: &Place) -> Vec<(String, Vec<u8>)> {
    files(&place.out().join("checkpoints"))
}

/// A job is refused for these reasons; the run that was begun goes on as if nothing had been asked.
fn refused(place: &Place, job: &str, differences: &[&str]) {
    let before = checkpoints(place);
    let said = place.train_other(job);
    assert_eq!(said.code, Some(1), "{job}: {}", said.stderr);
    said.assert_says(differences);
    said.assert_says(&["of a run with other settings", "give it another job id"]);
    let difference = |line: &&str| line.contains(" then, ") && line.contains(" now");
    let named = said.stderr.lines().filter(difference).count();
    assert_eq!(named, differences.len(), "{}", said.stderr);
    assert!(checkpoints(place) == before, "{job} has changed the checkpoints");
}

#[test]
fn other_settings_are_refused_by_name_and_the_run_goes_on() {
    let place = begun(quick());
    for (name, value, difference) in [
        ("lora_rank", json!(4), "lora_rank: 2 then, 4 now"),
        ("seed", json!(1), "seed: 42 then, 1 now"),
        ("learning_rate", json!(0.01), "learning_rate: 0.03 then, 0.01 now"),
    ] {
        place.write_job("other.json", quick_with(json!({ name: value })));
        refused(&place, "other.json", &[difference]);
    }
    place.write_job("other.json", quick_with(json!({ "lora_rank": 4, "seed": 1, "batch_size": 2 })));
    let all = ["lora_rank: 2 then, 4 now", "seed: 42 then, 1 now", "batch_size: 1 then, 2 now"];
    refused(&place, "other.json", &all);
    place.finish();
    place.portrait().assert_same(&Place::unbroken(quick()), "after refusals");
}

#[test]
fn another_dataset_or_base_model_is_refused() {
    let place = begun(quick());
    let conversations = fs::read_to_string(place.out().join("conversations.jsonl")).unwrap();
    fs::write(place.path().join("other.jsonl"), conversations.replace("chain", "Chain")).unwrap();
    write_job(&place, "dataset.json", json!("other.jsonl"), json!("brightrun/demo-moe"));
    refused(&place, "dataset.json", &["dataset: ", "training examples: "]);

    let base = place.path().join("base");
    fs::create_dir(&base).unwrap();
    for (name, mut bytes) in files(&place.out().join("base")) {
        if name == "model.safetensors" {
            // The lowest bit of a number.
            let last = bytes.len() - 2;
            bytes[last] ^= 1;
        }
        fs::write(base.join(name), bytes).unwrap();
    }
    write_job(&place, "base.json", json!("demo:conversations"), json!("base"));
    refused(&place, "base.json", &["base model in memory: "]);

    // The same data from another place are the same data.
    fs::write(place.path().join("moved.jsonl"), conversations).unwrap();
    write_job(&place, "moved.json", json!("moved.jsonl"), json!("brightrun/demo-moe"));
    assert_done(&place.train_other("moved.json"));
    assert!(place.portrait().adapter() == Place::unbroken(quick()).adapter());
}

fn write_job(place: &Place, name: &str, dataset: Value, base: Value) {
    let parameters = quick_with(json!({ "base_model": base }));
    let input = json!({ "job_id": "j", "dataset_url": dataset, "hyperparameters": parameters });
    fs::write(place.path().join(name), json!({ "input": input }).to_string()).unwrap();
}

#[test]
fn how_often_is_saved_may_change() {
    let place = Place::new(quick());
    let call = Call::first("sync out/checkpoints/.step-00000003.PID-0.tmp");
    assert_eq!(place.train_until(&call, Action::Kill).code, None);
    assert_eq!(place.checkpoints(), ["step-00000002"]);
    place.write_job("other.json", quick_with(json!({ "save_steps": 2, "keep_checkpoints": 3, "save_minutes": 0 })));
    // What was accepted is what `brightrun resume` goes on with.
    let mut train = place.command(&["train", "other.json", "--output", "out", "--cache", "cache"]);
    crate::shim::at(&mut train, place.path(), &Call::first("mkdir out/adapter"), Action::Terminate);
    assert_eq!(run(&mut train).code, Some(PAUSED));
    assert_eq!(noted(&place.out())["parameters"]["keep_checkpoints"], 3);
    place.finish();
    assert!(place.portrait().adapter() == Place::unbroken(quick()).adapter());
}

fn noted(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("checkpoints/run.json")).unwrap()).unwrap()
}
