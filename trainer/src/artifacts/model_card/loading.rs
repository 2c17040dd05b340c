//! How to load an adapter: which programs read its dialect, and what to mind. The facts are those of `docs/adapters.md`.

use super::escape::{markdown, quoted, shell};
use crate::{
    artifacts::RunRecord,
    lora::{Dialect, ModuleLora},
    weights::is_routed_expert,
};

/// Ranks that vLLM can be started with.
const SERVER_RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// What an adapter has that loaders treat differently.
struct Facts {
    experts: bool,
    /// Linears of the shared expert, or of the dense MLP of a layer without experts.
    other_mlp: bool,
    /// Fused projections of the linear attention.
    fused_projections: bool,
    rank: usize,
}

/// The whole chapter.
pub(super) fn instructions(record: &RunRecord) -> String {
    let facts = Facts::of(&record.plan.modules);
    let mut parts = vec![match record.parameters.adapter_dialect {
        Dialect::PerExpert => per_expert(&facts),
        Dialect::Fused => fused(&facts),
    }];
    parts.push(with_transformers(record));
    if record.parameters.adapter_dialect == Dialect::PerExpert {
        parts.push(with_vllm(record, &facts));
    }
    parts
        .push("Count what was loaded: tensors that find no module are passed over in silence by many programs.".into());
    parts.push(count(record));
    parts.join("\n\n")
}

// === impl Facts ===

impl Facts {
    fn of(modules: &[ModuleLora]) -> Self {
        let any = |test: fn(&str) -> bool| modules.iter().any(|module| test(&module.path));
        Self {
            experts: any(is_routed_expert),
            other_mlp: any(|path| path.contains(".mlp.") && !is_routed_expert(path)),
            fused_projections: any(|path| path.ends_with(".in_proj_qkvz") || path.ends_with(".in_proj_ba")),
            rank: modules.iter().map(|module| module.rank).max().unwrap_or_default(),
        }
    }
}

fn per_expert(facts: &Facts) -> String {
    let mut text = String::from(
        "Names are of the dialect `per_expert`: PEFT 0.18 with transformers 4.57, and vLLM, read it as it is.",
    );
    if facts.other_mlp {
        text.push_str(
            " **Mind PEFT 0.21 with transformers 5**: it drops the tensors of shared experts and dense MLPs, which this adapter \
             has, without an error. For that version train with `adapter_dialect: fused`.",
        );
    } else if facts.experts {
        text.push_str(" PEFT 0.21 with transformers 5 converts the experts while it loads.");
    }
    text
}

fn fused(facts: &Facts) -> String {
    let mut text = String::from("Names are of the dialect `fused`: for PEFT 0.21 with transformers 5.");
    text.push_str(if facts.experts {
        " transformers 4 and vLLM do not know its experts; for those train with `adapter_dialect: per_expert`."
    } else {
        " For transformers 4 and vLLM train with `adapter_dialect: per_expert`."
    });
    text
}

fn with_transformers(record: &RunRecord) -> String {
    let base = quoted(&record.base.name);
    let folder = quoted(place(record));
    format!(
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         base = AutoModelForCausalLM.from_pretrained({base}, dtype=\"auto\", device_map=\"auto\")\n\
         model = PeftModel.from_pretrained(base, {folder})\n\
         tokenizer = AutoTokenizer.from_pretrained({folder})\n\
         messages = [{{\"role\": \"user\", \"content\": \"Hello\"}}]\n\
         inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors=\"pt\", return_dict=True)\n\
         print(tokenizer.decode(model.generate(**inputs.to(model.device), max_new_tokens=200)[0]))\n```\n\n\
         {}",
        if record.parameters.base_precision == crate::run::PrecisionKind::Nf4 {
            "It was trained beside a base in NF4 with double quantisation; beside a base in bf16 it meets weights that differ by \
             the rounding of four bits."
        } else {
            "It was trained beside an unquantised base."
        }
    )
}

fn with_vllm(record: &RunRecord, facts: &Facts) -> String {
    let room = SERVER_RANKS.into_iter().find(|rank| *rank >= facts.rank).unwrap_or(facts.rank);
    let modules = format!("{}={}", name(record.job_id), place(record));
    let mut text = format!(
        "```sh\nvllm serve {} --enable-lora --max-lora-rank {room} --lora-modules {}\n```",
        shell(&record.base.name),
        shell(&modules)
    );
    if facts.fused_projections {
        text.push_str(
            "\n\nvLLM appears to slice adapters on `in_proj_qkvz` and `in_proj_ba`, which this one has, wrongly when tensor \
             parallelism is above 1. Serve it on one GPU, or train with `targets: servable`.",
        );
    }
    let rank = record.plan.options.rank;
    if facts.rank > rank {
        text.push_str(&format!(
            "\n\nIts routed experts have rank {}, above the {rank} that {} names: servers that size their buffers by that \
             cannot hold it.",
            facts.rank,
            markdown(crate::lora::CONFIG_FILE)
        ));
    }
    text
}

fn count(record: &RunRecord) -> String {
    let file = format!("{}/{}", place(record), crate::lora::TENSORS_FILE);
    format!(
        "```python\nfrom safetensors import safe_open\n\nin_file = len(safe_open({}, \"pt\").keys())\n\
         in_model = sum(\"lora_\" in name for name, _ in model.named_parameters())\nassert in_file == in_model\n```",
        quoted(&file)
    )
}

/// The adapter's folder, seen from the card.
fn place<'a>(record: &RunRecord<'a>) -> &'a str {
    record.adapter_folder
}

/// A name for servers: letters that mean nothing anywhere.
fn name(job_id: &str) -> String {
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '-' };
    job_id.chars().take(64).map(plain).collect()
}
