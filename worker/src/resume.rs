//! `brightrun resume`: an interrupted run goes on.

use std::path::PathBuf;

use clap::Args;
use indicatif::MultiProgress;

use crate::{
    computer::DeviceOption,
    failure,
    local_run::{self, LocalRun, Outcome, Sole},
    progress::Progress,
};

/// The command line of `brightrun resume`.
#[derive(Args)]
pub(crate) struct Options {
    /// The folder of the interrupted job, as brightrun train has named it.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    device: DeviceOption,
    /// Prints the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Goes on with the run of a folder.
pub(crate) fn resume(options: &Options, terminal: MultiProgress) -> Outcome {
    let folder = &options.folder;
    if !folder.is_dir() {
        return Outcome::Refused(vec![format!("there is no folder {}", folder.display())]);
    }
    if !local_run::is_of_job(folder) {
        return Outcome::Refused(vec![local_run::no_run(folder)]);
    }
    let sole = match Sole::claim(folder) {
        Ok(sole) => sole,
        Err(error) => return Outcome::Failed(failure::told(&error)),
    };
    let run = match LocalRun::of_folder(folder) {
        Ok(run) => run,
        Err(error) => return Outcome::Refused(vec![failure::told(&error)]),
    };
    let progress = Progress::new(terminal).at_price(run.0.usd_per_hour);
    let carried = options.device.wanted().map_err(anyhow::Error::msg);
    let carried = carried.and_then(|device| run.carry_out(&sole, &progress, device));
    carried.unwrap_or_else(|error| Outcome::Failed(failure::told(&error)))
}
