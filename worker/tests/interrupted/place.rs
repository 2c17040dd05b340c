//! A folder with one small job, and the binary at work in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    portrait::Portrait,
    shim::{self, Action, Call},
};

/// What a run that was interrupted and can go on ends with.
pub(crate) const PAUSED: i32 = 75;

/// Between two looks at a folder.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);

/// A folder with `job.json`; the binary works there, and writes to `out` and `cache` in it.
pub(crate) struct Place {
    folder: TempDir,
}

/// What a process said and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    /// `None`: ended by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Hyperparameters under which steps take milliseconds and the best adapter is not the last one.
pub(crate) fn quick() -> Value {
    json!({
        "base_model": "brightrun/demo-moe", "max_steps": 3, "save_steps": 1, "eval_steps": 1, "batch_size": 1,
        "max_seq_length": 64, "validation_split": 0.05, "lora_rank": 2, "learning_rate": 0.03,
        "keep_checkpoints": 1, "load_best_at_end": true,
    })
}

/// The same with some of them changed.
pub(crate) fn quick_with(changes: Value) -> Value {
    let mut parameters = quick();
    let (Value::Object(all), Value::Object(changes)) = (&mut parameters, changes) else { unreachable!() };
    all.extend(changes);
    parameters
}

// === impl Place ===

impl Place {
    pub(crate) fn new(hyperparameters: Value) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.write_job("job.json", hyperparameters);
        place
    }

    /// Writes a job with the demo's conversations.
    pub(crate) fn write_job(&self, name: &str, hyperparameters: Value) {
        let input = json!({ "job_id": "j", "dataset_url": "demo:conversations", "hyperparameters": hyperparameters });
        fs::write(self.path().join(name), json!({ "input": input }).to_string()).unwrap();
    }

    /// A folder with the same files.
    pub(crate) fn copy(&self) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        copy_folder(self.path(), place.path());
        place
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.path().join("out")
    }

    /// The names of the checkpoints, the oldest first.
    pub(crate) fn checkpoints(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.out().join("checkpoints")) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("step-")).collect();
        names.sort();
        names
    }

    /// A command that works here.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brightrun"));
        command.args(arguments).current_dir(self.path()).stdin(Stdio::null()).env("RUST_LOG", "info");
        command
    }

    /// Trains the job.
    pub(crate) fn train(&self) -> Command {
        self.command(&["train", "job.json", "--output", "out", "--cache", "cache"])
    }

    /// Trains another job into the same folder.
    pub(crate) fn train_other(&self, job: &str) -> Said {
        run(&mut self.command(&["train", job, "--output", "out", "--cache", "cache"]))
    }

    pub(crate) fn resume(&self) -> Command {
        self.command(&["resume", "out"])
    }

    /// Trains until something happens.
    pub(crate) fn train_until(&self, call: &Call, action: Action) -> Said {
        let mut command = self.train();
        shim::at(&mut command, self.path(), call, action);
        run(&mut command)
    }

    /// Trains to the end, and tells what was called on the way.
    pub(crate) fn calls(&self) -> Vec<Call> {
        let outside = tempfile::tempdir().unwrap();
        let log = outside.path().join("log");
        let mut command = self.train();
        shim::under(&mut command, self.path());
        assert_done(&run(command.env("SHIM_LOG", &log)));
        Call::all(&fs::read_to_string(log).unwrap())
    }

    /// What `brightrun resume` can go on with.
    pub(crate) fn is_noted(&self) -> bool {
        self.out().join("checkpoints/run.json").exists()
    }

    /// What a person does after an interruption, until the run is done: resume, and train again where there is nothing to
    /// resume. Tells what the last command said.
    pub(crate) fn finish(&self) -> Said {
        let resumed = run(&mut self.resume());
        if self.out().join("result.json").exists() && resumed.code == Some(2) {
            assert!(resumed.stderr.contains("is over"), "{}", resumed.stderr);
            return resumed;
        }
        if resumed.code != Some(2) {
            assert_done(&resumed);
            return resumed;
        }
        let no_run =
            resumed.stderr.contains("there is no interrupted run") || resumed.stderr.contains("there is no folder");
        assert!(no_run, "{}", resumed.stderr);
        let trained = run(&mut self.train());
        assert_done(&trained);
        trained
    }

    /// Waits until there is a file with such a path in the output folder.
    pub(crate) fn wait_for(&self, wanted: impl Fn(&str) -> bool) {
        let is_there = || self.out().is_dir() && files_now(&self.out()).iter().any(|name| wanted(name));
        while !is_there() {
            thread::sleep(PAUSE);
        }
    }

    /// What is there after the end of a run.
    pub(crate) fn portrait(&self) -> Portrait {
        Portrait::of(&self.out())
    }

    /// What an unbroken run of this job leaves.
    pub(crate) fn unbroken(hyperparameters: Value) -> Portrait {
        let place = Self::new(hyperparameters);
        assert_done(&run(&mut place.train()));
        place.portrait()
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Said {
    Said::of(command.output().unwrap())
}

/// Starts a command, and leaves it to the caller to read what it says.
pub(crate) fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
pub(crate) fn assert_done(said: &Said) {
    assert_eq!(said.code, Some(0), "{}\n{}", said.stdout, said.stderr);
}

// === impl Said ===

impl Said {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn assert_says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in\n{}", self.stderr);
        }
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy_folder(&from, &to),
            false => _ = fs::copy(&from, &to).unwrap(),
        }
    }
}

/// Every file below a folder with its content, by its path in it.
pub(crate) fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let names = files_now(folder).into_iter();
    names.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

/// The paths of the files below a folder in which somebody may be at work.
fn files_now(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let Ok(entries) = fs::read_dir(&next) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned()),
            }
        }
    }
    found.sort();
    found
}
