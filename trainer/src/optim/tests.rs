//! LoRA+: which values learn how fast, and that nothing moves where the ratio is 1.

use std::path::Path;

use super::*;
use crate::config::ModelConfig;
use crate::lora::{LoraOptions, TargetSet, plan};

const KINDS: [OptimizerKind; 2] = [OptimizerKind::AdamW, OptimizerKind::AdamW8bit];
const RATE: f64 = 1e-3;

/// A linear, a router, and routed experts with one, two and no adapted projections.
fn adapters() -> Adapters {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3_moe_s1/base");
    let config = ModelConfig::read(&base).unwrap();
    let names = ["self_attn.k_proj", "mlp.gate", "mlp.experts.0.gate_proj", "mlp.experts.0.down_proj"];
    let names = names.into_iter().chain(["mlp.experts.2.up_proj"]);
    let targets = TargetSet::Named(names.map(|name| format!("model.layers.1.{name}")).collect());
    let options = LoraOptions { rank: 3, alpha: 6.0, dropout: 0.0, use_rslora: false, targets, expert_rank: Some(5) };
    let adapters = Adapters::new(&config, &plan(&config, &options).unwrap(), 5).unwrap();
    assert_eq!(adapters.parameters().len(), 5);
    adapters
}

fn optimizer(adapters: &Adapters, kind: OptimizerKind, ratio: f64, change: OptimizerOptions) -> Optimizer {
    let options = OptimizerOptions { kind, loraplus_lr_ratio: ratio, max_gradient_norm: None, ..change };
    Optimizer::new(adapters, options)
}

/// A gradient for every value, none of them near zero.
fn gradients_of(adapters: &Adapters, step: u64) -> Gradients {
    let gradient = |parameter: usize, value: usize| {
        let wave = ((value * 7 + parameter * 3) as f32 + 11.0 * step as f32).sin();
        if wave < 0.0 { wave - 0.1 } else { wave + 0.1 }
    };
    // The two experts with adapters take turns.
    Gradients::given(
        adapters,
        |parameter, value| Some(gradient(parameter, value)),
        |expert| (expert as u64 / 2 + step).is_multiple_of(2),
    )
}

fn values(adapters: &Adapters) -> Vec<Vec<f32>> {
    adapters.parameters().iter().map(|parameter| parameter.values().unwrap()).collect()
}

#[test]
fn the_first_update_of_b_is_so_many_times_that_of_a() {
    for kind in KINDS {
        for ratio in [1.0, 16.0] {
            let adapters = adapters();
            let before = values(&adapters);
            let zero = OptimizerOptions { unhit_experts: UnhitExperts::Zero, ..OptimizerOptions::default() };
            let gradients = gradients_of(&adapters, 0);
            optimizer(&adapters, kind, ratio, zero).step(&gradients, RATE).unwrap();
            let after = values(&adapters);
            let mut seen = [0, 0];
            for (index, (parameter, gradient, _)) in gradients.iter().enumerate() {
                let gradient: Vec<f32> = gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
                for place in parameter.matrices() {
                    seen[usize::from(place.expert.is_some())] += 1;
                    let rate = if place.factor == Factor::B { RATE * ratio } else { RATE };
                    for at in place.range {
                        // AdamW's first update is that of its sign.
                        let (found, expected) =
                            (after[index][at] - before[index][at], -rate * f64::from(gradient[at].signum()));
                        assert!(
                            (f64::from(found) - expected).abs() < 1e-7,
                            "{kind:?} {}: {found} {expected}",
                            parameter.name
                        );
                    }
                }
            }
            assert_eq!(seen, [4, 6]);
        }
    }
}

#[test]
fn a_matrix_decays_by_its_own_learning_rate() {
    for kind in KINDS {
        let adapters = adapters();
        for parameter in adapters.parameters() {
            parameter.set_values(&vec![2.0; parameter.var.elem_count()]).unwrap();
        }
        let options = OptimizerOptions { weight_decay: 0.1, ..OptimizerOptions::default() };
        let gradients = Gradients::given(&adapters, |_, _| Some(0.0), |_| true);
        optimizer(&adapters, kind, 16.0, options).step(&gradients, RATE).unwrap();
        for (parameter, values) in adapters.parameters().iter().zip(values(&adapters)) {
            for place in parameter.matrices() {
                let rate = if place.factor == Factor::B { 16.0 * RATE } else { RATE };
                let expected = 2.0 * (1.0 - rate * 0.1) as f32;
                assert!(values[place.range].iter().all(|value| *value == expected), "{kind:?} {}", parameter.name);
            }
        }
    }
}

/// The same steps on every piece alone, with the state of each: `(range, expert, rate)`.
fn by_hand(
    adapters: &Adapters,
    options: &OptimizerOptions,
    pieces: impl Fn(&Parameter) -> Vec<(Range<usize>, Option<usize>, f64)>,
) -> (Vec<Vec<f32>>, Vec<(u64, Moments)>) {
    let mut all = values(adapters);
    let mut states = Vec::new();
    for (index, parameter) in adapters.parameters().iter().enumerate() {
        for (range, expert, rate) in pieces(parameter) {
            let mut moments = match options.kind {
                OptimizerKind::AdamW => Moments::full(range.len()),
                OptimizerKind::AdamW8bit => Moments::blockwise(range.len()),
            };
            let mut updates = 0;
            for step in 0..STEPS {
                let gradients = gradients_of(adapters, step);
                let (_, gradient, hits) = gradients.iter().nth(index).unwrap();
                let skipped = options.unhit_experts == UnhitExperts::Skip && expert.is_some_and(|expert| !hits[expert]);
                if range.is_empty() || skipped {
                    continue;
                }
                updates += 1;
                let hyper = Hyper {
                    learning_rate: RATE * rate,
                    beta1: options.beta1,
                    beta2: options.beta2,
                    epsilon: options.epsilon,
                    weight_decay: options.weight_decay,
                };
                let gradient: Vec<f32> = gradient.unwrap().flatten_all().unwrap().to_vec1().unwrap();
                let (values, gradient) = (&mut all[index][range.clone()], &gradient[range.clone()]);
                adamw::step(values, gradient, &mut moments, updates, 1.0, &hyper).unwrap();
            }
            states.push((updates, moments));
        }
    }
    (all, states)
}

const STEPS: u64 = 5;

/// Values and states after some steps, by the optimiser.
fn learnt(adapters: &Adapters, options: OptimizerOptions) -> (Vec<Vec<f32>>, Vec<(u64, Moments)>) {
    let mut optimizer = Optimizer::new(adapters, options);
    for step in 0..STEPS {
        optimizer.step(&gradients_of(adapters, step), RATE).unwrap();
    }
    let states = optimizer.segments.into_iter().flatten().map(|segment| (segment.updates, segment.moments)).collect();
    (values(adapters), states)
}

fn cases() -> impl Iterator<Item = OptimizerOptions> {
    let unhit = [UnhitExperts::Skip, UnhitExperts::Zero];
    KINDS.into_iter().flat_map(move |kind| {
        unhit.map(|unhit_experts| OptimizerOptions {
            kind,
            unhit_experts,
            weight_decay: 0.1,
            max_gradient_norm: None,
            ..OptimizerOptions::default()
        })
    })
}

/// The moments of an expert are one piece, blocks of 8 bits from its first value to its last.
#[test]
fn without_a_ratio_every_tensor_and_every_expert_is_one_piece() {
    for options in cases() {
        let expected = by_hand(&adapters(), &options, |parameter| match &parameter.experts {
            None => vec![(0..parameter.var.elem_count(), None, 1.0)],
            Some(layout) => (0..layout.experts()).map(|expert| (layout.range(expert), Some(expert), 1.0)).collect(),
        });
        assert!(learnt(&adapters(), options) == expected, "{options:?}");
    }
}

#[test]
fn with_a_ratio_every_matrix_is_one_piece_with_its_own_learning_rate() {
    for options in cases() {
        let expected = by_hand(&adapters(), &options, |parameter| match &parameter.experts {
            None => {
                let rate = if parameter.name.ends_with(".lora_B") { 16.0 } else { 1.0 };
                vec![(0..parameter.var.elem_count(), None, rate)]
            }
            Some(layout) => (0..layout.experts())
                .flat_map(|expert| layout.expert(expert).projections().map(move |pair| (expert, pair)))
                .flat_map(|(expert, pair)| [(&pair.a, expert, 1.0), (&pair.b, expert, 16.0)])
                .map(|(range, expert, rate)| (range.clone(), Some(expert), rate))
                .collect(),
        });
        let found = learnt(&adapters(), OptimizerOptions { loraplus_lr_ratio: 16.0, ..options });
        assert!(found == expected, "{options:?}");
        assert!(found.0 != learnt(&adapters(), options).0);
    }
}
