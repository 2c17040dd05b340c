//! What must not be written, and what a failed write leaves.

use super::*;

#[track_caller]
fn refused_values(damage: impl Fn(&mut AdapterTensors), dtype: AdapterDtype, texts: &[&str]) {
    let config = config(Family::Qwen3Next);
    let plan = plan(&config, &options(TargetSet::Attention)).unwrap();
    let mut values = tensors(&plan);
    damage(&mut values);
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("adapter");
    let format = AdapterFormat { dialect: Dialect::PerExpert, dtype };
    let error = write(&dir, &config, &plan, &values, format, "base").unwrap_err().to_string();
    assert!(texts.iter().all(|text| error.contains(text)), "{error}");
    assert!(!dir.exists(), "something was written");
}

const QUERY: &str = "model.layers.3.self_attn.q_proj";

#[test]
fn values_that_are_not_the_plans_are_not_written() {
    let dtype = AdapterDtype::F32;
    refused_values(|values| drop(values.remove(QUERY)), dtype, &[QUERY, "missing"]);
    refused_values(
        |values| {
            let adapter = values[QUERY].clone();
            values.insert("model.nothing".to_owned(), adapter);
        },
        dtype,
        &["model.nothing: not an adapted module"],
    );
    refused_values(
        |values| values.get_mut(QUERY).unwrap().a.rows = 5,
        dtype,
        &["q_proj.lora_A: found [5, 64], expected [6, 64]"],
    );
    refused_values(
        |values| values.get_mut(QUERY).unwrap().b.values[3] = f32::NAN,
        dtype,
        &["q_proj.lora_B[3]: found NaN"],
    );
}

#[test]
fn values_that_bf16_cannot_hold_are_not_written() {
    let damage = |values: &mut AdapterTensors| values.get_mut(QUERY).unwrap().b.values[0] = f32::MAX;
    refused_values(damage, AdapterDtype::Bf16, &["q_proj.lora_B[0]", "expected a finite number"]);
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let config = config(Family::Qwen3Next);
    let plan = plan(&config, &options(TargetSet::Attention)).unwrap();
    let folder = written(&config, &plan, AdapterFormat::default());
    let before = std::fs::read(folder.path().join(CONFIG_FILE)).unwrap();
    // A folder in the place of the first file cannot be replaced by it.
    std::fs::remove_file(folder.path().join(TENSORS_FILE)).unwrap();
    std::fs::create_dir(folder.path().join(TENSORS_FILE)).unwrap();
    let mut values = tensors(&plan);
    values.get_mut(QUERY).unwrap().a.values[0] = 0.125;
    let format = AdapterFormat { dialect: Dialect::Fused, dtype: AdapterDtype::F32 };
    let error = write(folder.path(), &config, &plan, &values, format, "another base").unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains(TENSORS_FILE), "{error}");
    assert_eq!(std::fs::read(folder.path().join(CONFIG_FILE)).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "a temporary file stayed");
}
