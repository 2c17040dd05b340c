//! `brightrun merge`: an adapter into its base, as a model of its own.

use std::path::PathBuf;

use brightrun_trainer::merge::{self, MAX_SHARD_BYTES, MergeSpec, MergeSummary, MergedDtype};
use clap::{Args, ValueEnum};
use indicatif::MultiProgress;
use serde_json::Value;

use crate::{
    command::{self, Bar, Ended},
    job::BaseModel,
    train,
};

const BAR: &str = "{elapsed_precise} [{bar:32}] {bytes}/{total_bytes} written  ETA {eta}";

/// The command line of `brightrun merge`.
#[derive(Args)]
pub(crate) struct Options {
    /// Folder of the base model, or demo.
    #[arg(long, value_name = "DIR")]
    base: String,
    /// Folder of the adapter.
    #[arg(long, value_name = "DIR")]
    adapter: PathBuf,
    /// Where the merged model goes: a folder that does not exist yet, or is empty.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Type of the merged values.
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Largest file of weights.
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SHARD_BYTES)]
    max_shard_bytes: u64,
    /// Prints the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where the demo's base model is made.
    #[arg(long, value_name = "DIR", default_value = train::CACHE)]
    cache: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

/// Merges.
pub(crate) fn merge(options: &Options, terminal: &MultiProgress) -> Ended<MergeSummary> {
    command::run(understand(options), |base| {
        let spec = MergeSpec {
            base_dir: command::base_folder(&base, &options.cache)?,
            adapter_dir: options.adapter.clone(),
            output_dir: options.output.clone(),
            dtype: match options.dtype {
                Dtype::Bf16 => MergedDtype::Bf16,
                Dtype::F32 => MergedDtype::F32,
            },
            max_shard_bytes: options.max_shard_bytes,
        };
        tracing::info!("merging {} into {}", options.adapter.display(), spec.base_dir.display());
        let bar = Bar::new(terminal, BAR);
        Ok(merge::merge(&spec, &|done, total| bar.set(done, total))?)
    })
}

fn understand(options: &Options) -> Result<BaseModel, Vec<String>> {
    let mut problems = Vec::new();
    let base = command::base(&options.base, false, &mut problems);
    command::check_adapter(&options.adapter, &mut problems);
    problems.extend(merge::refuse_unless_new(&options.output).err().map(|error| format!("--output {error}")));
    if problems.is_empty() { Ok(base) } else { Err(problems) }
}

impl command::Shown for MergeSummary {
    fn json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    fn text(&self) -> String {
        let mut text = format!(
            "Merged model {}\n  \
             tensors     {}: {} merged, {} copied bit for bit\n  \
             weights     {:.1} MB in {} files\n  \
             beside them {}\n",
            self.output_dir.display(),
            self.tensors,
            self.merged,
            self.copied,
            self.bytes as f64 / 1e6,
            self.shards,
            self.files.join(", "),
        );
        self.notes.iter().for_each(|note| text.push_str(&format!("  note        {note}\n")));
        text
    }
}
