//! Files that are either whole or absent: temporary file, fsync, rename, fsync of the folder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{Error, Result};

/// Tells temporary files of one process apart.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Names tried for a temporary file.
const MAX_NAMES: usize = 10_000;

/// Replaces `path` by a file with these bytes. After an error `path` is what it was before.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| file.write_all(bytes))
}

/// Replaces `path` by what `fill` writes, for content that need not be in memory whole.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    replace([Pending::write(path, fill)?])
}

/// A file that is whole and on disk, still under a temporary name; gone when it is dropped before [`replace`] took it.
#[derive(Debug)]
pub struct Pending {
    path: PathBuf,
    temporary: PathBuf,
    renamed: bool,
}

/// Gives files their names, in this order, so that the last one is there only if all are. Where writing one of several
/// fails, none was touched.
pub fn replace<const N: usize>(mut files: [Pending; N]) -> Result<()> {
    for file in &mut files {
        fs::rename(&file.temporary, &file.path).map_err(Error::io("cannot write", &file.path))?;
        file.renamed = true;
    }
    files.iter().try_for_each(|file| sync_folder_of(&file.path))
}

// === impl Pending ===

impl Pending {
    /// Writes and syncs what is to become `path`.
    pub fn write(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<Self> {
        let (temporary, mut file) = create_beside(path)?;
        let pending = Self { path: path.to_owned(), temporary, renamed: false };
        fill(&mut file).and_then(|()| file.sync_all()).map_err(Error::io("cannot write", path))?;
        Ok(pending)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.renamed {
            // The error that counts is the one before.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Removes a folder whose parts are of no use without each other: whoever is killed meanwhile leaves all of it, or
/// nothing by this name. It is no error where it is not there.
pub fn remove_folder(path: &Path) -> Result<()> {
    let failed = |error| Error::io("cannot remove", path)(error);
    for _ in 0..MAX_NAMES {
        let temporary = temporary_beside(path)?;
        match fs::rename(path, &temporary) {
            Ok(()) => {
                sync_folder_of(path)?;
                return fs::remove_dir_all(&temporary).map_err(failed);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Onto what a killed process left.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Err(too_many(path))
}

/// What killed processes left in a folder under names that this module gives. Processes that live have such files too,
/// for a moment: only who is alone in the folder may remove them.
pub fn leftovers(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_temporary) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// `.<name>.<process>-<count>.tmp`
fn is_temporary(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    let end = inner.and_then(|inner| inner.rsplit_once('.')).filter(|(name, _)| !name.is_empty());
    let numbers = end.and_then(|(_, end)| end.split_once('-'));
    numbers.is_some_and(|(process, count)| is_number(process) && is_number(count))
}

/// A name in the same folder that this process has not used yet.
fn temporary_beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not the name of a file"))?;
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{count}.tmp", process::id()));
    Ok(path.with_file_name(temporary))
}

fn too_many(path: &Path) -> Error {
    Error::file(path, format!("{MAX_NAMES} temporary files stand beside it; remove them"))
}

/// Creates a file in the same folder under a name that no other writer uses: process and counter tell them apart, and
/// where that is not enough (process numbers of other machines, files that a killed process left) the counter goes on.
fn create_beside(path: &Path) -> Result<(PathBuf, File)> {
    for _ in 0..MAX_NAMES {
        let temporary = temporary_beside(path)?;
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io("cannot write", path)(error)),
        }
    }
    Err(too_many(path))
}

/// Makes the name of a file or folder durable.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => sync_folder(folder),
        _ => sync_folder(Path::new(".")),
    }
}

/// Makes the names in a folder durable. Windows cannot open folders, and needs no such call.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("cannot sync", folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a.json"]);
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_temporary_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write(&path, b"old").unwrap();
        let error = write_with(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(error.unwrap_err().to_string().contains("a.json: disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.json"]);
        assert!(write(&folder.path().join("missing/a.json"), b"x").is_err());
        assert!(write(Path::new("/"), b"x").is_err());
    }

    #[test]
    fn of_several_files_none_is_touched_where_one_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
        write(&first, b"old").unwrap();
        let both = |fail: bool| -> Result<()> {
            let one = Pending::write(&first, |file| file.write_all(b"new"))?;
            let two = Pending::write(&second, |_| if fail { Err(io::Error::other("disk full")) } else { Ok(()) })?;
            replace([one, two])
        };
        assert!(both(true).unwrap_err().to_string().contains("b: disk full"));
        assert_eq!(fs::read(&first).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a"]);
        both(false).unwrap();
        assert_eq!(fs::read(&first).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a", "b"]);
    }

    #[test]
    fn where_one_name_cannot_be_taken_those_after_it_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let names_wanted = ["a", "b", "c"].map(|name| folder.path().join(name));
        fs::create_dir(&names_wanted[1]).unwrap();
        let files = names_wanted.each_ref().map(|path| Pending::write(path, |file| file.write_all(b"new")).unwrap());
        assert!(replace(files).is_err());
        assert_eq!(names(folder.path()), ["a", "b"]);
    }

    #[test]
    fn what_a_killed_process_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let next = COUNTER.load(Ordering::Relaxed);
        // Other tests move the counter too.
        let left: Vec<PathBuf> = (next..next + 500)
            .map(|count| folder.path().join(format!(".a.json.{}-{count}.tmp", process::id())))
            .collect();
        left.iter().for_each(|path| fs::write(path, b"left").unwrap());
        let path = folder.path().join("a.json");
        write(&path, b"whole").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert!(left.iter().all(|path| fs::read(path).unwrap() == b"left"));
    }

    #[test]
    fn what_a_killed_process_left_is_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let left = [".a.json.123-0.tmp", ".b.9-12.tmp"];
        let other = ["a.json", ".a.json", ".123-0.tmp", ".a.json.tmp", ".a.x-0.tmp", ".a.1-.tmp", "a.1-0.tmp", ".lock"];
        left.iter().chain(&other).for_each(|name| fs::write(folder.path().join(name), b"x").unwrap());
        let mut found = leftovers(folder.path()).unwrap();
        found.sort();
        assert_eq!(found, left.map(|name| folder.path().join(name)));
        assert!(leftovers(&folder.path().join("missing")).is_err());
        // What this module names is what it finds.
        let (temporary, _) = create_beside(&folder.path().join("c")).unwrap();
        assert!(leftovers(folder.path()).unwrap().contains(&temporary));
    }

    #[test]
    fn a_folder_goes_with_all_that_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::create_dir_all(path.join("b/c")).unwrap();
        fs::write(path.join("b/d"), b"x").unwrap();
        remove_folder(&path).unwrap();
        assert!(names(folder.path()).is_empty());
        remove_folder(&path).unwrap();
    }

    #[test]
    fn writers_at_the_same_time_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        std::thread::scope(|scope| {
            for letter in b'a'..b'i' {
                let path = &path;
                scope.spawn(move || (0..20).for_each(|_| write(path, &[letter; 4096]).unwrap()));
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 4096 && bytes.iter().all(|byte| *byte == bytes[0]));
        assert_eq!(names(folder.path()), ["a.json"]);
    }
}
