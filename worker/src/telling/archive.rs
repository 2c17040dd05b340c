//! An adapter as one file: a compressed archive whose bytes follow from what is in it and from nothing else.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use md5::Md5;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};
use tokio_util::sync::CancellationToken;

/// The one folder in it.
const TOP: &str = "adapter";
/// When everything in it was made: the first second of 2000, because archivers warn of 1970.
const MADE: u64 = 946_684_800;
/// What gzip calls the system that nobody should know.
const UNKNOWN_SYSTEM: u8 = 255;
const BUFFER_BYTES: usize = 256 << 10;

/// An archive on disk, for as long as this is there.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) sha256: [u8; 32],
    pub(super) md5: [u8; 16],
}

// === impl Archive ===

impl Archive {
    /// Archives the files of a folder, beside that.
    pub(super) fn of(folder: &Path, cancel: &CancellationToken) -> io::Result<Self> {
        let mut files = Vec::new();
        list(folder, TOP, &mut files)?;
        if files.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "there is no file in it"));
        }
        // One worker at a time has a job, so nobody else writes there; what a killed one left is overwritten.
        let path = folder.with_extension("tar.gz.part");
        // From here on the file goes with this value, whatever happens.
        let mut archive = Self { path, bytes: 0, sha256: [0; 32], md5: [0; 16] };
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::create(&archive.path)?);
        let measured = Measured { file, cancel, bytes: 0, sha256: Sha256::new(), md5: Md5::new() };
        // The matrices of an adapter hardly get smaller, however long it takes.
        let gzip = GzBuilder::new().mtime(0).operating_system(UNKNOWN_SYSTEM).write(measured, Compression::fast());
        let mut measured = fill(Builder::new(gzip), &files)?.finish()?;
        measured.file.flush()?;
        archive.bytes = measured.bytes;
        archive.sha256 = measured.sha256.finalize().into();
        archive.md5 = measured.md5.finalize().into();
        Ok(archive)
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // One that cannot be removed is overwritten by the next.
        let _ = fs::remove_file(&self.path);
    }
}

/// The files below a folder and their names in the archive, in the order of names.
fn list(folder: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        // Links lead elsewhere, and are left out.
        match entry.file_type()? {
            kind if kind.is_dir() => list(&entry.path(), &name, files)?,
            kind if kind.is_file() => files.push((name, entry.path())),
            _ => {}
        }
    }
    Ok(())
}

fn fill<W: Write>(mut archive: Builder<GzEncoder<W>>, files: &[(String, PathBuf)]) -> io::Result<GzEncoder<W>> {
    let header = |kind, mode, bytes| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(MADE);
        header.set_size(bytes);
        header.set_uid(0);
        header.set_gid(0);
        header
    };
    archive.append_data(&mut header(EntryType::Directory, 0o755, 0), format!("{TOP}/"), io::empty())?;
    for (name, path) in files {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let content = Exactly { content: file.take(bytes), left: bytes };
        archive.append_data(&mut header(EntryType::Regular, 0o644, bytes), name, content)?;
    }
    archive.into_inner()
}

/// Content as long as it was said to be: an archive whose lengths are wrong would be broken without a word.
struct Exactly<R> {
    content: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file became shorter while it was read"));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Measures what goes by, until nobody wants it any more.
struct Measured<'a> {
    file: BufWriter<File>,
    cancel: &'a CancellationToken,
    bytes: u64,
    sha256: Sha256,
    md5: Md5,
}

impl Write for Measured<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("it was cancelled"));
        }
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        self.sha256.update(&bytes[..written]);
        self.md5.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use flate2::read::GzDecoder;
    use tempfile::TempDir;

    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join("adapter").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn archive(folder: &TempDir) -> io::Result<(Vec<u8>, Archive)> {
        let archive = Archive::of(&folder.path().join("adapter"), &CancellationToken::new())?;
        Ok((fs::read(&archive.path)?, archive))
    }

    #[test]
    fn it_holds_one_folder_with_the_files() {
        let large = vec![7; 1 << 20];
        let folder = folder(&[("b.safetensors", &large), ("a.json", b"{}"), ("more/c", b"c")]);
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("adapter/link")).unwrap();
        let (bytes, measured) = archive(&folder).unwrap();
        assert_eq!((measured.bytes, &measured.sha256[..]), (bytes.len() as u64, &Sha256::digest(&bytes)[..]));
        assert_eq!(measured.md5[..], Md5::digest(&bytes)[..]);
        let mut archive = tar::Archive::new(GzDecoder::new(&bytes[..]));
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (MADE, 0));
            found.push((entry.path().unwrap().display().to_string(), content));
        }
        let expected = [
            ("adapter/", vec![]),
            ("adapter/a.json", b"{}".to_vec()),
            ("adapter/b.safetensors", large),
            ("adapter/more/c", b"c".to_vec()),
        ];
        assert_eq!(found, expected.map(|(name, content)| (name.to_owned(), content)));
        let path = measured.path.clone();
        drop(measured);
        assert!(!path.exists());
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let files: [(&str, &[u8]); 2] = [("a", b"a"), ("b", b"b")];
        let (first, second) = (folder(&files), folder(&[files[1], files[0]]));
        let path = second.path().join("adapter/a");
        File::options().write(true).open(path).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(archive(&first).unwrap().0, archive(&second).unwrap().0);
    }

    #[test]
    fn what_cannot_be_archived_leaves_nothing() {
        for folder in [folder(&[("../x", b"")]), folder(&[])] {
            assert!(archive(&folder).is_err());
        }
        let folder = folder(&[("a", b"a")]);
        let cancel = CancellationToken::new();
        cancel.cancel();
        assert!(Archive::of(&folder.path().join("adapter"), &cancel).unwrap_err().to_string().contains("cancelled"));
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["adapter"]);
        let mut short = Exactly { content: &b"ab"[..], left: 3 };
        assert_eq!(short.read_to_end(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
