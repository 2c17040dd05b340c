//! In which precision the frozen base is held.

/// Leaf names that stay in full precision by default: the head, the router and the shared expert's gate.
pub const DEFAULT_SKIP: [&str; 3] = ["lm_head", "gate", "shared_expert_gate"];

/// In which precision the linears of the base are held in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BasePrecision {
    /// As `f32`.
    Full,
    /// In NF4, blocks of 64.
    Nf4 {
        /// The scales are quantised too.
        double_quant: bool,
        /// Modules that stay in full precision: a leaf name, or a dotted part of a module path.
        skip: Vec<String>,
    },
}

// === impl BasePrecision ===

impl BasePrecision {
    /// NF4 with double quantisation and the default exceptions.
    pub fn nf4() -> Self {
        Self::Nf4 { double_quant: true, skip: DEFAULT_SKIP.map(str::to_owned).to_vec() }
    }

    /// Whether the linear at this path is quantised, and if so, with double quantisation or without.
    pub(crate) fn quantises(&self, path: &str) -> Option<bool> {
        match self {
            Self::Full => None,
            Self::Nf4 { double_quant, skip } => {
                (!skip.iter().any(|entry| covers(entry, path))).then_some(*double_quant)
            }
        }
    }
}

/// bitsandbytes' rule: the whole path, its last part, or a run of whole parts of it.
fn covers(entry: &str, path: &str) -> bool {
    format!(".{path}.").contains(&format!(".{entry}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skips(entry: &str, path: &str) -> bool {
        BasePrecision::Nf4 { double_quant: true, skip: vec![entry.to_owned()] }.quantises(path).is_none()
    }

    #[test]
    fn skip_means_whole_parts_of_a_path() {
        assert!(skips("gate", "model.layers.0.mlp.gate"));
        assert!(!skips("gate", "model.layers.0.mlp.experts.0.gate_proj"));
        assert!(!skips("gate", "model.layers.0.mlp.shared_expert_gate"));
        assert!(skips("lm_head", "lm_head"));
        assert!(skips("model.layers.1", "model.layers.1.self_attn.q_proj"));
        assert!(!skips("model.layers.1", "model.layers.10.self_attn.q_proj"));
        assert!(skips("shared_expert", "model.layers.1.mlp.shared_expert.up_proj"));
    }

    #[test]
    fn default_skip_leaves_head_and_routers_alone() {
        let nf4 = BasePrecision::nf4();
        for path in ["lm_head", "model.layers.0.mlp.gate", "model.layers.0.mlp.shared_expert_gate"] {
            assert_eq!(nf4.quantises(path), None, "{path}");
        }
        assert_eq!(nf4.quantises("model.layers.0.mlp.experts.7.down_proj"), Some(true));
        assert_eq!(BasePrecision::Full.quantises("model.layers.0.mlp.experts.7.down_proj"), None);
    }
}
