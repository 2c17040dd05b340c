use super::*;

#[test]
fn missing_tensor_is_named() {
    let mut model = Damaged::plain();
    model.remove(QUERY_WEIGHT);
    model.refused(&[QUERY_WEIGHT, "missing", "[128, 64]"]);
}

#[test]
fn extra_tensor_is_named() {
    let mut model = Damaged::plain();
    model.add("model.layers.4.input_layernorm.weight", Dtype::BF16, &[64]);
    model.refused(&["model.layers.4.input_layernorm.weight in model.safetensors: not expected"]);
}

#[test]
fn wrong_shape_is_named() {
    let mut model = Damaged::plain();
    model.tensor(QUERY_WEIGHT).shape = vec![64, 128];
    model.refused(&[QUERY_WEIGHT, "model.safetensors", "found shape [64, 128], expected [128, 64]"]);
}

#[test]
fn wrong_type_is_named() {
    let mut model = Damaged::plain();
    let tensor = model.tensor("model.norm.weight");
    tensor.dtype = Dtype::I16;
    model.refused(&["model.norm.weight", "found type I16, expected F32, BF16, F16"]);
}

#[test]
fn all_differences_are_in_one_error() {
    let mut model = Damaged::plain();
    model.remove("model.norm.weight");
    model.tensor(QUERY_WEIGHT).shape = vec![128 * 64];
    model.add("foreign", Dtype::F32, &[1]);
    model.refused(&["3 problems", "model.norm.weight", QUERY_WEIGHT, "foreign"]);
}

#[test]
fn long_lists_are_cut() {
    let mut model = Damaged::plain();
    model.tensors.retain(|tensor| !tensor.name.contains("experts"));
    model.refused(&["96 problems", "and 76 more"]);
}

#[test]
fn fused_experts_are_explained_first() {
    let mut model = Damaged::plain();
    model.tensors.retain(|tensor| !tensor.name.contains("experts"));
    model.add("model.layers.0.mlp.experts.gate_up_proj", Dtype::BF16, &[8, 64, 64]);
    let error = model.open().unwrap_err().to_string();
    let first = error.lines().nth(1).unwrap();
    assert!(first.contains("experts.gate_up_proj") && first.contains("save_pretrained"), "{error}");
}

#[test]
fn nan_in_the_base_is_named_with_its_place() {
    let mut model = Damaged::plain();
    model.tensor(QUERY_WEIGHT).data[2 * 77..][..2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    model.refused_linear(QUERY, &["model.safetensors", &format!("{QUERY_WEIGHT}[77]"), "NaN"]);
}

#[test]
fn infinite_norm_is_named_with_its_place() {
    let mut model = Damaged::plain();
    model.tensor("model.norm.weight").data[..2].copy_from_slice(&half::bf16::INFINITY.to_le_bytes());
    let error = model.open().unwrap().vector("model.norm.weight").unwrap_err();
    contains(&error, &["model.norm.weight[0]: found inf"]);
}

#[test]
fn folder_without_weights_is_named() {
    let model = Damaged::plain();
    let error = Checkpoint::open(model.dir(), &model.config).unwrap_err();
    contains(&error, &["no weights", "model.safetensors.index.json"]);
}
