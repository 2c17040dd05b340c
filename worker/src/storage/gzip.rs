//! Decompression that cannot be made to fill the disk.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
};

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

/// What a gzip file begins with.
const MAGIC: [u8; 2] = [0x1f, 0x8b];
const BUFFER: usize = 1 << 20;

/// What came of a decompression.
#[derive(Debug)]
pub(super) enum Decoded {
    /// All of it, with its length and hash.
    Whole(u64, Sha256),
    /// More bytes than allowed.
    TooLarge,
    /// No gzip, or not to its end.
    Damaged(String),
    /// The caller wanted to stop.
    Stopped,
}

/// Whether the file begins as gzip does.
pub(super) fn is_gzip(file: &mut File) -> io::Result<bool> {
    let mut begin = [0; 2];
    match file.read_exact(&mut begin) {
        Ok(()) => Ok(begin == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Decompresses at most `most` bytes. The error is one of writing; one of reading is [`Decoded::Damaged`].
pub(super) fn decode(from: File, to: &mut impl Write, most: u64, stop: &dyn Fn() -> bool) -> io::Result<Decoded> {
    let mut decoder = MultiGzDecoder::new(BufReader::with_capacity(BUFFER, from));
    let (mut bytes, mut hasher, mut buffer) = (0, Sha256::new(), vec![0; BUFFER]);
    loop {
        if stop() {
            return Ok(Decoded::Stopped);
        }
        let count = match decoder.read(&mut buffer) {
            Ok(0) => return Ok(Decoded::Whole(bytes, hasher)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Decoded::Damaged(error.to_string())),
        };
        bytes += count as u64;
        if bytes > most {
            return Ok(Decoded::TooLarge);
        }
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn members_one_after_another_are_one_file() {
        let mut output = Vec::new();
        let from = file(&[gzip(b"one "), gzip(b"two")].concat());
        let decoded = decode(from, &mut output, 7, &|| false).unwrap();
        assert!(matches!(decoded, Decoded::Whole(7, _)) && output == b"one two");
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let bomb = gzip(&vec![0; 50_000_000]);
        assert!(bomb.len() < 100_000);
        let mut output = Vec::new();
        assert!(matches!(decode(file(&bomb), &mut output, 1_500_000, &|| false).unwrap(), Decoded::TooLarge));
        assert!(output.len() <= 1_500_000);
    }

    #[test]
    fn damage_is_found_at_every_byte() {
        let whole = gzip(b"some text that is long enough");
        for length in 0..whole.len() {
            let decoded = decode(file(&whole[..length]), &mut io::sink(), 100, &|| false).unwrap();
            assert!(matches!(decoded, Decoded::Damaged(_)), "{length}");
        }
        let mut flipped = whole.clone();
        flipped[12] ^= 1;
        assert!(matches!(decode(file(&flipped), &mut io::sink(), 100, &|| false).unwrap(), Decoded::Damaged(_)));
        assert!(matches!(decode(file(&whole), &mut io::sink(), 100, &|| true).unwrap(), Decoded::Stopped));
    }

    #[test]
    fn gzip_is_known_by_its_first_bytes() {
        assert!(is_gzip(&mut file(&gzip(b""))).unwrap());
        assert!(!is_gzip(&mut file(b"{")).unwrap() && !is_gzip(&mut file(b"{}{}")).unwrap());
    }
}
