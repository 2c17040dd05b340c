use super::*;
use crate::weights::{SafetensorsFile, floats};

const F32: AdapterDtype = AdapterDtype::F32;

fn formats() -> impl Iterator<Item = AdapterFormat> {
    let both = |dialect| [AdapterDtype::Bf16, F32].map(|dtype| AdapterFormat { dialect, dtype });
    [Dialect::PerExpert, Dialect::Fused].into_iter().flat_map(both)
}

#[test]
fn what_is_written_is_read_back() {
    let sets = [TargetSet::Default, TargetSet::Classic, TargetSet::All, TargetSet::Servable, TargetSet::Attention];
    let sets = sets.into_iter().chain([named(&["all-linear"]), named(&["lm_head", "gate", "down_proj"])]);
    for targets in sets {
        for config in Family::ALL.map(config).into_iter().chain([with_dense_layer()]) {
            for use_rslora in [false, true] {
                let plan = plan(&config, &LoraOptions { use_rslora, ..options(targets.clone()) }).unwrap();
                for format in formats() {
                    let folder = written(&config, &plan, format);
                    let (found, values) = read(folder.path(), &config).unwrap();
                    assert_eq!(values, tensors(&plan), "{targets:?} {format:?}");
                    assert_same_modules(&found, &plan);
                }
            }
        }
    }
}

#[track_caller]
fn assert_same_modules(found: &LoraPlan, expected: &LoraPlan) {
    assert_eq!(found.modules.len(), expected.modules.len());
    for (found, expected) in found.modules.iter().zip(&expected.modules) {
        assert_eq!((&found.path, found.rank), (&expected.path, expected.rank));
        assert!((found.scale / expected.scale - 1.0).abs() < 1e-12, "{}", found.path);
    }
}

#[test]
fn a_plan_read_back_can_be_planned_again() {
    let config = config(Family::Qwen3Next);
    let first = plan(&config, &options(TargetSet::All)).unwrap();
    let folder = written(&config, &first, AdapterFormat::default());
    let (found, _) = read(folder.path(), &config).unwrap();
    assert_eq!(plan(&config, &found.options).unwrap(), found);
    assert_eq!(found.options.expert_rank, Some(3));
    assert_eq!(found.options.dropout, 0.05);
}

#[test]
fn adapters_of_the_reference_are_read_and_written_unchanged() {
    for family in Family::ALL {
        let config = config(family);
        for name in ["lora_init", "lora_final"] {
            let dir = fixture(family, name);
            let (plan, values) = read(&dir, &config).unwrap();
            // Its `rank_pattern` is empty, so experts have the whole rank.
            assert!(plan.modules.iter().all(|module| module.rank == 4 && module.scale == 2.0));
            let folder = tempfile::tempdir().unwrap();
            let format = AdapterFormat { dialect: Dialect::PerExpert, dtype: F32 };
            write(folder.path(), &config, &plan, &values, format, "base").unwrap();
            assert_eq!(contents(folder.path()), contents(&dir));
            let mut expected = description(&dir);
            expected["target_modules"].as_array_mut().unwrap().sort_by_key(|name| name.to_string());
            assert_eq!(description(folder.path()), expected);
        }
    }
}

/// Every tensor of an adapter file with its shape and values.
fn contents(dir: &Path) -> std::collections::BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafetensorsFile::open(dir.join(TENSORS_FILE)).unwrap();
    file.tensors()
        .map(|(name, stored)| {
            let values = floats(&file, &name, &stored).unwrap();
            (name, (stored.shape, values))
        })
        .collect()
}

#[test]
fn the_description_names_exactly_the_adapted_modules() {
    let config = config(Family::Qwen3Next);
    let names = |targets, dialect| {
        let plan = plan(&config, &options(targets)).unwrap();
        let folder = written(&config, &plan, AdapterFormat { dialect, dtype: F32 });
        let description = description(folder.path());
        ["target_modules", "target_parameters", "rank_pattern", "alpha_pattern", "lora_dropout"]
            .map(|field| description[field].to_string().replace('"', ""))
    };
    assert_eq!(
        names(TargetSet::Default, Dialect::PerExpert),
        [
            "[in_proj_qkvz,k_proj,o_proj,out_proj,q_proj,shared_expert.down_proj,shared_expert.gate_proj,\
         shared_expert.up_proj,v_proj]",
            "null",
            "{}",
            "{}",
            "0.05"
        ]
    );
    assert_eq!(
        names(TargetSet::All, Dialect::PerExpert),
        [
            "[down_proj,gate_proj,in_proj_qkvz,k_proj,o_proj,out_proj,q_proj,up_proj,v_proj]",
            "null",
            r"{experts\\.\\d+\\.gate_proj:3,experts\\.\\d+\\.up_proj:3,experts\\.\\d+\\.down_proj:3}",
            r"{experts\\.\\d+\\.gate_proj:4.5,experts\\.\\d+\\.up_proj:4.5,experts\\.\\d+\\.down_proj:4.5}",
            "0.05"
        ]
    );
    // gate_up has twice the experts' rank of 3 and so the rank of all others.
    assert_eq!(
        names(TargetSet::All, Dialect::Fused),
        [
            "[in_proj_qkvz,k_proj,o_proj,out_proj,q_proj,v_proj]",
            "[down_proj,down_proj.weight,gate_proj.weight,gate_up_proj,up_proj.weight]",
            "{down_proj:3}",
            "{down_proj:4.5}",
            "0.0"
        ]
    );
    assert_eq!(names(TargetSet::Attention, Dialect::Fused)[..2], ["[k_proj,o_proj,q_proj,v_proj]", "null"]);
}

/// The update `scale * B A` of an adapter, as `f64`.
fn update(adapter: &Adapter) -> Vec<f64> {
    let (a, b) = (&adapter.a, &adapter.b);
    let cell = |row: usize, column: usize| -> f64 {
        let product = |k| f64::from(b.values[row * b.columns + k]) * f64::from(a.values[k * a.columns + column]);
        (0..a.rows).map(product).sum()
    };
    (0..b.rows).flat_map(|row| (0..a.columns).map(move |column| cell(row, column))).collect()
}

#[test]
fn fused_experts_lie_as_peft_computes_with_them() {
    let config = config(Family::Qwen3Moe);
    let plan = plan(&config, &options(TargetSet::Classic)).unwrap();
    let folder = written(&config, &plan, AdapterFormat { dialect: Dialect::Fused, dtype: F32 });
    let contents = contents(folder.path());
    let values = tensors(&plan);
    let get = |name: &str| &contents[&format!("base_model.model.model.layers.2.mlp.experts.{name}.weight")];
    let (a, b) = (get("base_layer.lora_A"), get("base_layer.lora_B"));
    assert_eq!((&a.0[..], &b.0[..]), (&[6 * 8, 64][..], &[64, 6 * 8][..]));
    assert_eq!((&get("lora_A").0[..], &get("lora_B").0[..]), (&[3 * 8, 32][..], &[64, 3 * 8][..]));
    for expert in 0..8 {
        // PEFT: A.reshape(E, R, in)[e] and B.reshape(out, R, E)[..., e].
        let a = a.1[expert * 6 * 64..][..6 * 64].to_vec();
        let b = (0..64 * 6).map(|index| b.1[(index / 6) * 48 + (index % 6) * 8 + expert]).collect();
        let fused =
            Adapter { a: Matrix { rows: 6, columns: 64, values: a }, b: Matrix { rows: 64, columns: 6, values: b } };
        let part = |name: &str| update(&values[&format!("model.layers.2.mlp.experts.{expert}.{name}")]);
        assert_eq!(update(&fused), [part("gate_proj"), part("up_proj")].concat());
    }
}

#[test]
fn a_trained_fused_adapter_keeps_its_whole_rank() {
    // Values off the diagonal, as training under transformers 5 leaves them.
    let a = Matrix { rows: 4, columns: 3, values: (0..12).map(|value| value as f32).collect() };
    let b = Matrix { rows: 6, columns: 4, values: (0..24).map(|value| (value * 7 % 11) as f32).collect() };
    let joined = Adapter { a, b };
    assert!(!super::super::fused::is_block_diagonal(&joined.b, 4));
    let parts = super::super::fused::split_gate_up(&joined, false);
    assert_eq!(parts[0].a.rows, 4);
    assert_eq!(update(&joined), [update(&parts[0]), update(&parts[1])].concat());
}

#[test]
fn untrained_fused_adapters_are_taken_as_two_of_half_the_rank() {
    let zero = Matrix { rows: 6, columns: 4, values: vec![0.0; 24] };
    assert!(super::super::fused::is_block_diagonal(&zero, 4));
    assert!(!super::super::fused::is_block_diagonal(&Matrix { rows: 6, columns: 3, values: vec![0.0; 18] }, 3));
}

#[test]
fn experts_adapted_in_part_cannot_be_fused() {
    let config = config(Family::Qwen3Next);
    for (targets, texts) in [
        (named(&["gate_proj"]), ["gate_proj and up_proj of all experts", "found 8 of 16"]),
        (named(&["experts.3.down_proj"]), ["down_proj of all experts", "found 1 of 8"]),
    ] {
        let plan = plan(&config, &options(targets)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let format = AdapterFormat { dialect: Dialect::Fused, dtype: F32 };
        let error = write(folder.path(), &config, &plan, &tensors(&plan), format, "base").unwrap_err().to_string();
        assert!(texts.iter().all(|text| error.contains(text)), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn the_same_adapter_gives_the_same_bytes() {
    let config = config(Family::Qwen3Next);
    let plan = plan(&config, &options(TargetSet::All)).unwrap();
    for format in formats() {
        let folders = [(); 2].map(|()| written(&config, &plan, format));
        for file in [TENSORS_FILE, CONFIG_FILE] {
            let [first, second] = folders.each_ref().map(|folder| std::fs::read(folder.path().join(file)).unwrap());
            assert_eq!(first, second, "{file}");
        }
        assert_eq!(std::fs::read_dir(folders[0].path()).unwrap().count(), 2);
    }
}

#[test]
fn patterns_of_a_mixed_plan_survive() {
    let config = config(Family::Qwen3Next);
    let mut plan = plan(&config, &options(TargetSet::All)).unwrap();
    for (number, module) in plan.modules.iter_mut().enumerate() {
        module.rank = 1 + number % 3;
        module.alpha = 1.0 + (number % 5) as f64;
        module.scale = module.alpha / module.rank as f64;
    }
    let folder = written(&config, &plan, AdapterFormat { dialect: Dialect::PerExpert, dtype: F32 });
    let (found, values) = read(folder.path(), &config).unwrap();
    assert_same_modules(&found, &plan);
    assert_eq!(values, tensors(&plan));
}
