//! `brightrun resume`: an interrupted run goes on.

use std::path::PathBuf;

use clap::Args;
use indicatif::MultiProgress;

use crate::{
    local_run::{LocalRun, Outcome, Sole},
    progress::Progress,
};

/// The command line of `brightrun resume`.
#[derive(Args)]
pub(crate) struct Options {
    /// The folder of the interrupted job, as brightrun train has named it.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Prints the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Goes on with the run of a folder.
pub(crate) fn resume(options: &Options, terminal: MultiProgress) -> Outcome {
    if !options.folder.is_dir() {
        return Outcome::Refused(vec![format!("there is no folder {}", options.folder.display())]);
    }
    let run = match LocalRun::of_folder(&options.folder) {
        Ok(run) => run,
        Err(error) => return Outcome::Refused(vec![format!("{error:#}")]),
    };
    let progress = Progress::new(terminal).at_price(run.0.usd_per_hour);
    let ended = Sole::claim(&options.folder).and_then(|sole| run.carry_out(&sole, &progress));
    ended.unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")))
}
