//! What a file is before it is sent: its length and its hashes, all of it and part by part, in one pass over the disk.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use aws_sdk_s3::primitives::{ByteStream, Length};
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::error::UploadError;

/// The file is read in pieces of so many bytes.
const READ_BYTES: usize = 256 << 10;

/// A piece of a file that is sent by one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) bytes: u64,
    pub(super) sha256: [u8; 32],
    pub(super) md5: [u8; 16],
}

/// A file and what it holds.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// All of it.
    pub(super) whole: Piece,
    /// One after another; a single one where all of it goes by one request.
    pub(super) parts: Vec<Piece>,
    modified: Option<SystemTime>,
}

// === impl Measured ===

impl Measured {
    /// Reads the file. `part_bytes` gives the size of the parts for a file's length.
    pub(super) fn of(
        name: &str,
        path: &Path,
        part_bytes: impl Fn(u64) -> u64,
        cancel: &CancellationToken,
    ) -> Result<Self, UploadError> {
        let disk = |error| UploadError::Disk { path: path.to_owned(), error };
        let mut file = File::open(path).map_err(disk)?;
        let metadata = file.metadata().map_err(disk)?;
        if !metadata.is_file() {
            return Err(disk(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")));
        }
        let part_bytes = part_bytes(metadata.len()).max(1);
        let (mut whole, mut parts) = (Hashes::default(), Vec::new());
        let mut buffer = vec![0; READ_BYTES];
        let mut part = Hashes::default();
        loop {
            if cancel.is_cancelled() {
                return Err(UploadError::Cancelled);
            }
            let most = buffer.len().min(usize::try_from(part_bytes - part.bytes).unwrap_or(usize::MAX));
            let read = file.read(&mut buffer[..most]).map_err(disk)?;
            if read == 0 {
                break;
            }
            whole.update(&buffer[..read]);
            part.update(&buffer[..read]);
            if part.bytes == part_bytes {
                parts.push(std::mem::take(&mut part).piece(whole.bytes));
            }
        }
        if part.bytes > 0 || parts.is_empty() {
            parts.push(part.piece(whole.bytes));
        }
        let bytes = whole.bytes;
        let measured = Self {
            name: name.to_owned(),
            path: path.to_owned(),
            whole: whole.piece(bytes),
            parts,
            modified: metadata.modified().ok(),
        };
        if bytes == metadata.len() { Ok(measured) } else { Err(measured.changed()) }
    }

    /// Whether the file still is as it was read, as far as length and time tell.
    pub(super) fn still_there(&self) -> Result<(), UploadError> {
        let now: Metadata =
            fs::metadata(&self.path).map_err(|error| UploadError::Disk { path: self.path.clone(), error })?;
        let same = now.len() == self.whole.bytes && now.modified().ok() == self.modified;
        if same { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> UploadError {
        UploadError::ChangedOnDisk { path: self.path.clone() }
    }

    /// A piece as the body of a request, read from disk as it goes.
    pub(super) async fn body(&self, piece: &Piece) -> Result<ByteStream, UploadError> {
        self.still_there()?;
        let body = ByteStream::read_from().path(&self.path).offset(piece.offset).buffer_size(READ_BYTES);
        let body = body.length(Length::Exact(piece.bytes)).build().await;
        body.map_err(|error| UploadError::Disk { path: self.path.clone(), error: io::Error::other(error) })
    }

    /// The entity tag that S3 gives to an object that was sent in parts.
    pub(super) fn tag_of_parts(&self) -> String {
        let mut all = Md5::new();
        self.parts.iter().for_each(|part| all.update(part.md5));
        format!("{}-{}", hex::encode(all.finalize()), self.parts.len())
    }
}

#[derive(Default)]
struct Hashes {
    bytes: u64,
    sha256: Sha256,
    md5: Md5,
}

impl Hashes {
    fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.sha256.update(bytes);
        self.md5.update(bytes);
    }

    /// The piece that ends at this place.
    fn piece(self, end: u64) -> Piece {
        Piece {
            offset: end - self.bytes,
            bytes: self.bytes,
            sha256: self.sha256.finalize().into(),
            md5: self.md5.finalize().into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(bytes: &[u8], part: u64) -> Measured {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, bytes).unwrap();
        Measured::of("a", &path, |_| part, &CancellationToken::new()).unwrap()
    }

    #[test]
    fn parts_cover_the_file() {
        for (bytes, part, expected) in
            [(0, 10, vec![(0, 0)]), (10, 10, vec![(0, 10)]), (25, 10, vec![(0, 10), (10, 10), (20, 5)])]
        {
            let content: Vec<u8> = (0..bytes).collect();
            let measured = measured(&content, part);
            let parts: Vec<_> = measured.parts.iter().map(|part| (part.offset, part.bytes)).collect();
            assert_eq!(parts, expected);
            assert_eq!(measured.whole.sha256[..], Sha256::digest(&content)[..]);
            for part in &measured.parts {
                let range = part.offset as usize..(part.offset + part.bytes) as usize;
                assert_eq!(part.md5[..], Md5::digest(&content[range])[..]);
            }
        }
    }

    /// The tag of one empty part, as `printf '' | md5sum | xxd -r -p | md5sum` gives it.
    #[test]
    fn the_tag_of_parts_is_the_hash_of_their_hashes() {
        assert_eq!(measured(b"", 10).tag_of_parts(), "59adb24ef3cdbe0297f05b395827453f-1");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().to_owned(), folder.path().join("gone")] {
            let error = Measured::of("a", &path, |_| 1, &CancellationToken::new()).unwrap_err();
            assert!(matches!(error, UploadError::Disk { .. }), "{error}");
        }
    }
}
