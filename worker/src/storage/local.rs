//! A file of this machine: checked, copied and decompressed as if it came from afar.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;

use super::{
    FetchProgress, Fetched, SourcePolicy,
    download::disk,
    error::FetchError,
    partial::{Content, Finished, Partial},
};
use crate::redacted::shown_file;

const BUFFER: usize = 1 << 20;

/// Copies a file. Blocks.
pub(super) fn copy(
    from: &Path,
    target: &Path,
    policy: &SourcePolicy,
    progress: &(dyn Fn(FetchProgress) + Send + Sync),
    cancel: &CancellationToken,
) -> Result<Fetched, FetchError> {
    let (place, most) = (shown_file(from), policy.max_bytes);
    let unreadable = |why: String| FetchError::Unreadable { path: place.clone(), why };
    let read = |error: io::Error| unreadable(error.to_string());
    let (mut file, length) = open(from)?;
    if length > most {
        return Err(FetchError::TooLarge { place, found: format!("{length} bytes"), most });
    }
    let same = |path: PathBuf| path.canonicalize().ok();
    if same(from.to_owned()).is_some_and(|from| same(target.to_owned()) == Some(from)) {
        return Err(unreadable("it is also the file to be written; choose another folder".into()));
    }
    let partial = Partial::open(target, &place).map_err(disk(target))?;
    let mut partial = partial.ok_or_else(|| FetchError::Busy { path: target.to_owned() })?;
    partial.restart(Content::default()).map_err(disk(target))?;
    let mut buffer = vec![0; BUFFER];
    loop {
        if cancel.is_cancelled() {
            return Err(FetchError::Cancelled { place });
        }
        let count = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read(error)),
        };
        partial.append(&buffer[..count]).map_err(disk(target))?;
        if partial.bytes() > most {
            return Err(FetchError::TooLarge { place, found: "it has more bytes".into(), most });
        }
        progress(FetchProgress { bytes: partial.bytes(), total: Some(length) });
    }
    match partial.finish(most, &|| cancel.is_cancelled()).map_err(disk(target))? {
        Finished::Whole { bytes, sha256 } => Ok(Fetched { bytes, sha256, etag: None, resumed: 0 }),
        Finished::TooLarge => Err(FetchError::TooLarge { place, found: "decompressed it has more bytes".into(), most }),
        Finished::Damaged(why) => Err(FetchError::Damaged { place, why }),
        Finished::Stopped => Err(FetchError::Cancelled { place }),
    }
}

/// Opens a file that is one. A named pipe is refused before it is opened, because opening it would wait.
fn open(path: &Path) -> Result<(File, u64), FetchError> {
    let unreadable = |why: String| FetchError::Unreadable { path: shown_file(path), why };
    let facts = path.metadata().map_err(|error| unreadable(error.to_string()))?;
    if !facts.is_file() {
        return Err(unreadable("it is not a file".into()));
    }
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    Ok((file, facts.len()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_copied_within_the_limits() {
        let folder = tempfile::tempdir().unwrap();
        let (from, target) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&from, "hello").unwrap();
        let copy = |from: &Path, most: u64, cancel: &CancellationToken| {
            copy(from, &target, &SourcePolicy { max_bytes: most, ..SourcePolicy::local() }, &|_| {}, cancel)
        };
        let token = CancellationToken::new();
        assert_eq!(copy(&from, 5, &token).unwrap().bytes, 5);
        assert_eq!(fs::read(&target).unwrap(), b"hello");
        assert!(matches!(copy(&from, 4, &token), Err(FetchError::TooLarge { .. })));
        for (path, expected) in
            [(folder.path(), "not a file"), (&folder.path().join("c"), "No such file"), (&target, "also the file")]
        {
            let error = copy(path, 5, &token).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        token.cancel();
        assert!(matches!(copy(&from, 5, &token), Err(FetchError::Cancelled { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
