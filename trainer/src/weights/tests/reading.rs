use super::*;

#[test]
fn every_fixture_opens_and_every_tensor_is_read() {
    for fixture in ["qwen3_next_s1", "qwen3_moe_s1", "qwen2_moe_s1"] {
        let dir = fixtures().join(fixture).join("base");
        let config = ModelConfig::read(&dir).unwrap();
        let checkpoint = Checkpoint::open(&dir, &config).unwrap();
        for spec in expected_tensors(&config) {
            let count: usize = spec.shape.iter().product();
            match spec.kind {
                TensorKind::Linear => {
                    let path = spec.name.strip_suffix(".weight").unwrap();
                    let weight = checkpoint.linear(path, &BasePrecision::Full).unwrap();
                    assert_eq!([weight.rows(), weight.columns()], spec.shape[..]);
                }
                TensorKind::Other => assert_eq!(checkpoint.vector(&spec.name).unwrap().len(), count),
            }
        }
        assert_eq!(checkpoint.matrix("model.embed_tokens.weight").unwrap().len(), 512 * 64);
        assert!(checkpoint.matrix("model.norm.weight").is_err());
        assert!(checkpoint.vector("model.nothing.weight").is_err());
        assert!(checkpoint.linear("model.embed_tokens", &BasePrecision::Full).is_err());
    }
}

#[test]
fn bf16_f16_and_f32_give_the_same_values() {
    let mut model = Damaged::plain();
    let expected = model.open().unwrap().vector("model.norm.weight").unwrap();
    assert!(expected.iter().any(|value| *value != expected[0]));
    let half: Vec<_> = expected.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
    let full: Vec<_> = expected.iter().flat_map(|value| value.to_le_bytes()).collect();
    for (dtype, data) in [(Dtype::F16, half), (Dtype::F32, full)] {
        let tensor = model.tensor("model.norm.weight");
        (tensor.dtype, tensor.data) = (dtype, data);
        let found = model.open().unwrap().vector("model.norm.weight").unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= expected.abs() * 1e-3, "{dtype:?}");
        }
    }
}

#[test]
fn quantising_leaves_out_what_is_skipped() {
    let checkpoint = Damaged::plain().open().unwrap();
    let nf4 = BasePrecision::nf4();
    let is_nf4 = |path: &str| matches!(checkpoint.linear(path, &nf4).unwrap(), FrozenWeight::Nf4(_));
    assert!(is_nf4(QUERY));
    assert!(is_nf4("model.layers.0.linear_attn.in_proj_ba"));
    assert!(is_nf4("model.layers.0.mlp.experts.7.down_proj"));
    assert!(!is_nf4("lm_head"));
    assert!(!is_nf4("model.layers.0.mlp.gate"));
    assert!(!is_nf4("model.layers.0.mlp.shared_expert_gate"));
}

#[test]
fn bitsandbytes_bytes_are_kept_and_equal_our_own_quantisation() {
    for family in ["qwen3_next", "qwen3_moe", "qwen2_moe"] {
        let dir = fixtures().join(format!("{family}_s1_bnb4bit"));
        let config = ModelConfig::read(&dir).unwrap();
        let stored = Checkpoint::open(&dir, &config).unwrap();
        let base = fixtures().join(format!("{family}_s1/base"));
        let plain = Checkpoint::open(&base, &ModelConfig::read(&base).unwrap()).unwrap();
        for spec in linears(&config) {
            let path = spec.name.strip_suffix(".weight").unwrap();
            // The precision asked for does not matter here.
            let found = stored.linear(path, &BasePrecision::Full).unwrap();
            let expected = plain.linear(path, &BasePrecision::nf4()).unwrap();
            match (&found, &expected) {
                (FrozenWeight::Nf4(found), FrozenWeight::Nf4(expected)) => {
                    assert_eq!(found.packed(), expected.packed(), "{path}");
                }
                (FrozenWeight::Plain { values: found, .. }, FrozenWeight::Plain { values: expected, .. }) => {
                    assert_eq!(found, expected, "{path}");
                }
                _ => panic!("{path}: one is quantised, the other is not"),
            }
        }
    }
}

#[test]
fn plain_weights_beside_bitsandbytes_ones_stay_plain() {
    let checkpoint = Damaged::quantised().open().unwrap();
    let all = BasePrecision::Nf4 { double_quant: true, skip: Vec::new() };
    assert!(matches!(checkpoint.linear("lm_head", &all).unwrap(), FrozenWeight::Plain { .. }));
}

#[test]
fn scales_that_are_not_quantised_are_read_too() {
    let mut model = Damaged::quantised();
    let nested = model.open().unwrap().linear(QUERY, &BasePrecision::Full).unwrap();
    let FrozenWeight::Nf4(nested) = nested else { panic!("not quantised") };
    let absmax = nested.absmax();
    model.remove(&format!("{QUERY_WEIGHT}.nested_absmax"));
    model.remove(&format!("{QUERY_WEIGHT}.nested_quant_map"));
    let tensor = model.tensor(&format!("{QUERY_WEIGHT}.absmax"));
    tensor.dtype = Dtype::F32;
    tensor.data = absmax.iter().flat_map(|value| value.to_le_bytes()).collect();
    set_state(&mut model, r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [128, 64]}"#);
    let plain = model.open().unwrap().linear(QUERY, &BasePrecision::Full).unwrap();
    assert_eq!(plain.to_f32(), nested.dequantize());
}

#[test]
fn fp8_is_multiplied_by_its_scale_whatever_the_type_of_the_scale() {
    for (dtype, scale) in
        [(Dtype::F32, 0.5f32.to_le_bytes().to_vec()), (Dtype::BF16, half::bf16::from_f32(0.5).to_le_bytes().to_vec())]
    {
        let mut model = Damaged::plain();
        make_fp8(&mut model, dtype, scale);
        let checkpoint = model.open().unwrap();
        let weight = checkpoint.linear(QUERY, &BasePrecision::Full).unwrap();
        assert!(weight.to_f32().iter().all(|value| *value == 0.75));
        assert!(matches!(checkpoint.linear(QUERY, &BasePrecision::nf4()).unwrap(), FrozenWeight::Nf4(_)));
    }
}

#[test]
fn shards_are_followed_through_the_index() {
    let model = Damaged::plain();
    let whole = model.open().unwrap();
    let (first, second) = model.tensors.split_at(model.tensors.len() / 2);
    let split = Damaged::plain();
    write_shards(&split, first, second, |_| ());
    let checkpoint = Checkpoint::open(split.dir(), &split.config).unwrap();
    for name in ["model.norm.weight", "model.layers.0.linear_attn.A_log", "model.layers.2.input_layernorm.weight"] {
        assert_eq!(checkpoint.vector(name).unwrap(), whole.vector(name).unwrap());
    }
}

#[test]
fn ignored_tensors_are_no_obstacle() {
    let mut model = Damaged::plain();
    model.add("mtp.fc.weight", Dtype::BF16, &[3]);
    model.add("model.layers.3.self_attn.rotary_emb.inv_freq", Dtype::F32, &[2]);
    assert!(model.open().is_ok());
    model.config.tie_word_embeddings = true;
    assert!(model.open().is_ok());
    model.remove("lm_head.weight");
    assert!(model.open().is_ok());
    model.config.tie_word_embeddings = false;
    model.refused(&["lm_head.weight: missing, expected [512, 64]"]);
}
