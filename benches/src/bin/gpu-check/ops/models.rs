//! The sizes of the layers that ops are measured with.

use brightrun_kernels::attention::Heads;
use brightrun_kernels::conv::HeadGroups;

/// Sizes of a model's layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model {
    /// What it is called in names of ops.
    pub(super) name: &'static str,
    pub(super) hidden: usize,
    pub(super) experts: usize,
    pub(super) per_token: usize,
    /// Of an expert.
    pub(super) width: usize,
    pub(super) heads: Heads,
    /// Of a head, how many values are turned.
    pub(super) rotary: usize,
    /// Whether the query projection has a gate beside each head.
    pub(super) gated: bool,
    pub(super) delta_net: Option<HeadGroups>,
    pub(super) vocabulary: usize,
}

/// All sizes.
#[derive(Debug)]
pub(super) struct Shapes {
    pub(super) models: Vec<Model>,
    /// Of a row.
    pub(super) tokens: Vec<usize>,
    /// Of a document, where a row has several.
    pub(super) document: usize,
    /// Of an expert, on average.
    pub(super) expert_rows: Vec<usize>,
    /// Of linear layers alone.
    pub(super) linear_rows: Vec<usize>,
    /// Of square products.
    pub(super) sides: Vec<usize>,
    /// Of head and loss.
    pub(super) loss_rows: usize,
    /// Values that the optimiser changes.
    pub(super) parameters: usize,
}

/// Qwen3-Next-80B-A3B.
const NEXT: Model = Model {
    name: "80B",
    hidden: 2048,
    experts: 512,
    per_token: 10,
    width: 512,
    heads: Heads { query: 16, key_value: 2, width: 256 },
    rotary: 64,
    gated: true,
    delta_net: Some(HeadGroups { key_heads: 16, value_heads: 32, key_dim: 128, value_dim: 128 }),
    vocabulary: 151_936,
};
/// Qwen3-30B-A3B.
const THIRTY: Model = Model {
    name: "30B",
    experts: 128,
    per_token: 8,
    width: 768,
    heads: Heads { query: 32, key_value: 4, width: 128 },
    rotary: 128,
    gated: false,
    delta_net: None,
    ..NEXT
};
/// As small as both can be and still call the same kernels.
const SMALL_NEXT: Model = Model {
    name: "small 80B",
    hidden: 128,
    experts: 4,
    per_token: 2,
    width: 128,
    heads: Heads { query: 2, key_value: 1, width: 256 },
    delta_net: Some(HeadGroups { key_heads: 1, value_heads: 2, key_dim: 128, value_dim: 128 }),
    vocabulary: 300,
    ..NEXT
};
const SMALL_THIRTY: Model = Model {
    name: "small 30B",
    heads: Heads { query: 2, key_value: 1, width: 128 },
    rotary: 128,
    gated: false,
    delta_net: None,
    ..SMALL_NEXT
};

pub(super) fn shapes(small: bool) -> Shapes {
    if small {
        return Shapes {
            models: vec![SMALL_NEXT, SMALL_THIRTY],
            tokens: vec![70],
            document: 40,
            expert_rows: vec![3],
            linear_rows: vec![9],
            sides: vec![64],
            loss_rows: 9,
            parameters: 3000,
        };
    }
    Shapes {
        models: vec![NEXT, THIRTY],
        tokens: vec![4096, 16_384],
        document: 2048,
        expert_rows: vec![40, 80, 160, 320, 640],
        linear_rows: vec![512, 2048, 8192],
        sides: vec![4096, 8192],
        loss_rows: 4096,
        parameters: 100_000_000,
    }
}
