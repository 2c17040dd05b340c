//! Runs that never were, for the tests of all artifacts.

mod derived;

use super::{
    history::History,
    result::{BaseCheck, Cost, FileFact, Program, Proof, ReloadCheck, RunStatus},
    *,
};
use crate::{
    dataset::{
        finding::{FindingKind, Severity},
        report::*,
    },
    events::{Event, ExpertUse, LayerHealth, StepMetrics, StepTime},
    lora::{LoraPlan, ModuleLora},
    proof::{Change, Digest, ModuleCount, ModuleUpdate, OpCheck},
    run::Parameters,
};

/// A step of half a second with 100 tokens.
pub(crate) fn step_with(number: u64, change: impl FnOnce(&mut StepMetrics)) -> Event {
    let mut metrics = StepMetrics {
        step: number,
        epoch: 1 + ((number - 1) / 20) as u32,
        progress: number as f64 / 0.6,
        loss: 2.0,
        smoothed_loss: 2.0,
        learning_rate: 1e-4,
        gradient_norm: 0.5,
        tokens: 100,
        target_tokens: 40,
        tokens_per_second: 200.0,
        time: StepTime { total: 0.5, data: 0.05, forward: 0.15, backward: 0.2, optimizer: 0.05, idle: 0.05 },
        peak_memory_bytes: None,
        experts: None,
    };
    change(&mut metrics);
    Event::Step(metrics)
}

pub(crate) fn step(number: u64, loss: f64) -> Event {
    step_with(number, |metrics| (metrics.loss, metrics.smoothed_loss) = (loss, loss))
}

/// An evaluation of a quarter of a second.
pub(crate) fn evaluation(step: u64, loss: f64) -> Event {
    Event::Evaluation { step, loss, perplexity: loss.exp(), best: true, seconds: 0.25 }
}

pub(crate) fn health(step: u64, tokens: &[&[u64]]) -> Event {
    let layer = |(layer, tokens): (usize, &&[u64])| LayerHealth {
        layer,
        tokens_per_expert: tokens.to_vec(),
        router_entropy: (!tokens.is_empty()).then_some(0.9),
        adapter_norm: Some(0.1),
    };
    Event::Health { step, layers: tokens.iter().enumerate().map(layer).collect() }
}

/// Noise between -1 and 1 that is the same every time.
pub(crate) fn noise(number: u64) -> f64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// A run whose loss falls, with an evaluation every 10 steps and a look at the layers every 20.
pub(crate) fn sample(steps: u64) -> History {
    let mut history = History::default();
    let mut smoothed = None;
    for number in 1..=steps {
        let loss = 1.6 + 3.1 / (1.0 + number as f64 / 12.0) + 0.25 * noise(number);
        let mean = smoothed.map_or(loss, |before: f64| 0.9 * before + 0.1 * loss);
        smoothed = Some(mean);
        history.record(&step_with(number, |metrics| {
            metrics.loss = loss;
            metrics.smoothed_loss = mean;
            metrics.learning_rate = 2e-4 * (number as f64 / 10.0).min(1.0) * (1.0 - number as f64 / 90.0).max(0.1);
            metrics.gradient_norm = 0.8 + 0.5 * noise(number + 1000);
            metrics.tokens = 90 + number % 7;
            metrics.tokens_per_second = metrics.tokens as f64 / 0.5;
            metrics.peak_memory_bytes = Some(3_000_000_000 + 1_000_000 * number);
            metrics.experts =
                Some(ExpertUse { idle_share: 0.25 + 0.1 * noise(number), imbalance: 2.5, router_entropy: 0.8 });
        }));
        if number % 10 == 0 {
            let away = (number as f64 - 45.0) / 60.0;
            history.record(&evaluation(number, 2.1 + 0.6 * away * away));
        }
        if number % 20 == 0 {
            history.record(&health(number, &[&[number, 0, 3, 0], &[0, 0, number % 40, 1]]));
        }
    }
    history
}

pub(crate) fn good_proof() -> Proof {
    let op = |op: &str, tolerance| OpCheck {
        op: op.into(),
        what: "output".into(),
        max_relative_error: Some(tolerance / 10.0),
        tolerance,
    };
    let digest = |digits: &str| Digest::try_from(digits.repeat(32)).unwrap();
    let change = Change {
        digest_before: digest("a1"),
        digest_after: digest("b2"),
        modules: ModuleCount { total: 12, changed: 12, without_update: 0 },
        routed_experts: ModuleCount { total: 48, changed: 47, without_update: 1 },
        share_of_modules_changed: 59.0 / 60.0,
        unchanged: Vec::new(),
        modules_not_finite: 0,
        update_norm: 0.75,
        largest_update: Some(ModuleUpdate { module: "model.layers.0.self_attn.q_proj".into(), norm: 0.5 }),
    };
    Proof {
        base: Some(BaseCheck { sha256_before: "ab12".into(), sha256_after: "ab12".into() }),
        adapter: Some(change),
        ops: vec![op("attention", 1e-4), op("delta_rule", 1e-3)],
        reloaded: Some(ReloadCheck { reported_loss: 1.5, reloaded_loss: 1.501, tolerance: 1e-2 }),
    }
}

/// A file of 44 lines.
fn file_report() -> FileReport {
    FileReport {
        name: "conversations.jsonl".into(),
        bytes: 12_345,
        sha256: "cd".repeat(32),
        format: "openai".into(),
        lines: 44,
        examples: 43,
        skipped: 1,
        conversations: 12,
        avg_turns_per_conversation: 4.0,
        avg_tokens_per_turn: 80.0,
        learnt_turns: 43,
        tokens: 20_000,
        learnt_tokens: 8_000,
        learnt_share: 0.4,
        masked_share: 0.6,
        lengths: Lengths::default(),
        truncations: Truncations { examples: 2, turns: 3, tokens: 400 },
        finding_counts: vec![FindingCount {
            kind: FindingKind::ALL[0],
            severity: Severity::Skipped,
            count: 1,
            meaning: String::new(),
        }],
        findings: Vec::new(),
    }
}

fn dataset_report(parameters: &Parameters) -> DatasetReport {
    let side = |examples| SideReport {
        examples,
        conversations: examples / 4,
        tokens: 400 * examples,
        learnt_tokens: 160 * examples,
    };
    DatasetReport {
        report_version: 1,
        ready: true,
        verdict: "ready".into(),
        statistics: Statistics {
            total_training_pairs: 39,
            total_validation_pairs: 4,
            total_conversations: 12,
            total_tokens: 20_000,
            avg_turns_per_conversation: 4.0,
            avg_tokens_per_turn: 80.0,
            validation_split: 0.1,
        },
        settings: parameters.dataset(),
        rough_tokens: false,
        template: TemplateReport { source: "chat_template.jinja".into(), notes: Vec::new() },
        training: file_report(),
        validation: None,
        split: SplitReport { by: SplitKind::Conversation, training: side(39), validation: side(4) },
        packing: PackingReport { capacity: 4096, micro_batches_per_epoch: 20, fill_share: 0.9, padding_share: 0.0 },
        steps: StepsReport { per_epoch: 20, total: 60 },
    }
}

fn module(path: &str, rank: usize) -> ModuleLora {
    ModuleLora { path: path.into(), inputs: 8, outputs: 8, rank, alpha: 2.0 * rank as f64, scale: 2.0 }
}

/// Everything that a record borrows.
pub(crate) struct Job {
    pub(crate) job_id: String,
    pub(crate) status: RunStatus,
    pub(crate) program: Program,
    pub(crate) base: BaseModel,
    pub(crate) history: History,
    pub(crate) parameters: Parameters,
    pub(crate) plan: LoraPlan,
    pub(crate) dataset: DatasetReport,
    pub(crate) written: Vec<FileFact>,
    pub(crate) proof: Proof,
    pub(crate) warnings: Vec<String>,
    pub(crate) adapter_folder: String,
    /// Keeps the base model's folder.
    _base_dir: tempfile::TempDir,
}

impl Job {
    /// A run of 60 steps that went well.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        let parameters = Parameters { batch_size: 2, ..Parameters::default() };
        let paths = ["self_attn.q_proj", "linear_attn.in_proj_qkvz", "mlp.shared_expert.up_proj"];
        let modules = paths.map(|path| module(&format!("model.layers.0.{path}"), 16)).to_vec();
        Self {
            job_id: "demo-1".into(),
            status: RunStatus::Success,
            program: Program { name: "brightrun".into(), version: "1.2.3".into() },
            base: BaseModel {
                asked: None,
                name: "Qwen/Qwen3-Next-80B-A3B-Instruct".into(),
                path: folder.path().to_owned(),
                revision: Some("main".into()),
                sha256: Some("ef".repeat(32)),
                license: Some("apache-2.0".into()),
            },
            history: sample(60),
            plan: LoraPlan { options: parameters.lora(), modules },
            dataset: dataset_report(&parameters),
            parameters,
            written: vec![FileFact::of("adapter/adapter_model.safetensors", b"weights")],
            proof: good_proof(),
            warnings: vec!["the dataset is small".into()],
            adapter_folder: "adapter".into(),
            _base_dir: folder,
        }
    }

    /// Lets routed experts be adapted too.
    pub(crate) fn with_experts(mut self, rank: usize) -> Self {
        self.plan.modules.push(module("model.layers.0.mlp.experts.3.up_proj", rank));
        self
    }

    pub(crate) fn record(&self) -> RunRecord<'_> {
        RunRecord {
            job_id: &self.job_id,
            status: self.status,
            error: None,
            program: &self.program,
            base: &self.base,
            history: &self.history,
            parameters: &self.parameters,
            plan: &self.plan,
            dataset: &self.dataset,
            base_parameters: 81_000_000_000,
            trainable_parameters: 21_800_000,
            adapter_step: 60,
            started_at: 1_700_000_000.0,
            eval_steps: 10,
            save_steps: None,
            adapter_folder: &self.adapter_folder,
            written: &self.written,
            proof: &self.proof,
            warnings: &self.warnings,
            cost: Some(Cost { gpu_seconds: 31.5, usd: 0.03 }),
        }
    }
}

/// Writes everything and gives the folder and what was said of it.
fn written(job: &Job) -> (tempfile::TempDir, Vec<FileFact>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("adapter")).unwrap();
    let facts = write_all(folder.path(), &job.record()).unwrap();
    (folder, facts)
}

#[test]
fn every_file_is_there_and_known_by_its_hash() {
    let job = Job::new();
    let (folder, facts) = written(&job);
    let names: Vec<&str> = facts.iter().map(|fact| fact.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "adapter/adapter_model.safetensors",
            "metrics.jsonl",
            "events.out.tfevents.brightrun",
            "trainer_state.json",
            "training_args.json",
            "loss_curve.svg",
            "loss_curve.png",
            "README.md",
            "adapter/tokenizer.json",
            "result.json",
        ]
    );
    // The first is another module's.
    for fact in &facts[1..] {
        let bytes = std::fs::read(folder.path().join(&fact.name)).unwrap();
        assert_eq!(FileFact::of(fact.name.clone(), &bytes), *fact);
        // What the platform accepts as a name.
        assert!(fact.name.chars().all(|letter| letter.is_ascii_alphanumeric() || "._/-".contains(letter)));
    }
    let result: result::RunResult =
        serde_json::from_slice(&std::fs::read(folder.path().join("result.json")).unwrap()).unwrap();
    assert_eq!(result.files, facts[..facts.len() - 1]);
    assert_eq!(result, job.record().result(result.files.clone()), "it reads back as it was");
    assert!(result.proven && result.failed_checks.is_empty());
}

#[test]
fn the_same_record_gives_the_same_bytes() {
    let job = Job::new();
    assert_eq!(written(&job).1, written(&job).1);
    let (folder, facts) = written(&job);
    assert_eq!(write_all(folder.path(), &job.record()).unwrap(), facts, "also over files that are there");
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 9, "nothing is left beside them");
}

#[test]
fn a_run_without_a_step_has_all_its_files_too() {
    let mut job = Job::new();
    job.history = History::default();
    job.proof = Proof::default();
    job.status = RunStatus::Failed;
    let (folder, _) = written(&job);
    let result: result::RunResult =
        serde_json::from_slice(&std::fs::read(folder.path().join("result.json")).unwrap()).unwrap();
    assert_eq!((result.current_step, result.progress, result.proven), (0, 0.0, false));
    assert_eq!(result.quality.overall_score, 3);
    assert_eq!(serde_json::to_value(result.metrics).unwrap(), serde_json::json!({}));
}
