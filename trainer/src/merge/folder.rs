//! A folder that is whole or absent.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process;

use crate::{Error, Result};

/// Names tried for a temporary folder; more than one is taken only by what killed processes left.
const MAX_NAMES: usize = 1000;

/// A folder under a temporary name; gone when it is dropped before it took its own.
#[derive(Debug)]
pub(super) struct NewFolder {
    path: PathBuf,
    done: bool,
}

/// Refuses an output folder that holds anything.
pub fn refuse_unless_new(output: &Path) -> Result<()> {
    match fs::read_dir(output) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("cannot write the merged model to", output)(error)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::file(output, "is not empty; name a folder that does not exist yet, or empty it")),
        },
    }
}

fn parent(output: &Path) -> &Path {
    output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

// === impl NewFolder ===

impl NewFolder {
    /// A new folder in the same place as `output`, so that renaming is all that is left to do.
    pub(super) fn beside(output: &Path) -> Result<Self> {
        let name = output.file_name().ok_or_else(|| Error::file(output, "is not the name of a folder"))?;
        fs::create_dir_all(parent(output)).map_err(Error::io("cannot create", parent(output)))?;
        for count in 0..MAX_NAMES {
            let mut temporary = std::ffi::OsString::from(".");
            temporary.push(name);
            temporary.push(format!(".{}-{count}.tmp", process::id()));
            let path = output.with_file_name(temporary);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, done: false }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("cannot create", path)(error)),
            }
        }
        Err(Error::file(output, "many unfinished folders (.….tmp) stand beside it; remove them"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Becomes `output`, which must be absent or empty.
    pub(super) fn take_its_name(mut self, output: &Path) -> Result<()> {
        sync(&self.path)?;
        // An empty folder is replaced; one that was filled meanwhile is not.
        fs::rename(&self.path, output).map_err(Error::io("cannot write", output))?;
        self.done = true;
        sync(parent(output))
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.done {
            // The error that counts is the one before.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("cannot sync", folder))
}
