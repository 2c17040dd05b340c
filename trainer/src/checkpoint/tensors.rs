//! Arrays in a safetensors file whose header follows from what is in it, so that a reader knows every byte of the header
//! before it reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
};

use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};

use crate::{Error, Result, optim::StateValues};

/// Bytes of a header; the format's own limit.
const MAX_HEADER_BYTES: usize = 100_000_000;
/// Values that are turned into bytes, or back, at a time.
const VALUES_AT_ONCE: usize = 1 << 14;

/// What an array is called and how it looks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

/// An array to be written.
#[derive(Debug, Clone)]
pub(super) struct Array {
    pub(super) shape: Shape,
    pub(super) values: StateValues,
}

/// The length and the JSON that a file with these arrays begins with.
pub(super) fn header<'a>(shapes: impl Iterator<Item = &'a Shape>) -> Result<Vec<u8>> {
    let unwritable = |error: &dyn std::fmt::Display| Error::Invalid(format!("a checkpoint's header: {error}"));
    let mut end = 0;
    let mut infos = Vec::new();
    for Shape { name, dtype, shape } in shapes {
        let start = end;
        end += shape.iter().product::<usize>() * (dtype.bitsize() / 8);
        infos.push((name.clone(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) }));
    }
    let metadata = Metadata::new(None, infos).map_err(|error| unwritable(&error))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| unwritable(&error))?;
    if json.len() > MAX_HEADER_BYTES {
        return Err(unwritable(&format!("{} bytes, more than {MAX_HEADER_BYTES}", json.len())));
    }
    // Readers that map the file want the data aligned to 8 bytes.
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
}

/// Writes a file: a header made by [`header`], and the arrays in the same order.
pub(super) fn write(file: &mut dyn Write, header: &[u8], arrays: &[Array]) -> io::Result<()> {
    file.write_all(header)?;
    let mut buffer = Vec::with_capacity(8 * VALUES_AT_ONCE);
    for array in arrays {
        match &array.values {
            StateValues::Codes(codes) => file.write_all(codes)?,
            StateValues::Floats(values) => write_values(file, &mut buffer, values, |value| value.to_le_bytes())?,
            StateValues::Counts(values) => write_values(file, &mut buffer, values, |value| value.to_le_bytes())?,
        }
    }
    Ok(())
}

fn write_values<T: Copy, const WIDTH: usize>(
    file: &mut dyn Write,
    buffer: &mut Vec<u8>,
    values: &[T],
    bytes: impl Fn(T) -> [u8; WIDTH],
) -> io::Result<()> {
    for values in values.chunks(VALUES_AT_ONCE) {
        buffer.clear();
        values.iter().for_each(|value| buffer.extend_from_slice(&bytes(*value)));
        file.write_all(buffer)?;
    }
    Ok(())
}

/// Reads the header of a file of `length` bytes, which must hold exactly these arrays.
pub(super) fn expect_header(file: &mut dyn Read, length: u64, shapes: &[Shape]) -> std::result::Result<(), Unexpected> {
    let expected = header(shapes.iter()).map_err(|error| Unexpected::Content(error.to_string()))?;
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix)?;
    let bytes = u64::from_le_bytes(prefix);
    let room = length.saturating_sub(8).min(MAX_HEADER_BYTES as u64);
    if bytes > room {
        return Err(Unexpected::Content(format!("header: found a length of {bytes} bytes, expected at most {room}")));
    }
    let mut found = vec![0; bytes as usize];
    file.read_exact(&mut found)?;
    if found != expected[8..] {
        return Err(Unexpected::Content(differences(&found, shapes)));
    }
    let data: usize = shapes.iter().map(Shape::bytes).sum();
    let whole = (expected.len() + data) as u64;
    if length != whole {
        return Err(Unexpected::Content(format!("found {length} bytes, expected {whole}")));
    }
    Ok(())
}

/// Reads the next array.
pub(super) fn read_array(file: &mut dyn Read, shape: &Shape) -> io::Result<StateValues> {
    let count = shape.values();
    let mut values = StateValues::with_capacity(shape.dtype, count);
    match &mut values {
        StateValues::Codes(codes) => {
            codes.resize(count, 0);
            file.read_exact(codes)?;
        }
        StateValues::Floats(values) => read_values(file, values, count, f32::from_le_bytes)?,
        StateValues::Counts(values) => read_values(file, values, count, u64::from_le_bytes)?,
    }
    Ok(values)
}

fn read_values<T, const WIDTH: usize>(
    file: &mut dyn Read,
    values: &mut Vec<T>,
    count: usize,
    value: impl Fn([u8; WIDTH]) -> T,
) -> io::Result<()> {
    let mut buffer = vec![0; WIDTH * VALUES_AT_ONCE.min(count)];
    while values.len() < count {
        let bytes = WIDTH * VALUES_AT_ONCE.min(count - values.len());
        file.read_exact(&mut buffer[..bytes])?;
        values.extend(buffer[..bytes].as_chunks::<WIDTH>().0.iter().map(|bytes| value(*bytes)));
    }
    Ok(())
}

/// Why arrays cannot be read.
#[derive(Debug)]
pub(super) enum Unexpected {
    /// The file system's reason.
    Io(io::Error),
    /// The file holds something else.
    Content(String),
}

impl From<io::Error> for Unexpected {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a header says that is not expected.
fn differences(found: &[u8], shapes: &[Shape]) -> String {
    let metadata: Metadata = match serde_json::from_slice(found) {
        Ok(metadata) => metadata,
        Err(error) => return format!("header: not a valid safetensors header: {error}"),
    };
    let tensors = metadata.tensors();
    let found: BTreeMap<&str, &TensorInfo> = tensors.iter().map(|(name, info)| (name.as_str(), *info)).collect();
    let mut problems = Vec::new();
    for Shape { name, dtype, shape } in shapes {
        match found.get(name.as_str()) {
            None => problems.push(format!("{name}: missing")),
            Some(info) if (info.dtype, &info.shape) != (*dtype, shape) => {
                problems.push(format!("{name}: found {:?} {:?}, expected {dtype:?} {shape:?}", info.dtype, info.shape))
            }
            Some(_) => {}
        }
    }
    let expected: BTreeSet<&str> = shapes.iter().map(|shape| shape.name.as_str()).collect();
    let extra = found.keys().filter(|name| !expected.contains(*name));
    problems.extend(extra.map(|name| format!("{name}: not of this run")));
    if problems.is_empty() {
        problems.push("header: the arrays are in another order".to_owned());
    }
    crate::error::listed(&problems)
}

// === impl Shape ===

impl Shape {
    pub(super) fn values(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> usize {
        self.values() * (self.dtype.bitsize() / 8)
    }
}
