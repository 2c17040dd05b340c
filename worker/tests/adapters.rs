//! What a user does with an adapter, on the demo: train, measure, ask, merge, and measure again.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};

fn brightrun(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_brightrun")).args(arguments).current_dir(folder).output().unwrap()
}

/// The JSON of a command that succeeds, and nothing else on its standard output.
fn done(folder: &Path, arguments: &[&str]) -> Value {
    let output = brightrun(folder, &[arguments, &["--json"]].concat());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}\n{text}\n{}", String::from_utf8_lossy(&output.stdout));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["status"], "success");
    result
}

/// Trains the demo for some steps, with an adapter of every digit.
fn train(folder: &Path) -> Value {
    let hyperparameters = json!({
        "base_model": "brightrun/demo-moe", "learning_rate": 0.005, "batch_size": 4, "num_epochs": 1, "max_steps": 5,
        "lora_rank": 4, "targets": "all", "adapter_dtype": "f32", "validation_split": 0.1, "warmup_steps": 0,
    });
    let job =
        json!({ "input": { "job_id": "j", "dataset_url": "demo:conversations", "hyperparameters": hyperparameters } });
    fs::write(folder.join("job.json"), job.to_string()).unwrap();
    done(folder, &["train", "job.json", "--output", "out"])
}

#[test]
fn an_adapter_is_measured_asked_and_merged() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let trained = train(folder);
    let adapter = ["--adapter", "out/adapter"];
    let eval = |arguments: &[&str]| done(folder, &[&["eval", "demo:conversations"], arguments].concat());

    // What training said of the same data is what is measured, bit for bit.
    let side = eval(&[&["--base", "demo", "--split", "validation"][..], &adapter].concat());
    assert_eq!(side["adapter"]["loss"], trained["validation_loss"]);
    let all = eval(&[&["--base", "demo", "--base-precision", "full"][..], &adapter].concat());
    let loss = |result: &Value, which: &str| result[which]["loss"].as_f64().unwrap();
    assert!(loss(&all, "adapter") < loss(&all, "base") - 0.5, "{all}");
    assert_eq!(all["base"]["perplexity"].as_f64().unwrap(), loss(&all, "base").exp());
    assert_eq!(all["examples"], 48);
    assert!(side["examples"].as_u64().unwrap() < 10 && side["target_tokens"].as_u64() < all["target_tokens"].as_u64());

    // The merged model is a base of its own, and says what base and adapter say.
    let merge = |output: &str, dtype: &str| {
        done(folder, &[&["merge", "--base", "demo", "--output", output, "--dtype", dtype][..], &adapter].concat())
    };
    let summary = merge("merged", "f32");
    assert!(summary["merged"].as_u64().unwrap() > 50 && summary["copied"].as_u64().unwrap() == 0, "{summary}");
    let merged = eval(&["--base", "merged", "--base-precision", "full"]);
    assert_eq!(merged["adapter"], Value::Null);
    assert!((loss(&merged, "base") - loss(&all, "adapter")).abs() < 1e-5, "{merged}\n{all}");
    let summary = merge("merged-bf16", "bf16");
    assert!(summary["copied"].as_u64().unwrap() > 0, "{summary}");
    let merged = eval(&["--base", "merged-bf16", "--base-precision", "full"]);
    assert!((loss(&merged, "base") - loss(&all, "adapter")).abs() < 0.02, "{merged}\n{all}");

    // Base and adapter answer differently; the merged model answers as the adapter does.
    let ask = |base: &[&str], more: &[&str]| {
        let question =
            ["generate", "--prompt", "My chain squeaks.", "--max-new-tokens", "24", "--base-precision", "full"];
        done(folder, &[&question[..], base, more].concat())["answers"][0].clone()
    };
    let answer = ask(&["--base", "demo"], &adapter);
    assert_ne!(answer["base"]["text"], answer["adapter"]["text"]);
    assert_eq!(ask(&["--base", "merged"], &[])["base"], answer["adapter"]);
    let drawn = ["--temperature", "1.5", "--top-k", "50", "--seed", "7"];
    let draw = |seed: &str| ask(&["--base", "demo"], &["--temperature", "1.5", "--top-k", "50", "--seed", seed]);
    assert_eq!(ask(&["--base", "demo"], &drawn), draw("7"));
    assert_ne!(draw("7")["base"], draw("8")["base"]);

    let text =
        ["generate", "--base", "demo", "--dataset", "demo:conversations", "--count", "2", "--max-new-tokens", "8"];
    let output = brightrun(folder, &[&text[..], &adapter, &["--system", "Be brief."]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    for part in ["Question\n", "Expected\n", "Base (", "Base + adapter ("] {
        assert_eq!(text.matches(part).count(), 2, "{part:?} in\n{text}");
    }
}

/// A wrong command ends with 2 and everything that is wrong with it; one that fails with 1. Nothing is on standard output.
#[test]
fn what_cannot_be_done_is_refused_before_anything_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir(folder.join("full")).unwrap();
    fs::write(folder.join("full/mine.txt"), "mine").unwrap();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let output = brightrun(folder, arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}\n{text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in\n{text}"));
    };
    refused(
        &["merge", "--base", "nowhere", "--adapter", "none", "--output", "full"],
        &[
            "--base nowhere: there is no config.json",
            "--adapter none: adapter_config.json",
            "--output full: is not empty",
        ],
    );
    refused(
        &["eval", "absent.jsonl", "--base", "demo", "--adapter", "none", "--validation-split", "2"],
        &["there is no file \"absent.jsonl\"", "adapter_model.safetensors", "--validation-split 2"],
    );
    refused(&["eval", "demo:conversations"], &["--base"]);
    refused(&["generate", "--base", "demo"], &["--prompt"]);
    refused(&["generate", "--base", "demo", "--prompt", "a", "--dataset", "b"], &["cannot be used with"]);
    refused(&["generate", "--base", "demo", "--prompt", "a", "--top-p", "0.5"], &["--temperature"]);
    refused(&["generate", "--base", "demo", "--prompt", "a", "--temperature=-1"], &["temperature"]);
    assert!(!folder.join("brightrun-cache").exists());

    fs::write(folder.join("m.json"), "[]").unwrap();
    let output = brightrun(folder, &["generate", "--base", "demo", "--messages", "m.json", "--json"]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &result["status"]), (Some(1), &json!("failed")));
    assert!(result["error"].as_str().unwrap().contains("m.json: holds no message"), "{result}");
    fs::write(folder.join("bad.jsonl"), "{\"turns\": 3}\n").unwrap();
    let output = brightrun(folder, &["eval", "bad.jsonl", "--base", "demo"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{text}");
    assert!(text.contains("bad.jsonl") && text.contains("line 1: ") && text.contains("dataset_report.json"), "{text}");
}
