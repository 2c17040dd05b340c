//! TFRecord: length, checksum of the length, content, checksum of the content; all little-endian.

/// CRC-32C (Castagnoli), lowest bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// What masked checksums are moved by, so that the checksum of data that holds checksums is sound.
const MASK: u32 = 0xa282_ead8;

const TABLE: [u32; 256] = table();

/// A record.
pub(super) fn framed(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), content, &masked(content).to_le_bytes()].concat()
}

fn masked(bytes: &[u8]) -> u32 {
    checksum(bytes).rotate_right(15).wrapping_add(MASK)
}

fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum: u32, byte| TABLE[usize::from(sum as u8 ^ byte)] ^ (sum >> 8))
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut sum = index as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { POLYNOMIAL ^ (sum >> 1) } else { sum >> 1 };
            bit += 1;
        }
        table[index] = sum;
        index += 1;
    }
    table
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Takes records apart and checks both checksums, bit by bit instead of by the table.
    pub(in crate::artifacts::tensorboard) fn read(mut file: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !file.is_empty() {
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            assert_eq!(file[8..12], unmask(&file[..8]));
            let content = &file[12..12 + length];
            assert_eq!(file[12 + length..16 + length], unmask(content));
            records.push(content.to_vec());
            file = &file[16 + length..];
        }
        records
    }

    fn unmask(bytes: &[u8]) -> [u8; 4] {
        let mut sum = !0u32;
        for byte in bytes {
            sum ^= u32::from(*byte);
            (0..8).for_each(|_| sum = (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()));
        }
        (!sum).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // The check value of CRC-32C, and two of RFC 3720, B.4.
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn records_can_be_taken_apart() {
        let file = [framed(b""), framed(b"abc"), framed(&[7; 1000])].concat();
        assert_eq!(read(&file), [b"".to_vec(), b"abc".to_vec(), vec![7; 1000]]);
    }
}
