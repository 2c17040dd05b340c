//! Every hyperparameter: name, aliases, what it accepts, what it means. Parsing, command line, schema and documentation come
//! from this table; defaults come from [`Parameters`](brightrun_trainer::run::Parameters).

use super::accepts::Accepts::{self, Flag, Folder, Integer, Number, OneOf, Targets};

/// A hyperparameter.
pub(super) struct Item {
    /// The name, then its aliases.
    pub(super) names: &'static [&'static str],
    pub(super) accepts: Accepts,
    /// What the default is, where it is not a value.
    pub(super) default: Option<&'static str>,
    pub(super) meaning: &'static str,
}

const fn item(names: &'static [&'static str], accepts: Accepts, meaning: &'static str) -> Item {
    Item { names, accepts, default: None, meaning }
}

pub(super) const ITEMS: &[Item] = &[
    item(&["learning_rate"], Number(1e-8, 1.0), "Peak learning rate."),
    item(
        &["schedule", "lr_scheduler_type"],
        OneOf(&["cosine", "linear", "constant"]),
        "How the learning rate falls after the warm-up: to zero, or not at all.",
    ),
    Item {
        names: &["warmup_steps"],
        accepts: Integer(0, 10_000_000),
        default: Some("by `warmup_ratio`"),
        meaning: "Optimiser steps in which the learning rate rises from zero.",
    },
    item(&["warmup_ratio"], Number(0.0, 1.0), "The same as a share of all steps; give one of the two."),
    item(&["batch_size"], Integer(1, 4096), "Examples per optimiser step, if there is no accumulation."),
    item(&["gradient_accumulation_steps"], Integer(1, 4096), "So many batches make one optimiser step."),
    Item {
        names: &["micro_batch_tokens"],
        accepts: Integer(16, 16_777_216),
        default: Some("4096"),
        meaning: "Most tokens that go through the model at once, where no single example is longer. It changes time and memory, and \
                  the result only by rounding.",
    },
    Item {
        names: &["recompute", "gradient_checkpointing"],
        accepts: Flag,
        default: Some("planned"),
        meaning: "Layers are computed again for the backward pass: less memory, more time, the same result. Cards \
                  always do it.",
    },
    item(&["num_epochs", "epochs"], Integer(1, 1000), "Passes over the training data."),
    Item {
        names: &["max_steps"],
        accepts: Integer(1, 100_000_000),
        default: Some("no limit"),
        meaning: "Ends the run after so many optimiser steps.",
    },
    item(&["optimizer", "optim"], OneOf(&["adamw", "adamw8bit"]), "AdamW with 32-bit or with 8-bit blockwise states."),
    item(&["adam_beta1"], Number(0.0, 0.9999), "Decay of the optimiser's first moment."),
    item(&["adam_beta2"], Number(0.0, 0.999_999), "Decay of the optimiser's second moment."),
    item(&["adam_epsilon"], Number(1e-12, 1e-2), "Added to the root of the optimiser's second moment."),
    item(&["weight_decay"], Number(0.0, 1.0), "Decoupled weight decay."),
    item(&["max_grad_norm"], Number(0.0, 1e6), "Gradients are scaled down to this global norm; 0: never."),
    item(
        &["loraplus_lr_ratio"],
        Number(1.0, 1000.0),
        "The learning rate of every B over that of A, which is `learning_rate` (LoRA+). Weight decay goes by each one's own.",
    ),
    item(
        &["neftune_noise_alpha"],
        Number(0.0, 100.0),
        "Uniform noise of alpha / √(tokens · width) on the embeddings while training (NEFTune); 0: none.",
    ),
    Item {
        names: &["init_adapter"],
        accepts: Folder,
        default: Some("a fresh one"),
        meaning: "Folder of an adapter to go on from. Its rank, alpha and targets count then.",
    },
    item(&["lora_rank", "rank", "r"], Integer(1, 1024), "Rank of the adapter."),
    item(&["lora_alpha", "alpha"], Number(1e-3, 65_536.0), "The adapter's scale is alpha / rank."),
    item(&["lora_dropout", "dropout"], Number(0.0, 0.95), "Dropout on the adapter's input."),
    item(&["use_rslora"], Flag, "The scale is alpha / √rank."),
    item(
        &["targets"],
        Targets,
        "Which linears get an adapter. `default`: q k v o, `in_proj_qkvz`, `out_proj`, shared expert; `classic`: q k v o and \
         gate, up, down of every expert; `all`: default and routed experts; `servable`: default without `in_proj_*`; \
         `attention`: q k v o; or a list of module names, which are suffixes as in PEFT.",
    ),
    Item {
        names: &["expert_rank"],
        accepts: Integer(1, 1024),
        default: Some("`lora_rank` / experts per token, at least 1"),
        meaning: "Rank in routed experts.",
    },
    item(
        &["unhit_experts"],
        OneOf(&["skip", "zero"]),
        "An expert without a token in a step keeps its optimiser state (`skip`) or sees a zero gradient (`zero`).",
    ),
    item(&["router_aux_loss"], Flag, "Adds the router's load-balancing loss, with the model's own coefficient."),
    item(&["base_precision"], OneOf(&["nf4", "full"]), "The frozen base in NF4 with double quantisation, or in f32."),
    item(
        &["adapter_dialect"],
        OneOf(&["per_expert", "fused"]),
        "Names in the adapter file: one pair of matrices per expert (transformers 4, vLLM), or fused (transformers 5).",
    ),
    item(&["adapter_dtype"], OneOf(&["bf16", "f32"]), "Numbers in the adapter file."),
    item(
        &["max_seq_length"],
        Integer(16, 262_144),
        "Longest example in tokens; longer ones lose their oldest turns, never the last answer.",
    ),
    item(
        &["packing"],
        Flag,
        "Examples share micro-batches without padding. Off: examples of similar length are padded to the same length.",
    ),
    item(&["train_on_prompt"], Flag, "The loss covers the whole text instead of the assistant's turns."),
    item(
        &["train_on_all_turns"],
        Flag,
        "The loss covers all assistant turns, also where a line is one answer with its history (brightrun), of which only the \
         answer is learnt otherwise.",
    ),
    item(
        &["validation_split"],
        Number(0.0, 0.5),
        "Share of the conversations that is kept for validation, at most 200 of them; 0: none. No effect with `validation_url`.",
    ),
    Item {
        names: &["eval_steps"],
        accepts: Integer(1, 100_000_000),
        default: Some("by `eval_epochs`"),
        meaning: "The validation loss is measured after so many optimiser steps, and at the end.",
    },
    item(
        &["eval_epochs"],
        Integer(1, 1000),
        "The validation loss is measured after so many passes over the data, and at the end; `eval_steps` outranks it.",
    ),
    Item {
        names: &["early_stopping_patience"],
        accepts: Integer(1, 1000),
        default: Some("never"),
        meaning: "Ends the run after so many evaluations in a row without a better validation loss.",
    },
    item(
        &["early_stopping_threshold"],
        Number(0.0, 100.0),
        "A validation loss is better only if it is lower by more than this.",
    ),
    Item {
        names: &["load_best_at_end"],
        accepts: Flag,
        default: Some("with early stopping"),
        meaning: "The adapter with the best validation loss is delivered, instead of the last one.",
    },
    item(
        &["max_loss_growth"],
        Number(0.0, 1e6),
        "Ends the run when the mean loss of ten steps is more than so many times the lowest such mean before; 0: never.",
    ),
    Item {
        names: &["save_steps"],
        accepts: Integer(1, 100_000_000),
        default: Some("by `save_minutes`"),
        meaning: "A checkpoint after so many optimiser steps.",
    },
    item(&["save_minutes"], Number(0.0, 10_000.0), "A checkpoint after so many minutes; 0: only by `save_steps`."),
    item(
        &["keep_checkpoints", "save_total_limit"],
        Integer(1, 100),
        "So many checkpoints are kept, and the best one besides.",
    ),
    item(&["seed"], Integer(0, u64::MAX), "Seeds adapter, dropout, noise, order and split."),
];
