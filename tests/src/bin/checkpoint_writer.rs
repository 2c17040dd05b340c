//! Saves checkpoints one after the other until it is killed, and says which are durable. It goes on from the newest one.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use brightrun_tests::checkpoints::{Subject, fingerprint};
use brightrun_trainer::checkpoint::{Checkpoints, Ended, FileSystem};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// The folder of the checkpoints.
    dir: PathBuf,
    /// How many are saved.
    saves: u64,
}

fn main() -> Result<()> {
    let Arguments { dir, saves } = Arguments::parse();
    let mut subject = Subject::new()?;
    let (mut checkpoints, _) = Checkpoints::open(&dir, 2, fingerprint(), Arc::new(FileSystem))?;
    let found = checkpoints.latest()?.checkpoint;
    if let Some(checkpoint) = &found {
        subject.check(checkpoint)?;
    }
    let first = found.map_or(0, |checkpoint| checkpoint.step) + 1;
    for step in first..first + saves {
        let captured = subject.captured(step)?;
        let captured = if step % 5 == 0 { captured.best() } else { captured };
        checkpoints.save(captured).iter().try_for_each(tell)?;
    }
    checkpoints.finish().iter().try_for_each(tell)
}

fn tell(ended: &Ended) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match ended {
        Ok(saved) => writeln!(out, "saved {}", saved.step)?,
        Err(error) if error.is_full() => writeln!(out, "full {}", error.step)?,
        Err(error) => writeln!(out, "failed {}: {error}", error.step)?,
    }
    Ok(out.flush()?)
}
