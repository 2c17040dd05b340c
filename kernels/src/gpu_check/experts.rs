//! The routed experts: sums of tokens, and the gradients of tokens, routing weights and LoRA matrices.

use half::bf16;

use super::{BF16, BF16_GRADIENT, Checks, Sizes};
use crate::dropout::Dropout;
use crate::gpu::Buffer;
use crate::lora_linear::reference::Shape;
use crate::moe::reference::{self, Projection};
use crate::moe::{
    Cores, Expert, ExpertLoraLayout, ExpertProjection, ExpertRanks, ExpertsCall, GpuExpertLora, GpuExperts, GpuRouting,
    Gradients, Routing,
};
use crate::nf4::Nf4Matrix;
use crate::self_test::values::{narrow, wide};
use crate::{FrozenWeight, Result};

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Storage {
    Plain,
    Nf4,
    Nf4Double,
}

/// Who gets the tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    Random,
    /// The first experts get all of them.
    OneWay,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    hidden: usize,
    width: usize,
    experts: usize,
    per_token: usize,
    tokens: usize,
    storage: Storage,
    load: Load,
    /// Of gate, up and down; 0 where they are not adapted.
    ranks: [usize; 3],
    /// Every third expert is not adapted, and others have other ranks and scales.
    uneven: bool,
    dropout: f32,
}

const PLAIN: Case = Case {
    hidden: 72,
    width: 40,
    experts: 5,
    per_token: 2,
    tokens: 37,
    storage: Storage::Plain,
    load: Load::Random,
    ranks: [0; 3],
    uneven: false,
    dropout: 0.0,
};
const SMALL: [Case; 11] = [
    PLAIN,
    Case { storage: Storage::Nf4Double, ranks: [3, 2, 4], uneven: true, ..PLAIN },
    // More experts than are decoded at once; idle ones, and many with one row.
    Case { hidden: 16, width: 8, experts: 66, per_token: 3, tokens: 17, storage: Storage::Nf4, ..PLAIN },
    // All rows on one expert: several tiles of rows, and of columns everywhere.
    Case {
        hidden: 136,
        width: 72,
        per_token: 1,
        tokens: 150,
        load: Load::OneWay,
        ranks: [8; 3],
        dropout: 0.3,
        ..PLAIN
    },
    Case { hidden: 24, width: 16, storage: Storage::Nf4Double, ranks: [20, 17, 70], dropout: 0.1, ..PLAIN },
    // Decoded inside of the products: small and large tiles.
    Case {
        hidden: 64,
        width: 256,
        experts: 3,
        tokens: 9,
        storage: Storage::Nf4Double,
        ranks: [3, 2, 4],
        uneven: true,
        ..PLAIN
    },
    Case {
        hidden: 256,
        width: 64,
        experts: 1,
        per_token: 1,
        tokens: 150,
        storage: Storage::Nf4Double,
        ranks: [8; 3],
        ..PLAIN
    },
    Case {
        hidden: 128,
        width: 128,
        experts: 2,
        storage: Storage::Nf4,
        tokens: 3,
        ranks: [4; 3],
        dropout: 0.2,
        ..PLAIN
    },
    // Experts with one row and with none; one projection not adapted, one with more than a tile of ranks.
    Case {
        hidden: 128,
        width: 128,
        experts: 9,
        tokens: 4,
        storage: Storage::Nf4Double,
        ranks: [17, 0, 70],
        uneven: true,
        ..PLAIN
    },
    // Large tiles, of which one has its first half only.
    Case {
        hidden: 64,
        width: 256,
        experts: 2,
        per_token: 1,
        tokens: 200,
        load: Load::OneWay,
        storage: Storage::Nf4,
        ..PLAIN
    },
    Case { hidden: 64, width: 64, ranks: [0, 5, 0], dropout: 0.5, per_token: 5, tokens: 1, ..PLAIN },
];
const NEXT: Case = Case {
    hidden: 2048,
    width: 512,
    experts: 16,
    per_token: 4,
    tokens: 48,
    storage: Storage::Nf4Double,
    load: Load::Random,
    ranks: [8; 3],
    uneven: true,
    dropout: 0.0,
};
const REAL: [Case; 3] = [
    NEXT,
    Case { experts: 4, per_token: 1, tokens: 150, load: Load::OneWay, storage: Storage::Nf4, ..NEXT },
    Case { width: 768, dropout: 0.05, ranks: [16; 3], ..NEXT },
];

pub(super) fn check(checks: &mut Checks<'_>) -> Result<()> {
    let cases: &[_] = if checks.sizes == Sizes::Small { &SMALL } else { &REAL };
    for case in cases {
        for cores in Cores::ALL.into_iter().filter(|cores| cores.are_on(checks.gpu)) {
            checks.case(format!("{cores:?}: {case:?}"));
            case.compare(checks, cores)?;
        }
    }
    Ok(())
}

// === impl Case ===

impl Case {
    fn compare(&self, checks: &mut Checks<'_>, cores: Cores) -> Result<()> {
        let gpu = checks.gpu;
        let mut logits = narrow(&checks.random.values(self.tokens * self.experts));
        if self.load == Load::OneWay {
            logits.iter_mut().enumerate().for_each(|(index, logit)| *logit -= 3.0 * (index % self.experts) as f32);
        }
        let choices = Routing::from_logits(&logits, self.experts, self.per_token)?;
        let routing = GpuRouting::from_logits(&gpu.of(&logits)?, self.experts, self.per_token, true)?;
        let weights = wide(&routing.weights().download()?);
        let layout = self.layout();
        let parameter = self.parameter(checks, &layout);
        let (experts, plain) = self.build(checks, &layout, &parameter)?;
        let dropout = (self.dropout > 0.0).then(|| [1, 2, 3].map(|which| Dropout::keyed(self.dropout, &[which, 7])));
        let mask = |slot: usize, which: usize, index: usize| {
            let width = if which == 2 { self.width } else { self.hidden };
            dropout.map_or(1.0, |all| f64::from(all[which].factor((slot * width + index) as u64)))
        };
        let (x, x_wide) = checks.bf16(self.tokens * self.hidden)?;
        let (d_out, d_out_wide) = checks.bf16(self.tokens * self.hidden)?;
        let expected = reference::forward(&plain, &x_wide, &weights, choices.chosen(), &mask);
        let gradient = reference::backward(&plain, &x_wide, &weights, choices.chosen(), &mask, &d_out_wide);
        let d_lora_wide = flat(&layout, &gradient.lora);

        let mut experts = GpuExperts::of(gpu, &experts)?;
        experts.multiply_by(cores)?;
        let mut lora = GpuExpertLora::new(gpu, &layout, self.hidden, self.width)?;
        let parameter = gpu.of(&narrow(&parameter))?;
        lora.refresh(&parameter)?;
        let lora = (!lora.is_empty()).then_some(&lora);
        let call = ExpertsCall { experts: &experts, routing: &routing, lora, dropout };
        let mut out = gpu.empty(x.len())?;
        let kept = call.forward(&x, &mut out, false)?;
        checks.compare("forward", &out, &expected, BF16)?;

        // Half of what is expected is there already, where gradients are added.
        let halves = |values: &[f64]| values.iter().map(|value| 0.5 * value).collect::<Vec<_>>();
        let rounded: Vec<bf16> = halves(&gradient.x).iter().map(|value| bf16::from_f64(*value)).collect();
        let (mut d_x, mut d_weights): (Buffer<bf16>, _) = (gpu.of(&rounded)?, gpu.empty(weights.len())?);
        let mut d_lora = gpu.of(&narrow(&halves(&d_lora_wide)))?;
        let gradients =
            Gradients { x: Some((&mut d_x, true)), weights: &mut d_weights, lora: lora.map(|_| &mut d_lora) };
        // By way of what a repeated pass keeps, as a step does it.
        drop(kept);
        let kept = call.forward_again(&x)?;
        call.backward(&x, &kept, &d_out, gradients)?;
        let more = |values: &[f64]| values.iter().map(|value| 1.5 * value).collect::<Vec<_>>();
        checks.compare("gradient of x", &d_x, &more(&gradient.x), BF16_GRADIENT)?;
        checks.compare("gradient of the routing weights", &d_weights, &gradient.weights, BF16_GRADIENT)?;
        if lora.is_some() {
            self.compare_lora(checks, &layout, &d_lora, &more(&d_lora_wide))?;
        }
        Ok(())
    }

    /// Each kind of matrix by itself, so that a small one cannot hide behind a large one.
    fn compare_lora(
        &self,
        checks: &mut Checks<'_>,
        layout: &ExpertLoraLayout,
        found: &Buffer<f32>,
        expected: &[f64],
    ) -> Result<()> {
        let found = found.download()?;
        let names = [
            ("gradient of gate's A", "gradient of gate's B"),
            ("gradient of up's A", "gradient of up's B"),
            ("gradient of down's A", "gradient of down's B"),
        ];
        for (which, (a, b)) in names.into_iter().enumerate() {
            for (name, is_a) in [(a, true), (b, false)] {
                let mut places = Vec::new();
                for expert in 0..self.experts {
                    if let Some(own) = projection_of(layout, expert, which) {
                        places.extend(if is_a { own.a.clone() } else { own.b.clone() });
                    }
                }
                if places.is_empty() {
                    continue;
                }
                let some: Vec<f32> = places.iter().map(|place| found[*place]).collect();
                let of_them: Vec<f64> = places.iter().map(|place| expected[*place]).collect();
                checks.compare(name, &checks.gpu.of(&some)?, &of_them, BF16_GRADIENT)?;
            }
        }
        Ok(())
    }

    fn layout(&self) -> ExpertLoraLayout {
        let ranks: Vec<ExpertRanks> = (0..self.experts)
            .map(|expert| {
                self.ranks.map(|rank| {
                    let own = if self.uneven && expert % 3 == 1 { rank.min(1) } else { rank };
                    let scale = if self.uneven && expert % 2 == 1 { 0.5 } else { 2.0 };
                    (own > 0 && !(self.uneven && expert % 3 == 2)).then_some((own, scale))
                })
            })
            .collect();
        ExpertLoraLayout::new(self.hidden, self.width, &ranks)
    }

    /// Values that bf16 has.
    fn parameter(&self, checks: &mut Checks<'_>, layout: &ExpertLoraLayout) -> Vec<f64> {
        let limit = 1.5 / (self.hidden as f64).sqrt();
        checks.random.values(layout.len()).iter().map(|value| bf16::from_f64(limit * value).to_f64()).collect()
    }

    fn build(
        &self,
        checks: &mut Checks<'_>,
        layout: &ExpertLoraLayout,
        parameter: &[f64],
    ) -> Result<(Vec<Expert>, Vec<reference::Expert>)> {
        let (mut frozen, mut plain) = (Vec::new(), Vec::new());
        for expert in 0..self.experts {
            let mut projection = |which: usize, outputs: usize, inputs: usize| {
                // Of different sizes, so that scales of another matrix are seen.
                let size = 0.5 + 0.5 * which as f64 + 0.25 * (expert % 3) as f64;
                let weight = self.weight(checks, size, outputs, inputs)?;
                let own = projection_of(layout, expert, which);
                let (a, b) = own.map_or_else(Default::default, |own| {
                    (parameter[own.a.clone()].to_vec(), parameter[own.b.clone()].to_vec())
                });
                let (rank, scale) = own.map_or((0, 0.0), |own| (own.rank, f64::from(own.scale)));
                let shape = Shape { rows: 1, inputs, outputs, rank, scale };
                let rounded = weight.to_f32().iter().map(|value| bf16::from_f32(*value).to_f64()).collect();
                Ok::<_, crate::Error>((weight, Projection { shape, weight: rounded, a, b }))
            };
            let (gate, plain_gate) = projection(0, self.width, self.hidden)?;
            let (up, plain_up) = projection(1, self.width, self.hidden)?;
            let (down, plain_down) = projection(2, self.hidden, self.width)?;
            frozen.push(Expert::new(gate, up, down)?);
            plain.push([plain_gate, plain_up, plain_down]);
        }
        Ok((frozen, plain))
    }

    fn weight(&self, checks: &mut Checks<'_>, size: f64, rows: usize, columns: usize) -> Result<FrozenWeight> {
        let limit = 2.0 * size / (columns as f64).sqrt();
        let values: Vec<f32> =
            checks.random.values(rows * columns).iter().map(|value| (limit * value) as f32).collect();
        if self.storage == Storage::Plain {
            return FrozenWeight::plain(values, rows, columns);
        }
        let double = self.storage == Storage::Nf4Double;
        Ok(FrozenWeight::Nf4(Nf4Matrix::quantize(&values, rows, columns, double)?.into()))
    }
}

fn projection_of(layout: &ExpertLoraLayout, expert: usize, which: usize) -> Option<&ExpertProjection> {
    let own = layout.expert(expert);
    [&own.gate, &own.up, &own.down][which].as_ref()
}

/// The reference's gradients in the order of the flat parameter.
fn flat(layout: &ExpertLoraLayout, gradients: &[[(Vec<f64>, Vec<f64>); 3]]) -> Vec<f64> {
    let mut flat = vec![0.0; layout.len()];
    for (expert, gradients) in gradients.iter().enumerate() {
        for (which, (a, b)) in gradients.iter().enumerate() {
            if let Some(own) = projection_of(layout, expert, which) {
                flat[own.a.clone()].copy_from_slice(a);
                flat[own.b.clone()].copy_from_slice(b);
            }
        }
    }
    flat
}
