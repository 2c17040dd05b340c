//! SIGKILL before every call of a whole run that changes a file or a folder.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    place::{Place, quick},
    portrait::adapter_step,
    shim::{Action, Call},
};

/// Runs at the same time.
const THREADS: usize = 2;
/// So many calls a run of the job has at least: none is overlooked.
const LEAST_CALLS: usize = 200;

#[test]
fn a_run_that_is_killed_before_any_write_goes_on_to_the_same_bytes() {
    let place = Place::new(quick());
    let calls = place.calls();
    let unbroken = place.portrait();
    assert_eq!(adapter_step(&place.out()), 2, "the best one is not the last one");
    assert!(calls.len() >= LEAST_CALLS, "{} calls", calls.len());
    let mut again = Place::new(quick()).calls();
    let mut sorted = calls.clone();
    [&mut again, &mut sorted].into_iter().for_each(|calls| calls.sort());
    assert_eq!(sorted, again, "two runs differ in what they call");

    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let kill = || {
        while let Some(call) = calls.get(next.fetch_add(1, Ordering::Relaxed)) {
            let goes_on = || {
                let place = killed_before(call);
                place.finish();
                place.portrait().assert_same(&unbroken, &format!("killed before {call}"));
            };
            if panic::catch_unwind(AssertUnwindSafe(goes_on)).is_err() {
                failed.lock().unwrap().push(call.to_string());
            }
        }
    };
    thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(kill))));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} calls: {failed:#?}", failed.len(), calls.len());
    println!("killed before each of {} calls", calls.len());
}

fn killed_before(call: &Call) -> Place {
    let place = Place::new(quick());
    let killed = place.train_until(call, Action::Kill);
    assert_eq!(killed.code, None, "not killed before {call}: {}", killed.stderr);
    place
}
