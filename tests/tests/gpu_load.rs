//! What a model in a GPU's memory was made of: every value of the files is in it, and none that is no number.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use brightrun_kernels::gpu::Gpu;
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::config::ModelConfig;
use brightrun_trainer::gpu::{GpuModel, Source};
use brightrun_trainer::stop::{Stop, StopKind};
use brightrun_trainer::weights::{BasePrecision, Checkpoint, expected_tensors};
use brightrun_trainer::{Error, Result};
use safetensors::{Dtype, SafeTensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn load(folder: &Path, precision: &BasePrecision) -> Result<GpuModel> {
    let config = ModelConfig::read(folder)?;
    let checkpoint = Checkpoint::open(folder, &config)?;
    GpuModel::load(&Gpu::emulated(0), &config, Source::Checkpoint(&checkpoint), precision, &Adapters::none())
}

fn digest(folder: &Path, precision: &BasePrecision) -> String {
    load(folder, precision).unwrap().digest(&Stop::default()).unwrap().to_string()
}

/// A copy of a fixture whose file can be damaged.
struct Base {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Base {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = fixture(name).join("base");
        std::fs::copy(from.join("config.json"), folder.path().join("config.json")).unwrap();
        Self { folder, bytes: std::fs::read(from.join("model.safetensors")).unwrap() }
    }

    /// Where a tensor's bytes are, and how many make a value.
    fn place(&self, name: &str) -> (Range<usize>, usize) {
        let (header, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        let info = metadata.info(name).unwrap_or_else(|| panic!("{name}"));
        let (start, end) = info.data_offsets;
        (8 + header + start..8 + header + end, if info.dtype == Dtype::F32 { 4 } else { 2 })
    }

    fn with(&self, change: impl FnOnce(&mut Vec<u8>)) -> &Path {
        let mut bytes = self.bytes.clone();
        change(&mut bytes);
        std::fs::write(self.folder.path().join("model.safetensors"), bytes).unwrap();
        self.folder.path()
    }
}

#[test]
fn another_value_anywhere_makes_another_digest() {
    for name in ["qwen2_moe_s1", "qwen3_moe_s1", "qwen3_next_s1"] {
        let base = Base::new(name);
        let config = ModelConfig::read(&fixture(name).join("base")).unwrap();
        let mut seen = BTreeSet::from([digest(base.with(|_| {}), &BasePrecision::Full)]);
        assert!(seen.contains(&digest(base.with(|_| {}), &BasePrecision::Full)), "{name}: not always the same");
        for tensor in expected_tensors(&config) {
            let (place, _) = base.place(&tensor.name);
            // The sign of the last value, which is 0 nowhere.
            let changed = base.with(|bytes| bytes[place.end - 1] ^= 0x80);
            assert!(seen.insert(digest(changed, &BasePrecision::Full)), "{name}: {} is not in the digest", tensor.name);
        }
    }
}

#[test]
fn what_is_quantised_stays_as_it_is_and_what_is_not_is_quantised() {
    for name in ["qwen2_moe_s1", "qwen3_moe_s1", "qwen3_next_s1"] {
        let quantised = fixture(&format!("{name}_bnb4bit"));
        let stored = digest(&quantised, &BasePrecision::Full);
        assert_eq!(digest(&quantised, &BasePrecision::nf4()), stored, "{name}");
        let plain = fixture(name).join("base");
        let [full, nf4] = [BasePrecision::Full, BasePrecision::nf4()].map(|precision| digest(&plain, &precision));
        assert!(full != nf4 && nf4 != stored, "{name}");
    }
}

#[test]
fn values_that_are_no_numbers_are_refused_by_name() {
    let base = Base::new("qwen3_next_s1");
    for name in ["model.layers.0.mlp.experts.1.up_proj.weight", "model.layers.0.linear_attn.out_proj.weight"] {
        let (place, width) = base.place(name);
        let infinite: &[u8] = if width == 4 { &[0, 0, 0x80, 0x7f] } else { &[0x80, 0x7f] };
        let damaged =
            base.with(|bytes| bytes[place.start + 5 * width..place.start + 6 * width].copy_from_slice(infinite));
        for precision in [BasePrecision::Full, BasePrecision::nf4()] {
            let error = load(damaged, &precision).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("[5]: found inf"), "{error}");
        }
    }
}

#[test]
fn a_digest_ends_when_it_is_stopped() {
    let model = load(&fixture("qwen3_moe_s1").join("base"), &BasePrecision::nf4()).unwrap();
    let stop = Stop::default();
    stop.ask(StopKind::Cancel);
    assert!(matches!(model.digest(&stop), Err(Error::Cancelled)));
}
