//! Two processes in one folder: the first one works, the second one is told.

use std::{fs, process::Command, thread};

use crate::{
    place::{PAUSE, Place, Said, assert_done, quick, run, start},
    shim::{self, Action, Call},
};

#[test]
fn the_second_of_two_ends_with_an_error_and_the_first_goes_on() {
    let place = Place::new(quick());
    let mut command = place.train();
    shim::at(&mut command, place.path(), &Call::first("sync cache"), Action::Pause);
    let first = start(&mut command);
    wait_until_it_stands_still(first.id());
    for mut second in [place.train(), place.resume()] {
        let said = run(&mut second);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        said.assert_says(&["another brightrun is at work in ", "out; wait for it, or choose another --output"]);
    }
    let go_on = format!("kill -CONT {}", first.id());
    assert!(Command::new("sh").args(["-c", &go_on]).status().unwrap().success());
    assert_done(&Said::of(first.wait_with_output().unwrap()));
    place.portrait().assert_same(&Place::unbroken(quick()), "with a second one");
}

fn wait_until_it_stands_still(process: u32) {
    let state = || {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        status.lines().find(|line| line.starts_with("State:")).unwrap().to_owned()
    };
    while !state().contains("stopped") {
        assert!(!state().contains("zombie"), "it has ended");
        thread::sleep(PAUSE);
    }
}

#[test]
fn where_no_job_was_begun_resume_leaves_nothing() {
    let place = Place::new(quick());
    fs::create_dir(place.out()).unwrap();
    let said = run(&mut place.resume());
    assert_eq!(said.code, Some(2));
    said.assert_says(&["there is no interrupted run in out"]);
    assert!(fs::read_dir(place.out()).unwrap().next().is_none());
}
