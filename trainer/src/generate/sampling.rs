//! Which token comes next: the best one, or one drawn from the best few.

use std::cmp::Ordering;

use crate::dataset::random::Random;
use crate::{Error, Result};

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the best token always.
    pub temperature: f64,
    /// Only the best tokens whose chances reach this sum are drawn from; 1: all.
    pub top_p: f64,
    /// Only so many of the best tokens are drawn from.
    pub top_k: Option<usize>,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

impl Sampling {
    /// Always the best token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: None, seed: 0 };

    /// The same with draws of its own for every number, for one of several prompts.
    pub fn for_prompt(self, number: u64) -> Self {
        Self { seed: Random::keyed(&[self.seed, number]).bits(), ..self }
    }
}

/// Draws tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: Random,
}

// === impl Sampler ===

impl Sampler {
    /// Begins with the seed.
    pub fn new(sampling: Sampling) -> Result<Self> {
        let Sampling { temperature, top_p, top_k, seed } = sampling;
        // Negated comparisons, so that NaN is refused too.
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(Error::Invalid(format!("temperature: found {temperature}, expected 0 or a number above it")));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(Error::Invalid(format!("top_p: found {top_p}, expected a number above 0 and up to 1")));
        }
        if top_k == Some(0) {
            return Err(Error::Invalid("top_k: found 0, expected at least 1".into()));
        }
        Ok(Self { sampling, random: Random::keyed(&[seed]) })
    }

    /// The next token.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) {
            return Err(Error::Invalid("the model gives no finite numbers; its adapter may have diverged".into()));
        }
        if self.sampling.temperature == 0.0 {
            return Ok(best(logits));
        }
        let candidates = self.candidates(logits);
        let sum: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.unit() * sum;
        for &(token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return Ok(token);
            }
        }
        // Rounding may leave a rest behind the last one.
        Ok(candidates.last().map_or_else(|| best(logits), |(token, _)| *token))
    }

    /// What may be drawn, best first, with weights in proportion to their chances: temperature, then `top_k`, then
    /// `top_p` of what is left, in transformers' order.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f64)> {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let better = |a: &u32, b: &u32| match logits[*b as usize].total_cmp(&logits[*a as usize]) {
            Ordering::Equal => a.cmp(b),
            other => other,
        };
        let kept = self.sampling.top_k.unwrap_or(order.len()).min(order.len());
        if kept < order.len() {
            order.select_nth_unstable_by(kept - 1, better);
            order.truncate(kept);
        }
        order.sort_unstable_by(better);
        let top = f64::from(logits[order[0] as usize]);
        let weight = |token: u32| ((f64::from(logits[token as usize]) - top) / self.sampling.temperature).exp();
        let mut candidates: Vec<(u32, f64)> = order.into_iter().map(|token| (token, weight(token))).collect();
        let enough = self.sampling.top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
        // The one that reaches the sum is the last that is kept.
        let reached = candidates.iter().scan(0.0, |sum, (_, weight)| {
            *sum += weight;
            Some(*sum >= enough)
        });
        let count = reached.take_while(|reached| !reached).count() + 1;
        candidates.truncate(count);
        candidates
    }
}

/// The lowest of the tokens with the highest logit.
fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, -3.0];

    fn sampler(temperature: f64, top_p: f64, top_k: Option<usize>, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, top_p, top_k, seed }).unwrap()
    }

    fn drawn(mut sampler: Sampler, count: usize) -> [usize; 5] {
        let mut counts = [0; 5];
        (0..count).for_each(|_| counts[sampler.choose(&LOGITS).unwrap() as usize] += 1);
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(drawn(Sampler::new(Sampling::GREEDY).unwrap(), 3), [0, 3, 0, 0, 0]);
    }

    #[test]
    fn draws_follow_the_softmax_of_the_logits() {
        for temperature in [0.5, 1.0, 2.0] {
            let count = 40_000;
            let counts = drawn(sampler(temperature, 1.0, None, 3), count);
            let weights = LOGITS.map(|logit| (f64::from(logit) / temperature).exp());
            let sum: f64 = weights.iter().sum();
            for (found, weight) in counts.iter().zip(weights) {
                let (found, expected) = (*found as f64 / count as f64, weight / sum);
                // Five standard deviations.
                let room = 5.0 * (expected * (1.0 - expected) / count as f64).sqrt();
                assert!((found - expected).abs() < room, "{temperature}: {found} {expected}");
            }
        }
    }

    #[test]
    fn only_the_best_few_are_drawn_from() {
        let none_of = |counts: [usize; 5]| counts.map(|count| count == 0);
        assert_eq!(none_of(drawn(sampler(1.0, 1.0, Some(2), 1), 500)), [true, false, true, false, true]);
        assert_eq!(none_of(drawn(sampler(1.0, 1.0, Some(1), 1), 500)), [true, false, true, true, true]);
        // Chances: 0.398 twice, 0.146, 0.054, 0.003.
        assert_eq!(none_of(drawn(sampler(1.0, 0.39, None, 1), 500)), [true, false, true, true, true]);
        assert_eq!(none_of(drawn(sampler(1.0, 0.79, None, 1), 500)), [true, false, true, false, true]);
        assert_eq!(none_of(drawn(sampler(1.0, 0.81, None, 1), 500)), [true, false, false, false, true]);
        assert_eq!(none_of(drawn(sampler(1.0, 0.4, Some(3), 1), 500)), [true, false, true, true, true]);
    }

    #[test]
    fn a_seed_draws_the_same_tokens_and_another_seed_others() {
        let series = |seed: u64| -> Vec<u32> {
            let mut sampler = sampler(1.0, 1.0, None, seed);
            (0..50).map(|_| sampler.choose(&LOGITS).unwrap()).collect()
        };
        assert_eq!(series(1), series(1));
        assert_ne!(series(1), series(2));
        let sampling = Sampling { seed: 5, ..Sampling::GREEDY };
        assert_ne!(sampling.for_prompt(0).seed, sampling.for_prompt(1).seed);
    }

    #[test]
    fn impossible_settings_and_numbers_are_refused() {
        for (temperature, top_p, top_k) in
            [(-1.0, 1.0, None), (f64::NAN, 1.0, None), (1.0, 0.0, None), (1.0, 1.5, None), (1.0, 1.0, Some(0))]
        {
            assert!(Sampler::new(Sampling { temperature, top_p, top_k, seed: 0 }).is_err());
        }
        assert!(sampler(1.0, 1.0, None, 0).choose(&[0.0, f32::NAN]).is_err());
        assert!(sampler(0.0, 1.0, None, 0).choose(&[]).is_err());
    }
}
