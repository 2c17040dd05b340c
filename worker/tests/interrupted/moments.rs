//! SIGKILL at random moments, again and again, until the run is done all the same.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    place::{Place, assert_done, quick_with, run, start},
    portrait::Portrait,
};

/// Processes that are killed in all, by so many threads.
const KILLS: usize = 50;
const THREADS: usize = 2;
const SEED: u64 = 7;
/// After so many kills a run is given twice the time.
const PATIENCE: f64 = 10.0;

#[test]
fn a_run_that_is_killed_at_fifty_moments_goes_on_to_the_same_bytes() {
    let parameters = quick_with(json!({ "max_steps": 8, "keep_checkpoints": 2, "batch_size": 2 }));
    let place = Place::new(parameters.clone());
    let begin = Instant::now();
    assert_done(&run(&mut place.train()));
    let (time, unbroken) = (begin.elapsed(), place.portrait());

    let killer = |thread: usize| {
        let mut random = fastrand::Rng::with_seed(SEED + thread as u64);
        let (mut kills, mut runs) = (0, 0);
        while kills < KILLS / THREADS {
            let place = Place::new(parameters.clone());
            kills += kill_until_done(&place, time, &mut random, &unbroken);
            runs += 1;
        }
        (kills, runs)
    };
    let totals: Vec<(usize, usize)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || killer(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (kills, runs) = totals.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    assert!(kills >= KILLS);
    println!("{kills} kills in {runs} runs of {time:?}");
}

/// Gives a run less time than it needs, and less still, until one command comes to its end.
fn kill_until_done(place: &Place, time: Duration, random: &mut fastrand::Rng, unbroken: &Portrait) -> usize {
    let mut kills = 0;
    loop {
        let mut command = if place.is_noted() { place.resume() } else { place.train() };
        let mut child = start(&mut command);
        // The machine may be slower now than it was when the time was measured.
        thread::sleep(time.mul_f64(random.f64() * (1.0 + kills as f64 / PATIENCE)));
        child.kill().unwrap();
        if child.wait().unwrap().code().is_some() {
            break;
        }
        kills += 1;
    }
    let said = place.finish();
    place.portrait().assert_same(unbroken, &format!("after {kills} kills: {}", said.stderr));
    kills
}
