//! As much of Protocol Buffers as an event needs: each field is its number and kind, and then its value.

/// Kinds of values.
const VARINT: u32 = 0;
const EIGHT_BYTES: u32 = 1;
const LENGTH: u32 = 2;
const FOUR_BYTES: u32 = 5;

/// A message that is being put together.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

// === impl Message ===

impl Message {
    pub(super) fn double(&mut self, field: u32, number: f64) {
        self.key(field, EIGHT_BYTES);
        self.0.extend(number.to_le_bytes());
    }

    pub(super) fn float(&mut self, field: u32, number: f32) {
        self.key(field, FOUR_BYTES);
        self.0.extend(number.to_le_bytes());
    }

    pub(super) fn whole(&mut self, field: u32, number: u64) {
        self.key(field, VARINT);
        self.varint(number);
    }

    pub(super) fn text(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    pub(super) fn message(&mut self, field: u32, message: Self) {
        self.bytes(field, &message.0);
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    fn key(&mut self, field: u32, kind: u32) {
        self.varint(u64::from(field << 3 | kind));
    }

    /// Seven bits a byte, lowest first; the eighth says that more follow.
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The fields of a message: number, and the bytes of the value (whole numbers as eight bytes).
    pub(in crate::artifacts::tensorboard) fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let count = bytes.iter().take_while(|byte| **byte >= 128).count() + 1;
            let (digits, rest) = bytes.split_at(count);
            *bytes = rest;
            digits.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 127))
        }
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    fields.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                kind => panic!("kind {kind}"),
            };
            fields.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        fields
    }

    #[test]
    fn bytes_are_those_of_the_specification() {
        let mut message = Message::default();
        message.whole(1, 150);
        message.text(2, "testing");
        // The two examples of the encoding's own documentation.
        assert_eq!(message.0, *b"\x08\x96\x01\x12\x07testing");
        let mut outer = Message::default();
        outer.double(1, 0.5);
        outer.float(2, 0.5);
        outer.message(3, message);
        assert_eq!(outer.0, *b"\x09\0\0\0\0\0\0\xe0\x3f\x15\0\0\0\x3f\x1a\x0c\x08\x96\x01\x12\x07testing");
        assert_eq!(fields(&outer.into_bytes())[1], (2, vec![0, 0, 0, 0x3f]));
    }
}
