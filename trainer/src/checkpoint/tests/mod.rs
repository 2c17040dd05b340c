//! What is saved comes back bit by bit, and no fault on the way leaves anything between the old and the new.

mod damage;
mod faults;
mod properties;
mod simulated;

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::*;
use crate::{
    adapters::Adapters,
    config::ModelConfig,
    lora::{LoraOptions, TargetSet, plan},
    optim::{Optimizer, OptimizerKind, OptimizerOptions, OptimizerState, StateValues},
};
use simulated::Simulated;

/// The folder of the simulated file system.
const RUN: &str = "/run";

/// Something that is saved: adapters with a linear and two routed experts, and an optimiser's state.
pub(crate) struct Subject {
    pub(crate) adapters: Adapters,
    pub(crate) optimizer: Optimizer,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Progress {
    step: u64,
    loss: f64,
}

// === impl Subject ===

impl Subject {
    pub(crate) fn new(kind: OptimizerKind) -> Self {
        Self::with_ratio(kind, 1.0)
    }

    /// With another learning rate for every `B`.
    pub(crate) fn with_ratio(kind: OptimizerKind, loraplus_lr_ratio: f64) -> Self {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3_moe_s1/base");
        let config = ModelConfig::read(&base).unwrap();
        let names = ["self_attn.k_proj", "mlp.experts.0.gate_proj", "mlp.experts.3.down_proj"];
        let targets = TargetSet::Named(names.map(|name| format!("model.layers.1.{name}")).into());
        let options =
            LoraOptions { rank: 3, alpha: 6.0, dropout: 0.0, use_rslora: false, targets, expert_rank: Some(2) };
        let adapters = Adapters::new(&config, &plan(&config, &options).unwrap(), 5).unwrap();
        let options = OptimizerOptions { kind, loraplus_lr_ratio, ..OptimizerOptions::default() };
        let optimizer = Optimizer::new(&adapters, options);
        Self { adapters, optimizer }
    }

    /// Gives every value a bit pattern that follows from the step.
    fn fill(&mut self, step: u64) {
        let mut state = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for (index, parameter) in self.adapters.parameters().iter().enumerate() {
            let values: Vec<f32> = (0..parameter.var.elem_count()).map(|_| f32::from_bits(next() as u32)).collect();
            parameter.set_values(&values).unwrap();
            for &part in self.optimizer.parts() {
                let mut values = self.optimizer.part(index, part).unwrap();
                match &mut values {
                    StateValues::Counts(values) => values.iter_mut().for_each(|value| *value = next() % (step + 1)),
                    StateValues::Floats(values) => {
                        values.iter_mut().for_each(|value| *value = f32::from_bits(next() as u32));
                    }
                    StateValues::Codes(values) => values.iter_mut().for_each(|value| *value = next() as u8),
                }
                self.optimizer.set_part(index, part, &values).unwrap();
            }
        }
    }

    /// Every bit.
    pub(crate) fn bits(&self) -> Vec<u64> {
        let mut bits = Vec::new();
        for (index, parameter) in self.adapters.parameters().iter().enumerate() {
            bits.extend(parameter.values().unwrap().iter().map(|value| u64::from(value.to_bits())));
            for &part in self.optimizer.parts() {
                match self.optimizer.part(index, part).unwrap() {
                    StateValues::Counts(values) => bits.extend(values),
                    StateValues::Floats(values) => bits.extend(values.iter().map(|value| u64::from(value.to_bits()))),
                    StateValues::Codes(values) => bits.extend(values.iter().map(|value| u64::from(*value))),
                }
            }
        }
        bits
    }

    /// What a run would capture after this step.
    fn captured(&mut self, step: u64) -> Captured {
        self.fill(step);
        let progress = Progress { step, loss: 1.0 / step as f64 };
        Captured::take(step, &self.adapters, &self.optimizer, &progress, &metrics(step)).unwrap()
    }

    /// Restores a checkpoint and compares all of it with what was captured after its step.
    fn assert_restores(&mut self, checkpoint: &Restored) {
        let step = checkpoint.step;
        assert_eq!(checkpoint.progress::<Progress>().unwrap().step, step);
        assert_eq!(checkpoint.metrics, metrics(step));
        self.fill(step);
        let expected = self.bits();
        self.fill(step + 1);
        checkpoint.restore(&self.adapters, &mut self.optimizer).unwrap();
        assert!(self.bits() == expected, "step {step}");
    }
}

fn metrics(step: u64) -> Vec<u8> {
    format!("{{\"step\":{step}}}\n").repeat(step as usize % 7).into_bytes()
}

fn settings() -> Fingerprint {
    Fingerprint::new().with("learning_rate", 0.0002).with("dataset", "3f2a")
}

fn open(storage: &Simulated, keep: usize) -> Checkpoints {
    let (checkpoints, notes) = Checkpoints::open(Path::new(RUN), keep, settings(), Arc::new(storage.clone())).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    checkpoints
}

fn save(checkpoints: &mut Checkpoints, captured: Captured) -> Ended {
    assert!(checkpoints.save(captured).is_empty());
    let mut ended = checkpoints.finish();
    assert_eq!(ended.len(), 1);
    ended.remove(0)
}

fn steps(storage: &Simulated) -> Vec<String> {
    storage.list(Path::new(RUN)).unwrap()
}

/// The checkpoint that is found, without a word about any other.
fn found(found: Found) -> Restored {
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    found.checkpoint.unwrap()
}

#[test]
fn the_newest_few_and_the_best_one_are_kept() {
    let (storage, mut subject) = (Simulated::new(), Subject::new(OptimizerKind::AdamW));
    let mut checkpoints = open(&storage, 2);
    assert!(checkpoints.latest().unwrap().checkpoint.is_none());
    for step in [10, 20, 30, 40] {
        let captured = subject.captured(step);
        let captured = if step == 10 { captured.best() } else { captured };
        let saved = save(&mut checkpoints, captured).unwrap();
        assert_eq!((saved.step, saved.notes.len()), (step, 0));
    }
    assert_eq!(steps(&storage), ["step-00000010", "step-00000030", "step-00000040"]);
    assert_eq!(found(checkpoints.best().unwrap()).step, 10);
    // What is the best is known after a new start too.
    let mut checkpoints = open(&storage, 2);
    save(&mut checkpoints, subject.captured(50)).unwrap();
    assert_eq!(steps(&storage), ["step-00000010", "step-00000040", "step-00000050"]);
    save(&mut checkpoints, subject.captured(60).best()).unwrap();
    assert_eq!(steps(&storage), ["step-00000050", "step-00000060"]);
    let best = found(checkpoints.best().unwrap());
    assert!(best.best && best.step == 60);
    subject.assert_restores(&best);
}

#[test]
fn saves_end_in_their_order_and_the_same_step_can_be_saved_again() {
    let (storage, mut subject) = (Simulated::new(), Subject::new(OptimizerKind::AdamW8bit));
    let mut checkpoints = open(&storage, 2);
    let mut ended = Vec::new();
    for step in [1, 2, 2, 3, 3] {
        ended.extend(checkpoints.save(subject.captured(step)));
    }
    ended.extend(checkpoints.finish());
    assert_eq!(ended.into_iter().map(|ended| ended.unwrap().step).collect::<Vec<_>>(), [1, 2, 2, 3, 3]);
    assert!(checkpoints.finish().is_empty() && checkpoints.poll().is_empty());
    assert_eq!(steps(&storage), ["step-00000003", "step-00000003-1"]);
    subject.assert_restores(&found(open(&storage, 1).latest().unwrap()));
}

#[test]
fn real_files_come_back_bit_by_bit_and_foreign_ones_are_left_alone() {
    for kind in [OptimizerKind::AdamW, OptimizerKind::AdamW8bit] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b");
        let mut subject = Subject::new(kind);
        let open = || Checkpoints::open(&dir, 1, settings(), Arc::new(FileSystem)).unwrap();
        let (mut checkpoints, _) = open();
        let saved = save(&mut checkpoints, subject.captured(7)).unwrap();
        let place = dir.join("step-00000007");
        let bytes: u64 = std::fs::read_dir(&place).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(saved.bytes, bytes);
        save(&mut checkpoints, subject.captured(9)).unwrap();
        std::fs::create_dir(dir.join(".step-00000011.1-0.tmp")).unwrap();
        std::fs::write(dir.join(".step-00000011.1-0.tmp/adapter.safetensors"), b"half").unwrap();
        for foreign in ["step-11", "step-00000099999999999999999999", "notes", "step-00000012-00"] {
            std::fs::create_dir(dir.join(foreign)).unwrap();
        }
        let (mut checkpoints, notes) = open();
        assert!(notes.is_empty());
        let checkpoint = found(checkpoints.latest().unwrap());
        assert_eq!((checkpoint.step, checkpoint.folder()), (9, dir.join("step-00000009").as_path()));
        subject.assert_restores(&checkpoint);
        save(&mut checkpoints, subject.captured(11)).unwrap();
        let mut names = FileSystem.list(&dir).unwrap();
        names.sort();
        assert_eq!(names, ["notes", "step-00000011", "step-00000012-00", "step-00000099999999999999999999", "step-11"]);
        // Safetensors files that any reader can read.
        let bytes = std::fs::read(dir.join("step-00000011/optimizer.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let name = "model.layers.1.mlp.experts.lora.updates";
        assert_eq!(tensors.tensor(name).unwrap().shape(), [8]);
    }
}

#[test]
fn another_run_is_refused_with_every_difference() {
    let (storage, mut subject) = (Simulated::new(), Subject::new(OptimizerKind::AdamW));
    save(&mut open(&storage, 1), subject.captured(3)).unwrap();
    let other = Fingerprint::new().with("learning_rate", 0.0001).with("dataset", "3f2a").with("rank", 8);
    let (mut checkpoints, _) = Checkpoints::open(Path::new(RUN), 1, other, Arc::new(storage.clone())).unwrap();
    for error in [checkpoints.latest().unwrap_err()] {
        let text = error.to_string();
        for part in ["learning_rate: 0.0002 then, 0.0001 now", "rank: not given then, 8 now", "/run", "another job id"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("dataset"), "{text}");
    }
    // A checkpoint of another version of the format is no damage either.
    let path = Path::new(RUN).join("step-00000003/manifest.json");
    storage.edit(&path, |bytes| *bytes = manifest::sealed("{\"format\":2}").into_bytes());
    let text = open(&storage, 1).latest().unwrap_err().to_string();
    assert!(text.contains("checkpoint format: 2 then, 1 now"), "{text}");
}

#[test]
fn other_shapes_are_refused_before_anything_changes() {
    let (storage, mut subject) = (Simulated::new(), Subject::new(OptimizerKind::AdamW));
    let mut checkpoints = open(&storage, 1);
    save(&mut checkpoints, subject.captured(3)).unwrap();
    let checkpoint = found(checkpoints.latest().unwrap());
    let mut other = Subject::new(OptimizerKind::AdamW8bit);
    other.fill(1);
    let before = other.bits();
    let error = checkpoint.restore(&other.adapters, &mut other.optimizer).unwrap_err().to_string();
    assert!(error.contains("optimizer.safetensors") && error.contains("m_scale: missing"), "{error}");
    assert!(other.bits() == before);
    let mut none = Optimizer::new(&Adapters::none(), OptimizerOptions::default());
    let error = checkpoint.restore(&Adapters::none(), &mut none).unwrap_err().to_string();
    assert!(error.contains("not of this run"), "{error}");
}

#[test]
fn impossible_requests_are_refused() {
    let storage: Arc<dyn Storage> = Arc::new(Simulated::new());
    let open = |keep: usize, settings: Fingerprint| Checkpoints::open(Path::new(RUN), keep, settings, storage.clone());
    assert!(open(0, settings()).unwrap_err().to_string().contains("at least one"));
    let large = settings().with("plan", "x".repeat(MAX_FINGERPRINT_BYTES as usize));
    assert!(open(1, large).unwrap_err().to_string().contains("at most"));
    let subject = Subject::new(OptimizerKind::AdamW);
    let take = |step: u64| Captured::take(step, &subject.adapters, &subject.optimizer, &(), b"");
    assert!(take(u64::MAX).unwrap_err().to_string().contains("counts to"));
    assert_eq!(take(4).unwrap().step(), 4);
}
