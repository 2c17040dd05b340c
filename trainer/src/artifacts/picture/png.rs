//! PNG, the part of it that a picture needs: 8 bits of red, green and blue, each row as its difference to the one above.

use std::io::Write;

use flate2::{Compression, Crc, write::ZlibEncoder};

use crate::{Error, Result};

/// How every PNG file begins.
const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// Eight bits, red green blue, deflate, standard filters, no interlacing.
const FORMAT: [u8; 5] = [8, 2, 0, 0, 0];
/// The filter that subtracts the row above; drawings are mostly equal to it.
const UP: u8 = 2;

/// The file of an image with these rows of red, green and blue.
pub(super) fn write(width: u32, height: u32, pixels: &[u8]) -> Result<Vec<u8>> {
    let row = 3 * width as usize;
    let failed = |error: std::io::Error| Error::Invalid(format!("a picture cannot be compressed: {error}"));
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    let mut above = vec![0; row];
    for pixels in pixels.chunks_exact(row) {
        let filtered: Vec<u8> = pixels.iter().zip(&above).map(|(value, above)| value.wrapping_sub(*above)).collect();
        encoder.write_all(&[UP]).and_then(|()| encoder.write_all(&filtered)).map_err(failed)?;
        above.copy_from_slice(pixels);
    }
    let data = encoder.finish().map_err(failed)?;
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    header.extend(FORMAT);
    let mut file = SIGNATURE.to_vec();
    for (name, content) in [(b"IHDR", header.as_slice()), (b"IDAT", &data), (b"IEND", &[])] {
        file.extend(chunk(name, content));
    }
    Ok(file)
}

/// Length, name, content and the checksum of the last two.
fn chunk(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let mut checksum = Crc::new();
    checksum.update(name);
    checksum.update(content);
    [&(content.len() as u32).to_be_bytes()[..], name, content, &checksum.sum().to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_was_written_can_be_read() {
        let pixels: Vec<u8> = (0..3 * 5 * 4u32).map(|index| (index * index % 251) as u8).collect();
        let file = write(5, 4, &pixels).unwrap();
        assert_eq!(file[..8], SIGNATURE);
        assert_eq!(file[8..29], *b"\0\0\0\x0dIHDR\0\0\0\x05\0\0\0\x04\x08\x02\0\0\0");
        let length = u32::from_be_bytes(file[33..37].try_into().unwrap()) as usize;
        assert_eq!(&file[37..41], b"IDAT");
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(&file[41..41 + length]).read_to_end(&mut rows).unwrap();
        let mut above = vec![0u8; 15];
        for (row, wanted) in rows.chunks_exact(16).zip(pixels.chunks_exact(15)) {
            assert_eq!(row[0], 2);
            above.iter_mut().zip(&row[1..]).for_each(|(above, change)| *above = above.wrapping_add(*change));
            assert_eq!(above, wanted);
        }
        // The checksum of an empty IEND, as in every PNG file.
        assert_eq!(file[file.len() - 12..], *b"\0\0\0\0IEND\xae\x42\x60\x82");
    }
}
