//! A disk that is full: what could not be saved is told, nothing partial stands under a final name, and with room again the
//! run goes on to the same bytes.

use serde_json::json;

use crate::{
    place::{Place, Said, files, quick, quick_with},
    shim::{self, Action, Call},
    signals::interrupted,
};

/// The system's words for it.
const NO_SPACE: &str = "No space left on device";

/// No temporary file is left, and what has a final name is whole.
fn assert_nothing_partial(place: &Place, unbroken: &Place, about: &str) {
    let whole = files(&unbroken.out());
    for (name, bytes) in files(&place.out()) {
        assert!(!name.contains(".tmp"), "{about}: {name} is left");
        // Times make no difference in length there.
        let timed = ["metrics.jsonl", "trainer_state.json", "README.md", "result.json", "run.json"];
        if name.starts_with("checkpoints/") || timed.contains(&name.as_str()) {
            assert!(!bytes.is_empty(), "{about}: {name} is empty");
            continue;
        }
        let (_, expected) = whole.iter().find(|(other, _)| *other == name).unwrap_or_else(|| panic!("{about}: {name}"));
        assert_eq!(bytes.len(), expected.len(), "{about}: {name}");
    }
}

fn assert_failed(said: &Said, about: &str) {
    assert_eq!(said.code, Some(1), "{about}: {}", said.stderr);
    said.assert_says(&["The job failed: ", NO_SPACE]);
}

#[test]
fn full_before_any_write_a_run_ends_with_the_reason_and_goes_on_with_room() {
    let unbroken = Place::new(quick());
    let calls = unbroken.calls();
    let portrait = unbroken.portrait();
    let is_write = |call: &&Call| call.line.starts_with("write ") && !call.line.contains("/.step-");
    let writes: Vec<&Call> = calls.iter().filter(is_write).collect();
    assert!(writes.len() > 20, "{writes:?}");
    for call in writes {
        let place = Place::new(quick());
        let said = place.train_until(call, Action::Full(None));
        assert_failed(&said, &call.to_string());
        assert_nothing_partial(&place, &unbroken, &call.to_string());
        place.finish();
        place.portrait().assert_same(&portrait, &format!("full before {call}"));
    }
}

#[test]
fn checkpoints_that_cannot_be_saved_are_told_and_the_run_goes_on() {
    // Without the best one, which is a checkpoint too.
    let parameters = quick_with(json!({ "load_best_at_end": false }));
    let place = Place::new(parameters.clone());
    let said = place.train_until(&first_checkpoint(1), Action::Full(Some("/.step-")));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for step in 1..=3 {
        let warning = format!("the checkpoint of step {step} was not saved: cannot write ");
        let told = |text: &str| text.contains(&warning) && text.contains(NO_SPACE) && text.contains("Make room there");
        assert!(said.stderr.lines().any(told), "{}", said.stderr);
        assert!(place.portrait().warnings.iter().any(|warning| told(warning)));
    }
    place.portrait().assert_same_files_but(&Place::unbroken(parameters), &["README.md"], "without checkpoints");
}

#[test]
fn full_from_the_second_checkpoint_on_a_run_goes_on_from_the_first() {
    let place = Place::new(quick());
    let said = place.train_until(&first_checkpoint(2), Action::Full(None));
    assert_failed(&said, "full");
    said.assert_says(&["the checkpoint of step 2 was not saved", "the checkpoint of step 3 was not saved"]);
    assert_eq!(place.checkpoints(), ["step-00000001"]);
    place.finish().assert_says(&["going on after step 1"]);
    place.portrait().assert_same(&Place::unbroken(quick()), "full from step 2 on");
}

#[test]
fn interrupted_while_it_is_full_a_run_says_that_nothing_was_saved() {
    let place = Place::new(quick_with(json!({ "max_steps": 1000, "num_epochs": 50 })));
    let mut command = place.train();
    shim::at(&mut command, place.path(), &first_checkpoint(2), Action::Full(Some("/.step-")));
    let said = interrupted(&mut command, "TERM", "the checkpoint of step 3 was not saved");
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    said.assert_says(&["The job failed: the checkpoint of step ", NO_SPACE]);
    assert_eq!(place.checkpoints(), ["step-00000001"]);
}

/// The first write of a step's checkpoint.
fn first_checkpoint(step: u64) -> Call {
    Call::first(format!("write out/checkpoints/.step-{step:08}.PID-0.tmp/fingerprint.json"))
}
