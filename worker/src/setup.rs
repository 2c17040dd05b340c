//! What the operator has set up on this machine, for every command that takes jobs.

use std::path::PathBuf;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    life::{LeaseTimes, Models, Settings, TimeLimit},
    storage::{SourcePolicy, upload::Store},
};

/// What jobs are carried out with; the variables say the rest.
pub(crate) fn training(
    jobs: PathBuf,
    cache: PathBuf,
    sources: SourcePolicy,
    worker: String,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Settings> {
    Ok(Settings {
        jobs,
        cache,
        models: Models::from_variables(&variable).map_err(anyhow::Error::msg)?,
        sources,
        store: Store::from_variables(&variable).map_err(anyhow::Error::msg)?,
        worker,
        execution: TimeLimit::of_operator(&variable).map_err(anyhow::Error::msg)?,
        lease: LeaseTimes::default(),
    })
}

/// SIGTERM and Ctrl-C: no further job, and what is at hand goes on elsewhere or later.
pub(crate) fn listen(leave: CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("told to go: no further job is begun");
        leave.cancel();
    });
    Ok(())
}
