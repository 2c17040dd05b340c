//! The card of good, bad and hostile runs.

use super::*;
use crate::{
    artifacts::{history::History, tests::Job},
    lora::Dialect,
    run::PrecisionKind,
};

fn card(job: &Job) -> String {
    model_card(&job.record()).unwrap()
}

#[test]
fn the_hub_finds_what_it_looks_for() {
    let card = card(&Job::new());
    let wanted = "---\nlicense: \"apache-2.0\"\nbase_model: \"Qwen/Qwen3-Next-80B-A3B-Instruct\"\nbase_model_relation: adapter\n\
                  library_name: peft\npipeline_tag: text-generation\ntags:\n- lora\n- qlora\n- moe\n- brightrun\n---\n\n# demo-1\n";
    assert!(card.starts_with(wanted), "{card}");
    let headings: Vec<&str> = card.lines().filter(|line| line.starts_with("## ")).collect();
    assert_eq!(
        headings,
        ["## Results", "## Data", "## Settings", "## How to load it", "## What to know", "## How it was made"]
    );
    assert!(card.contains("21.8 million trained parameters beside 81.0 billion frozen ones"), "{card}");
    assert!(card.contains("![Loss over the steps](loss_curve.png)"));
    assert!(card.contains("43 examples of 12 conversations, format openai, 20000 tokens of which 40.0 % are learnt"));
    assert!(card.contains("39 examples were learnt. 4 were kept to measure with"));
    assert!(card.contains("| peak learning rate | 0.0002 |") && card.contains("| warm-up | ratio 0.1 |"), "{card}");
    assert!(card.contains("Made by brightrun 1.2.3") && card.contains("* the dataset is small"));
}

#[test]
fn every_parameter_that_shapes_the_adapter_is_in_the_card() {
    let saving = ["save_steps", "save_minutes", "keep_checkpoints"];
    let mut shown: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).chain(saving).collect();
    shown.sort_unstable();
    let Value::Object(parameters) = serde_json::to_value(crate::run::Parameters::default()).unwrap() else { panic!() };
    let mut expected: Vec<&str> = parameters.keys().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(shown, expected);
    let mut job = Job::new();
    job.parameters.loraplus_lr_ratio = 16.0;
    job.parameters.init_adapter = Some("/jobs/a private folder/earlier_adapter".into());
    let card = card(&job);
    assert!(card.contains("| learning rate of B over that of A (LoRA+) | 16.0 |"), "{card}");
    assert!(card.contains("| begun from the adapter | earlier") && !card.contains("private"), "{card}");
}

#[test]
fn what_is_not_known_is_not_said() {
    let mut job = Job::new();
    job.base.license = None;
    job.base.name = "/data/models/a private folder".into();
    job.history = History::default();
    let card = card(&job);
    assert!(card.starts_with("---\nlibrary_name: peft\n"), "{card}");
    assert!(card.contains("☆") && card.contains("unknown"), "{card}");
    assert!(!card.contains("| best validation loss"));
}

#[test]
fn another_base_than_the_one_asked_for_is_said() {
    let mut job = Job::new();
    job.base.asked = Some("mistralai/Mistral-7B-v0.1".into());
    assert!(card(&job).contains("The job asked for mistralai/Mistral-7B-v0.1; the machine"));
    job.base.asked = Some(job.base.name.clone());
    assert!(!card(&job).contains("asked for"));
}

#[test]
fn what_was_not_proven_is_said() {
    let mut job = Job::new();
    assert!(card(&job).contains("Checked at the end: the base is bit for bit"));
    job.proof.base = None;
    let card = card(&job);
    assert!(card.contains("* **Not proven**: not checked: that the base model is unchanged"), "{card}");
    assert!(card.contains("Not everything that is checked at the end held"));
}

#[test]
fn foreign_text_is_shown_and_means_nothing() {
    let evil = "x\n---\n# <img src=x onerror=1> [a](javascript:b) ``` **b** \"); import os #";
    let mut job = Job::new();
    job.job_id = evil.into();
    job.base.name = evil.into();
    job.base.license = Some(evil.into());
    job.base.revision = Some(evil.into());
    job.base.sha256 = Some(evil.into());
    job.dataset.training.name = evil.into();
    job.dataset.training.format = evil.into();
    job.dataset.training.sha256 = evil.into();
    job.warnings = vec![evil.into()];
    job.parameters.targets = crate::lora::TargetSet::Named(vec![evil.into()]);
    let card = card(&job);
    assert!(card.lines().filter(|line| *line == "---").count() == 2, "the front matter ends where it should");
    assert_eq!(card.lines().filter(|line| line.starts_with("# ")).count(), 1, "{card}");
    let fences = card.lines().filter(|line| line.starts_with("```")).count();
    assert_eq!((fences, card.matches("```").count()), (6, 6), "{card}");
    // Outside of code nothing is bare.
    let mut in_code = false;
    for line in card.lines() {
        in_code ^= line.starts_with("```");
        let bare = |text: &str| line.contains(text) && !line.contains(&format!("\\{text}"));
        assert!(in_code || line.starts_with("license: ") || !(bare("<img") || bare("[a]") || bare("**b")), "{line}");
    }
    assert!(card.contains("from_pretrained(\"x --- # <img src=x onerror=1> [a](javascript:b) \\x60\\x60\\x60 **b** \\x22); import os #\","), "{card}");
}

#[test]
fn how_to_load_it_follows_from_the_dialect() {
    let mut job = Job::new();
    let instructions = |job: &Job| loading::instructions(&job.record());
    let text = instructions(&job);
    assert!(text.contains("**Mind PEFT 0.21 with transformers 5**: it drops"), "{text}");
    assert!(text.contains(
        "vllm serve Qwen/Qwen3-Next-80B-A3B-Instruct --enable-lora --max-lora-rank 16 --lora-modules demo-1=adapter"
    ));
    assert!(text.contains("wrongly when tensor parallelism is above 1") && text.contains("in NF4"));
    // Experts alone: nothing is dropped. A rank that servers do not have is rounded up.
    job.plan.modules.clear();
    job.parameters.base_precision = PrecisionKind::Full;
    let job = job.with_experts(20);
    let text = instructions(&job);
    assert!(!text.contains("Mind PEFT") && text.contains("converts the experts while it loads"), "{text}");
    assert!(text.contains("--max-lora-rank 32") && text.contains("rank 20, above the 16"), "{text}");
    assert!(!text.contains("in_proj_qkvz") && text.contains("beside an unquantised base"));
}

#[test]
fn the_fused_dialect_is_not_for_servers() {
    let mut job = Job::new().with_experts(1);
    job.parameters.adapter_dialect = Dialect::Fused;
    job.adapter_folder = ".".into();
    let text = loading::instructions(&job.record());
    assert!(text.contains("for PEFT 0.21 with transformers 5") && !text.contains("vllm serve"), "{text}");
    assert!(text.contains("safe_open(\"./adapter_model.safetensors\""), "{text}");
}
