use super::*;

fn paths(config: &ModelConfig, targets: TargetSet) -> Vec<String> {
    resolve(config, &targets).unwrap()
}

/// The distinct ends of these paths after the layer, numbers as `#`, in order.
fn kinds(paths: &[String]) -> Vec<String> {
    let mut kinds = Vec::new();
    for path in paths {
        let parts = path.split('.').skip(3).map(|part| if part.parse::<usize>().is_ok() { "#" } else { part });
        let kind = parts.collect::<Vec<_>>().join(".");
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

const ATTENTION: [&str; 4] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
const SHARED: [&str; 3] = ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"];
const ROUTED: [&str; 3] = ["mlp.experts.#.gate_proj", "mlp.experts.#.up_proj", "mlp.experts.#.down_proj"];

#[test]
fn the_sets_mean_what_they_say() {
    let config = config(Family::Qwen3Next);
    let delta = ["linear_attn.in_proj_qkvz", "linear_attn.out_proj"];
    let kinds = |targets| kinds(&paths(&config, targets));
    assert_eq!(kinds(TargetSet::Attention), ATTENTION);
    assert_eq!(kinds(TargetSet::Default), [&delta[..], &SHARED, &ATTENTION].concat());
    assert_eq!(kinds(TargetSet::Servable), [&delta[1..], &SHARED, &ATTENTION].concat());
    assert_eq!(kinds(TargetSet::Classic), [&ROUTED[..], &SHARED, &ATTENTION].concat());
    assert_eq!(kinds(TargetSet::All), [&delta[..], &ROUTED, &SHARED, &ATTENTION].concat());
    let all_linear = kinds(named(&["all-linear"]));
    for kind in ["linear_attn.in_proj_ba", "mlp.gate", "mlp.shared_expert_gate", "mlp.experts.#.up_proj"] {
        assert!(all_linear.contains(&kind.to_owned()), "{kind}");
    }
    assert!(!paths(&config, named(&["all-linear"])).contains(&"lm_head".to_owned()));
}

#[test]
fn dense_layers_belong_to_the_default_set() {
    let paths = paths(&with_dense_layer(), TargetSet::Default);
    assert!(paths.contains(&"model.layers.1.mlp.gate_proj".to_owned()));
    assert!(!paths.iter().any(|path| path.contains(".experts.")));
}

#[test]
fn classic_adapts_what_the_reference_adapts() {
    for family in Family::ALL {
        let golden = std::fs::read(fixture(family, "golden.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        let expected: Vec<String> = serde_json::from_value(golden["lora"]["adapted_modules"].clone()).unwrap();
        let mut found = paths(&config(family), TargetSet::Classic);
        found.sort();
        assert_eq!(found, expected, "{family:?}");
    }
}

#[test]
fn names_match_whole_parts_from_the_end() {
    let config = config(Family::Qwen3Next);
    let count = |names: &[&str]| paths(&config, named(names)).len();
    assert_eq!(count(&["lm_head"]), 1);
    assert_eq!(count(&["gate"]), 4);
    assert_eq!(count(&["in_proj_ba", "shared_expert_gate"]), 3 + 4);
    assert_eq!(count(&["experts.7.down_proj"]), 4);
    assert_eq!(count(&["model.layers.0.mlp.experts.7.down_proj"]), 1);
    // `_proj` is the end of many names, but of no part.
    assert!(resolve(&config, &named(&["_proj"])).is_err());
    // The order is the model's, not the list's.
    assert_eq!(paths(&config, named(&["v_proj", "q_proj"])), paths(&config, named(&["q_proj", "v_proj"])));
}

#[track_caller]
fn refused_names(names: &[&str], texts: &[&str]) {
    let error = resolve(&config(Family::Qwen3Next), &named(names)).unwrap_err().to_string();
    for text in texts {
        assert!(error.contains(text), "expected {text:?} in: {error}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_known_ones() {
    refused_names(&["q_proj", "query"], &["\"query\" matches no module", "q_proj, k_proj", "in_proj_qkvz", "lm_head"]);
    refused_names(&[""], &["\"\" matches no module"]);
    refused_names(&[], &["found 0 names"]);
    refused_names(&["all-linear", "q_proj"], &["\"all-linear\""]);
}

#[test]
fn modules_that_are_no_linears_are_refused_as_such() {
    for name in ["conv1d", "embed_tokens", "model.norm", "input_layernorm", "experts", "self_attn"] {
        refused_names(&[name], &[&format!("{name:?} is not a linear")]);
    }
}

#[test]
fn a_tied_head_cannot_be_adapted() {
    let mut config = config(Family::Qwen3Next);
    config.tie_word_embeddings = true;
    assert!(resolve(&config, &named(&["lm_head"])).is_err());
}

#[test]
fn target_sets_are_names_or_lists_in_json() {
    let parse = |json: &str| serde_json::from_str::<TargetSet>(json);
    for (json, set) in [
        (r#""default""#, TargetSet::Default),
        (r#""classic""#, TargetSet::Classic),
        (r#""all""#, TargetSet::All),
        (r#""servable""#, TargetSet::Servable),
        (r#""attention""#, TargetSet::Attention),
        (r#"["q_proj","gate"]"#, named(&["q_proj", "gate"])),
    ] {
        assert_eq!(parse(json).unwrap(), set);
        assert_eq!(serde_json::to_string(&set).unwrap(), json);
    }
    assert_eq!(parse(r#""all-linear""#).unwrap(), named(&["all-linear"]));
    let error = parse(r#""defualt""#).unwrap_err().to_string();
    assert!(error.contains("\"defualt\"") && error.contains("servable"), "{error}");
}

#[test]
fn experts_share_the_rank_and_keep_the_scale() {
    let config = config(Family::Qwen3Next);
    for use_rslora in [false, true] {
        for (expert_rank, expected) in [(None, 3), (Some(1), 1), (Some(8), 8)] {
            let options = LoraOptions { use_rslora, expert_rank, ..options(TargetSet::All) };
            let plan = plan(&config, &options).unwrap();
            let scale = if use_rslora { 9.0 / 6f64.sqrt() } else { 1.5 };
            for module in &plan.modules {
                let rank = if module.path.contains(".experts.") { expected } else { 6 };
                assert_eq!(module.rank, rank, "{}", module.path);
                assert!((module.scale - scale).abs() < 1e-12, "{}", module.path);
                assert_eq!(module.scale, super::super::scale(module.rank, module.alpha, use_rslora));
            }
        }
    }
    let small = LoraOptions { rank: 1, ..options(TargetSet::Classic) };
    assert!(plan(&config, &small).unwrap().modules.iter().all(|module| module.rank == 1));
}

#[test]
fn experts_above_the_rank_are_warned_of() {
    let config = config(Family::Qwen3Next);
    let warnings = |targets, expert_rank| {
        let plan = plan(&config, &LoraOptions { expert_rank: Some(expert_rank), ..options(targets) }).unwrap();
        plan.warnings()
    };
    let found = warnings(TargetSet::All, 7);
    assert!(found.len() == 1 && found[0].starts_with("expert_rank 7 is above lora_rank 6"), "{found:?}");
    assert_eq!(warnings(TargetSet::All, 6), [""; 0]);
    // No routed expert is adapted.
    assert_eq!(warnings(TargetSet::Default, 7), [""; 0]);
}

#[test]
fn options_out_of_bounds_are_refused_together() {
    let wrong = LoraOptions {
        rank: 0,
        alpha: f64::NAN,
        dropout: 1.0,
        expert_rank: Some(MAX_RANK + 1),
        ..options(TargetSet::Default)
    };
    let error = plan(&config(Family::Qwen3Next), &wrong).unwrap_err().to_string();
    for text in ["4 problems", "rank: found 0", "alpha: found NaN", "dropout: found 1", "expert_rank: found 4097"] {
        assert!(error.contains(text), "expected {text:?} in: {error}");
    }
}
