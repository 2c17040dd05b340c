//! A digest of the frozen base as it lies in memory, which a run takes before and after: equal digests show that no byte
//! of it moved.
//!
//! Every part of every tensor (values; or codes and scales) is cut into pieces of 4 MiB, whose SHA-256s are made on all
//! threads. What is hashed in the end is, in the model's order, each part's name, shape and the digests of its pieces, so
//! that neither the number of threads nor anything but the base decides the result. The rotation table is left out: it
//! follows from the configuration and grows with the longest document.

use brightrun_kernels::{FrozenWeight, Stored};
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{Model, linear::Linear};
use crate::proof::{Digest, update_floats, update_text};
use crate::stop::Stop;
use crate::{Error, Result};

/// Names the way the digest is made.
const FORMAT: &str = "brightrun frozen base 1";

/// Bytes of a piece: a few milliseconds of one thread.
const PIECE_BYTES: usize = 4 << 20;

/// A part of a tensor.
pub(super) struct Part<'a> {
    name: String,
    shape: Vec<usize>,
    stored: Stored<'a>,
}

/// The frozen parts of a layer, or of what stands before or after the layers.
#[derive(Default)]
pub(super) struct Parts<'a>(Vec<Part<'a>>);

// === impl Parts ===

impl<'a> Parts<'a> {
    /// A tensor that is no linear's weight.
    pub(super) fn vector(&mut self, name: String, values: &'a [f32]) {
        self.0.push(Part { name, shape: vec![values.len()], stored: Stored::Floats(values) });
    }

    /// The weight of a linear.
    pub(super) fn weight(&mut self, name: &str, weight: &'a FrozenWeight) {
        let shape = [weight.rows(), weight.columns()];
        let parts = weight.stored().into_iter();
        self.0.extend(parts.map(|(part, stored)| Part {
            name: format!("{name}: {part}"),
            shape: shape.into(),
            stored,
        }));
    }

    /// A linear without its adapter.
    pub(super) fn linear(&mut self, path: &str, linear: &'a Linear) {
        let frozen = linear.frozen();
        self.weight(&format!("{path}.weight"), &frozen.weight);
        if let Some(bias) = &frozen.bias {
            self.vector(format!("{path}.bias"), bias);
        }
    }

    fn update(&self, hash: &mut Sha256, stop: &Stop) -> Result<()> {
        let digests = self.0.par_iter().map(|part| part.pieces(stop)).collect::<Result<Vec<_>>>()?;
        for (part, pieces) in self.0.iter().zip(digests) {
            update_text(hash, &part.name);
            update_text(hash, &format!("{:?}", part.shape));
            hash.update((pieces.len() as u64).to_le_bytes());
            pieces.iter().for_each(|piece| hash.update(piece.bytes()));
        }
        Ok(())
    }
}

// === impl Part ===

impl Part<'_> {
    fn pieces(&self, stop: &Stop) -> Result<Vec<Digest>> {
        let piece = |feed: &dyn Fn(&mut Sha256)| {
            if stop.asked().is_some() {
                return Err(Error::Cancelled);
            }
            let mut hash = Sha256::new();
            feed(&mut hash);
            Ok(Digest::finish(hash))
        };
        match self.stored {
            Stored::Floats(values) => values
                .par_chunks(PIECE_BYTES / size_of::<f32>())
                .map(|values| piece(&|hash| update_floats(hash, values)))
                .collect(),
            Stored::Bytes(bytes) => {
                bytes.par_chunks(PIECE_BYTES).map(|bytes| piece(&|hash| hash.update(bytes))).collect()
            }
        }
    }
}

// === impl Model ===

impl Model {
    /// SHA-256 of every frozen byte: weights as they are held, norms, routers, embeddings, head. The adapters are no part
    /// of it. A core with SHA instructions takes in 1.6 GB a second; a
    /// cancelled run does not wait for it.
    pub fn digest(&self, stop: &Stop) -> Result<Digest> {
        let mut hash = Sha256::new();
        update_text(&mut hash, FORMAT);
        for index in 0..self.layers.len() + 2 {
            self.frozen(index).update(&mut hash, stop)?;
        }
        Ok(Digest::finish(hash))
    }

    /// The embedding (0), the parts of a layer (from 1), or what comes after the layers: never all names at once.
    fn frozen(&self, index: usize) -> Parts<'_> {
        let mut parts = Parts::default();
        if index == 0 {
            parts.vector("model.embed_tokens.weight".into(), &self.embedding);
        } else if let Some(layer) = self.layers.get(index - 1) {
            layer.frozen(&format!("model.layers.{}", index - 1), &mut parts);
        } else {
            self.norm.frozen("model.norm", &mut parts);
            parts.linear("lm_head", &self.head);
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use brightrun_kernels::op::update_in_place;
    use safetensors::{Dtype, SafeTensors};
    use tempfile::TempDir;

    use super::*;
    use crate::adapters::Adapters;
    use crate::config::ModelConfig;
    use crate::lora::{LoraOptions, TargetSet, plan};
    use crate::stop::StopKind;
    use crate::weights::{BasePrecision, Checkpoint, expected_tensors};

    /// A fixture whose file can be damaged and loaded again.
    struct Base {
        config: ModelConfig,
        bytes: Vec<u8>,
        precision: BasePrecision,
        folder: TempDir,
    }

    // === impl Base ===

    impl Base {
        fn new(fixture: &str, precision: BasePrecision) -> Self {
            let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(fixture);
            let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
            let config = ModelConfig::read(&dir).unwrap();
            Self { config, bytes, precision, folder: tempfile::tempdir().unwrap() }
        }

        fn load(&self, bytes: &[u8], adapters: &Adapters) -> Model {
            std::fs::write(self.folder.path().join("model.safetensors"), bytes).unwrap();
            let checkpoint = Checkpoint::open(self.folder.path(), &self.config).unwrap();
            Model::load(&self.config, &checkpoint, &self.precision, adapters).unwrap()
        }

        fn digest(&self, bytes: &[u8]) -> Digest {
            self.load(bytes, &Adapters::none()).digest(&Stop::default()).unwrap()
        }

        /// Where a tensor's bytes are, and how many make a value.
        fn place(&self, name: &str) -> (std::ops::Range<usize>, usize) {
            let (header, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
            let info = metadata.info(name).unwrap_or_else(|| panic!("{name}"));
            let (start, end) = info.data_offsets;
            let width = match info.dtype {
                Dtype::F32 => 4,
                Dtype::BF16 | Dtype::F16 => 2,
                _ => 1,
            };
            (8 + header + start..8 + header + end, width)
        }
    }

    const FAMILIES: [&str; 3] = ["qwen2_moe_s1/base", "qwen3_moe_s1/base", "qwen3_next_s1/base"];

    #[test]
    fn one_bit_of_any_tensor_makes_another_digest() {
        for fixture in FAMILIES {
            let base = Base::new(fixture, BasePrecision::Full);
            let mut seen = BTreeSet::from([base.digest(&base.bytes)]);
            assert!(!seen.insert(base.digest(&base.bytes)), "the digest of {fixture} is not always the same");
            for tensor in expected_tensors(&base.config) {
                let (place, width) = base.place(&tensor.name);
                let mut bytes = base.bytes.clone();
                // The lowest bit of the last value.
                bytes[place.end - width] ^= 1;
                assert!(seen.insert(base.digest(&bytes)), "{fixture}: {} is not in the digest", tensor.name);
            }
        }
    }

    #[test]
    fn every_value_is_hashed_once() {
        for fixture in FAMILIES {
            let base = Base::new(fixture, BasePrecision::Full);
            let model = base.load(&base.bytes, &Adapters::none());
            let parts = (0..model.layers.len() + 2).flat_map(|index| model.frozen(index).0);
            let (mut values, mut names) = (0, BTreeSet::new());
            for part in parts {
                let Stored::Floats(floats) = part.stored else { panic!("{} is not plain", part.name) };
                values += floats.len();
                assert!(names.insert(part.name.clone()), "{}", part.name);
            }
            let expected = expected_tensors(&base.config);
            assert_eq!(values, expected.iter().map(|t| t.shape.iter().product::<usize>()).sum::<usize>(), "{fixture}");
        }
    }

    #[test]
    fn a_value_of_any_quantised_tensor_makes_another_digest() {
        let base = Base::new("qwen3_next_s1/base", BasePrecision::nf4());
        let mut seen = BTreeSet::from([base.digest(&base.bytes)]);
        for tensor in expected_tensors(&base.config) {
            let (place, width) = base.place(&tensor.name);
            let mut bytes = base.bytes.clone();
            // The sign of the greatest value: its code is that of 1 or -1, whatever its block's scale.
            let magnitude = |at: &usize| {
                let high = u32::from(base.bytes[at + width - 1] & 0x7f) << 8;
                high | u32::from(base.bytes[at + width - 2])
            };
            let greatest = place.step_by(width).max_by_key(magnitude).unwrap();
            bytes[greatest + width - 1] ^= 0x80;
            assert!(seen.insert(base.digest(&bytes)), "{} is not in the digest", tensor.name);
        }
    }

    #[test]
    fn codes_and_scales_of_a_quantised_checkpoint_are_hashed() {
        let base = Base::new("qwen3_next_s1_bnb4bit", BasePrecision::nf4());
        let mut seen = BTreeSet::from([base.digest(&base.bytes)]);
        let path = "model.layers.3.self_attn.q_proj.weight";
        for suffix in ["", ".absmax", ".nested_absmax"] {
            let (place, width) = base.place(&format!("{path}{suffix}"));
            let mut bytes = base.bytes.clone();
            bytes[place.end - width] ^= 1;
            assert!(seen.insert(base.digest(&bytes)), "{path}{suffix} is not in the digest");
        }
    }

    #[test]
    fn tensors_that_change_places_make_another_digest() {
        let base = Base::new("qwen3_next_s1/base", BasePrecision::Full);
        let norm = |layer: usize| base.place(&format!("model.layers.{layer}.input_layernorm.weight")).0;
        let mut bytes = base.bytes.clone();
        bytes.copy_within(norm(1), norm(0).start);
        bytes[norm(1)].copy_from_slice(&base.bytes[norm(0)]);
        assert_ne!(bytes, base.bytes);
        assert_ne!(base.digest(&bytes), base.digest(&base.bytes));
    }

    #[test]
    fn adapters_are_no_part_of_the_digest_and_threads_do_not_matter() {
        let base = Base::new("qwen3_next_s1/base", BasePrecision::nf4());
        let options = LoraOptions {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            use_rslora: false,
            targets: TargetSet::All,
            expert_rank: None,
        };
        let adapters = Adapters::new(&base.config, &plan(&base.config, &options).unwrap(), 1).unwrap();
        let model = base.load(&base.bytes, &adapters);
        let before = model.digest(&Stop::default()).unwrap();
        assert_eq!(before, base.digest(&base.bytes));
        for parameter in adapters.parameters() {
            update_in_place(parameter.var.as_tensor(), |values| {
                values.fill(0.5);
                Ok(())
            })
            .unwrap();
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| model.digest(&Stop::default())).unwrap(), before);
    }

    #[test]
    fn large_tensors_are_hashed_in_pieces_to_their_end() {
        let mut values = vec![0.5f32; PIECE_BYTES / 4 * 2 + 7];
        let digest = |values: &[f32]| {
            let mut parts = Parts::default();
            parts.vector("x".into(), values);
            let mut hash = Sha256::new();
            parts.update(&mut hash, &Stop::default()).unwrap();
            Digest::finish(hash)
        };
        let mut seen = BTreeSet::from([digest(&values)]);
        for index in [0, PIECE_BYTES / 4, values.len() - 1] {
            values[index] = 0.25;
            assert!(seen.insert(digest(&values)), "{index}");
        }
        assert!(seen.insert(digest(&values[..values.len() - 1])));
    }

    #[test]
    fn a_cancelled_run_does_not_wait() {
        let base = Base::new("qwen3_next_s1/base", BasePrecision::Full);
        let model = base.load(&base.bytes, &Adapters::none());
        let stop = Stop::default();
        stop.ask(StopKind::Pause);
        assert!(matches!(model.digest(&stop), Err(Error::Cancelled)));
    }
}
