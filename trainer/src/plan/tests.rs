use std::path::Path;

use super::*;
use crate::adapters::Adapters;
use crate::lora::TargetSet;
use crate::optim::{Optimizer, OptimizerKind, OptimizerState, StatePart};
use crate::run::PrecisionKind;

/// Qwen3-Next-80B-A3B as published.
const QWEN3_NEXT_80B: &str = r#"{"model_type": "qwen3_next", "vocab_size": 151936, "hidden_size": 2048,
    "intermediate_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
    "head_dim": 256, "rope_theta": 10000000, "partial_rotary_factor": 0.25, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "full_attention_interval": 4, "moe_intermediate_size": 512,
    "max_position_embeddings": 262144, "shared_expert_intermediate_size": 512, "num_experts": 512,
    "num_experts_per_tok": 10}"#;

const GIB: u64 = 1 << 30;

fn gpu(name: &str, gib: u64, usd_per_hour: f64) -> Machine {
    let kind = MachineKind::Gpu {
        name: name.into(),
        memory_bytes: gib * GIB,
        bf16_tflops: 989.0,
        memory_bandwidth: 3.35e12,
        usd_per_hour,
    };
    Machine { kind, count: 1 }
}

fn config() -> ModelConfig {
    ModelConfig::parse(QWEN3_NEXT_80B, Path::new("config.json")).unwrap()
}

/// Runs `test` with a planner over documents of one length.
fn planned<T>(parameters: &Parameters, length: u32, test: impl FnOnce(&Planner<'_>) -> T) -> T {
    let config = config();
    let plan = lora::plan(&config, &parameters.lora()).unwrap();
    let facts = DataFacts::from_lengths([length; 64], 1.0);
    test(&Planner::new(&config, &plan, parameters, &facts))
}

#[test]
fn the_80b_has_the_parameters_of_the_contract() {
    let counts = planned(&Parameters::default(), 2048, |p| p.plan(&gpu("H100", 80, 4.0)).unwrap().parameters);
    assert_eq!(counts.base, 79_674_391_296);
    // 36 x 16 x (2048 + 12288 + 4096 + 2048) + 12 x 16 x (10240 + 2 x 2560 + 6144) + 48 x 16 x 3 x 2560.
    assert_eq!(counts.trainable, 21_823_488);
    assert!((43_600_000..44_000_000).contains(&counts.adapter_file_bytes), "{}", counts.adapter_file_bytes);
    // With `in_proj_ba` it is what the contract says: 23 M parameters, 46 MB.
    let names = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "in_proj_qkvz",
        "in_proj_ba",
        "out_proj",
        "mlp.shared_expert.gate_proj",
    ];
    let more = ["mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"];
    let targets = TargetSet::Named(names.iter().chain(&more).map(|name| (*name).to_owned()).collect());
    let named = Parameters { targets, ..Parameters::default() };
    let wide = planned(&named, 2048, |p| p.plan(&gpu("H100", 80, 4.0)).unwrap().parameters);
    assert!(
        (wide.trainable as f64 / 23e6 - 1.0).abs() < 0.01 && (wide.adapter_file_bytes as f64 / 46e6 - 1.0).abs() < 0.01
    );
    let part = |kind| counts.by_kind.iter().find(|part| part.kind == kind).unwrap();
    assert_eq!((part(PartKind::RoutedExperts).tensors, part(PartKind::RoutedExperts).trainable), (73_728, 0));
    assert_eq!((part(PartKind::Attention).tensors, part(PartKind::DeltaNet).tensors), (48, 108));
    assert_eq!((part(PartKind::Router).tensors, part(PartKind::SharedExperts).tensors), (96, 144));
    assert_eq!(counts.by_kind.iter().map(|part| part.tensors).sum::<u64>(), 74_391);
}

#[test]
fn the_base_and_all_experts_are_as_large_as_published() {
    let all = Parameters { targets: TargetSet::Classic, expert_rank: Some(16), ..Parameters::default() };
    let plan = planned(&all, 2048, |p| p.plan(&gpu("H100", 80, 4.0)).unwrap());
    assert!((plan.memory.base as f64 / 42.1e9 - 1.0).abs() < 0.01, "{}", plan.memory.base);
    assert_eq!(plan.parameters.adapted_linears, 73_920);
    assert!((plan.parameters.trainable as f64 / 3.02e9 - 1.0).abs() < 0.01, "{}", plan.parameters.trainable);
    // A 6 GB file; on a card 12 GB of `f32` with 6 GB of copies, 12 GB of gradients, 24 GB of moments.
    assert!((plan.parameters.adapter_file_bytes as f64 / 6.06e9 - 1.0).abs() < 0.02);
    let trained = 4.0 * plan.parameters.trainable as f64;
    for (bytes, times) in [(plan.memory.adapters, 1.5), (plan.memory.gradients, 1.0), (plan.memory.optimizer, 2.0)] {
        assert!((bytes as f64 / trained / times - 1.0).abs() < 2e-3, "{bytes} of {times} x {trained}");
    }
    let small = Parameters { optimizer: OptimizerKind::AdamW8bit, ..all };
    let eight = planned(&small, 2048, |p| p.plan(&gpu("H100", 80, 4.0)).unwrap()).memory.optimizer;
    assert!((eight as f64 / plan.memory.optimizer as f64 - (2.0 + 8.0 / 256.0) / 8.0).abs() < 1e-3);
}

/// What a plan says of the moments is what the optimiser makes, to the byte; its counts of updates are not in it.
#[test]
fn moments_take_what_the_optimiser_takes() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3_moe_s1/base");
    let config = ModelConfig::read(&base).unwrap();
    let facts = DataFacts::from_lengths([64; 4], 1.0);
    let mut seen = Vec::new();
    for optimizer in [OptimizerKind::AdamW, OptimizerKind::AdamW8bit] {
        for loraplus_lr_ratio in [1.0, 16.0] {
            let parameters = Parameters {
                optimizer,
                loraplus_lr_ratio,
                targets: TargetSet::All,
                expert_rank: Some(3),
                ..Parameters::default()
            };
            let plan = lora::plan(&config, &parameters.lora()).unwrap();
            let adapters = Adapters::new(&config, &plan, 1).unwrap();
            let made = Optimizer::new(&adapters, parameters.optimizer());
            let part = |parameter, part: &StatePart| match made.part_layout(parameter, *part) {
                (_, _) if *part == StatePart::Updates => 0,
                (dtype, count) => (dtype.bitsize() / 8 * count) as u64,
            };
            let parts = |parameter| made.parts().iter().map(|it| part(parameter, it)).sum::<u64>();
            let expected: u64 = (0..adapters.parameters().len()).map(parts).sum();
            let planned = Planner::new(&config, &plan, &parameters, &facts);
            assert_eq!(planned.plan(&Machine::cpu(2, 64 * GIB)).unwrap().memory.optimizer, expected, "{parameters:?}");
            seen.push(expected);
        }
    }
    // The ratio makes more blocks of 8 bits, and nothing else larger.
    assert!(seen[0] == seen[1] && seen[2] < seen[3] && seen[3] < seen[0] / 3, "{seen:?}");
}

/// GFLOP a token with full recompute, and without, from the limits computed for this model. A card leaves out the last product
/// of the experts the second time: 48 layers of 10 experts with 2 x 2048 x 512 operations, 1.0 GFLOP.
#[test]
fn operations_are_those_computed_for_the_80b() {
    for (length, with, without) in [(2048, 22.5, 15.6), (4096, 23.4, 16.3), (8192, 25.3, 17.7)] {
        let parameters = Parameters { max_seq_length: length as usize, ..Parameters::default() };
        let (cpu, card) = (Machine::cpu(8, 64 * GIB), gpu("H100", 80, 4.0));
        for (machine, recompute, expected) in
            [(&cpu, Recompute::Layers, with), (&cpu, Recompute::None, without), (&card, Recompute::Layers, with - 1.0)]
        {
            let plan =
                planned(&parameters, length, |p| p.clone().fixed(Some(8192), Some(recompute)).plan(machine).unwrap());
            let found = plan.operations.total / 1e9;
            assert!((found / expected - 1.0).abs() < 0.025, "{length} {recompute:?}: {found} for {expected}");
        }
    }
}

#[test]
fn a_plan_is_made_in_no_time_and_its_parts_add_up() {
    let parameters = Parameters { targets: TargetSet::All, ..Parameters::default() };
    for machine in [gpu("H200", 140, 5.6), Machine::cpu(8, 64 * GIB)] {
        let plan = planned(&parameters, 1500, |p| p.plan(&machine).unwrap());
        let m = &plan.memory;
        let parts = [m.base, m.adapters, m.optimizer, m.gradients, m.kept_inputs, m.activations, m.workspace];
        assert_eq!(parts.iter().sum::<u64>() + m.tokens + m.allocator + m.process, m.peak);
        assert!(plan.choices.contains(&plan.choice), "{:?}", plan.choices);
        assert_eq!(m.layers.iter().map(|layer| layer.count).sum::<usize>(), 48);
        assert!(plan.to_string().contains("routed experts"), "{plan}");
        assert!(serde_json::to_string(&plan).unwrap().contains("\"micro_batch_tokens\""));
    }
}

#[test]
fn more_memory_is_used_for_speed_and_less_is_respected() {
    let parameters = Parameters::default();
    let choice = |gib| planned(&parameters, 2048, |p| p.plan(&Machine::cpu(8, gib * GIB)).unwrap());
    let (small, large) = (choice(56), choice(600));
    assert!(small.fits && large.fits);
    assert_eq!((small.choice.recompute, large.choice.recompute), (Recompute::Layers, Recompute::None));
    assert!(large.choice.step_seconds < small.choice.step_seconds);
    assert!(small.memory.peak <= small.usable_bytes);
    // A card has no such choice, but that of larger micro-batches, which fill the tiles of experts.
    let choice = |gib| planned(&parameters, 2048, |p| p.plan(&gpu("card", gib, 1.0)).unwrap().choice);
    let (small, large) = (choice(46), choice(300));
    assert_eq!((small.recompute, large.recompute), (Recompute::Layers, Recompute::Layers));
    assert!(small.micro_batch_tokens < large.micro_batch_tokens && large.step_seconds < small.step_seconds);
}

#[test]
fn a_card_computes_layers_again_whatever_is_asked_for_and_says_so() {
    let parameters = Parameters { recompute: Some(false), ..Parameters::default() };
    planned(&parameters, 2048, |planner| {
        let (card, planner) = (gpu("H100", 80, 4.0), planner.clone().as_run());
        let plan = planner.plan(&card).unwrap();
        assert_eq!((plan.choice.recompute, plan.choices.len()), (Recompute::Layers, 1));
        assert!(planner.warning(&card).unwrap().contains("recompute is false"));
        assert_eq!(planner.warning(&Machine::cpu(2, GIB)), None);
        // A refusal does not ask for what is done anyway.
        let small = gpu("small", 24, 1.0);
        let refusal = planner.refusal(&planner.plan(&small).unwrap(), &[]).unwrap().unwrap();
        assert!(!refusal.to_string().contains("recompute"), "{refusal}");
    });
}

/// All that learns lies on a card in four forms from the first step on; with 16 padded rows of copies for ranks of 8.
#[test]
fn the_largest_part_beside_the_base_is_what_learns() {
    let options = |rank| Parameters {
        targets: TargetSet::All,
        lora_rank: rank,
        expert_rank: Some(rank),
        lora_dropout: 0.0,
        optimizer: OptimizerKind::AdamW8bit,
        ..Parameters::default()
    };
    let shape = |tokens: u64| BatchShape {
        tokens,
        documents: tokens / 2048,
        longest: 2048,
        chunks: tokens / 64,
        targets: tokens,
        padded: false,
    };
    let card = gpu("H100", 80, 4.0);
    let memory =
        |rank, tokens| planned(&options(rank), 2048, |p| p.step_memory(&card, shape(tokens), false, Recompute::Layers));
    let (small, large, wide) = (memory(8, 4096), memory(8, 16384), memory(16, 4096));
    assert_eq!((small.base, small.adapters, small.optimizer), (large.base, large.adapters, large.optimizer));
    assert!(small.adapters >= 2 * small.gradients - (1 << 27) && wide.adapters < 2 * wide.gradients);
    assert!((3.5..4.5).contains(&(large.activations as f64 / small.activations as f64)));
    assert!(large.peak_at.starts_with("backward of layer"), "{}", large.peak_at);
    // What was wanted of 80 GB cards.
    assert!(large.peak < 75_000_000_000 && large.allocator < large.peak / 100, "{large:?}");
}

#[test]
fn small_micro_batches_leave_the_tiles_of_experts_empty() {
    let parameters = Parameters { batch_size: 64, ..Parameters::default() };
    let rate = |tokens| {
        let plan = planned(&parameters, 512, |p| {
            p.clone().fixed(Some(tokens), Some(Recompute::Layers)).plan(&gpu("H100", 80, 4.0)).unwrap()
        });
        plan.time.tokens_per_second
    };
    // 10 rows of 64, 40 rows, 320 rows; at 40 % of the peak it would be 17,000.
    let rates = [rate(512), rate(2048), rate(16_384)];
    assert!(rates.is_sorted() && rates[0] < 4_000.0 && (15_000.0..19_000.0).contains(&rates[2]), "{rates:?}");
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let parameters = Parameters {
        targets: TargetSet::All,
        lora_rank: 64,
        expert_rank: Some(16),
        base_precision: PrecisionKind::Nf4,
        ..Parameters::default()
    };
    let others = [gpu("tiny", 24, 0.5), gpu("same", 80, 4.0), gpu("large", 141, 5.6), gpu("huge", 180, 8.6)];
    planned(&parameters, 2048, |planner| {
        let plan = planner.plan(&others[1]).unwrap();
        let refusal = planner.refusal(&plan, &others).unwrap().unwrap();
        let changes: Vec<&str> = refusal.suggestions.iter().map(|s| s.change.as_str()).collect();
        assert!(changes.iter().any(|change| change.starts_with("lora_rank ")), "{refusal}");
        assert!(changes.iter().any(|change| change.starts_with("targets \"default\"")), "{refusal}");
        assert!(changes.contains(&"large") && !changes.contains(&"tiny"), "{refusal}");
        for suggestion in &refusal.suggestions {
            let usable = if ["large", "huge"].contains(&suggestion.change.as_str()) { 180 } else { 80 } * GIB;
            assert!(suggestion.peak_bytes < usable, "{refusal}");
        }
        assert!(refusal.to_string().contains("does not fit on same"), "{refusal}");
        let fits = planner.plan(&others[3]).unwrap();
        assert_eq!(planner.refusal(&fits, &others).unwrap(), None);
        // A base that is larger than the machine leaves nothing to change.
        let hopeless = planner.plan(&others[0]).unwrap();
        let refusal = planner.refusal(&hopeless, &others[..1]).unwrap().unwrap();
        assert!(refusal.suggestions.is_empty() && refusal.to_string().contains("no smaller"), "{refusal}");
    });
}

#[test]
fn the_work_is_what_the_packing_gives() {
    let facts = DataFacts::from_lengths([1000, 1000, 3000, 500], 0.5);
    let parameters = Parameters { batch_size: 4, num_epochs: 2, ..Parameters::default() };
    let work = facts.work(&parameters, 4096).unwrap();
    // 3000 + 1000, and 1000 + 500.
    assert_eq!((work.steps, work.micro_batches, work.tokens, work.largest_micro_batch), (2, 4, 11_000, 4000));
    assert!(work.accumulates && work.largest.longest == 3000 && work.largest.documents == 2);
    let unpacked = Parameters { packing: false, ..parameters };
    let padded = facts.work(&unpacked, 4096).unwrap();
    assert!(padded.computed_tokens > padded.tokens && padded.largest.padded);
    let cut = facts.cut(800).work(&unpacked, 4096).unwrap();
    assert_eq!(cut.tokens, 2 * (3 * 800 + 500));
    assert!(facts.work(&unpacked, 2000).is_err());
}

#[test]
fn assumed_lengths_have_the_mean_that_was_asked_for() {
    let facts = DataFacts::assumed(1000, 300_000, 2048);
    let parameters = Parameters { num_epochs: 1, ..Parameters::default() };
    let work = facts.work(&parameters, 4096).unwrap();
    assert!((work.tokens as f64 / 300_000.0 - 1.0).abs() < 0.01 && work.assumed);
    assert_eq!(work.examples, 1000);
}
