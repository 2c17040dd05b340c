//! What an operator sets up who sets up nothing, with a lease that tests do not wait for.

use std::{path::Path, time::Duration};

use brightrun_worker::{
    life::{LeaseTimes, Models, Settings, Wanted},
    storage::{SourcePolicy, upload::Store},
    telling::Telling,
};

/// For the jobs of a folder.
pub(crate) fn settings(volume: &Path, worker: &str) -> Settings {
    Settings {
        jobs: volume.join("jobs"),
        cache: volume.join("cache"),
        models: Models::default(),
        sources: SourcePolicy::service(),
        store: Store::Local,
        worker: worker.to_owned(),
        execution: None,
        lease: LeaseTimes {
            beat: Duration::from_millis(50),
            silence: Duration::from_secs(2),
            look: Duration::from_millis(20),
        },
        telling: Telling::from_variables(|_| None, &SourcePolicy::service()).unwrap(),
        life: None,
        hold: Duration::ZERO,
        device: Wanted::Processor,
        usd_per_hour: None,
    }
}
