//! Size and SHA-256 of files.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Size and SHA-256 of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sum {
    /// Bytes.
    pub(crate) bytes: u64,
    /// SHA-256.
    pub(crate) sha256: [u8; 32],
}

/// Size and SHA-256 of a file, read in pieces.
pub(crate) fn sum(path: &Path) -> Result<Sum> {
    let mut file = File::open(path).map_err(Error::io("cannot read", path))?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Sum { bytes, sha256: sha256.finalize().into() }),
            Ok(count) => {
                sha256.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read", path)(error)),
        }
    }
}
