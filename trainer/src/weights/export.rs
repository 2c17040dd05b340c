//! A checkpoint's tensors for whoever writes them again, plainly.

use std::collections::HashSet;

use safetensors::Dtype;

use super::{Checkpoint, names, stored};
use crate::config::{CheckpointFormat, ModelConfig};
use crate::weights::expected_tensors;
use crate::{Error, Result};

/// Bytes read at once, so that a tensor that stays as it is need not be in memory whole.
const CHUNK_BYTES: usize = 4 << 20;
/// What stands beside an FP8 weight.
const FP8_SCALE: &str = "_scale_inv";

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exported {
    /// Its official name.
    pub(crate) name: String,
    /// The shape of its values.
    pub(crate) shape: Vec<usize>,
    /// How they are stored; `None` where they are quantised.
    pub(crate) stored: Option<Dtype>,
    /// The model knows it. What it does not know (multi-token prediction, buffers) others may need.
    pub(crate) known: bool,
}

// === impl Checkpoint ===

impl Checkpoint {
    /// How the weights lie on disk.
    pub(crate) fn format(&self) -> CheckpointFormat {
        self.format
    }

    /// Every tensor, those of the model first and in its order; and the names of those that cannot be read.
    pub(crate) fn exported(&self, config: &ModelConfig) -> (Vec<Exported>, Vec<String>) {
        let mut list = Vec::new();
        for spec in expected_tensors(config) {
            let stored = self.shards.tensors.get(&spec.name).map(|stored| stored.dtype).filter(is_plain);
            list.push(Exported { name: spec.name, shape: spec.shape, stored, known: true });
        }
        let known: HashSet<String> = list.iter().map(|tensor| tensor.name.clone()).collect();
        let mut others: Vec<&String> = self.shards.tensors.keys().collect();
        others.retain(|name| !known.contains(*name) && names::is_ignored(name, config));
        others.sort();
        let mut unreadable = Vec::new();
        for name in others {
            let found = &self.shards.tensors[name];
            let scaled = found.dtype == Dtype::F8_E4M3 && found.shape.len() == 2;
            let scales = name.strip_suffix(FP8_SCALE).is_some_and(|weight| self.shards.tensors.contains_key(weight));
            match found.dtype {
                _ if scales => {}
                dtype if is_plain(&dtype) || (scaled && self.block_of(name).is_some()) => list.push(Exported {
                    name: name.clone(),
                    shape: found.shape.clone(),
                    stored: Some(dtype).filter(is_plain),
                    known: false,
                }),
                _ => unreadable.push(name.clone()),
            }
        }
        (list, unreadable)
    }

    /// The values of a tensor, decoded.
    pub(crate) fn decoded(&self, name: &str) -> Result<Vec<f32>> {
        let (file, found) = self.stored(name)?;
        match found.dtype {
            Dtype::U8 => {
                let path = name.strip_suffix(".weight").unwrap_or(name);
                Ok(self.linear(path, &super::BasePrecision::Full)?.to_f32().into_owned())
            }
            Dtype::F8_E4M3 => {
                let block =
                    self.block_of(name).ok_or_else(|| Error::file(file.path(), format!("{name}: no scales")))?;
                stored::fp8(file, name, found, self.stored(&format!("{name}{FP8_SCALE}"))?, block)
            }
            _ => stored::floats(file, name, found),
        }
    }

    /// The bytes of a tensor as they are stored, piece by piece.
    pub(crate) fn bytes(&self, name: &str, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (file, found) = self.stored(name)?;
        let mut buffer = vec![0; CHUNK_BYTES.min(found.bytes)];
        for offset in (0..found.bytes).step_by(CHUNK_BYTES) {
            let piece = &mut buffer[..CHUNK_BYTES.min(found.bytes - offset)];
            file.read_at(name, found, offset, piece)?;
            take(piece)?;
        }
        Ok(())
    }

    /// The sides of the blocks of an FP8 weight that has its scales beside it.
    fn block_of(&self, name: &str) -> Option<[usize; 2]> {
        let CheckpointFormat::Fp8 { block } = self.format else { return None };
        self.shards.tensors.contains_key(&format!("{name}{FP8_SCALE}")).then_some(block)
    }
}

fn is_plain(dtype: &Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
}
