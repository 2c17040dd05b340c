//! The frozen experts of a layer and where each expert's LoRA matrices are in the layer's one flat parameter.

use std::ops::Range;

use crate::gemm::MatRef;
use crate::{Error, FrozenWeight, Result};

const NAME: &str = "moe experts";

/// One frozen expert: `down(silu(gate x) ⊙ up x)`.
#[derive(Debug, Clone)]
pub struct Expert {
    gate_up: GateUp,
    down: FrozenWeight,
}

/// Gate and up projections; plain ones are held as one matrix, gate rows first, so that both are one product.
#[derive(Debug, Clone)]
enum GateUp {
    Joined(FrozenWeight),
    Apart { gate: FrozenWeight, up: FrozenWeight },
}

impl Expert {
    /// `gate`, `up` `[intermediate, hidden]`, `down` `[hidden, intermediate]`.
    pub fn new(gate: FrozenWeight, up: FrozenWeight, down: FrozenWeight) -> Result<Self> {
        let (intermediate, hidden) = (gate.rows(), gate.columns());
        if (up.rows(), up.columns()) != (intermediate, hidden) {
            return Err(Error::shape(NAME, "up", (intermediate, hidden), (up.rows(), up.columns())));
        }
        if (down.rows(), down.columns()) != (hidden, intermediate) {
            return Err(Error::shape(NAME, "down", (hidden, intermediate), (down.rows(), down.columns())));
        }
        let gate_up = match (&gate, &up) {
            (FrozenWeight::Plain { values: g, .. }, FrozenWeight::Plain { values: u, .. }) => {
                let joined = g.iter().chain(u.iter()).copied().collect();
                GateUp::Joined(FrozenWeight::plain(joined, 2 * intermediate, hidden)?)
            }
            _ => GateUp::Apart { gate, up },
        };
        Ok(Self { gate_up, down })
    }

    /// Width of the residual stream.
    pub fn hidden(&self) -> usize {
        self.down.rows()
    }

    /// Width between the projections.
    pub fn intermediate(&self) -> usize {
        self.down.columns()
    }

    /// The weights as they are held, each with its name.
    pub fn weights(&self) -> Vec<(&'static str, &FrozenWeight)> {
        match &self.gate_up {
            GateUp::Joined(weight) => vec![("gate_up_proj", weight), ("down_proj", &self.down)],
            GateUp::Apart { gate, up } => vec![("gate_proj", gate), ("up_proj", up), ("down_proj", &self.down)],
        }
    }

    /// Gate and up as one `[2 · intermediate, hidden]` matrix, decoded into `scratch` where needed.
    pub(crate) fn gate_up<'a>(&'a self, scratch: &'a mut Vec<f32>) -> MatRef<'a> {
        let (rows, columns) = (2 * self.intermediate(), self.hidden());
        match &self.gate_up {
            GateUp::Joined(weight) => MatRef::new(weight.decode(scratch), rows, columns),
            GateUp::Apart { gate, up } => {
                scratch.resize(rows * columns, 0.0);
                let (first, second) = scratch.split_at_mut(gate.rows() * columns);
                gate.decode_into(first);
                up.decode_into(second);
                MatRef::new(scratch, rows, columns)
            }
        }
    }

    /// `[hidden, intermediate]`, decoded into `scratch` where needed.
    pub(crate) fn down<'a>(&'a self, scratch: &'a mut Vec<f32>) -> MatRef<'a> {
        MatRef::new(self.down.decode(scratch), self.hidden(), self.intermediate())
    }
}

/// One adapted projection of one expert: where its `A [rank, in]` and `B [out, rank]` are in the flat parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertProjection {
    /// Rank of the update.
    pub rank: usize,
    /// Factor of the update.
    pub scale: f32,
    /// Place of `A`.
    pub a: Range<usize>,
    /// Place of `B`.
    pub b: Range<usize>,
}

/// The adapted projections of one expert.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExpertLora {
    /// `gate_proj`
    pub gate: Option<ExpertProjection>,
    /// `up_proj`
    pub up: Option<ExpertProjection>,
    /// `down_proj`
    pub down: Option<ExpertProjection>,
}

/// The LoRA matrices of all experts of a layer in one flat parameter: expert after expert, so that an expert's
/// gradient is one contiguous range.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertLoraLayout {
    experts: Vec<ExpertLora>,
    ranges: Vec<Range<usize>>,
}

/// Rank and scale of each projection of an expert, `None` where it is not adapted: gate, up, down.
pub type ExpertRanks = [Option<(usize, f32)>; 3];

impl ExpertLoraLayout {
    /// Lays out experts with these ranks.
    pub fn new(hidden: usize, intermediate: usize, ranks: &[ExpertRanks]) -> Self {
        let mut next = 0;
        let mut take = |length: usize| {
            next += length;
            next - length..next
        };
        let mut experts = Vec::with_capacity(ranks.len());
        let mut ranges = Vec::with_capacity(ranks.len());
        for [gate, up, down] in ranks {
            let mut project = |ranks: &Option<(usize, f32)>, inputs: usize, outputs: usize| {
                ranks.map(|(rank, scale)| ExpertProjection {
                    rank,
                    scale,
                    a: take(rank * inputs),
                    b: take(outputs * rank),
                })
            };
            let expert = ExpertLora {
                gate: project(gate, hidden, intermediate),
                up: project(up, hidden, intermediate),
                down: project(down, intermediate, hidden),
            };
            let start = ranges.last().map_or(0, |r: &Range<usize>| r.end);
            let end = expert.projections().map(|p| p.b.end).max().unwrap_or(start);
            ranges.push(start..end);
            experts.push(expert);
        }
        Self { experts, ranges }
    }

    /// Number of values of the flat parameter.
    pub fn len(&self) -> usize {
        self.ranges.last().map_or(0, |r| r.end)
    }

    /// Whether no expert is adapted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The projections of an expert.
    pub fn expert(&self, index: usize) -> &ExpertLora {
        &self.experts[index]
    }

    /// The part of the flat parameter that belongs to an expert.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.ranges[index].clone()
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts.len()
    }
}

impl ExpertLora {
    /// The adapted ones of gate, up and down.
    pub fn projections(&self) -> impl Iterator<Item = &ExpertProjection> {
        [&self.gate, &self.up, &self.down].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_has_no_gaps_and_no_overlaps() {
        let all = [Some((2, 1.0)), Some((2, 1.0)), Some((3, 0.5))];
        let layout = ExpertLoraLayout::new(8, 4, &[all, [None, Some((1, 1.0)), None], [None; 3]]);
        let mut ranges: Vec<_> = (0..3)
            .flat_map(|e| layout.expert(e).projections().flat_map(|p| [p.a.clone(), p.b.clone()]).collect::<Vec<_>>())
            .collect();
        ranges.sort_by_key(|r| r.start);
        assert_eq!(ranges[0].start, 0);
        assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
        assert_eq!(ranges.last().unwrap().end, layout.len());
        assert_eq!(layout.len(), 2 * (2 * 8 + 4 * 2) + (3 * 4 + 8 * 3) + (8 + 4));
        assert!(layout.range(2).is_empty());
    }
}
