use super::*;

#[track_caller]
fn refused_state(change: &str, texts: &[&str]) {
    let valid = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [128, 64],
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.03}"#;
    let mut state: serde_json::Value = serde_json::from_str(valid).unwrap();
    let mut model = Damaged::quantised();
    set_state(&mut model, valid);
    assert!(model.open().unwrap().linear(QUERY, &BasePrecision::Full).is_ok());
    for (name, value) in serde_json::from_str::<serde_json::Map<_, _>>(change).unwrap() {
        state[name] = value;
    }
    set_state(&mut model, &state.to_string());
    model.refused_linear(QUERY, &[&[QUERY_WEIGHT, "quant_state", "model.safetensors"], texts].concat());
}

#[test]
fn wrong_quant_state_is_named_field_by_field() {
    refused_state(r#"{"quant_type": "fp4"}"#, &["quant_type: found \"fp4\", expected \"nf4\""]);
    refused_state(r#"{"blocksize": 128}"#, &["blocksize: found 128, expected an integer in 64..=64"]);
    refused_state(r#"{"nested_blocksize": null}"#, &["nested_blocksize: found nothing"]);
    refused_state(r#"{"shape": [64, 128]}"#, &["shape: found [64,128], expected [128, 64]"]);
    refused_state(r#"{"shape": [-1, null]}"#, &["shape: found [-1,null]"]);
    refused_state(r#"{"nested_offset": "NaN"}"#, &["nested_offset: found \"NaN\""]);
    refused_state(r#"{"nested_offset": 1e300}"#, &["nested_offset: found 1e+300"]);
    refused_state(r#"{"nested_offset": null}"#, &["nested_offset: found nothing"]);
    refused_state(r#"{"nested_dtype": "bfloat16"}"#, &["nested_dtype: found \"bfloat16\""]);
}

#[test]
fn quant_state_that_is_no_json_is_refused() {
    let mut model = Damaged::quantised();
    set_state(&mut model, r#"{"nested_offset": NaN}"#);
    model.refused_linear(QUERY, &["quant_state", "not valid JSON"]);
    let state = model.tensor(&format!("{QUERY_WEIGHT}.quant_state.bitsandbytes__nf4"));
    state.data[0] = 0xFF;
    model.refused_linear(QUERY, &["quant_state", "not UTF-8"]);
}

#[test]
fn oversized_quant_state_is_refused_unread() {
    let mut model = Damaged::quantised();
    set_state(&mut model, &" ".repeat(5000));
    model.refused(&["quant_state", "5000 bytes, expected at most 4096"]);
}

#[test]
fn every_side_tensor_must_be_there() {
    for suffix in ["absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state.bitsandbytes__nf4"] {
        let mut model = Damaged::quantised();
        model.remove(&format!("{QUERY_WEIGHT}.{suffix}"));
        model.refused(&[&format!("{QUERY_WEIGHT}.{suffix}: missing, expected beside the quantised weight")]);
    }
}

#[test]
fn side_tensors_of_wrong_length_are_named() {
    for (suffix, expected) in
        [("absmax", "[128]"), ("quant_map", "[16]"), ("nested_quant_map", "[256]"), ("nested_absmax", "[1]")]
    {
        let mut model = Damaged::quantised();
        let tensor = model.tensor(&format!("{QUERY_WEIGHT}.{suffix}"));
        let width = tensor.dtype.bitsize() / 8;
        tensor.shape[0] += 1;
        tensor.data.extend(vec![0; width]);
        model.refused(&[&format!("{QUERY_WEIGHT}.{suffix} in model.safetensors"), &format!("expected {expected}")]);
    }
}

#[test]
fn other_code_tables_are_refused() {
    for suffix in ["quant_map", "nested_quant_map"] {
        let mut model = Damaged::quantised();
        model.tensor(&format!("{QUERY_WEIGHT}.{suffix}")).data[4] ^= 1;
        model.refused_linear(QUERY, &[&format!("{QUERY_WEIGHT}.{suffix}[1]: found"), "as bitsandbytes writes it"]);
    }
}

#[test]
fn nan_among_scales_is_named() {
    let mut model = Damaged::quantised();
    model.tensor(&format!("{QUERY_WEIGHT}.nested_absmax")).data.copy_from_slice(&f32::NAN.to_le_bytes());
    model.refused_linear(QUERY, &[&format!("{QUERY_WEIGHT}.nested_absmax[0]: found NaN")]);
}

#[test]
fn packed_weight_of_wrong_length_is_named() {
    let mut model = Damaged::quantised();
    let tensor = model.tensor(QUERY_WEIGHT);
    tensor.shape[0] -= 1;
    tensor.data.pop();
    model.refused(&[QUERY_WEIGHT, "found shape [4095, 1], expected [4096, 1]"]);
}

#[test]
fn fp8_without_its_config_is_explained() {
    let mut model = Damaged::plain();
    make_fp8(&mut model, Dtype::F32, 1f32.to_le_bytes().to_vec());
    model.config.checkpoint = CheckpointFormat::Plain;
    model.refused(&[QUERY_WEIGHT, "quant_method \"fp8\""]);
}

#[test]
fn fp8_without_scales_is_named() {
    let mut model = Damaged::plain();
    make_fp8(&mut model, Dtype::F32, 1f32.to_le_bytes().to_vec());
    model.remove(&format!("{QUERY_WEIGHT}_scale_inv"));
    model.refused(&[&format!("{QUERY_WEIGHT}_scale_inv: missing")]);
}

#[test]
fn fp8_scales_for_other_blocks_are_named() {
    let mut model = Damaged::plain();
    make_fp8(&mut model, Dtype::F32, 1f32.to_le_bytes().to_vec());
    model.config.checkpoint = CheckpointFormat::Fp8 { block: [64, 64] };
    model.refused(&[&format!("{QUERY_WEIGHT}_scale_inv"), "found shape [1, 1], expected [2, 1]"]);
}

#[test]
fn fp8_nan_is_named_with_its_place() {
    let mut model = Damaged::plain();
    make_fp8(&mut model, Dtype::F32, 1f32.to_le_bytes().to_vec());
    model.tensor(QUERY_WEIGHT).data[5] = 0x7F;
    model.refused_linear(QUERY, &[QUERY_WEIGHT, "row 0, column 5", "NaN"]);
}
