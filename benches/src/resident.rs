//! Memory of this process, from `/proc` (Linux).

/// Peak resident memory so far in MiB; `None` where the system does not tell.
pub fn peak_mib() -> Option<f64> {
    status("VmHWM")
}

/// Resident memory now in MiB; `None` where the system does not tell.
pub fn current_mib() -> Option<f64> {
    status("VmRSS")
}

fn status(field: &str) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}
