//! `shim.c`, made with the machine's C compiler: the library between the binary and the file system.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

/// A call that changes a file or a folder, as the shim sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call {
    /// The kind of call and the path in the folder of the run.
    pub(crate) line: String,
    /// The same line may come again; this one comes for so many times.
    pub(crate) count: usize,
}

/// What the shim does when a call is reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    /// SIGKILL before it.
    Kill,
    /// SIGTERM before it.
    Terminate,
    /// SIGINT before it.
    Interrupt,
    /// The whole process stands still until SIGCONT.
    Pause,
    /// It waits for a minute.
    Wait,
    /// From now on nothing can be written; a part of paths: only to these.
    Full(Option<&'static str>),
}

// === impl Call ===

impl Call {
    /// The first call with this line.
    pub(crate) fn first(line: impl Into<String>) -> Self {
        Self { line: line.into(), count: 1 }
    }

    /// The calls of a log, in its order.
    pub(crate) fn all(log: &str) -> Vec<Self> {
        let mut calls: Vec<Self> = Vec::new();
        for line in log.lines() {
            let count = calls.iter().filter(|call| call.line == line).count() + 1;
            calls.push(Self { line: line.to_owned(), count });
        }
        calls
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.line, self.count)
    }
}

/// Puts the shim under a command that works in a folder.
pub(crate) fn under(command: &mut Command, folder: &Path) {
    command.env("LD_PRELOAD", library()).env("SHIM_FOLDER", folder.canonicalize().unwrap());
}

/// The same, and something is done before a call.
pub(crate) fn at(command: &mut Command, folder: &Path, call: &Call, action: Action) {
    under(command, folder);
    let (name, only) = match action {
        Action::Kill => ("kill", None),
        Action::Terminate => ("term", None),
        Action::Interrupt => ("int", None),
        Action::Pause => ("stop", None),
        Action::Wait => ("wait", None),
        Action::Full(only) => ("full", only),
    };
    command.env("SHIM_AT", &call.line).env("SHIM_COUNT", call.count.to_string()).env("SHIM_ACTION", name);
    if let Some(only) = only {
        command.env("SHIM_FULL", only);
    }
}

/// Made once for all tests.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interrupted/shim.c");
        let made =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&path, &source]).arg("-ldl").output();
        let made = made.expect("these tests need a C compiler by the name of cc");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        (folder, path)
    });
    path
}
