//! Expected against found, from the headers alone.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use brightrun_kernels::nf4;
use safetensors::Dtype;

use super::names::{expected_tensors, is_ignored};
use super::shards::{Shards, Stored};
use super::{TensorKind, TensorSpec};
use crate::config::{CheckpointFormat, ModelConfig};
use crate::{Error, Result};

/// Bytes of a serialised bitsandbytes quantisation state.
const MAX_QUANT_STATE_BYTES: usize = 4096;
/// What bitsandbytes appends to a weight's name for that state.
pub(super) const QUANT_STATE: &str = "quant_state.bitsandbytes__nf4";

/// How one tensor lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    /// f32, bf16 or f16 values.
    Plain,
    /// FP8 values beside `_scale_inv`.
    Fp8 { block: [usize; 2] },
    /// NF4 as bitsandbytes serialises it, with double quantisation or without.
    Nf4 { nested: bool },
}

/// Every expected tensor with how it is stored, or one error that names all differences.
pub(super) fn verify(
    dir: &Path,
    config: &ModelConfig,
    shards: &Shards,
) -> Result<HashMap<String, (TensorSpec, Storage)>> {
    let mut check = Check { config, shards, used: HashSet::new(), problems: Vec::new() };
    let mut tensors = HashMap::new();
    for spec in expected_tensors(config) {
        if let Some(storage) = check.tensor(&spec) {
            tensors.insert(spec.name.clone(), (spec, storage));
        }
    }
    check.extra_tensors();
    if check.problems.is_empty() { Ok(tensors) } else { Err(Error::problems(dir, &check.problems)) }
}

struct Check<'a> {
    config: &'a ModelConfig,
    shards: &'a Shards,
    used: HashSet<String>,
    problems: Vec<String>,
}

// === impl Check ===

impl<'a> Check<'a> {
    fn tensor(&mut self, spec: &TensorSpec) -> Option<Storage> {
        let Some(stored) = self.take(&spec.name) else {
            self.problems.push(format!("{}: missing, expected {:?}", spec.name, spec.shape));
            return None;
        };
        match (spec.kind, stored.dtype) {
            (TensorKind::Linear, Dtype::U8) => self.nf4(spec, stored),
            (TensorKind::Linear, Dtype::F8_E4M3) => self.fp8(spec, stored),
            _ => self
                .expect(&spec.name, stored, &[Dtype::F32, Dtype::BF16, Dtype::F16], &spec.shape)
                .then_some(Storage::Plain),
        }
    }

    fn fp8(&mut self, spec: &TensorSpec, stored: &Stored) -> Option<Storage> {
        let CheckpointFormat::Fp8 { block } = self.config.checkpoint else {
            let problem = "found FP8 values, but config.json has no quantization_config with quant_method \"fp8\"";
            self.note(&spec.name, stored, problem);
            return None;
        };
        let scales = [spec.shape[0].div_ceil(block[0]), spec.shape[1].div_ceil(block[1])];
        let whole = self.expect(&spec.name, stored, &[Dtype::F8_E4M3], &spec.shape);
        let scaled = self.side(&format!("{}_scale_inv", spec.name), &[Dtype::F32, Dtype::BF16], &scales);
        (whole && scaled).then_some(Storage::Fp8 { block })
    }

    fn nf4(&mut self, spec: &TensorSpec, stored: &Stored) -> Option<Storage> {
        let count = spec.shape[0] * spec.shape[1];
        let blocks = count.div_ceil(nf4::BLOCK);
        let mut whole = self.expect(&spec.name, stored, &[Dtype::U8], &[count.div_ceil(2), 1]);
        let side = |suffix: &str| format!("{}.{suffix}", spec.name);
        // Bytes for scales are codes of a second quantisation.
        let nested = self.shards.tensors.get(&side("absmax")).is_some_and(|absmax| absmax.dtype == Dtype::U8);
        whole &= self.side(&side("absmax"), &[if nested { Dtype::U8 } else { Dtype::F32 }], &[blocks]);
        whole &= self.side(&side("quant_map"), &[Dtype::F32], &[nf4::CODEBOOK.len()]);
        if nested {
            whole &= self.side(&side("nested_absmax"), &[Dtype::F32], &[blocks.div_ceil(nf4::NESTED_BLOCK)]);
            whole &= self.side(&side("nested_quant_map"), &[Dtype::F32], &[nf4::dynamic_map().len()]);
        }
        let state = side(QUANT_STATE);
        match self.shards.tensors.get(&state).map(|stored| stored.bytes) {
            Some(bytes) if bytes <= MAX_QUANT_STATE_BYTES => whole &= self.side(&state, &[Dtype::U8], &[bytes]),
            Some(bytes) => {
                self.problems.push(format!("{state}: found {bytes} bytes, expected at most {MAX_QUANT_STATE_BYTES}"));
                whole = false;
            }
            None => whole &= self.side(&state, &[Dtype::U8], &[]),
        }
        whole.then_some(Storage::Nf4 { nested })
    }

    /// A tensor that stands beside a quantised weight.
    fn side(&mut self, name: &str, dtypes: &[Dtype], shape: &[usize]) -> bool {
        match self.take(name) {
            Some(stored) => self.expect(name, stored, dtypes, shape),
            None => {
                self.problems.push(format!("{name}: missing, expected beside the quantised weight"));
                false
            }
        }
    }

    fn take(&mut self, name: &str) -> Option<&'a Stored> {
        let stored = self.shards.tensors.get(name)?;
        self.used.insert(name.to_owned());
        Some(stored)
    }

    fn expect(&mut self, name: &str, stored: &Stored, dtypes: &[Dtype], shape: &[usize]) -> bool {
        let dtype_fits = dtypes.contains(&stored.dtype);
        if !dtype_fits {
            let names: Vec<_> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
            self.note(name, stored, &format!("found type {:?}, expected {}", stored.dtype, names.join(", ")));
        } else if stored.shape != shape {
            self.note(name, stored, &format!("found shape {:?}, expected {shape:?}", stored.shape));
        }
        dtype_fits && stored.shape == shape
    }

    fn note(&mut self, name: &str, stored: &Stored, problem: &str) {
        let path = self.shards.files[stored.file].path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        self.problems.push(format!("{name} in {file}: {problem}"));
    }

    fn extra_tensors(&mut self) {
        let unused = |name: &&String| !self.used.contains(*name) && !is_ignored(name, self.config);
        let mut extra: Vec<&String> = self.shards.tensors.keys().filter(unused).collect();
        extra.sort();
        if let Some(name) = extra.iter().find(|name| is_fused(name)) {
            // First, because it explains the many missing experts that follow.
            let advice = "experts fused into one tensor are no published layout; save the model with transformers' \
                          save_pretrained, which writes one tensor per expert";
            self.problems.insert(0, format!("{name}: {advice}"));
        }
        for name in extra {
            self.note(name, &self.shards.tensors[name], "not expected in this model");
        }
    }
}

fn is_fused(name: &str) -> bool {
    name.ends_with(".mlp.experts.gate_up_proj") || name.ends_with(".mlp.experts.down_proj")
}
