//! Upper bounds on what a `config.json` may ask for: far above any model there is, far below what overflows.

/// Decoder layers.
pub(super) const MAX_LAYERS: usize = 1024;
/// Experts per layer.
pub(super) const MAX_EXPERTS: usize = 65_536;
/// Any width: residual stream, dense MLP, expert, shared expert.
pub(super) const MAX_WIDTH: usize = 1 << 20;
/// Rows of the embedding.
pub(super) const MAX_VOCABULARY: usize = 1 << 24;
/// Heads of any kind.
pub(super) const MAX_HEADS: usize = 1 << 14;
/// Width of one head.
pub(super) const MAX_HEAD_DIM: usize = 1 << 14;
/// Taps of the causal convolution.
pub(super) const MAX_CONV_KERNEL: usize = 1024;
/// Positions.
pub(super) const MAX_POSITIONS: usize = 1 << 30;
/// Expert matrices of the whole model (the 80B has 73,728): each is a tensor that must be listed and looked up.
pub(super) const MAX_EXPERT_TENSORS: usize = 1 << 22;
/// Parameters of the whole model; every size and byte count below it fits 64 bits with room to spare.
pub(super) const MAX_PARAMETERS: u128 = 1 << 44;
/// Bytes of a `config.json`.
pub(super) const MAX_FILE_BYTES: u64 = 10 * 1024 * 1024;
