//! SIGTERM and Ctrl-C in every stage: the run keeps what it has learnt, says how to go on, and does.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStderr, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    place::{PAUSED, Place, Said, files, quick, quick_with, run, start},
    shim::{self, Action, Call},
};

/// What a shell says of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// Nobody can tell from outside when a step or an evaluation is under way: attempts until one was hit, each after a
/// pause twice as long as the one before, so that a slow machine and a fast one both get there.
const ATTEMPTS: u32 = 16;

/// A process, and what it has said on standard error.
struct Watched {
    child: Child,
    stderr: BufReader<ChildStderr>,
    read: String,
}

// === impl Watched ===

impl Watched {
    fn start(command: &mut Command) -> Self {
        let mut child = start(command);
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, read: String::new() }
    }

    /// Waits until it has said something.
    fn until(&mut self, text: &str) {
        while !self.read.contains(text) {
            assert!(self.stderr.read_line(&mut self.read).unwrap() > 0, "{text:?} is not in\n{}", self.read);
        }
    }

    fn send(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        // Not there any more: it has ended by itself.
        Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status().unwrap();
    }

    fn end(mut self) -> Said {
        self.stderr.read_to_string(&mut self.read).unwrap();
        Said { stderr: self.read, ..Said::of(self.child.wait_with_output().unwrap()) }
    }
}

/// Interrupts a run when it says something.
pub(crate) fn interrupted(command: &mut Command, signal: &str, when: &str) -> Said {
    interrupted_after(command, signal, when, Duration::ZERO)
}

fn interrupted_after(command: &mut Command, signal: &str, when: &str, pause: Duration) -> Said {
    let mut watched = Watched::start(command);
    watched.until(when);
    thread::sleep(pause);
    watched.send(signal);
    watched.end()
}

/// It ended in order; tells how many steps are saved.
#[track_caller]
fn assert_paused(said: &Said, place: &Place) -> u64 {
    assert_eq!(said.code, Some(PAUSED), "{}", said.stderr);
    said.assert_says(&["Job j is interrupted", &format!("brightrun resume {}", place.out().display())]);
    assert_eq!(said.stdout, "");
    let words: Vec<&str> = said.stderr.split_whitespace().collect();
    let at = words.windows(4).position(|words| words[1..] == ["steps", "are", "saved."]).unwrap();
    let steps = words[at].parse().unwrap();
    let newest = place.checkpoints().last().map_or(0, |name| name.split('-').nth(1).unwrap().parse().unwrap());
    assert_eq!(steps, newest, "{}", said.stderr);
    assert!(!files(&place.out()).iter().any(|(name, _)| name.ends_with(".tmp")));
    steps
}

#[test]
fn before_chosen_writes_both_signals_end_in_order() {
    let unbroken = Place::unbroken(quick());
    let calls = [
        // While the dataset is tokenised, while it is reported on.
        ("sync cache", 0..=0),
        ("create out/.dataset_report.json.PID-6.tmp", 0..=0),
        // While a checkpoint is saved, while an old one is removed.
        ("write out/checkpoints/.step-00000001.PID-0.tmp/adapter.safetensors", 1..=3),
        ("rename out/checkpoints/.step-00000002.PID-0.tmp", 2..=3),
        ("rename out/checkpoints/step-00000001", 2..=3),
        // While the adapter is written.
        ("write out/adapter/.adapter_model.safetensors.PID-7.tmp", 3..=3),
    ];
    for (line, steps) in calls {
        for action in [Action::Terminate, Action::Interrupt] {
            let place = Place::new(quick());
            let said = place.train_until(&Call::first(line), action);
            assert!(steps.contains(&assert_paused(&said, &place)), "{line}: {}", said.stderr);
            place.finish();
            place.portrait().assert_same(&unbroken, &format!("{action:?} before {line}"));
        }
    }
}

#[test]
fn after_the_last_look_at_signals_a_run_ends_as_if_there_was_none() {
    let place = Place::new(quick());
    let said = place.train_until(&Call::first("create out/.result.json.PID-18.tmp"), Action::Terminate);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    place.portrait().assert_same(&Place::unbroken(quick()), "SIGTERM before the result");
}

#[test]
fn while_it_loads_nothing_is_lost() {
    let unbroken = Place::unbroken(quick());
    let place = Place::new(quick());
    let mut said = interrupted(&mut place.train(), "TERM", "loading the base model");
    assert_eq!(assert_paused(&said, &place), 0);
    // With a checkpoint, what is said to be saved is what it holds.
    said =
        place.train_until(&Call::first("create out/checkpoints/.step-00000002.PID-0.tmp/manifest.json"), Action::Kill);
    assert_eq!(said.code, None);
    said = interrupted(&mut place.resume(), "INT", "loading the base model");
    assert_eq!(assert_paused(&said, &place), 1);
    place.finish();
    place.portrait().assert_same(&unbroken, "SIGINT while loading");
}

/// Steps, or evaluations, take nearly all of the time of these.
fn long(evaluating: bool) -> Value {
    let (split, every) = if evaluating { (0.5, 1) } else { (0.05, 1000) };
    quick_with(json!({
        "max_steps": 60, "save_steps": 1000, "eval_steps": every, "validation_split": split, "num_epochs": 10,
    }))
}

#[test]
fn in_a_step_it_ends_after_the_last_whole_one() {
    interrupted_between(false, |progress| progress["steps"].as_u64().unwrap() % 60 != 0);
}

#[test]
fn in_an_evaluation_it_ends_without_it() {
    interrupted_between(true, |progress| progress["evaluated_step"] != progress["steps"]);
}

/// Interrupts runs until one stood where it should; all of them go on to the same bytes.
fn interrupted_between(evaluating: bool, stood: impl Fn(&Value) -> bool) {
    let parameters = long(evaluating);
    let unbroken = Place::unbroken(parameters.clone());
    let when = if evaluating { "after step 5: " } else { "training " };
    for attempt in 0.. {
        assert!(attempt < ATTEMPTS, "never interrupted there");
        let place = Place::new(parameters.clone());
        let (signal, pause) = (if attempt % 2 == 0 { "INT" } else { "TERM" }, Duration::from_millis(1 << attempt));
        let said = interrupted_after(&mut place.train(), signal, when, pause);
        if said.code == Some(0) {
            // The machine was busy, and the signal came late.
            continue;
        }
        let steps = assert_paused(&said, &place);
        assert!(steps < 60, "it went on to its end");
        let hit = place.checkpoints().last().is_some_and(|newest| {
            let path = place.out().join("checkpoints").join(newest).join("progress.json");
            stood(&serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
        });
        place.finish();
        place.portrait().assert_same(&unbroken, &format!("interrupted after {steps} steps"));
        if hit {
            break;
        }
    }
}

#[test]
fn as_json_it_says_that_it_is_paused_on_standard_output_only() {
    let place = Place::new(quick());
    let mut command = place.train();
    shim::at(command.arg("--json"), place.path(), &Call::first("mkdir out/adapter"), Action::Terminate);
    let said = run(&mut command);
    assert_eq!(said.code, Some(PAUSED), "{}", said.stderr);
    let result: Value = serde_json::from_str(&said.stdout).unwrap();
    let expected = json!({ "status": "paused", "job_id": "j", "steps": 3, "resume": format!("brightrun resume {}", place.out().display()) });
    assert_eq!(result, expected);
    assert!(!said.stderr.contains("brightrun resume") && !said.stderr.contains("paused"), "{}", said.stderr);
}

#[test]
fn two_signals_at_once_are_one() {
    let place = Place::new(long(false));
    let mut watched = Watched::start(&mut place.train());
    watched.until("training ");
    watched.send("TERM");
    watched.send("INT");
    assert_paused(&watched.end(), &place);
}

#[test]
fn the_second_signal_ends_it_at_once() {
    let place = Place::new(quick());
    let mut command = place.train();
    let call = Call::first("write out/checkpoints/.step-00000002.PID-0.tmp/adapter.safetensors");
    shim::at(&mut command, place.path(), &call, Action::Wait);
    let mut watched = Watched::start(&mut command);
    place.wait_for(|name| name.contains("/.step-00000002.") && name.ends_with("/adapter.safetensors"));
    watched.send("TERM");
    watched.until("stopping; what was learnt is saved");
    thread::sleep(Duration::from_millis(400));
    watched.send("INT");
    let said = watched.end();
    assert_eq!(said.code, Some(INTERRUPTED), "{}", said.stderr);
    assert_eq!(place.checkpoints(), ["step-00000001"]);
    place.finish();
    place.portrait().assert_same(&Place::unbroken(quick()), "after a second signal");
}
