//! Paths of routed experts: `model.layers.3.mlp.experts.12.down_proj` is the down projection of expert 12 of layer 3.

use std::fmt;

/// The projections of a SwiGLU, in the order in which everything keeps them.
pub(crate) const PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// What the path of a layer's list of experts ends with.
const LIST: &str = ".mlp.experts";

/// The path of a routed expert's projection, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpertPath<'a> {
    /// The path of the layer's experts.
    pub(crate) list: &'a str,
    /// Number of the expert.
    pub(crate) expert: usize,
    /// Which of [`PROJECTIONS`].
    pub(crate) projection: usize,
}

// === impl ExpertPath ===

impl<'a> ExpertPath<'a> {
    /// Nothing where the module is no routed expert's.
    pub(crate) fn parse(module: &'a str) -> Option<Self> {
        let (expert, name) = module.rsplit_once('.')?;
        let (list, expert) = expert.rsplit_once('.')?;
        let projection = PROJECTIONS.iter().position(|known| *known == name)?;
        list.ends_with(LIST).then_some(())?;
        Some(Self { list, expert: expert.parse().ok()?, projection })
    }
}

impl fmt::Display for ExpertPath<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.list, self.expert, PROJECTIONS[self.projection])
    }
}

/// The path of the experts of a layer.
pub(crate) fn expert_list(layer: usize) -> String {
    format!("model.layers.{layer}{LIST}")
}

/// Whether a module is a routed expert's.
pub(crate) fn is_routed_expert(module: &str) -> bool {
    ExpertPath::parse(module).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expert_paths_are_told_from_others() {
        let path = "model.layers.1.mlp.experts.12.down_proj";
        let found = ExpertPath::parse(path).unwrap();
        assert_eq!(found, ExpertPath { list: &expert_list(1), expert: 12, projection: 2 });
        assert_eq!(found.to_string(), path);
        for other in [
            "model.layers.1.mlp.shared_expert.down_proj",
            "model.layers.1.mlp.down_proj",
            "model.layers.1.mlp.gate",
            "model.layers.1.mlp.experts.12",
            "model.layers.1.mlp.experts.x.down_proj",
            "model.layers.1.mlp.experts.12.down_proj.weight",
            "lm_head",
        ] {
            assert_eq!(ExpertPath::parse(other), None, "{other}");
        }
    }
}
