//! Writing an adapter's two files, in the dialect of either generation of transformers.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::{Deserialize, Serialize};

use super::layout::{Entry, Layout};
use super::{AdapterTensors, LoraPlan, ModuleLora, peft};
use crate::artifacts::atomic::{self, Pending};
use crate::config::ModelConfig;
use crate::{Error, Result};

/// The adapter's values.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// The adapter's description.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// Under which names and shapes an adapter is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// A pair of matrices for each expert: transformers 4 and vLLM.
    #[default]
    PerExpert,
    /// A pair for all experts of a layer: transformers 5.
    Fused,
}

/// The type of the values on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterDtype {
    /// bfloat16
    #[default]
    Bf16,
    /// float32
    F32,
}

/// How an adapter is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AdapterFormat {
    /// Names and shapes.
    pub dialect: Dialect,
    /// Type of the values.
    pub dtype: AdapterDtype,
}

/// Writes `adapter_model.safetensors` and `adapter_config.json` into `dir`, which is made where it is missing.
///
/// Both files are complete and on disk under other names before either takes its own.
pub fn write(
    dir: &Path,
    config: &ModelConfig,
    plan: &LoraPlan,
    tensors: &AdapterTensors,
    format: AdapterFormat,
    base_model_name: &str,
) -> Result<()> {
    check(plan, tensors, format.dtype)?;
    let layout = match format.dialect {
        Dialect::PerExpert => Layout::per_expert(config, plan, tensors),
        Dialect::Fused => Layout::fused(config, plan, tensors)?,
    };
    let options = &plan.options;
    let description = peft::write(&peft::Written {
        base_model: base_model_name,
        rank: options.rank,
        alpha: options.alpha,
        dropout: options.dropout,
        use_rslora: options.use_rslora,
        target_modules: layout.target_modules,
        target_parameters: layout.target_parameters,
        targets: &layout.targets,
    });
    std::fs::create_dir_all(dir).map_err(Error::io("cannot create", dir))?;
    let header = header(&layout.entries, format.dtype)?;
    let values = Pending::write(&dir.join(TENSORS_FILE), |file| {
        let mut file = BufWriter::new(file);
        write_tensors(&mut file, &header, &layout.entries, format.dtype)?;
        file.flush()
    })?;
    let description = Pending::write(&dir.join(CONFIG_FILE), |file| file.write_all(description.as_bytes()))?;
    // The description comes last: a folder that has it has everything.
    atomic::replace([values, description])
}

/// The tensors are those of the plan, of its shapes, and finite as they will stand on disk.
fn check(plan: &LoraPlan, tensors: &AdapterTensors, dtype: AdapterDtype) -> Result<()> {
    let mut problems = Vec::new();
    let planned: HashMap<&str, &ModuleLora> =
        plan.modules.iter().map(|module| (module.path.as_str(), module)).collect();
    for path in tensors.keys().filter(|path| !planned.contains_key(path.as_str())) {
        problems.push(format!("{path}: not an adapted module"));
    }
    let finite = |value: &f32| match dtype {
        AdapterDtype::Bf16 => bf16::from_f32(*value).is_finite(),
        AdapterDtype::F32 => value.is_finite(),
    };
    for module in &plan.modules {
        let Some(adapter) = tensors.get(&module.path) else {
            problems.push(format!("{}: its tensors are missing", module.path));
            continue;
        };
        let shapes = [(&adapter.a, [module.rank, module.inputs]), (&adapter.b, [module.outputs, module.rank])];
        for (name, (matrix, shape)) in ["lora_A", "lora_B"].into_iter().zip(shapes) {
            if [matrix.rows, matrix.columns] != shape || matrix.values.len() != shape[0] * shape[1] {
                let found = [matrix.rows, matrix.columns];
                problems.push(format!("{}.{name}: found {found:?}, expected {shape:?}", module.path));
            } else if let Some(index) = matrix.values.iter().position(|value| !finite(value)) {
                let found = matrix.values[index];
                problems.push(format!("{}.{name}[{index}]: found {found}, expected a finite number", module.path));
            }
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(format!("adapter: {}", crate::error::listed(&problems))))
    }
}

/// The length and the JSON that a safetensors file begins with.
fn header(entries: &[Entry], dtype: AdapterDtype) -> Result<Vec<u8>> {
    let (dtype, width) = match dtype {
        AdapterDtype::Bf16 => (Dtype::BF16, 2),
        AdapterDtype::F32 => (Dtype::F32, 4),
    };
    let mut end = 0;
    let info = |entry: &Entry| {
        let start = end;
        end += entry.shape[0] * entry.shape[1] * width;
        (entry.key.clone(), TensorInfo { dtype, shape: entry.shape.to_vec(), data_offsets: (start, end) })
    };
    // PEFT and transformers read only files that say they came from PyTorch.
    let marked = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let unwritable = |error: &dyn std::fmt::Display| Error::Invalid(format!("{TENSORS_FILE}: {error}"));
    let metadata =
        Metadata::new(Some(marked), entries.iter().map(info).collect()).map_err(|error| unwritable(&error))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| unwritable(&error))?;
    // Readers that map the file want the data aligned to 8 bytes.
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
}

fn write_tensors(file: &mut impl Write, header: &[u8], entries: &[Entry], dtype: AdapterDtype) -> std::io::Result<()> {
    file.write_all(header)?;
    for entry in entries {
        let values = entry.values();
        let bytes: Vec<u8> = match dtype {
            AdapterDtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
            AdapterDtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        file.write_all(&bytes)?;
    }
    Ok(())
}
