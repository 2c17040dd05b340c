//! What this machine has to compute with.

use std::{
    fs, thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use brightrun_trainer::{clock::Clock, plan::Machine};

/// The time of this machine.
pub(crate) struct SystemClock {
    begin: Instant,
}

// === impl SystemClock ===

impl SystemClock {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    fn since_1970(&self) -> Duration {
        // A clock before 1970 is not set.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// Its processor, with the memory that a run may take now; `None` where the system does not tell.
pub(crate) fn processor() -> Option<Machine> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    Some(Machine::cpu(threads, memory()?))
}

/// Memory that may be taken now; `None` where the system does not tell.
pub(crate) fn memory() -> Option<u64> {
    let available = memory_available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(available.min(limit_of_container().unwrap_or(u64::MAX)))
}

/// NVIDIA GPUs that the driver shows; 0 without one.
pub(crate) fn gpus() -> u64 {
    fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |entries| entries.flatten().count() as u64)
}

/// The most memory that this process had in use at any moment.
pub(crate) fn peak_memory() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The memory that this process has in use now.
pub(crate) fn resident_memory() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The time that this process has had on processors, in seconds.
pub(crate) fn processor_seconds() -> Option<f64> {
    seconds_of(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// `utime` and `stime` of `/proc/self/stat` (proc(5)), which count in hundredths of a second on every Linux that there is.
fn seconds_of(stat: &str) -> Option<f64> {
    // The name in brackets may hold anything. After it, `utime` is the twelfth word.
    let (_, words) = stat.rsplit_once(')')?;
    let mut words = words.split_whitespace().skip(11);
    let mut hundredths = || words.next()?.parse::<u64>().ok();
    Some((hundredths()? + hundredths()?) as f64 / 100.0)
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn memory_available(text: &str) -> Option<u64> {
    kilobytes(text, "MemAvailable:")
}

/// The entry of a name, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a container's memory is limited to; a number without a unit, or `max`.
fn limit_of_container() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    files.iter().find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let text = "MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(memory_available(text), Some(22_000_000 * 1024));
        assert!(peak_memory().is_some_and(|bytes| bytes > 1 << 20));
        assert!(resident_memory().is_some_and(|bytes| bytes > 1 << 20 && Some(bytes) <= peak_memory()));
        assert_eq!(memory_available("MemTotal: 1 kB\n"), None);
        assert_eq!(memory_available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn time_on_processors_is_read_whatever_the_program_is_called() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 5";
        assert_eq!(seconds_of(stat), Some(2.0));
        assert_eq!(seconds_of("7 (a) S 1"), None);
        assert!(processor_seconds().is_some());
    }
}
