//! Router, routing and routed experts on a GPU.
//!
//! Rows (a token's choices, sorted by expert) never exist as copies of tokens: products gather them where they load them, and
//! the sums of tokens go through the inverse list, in the order of the choices.

mod backward;
mod decode;
mod experts;
mod forward;
mod lora;
mod routing;
mod update;

pub use backward::Gradients;
pub use experts::GpuExperts;
pub use forward::{ExpertsCall, Kept};
pub use lora::GpuExpertLora;
pub use routing::{Balance, GpuRouting, LoadSums};

use crate::gpu::{Argument, Buffer, Element};

/// What errors name.
const OP: &str = "moe on a GPU";

/// An argument of the kernels: memory that has values, or none.
fn some<T: Element>(buffer: Option<&Buffer<T>>) -> Argument {
    buffer.filter(|buffer| !buffer.is_empty()).into()
}
