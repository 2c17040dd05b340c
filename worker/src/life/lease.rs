//! One worker for each job, wherever its volume is seen: a lease with fencing.
//!
//! The folder of a job holds `lease-<number>` files, and the one with the highest number counts. Whoever has it writes a new
//! beat into it every few seconds. Another worker takes the job over by making the file with the next number, which only one
//! of several can; before, it has watched the old one without a beat for longer than any pause between beats. Nobody's clock
//! is compared with another's. A worker that was frozen, and comes back after its job was taken over, sees the higher number
//! and stops: it asks before everything that counts.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use brightrun_trainer::artifacts::atomic;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a lease's file is called, before its number.
const PREFIX: &str = "lease-";
/// Digits of that number, so that names sort as numbers do.
const DIGITS: usize = 10;
/// Attempts to be the one that makes the next file.
const ATTEMPTS: usize = 8;

/// How leases are kept.
#[derive(Debug, Clone)]
pub struct LeaseTimes {
    /// Between two beats.
    pub beat: Duration,
    /// Without a beat for so long, a job is taken over.
    pub silence: Duration,
    /// Between two looks at another's lease.
    pub look: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        Self { beat: Duration::from_secs(5), silence: Duration::from_secs(30), look: Duration::from_secs(1) }
    }
}

/// Why there is no lease.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Another worker has the job.
    #[error("worker {holder} is at work on this job; it is not begun twice")]
    Taken {
        /// Who.
        holder: String,
    },
    /// The caller does not want it any more.
    #[error("it was cancelled")]
    Cancelled,
    /// The volume does not work.
    #[error("{}: {error}; check that the volume is there and has room", path.display())]
    Volume {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What is in a lease's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The worker's name.
    holder: String,
    /// Where it runs, where that can be told.
    process: Option<Process>,
    /// Another number each time.
    beat: u64,
    /// Its holder needs it no more.
    released: bool,
}

/// A process, such that no other is taken for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    /// Of the machine's start.
    boot: String,
    /// Of the container: processes of different ones may have the same numbers.
    namespace: String,
    number: u32,
    /// When it began, in the machine's ticks.
    began: u64,
}

/// One worker's right to work on a job, as long as this lives and nobody has taken the job over.
pub struct Lease {
    shared: Arc<Shared>,
    beating: Option<thread::JoinHandle<()>>,
}

struct Shared {
    folder: PathBuf,
    number: u64,
    note: Mutex<Note>,
    lost: AtomicBool,
    over: Mutex<bool>,
    ends: Condvar,
}

// === impl Lease ===

impl Lease {
    /// Claims the job of a folder, which must exist. Where another worker has it, waits until that one is done, is silent for
    /// too long, or has been seen alive; `cancelled` is asked now and then.
    pub fn claim(
        folder: &Path,
        holder: &str,
        times: &LeaseTimes,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, LeaseError> {
        let failed = |error: io::Error| LeaseError::Volume { path: folder.to_owned(), error };
        let note = Note { holder: holder.to_owned(), process: Process::own(), beat: 0, released: false };
        for _ in 0..ATTEMPTS {
            let last = newest(folder).map_err(failed)?;
            if let Some(number) = last {
                wait_for(folder, number, times, cancelled)?;
            }
            let number = last.map_or(1, |last| last + 1);
            match make(folder, number, &note) {
                // While this one looked, others may have come and gone, and their files with them.
                Ok(()) if newest(folder).map_err(failed)? > Some(number) => {
                    fs::remove_file(path(folder, number)).map_err(failed)?;
                }
                Ok(()) => return Self::begin(folder, number, note, times).map_err(failed),
                // Another was quicker.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(LeaseError::Taken { holder: "of another name".to_owned() })
    }

    fn begin(folder: &Path, number: u64, note: Note, times: &LeaseTimes) -> io::Result<Self> {
        for old in numbers(folder)?.into_iter().filter(|old| *old < number) {
            // In nobody's way.
            let _ = fs::remove_file(path(folder, old));
        }
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            number,
            note: Mutex::new(note),
            lost: AtomicBool::new(false),
            over: Mutex::new(false),
            ends: Condvar::new(),
        });
        let (beater, pause) = (shared.clone(), times.beat);
        let beating = thread::Builder::new().name("lease".to_owned()).spawn(move || beater.beat(pause))?;
        Ok(Self { shared, beating: Some(beating) })
    }

    /// Whether the job was still this worker's at the last beat.
    pub fn is_held(&self) -> bool {
        !self.shared.lost.load(Ordering::SeqCst)
    }

    /// Whether the job is still this worker's. It looks at the volume: to be asked before everything that counts.
    pub fn holds(&self) -> bool {
        self.shared.holds()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Lease({} in {})", self.shared.number, self.shared.folder.display())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        *lock(&self.shared.over) = true;
        self.shared.ends.notify_all();
        if let Some(beating) = self.beating.take() {
            // A panic there was reported there.
            let _ = beating.join();
        }
        if self.shared.holds() {
            // Whoever comes next would only wait a little longer.
            let _ = self.shared.write(|note| note.released = true);
        }
    }
}

// === impl Shared ===

impl Shared {
    fn beat(&self, pause: Duration) {
        let mut over = lock(&self.over);
        while !*over {
            over = self.ends.wait_timeout(over, pause).unwrap_or_else(PoisonError::into_inner).0;
            if *over || !self.holds() {
                return;
            }
            if let Err(error) = self.write(|note| note.beat += 1) {
                tracing::warn!("{}: no sign of life can be left: {error}", self.folder.display());
            }
        }
    }

    fn holds(&self) -> bool {
        // A volume that does not answer is no reason to believe that the job is somebody else's.
        let higher = newest(&self.folder).is_ok_and(|newest| newest.is_some_and(|newest| newest > self.number));
        if higher && !self.lost.swap(true, Ordering::SeqCst) {
            tracing::warn!("{}: another worker has taken this job over", self.folder.display());
        }
        !self.lost.load(Ordering::SeqCst)
    }

    fn write(&self, change: impl FnOnce(&mut Note)) -> io::Result<()> {
        let mut note = lock(&self.note);
        change(&mut note);
        atomic::write(&path(&self.folder, self.number), &serde_json::to_vec(&*note)?).map_err(io::Error::other)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{number:0DIGITS$}"))
}

fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).filter(|digits| digits.len() == DIGITS);
        found.extend(number.and_then(|digits| digits.parse::<u64>().ok()));
    }
    Ok(found)
}

fn newest(folder: &Path) -> io::Result<Option<u64>> {
    Ok(numbers(folder)?.into_iter().max())
}

/// Makes a lease's file; only one of several that try does.
fn make(folder: &Path, number: u64, note: &Note) -> io::Result<()> {
    let mut file = File::create_new(path(folder, number))?;
    file.write_all(&serde_json::to_vec(note)?)?;
    file.sync_all()
}

/// What is in a lease's file. One that is being made has nothing in it yet.
fn read(folder: &Path, number: u64) -> io::Result<Option<Note>> {
    Ok(serde_json::from_slice(&fs::read(path(folder, number))?).ok())
}

/// Waits until a lease may be followed by another. Its holder is alive where it beats, and then the job is its own.
fn wait_for(folder: &Path, number: u64, times: &LeaseTimes, cancelled: &dyn Fn() -> bool) -> Result<(), LeaseError> {
    let failed = |error: io::Error| LeaseError::Volume { path: folder.to_owned(), error };
    let (begin, mut first) = (Instant::now(), None);
    loop {
        let note = match read(folder, number) {
            Ok(note) => note,
            // It was followed by another, and removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        if note.as_ref().is_some_and(|note| note.released || note.process.as_ref().is_some_and(Process::is_gone)) {
            return Ok(());
        }
        match &first {
            None => first = Some(note),
            Some(first) if *first != note => {
                let holder = note.map_or_else(|| "of no name".to_owned(), |note| note.holder);
                return Err(LeaseError::Taken { holder });
            }
            Some(_) if begin.elapsed() >= times.silence => return Ok(()),
            Some(_) => {}
        }
        if cancelled() {
            return Err(LeaseError::Cancelled);
        }
        thread::sleep(times.look);
    }
}

// === impl Process ===

impl Process {
    /// This one, where the system can tell.
    fn own() -> Option<Self> {
        let (boot, namespace) = Self::here()?;
        let number = std::process::id();
        Some(Self { boot, namespace, number, began: began(number)? })
    }

    fn here() -> Option<(String, String)> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        Some((boot.trim().to_owned(), namespace.to_str()?.to_owned()))
    }

    /// It ran here and has ended. Of processes elsewhere nothing is known.
    fn is_gone(&self) -> bool {
        let here = Self::here().is_some_and(|(boot, namespace)| boot == self.boot && namespace == self.namespace);
        here && began(self.number) != Some(self.began)
    }
}

/// When a process began, in ticks since the machine did: the 22nd field of `/proc/<number>/stat`, the 20th after the name.
fn began(number: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // A dead one that nobody has buried yet does nothing any more.
    let alive = fields.first().is_some_and(|state| !matches!(*state, "Z" | "X"));
    fields.get(19).filter(|_| alive)?.parse().ok()
}

#[cfg(test)]
mod tests;
