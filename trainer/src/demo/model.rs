//! The demo's base model: the official names and shapes, numbers of our own generator.
//!
//! Every number is an integer sum scaled by IEEE operations only, so no machine's mathematics library has a say in it.
//!
//! A base that is only noise can be taught to recite, but what it learns says nothing about sentences it has not seen. So
//! this one knows what kinds of tokens there are: tokens of a kind have a direction in common, in the embedding and in the
//! head. What an adapter learns of one of them ("a space comes next") holds for all, and the validation loss shows it.

use half::bf16;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;

use crate::{
    Error, Result,
    dataset::random::{Random, hash},
};

pub(super) const VOCABULARY: usize = 1024;
const HIDDEN: usize = 128;
const LAYERS: usize = 4;
const FULL_ATTENTION_INTERVAL: usize = 4;
const HEADS: usize = 4;
const KEY_VALUE_HEADS: usize = 2;
const HEAD_DIM: usize = 32;
const LINEAR_KEY_HEADS: usize = 2;
const LINEAR_VALUE_HEADS: usize = 4;
const LINEAR_HEAD_DIM: usize = 32;
const CONVOLUTION: usize = 4;
const EXPERTS: usize = 8;
const EXPERTS_PER_TOKEN: usize = 2;
const EXPERT_WIDTH: usize = 64;
const SEED: u64 = 20_250_611;

/// `config.json` in the dialect of the official checkpoints.
pub(super) fn config() -> Vec<u8> {
    let config = json!({
        "architectures": ["Qwen3NextForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 1021,
        "decoder_sparse_step": 1,
        "eos_token_id": 1023,
        "full_attention_interval": FULL_ATTENTION_INTERVAL,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 2 * HIDDEN,
        "linear_conv_kernel_dim": CONVOLUTION,
        "linear_key_head_dim": LINEAR_HEAD_DIM,
        "linear_num_key_heads": LINEAR_KEY_HEADS,
        "linear_num_value_heads": LINEAR_VALUE_HEADS,
        "linear_value_head_dim": LINEAR_HEAD_DIM,
        "max_position_embeddings": 4096,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": EXPERT_WIDTH,
        "norm_topk_prob": true,
        "num_attention_heads": HEADS,
        "num_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "output_router_logits": false,
        "pad_token_id": 1021,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-6,
        "rope_scaling": null,
        "rope_theta": 10_000_000.0,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": EXPERT_WIDTH,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0",
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": VOCABULARY,
    });
    format!("{config:#}\n").into_bytes()
}

/// How the numbers of a tensor are spread.
#[derive(Clone, Copy)]
enum Spread {
    /// Near enough normal.
    Normal { mean: f64, deviation: f64 },
    /// Even between two numbers.
    Even { from: f64, to: f64 },
}

/// A tensor to be made.
struct Draft {
    name: String,
    shape: Vec<usize>,
    spread: Spread,
}

/// What tokens can have in common, each with a direction of its own.
const TRAITS: usize = 6;
/// Length of a trait's part in an embedding, whose noise has a length of about 5.7.
const TRAIT_IN_EMBEDDING: f64 = 3.0;
/// Length of a trait's part in a row of the head, whose noise has a length of 3/4.
const TRAIT_IN_HEAD: f64 = 0.5;

/// How much a token has of every trait.
fn traits(id: usize, token: &str) -> [f64; TRAITS] {
    // As `tokenizer.json` writes bytes: U+0120 is a space, U+010A a line feed.
    let word = token.trim_start_matches('\u{120}');
    let is = |condition: bool| f64::from(u8::from(condition));
    // Pairs that are joined early are frequent; single bytes other than ASCII hardly ever stand alone.
    let frequent = match id {
        0..94 => 0.0,
        94..256 => -2.0,
        _ => 1.5 - id as f64 / 512.0,
    };
    [
        frequent,
        is(word.len() < token.len()),
        is(word.starts_with(|c: char| c.is_ascii_lowercase()) && word.len() == token.len()),
        is(word.starts_with(|c: char| c.is_ascii_uppercase())),
        is(word.starts_with(|c: char| c.is_ascii_punctuation())),
        is(token.contains('\u{10a}') || token.starts_with("<|")),
    ]
}

/// `model.safetensors` in bf16.
pub(super) fn weights(token: impl Fn(u32) -> Option<String>) -> Result<Vec<u8>> {
    let traits: Vec<[f64; TRAITS]> =
        (0..VOCABULARY).map(|id| traits(id, &token(id as u32).unwrap_or_default())).collect();
    let drafts = drafts();
    let numbers: Vec<Vec<u8>> = drafts.iter().map(|draft| bytes(&numbers(draft, &traits))).collect();
    let views = drafts.iter().zip(&numbers).map(|(draft, bytes)| {
        let view = TensorView::new(Dtype::BF16, draft.shape.clone(), bytes);
        view.map(|view| (draft.name.as_str(), view))
    });
    let failed = |error| Error::Invalid(format!("the demo's weights: {error}"));
    let views = views.collect::<std::result::Result<Vec<_>, _>>().map_err(failed)?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize(views, Some(metadata)).map_err(failed)
}

fn bytes(numbers: &[f64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| bf16::from_f64(*number).to_le_bytes()).collect()
}

fn numbers(draft: &Draft, traits: &[[f64; TRAITS]]) -> Vec<f64> {
    let mut random = Random::keyed(&[SEED, hash(draft.name.as_bytes())]);
    let count = draft.shape.iter().product::<usize>();
    let number = |_| match draft.spread {
        // A sum of twelve even numbers has variance 1 (Irwin-Hall), without logarithms and cosines.
        Spread::Normal { mean, deviation } => mean + deviation * ((0..12).map(|_| random.unit()).sum::<f64>() - 6.0),
        Spread::Even { from, to } => from + (to - from) * random.unit(),
    };
    let mut numbers: Vec<f64> = (0..count).map(number).collect();
    let length = match draft.name.as_str() {
        "model.embed_tokens.weight" => TRAIT_IN_EMBEDDING,
        "lm_head.weight" => TRAIT_IN_HEAD,
        _ => return numbers,
    };
    let scale = length / (HIDDEN as f64).sqrt();
    for which in 0..TRAITS {
        // A direction of signs has an exact length.
        let signs: Vec<f64> = (0..HIDDEN).map(|_| if random.unit() < 0.5 { -scale } else { scale }).collect();
        for (row, traits) in numbers.chunks_mut(HIDDEN).zip(traits) {
            row.iter_mut().zip(&signs).for_each(|(number, sign)| *number += traits[which] * sign);
        }
    }
    numbers
}

fn drafts() -> Vec<Draft> {
    let mut drafts = vec![
        draft("model.embed_tokens.weight", &[VOCABULARY, HIDDEN], normal(0.5)),
        draft("model.norm.weight", &[HIDDEN], normal(0.1)),
        // Logits with a deviation of 3/4: the loss begins near ln(vocabulary), and adapters can still make a logit large.
        draft("lm_head.weight", &[VOCABULARY, HIDDEN], normal(0.75 / (HIDDEN as f64).sqrt())),
    ];
    for layer in 0..LAYERS {
        let prefix = format!("model.layers.{layer}");
        drafts.push(draft(&format!("{prefix}.input_layernorm.weight"), &[HIDDEN], normal(0.1)));
        drafts.push(draft(&format!("{prefix}.post_attention_layernorm.weight"), &[HIDDEN], normal(0.1)));
        if (layer + 1) % FULL_ATTENTION_INTERVAL == 0 {
            attention(&mut drafts, &format!("{prefix}.self_attn"));
        } else {
            delta_net(&mut drafts, &format!("{prefix}.linear_attn"));
        }
        experts(&mut drafts, &format!("{prefix}.mlp"));
    }
    drafts
}

fn attention(drafts: &mut Vec<Draft>, prefix: &str) {
    // Queries and their gates.
    drafts.push(linear(&format!("{prefix}.q_proj.weight"), 2 * HEADS * HEAD_DIM, HIDDEN));
    drafts.push(linear(&format!("{prefix}.k_proj.weight"), KEY_VALUE_HEADS * HEAD_DIM, HIDDEN));
    drafts.push(linear(&format!("{prefix}.v_proj.weight"), KEY_VALUE_HEADS * HEAD_DIM, HIDDEN));
    drafts.push(linear(&format!("{prefix}.o_proj.weight"), HIDDEN, HEADS * HEAD_DIM));
    drafts.push(draft(&format!("{prefix}.q_norm.weight"), &[HEAD_DIM], normal(0.1)));
    drafts.push(draft(&format!("{prefix}.k_norm.weight"), &[HEAD_DIM], normal(0.1)));
}

fn delta_net(drafts: &mut Vec<Draft>, prefix: &str) {
    let (keys, values) = (LINEAR_KEY_HEADS * LINEAR_HEAD_DIM, LINEAR_VALUE_HEADS * LINEAR_HEAD_DIM);
    drafts.push(linear(&format!("{prefix}.in_proj_qkvz.weight"), 2 * keys + 2 * values, HIDDEN));
    drafts.push(linear(&format!("{prefix}.in_proj_ba.weight"), 2 * LINEAR_VALUE_HEADS, HIDDEN));
    drafts.push(draft(&format!("{prefix}.conv1d.weight"), &[2 * keys + values, 1, CONVOLUTION], normal(0.5)));
    // exp(A_log) from 0.05 to 2.7: some heads forget within a few tokens, some remember a whole conversation.
    drafts.push(draft(&format!("{prefix}.A_log"), &[LINEAR_VALUE_HEADS], Spread::Even { from: -3.0, to: 1.0 }));
    drafts.push(draft(&format!("{prefix}.dt_bias"), &[LINEAR_VALUE_HEADS], normal(0.5)));
    let norm = Spread::Normal { mean: 1.0, deviation: 0.1 };
    drafts.push(draft(&format!("{prefix}.norm.weight"), &[LINEAR_HEAD_DIM], norm));
    drafts.push(linear(&format!("{prefix}.out_proj.weight"), HIDDEN, values));
}

fn experts(drafts: &mut Vec<Draft>, prefix: &str) {
    drafts.push(linear(&format!("{prefix}.gate.weight"), EXPERTS, HIDDEN));
    let experts = (0..EXPERTS).map(|expert| format!("{prefix}.experts.{expert}"));
    for expert in experts.chain([format!("{prefix}.shared_expert")]) {
        drafts.push(linear(&format!("{expert}.gate_proj.weight"), EXPERT_WIDTH, HIDDEN));
        drafts.push(linear(&format!("{expert}.up_proj.weight"), EXPERT_WIDTH, HIDDEN));
        drafts.push(linear(&format!("{expert}.down_proj.weight"), HIDDEN, EXPERT_WIDTH));
    }
    drafts.push(linear(&format!("{prefix}.shared_expert_gate.weight"), 1, HIDDEN));
}

fn linear(name: &str, outputs: usize, inputs: usize) -> Draft {
    draft(name, &[outputs, inputs], normal(0.9 / (inputs as f64).sqrt()))
}

fn draft(name: &str, shape: &[usize], spread: Spread) -> Draft {
    Draft { name: name.to_owned(), shape: shape.to_vec(), spread }
}

fn normal(deviation: f64) -> Spread {
    Spread::Normal { mean: 0.0, deviation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_are_the_same_bytes_everywhere() {
        let tokenizer = crate::demo::tokenizer().unwrap();
        let bytes = weights(|id| tokenizer.id_to_token(id)).unwrap();
        assert_eq!(hash(&bytes), 2_212_186_439_094_842_538);
    }

    #[test]
    fn tokens_of_a_kind_have_a_direction_in_common() {
        let tokens = [("\u{120}the", 1), ("he", 2), ("Any", 3), (".", 4), (".\u{10a}", 5), ("<|im_end|>", 5)];
        for (token, trait_index) in tokens {
            assert_eq!(traits(300, token)[trait_index], 1.0, "{token}");
        }
        assert_eq!(traits(300, "\u{120}the")[2], 0.0);
        assert!(traits(256, "a")[0] > traits(1000, "a")[0] && traits(1000, "a")[0] > traits(200, "a")[0]);
    }

    #[test]
    fn numbers_have_the_spread_that_was_asked_for() {
        let values = numbers(&draft("x", &[100, 100], Spread::Normal { mean: 1.0, deviation: 0.5 }), &[]);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((mean - 1.0).abs() < 0.02 && (variance - 0.25).abs() < 0.01, "{mean} {variance}");
    }
}
