//! From the JSON object of a `config.json` to a [`ModelConfig`], in both dialects.
//!
//! transformers 4 writes `rope_theta`, `partial_rotary_factor` and `rope_scaling` at the top level; transformers 5 writes
//! `rope_parameters` and spells `layer_types` out. Absent fields take the defaults of the transformers classes; those
//! that decide the shape of the model have none here and must be present.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::json::shown;
use super::limits::*;
use super::*;

/// The model, or everything that is wrong with the file.
pub(super) fn model(object: &Map<String, Value>) -> std::result::Result<ModelConfig, Vec<String>> {
    let mut fields = Fields::new(object, "");
    let Some(family) = family(&mut fields) else {
        return Err(fields.into_problems());
    };
    refuse_what_is_not_implemented(&mut fields);
    let hidden_size = fields.size("hidden_size", None, 1..=MAX_WIDTH);
    let default_intermediate = if family == Family::Qwen3Moe { 6144 } else { 5632 };
    let config = ModelConfig {
        family,
        vocab_size: fields.size("vocab_size", None, 1..=MAX_VOCABULARY),
        hidden_size,
        layers: layers(&mut fields, family),
        rms_norm_eps: fields.number("rms_norm_eps", 1e-6, |eps| eps > 0.0 && eps < 1.0, "a number above 0 and below 1"),
        tie_word_embeddings: fields.flag("tie_word_embeddings", false),
        attention: attention(&mut fields, family, hidden_size),
        delta_net: (family == Family::Qwen3Next).then(|| delta_net(&mut fields)),
        intermediate_size: fields.size("intermediate_size", Some(default_intermediate), 1..=MAX_WIDTH),
        moe: moe(&mut fields, family),
        max_position_embeddings: fields.size("max_position_embeddings", Some(32_768), 1..=MAX_POSITIONS),
        checkpoint: checkpoint::format(&mut fields),
    };
    let mut problems = fields.into_problems();
    if problems.is_empty() {
        problems = too_large(&config);
    }
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

fn family(fields: &mut Fields) -> Option<Family> {
    let found = fields.get("model_type").and_then(Value::as_str);
    let family = Family::ALL.into_iter().find(|family| Some(family.model_type()) == found);
    if family.is_none() {
        let supported = Family::ALL.map(Family::model_type).join(", ");
        fields.refuse("model_type", format_args!("one of the supported architectures: {supported}"));
    }
    family
}

/// Features of the transformers classes that no released model of these families trains with.
fn refuse_what_is_not_implemented(fields: &mut Fields) {
    if fields.text("hidden_act").is_some_and(|name| name != "silu") {
        fields.refuse("hidden_act", "\"silu\"");
    }
    if fields.flag("use_sliding_window", false) {
        fields.refuse("use_sliding_window", "false (windowed attention is not supported)");
    }
    if fields.number("attention_dropout", 0.0, |_| true, "0") != 0.0 {
        fields.refuse("attention_dropout", "0 (attention dropout is not supported)");
    }
    if let Some(scaling) = fields.object("rope_scaling") {
        check_rope_type(fields, "rope_scaling", scaling);
    }
}

/// Only plain RoPE is implemented: `rope_type` (or `type`, as older files call it) absent or `default`.
fn check_rope_type(fields: &mut Fields, name: &str, rope: &Map<String, Value>) {
    for key in ["rope_type", "type"] {
        let value = rope.get(key).unwrap_or(&Value::Null);
        if !value.is_null() && value.as_str() != Some("default") {
            fields.note(format!(
                "{name}.{key}: found {}, expected \"default\" (scaled RoPE is not supported)",
                shown(value)
            ));
        }
    }
}

fn layers(fields: &mut Fields, family: Family) -> Vec<LayerConfig> {
    let count = fields.size("num_hidden_layers", None, 1..=MAX_LAYERS);
    if fields.is_refused("num_hidden_layers") {
        return Vec::new();
    }
    let mixers = mixers(fields, family, count);
    let step = fields.size("decoder_sparse_step", Some(1), 1..=MAX_LAYERS);
    let dense = dense_layers(fields, count);
    let mlp = |layer: usize| match !dense.contains(&layer) && (layer + 1).is_multiple_of(step) {
        true => MlpKind::Sparse,
        false => MlpKind::Dense,
    };
    mixers.into_iter().enumerate().map(|(layer, mixer)| LayerConfig { mixer, mlp: mlp(layer) }).collect()
}

/// `layer_types` where the file has it; otherwise Qwen3-Next repeats `full_attention_interval - 1` DeltaNet layers and
/// one attention layer.
fn mixers(fields: &mut Fields, family: Family, count: usize) -> Vec<MixerKind> {
    let hybrid = family == Family::Qwen3Next;
    let interval = match hybrid {
        true => fields.size("full_attention_interval", Some(4), 1..=MAX_LAYERS),
        false => 1,
    };
    let Some(types) = fields.list("layer_types") else {
        let mixer = |layer: usize| match (layer + 1) % interval {
            0 => MixerKind::Attention,
            _ => MixerKind::DeltaNet,
        };
        return (0..count).map(mixer).collect();
    };
    if types.len() != count {
        fields.note(format!("layer_types: found {} entries, expected num_hidden_layers = {count}", types.len()));
        return vec![MixerKind::Attention; count];
    }
    let mut mixers = Vec::with_capacity(count);
    for (layer, value) in types.iter().enumerate() {
        mixers.push(match value.as_str() {
            Some("linear_attention") if hybrid => MixerKind::DeltaNet,
            Some("full_attention") => MixerKind::Attention,
            _ => {
                let expected = if hybrid { "\"linear_attention\" or \"full_attention\"" } else { "\"full_attention\"" };
                fields.note(format!("layer_types[{layer}]: found {}, expected {expected}", shown(value)));
                MixerKind::Attention
            }
        });
    }
    mixers
}

fn dense_layers(fields: &mut Fields, count: usize) -> Vec<usize> {
    let mut layers = Vec::new();
    for (index, value) in fields.list("mlp_only_layers").unwrap_or_default().iter().enumerate() {
        match value.as_u64().filter(|layer| *layer < count as u64) {
            Some(layer) => layers.push(layer as usize),
            None => fields.note(format!(
                "mlp_only_layers[{index}]: found {}, expected a layer number in 0..{count}",
                shown(value)
            )),
        }
    }
    layers
}

fn attention(fields: &mut Fields, family: Family, hidden_size: usize) -> AttentionConfig {
    let heads = fields.size("num_attention_heads", None, 1..=MAX_HEADS);
    let key_value_heads = fields.size("num_key_value_heads", None, 1..=MAX_HEADS);
    if !heads.is_multiple_of(key_value_heads) && !fields.is_refused("num_attention_heads") {
        fields.refuse("num_key_value_heads", format_args!("a divisor of num_attention_heads = {heads}"));
    }
    let head_dim = head_dim(fields, family, hidden_size, heads);
    let (rope_theta, rotary_dim) = rope(fields, family, head_dim);
    let bias = family != Family::Qwen2Moe && fields.flag("attention_bias", false);
    AttentionConfig {
        heads,
        key_value_heads,
        head_dim,
        rotary_dim,
        rope_theta,
        qkv_bias: bias || (family == Family::Qwen2Moe && fields.flag("qkv_bias", true)),
        output_bias: bias,
        query_key_norm: family != Family::Qwen2Moe,
        output_gate: family == Family::Qwen3Next,
    }
}

/// Qwen3-Next has a fixed default; the others divide the hidden width among the heads, and Qwen2-MoE always does.
fn head_dim(fields: &mut Fields, family: Family, hidden_size: usize, heads: usize) -> usize {
    if family == Family::Qwen3Next {
        return fields.size("head_dim", Some(256), 1..=MAX_HEAD_DIM);
    }
    let even = hidden_size / heads;
    let derived = fields.get("head_dim").is_none() || family == Family::Qwen2Moe;
    if derived && !hidden_size.is_multiple_of(heads) && !fields.is_refused("hidden_size") {
        fields.refuse("num_attention_heads", format_args!("a divisor of hidden_size = {hidden_size}"));
        return 1;
    }
    let head_dim = fields.size("head_dim", Some(even), 1..=MAX_HEAD_DIM);
    if derived && head_dim != even {
        fields.refuse("head_dim", format_args!("hidden_size / num_attention_heads = {even}"));
    }
    head_dim
}

/// RoPE's base and how many dimensions of a head it turns.
fn rope(fields: &mut Fields, family: Family, head_dim: usize) -> (f64, usize) {
    let default_factor = if family == Family::Qwen3Next { 0.25 } else { 1.0 };
    let theta =
        |fields: &mut Fields, default| fields.number("rope_theta", default, |theta| theta > 0.0, "a number above 0");
    let factor = |fields: &mut Fields, default| {
        let holds = |factor| factor > 0.0 && factor <= 1.0;
        fields.number("partial_rotary_factor", default, holds, "a number above 0 and up to 1")
    };
    // transformers 5 reads `rope_parameters` and ignores the top level where both are there.
    let (mut rope_theta, mut rotary_factor) = (theta(fields, 10_000.0), factor(fields, default_factor));
    if let Some(parameters) = fields.object("rope_parameters") {
        check_rope_type(fields, "rope_parameters", parameters);
        let mut inner = Fields::new(parameters, "rope_parameters.");
        rope_theta = theta(&mut inner, rope_theta);
        rotary_factor = factor(&mut inner, rotary_factor);
        inner.into_problems().into_iter().for_each(|problem| fields.note(problem));
    }
    if family != Family::Qwen3Next && rotary_factor != 1.0 {
        fields.note(format!(
            "partial_rotary_factor: found {rotary_factor}, expected 1: {} rotates whole heads",
            family.model_type()
        ));
    }
    // transformers truncates, as in `int(head_dim * partial_rotary_factor)`.
    let rotary_dim = (head_dim as f64 * rotary_factor) as usize;
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        fields.note(format!(
            "partial_rotary_factor: found {rotary_factor}, which turns {rotary_dim} of head_dim = {head_dim} \
             dimensions, expected an even number of at least 2"
        ));
    }
    (rope_theta, rotary_dim)
}

fn delta_net(fields: &mut Fields) -> DeltaNetConfig {
    let config = DeltaNetConfig {
        key_heads: fields.size("linear_num_key_heads", Some(16), 1..=MAX_HEADS),
        value_heads: fields.size("linear_num_value_heads", Some(32), 1..=MAX_HEADS),
        key_dim: fields.size("linear_key_head_dim", Some(128), 1..=MAX_HEAD_DIM),
        value_dim: fields.size("linear_value_head_dim", Some(128), 1..=MAX_HEAD_DIM),
        conv_kernel: fields.size("linear_conv_kernel_dim", Some(4), 1..=MAX_CONV_KERNEL),
    };
    if !config.value_heads.is_multiple_of(config.key_heads) {
        let expected = format_args!("a multiple of linear_num_key_heads = {}", config.key_heads).to_string();
        fields.refuse("linear_num_value_heads", expected);
    }
    config
}

fn moe(fields: &mut Fields, family: Family) -> MoeConfig {
    // transformers 5 calls the number of experts of Qwen3-MoE `num_local_experts`.
    let count_name = match fields.get("num_experts").is_none() && fields.get("num_local_experts").is_some() {
        true => "num_local_experts",
        false => "num_experts",
    };
    let experts = fields.size(count_name, None, 1..=MAX_EXPERTS);
    let most_per_token = if fields.is_refused(count_name) { MAX_EXPERTS } else { experts };
    let default_shared = if family == Family::Qwen3Next { 512 } else { 5632 };
    let shared =
        |fields: &mut Fields| fields.size("shared_expert_intermediate_size", Some(default_shared), 1..=MAX_WIDTH);
    MoeConfig {
        experts,
        per_token: fields.size("num_experts_per_tok", None, 1..=most_per_token),
        intermediate_size: fields.size("moe_intermediate_size", None, 1..=MAX_WIDTH),
        normalise_top_k: fields.flag("norm_topk_prob", family == Family::Qwen3Next),
        shared_intermediate_size: (family != Family::Qwen3Moe).then(|| shared(fields)),
        aux_loss_coefficient: fields.number(
            "router_aux_loss_coef",
            0.001,
            |coefficient| coefficient >= 0.0,
            "a number of at least 0",
        ),
    }
}

/// Each field is bounded by itself; this bounds their products, so that no size computed later can overflow.
fn too_large(config: &ModelConfig) -> Vec<String> {
    let mut problems = Vec::new();
    let layers = config.layers.len();
    let expert_tensors = layers * config.moe.experts * 3;
    if expert_tensors > MAX_EXPERT_TENSORS {
        problems.push(format!(
            "num_hidden_layers x num_experts x 3: found {expert_tensors}, expected at most {MAX_EXPERT_TENSORS} matrices"
        ));
    }
    let parameters = parameter_bound(config);
    if parameters > MAX_PARAMETERS {
        problems.push(format!(
            "the sizes together: found about {parameters} parameters, expected at most {MAX_PARAMETERS}"
        ));
    }
    problems
}

/// An upper bound on the parameters: every layer counted as if it had every kind of part.
fn parameter_bound(config: &ModelConfig) -> u128 {
    let wide = |size: usize| size as u128;
    let attention = &config.attention;
    // q with its gate, o, k and v; then DeltaNet's q, k, v, z, out_proj, b, a and the convolution.
    let mut width = wide(attention.head_dim) * (wide(attention.heads) * 3 + wide(attention.key_value_heads) * 2);
    if let Some(delta) = &config.delta_net {
        let (keys, values) =
            (wide(delta.key_heads) * wide(delta.key_dim), wide(delta.value_heads) * wide(delta.value_dim));
        width += keys * 2 + values * 3 + wide(delta.value_heads) * 2 + (keys * 2 + values) * wide(delta.conv_kernel);
    }
    width += 3 * (wide(config.intermediate_size) + wide(config.moe.shared_intermediate_size.unwrap_or(0)));
    width += wide(config.moe.experts) * (3 * wide(config.moe.intermediate_size) + 1);
    // Norms and biases are a few vectors per layer: eight widths are more than enough.
    let layer = (width + 8) * wide(config.hidden_size);
    layer * wide(config.layers.len()) + 2 * wide(config.vocab_size) * wide(config.hidden_size)
}
