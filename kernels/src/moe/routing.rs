//! Which expert gets which row: top-k selection and the stable order by expert.

use rayon::prelude::*;

use crate::{Error, Result};

const NAME: &str = "moe routing";

/// The routing of one batch. A *slot* is one of a token's choices, `token * per_token + rank of the choice`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    experts: usize,
    per_token: usize,
    chosen: Vec<u32>,
    by_expert: Vec<u32>,
    offsets: Vec<usize>,
    position: Vec<u32>,
}

impl Routing {
    /// Chooses the `per_token` largest of each token's `experts` logits, largest first; equal logits go to the lower
    /// index.
    pub fn from_logits(logits: &[f32], experts: usize, per_token: usize) -> Result<Self> {
        if per_token == 0 || per_token > experts || !logits.len().is_multiple_of(experts) {
            return Err(Error::shape(NAME, "logits", ("tokens", experts, "top", per_token), logits.len()));
        }
        let tokens = logits.len() / experts;
        let mut chosen = vec![0; tokens * per_token];
        chosen
            .par_chunks_mut(per_token)
            .zip(logits.par_chunks(experts))
            .with_min_len(64)
            .for_each(|(chosen, logits)| choose(logits, chosen));
        Self::from_choices(chosen, experts, per_token)
    }

    /// A routing from the chosen expert of every slot.
    pub fn from_choices(chosen: Vec<u32>, experts: usize, per_token: usize) -> Result<Self> {
        if per_token == 0 || !chosen.len().is_multiple_of(per_token) || u32::try_from(chosen.len()).is_err() {
            return Err(Error::shape(NAME, "choices", ("tokens", per_token), chosen.len()));
        }
        let mut offsets = vec![0usize; experts + 1];
        for &expert in &chosen {
            match offsets.get_mut(expert as usize + 1) {
                Some(count) => *count += 1,
                None => return Err(Error::invalid(NAME, format!("expert {expert} of {experts} was chosen"))),
            }
        }
        for expert in 0..experts {
            offsets[expert + 1] += offsets[expert];
        }
        let mut next = offsets.clone();
        let mut by_expert = vec![0; chosen.len()];
        let mut position = vec![0; chosen.len()];
        for (slot, &expert) in chosen.iter().enumerate() {
            let place = next[expert as usize];
            next[expert as usize] += 1;
            by_expert[place] = slot as u32;
            position[slot] = place as u32;
        }
        Ok(Self { experts, per_token, chosen, by_expert, offsets, position })
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Choices per token.
    pub fn per_token(&self) -> usize {
        self.per_token
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.chosen.len() / self.per_token
    }

    /// The expert of every slot.
    pub fn chosen(&self) -> &[u32] {
        &self.chosen
    }

    /// The slots of an expert, in token order.
    pub fn slots(&self, expert: usize) -> &[u32] {
        &self.by_expert[self.offsets[expert]..self.offsets[expert + 1]]
    }

    /// Where a slot's row is when all rows are sorted by expert.
    pub fn position(&self, slot: usize) -> usize {
        self.position[slot] as usize
    }

    /// How many rows each expert has.
    pub fn counts(&self) -> impl ExactSizeIterator<Item = usize> {
        self.offsets.windows(2).map(|pair| pair[1] - pair[0])
    }
}

fn choose(logits: &[f32], chosen: &mut [u32]) {
    for rank in 0..chosen.len() {
        let (taken, rest) = chosen.split_at_mut(rank);
        let mut best: Option<usize> = None;
        for (index, &logit) in logits.iter().enumerate() {
            let better = best.is_none_or(|b| logit > logits[b] || (logits[b].is_nan() && !logit.is_nan()));
            if better && !taken.contains(&(index as u32)) {
                best = Some(index);
            }
        }
        // There are at least as many experts as choices, so one is always left.
        rest[0] = best.unwrap_or(0) as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_logits_win_and_ties_go_to_the_lower_index() {
        let routing = Routing::from_logits(&[0.1, 0.7, 0.7, 0.2, 3.0, -1.0, 0.0, 0.0], 4, 2).unwrap();
        assert_eq!(routing.chosen(), [1, 2, 0, 2]);
    }

    #[test]
    fn rows_are_sorted_by_expert_and_stable() {
        let routing = Routing::from_choices(vec![2, 0, 2, 1, 0, 2], 4, 2).unwrap();
        assert_eq!(routing.slots(0), [1, 4]);
        assert_eq!(routing.slots(2), [0, 2, 5]);
        assert!(routing.slots(3).is_empty());
        assert_eq!(routing.counts().collect::<Vec<_>>(), [2, 1, 3, 0]);
        let order: Vec<u32> = (0..4).flat_map(|e| routing.slots(e).to_vec()).collect();
        assert!((0..6).all(|slot| order[routing.position(slot)] == slot as u32));
    }

    #[test]
    fn not_a_number_is_chosen_last_and_never_twice() {
        let routing =
            Routing::from_logits(&[f32::NAN, 1.0, f32::NAN, 2.0, f32::NAN, f32::NAN, f32::NAN, f32::NAN], 4, 3)
                .unwrap();
        assert_eq!(routing.chosen(), [3, 1, 0, 0, 1, 2]);
    }

    #[test]
    fn impossible_routings_are_refused() {
        assert!(Routing::from_logits(&[0.0; 4], 4, 5).is_err());
        assert!(Routing::from_logits(&[0.0; 5], 4, 1).is_err());
        assert!(Routing::from_choices(vec![4], 4, 1).is_err());
    }
}
