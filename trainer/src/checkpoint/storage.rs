//! What checkpoints need of a file system, as a protocol: tests put a failing or a dying one in its place.

use std::{
    fmt::Debug,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

/// A place for files and folders.
pub trait Storage: Debug + Send + Sync {
    /// Makes a folder and those above it; no error where it is there. It is durable when this returns.
    fn prepare(&self, folder: &Path) -> io::Result<()>;

    /// Makes one folder; an error where the name is taken.
    fn create_folder(&self, folder: &Path) -> io::Result<()>;

    /// Makes an empty file; an error where the name is taken.
    fn create_file(&self, file: &Path) -> io::Result<Box<dyn Output>>;

    /// Makes durable which names a folder has.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Gives a folder another name, at once.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a folder and the files in it.
    fn remove_folder(&self, folder: &Path) -> io::Result<()>;

    /// The names in a folder, in any order.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;

    /// Reads a file from its beginning.
    fn open(&self, file: &Path) -> io::Result<Box<dyn Read>>;
}

/// A file that is being written.
pub trait Output: Write {
    /// Makes durable what was written.
    fn sync(&mut self) -> io::Result<()>;
}

/// The machine's own file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileSystem;

// === impl FileSystem ===

impl Storage for FileSystem {
    fn prepare(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        let parent = match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.prepare(parent)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            made => made?,
        }
        self.sync_folder(parent)
    }

    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        fs::create_dir(folder)
    }

    fn create_file(&self, file: &Path) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(OpenOptions::new().write(true).create_new(true).open(file)?))
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_folder(&self, folder: &Path) -> io::Result<()> {
        fs::remove_dir_all(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            // Names that are no text are none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn open(&self, file: &Path) -> io::Result<Box<dyn Read>> {
        Ok(Box::new(File::open(file)?))
    }
}

impl Output for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}
