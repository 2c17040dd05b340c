//! The files of a merged model: which tensor goes where, their headers and values, and the index over them.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use crate::{Error, Result};

/// Bytes of a tensor's entry in a header beside its name: type, up to four sides, two offsets.
const ENTRY_BYTES: u64 = 160;
/// Values converted at once.
const CHUNK_VALUES: usize = 1 << 20;
/// The list of the files.
const INDEX: &str = "model.safetensors.index.json";

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// Its type in the base, where it is plain there.
    pub(super) stored: Option<Dtype>,
    /// Its type in the merged model.
    pub(super) dtype: Dtype,
}

/// A file that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) file: String,
    pub(super) tensors: Vec<Planned>,
}

// === impl Planned ===

impl Planned {
    pub(super) fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * width(self.dtype)) as u64
    }
}

// === impl Shard ===

impl Shard {
    /// Bytes of its tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(Planned::bytes).sum()
    }

    /// The length and the JSON that the file begins with.
    fn header(&self) -> Result<Vec<u8>> {
        let mut end = 0;
        let info = |tensor: &Planned| {
            let start = end;
            end += tensor.bytes() as usize;
            let info = TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (start, end) };
            (tensor.name.clone(), info)
        };
        // transformers reads only files that say they came from PyTorch.
        let marked = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let unwritable = |error: &dyn std::fmt::Display| Error::Invalid(format!("{}: {error}", self.file));
        let metadata =
            Metadata::new(Some(marked), self.tensors.iter().map(info).collect()).map_err(|error| unwritable(&error))?;
        let mut json = serde_json::to_vec(&metadata).map_err(|error| unwritable(&error))?;
        // Readers that map the file want the data aligned to 8 bytes.
        json.resize(json.len().next_multiple_of(8), b' ');
        Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
    }
}

fn width(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// Fills files one after the other, in the tensors' order; none is larger than `most`, but for single tensors that are.
pub(super) fn plan(tensors: Vec<Planned>, most: u64) -> Vec<Shard> {
    let mut groups: Vec<Vec<Planned>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        let needed = tensor.bytes() + tensor.name.len() as u64 + ENTRY_BYTES;
        match groups.last_mut().filter(|_| needed <= room) {
            Some(group) => {
                group.push(tensor);
                room -= needed;
            }
            None => {
                groups.push(vec![tensor]);
                room = most.saturating_sub(needed);
            }
        }
    }
    let count = groups.len();
    let shard = |(number, mut tensors): (usize, Vec<Planned>)| {
        // Wider types first, so that every tensor is aligned to its own.
        tensors.sort_by_key(|tensor| std::cmp::Reverse(width(tensor.dtype)));
        Shard { file: format!("model-{:05}-of-{count:05}.safetensors", number + 1), tensors }
    };
    groups.into_iter().enumerate().map(shard).collect()
}

/// A file that is being written.
pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
}

// === impl Writer ===

impl Writer {
    /// Begins with the header.
    pub(super) fn create(folder: &Path, shard: &Shard) -> Result<Self> {
        let path = folder.join(&shard.file);
        let file = File::create_new(&path).map_err(Error::io("cannot create", &path))?;
        let mut writer = Self { path, file: BufWriter::with_capacity(1 << 20, file) };
        writer.bytes(&shard.header()?)?;
        Ok(writer)
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("cannot write", &self.path))
    }

    /// The values of a tensor, rounded to its type.
    pub(super) fn values(&mut self, tensor: &Planned, values: &[f32]) -> Result<()> {
        for (index, chunk) in values.chunks(CHUNK_VALUES).enumerate() {
            let bytes = rounded(chunk, tensor.dtype).map_err(|place| {
                let place = index * CHUNK_VALUES + place;
                let found = values[place];
                let advice = "the merged value does not fit the type; the adapter has diverged, or --dtype f32 helps";
                Error::Invalid(format!("{}[{place}]: found {found} after merging: {advice}", tensor.name))
            })?;
            self.bytes(&bytes)?;
        }
        Ok(())
    }

    /// Everything on disk.
    pub(super) fn finish(mut self) -> Result<()> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(Error::io("cannot write", &self.path))
    }
}

/// Values in another type, to nearest and ties to even; the place of the first that is none in that type.
fn rounded(values: &[f32], dtype: Dtype) -> std::result::Result<Vec<u8>, usize> {
    let mut bytes = Vec::with_capacity(values.len() * width(dtype));
    for (place, &value) in values.iter().enumerate() {
        let finite = match dtype {
            Dtype::BF16 => {
                let value = bf16::from_f32(value);
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
            Dtype::F16 => {
                let value = f16::from_f32(value);
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
            _ => {
                bytes.extend(value.to_le_bytes());
                value.is_finite()
            }
        };
        if !finite {
            return Err(place);
        }
    }
    Ok(bytes)
}

/// Writes which file holds which tensor.
pub(super) fn write_index(folder: &Path, shards: &[Shard]) -> Result<()> {
    let total: u64 = shards.iter().map(Shard::bytes).sum();
    let entries = shards.iter().flat_map(|shard| shard.tensors.iter().map(|tensor| (&tensor.name, &shard.file)));
    let map: BTreeMap<_, _> = entries.collect();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    super::files::write(&folder.join(INDEX), format!("{index:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, values: usize, dtype: Dtype) -> Planned {
        Planned { name: name.into(), shape: vec![values], stored: None, dtype }
    }

    #[test]
    fn files_are_filled_in_order_and_none_is_too_large() {
        let sizes = [100, 2000, 300, 50, 9000, 10, 10];
        let tensors: Vec<Planned> =
            sizes.iter().enumerate().map(|(i, n)| tensor(&format!("t{i}"), *n, Dtype::BF16)).collect();
        let shards = plan(tensors.clone(), 5000);
        let names: Vec<Vec<&str>> =
            shards.iter().map(|shard| shard.tensors.iter().map(|tensor| tensor.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["t0", "t1"], vec!["t2", "t3"], vec!["t4"], vec!["t5", "t6"]]);
        assert_eq!(shards[2].file, "model-00003-of-00004.safetensors");
        for shard in shards.iter().filter(|shard| shard.tensors.len() > 1) {
            let length = shard.header().unwrap().len() as u64 + shard.bytes();
            assert!(length <= 5000, "{length}");
        }
        assert_eq!(plan(tensors, 1).len(), sizes.len());
    }

    #[test]
    fn wider_types_come_first() {
        let mixed = vec![tensor("a", 1, Dtype::BF16), tensor("b", 1, Dtype::F32), tensor("c", 1, Dtype::BF16)];
        let names: Vec<String> = plan(mixed, 5000).remove(0).tensors.into_iter().map(|tensor| tensor.name).collect();
        assert_eq!(names, ["b", "a", "c"]);
    }

    /// The upper half of the bits, one more where the lower half is more than half a step, or half of one and the upper
    /// half is odd.
    #[test]
    fn bf16_is_the_nearest_and_ties_go_to_even() {
        for upper in [0x3f80u32, 0x3f81, 0xc123, 0x0001, 0x7f00] {
            for lower in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(upper << 16 | lower);
                let up = lower > 0x8000 || (lower == 0x8000 && upper % 2 == 1);
                let expected = (upper + u32::from(up)) as u16;
                assert_eq!(rounded(&[value], Dtype::BF16).unwrap(), expected.to_le_bytes(), "{upper:x} {lower:x}");
            }
        }
        assert_eq!(rounded(&[1.0, f32::MAX], Dtype::BF16), Err(1));
        assert_eq!(rounded(&[1.0, f32::NAN], Dtype::F32), Err(1));
    }
}
