//! Which values of a trainable tensor are an `A`, and which a `B`.

use std::ops::Range;

use super::Parameter;

/// One of the two matrices of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factor {
    /// The one that reads the input of the linear.
    A,
    /// The one that writes its output.
    B,
}

/// A matrix inside of a trainable tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixPlace {
    /// The number of the routed expert it belongs to, if it belongs to one.
    pub expert: Option<usize>,
    /// Which one of its pair it is.
    pub factor: Factor,
    /// Its values.
    pub range: Range<usize>,
}

// === impl Factor ===

impl Factor {
    /// As PEFT names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "lora_A",
            Self::B => "lora_B",
        }
    }
}

// === impl Parameter ===

impl Parameter {
    /// All its matrices, in the order of their values, without gaps.
    pub fn matrices(&self) -> Vec<MatrixPlace> {
        let own = self.factor.map(|factor| MatrixPlace { expert: None, factor, range: 0..self.var.elem_count() });
        let layout = self.experts.as_deref();
        let experts = layout.into_iter().flat_map(|layout| {
            (0..layout.experts()).flat_map(move |expert| {
                let pairs = layout.expert(expert).projections();
                pairs.flat_map(move |pair| {
                    [(Factor::A, &pair.a), (Factor::B, &pair.b)].map(|(factor, range)| MatrixPlace {
                        expert: Some(expert),
                        factor,
                        range: range.clone(),
                    })
                })
            })
        });
        own.into_iter().chain(experts).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::adapters::Adapters;
    use crate::config::ModelConfig;
    use crate::lora::{LoraOptions, TargetSet, plan};

    #[test]
    fn every_value_is_in_the_matrix_that_the_module_has_it_in() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3_next_s1/base");
        let config = ModelConfig::read(&dir).unwrap();
        let names = ["q_proj", "gate", "up_proj", "mlp.experts.1.down_proj", "mlp.experts.3.gate_proj"];
        let options = LoraOptions {
            rank: 3,
            alpha: 6.0,
            dropout: 0.0,
            use_rslora: false,
            targets: TargetSet::Named(names.map(Into::into).into()),
            expert_rank: Some(2),
        };
        let adapters = Adapters::new(&config, &plan(&config, &options).unwrap(), 5).unwrap();
        // Fresh matrices: no `A` has a zero, and a `B` has nothing else.
        let mut found = [0, 0];
        for parameter in adapters.parameters() {
            let (values, mut next) = (parameter.values().unwrap(), 0);
            for place in parameter.matrices() {
                assert_eq!(place.range.start, next, "{}", parameter.name);
                next = place.range.end;
                let zeros = values[place.range.clone()].iter().filter(|value| **value == 0.0).count();
                let expected = if place.factor == Factor::B { place.range.len() } else { 0 };
                assert_eq!(zeros, expected, "{} {place:?}", parameter.name);
                assert_eq!(place.expert.is_some(), parameter.experts.is_some());
                found[usize::from(place.expert.is_some())] += 1;
                assert!(parameter.experts.is_some() || parameter.name.ends_with(place.factor.name()));
                if let (Some(expert), Some(layout)) = (place.expert, &parameter.experts) {
                    let whole = layout.range(expert);
                    assert!(whole.start <= place.range.start && place.range.end <= whole.end);
                }
            }
            assert_eq!(next, values.len(), "{}", parameter.name);
        }
        assert!(found[0] > 0 && found[1] > 0, "{found:?}");
    }
}
