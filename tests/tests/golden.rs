//! The fixtures' numbers, and that a wrong weight or a wrong number is found.

use std::path::{Path, PathBuf};

use brightrun_tests::golden::measure;
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn assert_golden(name: &str) {
    let report = measure(&fixture(name)).unwrap();
    assert!(report.passed(), "{:#}", report.json(name));
}

#[test]
fn qwen3_next_meets_its_golden_numbers() {
    assert_golden("qwen3_next_s1");
}

#[test]
fn qwen3_moe_meets_its_golden_numbers() {
    assert_golden("qwen3_moe_s1");
}

#[test]
fn qwen2_moe_meets_its_golden_numbers() {
    assert_golden("qwen2_moe_s1");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

/// A copy without the NF4 numbers, which the faults below need not.
fn full_precision_copy(dir: &Path) {
    copy(&fixture("qwen3_moe_s1"), dir);
    change_json(&dir.join("golden.json"), |golden| golden["nf4"] = json!({}));
}

fn change_json(path: &Path, change: impl Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

fn failed(dir: &Path) -> Vec<String> {
    let report = measure(dir).unwrap().json("copy");
    report["failed"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_untouched_copy_passes() {
    let dir = tempfile::tempdir().unwrap();
    full_precision_copy(dir.path());
    assert_eq!(failed(dir.path()), [""; 0]);
}

#[test]
fn one_wrong_weight_of_one_expert_is_found() {
    let dir = tempfile::tempdir().unwrap();
    full_precision_copy(dir.path());
    let path = dir.path().join("base/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let name = "model.layers.1.mlp.experts.2.down_proj.weight";
    let info = metadata.info(name).unwrap();
    let start = 8 + header + info.data_offsets.0;
    // The high byte of the first value: its exponent changes.
    let last = start + info.dtype.bitsize() / 8 - 1;
    bytes[last] = 0x3f;
    std::fs::write(&path, bytes).unwrap();
    let failed = failed(dir.path());
    assert!(failed.iter().any(|line| line.starts_with("hidden.layer.1:")), "{failed:?}");
    assert!(!failed.iter().any(|line| line.starts_with("hidden.layer.0:")), "{failed:?}");
}

#[test]
fn one_wrong_golden_loss_is_found() {
    let dir = tempfile::tempdir().unwrap();
    full_precision_copy(dir.path());
    change_json(&dir.path().join("golden.json"), |golden| {
        let loss = golden["lora"]["train"]["loss"][7].as_f64().unwrap();
        golden["lora"]["train"]["loss"][7] = json!(loss * 1.003);
    });
    let failed = failed(dir.path());
    assert!(failed.len() == 1 && failed[0].starts_with("lora.train"), "{failed:?}");
}
