//! Processes of tests: one that does not outlive its test, and an ignored test of the same program, run by its name in a
//! process of its own, that prints what it found.

use std::{
    env, fs,
    io::{self, Read},
    ops::{Deref, DerefMut},
    process::{Child, Command, ExitStatus},
};

use anyhow::{Context, Result, ensure};

/// What a test of this program prints after `label` when it runs alone, with the heap that the program has and
/// `threads` threads.
pub fn numbers_of(test: &str, label: &str, threads: usize, variables: &[(&str, &str)]) -> Result<Vec<f64>> {
    let output = Command::new(env::current_exe()?)
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("RAYON_NUM_THREADS", threads.to_string())
        // What the program asks for by itself (`share_one_heap`); here threads of the test's are there before.
        .env("MALLOC_ARENA_MAX", "1")
        .envs(variables.iter().copied())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (_, said) = text.split_once(label).context("the child said nothing")?;
    let line = said.lines().next().unwrap_or_default();
    Ok(line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

/// The most memory that this process had resident at any moment, in bytes. Linux only.
pub fn high_water_mark() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(kib.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// A process that does not outlive its owner.
#[derive(Debug)]
pub struct Running(Child);

// === impl Running ===

impl Running {
    /// Starts it.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.spawn().map(Self)
    }

    /// Ends it at once, as the system does that has no memory left.
    pub fn kill_now(mut self) -> io::Result<ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }

    /// Asks it to end, and waits.
    pub fn terminate(mut self) -> io::Result<ExitStatus> {
        self.signal("-TERM")?;
        self.0.wait()
    }

    /// Sends it a signal, as `kill` names it.
    pub fn signal(&self, name: &str) -> io::Result<ExitStatus> {
        Command::new("kill").args([name, &self.0.id().to_string()]).status()
    }

    /// All that it wrote to its standard output, and to its standard error, where these are pipes.
    pub fn said(&mut self) -> io::Result<(String, String)> {
        let (mut out, mut error) = (String::new(), String::new());
        self.0.stdout.take().map(|mut pipe| pipe.read_to_string(&mut out)).transpose()?;
        self.0.stderr.take().map(|mut pipe| pipe.read_to_string(&mut error)).transpose()?;
        Ok((out, error))
    }
}

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, where all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
