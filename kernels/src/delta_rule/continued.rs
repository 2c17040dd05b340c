//! The same rule for a document that comes in pieces: its state is kept from one to the next.

use candle_core::Tensor;

use super::{NAME, Parameters, cpu};
use crate::conv::HeadGroups;
use crate::op::{tensor, with_slices};
use crate::{Error, Result};

/// What the rule remembers of the tokens so far: `S` of every value head, `[value_heads, key_dim, value_dim]`.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    values: Vec<f32>,
}

// === impl State ===

impl State {
    /// Before the first token.
    pub fn new(groups: &HeadGroups) -> Self {
        Self { values: vec![0.0; groups.value_heads * groups.key_dim * groups.value_dim] }
    }
}

/// The op on the next tokens of one document; `state` is the one before them on entry and after them on return. Forward
/// only: no gradient passes.
pub fn delta_rule_continued(qkv: &Tensor, ba: &Tensor, parameters: &Parameters, state: &mut State) -> Result<Tensor> {
    let tokens = qkv.dims().first().copied().unwrap_or(0);
    parameters.check(qkv, ba, tokens)?;
    let groups = &parameters.groups;
    let expected = groups.value_heads * groups.key_dim * groups.value_dim;
    if state.values.len() != expected || tokens == 0 {
        return Err(Error::shape(NAME, "state and tokens", (expected, "at least 1"), (state.values.len(), tokens)));
    }
    let out = with_slices([qkv, ba], |[qkv, ba]| cpu::continued(parameters, qkv, ba, tokens, &mut state.values))?;
    Ok(tensor(out, (tokens, groups.value_width()))?)
}
