//! What the operator of this machine has set up in its environment, and whether it works.

use std::{
    env, fmt, fs,
    io::{self, Write},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::Context;
use brightrun_trainer::cards;
use tokio::task::spawn_blocking;

use crate::{
    computer::{Computer, Wanted},
    failure,
    input::FetchOptions,
    life::{LeaseTimes, Models, Settings, TimeLimit},
    prices,
    storage::{
        SourcePolicy,
        upload::{self, Store, UploadLimits},
    },
    telling::Telling,
    this_machine,
};

/// The folders of a volume that are ours.
const JOBS: &str = "brightrun/jobs";
const CACHE: &str = "brightrun/cache";
/// So long a short job's last numbers stay to be seen: the platform looks every 30 seconds.
const HOLD: &str = "BRIGHTRUN_HOLD_SECONDS";
const USUAL_HOLD: Duration = Duration::from_secs(35);
const LONGEST_HOLD: u64 = 600;
/// What an hour of this machine costs, in dollars.
const PRICE: &str = "BRIGHTRUN_USD_PER_HOUR";
const HIGHEST_PRICE: f64 = 10_000.0;
/// RunPod's, about the machine.
const GPU_NAME: &str = "RUNPOD_GPU_NAME";
const GPU_COUNT: &str = "RUNPOD_GPU_COUNT";
/// RunPod's, about what is checked at the start.
const SKIP_CHECKS: &str = "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS";
const SKIP_GPU_CHECK: &str = "RUNPOD_SKIP_GPU_CHECK";
const LEAST_MEMORY: &str = "RUNPOD_MIN_MEMORY_GB";
/// Less memory or less room on the volume is no machine to train on.
const USUAL_LEAST_MEMORY: f64 = 1.0;
const LEAST_ROOM: u64 = 1 << 30;
/// What is written to the volume to see whether it can be.
const PROBE: &str = ".brightrun-probe";

/// Why no job can be done here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unfit {
    /// What was looked at, in one word.
    pub(crate) check: &'static str,
    /// What is wrong, and what to do.
    pub(crate) why: String,
}

// === impl Unfit ===

impl fmt::Display for Unfit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.why)
    }
}

impl Unfit {
    fn new(check: &'static str, why: impl fmt::Display) -> Self {
        Self { check, why: why.to_string() }
    }
}

/// The settings of all jobs of a worker of this name, whose files are on `volume`.
pub(crate) fn settings(volume: &Path, fetching: &FetchOptions, worker: String) -> Result<Settings, Unfit> {
    let volume = std::path::absolute(volume).map_err(|error| Unfit::new("volume", error))?;
    let folders = folders(&volume).map_err(|error| Unfit::new("volume", failure::told(&error)))?;
    let wrong = |why: String| Unfit::new("settings", why);
    let sources = fetching.of_strangers().map_err(|error| wrong(failure::told(&error)))?;
    let settings = settings_in(folders, sources, worker, |name| env::var(name).ok()).map_err(wrong)?;
    Ok(Settings { models: settings.models.with_volume(&volume), ..settings })
}

/// The settings that these variables say, with the folders of jobs and of tokenised datasets.
pub(crate) fn settings_in(
    (jobs, cache): (PathBuf, PathBuf),
    sources: SourcePolicy,
    worker: String,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Settings, String> {
    Ok(Settings {
        jobs,
        cache,
        models: Models::from_variables(&variable)?,
        telling: Telling::from_variables(&variable, &sources)?,
        sources,
        store: Store::from_variables(&variable)?,
        worker,
        execution: TimeLimit::of_operator(&variable)?,
        life: None,
        lease: LeaseTimes::default(),
        hold: hold(&variable)?,
        device: Wanted::from_variables(&variable)?,
        usd_per_hour: price(&variable)?,
    })
}

fn folders(volume: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    anyhow::ensure!(
        volume.is_dir(),
        "there is no folder {}; attach a network volume to the endpoint, or name another folder with BRIGHTRUN_VOLUME",
        volume.display()
    );
    let (jobs, cache) = (volume.join(JOBS), volume.join(CACHE));
    for folder in [&jobs, &cache] {
        fs::create_dir_all(folder).with_context(|| {
            format!("cannot create {}; check that the volume has room and can be written to", folder.display())
        })?;
    }
    Ok((jobs, cache))
}

fn hold(variable: impl Fn(&str) -> Option<String>) -> Result<Duration, String> {
    Ok(number(variable, HOLD, 0..=LONGEST_HOLD)?.map_or(USUAL_HOLD, Duration::from_secs))
}

fn price(variable: impl Fn(&str) -> Option<String>) -> Result<Option<f64>, String> {
    let usual = variable(GPU_NAME).and_then(|name| prices::find(&name)?.usd_per_hour());
    Ok(number(variable, PRICE, 0.0..=HIGHEST_PRICE)?.or(usual))
}

/// A setting that is a number; nothing where nothing is said.
pub(crate) fn number<N: FromStr + PartialOrd + fmt::Display>(
    variable: impl Fn(&str) -> Option<String>,
    name: &str,
    range: RangeInclusive<N>,
) -> Result<Option<N>, String> {
    let Some(text) = variable(name).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    let number = text.trim().parse().ok().filter(|number| range.contains(number));
    number.map(Some).ok_or_else(|| format!("{name} must be a number from {} to {}", range.start(), range.end()))
}

/// Looks at everything that a job will need, before one is taken.
pub(crate) async fn check(settings: &Settings) -> Result<(), Unfit> {
    let variable = |name: &str| env::var(name).ok();
    if !is_set(variable, SKIP_CHECKS) {
        let wanted = settings.device;
        let there = spawn_blocking(move || there(wanted)).await.map_err(|error| Unfit::new("gpu", error))?;
        gpu(variable, there)?;
        memory(variable, this_machine::memory())?;
    }
    let (jobs, models) = (settings.jobs.clone(), settings.models.clone());
    let on_disk = spawn_blocking(move || {
        volume(&jobs).map_err(|error| {
            let why =
                format!("{} cannot be used: {error}; check that the volume is there and has room", jobs.display());
            Unfit::new("disk", why)
        })?;
        models.check().map_err(|why| Unfit::new("model", why))
    });
    let warnings = on_disk.await.map_err(|error| Unfit::new("disk", error))??;
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let store = upload::look(&settings.store, &settings.sources.network, &UploadLimits::of_a_look()).await;
    store.map_err(|error| Unfit::new("store", format!("results could not be delivered: {error}")))
}

/// A setting that is on or off; off where nothing is said.
pub(crate) fn switch(variable: impl Fn(&str) -> Option<String>, name: &str) -> Result<bool, String> {
    match variable(name).map(|text| text.trim().to_ascii_lowercase()).as_deref() {
        None | Some("" | "0" | "false" | "no" | "off") => Ok(false),
        Some("1" | "true" | "yes" | "on") => Ok(true),
        Some(_) => Err(format!("{name} is neither true nor false")),
    }
}

fn is_set(variable: impl Fn(&str) -> Option<String>, name: &str) -> bool {
    switch(variable, name).unwrap_or(false)
}

/// Whether jobs are computed on a card; where they are not, why.
fn there(wanted: Wanted) -> Result<(), String> {
    match (Computer::choose(wanted), wanted) {
        (Ok(Computer::Card(_)), _) | (_, Wanted::Processor) => Ok(()),
        (Ok(Computer::Processor), _) => Err(cards::look(0).err().map_or_else(String::new, |why| why.to_string())),
        (Err(why), _) => Err(why.to_string()),
    }
}

/// A machine that is rented with GPUs has some that can be used.
fn gpu(variable: impl Fn(&str) -> Option<String>, there: Result<(), String>) -> Result<(), Unfit> {
    let rented: u64 = variable(GPU_COUNT).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let why = match there {
        Err(why) if rented > 0 && !is_set(&variable, SKIP_GPU_CHECK) => why,
        _ => return Ok(()),
    };
    let why = format!(
        "this machine was rented with {rented} GPUs, and none can be used: {why}; the platform is to start another \
         ({SKIP_GPU_CHECK}=true trains on the processor all the same)"
    );
    Err(Unfit::new("gpu", why))
}

fn memory(variable: impl Fn(&str) -> Option<String>, available: Option<u64>) -> Result<(), Unfit> {
    let least = variable(LEAST_MEMORY).and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_LEAST_MEMORY);
    let available = available.map(|bytes| bytes as f64 / 1e9);
    match available.filter(|available| *available < least) {
        Some(available) => {
            let why =
                format!("{available:.1} GB of memory are free, and at least {least} are needed; take a larger machine");
            Err(Unfit::new("memory", why))
        }
        None => Ok(()),
    }
}

/// Whether there is room, and whether what is written comes back.
fn volume(folder: &Path) -> io::Result<()> {
    let room = rustix::fs::statvfs(folder)?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free < LEAST_ROOM {
        return Err(io::Error::other(format!(
            "{} MiB are free, and at least {} are needed",
            free >> 20,
            LEAST_ROOM >> 20
        )));
    }
    let path = folder.join(format!("{PROBE}-{:016x}", fastrand::u64(..)));
    let written = fs::File::create_new(&path).and_then(|mut file| {
        file.write_all(PROBE.as_bytes())?;
        file.sync_all()
    });
    let read = written.and_then(|()| fs::read(&path));
    fs::remove_file(&path).or_else(|error| if read.is_err() { Ok(()) } else { Err(error) })?;
    if read? == PROBE.as_bytes() { Ok(()) } else { Err(io::Error::other("what was written does not come back")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set<'a>(name: &'a str, value: &'a str) -> impl Fn(&str) -> Option<String> + 'a {
        move |asked| (asked == name).then(|| value.to_owned())
    }

    #[test]
    fn a_machine_that_hides_its_gpus_is_unfit() {
        let none = || Err("the driver knows no card".to_owned());
        let unfit = gpu(set(GPU_COUNT, "2"), none()).unwrap_err();
        assert!(unfit.check == "gpu" && unfit.why.contains("none can be used: the driver knows no card; "), "{unfit}");
        let skipped = |asked: &str| set(GPU_COUNT, "2")(asked).or_else(|| set(SKIP_GPU_CHECK, "true")(asked));
        let two = gpu(set(GPU_COUNT, "2"), Ok(()));
        for fits in [two, gpu(set(GPU_COUNT, "0"), none()), gpu(|_| None, none()), gpu(skipped, none())] {
            assert_eq!(fits, Ok(()));
        }
    }

    #[test]
    fn too_little_memory_is_told_in_numbers() {
        assert_eq!(memory(|_| None, Some(2_000_000_000)), Ok(()));
        assert_eq!(memory(|_| None, None), Ok(()));
        let error = memory(set(LEAST_MEMORY, "4"), Some(2_000_000_000)).unwrap_err();
        assert!(error.why.starts_with("2.0 GB of memory are free, and at least 4 are needed"), "{error}");
    }

    #[test]
    fn a_volume_is_written_to_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        volume(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(volume(&folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn holding_and_prices_are_checked() {
        assert_eq!((hold(|_| None), hold(set(HOLD, "0"))), (Ok(USUAL_HOLD), Ok(Duration::ZERO)));
        assert!(hold(set(HOLD, "601")).is_err() && hold(set(HOLD, "long")).is_err());
        assert_eq!(price(set(PRICE, "2.5")), Ok(Some(2.5)));
        assert!(price(set(PRICE, "-1")).is_err());
        let usual = price(set(GPU_NAME, "NVIDIA+H100+80GB+HBM3")).unwrap().unwrap();
        assert!((usual - 4.176).abs() < 1e-9, "{usual}");
        assert_eq!(price(|_| None), Ok(None));
    }
}
