//! Ctrl-C and SIGTERM: a run keeps what it has learnt and ends, a service takes no further job.

use std::{
    io, process, thread,
    time::{Duration, Instant},
};

use brightrun_trainer::stop::{Stop, StopKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell says of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;
/// Signals that come so soon after the first are the same wish: `timeout` and some supervisors signal a process and then its
/// group.
const SAME_WISH: Duration = Duration::from_millis(300);

/// From now on the first signal asks for a pause, and the second ends the process where it stands.
pub(crate) fn listen(stop: &Stop) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let stop = stop.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            let first = Instant::now();
            stop.ask(StopKind::Pause);
            tracing::warn!("stopping; what was learnt is saved (once more, and the run ends at once without saving)");
            while {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                first.elapsed() < SAME_WISH
            } {}
            process::exit(INTERRUPTED)
        })
    })?;
    Ok(())
}

/// From now on a signal ends `leave`: no further job, and what is at hand goes on elsewhere or later. Within a runtime.
pub(crate) fn leave(leave: CancellationToken) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("told to go: no further job is begun");
        leave.cancel();
    });
    Ok(())
}
