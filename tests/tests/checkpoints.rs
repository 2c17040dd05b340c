//! Checkpoints on a real file system: killed writers, full disks, and a run that goes on from one.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use brightrun_tests::checkpoints::{Subject, fingerprint};
use brightrun_tests::steps::{PLAIN, gradients};
use brightrun_tests::toy::{Random, Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::MicroBatch;
use brightrun_trainer::checkpoint::{Captured, Checkpoints, FileSystem, Restored};
use brightrun_trainer::config::Family;
use brightrun_trainer::model::Model;
use brightrun_trainer::optim::{Optimizer, OptimizerKind, OptimizerOptions};
use brightrun_trainer::step::StepOptions;

const WRITER: &str = env!("CARGO_BIN_EXE_checkpoint_writer");

fn open(dir: &Path) -> Checkpoints {
    let (checkpoints, notes) = Checkpoints::open(dir, 2, fingerprint(), Arc::new(FileSystem)).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    checkpoints
}

fn latest(dir: &Path) -> Option<Restored> {
    let found = open(dir).latest().unwrap();
    assert!(found.notes.is_empty(), "{:?}", found.notes);
    found.checkpoint
}

fn unfinished(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".tmp")).count()
}

#[test]
fn a_writer_killed_at_any_moment_leaves_what_it_said_is_saved() {
    const ROUNDS: u64 = 20;
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("checkpoints");
    let (mut subject, mut random) = (Subject::new().unwrap(), Random::new(4));
    let (mut before, mut interrupted) = (0, 0);
    for round in 0..ROUNDS {
        let mut writer = Command::new(WRITER).arg(&dir).arg("1000000").stdout(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(writer.stdout.take().unwrap());
        let mut text = String::new();
        // Now and then before the first one is durable.
        if round % 4 != 0 {
            told.read_line(&mut text).unwrap();
        }
        sleep(Duration::from_micros((random.unit() * 60_000.0) as u64));
        writer.kill().unwrap();
        writer.wait().unwrap();
        told.read_to_string(&mut text).unwrap();
        let durable = text.lines().map(|line| line.strip_prefix("saved ").unwrap().parse().unwrap()).max();
        if dir.exists() {
            interrupted += unfinished(&dir);
        }
        let found = latest(&dir);
        let step = found.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let at_least = durable.unwrap_or(before).max(before);
        assert!((at_least..=at_least + 2).contains(&step), "{step} found after {at_least}");
        if let Some(checkpoint) = found {
            subject.check(&checkpoint).unwrap();
        }
        if let Some(best) = open(&dir).best().unwrap().checkpoint {
            assert!(best.step % 5 == 0 && best.step + 5 > step, "{} is no longer the best at {step}", best.step);
            subject.check(&best).unwrap();
        }
        assert_eq!(unfinished(&dir), 0);
        before = step;
    }
    assert!(before > ROUNDS / 2 && interrupted > 0, "{before} {interrupted}");
}

#[cfg(unix)]
#[test]
fn where_the_system_refuses_to_write_more_the_old_one_stays() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("checkpoints");
    let write = |script: &str| {
        let output = Command::new("sh").args(["-c", script, WRITER]).arg(&dir).arg("3").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let whole = "exec \"$0\" \"$@\"";
    // 16 blocks are less than the files of arrays have, whether the shell counts 512 bytes or 1024.
    let limited = "ulimit -f 16; trap '' XFSZ; exec \"$0\" \"$@\"";
    assert_eq!(write(whole), "saved 1\nsaved 2\nsaved 3\n");
    assert_eq!(write(limited), "full 4\nfull 5\nfull 6\n");
    assert_eq!(unfinished(&dir), 0);
    let checkpoint = latest(&dir).unwrap();
    assert_eq!(checkpoint.step, 3);
    Subject::new().unwrap().check(&checkpoint).unwrap();
    assert_eq!(write(whole), "saved 4\nsaved 5\nsaved 6\n");
}

/// Something that learns.
struct Learner {
    toy: Toy,
    adapters: Adapters,
    model: Model,
    optimizer: Optimizer,
}

// === impl Learner ===

impl Learner {
    fn new(dir: &Path, kind: OptimizerKind, loraplus_lr_ratio: f64) -> Self {
        let toy = Toy::write(dir, &Shape::tiny(Family::Qwen3Next), 1).unwrap();
        let plan = toy.plan(toy.every_linear()).unwrap();
        let adapters = Adapters::new(&toy.config, &plan, 5).unwrap();
        let model = toy.model(&adapters).unwrap();
        let options = OptimizerOptions { kind, loraplus_lr_ratio, ..OptimizerOptions::default() };
        let optimizer = Optimizer::new(&adapters, options);
        Self { toy, adapters, model, optimizer }
    }

    fn step(&mut self, step: u64) {
        // Few tokens, so that some experts have no row and fall behind in their updates.
        let batch = MicroBatch::from_sequences(&self.toy.sequences(&[3, 2], 0.8, step)).unwrap();
        let options = StepOptions { dropout: 0.1, seed: step, ..PLAIN };
        let outcome = gradients(&self.model, &self.adapters, &[batch], &options).unwrap();
        self.optimizer.step(&outcome.gradients, 1e-2).unwrap();
    }

    fn bits(&self) -> Vec<u32> {
        let parameters = self.adapters.parameters();
        parameters.iter().flat_map(|parameter| parameter.values().unwrap()).map(f32::to_bits).collect()
    }
}

#[test]
fn what_goes_on_from_a_checkpoint_has_the_bits_of_what_never_stopped() {
    let kinds = [OptimizerKind::AdamW, OptimizerKind::AdamW8bit];
    for (kind, ratio) in kinds.into_iter().flat_map(|kind| [(kind, 1.0), (kind, 16.0)]) {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("checkpoints");
        let mut first = Learner::new(folder.path(), kind, ratio);
        (1..=4).for_each(|step| first.step(step));
        let captured = Captured::take(4, &first.adapters, &first.optimizer, &"four", b"").unwrap();
        let mut checkpoints = open(&dir);
        assert!(checkpoints.save(captured).is_empty());
        // What is captured is a copy: the run goes on while it is written.
        (5..=7).for_each(|step| first.step(step));
        assert!(checkpoints.finish().iter().all(Result::is_ok));
        let mut second = Learner::new(folder.path(), kind, ratio);
        let checkpoint = latest(&dir).unwrap();
        checkpoint.restore(&second.adapters, &mut second.optimizer).unwrap();
        (5..=7).for_each(|step| second.step(step));
        assert!(first.bits() == second.bits(), "{kind:?} {ratio}");
        // The optimiser's state is part of it: the adapter alone goes elsewhere.
        let mut third = Learner::new(folder.path(), kind, ratio);
        checkpoint.restore_adapters(&third.adapters).unwrap();
        (5..=7).for_each(|step| third.step(step));
        assert!(first.bits() != third.bits(), "{kind:?} {ratio}");
    }
}
