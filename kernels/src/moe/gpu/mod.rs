//! Router, routing and routed experts on a GPU.

mod routing;

pub use routing::{Balance, GpuRouting, LoadSums};

/// What errors name.
const OP: &str = "moe on a GPU";
