//! A plan's memory for a card against what a step asks of an emulated one: the model, the optimiser, and the most that a step
//! takes beside them. The emulator counts what the arena of a card counts.

use std::path::Path;

use anyhow::Result;
use brightrun_kernels::gpu::Gpu;
use brightrun_kernels::gpu::arena::rounded;
use brightrun_tests::toy::{Mixers, Shape, Toy};
use brightrun_trainer::adapters::Adapters;
use brightrun_trainer::batch::{IGNORED, MicroBatch};
use brightrun_trainer::clock::Still;
use brightrun_trainer::config::Family;
use brightrun_trainer::gpu::{GpuModel, GpuOptimizer, Source};
use brightrun_trainer::lora::{self, LoraPlan, TargetSet};
use brightrun_trainer::optim::OptimizerKind;
use brightrun_trainer::plan::{BatchShape, DataFacts, Machine, MachineKind, Memory, Planner};
use brightrun_trainer::run::{Parameters, PrecisionKind};
use brightrun_trainer::step::{Position, Recompute, StepOptions};

use Family::{Qwen2Moe, Qwen3Moe, Qwen3Next};
use OptimizerKind::{AdamW, AdamW8bit};

/// By which share a plan may say more than a step takes, and by which less: what the walk does not know of.
const ABOVE: f64 = 0.02;
const BELOW: f64 = 0.01;
/// Places of the emulated card's first table of rotations, which is there before a row is.
const FIRST_POSITIONS: u64 = 512;

/// What a step is made of.
struct Case {
    name: &'static str,
    shape: Shape,
    parameters: Parameters,
    /// Lengths of the documents of each micro-batch, with padding and without.
    documents: Vec<(usize, usize)>,
    micro_batches: u64,
    /// Ops do what they do on this card: some workspaces depend on it.
    card: &'static str,
}

fn shape(family: Family) -> Shape {
    let mixers = if family == Qwen3Next { Mixers::Both } else { Mixers::Attention };
    Shape { family, mixers, layers: 3, hidden: 64, vocabulary: 200, experts: 6, expert_width: 32 }
}

/// What memory depends on, on both sides: families, precisions, targets, ranks that are padded and that are not, moments,
/// lengths, padding, the losses and noises that keep something of their own.
fn cases() -> Vec<Case> {
    let parameters = |targets, lora_rank, expert_rank, optimizer| Parameters {
        targets,
        lora_rank,
        expert_rank,
        optimizer,
        lora_dropout: 0.0,
        ..Parameters::default()
    };
    let case = |name, family, parameters, documents| Case {
        name,
        shape: shape(family),
        parameters,
        documents,
        micro_batches: 1,
        card: "emulated GPU",
    };
    let all = |optimizer| parameters(TargetSet::All, 16, Some(8), optimizer);
    let (packed, long) = (vec![(70, 70), (1, 1), (29, 29)], vec![(600, 600)]);
    // Experts with so many rows that their weights are decoded before products, where not all products decode them.
    let many_rows = |card| Case {
        shape: Shape { layers: 1, hidden: 512, experts: 2, expert_width: 512, ..shape(Qwen3Moe) },
        card,
        ..case("many rows", Qwen3Moe, all(AdamW8bit), vec![(1100, 1100)])
    };
    // A head, routers and gates learn too; B is copied to rows of eight values.
    let named = ["q_proj", "o_proj", "in_proj_qkvz", "in_proj_ba", "lm_head", "mlp.gate", "mlp.shared_expert_gate"];
    let named = TargetSet::Named(named.map(str::to_owned).into());
    vec![
        case("everything learns", Qwen3Next, all(AdamW8bit), packed.clone()),
        case("everything learns", Qwen3Moe, all(AdamW), packed.clone()),
        Case { card: "A100", ..case("everything learns", Qwen2Moe, all(AdamW8bit), packed.clone()) },
        case("experts frozen", Qwen3Next, parameters(TargetSet::Default, 8, None, AdamW), packed.clone()),
        case("head and routers", Qwen3Next, parameters(named, 5, None, AdamW8bit), packed.clone()),
        Case {
            micro_batches: 2,
            ..case("padding, dropout and two micro-batches", Qwen3Next, all(AdamW8bit), vec![(40, 33), (40, 40)])
        },
        case(
            "bf16, LoRA+, load balancing and noise",
            Qwen3Moe,
            Parameters {
                base_precision: PrecisionKind::Full,
                loraplus_lr_ratio: 4.0,
                router_aux_loss: true,
                neftune_noise_alpha: 5.0,
                lora_dropout: 0.1,
                ..all(AdamW8bit)
            },
            packed,
        ),
        Case {
            shape: Shape { layers: 2, hidden: 128, vocabulary: 640, expert_width: 128, ..shape(Qwen3Next) },
            ..case("wider, whole blocks of NF4", Qwen3Next, all(AdamW8bit), vec![(160, 160)])
        },
        many_rows("A100"),
        many_rows("H200"),
        Case {
            shape: Shape { layers: 1, ..shape(Qwen2Moe) },
            ..case("a long document", Qwen2Moe, parameters(TargetSet::Classic, 32, Some(20), AdamW8bit), long)
        },
    ]
}

// === impl Case ===

impl Case {
    fn lengths(&self) -> impl Iterator<Item = u64> {
        self.documents.iter().map(|(places, _)| *places as u64)
    }

    fn batch(&self, toy: &Toy) -> Result<MicroBatch> {
        let lengths: Vec<usize> = self.documents.iter().map(|(_, real)| *real).collect();
        let mut sequences = toy.sequences(&lengths, 0.7, 3);
        for (sequence, (places, _)) in sequences.iter_mut().zip(&self.documents) {
            sequence.tokens.resize(*places, 0);
            sequence.labels.resize(*places, IGNORED);
        }
        Ok(MicroBatch::from_sequences(&sequences)?)
    }

    fn planned(&self, toy: &Toy, plan: &LoraPlan, batch: &MicroBatch) -> Memory {
        let shape = BatchShape {
            tokens: self.lengths().sum(),
            documents: self.documents.len() as u64,
            longest: self.lengths().max().unwrap_or_default(),
            chunks: self.lengths().map(|length| length.div_ceil(64)).sum(),
            targets: batch.target_count() as u64,
            padded: self.documents.iter().any(|(places, real)| places != real),
        };
        let kind = MachineKind::Gpu {
            name: self.card.to_owned(),
            memory_bytes: 1 << 30,
            bf16_tflops: 1.0,
            memory_bandwidth: 1e9,
            usd_per_hour: 0.0,
        };
        let facts = DataFacts::from_lengths([1], 1.0);
        let planner = Planner::new(&toy.config, plan, &self.parameters, &facts);
        planner.step_memory(&Machine { kind, count: 1 }, shape, self.micro_batches > 1, Recompute::Layers)
    }

    fn gpu(&self) -> Gpu {
        // What a step computes takes no part in what it asks for.
        Gpu::emulated_idle(|facts| {
            let (capability, multiprocessors, shared) = match self.card {
                "A100" => ((8, 0), 108, 164 << 10),
                "H200" => ((9, 0), 132, 228 << 10),
                _ => return,
            };
            (facts.capability, facts.multiprocessors) = (capability, multiprocessors);
            (facts.shared_per_block, facts.shared_per_multiprocessor) = (shared - 1024, shared);
        })
    }

    /// What is there with the model, what the optimiser takes, and the most that a step takes beside them.
    fn measured(&self, toy: &Toy, plan: &LoraPlan, batch: &MicroBatch) -> Result<[u64; 3]> {
        let gpu = self.gpu();
        let adapters = Adapters::new(&toy.config, plan, 1)?;
        let source = Source::Checkpoint(&toy.checkpoint);
        let mut model = GpuModel::load(&gpu, &toy.config, source, &self.parameters.precision(), &adapters)?;
        let loaded = gpu.usage().now;
        let mut optimizer = GpuOptimizer::new(&gpu, model.adapters(), &self.parameters.optimizer(), 1)?;
        let state = gpu.usage().now - loaded;
        let options = StepOptions {
            recompute: Recompute::Layers,
            dropout: self.parameters.lora_dropout as f32,
            seed: 1,
            neftune_alpha: self.parameters.neftune_noise_alpha as f32,
            aux_coefficient: self.parameters.router_aux_loss.then_some(0.1),
        };
        for micro_batch in 0..self.micro_batches {
            let position = Position { step: 0, micro_batch, micro_batches: self.micro_batches };
            model.accumulate(batch, &options, position, 100, &Still)?;
        }
        optimizer.step(model.adapters_mut(), 1e-3)?;
        model.refresh()?;
        Ok([loaded, state, gpu.usage().peak - loaded - state])
    }

    /// The same planned and measured, by name.
    fn compare(&self, folder: &Path) -> Result<Vec<(&'static str, u64, u64)>> {
        let toy = Toy::write(folder, &self.shape, 1)?;
        let plan = lora::plan(&toy.config, &self.parameters.lora())?;
        let batch = self.batch(&toy)?;
        let memory = self.planned(&toy, &plan, &batch);
        let [loaded, state, step] = self.measured(&toy, &plan, &batch)?;
        let rotations = FIRST_POSITIONS * 4 * toy.config.attention.rotary_dim as u64;
        // What an emulated card has not: a driver, the vendor's library, and gaps.
        let most = memory.peak - memory.process - memory.workspace - memory.allocator;
        // How often experts are used, counted from the start on: a number for each, and the shares of a sum.
        let layers = toy.config.layers.len() as u64;
        let uses = rounded(4 * layers * toy.config.moe.experts as u64) + rounded(8 * layers * 64);
        let model = memory.base + memory.adapters + memory.gradients + rotations + uses;
        let beside = most - model - memory.optimizer;
        Ok(vec![("model", model, loaded), ("optimiser", memory.optimizer, state), ("step", beside, step)])
    }
}

#[test]
fn the_predicted_peak_is_that_of_an_emulated_card() {
    let (mut report, mut within) = (String::new(), true);
    for case in cases() {
        let folder = tempfile::tempdir().unwrap();
        for (part, planned, measured) in case.compare(folder.path()).unwrap() {
            let off = planned as f64 / measured as f64 - 1.0;
            within &= (-BELOW..=ABOVE).contains(&off);
            let numbers = format!("planned {planned}, measured {measured}");
            report.push_str(&format!(
                "{:+.2} %: {part}, {numbers}: {:?}, {}\n",
                100.0 * off,
                case.shape.family,
                case.name
            ));
        }
    }
    println!("{report}");
    assert!(within, "\n{report}");
}
