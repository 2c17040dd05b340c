//! The platform simulator does what it says: each route, each fault, each check. A check that finds nothing wrong is
//! worth something only if it finds what was planted, so each has its mistakes here.

mod checks;
mod client;
mod faults;
mod jobs;
mod routes;
mod wire;

use std::time::Duration;

use brightrun_tests::platform::{Options, Platform, Urls};

use client::Client;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);
/// A hold time that passes soon.
const SHORT: Duration = Duration::from_millis(60);

/// A platform whose long polls do not end while a test runs.
fn patient() -> Platform {
    Platform::start_with(Options { take_hold: PATIENCE, stop_hold: PATIENCE, ..Options::default() }).unwrap()
}

/// A platform whose long polls end soon.
fn hasty() -> Platform {
    Platform::start_with(Options { take_hold: SHORT, stop_hold: SHORT, ..Options::default() }).unwrap()
}

fn client(platform: &Platform) -> Client {
    Client::new(platform, &platform.environment(Urls::Full))
}
