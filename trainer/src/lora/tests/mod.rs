//! Plans, and files written and read back.

mod hostile;
mod layouts;
mod planning;
mod writing;

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::config::Family;

fn fixture(family: Family, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(format!("{}_s1", family.model_type()))
        .join(name)
}

fn config(family: Family) -> ModelConfig {
    ModelConfig::read(&fixture(family, "base")).unwrap()
}

/// Qwen3-Next with a dense MLP in layer 1.
fn with_dense_layer() -> ModelConfig {
    let mut config = config(Family::Qwen3Next);
    config.layers[1].mlp = crate::config::MlpKind::Dense;
    config
}

fn options(targets: TargetSet) -> LoraOptions {
    LoraOptions { rank: 6, alpha: 9.0, dropout: 0.05, use_rslora: false, targets, expert_rank: None }
}

fn named(names: &[&str]) -> TargetSet {
    TargetSet::Named(names.iter().map(|name| (*name).to_owned()).collect())
}

/// Values that differ everywhere and are exact in bf16.
fn tensors(plan: &LoraPlan) -> AdapterTensors {
    let mut state = 1u32;
    let mut matrix = |rows: usize, columns: usize| {
        let mut value = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 25) as f32 - 63.5) / 64.0
        };
        Matrix { rows, columns, values: (0..rows * columns).map(|_| value()).collect() }
    };
    let adapter =
        |module: &ModuleLora| Adapter { a: matrix(module.rank, module.inputs), b: matrix(module.outputs, module.rank) };
    let paths = plan.modules.iter().map(|module| module.path.clone());
    let adapters: Vec<_> = plan.modules.iter().map(adapter).collect();
    paths.zip(adapters).collect()
}

/// An adapter written into a folder of its own.
fn written(config: &ModelConfig, plan: &LoraPlan, format: AdapterFormat) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, plan, &tensors(plan), format, "base").unwrap();
    folder
}

fn description(folder: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap()
}
